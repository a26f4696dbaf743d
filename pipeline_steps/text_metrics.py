"""Scores of one answer against its reference, and of an answer alone.

ROUGE and chrF are those of Google's rouge-score (without a stemmer) and of sacrebleu, held to them by property tests:
their packages bring nltk, absl, lxml and others that the training image lacks, for what are a few lines each.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

SHORT_REFERENCE_WORDS = 10  # longer references are no short answers: exact match would always be zero
CHRF_ORDER = 6
CHRF_BETA = 2
REPEATED_WORDS = 4


def rouge(answer: str, reference: str) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L, 0..1."""
    ours, theirs = _words(answer), _words(reference)
    return {
        "rouge1": _ngram_f1(ours, theirs, 1),
        "rouge2": _ngram_f1(ours, theirs, 2),
        "rougeL": _f1(_longest_common_subsequence(ours, theirs), len(ours), len(theirs)),
    }


def chrf_counts(answer: str, reference: str) -> list[int]:
    """For character 1- to 6-grams, white space left out: how many the answer has, the reference has, both share."""
    ours, theirs = ("".join(text.split()) for text in (answer, reference))
    counts = []
    for order in range(1, CHRF_ORDER + 1):
        in_ours, in_theirs = _characters(ours, order), _characters(theirs, order)
        # As sacrebleu counts: an order that the reference is too short for counts for nothing.
        in_answer = in_ours.total() if in_theirs else 0
        counts += [in_answer, in_theirs.total(), (in_ours & in_theirs).total()]
    return counts


def chrf(sums: "Array") -> "Array":
    """chrF2, 0..100, from counts summed over rows, (..., 18) -> (...): the mean of precision and recall over orders."""
    import numpy as np

    counts = np.asarray(sums, dtype=float).reshape(*sums.shape[:-1], CHRF_ORDER, 3)
    ours, theirs, both = counts[..., 0], counts[..., 1], counts[..., 2]
    known = (ours > 0) & (theirs > 0)
    orders = known.sum(axis=-1)
    precision = np.where(known, both / np.where(known, ours, 1), 0).sum(axis=-1) / np.maximum(orders, 1)
    recall = np.where(known, both / np.where(known, theirs, 1), 0).sum(axis=-1) / np.maximum(orders, 1)
    squared = CHRF_BETA**2
    below = squared * precision + recall
    return 100 * np.where(below > 0, (1 + squared) * precision * recall / np.where(below > 0, below, 1), 0)


def is_short(reference: str) -> bool:
    """Whether exact match and token F1 mean something for it."""
    return 0 < len(reference.split()) <= SHORT_REFERENCE_WORDS


def exact_match(answer: str, reference: str) -> float:
    """1 if both are the same words, without case, punctuation and articles (the rules of SQuAD)."""
    return float(_normalized(answer) == _normalized(reference))


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words that both share, 0..1, under the rules of exact match."""
    ours, theirs = _normalized(answer), _normalized(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    return _ngram_f1(ours, theirs, 1)


def repetition(text: str) -> float:
    """Share of an answer's word 4-grams that it has said before, 0..1."""
    ngrams = _ngrams(text.lower().split(), REPEATED_WORDS)
    return 1 - len(ngrams) / ngrams.total() if ngrams else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _normalized(text: str) -> list[str]:
    without_punctuation = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in without_punctuation.split() if word not in ("a", "an", "the")]


def _ngrams(words: Sequence[str], order: int) -> "Counter[tuple[str, ...]]":
    return Counter(tuple(words[place : place + order]) for place in range(len(words) - order + 1))


def _characters(text: str, order: int) -> "Counter[str]":
    return Counter(text[place : place + order] for place in range(len(text) - order + 1))


def _ngram_f1(ours: Sequence[str], theirs: Sequence[str], order: int) -> float:
    in_ours, in_theirs = _ngrams(ours, order), _ngrams(theirs, order)
    return _f1((in_ours & in_theirs).total(), in_ours.total(), in_theirs.total())


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0


def _longest_common_subsequence(ours: Sequence[str], theirs: Sequence[str]) -> int:
    row = [0] * (len(theirs) + 1)
    for word in ours:
        diagonal = 0
        for column, other in enumerate(theirs, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]
