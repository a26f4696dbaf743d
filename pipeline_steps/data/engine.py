"""What an engine does: the same work on the same parts, on one machine, on several, or on a cluster."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline_steps.contract.dataset import SPLITS
from pipeline_steps.data.duplicates import Decision
from pipeline_steps.data.findings import Findings
from pipeline_steps.data.parts import Examination, SplitSummary
from pipeline_steps.data.sources import Part


@dataclass(frozen=True)
class Written:
    """What was written: each split's summaries, part by part, and the texts of the rows that the card shows."""

    splits: dict[str, list[SplitSummary]]
    texts: dict[int, str]

    @classmethod
    def from_json(cls, parts: Sequence[dict[str, Any]]) -> "Written":
        """Of what `finished` says of each part, in order."""
        return cls(
            {split: [SplitSummary.from_json(one[split]) for one in parts] for split in SPLITS},
            {int(row): text for one in parts for row, text in one["texts"].items()},
        )


class Engine(Protocol):
    @property
    def is_leader(self) -> bool:
        """Whether this process writes what there is once: reports, and what completes a split."""

    def ready(self, parts: Sequence[Part]) -> AbstractContextManager[object]:
        """Within it the parts are examined; what takes time to start, starts now."""

    def examine(self, parts: Sequence[Part], job: Examination) -> Findings:
        """Examine every part; fingerprints and bad rows of all of them are here when this returns."""

    def write(self, findings: Findings, decision: Decision, with_tokens: bool) -> Written:
        """Write the rows that are kept, split by split, where `publish` finds them."""

    def publish(self, uris: dict[str, str]) -> None:
        """Bring the written files of these splits to their URIs; all are there when the leader returns."""

    def clear(self) -> None:
        """Remove what the work left behind outside of its own folder."""
