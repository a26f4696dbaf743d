"""Faults of a serving container, asked for in its Environment, so that what must survive them can be tested.

LOCAL_AWS_FAULTS holds one or more of these, separated by commas:

    error_share=0.5       that share of the requests is answered 500, evenly spread
    slow_seconds=2        every request waits that long before it reaches the container
    no_ping               /ping is never answered
    exit_at_start         the container's program ends at once, with exit code 1
    kill_after_seconds=5  the container is killed (SIGKILL) that long after each start, as by the kernel when memory is short
    memory_megabytes=300  the container gets no more memory than that, and fails as its program fails then

On AWS the variable has no effect.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

VARIABLE = "LOCAL_AWS_FAULTS"


class FaultError(ValueError):
    """LOCAL_AWS_FAULTS cannot be read; the text says what is allowed."""


class Killable(Protocol):
    @property
    def running(self) -> bool: ...

    def kill(self) -> None: ...


@dataclass
class Faults:
    """The faults of one container; without any, nothing happens."""

    error_share: float = 0.0
    slow_seconds: float = 0.0
    kill_after_seconds: float = 0.0
    memory_megabytes: float = 0.0
    no_ping: bool = False
    exit_at_start: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _owed: float = 0.0  # share of an error that is due

    @classmethod
    def of(cls, environment: dict[str, str]) -> "Faults":
        """What the environment asks for. Raises FaultError."""
        faults = cls()
        for part in filter(None, (part.strip() for part in environment.get(VARIABLE, "").split(","))):
            name, _, value = part.partition("=")
            try:
                if name in ("no_ping", "exit_at_start") and not value:
                    setattr(faults, name, True)
                elif name in ("error_share", "slow_seconds", "kill_after_seconds", "memory_megabytes"):
                    setattr(faults, name, float(value))
                else:
                    raise ValueError
            except ValueError:
                raise FaultError(
                    f"{VARIABLE}: '{part}' is not one of error_share=N, slow_seconds=N, kill_after_seconds=N, "
                    "memory_megabytes=N, no_ping, exit_at_start"
                ) from None
        return faults

    @property
    def answers_ping(self) -> bool:
        return not self.no_ping

    def command(self, command: list[str]) -> list[str]:
        """The container's command line, changed where a fault is in how it starts."""
        if self.exit_at_start:
            return ["sh", "-c", "echo 'fault: exit_at_start' >&2; exit 1"]
        if self.memory_megabytes:
            return ["prlimit", f"--data={int(self.memory_megabytes * 2**20)}", "--", *command]
        return command

    def started(self, container: Killable) -> None:
        """To be told of every start."""
        if self.kill_after_seconds:
            threading.Thread(target=self._kill, args=(container,), daemon=True).start()

    def _kill(self, container: Killable) -> None:
        time.sleep(self.kill_after_seconds)
        container.kill()

    def answer(self) -> str | None:
        """The text of a 500 that the container answers instead of its own, or None; slow containers wait here."""
        if self.slow_seconds:
            time.sleep(self.slow_seconds)
        with self._lock:
            self._owed += self.error_share
            if self._owed < 1:
                return None
            self._owed -= 1
        return f"fault: error_share={self.error_share:g}"
