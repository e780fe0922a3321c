"""The cube's data: what is mixed, what is left out, and that a step is a function of its number."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from inward.data.puzzles.puzzles import Puzzles
from inward.data.puzzles.sudoku import decode, generate, sample_symmetry
from inward.data.puzzles.sudoku_solver import conflicts, solve
from inward.recipes.trm_cube import (
    CubeData,
    CubeSource,
    broken_sudokus,
    half_of,
    measured,
    sudoku9_cube,
    sudoku9_cube_start,
)
from inward.train.loop import train
from inward.train.settings import TrainSettings

SMALL = CubeData(num_plain=6, num_hard=2, num_broken=3, num_valid=4, num_test=4, look=2)


@pytest.fixture(scope="module")
def plain() -> Puzzles:
    return generate(6, n=9, seed=4)


def test_broken_puzzles_hide_their_fault(plain):
    broken = broken_sudokus(plain, 5, seed=0)
    assert not conflicts(broken.inputs).any() and not broken.labels.any()
    assert all(len(solve(row).solutions) == 0 for row in broken.inputs)


def test_rows_are_a_function_of_the_step(plain):
    source = CubeSource([plain, broken_sudokus(plain, 3, seed=0)], (0.5, 0.5), seed=3)
    whole = source.batch(7, range(16), 16)
    part = source.batch(7, range(5, 9), 16)
    assert torch.equal(part["inputs"], whole["inputs"][5:9])
    assert not torch.equal(source.batch(8, range(16), 16)["inputs"], whole["inputs"])
    none = (whole["labels"] == -100).all(1)
    assert none.any() and not none.all()
    grids = {row.tobytes() for row in plain.inputs} | {
        row.reshape(9, 9).T.tobytes() for row in plain.inputs
    }
    for row in whole["inputs"][~none].numpy():
        assert row.astype(np.uint8).tobytes() in grids
    with pytest.raises(ValueError, match="shares"):
        CubeSource([plain], (0.5, 0.5), seed=3)


def test_other_sizes_come_in_turn(plain):
    small = [generate(3, n=n, seed=0) for n in (4, 6)]
    source = CubeSource([plain], (1.0,), seed=3, small=small, every=2)
    lengths = [source.batch(step, range(4), 4)["inputs"].shape[1] for step in range(6)]
    assert lengths == [81, 16, 81, 36, 81, 16]
    rows = source.batch(3, range(4), 4)["inputs"].numpy().astype(np.uint8)
    assert {row.tobytes() for row in rows} <= {row.tobytes() for row in small[1].inputs}


def test_listed_puzzles_are_left_out_in_every_form(plain, tmp_path):
    data = replace(SMALL, path=str(tmp_path))
    whole = data.kept("plain")
    image = sample_symmetry(9, np.random.default_rng(0)).apply(whole.inputs[2])
    file = tmp_path / "list.txt"
    file.write_text(decode(image) + "\n")
    rest = replace(data, exclude=(str(file),)).kept("plain")
    assert (rest.inputs == whole.inputs[[0, 1, 3, 4, 5]]).all()


def test_the_two_halves_of_a_list_do_not_meet(plain, tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("".join(decode(row) + "\n" for row in plain.inputs))
    halves = [half_of(file, seed=1, which=which) for which in (0, 1)]
    assert sorted(decode(row) for half in halves for row in half.inputs) == sorted(
        decode(row) for row in plain.inputs
    )
    assert (halves[0].labels > 1).all()
    assert len(half_of(file, seed=1, which=0, num=2)) == 2


def test_the_first_run_trains_and_the_second_begins_from_it(tmp_path):
    data = replace(SMALL, path=str(tmp_path))
    recipe = replace(sudoku9_cube_start(), compiled=False, data=data)
    settings = TrainSettings(steps=2, batch_rows=4, optim=recipe.train.optim, eval_every=2)
    recipe = replace(recipe, model=replace(recipe.model, n_sup=2), train=settings)
    assert recipe.notes() == []
    run = recipe.build()
    summary = train(run, settings, tmp_path / "run")
    assert summary["parameters"] == 11_377
    assert set(summary["evaluation"]) >= {"exact", "own_plain", "drift_plain", "q_gap_plain"}
    second = sudoku9_cube()
    small = replace(data, num_extreme=1, shares=second.data.shares)
    made = load_file(tmp_path / "run" / "model" / "model.safetensors")
    start = str(tmp_path / "run" / "model")
    begun = replace(second, compiled=False, data=small, start=start).build()
    assert all(torch.equal(value, made[k]) for k, value in begun.model.state_dict().items())
    source: Any = begun.source
    assert len(source.kinds) == 4


def test_measured_counts_what_it_says(plain):
    class Told:
        """Right from step 2 to 5, believing it from step 3."""

        class settings:
            n_sup = 2

        def initial_state(self, rows, cells):
            return {"z": torch.zeros(rows, 1)}

        def supervision_step(self, inputs, state):
            step = int(state["z"][0, 0]) + 1
            labels = torch.from_numpy(plain.labels.astype(np.int64))
            shown = labels if 2 <= step <= 5 else labels.roll(1, 1)
            logits = torch.nn.functional.one_hot(shown, 11).float()
            q = torch.full((len(inputs),), 20.0 if step >= 3 else -20.0)
            return {"z": state["z"] + 1}, logits, q

    found = measured(Told(), plain)
    assert found["at"] == found["own"] == found["ever"] == found["drift"] == 1
    assert found["far"] == found["wrong_stop"] == 0
    assert found["q_gap"] == pytest.approx(0, abs=1e-6)
