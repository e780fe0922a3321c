"""Rows of the frontier: read, written once, and what they decide.

One file a scale, one line a run. A row holds every answer as right or wrong, so that runs can be
compared question by question:

    scale, task, arm, seed, rate        what tells rows apart
    steps, schedule, flops, budget      of training; flops by the meter, as planned from counted
                                        steps
    curve                               [[FLOPs, accuracy on validation], ...] during training
    efforts                             amount, trained, valid, test ("0110..."), and means of an
                                        answer: flops, tokens, steps; seconds when asked alone
    chosen                              the effort that is best on validation
    error                               of a run that failed, in place of efforts
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inward.common.files import FolderLock, read_text
from inward.evals.rows import append_row
from inward.evals.stats import paired_difference

Row = Mapping[str, Any]
KEY = ("scale", "task", "arm", "seed", "rate")


def file_of(folder: Path, scale: str) -> Path:
    """Rows of a scale."""
    return folder / f"{scale}.jsonl"


def read_rows(folder: Path, scale: str) -> list[dict[str, Any]]:
    """All rows of a scale.

    Raises ValueError for a line that is none, or a run that stands there twice.
    """
    path = file_of(folder, scale)
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            row = json.loads(line)
            key = key_of(row)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number} is no row of the frontier: {error}") from error
        if key in {key_of(other) for other in rows}:
            raise ValueError(f"{path}, line {number}: {key} stands there twice; delete one of them")
        rows.append(row)
    return rows


def key_of(row: Row) -> tuple[Any, ...]:
    """What tells rows apart."""
    return tuple(row[name] for name in KEY)


def add_row(folder: Path, row: Row) -> None:
    """Write a row, once.

    Raises:
        ValueError: there is one of that run. BlockingIOError: another process is writing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    try:
        if key_of(row) in {key_of(other) for other in read_rows(folder, row["scale"])}:
            raise ValueError(f"a row of {key_of(row)} is there already; it is not written twice")
        append_row(file_of(folder, row["scale"]), row)
    finally:
        lock.release()


def bits(text: str) -> np.ndarray:
    """ "0110" as (N,) bool."""
    return np.array([sign == "1" for sign in text])


def told(right: Iterable[bool]) -> str:
    """The other way."""
    return "".join("1" if each else "0" for each in right)


def effort_of(row: Row, amount: int | None = None) -> dict[str, Any]:
    """The chosen effort of a row, or that of an amount."""
    wanted = row["chosen"] if amount is None else amount
    return next(effort for effort in row["efforts"] if effort["amount"] == wanted)


def best_effort(efforts: Sequence[Mapping[str, Any]]) -> int:
    """The amount that is best on validation; of equals the cheapest."""
    return max(efforts, key=lambda e: (bits(e["valid"]).mean(), -e["flops"]))["amount"]


def of_run(rows: Sequence[Row], task: str, arm: str, seed: int | None = None) -> list[Row]:
    """Finished rows of an arm on a task, of one seed or of all."""
    return [
        row
        for row in rows
        if (row["task"], row["arm"]) == (task, arm)
        and "error" not in row
        and seed in (None, row["seed"])
    ]


def best_rate(rows: Sequence[Row]) -> tuple[float, list[float]]:
    """The rate of the row that is best on validation (of equals the lowest), and other rates that
    validation cannot tell from it (the paired interval holds 0).

    Raises ValueError: no rows.
    """
    if not rows:
        raise ValueError("no rate has been tried; run the first seed")
    ranked = sorted(rows, key=lambda r: (-bits(effort_of(r)["valid"]).mean(), r["rate"]))
    first, *others = ranked
    best = bits(effort_of(first)["valid"])
    ties = []
    for row in others:
        difference = paired_difference(best, bits(effort_of(row)["valid"])).difference
        if difference.low <= 0 <= difference.high:
            ties.append(row["rate"])
    return first["rate"], sorted(ties)


def selected(rows: Sequence[Row]) -> list[Row]:
    """One row for each task, arm and seed: of the first seed that of the chosen rate."""
    found = []
    for task, arm, seed in sorted({(r["task"], r["arm"], r["seed"]) for r in rows}):
        own = of_run(rows, task, arm, seed)
        if own:
            rate, _ = best_rate(own)
            found.append(next(row for row in own if row["rate"] == rate))
    return found
