"""The record of a run: one JSON line per row always, trackers by option, a bar for people.

`log.jsonl` is what tests and plots read: rows of kind "train" and "eval". Floats are written with
all their digits, so two logs can be compared bit for bit. When a run resumes, rows after the
resumed step are cut off: they belong to steps that will be done again.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from inward.common.files import replacing
from inward.train.state import flatten

if TYPE_CHECKING:
    from accelerate import Accelerator


def say(text: str) -> None:
    """Tell the person at the terminal, above the progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)


@dataclass
class Window:
    """Sums since the last log row; part of the resume state."""

    steps: int = 0
    rows: int = 0
    loss: float = 0.0
    busy_seconds: float = 0.0
    """Time spent in steps, without evaluation and saving."""
    metrics: dict[str, list[float]] = field(default_factory=dict)
    """Name -> [sum, count]."""

    def add(
        self, loss: float, metrics: Mapping[str, tuple[float, float]], rows: int, seconds: float
    ) -> None:
        """Add one step: its global loss and metric sums, its rows and its time."""
        self.steps += 1
        self.rows += rows
        self.loss += loss
        self.busy_seconds += seconds
        for name, (total, count) in metrics.items():
            sums = self.metrics.setdefault(name, [0.0, 0.0])
            sums[0] += total
            sums[1] += count

    def means(self) -> dict[str, Any]:
        """Loss, metrics and rate as they go into a row; metrics that nothing counted stay out."""
        metrics = {name: total / count for name, (total, count) in self.metrics.items() if count}
        return {
            "loss": self.loss / self.steps,
            "metrics": metrics,
            "rows_per_second": self.rows / max(self.busy_seconds, 1e-9),
        }

    def to_json(self) -> dict[str, Any]:
        """Exact: JSON keeps every bit of a float."""
        return asdict(self)


@dataclass
class LogRows:
    """What of a log stands: its lines, and the steps of its rows by kind."""

    lines: list[str] = field(default_factory=list)
    steps: dict[str, list[int]] = field(default_factory=lambda: {"train": [], "eval": []})

    def add(self, kind: str, step: int) -> None:
        """One more row."""
        self.steps.setdefault(kind, []).append(step)

    def counts(self, step: int) -> dict[str, int]:
        """Rows that the state of `step` must find again: its own evaluation is repeated."""
        trained = sum(at <= step for at in self.steps["train"])
        return {"train": trained, "eval": sum(at < step for at in self.steps["eval"])}


def read_log(path: Path, step: int, *, eval_step: int) -> LogRows:
    """Training rows up to `step` and evaluations up to `eval_step`, without a half-written line.

    Raises ValueError if a line before the last is damaged.
    """
    kept = LogRows()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            kind, at = str(row["kind"]), int(row["step"])
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is no JSON row; {_REMEDY}") from error
            continue
        if at <= (eval_step if kind == "eval" else step) and line.endswith("\n"):
            kept.lines.append(line)
            kept.add(kind, at)
    return kept


_REMEDY = "repair it, or move it away to go on with a new one"


def check_log(path: Path, kept: LogRows, step: int, expected: Mapping[str, int] | None) -> None:
    """Raise ValueError if rows that were there when the state was saved are missing, or rows of two
    runs are mixed."""
    trained = kept.steps["train"]
    mixed = next((b for a, b in pairwise(trained) if b <= a), None)
    if mixed is not None:
        raise ValueError(f"{path}: the row of step {mixed} stands after a later one; {_REMEDY}")
    if not expected:
        return
    found = kept.counts(step)
    for kind, name in (("train", "training"), ("eval", "evaluation")):
        if found[kind] < expected[kind]:
            raise ValueError(
                f"{path} has a gap: {found[kind]} of the {expected[kind]} {name} rows up to step "
                f"{step}{_gap(kept.steps[kind])}; {_REMEDY}"
            )


def _gap(steps: list[int]) -> str:
    """Where rows are further apart than most."""
    distances = [b - a for a, b in pairwise([0, *steps])]
    usual = max(set(distances), key=distances.count, default=0)
    places = [a for a, b in pairwise([0, *steps]) if b - a > usual]
    return f" (the first one after step {places[0]})" if places else ""


class Log:
    """Writes rows on the main process; on the others every method does nothing."""

    def __init__(
        self,
        path: Path,
        accelerator: Accelerator,
        *,
        step: int,
        eval_step: int,
        expected: Mapping[str, int] | None = None,
        agree: Callable[[str], str] = lambda fault: fault,
    ) -> None:
        """Continue the log at `path`, with training rows up to `step`, others to `eval_step`.

        expected: `counts` of when the state was saved. agree: see `StateFolder`.
        """
        self._accelerator = accelerator
        self._file, self._kept, fault = None, LogRows(), ""
        if accelerator.is_main_process:
            try:
                self._continue(path, step, eval_step, expected)
            except ValueError as error:
                fault = str(error)
        if fault := agree(fault):
            raise ValueError(fault)

    def _continue(
        self, path: Path, step: int, eval_step: int, expected: Mapping[str, int] | None
    ) -> None:
        if path.exists():
            self._kept = read_log(path, step, eval_step=eval_step)
            check_log(path, self._kept, step, expected)
            with replacing(path) as hidden:
                hidden.write_text("".join(self._kept.lines), encoding="utf-8")
            self._kept.lines.clear()
        elif expected and expected["train"]:
            say(f"{path} is gone, with the rows of steps 1 to {step}; a new one begins")
        self._file = path.open("a", encoding="utf-8")

    def counts(self, step: int) -> dict[str, int]:
        """What `expected` must be when the state of `step` is loaded."""
        return self._kept.counts(step)

    def sync(self) -> None:
        """Ask the disk to keep the rows: a state must never outlive those that it counts."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def row(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one row. Values that are not finite numbers become null: JSON has no NaN."""
        if self._file is not None:
            clean = _without_nan({"kind": kind, "step": step, **values})
            self._file.write(json.dumps(clean, allow_nan=False) + "\n")
            self._file.flush()
            self._kept.add(kind, step)
        numbers = {k: v for k, v in flatten(values).items() if isinstance(v, int | float)}
        self._accelerator.log({f"{kind}/{name}": v for name, v in numbers.items()}, step=step)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file is not None:
            with suppress(OSError):  # a row that did not fit on the disk was told of already
                self._file.close()


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise ValueError if a tracker is not installed; accelerate would only leave it out."""
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known, found = {str(t) for t in LoggerType}, {str(t) for t in get_available_trackers()}
    missing = [name for name in names if name in known - found - {"all"}]
    if missing:
        raise ValueError(f"tracker not installed: {', '.join(missing)}; pip install it or drop it")


def start_trackers(accelerator: Accelerator, config: Mapping[str, Any]) -> None:
    """Start the accelerator's trackers; they take flat configurations of simple values only."""
    simple = (int, float, str)
    flat = {k: v if isinstance(v, simple) else str(v) for k, v in flatten(config).items()}
    accelerator.init_trackers("inward", config=flat)


def progress_bar(total: int, step: int, *, mode: str, main: bool) -> tqdm:
    """Bar with rate and time left. mode: "on", "off" or "auto" (only on a terminal)."""
    hidden = True if mode == "off" or not main else (None if mode == "auto" else False)
    return tqdm(total=total, initial=step, disable=hidden, unit="step", dynamic_ncols=True)
