"""`inward.show`: traces, whatever thought them, in the terminal; in a notebook as a page."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from inward.common.trace import Trace, flops_text
from inward.viz import terminal, text, thoughts


@dataclass(frozen=True)
class TracedBoard:
    """What a trace itself says of its puzzle: enough to draw it."""

    name: str
    grid: tuple[int, int]


def show(trace: Trace, *, console: Console | None = None, title: str = "") -> None:
    """Print how an answer came about: a grid being rewritten, recurrences under every token,
    thoughts between spoken lines, or drafts and what stood of them. A notebook draws the page of
    `inward.page` instead, unless a console is given.

    Raises:
        ValueError: no trace (ask with trace=True), or one of a method that nobody can show.
    """
    if console is None and in_notebook():
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        from inward.viz.page import Picture

        display(Picture(trace, title=title))
        return
    if not isinstance(trace, Trace):
        raise ValueError(
            f"there is no trace to show, but a {type(trace).__name__}; ask with trace=True and "
            "pass answer.trace"
        )
    console = console or Console()
    if trace.method == "trm":
        rows, columns = trace.meta["grid"]
        board = TracedBoard(trace.meta.get("task", "grid"), (int(rows), int(columns)))
        terminal.show(trace, board, console=console, title=title)
        return
    if title:
        console.print(Text(title, terminal.Look(console).style("bold")))
    if trace.method == "coconut":
        thoughts.show_thoughts(trace, console=console)
    else:
        console.print(text.told(trace), highlight=False)
    console.print(Text(summary(trace)))


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this, which draws what is displayed."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def summary(trace: Trace) -> str:
    """One line: what thought, how it ended, what it cost."""
    cost = trace.cost
    who = trace.model or trace.method
    return (
        f"{Path(who).name}: {len(trace.steps)} steps, {cost.evaluations:,.0f} evaluations, "
        f"{flops_text(cost.flops)}; ended: {trace.stopped}"
    )
