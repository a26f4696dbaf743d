"""How long rows are, in tokens: counted by length, so that a million rows are a few thousand numbers."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline_steps.data.parts import SplitSummary

FIRST_DOUBLING = 16  # tokens; below that, bins of 4


def total(summaries: Iterable[SplitSummary]) -> Counter[int]:
    """Rows of each length, over all parts."""
    lengths = Counter[int]()
    for summary in summaries:
        lengths.update(summary.lengths)
    return lengths


def quantile(lengths: Mapping[int, int], share: float) -> int:
    """The shortest length that `share` (0..1) of the rows do not exceed; 0 without rows."""
    wanted = math.ceil(share * sum(lengths.values()))
    seen = 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= wanted:
            return length
    return 0


def statistics(summaries: Sequence[SplitSummary]) -> dict[str, Any]:
    """Rows, tokens, and mean, median, 95th percentile and maximum of a row's tokens."""
    lengths = total(summaries)
    rows, tokens = lengths.total(), sum(length * count for length, count in lengths.items())
    return {
        "rows": rows,
        "tokens": tokens,
        "learned_tokens": sum(one.learned_tokens for one in summaries),
        "mean": round(tokens / rows, 1) if rows else 0.0,
        "median": quantile(lengths, 0.5),
        "p95": quantile(lengths, 0.95),
        "longest": max(lengths, default=0),
    }


def truncation(lengths: Mapping[int, int], max_input_length: int) -> dict[str, Any]:
    """Rows longer than `max_input_length`, their share (0..1), and the tokens that they would lose."""
    longer = {length: rows for length, rows in lengths.items() if length > max_input_length}
    rows = sum(longer.values())
    return {
        "rows": rows,
        "share": rows / max(1, sum(lengths.values())),
        "tokens_lost": sum((length - max_input_length) * rows for length, rows in longer.items()),
    }


def histogram(by_split: Mapping[str, Mapping[int, int]], at_least: int) -> dict[str, list[int]]:
    """Rows in bins of four to each doubling, up to `at_least` tokens or more: `edges`, and one count fewer a split."""
    longest = max((max(lengths, default=0) for lengths in by_split.values()), default=0)
    edges = list(range(0, FIRST_DOUBLING, FIRST_DOUBLING // 4))
    start = FIRST_DOUBLING
    while edges[-1] <= longest or edges[-1] < at_least:
        edges += [start + start * quarter // 4 for quarter in range(4)]
        start *= 2
    counts = {split: [0] * (len(edges) - 1) for split in by_split}
    for split, lengths in by_split.items():
        for length, rows in lengths.items():
            counts[split][bisect_right(edges, length) - 1] += rows
    return {"edges": edges, **counts}
