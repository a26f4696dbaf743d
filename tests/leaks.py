"""What a test run must not leave behind: processes, listening ports, files in the folder for temporary ones.

`begin` gives the run a folder of its own for temporary files, and marks everything that it starts by its environment;
`found` says at the end what is still there. A run whose tests have passed fails loudly if that is anything.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

MARK = "FINETUNE_TEST_RUN"  # in the environment of everything that the run starts
# What tools keep in the folder for temporary files, to be faster the next time, and what CDK leaves of every synthesis;
# all of it goes with the run's folder.
CACHES = (
    *("cdk-", "cdk.out", "jsii-", "node-compile-cache"),
    *("torchinductor_", "torchelastic_", "ray", "pymp-", "matplotlib-"),
    *("playwright", ".org.chromium", "org.chromium", "scoped_dir"),
)
LISTENING = "0A"  # state of a socket in /proc/net/tcp


def begin() -> Path:
    """Mark this process and all that it starts; returns the run's folder for temporary files."""
    shared = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="finetune-tests-"))
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", shared)  # where pytest keeps the folders of its last three runs
    os.environ[MARK] = uuid.uuid4().hex
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # read TMPDIR again
    return folder


def found(folder: Path) -> list[str]:
    """Everything that the run has left, one line each; the folder is gone afterwards."""
    left = [*processes(os.environ[MARK]), *ports(os.getpid())]
    left += [f"temporary file {path.name}" for path in sorted(folder.iterdir()) if not path.name.startswith(CACHES)]
    shutil.rmtree(folder, ignore_errors=True)
    return left


def processes(mark: str) -> Iterator[str]:
    """Processes but this one whose environment holds the mark, or that descend from this one."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            marked = f"{MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile, or is another user's
        if "multiprocessing.resource_tracker" in command:
            continue  # Python's own, which ends with the process that it serves
        if int(process.name) != os.getpid() and state != "Z" and (marked or int(parent) == os.getpid()):
            yield f"process {process.name}: {command[:160]}"


def ports(pid: int) -> Iterator[str]:
    """Ports on which the process listens."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue  # the one that listed the folder
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in inodes:
                yield f"port {int(fields[1].rpartition(':')[2], 16)}, listened on by the tests themselves"
