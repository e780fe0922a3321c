"""Does a puzzle model know when it is wrong? Coverage against accuracy, by what speaks for an
answer.

    believed    sigmoid of the halting logit of the chosen chain, at least 1/2
    agreement   more than half of the views of the puzzle give this answer
    both        believed, and agreed upon: what `abstain=True` asks where there are no rules
    rules       it obeys the rules and keeps the clues: what `abstain=True` asks where there are

Coverage is the share of puzzles that are answered, accuracy the share of these that is right. An
answer is right if the rules say so; for puzzles with one solution that is the solution, and for
those without any nothing is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inward.evals.stats import calibration_error

if TYPE_CHECKING:
    from inward.data.puzzles.puzzles import Puzzles


@dataclass(frozen=True)
class Known:
    """What speaks for each of N answers, and whether it is right.

    believed: (N,) in [0, 1]. agreement: (N,) share of the chains that give it. right: (N,) bool.
    """

    believed: np.ndarray
    agreement: np.ndarray
    right: np.ndarray

    def given(self) -> dict[str, np.ndarray]:
        """(N,) bool for each rule of the table above: which answers are given."""
        believed, agree = self.believed >= 0.5, self.agreement > 0.5
        return {
            "always": np.ones_like(self.right),
            "believed": believed,
            "agreement": agree,
            "both": believed & agree,
            "rules": self.right,
        }

    def row(self) -> dict[str, Any]:
        """Numbers of a results row: coverage and accuracy by rule (accuracy None if nothing is
        answered), calibration error and mean belief."""
        found: dict[str, Any] = {"num": len(self.right), "right": float(self.right.mean())}
        for name, given in self.given().items():
            accuracy = float(self.right[given].mean()) if given.any() else None
            found[name] = {"coverage": float(given.mean()), "accuracy": accuracy}
        found["mean_belief"] = float(self.believed.mean())
        return found | {"calibration_error": calibration_error(self.believed, self.right)}


def known(
    model: Any,
    puzzles: Puzzles,
    task: Any,
    *,
    views: int = 5,
    max_steps: int | None = None,
    seed: int = 0,
) -> Known:
    """Answer every puzzle once in each view; the chain that is believed most answers.

    Raises:
        ValueError: fewer than two views, which cannot disagree.
    """
    if views < 2:
        raise ValueError(f"views is {views}; agreement needs 2 or more")
    rng = np.random.default_rng(seed)
    symmetries = [task.symmetry(rng) for _ in range(views - 1)]
    solution = model.solve(puzzles.inputs, max_steps=max_steps, symmetries=symmetries)
    answers = solution.answers.numpy()
    votes = [
        next(num for tokens, num in found if np.array_equal(tokens, answer))
        for found, answer in zip(solution.candidates, answers, strict=True)
    ]
    believed = 1 / (1 + np.exp(-solution.q.numpy().astype(np.float64)))
    right = task.verify(puzzles.inputs, answers)
    return Known(believed, np.array(votes) / views, right)


def joined(parts: Mapping[str, Known]) -> Known:
    """All sets as one: what a person who pastes anything meets."""
    rows = list(parts.values())
    names = ("believed", "agreement", "right")
    return Known(*(np.concatenate([getattr(row, name) for row in rows]) for name in names))
