"""Its loop: a token of every request a step."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inward.common.requests import check_prompt
from inward.common.thinking import Answer, Event, Request
from inward.common.trace import Cost, Span, Step, Trace
from tests.fifth.door import METHOD


@dataclass
class Repetition:
    request: Request
    left: list[int]
    said: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    stopped: str = ""


class Repeating:
    def __init__(self, model: Any, batch_size: int = 4):
        self.model, self.batch_size = model, batch_size
        self.rows: list[Repetition] = []
        self.results: dict[int, Answer] = {}
        self.active: dict[int, Repetition] = {}

    @property
    def busy(self) -> bool:
        return bool(self.active)

    def add(self, request: Request) -> int:
        METHOD.check_options(request.own)
        times = request.own.get("times", 1)
        if times < 1:
            raise ValueError(f"times is {times}, must be at least 1")
        check_prompt(request.prompt, context=100, vocab_size=self.model.vocab_size)
        self.rows.append(Repetition(request, list(request.prompt) * times))
        self.active[len(self.rows) - 1] = self.rows[-1]
        return len(self.rows) - 1

    def cancel(self, number: int) -> None:
        if number in self.active:
            self.active[number].stopped = "cancelled"

    def end_thinking(self, number: int) -> None:
        raise ValueError("a parrot does not think")

    def step(self) -> list[Event]:
        events = []
        for number, row in list(self.active.items())[: self.batch_size]:
            if not row.stopped:
                events.append(self._say(number, row))
            if row.stopped:
                del self.active[number]
                self.results[number] = answer = self._answer(row)
                events.append(Event("end", number, step=len(row.steps), answer=answer))
        return events

    def _say(self, number: int, row: Repetition) -> Event:
        token, *row.left = row.left
        row.said.append(token)
        step = Step(len(row.said), "word", Span.of([token]), cost=Cost(1, 1.0, 1))
        row.steps.append(step)
        most, stop = row.request.max_new_tokens, row.request.stop
        if stop is not None and stop.found(row.said):
            row.stopped = "stop"
        elif most is not None and len(row.said) >= most:
            row.stopped = "length"
        elif not row.left:
            row.stopped = "halted"
        return Event("word", number, (token,), step=len(row.said))

    def _answer(self, row: Repetition) -> Answer:
        trace = None
        if row.request.trace is not None:
            trace = Trace("parrot", np.asarray(row.request.prompt), row.steps, row.stopped)
        probable = (0.0,) * len(row.said) if row.request.logprobs else None
        return Answer(
            tokens=tuple(row.said),
            steps=len(row.said),
            stopped=row.stopped,
            cost=Cost(len(row.said), float(len(row.said)), len(row.said)),
            logprobs=probable,
            trace=trace,
        )

    def result(self, number: int) -> Answer:
        if number not in self.results:
            if number in self.active:
                raise ValueError(f"request {number} has not ended")
            raise KeyError(f"there is no request {number}")
        return self.results.pop(number)
