"""The fast way to token ids gives the ids of the tokenizer itself."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers

from pipeline_steps import packing, text_encoder
from pipeline_steps.models import load_tokenizer
from pipeline_steps.text_encoder import SPACE, TextEncoder, segmentation

WORDS = ["the", "ferry", "notice", "in", "ing", "er", "re", "is", "an"]


def sentencepiece_like(extra: tuple[str, ...] = ()) -> str:
    """A small tokenizer of Mistral's kind: byte fallback, a space before each text, merges over the whole text."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    signs = [*list(".,()'-"), SPACE, SPACE * 2, SPACE * 4]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *signs, *"0123456789"]
    grown: list[str] = []
    for word in [*WORDS, *(f"{SPACE}{word}" for word in WORDS), "()", "--", *extra]:
        grown += [word[:end] for end in range(2, len(word) + 1)]
    pieces = list(dict.fromkeys([*pieces, *grown]))
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces[3 + 256 :]
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")]
    )
    return tokenizer.to_str()


FAST = TextEncoder(sentencepiece_like(), [1], 2)
PLAIN = Tokenizer.from_str(sentencepiece_like())
Text = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="theryinsa ().,-\n\t0129²_é漢" + SPACE, max_size=80),
    st.lists(st.sampled_from([*WORDS, " ", "  ", "\n", "</s>", "<s>", "7", "."]), max_size=20).map("".join),
)


def test_a_tokenizer_of_mistrals_kind_is_encoded_word_by_word() -> None:
    assert segmentation(FAST.tokenizer_json) is not None


def ids(encoder: TextEncoder, texts: list[str]) -> list[list[int]]:
    return [one.tolist() for one in encoder.encode(texts)]


@given(st.lists(Text, max_size=5))
def test_the_ids_are_those_of_the_library(texts: list[str]) -> None:
    expected = [one.ids for one in PLAIN.encode_batch(texts, add_special_tokens=False)]
    assert ids(FAST, texts) == ids(FAST, texts) == expected


def test_words_that_are_forgotten_are_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "WORDS_REMEMBERED", 3)
    monkeypatch.setattr(text_encoder, "WORDS_MERGED_TOGETHER", 2)
    encoder = TextEncoder(FAST.tokenizer_json, [1], 2)
    texts = [f"the ferry {'is' * number} in\n(a notice)  {number}" for number in range(50)]
    expected = [one.ids for one in PLAIN.encode_batch(texts, add_special_tokens=False)]
    assert ids(encoder, texts) == ids(encoder, texts) == expected


def test_a_text_that_the_library_refuses_leaves_nothing_wrong_behind() -> None:
    encoder = TextEncoder(FAST.tokenizer_json, [1], 2)
    with pytest.raises(TypeError):
        encoder.encode(["new words here", "half a pair: \ud800"])
    assert ids(encoder, ["new words here"]) == ids(FAST, ["new words here"])


@pytest.mark.parametrize("piece", [f"the{SPACE}ferry", "is\nan"])
def test_a_vocabulary_with_a_piece_across_words_is_left_to_the_library(piece: str) -> None:
    assert segmentation(sentencepiece_like((piece,))) is None


def test_a_vocabulary_without_every_byte_is_left_to_the_library() -> None:
    tokenizer = json.loads(FAST.tokenizer_json)
    tokenizer["model"]["vocab"]["<other>"] = tokenizer["model"]["vocab"].pop("<0xE6>")
    assert segmentation(json.dumps(tokenizer)) is None


def test_a_piece_across_a_word_and_a_sign_leaves_the_words_between_spaces() -> None:
    coarse = segmentation(sentencepiece_like(("is.",)))
    assert coarse is not None and coarse.findall(" is. an") == [" is.", " an"]


def test_another_kind_of_tokenizer_is_left_to_the_library(base_model: Path) -> None:
    tokenizer = load_tokenizer(base_model)
    assert segmentation(tokenizer.backend_tokenizer.to_str()) is None
    assert ids(TextEncoder.of(tokenizer), ["the ferry"]) == [
        tokenizer("the ferry", add_special_tokens=False)["input_ids"]
    ]


def test_an_encoder_goes_to_other_processes_and_keeps_its_digest() -> None:
    other = pickle.loads(pickle.dumps(FAST))
    assert other.digest == FAST.digest and ids(other, ["the ferry"]) == ids(FAST, ["the ferry"])
    assert TextEncoder(FAST.tokenizer_json, [], 2).digest != FAST.digest
    assert json.loads(FAST.tokenizer_json)["model"]["type"] == "BPE"


# ---------------------------------------------------------------- packing


@given(st.lists(st.integers(1, 120), max_size=300), st.integers(1, 50))
def test_every_row_is_in_one_sequence_and_none_is_too_full(lengths: list[int], window: int) -> None:
    sequences = list(packing.plan(lengths, 100, window))
    assert sorted(row for sequence in sequences for row in sequence) == list(range(len(lengths)))
    assert all(sum(min(lengths[row], 100) for row in sequence) <= 100 for sequence in sequences)


def test_many_rows_of_mixed_lengths_fill_their_sequences() -> None:
    lengths = [10 + (row * 7919) % 900 for row in range(5000)]
    sequences, fill = packing.fill(lengths, 2048)
    assert fill > 0.98 and sequences * 2048 * fill == pytest.approx(sum(lengths))
