"""Run a command as a process with the container contract: /opt/ml, its own /tmp, its own process IDs, host name algo-N.

The process is isolated by bubblewrap where it is installed, else by `unshare` (util-linux) with enter_container.py inside.
"Images" are folders: an image's repository name stands for a folder whose bin/ comes first in PATH.
"""

import contextlib
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

ENTER_CONTAINER = Path(__file__).with_name("enter_container.py")
HOST_NAME = "algo-1"
HIDE = "hide:"  # before the folders that enter_container.py hides

log = logging.getLogger(__name__)


class ContainerError(Exception):
    """The container could not be started; the message says why and what to do."""


@dataclass(frozen=True)
class ContainerSpec:
    """What to run.

    `folder` becomes /opt/ml (read and write; the rest of the file system is read only, /tmp is empty and its own, and of the
    `hidden` folders only the image and what is `visible` is there).
    `command` is looked up in the image's bin/ first. `environment` is complete but for PATH, HOME and the like.
    `host` is the container's name and one of `hosts`, which all resolve: each to a loopback address of its own.
    `isolated` takes the network away, a loopback device of its own excepted; with `network` it is that network's device,
    which other containers share. `output` gets what the processes print, and `on_lines` the same as complete lines
    while they come.
    """

    image: Path
    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    output: Path
    host: str = HOST_NAME
    hosts: Sequence[str] = (HOST_NAME,)
    isolated: bool = False
    network: "PeerNetwork | None" = None
    on_lines: Callable[[list[str]], None] = lambda lines: None
    visible: Sequence[Path] = ()  # files that the command needs, even if they lie under /tmp or a hidden folder
    hidden: Sequence[Path] = ()


def repository_of(image: str) -> str:
    """An image's repository name: the last part of its URI, without tag or digest."""
    return image.rsplit("/", 1)[-1].split("@")[0].split(":")[0]


def image_folder(image: str, images: Mapping[str, Path]) -> Path:
    """The folder that plays a container image, by the image's repository name (the last path part, without tag or digest).

    Raises ContainerError naming the image and the known ones.
    """
    repository = repository_of(image)
    if repository not in images:
        known = ", ".join(sorted(images)) or "none"
        raise ContainerError(
            f"no local image for '{image}' (repository '{repository}'); known repositories: {known}. "
            f"Start local AWS with --image {repository}=FOLDER, a folder whose bin/ holds the image's programs"
        )
    return images[repository]


class _Spawner:
    """Starts every process from one thread that lives as long as the server.

    The kernel sends the "parent died" signal when the *thread* that started a process ends, so a job's own short-lived
    thread must not start it. With this thread, every container dies with the server, even if that is killed by SIGKILL.
    """

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]]
        self._orders = queue.SimpleQueue()
        threading.Thread(target=self._work, name="container-spawner", daemon=True).start()

    def start(self, order: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        result: Future[subprocess.Popen[bytes]] = Future()
        self._orders.put((order, result))
        return result.result()

    def _work(self) -> None:
        while True:
            order, result = self._orders.get()
            try:
                result.set_result(order())
            except BaseException as error:  # handed to the caller, who raises it
                result.set_exception(error)


_spawner_lock = threading.Lock()
_spawner: _Spawner | None = None


def _shared_spawner() -> _Spawner:
    global _spawner
    with _spawner_lock:
        if _spawner is None:
            _spawner = _Spawner()
        return _spawner


class Container:
    """A running container. It is started by the constructor and ends by itself, by stop(), or with this server."""

    def __init__(self, spec: ContainerSpec) -> None:
        command = isolation_command(spec)
        spec.output.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": f"{spec.image / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",  # as in AWS's images: a line is in the log when it is printed
            # How threads wait is this machine's matter: PASSIVE is far faster where several containers compute at once.
            **{name: os.environ[name] for name in ("OMP_WAIT_POLICY",) if name in os.environ},
            **spec.environment,
        }

        def order() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the server's terminal is the server's to handle
            )

        self._process = _shared_spawner().start(order)
        self._reader = threading.Thread(target=self._read_output, args=(spec,), daemon=True)
        self._reader.start()

    @property
    def running(self) -> bool:
        """Whether the main process still runs."""
        return self._process.poll() is None

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the processes that run in the container now."""
        return sum(_cpu_seconds(process) for process in _descendants(self._process.pid))

    def wait(self, timeout: float | None = None) -> int:
        """Wait until every process is gone and all output is handed over; returns the exit code (128 + N after signal N).

        Raises subprocess.TimeoutExpired after `timeout` seconds.
        """
        code = self._process.wait(timeout)
        self._reader.join()
        return code if code >= 0 else 128 - code

    def stop(self, grace: float) -> int:
        """SIGTERM to the main process, `grace` seconds for it to end, SIGKILL to all that is left; returns the exit code."""
        deadline = time.monotonic() + grace
        while not (processes := self._main_processes()) and self.running and time.monotonic() < deadline:
            time.sleep(0.01)  # the file system is still being set up
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        try:
            return self.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            return self.wait()

    def kill(self) -> None:
        """SIGKILL to every process of the container."""
        # The first process of a process ID namespace takes all others with it.
        for process in [*_children(self._process.pid), self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _main_processes(self) -> list[int]:
        # bwrap (or unshare) -> first process of the namespace, a reaper that ignores SIGTERM -> the command
        return [process for reaper in _children(self._process.pid) for process in _children(reaper)]

    def _read_output(self, spec: ContainerSpec) -> None:
        stream: IO[bytes] | None = self._process.stdout
        assert stream is not None
        incomplete = b""
        with stream, spec.output.open("ab") as file:
            while chunk := os.read(stream.fileno(), 65536):
                file.write(chunk)
                file.flush()
                *complete, incomplete = (incomplete + chunk).split(b"\n")
                self._hand_over(spec, complete)
        self._hand_over(spec, [incomplete] if incomplete else [])

    @staticmethod
    def _hand_over(spec: ContainerSpec, lines: list[bytes]) -> None:
        try:
            if lines:
                spec.on_lines([line.decode(errors="replace") for line in lines])
        except (
            Exception
        ):  # somebody deleted the log group, say: the output must be read on, or the container would block
            log.exception("%d lines are only in %s", len(lines), spec.output)


class PeerNetwork:
    """A network that has nothing but a loopback device, for the hosts of one isolated job: they reach each other only.

    It is made by the constructor and stays until close() or the end of this server. Raises ContainerError if it cannot
    be made.
    """

    def __init__(self) -> None:
        tools = {name: shutil.which(name) for name in ("unshare", "nsenter", "setpriv")}
        if missing := [name for name, path in tools.items() if path is None]:
            raise ContainerError(
                f"several isolated hosts share a network of their own, and this machine has no {' and no '.join(missing)}; "
                "install util-linux"
            )
        self._user = ["--user"] if os.geteuid() != 0 else []
        user = [*self._user, "--map-root-user"] if self._user else []
        command = [str(tools["unshare"]), "--net", *user, str(tools["setpriv"]), "--pdeathsig", "KILL"]
        command += [sys.executable, "-m", "local_aws.hold_network"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}

        def order() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        self._process = _shared_spawner().start(order)
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            line = stream.readline().decode(errors="replace").strip()
        if line != "ready":
            self.close()
            raise ContainerError(f"the network that several isolated hosts share cannot be made: {line}")

    def enter(self) -> list[str]:
        """The start of a command line that runs its rest in this network."""
        keep = ["--preserve-credentials"] if self._user else []
        return ["nsenter", f"--target={self._process.pid}", *self._user, *keep, "--net", "--"]

    def close(self) -> None:
        """Let go of the network; it is gone with the last container in it."""
        self._process.kill()
        self._process.wait()


class Stoppable(Protocol):
    def stop(self, grace: float) -> object: ...


def stop_together(running: Iterable[Stoppable], grace: float) -> None:
    """Stop all at the same time, with `grace` seconds from SIGTERM to SIGKILL; returns when all have ended."""
    stoppers = [threading.Thread(target=one.stop, args=(grace,)) for one in running]
    for stopper in stoppers:
        stopper.start()
    for stopper in stoppers:
        stopper.join()


def _children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _descendants(process: int) -> list[int]:
    return [process, *(below for child in _children(process) for below in _descendants(child))]


def _cpu_seconds(process: int) -> float:
    try:
        # Fields 14 and 15 of proc(5)'s stat, counted after the name, which may hold blanks and brackets.
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def isolation_command(spec: ContainerSpec) -> list[str]:
    """The command line that runs `spec` in isolation with what this machine has.

    Raises ContainerError if neither bubblewrap nor unshare is there.
    """
    hosts = spec.folder.with_name(spec.folder.name + ".hosts")
    # Two hosts that listen on the same port of their own name do not collide: all of 127.0.0.0/8 is the loopback device.
    names = [f"127.0.0.{number} {name}\n" for number, name in enumerate(spec.hosts, start=1)]
    hosts.write_text("".join(["127.0.0.1 localhost\n::1 localhost\n", *names]))
    hidden = [path.resolve() for path in spec.hidden if path.is_dir() and path != Path("/")]
    covered = [Path("/tmp"), *hidden]
    needed = [*programs_of(spec.image), *spec.visible]
    visible = [path for path in needed if any(path.resolve().is_relative_to(one) for one in covered)]
    enter = spec.network.enter() if spec.network else []
    alone = spec.isolated and spec.network is None
    if bwrap := shutil.which("bwrap"):
        return [
            *enter,
            *(bwrap, "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", spec.host),
            *(["--unshare-net"] if alone else []),
            # Else root could mount anew what is read only, and write to the machine's disks.
            *("--cap-drop", "ALL", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
            *[part for device in _accelerators() for part in ("--dev-bind", device, device)],
            *("--tmpfs", "/tmp", "--tmpfs", "/opt"),
            *[part for child in _other_content_of_opt() for part in ("--ro-bind", child, child)],
            *[part for path in hidden for part in ("--tmpfs", str(path))],
            *[part for path in visible for part in ("--ro-bind", str(path), str(path))],
            *[part for path in hidden for part in ("--remount-ro", str(path))],
            *("--bind", str(spec.folder), "/opt/ml", "--ro-bind", str(hosts), "/etc/hosts", "--chdir", "/tmp"),
            *("--", *spec.command),
        ]
    unshare, setpriv = shutil.which("unshare"), shutil.which("setpriv")
    if unshare and setpriv:
        return [
            *enter,  # first: a change of the user namespace would undo --pdeathsig
            *(setpriv, "--pdeathsig", "KILL", unshare, "--fork", "--kill-child=SIGKILL"),
            *("--mount", "--pid", "--ipc", "--uts", *(["--net"] if alone else [])),
            *(["--user", "--map-root-user"] if os.geteuid() != 0 and not enter else []),
            *(sys.executable, "-I", "-S", str(ENTER_CONTAINER), str(spec.folder), str(hosts), spec.host),
            *(f"{HIDE}{path}" for path in hidden),
            *(*(str(path) for path in visible), *_accelerators()),
            *("--", *spec.command),
        ]
    raise ContainerError(
        "jobs run isolated, and this machine has neither `bwrap` nor `unshare` and `setpriv`; "
        "install bubblewrap (Debian: apt install bubblewrap) or util-linux"
    )


def programs_of(image: Path) -> list[Path]:
    """The folders that an image's programs lie in: its own, and that of the Python which a virtual environment is made of."""
    marker = image / "pyvenv.cfg"
    lines = marker.read_text(encoding="utf-8").splitlines() if marker.is_file() else []
    homes = [line.partition("=")[2].strip() for line in lines if line.partition("=")[0].strip() == "home"]
    # The folder may be a link to that of one version, and programs name either.
    return list(
        dict.fromkeys([image, *(one for home in homes for one in (Path(home).parent, Path(home).resolve().parent))])
    )


def _accelerators() -> list[str]:
    """Devices that compute, which are all that a container needs of this machine's."""
    return [str(device) for pattern in ("nvidia*", "dri", "kfd") for device in sorted(Path("/dev").glob(pattern))]


def _other_content_of_opt() -> list[str]:
    return [str(child) for child in sorted(Path("/opt").iterdir()) if child.name != "ml"]


class LogStream:
    """A CloudWatch Logs stream of this server, made when it is first needed."""

    def __init__(self, group: str, stream: str, account: str, region: str) -> None:
        from moto.logs.models import logs_backends  # the backend exists once moto's server is up

        self._group, self._stream = group, stream
        self._backend = logs_backends[account][region]
        self._lock = threading.Lock()
        with _log_group_lock:
            if group not in self._backend.groups:
                self._backend.create_log_group(group, {})
        self._backend.ensure_log_stream(group, stream)

    def write(self, lines: list[str]) -> None:
        """Append lines, stamped with the time at which they came."""
        stamp = int(time.time() * 1000)
        # AWS refuses empty messages; an empty line is a blank here as in the logs of AWS's own agent.
        events = [{"timestamp": stamp, "message": line or " "} for line in lines]
        with self._lock:
            self._backend.put_log_events(self._group, self._stream, events)


_log_group_lock = threading.Lock()
