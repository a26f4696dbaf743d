"""A prepared split on disk: its parts (texts and token ids), and dataset.json, which is written last and names them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline_steps.contract import files, json_files
from pipeline_steps.contract.chat_format import ChatFormat
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.prompt_template import PromptTemplate

SCHEMA_VERSION = 4
SPLITS = ("train", "validation", "test")
Mode = Literal["instruction", "domain", "chat"]


@dataclass(frozen=True)
class Example:
    """One text to learn from: `completion` is learned, `prompt` is only read.

    `ends`: the text is complete, and the model learns to stop after it. False for a piece of a longer document.
    `history`: earlier (prompt, completion) turns of the same dialog; their completions are learned too.
    `slice`: the row's value in the dataset's slice column; figures are told for each of its values.
    """

    prompt: str
    completion: str
    ends: bool
    history: tuple[tuple[str, str], ...] = ()
    slice: str | None = None

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """(prompt, completion) of every turn, the last one included."""
        return (*self.history, (self.prompt, self.completion))

    def whole_prompt(self, end: str) -> str:
        """All that is read before the completion, as one text; `end` is the text of the end-of-sequence token."""
        return "".join(f"{prompt}{completion}{end}" for prompt, completion in self.history) + self.prompt

    @cached_property
    def key(self) -> bytes:
        """16 bytes of the content's hash: the same for the same example, wherever it stands."""
        texts = [self.prompt, self.completion, *(text for turn in self.history for text in turn)]
        if self.slice is not None:
            texts.append(self.slice)  # published with the row, so part of what the dataset's digest is of
        content = f"{self.ends}" + "".join(f"{len(text)}:{text}" for text in texts)
        return hashlib.sha256(content.encode()).digest()[:16]

    @property
    def id(self) -> str:
        """16 hex digits of the content's hash."""
        return self.key[:8].hex()

    def to_line(self) -> str:
        row: dict[str, Any] = {"id": self.id, "prompt": self.prompt, "completion": self.completion, "ends": self.ends}
        if self.history:
            row["history"] = self.history
        if self.slice is not None:
            row["slice"] = self.slice
        return json.dumps(row, ensure_ascii=False)


@dataclass(frozen=True)
class SplitPart:
    """Names of a part's files in the split's folder, and its rows. `tokens` is None where no token ids were written."""

    examples: str
    tokens: str | None
    rows: int


@dataclass(frozen=True)
class SplitInfo:
    """What dataset.json says of a split. `prompts`: prompts to compare before and after, from the user's prompts.txt.

    `chat` is how dialogs read; with mode instruction it is there where the template was made of it.

    `dataset_digest` is of the whole dataset, `split_digest` of this split's rows alone. `tokenizer_digest` is of the
    tokenizer that made the token ids. `slice_column` is the column that the rows' slices come from.
    """

    dataset_digest: str
    split_digest: str
    tuning_mode: Mode
    split: str
    rows: int
    parts: tuple[SplitPart, ...]
    template: PromptTemplate | None
    prompts: list[str]
    tokenizer_digest: str | None
    slice_column: str | None = None
    chat: ChatFormat | None = None


def write_info(folder: Path, info: SplitInfo) -> None:
    """Write dataset.json, which declares the split complete."""
    json_files.write(folder / files.DATASET_FILE, {"schema_version": SCHEMA_VERSION, **asdict(info)})


def read_info(folder: Path, expected: str) -> SplitInfo:
    """What dataset.json in `folder` says. Raises StepError unless it is of the `expected` split."""
    content = json_files.read(folder / files.DATASET_FILE, SCHEMA_VERSION)
    if content["split"] != expected:
        raise StepError(f"{folder} holds the {content['split']} split, expected {expected}; check the step's inputs")
    del content["schema_version"]
    content["parts"] = tuple(SplitPart(**part) for part in content["parts"])
    content["template"] = PromptTemplate(**content["template"]) if content["template"] else None
    content["chat"] = ChatFormat(**content["chat"]) if content["chat"] else None
    return SplitInfo(**content)


def read_examples(folder: Path, info: SplitInfo) -> Iterator[Example]:
    """The split's examples, in order. Raises StepError at the end if there are not as many as dataset.json says."""
    read = 0
    for part in info.parts:
        with (folder / part.examples).open(encoding="utf-8") as file:
            for line in file:
                read += 1
                yield _example(json.loads(line))
    if read != info.rows:
        raise StepError(f"{folder} holds {read} rows, its dataset.json says {info.rows}; prepare it again")


def read_split(folder: Path, expected: str) -> tuple[SplitInfo, list[Example]]:
    """The split in `folder`, whole. Raises StepError unless it is complete and is the `expected` one."""
    info = read_info(folder, expected)
    return info, list(read_examples(folder, info))


def _example(row: Mapping[str, Any]) -> Example:
    history = tuple((prompt, completion) for prompt, completion in row.get("history", ()))
    return Example(row["prompt"], row["completion"], row["ends"], history, row.get("slice"))
