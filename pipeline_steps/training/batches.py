"""Which rows a training step learns from, on which device and together with which others.

A step has per_device_train_batch_size x gradient_accumulation_steps x devices rows, as in JumpStart. How those are
divided among devices and cut into streams of tokens that fit the memory changes nothing of the step: the loss is
normalised by the learned tokens of the whole step. Every order depends on the seed and the step's number alone, so that
a resumed run goes on with the rows it would have seen.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline_steps import packing
from pipeline_steps.contract.hyperparameters import Hyperparameters
from pipeline_steps.encoding import NOT_TRAINED, Encoded
from pipeline_steps.training.attention import Documents, on_device


@dataclass(frozen=True)
class Plan:
    """The rows of every step."""

    rows: int
    rows_per_step: int
    rows_in_all: int  # of all steps, repetitions counted
    seed: int

    @classmethod
    def of(cls, rows: int, devices: int, settings: Hyperparameters) -> "Plan":
        per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * devices
        in_all = math.ceil(rows * settings.epoch)
        if settings.max_steps > 0:
            in_all = settings.max_steps * per_step
        return cls(rows, per_step, in_all, settings.seed)

    @property
    def steps(self) -> int:
        return math.ceil(self.rows_in_all / self.rows_per_step)

    def epochs_at(self, step: int) -> float:
        """Passes over the data after `step` steps."""
        return min(step * self.rows_per_step, self.rows_in_all) / self.rows

    def rows_of(self, step: int) -> list[int]:
        """Row numbers of step `step`, from 0: the next ones in an order that is drawn anew for each epoch."""
        start = step * self.rows_per_step
        places = range(start, min(start + self.rows_per_step, self.rows_in_all))
        return [_order(self.seed, place // self.rows, self.rows)[place % self.rows] for place in places]


@lru_cache(maxsize=2)  # a step may reach into the next epoch
def _order(seed: int, epoch: int, rows: int) -> list[int]:
    return random.Random(f"{seed}/{epoch}").sample(range(rows), rows)


def divide(rows: Sequence[int], lengths: Sequence[int], devices: int, tokens: int) -> list[list[list[int]]]:
    """For each device its streams: row numbers that have together at most `tokens` tokens.

    Longest rows first, each to the device with the least to do. All devices get equally many streams, since they meet
    at the end of each; some may be empty.
    """
    shares: list[list[int]] = [[] for _ in range(devices)]
    loads = [0] * devices
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        device = loads.index(min(loads))
        shares[device].append(row)
        loads[device] += lengths[row]
    streams = [
        [[share[place] for place in places] for places in packing.plan([lengths[row] for row in share], tokens)]
        for share in shares
    ]
    most = max(len(one) for one in streams)
    return [one + [[]] * (most - len(one)) for one in streams]


@dataclass(frozen=True)
class Stream:
    """Rows one after the other, as the decoder takes them."""

    ids: Tensor  # (tokens,)
    documents: Documents
    learned: Tensor  # (n,): places whose next token is learned
    targets: Tensor  # (n,): those next tokens

    @classmethod
    def of(cls, rows: Sequence[Encoded], device: torch.device) -> "Stream":
        # A device without rows still takes part, with one token of which nothing is learned.
        rows = rows or [Encoded([0], [NOT_TRAINED])]
        ids = np.concatenate([np.asarray(row.ids) for row in rows])
        # A label stands at its own token; what predicts it is the token before, of the same row.
        labels = np.concatenate([np.asarray([*row.labels[1:], NOT_TRAINED]) for row in rows])
        learned = np.flatnonzero(labels != NOT_TRAINED)
        tensors = (on_device(torch.from_numpy(array), device) for array in (ids, learned, labels[learned]))
        ids_, learned_, targets = tensors
        return cls(ids_, Documents(tuple(len(row.ids) for row in rows), device), learned_, targets)

    def loss(self, model: Any) -> Tensor:
        """Sum over the learned tokens, nats."""
        return model(self.ids, self.documents, self.learned, self.targets)


def streams_of(rows: Sequence[Encoded], tokens: int, device: torch.device) -> Iterator[Stream]:
    """All of `rows`, for an evaluation."""
    for places in packing.plan([len(row.ids) for row in rows], tokens):
        yield Stream.of([rows[place] for place in places], device)
