"""Thoughts in the terminal say in ASCII what colour says; figures hold every name and number."""

import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from rich.console import Console

from inward.common.trace import Span, Step, Trace
from inward.data.thoughts import prosqa
from inward.evals.stats import Interval, Paired
from inward.studies.thoughts_ablate import Ablation, Swap
from inward.studies.thoughts_read import Readability
from inward.studies.thoughts_search import HeightRow, Heights, ReadOut, Superposition
from inward.viz import thoughts as viz
from inward.viz.studies import (
    ablation_table,
    gaps,
    height_lines,
    held,
    layout,
    node_values,
    readability_table,
    show_tree,
    tree,
)

WORDS = ["zero", "one", "two", "\n", "end"]


def decode(token: int) -> str:
    return WORDS[token]


def thought(position: int, tokens: list[int], chances: list[float]) -> Step:
    return Step(position, "thought", view={"lens": Span.of(tokens, chances)}, position=position)


def word(position: int, token: int) -> Step:
    return Step(position, "word", Span.of([token], [0.9]), position=position)


def trace() -> Trace:
    """Two thoughts, a line, one thought, the answer."""
    steps = [
        thought(4, [1, 2], [0.75, 0.25]),
        thought(5, [2, 0], [0.5, 0.25]),
        *(word(6, 1), word(7, 3)),
        thought(8, [4, 0], [0.99, 0.01]),
        word(9, 4),
    ]
    return Trace("coconut", np.array([0, 1]), steps, "end")


GRAPH = prosqa.Graph(
    7, edges=((0, 2), (0, 3), (2, 4), (3, 4), (4, 5), (1, 6), (3, 6)), root=0, other_root=1,
    target=5, neg_target=6,
)  # fmt: skip


def readout() -> ReadOut:
    symbols = [f"n{i}" for i in range(7)]
    record = prosqa.render(GRAPH, np.random.default_rng(0), rendering="symbolic", symbols=symbols)
    values = np.zeros((4, 7))
    values[0, 0] = 0.95
    values[1, [2, 3]] = 0.625, 0.125
    values[2, [4, 6]] = 0.875, 0.0625
    values[3, 5] = 0.5
    return ReadOut(record, values)


def printed(draw, *args, encoding: str = "utf-8", **options) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    draw(*args, console=Console(file=file, width=100), **options)
    return raw.getvalue().decode(encoding)


def svg(figure) -> str:
    """The texts of a figure; it must be a well-formed file."""
    import matplotlib

    raw = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(raw, format="svg")
    root = ElementTree.fromstring(raw.getvalue())
    return " | ".join("".join(e.itertext()) for e in root.iter() if e.tag.endswith("text"))


# --- the terminal ---------------------------------------------------------------------------------


def test_turns_are_blocks_and_lines_in_order():
    found = list(viz.turns(trace()))
    assert [(t.silent, len(t.steps)) for t in found] == [
        (True, 2),
        (False, 2),
        (True, 1),
        (False, 1),
    ]
    shuffled = trace()
    shuffled.steps.reverse()
    again = [(t.silent, len(t.steps)) for t in viz.turns(shuffled)]
    assert again == [(True, 2), (False, 2), (True, 1), (False, 1)]
    with pytest.raises(ValueError, match="trace=True"):
        list(viz.turns(Trace("trm", np.array([1]))))


def test_thoughts_and_words_are_told_apart_without_colour():
    lines = printed(viz.show_thoughts, trace(), decode, encoding="ascii", title="a try").split("\n")
    assert lines[0] == "a try"
    assert lines[1].split() == "thought 1 one ######.. 0.75 two ##...... 0.25".split()
    assert lines[2].split()[:3] == ["thought", "2", "two"]
    assert lines[3].split() == ["says", "one", "\\n"]
    assert lines[4].split()[:4] == ["thought", "3", "end", "########"]
    assert lines[6] == "3 thoughts, 3 tokens spoken; ended: end"
    short = printed(viz.show_thoughts, trace(), decode, most=1)
    assert "0.25" not in short and "█" in short
    bare = Trace("coconut", np.array([0]), [Step(1, "thought", position=1)])
    assert "not looked at; ask with trace='lens'" in printed(viz.show_thoughts, bare, decode)
    with pytest.raises(ValueError, match="no lens"):
        viz.lens(bare, decode)


def test_the_tree_shows_each_node_at_its_own_depth():
    text = printed(show_tree, readout(), encoding="ascii")
    lines = [" ".join(line.strip(" |`+-").split()) for line in text.strip().split("\n")]
    assert lines[0] == "root n0"
    assert lines[1] == "n2 #####... 0.62"  # children with the larger value first
    assert lines[2] == "n4 #######. 0.88"
    assert lines[3] == "n5 ####.... 0.50 <- target"
    assert lines[4] == "n3 #....... 0.12"
    assert "n4 #######. 0.88 (see above)" in lines[5:]
    assert "n6 ........ 0.06 (the other option)" in lines[5:]
    assert len(lines) == 7 and "n1" not in text
    folded = printed(show_tree, readout(), least=0.2)
    assert "n3" not in folded and "n6" not in folded and "n4" in folded
    assert node_values(readout()) == {0: 0.95, 2: 0.625, 3: 0.125, 4: 0.875, 5: 0.5, 6: 0.0625}


def test_tables_hold_the_controls():
    rate, none = Interval(0.9, 0.8, 0.95), Interval(0.0, 0.0, 0.04)
    gain = Paired(Interval(-0.1, -0.2, 0.0))
    row = Ablation("other", (1, 2), 50, none, rate, gain, rate, none, 2.0)
    text = printed(lambda table, console: console.print(table), ablation_table([row]))
    assert "as the model thinks" in text and "another question's" in text
    assert "2, 3" in text and "90.0 %" in text and "80.0 % to 95.0 %" in text
    found = Readability(50, 25, 4, rate, rate, none, none, rate, none, None)
    swap = Swap("same", 0, 50, none)
    table = readability_table(found, [swap])
    text = printed(lambda table, console: console.print(table), table)
    assert "among 4 likeliest" in text and "changes, block 1: the same put back" in text
    assert "commonest" not in text


# --- figures --------------------------------------------------------------------------------------


def test_the_lens_figure_names_every_token():
    texts = svg(viz.lens(trace(), decode, most=2, title="A question"))
    for wanted in ("thought 1", "thought 3", "one 0.75", "two 0.25", "end 0.99", "A question"):
        assert wanted in texts
    assert "one \\n" in texts
    spoken = Trace("coconut", np.array([0]), [word(1, 1)])
    with pytest.raises(ValueError, match="words only"):
        viz.lens(spoken, decode)


def test_the_tree_figure_has_a_panel_for_each_number_of_thoughts():
    figure = tree(readout(), title="Search")
    assert len(figure.axes) == 4
    texts = svg(figure)
    assert "0 thoughts" in texts and "1 thought" in texts and "3 thoughts" in texts
    assert texts.count("n4") == 4 and "0.88" in texts and "0.95" in texts
    assert len(tree(readout(), hops=[2]).axes) == 1
    with pytest.raises(ValueError, match="0 to 3"):
        tree(readout(), hops=[4])


def test_nodes_stand_by_depth_and_never_on_each_other():
    places = layout(readout())
    assert {n: y for n, (_, y) in places.items()} == {0: 0, 2: 1, 3: 1, 4: 2, 6: 2, 5: 3, 1: 0}
    assert len(set(places.values())) == 7
    assert places[1][0] > max(x for n, (x, _) in places.items() if n != 1)


def test_measurements_become_figures():
    one = Interval(0.25, 0.125, 0.5)
    found = Superposition(
        3,
        ({"optimal": one, "reachable": one},) * 2,
        ({"optimal": one},) * 2,
        ({"optimal": 1.5},) * 2,
    )
    texts = svg(held(found, title="Held"))
    assert "optimal" in texts and "Held" in texts and "head" in texts
    assert "inner product" in svg(held(found, of="inner"))
    with pytest.raises(ValueError, match="lens"):
        held(found, of="magic")
    sums = np.array([[0.2, 0.5, 0.6], [0.9, 0.95, 1.0]])
    figure = gaps([sums, sums])
    assert len(figure.axes) == 2 and "top 3" in svg(figure)
    assert list(np.asarray(figure.axes[0].lines[0].get_ydata())) == [0.2, 0.9]
    rows = (HeightRow(0, 0, 2, None, one), HeightRow(1, 2, 1, one, Interval(0.1, np.nan, np.nan)))
    texts = svg(height_lines(Heights(1, "longest", 5, rows, 0.5)))
    assert "leads to the target" in texts and "longest" in texts
