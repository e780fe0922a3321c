"""Tasks by name, guessed from a puzzle, and puzzles read from text."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from inward.data.drawn import drawn
from inward.data.puzzles.puzzles import Puzzles
from inward.tasks.arc import ArcTask


def task_named(name: str, grid: tuple[int, int] | None = None) -> Any:
    """The task object: "sudoku4", "sudoku6", "sudoku9", "maze" (any `grid`), "maze15", "maze15x20",
    "arc".

    Raises ValueError for another name, or a maze without a size.
    """
    from inward.tasks.maze import MazeTask
    from inward.tasks.sudoku import SudokuTask

    found = _NAMED.fullmatch(name)
    if found is None or (found["cols"] and found["kind"] != "maze"):
        raise ValueError(f"there is no task {name!r}; tasks are sudoku4/6/9, maze<side>, arc")
    kind, rows, cols = found["kind"], found["rows"], found["cols"]
    if kind == "arc":
        return ArcTask()
    if kind == "sudoku":
        return SudokuTask(int(rows or (grid or (0, 0))[0]))
    if rows:
        return MazeTask((int(rows), int(cols or rows)))
    return MazeTask(grid or (0, 0))


ANY_GRID = (1, 2)
"""For a maze task whose size the puzzles will tell: the smallest that there is."""

_NAMED = re.compile(r"(?P<kind>arc|sudoku|maze)(?P<rows>\d+)?(x(?P<cols>\d+))?")


def read_puzzles(
    path: str | os.PathLike, task: Any, *, num: int | None = None, seed: int = 0
) -> Puzzles:
    """Puzzles of a file: .npz, .csv (published columns), .txt (Sudoku lines), or a dataset folder
    (its test split).

    task: says what the tokens mean. Mazes may have any size, whatever the task's grid.
    num: so many of them, drawn by `seed`; None: all.
    Raises FileNotFoundError, or ValueError for a file that holds something else.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    puzzles = _read(path, task)
    return puzzles if num is None else part(puzzles, num, seed=seed)


def _read(path: Path, task: Any) -> Puzzles:
    is_maze = task.name.startswith("maze")
    if path.is_dir():
        from inward.data.puzzles.folder import Folder

        folder = Folder(path, "test")
        cells = folder.info.seq_len
        return folder.puzzles(maze_grid(cells, task.grid, path) if is_maze else task.grid)
    if path.suffix == ".npz":
        return Puzzles.load(path)
    if path.suffix == ".csv" and is_maze:
        from inward.data.puzzles.maze import read_csv

        return read_csv(path)
    if path.suffix == ".csv" and task.name.startswith("sudoku"):
        from inward.data.puzzles.sudoku import read_csv

        return read_csv(path)
    if path.suffix == ".txt" and task.name.startswith("sudoku"):
        from inward.data.puzzles.sudoku import read_lines

        return read_lines(path)
    raise ValueError(
        f"cannot read puzzles from {path.name!r} for {task.name}; "
        "use .npz, .csv (Sudoku, mazes), .txt (Sudoku) or a dataset folder"
    )


def maze_grid(cells: int, grid: tuple[int, int], source: object) -> tuple[int, int]:
    """Rows and columns of mazes whose file tells only the number of cells: `grid` if it has as
    many, else a square.

    Raises ValueError where they form no square.
    """
    side = math.isqrt(cells)
    if grid[0] * grid[1] != cells and side * side != cells:
        raise ValueError(
            f"{source} holds mazes of {cells} cells, which form no square; name their size, as in "
            "--task maze20x30"
        )
    return grid if grid[0] * grid[1] == cells else (side, side)


def part(puzzles: Puzzles, num: int | None, *, seed: int = 0) -> Puzzles:
    """`num` of the puzzles, drawn by `seed`, in their order; None: all.

    Raises ValueError if there are not as many.
    """
    return puzzles if num is None else puzzles.select(drawn(len(puzzles), num, seed=seed))


def guess_task(path: str | os.PathLike) -> Any:
    """The task that the puzzles of a file seem to belong to, by their grid and alphabet.

    Raises FileNotFoundError, or ValueError where they tell too little.
    """
    path = Path(path)
    if path.suffix in (".txt", ".csv"):
        return _guess_text(path)
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


def _guess_text(path: Path) -> Any:
    """The task of a text's first question: that of a CSV stands in its column, since a source may
    have any name. The readers find what else is wrong, and say where."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        if path.suffix == ".csv":
            question = _first_question(path, file)
        else:
            lines = (line.partition("#")[0].strip() for line in file)
            question = next((line for line in lines if line), "")
    if path.suffix == ".csv" and "S" in question and set(question) <= set("# SGo"):
        return task_named("maze", ANY_GRID)
    side = math.isqrt(len(question.strip()))
    return task_named(f"sudoku{side}" if side in (4, 6) else "sudoku9")


def _first_question(path: Path, file: Iterable[str]) -> str:
    rows = csv.reader(file)
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        column = names.index("question") if "question" in names else 1
        return next((row[column] for row in rows if len(row) > column), "")
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num} is no CSV row: {error}") from error


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
