"""Evaluate a model on puzzles: one call, one row that says everything needed to believe the number.

    result = evaluate(model, puzzles, task, what="maze11", dataset="maze 15x15 test")
    append_row("results.jsonl", result.to_row())

Two accuracies are counted. `accuracy` compares every scored cell with the label, as the papers do;
`verified` asks the task's own rules and needs no label. The first run uses the halting rule asked
for; accuracy after each step comes from a second run that never halts, because an answer that
halted at step 3 says nothing about step 5.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from inward.data.puzzles.puzzles import PAD, Puzzles
from inward.evals.rows import machine
from inward.evals.stats import wilson
from inward.methods.trm.asked import default_steps
from inward.tasks.arc import ArcTask

if TYPE_CHECKING:
    from inward.common.trace import Step

MAX_BUCKETS = 6
_TRACE_BYTES = 64 << 20  # of traces held at a time while counting accuracy by step
_BYTES_PER_CELL = 12  # of a traced step: the token in 8 bytes, its confidence in 4


@dataclass(frozen=True)
class Bucket:
    """Puzzles whose rating lies in low..high, both included."""

    low: int
    high: int
    num: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Result:
    """What was measured, on what, at what cost, where and by which command.

    accuracy: share of puzzles whose every scored cell equals the label; None: there are no labels.
    verified: share of answers that satisfy the task's rules; None: the task has no rule (ARC).
    scored: what counts as right: "label", or "rules" (no labels, or one of several right answers).
    interval: 95 % Wilson interval of what is scored; by_rating, by_step: of that, too.
    answered, accuracy_answered: share that the model did not withhold, and accuracy among those.
    believed: share of answers whose correctness the halting head (q > 0) told rightly.
    steps, evaluations, flops: means per puzzle; the last two count all chains of a puzzle.
    by_step: accuracy after step 1, 2, ... of a run that never halts.
    parameters: of the network, as in the papers and in a training's summary; the table of
        identifiers, which can be far the larger, counts apart.
    """

    what: str
    dataset: str
    num: int
    seed: int
    accuracy: float | None
    verified: float | None
    interval: tuple[float, float]
    answered: float
    accuracy_answered: float | None
    believed: float
    steps: float
    evaluations: float
    flops: float
    seconds: float
    parameters: int
    by_rating: tuple[Bucket, ...] = ()
    by_step: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    machine: str = ""
    command: str = ""
    identifier_parameters: int = 0
    scored: str = "label"

    @property
    def share(self) -> float:
        """The number that `interval` belongs to."""
        best = self.verified if self.scored == "rules" else self.accuracy
        assert best is not None, "a result has one of the two"
        return best

    def to_row(self) -> dict[str, Any]:
        """JSON values, for `append_row` and for `viz.plots.accuracy_by_step`."""
        return asdict(self)


def evaluate(
    model: Any,
    puzzles: Puzzles,
    task: Any,
    *,
    what: str = "",
    dataset: str = "",
    max_steps: int | None = None,
    halt: Any = "q+stable",
    num_symmetries: int = 0,
    seed: int = 0,
    by_step: bool = True,
    progress: bool = False,
    command: str = "",
    **options: Any,
) -> Result:
    """Solve all puzzles and count.

    Args:
        model: a TRM, or anything with its `solve` and `settings`.
        task: an object of `inward.tasks` for the puzzles' grid.
        max_steps: budget per chain; None: N_sup, in proportion for larger grids (`default_steps`).
        halt: a halting rule or its name (`inward.common.halting`).
        num_symmetries: further views of each puzzle, drawn from `seed` by the task.
        by_step: also run without halting and count after each step (doubles the time).
        options: passed to `solve`: rollouts, noise, select, first_to_halt, abstain_below, ...
    Raises:
        ValueError: puzzles, task and model do not fit, or an option is out of range.
    """
    _check_fit(model, puzzles, task)
    steps = default_steps(model, puzzles.inputs.shape[1]) if max_steps is None else max_steps
    rng = np.random.default_rng(seed)
    common = {"identifiers": puzzles.identifiers, "grid": puzzles.grid, "max_steps": steps}
    views = [task.symmetry(rng) for _ in range(num_symmetries)]
    began = time.perf_counter()
    solution = model.solve(
        puzzles.inputs,
        halt=halt,
        symmetries=views,
        seed=seed,
        progress=progress,
        **common,
        **options,
    )
    seconds = time.perf_counter() - began
    answers = solution.answers.numpy()
    exact, verified = _exact(puzzles, answers), _verified(task, puzzles, answers)
    right, scored = scored_right(task, exact, verified)
    if right is None:
        raise ValueError("these puzzles have no labels and their task no rules; nothing to count")
    answered = solution.answered.numpy()
    interval = wilson(int(right.sum()), len(right))
    told = {"max_steps": steps, "halt": str(halt), "num_symmetries": num_symmetries}
    parameters, table = _num_parameters(model)
    return Result(
        what=what,
        dataset=dataset,
        num=len(puzzles),
        seed=seed,
        accuracy=None if exact is None else float(exact.mean()),
        verified=None if verified is None else float(verified.mean()),
        interval=(interval.low, interval.high),
        answered=float(answered.mean()),
        accuracy_answered=float(right[answered].mean()) if answered.any() else None,
        believed=float(((solution.q.numpy() > 0) == right).mean()),
        steps=float(solution.steps.double().mean()),
        evaluations=float(solution.evaluations.mean()),
        flops=float(solution.flops.mean()),
        seconds=seconds,
        parameters=parameters,
        identifier_parameters=table,
        scored=scored,
        by_rating=_by_rating(puzzles.rating, right),
        by_step=_by_step(model, puzzles, task, common) if by_step else (),
        settings=told | {name: _told(value) for name, value in options.items()},
        machine=machine(),
        command=command or "python: inward.evals.puzzles.evaluate",
    )


def _num_parameters(model: Any) -> tuple[int, int]:
    """Of the network, and of its table of identifiers."""
    if hasattr(model, "num_parameters_by_part"):
        parts = model.num_parameters_by_part()
        return parts["network"], parts["identifiers"]
    return sum(parameter.numel() for parameter in model.parameters()), 0


def _check_fit(model: Any, puzzles: Puzzles, task: Any) -> None:
    if tuple(task.grid) != tuple(puzzles.grid):
        raise ValueError(
            f"the puzzles have a {puzzles.grid} grid, the task {task.name} {task.grid}; "
            "make the task for the puzzles' grid"
        )
    if model.settings.vocab_size != task.vocab_size:
        raise ValueError(
            f"the model knows {model.settings.vocab_size} tokens, the task {task.name} has "
            f"{task.vocab_size}; it was trained on something else"
        )
    model.settings.layout(puzzles.inputs.shape[1], puzzles.grid)


def _exact(puzzles: Puzzles, answers: np.ndarray) -> np.ndarray | None:
    """(B,) every scored cell equals the label; None unless every puzzle has a label."""
    scored = puzzles.labels != PAD
    if not scored.any(axis=1).all():
        return None
    return ((answers == puzzles.labels) | ~scored).all(axis=1)


def _verified(task: Any, puzzles: Puzzles, answers: np.ndarray) -> np.ndarray | None:
    return None if isinstance(task, ArcTask) else task.verify(puzzles.inputs, answers)


def scored_right(task: Any, exact: Any, verified: Any) -> tuple[Any, str]:
    """What counts as right, and by what: equality with the label, or the rules where there are no
    labels or a label is only one of several right answers (mazes)."""
    by_rules = exact is None or getattr(task, "several_right", False)
    return (verified, "rules") if by_rules and verified is not None else (exact, "label")


def _by_rating(rating: np.ndarray | None, right: np.ndarray) -> tuple[Bucket, ...]:
    """One bucket per rating, or about equally full ranges where there are many."""
    if rating is None:
        return ()
    values = np.unique(rating)
    if len(values) <= MAX_BUCKETS:
        edges = [(int(value), int(value)) for value in values]
    else:
        cuts = np.unique(np.quantile(rating, np.linspace(0, 1, MAX_BUCKETS), method="lower"))
        lows = [cuts[0], *(cut + 1 for cut in cuts[1:-1])]
        edges = [(int(low), int(high)) for low, high in zip(lows, cuts[1:], strict=True)]
    buckets = []
    for low, high in edges:
        inside = right[(rating >= low) & (rating <= high)]
        if len(inside):
            share = wilson(int(inside.sum()), len(inside))
            bucket = Bucket(low, high, len(inside), share.value, (share.low, share.high))
            buckets.append(bucket)
    return tuple(buckets)


def _by_step(
    model: Any, puzzles: Puzzles, task: Any, common: Mapping[str, Any]
) -> tuple[float, ...]:
    """Accuracy after each step of a plain run without halting, in parts that fit in memory."""
    bytes_per_puzzle = common["max_steps"] * puzzles.inputs.shape[1] * _BYTES_PER_CELL
    size = max(1, min(1024, _TRACE_BYTES // bytes_per_puzzle))
    counts = np.zeros(common["max_steps"], int)
    for start in range(0, len(puzzles), size):
        part = puzzles.select(slice(start, start + size))
        options = {**common, "identifiers": part.identifiers}
        traces = model.solve(part.inputs, halt="never", trace=True, **options).traces
        for index in range(len(counts)):
            answers = np.stack([_recorded(trace.steps[index]) for trace in traces])
            exact = _exact(part, answers)
            right, _ = scored_right(task, exact, _verified(task, part, answers))
            assert right is not None, "checked before"
            counts[index] += int(right.sum())
    return tuple(float(count) / len(puzzles) for count in counts)


def _recorded(step: Step) -> np.ndarray:
    assert "grid" in step.view, "solve records the answer of every step"
    return step.view["grid"].ids


def _told(value: Any) -> Any:
    """An option as a JSON value; functions by their name."""
    if isinstance(value, str | int | float | bool | None):
        return value
    return getattr(value, "__qualname__", None) or repr(value)


# --------------------------------------------------------------------------------------------------
# Where, and by what


# --------------------------------------------------------------------------------------------------
# The recipe behind a checkpoint, the task behind a name, the puzzles behind a path
