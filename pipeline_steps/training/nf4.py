"""NF4: 4 bits a weight for QLoRA's frozen base, with the scales of its blocks quantised once more ("double quant").

Each block of 64 weights of a row is divided by its largest magnitude and every weight rounded to the nearest of 16
levels, which are equally likely under a normal distribution. The magnitudes themselves are rounded to 8 bits of their
row's largest: 4.13 bits a weight in all, 4.25 as projections.py keeps them.
Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023; levels from its appendix E.
"""

import torch
from torch import Tensor

from pipeline_steps.contract.errors import StepError

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

BLOCK = 64
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

_levels: dict[torch.device, Tensor] = {}


def quantize(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (rows, columns / 2) and block scales (rows, columns / 64), both uint8, and row scales (rows,), float32.

    weight (rows, columns). Raises StepError if its columns are no multiple of 64.
    """
    rows, columns = weight.shape
    if columns % BLOCK:
        raise StepError(
            f"a matrix of {columns} columns cannot be stored in nf4, only multiples of {BLOCK}; use bits 16"
        )
    blocks = weight.float().view(rows, columns // BLOCK, BLOCK)
    largest = blocks.abs().amax(-1)
    row_scales = largest.amax(-1).clamp(min=1e-12)
    block_scales = (largest / row_scales[:, None] * 255).round_().clamp_(1, 255).to(torch.uint8)
    scales = block_scales.float() * (row_scales / 255)[:, None]
    levels = _levels_on(weight.device)
    borders = (levels[1:] + levels[:-1]) / 2
    nearest = torch.bucketize((blocks / scales[..., None]).view(rows, columns), borders, out_int32=True).to(torch.uint8)
    return nearest[:, 0::2] << 4 | nearest[:, 1::2], block_scales, row_scales


def dequantize(codes: Tensor, block_scales: Tensor, row_scales: Tensor, out: Tensor) -> None:
    """Write the weights to `out` (rows, columns), whose rows may be strided. The scales may be of any type."""
    rows, columns = out.shape
    levels = _levels_on(out.device)
    if out.is_cuda:
        grid = (rows, triton.cdiv(columns // 2, _PAIRS))
        _dequantize_kernel[grid](
            codes, block_scales, row_scales, levels, out, out.stride(0), columns, PAIRS=_PAIRS, BLOCK=BLOCK
        )
        return
    scales = block_scales.float() * (row_scales / 255)[:, None]
    weights = levels[torch.stack([codes >> 4, codes & 15], dim=-1).long()].view(rows, -1, BLOCK)
    out.copy_((weights * scales[..., None]).view(rows, columns))


def _levels_on(device: torch.device) -> Tensor:
    if device not in _levels:
        _levels[device] = torch.tensor(LEVELS, device=device)
    return _levels[device]


_PAIRS = 1024  # bytes, of two weights each, that one program works on

if triton is not None:

    @triton.jit
    def _dequantize_kernel(
        codes_pointer, block_scales_pointer, row_scales_pointer, levels_pointer, out_pointer,
        out_stride, columns, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        pair = tl.program_id(1) * PAIRS + tl.arange(0, PAIRS)
        inside = pair < columns // 2
        codes = tl.load(codes_pointer + row * (columns // 2) + pair, mask=inside, other=0).to(tl.int32)
        block = pair // (BLOCK // 2)
        scale = tl.load(block_scales_pointer + row * (columns // BLOCK) + block, mask=inside, other=0).to(tl.float32)
        scale = scale * (tl.load(row_scales_pointer + row) / 255)
        kind = out_pointer.dtype.element_ty
        first = (tl.load(levels_pointer + (codes >> 4)) * scale).to(kind)
        second = (tl.load(levels_pointer + (codes & 15)) * scale).to(kind)
        column = tl.program_id(1) * 2 * PAIRS + tl.arange(0, 2 * PAIRS)
        tl.store(out_pointer + row * out_stride + column, tl.interleave(first, second), mask=column < columns)
