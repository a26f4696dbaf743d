"""Containers: the contract inside, the end of everything outside. Each test runs with bubblewrap and with unshare."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from local_aws.containers import Container, ContainerError, ContainerSpec, PeerNetwork, image_folder

PYTHON = Path(sys.prefix)
REPOSITORY = Path(__file__).parents[2]
SECRETS_OF_HOME = [".aws", ".ssh", ".bashrc", ".profile", ".gitconfig", ".npmrc", ".cache", ".config"]


@pytest.fixture(params=["bwrap", "unshare"], autouse=True)
def isolation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    real = shutil.which
    if real(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    hidden = {"bwrap", "unshare"} - {request.param}
    monkeypatch.setattr(shutil, "which", lambda name: None if name in hidden else real(name))
    return str(request.param)


@pytest.fixture(scope="module")
def network() -> Iterator[PeerNetwork]:
    made = PeerNetwork()  # before a test hides `unshare`
    yield made
    made.close()


def start(
    folder: Path,
    command: str,
    lines: list[str],
    *,
    isolated: bool = False,
    image: Path = PYTHON,
    host: str = "algo-1",
    hosts: Sequence[str] = ("algo-1",),
    network: PeerNetwork | None = None,
) -> Container:
    (folder / "ml").mkdir(parents=True)
    spec = ContainerSpec(
        image=image,
        command=["sh", "-c", command],
        folder=folder / "ml",
        environment={"GREETING": "hello"},
        output=folder / "log.txt",
        host=host,
        hosts=hosts,
        isolated=isolated,
        network=network,
        on_lines=lines.extend,
    )
    return Container(spec)


def run(folder: Path, command: str, *, isolated: bool = False) -> tuple[int, list[str]]:
    lines: list[str] = []
    return start(folder, command, lines, isolated=isolated).wait(30), lines


def alive(marker: str) -> list[str]:
    """The command lines that hold the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [text] if marker in text and "pytest" not in text else []
    return found


def test_the_job_folder_is_opt_ml_and_can_be_written(tmp_path: Path) -> None:
    code, _ = run(tmp_path, "mkdir /opt/ml/model && echo weights > /opt/ml/model/w")
    assert code == 0
    assert (tmp_path / "ml/model/w").read_text() == "weights\n"


def test_other_content_of_opt_stays_visible(tmp_path: Path) -> None:
    _, lines = run(tmp_path, "ls /opt")
    assert set(lines) == {child.name for child in Path("/opt").iterdir()} | {"ml"}


def test_the_file_system_is_read_only_and_tmp_is_its_own(tmp_path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir="/tmp") as of_the_host:
        script = f"touch /etc/new 2>/dev/null || echo refused; test -e {of_the_host.name} || echo hidden"
        _, lines = run(tmp_path, f"{script}; touch /tmp/new && echo written")
    assert lines == ["refused", "hidden", "written"]
    assert not Path("/tmp/new").exists()


def test_a_job_writes_and_reads_nothing_of_the_machine_but_its_own_folder(tmp_path: Path) -> None:
    state, home = tmp_path / "state", Path.home()
    (state / "jobs" / "other" / "ml").mkdir(parents=True)
    (state / "jobs" / "other" / "ml" / "weights").write_text("of another job")
    (state / "credentials").write_text("of local AWS")
    marker = f"written-by-a-job-{os.getpid()}"
    places = {
        "repository": REPOSITORY,
        "tmp": Path("/tmp"),
        "other job": state / "jobs" / "other" / "ml",
        "state": state,
        "home": home,
        "etc": Path("/etc"),
        "image": PYTHON,
    }
    script = f"""
import ctypes, os, pathlib, subprocess
places = { ({name: str(path) for name, path in places.items()})!r}
def attempt(what, action):
    try:
        print(what, action())
    except OSError as error:
        print(what, "refused")
for name, place in places.items():
    attempt("write to " + name + ":", lambda: pathlib.Path(place, "{marker}").write_text("x") and "written")
attempt("read the other job:", lambda: pathlib.Path(places["other job"], "weights").read_text())
attempt("read the state:", lambda: pathlib.Path(places["state"], "credentials").read_text())
attempt("home:", lambda: sorted(name for name in os.listdir(places["home"]) if name in {SECRETS_OF_HOME!r}))
libc = ctypes.CDLL(None, use_errno=True)
MS_REMOUNT_BIND = 32 | 4096
print("mount anew:", libc.mount(b"none", b"/", None, MS_REMOUNT_BIND, None))
print("take away what hides:", libc.umount2(places["home"].encode(), 2))
attempt("write after that:", lambda: pathlib.Path(places["repository"], "{marker}").write_text("x") and "written")
attempt("disks:", lambda: [name for name in os.listdir("/dev") if name.startswith(("sd", "vd", "nvme", "mem", "loop"))])
pathlib.Path("/opt/ml/model").write_text("mine")
"""
    (state / "jobs" / "mine" / "ml").mkdir(parents=True)
    (state / "jobs" / "mine" / "ml" / "attack.py").write_text(script)
    lines: list[str] = []
    spec = ContainerSpec(
        image=PYTHON,
        command=["python3", "/opt/ml/attack.py"],
        folder=state / "jobs" / "mine" / "ml",
        environment={},
        output=tmp_path / "log.txt",
        on_lines=lines.extend,
        hidden=[state, home],
    )
    assert Container(spec).wait(60) == 0
    own = "written" if REPOSITORY.is_relative_to("/tmp") else "refused"  # its /tmp is one of its own
    expected = {f"write to {name}:": "refused" for name in places} | {
        "write to tmp:": "written",
        "write to repository:": own,
        "read the other job:": "refused",
        "read the state:": "refused",
        "home:": "[]",
        "mount anew:": "-1",
        "take away what hides:": "-1",
        "write after that:": own,
        "disks:": "[]",
    }
    assert dict(line.rsplit(" ", 1) for line in lines) == expected
    assert [path for path in places.values() if (path / marker).exists()] == []
    assert (state / "jobs" / "mine" / "ml" / "model").read_text() == "mine"


def test_the_host_is_algo_1_and_resolves(tmp_path: Path) -> None:
    _, lines = run(tmp_path, "hostname; getent hosts algo-1 | cut -d' ' -f1")
    assert lines == ["algo-1", "127.0.0.1"]


def test_hosts_reach_each_other_by_name_and_may_use_the_same_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = f"""
import socket, time
me = socket.gethostname()
other = {{"algo-1": "algo-2", "algo-2": "algo-1"}}[me]
server = socket.create_server((me, {port}))
while True:
    try:
        client = socket.create_connection((other, {port}))
        break
    except ConnectionRefusedError:
        time.sleep(0.02)
client.sendall(me.encode())
print(me, "heard", server.accept()[0].recv(100).decode())
"""
    hosts = ["algo-1", "algo-2"]
    lines: list[str] = []
    containers = [
        start(tmp_path / host, f"exec python3 -c '{script}'", lines, host=host, hosts=hosts) for host in hosts
    ]
    assert [container.wait(30) for container in containers] == [0, 0]
    assert sorted(lines) == ["algo-1 heard algo-2", "algo-2 heard algo-1"]


def test_processes_have_ids_of_their_own(tmp_path: Path) -> None:
    _, lines = run(tmp_path, "ls /proc | grep -c '^[0-9]'")
    assert int(lines[0]) < 10


def test_an_isolated_container_has_the_loopback_device_only(tmp_path: Path) -> None:
    server = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()); print('up')"
    _, lines = run(tmp_path, f'tail -n +3 /proc/net/dev | cut -d: -f1; python3 -c "{server}"', isolated=True)
    assert [line.strip() for line in lines] == ["lo", "up"]


def test_isolated_hosts_of_one_network_reach_each_other_and_nobody_else(tmp_path: Path, network: PeerNetwork) -> None:
    with socket.socket() as outside:
        outside.bind(("127.0.0.1", 0))
        outside.listen()
        server = 'import socket; s = socket.create_server(("algo-1", 7000)); print("up"); print(s.accept()[1][0])'
        client = (
            "import socket; socket.create_connection(('algo-1', 7000), 10, ('127.0.0.2', 0));"
            f"print(socket.socket().connect_ex(('127.0.0.1', {outside.getsockname()[1]})) != 0)"
        )
        lines: dict[str, list[str]] = {"algo-1": [], "algo-2": []}

        def run_on(host: str, code: str) -> Container:
            command = f'python3 -c "{code}"' if host == "algo-2" else f"python3 -c '{code}'"
            hosts = list(lines)
            folder = tmp_path / host
            return start(folder, command, lines[host], isolated=True, host=host, hosts=hosts, network=network)

        first = run_on("algo-1", server)
        deadline = time.monotonic() + 10
        while lines["algo-1"] != ["up"]:
            assert time.monotonic() < deadline, lines
            time.sleep(0.02)
        assert run_on("algo-2", client).wait(30) == first.wait(30) == 0
    assert lines == {"algo-1": ["up", "127.0.0.2"], "algo-2": ["True"]}


def test_the_image_comes_first_in_path_and_the_environment_is_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the server")
    _, lines = run(tmp_path, "which python3; echo $GREETING $SECRET")
    assert lines == [f"{PYTHON}/bin/python3", "hello"]


def test_an_image_below_tmp_can_be_used(tmp_path: Path) -> None:
    image = tmp_path / "image"
    (image / "bin").mkdir(parents=True)
    (image / "bin/tool").write_text("#!/bin/sh\necho from the image\n")
    (image / "bin/tool").chmod(0o755)
    lines: list[str] = []
    assert start(tmp_path, "tool", lines, image=image).wait(10) == 0
    assert lines == ["from the image"]


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("kill -9 $$", 137), ("true", 0)])
def test_the_exit_code_is_the_commands(tmp_path: Path, command: str, code: int) -> None:
    assert run(tmp_path, command)[0] == code


def test_output_comes_line_by_line_while_the_container_runs(tmp_path: Path) -> None:
    lines: list[str] = []
    container = start(tmp_path, "echo one; echo two >&2; printf three; sleep 60", lines)
    deadline = time.monotonic() + 5
    while len(lines) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lines == ["one", "two"]
    assert container.running
    container.stop(0)
    assert lines == ["one", "two", "three"]
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\nthree"


def test_lines_that_cannot_be_handed_over_do_not_stop_the_container(tmp_path: Path) -> None:
    class Refusing(list[str]):
        def extend(self, lines: object) -> None:
            raise OSError("no log group")

    assert start(tmp_path, "seq 100000", Refusing()).wait(20) == 0
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 100_000


def test_stop_lets_the_program_end_by_itself_first(tmp_path: Path) -> None:
    lines: list[str] = []
    container = start(tmp_path, "trap 'echo saved; exit 7' TERM; echo up; while :; do sleep 0.02; done", lines)
    while not lines:
        time.sleep(0.02)
    assert container.stop(10) == 7
    assert lines == ["up", "saved"]


def test_a_container_can_be_stopped_at_once_after_its_start(tmp_path: Path) -> None:
    began = time.monotonic()
    assert start(tmp_path, "sleep 60", []).stop(30) == 143
    assert time.monotonic() - began < 10


def test_stop_kills_what_does_not_end_children_too(tmp_path: Path) -> None:
    lines: list[str] = []
    container = start(tmp_path, "trap '' TERM; sleep 61.25 & echo up; sleep 61.25", lines)
    while not lines:
        time.sleep(0.02)
    assert container.stop(0.1) == 137
    assert alive("sleep 61.25") == []


def test_a_job_dies_with_the_server_even_if_that_is_killed(tmp_path: Path, isolation: str) -> None:
    marker = f"sleep 62.{os.getpid()}{['bwrap', 'unshare'].index(isolation)}"
    server = f"""
import shutil, sys, time
from pathlib import Path
from local_aws import containers
real, hidden = shutil.which, {"{'bwrap'}" if isolation == "unshare" else "set()"}
containers.shutil.which = lambda name: None if name in hidden else real(name)
folder = Path({str(tmp_path)!r})
(folder / "ml").mkdir()
command = ["sh", "-c", "{marker} & {marker}"]
spec = containers.ContainerSpec(folder, command, folder / "ml", {{}}, output=folder / "log")
containers.Container(spec)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", server], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 10
    while not (tmp_path / "log").exists() or len(alive(marker)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while alive(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(marker) == []


def test_an_unknown_image_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        ContainerError, match=r"'x/missing:1'.*'missing'.*known repositories: a, b.*--image missing=FOLDER"
    ):
        image_folder("x/missing:1", {"b": PYTHON, "a": PYTHON})


@pytest.mark.parametrize("image", ["tools", "1.dkr.ecr.us-east-1.amazonaws.com/tools:2.9-gpu", "r/tools@sha256:ab"])
def test_an_image_is_found_by_its_repository_name(image: str) -> None:
    assert image_folder(image, {"tools": PYTHON}) == PYTHON


def test_without_bubblewrap_and_unshare_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ContainerError, match="apt install bubblewrap"):
        run(tmp_path, "true")
