"""Scoring questions together with their swaps, the same for every task that has them.

The *paired* score counts a question only if its swap, which must flip the answer, is right too: a
rule that is blind to what is asked gets 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from inward.data.thoughts.records import Record


class Scored(Protocol):
    """What is known of one output."""

    @property
    def right(self) -> bool:
        """Whether the answer is."""
        ...


S = TypeVar("S", bound=Scored, covariant=True)


class PairedTask(Protocol[S]):
    """What `scores` needs of a task."""

    def score(self, record: Record, text: str) -> S:
        """Judge what was said after the question."""
        ...

    def swap(self, records: Sequence[Record]) -> list[Record]:
        """The swapped question of each record that was asked."""
        ...


def scores(
    task: PairedTask[S],
    records: Sequence[Record],
    texts: Sequence[str],
    swapped_texts: Sequence[str] | None,
) -> tuple[list[S], list[S]]:
    """Scores of the outputs, one a record, and of those of the swapped questions (none: []).

    Raises ValueError if the numbers of records and outputs differ, or are 0.
    """
    for name, given in (("texts", texts), ("swapped_texts", swapped_texts)):
        if given is not None and (len(given) != len(records) or not records):
            raise ValueError(f"{len(records)} records but {len(given)} {name}; give one each")
    asked = [task.score(record, text) for record, text in zip(records, texts, strict=True)]
    if swapped_texts is None:
        return asked, []
    swaps = zip(task.swap(records), swapped_texts, strict=True)
    return asked, [task.score(record, text) for record, text in swaps]


def accuracies(asked: Sequence[Scored], swapped: Sequence[Scored]) -> dict[str, float]:
    """accuracy of the questions; with swaps also paired (both right) and both_sides (the mean)."""
    right = np.array([score.right for score in asked])
    metrics = {"accuracy": float(right.mean())}
    if swapped:
        also = np.array([score.right for score in swapped])
        metrics["paired"] = float((right & also).mean())
        metrics["both_sides"] = float((right.mean() + also.mean()) / 2)
    return metrics
