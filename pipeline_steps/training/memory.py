"""How much of a GPU's memory training takes, and what is therefore computed again instead of kept.

An estimate of what the tensors of decoder.py and the optimizer hold, made before anything is loaded.
docs/training.md compares it with measurements.
"""

from dataclasses import dataclass
from typing import Any

from pipeline_steps.contract.errors import StepError
from pipeline_steps.training.decoder import Recompute, adapter_parameters, head_size, parameters_of
from pipeline_steps.training.projections import Method

RESERVED_BYTES = 2.5e9  # CUDA's context, the libraries' workspaces, fragments
_USED_SHARE = 0.93  # of what is left
_TOKENS = (12_288, 8_192, 6_144, 4_096, 3_072, 2_048)  # of a stream; products gain little from more
_LOGIT_BYTES = 3 * 2**28  # the logits of one piece in float32, in bfloat16, and on their way


@dataclass(frozen=True)
class MemoryPlan:
    """Tokens of a stream, what its backward computes again, and the memory that takes, in bytes."""

    tokens: int
    recompute: Recompute
    bytes: float


def plan(
    config: Any,
    method: Method,
    rank: int,
    longest: int,
    gpu_bytes: float,
    devices: int = 1,
    checkpointing: str = "auto",
) -> MemoryPlan:
    """The fastest way to train in `gpu_bytes` of memory for each of `devices` GPUs.

    longest: tokens of the longest row. Raises StepError, with the estimate and what to change, if nothing fits.
    """
    available = (gpu_bytes - RESERVED_BYTES) * _USED_SHARE
    fixed = fixed_bytes(config, method, rank, devices)
    sizes = sorted({max(tokens, longest) for tokens in _TOKENS}, reverse=True)
    levels: dict[str, tuple[Recompute, ...]] = {
        "auto": ("nothing", "gate_up", "layer"),
        "True": ("layer",),
        "False": ("nothing",),
    }
    for recompute in levels[checkpointing]:
        for tokens in sizes:
            needed = fixed + stream_bytes(config, method, tokens, recompute)
            if needed <= available:
                return MemoryPlan(tokens, recompute, needed)
    least = fixed + stream_bytes(config, method, sizes[-1], levels[checkpointing][-1])
    advice = [f"a shorter max_input_length (now {longest})", "an instance type whose GPUs have more memory"]
    if checkpointing == "False":
        advice.insert(0, "gradient_checkpointing auto")
    if method != "qlora":
        advice.insert(0, "bits 4 with peft_type lora" if method == "lora" else "peft_type lora")
    raise StepError(
        f"training needs about {least / 1e9:.1f} GB of GPU memory ({fixed / 1e9:.1f} GB of it for weights and "
        f"optimizer), this GPU has {gpu_bytes / 1e9:.1f} GB, of which {available / 1e9:.1f} GB can be used; use "
        + ", or ".join(advice)
    )


def fixed_bytes(config: Any, method: Method, rank: int, devices: int) -> float:
    """Weights, gradients and optimizer states on each of `devices` GPUs."""
    sizes = parameters_of(config)
    others = sizes["embedding"] + sizes["head"]
    if method == "full":
        # One GPU: weights and gradients in bfloat16, two moments of 8 bits. Several: shards of float32 weights,
        # gradients and moments, and one layer gathered.
        everything = sizes["products"] + others
        if devices == 1:
            return 6 * everything
        return 16 * everything / devices + 8 * (sizes["products"] / config.num_hidden_layers + others)
    adapter = 16 * adapter_parameters(config, rank)  # float32: weight, gradient, two moments
    if method == "lora":
        return 2 * (sizes["products"] * 1.015 + others) + adapter  # 1.5 %: room for the adapter beside each weight
    whole = 0.531 * sizes["products"] + 2 * others + adapter
    if devices == 1:
        return whole
    gathered = 2 * 0.531 * sizes["products"] / config.num_hidden_layers + 2 * others  # two layers at a time
    return whole / devices + gathered


def stream_bytes(config: Any, method: Method, tokens: int, recompute: Recompute) -> float:
    """What the forward keeps of a stream, and the most that its backward holds at one time."""
    hidden, wide = config.hidden_size, config.intermediate_size
    query, key = config.num_attention_heads * head_size(config), config.num_key_value_heads * head_size(config)
    inputs = 2 * hidden
    kept = 2 * (2 * hidden + query + 2 * key + query) + 4 * config.num_attention_heads + 2 * 128
    gate_up = 2 * 2 * wide
    layers = config.num_hidden_layers
    by_level = {
        "nothing": layers * (kept + gate_up),
        "gate_up": layers * kept + gate_up,
        "layer": layers * inputs + kept + gate_up,
    }
    backward = 2 * (
        2 * wide + wide + 6 * hidden
    )  # the widest gradient, its input again, and some of the stream's width
    unpacked = 2 * 2 * wide * hidden * 1.02 if method == "qlora" else 0
    return tokens * (by_level[recompute] + backward) + unpacked + _LOGIT_BYTES
