"""ToJumpStart: a prepared dataset -> the folders that JumpStart's training reads, with the same texts in them.

in    train/, validation/ (a dataset's splits)
out   jumpstart-training/    train.jsonl and template.json (instruction and chat), or train.txt (domain)
      jumpstart-validation/  validation.jsonl or validation.txt
      report/                jumpstart_data.json: the hyperparameters that say which of these it is, written last

A row is one answer: prompt and completion as PrepareData rendered them, so the template only puts them behind each other.
A dialog is as many rows as it has answers, each with all that came before as its prompt.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from pipeline_steps.contract import dataset, files, json_files
from pipeline_steps.contract.dataset import Example, SplitInfo

SCHEMA_VERSION = 1
TEMPLATE = {"prompt": "{prompt}", "completion": "{completion}"}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="to-jumpstart", description=__doc__.split("\n\n")[0])
    parser.add_argument("--input", type=Path, default=Path("/opt/ml/processing/input"))
    parser.add_argument("--output", type=Path, default=Path("/opt/ml/processing/output"))
    options = parser.parse_args(arguments)
    run(options.input, options.output)


def run(inputs: Path, output: Path) -> None:
    """Write both channels and the report below `output`."""
    modes = set()
    for split, channel in files.JUMPSTART_OUTPUTS.items():
        info = dataset.read_info(inputs / split, split)
        modes.add(info.tuning_mode)
        folder = output / channel
        folder.mkdir(parents=True, exist_ok=True)
        rows = (
            write_text(inputs / split, info, folder)
            if info.tuning_mode == "domain"
            else write_rows(inputs / split, info, folder)
        )
        print(f"{channel}: {rows} rows of the {split} split", flush=True)
    (mode,) = modes
    if mode != "domain":
        template = output / files.JUMPSTART_OUTPUTS["train"] / files.TEMPLATE_FILE
        template.write_text(json.dumps(TEMPLATE) + "\n", encoding="utf-8")
    told = {"schema_version": SCHEMA_VERSION, "instruction_tuned": str(mode != "domain"), "chat_dataset": "False"}
    json_files.write(output / files.REPORT_OUTPUT / files.JUMPSTART_DATA_FILE, told)


def write_rows(source: Path, info: SplitInfo, folder: Path) -> int:
    """JSON lines with a prompt and a completion; returns how many."""
    count = 0
    with (folder / f"{info.split}.jsonl").open("w", encoding="utf-8") as file:
        for example in dataset.read_examples(source, info):
            for prompt, completion in answers(example, info.chat.end if info.chat else ""):
                count += 1
                file.write(json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False) + "\n")
    return count


def answers(example: Example, end: str) -> Iterator[tuple[str, str]]:
    """Every answer of an example with all that is read before it; `end` is the text of the end-of-sequence token."""
    before = ""
    for prompt, completion in example.turns:
        yield before + prompt, completion
        before += prompt + completion + end


def write_text(source: Path, info: SplitInfo, folder: Path) -> int:
    """One text file, as JumpStart wants it for domain adaptation; returns how many pieces it has."""
    count = 0
    with (folder / f"{info.split}.txt").open("w", encoding="utf-8") as file:
        for example in dataset.read_examples(source, info):
            count += 1
            file.write(example.completion.rstrip("\n") + "\n\n")
    return count
