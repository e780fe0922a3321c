"""The maze benchmark: text to tokens and back, symmetries, and a check by the rules.

`verify` asks what the rules ask, not what the label says: walls, S and G are untouched, the cells
marked 'o' form one path from S to G, nothing else is marked, and no path is shorter. Where several
shortest paths exist each of them counts; on the published Maze-Hard set, which does not promise a
unique one, this can therefore score above equality with the stored answer (report which is used).
"""

from itertools import count

import numpy as np

from inward.data.puzzles.dihedral import Dihedral, keeping_shape
from inward.data.puzzles.maze import (
    FREE,
    GOAL,
    PATH,
    START,
    VOCAB_SIZE,
    WALL,
    encode,
    shortest_paths,
)
from inward.data.puzzles.puzzles import PAD, Identity, Symmetry

_SHOWN = np.array(list(".# SGo!"))  # token PAD is '.'; '!' marks a broken wall, S or G
_BROKEN = 6


class MazeTask:
    """Mazes on a grid of `grid` = side, or (rows, cols), cells.

    Tokens: PAD 0 (outside, never checked), '#' 1, ' ' 2, 'S' 3, 'G' 4, 'o' 5.
    """

    name = "maze"
    vocab_size = VOCAB_SIZE
    blank = FREE  # the input token of cells that an answer may change
    several_right = True  # each shortest path: the rules say what is right, not a label

    def __init__(self, grid: int | tuple[int, int]) -> None:
        rows, cols = (grid, grid) if isinstance(grid, int) else grid
        if min(rows, cols) < 1 or rows * cols < 2:
            raise ValueError(f"a {rows}x{cols} grid has no room for S and G; give at least 2 cells")
        self.grid = (int(rows), int(cols))

    @property
    def num_cells(self) -> int:
        """L, the cells of the grid."""
        return self.grid[0] * self.grid[1]

    def parse(self, text: str) -> np.ndarray:
        """Read an unsolved maze into tokens (L,) uint8.

        `text` holds characters '# SG': one line a row, or all rows in one line. Spaces count.
        Raises ValueError for a wrong size, another character, other than one S and one G, path
        cells 'o', or a goal that cannot be reached.
        """
        tokens = encode(self._joined(text))
        if (tokens == PATH).any():
            raise ValueError("the maze already holds path cells 'o'; give the unsolved maze")
        if shortest_paths(tokens.reshape(self.grid)).num_shortest == 0:
            raise ValueError("the goal 'G' cannot be reached from the start 'S'; open a wall")
        return tokens

    def _joined(self, text: str) -> str:
        rows, cols = self.grid
        lines = [line for line in text.splitlines() if line]
        if len(lines) == 1 and len(lines[0]) == rows * cols:
            return lines[0]
        lengths = sorted({len(line) for line in lines})
        if len(lines) != rows or lengths != [cols]:
            raise ValueError(
                f"the maze has {len(lines)} lines of {lengths or [0]} characters; a {rows}x{cols} "
                f"maze needs {rows} lines of {cols} (spaces at the end of a line count)"
            )
        return "".join(lines)

    def format(self, tokens: np.ndarray, *, given: np.ndarray | None = None) -> str:
        """Show tokens (L,) as one line a row; '!' where walls, S or G of `given` were changed."""
        shown = self._cells(tokens, "tokens", ndim=1)
        if given is not None:
            given = self._cells(given, "given", ndim=1)
            shown = np.where((given > PAD) & (given != FREE) & (shown != given), _BROKEN, shown)
        return "\n".join("".join(row) for row in _SHOWN[shown].reshape(self.grid))

    def verify(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Check answers (B, L) to mazes (B, L) by the rules; return (B,) bool.

        Raises ValueError for shapes that do not fit, or a maze without exactly one S and one G.
        """
        inputs = self._cells(inputs, "inputs", ndim=2)
        answers = self._cells(answers, "answers", ndim=2)
        if len(inputs) != len(answers):
            raise ValueError(f"{len(inputs)} mazes but {len(answers)} answers; give one for each")
        if not ((inputs == START).sum(1) == 1).all() or not ((inputs == GOAL).sum(1) == 1).all():
            raise ValueError("a maze without exactly one 'S' and one 'G' cannot be checked")
        marked = (inputs == FREE) & (answers == PATH)
        legal = marked | (answers == inputs) | (inputs == PAD)
        solved = legal.all(axis=1)
        ends = (inputs == START) | (inputs == GOAL)
        best = self._lengths(inputs[solved], inputs[solved] > WALL)
        drawn = self._lengths(inputs[solved], (marked | ends)[solved])
        # `drawn` moves use drawn - 1 marked cells: if there are no more, all are on the path.
        is_path = marked[solved].sum(axis=1) == drawn - 1
        solved[solved] = is_path & (drawn == best)
        return solved

    def fault(self, tokens: np.ndarray) -> str | None:
        """What is unusual about the maze (L,) itself: "no solution" where there is no way from S to
        G, "several solutions" where more than one path is shortest (each is right), or None."""
        num = shortest_paths(np.asarray(tokens).reshape(self.grid)).num_shortest
        return None if num == 1 else "no solution" if num == 0 else "several solutions"

    def symmetry(self, rng: np.random.Generator) -> Symmetry:
        """Draw one of the turns and mirrors that keep the grid's shape (eight for a square)."""
        maps = keeping_shape(self.grid)
        return Dihedral(self.grid, maps[rng.integers(len(maps))])

    def identity(self) -> Symmetry:
        """Return the symmetry that changes nothing."""
        return Identity()

    def _cells(self, tokens: np.ndarray, name: str, *, ndim: int) -> np.ndarray:
        tokens = np.asarray(tokens)
        if tokens.ndim != ndim or tokens.shape[-1] != self.num_cells:
            wanted = f"({'B, ' if ndim == 2 else ''}{self.num_cells})"
            raise ValueError(f"{name} has shape {tokens.shape}; this grid needs {wanted}")
        if tokens.size and not (tokens.min() >= PAD and tokens.max() < VOCAB_SIZE):
            raise ValueError(
                f"{name} holds tokens {tokens.min()} to {tokens.max()}; "
                f"a maze has {PAD} to {VOCAB_SIZE - 1}"
            )
        return tokens

    def _lengths(self, inputs: np.ndarray, is_open: np.ndarray) -> np.ndarray:
        """Moves from S to G over open cells, for all rows at once; -1 where there is no way.

        One wave a move floods every maze of the batch. A closed frame around each maze stops the
        flat shifts from leaking into the next row.
        """
        rows, cols = self.grid
        width = cols + 2
        framed = np.zeros((len(inputs), rows + 2, width), dtype=bool)
        framed[:, 1:-1, 1:-1] = is_open.reshape(-1, rows, cols)
        framed = framed.reshape(len(inputs), (rows + 2) * width)
        start, goal = (
            (at // cols + 1) * width + at % cols + 1
            for at in ((inputs == token).argmax(axis=1) for token in (START, GOAL))
        )
        every = np.arange(len(inputs))
        wet = np.zeros_like(framed)
        wet[every, start] = True
        lengths = np.full(len(inputs), -1)
        for moves in count(1):
            wetter = wet.copy()
            for shift in (1, width):
                wetter[:, shift:] |= wet[:, :-shift]
                wetter[:, :-shift] |= wet[:, shift:]
            wetter &= framed
            lengths[wetter[every, goal] & (lengths < 0)] = moves
            if (lengths > 0).all() or np.array_equal(wetter, wet):
                break
            wet = wetter
        return lengths
