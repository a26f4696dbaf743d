"""The merged model: base weights plus the adapter's, tensor by tensor on the CPU.

One shard of the base is read through a memory map and written as one shard; what exists of it in memory at one time is
one tensor and some of its rows in float32.
"""

import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pipeline_steps.contract.errors import StepError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_CONFIGURATION = ("config.json", "generation_config.json")
_FLOAT32_BYTES = 2**24  # of rows that are merged together


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a model. Raises StepError if there are none or the index names one that is missing."""
    index = folder / INDEX_FILE
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        paths = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        paths = [folder / SINGLE_FILE]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise StepError(f"{folder} lacks {', '.join(missing)}; import the base model again")
    return paths


def checkpoint_tensors(folder: Path) -> dict[str, Callable[[], Tensor]]:
    """Every weight of the model in `folder` by its name, read when it is asked for."""
    tensors: dict[str, Callable[[], Tensor]] = {}
    for path in checkpoint_files(folder):
        opened = safe_open(path, framework="pt")
        for name in opened.keys():  # noqa: SIM118 - no mapping
            tensors[name] = lambda opened=opened, name=name: opened.get_tensor(name)  # type: ignore[misc]
    return tensors


def merge(
    base: Path, adapter: Mapping[str, Tensor], scale: float, output: Path, on_shard: Callable[[int, int], None]
) -> None:
    """Write base + scale * B A to `output`, in the base's shards and names; `on_shard` hears (done, of).

    adapter: PEFT's names to float32 tensors. A shard gets its name when it is complete, the index last. Raises StepError
    if the adapter and the base do not fit.
    """
    paths = checkpoint_files(base)
    pairs = _pairs(adapter)
    shapes = {name: shape for path in paths for name, shape in _shapes(path).items()}
    problems = [f"{name} is not in the base model" for name in sorted(pairs.keys() - shapes.keys())]
    problems += [
        f"{name} is {shapes[name]} in the base model, {(b.shape[0], a.shape[1])} in the adapter"
        for name, (a, b) in sorted(pairs.items())
        if name in shapes and shapes[name] != (b.shape[0], a.shape[1])
    ]
    if problems:
        raise StepError("the adapter is of another model: " + "; ".join(problems))
    output.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths, start=1):
        unfinished = output / f".{path.name}.tmp"
        try:
            _merge_shard(path, pairs, scale, unfinished)
            unfinished.replace(output / path.name)
        finally:
            unfinished.unlink(missing_ok=True)
        on_shard(number, len(paths))
    for name in (*_CONFIGURATION, INDEX_FILE):
        if (base / name).is_file():
            shutil.copyfile(base / name, output / name)


def _pairs(adapter: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each base weight that has an adapter."""
    pairs = {}
    for name, a in adapter.items():
        if name.endswith(".lora_A.weight"):
            weight = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") + ".weight"
            pairs[weight] = (a, adapter[name.replace(".lora_A.", ".lora_B.")])
    return pairs


def _header(path: Path) -> tuple[bytes, dict[str, Any]]:
    """A safetensors file's first bytes, up to its tensors, and what they say."""
    with path.open("rb") as stream:
        length = stream.read(8)
        content = stream.read(struct.unpack("<Q", length)[0])
    return length + content, json.loads(content)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(entry["shape"]) for name, entry in _header(path)[1].items() if name != "__metadata__"}


def _merge_shard(path: Path, pairs: Mapping[str, tuple[Tensor, Tensor]], scale: float, output: Path) -> None:
    """The shard's own header is kept: names, types, shapes and places do not change."""
    raw, entries = _header(path)
    entries.pop("__metadata__", None)
    in_file_order = sorted(entries, key=lambda name: entries[name]["data_offsets"][0])
    with output.open("wb") as stream:
        stream.write(raw)
        for name in in_file_order:
            # Opened for each tensor: the map's pages are given back before the next.
            with safe_open(path, framework="pt") as opened:
                if name in pairs:
                    rows: Iterator[Tensor] = _merged_rows(opened.get_slice(name), *pairs[name], scale)
                else:
                    rows = iter([opened.get_tensor(name)])
                for some in rows:
                    stream.write(some.contiguous().view(-1).view(torch.uint8).numpy().data)


def _merged_rows(weight: Any, a: Tensor, b: Tensor, scale: float) -> Iterator[Tensor]:
    """Some merged rows after the other; each is overwritten by the next, so that memory is not taken anew for it."""
    columns = a.shape[1]
    step = max(1, _FLOAT32_BYTES // (4 * columns))
    exact, rounded = torch.empty(step, columns), None
    for start in range(0, b.shape[0], step):
        some = weight[start : start + step]
        rounded = torch.empty(step, columns, dtype=some.dtype) if rounded is None else rounded
        rows = exact[: some.shape[0]].copy_(some).addmm_(b[start : start + step], a, alpha=scale)
        yield rounded[: some.shape[0]].copy_(rows)
