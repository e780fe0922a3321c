"""The routes.

    POST /v1/chat/completions            a chat, or a puzzle as its one message
    POST /v1/chat/completions/control    end the thinking of an answer under way, or the answer
    POST /v1/completions                 a text goes on
    POST /v1/responses                   the newer form of a chat
    POST /v1/solve                       a puzzle
    POST /v1/systemone                   typed decisions with probabilities, see `systemone`
    POST /v1/inward/events               our own events as they happen
    GET  /                               the playground, where one was handed in
    GET  /v1/models, /v1/models/{id}, /health, /metrics, /openapi.json

All of them stand behind `shield`. What a client did wrong is told in OpenAI's form of errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from inward import __version__
from inward.serve import events as own_events
from inward.serve import replies, responses, systemone
from inward.serve.choices import Choice, Wanted, choose, draw, settable
from inward.serve.errors import ApiError, of_validation, refused
from inward.serve.limits import Limits
from inward.serve.metrics import Meter
from inward.serve.prediction import Predicted
from inward.serve.questions import chats, of_messages, of_puzzle
from inward.serve.runs import OpenRun, Runs, Served
from inward.serve.scheduler import Scheduler, WorkFailed
from inward.serve.schemas import (
    AskingBody,
    ChatBody,
    CompletionBody,
    ControlBody,
    ErrorReply,
    EventsBody,
    ResponseBody,
    SolveBody,
)
from inward.serve.streams import EventStream, unless_gone
from inward.serve.workers import Office, worker_of
from inward.tasks.asked import AskedQuestion
from inward.thinker import Thinker

Field = Literal["reasoning_content", "reasoning"]


@dataclass(eq=False)
class Server:
    """What the routes share.

    thoughts_as: the field of thoughts. reasoning: whether they are where a request does not say.
    draining: nothing new is taken. office: of one of several workers.
    """

    models: Mapping[str, Served]
    limits: Limits
    runs: Runs
    meter: Meter
    thoughts_as: Field = "reasoning_content"
    reasoning: bool = True
    draining: bool = False
    readers: dict[str, ThreadPoolExecutor] = field(default_factory=dict)
    office: Office | None = None

    def model(self, name: str) -> Served:
        """The model of that name. ApiError 404: there is none; 503: the server is stopping."""
        if self.draining:
            raise ApiError(503, "the server is stopping", code="stopping", headers=_SOON)
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(
                404, f"there is no model {name!r}; there is {known}", param="model",
                code="model_not_found",
            )  # fmt: skip
        return self.models[name]

    def choose(self, served: Served, wishes: Wanted) -> Choice:
        """See `choices.choose`."""
        return choose(served.thinker, self.limits, wishes, reasoning=self.reasoning)

    async def read(
        self, served: Served, questions: Sequence[tuple[Any, int | None]], options: dict[str, Any]
    ) -> list[AskedQuestion]:
        """Questions with their seeds, read and checked beside the loop, one model's one by one: a
        tokenizer is no place for two at a time."""
        reader = self.readers.setdefault(served.name, ThreadPoolExecutor(1))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            reader, partial(_read, served.thinker, self.limits, questions, options)
        )

    async def begin(
        self,
        kind: str,
        served: Served,
        choice: Choice,
        questions: Sequence[tuple[Any, int | None]],
        drawn: dict[str, Any] | None = None,
        **more: Any,
    ) -> OpenRun:
        """Read questions and take them in."""
        if len(questions) > self.limits.max_rows:
            raise refused(f"{len(questions)} choices; at most {self.limits.max_rows} here", "n")
        served.scheduler.check_room(len(questions))
        asked = await self.read(served, questions, choice.options | (drawn or {}))
        return await self.runs.begin(self.runs.new_id(kind), served, choice, asked, **more)

    async def control(self, id: str, action: str) -> bool:
        """See `Runs.control`; of a request of another worker that one is told."""
        number = worker_of(id)
        if self.office is None or number is None or number == self.office.number:
            return self.runs.control(id, action)
        return await self.office.tell(number, id, action)

    async def whole(
        self, request: Request, run: OpenRun, work: Coroutine[Any, Any, dict[str, Any]]
    ) -> Response:
        """A reply when all is there."""
        try:
            told = await unless_gone(request, work)
        finally:
            self.runs.end(run)
        return Response(status_code=499) if told is None else JSONResponse(told)

    def stream(self, run: OpenRun, chunks: AsyncIterator[bytes]) -> EventStream:
        """A reply piece by piece."""
        close: Callable[[], None] = partial(self.runs.end, run)
        return EventStream(chunks, close, stall_seconds=self.limits.stall_seconds)


_SOON = {"Retry-After": "5"}


def _read(
    thinker: Thinker,
    limits: Limits,
    questions: Sequence[tuple[Any, int | None]],
    options: dict[str, Any],
) -> list[AskedQuestion]:
    found = []
    for question, seed in questions:
        own = dict(options)
        if isinstance(own.get("drafter"), Predicted):
            own["drafter"] = copy(own["drafter"])  # it follows one answer
        try:
            asked = thinker.asked(question, seed=seed, **own)
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_value") from error
        if (num := len(asked.prompt.tokens)) > limits.max_prompt_tokens:
            raise ApiError(
                400, f"the question has {num} tokens; at most {limits.max_prompt_tokens} here",
                code="context_length_exceeded",
            )  # fmt: skip
        if isinstance(drafter := own.get("drafter"), Predicted):
            drafter.place_behind(thinker.processor.tokenizer, asked.prompt.tokens)  # type: ignore[attr-defined]
        found.append(asked)
    return found


# --------------------------------------------------------------------------------------------------
# Routes

router = APIRouter()

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": about}
    for status, about in {
        400: "something cannot be kept, or is no valid value",
        401: "no key, or a wrong one",
        403: "another origin, or a name that the server does not have",
        404: "no such model, or no such answer under way",
        408: "the body did not come in time",
        413: "the body is too large",
        415: "the body is no application/json",
        429: "the queue is full; see Retry-After",
        500: "the model failed",
        503: "the server is stopping",
    }.items()
}
STREAMED: dict[int | str, dict[str, Any]] = ERRORS | {
    200: {
        "description": "the answer; with stream: true, server-sent events",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {},
        },
    }
}


def _server(request: Request) -> Server:
    return request.app.state.server


def _given_seed(body: AskingBody, seeds: Sequence[int | None]) -> int | None:
    """The seed that the server gave, if it did."""
    return seeds[0] if body.seed is None else None


@router.post("/v1/chat/completions", responses=STREAMED)
async def chat_completions(request: Request, body: ChatBody) -> Response:
    """A chat, or a puzzle as its one message."""
    server = _server(request)
    served = server.model(body.model)
    if body.stream and body.logprobs:
        raise refused("log-probabilities come with whole answers; leave stream out", "logprobs")
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options are for stream: true", "stream_options")
    if body.max_tokens and body.max_completion_tokens:
        raise refused("max_tokens is the old name of max_completion_tokens; give one", "max_tokens")
    wishes = Wanted.of(
        body,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=bool(body.logprobs),
        prediction=None if body.prediction is None else body.prediction.text,
    )
    choice = server.choose(served, wishes)
    drawn, seeds = draw(served.thinker, body)
    question = of_messages(served.thinker, body.messages)
    run = await server.begin(
        "chatcmpl", served, choice, [(question, seed) for seed in seeds], drawn,
        seed=_given_seed(body, seeds), controlled=body.reasoning_control is not False,
    )  # fmt: skip
    if not body.stream:
        return await server.whole(request, run, replies.chat(run, server.thoughts_as))
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    return server.stream(run, replies.chat_stream(run, server.thoughts_as, with_usage=with_usage))


@router.post("/v1/completions", responses=STREAMED)
async def completions(request: Request, body: CompletionBody) -> Response:
    """A text goes on."""
    server = _server(request)
    served = server.model(body.model)
    if body.stream and body.logprobs is not None:
        raise refused("log-probabilities come with whole answers; leave stream out", "logprobs")
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options are for stream: true", "stream_options")
    if body.include_reasoning:
        raise refused("completions have no place for thoughts; ask for a chat", "include_reasoning")
    wishes = Wanted.of(body, max_tokens=body.max_tokens, logprobs=body.logprobs is not None)
    choice = server.choose(served, replace(wishes, reasoning=False))
    drawn, seeds = draw(served.thinker, body)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    run = await server.begin(
        "cmpl", served, choice, [(p, seed) for p in prompts for seed in seeds], drawn,
        seed=_given_seed(body, seeds),
    )  # fmt: skip
    if not body.stream:
        return await server.whole(request, run, replies.completion(run, len(prompts)))
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    return server.stream(run, replies.completion_stream(run, with_usage=with_usage))


@router.post("/v1/responses", responses=STREAMED)
async def create_response(request: Request, body: ResponseBody) -> Response:
    """The newer form of a chat: text, and thoughts."""
    server = _server(request)
    served = server.model(body.model)
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options are for stream: true", "stream_options")
    plain = responses.as_drawing(body)
    choice = server.choose(served, Wanted.of(plain, max_tokens=body.max_output_tokens))
    drawn, seeds = draw(served.thinker, plain)
    question = of_messages(served.thinker, responses.messages(body))
    run = await server.begin(
        "resp", served, choice, [(question, seeds[0])], drawn, seed=_given_seed(plain, seeds)
    )
    if not body.stream:
        return await server.whole(request, run, responses.whole(run, body))
    return server.stream(run, responses.streamed(run, body))


@router.post("/v1/solve", responses=STREAMED)
async def solve(request: Request, body: SolveBody) -> Response:
    """A puzzle."""
    server = _server(request)
    served = server.model(body.model)
    puzzle = of_puzzle(served.thinker, body.puzzle)
    choice = server.choose(served, Wanted.of(body))
    run = await server.begin("solve", served, choice, [(puzzle, body.seed)])
    run.judge(puzzle)
    if not body.stream:
        return await server.whole(request, run, replies.solution(run, server.thoughts_as))
    return server.stream(run, replies.solution_stream(run, server.thoughts_as))


@router.post("/v1/inward/events", responses=ERRORS | {200: own_events.REPLY})
async def inward_events(request: Request, body: EventsBody) -> Response:
    """Our own events, one JSON object each, as they happen."""
    server = _server(request)
    served = server.model(body.model)
    if body.stream is False:
        raise refused("events come as a stream; leave stream out", "stream")
    trace = tuple(body.trace) if isinstance(body.trace, list) else bool(body.trace)
    choice = server.choose(served, Wanted.of(body, max_tokens=body.max_tokens, trace=trace))
    drawn, seeds = draw(served.thinker, body)
    question = body.question
    if isinstance(question, list):
        question = of_messages(served.thinker, question)
    run = await server.begin(
        "events", served, choice, [(question, seeds[0])], drawn, seed=_given_seed(body, seeds)
    )
    run.judge(question)
    return server.stream(run, own_events.streamed(run))


@router.post("/v1/chat/completions/control", responses=ERRORS)
async def control(request: Request, body: ControlBody) -> dict[str, Any]:
    """End the thinking of an answer under way (the answer so far comes), or the answer."""
    done = await _server(request).control(body.id, body.action)
    return {"id": body.id, "action": body.action, "success": done}


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """All models."""
    server = _server(request)
    return {"object": "list", "data": [described(served) for served in server.models.values()]}


@router.get("/v1/models/{model}", responses={404: ERRORS[404]})
async def model(request: Request, model: str) -> dict[str, Any]:
    """One model."""
    return described(_server(request).model(model))


@router.get("/health", responses={503: ERRORS[503]})
async def health(request: Request) -> dict[str, Any]:
    """Whether requests are taken; needs no key."""
    server = _server(request)
    dead = [name for name, served in server.models.items() if not served.scheduler.alive]
    if dead or server.draining:
        raise ApiError(503, "stopping" if server.draining else f"down: {', '.join(dead)}")
    return {"status": "ok"}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Numbers for prometheus."""
    return Response(_server(request).meter.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def described(served: Served) -> dict[str, Any]:
    """A model as `/v1/models` tells of it."""
    thinker = served.thinker
    method = thinker.method
    effort: dict[str, Any] = {"unit": None if method.unit is None else method.unit[1]}
    if thinker.effort.points:
        effort["points"] = dict(thinker.effort.points)
    else:
        effort["why_not"] = thinker.effort.why_not or method.why_no_effort or "not measured"
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "inward",
        "architecture": {
            "input_modalities": ["text"],
            "output_modalities": ["decisions"]
            if method.reads == "puzzle"
            else ["text", "decisions"],
        },
        "inward": {
            "method": method.name,
            "reads": method.reads,
            "chats": chats(thinker),
            "steps": method.steps,
            "effort": effort,
            "budget": None if method.budget is None else method.budget[1],
            "traces": list(method.traces),
            "options": {
                name: {"default": method.options[name].default, "about": method.options[name].about}
                for name in settable(thinker)
            },
        },
    }


# --------------------------------------------------------------------------------------------------
# The application


def create_app(
    thinkers: Mapping[str, Thinker],
    *,
    limits: Limits | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    thoughts_as: Field = "reasoning_content",
    reasoning: bool = True,
    worker: int | None = None,
    offices: Path | None = None,
    playground: tuple[str, str] | None = None,
) -> FastAPI:
    """The application, its models not yet at work: that begins and ends with its lifespan.

    Args:
        thinkers: by the names that requests call them.
        batch_size: rows of a forward; None: the method's own.
        threads: of torch for each model.
        thoughts_as, reasoning: see `Server`. worker: see `Runs`.
        offices: folder of the workers' offices (`workers.Office`); None: there is one process.
        playground: the page at / as HTML, and its content security policy; None: there is none.
    """
    if not thinkers:
        raise ValueError("there is no model to serve; name at least one")
    limits = limits or Limits()
    sizes = {} if batch_size is None else {"batch_size": batch_size}
    models = {
        name: Served(name, thinker, Scheduler(thinker, limits, sizes=sizes, threads=threads))
        for name, thinker in thinkers.items()
    }
    server = Server(models, limits, Runs(worker), Meter(models), thoughts_as, reasoning)
    if worker is not None and offices is not None:
        server.office = Office(offices, worker, server.runs.control)
    for name, served in models.items():
        served.scheduler.on_end = partial(server.meter.observe, name)
        served.scheduler.on_step = partial(server.meter.stepped, name)
        served.scheduler.on_crowd = partial(server.meter.crowd, name)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for served in models.values():
            served.scheduler.start()
        if server.office is not None:
            server.office.open()
        yield
        if server.office is not None:
            server.office.close()
        for served in models.values():
            await asyncio.to_thread(served.scheduler.close)
        for reader in server.readers.values():
            reader.shutdown(wait=False)

    app = FastAPI(
        title="inward", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.server = server
    app.include_router(router)
    app.include_router(systemone.router, responses=ERRORS)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(WorkFailed, _work_failed)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    if playground is not None:
        _add_playground(app, *playground)
    _name_models(app, list(models))
    return app


def _add_playground(app: FastAPI, page: str, policy: str) -> None:
    """The page at /, with a policy of its own instead of that of all other replies."""

    async def shown() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    app.add_api_route("/", shown, methods=["GET"], include_in_schema=False)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.reply()


async def _work_failed(request: Request, error: Exception) -> Response:
    return ApiError(500, str(error), code="model_failed").reply()


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return of_validation(error.errors()).reply()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = error.detail if error.status_code != 404 else f"there is nothing at {request.url.path}"
    return ApiError(error.status_code, told, headers=error.headers).reply()


def _name_models(app: FastAPI, names: list[str]) -> None:
    """The schema names the models that there are, and no 422, which only one route sends."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            for name, part in schema["components"]["schemas"].items():
                if name.endswith("Body") and "model" in part.get("properties", {}):
                    part["properties"]["model"] = {"type": "string", "enum": names}
            for path, operations in schema["paths"].items():
                for operation in operations.values() if path != systemone.PATH else ():
                    operation.get("responses", {}).pop("422", None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi
