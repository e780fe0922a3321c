"""Numbers of a server in prometheus' format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inward.common.thinking import Answer
from inward.serve.replies import drafts_of, said_in
from inward.serve.runs import Served
from inward.serve.scheduler import Ticket

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Engines(Collector):
    """What the schedulers know: requests in work and waiting, steps, seconds, failures."""

    def __init__(self, models: Mapping[str, Served]):
        self.models = models

    def collect(self) -> Iterable[Metric]:
        """One sample a model."""
        kinds = (
            (GaugeMetricFamily, "inward_requests_open", "in work or waiting"),
            (GaugeMetricFamily, "inward_requests_waiting", "waiting for a row"),
            (CounterMetricFamily, "inward_steps", "pieces of work"),
            (CounterMetricFamily, "inward_busy_seconds", "seconds of these"),
            (CounterMetricFamily, "inward_failures", "pieces of work that raised"),
        )
        for number, (family, name, about) in enumerate(kinds):
            metric = family(name, about, labels=["model"])
            for model, served in self.models.items():
                of = served.scheduler
                values = (len(of.open), of.waiting, of.steps, of.busy_seconds, of.failures)
                metric.add_metric([model], float(values[number]))
            yield metric


class Meter:
    """Counts replies and answers."""

    def __init__(self, models: Mapping[str, Served]):
        self.registry = CollectorRegistry()
        self.registry.register(Engines(models))
        r = self.registry
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

    def text(self) -> bytes:
        """All numbers."""
        return generate_latest(self.registry)
