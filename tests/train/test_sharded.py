"""Several processes, sharded or not, against one: losses, states, and going on with another
number of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from inward.train.settings import OptimSettings
from tests.train.toy import (
    rows_of,
    start_ranks,
    toy_train,
)

PLAIN: dict[str, Any] = {"save_every": 5, "keep": 9, "eval_every": 5, "source": {"weighted": True}}


def several(jobs: list[tuple[Path, dict[str, Any]]]) -> None:
    """Train one after the other in the same processes: starting them costs more than ten steps."""
    torch.set_num_threads(1)
    together = "WORLD_SIZE" in os.environ
    if together:
        dist.init_process_group("gloo")
    for out, options in jobs:
        toy_train(out, **options)
    if together:
        dist.destroy_process_group()


def assert_same(
    out: Path, one: Path, *, tolerance: float = 1e-5, steps: Any = range(1, 11)
) -> None:
    for kind in ("train", "eval"):
        for wanted, found in zip(rows_of(one, kind), rows_of(out, kind), strict=True):
            assert wanted["step"] == found["step"]
            if kind == "train" and wanted["step"] in steps:
                assert found["loss"] == pytest.approx(wanted["loss"], rel=tolerance), wanted["step"]
                norm = pytest.approx(wanted["grad_norm"], rel=10 * tolerance)
                assert found["grad_norm"] == norm
            for name, value in wanted["metrics"].items():
                assert found["metrics"][name] == pytest.approx(value, rel=1e-2), name
    left, right = (load_file(folder / "model/model.safetensors") for folder in (one, out))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


KINDS = {
    "fsdp": {"parallel": "fsdp"},
    "accumulated": {"parallel": "fsdp", "accumulation": 2},
    "hsdp": {"parallel": "hsdp", "shard_processes": 2},
}
OPTIMIZERS = ("adam_atan2", "adamw", "ellis_adam", "muon")


def optim(name: Any) -> OptimSettings:
    return OptimSettings(name=name, lr=2e-2, weight_decay=0.1, sparse_lr=1e-2, muon_lr=1e-2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, by optimizer."""
    folder = tmp_path_factory.mktemp("alone")
    several([(folder / name, PLAIN | {"optim": optim(name)}) for name in OPTIMIZERS])
    return folder


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_sharded_processes_are_one(tmp_path, alone, world_size):
    """Every optimizer under fsdp; accumulation, and with four processes hsdp."""
    kinds = {k: v for k, v in KINDS.items() if world_size == 4 or k != "hsdp"}
    jobs = {kind: PLAIN | more | {"optim": optim("adam_atan2")} for kind, more in kinds.items()}
    jobs |= {name: PLAIN | KINDS["fsdp"] | {"optim": optim(name)} for name in OPTIMIZERS}
    if world_size == 4:
        jobs["accumulated"]["accumulation"] = 1
    start_ranks(world_size, several, [(tmp_path / kind, job) for kind, job in jobs.items()])
    for kind in jobs:
        assert_same(tmp_path / kind, alone / (kind if kind in OPTIMIZERS else "adam_atan2"))


def test_a_state_goes_on_with_any_number_of_processes(tmp_path, alone):
    """1 to 2 and 2 to 1, sharded and not, with every optimizer."""
    cut = {n: PLAIN | {"optim": optim(n), "steps": 5} for n in OPTIMIZERS}
    whole = {n: PLAIN | {"optim": optim(n)} for n in OPTIMIZERS}
    fsdp, sources = {"parallel": "fsdp"}, ("adam_atan2", "muon")
    several([(tmp_path / f"1-{n}", cut[n]) for n in OPTIMIZERS])
    start_ranks(
        2,
        several,
        [(tmp_path / f"1-{n}", whole[n] | fsdp) for n in OPTIMIZERS]
        + [(tmp_path / f"2-{n}", cut[n] | fsdp) for n in OPTIMIZERS]
        + [(tmp_path / f"ddp-{n}", cut[n]) for n in sources]
        + [(tmp_path / f"ddp-{n}", whole[n] | fsdp) for n in sources],
    )
    several([(tmp_path / f"2-{n}", whole[n]) for n in OPTIMIZERS])
    for name in OPTIMIZERS:
        assert_same(tmp_path / f"1-{name}", alone / name)
        assert_same(tmp_path / f"2-{name}", alone / name)
    for name in sources:
        assert_same(tmp_path / f"ddp-{name}", alone / name)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torchs_own_reader_reads_a_sharded_state(tmp_path):
    options = PLAIN | {"parallel": "fsdp", "optim": optim("adamw")}
    start_ranks(2, several, [(tmp_path, options)])
    folder = tmp_path / "states/step-000000010"
    files = sorted(path.name for path in folder.glob("state-*"))
    assert files == ["state-00000.safetensors", "state-00001.safetensors"]
    parts = [load_file(folder / name) for name in files]
    names = {name for part in parts for name in part}
    found = {name: torch.zeros_like(parts[0][name]) for name in names}
    for name in names & parts[1].keys():
        rows = sum(len(part[name]) for part in parts)
        found[name] = torch.zeros(rows, *parts[0][name].shape[1:], dtype=parts[0][name].dtype)
    load(found, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    for name, tensor in found.items():
        pieces = [part[name] for part in parts if name in part]
        assert torch.equal(tensor, torch.cat(pieces)), name
    assert any(name.startswith("optim.0.") for name in names & parts[1].keys())
