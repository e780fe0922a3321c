"""POST /v1/systemone: typed decisions with probabilities, see `decisions`.

This route alone speaks its own form of errors: {"detail": "..."}, and 422 with a list of what is
wrong where a body is not as it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from inward.serve.choices import Choice, Wanted
from inward.serve.decisions import (
    Decision,
    DecisionBody,
    LabelReader,
    PuzzleDecisions,
    decisions_of,
    label_tokens,
    trained_form,
)
from inward.serve.errors import ApiError
from inward.serve.questions import chats, of_puzzle
from inward.serve.replies import check, usage
from inward.serve.runs import OpenRun, Served
from inward.serve.scheduler import WorkFailed

if TYPE_CHECKING:
    from inward.serve.app import Server

PATH = "/v1/systemone"


class Told(BaseModel):
    """What went wrong, on this route."""

    detail: str


class DecisionRoute(APIRoute):
    """Errors in this route's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The usual one, with its errors told otherwise."""
        handler = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                told = [
                    {"loc": list(row["loc"]), "msg": row["msg"], "type": row["type"]}
                    for row in error.errors()
                ]
                return JSONResponse({"detail": told}, 422)
            except ApiError as error:
                return JSONResponse({"detail": error.message}, error.status, error.headers)
            except HTTPException as error:  # bytes that are no text
                return JSONResponse({"detail": str(error.detail)}, error.status_code)
            except WorkFailed as error:
                return JSONResponse({"detail": str(error)}, 500)

        return handled


router = APIRouter(route_class=DecisionRoute)


@router.post(
    PATH,
    responses={
        400: {"model": Told, "description": "something cannot be kept"},
        404: {"model": Told, "description": "no such model"},
        429: {"model": Told, "description": "the queue is full; see Retry-After"},
        500: {"model": Told, "description": "the model failed"},
        503: {"model": Told, "description": "the server is stopping"},
    },
)
async def systemone(request: Request, body: DecisionBody) -> Response:
    """Typed decisions about a state, with a probability for every answer."""
    server: Server = request.app.state.server
    served = server.model(body.model)
    if served.thinker.method.reads == "puzzle":
        return await _of_puzzle(request, server, served, body)
    return await _of_text(request, server, served, body)


def _wanted(body: DecisionBody, **more: Any) -> Wanted:
    own = body.inward
    return Wanted(
        effort=body.reasoning_effort,
        budget=body.thinking_token_budget,
        own_effort=None if own is None else own.effort,
        own={} if own is None else dict(own.options),
        reasoning=False,
        **more,
    )


async def _of_puzzle(
    request: Request, server: Server, served: Served, body: DecisionBody
) -> Response:
    if isinstance(body.state, dict):
        raise ApiError(400, "the state is a puzzle: a text, or its cells as numbers")
    puzzle = of_puzzle(served.thinker, _cells(body.state))
    choice = server.choose(served, _wanted(body, trace=("shares",)))
    asked = (await server.read(served, [(puzzle, None)], choice.options))[0]
    wanted = PuzzleDecisions.of(served.thinker, asked.prompt.tokens, body)
    run = await server.runs.begin(server.runs.new_id("decide"), served, choice, [asked])

    async def reply() -> dict[str, Any]:
        answers, _ = await run.answers()
        told = wanted.answers(check(answers[0]))
        return _reply(run, told, usage(run, answers), 0)

    return await server.whole(request, run, reply())


def _cells(state: Any) -> Any:
    """A text, or numbers, checked as /v1/solve does by its schema."""
    if isinstance(state, str):
        return state
    rows = state if all(isinstance(row, list) for row in state) else [state]
    cells = [cell for row in rows for cell in row]
    whole = all(isinstance(c, int) and not isinstance(c, bool) and 0 <= c <= 1 << 16 for c in cells)
    if not cells or not whole or len(cells) > 4096:
        raise ApiError(400, "the state is a puzzle: a text, or its cells as numbers")
    return state


async def _of_text(
    request: Request, server: Server, served: Served, body: DecisionBody
) -> Response:
    thinker, talks = served.thinker, chats(served.thinker)
    wanted = decisions_of(thinker, body, chats=talks)
    if len(wanted) > server.limits.max_rows:
        raise ApiError(400, f"{len(wanted)} questions; at most {server.limits.max_rows} here")
    served.scheduler.check_room(len(wanted))
    num = None if trained_form(thinker) else 1
    choice = server.choose(served, _wanted(body, max_tokens=num))
    if choice.options.get("votes", 1) != 1:
        raise ApiError(400, "votes count whole answers; a decision is read of one try")
    readers, asked = [], []
    for decision in wanted:
        question: Any = body.state
        if talks:
            question = [{"role": "user", "content": decision.message(body.state)}]
        reader = _reader(served, choice, question, decision)
        readers.append(reader)
        options = choice.options | {"sampling": reader.sampling()}
        asked += await server.read(served, [(question, None)], options)
    run = await server.runs.begin(server.runs.new_id("decide"), served, choice, asked)

    async def reply() -> dict[str, Any]:
        answers, _ = await run.answers()
        told, said = {}, 0
        for decision, reader, answer in zip(wanted, readers, answers, strict=True):
            shares, before = reader.shares(check(answer))
            told[decision.name], said = decision.answer(shares), said + before
        return _reply(run, told, usage(run, answers), said)

    return await server.whole(request, run, reply())


def _reader(served: Served, choice: Choice, question: Any, decision: Decision) -> LabelReader:
    """Reads the labels of a question behind its prompt."""
    try:
        prompt = served.thinker.processor.read(question)
    except ValueError as error:
        raise ApiError(400, str(error)) from error
    return LabelReader(label_tokens(served.thinker, prompt.tokens, decision))


def _reply(
    run: OpenRun, answers: dict[str, Any], took: dict[str, Any], said: int
) -> dict[str, Any]:
    """said: tokens before the answers."""
    details = took["completion_tokens_details"]
    return {
        "model": run.served.name,
        "answers": answers,
        "usage": {
            "input_tokens": sum(len(ticket.asked.prompt.tokens) for ticket in run.tickets),
            "output_tokens": said,
            "output_tokens_details": {"reasoning_tokens": details["reasoning_tokens"]},
            "inward": took["inward"],
        },
    }
