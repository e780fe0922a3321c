"""Pictures of thinking, drawn from traces. This file: what a step of a trace means on a grid.

The terminal (`terminal.py`) and the figures (`plots.py`) both draw `Frame`s: which cells hold
what, how sure the model is of each, which cells changed since the step before, which were given.
They know tasks and traces but no model. Neither torch nor matplotlib is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from inward.common.trace import Step, Trace
from inward.data.puzzles.puzzles import PAD

UNSURE = 0.6
"""A cell is marked as unsure when the probability of what it holds is below this."""


class Board(Protocol):
    """What drawing needs of a task."""

    @property
    def name(self) -> str:
        """Name of the benchmark; it chooses the look: "sudoku...", "maze..." or "arc..."."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols)."""
        ...


@dataclass(frozen=True, eq=False)
class Frame:
    """One step, ready to draw. The arrays are (rows, cols); number 0 is the question itself.

    broken: given cells that the draft overwrote, which no valid answer does.
    halt: probability that the answer is right, as the model sees it; None where it was not asked.
    evaluations, flops: spent up to and with this step.
    """

    number: int
    tokens: np.ndarray
    confidence: np.ndarray
    changed: np.ndarray
    given: np.ndarray
    broken: np.ndarray
    halt: float | None = None
    evaluations: float = 0.0
    flops: float = 0.0

    @property
    def unsure(self) -> np.ndarray:
        """(rows, cols) bool: cells that the model had to fill in and is not sure of."""
        return (self.confidence < UNSURE) & ~self.given


def frames(trace: Trace, board: Board) -> list[Frame]:
    """The question (number 0), then one frame per step that recorded its grid.

    The first step changes nothing in the sense of `changed`: all of it is new.

    Raises ValueError if the trace is not of this board's size, or recorded no tokens.
    """
    rows, cols = board.grid
    steps = [step for step in trace.steps if "grid" in step.view]
    if not steps:
        raise ValueError(
            f"this trace ({trace.method}) recorded no grid; ask a puzzle solver with trace=True"
        )
    for tokens in (trace.question, *map(_grid, steps)):
        if tokens.shape != (rows * cols,):
            raise ValueError(
                f"the trace has {np.size(tokens)} cells, the {board.name} board {rows} x {cols}; "
                "draw it with the task it was made for"
            )
    shown = [_shown(tokens, trace, board) for tokens in (trace.question, *map(_grid, steps))]
    question = shown[0].reshape(rows, cols)
    given = np.zeros((rows, cols), bool)
    if (blank := blank_token(board)) is not None:
        given = (question != blank) & (question != PAD)
    ones, none = np.ones((rows, cols)), np.zeros((rows, cols), bool)
    drawn = [Frame(0, question, ones, none, given, none)]
    for step, tokens in zip(steps, shown[1:], strict=True):
        drawn.append(_frame(step, tokens, drawn[0], drawn[-1]))
    return drawn


def _grid(step: Step) -> np.ndarray:
    return step.view["grid"].ids


def _shown(tokens: np.ndarray, trace: Trace, board: Board) -> np.ndarray:
    """ARC: the grid on the canvas alone, because nothing trains a model what to write around it."""
    if not is_arc(board):
        return tokens
    from inward.data.puzzles.arc import decode, encode, find_offset

    offset = find_offset(trace.question)
    grid = decode(tokens, offset)
    canvas = encode(grid, offset) if grid.size else np.zeros(tokens.shape, np.uint8)
    return np.where(canvas >= 2, canvas, PAD)  # the end marks are no part of the picture


def _frame(step: Step, tokens: np.ndarray, question: Frame, before: Frame) -> Frame:
    given = question.given
    tokens = tokens.reshape(given.shape)
    confidence = np.ones(given.shape)
    sure = step.view["grid"].confidence
    if sure is not None:
        confidence = sure.reshape(given.shape)
    logit = step.scores.get("halt")
    return Frame(
        number=step.index,
        tokens=tokens,
        confidence=confidence,
        changed=np.zeros_like(given) if before.number == 0 else tokens != before.tokens,
        given=given,
        broken=given & (tokens != question.tokens),
        halt=None if logit is None else sigmoid(logit),
        evaluations=before.evaluations + step.cost.evaluations,
        flops=before.flops + step.cost.flops,
    )


def sigmoid(logit: float) -> float:
    """Probability of a logit, without overflow at either end."""
    return 0.5 * (1 + math.tanh(logit / 2))


def choose(drawn: Sequence[Frame], most: int) -> list[Frame]:
    """At most `most` frames worth showing: first and last, and those that changed most cells.

    Frames in which nothing changed are left out, however much room there is.
    Raises ValueError if `most` is below 2.
    """
    if most < 2:
        raise ValueError(f"cannot tell a story in {most} frame(s); choose at least 2")
    if len(drawn) <= 2:
        return list(drawn)
    between = [frame for frame in drawn[1:-1] if frame.changed.any()]
    between.sort(key=lambda frame: -int(frame.changed.sum()))
    kept = sorted(between[: most - 2], key=lambda frame: frame.number)
    return [drawn[0], *kept, drawn[-1]]


def is_maze(board: Board) -> bool:
    """Walls and paths are drawn as such."""
    return board.name.startswith("maze")


def is_arc(board: Board) -> bool:
    """Cells are colours."""
    return board.name.startswith("arc")


def blank_token(board: Board) -> int | None:
    """Input token of the cells that an answer fills in; None: the answer is a grid of its own."""
    if is_arc(board):
        return None
    return 2 if is_maze(board) else 1


def character(token: int, board: Board) -> str:
    """One character for a token; ' ' for padding, '.' for a cell that is still to be filled in."""
    if is_maze(board):
        return " # SGo"[token]
    if is_arc(board):
        return "  0123456789"[token]
    if token == PAD:
        return " "
    # digits from 1 on; boards beyond 9 go on with letters
    return ".123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[token - 1]


def boxes(board: Board) -> tuple[int, int]:
    """(rows, cols) of the boxes that divide the board, or the whole board where none do."""
    rows, cols = board.grid
    if not board.name.startswith("sudoku"):
        return rows, cols
    high = next(n for n in range(math.isqrt(rows), 0, -1) if rows % n == 0)
    return high, rows // high


def crop(drawn: Sequence[Frame]) -> tuple[slice, slice]:
    """Rows and columns that hold something other than padding in some frame."""
    filled = np.any([frame.tokens != PAD for frame in drawn], axis=0)
    if not filled.any():
        return slice(0, filled.shape[0]), slice(0, filled.shape[1])
    rows, cols = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
    return slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
