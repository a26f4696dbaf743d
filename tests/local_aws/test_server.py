"""Start, stop and the refusal to start."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import local_aws
from tests.local_aws.conftest import wait_for

IMAGES = {"python": Path(sys.prefix)}


def test_it_listens_on_loopback_only(aws: local_aws.LocalAws) -> None:
    port = int(aws.url.rsplit(":", 1)[1])
    listening = subprocess.run(["cat", f"/proc/{aws.pid}/net/tcp"], capture_output=True, text=True, check=True).stdout
    addresses = {line.split()[1] for line in listening.splitlines()[1:] if line.split()[3] == "0A"}
    assert f"0100007F:{port:04X}" in addresses
    assert f"00000000:{port:04X}" not in addresses


def test_a_port_in_use_is_told_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(local_aws.LocalAwsError, match="choose another with --port"):
            local_aws.start(tmp_path, IMAGES, taken.getsockname()[1])


def test_an_image_without_a_bin_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(local_aws.LocalAwsError, match="is not REPOSITORY=FOLDER"):
        local_aws.start(tmp_path, {"python": tmp_path / "nowhere"})


def test_stopping_frees_the_port_and_ends_the_process(tmp_path: Path) -> None:
    running = local_aws.start(tmp_path, IMAGES)
    urllib.request.urlopen(f"{running.url}/moto-api/", timeout=5).close()
    running.stop()
    assert running.process.returncode == 0
    with socket.socket() as free:
        assert free.connect_ex(("127.0.0.1", int(running.url.rsplit(":", 1)[1]))) != 0


def test_it_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time, pathlib, local_aws\n"
            "aws = local_aws.start(pathlib.Path(sys.argv[1]), {'python': pathlib.Path(sys.prefix)})\n"
            "print(aws.pid, flush=True)\n"
            "time.sleep(60)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(local_aws.__file__).parent.parent,
    )
    assert starter.stdout is not None
    server = int(starter.stdout.readline())
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()

    def gone() -> bool:
        try:
            os.kill(server, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{server}/stat").read_text().split()[2] == "Z"

    wait_for(gone)


def test_help_names_every_flag() -> None:
    shown = subprocess.run([sys.executable, "-m", "local_aws", "--help"], capture_output=True, text=True, check=True)
    for flag in ("--port", "--root", "--image", "--account", "--region", "--neighbours"):
        assert flag in shown.stdout


def test_it_answers_within_seconds_of_its_start(tmp_path: Path) -> None:
    started = time.monotonic()
    local_aws.start(tmp_path, IMAGES).stop()
    assert time.monotonic() - started < 60  # far above the usual few seconds: only a hang fails
