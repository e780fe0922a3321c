"""Mazes with exactly one shortest path, made on the fly, and the published maze file format.

A maze of odd size n has rooms at odd (row, column), walls between them and a border of walls.
Depth-first search carves a spanning tree over the rooms, so exactly one path joins any two: the
answer is unique by construction. `braid` then opens some of the remaining walls, which makes
loops; a goal is drawn only from the rooms that one single shortest path reaches, so that
"solved" can be checked by rule and by comparison with the label alike.

Path length counts moves: S and G next to each other are 1 apart, and a label marks length - 1
cells with 'o'. Rooms are two cells apart, so lengths here are even.

Everything is plain lists of ints: one 11x11 maze takes about 0.1 ms, so training needs no data set
on disk. A smaller maze can stand on a larger canvas of walls at any offset, which puts several
sizes into one batch shape.

Maze-Hard (Hierarchical Reasoning Model, arXiv 2506.21734; 30x30, shortest path above 110) is read
and written by `read_csv` and `write_csv`. `generate_hard` makes mazes of that format: 30 is even,
so a 29x29 maze stands on a 30x30 canvas, where the extra row of walls is first or last at random,
and so is the extra column. They are not drawn from the distribution of the published set (whose
walls are scattered at random, after Lehnert et al., arXiv 2402.14083): results on them are not
results on Maze-Hard.
"""

import csv
import os
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inward.common.files import replacing
from inward.data.puzzles.dihedral import NUM_MAPS, turn
from inward.data.puzzles.puzzles import PAD, Puzzles

WALL, FREE, START, GOAL, PATH = 1, 2, 3, 4, 5
VOCAB_SIZE = 6
CHARACTERS = "# SGo"
CSV_COLUMNS = ["source", "question", "answer", "rating"]

MIN_SIZE = 5
HARD_CANVAS = 30
HARD_MIN_PATH = 111  # "above 110"
MAX_ATTEMPTS = 1000
MAX_RATING = 2**31 - 1  # ratings are kept as int32
_STARTS_PER_MAZE = 4

_TOKENS = {character: token for token, character in enumerate(CHARACTERS, start=1)}


class ShortestPaths(NamedTuple):
    """What `shortest_paths` finds."""

    length: int  # moves from S to G; -1 if G cannot be reached
    num_shortest: int  # how many different paths have that length; 0 if none
    path: list[int]  # cells of one of them, flat row-major, from S to G


def generate(
    num: int,
    *,
    size: int,
    seed: int,
    braid: float = 0.0,
    min_path: int = 1,
    canvas: int | None = None,
    offset: tuple[int, int] | None = None,
    exclude: Puzzles | None = None,
) -> Puzzles:
    """Make `num` mazes; `rating` holds the path lengths. The arguments are those of `one`.

    The first k mazes of a longer set with the same settings are the set of k. Mazes of `exclude`,
    turned or mirrored, are left out (a held-out set then is one).
    """
    if num < 1:
        raise ValueError(f"cannot generate {num} mazes; ask for at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; choose 0 or more")
    check_settings(size, braid=braid, min_path=min_path, canvas=canvas)
    rng = np.random.default_rng(seed)
    side = canvas or size
    inputs, labels = np.empty((2, num, side * side), dtype=np.uint8)
    excluded = maze_keys(exclude) if exclude is not None else frozenset()
    for row in range(num):
        inputs[row], labels[row] = one(
            rng,
            size,
            braid=braid,
            min_path=min_path,
            canvas=canvas,
            offset=offset,
            excluded=excluded,
        )
    rating = ((labels == PATH).sum(axis=1) + 1).astype(np.int32)
    return Puzzles(inputs, labels, (side, side), VOCAB_SIZE, rating=rating)


def generate_hard(num: int, *, seed: int, braid: float = 0.0) -> Puzzles:
    """Make `num` mazes in the format of Maze-Hard: 30x30, shortest path above 110, unique."""
    return generate(
        num,
        size=HARD_CANVAS - 1,
        seed=seed,
        braid=braid,
        min_path=HARD_MIN_PATH,
        canvas=HARD_CANVAS,
    )


def one(
    rng: np.random.Generator,
    size: int,
    *,
    braid: float = 0.0,
    min_path: int = 1,
    canvas: int | None = None,
    offset: tuple[int, int] | None = None,
    excluded: Collection[bytes] = frozenset(),
) -> tuple[np.ndarray, np.ndarray]:
    """Make one maze: inputs and labels, each (canvas * canvas,) uint8.

    size      odd, at least 5: the side of the square maze with its border
    braid     0 to 1: fraction of the walls left between rooms that is opened
    min_path  shortest path in moves; S is a random room, G a random one at least this far away
    canvas    side of the square of walls the maze stands on (default: size)
    offset    (row, column) of the maze on the canvas; None draws it
    excluded  keys (see `maze_keys`) of mazes not to return

    Raises ValueError for settings outside these limits, or if MAX_ATTEMPTS mazes held no such path.
    """
    check_settings(size, braid=braid, min_path=min_path, canvas=canvas)
    longest = 0
    for _ in range(MAX_ATTEMPTS):
        grid = _carve(rng, size)
        if braid:
            _braid(rng, grid, size, braid)
        path, reached = _choose_path(rng, grid, size, min_path)
        longest = max(longest, reached)
        if path:
            inputs, labels = _mark(grid, path, size)
            if not excluded or _key(inputs) not in excluded:
                return _place(inputs, labels, canvas or size, offset, rng)
    raise ValueError(
        f"no {size}x{size} maze with a unique shortest path of {min_path} moves or more (and not "
        f"excluded) in {MAX_ATTEMPTS} attempts; the longest seen had {longest}: "
        f"lower min_path or braid, or raise size"
    )


def check_settings(size: int, *, braid: float, min_path: int, canvas: int | None) -> None:
    """Raise ValueError for settings that no maze can meet."""
    if size < MIN_SIZE or size % 2 == 0:
        raise ValueError(
            f"maze size is {size}; rooms lie at odd coordinates, so it must be odd and at least "
            f"{MIN_SIZE} (for an even square put a maze of {max(size - 1, MIN_SIZE)} on a canvas)"
        )
    if not 0.0 <= braid <= 1.0:
        raise ValueError(f"braid is {braid}; it is a fraction of walls, choose 0 to 1")
    limit = 2 * ((size // 2) ** 2 - 1)
    if not 1 <= min_path <= limit:
        raise ValueError(
            f"min_path is {min_path}; the longest path of a {size}x{size} maze has {limit} moves: "
            "choose 1 to that, or raise size"
        )
    if canvas is not None and canvas < size:
        raise ValueError(f"canvas is {canvas}, smaller than the maze ({size}); raise it")


@lru_cache(maxsize=64)
def _doors(size: int) -> tuple[tuple[int, ...], tuple[tuple[tuple[int, int], ...], ...]]:
    """Flat indices of all rooms; and for every cell the (wall between, room beyond) pairs."""
    sides = range(1, size, 2)
    rooms = tuple(row * size + col for row in sides for col in sides)
    doors: list[tuple[tuple[int, int], ...]] = [()] * (size * size)
    for room in rooms:
        row, col = divmod(room, size)
        steps = [
            (-size, row > 1),
            (size, row < size - 2),
            (-1, col > 1),
            (1, col < size - 2),
        ]
        doors[room] = tuple((room + step, room + 2 * step) for step, inside in steps if inside)
    return rooms, tuple(doors)


def _carve(rng: np.random.Generator, size: int) -> list[int]:
    """Carve a spanning tree over the rooms by depth-first search: long, winding corridors."""
    rooms, doors = _doors(size)
    grid = [WALL] * (size * size)
    draws = iter(rng.random(len(rooms)).tolist())  # one draw a room: 10x cheaper than one by one
    room = rooms[int(next(draws) * len(rooms))]
    grid[room] = FREE
    stack = [room]
    while stack:
        unvisited = [door for door in doors[stack[-1]] if grid[door[1]] == WALL]
        if not unvisited:
            stack.pop()
            continue
        wall, room = unvisited[int(next(draws) * len(unvisited))]
        grid[wall] = grid[room] = FREE
        stack.append(room)
    return grid


def _braid(rng: np.random.Generator, grid: list[int], size: int, braid: float) -> None:
    """Open a fraction of the walls that still part two rooms, in place."""
    rooms, doors = _doors(size)
    walls = sorted({w for room in rooms for w, _ in doors[room] if grid[w] == WALL})
    num_opened = int(braid * len(walls) + rng.random())  # right on average for small mazes too
    for index in rng.permutation(len(walls))[:num_opened].tolist():
        grid[walls[index]] = FREE


def _choose_path(
    rng: np.random.Generator, grid: list[int], size: int, min_path: int
) -> tuple[list[int], int]:
    """Draw S and G; return the only shortest path, or [], and the longest distance seen."""
    rooms, _ = _doors(size)
    longest = 0
    for _ in range(_STARTS_PER_MAZE):
        distance, count = _search(grid, size, rooms[rng.integers(len(rooms))])
        longest = max(longest, max(distance))
        goals = [room for room in rooms if distance[room] >= min_path and count[room] == 1]
        if goals:
            return _walk_back(distance, size, goals[rng.integers(len(goals))]), longest
    return [], longest


def _search(grid: list[int], width: int, start: int) -> tuple[list[int], list[int]]:
    """Breadth first: moves from `start` to every cell (-1: none) and the number of shortest paths.

    The grid is flat and bordered by walls, so that no step can leave it.
    """
    distance = [-1] * len(grid)
    count = [0] * len(grid)
    distance[start], count[start] = 0, 1
    frontier = [start]
    moves = 0
    while frontier:
        moves += 1
        reached = []
        for cell in frontier:
            ways = count[cell]
            for beside in (cell - width, cell - 1, cell + 1, cell + width):
                if grid[beside] == WALL:
                    continue
                if distance[beside] < 0:
                    distance[beside] = moves
                    count[beside] = ways
                    reached.append(beside)
                elif distance[beside] == moves:
                    count[beside] += ways
        frontier = reached
    return distance, count


def _walk_back(distance: list[int], width: int, goal: int) -> list[int]:
    """Follow falling distances from the goal; return the path from the start."""
    path = [goal]
    for moves in range(distance[goal] - 1, -1, -1):
        cell = path[-1]
        beside = (cell - width, cell - 1, cell + 1, cell + width)
        path.append(next(b for b in beside if distance[b] == moves))
    return path[::-1]


def _mark(grid: list[int], path: list[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    inputs = np.array(grid, dtype=np.uint8)
    inputs[path[0]], inputs[path[-1]] = START, GOAL
    labels = inputs.copy()
    labels[path[1:-1]] = PATH
    return inputs.reshape(size, size), labels.reshape(size, size)


def _place(
    inputs: np.ndarray,
    labels: np.ndarray,
    canvas: int,
    offset: tuple[int, int] | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Put the maze on a canvas of walls; return flat rows."""
    size = len(inputs)
    slack = canvas - size
    if offset is None:
        row, col = rng.integers(slack + 1, size=2).tolist() if slack else (0, 0)
    else:
        row, col = offset
    if not (0 <= row <= slack and 0 <= col <= slack):
        raise ValueError(
            f"offset {offset} puts a {size}x{size} maze outside the {canvas}x{canvas} canvas; "
            f"choose 0 to {slack}, or raise canvas"
        )
    placed = np.full((2, canvas, canvas), WALL, dtype=np.uint8)
    placed[0, row : row + size, col : col + size] = inputs
    placed[1, row : row + size, col : col + size] = labels
    return placed[0].reshape(-1), placed[1].reshape(-1)


def shortest_paths(grid: np.ndarray) -> ShortestPaths:
    """Find the shortest paths from S to G in tokens (rows, cols); PAD counts as wall.

    Any grid will do, with or without a border of walls. Path cells are flat indices into it.
    Raises ValueError unless there is exactly one S and one G.
    """
    start, goal = find_ends(grid)
    rows, cols = grid.shape
    walls = np.full((rows + 2, cols + 2), WALL, dtype=np.uint8)
    walls[1:-1, 1:-1] = np.where(grid == PAD, WALL, grid)
    width = cols + 2

    def bordered(cell: int) -> int:
        return (cell // cols + 1) * width + cell % cols + 1

    distance, count = _search(walls.reshape(-1).tolist(), width, bordered(start))
    goal = bordered(goal)
    if distance[goal] < 0:
        return ShortestPaths(-1, 0, [])
    path = [(c // width - 1) * cols + c % width - 1 for c in _walk_back(distance, width, goal)]
    return ShortestPaths(distance[goal], count[goal], path)


def find_ends(grid: np.ndarray) -> tuple[int, int]:
    """Return the flat cells of S and G; ValueError unless there is exactly one of each."""
    ends = [np.flatnonzero(grid == token) for token in (START, GOAL)]
    if [len(cells) for cells in ends] != [1, 1]:
        raise ValueError(
            f"the maze has {len(ends[0])} starts 'S' and {len(ends[1])} goals 'G'; "
            "it needs exactly one of each"
        )
    return int(ends[0][0]), int(ends[1][0])


def maze_keys(puzzles: Puzzles) -> frozenset[bytes]:
    """Names of the mazes in a set and of their turned and mirrored copies, wherever they stand."""
    if not (puzzles.inputs == START).any(axis=1).all():
        raise ValueError("these puzzles are no mazes: some have no start 'S'; pass a set of mazes")
    squares = puzzles.inputs.reshape(-1, *puzzles.grid)
    return frozenset(_key(turn(square, i)) for square in squares for i in range(NUM_MAPS))


def class_keys(puzzles: Puzzles) -> list[bytes]:
    """For each maze a name that exactly its turned, mirrored and moved copies share."""
    squares = puzzles.inputs.reshape(-1, *puzzles.grid)
    return [min(_key(turn(square, i)) for i in range(NUM_MAPS)) for square in squares]


def _key(square: np.ndarray) -> bytes:
    """Bytes of the part that holds open cells, with its width: the canvas does not matter."""
    open_cells = square > WALL
    rows = np.flatnonzero(open_cells.any(axis=1))
    cols = np.flatnonzero(open_cells.any(axis=0))
    part = square[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    return part.shape[1].to_bytes(4, "big") + part.tobytes()


def encode(text: str) -> np.ndarray:
    """Turn characters '# SGo' into tokens (len(text),) uint8; ValueError names a foreign one."""
    foreign = sorted(set(text) - set(CHARACTERS))
    if foreign:
        raise ValueError(
            f"a maze cannot hold {''.join(foreign[:5])!r}; use '#' wall, ' ' free, "
            "'S' start, 'G' goal, 'o' path"
        )
    return np.array([_TOKENS[character] for character in text], dtype=np.uint8)


def decode(tokens: np.ndarray) -> str:
    """Turn tokens (L,) into characters '# SGo'; ValueError for PAD or a token above 5."""
    values = np.asarray(tokens).reshape(-1)
    if values.size and not (values.min() > PAD and values.max() < VOCAB_SIZE):
        raise ValueError(
            f"tokens range from {values.min()} to {values.max()}; a maze has 1 to {VOCAB_SIZE - 1}"
        )
    return "".join(CHARACTERS[token - 1] for token in values.tolist())


def read_csv(path: str | os.PathLike) -> Puzzles:
    """Read mazes from the published CSV (columns source, question, answer, rating).

    A question is a square of characters '# SG' written row by row, its answer the same with the
    path marked 'o'. Raises FileNotFoundError, or ValueError naming the line for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no maze file at {path}")
    inputs, labels, rating = [], [], []
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = csv.reader(file)
        try:
            header = next(lines, [])
            if header != CSV_COLUMNS:
                raise ValueError(f"columns are {header}; a maze file has {CSV_COLUMNS}")
            for fields in lines:
                question, answer, moves = _read_fields(fields, inputs[0] if inputs else None)
                inputs.append(question)
                labels.append(answer)
                rating.append(moves)
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {lines.line_num}: {error}") from error
    if not inputs:
        raise ValueError(f"{path} holds no mazes, only a header; give at least one line")
    side = int(len(inputs[0]) ** 0.5)
    columns = np.stack(inputs), np.stack(labels)
    return Puzzles(*columns, (side, side), VOCAB_SIZE, rating=np.array(rating, dtype=np.int32))


def _read_fields(fields: list[str], first: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Check and encode one line; `first` is the first question of the file, for its length."""
    if len(fields) != len(CSV_COLUMNS):
        raise ValueError(f"{len(fields)} fields instead of {len(CSV_COLUMNS)}")
    _, question, answer, moves = fields
    num_cells = len(question) if first is None else len(first)
    if int(num_cells**0.5) ** 2 != num_cells or num_cells == 0:
        raise ValueError(f"the question has {num_cells} characters, which is no square")
    if len(question) != num_cells or len(answer) != num_cells:
        raise ValueError(
            f"question and answer have {len(question)} and {len(answer)} characters "
            f"instead of {num_cells}; is the file truncated?"
        )
    inputs, labels = encode(question), encode(answer)
    find_ends(inputs)
    if (inputs == PATH).any():
        raise ValueError("the question already holds path cells 'o'")
    if not np.array_equal(np.where(labels == PATH, FREE, labels), inputs):
        raise ValueError("the answer differs from the question in more than path cells 'o'")
    if not moves.isdecimal() or int(moves) > MAX_RATING:
        raise ValueError(f"the rating is {moves!r}; it must be a whole number to {MAX_RATING}")
    return inputs, labels, int(moves)


def write_csv(puzzles: Puzzles, path: str | os.PathLike, *, source: str = "inward") -> Path:
    """Write square mazes in the published CSV format (temporary name, then rename).

    Ratings that the set does not have are written as path lengths.
    """
    rows, cols = puzzles.grid
    if rows != cols:
        raise ValueError(f"the grid is {rows}x{cols}; the CSV format knows only squares")
    lengths = (puzzles.labels == PATH).sum(axis=1) + 1
    rating = lengths if puzzles.rating is None else puzzles.rating
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(CSV_COLUMNS)
        for inputs, labels, moves in zip(puzzles.inputs, puzzles.labels, rating, strict=True):
            lines.writerow([source, decode(inputs), decode(labels), int(moves)])
    return Path(path)
