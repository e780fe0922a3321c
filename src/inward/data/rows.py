"""A file of one's own as rows, before anybody asks what they mean.

    rows = read_rows("train.jsonl")       rows.kind "objects", rows.rows dicts, rows.sha256

A JSON list, one JSON object a line, or plain lines: told by the content, not by the name. What rows
mean (records with steps, chats, texts) is said in `inward.data.thoughts.anyfile` and
`inward.data.texts.anyfile`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inward.common.files import digest, read_text


@dataclass(frozen=True, eq=False)
class FileRows:
    """What a file holds.

    kind: "objects" (dicts, each with its number in `numbers`), "named" (one JSON object of objects:
        ProntoQA's generator) or "lines".
    unit: what a number counts: "entry" of a list, "line" of a file.
    """

    path: Path
    kind: str
    rows: list[Any] = field(repr=False)
    unit: str
    numbers: list[int] = field(repr=False)
    sha256: str = ""

    def where(self, place: int) -> str:
        """The row as an error names it."""
        return f"{self.path}, {self.unit} {self.numbers[place]}"


def place_of(name: str | os.PathLike) -> Path:
    """A file as it was named, or below $INWARD_DATA.

    Raises FileNotFoundError that names both places.
    """
    path = Path(name)
    beside = Path(os.environ.get("INWARD_DATA", "data")) / name
    for place in (path, beside):
        if place.is_file():
            return place
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder; name a file of it")
    raise FileNotFoundError(
        f"no data file at {path}, nor at {beside}; check the path, or set INWARD_DATA to the "
        "folder it lies in"
    )


_OTHERS = {".csv", ".tsv", ".xlsx", ".parquet", ".arrow",
           ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar"}  # fmt: skip
"""Tables and packed files, which would be read as lines of text or not at all"""


def read_rows(name: str | os.PathLike) -> FileRows:
    """Rows of a file; empty lines of text files are kept, those of JSON lines are not rows.

    Raises FileNotFoundError, or ValueError that names the file and the line that is no JSON.
    """
    path = place_of(name)
    if path.suffix.lower() in _OTHERS:
        raise ValueError(
            f"{path} is a {path.suffix.lower()} file; write it as JSON lines, one object a row "
            "(pandas: to_json(FILE, orient='records', lines=True)), or unpack it"
        )
    text = read_text(path)
    begin = text.lstrip("\ufeff \t\r\n")[:1]
    if not begin:
        raise ValueError(f"{path} holds no records; it is empty, fetch it again")
    sha256 = digest(path)
    if begin == "[":
        found = _whole(path, text)
        return FileRows(path, "objects", found, "entry", [*range(1, len(found) + 1)], sha256)
    lines = text.removeprefix("\ufeff").rstrip("\n").split("\n")
    if begin == "{":
        return _objects(path, text, lines, sha256)
    return FileRows(path, "lines", lines, "line", [*range(1, len(lines) + 1)], sha256)


def _objects(path: Path, text: str, lines: list[str], sha256: str) -> FileRows:
    """JSON lines; or one object for all, which holds the examples by name."""
    full = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if len(full) == 1 or not _is_json(full[0][1]):
        whole = _whole(path, text)
        if isinstance(whole, dict) and whole and all(isinstance(v, dict) for v in whole.values()):
            return FileRows(path, "named", [whole], "entry", [1], sha256)
        if len(full) > 1:
            raise ValueError(
                f"{path} holds one JSON object; expected a list of objects, or one object a line"
            )
    rows = []
    for number, line in full:
        try:
            rows.append(json.loads(line))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number} is not JSON: {error}; if the file was cut off, fetch it "
                "again"
            ) from error
    return FileRows(path, "objects", rows, "line", [number for number, _ in full], sha256)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return False
    return True


def _whole(path: Path, text: str) -> Any:
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply for records") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno} is not JSON: {error.msg}; if the file was cut off, fetch "
            "it again"
        ) from error
