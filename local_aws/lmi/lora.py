"""LoRA adapters on a shared base: sequences of one batch may each use another adapter, or none."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

PREFIX = "base_model.model."


class AdapterError(Exception):
    """The adapter cannot be used with this model; the text says why."""


@dataclass(frozen=True)
class Adapter:
    """PEFT's format: for each module B (A x) * scale is added to what the base gives."""

    weights: dict[str, tuple[torch.Tensor, torch.Tensor]]  # module -> A [rank, inputs], B [outputs, rank]
    scale: float


class Adapters:
    """The adapters of one model. `rows` names the adapter of each row of the next forward pass."""

    def __init__(self, model: Any, most_rank: int) -> None:
        self._modules = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        self._most_rank = most_rank
        self._adapters: dict[str, Adapter] = {}
        self._hooked: set[str] = set()
        self.rows: list[str | None] = []

    def __contains__(self, name: str) -> bool:
        return name in self._adapters

    def names(self) -> list[str]:
        return sorted(self._adapters)

    def load(self, name: str, folder: Path) -> None:
        """Read an adapter's folder. Raises AdapterError."""
        try:
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "adapter_model.safetensors")
        except (OSError, ValueError) as error:
            raise AdapterError(f"{folder} is no adapter in PEFT's format: {error}") from None
        rank = int(config["r"])
        if rank > self._most_rank:
            raise AdapterError(f"the adapter's rank is {rank} and OPTION_MAX_LORA_RANK is {self._most_rank}")
        weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for key in tensors:
            if not key.endswith(".lora_A.weight"):
                continue
            module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            base, second = self._modules.get(module), tensors.get(key.replace("lora_A", "lora_B"))
            if base is None or second is None:
                raise AdapterError(f"the adapter changes {module}, which this base model does not have")
            first = tensors[key]
            if first.shape[1] != base.in_features or second.shape[0] != base.out_features:
                raise AdapterError(f"the adapter's {module} does not fit this base model: {tuple(first.shape)}")
            weights[module] = (first.to(base.weight), second.to(base.weight))
        if not weights:
            raise AdapterError(f"{folder} holds no LoRA weights")
        divisor = rank**0.5 if config.get("use_rslora") else rank
        self._adapters[name] = Adapter(weights, config["lora_alpha"] / divisor)
        for module in weights.keys() - self._hooked:
            self._modules[module].register_forward_hook(self._hook(module))
            self._hooked.add(module)

    def unload(self, name: str) -> None:
        self._adapters.pop(name, None)

    def _hook(self, module: str) -> Any:
        def add(_: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            for name in set(self.rows) - {None}:
                adapter = self._adapters.get(str(name))
                if adapter is None or module not in adapter.weights:
                    continue
                first, second = adapter.weights[module]
                rows = [row for row, used in enumerate(self.rows) if used == name]
                output[rows] += (inputs[0][rows] @ first.T @ second.T) * adapter.scale
            return output

        return add
