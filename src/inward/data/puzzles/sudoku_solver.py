"""Sudoku geometry and solver: how many solutions a puzzle has, and how many guesses it takes.

Everything that makes, reads or rates Sudokus (`inward.data.puzzles.sudoku`) asks this solver the
same two questions thousands of times: is there a solution, and is there only one.

Unusual: the solver keeps the whole exact-cover problem in one Python integer. A Sudoku is
4 * n * n "exactly one" rules (each cell one digit; each row, column and box each digit once), and
a rule is a field of n + 1 bits in that integer: n candidates below one guard bit. Setting all
guards and subtracting 1 from every field at once clears the lowest candidate everywhere, and a
field that was empty loses its guard, so a few operations on one integer find every contradiction,
every naked single and every hidden single of the grid. No numba, no C.

Tokens (uint8, row major): 0 = PAD, 1 = blank, digit d = d + 1. Boxes: 2x2, 2 rows x 3 columns, 3x3.

What a rating counts: the nodes of the search tree at which a candidate had to be guessed. Before
each guess all naked and hidden singles are filled in; the guess is made in the rule with fewest
candidates (cells before rows before columns before boxes, then reading order); the tree is
searched to its end, that is until the solution is also proven unique. 0 = singles are enough. The
published CSV counts guesses of another solver (tdoku), so the two scales do not compare. As ties
are broken by position, symmetric images of a puzzle can differ in rating, but not in being 0.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BLANK = 1
BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # rows and columns of a box, by grid size n


# ---------------------------------------------------------------------------- geometry


@functools.cache
def units(n: int) -> np.ndarray:
    """Cells of every row, column and box of an n x n grid: (3n, n) int, in this order."""
    box_rows, box_cols = box_shape(n)
    cells = np.arange(n * n).reshape(n, n)
    boxes = cells.reshape(n // box_rows, box_rows, n // box_cols, box_cols)
    result = np.concatenate([cells, cells.T, boxes.swapaxes(1, 2).reshape(n, n)])
    result.flags.writeable = False  # cached and shared
    return result


def conflicts(tokens: np.ndarray) -> np.ndarray:
    """Which units hold a digit twice: tokens (N, L) -> (N, 3n) bool, units as in `units`.

    Tokens outside 2..n+1 (blank, PAD, anything else) count as empty.
    """
    n = grid_size(tokens.shape[-1])
    filled = (tokens > BLANK) & (tokens <= n + 1)
    bits = np.where(filled, 1 << np.where(filled, tokens, 0).astype(np.int32), 0)
    bits = bits[:, units(n)]  # a sum of distinct powers of two equals their union, else not
    return bits.sum(axis=-1) != np.bitwise_or.reduce(bits, axis=-1)


def check_clues(tokens: np.ndarray) -> None:
    """Raise ValueError naming the first row, column or box in which tokens (L,) repeat a digit."""
    found = np.flatnonzero(conflicts(tokens[None])[0])
    if len(found):
        n = grid_size(len(tokens))
        kind, which = ("row", "column", "box")[found[0] // n], found[0] % n + 1
        digits = tokens[units(n)[found[0]]].astype(int) - 1
        twice = next(d for d in range(1, n + 1) if (digits == d).sum() > 1)
        raise ValueError(
            f"contradictory clues: digit {twice} stands more than once in {kind} {which}; "
            "no solution until one is removed or corrected"
        )


def box_shape(n: int) -> tuple[int, int]:
    """Rows and columns of a box; ValueError for a size that is not supported."""
    if n not in BOXES:
        raise ValueError(f"n is {n}; Sudoku sizes are {', '.join(map(str, BOXES))}")
    return BOXES[n]


def grid_size(num_cells: int) -> int:
    """Return n of an n x n grid; ValueError for a size that is not supported."""
    for n in BOXES:
        if n * n == num_cells:
            return n
    raise ValueError(
        f"{num_cells} cells make no Sudoku; a puzzle has 16 (4x4), 36 (6x6) or 81 (9x9)"
    )


# ---------------------------------------------------------------------------- solver


class Solved(NamedTuple):
    """What `solve` found: solutions (K, L) uint8 tokens, and the guess nodes it took."""

    solutions: np.ndarray
    num_guesses: int


@dataclass(frozen=True)
class Tables:
    """Constants of the one-integer state for one n (field = n candidates, then a guard bit).

    A placement p = cell * n + (digit - 1) is a bit in four fields: its cell, and its digit's row,
    column and box. A guard bit set in the state means: nothing has been placed in this field yet.
    """

    n: int
    guards: int  # the guard bit of every field
    ones: int  # the lowest bit of every field
    start: int  # the empty grid: every candidate, every guard
    place: list[int]  # p -> AND mask: removes what p rules out, and the guards of p's fields
    drop: list[int]  # p -> AND mask: removes only p itself
    placement: dict[int, int]  # position of a bit, plus one (its bit_length) -> p


@functools.cache
def tables_for(n: int) -> Tables:
    """Build the constants for n x n grids (once per process)."""
    num_cells = n * n
    box_of = np.argsort(units(n)[2 * n :].ravel())  # cell -> box * n + position in the box
    positions: list[list[int]] = []  # p -> the positions of its four bits
    for cell in range(num_cells):
        (row, col), (box, at) = divmod(cell, n), divmod(int(box_of[cell]), n)
        for d in range(n):
            fields = [(cell, d), (row * n + d, col), (col * n + d, row), (box * n + d, at)]
            positions.append(
                [(k * num_cells + field) * (n + 1) + bit for k, (field, bit) in enumerate(fields)]
            )
    ones = sum(1 << (field * (n + 1)) for field in range(4 * num_cells))
    start = (ones << (n + 1)) - ones
    own = [sum(1 << x for x in four) for four in positions]
    members: dict[int, list[int]] = {}  # field -> the placements that would fill it
    for p, four in enumerate(positions):
        for x in four:
            members.setdefault(x // (n + 1), []).append(p)
    place = []
    for p, four in enumerate(positions):
        fields = [x // (n + 1) for x in four]
        rivals = {q for field in fields for q in members[field]} - {p}
        removed = [own[q] for q in rivals] + [1 << (field * (n + 1) + n) for field in fields]
        place.append(start & ~functools.reduce(int.__or__, removed))
    placement = {x + 1: p for p, four in enumerate(positions) for x in four}
    return Tables(n, ones << n, ones, start, place, [start ^ bits for bits in own], placement)


def solve(puzzle: np.ndarray, *, limit: int = 2) -> Solved:
    """Find up to `limit` solutions of puzzle (L,) (tokens; PAD counts as blank).

    Contradictory clues simply have no solution. The default limit tells none, one and several
    apart. `num_guesses` counts guess nodes as the module docstring says; when `limit` stops the
    search before its end, only those visited. Raises ValueError for a wrong length, token or limit.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; ask for at least 1 solution")
    tables = tables_for(grid_size(len(puzzle)))
    found, num_guesses = search(tables, place_clues(tables, digits_of(puzzle)), limit)
    tokens = [read_state(tables, state) for state in found]
    return Solved(np.array(tokens, dtype=np.uint8).reshape(-1, len(puzzle)), num_guesses)


def num_solutions(puzzle: np.ndarray, *, max_guesses: int = 20_000) -> int | None:
    """0, 1 or 2 (several) solutions of puzzle (L,); None: not known after `max_guesses` nodes.

    The bound is for puzzles that anybody may type: an empty 9x9 grid is decided in a hundred
    nodes, but some with a dozen clues and no solution would take hours.
    """
    tables = tables_for(grid_size(len(puzzle)))
    state = place_clues(tables, digits_of(puzzle))
    found, num_guesses = search(tables, state, 2, max_guesses=max_guesses)
    return None if num_guesses > max_guesses else len(found)


def rate(puzzle: np.ndarray) -> int:
    """Count the guess nodes of puzzle (L,); ValueError unless it has exactly one solution."""
    return solve_unique(puzzle)[1]


def solve_unique(puzzle: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the solution (L,) and guess nodes of a puzzle; ValueError unless it has just one."""
    solutions, num_guesses = solve(puzzle)
    if len(solutions) != 1:
        what = "more than one solution; add clues" if len(solutions) else "no solution"
        raise ValueError(f"the puzzle has {what}")
    return solutions[0], num_guesses


def digits_of(puzzle: np.ndarray) -> list[int]:
    """Digits of tokens (L,), 0 for blank and PAD."""
    n, tokens = grid_size(len(puzzle)), np.asarray(puzzle)
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"a puzzle is one row of integers, not {tokens.dtype} {tokens.shape}")
    if tokens.min() < 0 or tokens.max() > n + 1:
        raise ValueError(
            f"tokens are {tokens.min()} to {tokens.max()}; a {n}x{n} Sudoku uses 0 to {n + 1}"
        )
    return [max(token - 1, 0) for token in tokens.tolist()]


def place_clues(tables: Tables, digits: Iterable[int]) -> int:
    """Make the state with these digits placed (0 = blank), nothing deduced yet."""
    state = tables.start
    for cell, digit in enumerate(digits):
        if digit:
            state &= tables.place[cell * tables.n + digit - 1]
    return state


def read_state(tables: Tables, state: int) -> list[int]:
    """Tokens of a solved state: its first L fields are the cells, one candidate in each."""
    width, num_cells = tables.n + 1, tables.n**2
    cells = state & ((1 << (width * num_cells)) - 1)  # all placed: no guard is left
    field = (1 << width) - 1
    return [((cells >> (width * cell)) & field).bit_length() + 1 for cell in range(num_cells)]


def search(
    tables: Tables,
    state: int,
    limit: int,
    *,
    rng: np.random.Generator | None = None,
    max_guesses: int | None = None,
) -> tuple[list[int], int]:
    """Depth-first search from state: up to `limit` solved states, and the guess nodes visited.

    Beyond `max_guesses` nodes it gives up: the count returned is then greater.
    """
    found, num_guesses, stack = [], 0, [state]
    while stack:
        settled = _fill_singles(tables, stack.pop())
        if settled is None:
            continue
        state, rest, many = settled
        if not many:
            found.append(state)
            if len(found) == limit:
                break
            continue
        num_guesses += 1
        if max_guesses is not None and num_guesses > max_guesses:
            break
        choices = _choices(tables, state, rest, many)
        if rng is not None:
            choices = rng.permutation(choices).tolist()
        stack.extend(state & tables.place[p] for p in choices)
    return found, num_guesses


def dig(
    tables: Tables, digits: list[int], clues: int | None, rng: np.random.Generator
) -> list[int] | None:
    """Remove clues from a full grid, keeping one solution; None if `clues` cannot be reached.

    One pass is enough for irreducibility: a clue that could not go with more clues around it
    cannot go with fewer.
    """
    n, kept = tables.n, list(digits)
    num_left = len(kept)
    for cell in rng.permutation(len(kept)).tolist():
        if num_left == clues:
            break
        digit, kept[cell] = kept[cell], 0
        # Unique without this clue <=> no solution has another digit in its cell.
        other = place_clues(tables, kept) & tables.drop[cell * n + digit - 1]
        if search(tables, other, 1)[0]:
            kept[cell] = digit
        else:
            num_left -= 1
    return kept if clues is None or num_left == clues else None


def _fill_singles(tables: Tables, state: int) -> tuple[int, int, int] | None:
    """Place naked and hidden singles until none is left; None if a field has no candidate.

    Returns the state, the state without the lowest candidate of each field, and the guards of
    the fields that still have several candidates.
    """
    n, guards, ones = tables.n, tables.guards, tables.ones
    place, drop, placement = tables.place, tables.drop, tables.placement
    while True:
        lowered = (state | guards) - ones
        if lowered & guards != guards:  # a borrow took the guard of an empty field
            return None
        rest = state & lowered
        many = ((rest | guards) - ones) & guards
        single = (guards ^ many) & state  # one candidate, and its guard says: not placed yet
        if not single:
            return state, rest, many
        bits = state & (single - (single >> n))  # the candidates of these fields
        while bits:
            # Singles that exclude each other leave an empty field behind, found in the next round.
            p = placement[(bits & -bits).bit_length()]
            state &= place[p]
            bits &= drop[p]  # the same placement may be the single of up to four fields


def _choices(tables: Tables, state: int, rest: int, many: int) -> list[int]:
    """Return the placements of the first field among those with the fewest candidates (>= 2)."""
    guards, ones, fewest = tables.guards, tables.ones, 0
    while not fewest:
        rest &= (rest | guards) - ones  # one more candidate less in each field
        more = ((rest | guards) - ones) & guards
        fewest, many = many & ~more, more
    guard = fewest & -fewest
    bits, choices = state & (guard - (guard >> tables.n)), []
    while bits:
        low = bits & -bits
        choices.append(tables.placement[low.bit_length()])
        bits ^= low
    return choices
