"""The command line itself: help, wrong input, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.aws import REPOSITORY, local_address
from cli.console import CommandError


def finetune(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_help_names_every_command() -> None:
    finished = finetune("--help")
    assert finished.returncode == 0
    for command in ("demo", "local", "import-model", "upload", "report", "compare", "invoke"):
        assert command in finished.stdout
    for command in ("approve", "reject", "deploy", "rollback", "endpoints"):
        assert command in finished.stdout
    for command in ("start", "status", "logs", "history", "cost", "retry", "stop", "cleanup", "doctor"):
        assert command in finished.stdout
    assert "Exit codes: 0 done, 1 refused or failed" in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--mode", "dialogue"], "--mode is 'dialogue'; allowed: instruction, domain, chat"),
        (["start", "-p", "Epoch"], "expected Name=Value"),
        (["status", "-e", "nowhere"], "choose one of accounts, dev, local, private, prod"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_1(arguments: list[str], said: str) -> None:
    finished = finetune(*arguments)
    assert finished.returncode == 1
    assert said in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr


def test_where_bedrock_serves_there_is_no_endpoint_to_go_back_from(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nbase_model: {name: m}\nrelease: {target: bedrock}\n", encoding="utf-8")
    finished = finetune("rollback", "--yes", "-e", str(path))
    assert finished.returncode == 1 and "aws bedrock list-imported-models --name-contains mine" in finished.stdout


def test_without_a_running_local_aws_the_way_to_start_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="start it with 'make local'"):
        local_address(tmp_path)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("start --environment ", {"accounts", "dev", "local", "private", "prod"}),
        ("invoke -e accounts/", {"accounts/us", "accounts/eu"}),
        ("doctor -e pr", {"private", "prod"}),
        ("validate-data data --mode ", {"instruction", "domain", "chat"}),
        ("validate-data data --mode do", {"domain"}),
        ("ret", {"retry"}),
        ("cleanup --older", {"--older-than-days"}),
    ],
)
def test_a_shell_completes_environments_modes_commands_and_options(typed: str, offered: set[str]) -> None:
    words = f"finetune {typed}"
    environment = {
        **os.environ,
        "_FINETUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    command = [str(Path(sys.executable).with_name("finetune"))]
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert set(finished.stdout.split()) == offered, finished.stderr
