"""Keys and values of a changing batch: one row of one tensor for each sequence, so that a step attends to views of it."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 256  # tokens


@dataclass
class Access:
    """What the next forward pass does with the cache: fill rows from their start, or add one token to each of the first."""

    rows: slice
    positions: torch.Tensor | None = None  # of the added tokens, one a row; None: rows are filled from their start
    reach: int = 0  # tokens to attend to, the added ones included


class SlotLayer(CacheLayerMixin):
    """One layer: tensors of shape [rows, heads, tokens, size of a head]."""

    is_sliding = False

    def __init__(self, access: "SlotCache") -> None:
        super().__init__()
        self._cache = access

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = self._new(key_states), self._new(value_states)
        self.is_initialized = True

    def _new(self, states: torch.Tensor) -> torch.Tensor:
        rows, tokens = self._cache.size
        return states.new_zeros(rows, states.shape[1], tokens, states.shape[3])

    def grow(self) -> None:
        """Take the cache's new size, with what is there."""
        if not self.is_initialized:
            return
        old = self.keys, self.values
        self.lazy_initialization(*old)
        for new, before in zip((self.keys, self.values), old, strict=True):
            new[: before.shape[0], :, : before.shape[2]] = before

    def move(self, source: int, target: int, tokens: int) -> None:
        for states in (self.keys, self.values):
            states[target, :, :tokens] = states[source, :, :tokens]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *arguments: Any, **keywords: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        access = self._cache.access
        if access.positions is None:
            self.keys[access.rows, :, : key_states.shape[2]] = key_states
            self.values[access.rows, :, : value_states.shape[2]] = value_states
            return key_states, value_states
        every = torch.arange(key_states.shape[0], device=key_states.device)
        self.keys[every, :, access.positions] = key_states[:, :, 0]
        self.values[every, :, access.positions] = value_states[:, :, 0]
        return self.keys[access.rows, :, : access.reach], self.values[access.rows, :, : access.reach]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        access = self._cache.access
        return 0 if access.positions is None else access.reach - 1

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """The cache of a whole model. `access` is set before each forward pass."""

    def __init__(self, layers: int) -> None:
        self.size = (0, 0)  # rows, tokens
        self.access = Access(slice(0, 0))
        super().__init__(layers=[SlotLayer(self) for _ in range(layers)])

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for so many rows and tokens."""
        have_rows, have_tokens = self.size
        if rows <= have_rows and tokens <= have_tokens:
            return
        self.size = (max(rows, have_rows), max(-(-tokens // GROWTH) * GROWTH, have_tokens))
        for layer in self.layers:
            layer.grow()

    def release(self) -> None:
        """Give all memory back; nothing is in use."""
        self.size = (0, 0)
        for layer in self.layers:
            layer.keys = layer.values = None
            layer.is_initialized = False

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a row over another row."""
        for layer in self.layers:
            layer.move(source, target, tokens)
