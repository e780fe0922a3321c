"""`inward eval`: accuracy and cost of any model; which options there are depends on what it reads.

puzzles   `inward.cli.puzzles`
tasks     `inward.cli.harness`: those of lm-eval, by --harness
texts     here: questions with answers (accuracy), and what a drafting model drafts
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inward.cli.ask import Asking, command, spelled_out
from inward.cli.options import _console, _go
from inward.common.files import check_targets

DRAWN = 200
"""Questions of a recipe's test set, where --num does not say how many"""


def eval(words: list[str]) -> int:
    """Measure a model."""
    from inward.cli.harness import asked_for, harness

    if asked_for(words):
        return harness(words)
    if not _reads_text(words):
        from inward.cli.puzzles import eval_puzzles

        return eval_puzzles(words)
    return _go(command(TextEval), "eval", spelled_out(words))


def _reads_text(words: list[str]) -> bool:
    """Whether the model that these words name answers in text; False also if they name none."""
    from inward import hub
    from inward.thinker import find_model

    for word in words:
        if not word.startswith("-"):
            try:
                return hub.door(hub.method_of(find_model(word))).reads == "text"
            except (FileNotFoundError, NotADirectoryError):
                continue
    return False


@dataclass(kw_only=True)
class TextEval(Asking):
    """Accuracy and cost of a model on held-out questions of its recipe, or on those of a file; of a
    model that drafts, also perplexity and how much of a draft is accepted."""

    data: Path | None = None
    """questions (JSON, JSON lines, iCoT's lines, chats) or, for models that draft, texts; None: the
    recipe's test set, else its validation set"""
    format: Literal["auto", "json", "gsm8k", "icot", "chat", "prontoqa"] = "auto"
    """what the file of questions is; auto: told by its first row"""
    question: str = "question"
    """what the file calls the question"""
    steps: str = "steps"
    """and the steps"""
    answer: str = "answer"
    """and the answer"""
    score_by: Literal["auto", "exact", "equations", "prosqa"] = "auto"
    """how answers to the file's questions are judged; auto: the strictest that they allow"""
    num: int | None = None
    """so many questions (texts), drawn by --seed; None: all of a file, 200 of a recipe's"""
    by_stage: bool = True
    """models trained by a curriculum: leave out the runs that ask as each stage was asked"""
    out: Path | None = None
    """file to which the results are added as JSON lines"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.evals.rows import append_row, command_line
        from inward.evals.text_tables import drafts_table, text_tables

        check_targets(self.out)
        options, thinker = self.options(), self.thinker()
        thinker.check(**options)
        told = command_line(["eval", *words])
        results = list(self.results(thinker, options, told))
        for result in results:
            drafts = hasattr(result, "perplexity")
            _console().print(drafts_table(result) if drafts else text_tables(result))
            if self.out is not None:
                append_row(self.out, result.to_row())
        return 0

    def results(self, thinker: Any, options: dict[str, Any], told: str) -> Any:
        """What can be measured of this model on these data."""
        if self.holds_questions(thinker):
            yield self._accuracy(thinker, options, told)
        if thinker.method.name in ("tidar", "plain"):
            yield self._drafts(thinker, options, told)

    def holds_questions(self, thinker: Any) -> bool:
        """Whether there are answers to be right about."""
        if self.data is None:
            return thinker.method.name not in ("tidar", "plain")
        from inward.data.texts.anyfile import read_texts

        if thinker.method.name not in ("tidar", "plain"):
            return True
        read = read_texts(self.data, self.format, names=self._names())
        return any(p.record for p in read.passages)

    def _names(self) -> Any:
        from inward.data.thoughts.anyfile import Names

        return Names(self.question, self.steps, self.answer)

    def _accuracy(self, thinker: Any, options: dict[str, Any], told: str) -> Any:
        from dataclasses import replace

        from inward.evals import texts

        recipe, task, questions, dataset = self.questions(thinker)
        result = texts.evaluate(
            thinker, questions, what=self.model, dataset=dataset, seed=self.seed, task=task,
            command=told, **options,
        )  # fmt: skip
        asked_otherwise = {"switch", "thoughts", "votes", "effort"} & set(options)
        if recipe is None or not self.by_stage or asked_otherwise:
            return result
        return replace(result, stages=texts.by_stage(thinker, recipe, questions))

    def questions(self, thinker: Any) -> tuple[Any, Any, Any, str]:
        """The curriculum's recipe (or None), the task, the questions, and what to call them."""
        from inward.evals import questions as held
        from inward.recipes.coconut import CoconutRecipe
        from inward.recipes.of import recipe_of

        if self.data is not None:
            task, found, read = held.of_file(
                self.data, self.format, names=self._names(), judge=self.score_by, num=self.num,
                seed=self.seed,
            )  # fmt: skip
            dataset = self._drawn(str(self.data), len(found), len(read.records))
            return self._curriculum(thinker), task, found, dataset
        recipe = recipe_of(self.model)
        whole = held.whole_of(recipe)
        holds = whole if hasattr(whole, "has_test") else getattr(whole, "data", None)
        split = "test" if getattr(holds, "has_test", True) else "valid"
        every = held.questions_of(recipe, split)
        num = min(DRAWN, len(every)) if self.num is None else self.num
        found = held.held_out(recipe, num=num, split=split, seed=self.seed)
        dataset = self._drawn(f"{recipe.name} {split}", len(found), len(every))
        staged = isinstance(whole, CoconutRecipe)
        return whole if staged else None, whole.task() if staged else None, found, dataset

    def _curriculum(self, thinker: Any) -> Any:
        """The recipe of a model that was trained by a curriculum; None for others."""
        from inward.evals.questions import whole_of
        from inward.recipes.coconut import CoconutRecipe
        from inward.recipes.of import recipe_of

        if thinker.method.name != "coconut":
            return None
        try:
            whole = whole_of(recipe_of(self.model))
        except (FileNotFoundError, ValueError):  # saved by hand, or its data is elsewhere now
            return None
        return whole if isinstance(whole, CoconutRecipe) else None

    def _drawn(self, name: str, num: int, total: int) -> str:
        return name if num == total else f"{name}, {num} of {total} drawn by seed {self.seed}"

    def _drafts(self, thinker: Any, options: dict[str, Any], told: str) -> Any:
        from inward.evals import drafts
        from inward.evals.questions import whole_of
        from inward.recipes.of import recipe_of

        tokenizer = thinker.processor.tokenizer
        if self.data is not None:
            texts = drafts.texts_of_file(
                self.data, tokenizer, num=self.num, seed=self.seed, kind=self.format,
                names=self._names(),
            )  # fmt: skip
            dataset = str(self.data)
        elif thinker.method.name == "plain":
            raise ValueError(f"{self.model} has no recipe that names data; give it some: --data")
        else:
            num = self.num or 64
            recipe = whole_of(recipe_of(self.model))
            texts, dataset = self._held(thinker, recipe, num)
        if refused := {"effort", "stop", "sampling"} & set(options):
            raise ValueError(
                f"{', '.join(sorted(refused))}: a model that drafts is measured greedily"
            )
        return drafts.evaluate(
            thinker, texts, what=self.model, dataset=dataset, command=told,
            **({"max_new_tokens": 64} | options),
        )  # fmt: skip

    def _held(self, thinker: Any, recipe: Any, num: int) -> tuple[Any, str]:
        """Held-out texts of the run's file, or new ones of the model's own."""
        from inward.evals import drafts
        from inward.recipes.own_drafts import TextData

        if isinstance(recipe.data, TextData):
            found = drafts.held_in(recipe.data, thinker.processor.tokenizer)[:num]
            return found, f"{recipe.data.recipe.data} held out"
        found = drafts.own_texts(thinker, recipe, num=num, seed=self.seed + 1000)
        return found, f"{num} texts of the model's own"
