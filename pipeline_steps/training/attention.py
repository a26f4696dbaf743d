"""Causal attention within each document of a stream of tokens: no padding, and no look across a document's border.

On a GPU: FlashAttention's own package where the image has it, else the variable-length attention of torch.
On a CPU: scaled_dot_product_attention, document by document.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None


@dataclass(frozen=True)
class Documents:
    """Where the documents of a stream begin and end."""

    lengths: tuple[int, ...]
    device: torch.device

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def borders(self) -> Tensor:
        """(documents + 1,), int32: 0, and where each document ends."""
        return on_device(torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32), self.device)

    @cached_property
    def positions(self) -> Tensor:
        """(tokens,): each token's place in its document, from 0."""
        return on_device(torch.cat([torch.arange(length) for length in self.lengths]), self.device)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, without the host waiting for what the device is still busy with."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def attend(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    """Attention of each token to its document up to itself.

    query (tokens, heads, size); key and value (tokens, key-value heads, size). Returns (tokens, heads, size).
    """
    if not query.is_cuda:
        pieces = zip(*(tensor.split(documents.lengths) for tensor in (query, key, value)), strict=True)
        return torch.cat([_attend_one(*document) for document in pieces])
    borders, longest = documents.borders, documents.longest
    if flash_attn_varlen_func is not None:
        return flash_attn_varlen_func(query, key, value, borders, borders, longest, longest, causal=True)
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(query, key, value, borders, borders, longest, longest, window_size=(-1, 0))


def _attend_one(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attended = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value)), is_causal=True, enable_gqa=True
    )
    return attended.squeeze(0).transpose(0, 1)
