"""Typed decisions: their form, their numbers, and what is refused."""

import math

import httpx2 as httpx
import numpy as np
import pytest
import torch

from inward.common.thinking import Answer
from inward.serve.decisions import ChoiceQuestion, Decision, NoulQuestion, ScoreQuestion
from tests.serve.conftest import GRAPH, HOPS, PUZZLE
from tests.serve.live import chatty, live


def decide(server, model, state, questions=None, **more):
    body = {"model": model, "state": state} | ({"questions": questions} if questions else {})
    return server.post("/v1/systemone", body | more)


def choice(*names, **more):
    return {"type": "choice", "criteria": dict.fromkeys(names)} | more


# --- the forms of answers -------------------------------------------------------------------------


def test_answers_have_the_form_and_the_numbers_of_system_one():
    ask = ChoiceQuestion(type="choice", criteria={"calm": None, "pushy": "Presses"})
    told = Decision.of("tone", ask, spoken=False).answer([0.25, 0.75])
    assert told == {
        "type": "choice", "choice": "pushy", "confidence": 0.5,
        "probabilities": {"calm": 0.25, "pushy": 0.75},
    }  # fmt: skip
    yes = Decision.of("spam", NoulQuestion(type="noul"), spoken=False).answer([0.125, 0.875])
    assert yes == {"type": "noul", "noul": 0.125}
    level = ScoreQuestion(type="score", criteria=["later", "soon", "now"])
    told = Decision.of("haste", level, spoken=False).answer([0.0, 0.25, 0.75])
    assert told["score"] == 1.75 and told["legend"] == {"0": "later", "1": "soon", "2": "now"}
    # 1/4 of a level away from the best, where even shares are 2/3 of a level from the middle
    assert told["confidence"] == pytest.approx(1 - 0.25 / (2 / 3))
    even = Decision.of("haste", level, spoken=False).answer([1 / 3] * 3)
    assert even["confidence"] == pytest.approx(0.0, abs=1e-9)


def test_numbers_are_those_of_transformers():
    from transformers.decision import DecisionConfig, parse_questions

    asked = {
        "a": {"type": "noul", "instructions": "Is it?"},
        "b": {"type": "choice", "criteria": {"x": None, "y": "why", "z": {"deep": [1]}}},
        "c": {"type": "score", "criteria": ["low", "mid", "high", "top"]},
    }
    forms = {"noul": NoulQuestion, "choice": ChoiceQuestion, "score": ScoreQuestion}
    rng = np.random.default_rng(0)
    for theirs in parse_questions(asked, DecisionConfig()):
        ours = forms[theirs.type].model_validate(asked[theirs.name])
        decision = Decision.of(theirs.name, ours, spoken=False)
        assert list(decision.labels) == theirs.labels
        for _ in range(20):
            shares = rng.dirichlet(np.ones(len(theirs.options))).tolist()
            mine, want = decision.answer(shares), theirs.answer(shares)
            assert mine.keys() == want.keys()
            for name, value in want.items():
                exact = not isinstance(value, float)
                assert mine[name] == (value if exact else pytest.approx(value))


# --- puzzles --------------------------------------------------------------------------------------


def test_a_sudoku_is_a_choice_for_each_blank_from_its_final_grid(server, thinkers):
    told = decide(server, "sudoku6", PUZZLE).json()
    answer = thinkers["sudoku6"].ask(PUZZLE, trace="shares")
    blanks = [cell for cell, sign in enumerate(PUZZLE) if sign == "."]
    assert list(told["answers"]) == [f"r{c // 6 + 1}c{c % 6 + 1}" for c in blanks]
    for cell, row in zip(blanks, told["answers"].values(), strict=True):
        assert row["type"] == "choice" and row["choice"] == answer.text[cell]
        assert list(row["probabilities"]) == list("123456")
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        shares = answer.trace.steps[-1].arrays["shares"][cell, 2:8]
        assert list(row["probabilities"].values()) == pytest.approx(
            (shares / shares.sum()).tolist(), abs=1e-5
        )
    usage = told["usage"]
    assert usage["input_tokens"] == 36 and usage["output_tokens"] == 0
    assert usage["output_tokens_details"]["reasoning_tokens"] == answer.steps
    assert usage["inward"]["steps"] == answer.steps and usage["inward"]["flops"] > 0
    less = decide(server, "sudoku6", PUZZLE, inward={"options": {"halt": "never", "max_steps": 3}})
    assert less.json()["usage"]["output_tokens_details"]["reasoning_tokens"] == 3


def test_cells_are_asked_for_by_name_and_among_what_may_stand(server):
    grid = [
        [0 if sign == "." else int(sign) for sign in PUZZLE[i : i + 6]] for i in range(0, 36, 6)
    ]
    for state in (PUZZLE, grid):
        told = decide(server, "sudoku6", state, {"r1c2": choice("1", "6"), "r6c6": choice("3")})
        answers = told.json()["answers"]
        assert list(answers) == ["r1c2", "r6c6"] and answers["r6c6"]["confidence"] == 1.0
        assert set(answers["r1c2"]["probabilities"]) == {"1", "6"}
    for name, about in (("r1c1", "is given"), ("r7c1", "lies outside"), ("top", "no cell")):
        told = decide(server, "sudoku6", PUZZLE, {name: choice("1")})
        assert told.status_code == 400 and about in told.json()["detail"]
    assert "'7'" in decide(server, "sudoku6", PUZZLE, {"r1c2": choice("7")}).json()["detail"]
    told = decide(server, "sudoku6", PUZZLE, {"r1c2": {"type": "noul"}})
    assert told.status_code == 400 and "a cell is a choice" in told.json()["detail"]
    told = decide(server, "sudoku6", PUZZLE, {"r1c2": choice("1", instructions="Which?")})
    assert told.status_code == 400 and "instructions" in told.json()["detail"]
    assert decide(server, "sudoku6", {"grid": PUZZLE}).status_code == 400
    assert decide(server, "sudoku6", [True] * 36).status_code == 400


def test_shares_come_back_through_symmetries(thinkers):
    answer = thinkers["sudoku6"].ask(PUZZLE, trace="shares", views=5, seed=3, select="majority")
    for step in answer.trace.steps:
        shares, grid = step.arrays["shares"], step.view["grid"]
        np.testing.assert_array_equal(shares.argmax(1), grid.ids)
        np.testing.assert_allclose(shares.max(1), grid.confidence, rtol=1e-6)
        np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)


# --- texts ----------------------------------------------------------------------------------------


def test_a_conversation_is_asked_for_letters_and_their_logits_decide():
    question = {"type": "choice", "instructions": "Which?", "criteria": {"calm": "Slow", "b": None}}
    haste = {"type": "score", "criteria": ["late", "now"]}
    state = {"mail": "Buy!"}
    thinker = chatty(max_position_embeddings=256)
    with live({"wide": thinker}) as wide:
        told = decide(wide, "wide", state, {"tone": question, "haste": haste}).json()
    text = '{"mail": "Buy!"}\n\nWhich?\nA) calm: Slow\nB) b\nSay the letter of the right answer, '
    text += "and nothing else."
    prompt = thinker.processor.read([{"role": "user", "content": text}])
    with torch.no_grad():
        logits = thinker.model(torch.tensor([prompt.tokens])).logits[0, -1]
    want = logits[[ord("A"), ord("B")]].softmax(-1).tolist()
    assert list(told["answers"]["tone"]["probabilities"].values()) == pytest.approx(want, abs=1e-5)
    assert told["answers"]["haste"]["legend"] == {"0": "late", "1": "now"}
    assert told["usage"]["output_tokens"] == 0
    assert told["usage"]["input_tokens"] > len(prompt.tokens)


def test_labels_of_several_tokens_are_refused(server):
    told = decide(server, "chatty", "x", {"spam": {"type": "noul"}})  # its tokens are bytes
    assert told.status_code == 400 and "'Yes', 'No' is not one token" in told.json()["detail"]
    told = decide(server, "huginn-hops", HOPS, {"end": choice("a", "bc")})
    assert told.status_code == 400 and "'bc'" in told.json()["detail"]


def test_a_model_of_one_form_says_the_answers_themselves_after_thinking(server, thinkers):
    told = decide(server, "huginn-hops", HOPS, {"end": choice(*"abcdefghij")}).json()
    plain = thinkers["huginn-hops"].ask(HOPS, logprobs=True)
    end = told["answers"]["end"]
    assert end["choice"] == plain.text
    # the ten letters hold nearly all of the mass
    assert end["probabilities"][plain.text] == pytest.approx(math.exp(plain.logprobs[0]), abs=0.02)
    assert told["usage"]["output_tokens_details"]["reasoning_tokens"] == plain.steps
    low = decide(
        server, "huginn-hops", HOPS, {"end": choice("a", "b")}, reasoning_effort="low"
    ).json()
    assert low["usage"]["inward"]["steps"] < told["usage"]["inward"]["steps"]

    told = decide(server, "prosqa", GRAPH, {"where": choice("12", "5")}).json()
    plain = thinkers["prosqa"].ask(GRAPH)
    assert plain.text.endswith(f"### {told['answers']['where']['choice']}")
    usage = told["usage"]
    assert usage["output_tokens_details"]["reasoning_tokens"] == plain.steps > 0
    assert 0 < usage["output_tokens"] < len(plain.tokens)
    silent = decide(server, "prosqa", GRAPH, {"w": choice("12", "5")}, reasoning_effort="none")
    assert silent.json()["usage"]["inward"]["steps"] < plain.steps


def test_what_cannot_be_decided_is_refused(server):
    for more, about in (
        ({"questions": {"e": choice("a", "b", instructions="Where?")}}, "leave instructions out"),
        ({"questions": {"e": {"type": "choice", "criteria": {"a": "x"}}}}, "only be null"),
        ({}, "no questions"),
        ({"state": ["a"], "questions": {"e": choice("a")}}, "single texts"),
    ):
        told = server.post("/v1/systemone", {"model": "huginn-hops", "state": HOPS} | more)
        assert told.status_code == 400 and about in told.json()["detail"], told.text
    told = decide(server, "prosqa", GRAPH, {"w": choice("12", "5")}, inward={"effort": 3})
    assert told.status_code == 400 and "votes" in told.json()["detail"]
    many = choice(*map(str, range(27)))
    assert "letters" in decide(server, "chatty", "x", {"q": many}).json()["detail"]


# --- the route ------------------------------------------------------------------------------------


def test_this_route_alone_tells_errors_in_its_own_form(server):
    told = decide(server, "nobody", "x", {"q": choice("a")})
    assert told.status_code == 404 and told.json().keys() == {"detail"}
    for body, place in (
        ({"model": "chatty"}, "state"),
        ({"model": "chatty", "state": "x", "questions": {}}, "questions"),
        ({"model": "chatty", "state": "x", "questions": {"q": {"type": "rank"}}}, "questions"),
        ({"model": "chatty", "state": "x", "assets": {"i": {}}}, "assets"),
        ({"model": "chatty", "state": "x", "stream": True}, "stream"),
    ):
        told = server.post("/v1/systemone", body)
        assert told.status_code == 422, told.text
        assert told.json()["detail"][0]["loc"][1] == place
    headers = {"Content-Type": "application/json"}
    for body, status in ((b"\xff", 400), (b"{", 422)):
        told = httpx.post(f"{server.url}/v1/systemone", content=body, headers=headers)
        assert told.status_code == status and told.json().keys() == {"detail"}
    told = httpx.get(f"{server.url}/v1/models").json()
    kinds = {row["id"]: row["architecture"]["output_modalities"] for row in told["data"]}
    assert kinds["sudoku6"] == ["decisions"] and kinds["chatty"] == ["text", "decisions"]


def test_a_place_is_found_by_what_was_said():
    from inward.serve.decisions import LabelReader

    reader = LabelReader((1, 2))
    for prefix, odds in (([7, 8], (0.0, 1.0, 0.0)), ([7, 8, 3], (0.0, 0.0, 2.0))):
        reader(torch.tensor([prefix]), torch.tensor([odds]))
    first, num = reader.shares(Answer(tokens=(3,), stopped="length"))
    assert num == 0 and first[0] == pytest.approx(1 / (1 + math.exp(-1)))
    second, num = reader.shares(Answer(tokens=(3, 5, 0), stopped="end"))
    assert num == 1 and second[1] == pytest.approx(1 / (1 + math.exp(-2)))
