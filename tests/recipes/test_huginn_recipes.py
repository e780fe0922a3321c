"""Recipes of Huginn build, train and resume; controls change one thing; the runner tests once."""

import importlib.util
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inward.data.texts.text import questions
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.huginn.settings import Depth, HuginnSettings
from inward.recipes import find
from inward.recipes.huginn import CONTROLS, HopsData, TokenData, control
from inward.train import train

NAMES = ["huginn-hops", "huginn-add"]


def shrunk(recipe, steps=3):
    return replace(
        recipe,
        model=replace(recipe.model, width=16, mlp_width=16),
        data=replace(recipe.data, num_valid=2, num_test=3),
        train=replace(recipe.train, steps=steps, batch_rows=4, eval_every=0, warmup=1),
    )


@pytest.mark.parametrize("name", NAMES)
def test_small_recipes_train_and_their_model_loads(name, tmp_path):
    recipe = shrunk(find(name)())
    summary = train(recipe.build(), recipe.train, tmp_path)
    names = {f"{part}_r{r}" for part in ("trained", "beyond") for r in recipe.depths}
    assert set(summary["evaluation"]) == names
    model = HuginnForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.mean_recurrence == recipe.depth.mean
    assert model.config.vocab_size == recipe.task().vocab_size
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "token_accuracy" in log[-2]["metrics"] and log[-2]["kind"] == "train"


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    recipe = shrunk(find("huginn-hops")(), steps=4)
    whole = recipe.build()
    train(whole, recipe.train, tmp_path / "whole")
    for steps in (2, 4):  # the depth of a step is a function of the step
        part = replace(recipe, train=replace(recipe.train, schedule="constant", steps=steps))
        run = part.build()
        train(run, part.train, tmp_path / "parts")
    constant = replace(recipe, train=replace(recipe.train, schedule="constant"))
    again = constant.build()
    train(again, constant.train, tmp_path / "again")
    pairs = zip(run.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(whole.model.parameters()), next(again.model.parameters()))


def test_the_same_seed_is_the_same_run_and_questions_never_change():
    first, same, other = (control("base", seed) for seed in (0, 0, 1))
    assert first == same and first != other
    assert isinstance(first.data, HopsData) and isinstance(other.data, HopsData)
    rows = [
        recipe.data.source(recipe.train.seed).batch(0, range(2), 2) for recipe in (first, other)
    ]
    assert not torch.equal(rows[0]["input_ids"], rows[1]["input_ids"])
    both = [replace(data, num_valid=2, num_test=3) for data in (first.data, other.data)]
    held = [data.questions("test") for data in both]
    assert list(held[0]) == list(range(1, 10))
    assert all(np.array_equal(held[0][k].ids, held[1][k].ids) for k in held[0])
    valid = questions(first.data.rows(), 3, difficulty=4, seed=2)
    assert not np.array_equal(valid.ids, held[0][4].ids)


def test_every_row_fits_the_context():
    for name in NAMES:
        recipe = find(name)()
        rows, hardest = recipe.data.rows(), recipe.data.difficulties()[-1]
        longest = len(rows.question(np.random.default_rng(0), hardest)[0])
        assert max(rows.row_length, longest) <= recipe.block_size


def sizes(recipe):
    run = shrunk(recipe).build()
    model = run.model.model
    once, rest = model.flops(context=30)
    depth = recipe.depth.mean
    return sum(p.numel() for p in model.parameters()), depth * once + rest


def test_controls_are_equal_in_what_their_names_say():
    base = sizes(control("base", 0))
    assert sizes(control("flat-params", 0))[0] == base[0]
    flat = sizes(control("flat-flops", 0))
    # base also passes the adapter at each recurrence: less than a tenth
    assert flat[1] < base[1] < 1.1 * flat[1] and flat[0] > 5 * base[0]
    changed = {name: control(name, 0) for name in CONTROLS}
    for name, recipe in changed.items():
        assert recipe.data == changed["base"].data
        assert (recipe.train == changed["base"].train) == (name != "flat-flops-slow")
        assert (recipe == changed["base"]) == (name == "base")
    assert changed["flat-flops"].depths == (1,) and changed["zero-state"].depths[0] == 2
    with pytest.raises(ValueError, match=r"no variant 'flat'.*flat-params"):
        control("flat", 0)


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_builds_and_takes_a_step(name, tmp_path):
    recipe = shrunk(control(name, 0), steps=1)
    assert train(recipe.build(), recipe.train, tmp_path)["steps"] == 1


def test_the_published_recipe_is_the_published_model():
    recipe = find("huginn-0125")()
    assert "NOT RUN HERE" in recipe.about
    with torch.device("meta"):
        config = recipe.model.config(
            vocab_size=recipe.data.vocab_size, block_size=recipe.block_size, depth=recipe.depth
        )
        model = HuginnForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == 3_564_976_800
    optim = recipe.train.optim
    assert (optim.name, optim.lr, optim.weight_decay) == ("ellis_adam", 4e-5, 4e-5)
    assert recipe.train.batch_rows * recipe.block_size == 2**24  # 16.8M tokens a step


def test_the_published_recipe_trains_on_a_folder_of_token_files(tmp_path):
    recipe = find("huginn-0125")()
    with pytest.raises(FileNotFoundError, match=r"huginn-tokens.*data\.path"):
        recipe.build()  # before 14 GB of weights are made
    ids = np.random.default_rng(0).integers(0, 50, (8, 17))
    (tmp_path / "tokens").mkdir()
    np.save(tmp_path / "tokens" / "part.npy", ids.astype(np.uint16))
    small = replace(
        recipe,
        model=HuginnSettings(width=16, num_heads=2, mlp_width=16),
        depth=Depth(mean=3, backprop=2),
        data=TokenData(str(tmp_path / "tokens"), length=17, vocab_size=64),
        train=replace(recipe.train, steps=2, batch_rows=4, warmup=1, precision="float32"),
        block_size=16,  # rows of 17 ids fill it: the last one is only predicted
    )
    run = small.build()
    before = [p.detach().clone() for p in run.model.parameters()]
    assert train(run, small.train, tmp_path / "run")["steps"] == 2
    assert all(not torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    with pytest.raises(ValueError, match="no task"):
        small.task()


# --- the runner of the experiment


@pytest.fixture(scope="module")
def runner():
    path = Path(__file__).parents[2] / "benchmarks" / "huginn" / "depth.py"
    spec = importlib.util.spec_from_file_location("huginn_depth", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["huginn_depth"] = module
    spec.loader.exec_module(module)
    return module


def test_the_runner_tests_each_run_once_and_shows_tables(runner, tmp_path, monkeypatch):
    def tiny(name, seed):
        recipe = shrunk(control(name, seed))
        return replace(recipe, data=replace(recipe.data, num_nodes=5, max_hops=3, hardest=4))

    monkeypatch.setattr(runner, "control", tiny)
    monkeypatch.setattr(runner, "DEPTHS", (1, 2, 8, 16))
    monkeypatch.setattr(runner, "BUDGET", 8)
    rows = tmp_path / "rows.jsonl"
    words = ["x", "--out", str(tmp_path), "--rows", str(rows), "--seeds", "2", "--steps", "1"]
    words += ["--only", "base", "flat-params"]
    monkeypatch.setattr(sys, "argv", words)
    runner.main()
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(r["variant"], r["seed"]) for r in found] == [
        ("base", 0), ("flat-params", 0), ("base", 1), ("flat-params", 1),
    ]  # fmt: skip
    assert set(found[0]["accuracy"]["4"]) == {"1", "2", "8", "16"}
    assert set(found[1]["accuracy"]["4"]) == {"1"} and "exits" not in found[1]
    assert found[0]["engine_agrees"] == 1.0 and len(found[0]["exits"]) == len(runner.RULES)
    monkeypatch.setattr(runner, "train", None)  # nothing is left to do
    runner.main()
    assert runner.table(found).count("\n") == 3 and runner.by_hops(found).count("\n") == 5
    assert runner.gains(found).startswith("base (r = 16) - flat-params: ")


def test_accuracies_of_the_tables_are_means_over_hops(runner):
    row = {
        "trained_hops": 2,
        "accuracy": {"1": {"8": 1.0}, "2": {"8": 0.5, "16": 0.7}, "3": {"8": 0.2}},
    }
    row["accuracy"]["1"]["16"] = 0.9
    assert runner.mean_accuracy(row, depth=8, beyond=False) == 0.75
    assert runner.mean_accuracy(row, depth=16, beyond=False) == pytest.approx(0.8)
    flat = {"trained_hops": 2, "accuracy": {"1": {"1": 1.0}, "2": {"1": 0.0}, "3": {"1": 0.3}}}
    assert runner.mean_accuracy(flat, depth=16, beyond=False) == 0.5
    assert runner.mean_accuracy(flat, depth=16, beyond=True) == 0.3


def test_recipes_are_json():
    for name in (*NAMES, "huginn-0125"):
        recipe = find(name)()
        assert json.loads(json.dumps(asdict(recipe)))["name"] == name
