"""The two things done with a part, each by one process that needs nothing of the other parts.

examine   raw rows -> checked, redacted, rendered, encoded rows on disk, and their fingerprints
finish    the rows that are kept -> the part's files of each split

Rows are taken in blocks, so that memory depends on the block's size and not on the part's.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow
import pyarrow.compute

from pipeline_steps import token_files
from pipeline_steps.contract import files, json_files
from pipeline_steps.contract.dataset import SPLITS, SplitPart
from pipeline_steps.contract.errors import DataError
from pipeline_steps.data import fingerprints, personal_data
from pipeline_steps.data.rows import Bad, Record, RowReader
from pipeline_steps.data.sources import Part, Position, SourceFile, lines_in
from pipeline_steps.text_encoder import TextEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

PersonalDataPolicy = Literal["report", "redact", "fail"]

BLOCK_ROWS = 512  # rendered and encoded together ...
BLOCK_CHARACTERS = 16 * 2**20  # ... or fewer, if they are long
SKETCH_ROWS = 16_384  # fingerprints of one file
EXAMPLES_A_PART = 10
SAMPLES = 3
SHOWN_CHARACTERS = 400
SAMPLED_NGRAM_BYTES = 32 * 2**20  # of raw data in which every n-gram is looked at; of more data a share

ROWS_FILE = "rows.arrow"
BAD_FILE = "bad.jsonl"
SUMMARY_FILE = "summary.json"  # written last: the part is examined
DATASET_FOLDER = "dataset"
SUMMARY_SCHEMA_VERSION = 1
FINISHED_SCHEMA_VERSION = 1
ROWS_SCHEMA = pyarrow.schema([("split", pyarrow.uint8()), ("example", pyarrow.string()), *token_files.SCHEMA])


@dataclass(frozen=True)
class Examination:
    """What is asked of every part. `encoder` is None where no tokenizer was given; ratios are shares, 0..1.

    `ngram_modulus`: one n-gram in so many is looked at, the same ones in every row.
    """

    reader: RowReader
    encoder: TextEncoder | None
    personal_data: PersonalDataPolicy
    seed: int
    validation_ratio: float
    test_ratio: float
    ngram_modulus: int


@dataclass
class PartSummary:
    """What is known of an examined part without its rows. Lines count from the part's first."""

    rows: int = 0  # good ones
    bad: int = 0
    lines: int = 0
    sketches: int = 0  # files of fingerprints
    file_problems: list[str] = field(default_factory=list)  # why the file could not be read to its end
    personal_data: dict[str, dict[str, int]] = field(default_factory=dict)
    personal_data_examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class SplitSummary:
    """One split's share of a part: its files, how long its rows are (tokens -> rows), and its first rows' turns."""

    part: SplitPart | None = None
    learned_tokens: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    samples: list[list[list[str]]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "part": asdict(self.part) if self.part else None}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SplitSummary":
        """What `to_json` made, as it comes back from a file: there, lengths are texts."""
        lengths = Counter({int(length): rows for length, rows in content["lengths"].items()})
        part = SplitPart(**content["part"]) if content["part"] else None
        return cls(part, content["learned_tokens"], lengths, content["samples"])


def read_summary(work: Path, part: Part) -> PartSummary:
    """The summary of an examined part."""
    content = json_files.read(folder_of(work, part) / SUMMARY_FILE, SUMMARY_SCHEMA_VERSION)
    del content["schema_version"]
    return PartSummary(**content)


def folder_of(work: Path, part: Part) -> Path:
    return work / f"part-{part.number:05d}"


# ---------------------------------------------------------------- examine


def get_ready() -> None:
    """Import what `examine` needs, so that it is there when the work comes."""
    nothing = fingerprints.word_hashes("")
    fingerprints.signature(nothing, nothing)
    personal_data.find("call +1 212 555 0100")


def examine(
    part: Part, job: Examination, work: Path, on_progress: Callable[[int, int], None] = lambda rows, size: None
) -> PartSummary:
    """Write the part's rows, bad rows and fingerprints below `work`.

    `on_progress` hears how many more rows are done, and how much more of the part's size (end - start).
    """
    folder = folder_of(work, part)
    folder.mkdir(parents=True, exist_ok=True)
    summary = PartSummary()
    sketches = SketchWriter(folder)
    position, told = Position(part), 0
    with (
        (folder / BAD_FILE).open("w", encoding="utf-8") as bad_file,
        pyarrow.OSFile(str(folder / ROWS_FILE), "wb") as sink,
        pyarrow.ipc.new_stream(sink, ROWS_SCHEMA) as rows_file,
    ):
        for block in _blocks(_records(part, job.reader, summary, position)):
            good: list[tuple[int, Record]] = []
            for line, row in block:
                if isinstance(row, Bad):
                    summary.bad += 1
                    bad_file.write(json.dumps({"line": row.line, "problems": row.problems, "row": row.content}) + "\n")
                else:
                    good.append((line, row))
            rendered = [_rendered(line, record, job, summary) for line, record in good]
            if rendered:
                _write_block(part, job, good, rendered, rows_file, sketches)
            summary.rows += len(good)
            reached = position.reached
            on_progress(len(block), reached - told)
            told = reached
    on_progress(0, part.end - part.start - told)
    summary.lines = lines_in(part)
    summary.sketches = sketches.close()
    json_files.write(folder / SUMMARY_FILE, {"schema_version": SUMMARY_SCHEMA_VERSION, **asdict(summary)})
    return summary


def _records(
    part: Part, reader: RowReader, summary: PartSummary, position: Position
) -> Iterator[tuple[int, Record | Bad]]:
    try:
        yield from reader.records(part, position)
    except DataError as error:  # told together with what other parts have to tell
        summary.file_problems += error.problems


def _blocks(rows: Iterator[tuple[int, Record | Bad]]) -> Iterator[list[tuple[int, Record | Bad]]]:
    block: list[tuple[int, Record | Bad]] = []
    characters = 0
    for line, row in rows:
        block.append((line, row))
        characters += len(row.content) if isinstance(row, Bad) else row.characters
        if len(block) == BLOCK_ROWS or characters > BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _rendered(line: int, record: Record, job: Examination, summary: PartSummary) -> Mapping[str, str]:
    """The record's texts as they will be used, with what was found in them counted."""
    texts = record.texts
    kinds: Counter[str] = Counter()
    for name, text in record.texts.items():
        findings = personal_data.find(text)
        if not findings:
            continue
        kinds.update(finding.kind for finding in findings)
        room = EXAMPLES_A_PART - len(summary.personal_data_examples)
        summary.personal_data_examples += [
            {"line": line, "kind": finding.kind, "masked": personal_data.masked(text, finding)}
            for finding in findings[: max(0, room)]
        ]
        if job.personal_data == "redact":
            texts = {**texts, name: personal_data.redact(text, findings)}
    for kind, count in kinds.items():
        counted = summary.personal_data.setdefault(kind, {"findings": 0, "rows": 0})
        counted["findings"] += count
        counted["rows"] += 1
    return texts


def _write_block(
    part: Part,
    job: Examination,
    good: Sequence[tuple[int, Record]],
    texts: Sequence[Mapping[str, str]],
    rows_file: Any,
    sketches: "SketchWriter",
) -> None:
    examples = [record.render(one) for (_, record), one in zip(good, texts, strict=True)]
    splits = [
        SPLITS.index(
            "validation"
            if part.file.folder == "validation"
            else split_of(record.group, job.seed, job.validation_ratio, job.test_ratio)
        )
        for _, record in good
    ]
    tokens = token_files.encode(examples, job.encoder) if job.encoder else [token_files.NONE] * len(examples)
    rows_file.write_batch(
        pyarrow.record_batch(
            [
                pyarrow.array(splits, pyarrow.uint8()),
                pyarrow.array([example.to_line() for example in examples]),
                *token_files.columns(tokens),
            ],
            schema=ROWS_SCHEMA,
        )
    )
    for (line, record), one, example, split in zip(good, texts, examples, splits, strict=True):
        asked = fingerprints.word_hashes(record.asked(one))
        answered = fingerprints.word_hashes(record.answered(one))
        grams = fingerprints.mixed(fingerprints.ngrams(np.concatenate([asked, answered]), fingerprints.NGRAM_WORDS))
        sketches.add(
            line,
            split,
            example.key,
            fingerprints.signature(asked, answered),
            grams[grams % np.uint64(job.ngram_modulus) == 0],
        )


def split_of(group: str, seed: int, validation_ratio: float, test_ratio: float) -> str:
    """The split of a row, by its group and the seed alone: it never changes sides when other rows come or go."""
    position = int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") / 2**64
    if position < test_ratio:
        return "test"
    return "validation" if position < test_ratio + validation_ratio else "train"


# ---------------------------------------------------------------- fingerprints on disk


@dataclass(frozen=True)
class Sketches:
    """Fingerprints of up to SKETCH_ROWS consecutive rows, mapped from disk; one entry a row but for the n-grams.

    `keys` (rows, 2) uint64, `lines`, `splits` (index into SPLITS), `bands` (BANDS, rows), `signatures` (rows, 2,
    PERMUTATIONS); `grams` (n,) and the row of each, `gram_rows` (n,).
    """

    keys: "NDArray[np.uint64]"
    lines: "NDArray[np.int32]"
    splits: "NDArray[np.uint8]"
    bands: "NDArray[np.uint64]"
    signatures: "NDArray[np.uint32]"
    grams: "NDArray[np.uint64]"
    gram_rows: "NDArray[np.int32]"

    @classmethod
    def load(cls, folder: Path, number: int) -> "Sketches":
        return cls(*(np.load(path, mmap_mode="r") for path in cls.files(folder, number)))

    def save(self, folder: Path, number: int) -> None:
        for path, name in zip(self.files(folder, number), self.__dataclass_fields__, strict=True):
            np.save(path, getattr(self, name))

    @classmethod
    def files(cls, folder: Path, number: int) -> list[Path]:
        return [folder / f"{name}-{number:03d}.npy" for name in cls.__dataclass_fields__]


class SketchWriter:
    """Collects fingerprints and writes them in files of SKETCH_ROWS rows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = 0
        self._clear()

    def _clear(self) -> None:
        self._lines: list[int] = []
        self._splits: list[int] = []
        self._keys: list[bytes] = []
        self._signatures: list[NDArray[np.uint32]] = []
        self._grams: list[NDArray[np.uint64]] = []

    def add(
        self, line: int, split: int, key: bytes, signature: "NDArray[np.uint32]", grams: "NDArray[np.uint64]"
    ) -> None:
        self._lines.append(line)
        self._splits.append(split)
        self._keys.append(key)
        self._signatures.append(signature)
        self._grams.append(grams)
        if len(self._lines) == SKETCH_ROWS:
            self._write()

    def close(self) -> int:
        """Write what is left; returns the number of files."""
        if self._lines:
            self._write()
        return self._files

    def _write(self) -> None:
        signatures = np.stack(self._signatures)
        Sketches(
            np.frombuffer(b"".join(self._keys), np.uint64).reshape(-1, 2),
            np.array(self._lines, np.int32),
            np.array(self._splits, np.uint8),
            fingerprints.bands(signatures),
            signatures,
            np.concatenate(self._grams),
            np.repeat(np.arange(len(self._grams), dtype=np.int32), [len(grams) for grams in self._grams]),
        ).save(self._folder, self._files)
        self._files += 1
        self._clear()


def ngram_modulus(files: Iterable[SourceFile]) -> int:
    """One n-gram in so many is looked at, so that the memory for them is bounded, whatever the size of the data."""
    return 1 + sum(file.size for file in files) // SAMPLED_NGRAM_BYTES


def exchanged_files(folder: Path, summary: PartSummary) -> list[Path]:
    """The files of an examined part that every instance needs."""
    sketches = [path for number in range(summary.sketches) for path in Sketches.files(folder, number)]
    return [folder / SUMMARY_FILE, folder / BAD_FILE, *sketches]


# ---------------------------------------------------------------- finish


def finish(
    part: Part, keep: "NDArray[np.bool_]", first: int, shown: set[int], work: Path, with_tokens: bool
) -> dict[str, Any]:
    """Write the kept rows of an examined part to DATASET_FOLDER/<split>/; returns what was written, as JSON.

    `keep` has one entry for each good row of the part, whose first is number `first` of all; `shown` are the numbers of
    all rows whose text is wanted.
    """
    rows = _RowsFile(folder_of(work, part) / ROWS_FILE)
    summaries = {
        split: _write_split(rows.kept(keep, number), work / DATASET_FOLDER / split, part, with_tokens)
        for number, split in enumerate(SPLITS)
    }
    texts = rows.texts({row - first for row in shown if first <= row < first + len(keep)})
    return {
        "schema_version": FINISHED_SCHEMA_VERSION,
        **{split: summary.to_json() for split, summary in summaries.items()},
        "texts": {str(first + row): text for row, text in texts.items()},
    }


def _write_split(kept: Iterator[Any], folder: Path, part: Part, with_tokens: bool) -> SplitSummary:
    summary = SplitSummary()
    first = next(kept, None)
    if first is None:
        return summary
    folder.mkdir(parents=True, exist_ok=True)
    examples = folder / f"examples-{part.number:05d}.jsonl"
    tokens = folder / f"tokens-{part.number:05d}.arrow" if with_tokens else None
    with examples.open("w", encoding="utf-8") as file:
        batches = _copy_examples(chain([first], kept), file, summary)
        if tokens:
            _write_tokens(tokens, batches, summary)
        else:
            for _ in batches:
                pass
    summary.part = SplitPart(examples.name, tokens.name if tokens else None, summary.lengths.total())
    return summary


class _RowsFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def _batches(self) -> Iterator[tuple[int, Any]]:
        """(number of its first row, record batch) of the whole file."""
        position = 0
        with pyarrow.OSFile(str(self._path)) as source, pyarrow.ipc.open_stream(source) as reader:
            for batch in reader:
                yield position, batch
                position += batch.num_rows

    def kept(self, keep: "NDArray[np.bool_]", split: int) -> Iterator[Any]:
        """Record batches of the rows that are kept and belong to the split; none is empty."""
        for position, batch in self._batches():
            mask = keep[position : position + batch.num_rows] & (batch.column("split").to_numpy() == split)
            if mask.any():
                yield batch.filter(pyarrow.array(mask))

    def texts(self, rows: set[int]) -> dict[int, str]:
        """The end of some rows' texts, where they differ from others of the same template, by row number."""
        texts = dict[int, str]()
        for position, batch in self._batches() if rows else ():
            for row in rows & set(range(position, position + batch.num_rows)):
                example = json.loads(batch.column("example")[row - position].as_py())
                texts[row] = ending(f"{example['prompt']}{example['completion']}")
        return texts


def ending(text: str) -> str:
    """The last SHOWN_CHARACTERS of a text, from the beginning of a word on."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    cut, space = text[-SHOWN_CHARACTERS:], re.search(r"\s+", text[-SHOWN_CHARACTERS:-1])
    return files.CUT + (cut[space.end() :] if space else cut)


def _copy_examples(batches: Iterable[Any], file: Any, summary: SplitSummary) -> Iterator[Any]:
    """Write each batch's examples and pass the batch on."""
    for batch in batches:
        examples = batch.column("example").to_pylist()
        file.writelines(example + "\n" for example in examples)
        summary.lengths.update(np.diff(batch.column("ids").offsets.to_numpy()).tolist())
        for example in examples[: SAMPLES - len(summary.samples)]:
            row = json.loads(example)
            summary.samples.append([*row.get("history", ()), [row["prompt"], row["completion"]]])
        yield batch


def _write_tokens(path: Path, batches: Iterable[Any], summary: SplitSummary) -> None:
    schema = token_files.SCHEMA
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            summary.learned_tokens += int(pyarrow.compute.sum(batch.column("learned").flatten()).as_py() or 0)
            writer.write_batch(batch.select(["ids", "learned"]))


def bad_rows(part: Part, work: Path, first_line: int) -> Iterator[dict[str, Any]]:
    """The part's bad rows with their true lines; `first_line` is the line before the part's first."""
    with (folder_of(work, part) / BAD_FILE).open(encoding="utf-8") as file:
        for line in file:
            bad = json.loads(line)
            yield {"file": part.file.name, **bad, "line": bad["line"] + first_line}
