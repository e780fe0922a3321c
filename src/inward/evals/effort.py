"""Effort: points on the frontier of accuracy against cost, measured on validation data.

    points = measure(thinker, held_out(recipe, num=200), candidates(thinker.method))
    save(folder, choose(points))            "low", "medium", "high" in the model's inward.json

A word of effort is a promise that more of it buys something. So a point lies on the frontier (no
cheaper candidate is as good), and low and high must differ by more than noise (the paired interval
of their difference lies above 0); else the model has no dial, and the reason is saved instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inward import hub
from inward.evals.questions import HeldOut, held_out
from inward.evals.stats import Interval, paired_difference, wilson

if TYPE_CHECKING:
    from inward.common.thinking import Method
    from inward.thinker import Thinker

__all__ = ["HeldOut", "Point", "candidates", "choose", "frontier", "held_out", "measure", "save"]

HALF = 0.5
"""Low is the cheapest point with at least this share of high's accuracy."""


@dataclass(frozen=True, eq=False)
class Point:
    """What some options bought: right (N,) bool, mean FLOPs and steps of an answer."""

    own: Mapping[str, Any]
    right: np.ndarray
    flops: float
    steps: float

    @property
    def accuracy(self) -> Interval:
        """Share of right answers with its 95 % interval."""
        return wilson(int(self.right.sum()), len(self.right))

    def to_dict(self) -> dict[str, Any]:
        """As it is saved."""
        share = self.accuracy
        return {
            "own": dict(self.own),
            "accuracy": share.value,
            "interval": [share.low, share.high],
            "num": len(self.right),
            "flops": self.flops,
            "steps": self.steps,
        }


# --------------------------------------------------------------------------------------------------
# Points


def candidates(method: Method, thinker: Thinker) -> list[dict[str, Any]]:
    """What is tried, cheap to dear: doublings of the method's unit, and for puzzles further views
    at the largest.

    Raises:
        ValueError: the method has no dial.
    """
    if method.unit is None:
        raise ValueError(f"{thinker.name or method.name}: {method.why_no_effort}")
    option, _ = method.unit
    if option == "votes":
        return [{"votes": n} for n in (1, 3, 5, 9)]
    tried: list[dict[str, Any]] = [{option: 2**k} for k in range(7)]
    if "views" in method.options:
        most = tried[-1][option]
        tried += [{option: most, "views": n} for n in (2, 4, 8, 16)]
    return tried


def measure(
    thinker: Thinker,
    asked: Sequence[HeldOut],
    tried: Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int | None = None,
    progress: Callable[[Point], None] | None = None,
) -> list[Point]:
    """Ask all questions with each of the options."""
    more = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    points = []
    for own in tried:
        answers = thinker.ask([one.question for one in asked], **more, **own)
        if failed := [a.error for a in answers if a.error]:
            raise ValueError(f"{dict(own)}: {failed[0]}")
        right = np.array([one.right(a) for one, a in zip(asked, answers, strict=True)])
        flops = float(np.mean([a.cost.flops for a in answers]))
        points.append(Point(own, right, flops, float(np.mean([a.steps for a in answers]))))
        if progress is not None:
            progress(points[-1])
    return points


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no cheaper one equals, from cheap to dear."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.flops, -p.accuracy.value)):
        if not kept or point.accuracy.value > kept[-1].accuracy.value:
            kept.append(point)
    return kept


def choose(points: Sequence[Point]) -> dict[str, Any]:
    """The "effort" of inward.json: points for low, medium and high, or why there are none."""
    kept = frontier(points)
    high = kept[-1]
    low = next(p for p in kept if p.accuracy.value >= HALF * high.accuracy.value)
    gain = paired_difference(high.right, low.right).difference
    if low is high or gain.low <= 0:
        return {
            "why_not": (
                f"more thinking buys nothing here that {len(high.right)} validation questions "
                f"could tell from noise ({high.accuracy.value:.1%} against "
                f"{low.accuracy.value:.1%}, difference {gain.low:+.1%} to {gain.high:+.1%})"
            ),
            "tried": [p.to_dict() for p in points],
        }
    middle = np.sqrt(low.flops * high.flops)
    between = [p for p in kept if low.flops < p.flops < high.flops] or [low]
    medium = min(between, key=lambda p: abs(np.log(p.flops / middle)))
    named = {"low": low, "medium": medium, "high": high}
    return {
        "points": {word: point.to_dict() for word, point in named.items()},
        "gain": {"difference": gain.value, "interval": [gain.low, gain.high]},
        "tried": [p.to_dict() for p in points],
    }


def save(folder: Path, effort: Mapping[str, Any], command: str = "") -> None:
    """Put the points into a model's inward.json."""
    hub.write_about(folder, effort={**effort, "command": command})
