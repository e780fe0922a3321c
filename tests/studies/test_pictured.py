"""What traces hold for pictures, and what is found beside them, on the shipped models."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import inward
from inward.common.halting import KL
from inward.data.thoughts import prosqa
from inward.data.thoughts.prosqa import graph_of, rendered
from inward.hub import resolve
from inward.recipes.of import recipe_of
from inward.studies.pictured import beside, swaps
from inward.tasks.prosqa import read_question
from inward.viz.page import wanted

WALK = "j>b i>j c>a d>f f>c e>d b>g g>h h>e a>i | c . . . . . ."


@pytest.fixture(scope="module")
def records():
    recipe: Any = recipe_of(resolve("prosqa"))
    drawn = prosqa.generate(6, seed=7, settings=recipe.data.graphs)
    return recipe.task().ask(drawn, seed=7)


@pytest.fixture(scope="module")
def searcher():
    return inward.open("prosqa")


@pytest.fixture(scope="module")
def writer():
    return inward.open("stories-draft")


# --- Huginn --------------------------------------------------------------------------------------


def test_recurrences_hold_what_the_rule_saw_and_the_prompt_what_it_read():
    thinker = inward.open("huginn-hops")
    names = wanted("huginn", {})
    answer = thinker.ask(WALK, trace=names, halt="kl", max_steps=32)
    recurs = [step for step in answer.trace.steps if step.kind == "recur"]
    assert len(recurs) == answer.steps == answer.trace.steps[-1].scores["steps"]
    scores = [step.scores["exit"] for step in recurs]
    below = answer.trace.meta["below"]
    assert below == KL().threshold and scores[-1] < below <= min(scores[:-1])
    for step in recurs:
        lens, prompt = step.view["lens"], step.view["prompt"]
        assert len(prompt.ids) == len(answer.trace.question)
        # the prompt's last token is the one that the lens reads
        assert prompt.ids[-1] == lens.ids[0]
        assert prompt.confidence[-1] == pytest.approx(lens.confidence[0], abs=1e-5)
        assert step.arrays["prompt_plane"].shape == (len(prompt.ids), 2)
        assert step.arrays["prompt_change"].mean() == pytest.approx(step.scores["change"], rel=1e-4)
        np.testing.assert_allclose(step.arrays["prompt_plane"][-1], step.arrays["plane"], atol=1e-6)
        assert "state" not in step.arrays
    plain = thinker.ask(WALK, trace=True, halt="kl", max_steps=32)
    assert plain.tokens == answer.tokens and plain.trace.steps[0].kind == "word"
    assert answer.cost.flops > plain.cost.flops  # the read-outs that only the picture needs
    assert answer.trace.pieces[answer.trace.question[0]] == "j>b"
    with pytest.raises(ValueError, match="no drafts"):
        thinker.ask(WALK, trace="drafts")


def test_later_tokens_have_scores_and_planes_too():
    thinker = inward.open("huginn-hops")
    both = thinker.ask(
        [WALK, WALK.replace("| c", "| a")],
        trace=("lens", "plane", "state"),
        halt="latent",
        max_steps=12,
        max_new_tokens=3,
    )
    for answer in both:
        places = {step.position for step in answer.trace.steps if step.kind == "recur"}
        assert len(places) == 3
        for place in places:
            own = [s for s in answer.trace.steps if s.kind == "recur" and s.position == place]
            assert all(s.scores["exit"] == pytest.approx(s.scores["change"]) for s in own)
            states = np.stack([s.arrays["state"] for s in own])
            drawn = np.stack([s.arrays["plane"] for s in own])
            far = np.linalg.norm(states[0] - states[-1])
            assert np.linalg.norm(drawn[0] - drawn[-1]) <= far * (1 + 1e-5)


# --- Coconut -------------------------------------------------------------------------------------


def test_thoughts_tell_their_block_and_place(searcher, records):
    answer = searcher.ask(records[0].question, trace=("lens", "plane"))
    thoughts = [step for step in answer.trace.steps if step.kind == "thought"]
    assert [step.scores["block"] for step in thoughts] == [1, 1, 2, 2, 3, 3][: len(thoughts)]
    assert all(step.arrays["plane"].shape == (2,) for step in thoughts)
    assert not any("state" in step.arrays for step in answer.trace.steps)
    states = searcher.ask(records[0].question, trace="state").trace.steps
    width = searcher.model.base.config.hidden_size
    assert all(s.arrays["state"].shape == (width,) for s in states if s.kind == "thought")


def test_questions_are_read_back(records):
    for record in records:
        for asked in (record, rendered(record, np.random.default_rng(0), rendering="text")):
            found, graph = read_question(asked.question), graph_of(asked)
            names, own = found.meta["idx_to_symbol"], asked.meta["idx_to_symbol"]
            assert {(names[a], names[b]) for a, b in graph_of(found).edges} == {
                (own[a], own[b]) for a, b in graph.edges
            }
            assert found.answer == asked.answer
            assert names[found.meta["root"]] == own[graph.root]
            assert names[found.meta["neg_target"]] == own[graph.neg_target]
    for wrong in ("", "Is Tom a bompus or impus?", "1_2 [Q] 3 4 [R] 1", "Once upon a time"):
        with pytest.raises(ValueError, match=r"no ProsQA question|nothing leads"):
            read_question(wrong)


def test_a_tree_says_what_the_model_says_next(searcher, records):
    record = records[3]
    answer = searcher.ask(record.question, trace=("lens", "plane"))
    beside(searcher, record.question, answer)
    tree = answer.trace.meta["tree"]
    sample = answer.details["sample"]
    assert len(tree["values"]) == len(tree["answers"]) == sample.num_thoughts + 1
    assert tree["depths"][tree["root"]] == 0
    # the node that the model names first is the likeliest after its first block
    first = answer.text.split()[0]
    if first != "###":
        after = np.argmax(tree["values"][sample.blocks[0]])
        assert tree["symbols"][after] == first
        said = [s for s in answer.trace.steps if s.says is not None]
        word = next(s for s in said if answer.trace.pieces[int(s.says.ids[0])].strip() == first)
        assert max(tree["values"][sample.blocks[0]]) == pytest.approx(
            float(word.says.confidence[0]), abs=2e-3
        )
    found = answer.trace.meta["swaps"]
    assert [row["thought"] for row in found] == list(range(sample.num_thoughts + 1))
    assert not found[0]["changed"] and found[0]["text"] == answer.text


def test_swapped_thoughts_are_the_other_questions(searcher, records):
    """Row n is what the model says with that one thought put in by hand."""
    mine, other = records[3].question, records[1].question
    rows = swaps(searcher, mine, other)
    kept: dict[int, torch.Tensor] = {}

    def keep(thought, where, number):
        if bool(where[0]):
            kept[int(number[0])] = thought[0].clone()
        return thought

    searcher.ask(other, edit=keep)

    def put(thought, where, number):
        n = int(number[0])
        return kept[n][None] if bool(where[0]) and n == 0 else thought

    assert searcher.ask(mine, edit=put).text == rows[1]["text"]


# --- TRM -----------------------------------------------------------------------------------------


def test_runners_up_are_second_and_seen_back_through_symmetries():
    thinker = inward.open("sudoku6")
    question = "5........3..14...62...1.....62.6...."
    answer = thinker.ask(question, trace="runner_up", views=4, seed=3)
    for step in answer.trace.steps:
        first, second = step.view["grid"], step.view["runner_up"]
        assert (first.ids != second.ids).all()
        assert (first.confidence >= second.confidence).all()
        assert (first.confidence + second.confidence <= 1 + 1e-5).all()
    plain = thinker.ask(question, trace=True, views=4, seed=3)
    assert "runner_up" not in plain.trace.steps[0].view and plain.tokens == answer.tokens
    with pytest.raises(ValueError, match="runner_up"):
        thinker.ask(question, trace="lens")


# --- TiDAR ---------------------------------------------------------------------------------------


def test_guesses_have_probabilities_and_a_plain_clock_beside_them(writer):
    text = "Tom had a big red ball."
    answer = writer.ask(text, trace=wanted("tidar", {}), max_new_tokens=24)
    steps = answer.trace.steps
    for before, step in pairwise(steps):
        if "draft" in step.view:
            given, judged = before.view["next"], step.view["draft"]
            assert list(judged.ids) == list(given.ids)[: len(judged.ids)]
            assert list(judged.confidence) == list(given.confidence)[: len(judged.confidence)]
            assert min(judged.confidence) > 0 and max(judged.confidence) <= 1
        assert step.scores["K"] == 8 and step.scores["slots"] > step.scores["masks"] >= 0
        if "block" in step.scores:
            assert step.scores["block"] == step.scores["accepted"]
    beside(writer, text, answer, max_new_tokens=24)
    plain = answer.trace.meta["plain"]
    assert plain["same"] and len(plain["seconds"]) == len(answer.tokens) == 24
    assert plain["forwards"] == list(range(1, 25)) and plain["seconds"] == sorted(plain["seconds"])
    assert "next" not in writer.ask(text, trace=True, max_new_tokens=8).trace.steps[1].view


def test_there_must_be_a_trace(writer):
    with pytest.raises(ValueError, match="trace=True"):
        beside(writer, "Tom", writer.ask("Tom", max_new_tokens=2))
