"""A tiny model and source with everything that can go wrong in a resume, and ways to run them.

The model has a sparse table, dropout from torch's global generator, state carried from step to
step, and per-row random draws. Children come from a fork server that has imported torch but never
run it, so that a process to kill costs a fraction of a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from inward.common.draws import Batch, Draws, Loss
from inward.train.loop import Run, train
from inward.train.settings import OptimSettings, TrainSettings

NUM_IDS = 20
NUM_INPUTS = 6


class ToySource:
    """Rows are functions of (seed, step, row). `hook` is called with the step at every batch."""

    def __init__(
        self,
        *,
        seed: int = 1,
        weighted: bool = False,
        delay: float = 0.0,
        hook: Callable[[int, Batch], None] | None = None,
    ) -> None:
        self.seed = seed
        self.weighted = weighted
        self.delay = delay
        self.hook = hook

    def batch(self, step: int, rows: range, num_rows: int) -> Batch:
        assert rows.stop <= num_rows
        if self.delay:
            time.sleep(self.delay)
        made = [self._row(step, row) for row in rows]
        batch = {
            "inputs": torch.tensor(np.stack([inputs for inputs, _ in made]), dtype=torch.float32),
            "identifiers": torch.tensor([identifier for _, identifier in made]),
        }
        batch["labels"] = (batch["inputs"].sum(1) > 0).long() + (batch["inputs"][:, 0] > 1).long()
        if self.weighted:
            # An item count that differs between rows, as when labels are partly ignored.
            counts = batch["identifiers"] % 3 + 1
            batch["counts"], batch["weight"] = counts, counts.sum()
        if self.hook is not None:
            self.hook(step, batch)
        return batch

    def describe(self) -> dict[str, Any]:
        return {"seed": self.seed, "weighted": self.weighted}

    def _row(self, step: int, row: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng([self.seed, step, row])
        return rng.normal(size=NUM_INPUTS), int(rng.integers(NUM_IDS))


class Toy(nn.Module):
    """tanh(W x + table[id] + memory / 2) -> three classes."""

    def __init__(self, *, width: int = 8, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.table = nn.Embedding(NUM_IDS, width, sparse=True)
            self.hidden = nn.Linear(NUM_INPUTS, width)
            self.mix = nn.Linear(width, width, bias=False)
            self.head = nn.Linear(width, 3)
        self.dropout = nn.Dropout(dropout)

    def loss(self, batch: Batch, state: dict[str, Tensor] | None, draws: Draws) -> Loss:
        ids = batch["identifiers"]
        if state is None:
            width = self.hidden.out_features
            state = {"memory": torch.zeros(len(ids), width), "age": torch.zeros_like(ids)}
        restart = draws.uniform() < 0.3
        memory = torch.where(restart[:, None], 0.0, state["memory"])
        age = torch.where(restart, 0, state["age"]) + draws.integers(1, 3)
        before = self.hidden(batch["inputs"]) + self.table(ids) + 0.5 * memory
        after = torch.tanh(self.mix(self.dropout(torch.tanh(before))))
        logits = self.head(after).float()
        losses = F.cross_entropy(logits, batch["labels"], reduction="none")
        losses = losses * batch.get("counts", torch.ones(()))
        right = (logits.argmax(-1) == batch["labels"]).sum()
        count = torch.tensor(len(ids))
        metrics = {"accuracy": (right, count), "age": (age.sum(), count)}
        kept = {"memory": after.detach().float(), "age": age}
        return Loss(total=losses.sum(), metrics=metrics, state=kept)


def evaluate(model: nn.Module) -> dict[str, float]:
    """Accuracy on fixed rows; draws from a global generator, as a careless evaluation would."""
    assert isinstance(model, Toy)
    torch.rand(3)
    batch = ToySource(seed=9).batch(0, range(32), 32)
    with torch.no_grad():
        loss = model.loss(batch, None, Draws(9, 0, range(32), 32))
    right, count = loss.metrics["accuracy"]
    return {"accuracy": float(right / count), "loss": float(loss.total / count)}


def toy_settings(**changes: Any) -> TrainSettings:
    optim = OptimSettings(lr=2e-2, weight_decay=0.1, sparse_lr=1e-2)
    plain: dict[str, Any] = {
        "steps": 10,
        "batch_rows": 8,
        "optim": optim,
        "warmup": 4,
        "clip": 1.0,
        "ema_decay": 0.9,
        "device": "cpu",
    }
    return TrainSettings(**(plain | changes))


def toy_train(
    out: Path,
    *,
    dropout: float = 0.0,
    width: int = 8,
    source: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Train a fresh toy model into `out` (or go on there); the summary."""
    # Processes other than the first begin with other weights, which must not show.
    model = Toy(dropout=dropout, width=width, seed=int(os.environ.get("RANK", "0")))
    run = Run(model, ToySource(**(source or {})), evaluate)
    return train(run, toy_settings(**changes), out)


def rows_of(out: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = (out / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def timeless(out: Path) -> list[dict[str, Any]]:
    """All rows without what a clock wrote."""
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in r.items() if k not in ("seconds", "rows_per_second")} for r in rows]


def saved_tensors(out: Path, step: int) -> dict[str, Tensor]:
    return load_file(out / "states" / f"step-{step:09d}" / "state.safetensors")


# --- processes ----------------------------------------------------------------------------------


def start(target: Callable[..., None], *args: Any, **kwargs: Any) -> BaseProcess:
    """Start `target` in a clean process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["inward.train.loop", "torch._dynamo"])  # what a run imports
    process = context.Process(target=target, args=args, kwargs=kwargs)
    process.start()
    return process


def finish(*processes: BaseProcess, timeout: float = 120) -> None:
    for process in processes:
        process.join(timeout)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * len(codes), f"exit codes {codes}"


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def as_rank(rank: int, world_size: int, port: int, target: Callable[..., Any], *args: Any) -> None:
    """Run `target` as one of several processes, with the variables a launcher sets."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    target(*args)


def start_ranks(
    world_size: int, target: Callable[..., Any], *args: Any, timeout: float = 120
) -> None:
    """Run `target` in `world_size` processes connected by gloo and wait for them."""
    port = free_port()
    ranks = [start(as_rank, rank, world_size, port, target, *args) for rank in range(world_size)]
    finish(*ranks, timeout=timeout)


def train_in_child(out: Path, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    toy_train(out, **options)
