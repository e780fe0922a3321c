"""Numbers of a server in prometheus' format."""

from __future__ import annotations

import os
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from inward.common.thinking import Answer
from inward.serve.replies import drafts_of, said_in
from inward.serve.scheduler import Ticket
from inward.serve.workers import METRICS

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Meter:
    """Counts replies and answers, steps, and who is in work; of several workers all together."""

    def __init__(self, models: Iterable[str]):
        self.registry = r = CollectorRegistry()
        self.open, self.waiting = (
            Gauge(
                f"inward_requests_{name}", about, ["model"], registry=r, multiprocess_mode="livesum"
            )
            for name, about in (("open", "in work or waiting"), ("waiting", "waiting for a row"))
        )
        self.steps = Counter("inward_steps", "pieces of work", ["model"], registry=r)
        self.busy = Counter("inward_busy_seconds", "seconds of these", ["model"], registry=r)
        self.failures = Counter("inward_failures", "pieces that raised", ["model"], registry=r)
        for model in models:
            for each in (self.open, self.waiting, self.steps, self.busy, self.failures):
                each.labels(model)  # tells 0
        self.replies = Counter(
            "inward_replies", "by route and status", ["route", "status"], registry=r
        )
        self.answers = Counter(
            "inward_answers", "by why they ended", ["model", "stopped"], registry=r
        )
        names = {
            "prompt_tokens": "tokens and cells of questions",
            "completion_tokens": "tokens and cells said",
            "thinking_steps": "steps of thinking, in the method's unit",
            "forwards": "forwards of the model",
            "flops": "floating point operations",
            "draft_tokens": "guesses that were judged",
            "accepted_draft_tokens": "of these, those that stood",
        }
        self.sums = {
            name: Counter(f"inward_{name}", about, ["model"], registry=r)
            for name, about in names.items()
        }
        self.first = Histogram(
            "inward_first_event_seconds",
            "to the first event",
            ["model"],
            registry=r,
            buckets=SECONDS,
        )
        self.whole = Histogram(
            "inward_answer_seconds",
            "to the end of an answer",
            ["model"],
            registry=r,
            buckets=SECONDS,
        )

    def observe(self, model: str, ticket: Ticket, answer: Answer | None) -> None:
        """A request has ended; without an answer, because the work failed."""
        if ticket.first is not None:
            self.first.labels(model).observe(ticket.first - ticket.came)
        if ticket.done is not None:
            self.whole.labels(model).observe(ticket.done - ticket.came)
        stopped = "error" if answer is None else answer.stopped or "error"
        self.answers.labels(model, stopped).inc()
        if answer is None:
            return
        offered, stood = drafts_of(answer)
        took = {
            "prompt_tokens": len(ticket.asked.prompt.tokens),
            "completion_tokens": said_in(answer),
            "thinking_steps": answer.steps,
            "forwards": answer.cost.forwards,
            "flops": answer.cost.flops,
            "draft_tokens": offered,
            "accepted_draft_tokens": stood,
        }
        for name, value in took.items():
            self.sums[name].labels(model).inc(value)

    def stepped(self, model: str, seconds: float, failed: bool) -> None:
        """A piece of work has been done."""
        self.steps.labels(model).inc()
        self.busy.labels(model).inc(seconds)
        if failed:
            self.failures.labels(model).inc()

    def crowd(self, model: str, num_open: int, num_waiting: int) -> None:
        """So many requests are in work or wait."""
        self.open.labels(model).set(num_open)
        self.waiting.labels(model).set(num_waiting)

    def text(self) -> bytes:
        """All numbers, of all workers."""
        registry = self.registry
        if METRICS in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)
