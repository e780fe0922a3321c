"""Arithmetic chains and GSM8K: how to ask, and how to score answer and spoken equations.

The answer is what stands after the last `#`, commas removed, by equality (Coconut's released code,
arXiv 2412.06769). Beside it: the share of spoken equations that are true as arithmetic, and the
share that are steps of the gold chain; and for generated chains the *paired* score, where the
question that differs in the starting number alone must be right as well. The control is the best
constant answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from inward.data.thoughts import chains
from inward.data.thoughts.records import Record
from inward.tasks import paired
from inward.tasks.prosqa import final_answer, spoken_steps

_NUMBER = r"-?\d*\.?\d+"
_TERM = re.compile(rf"\s*({_NUMBER})\s*")
_EQUATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")


@dataclass(frozen=True)
class ChainScore:
    """One output: is the answer right, equations spoken, of these true, of these in the gold."""

    right: bool
    num_spoken: int
    num_true: int
    num_gold: int


@dataclass(frozen=True)
class ChainTask:
    """Generated chains in sentences ("text") or equations ("symbolic"); GSM8K is scored alike."""

    rendering: chains.Rendering = "text"

    @property
    def name(self) -> str:
        """Name in tables and file names."""
        return "chains" if self.rendering == "text" else "chains-symbolic"

    def rewrite(self, record: Record, rng: np.random.Generator) -> Record:
        """The chain anew under other names and in another order. For `LatentSource`."""
        return chains.rendered(record, rng, rendering=self.rendering)

    def ask(self, records: Sequence[Record], *, seed: int = 0) -> list[Record]:
        """Records as they are put to a model: chains of another rendering are written in this."""
        return [
            record
            if record.meta.get("rendering", self.rendering) == self.rendering
            else self.rewrite(record, np.random.default_rng([seed, i]))
            for i, record in enumerate(records)
        ]

    def swap(self, records: Sequence[Record]) -> list[Record]:
        """The same questions from the other start."""
        return [chains.swapped(record) for record in records]

    def score(self, record: Record, text: str) -> ChainScore:
        """Judge what the model said after the question. Never raises for an odd output."""
        right = final_answer(text) == record.answer.replace(",", "").strip()
        gold = {step.replace(" ", "") for step in record.steps}
        spoken = spoken_steps(text)
        return ChainScore(
            right,
            len(spoken),
            sum(is_true(line) for line in spoken),
            sum(line.replace(" ", "") in gold for line in spoken),
        )


def is_true(equation: str) -> bool:
    """Whether `<<expression=result>>` holds: + - * / and parentheses, exact or to two decimals.

    Anything else is not true; a division by zero neither. Percent and currency are not read.
    """
    found = _EQUATION.fullmatch(equation.strip())
    if found is None or len(equation) > 200:
        return False
    try:
        value, rest = _sum(found[1].replace(",", ""))
        result, after = _sum(found[2].replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return False
    if rest.strip() or after.strip():
        return False
    return abs(value - result) <= (0 if value.denominator == 1 else Fraction(1, 100))


# A calculator in three rules, sum of products of factors: Python's `eval` reads what models write.


def _sum(text: str) -> tuple[Fraction, str]:
    value, text = _product(text)
    while (text := text.lstrip()) and text[0] in "+-":
        right, rest = _product(text[1:])
        value, text = value + right if text[0] == "+" else value - right, rest
    return value, text


def _product(text: str) -> tuple[Fraction, str]:
    value, text = _factor(text)
    while (text := text.lstrip()) and text[0] in "*/":
        right, rest = _factor(text[1:])
        value, text = value * right if text[0] == "*" else value / right, rest
    return value, text


def _factor(text: str) -> tuple[Fraction, str]:
    text = text.lstrip()
    if text.startswith("("):
        value, text = _sum(text[1:])
        if not text.lstrip().startswith(")"):
            raise ValueError("a parenthesis is not closed")
        return value, text.lstrip()[1:]
    found = _TERM.match(text)
    if found is None:
        raise ValueError(f"no number at {text[:20]!r}")
    return Fraction(found[1]), text[found.end() :]


@dataclass(frozen=True)
class ChainReport:
    """Numbers of a set of answers; `metrics` is flat, for logs and tables.

    accuracy         of the questions
    paired           question and swap both right; both_sides: mean over the two
    true_equations   share of spoken lines that are true equations; absent if nothing is spoken
    gold_equations   share of spoken lines that are steps of the gold chain
    spoken           lines spoken per answer
    constant         accuracy of the best constant answer, the control
    """

    metrics: dict[str, float]
    scores: list[ChainScore] = field(repr=False)
    swapped_scores: list[ChainScore] = field(repr=False, default_factory=list)


def report(
    task: ChainTask,
    records: Sequence[Record],
    texts: Sequence[str],
    swapped_texts: Sequence[str] | None = None,
) -> ChainReport:
    """Score outputs, one a record, and those of the swapped questions if they were asked.

    Raises ValueError if the numbers of records and outputs differ, or are 0.
    """
    scores, other = paired.scores(task, records, texts, swapped_texts)
    metrics = paired.accuracies(scores, other)
    spoken = sum(score.num_spoken for score in scores)
    if spoken:
        metrics["true_equations"] = sum(score.num_true for score in scores) / spoken
        metrics["gold_equations"] = sum(score.num_gold for score in scores) / spoken
    metrics["spoken"] = spoken / len(scores)
    metrics["constant"] = Counter(r.answer for r in records).most_common(1)[0][1] / len(records)
    return ChainReport(metrics, scores, other)
