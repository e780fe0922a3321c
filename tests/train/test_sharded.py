"""Several processes, sharded or not, against one: losses, states, and going on with another
number of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from inward.common.files import write_manifest
from inward.train.rows import carries_of, saved_rows, slices
from inward.train.settings import OptimSettings
from inward.train.sharding import check_parallel
from tests.train.toy import rows_of, start_ranks, timeless, toy_settings, toy_train

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


def test_sharded_processes_resume_bit_for_bit(tmp_path):
    """Dropout, method state in two micro-batches, Muon's owners: all of it from the files."""
    options: dict[str, Any] = {
        "parallel": "fsdp",
        "dropout": 0.2,
        "accumulation": 2,
        "eval_every": 3,
    }
    options["optim"] = optim("muon")
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    start_ranks(2, several, [(whole, options), (cut, options | {"steps": 6}), (cut, options)])
    assert timeless(cut) == timeless(whole)
    for path in sorted((whole / "states/step-000000010").glob("state-*")):
        assert path.read_bytes() == (cut / "states/step-000000010" / path.name).read_bytes()


def as_format_1(folder: Path) -> None:
    """A state as it was written before states were divided."""
    path = folder / "state.safetensors"
    content = json.loads((folder / "state.json").read_text())
    numbers = content.pop("numbers")
    tensors = {n: t.reshape(()) if n in numbers else t for n, t in load_file(path).items()}
    save_file(tensors, path)
    for name in ("rows", "files"):
        content.pop(name)
    for name in ("parallel", "recompute", "shard_processes"):
        assert name not in content["identity"]["settings"]
    (folder / "state.json").write_text(json.dumps(content | {"format": 1}))
    write_manifest(folder)


def test_states_of_before_go_on(tmp_path, alone):
    """With as many processes as wrote them, bit for bit, and with another number."""
    options = PLAIN | {"optim": optim("adamw")}
    for name in ("one", "two"):
        several([(tmp_path / name, options | {"steps": 5})])
        as_format_1(tmp_path / name / "states/step-000000005")
    several([(tmp_path / "one", options)])
    start_ranks(2, several, [(tmp_path / "two", options | {"parallel": "fsdp"})])
    assert timeless(tmp_path / "one") == timeless(alone / "adamw")
    assert_same(tmp_path / "two", alone / "adamw")


# --- rows ---------------------------------------------------------------------------------------


def test_carries_are_found_by_their_rows():
    """Eight rows of two processes with two micro-batches each, read by one and by four."""
    whole = {"z": torch.arange(16.0).view(8, 2), "age": torch.arange(8)}
    content = {"world_size": 2, "micro_batches": 2, "rows": 8, "identity": {}}
    saved = saved_rows(content)
    assert saved == {
        (0, 0): range(2),
        (0, 1): range(2, 4),
        (1, 0): range(4, 6),
        (1, 1): range(6, 8),
    }

    def read(place):
        span = saved[place]
        return {name: value[span.start : span.stop] for name, value in whole.items()}

    for world_size, parts in ((1, 1), (1, 2), (4, 1), (2, 1), (8, 1)):
        for rank in range(world_size):
            wanted = slices(8, parts, rank, world_size)
            for rows, carry in zip(wanted, carries_of(wanted, saved, read, "run"), strict=True):
                assert carry is not None and carry.keys() == whole.keys()
                for name, value in whole.items():
                    assert torch.equal(carry[name], value[rows.start : rows.stop])
    assert carries_of(slices(8, 1, 0, 1), saved, lambda place: None, "run") == [None]


def test_what_does_not_lie_row_by_row_is_refused_elsewhere():
    """It goes on where the rows are the same."""
    saved = {(0, 0): range(4), (1, 0): range(4, 8)}

    def read(place):
        return {"sum": torch.ones(3) * place[0]}

    (found,) = carries_of([range(4, 8)], saved, read, "run")
    assert found is not None and torch.equal(found["sum"], torch.ones(3))
    with pytest.raises(
        ValueError, match=r"run holds method state 'sum' of shape \(3,\) for 4 rows"
    ):
        carries_of([range(8)], saved, read, "run")


@pytest.mark.parametrize(
    "changes, processes, told",
    [
        ({"parallel": "fsdp"}, 1, "this is one process"),
        ({"parallel": "hsdp", "shard_processes": 3}, 4, "at least two groups"),
        ({"parallel": "hsdp", "shard_processes": 4}, 4, "at least two groups"),
        ({"parallel": "hsdp", "shard_processes": 1}, 4, "at least two groups"),
    ],
)
def test_what_cannot_be_spread_is_refused(changes, processes, told):
    with pytest.raises(ValueError, match=told):
        check_parallel(toy_settings(**changes), processes)


def test_settings_of_sharding_are_kept_or_refused(tmp_path):
    with pytest.raises(ValueError, match="parallel is 'zero'"):
        toy_settings(parallel="zero")
    with pytest.raises(ValueError, match="shard_processes is 2"):
        toy_settings(shard_processes=2)
    with pytest.raises(ValueError, match="recompute: Toy cannot"):
        toy_train(tmp_path, recompute=True)
