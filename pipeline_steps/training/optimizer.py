"""AdamW and its learning rate."""

from collections.abc import Iterable
from typing import Any

from torch import nn, optim

from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.hyperparameters import Hyperparameters


def optimizer_for(parameters: Iterable[nn.Parameter], settings: Hyperparameters) -> optim.Optimizer:
    """AdamW over `parameters`. One GPU cannot hold a 7B model's float32 moments: `full` keeps them in 8 bits there."""
    parameters = list(parameters)
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
    }
    in_shards = hasattr(parameters[0], "full_tensor")
    if settings.method == "full" and parameters[0].device.type == "cuda" and not in_shards:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise StepError(
                "tuning every weight on one GPU keeps the optimizer's moments in 8 bits, for which the image lacks "
                f"bitsandbytes ({error}); use an image with it, peft_type lora, or an instance type with several GPUs"
            ) from error
        return AdamW8bit(parameters, **options)
    return optim.AdamW(parameters, fused=True, **options)


def learning_rate_share(step: int, total_steps: int, settings: Hyperparameters) -> float:
    """Share of the learning rate at optimizer step `step` (from 0): linear warm-up, then constant or falling to zero."""
    warmup_steps = settings.warmup_steps or round(settings.warmup_ratio * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if settings.lr_scheduler_type == "linear":
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
    return 1.0


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
