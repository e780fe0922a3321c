"""Figures for papers and pages: the draft being rewritten, and accuracy against steps.

Colours are from the set of Okabe and Ito, chosen so that they differ in lightness too: amber tint
= unsure, blue outline = changed, and a page printed in grey still shows a tint and a dark frame.
Every shape is a vector and all shapes of one colour are one path, so an SVG is sharp and small.

matplotlib is imported inside the functions, and without pyplot: no window system, no global state.
The same trace gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inward.common.files import replacing
from inward.common.trace import Trace
from inward.data.puzzles.puzzles import PAD
from inward.viz import (
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as MplPath

    from inward.evals.stats import Interval

INK = "#20242c"
SOFT = "#6b7280"
LINE = "#c3c8d0"
GIVEN = "#eceef2"
WALL = "#4a5162"
AMBER = "#e69f00"
BLUE = "#0072b2"
GREEN = "#009e73"
VERMILLION = "#d55e00"
SERIES = (BLUE, VERMILLION, GREEN, AMBER, "#cc79a7", "#56b4e9", INK)
ARC = (
    "#ffffff #0072b2 #d55e00 #009e73 #f0e442 #9aa0ab #cc79a7 #e69f00 #56b4e9 #6b2b1f".split()
)  # the ten colours of ARC, moved to shades that do not depend on telling red from green

_PANEL, _GAP, _HEAD, _FOOT, _TITLE = 1.75, 0.28, 0.24, 0.27, 0.32  # inches
_LEGEND = 0.3
_TINTS = 12
_NAMES_APART = 0.06  # of the axes' height
MISSING = "pictures need matplotlib, which is not installed; run: pip install 'inward[viz]'"


def available() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def refinement(trace: Trace, board: Board, *, title: str = "", most: int = 8) -> Figure:
    """The question and at most `most` informative steps as small multiples.

    A cell's tint is the model's doubt (1 - confidence), an outline says that it changed since the
    step before, given cells are bold. The bar below is the model's belief that it is right.

    Raises ValueError if the trace recorded no tokens or has another size than the board.
    """
    drawn = frames(trace, board)
    chosen = [drawn[0], *choose(drawn[1:], most)]
    rows, cols = crop(drawn)
    high, wide = np.zeros(board.grid)[rows, cols].shape
    num_rows = 1 if len(chosen) <= 5 else 2
    num_cols = -(-len(chosen) // num_rows)
    width, height = _PANEL, _PANEL * high / wide
    top = _TITLE if title else 0.08
    row_height = _HEAD + height + _FOOT
    size = (
        num_cols * (width + _GAP) + _GAP,
        top + num_rows * row_height + (num_rows - 1) * 0.1 + _LEGEND,
    )
    figure = _figure(size)
    for index, frame in enumerate(chosen):
        line, column = divmod(index, num_cols)
        left = _GAP + column * (width + _GAP)
        bottom = size[1] - top - line * (row_height + 0.1) - _HEAD - height
        box = (left / size[0], bottom / size[1], width / size[0], height / size[1])
        axes = figure.add_axes(box)
        _draw_board(axes, frame, board, (rows, cols), cell=72 * width / wide)
        _draw_heading(axes, frame, last=frame is drawn[-1])
        bar = (left / size[0], (bottom - 0.15) / size[1], width / size[0], 0.08 / size[1])
        _draw_belief(figure.add_axes(bar), frame)
    if title:
        figure.text(_GAP / size[0], 1 - 0.09 / size[1], title, va="top", size=11, weight="bold")
    _draw_legend(figure, board, size)
    return figure


def accuracy_by_step(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """Exact accuracy after each supervision step, one line with its interval per result row.

    `rows` are what `inward eval --out` writes; "by_step" holds one accuracy per step.

    Raises ValueError if no row has one.
    """
    from inward.evals.stats import wilson

    kept = [row for row in rows if row.get("by_step")]
    if not kept:
        raise ValueError('no row holds "by_step"; evaluate with it switched on')
    longest = max(len(str(row.get(name, ""))) for row in kept for name in ("what", "dataset"))
    left, width, right = 0.65, 4.0, 0.2 + 0.075 * longest  # inches; labels stand on the right
    total = left + width + right
    figure = _figure((total, 3.4))
    axes = figure.add_axes((left / total, 0.15, width / total, 0.74 if title else 0.80))
    for index, row in enumerate(kept):
        values = [float(value) for value in row["by_step"]]
        bounds = [wilson(round(value * row["num"]), row["num"]) for value in values]
        points = list(enumerate(bounds, start=1))
        _line(axes, index, points, f"{row.get('what', '')}\n{row.get('dataset', '')}")
    _dress(axes, "supervision step", "puzzles solved")
    axes.set_ylim(-0.02, 1.02)
    if title:
        axes.set_title(title, loc="left", size=11, weight="bold", color=INK)
    return figure


def curves(
    lines: Mapping[str, Sequence[tuple[float, Interval]]],
    *,
    x_label: str,
    y_label: str = "puzzles solved",
    doubling: bool = False,
    title: str = "",
) -> Figure:
    """Named lines through (x, estimate with its interval), such as accuracy against rollouts.

    doubling: x in powers of two (steps, rollouts); otherwise linear (FLOPs, coverage).

    Raises ValueError if there is no line, or one without points.
    """
    if not lines or not all(lines.values()):
        raise ValueError("nothing to draw; give at least one line, each with at least one point")
    left, width, right = 0.65, 4.0, 0.2 + 0.075 * max(map(len, lines))  # inches
    total = left + width + right
    figure = _figure((total, 3.4))
    axes = figure.add_axes((left / total, 0.15, width / total, 0.74 if title else 0.80))
    for index, points in enumerate(lines.values()):
        _line(axes, index, points, "")
    _label_ends(axes, {name: points[-1][1].value for name, points in lines.items()})
    _dress(axes, x_label, y_label)
    if doubling:
        xs = sorted({x for points in lines.values() for x, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.minorticks_off()
    if title:
        axes.set_title(title, loc="left", size=11, weight="bold", color=INK)
    return figure


def scatter(
    groups: Mapping[str, Sequence[tuple[float, float, str]]],
    *,
    x_label: str,
    y_label: str,
    doubling: bool = False,
) -> Figure:
    """Named groups of labelled points (x, y, label), each group joined in its order.

    doubling: x in powers of two.

    Raises ValueError if there is no group, or one without points.
    """
    if not groups or not all(groups.values()):
        raise ValueError("nothing to draw; give at least one group, each with at least one point")
    figure = _figure((6.2, 3.8))
    axes = figure.add_axes((0.11, 0.14, 0.84, 0.82))
    for index, (name, points) in enumerate(groups.items()):
        colour = SERIES[index % len(SERIES)]
        xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
        style = {"color": colour, "markersize": 5, "lw": 0.8, "label": name}
        axes.plot(xs, ys, marker="osD^v"[index % 5], **style)
        for x, y, label in points:
            axes.annotate(
                label, (x, y), xytext=(4, 4), textcoords="offset points", size=6.5, color=colour
            )
    _dress(axes, x_label, y_label)
    if doubling:
        from matplotlib.ticker import ScalarFormatter

        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def kind_of(path: str | os.PathLike) -> str:
    """svg, png or pdf, by the name's ending; ValueError for another one."""
    kind = Path(path).suffix.lower().lstrip(".")
    if kind not in ("svg", "png", "pdf"):
        raise ValueError(f"cannot draw {str(path)!r}; the name must end in .svg, .png or .pdf")
    return kind


def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Write svg, png or pdf by the name's ending, to a temporary name first.

    Raises ValueError for another ending.
    """
    import matplotlib

    path = Path(path)
    kind = kind_of(path)
    date = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}
    # a fixed salt and no date: the same figure gives the same bytes
    with matplotlib.rc_context({"svg.hashsalt": "inward"}), replacing(path) as partial:
        figure.savefig(partial, format=kind, dpi=200, metadata=date[kind])
    return path


def _figure(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModuleNotFoundError(MISSING) from error
    return Figure(figsize=size, facecolor="white")


def _line(axes: Axes, index: int, points: Sequence[tuple[float, Interval]], name: str) -> None:
    """One line with its band and its name at the right end."""
    colour = SERIES[index % len(SERIES)]
    xs = [x for x, _ in points]
    lows, highs = [y.low for _, y in points], [y.high for _, y in points]
    values = [y.value for _, y in points]
    axes.fill_between(xs, lows, highs, color=colour, alpha=0.18, linewidth=0)
    axes.plot(xs, values, color=colour, marker="osD^v"[index % 5], markersize=4, lw=1.6)
    if name:
        axes.annotate(
            name, (xs[-1], values[-1]), xytext=(8, 0), textcoords="offset points",
            va="center", size=8, color=colour, annotation_clip=False,
        )  # fmt: skip


def _label_ends(axes: Axes, ends: Mapping[str, float]) -> None:
    """Names right of the axes at the height of their lines' ends, moved apart where they meet."""
    low, high = axes.get_ylim()
    heights = np.array([(value - low) / (high - low) for value in ends.values()])
    order = np.argsort(-heights, kind="stable")
    places = np.minimum(heights[order], 1.0)
    for i in range(1, len(places)):
        places[i] = min(places[i], places[i - 1] - _NAMES_APART)
    names, colours = list(ends), [SERIES[i % len(SERIES)] for i in range(len(ends))]
    for i, y in zip(order, places, strict=True):
        axes.text(1.03, y, names[i], transform=axes.transAxes, va="center", size=8,
                  color=colours[i])  # fmt: skip


def _dress(axes: Axes, x: str, y: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x, color=INK, size=9)
    axes.set_ylabel(y, color=INK, size=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(colors=SOFT, labelsize=8)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)


# --------------------------------------------------------------------------------------------------
# One panel


def _draw_board(
    axes: Axes, frame: Frame, board: Board, window: tuple[slice, slice], *, cell: float
) -> None:
    """Background, lines, characters, outlines; `cell` is a cell's side in points."""
    rows, cols = window
    cells = ("tokens", "confidence", "changed", "given", "broken")
    part = replace(frame, **{name: getattr(frame, name)[rows, cols] for name in cells})
    high, wide = part.tokens.shape
    axes.set_xlim(0, wide)
    axes.set_ylim(high, 0)
    axes.set_aspect("equal")
    axes.axis("off")
    _fill(axes, _colours(part, board))
    if is_maze(board):
        _path(axes, part.tokens, cell)
    else:
        _rule(axes, high, wide, boxes(board), cell)
    if not is_arc(board):
        _write(axes, part, board, cell)
    _outline(axes, part.changed, BLUE, cell)
    _outline(axes, part.broken, VERMILLION, cell)


def _mix(strong: str, share: np.ndarray, base: str = "#ffffff") -> np.ndarray:
    """(..., 3) colours from `base` (share 0) to `strong` (share 1)."""
    from matplotlib.colors import to_rgb

    low, high = np.array(to_rgb(base)), np.array(to_rgb(strong))
    return low + np.clip(share, 0, 1)[..., None] * (high - low)


def _colours(frame: Frame, board: Board) -> np.ndarray:
    """(rows, cols, 3) background of each cell."""
    from matplotlib.colors import to_rgb

    doubt = np.where(frame.given, 0.0, 1 - frame.confidence)
    # in steps: neighbours of nearly the same doubt then share a rectangle
    colours = _mix(AMBER, 0.85 * np.round(doubt * _TINTS) / _TINTS)
    if is_maze(board):
        colours[frame.tokens == 1] = to_rgb(WALL)
    elif is_arc(board):
        for value, colour in enumerate(ARC):
            colours[frame.tokens == value + 2] = to_rgb(colour)
    else:
        colours[frame.given] = to_rgb(GIVEN)
    colours[frame.tokens == PAD] = 1.0
    return colours


def _rectangles(boxes_xywh: Sequence[tuple[float, float, float, float]]) -> MplPath:
    """One path that holds all these rectangles."""
    from matplotlib.path import Path as MplPath

    return MplPath.make_compound_path(
        *(
            MplPath([(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)], closed=True)
            for x, y, w, h in boxes_xywh
        )
    )


def _fill(axes: Axes, colours: np.ndarray) -> None:
    """Runs of equal cells in a row are one rectangle, all rectangles of a colour one path."""
    from matplotlib.patches import PathPatch

    shapes: dict[tuple[float, ...], list[tuple[float, float, float, float]]] = {}
    for row, line in enumerate(colours):
        breaks = np.flatnonzero((line[1:] != line[:-1]).any(1)) + 1
        edges = [0, *breaks.tolist(), len(line)]
        for left, right in pairwise(edges):
            shapes.setdefault(tuple(line[left].tolist()), []).append((left, row, right - left, 1))
    # dark ones first: the thin edge that covers the hairline viewers leave between neighbours
    # must not eat into the light ones
    for colour, boxes_xywh in sorted(shapes.items(), key=lambda item: sum(item[0])):
        shape = _rectangles(boxes_xywh)
        axes.add_patch(PathPatch(shape, facecolor=colour, edgecolor=colour, lw=0.3, zorder=1))


def _rule(axes: Axes, high: int, wide: int, box: tuple[int, int], cell: float) -> None:
    """Thin lines between cells, heavy ones (drawn last, on top) between boxes."""
    from matplotlib.collections import LineCollection

    lines = [([(0, y), (wide, y)], y % box[0] == 0) for y in range(high + 1)]
    lines += [([(x, 0), (x, high)], x % box[1] == 0) for x in range(wide + 1)]
    for heavy, colour, width in ((False, LINE, 0.5), (True, INK, min(1.3, cell / 12))):
        chosen = [line for line, is_heavy in lines if is_heavy == heavy]
        axes.add_collection(
            LineCollection(
                chosen, colors=colour, linewidths=width, zorder=2, clip_on=False,
                capstyle="projecting",
            )
        )  # fmt: skip


def _path(axes: Axes, tokens: np.ndarray, cell: float) -> None:
    """The marked cells of a maze as one thick line; a draft in pieces shows as pieces."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as MplPath

    marked = tokens == 5
    on_way = marked | np.isin(tokens, (3, 4))
    corners = [[(c + 0.5, r + 0.5)] * 2 for r, c in np.argwhere(marked)]
    for down, across in ((1, 0), (0, 1)):
        here = np.s_[: -1 if down else None, : -1 if across else None]
        there = np.s_[down:, across:]
        joined = on_way[here] & on_way[there] & (marked[here] | marked[there])
        corners += [
            [(c + 0.5, r + 0.5), (c + across + 0.5, r + down + 0.5)] for r, c in np.argwhere(joined)
        ]
    if corners:
        codes = [MplPath.MOVETO, MplPath.LINETO] * len(corners)
        way = MplPath(np.concatenate(corners), codes)
        line = {"edgecolor": BLUE, "lw": 0.36 * cell, "capstyle": "round"}
        axes.add_patch(PathPatch(way, facecolor="none", zorder=1.5, **line))
    ends = [(c, r, 1, 1) for r, c in np.argwhere(np.isin(tokens, (3, 4)))]
    if ends:
        shape = _rectangles(ends)
        axes.add_patch(PathPatch(shape, facecolor=INK, edgecolor=INK, lw=0.6, zorder=1.8))


def _write(axes: Axes, frame: Frame, board: Board, cell: float) -> None:
    for (row, col), token in np.ndenumerate(frame.tokens):
        sign = character(int(token), board)
        if sign in " .#" or (is_maze(board) and sign == "o"):
            continue
        given = bool(frame.given[row, col])
        ink = "white" if is_maze(board) else INK if given else BLUE
        weight = "bold" if given else "normal"
        axes.text(
            col + 0.5, row + 0.53, sign, ha="center", va="center_baseline", color=ink,
            size=0.62 * cell, weight=weight, zorder=3,
        )  # fmt: skip


def _outline(axes: Axes, cells: np.ndarray, colour: str, cell: float) -> None:
    from matplotlib.patches import PathPatch

    if cells.any():
        frame = _rectangles([(c + 0.06, r + 0.06, 0.88, 0.88) for r, c in np.argwhere(cells)])
        width = min(1.8, cell / 8)
        axes.add_patch(PathPatch(frame, facecolor="none", edgecolor=colour, lw=width, zorder=4))


def _draw_heading(axes: Axes, frame: Frame, *, last: bool) -> None:
    name = "question" if frame.number == 0 else f"step {frame.number}"
    axes.set_title(
        f"{name} - answer" if last else name, size=9, color=INK, loc="left", pad=4,
        weight="bold" if last or frame.number == 0 else "normal",
    )  # fmt: skip


def _draw_belief(axes: Axes, frame: Frame) -> None:
    """A thin bar from 0 to 1 with its number; nothing under the question."""
    axes.axis("off")
    if frame.halt is None:
        return
    axes.set_xlim(0, 1.28)
    axes.set_ylim(0, 1)
    axes.barh(0.5, 1.0, height=1.0, color=GIVEN)
    axes.barh(0.5, frame.halt, height=1.0, color=GREEN if frame.halt >= 0.5 else SOFT)
    axes.text(1.28, 0.5, f"{frame.halt:.2f}", ha="right", va="center_baseline", size=8, color=INK)


def _draw_legend(figure: Figure, board: Board, size: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    y, x, side = 0.1 / size[1], _GAP / size[0], 0.11
    box = (side / size[0], side / size[1])
    entries = [("changed in this step", "white", BLUE)]
    if not is_arc(board):
        entries.insert(0, ("unsure", AMBER, "none"))
    if is_maze(board):
        entries.insert(0, ("path", BLUE, "none"))
    elif blank_token(board) is not None:
        entries.insert(0, ("given", GIVEN, "none"))
    entries.append(("bar: the model's belief that it is right", GREEN, "none"))
    for name, face, edge in entries:
        patch = Rectangle((x, y), *box, facecolor=face, edgecolor=edge, linewidth=1.4,
                          transform=figure.transFigure)  # fmt: skip
        figure.add_artist(patch)
        figure.text(x + 1.5 * box[0], y + box[1] / 2, name, size=7.5, color=SOFT, va="center")
        x += (2.5 * side + 0.054 * len(name) + 0.1) / size[0]
