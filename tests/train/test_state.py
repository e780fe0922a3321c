"""Saving and loading without a loop: round trips, mismatches, damage."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from inward.common.files import new_folder, write_tensors
from inward.train import parts as parts_module
from inward.train.ema import EMA
from inward.train.generators import Generators, kept_generators
from inward.train.optim import build_optimizers, dense_parameters
from inward.train.settings import OptimSettings
from inward.train.state import StateFolder, TrainState, differences
from tests.train.toy import Toy

CPU = torch.device("cpu")


def made_state(
    *, width=8, optim: Any = "adam_atan2", steps=2, seed=0, ema=True, parts=1
) -> TrainState:
    """A toy model after some steps with made-up gradients."""
    model = Toy(width=width, seed=seed)
    optimizers = build_optimizers(model, OptimSettings(name=optim, lr=0.1))
    average = EMA(dense_parameters(model), decay=0.9) if ema else None
    for _ in range(steps):
        for param in dense_parameters(model).values():
            param.grad = torch.ones_like(param)
        for optimizer in optimizers:
            optimizer.step()
        if average:
            average.update()
    carries = [{"z": torch.randn(4, 3).bfloat16(), "on": torch.tensor([True, False])}, None]
    return TrainState(model, optimizers, average, carries[:parts], step=steps, record={"best": 0.1})


def folder_for(path, **changes) -> StateFolder:
    return StateFolder(path / "states", {"settings": {"seed": 0, "lr": 0.1}} | changes)


@pytest.mark.parametrize("optim", ["adam_atan2", "adamw", "muon"])
def test_everything_comes_back(tmp_path, optim):
    saved = made_state(optim=optim, parts=2)
    folder = folder_for(tmp_path)
    folder.save(saved, Generators.capture(CPU))
    fresh = made_state(optim=optim, steps=0, seed=5, parts=2)
    folder.load(fresh, 2, CPU)
    expected, found = saved.tensors(), fresh.tensors()
    assert expected.keys() == found.keys()
    assert any(name.startswith("optim.") for name in found)
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]) and tensor.dtype == found[name].dtype, name
    assert fresh.scalars() == saved.scalars()
    assert (fresh.step, fresh.record, fresh.carries[1]) == (2, {"best": 0.1}, None)
    assert saved.carries[0] is not None and fresh.carries[0] is not None
    assert torch.equal(fresh.carries[0]["z"], saved.carries[0]["z"])
    assert fresh.carries[0]["on"].tolist() == [True, False]
    assert fresh.ema is not None and fresh.ema.num_updates == 2


def test_values_of_an_optimizer_that_are_no_tensors_go_to_their_parameter(tmp_path):
    saved, fresh = made_state(), made_state(steps=0, seed=5)
    values = {name: number for number, name in enumerate(saved.optimized())}
    for name, (optimizer, param) in saved.optimized().items():
        optimizer.state[param]["turn"] = values[name]
    folder = folder_for(tmp_path)
    folder.save(saved, Generators.capture(CPU))
    folder.load(fresh, 2, CPU)
    found = {
        n: optimizer.state[param]["turn"] for n, (optimizer, param) in fresh.optimized().items()
    }
    assert found == values and len(values) > 2
    kept = {n: list(optimizer.state[param]) for n, (optimizer, param) in fresh.optimized().items()}
    assert all(names[-1] == "turn" and len(names) == len(set(names)) for names in kept.values())
    assert fresh.scalars() == saved.scalars()


def test_parameters_keep_their_memory(tmp_path):
    """Optimizers and DDP hold the tensors; loading must fill them, not replace them."""
    folder = folder_for(tmp_path)
    folder.save(made_state(), Generators.capture(CPU))
    fresh = made_state(steps=0, seed=5)
    memory = [p.data_ptr() for p in fresh.model.parameters()]
    folder.load(fresh, 2, CPU)
    assert [p.data_ptr() for p in fresh.model.parameters()] == memory


def test_large_tensors_are_read_in_slices(tmp_path, monkeypatch):
    folder = folder_for(tmp_path)
    saved = made_state()
    folder.save(saved, Generators.capture(CPU))
    monkeypatch.setattr(parts_module, "_SLICE_BYTES", 100)
    fresh = made_state(steps=0, seed=5)
    folder.load(fresh, 2, CPU)
    for name, tensor in saved.tensors().items():
        assert torch.equal(tensor, fresh.tensors()[name]), name


def drawn() -> list:
    numbers = [np.random.rand(2).tolist(), np.random.standard_normal()]
    return [torch.rand(2).tolist(), numbers, random.random(), random.gauss(0, 1)]


def test_a_slice_holds_as_many_rows_as_fit(tmp_path, monkeypatch):
    """The file is opened once for each: a table of a million rows must not be read by the row."""
    table = torch.arange(40.0).view(10, 4)  # 16 bytes a row
    write_tensors(tmp_path / "x.safetensors", {"table": table})
    times_opened, really = [], parts_module.opened

    def counted(*args):
        times_opened.append(args)
        return really(*args)

    monkeypatch.setattr(parts_module, "opened", counted)
    for limit, times in ((160, 1), (159, 2), (64, 3), (63, 4), (16, 10), (1, 10)):
        monkeypatch.setattr(parts_module, "_SLICE_BYTES", limit)
        into = torch.zeros(10, 4)
        times_opened.clear()
        parts_module.copy_rows(tmp_path / "x.safetensors", "table", into)
        assert torch.equal(into, table) and len(times_opened) == times, limit


def test_each_micro_batch_gets_its_own_state_back(tmp_path):
    saved, fresh = made_state(), made_state(steps=0)
    saved.carries = [{"z": torch.randn(4, 3)}, None, {"y": torch.randn(2), "z": torch.ones(1)}]
    folder = folder_for(tmp_path)
    folder.save(saved, Generators.capture(CPU))
    fresh.carries = [None] * 3
    folder.load(fresh, 2, CPU)
    for found, want in zip(fresh.carries, saved.carries, strict=True):
        assert (found is None) == (want is None)
        if found is not None and want is not None:
            assert found.keys() == want.keys()
            assert all(torch.equal(found[name], want[name]) for name in want)


def test_a_devices_generator_is_kept_beside_the_cpus(monkeypatch):
    """With a stand-in for the module of the device."""

    class Device:
        state = torch.tensor([1, 2])

        @classmethod
        def get_rng_state(cls):
            return cls.state.clone()

        @classmethod
        def set_rng_state(cls, state):
            cls.state = state

    monkeypatch.setattr(torch, "get_device_module", lambda device: Device)
    cuda = torch.device("cuda")
    kept, plain = Generators.capture(cuda), Generators.capture(CPU)
    assert kept.tensors.keys() - plain.tensors.keys() == {"cuda"}
    Device.state = torch.tensor([3])
    kept.restore(CPU)
    assert Device.state.tolist() == [3]
    kept.restore(cuda)
    assert Device.state.tolist() == [1, 2]
    with pytest.warns(UserWarning, match="no cuda generator in the state"):
        plain.restore(cuda)


def test_generators_come_back(tmp_path):
    random.gauss(0, 1)  # leaves a second number waiting,
    np.random.standard_normal()  # and so does this
    folder, state = folder_for(tmp_path), made_state()
    folder.save(state, Generators.capture(CPU))
    expected = drawn()
    folder.load(state, 2, CPU).restore(CPU)
    assert drawn() == expected


def test_generators_are_kept_through_an_evaluation():
    with kept_generators(CPU):
        inside = drawn()
    assert drawn() == inside


@pytest.mark.parametrize(
    "other, told",
    [
        ({"width": 6}, ["of wrong shape", "model.hidden.weight", "(8, 6)", "(6, 6)"]),
        ({"ema": False}, ["unexpected", "ema.head.bias"]),
        ({"optim": "muon"}, ["unexpected", "optim.0.hidden.bias/exp_avg"]),
        ({"parts": 2}, ["micro_batches 1", "this run has 2"]),
    ],
)
def test_a_state_that_does_not_fit_says_where(tmp_path, other, told):
    folder = folder_for(tmp_path)
    folder.save(made_state(), Generators.capture(CPU))
    fresh = made_state(**other, steps=0, seed=5)
    before = {n: t.clone() for n, t in fresh.weights().items()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (told is checked below)
        folder.load(fresh, 2, CPU)
    for word in told:
        assert word in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in fresh.weights().items()), "half loaded"


def test_a_missing_name_is_told(tmp_path):
    folder = folder_for(tmp_path)
    folder.save(made_state(ema=False), Generators.capture(CPU))
    with pytest.raises(ValueError, match=r"missing: ema\.head\.bias, ema\.head\.weight"):
        folder.load(made_state(), 2, CPU)


def test_other_settings_are_listed(tmp_path):
    folder_for(tmp_path).save(made_state(), Generators.capture(CPU))
    other = folder_for(tmp_path, settings={"seed": 1, "clip": 2.0})
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are checked below)
        other.load(made_state(), 2, CPU)
    for word in ("missing: settings.clip", "unexpected: settings.lr", "seed (saved 0, now 1)"):
        assert word in str(caught.value)


def test_differences_see_nested_values():
    assert differences({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}) == []
    assert differences({"a": {"b": 1}}, {"a": 1}) == ["missing: a", "unexpected: a.b"]


@pytest.mark.parametrize("name", ["state.safetensors", "rank-00000.safetensors", "state.json"])
def test_damage_is_told_with_a_remedy(tmp_path, name):
    folder = folder_for(tmp_path)
    file = folder.save(made_state(), Generators.capture(CPU)) / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"delete .*step-000000002") as caught:
        folder.load(made_state(), 2, CPU)
    assert name in str(caught.value)


def test_only_the_last_states_are_kept(tmp_path):
    folder = folder_for(tmp_path)
    for step in (1, 5, 30):
        state = made_state()
        state.step = step
        folder.save(state, Generators.capture(CPU))
    assert folder.steps() == [5, 30]
    assert not list((tmp_path / "states").glob(".*"))


def test_leftovers_are_ignored_and_removed(tmp_path):
    folder = folder_for(tmp_path)
    folder.save(made_state(), Generators.capture(CPU))
    for name in (".new-step-000000009", ".old-step-000000001"):
        (folder.root / name).mkdir()
        (folder.root / name / "state.json").write_text("{")
    assert folder.steps() == [2]
    folder.clean()
    assert [path.name for path in folder.root.iterdir()] == ["step-000000002"]


def write_into(target, text: str, *, fail: bool = False) -> None:
    with new_folder(target) as hidden:
        (hidden / "file").write_text(text)
        if fail:
            raise KeyError


def test_a_failed_write_leaves_the_old_folder(tmp_path):
    write_into(tmp_path / "model", "old")
    write_into(tmp_path / "model", "new")
    with pytest.raises(KeyError):
        write_into(tmp_path / "model", "half", fail=True)
    assert (tmp_path / "model" / "file").read_text() == "new"
    write_into(tmp_path / "model", "newest")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_tied_and_strided_tensors_can_be_saved(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": base, "b": base, "c": base.T, "d": base[:1].expand(4, 3), "e": base[1:]}
    write_tensors(tmp_path / "x.safetensors", tensors)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_weight_is_saved_once(tmp_path):
    model = Tied()
    state = TrainState(model, [], None, [None])
    assert list(state.weights()) == ["model.embed.weight"]
    folder_for(tmp_path).save(state, Generators.capture(CPU))
    before = model.embed.weight.detach().clone()
    model.embed.weight.data.zero_()
    folder_for(tmp_path).load(state, 0, CPU)
    assert torch.equal(model.head.weight, before)
