"""Equal training FLOPs: how many steps of each stage a budget pays for, by the meter.

A few steps of every stage are computed and counted (`inward.train.meter`), backward passes
included; a stage gets the steps that its share of the budget pays for, the last one all that is
left. Huginn's steps differ with their drawn depth: three depths are counted, the others lie on the
two straight lines through them (with and without gradient), and every drawn depth of the run is
added up. So all runs of a task end within one step of the budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inward.studies.frontier.arms import lesson
from inward.studies.frontier.models import Job, Schedule, parameters_of, run_of
from inward.train.meter import step_cost

MEASURED = 3
"""steps of a stage that are counted"""
MOST = 10**6
"""steps of a run at most"""


@dataclass(frozen=True)
class StepPlan:
    """A run as its budget allows.

    schedule: (stage, steps). step_flops: of a mean step of each stage. flops: of all steps.
    seconds: of a core, of all steps, as measured on a few. parameters: of the model.
    """

    schedule: Schedule
    step_flops: tuple[float, ...]
    flops: float
    seconds: float
    parameters: int

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return sum(num for _, num in self.schedule)


def plan(job: Job) -> StepPlan:
    """Steps of every stage.

    Raises ValueError if the budget does not pay for a step of each.
    """
    budget = job.scale.budget[job.task.name]
    return _by_depth(job, budget) if job.arm.method == "huginn" else _by_stage(job, budget)


def measured(job: Job, stage: int, num: int = MEASURED) -> tuple[float, float, int]:
    """FLOPs and seconds of a mean step of a stage, and parameters of the model."""
    run, settings = run_of(job, ((stage, MOST),))
    flops, seconds = _mean_step(run, settings, range(num))
    return flops, seconds, parameters_of(run.model)


def _mean_step(run: Any, settings: Any, steps: range) -> tuple[float, float]:
    flops, seconds = [], []
    for step in steps:
        start = time.process_time()
        flops.append(step_cost(run, settings, step=step).flops)
        seconds.append(time.process_time() - start)
    return float(np.mean(flops)), float(np.median(seconds))


def _by_stage(job: Job, budget: float) -> StepPlan:
    shares = ((0, 1.0),) if job.arm.method == "trm" else lesson(job.arm, job.task).shares
    found = {stage: measured(job, stage) for stage, _ in shares}
    costs = [found[stage][0] for stage, _ in shares]
    schedule = divided(budget, [(stage, share) for stage, share in shares], costs)
    _check(job, budget, schedule)
    nums = [num for _, num in schedule]
    seconds = [found[stage][1] for stage, _ in shares]
    (*_, parameters) = found[shares[0][0]]
    return StepPlan(
        schedule,
        tuple(costs),
        float(np.dot(nums, costs)),
        float(np.dot(nums, seconds)),
        parameters,
    )


def divided(
    budget: float, shares: list[tuple[int, float]], costs: list[float]
) -> tuple[tuple[int, int], ...]:
    """Steps of each stage: what its share pays for, and in the last one what is left. The sum lies
    below the budget by less than a step of the last stage."""
    nums = [int(share * budget // cost) for (_, share), cost in zip(shares, costs, strict=True)]
    spent = sum(num * cost for num, cost in zip(nums[:-1], costs[:-1], strict=True))
    nums[-1] = int((budget - spent) // costs[-1])
    return tuple((stage, num) for (stage, _), num in zip(shares, nums, strict=True))


def _check(job: Job, budget: float, schedule: Schedule) -> None:
    if min(num for _, num in schedule) < 1:
        raise ValueError(
            f"{job.name}: a budget of {budget:.3g} FLOPs does not pay for a step of every stage "
            f"({dict(schedule)}); give the scale a larger one"
        )


def _by_depth(job: Job, budget: float) -> StepPlan:
    run, settings = run_of(job, ((0, MOST),))
    training: Any = run.model
    usual, k = training.depth, training.depth.backprop
    depths = (1, max(2, k), max(2, k) + 2)
    found = {}
    for depth in depths:
        training.depth = replace(usual, mean=depth, sampling="fixed", ramp=0)
        found[depth] = _mean_step(run, settings, range(MEASURED))
    flops = line_through({depth: value for depth, (value, _) in found.items()})
    seconds = line_through({depth: value for depth, (_, value) in found.items()})

    def spent(steps: int) -> np.ndarray:
        drawn = drawn_depths(job, replace(usual, ramp=steps // 3), steps)
        return np.cumsum([flops(depth) for depth in drawn])

    steps = most_steps(spent, budget, max(1, int(2 * budget // flops(1))))
    _check(job, budget, ((0, steps),))
    drawn = drawn_depths(job, replace(usual, ramp=steps // 3), steps)
    total = float(sum(flops(depth) for depth in drawn))
    return StepPlan(
        ((0, steps),),
        (total / steps,),
        total,
        float(sum(seconds(depth) for depth in drawn)),
        parameters_of(run.model),
    )


def line_through(values: dict[int, float]) -> Callable[[int], float]:
    """A step's FLOPs (or seconds) at any depth, from those at three: 1, the last that has gradients
    throughout (at least 2), and one beyond it."""
    first, middle, last = sorted(values)
    with_gradient = (values[middle] - values[first]) / (middle - first)
    without = (values[last] - values[middle]) / (last - middle)

    def at(depth: int) -> float:
        if depth <= middle:
            return values[first] + (depth - first) * with_gradient
        return values[middle] + (depth - middle) * without

    return at


def most_steps(spent: Callable[[int], np.ndarray], budget: float, most: int) -> int:
    """The largest number of steps whose sum stays within the budget; `spent(n)` are the sums of a
    run of n steps, whose curriculum may depend on n."""
    low, high = 0, max(1, min(most, MOST))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if spent(middle)[-1] <= budget else (low, middle - 1)
    return low


def drawn_depths(job: Job, depth: Any, steps: int) -> list[int]:
    """Depths that a run of the job draws, step by step."""
    from inward.common.draws import Draws
    from inward.methods.huginn.train import sample_depths

    rows = range(job.scale.batch_rows)
    return [
        int(sample_depths(depth, Draws(job.seed, step, rows, len(rows)))[0])
        for step in range(steps)
    ]
