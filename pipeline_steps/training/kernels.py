"""The decoder's pointwise parts, forward and backward: RMS norm, rotary positions, SwiGLU.

On a GPU each is one Triton kernel that reads and writes its tensors once; on a CPU it is plain torch. Both compute in
float32 and store in the type of their output. Tensors are two-dimensional, (tokens, features); rows may be strided.
"""

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # the CPU build of torch comes without it
    triton = None


def fast(tensor: Tensor) -> bool:
    """Whether the Triton kernels work on this tensor."""
    return bool(tensor.is_cuda)


_BLOCK = 2048  # columns of SwiGLU that one program works on


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """Write x / rms(x) * weight to `out` (tokens, features); returns 1 / rms(x), (tokens,), float32."""
    if fast(x):
        inverse_rms = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
        features = x.shape[1]
        _rms_norm_kernel[(x.shape[0],)](
            x, weight, out, inverse_rms, x.stride(0), out.stride(0), eps, features,
            BLOCK=triton.next_power_of_2(features), num_warps=8,
        )  # fmt: skip
        return inverse_rms
    x32 = x.float()
    inverse_rms = torch.rsqrt(x32.square().mean(-1) + eps)
    out.copy_((x32 * inverse_rms[:, None]).mul_(weight))
    return inverse_rms


def rms_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, inverse_rms: Tensor, residual_gradient: Tensor, out: Tensor
) -> Tensor:
    """Write the gradient of x to `out`: through the norm, plus `residual_gradient`, which went round it."""
    if fast(x):
        features = x.shape[1]
        _rms_norm_backward_kernel[(x.shape[0],)](
            gradient, x, weight, inverse_rms, residual_gradient, out,
            gradient.stride(0), x.stride(0), residual_gradient.stride(0), out.stride(0), features,
            BLOCK=triton.next_power_of_2(features), num_warps=8,
        )  # fmt: skip
        return out
    scaled = gradient.float() * weight
    normed = x.float() * inverse_rms[:, None]
    along = (scaled * normed).mean(-1, keepdim=True)
    out.copy_(scaled.sub_(normed.mul_(along)).mul_(inverse_rms[:, None]).add_(residual_gradient))
    return out


def rms_norm_weight_gradient(gradient: Tensor, x: Tensor, inverse_rms: Tensor) -> Tensor:
    """Gradient of the norm's weight, (features,), float32."""
    return (gradient.float() * x.float()).mul_(inverse_rms[:, None]).sum(0)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, heads: int, inverse: bool = False) -> None:
    """Turn the first `heads` heads of x by their positions' angles, in place; `inverse` turns back.

    x (tokens, at least heads * size); cosine and sine (tokens, size / 2), float32, contiguous. A head's first half is
    turned with its second half, as in the Hugging Face checkpoints.
    """
    half = cosine.shape[1]
    sign = -1.0 if inverse else 1.0
    if fast(x):
        _rotate_kernel[(x.shape[0],)](
            x, cosine, sine, x.stride(0), sign, heads, half,
            HEADS=triton.next_power_of_2(heads), HALF=triton.next_power_of_2(half), num_warps=4,
        )  # fmt: skip
        return
    pairs = x[:, : heads * 2 * half].unflatten(1, (heads, 2, half))
    first, second = pairs[:, :, 0].float(), pairs[:, :, 1].float()
    cosine, sine = cosine[:, None], sine[:, None] * sign
    turned = first * cosine - second * sine, second * cosine + first * sine  # both, before either is overwritten
    pairs[:, :, 0], pairs[:, :, 1] = turned


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, (tokens, features), of gate and up side by side, (tokens, 2 * features)."""
    features = gate_up.shape[1] // 2
    if fast(gate_up):
        out = gate_up.new_empty(gate_up.shape[0], features)
        grid = (gate_up.shape[0], triton.cdiv(features, _BLOCK))
        _swiglu_kernel[grid](gate_up, out, features, BLOCK=_BLOCK, num_warps=8)
        return out
    gate, up = gate_up.split(features, dim=1)
    return torch.nn.functional.silu(gate).mul_(up)


def swiglu_backward(gate_up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of gate_up, and swiglu(gate_up) again, in the memory of `gate_up` and of `gradient` in turn."""
    features = gradient.shape[1]
    if fast(gate_up):
        grid = (gate_up.shape[0], triton.cdiv(features, _BLOCK))
        _swiglu_backward_kernel[grid](gate_up, gradient, features, BLOCK=_BLOCK, num_warps=8)
        return gate_up, gradient
    gate, up = gate_up.split(features, dim=1)
    active = torch.nn.functional.silu(gate)
    hidden = active * up
    gate_gradient = torch.ops.aten.silu_backward(gradient * up, gate)
    torch.mul(active, gradient, out=up)
    gate.copy_(gate_gradient)
    gradient.copy_(hidden)
    return gate_up, gradient


if triton is not None:

    @triton.jit
    def _rms_norm_kernel(
        x_pointer, weight_pointer, out_pointer, inverse_rms_pointer,
        x_stride, out_stride, eps, features, BLOCK: tl.constexpr,
    ):  # fmt: skip
        token = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        inside = column < features
        x = tl.load(x_pointer + token * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        inverse_rms = 1.0 / tl.sqrt(tl.sum(x * x, 0) / features + eps)
        weight = tl.load(weight_pointer + column, mask=inside, other=0.0).to(tl.float32)
        normed = (x * inverse_rms * weight).to(out_pointer.dtype.element_ty)
        tl.store(out_pointer + token * out_stride + column, normed, mask=inside)
        tl.store(inverse_rms_pointer + token, inverse_rms)

    @triton.jit
    def _rms_norm_backward_kernel(
        gradient_pointer, x_pointer, weight_pointer, inverse_rms_pointer,
        residual_pointer, out_pointer,
        gradient_stride, x_stride, residual_stride, out_stride, features,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        token = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        inside = column < features
        gradient = tl.load(gradient_pointer + token * gradient_stride + column, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_pointer + token * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(weight_pointer + column, mask=inside, other=0.0).to(tl.float32)
        residual = tl.load(residual_pointer + token * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        inverse_rms = tl.load(inverse_rms_pointer + token)
        scaled = gradient * weight
        normed = x * inverse_rms
        along = tl.sum(scaled * normed, 0) / features
        out = inverse_rms * (scaled - normed * along) + residual
        tl.store(out_pointer + token * out_stride + column, out.to(out_pointer.dtype.element_ty), mask=inside)

    @triton.jit
    def _rotate_kernel(
        x_pointer, cosine_pointer, sine_pointer, x_stride, sign, heads, half,
        HEADS: tl.constexpr, HALF: tl.constexpr,
    ):  # fmt: skip
        token = tl.program_id(0).to(tl.int64)
        head = tl.arange(0, HEADS)[:, None]
        column = tl.arange(0, HALF)[None, :]
        in_half = column < half
        inside = (head < heads) & in_half
        cosine = tl.load(cosine_pointer + token * half + column, mask=in_half, other=0.0)
        sine = tl.load(sine_pointer + token * half + column, mask=in_half, other=0.0) * sign
        first_pointer = x_pointer + token * x_stride + head * (2 * half) + column
        first = tl.load(first_pointer, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(first_pointer + half, mask=inside, other=0.0).to(tl.float32)
        kind = x_pointer.dtype.element_ty
        tl.store(first_pointer, (first * cosine - second * sine).to(kind), mask=inside)
        tl.store(first_pointer + half, (second * cosine + first * sine).to(kind), mask=inside)

    @triton.jit
    def _swiglu_kernel(gate_up_pointer, out_pointer, features, BLOCK: tl.constexpr):
        token = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < features
        gate_pointer = gate_up_pointer + token * 2 * features + column
        gate = tl.load(gate_pointer, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_pointer + features, mask=inside, other=0.0).to(tl.float32)
        hidden = (gate * tl.sigmoid(gate) * up).to(out_pointer.dtype.element_ty)
        tl.store(out_pointer + token * features + column, hidden, mask=inside)

    @triton.jit
    def _swiglu_backward_kernel(gate_up_pointer, gradient_pointer, features, BLOCK: tl.constexpr):
        token = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < features
        gate_pointer = gate_up_pointer + token * 2 * features + column
        hidden_pointer = gradient_pointer + token * features + column
        gate = tl.load(gate_pointer, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_pointer + features, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(hidden_pointer, mask=inside, other=0.0).to(tl.float32)
        share = tl.sigmoid(gate)
        active = gate * share
        kind = gate_up_pointer.dtype.element_ty
        tl.store(gate_pointer, (gradient * up * (share + active * (1 - share))).to(kind), mask=inside)
        tl.store(gate_pointer + features, (gradient * active).to(kind), mask=inside)
        tl.store(hidden_pointer, (active * up).to(kind), mask=inside)
