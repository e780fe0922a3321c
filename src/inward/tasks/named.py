"""Tasks by name, guessed from a puzzle, and puzzles read from text."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from inward.data.puzzles.puzzles import Puzzles
from inward.tasks.arc import ArcTask


def task_named(name: str, grid: tuple[int, int] | None = None) -> Any:
    """The task object: "sudoku4", "sudoku6", "sudoku9", "maze" (any `grid`), "maze15", "arc".

    Raises ValueError for another name, or a maze without a size.
    """
    from inward.tasks.maze import MazeTask
    from inward.tasks.sudoku import SudokuTask

    if name == "arc":
        return ArcTask()
    kind = name.rstrip("0123456789")
    size = int(name[len(kind) :] or 0)
    makers: dict[str, Callable[[], Any]] = {
        "sudoku": lambda: SudokuTask(size or (grid or (0, 0))[0]),
        "maze": lambda: MazeTask(size or grid or (0, 0)),
    }
    if kind not in makers:
        raise ValueError(f"there is no task {name!r}; tasks are sudoku4/6/9, maze<side>, arc")
    return makers[kind]()


def read_puzzles(path: str | os.PathLike, task: Any, *, num: int | None = None) -> Puzzles:
    """Puzzles of a file: .npz, .csv (published columns), .txt (Sudoku lines), or a dataset folder.

    Raises FileNotFoundError, or ValueError for a file that holds something else.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.is_dir():
        from inward.data.puzzles.folder import Folder

        puzzles = Folder(path, "test").puzzles(task.grid)
    elif path.suffix == ".npz":
        puzzles = Puzzles.load(path)
    elif path.suffix == ".csv" and task.name.startswith("maze"):
        from inward.data.puzzles.maze import read_csv

        puzzles = read_csv(path)
    elif path.suffix == ".csv":
        from inward.data.puzzles.sudoku import read_csv

        puzzles = read_csv(path, num=num)
    elif path.suffix == ".txt" and task.name.startswith("sudoku"):
        from inward.data.puzzles.sudoku import read_lines

        puzzles = read_lines(path, num=num)
    else:
        raise ValueError(
            f"cannot read puzzles from {path.name!r} for {task.name}; "
            "use .npz, .csv, .txt (Sudoku) or a dataset folder"
        )
    return first(puzzles, num)


def first(puzzles: Puzzles, num: int | None) -> Puzzles:
    """The first `num` puzzles; ValueError if there are not as many."""
    if num is None:
        return puzzles
    if not 1 <= num <= len(puzzles):
        raise ValueError(f"asked for {num} puzzles, there are {len(puzzles)}; choose 1 to that")
    return puzzles.select(slice(0, num))


def guess_task(path: str | os.PathLike) -> Any:
    """The task that the puzzles of a file seem to belong to, by their grid and alphabet.

    Raises FileNotFoundError, or ValueError where they tell too little.
    """
    path = Path(path)
    if path.suffix == ".txt":
        return task_named("sudoku9")
    if path.suffix == ".csv":
        with path.open(encoding="utf-8") as file:
            file.readline()
            return task_named("maze", (1, 2)) if "S" in file.readline() else task_named("sudoku9")
    if path.is_dir():
        from inward.data.puzzles.folder import Folder

        info = Folder(path, "test" if (path / "test").is_dir() else "train").info
        cells, vocab_size = info.seq_len, info.vocab_size
    else:
        puzzles = Puzzles.load(path)
        cells, vocab_size = puzzles.inputs.shape[1], puzzles.vocab_size
    known = {(16, 6): "sudoku4", (36, 8): "sudoku6", (81, 11): "sudoku9", (900, 12): "arc"}
    if (cells, vocab_size) in known:
        return task_named(known[cells, vocab_size])
    if vocab_size == 6:
        side = math.isqrt(cells)
        return task_named("maze", (side, side) if side * side == cells else (1, cells))
    raise ValueError(f"{path} holds {cells} cells of {vocab_size} tokens; say what with --task")


def puzzle_texts(text: str, task: Any) -> list[str]:
    """The puzzles of a text: one Sudoku a line, or paragraphs."""
    lines = text.splitlines()
    if task.name.startswith("sudoku"):
        filled = [line.split(",")[0].strip() for line in lines if line.strip()]
        if all(len(line) == task.grid[0] * task.grid[1] for line in filled):
            return filled
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return ["\n".join(block) for block in blocks if block]


def parse_puzzle(text: str, task: Any) -> tuple[Any, np.ndarray]:
    """A typed puzzle's tokens (L,), and its task: a maze has the size of its text.

    Raises ValueError as `task.parse` does.
    """
    if not task.name.startswith("maze"):
        return task, task.parse(text)
    lines = [line for line in text.splitlines() if line]
    grid = (len(lines), max(map(len, lines), default=0))
    side = math.isqrt(grid[1])
    if grid[0] == 1 and side * side == grid[1]:
        grid = (side, side)
    task = task_named("maze", grid)
    return task, task.parse(text)
