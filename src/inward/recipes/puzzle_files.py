"""Puzzles of a file as training, validation and test sets: nothing held out is trained on.

Training shows every puzzle through fresh symmetries, so a puzzle is held out only if no image of it
is trained on: what is divided between the sets are classes of symmetric puzzles.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from inward.data.drawn import drawn
from inward.data.puzzles.puzzles import Puzzles
from inward.tasks.named import ANY_GRID, read_puzzles, task_named

Split = Literal["train", "valid", "test"]
_SPARE = 1.5  # how many more puzzles are looked at than wanted: whole classes leave together


def is_file(path: str) -> bool:
    """Whether a path names a file of puzzles rather than a dataset folder."""
    return Path(path).suffix in (".csv", ".npz", ".txt")


def test_beside(path: str) -> str:
    """The test file that belongs to a training file, "" if there is none: train.csv, test.csv."""
    file = Path(path)
    beside = file.with_name(file.name.replace("train", "test"))
    return str(beside) if "train" in file.name and beside.is_file() else ""


def of_file(
    path: str,
    kind: str,
    split: Split,
    *,
    test: str = "",
    num_train: int | None = None,
    num_valid: int = 1000,
    num_test: int = 1000,
    seed: int = 0,
) -> Puzzles:
    """One of three sets of a file's puzzles; the last file read is kept.

    kind: "sudoku4", "sudoku6", "sudoku9" or "maze": what the file holds.
    test: the file of test puzzles, all of which are meant; "": the one beside a training file
        (`test_beside`), else `num_test` of the puzzles are held out.
    num_train: so many of the puzzles, drawn by `seed`; None: all that are not held out.
    Raises FileNotFoundError or ValueError: as the readers do; or there are too few to hold out.
    """
    test = test or test_beside(path)
    if split == "test" and test:
        return _read(test, kind, _stamp(test))
    made = _divided(path, kind, _stamp(path), num_train, num_valid, 0 if test else num_test, seed)
    if split not in made:
        raise ValueError(f"num_{split} is 0, so {path} gives no {split} puzzles; ask for some")
    return made[split]


def _stamp(path: str) -> int:
    """A file that changed is read again; one that is not there is refused by its reader."""
    return os.stat(path).st_mtime_ns if Path(path).exists() else 0


@lru_cache(maxsize=1)
def _read(path: str, kind: str, _: int) -> Puzzles:
    puzzles = read_puzzles(path, task_named(kind, ANY_GRID if kind == "maze" else None))
    if without := int((~puzzles.labels.any(axis=1)).sum()):
        raise ValueError(f"{path}: {without} puzzles have no answer; write the answers too")
    return puzzles


@lru_cache(maxsize=1)
def _divided(
    path: str, kind: str, stamp: int, num_train: int | None, num_valid: int, num_test: int,
    seed: int,
) -> dict[str, Puzzles]:  # fmt: skip
    puzzles = _read(path, kind, stamp)
    if num_train is not None:
        some = round(_SPARE * (num_train + num_valid + num_test))
        puzzles = puzzles.select(drawn(len(puzzles), min(some, len(puzzles)), seed=seed))
    try:
        rows = hold_out(keys_of(puzzles), num_test=num_test, num_valid=num_valid, seed=seed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if num_train is not None:
        rows["train"] = at_most(rows["train"], num_train, seed=seed)
    return {split: puzzles.select(index) for split, index in rows.items() if len(index)}


def keys_of(puzzles: Puzzles) -> list[bytes]:
    """A name for the class of symmetric puzzles that each one belongs to."""
    if puzzles.vocab_size == puzzles.grid[0] + 2 and puzzles.grid[0] == puzzles.grid[1]:
        from inward.data.puzzles.sudoku_canonical import canonical_rows

        return canonical_rows(puzzles.inputs, n=puzzles.grid[0])
    from inward.data.puzzles.maze import class_keys

    return class_keys(puzzles)


def hold_out(
    keys: Sequence[bytes], *, num_test: int, num_valid: int, seed: int
) -> dict[str, np.ndarray]:
    """Rows of "test", "valid" and "train": whole classes, drawn by `seed`.

    keys: the class of each row. A set takes classes until it has as many rows as it should, but
    leaves one class for each set after it; what it has too many is drawn away.
    Raises ValueError where there are fewer classes than sets.
    """
    wanted = {"test": num_test, "valid": num_valid}
    wanted = {split: num for split, num in wanted.items() if num}
    counts = Counter(keys)
    if len(counts) <= len(wanted):
        raise ValueError(
            f"{len(keys)} puzzles of {len(counts)} classes of symmetric ones cannot be divided "
            f"into {len(wanted) + 1} sets; give more, or set --data.num-valid or --data.num-test "
            "to 0"
        )
    names = sorted(counts)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    owner: dict[bytes, str] = {}
    for left, (split, num) in zip(range(len(wanted), 0, -1), wanted.items(), strict=True):
        taken = 0
        while taken < num and len(order) > left:
            key = order.pop()
            owner[key] = split
            taken += counts[key]
    of_row = np.array([owner.get(key, "train") for key in keys])
    rows = {split: np.flatnonzero(of_row == split) for split in ("test", "valid", "train")}
    return {split: at_most(rows[split], wanted.get(split), seed=seed) for split in rows}


def at_most(rows: np.ndarray, num: int | None, *, seed: int) -> np.ndarray:
    """`num` of the rows, drawn by `seed`; all if there are not more."""
    return rows if num is None or num >= len(rows) else rows[drawn(len(rows), num, seed=seed)]


def told(**sets: Any) -> str:
    """How many classes and puzzles each set has, in words."""
    parts = [f"{split} {len(p)} of {len(set(keys_of(p)))} classes" for split, p in sets.items()]
    return ", ".join(parts)
