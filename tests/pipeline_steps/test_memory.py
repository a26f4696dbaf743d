"""The memory estimate: what fits is chosen before anything is loaded, and the estimate is held against measurements."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, MistralConfig

from pipeline_steps.contract.errors import StepError
from pipeline_steps.training import memory

MISTRAL_7B = MistralConfig(
    vocab_size=32000, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    intermediate_size=14336,
)  # fmt: skip
MEASURED = Path(__file__).parents[2] / "bench" / "results" / "gpu-finetune.json"
GPU_24 = 23.7e9  # bytes that an A10G or L4 shows
H100 = 85.1e9
LEVELS = ("nothing", "gate_up", "layer")


@pytest.mark.parametrize(
    ("case", "method", "tokens", "recompute"),
    [
        ("ours-lora", "lora", 12_288, "nothing"),
        ("ours-lora-8k-tokens", "lora", 8192, "nothing"),
        ("ours-lora-layer-again", "lora", 8192, "layer"),
        ("ours-qlora", "qlora", 8192, "layer"),
        ("ours-qlora-kept", "qlora", 12_288, "nothing"),
        ("ours-full", "full", 8192, "gate_up"),
    ],
)
def test_the_estimate_is_near_what_was_measured_on_a_gpu(case: str, method: Any, tokens: int, recompute: Any) -> None:
    rows = {row["case"]: row for row in json.loads(MEASURED.read_text(encoding="utf-8"))["rows"]}
    estimate = memory.fixed_bytes(MISTRAL_7B, method, 16, 1) + memory.stream_bytes(
        MISTRAL_7B, method, tokens, recompute
    )
    measured = rows[case]["peak_gb"] * 1e9
    # Too little would end in "out of memory"; RESERVED_BYTES and _USED_SHARE leave room for the rest.
    assert 0.97 * measured < estimate < 1.1 * measured + 1e9


@given(st.floats(8e9, 200e9), st.sampled_from(["lora", "qlora", "full"]), st.integers(16, 8192), st.integers(1, 8))
def test_what_is_chosen_fits_and_holds_the_longest_row(gpu: float, method: Any, longest: int, devices: int) -> None:
    try:
        plan = memory.plan(MISTRAL_7B, method, 16, longest, gpu, devices)
    except StepError as refused:
        assert "GB of GPU memory" in str(refused)
        return
    assert plan.bytes < gpu - memory.RESERVED_BYTES
    assert plan.tokens >= longest


def test_more_memory_is_never_used_for_computing_more_again() -> None:
    plans = [memory.plan(MISTRAL_7B, "lora", 16, 2048, size * 1e9) for size in (24, 32, 48, 80, 141)]
    levels = [LEVELS.index(plan.recompute) for plan in plans]
    assert levels == sorted(levels, reverse=True)
    assert plans[-1].tokens >= plans[-2].tokens


@pytest.mark.parametrize(
    ("method", "advice"), [("full", "use peft_type lora"), ("lora", "use bits 4 with peft_type lora")]
)
def test_what_does_not_fit_is_refused_with_the_estimate_and_what_to_change(method: Any, advice: str) -> None:
    with pytest.raises(StepError, match=r"needs about \d+\.\d GB of GPU memory .* this GPU has 16\.0 GB") as refused:
        memory.plan(MISTRAL_7B, method, 16, 8192, 16e9)
    assert advice in str(refused.value) and "max_input_length (now 8192)" in str(refused.value)


def test_checkpointing_that_is_asked_for_is_kept_to() -> None:
    assert memory.plan(MISTRAL_7B, "lora", 16, 512, H100, checkpointing="True").recompute == "layer"
    with pytest.raises(StepError, match="use bits 4 with peft_type lora, or gradient_checkpointing auto"):
        memory.plan(MISTRAL_7B, "lora", 16, 8192, GPU_24, checkpointing="False")


def test_a_training_that_no_gpu_of_the_instance_holds_is_refused_while_the_data_is_prepared(tmp_path: Path) -> None:
    from pipeline_steps.data.limits import refuse_what_no_gpu_holds
    from pipeline_steps.prepare_data import PrepareJob

    MISTRAL_7B.save_pretrained(tmp_path)
    job = PrepareJob("raw", tmp_path, "instruction", instance_type="ml.g5.12xlarge")
    said = refuse_what_no_gpu_holds(job, tmp_path, longest=2048)
    assert said and "FineTune on 1 x ml.g5.12xlarge needs about 1" in said and "of 22 GiB of each GPU (lora" in said
    with pytest.raises(
        StepError, match=r"FineTune on 1 x ml.g5.12xlarge would fail: training needs about .* use peft_type"
    ):
        refuse_what_no_gpu_holds(replace(job, peft_type="None"), tmp_path, longest=2048)
    assert refuse_what_no_gpu_holds(replace(job, instance_type="ml.p99.large"), tmp_path, longest=2048) is None


def test_a_model_that_fine_tune_does_not_compute_is_refused_while_the_data_is_prepared(tmp_path: Path) -> None:
    from pipeline_steps.data.limits import refuse_what_no_gpu_holds
    from pipeline_steps.prepare_data import PrepareJob

    GPT2Config().save_pretrained(tmp_path)
    job = PrepareJob("raw", tmp_path, "instruction", instance_type="ml.g5.12xlarge")
    with pytest.raises(StepError, match="would fail: this base model cannot be fine-tuned here: model_type is 'gpt2'"):
        refuse_what_no_gpu_holds(job, tmp_path, longest=512)
