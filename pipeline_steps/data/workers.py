"""Work on many parts at once: a process for each core of this machine."""

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from pipeline_steps.contract.progress import report
from pipeline_steps.data.parts import Examination, examine
from pipeline_steps.data.sources import Part

PROGRESS_SECONDS = 5.0
WORTH_PROCESSES_BYTES = 4 * 2**20  # below that, starting them takes longer than the work
# Not forked: the tokenizer and Arrow have threads, which a fork would lose.
SPAWN = multiprocessing.get_context("spawn")

_state: dict[str, Any] = {}


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def examine_all(parts: Sequence[Part], job: Examination, work: Path) -> None:
    """Examine every part into `work`, with progress: bytes (Parquet: row groups) and rows so far, time left."""
    size = sum(part.end - part.start for part in parts)
    progress = Progress(size)
    workers = min(cores(), len(parts))
    if workers <= 1 or size < WORTH_PROCESSES_BYTES:
        for part in parts:
            examine(part, job, work, progress.more)
        progress.tell()
        return

    rows, reached = SPAWN.Value("q", 0), SPAWN.Value("q", 0)
    with processes(workers, work, _start, (job, work), rows, reached) as pool:
        waiting = {pool.submit(_examine, part) for part in parts}
        try:
            while waiting:
                done, waiting = wait(waiting, PROGRESS_SECONDS, FIRST_COMPLETED)
                for future in done:
                    future.result()  # raises what the worker raised
                progress.more(rows.value - progress.rows, reached.value - progress.reached)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress.tell()


def processes(
    count: int, folder: Path, start: Callable[..., None], given: tuple[Any, ...], *shared: Any
) -> ProcessPoolExecutor:
    """A pool of `count` processes, each of which first calls `start` with `given` and `shared`.

    `shared` are what only a starting process may be given, such as counters. `given` goes through a file in `folder`:
    whoever starts a process waits until it has taken its arguments, which it does after its imports, so that with
    megabytes of tokenizer in them the processes would start one after the other.
    """
    path = folder / "given-to-processes.pickle"
    path.write_bytes(pickle.dumps(given))
    return ProcessPoolExecutor(count, SPAWN, _start_with, (start, path, shared))


def _start_with(start: Callable[..., None], path: Path, shared: tuple[Any, ...]) -> None:
    start(*pickle.loads(path.read_bytes()), *shared)


def _start(job: Examination, work: Path, rows: Any, reached: Any) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core is enough
    _state.update(job=job, work=work, rows=rows, reached=reached)


def _examine(part: Part) -> None:
    def count(rows: int, size: int) -> None:
        for name, more in (("rows", rows), ("reached", size)):
            with _state[name].get_lock():
                _state[name].value += more

    examine(part, _state["job"], _state["work"], count)


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
