"""Puzzle sets check themselves, and a damaged file is an error, never a wrong set."""

import io
import itertools
import os
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.common.files import replacing
from inward.data.puzzles.puzzles import Identity, Puzzles


def make(num=3, rows=2, cols=4, vocab_size=6, **columns):
    cells = np.arange(num * rows * cols, dtype=np.int64).reshape(num, -1)
    inputs, labels = (cells % vocab_size).astype(np.uint8), (cells % 5).astype(np.uint8)
    return Puzzles(inputs, labels, (rows, cols), vocab_size, **columns)


def assert_same(a, b):
    assert (a.grid, a.vocab_size) == (b.grid, b.vocab_size)
    for name in ("inputs", "labels", "rating", "identifiers"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


@st.composite
def puzzle_sets(draw):
    num, rows, cols = (draw(st.integers(1, 5)) for _ in range(3))
    vocab_size = draw(st.integers(2, 256))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    inputs, labels = rng.integers(vocab_size, size=(2, num, rows * cols)).astype(np.uint8)
    if draw(st.booleans()):
        labels = np.asfortranarray(labels)  # numpy stores such an array column by column
    rating = rng.integers(-5, 100, num).astype(np.int32) if draw(st.booleans()) else None
    names = rng.integers(0, 9, num).astype(np.int32) if draw(st.booleans()) else None
    return Puzzles(inputs, labels, (rows, cols), vocab_size, rating=rating, identifiers=names)


@given(puzzles=puzzle_sets(), compress=st.booleans())
def test_save_load_round_trip(tmp_path_factory, puzzles, compress):
    path = puzzles.save(tmp_path_factory.mktemp("puzzles") / "set.npz", compress=compress)
    assert_same(Puzzles.load(path), puzzles)
    if not compress:
        mapped = Puzzles.load(path, mapped=True)
        assert_same(mapped, puzzles)
        assert isinstance(mapped.inputs, np.memmap) and isinstance(mapped.labels, np.memmap)


def test_equal_sets_give_equal_bytes_that_numpy_opens(tmp_path):
    a = make().save(tmp_path / "deep" / "er" / "a.npz").read_bytes()
    b = make().save(tmp_path / "b.npz").read_bytes()
    assert a == b
    with np.load(tmp_path / "b.npz", allow_pickle=False) as archive:
        assert set(archive) == {"inputs", "labels", "grid", "vocab_size"}


def test_select_and_split():
    rating = np.arange(4, dtype=np.int32)
    puzzles = make(num=4, rating=rating)
    for index in ([2, 0], np.array([2, 0])):
        np.testing.assert_array_equal(puzzles.select(index).rating, [2, 0])
    np.testing.assert_array_equal(puzzles.select(rating > 1).inputs, puzzles.inputs[2:])
    first, rest = puzzles.split(3)
    assert (len(first), len(rest)) == (3, 1)
    np.testing.assert_array_equal(np.vstack([first.labels, rest.labels]), puzzles.labels)
    for num_first in (-1, 0, 4, 5):
        with pytest.raises(ValueError, match="cannot split 4 puzzles"):
            puzzles.split(num_first)
    with pytest.raises(ValueError, match="empty"):
        puzzles.select([])
    with pytest.raises(IndexError):
        puzzles.select([4])


CELLS = np.ones((2, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": CELLS.astype(np.int64)}, "inputs must be a uint8 array, not int64"),
        ({"labels": CELLS.tolist()}, "labels must be a uint8 array, not list"),
        ({"inputs": CELLS[0]}, r"inputs has shape \(4,\); a 2x2 grid needs \(N, 4\)"),
        ({"labels": CELLS[:, :3]}, r"labels has shape \(2, 3\)"),
        ({"labels": CELLS[:1]}, "2 inputs but 1 labels"),
        ({"inputs": CELLS[:0], "labels": CELLS[:0]}, "inputs is empty"),
        ({"labels": CELLS * 3}, "labels holds token 3, but vocab_size is 3"),
        ({"grid": (4,)}, r"grid is \(4,\)"),
        ({"grid": (0, 4)}, "both at least 1"),
        ({"vocab_size": 1}, "vocab_size is 1"),
        ({"vocab_size": 257}, "vocab_size is 257"),
        ({"rating": np.zeros(2)}, "rating must be an int32 array, not float64"),
        ({"rating": np.zeros(3, np.int32)}, r"rating has shape \(3,\).* each of 2"),
        ({"identifiers": np.array([0, -1], np.int32)}, "identifiers hold -1"),
    ],
)
def test_bad_sets_are_refused(changes, message):
    arguments = {"inputs": CELLS, "labels": CELLS, "grid": (2, 2), "vocab_size": 3}
    Puzzles(**arguments)
    with pytest.raises(ValueError, match=message):
        Puzzles(**(arguments | changes))


@pytest.mark.parametrize("mapped", [False, True])
def test_truncated_empty_and_garbage_files_are_errors(tmp_path, mapped):
    whole = make().save(tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "broken.npz"
    pieces = [whole[:length] for length in range(len(whole))]
    for content in [*pieces, b"garbage", bytes(1000), whole[100:]]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.npz"):
            Puzzles.load(path, mapped=mapped)


def test_no_flipped_byte_changes_what_is_read(tmp_path):
    puzzles = make()
    whole = puzzles.save(tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "flipped.npz"
    num_refused = 0
    for position, mask in itertools.product(range(len(whole)), (0x01, 0xFF)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
        try:
            assert_same(Puzzles.load(path), puzzles)  # a date or an attribute was hit
        except ValueError:
            num_refused += 1
    assert num_refused > len(whole)


def test_foreign_archives_are_refused(tmp_path):
    path = tmp_path / "foreign.npz"
    np.savez(path, inputs=CELLS, extra=CELLS)
    with pytest.raises(ValueError, match=r"missing \['grid', 'labels', .*unexpected \['extra'\]"):
        Puzzles.load(path)
    np.savez(path, inputs=CELLS, labels=CELLS.astype(np.int32), grid=(2, 2), vocab_size=3)
    with pytest.raises(ValueError, match=r"foreign\.npz .*labels must be a uint8 array, not int32"):
        Puzzles.load(path)
    np.savez(path, inputs=CELLS, labels=CELLS, grid=(2, 2, 1), vocab_size=3)
    with pytest.raises(ValueError, match="not a valid puzzle file"):
        Puzzles.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Puzzles.load(tmp_path / "nowhere.npz")


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap()], dtype=object), allow_pickle=True)
    path = make().save(tmp_path / "trap.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("rating.npy", buffer.getvalue())
    with pytest.raises(ValueError, match=r"trap\.npz"):
        Puzzles.load(path)
    assert not (tmp_path / "sprung").exists()


def test_compressed_files_are_smaller_and_cannot_be_mapped(tmp_path):
    puzzles = make(num=500)
    stored = puzzles.save(tmp_path / "stored.npz").stat().st_size
    path = puzzles.save(tmp_path / "small.npz", compress=True)
    assert path.stat().st_size < stored / 2
    with pytest.raises(ValueError, match="compressed file cannot be mapped; load it with mapped=F"):
        Puzzles.load(path, mapped=True)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = make().save(tmp_path / "set.npz")
    before = path.read_bytes()

    def write_half():
        with replacing(path) as partial:
            partial.write_bytes(b"half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_half()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.npz"]
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        make().save(tmp_path / "set.npy")


def test_identity_returns_copies():
    tokens = np.arange(4, dtype=np.uint8)
    for changed in (Identity().apply(tokens), Identity().invert(tokens)):
        np.testing.assert_array_equal(changed, tokens)
        assert not np.shares_memory(changed, tokens)
