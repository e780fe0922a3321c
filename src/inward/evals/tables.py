"""Results as tables at the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from inward.common.trace import flops_text

if TYPE_CHECKING:
    from inward.evals.puzzles import Result


def percent(share: float | None) -> str:
    """A share as a percentage, or a dash where there is none."""
    return "-" if share is None else f"{100 * share:.1f} %"


def result_tables(result: Result) -> Group:
    """A result of `inward.evals.puzzles` for people: the numbers, by rating, by step."""
    main = Table(show_header=False, box=SIMPLE)
    low, high = result.interval
    ways = {"rules": ("verified by the rules", result.verified)}
    ways["label"] = ("equal to the label", result.accuracy)
    what, share = ways.pop(result.scored)
    main.add_row(what, f"{percent(share)}   95 %: {percent(low)} to {percent(high)}")
    for other, value in ways.values():
        if value is not None:
            main.add_row(other, percent(value))
    if result.answered < 1:
        right = percent(result.accuracy_answered)
        main.add_row("answered", f"{percent(result.answered)}, {right} of them right")
    main.add_row("belief was right (q > 0)", percent(result.believed))
    main.add_row("steps a puzzle", f"{result.steps:.2f}")
    main.add_row("network evaluations a puzzle", f"{result.evaluations:.1f}")
    main.add_row("cost a puzzle", flops_text(result.flops))
    rate = result.num / max(result.seconds, 1e-9)
    main.add_row("time", f"{result.seconds:.2f} s, {rate:.1f} puzzles/s")
    main.add_row("parameters", f"{result.parameters:,}")
    if result.identifier_parameters:
        main.add_row("of identifiers, besides", f"{result.identifier_parameters:,}")
    title = f"{result.what} on {result.dataset or 'puzzles'} ({result.num})"
    parts: list[Text | Table] = [Text(title, "bold"), main]
    if len(result.by_rating) > 1:
        parts += [Text("by rating", "bold"), _rating_table(result)]
    if result.by_step:
        parts += [Text("by step, without halting", "bold"), _step_table(result.by_step)]
    return Group(*parts)


def _rating_table(result: Result) -> Table:
    table = Table(box=SIMPLE)
    for name in ("rating", "puzzles", "right", "95 %"):
        table.add_column(name, justify="right")
    for bucket in result.by_rating:
        name = str(bucket.low) if bucket.low == bucket.high else f"{bucket.low} - {bucket.high}"
        bounds = f"{percent(bucket.interval[0])} to {percent(bucket.interval[1])}"
        table.add_row(name, str(bucket.num), percent(bucket.accuracy), bounds)
    return table


def _step_table(by_step: Sequence[float], most: int = 12) -> Table:
    """Accuracy after each step, thinned out to `most` rows."""
    table = Table(box=SIMPLE)
    table.add_column("step", justify="right")
    table.add_column("right", justify="right")
    chosen = np.unique(np.linspace(1, len(by_step), min(most, len(by_step))).round().astype(int))
    for step in chosen.tolist():
        table.add_row(str(step), percent(by_step[step - 1]))
    return table
