"""`inward eval` of models that solve puzzles: a dataclass whose fields are the options.

tyro reads the fields' types at run time, so there is no `from __future__ import annotations` here.
Heavy imports (torch, matplotlib) stay inside `run`, so that a wrong option is told at once.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inward.cli.options import _console, _go
from inward.common.files import check_targets
from inward.evals.tables import result_tables


def eval_puzzles(words: list[str]) -> int:
    """Measure a model that solves puzzles."""
    return _go(Eval, "eval", words)


def _check_pictures(*paths: Path | None) -> None:
    """Refuse pictures that cannot be written before any work."""
    from inward.viz import plots

    for path in paths:
        if path is not None:
            plots.kind_of(path)
            if not plots.available():
                raise ValueError(plots.MISSING)


@dataclass(kw_only=True)
class Eval:
    """Accuracy of a model on its recipe's held-out puzzles, or on those of a file."""

    model: str
    """a shipped model's name, or the folder of a run or a model"""
    data: Path | None = None
    """.npz, .csv, .txt (Sudoku lines) or a dataset folder; None: the recipe's test puzzles"""
    num: int | None = None
    """so many of the puzzles, drawn by --seed; None: all"""
    size: int | None = None
    """mazes: side of the test mazes, if not that of the training"""
    by_step: bool = True
    """leave out the second run, without halting, that counts after every step"""
    out: Path | None = None
    """file to which the result is added as one JSON line"""
    figure: Path | None = None
    """.svg or .png of accuracy by step"""
    task: str = ""
    """sudoku4, sudoku6, sudoku9, maze, arc; empty: that of the model's recipe"""
    max_steps: int | None = None
    """supervision steps; None: as in training, in proportion for larger grids"""
    halt: str = "q+stable"
    """when to stop: q (the paper's), stable, q+stable, never"""
    rollouts: int = 1
    """attempts per puzzle; more than one need --noise"""
    noise: float = 0.0
    """strength of the noise on the latent (0.3 is the published one)"""
    noise_when: Literal["steps", "start"] = "steps"
    """noise before every step, or before the first alone (attempts of models trained for it)"""
    symmetries: int = 0
    """further views of each puzzle that are solved too"""
    select: Literal["q", "majority", "verify"] = "q"
    """which answer counts: most believed, most frequent, or one that obeys the rules"""
    first_to_halt: bool = False
    """the first attempt that halts decides"""
    until_right: bool = False
    """the first answer that obeys the rules ends its puzzle; the rules change no answer"""
    abstain_below: float | None = None
    """withhold answers that are believed less than this probability"""
    seed: int = 0
    """of noise and symmetries, and of the draw of --num"""
    batch_size: int = 256
    """rows in work at a time"""
    threads: int | None = None
    """threads of torch"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.evals.puzzles import evaluate
        from inward.evals.rows import append_row, command_line
        from inward.hub import load
        from inward.viz import plots

        if self.figure is not None and not self.by_step:
            raise ValueError("--figure draws accuracy by step; leave out --no-by-step")
        _check_pictures(self.figure)
        check_targets(self.out, self.figure)
        puzzles, task, dataset = self.puzzles()
        model = load(self.model)
        result = evaluate(
            model,
            puzzles,
            task,
            what=self.model,
            dataset=dataset,
            max_steps=self.max_steps,
            num_symmetries=self.symmetries,
            seed=self.seed,
            by_step=self.by_step,
            progress=sys.stderr.isatty(),
            command=command_line(["eval", *words]),
            **self.options(task),
        )
        _console().print(result_tables(result))
        if self.out is not None:
            append_row(self.out, result.to_row())
        if self.figure is not None:
            plots.save(plots.accuracy_by_step([result.to_row()]), self.figure)
        return 0

    def options(self, task: Any) -> dict[str, Any]:
        """Keywords for `solve`, as given."""
        if self.threads is not None:
            import torch

            if self.threads < 1:
                raise ValueError(f"threads is {self.threads}; use at least 1")
            torch.set_num_threads(self.threads)
        names = ("halt", "rollouts", "noise", "noise_when", "first_to_halt", "abstain_below")
        given = {name: getattr(self, name) for name in (*names, "until_right", "batch_size")}
        checks = self.select == "verify" or self.until_right
        return given | {"select": task.verify if checks else self.select}

    def puzzles(self) -> tuple[Any, Any, str]:
        """Puzzles, their task, and what to call them (a drawn part says so)."""
        from inward.tasks.named import part

        puzzles, task, dataset = self._all_puzzles()
        if self.num is None:
            return puzzles, task, dataset
        told = f"{dataset}, {self.num} of {len(puzzles)} drawn by seed {self.seed}"
        return part(puzzles, self.num, seed=self.seed), task, told

    def _all_puzzles(self) -> tuple[Any, Any, str]:
        from inward.recipes.of import recipe_of
        from inward.recipes.trm_data import MazeData
        from inward.tasks.named import task_named

        if self.data is not None:
            return self._of_file(self.data)
        if self.task:
            raise ValueError("--task says what a file holds; name the file with --data")
        recipe = recipe_of(self.model)
        if self.size is None:
            return recipe.test_puzzles(), recipe.task(), f"{recipe.name} test"
        if not isinstance(recipe.data, MazeData):
            raise ValueError(f"--size is for models of generated mazes, not for {recipe.name}")
        puzzles = recipe.data.puzzles("test", self.size)
        name = f"{recipe.name} {self.size}x{self.size} test"
        return puzzles, task_named("maze", puzzles.grid), name

    def _of_file(self, path: Path) -> tuple[Any, Any, str]:
        """Mazes may be of any size; one that --task names must be that of the file."""
        from inward.recipes.of import recipe_of
        from inward.tasks.named import ANY_GRID, read_puzzles, task_named

        if self.task:
            task = task_named(self.task, ANY_GRID if self.task == "maze" else None)
        else:
            task = recipe_of(self.model).task()
        puzzles = read_puzzles(path, task)
        if not task.name.startswith("maze"):
            return puzzles, task, str(path)
        if self.task not in ("", "maze") and task.grid != puzzles.grid:
            rows, cols = puzzles.grid
            raise ValueError(
                f"{path} holds mazes of {rows}x{cols} cells, not {self.task}; leave the size out: "
                "--task maze"
            )
        return puzzles, task_named("maze", puzzles.grid), str(path)
