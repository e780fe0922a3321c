"""Sudoku: the solver against slow obvious ones, and what generator, readers and task promise."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inward.data.puzzles import sudoku
from inward.data.puzzles.puzzles import Puzzles
from inward.data.puzzles.sudoku import (
    SudokuSymmetry,
    generate,
    read_csv,
    read_lines,
    sample_symmetry,
)
from inward.tasks.sudoku import SudokuTask

SIZES = (4, 6, 9)
SEEDS = st.integers(0, 2**32 - 1)


def ratings(puzzles: Puzzles) -> list[int]:
    assert puzzles.rating is not None
    return puzzles.rating.tolist()


def is_grid(digits):
    """Tell by loops and sets whether digits (n, n) fill every row, column and box."""
    n = len(digits)
    box_rows, box_cols = sudoku.BOXES[n]
    full = set(range(1, n + 1))
    boxes = [
        [digits[r + i][c + j] for i in range(box_rows) for j in range(box_cols)]
        for r in range(0, n, box_rows)
        for c in range(0, n, box_cols)
    ]
    columns = list(zip(*digits, strict=True))
    return all(set(unit) == full for unit in [*map(list, digits), *columns, *boxes])


@pytest.fixture(scope="module")
def grids4():
    """All 4x4 solution grids as tokens (288, 16): every choice of four rows, filtered."""
    rows = list(itertools.permutations(range(1, 5)))
    pairs = [p for p in itertools.product(rows, rows) if len({*p[0][:2], *p[1][:2]}) == 4]
    found = [top + low for top in pairs for low in pairs if is_grid(top + low)]
    return np.array(found, dtype=np.uint8).reshape(-1, 16) + 1


def peers_of(n):
    box_rows, box_cols = sudoku.BOXES[n]
    cells = list(itertools.product(range(n), range(n)))

    def related(a, b):
        same_box = a[0] // box_rows == b[0] // box_rows and a[1] // box_cols == b[1] // box_cols
        return a != b and (a[0] == b[0] or a[1] == b[1] or same_box)

    return [[j for j, b in enumerate(cells) if related(a, b)] for a in cells]


def plain_solutions(tokens):
    """All solutions by plain backtracking over the blank cell with fewest candidates."""
    n = int(len(tokens) ** 0.5)
    peers, digits, found = peers_of(n), [int(t) - 1 for t in tokens], []

    def step():
        blank = [i for i, d in enumerate(digits) if d == 0]
        if not blank:
            found.append(tuple(d + 1 for d in digits))
            return
        free = {i: set(range(1, n + 1)) - {digits[j] for j in peers[i]} for i in blank}
        cell = min(blank, key=lambda i: len(free[i]))
        for digit in free[cell]:
            digits[cell] = digit
            step()
        digits[cell] = 0

    step()
    return set(found)


def plain_rating(tokens):
    """(solutions, guess nodes) by sets of candidates (cell, digit), as the docstring defines."""
    n = int(len(tokens) ** 0.5)
    peers, digits = peers_of(n), range(1, n + 1)
    rules = [[(i, d) for d in digits] for i in range(n * n)]
    rules += [[(int(i), d) for i in unit] for unit in sudoku.units(n) for d in digits]

    def place(alive, cell, digit):
        return alive - {(cell, d) for d in digits if d != digit} - {(i, digit) for i in peers[cell]}

    def search(alive):
        while True:
            left = [[c for c in rule if c in alive] for rule in rules]
            if not all(left):
                return 0, 0
            before = len(alive)
            for cell, digit in {rule[0] for rule in left if len(rule) == 1}:
                alive = place(alive, cell, digit)
            if len(alive) == before:
                break
        several = [rule for rule in left if len(rule) > 1]
        if not several:
            return 1, 0
        parts = [search(place(alive, *choice)) for choice in min(several, key=len)]
        return sum(p[0] for p in parts), 1 + sum(p[1] for p in parts)

    alive = {candidate for rule in rules for candidate in rule}
    for cell, token in enumerate(tokens):
        if token > 1:
            alive = place(alive, cell, int(token) - 1)
    return search(alive)


def test_there_are_288_grids_of_4x4(grids4):
    solutions = sudoku.solve(np.ones(16, dtype=np.uint8), limit=1000).solutions
    assert len(grids4) == len(solutions) == 288
    assert {tuple(s) for s in solutions} == {tuple(g) for g in grids4}


@given(st.integers(0, 287), st.lists(st.booleans(), min_size=16, max_size=16), st.integers(0, 79))
def test_solver_finds_what_filtering_all_grids_finds(grids4, index, shown, change):
    puzzle = np.where(shown, grids4[index], 1).astype(np.uint8)
    puzzle[change // 5] = change % 5 + 1  # often contradictory, or without a solution
    clues = puzzle > 1
    expected = grids4[(grids4[:, clues] == puzzle[clues]).all(axis=1)]
    solutions = sudoku.solve(puzzle, limit=1000).solutions
    assert len(solutions) == len(expected)
    assert {tuple(s) for s in solutions} == {tuple(g) for g in expected}


def test_boxes_of_6x6_are_two_rows_of_three():
    assert sudoku.BOXES == {4: (2, 2), 6: (2, 3), 9: (3, 3)}
    assert sudoku.units(6)[12].tolist() == [0, 1, 2, 6, 7, 8]


def test_number_of_6x6_grids():
    # 28,200,960 grids in all: 6! ways to fill the first row, then 3! for the rest of its first box.
    start = sudoku.encode("123456" + "456..." + "." * 24)
    solutions = sudoku.solve(start, limit=10_000).solutions
    assert len(solutions) == 28_200_960 // (720 * 6)
    assert len(np.unique(solutions, axis=0)) == len(solutions)


@pytest.mark.parametrize("n, num_removed", [(6, 3), (9, 2)])
def test_solver_agrees_with_plain_backtracking_on_ambiguous_puzzles(n, num_removed):
    for seed in range(4):
        puzzle = generate(1, n=n, seed=seed, clues={6: 12, 9: 32}[n]).inputs[0]
        clues = np.flatnonzero(puzzle > 1)
        puzzle[np.random.default_rng(seed).choice(clues, num_removed, replace=False)] = 1
        solutions = sudoku.solve(puzzle, limit=100_000).solutions
        assert {tuple(s) for s in solutions.tolist()} == plain_solutions(puzzle)


@pytest.mark.parametrize("n", SIZES)
def test_rating_agrees_with_its_plain_definition(n):
    puzzles = generate(12, n=n, seed=3)
    assert [plain_rating(row) for row in puzzles.inputs] == [(1, r) for r in ratings(puzzles)]
    if n == 9:
        assert min(ratings(puzzles)) == 0 and max(ratings(puzzles)) > 3


def test_rating_counts_branching_nodes():
    # A 4x4 grid with one "unavoidable rectangle" opened: one guess, two solutions.
    puzzle = sudoku.encode("1234" + "34.." + "2143" + "43..")
    puzzle[[6, 7, 14, 15]] = 1
    solutions, num_guesses = sudoku.solve(puzzle)
    assert (len(solutions), num_guesses) == (2, 1)
    with pytest.raises(ValueError, match="more than one solution"):
        sudoku.rate(puzzle)


@pytest.mark.parametrize(
    "puzzle, message",
    [
        (np.ones(80, dtype=np.uint8), "80 cells"),
        (np.full(81, 11), "0 to 10"),
        (np.full(81, -1), "0 to 10"),
        (np.ones(81), "integers"),
        (np.ones((81, 2), dtype=int), "integers"),
    ],
)
def test_solver_refuses_what_is_no_puzzle(puzzle, message):
    with pytest.raises(ValueError, match=message):
        sudoku.solve(puzzle)


def test_solver_limit():
    blank = np.ones(81, dtype=np.uint8)
    assert sudoku.solve(blank, limit=5).solutions.shape == (5, 81)
    with pytest.raises(ValueError, match="limit is 0"):
        sudoku.solve(blank, limit=0)
    contradictory = sudoku.encode("11" + "." * 79)
    assert sudoku.solve(contradictory).solutions.shape == (0, 81)
    with pytest.raises(ValueError, match="no solution"):
        sudoku.rate(contradictory)


@pytest.mark.parametrize("n", SIZES)
def test_puzzles_are_irreducible_with_one_solution(n):
    puzzles = generate(8, n=n, seed=1)
    assert puzzles.grid == (n, n) and puzzles.vocab_size == n + 2
    for puzzle, label in zip(puzzles.inputs, puzzles.labels, strict=True):
        assert is_grid((label.reshape(n, n).astype(int) - 1).tolist())
        assert sudoku.solve(puzzle).solutions.tolist() == [label.tolist()]
        for cell in np.flatnonzero(puzzle > 1):
            fewer = puzzle.copy()
            fewer[cell] = 1
            assert len(sudoku.solve(fewer).solutions) == 2


@pytest.mark.parametrize("n, clues", [(4, 4), (4, 16), (6, 9), (6, 14), (9, 25), (9, 30)])
def test_clue_count(n, clues):
    puzzles = generate(5, n=n, seed=2, clues=clues)
    assert ((puzzles.inputs > 1).sum(axis=1) == clues).all()
    for puzzle, label in zip(puzzles.inputs, puzzles.labels, strict=True):
        assert sudoku.solve(puzzle).solutions.tolist() == [label.tolist()]


def test_rating_bounds():
    puzzles = generate(10, n=9, seed=0, min_rating=1, max_rating=3)
    assert set(ratings(puzzles)) <= {1, 2, 3}
    assert [sudoku.rate(row) for row in puzzles.inputs] == ratings(puzzles)


def same(a, b):
    return (a.inputs == b.inputs).all() and (a.labels == b.labels).all()


def test_seed_decides_and_workers_do_not():
    first = generate(24, n=4, seed=5)
    again = generate(24, n=4, seed=5, exclude=first)  # forces a second round
    assert same(first, generate(24, n=4, seed=5))
    assert same(first, generate(24, n=4, seed=5, workers=2))
    assert same(again, generate(24, n=4, seed=5, exclude=first, workers=2))
    assert not same(first, generate(24, n=4, seed=6))


def rows_of(array):
    return {row.tobytes() for row in array}


def test_exclude_keeps_test_puzzles_out_of_training():
    test = generate(1100, n=4, seed=7, progress=False)
    train = generate(1100, n=4, seed=7, exclude=test, progress=False)
    assert len(rows_of(train.inputs)) == 1100
    assert not rows_of(train.inputs) & rows_of(test.inputs)
    assert rows_of(train.labels) & rows_of(test.labels)  # grids may come back, unless ...
    test = test.select(slice(0, 20))
    train = generate(200, n=4, seed=8, exclude=test, exclude_solutions=True)
    assert not rows_of(train.labels) & rows_of(test.labels)


def test_puzzles_are_distinct_and_the_supply_can_end():
    assert len(rows_of(generate(286, n=4, seed=0, clues=16).inputs)) == 286  # of 288
    with pytest.raises(ValueError, match="of 300 different 4x4 puzzles"):
        generate(300, n=4, seed=0, clues=16)


@pytest.mark.parametrize("n", SIZES)
def test_random_grids_prefer_no_digit_in_any_cell(n):
    num = {4: 2000, 6: 1000, 9: 500}[n]
    rng = np.random.default_rng(0)
    grids = np.array([sudoku.random_grid(n, rng) for _ in range(num)])
    counts = np.stack([(grids == token).sum(axis=0) for token in range(2, n + 2)])
    sigma = (num / n * (1 - 1 / n)) ** 0.5
    assert abs(counts - num / n).max() < 5 * sigma  # 5 sigma: about 1 in 2000 for 729 counts
    if n == 4:
        assert len(rows_of(grids)) == 288


@pytest.mark.parametrize(
    "wish, message",
    [
        ({"n": 5}, "n is 5; Sudoku sizes are 4, 6, 9"),
        ({"num": 0}, "num is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"clues": 16}, "clues is 16; a 9x9 Sudoku with one solution has 17 to 81"),
        ({"clues": 82}, "clues is 82"),
        ({"min_rating": 3, "max_rating": 2}, "max_rating 2 is below min_rating 3"),
        ({"min_rating": 500, "max_attempts": 3}, "in 3 attempts; widen"),
        ({"clues": 17, "max_attempts": 3}, "clues=17 .* in 3 attempts"),
        ({"exclude_solutions": True}, "pass exclude="),
        ({"exclude": "4x4"}, "they must agree"),
        ({"exclude": "unsolved", "exclude_solutions": True}, "no solutions"),
    ],
)
def test_impossible_wishes(wish, message):
    known = {"4x4": generate(2, n=4, seed=0)}
    blank = np.ones((1, 81), dtype=np.uint8)
    known["unsolved"] = Puzzles(blank, 0 * blank, grid=(9, 9), vocab_size=11)
    if "exclude" in wish:
        wish = {**wish, "exclude": known[wish["exclude"]]}
    with pytest.raises(ValueError, match=message):
        generate(**{"num": 1, "n": 9, "seed": 0, **wish})


def test_progress_bar_only_for_many(capsys):
    generate(501, n=4, seed=0, progress=False)
    generate(500, n=4, seed=0)
    assert capsys.readouterr().err == ""
    generate(501, n=4, seed=0)
    assert "sudoku4" in capsys.readouterr().err


def test_import_is_light():
    code = "import inward.tasks.sudoku, sys; print({'torch', 'tqdm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@given(st.sampled_from(SIZES), SEEDS, st.sampled_from(["uint8", "int32", "int64"]))
def test_symmetry_and_inverse_cancel(n, seed, dtype):
    rng = np.random.default_rng(seed)
    symmetry = sample_symmetry(n, rng)
    tokens = rng.integers(0, n + 2, size=(2, 3, n * n)).astype(dtype)
    image = symmetry.apply(tokens)
    assert image.dtype == tokens.dtype and image.shape == tokens.shape
    assert (symmetry.invert(image) == tokens).all()
    assert (symmetry.apply(symmetry.invert(tokens)) == tokens).all()
    for fixed in (0, 1):  # PAD and blank move but stay what they are
        assert ((image == fixed).sum(axis=-1) == (tokens == fixed).sum(axis=-1)).all()


@settings(max_examples=30)
@given(st.sampled_from(SIZES), SEEDS)
def test_image_of_a_puzzle_is_a_puzzle_with_the_image_as_solution(n, seed):
    puzzle = generate(1, n=n, seed=seed % 50)
    symmetry = sample_symmetry(n, np.random.default_rng(seed))
    image, answer = symmetry.apply(puzzle.inputs), symmetry.apply(puzzle.labels)
    assert sudoku.solve(image[0]).solutions.tolist() == answer.tolist()
    assert (sudoku.rate(image[0]) == 0) == (ratings(puzzle) == [0])
    assert (symmetry.invert(answer) == puzzle.labels).all()


def test_symmetry_does_what_its_fields_say():
    tokens = sudoku.encode("1234" + "3412" + "2143" + "4321")
    swap = SudokuSymmetry(np.array([2, 1, 3, 4]), np.array([2, 3, 0, 1]), np.array([1, 0, 2, 3]))
    assert sudoku.decode(swap.apply(tokens)) == "2143" + "3412" + "1234" + "4321"
    turned = SudokuSymmetry(np.arange(1, 5), np.arange(4), np.arange(4), transpose=True)
    assert sudoku.decode(turned.apply(tokens)) == "1324" + "2413" + "3142" + "4231"


@pytest.mark.parametrize("n, num_maps", [(4, 2 * 8 * 8), (6, 48 * 72)])
def test_sampling_reaches_every_map_of_cells(n, num_maps):
    # With digits left alone, a sampled symmetry is one of num_maps maps of the cells.
    rng = np.random.default_rng(0)
    drawn = [sample_symmetry(n, rng) for _ in range(num_maps * (10 if n == 4 else 3))]
    maps = {(*s.rows.tolist(), *s.cols.tolist(), s.transpose) for s in drawn}
    assert len(maps) == num_maps if n == 4 else 0.9 * num_maps < len(maps) <= num_maps
    assert {s.transpose for s in drawn} == ({True, False} if n == 4 else {False})
    assert len({tuple(s.digits.tolist()) for s in drawn}) == {4: 24, 6: 720}[n]


IDENTITY9 = {"digits": np.arange(1, 10), "rows": np.arange(9), "cols": np.arange(9)}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"digits": np.arange(9)}, "not a permutation of 1 to 9"),
        ({"rows": np.array([3, 1, 2, 0, 4, 5, 6, 7, 8])}, "groups of 3"),
        ({"cols": np.zeros(9, dtype=int)}, "permute 0 to 8"),
        ({"cols": np.arange(6)}, "permute 0 to 8"),
    ],
)
def test_maps_that_break_the_rules_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SudokuSymmetry(**{**IDENTITY9, **fields}, transpose=False)


def test_symmetry_refuses_other_tokens_and_6x6_transposition():
    with pytest.raises(ValueError, match="cannot be transposed"):
        SudokuSymmetry(np.arange(1, 7), np.arange(6), np.arange(6), transpose=True)
    symmetry = SudokuSymmetry(**IDENTITY9, transpose=False)
    with pytest.raises(ValueError, match="rows of 80"):
        symmetry.apply(np.ones((2, 80), dtype=int))
    for bad in (-100, 11):  # an ignored label must not be looked up from the table's end
        with pytest.raises(ValueError, match="0 to 10"):
            symmetry.apply(np.full(81, bad))
    assert symmetry.apply(np.ones((0, 81), dtype=int)).shape == (0, 81)


@pytest.fixture
def write(tmp_path):
    def write_text(text):
        path = tmp_path / "puzzles.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_text


GRID = "1234341221434321"
PUZZLE = "1...3..2..4....1"  # one solution: GRID


def test_read_lines(write):
    text = f"\ufeff# a list\n\n{PUZZLE}  # first\r\n  {GRID.replace('4', '0')}\n{GRID}"
    puzzles = read_lines(write(text))
    assert sudoku.decode(puzzles.inputs[0]) == PUZZLE
    assert [sudoku.decode(row) for row in puzzles.labels] == [GRID] * 3
    assert plain_solutions(puzzles.inputs[0]) == {tuple(sudoku.encode(GRID))}
    assert puzzles.grid == (4, 4) and ratings(puzzles) == [0, 0, 0]
    assert len(read_lines(write(text), num=2)) == 2
    unsolved = read_lines(write(text), solve=False)
    assert (unsolved.inputs == puzzles.inputs).all()
    assert unsolved.rating is None and not unsolved.labels.any()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds no puzzle"),
        ("# nothing\n\n", "holds no puzzle"),
        (f"{PUZZLE}\n{PUZZLE[:-1]}\n", "line 2: 15 cells"),
        (f"# c\n{PUZZLE}\n{'.' * 36}\n", "line 3: 36 cells after puzzles of 16"),
        (f"{PUZZLE}\n{PUZZLE[:5]}5{PUZZLE[6:]}\n", "line 2: '5' at position 6"),
        (f"{PUZZLE}\n{PUZZLE[:5]}\u00e9{PUZZLE[6:]}\n", "line 2: '\u00e9' at position 6"),
        (f"{PUZZLE}\n\n1{'.' * 14}1\n", "line 3: the puzzle has more than one solution"),
        (f"{PUZZLE}\n1..1{'.' * 12}\n", "line 2: contradictory clues: digit 1 .* in row 1"),
        (f"2{'.' * 11}2...\n", "line 1: contradictory clues: digit 2 .* in column 1"),
        (f"..3....3{'.' * 8}\n", "line 1: contradictory clues: digit 3 .* in box 2"),
        (f"123.{'.' * 3}4{'.' * 8}\n", "line 1: the puzzle has no solution"),
        (b"\xff\xfe\x00garbage\n", "line 1: "),
    ],
)
def test_read_lines_errors_name_the_line(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_lines(write(text))


def test_files_that_are_missing_and_numbers_that_are_wrong(tmp_path, write):
    for reader in (read_lines, read_csv):
        with pytest.raises(FileNotFoundError):
            reader(tmp_path / "nothing.txt")
        with pytest.raises(ValueError, match="num is 0"):
            reader(write(PUZZLE), num=0)


def test_seventeen_clue_list(shared_data):
    puzzles = read_lines(shared_data / "sudoku-norvig" / "sudokus_17.txt", num=10)
    assert len(puzzles) == 10 and ((puzzles.inputs > 1).sum(axis=1) == 17).all()
    assert SudokuTask(9).verify(puzzles.inputs, puzzles.labels).all()
    for puzzle in puzzles.inputs:
        assert len(sudoku.solve(puzzle).solutions) == 1


@pytest.mark.parametrize("n", SIZES)
def test_csv_round_trip(n, tmp_path):
    puzzles = generate(5, n=n, seed=0)
    path = sudoku.write_csv(puzzles, tmp_path / "a.csv", source="test")
    assert path.read_text().splitlines()[0] == "source,question,answer,rating"
    assert path.read_text().splitlines()[1].startswith("test,")
    read = read_csv(path, check_unique=True)
    assert same(read, puzzles) and ratings(read) == ratings(puzzles)
    assert len(read_csv(path, num=2)) == 2
    unrated = Puzzles(puzzles.inputs, puzzles.labels, puzzles.grid, puzzles.vocab_size)
    assert sudoku.write_csv(unrated, tmp_path / "b.csv", source="test").read_text() == (
        path.read_text()
    )


def test_failed_write_leaves_the_old_file(tmp_path, write):
    path = sudoku.write_csv(generate(2, n=4, seed=0), tmp_path / "a.csv")
    before = path.read_text()
    unsolved = read_lines(write(PUZZLE), solve=False)
    with pytest.raises(ValueError, match="solve the puzzles"):
        sudoku.write_csv(unsolved, path)
    assert path.read_text() == before


HEADER = "source,question,answer,rating\n"
GOOD = f"kaggle,{PUZZLE},{GRID},3\n"


def test_files_of_several_blocks(write, monkeypatch):
    monkeypatch.setattr(sudoku, "_ROWS_AT_ONCE", 2)
    with pytest.raises(ValueError, match="line 5: contradictory clues"):
        read_lines(write(f"{PUZZLE}\n" * 4 + f"11{'.' * 14}\n"))
    puzzles = read_csv(write(HEADER + GOOD * 2 + "\n" + GOOD * 3))
    assert len(puzzles) == 5 and ratings(puzzles) == [3] * 5
    with pytest.raises(ValueError, match="line 6: the answer contradicts"):
        read_csv(write(HEADER + GOOD * 4 + f"x,{PUZZLE[:-1]}3,{GRID},0\n"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "line 1: the header is"),
        ("a,b\n", "line 1: the header is"),
        (HEADER, "no rows"),
        (HEADER + f"x,{PUZZLE},{GRID}\n", "line 2: 3 columns"),
        (HEADER + GOOD + f"x,{PUZZLE},{GRID},many\n", "line 3: rating 'many'"),
        (HEADER + GOOD + f"x,{PUZZLE},{GRID},-1\n", "line 3: rating '-1'"),
        (HEADER + GOOD + f"x,{PUZZLE},{GRID},{2**31}\n", "line 3: rating"),
        (HEADER + "x,123,123,0\n", "line 2: 3 cells"),
        (HEADER + GOOD + f"x,{PUZZLE}.,{GRID},0\n", "line 3: 17 cells; a 4x4"),
        (HEADER + GOOD + f"x,{PUZZLE},{'.' * 81},0\n", "line 3: 81 cells; a 4x4"),
        (HEADER + GOOD + f"x,{PUZZLE},{GRID[:-1]}x,0\n", "line 3: 'x' at position 16"),
        (HEADER + GOOD + f"x,{PUZZLE},{GRID[:-1]}.,0\n", "line 3: the answer is not a full"),
        (HEADER + GOOD + f"x,{PUZZLE},{GRID[:-1]}2,0\n", "line 3: the answer is not a full"),
        (HEADER + GOOD + f"x,11{'.' * 14},{GRID},0\n", "line 3: contradictory clues"),
        (HEADER + GOOD + f"x,2{'.' * 15},{GRID},0\n", "line 3: the answer contradicts the clues"),
    ],
)
def test_read_csv_errors_name_the_line(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_csv(write(text))


def test_csv_puzzles_with_several_solutions_are_found_on_request(write):
    path = write(HEADER + GOOD + f"x,1{'.' * 15},{GRID},0\n")
    assert len(read_csv(path)) == 2
    with pytest.raises(ValueError, match="line 3: the puzzle has more than one solution"):
        read_csv(path, check_unique=True)


@pytest.mark.parametrize("n", SIZES)
def test_task_reads_what_it_writes_and_transforms_what_it_scores(n):
    task, puzzles = SudokuTask(n), generate(3, n=n, seed=0)
    assert (task.name, task.vocab_size, task.grid) == (f"sudoku{n}", n + 2, (n, n))
    symmetry = task.symmetry(np.random.default_rng(0))
    assert task.verify(symmetry.apply(puzzles.inputs), symmetry.apply(puzzles.labels)).all()
    assert (task.identity().apply(puzzles.inputs) == puzzles.inputs).all()
    for puzzle, label in zip(puzzles.inputs, puzzles.labels, strict=True):
        assert (task.parse(task.format(puzzle)) == puzzle).all()
        assert (task.parse(task.format(label, given=puzzle)) == label).all()
        assert (task.parse(sudoku.decode(puzzle)) == puzzle).all()
        shown = task.format(label, given=puzzle).splitlines()
        assert all(line == line.rstrip() for line in shown)


def test_format_separates_boxes_and_marks_clues():
    answer = sudoku.encode("123456" + "456123" + "." * 24)
    given_ = sudoku.encode("1.3..." + ".4...." + "." * 24)
    lines = SudokuTask(6).format(answer, given=given_).splitlines()
    assert lines[:3] == ["[1] 2 [3] | 4  5  6", " 4 <5> 6  | 1  2  3", "----------+----------"]
    assert SudokuTask(6).format(answer).splitlines()[:3] == [
        " 1 2 3 | 4 5 6",
        " 4 5 6 | 1 2 3",
        "-------+-------",
    ]


@pytest.mark.parametrize("n", SIZES)
def test_verify_is_the_rules(n):
    task, puzzles = SudokuTask(n), generate(4, n=n, seed=4)
    inputs, labels = puzzles.inputs, puzzles.labels.astype(np.int64)
    assert task.verify(inputs, labels).all()
    swapped = np.where(labels == 2, 3, np.where(labels == 3, 2, labels))  # a grid, other clues
    assert task.verify(np.ones_like(inputs), swapped).all()
    assert task.verify(inputs, swapped).tolist() == [
        not np.isin(row, [2, 3]).any() for row in inputs
    ]
    for wrong in (0, 1, n + 2, -100, 300):
        bad = labels.copy()
        bad[1, 0] = wrong
        assert task.verify(np.ones_like(inputs), bad).tolist() == [True, False, True, True]
    assert task.verify(inputs[:0], labels[:0]).shape == (0,)
    latin = sudoku.encode("1234" + "2341" + "3412" + "4123")  # rows and columns are not enough
    assert not SudokuTask(4).verify(np.ones((1, 16), dtype=int), latin[None])[0]


@given(SEEDS, st.integers(0, 15), st.integers(2, 5))
def test_verify_agrees_with_loops(grids4, seed, cell, token):
    answer = grids4[seed % 288].copy()
    answer[cell] = token
    expected = is_grid((answer.reshape(4, 4).astype(int) - 1).tolist())
    assert SudokuTask(4).verify(np.ones((1, 16), dtype=int), answer[None]).tolist() == [expected]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "0 cells; a 6x6 Sudoku has 36"),
        ("." * 81, "81 cells; a 6x6"),
        ("7" + "." * 35, "'7' at position 1; a 6x6 Sudoku uses the digits 1 to 6"),
        ("x" * 36, "'x' at position 1"),
        ("11" + "." * 34, "contradictory clues: digit 1"),
    ],
)
def test_parse_errors(text, message):
    with pytest.raises(ValueError, match=message):
        SudokuTask(6).parse(text)


def test_task_refuses_other_sizes_and_shapes():
    with pytest.raises(ValueError, match="n is 8"):
        SudokuTask(8)
    task, cells = SudokuTask(4), np.ones((2, 16), dtype=np.uint8)
    for inputs, answers in ((cells, cells[:1]), (cells[0], cells[0]), (cells[:, :9], cells[:, :9])):
        with pytest.raises(ValueError, match="must both be"):
            task.verify(inputs, answers)
    with pytest.raises(ValueError, match="tokens has shape"):
        task.format(cells)
    with pytest.raises(ValueError, match="given has shape"):
        task.format(cells[0], given=cells)
