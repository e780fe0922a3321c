"""Who switches between silence and speech, position by position, row by row.

A switch looks at a `SwitchView` of rows and says which of them think at the next position. It
holds no state; what it needs from before is in the view, so rows may be at different places. Any
function from a view to a boolean tensor is a switch.

    Speaking()                    never starts to think: the thoughts are in the prompt (Coconut)
    Scripted((2, 2), ends={13})   two thoughts, a sentence, two thoughts, speech: as in data
    Boundary()                    the model says <bot> and <eot> itself (SWITCH, arXiv 2606.13106)
    EntropySwitch(dwell=64)       think when unsure, speak when sure (SwiReasoning, 2510.05069)
    Budget(switch, ...)           another switch within bounds

By name, with their numbers: "speak", "boundary:threshold=0.4", "entropy:dwell=64,longest=16",
"budget:of=entropy,total=12" (`named`). The work does the rest: when a row begins to think it says
<bot>, when it ends it says <eot> (unless the model has no boundary tokens), and never says them at
any other time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from inward.common.checks import takes
from inward.data.thoughts.segments import Specials


@dataclass(frozen=True)
class SwitchView:
    """B rows before their next position.

    thinking: (B,) bool, inside a block of thoughts.
    run: (B,) positions since the last switch: thoughts of the open block, or tokens spoken.
    thoughts, blocks: (B,) thoughts, and blocks begun, in all; those of the prompt included.
    said: per row the tokens spoken since the last block (since the prompt's end, if none).
    logits: (B, V) float32, what the model would say next, as it comes from the model.
    reference: (B,) entropy at the last switch; NaN before the first.
    propose: () -> (B,) the token that would be spoken if <bot> were a word like others.
    """

    specials: Specials
    thinking: Tensor
    run: Tensor
    thoughts: Tensor
    blocks: Tensor
    said: Sequence[Sequence[int]]
    logits: Tensor
    reference: Tensor
    propose: Callable[[], Tensor]

    @cached_property
    def logp(self) -> Tensor:
        """(B, V) log-probabilities of the model's own distribution (temperature 1, unfiltered)."""
        return self.logits.log_softmax(-1)

    @cached_property
    def entropy(self) -> Tensor:
        """(B,) nats, of the model's own distribution."""
        return -(self.logp.exp() * self.logp).nan_to_num(0.0).sum(-1)

    @cached_property
    def proposed(self) -> Tensor:
        """(B,) the token that would be spoken next, <bot> included."""
        return self.propose()

    def probability(self, token: int) -> Tensor:
        """(B,) of a token under the model's own distribution."""
        return self.logp[:, token].exp()


Switch = Callable[[SwitchView], Tensor]
"""(B,) bool: think at the next position"""


@dataclass(frozen=True)
class Speaking:
    """Never think; a block that the prompt left open is closed."""

    def __call__(self, view: SwitchView) -> Tensor:
        return torch.zeros_like(view.thinking)


@dataclass(frozen=True)
class Scripted:
    """Fixed switching: block j has thoughts[j] thoughts, and `sentences` sentences lie between
    blocks ("k thoughts, then m sentences"). Blocks of the prompt count.

    thoughts: thoughts of each block; after the last block the model speaks to its end.
    sentences, ends: a sentence ends with one of these tokens.
    """

    thoughts: tuple[int, ...]
    sentences: int = 1
    ends: Collection[int] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        if not self.thoughts or min(self.thoughts) < 1 or self.sentences < 1:
            raise ValueError(
                f"Scripted: thoughts {self.thoughts} and sentences {self.sentences} must be 1 or "
                "more"
            )
        if len(self.thoughts) > 1 and not self.ends:
            raise ValueError(
                "Scripted: several blocks need to know where a sentence ends; pass ends={token, "
                "...}"
            )

    def __call__(self, view: SwitchView) -> Tensor:
        lengths = torch.tensor([*self.thoughts, 0], device=view.run.device)
        current = lengths[(view.blocks - 1).clamp(0, len(self.thoughts))]
        said = [sum(token in self.ends for token in row) for row in view.said]
        spoken = torch.tensor(said, device=view.run.device) >= self.sentences
        begins = (view.blocks < len(self.thoughts)) & (spoken | (view.blocks == 0))
        return torch.where(view.thinking, view.run < current, begins)


@dataclass(frozen=True)
class Boundary:
    """Learned switching: a row thinks when the model says <bot>, until the probability of <eot>
    exceeds `threshold` or the block has `longest` thoughts."""

    threshold: float = 0.5
    longest: int = 32

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0 or self.longest < 1:
            raise ValueError(
                f"Boundary: threshold {self.threshold} must be a probability and longest "
                f"{self.longest} at least 1"
            )

    def __call__(self, view: SwitchView) -> Tensor:
        on = view.probability(view.specials.eot) <= self.threshold
        stays = on & (view.run < self.longest)
        return torch.where(view.thinking, stays, view.proposed == view.specials.bot)


@dataclass(frozen=True)
class EntropySwitch:
    """Entropy trend: think when the entropy rises above what it was at the last switch, speak as
    soon as it falls below. Begins with thinking, as SwiReasoning does.

    dwell: tokens spoken before thinking may begin again (paper: 512).
    longest: thoughts of a block at most.
    max_blocks: after so many the row speaks to its end.

    Left out of SwiReasoning: the blend of think-token embeddings at a switch, and the phrase that
    forces a final answer.
    """

    dwell: int = 512
    longest: int = 512
    max_blocks: int = 8

    def __post_init__(self) -> None:
        if self.dwell < 0 or self.longest < 1 or self.max_blocks < 0:
            raise ValueError(
                f"EntropySwitch: dwell {self.dwell} and max_blocks {self.max_blocks} must be 0 or "
                f"more, longest {self.longest} 1 or more"
            )

    def __call__(self, view: SwitchView) -> Tensor:
        first = (view.blocks == 0) & (view.run == 0)
        unsure = (view.entropy > view.reference) & (view.run >= self.dwell)
        begins = (first | unsure) & (view.blocks < self.max_blocks)
        stays = ~(view.entropy < view.reference) & (view.run < self.longest)
        return torch.where(view.thinking, stays, begins)


@dataclass(frozen=True)
class Budget:
    """Another switch within bounds: at least `least` and at most `most` thoughts a block, at most
    `total` thoughts a row (the prompt's included)."""

    switch: Switch
    total: int | None = None
    least: int = 0
    most: int | None = None

    def __post_init__(self) -> None:
        numbers = [n for n in (self.total, self.least, self.most) if n is not None]
        if min(numbers) < 0 or (self.most is not None and self.most < self.least):
            raise ValueError(
                f"Budget: total {self.total}, least {self.least} and most {self.most} must be 0 or "
                "more, and most not below least"
            )

    def __call__(self, view: SwitchView) -> Tensor:
        silent = self.switch(view) | (view.thinking & (view.run < self.least))
        if self.most is not None:
            silent &= ~view.thinking | (view.run < self.most)
        if self.total is not None:
            silent &= view.thoughts < self.total
        return silent


# --------------------------------------------------------------------------------------------------
# By name

NAMED: Mapping[str, Callable[..., Any]] = {
    "speak": Speaking,
    "boundary": Boundary,
    "entropy": EntropySwitch,
    "budget": Budget,
}


def named(choice: str | Switch) -> Switch:
    """A switch by its name and numbers: "entropy", "entropy:dwell=64,longest=16"; "budget" bounds
    the one that `of` names (Boundary without it): "budget:of=entropy,total=12". Others are
    returned as they are.

    Raises:
        ValueError: no such name or number, a number out of range, or no function at all.
    """
    if not isinstance(choice, str):
        if not takes(choice, 1):
            raise ValueError(
                f"switch is {choice!r}; give a name ({', '.join(NAMED)}), or a function of a view"
            )
        return choice
    name, _, rest = choice.partition(":")
    if name not in NAMED:
        raise ValueError(f"there is no switch {name!r}; there are {', '.join(NAMED)}")
    numbers = dict(_number(choice, part) for part in rest.split(",") if part)
    if name == "budget":
        numbers["switch"] = named(str(numbers.pop("of", "boundary")))
    try:
        return NAMED[name](**numbers)
    except TypeError as error:
        fields = [field for field in NAMED[name].__dataclass_fields__ if field != "switch"]
        raise ValueError(
            f"switch {choice!r}: {name} has the numbers {', '.join(fields) or 'none'}"
        ) from error


def _number(choice: str, part: str) -> tuple[str, Any]:
    """dwell=64 -> ("dwell", 64)"""
    name, equals, value = part.partition("=")
    if equals and name == "of":
        return name, value
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    raise ValueError(f"switch {choice!r}: {part!r} is no number; write name=number")
