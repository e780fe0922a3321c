"""Texts of whatever file one has, for models that learn to draft.

    text      plain text: what stands between empty lines is a text; without any, every line
    jsonl     objects with a field "text" (JSON list, or one a line)
    chat      {"messages": [...]}: every reply of the assistant is what is said
    records   question, steps, answer (`inward.data.thoughts.anyfile`): the question is asked

A `Passage` is what a model is given and what it says there: a text has nothing before it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from inward.common.checks import checked_seed
from inward.data.rows import FileRows, read_rows
from inward.data.thoughts.anyfile import Names, RecordKind, chat_of, read_any
from inward.data.thoughts.records import Record
from inward.data.thoughts.tokenizers import Form

TextKind = Literal["auto", "text", "jsonl", "chat", "records", "json", "gsm8k", "icot", "prontoqa"]
"""json, gsm8k, icot and prontoqa are kinds of records"""


@dataclass(frozen=True)
class Passage:
    """What is given, and what is said.

    asked: a text, or messages as ((role, content), ...); empty: nothing.
    said: the text that follows; record: where it comes from, if from one.
    """

    asked: str | tuple[tuple[str, str], ...]
    said: str
    record: Record | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class TextFile:
    """What was read."""

    path: Path
    kind: str
    passages: list[Passage] = field(repr=False)
    skipped: int
    """rows without text"""
    sha256: str

    def told(self) -> str:
        """In one line."""
        left = f"; skipped {self.skipped}: without text" if self.skipped else ""
        return f"{self.path}: {len(self.passages)} texts ({self.kind}){left}"


def read_texts(
    name: str | os.PathLike,
    kind: TextKind = "auto",
    *,
    names: Names | None = None,
    replies: Sequence[str] = ("assistant",),
) -> TextFile:
    """Passages of a file (a path, or a name in $INWARD_DATA), in its order.

    Args:
        names: what the fields of records are called.
        replies: roles of chats whose messages are what is said; all become "assistant".

    Raises FileNotFoundError, or ValueError that names the file and the row; or names for a file
    that holds no records.
    """
    names = names or Names()
    if kind not in get_args(TextKind):
        raise ValueError(f"the format is {kind!r}; choose one of {', '.join(get_args(TextKind))}")
    rows = read_rows(name)
    found = _kind_of(rows, names) if kind == "auto" else kind
    if found == "text" and rows.kind != "lines":
        found = "jsonl"
    if found not in ("records", *_RECORDS) and names != Names():
        raise ValueError(
            f"{rows.path} was read as {found}, which has no fields of records to name; leave the "
            "names out"
        )
    if found in ("records", *_RECORDS):
        read = read_any(name, cast(RecordKind, found if found in _RECORDS else "auto"), names=names)
        passages = [_asked(record) for record in read.records]
        return TextFile(rows.path, read.kind, passages, 0, rows.sha256)
    passages, skipped = [], 0
    for place, row in _rows(rows, found):
        try:
            made = _passages(row, found, replies)
        except ValueError as error:
            raise ValueError(f"{rows.where(place)}: {error}") from error
        passages += made
        skipped += not made
    if not passages:
        raise ValueError(f"{rows.path} holds no text to learn from; read as {found}")
    return TextFile(rows.path, found, passages, skipped, rows.sha256)


_RECORDS = ("json", "gsm8k", "icot", "prontoqa")


def _kind_of(rows: FileRows, names: Names) -> str:
    first = rows.rows[0] if rows.rows else ""
    if rows.kind == "named":
        return "records"
    if isinstance(first, str):
        return "records" if "||" in first and "####" in first else "text"
    if isinstance(first, dict) and ("messages" in first or "conversations" in first):
        return "chat"
    if isinstance(first, dict) and "text" in first and names.question not in first:
        return "jsonl"
    return "records"


def _rows(rows: FileRows, kind: str) -> list[tuple[int, Any]]:
    """Rows with their places; of plain text its paragraphs, where there are some."""
    if kind != "text":
        return list(enumerate(rows.rows))
    if not any(not line.strip() for line in rows.rows):
        return list(enumerate(rows.rows))
    found: list[tuple[int, Any]] = []
    part: list[str] = []
    for place, line in enumerate([*rows.rows, ""]):
        if line.strip():
            part.append(line)
        elif part:
            found.append((place - len(part), "\n".join(part)))
            part = []
    return found


def _passages(row: Any, kind: str, replies: Sequence[str]) -> list[Passage]:
    if kind == "text":
        return [Passage("", row.strip())] if row.strip() else []
    if kind == "jsonl":
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise ValueError("it has no field text with a text")
        return [Passage("", text)] if text.strip() else []
    messages = [
        ("assistant" if m["role"] in replies else m["role"], m["content"]) for m in chat_of(row)
    ]
    return [
        Passage(tuple(messages[:i]), content)
        for i, (role, content) in enumerate(messages)
        if role == "assistant" and i and content.strip()
    ]


def _asked(record: Record) -> Passage:
    """A record as it is asked and answered in text."""
    whole = Form().text(record)
    return Passage(record.question, whole[len(record.question) + 1 :], record)


def split_texts(
    passages: Sequence[Passage], num_valid: int, *, seed: int
) -> tuple[list[Passage], list[Passage]]:
    """Training and validation, drawn by a seed; equal questions (or texts) stay together.

    Raises ValueError if nothing is left to train on.
    """
    groups: dict[Any, list[int]] = {}
    for i, passage in enumerate(passages):
        groups.setdefault(passage.asked or passage.said, []).append(i)
    if not 1 <= num_valid < len(groups):
        raise ValueError(
            f"num_valid is {num_valid} of {len(groups)} different texts; hold 1 or more out, and "
            "leave some to train on"
        )
    order = np.random.default_rng(checked_seed(seed)).permutation(len(groups))
    places = [[*groups.values()][i] for i in order]
    held, rest = places[:num_valid], places[num_valid:]
    return (
        [passages[i] for i in sorted(i for place in rest for i in place)],
        [passages[i] for i in sorted(i for place in held for i in place)],
    )
