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


def validate(folder: Path, mode: str, report: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return run(
        sys.executable, "-m", "cli", "validate-data", str(folder), "--mode", mode, "--report", str(report), *flags
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


def test_the_limit_of_quarantined_rows_is_that_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    text = (REPOSITORY / "examples" / "domain" / "train" / "annual_reports.txt").read_text(encoding="utf-8")
    lines = [json.dumps({"text": paragraph}) for paragraph in text.split("\n\n") if paragraph.strip()]
    (tmp_path / "data" / "train" / "reports.jsonl").write_text(
        "\n".join([*lines, '{"text": 5}', "{"]), encoding="utf-8"
    )
    for allowed, code in ((2, 0), (1, 1)):
        environment = tmp_path / f"allows-{allowed}.yaml"
        environment.write_text(
            f"name: test\nbase_model:\n  name: none\ndataset:\n  max_quarantined_rows: {allowed}\n", encoding="utf-8"
        )
        report = tmp_path / f"report-{allowed}"
        finished = validate(tmp_path / "data", "domain", report, "--environment", str(environment))
        assert finished.returncode == code, finished.stdout + finished.stderr
        assert len((report / files.QUARANTINE_FILE).read_text("utf-8").splitlines()) == 2
    assert "2 rows are bad, at most 1 may be" in finished.stderr


def test_without_a_tokenizer_the_verdict_says_what_was_not_checked_and_is_no_success(tmp_path: Path) -> None:
    finished = validate(REPOSITORY / "examples" / "instruction", "instruction", tmp_path)
    said = " ".join(finished.stdout.split())
    assert finished.returncode == 3, finished.stderr
    assert "lengths, truncation and cost are not checked" in said and "--tokenizer FOLDER" in said
    assert "the data is accepted as far as it could be checked; the pipeline would still refuse it if" in said
    assert (tmp_path / files.DATA_CARD_PAGE).exists()


def test_a_document_is_cut_into_pieces_that_fit_so_it_is_accepted_without_a_tokenizer(tmp_path: Path) -> None:
    finished = validate(REPOSITORY / "examples" / "domain", "domain", tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "the data is accepted" in finished.stdout
