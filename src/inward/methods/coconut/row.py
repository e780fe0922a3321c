"""One try at a request in work: what it has said and thought, and the record of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, groupby
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from inward.common.costs import Sizes, forward_cost
from inward.common.sampling import Sampler
from inward.common.thinking import Event
from inward.common.trace import NUMBERS, Cost, Span, Step, plane, total
from inward.data.thoughts.segments import Latent, Sample, Segment, Specials, Text
from inward.methods.coconut.plan import CoconutPlan

Asked = Callable[..., Mapping[str, Any]]
"""(start, stop, which columns are thoughts (B, stop - start)) -> further arguments of the base's
forward"""


@dataclass(eq=False)
class ThinkingRow:
    """A request (or one of its votes) in work.

    number: of the request. spoken: all tokens, the prompt's included, without thoughts.
    length: positions, thoughts counted. thinking: inside a block. run: positions since the last
        switch. thoughts, blocks: in all. new: the tokens said. said: those since the last block.
    num_marks: boundary tokens among the new.
    samplers: with <bot> among the words, and without.
    pending: the last position has not been run yet. silent: it is a thought.
    marks: (position, seconds) of each step.
    """

    number: int
    plan: CoconutPlan
    prompt: Sample
    samplers: dict[bool, Sampler]
    spoken: list[int]
    length: int
    thinking: bool
    run: int
    thoughts: int
    blocks: int
    new: list[int] = field(default_factory=list)
    said: list[int] = field(default_factory=list)
    added: list[Segment] = field(default_factory=list)
    new_thoughts: int = 0
    num_marks: int = 0
    reference: float = float("nan")
    pending: bool = False
    silent: bool = False
    stopped: str = ""
    logprobs: list[float] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    marks: list[tuple[int, float]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)

    @staticmethod
    def of(
        number: int,
        plan: CoconutPlan,
        prompt: Sample,
        specials: Specials,
        *,
        index: int,
        never: Collection[int],
    ) -> ThinkingRow:
        """The index-th try at a request; `never`: words that it must not say."""
        spoken = [i for s in prompt.segments if isinstance(s, Text) for i in s.ids]
        last = prompt.segments[-1]
        opened = isinstance(last, Text) and last.ids[-1] == specials.bot
        banned = {True: (*never,), False: (*never, specials.bot)}
        return ThinkingRow(
            number=number,
            plan=plan,
            prompt=prompt,
            samplers={k: Sampler(plan.sampling, index, banned=ids) for k, ids in banned.items()},
            spoken=spoken,
            length=len(prompt),
            thinking=opened or isinstance(last, Latent),
            run=len(last) if isinstance(last, Latent) else 0,
            thoughts=prompt.num_thoughts,
            blocks=len(prompt.blocks) + opened,
        )

    @property
    def may_think(self) -> bool:
        """Whether the budget of thoughts leaves it another; empty blocks count, too, where nothing
        else bounds them."""
        most = self.plan.max_new_thoughts
        return self.new_thoughts < most and (self.plan.count_marks or self.num_marks < 2 * most)

    def facts(self) -> dict[str, Any]:
        """`Answer.details`: thoughts added, boundary tokens said, the whole as a sample."""
        return {
            "thoughts": self.new_thoughts,
            "marks": self.num_marks,
            "sample": self.sample(),
        }

    def think(self) -> None:
        """One more thought."""
        if not self.thinking:
            self.enter()
        self.run += 1
        self.length += 1
        self.thoughts += 1
        self.new_thoughts += 1
        self.added.append(Latent(1))
        self.pending = self.silent = True

    def say(self, token: int) -> None:
        """One more word."""
        self.run += 1
        self.length += 1
        self.spoken.append(token)
        self.new.append(token)
        self.said.append(token)
        self.added.append(Text((token,), False))
        self.pending, self.silent = True, False

    def enter(self) -> None:
        """Begin a block."""
        self.thinking, self.run = True, 0
        self.blocks += 1

    def leave(self) -> None:
        """End a block."""
        self.thinking, self.run = False, 0
        self.said = []

    def reason(self, limit: int | None) -> str:
        """Why it ends here; "" if it goes on. limit: positions of the context."""
        if self.new and self.added and isinstance(self.added[-1], Text):
            if self.new[-1] in self.plan.ends:
                return "end"
            if self.plan.stop is not None and self.plan.stop.found(self.new):
                return "stop"
            marks = 0 if self.plan.count_marks else self.num_marks
            if len(self.new) - marks >= self.plan.max_new_tokens:
                return "length"
        return "context" if limit is not None and self.length >= limit else ""

    def sample(self) -> Sample:
        """The prompt and what followed, neighbours of one kind joined."""
        segments: list[Segment] = []
        for kind, run in groupby((*self.prompt.segments, *self.added), type):
            some = list(run)
            if len(some) == 1:
                segments += some
            elif kind is Latent:
                segments.append(Latent(sum(map(len, some))))
            else:
                texts = cast(list[Text], some)
                ids = tuple(chain.from_iterable(text.ids for text in texts))
                segments.append(Text(ids, all(text.supervised for text in texts)))
        return Sample(tuple(segments))

    # -- the record

    def mark(
        self,
        position: int,
        *,
        token: int | None,
        chance: float = 0.0,
        lens: Span | None = None,
        words: Span | None = None,
        entropy: float = 0.0,
        state: Any = None,
        block: int | None = None,
    ) -> Event:
        """Note the step that decided what stands at `position`: a word, or a thought."""
        now = time.perf_counter()
        self.marks.append((position, now - self.since))
        self.since = now
        kind = "thought" if token is None else "word"
        if self.plan.trace is not None:
            seen = {} if lens is None or "lens" not in self.plan.trace else {"lens": lens}
            seen |= {} if words is None else {"words": words}
            scores = {"entropy": entropy}
            if token is None:  # a first thought is noted before its block is entered
                scores["block"] = self.blocks + (not self.thinking) if block is None else block
            self.steps.append(
                Step(
                    index=len(self.marks),
                    kind=kind,
                    says=None if token is None else Span.of([token], [chance]),
                    view=seen,
                    scores=scores,
                    position=position,
                    arrays={} if state is None else {"state": state},
                )
            )
        told = lens if words is None else words
        shown = () if told is None else tuple(told.ids.tolist())
        return Event(kind, self.number, shown if token is None else (token,), step=len(self.marks))

    def soft_thoughts(self, table: int, *, read: bool) -> Cost:
        """What the thoughts added took that are mean embeddings over a table of so many entries:
        where they were asked for, or the model `read`s all of its thoughts."""
        num = self.new_thoughts if read or self.plan.thought == "soft" else 0
        return Cost(flops=2.0 * table * num).under("thinking") if num else Cost()

    def costs(self, base: Any, sizes: Sizes | None, options: Asked) -> list[Cost]:
        """Of each step: a forward of all that has come since the step before. The first one's is
        the prompt's, so that together they are what the answer took."""
        found, before = [], 0
        thinks = self._thinks()
        for position, seconds in self.marks:
            cost = self._forward(base, before, position, sizes, options, thinks)
            found.append(replace(cost, seconds=seconds).under(self._part(before, position, thinks)))
            before = position
        return found

    def _thinks(self) -> frozenset[int]:
        """Positions that hold a thought."""
        found, place = [], 0
        for segment in (*self.prompt.segments, *self.added):
            if isinstance(segment, Latent):
                found += range(place, place + len(segment))
            place += len(segment)
        return frozenset(found)

    def _part(self, start: int, stop: int, thinks: frozenset[int]) -> str:
        """On which account the forward of these positions goes: a thought's, wherever it stands; a
        prompt's; a word's."""
        if stop - start == 1 and start in thinks:
            return "thinking"
        return "prompt" if start < len(self.prompt) else "words"

    def cost(self, base: Any, sizes: Sizes | None, options: Asked) -> Cost:
        """Of all steps together. What a single position takes grows evenly with the past, so the
        first and the last of a run of them on one account are enough; a base that counts by itself
        is asked of each."""
        if sizes is None:
            return total(self.costs(base, sizes, options))
        thinks, before, forwards = self._thinks(), 0, []
        for position, seconds in self.marks:
            along = position - before == 1 and position >= len(self.prompt)
            alone = 0 if along else len(forwards) + 1
            part = self._part(before, position, thinks)
            forwards.append((before, position, (part, alone), seconds))
            before = position
        found = []
        for (part, _), run in groupby(forwards, lambda forward: forward[2]):
            some = list(run)
            first, last = (
                self._forward(base, start, stop, sizes, options, thinks)
                for start, stop, *_ in (some[0], some[-1])
            )
            share = len(some) / 2
            numbers = {n: (getattr(first, n) + getattr(last, n)) * share for n in NUMBERS}
            cost = replace(Cost(**numbers), seconds=sum(forward[3] for forward in some))
            found.append(cost.under(part))
        return total(found)

    def _forward(
        self,
        base: Any,
        start: int,
        stop: int,
        sizes: Sizes | None,
        options: Asked,
        thinks: Collection[int],
    ) -> Cost:
        """Of these positions. Before a prompt's thoughts nothing is read, unless a record is."""
        reads = int(stop >= len(self.prompt) or self.plan.watched)
        more: Mapping[str, Any] = {}
        if sizes is None:
            latent = torch.tensor([[place in thinks for place in range(start, stop)]])
            more = options(start, stop, latent)
        return forward_cost(base, rows=stop - start, past=start, reads=reads, sizes=sizes, **more)


def in_plane(steps: list[Step], *, keep: bool) -> list[Step]:
    """Each thought's place (2,) in the plane in which the thoughts move most (`trace.plane`); the
    states themselves stay if they are to `keep`."""
    known = [step for step in steps if "state" in step.arrays]
    if not known:
        return steps
    places, share = plane(np.stack([step.arrays["state"] for step in known]))
    found = {step.index: place for step, place in zip(known, places, strict=True)}
    return [
        replace(
            step,
            arrays=({"state": step.arrays["state"]} if keep else {}) | {"plane": found[step.index]},
            scores=step.scores | {"plane": share},
        )
        if step.index in found
        else step
        for step in steps
    ]


def thought_positions(sample: Sample) -> Iterator[tuple[int, int]]:
    """Places of a sample's thoughts, and which block (from 1) each is of."""
    place = block = 0
    for segment in sample.segments:
        if not hasattr(segment, "ids"):
            block += 1
            yield from ((at, block) for at in range(place, place + len(segment)))
        place += len(segment)


@dataclass
class Reading:
    """What the logits (B, V) of some seats say, found out when first asked."""

    logits: Tensor

    @cached_property
    def logp(self) -> Tensor:
        """(B, V)"""
        return self.logits.log_softmax(-1)

    @cached_property
    def entropy(self) -> list[float]:
        """nats of each seat"""
        return (-(self.logp.exp() * self.logp).nan_to_num(0.0).sum(-1)).tolist()
