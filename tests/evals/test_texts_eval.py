"""Evaluation of what answers in text: every shipped model by its command, and what is counted."""

import json
from typing import Any

import numpy as np
import pytest

from inward.cli.main import main
from inward.common.thinking import Answer
from inward.data.thoughts.records import Record
from inward.evals import drafts, texts
from inward.evals.questions import HeldOut, example, of_records
from inward.hub import door, method_of, shipped
from inward.recipes import find
from inward.recipes.of import recipe_of
from inward.tasks.chains import ChainTask
from inward.tasks.exact import ExactTask, report
from inward.thinker import open_thinker

WRITERS = [name for name, path in shipped().items() if door(method_of(path)).reads == "text"]


@pytest.mark.parametrize("name", WRITERS)
def test_every_shipped_model_that_writes_is_scored(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", name, "--num", "6", "--out", "o.jsonl", "--no-by-stage"]) == 0
    (row,) = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
    assert row["what"] == name and row["command"].startswith(f"inward eval {name} ")
    if name == "stories-draft":
        assert row["accepted"] > 4 and row["decoded"] > 2.5 and 1 < row["perplexity"] < 3
        assert row["interval"][0] < row["perplexity"] < row["interval"][1]
    else:
        assert row["right"]["num"] == 6 and row["right"]["accuracy"] >= 0.5
        assert "6 of " in row["dataset"] and row["flops"] > 0 and row["forwards"] >= 1
        assert (row["paired"] is None) == (name == "huginn-hops")


def test_the_last_stage_is_how_a_model_is_asked():
    """Asked as at its last stage, a model says what `inward ask` gets."""
    recipe: Any = recipe_of("prosqa")
    thinker = open_thinker("prosqa")
    task = recipe.task()
    asked = of_records(task, task.ask(recipe.data.split("test")[:8]))
    stages = texts.by_stage(thinker, recipe, asked)
    whole = texts.evaluate(thinker, asked, task=task)
    assert [share.name for share in stages] == ["0", "1", "2"]
    assert stages[-1].accuracy == whole.right.accuracy >= 0.5
    assert whole.paired is not None and whole.paired.accuracy <= whole.right.accuracy
    assert whole.metrics["blind_depth_paired"] == 0.0


class Parrot:
    """Says what it was asked, and cannot be asked an empty question."""

    name = "parrot"

    class method:
        name = "plain"

    class model:
        @staticmethod
        def parameters():
            return []

    def ask(self, questions, **_):
        return [
            Answer(text=f"### {q}", tokens=(1, 2), steps=3, stopped="end")
            if q.strip()
            else Answer(error="it is empty")
            for q in questions
        ]


def test_counting():
    records = [Record("4", (), "4"), Record("5", (), "6"), Record("7", (), "7")]
    asked = of_records(ExactTask(), records)
    asked.append(HeldOut(" ", lambda answer: True))
    found = texts.evaluate(Parrot(), asked)  # pyright: ignore[reportArgumentType]
    assert (found.right.num, found.right.accuracy) == (4, 0.5)
    assert found.failed == {"it is empty": 1} and found.stopped == {"end": 3}
    assert (found.tokens, found.steps, found.paired) == (2.0, 3.0, None)
    with pytest.raises(ValueError, match="no question to ask"):
        texts.evaluate(Parrot(), [])  # pyright: ignore[reportArgumentType]
    groups = [HeldOut("1", lambda a: a.text == "### 1", str(i % 2)) for i in range(4)]
    found = texts.evaluate(Parrot(), groups)  # pyright: ignore[reportArgumentType]
    assert [(g.name, g.num, g.accuracy) for g in found.groups] == [("0", 2, 1.0), ("1", 2, 1.0)]


def test_exact_match_reads_behind_the_last_mark():
    task, record = ExactTask(), Record("Q?", ("one  step", "two"), "New  York")
    for text, right, spoken, gold in [
        ("one step\nthree\n### New York", True, 2, 1),
        ("one step\n#### New York", True, 1, 1),
        ("New York ", True, 0, 0),
        ("### New York\n### York", False, 1, 0),
        ("", False, 0, 0),
    ]:
        score = task.score(record, text)
        assert (score.right, score.num_spoken, score.num_gold) == (right, spoken, gold), text
    with pytest.raises(ValueError, match="holds '###'"):
        task.check([Record("Q?", (), "a ### b")])
    found = report(task, [record, record], ["### New York", "two\n### x"]).metrics
    assert found == {"accuracy": 0.5, "gold_steps": 1.0, "spoken": 0.5, "constant": 1.0}
    with pytest.raises(ValueError, match="2 records but 1 texts"):
        report(task, [record, record], ["x"])


def test_files_have_no_swaps_but_generated_chains_have():
    from inward.data.thoughts import chains

    (chain,) = chains.generate(1, seed=0, settings=chains.ChainSettings(), rendering="symbolic")
    assert of_records(ChainTask("symbolic"), [chain])[0].swap is not None
    plain = Record("Q?", ("<<1+1=2>>",), "2")
    assert of_records(ChainTask(), [plain])[0].swap is None


def test_perplexity_of_what_is_said_alone():
    import torch

    thinker = open_thinker("stories-draft")
    ids = np.array(thinker.processor.read("Once upon a time, there was a cat.").tokens)
    said = np.arange(len(ids)) >= 4
    loss = drafts._losses(thinker.model, drafts.HeldText(ids, said, ids[:4].tolist()))
    with torch.no_grad():
        logits = thinker.model.model(torch.tensor(ids)[None], use_cache=False).logits[0].float()
    right = torch.nn.functional.cross_entropy(logits[3:-1], torch.tensor(ids[4:]), reduction="none")
    np.testing.assert_allclose(loss, right.numpy(), rtol=1e-5)
    mean, (low, high) = drafts._perplexity([loss, loss])
    assert mean == pytest.approx(float(right.mean()), rel=1e-5)
    assert low <= float(np.exp(mean)) <= high


@pytest.mark.parametrize(
    "name", ["sudoku4", "maze11", "huginn-hops", "prosqa-cot", "tidar-stories"]
)
def test_an_example_can_be_typed(name):
    """What training prints as a question is one that its models read."""
    from inward.tasks.processors import processor_for

    recipe = find(name)()
    question = example(recipe)
    assert question.strip()
    task = getattr(recipe, "task", None)
    processor = None if task is None else processor_for(task())
    if processor is not None:
        assert len(processor.read(question).tokens)
