"""Sources are pure functions of the step: any slicing, order and history gives the same rows."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inward.common import IGNORE
from inward.data.puzzles import maze
from inward.data.puzzles.puzzles import PAD, Puzzles
from inward.data.puzzles.source import MazeSource, PuzzleSource
from inward.tasks.maze import MazeTask

NUM = 10
KEYS = ["inputs", "labels", "identifiers"]


def puzzle_set():
    puzzles = maze.generate(NUM, size=7, seed=0)
    labels = puzzles.labels.copy()
    labels[:, 0] = PAD
    names = np.arange(NUM, dtype=np.int32)
    return Puzzles(puzzles.inputs, labels, puzzles.grid, puzzles.vocab_size, identifiers=names)


PUZZLES = puzzle_set()
MAKERS = {
    "puzzles": lambda **settings: PuzzleSource(PUZZLES, MazeTask(7), **settings),
    "mazes": lambda **settings: MazeSource((5, 7), canvas=8, braid=0.2, **settings),
}


def assert_same(a, b):
    assert list(a) == list(b) == KEYS
    for key in KEYS:
        assert a[key].dtype == b[key].dtype == torch.int64
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("kind", MAKERS)
@given(
    step=st.integers(0, 50),
    num_rows=st.integers(1, 25),
    cuts=st.lists(st.integers(0, 25), max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40)
def test_the_union_of_slices_is_the_batch(kind, step, num_rows, cuts, seed):
    whole = MAKERS[kind](seed=seed).batch(step, range(num_rows), num_rows)
    assert whole["inputs"].shape[0] == num_rows
    edges = sorted({0, num_rows, *(min(cut, num_rows) for cut in cuts)})
    other = MAKERS[kind](seed=seed)  # asked from the end, by someone who saw other steps before
    other.batch(step + 3, range(1), 7)
    spans = [range(a, b) for a, b in pairwise(edges)]
    parts = [other.batch(step, span, num_rows) for span in reversed(spans)][::-1]
    assert_same(whole, {key: torch.cat([part[key] for part in parts]) for key in KEYS})


@pytest.mark.parametrize("kind", MAKERS)
def test_strided_and_empty_slices_and_seeds(kind):
    source = MAKERS[kind](seed=3)
    whole = source.batch(2, range(9), 9)
    assert_same(source.batch(2, range(1, 9, 3), 9), {key: whole[key][1::3] for key in KEYS})
    assert source.batch(2, range(0), 9)["inputs"].shape == (0, whole["inputs"].shape[1])
    for other in (MAKERS[kind](seed=4).batch(2, range(9), 9), source.batch(3, range(9), 9)):
        assert not torch.equal(other["inputs"], whole["inputs"])


def test_every_epoch_visits_every_puzzle_once_in_another_order():
    source = PuzzleSource(PUZZLES, MazeTask(7), seed=0, augment=False)
    steps = [source.batch(step, range(4), 4)["identifiers"] for step in range(10)]
    epochs = torch.cat(steps).view(4, NUM)
    assert (epochs.sort(dim=1).values == torch.arange(NUM)).all()
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    long = source.batch(0, range(35), 35)["identifiers"]  # one batch over four epochs
    assert torch.equal(long, epochs.reshape(-1)[:35])


def test_rows_are_puzzles_with_pad_ignored():
    source = PuzzleSource(PUZZLES, MazeTask(7), seed=0, augment=False)
    batch = source.batch(0, range(NUM), NUM)
    index = batch["identifiers"].numpy()
    np.testing.assert_array_equal(batch["inputs"].numpy(), PUZZLES.inputs[index])
    assert (batch["labels"][:, 0] == IGNORE).all()
    np.testing.assert_array_equal(batch["labels"][:, 1:].numpy(), PUZZLES.labels[index, 1:])


def test_augmented_rows_are_symmetric_copies_with_the_label_turned_alike():
    task = MazeTask(7)
    source = PuzzleSource(PUZZLES, task, seed=0)
    plain = PuzzleSource(PUZZLES, task, seed=0, augment=False)
    num_changed = 0
    for step in range(5):
        batch, given_batch = (s.batch(step, range(NUM), NUM) for s in (source, plain))
        labels = torch.where(batch["labels"] == IGNORE, 1, batch["labels"])
        assert (batch["labels"] == IGNORE).sum(dim=1).eq(1).all()  # the one PAD, at some corner
        assert task.verify(batch["inputs"].numpy(), labels.numpy()).all()
        assert torch.equal(batch["identifiers"], given_batch["identifiers"])
        num_changed += (batch["inputs"] != given_batch["inputs"]).any(dim=1).sum().item()
    assert 5 * NUM * 0.6 < num_changed < 5 * NUM  # 7 of 8 maps change a maze


def test_sets_without_identifiers_give_zeros_and_mapped_sets_the_same_rows(tmp_path):
    puzzles = maze.generate(NUM, size=7, seed=0)
    path = puzzles.save(tmp_path / "set.npz")
    whole = PuzzleSource(puzzles, MazeTask(7), seed=1).batch(5, range(6), 6)
    assert whole["identifiers"].tolist() == [0] * 6
    mapped = PuzzleSource(Puzzles.load(path, mapped=True), MazeTask(7), seed=1)
    assert_same(mapped.batch(5, range(6), 6), whole)


@pytest.mark.parametrize("kind", MAKERS)
def test_blanks_only_ignores_the_given_cells(kind):
    plain = MAKERS[kind](seed=0).batch(0, range(6), 6)
    batch = MAKERS[kind](seed=0, blanks_only=True).batch(0, range(6), 6)
    is_blank = plain["inputs"] == maze.FREE
    assert torch.equal(batch["inputs"], plain["inputs"])
    assert torch.equal(batch["labels"] != IGNORE, is_blank & (plain["labels"] != IGNORE))
    assert torch.equal(batch["labels"][is_blank], plain["labels"][is_blank])
    assert set(batch["labels"].unique().tolist()) == {IGNORE, maze.FREE, maze.PATH}


def test_mazes_made_on_the_fly_are_right_of_all_sizes_and_never_held_out():
    held_out = maze.generate(100, size=7, seed=9)
    source = MazeSource((5, 7), seed=1, canvas=9, exclude=held_out)
    batch = source.batch(0, range(200), 200)
    inputs, labels = batch["inputs"].numpy(), batch["labels"].numpy()
    assert MazeTask(9).verify(inputs, labels).all()
    num_open = (inputs > maze.WALL).sum(axis=1)  # a tree of n rooms opens 2n - 1 cells
    assert set(num_open.tolist()) == {2 * 4 - 1, 2 * 9 - 1}
    made = Puzzles(inputs.astype(np.uint8), labels.astype(np.uint8), (9, 9), maze.VOCAB_SIZE)
    assert not maze.maze_keys(made) & maze.maze_keys(held_out)
    free = MazeSource((5, 7), seed=1, canvas=9).batch(0, range(200), 200)["inputs"].numpy()
    made = Puzzles(free.astype(np.uint8), free.astype(np.uint8), (9, 9), maze.VOCAB_SIZE)
    assert maze.maze_keys(made) & maze.maze_keys(held_out)  # the exclusion had work to do


def test_min_path_reaches_the_mazes():
    labels = MazeSource(11, seed=0, min_path=20).batch(0, range(20), 20)["labels"]
    assert ((labels == maze.PATH).sum(dim=1) + 1).min() >= 20


@pytest.mark.parametrize("kind", MAKERS)
def test_descriptions_are_json(kind):
    described = MAKERS[kind](seed=7).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["seed"] == 7 and described["grid"] in ([7, 7], [8, 8])


@pytest.mark.parametrize("kind", MAKERS)
def test_bad_requests_are_refused(kind):
    source = MAKERS[kind](seed=0)
    with pytest.raises(ValueError, match="step is -1"):
        source.batch(-1, range(1), 1)
    for rows in (range(5), range(-1, 2)):
        with pytest.raises(ValueError, match="outside a batch of 4"):
            source.batch(0, rows, 4)
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=f"seed is {seed}"):
            MAKERS[kind](seed=seed)


def test_bad_sources_are_refused():
    with pytest.raises(ValueError, match=r"\(7, 7\) grid but the task maze has \(9, 9\)"):
        PuzzleSource(PUZZLES, MazeTask(9), seed=0)
    with pytest.raises(ValueError, match="sizes is empty"):
        MazeSource([], seed=0)
    with pytest.raises(ValueError, match="maze size is 8"):
        MazeSource((5, 8), seed=0)
    with pytest.raises(ValueError, match=r"min_path is 20; .* 5x5 maze has 6"):
        MazeSource((5, 11), seed=0, min_path=20)
    with pytest.raises(ValueError, match="canvas is 6, smaller"):
        MazeSource(7, seed=0, canvas=6)

    class NoBlank(MazeTask):
        blank = None

    with pytest.raises(ValueError, match="has no blank token"):
        PuzzleSource(PUZZLES, NoBlank(7), seed=0, blanks_only=True)
