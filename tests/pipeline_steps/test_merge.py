"""The merged model: shard by shard, equal to base plus adapter, in little memory, complete or absent."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline_steps.contract.errors import StepError
from pipeline_steps.training.merge import INDEX_FILE, merge

REPOSITORY = Path(__file__).parents[2]
SCALE, RANK = 2.0, 4


def base_of(folder: Path, shards: int, rows: int, columns: int) -> None:
    """A checkpoint of two weights a shard: one that an adapter is for, and one that none is for."""
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        tensors = {
            f"model.layers.{number}.mlp.up_proj.weight": torch.randn(rows, columns, generator=random).bfloat16(),
            f"model.layers.{number}.input_layernorm.weight": torch.ones(columns, dtype=torch.bfloat16),
        }
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def adapter_of(shards: int, rows: int, columns: int) -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)
    adapter = {}
    for number in range(shards):
        name = f"base_model.model.model.layers.{number}.mlp.up_proj"
        adapter[f"{name}.lora_A.weight"] = torch.randn(RANK, columns, generator=random)
        adapter[f"{name}.lora_B.weight"] = torch.randn(rows, RANK, generator=random)
    return adapter


def test_every_shard_keeps_its_name_and_holds_base_plus_adapter(tmp_path: Path) -> None:
    base_of(tmp_path / "base", 3, 96, 64)
    adapter, heard = adapter_of(3, 96, 64), []
    merge(tmp_path / "base", adapter, SCALE, tmp_path / "merged", lambda done, of: heard.append((done, of)))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {
        path.name for path in (tmp_path / "base").iterdir()
    }
    for path in sorted((tmp_path / "base").glob("*.safetensors")):
        before, after = load_file(path), load_file(tmp_path / "merged" / path.name)
        for name, weight in before.items():
            if "up_proj" in name:
                prefix = f"base_model.model.{name.removesuffix('.weight')}"
                a, b = adapter[f"{prefix}.lora_A.weight"], adapter[f"{prefix}.lora_B.weight"]
                torch.testing.assert_close(
                    after[name], (weight.float() + SCALE * b @ a).bfloat16(), rtol=0.01, atol=0.01
                )
            else:
                assert torch.equal(after[name], weight)


def test_merging_takes_no_more_memory_than_a_shard_and_a_third_and_the_adapter(tmp_path: Path) -> None:
    """In a process of its own, whose peak is read before and after: shards of 256 MB, of which two would show."""
    shards, rows, columns = 3, 16_384, 8192
    base_of(tmp_path / "base", shards, rows, columns)
    save_file(adapter_of(shards, rows, columns), tmp_path / "adapter.safetensors")
    program = f"""
import re
from pathlib import Path
import torch
from safetensors.torch import load_file
from pipeline_steps.training.merge import merge

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024

torch.ones(64, 64) @ torch.ones(64, 64)
before = peak()
merge(Path({str(tmp_path / "base")!r}), load_file({str(tmp_path / "adapter.safetensors")!r}), 2.0,
      Path({str(tmp_path / "merged")!r}), lambda done, of: None)
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    shard = max(path.stat().st_size for path in (tmp_path / "base").glob("*.safetensors"))
    adapter = (tmp_path / "adapter.safetensors").stat().st_size
    assert int(run.stdout) <= 1.3 * shard + adapter


def test_an_adapter_of_another_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    base_of(tmp_path / "base", 1, 96, 64)
    with pytest.raises(StepError, match=r"up_proj.weight is \(96, 64\) in the base model, \(96, 32\) in the adapter"):
        merge(tmp_path / "base", adapter_of(1, 96, 32), SCALE, tmp_path / "merged", lambda done, of: None)
    with pytest.raises(StepError, match=r"model.layers.1.mlp.up_proj.weight is not in the base model"):
        merge(tmp_path / "base", adapter_of(2, 96, 64), SCALE, tmp_path / "merged", lambda done, of: None)
    assert not (tmp_path / "merged").exists()


def test_a_shard_that_is_cut_off_leaves_nothing_half_written(tmp_path: Path) -> None:
    base_of(tmp_path / "base", 2, 96, 64)
    second = sorted((tmp_path / "base").glob("*.safetensors"))[1]
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"safetensors|header|truncated|incomplete|MetadataIncompleteBuffer"):
        merge(tmp_path / "base", adapter_of(2, 96, 64), SCALE, tmp_path / "merged", lambda done, of: None)
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["model-00001-of-00002.safetensors"]
