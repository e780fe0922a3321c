"""Sudokus that need many guesses: a walk from puzzle to puzzle over one solution.

Random irreducible puzzles are easy: half of them need at most one guess, one in a hundred needs 17.
The puzzles of the public lists of hard ones need 100. They are not random either, people and
programs climbed to them. So does this: a clue goes, another comes, the puzzle keeps its
one solution, and it is kept if it needs about as many guesses as before, or more.

Unusual: which clue can come is read from counterexamples. A second solution found without the clue
names the cells that tell it from the first; each further one narrows them down. A walk's step costs
a few searches, where trying all cells would take thousands.
"""

from collections.abc import Iterator

import numpy as np

from inward.data.puzzles.puzzles import Puzzles
from inward.data.puzzles.sudoku_solver import (
    Tables,
    dig,
    digits_of,
    place_clues,
    read_state,
    search,
    tables_for,
)

_TRIES = 12  # counterexamples looked at before a swap is given up
_APART = 5  # changes between two puzzles that come out of one walk


def hard_sudokus(
    num: int,
    *,
    seed: int,
    n: int = 9,
    min_rating: int = 10,
    max_rating: int = 200,
    steps: int = 200,
) -> Puzzles:
    """Make `num` irreducible puzzles of `min_rating` guess nodes or more, about 0.7 s each on 9x9.

    seed        walk i depends on (seed, i) alone; more puzzles continue the same list
    max_rating  the walk never goes beyond it (before the last clues are taken away)
    steps       length of a walk; each gives several puzzles, all of one solution grid
    """
    if num < 1 or not 0 <= min_rating <= max_rating:
        raise ValueError(
            f"num {num} must be at least 1, and ratings {min_rating} to {max_rating} ascend"
        )
    found: list[tuple[bytes, bytes, int]] = []
    walk = 0
    while len(found) < num:
        rng = np.random.default_rng([seed, walk])
        found += _walk(n, rng, steps, min_rating, max_rating)
        walk += 1
    inputs, labels, ratings = zip(*found[:num], strict=True)
    rows = [np.frombuffer(b"".join(x), np.uint8).reshape(num, -1).copy() for x in (inputs, labels)]
    rating = np.array(ratings, dtype=np.int32)
    return Puzzles(rows[0], rows[1], grid=(n, n), vocab_size=n + 2, rating=rating)


def _walk(
    n: int, rng: np.random.Generator, steps: int, least: int, most: int
) -> Iterator[tuple[bytes, bytes, int]]:
    """Puzzles, solutions (token bytes) and ratings along one walk."""
    from inward.data.puzzles.sudoku import random_grid

    tables = tables_for(n)
    tokens = random_grid(n, rng)
    solution = digits_of(tokens)
    puzzle = dig(tables, solution, None, rng)
    assert puzzle is not None
    rating, changes = _rating(tables, puzzle), 0
    many = 24 if n == 9 else n * n  # clues above which some are taken away before rating
    for _ in range(steps):
        new = _swap(tables, puzzle, solution, rng)
        if new is None:
            continue
        if sum(map(bool, new)) > many:
            new = _minimal(tables, new, rng)
        rated = _rating(tables, new)
        if rated <= most and rated >= rating * (0.75 + 0.25 * rng.random()):
            changes += new != puzzle
            puzzle, rating = new, rated
            if rating >= least and changes >= _APART:
                puzzle, changes = _minimal(tables, puzzle, rng), 0
                rating = _rating(tables, puzzle)
                yield bytes(d + 1 for d in puzzle), tokens.tobytes(), rating


def _rating(tables: Tables, digits: list[int]) -> int:
    return search(tables, place_clues(tables, digits), 2)[1]


def _minimal(tables: Tables, digits: list[int], rng: np.random.Generator) -> list[int]:
    """Take clues away in random order while the solution stays the only one."""
    kept = list(digits)
    for cell in rng.permutation([i for i, digit in enumerate(kept) if digit]).tolist():
        digit, kept[cell] = kept[cell], 0
        if _other(tables, kept, cell, digit) is not None:
            kept[cell] = digit
    return kept


def _other(
    tables: Tables,
    digits: list[int],
    cell: int,
    digit: int,
    rng: np.random.Generator | None = None,
) -> int | None:
    """A solution (its state) with another digit in `cell`, or None."""
    state = place_clues(tables, digits) & tables.drop[cell * tables.n + digit - 1]
    found = search(tables, state, 1, rng=rng)[0]
    return found[0] if found else None


def _swap(
    tables: Tables, puzzle: list[int], solution: list[int], rng: np.random.Generator
) -> list[int] | None:
    """Take one clue away and put one in (or none, where none is needed); None: no luck."""
    clues = [i for i, digit in enumerate(puzzle) if digit]
    gone = clues[int(rng.integers(len(clues)))]
    new = list(puzzle)
    digit, new[gone] = new[gone], 0
    apart: set[int] | None = None  # cells that tell all solutions seen so far from the right one
    last = 0
    for _ in range(_TRIES):
        state = _other(tables, new, gone, digit, rng)
        if state is None:
            return new
        tokens = read_state(tables, state)
        differ = {i for i, right in enumerate(solution) if tokens[i] - 1 != right} - {gone}
        if apart is not None:
            new[last] = 0
            differ &= apart
        apart = differ
        if not apart:
            return None
        last = sorted(apart)[int(rng.integers(len(apart)))]
        new[last] = solution[last]
    return None
