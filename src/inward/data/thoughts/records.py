"""Question, reasoning steps, answer: the record that every curriculum starts from, and its readers.

All published data of Coconut (arXiv 2412.06769) come down to three fields. Readers here take the
released JSON, the text files of iCoT (arXiv 2405.14838) and the JSON lines of GSM8K, whose
calculator marks `<<16-3-4=9>>` are the steps. What a file holds beyond the three fields is kept
in `meta`: ProsQA's graph (`edges`, `root`, `target`, `neg_target`, `idx_to_symbol`).

A record need not have steps (13 solutions in 1,000 of GSM8K mark no calculation): a curriculum
that hides or speaks steps refuses it, see `with_steps`. No torch here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from inward.common.files import read_text, replacing

_MARK = re.compile(r"<<[^<>]*>>")
_FIELDS = ("question", "steps", "answer")


@dataclass(frozen=True)
class Record:
    """One question with its reasoning and its answer, as text; `meta` is whatever else is known.

    Raises ValueError for a field that is not text, or an empty question or answer.
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    meta: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.steps, str):
            raise ValueError(f"steps is the text {self.steps!r}; give a list with one text a step")
        object.__setattr__(self, "steps", tuple(self.steps))
        for name, text in (("question", self.question), ("answer", self.answer)):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"the {name} is {text!r}; it must be text, and not empty")
        for number, step in enumerate(self.steps, start=1):
            if not isinstance(step, str) or not step.strip():
                raise ValueError(f"step {number} is {step!r}; it must be text, and not empty")

    def to_dict(self) -> dict[str, Any]:
        """Return the published form; entries of `meta` stand beside the three fields."""
        return {
            **self.meta,
            "question": self.question,
            "steps": [*self.steps],
            "answer": self.answer,
        }


def with_steps(records: Sequence[Record], *, skip: bool = False) -> list[Record]:
    """Records that have steps.

    skip   leave the others out instead of refusing them
    Raises ValueError that names the first record without steps, or that none is left.
    """
    without = [i for i, record in enumerate(records) if not record.steps]
    if without and not skip:
        raise ValueError(
            f"record {without[0]} ({records[without[0]].question[:60]!r}) has no steps, and "
            f"{len(without) - 1} more; this curriculum works on steps: leave them out with "
            "skip=True, or train with the curriculum NoCoT"
        )
    kept = [record for record in records if record.steps]
    if not kept:
        raise ValueError("no record with steps is left; check the reader's `steps` choice")
    return kept


def read_json(path: str | os.PathLike) -> list[Record]:
    """Read the released form: a JSON list of objects with question, steps and answer.

    Raises FileNotFoundError, or ValueError that names the file and the line (broken JSON) or the
    entry (missing fields), with the remedy.
    """
    path = Path(path)
    try:
        rows = json.loads(_text(path))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply for records") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno} is not JSON: {error.msg}; if the file was cut off, fetch "
            "it again; for one object a line use read_gsm8k"
        ) from error
    if not isinstance(rows, list):
        raise ValueError(
            f"{path} holds a JSON {type(rows).__name__}; expected a list of objects with "
            f"{', '.join(_FIELDS)} (for the file of ProntoQA's generator use "
            "inward.data.thoughts.prontoqa)"
        )
    return _each(path, "entry", rows, from_row)


def write_json(records: Iterable[Record], path: str | os.PathLike) -> Path:
    """Write the released form (temporary name, then rename), one record a line; return its path."""
    lines = [json.dumps(record.to_dict(), ensure_ascii=False) for record in records]
    with replacing(path) as partial:
        partial.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    return Path(path)


def read_icot(path: str | os.PathLike) -> list[Record]:
    """Read iCoT's lines `question||<<a*b=c>> <<...>> #### answer`; steps are split at spaces.

    Raises FileNotFoundError, or ValueError that names the file, the line and what it lacks.
    """
    path = Path(path)
    return _each(path, "line", _lines(path), from_icot)


def read_gsm8k(
    path: str | os.PathLike, *, steps: Literal["equations", "sentences"] = "equations"
) -> list[Record]:
    """Read GSM8K's JSON lines.

    steps   "equations": the calculator marks, `<<16-3-4=9>>` each a step, as in GSM8k-Aug;
            "sentences": the lines of the solution with the marks taken out.
    The answer is what follows `####`, without thousands commas. Solutions without marks give
    records without steps.
    Raises FileNotFoundError, or ValueError that names the file, the line and what it lacks.
    """
    if steps not in ("equations", "sentences"):
        raise ValueError(f'steps is {steps!r}; choose "equations" or "sentences"')
    path = Path(path)

    return _each(path, "line", _lines(path), lambda line: from_gsm8k(json.loads(line), steps=steps))


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no data file at {path}; check the path or fetch the data first")
    return read_text(path)


def _lines(path: Path) -> list[str]:
    """Split at line feeds only: a question may hold other characters that end a line."""
    text = _text(path).rstrip("\n")
    return text.split("\n") if text else []


def _each(
    path: Path, unit: str, rows: Sequence[Any], read: Callable[[Any], Record]
) -> list[Record]:
    """Read every row; an error names the file and the number of the row, counted from 1."""
    if not rows:
        raise ValueError(f"{path} holds no records; it is empty, fetch it again")
    records = []
    for number, row in enumerate(rows, start=1):
        try:
            records.append(read(row))
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, {unit} {number}: {error}") from error
    return records


def from_gsm8k(row: Any, *, steps: Literal["equations", "sentences"] = "equations") -> Record:
    """One object of GSM8K, see `read_gsm8k`; ValueError says what it lacks."""
    missing = sorted({"question", "answer"} - set(row))
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}; each line needs question and answer")
    solution, answer = _halves(row["answer"], "####")
    found = (
        _MARK.findall(solution)
        if steps == "equations"
        else [text for line in _MARK.sub("", solution).split("\n") if (text := line.strip())]
    )
    return Record(row["question"], tuple(found), answer.replace(",", ""))


def from_row(row: Any) -> Record:
    """One object of the released form; ValueError says what it lacks."""
    if not isinstance(row, dict):
        raise ValueError(f"it is a JSON {type(row).__name__}; expected an object")
    missing = [name for name in _FIELDS if name not in row]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}; each object needs {', '.join(_FIELDS)}")
    meta = {name: value for name, value in row.items() if name not in _FIELDS}
    return Record(row["question"], row["steps"], row["answer"], meta)


def from_icot(line: str) -> Record:
    """One line of iCoT's form; ValueError says what it lacks."""
    question, rest = _halves(line, "||")
    steps, answer = _halves(rest, "####")
    return Record(question, tuple(steps.split()), answer)


def _halves(text: str, mark: str) -> tuple[str, str]:
    """Both sides of the last `mark`, stripped."""
    first, found, second = text.rpartition(mark)
    if not found:
        raise ValueError(f"it has no {mark!r} in {text[:60]!r}; is this the right reader?")
    return first.strip(), second.strip()
