"""Coverage, accuracy and calibration, by hand."""

import numpy as np
import pytest

from inward import hub
from inward.data.puzzles.sudoku import generate
from inward.evals.knowing import Known, joined, known
from inward.evals.stats import calibration_error
from inward.recipes.trm_cube import broken_sudokus
from inward.tasks.sudoku import SudokuTask


def test_rules_of_answering():
    rows = Known(
        believed=np.array([0.9, 0.8, 0.6, 0.1]),
        agreement=np.array([1.0, 0.4, 0.6, 0.8]),
        right=np.array([True, False, False, True]),
    )
    row = rows.row()
    assert row["right"] == 0.5 and row["always"] == {"coverage": 1.0, "accuracy": 0.5}
    assert row["believed"] == {"coverage": 0.75, "accuracy": pytest.approx(1 / 3)}
    assert row["agreement"] == {"coverage": 0.75, "accuracy": pytest.approx(2 / 3)}
    assert row["both"] == {"coverage": 0.5, "accuracy": 0.5}
    assert row["rules"] == {"coverage": 0.5, "accuracy": 1.0}
    nothing = Known(np.array([0.1]), np.array([0.2]), np.array([False])).row()
    assert nothing["both"] == {"coverage": 0.0, "accuracy": None}
    assert len(joined({"a": rows, "b": rows}).right) == 8


def test_calibration_error():
    # two bins: 0.75 believed, half right (0.25 off, 4 of 6); 0.2 believed, none right (2 of 6)
    believed = [0.75] * 4 + [0.2] * 2
    right = [True, True, False, False, False, False]
    assert calibration_error(believed, right) == pytest.approx(0.25 * 4 / 6 + 0.2 * 2 / 6)
    assert calibration_error([1.0, 0.0], [True, False]) == 0
    for wrong in ([1.5], [float("nan")], []):
        with pytest.raises(ValueError, match="belie"):
            calibration_error(wrong, [True] * len(wrong))


def test_on_puzzles_with_and_without_a_solution():
    """The shipped cube answers 30-clue puzzles and does not believe what it says of broken ones."""
    model, task = hub.load("sudoku9-cube"), SudokuTask(9)
    puzzles = generate(12, n=9, clues=34, seed=3, progress=False)
    broken = broken_sudokus(puzzles, 12, seed=4, more=0)
    assert ((broken.inputs > 1).sum(1) == 34).all()
    fine, wrong = known(model, puzzles, task), known(model, broken, task)
    assert fine.right.all() and fine.believed.min() > 0.9 and fine.agreement.min() > 0.5
    assert not wrong.right.any() and (wrong.believed < 0.5).mean() > 0.8
    with pytest.raises(ValueError, match="2 or more"):
        known(model, puzzles, task, views=1)
