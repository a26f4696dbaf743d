"""Small tokenizers that do with texts, special tokens and chats what those of the families' models do."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).with_name("chat_templates")
SPACE = "\u2581"
# begin-of-sequence that the tokenizer puts before texts, or None; end-of-sequence; other special tokens
LLAMA_3 = (
    "<|begin_of_text|>",
    "<|eot_id|>",
    ["<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|finetune_right_pad_id|>"],
)
QWEN = (None, "<|im_end|>", ["<|endoftext|>", "<|im_start|>"])
MISTRAL_V3 = ("<s>", "</s>", ["<unk>", "[INST]", "[/INST]", "[TOOL_CALLS]"])
MISTRAL_V1 = ("<s>", "</s>", ["<unk>"])
# The name of each is that of its chat template's file.
INSTRUCT: dict[str, Any] = {
    "llama-3": LLAMA_3,
    "qwen-2.5": QWEN,
    "qwen-3": QWEN,
    "mistral-0.3": MISTRAL_V3,
    "mistral-0.1": MISTRAL_V1,
}


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")


def instruct(name: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a family's instruct model, with its template or another one."""
    found = of(*INSTRUCT[name], sentencepiece=name.startswith("mistral"))
    found.chat_template = chat_template or template(name)
    return found


def of(
    beginning: str | None, end: str, more: list[str], sentencepiece: bool = False, words: int = 0
) -> PreTrainedTokenizerFast:
    """Bytes are its tokens: as GPT-2 spells them, or as SentencePiece falls back to them, with ASCII as pieces.

    With `words` so many tokens in all; those that fill it up are never met.
    """
    special = [*([beginning] if beginning else []), end, *more]
    if sentencepiece:
        pieces = [f"<0x{byte:02X}>" for byte in range(256)] + [SPACE, *(chr(code) for code in range(33, 127))]
    else:
        pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*special, *pieces]
    names += [f"never met {number}" for number in range(len(names), words)]
    vocabulary = {token: number for number, token in enumerate(names)}
    unknown = "<unk>" if sentencepiece else None
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown, byte_fallback=sentencepiece, fuse_unk=True))
    if (
        sentencepiece and "[INST]" in special
    ):  # version 3: one space before a text, not before what follows a special token
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    elif sentencepiece:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = (
        decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        if sentencepiece
        else decoders.ByteLevel()
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if beginning:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{beginning} $A", special_tokens=[(beginning, vocabulary[beginning])]
        )
    tokens = (
        {"eos_token": end}
        | ({"bos_token": beginning} if beginning else {})
        | ({"unk_token": "<unk>"} if unknown else {})
    )
    pad = next((token for token in more if "pad" in token or "endoftext" in token), None)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens, **({"pad_token": pad} if pad else {}))


def base(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """`folder` with the tokenizer, as an import leaves one without its weights."""
    tokenizer.save_pretrained(folder)
    (folder / "base_model.json").write_text(
        json.dumps({"schema_version": 1, "name": "tiny", "digest": "b" * 64}), encoding="utf-8"
    )
    return folder
