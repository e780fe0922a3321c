"""Exact match of the answer: the task of records of which nothing else is known.

The answer is what stands behind the last `###` of what was said (all of it where there is none),
blanks at the ends and runs of blanks aside. Beside it, for comparison: the steps that were spoken,
how many of them are steps of the record, and the best constant answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from inward.data.thoughts.records import Record

MARK = "###"
"""What stands before the answer (`inward.data.thoughts.tokenizers.Form`)"""


@dataclass(frozen=True)
class ExactScore:
    """One output: is the answer right; steps spoken, and of these the record's own."""

    right: bool
    num_spoken: int
    num_gold: int


def plain(text: str) -> str:
    """Without blanks at the ends, and with single ones within."""
    return " ".join(text.split())


@dataclass(frozen=True)
class ExactTask:
    """See the top of the file."""

    name: str = "exact"

    def ask(self, records: Sequence[Record], *, seed: int = 0) -> list[Record]:
        """Records as they are."""
        return list(records)

    def check(self, records: Sequence[Record]) -> None:
        """Raise ValueError for an answer that no output could be told to be: it holds the mark."""
        for record in records:
            if MARK in record.answer:
                raise ValueError(
                    f"the answer {record.answer[:60]!r} holds {MARK!r}, which stands before every "
                    "answer; write it in another way"
                )

    def score(self, record: Record, text: str) -> ExactScore:
        """Judge what the model said after the question. Never raises for an odd output."""
        before, _, said = text.rpartition(MARK)
        right = plain(said) == plain(record.answer)
        gold = {plain(step) for step in record.steps}
        spoken = [line for part in before.split("\n") if (line := plain(part.rstrip("#")))]
        return ExactScore(right, len(spoken), sum(line in gold for line in spoken))


@dataclass(frozen=True)
class ExactReport:
    """Numbers of a set of answers; `metrics` is flat, for logs and tables.

    accuracy     of the questions
    gold_steps   share of spoken lines that are steps of the record; absent if nothing is spoken
    spoken       lines spoken per answer
    constant     accuracy of the best constant answer, the control
    """

    metrics: dict[str, float]
    scores: list[ExactScore] = field(repr=False)


def report(task: ExactTask, records: Sequence[Record], texts: Sequence[str]) -> ExactReport:
    """Score outputs, one a record.

    Raises ValueError if the numbers of records and outputs differ, or are 0.
    """
    if len(texts) != len(records) or not records:
        raise ValueError(f"{len(records)} records but {len(texts)} texts; give one each")
    scores = [task.score(record, text) for record, text in zip(records, texts, strict=True)]
    metrics = {"accuracy": sum(s.right for s in scores) / len(scores)}
    spoken = sum(score.num_spoken for score in scores)
    if spoken:
        metrics["gold_steps"] = sum(score.num_gold for score in scores) / spoken
    metrics["spoken"] = spoken / len(scores)
    most = Counter(plain(r.answer) for r in records).most_common(1)[0][1]
    return ExactReport(metrics | {"constant": most / len(records)}, scores)
