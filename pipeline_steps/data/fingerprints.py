"""What tells rows apart and alike: hashes of words, a MinHash signature of a row, n-grams for leaks.

Words are runs of letters and digits of any script, in lower case; each Chinese, Japanese or Korean character is a word.
"""

from functools import cache
from threading import get_ident
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]

SHINGLE_WORDS = 3
NGRAM_WORDS = 13  # long enough not to be met by chance (the length that GPT-3's contamination check used)
PERMUTATIONS = 64  # for each of the two halves of a signature: a standard error of 0.05 at a similarity of 0.8
BANDS = 16

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2**64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
_SEPARATOR, _INSIDE, _WORD_OF_ITS_OWN = 0, 1, 2


def _classes() -> "NDArray[np.uint8]":
    """The class of each byte of UTF-8 text."""
    classes = np.zeros(256, np.uint8)
    for byte in (*range(ord("0"), ord("9") + 1), *range(ord("a"), ord("z") + 1), *range(0x80, 0x100)):
        classes[byte] = _INSIDE
    classes[0xE3:0xEE] = _WORD_OF_ITS_OWN  # first bytes of Chinese, Japanese and Korean characters
    return classes


CLASSES = _classes()


@cache
def _powers(base: np.uint64, length: int) -> "Hashes":
    powers = np.full(length, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def word_hashes(text: str) -> "Hashes":
    """64-bit hash of each word, in order, (words,): a polynomial of its bytes, computed for all words at once."""
    raw = np.frombuffer(text.lower().encode(), np.uint8)
    classes = CLASSES[raw]
    inside = classes != _SEPARATOR
    begins = inside.copy()
    begins[1:] &= ~inside[:-1]
    begins |= classes == _WORD_OF_ITS_OWN
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, np.uint64)
    length = 1 << max(12, (len(raw) - 1).bit_length())
    # A word's hash must not depend on where it stands: sum byte * m**position, then divide by m**start.
    values = (raw.astype(np.uint64) + np.uint64(1)) * _powers(_MULTIPLIER, length)[: len(raw)]
    values[~inside] = 0
    return np.add.reduceat(values, starts) * _powers(_INVERSE, length)[starts]


def ngrams(words: "Hashes", size: int) -> "Hashes":
    """64-bit hash of each run of `size` words, a polynomial of their hashes; a shorter text is one n-gram of all its words."""
    if not len(words):
        return words
    size = min(size, len(words))
    count = len(words) - size + 1
    hashes = words[:count].copy()
    for offset in range(1, size):
        hashes *= _MULTIPLIER
        hashes += words[offset : offset + count]
    return hashes + np.uint64(size)


def mixed(hashes: "Hashes") -> "Hashes":
    """SplitMix64's finalizer: every bit of the input moves every bit of the output."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


@cache
def _minhash(thread: int) -> Any:
    """An empty sketch, made once a thread: drawing its permutations takes longer than using them."""
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, seed=1, hashfunc=int)


def _signature(words: "Hashes") -> "NDArray[np.uint32]":
    sketch = _minhash(get_ident())
    sketch.clear()
    sketch.update_batch((ngrams(words, SHINGLE_WORDS) & np.uint64(0xFFFFFFFF)).tolist())
    signature: NDArray[np.uint32] = sketch.hashvalues.copy()
    return signature


def signature(asked: "Hashes", answered: "Hashes") -> "NDArray[np.uint32]":
    """MinHash of what was asked and of what was answered, (2, PERMUTATIONS).

    Apart, since rows that share a long context and ask different things of it are no duplicates.
    """
    return np.stack([_signature(asked), _signature(answered)])


def bands(signatures: "NDArray[np.uint32]") -> "Hashes":
    """One hash for each band of signatures (rows, 2, PERMUTATIONS), (BANDS, rows): near duplicates share one or more.

    A band takes as many values of both halves, so that it is shared by rows that are alike in both.
    """
    rows, width = len(signatures), PERMUTATIONS // BANDS
    cut = signatures.reshape(rows, 2, BANDS, width).transpose(2, 0, 1, 3).reshape(BANDS, rows, 2 * width)
    hashes = np.zeros((BANDS, rows), np.uint64)
    for value in range(2 * width):
        hashes = hashes * _MULTIPLIER + cut[:, :, value]
    return mixed(hashes + np.arange(1, BANDS + 1, dtype=np.uint64)[:, None])


def similarity(one: "NDArray[np.uint32]", others: "NDArray[np.uint32]") -> "NDArray[np.float64]":
    """Estimated Jaccard similarity of a row (2, PERMUTATIONS) to others (n, 2, PERMUTATIONS): the lower of both halves."""
    equal: NDArray[np.float64] = (others == one).mean(axis=2).min(axis=1)
    return equal
