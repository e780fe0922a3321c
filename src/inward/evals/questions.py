"""Questions that a model was not trained on, with what tells a right answer: of its recipe, or of a
file of one's own.

    held_out(recipe, num=200)          drawn by a seed from validation or test data
    of_file("mine.jsonl")              every record that the file holds
    example(recipe)                    one of them as text, to be typed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from inward.data.thoughts.anyfile import Names, ReadFile, RecordKind, read_any
from inward.recipes.coconut_data import judge_for

if TYPE_CHECKING:
    from inward.common.thinking import Answer
    from inward.data.thoughts.records import Record


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A question that the model was not trained on, and how to tell a right answer.

    group: what it belongs to, such as a difficulty; "" where there are no groups.
    record: the record it comes from, if from one; swap: the question that differs in what is asked
    alone and must have another answer, where the task has such.
    """

    question: Any
    right: Callable[[Answer], bool]
    group: str = ""
    record: Record | None = None
    swap: HeldOut | None = None


def whole_of(recipe: Any) -> Any:
    """The recipe that one of `inward.recipes.own_thoughts` stands for, or the recipe itself."""
    whole = getattr(recipe, "whole", None)
    return recipe if whole is None else whole()


def held_out(recipe: Any, *, num: int | None, split: str = "valid", seed: int = 0) -> list[HeldOut]:
    """`num` questions of a recipe's held-out data, drawn by a seed; None: all.

    Raises:
        ValueError: a recipe whose data has no questions with right answers, or not so many.
    """
    from inward.data.drawn import drawn

    found = questions_of(recipe, split)
    if num is not None and num > len(found):
        raise ValueError(
            f"asked for {num} questions, {recipe.name} has {len(found)} in {split!r}; choose fewer"
        )
    return [found[i] for i in drawn(len(found), num, seed=seed, what="questions")]


def questions_of(recipe: Any, split: str) -> list[HeldOut]:
    """All questions of a split; see `held_out`."""
    from inward.recipes.coconut import CoconutRecipe
    from inward.recipes.huginn import HuginnRecipe, TokenData
    from inward.recipes.own_huginn import FineTuneRecipe
    from inward.recipes.trm import TRMRecipe

    whole = whole_of(recipe)
    if isinstance(whole, TRMRecipe):
        return _puzzles(whole, split)
    if isinstance(whole, HuginnRecipe) and not isinstance(whole.data, TokenData):
        return _texts(whole, split)
    if isinstance(whole, FineTuneRecipe):
        return _tuned(whole)
    if isinstance(whole, CoconutRecipe):
        task = whole.task()
        return of_records(task, task.ask(whole.data.split(cast(Any, split))))
    raise ValueError(
        f"the data of {recipe.name} has no questions with a right answer, so there is nothing to "
        "measure by; name a file of questions with --data"
    )


def _tuned(recipe: Any) -> list[HeldOut]:
    """Held-out records of a fine-tuned Huginn, asked as it was trained: through the template."""
    records = recipe.records()
    found = of_records(judge_for(records, "auto"), records)
    if not recipe.dialogue.role:
        return found
    return [replace(q, question=[{"role": "user", "content": q.question}]) for q in found]


def _puzzles(recipe: Any, split: str) -> list[HeldOut]:
    puzzles, task = recipe.data.puzzles(split), recipe.task()

    def judge(row: int) -> Callable[[Answer], bool]:
        def right(answer: Answer) -> bool:
            said = np.asarray(answer.tokens)[None]
            if task.name == "arc":
                return bool(task.exact(puzzles.labels[row : row + 1], said)[0])
            return bool(task.verify(puzzles.inputs[row : row + 1], said)[0])

        return right

    cells = puzzles.inputs.astype(np.int64)
    return [HeldOut(row.reshape(puzzles.grid), judge(i)) for i, row in enumerate(cells)]


def _texts(recipe: Any, split: str) -> list[HeldOut]:
    task, found = recipe.task(), []
    for difficulty, questions in recipe.data.questions(split).items():
        for i in range(len(questions)):
            wanted = tuple(questions.answer(i).tolist())

            def right(answer: Answer, wanted: tuple[int, ...] = wanted) -> bool:
                return answer.tokens[: len(wanted)] == wanted

            found.append(HeldOut(task.format(questions.prompt(i)), right, str(difficulty)))
    return found


def of_records(task: Any, records: Sequence[Record]) -> list[HeldOut]:
    """Records as a task judges them; with their swaps where the task has them."""

    def judge(record: Record) -> Callable[[Answer], bool]:
        return lambda answer: bool(task.score(record, answer.text).right)

    found = [HeldOut(r.question, judge(r), record=r) for r in records]
    if not _has_swaps(task, records):
        return found
    return [
        HeldOut(one.question, one.right, record=one.record, swap=HeldOut(
            other.question, judge(other), record=other))
        for one, other in zip(found, task.swap(records), strict=True)
    ]  # fmt: skip


def _has_swaps(task: Any, records: Sequence[Record]) -> bool:
    """Whether each of the records can be asked the other way round."""
    if not hasattr(task, "swap") or not records:
        return False
    try:
        task.swap(records[:1])
    except (KeyError, ValueError):  # GSM8K has no swaps, generated chains have
        return False
    return True


def of_file(
    path: str | Path,
    kind: RecordKind = "auto",
    *,
    names: Names | None = None,
    judge: str = "auto",
    num: int | None = None,
    seed: int = 0,
) -> tuple[Any, list[HeldOut], ReadFile]:
    """The task, the questions and what was read of a file of records; those without steps too.

    Raises:
        FileNotFoundError, ValueError: see `inward.data.thoughts.anyfile.read_any`.
    """
    from inward.data.drawn import drawn

    read = read_any(path, kind, names=names)
    some = drawn(len(read.records), num, seed=seed, what="questions")
    records = [read.records[i] for i in some]
    task = judge_for(records, judge)
    return task, of_records(task, records), read


def example(recipe: Any) -> str:
    """A held-out question of a recipe as it can be typed; "" where there is none."""
    from inward.recipes.huginn_stories import StoriesRecipe
    from inward.recipes.own_drafts import TextData
    from inward.recipes.own_huginn import FineTuneRecipe
    from inward.recipes.tidar import TiDARRecipe
    from inward.tasks.processors import PuzzleProcessor

    whole = whole_of(recipe)
    held = recipe if isinstance(recipe, FineTuneRecipe) else getattr(whole, "data", None)
    if isinstance(held, FineTuneRecipe | TextData):
        asked = held.parts()[1][0]
        if isinstance(asked.asked, str):
            return asked.asked or " ".join(asked.said.split()[:8])
        return asked.asked[-1][1]
    if isinstance(whole, TiDARRecipe | StoriesRecipe):
        return "Once upon a time"
    try:
        found = questions_of(recipe, "valid")
    except ValueError:
        return ""  # token files, for one
    question = next((q.question for q in found), "")
    if isinstance(question, str):
        return question
    task = whole.task()
    if task.name == "arc":
        return ""
    piece = PuzzleProcessor(task).piece
    rows = ["".join(piece(int(cell)) for cell in row) for row in question]
    return "".join(rows) if task.name.startswith("sudoku") else "\n".join(rows)
