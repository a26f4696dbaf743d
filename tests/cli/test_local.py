"""Local AWS as the commands run it: Ctrl-C ends all of it, and two of them do not share a folder."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli import local
from cli.aws import ADDRESS_FILE, REPOSITORY, local_address
from cli.console import CommandError
from config.settings import load

RUN = """
import pathlib, signal, sys, time
from cli import local
from config.settings import load
# As in a terminal: what a shell starts in the background inherits an ignored SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
with local.running(load("local"), pathlib.Path(sys.argv[1])) as aws:
    print(aws.pid, flush=True)
    time.sleep(60)
"""


def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = subprocess.Popen(
        [sys.executable, "-c", RUN, str(state)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    server = int(command.stdout.readline())
    assert Path(f"/proc/{server}").exists()
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=30)
    assert not Path(f"/proc/{server}").exists()
    assert not (state / ADDRESS_FILE).exists()


def test_a_second_local_aws_in_the_same_folder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    settings = load("local")
    with local.running(settings, tmp_path / "state") as first:
        with (
            pytest.raises(CommandError, match=f"runs already at {first.url}"),
            local.running(settings, tmp_path / "state"),
        ):
            pass
        assert local_address(tmp_path / "state") == first.url


def test_what_an_earlier_run_left_behind_after_a_crash_is_no_obstacle(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / ADDRESS_FILE).write_text('{"url": "http://localhost:1"}', encoding="utf-8")
    started = time.monotonic()
    with local.running(load("local"), state) as aws:
        assert local_address(state) == aws.url
    assert time.monotonic() - started < 60
