"""Frames say what changed; the terminal says it without colour too; figures are whole files."""

import io
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from rich.console import Console

from inward.common.trace import Cost, Span, Step, Trace
from inward.data.puzzles import arc
from inward.tasks.arc import ArcTask
from inward.tasks.maze import MazeTask
from inward.tasks.sudoku import SudokuTask
from inward.viz import (
    UNSURE,
    Frame,
    blank_token,
    boxes,
    character,
    choose,
    crop,
    frames,
    sigmoid,
)

QUESTION = "1.3. .... .1.. ..2."
DRAFTS = ["1234 3421 4143 3421", "1234 3412 4143 3421", "1234 3412 2143 4321"]


def tokens(text: str) -> np.ndarray:
    return np.array([1 if c == "." else int(c) + 1 for c in text.replace(" ", "")])


def sudoku_trace(drafts: list[str] = DRAFTS) -> Trace:
    question = tokens(QUESTION)
    steps = []
    for index, draft in enumerate(drafts, start=1):
        confidence = np.where(question == 1, 0.3 + 0.2 * index, 1.0)
        score = {"halt": 2.0 * index - 4}
        steps.append(refined(index, tokens(draft), confidence, score, Cost(6, index * 1e6)))
    return Trace("trm", question, steps, "halted", {"grid": [4, 4]})


def refined(index, cells, confidence=None, scores=None, cost=None) -> Step:
    return Step(
        index, "refine", None, {"grid": Span(cells, confidence)}, scores or {}, cost or Cost()
    )


def maze_trace() -> tuple[Trace, MazeTask]:
    rows = ["#######", "#S    #", "# ### #", "# #G  #", "# #####", "#     #", "#######"]
    task = MazeTask(7)
    question = task.parse("\n".join(rows)).astype(np.int64)
    first, second = question.copy(), question.copy()
    first[[9, 10, 33]] = 5
    second[[9, 10, 11, 12, 19, 25, 26]] = 5
    steps = [
        refined(1, first, np.full(49, 0.55), {"halt": -1.0}, Cost(4, 1e6)),
        refined(2, second, np.full(49, 0.95), {"halt": 3.0}, Cost(4, 1e6)),
    ]
    return Trace("trm", question, steps, "budget", {"grid": [7, 7]}), task


def plain(width: int = 100, encoding: str = "utf-8", **options) -> tuple[Console, io.BytesIO]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    return Console(file=file, width=width, height=60, **options), raw


def written(raw: io.BytesIO, encoding: str = "utf-8") -> str:
    return raw.getvalue().decode(encoding)


# --- frames -------------------------------------------------------------------------------------


def test_frames_tell_what_changed_and_what_it_cost():
    drawn = frames(sudoku_trace(), SudokuTask(4))
    assert [frame.number for frame in drawn] == [0, 1, 2, 3]
    assert drawn[0].given.sum() == 4 and not drawn[0].unsure.any()
    assert not drawn[1].changed.any()  # the first draft is all new, which says nothing
    assert np.argwhere(drawn[2].changed).tolist() == [[1, 2], [1, 3]]
    assert np.argwhere(drawn[3].changed).tolist() == [[2, 0], [3, 0], [3, 1]]
    assert [frame.unsure.sum() for frame in drawn] == [0, 12, 0, 0]  # 0.5, then 0.7 and 0.9
    assert drawn[2].evaluations == 12 and drawn[3].flops == 6e6
    assert drawn[2].halt == 0.5 and drawn[0].halt is None


def test_overwritten_clues_are_seen():
    trace = sudoku_trace(["4234 3412 2143 4321"])
    (_, step) = frames(trace, SudokuTask(4))
    assert np.argwhere(step.broken).tolist() == [[0, 0]]


def test_frames_refuse_a_foreign_board_and_an_empty_trace():
    with pytest.raises(ValueError, match="16 cells, the sudoku6 board 6 x 6"):
        frames(sudoku_trace(), SudokuTask(6))
    with pytest.raises(ValueError, match="trace=True"):
        frames(Trace("trm", tokens(QUESTION)), SudokuTask(4))


def test_arc_shows_the_grid_and_nothing_around_it():
    grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
    question = arc.encode(grid, (4, 5)).astype(np.int64)
    noisy = question.copy()
    noisy[-1] = 7  # outside the grid nothing is trained: anything may stand there
    (shown, step) = frames(Trace("trm", question, [refined(1, noisy)]), ArcTask())
    assert (step.tokens == shown.tokens).all()
    assert crop([shown, step]) == (slice(4, 6), slice(5, 8))
    assert (shown.tokens[4:6, 5:8] == grid + 2).all() and (shown.tokens > 0).sum() == 6
    assert not step.given.any()


def test_choose_keeps_the_ends_and_the_steps_with_most_changes():
    def frame(number: int, num_changed: int) -> Frame:
        cells = np.zeros((3, 3))
        changed = (np.arange(9) < num_changed).reshape(3, 3)
        return Frame(number, cells, cells, changed, changed, changed)

    drawn = [frame(i, n) for i, n in enumerate([0, 1, 5, 0, 3, 2, 0, 0])]
    assert [f.number for f in choose(drawn, 4)] == [0, 2, 4, 7]
    assert [f.number for f in choose(drawn, 8)] == [
        0,
        1,
        2,
        4,
        5,
        7,
    ]  # what stood still is left out
    assert [f.number for f in choose(drawn[:2], 2)] == [0, 1]
    with pytest.raises(ValueError, match="at least 2"):
        choose(drawn, 1)


def test_characters_and_boxes():
    assert [boxes(SudokuTask(n)) for n in (4, 6, 9)] == [(2, 2), (2, 3), (3, 3)]
    assert boxes(MazeTask((5, 7))) == (5, 7)
    assert "".join(character(t, SudokuTask(9)) for t in range(11)) == " .123456789"
    assert "".join(character(t, MazeTask(5)) for t in range(6)) == " # SGo"
    assert [blank_token(task) for task in (SudokuTask(4), MazeTask(5), ArcTask())] == [1, 2, None]
    assert sigmoid(0.0) == 0.5 and sigmoid(1e4) == 1.0 and sigmoid(-1e4) == 0.0


# --- terminal -----------------------------------------------------------------------------------


def test_a_frame_reads_without_colour():
    from inward.viz.terminal import Look, render

    console, _ = plain()
    task = SudokuTask(4)
    drawn = frames(sudoku_trace(["1234 3421 4143 3421", "1244 3412 4143 3421"]), task)
    assert render(drawn[2], task, Look(console)).plain.splitlines() == [
        "step 2",
        "┌──────┬──────┐",
        "│ 1  2 │!4  4 │",
        "│ 3  4 │+1 +2 │",
        "├──────┼──────┤",
        "│ 4  1 │ 4  3 │",
        "│ 3  4 │ 2  1 │",
        "└──────┴──────┘",
        "right? ██████░░░░░░ 0.50",
        "changed 3, unsure 0",
    ]
    assert "│ 1  2?│ 3  4?│" in render(drawn[1], task, Look(console)).plain


def test_a_terminal_without_utf8_gets_ascii():
    from inward.viz.terminal import show

    console, raw = plain(encoding="ascii")
    show(sudoku_trace(), SudokuTask(4), console=console, title="all of it")
    shown = written(raw, "ascii")
    assert "+------+------+" in shown and "right? ######......" in shown
    assert "18 network evaluations" in shown and "the model halted" in shown


def test_colour_replaces_the_marks_and_no_color_brings_them_back(monkeypatch):
    from inward.viz.terminal import show

    monkeypatch.delenv("NO_COLOR", raising=False)
    seen = {}
    for no_color in (False, True):
        console, raw = plain(force_terminal=True, color_system="standard", no_color=no_color)
        show(sudoku_trace(), SudokuTask(4), console=console)
        seen["none" if no_color else "colour"] = written(raw)
    assert "\x1b[1;30;43m 1 " in seen["colour"] and "+1" not in seen["colour"]
    assert "+1" in seen["none"] and "\x1b[1;30;43m" not in seen["none"]


def test_play_rewrites_in_place_only_where_someone_watches():
    from inward.viz.terminal import play

    pauses: list[float] = []
    console, raw = plain(force_terminal=True, color_system=None)
    play(sudoku_trace(), SudokuTask(4), console=console, seconds=1.0, sleep=pauses.append)
    assert pauses == [0.25] * 4 and "\x1b[1A" in written(raw)  # cursor up: the same place again
    console, raw = plain()
    play(sudoku_trace(), SudokuTask(4), console=console, sleep=pauses.append)
    assert len(pauses) == 4 and "\x1b" not in written(raw) and "step 3 (answer)" in written(raw)


def test_a_frame_higher_than_the_terminal_is_not_animated():
    from inward.viz.terminal import play

    def never(seconds: float) -> None:
        raise AssertionError("it was animated")

    console, raw = plain(force_terminal=True, color_system=None)
    console.height = 9
    play(sudoku_trace(), SudokuTask(4), console=console, sleep=never)
    assert "step 3 (answer)" in written(raw)


def test_a_maze_reads_without_colour():
    from inward.viz.terminal import Look, render

    trace, task = maze_trace()
    console, _ = plain()
    lines = render(frames(trace, task)[2], task, Look(console), last=True).plain.splitlines()
    assert lines[:5] == [
        "step 2 (answer)",
        "██████████████",
        "██S o o o+o+██",
        "██  ██████o+██",
        "██  ██G o+o+██",
    ]
    first = render(frames(trace, task)[1], task, Look(console)).plain
    assert f"unsure {int((trace.question == 2).sum())}" in first and "o?" in first


# --- figures ------------------------------------------------------------------------------------


def test_a_figure_has_a_panel_and_a_bar_for_every_chosen_step():
    from inward.viz.plots import refinement

    figure = refinement(sudoku_trace(), SudokuTask(4), title="four by four")
    assert len(figure.axes) == 2 * 4
    titles = [axes.get_title(loc="left") for axes in figure.axes[::2]]
    assert titles == ["question", "step 1", "step 2", "step 3 - answer"]
    bold = [text.get_text() for text in figure.axes[2].texts if text.get_fontweight() == "bold"]
    assert bold == ["1", "3", "1", "2"]  # the given cells
    assert [text.get_text() for text in figure.axes[5].texts] == ["0.50"]
    assert "four by four" in [text.get_text() for text in figure.texts]
    many = sudoku_trace(DRAFTS * 5)
    assert len(refinement(many, SudokuTask(4), most=8).axes) == 2 * 9


def test_changed_cells_are_outlined_and_the_path_is_one_line():
    from inward.viz.plots import refinement

    trace, task = maze_trace()
    figure = refinement(trace, task)
    last = figure.axes[4]
    (outline,) = [patch for patch in last.patches if patch.get_zorder() == 4]
    assert np.shape(outline.get_path().vertices)[0] == 5 * 6  # five corners for each of six changes
    (way,) = [patch for patch in last.patches if patch.get_zorder() == 1.5]
    # seven marked cells as points, and eight joints from S to G, each with two ends
    assert np.shape(way.get_path().vertices)[0] == 2 * (7 + 8)


def test_doubt_darkens_a_cell_so_that_print_in_grey_shows_it():
    from inward.viz.plots import _colours

    drawn = frames(sudoku_trace(), SudokuTask(4))
    grey = [_colours(frame, SudokuTask(4)) @ [0.299, 0.587, 0.114] for frame in drawn[1:]]
    open_cell = ~drawn[0].given
    levels = [np.unique(level[open_cell].round(6)) for level in grey]
    assert all(len(level) == 1 for level in levels)
    assert levels[0] < levels[1] < levels[2] < 1.0


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_saved_figures_are_whole_and_the_same_every_time(tmp_path, ending):
    from inward.viz.plots import refinement, save

    files = []
    for name in ("a", "b"):
        figure = refinement(sudoku_trace(), SudokuTask(4))
        files.append(save(figure, tmp_path / "new" / f"{name}.{ending}").read_bytes())
    assert files[0] == files[1]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        f"a.{ending}",
        f"b.{ending}",
    ]
    if ending == "svg":
        assert ElementTree.fromstring(files[0]).tag.endswith("svg")
        assert b"<image" not in files[0]  # vectors only
    else:
        assert files[0].startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[ending])


def test_a_failed_save_leaves_the_old_file(tmp_path):
    from inward.viz.plots import refinement, save

    figure = refinement(sudoku_trace(), SudokuTask(4))
    path = save(figure, tmp_path / "a.png")
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    figure.savefig = fail
    with pytest.raises(OSError, match="disk full"):
        save(figure, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(ValueError, match=r"\.svg, \.png or \.pdf"):
        save(figure, tmp_path / "a.jpeg")


def test_arc_is_drawn_in_its_colours():
    from matplotlib.colors import to_hex

    from inward.viz.plots import ARC, refinement

    question = arc.encode(np.array([[1, 2], [3, 0]], np.uint8)).astype(np.int64)
    figure = refinement(Trace("trm", question, [refined(1, question)]), ArcTask())
    faces = {to_hex(patch.get_facecolor()) for patch in figure.axes[0].patches}
    assert faces == {ARC[i] for i in range(4)}


def test_accuracy_by_step_draws_every_row_that_has_it():
    from inward.viz.plots import accuracy_by_step

    rows = [
        {"what": "a", "dataset": "x", "num": 100, "by_step": [0.1, 0.5, 0.9]},
        {"what": "b", "dataset": "x", "num": 100, "by_step": [0.0, 0.25]},
        {"what": "c", "dataset": "x", "num": 100, "by_step": []},
    ]
    (axes,) = accuracy_by_step(rows, title="longer").axes
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines] == [
        [0.1, 0.5, 0.9],
        [0.0, 0.25],
    ]
    assert [text.get_text() for text in axes.texts] == ["a\nx", "b\nx"]
    with pytest.raises(ValueError, match="by_step"):
        accuracy_by_step(rows[2:])


def test_curves_draw_estimates_with_their_intervals():
    from inward.evals.stats import Interval
    from inward.viz.plots import curves

    points = [(1.0, Interval(0.5, 0.4, 0.6)), (4.0, Interval(0.8, 0.7, 0.9))]
    figure = curves({"best-Q": points, "oracle": points[:1]}, x_label="rollouts", doubling=True)
    (axes,) = figure.axes
    assert [np.asarray(line.get_xdata()).tolist() for line in axes.lines] == [[1, 4], [1]]
    corners = np.asarray(axes.collections[0].get_paths()[0].vertices).tolist()
    assert {(1.0, 0.4), (1.0, 0.6), (4.0, 0.7), (4.0, 0.9)} <= set(map(tuple, corners))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "4"]
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert set(heights) == {"best-Q", "oracle"} and heights["best-Q"] > heights["oracle"]
    (axes,) = curves(dict.fromkeys("abc", points), x_label="rollouts").axes
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert min(np.diff(heights)) > 0.05, "names of lines that end together must not overlap"
    for lines in ({}, {"empty": []}):
        with pytest.raises(ValueError, match="nothing to draw"):
            curves(lines, x_label="steps")


def test_without_matplotlib_the_remedy_is_named(monkeypatch):
    from inward.viz import plots

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not plots.available()
    with pytest.raises(ModuleNotFoundError, match=r"inward\[viz\]"):
        plots.refinement(sudoku_trace(), SudokuTask(4))


def test_unsure_means_below_the_threshold():
    trace = sudoku_trace(DRAFTS[:1])
    trace.steps[0].view["grid"].confidence[:] = UNSURE  # exactly at it counts as sure
    assert not frames(trace, SudokuTask(4))[1].unsure.any()
