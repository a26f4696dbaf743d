"""Checkpoints that survive the machine: complete or absent, and enough to go on as if nothing had happened.

A checkpoint is a folder step-<number>/ with a file of each process that has something to keep, and checkpoint.json,
written last. Files and folders get their names when they are complete; SageMaker copies what has a name to S3.
"""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline_steps.contract import json_files
from pipeline_steps.contract.errors import StepError
from pipeline_steps.training.distributed import World

CHECKPOINT_FILE = "checkpoint.json"
SCHEMA_VERSION = 1
_SAVING_SHARE = 0.01  # of the time, at most
_SECONDS = (30.0, 900.0)  # between two checkpoints, at least and at most


@dataclass
class Checkpoints:
    """The checkpoints of one run in `folder`.

    run: what must be equal for a checkpoint to be gone on with. every_step: parameters in shards have a file of each
    process, others one of the first process.
    """

    folder: Path
    run: dict[str, Any]
    world: World
    in_shards: bool
    save_steps: int  # 0: by time
    keep: int

    def __post_init__(self) -> None:
        self._last = time.monotonic()
        self._cost = 0.0

    def due(self, step: int) -> bool:
        """Whether it is time, on the first process's clock."""
        if self.save_steps:
            return step % self.save_steps == 0
        wait = min(max(self._cost / _SAVING_SHARE, _SECONDS[0]), _SECONDS[1])
        return time.monotonic() - self._last >= wait

    def save(self, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        """Keep `tensors` (this process's) and `state` (JSON, the first process's), and remove what is older."""
        started = time.monotonic()
        name = _name(step)
        unfinished = self.folder / f".{name}.{self.world.rank}.tmp"
        if self.in_shards or self.world.first:
            unfinished.mkdir(parents=True, exist_ok=True)
            file = unfinished / f"process-{self.world.rank}.pt"
            with file.open("wb") as stream:
                torch.save(tensors, stream)
                stream.flush()
                os.fsync(stream.fileno())
            (self.folder / name).mkdir(exist_ok=True)
            file.replace(self.folder / name / file.name)
            unfinished.rmdir()
        self.world.wait_for_all()  # a checkpoint is complete when all processes have written theirs
        if self.world.first:
            files = self.world.size if self.in_shards else 1
            content = {"schema_version": SCHEMA_VERSION, "step": step, "processes": files, "run": self.run, **state}
            json_files.write(self.folder / name / CHECKPOINT_FILE, content)
        if self.world.first or self.in_shards:
            self._remove_all_but_newest()
        self._last = time.monotonic()
        self._cost = self._last - started

    def newest(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """State and this process's tensors of the newest complete checkpoint; None if there is none.

        Raises StepError if it is of another run.
        """
        for folder in sorted(self.folder.glob("step-*"), key=lambda folder: folder.name, reverse=True):
            marker = folder / CHECKPOINT_FILE
            if not marker.is_file():
                continue  # the process that wrote it was ended before it was complete
            state = json_files.read(marker, SCHEMA_VERSION)
            if not all((folder / f"process-{number}.pt").is_file() for number in range(state["processes"])):
                continue
            self._check_run(folder, state["run"])
            file = folder / f"process-{self.world.rank if self.in_shards else 0}.pt"
            return state, torch.load(file, map_location="cpu", weights_only=True)
        return None

    def _check_run(self, folder: Path, run: dict[str, Any]) -> None:
        different = [
            f"{name}: {json.dumps(run.get(name))} there, {json.dumps(self.run.get(name))} now"
            for name in sorted(run.keys() | self.run.keys())
            if run.get(name) != self.run.get(name)
        ]
        if different:
            raise StepError(
                f"the checkpoint {folder} is of another run ({'; '.join(different)}); "
                "give this run an empty checkpoint location, or the same data, model and hyperparameters"
            )

    def _remove_all_but_newest(self) -> None:
        complete = sorted(self.folder.glob(f"step-*/{CHECKPOINT_FILE}"), reverse=True)
        for marker in complete[self.keep :]:
            marker.unlink(missing_ok=True)  # first, so that what is left of the folder is never taken for complete
            shutil.rmtree(marker.parent)


def _name(step: int) -> str:
    return f"step-{step:08d}"
