"""Set up the container's file system inside fresh namespaces (made by `unshare`), then run the command.

Used where bubblewrap is not installed. Run:
    python3 -I -S enter_container.py FOLDER HOSTS HOST_NAME [hide:FOLDER ...] [VISIBLE ...] -- COMMAND ...
Standard library only, and the mount calls are made directly: paths that a new mount hides are still reachable through
file descriptors that were opened before.
"""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, CAPABILITY_VERSION = 24, 38, 0x20080522
HIDE = "hide:"  # as containers.py writes it; this file stands alone
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS_OF_DEV = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        sys.exit(f"enter_container: {what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0) -> None:
    result = libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None)
    check(result, f"cannot mount {source} on {target}")


def set_read_only(path: str, read_only: bool) -> None:
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd. Kernels before 5.12 do not have the call (ENOSYS):
    # there the container can write where its user can.
    on, off = (MOUNT_ATTR_RDONLY, 0) if read_only else (0, MOUNT_ATTR_RDONLY)
    attributes = struct.pack("QQQQ", on, off, 0, 0)
    flags = AT_RECURSIVE if read_only else 0
    libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, attributes, len(attributes))


def bind(descriptor: int, target: str) -> None:
    mount(f"/proc/self/fd/{descriptor}", target, flags=MS_BIND | MS_REC)


def build_file_system(folder: str, hosts: str, hidden: list[str], visible: list[str]) -> None:
    """The read-only file system of the host, with its own /tmp, /dev, /proc, /etc/hosts, and `folder` as /opt/ml.

    Of the `hidden` folders, and of /tmp, only what is `visible` is there.
    """
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    devices = [f"/dev/{name}" for name in DEVICES if Path(f"/dev/{name}").exists()]
    opened = {path: os.open(path, os.O_PATH) for path in (folder, hosts, *devices, *visible)}
    others = {
        name: os.open(f"/opt/{name}", os.O_PATH)
        for name in sorted(child.name for child in Path("/opt").iterdir())
        if name != "ml"
    }
    set_read_only("/", True)

    bind(opened[hosts], "/etc/hosts")
    for path in ("/dev", "/tmp", "/opt", *hidden):
        Path(path).mkdir(parents=True, exist_ok=True)  # a hidden folder may lie under /tmp, which is empty now
        mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV)
    for name, target in LINKS_OF_DEV.items():
        Path("/dev", name).symlink_to(target)
    Path("/dev/shm").mkdir()
    for name, descriptor in others.items():
        make_mount_point(descriptor, f"/opt/{name}")
        bind(descriptor, f"/opt/{name}")
    for path in (*devices, *visible):
        make_mount_point(opened[path], path)
        bind(opened[path], path)
    for path in hidden:
        set_read_only(path, True)
    Path("/opt/ml").mkdir()
    bind(opened[folder], "/opt/ml")
    set_read_only("/opt/ml", False)
    mount("proc", "/proc", "proc")
    for descriptor in (*opened.values(), *others.values()):
        os.close(descriptor)


def make_mount_point(descriptor: int, path: str) -> None:
    if Path(f"/proc/self/fd/{descriptor}").is_dir():
        Path(path).mkdir(parents=True, exist_ok=True)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()


def raise_loopback() -> None:
    """Bring the loopback device up; in a network namespace of its own it starts down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(handle, SIOCGIFFLAGS, request))[1]
        if not flags & IFF_UP:
            fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def drop_privileges() -> None:
    """Give up every capability, for ever: else root could mount anew what is read only."""
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "cannot forbid new privileges")
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        check(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), f"cannot drop capability {capability}")
    header, none = struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24)
    check(libc.capset(header, none), "cannot drop the capabilities")


def run(command: list[str]) -> int:
    """Run the command as a child and reap orphans; returns its exit code. When this process ends, so does all else."""
    child = os.fork()
    if child == 0:
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(127)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        process, status = os.wait()
        if process == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main() -> None:
    split = sys.argv.index("--")
    folder, hosts, host_name, *others = sys.argv[1:split]
    hidden = [other.removeprefix(HIDE) for other in others if other.startswith(HIDE)]
    visible = [other for other in others if not other.startswith(HIDE)]
    socket.sethostname(host_name)
    build_file_system(folder, hosts, hidden, visible)
    raise_loopback()
    os.chdir("/tmp")
    drop_privileges()
    sys.exit(run(sys.argv[split + 1 :]))


if __name__ == "__main__":
    main()
