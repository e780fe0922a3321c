"""Pictures of the frontier: accuracy against what an answer takes, says and costs to learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inward.studies.frontier.arms import ARMS
from inward.studies.frontier.rows import Row, bits, selected
from inward.viz import plots

AGAINST = {
    "compute": ("flops", "MFLOPs an answer", 1e-6),
    "tokens": ("tokens", "tokens said", 1.0),
    "latency": ("seconds", "milliseconds an answer", 1e3),
}
"""name of the picture -> what of an effort, as it is called, times this"""
TRAINING = "training"


def draw(rows: Sequence[Row], task: str, folder: Path) -> list[Path]:
    """Four pictures of a task, of the first seed that each arm has: against compute, tokens and
    seconds of an answer at every effort, and against the FLOPs of training.

    Raises ValueError if no arm has a row, ModuleNotFoundError without matplotlib.
    """
    shown = {}
    for row in selected(rows):
        if row["task"] == task:
            shown.setdefault(row["arm"], row)
    if not shown:
        raise ValueError(f"no row of {task} can be drawn; run some first")
    order = {arm: shown[arm] for arm in ARMS if arm in shown}
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, (field, label, times) in AGAINST.items():
        groups = {arm: _points(row, field, times) for arm, row in order.items()}
        if field == "tokens":
            groups.pop("trm", None)  # cells are not said one after the other
        if groups:
            found.append(_save(groups, label, folder / f"{task}-{name}.svg"))
    groups = {
        arm: [(flops * 1e-9, accuracy, "") for flops, accuracy in row["curve"]]
        for arm, row in order.items()
    }
    path = folder / f"{task}-{TRAINING}.svg"
    found.append(_save(groups, "GFLOPs of training", path, "validation questions right"))
    return found


def _points(row: Row, field: str, times: float) -> list[tuple[float, float, str]]:
    several = len(row["efforts"]) > 1
    points = [
        (e[field] * times, float(bits(e["test"]).mean()), str(e["amount"]) if several else "")
        for e in row["efforts"]
    ]
    return sorted(points)


def _save(
    groups: dict[str, list[tuple[float, float, str]]],
    label: str,
    path: Path,
    right: str = "test questions right",
) -> Path:
    wide = [x for points in groups.values() for x, _, _ in points]
    doubling = min(wide) > 0 and max(wide) > 8 * min(wide)
    figure = plots.scatter(groups, x_label=label, y_label=right, doubling=doubling)
    return plots.save(figure, path)
