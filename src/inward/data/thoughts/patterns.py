"""Which steps of a chain hide behind thoughts, and at which stage: one frozen value a pattern.

Coconut (arXiv 2412.06769, section 3) trains in stages: at stage s the first s reasoning steps are
replaced by s * c thoughts. That is one pattern among several:

    Prefix        the published curriculum, also one thought at a time (its appendix C.1)
    Rhythm        k thoughts, m sentences, again and again: interleaving; `alternate` hides every
                  second step (SpiralThinker, arXiv 2511.08983)
    RandomSteps, EntropySteps, NextOnly, Tokens (iCoT, arXiv 2405.14838: token by token)
    Cot, NoCot, Fixed, Mixture       controls: all steps, none, K thoughts at once, several modes

A pattern turns tokenized `Pieces` into a `Turns` (think n, say step i, ...) and names the `Script`
of the same shape for inference, which never looks at the gold steps. What a thought then *is*, and
which stage an epoch is in, is said in `inward.data.thoughts.curriculum`.

Deviation from the released code: none in `Prefix`; its training and evaluation use the same number
of thoughts here (the code evaluates with min(stage, gold steps), which leaks the length).
No torch: draws come from a numpy generator, so a plan is a function of (pieces, stage, seed).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from inward.common.checks import need

# --------------------------------------------------------------------------------------------------
# What a pattern works on, and what it gives


@dataclass(frozen=True)
class Pieces:
    """A tokenized record: ids of the question, of each step, and of the answer with its EOS.

    scores   one number a step (mean token entropy), for `EntropySteps` only
    """

    question: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]
    answer: tuple[int, ...]
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Think:
    """`num` thoughts; 0: the boundary tokens alone, as the released code has them at stage 0.

    steps, each   the steps that they stand for, `each` thoughts a step, in order; thoughts beyond
                  these stand for nothing. Only superposed thoughts look at them
    """

    num: int
    steps: tuple[int, ...] = field(default=(), compare=False)
    each: int = field(default=1, compare=False)


@dataclass(frozen=True)
class Say:
    """Step number `step`, without its first `skip` tokens."""

    step: int
    skip: int = 0


@dataclass(frozen=True)
class Turns:
    """What stands between question and answer, and whether the answer follows at all."""

    turns: tuple[Think | Say, ...]
    answer: bool = True


@dataclass(frozen=True)
class Speak:
    """`sentences` sentences of the model's own; None: until it ends."""

    sentences: int | None = None


@dataclass(frozen=True)
class Script:
    """Who speaks when, at inference: `opening`, then `repeat` until the end of the answer.

    It never depends on the gold steps of a question, whose number the model must not know.
    """

    opening: tuple[Think | Speak, ...]
    repeat: tuple[Think | Speak, ...] = ()


class Pattern(Protocol):
    """What `Curriculum` needs: a plan for a stage, and the script that fits it at inference."""

    def plan(self, pieces: Pieces, stage: int, rng: np.random.Generator) -> Turns:
        """Plan of one sample; stages count from 0."""
        ...

    def script(self, stage: int) -> Script | None:
        """Script of the same shape; None: only boundaries that the model emits can follow it."""
        ...

    @property
    def last_stage(self) -> int:
        """The stage from which on nothing changes any more."""
        ...


def _said(num_steps: int, first: int = 0) -> tuple[Say, ...]:
    return tuple(Say(i) for i in range(first, num_steps))


# --------------------------------------------------------------------------------------------------
# Patterns: the published curriculum and its relatives


@dataclass(frozen=True)
class Prefix:
    """Stage s hides the first s steps behind s * c thoughts (section 3; released `c_thought`).

    Beyond `max_stage` comes one extra stage: no step is spoken, and there are max_stage * c
    thoughts, or with pad_to_max=False min(gold steps, max_stage) * c. Stages up to max_stage give
    every sample stage * c thoughts, also one that has fewer steps.

    one_at_a_time   a stage adds one thought instead of c: step i goes when its first thought comes.
                    The remedy that appendix C.1 suggests for c = 3, which diverged
    mark_zero       stage 0 has the boundary tokens without a thought (ProsQA, ProntoQA); the
                    released GSM8k stage 0 is plain CoT (False)
    surplus         every visit thinks 0 to so many thoughts more, drawn anew: what a model may need
                    to bear another number of them at inference. No paper's
    """

    c: int = 1
    max_stage: int = 6
    pad_to_max: bool = True
    one_at_a_time: bool = False
    mark_zero: bool = True
    surplus: int = 0

    def __post_init__(self) -> None:
        need(self.c >= 1, "c", self.c, "1 or more; for c = 0 use Layout(thought='nothing')")
        need(self.surplus >= 0, "surplus", self.surplus, "0 or more")
        need(self.max_stage >= 0, "max_stage", self.max_stage, "0 or more")

    @property
    def last_stage(self) -> int:
        """The extra stage."""
        return self._full + 1

    @property
    def _full(self) -> int:
        return self.max_stage * self.c if self.one_at_a_time else self.max_stage

    def _thoughts(self, stage: int) -> int:
        return min(stage, self._full) * (1 if self.one_at_a_time else self.c)

    def plan(self, pieces: Pieces, stage: int, rng: np.random.Generator) -> Turns:
        """See the class."""
        num_steps = len(pieces.steps)
        more = int(rng.integers(self.surplus + 1)) if self.surplus else 0
        if stage > self._full:
            used = self.max_stage if self.pad_to_max else min(num_steps, self.max_stage)
            silent = tuple(range(min(num_steps, used)))
            return Turns((Think(used * self.c + more, silent, self.c),))
        if stage == 0 and not self.mark_zero:
            return Turns(_said(num_steps))
        hidden = -(-stage // self.c) if self.one_at_a_time else stage
        thoughts = self._thoughts(stage) + (more if stage else 0)
        think = Think(thoughts, tuple(range(min(num_steps, hidden))), self.c)
        return Turns((think, *_said(num_steps, hidden)))

    def script(self, stage: int) -> Script:
        """Think, then speak to the end."""
        if stage == 0 and not self.mark_zero:
            return Script((Speak(),))
        return Script((Think(self._thoughts(stage)), Speak()))


@dataclass(frozen=True)
class Rhythm:
    """Think `thoughts`, which hide `hidden` steps, then say `sentences`; again until the answer.

    The answer is the last sentence, and a block stands before every group of sentences, also where
    no step is left to hide. Therefore the script at inference needs no gold steps.

    hidden   0: thoughts are added and every step stays spoken
    lead     sentences spoken before the first block
    blocks   stage s thinks in the first s blocks (from `blocks` on in all) and says the rest
    """

    thoughts: int = 2
    hidden: int = 1
    sentences: int = 1
    lead: int = 0
    blocks: int = 3

    def __post_init__(self) -> None:
        for name in ("thoughts", "sentences", "blocks"):
            need(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("hidden", "lead"):
            need(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")

    @property
    def last_stage(self) -> int:
        """The stage with thoughts in every block."""
        return self.blocks

    def plan(self, pieces: Pieces, stage: int, rng: np.random.Generator) -> Turns:
        """See the class."""
        sentences = len(pieces.steps) + 1  # the answer is one
        turns: list[Think | Say] = []
        place, used = min(self.lead, sentences), 0
        turns += [Say(i) for i in range(place)]
        while place < sentences and (stage >= self.blocks or used < stage):
            behind = min(place + self.hidden, sentences - 1)  # the answer is never hidden
            each = max(1, self.thoughts // max(1, self.hidden))
            turns.append(Think(self.thoughts, tuple(range(place, behind)), each))
            place = behind
            turns += [Say(i) for i in range(place, place + self.sentences)]
            place, used = place + self.sentences, used + 1
        turns += [Say(i) for i in range(place, sentences)]
        return Turns(tuple(t for t in turns if isinstance(t, Think) or t.step < sentences - 1))

    def script(self, stage: int) -> Script:
        """The same rhythm for sentences that the model speaks."""
        lead = (Speak(self.lead),) if self.lead else ()
        block = (Think(self.thoughts), Speak(self.sentences))
        if stage >= self.blocks:
            return Script(lead, repeat=block)
        return Script((*lead, *(block * stage), Speak()))


def alternate(thoughts: int, *, silent: Literal["odd", "even"] = "odd", blocks: int = 3) -> Rhythm:
    """Hide every second step, counted from 1 (SpiralThinker, arXiv 2511.08983)."""
    need(silent in ("odd", "even"), "silent", silent, "'odd' or 'even'")
    return Rhythm(thoughts, hidden=1, sentences=1, lead=int(silent == "even"), blocks=blocks)


@dataclass(frozen=True)
class RandomSteps:
    """Stage s hides s steps drawn anew at every visit, `thoughts` each; neighbours share a block.

    Only a model that emits its own boundaries can follow it: there is no script.
    """

    thoughts: int = 2
    max_stage: int = 3

    def __post_init__(self) -> None:
        need(self.thoughts >= 1, "thoughts", self.thoughts, "1 or more")
        need(self.max_stage >= 0, "max_stage", self.max_stage, "0 or more")

    @property
    def last_stage(self) -> int:
        """The largest number of hidden steps."""
        return self.max_stage

    def plan(self, pieces: Pieces, stage: int, rng: np.random.Generator) -> Turns:
        """See the class."""
        order = rng.permutation(len(pieces.steps))
        return _hide(pieces, order[: min(stage, self.max_stage)].tolist(), self.thoughts)

    def script(self, stage: int) -> Script | None:
        """None, but for stage 0."""
        return Script((Speak(),)) if min(stage, self.max_stage) == 0 else None


@dataclass(frozen=True)
class EntropySteps:
    """Stage s hides the s steps with the highest, or lowest, score (mean token entropy).

    The field disagrees: SWITCH (arXiv 2606.13106) hides high entropy, HyRea hides low. Equal scores
    are taken in order. `inward.data.thoughts.latents.step_entropies` measures the scores.
    """

    thoughts: int = 2
    max_stage: int = 3
    which: Literal["high", "low"] = "high"

    def __post_init__(self) -> None:
        need(self.thoughts >= 1, "thoughts", self.thoughts, "1 or more")
        need(self.max_stage >= 0, "max_stage", self.max_stage, "0 or more")
        need(self.which in ("high", "low"), "which", self.which, "'high' or 'low'")

    @property
    def last_stage(self) -> int:
        """The largest number of hidden steps."""
        return self.max_stage

    def plan(self, pieces: Pieces, stage: int, rng: np.random.Generator) -> Turns:
        """See the class; raises ValueError if the pieces have no scores."""
        if len(pieces.scores) != len(pieces.steps):
            raise ValueError(
                f"{len(pieces.steps)} steps but {len(pieces.scores)} scores; EntropySteps needs "
                "one a step: measure them with inward.data.thoughts.latents.step_entropies"
            )
        scores = np.asarray(pieces.scores, dtype=float)
        order = np.argsort(-scores if self.which == "high" else scores, kind="stable")
        return _hide(pieces, order[: min(stage, self.max_stage)].tolist(), self.thoughts)

    def script(self, stage: int) -> Script | None:
        """None, but for stage 0."""
        return Script((Speak(),)) if min(stage, self.max_stage) == 0 else None


def _hide(pieces: Pieces, hidden: list[int], thoughts: int) -> Turns:
    """Say all steps but the hidden ones; hidden neighbours become one block."""
    turns: list[Think | Say] = []
    for i in range(len(pieces.steps)):
        if i not in hidden:
            turns.append(Say(i))
        elif turns and isinstance(last := turns[-1], Think):
            turns[-1] = Think(last.num + thoughts, (*last.steps, i), thoughts)
        else:
            turns.append(Think(thoughts, (i,), thoughts))
    return Turns(tuple(turns))


@dataclass(frozen=True)
class NextOnly:
    """Stage s: s * c thoughts, then step s + 1 alone; once no step is left, the answer.

    The targets of Reasoning by Superposition (arXiv 2505.12514), whose two-layer model learns
    breadth-first search when the step is drawn anew among the shortest paths at every visit. As
    there, a sample with L steps never gets more than L * c thoughts.
    """

    c: int = 1
    max_stage: int = 4

    def __post_init__(self) -> None:
        need(self.c >= 1, "c", self.c, "1 or more")
        need(self.max_stage >= 0, "max_stage", self.max_stage, "0 or more")

    @property
    def last_stage(self) -> int:
        """The largest number of hidden steps."""
        return self.max_stage

    def plan(self, pieces: Pieces, stage: int, rng: np.random.Generator) -> Turns:
        """See the class."""
        done = min(stage, self.max_stage, len(pieces.steps))
        thought = (Think(done * self.c, tuple(range(done)), self.c),)
        if done == len(pieces.steps):
            return Turns(thought)
        return Turns((*thought, Say(done)), answer=False)

    def script(self, stage: int) -> Script:
        """Think, then speak."""
        return Script((Think(min(stage, self.max_stage) * self.c), Speak()))


@dataclass(frozen=True)
class HiddenTokens:
    """Stage s removes the first s * per_stage *tokens* of the chain (iCoT, arXiv 2405.14838).

    A few more go by chance, o with probability proportional to exp(-smoothing * o), so that the
    next stage is no surprise; beyond `all_beyond` removed tokens the whole chain goes. Published
    for GSM8k: 8 tokens an epoch, all beyond 39, smoothing 4. There are no thoughts.
    """

    per_stage: int = 8
    all_beyond: int = 39
    smoothing: float = 4.0

    def __post_init__(self) -> None:
        need(self.per_stage >= 1, "per_stage", self.per_stage, "1 or more")
        need(self.all_beyond >= 0, "all_beyond", self.all_beyond, "0 or more")
        need(self.smoothing > 0, "smoothing", self.smoothing, "above 0; infinity removes no more")

    @property
    def last_stage(self) -> int:
        """The first stage that removes everything."""
        return self.all_beyond // self.per_stage + 1

    def plan(self, pieces: Pieces, stage: int, rng: np.random.Generator) -> Turns:
        """See the class."""
        offset = int(rng.geometric(1 - np.exp(-self.smoothing))) - 1
        if stage >= self.last_stage:
            return Turns(())
        skip, turns = stage * self.per_stage + offset, []
        for i, step in enumerate(pieces.steps):
            if skip < len(step):
                turns.append(Say(i, skip))
            skip = max(0, skip - len(step))
        return Turns(tuple(turns))

    def script(self, stage: int) -> Script:
        """Speak what is left of the chain."""
        return Script((Speak(),))


# --------------------------------------------------------------------------------------------------
# Controls


@dataclass(frozen=True)
class Cot:
    """Every step is spoken; no thoughts, no boundary tokens."""

    last_stage = 0

    def plan(self, pieces: Pieces, stage: int, rng: np.random.Generator) -> Turns:
        """All steps."""
        return Turns(_said(len(pieces.steps)))

    def script(self, stage: int) -> Script:
        """Speak."""
        return Script((Speak(),))


@dataclass(frozen=True)
class NoCot:
    """The answer right after the question."""

    last_stage = 0

    def plan(self, pieces: Pieces, stage: int, rng: np.random.Generator) -> Turns:
        """Nothing between question and answer."""
        return Turns(())

    def script(self, stage: int) -> Script:
        """Speak."""
        return Script((Speak(),))


@dataclass(frozen=True)
class Fixed:
    """`num` thoughts and the answer, from the start.

    With Layout(thought="pause") these are the pause tokens of arXiv 2310.02226.
    """

    num: int = 6
    last_stage = 0

    def __post_init__(self) -> None:
        need(self.num >= 1, "num", self.num, "1 or more; for none use NoCot")

    def plan(self, pieces: Pieces, stage: int, rng: np.random.Generator) -> Turns:
        """Thoughts, answer."""
        return Turns((Think(self.num),))

    def script(self, stage: int) -> Script:
        """Think, then speak."""
        return Script((Think(self.num), Speak()))


@dataclass(frozen=True)
class Mixture:
    """One set of weights in several modes (arXiv 2604.04902: direct, verbal and latent, 1:1:1).

    Each visit draws one of `modes` = ((pattern, weight), ...). A prompt chooses the mode: `<bot>`
    for latent, the answer mark for direct, neither for verbal.
    """

    modes: tuple[tuple[Pattern, float], ...]

    def __post_init__(self) -> None:
        need(len(self.modes) > 0, "modes", self.modes, "one or more (pattern, weight) pairs")
        weights = [weight for _, weight in self.modes]
        need(min(weights) >= 0 < sum(weights), "weights", weights, "0 or more, not all 0")

    @property
    def last_stage(self) -> int:
        """Of the mode with most stages."""
        return max(pattern.last_stage for pattern, _ in self.modes)

    def plan(self, pieces: Pieces, stage: int, rng: np.random.Generator) -> Turns:
        """Plan of a mode drawn by weight."""
        weights = np.array([weight for _, weight in self.modes])
        chosen = int(rng.choice(len(weights), p=weights / weights.sum()))
        return self.modes[chosen][0].plan(pieces, stage, rng)

    def script(self, stage: int) -> Script | None:
        """None: ask the pattern of the mode that you want to use."""
        return None
