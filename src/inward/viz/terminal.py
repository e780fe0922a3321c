"""A trace in the terminal: the draft as it is rewritten, step by step.

    show(trace, task)     frames side by side: for logs, pipes, tests
    play(trace, task)     one frame that changes in place, if someone watches a terminal

Colour is a help, never the carrier: without it (NO_COLOR, a pipe, a terminal that has none) marks
beside the characters say the same, and without UTF-8 the lines are drawn in ASCII.

    +5   this cell changed since the step before        5?   the model is not sure of it
    !5   a given cell was overwritten                    .   still to be filled in
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from inward.common.trace import Trace, flops_text
from inward.data.puzzles.puzzles import PAD
from inward.viz import (
    UNSURE,
    Board,
    Frame,
    blank_token,
    boxes,
    character,
    choose,
    crop,
    frames,
    is_arc,
    is_maze,
)

if TYPE_CHECKING:
    pass

BAR = 12
_ARC = "black blue red green yellow bright_black magenta bright_red cyan dark_red".split()
_LINES = {True: "│─┌┬┐├┼┤└┴┘", False: "|-+++++++++"}


class Look:
    """How one console wants it: with colour or marks, with or without UTF-8."""

    def __init__(self, console: Console) -> None:
        self.colour = console.color_system is not None and not console.no_color
        self.utf8 = (console.encoding or "").lower().replace("-", "").startswith("utf")

    def style(self, wanted: str) -> str:
        """The style, or none at all where there is no colour."""
        return wanted if self.colour else ""


def show(
    trace: Trace, board: Board, *, console: Console | None = None, most: int = 8, title: str = ""
) -> None:
    """Print the question and at most `most` informative steps as still frames, side by side."""
    console = console or Console()
    look = Look(console)
    drawn = frames(trace, board)
    chosen = [drawn[0], *choose(drawn[1:], most)] if len(drawn) > 2 else drawn
    if title:
        console.print(Text(title, look.style("bold")))
    pictures = [render(frame, board, look, last=frame is drawn[-1]) for frame in chosen]
    console.print(Columns(pictures, padding=(1, 3)))
    console.print(legend(board, look))
    console.print(summary(trace, drawn))


def play(
    trace: Trace,
    board: Board,
    *,
    console: Console | None = None,
    seconds: float = 5.0,
    title: str = "",
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Rewrite one frame in place, the whole story in `seconds`.

    Where nobody watches, or the frame is higher than the terminal, `show` does it instead.
    """
    console = console or Console()
    if not console.is_terminal or console.height < board.grid[0] * 4 // 3 + 8:
        show(trace, board, console=console, title=title)
        return
    look = Look(console)
    drawn = frames(trace, board)
    pause = min(0.7, seconds / len(drawn))
    head = [Text(title, look.style("bold"))] if title else []
    with Live(console=console, auto_refresh=False) as live:
        for frame in drawn:
            picture = render(frame, board, look, last=frame is drawn[-1])
            live.update(Group(*head, picture, legend(board, look)), refresh=True)
            sleep(pause)
    console.print(summary(trace, drawn))


def render(frame: Frame, board: Board, look: Look, *, last: bool = False) -> Text:
    """One frame: number of the step, the grid, what the model believes, what it cost so far."""
    lines = [_heading(frame, look, last=last)]
    lines += _maze_lines(frame, board, look) if is_maze(board) else _box_lines(frame, board, look)
    lines += _status(frame, look)
    return Text("\n").join(lines)


def summary(trace: Trace, drawn: Sequence[Frame]) -> Text:
    """One line: how the thinking ended and what it cost."""
    why = {"halted": "the model halted", "budget": "the step budget ended it"}
    cost = trace.cost
    return Text(
        f"{len(drawn) - 1} steps, {cost.evaluations:,.0f} network evaluations, "
        f"{flops_text(cost.flops)}; {why.get(trace.stopped, trace.stopped or 'no reason recorded')}"
    )


def legend(board: Board, look: Look) -> Text:
    """One line that explains the marks or colours."""
    if not look.colour:
        given = "" if blank_token(board) is None else "   ! given cell overwritten"
        return Text(f"+ changed   ? unsure (probability below {UNSURE:g}){given}")
    kinds = ["changed", "unsure"] if blank_token(board) is None else ["changed", "unsure", "given"]
    return Text("   ").join(Text(kind, _style(kind)) for kind in kinds)


def _style(kind: str) -> str:
    return {
        "given": "dim",
        "changed": "bold black on yellow",
        "unsure": "magenta",
        "broken": "bold white on red",
        "plain": "bold",
    }[kind]


def _heading(frame: Frame, look: Look, *, last: bool) -> Text:
    if frame.number == 0:
        return Text("question", look.style("bold"))
    return Text(f"step {frame.number}{' (answer)' if last else ''}", look.style("bold"))


def _status(frame: Frame, look: Look) -> list[Text]:
    if frame.number == 0:
        num_open = int((~frame.given & (frame.tokens != PAD)).sum())
        return [Text(f"{num_open} cells to decide")]
    changed = "first draft" if frame.number == 1 else f"changed {int(frame.changed.sum())}"
    lines = [Text(f"{changed}, unsure {int(frame.unsure.sum())}")]
    if frame.halt is not None:
        filled = round(BAR * frame.halt)
        full, empty = ("█", "░") if look.utf8 else ("#", ".")
        bar = Text("right? ")
        bar.append(full * filled, look.style("green")).append(empty * (BAR - filled))
        lines.insert(0, bar.append(f" {frame.halt:.2f}"))
    return lines


def _kind(frame: Frame, row: int, col: int) -> str:
    """Which look a cell gets: the most urgent of those that apply."""
    for kind in ("broken", "changed", "unsure", "given"):
        if getattr(frame, kind)[row, col]:
            return kind
    return "plain"


def _marks(frame: Frame, row: int, col: int, look: Look) -> tuple[str, str]:
    """What stands left and right of a cell when colour cannot say it."""
    if look.colour:
        return " ", " "
    left = "!" if frame.broken[row, col] else "+" if frame.changed[row, col] else " "
    return left, "?" if frame.unsure[row, col] else " "


def _box_lines(frame: Frame, board: Board, look: Look) -> list[Text]:
    """Cells three columns wide, in boxes."""
    rows, cols = crop([frame])
    across = range(*cols.indices(board.grid[1]))
    down = range(*rows.indices(board.grid[0]))
    high, wide = boxes(board)
    sign = _LINES[look.utf8]
    parts = [len(across[i : i + wide]) for i in range(0, len(across), wide)]
    rule = [sign[1] * 3 * part for part in parts]
    edges = [(sign[2], sign[3], sign[4]), (sign[5], sign[6], sign[7]), (sign[8], sign[9], sign[10])]
    top, middle, bottom = (left + joint.join(rule) + right for left, joint, right in edges)
    dim = look.style("dim")
    lines = [Text(top, dim)]
    for i, row in enumerate(down):
        if i and i % high == 0:
            lines.append(Text(middle, dim))
        line = Text()
        for j, col in enumerate(across):
            line.append(sign[0] if j % wide == 0 else "", dim)
            line.append_text(_box_cell(frame, row, col, board, look))
        lines.append(line.append(sign[0], dim))
    return [*lines, Text(bottom, dim)]


def _box_cell(frame: Frame, row: int, col: int, board: Board, look: Look) -> Text:
    token = int(frame.tokens[row, col])
    left, right = _marks(frame, row, col, look)
    kind = _kind(frame, row, col)
    style = _style(kind)
    if is_arc(board) and token >= 2 and kind != "changed":
        style = f"white on {_ARC[token - 2]}"
    return Text(f"{left}{character(token, board)}{right}", look.style(style))


def _maze_lines(frame: Frame, board: Board, look: Look) -> list[Text]:
    """Cells two columns wide; walls are blocks, the path is what stands out."""
    rows, cols = crop([frame])
    wall = "██" if look.utf8 else "##"
    lines = []
    for row in range(*rows.indices(board.grid[0])):
        line = Text()
        for col in range(*cols.indices(board.grid[1])):
            sign = character(int(frame.tokens[row, col]), board)
            kind = _kind(frame, row, col)
            if sign == "#" and kind == "given":
                line.append(wall, look.style("grey50"))
                continue
            left, right = _marks(frame, row, col, look)
            mark = left if left != " " else right
            line.append(sign + mark, look.style(_maze_style(sign, kind)))
        lines.append(line)
    return lines


def _maze_style(sign: str, kind: str) -> str:
    if kind in ("broken", "changed"):
        return _style(kind)
    if sign in "SG":
        return "bold white on blue"
    if sign == "o":
        return "magenta" if kind == "unsure" else "bold green"
    return "on grey11" if kind == "unsure" else ""


# --------------------------------------------------------------------------------------------------
# Tables
