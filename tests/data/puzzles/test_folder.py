"""Dataset folders: bit-exact both ways, every fault named, and sampling by step alone."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inward.data.puzzles.folder import (
    ARRAYS,
    Folder,
    FolderSource,
    write_json,
    write_puzzles,
    write_split,
)
from inward.data.puzzles.puzzles import Puzzles

L, V = 9, 6


def random_groups(seed, sizes):
    """One group per entry of sizes, which lists the numbers of examples of its puzzles."""
    rng = np.random.default_rng(seed)
    identifier = 0
    groups = []
    for group in sizes:
        puzzles = []
        for size in group:
            identifier += 1
            x, y = rng.integers(0, V, (2, size, L), dtype=np.uint8)
            puzzles.append((identifier, x, y))
        groups.append(puzzles)
    return groups


def write(path, groups, split="train", **options):
    options = {"seq_len": L, "vocab_size": V, "num_identifiers": 100, **options}
    return write_split(path, split, {"all": groups}, **options)


def by_hand(path, dtype=np.int64, **changes):
    """The folder as the reference's Sudoku builder leaves it: int64 arrays, np.save."""
    folder = path / "train"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {
        "inputs": rng.integers(1, V, (7, L)).astype(dtype),
        "labels": rng.integers(1, V, (7, L)).astype(dtype),
        "puzzle_identifiers": np.array([0, 3, 1, 2], np.int32),
        "puzzle_indices": np.array([0, 2, 3, 6, 7], np.int32),
        "group_indices": np.array([0, 3, 4], np.int32),
    }
    info = {
        "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": V, "seq_len": L,
        "num_puzzle_identifiers": 4, "total_groups": 2, "mean_puzzle_examples": 1.75,
        "total_puzzles": 4, "sets": ["all"],
    }  # fmt: skip
    for name, value in changes.items():
        if name in ARRAYS:
            arrays[name] = value(arrays[name].copy()) if callable(value) else value
        elif value is None:
            del info[name]
        else:
            info[name] = value
    for name, array in arrays.items():
        np.save(folder / f"all__{name}.npy", array)
    (folder / "dataset.json").write_text(json.dumps(info))
    return arrays


# -- Reading and writing


def test_round_trip_is_bit_exact(tmp_path):
    groups = random_groups(1, [[2, 2, 2], [1], [3, 1]])
    write(tmp_path, groups)
    folder = Folder(tmp_path)
    puzzles = [puzzle for group in groups for puzzle in group]
    for column, place in (("inputs", 1), ("labels", 2)):
        stored = np.load(tmp_path / "train" / f"all__{column}.npy", allow_pickle=False)
        assert stored.dtype == np.uint8
        assert np.array_equal(stored, np.concatenate([p[place] for p in puzzles]))
    part = folder.sets["all"]
    assert part.puzzle_identifiers.tolist() == [1, 2, 3, 4, 5, 6]
    assert part.puzzle_indices.tolist() == [0, 2, 4, 6, 7, 10, 11]
    assert part.group_indices.tolist() == [0, 3, 4, 6]
    assert {part.group_indices.dtype, part.puzzle_indices.dtype} == {np.dtype(np.int32)}
    assert (folder.info.total_groups, folder.info.total_puzzles, len(folder)) == (3, 6, 11)
    assert folder.info.mean_puzzle_examples == 11 / 6
    second = tmp_path / "second"
    write_split(
        second, "train", {"all": groups_of(folder)}, seq_len=L, vocab_size=V, num_identifiers=100
    )
    for file in (tmp_path / "train").iterdir():
        assert file.read_bytes() == (second / "train" / file.name).read_bytes()


def groups_of(folder):
    inputs, labels, identifiers = folder.tokens(range(len(folder)))
    cuts, groups = folder.puzzle_indices, folder.group_indices
    for g in range(len(groups) - 1):
        yield [
            (
                int(identifiers[cuts[p]]),
                inputs[cuts[p] : cuts[p + 1]],
                labels[cuts[p] : cuts[p + 1]],
            )
            for p in range(groups[g], groups[g + 1])
        ]


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.int8, np.uint16, ">i8"])
def test_hand_made_folder_of_any_integer_type_is_read(tmp_path, dtype):
    arrays = by_hand(tmp_path, dtype)
    rows = np.array([6, 0, 2, 5])
    read = Folder(tmp_path).read(rows)
    assert np.array_equal(read["inputs"], arrays["inputs"][rows])
    assert np.array_equal(read["labels"], arrays["labels"][rows])
    assert read["identifiers"].tolist() == [2, 0, 3, 1]
    assert {v.dtype for v in read.values()} == {np.dtype(np.int64)}


def test_labels_that_are_not_scored_become_minus_100(tmp_path):
    labels = np.arange(7 * L).reshape(7, L) % V
    for name, value in (("pad", 0), ("two", 2), ("minus", -100)):
        shown = np.where(labels == 0, -100, labels) if value < 0 else labels
        by_hand(tmp_path / name, labels=shown, ignore_label_id=value)
        folder = Folder(tmp_path / name)
        found = folder.read(range(7))["labels"]
        assert np.array_equal(found, np.where(shown == value, -100, shown))
        assert np.array_equal(folder.tokens(range(7))[1], shown)
    by_hand(tmp_path / "none", labels=labels)
    info = json.loads((tmp_path / "none/train/dataset.json").read_text()) | {
        "ignore_label_id": None
    }
    (tmp_path / "none/train/dataset.json").write_text(json.dumps(info))
    assert np.array_equal(Folder(tmp_path / "none").read(range(7))["labels"], labels)


def test_batches_cover_everything_once_and_pad_the_last(tmp_path):
    arrays = by_hand(tmp_path, pad_id=5, blank_identifier_id=3)
    batches = list(Folder(tmp_path).batches(4))
    assert [len(b["inputs"]) for b in batches] == [4, 4]
    assert np.array_equal(np.concatenate([b["inputs"] for b in batches])[:7], arrays["inputs"])
    last = batches[-1]
    assert (last["inputs"][3] == 5).all()
    assert (last["labels"][3] == -100).all()
    assert last["identifiers"].tolist() == [1, 1, 2, 3]
    with pytest.raises(ValueError, match="cannot pad 3 rows to 2"):
        Folder(tmp_path).read(range(3), pad_to=2)
    with pytest.raises(ValueError, match="num_rows is 0"):
        next(Folder(tmp_path).batches(0))
    with pytest.raises(IndexError, match="row 7 of a split of 7"):
        Folder(tmp_path).read([7])


def test_several_sets_are_one_after_another(tmp_path):
    one, two = random_groups(1, [[1, 2], [3]]), random_groups(2, [[2], [1, 1]])
    write_split(
        tmp_path, "test", {"all": one, "more": two}, seq_len=L, vocab_size=V, num_identifiers=9
    )
    folder = Folder(tmp_path, "test")
    assert folder.info.sets == ("all", "more")
    assert folder.puzzle_indices.tolist() == [0, 1, 3, 6, 8, 9, 10]
    assert folder.group_indices.tolist() == [0, 2, 3, 4, 6]
    rows = np.array([9, 0, 6, 5, 7])
    inputs, _, identifiers = folder.tokens(rows)
    everything = np.concatenate([p[1] for group in one + two for p in group])
    assert np.array_equal(inputs, everything[rows])
    assert identifiers.tolist() == [3, 1, 1, 3, 1]
    source = FolderSource(folder, seed=0)
    assert len(source.batch(0, range(0, 12), 12)["inputs"]) == 12


def test_puzzles_in_and_out(tmp_path):
    rng = np.random.default_rng(0)
    inputs, labels = rng.integers(0, V, (2, 20, L), dtype=np.uint8)
    puzzles = Puzzles(inputs, labels, (3, 3), V)
    write_puzzles(tmp_path, "train", puzzles)
    found = Folder(tmp_path).puzzles((3, 3))
    assert np.array_equal(found.inputs, inputs)
    assert np.array_equal(found.labels, labels)
    assert np.array_equal(Folder(tmp_path).puzzles((3, 3), [4, 2]).inputs, inputs[[4, 2]])
    assert Folder(tmp_path).info.num_puzzle_identifiers == 1
    named = Puzzles(inputs, labels, (3, 3), V, identifiers=np.arange(20, dtype=np.int32))
    write_puzzles(tmp_path / "named", "train", named)
    found = Folder(tmp_path / "named").puzzles((3, 3))
    assert found.identifiers is not None
    assert found.identifiers.tolist() == list(range(20))


def test_nothing_is_loaded_whole(tmp_path):
    """A folder of 40 MB: opening, reading a batch and checking all take a fraction of it."""
    num, cells = 100_000, 200
    piece = np.ones((1000, cells), np.uint8)

    def groups():
        for start in range(0, num, 1000):
            yield [(start, piece, piece)]

    tracemalloc.start()
    write_split(
        tmp_path, "train", {"all": groups()}, seq_len=cells, vocab_size=2, num_identifiers=num
    )
    folder = Folder(tmp_path)
    folder.read(range(0, num, 1000))
    FolderSource(folder, seed=0).batch(0, range(100), 100)
    peak_small = tracemalloc.get_traced_memory()[1]
    folder.check()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(folder.sets["all"].inputs, np.memmap)
    assert peak_small < 4e6
    assert peak < 24e6  # a piece is a million cells, twice, as int64
    assert len(folder) == num


def test_names(tmp_path):
    by_hand(tmp_path)
    folder = Folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"identifiers\.json"):
        folder.names()
    write_json(tmp_path / "identifiers.json", ["<blank>", "a", "b", "c"])
    assert folder.names() == ["<blank>", "a", "b", "c"]
    write_json(tmp_path / "identifiers.json", ["<blank>", "a"])
    with pytest.raises(ValueError, match=r"names 2 identifiers, dataset\.json says 4"):
        folder.names()
    write_json(tmp_path / "identifiers.json", {"0": "a"})
    with pytest.raises(ValueError, match="expected a list of names"):
        folder.names()


def test_older_folders_without_total_puzzles_are_read(tmp_path):
    by_hand(tmp_path, total_puzzles=None)
    assert Folder(tmp_path).info.total_puzzles is None


# -- Faults


def test_missing_files_are_listed(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds train/ and test/"):
        Folder(tmp_path / "nowhere")
    by_hand(tmp_path)
    with pytest.raises(FileNotFoundError, match="test"):
        Folder(tmp_path, "test")
    (tmp_path / "train/all__labels.npy").unlink()
    (tmp_path / "train/all__group_indices.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks all__labels\.npy, all__group_indices\.npy"):
        Folder(tmp_path)
    (tmp_path / "train/dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset\.json"):
        Folder(tmp_path)


def test_every_truncation_of_every_file_is_named(tmp_path):
    by_hand(tmp_path)
    for file in sorted((tmp_path / "train").iterdir()):
        whole = file.read_bytes()
        for length in (0, 1, 5, 9, 40, 100, len(whole) - 1):
            file.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=file.name):
                Folder(tmp_path)
        file.write_bytes(whole)
    Folder(tmp_path)


def test_damaged_headers_never_crash(tmp_path):
    """Any byte of a header may be wrong: a ValueError, or an array that passes all checks."""
    by_hand(tmp_path)
    file = tmp_path / "train/all__puzzle_indices.npy"
    whole = file.read_bytes()
    refused = 0
    for place in range(128):
        for value in (0, 1, 39, 57, 255):
            file.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                Folder(tmp_path).read(range(7))
            except ValueError as error:
                refused += file.name in str(error)
    assert refused > 200


def test_pickles_are_refused(tmp_path):
    by_hand(tmp_path)
    file = tmp_path / "train/all__labels.npy"
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"cannot read .*all__labels\.npy"):
        Folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": lambda a: a[:, :-1]}, r"inputs\.npy has shape \(7, 8\); expected \(N, 9\)"),
        ({"inputs": lambda a: a.reshape(-1)}, r"all__inputs\.npy has shape \(63,\)"),
        ({"inputs": lambda a: a * 1.0}, r"all__inputs\.npy holds float64"),
        ({"inputs": lambda a: a > 0}, r"all__inputs\.npy holds bool"),
        ({"labels": lambda a: a[:-1]}, r"all__labels\.npy holds 6 rows for 7 inputs"),
        ({"inputs": lambda a: a[:0]}, r"all__inputs\.npy"),
        ({"inputs": lambda a: np.where(a == a[3, 3], V, a)}, r"all__inputs\.npy row \d .* token 6"),
        ({"labels": lambda a: a - 2}, r"labels\.npy row \d holds token -1, but vocab_size is 6"),
        ({"puzzle_identifiers": np.array([0, 1, 2, 4])}, "holds 4; identifiers are 0 to 3"),
        ({"puzzle_identifiers": np.array([0, 1, 2, -1])}, "holds -1; identifiers are 0 to 3"),
        ({"puzzle_identifiers": np.array([0, 1, 2])}, "group_indices|puzzle_indices"),
        ({"puzzle_indices": np.array([0, 2, 3, 6, 8])}, "runs from 0 to 8, expected 0 to 7"),
        ({"puzzle_indices": np.array([1, 2, 3, 6, 7])}, "runs from 1 to 7"),
        ({"puzzle_indices": np.array([0, 3, 2, 6, 7])}, "2 follows 3"),
        ({"puzzle_indices": np.array([0, 3, 3, 6, 7], np.uint32)}, "3 follows 3"),
        ({"puzzle_indices": np.array([0, 2, 3, 5, 6, 7])}, "6 offsets for 4 puzzle_identifiers"),
        ({"group_indices": np.array([0, 5])}, r"all__group_indices\.npy runs from 0 to 5"),
        ({"group_indices": np.array([[0, 3, 4]])}, r"has shape \(1, 3\); expected \(N,\)"),
        ({"vocab_size": 3}, "vocab_size is 3"),
        ({"seq_len": 10}, r"expected \(N, 10\), seq_len"),
        ({"total_groups": 3}, "total_groups is 3, but the offset arrays hold 2"),
        ({"total_puzzles": 7}, "total_puzzles is 7, but the offset arrays hold 4"),
        ({"num_puzzle_identifiers": 2}, "holds 3; identifiers are 0 to 1"),
        ({"vocab_size": "6"}, "vocab_size is '6'; expected a number"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"seq_len": 0}, "seq_len is 0; it must be at least 1"),
        ({"pad_id": -1}, "pad_id is -1"),
        ({"sets": []}, "sets is"),
        ({"sets": ["all", "all"]}, "distinct names"),
        ({"sets": ["../train/all"]}, "distinct names"),
        ({"sets": "all"}, "sets is 'all'"),
        ({"sets": ["all", "other"]}, r"lacks other__inputs\.npy"),
        ({"vocab_size": None, "sets": None}, r"dataset\.json lacks vocab_size, sets"),
    ],
)  # fmt: skip
def test_inconsistent_folders_name_the_fault(tmp_path, change, message):
    by_hand(tmp_path, **change)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Folder(tmp_path)


def test_a_bad_token_between_the_samples_is_found_on_reading(tmp_path):
    inputs = np.ones((5000, L), np.uint8)
    groups = [[(0, inputs[i : i + 1], inputs[i : i + 1])] for i in range(5000)]
    write(tmp_path, groups)
    array = np.load(tmp_path / "train/all__labels.npy", mmap_mode="r+", allow_pickle=False)
    array[4321, 5] = 77
    array.flush()
    folder = Folder(tmp_path)
    folder.read(range(4321))
    for use in (lambda: folder.read([4321]), folder.check):
        with pytest.raises(ValueError, match=r"all__labels\.npy row 4321 holds token 77"):
            use()


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ([], {}, "set 'all' is empty"),
        ([[]], {}, "group 0 of set 'all' is empty"),
        ([[(1, np.ones((0, L), int), np.ones((0, L), int))]], {}, "0 inputs, 0 labels"),
        ([[(1, np.ones((2, L), int), np.ones((1, L), int))]], {}, "2 inputs, 1 labels"),
        ([[(1, np.ones((1, 4), int), np.ones((1, 4), int))]], {}, r"shape \(1, 4\); .*\(n, 9\)"),
        ([[(1, np.full((1, L), V), np.ones((1, L), int))]], {}, "inputs hold token 6; use 0 to 5"),
        ([[(1, np.ones((1, L), int), np.full((1, L), -1))]], {}, "labels hold token -1"),
        ([[(1, np.ones((1, L)), np.ones((1, L)))]], {}, "float64"),
        ([[(100, np.ones((1, L), int), np.ones((1, L), int))]], {}, "identifier 100; use 0 to 99"),
        ([], {"vocab_size": 257}, "vocab_size is 257"),
        ([], {"ignore_label_id": -100}, "ignore_label_id is -100"),
    ],
)
def test_bad_writes_leave_nothing_behind(tmp_path, groups, options, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, groups, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_split_is_not_overwritten(tmp_path):
    write(tmp_path, random_groups(0, [[1]]))
    before = (tmp_path / "train/all__inputs.npy").read_bytes()
    with pytest.raises(ValueError, match="exists; remove it"):
        write(tmp_path, random_groups(1, [[1]]))
    assert (tmp_path / "train/all__inputs.npy").read_bytes() == before


# -- Sampling


class Plain:
    """A `Grouped` whose examples are their own numbers, so that a batch shows what was drawn."""

    def __init__(self, sizes):
        flat = [size for group in sizes for size in group]
        self.group_indices = np.cumsum([0, *map(len, sizes)])
        self.puzzle_indices = np.cumsum([0, *flat])

    def read(self, rows):
        rows = np.asarray(rows, np.int64)
        return {"inputs": rows[:, None], "labels": rows[:, None], "identifiers": rows}


def drawn(source, step, rows, num_rows):
    return source.batch(step, rows, num_rows)["identifiers"].tolist()


def stream(source, num_steps, num_rows):
    return [row for s in range(num_steps) for row in drawn(source, s, range(num_rows), num_rows)]


group_sizes = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=6)


@settings(max_examples=60)
@given(group_sizes, st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_an_epoch_holds_one_puzzle_of_every_group_with_all_its_examples(sizes, seed, num_rows):
    data = Plain(sizes)
    source = FolderSource(data, seed=seed)
    longest = sum(map(max, sizes))
    rows = stream(source, -(-3 * longest // num_rows) + 1, num_rows)
    position = 0
    for _ in range(2):
        groups = []
        while len(groups) < len(sizes):
            puzzle = int(np.searchsorted(data.puzzle_indices, rows[position], side="right")) - 1
            start, end = data.puzzle_indices[puzzle : puzzle + 2]
            assert sorted(rows[position : position + end - start]) == list(range(start, end))
            groups.append(int(np.searchsorted(data.group_indices, puzzle, side="right")) - 1)
            position += int(end - start)
        assert sorted(groups) == list(range(len(sizes)))


@settings(max_examples=40)
@given(group_sizes, st.integers(1, 9), st.integers(0, 30), st.data())
def test_rows_do_not_depend_on_who_asks_or_when(sizes, num_rows, step, data):
    whole = drawn(FolderSource(Plain(sizes), seed=5), step, range(num_rows), num_rows)
    cut = data.draw(st.integers(0, num_rows))
    source = FolderSource(Plain(sizes), seed=5)  # asks for parts, out of order, after other steps
    drawn(source, step + 40, range(num_rows), num_rows)
    last = drawn(source, step, range(cut, num_rows), num_rows)
    first = drawn(source, step, range(0, cut), num_rows)
    assert first + last == whole


def test_epochs_and_seeds_differ_and_every_augmentation_comes_up():
    sizes = [[2] * 8 for _ in range(20)]
    source = FolderSource(Plain(sizes), seed=1)
    assert source.rows_per_epoch == 40
    epochs = [drawn(source, step, range(40), 40) for step in range(60)]
    assert len({tuple(e) for e in epochs}) == 60
    assert epochs[0] != drawn(FolderSource(Plain(sizes), seed=2), 0, range(40), 40)
    assert {row for epoch in epochs for row in epoch} == set(range(320))
    first_groups = [epoch[0] // 16 for epoch in epochs]
    assert len(set(first_groups)) > 12  # 60 draws out of 20 groups, about 19 of them seen
    first_example_first = np.mean([row % 2 == 0 for epoch in epochs for row in epoch[::2]])
    assert 0.45 < first_example_first < 0.55  # 1200 fair draws: 0.5 +- 0.014


def test_far_steps_are_reached_directly_or_by_counting():
    equal, unequal = Plain([[2, 2], [1, 1]]), Plain([[2, 1], [1, 1]])
    assert len(drawn(FolderSource(equal, seed=0), 10**12, range(4), 4)) == 4
    far = drawn(FolderSource(unequal, seed=0), 3000, range(4), 4)
    walker = FolderSource(unequal, seed=0)
    assert stream(walker, 3001, 4)[-4:] == far
    assert walker.rows_per_epoch == 2.5


def test_source_gives_tensors_of_the_agreed_kind(tmp_path):
    import torch

    write(tmp_path, random_groups(1, [[2, 2], [3, 3]]))
    source = FolderSource(Folder(tmp_path), seed=0)
    batch = source.batch(4, range(2, 5), 8)
    assert {k: (tuple(v.shape), v.dtype) for k, v in batch.items()} == {
        "inputs": ((3, L), torch.int64),
        "labels": ((3, L), torch.int64),
        "identifiers": ((3,), torch.int64),
    }
    assert (batch["labels"] != 0).all()
    assert batch["labels"].min() == -100
    assert source.batch(0, range(3, 3), 8)["inputs"].shape == (0, L)
    assert json.dumps(source.describe())


@pytest.mark.parametrize(
    ("step", "rows", "num_rows"),
    [(-1, range(2), 4), (0, range(5), 4), (0, range(-1, 2), 4), (0, range(0, 4, 2), 4)],
)
def test_impossible_slices_are_refused(step, rows, num_rows):
    with pytest.raises(ValueError, match="give a step"):
        FolderSource(Plain([[1]]), seed=0).batch(step, rows, num_rows)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="choose 0 to 4294967295"):
        FolderSource(Plain([[1]]), seed=seed)
