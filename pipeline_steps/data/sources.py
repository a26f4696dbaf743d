"""Raw files, cut into parts that are read on their own: the unit of work of one process, instance or Ray task.

A part is a byte range of a file with lines, a range of row groups of a Parquet file, or a whole file where nothing less
can be read alone (compressed, CSV, JSON). How a dataset is cut depends on its files only, never on who reads it.
"""

import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from pipeline_steps.contract import dataset, files
from pipeline_steps.contract.errors import DataError

PART_BYTES = 4 * 2**20  # small enough that all cores are busy to the end, also with 25 MB of rows
LONGEST_LINE = 10 * 2**20  # bytes; a row beyond any context window, or a file that is no JSON lines
LONGEST_SMALL_FILE = 2**20  # bytes of a template or of a list of prompts

# Texts shrink to a tenth or less, repetitive ones to a hundredth. What grows more is made to fill memory and disk.
MOST_GROWTH = 200
GROWTH_FREE_BYTES = 64 * 2**20

ROWS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
DOCUMENTS = (".txt", ".csv", ".json", *ROWS)
READ_BY_LINES = (".jsonl", ".txt")  # can be cut at any line end

Folder = Literal["train", "validation"]


@dataclass(frozen=True)
class SourceFile:
    """`path` is a local path or an S3 URI; `name` is how messages call the file."""

    path: str
    name: str
    folder: Folder
    size: int

    @property
    def ending(self) -> str:
        return next(ending for ending in sorted(DOCUMENTS, key=len, reverse=True) if self.path.endswith(ending))


@dataclass(frozen=True)
class Part:
    """Bytes (or row groups) `start` .. `end` of a file; `last` where the file ends with it."""

    number: int
    file: SourceFile
    start: int
    end: int
    last: bool


class Raw(NamedTuple):
    """One row as it came: its line (1 = the part's first; of a CSV or Parquet file its row) and its bytes or object."""

    line: int
    content: Any


# ---------------------------------------------------------------- which files


def listing(raw: str) -> list[tuple[str, str, int]]:
    """(path, name below the dataset folder, bytes) of every file of a dataset: a folder, or an S3 URI of its manifest."""
    if not raw.startswith("s3://"):
        paths = [path for path in sorted(Path(raw).rglob("*")) if path.is_file()]
        return [(str(path), path.relative_to(raw).as_posix(), path.stat().st_size) for path in paths]
    from pipeline_steps import s3

    with open_file(raw) as file:
        prefix, *names = json.load(file)
    sizes = dict(s3.sizes_below(prefix["prefix"]))
    return [(uri, name, sizes[uri]) for name in sorted(names) if (uri := prefix["prefix"] + name) in sizes]


def read_small(path: str, name: str) -> bytes:
    """The whole of a template or a list, local or on S3. Raises DataError if it is none by its size."""
    with open_file(path) as file:
        content = file.read(LONGEST_SMALL_FILE + 1)
    if len(content) > LONGEST_SMALL_FILE:
        raise DataError(
            [f"{name}: is larger than {LONGEST_SMALL_FILE // 2**20} MB, the most that it may be; shorten it"]
        )
    return content


def choose(found: Sequence[tuple[str, str, int]], mode: dataset.Mode) -> list[SourceFile]:
    """The data files among (path, name below the dataset folder, bytes). Raises DataError for each wrong folder."""
    accepted = DOCUMENTS if mode == "domain" else ROWS
    train = "train/" if any(name.startswith("train/") for _, name, _ in found) else ""
    validation = "validation/" if any(name.startswith("validation/") for _, name, _ in found) else None
    chosen: list[SourceFile] = []
    problems: list[str] = []
    for folder, prefix in (("train", train), *([("validation", validation)] if validation else [])):
        inside = [
            (path, name.removeprefix(prefix), size)
            for path, name, size in found
            if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
        ]
        data = [
            SourceFile(path, f"{prefix}{name}", folder, size)  # type: ignore[arg-type]
            for path, name, size in inside
            if name.endswith(accepted) and name not in (files.TEMPLATE_FILE, files.PROMPTS_FILE) and name[0] != "."
        ]
        names = ", ".join(name for _, name, _ in inside)
        if mode == "domain" and len(data) != 1:
            problems.append(
                f"{folder}/: domain adaptation takes exactly one file ({', '.join(DOCUMENTS)}), "
                f"found {len(data)} ({', '.join(Path(one.name).name for one in data) or names or 'nothing'})"
            )
        elif not data:
            problems.append(
                f"{folder}/: no .jsonl file (found {names or 'nothing'}); {mode} tuning needs one JSON object a line "
                f"(accepted: {', '.join(ROWS)})"
            )
        chosen += data
    if problems:
        raise DataError(problems)
    return chosen


def cut(sources: Iterable[SourceFile], part_bytes: int = PART_BYTES) -> list[Part]:
    """The parts of all files, in order. Raises DataError for a Parquet file that cannot be read."""
    parts: list[Part] = []
    for source in sources:
        if source.ending in READ_BY_LINES:
            starts = range(0, max(source.size, 1), part_bytes)
            ranges = [(start, min(start + part_bytes, source.size)) for start in starts]
        elif source.ending == ".parquet":
            ranges = [(group, group + 1) for group in range(max(1, _parquet(source).metadata.num_row_groups))]
        else:
            ranges = [(0, source.size)]
        for number, (start, end) in enumerate(ranges, start=1):
            parts.append(Part(len(parts), source, start, end, number == len(ranges)))
    return parts


# ---------------------------------------------------------------- what is in them


class Position:
    """How far a part has been read, in its own unit: bytes of the file as it lies there, compressed or not.

    Row groups of a Parquet file are not counted until the part is done.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._file: IO[bytes] | None = None
        self._reached = 0

    @contextmanager
    def of(self, file: IO[bytes]) -> Iterator[IO[bytes]]:
        """`file`, which is read from now on; closed at the end."""
        with file:
            self._file = file
            try:
                yield file
            finally:
                self._file = None  # what reads through it may have closed it

    @property
    def reached(self) -> int:
        """0 .. end - start of the part."""
        if self._file:
            self._reached = min(max(self._file.tell() - self._part.start, 0), self._part.end - self._part.start)
        return self._reached


def read(part: Part, position: Position | None = None) -> Iterator[Raw]:
    """The part's rows: bytes of a line (also a blank one) where the file has lines, an object for the others.

    `position` tells while the rows are taken how far the file is read. Raises DataError where the file as such cannot
    be read.
    """
    position = position or Position(part)
    source, ending = part.file, part.file.ending
    try:
        if ending in READ_BY_LINES:
            with position.of(open_file(source.path)) as file:
                yield from _lines(file, part)
        elif ending in (".jsonl.gz", ".jsonl.zst"):
            with position.of(open_file(source.path)) as compressed, _decompress(compressed, source) as file:
                yield from _lines(file, part, whole=True)
        elif ending == ".parquet":
            yield from _parquet_rows(part)
        else:
            with (
                position.of(open_file(source.path)) as file,
                io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text,
            ):
                yield from _csv_rows(text) if ending == ".csv" else _json_rows(text)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError([f"{source.name}: not UTF-8 (byte 0x{byte:02x}); save it as UTF-8"]) from None
    except (OSError, EOFError) as error:
        raise DataError([f"{source.name}: cannot be read as {ending} ({error}); is it complete?"]) from error


def lines_in(part: Part) -> int:
    """Lines (of a Parquet file: rows) that begin in the part: what the lines of the next part are counted from."""
    if part.file.ending == ".parquet":
        metadata = _parquet(part.file).metadata
        return sum(
            metadata.row_group(group).num_rows for group in range(part.start, min(part.end, metadata.num_row_groups))
        )
    if part.file.ending not in READ_BY_LINES or part.last:
        return 0  # nothing follows
    with open_file(part.file.path) as file:
        before = max(part.start - 1, 0)  # a line begins after a line end, and at the start of the file
        file.seek(before)
        return file.read(part.end - 1 - before).count(b"\n") + (part.start == 0)


def open_file(path: str) -> IO[bytes]:
    """A local file or an S3 object, to be read and sought in."""
    if not path.startswith("s3://"):
        return Path(path).open("rb")
    from pyarrow import fs

    system, name = fs.FileSystem.from_uri(path)
    return io.BufferedReader(system.open_input_file(name), 2**20)


def _decompress(file: IO[bytes], source: SourceFile) -> IO[bytes]:
    if source.ending.endswith(".gz"):
        return io.BufferedReader(_Bounded(gzip.GzipFile(fileobj=file), source), 2**20)
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file), "zstd")
    return io.BufferedReader(_Bounded(stream, source), 2**20)


class Growth:
    """What has been unpacked of a file; `add` raises DataError once that is more than data grows to."""

    def __init__(self, source: SourceFile) -> None:
        self._source = source
        self._left = self._most = GROWTH_FREE_BYTES + MOST_GROWTH * source.size

    def add(self, size: int) -> None:
        """`size` more bytes of the file are unpacked."""
        self._left -= size
        if self._left < 0:
            raise DataError(
                [
                    f"{self._source.name}: {self._source.size} bytes unpack to more than {self._most // 2**20} MB, "
                    f"{MOST_GROWTH} times as much and {GROWTH_FREE_BYTES // 2**20} MB; that is made to fill the disk. "
                    "If it is data all the same, store it uncompressed, as .jsonl"
                ]
            )


class _Bounded(io.RawIOBase):
    """A decompressed stream that ends with an error where it grows beyond what data does."""

    def __init__(self, stream: Any, source: SourceFile) -> None:
        self._stream, self._growth = stream, Growth(source)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        self._growth.add(len(content))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _lines(file: IO[bytes], part: Part, whole: bool = False) -> Iterator[Raw]:
    """Lines that begin in the part; one that begins in it is read to its end, also beyond the part."""
    position = 0 if whole else part.start
    if position:
        file.seek(position - 1)
        position += len(file.readline()) - 1  # the rest of the previous part's last line
    line = 0
    while whole or position < part.end:
        content = file.readline(LONGEST_LINE + 1)
        if not content:
            return
        position += len(content)
        line += 1
        while len(content) > LONGEST_LINE and not content.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE)  # told by its beginning, never held whole
            position += len(rest)
            if not rest or rest.endswith(b"\n"):
                break
        if line == 1 and (whole or part.start == 0):
            content = content.removeprefix(b"\xef\xbb\xbf")
        yield Raw(line, content.rstrip(b"\r\n"))


def _parquet(source: SourceFile) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(open_file(source.path))
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError([f"{source.name}: cannot be read as Parquet ({error}); is it complete?"]) from error
    groups = range(file.metadata.num_row_groups)
    Growth(source).add(sum(file.metadata.row_group(group).total_byte_size for group in groups))
    return file


def _parquet_rows(part: Part) -> Iterator[Raw]:
    file = _parquet(part.file)
    if not file.metadata.num_row_groups:
        return
    line, growth = 0, Growth(part.file)
    for batch in file.iter_batches(512, row_groups=range(part.start, part.end)):
        for row in batch.to_pylist():
            growth.add(_characters(row))  # a value that is in the file once may be in every row
            line += 1
            yield Raw(line, row)


def _characters(value: Any) -> int:
    """Of all texts in a value."""
    if isinstance(value, str):
        return len(value)
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_characters, members))


def _csv_rows(text: IO[str]) -> Iterator[Raw]:
    import csv

    csv.field_size_limit(LONGEST_LINE)
    try:
        for line, row in enumerate(csv.DictReader(text), start=1):
            yield Raw(line, {key: value for key, value in row.items() if key is not None})
    except csv.Error as error:
        raise OSError(str(error)) from error


def _json_rows(text: IO[str]) -> Iterator[Raw]:
    """Objects of a JSON array, of JSON lines, or the one object of the file, without holding the whole file."""
    decoder = json.JSONDecoder(object_pairs_hook=object_of)
    buffer, number, in_array, ended = "", 0, False, False
    while True:
        buffer = buffer.lstrip(" \t\r\n" + ("," if in_array else ""))
        if not number and not in_array and buffer.startswith("["):
            in_array, buffer = True, buffer[1:]
            continue
        if in_array and buffer.startswith("]"):
            return
        if buffer:
            try:
                value, used = decoder.raw_decode(buffer)
                # A number at the end of what was read may go on.
                if ended or used < len(buffer):
                    number += 1
                    yield Raw(number, value)
                    buffer = buffer[used:]
                    continue
            except (ValueError, RecursionError) as error:
                if ended or len(buffer) > LONGEST_LINE or isinstance(error, DuplicateKey):
                    raise OSError(f"row {number + 1} is not valid JSON: {error}") from None
        elif ended:
            if in_array:
                raise OSError("the array has no end")
            return
        more = text.read(2**20)
        ended = not more
        buffer += more


class DuplicateKey(ValueError):
    """A JSON object names a key twice; which value counts would be a guess."""


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary. Raises DuplicateKey."""
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise DuplicateKey(f"the key {', '.join(map(repr, twice))} is there twice; which value counts would be a guess")
    return value
