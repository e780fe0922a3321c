"""Mazes with open areas: rooms, loops, scattered walls, rectangles; several shortest paths.

A perfect maze (`maze.py`) has one path between any two rooms. Mazes as people draw them have wide
rooms, corridors that run in circles, and walls that stand about alone, and then several paths are
shortest. A label can hold one of them:

    the path from G back to S that at each step goes up if a shortest path does, else left, else
    right, else down                                                   (`maze.shortest_paths`)

A fixed choice, because "one of them" cannot be learned cell by cell, and all cells of all shortest
paths are no path. Whoever scores an answer asks the rules (`MazeTask.verify`): any shortest path is
right.

Three kinds, drawn by `one`:

    rooms       a perfect maze of which rectangles are cleared, loops opened
    scattered   each cell a wall with one probability, 0.1 to 0.45
    halls       rectangular rooms beside each other, with doors in the walls between

Each is rows x cols cells, 5 or more, on a canvas of walls at any offset; with a border of walls, or
open to the edge.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from inward.data.puzzles.maze import (
    FREE,
    GOAL,
    MAX_ATTEMPTS,
    MIN_SIZE,
    PATH,
    START,
    VOCAB_SIZE,
    WALL,
    _carve,
    _key,
    _search,
    maze_keys,
    shortest_paths,
)
from inward.data.puzzles.puzzles import Puzzles

_GOALS = 6
"""Goals at most of which the farthest is taken"""


def generate(
    num: int,
    *,
    size: int,
    seed: int,
    kinds: tuple[str, ...] = ("rooms", "scattered", "halls"),
    square: bool = False,
    exclude: Puzzles | None = None,
) -> Puzzles:
    """Make `num` open mazes on a canvas of size x size; `rating` holds the path lengths.

    Args:
        size: side of the canvas; a maze has 5 to `size` rows and columns.
        kinds: of `KINDS`, equally often.
        square: all mazes fill the canvas.
        exclude: mazes that are left out, with their turned, mirrored and moved copies.

    Raises:
        ValueError: a number or a kind that cannot be.
    """
    if num < 1:
        raise ValueError(f"cannot generate {num} mazes; ask for at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; choose 0 or more")
    check_open(size, kinds)
    rng = np.random.default_rng(seed)
    excluded = maze_keys(exclude) if exclude is not None else frozenset()
    inputs, labels = np.empty((2, num, size * size), dtype=np.uint8)
    for row in range(num):
        inputs[row], labels[row] = one(rng, size, kinds=kinds, square=square, excluded=excluded)
    rating = ((labels == PATH).sum(axis=1) + 1).astype(np.int32)
    return Puzzles(inputs, labels, (size, size), VOCAB_SIZE, rating=rating)


def check_open(size: int, kinds: tuple[str, ...]) -> None:
    """Raise ValueError for settings that no open maze can meet."""
    if size < MIN_SIZE:
        raise ValueError(f"size is {size}; an open maze has at least {MIN_SIZE} rows and columns")
    if not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"kinds are {list(kinds)}; choose some of {list(KINDS)}")


def one(
    rng: np.random.Generator,
    canvas: int,
    *,
    kinds: tuple[str, ...] = ("rooms", "scattered", "halls"),
    square: bool = False,
    excluded: Collection[bytes] = frozenset(),
) -> tuple[np.ndarray, np.ndarray]:
    """Make one open maze: inputs and labels, each (canvas * canvas,) uint8; see `generate`.

    Raises ValueError if MAX_ATTEMPTS grids held no maze that is not excluded.
    """
    for _ in range(MAX_ATTEMPTS):
        rows, cols = (canvas, canvas) if square else rng.integers(MIN_SIZE, canvas + 1, 2).tolist()
        make = KINDS[kinds[rng.integers(len(kinds))]]
        grid = make(rng, rows, cols)
        # now and then open to the edge, as in the scattered walls of the published mazes
        if rng.random() < 0.7:
            grid[[0, -1]] = grid[:, [0, -1]] = WALL
        if not _place_ends(rng, grid) or (excluded and _key(grid) in excluded):
            continue
        placed = np.full((canvas, canvas), WALL, dtype=np.uint8)
        top, left = (int(rng.integers(canvas - n + 1)) for n in (rows, cols))
        placed[top : top + rows, left : left + cols] = grid
        label = placed.reshape(-1).copy()
        label[shortest_paths(placed).path[1:-1]] = PATH
        return placed.reshape(-1), label
    raise ValueError(f"no open maze of {list(kinds)} on {canvas}x{canvas} cells is left to make")


def _place_ends(rng: np.random.Generator, grid: np.ndarray) -> bool:
    """Put S and G where one reaches the other; of a few goals the one farthest away, so that not
    most paths are short. False: there is no place."""
    free = np.flatnonzero(grid == FREE)
    if len(free) < 2:
        return False
    start = int(free[rng.integers(len(free))])
    framed = np.pad(grid, 1, constant_values=WALL)
    width = framed.shape[1]
    row, col = divmod(start, grid.shape[1])
    distance, _ = _search(framed.reshape(-1).tolist(), width, (row + 1) * width + col + 1)
    away = np.array(distance).reshape(framed.shape)[1:-1, 1:-1].reshape(-1)
    goals = np.flatnonzero(away > 1)  # neighbours have no path to mark
    if not len(goals):
        return False
    tried = goals[rng.integers(len(goals), size=int(rng.integers(1, _GOALS + 1)))]
    grid.reshape(-1)[start] = START
    grid.reshape(-1)[tried[away[tried].argmax()]] = GOAL
    return True


def _rooms(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """A perfect maze with cleared rectangles and opened walls."""
    side = max(rows, cols) // 2 * 2 + 1
    carved = np.array(_carve(rng, max(side, MIN_SIZE)), dtype=np.uint8)
    grid = carved.reshape(max(side, MIN_SIZE), -1)[:rows, :cols].copy()
    for _ in range(int(rng.integers(0, 4))):
        height, width = rng.integers(2, 6, 2)
        top, left = rng.integers(0, rows), rng.integers(0, cols)
        grid[top : top + height, left : left + width] = FREE
    grid[(grid == WALL) & (rng.random(grid.shape) < rng.random() * 0.2)] = FREE
    return grid


def _scattered(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Walls that stand anywhere."""
    share = rng.uniform(0.1, 0.45)
    return np.where(rng.random((rows, cols)) < share, WALL, FREE).astype(np.uint8)


def _halls(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Rectangular rooms: a space is parted by a wall with a door or two, and so are its parts."""
    grid = np.full((rows, cols), FREE, dtype=np.uint8)
    spaces = [(0, rows, 0, cols)]
    while spaces:
        top, bottom, left, right = spaces.pop()
        height, width = bottom - top, right - left
        if max(height, width) < 5 or rng.random() < 0.15:
            continue
        if height >= width:
            at = int(rng.integers(top + 2, bottom - 2))
            grid[at, left:right] = WALL
            grid[at, rng.integers(left, right, int(rng.integers(1, 3)))] = FREE
            spaces += [(top, at, left, right), (at + 1, bottom, left, right)]
        else:
            at = int(rng.integers(left + 2, right - 2))
            grid[top:bottom, at] = WALL
            grid[rng.integers(top, bottom, int(rng.integers(1, 3))), at] = FREE
            spaces += [(top, bottom, left, at), (top, bottom, at + 1, right)]
    return grid


KINDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "rooms": _rooms,
    "scattered": _scattered,
    "halls": _halls,
}
"""What an open maze may look like"""
