"""PrepareData: raw rows -> checked, split, content-addressed dataset and its data card.

in    raw/        train/ (or the rows themselves), optional validation/ and prompts.txt
out   report/     data_card.json, written last
      S3          <publish_to>/<digest>/{train,validation,test}/{examples.jsonl, dataset.json}

Instruction tuning takes one or more .jsonl files and an optional template.json; domain adaptation exactly one .txt, .csv
or .json. Every bad row is told with its place, all at once, and then nothing is written.
"""

import argparse
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_steps.contract import dataset, files, json_files, prompt_template
from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import DataError, StepError
from pipeline_steps.contract.progress import report
from pipeline_steps.contract.prompt_template import PromptTemplate

DATA_CARD_SCHEMA_VERSION = 1
MINIMUM_ROWS = {"train": 2, "validation": 1, "test": 2}
CHUNK_CHARACTERS = 400  # of domain text in one example: a paragraph or two, about 100 tokens
LONGEST_PARAGRAPH = 2000  # characters; a text without paragraphs must not become one endless row


@dataclass(frozen=True)
class PrepareJob:
    """`publish_to` and `base_model_uri` are S3 prefixes; ratios are shares of the rows, 0..1."""

    raw: Path
    output: Path
    tuning_mode: dataset.Mode
    validation_split_ratio: float
    test_split_ratio: float
    train_data_split_seed: int
    publish_to: str
    base_model_uri: str


@dataclass(frozen=True)
class Prepared:
    """Examples by split, and what they have in common."""

    digest: str
    splits: dict[str, list[Example]]
    template: PromptTemplate | None
    prompts: list[str]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="prepare-data", description=__doc__.split("\n\n")[0])
    parser.add_argument("--raw", type=Path, default=Path("/opt/ml/processing/input/raw"))
    parser.add_argument("--output", type=Path, default=Path("/opt/ml/processing/output") / files.REPORT_OUTPUT)
    parser.add_argument("--tuning_mode", choices=("instruction", "domain"), required=True)
    parser.add_argument("--validation_split_ratio", type=float, default=0.1)
    parser.add_argument("--test_split_ratio", type=float, default=0.2)
    parser.add_argument("--train_data_split_seed", type=int, default=0)
    parser.add_argument("--publish_to", required=True, help="S3 prefix for the dataset")
    parser.add_argument(
        "--base_model_uri", required=True, help="S3 prefix of the base model; only its presence is checked"
    )
    run(PrepareJob(**vars(parser.parse_args(arguments))))


def run(job: PrepareJob) -> None:
    """Check everything first; publish the splits; write the data card last."""
    from pipeline_steps import s3

    # The cheapest check first: without base weights the training would fail after this step had been paid.
    if not s3.exists(f"{job.base_model_uri.rstrip('/')}/{files.BASE_MODEL_FILE}"):
        raise StepError(
            f"the base model is not at {job.base_model_uri}; import it once with "
            f"'finetune import-model SOURCE --name {job.base_model_uri.rstrip('/').rsplit('/', 1)[-1]}'"
        )
    prepared = prepare(job)

    root = f"{job.publish_to.rstrip('/')}/{prepared.digest}"
    uris = {split: f"{root}/{split}/" for split in dataset.SPLITS}
    for number, (split, examples) in enumerate(prepared.splits.items(), start=1):
        if not s3.exists(uris[split] + files.DATASET_FILE):
            folder = job.output.with_name("dataset") / split
            info = dataset.SplitInfo(
                prepared.digest, job.tuning_mode, split, len(examples), prepared.template, prepared.prompts
            )
            dataset.write_split(folder, info, examples)
            for name in (files.EXAMPLES_FILE, files.DATASET_FILE):  # the second completes the split
                s3.upload(folder / name, uris[split] + name)
        report("publish", number, len(prepared.splits))

    json_files.write(
        job.output / files.DATA_CARD_FILE,
        {
            "schema_version": DATA_CARD_SCHEMA_VERSION,
            "dataset_digest": prepared.digest,
            "tuning_mode": job.tuning_mode,
            "uris": uris,
            "counts": {split: len(examples) for split, examples in prepared.splits.items()},
            "characters": {
                split: sum(len(example.prompt) + len(example.completion) for example in examples)
                for split, examples in prepared.splits.items()
            },
            "template": prepared.template.to_dict() if prepared.template else None,
        },
    )


def prepare(job: PrepareJob) -> Prepared:
    """Read, check and split. Raises DataError with every problem; writes nothing."""
    train_folder = job.raw / "train" if (job.raw / "train").is_dir() else job.raw
    validation_folder = job.raw / "validation" if (job.raw / "validation").is_dir() else None
    folders = [train_folder, *([validation_folder] if validation_folder else [])]
    template = None

    if job.tuning_mode == "instruction":
        template_file = train_folder / files.TEMPLATE_FILE
        template = prompt_template.read(template_file) if template_file.is_file() else prompt_template.DEFAULT
        groups = [read_instruction_rows(folder, template) for folder in folders]
    else:
        groups = [read_document(folder) for folder in folders]

    splits: dict[str, list[Example]] = {split: [] for split in dataset.SPLITS}
    validation_ratio = 0.0 if validation_folder else job.validation_split_ratio
    for example in dict.fromkeys(groups[0]):  # the same row twice would sit on both sides of a split only by its copy
        split = split_of(example, job.train_data_split_seed, validation_ratio, job.test_split_ratio)
        splits[split].append(example)
    if validation_folder:
        splits["validation"] = list(dict.fromkeys(groups[1]))
    short = [
        f"the {split} split has {len(splits[split])} rows, at least {minimum} are needed; add rows or change the split ratios "
        f"(validation {job.validation_split_ratio}, test {job.test_split_ratio})"
        for split, minimum in MINIMUM_ROWS.items()
        if len(splits[split]) < minimum
    ]
    if short:
        raise DataError(short)

    prompts_file = job.raw / files.PROMPTS_FILE
    prompts = prompts_file.read_text(encoding="utf-8").split("\n") if prompts_file.is_file() else []
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    content = {
        "schema_version": dataset.SCHEMA_VERSION,
        "tuning_mode": job.tuning_mode,
        "template": template.to_dict() if template else None,
        "prompts": prompts,
        "splits": {split: [example.to_line() for example in examples] for split, examples in splits.items()},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Prepared(digest, splits, template, prompts)


def split_of(example: Example, seed: int, validation_ratio: float, test_ratio: float) -> str:
    """The split of a row, by its content and the seed alone: it never changes sides when other rows come or go.

    Rows with the same prompt stay together, or a prompt would be trained on and tested with.
    """
    group = example.prompt or example.completion
    position = int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") / 2**64
    if position < test_ratio:
        return "test"
    return "validation" if position < test_ratio + validation_ratio else "train"


# ---------------------------------------------------------------- instruction tuning


def read_instruction_rows(folder: Path, template: PromptTemplate) -> list[Example]:
    """The rows of every .jsonl file in `folder`, rendered. Raises DataError naming every bad line."""
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise DataError(
            [f"{folder.name}/: no .jsonl file (found {found}); instruction tuning needs one JSON object a line"]
        )
    examples: list[Example] = []
    problems: list[str] = []
    for path in paths:
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            place = f"{path.name}:{number}"
            try:
                row = parse_row(line)
                examples.append(render_row(row, template))
            except ValueError as error:
                problems.extend(f"{place}: {problem}" for problem in str(error).split("\n"))
    if not examples and not problems:
        problems = [f"{', '.join(path.name for path in paths)}: no rows; write one JSON object a line"]
    if problems:
        raise DataError(problems)
    return examples


def parse_row(line: bytes) -> dict[str, Any]:
    """One line as an object. Raises ValueError saying what is wrong with it."""
    try:
        text = line.decode("utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1}); save as UTF-8"
        ) from None
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error}): {_short(text)}") from None
    if not isinstance(row, dict):
        raise ValueError(f"holds {type(row).__name__}, expected one JSON object a line: {_short(text)}")
    return row


def render_row(row: Mapping[str, Any], template: PromptTemplate) -> Example:
    """The row through the template. Raises ValueError with one line for each problem of the row."""
    problems = []
    for column in template.columns:
        if column not in row:
            problems.append(
                f"no column {column!r}, which {files.TEMPLATE_FILE} uses; columns here: {', '.join(map(repr, row))}"
            )
        elif not isinstance(row[column], str):
            problems.append(f"{column!r} is {_short(json.dumps(row[column]))}, expected a text in quotes")
    if problems:
        raise ValueError("\n".join(problems))
    completion = template.render_completion(row)
    if not completion.strip():
        raise ValueError("the completion is empty, so there is nothing to learn; write an answer or drop the row")
    return Example(template.render_prompt(row), completion, ends=True)


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[:limit] + "..."


# ---------------------------------------------------------------- domain adaptation


def read_document(folder: Path) -> list[Example]:
    """The one document in `folder`, in pieces of whole paragraphs. Raises DataError."""
    accepted = (".txt", ".csv", ".json")
    paths = sorted(path for path in folder.iterdir() if path.suffix in accepted and path.name != files.PROMPTS_FILE)
    if len(paths) != 1:
        found = ", ".join(path.name for path in paths) or "none"
        raise DataError(
            [
                f"{folder.name}/: domain adaptation takes exactly one .txt, .csv or .json file, found {len(paths)} ({found})"
            ]
        )
    path = paths[0]
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError([f"{path.name}: not UTF-8 (byte {error.start}); save it as UTF-8"]) from None
    documents = [text] if path.suffix == ".txt" else list(_texts(path, text))
    examples = [example for document in documents for example in chunk(document)]
    if not examples:
        raise DataError([f"{path.name}: holds no text; write the text to learn from into it"])
    return examples


def _texts(path: Path, content: str) -> Iterator[str]:
    """The texts of a CSV or JSON file: column `text`, else the first column."""
    if path.suffix == ".csv":
        rows: list[Any] = list(csv.DictReader(io.StringIO(content)))
    else:
        try:
            parsed = json.loads(content)
        except ValueError as error:
            raise DataError([f"{path.name}: not valid JSON ({error})"]) from None
        rows = parsed if isinstance(parsed, list) else [parsed]
    problems = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not row:
            problems.append(
                f"{path.name}: row {number} is {_short(repr(row))}, expected an object with a column 'text'"
            )
            continue
        column = "text" if "text" in row else next(iter(row))
        if isinstance(row[column], str):
            yield row[column]
        else:
            problems.append(f"{path.name}: row {number}: {column!r} is {_short(repr(row[column]))}, expected a text")
    if problems:
        raise DataError(problems)


def chunk(document: str) -> Iterator[Example]:
    """Pieces of about CHUNK_CHARACTERS, cut between paragraphs where there are any; only the last one ends the document."""
    paragraphs = [p for p in re.split(r"\n\s*\n", document.replace("\r\n", "\n")) if p.strip()]
    pieces: list[str] = []
    current: list[str] = []
    for paragraph in paragraphs:
        for part in _parts(paragraph.strip("\n")):
            current.append(part)
            if sum(map(len, current)) >= CHUNK_CHARACTERS:
                pieces.append("\n\n".join(current))
                current = []
    if current:
        pieces.append("\n\n".join(current))
    for number, piece in enumerate(pieces, start=1):
        yield Example("", piece, ends=number == len(pieces))


def _parts(paragraph: str) -> Iterator[str]:
    """The paragraph, cut at white space (or anywhere, without any) where it is longer than LONGEST_PARAGRAPH."""
    while len(paragraph) > LONGEST_PARAGRAPH:
        cut = max(paragraph.rfind(" ", 1, LONGEST_PARAGRAPH), paragraph.rfind("\n", 1, LONGEST_PARAGRAPH))
        cut = cut if cut > 0 else LONGEST_PARAGRAPH
        yield paragraph[:cut]
        paragraph = paragraph[cut:].lstrip()
    if paragraph:
        yield paragraph
