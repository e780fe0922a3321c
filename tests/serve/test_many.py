"""Many at once: rows do not mix, readers do not wait for each other, and what ends makes room."""

import asyncio
import json
import socket
import threading
import time

import httpx2 as httpx
import pytest

from inward.serve.limits import Limits
from tests.serve.conftest import GRAPH, HOPS, PUZZLE
from tests.serve.live import data_of, live

LONG = {"model": "sudoku6", "puzzle": PUZZLE, "inward": {"options": {"halt": "never"}}}


def long(steps, **more):
    return LONG | {"inward": {"options": {"halt": "never", "max_steps": steps}}} | more


def questions(num):
    """Of all models in turn, each a little different."""
    found = []
    for i in range(num):
        length = 5 + i % 7
        name, text, more = [
            ("stories-draft", f"Once upon a time {i}", {"max_tokens": length}),
            ("chatty", f"number {i}", {"max_tokens": length}),
            ("prosqa", GRAPH, {"max_tokens": length}),
            ("huginn-hops", HOPS, {"reasoning_effort": ["low", "medium", "high"][i // 5 % 3]}),
            ("sudoku6", PUZZLE, {"thinking_token_budget": 1 + i % 4}),
        ][i % 5]
        message = [{"role": "user", "content": text}]
        found.append({"model": name, "messages": message, "extra_body": more})
    return found


async def streamed(client, asked):
    text = ""
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    return text


def together(server, asked):
    async def all_of_them():
        async with server.async_client() as client:
            return await asyncio.gather(*(streamed(client, each) for each in asked))

    return asyncio.run(all_of_them())


def test_streams_side_by_side_say_what_each_says_alone(server, client):
    asked = questions(20)
    alone = [client.chat.completions.create(**each).choices[0].message.content for each in asked]
    assert len(set(alone)) > 8
    assert together(server, asked) == alone
    server.wait_until_idle()


@pytest.mark.slow
def test_sixty_four_streams_say_what_each_says_alone(server, client):
    asked = questions(64)
    alone = [client.chat.completions.create(**each).choices[0].message.content for each in asked]
    for _ in range(3):
        assert together(server, asked) == alone
    server.wait_until_idle()


@pytest.fixture(scope="module")
def narrow(thinkers):
    """One row, and one that waits."""
    limits = Limits(max_waiting=1, max_steps=1 << 20, stall_seconds=1.0)
    with live(
        {name: thinkers[name] for name in ("sudoku6", "stories-draft")}, limits=limits, batch_size=1
    ) as running:
        yield running


def test_who_leaves_makes_room(narrow):
    steps = 1 << 20  # hours
    with httpx.stream("POST", f"{narrow.url}/v1/solve", json=long(steps, stream=True)) as reader:
        lines = reader.iter_lines()
        next(lines)
        assert narrow.open_requests() == 1
    narrow.wait_until_idle()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{narrow.url}/v1/solve", json=long(steps), timeout=0.5)
    narrow.wait_until_idle()
    assert narrow.post("/v1/solve", long(2)).status_code == 200


def test_a_full_queue_says_when_to_come_back(narrow):
    url = f"{narrow.url}/v1/solve"
    with (
        httpx.stream("POST", url, json=long(1 << 20, stream=True)) as first,
        httpx.stream("POST", url, json=long(1 << 20, stream=True)) as second,
    ):
        readers = first.iter_lines(), second.iter_lines()  # kept, or they would be closed
        for lines in readers:
            next(lines)
        third = narrow.post("/v1/solve", long(2))
        assert third.status_code == 429 and int(third.headers["retry-after"]) >= 1
        assert third.json()["error"]["code"] == "queue_full"
        # another model has room
        other = {"model": "stories-draft", "prompt": "The cat", "max_tokens": 3}
        assert narrow.post("/v1/completions", other).status_code == 200
    narrow.wait_until_idle()


def test_thinking_ends_when_a_client_says_so(narrow):
    with httpx.stream(
        "POST", f"{narrow.url}/v1/solve", json=long(1 << 20, stream=True), timeout=30
    ) as reader:
        lines = reader.iter_lines()
        id = json.loads(next(lines).removeprefix("data: "))["id"]
        for _ in range(6):
            next(lines)
        told = narrow.post("/v1/chat/completions/control", {"id": id, "action": "reasoning_end"})
        assert told.json() == {"id": id, "action": "reasoning_end", "success": True}
        rest = [line.removeprefix("data: ") for line in lines if line]
    end = json.loads(rest[-2])
    assert rest[-1] == "[DONE]" and end["stopped"] == "budget" and len(end["answer"]) == 36
    assert 3 <= end["steps"] < 1 << 20
    for asked, status in (
        ({"id": id, "action": "reasoning_end"}, 404),
        ({"id": id, "action": "sing"}, 400),
    ):
        assert narrow.post("/v1/chat/completions/control", asked).status_code == status
    narrow.wait_until_idle()


def test_words_without_thinking_have_none_to_end(narrow):
    body = {
        "model": "stories-draft", "stream": True, "max_tokens": 200,
        "messages": [{"role": "user", "content": "Once"}],
    }  # fmt: skip
    with httpx.stream("POST", f"{narrow.url}/v1/chat/completions", json=body, timeout=30) as reader:
        lines = reader.iter_lines()
        id = json.loads(next(lines).removeprefix("data: "))["id"]
        told = narrow.post("/v1/chat/completions/control", {"id": id, "action": "reasoning_end"})
        assert told.status_code == 400 and "no thinking to end" in told.text
        told = narrow.post("/v1/chat/completions/control", {"id": id, "action": "cancel"})
        assert told.json()["success"]
        rest = [line for line in lines if line.startswith("data: {")]
    assert json.loads(rest[-1][6:])["choices"][0]["inward"]["ended_by"] == "control"
    narrow.wait_until_idle()


def test_time_ends_an_answer_with_what_it_is(thinkers):
    names = ("sudoku6", "stories-draft")
    limits = Limits(max_seconds=1.0, max_steps=1 << 20, max_tokens=1 << 20)
    with live({name: thinkers[name] for name in names}, limits=limits) as server:
        told = server.post("/v1/solve", long(1 << 20)).json()
        assert told["ended_by"] == "time" and len(told["answer"]) == 36
        assert told["stopped"] == "budget"


def test_a_slow_reader_stalls_nobody(narrow):
    """It leaves its answer unread until all buffers are full; others are served, and it is let
    go."""
    options = {"halt": "never", "max_steps": 1 << 20}
    asked = {"model": "sudoku6", "question": PUZZLE, "inward": {"options": options}}
    body = json.dumps(asked).encode()
    host, port = narrow.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = (
            f"POST /v1/inward/events HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        )
        reader.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        other = {"model": "stories-draft", "prompt": "The cat", "max_tokens": 3}
        end = time.monotonic() + 60
        while narrow.open_requests() or time.monotonic() < end - 59:
            assert narrow.post("/v1/completions", other).status_code == 200
            assert time.monotonic() < end
            time.sleep(0.05)
    assert narrow.post("/v1/solve", long(2)).status_code == 200


def test_a_model_that_fails_loses_what_is_in_work_and_goes_on(thinkers):
    names = ("stories-draft", "chatty")
    with live({name: thinkers[name] for name in names}) as server:
        work = server.state.models["chatty"].scheduler.work
        step, calls = work.step, []

        def broken():
            calls.append(1)
            if len(calls) > 2:
                raise RuntimeError("no memory")
            return step()

        work.step = broken
        ask = {"model": "chatty", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
        told = server.post("/v1/chat/completions", ask)
        assert told.status_code == 500 and "no memory" in told.json()["error"]["message"]
        again = server.post("/v1/chat/completions", ask | {"stream": True})
        assert data_of(again.text)[-1] == "[DONE]"
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'inward_failures_total{model="chatty"} 1.0' in metrics
        assert 'inward_answers_total{model="chatty",stopped="error"} 1.0' in metrics


def test_stopping_lets_answers_end(thinkers):
    """What runs goes on for the grace, is ended then, and its reader gets the last line."""
    found = {}
    limits = Limits(max_steps=1 << 20)
    with live({"sudoku6": thinkers["sudoku6"]}, limits=limits, grace=0.3) as server:

        def read():
            answer = httpx.post(
                f"{server.url}/v1/solve", json=long(1 << 20, stream=True), timeout=60
            )
            found["lines"] = data_of(answer.text)

        thread = threading.Thread(target=read)
        thread.start()
        while not server.open_requests():
            time.sleep(0.01)
    thread.join(timeout=30)
    assert found["lines"][-1] == "[DONE]"
    assert json.loads(found["lines"][-2])["ended_by"] == "stop"
