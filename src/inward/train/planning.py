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
    gathered     fsdp, hsdp: what is whole at once: the root (embedding, head, norms), blocks that
                 run again and again (Huginn's core, gathered once a forward), two more blocks
    activations  what forward keeps for backward
    working      the most that forward and backward need besides

The last two are counted on a run of the training code with shapes alone (`inward.train.traced`).
ddp keeps autocast's bfloat16 copies of the weights with the activations; sharded, the gathered
weights are those copies. What the accelerator's runtime, communication buffers and fragmentation
take is no part of the sum: a share of the memory is left for them (`USABLE`).

Hours are FLOPs, recomputed ones included, over devices x peak FLOP/s x the share of it that is
reached (MFU); the rest of a run (evaluation, data, saving) is not in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from torch.optim import Optimizer

from inward.common.checks import need
from inward.train.optim import AdamATan2, ELLISAdam, Muon, SparseSignSGD
from inward.train.settings import TrainSettings
from inward.train.traced import Traced

USABLE = 0.92
"""Share of a device's memory that a plan fills."""

PARTS = ("weights", "gradients", "optimizer", "average", "carried", "gathered", "activations",
         "working")  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """The devices, and how a model is spread over them."""

    gpus: int = 8
    memory: float = 80.0
    """GB (10^9 bytes) of each"""
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """ddp: a whole copy on each; fsdp: one copy over all; hsdp: one over each group of `shard`"""
    shard: int = 0
    """hsdp: devices that share a copy; 0: 8, or all if there are fewer"""
    tflops: float = 989.0
    """peak of a device in the precision of the run, 10^12 FLOP/s (H100, bfloat16: 989)"""
    mfu: float = 0.0
    """share of the peak that is reached; 0: what is known of the method"""

    def __post_init__(self) -> None:
        need(self.gpus >= 1, "gpus", self.gpus, "1 or more")
        need(0 < self.memory < 1e6, "memory", self.memory, "a positive number of GB")
        need(0 < self.tflops < 1e6, "tflops", self.tflops, "a positive number of TFLOP/s")
        need(0 <= self.mfu <= 1, "mfu", self.mfu, "in (0, 1], or 0 for what is known")
        kinds = ("ddp", "fsdp", "hsdp")
        need(self.parallel in kinds, "parallel", self.parallel, f"one of {', '.join(kinds)}")
        if self.shard and self.parallel != "hsdp":
            raise ValueError(
                f"shard is {self.shard}, but {self.parallel} has no groups; leave it out, or take "
                "--parallel hsdp"
            )
        if self.parallel == "hsdp":
            good = 2 <= self.width <= self.gpus and self.gpus % self.width == 0
            need(good, "shard", self.width, f"a divisor of {self.gpus} gpus, 2 or more")

    @property
    def width(self) -> int:
        """Devices that share one copy of the model."""
        if self.parallel == "hsdp":
            return self.shard or min(8, self.gpus)
        return self.gpus if self.parallel == "fsdp" else 1


@dataclass(frozen=True)
class Needs:
    """What of a recipe a plan depends on.

    dense, sparse: trainable weights; frozen_bytes: of those that are not trained. state_bytes: of
    the optimizers. root, repeated, block: weights outside all blocks, in blocks that run again and
    again, and in the largest other block. carried: bytes a row from step to step. micro: (rows,
    checkpointing) -> one micro-batch. asked_bytes: keys and values of one text of full length when
    the model is asked, in bfloat16. rows_in: what a row is. told: what was taken for granted.
    """

    name: str
    dense: int
    sparse: int
    frozen_bytes: int
    state_bytes: int
    root: int
    repeated: int
    block: int
    micro: Callable[[int, bool], Traced]
    carried: int = 0
    asked_bytes: int = 0
    rows_in: str = ""
    mfu: float = 0.4
    mfu_from: str = "assumed"
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Bytes of each device by what they are for, and the time."""

    name: str
    cluster: Cluster
    micro_rows: int
    accumulation: int
    checkpointing: bool
    parameters: int
    bytes: dict[str, float]
    step_flops: float
    steps: int
    mfu: float
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
        rate = self.cluster.gpus * self.cluster.tflops * 1e12 * self.mfu
        return self.flops / rate / 3600

    def to_dict(self) -> dict[str, Any]:
        """As a row of results."""
        row = {**asdict(self), "total": self.total, "fits": self.fits}
        return row | {"flops": self.flops, "hours": self.hours}


def plan(
    needs: Needs, settings: TrainSettings, cluster: Cluster, *, checkpointing: bool = False
) -> Plan:
    """The sum at the top of this file.

    Raises:
        ValueError: the rows of a batch do not divide by devices x accumulation.
    """
    world = cluster.gpus * settings.accumulation
    if settings.batch_rows % world:
        raise ValueError(
            f"batch_rows is {settings.batch_rows}, which {cluster.gpus} gpus x accumulation "
            f"{settings.accumulation} do not divide; change --gpus, --train.accumulation or "
            "--train.batch-rows"
        )
    rows = settings.batch_rows // world
    micro = needs.micro(rows, checkpointing)
    sharded = cluster.width > 1
    part = 1 / cluster.width
    kept = micro.copies if sharded else 0.0  # gathered weights take the copies' place
    gathered = needs.root + needs.repeated + 2 * needs.block
    each = 2 if settings.precision == "bfloat16" else 4
    found = {
        "weights": 4 * (needs.dense + needs.sparse) * part + needs.frozen_bytes * part,
        "gradients": 4 * needs.dense * part,
        "optimizer": needs.state_bytes * part,
        "average": 4 * needs.dense * part if settings.ema_decay else 0.0,
        "carried": float(needs.carried * rows * settings.accumulation),
        "gathered": float(each * gathered) if sharded else 0.0,
        "activations": max(0.0, micro.activations - kept),
        "working": micro.peak - micro.activations,
    }
    return Plan(
        name=needs.name,
        cluster=cluster,
        micro_rows=rows,
        accumulation=settings.accumulation,
        checkpointing=checkpointing,
        parameters=needs.dense + needs.sparse,
        bytes=found,
        step_flops=(micro.forward + micro.backward) * world,
        steps=settings.steps,
        mfu=cluster.mfu or needs.mfu,
        told=needs.told,
    )


def advise(
    needs: Needs, settings: TrainSettings, cluster: Cluster, *, checkpointing: bool = False
) -> Plan | None:
    """The first plan that fits, of: more accumulation, then also checkpointing, then fsdp, then
    twice, four times ... the devices; None: not even one row on 65,536 of them."""
    for wider, again in _candidates(cluster, checkpointing):
        parts = [
            n
            for n in range(settings.accumulation, settings.batch_rows // wider.gpus + 1)
            if settings.batch_rows % (n * wider.gpus) == 0
        ]
        tried = [replace(settings, accumulation=n) for n in parts]
        # fewer rows at a time take less: the first that fits, by halves
        low, high = 0, len(tried)
        while low < high:
            middle = (low + high) // 2
            found = plan(needs, tried[middle], wider, checkpointing=again)
            low, high = (low, middle) if found.fits else (middle + 1, high)
        if low < len(tried):
            return plan(needs, tried[low], wider, checkpointing=again)
    return None


def _candidates(cluster: Cluster, again: bool) -> Iterator[tuple[Cluster, bool]]:
    yield cluster, again
    if not again:
        yield cluster, True
    fsdp = replace(cluster, parallel="fsdp", shard=0)
    if cluster.parallel == "ddp" and cluster.gpus > 1:
        yield fsdp, again
        yield fsdp, True
    while fsdp.gpus < 65_536:
        fsdp = replace(fsdp, gpus=2 * fsdp.gpus)
        yield fsdp, True


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
