"""FineTune: what is learned, what is not, and that it is."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from pipeline_steps.contract import dataset, files, json_files
from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.hyperparameters import Hyperparameters
from pipeline_steps.encoding import NOT_TRAINED, encode_all, pad, read_encoded, token_losses, windows
from pipeline_steps.fine_tune import FineTuneJob, run, with_time_that_is_paid
from pipeline_steps.models import load_model, load_tokenizer
from pipeline_steps.text_encoder import TextEncoder
from pipeline_steps.training.batches import Plan, divide
from pipeline_steps.training.optimizer import learning_rate_share
from tests.pipeline_steps.conftest import encode, write_split

QUICK = Hyperparameters(
    epoch=6.0,
    learning_rate=1e-2,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    max_input_length=256,
    early_stopping_patience=100,
)


def job(base: Path, splits: Path, output: Path, hyperparameters: Hyperparameters = QUICK) -> FineTuneJob:
    return FineTuneJob(splits / "train", splits / "validation", base, output, hyperparameters)


@pytest.fixture(scope="module")
def tuned(base_model: Path, splits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tuned")
    run(job(base_model, splits, output))
    return output


# ---------------------------------------------------------------- tokens and their training decisions


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60), st.text(min_size=1, max_size=60), st.booleans())
def test_exactly_the_completion_and_the_end_are_trained(base_model: Path, prompt: str, answer: str, ends: bool) -> None:
    tokenizer = load_tokenizer(base_model)
    encoded = encode(Example(prompt, answer, ends), tokenizer)
    trained = [label for label in encoded.labels if label != NOT_TRAINED]
    expected = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * ends
    assert trained == expected
    assert len(encoded.ids) == len(encoded.labels)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60), st.text(min_size=1, max_size=60))
def test_the_prompt_that_is_served_is_a_prefix_of_the_text_that_was_trained(
    base_model: Path, prompt: str, answer: str
) -> None:
    from pipeline_steps.evaluate import prompt_ids

    tokenizer = load_tokenizer(base_model)
    tokenizer.padding_side = "left"
    for begins in (False, True):
        if begins:  # as Mistral's tokenizer does by itself
            tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        trained = encode(Example(prompt, answer, True), tokenizer).ids
        evaluated = prompt_ids([Example(prompt, answer, True)], TextEncoder.of(tokenizer))[0]
        served = tokenizer(prompt)["input_ids"]  # a server knows nothing but the tokenizer
        assert trained[: len(served)] == served == evaluated
        assert (trained[0] == tokenizer.bos_token_id) == begins


def test_padding_is_not_end_of_sequence_even_where_the_tokenizer_says_so(base_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base_model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    reloaded = load_tokenizer(tmp_path)
    assert reloaded.pad_token_id != reloaded.eos_token_id


def test_padded_together_and_one_by_one_have_the_same_loss(base_model: Path, splits: Path) -> None:
    tokenizer, model = load_tokenizer(base_model), load_model(base_model).float().eval()
    _, rows = dataset.read_split(splits / "train", "train")
    encoded = encode_all(
        [*rows[:6], Example("", "a much longer text than the others " * 3, True)], TextEncoder.of(tokenizer)
    )
    with torch.inference_mode():
        together, which = token_losses(model, *pad(encoded, tokenizer.pad_token_id))
        for row, one in enumerate(encoded):
            alone, _ = token_losses(model, *pad([one], tokenizer.pad_token_id))
            assert len(alone) == one.trained_tokens
            torch.testing.assert_close(together[which == row], alone, rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_one_that_transformers_computes(base_model: Path, splits: Path) -> None:
    tokenizer, model = load_tokenizer(base_model), load_model(base_model).float().eval()
    _, rows = dataset.read_split(splits / "train", "train")
    ids, mask, labels = pad(encode_all(rows[:4], TextEncoder.of(tokenizer)), tokenizer.pad_token_id)
    with torch.inference_mode():
        ours, _ = token_losses(model, ids, mask, labels)
        theirs = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert ours.mean().item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_row_that_is_too_long_loses_its_end_and_a_domain_text_goes_on(base_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base_model)
    rows = [Example("p" * 10, "x" * 100, True), Example("q" * 50, "y", True), Example("", "z", True)]
    info = write_split(tmp_path, "train", rows, tokenizer=tokenizer)
    cut = read_encoded(tmp_path, info, TextEncoder.of(tokenizer), 32)
    assert [len(one.ids) for one in cut] == [32, 2]  # of the second row only the prompt would be left
    assert cut[0].trained_tokens == 22 and cut[0].labels[-1] != tokenizer.eos_token_id
    windowed = read_encoded(tmp_path, replace(info, tuning_mode="domain"), TextEncoder.of(tokenizer), 32)
    assert sum(one.trained_tokens for one in windowed) >= 100
    assert max(len(one.ids) for one in windowed) == 32


def test_token_ids_of_another_tokenizer_are_refused(base_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base_model)
    info = write_split(tmp_path, "train", [Example("p", "c", True)], tokenizer=tokenizer)
    with pytest.raises(StepError, match="prepare the dataset for this base model"):
        read_encoded(tmp_path, replace(info, tokenizer_digest="0" * 64), TextEncoder.of(tokenizer), 32)


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=3), st.text(max_size=20))
def test_every_answer_of_a_dialog_is_learned_and_no_question(
    base_model: Path, history: list[tuple[str, str]], last: str
) -> None:
    tokenizer = load_tokenizer(base_model)
    encoded = encode(Example("last?", f"{last}!", True, tuple(history)), tokenizer)
    learned = tokenizer.decode([label for label in encoded.labels if label != NOT_TRAINED])
    assert learned == "".join(f"{answer}</s>" for answer in [*(answer for _, answer in history), f"{last}!"])


def test_nothing_to_learn_is_an_error(base_model: Path) -> None:
    with pytest.raises(StepError, match="none of the 1 rows has a token to learn"):
        encode_all([Example("only a prompt", "", False)], TextEncoder.of(load_tokenizer(base_model)))


def test_a_long_text_is_divided_into_windows_without_a_loss(base_model: Path) -> None:
    whole = encode(Example("", "x" * 100, True), load_tokenizer(base_model))
    pieces = list(windows(whole, 32))
    assert [token for piece in pieces for token in piece.ids] == whole.ids
    assert max(len(piece.ids) for piece in pieces) == 32


# ---------------------------------------------------------------- order and schedule


@given(st.integers(1, 200), st.integers(1, 5), st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.integers(1, 1000))
def test_an_epoch_sees_every_row_once_in_an_order_that_the_seed_decides(
    rows: int, devices: int, epochs: float, seed: int
) -> None:
    plan = Plan.of(rows, devices, replace(QUICK, epoch=epochs, seed=seed))
    order = [row for step in range(plan.steps) for row in plan.rows_of(step)]
    assert len(order) == math.ceil(rows * epochs)
    for start in range(0, rows * int(epochs), rows):
        assert sorted(order[start : start + rows]) == list(range(rows))
    assert order == [row for step in range(plan.steps) for row in plan.rows_of(step)]
    if rows > 50:
        assert order != [row for step in range(plan.steps) for row in replace(plan, seed=seed + 1).rows_of(step)]


def test_max_steps_overrides_the_epochs() -> None:
    assert Plan.of(10, 1, replace(QUICK, max_steps=7, epoch=1.0)).steps == 7


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 5))
def test_every_row_of_a_step_is_on_one_device_in_one_stream_that_fits(lengths: list[int], devices: int) -> None:
    divided = divide(range(len(lengths)), lengths, devices, tokens=100)
    assert sorted(row for device in divided for stream in device for row in stream) == list(range(len(lengths)))
    assert len({len(device) for device in divided}) == 1, "all devices have equally many streams"
    assert all(sum(lengths[row] for row in stream) <= 100 for device in divided for stream in device)
    loads = [sum(lengths[row] for stream in device for row in stream) for device in divided]
    assert max(loads) - min(loads) <= max(lengths), "no device has more to do by more than a row"


def test_the_learning_rate_warms_up_and_then_holds_or_falls() -> None:
    constant = replace(QUICK, warmup_ratio=0.2)
    assert [learning_rate_share(step, 10, constant) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    linear = replace(constant, lr_scheduler_type="linear")
    assert [learning_rate_share(step, 10, linear) for step in (2, 6, 9)] == [1.0, 0.5, 0.125]
    counted = replace(constant, warmup_steps=4)
    assert [learning_rate_share(step, 10, counted) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


# ---------------------------------------------------------------- the step


def test_training_lowers_the_loss_and_says_from_what_it_comes(tuned: Path) -> None:
    report = json_files.read(tuned / files.TRAINING_FILE, 1)
    assert report["validation_loss"]["after"] < report["validation_loss"]["before"] - 0.3
    assert report["curve"][-1]["train_loss"] < report["curve"][0]["train_loss"]
    assert report["steps"] == len(report["curve"]) == math.ceil(48 * 6 / 8)
    assert (report["dataset_digest"], report["base_model_digest"]) == ("d" * 64, "b" * 64)


def test_the_output_is_a_merged_model_with_adapter_tokenizer_and_template(tuned: Path) -> None:
    names = {path.relative_to(tuned).as_posix() for path in tuned.rglob("*") if path.is_file()}
    assert {
        "config.json", "model.safetensors", "tokenizer.json", "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors", "prompt_template.json", "hyperparameters.json", "training.json",
    } <= names  # fmt: skip
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert json_files.read(tuned / files.PROMPT_TEMPLATE_FILE, 1)["completion"] == "{answer}"


def test_the_merged_model_is_base_plus_adapter(base_model: Path, tuned: Path) -> None:
    from peft import PeftModel

    merged = load_model(tuned).float().eval()
    adapted = PeftModel.from_pretrained(load_model(base_model), tuned / files.ADAPTER_FOLDER).float().eval()
    ids = torch.randint(4, 200, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = merged(ids).logits - adapted(ids).logits
        apart = merged(ids).logits - load_model(base_model).float()(ids).logits
    assert difference.abs().max() < 0.1  # bfloat16 rounding of the merged weights
    assert apart.abs().max() > 0.5  # and the adapter does something


def test_the_tuned_model_ends_its_answers(base_model: Path, splits: Path, tmp_path: Path) -> None:
    from pipeline_steps.evaluate import prompt_ids

    # A tiny model needs many steps of all its weights to learn anything like an answer.
    thorough = replace(QUICK, peft_type="None", epoch=25.0, learning_rate=5e-3)
    run(job(base_model, splits, tmp_path, thorough))
    tokenizer, model = load_tokenizer(tmp_path), load_model(tmp_path).eval()
    tokenizer.padding_side = "left"
    _, rows = dataset.read_split(splits / "train", "train")
    inputs = tokenizer.pad({"input_ids": prompt_ids(rows[:8], TextEncoder.of(tokenizer))}, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    ended = (output[:, inputs["input_ids"].shape[1] :] == tokenizer.eos_token_id).any(dim=1)
    assert ended.float().mean() >= 0.75


def test_full_fine_tuning_leaves_no_adapter(base_model: Path, splits: Path, tmp_path: Path) -> None:
    run(job(base_model, splits, tmp_path, replace(QUICK, peft_type="None", epoch=1.0, learning_rate=1e-3)))
    assert not (tmp_path / files.ADAPTER_FOLDER).exists()
    assert (tmp_path / "model.safetensors").is_file()


def test_the_same_seed_gives_the_same_losses(base_model: Path, splits: Path, tmp_path: Path) -> None:
    def curve(name: str) -> Any:
        run(job(base_model, splits, tmp_path / name, replace(QUICK, epoch=1.0)))
        return json_files.read(tmp_path / name / files.TRAINING_FILE, 1)["curve"]

    assert curve("a") == curve("b")


def losses(output: Path) -> list[float]:
    return [point["train_loss"] for point in json_files.read(output / files.TRAINING_FILE, 1)["curve"]]


def test_how_a_steps_rows_are_cut_into_streams_changes_no_loss(
    base_model: Path, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(QUICK, epoch=1.0)
    run(job(base_model, splits, tmp_path / "together", short))
    monkeypatch.setattr("pipeline_steps.fine_tune.CPU_TOKENS", 1)  # streams of one or two rows
    run(job(base_model, splits, tmp_path / "one by one", short))
    assert losses(tmp_path / "one by one") == pytest.approx(losses(tmp_path / "together"), rel=2e-3)


def test_accumulation_and_batch_size_are_two_names_of_the_same_step(
    base_model: Path, splits: Path, tmp_path: Path
) -> None:
    run(job(base_model, splits, tmp_path / "a", replace(QUICK, epoch=1.0)))
    halved = replace(QUICK, epoch=1.0, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    run(job(base_model, splits, tmp_path / "b", halved))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_with_the_prompt_in_the_loss_more_tokens_are_learned(
    base_model: Path, splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = []
    for switch in (False, True):
        run(job(base_model, splits, tmp_path / str(switch), replace(QUICK, max_steps=1, train_on_prompt=switch)))
        learned.append(int(capsys.readouterr().out.split("of which ")[1].split()[0]))
    assert learned[1] > 2 * learned[0]


def test_the_best_step_is_kept_when_training_goes_on_too_long(base_model: Path, splits: Path, tmp_path: Path) -> None:
    settings_ = replace(QUICK, max_train_samples=2, epoch=200.0, eval_steps=2, early_stopping_patience=3)
    run(job(base_model, splits, tmp_path, settings_))
    report = json_files.read(tmp_path / files.TRAINING_FILE, 1)
    measured = {point["step"]: point["loss"] for point in report["validation"] if point["step"]}
    assert report["ended_by"].startswith("early stopping at step")
    assert report["steps"] < 50
    assert report["validation_loss"]["after"] == min(measured.values()) == measured[report["best_step"]]
    # What is written is that step, not the last one.
    merged, (_, rows) = load_model(tmp_path).float(), dataset.read_split(splits / "validation", "validation")
    tokenizer = load_tokenizer(tmp_path)
    nats, _ = token_losses(merged, *pad(encode_all(rows, TextEncoder.of(tokenizer)), tokenizer.pad_token_id))
    assert nats.mean().item() == pytest.approx(report["validation_loss"]["after"], rel=0.03)


def test_a_time_limit_ends_the_training_and_keeps_a_model(base_model: Path, splits: Path, tmp_path: Path) -> None:
    run(job(base_model, splits, tmp_path, replace(QUICK, epoch=1000.0, max_hours=1 / 3600)))
    report = json_files.read(tmp_path / files.TRAINING_FILE, 1)
    assert report["ended_by"] == "the limit of 0.000277778 hours"
    assert 0 < report["steps"] < 6000
    assert (tmp_path / "model.safetensors").is_file()


def test_a_cost_limit_is_the_time_that_it_pays_the_jobs_instances(
    base_model: Path, splits: Path, tmp_path: Path
) -> None:
    resources = tmp_path / "resourceconfig.json"
    resources.write_text(json.dumps({"current_instance_type": "ml.g5.12xlarge", "hosts": ["algo-1", "algo-2"]}))
    limited = with_time_that_is_paid(replace(QUICK, max_cost_usd=14.18), resources)
    assert limited.max_hours == pytest.approx(1.0)
    assert with_time_that_is_paid(replace(QUICK, max_cost_usd=14.18, max_hours=0.5), resources).max_hours == 0.5
    assert with_time_that_is_paid(replace(QUICK, max_cost_usd=6, usd_per_hour=1.5), resources).max_hours == 2
    resources.write_text(json.dumps({"current_instance_type": "ml.p99.large", "hosts": ["algo-1"]}))
    with pytest.raises(StepError, match=r"no price of ml.p99.large is known; set training.usd_per_hour"):
        with_time_that_is_paid(replace(QUICK, max_cost_usd=1), resources)


def test_fp8_training_learns_as_well_and_says_what_the_rounding_changed(
    tuned: Path, base_model: Path, splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(job(base_model, splits, tmp_path, replace(QUICK, fp8=True)))
    assert "fp8 changes the loss from" in capsys.readouterr().out
    exact, rounded = (json_files.read(folder / files.TRAINING_FILE, 1) for folder in (tuned, tmp_path))
    assert rounded["validation_loss"]["after"] == pytest.approx(exact["validation_loss"]["after"], rel=0.05)
    assert losses(tmp_path) != losses(tuned)


def test_mlflow_has_the_parameters_and_the_curves_of_the_training(
    base_model: Path, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("TRAINING_JOB_NAME", "job-7")
    folder = tmp_path / "mlruns"
    run(job(base_model, splits, tmp_path / "model", replace(QUICK, epoch=1.0, mlflow_tracking_uri=str(folder))))
    client = mlflow.MlflowClient(str(folder))
    (found,) = client.search_runs([client.get_experiment_by_name("fine-tune").experiment_id])
    assert (found.info.run_name, found.info.status) == ("job-7", "FINISHED")
    assert found.data.params["learning_rate"] == "0.01" and found.data.params["dataset"] == "d" * 64
    history = client.get_metric_history(found.info.run_id, "train_loss")
    assert [point.value for point in sorted(history, key=lambda point: point.step)] == losses(tmp_path / "model")
    assert client.get_metric_history(found.info.run_id, "eval_loss")


def test_a_tracking_server_that_fails_ends_the_tracking_and_not_the_training(
    base_model: Path, splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in-the-way").write_text("a file where the folder should be")
    nowhere = str(tmp_path / "in-the-way")
    run(job(base_model, splits, tmp_path / "model", replace(QUICK, max_steps=1, mlflow_tracking_uri=nowhere)))
    assert "tracking ends, training goes on" in capsys.readouterr().out
    assert "failed at its start" in json_files.read(tmp_path / "model" / files.TRAINING_FILE, 1)["tracking_lost"]


# ---------------------------------------------------------------- bad input


def test_an_mlflow_server_without_its_package_is_told_before_the_training(
    base_model: Path, splits: Path, tmp_path: Path
) -> None:
    arn = "arn:aws:sagemaker:us-east-1:123456789012:mlflow-tracking-server/x"
    with pytest.raises(StepError, match="the image lacks sagemaker_mlflow; name an image"):
        run(job(base_model, splits, tmp_path, replace(QUICK, mlflow_tracking_uri=arn)))


def test_a_training_that_falls_apart_is_ended_with_what_to_change(
    base_model: Path, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline_steps.training import batches

    real, calls = batches.Stream.loss, iter(range(10_000))
    monkeypatch.setattr(batches.Stream, "loss", lambda stream, model: real(stream, model) * max(1.0, next(calls) / 20))
    with pytest.raises(StepError, match=r"loss has risen from .* at step \d+ of 300 .* lower learning_rate"):
        run(job(base_model, splits, tmp_path, replace(QUICK, epoch=50.0, evaluation_strategy="no")))
    assert not (tmp_path / files.TRAINING_FILE).exists()


def test_a_row_longer_than_the_models_window_is_refused_with_what_to_set(
    base_model: Path, splits: Path, tmp_path: Path
) -> None:
    narrow = tmp_path / "narrow"
    shutil.copytree(base_model, narrow)
    config = json.loads((narrow / "config.json").read_text(encoding="utf-8"))
    (narrow / "config.json").write_text(json.dumps(config | {"sliding_window": 16}), encoding="utf-8")
    with pytest.raises(StepError, match="attends to 16 only; set max_input_length to 16 or less"):
        run(job(narrow, splits, tmp_path / "out"))


def test_a_loss_that_is_no_number_stops_the_run_with_what_to_change(
    base_model: Path, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline_steps.training import batches

    real = batches.Stream.loss
    monkeypatch.setattr(batches.Stream, "loss", lambda stream, model: real(stream, model) * math.nan)
    with pytest.raises(StepError, match=r"loss is nan at step 1 of .* lower learning_rate"):
        run(job(base_model, splits, tmp_path))
    assert not (tmp_path / files.TRAINING_FILE).exists()


def test_channels_of_two_datasets_are_refused(base_model: Path, splits: Path, tmp_path: Path) -> None:
    info, rows = dataset.read_split(splits / "validation", "validation")
    write_split(tmp_path / "other", "validation", rows, replace(info, dataset_digest="e" * 64))
    mixed = replace(job(base_model, splits, tmp_path / "out"), validation=tmp_path / "other")
    with pytest.raises(StepError, match="both channels must come from the same preparation"):
        run(mixed)


def test_a_base_model_that_is_not_there_is_told_before_anything_is_loaded(splits: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"holds no model .*finetune import-model"):
        run(job(tmp_path, splits, tmp_path / "out"))


def test_the_container_entry_reads_hyperparameters_and_tells_failures(tmp_path: Path) -> None:
    from pipeline_steps.__main__ import main

    config = tmp_path / "config" / "hyperparameters.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"epohc": "1"}), encoding="utf-8")
    assert main(["fine-tune", "--input", str(tmp_path)]) == 1
    assert main(["no-such-step"]) == 2
    assert main(["--help"]) == 0
