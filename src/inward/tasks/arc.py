"""The benchmark ARC-AGI: how to read a grid, show it, transform it and score an answer.

Two things set it apart from Sudoku and mazes. There is no rule to check an answer by: what a task
wants is known only from its demonstrations, so `verify` refuses and `score` compares with labels.
And the network learns a task through its identifier, so a transformed puzzle is another task: to
train, take the variants that `inward.data.puzzles.arc.build` makes, each under its own identifier,
not `symmetry` at random on the fly.
"""

import json
from dataclasses import dataclass

import numpy as np

from inward.data.puzzles.arc import (
    GRID,
    IDENTITY,
    NUM_COLOURS,
    SIZE,
    VOCAB_SIZE,
    Variant,
    decode,
    encode,
    find_offset,
    to_grid,
)
from inward.data.puzzles.dihedral import NUM_MAPS
from inward.data.puzzles.puzzles import PAD


@dataclass(frozen=True)
class ArcSymmetry:
    """A variant as a map of canvases (..., 900).

    A grid that does not stand at the corner keeps its place, with row and column exchanged where
    the map exchanges them, so it always fits. `offset` is where it stands before `apply`; None
    finds it on each canvas, which is right for inputs, labels and everything at (0, 0), but not
    for a model's answer elsewhere (there PAD is not trained, and anything may stand in it).
    What is no grid (see `inward.data.puzzles.arc.decode`) becomes PAD.
    """

    variant: Variant
    offset: tuple[int, int] | None = None

    def apply(self, tokens: np.ndarray) -> np.ndarray:
        """Recolour and turn the grid on every canvas; returns a new array of the same dtype."""
        return self._map(tokens, inverse=False)

    def invert(self, tokens: np.ndarray) -> np.ndarray:
        """Undo `apply`."""
        return self._map(tokens, inverse=True)

    def _map(self, tokens: np.ndarray, *, inverse: bool) -> np.ndarray:
        tokens = np.asarray(tokens)
        if tokens.ndim == 0 or tokens.shape[-1] != SIZE * SIZE:
            raise ValueError(f"tokens of shape {tokens.shape}; expected (..., {SIZE * SIZE})")
        rows = tokens.reshape(-1, SIZE * SIZE)
        out = np.full_like(rows, PAD)
        for row, target in zip(rows, out, strict=True):
            offset = self._offset(row, inverse=inverse)
            grid = decode(row, offset)
            if grid.size:
                grid = self.variant.invert(grid) if inverse else self.variant.apply(grid)
                target[:] = encode(grid, self._turned(offset))
        return out.reshape(tokens.shape)

    def _offset(self, row: np.ndarray, *, inverse: bool) -> tuple[int, int]:
        if self.offset is not None:
            return self._turned(self.offset) if inverse else self.offset
        return find_offset(row) if (row > PAD).any() else (0, 0)

    def _turned(self, offset: tuple[int, int]) -> tuple[int, int]:
        """Exchange row and column if the map does; its own inverse."""
        return (offset[1], offset[0]) if self.variant.dihedral in (1, 3, 6, 7) else offset


class ArcTask:
    """ARC on its 30x30 canvas: PAD 0, EOS 1, colours 0-9 as tokens 2-11."""

    name = "arc"
    vocab_size = VOCAB_SIZE
    grid = GRID
    blank = None  # the input has no cells left open: the answer is a grid of its own

    def parse(self, text: str) -> np.ndarray:
        """Read one grid as JSON rows or as lines of digits (with or without spaces): (900,) uint8.

        Raises ValueError for an empty or ragged grid, a side over 30 or anything but 0 to 9.
        """
        text = text.strip()
        if text.startswith("["):
            try:
                cells = json.loads(text)
            except ValueError as error:
                raise ValueError(f"the grid is not JSON: {error}") from error
            return encode(to_grid(cells))
        rows = ["".join(line.split()) for line in text.splitlines() if line.strip()]
        for row in rows:
            if foreign := set(row) - set("0123456789"):
                raise ValueError(f"the grid holds {min(foreign)!r}; a cell is a digit 0 to 9")
        if not rows:
            raise ValueError("the grid is empty; give lines of digits or JSON rows")
        return encode(to_grid([[int(digit) for digit in row] for row in rows]))

    def format(self, tokens: np.ndarray, *, given: np.ndarray | None = None) -> str:
        """Show the grid on a canvas (900,) as lines of digits, beside the input if it is given.

        The grid is looked for where that of `given` stands, else at the corner.
        """
        offset = (0, 0) if given is None else find_offset(given)
        answer = _lines(decode(tokens, offset))
        if given is None:
            return "\n".join(answer)
        question = _lines(decode(given, offset))
        width, height = len(question[0]), max(len(question), len(answer))
        question += [" " * width] * (height - len(question))
        answer += [""] * (height - len(answer))
        arrows = ["->" if i == 0 else "  " for i in range(height)]
        rows = zip(question, arrows, answer, strict=True)
        return "\n".join("  ".join(row).rstrip() for row in rows)

    def verify(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Refuse: an ARC answer cannot be checked by a rule. Raises ValueError."""
        raise ValueError(
            "ARC has no rule to verify an answer by; compare with labels (ArcTask.score), "
            "or select by votes or halting confidence"
        )

    def score(self, labels: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Return (B,) bool: the grid on the answer (B, 900) is that of the label, in every cell.

        This is what the competition counts. What the answer holds outside its grid does not
        matter, but the grid must end where the label's does. Raises ValueError for an empty label.
        """
        labels, answers = _batches(labels, answers)
        same = [
            np.array_equal(decode(label, at), decode(answer, at))
            for label, answer in zip(labels, answers, strict=True)
            for at in [find_offset(label)]
        ]
        return np.array(same, dtype=bool)

    def exact(self, labels: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Return (B,) bool: every scored token (above PAD, so EOS too) is right.

        This is what TRM logs as all/exact_accuracy while it trains. The two can differ: the
        corner of the two EOS lines is not scored, and tokens beyond an EOS line are not read.
        """
        labels, answers = _batches(labels, answers)
        return ((labels <= PAD) | (labels == answers)).all(axis=1)

    def symmetry(self, rng: np.random.Generator) -> ArcSymmetry:
        """Draw one of eight dihedral maps and a permutation of colours 1 to 9."""
        dihedral = int(rng.integers(NUM_MAPS))
        colours = rng.permutation(np.arange(1, NUM_COLOURS)).tolist()
        return ArcSymmetry(Variant(dihedral, (0, *colours)))

    def identity(self) -> ArcSymmetry:
        """Return the map that leaves every canvas as it is."""
        return ArcSymmetry(IDENTITY)


def _lines(grid: np.ndarray) -> list[str]:
    return [" ".join(map(str, row)) for row in grid.tolist()] or ["(no grid)"]


def _batches(labels: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, answers = np.asarray(labels), np.asarray(answers)
    if labels.ndim != 2 or labels.shape != answers.shape or labels.shape[1] != SIZE * SIZE:
        raise ValueError(
            f"labels {labels.shape} and answers {answers.shape}; both must be (B, {SIZE * SIZE})"
        )
    return labels, answers
