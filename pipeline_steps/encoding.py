"""Texts as tokens with a training decision for each, and batches of them. Used by training and evaluation alike."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_steps import token_files
from pipeline_steps.contract.dataset import Example, SplitInfo
from pipeline_steps.contract.errors import StepError
from pipeline_steps.text_encoder import TextEncoder
from pipeline_steps.token_files import TokenRow

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

NOT_TRAINED = -100  # the label that torch's cross-entropy ignores


@dataclass(frozen=True)
class Encoded:
    """Token ids and, of the same length, labels: the token itself where it is learned, else NOT_TRAINED."""

    ids: list[int]
    labels: list[int]

    @property
    def trained_tokens(self) -> int:
        # The first token is never predicted: nothing comes before it.
        return sum(label != NOT_TRAINED for label in self.labels[1:])


def encode_all(examples: Sequence[Example], encoder: TextEncoder) -> list[Encoded]:
    """Every example, none cut. Raises StepError if none has anything to learn."""
    return _with_something_to_learn(of_tokens(token_files.encode(examples, encoder)))


def read_encoded(folder: Path, info: SplitInfo, encoder: TextEncoder, max_tokens: int) -> list[Encoded]:
    """The rows of a prepared split as FineTune learns them: at most `max_tokens` each.

    A domain text goes on in the next row, so that nothing of it is lost. Of the few longer rows that PrepareData let
    pass (max_truncated_share) the end is not learned. Raises StepError if the token ids are of another tokenizer.
    """
    if info.tokenizer_digest != encoder.digest:
        raise StepError(
            f"{folder} was prepared with the tokenizer {str(info.tokenizer_digest)[:12]}, the base model has "
            f"{encoder.digest[:12]}; prepare the dataset for this base model"
        )
    rows = of_tokens(row for part in info.parts if part.tokens for row in token_files.read(folder / part.tokens))
    if info.tuning_mode == "domain":
        cut = [window for row in rows for window in windows(row, max_tokens)]
    else:
        cut = [next(windows(row, max_tokens)) for row in rows]
    return _with_something_to_learn([row for row in cut if row.trained_tokens])


def of_tokens(rows: Iterable[TokenRow]) -> list[Encoded]:
    """Labels from training decisions."""
    return [Encoded(row.ids.tolist(), np.where(row.learned, row.ids, NOT_TRAINED).tolist()) for row in rows]


def _with_something_to_learn(encoded: list[Encoded]) -> list[Encoded]:
    if not sum(one.trained_tokens for one in encoded):
        raise StepError(f"none of the {len(encoded)} rows has a token to learn; check the completions")
    return encoded


def windows(encoded: Encoded, max_tokens: int) -> Iterator[Encoded]:
    """The row in consecutive pieces of at most `max_tokens`."""
    for start in range(0, len(encoded.ids), max_tokens):
        yield Encoded(encoded.ids[start : start + max_tokens], encoded.labels[start : start + max_tokens])


def pad(batch: Sequence[Encoded], pad_id: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Ids, attention mask and labels, each (rows, longest), padded on the right."""
    import torch

    longest = max(len(one.ids) for one in batch)

    def tensor(rows: list[list[int]], fill: int) -> "Tensor":
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

    ids = tensor([one.ids for one in batch], pad_id)
    mask = tensor([[1] * len(one.ids) for one in batch], 0)
    return ids, mask, tensor([one.labels for one in batch], NOT_TRAINED)


def token_losses(model: Any, ids: "Tensor", mask: "Tensor", labels: "Tensor") -> "tuple[Tensor, Tensor]":
    """Loss in nats of each trained token, (trained tokens,), and the row that each belongs to.

    Only the hidden states that predict a trained token go through the output layer: with a large vocabulary and short
    answers that layer would otherwise be the largest part of the work.
    """
    import torch

    backbone = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = backbone.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    trained = targets != NOT_TRAINED
    logits = backbone.lm_head(hidden[trained]).float()
    losses = torch.nn.functional.cross_entropy(logits, targets[trained], reduction="none")
    rows = torch.arange(ids.shape[0], device=ids.device).unsqueeze(1).expand_as(targets)[trained]
    return losses, rows


def row_losses(
    model: Any,
    encoded: Sequence[Encoded],
    pad_id: int,
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> "NDArray[Any]":
    """Nats summed over the trained tokens of each row, (rows,), in the order of `encoded`.

    A batch has at most `batch_tokens` with its padding, unless one row is longer. `on_batch` hears how many rows are done.
    """
    import torch

    nats = np.zeros(len(encoded))
    by_length = sorted(range(len(encoded)), key=lambda row: -len(encoded[row].ids))
    done = 0
    with torch.inference_mode():
        while done < len(by_length):
            batch = by_length[done : done + max(1, batch_tokens // len(encoded[by_length[done]].ids))]
            ids, mask, labels = (part.to(model.device) for part in pad([encoded[row] for row in batch], pad_id))
            losses, rows = token_losses(model, ids, mask, labels)
            # Added up on the CPU, always in the same order: equal models must give equal sums to the last bit.
            nats[batch] = np.bincount(rows.cpu().numpy(), losses.cpu().numpy(), len(batch))
            done += len(batch)
            on_batch(done)
    return nats
