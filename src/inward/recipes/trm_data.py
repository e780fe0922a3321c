"""Data of TRM recipes: Sudoku, mazes, folders."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inward.data.puzzles import maze, sudoku
from inward.data.puzzles.puzzles import Puzzles
from inward.methods.trm.settings import TRMSettings
from inward.tasks.maze import MazeTask
from inward.tasks.sudoku import SudokuTask

if TYPE_CHECKING:
    from inward.data.puzzles.source import Source


_SPLIT_SEEDS = {"test": 1, "valid": 2, "train": 3}


@dataclass(frozen=True)
class SudokuData:
    """Generated Sudoku, `num_train` base puzzles seen through fresh symmetries at every visit."""

    n: int = 6
    num_train: int = 4000
    num_valid: int = 250
    num_test: int = 1000
    clues: tuple[int, ...] = (0,)
    """clue counts, an equal share of the puzzles each; 0: irreducible (no clue can go)"""
    min_rating: int = 0
    seed: int = 0

    def task(self) -> SudokuTask:
        return SudokuTask(self.n)

    def puzzles(self, split: str) -> Puzzles:
        """The puzzles of "test", "valid" or "train"; made anew, the same for the same fields."""
        before = {"test": [], "valid": ["test"], "train": ["test", "valid"]}[split]
        exclude = None
        for earlier in before:
            more = self.puzzles(earlier)
            exclude = more if exclude is None else _joined(exclude, more)
        num, seed = getattr(self, f"num_{split}"), 10 * self.seed + _SPLIT_SEEDS[split]
        return self._generate(num, seed, exclude, progress=split == "train")

    def fresh(self, num: int, seed: int) -> Puzzles:
        """More puzzles of this kind, in no symmetric form among those of training.

        9x9 has 5.5e9 solution grids up to symmetry: there two runs of the generator do not meet,
        and making the training puzzles again to be sure of it would take minutes.
        """
        exclude = self.puzzles("train") if self.n < 9 else None
        return self._generate(num, seed, exclude, progress=False)

    def _generate(self, num: int, seed: int, exclude: Puzzles | None, *, progress: bool) -> Puzzles:
        parts = [
            sudoku.generate(
                num // len(self.clues) + (i < num % len(self.clues)),
                n=self.n,
                seed=1000 * i + seed,
                clues=clues or None,
                min_rating=self.min_rating,
                exclude=exclude,
                exclude_symmetric=exclude is not None,
                progress=progress,
            )
            for i, clues in enumerate(self.clues[:num])
        ]
        return functools.reduce(_joined, parts)

    def source(self) -> Source:
        from inward.data.puzzles.source import PuzzleSource

        return PuzzleSource(self.puzzles("train"), self.task(), seed=self.seed, augment=True)


@dataclass(frozen=True)
class MazeData:
    """Mazes made on the fly, each seen once; `sizes` share a canvas, smaller ones anywhere on
    it."""

    sizes: tuple[int, ...] = (11,)
    canvas: int = 11
    braid: float = 0.0
    num_valid: int = 250
    num_test: int = 1000
    seed: int = 0

    def task(self) -> MazeTask:
        return MazeTask(self.canvas)

    def puzzles(self, split: str, size: int | None = None) -> Puzzles:
        """Held-out mazes of one size (default: the canvas), "test" or "valid"."""
        return maze.generate(
            getattr(self, f"num_{split}"),
            size=self.canvas if size is None else size,
            seed=10 * self.seed + _SPLIT_SEEDS[split],
            braid=self.braid,
            exclude=self.puzzles("test", size) if split == "valid" else None,
        )

    def source(self) -> Source:
        from inward.data.puzzles.source import MazeSource

        # mazes of other sizes cannot be copies of the held-out ones, which have the canvas' size
        held_out = _joined(self.puzzles("test"), self.puzzles("valid"))
        return MazeSource(
            self.sizes,
            seed=10 * self.seed + _SPLIT_SEEDS["train"],
            canvas=self.canvas,
            braid=self.braid,
            exclude=held_out,
        )


@dataclass(frozen=True)
class FolderData:
    """A dataset folder of the reference (train/ and test/ with all__inputs.npy and so on)."""

    path: str = "data/sudoku-extreme-1k-aug-1000"
    kind: str = "sudoku9"
    """"sudoku4", "sudoku6", "sudoku9", "maze" or "arc": what the tokens mean"""
    num_valid: int = 1000
    """test puzzles looked at during training; the whole test set may cost more than the training"""
    seed: int = 0

    def task(self) -> Any:
        if self.kind.startswith("sudoku"):
            return SudokuTask(int(self.kind.removeprefix("sudoku")))
        if self.kind == "maze":
            return MazeTask(30)
        from inward.tasks.arc import ArcTask

        return ArcTask()

    def puzzles(self, split: str) -> Puzzles:
        from inward.data.puzzles.folder import Folder

        folder = Folder(self.path, "train" if split == "train" else "test")
        rows = range(min(self.num_valid, len(folder))) if split == "valid" else None
        return folder.puzzles(self.task().grid, rows)

    def fit(self, model: TRMSettings) -> TRMSettings:
        """The model with the alphabet, length and table size that the folder's dataset.json
        names."""
        from inward.data.puzzles.folder import Folder

        info = Folder(self.path, "train").info
        return replace(
            model,
            vocab_size=info.vocab_size,
            seq_len=info.seq_len,
            num_identifiers=info.num_puzzle_identifiers,
        )

    def source(self) -> Source:
        from inward.data.puzzles.folder import Folder, FolderSource

        return FolderSource(Folder(self.path, "train"), seed=self.seed)


def _joined(first: Puzzles, second: Puzzles) -> Puzzles:
    """Both, one after the other; rated if both are."""
    rated = first.rating is not None and second.rating is not None
    return Puzzles(
        np.concatenate([first.inputs, second.inputs]),
        np.concatenate([first.labels, second.labels]),
        first.grid,
        first.vocab_size,
        rating=np.concatenate([first.rating, second.rating]) if rated else None,  # pyright: ignore
    )
