"""How large a comparison is: tasks, models, budgets, seeds and rates of a scale.

tiny    seconds; it learns nothing, tests run it
first   a look: one task in minutes, one seed, the smallest budget where something is learned
pilot   the comparison: three tasks, three seeds, three rates on one seed, 12 core-hours
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inward.studies.frontier.tasks import Equations, FrontierTask, Grids, Pointers


@dataclass(frozen=True)
class Shape:
    """Of the models. The feed-forward of the Llama type is the measure: others get the width at
    which they have as many parameters.

    layers, width, heads, feed_forward: of the Llama type (and Huginn's core; TRM has two layers)
    depth, backprop: Huginn's mean recurrences, and how many of them are differentiated
    T, n, n_sup: TRM's
    """

    layers: int = 2
    width: int = 64
    heads: int = 4
    feed_forward: int = 256
    depth: int = 8
    backprop: int = 4
    T: int = 2
    n: int = 2
    n_sup: int = 8


@dataclass(frozen=True)
class Scale:
    """A comparison.

    budget: training FLOPs of every run of a task, by its name; backward passes included
    rates: tried on the first seed; the one that is best on validation is used on the others
    max_hours: core-hours that the command may take unless it is told otherwise
    timed: questions answered one at a time, for the seconds of an answer
    """

    name: str
    tasks: Mapping[str, FrontierTask]
    budget: Mapping[str, float]
    shape: Shape = field(default_factory=Shape)
    batch_rows: int = 32
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    max_hours: float = 12.0
    timed: int = 16


def _tasks(*tasks: FrontierTask) -> dict[str, FrontierTask]:
    return {task.name: task for task in tasks}


SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "tiny",
            _tasks(
                Pointers(num_nodes=5, max_hops=3, num_train=64, num_valid=9, num_test=12),
                Equations(max_steps=3, num_train=64, num_valid=8, num_test=12),
                Grids(clues=30, num_train=24, num_valid=4, num_test=6, max_steps=2),
            ),
            {"pointers": 3e7, "chains": 1e8, "sudoku": 3e8},
            Shape(layers=1, width=16, heads=2, feed_forward=48, depth=3, backprop=2, T=1, n_sup=2),
            batch_rows=4,
            seeds=(0, 1),
            rates=(1e-3, 2e-3),
            max_hours=0.05,
            timed=1,
        ),
        Scale(
            "first",
            _tasks(Pointers(num_nodes=7, max_hops=3, num_valid=120, num_test=200)),
            {"pointers": 1e11},
            Shape(feed_forward=128, depth=6, backprop=3),
            seeds=(0,),
            rates=(3e-3,),
            max_hours=0.5,
        ),
        Scale(
            "pilot",
            _tasks(Pointers(), Equations(), Grids()),
            {"pointers": 6e11, "chains": 6e11, "sudoku": 9e11},
        ),
    )
}
