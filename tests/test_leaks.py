"""The check for what tests leave behind finds it, and a run that leaves nothing passes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def run(tmp_path: Path, options: list[str], *lines: str) -> subprocess.CompletedProcess[str]:
    """A run of pytest, with our conftest, over one test that consists of `lines`."""
    body = "\n    ".join(lines)
    (tmp_path / "conftest.py").write_text((REPOSITORY / "tests" / "conftest.py").read_text(encoding="utf-8"))
    (tmp_path / "test_it.py").write_text(f"import socket, subprocess, tempfile\n\ndef test_it():\n    {body}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(tmp_path)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [[], ["-n", "1"]], ids=["alone", "side by side"])
def test_everything_that_a_test_leaves_behind_is_named_and_fails_the_run(tmp_path: Path, options: list[str]) -> None:
    finished = run(
        tmp_path,
        options,
        "subprocess.Popen(['sleep', '301'], start_new_session=True)",
        "subprocess.run(['sh', '-c', 'sleep 302 &'])",  # its parent has ended
        "global kept; kept = socket.create_server(('127.0.0.1', 0))",
        "tempfile.mkdtemp(prefix='forgotten-')",
    )
    for process in re.findall(r"process (\d+): sleep 30", finished.stderr):
        os.kill(int(process), signal.SIGKILL)
    assert "1 passed" in finished.stdout and finished.returncode == 1
    assert "LEFT BEHIND by the tests:" in finished.stderr
    for said in (": sleep 301", ": sleep 302", "listened on by the tests themselves", "temporary file forgotten-"):
        assert said in finished.stderr


def test_a_run_that_leaves_nothing_passes(tmp_path: Path) -> None:
    finished = run(tmp_path, [], "tempfile.TemporaryDirectory().cleanup()", "subprocess.run(['true'])")
    assert finished.returncode == 0 and "LEFT BEHIND" not in finished.stderr
