"""The entry of every container: exit codes, and where the reason of a failure is left."""

from pathlib import Path
from typing import Any

import pytest

from pipeline_steps import __main__ as entry
from pipeline_steps import deploy
from pipeline_steps.contract import messages
from pipeline_steps.contract.errors import StepError


@pytest.fixture
def failure_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "output" / "failure"
    monkeypatch.setattr(messages, "FAILURE_FILE", path)
    return path


def raising(error: Exception) -> Any:
    def main(arguments: list[str]) -> None:
        raise error

    return main


def test_what_the_user_can_mend_is_one_message_and_exit_code_1(
    failure_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deploy, "main", raising(StepError("the package is Rejected; approve it")))
    assert entry.main(["deploy"]) == 1
    assert failure_file.read_text(encoding="utf-8") == "the package is Rejected; approve it"
    assert capsys.readouterr().err == "error: the package is Rejected; approve it\n"


def test_a_fault_of_ours_is_named_in_the_reason_and_keeps_its_traceback(
    failure_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "main", raising(KeyError("EndpointStatus")))
    with pytest.raises(KeyError):
        entry.main(["deploy"])
    assert failure_file.read_text(encoding="utf-8").startswith("KeyError: 'EndpointStatus'")


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["train"], 2)])
def test_usage(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(arguments) == code
    output = "".join(capsys.readouterr())
    for step in ("prepare-data", "fine-tune", "evaluate", "deploy"):
        assert step in output
