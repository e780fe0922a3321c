"""Effort and budgets are kept or refused, never ignored."""

import pytest

from inward.serve.choices import LENS, Wanted, choose, draw
from inward.serve.errors import ApiError
from inward.serve.limits import Limits
from inward.serve.schemas import ChatBody, Drawing
from tests.serve.conftest import GRAPH, HOPS, PUZZLE


def options(thinker, **wishes):
    return choose(thinker, Limits(), Wanted(**wishes)).options


def refused(thinker, told, **wishes):
    with pytest.raises(ApiError, match=told) as caught:
        choose(thinker, Limits(), Wanted(**wishes))
    assert caught.value.status == 400 and caught.value.param
    return caught.value


@pytest.mark.parametrize(
    ("effort", "steps"),
    [
        ("minimal", 4), ("low", 4), ("medium", 8), ("high", 16), ("xhigh", 16), ("max", 16),
        (0.0, 4), (0.24, 4), (0.26, 8), (0.5, 8), (0.74, 8), (0.76, 16), (0.99, 16),
    ],
)  # fmt: skip
def test_words_and_shares_are_saved_points(thinkers, effort, steps):
    assert options(thinkers["huginn-hops"], effort=effort)["max_steps"] == steps


def test_effort_without_points_is_refused_with_the_reason(thinkers):
    refused(thinkers["prosqa"], "buys nothing", effort="high")
    refused(thinkers["stories-draft"], "change no word", effort="low")
    refused(thinkers["chatty"], "nothing to turn", own_effort=3)
    refused(thinkers["sudoku6"], "say one thing twice", effort="low", own_effort=3)
    refused(thinkers["sudoku6"], "sets max_steps", effort="low", own={"max_steps": 3})
    assert options(thinkers["prosqa"], own_effort=3)["votes"] == 3


def test_none_is_no_thinking_where_there_is_such_a_thing(thinkers):
    assert options(thinkers["prosqa"], effort="none")["switch"] == "speak"
    assert "effort" not in options(thinkers["chatty"], effort="none")
    for name in ("sudoku6", "huginn-hops"):
        refused(thinkers[name], "always thinks", effort="none")
        refused(thinkers[name], "always thinks", budget=0)


def test_a_budget_bounds_what_an_effort_asks_for(thinkers):
    high = options(thinkers["sudoku6"], effort="high", budget=5)
    assert (high["max_steps"], high["views"]) == (5, 2)
    assert options(thinkers["sudoku6"], effort="low", budget=5)["max_steps"] == 1
    assert options(thinkers["huginn-hops"], budget=9)["max_steps"] == 9
    # two thoughts stand in its prompts
    assert options(thinkers["prosqa"], budget=3)["max_new_thoughts"] == 1
    assert options(thinkers["prosqa"], budget=0)["switch"] == "speak"
    refused(thinkers["prosqa"], "begins with 2 thoughts", budget=1)
    refused(thinkers["chatty"], "does not think", budget=7)
    assert options(thinkers["chatty"], budget=0)


def test_limits_name_themselves(thinkers):
    refused(thinkers["sudoku6"], "max_steps is 1000", own={"max_steps": 1000})
    refused(thinkers["prosqa"], "votes is 33", own={"votes": 33})
    refused(thinkers["sudoku6"], "views times rollouts", own={"views": 8, "rollouts": 8})
    refused(thinkers["sudoku6"], "no tokens to bound", max_tokens=3)
    refused(thinkers["sudoku6"], "verifies no guesses", prediction="1")
    refused(thinkers["sudoku6"], "no option 'puzzle'", own={"puzzle": 3})
    refused(thinkers["stories-draft"], "another kind", own={"scheme": [1]})


def test_thoughts_are_told_where_there_are_any(thinkers):
    for name, tells in (("sudoku6", True), ("prosqa", True), ("chatty", False)):
        assert choose(thinkers[name], Limits(), Wanted()).reasoning is tells
        quiet = choose(thinkers[name], Limits(), Wanted(), reasoning=False)
        assert not quiet.reasoning and "lens" not in quiet.options["usual"]
    assert options(thinkers["huginn-hops"])["usual"]["lens"] == LENS
    fast = {"mode": "speculate", "max_steps": 8}
    assert "lens" not in options(thinkers["huginn-hops"], own=fast)["usual"]


def body(**fields):
    return Drawing(model="x", **fields)


def test_drawing_is_as_asked_or_as_the_model_says(thinkers):
    stories = thinkers["stories-draft"]
    assert draw(stories, body()) == ({}, [None])
    found, seeds = draw(stories, body(temperature=0.7, top_p=0.9, seed=3, n=2, stop="x"))
    sampling = found["sampling"]
    assert (sampling.rule, sampling.temperature, sampling.top_p) == ("gumbel", 0.7, 0.9)
    assert seeds == [3, 4] and found["stop"] == ("x",)
    one, two = (draw(stories, body(temperature=1.0))[1] for _ in range(2))
    assert one != two
    assert draw(stories, body(temperature=0.0))[0]["sampling"].rule == "greedy"
    with pytest.raises(ApiError, match="likeliest token"):
        draw(stories, body(temperature=0.0, top_k=3))
    for name, value in (("temperature", 1.0), ("stop", "x"), ("n", 2)):
        with pytest.raises(ApiError) as caught:
            draw(thinkers["sudoku6"], body(**{name: value}))
        assert caught.value.param == name


def test_schemas_take_no_text_for_a_number():
    plain = {"model": "x", "messages": [{"role": "user", "content": "x"}]}
    ChatBody.model_validate(plain | {"max_tokens": 3})
    for bad in ({"max_tokens": "3"}, {"max_tokens": True}, {"reasoning_effort": 1.0}, {"n": 0}):
        with pytest.raises(ValueError, match="validation error"):
            ChatBody.model_validate(plain | bad)


@pytest.mark.parametrize(
    ("name", "question", "effort", "unit"),
    [
        ("sudoku6", PUZZLE, "high", "supervision steps"),
        ("huginn-hops", HOPS, 0.5, "recurrences"),
        ("prosqa", GRAPH, "none", "thoughts"),
    ],
)
def test_the_server_spends_what_it_says(server, thinkers, name, question, effort, unit):
    told = server.post(
        "/v1/chat/completions",
        {
            "model": name,
            "messages": [{"role": "user", "content": question}],
            "reasoning_effort": effort,
        },
    ).json()
    words = {0.5: {"effort": "medium"}, "none": {"switch": "speak"}}
    alone = thinkers[name].ask(question, **words.get(effort, {"effort": effort}))
    own = told["usage"]["inward"]
    assert told["choices"][0]["message"]["content"] == alone.text
    assert own["unit"] == own["effort"]["unit"] == unit and own["effort"]["asked"] == effort
    # a lens costs read-outs, and nothing else
    assert own["recurrences"] == alone.cost.evaluations and own["forwards"] == alone.cost.forwards
    assert told["usage"]["completion_tokens_details"]["reasoning_tokens"] == alone.steps


def test_thinking_eats_up_no_tokens(server, thinkers):
    """Boundary tokens of Coconut's thoughts are no completion tokens."""
    ask = {"model": "prosqa", "messages": [{"role": "user", "content": GRAPH}]}
    whole = server.post("/v1/chat/completions", ask).json()
    said = whole["usage"]["completion_tokens"]
    marks = len(thinkers["prosqa"].ask(GRAPH).tokens) - said
    assert marks > 0
    short = server.post("/v1/chat/completions", ask | {"max_completion_tokens": said - 1}).json()
    assert short["usage"]["completion_tokens"] == said - 1
    assert short["choices"][0]["finish_reason"] == "length"
    enough = server.post("/v1/chat/completions", ask | {"max_completion_tokens": said}).json()
    text = whole["choices"][0]["message"]["content"]
    assert enough["choices"][0]["message"]["content"] == text
