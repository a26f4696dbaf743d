"""Linear layers that share an input, as one matrix product, each with its LoRA adapter.

The product is y = x W' + s (x A') B' (' transposes): W frozen, A (rank, inputs) and B (outputs, rank) trained in
float32, s = alpha / rank. The adapter rides inside the large products instead of passing over the wide tensors again:

- `InputProjection` (query/key/value, gate/up; few inputs, many outputs) keeps [W | s B] side by side. One product of
  [x | x A'] with it is the whole forward; one product of the gradient with it gives the gradients of x and of x A'.
- `OutputProjection` (attention output, down; many inputs, few outputs) keeps W over A. The product with W adds to the
  residual stream; one product of [dy | s dy B] with both gives the gradient of the wide input.

The methods: `lora` keeps W in the type of the products (bfloat16, where the device has it), `qlora` in nf4 and unpacks it
for each product, `full` trains W itself.
With `fp8` LoRA's W is multiplied in 8 bits; the adapter stays out of those products, since it would be rounded with them.
A projection has no autograd of its own; decoder.py calls `forward` and `backward` from within its functions.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline_steps.training import nf4
from pipeline_steps.training.fp8 import Fp8Weight, frozen

Method = Literal["lora", "qlora", "full"]

# The adapter's columns beside W are filled up to this, so that every row starts where the tensor cores like it.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Tuning:
    """What is trained, and how."""

    method: Method
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    kind: torch.dtype = torch.bfloat16  # of products and of frozen weights
    fp8: bool = False  # products with LoRA's frozen weights in 8 bits

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass
class Lowered:
    """x A', (tokens, ranks), and with dropout the factors 0 or 1 / (1 - p) that x was multiplied with before."""

    values: Tensor
    factors: Tensor | None = None


class Projection(nn.Module):
    """What both kinds share: the weights, frozen or trained, and the adapters.

    `parts` maps each linear layer's name to its number of outputs; they are stacked in this order.
    """

    def __init__(self, parts: dict[str, int], inputs: int, tuning: Tuning, stacked_adapters: int) -> None:
        super().__init__()
        self.parts, self.inputs, self.tuning = parts, inputs, tuning
        self.outputs = sum(parts.values())
        self.ranks = stacked_adapters * tuning.rank if tuning.method != "full" else 0
        self.padded_ranks = 0 if tuning.fp8 else -(-self.ranks // _ALIGNMENT) * _ALIGNMENT

        if tuning.method == "qlora":
            # FSDP2 takes floating-point weights only (torch before 2.13): 4 codes of 4 bits pass for one bfloat16, and the
            # 8-bit scales are whole numbers that bfloat16 holds exactly.
            self.codes = frozen(torch.empty(self.outputs, inputs // 4, dtype=torch.bfloat16))
            self.block_scales = frozen(torch.empty(self.outputs, inputs // nf4.BLOCK, dtype=torch.bfloat16))
            self.row_scales = frozen(torch.empty(self.outputs, dtype=torch.float32))
        elif tuning.fp8:
            self.fp8_weight = Fp8Weight(self.outputs, inputs)
        else:
            self.weight = nn.Parameter(
                torch.zeros(*self._matrix_shape(), dtype=tuning.kind), requires_grad=tuning.method == "full"
            )
        if tuning.method != "full":
            self.lora_a = nn.Parameter(torch.empty(self.ranks, inputs, dtype=torch.float32))
            self.lora_b = nn.Parameter(torch.empty(self.outputs, tuning.rank, dtype=torch.float32))

    @property
    def trained(self) -> tuple[Tensor, Tensor | None]:
        """The tensors whose gradients `backward` gives, in its order."""
        return (self.weight, None) if self.tuning.method == "full" else (self.lora_a, self.lora_b)

    def rows_of(self, part: str) -> slice:
        names = list(self.parts)
        start = sum(self.parts[name] for name in names[: names.index(part)])
        return slice(start, start + self.parts[part])

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Take over each part's weights (outputs, inputs)."""
        stacked = torch.cat([weights[part] for part in self.parts])
        if self.tuning.method == "qlora":
            codes, block_scales, row_scales = nf4.quantize(stacked)
            store(self.codes, codes.view(torch.bfloat16))
            store(self.block_scales, block_scales)
            store(self.row_scales, row_scales)
        elif self.tuning.method == "full":
            store(self.weight, stacked)
        elif self.tuning.fp8:
            self.fp8_weight.load(stacked.to(self.tuning.kind))
        else:
            self.weight.zero_()  # also where the adapter's room is never written
            self.weight[: self.outputs, : self.inputs].copy_(stacked)

    @torch.no_grad()
    def reset_adapters(self, random: torch.Generator) -> None:
        """A as PEFT draws it (Kaiming, uniform), B zero: the adapted model starts as the base model."""
        if self.tuning.method != "full":
            bound = 1 / math.sqrt(self.inputs)
            store(self.lora_a, torch.empty(self.lora_a.shape, device="cpu").uniform_(-bound, bound, generator=random))
            self.lora_b.zero_()

    def _matrix_shape(self) -> tuple[int, int]:
        raise NotImplementedError

    def _unpacked(self, out: Tensor) -> None:
        nf4.dequantize(self.codes.view(torch.uint8), self.block_scales, self.row_scales, out)

    def _lower(self, x: Tensor, a: Tensor) -> Lowered:
        if not (self.tuning.dropout and self.training):
            return Lowered(x @ a.t())
        keep = 1 - self.tuning.dropout
        factors = torch.empty_like(x).bernoulli_(keep).div_(keep)
        return Lowered((x * factors) @ a.t(), factors)


class InputProjection(Projection):
    """Reads the normed residual stream; every part has an A of its own, stacked (parts * rank, inputs)."""

    def __init__(self, parts: dict[str, int], inputs: int, tuning: Tuning) -> None:
        super().__init__(parts, inputs, tuning, stacked_adapters=len(parts))

    def _matrix_shape(self) -> tuple[int, int]:
        return self.outputs, self.inputs + self.padded_ranks

    def matrix(self, trained_since: bool = True) -> Tensor:
        """[W | s B | 0], (outputs, inputs + padded ranks). `trained_since`: B may have changed since the last call."""
        if self.tuning.method == "full":
            return self.weight
        if self.tuning.method == "lora":
            matrix = self.weight.detach()
            if not trained_since:
                return matrix
        else:
            matrix = torch.zeros(self._matrix_shape(), dtype=self.tuning.kind, device=self.codes.device)
            self._unpacked(out=matrix[:, : self.inputs])
        self._put_b(matrix[:, self.inputs :])
        return matrix

    def _put_b(self, columns: Tensor) -> None:
        """Write each part's s B into its rows of `columns`, (outputs, ranks or more), where its A's values meet it."""
        rank, b = self.tuning.rank, self.lora_b.detach() * self.tuning.scale
        for number, part in enumerate(self.parts):
            rows = self.rows_of(part)
            columns[rows, number * rank : (number + 1) * rank] = b[rows]

    def _b_alone(self, kind: torch.dtype) -> Tensor:
        """s B of all parts, (outputs, ranks), where it does not lie beside W."""
        b = torch.zeros(self.outputs, self.ranks, dtype=kind, device=self.lora_b.device)
        self._put_b(b)
        return b

    def input_buffer(self, tokens: int) -> Tensor:
        """Room for [x | x A' | 0]; the caller writes x into its first columns."""
        columns = self.inputs + self.padded_ranks
        return torch.empty(tokens, columns, dtype=self.tuning.kind, device=self.trained[0].device)

    def forward(self, buffer: Tensor) -> tuple[Tensor, Lowered | None]:
        """y (tokens, outputs) of the x in `buffer`, and what `backward` needs of the adapter."""
        lowered: Lowered | None = None
        if self.tuning.fp8:
            lowered = self._lower(buffer, self.lora_a.detach().to(buffer.dtype))
            return self.again(buffer, lowered), lowered
        if self.ranks:
            lowered = self._lower(buffer[:, : self.inputs], self.lora_a.detach().to(buffer.dtype))
            buffer[:, self.inputs : self.inputs + self.ranks] = lowered.values
            buffer[:, self.inputs + self.ranks :] = 0
        return buffer @ self.matrix().t(), lowered

    def again(self, buffer: Tensor, lowered: Lowered | None) -> Tensor:
        """y once more, of the same x and the same x A'."""
        if self.tuning.fp8 and lowered is not None:
            return self.fp8_weight(buffer).addmm_(lowered.values, self._b_alone(buffer.dtype).t())
        if lowered is not None:
            buffer[:, self.inputs : self.inputs + self.ranks] = lowered.values
            buffer[:, self.inputs + self.ranks :] = 0
        return buffer @ self.matrix(trained_since=False).t()

    def backward(
        self, gradient: Tensor, x: Tensor, lowered: Lowered | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of x (tokens, inputs; rows strided) and of `trained`."""
        if lowered is None:
            return gradient @ self.weight, _weight_gradient(self.weight, gradient, x), None
        if self.tuning.fp8:
            x_gradient = self.fp8_weight.backward_input(gradient)
            lowered_gradient = gradient @ self._b_alone(gradient.dtype)
        else:
            both = gradient @ self.matrix(trained_since=False)
            x_gradient, lowered_gradient = both[:, : self.inputs], both[:, self.inputs : self.inputs + self.ranks]
        a = self.lora_a.detach().to(x.dtype)
        if lowered.factors is None:
            a_gradient = lowered_gradient.t() @ x
            x_gradient.addmm_(lowered_gradient, a)
        else:
            a_gradient = lowered_gradient.t() @ (x * lowered.factors)
            x_gradient.addcmul_(lowered_gradient @ a, lowered.factors)
        # Every output with every adapter, of which each part keeps its own: one pass over the wide gradient.
        crossed = gradient.t() @ lowered.values
        rank = self.tuning.rank
        b_gradient = torch.cat(
            [crossed[self.rows_of(part), n * rank : (n + 1) * rank] for n, part in enumerate(self.parts)]
        )
        return x_gradient, a_gradient.float(), b_gradient.float().mul_(self.tuning.scale)


class OutputProjection(Projection):
    """Writes to the residual stream."""

    def __init__(self, part: str, outputs: int, inputs: int, tuning: Tuning) -> None:
        super().__init__({part: outputs}, inputs, tuning, stacked_adapters=1)

    def _matrix_shape(self) -> tuple[int, int]:
        return self.outputs + self.padded_ranks, self.inputs

    def matrix(self, trained_since: bool = True) -> Tensor:
        """W over A over 0, (outputs + padded ranks, inputs). `trained_since`: A may have changed since the last call."""
        if self.tuning.method == "full":
            return self.weight
        matrix = self.weight.detach() if self.tuning.method == "lora" else self._unpacked_with_room()
        if trained_since or self.tuning.method == "qlora":
            matrix[self.outputs : self.outputs + self.ranks] = self.lora_a.detach()
        return matrix

    def _unpacked_with_room(self) -> Tensor:
        matrix = torch.zeros(self._matrix_shape(), dtype=self.tuning.kind, device=self.codes.device)
        self._unpacked(out=matrix[: self.outputs])
        return matrix

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Lowered | None]:
        """residual + y, (tokens, outputs), and what `backward` needs of the adapter."""
        if self.tuning.fp8:
            lowered = self._lower(x, self.lora_a.detach().to(x.dtype))
            return self.fp8_weight(x).add_(residual).addmm_(lowered.values, self._scaled_b(x.dtype).t()), lowered
        matrix = self.matrix()
        y = torch.addmm(residual, x, matrix[: self.outputs].t())
        if not self.ranks:
            return y, None
        lowered = self._lower(x, matrix[self.outputs : self.outputs + self.ranks])
        return y.addmm_(lowered.values, self._scaled_b(x.dtype).t()), lowered

    def backward_input(self, gradient: Tensor, lowered: Lowered | None) -> tuple[Tensor, Tensor | None]:
        """Gradient of x (tokens, inputs), and of x A', which `backward_trained` needs."""
        if lowered is None:
            return gradient @ self.weight, None
        lowered_gradient = gradient @ self._scaled_b(gradient.dtype)
        if self.tuning.fp8:
            a, x_gradient = self.lora_a.detach().to(gradient.dtype), self.fp8_weight.backward_input(gradient)
            if lowered.factors is None:
                return x_gradient.addmm_(lowered_gradient, a), lowered_gradient
            return x_gradient.addcmul_(lowered_gradient @ a, lowered.factors), lowered_gradient
        matrix = self.matrix(trained_since=False)
        if lowered.factors is not None:
            a = matrix[self.outputs : self.outputs + self.ranks]
            x_gradient = gradient @ matrix[: self.outputs]
            return x_gradient.addcmul_(lowered_gradient @ a, lowered.factors), lowered_gradient
        nothing = gradient.new_zeros(gradient.shape[0], self.padded_ranks - self.ranks)
        return torch.cat([gradient, lowered_gradient, nothing], dim=1) @ matrix, lowered_gradient

    def backward_trained(
        self, gradient: Tensor, x: Tensor, lowered: Lowered | None, lowered_gradient: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of `trained`."""
        if lowered is None or lowered_gradient is None:
            return _weight_gradient(self.weight, gradient, x), None
        dropped = x if lowered.factors is None else x * lowered.factors
        b_gradient = (gradient.t() @ lowered.values).float().mul_(self.tuning.scale)
        return (lowered_gradient.t() @ dropped).float(), b_gradient

    def _scaled_b(self, kind: torch.dtype) -> Tensor:
        return self.lora_b.detach().mul(self.tuning.scale).to(kind)


def _weight_gradient(weight: Tensor, gradient: Tensor, x: Tensor) -> Tensor | None:
    """The gradient of W, for autograd to keep; or None when the product itself added it to what an earlier call left."""
    if weight.grad is None:
        return gradient.t() @ x
    weight.grad.addmm_(gradient.t(), x)
    return None


def store(weight: Tensor, value: Tensor) -> None:
    """Copy the whole `value` into `weight`, of which this device may hold a part only."""
    placements = getattr(weight, "placements", None)
    if placements is not None:
        from torch.distributed.tensor import distribute_tensor

        mesh = weight.device_mesh
        value = distribute_tensor(value.to(mesh.device_type, weight.dtype), mesh, placements)
    weight.copy_(value)
