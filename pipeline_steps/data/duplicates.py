"""Which rows are kept: exact and near duplicates, leaks between splits; from fingerprints alone, flat in memory.

Everything here is a function of the fingerprints in the order of the parts, so every instance that has all of them
comes to the same result.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline_steps.contract.dataset import SPLITS
from pipeline_steps.data import fingerprints, workers
from pipeline_steps.data.parts import Sketches

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIMILARITY = 0.8  # estimated Jaccard similarity of the words, above which a row is a near duplicate
OVERLAP = 0.5  # share of a held-out row's n-grams that are seen elsewhere, above which it counts as leaked
EXAMPLES = 10
ENTRIES_A_PASS = 500_000  # hashes sorted at once; bounds the memory
LARGEST_BUCKET = 256  # different rows that one more row is compared with

# Of equal rows the one whose split comes first here is kept: what is held out stays held out.
PREFERENCE = np.array([2, 1, 0], np.uint8)  # by index into SPLITS: train, validation, test
LEAK_PAIRS = (("test", "train"), ("validation", "train"), ("test", "validation"))


@dataclass(frozen=True)
class Removed:
    """A row that is left out, and the row that is kept in its place; both are numbers over all good rows."""

    row: int
    kept: int
    similarity: float


@dataclass(frozen=True)
class LeakExample:
    held_out: int
    seen_in: int
    shared_ngrams: int
    ngrams: int


@dataclass(frozen=True)
class Leak:
    """How many rows of one split have most of their n-grams in another one."""

    held_out: str
    seen_in: str
    rows: int
    overlapping_rows: int
    examples: list[LeakExample] = field(default_factory=list)


@dataclass(frozen=True)
class Decision:
    """`keep` has one entry for each good row; `digests` holds one of each split's kept rows, in order."""

    keep: "NDArray[np.bool_]"
    exact: list[Removed]
    near: list[Removed]
    left_out: int
    leaks: list[Leak]
    counts: dict[str, int]
    digests: dict[str, str]


class AllSketches:
    """The fingerprints of all parts as one numbering of rows; they stay on disk."""

    def __init__(self, folders: Sequence[tuple[Path, int]]) -> None:
        """`folders`: each part's folder and the number of its fingerprint files, in the order of the parts."""
        self._files = [(folder, number) for folder, count in folders for number in range(count)]
        found = [(one.splits.copy(), one.lines.copy()) for one in (Sketches.load(*file) for file in self._files)]
        self.starts = np.cumsum([0, *(len(splits) for splits, _ in found)])
        self.splits = np.concatenate([splits for splits, _ in found] or [np.zeros(0, np.uint8)])
        self.lines = np.concatenate([lines for _, lines in found] or [np.zeros(0, np.int32)])

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    def blocks(self) -> Iterator[tuple[int, Sketches]]:
        """(number of the first row, fingerprints) of each file."""
        for start, file in zip(self.starts, self._files, strict=False):
            yield int(start), Sketches.load(*file)

    def of_split(self, split: str) -> "NDArray[np.bool_]":
        """Which rows belong to the split, (rows,)."""
        belongs: NDArray[np.bool_] = self.splits == SPLITS.index(split)
        return belongs

    def key_halves(self, half: int) -> "NDArray[np.uint64]":
        """64 of the 128 bits of each row's key, (rows,)."""
        return np.concatenate([block.keys[:, half] for _, block in self.blocks()] or [np.zeros(0, np.uint64)])

    def signature(self, row: int) -> "NDArray[np.uint32]":
        """(2, PERMUTATIONS)."""
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        one: NDArray[np.uint32] = self._signatures_of(file)[row - self.starts[file]]
        return one

    @lru_cache(maxsize=256)  # noqa: B019 - lives as long as the decision
    def _signatures_of(self, file: int) -> "NDArray[np.uint32]":
        return Sketches.load(*self._files[file]).signatures

    def sorted_runs(
        self, hashes_of: "Callable[[Sketches], NDArray[np.uint64]]", entries: int, keep: "NDArray[np.bool_]"
    ) -> "Iterator[NDArray[np.int64]]":
        """Rows (among those of `keep`) that share a hash: one array for each hash that two or more have.

        `hashes_of` gives (rows,) or (several, rows). Sorted in passes over a part of all hashes each.
        """
        passes = 1 + entries // ENTRIES_A_PASS
        for number in range(passes):
            hashes, rows = [], []
            for start, sketches in self.blocks():
                block = np.atleast_2d(hashes_of(sketches))
                chosen = (block % np.uint64(passes) == number) & keep[start : start + block.shape[1]]
                hashes.append(block[chosen])
                rows.append(np.broadcast_to(np.arange(block.shape[1]) + start, block.shape)[chosen])
            if not hashes:
                return
            flat, numbers = np.concatenate(hashes), np.concatenate(rows)
            order = np.lexsort((numbers, flat))
            flat, numbers = flat[order], numbers[order]
            edges = np.flatnonzero(np.diff(flat)) + 1
            sizes = np.diff(np.concatenate([[0], edges, [len(flat)]]))
            for position in np.flatnonzero(sizes > 1):
                start = edges[position - 1] if position else 0
                yield numbers[start : start + sizes[position]]


def decide(sketches: AllSketches, max_rows: dict[str, int]) -> Decision:
    """Which rows are kept. `max_rows` limits a split's rows (-1: all), as JumpStart's max_train_samples does."""
    keep = np.ones(sketches.rows, np.bool_)
    exact = exact_duplicates(sketches, keep)
    keep[[one.row for one in exact]] = False
    near = near_duplicates(sketches, keep)
    keep[[one.row for one in near]] = False
    left_out = limit_rows(sketches, keep, max_rows)
    leaks = workers.spread(LEAK_PAIRS, lambda pair: find_leak(sketches, keep, *pair))

    hashes = {split: hashlib.sha256() for split in SPLITS}
    for start, block in sketches.blocks():
        for number, split in enumerate(SPLITS):
            chosen = keep[start : start + len(block.keys)] & (block.splits == number)
            hashes[split].update(block.keys[chosen].tobytes())
    counts = {split: int((keep & sketches.of_split(split)).sum()) for split in SPLITS}
    digests = {split: one.hexdigest() for split, one in hashes.items()}
    return Decision(keep, exact, near, left_out, leaks, counts, digests)


def exact_duplicates(sketches: AllSketches, keep: "NDArray[np.bool_]") -> list[Removed]:
    """Rows with the same content as a row that is kept: the held-out one, else the first."""
    removed = []
    # 64 of the key's 128 bits find the candidates, the others confirm them.
    keys = sketches.key_halves(1)
    for rows in sketches.sorted_runs(lambda block: block.keys[:, 0], sketches.rows, keep):
        for rest in sorted(set(keys[rows].tolist())):
            same = rows[keys[rows] == rest]
            same = same[np.argsort(PREFERENCE[sketches.splits[same]], kind="stable")]
            removed += [Removed(int(row), int(same[0]), 1.0) for row in same[1:]]
    return sorted(removed, key=lambda one: one.row)


def near_duplicates(sketches: AllSketches, keep: "NDArray[np.bool_]") -> list[Removed]:
    """Rows that are alike, in what is asked and in what is answered, to a row that is kept."""
    alike: dict[int, set[int]] = defaultdict(set)
    for rows in sketches.sorted_runs(lambda block: block.bands, sketches.rows * fingerprints.BANDS, keep):
        compared: list[int] = []
        for row in rows.tolist():
            if compared and not alike.get(row, set()).isdisjoint(compared):
                continue  # another band has told already
            if compared:
                others = np.stack([sketches.signature(other) for other in compared])
                similar = fingerprints.similarity(sketches.signature(row), others) >= SIMILARITY
                for other in np.array(compared)[similar].tolist():
                    alike[row].add(other)
                    alike[other].add(row)
                if similar.any():
                    continue
            if len(compared) < LARGEST_BUCKET:
                compared.append(row)

    removed = []
    for group in _connected(alike):
        # Held-out rows first; among the others by content, not by place, so that new files change little.
        order = sorted(
            group, key=lambda row: (PREFERENCE[sketches.splits[row]], sketches.signature(row).tobytes(), row)
        )
        kept: list[int] = []
        for row in order:
            values = (
                fingerprints.similarity(sketches.signature(row), np.stack([sketches.signature(one) for one in kept]))
                if kept
                else np.zeros(0)
            )
            if len(values) and values.max() >= SIMILARITY:
                removed.append(Removed(row, kept[int(values.argmax())], float(values.max())))
            else:
                kept.append(row)
    return sorted(removed, key=lambda one: one.row)


def _connected(neighbours: dict[int, set[int]]) -> Iterator[set[int]]:
    """The connected components of a graph."""
    seen: set[int] = set()
    for start in sorted(neighbours):
        if start in seen:
            continue
        component, waiting = set[int](), [start]
        while waiting:
            node = waiting.pop()
            if node not in component:
                component.add(node)
                waiting += neighbours[node] - component
        seen |= component
        if len(component) > 1:
            yield component


def limit_rows(sketches: AllSketches, keep: "NDArray[np.bool_]", max_rows: dict[str, int]) -> int:
    """Leave out rows above a split's limit, those with the highest hashes; returns how many."""
    left_out = 0
    for split, limit in max_rows.items():
        rows = np.flatnonzero(keep & sketches.of_split(split))
        if 0 <= limit < len(rows):
            excess = rows[np.argsort(sketches.key_halves(0)[rows], kind="stable")[limit:]]
            keep[excess] = False
            left_out += len(excess)
    return left_out


def find_leak(sketches: AllSketches, keep: "NDArray[np.bool_]", held_out: str, seen_in: str) -> Leak:
    """Rows of `held_out` whose n-grams are mostly in rows of `seen_in` too."""
    held_rows, held_grams = _grams(sketches, keep, held_out)
    unique = _sorted_unique(held_grams)
    seen = np.zeros(len(unique), np.bool_)
    for _, grams in _gram_blocks(sketches, keep, seen_in):
        seen[_positions(unique, grams)[1]] = True
    hit = seen[np.searchsorted(unique, held_grams)] if len(unique) else np.zeros(0, np.bool_)
    starts = np.flatnonzero(np.diff(held_rows, prepend=-1))  # a row's n-grams follow each other
    order, counts = held_rows[starts], np.diff(starts, append=len(held_rows))
    shared = np.add.reduceat(hit.astype(np.int64), starts) if len(starts) else np.zeros(0, np.int64)
    leaked = np.flatnonzero((shared > 0) & (shared >= OVERLAP * counts))

    examples = []
    for number in leaked[:EXAMPLES]:
        grams = held_grams[held_rows == order[number]]
        other, common = _most_shared(sketches, keep, seen_in, grams)
        examples.append(LeakExample(int(order[number]), other, common, int(counts[number])))
    total = int((keep & sketches.of_split(held_out)).sum())
    return Leak(held_out, seen_in, total, len(leaked), examples)


def _gram_blocks(
    sketches: AllSketches, keep: "NDArray[np.bool_]", split: str
) -> "Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]":
    wanted = keep & sketches.of_split(split)
    for start, block in sketches.blocks():
        rows = block.gram_rows.astype(np.int64) + start
        chosen = wanted[rows]
        yield rows[chosen], block.grams[chosen]


def _grams(
    sketches: AllSketches, keep: "NDArray[np.bool_]", split: str
) -> "tuple[NDArray[np.int64], NDArray[np.uint64]]":
    blocks = list(_gram_blocks(sketches, keep, split)) or [(np.zeros(0, np.int64), np.zeros(0, np.uint64))]
    return np.concatenate([rows for rows, _ in blocks]), np.concatenate([grams for _, grams in blocks])


def _most_shared(
    sketches: AllSketches, keep: "NDArray[np.bool_]", split: str, grams: "NDArray[np.uint64]"
) -> tuple[int, int]:
    """The row of `split` that has most of `grams`, and how many."""
    best, most = -1, 0
    wanted = _sorted_unique(grams)
    for rows, block in _gram_blocks(sketches, keep, split):
        shared = np.bincount(rows[_positions(wanted, block)[0]] - rows[0]) if len(rows) else np.zeros(0, np.int64)
        if len(shared) and shared.max() > most:
            best, most = int(shared.argmax() + rows[0]), int(shared.max())
    return best, most


def _sorted_unique(hashes: "NDArray[np.uint64]") -> "NDArray[np.uint64]":
    # Not np.unique: its hash table takes a second for a million of these values, sorting a tenth of that.
    hashes = np.sort(hashes)
    return hashes[np.flatnonzero(np.diff(hashes, prepend=hashes[:1] + np.uint64(1)))]


def _positions(
    unique: "NDArray[np.uint64]", hashes: "NDArray[np.uint64]"
) -> "tuple[NDArray[np.bool_], NDArray[np.int64]]":
    """Which of `hashes` are among the sorted `unique`, and where each of those is."""
    if not len(unique):
        return np.zeros(len(hashes), np.bool_), np.zeros(0, np.int64)
    places = np.minimum(np.searchsorted(unique, hashes), len(unique) - 1)
    among = unique[places] == hashes
    return among, places[among]


def example_rows(decision: Decision) -> Iterable[int]:
    """Rows whose text the data card shows."""
    for removed in (decision.exact[:EXAMPLES], decision.near[:EXAMPLES]):
        for one in removed:
            yield from (one.row, one.kept)
    for leak in decision.leaks:
        for example in leak.examples:
            yield from (example.held_out, example.seen_in)
