"""Data of TRM recipes: Sudoku, mazes, folders."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from inward.data.drawn import drawn
from inward.data.puzzles import maze, maze_open, sudoku
from inward.data.puzzles.puzzles import Puzzles
from inward.methods.trm.settings import TRMSettings
from inward.recipes import puzzle_files
from inward.tasks.maze import MazeTask
from inward.tasks.sudoku import SudokuTask

if TYPE_CHECKING:
    from inward.data.puzzles.source import Source


_TRIES = 20  # new puzzles looked at for each that is wanted
_SPLIT_SEEDS = {"test": 1, "valid": 2, "train": 3}


@dataclass(frozen=True)
class SudokuData:
    """Generated Sudoku, `num_train` base puzzles seen through fresh symmetries at every visit; or
    the puzzles of a file.

    4x4 has so few kinds of puzzles (36 irreducible ones up to symmetry) that the test set would
    rule out all of training's: there whole classes of symmetric puzzles are held out.
    """

    n: int = 6
    num_train: int = 4000
    num_valid: int = 250
    num_test: int = 1000
    clues: tuple[int, ...] = (0,)
    """clue counts, an equal share of the puzzles each; 0: irreducible (no clue can go)"""
    min_rating: int = 0
    seed: int = 0
    path: str = ""
    """instead: a .csv (source, question, answer, rating), .npz or .txt file; num_train, num_valid
    and num_test of its puzzles are drawn by the seed, and clues and min_rating are not looked at"""
    test: str = ""
    """a file whose puzzles are the test set; empty: test.csv beside train.csv, or held out of
    path"""

    def __post_init__(self) -> None:
        if self.test and not self.path:
            raise ValueError(f"test is {self.test!r} without a path; name the training puzzles too")

    def task(self) -> SudokuTask:
        return SudokuTask(self.n)

    def notes(self) -> list[str]:
        """What a person who starts a training should know of its data."""
        if self.n > 4 and not self.path:
            return []
        sets = {split: self.puzzles(split) for split in ("train", "valid", "test")}
        if self.path:
            return [f"{self.path}: {puzzle_files.told(**sets)} of symmetric puzzles"]
        return [
            "4x4 Sudoku has few classes of symmetric puzzles, so whole classes are held out: "
            + puzzle_files.told(**sets)
        ]

    def puzzles(self, split: str) -> Puzzles:
        """The puzzles of "test", "valid" or "train"; the same for the same fields."""
        if self.path:
            return self._of_file(cast("puzzle_files.Split", split))
        if self.n == 4:
            return _by_class(self)[split]
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
        if self.n == 4:
            return self._of_other_classes(num, seed)
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

    def _of_other_classes(self, num: int, seed: int) -> Puzzles:
        """4x4 puzzles of classes that training does not see, which are those held out."""
        trained = set(puzzle_files.keys_of(self.puzzles("train")))
        made = self._generate(_TRIES * num, seed, None, progress=False)
        other = np.array([key not in trained for key in puzzle_files.keys_of(made)])
        if other.sum() < num:
            raise ValueError(
                f"{int(other.sum())} of {_TRIES * num} new 4x4 puzzles are of classes that "
                f"training does not see, {num} are wanted; ask for fewer, or raise num_test"
            )
        return made.select(np.flatnonzero(other)[:num])

    def _of_file(self, split: puzzle_files.Split) -> Puzzles:
        found = puzzle_files.of_file(
            self.path,
            f"sudoku{self.n}",
            split,
            test=self.test,
            num_train=self.num_train,
            num_valid=self.num_valid,
            num_test=self.num_test,
            seed=self.seed,
        )
        if found.grid != (self.n, self.n):
            rows, cols = found.grid
            raise ValueError(
                f"{self.path} holds {rows}x{cols} puzzles, the recipe is for {self.n}x{self.n}; "
                f"use that of sudoku{rows}"
            )
        return found

    def source(self) -> Source:
        from inward.data.puzzles.source import PuzzleSource

        return PuzzleSource(self.puzzles("train"), self.task(), seed=self.seed, augment=True)


@functools.lru_cache(maxsize=2)
def _by_class(data: SudokuData) -> dict[str, Puzzles]:
    """Training, validation and test sets that share no class of symmetric puzzles."""
    wanted = (data.num_test, data.num_valid, data.num_train)
    pool = data._generate(sum(wanted) * 3 // 2, 10 * data.seed, None, progress=False)
    rows = puzzle_files.hold_out(
        puzzle_files.keys_of(pool), num_test=wanted[0], num_valid=wanted[1], seed=data.seed
    )
    rows["train"] = puzzle_files.at_most(rows["train"], wanted[2], seed=data.seed)
    return {split: pool.select(index) for split, index in rows.items() if len(index)}


@dataclass(frozen=True)
class MazeData:
    """Mazes made on the fly, each seen once; `sizes` share a canvas, smaller ones anywhere on
    it."""

    sizes: tuple[int, ...] = (11,)
    canvas: int = 11
    braid: float = 0.0
    open_share: float = 0.0
    """share of mazes with rooms, loops, scattered walls and any number of rows and columns"""
    num_valid: int = 250
    num_test: int = 1000
    seed: int = 0

    def task(self) -> MazeTask:
        return MazeTask(self.canvas)

    def puzzles(self, split: str, size: int | None = None) -> Puzzles:
        """Held-out mazes of one size (default: the canvas), "test" or "valid"; those with open
        areas, in their share, behind the others."""
        num, side = getattr(self, f"num_{split}"), self.canvas if size is None else size
        num_open = round(num * self.open_share)
        seed = 10 * self.seed + _SPLIT_SEEDS[split]
        excluded = self.puzzles("test", size) if split == "valid" else None
        parts = []
        if num_open < num:
            more = {"seed": seed, "braid": self.braid, "exclude": excluded}
            parts.append(maze.generate(num - num_open, size=side, **more))
        if num_open:
            parts.append(maze_open.generate(num_open, size=side, seed=seed, exclude=excluded))
        return parts[0] if len(parts) == 1 else _joined(*parts)

    def source(self) -> Source:
        from inward.data.puzzles.source import MazeSource

        # mazes of other sizes cannot be copies of the held-out ones, which have the canvas' size
        held_out = _joined(self.puzzles("test"), self.puzzles("valid"))
        return MazeSource(
            self.sizes,
            seed=10 * self.seed + _SPLIT_SEEDS["train"],
            canvas=self.canvas,
            braid=self.braid,
            open_share=self.open_share,
            exclude=held_out,
        )


@dataclass(frozen=True)
class FolderData:
    """A dataset folder of the reference (train/ and test/ with all__inputs.npy and so on), or a
    file of puzzles as they are published (.csv), which training sees through fresh symmetries."""

    path: str = "data/sudoku-extreme-1k-aug-1000"
    """a folder, or a file: .csv (source, question, answer, rating), .npz, .txt (Sudoku lines)"""
    kind: str = "sudoku9"
    """"sudoku4", "sudoku6", "sudoku9", "maze" or "arc": what the tokens mean"""
    num_valid: int = 1000
    """puzzles looked at during training, drawn by the seed: of a folder's test set, which may cost
    more than the training; of a file held out of the training puzzles"""
    seed: int = 0
    test: str = ""
    """of a file: the file of test puzzles; empty: test.csv beside train.csv, or num_test held
    out"""
    num_train: int | None = None
    """of a file: train on so many of its puzzles, drawn by the seed; None: all"""
    num_test: int = 1000
    augment: bool = True
    """of a file: a fresh symmetry at every visit (a folder holds those that it was built with)"""

    def __post_init__(self) -> None:
        of_file = {"test": "", "num_train": None, "num_test": 1000, "augment": True}
        changed = [name for name, usual in of_file.items() if getattr(self, name) != usual]
        if changed and not self.is_file:
            raise ValueError(
                f"{', '.join(changed)} is for a file of puzzles, and {self.path} is a folder, "
                "which holds its sets and augmentations; leave it out, or name a .csv, .npz or .txt"
            )

    def task(self) -> Any:
        if self.kind.startswith("sudoku"):
            return SudokuTask(int(self.kind.removeprefix("sudoku")))
        if self.kind == "maze":
            return MazeTask(self._maze_grid())
        from inward.tasks.arc import ArcTask

        return ArcTask()

    def _maze_grid(self) -> tuple[int, int]:
        """That of the puzzles; before there are any, Maze-Hard's."""
        from inward.data.puzzles.folder import FolderInfo
        from inward.tasks.named import maze_grid

        info = Path(self.path) / "train" / "dataset.json"
        if self.is_file and Path(self.path).exists():
            return self._of_file("train").grid
        return (
            maze_grid(FolderInfo.load(info).seq_len, (30, 30), info) if info.exists() else (30, 30)
        )

    @property
    def is_file(self) -> bool:
        return puzzle_files.is_file(self.path)

    def notes(self) -> list[str]:
        """What a person who starts a training should know of its data."""
        if not self.is_file:
            return []
        sizes = {split: len(self._of_file(split)) for split in ("train", "valid", "test")}
        told = ", ".join(f"{split} {num}" for split, num in sizes.items())
        views = "fresh symmetries at every visit" if self.augment else "as they stand"
        tested = self.test or puzzle_files.test_beside(self.path) or "held out of it"
        return [f"{self.path}: {told}; training puzzles {views}, test puzzles {tested}"]

    def _of_file(self, split: puzzle_files.Split) -> Puzzles:
        if self.kind == "arc":
            raise ValueError(f"ARC is no file of puzzles like {self.path}; name a dataset folder")
        return puzzle_files.of_file(
            self.path,
            self.kind,
            split,
            test=self.test,
            num_train=self.num_train,
            num_valid=self.num_valid,
            num_test=self.num_test,
            seed=self.seed,
        )

    def puzzles(self, split: str) -> Puzzles:
        from inward.data.puzzles.folder import Folder

        if self.is_file:
            return self._of_file(cast("puzzle_files.Split", split))
        folder = Folder(self.path, "train" if split == "train" else "test")
        rows = None
        if split == "valid":
            rows = drawn(len(folder), min(self.num_valid, len(folder)), seed=self.seed)
        return folder.puzzles(self.task().grid, rows)

    def fit(self, model: TRMSettings) -> TRMSettings:
        """The model with the alphabet, length and table size that the folder's dataset.json
        names, or with those of the file's puzzles."""
        from inward.data.puzzles.folder import Folder

        if self.is_file:
            found = self._of_file("train")
            return replace(model, vocab_size=found.vocab_size, seq_len=found.inputs.shape[1])
        info = Folder(self.path, "train").info
        return replace(
            model,
            vocab_size=info.vocab_size,
            seq_len=info.seq_len,
            num_identifiers=info.num_puzzle_identifiers,
        )

    def source(self) -> Source:
        from inward.data.puzzles.folder import Folder, FolderSource
        from inward.data.puzzles.source import PuzzleSource

        if self.is_file:
            train, task = self._of_file("train"), self.task()
            return PuzzleSource(train, task, seed=self.seed, augment=self.augment)
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
