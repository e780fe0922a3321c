"""What the rows of a task say: accuracies with intervals, and who beats whom.

An arm beats another only if the interval of their paired difference, question by question, does not
hold 0; else they tie. It dominates if it also takes no more FLOPs an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inward.evals.stats import Interval, Paired, over_seeds, paired_difference, wilson
from inward.studies.frontier.rows import Row, bits, effort_of, of_run, selected
from inward.studies.frontier.tasks import FrontierTask

CEILING = 0.98
"""above it, for all arms, a task is too easy to compare them"""


@dataclass(frozen=True)
class Standing:
    """An arm on a task, at the effort chosen on validation; means over its seeds.

    accuracy: over seeds (Student's interval), of one seed Wilson's. flops, tokens, seconds: of an
    answer. training: FLOPs of a run.
    """

    arm: str
    seeds: tuple[int, ...]
    accuracy: Interval
    efforts: tuple[int, ...]
    flops: float
    tokens: float
    seconds: float
    training: float
    parameters: int


def standings(rows: Sequence[Row], task: str) -> list[Standing]:
    """Every arm that has rows on a task, best first."""
    found = []
    for arm in dict.fromkeys(row["arm"] for row in rows if row["task"] == task):
        own = of_run(selected(rows), task, arm)
        if not own:
            continue
        chosen = [effort_of(row) for row in own]
        found.append(
            Standing(
                arm,
                tuple(row["seed"] for row in own),
                _accuracy([bits(effort["test"]) for effort in chosen]),
                tuple(effort["amount"] for effort in chosen),
                flops=_mean(chosen, "flops"),
                tokens=_mean(chosen, "tokens"),
                seconds=_mean(chosen, "seconds"),
                training=_mean(own, "flops"),
                parameters=own[0]["parameters"],
            )
        )
    return sorted(found, key=lambda standing: -standing.accuracy.value)


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _accuracy(right: Sequence[np.ndarray]) -> Interval:
    if len(right) > 1:
        return over_seeds([float(each.mean()) for each in right], within=(0.0, 1.0))
    return wilson(int(right[0].sum()), len(right[0]))


@dataclass(frozen=True)
class Match:
    """first against second. winner: "" for a tie. dominates: the winner takes no more FLOPs."""

    first: str
    second: str
    paired: Paired
    winner: str
    dominates: bool


def verdicts(rows: Sequence[Row], task: str) -> list[Match]:
    """All pairs of arms that have rows of the same seeds."""
    order = standings(rows, task)
    found = []
    for i, first in enumerate(order):
        for second in order[i + 1 :]:
            seeds = sorted(set(first.seeds) & set(second.seeds))
            if seeds:
                found.append(_verdict(rows, task, first, second, seeds))
    return found


def _verdict(
    rows: Sequence[Row], task: str, first: Standing, second: Standing, seeds: Sequence[int]
) -> Match:
    a, b = (outcomes(rows, task, standing.arm, seeds) for standing in (first, second))
    paired = paired_difference(a, b)
    if paired.difference.low <= 0 <= paired.difference.high:
        return Match(first.arm, second.arm, paired, "", False)
    won = paired.difference.low > 0
    winner, loser = (first, second) if won else (second, first)
    return Match(first.arm, second.arm, paired, winner.arm, winner.flops <= loser.flops)


def outcomes(rows: Sequence[Row], task: str, arm: str, seeds: Sequence[int]) -> np.ndarray:
    """(N,) what an arm made of each test question: right or not, of several seeds the share."""
    each = [
        bits(effort_of(row)["test"]) for row in of_run(selected(rows), task, arm)
        if row["seed"] in seeds
    ]  # fmt: skip
    return each[0] if len(each) == 1 else np.mean(each, axis=0)


def constant(task: FrontierTask) -> float:
    """Accuracy on the test questions of the best answer that is always the same."""
    answers = Counter(record.answer for record in task.records("test"))
    return answers.most_common(1)[0][1] / sum(answers.values())


def size_fault(rows: Sequence[Row], task: FrontierTask) -> str:
    """Why a task does not tell its arms apart; "" if it may."""
    found = standings(rows, task.name)
    if not found:
        return ""
    if all(standing.accuracy.low <= constant(task) for standing in found):
        return "no method is above a constant answer: the task is too hard for this budget"
    if all(standing.accuracy.value >= CEILING for standing in found):
        return f"every method is at {CEILING:.0%} or more: the task is too easy for this budget"
    return ""
