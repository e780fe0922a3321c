"""`inward demo`: shipped models solve puzzles they never saw, and show how.

For every puzzle solver in the package: draw fresh puzzles from a fixed seed, solve them, show one
being rewritten in the terminal, draw it as SVG and PNG, and print one table of what was solved at
what cost. Everything that depends on the checkpoint comes from its recipe.json, so a checkpoint
that joins later is in the demo without a change here.

Training used seeds of its recipe (small numbers, see recipes/); the seeds here start far above, so
the puzzles are new. Language models have parts of their own (demo_depth.py, demo_thoughts.py,
demo_draft.py). Mazes come in the trained size and two larger ones, with steps in proportion.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from inward.data.puzzles.puzzles import Puzzles
from inward.viz import terminal

if TYPE_CHECKING:
    from inward.common.trace import Trace

FIRST_SEED = 1_000_000
LARGER_MAZES = (15, 21)
NUM_SUDOKU, NUM_MAZES = 200, {11: 100, 15: 50, 21: 25}  # solved within seconds on one core
_STILL_FRAMES = 4


@dataclass(frozen=True)
class Kind:
    """One line of the table: puzzles of one kind for one model."""

    name: str
    model: str
    task: Any
    puzzles: Puzzles
    max_steps: int


@dataclass(frozen=True)
class DemoOutcome:
    """What came of a kind; evaluations and flops are means per puzzle."""

    name: str
    model: str
    num: int
    solved: int
    steps: float
    evaluations: float
    flops: float
    seconds: float
    pictures: tuple[Path, ...] = ()


def demo(
    *,
    seed: int = 0,
    num: int | None = None,
    out: str | Path = "demo",
    console: Console | None = None,
    seconds: float = 4.0,
) -> list[DemoOutcome]:
    """Run the demo; pictures and a page (index.html) go to the folder `out`.

    num: puzzles per kind (default: as many as take a few seconds); seconds: length of an animation.

    Raises ValueError if no checkpoint is shipped, or `num` or `seed` is out of range.
    """
    from inward.demo.pages import demo_page
    from inward.hub import load, shipped
    from inward.viz import plots

    if num is not None and num < 1:
        raise ValueError(f"num is {num}; ask for at least 1 puzzle of each kind")
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed is {seed}; choose 0 to {2**31 - 1}")
    console = console or Console()
    if not shipped():
        raise ValueError(
            "this installation ships no checkpoint to show; train one (inward train sudoku6) "
            "and look at it with: inward ask runs/sudoku6 PUZZLE --show"
        )
    if not plots.available():
        console.print(f"No pictures will be written: {plots.MISSING}")
    outcomes = []
    for name in shipped():
        model = load(name)
        if not hasattr(model, "solve"):
            _language(name, model, seed=FIRST_SEED + seed, num=num, console=console)
            continue
        for kind in kinds(name, model, seed=seed, num=num):
            outcomes.append(_run(kind, model, Path(out), console, seconds))
    console.print(table(outcomes))
    pictures = [path for outcome in outcomes for path in outcome.pictures]
    if pictures:
        console.print(f"Pictures: {', '.join(str(path) for path in pictures)}", soft_wrap=True)
    shown = demo_page(Path(out), seed=FIRST_SEED + seed)
    if shown is not None:
        console.print(f"Open in a browser: {shown}", soft_wrap=True)
    return outcomes


def _language(name: str, model: Any, **options: Any) -> None:
    """The part of a model that writes text."""
    from inward.recipes.of import recipe_of

    kind = type(model).__name__
    if kind == "TiDAR":
        from inward.common.bases import open_tokenizer
        from inward.demo.drafts import draft_demo
        from inward.hub import resolve

        draft_demo(name, model, open_tokenizer(resolve(name)), **options)
        return
    recipe: Any = recipe_of(name)
    if kind == "Coconut":
        from inward.demo.thoughts import thoughts_demo

        thoughts_demo(name, model, recipe, **options)
    else:
        from inward.demo.depth import depth_demo

        depth_demo(name, model, recipe, **options)


def kinds(name: str, model: Any, *, seed: int, num: int | None) -> Iterator[Kind]:
    """The kinds of puzzles to show a shipped model on, made when asked for."""
    from inward.data.puzzles import maze
    from inward.evals.puzzles import default_steps
    from inward.recipes.of import recipe_of
    from inward.recipes.trm_cube import CubeData
    from inward.recipes.trm_data import MazeData, SudokuData
    from inward.tasks.maze import MazeTask

    data = recipe_of(name).data
    first = FIRST_SEED + seed
    if isinstance(data, SudokuData | CubeData):
        puzzles = data.fresh(num or NUM_SUDOKU, seed=first)
        title = f"Sudoku {data.task().n}x{data.task().n}"
        yield Kind(title, name, data.task(), puzzles, 2 * model.settings.n_sup)
    elif isinstance(data, MazeData):
        larger = [side for side in LARGER_MAZES if side > data.canvas]
        for side in [data.canvas, *(larger if model.settings.mixer != "mlp" else [])]:
            count = num or NUM_MAZES.get(side, min(NUM_MAZES.values()))
            puzzles = maze.generate(count, size=side, seed=first, braid=data.braid)
            title = f"maze {side}x{side}" + ("" if side == data.canvas else " (never trained on)")
            # twice the steps in proportion: halting ends what is done, so the rest may go on
            steps = 2 * default_steps(model, side * side)
            yield Kind(title, name, MazeTask(side), puzzles, steps)


def _run(kind: Kind, model: Any, out: Path, console: Console, seconds: float) -> DemoOutcome:
    began = time.perf_counter()
    options = {"grid": kind.puzzles.grid, "max_steps": kind.max_steps}
    solution = model.solve(kind.puzzles.inputs, **options)
    spent = time.perf_counter() - began
    answers = solution.answers.numpy()
    solved = kind.task.verify(kind.puzzles.inputs, answers)
    halted, steps = solution.halted.numpy(), solution.steps.numpy()
    shown = interesting(solved, halted, steps, kind.puzzles.rating)
    again = model.solve(kind.puzzles.inputs[shown : shown + 1], trace=True, **options)
    assert again.traces is not None, "solve was asked for traces"
    trace = again.traces[0]
    trace.meta["task"] = kind.task.name
    title = f"{kind.name}, puzzle {shown + 1} of {len(kind.puzzles)}, model {kind.model}"
    if console.is_terminal:
        terminal.play(trace, kind.task, console=console, seconds=seconds, title=title)
    else:
        terminal.show(trace, kind.task, console=console, most=_STILL_FRAMES, title=title)
    console.print()
    return DemoOutcome(
        name=kind.name,
        model=kind.model,
        num=len(solved),
        solved=int(solved.sum()),
        steps=float(solution.steps.double().mean()),
        evaluations=float(solution.evaluations.mean()),
        flops=float(solution.flops.mean()),
        seconds=spent,
        pictures=_draw(trace, kind, out),
    )


def interesting(
    solved: np.ndarray, halted: np.ndarray, steps: np.ndarray, rating: np.ndarray | None
) -> int:
    """Index of the puzzle to show, all arguments (N,).

    Solved if any is; of these one where the model stopped by itself; then the hardest by its rating
    (the longest path, the most guesses); then the one that took most steps.
    """
    hardness = np.zeros(len(steps), int) if rating is None else rating
    # lexsort sorts by its last key first, and the last index is the greatest
    return int(np.lexsort((steps, hardness, halted, solved))[-1])


def _draw(trace: Trace, kind: Kind, out: Path) -> tuple[Path, ...]:
    from inward.viz import plots

    if not plots.available():
        return ()
    rows, cols = kind.task.grid
    shape = "" if kind.task.name.startswith("sudoku") else f"-{rows}x{cols}"
    figure = plots.refinement(trace, kind.task, title=kind.name)
    paths = [out / f"{kind.model}{shape}.{ending}" for ending in ("svg", "png")]
    return tuple(plots.save(figure, path) for path in paths)


def table(outcomes: list[DemoOutcome]) -> Table:
    """The table at the end."""
    columns = (
        "puzzles",
        "model",
        "solved",
        "steps",
        "evaluations",
        "GFLOP each",
        "seconds",
    )
    shown = Table(box=SIMPLE, caption="solved: checked by the rules; the rest: means per puzzle")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index < 2 else "right")
    for row in outcomes:
        shown.add_row(
            row.name,
            row.model,
            f"{row.solved}/{row.num}",
            f"{row.steps:.1f}",
            f"{row.evaluations:.0f}",
            f"{row.flops / 1e9:.2g}",
            f"{row.seconds:.1f}",
        )
    return shown
