"""Training data as a pure function of the step: the data position of a run is one integer.

`batch(step, rows, num_rows)` returns some rows of global batch number `step`. What a row holds
depends on (seed, step, row) alone, never on hidden state or on who asks. So a killed run resumes
by asking for the next step, every rank and micro-batch asks for its own slice, and the union of
the slices is the batch that one process would have seen.

Two sources: `PuzzleSource` walks through a finite set in a new order each epoch, under a random
symmetry of the task; `MazeSource` makes every maze when it is asked for, so that nothing is stored
and nothing repeats. Both give int64 tensors with -100 where the loss must not look.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from inward.common import IGNORE
from inward.common.checks import check_slice, checked_seed
from inward.data.puzzles import maze, maze_open
from inward.data.puzzles.puzzles import PAD, Puzzles, Symmetry

# numpy pads a seed sequence with zeros: [seed, epoch] alone would be row 0 of step = epoch.
_EPOCH_STREAM = (0, 1)


class Source(Protocol):
    """Where a training loop gets its batches."""

    def batch(self, step: int, rows: range, num_rows: int) -> dict[str, torch.Tensor]:
        """Return rows `rows` of batch `step`, which has `num_rows` rows in all.

        inputs (b, L) int64, labels (b, L) int64 with -100 = ignore, identifiers (b,) int64.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return settings as JSON values, for logs and model cards."""
        ...


class PuzzleTask(Protocol):
    """What `PuzzleSource` needs of a task."""

    @property
    def name(self) -> str:
        """Name of the benchmark."""
        ...

    @property
    def blank(self) -> int | None:
        """Input token of the cells that an answer fills in; None if the task has no such token."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols)."""
        ...

    def symmetry(self, rng: np.random.Generator) -> Symmetry:
        """Draw a symmetry that keeps solved puzzles solved."""
        ...


class PuzzleSource:
    """Walk through `puzzles` in a new order every epoch, each row under a random symmetry.

    augment      False: give the puzzles as they are
    blanks_only  True: the loss sees only cells whose input is `task.blank`. The published runs
                 train on the given cells as well (False)
    """

    def __init__(
        self,
        puzzles: Puzzles,
        task: PuzzleTask,
        *,
        seed: int,
        augment: bool = True,
        blanks_only: bool = False,
    ) -> None:
        if puzzles.grid != task.grid:
            raise ValueError(
                f"the puzzles have a {puzzles.grid} grid but the task {task.name} has "
                f"{task.grid}; make the task for the puzzles' grid"
            )
        if blanks_only and task.blank is None:
            raise ValueError(
                f"the task {task.name} has no blank token; use blanks_only=False with it"
            )
        self.puzzles = puzzles
        self.task = task
        self.seed = checked_seed(seed)
        self.augment = augment
        self.blanks_only = blanks_only
        self._orders: dict[int, np.ndarray] = {}  # a memo of `_order`, not state

    def batch(self, step: int, rows: range, num_rows: int) -> dict[str, torch.Tensor]:
        """See `Source.batch`; raises ValueError for rows outside the batch or a negative step."""
        check_slice(step, rows, num_rows)
        index = np.array([self._index(step * num_rows + row) for row in rows], dtype=np.int64)
        inputs = np.array(self.puzzles.inputs[index])
        labels = np.array(self.puzzles.labels[index])
        if self.augment:
            for i, row in enumerate(rows):
                symmetry = self.task.symmetry(np.random.default_rng([self.seed, step, row]))
                inputs[i], labels[i] = symmetry.apply(inputs[i]), symmetry.apply(labels[i])
        blank = self.task.blank if self.blanks_only else None
        names = self.puzzles.identifiers
        return _tensors(inputs, labels, None if names is None else names[index], blank=blank)

    def _index(self, position: int) -> int:
        """Puzzle at a position of the endless walk."""
        epoch, place = divmod(position, len(self.puzzles))
        return int(self._order(epoch)[place])

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            rng = np.random.default_rng([self.seed, epoch, *_EPOCH_STREAM])
            if len(self._orders) >= 2:  # a batch seldom spans more than two epochs
                del self._orders[min(self._orders)]
            self._orders[epoch] = rng.permutation(len(self.puzzles))
        return self._orders[epoch]

    def describe(self) -> dict[str, Any]:
        """Return settings as JSON values, for logs and model cards."""
        return {
            "kind": "puzzles",
            "task": self.task.name,
            "num_puzzles": len(self.puzzles),
            "grid": list(self.puzzles.grid),
            "seed": self.seed,
            "augment": self.augment,
            "blanks_only": self.blanks_only,
        }


class MazeSource:
    """Make every maze when it is asked for (arguments: see `inward.data.puzzles.maze.one`).

    sizes        one is drawn for each row; smaller ones stand at a random offset on the canvas
    canvas       side of the square all rows share (default: the largest size)
    open_share   share of mazes with open areas (`inward.data.puzzles.maze_open`), any size on the
                 canvas
    exclude      mazes never to train on, in any turned, mirrored or moved copy: the held-out set
    blanks_only  True: the loss sees only cells that are free in the question
    """

    def __init__(
        self,
        sizes: int | Sequence[int],
        *,
        seed: int,
        canvas: int | None = None,
        braid: float = 0.0,
        min_path: int = 1,
        open_share: float = 0.0,
        exclude: Puzzles | None = None,
        blanks_only: bool = False,
    ) -> None:
        self.sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
        if not self.sizes:
            raise ValueError("sizes is empty; give at least one maze size")
        self.canvas = max(self.sizes) if canvas is None else canvas
        for size in self.sizes:
            maze.check_settings(size, braid=braid, min_path=min_path, canvas=self.canvas)
        if not 0.0 <= open_share <= 1.0:
            raise ValueError(f"open_share is {open_share}; it is a share of mazes, choose 0 to 1")
        self.open_share = open_share
        self.seed = checked_seed(seed)
        self.braid = braid
        self.min_path = min_path
        self.blanks_only = blanks_only
        self._excluded = frozenset() if exclude is None else maze.maze_keys(exclude)

    def batch(self, step: int, rows: range, num_rows: int) -> dict[str, torch.Tensor]:
        """See `Source.batch`; raises ValueError for rows outside the batch or a negative step."""
        check_slice(step, rows, num_rows)
        pairs = np.zeros((2, len(rows), self.canvas**2), dtype=np.uint8)
        for i, row in enumerate(rows):
            pairs[:, i] = self._one(np.random.default_rng([self.seed, step, row]))
        return _tensors(pairs[0], pairs[1], None, blank=maze.FREE if self.blanks_only else None)

    def _one(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        # no draw where there is no choice: mazes of earlier versions stay what they were
        if self.open_share and rng.random() < self.open_share:
            return maze_open.one(rng, self.canvas, excluded=self._excluded)
        return maze.one(
            rng,
            self.sizes[rng.integers(len(self.sizes))],
            braid=self.braid,
            min_path=self.min_path,
            canvas=self.canvas,
            excluded=self._excluded,
        )

    def describe(self) -> dict[str, Any]:
        """Return settings as JSON values, for logs and model cards."""
        return {
            "kind": "mazes made on the fly",
            "task": "maze",
            "sizes": list(self.sizes),
            "grid": [self.canvas, self.canvas],
            "braid": self.braid,
            "min_path": self.min_path,
            "open_share": self.open_share,
            "num_excluded_keys": len(self._excluded),
            "seed": self.seed,
            "blanks_only": self.blanks_only,
        }


def _tensors(
    inputs: np.ndarray,
    labels: np.ndarray,
    identifiers: np.ndarray | None,
    *,
    blank: int | None,
) -> dict[str, torch.Tensor]:
    """Widen one-byte rows to int64 and mark the cells that the loss ignores."""
    labels = labels.astype(np.int64)
    scored = labels != PAD
    if blank is not None:
        scored &= inputs == blank
    if identifiers is None:
        identifiers = np.zeros(len(inputs), dtype=np.int64)
    return {
        "inputs": torch.from_numpy(inputs.astype(np.int64)),
        "labels": torch.from_numpy(np.where(scored, labels, IGNORE)),
        "identifiers": torch.from_numpy(np.asarray(identifiers, dtype=np.int64)),
    }
