"""Which files of a folder are a model, and whether they may be trusted: no pickle, no way out of the folder, nothing cut off."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cli.console import CommandError

WEIGHTS = ".safetensors"
GGUF = ".gguf"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# Formats that run code when they are loaded.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# What belongs to a model beside its weights: configuration, tokenizer, chat template, licence.
BESIDE_THE_WEIGHTS = (".json", ".model", ".jinja", ".tiktoken", ".txt", ".md")
LICENCE_FILES = ("LICENSE", "LICENCE", "NOTICE")
LARGEST_HEADER_BYTES = 100_000_000  # of a safetensors file: the format's own limit

# Weights hardly compress. An archive that grows more than this, beyond the first GB, is made to fill the disk.
MOST_GROWTH = 20
GROWTH_FREE_BYTES = 10**9
MOST_ARCHIVE_FILES = 10_000
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # by a file's first bytes
LARGEST_ARCHIVE_HEADER = 2**20  # bytes of what stands before a file: its name and the like


@dataclass(frozen=True)
class Chosen:
    """Names of a model's files, `weights` among them, and of those that are left out."""

    names: list[str]
    weights: list[str]
    left_out: list[str]


def choose(sizes: dict[str, int], index: dict[str, str] | None, source: str) -> Chosen:
    """The files of a transformers model among all files of a source, which has them by name with their size in bytes.

    `index` is the weight map of the source's INDEX_FILE, if it has one. Of a repository with several copies of the
    weights only those that transformers loads are taken. Without safetensors a single GGUF file is taken instead.
    Raises CommandError with all that is missing or not allowed.
    """
    problems = [f"{name!r} leads out of the folder" for name in [*sizes, *(index or {}).values()] if not _inside(name)]
    names = sorted(name for name in sizes if "/" not in name)
    beside = [name for name in names if name.endswith(BESIDE_THE_WEIGHTS) or name.startswith(LICENCE_FILES)]
    pickles = [name for name in names if name.endswith(PICKLES)]
    ggufs = [name for name in names if name.endswith(GGUF)]

    if index is not None:
        weights = sorted(set(index.values()))
        lacking = [name for name in weights if name not in sizes and _inside(name)]
        problems += [f"{name} is missing, which {INDEX_FILE} names" for name in lacking]
        problems += [f"{name} is no {WEIGHTS} file, and {INDEX_FILE} names it" for name in weights if _foreign(name)]
    elif SINGLE_FILE in sizes:
        weights = [SINGLE_FILE]
    elif len(ggufs) == 1:
        return Chosen(sorted({ggufs[0], *beside}), ggufs, sorted(sizes.keys() - {ggufs[0], *beside}))
    else:
        weights = [name for name in names if name.endswith(WEIGHTS)]
        if len(weights) > 1:
            problems.append(
                f"it has {len(weights)} {WEIGHTS} files and no {INDEX_FILE} that says how they belong together"
            )
    if not weights:
        problems += [f"{name} is pickled, which runs code when it is loaded" for name in pickles]
        many = f" and {len(ggufs)} {GGUF} files, of which one is to be chosen: {', '.join(ggufs)}" if ggufs else ""
        problems.append(f"there is no *{WEIGHTS} file{many} (only {WEIGHTS} or one {GGUF} file is accepted)")
    if "config.json" not in names:
        problems.append("config.json is missing")
    if not any(name.startswith("tokenizer") for name in names):
        problems.append("there is no tokenizer file (tokenizer.json or tokenizer.model)")
    if problems:
        raise CommandError(f"{source} is not a model that can be imported: " + "; ".join(problems))
    chosen = sorted({*weights, *beside})
    return Chosen(chosen, weights, sorted(sizes.keys() - set(chosen)))


def choose_in(folder: Path, source: str) -> Chosen:
    """`choose` for a folder on this machine; also refuses links that lead out of it and weights that are cut off."""
    if not folder.is_dir():
        raise CommandError(f"{source} is not a folder")
    sizes: dict[str, int] = {}
    problems = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{name} is a link to {path.resolve()}, out of the folder (copy it with 'cp -rL')")
        elif path.is_file():
            sizes[name] = path.stat().st_size
    if problems:
        raise CommandError(f"{source} is not a model that can be imported: " + "; ".join(problems))
    chosen = choose(sizes, read_index(folder / INDEX_FILE) if INDEX_FILE in sizes else None, source)
    broken = [f"{name} {problem}" for name in chosen.weights if (problem := broken_weights(folder / name))]
    if broken:
        raise CommandError(f"{source} is not a model that can be imported: " + "; ".join(broken))
    return chosen


def read_index(path: Path) -> dict[str, str]:
    """The weight map in an INDEX_FILE: weight -> file. Raises CommandError unless it is one."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(weight): str(file) for weight, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"{path} is no index of weights ({type(error).__name__}: {error})") from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive, compressed or not, into `folder`, which is there only when it is complete.

    Raises CommandError on what leads out of the folder, what is neither file nor folder, on an archive that grows beyond
    what weights can, and on one whose headers would fill the memory.
    """
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    left = min(shutil.disk_usage(unfinished).free, GROWTH_FREE_BYTES + MOST_GROWTH * archive.stat().st_size)
    try:
        with _decompressed(archive) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for count, member in enumerate(tar, start=1):
                left -= member.size
                if not (member.isfile() or member.isdir()) or not _inside(member.name):
                    raise CommandError(
                        f"{archive.name} holds {member.name!r}, which is a link or leads out of the folder"
                    )
                if left < 0 or count > MOST_ARCHIVE_FILES:
                    raise CommandError(
                        f"{archive.name} ({archive.stat().st_size} bytes) unpacks to more than {MOST_GROWTH} times its size, "
                        f"to more than the disk has left, or to more than {MOST_ARCHIVE_FILES} files; it is not a model"
                    )
                tar.extract(member, unfinished, filter="data")
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise CommandError(f"{archive.name} cannot be unpacked: {error}") from error
    unfinished.replace(folder)


class _SmallReads(io.RawIOBase):
    """A stream of which nothing large is read at once: tarfile takes a header's own word for its length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_ARCHIVE_HEADER:
            raise tarfile.ReadError(f"a header says that it has {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def _decompressed(archive: Path) -> Iterator[IO[bytes]]:
    """The tar stream in `archive`, whatever it is compressed by."""
    with archive.open("rb") as file:
        start = file.read(6)
    opened: Any = next((opened for magic, opened in COMPRESSED.items() if start.startswith(magic)), open)
    with opened(archive, "rb") as file:
        yield _SmallReads(file)  # type: ignore[misc]


def licence_of(folder: Path) -> str | None:
    """The licence that a model card (README.md) names in its head, else the name of a licence file, else None."""
    card = folder / "README.md"
    if card.is_file():
        head = card.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
        for line in head.splitlines():
            if line.startswith("license:") and head.startswith("---"):
                return line.partition(":")[2].strip().strip("'\"") or None
    return next((path.name for path in sorted(folder.glob("*")) if path.name.startswith(LICENCE_FILES)), None)


def refuse_without_room(folder: Path, needed_bytes: int) -> None:
    """Raises CommandError if the disk of `folder` cannot hold so many bytes more."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise CommandError(
            f"{folder} has {free / 1e9:.1f} GB free, this model takes {needed_bytes / 1e9:.1f} GB on its way; make room there"
        )


def total(sizes: dict[str, int], names: Iterable[str]) -> int:
    return sum(sizes[name] for name in names)


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


def _foreign(name: str) -> bool:
    return not name.endswith(WEIGHTS) or "/" in name


def broken_weights(path: Path) -> str | None:
    """What is wrong with a weight file as its own header has it, or None."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if path.name.endswith(GGUF):
            return None if start[:4] == b"GGUF" else "is no GGUF file"
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER_BYTES
        if length >= min(LARGEST_HEADER_BYTES, size):
            return f"is no safetensors file, or is cut off ({size} bytes)"
        try:
            entries = json.loads(file.read(length))
            end = max(
                (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "is no safetensors file: its header cannot be read"
    if 8 + length + end != size:
        return f"has {size} bytes, and its header says {8 + length + end}: it is cut off or changed"
    return None
