"""A process of several dies: the others end at once and name it, what is on the disk is whole, and
torchrun's restart goes on from there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from inward.train import state as state_module
from inward.train.loop import Run, train
from tests.train.toy import (
    Toy,
    ToySource,
    as_rank,
    evaluate,
    free_port,
    start,
    start_ranks,
    timeless,
    toy_settings,
    train_in_child,
)

OPTIONS: dict[str, Any] = {"parallel": "fsdp", "save_every": 2, "dropout": 0.2, "steps": 8}


def train_until_killed(out: Path, dies: int, when: str) -> None:
    """Process `dies` is killed in the batch after step 5, or while it writes the state of step 4;
    a file keeps that to once. What the others are told goes to files."""
    torch.set_num_threads(1)
    rank, mark = int(os.environ["RANK"]), out.parent / "killed"

    def die() -> None:
        if rank == dies and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    real = state_module.write_tensors

    def write(path: Path, *rest: Any) -> None:
        real(path, *rest)
        if path.parent.name == ".new-step-000000004":
            die()

    if when == "writing":
        state_module.write_tensors = write
    source = ToySource(hook=lambda step, _: die() if (step, when) == (5, "training") else None)
    options = {name: value for name, value in OPTIONS.items() if name != "dropout"}
    run = Run(Toy(dropout=OPTIONS["dropout"], seed=rank), source, evaluate)
    try:
        train(run, toy_settings(**options), out)
    except ConnectionError as error:
        (out.parent / f"told-{rank}").write_text(str(error))
        raise SystemExit(3) from error


def killed(folder: Path, world_size: int, dies: int, when: str) -> list[str]:
    """What the others were told, all of whom must have ended within a minute."""
    port, began = free_port(), time.monotonic()
    children = [
        start(as_rank, rank, world_size, port, train_until_killed, folder / "cut", dies, when)
        for rank in range(world_size)
    ]
    for child in children:
        child.join(60)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    assert time.monotonic() - began < 60
    assert codes == [-9 if rank == dies else 3 for rank in range(world_size)]
    return [(folder / f"told-{n}").read_text() for n in range(world_size) if n != dies]


CASES = [
    *[(2, dies, "training") for dies in range(2)],
    (2, 1, "writing"),
    *[pytest.param(4, dies, "training", marks=pytest.mark.slow) for dies in range(4)],
    *[pytest.param(4, dies, "writing", marks=pytest.mark.slow) for dies in (0, 3)],
]


@pytest.mark.parametrize("world_size, dies, when", CASES)
def test_a_killed_process_is_named(tmp_path, world_size, dies, when):
    step, saved = (5, 4) if when == "training" else (4, 2)
    line = (
        f"process {dies} is gone (of {world_size}, counted from 0): killed, or the machine is "
        f"lost. {tmp_path / 'cut'} stopped after step {step}, the state of step {saved} is safe"
    )
    for told in killed(tmp_path, world_size, dies, when):
        assert told.startswith(line), told
    states = sorted(path.name for path in (tmp_path / "cut/states").glob("step-*"))
    assert states == [f"step-{n:09d}" for n in (2, 4) if n <= saved]
    start_ranks(world_size, train_in_child, tmp_path / "cut", OPTIONS)
    start_ranks(world_size, train_in_child, tmp_path / "whole", OPTIONS)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    assert not (tmp_path / "cut/.processes").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_torchruns_restart_goes_on_from_the_last_whole_state(tmp_path, dies):
    code = (
        "from pathlib import Path; from tests.train.test_lost import train_until_killed as t; "
        f"t(Path({str(tmp_path / 'cut')!r}), {dies}, 'training')"
    )
    (tmp_path / "job.py").write_text(code)
    root = Path(__file__).parents[2]
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
             "--max-restarts=1", str(tmp_path / "job.py")]  # fmt: skip
    place = os.pathsep.join([str(root), str(root / "src")])
    done = subprocess.run(
        words,
        env=os.environ | {"PYTHONPATH": place, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f"process {dies} is gone" in (tmp_path / f"told-{1 - dies}").read_text()
    assert re.search(rf"exitcode: -9.*local_rank: {dies}|local_rank: {dies}.*-9", done.stderr)
    assert "after step 4" in done.stderr
    start_ranks(2, train_in_child, tmp_path / "whole", OPTIONS)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
