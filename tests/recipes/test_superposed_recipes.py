"""Superposed thoughts from the command line and from files to a model that is asked."""

import json
from dataclasses import replace
from typing import Any

import pytest

import inward
from inward.data.thoughts.patterns import Prefix
from inward.methods.coconut.settings import CoconutSettings
from inward.recipes.coconut import prosqa_symbolic
from inward.recipes.own_thoughts import coconut, cot, interleaved
from inward.studies.thoughts_held import ROWS, exactness, recipe
from inward.train import train


@pytest.fixture
def records(tmp_path, shared_models, monkeypatch):
    monkeypatch.setenv("INWARD_MODELS", str(shared_models))
    rows = [
        {"question": f"{a} + {b}?", "steps": [f"{a}+{b}={a + b}", "so"], "answer": str(a + b)}
        for a in range(3)
        for b in range(3)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return str(path)


def own(make: Any, records: str, **options: Any) -> Any:
    few = {"num_valid": 2, "num_evaluated": 2, "spoken_epochs": 0, "stages": 2, "lora_rank": 0}
    made = replace(make(), base="stories260k", data=records, **(few | options))
    train = replace(made.train, steps=0, batch_rows=4, device="cpu", progress="off", warmup=1)
    return replace(made, train=train)


@pytest.mark.parametrize("make", [coconut, interleaved])
def test_records_of_ones_own_become_thoughts_that_are_read(make, records, tmp_path, shared_models):
    chosen = own(make, records, superpose=0.5, span=6, thoughts=2)
    chosen = replace(chosen, stages=1, max_new_tokens=20)
    run = chosen.build()
    batch = run.source.batch(0, range(4), 4)
    assert batch["spans"].shape[2] == 6 and batch["latent"].any()
    train(run, chosen.settled().train, tmp_path / "run")
    thinker = inward.open(tmp_path / "run")
    assert thinker.model.settings == CoconutSettings("mixture", superpose=0.5, span=6)
    answer = thinker.ask("1 + 2?", max_new_tokens=3, trace=True)
    thoughts = [step for step in answer.trace.steps if step.kind == "thought"]
    assert thoughts and all("words" in step.view for step in thoughts)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (coconut, {"superpose": 0.7}, "at most 0.5"),
        (coconut, {"superpose": 0.5, "span": 1}, "silent chain of thought"),
        (coconut, {"span": 6}, "superpose is 0"),
        (coconut, {"superpose": 0.5, "feedback": "norm"}, "leave feedback out"),
        (coconut, {"superpose": 0.5, "thought": "pause"}, "thought is 'pause'|no thoughts to feed"),
        (interleaved, {"superpose": 0.5, "boundaries": "supervised"}, "supervised boundaries"),
        (interleaved, {"superpose": 0.5, "hidden": 0}, "hides 0 steps"),
        (cot, {"superpose": 0.5, "stages": 3, "spoken_epochs": 1}, "no thoughts"),
        (coconut, {"superpose": 0.5, "span": 2, "thoughts": 1}, "tokens with its end, but its 1"),
        (coconut, {"superpose": 0.5, "span": 2, "thoughts": 40}, "silent chain of thought"),
    ],
)
def test_what_could_not_be_read_is_refused_before_training(
    make, options, message, records, shared_models
):
    with pytest.raises(ValueError, match=message):
        own(make, records, **options).build()


def test_the_rows_of_the_comparison_build_and_are_measured():
    for row in ROWS:
        made = recipe(row, 0, "somewhere", small=True)
        assert made.thinking.superpose == (0.5 if row.startswith("superposed") else 0.0)
    pattern = recipe("surplus", 0, "somewhere").curriculum.pattern
    assert isinstance(pattern, Prefix) and pattern.surplus == 4
    with pytest.raises(ValueError, match="there is no row 'magic'"):
        recipe("magic", 0)
    made: Any = recipe("superposed", 0, "somewhere", small=True)
    made = replace(made, start="", data=replace(made.data, num_train=64, num_valid=4, num_test=4))
    model = made.model().eval()
    source = made.source(model)
    assert source.batch(0, range(4), 4)["spans"].shape[2] == 5
    assert model.loss(source.batch(0, range(4), 4)).total.item() > 0
    asked = made.task().ask(made.data.split("test"))
    found = exactness(model, made.curriculum, asked)
    assert found.num == 16 and found.thoughts.value <= found.first.value < 1
    taught = replace(prosqa_symbolic(), thinking=CoconutSettings(distill=0.5))
    with pytest.raises(ValueError, match=r"distill 0\.5"):
        taught.build()
