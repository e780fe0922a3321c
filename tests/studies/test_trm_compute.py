"""The ladder: every rung spends the same FLOPs and keeps the changes of the rungs before it."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from inward.common.draws import Draws
from inward.methods.trm import cpu as nn_cpu
from inward.methods.trm.model import TRM
from inward.studies.trm_compute import LADDER, recipe, step_flops
from inward.tasks.sudoku import SudokuTask
from inward.train.loop import train


@pytest.mark.parametrize("name", LADDER)
def test_every_rung_spends_the_budget(name):
    run = recipe(name, 0, budget=5e12)
    steps, rows = run.train.steps, run.train.batch_rows
    total = sum(step_flops(run.model, rows, step) for step in (*range(0, steps, 10),)) * 10
    assert 0.93 < total / 5e12 < 1.07
    assert run.train.eval_every == steps // 10 and run.train.seed == 0


def test_rungs_keep_what_those_before_them_changed():
    runs = [recipe(name, 0, budget=5e12) for name in LADDER]
    muon = [run.train.optim.name == "muon" and run.train.clip == 1.0 for run in runs]
    assert muon == [False, False, False, False, True]
    assert [run.model.prefix_len for run in runs] == [16, 1, 1, 1, 1]
    assert [len(run.model.cycle_schedule) for run in runs] == [0, 0, 3, 3, 3]
    assert [run.model.label_smoothing for run in runs] == [0, 0, 0, 0.1, 0.1]
    last = runs[-1].model
    assert last.cycles(0) == (1, 2) and last.cycles(None) == (2, 3)
    assert [run.train.steps for run in runs[:3]] == sorted(run.train.steps for run in runs[:3])
    assert all(run.data == runs[0].data for run in runs)
    assert recipe("published", 0, lr=3e-3).train.optim.lr == 3e-3


def test_flops_of_a_step_agree_with_a_counter(monkeypatch):
    # the counter does not see products that write into a given tensor, as the fused path's do
    monkeypatch.setattr(nn_cpu, "suits", lambda *_: False)
    run = recipe("muon", 0, budget=5e12)
    model, rows = TRM(run.model), 3
    cells = torch.randint(2, 11, (rows, 81))
    batch = {"inputs": cells, "labels": cells}
    middle = run.model.cycle_schedule[1][0]
    for step in (0, middle):
        model.zero_grad()
        with FlopCounterMode(display=False) as counter:
            model.loss(batch, None, Draws(0, step, range(rows), rows)).total.backward()
        want = step_flops(run.model, rows, step)
        assert abs(counter.get_total_flops() / want - 1) < 0.03


def test_a_rung_trains(tmp_path):
    run = recipe("muon", 0, budget=5e12)
    data = replace(run.data, num_train=9, num_valid=3, num_test=3)
    settings = replace(run.train, steps=2, batch_rows=2, eval_every=0, save_every=0)
    run = replace(run, data=data, train=settings)
    assert train(run.build(), run.train, tmp_path)["steps"] == 2
    assert data.task() == SudokuTask(9)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="published, prefix"):
        recipe("cheap", 0)
    with pytest.raises(ValueError, match="raise it"):
        recipe("published", 0, budget=1e9)
