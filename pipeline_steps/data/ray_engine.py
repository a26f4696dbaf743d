"""Ray Data as the engine: for corpora that no single machine's disk holds.

Tasks read their parts from S3 by byte range and leave what they make below an S3 prefix; the driver has fingerprints
and summaries only. The files that are published are those that the other engine would make.
"""

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from pipeline_steps import s3
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.progress import report
from pipeline_steps.data import duplicates, parts, workers
from pipeline_steps.data.duplicates import Decision
from pipeline_steps.data.engine import Written
from pipeline_steps.data.findings import Findings
from pipeline_steps.data.parts import Examination
from pipeline_steps.data.sagemaker_job import Instances
from pipeline_steps.data.sources import Part

PORT = 6379
START_SECONDS = 300.0  # until all instances have joined the cluster


class RayEngine:
    """Runs in the driver of a Ray cluster. `work` is its folder, `shared` the S3 prefix of all tasks."""

    is_leader = True

    def __init__(self, work: Path, shared: str) -> None:
        self._work = work
        self._shared = shared

    def ready(self, all_parts: Sequence[Part]) -> AbstractContextManager[None]:
        return nullcontext()  # the cluster has been started

    def examine(self, all_parts: Sequence[Part], job: Examination) -> Findings:
        _map("examine", all_parts, partial(_examine, job=job, shared=self._shared))
        for part in all_parts:
            folder = parts.folder_of(self._work, part)
            s3.download(f"{self._shared}{folder.name}/{parts.SUMMARY_FILE}", folder / parts.SUMMARY_FILE)
            for path in parts.exchanged_files(folder, parts.read_summary(self._work, part))[1:]:
                s3.download(f"{self._shared}{folder.name}/{path.name}", path)
        return Findings(all_parts, [parts.read_summary(self._work, part) for part in all_parts], self._work)

    def write(self, findings: Findings, decision: Decision, with_tokens: bool) -> Written:
        shown = set(duplicates.example_rows(decision))
        tasks = [
            (part, first, decision.keep[first:end])
            for part, first, end in zip(findings.parts, findings.starts, findings.starts[1:], strict=False)
        ]
        finished = _map("write", tasks, partial(_finish, shown=shown, with_tokens=with_tokens, shared=self._shared))
        return Written.from_json(finished)

    def publish(self, uris: dict[str, str]) -> None:
        for number, (split, uri) in enumerate(uris.items(), start=1):
            written = [found for found, _ in s3.sizes_below(f"{self._shared}{parts.DATASET_FOLDER}/{split}/")]
            workers.spread(written, partial(_copy_to, uri))
            report("publish", number, len(uris))

    def clear(self) -> None:
        s3.delete_all(self._shared)


def _map(phase: str, items: Sequence[Any], function: Callable[[Any], Any]) -> list[Any]:
    """`function` of every item on the cluster, in the items' order, with progress."""
    import ray

    def numbered(row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"], "result": function(row["item"])}

    rows = [{"number": number, "item": item} for number, item in enumerate(items)]
    results: dict[int, Any] = {}
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(numbered)
    started = time.monotonic()
    for row in data.iter_rows():
        results[row["number"]] = row["result"]
        done = len(results)
        report(phase, done, len(items), seconds_left=(time.monotonic() - started) / done * (len(items) - done))
    return [results[number] for number in range(len(items))]


def _examine(part: Part, job: Examination, shared: str) -> int:
    """One task: examine a part and leave all its files below `shared`."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        summary = parts.examine(part, job, work)
        for path in sorted(parts.folder_of(work, part).iterdir()):
            s3.upload(path, f"{shared}{path.parent.name}/{path.name}")
        return summary.rows


def _finish(task: tuple[Part, int, Any], shown: set[int], with_tokens: bool, shared: str) -> dict[str, Any]:
    """One task: write the kept rows of a part below `shared`."""
    part, first, keep = task
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = parts.folder_of(work, part) / parts.ROWS_FILE
        s3.download(f"{shared}{rows.parent.name}/{rows.name}", rows)
        content = parts.finish(part, keep, first, shown, work, with_tokens)
        for path in sorted((work / parts.DATASET_FOLDER).rglob("*")):
            if path.is_file():
                s3.upload(path, f"{shared}{path.relative_to(work).as_posix()}")
        return content


def _copy_to(uri: str, found: str) -> None:
    s3.copy(found, uri + found.rsplit("/", 1)[-1])


# ---------------------------------------------------------------- the cluster


@contextmanager
def cluster(instances: Instances) -> Iterator[bool]:
    """A Ray cluster of this job's instances; yields whether this one drives it. The others work until it ends."""
    import ray

    head = instances.hosts[0]
    if instances.count == 1:
        ray.init(log_to_driver=False, include_dashboard=False)
    elif instances.number == 0:
        _ray("start", "--head", f"--node-ip-address={socket.gethostbyname(head)}", f"--port={PORT}")
        ray.init(address="auto", log_to_driver=False)
        _wait_for_nodes(instances.count)
    else:
        _join(f"{socket.gethostbyname(head)}:{PORT}")
        yield False
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield True
    finally:
        ray.shutdown()
        if instances.count > 1:
            _ray("stop")


def _ray(*arguments: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *arguments], capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise StepError(f"'ray {' '.join(arguments)}' ended with code {finished.returncode}: {finished.stderr[-1000:]}")


def _wait_for_nodes(count: int) -> None:
    import ray

    deadline = time.monotonic() + START_SECONDS
    while (alive := sum(node["Alive"] for node in ray.nodes())) < count:
        if time.monotonic() > deadline:
            raise StepError(f"{alive} of {count} instances have joined the Ray cluster within {START_SECONDS:.0f} s")
        time.sleep(1.0)


def _join(address: str) -> None:
    """Work for the head at `address` until it is gone."""
    host, _, port = address.partition(":")

    def is_there() -> bool:
        try:
            with socket.create_connection((host, int(port)), timeout=5):
                return True
        except OSError:
            return False

    deadline = time.monotonic() + START_SECONDS
    while not is_there():
        if time.monotonic() > deadline:
            raise StepError(f"the head of the Ray cluster at {address} was not there within {START_SECONDS:.0f} s")
        time.sleep(1.0)
    _ray("start", f"--address={address}")
    while is_there():
        time.sleep(5.0)
    _ray("stop")
