"""The official client, unmodified, against a real server."""

import json
from typing import Any

import openai
import pytest

from tests.serve.conftest import GRAPH, HOPS, PUZZLE
from tests.serve.live import data_of

ONCE = [{"role": "user", "content": "Once upon a time"}]


def ask(thinker, question, **more):
    return thinker.ask(question, **more)


def test_a_chat_says_what_the_model_says(client, thinkers):
    messages = [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "y"}],
        },
    ]
    told = client.chat.completions.create(model="chatty", messages=messages, max_tokens=9)
    plain = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hey"}]
    alone = thinkers["chatty"].ask(plain, max_new_tokens=9)
    (choice,) = told.choices
    assert choice.message.content == alone.text and choice.finish_reason == "length"
    assert told.usage.completion_tokens == len(alone.tokens) == 9
    assert told.usage.prompt_tokens == len("system: be brief\nuser: hey\nassistant:")
    assert told.usage.total_tokens == told.usage.prompt_tokens + 9


def test_a_stream_is_the_answer_in_pieces(client, thinkers):
    chunks = list(
        client.chat.completions.create(
            model="stories-draft", messages=ONCE, max_tokens=30, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    alone = thinkers["stories-draft"].ask("Once upon a time", max_new_tokens=30)
    *pieces, last = chunks
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == alone.text
    assert len([c for c in pieces if c.choices[0].delta.content]) > 3
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in pieces][-2:] == [None, "length"]
    assert last.choices == [] and last.usage.completion_tokens == 30
    assert all(c.usage is None for c in pieces) and len({c.id for c in chunks}) == 1
    own = last.usage.inward
    assert own["forwards"] == alone.cost.forwards and own["flops"] == alone.cost.flops
    assert own["draft_tokens"] >= own["accepted_draft_tokens"] > 0
    assert last.usage.completion_tokens_details.accepted_prediction_tokens > 0


@pytest.mark.parametrize(
    ("name", "question", "field"),
    [("sudoku6", PUZZLE, "sudoku"), ("huginn-hops", HOPS, "hops"), ("prosqa", GRAPH, "graph")],
)
def test_whoever_thinks_shows_its_thoughts(client, thinkers, name, question, field):
    messages = [{"role": "user", "content": question}]
    whole = client.chat.completions.create(model=name, messages=messages)
    alone = ask(thinkers[name], question)
    message = whole.choices[0].message
    assert message.content == alone.text
    assert whole.usage.completion_tokens_details.reasoning_tokens == alone.steps > 0
    assert whole.usage.inward["unit"] == thinkers[name].method.steps
    lines = message.reasoning_content.splitlines()
    assert len(lines) >= alone.steps
    chunks = list(client.chat.completions.create(model=name, messages=messages, stream=True))
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    assert "".join(getattr(d, "reasoning_content", "") for d in deltas) == message.reasoning_content
    assert "".join(d.content or "" for d in deltas) == alone.text
    silent = client.chat.completions.create(
        model=name, messages=messages, extra_body={"include_reasoning": False}
    )
    assert not hasattr(silent.choices[0].message, "reasoning_content")


def test_several_choices_differ_and_their_seed_is_told(client, thinkers):
    told = client.chat.completions.create(
        model="stories-draft", messages=ONCE, max_tokens=12, temperature=1.0, n=3
    )
    texts = [choice.message.content for choice in told.choices]
    assert [choice.index for choice in told.choices] == [0, 1, 2] and len(set(texts)) == 3
    seed = told.usage.inward["seed"]
    again = client.chat.completions.create(
        model="stories-draft", messages=ONCE, max_tokens=12, temperature=1.0, seed=seed + 1
    )
    assert again.choices[0].message.content == texts[1]
    assert "seed" not in again.usage.inward
    cold = client.chat.completions.create(
        model="stories-draft", messages=ONCE, max_tokens=12, temperature=0
    )
    alone = thinkers["stories-draft"].ask("Once upon a time", max_new_tokens=12)
    assert cold.choices[0].message.content == alone.text


def test_log_probabilities_are_those_of_the_tokens(client, thinkers):
    told = client.chat.completions.create(
        model="stories-draft", messages=ONCE, max_tokens=5, logprobs=True
    )
    alone = thinkers["stories-draft"].ask("Once upon a time", max_new_tokens=5, logprobs=True)
    content = told.choices[0].logprobs.content
    assert [row.logprob for row in content] == pytest.approx(alone.logprobs)
    assert "".join(row.token for row in content) == alone.text
    old = client.completions.create(
        model="stories-draft", prompt="Once upon a time", max_tokens=5, logprobs=1
    )
    assert old.choices[0].logprobs.token_logprobs == pytest.approx(alone.logprobs)


def test_completions_go_on_with_several_prompts(client, thinkers):
    prompts = ["Once upon a time", "The cat"]
    told = client.completions.create(model="stories-draft", prompt=prompts, max_tokens=8)
    alone = thinkers["stories-draft"].ask(prompts, max_new_tokens=8)
    assert [choice.text for choice in told.choices] == [a.text for a in alone]
    assert told.usage.completion_tokens == 16
    chunks = client.completions.create(
        model="stories-draft", prompt=prompts, max_tokens=8, stream=True, stop=["."]
    )
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [a.text.split(".")[0] for a in alone]


def test_a_response_has_thoughts_and_text(client, thinkers):
    told = client.responses.create(model="prosqa", input=GRAPH)
    alone = thinkers["prosqa"].ask(GRAPH)
    assert told.output_text == alone.text and told.status == "completed"
    assert [item.type for item in told.output] == ["reasoning", "message"]
    assert told.output[0].content[0].type == "reasoning_text"
    assert told.usage.output_tokens_details.reasoning_tokens == alone.steps
    kinds, text, thoughts = [], "", ""
    for event in client.responses.create(model="prosqa", input=GRAPH, stream=True):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
        thoughts += event.delta if event.type == "response.reasoning_text.delta" else ""
    assert text == alone.text and thoughts == told.output[0].content[0].text
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed" and "response.output_item.done" in kinds
    with client.responses.stream(model="prosqa", input=GRAPH) as stream:
        final = stream.get_final_response()
    assert final.output_text == alone.text
    short = client.responses.create(
        model="chatty", input=[{"role": "user", "content": "hi"}], instructions="x",
        max_output_tokens=3,
    )  # fmt: skip
    assert short.status == "incomplete"
    assert short.incomplete_details.reason == "max_output_tokens"


def test_models_say_what_they_are(client, thinkers):
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == set(thinkers)
    assert listed["sudoku6"].inward["reads"] == "puzzle"
    assert client.models.retrieve("prosqa").inward["method"] == "coconut"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.models.retrieve("gpt")


def test_a_prediction_changes_no_word(client, thinkers):
    alone = thinkers["stories-draft"].ask("Once upon a time", max_new_tokens=40)
    words = alone.text.split(" ")
    wrong = " ".join([*words[:8], "green", *words[9:]])
    for text, most in ((alone.text, 0), (wrong, 8), ("never heard of", 8)):
        told = client.chat.completions.create(
            model="stories-draft", messages=ONCE, max_tokens=40,
            prediction={"type": "content", "content": text},
        )  # fmt: skip
        assert told.choices[0].message.content == alone.text
        details = told.usage.completion_tokens_details
        assert details.rejected_prediction_tokens <= most
        if text != "never heard of":
            assert details.accepted_prediction_tokens >= 20
            assert told.usage.inward["forwards"] < 12


@pytest.mark.parametrize(
    ("more", "param", "told"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "calls tools"),
        ({"tool_choice": "auto"}, "tool_choice", "calls tools"),
        ({"response_format": {"type": "json_object"}}, "response_format", "answers are text"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not offered"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs", "token said"),
        ({"extra_body": {"nonsense": 1}}, "nonsense", "no field 'nonsense'"),
        ({"extra_body": {"inward": {"options": {"drafter": "x"}}}}, None, "no option 'drafter'"),
        ({"extra_body": {"inward": {"options": {"halt": "kl"}}}}, None, "no option 'halt'"),
        ({"temperature": 9.0}, "temperature", "less than or equal to 2"),
        ({"max_tokens": 1_000_000}, "max_tokens", "at most 4096"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens", "old name"),
        ({"logprobs": True, "stream": True}, "logprobs", "whole answers"),
        ({"messages": [*ONCE, {"role": "tool", "content": "x"}]}, "messages", "messages"),
        ({"messages": [*ONCE, *ONCE]}, "messages", "one message"),
        ({"model": "gpt"}, "model", "there is no model 'gpt'"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(client, more, param, told):
    asked = {"model": "stories-draft", "messages": ONCE} | more
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=told) as caught:
        client.chat.completions.create(**asked)
    body: Any = caught.value.body
    assert set(body) == {"message", "type", "param", "code"}
    if param is not None:
        assert body["param"] == param


def test_errors_are_json_in_one_form(server):
    import httpx2 as httpx

    headers = {"Content-Type": "application/json"}
    for path, content, status in (
        ("/v1/chat/completions", b"{", 400),
        ("/v1/chat/completions", b"[" * 100_000, 400),
        ("/v1/chat/completions", b'{"model": "chatty", "temperature": NaN}', 400),
        ("/v1/nothing", b"{}", 404),
        ("/health", b"{}", 405),
    ):
        found = httpx.post(server.url + path, content=content, headers=headers)
        assert found.status_code == status, (path, content[:9], found.text)
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}


def test_what_is_wrong_with_a_puzzle_itself_is_told(server):
    wrong = {
        "12345." + "." * 11 + "6" + "." * 18: "no solution",
        "." * 36: "several solutions",
        PUZZLE: None,
    }
    for puzzle, fault in wrong.items():
        body = {"model": "sudoku6", "puzzle": puzzle}
        assert server.post("/v1/solve", body).json().get("fault") == fault
        told = data_of(server.post("/v1/solve", body | {"stream": True}).text)
        assert json.loads(told[-2]).get("fault") == fault


def test_a_puzzle_is_solved(server, thinkers):
    alone = thinkers["sudoku6"].ask(PUZZLE)
    told = server.post("/v1/solve", {"model": "sudoku6", "puzzle": PUZZLE}).json()
    assert told["answer"] == alone.text and told["cells"] == list(alone.tokens)
    assert told["obeys_rules"] is True and told["believed"] == pytest.approx(alone.believed)
    digits = [[0 if c == "." else int(c) for c in PUZZLE[i : i + 6]] for i in range(0, 36, 6)]
    rows = server.post("/v1/solve", {"model": "sudoku6", "puzzle": digits}).json()
    assert rows["answer"].replace("\n", "") == alone.text and rows["answer"].count("\n") == 5
    lines = data_of(
        server.post("/v1/solve", {"model": "sudoku6", "puzzle": PUZZLE, "stream": True}).text
    )
    assert lines[-1] == "[DONE]" and json.loads(lines[-2])["answer"] == alone.text
    assert sum("reasoning_content" in line for line in lines) == alone.steps
    for puzzle, told in (("5", "36"), ([[1, 2], [3]], "differ in length"), ("", "empty")):
        bad = server.post("/v1/solve", {"model": "sudoku6", "puzzle": puzzle})
        assert bad.status_code == 400 and told in bad.json()["error"]["message"]
    assert server.post("/v1/solve", {"model": "chatty", "puzzle": "1"}).status_code == 400


def test_our_own_events_are_those_of_a_stream(server, thinkers):
    body = {"model": "sudoku6", "question": PUZZLE, "trace": True}
    lines = [json.loads(line) for line in data_of(server.post("/v1/inward/events", body).text)]
    *events, end = thinkers["sudoku6"].stream(PUZZLE, trace=True)
    begin, *told, last = lines
    assert begin["kind"] == "begin" and len(begin["question"]["pieces"]) == 36
    assert [(e["kind"], e["step"], e["text"]) for e in told] == [
        (e.kind, e.step, e.text) for e in events
    ]
    assert last["kind"] == "end" and last["answer"]["text"] == end.answer.text
    assert len(last["trace"]["steps"]) == end.answer.steps
    assert last["usage"]["inward"]["recurrences"] == end.answer.cost.evaluations
    bad = server.post("/v1/inward/events", body | {"trace": ["nonsense"]})
    assert bad.status_code == 400 and "traces have no nonsense" in bad.json()["error"]["message"]
