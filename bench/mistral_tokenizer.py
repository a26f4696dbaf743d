"""Mistral 7B's tokenizer as a folder for transformers, made of the SentencePiece model that mistral-common ships."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

SPACE = "\u2581"
SPECIAL = ("<unk>", "<s>", "</s>")


def pieces() -> sentencepiece.SentencePieceProcessor:
    model = files("mistral_common") / "data" / "tokenizer.model.v1"
    return sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes())


def write(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json."""
    processor = pieces()
    vocabulary = {processor.id_to_piece(number): number for number in range(processor.get_piece_size())}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges(processor, vocabulary), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


def merges(processor: sentencepiece.SentencePieceProcessor, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score first.

    By score and not by id: runs of spaces have low ids and the worst score, so they are merged after all words.
    """
    found = [
        (-processor.get_score(number), number, vocabulary[piece[:cut]], vocabulary[piece[cut:]], piece, cut)
        for piece, number in vocabulary.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    return [(piece[:cut], piece[cut:]) for *_, piece, cut in sorted(found)]


def check(folder: Path, texts: Sequence[str]) -> None:
    """Raises ValueError at the first text whose ids are not those of SentencePiece."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text, expected in zip(texts, pieces().encode(list(texts)), strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if ids != expected:
            raise ValueError(f"the tokenizer in {folder} disagrees with SentencePiece on {text[:200]!r}")
