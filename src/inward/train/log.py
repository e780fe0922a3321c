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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

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


def cut_log(path: Path, step: int, *, eval_step: int) -> None:
    """Keep training rows up to `step` and evaluations up to `eval_step`; drop a half-written line.

    Raises ValueError if a line before the last is damaged.
    """
    if not path.exists():
        return
    kept = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is no JSON; repair or move it") from error
            continue
        last = eval_step if row["kind"] == "eval" else step
        if row["step"] <= last and line.endswith("\n"):
            kept.append(line)
    hidden = path.with_name(f".new-{path.name}")
    hidden.write_text("".join(kept), encoding="utf-8")
    os.replace(hidden, path)


class Log:
    """Writes rows on the main process; on the others every method does nothing."""

    def __init__(self, path: Path, accelerator: Accelerator, *, step: int, eval_step: int) -> None:
        """Continue the log at `path`, with training rows up to `step`, others to `eval_step`."""
        self._accelerator = accelerator
        self._file = None
        if accelerator.is_main_process:
            cut_log(path, step, eval_step=eval_step)
            self._file = path.open("a", encoding="utf-8")

    def row(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one row. Values that are not finite numbers become null: JSON has no NaN."""
        if self._file is not None:
            clean = _without_nan({"kind": kind, "step": step, **values})
            self._file.write(json.dumps(clean, allow_nan=False) + "\n")
            self._file.flush()
        numbers = {k: v for k, v in flatten(values).items() if isinstance(v, int | float)}
        self._accelerator.log({f"{kind}/{name}": v for name, v in numbers.items()}, step=step)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file is not None:
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
