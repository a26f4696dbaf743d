"""FineTune's hyperparameters: JumpStart's names and meanings, our defaults where JumpStart's are traps.

SageMaker hands them over as texts; `parse` checks all of them at once. docs/training.md says why a default differs.
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

    # What is trained. peft_type lora with bits 16 is LoRA, with bits 4 QLoRA; "None" with bits 16 tunes every weight.
    peft_type: str = "lora"
    bits: int = 16
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    # On what.
    epoch: float = 1.0
    max_steps: int = -1  # optimizer steps; -1: as many as `epoch` needs
    max_input_length: int = 2048  # tokens of a row
    max_train_samples: int = -1  # rows; -1: all
    max_val_samples: int = -1
    train_on_prompt: bool = False  # also learn to write the prompt, as JumpStart does
    per_device_train_batch_size: int = 2  # rows of a step are this x accumulation x devices
    gradient_accumulation_steps: int = 4
    seed: int = 10
    # How.
    learning_rate: float = 2e-4
    lr_scheduler_type: str = "constant_with_warmup"
    warmup_ratio: float = 0.1  # of the optimizer steps
    warmup_steps: int = 0  # overrides the ratio
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    gradient_checkpointing: str = "auto"  # auto: as little is computed again as the memory allows
    fp8: bool = False  # LoRA's products with the frozen weights in 8 bits, if the model bears it; for H100, L4, L40S
    # When it is measured, kept and ended.
    evaluation_strategy: str = "steps"
    eval_steps: int = 0  # optimizer steps; 0: computed so that evaluations take about a tenth of the time
    early_stopping_patience: int = 3  # evaluations in a row without improvement; counted with eval_steps
    early_stopping_threshold: float = 0.0  # nats by which the validation loss must fall to count as improvement
    load_best_model_at_end: bool = True
    save_steps: int = 0  # optimizer steps; 0: computed so that saving takes about a hundredth of the time
    save_total_limit: int = 1  # checkpoints kept
    max_hours: float = 0.0  # training ends after these and keeps its best; 0: no limit
    max_cost_usd: float = 0.0  # the same by the price of the job's instances; 0: no limit
    usd_per_hour: float = 0.0  # of one instance, for max_cost_usd; 0: from the table of prices
    logging_steps: int = 1  # optimizer steps between two progress lines
    mlflow_tracking_uri: str = ""  # ARN of a SageMaker MLflow server or app, or a folder; empty: none

    @property
    def method(self) -> str:
        """lora, qlora or full."""
        if self.peft_type == "None":
            return "full"
        return "qlora" if self.bits == 4 else "lora"


RANGES: dict[str, tuple[float, float]] = {
    "lora_r": (1, 1000),
    "lora_alpha": (1, 100_000),
    "lora_dropout": (0, 0.99),
    "epoch": (0.01, 1000),
    "max_steps": (-1, 10_000_000),
    "max_input_length": (16, 1_000_000),
    "max_train_samples": (-1, 1_000_000_000),
    "max_val_samples": (-1, 1_000_000_000),
    "per_device_train_batch_size": (1, 1000),
    "gradient_accumulation_steps": (1, 1000),
    "seed": (1, 1000),
    "learning_rate": (1e-8, 1),
    "warmup_ratio": (0, 1),
    "warmup_steps": (0, 10_000_000),
    "weight_decay": (0, 1),
    "adam_beta1": (0, 0.9999999),
    "adam_beta2": (0, 0.9999999),
    "adam_epsilon": (1e-16, 1),
    "max_grad_norm": (1e-6, 1e6),
    "eval_steps": (0, 10_000_000),
    "early_stopping_patience": (1, 1_000_000),
    "early_stopping_threshold": (0, 1000),
    "save_steps": (0, 10_000_000),
    "save_total_limit": (1, 1000),
    "max_hours": (0, 10_000),
    "max_cost_usd": (0, 1_000_000),
    "usd_per_hour": (0, 10_000),
    "logging_steps": (1, 1000),
}
FREE_TEXTS = ("mlflow_tracking_uri",)
OPTIONS: dict[str, tuple[Any, ...]] = {
    "peft_type": ("lora", "None"),
    "bits": (4, 16),
    "lr_scheduler_type": ("constant_with_warmup", "linear"),
    "gradient_checkpointing": ("auto", "True", "False"),
    "evaluation_strategy": ("steps", "epoch", "no"),
}
# JumpStart's names of which only one value means anything here, and why.
FIXED: dict[str, tuple[str, str]] = {
    "bf16": ("True", "products are in bfloat16, with which a loss needs no scaling"),
    "fp16": ("False", "products are in bfloat16, with which a loss needs no scaling"),
    "double_quant": ("True", "with bits 4 the scales are always quantised once more"),
    "quant_type": ("nf4", "it is never worse than fp4 at the same size"),
    "train_from_scratch": ("False", "the product fine-tunes"),
    "label_smoothing_factor": ("0", "the gate compares likelihoods, which smoothing would bend"),
    "deepspeed": ("False", "several devices train through torch itself"),
    "auto_find_batch_size": ("False", "a step is cut to the memory by itself, whatever its batch size"),
    "logging_nan_inf_filter": ("False", "a loss that is no number ends the training"),
    "save_strategy": ("steps", "without checkpoints an interruption loses all; see save_steps"),
    "dataloader_drop_last": ("False", "no row is dropped"),
}
# JumpStart's names that change nothing of the result here: accepted, and said so in the log.
WITHOUT_EFFECT: dict[str, str] = {
    "per_device_eval_batch_size": "evaluation is cut to the memory by itself",
    "dataloader_num_workers": "the rows are in memory",
    "preprocessing_num_workers": "PrepareData made the tokens",
    "eval_accumulation_steps": "evaluation keeps only sums",
    "logging_first_step": "the first step is always logged",
}
# JumpStart's names that PrepareData knows, not FineTune.
OF_PREPARE_DATA = (
    "instruction_tuned",
    "chat_dataset",
    "add_input_output_demarcation_key",
    "validation_split_ratio",
    "train_data_split_seed",
)


def parse(texts: Mapping[str, str]) -> Hyperparameters:
    """The hyperparameters in `texts`. Raises StepError naming every unknown name and every value out of its limits."""
    known = {field.name: field.type for field in fields(Hyperparameters)}
    values: dict[str, Any] = {}
    problems = []
    for name, text in texts.items():
        if name in FIXED:
            allowed, reason = FIXED[name]
            if str(text).lower() not in (allowed.lower(), f"{allowed}.0"):
                problems.append(f"hyperparameter {name} is {text!r}, allowed: {allowed}; {reason}")
        elif name in OF_PREPARE_DATA:
            problems.append(
                f"hyperparameter {name} (value {text!r}) is a matter of the data: it is set in the configuration's "
                "dataset group, and PrepareData has acted on it"
            )
        elif name in known:
            try:
                values[name] = _value(name, known[name], str(text))
            except ValueError as error:
                problems.append(f"hyperparameter {name} is {text!r}, {error}")
        elif name not in WITHOUT_EFFECT:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
            problems.append(f"hyperparameter {name!r} (value {text!r}) is unknown; {hint}")
    settings = Hyperparameters(**values)
    if settings.peft_type == "None" and settings.bits == 4:
        problems.append(
            "hyperparameter bits is '4' with peft_type 'None': weights in 4 bits cannot be trained; "
            "use peft_type lora, or bits 16"
        )
    if settings.fp8 and settings.method != "lora":
        problems.append(
            f"hyperparameter fp8 is 'True' with peft_type {settings.peft_type!r} and bits '{settings.bits}': only frozen "
            "weights in 16 bits are rounded to 8; use peft_type lora with bits 16, or fp8 False"
        )
    for name in ("max_steps", "max_train_samples", "max_val_samples"):
        if getattr(settings, name) == 0:
            problems.append(f"hyperparameter {name} is '0', allowed: -1 (no limit) or a whole number from 1")
    if problems:
        raise StepError("\n".join(problems))
    for name in sorted(WITHOUT_EFFECT.keys() & texts.keys()):
        print(f"hyperparameter {name} has no effect: {WITHOUT_EFFECT[name]}", flush=True)
    return settings


def _value(name: str, type_: Any, text: str) -> int | float | str | bool:
    if type_ is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("allowed: True, False")
        return text.lower() == "true"
    if name in OPTIONS:
        options = {str(option): option for option in OPTIONS[name]}
        if text not in options:
            raise ValueError(f"allowed: {', '.join(options)}")
        return options[text]  # type: ignore[no-any-return]
    if name in FREE_TEXTS:
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
