"""When to stop thinking.

A rule looks at what a step produced and says, row by row, whether that row is done. Rules hold no
state: what they need from earlier steps is in the view they are given, so rows may leave a batch
and others take their place. Any function from a view to a boolean tensor is a rule too.

Answers that are refined (TRM; a step is a supervision step, rules get a `StepView`):

    QHalt(0.0)            the model's own halting head says "right" (TRM paper, section 4.6)
    ArgmaxStable(3)       the answer has not changed for 3 steps
    LatentChange(1e-3)    the latent moved by less than this share (FPRM, arXiv 2606.18206)
    Never()               the step budget alone ends it
    AllOf(QHalt(), ArgmaxStable(2))

Language models of recurrent depth (Huginn, arXiv 2502.05171, section 6.1; a step is a recurrence of
one token, rules get a `DepthView`; s_i is the state and p_i the output after recurrence i):

    EntropyChange(1e-3)   |H(p_i) - H(p_{i-1})| is below
    KL(5e-4)              KL(p_{i-1} || p_i) is below (the paper's rule and threshold)
    MinPKL(1e-5)          the same of distributions whose improbable tokens are all made equal
    LatentChange(0.03)    |s_i - s_{i-1}| / |s_i| is below
    Cosine(1e-3)          1 - cos(s_i, s_{i-1}) is below
    ArgmaxStable(5)       the likeliest token has not changed for 5 recurrences
    Recurrences(8)        this many, whatever they say
    Never(), AllOf(a, b), AnyOf(a, b)

Rules on p need the read-out, a good share of a recurrence's cost; the view reads it out only when a
rule asks. A prompt takes one decision: rules on s average over its tokens, rules on p look at the
last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inward.common.checks import takes


@dataclass(frozen=True)
class StepView:
    """One step of the rows in work, B of them.

    step: (B,) how many steps each row has had, this one included.
    q: (B,) halting logits.
    tokens: (B, L) the answer now.
    stable_for: (B,) how many steps in a row left the answer as it was (0 after a change, and after
        step 1).
    change: (B,) |new - old| / |old| of the latent.
    """

    step: Tensor
    q: Tensor
    tokens: Tensor
    stable_for: Tensor
    change: Tensor


Rule = Callable[[Any], Tensor]
"""`StepView` or `DepthView` of B rows -> (B,) boolean"""


class Seen:
    """What the last look at the output left behind, for N rows; before the first look, nothing.

    looks: (N,) how often the output of this row's token has been looked at.
    logits: (N, V) float32, those of the last look; zeros (a uniform output) before.
    top: (N,) their likeliest token, -1 before;  stable_for: (N,) how many looks in a row it held.
    """

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.looks = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.logits = torch.zeros(num_rows, vocab_size, device=device)
        self.top = torch.full_like(self.looks, -1)
        self.stable_for = torch.zeros_like(self.looks)

    def forget(self, rows: Tensor) -> None:
        """These rows (R,) begin another token."""
        self.looks[rows] = 0
        self.logits[rows] = 0.0
        self.top[rows] = -1
        self.stable_for[rows] = 0

    def grow(self, num_rows: int) -> None:
        """So many more rows, of which nothing has been seen."""
        more = Seen(num_rows, self.logits.shape[1], self.logits.device)
        for name in ("looks", "logits", "top", "stable_for"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(more, name)]))

    def update(self, view: DepthView) -> None:
        """Keep what a rule looked at, if it did."""
        if not view.was_read:
            return
        self.stable_for[view.rows] = view.stable_for
        self.top[view.rows] = view.logits.argmax(-1)
        self.logits[view.rows] = view.logits
        self.looks[view.rows] += 1


@dataclass(frozen=True)
class DepthView:
    """One recurrence of the rows in work: B rows, each at one token (S = 1) or at a prompt of S.

    step: (B,) recurrences that this token has had, this one included.
    index: (B,) which new token this decides, from 0, the one that the prompt predicts.
    text: (B,) which prompt of the call it belongs to.
    state, before: (B, S, d) raw state after this recurrence and before it.
    read_out: () -> (B, V) logits of the last token; called once, when a rule asks for `logits`.
    seen, rows: earlier looks at the output, and where these rows stand there (B,).
    counts: (B, S) True where a token counts (not padding); None: all do.
    """

    step: Tensor
    index: Tensor
    text: Tensor
    state: Tensor
    before: Tensor
    read_out: Callable[[], Tensor]
    seen: Seen
    rows: Tensor
    counts: Tensor | None = None

    @cached_property
    def logits(self) -> Tensor:
        """(B, V) float32 output after this recurrence, of the last token."""
        return self.read_out().float()

    @property
    def was_read(self) -> bool:
        """Whether a rule asked for the output, so that the read-out was paid for."""
        return "logits" in self.__dict__

    @property
    def looks(self) -> Tensor:
        """(B,) earlier looks at this token's output."""
        return self.seen.looks[self.rows]

    @property
    def previous_logits(self) -> Tensor:
        """(B, V) the output at the last look; zeros, a uniform output, before the first."""
        return self.seen.logits[self.rows]

    @cached_property
    def stable_for(self) -> Tensor:
        """(B,) how many looks in a row, this one included, left the likeliest token as it was."""
        same = self.logits.argmax(-1) == self.seen.top[self.rows]
        return torch.where(same, self.seen.stable_for[self.rows] + 1, 0)

    @cached_property
    def change(self) -> Tensor:
        """(B,) |s_i - s_{i-1}| / |s_i|, mean over the tokens; never small where s_i = 0."""
        new, old = self.state.float(), self.before.float()
        return self._mean((new - old).norm(dim=-1) / new.norm(dim=-1))

    @cached_property
    def turn(self) -> Tensor:
        """(B,) 1 - cos(s_i, s_{i-1}), mean over the tokens; 1 where one of them is 0."""
        return self._mean(1 - F.cosine_similarity(self.state.float(), self.before.float(), dim=-1))

    def _mean(self, of_tokens: Tensor) -> Tensor:
        if self.counts is None:
            return of_tokens.mean(1)
        return (of_tokens * self.counts).sum(1) / self.counts.sum(1)


@dataclass(frozen=True)
class QHalt:
    """Done when the halting logit exceeds `threshold` (0: probability one half)."""

    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise ValueError(
                f"QHalt: threshold {self.threshold} would never fire or always; use a finite "
                "logit, or Never()"
            )

    def __call__(self, view: StepView) -> Tensor:
        return view.q > self.threshold


@dataclass(frozen=True)
class ArgmaxStable:
    """Done when the answer was left unchanged by `times` steps in a row."""

    times: int = 2

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"ArgmaxStable: times is {self.times}, must be at least 1")

    def score(self, view: StepView | DepthView) -> Tensor:
        """(B,) what is compared with `times`."""
        return view.stable_for

    def __call__(self, view: StepView | DepthView) -> Tensor:
        return self.score(view) >= self.times


@dataclass(frozen=True)
class LatentChange:
    """Done when a step moved the latent by less than `threshold` of its length."""

    threshold: float = 1e-3

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < math.inf:
            raise ValueError(
                f"LatentChange: threshold {self.threshold} can never fire, or always fires; "
                "use a small positive share"
            )

    def score(self, view: StepView | DepthView) -> Tensor:
        """(B,) what is compared with `threshold`."""
        return view.change

    def __call__(self, view: StepView | DepthView) -> Tensor:
        return self.score(view) < self.threshold


@dataclass(frozen=True)
class EntropyChange:
    """Done when the entropy of the output moved by less than `threshold` (nats) since the last
    look; never at the first."""

    threshold: float = 1e-3

    def __post_init__(self) -> None:
        _check_small("EntropyChange", self.threshold)

    def score(self, view: DepthView) -> Tensor:
        """(B,) what is compared with `threshold`."""
        return (_entropy(view.logits) - _entropy(view.previous_logits)).abs()

    def __call__(self, view: DepthView) -> Tensor:
        return (self.score(view) < self.threshold) & (view.looks > 0)


@dataclass(frozen=True)
class KL:
    """Done when KL(p_{i-1} || p_i) < `threshold` (nats); p_0 is uniform."""

    threshold: float = 5e-4

    def __post_init__(self) -> None:
        _check_small("KL", self.threshold)

    def score(self, view: DepthView) -> Tensor:
        """(B,) what is compared with `threshold`."""
        old, new = view.previous_logits.log_softmax(-1), view.logits.log_softmax(-1)
        return (old.exp() * (old - new)).sum(-1)

    def __call__(self, view: DepthView) -> Tensor:
        return self.score(view) < self.threshold


@dataclass(frozen=True)
class MinPKL:
    """As KL, after every token under `min_p` times the likeliest one's probability was given the
    probability 1 / V and the rest was scaled to sum to 1: the tail has no say."""

    threshold: float = 1e-5
    min_p: float = 0.1

    def __post_init__(self) -> None:
        _check_small("MinPKL", self.threshold)
        if not 0.0 < self.min_p < 1.0:
            raise ValueError(f"MinPKL: min_p is {self.min_p}, must lie between 0 and 1")

    def score(self, view: DepthView) -> Tensor:
        """(B,) what is compared with `threshold`."""
        old, new = self._level(view.previous_logits), self._level(view.logits)
        return (old * (old.log() - new.log())).sum(-1)

    def __call__(self, view: DepthView) -> Tensor:
        return self.score(view) < self.threshold

    def _level(self, logits: Tensor) -> Tensor:
        p = logits.softmax(-1)
        p = p.where(p >= self.min_p * p.max(-1, keepdim=True).values, 1 / p.shape[-1])
        return p / p.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Cosine:
    """Done when 1 - cos(s_i, s_{i-1}) < `threshold`."""

    threshold: float = 1e-3

    def __post_init__(self) -> None:
        _check_small("Cosine", self.threshold)

    def score(self, view: DepthView) -> Tensor:
        """(B,) what is compared with `threshold`."""
        return view.turn

    def __call__(self, view: DepthView) -> Tensor:
        return self.score(view) < self.threshold


@dataclass(frozen=True)
class Recurrences:
    """Done after `num` recurrences."""

    num: int

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError(f"Recurrences: num is {self.num}, must be at least 1")

    def __call__(self, view: DepthView) -> Tensor:
        return view.step >= self.num


@dataclass(frozen=True)
class Never:
    """Only the step budget ends a row."""

    def __call__(self, view: StepView | DepthView) -> Tensor:
        return torch.zeros_like(view.step, dtype=torch.bool)


@dataclass(frozen=True)
class AllOf:
    """Done when every one of the rules says so."""

    first: Rule
    second: Rule

    def __call__(self, view: StepView | DepthView) -> Tensor:
        return self.first(view) & self.second(view)


@dataclass(frozen=True)
class AnyOf:
    """Done when one of the rules says so."""

    first: Rule
    second: Rule

    def __call__(self, view: StepView | DepthView) -> Tensor:
        return self.first(view) | self.second(view)


def _entropy(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def _check_small(name: str, threshold: float) -> None:
    if not 0.0 < threshold < math.inf:
        raise ValueError(
            f"{name}: threshold {threshold} can never fire, or always fires; use a small positive "
            "number, or Never()"
        )


NAMED: dict[str, Rule] = {
    "q": QHalt(),
    "stable": ArgmaxStable(),
    "q+stable": AllOf(QHalt(), ArgmaxStable(1)),
    "never": Never(),
}


def rule(choice: str | Rule) -> Rule:
    """The rule of that name, or the rule itself.

    Raises:
        ValueError: there is no rule of that name.
    """
    if not isinstance(choice, str):
        return choice
    if choice not in NAMED:
        raise ValueError(f"there is no halting rule {choice!r}; named rules are {', '.join(NAMED)}")
    return NAMED[choice]


NAMED_DEPTH: dict[str, Rule] = {
    "entropy": EntropyChange(),
    "kl": KL(),
    "minp-kl": MinPKL(),
    "latent": LatentChange(0.03),
    "cosine": Cosine(),
    "stable": ArgmaxStable(5),
    "never": Never(),
}
"""The paper's rules with the thresholds of its code, KL with the paper's."""


def depth_rule(choice: str | Rule, *, max_steps: int, min_steps: int = 1, every: int = 1) -> Rule:
    """The rule of that name, or the rule itself, for tokens of at most `max_steps` recurrences.

    Args:
        choice: one of NAMED_DEPTH, a rule, or a function (B rows' DepthView) -> (B,) bool.
        max_steps, min_steps, every: the rule is asked at recurrences min_steps, min_steps + every,
            ... up to max_steps.
    Raises:
        ValueError: no rule of that name; a rule that can never fire, or that needs what a language
            model does not have.
    """
    if isinstance(choice, str):
        if choice not in NAMED_DEPTH:
            raise ValueError(
                f"there is no halting rule {choice!r}; named rules are {', '.join(NAMED_DEPTH)}"
            )
        choice = NAMED_DEPTH[choice]
    if not takes(choice, 1):
        raise ValueError(f"halt is {choice!r}, expected a name, a rule, or a function of a view")
    for name, value in (("max_steps", max_steps), ("min_steps", min_steps), ("every", every)):
        if value < 1:
            raise ValueError(f"{name} is {value}, must be at least 1 recurrence")
    if min_steps > max_steps:
        raise ValueError(f"min_steps {min_steps} exceeds max_steps {max_steps}")
    if choice == Never():
        return choice
    first = _earliest(choice, min_steps, every)
    if first >= max_steps and choice != Recurrences(max_steps):
        raise ValueError(
            f"{choice} can never fire before the budget of {max_steps} recurrences: it is first "
            f"able to at {first} (min_steps {min_steps}, asked every {every}); raise max_steps, "
            "lower what it waits for, or take 'never'"
        )
    return choice


def _earliest(choice: Rule, min_steps: int, every: int) -> int:
    """The first recurrence at which the rule, as far as is known of it, could fire."""

    def asked(least: int) -> int:  # the first time it is asked with `step` at least that
        return min_steps + every * math.ceil(max(0, least - min_steps) / every)

    match choice:
        case QHalt():
            raise ValueError(
                "QHalt reads a halting head, which a language model does not have; use "
                f"one of {', '.join(NAMED_DEPTH)}"
            )
        case ArgmaxStable(times):
            return min_steps + every * times
        case EntropyChange():
            return min_steps + every
        case Recurrences(num):
            return asked(num)
        case AllOf(first, second):
            return max(_earliest(r, min_steps, every) for r in (first, second))
        case AnyOf(first, second):
            return min(_earliest(r, min_steps, every) for r in (first, second))
        case Never():
            return 1 << 62
    return min_steps


def score(choice: Rule, view: DepthView) -> list[float] | None:
    """The number of each row that the rule compares with its threshold, for a record; None: it
    compares no single number. Asked before `Seen.update`, as the rule itself."""
    own = getattr(choice, "score", None)
    return None if own is None else own(view).tolist()


def verdict(choice: Rule, view: DepthView) -> Tensor:
    """What the rule says of these rows, checked: (B,) bool.

    Raises:
        ValueError: a function that does not return one boolean a row.
    """
    done = choice(view)
    if not isinstance(done, Tensor) or done.dtype != torch.bool or done.shape != view.step.shape:
        raise ValueError(
            f"the halting rule returned {type(done).__name__} {tuple(getattr(done, 'shape', ()))}, "
            f"expected a boolean tensor of {tuple(view.step.shape)}"
        )
    return done
