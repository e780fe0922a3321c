"""norm(h + swiglu(h)) on a CPU: the arithmetic of the plain modules without their memory traffic.

On a CPU the plain path spends a fifth of a TRM step outside its matrix products: intermediates of
tens of megabytes are fetched anew from the system each time (a page fault per 4 kB), have left the
cache before they are read again, and the token MLP copies to turn its matrices. Here

- rows are worked on in parts whose intermediate fits the cache and is used again by the next part;
- the MLP over the sequence multiplies from the left (W @ h), so nothing is turned;
- backward is written out: it keeps input, gate|up and output, computes silu(gate) * up again, and
  writes both halves of the gradient where the next product reads them.

Forward does the operations of the plain path in their order: the same bits, as long as the BLAS
adds in the same order whatever the size. Gradients agree up to rounding. Only eager mode on a CPU
comes here: a GPU wants few large kernels, and torch.compile fuses the plain path by itself.
Second derivatives and vmap are refused.

Shape letters: B batch, S sequence, D width, M inner width of SwiGLU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import local
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import _get_current_function_mode_stack

PART_BYTES = 2 << 20
"""Size of gate|up in one part, per thread: what the caches hold. Twice the size of the weight if
that is more, because every product reads (and the BLAS rearranges) the weight anew."""


_here = local()


@contextmanager
def left_out() -> Iterator[None]:
    """Within, this thread takes the plain path, as on a GPU."""
    _here.left_out = True
    try:
        yield
    finally:
        _here.left_out = False


def suits(h: Tensor) -> bool:
    """Whether to come here: (B, S, D) on a CPU, not empty, no torch.compile or autocast at work."""
    return (
        h.device.type == "cpu"
        and not getattr(_here, "left_out", False)
        and h.ndim == 3
        and h.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def residual_norm(h: Tensor, change: Tensor, eps: float) -> Tensor:
    """norm(h + change) over the last axis, both (B, S, D)."""
    if torch.is_grad_enabled() and (h.requires_grad or change.requires_grad):
        return _ResidualNorm.apply(h, change, eps)  # pyright: ignore[reportReturnType]
    y = h + change
    _normalise(y, eps, -1)
    return y


def residual_swiglu(h: Tensor, up: Tensor, down: Tensor, eps: float, *, axis: int) -> Tensor:
    """norm(h + down(silu(gate) * up)); both the MLP and the norm run along `axis` of h (B, S, D).

    Args:
        h: float32 or bfloat16, as is the result.
        up: gate and up projection, (2M, S) for axis=1, (2M, D) for axis=2, of any float dtype.
        down: (S, M) or (D, M).
    """
    assert axis in (1, 2) and h.ndim == 3, (axis, h.shape)
    way: Way = _Sequence if axis == 1 else _Width
    x = h.contiguous() if axis == 1 else h.reshape(-1, h.shape[-1])
    if torch.is_grad_enabled() and (h.requires_grad or up.requires_grad or down.requires_grad):
        y: Any = _ResidualSwiGLU.apply(x, up, down, eps, way)
    else:
        y, _, _ = _forward(x, up.to(x.dtype), down.to(x.dtype), eps, way, keep=False)
    return y.view(h.shape)


# --------------------------------------------------------------------------------------------------
# The two orientations: `times` and `back` are a projection and its transpose, `collect` sums the
# gradient of a weight (keep=0: the first part, total holds nothing yet). Parts in bfloat16 are
# summed in float32.


class _Width:
    """The MLP over the width, on (rows, D)."""

    axis = 1

    @staticmethod
    def times(weight: Tensor, x: Tensor, out: Tensor) -> Tensor:
        return torch.mm(x, weight.T, out=out)

    @staticmethod
    def back(weight: Tensor, d: Tensor, out: Tensor) -> Tensor:
        return torch.mm(d, weight, out=out)

    @staticmethod
    def collect(total: Tensor, d: Tensor, x: Tensor, keep: int) -> None:
        if total.dtype == d.dtype:
            total.addmm_(d.T, x, beta=keep)
        else:
            _add(total, torch.mm(d.T, x), keep)


class _Sequence:
    """The MLP over the sequence, on (rows, S, D)."""

    axis = 1

    @staticmethod
    def times(weight: Tensor, x: Tensor, out: Tensor) -> Tensor:
        return torch.bmm(weight.expand(len(x), -1, -1), x, out=out)

    @staticmethod
    def back(weight: Tensor, d: Tensor, out: Tensor) -> Tensor:
        return torch.bmm(weight.T.expand(len(d), -1, -1), d, out=out)

    @staticmethod
    def collect(total: Tensor, d: Tensor, x: Tensor, keep: int) -> None:
        if total.dtype == d.dtype:
            total.addbmm_(d, x.mT, beta=keep)
        else:
            _add(total, torch.bmm(d, x.mT).sum(0, dtype=total.dtype), keep)


def _add(total: Tensor, product: Tensor, keep: int) -> None:
    if keep:
        total.add_(product)
    else:
        total.copy_(product)


Way = type[_Width] | type[_Sequence]


def _parts(x: Tensor, up: Tensor) -> list[slice]:
    """The rows of x in equal parts (the last may be shorter)."""
    bytes_of_row = up.shape[0] * math.prod(x.shape[2:]) * x.element_size()
    largest = max(PART_BYTES * torch.get_num_threads(), 2 * up.numel() * x.element_size())
    num = max(1, min(len(x), -(-len(x) * bytes_of_row // largest)))
    size = -(-len(x) // num)
    return [slice(i, min(i + size, len(x))) for i in range(0, len(x), size)]


def _buffer(x: Tensor, num_rows: int, width: int) -> Tensor:
    """Room for an intermediate of that many rows: `width` in place of the axis that is mixed."""
    return x.new_empty(num_rows, width, *x.shape[2:])


# --------------------------------------------------------------------------------------------------
# Forward and backward


def _normalise(y: Tensor, eps: float, axis: int) -> Tensor:
    """y <- y / sqrt(mean(y^2) + eps), in the order of `nn.rms_norm`; returns the float32 factor."""
    wide = y.float()
    factor = wide.square().mean(axis, keepdim=True).add_(eps).rsqrt_()
    if wide is y:
        y.mul_(factor)
    else:
        y.copy_(wide.mul_(factor))
    return factor


def _normalise_back(dy: Tensor, y: Tensor, factor: Tensor, axis: int) -> Tensor:
    """Gradient of the norm's input from that of its output: factor * (dy - y * mean(dy * y))."""
    dy, y = dy.float(), y.float()
    along = (dy * y).mean(axis, keepdim=True)
    return torch.addcmul(dy, y, along, value=-1).mul_(factor)


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, change: Tensor, eps: float) -> Tensor:
        y = h + change
        factor = _normalise(y, eps, -1)
        ctx.save_for_backward(y, factor)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        y, factor = ctx.saved_tensors
        d = _normalise_back(dy, y, factor, -1).to(y.dtype)
        return d, d, None


def _forward(
    x: Tensor, up: Tensor, down: Tensor, eps: float, way: Way, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, gate|up, factor of the norm); gate|up is whole only if it is kept."""
    parts = _parts(x, up)
    largest = parts[0].stop
    y = torch.empty_like(x)
    both = _buffer(x, len(x) if keep else largest, up.shape[0])
    product = _buffer(x, largest, down.shape[1])
    for part in parts:
        rows = part.stop - part.start
        gate_up = way.times(up, x[part], both[part] if keep else both[:rows])
        gate, value = gate_up.chunk(2, dim=way.axis)
        inner = torch.ops.aten.silu.out(gate, out=product[:rows]).mul_(value)
        way.times(down, inner, y[part])
    return y, both, _normalise(y.add_(x), eps, way.axis)


class _ResidualSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor, eps: float, way: Way) -> Tensor:
        ctx.way, ctx.modes = way, _get_current_function_mode_stack()
        ctx.dtypes = x.dtype, up.dtype, down.dtype
        up, down = up.to(x.dtype), down.to(x.dtype)
        y, both, factor = _forward(x, up, down, eps, way, keep=True)
        ctx.save_for_backward(x, up, down, y, both, factor)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        with ExitStack() as modes:  # torch runs a backward outside of every mode
            for mode in ctx.modes:
                modes.enter_context(mode)
            return _swiglu_back(ctx, dy)


def _swiglu_back(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    way = ctx.way
    x, up, down, y, both, factor = ctx.saved_tensors
    parts = _parts(x, up)
    largest = parts[0].stop
    dx, d_up, d_down = (
        torch.empty_like(value, dtype=dtype) if needed else None
        for value, dtype, needed in zip(
            (x, up, down), ctx.dtypes, ctx.needs_input_grad, strict=False
        )
    )
    silus, inners = (_buffer(x, largest, down.shape[1]) for _ in range(2))
    d_both = _buffer(x, largest, up.shape[0])
    dh = _normalise_back(dy, y, factor, way.axis).to(x.dtype)
    for part in parts:
        rows, keep, d = part.stop - part.start, int(part.start > 0), dh[part]
        gate, value = both[part].chunk(2, dim=way.axis)
        silu = torch.ops.aten.silu.out(gate, out=silus[:rows])
        inner = torch.mul(silu, value, out=inners[:rows])
        if d_down is not None:
            way.collect(d_down, d, inner, keep)
        d_inner = way.back(down, d, inner)
        d_gate, d_value = d_both[:rows].chunk(2, dim=way.axis)
        torch.mul(d_inner, silu, out=d_value)
        torch.ops.aten.silu_backward.grad_input(d_inner.mul_(value), gate, grad_input=d_gate)
        if d_up is not None:
            way.collect(d_up, d_both[:rows], x[part], keep)
        if dx is not None:
            way.back(up, d_both[:rows], dx[part])
    if dx is not None:
        dx.add_(dh)
    return dx, d_up, d_down, None, None
