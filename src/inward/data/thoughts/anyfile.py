"""Records of whatever file one has, and its splits.

    found = read_any("train.jsonl")               found.records, found.kind, found.skipped
    parts = cut(found.records, num_valid=100)     {"train": ..., "valid": ..., "test": ...}

    json      objects with question, steps (a list, or a text of lines) and answer: the official
              files of Coconut, in a list or one a line; other names by `Names`
    gsm8k     question, and an answer whose calculator marks <<16-3-4=9>> are the steps, #### last
    icot      lines question||step step #### answer
    chat      {"messages": [{"role": ..., "content": ...}, ...]} (or "conversations" of from and
              value) of one turn: the user's words are the question, the lines of the assistant's
              reasoning (`reasoning_content`, `reasoning`, `thinking`, or what stands in
              <think>...</think>) are the steps, the rest is the answer
    prontoqa  the JSON of ProntoQA's generator

Which of these a file is, "auto" tells by its first row. A record need not have steps; who cannot
use such a record leaves it out here, and it is counted with the reason.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from inward.common.checks import checked_seed
from inward.data.rows import FileRows, read_rows
from inward.data.thoughts.prontoqa import read_prontoqa
from inward.data.thoughts.records import Record, from_gsm8k, from_icot, from_row

RecordKind = Literal["auto", "json", "gsm8k", "icot", "chat", "prontoqa"]
NO_STEPS = "no steps"
_THOUGHT = ("reasoning_content", "reasoning", "thinking")
_SPLITS = {"train": "train", "training": "train", "valid": "valid", "validation": "valid",
           "val": "valid", "dev": "valid", "test": "test"}  # fmt: skip


@dataclass(frozen=True)
class Names:
    """What an object of a file calls the fields of a record; `split`: the field that says which
    split it belongs to, empty: none does."""

    question: str = "question"
    steps: str = "steps"
    answer: str = "answer"
    split: str = ""

    def __post_init__(self) -> None:
        used = [name for name in (self.question, self.steps, self.answer, self.split) if name]
        if twice := [name for name, times in Counter(used).items() if times > 1]:
            raise ValueError(f"the field {twice[0]!r} is named for two things; each needs its own")


@dataclass(frozen=True, eq=False)
class ReadFile:
    """What was read.

    splits: of each record, "" where the file does not say. skipped: reason -> how many.
    notes: what else is to be told of it.
    """

    path: Path
    kind: str
    records: list[Record] = field(repr=False)
    splits: list[str] = field(repr=False)
    skipped: Mapping[str, int]
    sha256: str
    notes: tuple[str, ...] = ()


def read_any(
    name: str | os.PathLike,
    kind: RecordKind = "auto",
    *,
    names: Names | None = None,
    without_steps: Literal["keep", "skip", "refuse"] = "keep",
    longest: int = 0,
) -> ReadFile:
    """Records of a file (a path, or a name in $INWARD_DATA), in its order.

    Args:
        without_steps: what happens to records without steps.
        longest: leave out records of more characters, question and steps together; 0: none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row that is no record (file and row are named, with what it lacks), a record
            without steps if these are refused, or nothing that is left.
    """
    names = names or Names()
    rows = read_rows(name)
    found = kind_of(rows, names) if kind == "auto" else kind
    if found not in get_args(RecordKind):
        raise ValueError(f"the format is {kind!r}; choose one of {', '.join(get_args(RecordKind))}")
    _check_names(rows, found, names)
    records, splits, skipped = [], [], Counter()
    for where, record, split in _records(rows, found, names):
        if isinstance(record, str):
            skipped[record] += 1
        elif not record.steps and without_steps == "refuse":
            raise ValueError(
                f"{where}: the record ({record.question[:60]!r}) has no steps, which this training "
                "works on; leave such records out (without_steps skip), or train without steps "
                "(pattern no-cot or fixed)"
            )
        elif not record.steps and without_steps == "skip":
            skipped[NO_STEPS] += 1
        elif longest and len(record.question) + sum(map(len, record.steps)) > longest:
            skipped[f"more than {longest} characters"] += 1
        else:
            records.append(record)
            splits.append(split)
    if not records:
        why = ", ".join(f"{n} with {reason}" for reason, n in skipped.items())
        raise ValueError(
            f"{rows.path} leaves no record to work on ({why or 'it is empty'}); read as {found}"
        )
    notes = _notes(rows) if found == "chat" else ()
    return ReadFile(rows.path, found, records, splits, dict(skipped), rows.sha256, notes)


def _check_names(rows: FileRows, kind: str, names: Names) -> None:
    """Names that this file has no use for are refused, before any record is read."""
    usual = Names()
    given = [n for n in ("question", "steps", "answer") if getattr(names, n) != getattr(usual, n)]
    if given and kind in ("icot", "chat", "prontoqa"):
        raise ValueError(
            f"{rows.path} was read as {kind}, which has its own names; leave out the name of "
            f"{', '.join(given)}, or say another format"
        )
    if "steps" not in given or not names.steps:
        return
    if not any(isinstance(row, dict) and names.steps in row for row in rows.rows):
        first = ", ".join(map(str, rows.rows[0])) if isinstance(rows.rows[0], dict) else "none"
        raise ValueError(f"{rows.path}: no record has the field {names.steps!r} (it has {first})")


def _notes(rows: FileRows) -> tuple[str, ...]:
    """What is left out of chats without their being skipped."""
    told = sum(
        m.get("role") == "system"
        for row in rows.rows
        if isinstance(row, dict)
        for m in _messages(row) or ()
    )
    return (f"left out {told} system messages: a question is what the user says",) if told else ()


def kind_of(rows: FileRows, names: Names) -> str:
    """What a file seems to be, by its first row.

    Raises ValueError that says what was looked for.
    """
    if rows.kind == "named":
        return "prontoqa"
    if not rows.rows:
        raise ValueError(f"{rows.path} holds no records; it is empty, fetch it again")
    first = rows.rows[0]
    if rows.kind == "lines":
        if "||" in first and "####" in first:
            return "icot"
        raise ValueError(
            f"{rows.path} holds lines of text, the first without || and ####: it has no questions "
            "and answers. Records are question||steps #### answer, or JSON; texts train tidar and "
            "tidar-adapter"
        )
    if not isinstance(first, dict):
        raise ValueError(f"{rows.where(0)} is a JSON {type(first).__name__}; expected an object")
    if _messages(first) is not None:
        return "chat"
    answer = first.get(names.answer)
    if names.steps not in first and isinstance(answer, str) and "####" in answer:
        return "gsm8k"
    return "json"


def _records(rows: FileRows, kind: str, names: Names) -> Any:
    """(where, a record or why it is skipped, its split) of every row."""
    if kind == "prontoqa":
        for number, record in enumerate(read_prontoqa(rows.path), start=1):
            yield f"{rows.path}, example {number}", record, ""
        return
    for place, row in enumerate(rows.rows):
        where = rows.where(place)
        try:
            yield where, _record(row, kind, names), _split(row, names)
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error


def _split(row: Any, names: Names) -> str:
    if not names.split:
        return ""
    said = row.get(names.split) if isinstance(row, dict) else None
    if not isinstance(said, str) or said.lower() not in _SPLITS:
        raise ValueError(
            f"its field {names.split!r} is {said!r}; it must name a split: {', '.join(_SPLITS)}"
        )
    return _SPLITS[said.lower()]


def _record(row: Any, kind: str, names: Names) -> Record | str:
    if kind == "icot":
        if not isinstance(row, str):
            raise ValueError("it is JSON, not a line question||steps #### answer")
        return from_icot(row)
    if not isinstance(row, dict):
        raise ValueError(f"it is a JSON {type(row).__name__}; expected an object")
    if kind == "chat":
        return _from_chat(row)
    if missing := [name for name in (names.question, names.answer) if name not in row]:
        raise ValueError(
            f"it lacks {', '.join(missing)} (it has {', '.join(map(str, row))}); name the fields "
            "of question, steps and answer"
        )
    if kind != "gsm8k":
        return from_row(_renamed(row, names))
    if not isinstance(row[names.answer], str):
        raise ValueError(f"the answer is {row[names.answer]!r}; GSM8K's is a text with ####")
    return from_gsm8k({"question": row[names.question], "answer": row[names.answer]})


def _renamed(row: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """The row under the names of a record; steps may be missing, or one text of lines."""
    own = {names.question: "question", names.steps: "steps", names.answer: "answer"}
    # a field that is called like one of ours and is not named as it means something else
    meta = {n: v for n, v in row.items() if n not in (names.split, *own, *own.values())}
    found = meta | {ours: row[theirs] for theirs, ours in own.items() if theirs in row}
    steps = found.get("steps") or []
    found["steps"] = _listed(steps) if isinstance(steps, str) else steps
    answer = found["answer"]
    if isinstance(answer, float) and not math.isfinite(answer):
        raise ValueError(f"the answer is {answer}, which is no number; leave the record out")
    if isinstance(answer, bool | int | float):
        found["answer"] = str(answer)
    return found


def _listed(text: str) -> list[str]:
    """Steps that are one text: a JSON list, as tables hold one, or lines."""
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            found = None
        if isinstance(found, list) and all(isinstance(step, str) for step in found):
            return found
    return _lines(text)


def _lines(text: str) -> list[str]:
    return [line for part in text.split("\n") if (line := part.strip())]


# --------------------------------------------------------------------------------------------------
# Chats


def _messages(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The messages of a row in OpenAI's form; None if it holds none."""
    found = row.get("messages", row.get("conversations"))
    if not isinstance(found, list) or not all(isinstance(m, dict) for m in found):
        return None
    who = {"human": "user", "gpt": "assistant"}
    return [
        {**m, "role": who.get(m["from"], m["from"]), "content": m.get("value")}
        if "from" in m
        else m
        for m in found
    ]


def chat_of(row: Any) -> list[dict[str, Any]]:
    """Messages with role and content of one row.

    Raises ValueError that says what is missing.
    """
    found = _messages(row) if isinstance(row, dict) else None
    if not found:
        raise ValueError("it has no list of messages")
    for number, message in enumerate(found, start=1):
        good = isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        if not good:
            raise ValueError(f"message {number} needs a role and a content that is a text")
    return found


def _from_chat(row: Mapping[str, Any]) -> Record | str:
    messages = [m for m in chat_of(row) if m["role"] != "system"]
    if [m["role"] for m in messages] != ["user", "assistant"]:
        return "more or less than one turn"
    question, reply = messages[0]["content"].strip(), messages[1]
    thought = next((reply[name] for name in _THOUGHT if isinstance(reply.get(name), str)), "")
    said = reply["content"]
    if inside := re.match(r"\s*<think>(.*?)</think>", said, re.DOTALL):
        thought, said = thought or inside[1], said[inside.end() :]
    return Record(question, tuple(_lines(thought)), said.strip())


# --------------------------------------------------------------------------------------------------
# Splits


def question_key(record: Record) -> str:
    """What makes two questions the same one: their words, whatever the blanks between them."""
    return " ".join(record.question.split())


def cut(
    records: Sequence[Record], *, num_valid: int, num_test: int = 0, seed: int = 0
) -> dict[str, list[Record]]:
    """Hold out records, drawn by a seed; all records of one question go into the same split.

    Returns train, valid and test, each in the order of the file. A held-out question with several
    records counts with the first of them alone.

    Raises ValueError if nothing would be left to train on.
    """
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault(question_key(record), []).append(i)
    if num_valid < 0 or num_test < 0 or num_valid + num_test >= len(groups):
        raise ValueError(
            f"{num_valid} questions for validation and {num_test} for the test of {len(groups)} "
            "different ones leave none to train on; hold out fewer"
        )
    order = np.random.default_rng(checked_seed(seed)).permutation(len(groups))
    places = [[*groups.values()][i] for i in order]
    valid, test = places[:num_valid], places[num_valid : num_valid + num_test]
    rest = sorted(i for place in places[num_valid + num_test :] for i in place)
    return {
        "train": [records[i] for i in rest],
        "valid": [records[i] for i in sorted(place[0] for place in valid)],
        "test": [records[i] for i in sorted(place[0] for place in test)],
    }


def apart(train: Sequence[Record], *held: Sequence[Record]) -> tuple[list[Record], int]:
    """Training records whose question is in none of the held-out sets, and how many were."""
    known = {question_key(record) for part in held for record in part}
    kept = [record for record in train if question_key(record) not in known]
    return kept, len(train) - len(kept)
