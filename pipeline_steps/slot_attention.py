"""Attention of one new token in each slot to the keys and values that its slot holds, on a GPU.

A Triton kernel reads of every slot what is there, and no more: attention with a mask reads all slots up to the longest.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "one_token_a_slot"  # by which transformers knows it
_PLACES = 64  # keys that a program looks at together


def attend(
    module: Any, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float,
    sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What a layer of transformers calls; (slots, 1, heads, size).

    query (slots, heads, 1, size); keys and values (slots, key heads, length, size); the mask is each slot's place of the
    new token, (slots, 1, 1, 1). Several tokens a slot, and everything else that is computed with this model, go to
    torch's attention.
    """
    if query.shape[2] > 1 or mask is None or mask.dtype != torch.long:
        by_torch: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, keys, values, mask, scaling=scaling, **kwargs
        )
        return by_torch
    slots, heads, _, size = query.shape
    group = heads // keys.shape[1]
    out = torch.empty(slots, 1, heads, size, dtype=query.dtype, device=query.device)
    _attend[(slots, keys.shape[1])](
        query, keys, values, mask, out, scaling, sliding_window or keys.shape[2],
        query.stride(0), query.stride(1), keys.stride(0), keys.stride(1),
        GROUP=group, SIZE=size, ROWS=max(16, triton.next_power_of_2(group)), COLUMNS=max(16, triton.next_power_of_2(size)),
        PLACES=_PLACES, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out, None


@triton.jit
def _attend(
    query, keys, values, positions, out, scale, window, query_slot, query_head, key_slot, key_head,
    GROUP: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    # One program for each slot and key head: the query heads that share it are the rows of its products.
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = tl.load(positions + slot)
    first = tl.maximum(position + 1 - window, 0)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = columns[None, :] < SIZE
    of_group = (rows[:, None] < GROUP) & inside
    row_heads = (head * GROUP + rows)[:, None]
    q = tl.load(query + slot * query_slot + row_heads * query_head + columns[None, :], mask=of_group, other=0.0)
    start_of_keys = slot * key_slot + head * key_head
    # Softmax as it goes: the largest score so far, the sum of the shares, and the values mixed by them.
    best = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first // PLACES * PLACES, position + 1, PLACES):
        places = start + tl.arange(0, PLACES)
        seen = (places >= first) & (places <= position)
        offsets = start_of_keys + places[:, None] * SIZE + columns[None, :]
        k = tl.load(keys + offsets, mask=seen[:, None] & inside, other=0.0)
        v = tl.load(values + offsets, mask=seen[:, None] & inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, -float("inf"))
        larger = tl.maximum(best, tl.max(scores, 1))
        shares, kept = tl.exp(scores - larger[:, None]), tl.exp(best - larger)
        total = total * kept + tl.sum(shares, 1)
        mixed = mixed * kept[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        best = larger
    tl.store(
        out + (slot * tl.num_programs(1) * GROUP + row_heads) * SIZE + columns[None, :],
        (mixed / total[:, None]).to(out.dtype.element_ty),
        mask=of_group,
    )


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
