"""Progress lines in a job's log: people read them, SageMaker's metric regexes and `finetune status` parse them.

progress: train 12/60 train_loss=2.31 tokens_per_second=201.4 seconds_left=40
"""

import re
from dataclasses import dataclass

LINE = re.compile(r"progress: (?P<phase>[a-z][a-z ]*) (?P<done>\d+)/(?P<total>\d+)(?P<figures>( [a-z_]+=\S+)*)\s*$")


@dataclass(frozen=True)
class Progress:
    phase: str
    done: int
    total: int
    figures: dict[str, float]


def report(phase: str, done: int, total: int, **figures: float) -> None:
    """Print one progress line; it is in the log when this returns."""
    shown = "".join(f" {name}={value:.6g}" for name, value in figures.items())
    print(f"progress: {phase} {done}/{total}{shown}", flush=True)


def parse(line: str) -> Progress | None:
    """The progress that a log line reports, or None if it reports none."""
    match = LINE.search(line)
    if match is None:
        return None
    pairs = (pair.split("=", 1) for pair in match["figures"].split())
    return Progress(match["phase"], int(match["done"]), int(match["total"]), {k: float(v) for k, v in pairs})
