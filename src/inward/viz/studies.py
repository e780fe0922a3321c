"""Pictures of what thoughts hold: search trees, ablations, readability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from inward.evals.tables import percent
from inward.viz.plots import AMBER, BLUE, GREEN, INK, LINE, SERIES, SOFT, _dress, _figure, _mix
from inward.viz.terminal import Look
from inward.viz.thoughts import _UNIT, BAR, _clipped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from inward.evals.stats import Interval
    from inward.studies.thoughts_ablate import Ablation, Swap
    from inward.studies.thoughts_read import Readability
    from inward.studies.thoughts_search import Heights, ReadOut, Superposition


def show_tree(
    found: ReadOut, *, console: Console | None = None, least: float = 0.0, title: str = ""
) -> None:
    """Print the graph below the root; each node with its value after as many thoughts as it is deep
    (as many hops), and whether it leads to the target.

    least: nodes of a smaller value are folded away.
    """
    console = console or Console()
    look = Look(console)
    graph, symbols = found.graph, found.symbols
    marks = {graph.target: "  <- target", graph.neg_target: "  (the other option)"}
    root = Tree(Text(f"{title or 'root'}  {symbols[graph.root]}", look.style("bold")))
    spots = {graph.root: root}
    values = node_values(found)
    queue = [graph.root]
    for node in queue:
        for child in sorted(graph.children[node], key=lambda n: -values.get(n, 0.0)):
            again = child in spots
            text = _node_text(symbols[child], values.get(child), marks.get(child, ""), look)
            if values.get(child, 1.0) < least:
                continue
            if again:
                spots[node].add(text.append("  (see above)"))
                continue
            spots[child] = spots[node].add(text)
            queue.append(child)
    console.print(root)


def node_values(found: ReadOut) -> dict[int, float]:
    """Value of each reachable node after as many hops as it is deep, as far as was read out."""
    most = (len(found.values) - 1) // found.per_hop
    return {
        int(node): float(found.after(int(depth))[node])
        for node, depth in enumerate(found.depths)
        if 0 <= depth <= most
    }


def _node_text(symbol: str, value: float | None, mark: str, look: Look) -> Text:
    line = Text(symbol, look.style("bold" if mark else ""))
    if value is not None:
        full, empty = ("█", "░") if look.utf8 else ("#", ".")
        filled = round(BAR * min(value, 1.0))
        line.append(" ").append(full * filled, look.style("green")).append(empty * (BAR - filled))
        line.append(f" {value:.2f}")
    return line.append(mark, look.style("green"))


def ablation_table(found: Sequence[Ablation]) -> Table:
    """What replaced thoughts did, a line each."""
    table = Table(box=SIMPLE)
    for name in ("thoughts", "which", "right", "95 %", "answer changed", "next step changed"):
        table.add_column(name, justify="left" if name == "thoughts" else "right")
    if found:
        table.add_row("as the model thinks", "", *_bounded(found[0].before), "", "")
    for row in found:
        which = "all" if row.which is None else ", ".join(str(n + 1) for n in row.which)
        changed = percent(row.answer_changed.value), percent(row.step_changed.value)
        table.add_row(_KINDS[row.kind], which, *_bounded(row.accuracy), *changed)
    return table


_KINDS = {
    "nothing": "nothing replaced (control)",
    "same": "the same put back (control)",
    "other": "another question's",
    "noise": "noise of the same length",
    "mean": "mean over questions",
    "zero": "zero",
}


def readability_table(found: Readability, swaps: Sequence[Swap] = ()) -> Table:
    """Whether the step after a block is readable in its thoughts, with the controls beside it."""
    table = Table(box=SIMPLE)
    for name in ("the next spoken step", "rate", "95 %", "other question's thoughts"):
        table.add_column(name, justify="left" if name.startswith("the") else "right")
    rows = [
        ("is the likeliest token of a thought", found.top_1, found.shuffled_top_1),
        (f"is among {found.k} likeliest", found.top_k, found.shuffled_top_k),
        ("is named by a linear probe", found.probe, found.shuffled_probe),
        ("is the commonest one", found.majority, None),
    ]
    for name, rate, other in rows:
        if rate is not None:
            control = "" if other is None else percent(other.value)
            table.add_row(name, *_bounded(rate), control)
    for swap in swaps:
        name = f"changes, block {swap.block + 1}: {_KINDS[swap.kind]}"
        table.add_row(name, *_bounded(swap.step_changed), "")
    return table


def _bounded(rate: Interval) -> tuple[str, str]:
    return percent(rate.value), f"{percent(rate.low)} to {percent(rate.high)}"


def tree(found: ReadOut, *, hops: Sequence[int] | None = None, title: str = "") -> Figure:
    """The graph by depth, one panel for each number of hops thought about: a node's tint is its
    value, the ring marks the root, the target (green) and the other option.

    Raises:
        ValueError: more hops than were read out.
    """
    most = (len(found.values) - 1) // found.per_hop
    chosen = list(range(most + 1)) if hops is None else list(hops)
    places = layout(found)
    width = _UNIT * (max(x for x, _ in places.values()) + 1.6)
    height = _UNIT * (max(y for _, y in places.values()) + 1.5)
    total = (width * len(chosen), height + (0.6 if title else 0.3))
    figure = _figure(total)
    for i, num in enumerate(chosen):
        box = (i / len(chosen), 0.0, 1 / len(chosen), height / total[1])
        axes = figure.add_axes(box)
        thoughts = num * found.per_hop
        axes.set_title(f"{thoughts} thought{'s' * (thoughts != 1)}", size=9, color=INK)
        _draw_tree(axes, found, found.after(num), places)
    if title:
        figure.text(0.01, 1 - 0.05 / total[1], title, va="top", size=11, weight="bold", color=INK)
    return figure


def layout(found: ReadOut) -> dict[int, tuple[float, float]]:
    """Where each node stands: (x, depth). The other root and what only it reaches stand to the
    right, by their depth below it; nodes below neither root are left out."""
    from inward.data.thoughts.prosqa import distances

    graph = found.graph
    mine, other = (distances(graph.children, r) for r in (graph.root, graph.other_root))
    depth = {n: (0, d) for n, d in mine.items()} | {
        n: (1, d) for n, d in other.items() if n not in mine
    }
    rows: dict[tuple[int, int], list[int]] = {}
    for node, place in sorted(depth.items()):
        rows.setdefault(place, []).append(node)
    widths = [
        max((len(v) for (s, _), v in rows.items() if s == side), default=0) for side in (0, 1)
    ]
    return {
        node: (side * (widths[0] + 0.5) + (widths[side] - len(nodes)) / 2 + i, float(d))
        for (side, d), nodes in rows.items()
        for i, node in enumerate(nodes)
    }


def _draw_tree(
    axes: Axes, found: ReadOut, values: np.ndarray, places: Mapping[int, tuple[float, float]]
) -> None:
    from matplotlib.patches import Circle

    graph, symbols = found.graph, found.symbols
    axes.set_xlim(-0.8, max(x for x, _ in places.values()) + 0.8)
    axes.set_ylim(max(y for _, y in places.values()) + 0.8, -0.7)
    axes.set_aspect("equal")
    axes.axis("off")
    for a, b in graph.edges:
        if a in places and b in places:
            (xa, ya), (xb, yb) = places[a], places[b]
            bent = 0.0 if ya < yb <= ya + 1 else 0.35  # not through the nodes between
            arrow = {"arrowstyle": "-|>,head_width=0.12,head_length=0.25", "color": SOFT, "lw": 0.7,
                     "shrinkA": 11, "shrinkB": 11,
                     "connectionstyle": f"arc3,rad={bent}"}  # fmt: skip
            axes.annotate("", (xb, yb), (xa, ya), arrowprops=arrow, zorder=1)
    rings = {graph.root: INK, graph.target: GREEN, graph.neg_target: "#d55e00"}
    for node, (x, y) in places.items():
        ring = rings.get(node, LINE)
        tint = tuple(_mix(AMBER, np.array(min(1.0, float(values[node])))))
        width = 1.8 if node in rings else 0.7
        axes.add_patch(Circle((x, y), 0.3, facecolor=tint, edgecolor=ring, lw=width, zorder=2))
        axes.text(x, y, _clipped(symbols[node], 6), ha="center", va="center", size=6.5, color=INK)
        if values[node] >= 0.005:
            axes.text(x + 0.29, y + 0.33, f"{values[node]:.2f}", ha="center", va="center", size=6,
                      color=INK, zorder=3)  # fmt: skip


def held(found: Superposition, *, of: str = "lens", title: str = "") -> Figure:
    """Bars with intervals: what each thought holds of unreachable, reachable, frontier and optimal
    nodes. of: "lens" (probability under the head) or "inner" (inner product with embeddings).

    Raises:
        ValueError: another measure.
    """
    if of not in ("lens", "inner"):
        raise ValueError(f"of is {of!r}; choose 'lens' or 'inner'")
    from inward.studies.thoughts_search import GROUPS

    figure = _figure((1.6 + 1.0 * max(3, len(found.lens)), 3.4))
    axes = figure.add_axes((0.13, 0.14, 0.84, 0.69 if title else 0.76))
    for i, name in enumerate(GROUPS):
        rows = [(t, m[name]) for t, m in enumerate(getattr(found, of), start=1) if name in m]
        xs = [t + (i - 1.5) * 0.2 for t, _ in rows]
        heights = [v.value for _, v in rows]
        bounds = np.array([(v.value - v.low, v.high - v.value) for _, v in rows]).T
        axes.bar(xs, heights, 0.18, color=SERIES[i], label=name)
        if len(rows):
            axes.errorbar(xs, heights, np.nan_to_num(bounds), fmt="none", ecolor=INK, lw=0.8)
    what = "probability under the head" if of == "lens" else "inner product with embeddings"
    _dress(axes, "thought", what)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(-0.02, 0.98),
                handlelength=1, columnspacing=1)  # fmt: skip
    if title:
        axes.set_title(title, loc="left", size=11, weight="bold", color=INK, pad=20)
    return figure


def gaps(sums: Sequence[np.ndarray], *, title: str = "") -> Figure:
    """Figure 6 of the paper: for each array of `parallelism` (N, most) a panel with the sorted
    summed value of the likeliest 1, 2, 3 nodes; the wider the bands, the more is kept in sight."""
    figure = _figure((3.0 * len(sums), 2.8))
    for i, own in enumerate(sums):
        axes: Any = figure.add_axes(
            ((i + 0.2) / len(sums), 0.18, 0.76 / len(sums), 0.64 if title else 0.7)
        )
        xs = 100 * (np.arange(len(own)) + 0.5) / len(own)
        for j, column in enumerate(np.sort(own, axis=0).T):
            axes.plot(xs, column, color=SERIES[j], lw=1.4, label=f"top {j + 1}")
        _dress(axes, "percentile of questions", "summed value" if i == 0 else "")
        axes.set_ylim(0, 1.02)
        if i == 0:
            axes.legend(frameon=False, fontsize=8)
    if title:
        figure.text(0.01, 0.98, title, va="top", size=11, weight="bold", color=INK)
    return figure


def height_lines(found: Heights, *, title: str = "") -> Figure:
    """Value against height: nodes that lead to the target should be near 1, others near 0, and more
    so the lower they are (figure 7 of the paper)."""
    figure = _figure((4.6, 3.0))
    axes = figure.add_axes((0.14, 0.16, 0.82, 0.7 if title else 0.78))
    for colour, name, values in (
        (BLUE, "leads to the target", [(r.height, r.right) for r in found.rows]),
        (AMBER, "does not", [(r.height, r.wrong) for r in found.rows]),
    ):
        kept = [(h, v) for h, v in values if v is not None]
        xs, ys = [h for h, _ in kept], [v.value for _, v in kept]
        bounds = np.array([(v.value - v.low, v.high - v.value) for _, v in kept]).reshape(-1, 2).T
        axes.errorbar(
            xs, ys, np.nan_to_num(bounds), color=colour, marker="o", ms=4, lw=1.6, label=name
        )
    _dress(axes, f"height ({found.kind} way to a leaf)", "value")
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, fontsize=8)
    if title:
        axes.set_title(title, loc="left", size=11, weight="bold", color=INK)
    return figure
