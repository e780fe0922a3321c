"""Recipes: every one builds a complete run, splits do not overlap, published ones read a folder."""

from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pytest
import torch

from inward.data.puzzles import folder, maze, sudoku
from inward.data.puzzles.sudoku_canonical import symmetric_to_any
from inward.recipes import RECIPES, find
from inward.recipes.coconut import FileData
from inward.recipes.huginn import TokenData
from inward.recipes.huginn_stories import StoryTokens
from inward.recipes.tidar import TokenFolder
from inward.recipes.trm_data import FolderData, MazeData, SudokuData
from inward.train.loop import train

SMALL = ["sudoku4", "sudoku6", "sudoku9", "maze11"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_one_frozen_config(name):
    recipe = find(name)()
    assert recipe.name == name and recipe == find(name)()
    with pytest.raises(FrozenInstanceError):
        recipe.name = "other"
    # Files that do not come along; GSM8K is the one released set that a laptop's run reads.
    published = isinstance(recipe.data, FolderData | TokenData | FileData | TokenFolder)
    published &= not name.startswith("gsm8k-smollm") and not isinstance(recipe.data, StoryTokens)
    assert ("NOT RUN HERE" in recipe.about) == published
    assert asdict(recipe)["train"]["optim"]["lr"] > 0


def shrunk(name):
    recipe = find(name)()
    data = replace(recipe.data, num_valid=4, num_test=4)
    if isinstance(data, SudokuData):
        data = replace(data, num_train=20)
    settings = replace(recipe.train, steps=3, batch_rows=4, eval_every=0, save_every=0, warmup=1)
    settings = replace(settings, best_metric="")
    return replace(recipe, data=data, train=settings, also_valid=())


@pytest.mark.parametrize("name", SMALL)
def test_small_recipes_train(name, tmp_path):
    recipe = shrunk(name)
    summary = train(recipe.build(), recipe.train, tmp_path)
    assert summary["steps"] == 3 and set(summary["evaluation"]) == {"exact", "cells", "q_right"}
    assert (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_is_the_same_model_and_data(name):
    runs = [shrunk(name).build() for _ in range(2)]
    first, second = (run.source.batch(0, range(4), 4) for run in runs)
    assert all(torch.equal(first[key], second[key]) for key in first)
    weights = [torch.cat([p.flatten() for p in run.model.parameters()]) for run in runs]
    assert torch.equal(*weights)


def test_sudoku_splits_share_no_puzzle_in_any_symmetric_form():
    data = SudokuData(n=6, num_train=300, num_valid=100, num_test=100)
    splits = {name: data.puzzles(name) for name in ("test", "valid", "train")}
    assert not symmetric_to_any(splits["train"], splits["test"]).any()
    assert not symmetric_to_any(splits["train"], splits["valid"]).any()
    assert not symmetric_to_any(splits["valid"], splits["test"]).any()


def test_maze_training_never_shows_a_held_out_maze():
    data = MazeData(sizes=(7,), canvas=7, num_test=20, num_valid=5)
    held = maze.maze_keys(data.puzzles("test")) | maze.maze_keys(data.puzzles("valid"))
    source = data.source()
    for step in range(10):
        rows = source.batch(step, range(16), 16)["inputs"].numpy().astype(np.uint8)
        seen = maze.generate(1, size=7, seed=0)
        batch = replace(seen, inputs=rows, labels=rows, rating=None)
        assert not held & maze.maze_keys(batch)


def test_a_published_recipe_reads_its_shapes_from_the_folder(tmp_path):
    puzzles = sudoku.generate(6, n=9, seed=0, clues=40, progress=False)
    for split in ("train", "test"):
        folder.write_puzzles(tmp_path / "data", split, puzzles)
    recipe = find("trm-sudoku-extreme")()
    recipe = replace(
        recipe,
        model=replace(recipe.model, hidden_size=16, swiglu_multiple=8, compute_dtype="float32"),
        data=FolderData(path=str(tmp_path / "data"), num_valid=2),
        train=replace(recipe.train, steps=2, batch_rows=4, eval_every=0, save_every=0),
    )
    run = recipe.build()
    assert run.model.settings.seq_len == 81 and run.model.settings.vocab_size == 11
    summary = train(run, recipe.train, tmp_path / "run")
    assert summary["steps"] == 2


def test_models_that_do_not_fit_their_data_are_refused():
    recipe = shrunk("sudoku6")
    with pytest.raises(ValueError, match=r"--model\.vocab-size 8 --model\.seq-len 36"):
        replace(recipe, model=replace(recipe.model, seq_len=81)).build()


def test_unknown_recipe_names_close_ones():
    with pytest.raises(ValueError, match="sudoku6"):
        find("sudoku5")
