"""Our own events as server-sent events, for those who draw thinking: the playground, and you.

    begin     {id, model, method, question: {tokens, pieces, roles}, effort}
    word      {step, tokens, pieces, text, scores}      stands; all texts joined are the answer
    thought   the same; tokens: what its lens reads, the likeliest first
    draft     the same; guesses, of which nothing stands
    rewrite   the same; the whole answer as it is now
    end       {step, answer: {text, tokens, steps, stopped, cost, ...}, usage, trace}
    error     {error: {message, type, param, code}}

The name is also the object's "kind". A trace comes if it was asked for, as `Trace.to_dict`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from inward.common.thinking import Answer, Event
from inward.serve.errors import ApiError
from inward.serve.replies import about, check, sse, usage
from inward.serve.runs import OpenRun
from inward.serve.scheduler import WorkFailed

REPLY = {
    "description": "server-sent events",
    "content": {"text/event-stream": {}},
}
"""In the schema of the routes."""


async def streamed(run: OpenRun) -> AsyncIterator[bytes]:
    """All events of a run with one choice."""
    yield _sse("begin", _begin(run))
    try:
        async for _, events in run.events():
            if events[-1].kind == "end":
                await run.settle()
            for event in events:
                yield _sse(event.kind, _told(run, event))
    except (ApiError, WorkFailed) as error:
        told = error if isinstance(error, ApiError) else ApiError(500, str(error))
        yield _sse("error", told.body())


def _sse(kind: str, data: dict[str, Any]) -> bytes:
    return sse({"kind": kind} | data, kind)


def _begin(run: OpenRun) -> dict[str, Any]:
    thinker, prompt = run.served.thinker, run.tickets[0].asked.prompt
    tokens = [int(token) for token in prompt.tokens]
    question = {
        "tokens": tokens,
        "pieces": [thinker.processor.piece(token) for token in tokens],
        "roles": [list(role) for role in prompt.roles],
    }
    told = {"id": run.id, "model": run.served.name, "method": thinker.method.name}
    return told | {"question": question, "effort": run.choice.effort}


def _told(run: OpenRun, event: Event) -> dict[str, Any]:
    if event.answer is not None:
        return _end(run, event, check(event.answer))
    piece = run.served.thinker.processor.piece
    return {
        "step": event.step,
        "tokens": [int(token) for token in event.tokens],
        "pieces": [piece(int(token)) for token in event.tokens],
        "text": event.text,
        "scores": {name: float(value) for name, value in event.scores.items()},
    }


def _end(run: OpenRun, event: Event, answer: Answer) -> dict[str, Any]:
    told = {"text": answer.text, "tokens": [int(token) for token in answer.tokens]}
    told |= about(run, 0, answer) | {"cost": answer.cost.to_dict()}
    if answer.logprobs is not None:
        told["logprobs"] = list(answer.logprobs)
    trace = {} if answer.trace is None else {"trace": answer.trace.to_dict()}
    return {"step": event.step, "answer": told, "usage": usage(run, [answer])} | trace
