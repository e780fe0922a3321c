"""A run's data as one value: a pattern of thoughts, what a thought is, and the stages of training.

`inward.data.thoughts.patterns` says which steps are hidden. A `BlockLayout` says what stands in
their place: a latent, a learned pause token ("pause as thought"), or nothing ("w/o thought"), and
whether the boundary tokens are given or learned. `Stages` says which stage an epoch is in and when
the optimizer starts afresh. `Curriculum` is the three together, so every row of Coconut's Table 1
(arXiv 2412.06769) is a value, not a code path:

    Coconut             Curriculum(Prefix(c=1, max_stage=6), stages=Stages((5,) * 7))
    w/o curriculum      Curriculum(Prefix(c=1, max_stage=6), stages=Stages(first=7))
    w/o thought         ... layout=Layout("nothing")
    pause as thought    ... layout=Layout("pause")
    pause tokens        Curriculum(Fixed(6), Layout("pause", "none"))
    learned switching   Curriculum(Rhythm(2, sentences=1), Layout(boundaries="supervised"), ...)

No torch: draws come from a numpy generator, so a sample is a function of (pieces, epoch, seed).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from inward.common.checks import need
from inward.data.thoughts.patterns import (
    Cot,
    EntropySteps,
    Fixed,
    HiddenTokens,
    Mixture,
    NextOnly,
    NoCot,
    Pieces,
    Prefix,
    RandomSteps,
    Rhythm,
    Say,
    Think,
    Turns,
)
from inward.data.thoughts.segments import Latent, Sample, Segment, Specials, Text
from inward.data.thoughts.superposed import check_span, cut

AnyPattern = (
    Prefix
    | Rhythm
    | RandomSteps
    | EntropySteps
    | NextOnly
    | HiddenTokens
    | Cot
    | NoCot
    | Fixed
    | Mixture
)


@dataclass(frozen=True)
class BlockLayout:
    """What a thought is, and who sets its boundaries.

    thought      "latent": a hidden state; "pause": the learned pause token ("pause as thought",
                 one forward pass); "nothing": neither thoughts nor boundaries ("w/o thought")
    boundaries   "given": in the input, never in the loss, as published: the model cannot decide
                 when to think; "supervised": learned, the model switches by itself; "none"
    """

    thought: Literal["latent", "pause", "nothing"] = "latent"
    boundaries: Literal["given", "supervised", "none"] = "given"

    def __post_init__(self) -> None:
        kinds = ("latent", "pause", "nothing")
        need(self.thought in kinds, "thought", self.thought, f"one of {kinds}")
        ways = ("given", "supervised", "none")
        need(self.boundaries in ways, "boundaries", self.boundaries, f"one of {ways}")


def arrange(
    pieces: Pieces,
    plan: Turns,
    layout: BlockLayout,
    specials: Specials,
    *,
    pause: int | None = None,
    span: int = 0,
) -> Sample:
    """Lay a plan out as a sample: the question is given, spoken steps and the answer are learned.

    span   tokens of its step that a thought is to hold (`inward.data.thoughts.superposed`), the
           placeholder as the filler; 0: thoughts have no target
    Raises ValueError for a layout with pause tokens without the id `pause`, or a step that does not
    fit into its thoughts.
    """
    segments: list[Segment] = [Text(pieces.question, False)]
    for turn in plan.turns:
        if isinstance(turn, Say):
            segments.append(Text(pieces.steps[turn.step][turn.skip :], True))
        else:
            segments += _block(turn, layout, specials, pause, _spans(pieces, turn, span, specials))
    if plan.answer:
        segments.append(Text(pieces.answer, True))
    return Sample(tuple(_joined(segments)))


def _spans(
    pieces: Pieces, turn: Think, span: int, specials: Specials
) -> tuple[tuple[int, ...], ...]:
    """What each thought of a turn is to hold; thoughts that stand for no step hold no word."""
    if not span:
        return ()
    nothing = (specials.latent,) * span
    found: list[tuple[int, ...]] = []
    for step in turn.steps:
        found += cut(pieces.steps[step], turn.each, span, specials.latent)
    return (*found[: turn.num], *(nothing,) * (turn.num - len(found)))


def _block(
    turn: Think,
    layout: BlockLayout,
    specials: Specials,
    pause: int | None,
    spans: tuple[tuple[int, ...], ...],
) -> list[Segment]:
    num = turn.num
    if layout.thought == "nothing":
        return []
    if layout.thought == "pause" and pause is None:
        raise ValueError("this layout thinks in pause tokens; give the id of the tokenizer's one")
    inner: list[Segment] = []
    if num:
        inner = [
            Latent(num, spans)
            if pause is None or layout.thought == "latent"
            else _paused(num, pause)
        ]
    if layout.boundaries == "none":
        return inner
    learned = layout.boundaries == "supervised"
    return [Text((specials.bot,), learned), *inner, Text((specials.eot,), learned)]


def _paused(num: int, pause: int) -> Text:
    return Text((pause,) * num, False)


def _joined(segments: list[Segment]) -> list[Segment]:
    """Join neighbours of one kind, so that equal samples are equal values."""
    joined: list[Segment] = []
    for segment in segments:
        last = joined[-1] if joined else None
        if isinstance(segment, Text) and not segment.ids:
            continue
        if isinstance(segment, Latent) and isinstance(last, Latent):
            joined[-1] = Latent(last.num + segment.num, last.spans + segment.spans)
        elif (
            isinstance(segment, Text)
            and isinstance(last, Text)
            and last.supervised == segment.supervised
        ):
            joined[-1] = Text(last.ids + segment.ids, last.supervised)
        else:
            joined.append(segment)
    return joined


@dataclass(frozen=True)
class Stages:
    """Which stage an epoch is in: `lengths[i]` epochs of stage `first + i`, then one stage more.

    uniform_prob   probability that a visit uses another stage (`mix`) than its epoch's. Needed if
                   the number of thoughts shall vary at inference; 0 in the released runs, 0.3 in
                   the paper's analysis and about 0.05 according to its author
    mix            "all": 0 to the sample's number of steps, as published; "earlier": 0 to the stage
    reset          when the optimizer starts afresh. The paper says at stages, the released code
                   does it at every epoch
    """

    lengths: tuple[int, ...] = ()
    first: int = 0
    uniform_prob: float = 0.0
    mix: Literal["all", "earlier"] = "all"
    reset: Literal["never", "stage", "epoch"] = "never"

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", tuple(self.lengths))
        need(min(self.lengths, default=1) >= 1, "lengths", self.lengths, "1 epoch or more each")
        need(self.first >= 0, "first", self.first, "0 or more")
        need(0 <= self.uniform_prob <= 1, "uniform_prob", self.uniform_prob, "in [0, 1]")
        need(self.mix in ("all", "earlier"), "mix", self.mix, "'all' or 'earlier'")
        ways = ("never", "stage", "epoch")
        need(self.reset in ways, "reset", self.reset, f"one of {ways}")

    @property
    def starts(self) -> tuple[int, ...]:
        """Epochs at which a stage begins; the first is 0."""
        return tuple(sum(self.lengths[:i]) for i in range(len(self.lengths) + 1))

    def at(self, epoch: int) -> int:
        """Stage of an epoch; both count from 0."""
        return self.first + sum(start <= epoch for start in self.starts) - 1

    def resets(self, num_epochs: int) -> tuple[int, ...]:
        """Epochs before which the optimizer starts afresh (epoch 0 needs none)."""
        if self.reset == "never":
            return ()
        epochs = range(num_epochs) if self.reset == "epoch" else self.starts
        return tuple(epoch for epoch in epochs if 0 < epoch < num_epochs)


@dataclass(frozen=True)
class Curriculum:
    """Pattern, layout and stages of a run.

    span   tokens of a hidden step that each of its thoughts is to hold in superposition; 0:
           thoughts have no target
    Raises ValueError for a span where no thought stands for a step, or who thinks is learned.
    """

    pattern: AnyPattern = field(default_factory=Prefix)
    """any `Pattern` will do; those listed can be overridden on the command line"""
    layout: BlockLayout = BlockLayout()
    stages: Stages = Stages()
    span: int = 0

    def __post_init__(self) -> None:
        if not self.span:
            return
        check_span(self.span)
        if why := self._unreadable():
            raise ValueError(
                f"superposed thoughts (span {self.span}) hold the steps they hide: {why}"
            )

    def _unreadable(self) -> str:
        """Why thoughts of this curriculum cannot hold the steps that they hide; "" if they can."""
        pattern, layout = self.pattern, self.layout
        if isinstance(pattern, HiddenTokens | Cot | NoCot | Fixed | Mixture):
            return f"the pattern {type(pattern).__name__} has no thoughts that stand for a step"
        if layout.thought != "latent":
            return f"thought is {layout.thought!r}, must be 'latent'"
        if layout.boundaries == "supervised":
            return (
                "with supervised boundaries the position before a thought learns to say 'think on' "
                "instead; use boundaries 'given' or 'none'"
            )
        if isinstance(pattern, Rhythm) and (
            not pattern.hidden or pattern.thoughts % pattern.hidden
        ):
            return (
                f"a block of {pattern.thoughts} thoughts hides {pattern.hidden} steps; let it hide "
                "one or more, each behind as many thoughts"
            )
        return ""

    def stage(self, pieces: Pieces, epoch: int, rng: np.random.Generator) -> int:
        """Stage of one visit: its epoch's, or with `uniform_prob` one drawn uniformly."""
        stage = self.stages.at(epoch)
        mixed, share = rng.random(), rng.random()  # always two draws: the same rows for any setting
        if mixed >= self.stages.uniform_prob:
            return stage
        top = len(pieces.steps) if self.stages.mix == "all" else min(stage, len(pieces.steps))
        return int(share * (top + 1))

    def sample(
        self,
        pieces: Pieces,
        epoch: int,
        rng: np.random.Generator,
        specials: Specials,
        *,
        pause: int | None = None,
    ) -> Sample:
        """One visit of a record at an epoch; all draws come from `rng`."""
        plan = self.pattern.plan(pieces, self.stage(pieces, epoch, rng), rng)
        return arrange(pieces, plan, self.layout, specials, pause=pause, span=self.span)

    def prompt(
        self, pieces: Pieces, stage: int, specials: Specials, *, pause: int | None = None
    ) -> Sample:
        """What is given at inference: the question, and the thoughts if the script opens with some.

        With supervised boundaries the question alone: switching is the model's affair.
        """
        script = self.pattern.script(stage)
        opening = script.opening or script.repeat if script is not None else ()
        if self.layout.boundaries == "supervised" or not opening:
            return Sample((Text(pieces.question, False),))
        first = (opening[0],) if isinstance(opening[0], Think) else ()
        return arrange(pieces, Turns(first, answer=False), self.layout, specials, pause=pause)
