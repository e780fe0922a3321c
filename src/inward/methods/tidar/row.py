"""One text in work: what it was asked for, how far it is, and what its running forward holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inward.common.sampling import Law, Sampler
from inward.common.thinking import Answer, Event, Request
from inward.common.trace import Cost, Span, Step, Trace
from inward.methods.tidar.batch import Layout
from inward.methods.tidar.request import Drafter
from inward.methods.tidar.schemes import Acceptance


@dataclass(eq=False)
class TextRow:
    """The state of one text between forwards, and what its running forward consists of."""

    number: int
    request: Request
    tokens: list[int]
    num_prompt: int
    limit: int
    """length at which it ends, for the reason `full`"""
    full: str
    sampler: Sampler
    ends: frozenset[int]
    drafter: Drafter | None = None
    acceptance: Acceptance = field(default_factory=Acceptance)
    cached: int = 0
    reused: int = 0
    """tokens of the prompt that were read in an earlier request"""
    guesses: list[int] = field(default_factory=list)
    laws: list[Law] = field(default_factory=list)
    hopes: list[float] = field(default_factory=list)
    """probabilities of the guesses when they were drafted, if the record holds them"""
    canvas: list[int | None] = field(default_factory=list)
    """diffusion: the block in work, None where it is still masked"""
    sure: list[float] = field(default_factory=list)
    """log-probabilities of the canvas"""
    hurried: bool = False
    """its blocks are said as they are"""
    stopped: str = ""
    num_steps: int = 0
    cost: Cost = field(default_factory=Cost)
    steps: list[Step] = field(default_factory=list)
    odds: list[float] = field(default_factory=list)
    """log-probabilities of the new tokens, if asked for"""

    # the running forward
    layout: Layout = field(default_factory=lambda: Layout(1))
    given: list[int] = field(default_factory=list)
    """its tokens behind the final ones"""
    begin: int = 0
    """length before it"""
    past: int = 0
    """tokens cached before it"""
    offers: list[int] = field(default_factory=list)
    offer_laws: list[Law] = field(default_factory=list)
    offer_hopes: list[float] = field(default_factory=list)
    looked_up: bool = False
    drafted: list[int] = field(default_factory=lambda: [0, 0])
    """own guesses that were judged, and those that stood; `looked`: of its drafter"""
    looked: list[int] = field(default_factory=lambda: [0, 0])
    reads: list[int] = field(default_factory=lambda: [0, 0])
    """rows whose logits were made, mask rows apart"""
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def final(self) -> list[int]:
        """Tokens that stand but are not cached."""
        return self.tokens[self.cached :]

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self.limit - len(self.tokens)

    @property
    def said(self) -> list[int]:
        """The new tokens."""
        return self.tokens[self.num_prompt :]

    def account(self, unjudged: bool) -> str:
        """Where the rows of the running forward that are no masks go, see
        `inward.common.trace.PARTS`."""
        if self.begin == self.num_prompt and self.past < self.num_prompt:
            return "prompt"
        return "words" if unjudged and not self.offers else "verification"

    def judge(self, offered: int, accepted: int) -> None:
        """So many of these guesses stand."""
        judged = self.looked if self.looked_up else self.drafted
        judged[0] += offered
        judged[1] += accepted

    def say(self, tokens: Sequence[int], criteria: Sequence[Any], device: torch.device) -> None:
        """Take tokens in, up to whatever ends the text."""
        for token in tokens:
            self.tokens.append(token)
            self.stopped = self._end(criteria, device)
            if self.stopped:
                return

    def _end(self, criteria: Sequence[Any], device: torch.device) -> str:
        """Why the text ends with its last token; empty if it does not."""
        if self.tokens[-1] in self.ends:
            return "end"
        if self.request.stop is not None and self.request.stop.found(self.said):
            return "stop"
        if criteria:
            ids = torch.tensor([self.tokens], device=device)
            if any(bool(torch.as_tensor(stop(ids, None)).all()) for stop in criteria):
                return "stop"
        return "" if self.room > 0 else self.full

    def weigh(self, logits: Tensor, tokens: Sequence[int]) -> list[float]:
        """Log-probabilities of the next tokens under the distributions that they were chosen by,
        from the (n, V) logits of their places."""
        prefix, found = list(self.tokens), []
        for place, token in zip(logits, tokens, strict=False):
            scores = self.sampler.scores(prefix, place)
            found.append(float(scores.log_softmax(-1)[token]))
            prefix.append(token)
        return found

    def tell(self, cost: Cost) -> list[Event]:
        """What the forward that has just ended brought, and its entry in the record."""
        self.num_steps += 1
        self.cost = self.cost + cost
        new, number, step = tuple(self.tokens[self.begin :]), self.number, self.num_steps
        if self.request.trace is not None:
            self.steps.append(self._step(new, cost))
        events = []
        if new:
            events.append(Event("word", number, new, step=step, scores=self.scores))
        if self.guesses and not self.stopped:
            draft = tuple(self.guesses)
            events.append(Event("draft", number, draft, step=step, scores=self.scores))
        return events

    def _step(self, new: tuple[int, ...], cost: Cost) -> Step:
        says, view = None, {}
        if new:
            sure = np.exp(self.odds[-len(new) :]) if self.request.logprobs else None
            says = Span.of(new, sure)
        drafts = "drafts" in (self.request.trace or ())
        if self.offers:
            hopes = self.offer_hopes if drafts and not self.looked_up else None
            view["draft"] = Span.of(self.offers, hopes or None)
        if drafts and self.guesses and not self.stopped:
            view["next"] = Span.of(self.guesses, self.hopes or None)
        if "canvas" in (self.request.trace or ()):
            view["canvas"] = Span.of(self.given)
        slots = {"slots": self.layout.num_rows}
        scores = {**slots, **self.scores}
        if drafts:
            scores |= {"masks": sum(width for _, width in self.layout.blocks)}
            scores |= {"looked_up": 1.0} if self.looked_up else {}
        return Step(self.num_steps, "forward", says, view, scores, cost, position=self.begin)

    def answer(self, method: str, meta: Mapping[str, Any]) -> Answer:
        """What came of it."""
        trace, asked = None, self.request
        if asked.trace is not None:
            question = np.asarray(self.tokens[: self.num_prompt], dtype=np.int64)
            trace = Trace(method, question, self.steps, self.stopped, dict(meta))
        stood = self.acceptance.histogram
        return Answer(
            tokens=tuple(self.said),
            steps=self.num_steps,
            stopped=self.stopped,
            cost=self.cost,
            logprobs=tuple(self.odds) if asked.logprobs else None,
            trace=trace,
            details={
                **meta,
                "accepted": dict(sorted(stood.items())),
                "reused": self.reused,
                "num_prompt": self.num_prompt,
                "drafted": tuple(self.drafted),
                "looked_up": tuple(self.looked),
            },
        )


def hopes_of(logits: Tensor, guesses: Sequence[int]) -> list[float]:
    """The probability of each guess under the (n, V) logits of its mask, for a record."""
    chosen = torch.tensor(guesses, device=logits.device)[:, None]
    return logits.float().softmax(-1).gather(1, chosen)[:, 0].tolist()
