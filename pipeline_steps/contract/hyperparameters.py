"""FineTune's hyperparameters: JumpStart's names and meanings, our defaults where JumpStart's are traps.

SageMaker hands them over as texts; `parse` checks all of them at once.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pipeline_steps.contract.errors import StepError


@dataclass(frozen=True)
class Hyperparameters:
    """Types and defaults; RANGES and OPTIONS hold the limits."""

    epoch: float = 1.0
    learning_rate: float = 2e-4
    peft_type: str = "lora"  # "None" tunes every weight, as in JumpStart
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    per_device_train_batch_size: int = 2  # sequences per device and micro-batch
    gradient_accumulation_steps: int = 4  # micro-batches per optimizer step
    max_input_length: int = 2048  # tokens
    warmup_ratio: float = 0.1  # of the optimizer steps
    lr_scheduler_type: str = "constant_with_warmup"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    logging_steps: int = 1  # optimizer steps between two progress lines
    seed: int = 10


RANGES: dict[str, tuple[float, float]] = {
    "epoch": (0.01, 1000),
    "learning_rate": (1e-8, 1),
    "lora_r": (1, 1000),
    "lora_alpha": (1, 100_000),
    "lora_dropout": (0, 0.99),
    "per_device_train_batch_size": (1, 1000),
    "gradient_accumulation_steps": (1, 1000),
    "max_input_length": (16, 1_000_000),
    "warmup_ratio": (0, 1),
    "weight_decay": (0, 1),
    "max_grad_norm": (1e-6, 1e6),
    "logging_steps": (1, 1000),
    "seed": (1, 1000),
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "peft_type": ("lora", "None"),
    "lr_scheduler_type": ("constant_with_warmup", "linear"),
}


def parse(texts: Mapping[str, str]) -> Hyperparameters:
    """The hyperparameters in `texts`. Raises StepError naming every unknown name and every value out of its limits."""
    known = {field.name: field.type for field in fields(Hyperparameters)}
    values: dict[str, Any] = {}
    problems = []
    for name, text in texts.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
            problems.append(f"hyperparameter {name!r} (value {text!r}) is unknown; {hint}")
            continue
        try:
            values[name] = _value(name, known[name], str(text))
        except ValueError as error:
            problems.append(f"hyperparameter {name} is {text!r}, {error}")
    if problems:
        raise StepError("\n".join(problems))
    return Hyperparameters(**values)


def _value(name: str, type_: Any, text: str) -> int | float | str:
    if type_ is str:
        if text not in OPTIONS[name]:
            raise ValueError(f"allowed: {', '.join(OPTIONS[name])}")
        return text
    low, high = RANGES[name]
    kind = "a whole number" if type_ is int else "a number"
    try:
        value = type_(text)
    except ValueError:
        raise ValueError(f"allowed: {kind} from {low:g} to {high:g}") from None
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"allowed: {kind} from {low:g} to {high:g}")
    return value  # type: ignore[no-any-return]
