"""The matrix: method x parallelism x processes, ten steps, losses of one process.

With INWARD_MATRIX=FILE each comparison writes a row of it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from inward.train.loop import train
from inward.train.settings import OptimSettings, TrainSettings
from tests.train.methods import METHODS, run_of
from tests.train.toy import rows_of, start_ranks

TOLERANCE = 1e-4
"""Relative, of the loss at each of ten steps: what another order of additions makes of it"""


def settings(**changes: Any) -> TrainSettings:
    # AdamATan2 makes a full step of a gradient that is rounding noise; AdamW with eps the same.
    optim = OptimSettings(name="adamw", lr=1e-3, sparse_lr=1e-3)
    plain: dict[str, Any] = {"steps": 10, "batch_rows": 8, "clip": 1.0, "ema_decay": 0.9}
    return TrainSettings(**(plain | {"optim": optim, "device": "cpu", "eval_every": 5} | changes))


def train_all(jobs: list[tuple[str, Path, dict[str, Any]]]) -> None:
    torch.set_num_threads(1)
    together = "WORLD_SIZE" in os.environ
    if together:
        dist.init_process_group("gloo")
    for name, out, changes in jobs:
        train(run_of(name), settings(**changes), out)
    if together:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train_all([(name, folder / name, {}) for name in METHODS])
    return folder


def compare(name: str, kind: str, world_size: int, out: Path, one: Path) -> None:
    wanted, found = rows_of(one), rows_of(out)
    assert len(wanted) == len(found) == 10
    losses = [(a["loss"], b["loss"]) for a, b in zip(wanted, found, strict=True)]
    worst = max(abs(b - a) / abs(a) for a, b in losses)
    if "INWARD_MATRIX" in os.environ:
        row = {"method": name, "parallel": kind, "processes": world_size, "difference": worst}
        row |= {"first": losses[0][0], "last": losses[-1][0]}
        with Path(os.environ["INWARD_MATRIX"]).open("a") as file:
            file.write(json.dumps(row) + "\n")
    assert worst < TOLERANCE, f"{name}, {kind}, {world_size} processes: {losses}"
    for a, b in zip(rows_of(one, "eval"), rows_of(out, "eval"), strict=True):
        assert a["metrics"] == pytest.approx(b["metrics"], rel=1e-2), f"{name}, {kind}"


KINDS: dict[str, dict[str, Any]] = {
    "ddp": {"parallel": "ddp"},
    "fsdp": {"parallel": "fsdp"},
    "hsdp": {"parallel": "hsdp", "shard_processes": 2},
}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.parametrize(
    "world_size, kinds",
    [(2, ("fsdp",)), pytest.param(2, ("ddp",), marks=pytest.mark.slow),
     pytest.param(4, tuple(KINDS), marks=pytest.mark.slow)],
)  # fmt: skip
def test_every_method_is_one(tmp_path, alone, world_size, kinds):
    jobs = [(name, tmp_path / kind / name, KINDS[kind]) for kind in kinds for name in METHODS]
    start_ranks(world_size, train_all, jobs, timeout=900)
    for name, out, _ in jobs:
        compare(name, out.parent.name, world_size, out, alone / name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (2, 4)])
def test_every_method_goes_on_with_another_number(tmp_path, alone, before, after):
    """Five steps, then five more on other processes, sharded wherever there are several."""
    for world_size, steps in ((before, 5), (after, 10)):
        changes = {"steps": steps} | (KINDS["fsdp"] if world_size > 1 else {})
        jobs = [(name, tmp_path / name, changes) for name in METHODS]
        if world_size == 1:
            train_all(jobs)
        else:
            start_ranks(world_size, train_all, jobs, timeout=900)
    for name in METHODS:
        compare(name, f"fsdp, {before} then {after}", after, tmp_path / name, alone / name)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"recompute": True}], ids=str)
def test_precision_and_recomputing_are_those_of_one_process(tmp_path, changes):
    names = ("trm", "huginn", "tidar")
    train_all([(name, tmp_path / "one" / name, changes) for name in names])
    jobs = [(name, tmp_path / "fsdp" / name, KINDS["fsdp"] | changes) for name in names]
    start_ranks(2, train_all, jobs, timeout=600)
    for name in names:  # sums over processes of gradients that were rounded to bfloat16 before
        tolerance = 3e-3 if "precision" in changes else TOLERANCE
        one, many = (rows_of(tmp_path / kind / name) for kind in ("one", "fsdp"))
        for a, b in zip(one, many, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=tolerance), name


@pytest.mark.parametrize("name, part", [("trm", "network"), ("huginn", "model.transformer.adapter"),
                                        ("tidar", "model.model.layers.0.mlp")])  # fmt: skip
def test_recomputing_changes_nothing_and_keeps_less(tmp_path, name, part):
    """The same losses to the last bit; what is run again runs more often."""
    found = []
    for recompute in (False, True):
        run, calls = run_of(name), []
        run.evaluate = None
        module = run.model.get_submodule(part)
        # before: what is run again ends as soon as it has what was missing
        module.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        out = tmp_path / str(recompute)
        train(run, settings(recompute=recompute, steps=3, eval_every=0), out)
        found.append(([row["loss"] for row in rows_of(out)], len(calls)))
    (plain, few), (again, more) = found
    assert plain == again and few < more


@pytest.mark.parametrize("name", ["coconut", "tidar-adapter"])
def test_what_keeps_a_cache_cannot_be_run_again(tmp_path, name):
    run = run_of(name)
    with pytest.raises(ValueError, match="recompute: "):
        train(run, settings(recompute=True), tmp_path)
