"""What a process holds of a tensor: all of it, or some of its rows.

FSDP cuts every parameter along its first dimension: of n rows on p processes, process i holds rows
i * c to (i + 1) * c with c = ceil(n / p), which may be none. The model then registers DTensors;
what optimizers, averages and states deal with are these rows as plain tensors in the same memory,
so that an optimizer that works number by number is the same code on one process and on a thousand.
Two are not of that kind: ELLISAdam takes a mean over a whole tensor (`Shards.means`), and Muon
wants whole matrices (`MuonOfShards`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from inward.train.optim import Muon, dense_parameters


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
        rows = tensor.detach().to_local()
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

    def __init__(self, model: nn.Module) -> None:
        self.params = dense_parameters(model)
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


class MuonOfShards(Muon):
    """Muon where the matrices are cut: each belongs to one process, in turn.

    Its owner gathers weight and gradient, keeps the momentum, and does what Muon does with a whole
    matrix, so that equal gradients give equal bits; then everybody takes their rows of the result.
    """

    def __init__(
        self, shards: Shards, parts: Mapping[str, tuple[int, ...]], lr: float, **options: Any
    ) -> None:
        rank, world = dist.get_rank(), dist.get_world_size()
        self._shards = shards
        self._owners = {name: number % world for number, name in enumerate(parts)}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of the parts of all matrices, whoever owns them."""
        for name, sizes in parts.items():
            rows, columns = shards.params[name].shape
            first = 0
            for size in sizes or (rows,):
                self.shapes[f"{name}[{first}:{first + size}]"] = (size, columns)
                first += size
        self._own = {
            name: shards.rows[name].new_empty(shards.params[name].shape)
            for name, owner in self._owners.items()
            if owner == rank
        }
        super().__init__(self._own, {name: parts[name] for name in self._own}, lr, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update; every process calls it."""
        assert closure is None, "a closure cannot be called by the owners alone"
        for name in self._owners:
            param = self._shards.params[name]
            if param.grad is None:
                continue
            weight, grad = whole(param), whole(param.grad)
            if name in self._own:
                self._own[name].copy_(weight)
                self._own[name].grad = grad
        super().step()
        for name, owner in self._owners.items():
            param = self._shards.params[name]
            if param.grad is None:
                continue
            own = held(param)
            new = self._own[name] if name in self._own else own.tensor.new_empty(param.shape)
            dist.broadcast(new, owner)
            own.tensor.copy_(new[own.first : own.first + len(own.tensor)])
        for matrix in self._own.values():
            matrix.grad = None
