"""Hard Sudokus: one solution, irreducible, rated, reproducible."""

import numpy as np
import pytest

from inward.data.puzzles.sudoku_hard import hard_sudokus
from inward.data.puzzles.sudoku_solver import BLANK, solve


def test_they_have_one_solution_and_need_every_clue():
    puzzles = hard_sudokus(4, seed=1, min_rating=8, steps=60)
    assert puzzles.rating is not None
    for row, label, rating in zip(puzzles.inputs, puzzles.labels, puzzles.rating, strict=True):
        solved = solve(row)
        assert len(solved.solutions) == 1 and solved.num_guesses == rating
        assert (solved.solutions[0] == label).all()
        for cell in np.flatnonzero(row != BLANK):
            fewer = row.copy()
            fewer[cell] = BLANK
            assert len(solve(fewer).solutions) == 2
    assert np.median(puzzles.rating) >= 8


def test_more_puzzles_continue_the_same_list():
    few, many = (hard_sudokus(n, seed=5, min_rating=5, steps=40) for n in (2, 3))
    assert (few.inputs == many.inputs[:2]).all()


def test_wishes_that_cannot_be_met():
    with pytest.raises(ValueError, match="must be at least 1"):
        hard_sudokus(0, seed=0)
    with pytest.raises(ValueError, match="ascend"):
        hard_sudokus(1, seed=0, min_rating=9, max_rating=8)
