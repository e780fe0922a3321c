"""One thread a model owns its running work: requests join it, leave it, and never wait for each
other's readers.

    asyncio side                                   the model's thread
    ticket = await scheduler.submit(question)  ->  work.add
    async for event in ticket: ...             <-  work.step, events told as text
    scheduler.cancel(ticket)                   ->  work.cancel: the row is free after the step
    scheduler.end_thinking(ticket)             ->  work.end_thinking, also while a step is under way

Events go to a queue of each ticket, which is bounded by what the request may say, so a reader that
is slow holds up nobody. Counters belong to the asyncio side; the thread never waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from inward.common.thinking import Answer, Event, Work
from inward.serve.errors import ApiError
from inward.serve.limits import Limits
from inward.tasks.asked import AskedQuestion
from inward.thinker import Thinker

log = logging.getLogger("inward.serve")


class WorkFailed(Exception):
    """The model's work raised; what was in it is lost."""


@dataclass(eq=False)
class Ticket:
    """A request in work.

    came, first, done: seconds of the clock at its arrival, at its first event, at its end.
    ended_by: "time", "client", "stop" where it was not the method that ended it.
    """

    asked: AskedQuestion
    loop: asyncio.AbstractEventLoop
    deadline: float
    came: float = field(default_factory=time.monotonic)
    first: float | None = None
    done: float | None = None
    number: int | None = None
    ended_by: str = ""
    added: asyncio.Future[None] | None = None
    queue: asyncio.Queue[Sequence[Event] | Exception] = field(default_factory=asyncio.Queue)

    async def events(self) -> AsyncIterator[Event]:
        """What happens, the end last. Raises WorkFailed."""
        while True:
            for event in await self.next():
                yield event
                if event.kind == "end":
                    return

    async def next(self) -> list[Event]:
        """All events that have come since the last call, at least one. Raises WorkFailed."""
        found = [await self.queue.get()]
        while not self.queue.empty():
            found.append(self.queue.get_nowait())
        for part in found:
            if isinstance(part, Exception):
                raise part
        return [event for part in found if not isinstance(part, Exception) for event in part]


class Scheduler:
    """The running work of one model. `start` before, `close` after; all but these on the loop.

    Args:
        sizes: of `thinker.begin`.
        threads: of torch in the model's thread; None: torch's own choice.

    on_end: told of each request that has ended, with its answer; None: the work failed.
    on_step: told, in the thread, of each piece of work: its seconds, and whether it raised.
    on_crowd: told how many requests there are, and how many of them wait.
    """

    def __init__(
        self,
        thinker: Thinker,
        limits: Limits,
        *,
        sizes: dict[str, Any] | None = None,
        threads: int | None = None,
    ):
        self.thinker, self.limits, self.sizes = thinker, limits, sizes or {}
        self.work: Work = thinker.begin(**self.sizes)
        self.rows = _rows(thinker, self.sizes)
        self.open: set[Ticket] = set()
        self.mean_seconds = 1.0
        self.on_end: Callable[[Ticket, Answer | None], None] = lambda ticket, answer: None
        self.on_step: Callable[[float, bool], None] = lambda seconds, failed: None
        self.on_crowd: Callable[[int, int], None] = lambda num_open, num_waiting: None
        self._threads = threads
        self._tickets: dict[int, Ticket] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._woken = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(
            target=self._run, name=f"inward {thinker.name}", daemon=True
        )

    # -- on the loop

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are worked on."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Requests beyond those that have a row."""
        return max(0, len(self.open) - self.rows)

    def check_room(self, num: int) -> None:
        """Raise 429 unless so many requests more may wait, 503 if nothing is taken any more."""
        if not self.alive:
            raise ApiError(
                503, "the server is stopping", code="stopping", headers={"Retry-After": "5"}
            )
        room = self.rows + self.limits.max_waiting - len(self.open)
        if num > room:
            after = round(self.mean_seconds * max(1, self.waiting) / self.rows)
            raise ApiError(
                429,
                f"{len(self.open)} requests are in work or wait, as many as there may be",
                code="queue_full",
                headers={"Retry-After": str(min(60, max(1, after)))},
            )

    async def submit(self, asked: AskedQuestion) -> Ticket:
        """Take a question in.

        Raises:
            ApiError: there is no room. ValueError: the work refuses the request.
        """
        self.check_room(1)
        loop = asyncio.get_running_loop()
        ticket = Ticket(asked, loop, time.monotonic() + self.limits.max_seconds)
        ticket.added = loop.create_future()
        self.open.add(ticket)
        self._counted()
        self._tell(lambda: self._add(ticket))
        try:
            await ticket.added
        except BaseException as error:
            if not isinstance(error, ValueError):  # the caller is gone, the request is not
                self.cancel(ticket, "client")
            raise
        return ticket

    def cancel(self, ticket: Ticket, ended_by: str) -> None:
        """End it with what it has said."""
        if ticket.done is None:
            self._tell(lambda: self._cancel(ticket, ended_by))

    def end_thinking(self, ticket: Ticket) -> bool:
        """Let it think no more; False: it has ended. ValueError: it has nothing to end."""
        number = ticket.number
        if number is None or self._tickets.get(number) is not ticket:
            return False
        try:
            self.work.end_thinking(number)
        except KeyError:
            return False
        return True

    def finish(self, *, ended_by: str = "") -> None:
        """Take no more; `ended_by`: and end what is in work, for this reason."""
        self._closing = True
        self._tell(lambda: [self._cancel(t, ended_by) for t in self._all()] if ended_by else None)

    def close(self) -> None:
        """End everything and wait for the thread."""
        self.finish(ended_by="stop")
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _tell(self, command: Callable[[], Any]) -> None:
        with self._woken:
            self._commands.append(command)
            self._woken.notify()

    def _deliver(self, told: Sequence[tuple[Ticket, Sequence[Event] | Exception]]) -> None:
        """The thread's news, on the loop."""
        now = time.monotonic()
        for ticket, events in told:
            if ticket.first is None:
                ticket.first = now
            if isinstance(events, Exception) or events[-1].kind == "end":
                ticket.done = now
                self.open.discard(ticket)
                self.mean_seconds += 0.1 * (now - ticket.came - self.mean_seconds)
                self.on_end(ticket, None if isinstance(events, Exception) else events[-1].answer)
            ticket.queue.put_nowait(events)
        self._counted()

    def _counted(self) -> None:
        self.on_crowd(len(self.open), self.waiting)

    # -- in the thread

    def _run(self) -> None:
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)
        while True:
            with self._woken:
                while not (self._commands or self.work.busy or self._closing):
                    self._woken.wait()
                commands, self._commands = self._commands, deque()
            for command in commands:
                command()
            if self.work.busy:
                self._mind_the_time()
                self._step()
            elif self._closing and not self._commands:
                return

    def _all(self) -> list[Ticket]:
        return list(self._tickets.values())

    def _add(self, ticket: Ticket) -> None:
        error: Exception | None = None
        try:
            ticket.number = self.work.add(ticket.asked.request)
            self._tickets[ticket.number] = ticket
        except ValueError as refusal:
            error = refusal
        except Exception as fault:
            log.exception("%s: adding a request failed", self.thinker.name)
            error = WorkFailed(f"{type(fault).__name__}: {fault}")
        _call(ticket.loop, self._added, ticket, error)

    def _added(self, ticket: Ticket, error: Exception | None) -> None:
        if error is not None:
            self.open.discard(ticket)
            self._counted()
            ticket.done = time.monotonic()
        assert ticket.added is not None
        if ticket.added.done():  # its caller has gone
            return
        if error is None:
            ticket.added.set_result(None)
        else:
            ticket.added.set_exception(error)

    def _cancel(self, ticket: Ticket, ended_by: str) -> None:
        number = ticket.number
        if number is not None and self._tickets.get(number) is ticket and not ticket.ended_by:
            ticket.ended_by = ended_by
            self.work.cancel(number)

    def _mind_the_time(self) -> None:
        """Requests whose time is up: a whole answer comes as it is, a text with what it has."""
        now = time.monotonic()
        for number, ticket in list(self._tickets.items()):
            if now < ticket.deadline or ticket.ended_by:
                continue
            if self.thinker.method.reads == "puzzle":
                ticket.ended_by = "time"
                self.work.end_thinking(number)
            else:
                self._cancel(ticket, "time")

    def _step(self) -> None:
        began, failed = time.perf_counter(), False
        try:
            events = self.work.step()
            found: dict[int, list[Event]] = {}
            for event in events:
                found.setdefault(event.request, []).append(event)
            told = [self._told(number, own) for number, own in found.items()]
        except Exception as fault:
            failed = True
            log.exception("%s: a step failed", self.thinker.name)
            told = self._fail(WorkFailed(f"{type(fault).__name__}: {fault}"))
        self.on_step(time.perf_counter() - began, failed)
        for loop in {ticket.loop for ticket, _ in told}:
            _call(loop, self._deliver, [pair for pair in told if pair[0].loop is loop])

    def _told(self, number: int, events: list[Event]) -> tuple[Ticket, list[Event]]:
        ticket, answer = self._tickets[number], None
        if events[-1].kind == "end":
            seconds = time.monotonic() - ticket.came
            answer = ticket.asked.finished(self.work.result(number), seconds)
            del self._tickets[number]
        return ticket, list(ticket.asked.told(events, answer))

    def _fail(self, error: WorkFailed) -> list[tuple[Ticket, Sequence[Event] | Exception]]:
        """Everything in work is lost; a new work takes its place."""
        lost = self._all()
        self._tickets.clear()
        self.work = self.thinker.begin(**self.sizes)
        return [(ticket, error) for ticket in lost]


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    """On the loop, unless that has been closed: then nobody listens any more."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise


def _rows(thinker: Thinker, sizes: dict[str, Any]) -> int:
    """Rows of a forward at most."""
    if "batch_size" in sizes:
        return sizes["batch_size"]
    import inspect

    return inspect.signature(thinker.method.begin).parameters["batch_size"].default
