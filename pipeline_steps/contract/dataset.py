"""A prepared split on disk: examples.jsonl, and dataset.json, which is written last and says what the rows are."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline_steps.contract import files, json_files
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.prompt_template import PromptTemplate

SCHEMA_VERSION = 1
SPLITS = ("train", "validation", "test")
Mode = Literal["instruction", "domain"]


@dataclass(frozen=True)
class Example:
    """One text to learn from: `completion` is learned, `prompt` is only read.

    `ends`: the text is complete, and the model learns to stop after it. False for a piece of a longer document.
    """

    prompt: str
    completion: str
    ends: bool

    @property
    def id(self) -> str:
        """16 hex digits of the content's hash."""
        return hashlib.sha256(json.dumps([self.prompt, self.completion, self.ends]).encode()).hexdigest()[:16]

    def to_line(self) -> str:
        return json.dumps({"id": self.id, **asdict(self)}, ensure_ascii=False)


@dataclass(frozen=True)
class SplitInfo:
    """What dataset.json says of a split. `prompts`: prompts to compare before and after, from the user's prompts.txt."""

    dataset_digest: str
    tuning_mode: Mode
    split: str
    rows: int
    template: PromptTemplate | None
    prompts: list[str]


def write_split(folder: Path, info: SplitInfo, examples: Iterable[Example]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / files.EXAMPLES_FILE).open("w", encoding="utf-8") as file:
        file.writelines(example.to_line() + "\n" for example in examples)
    json_files.write(folder / files.DATASET_FILE, {"schema_version": SCHEMA_VERSION, **asdict(info)})


def read_split(folder: Path, expected: str) -> tuple[SplitInfo, list[Example]]:
    """The split in `folder`. Raises StepError unless it is complete and is the `expected` one."""
    content = json_files.read(folder / files.DATASET_FILE, SCHEMA_VERSION)
    if content["split"] != expected:
        raise StepError(f"{folder} holds the {content['split']} split, expected {expected}; check the step's inputs")
    with (folder / files.EXAMPLES_FILE).open(encoding="utf-8") as file:
        examples = [_example(json.loads(line)) for line in file]
    if len(examples) != content["rows"]:
        raise StepError(
            f"{folder} holds {len(examples)} rows, its dataset.json says {content['rows']}; prepare it again"
        )
    template = PromptTemplate(**content["template"]) if content["template"] else None
    info = SplitInfo(
        content["dataset_digest"],
        content["tuning_mode"],
        content["split"],
        content["rows"],
        template,
        content["prompts"],
    )
    return info, examples


def _example(row: dict[str, Any]) -> Example:
    return Example(row["prompt"], row["completion"], row["ends"])
