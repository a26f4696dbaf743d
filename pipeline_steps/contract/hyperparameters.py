"""FineTune's hyperparameters: JumpStart's names and meanings, our defaults where JumpStart's are traps.

SageMaker hands them over as texts; `parse` checks all of them at once.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from pipeline_steps.contract.errors import StepError


@dataclass(frozen=True)
class Range:
    """Allowed numbers, both ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class OneOf:
    """Allowed texts."""

    texts: tuple[str, ...]


def _spec(default: Any, allowed: Range | OneOf, *, jumpstart: str, meaning: str) -> Any:
    """A field with its limits. `jumpstart`: the default of JumpStart's Mistral 7B (version 2.9.1), as it prints it."""
    return field(default=default, metadata={"allowed": allowed, "jumpstart": jumpstart, "meaning": meaning})


@dataclass(frozen=True)
class Hyperparameters:
    """One training run's settings; each field carries its limits, its meaning and JumpStart's default."""

    epoch: float = _spec(1.0, Range(0.01, 1000), jumpstart="1", meaning="passes over the training rows")
    learning_rate: float = _spec(
        2e-4, Range(1e-8, 1), jumpstart="6e-06", meaning="peak learning rate; JumpStart's is for full fine-tuning"
    )
    peft_type: str = _spec(
        "lora", OneOf(("lora", "None")), jumpstart="None", meaning="lora trains an adapter, None every weight"
    )
    lora_r: int = _spec(16, Range(1, 1000), jumpstart="64", meaning="rank of the adapter")
    lora_alpha: int = _spec(
        32, Range(1, 100_000), jumpstart="16", meaning="the adapter counts lora_alpha / lora_r times"
    )
    lora_dropout: float = _spec(
        0.0, Range(0, 0.99), jumpstart="0", meaning="share of the adapter's inputs dropped in training"
    )
    per_device_train_batch_size: int = _spec(
        2, Range(1, 1000), jumpstart="2", meaning="sequences per device and micro-batch"
    )
    gradient_accumulation_steps: int = _spec(
        4, Range(1, 1000), jumpstart="8", meaning="micro-batches per optimizer step; 8 leaves small data few steps"
    )
    max_input_length: int = _spec(
        2048,
        Range(16, 1_000_000),
        jumpstart="-1",
        meaning="tokens of the longest row; a longer one is an error, where JumpStart cuts it silently",
    )
    warmup_ratio: float = _spec(
        0.1, Range(0, 1), jumpstart="0.1", meaning="share of the optimizer steps in which the learning rate rises"
    )
    lr_scheduler_type: str = _spec(
        "constant_with_warmup",
        OneOf(("constant_with_warmup", "linear")),
        jumpstart="constant_with_warmup",
        meaning="learning rate after the warm-up: constant, or falling to zero",
    )
    weight_decay: float = _spec(
        0.0, Range(0, 1), jumpstart="0.2", meaning="AdamW's weight decay; on an adapter it only pulls back to the base"
    )
    max_grad_norm: float = _spec(1.0, Range(1e-6, 1e6), jumpstart="1.0", meaning="longer gradients are scaled to it")
    logging_steps: int = _spec(1, Range(1, 1000), jumpstart="8", meaning="optimizer steps between two progress lines")
    seed: int = _spec(10, Range(1, 1000), jumpstart="10", meaning="seed of the adapter's start and the rows' order")


def parse(texts: Mapping[str, str]) -> Hyperparameters:
    """The hyperparameters in `texts`. Raises StepError naming every unknown name and every value out of its limits."""
    known = {spec.name: spec for spec in fields(Hyperparameters)}
    values: dict[str, Any] = {}
    problems = []
    for name, text in texts.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
            problems.append(f"hyperparameter {name!r} (value {text!r}) is unknown; {hint}")
            continue
        try:
            values[name] = _value(known[name], str(text))
        except ValueError as error:
            problems.append(f"hyperparameter {name} is {text!r}, {error}")
    if problems:
        raise StepError("\n".join(problems))
    return Hyperparameters(**values)


def _value(spec: "Field[Any]", text: str) -> Any:
    allowed = spec.metadata["allowed"]
    if isinstance(allowed, OneOf):
        if text not in allowed.texts:
            raise ValueError(f"allowed: {', '.join(allowed.texts)}")
        return text
    kind = "a whole number" if spec.type is int else "a number"
    limits = f"allowed: {kind} from {allowed.low:g} to {allowed.high:g}"
    try:
        value = int(text) if spec.type is int else float(text)
    except ValueError:
        raise ValueError(limits) from None
    if not math.isfinite(value) or not allowed.low <= value <= allowed.high:
        raise ValueError(limits)
    return value
