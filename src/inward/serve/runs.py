"""Requests under way by their ids, so that they can be told to think no more, and what clients read
of their events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from inward.common.thinking import Answer, Event
from inward.serve.choices import Choice
from inward.serve.errors import ApiError
from inward.serve.scheduler import Scheduler, Ticket
from inward.tasks.asked import AskedQuestion
from inward.thinker import Thinker


@dataclass(eq=False)
class Served:
    """A model under the name that requests call it by."""

    name: str
    thinker: Thinker
    scheduler: Scheduler
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(eq=False)
class OpenRun:
    """A request: a ticket for each of its choices.

    seed: that the server gave it, if it did. told: thoughts are told.
    fault: what is wrong with the puzzle itself, once `settle` has been waited for.
    """

    id: str
    served: Served
    choice: Choice
    tickets: list[Ticket]
    seed: int | None = None
    controlled: bool = True
    created: int = field(default_factory=lambda: int(time.time()))
    fault: str | None = None
    _judging: asyncio.Task[str | None] | None = None

    def judge(self, puzzle: Any) -> None:
        """Begin to look for a fault of the puzzle, by its rules and beside the model."""
        fault = getattr(self.served.thinker.processor, "fault", None)
        if fault is not None:
            self._judging = asyncio.create_task(asyncio.to_thread(fault, puzzle))

    async def settle(self) -> None:
        """Wait until it is known."""
        if self._judging is not None:
            self.fault = await self._judging

    async def events(self) -> AsyncIterator[tuple[int, list[Event]]]:
        """(choice, its next events) of all choices as they come, until all have ended."""
        if len(self.tickets) == 1:
            async for events in _batches(self.tickets[0]):
                yield 0, events
            return
        waits = {asyncio.ensure_future(t.next()): i for i, t in enumerate(self.tickets)}
        try:
            while waits:
                done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: waits[task]):
                    number = waits.pop(task)
                    events = task.result()
                    if events[-1].kind != "end":
                        waits[asyncio.ensure_future(self.tickets[number].next())] = number
                    yield number, events
        finally:
            for task in waits:
                task.cancel()

    async def answers(self) -> tuple[list[Answer], list[str]]:
        """The answer of each choice, and its thoughts as text."""
        answers: list[Answer | None] = [None] * len(self.tickets)
        thoughts = [""] * len(self.tickets)
        async for number, events in self.events():
            for kind, text in self.parts(events):
                thoughts[number] += text if kind == "reasoning" else ""
            answers[number] = events[-1].answer or answers[number]
        return [answer for answer in answers if answer is not None], thoughts

    def parts(
        self, events: Sequence[Event]
    ) -> Iterator[tuple[Literal["reasoning", "content"], str]]:
        """What a client reads of events, neighbours of one kind joined."""
        kind, text = "content", ""
        for event in events:
            own: Literal["reasoning", "content"] = (
                "content" if event.kind == "word" else "reasoning"
            )
            told = event.text if own == "content" else self._thought(event)
            if not told:
                continue
            if own != kind and text:
                yield kind, text
                text = ""
            kind, text = own, text + told
        if text:
            yield kind, text

    def _thought(self, event: Event) -> str:
        """A thought as a line; a rewritten answer as it is now."""
        if not self.choice.reasoning or event.kind == "end":
            return ""
        if event.kind == "rewrite":
            belief = event.scores.get("belief")
            sure = "" if belief is None else f" (believed {belief:.2f})"
            return f"{event.step}{sure}:\n{event.text}\n"
        if not event.tokens:
            return ""
        if event.kind == "draft":
            return f"{event.step} draft: {event.text}\n"
        piece = self.served.thinker.processor.piece
        step = int(event.scores.get("recurrence", event.step))
        return f"{step}: {' | '.join(map(piece, event.tokens))}\n"

    def ended_by(self, number: int) -> str:
        """ "time" or "stop" where the server ended it."""
        return self.tickets[number].ended_by


async def _batches(ticket: Ticket) -> AsyncIterator[list[Event]]:
    while True:
        events = await ticket.next()
        yield events
        if events[-1].kind == "end":
            return


class Runs:
    """Those under way.

    worker: number of this process among its sisters, which all ids name; None: it is alone.
    """

    def __init__(self, worker: int | None = None):
        self.worker = worker
        self.open: dict[str, OpenRun] = {}

    def new_id(self, kind: str) -> str:
        """chatcmpl-1f..., of a worker chatcmpl-w3-1f..."""
        own = "" if self.worker is None else f"w{self.worker}-"
        return f"{kind}-{own}{secrets.token_hex(12)}"

    async def begin(
        self,
        id: str,
        served: Served,
        choice: Choice,
        questions: Sequence[AskedQuestion],
        **more: Any,
    ) -> OpenRun:
        """A run that is known by its id until it is told to `end`.

        Raises:
            ApiError: no room, or the model refuses a question.
        """
        served.scheduler.check_room(len(questions))
        run = OpenRun(id, served, choice, [], **more)
        try:
            for asked in questions:
                run.tickets.append(await served.scheduler.submit(asked))
        except BaseException as error:
            self.end(run)
            if isinstance(error, ValueError):
                raise ApiError(400, str(error), code="invalid_value") from error
            raise
        self.open[run.id] = run
        return run

    def end(self, run: OpenRun) -> None:
        """Nobody waits for it any more: what has not ended is cancelled."""
        self.open.pop(run.id, None)
        for ticket in run.tickets:
            run.served.scheduler.cancel(ticket, "client")

    def control(self, id: str, action: str) -> bool:
        """End the thinking of a run, or the run; False: it has ended meanwhile.

        Raises:
            ApiError: no such run, or nothing in it can be ended.
        """
        run = self.open.get(id)
        if run is None:
            raise ApiError(404, f"no answer {id!r} is under way", param="id", code="not_found")
        if not run.controlled:
            raise ApiError(
                400, "this answer was asked for with reasoning_control: false", param="id"
            )
        if action == "cancel":
            for ticket in run.tickets:
                run.served.scheduler.cancel(ticket, "control")
            return True
        try:
            ended = [run.served.scheduler.end_thinking(ticket) for ticket in run.tickets]
        except ValueError as error:
            raise ApiError(400, str(error), param="action", code="unsupported") from error
        return any(ended)
