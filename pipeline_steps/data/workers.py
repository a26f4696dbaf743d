"""Work on many parts at once: a process for each core of this machine."""

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import Any

from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.progress import report
from pipeline_steps.data.parts import Examination, examine, get_ready
from pipeline_steps.data.sources import Part

PROGRESS_SECONDS = 5.0
WORTH_PROCESSES_BYTES = 4 * 2**20  # below that, starting them takes longer than the work
# Not forked: the tokenizer and Arrow have threads, which a fork would lose.
SPAWN = multiprocessing.get_context("spawn")

_counters: dict[str, Any] = {}  # of a process: shared with the one that started it


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Workers:
    """A process for each core that works on parts; they start, and import what they need, as soon as this is made.

    Where that would take longer than the work, this process does it all itself. `size`: of all parts, in bytes.
    """

    def __init__(self, parts: int, size: int) -> None:
        count = min(cores(), parts)
        self._pool: ProcessPoolExecutor | None = None
        if count > 1 and size >= WORTH_PROCESSES_BYTES:
            self._rows, self._reached = SPAWN.Value("q", 0), SPAWN.Value("q", 0)
            self._pool = ProcessPoolExecutor(count, SPAWN, _start, (self._rows, self._reached))
            for _ in range(count):  # each starts one
                self._pool.submit(get_ready)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def examine_all(self, parts: Sequence[Part], job: Examination, work: Path) -> None:
        """Examine every part into `work`, with progress: bytes (Parquet: row groups) and rows so far, time left.

        Raises StepError if one of the processes was ended from outside.
        """
        progress = Progress(sum(part.end - part.start for part in parts))
        if not self._pool:
            for part in parts:
                examine(part, job, work, progress.more)
        else:
            # Through a file: the tokenizer in it is megabytes, and goes to each process once.
            path = work / "examination.pickle"
            path.write_bytes(pickle.dumps((job, work)))
            try:
                self._examine_in(self._pool, parts, path, progress)
            except BrokenProcessPool:
                raise StepError(
                    f"one of the {cores()} processes that examine rows was ended from outside, most likely for want of "
                    "memory; set processing.prepare_instance_type to an instance with more memory a core"
                ) from None
        progress.tell()

    def _examine_in(self, pool: ProcessPoolExecutor, parts: Sequence[Part], path: Path, progress: "Progress") -> None:
        waiting = {pool.submit(_examine, part, path) for part in parts}
        while waiting:
            done, waiting = wait(waiting, PROGRESS_SECONDS, FIRST_COMPLETED)
            for future in done:
                future.result()  # raises what the worker raised
            progress.more(self._rows.value - progress.rows, self._reached.value - progress.reached)


def _start(rows: Any, reached: Any) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core is enough
    _counters.update(rows=rows, reached=reached)


@cache
def _given(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def _examine(part: Part, path: Path) -> None:
    def count(rows: int, size: int) -> None:
        for name, more in (("rows", rows), ("reached", size)):
            with _counters[name].get_lock():
                _counters[name].value += more

    job, work = _given(path)
    examine(part, job, work, count)


class Progress:
    """Tells how far the work is, at most every PROGRESS_SECONDS and when it is asked to."""

    def __init__(self, size: int) -> None:
        self.size, self.reached, self.rows = size, 0, 0
        self._started = self._told = time.monotonic()

    def more(self, rows: int, size: int) -> None:
        self.rows += rows
        self.reached += size
        if time.monotonic() - self._told > PROGRESS_SECONDS:
            self.tell()

    def tell(self) -> None:
        self._told = time.monotonic()
        seconds = max(self._told - self._started, 1e-3)
        left = {"seconds_left": seconds / self.reached * (self.size - self.reached)} if self.reached else {}
        unit = 2**20 if self.size > 2**24 else 1
        report(
            "examine",
            self.reached // unit,
            self.size // unit,
            rows=self.rows,
            rows_per_second=self.rows / seconds,
            **left,
        )


def spread(items: Sequence[Any], function: Callable[[Any], Any]) -> list[Any]:
    """`function` of each item, on as many threads as there are cores: for work that the interpreter does not hold."""
    with ThreadPoolExecutor(max(1, cores())) as pool:
        return list(pool.map(function, items))
