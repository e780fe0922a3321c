"""A model spread over processes by torch's FSDP2 (`fully_shard`), on gloo as on nccl.

    fsdp    every process holds 1 / p of each weight, gradient, average and optimizer state
    hsdp    the same within groups of processes (a machine's); groups hold copies

What runs about once a forward (`ChoosesBlocks`: Huginn's prelude and coda, the layers below TiDAR)
is gathered block by block, when its turn comes, and let go again. All else is one group that is
gathered when a forward begins and let go when its backward ends: Huginn's core, TRM's network and a
base that thinks for Coconut run many times in between, and a group of their own would be gathered,
and its gradient reduced, at every recurrence. Tied weights lie in that group, too.

Tables of identifiers stay whole on every process, as with ddp: a step touches few of their rows,
and their optimizer exchanges these alone. Gradients travel after every micro-batch, because what
waits for the others would be a whole gradient, which is what one shards to be rid of.

Not done: weights on the CPU (offload), models that are made in parts (each process makes the whole
model on its CPU, then keeps its share).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from inward.train.optim import sparse_parameters
from inward.train.settings import TrainSettings
from inward.train.shards import whole


@runtime_checkable
class ChoosesBlocks(Protocol):
    """A model that says which of its parts run about once a forward."""

    def sharded_blocks(self) -> Iterable[nn.Module]:
        """Parts that are gathered one by one; they share no weights with each other or the rest."""
        ...


def check_parallel(settings: TrainSettings, processes: int) -> None:
    """ValueErrors for what cannot be done on so many processes."""
    name, size = settings.parallel, group_size(settings)
    if name == "ddp":
        return
    if processes == 1:
        raise ValueError(
            f"parallel is {name!r}, but this is one process; start several (torchrun "
            "--nproc-per-node N), or leave it out: a state goes on with any number of processes"
        )
    if name == "hsdp" and (processes % size or not 1 < size < processes):
        raise ValueError(
            f"parallel is 'hsdp' with {size} processes a group (shard_processes), but there are "
            f"{processes} processes: they must make at least two groups of at least two (one "
            "group: fsdp; groups of one: ddp)"
        )


def group_size(settings: TrainSettings) -> int:
    """hsdp: how many processes share a copy."""
    return settings.shard_processes or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def mesh_of(settings: TrainSettings, device: torch.device) -> DeviceMesh:
    """The processes in one line (fsdp), or in rows that each hold a copy (hsdp)."""
    world = dist.get_world_size()
    if settings.parallel == "fsdp":
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    size = group_size(settings)
    names = ("replicate", "shard")
    return init_device_mesh(device.type, (world // size, size), mesh_dim_names=names)


def shard(
    module: nn.Module, model: nn.Module, settings: TrainSettings, device: torch.device
) -> None:
    """Spread `module`, whose forward is the loss of `model`, over all processes, in place.

    All begin with the weights of the first. With precision "bfloat16" the blocks are gathered in
    bfloat16 and their gradients summed in float32; the common group stays float32 for autocast to
    cast, since gradients of what runs many times are added up where they are.

    Raises:
        ValueError: a trainable number (no dimensions), or trainable weights of several precisions.
    """
    _check_parameters(model)
    _equal(module, device)
    mesh, sparse = mesh_of(settings, device), set(sparse_parameters(module).values())
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if settings.precision == "bfloat16":
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    if isinstance(model, ChoosesBlocks):
        for block in model.sharded_blocks():
            fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=sparse)
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    fully_shard(module, mesh=mesh, mp_policy=plain, ignored_params=sparse)
    for param in sparse:
        param.data = param.data.to(device)
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            owner._buffers[name] = None if buffer is None else buffer.to(device)


def _check_parameters(model: nn.Module) -> None:
    moved = {n: p for n, p in model.named_parameters() if p.requires_grad}
    numbers = [name for name, param in moved.items() if param.ndim == 0]
    if numbers:
        raise ValueError(f"{', '.join(numbers)} cannot be sharded: no dimensions; use ddp")
    kinds = sorted({str(param.dtype) for param in moved.values()})
    if len(kinds) > 1:
        raise ValueError(
            f"the model trains weights in {', '.join(kinds)}; one precision can be sharded: make "
            "all of them float32, or use ddp"
        )


@torch.no_grad()
def _equal(module: nn.Module, device: torch.device) -> None:
    """Give all processes the weights of the first, a tensor at a time."""
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        there = tensor.data.to(device)
        dist.broadcast(there, 0)
        tensor.data.copy_(there)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Within: the model is whole on every process, to be used in any way (but for training)."""
    units = [cast(FSDPModule, m) for m in module.modules() if isinstance(m, FSDPModule)]
    blocks = [unit for unit in units if unit is not module]
    if units:  # evaluation may come before the first step; else a block would think it is the root
        units[0]._get_fsdp_state()._lazy_init()
    for block in blocks:
        block.set_reshard_after_forward(False, recurse=False)
    for unit in units:
        unit.unshard()
    if units:  # FSDP hides from torch that the weights have changed; what packs them must see it
        increment_version([p for p in module.parameters() if not isinstance(p, DTensor)])
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
        for block in blocks:
            block.set_reshard_after_forward(True, recurse=False)


@contextmanager
def whole_on_first(model: nn.Module, *, first: bool) -> Iterator[None]:
    """Within: on the first process the model's weights are whole, on the CPU, in their precision;
    all processes must enter. For saving: one tensor at a time is gathered."""
    places: list[tuple[dict[str, Any], str, DTensor]] = []
    found: dict[int, Tensor] = {}
    for owner in model.modules():
        for name, param in owner._parameters.items():
            if isinstance(param, DTensor):
                places.append((owner._parameters, name, param))
                if id(param) not in found:
                    full = whole(param)
                    found[id(param)] = full.cpu() if first else full[:0]
    try:
        for table, name, param in places if first else ():
            full = found.setdefault(id(param), torch.empty(0))
            if not isinstance(full, nn.Parameter):
                full = found[id(param)] = nn.Parameter(full, requires_grad=param.requires_grad)
            table[name] = full
        yield
    finally:
        for table, name, param in places if first else ():
            table[name] = param
