"""The Sudoku benchmark: how to ask, show, transform and score an n x n grid (n = 4, 6, 9).

TRM's exactness criterion is equality with the stored answer (arXiv 2510.04871 section 5). A puzzle
with one solution allows a better one, used here: an answer is right if it obeys the rules and keeps
the clues, whatever made it; no label is needed, so it also judges puzzles that nobody has solved.

Unusual: `parse` reads back all that `format` writes. Tokens and boxes:
`inward.data.puzzles.sudoku_solver`.
"""

import re
from dataclasses import dataclass

import numpy as np

from inward.data.puzzles.puzzles import Identity, Symmetry
from inward.data.puzzles.sudoku import check_clues, conflicts, decode, encode, sample_symmetry
from inward.data.puzzles.sudoku_solver import BLANK, box_shape, num_solutions

_LAYOUT = re.compile(r"[\s|+\-\[\]<>]")  # what `format` adds around the cells


@dataclass(frozen=True)
class SudokuTask:
    """Sudoku with n x n cells; ValueError unless n is 4, 6 or 9."""

    n: int

    def __post_init__(self) -> None:
        box_shape(self.n)

    @property
    def blank(self) -> int:
        """Token of a cell to be filled in."""
        return BLANK

    @property
    def name(self) -> str:
        """Name in tables and file names: sudoku4, sudoku6 or sudoku9."""
        return f"sudoku{self.n}"

    @property
    def vocab_size(self) -> int:
        """PAD, blank and n digits."""
        return self.n + 2

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.n, self.n

    def parse(self, text: str) -> np.ndarray:
        """Tokens (L,) uint8 of a puzzle in one line or many: digits, '.' or '0' for a blank.

        White space and the characters | + - [ ] < > are layout and skipped. Raises ValueError for
        a wrong number of cells, another character, or a digit twice in a row, column or box.
        """
        tokens = encode(_LAYOUT.sub("", text), n=self.n)
        check_clues(tokens)
        return tokens

    def format(self, tokens: np.ndarray, *, given: np.ndarray | None = None) -> str:
        """Draw tokens (L,) as a grid with its boxes apart; blank and PAD are '.'.

        With given=, the puzzle's tokens (L,), clues stand in brackets: [5], or <5> where the
        answer has overwritten the clue. Raises ValueError for a wrong length or token.
        """
        cells = self._cells(tokens, "tokens")
        if given is None:
            cells = [f" {cell}" for cell in cells]
        else:
            clues = self._cells(given, "given")
            cells = [_mark(cell, clue) for cell, clue in zip(cells, clues, strict=True)]
        return self._draw(cells)

    def verify(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Which answers (B, L) solve the puzzles inputs (B, L): (B,) bool.

        Right means: every cell a digit, none twice in a row, column or box, and every clue kept.
        Integers of any kind may stand in an answer; ValueError only for shapes that do not fit.
        """
        inputs, answers = np.asarray(inputs), np.asarray(answers)
        if inputs.shape != answers.shape or inputs.shape[1:] != (self.n**2,):
            raise ValueError(
                f"inputs {inputs.shape} and answers {answers.shape} must both be (B, {self.n**2})"
            )
        full = ((answers > BLANK) & (answers < self.vocab_size)).all(axis=1)
        kept = ((inputs <= BLANK) | (inputs == answers)).all(axis=1)
        return full & kept & ~conflicts(answers).any(axis=1)

    def fault(self, tokens: np.ndarray) -> str | None:
        """What is wrong with the puzzle (L,) itself: "no solution", "several solutions", or None,
        also where a bounded search cannot tell. It chooses no digit of an answer."""
        num = num_solutions(tokens)
        return None if num is None else ("no solution", None, "several solutions")[num]

    def symmetry(self, rng: np.random.Generator) -> Symmetry:
        """Draw a map of grids that keeps the rules, all equally likely."""
        return sample_symmetry(self.n, rng)

    def identity(self) -> Symmetry:
        """Return the map that changes nothing."""
        return Identity()

    def _cells(self, tokens: np.ndarray, name: str) -> str:
        tokens = np.asarray(tokens)
        if tokens.shape != (self.n**2,):
            raise ValueError(f"{name} has shape {tokens.shape}; one puzzle is ({self.n**2},)")
        return decode(tokens)

    def _draw(self, cells: list[str]) -> str:
        box_rows, box_cols = box_shape(self.n)
        lines = []
        for row in range(self.n):
            of_row = cells[row * self.n : (row + 1) * self.n]
            boxes = ["".join(of_row[i : i + box_cols]) for i in range(0, self.n, box_cols)]
            if row and row % box_rows == 0:
                lines.append("-+".join("-" * len(box) for box in boxes) + "-")
            lines.append(" |".join(boxes).rstrip())
        return "\n".join(lines)


def _mark(cell: str, clue: str) -> str:
    """Show a clue in brackets, a broken clue in angles, any other cell bare."""
    if clue == ".":
        return f" {cell} "
    return f"[{cell}]" if cell == clue else f"<{cell}>"
