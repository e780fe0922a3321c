"""The page: one file that loads nothing, whose data no browser can take for markup."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import inward
from inward.common.thinking import Answer
from inward.common.trace import Cost, Span, Step, Trace, plane
from inward.hub import doors
from inward.viz import page as pages
from inward.viz.show import in_notebook


def grid_trace(**meta) -> Trace:
    """A 4 x 4 Sudoku in two steps, the first of which breaks a rule."""
    question = np.array([2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1])
    first = Span(np.array([2, 2, 4, 5, 4, 5, 3, 2, 3, 2, 5, 4, 5, 4, 2, 3]), np.full(16, 0.4))
    last = Span(np.array([2, 3, 4, 5, 4, 5, 3, 2, 3, 2, 5, 4, 5, 4, 2, 3]), np.full(16, 0.9))
    steps = [
        Step(1, "refine", view={"grid": first}, scores={"halt": -2.0}, cost=Cost(1, 5.0, 1)),
        Step(2, "refine", last, {"grid": last}, {"halt": 3.0}, Cost(1, 5.0, 1)),
    ]
    pieces = {1: ".", **{i + 1: str(i) for i in range(1, 5)}}
    about = {"task": "sudoku4", "grid": [4, 4], **meta}
    return Trace("trm", question, steps, "halted", about, "toy", [], pieces)


class Reader(HTMLParser):
    """Scripts and the addresses that a document names."""

    def __init__(self):
        super().__init__()
        self.scripts: list[tuple[dict, str]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.inside = False

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.addresses += [v for k, v in found.items() if k in ("src", "href", "action") and v]
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((found, ""))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            about, text = self.scripts[-1]
            self.scripts[-1] = (about, text + data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


EVIL = "</script><script>alert(1)</script><!--\u2028 & <img src=x onerror=alert(1)>"


def test_texts_of_a_trace_cannot_leave_their_place(tmp_path):
    trace = grid_trace(note=EVIL)
    trace.pieces[2] = EVIL
    path = inward.page(trace, tmp_path / "out.html", title=EVIL)
    reader = read(path.read_text(encoding="utf-8"))
    assert len(reader.scripts) == 2 and "img" not in reader.tags and not reader.addresses
    about, text = reader.scripts[0]
    assert about["type"] == "application/json"
    data = json.loads(text)
    assert data["traces"][0]["meta"]["note"] == EVIL and data["title"] == EVIL
    assert data["traces"][0]["pieces"]["2"] == EVIL


def test_a_page_is_small_and_names_no_address():
    text = pages.document([])
    assert len(text.encode()) < 300_000
    assert not re.findall(r"(?:src|href)=|@import|url\(http|fetch\(\s*['\"]http", text)
    # the name of SVG itself is the only address, and none that is asked
    assert set(re.findall(r"https?://[^\s\"'`]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text and "connect-src 'none'" in text
    assert "connect-src 'self'" in pages.playground_html()


def test_no_source_ends_the_script_it_stands_in():
    for name in pages.SCRIPTS:
        assert "</script" not in pages.source(f"{name}.js").lower()
        assert "<!--" not in pages.source(f"{name}.js")
    assert "</style" not in pages.source("page.css").lower()


def test_numbers_that_json_has_not_are_none():
    trace = grid_trace(odd=float("nan"), far=float("inf"), array=np.array([1.0, np.nan]))
    row = json.loads(pages.as_data(trace.to_dict()))
    assert row["meta"]["odd"] is None and row["meta"]["far"] is None
    assert row["meta"]["array"] == [1.0, None]


def test_answers_and_lists_and_what_is_none(tmp_path):
    answer = Answer(trace=grid_trace())
    assert len(pages.traces_of([answer, grid_trace()])) == 2
    for wrong in (Answer(), [], "trace", None, [3], {"a": 1}):
        with pytest.raises(ValueError, match="trace=True"):
            inward.page(wrong, tmp_path / "no.html")
    with pytest.raises(IsADirectoryError):
        inward.page(answer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_method_has_a_scene_and_can_be_asked_for_its_picture():
    scripts = "".join(pages.source(f"{name}.js") for name in pages.SCRIPTS)
    for method in doors():
        assert f"systems.{method.name} =" in scripts
        names = pages.wanted(method.name, {})
        assert names is True or set(names or ()) <= set(method.traces)
    assert pages.wanted("huginn", {"mode": "speculate"}) is True
    assert pages.wanted("tidar", {"scheme": "diffusion"}) == ("canvas",)


def test_a_notebook_gets_a_frame_that_may_not_reach_out():
    whole = pages.Picture(grid_trace(note=EVIL))._repr_html_()
    reader = read(whole)
    assert reader.tags == ["iframe"] and 'sandbox="allow-scripts allow-downloads"' in whole
    assert repr(pages.Picture(grid_trace())) == "Picture(trm: 2 steps)"
    assert not in_notebook()


def test_the_plane_of_a_path():
    turn = np.linspace(0, 2 * np.pi, 13)[:-1]
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 2)))[0]
    circle = np.stack([3 * np.cos(turn), np.sin(turn)], 1) @ basis.T + 5.0
    places, share = plane(circle)
    assert share == pytest.approx(1.0)
    gaps = np.linalg.norm(places[:, None] - places, axis=-1)
    np.testing.assert_allclose(gaps, np.linalg.norm(circle[:, None] - circle, axis=-1), atol=1e-9)
    assert np.ptp(places[:, 0]) == pytest.approx(6.0) and np.ptp(places[:, 1]) == pytest.approx(2.0)
    still, share = plane(np.ones((4, 3)))
    assert share == 1.0 and not still.any()
    assert plane(np.ones((1, 3)))[0].shape == (1, 2)
    line, share = plane(np.arange(3.0)[:, None])
    np.testing.assert_allclose(np.abs(line), [[1, 0], [0, 0], [1, 0]], atol=1e-12)
