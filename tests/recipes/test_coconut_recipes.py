"""Recipes of Coconut: complete, consistent, runnable at toy size; published values as published."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import tyro

from inward.data import prosqa
from inward.data.patterns import Script, Speak, Think
from inward.data.prosqa import ProsQASettings
from inward.recipes import coconut
from inward.recipes.coconut import ChainData, CoconutRecipe, FileData, ProsQAData, SmallBase
from inward.train.settings import TrainSettings

TINY = ProsQASettings(num_nodes=10, min_hops=2, max_hops=2, shortcut=False)


def small(recipe: CoconutRecipe, **changes) -> CoconutRecipe:
    data = recipe.data
    if isinstance(data, ProsQAData):
        data = replace(data, graphs=TINY, num_train=16, num_valid=4, num_test=4)
    elif isinstance(data, ChainData):
        data = replace(data, num_train=16, num_valid=4, num_test=4)
    return replace(
        recipe,
        base=SmallBase(num_layers=1, width=16, num_heads=2),
        data=data,
        train=TrainSettings(steps=2, batch_rows=4, ema_decay=0.0, progress="off"),
        max_new_tokens=8,
        **changes,
    )


@pytest.mark.parametrize("row", list(coconut.rows(first=1, each=1)))
def test_every_row_trains_and_answers(row):
    run: Any = small(coconut.prosqa_symbolic(row)).build()
    for step in (0, 8, 40):  # from the first stage to the last
        batch = run.source.batch(step, range(4), 4)
        loss = run.model.loss(batch, None, None)
        assert float(loss.total.detach()) > 0
        assert int(batch["weight"].sum()) > 0
    found = run.evaluate(run.model.eval())
    assert {"accuracy", "paired", "both_sides", "blind_depth"} <= set(found)
    json.dumps(run.config)


@pytest.mark.parametrize("row", ["interleaved", "interleaved-learned"])
def test_chains_too(row):
    run: Any = small(coconut.chains_symbolic(row)).build()
    run.model.loss(run.source.batch(30, range(4), 4), None, None).total.backward()
    assert {"accuracy", "paired", "constant"} <= set(run.evaluate(run.model.eval()))


def test_rows_differ_in_the_curriculum_alone():
    made = {row: coconut.prosqa_symbolic(row) for row in coconut.rows(first=1, each=1)}
    plain = {
        row: {k: v for k, v in asdict(recipe).items() if k not in ("name", "about", "curriculum")}
        for row, recipe in made.items()
    }
    assert all(other == plain["coconut"] for other in plain.values())
    with pytest.raises(ValueError, match="rows are coconut"):
        coconut.prosqa_symbolic("magic")
    with pytest.raises(ValueError, match="rows are coconut"):
        coconut.chains_symbolic("magic")


def test_splits_share_no_puzzle():
    data = ProsQAData(graphs=TINY, num_train=30, num_valid=8, num_test=8, pairs=True)
    keys = {n: {prosqa.key(r) for r in data.split(n)} for n in ("train", "valid", "test")}
    assert [len(keys[n]) for n in ("train", "valid", "test")] == [15, 8, 8]  # 15 pairs
    assert not keys["train"] & (keys["valid"] | keys["test"])
    assert not keys["valid"] & keys["test"]


def test_the_released_test_set_can_be_the_test(shared_data):
    path = str(shared_data / "prosqa" / "prosqa_test.json")
    recipe = small(coconut.prosqa_symbolic())
    recipe = replace(recipe, data=replace(recipe.data, test_file=path))
    asked = recipe.task().ask(recipe.data.split("test"))
    assert len(asked) == 500
    prompts = recipe.prompts(recipe.model(), [record.question for record in asked[:5]])
    assert {prompt.num_thoughts for prompt in prompts} == {6}


def test_policies_fit_the_rows():
    kinds = {}
    for row in ("coconut", "interleaved", "interleaved-learned", "cot", "pause-as-thought"):
        recipe = small(coconut.prosqa_symbolic(row))
        kinds[row] = type(recipe.policy(recipe.model())).__name__
    assert kinds == {
        "coconut": "Speak",
        "interleaved": "Script",
        "interleaved-learned": "Boundary",
        "cot": "Speak",
        "pause-as-thought": "Speak",
    }


def test_published_values():
    gsm, pro = coconut.published_gsm8k(), coconut.published_prosqa()
    stages = [gsm.curriculum.stages.at(epoch) for epoch in (0, 3, 6, 9, 21)]
    assert stages == [1, 2, 3, 4, 4]
    assert gsm.curriculum.pattern.script(4) == Script((Think(6), Speak()))
    assert [pro.curriculum.stages.at(epoch) for epoch in (0, 5, 30, 35, 49)] == [0, 1, 6, 7, 7]
    for recipe in (gsm, pro, coconut.published_prontoqa(), coconut.published_gsm8k_cot()):
        assert recipe.about.startswith("NOT RUN HERE")
        assert isinstance(recipe.data, FileData)
        settings = recipe.train
        assert (settings.batch_rows, settings.optim.lr, settings.optim.weight_decay) == (
            128,
            1e-4,
            0.01,
        )
        json.dumps(asdict(recipe))
    assert pro.train.steps == 50 * -(-17_886 // 128)
    assert gsm.train.steps == 22 * -(-385_620 // 128)


def test_the_optimizer_starts_afresh_where_the_curriculum_says():
    recipe = small(coconut.prosqa_symbolic())
    assert recipe.build().resets == ()
    stages = replace(recipe.curriculum.stages, reset="epoch")
    recipe = replace(recipe, curriculum=replace(recipe.curriculum, stages=stages))
    assert isinstance(recipe.data, coconut.ProsQAData)
    long = -(-recipe.data.num_train // recipe.train.batch_rows)
    run = replace(recipe, train=replace(recipe.train, steps=3 * long + 1)).build()
    assert run.resets == (long, 2 * long, 3 * long)


def test_files_need_a_trained_base():
    with pytest.raises(ValueError, match="use a PretrainedBase"):
        replace(coconut.published_prosqa(), base=SmallBase()).model()
    with pytest.raises(FileNotFoundError, match="prosqa_train"):
        coconut.published_prosqa().data.split("train")


def test_fields_can_be_overridden_on_a_command_line():
    recipe: Any = tyro.cli(
        CoconutRecipe,
        default=coconut.prosqa_symbolic("interleaved"),
        args=["--train.steps", "3", "--curriculum.pattern.thoughts", "5", "--base.width", "32"],
        config=(tyro.conf.AvoidSubcommands,),
    )
    assert recipe.train.steps == 3 and recipe.base.width == 32
    assert recipe.curriculum.pattern.thoughts == 5
