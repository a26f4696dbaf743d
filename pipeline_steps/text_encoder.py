"""Texts to token ids, fast and exactly as the tokenizer would: what training, evaluation and data preparation share.

SentencePiece-style BPE (Mistral, Llama 2) merges over a whole text, which the tokenizer library cannot cache. A merge
makes a piece of the vocabulary, so where no piece goes across a kind of boundary, no merge does: the segments between
such boundaries (words, signs) can be encoded one by one and remembered. The same ids, faster (`make bench-data`).
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPACE = "\u2581"  # SentencePiece's visible space
SEGMENTATIONS = (
    # Words, single digits, signs: each with the spaces before it. (Superscripts go with the signs. The most frequent
    # words come first, because they are found faster than by the general rule.)
    re.compile(r" ?[A-Za-z]+(?![^\W\d_²³¹])|\n| *[^\W\d_²³¹]+|\d| *(?:[^\w \n]|[_²³¹])+| +"),
    # Everything between two spaces.
    re.compile(r"\n| *[^ \n]+| +"),
)
WORDS_REMEMBERED = 131_072  # bounds the memory; the frequent words of a corpus come first and stay
LONGEST_WORD = 64  # characters; longer ones are rarely met twice
WORDS_MERGED_TOGETHER = 100  # in one call of the library
LINE_END = "\n"
ID_BYTES = 4
SELF_CHECK = "The  cost is\n\n  12.5 %,\tnaïve «漢字» 🙂 e.g. `x_y(z)`\r\n end "


class TextEncoder:
    """Encodes texts without special tokens. `beginning` and `end` are the ids before and after a whole text.

    `tokenizer_json` is the tokenizer's own serialisation; `digest` its SHA-256. Can be pickled.
    """

    def __init__(self, tokenizer_json: str, beginning: Sequence[int], end: int) -> None:
        self.tokenizer_json = tokenizer_json
        self.beginning = list(beginning)
        self.end = end
        self.digest = hashlib.sha256(f"{tokenizer_json}{self.beginning}{end}".encode()).hexdigest()
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        segments = segmentation(tokenizer_json)
        self._words = WordCache(self._tokenizer, segments) if segments else None
        if self._words and not np.array_equal(self._words.encode([SELF_CHECK])[0], self._plain([SELF_CHECK])[0]):
            self._words = None  # a tokenizer of a kind that we do not know: the slow way is always right

    @classmethod
    def of(cls, tokenizer: Any) -> "TextEncoder":
        """The encoder that does what a fast transformers tokenizer does."""
        return cls(tokenizer.backend_tokenizer.to_str(), beginning(tokenizer), tokenizer.eos_token_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return (TextEncoder, (self.tokenizer_json, self.beginning, self.end))

    def encode(self, texts: Sequence[str]) -> "list[NDArray[np.int32]]":
        """Token ids of each text, (tokens,), without special tokens."""
        return self._plain(texts) if self._words is None else self._words.encode(texts)

    def _plain(self, texts: Sequence[str]) -> "list[NDArray[np.int32]]":
        return [as_ids(one.ids) for one in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def beginning(tokenizer: Any) -> list[int]:
    """What a transformers tokenizer puts before every text by itself: [begin-of-sequence] or nothing.

    Servers encode a prompt with the tokenizer's defaults, so training must begin its texts in the same way.
    """
    first: list[int] = tokenizer("")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


class WordCache(dict[str, bytes]):
    """Token ids, int32 as bytes, of the segments that texts were made of so far."""

    def __init__(self, tokenizer: Tokenizer, segments: re.Pattern[str]) -> None:
        super().__init__()
        self._segments = segments
        self._tokenizer = tokenizer
        self._bare = Tokenizer(tokenizer.model)  # merges a text as it stands
        added = [re.escape(token.content) for token in tokenizer.get_added_tokens_decoder().values()]
        self._added = re.compile("|".join(added)) if added else None
        self._new: dict[str, bytearray] = {}  # segments of this call that are not known yet
        self._line_end = self._merged(LINE_END)[0]
        self[LINE_END] = as_ids([self._line_end]).tobytes()

    def encode(self, texts: Sequence[str]) -> "list[NDArray[np.int32]]":
        """Token ids of each text, (tokens,). New segments are merged all together: that is cheaper than one by one."""
        self._new = {}
        found = [self._segments_of(text) for text in texts]
        self._learn()
        return [np.frombuffer(b"".join(one), np.int32) for one in found]

    def _segments_of(self, text: str) -> list[bytes | bytearray]:
        """The ids of each segment of a text; those of new ones are filled in later."""
        if not text:
            return []
        if self._added and self._added.search(text):  # special tokens written out in a text are the library's affair
            return [as_ids(self._tokenizer.encode(text, add_special_tokens=False).ids).tobytes()]
        # The tokenizer puts a space before every text and reads its own visible space as a space.
        return list(map(self.__getitem__, self._segments.findall(" " + text.replace(SPACE, " "))))

    def __missing__(self, word: str) -> bytearray:
        place = self._new.get(word)
        if place is None:
            place = self._new[word] = bytearray()
        return place

    def _learn(self) -> None:
        """Fill in the ids of the new segments, and remember them while there is room."""
        words = list(self._new)
        for first in range(0, len(words), WORDS_MERGED_TOGETHER):
            together = words[first : first + WORDS_MERGED_TOGETHER]
            # A line end is a segment of its own, so between line ends every segment is merged as if it were alone.
            ids = self._merged(LINE_END.join(together))
            start, content = 0, ids.tobytes()
            for word, end in zip(together, [*np.flatnonzero(ids == self._line_end).tolist(), len(ids)], strict=True):
                place = self._new[word]
                place += content[start * ID_BYTES : end * ID_BYTES]
                if len(self) < WORDS_REMEMBERED and len(word) <= LONGEST_WORD:
                    self[word] = bytes(place)
                start = end + 1

    def _merged(self, text: str) -> "NDArray[np.int32]":
        (encoding,) = self._bare.encode_batch_fast([text.replace(" ", SPACE)], add_special_tokens=False)
        return as_ids(encoding.ids)


def as_ids(ids: Sequence[int]) -> "NDArray[np.int32]":
    return np.array(ids, np.int32)


def segmentation(tokenizer_json: str) -> re.Pattern[str] | None:
    """The finest of SEGMENTATIONS whose boundaries no piece of the vocabulary crosses; None for other tokenizers."""
    tokenizer = json.loads(tokenizer_json)
    model, normalizer = tokenizer["model"], tokenizer["normalizer"] or {}
    steps = [
        {key: value for key, value in step.items() if key in ("type", "prepend", "pattern", "content")}
        for step in normalizer.get("normalizers", [])
    ]
    is_known = (
        model["type"] == "BPE"
        and model.get("byte_fallback") is True
        and not model.get("dropout")
        and not model.get("ignore_merges")
        and tokenizer["pre_tokenizer"] is None
        and steps
        == [
            {"type": "Prepend", "prepend": SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        ]
    )
    if not is_known:
        return None
    single_bytes = {f"<0x{byte:02X}>" for byte in range(256)}
    if not single_bytes <= model["vocab"].keys():
        return None  # what is unknown would be one token together with its neighbours
    named = {token["content"] for token in tokenizer["added_tokens"]} | single_bytes
    pieces = [piece.replace(SPACE, " ") for piece in model["vocab"] if piece not in named]
    for segments in SEGMENTATIONS:
        if all(segments.fullmatch(piece) and len(segments.findall(piece)) == 1 for piece in pieces):
            return segments
    return None
