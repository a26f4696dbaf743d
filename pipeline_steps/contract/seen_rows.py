"""seen_rows.hashes: which rows a model has learned from or was chosen by, so that a test set can be checked against them.

One line of JSON, {"schema_version": 1, "rows": n}, then the first 8 bytes of each row's key (contract/dataset.py). It
lies beside the weights and travels with them: whoever evaluates a model has the proof at hand, without its dataset.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import StepError

SCHEMA_VERSION = 1
KEY_BYTES = 8


def key(example: Example) -> bytes:
    """Of the texts alone: the same row in another slice is the same row."""
    return replace(example, slice=None).key[:KEY_BYTES]


def write(path: Path, examples: Iterable[Example]) -> None:
    keys = sorted({key(example) for example in examples})
    unfinished = path.with_name(f".{path.name}.partial")
    with unfinished.open("wb") as file:
        file.write(json.dumps({"schema_version": SCHEMA_VERSION, "rows": len(keys)}).encode() + b"\n")
        file.writelines(keys)
    unfinished.replace(path)


def read(path: Path) -> frozenset[bytes] | None:
    """The keys in the file; None if there is none. Raises StepError if it is of another form."""
    if not path.is_file():
        return None
    header, _, content = path.read_bytes().partition(b"\n")
    try:
        said = json.loads(header)
        version, rows = said["schema_version"], said["rows"]
    except (ValueError, TypeError, KeyError):
        version, rows = None, None
    if version != SCHEMA_VERSION or len(content) != rows * KEY_BYTES:
        raise StepError(
            f"{path} is not of schema version {SCHEMA_VERSION} or not whole ({header[:80]!r}, {len(content)} bytes); "
            "train the model again"
        )
    return frozenset(content[start : start + KEY_BYTES] for start in range(0, len(content), KEY_BYTES))
