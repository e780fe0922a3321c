"""One micro-batch run with shapes and no numbers: what it keeps, what it needs at most, its FLOPs.

The code that trains is the code that is run here, on torch's fake tensors: they have shape, dtype
and device but no memory, so that a model of any size takes a second. Counted are the storages that
operations make, from the moment they are made until nobody holds them.

The device is a fake CPU: attention takes there, as on a GPU, a kernel that keeps q, k, v and its
output but no S x S matrix.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Traced:
    """Of one micro-batch, without parameters and their gradients.

    activations: bytes alive between forward and backward, autocast's copies of weights included.
    peak: most bytes alive at any moment of both. copies: autocast's copies of weights.
    forward, backward: FLOPs, a multiply-add is two; of matrix products and attention alone.
    """

    activations: float
    peak: float
    copies: float
    forward: float
    backward: float

    def __add__(self, other: Traced) -> Traced:
        """One after the other, the first one's activations being kept meanwhile."""
        return Traced(
            self.activations + other.activations,
            max(self.peak, self.activations + other.peak),
            self.copies + other.copies,
            self.forward + other.forward,
            self.backward + other.backward,
        )

    @property
    def working(self) -> float:
        """Bytes beyond the activations."""
        return self.peak - self.activations

    def towards(self, other: Traced, times: float) -> Traced:
        """self + times * (other - self): all of it grows in a straight line, as with rows."""
        names = ("activations", "peak", "copies", "forward", "backward")
        return Traced(
            *(getattr(self, n) + times * (getattr(other, n) - getattr(self, n)) for n in names)
        )

    def deeper(self, other: Traced, times: float) -> Traced:
        """The same for layers and recurrences: they keep more, and work with what one needs."""
        found = self.towards(other, times)
        working = max(self.working, other.working)
        return replace(found, peak=found.activations + working)

    def recomputing(self, part: float, head: Traced) -> Traced:
        """With parts that are run again in backward, each of which keeps `part` bytes by then; the
        head is done with before the first of them.

        Not traced, because what is run again is freed at once of real tensors, but of fake ones
        only when circles are swept.
        """
        below = self.activations - head.activations
        return replace(self, peak=below + max(head.peak, part))


class Alive(TorchDispatchMode):
    """Bytes of the storages that operations made and somebody still holds; `known` do not count."""

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._known = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor) and not value.is_sparse:
                self._meet(value.untyped_storage())
        return made

    def _meet(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, key, storage.nbytes())

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextmanager
def shapes_only() -> Iterator[None]:
    """Tensors made within have no memory, and models made within no initial weights."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers.initialization import no_init_weights

    with FakeTensorMode(), no_init_weights():
        yield


def trace(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    precision: str = "float32",
    attended: float = 1.0,
) -> Traced:
    """Forward and backward of `loss` (a scalar) through `model`; within `shapes_only`.

    Args:
        precision: "bfloat16" runs under autocast, as the training loop does.
        attended: share of the S x S pairs that attention works on: 1/2 where it is causal.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(_forget) for p in params]
    known = [*model.parameters(), *model.buffers()]
    cast = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()
    counts = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
              torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
              }  # fmt: skip
    try:
        counter = FlopCounterMode(display=False, custom_mapping=counts)
        with counter, Alive(known) as alive:
            with cast:
                total = loss()
            activations = alive.now
            forward = _flops(counter, attended)
            if total.requires_grad:
                total.backward()
            both = _flops(counter, attended)
    finally:
        for hook in hooks:
            hook.remove()
    copies = 0
    if precision == "bfloat16":
        copies = sum(2 * p.numel() for p in _multiplied(model) if p.requires_grad)
    return Traced(activations, alive.peak, copies, forward, both - forward)


def _multiplied(model: nn.Module) -> list[nn.Parameter]:
    """The matrices of layers that multiply: autocast casts these."""
    layers = [m for m in model.modules() if not isinstance(m, nn.Embedding)]
    found = {id(p): p for m in layers for p in m.parameters(recurse=False) if p.ndim == 2}
    return list(found.values())


def _forget(param: Tensor) -> None:
    """Gradients are counted apart."""
    param.grad = None


def _flops(counter: FlopCounterMode, attended: float) -> float:
    found = counter.get_flop_counts().get("Global", {})
    return float(sum(n * (attended if "dot_product" in str(op) else 1) for op, n in found.items()))


def _attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    """Two products of (S, H) and (H, K) for every head of every row."""
    B, N, S, H = q
    return 2 * B * N * S * k[2] * (H + v[3])


def _attention_back(grad: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    """Five such products: the scores are made again."""
    return 5 * _attention(q, k, v) // 2
