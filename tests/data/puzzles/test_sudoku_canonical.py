"""Keys of symmetric Sudokus: against all images, known class counts, and an independent search."""

import itertools
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inward.data.puzzles import sudoku, sudoku_canonical
from inward.data.puzzles.puzzles import Puzzles
from inward.data.puzzles.sudoku import generate, random_grid, read_lines, sample_symmetry
from inward.data.puzzles.sudoku_canonical import canonical, canonical_rows, symmetric_to_any

SIZES = (4, 6, 9)
SEEDS = st.integers(0, 2**32 - 1)


def arrangements(n, size):
    """All orders of n lines that keep groups of `size` together."""
    groups = [range(i, i + size) for i in range(0, n, size)]
    inside = itertools.product(*(itertools.permutations(group) for group in groups))
    orders = (itertools.permutations(chosen) for chosen in inside)
    return np.array([sum(order, ()) for order in itertools.chain.from_iterable(orders)])


def cell_maps(n):
    """Gather indices (num_maps, L) of every symmetry that leaves the digits alone."""
    box_rows, box_cols = sudoku.BOXES[n]
    cells = np.arange(n * n).reshape(n, n)
    rows, cols = arrangements(n, box_rows), arrangements(n, box_cols)
    grids = [cells, cells.T] if box_rows == box_cols else [cells]
    return np.stack([g[r][:, c].ravel() for g in grids for r in rows for c in cols])


def renamed(tokens):
    """Digits of each row of tokens (M, L) renamed by first appearance, one cell after the other."""
    num = np.arange(len(tokens))
    names, following = np.zeros((len(tokens), 12), dtype=int), np.full(len(tokens), 2)
    result = np.ones_like(tokens)
    for i, column in enumerate(tokens.T):
        fresh = (column > 1) & (names[num, column] == 0)
        names[num[fresh], column[fresh]] = following[fresh]
        following += fresh
        result[:, i] = np.where(column > 1, names[num, column], 1)
    return result


def plain_key(tokens, maps):
    """The least of all images of tokens (L,)."""
    return min(map(tuple, renamed(tokens[maps]).tolist()))


def plain_are_images(a, b):
    """Search for a 9x9 symmetry from a to b, arranging rows and columns by their clue counts."""
    b, orders = b.reshape(9, 9), arrangements(9, 3)
    wanted_rows, wanted_cols = (b > 1).sum(axis=1), (b > 1).sum(axis=0)
    for grid in (a.reshape(9, 9), a.reshape(9, 9).T):
        counts = (grid > 1).sum(axis=1), (grid > 1).sum(axis=0)
        rows = orders[(counts[0][orders] == wanted_rows).all(axis=1)]
        cols = orders[(counts[1][orders] == wanted_cols).all(axis=1)]
        if len(rows) and len(cols):
            images = np.stack([grid[r][:, c].ravel() for r in rows for c in cols])
            if (renamed(images) == renamed(b.reshape(1, 81))).all(axis=1).any():
                return True
    return False


def some_clues(grid, num, rng):
    """Keep `num` random cells of grid (L,)."""
    return np.where(rng.permutation(len(grid)) < num, grid, 1).astype(np.uint8)


def image_of(rows, n, rng):
    return np.stack([sample_symmetry(n, rng).apply(row) for row in rows])


def as_puzzles(rows, n):
    return Puzzles(rows, np.zeros_like(rows), grid=(n, n), vocab_size=n + 2)


@given(st.sampled_from(SIZES), SEEDS, st.floats(0, 1))
def test_images_share_the_key(n, seed, share):
    rng = np.random.default_rng(seed)
    puzzle = some_clues(random_grid(n, rng), round(share * n * n), rng)
    image = sample_symmetry(n, rng).apply(puzzle)
    assert canonical(image, n=n) == canonical(puzzle, n=n)


@pytest.mark.parametrize("n, clues", [(4, None), (6, None), (6, 36), (9, None), (9, 30), (9, 60)])
def test_images_of_generated_puzzles_share_the_key(n, clues):
    num = 50 if clues is None or clues < n * n else 10
    puzzles = generate(num, n=n, seed=1, clues=clues).inputs
    images = image_of(puzzles, n, np.random.default_rng(0))
    assert canonical(images.astype(np.int64), n=n) == canonical(puzzles, n=n)


@pytest.mark.parametrize("n, num_maps, num_puzzles", [(4, 128, 150), (6, 3456, 25)])
def test_keys_are_equal_where_the_least_of_all_images_is_equal(n, num_maps, num_puzzles):
    maps, rng = cell_maps(n), np.random.default_rng(0)
    assert len(np.unique(maps, axis=0)) == num_maps
    for num_clues in (2, 3, 4, n * n // 2, n * n - 2):
        rows = np.stack(
            [some_clues(random_grid(n, rng), num_clues, rng) for _ in range(num_puzzles)]
        )
        keys, plain = canonical(rows, n=n), [plain_key(row, maps) for row in rows]
        assert len(set(keys)) == len(set(plain)) == len(set(zip(keys, plain, strict=True)))
        if num_clues < 4:  # a test of equal and of different pairs alike
            assert 1 < len(set(keys)) < num_puzzles


@settings(max_examples=40)
@given(SEEDS, st.sampled_from([22, 26, 30]))
def test_near_misses_of_9x9_agree_with_a_search(seed, num_clues):
    rng = np.random.default_rng(seed)
    grid = random_grid(9, rng)
    puzzle = some_clues(grid, num_clues, rng)
    image = sample_symmetry(9, rng).apply(puzzle)
    assert plain_are_images(puzzle, image)
    # Move one clue of a row to another cell of this row: all the digit counts stay.
    row = next(r for r in range(9) if 0 < (puzzle[9 * r : 9 * r + 9] > 1).sum() < 9)
    line = slice(9 * row, 9 * row + 9)
    other = puzzle.copy()
    other[line] = rng.permutation(puzzle[line])
    if not sudoku.conflicts(other[None]).any():
        found = plain_are_images(other, image)
        assert (canonical(other, n=9) == canonical(image, n=9)) == found


def test_classes_of_full_4x4_grids():
    grids = sudoku.solve(np.ones(16, dtype=np.uint8), limit=1000).solutions
    keys = canonical_rows(grids, n=4)
    assert len(keys) == 288 and len(set(keys)) == 2
    assert sorted(keys.count(key) for key in set(keys)) == [96, 192]


def test_classes_of_full_6x6_grids():
    # Every grid is an image of one of 6,528; the literature counts 49 classes of 28,200,960 grids.
    start = sudoku.encode("123456" + "456..." + "." * 24)
    keys = canonical(sudoku.solve(start, limit=10_000).solutions, n=6)
    assert len(keys) == 6528 and len(set(keys)) == 49


def test_listed_puzzles_of_17_clues_are_no_images_of_each_other(shared_data):
    # The list was collected as one puzzle for each class.
    path = shared_data / "sudoku-norvig" / "sudokus_17.txt"
    puzzles = read_lines(path, solve=False, num=3000)
    assert len(set(canonical(puzzles.inputs, n=9))) == 3000


@pytest.mark.parametrize("n", SIZES)
def test_the_key_is_an_image_in_tokens_and_its_own_key(n):
    puzzle = generate(1, n=n, seed=0).inputs[0]
    key = canonical_rows(puzzle[None], n=n)[0]
    standing = np.frombuffer(key, dtype=np.uint8)
    assert canonical(standing, n=n) == canonical(puzzle, n=n) == key
    assert (renamed(standing[None].astype(int)) == standing).all()
    if n == 9:
        assert plain_are_images(puzzle, standing)
    else:
        assert standing.tolist() in renamed(puzzle[cell_maps(n)]).tolist()


def special_grids():
    """Puzzles with more automorphisms than a generator ever makes."""
    r = np.arange(9)
    a, b = np.divmod(r, 3)
    most = 3 * ((a + b[:, None]) % 3) + (b + a[:, None]) % 3 + 2  # the grid with 648
    blank, diagonal, row, box = (np.ones((9, 9), dtype=int) for _ in range(4))
    diagonal[r, r] = row[0] = r + 2
    box[:3, :3] = r.reshape(3, 3) + 2
    one = np.where(most == 2, 2, 1)
    return [g.astype(np.uint8).ravel() for g in (most, blank, diagonal, row, box, one)]


def test_symmetric_puzzles_take_no_hours():
    grids = np.stack(special_grids())
    start = time.process_time()
    keys = canonical(grids, n=9)
    assert time.process_time() - start < 5  # 0.1 s; millions of arrangements without pruning
    assert canonical(image_of(grids, 9, np.random.default_rng(0)), n=9) == keys
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name, value", [("_BLOCK", 3), ("_BLOCK", 1), ("_MOST_NODES", 1)])
def test_keys_do_not_depend_on_the_other_puzzles(name, value, monkeypatch):
    rng = np.random.default_rng(0)
    rows = [some_clues(random_grid(9, rng), num, rng) for num in (0, 1, 3, 5, 9, 30, 80, 81)]
    rows = np.stack(rows + special_grids())
    keys = canonical(rows, n=9)
    order = rng.permutation(len(rows))
    assert canonical(rows[order], n=9) == [keys[i] for i in order]
    monkeypatch.setattr(sudoku_canonical, name, value)
    assert canonical(rows, n=9) == keys


@pytest.mark.parametrize("bits", [16, 8, 5])
def test_colliding_hashes_cost_no_exactness(bits, monkeypatch):
    rng = np.random.default_rng(0)
    grids = sudoku.solve(np.ones(16, dtype=np.uint8), limit=1000).solutions[::6]
    rows = [grids] + [np.stack([some_clues(g, num, rng) for g in grids]) for num in (3, 5, 9)]
    rows = np.concatenate(rows)
    before, mix = canonical(rows, n=4), sudoku_canonical._mix
    monkeypatch.setattr(sudoku_canonical, "_mix", lambda x: mix(x) >> np.uint64(64 - bits))
    keys = canonical(rows, n=4)
    assert canonical(image_of(rows, 4, rng), n=4) == keys
    pairs = set(zip(keys, before, strict=True))
    assert len(pairs) == len(set(keys)) == len(set(before))


def test_symmetric_to_any():
    rng = np.random.default_rng(0)
    test, fresh = generate(20, n=9, seed=0), generate(20, n=9, seed=1)
    mixed = np.concatenate([image_of(test.inputs[:5], 9, rng), fresh.inputs, test.inputs[7:8]])
    found = symmetric_to_any(as_puzzles(mixed, 9), test)
    assert found.dtype == bool and found.tolist() == [True] * 5 + [False] * 20 + [True]
    with pytest.raises(ValueError, match=r"puzzles are \(9, 9\), others \(4, 4\)"):
        symmetric_to_any(test, generate(1, n=4, seed=0))


def test_shapes_in_and_out():
    puzzles = generate(3, n=4, seed=0).inputs
    keys = canonical(puzzles, n=4)
    assert [canonical(row, n=4) for row in puzzles] == keys
    assert all(type(key) is bytes and len(key) == 16 for key in keys)
    assert canonical(puzzles[:0], n=4) == []


@pytest.mark.parametrize(
    "tokens, n, message",
    [
        (np.ones(16, dtype=int), 5, "n is 5"),
        (np.ones(16, dtype=int), 9, r"shape \(1, 16\); give \(81,\) or \(N, 81\)"),
        (np.ones((2, 2, 16), dtype=int), 4, "shape"),
        (np.array(1), 4, "shape"),
        (np.ones(16), 4, "float64; they must be integers"),
        (np.arange(32).reshape(2, 16) * 0, 4, "puzzle 0 holds tokens 0 to 0; a 4x4"),
        (np.repeat([[1], [6]], 16, axis=1), 4, "puzzle 1 holds tokens 6 to 6"),
        (np.repeat([[1], [-1]], 16, axis=1), 4, "puzzle 1 holds tokens -1"),
        (np.repeat([[1], [2]], 16, axis=1), 4, "puzzle 1: contradictory clues: digit 1"),
    ],
)
def test_bad_input(tokens, n, message):
    with pytest.raises(ValueError, match=message):
        canonical(tokens, n=n)


def test_bad_puzzles_are_numbered_across_blocks(monkeypatch):
    monkeypatch.setattr(sudoku_canonical, "_BLOCK", 2)
    rows = np.ones((6, 16), dtype=int)
    rows[5] = 2
    with pytest.raises(ValueError, match="puzzle 5: contradictory"):
        canonical(rows, n=4)


# ---------------------------------------------------------------------------- generate


# Few enough 6x6 puzzles have 9 clues that an image occurs (one, with these seeds).
WISH: dict[str, Any] = {"n": 6, "seed": 1, "clues": 9}


def test_images_of_excluded_puzzles_are_replaced():
    test = generate(500, n=6, seed=0, clues=9)
    plain = generate(200, **WISH, exclude=test)
    images = symmetric_to_any(plain, test)
    assert images.any()  # or this test shows nothing
    train = generate(200, **WISH, exclude=test, exclude_symmetric=True)
    assert not symmetric_to_any(train, test).any()
    assert ((train.inputs > 1).sum(axis=1) == 9).all()
    assert (train.inputs[~images] == plain.inputs[~images]).all()  # the others stay
    assert len(np.unique(train.inputs, axis=0)) == 200


def test_exclusion_is_repeatable_and_independent_of_workers_and_blocks(monkeypatch):
    test = generate(200, n=4, seed=0)
    few = test.select(slice(0, 3))
    wish: dict[str, Any] = {"n": 4, "seed": 1, "exclude": few, "exclude_symmetric": True}
    first = generate(100, **wish)
    assert symmetric_to_any(generate(100, n=4, seed=1), few).any()
    for again in (generate(100, **wish), generate(100, **wish, workers=2)):
        assert (again.inputs == first.inputs).all() and (again.labels == first.labels).all()
    monkeypatch.setattr(sudoku, "_DRAWS_AT_ONCE", 7)
    assert (generate(100, **wish).inputs == first.inputs).all()


def test_excluding_every_class_ends_with_an_error():
    full = generate(280, n=4, seed=0, clues=16)  # both classes
    with pytest.raises(ValueError, match="only 0 of 5 different 4x4 puzzles"):
        generate(5, n=4, seed=0, clues=16, exclude=full, exclude_symmetric=True)
    with pytest.raises(ValueError, match="exclude_symmetric=True needs the puzzles"):
        generate(5, n=4, seed=0, exclude_symmetric=True)
