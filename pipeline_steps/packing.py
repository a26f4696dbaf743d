"""Packing: which rows share a sequence, so that little of it is padding. Lengths only; no token is touched."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

WINDOW_ROWS = 16_384  # rows that are packed together: enough for a full fill, few enough to stay flat in memory


def plan(lengths: Sequence[int], capacity: int, window_rows: int = WINDOW_ROWS) -> Iterator[list[int]]:
    """Row numbers of each sequence: best-fit decreasing within windows of consecutive rows.

    A row longer than `capacity` has a sequence of its own and fills it.
    Source of the heuristic: Johnson, "Near-optimal bin packing algorithms", 1973.
    """
    for start in range(0, len(lengths), window_rows):
        stop = min(start + window_rows, len(lengths))
        sequences: list[list[int]] = []
        free: list[tuple[int, int]] = []  # (free tokens, sequence), sorted
        for row in sorted(range(start, stop), key=lambda row: -lengths[row]):
            length = min(lengths[row], capacity)
            position = bisect_left(free, (length, -1))
            if position < len(free):
                left, sequence = free.pop(position)
                sequences[sequence].append(row)
            else:
                left, sequence = capacity, len(sequences)
                sequences.append([row])
            if left > length:
                insort(free, (left - length, sequence))
        yield from sequences


def fill(lengths: Sequence[int], capacity: int) -> tuple[int, float]:
    """How many sequences `lengths` need, and the share of their tokens that is no padding, 0..1."""
    sequences = sum(1 for _ in plan(lengths, capacity))
    tokens = sum(min(length, capacity) for length in lengths)
    return sequences, tokens / (sequences * capacity) if sequences else 0.0
