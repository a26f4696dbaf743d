"""Other families than Mistral, as tiny random models: fine-tuned, merged and evaluated by the same steps."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from pipeline_steps import evaluate, fine_tune
from pipeline_steps.contract import evaluation
from pipeline_steps.contract.hyperparameters import Hyperparameters
from pipeline_steps.evaluate import EvaluateJob
from pipeline_steps.fine_tune import FineTuneJob
from pipeline_steps.models import load_tokenizer
from tests.pipeline_steps.conftest import examples, write_split

SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
}  # fmt: skip
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, Any] = {
    "llama 3.1": (LlamaConfig, {"rope_parameters": LLAMA_3}),
    "qwen 2.5, tied embeddings": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen 3": (Qwen3Config, {"head_dim": 16}),
}


def base_of(family: str, like: Path, folder: Path) -> Path:
    """An imported base model of a family, with the tokenizer of the model in `like`."""
    shutil.copytree(
        like, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "generation_config.json")
    )
    make, more = FAMILIES[family]
    words = json.loads((like / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(make(vocab_size=words, **SHAPE, **more)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_another_family_is_tuned_merged_and_evaluated(family: str, base_model: Path, tmp_path: Path) -> None:
    base, splits = base_of(family, base_model, tmp_path / "base"), tmp_path / "data"
    tokenizer = load_tokenizer(base)  # a family's may read the same file in its own way
    for split, rows in (("train", examples(0, 48)), ("validation", examples(48, 56)), ("test", examples(56, 80))):
        write_split(splits / split, split, rows, tokenizer=tokenizer)
    settings = Hyperparameters(lora_r=4, epoch=2.0, learning_rate=1e-2, per_device_train_batch_size=8)
    fine_tune.run(FineTuneJob(splits / "train", splits / "validation", base, tmp_path / "model", settings))
    evaluate.run(EvaluateJob(splits / "test", base, tmp_path / "model", tmp_path / "evaluation", [], 4, 0))
    loss = evaluation.read(tmp_path / "evaluation").metrics["loss"].values
    assert loss["tuned"].value < loss["base"].value  # type: ignore[operator]
    # What is served is the family's own architecture, as transformers loads it.
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, tmp_path / "model"))
    assert type(after) is type(before) and after.state_dict().keys() == before.state_dict().keys()
