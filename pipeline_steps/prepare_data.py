"""PrepareData: raw rows -> checked, split, content-addressed dataset and its data card.

in    raw/        train/ (or the rows themselves), optional validation/ and prompts.txt
out   report/     data_card.json, written last
      S3          <publish_to>/<digest>/{train,validation,test}/{examples.jsonl, dataset.json}

raw_data.py reads what users bring. Every bad row is told with its place, all at once, and then nothing is written.
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline_steps import raw_data
from pipeline_steps.arguments import ArgumentParser, number
from pipeline_steps.contract import dataset, files, json_files
from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import DataError, StepError
from pipeline_steps.contract.progress import report
from pipeline_steps.contract.prompt_template import PromptTemplate

DATA_CARD_SCHEMA_VERSION = 1
MINIMUM_ROWS = {"train": 2, "validation": 1, "test": 2}
CHUNK_CHARACTERS = 400  # of domain text in one example: a paragraph or two, about 100 tokens


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
    """Examples by split, and what they have in common. `rows_read`: before copies were put together."""

    digest: str
    splits: dict[str, list[Example]]
    template: PromptTemplate | None
    prompts: list[str]
    rows_read: int


def main(arguments: list[str]) -> None:
    parser = ArgumentParser(prog="prepare-data", description=__doc__.split("\n\n")[0])
    parser.add_argument("--raw", type=Path, default=Path("/opt/ml/processing/input/raw"))
    parser.add_argument("--output", type=Path, default=Path("/opt/ml/processing/output") / files.REPORT_OUTPUT)
    parser.add_argument("--tuning_mode", choices=("instruction", "domain"), required=True)
    parser.add_argument("--validation_split_ratio", type=number(float, 0, 0.9), default=0.1)
    parser.add_argument("--test_split_ratio", type=float, default=0.2)
    parser.add_argument("--train_data_split_seed", type=number(int, 0, 2**31), default=0)
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
    with tempfile.TemporaryDirectory() as scratch:
        for done, (split, examples) in enumerate(prepared.splits.items(), start=1):
            if not s3.exists(uris[split] + files.DATASET_FILE):
                folder = Path(scratch) / split
                info = dataset.SplitInfo(
                    prepared.digest, job.tuning_mode, split, len(examples), prepared.template, prepared.prompts
                )
                dataset.write_split(folder, info, examples)
                for name in (files.EXAMPLES_FILE, files.DATASET_FILE):  # the second completes the split
                    s3.upload(folder / name, uris[split] + name)
            report("publish", done, len(prepared.splits))

    json_files.write(
        job.output / files.DATA_CARD_FILE,
        {
            "schema_version": DATA_CARD_SCHEMA_VERSION,
            "dataset_digest": prepared.digest,
            "tuning_mode": job.tuning_mode,
            "uris": uris,
            "counts": {split: len(examples) for split, examples in prepared.splits.items()},
            "rows_read": prepared.rows_read,
            "copies_left_out": prepared.rows_read - sum(map(len, prepared.splits.values())),
            "characters": {
                split: sum(len(example.prompt) + len(example.completion) for example in examples)
                for split, examples in prepared.splits.items()
            },
            "template": prepared.template.to_dict() if prepared.template else None,
        },
    )


def prepare(job: PrepareJob) -> Prepared:
    """Read, check and split. Raises DataError with every problem; writes nothing."""
    # 1. Every file, every problem.
    has_folders = (job.raw / "train").is_dir()
    folders = [job.raw / "train"] if has_folders else [job.raw]
    if has_folders and (job.raw / "validation").is_dir():
        folders.append(job.raw / "validation")
    problems: list[str] = []
    template = raw_data.read_template(folders[0], problems) if job.tuning_mode == "instruction" else None
    prompts = raw_data.read_prompts(job.raw / files.PROMPTS_FILE, problems)
    groups = []
    for folder in folders:
        place = "" if folder.name != "validation" else "validation/"
        if job.tuning_mode == "instruction":
            groups.append(raw_data.read_rows(folder, place, template, problems))
        else:
            groups.append(raw_data.read_document(folder, place, problems))
    if problems:
        raise DataError(problems)

    # 2. Splits. The same row twice counts once: its copy would only weigh it double, or sit in the test set as a leak.
    splits: dict[str, list[Example]] = {split: [] for split in dataset.SPLITS}
    splits["validation"] = list(dict.fromkeys(groups[1])) if len(groups) > 1 else []
    validation_ratio = 0.0 if splits["validation"] else job.validation_split_ratio
    held_out = {text_to_split_by(example) for example in splits["validation"]}
    for example in dict.fromkeys(groups[0]):
        split = split_of(example, job.train_data_split_seed, validation_ratio, job.test_split_ratio)
        if text_to_split_by(example) not in held_out:
            splits[split].append(example)
    short = [
        f"the {split} split has {len(splits[split])} rows, at least {minimum} are needed; add rows or change the split ratios "
        f"(validation {job.validation_split_ratio:g}, test {job.test_split_ratio:g})"
        for split, minimum in MINIMUM_ROWS.items()
        if len(splits[split]) < minimum
    ]
    if short:
        raise DataError(short)

    # 3. The address: a hash of all that the dataset holds.
    content = {
        "schema_version": dataset.SCHEMA_VERSION,
        "tuning_mode": job.tuning_mode,
        "template": template.to_dict() if template else None,
        "prompts": prompts,
        "splits": {split: [example.to_line() for example in examples] for split, examples in splits.items()},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Prepared(digest, splits, template, prompts, rows_read=sum(map(len, groups)))


def split_of(example: Example, seed: int, validation_ratio: float, test_ratio: float) -> str:
    """The split of a row, by its content and the seed alone: it never changes sides when other rows come or go."""
    key = hashlib.sha256(f"{seed}:{text_to_split_by(example)}".encode()).digest()
    position = int.from_bytes(key[:8], "big") / 2**64
    if position < test_ratio:
        return "test"
    return "validation" if position < test_ratio + validation_ratio else "train"


def text_to_split_by(example: Example) -> str:
    """Rows with the same prompt stay on one side: two answers to one question would leak from one side to the other."""
    return example.prompt or example.completion
