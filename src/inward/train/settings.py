"""Settings of a training run: two frozen dataclasses, checked when they are made, free of torch.

A recipe returns these; the command line overrides single fields; the loop saves them with the run.
Rates and decays of the defaults are TRM's (arXiv 2510.04871, released configuration); recipes for
the other methods set their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from inward.common.checks import need


@dataclass(frozen=True)
class OptimSettings:
    """Which optimizer, at which base rates (the schedule multiplies them)."""

    name: Literal["adam_atan2", "adamw", "ellis_adam", "muon"] = "adam_atan2"
    """muon: torch.optim.Muon for hidden matrices and `muon_rest` for everything else."""
    lr: float = 1e-4
    weight_decay: float = 0.1
    """Decoupled: a step first multiplies the weight by 1 - lr * weight_decay. ellis_adam, which is
    Huginn's: by 1 - (lr / base lr) * weight_decay, so that the base rate does not enter."""
    decay_vectors: bool = True
    """Also decay biases, norm gains and other vectors, as TRM does."""
    betas: tuple[float, float] = (0.9, 0.95)
    sparse_lr: float = 1e-4
    """Rate of sign descent for the rows of `nn.Embedding(sparse=True)` (TRM's identifiers)."""
    sparse_weight_decay: float = 0.1
    muon_lr: float | None = None
    """None: `lr`. Muon's updates are scaled to the size of AdamW's, so the same rate fits."""
    muon_momentum: float = 0.95
    muon_rest: Literal["adam_atan2", "adamw"] = "adam_atan2"
    muon_split: bool = True
    """Orthogonalise the parts of fused matrices (qkv, gate_up) one by one."""

    def __post_init__(self) -> None:
        names = ("adam_atan2", "adamw", "ellis_adam", "muon")
        need(self.name in names, "optim.name", self.name, f"one of {', '.join(names)}")
        rests = ("adam_atan2", "adamw")
        need(self.muon_rest in rests, "optim.muon_rest", self.muon_rest, f"one of {rests}")
        for name in ("lr", "weight_decay", "sparse_lr", "sparse_weight_decay"):
            value = getattr(self, name)
            need(0 <= value < float("inf"), f"optim.{name}", value, "0 or more and finite")
        need(self.muon_lr is None or self.muon_lr >= 0, "optim.muon_lr", self.muon_lr, ">= 0")
        need(0 <= self.muon_momentum < 1, "optim.muon_momentum", self.muon_momentum, "in [0, 1)")
        good = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        need(good, "optim.betas", self.betas, "two numbers in [0, 1)")


@dataclass(frozen=True)
class TrainSettings:
    """How long, how many rows at a time, and what is kept."""

    least_steps: ClassVar[int] = 1
    """0 where a recipe can tell how many steps it takes"""

    steps: int = 1000
    """Optimizer steps of the whole run."""
    batch_rows: int = 64
    """Rows of the global batch: over all processes and all micro-batches of one step."""
    accumulation: int = 1
    """Micro-batches that a process runs for one optimizer step."""
    seed: int = 0
    optim: OptimSettings = field(default_factory=OptimSettings)
    clip: float = 0.0
    """Largest gradient norm over the dense parameters; 0: no clipping."""
    schedule: Literal["constant", "cosine", "linear", "late"] = "constant"
    """Shape of the rate after the warm-up. late: constant, then linear over the last `decay_steps`;
    until those begin, a run may be made longer or shorter."""
    decay_steps: int = 0
    """late: the steps over which the rate falls"""
    warmup: int = 0
    """Steps over which the rate rises from 0 in a straight line."""
    min_ratio: float = 0.0
    """What is left of the rate at the last step (cosine and linear)."""
    ema_decay: float = 0.999
    """Average of the weights that is evaluated and saved; 0: use the raw weights."""
    ema_ramp: bool = False
    """Begin with a short average: decay = min(ema_decay, (1 + t) / (10 + t)) at update t."""
    eval_every: int = 0
    """0: only after the last step."""
    save_every: int = 0
    """Steps between resume states; 0: only at the end and when stopped."""
    keep: int = 2
    """Resume states kept."""
    log_every: int = 1
    """Steps between log rows; loss and metrics of a row cover all steps since the row before."""
    best_metric: str = ""
    """Evaluation metric (larger is better) whose best model is kept in `best/`; empty: none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast of matrix products; weights, averages and optimizers stay float32."""
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """What several processes (torchrun) hold. ddp: each the whole model. fsdp: each a share of
    weights, gradients, averages and optimizer states. hsdp: fsdp within groups of processes."""
    shard_processes: int = 0
    """hsdp: processes of a group; 0: those of one machine."""
    recompute: bool = False
    """Run what lies between recurrences (Huginn), evaluations of f (TRM) or layers (TiDAR) again in
    the backward pass instead of keeping what it computed."""
    device: Literal["auto", "cpu"] = "auto"
    trackers: tuple[str, ...] = ()
    """Trackers that accelerate knows (tensorboard, wandb, trackio, ...), beside the JSONL log."""
    progress: Literal["auto", "on", "off"] = "auto"
    """auto: a progress bar only when a person watches a terminal."""

    def __post_init__(self) -> None:
        least = self.least_steps
        need(self.steps >= least, "steps", self.steps, f"{least} or more")
        for name in ("batch_rows", "accumulation", "keep", "log_every"):
            need(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in (
            "seed",
            "warmup",
            "decay_steps",
            "eval_every",
            "save_every",
            "shard_processes",
        ):
            need(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        need(0 <= self.clip < float("inf"), "clip", self.clip, "0 (off) or a positive number")
        need(0 <= self.min_ratio <= 1, "min_ratio", self.min_ratio, "in [0, 1]")
        need(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in [0, 1)")
        grouped = self.parallel == "hsdp" or not self.shard_processes
        need(grouped, "shard_processes", self.shard_processes, "0 without parallel = hsdp")
        self._check_choices()

    def _check_choices(self) -> None:
        for name, choices in (
            ("schedule", ("constant", "cosine", "linear", "late")),
            ("precision", ("float32", "bfloat16")),
            ("parallel", ("ddp", "fsdp", "hsdp")),
            ("device", ("auto", "cpu")),
            ("progress", ("auto", "on", "off")),
        ):
            value = getattr(self, name)
            need(value in choices, name, value, f"one of {', '.join(choices)}")
