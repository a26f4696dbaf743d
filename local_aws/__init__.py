"""AWS on this machine: moto's server, with SageMaker jobs, pipelines and endpoints that really run, events that arrive
and schedules that fire. `start` gives a running one; `python -m local_aws` is the same from a shell."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

STOP_SECONDS = 120  # for jobs and endpoints to end, and for state to be kept, before the server is killed
READY = "local AWS is ready at "


class LocalAwsError(Exception):
    """Local AWS did not start, or not end in order; the message holds the end of its log."""


@dataclass
class LocalAws:
    """A running local AWS: its URL (give it to any client as the endpoint) and its process."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """End it with everything that runs in it; returns when all is gone.

        Raises LocalAwsError if its end went wrong, so that its state was not kept.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()  # its containers die with it
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self.process.returncode > 0:
            raise LocalAwsError(f"local AWS did not end in order; the end of {self.log}:\n{_tail(self.log)}")

    def __enter__(self) -> "LocalAws":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(
    root: Path,
    images: dict[str, Path],
    port: int = 0,
    time_factor: float = 1.0,
    keep: Path | None = None,
    *,
    account: str | None = None,
    region: str | None = None,
    neighbours: Path | None = None,
) -> LocalAws:
    """Start local AWS as a process of its own and wait until it answers; `port` 0 takes a free one.

    `time_factor` is how many times faster the waits of services pass than on AWS (settings.py). With `keep` it goes on with
    the state in that folder, and leaves its own there at the end (survival.py). It is `account` in `region`, of the servers
    of other places that know each other by the folder `neighbours` (neighbours.py).
    Raises LocalAwsError with the end of its log if it does not come up.
    """
    command = [sys.executable, "-m", "local_aws", "--port", str(port), "--root", str(root)]
    command += ["--time-factor", str(time_factor)]
    if keep:
        command += ["--keep", str(keep)]
    for option, value in (("--account", account), ("--region", region), ("--neighbours", neighbours)):
        if value is not None:
            command += [option, str(value)]
    for name, folder in images.items():
        command += ["--image", f"{name}={folder}"]
    package_parent = str(Path(__file__).parent.parent)
    root.mkdir(parents=True, exist_ok=True)
    log = root / "server.log"
    with log.open("a", encoding="utf-8") as log_file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            env={**os.environ, "PYTHONPATH": package_parent},
            # Ctrl-C in the terminal goes to who started us, who then stops us in order.
            start_new_session=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith(READY):
        process.kill()
        process.wait()
        raise LocalAwsError(f"local AWS did not start; the end of {log}:\n{_tail(log)}")
    return LocalAws(line.removeprefix(READY).strip(), process, log)


def _tail(log: Path) -> str:
    return "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-20:])
