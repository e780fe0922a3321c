"""The newer form of a chat: a response is a list of items, one of thoughts and one of text.

Both are open at the same time where a model thinks between words: their pieces are told apart by
`item_id` and `output_index`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from inward.common.thinking import Answer
from inward.serve.errors import ApiError
from inward.serve.replies import about, check, finish_reason, sse, usage
from inward.serve.runs import OpenRun
from inward.serve.scheduler import WorkFailed
from inward.serve.schemas import Drawing, ResponseBody, ResponseMessage

_DELTA = {"reasoning": "response.reasoning_text", "content": "response.output_text"}


def as_drawing(body: ResponseBody) -> Drawing:
    """What it has in common with the other routes, under their names."""
    wish = body.reasoning
    return Drawing(
        model=body.model,
        stream=body.stream,
        seed=body.seed,
        temperature=body.temperature,
        top_p=body.top_p,
        reasoning_effort=None if wish is None else wish.effort,
        thinking_token_budget=body.thinking_token_budget,
        include_reasoning=body.include_reasoning,
        inward=body.inward,
    )


def messages(body: ResponseBody) -> list[ResponseMessage]:
    """Instructions and input as messages; thoughts of earlier responses are left out."""
    found = []
    if body.instructions is not None:
        found.append(ResponseMessage(role="system", content=body.instructions))
    if isinstance(body.input, str):
        return [*found, ResponseMessage(role="user", content=body.input)]
    return [*found, *(item for item in body.input if isinstance(item, ResponseMessage))]


async def whole(run: OpenRun, body: ResponseBody) -> dict[str, Any]:
    """A response when all is there."""
    answers, thoughts = await run.answers()
    answer = check(answers[0])
    items = []
    if thoughts[0]:
        items.append(_Item("reasoning", thoughts[0]).told("completed"))
    items.append(_Item("content", answer.text).told(_status(answer)))
    return _response(run, body, items, answer)


def _status(answer: Answer) -> str:
    return "incomplete" if finish_reason(answer) == "length" else "completed"


@dataclass
class _Item:
    """An item of the output, as far as it has come."""

    kind: str
    text: str = ""
    index: int = 0
    id: str = field(default="")

    def __post_init__(self) -> None:
        self.id = self.id or ("rs_" if self.kind == "reasoning" else "msg_") + secrets.token_hex(12)

    def part(self, text: str) -> dict[str, Any]:
        """Its one part with this text."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def told(self, status: str) -> dict[str, Any]:
        """The item."""
        content = [self.part(self.text)] if self.text or status != "in_progress" else []
        if self.kind == "reasoning":
            own: dict[str, Any] = {"type": "reasoning", "summary": []}
        else:
            own = {"type": "message", "role": "assistant"}
        return own | {"id": self.id, "status": status, "content": content}

    @property
    def place(self) -> dict[str, Any]:
        """Where its pieces belong."""
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}


def _response(
    run: OpenRun, body: ResponseBody, items: Sequence[dict[str, Any]], answer: Answer | None
) -> dict[str, Any]:
    status = "in_progress" if answer is None else _status(answer)
    effort = None if body.reasoning is None else body.reasoning.effort
    return {
        "id": run.id,
        "object": "response",
        "created_at": run.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": run.served.name,
        "output": list(items),
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "reasoning": {"effort": effort, "summary": None},
        "store": False,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [],
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None if answer is None else _usage(run, answer),
        "user": body.user,
        "metadata": body.metadata or {},
        "inward": None if answer is None else about(run, 0, answer),
    }


def _usage(run: OpenRun, answer: Answer) -> dict[str, Any]:
    told = usage(run, [answer])
    return {
        "input_tokens": told["prompt_tokens"],
        "input_tokens_details": told["prompt_tokens_details"],
        "output_tokens": told["completion_tokens"],
        "output_tokens_details": told["completion_tokens_details"],
        "total_tokens": told["total_tokens"],
        "inward": told["inward"],
    }


class _Stream:
    """The events of a response, numbered."""

    def __init__(self, run: OpenRun, body: ResponseBody):
        self.run, self.body = run, body
        self.items: list[_Item] = []
        self.number = 0

    def event(self, kind: str, **data: Any) -> bytes:
        """One of them."""
        told = {"type": kind, "sequence_number": self.number} | data
        self.number += 1
        return sse(told, kind)

    def piece(self, kind: str, text: str) -> Iterator[bytes]:
        """More text of one kind; its item is opened if it is the first."""
        item = next((item for item in self.items if item.kind == kind), None)
        if item is None:
            item = _Item(kind, index=len(self.items))
            self.items.append(item)
            added = {"output_index": item.index, "item": item.told("in_progress")}
            yield self.event("response.output_item.added", **added)
            yield self.event("response.content_part.added", **item.place, part=item.part(""))
        if text:
            item.text += text
            more: dict[str, Any] = {"logprobs": []} if kind == "content" else {}
            yield self.event(f"{_DELTA[kind]}.delta", **item.place, delta=text, **more)

    def end(self, answer: Answer) -> Iterator[bytes]:
        """Close all items, then the response."""
        if not any(item.kind == "content" for item in self.items):
            yield from self.piece("content", "")
        told = []
        for item in self.items:
            status = "completed" if item.kind == "reasoning" else _status(answer)
            more: dict[str, Any] = {"logprobs": []} if item.kind == "content" else {}
            yield self.event(f"{_DELTA[item.kind]}.done", **item.place, text=item.text, **more)
            yield self.event("response.content_part.done", **item.place, part=item.part(item.text))
            told.append(item.told(status))
            yield self.event("response.output_item.done", output_index=item.index, item=told[-1])
        response = _response(self.run, self.body, told, answer)
        yield self.event(f"response.{_status(answer)}", response=response)


async def streamed(run: OpenRun, body: ResponseBody) -> AsyncIterator[bytes]:
    """A response piece by piece."""
    stream = _Stream(run, body)
    begun = _response(run, body, [], None)
    yield stream.event("response.created", response=begun)
    yield stream.event("response.in_progress", response=begun)
    try:
        async for _, events in run.events():
            for kind, text in run.parts(events):
                for data in stream.piece(kind, text):
                    yield data
            answer = events[-1].answer
            if answer is not None:
                for data in stream.end(check(answer)):
                    yield data
    except (ApiError, WorkFailed) as error:
        told = {"code": "server_error", "message": str(error)}
        failed = begun | {"status": "failed", "error": told}
        yield stream.event("response.failed", response=failed)
