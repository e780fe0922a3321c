"""What the loop asks of its surroundings: devices, other processes, signals, memory.

Everything that knows accelerate or the operating system is here, so that loop.py reads as training.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    broadcast,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from inward.common.draws import Batch, Draws, Loss, Trainable
from inward.train.log import check_trackers
from inward.train.optim import sparse_parameters
from inward.train.settings import TrainSettings


class LossModule(nn.Module):
    """Makes `model.loss` a forward, because that is where DDP and autocast hook in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, state: dict[str, Tensor] | None, draws: Draws) -> Loss:
        return cast(Trainable, self.model).loss(batch, state, draws)


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


def prepare_model(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Move the model to its device and wrap `loss` for autocast and DDP.

    Sparse tables are kept out of DDP by its list of names to ignore (the mechanism that torch's
    own sharded embeddings use): their optimizer sums the touched rows itself, where DDP would
    exchange them a second time. DDP then does not copy them from the first process either.
    """
    module = LossModule(model).to(accelerator.device)
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
