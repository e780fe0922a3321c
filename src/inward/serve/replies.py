"""Answers and streams in OpenAI's form: chat, completions, and puzzles beside them."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from inward.common.thinking import Answer
from inward.common.trace import total
from inward.serve.errors import ApiError
from inward.serve.runs import OpenRun
from inward.serve.scheduler import WorkFailed

FINISHED = {"length": "length", "context": "length", "cancelled": "length"}
"""`Answer.stopped` -> finish_reason; all others are "stop"."""


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    name = "" if event is None else f"event: {event}\n"
    told = data if isinstance(data, str) else dumped(data)
    return f"{name}data: {told}\n\n".encode("utf-8", "replace")


def dumped(data: Any) -> str:
    """As JSON; numbers that are none become null."""
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(data), ensure_ascii=False)


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def finish_reason(answer: Answer) -> str:
    """In OpenAI's words."""
    return FINISHED.get(answer.stopped, "stop")


def check(answer: Answer) -> Answer:
    """The answer; an error that came of the question itself is a 400, another a 500."""
    if answer.error:
        ours = not isinstance(answer.details.get("exception"), ValueError)
        raise ApiError(500 if ours else 400, answer.error, code="model_failed" if ours else None)
    return answer


def usage(run: OpenRun, answers: Sequence[Answer]) -> dict[str, Any]:
    """What an answer took, all choices together.

    completion_tokens are those said, boundary tokens of thoughts left out; reasoning_tokens count
    steps of thinking in `inward.unit`. Guesses of `prediction` count as accepted and rejected
    prediction tokens; where there is none, the model's own drafts do.
    """
    method = run.served.thinker.method
    drafted = [sum(pair) for pair in zip(*map(drafts_of, answers), strict=True)]
    looked_up = [
        sum(p) for p in zip(*(a.details.get("looked_up", (0, 0)) for a in answers), strict=True)
    ]
    offered, accepted = looked_up if "drafter" in run.choice.options else drafted
    said = sum(map(said_in, answers))
    asked = len(run.tickets[0].asked.prompt.tokens)
    steps = sum(a.steps for a in answers)
    inward: dict[str, Any] = {
        "method": method.name,
        "steps": steps,
        "unit": method.steps,
        "forwards": sum(a.cost.forwards for a in answers),
        "recurrences": sum(a.cost.evaluations for a in answers),
        "flops": sum(a.cost.flops for a in answers),
        "bytes": sum(a.cost.bytes for a in answers),
        "seconds": round(max(a.cost.seconds for a in answers), 6),
        "parameters": max(a.cost.parameters for a in answers),
        "parts": {
            name: part.to_dict() for name, part in total(a.cost for a in answers).parts.items()
        },
    }
    if "drafted" in answers[0].details or drafted[0]:
        inward |= {"draft_tokens": drafted[0], "accepted_draft_tokens": drafted[1]}
    if run.choice.effort:
        inward["effort"] = run.choice.effort
    if run.seed is not None:
        inward["seed"] = run.seed
    return {
        "prompt_tokens": asked,
        "completion_tokens": said,
        "total_tokens": asked + said,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0 if method.silent == {} else steps,
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": offered - accepted,
        },
        "inward": inward,
    }


def said_in(answer: Answer) -> int:
    """Tokens of the answer, boundary tokens of thoughts left out."""
    return len(answer.tokens) - answer.details.get("marks", 0)


def drafts_of(answer: Answer) -> tuple[int, int]:
    """Guesses of the model's own that were judged, and those that stood."""
    facts = answer.details
    if "judged" in facts:
        return facts["judged"], facts["accepted"]
    return facts.get("drafted", (0, 0))


def about(run: OpenRun, number: int, answer: Answer) -> dict[str, Any]:
    """What our answers tell and OpenAI's have no place for."""
    told: dict[str, Any] = {"stopped": answer.stopped, "steps": answer.steps}
    if answer.believed is not None:
        told["believed"] = answer.believed
    for name in ("obeys_rules", "answered"):
        if answer.details.get(name) is not None:
            told[name] = bool(answer.details[name])
    if run.fault is not None:
        told["fault"] = run.fault
    if by := run.ended_by(number):
        told["ended_by"] = by
    return told


def _odds(run: OpenRun, answer: Answer) -> dict[str, Any] | None:
    """Chat's log-probabilities."""
    if answer.logprobs is None:
        return None
    piece = run.served.thinker.processor.piece
    rows = []
    for token, logprob in zip(answer.tokens, answer.logprobs, strict=True):
        text = piece(token)
        rows.append(
            {
                "token": text,
                "logprob": max(logprob, -9999.0),
                "bytes": list(text.encode("utf-8", "replace")),
                "top_logprobs": [],
            }
        )
    return {"content": rows, "refusal": None}


# --------------------------------------------------------------------------------------------------
# Whole


async def chat(run: OpenRun, field: str) -> dict[str, Any]:
    """A chat completion; thoughts under the name `field`."""
    answers, thoughts = await run.answers()
    choices = []
    for number, answer in enumerate(map(check, answers)):
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if thoughts[number]:
            message[field] = thoughts[number]
        choices.append(
            {
                "index": number,
                "message": message,
                "finish_reason": finish_reason(answer),
                "logprobs": _odds(run, answer),
                "inward": about(run, number, answer),
            }
        )
    return head(run, "chat.completion") | {"choices": choices, "usage": usage(run, answers)}


async def completion(run: OpenRun, prompts: int) -> dict[str, Any]:
    """A completion of one or more prompts, the choices of a prompt together."""
    answers, _ = await run.answers()
    choices = [
        {
            "index": number,
            "text": answer.text,
            "finish_reason": finish_reason(answer),
            "logprobs": _old_odds(run, answer),
            "inward": about(run, number, answer),
        }
        for number, answer in enumerate(map(check, answers))
    ]
    told = usage(run, answers)
    per_prompt = len(run.tickets) // prompts
    told["prompt_tokens"] = sum(len(t.asked.prompt.tokens) for t in run.tickets[::per_prompt])
    told["total_tokens"] = told["prompt_tokens"] + told["completion_tokens"]
    return head(run, "text_completion") | {"choices": choices, "usage": told}


def _old_odds(run: OpenRun, answer: Answer) -> dict[str, Any] | None:
    """Log-probabilities as completions tell them."""
    if answer.logprobs is None:
        return None
    pieces = [run.served.thinker.processor.piece(token) for token in answer.tokens]
    offsets = [0]
    for text in pieces:
        offsets.append(offsets[-1] + len(text))
    odds = [max(value, -9999.0) for value in answer.logprobs]
    return {
        "tokens": pieces,
        "token_logprobs": odds,
        "top_logprobs": None,
        "text_offset": offsets[:-1],
    }


async def solution(run: OpenRun, field: str) -> dict[str, Any]:
    """A puzzle's answer."""
    answers, thoughts = await run.answers()
    answer = check(answers[0])
    await run.settle()
    told = head(run, "solution") | {"answer": answer.text, "cells": list(answer.tokens)}
    told |= about(run, 0, answer) | {"usage": usage(run, answers)}
    return told | ({field: thoughts[0]} if thoughts[0] else {})


def head(run: OpenRun, kind: str) -> dict[str, Any]:
    """What all replies begin with."""
    return {"id": run.id, "object": kind, "created": run.created, "model": run.served.name}


# --------------------------------------------------------------------------------------------------
# Streamed


async def chat_stream(run: OpenRun, field: str, *, with_usage: bool) -> AsyncIterator[bytes]:
    """Chunks of a chat completion; the first comes before any thought and names the id."""
    start = head(run, "chat.completion.chunk")

    def chunk(number: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "finish_reason": None, "logprobs": None}
        return {"choices": [choice | more]}

    opening = [
        chunk(number, {"role": "assistant", "content": ""}) for number in range(len(run.tickets))
    ]
    keys = {"reasoning": field, "content": "content"}

    def part(number: int, kind: str, text: str) -> dict[str, Any]:
        return chunk(number, {keys[kind]: text})

    def end(number: int, answer: Answer) -> dict[str, Any]:
        told = {"finish_reason": finish_reason(answer), "inward": about(run, number, answer)}
        return chunk(number, {}, **told)

    async for data in _streamed(run, start, opening, part, end, with_usage=with_usage):
        yield data


async def completion_stream(run: OpenRun, *, with_usage: bool) -> AsyncIterator[bytes]:
    """Chunks of a completion."""

    def chunk(number: int, text: str, **more: Any) -> dict[str, Any]:
        choice = {"index": number, "text": text, "finish_reason": None, "logprobs": None}
        return {"choices": [choice | more]}

    def part(number: int, kind: str, text: str) -> dict[str, Any] | None:
        return chunk(number, text) if kind == "content" else None

    def end(number: int, answer: Answer) -> dict[str, Any]:
        told = {"finish_reason": finish_reason(answer), "inward": about(run, number, answer)}
        return chunk(number, "", **told)

    start = head(run, "text_completion")
    async for data in _streamed(run, start, [], part, end, with_usage=with_usage):
        yield data


async def solution_stream(run: OpenRun, field: str) -> AsyncIterator[bytes]:
    """Chunks of a solution: thoughts as they come, then the answer."""

    def part(number: int, kind: str, text: str) -> dict[str, Any] | None:
        return {field: text} if kind == "reasoning" else None

    def end(number: int, answer: Answer) -> dict[str, Any]:
        told = {"answer": answer.text, "cells": list(answer.tokens)}
        return told | about(run, number, answer) | {"usage": usage(run, [answer])}

    start = head(run, "solution.chunk")
    async for data in _streamed(run, start, [{}], part, end, with_usage=False):
        yield data


async def _streamed(
    run: OpenRun,
    start: dict[str, Any],
    opening: Sequence[dict[str, Any]],
    part: Callable[[int, str, str], dict[str, Any] | None],
    end: Callable[[int, Answer], dict[str, Any]],
    *,
    with_usage: bool,
) -> AsyncIterator[bytes]:
    """All chunks, the usage if it is wanted, and [DONE]. What goes wrong on the way is told in the
    stream, since its status has been sent."""
    more = {"usage": None} if with_usage else {}
    for first in opening:
        yield sse(start | first | more)
    answers: dict[int, Answer] = {}
    try:
        async for number, events in run.events():
            for kind, text in run.parts(events):
                told = part(number, kind, text)
                if told is not None:
                    yield sse(start | told | more)
            answer = events[-1].answer
            if answer is not None:
                answers[number] = check(answer)
                await run.settle()
                yield sse(start | end(number, answer) | more)
    except (ApiError, WorkFailed) as error:
        told = error if isinstance(error, ApiError) else ApiError(500, str(error))
        yield sse(told.body())
        return
    if with_usage:
        ordered = [answers[number] for number in sorted(answers)]
        yield sse(start | {"choices": [], "usage": usage(run, ordered)})
    yield sse("[DONE]")
