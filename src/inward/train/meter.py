"""What a training step takes: FLOPs of anything that torch runs, the backward pass included.

An answer is counted from the sizes of its model (`inward.common.costs`). A training step is not:
passes with and without gradient, frozen weights, adapters, curricula and recomputation differ from
step to step. So here the products themselves are counted, with the rules of the account: a
multiply-add is two, attention counts the pairs of query and key that its mask lets through, norms
and activations are left out.

    with StepMeter() as meter:
        model.loss(batch, None, draws).total.backward()
    meter.cost.parts["backward"].flops

What a product takes in the backward is known when it runs: as much again for each of its factors
that needs a gradient; attention takes five products there for two forward, because its kernels
compute the scores again. That is checked against torch's FlopCounterMode, which sees the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from inward.common.draws import Draws, Trainable
from inward.common.trace import Cost, total

if TYPE_CHECKING:
    from inward.train.run import Run
    from inward.train.settings import TrainSettings

STEP_PARTS = ("forward", "backward", "again")
"""Parts of a training step's cost. again: what checkpointing recomputes in the backward."""


def visible_pairs(q: Tensor, k: Tensor, causal: bool, mask: Tensor | None) -> int:
    """How often a query of q (B, N, S, H) looks at a key of k (B, N, K, H)."""
    shape = (*q.shape[:-1], k.shape[-2])
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else mask == 0
        times = torch.Size(shape).numel() // torch.broadcast_shapes(mask.shape, shape).numel()
        return int(seen.sum()) * times * (torch.Size(shape).numel() // seen.numel())
    S, K = shape[-2:]
    each = sum(min(i + 1, K) for i in range(S)) if causal else S * K
    return torch.Size(shape[:-2]).numel() * each


class StepMeter(TorchFunctionMode):
    """Counts the products that run under it; see the top of the file. What is compiled or packed
    (`torch.compile`, packed weights) runs unseen. A checkpoint is taken to run again as a whole;
    torch stops it behind the last tensor that the backward needs. Reentrant checkpoints run
    unseen."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = dict.fromkeys(STEP_PARTS, 0)

    @property
    def cost(self) -> Cost:
        """All of it, with the accounts of `STEP_PARTS`."""
        found = self.flops.items()
        return total(Cost(flops=float(flops)).under(name) for name, flops in found if flops)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := _COUNTED.get(func)) is not None:
            self._add(*cast(Any, count(result, *args, **(kwargs or {}))))
        return result

    def _add(self, flops: int, factors: tuple[Tensor, ...], backward: int | None = None) -> None:
        """A product of so many FLOPs; `backward`: FLOPs there if any factor needs a gradient;
        None: `flops` for each that does."""
        if torch._C._current_graph_task_id() != -1:  # of an autograd function of our own
            self.flops["backward"] += flops
            return
        self.flops["forward"] += flops
        needed = sum(factor.requires_grad for factor in factors) if torch.is_grad_enabled() else 0
        if needed:
            self.flops["backward"] += needed * flops if backward is None else backward
            autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
            if autograd._top_saved_tensors_default_hooks(False) is not None:
                self.flops["again"] += flops  # torch.utils.checkpoint keeps nothing


Counted = tuple[int, tuple[Tensor, ...]] | tuple[int, tuple[Tensor, ...], int]


def _linear(result: Tensor, input: Tensor, weight: Tensor, bias: Any = None) -> Counted:
    return 2 * input.numel() * weight.shape[0], (input, weight)


def _product(result: Tensor, /, a: Tensor, b: Tensor, **_: Any) -> Counted:
    return 2 * result.numel() * a.shape[-1], (a, b)


def _turned(result: Tensor, b: Tensor, a: Tensor) -> Counted:
    return _product(result, a, b)


def _added(result: Tensor, /, into: Tensor, a: Tensor, b: Tensor, **_: Any) -> Counted:
    return _product(result, a, b)


def _summed(result: Tensor, /, into: Tensor, a: Tensor, b: Tensor, **_: Any) -> Counted:
    return 2 * a.numel() * b.shape[-1], (a, b)


def _einsum(result: Tensor, equation: str, *operands: Any) -> Counted:
    """Of two operands; of more, torch chooses the order."""
    factors = tuple(operands[0]) if isinstance(operands[0], list | tuple) else operands
    sizes: dict[str, int] = {}
    for names, factor in zip(equation.split("->")[0].split(","), factors, strict=True):
        sizes |= dict(zip(names.strip(), factor.shape, strict=True))
    flops = 2 * torch.Size(sizes.values()).numel() if len(factors) > 1 else 0
    return flops, factors


def _conv(result: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Counted:
    return 2 * result.numel() * weight[0].numel(), (input, weight)


def _attention(
    result: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> Counted:
    pairs = visible_pairs(query, key, is_causal, attn_mask)
    d, v = query.shape[-1], value.shape[-1]
    return 2 * pairs * (d + v), (query, key, value), 2 * pairs * (3 * d + 2 * v)


_COUNTED: dict[Any, Callable[..., Counted]] = {
    F.linear: _linear,
    torch.einsum: _einsum,
    F.scaled_dot_product_attention: _attention,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _conv),
    **dict.fromkeys((torch.matmul, torch.mm, torch.bmm), _product),
    **dict.fromkeys((Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__), _product),
    Tensor.__rmatmul__: _turned,
    **dict.fromkeys((torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm), _added),
    **dict.fromkeys((Tensor.addmm_, Tensor.baddbmm_), _added),
    Tensor.addbmm_: _summed,
}


def step_cost(
    run: Run, settings: TrainSettings, step: int = 0, state: dict[str, Tensor] | None = None
) -> Cost:
    """FLOPs of step number `step` (from 0) of a run on this process, its whole global batch; parts
    as in `STEP_PARTS`.

    The step is computed, forward and backward, with its own batch and draws, but nothing is
    updated. Steps differ where a curriculum, a random depth or the lengths of rows do: take a few
    of them, in each stage. The optimizer's own work is left out.

    Args:
        state: what the method carried from the step before (TRM's slots); FLOPs do not depend on
            it.
    Raises:
        ValueError: a step or rows out of range, from the run's source.
    """
    rows = range(settings.batch_rows)
    model: Any = run.model
    device = next(model.parameters()).device
    batch = run.source.batch(step, rows, len(rows))
    batch = {name: value.to(device) for name, value in batch.items()}
    draws = Draws(settings.seed, step, rows, len(rows), device=device)
    grads = [(p, p.grad) for p in model.parameters()]
    was = model.training
    try:
        model.train()
        for p, _ in grads:
            p.grad = None
        with StepMeter() as meter:
            cast(Trainable, model).loss(batch, state, draws).total.backward()
    finally:
        model.train(was)
        for p, grad in grads:
            p.grad = grad
    return meter.cost
