"""The command line itself: help, wrong input, exit codes."""

import subprocess
import sys

import pytest

from cli.aws import REPOSITORY


def finetune(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_help_names_every_command() -> None:
    finished = finetune("--help")
    assert finished.returncode == 0
    for command in ("demo", "local", "import-model", "upload", "start", "status", "invoke"):
        assert command in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--mode", "chat"], "--mode is 'chat'; allowed: instruction, domain"),
        (["start", "-p", "Epoch"], "expected Name=Value"),
        (["status", "-e", "nowhere"], "choose one of dev, local, prod"),
        (["status", "-e", "local"], "make local"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_1(arguments: list[str], said: str) -> None:
    finished = finetune(*arguments)
    assert finished.returncode == 1
    assert said in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr
