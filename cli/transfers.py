"""How far a large transfer is: bytes, rate and the time that is left, told a few times a second."""

import threading
import time
from collections.abc import Callable
from typing import Any

TOLD_EVERY_SECONDS = 0.25


class Transfer:
    """Bytes on their way, added up by any number of threads; `say` hears how far they are."""

    def __init__(self, verb: str, total_bytes: int, say: Callable[[str], None]) -> None:
        self._verb, self._total, self._say = verb, total_bytes, say
        self._lock = threading.Lock()
        self._started = self._told = time.monotonic()
        self._moved = 0  # in this run, which makes the rate
        self._of_file = 0  # of the file that is under way
        self._complete = 0  # of the files that are done, also those of an earlier run

    def add(self, count: int) -> None:
        """`count` more bytes of the file that is under way have been moved (fewer, if a part is sent again)."""
        with self._lock:
            self._moved += count
            self._of_file += count
            now = time.monotonic()
            if now - self._told < TOLD_EVERY_SECONDS:
                return
            self._told = now
            text = self.text(now)
        self._say(text)

    def done_with(self, name: str, size: int) -> None:
        """The file `name` of `size` bytes is there, moved now or before."""
        with self._lock:
            self._of_file = 0
            self._complete += size
            text = f"{self.text(time.monotonic())}: {name}"
        self._say(text)

    def text(self, now: float) -> str:
        done = self._complete + self._of_file
        told = f"{self._verb} {done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
        rate = self._moved / max(now - self._started, 1e-3)
        if not rate:
            return told
        minutes, seconds = divmod(round((self._total - done) / rate), 60)
        return f"{told}, {rate / 1e6:.0f} MB/s, {minutes}:{seconds:02d} left"

    @property
    def tqdm_class(self) -> Any:
        """A progress bar in tqdm's form, for libraries that want one, whose bytes are added here."""
        from tqdm import tqdm  # type: ignore[import-untyped]

        transfer = self

        class Silent(tqdm):  # type: ignore[misc]
            def __init__(self, *args: Any, **options: Any) -> None:
                options.pop("name", None)
                super().__init__(*args, **{**options, "disable": True})

            def update(self, n: float | None = 1) -> None:
                transfer.add(int(n or 0))

        return Silent
