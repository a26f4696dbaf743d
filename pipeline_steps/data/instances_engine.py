"""The instances of one processing job, each with all raw files: each examines and writes its own share of the parts.

They hand each other what they found as files below an S3 prefix. From all fingerprints every instance decides alike,
so that nothing but fingerprints and summaries is exchanged.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from pipeline_steps import s3
from pipeline_steps.contract import json_files
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.progress import report
from pipeline_steps.data import duplicates, parts, workers
from pipeline_steps.data.duplicates import Decision
from pipeline_steps.data.engine import Written
from pipeline_steps.data.findings import Findings
from pipeline_steps.data.parts import Examination
from pipeline_steps.data.sagemaker_job import Instances
from pipeline_steps.data.sources import Part
from pipeline_steps.data.workers import Workers

POLL_SECONDS = 1.0
LONGEST_SILENCE_SECONDS = 3600.0  # without any news from the others: the service would have failed the job before


class InstancesEngine:
    """`work` is this instance's own folder, `shared` the S3 prefix of all."""

    def __init__(self, work: Path, instances: Instances, shared: str) -> None:
        self._work = work
        self._instances = instances
        self._shared = shared

    @property
    def is_leader(self) -> bool:
        return self._instances.number == 0

    def share(self, all_parts: Sequence[Part]) -> list[Part]:
        """The parts of this instance: every count-th, so that all have equally many."""
        return [part for part in all_parts if part.number % self._instances.count == self._instances.number]

    # ---------------------------------------------------------------- the work

    def ready(self, all_parts: Sequence[Part]) -> Workers:
        mine = self.share(all_parts)
        self._workers = Workers(len(mine), sum(part.end - part.start for part in mine))
        return self._workers

    def examine(self, all_parts: Sequence[Part], job: Examination) -> Findings:
        mine = self.share(all_parts)
        self._workers.examine_all(mine, job, self._work)

        def files_of(part: Part) -> list[Path]:
            return parts.exchanged_files(parts.folder_of(self._work, part), parts.read_summary(self._work, part))

        def wanted() -> Iterator[Path]:
            yield from (parts.folder_of(self._work, part) / parts.SUMMARY_FILE for part in all_parts)
            yield from chain.from_iterable(files_of(part) for part in all_parts)  # the summaries are here by now

        self._meet("examined", chain.from_iterable(files_of(part) for part in mine), wanted)
        return Findings(all_parts, [parts.read_summary(self._work, part) for part in all_parts], self._work)

    def write(self, findings: Findings, decision: Decision, with_tokens: bool) -> Written:
        shown = set(duplicates.example_rows(decision))
        mine = self.share(findings.parts)
        for number, part in enumerate(mine, start=1):
            first, end = findings.starts[part.number], findings.starts[part.number + 1]
            content = parts.finish(part, decision.keep[first:end], first, shown, self._work, with_tokens)
            json_files.write(self._finished_file(part), content)
            if number % 20 == 0 or number == len(mine):
                report("write", number, len(mine))
        everyone = [self._finished_file(part) for part in findings.parts]
        self._meet("finished", [self._finished_file(part) for part in mine], lambda: everyone)
        return Written.from_json([json_files.read(path, parts.FINISHED_SCHEMA_VERSION) for path in everyone])

    def _finished_file(self, part: Part) -> Path:
        return self._work / "finished" / f"{part.number:05d}.json"

    def publish(self, uris: dict[str, str]) -> None:
        for number, (split, uri) in enumerate(uris.items(), start=1):
            paths = sorted((self._work / parts.DATASET_FOLDER / split).glob("*"))
            workers.spread(paths, partial(_upload_to, uri))
            report("publish", number, len(uris))
        # Nobody waits for the leader: it clears away what was exchanged.
        if self._instances.count > 1:
            self._tell("published")
            if self.is_leader:
                self._wait_for_all("published")

    def clear(self) -> None:
        if self._instances.count > 1:
            s3.delete_all(self._shared)

    # ---------------------------------------------------------------- the other instances

    def _meet(self, stage: str, mine: Iterable[Path], wanted: Callable[[], Iterable[Path]]) -> None:
        """Give my files, wait until every instance has given its own, and take what is wanted and not here yet."""
        if self._instances.count == 1:
            return
        for path in mine:
            self._give(path)
        self._tell(stage)  # after the files that it speaks of
        self._wait_for_all(stage)
        for path in wanted():
            if not path.exists():
                s3.download(self._place(path), path)

    def _place(self, path: Path) -> str:
        return f"{self._shared}{path.relative_to(self._work).as_posix()}"

    def _give(self, path: Path) -> None:
        s3.upload(path, self._place(path))

    def _tell(self, stage: str) -> None:
        marker = self._work / f"{stage}.{self._instances.number}"
        marker.write_text("done")
        self._give(marker)

    def _wait_for_all(self, stage: str) -> None:
        """Until every instance has told `stage`. Raises StepError after a long silence."""
        count, heard, last_news = self._instances.count, 0, time.monotonic()
        while True:
            there = sum(s3.exists(f"{self._shared}{stage}.{number}") for number in range(count))
            if there > heard:
                heard, last_news = there, time.monotonic()
                report(f"wait for {stage}", heard, count)
            if there == count:
                return
            if time.monotonic() - last_news > LONGEST_SILENCE_SECONDS:
                raise StepError(
                    f"{count - there} of {count} instances have not finished '{stage}' within "
                    f"{LONGEST_SILENCE_SECONDS:.1f} s; see the logs of the other hosts of this job"
                )
            time.sleep(POLL_SECONDS)


def _upload_to(uri: str, path: Path) -> None:
    s3.upload(path, uri + path.name)
