"""`finetune validate-data` gives the verdict of the step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.aws import REPOSITORY, STEPS_PYTHON
from pipeline_steps.contract import files

BROKEN = REPOSITORY / "examples" / "broken"


def mode_of(folder: Path) -> str:
    suffix = folder.name.rsplit("-", 1)[-1]
    return suffix if suffix in ("chat", "domain") else "instruction"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def validate(folder: Path, mode: str, report: Path) -> subprocess.CompletedProcess[str]:
    return run(
        sys.executable, "-m", "cli", "validate-data", str(folder), "--mode", mode, "--report", str(report)
    )  # fmt: skip


@pytest.mark.parametrize(
    "folder", sorted(path for path in BROKEN.iterdir() if path.is_dir()), ids=lambda path: path.name
)
def test_every_broken_example_is_refused_in_the_words_of_the_step(folder: Path, tmp_path: Path) -> None:
    step = run(
        str(STEPS_PYTHON), "-m", "pipeline_steps", "prepare-data",
        "--raw", str(folder), "--output", str(tmp_path / "step"), "--tuning_mode", mode_of(folder),
    )  # fmt: skip
    command = validate(folder, mode_of(folder), tmp_path / "command")
    assert (step.returncode, command.returncode) == (1, 1)
    assert step.stderr.startswith("error: ") and command.stderr == step.stderr
    assert "is refused, for the reasons above" in " ".join(command.stdout.split())
    assert "Traceback" not in command.stdout + command.stderr


def test_the_bad_rows_of_a_refused_dataset_lie_in_the_report_with_their_reasons(tmp_path: Path) -> None:
    finished = validate(BROKEN / "null-value", "instruction", tmp_path)
    (row,) = map(json.loads, (tmp_path / files.QUARANTINE_FILE).read_text("utf-8").splitlines())
    assert (row["file"], row["line"]) == ("train/train.jsonl", 2) and "'context' is null" in row["problems"][0]
    assert f"bad rows, with their reasons (1): {tmp_path / files.QUARANTINE_FILE}" in finished.stdout
    assert [path.name for path in tmp_path.iterdir()] == [files.QUARANTINE_FILE]
