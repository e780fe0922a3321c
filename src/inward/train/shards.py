"""What a process holds of a tensor: all of it, or some of its rows.

FSDP cuts every parameter along its first dimension: of n rows on p processes, process i holds rows
i * c to (i + 1) * c with c = ceil(n / p), which may be none. The model then registers DTensors;
what optimizers, averages and states deal with are these rows as plain tensors in the same memory,
so that an optimizer that works number by number is the same code on one process and on a thousand.
Two are not of that kind: ELLISAdam takes a mean over a whole tensor (`Shards.means`), and Muon
wants whole matrices (`optim.MuonOfShards`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Held:
    """What this process holds of a tensor, and what of it belongs into a state.

    tensor: the rows from `first` on of a tensor of `shape`.
    writes: None: all processes hold the same, the first one writes it; else whether this one does.
    """

    tensor: Tensor
    shape: tuple[int, ...]
    first: int = 0
    writes: bool | None = None

    def of(self, other: Tensor) -> Held:
        """The same of a tensor that lies beside this one, such as its average; of a number, that
        all have it."""
        return replace(self, tensor=other) if other.ndim else Held(other, ())


def held(tensor: Tensor) -> Held:
    """Of any tensor, sharded or not; the same memory."""
    if not isinstance(tensor, DTensor):
        return Held(tensor, tuple(tensor.shape))
    with torch.no_grad():
        rows = cast(DTensor, tensor.detach()).to_local()
    first, writes = 0, True
    for axis, placement in enumerate(tensor.placements):
        number = tensor.device_mesh.get_local_rank(axis)
        if placement.is_shard():
            each = -(-tensor.shape[0] // tensor.device_mesh.size(axis))
            first = min(number * each, tensor.shape[0])
        else:
            writes = writes and number == 0  # of copies (hsdp) one is written
    return Held(rows, tuple(tensor.shape), first, writes and rows.numel() > 0)


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the rows of all processes, which must all call this; detached."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Shards:
    """The dense parameters of a model as the model names them, and as optimizers see them.

    params: name -> parameter (a DTensor where the model is sharded).
    rows: name -> what optimizers and the average move: the parameter itself, or this process's
        rows of it.
    """

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        """Of `params`, the dense parameters of a model by name."""
        self.params = dict(params)
        self.cut = {n: p for n, p in self.params.items() if isinstance(p, DTensor)}
        self.rows: dict[str, Tensor] = {
            name: held(param).tensor if name in self.cut else param
            for name, param in self.params.items()
        }
        self._copies, self._group = 1, None
        if self.cut:
            self._look_at(next(iter(self.cut.values())))

    def _look_at(self, param: DTensor) -> None:
        for axis, placement in enumerate(param.placements):
            if placement.is_shard():
                self._group = param.device_mesh.get_group(axis)
            else:
                self._copies *= param.device_mesh.size(axis)

    def take_gradients(self) -> None:
        """Give the rows the gradients of their parameters."""
        for name, param in self.cut.items():
            rows = self.rows[name]
            now = held(param).tensor
            same = now.numel() == 0 or now.data_ptr() == rows.data_ptr()
            assert same, f"the parameter {name} moved after its optimizer was built"
            rows.grad = None if param.grad is None else held(param.grad).tensor

    def drop_gradients(self) -> None:
        """Forget them all."""
        for name, param in self.params.items():
            param.grad = self.rows[name].grad = None

    def gradients(self) -> dict[str, Tensor]:
        """Name -> gradient of the rows that this process holds; call `take_gradients` first."""
        return {name: t.grad for name, t in self.rows.items() if t.grad is not None}

    def square_sum(self, dtype: torch.dtype) -> Tensor:
        """This process's share of the squared norm of all gradients, to be summed over all."""
        grads = self.gradients().values()
        total = sum(g.to(dtype).square().sum() for g in grads if g.numel())
        return torch.as_tensor(total, dtype=dtype) / self._copies

    def means(self, values: list[Tensor]) -> list[Tensor]:
        """Means over whole tensors, of each of which this process holds the rows given."""
        device = values[0].device
        sums = torch.stack([value.sum() for value in values])
        sizes = torch.tensor([value.numel() for value in values], device=device, dtype=sums.dtype)
        both = torch.stack([sums, sizes])
        dist.all_reduce(both, group=self._group)
        return list((both[0] / both[1]).unbind())
