"""Silent thoughts made visible: what each one is about to say, and the search tree in them.

    show_thoughts(trace)              terminal: thoughts through the lens, between spoken lines
    show_tree(readout)                terminal: the graph as a tree, a value after each thought
    lens(trace)                       figure: one row a thought, likeliest tokens tinted
    tree(readout)                     figure: the graph by depth, one panel a number of thoughts
    held(superposition), gaps(parallelism), height_lines(heights)     figures of measurements

Traces come from `ask(..., trace="lens")`; read-outs and measurements from
`inward.studies.thoughts_search` and its neighbours. Colour is a help, never the carrier: every tint
stands beside its number. matplotlib is imported inside the functions, as in `plots.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.text import Text

from inward.common.trace import Step, Trace
from inward.data.thoughts.tokenizers import BOT, EOT
from inward.viz.plots import AMBER, INK, LINE, SOFT, _figure, _mix
from inward.viz.terminal import Look
from inward.viz.text import decoder, piece, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Decode = Callable[[int], str]
"""From a token to its text, such as tokenizer.decode"""

BAR = 8
_UNIT = 0.55
"""inches between neighbours in a drawn graph"""


@dataclass(frozen=True, eq=False)
class Turn:
    """Thoughts in a row, or words in a row, of a trace."""

    silent: bool
    steps: list[Step]


def turns(trace: Trace) -> Iterator[Turn]:
    """A trace of Coconut as blocks of thoughts and stretches of words, in order.

    Raises:
        ValueError: it has none, being another method's, or was made without trace=True.
    """
    steps = sorted(
        (s for s in trace.steps if s.kind in ("thought", "word")), key=lambda s: s.position or 0
    )
    if not steps:
        raise ValueError(
            f"this trace ({trace.method}) holds no thoughts or words; generate with trace=True"
        )
    run = [steps[0]]
    for step in steps[1:]:
        if step.kind != run[-1].kind:
            yield Turn(run[-1].kind == "thought", run)
            run = []
        run.append(step)
    yield Turn(run[-1].kind == "thought", run)


# --------------------------------------------------------------------------------------------------
# The terminal


def show_thoughts(
    trace: Trace,
    decode: Decode | None = None,
    *,
    console: Console | None = None,
    most: int = 5,
    title: str = "",
) -> None:
    """Print what was spoken line by line, and each thought as its `most` likeliest tokens.

    decode: default: the pieces in the trace.
    """
    spell = _decoder(trace, decode)
    console = console or Console()
    look = Look(console)
    if title:
        console.print(Text(title, look.style("bold")))
    number = 0
    for turn in turns(trace):
        if not turn.silent:
            words = [_text(step, spell) for step in turn.steps]
            words = [word for word in words if word.strip() not in (BOT, EOT)]
            said = " ".join(map(piece, words)) if decode else visible("".join(words))
            console.print(Text("  says    ") + Text(said, look.style("bold")))
            continue
        for step in turn.steps:
            number += 1
            console.print(_thought_line(step, number, spell, look, most))
    console.print(Text(_ending(trace, number)))


def _decoder(trace: Trace, decode: Decode | None) -> Decode:
    joined = decoder(trace, None if decode is None else lambda ids: decode(int(ids[0])))
    return lambda token: joined([token])


def _thought_line(step: Step, number: int, decode: Decode, look: Look, most: int) -> Text:
    line = Text(f"  thought {number:<3}", look.style("dim"))
    full, empty = ("█", "░") if look.utf8 else ("#", ".")
    words = step.view.get("words")
    if words is not None and words.confidence is not None:  # superposed: read out exactly
        held = zip(words.ids.tolist(), words.confidence.tolist(), strict=True)
        line.append(" holds " if len(words.ids) else " holds no word", look.style("dim"))
        for token, weight in held:
            line.append(f" {piece(decode(token))} ", look.style("magenta"))
            line.append(f"{weight:.2f} ", look.style("dim"))
        return line
    if "lens" not in step.view:
        return line.append(" (not looked at; ask with trace='lens')", look.style("dim"))
    for token, chance in _top(step, most):
        filled = round(BAR * chance)
        line.append(f" {piece(decode(token))} ", look.style("magenta"))
        line.append(full * filled, look.style("magenta")).append(empty * (BAR - filled))
        line.append(f" {chance:.2f} ")
    return line


def _top(step: Step, most: int) -> list[tuple[int, float]]:
    span = step.view.get("lens")
    if span is None or span.confidence is None:
        raise ValueError("a thought of this trace has no lens; ask with trace='lens'")
    pairs = zip(span.ids.tolist(), span.confidence.tolist(), strict=True)
    return list(pairs)[:most]


def _text(step: Step, decode: Decode) -> str:
    return "?" if step.says is None else decode(int(step.says.ids[0]))


def _ending(trace: Trace, num_thoughts: int) -> str:
    num_words = sum(step.kind == "word" for step in trace.steps)
    why = f"; ended: {trace.stopped}" if trace.stopped else ""
    return f"{num_thoughts} thoughts, {num_words} tokens spoken{why}"


# --------------------------------------------------------------------------------------------------
# Figures


def lens(trace: Trace, decode: Decode | None = None, *, most: int = 5, title: str = "") -> Figure:
    """One row a thought, its likeliest tokens as cells tinted by probability; spoken lines between.

    Raises:
        ValueError: the trace has no thoughts (see `turns`).
    """
    decode = _decoder(trace, decode)
    rows: list[tuple[str, Step | None]] = []
    number = 0
    for turn in turns(trace):
        if turn.silent:
            rows += [(f"thought {number + i}", s) for i, s in enumerate(turn.steps, start=1)]
            number += len(turn.steps)
        else:
            rows.append((" ".join(piece(_text(s, decode)) for s in turn.steps), None))
    if not number:
        raise ValueError("this trace has words only; nothing was thought silently")
    width, height = 0.9 + 0.85 * most, 0.3 * len(rows) + (0.55 if title else 0.25)
    figure = _figure((width, height))
    axes = figure.add_axes((0.02, 0.03, 0.96, 1 - 0.06 - (0.3 / height if title else 0)))
    axes.set_xlim(-1.1, most)
    axes.set_ylim(len(rows), 0)
    axes.axis("off")
    for y, (name, step) in enumerate(rows):
        if step is None:
            axes.text(-1.05, y + 0.5, _clipped(name, 14 * most), va="center", size=8, color=INK,
                      weight="bold")  # fmt: skip
            continue
        axes.text(-1.05, y + 0.5, name, va="center", size=8, color=SOFT)
        _lens_cells(axes, y, _top(step, most), decode)
    if title:
        axes.set_title(title, loc="left", size=11, weight="bold", color=INK)
    return figure


def _lens_cells(axes: Axes, y: int, top: Sequence[tuple[int, float]], decode: Decode) -> None:
    from matplotlib.patches import Rectangle

    for x, (token, chance) in enumerate(top):
        colour = tuple(_mix(AMBER, np.array(0.85 * chance)))
        axes.add_patch(
            Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, facecolor=colour, edgecolor=LINE, lw=0.5)
        )
        text = f"{_clipped(piece(decode(token)), 8)} {chance:.2f}"
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", size=7, color=INK)


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
