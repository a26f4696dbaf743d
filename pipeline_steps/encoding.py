"""Texts as tokens with a training decision for each, and batches of them. Used by training and evaluation alike."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import StepError

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


def encode(example: Example, tokenizer: Any) -> Encoded:
    """Prompt tokens are read, completion tokens learned; where the text ends, so is end-of-sequence."""
    ids: list[int] = []
    labels: list[int] = []

    def add(tokens: Sequence[int], *, trained: bool) -> None:
        ids.extend(tokens)
        labels.extend(tokens if trained else [NOT_TRAINED] * len(tokens))

    add(beginning(tokenizer), trained=False)
    # Prompt and completion are encoded apart, so that the prompt's tokens here are those that serving sends.
    add(tokenizer(example.prompt, add_special_tokens=False)["input_ids"], trained=False)
    add(tokenizer(example.completion, add_special_tokens=False)["input_ids"], trained=True)
    if example.ends:
        add([tokenizer.eos_token_id], trained=True)
    return Encoded(ids, labels)


def beginning(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text by itself: [begin-of-sequence] or nothing.

    Servers encode a prompt with the tokenizer's defaults, so training must begin its texts in the same way.
    """
    first: list[int] = tokenizer("")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def encode_all(examples: Sequence[Example], tokenizer: Any, max_tokens: int) -> list[Encoded]:
    """Every example, none cut. Raises StepError if a row is longer than `max_tokens` or nothing is left to learn."""
    encoded = [encode(example, tokenizer) for example in examples]
    too_long = [len(one.ids) for one in encoded if len(one.ids) > max_tokens]
    if too_long:
        raise StepError(
            f"{len(too_long)} of {len(encoded)} rows are longer than max_input_length ({max_tokens} tokens; the longest has "
            f"{max(too_long)}); set max_input_length to {max(too_long)} or shorten the rows - they are never cut silently"
        )
    if not sum(one.trained_tokens for one in encoded):
        raise StepError(f"none of the {len(encoded)} rows has a token to learn; check the completions")
    return encoded


def windows(encoded: Encoded, max_tokens: int) -> Iterator[Encoded]:
    """A text without a prompt, in consecutive pieces of at most `max_tokens`."""
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
    batch_rows: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> "NDArray[Any]":
    """Nats summed over the trained tokens of each row, (rows,), in the order of `encoded`.

    `on_batch` hears how many rows are done.
    """
    import numpy as np
    import torch

    nats = np.zeros(len(encoded))
    by_length = sorted(range(len(encoded)), key=lambda row: len(encoded[row].ids))
    with torch.inference_mode():
        for start in range(0, len(by_length), batch_rows):
            batch = by_length[start : start + batch_rows]
            ids, mask, labels = (part.to(model.device) for part in pad([encoded[row] for row in batch], pad_id))
            losses, rows = token_losses(model, ids, mask, labels)
            sums = torch.zeros(len(batch), device=losses.device).index_add_(0, rows, losses)
            nats[batch] = sums.cpu().numpy()
            on_batch(min(start + batch_rows, len(encoded)))
    return nats
