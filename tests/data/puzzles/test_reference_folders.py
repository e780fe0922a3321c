"""Folders of the reference's own builders load, train and are measured."""

import json
from dataclasses import replace

import numpy as np
import pytest

from inward.data.puzzles import maze, sudoku
from inward.data.puzzles.folder import Folder, FolderSource
from inward.data.puzzles.sudoku_canonical import canonical_rows
from inward.recipes import find
from inward.recipes.trm_data import FolderData
from inward.tasks.maze import MazeTask
from inward.tasks.named import guess_task, read_puzzles
from inward.tasks.sudoku import SudokuTask
from inward.train.loop import train
from tests.data.puzzles.reference_folders import maze_folder, sudoku_folder


@pytest.fixture(scope="module")
def puzzles():
    return sudoku.generate(50, n=9, seed=3, clues=36, progress=False)


def maze_texts(num, size, seed=0):
    made = maze.generate(num, size=size, seed=seed)
    return [(maze.decode(q), maze.decode(a)) for q, a in zip(made.inputs, made.labels, strict=True)]


def test_an_augmented_sudoku_folder_loads(tmp_path, puzzles):
    """50 puzzles with 20 augmentations: total_puzzles says 50, the offsets hold 1,050."""
    sudoku_folder(tmp_path, "train", puzzles, num_aug=20)
    sudoku_folder(tmp_path, "test", puzzles.select(slice(0, 7)))
    train_split, test = Folder(tmp_path), Folder(tmp_path, "test")
    assert json.loads((tmp_path / "train/dataset.json").read_text())["total_puzzles"] == 50
    assert (len(train_split), len(train_split.group_indices), len(test)) == (1050, 51, 7)
    train_split.check()
    read = train_split.puzzles((9, 9))
    assert SudokuTask(9).verify(read.inputs, read.labels).all()
    assert (read.inputs[::21] == puzzles.inputs).all()  # the original comes first
    keys = np.array(canonical_rows(read.inputs, n=9)).reshape(50, 21)
    assert (keys == keys[:, :1]).all()
    source = FolderSource(train_split, seed=0)
    assert source.rows_per_epoch == 50  # one augmentation of each original
    assert source.batch(3, range(8), 8)["inputs"].shape == (8, 81)
    assert train_split.names() == ["<blank>"]


def test_any_other_total_is_refused(tmp_path, puzzles):
    folder = sudoku_folder(tmp_path, "train", puzzles, num_aug=2)
    info = json.loads((folder / "dataset.json").read_text())
    for total in (49, 51, 149, 151):
        (folder / "dataset.json").write_text(json.dumps(info | {"total_puzzles": total}))
        with pytest.raises(ValueError, match=f"total_puzzles is {total}, but the .* hold 150"):
            Folder(tmp_path)
    for total in (50, 150):
        (folder / "dataset.json").write_text(json.dumps(info | {"total_puzzles": total}))
        assert len(Folder(tmp_path)) == 150


@pytest.mark.parametrize("size", [11, 30])
def test_a_maze_folder_of_any_size_is_read(tmp_path, size):
    """30x30 too, whatever size the task was made for."""
    texts = maze_texts(3, 11) if size == 11 else []
    if size == 30:
        made = maze.generate_hard(3, seed=1)
        texts = [(maze.decode(q), maze.decode(a)) for q, a in zip(made.inputs, made.labels)]  # noqa: B905
    maze_folder(tmp_path, "train", texts, aug=True)
    maze_folder(tmp_path, "test", texts)
    assert len(Folder(tmp_path)) == 24
    assert guess_task(tmp_path).name == "maze"
    for task in (MazeTask(11), MazeTask(30), MazeTask(7)):
        read = read_puzzles(tmp_path, task)
        assert read.grid == (size, size) and len(read) == 3
        assert MazeTask(size).verify(read.inputs, read.labels).all()
    assert FolderData(path=str(tmp_path), kind="maze").task().grid == (size, size)


def test_mazes_that_are_no_square_need_their_size(tmp_path):
    tokens = np.array([[3, 2, 4, 1, 1, 1]], np.uint8)
    from inward.data.puzzles.folder import write_puzzles
    from inward.data.puzzles.puzzles import Puzzles

    write_puzzles(tmp_path / "m", "test", Puzzles(tokens, tokens, (2, 3), 6))
    assert read_puzzles(tmp_path / "m", MazeTask((2, 3))).grid == (2, 3)
    with pytest.raises(ValueError, match=r"6 cells, which form no square.*--task maze20x30"):
        read_puzzles(tmp_path / "m", MazeTask(11))


@pytest.mark.parametrize("kind", ["sudoku9", "maze"])
def test_a_published_recipe_trains_on_such_a_folder(tmp_path, puzzles, kind):
    if kind == "maze":
        maze_folder(tmp_path / "d", "train", maze_texts(4, 7), aug=True)
        maze_folder(tmp_path / "d", "test", maze_texts(4, 7, seed=1))
    else:
        sudoku_folder(tmp_path / "d", "train", puzzles, num_aug=3)
        sudoku_folder(tmp_path / "d", "test", puzzles.select(slice(0, 4)))
    recipe = find("trm-maze-hard" if kind == "maze" else "trm-sudoku-extreme")()
    recipe = replace(
        recipe,
        model=replace(recipe.model, hidden_size=32, swiglu_multiple=8, compute_dtype="float32",
                      T=1, n=1, n_sup=2),
        data=FolderData(path=str(tmp_path / "d"), kind=kind, num_valid=3),
        train=replace(recipe.train, steps=2, batch_rows=4, eval_every=2, save_every=0),
    )  # fmt: skip
    summary = train(recipe.build(), recipe.train, tmp_path / "run")
    assert summary["steps"] == 2 and len(recipe.data.puzzles("valid")) == 3


def test_validation_puzzles_of_a_folder_are_drawn(tmp_path):
    """A test set sorted by its clues: the first ones are the easy ones."""
    easy, hard = (
        sudoku.generate(30, n=9, seed=0, clues=clues, progress=False) for clues in (60, 40)
    )
    both = replace(
        easy,
        inputs=np.concatenate([easy.inputs, hard.inputs]),
        labels=np.concatenate([easy.labels, hard.labels]),
        rating=None,
    )
    sudoku_folder(tmp_path, "test", both)
    data = FolderData(path=str(tmp_path), num_valid=20)
    valid = data.puzzles("valid")
    assert 3 < ((valid.inputs > 1).sum(axis=1) < 50).sum() < 17
    assert (data.puzzles("valid").inputs == valid.inputs).all()
    other = replace(data, seed=1).puzzles("valid")
    assert (other.inputs != valid.inputs).any()
