"""When to stop thinking.

A rule looks at what a step produced and says, row by row, whether that row is done. Rules hold no
state: what they
need from earlier steps is in the view they are given, so rows may leave a batch and others take
their place.

    QHalt(0.0)            the model's own halting head says "right" (TRM paper, section 4.6)
    ArgmaxStable(3)       the answer has not changed for 3 steps
    LatentChange(1e-3)    the latent moved by less than this share (FPRM, arXiv 2606.18206)
    Never()               the step budget alone ends it
    AllOf(QHalt(), ArgmaxStable(2))

Any function from a `View` to a boolean tensor is a rule too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
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


Rule = Callable[[View], Tensor]


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

    def __call__(self, view: View) -> Tensor:
        return view.q > self.threshold


@dataclass(frozen=True)
class ArgmaxStable:
    """Done when the answer was left unchanged by `times` steps in a row."""

    times: int = 2

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"ArgmaxStable: times is {self.times}, must be at least 1")

    def __call__(self, view: View) -> Tensor:
        return view.stable_for >= self.times


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

    def __call__(self, view: View) -> Tensor:
        return view.change < self.threshold


@dataclass(frozen=True)
class Never:
    """Only the step budget ends a row."""

    def __call__(self, view: View) -> Tensor:
        return torch.zeros_like(view.q, dtype=torch.bool)


@dataclass(frozen=True)
class AllOf:
    """Done when every one of the rules says so."""

    first: Rule
    second: Rule

    def __call__(self, view: View) -> Tensor:
        return self.first(view) & self.second(view)


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
