"""All examined parts as one: which file and line a row number is, and what was found in them."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from pipeline_steps.data import parts
from pipeline_steps.data.duplicates import AllSketches
from pipeline_steps.data.parts import PartSummary
from pipeline_steps.data.sources import Part


@dataclass(frozen=True)
class Findings:
    """The parts in order, what is known of each, and the folder with their files."""

    parts: Sequence[Part]
    summaries: Sequence[PartSummary]
    work: Path

    @property
    def good(self) -> int:
        return sum(summary.rows for summary in self.summaries)

    @property
    def bad(self) -> int:
        return sum(summary.bad for summary in self.summaries)

    @property
    def file_problems(self) -> list[str]:
        return [problem for summary in self.summaries for problem in summary.file_problems]

    @cached_property
    def starts(self) -> list[int]:
        """Number of each part's first good row; one more entry at the end."""
        return [0, *accumulate(summary.rows for summary in self.summaries)]

    @cached_property
    def lines_before(self) -> list[int]:
        """Lines of its file before each part, so that line numbers are those that an editor shows."""
        before, name, lines = [], "", 0
        for part, summary in zip(self.parts, self.summaries, strict=True):
            lines = lines if part.file.name == name else 0
            before.append(lines)
            name, lines = part.file.name, lines + summary.lines
        return before

    @cached_property
    def sketches(self) -> AllSketches:
        return AllSketches(
            [
                (parts.folder_of(self.work, part), summary.sketches)
                for part, summary in zip(self.parts, self.summaries, strict=True)
            ]
        )

    def part_of(self, row: int) -> Part:
        return self.parts[bisect_right(self.starts, row) - 1]

    def place(self, row: int) -> str:
        """File and line of a good row."""
        part = self.part_of(row)
        return f"{part.file.name}:{int(self.sketches.lines[row]) + self.lines_before[part.number]}"

    def bad_rows(self) -> Iterator[dict[str, Any]]:
        """file, line, problems and content of every bad row, in order."""
        for part in self.parts:
            yield from parts.bad_rows(part, self.work, self.lines_before[part.number])

    @property
    def personal_data(self) -> dict[str, dict[str, int]]:
        """Findings and rows by kind, the most frequent first."""
        kinds: dict[str, dict[str, int]] = {}
        for summary in self.summaries:
            for kind, counts in summary.personal_data.items():
                total = kinds.setdefault(kind, {"findings": 0, "rows": 0})
                for name, count in counts.items():
                    total[name] += count
        return dict(sorted(kinds.items(), key=lambda item: (-item[1]["findings"], item[0])))

    def personal_data_examples(self) -> list[dict[str, str]]:
        """Place, kind and masked value of the first findings of each part."""
        return [
            {
                "row": f"{part.file.name}:{found['line'] + self.lines_before[part.number]}",
                "kind": found["kind"],
                "masked": found["masked"],
            }
            for part, summary in zip(self.parts, self.summaries, strict=True)
            for found in summary.personal_data_examples
        ]
