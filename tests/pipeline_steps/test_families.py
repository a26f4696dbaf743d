"""Models of the families that FineTune computes, tiny and random, from the raw rows to the evaluated model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from pipeline_steps import evaluate, fine_tune, general_text, prepare_data
from pipeline_steps.contract import evaluation, files
from pipeline_steps.contract.hyperparameters import Hyperparameters
from pipeline_steps.data.instances_engine import InstancesEngine
from pipeline_steps.data.sagemaker_job import Instances
from pipeline_steps.evaluate import EvaluateJob
from pipeline_steps.fine_tune import FineTuneJob
from pipeline_steps.models import load_tokenizer
from pipeline_steps.prepare_data import PrepareJob
from tests.pipeline_steps import tokenizers_of_families as tokenizers

SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}  # fmt: skip
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
MILLION = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "sliding_window": None}
# The family's configuration, its tokenizer (of version 0.3 with as many tokens as the real one), the mode.
FAMILIES: dict[str, tuple[Any, dict[str, Any], Any, str]] = {
    "mistral 7b v0.1": (
        MistralConfig,
        {"sliding_window": 4096},
        lambda: tokenizers.of(*tokenizers.MISTRAL_V1, sentencepiece=True),
        "instruction",
    ),
    "mistral 7b v0.3": (
        MistralConfig,
        MILLION,
        lambda: tokenizers.of(*tokenizers.MISTRAL_V3, sentencepiece=True, words=32_768),
        "instruction",
    ),
    "mistral 7b instruct v0.3": (MistralConfig, MILLION, lambda: tokenizers.instruct("mistral-0.3"), "chat"),
    "llama 3.1 instruct": (
        LlamaConfig,
        {"rope_parameters": LLAMA_3},
        lambda: tokenizers.instruct("llama-3"),
        "instruction",
    ),
    "qwen 2.5 instruct, tied embeddings": (
        Qwen2Config,
        {"tie_word_embeddings": True},
        lambda: tokenizers.instruct("qwen-2.5"),
        "chat",
    ),
    "qwen 3": (Qwen3Config, {"head_dim": 16}, lambda: tokenizers.instruct("qwen-3"), "chat"),
}


def imported(family: str, folder: Path) -> Path:
    """A base model of a family as its import leaves it."""
    make, more, tokenizer_of, _ = FAMILIES[family]
    tokenizer = tokenizer_of()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    config = make(vocab_size=len(tokenizer), **SHAPE, **more, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return tokenizers.base(tokenizer, folder)


def raw(mode: str, folder: Path) -> Path:
    """Rows of sums; those for instruction tuning have no template, so that of an instruct model is its chat template."""
    pairs = [(f"what is {n} plus {n * 3}", f"it is {4 * n}") for n in range(1, 90)]
    rows = [
        {"instruction": "Add up.", "context": asked, "response": answered}
        if mode == "instruction"
        else {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}
        for asked, answered in pairs
    ]
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_each_family_goes_from_raw_rows_to_an_evaluated_model(
    family: str, tmp_path: Path, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(general_text, "PASSAGES", general_text.PASSAGES[:3])  # with 32,768 tokens all of them take long
    mode: Any = FAMILIES[family][3]
    base = imported(family, tmp_path / "base")
    job = PrepareJob(
        str(raw(mode, tmp_path / "raw")),
        tmp_path / "work" / "report",
        mode,
        tokenizer=base,
        publish_to="s3://b/datasets",
    )
    card = prepare_data.prepare(job, tmp_path / "work", InstancesEngine(tmp_path / "work", Instances(), ""), 0.0)
    splits = shared_folder / "b" / "datasets" / card["dataset_digest"]

    settings = Hyperparameters(lora_r=4, epoch=2.0, learning_rate=1e-2, per_device_train_batch_size=8)
    fine_tune.run(FineTuneJob(splits / "train", splits / "validation", base, tmp_path / "model", settings))
    evaluate.run(EvaluateJob(splits / "test", base, tmp_path / "model", tmp_path / "evaluation", [], 4, 0))
    found = evaluation.read(tmp_path / "evaluation")
    loss = found.metrics["loss"].values
    assert loss["tuned"].value < loss["base"].value  # type: ignore[operator]
    # What is served is the family's own architecture, as transformers loads it.
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, tmp_path / "model"))
    assert type(after) is type(before) and after.state_dict().keys() == before.state_dict().keys()
    # What was recorded at the evaluation is what a server makes of the same question.
    if "instruct" in family or mode == "chat":
        row = evaluation.read_answers(tmp_path / "evaluation")[0]
        first = "Add up." if mode == "instruction" else "what is"
        question = row.prompt[row.prompt.index(first) :].split("<|")[0].split("[")[0]
        messages = [{"role": "user", "content": question}]
        tuned = load_tokenizer(tmp_path / "model")
        rendered = tuned.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert tuned(rendered, add_special_tokens=False)["input_ids"] == tuned(row.prompt)["input_ids"]
        assert (tmp_path / "model" / files.CHAT_FORMAT_FILE).is_file()
