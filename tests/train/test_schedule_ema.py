"""The schedule's closed forms, the average, draws, and settings."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from inward.common.draws import Draws
from inward.train.ema import EMA
from inward.train.schedule import lr_factor
from inward.train.settings import TrainSettings


def factors(**changes):
    settings = TrainSettings(**changes)
    return [lr_factor(settings, step) for step in range(1, settings.steps + 1)]


def test_warmup_starts_above_zero_and_constant_stays():
    assert factors(steps=6, warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert factors(steps=3) == [1.0, 1.0, 1.0]


def test_cosine_ends_at_the_ratio():
    found = factors(steps=12, warmup=4, schedule="cosine", min_ratio=0.2)
    expected = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(9)]
    assert found[3:] == pytest.approx(expected)
    assert found[-1] == pytest.approx(0.2)


def test_linear_ends_at_the_ratio():
    assert factors(steps=4, schedule="linear", min_ratio=0.5) == [0.875, 0.75, 0.625, 0.5]


def test_a_schedule_shorter_than_its_warmup_only_rises():
    assert factors(steps=3, warmup=6, schedule="cosine") == [1 / 6, 2 / 6, 3 / 6]


def test_ema_is_the_running_sum():
    param = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    ema = EMA({"w": param}, decay=0.9)
    expected = param.detach().clone()
    for step in range(5):
        with torch.no_grad():
            param += step
        ema.update()
        expected = 0.9 * expected + 0.1 * param.detach()
    torch.testing.assert_close(ema.shadow["w"], expected)


def test_ema_ramp():
    ema = EMA({"w": nn.Parameter(torch.ones(1))}, decay=0.5, ramp=True)
    decays = []
    for _ in range(10):
        decays.append(ema.current_decay())
        ema.update()
    assert decays == [min(0.5, (1 + t) / (10 + t)) for t in range(10)]


def test_swap_moves_pointers_and_gives_the_same_bytes_back():
    model = nn.Linear(3, 2)
    ema = EMA(dict(model.named_parameters()), decay=0.5)
    with torch.no_grad():
        model.weight.add_(1)
    raw, memory = model.weight.detach().clone(), model.weight.data_ptr()
    shadow, shadow_memory = ema.shadow["weight"].clone(), ema.shadow["weight"].data_ptr()
    with ema.swapped():
        assert torch.equal(model.weight, shadow) and model.weight.data_ptr() == shadow_memory
    assert torch.equal(model.weight, raw) and model.weight.data_ptr() == memory
    assert torch.equal(ema.shadow["weight"], shadow)


def fail_while_swapped(ema: EMA) -> None:
    with ema.swapped():
        raise KeyError


def test_a_failing_evaluation_gives_the_weights_back():
    model = nn.Linear(3, 2)
    ema = EMA(dict(model.named_parameters()), decay=0.5)
    memory = model.weight.data_ptr()
    with pytest.raises(KeyError):
        fail_while_swapped(ema)
    assert model.weight.data_ptr() == memory


def test_ema_of_low_precision_is_refused():
    with pytest.raises(ValueError, match="float32"):
        EMA({"w": nn.Parameter(torch.ones(1, dtype=torch.bfloat16))}, decay=0.999)


def test_draws_do_not_depend_on_the_split():
    def all_of(draws: Draws):
        return draws.uniform(), draws.integers(2, 17), draws.normal(3), draws.uniform(2)

    whole = all_of(Draws(3, 7, range(8), 8))
    parts = [all_of(Draws(3, 7, rows, 8)) for rows in (range(0, 2), range(2, 5), range(5, 8))]
    for i, expected in enumerate(whole):
        assert torch.equal(torch.cat([part[i] for part in parts]), expected)
    assert whole[1].dtype == torch.int64 and whole[1].min() >= 2 and whole[1].max() < 17
    for other in (Draws(3, 8, range(8), 8), Draws(4, 7, range(8), 8)):
        assert not torch.equal(other.uniform(), whole[0])


def test_draws_shared_by_all_rows_come_from_the_generator():
    found = [
        torch.rand(2, generator=Draws(3, 7, rows, 8).generator) for rows in (range(4), range(8))
    ]
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    "seed, step, rows", [(-1, 0, range(2)), (0, 0, range(1, 9)), (0, -1, range(2))]
)
def test_bad_draws_are_refused(seed, step, rows):
    with pytest.raises(ValueError, match="must"):
        Draws(seed, step, rows, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch_rows": -1},
        {"accumulation": 0},
        {"seed": -1},
        {"clip": -0.5},
        {"clip": math.nan},
        {"min_ratio": 1.5},
        {"ema_decay": 1.0},
        {"schedule": "exponential"},
        {"precision": "float16"},
        {"keep": 0},
        {"progress": "yes"},
    ],
)
def test_bad_settings_name_field_and_value(change):
    [(name, value)] = change.items()
    with pytest.raises(ValueError, match=name) as caught:
        TrainSettings(**change)
    assert repr(value) in str(caught.value)


def test_settings_import_no_torch():
    code = "import sys, inward.train.settings, inward.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_late_is_constant_and_then_linear():
    late = TrainSettings(steps=100, schedule="late", decay_steps=20, warmup=10, min_ratio=0.5)
    assert lr_factor(late, 5) == 0.5
    assert lr_factor(late, 10) == lr_factor(late, 80) == 1.0
    assert lr_factor(late, 90) == pytest.approx(0.75)
    assert lr_factor(late, 100) == pytest.approx(0.5)
