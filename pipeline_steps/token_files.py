"""Token ids of a split's part as an Arrow file, each token with its training decision: memory-mapped by training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow

from pipeline_steps.contract.dataset import Example
from pipeline_steps.text_encoder import TextEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = pyarrow.schema([("ids", pyarrow.list_(pyarrow.int32())), ("learned", pyarrow.list_(pyarrow.bool_()))])


@dataclass(frozen=True)
class TokenRow:
    """Token ids of one example, (tokens,) int32, and whether each is learned, (tokens,) bool."""

    ids: "NDArray[np.int32]"
    learned: "NDArray[np.bool_]"


# What a row is where no tokenizer was given.
NONE = TokenRow(np.zeros(0, np.int32), np.zeros(0, np.bool_))


def encode(examples: Sequence[Example], encoder: TextEncoder) -> list[TokenRow]:
    """Prompts are read, completions learned; where a text ends, so is end-of-sequence.

    Prompt and completion are encoded apart, so that the prompt's tokens here are those that serving sends.
    """
    texts = iter(encoder.encode([text for example in examples for turn in example.turns for text in turn]))
    beginning, end = np.array(encoder.beginning, np.int32), np.array([encoder.end], np.int32)
    rows = []
    for example in examples:
        runs = [(beginning, False)]
        last = len(example.turns) - 1
        for number in range(len(example.turns)):
            runs += [(next(texts), False), (next(texts), True)]
            if number < last or example.ends:
                runs.append((end, True))
        ids = np.concatenate([ids for ids, _ in runs])
        rows.append(TokenRow(ids, np.repeat([learned for _, learned in runs], [len(ids) for ids, _ in runs])))
    return rows


def columns(rows: Sequence[TokenRow]) -> list[Any]:
    """Two Arrow arrays with one entry a row: ids list<int32>, learned list<bool>."""
    offsets = pyarrow.array(np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int32))
    return [
        pyarrow.ListArray.from_arrays(offsets, pyarrow.array(np.concatenate([getattr(row, name) for row in rows])))
        for name in SCHEMA.names
    ]


def read(path: Path) -> Iterator[TokenRow]:
    """The rows of a file, in order; the ids lie in the mapped file until they are used."""
    with pyarrow.memory_map(str(path)) as source:
        reader = pyarrow.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            ids, learned = batch.column("ids"), batch.column("learned")
            offsets = ids.offsets.to_numpy()
            flat_ids = ids.values.to_numpy()
            flat_learned = learned.values.to_numpy(zero_copy_only=False)
            for start, end in pairwise(offsets.tolist()):
                yield TokenRow(flat_ids[start:end], flat_learned[start:end])
