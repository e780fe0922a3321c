"""Mazes: one shortest path, the right label, symmetries with inverses, files, and errors.

What is unique or shortest is checked by counting walks with powers of the adjacency matrix, which
shares nothing with the breadth-first search under test.
"""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inward.data.puzzles import maze
from inward.data.puzzles.dihedral import INVERSE, NUM_MAPS, Dihedral, keeping_shape, turn, turn_back
from inward.data.puzzles.maze import FREE, GOAL, PATH, START, WALL
from inward.data.puzzles.puzzles import PAD
from inward.tasks.maze import MazeTask

seeds = st.integers(0, 2**32 - 1)


def count_shortest_walks(grid):
    """(length, number) of shortest walks from S to G, by powers of the adjacency matrix."""
    cells = [tuple(cell) for cell in np.argwhere(grid > WALL)]
    beside = np.array(
        [[abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a in cells] for b in cells], dtype=object
    )
    tokens = [grid[cell] for cell in cells]
    start, goal = tokens.index(START), tokens.index(GOAL)
    walks = np.array([int(i == start) for i in range(len(cells))], dtype=object)
    for length in range(1, len(cells)):
        walks = beside @ walks
        if walks[goal]:
            return length, int(walks[goal])
    return -1, 0


def all_shortest_answers(grid):
    """Every set of marked cells that is right, by trying all simple paths."""
    ends = [tuple(np.argwhere(grid == token)[0]) for token in (START, GOAL)]
    found = []

    def extend(path):
        if path[-1] == ends[1]:
            found.append(path)
            return
        row, col = path[-1]
        for cell in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
            inside = 0 <= cell[0] < grid.shape[0] and 0 <= cell[1] < grid.shape[1]
            if inside and grid[cell] > WALL and cell not in path:
                extend([*path, cell])

    extend([ends[0]])
    shortest = min(map(len, found), default=0)
    return {frozenset(path[1:-1]) for path in found if len(path) == shortest}


def random_grid(rng, rows, cols, share_walls):
    """Scattered walls, no border, S and G anywhere."""
    grid = np.where(rng.random((rows, cols)) < share_walls, WALL, FREE).astype(np.uint8)
    ends = rng.permutation(rows * cols)[:2]
    grid.flat[ends[0]], grid.flat[ends[1]] = START, GOAL
    return grid


# Dihedral maps


@given(
    rows=st.integers(1, 5), cols=st.integers(1, 5), index=st.integers(0, NUM_MAPS - 1), seed=seeds
)
def test_dihedral_maps_are_inverted_and_agree_with_the_grid_form(rows, cols, index, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 12, size=(2, 3, rows * cols)).astype([np.uint8, np.int64][seed % 2])
    before = tokens.copy()
    symmetry = Dihedral((rows, cols), index)
    turned = symmetry.apply(tokens)
    assert (turned.shape, turned.dtype) == (tokens.shape, tokens.dtype)
    np.testing.assert_array_equal(symmetry.invert(turned), tokens)
    np.testing.assert_array_equal(tokens, before)
    grids = tokens.reshape(2, 3, rows, cols)
    np.testing.assert_array_equal(turned.reshape(2, 3, *symmetry.grid_out), turn(grids, index))
    np.testing.assert_array_equal(turn_back(turn(grids, index), index), grids)
    assert (symmetry.grid_out == (rows, cols)) == (index in keeping_shape((rows, cols)))


def test_dihedral_numbering_is_the_published_one():
    grid = np.array([[1, 2, 3], [4, 5, 6]])
    expected = [
        [[1, 2, 3], [4, 5, 6]],
        [[3, 6], [2, 5], [1, 4]],
        [[6, 5, 4], [3, 2, 1]],
        [[4, 1], [5, 2], [6, 3]],
        [[3, 2, 1], [6, 5, 4]],
        [[4, 5, 6], [1, 2, 3]],
        [[1, 4], [2, 5], [3, 6]],
        [[6, 3], [5, 2], [4, 1]],
    ]
    for index, rows in enumerate(expected):
        assert turn(grid, index).tolist() == rows
    assert INVERSE == (0, 3, 2, 1, 4, 5, 6, 7)


@pytest.mark.parametrize("index", [-1, 8])
def test_unknown_dihedral_maps_are_refused(index):
    for call in (lambda: turn(np.ones((2, 2)), index), lambda: Dihedral((2, 2), index)):
        with pytest.raises(ValueError, match=f"dihedral map {index} does not exist"):
            call()
    with pytest.raises(ValueError, match="tokens have 5 cells; a 2x3 grid has 6"):
        Dihedral((2, 3), 1).apply(np.ones(5))


# Shortest paths


@given(rows=st.integers(2, 5), cols=st.integers(2, 5), share_walls=st.floats(0, 0.6), seed=seeds)
def test_shortest_paths_agree_with_counted_walks(rows, cols, share_walls, seed):
    grid = random_grid(np.random.default_rng(seed), rows, cols, share_walls)
    length, num_shortest, path = maze.shortest_paths(grid)
    assert (length, num_shortest) == count_shortest_walks(grid)
    if num_shortest:
        assert len(path) == length + 1
        assert (grid.flat[path[0]], grid.flat[path[-1]]) == (START, GOAL)
        steps = np.abs(np.diff([divmod(cell, cols) for cell in path], axis=0)).sum(axis=1)
        assert (steps == 1).all() and (grid.flat[path] > WALL).all()
    else:
        assert path == []


def test_pad_is_wall_and_two_starts_are_an_error():
    assert maze.shortest_paths(np.array([[START, PAD, GOAL]])).length == -1
    assert maze.shortest_paths(np.array([[START, PATH, GOAL]])).length == 2
    for row in ([START, START, GOAL], [START, FREE, FREE]):
        with pytest.raises(ValueError, match="exactly one of each"):
            maze.shortest_paths(np.array([row]))


# Generation


@given(size=st.sampled_from([5, 7, 9]), braid=st.sampled_from([0.0, 0.1, 0.5, 1.0]), seed=seeds)
def test_generated_mazes_have_one_shortest_path_which_is_the_label(size, braid, seed):
    inputs, labels = maze.one(np.random.default_rng(seed), size, braid=braid)
    grid = inputs.reshape(size, size)
    length, num_shortest = count_shortest_walks(grid)
    assert num_shortest == 1
    _, _, path = maze.shortest_paths(grid)
    expected = inputs.copy()
    expected[path[1:-1]] = PATH
    np.testing.assert_array_equal(labels, expected)
    assert (labels == PATH).sum() == length - 1


@given(size=st.sampled_from([5, 11, 15]), braid=st.sampled_from([0.0, 0.4, 1.0]), seed=seeds)
def test_generated_mazes_are_walled_rooms_joined_by_a_tree_plus_opened_walls(size, braid, seed):
    grid = maze.one(np.random.default_rng(seed), size, braid=braid)[0].reshape(size, size)
    is_open = grid > WALL
    border = np.ones((size, size), dtype=bool)
    border[1:-1, 1:-1] = False
    assert not is_open[border].any()
    assert is_open[1::2, 1::2].all() and not is_open[::2, ::2].any()
    assert {START, GOAL} <= set(grid[1::2, 1::2].flat)
    num_rooms = (size // 2) ** 2
    num_extra = is_open.sum() - (2 * num_rooms - 1)  # a tree has one door less than rooms
    num_left = (size // 2 - 1) ** 2
    assert abs(num_extra - braid * num_left) < 1
    reached = maze._search(grid.reshape(-1).tolist(), size, size + 1)[0]
    assert (np.array(reached) >= 0).sum() == is_open.sum()  # all connected


@given(size=st.sampled_from([5, 7]), canvas=st.integers(7, 12), seed=seeds)
def test_a_maze_stands_whole_on_its_canvas(size, canvas, seed):
    offset = (canvas - size, (canvas - size) // 2)
    placed = maze.one(np.random.default_rng(seed), size, canvas=canvas, offset=offset)
    alone = maze.one(np.random.default_rng(seed), size)
    for on_canvas, tokens in zip(placed, alone, strict=True):
        expected = np.full((canvas, canvas), WALL)
        rows, cols = (slice(start, start + size) for start in offset)
        expected[rows, cols] = tokens.reshape(size, size)
        np.testing.assert_array_equal(on_canvas.reshape(canvas, canvas), expected)


def test_random_offsets_reach_every_place():
    puzzles = maze.generate(100, size=5, canvas=6, seed=0)
    corners = np.argwhere((puzzles.inputs > WALL).reshape(-1, 6, 6))
    first = {tuple(corners[corners[:, 0] == i][:, 1:].min(axis=0)) for i in range(100)}
    assert first == {(1, 1), (1, 2), (2, 1), (2, 2)}


def test_every_5x5_maze_is_drawn():
    """Four rooms in a ring: 4 spanning trees, 12 ordered pairs of S and G."""
    mazes = maze.generate(1000, size=5, seed=0).inputs
    assert len(np.unique(mazes, axis=0)) == 4 * 12


def rating_of(puzzles):
    assert puzzles.rating is not None
    return puzzles.rating


def test_generate_is_seeded_rated_and_a_prefix_of_longer_sets():
    long, short, other = (maze.generate(n, size=11, seed=s) for n, s in ((9, 4), (5, 4), (9, 5)))
    np.testing.assert_array_equal(long.inputs[:5], short.inputs)
    np.testing.assert_array_equal(long.labels[:5], short.labels)
    assert (long.inputs != other.inputs).any(axis=1).all()
    for grid, rating in zip(long.inputs, rating_of(long), strict=True):
        assert maze.shortest_paths(grid.reshape(11, 11)).length == rating


def test_min_path_and_exclude_hold():
    assert (rating_of(maze.generate(50, size=11, seed=0, min_path=30)) >= 30).all()
    held_out = maze.generate(100, size=7, seed=1)
    keys = maze.maze_keys(held_out)
    training = maze.generate(200, size=7, canvas=8, seed=2, exclude=held_out)
    assert not maze.maze_keys(training) & keys
    assert maze.maze_keys(maze.generate(200, size=7, canvas=8, seed=2)) & keys
    for index in range(NUM_MAPS):
        turned = Dihedral((7, 7), index).apply(held_out.inputs)
        assert maze.maze_keys(maze.Puzzles(turned, turned, (7, 7), maze.VOCAB_SIZE)) == keys
    no_mazes = np.ones((1, 4), np.uint8)
    with pytest.raises(ValueError, match="no mazes: some have no start"):
        maze.maze_keys(maze.Puzzles(no_mazes, no_mazes, (2, 2), maze.VOCAB_SIZE))


def test_hard_mazes_have_the_published_format():
    puzzles = maze.generate_hard(12, seed=0)
    assert puzzles.grid == (30, 30) and (rating_of(puzzles) > 110).all()
    grids = puzzles.inputs.reshape(-1, 30, 30)
    assert all(maze.shortest_paths(grid).num_shortest == 1 for grid in grids)
    assert {tuple(np.argwhere(grid > WALL).min(axis=0)) for grid in grids} >= {(1, 1), (2, 2)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 10}, "maze size is 10; .* a maze of 9 on a canvas"),
        ({"size": 3}, "maze size is 3; .* at least 5"),
        ({"size": -7}, "maze size is -7"),
        ({"braid": 1.5}, "braid is 1.5"),
        ({"braid": float("nan")}, "braid is nan"),
        ({"min_path": 0}, "min_path is 0"),
        ({"min_path": 49}, "min_path is 49; the longest path of a 11x11 maze has 48 moves"),
        ({"canvas": 9}, r"canvas is 9, smaller than the maze \(11\)"),
        ({"canvas": 12, "offset": (0, 2)}, r"offset \(0, 2\) puts .* choose 0 to 1"),
        ({"offset": (-1, 0)}, "outside the 11x11 canvas"),
        ({"seed": -1}, "seed is -1"),
        ({"num": 0}, "cannot generate 0 mazes"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    settings = {"num": 1, "size": 11, "seed": 0} | arguments
    with pytest.raises(ValueError, match=message):
        maze.generate(settings.pop("num"), **settings)


def test_a_path_too_rare_to_find_ends_with_advice(monkeypatch):
    monkeypatch.setattr(maze, "MAX_ATTEMPTS", 20)
    with pytest.raises(ValueError, match=r"48 moves or more .*in 20 attempts; .*lower min_path"):
        maze.one(np.random.default_rng(0), 11, min_path=48, braid=1.0)
    everything = maze.generate(100, size=5, seed=0)  # all 6 kinds of 5x5 mazes
    with pytest.raises(ValueError, match="not excluded"):
        maze.generate(1, size=5, seed=1, exclude=everything)


def test_generation_is_fast():
    start = time.process_time()
    maze.generate(200, size=11, seed=0)
    maze.generate(20, size=21, seed=0)
    assert time.process_time() - start < 0.5  # takes about 0.02 s


# The task


def test_answers_are_verified_by_rule_exhaustively():
    """On tiny grids, of all possible markings exactly the shortest paths verify."""
    rng = np.random.default_rng(0)
    num_right = 0
    for _ in range(60):
        grid = random_grid(rng, 3, 4, 0.35)
        cells = [tuple(cell) for cell in np.argwhere(grid == FREE)]
        right = all_shortest_answers(grid)
        markings = [
            frozenset(itertools.compress(cells, bits))
            for bits in itertools.product([0, 1], repeat=len(cells))
        ]
        answers = np.repeat(grid[None], len(markings), axis=0)
        for answer, marking in zip(answers, markings, strict=True):
            for cell in marking:
                answer[cell] = PATH
        inputs = np.broadcast_to(grid.reshape(-1), (len(markings), 12))
        verified = MazeTask((3, 4)).verify(inputs, answers.reshape(-1, 12))
        assert verified.tolist() == [marking in right for marking in markings]
        num_right += verified.sum()
    assert num_right > 60  # some have several shortest paths: all of them count


@given(size=st.sampled_from([5, 9, 11]), braid=st.sampled_from([0.0, 0.3]), seed=seeds)
def test_symmetries_are_inverted_and_keep_solved_mazes_solved(size, braid, seed):
    puzzles = maze.generate(4, size=size, seed=seed, braid=braid)
    task = MazeTask(size)
    symmetry = task.symmetry(np.random.default_rng(seed))
    inputs, labels = symmetry.apply(puzzles.inputs), symmetry.apply(puzzles.labels)
    assert task.verify(inputs, labels).all()
    crossed = task.verify(inputs, np.roll(labels, 1, axis=0))
    np.testing.assert_array_equal(crossed, (labels == np.roll(labels, 1, axis=0)).all(axis=1))
    np.testing.assert_array_equal(symmetry.invert(inputs), puzzles.inputs)
    np.testing.assert_array_equal(symmetry.invert(labels), puzzles.labels)
    np.testing.assert_array_equal(task.identity().apply(labels), labels)


def test_symmetries_cover_all_that_keep_the_shape():
    for grid, num_maps in ((4, 8), ((3, 4), 4)):
        task = MazeTask(grid)
        tokens = np.arange(12 if num_maps == 4 else 16)
        rng = np.random.default_rng(0)
        assert len({tuple(task.symmetry(rng).apply(tokens)) for _ in range(100)}) == num_maps


@given(seed=seeds)
@settings(max_examples=50)
def test_any_single_changed_cell_is_noticed(seed):
    """No answer one cell away from the right one is right: checked for every cell and token."""
    rng = np.random.default_rng(seed)
    inputs, labels = maze.one(rng, 7, braid=0.2)
    answers = np.repeat(labels[None], 49 * maze.VOCAB_SIZE, axis=0)
    cells, tokens = np.divmod(np.arange(len(answers)), maze.VOCAB_SIZE)
    answers[np.arange(len(answers)), cells] = tokens
    verified = MazeTask(7).verify(np.broadcast_to(inputs, answers.shape), answers)
    np.testing.assert_array_equal(verified, labels[cells] == tokens)


def test_pad_cells_are_not_checked_and_detours_fail():
    task = MazeTask((2, 5))
    inputs = np.array([[3, 2, 4, 0, 0, 2, 2, 2, 1, 0]])
    right = np.array([[3, 5, 4, 5, 1, 2, 2, 2, 1, 3]])
    detour = np.array([[3, 2, 4, 0, 0, 5, 5, 5, 1, 0]])
    assert task.verify(inputs, right).tolist() == [True]
    assert task.verify(inputs, detour).tolist() == [False]
    assert task.verify(inputs[:0], right[:0]).tolist() == []


TEXT = "#######\n#S#G  #\n# ### #\n#     #\n#######"


def test_parse_and_format_are_inverse():
    task = MazeTask((5, 7))
    tokens = task.parse(TEXT)
    assert (tokens.dtype, tokens.shape) == (np.uint8, (35,))
    assert task.format(tokens) == TEXT
    for text in (TEXT + "\n", "\n" + TEXT.replace("\n", "\r\n"), TEXT.replace("\n", "")):
        np.testing.assert_array_equal(task.parse(text), tokens)
    answer = tokens.copy()
    answer[:3] = PAD, PATH, FREE
    assert task.format(answer, given=tokens).startswith("!!!####\n#S#G")
    assert task.format(answer).startswith(".o ####\n#S#G")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT[:-1], r"5 lines of \[6, 7\] characters; a 5x7 maze needs 5 lines of 7"),
        (TEXT + "\n#######", r"6 lines of \[7\]"),
        ("", r"0 lines of \[0\]"),
        (TEXT.replace("\n", "") + "#", r"1 lines of \[36\]"),
        (TEXT.replace("G  ", "Gx "), "cannot hold 'x'"),
        (TEXT.replace("G  ", "Go "), "already holds path cells"),
        (TEXT.replace("S", "G"), "0 starts 'S' and 2 goals 'G'"),
        (TEXT.replace("G  ", "G# "), "cannot be reached"),
    ],
)
def test_bad_text_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        MazeTask((5, 7)).parse(text)


def test_bad_arrays_are_refused():
    task = MazeTask(3)
    good = np.array([[3, 2, 4, 1, 1, 1, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"answers has shape \(9,\); this grid needs \(B, 9\)"):
        task.verify(good, good[0])
    with pytest.raises(ValueError, match=r"inputs has shape \(1, 8\)"):
        task.verify(good[:, :8], good)
    with pytest.raises(ValueError, match="1 mazes but 2 answers"):
        task.verify(good, np.repeat(good, 2, axis=0))
    with pytest.raises(ValueError, match="answers holds tokens 1 to 6"):
        task.verify(good, good + (good == 4) * 2)
    with pytest.raises(ValueError, match="without exactly one 'S' and one 'G'"):
        task.verify(np.ones_like(good), good)
    with pytest.raises(ValueError, match=r"tokens has shape \(1, 9\)"):
        task.format(good)
    with pytest.raises(ValueError, match="1x1 grid has no room"):
        MazeTask(1)


# The published file format


def test_csv_round_trip(tmp_path):
    puzzles = maze.generate_hard(3, seed=1)
    path = maze.write_csv(puzzles, tmp_path / "new" / "mazes.csv", source="test")
    lines = path.read_text().splitlines()
    assert lines[0] == "source,question,answer,rating"
    source, question, answer, rating = lines[1].split(",")
    assert (source, len(question), len(answer)) == ("test", 900, 900)
    assert answer.count("o") == int(rating) - 1
    again = maze.read_csv(path)
    for name in ("inputs", "labels", "rating"):
        np.testing.assert_array_equal(getattr(again, name), getattr(puzzles, name))
    assert (again.grid, again.vocab_size) == ((30, 30), 6)


HEADER = "source,question,answer,rating\n"
GOOD = "x,S  ## ##G,Soo##o##G,4\n"


def write(tmp_path, text):
    path = tmp_path / "mazes.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_without_border_walls_is_read(tmp_path):
    path = write(tmp_path, HEADER + "x,S  ## ##G,Soo##o##G,4\r\n")
    puzzles = maze.read_csv(path)
    assert (puzzles.grid, rating_of(puzzles).tolist()) == ((3, 3), [4])
    assert MazeTask(3).verify(puzzles.inputs, puzzles.labels).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 0: columns are \[\]"),
        ("a,b,c,d\n" + GOOD, "line 1: columns are"),
        (HEADER, "holds no mazes"),
        (HEADER + GOOD + "x,S  ## ##G,Soo##o##G\n", "line 3: 3 fields instead of 4"),
        (HEADER + GOOD + "\n", "line 3: 0 fields"),
        (HEADER + "x,S  ## ##,Soo##o##,4\n", "line 2: the question has 8 characters"),
        (HEADER + "x,,,4\n", "line 2: the question has 0 characters"),
        (HEADER + GOOD + "x,S  ##,Soo##,4\n", "line 3: question and answer have 5 and 5 .* of 9"),
        (HEADER + "x,S  ## ##G,Soo##o##,4\n", "9 and 8 characters instead of 9; is the file trunc"),
        (HEADER + "x,S .## ##G,Soo##o##G,4\n", "cannot hold '.'"),
        (HEADER + "x,S  ## ##S,Soo##o##S,4\n", "2 starts 'S' and 0 goals"),
        (HEADER + "x,S o## ##G,Soo##o##G,4\n", "already holds path cells"),
        (HEADER + "x,S  ## ##G,Sooo#o##G,4\n", "differs from the question"),
        (HEADER + "x,S  ## ##G,Soo##o##G,hard\n", "the rating is 'hard'"),
        (HEADER + "x,S  ## ##G,Soo##o##G,99999999999\n", "the rating is '99999999999'"),
    ],
)
def test_bad_csv_names_the_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=r"mazes\.csv.*" + message):
        maze.read_csv(write(tmp_path, text))


def test_other_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        maze.read_csv(tmp_path / "nowhere.csv")
    garbage = tmp_path / "garbage.csv"
    garbage.write_bytes(b"\xff\xfe\x00garbage")
    with pytest.raises(ValueError, match=r"garbage\.csv"):
        maze.read_csv(garbage)
    tokens = np.array([[3, 4]], dtype=np.uint8)
    with pytest.raises(ValueError, match="knows only squares"):
        maze.write_csv(maze.Puzzles(tokens, tokens, (1, 2), 6), tmp_path / "a.csv")
    padded = np.array([[3, 4, 0, 0]], dtype=np.uint8)
    with pytest.raises(ValueError, match="tokens range from 0 to 4"):
        maze.write_csv(maze.Puzzles(padded, padded, (2, 2), 6), tmp_path / "a.csv")
    assert [entry.name for entry in tmp_path.iterdir()] == ["garbage.csv"]


@given(length=st.integers(0, len(HEADER + GOOD + GOOD) - 1))
def test_truncated_csv_never_gives_a_wrong_maze(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("mazes") / "cut.csv"
    path.write_text((HEADER + GOOD + GOOD)[:length])
    try:
        puzzles = maze.read_csv(path)
    except ValueError:
        return
    assert maze.decode(puzzles.labels[-1]) == "Soo##o##G"
    assert len(puzzles) == (length - len(HEADER) + 1) // len(GOOD)  # only whole lines
