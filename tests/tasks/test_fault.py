"""What is wrong with a puzzle itself, by the rules and a bounded search."""

import numpy as np
import pytest

from inward.data.puzzles.sudoku import encode
from inward.data.puzzles.sudoku_solver import num_solutions, solve
from inward.tasks.maze import MazeTask
from inward.tasks.processors import PuzzleProcessor
from inward.tasks.sudoku import SudokuTask

GOOD = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
MANY = GOOD.replace("8", ".", 1).replace("9", ".")
BROKEN = GOOD.replace("53..7", "531.7", 1)  # repeats no digit, and yet leaves no way


@pytest.mark.parametrize(
    "puzzle, num, fault",
    [(GOOD, 1, None), (MANY, 2, "several solutions"), (BROKEN, 0, "no solution")],
)
def test_sudoku(puzzle, num, fault):
    tokens = encode(puzzle)
    assert num_solutions(tokens) == num == min(2, len(solve(tokens).solutions))
    assert SudokuTask(9).fault(tokens) == fault
    assert PuzzleProcessor(SudokuTask(9)).fault(puzzle) == fault


def test_a_search_that_is_too_long_tells_nothing():
    empty = encode("." * 81)
    assert num_solutions(empty, max_guesses=5) is None
    assert num_solutions(empty) == 2


@pytest.mark.parametrize(
    "rows, fault",
    [(["S G", "###"], None), (["S#G", "###"], "no solution"), (["S ", " G"], "several solutions")],
)
def test_maze(rows, fault):
    cells = np.array([["# SG".index(sign) + 1 for sign in row] for row in rows])
    assert PuzzleProcessor(MazeTask(cells.shape)).fault(cells) == fault
