"""What the loop asks of its surroundings: devices, other processes, signals, memory.

Everything that knows accelerate or the operating system is here, so that loop.py reads as training.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    broadcast,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from inward.common.draws import Batch, Draws, Trainable
from inward.train.log import check_trackers
from inward.train.optim import sparse_parameters
from inward.train.run import Run
from inward.train.settings import TrainSettings
from inward.train.sharding import check_parallel, shard


class LossModule(nn.Module):
    """Makes `model.loss` a forward, because that is where DDP, FSDP and autocast hook in.

    It gives the fields of `Loss` one by one: FSDP looks for tensors in tuples, not in dataclasses.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: Batch, state: dict[str, Tensor] | None, draws: Draws
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]], dict[str, Tensor] | None]:
        loss = cast(Trainable, self.model).loss(batch, state, draws)
        return loss.total, loss.metrics, loss.state


@contextmanager
def started_accelerator(settings: TrainSettings, out: Path) -> Iterator[Accelerator]:
    """An Accelerator for this run; what was not there before is taken down again, and what another
    one in this process has set (transformers' Trainer does) is laid aside meanwhile."""
    check_trackers(settings.trackers)
    own_state, own_group = not is_initialized(), not dist.is_initialized()
    others = dict(AcceleratorState._shared_state)
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision="bf16" if settings.precision == "bfloat16" else "no",
        # Given, so that the launcher's setting cannot divide the loss a second time.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=list(settings.trackers) or None,
        project_dir=out,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    try:
        yield accelerator
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        if own_group:
            accelerator.state.destroy_process_group()
        AcceleratorState._reset_state(own_state)
        AcceleratorState._shared_state.update(others)


@runtime_checkable
class Recomputes(Protocol):
    """A model that can run parts of its forward again in the backward pass."""

    def recompute_in_backward(self) -> None:
        """Do so from now on; a ValueError says why it cannot."""
        ...


def prepare_model(accelerator: Accelerator, model: nn.Module, settings: TrainSettings) -> nn.Module:
    """Move the model to its device and wrap `loss` for autocast and DDP or FSDP.

    Sparse tables are kept out of DDP by its list of names to ignore (the mechanism that torch's
    own sharded embeddings use): their optimizer sums the touched rows itself, where DDP would
    exchange them a second time. DDP then does not copy them from the first process either.
    """
    if settings.recompute:
        if not isinstance(model, Recomputes):
            raise ValueError(f"recompute: {type(model).__name__} cannot; leave it out")
        model.recompute_in_backward()
    module: nn.Module = LossModule(model)
    if settings.parallel != "ddp":
        # accelerate's own FSDP turns into DDP on CPUs without a word; from it comes autocast alone
        module = accelerator.prepare_model(module, device_placement=False, evaluation_mode=True)
        shard(module, model, settings, accelerator.device)
        model.train()
        return module
    module.to(accelerator.device)
    sparse = sparse_parameters(module)
    if accelerator.use_distributed:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(sparse))
        for param in sparse.values():
            broadcast(param.data)
    prepared = accelerator.prepare_model(module)
    if isinstance(prepared, DistributedDataParallel):
        reduced = set(sparse) - prepared.parameters_to_ignore
        assert not reduced, f"DDP would also reduce {reduced}"
    model.train()
    return prepared


def check_run(run: Run, settings: TrainSettings, accelerator: Accelerator) -> None:
    """User errors that would otherwise show up late or never."""
    check_parallel(settings, accelerator.num_processes)
    parts = settings.accumulation * accelerator.num_processes
    if settings.batch_rows % parts:
        raise ValueError(
            f"batch_rows is {settings.batch_rows}, but must be a multiple of {parts} "
            f"(accumulation {settings.accumulation} x {accelerator.num_processes} processes)"
        )
    kinds = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in kinds:
        raise ValueError(
            f"the launcher asks for {accelerator.distributed_type}; start with torchrun, or "
            "accelerate launch --multi_gpu, and say parallel = fsdp or hsdp here"
        )
    if settings.best_metric and run.evaluate is None:
        raise ValueError(f"best_metric is {settings.best_metric!r}, but the run has no evaluate")
    if settings.eval_every and run.evaluate is None:
        warnings.warn("eval_every is ignored: the run has no evaluate", stacklevel=3)
    try:
        json.dumps(run.config)
    except TypeError as error:
        raise ValueError(f"run.config must hold JSON values only: {error}") from error


class Signals:
    """Turns the first SIGINT or SIGTERM into a wish; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Ignored signals stay ignored: that is how nohup protects a job.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        if not self.asked:
            # Not print: a handler may run in the middle of another print.
            os.write(2, b"\nfinishing this step, then saving (Ctrl-C again: stop at once)\n")
        self.asked = True


def agreement(accelerator: Accelerator) -> Callable[[str], str]:
    """A function that all processes call with a fault or "", and that gives all of them the same
    one: an error on one process alone would leave the others waiting."""

    def agree(fault: str) -> str:
        if accelerator.num_processes == 1:
            return fault
        own = torch.zeros(1, 4096, dtype=torch.uint8)
        words = fault.encode()[: own.shape[1]]
        own[0, : len(words)] = torch.tensor(list(words), dtype=torch.uint8)
        rows = cast(Tensor, accelerator.gather(own.to(accelerator.device))).cpu()
        told = [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in rows]
        return next((text for text in told if text), "")

    return agree


class Stopwatch:
    """Seconds so far by a clock that nobody sets; if it jumps back all the same (a suspended
    virtual machine), that interval counts nothing, and no time is ever negative."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = clock()
        self._total = 0.0

    def seconds(self) -> float:
        """Since it was made."""
        now = self._clock()
        self._total += max(0.0, now - self._last)
        self._last = now
        return self._total


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """`eval()` within; afterwards every module has the mode it had (some are frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def widest_float(device: torch.device) -> torch.dtype:
    """Float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def peak_memory() -> int:
    """Largest resident size of this process in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
