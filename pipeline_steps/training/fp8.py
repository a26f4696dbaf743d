"""Products with a frozen weight in 8 bits (e4m3), twice as fast as in bfloat16 on GPUs that have them.

Every row of both factors has a scale of its own: its largest magnitude is stored as the largest number of the format.
A product sums along rows, so the weight is kept twice: by outputs for the forward, by inputs for the backward; together
they take the memory of one weight in bfloat16. Adapters, activations between products, norms and the loss stay as they are.
Formats: Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline_steps.contract.errors import StepError

try:
    import triton
    import triton.language as tl
except ImportError:  # the CPU build of torch comes without it
    triton = None

LARGEST = 448.0  # of e4m3
MULTIPLE = 16  # rows and columns of a weight that the tensor cores take
CAPABILITY = (8, 9)  # of the first GPUs with 8-bit products: L4, L40S, H100
MOST_LOSS_CHANGE = 0.01  # of the loss, by the rounding alone
LEAST_GRADIENT_COSINE = 0.95  # between the adapter's gradients with and without the rounding


class Fp8Weight(nn.Module):
    """A frozen weight W (outputs, inputs), for x W' and y W.

    Codes are stored as uint8: that is what every collective operation can move.
    """

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        if outputs % MULTIPLE or inputs % MULTIPLE:
            raise StepError(
                f"a matrix of {outputs} x {inputs} cannot be multiplied in fp8, only multiples of {MULTIPLE}; set fp8 False"
            )
        self.by_output = frozen(torch.empty(outputs, inputs, dtype=torch.uint8))
        self.output_scales = frozen(torch.empty(outputs, 1, dtype=torch.float32))
        self.by_input = frozen(torch.empty(inputs, outputs, dtype=torch.uint8))
        self.input_scales = frozen(torch.empty(inputs, 1, dtype=torch.float32))

    @torch.no_grad()
    def load(self, weight: Tensor) -> None:
        """Take over W (outputs, inputs)."""
        for codes, scales, given in (
            (self.by_output, self.output_scales, weight),
            (self.by_input, self.input_scales, weight.t().contiguous()),
        ):
            new_codes, new_scales = quantize_rows(given)
            codes.copy_(new_codes.view(torch.uint8))
            scales.copy_(new_scales)

    def forward(self, x: Tensor) -> Tensor:
        """x W', (tokens, outputs), of x (tokens, inputs; rows may be strided)."""
        return _product(x, self.by_output, self.output_scales)

    def backward_input(self, gradient: Tensor) -> Tensor:
        """gradient W, (tokens, inputs), of gradient (tokens, outputs)."""
        return _product(gradient, self.by_input, self.input_scales)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (rows, columns; rows may be strided) as e4m3 and the scale of each row, (rows, 1), float32."""
    rows, columns = x.shape
    if x.is_cuda:
        codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=x.device)
        scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
        _quantize_kernel[(rows,)](x, codes, scales, x.stride(0), columns, LARGEST, BLOCK=_BLOCK, num_warps=8)
        return codes, scales
    scales = x.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (x.float() / scales).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales


def _product(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """x W' in the type of x, of W's codes and scales by row."""
    x_codes, x_scales = quantize_rows(x)
    weight = codes.view(torch.float8_e4m3fn)
    if x.is_cuda:
        return torch._scaled_mm(
            x_codes, weight.t(), scale_a=x_scales, scale_b=scales.t(), out_dtype=x.dtype, use_fast_accum=True
        )
    return ((x_codes.float() * x_scales) @ (weight.float() * scales).t()).to(x.dtype)


# ---------------------------------------------------------------- is it good enough for this model?


@dataclass(frozen=True)
class Measurement:
    """Loss per learned token and the adapter's gradient, one vector on the CPU, of the same rows."""

    loss: float
    gradient: Tensor

    @classmethod
    def of(cls, model: Any, stream: Any) -> "Measurement":
        """`model`: a Decoder; `stream`: a Stream with learned tokens."""
        loss = stream.loss(model) / len(stream.targets)
        weights = model.trained_parameters()
        gradients = torch.autograd.grad(loss, weights)
        return cls(loss.item(), torch.cat([gradient.flatten().float().cpu() for gradient in gradients]))


def check_quality(exact: Measurement, rounded: Measurement) -> str:
    """One line on what the rounding changes. Raises StepError if that is too much."""
    change = abs(rounded.loss - exact.loss) / exact.loss
    cosine = float(torch.nn.functional.cosine_similarity(exact.gradient, rounded.gradient, dim=0))
    figures = (
        f"fp8 changes the loss from {exact.loss:.6g} to {rounded.loss:.6g} nats per token ({change:.2%}, at most "
        f"{MOST_LOSS_CHANGE:.0%}); the cosine between the adapter's gradients is {cosine:.4f} (at least "
        f"{LEAST_GRADIENT_COSINE})"
    )
    if not (change <= MOST_LOSS_CHANGE and cosine >= LEAST_GRADIENT_COSINE):
        raise StepError(f"this model loses too much in 8 bits: {figures}; set fp8 False")
    return figures


def check_device(device: torch.device) -> None:
    """Raises StepError if the GPU has no 8-bit products."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        raise StepError(
            f"{torch.cuda.get_device_name(device)} has no products in fp8 (ml.g6, ml.g6e, ml.p5 and newer have them); "
            "set fp8 False or use such an instance type"
        )


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


_BLOCK = 4096  # columns of a row that are looked at together

if triton is not None:

    @triton.jit
    def _quantize_kernel(
        x_pointer, codes_pointer, scales_pointer, x_stride, columns, largest, BLOCK: tl.constexpr
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        most = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = tl.load(x_pointer + row * x_stride + column, mask=column < columns, other=0.0).to(tl.float32)
            most = tl.maximum(most, tl.abs(x))
        scale = tl.maximum(tl.max(most, 0), 1e-12) / largest
        tl.store(scales_pointer + row, scale)
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < columns
            x = tl.load(x_pointer + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
            scaled = tl.minimum(tl.maximum(x / scale, -largest), largest)
            tl.store(codes_pointer + row * columns + column, scaled.to(tl.float8e4nv), mask=inside)
