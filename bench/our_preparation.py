"""What the peers of data_prep.py do, made of the product's own parts: rows -> rendered, encoded, packed.

On all cores, as PrepareData does it; our_whole_step.py is PrepareData itself. Its processes import this module, so it
imports no more than those of PrepareData do.
"""

import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
from numpy.typing import NDArray

from pipeline_steps import packing, token_files
from pipeline_steps.contract.dataset import Mode
from pipeline_steps.contract.prompt_template import DEFAULT
from pipeline_steps.data import sources, workers
from pipeline_steps.data.rows import Bad, RowReader
from pipeline_steps.data.sources import Part
from pipeline_steps.text_encoder import TextEncoder

MODE: Mode = "instruction"
BLOCK_ROWS = 512

_encoder: list[TextEncoder] = []  # of a worker process


def encode_and_pack(jsonl: Path, tokenizer_folder: Path, output: Path, capacity: int) -> None:
    """Token ids of every row, then every packed sequence gathered once.

    The peer that packs leaves its sequences on disk; ours are gathered by training from the mapped rows, so gathering
    them is part of the time here.
    """
    source = sources.SourceFile(str(jsonl), jsonl.name, "train", jsonl.stat().st_size)
    tokenizer_json = (tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8")
    vocabulary = json.loads(tokenizer_json)["model"]["vocab"]
    folder = output / "encoded"
    folder.mkdir()
    given = (tokenizer_json, vocabulary["<s>"], vocabulary["</s>"])
    path = output / "given.pickle"  # as PrepareData hands its processes the tokenizer
    path.write_bytes(pickle.dumps(given))
    with ProcessPoolExecutor(workers.cores(), workers.SPAWN, _start, (path,)) as pool:
        list(pool.map(partial(_encode, folder=folder, capacity=capacity), sources.cut([source])))


def _start(path: Path) -> None:
    tokenizer_json, begin, end = pickle.loads(path.read_bytes())
    _encoder.append(TextEncoder(tokenizer_json, [begin], end))


def _encode(part: Part, folder: Path, capacity: int) -> None:
    path = folder / f"tokens-{part.number:05d}.arrow"
    records = RowReader(MODE, DEFAULT).records(part)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, token_files.SCHEMA) as writer:
        while block := list(islice(records, BLOCK_ROWS)):
            examples = [record.render(record.texts) for _, record in block if not isinstance(record, Bad)]
            rows = token_files.encode(examples, _encoder[0])
            writer.write_batch(pyarrow.record_batch(token_files.columns(rows), schema=token_files.SCHEMA))
    gather(path, capacity)


def gather(path: Path, capacity: int) -> None:
    """Make every packed sequence of a file once."""
    rows = [row.ids[:capacity] for row in token_files.read(path)]
    for sequence in packing.plan([len(row) for row in rows], capacity):
        np.concatenate([rows[row] for row in sequence])


def read(output: Path, capacity: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], int]]:
    """File by file: all token ids, the length of each row, and how many sequences the rows are packed into."""
    for path in token_files_below(output):
        rows = [row.ids[:capacity] for row in token_files.read(path)]
        lengths = [len(row) for row in rows]
        sequences = sum(1 for _ in packing.plan(lengths, capacity))
        yield np.concatenate(rows), np.array(lengths, np.int32), sequences


def token_files_below(output: Path) -> list[Path]:
    return sorted(output.glob("**/tokens-*.arrow"))
