"""FineTune as a process: killed, stopped and resumed; and as several processes that train together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline_steps.contract import dataset, files
from pipeline_steps.encoding import encode_all, pad, token_losses
from pipeline_steps.models import load_model, load_tokenizer
from pipeline_steps.text_encoder import TextEncoder
from pipeline_steps.training.checkpoints import CHECKPOINT_FILE

REPOSITORY = Path(__file__).parents[2]
SETTINGS = {
    "epoch": "4", "learning_rate": "1e-2", "per_device_train_batch_size": "4", "gradient_accumulation_steps": "1",
    "max_input_length": "256", "eval_steps": "6", "save_steps": "4", "lora_dropout": "0.1",
}  # fmt: skip


class Job:
    """A training job's folders, and its process."""

    def __init__(self, folder: Path, base_model: Path, splits: Path, **settings: str) -> None:
        self.folder, self.output, self.checkpoints = folder, folder / "model", folder / "checkpoints"
        data = folder / "input" / "data"
        data.mkdir(parents=True)
        for channel, source in (
            ("train", splits / "train"),
            ("validation", splits / "validation"),
            ("model", base_model),
        ):
            (data / channel).symlink_to(source)
        self.configure(**settings)
        self.checkpoints.mkdir()

    def configure(self, **settings: str) -> None:
        config = self.folder / "input" / "config" / "hyperparameters.json"
        config.parent.mkdir(exist_ok=True)
        config.write_text(json.dumps(SETTINGS | settings), encoding="utf-8")

    def start(self, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        arguments = ["--input", self.folder / "input", "--output", self.output, "--checkpoints", self.checkpoints]
        return subprocess.Popen(
            [sys.executable, *launcher, "-m", "pipeline_steps", "fine-tune", *arguments],
            cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, launcher: tuple[str, ...] = ()) -> str:
        process = self.start(launcher)
        log, _ = process.communicate(timeout=240)
        assert process.returncode == 0, log
        return log

    def report(self) -> Any:
        return json.loads((self.output / files.TRAINING_FILE).read_text(encoding="utf-8"))


def until(process: subprocess.Popen[str], word: str) -> str:
    """Read the process's log up to a line with `word`."""
    assert process.stdout
    seen = []
    for line in process.stdout:
        seen.append(line)
        if word in line:
            return "".join(seen)
    raise AssertionError("".join(seen))


@pytest.fixture(scope="module")
def undisturbed(base_model: Path, splits: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = Job(tmp_path_factory.mktemp("undisturbed"), base_model, splits)
    job.run()
    return job


def weights(folder: Path) -> dict[str, Any]:
    return dict(load_model(folder).state_dict())


@pytest.mark.parametrize("killed_at", [5, 21, 47])
def test_a_run_killed_at_any_step_goes_on_to_the_very_same_model(
    undisturbed: Job, base_model: Path, splits: Path, tmp_path: Path, killed_at: int
) -> None:
    job = Job(tmp_path / "job", base_model, splits)
    process = job.start()
    until(process, f"progress: train {killed_at}/48")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    log = job.run()
    assert "going on after step" in log
    expected, found = undisturbed.report(), job.report()
    assert found["curve"] == expected["curve"]
    assert (found["validation"], found["best_step"]) == (expected["validation"], expected["best_step"])
    assert found["tokens"] == expected["tokens"]
    there = weights(undisturbed.output)
    assert all(torch.equal(there[name], weight) for name, weight in weights(job.output).items())


def test_sigterm_writes_a_checkpoint_and_leaves_the_best_adapter(
    undisturbed: Job, base_model: Path, splits: Path, tmp_path: Path
) -> None:
    job = Job(tmp_path / "job", base_model, splits, save_steps="1000")
    process = job.start()
    until(process, "progress: train 15/48")
    process.terminate()
    log, _ = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert "its checkpoint is written" in log
    assert (job.output / files.ADAPTER_FOLDER / "adapter_model.safetensors").is_file()
    assert not (job.output / files.TRAINING_FILE).exists()
    assert len(list(job.checkpoints.glob(f"step-*/{CHECKPOINT_FILE}"))) == 1
    job.run()
    assert job.report()["curve"] == undisturbed.report()["curve"]


def test_an_unfinished_or_damaged_checkpoint_is_passed_over(
    undisturbed: Job, base_model: Path, splits: Path, tmp_path: Path
) -> None:
    job = Job(tmp_path / "job", base_model, splits, save_total_limit="100")
    process = job.start()
    until(process, "progress: train 14/48")
    process.kill()
    process.communicate()
    newest = max(marker.parent for marker in job.checkpoints.glob(f"step-*/{CHECKPOINT_FILE}"))
    (newest / CHECKPOINT_FILE).unlink()
    log = job.run()
    assert f"going on after step {int(newest.name.removeprefix('step-')) - 4} of 48" in log
    assert job.report()["curve"] == undisturbed.report()["curve"]


def test_only_the_newest_checkpoint_is_kept_and_nothing_unfinished(undisturbed: Job) -> None:
    assert [path.name for path in undisturbed.checkpoints.iterdir()] == ["step-00000048"]


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(
    base_model: Path, splits: Path, tmp_path: Path
) -> None:
    job = Job(tmp_path / "job", base_model, splits)
    job.run()
    job.configure(learning_rate="5e-3")
    process = job.start()
    log, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "is of another run (learning_rate: 0.01 there, 0.005 now)" in log


@pytest.mark.parametrize(
    "settings",
    [{}, {"bits": "4", "learning_rate": "3e-3"}, {"peft_type": "None", "learning_rate": "1e-3"}],
    ids=["lora", "qlora", "full"],
)
def test_two_processes_train_as_one_does_at_the_same_global_batch(
    settings: dict[str, str], base_model: Path, wide_base_model: Path, splits: Path, tmp_path: Path
) -> None:
    common = {"lora_dropout": "0", "epoch": "1", **settings}
    if "bits" in settings:
        base_model = wide_base_model
    alone = Job(tmp_path / "alone", base_model, splits, **common)
    alone.run()
    two = Job(tmp_path / "two", base_model, splits, per_device_train_batch_size="2", **common)
    log = two.run(("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29611"))
    expected, found = alone.report(), two.report()
    assert (expected["devices"], found["devices"]) == (1, 2)
    losses = [[point["train_loss"] for point in report["curve"]] for report in (expected, found)]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert found["validation_loss"]["after"] == pytest.approx(expected["validation_loss"]["after"], rel=5e-3)
    assert log.count("progress: train 12/12") == 1, "one process tells the progress"


def test_two_processes_write_the_best_step_and_not_the_last_one(base_model: Path, splits: Path, tmp_path: Path) -> None:
    settings = {
        "peft_type": "None", "learning_rate": "1e-2", "epoch": "200", "max_train_samples": "2", "eval_steps": "2",
        "lora_dropout": "0", "per_device_train_batch_size": "1",
    }  # fmt: skip
    job = Job(tmp_path / "job", base_model, splits, **settings)
    job.run(("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29613"))
    report = job.report()
    assert report["ended_by"].startswith("early stopping") and report["best_step"] < report["steps"]
    model, tokenizer = load_model(job.output).float(), load_tokenizer(job.output)
    _, rows = dataset.read_split(splits / "validation", "validation")
    nats, _ = token_losses(model, *pad(encode_all(rows, TextEncoder.of(tokenizer)), tokenizer.pad_token_id))
    assert nats.mean().item() == pytest.approx(report["validation_loss"]["after"], rel=0.02)


def test_two_processes_killed_go_on_together(base_model: Path, splits: Path, tmp_path: Path) -> None:
    common = {"peft_type": "None", "learning_rate": "1e-3", "epoch": "2", "per_device_train_batch_size": "2"}
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29612")
    whole = Job(tmp_path / "whole", base_model, splits, **common)
    whole.run(launcher)
    job = Job(tmp_path / "job", base_model, splits, **common)
    process = job.start(launcher)
    until(process, "progress: train 10/24")
    process.terminate()  # torch's launcher passes it on
    log, _ = process.communicate(timeout=120)
    assert "its checkpoint is written" in log
    time.sleep(0.5)
    assert "going on after step" in job.run(launcher)
    assert job.report()["curve"] == whole.report()["curve"]
