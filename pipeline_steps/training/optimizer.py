"""AdamW and its learning rate."""

from collections.abc import Iterable
from typing import Any

from torch import nn, optim

from pipeline_steps.contract.hyperparameters import Hyperparameters
from pipeline_steps.training.projections import Method


def optimizer_for(
    parameters: Iterable[nn.Parameter], method: Method, learning_rate: float, weight_decay: float
) -> optim.Optimizer:
    """AdamW over `parameters`. One GPU cannot hold a 7B model's float32 moments: `full` keeps them in 8 bits there."""
    parameters = list(parameters)
    if method == "full" and parameters[0].device.type == "cuda" and not hasattr(parameters[0], "full_tensor"):
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, lr=learning_rate, weight_decay=weight_decay)  # type: ignore[no-any-return]
    return optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)


def learning_rate_share(step: int, total_steps: int, settings: Hyperparameters) -> float:
    """Share of the learning rate at optimizer step `step` (from 0): linear warm-up, then constant or falling to zero."""
    warmup_steps = round(settings.warmup_ratio * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if settings.lr_scheduler_type == "linear":
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
    return 1.0


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
