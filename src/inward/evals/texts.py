"""Evaluate what answers in text: accuracy with its interval, and what an answer costs.

    result = evaluate(thinker, questions, what="prosqa", dataset="prosqa test")
    append_row("results.jsonl", result.to_row())

Questions are asked as `inward ask` asks them, together, so that what is counted is what a user
gets. Where a task has swaps (the question that differs in what is asked alone), a question counts
as understood only if both are right: `paired`. `by_stage` asks a model trained by a curriculum as
it was asked at each stage.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from inward.evals.questions import HeldOut
from inward.evals.rows import machine
from inward.evals.stats import wilson

if TYPE_CHECKING:
    from inward.common.thinking import Answer
    from inward.thinker import Thinker

_UNITS = {"huginn": "recurrences", "coconut": "thoughts", "tidar": "forwards", "plain": "forwards"}
"""What `Answer.steps` counts"""

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """A part of the questions: name, how many, the share that is right, 95 % Wilson interval."""

    name: str
    num: int
    accuracy: float
    interval: Bounds


def share_of(name: str, right: np.ndarray) -> Share:
    """Of outcomes (N,) bool."""
    found = wilson(int(right.sum()), len(right))
    return Share(name, len(right), found.value, (found.low, found.high))


@dataclass(frozen=True)
class TextResult:
    """What was measured, on what, at what cost, where and by which command.

    right: all questions; paired: question and swap both right (None: the task has no swaps).
    groups: by difficulty; stages: by stage of the curriculum, asked as there.
    metrics: the task's own numbers. failed: questions that could not be asked, counted as wrong,
    and why.
    tokens, steps, forwards, evaluations, flops, bytes, seconds: means of an answer; seconds is the
    time of all divided by their number, since they run together, `batch` at a time.
    """

    what: str
    method: str
    dataset: str
    seed: int
    right: Share
    paired: Share | None
    both_sides: float | None
    tokens: float
    steps: float
    unit: str
    forwards: float
    evaluations: float
    flops: float
    bytes: float
    seconds: float
    stopped: Mapping[str, int]
    groups: tuple[Share, ...] = ()
    stages: tuple[Share, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    machine: str = ""
    command: str = ""

    def to_row(self) -> dict[str, Any]:
        """JSON values, for `append_row`."""
        return asdict(self)


def evaluate(
    thinker: Thinker,
    questions: Sequence[HeldOut],
    *,
    what: str = "",
    dataset: str = "",
    seed: int = 0,
    task: Any = None,
    command: str = "",
    **options: Any,
) -> TextResult:
    """Ask all questions, and their swaps, and count.

    Args:
        task: whose own numbers are reported too (spoken steps, ...); None: accuracy alone.
        options: of `Thinker.ask`.

    Raises:
        ValueError: no questions, or an option that the method refuses.
    """
    if not questions:
        raise ValueError("there is no question to ask; the set is empty")
    began = time.perf_counter()
    answers = thinker.ask([one.question for one in questions], seed=seed, **options)
    seconds = (time.perf_counter() - began) / len(questions)
    right = judged(questions, answers)
    paired = both = other = None
    if all(one.swap is not None for one in questions):
        swaps = [one.swap for one in questions if one.swap is not None]
        other = thinker.ask([swap.question for swap in swaps], seed=seed, **options)
        also = judged(swaps, other)
        paired, both = share_of("paired", right & also), float((right.mean() + also.mean()) / 2)
    good = [answer for answer in answers if not answer.error]
    if not good:
        raise ValueError(f"no question could be asked: {answers[0].error}")
    return TextResult(
        what=what or thinker.name,
        method=thinker.method.name,
        dataset=dataset,
        seed=seed,
        right=share_of("all", right),
        paired=paired,
        both_sides=both,
        **_means(good),
        unit=_UNITS.get(thinker.method.name, "steps"),
        seconds=seconds,
        stopped=_counted([a.stopped for a in good]),
        groups=_groups(questions, right),
        metrics=_metrics(task, questions, answers, other),
        failed=_counted([a.error for a in answers if a.error]),
        settings={name: repr(value) for name, value in options.items()},
        parameters=sum(p.numel() for p in thinker.model.parameters()),
        machine=machine(),
        command=command or "python: inward.evals.texts.evaluate",
    )


def judged(questions: Sequence[HeldOut], answers: Sequence[Answer]) -> np.ndarray:
    """(N,) bool: which answers are right; one that is none is not."""
    return np.array(
        [not a.error and one.right(a) for one, a in zip(questions, answers, strict=True)]
    )


def _means(answers: Sequence[Answer]) -> dict[str, Any]:
    def mean(values: Any) -> float:
        return float(np.mean([float(value) for value in values]))

    return {
        "tokens": mean(len(a.tokens) for a in answers),
        "steps": mean(a.steps for a in answers),
        "forwards": mean(a.cost.forwards for a in answers),
        "evaluations": mean(a.cost.evaluations for a in answers),
        "flops": mean(a.cost.flops for a in answers),
        "bytes": mean(a.cost.bytes for a in answers),
    }


def _counted(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}


def _groups(questions: Sequence[HeldOut], right: np.ndarray) -> tuple[Share, ...]:
    names = list(dict.fromkeys(one.group for one in questions))
    if len(names) < 2:
        return ()
    owners = np.array([one.group for one in questions])
    return tuple(share_of(name, right[owners == name]) for name in names)


def _metrics(
    task: Any, questions: Sequence[HeldOut], answers: Sequence[Answer], other: Any
) -> dict[str, float]:
    """What the task counts beside right and wrong."""
    records = [one.record for one in questions if one.record is not None]
    if task is None or len(records) < len(questions):
        return {}
    from inward.recipes.coconut import score

    texts = [answer.text for answer in answers]
    swapped = None if other is None else [answer.text for answer in other]
    found = score(task, records, texts, swapped)
    return {n: v for n, v in found.items() if n not in ("accuracy", "paired", "both_sides")}


def by_stage(thinker: Thinker, recipe: Any, questions: Sequence[HeldOut]) -> tuple[Share, ...]:
    """Accuracy when a model is asked as at each stage of its curriculum; stages that only
    boundaries of the model's own could follow are left out.

    Args:
        recipe: a `CoconutRecipe`.

    Raises:
        ValueError: questions that come from no records.
    """
    records = [one.record for one in questions if one.record is not None]
    if len(records) < len(questions):
        raise ValueError("these questions come from no records, so they have no stages")
    found, pattern = [], recipe.curriculum.pattern
    if recipe.curriculum.layout.boundaries == "supervised":
        return ()  # the model is asked alike at all of them
    task = recipe.task()
    for stage in range(pattern.last_stage + 1):
        if pattern.script(stage) is None:
            continue
        texts = recipe.answers(thinker.model, records, stage=stage)
        rows = zip(records, texts, strict=True)
        right = np.array([bool(task.score(record, text).right) for record, text in rows])
        found.append(share_of(str(stage), right))
    return tuple(found)
