"""The data on its way to JumpStart's training and the model on its way back, with a script of JumpStart's contract between."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline_steps import evaluate, from_jumpstart, to_jumpstart
from pipeline_steps.contract import dataset, evaluation, files, json_files
from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import StepError
from pipeline_steps.evaluate import EvaluateJob
from tests.pipeline_steps.conftest import write_split

SCRIPT = Path(__file__).parents[1] / "jumpstart" / "transfer_learning.py"
# The article's overrides; the learning rate is one that moves a model of a few thousand weights.
HYPERPARAMETERS = {
    "epoch": "1", "per_device_train_batch_size": "2", "gradient_accumulation_steps": "2", "max_input_length": "-1",
    "learning_rate": "0.01", "peft_type": "None", "lora_r": "4", "lora_alpha": "8", "seed": "10", "logging_steps": "8",
}  # fmt: skip


def train(data: Path, base_model: Path, work: Path, **changed: str) -> dict[str, Any]:
    """Run the script as its container does; returns what DescribeTrainingJob says of it. The model is in work/tuned."""
    told = json.loads((data / "report" / files.JUMPSTART_DATA_FILE).read_text(encoding="utf-8"))
    hyperparameters = {
        **HYPERPARAMETERS,
        **{name: told[name] for name in ("instruction_tuned", "chat_dataset")},
        **changed,
    }
    for folder in ("code", "model"):
        (work / folder).mkdir(parents=True)
    with tarfile.open(work / "model" / "base.tar.gz", "w:gz") as archive:
        for file in base_model.iterdir():
            archive.add(file, file.name)
    channels = {
        "TRAINING": data / "jumpstart-training",
        "VALIDATION": data / "jumpstart-validation",
        "MODEL": work / "model",
    }
    environment = {
        **os.environ,
        "SM_MODEL_DIR": str(work / "tuned"),
        **{f"SM_CHANNEL_{name}": str(path) for name, path in channels.items()},
    }
    flags = [part for name, value in hyperparameters.items() for part in (f"--{name}", value)]
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), *flags],
        cwd=work / "code",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "'eval_loss': " in finished.stdout and "'loss': " in finished.stdout
    metrics = [{"MetricName": f"huggingface-textgeneration:{name}-loss", "Value": 1.5} for name in ("eval", "train")]
    return {
        "TrainingJobName": "pipelines-x-FineTune-y",
        "HyperParameters": hyperparameters,
        "TrainingTimeInSeconds": 7,
        "FinalMetricDataList": metrics,
    }


def inputs_of(work: Path, splits: Path, base_model: Path) -> Path:
    """The inputs of FromJumpStart beside the `tuned` that is there."""
    for name, path in (("train", splits / "train"), ("validation", splits / "validation"), ("base", base_model)):
        (work / name).symlink_to(path)
    return work


@pytest.mark.parametrize(("peft_type", "method"), [("None", "full"), ("lora", "lora")])
def test_a_model_that_jumpstart_trained_is_evaluated_like_ours(
    splits: Path, base_model: Path, tmp_path: Path, peft_type: str, method: str
) -> None:
    to_jumpstart.run(splits, tmp_path / "data")
    work = tmp_path / "job"
    job = train(tmp_path / "data", base_model, work, peft_type=peft_type)
    assert (work / "tuned" / "adapter_config.json").exists() == (peft_type == "lora")
    model = tmp_path / "model"
    from_jumpstart.run(inputs_of(work, splits, base_model), model, job)

    names = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert {
        "config.json",
        "model.safetensors",
        "prompt_template.json",
        "model.py",
        "training.json",
        "tokenizer.json",
    } <= names
    assert ("adapter/adapter_model.safetensors" in names) == (peft_type == "lora")
    evaluate.run(EvaluateJob(splits / "test", base_model, model, tmp_path / "evaluation", [], 4, 0))
    found = evaluation.read(tmp_path / "evaluation")
    loss = found.metrics["loss"].values
    assert loss["tuned"].value < loss["base"].value  # type: ignore[operator]
    assert (found.training.method, found.training.seconds) == (method, 7.0)
    assert found.training.validation == [evaluation.Point(0, 1.5)]
    assert found.ancestors.training_job == job["TrainingJobName"]
    assert found.overlaps == [evaluation.Overlap("tuned", 0, [])]


def test_rows_are_what_our_own_training_reads(splits: Path, tmp_path: Path) -> None:
    to_jumpstart.run(splits, tmp_path)
    template = json.loads((tmp_path / "jumpstart-training" / "template.json").read_text(encoding="utf-8"))
    lines = (tmp_path / "jumpstart-training" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [(template["prompt"].format(**row), template["completion"].format(**row)) for row in map(json.loads, lines)]
    _, ours = dataset.read_split(splits / "train", "train")
    assert texts == [(row.prompt, row.completion) for row in ours]
    assert not (tmp_path / "jumpstart-validation" / "template.json").exists()
    assert len((tmp_path / "jumpstart-validation" / "validation.jsonl").read_text(encoding="utf-8").splitlines()) == 8
    told = json_files.read(tmp_path / "report" / files.JUMPSTART_DATA_FILE, 1)
    assert (told["instruction_tuned"], told["chat_dataset"]) == ("True", "False")


def prepared(folder: Path, mode: Any, rows: list[Example]) -> Path:
    for split in ("train", "validation"):
        info = write_split(folder / split, split, rows)
        write_split(folder / split, split, rows, replace(info, tuning_mode=mode, template=None))
    return folder


def test_of_a_dialog_every_answer_is_a_row_with_all_that_came_before(tmp_path: Path) -> None:
    dialog = Example("[INST] c [/INST]", " d", ends=True, history=(("[INST] a [/INST]", " b{x}"),))
    to_jumpstart.run(prepared(tmp_path / "in", "chat", [dialog]), tmp_path / "out")
    lines = (tmp_path / "out" / "jumpstart-training" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": "[INST] a [/INST]", "completion": " b{x}"},
        {"prompt": "[INST] a [/INST] b{x}[INST] c [/INST]", "completion": " d"},
    ]


def test_a_text_is_one_file_a_channel_with_nothing_of_it_lost(base_model: Path, tmp_path: Path) -> None:
    pieces = ["We serve consumers through stores.", "Net sales were 1.2 billion.\n", "Our vision is clear."]
    splits = prepared(tmp_path / "in", "domain", [Example("", piece, ends=False) for piece in pieces])
    to_jumpstart.run(splits, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "jumpstart-training").iterdir()] == ["train.txt"]
    text = (tmp_path / "out" / "jumpstart-training" / "train.txt").read_text(encoding="utf-8")
    assert text.split("\n\n") == [*(piece.rstrip("\n") for piece in pieces), ""]
    told = json_files.read(tmp_path / "out" / "report" / files.JUMPSTART_DATA_FILE, 1)
    assert told["instruction_tuned"] == "False"
    work = tmp_path / "job"
    job = train(
        tmp_path / "out", base_model, work, epoch="3", max_input_length="2048", peft_type="lora", logging_steps="1"
    )
    from_jumpstart.run(inputs_of(work, splits, base_model), tmp_path / "model", job)
    assert json_files.read(tmp_path / "model" / files.TRAINING_FILE, 1)["tuning_mode"] == "domain"
    assert not (tmp_path / "model" / files.PROMPT_TEMPLATE_FILE).exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "found: nothing"),
        ({"pytorch_model.bin": "p", "config.json": "{}"}, r"pickled weights \(pytorch_model\.bin\) are not loaded"),
        ({"adapter_config.json": "{}"}, r"adapter_config\.json without adapter_model\.safetensors"),
        (
            {"config.json": '{"model_type": "mistral", "hidden_size": 4096}', "model.safetensors": ""},
            "not one of the imported base model: hidden_size is 4096, 32.*import-model jumpstart://MODEL_ID",
        ),
        (
            {"adapter_config.json": '{"peft_type": "IA3", "use_dora": true}', "adapter_model.safetensors": ""},
            "the adapter cannot be merged here: peft_type is 'IA3'; use_dora is True",
        ),
    ],
)
def test_an_output_that_is_no_model_of_this_base_is_refused_with_what_it_has(
    splits: Path, base_model: Path, tmp_path: Path, content: dict[str, str], said: str
) -> None:
    (tmp_path / "tuned").mkdir()
    for name, text in content.items():
        (tmp_path / "tuned" / name).write_text(text, encoding="utf-8")
    with pytest.raises(StepError, match=said):
        from_jumpstart.run(inputs_of(tmp_path, splits, base_model), tmp_path / "model", {"TrainingJobName": "j"})
    assert not (tmp_path / "model" / files.TRAINING_FILE).exists()
    shutil.rmtree(tmp_path / "tuned")
