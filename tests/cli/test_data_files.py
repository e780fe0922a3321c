"""A person's own puzzles: CSVs as they are published, converted, trained on and measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inward.cli.main import main
from inward.data.puzzles import maze, sudoku
from inward.data.puzzles.folder import Folder
from inward.data.puzzles.puzzles import Puzzles
from inward.data.puzzles.sudoku_canonical import symmetric_to_any
from inward.methods.trm.model import TRM
from inward.methods.trm.settings import TRMSettings
from inward.recipes.puzzle_files import hold_out, of_file
from inward.recipes.trm_data import FolderData, SudokuData
from tests.data.puzzles.reference_folders import maze_folder

TINY = ["--model.hidden-size", "16", "--model.swiglu-multiple", "8", "--model.T", "1"]
TINY += ["--model.n", "1", "--model.n-sup", "2", "--train.steps", "2", "--train.batch-rows", "4"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def puzzles() -> Puzzles:
    return sudoku.generate(60, n=9, seed=1, clues=38, progress=False)


def told(capsys) -> str:
    return capsys.readouterr().err


# -- inward data --from


def test_a_csv_becomes_a_folder(puzzles, capsys):
    sudoku.write_csv(puzzles, "train.csv", source="puzzles3_magictour_top1465")
    assert main(["data", "sudoku", "--from", "train.csv", "out"]) == 0
    assert main(["data", "sudoku", "--from", "train.csv", "out", "--split", "test",
                 "--num", "9", "--seed", "4"]) == 0  # fmt: skip
    assert capsys.readouterr().out == "60 puzzles in out\n9 puzzles in out\n"
    read = Folder("out").puzzles((9, 9))
    assert (read.inputs == puzzles.inputs).all() and (read.labels == puzzles.labels).all()
    some = Folder("out", "test").puzzles((9, 9)).inputs
    where = [np.flatnonzero((puzzles.inputs == row).all(axis=1))[0] for row in some]
    assert sorted(where) == where and where != list(range(9))  # drawn, not the first ones
    assert main(["data", "sudoku", "--from", "train.csv", "out"]) == 1
    assert "out/train exists; remove it" in told(capsys)


def test_ratings_and_held_out_puzzles_choose(puzzles, capsys):
    rated = replace(puzzles, rating=np.arange(60, dtype=np.int32))
    sudoku.write_csv(rated, "a.csv")
    rated.select(slice(50, 60)).save("held.npz")
    words = ["data", "sudoku", "--from", "a.csv", "b.npz", "--min-rating", "40"]
    assert main([*words, "--exclude", "held.npz"]) == 0
    assert Puzzles.load("b.npz").rating.tolist() == list(range(40, 50))  # pyright: ignore
    assert main([*words[:-1], "90"]) == 1
    assert "none of the 60 puzzles of a.csv is left" in told(capsys)
    replace(puzzles, rating=None).save("unrated.npz")
    assert main(["data", "sudoku", "--from", "unrated.npz", "c.npz", "--max-rating", "3"]) == 1
    assert "unrated.npz has no ratings" in told(capsys)
    assert main([*words, "--clues", "30", "--workers", "2"]) == 1
    assert "--clues, --workers says how new puzzles are made" in told(capsys)
    assert main([*words, "--num", "61"]) == 1
    assert "asked for 61 puzzles, there are 20" in told(capsys)
    assert main(["data", "sudoku", "--from", "nowhere.csv", "x.npz"]) == 1
    assert "nowhere.csv" in told(capsys)


def test_a_maze_csv_becomes_a_folder():
    made = maze.generate(5, size=9, seed=1)
    maze.write_csv(made, "m.csv")
    assert main(["data", "maze", "--from", "m.csv", "out"]) == 0
    assert (Folder("out").puzzles((9, 9)).labels == made.labels).all()


# -- inward train --data.path


@pytest.mark.parametrize("recipe", ["trm-sudoku-extreme", "sudoku9"])
def test_a_csv_is_trained_on(puzzles, capsys, recipe):
    sudoku.write_csv(puzzles, "mine.csv")
    words = ["train", recipe, "--data.path", "mine.csv", "--data.num-valid", "6", *TINY]
    words += ["--data.num-test", "5", "--out", "run", "--model.compute-dtype", "float32"]
    assert main([*words, "--data.num-train", "20"]) == 0
    shown = capsys.readouterr().out
    assert "mine.csv: train 20" in shown and "valid 6" in shown and "test 5" in shown
    saved = json.loads(Path("run/model/recipe.json").read_text())
    assert saved["data"]["path"] == "mine.csv"
    assert main(["eval", "run", "--no-by-step"]) == 0  # the test puzzles, held out of the file
    assert "test (5)" in capsys.readouterr().out


def test_symmetries_are_drawn_on_the_fly(puzzles):
    sudoku.write_csv(puzzles, "mine.csv")
    data = FolderData(path="mine.csv", num_valid=6, num_test=6)
    source, train = data.source(), data.puzzles("train")
    rows = [source.batch(step, range(16), 16)["inputs"].numpy() for step in range(6)]
    seen = replace(train, inputs=np.concatenate(rows).astype(np.uint8),
                   labels=np.concatenate(rows).astype(np.uint8), rating=None)  # fmt: skip
    assert symmetric_to_any(seen, train).all()
    assert not symmetric_to_any(seen, data.puzzles("test")).any()
    assert not symmetric_to_any(seen, data.puzzles("valid")).any()
    known = {row.tobytes() for row in train.inputs}
    assert not known & {row.tobytes() for row in seen.inputs}
    plain = replace(data, augment=False).source().batch(0, range(16), 16)["inputs"]
    assert {row.tobytes() for row in plain.numpy().astype(np.uint8)} <= known


def test_images_of_held_out_puzzles_are_not_trained_on(puzzles):
    """A file that holds every puzzle under five symmetries: five rows leave together."""
    rng = np.random.default_rng(0)
    views = [sudoku.sample_symmetry(9, rng) for _ in range(5)]
    many = replace(
        puzzles,
        inputs=np.concatenate([view.apply(puzzles.inputs) for view in views]),
        labels=np.concatenate([view.apply(puzzles.labels) for view in views]),
        rating=None,
    )
    many.save("many.npz")
    sets = [of_file("many.npz", "sudoku9", s, num_valid=10, num_test=12)
            for s in ("train", "valid", "test")]  # fmt: skip
    assert len(sets[0]) == 300 - 10 - 15 and [len(s) for s in sets[1:]] == [10, 12]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not symmetric_to_any(sets[one], sets[other]).any()


def test_the_test_file_beside_a_training_file_is_used(puzzles):
    sudoku.write_csv(puzzles.select(slice(0, 50)), "train.csv")
    sudoku.write_csv(puzzles.select(slice(50, 60)), "test.csv")
    data = FolderData(path="train.csv", num_valid=5)
    assert (data.puzzles("test").inputs == puzzles.inputs[50:]).all()
    assert len(data.puzzles("train")) == 45 and "test puzzles test.csv" in data.notes()[0]
    sudoku.write_csv(puzzles.select(slice(0, 3)), "other.csv")
    assert len(replace(data, test="other.csv").puzzles("test")) == 3
    sudoku.write_csv(puzzles.select(slice(0, 3)), "test.csv")  # a file that changed is read again
    assert len(data.puzzles("test")) == 3


def test_a_maze_csv_is_trained_on(capsys):
    maze.write_csv(maze.generate(30, size=7, seed=1), "m.csv")
    words = ["train", "trm-maze-hard", "--data.path", "m.csv", "--data.num-valid", "4", *TINY]
    words += ["--data.num-test", "4", "--model.compute-dtype", "float32", "--out", "run"]
    assert main([*words, "--model.num-heads", "2"]) == 0
    assert "m.csv: train 22, valid 4, test 4" in capsys.readouterr().out
    data = FolderData(path="m.csv", kind="maze", num_valid=4, num_test=4)
    held = maze.maze_keys(data.puzzles("test")) | maze.maze_keys(data.puzzles("valid"))
    assert not held & maze.maze_keys(data.puzzles("train"))


def test_files_that_cannot_be_divided_are_refused(puzzles):
    puzzles.select(slice(0, 2)).save("two.npz")
    with pytest.raises(ValueError, match=r"two\.npz: 2 puzzles of 2 classes .* into 3 sets"):
        SudokuData(n=9, path="two.npz").puzzles("train")
    puzzles.save("p.npz")
    with pytest.raises(ValueError, match=r"holds 9x9 puzzles, .* 6x6; use that of sudoku9"):
        SudokuData(n=6, path="p.npz", num_valid=5, num_test=5).puzzles("train")
    replace(puzzles, labels=np.zeros_like(puzzles.labels)).save("u.npz")
    with pytest.raises(ValueError, match=r"u\.npz: 60 puzzles have no answer"):
        FolderData(path="u.npz").source()
    with pytest.raises(ValueError, match="num_valid is 0"):
        FolderData(path="p.npz", num_valid=0, num_test=3).puzzles("valid")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        FolderData(path="nowhere.csv").source()
    with pytest.raises(ValueError, match="name a dataset folder"):
        FolderData(path="p.npz", kind="arc").source()


@pytest.mark.parametrize(
    "change", [{"num_train": 5}, {"test": "t.csv"}, {"num_test": 5}, {"augment": False}]
)
def test_what_only_a_file_takes_is_refused_for_a_folder(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is for a file of puzzles"):
        FolderData(path="data/folder", **change)
    FolderData(path="data/file.csv", **change)
    with pytest.raises(ValueError, match="without a path"):
        SudokuData(test="t.csv")


def test_whole_classes_are_held_out():
    keys = [b"a"] * 50 + [b"b"] * 3 + [b"c"] * 3 + [b"d"] * 3
    rows = hold_out(keys, num_test=4, num_valid=2, seed=0)
    names = {split: {keys[i] for i in index} for split, index in rows.items()}
    assert not names["test"] & names["train"] and not names["valid"] & names["train"]
    assert not names["test"] & names["valid"] and all(names.values())
    assert len(rows["test"]) == 4 and len(rows["valid"]) == 2
    with pytest.raises(ValueError, match="2 classes"):
        hold_out([b"a", b"b", b"b"], num_test=1, num_valid=1, seed=0)
    assert len(hold_out([b"a", b"b"], num_test=1, num_valid=0, seed=0)["train"]) == 1


# -- inward eval


@pytest.fixture
def model() -> str:
    torch.manual_seed(0)
    settings = TRMSettings(vocab_size=6, seq_len=49, mixer="conv", hidden_size=16,
                           swiglu_multiple=8, prefix_len=1, num_identifiers=0, T=1, n=1,
                           n_sup=2)  # fmt: skip
    TRM(settings).save_pretrained("model")
    return "model"


def test_mazes_of_any_size_are_measured(model, capsys):
    made = maze.generate_hard(3, seed=1)
    texts = [(maze.decode(q), maze.decode(a)) for q, a in zip(made.inputs, made.labels)]  # noqa: B905
    maze_folder(Path("d"), "test", texts)
    words = ["eval", model, "--data", "d", "--no-by-step", "--max-steps", "1"]
    for task in ("maze", "maze30", "maze30x30"):
        assert main([*words, "--task", task]) == 0
        assert "model on d (3)" in capsys.readouterr().out
    assert main([*words, "--task", "maze11"]) == 1
    assert "d holds mazes of 30x30 cells, not maze11; leave the size out" in told(capsys)


def test_a_part_is_drawn_and_says_so(model, capsys):
    easy, hard = maze.generate(20, size=7, seed=1), maze.generate(20, size=7, seed=1, min_path=14)
    both = replace(easy, inputs=np.concatenate([easy.inputs, hard.inputs]),
                   labels=np.concatenate([easy.labels, hard.labels]), rating=None)  # fmt: skip
    both.save("sorted.npz")
    words = ["eval", model, "--data", "sorted.npz", "--task", "maze", "--no-by-step"]
    assert main([*words, "--num", "10", "--seed", "3", "--out", "rows.jsonl"]) == 0
    assert "sorted.npz, 10 of 40 drawn by seed 3 (10)" in " ".join(capsys.readouterr().out.split())
    row = json.loads(Path("rows.jsonl").read_text())
    assert row["num"] == 10 and row["dataset"] == "sorted.npz, 10 of 40 drawn by seed 3"
    assert main([*words, "--num", "41"]) == 1
    assert "asked for 41 puzzles, there are 40" in told(capsys)


def test_parameters_are_counted_in_one_way(puzzles, capsys):
    """The network's, as papers do; the table of identifiers apart. In the summary of a training, in
    a measurement and by the model itself."""
    puzzles.save("p.npz")
    words = ["train", "trm-sudoku-extreme", "--data.path", "p.npz", "--data.num-valid", "4", *TINY]
    words += ["--data.num-test", "4", "--model.compute-dtype", "float32", "--out", "run"]
    assert main(words) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert main(["eval", "run", "--no-by-step", "--out", "rows.jsonl"]) == 0
    shown = capsys.readouterr().out
    row = json.loads(Path("rows.jsonl").read_text())
    parts = TRM.from_pretrained("run/model").num_parameters_by_part()
    assert parts == {"network": row["parameters"], "identifiers": row["identifier_parameters"]}
    assert parts == {"network": summary["parameters"], "identifiers": summary["sparse_parameters"]}
    assert row["identifier_parameters"] == 16 and "of identifiers, besides" in shown
