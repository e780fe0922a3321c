"""The eight ways to turn and mirror a grid, with their inverses: used by mazes and ARC.

A map is a permutation of cells, computed once per grid shape, so applying one is a single gather
over any number of leading axes. The numbering is that of the dataset folders which HRM and TRM
write (`name|||t<index>|||...` in ARC identifiers), so their identifiers keep their meaning:

    0 identity          4 mirror left-right
    1 quarter turn      5 mirror top-bottom
    2 half turn         6 transpose
    3 three quarters    7 transpose about the other diagonal     (turns are counter-clockwise)
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

NUM_MAPS = 8
INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
_SWAP_SIDES = (1, 3, 6, 7)


def turn(grids: np.ndarray, index: int) -> np.ndarray:
    """Apply map `index` to grids (..., rows, cols); maps 1, 3, 6, 7 give (..., cols, rows)."""
    _check_index(index)
    if index < 4:
        return np.rot90(grids, index, axes=(-2, -1))
    if index == 4:
        return np.flip(grids, -1)
    if index == 5:
        return np.flip(grids, -2)
    transposed = np.swapaxes(grids, -2, -1)
    return transposed if index == 6 else np.flip(transposed, (-2, -1))


def turn_back(grids: np.ndarray, index: int) -> np.ndarray:
    """Undo `turn(..., index)`."""
    _check_index(index)
    return turn(grids, INVERSE[index])


def keeping_shape(grid: tuple[int, int]) -> tuple[int, ...]:
    """Return the maps that keep (rows, cols): all eight of a square, four of a rectangle."""
    rows, cols = grid
    return tuple(i for i in range(NUM_MAPS) if rows == cols or i not in _SWAP_SIDES)


@dataclass(frozen=True)
class Dihedral:
    """Map `index` on flat token rows of a (rows, cols) grid: a `Symmetry`.

    The result of maps 1, 3, 6, 7 on a rectangle is a row of the swapped grid, `grid_out`.
    """

    grid: tuple[int, int]
    index: int

    def __post_init__(self) -> None:
        _check_index(self.index)

    @property
    def grid_out(self) -> tuple[int, int]:
        """Shape of the grid after `apply`."""
        rows, cols = self.grid
        return (cols, rows) if self.index in _SWAP_SIDES else (rows, cols)

    def apply(self, tokens: np.ndarray) -> np.ndarray:
        """Map tokens (..., rows * cols) to a new array of the same shape and dtype."""
        return self._gather(tokens, _cell_orders(self.grid, self.index)[0])

    def invert(self, tokens: np.ndarray) -> np.ndarray:
        """Undo `apply`."""
        return self._gather(tokens, _cell_orders(self.grid, self.index)[1])

    def _gather(self, tokens: np.ndarray, order: np.ndarray) -> np.ndarray:
        if tokens.shape[-1] != len(order):
            raise ValueError(
                f"tokens have {tokens.shape[-1]} cells; a {self.grid[0]}x{self.grid[1]} grid "
                f"has {len(order)}, give rows of that length"
            )
        return np.take(tokens, order, axis=-1)


@lru_cache(maxsize=256)
def _cell_orders(grid: tuple[int, int], index: int) -> tuple[np.ndarray, np.ndarray]:
    """Source cell of every target cell, for the map and for its inverse."""
    forward = turn(np.arange(grid[0] * grid[1]).reshape(grid), index).reshape(-1)
    return forward, np.argsort(forward)


def _check_index(index: int) -> None:
    if not 0 <= index < NUM_MAPS:
        raise ValueError(f"dihedral map {index} does not exist; choose 0 to {NUM_MAPS - 1}")
