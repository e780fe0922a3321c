"""What a run would take: bytes on each device, FLOPs and hours, before anything is bought.

    needs = Needs(...)                       of a recipe, see `inward.recipes.planned`
    plan(needs, settings, Cluster(gpus=8))   -> Plan: bytes by what they are for, hours, fits or not
    advise(...)                              what to change so that it fits

The sum, for each device, of numbers that lie there at once:

    weights      float32, whole (ddp) or a part of 1 / shard (fsdp, hsdp)
    gradients    float32, as the weights; with accumulation they lie there throughout
    optimizer    AdamW, AdamATan2, ELLISAdam: two numbers a weight; Muon: one; sparse rows: none
    average      EMA of dense weights
    carried      what a method keeps from step to step (TRM's slots)
    gathered     fsdp, hsdp: what is whole at once, weights and gradients: the common group (all
                 that runs several times a forward, and what is in no block), two more blocks
    activations  what forward keeps for backward
    working      the most that forward and backward need besides

The last two are counted on a run of the training code with shapes alone (`inward.train.traced`).
Autocast's bfloat16 copies of the weights count as activations; blocks that are sharded (see
`inward.train.sharding`) are gathered in bfloat16 and need none. What the accelerator's runtime,
communication buffers and fragmentation take is no part of the sum: a share of the memory is left
for them (`USABLE`).

Hours are FLOPs, recomputed ones included, over devices x peak FLOP/s x the share of it that is
reached (MFU); the rest of a run (evaluation, data, saving) is not in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch.optim import Optimizer

from inward.common.checks import need
from inward.train.optim import AdamATan2, ELLISAdam, Muon, SparseSignSGD
from inward.train.settings import TrainSettings
from inward.train.traced import Traced

USABLE = 0.92
"""Share of a device's memory that a plan fills."""

PEAK = {"bfloat16": 989.0, "float32": 67.0}
"""TFLOP/s of an H100 (SXM, dense; float32 without TF32)."""

PARTS = ("weights", "gradients", "optimizer", "average", "carried", "gathered", "activations",
         "working")  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """The devices; how a model is spread over them the training's settings say."""

    gpus: int = 8
    memory: float = 80.0
    """GB (10^9 bytes) of each"""
    tflops: float = 0.0
    """peak of a device in the precision of the run, 10^12 FLOP/s; 0: an H100's, see `PEAK`"""
    mfu: float = 0.0
    """share of the peak that is reached; 0: what is known of the method"""

    def __post_init__(self) -> None:
        need(self.gpus >= 1, "gpus", self.gpus, "1 or more")
        need(0 < self.memory < 1e6, "memory", self.memory, "a positive number of GB")
        need(0 <= self.tflops < 1e6, "tflops", self.tflops, "a number of TFLOP/s, or 0")
        need(0 <= self.mfu <= 1, "mfu", self.mfu, "in (0, 1], or 0 for what is known")

    def width(self, settings: TrainSettings) -> int:
        """Devices that share one copy of the model; ValueError if they cannot be grouped so."""
        if settings.parallel != "hsdp":
            return self.gpus if settings.parallel == "fsdp" else 1
        size = settings.shard_processes or 8
        good = 1 < size < self.gpus and self.gpus % size == 0
        limit = f"a divisor of {self.gpus} gpus that makes two groups or more, of two or more"
        need(good, "shard_processes", size, limit)
        return size


@dataclass(frozen=True)
class Needs:
    """What of a recipe a plan depends on.

    dense, sparse: trainable weights; frozen_bytes: of those that are not trained. state_bytes: of
    the optimizers. common, block: weights in the group that is gathered for a whole forward, and in
    the largest block that is gathered by itself (0: there are none). carried: bytes a row from step
    to step. micro: (rows, recompute) -> one micro-batch. asked_bytes: keys and values of one text
    of full length when the model is asked, in bfloat16. rows_in: what a row is. precision: of
    matrix products. recomputes: whether its training can compute again in backward. told: what was
    taken for granted.
    """

    name: str
    dense: int
    sparse: int
    frozen_bytes: int
    state_bytes: int
    common: int
    block: int
    micro: Callable[[int, bool], Traced]
    carried: int = 0
    asked_bytes: int = 0
    rows_in: str = ""
    mfu: float = 0.4
    mfu_from: str = "assumed"
    precision: str = "float32"
    recomputes: bool = True
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Bytes of each device by what they are for, and the time."""

    name: str
    cluster: Cluster
    parallel: str
    shared_by: int
    micro_rows: int
    accumulation: int
    recompute: bool
    parameters: int
    bytes: dict[str, float]
    step_flops: float
    steps: int
    mfu: float
    tflops: float
    told: tuple[str, ...] = field(default=())

    @property
    def total(self) -> float:
        """Bytes at once, on the fullest device."""
        return sum(self.bytes.values())

    @property
    def fits(self) -> bool:
        """Whether they fit the part of the memory that a plan fills."""
        return self.total <= USABLE * 1e9 * self.cluster.memory

    @property
    def flops(self) -> float:
        """Of the whole run."""
        return self.step_flops * self.steps

    @property
    def hours(self) -> float:
        """Of the whole run on the wall."""
        rate = self.cluster.gpus * self.tflops * 1e12 * self.mfu
        return self.flops / rate / 3600

    def to_dict(self) -> dict[str, Any]:
        """As a row of results."""
        row = {**asdict(self), "total": self.total, "fits": self.fits}
        return row | {"flops": self.flops, "hours": self.hours}


def plan(needs: Needs, settings: TrainSettings, cluster: Cluster) -> Plan:
    """The sum at the top of this file.

    Raises:
        ValueError: the rows of a batch do not divide by devices x accumulation, or the devices by
            the groups of hsdp; recomputing where there is none.
    """
    world, width = cluster.gpus * settings.accumulation, cluster.width(settings)
    if settings.batch_rows % world:
        raise ValueError(
            f"batch_rows is {settings.batch_rows}, which {cluster.gpus} gpus x accumulation "
            f"{settings.accumulation} do not divide; change --gpus, --train.accumulation or "
            "--train.batch-rows"
        )
    if settings.recompute and not needs.recomputes:
        raise ValueError(
            f"train.recompute: {needs.name} keeps keys and values that backward needs, so that "
            "nothing can be computed again; leave it out"
        )
    rows = settings.batch_rows // world
    micro = needs.micro(rows, settings.recompute)
    part, each = 1 / width, 2 if settings.precision == "bfloat16" else 4
    gathered = copied = 0.0
    if width > 1:
        gathered = 8.0 * needs.common + (2 * each + 4) * needs.block
        copied = min(micro.copies, 2.0 * (needs.dense - needs.common))
    found = {
        "weights": 4 * needs.dense * part + 4 * needs.sparse + needs.frozen_bytes * part,
        "gradients": 4 * needs.dense * part,
        "optimizer": needs.state_bytes * part,
        "average": 4 * needs.dense * part if settings.ema_decay else 0.0,
        "carried": float(needs.carried * rows * settings.accumulation),
        "gathered": gathered,
        "activations": micro.activations - (copied if each == 2 else 0.0),
        "working": micro.working,
    }
    return Plan(
        name=needs.name,
        cluster=cluster,
        parallel=settings.parallel,
        shared_by=width,
        micro_rows=rows,
        accumulation=settings.accumulation,
        recompute=settings.recompute,
        parameters=needs.dense + needs.sparse,
        bytes=found,
        step_flops=(micro.forward + micro.backward) * world,
        steps=settings.steps,
        mfu=cluster.mfu or needs.mfu,
        tflops=cluster.tflops or PEAK[needs.precision],
        told=needs.told,
    )


def advise(needs: Needs, settings: TrainSettings, cluster: Cluster) -> Plan | None:
    """The first plan that fits, of: more accumulation, then also recomputing, then fsdp, then
    twice, four times ... the devices; None: not even one row on 65,536 of them."""
    for wider, changed in _candidates(cluster, settings, needs.recomputes):
        parts = [
            n
            for n in range(settings.accumulation, settings.batch_rows // wider.gpus + 1)
            if settings.batch_rows % (n * wider.gpus) == 0
        ]
        tried = [replace(changed, accumulation=n) for n in parts]
        # fewer rows at a time take less: the first that fits, by halves
        low, high = 0, len(tried)
        while low < high:
            middle = (low + high) // 2
            fits = plan(needs, tried[middle], wider).fits
            low, high = (low, middle) if fits else (middle + 1, high)
        if low < len(tried):
            return plan(needs, tried[low], wider)
    return None


def _candidates(
    cluster: Cluster, settings: TrainSettings, recomputes: bool
) -> Iterator[tuple[Cluster, TrainSettings]]:
    yield cluster, settings
    again = replace(settings, recompute=recomputes)
    if again != settings:
        yield cluster, again
    fsdp: dict[str, Any] = {"parallel": "fsdp", "shard_processes": 0}
    if settings.parallel == "ddp" and cluster.gpus > 1:
        yield cluster, replace(settings, **fsdp)
        yield cluster, replace(again, **fsdp)
    while cluster.gpus < 65_536:
        cluster = replace(cluster, gpus=2 * cluster.gpus)
        yield cluster, replace(again, **fsdp)


def state_bytes(optimizers: list[Optimizer]) -> int:
    """Bytes that these optimizers keep after their first step.

    Raises:
        TypeError: one whose state is not known here.
    """
    total = 0
    for optimizer in optimizers:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        numbers = sum(p.numel() * p.element_size() for p in params)
        if isinstance(optimizer, Muon):
            total += numbers
        elif isinstance(optimizer, AdamATan2 | ELLISAdam):
            total += 2 * numbers + 8 * len(params)  # and a count of 64 bits each
        elif type(optimizer).__name__ == "AdamW":
            total += 2 * numbers + 4 * len(params)
        elif not isinstance(optimizer, SparseSignSGD):
            raise TypeError(f"the state of {type(optimizer).__name__} is not known here")
    return total
