"""Counting is checked with a solver whose answers are known; the rest with a tiny real model."""

import io
import json
import math
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from inward import hub
from inward.bench.environment import environment
from inward.bench.run import BenchRow, bench, bench_table, quartiles
from inward.common.trace import Span, Step, Trace
from inward.data.drawn import drawn
from inward.data.puzzles import maze, sudoku
from inward.data.puzzles.folder import write_puzzles
from inward.data.puzzles.puzzles import Puzzles
from inward.evals import puzzles as run
from inward.evals.puzzles import evaluate
from inward.evals.rows import append_row
from inward.evals.stats import wilson
from inward.methods.trm.model import TRM
from inward.methods.trm.settings import TRMSettings
from inward.methods.trm.solve import Solution
from inward.recipes import RECIPES, find
from inward.recipes.coconut import CoconutRecipe
from inward.recipes.huginn import HuginnRecipe
from inward.recipes.of import read_recipe, recipe_of
from inward.recipes.tidar import TiDARRecipe
from inward.tasks.arc import ArcTask
from inward.tasks.maze import MazeTask
from inward.tasks.named import (
    guess_task,
    parse_puzzle,
    part,
    puzzle_texts,
    read_puzzles,
    task_named,
)
from inward.tasks.sudoku import SudokuTask

SETTINGS = TRMSettings(
    vocab_size=6, seq_len=16, hidden_size=16, swiglu_multiple=16, prefix_len=1,
    num_identifiers=0, T=1, n=1, n_sup=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def puzzles() -> Puzzles:
    return sudoku.generate(40, n=4, seed=11, clues=8, progress=False)


@pytest.fixture(scope="module")
def model() -> TRM:
    torch.manual_seed(0)
    return TRM(SETTINGS).eval()


def _step(index: int, answer: np.ndarray) -> Step:
    return Step(index, "refine", view={"grid": Span(answer)})


class Oracle:
    """Answers the label for puzzle i from step i % 4 + 1 on, and before that one wrong cell."""

    settings = SETTINGS

    def __init__(self, puzzles: Puzzles):
        self.labels = puzzles.labels.astype(np.int64)
        self.first_right = {row.tobytes(): i % 4 + 1 for i, row in enumerate(puzzles.inputs)}
        self.answer_of = {row.tobytes(): label for row, label in zip(puzzles.inputs, self.labels)}  # noqa: B905
        self.calls: list[dict] = []

    def parameters(self):
        return [torch.zeros(3, 4)]

    def solve(self, inputs, **options) -> Solution:
        self.calls.append(options)
        steps = options["max_steps"]
        answers = [[self.answer(row, step) for step in range(1, steps + 1)] for row in inputs]
        num = len(inputs)
        right = torch.tensor([self.first_right[row.tobytes()] <= steps for row in inputs])
        believed = right.clone()
        believed[0] = ~believed[0]
        return Solution(
            answers=torch.from_numpy(np.stack([rows[-1] for rows in answers])),
            q=torch.where(believed, 2.0, -2.0),
            confidence=torch.ones(num, 16),
            steps=torch.arange(num) % 2 + 1,
            halted=torch.ones(num, dtype=torch.bool),
            answered=torch.arange(num) % 10 != 0,
            evaluations=torch.full((num,), 8.0),
            flops=torch.full((num,), 1e6),
            traces=[
                Trace("trm", row, [_step(i, a) for i, a in enumerate(rows, start=1)])
                for row, rows in zip(inputs, answers, strict=True)
            ],
        )

    def answer(self, row: np.ndarray, step: int) -> np.ndarray:
        answer = self.answer_of[row.tobytes()].copy()
        if step < self.first_right[row.tobytes()]:
            answer[row == 1] = 7 - answer[row == 1]  # every free digit swapped with another
        return answer


def test_every_number_of_a_result(puzzles):
    solver = Oracle(puzzles)
    result = evaluate(
        solver, puzzles, SudokuTask(4), what="oracle", dataset="forty", max_steps=2, seed=5,
        halt="stable", noise=0.5, rollouts=2, command="inward eval x",
    )  # fmt: skip
    assert (result.what, result.dataset, result.num, result.seed) == ("oracle", "forty", 40, 5)
    assert result.accuracy == result.verified == 0.5
    assert result.interval == (wilson(20, 40).low, wilson(20, 40).high)
    assert result.by_step == (0.25, 0.5)
    assert result.answered == 0.9 and result.believed == 39 / 40
    assert result.accuracy_answered == 18 / 36
    assert (result.steps, result.evaluations, result.flops) == (1.5, 8.0, 1e6)
    assert result.parameters == 12 and result.seconds > 0
    assert sum(bucket.num for bucket in result.by_rating) == 40
    assert result.settings["halt"] == "stable" and result.settings["rollouts"] == 2
    assert result.command == "inward eval x" and f"torch {torch.__version__}" in result.machine
    first, second = solver.calls
    assert (first["halt"], first["noise"], first["rollouts"]) == ("stable", 0.5, 2)
    assert second["halt"] == "never" and "rollouts" not in second  # by step: the plain model
    assert json.loads(json.dumps(result.to_row()))["by_step"] == [0.25, 0.5]


def test_puzzles_without_labels_are_counted_by_the_rules(puzzles):
    blind = Puzzles(puzzles.inputs, np.zeros_like(puzzles.labels), (4, 4), 6)
    result = evaluate(Oracle(puzzles), blind, SudokuTask(4), max_steps=3)
    assert result.accuracy is None and result.verified == result.share == 0.75
    assert result.by_step == (0.25, 0.5, 0.75)
    assert result.interval == (wilson(30, 40).low, wilson(30, 40).high)


def test_accuracy_by_step_does_not_depend_on_the_parts_it_is_counted_in(puzzles, monkeypatch):
    whole = evaluate(Oracle(puzzles), puzzles, SudokuTask(4), max_steps=4).by_step
    monkeypatch.setattr(run, "_TRACE_BYTES", 7 * 4 * 16 * run._BYTES_PER_CELL)
    solver = Oracle(puzzles)
    assert evaluate(solver, puzzles, SudokuTask(4), max_steps=4).by_step == whole
    assert whole == (0.25, 0.5, 0.75, 1.0)
    assert len(solver.calls) == 1 + math.ceil(40 / 7)


def test_only_scored_cells_count():
    labels = np.array([[2, 3, 0, 0]], np.uint8)
    puzzles = Puzzles(np.array([[1, 1, 1, 1]], np.uint8), labels, (2, 2), 6)
    assert run._exact(puzzles, np.array([[2, 3, 5, 4]])).tolist() == [True]
    assert run._exact(puzzles, np.array([[2, 4, 0, 0]])).tolist() == [False]


def test_many_ratings_fall_into_a_few_even_ranges():
    rating = np.arange(100, dtype=np.int32)
    right = rating < 30
    buckets = run._by_rating(rating, right)
    assert len(buckets) == 5 and sum(bucket.num for bucket in buckets) == 100
    assert buckets[0].low == 0 and buckets[-1].high == 99
    assert all(a.high + 1 == b.low for a, b in pairwise(buckets))
    assert buckets[0].accuracy == 1.0 and buckets[-1].accuracy == 0.0
    single = run._by_rating(np.array([3, 3, 9], np.int32), np.array([True, False, True]))
    assert [(b.low, b.high, b.num, b.accuracy) for b in single] == [(3, 3, 2, 0.5), (9, 9, 1, 1.0)]
    assert run._by_rating(None, right) == ()


def test_a_real_model_goes_through(model, puzzles):
    result = evaluate(model, puzzles, SudokuTask(4), halt="never")
    assert result.steps == 3 and result.evaluations == 2 * 3  # T * (n + 1) evaluations a step
    assert result.parameters == sum(p.numel() for p in model.parameters())
    assert result.by_step[-1] == result.accuracy and len(result.by_step) == 3
    assert evaluate(model, puzzles, SudokuTask(4), by_step=False).by_step == ()


def test_symmetries_of_the_task_are_further_chains(model, puzzles):
    options = {"halt": "never", "by_step": False}
    result = evaluate(model, puzzles, SudokuTask(4), num_symmetries=2, **options)
    assert result.evaluations == 3 * evaluate(model, puzzles, SudokuTask(4), **options).evaluations


def test_larger_grids_get_steps_in_proportion(model):
    assert run.default_steps(model, 16) == 3
    assert run.default_steps(model, 64) == 12
    assert run.default_steps(model, 4) == 3


def test_what_does_not_fit_is_refused_before_any_work(model, puzzles):
    with pytest.raises(ValueError, match="make the task for the puzzles' grid"):
        evaluate(model, puzzles, SudokuTask(6))
    mazes = maze.generate(2, size=7, seed=1)
    with pytest.raises(ValueError, match="for 16 cells, got 49"):
        evaluate(model, mazes, MazeTask(7))
    sixes = sudoku.generate(1, n=6, seed=0)
    with pytest.raises(ValueError, match="trained on something else"):
        evaluate(model, sixes, SudokuTask(6))
    with pytest.raises(ValueError, match="max_steps is 0"):
        evaluate(model, puzzles, SudokuTask(4), max_steps=0)


# --- files --------------------------------------------------------------------------------------


def test_rows_are_appended_one_a_line(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    append_row(path, {"a": 1})
    path.write_text(path.read_text().rstrip("\n"))  # as an editor may leave it
    append_row(path, {"a": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"a": 2}]
    assert [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_recipe_comes_back_equal(tmp_path, name):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(asdict(find(name)())))
    assert read_recipe(path) == find(name)()


def test_a_recipe_is_found_beside_the_model_or_in_its_run(tmp_path, model):
    folder = tmp_path / "mine" / "model"
    model.save_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="--task"):
        recipe_of(folder)
    saved = asdict(find("sudoku4")()) | {"also_valid": [15]}
    (tmp_path / "mine" / "config.json").write_text(json.dumps(saved))
    (tmp_path / "mine" / "summary.json").write_text("{}")
    assert recipe_of(tmp_path / "mine").also_valid == (15,)
    (folder / "recipe.json").write_text(json.dumps(asdict(find("sudoku4")())))
    assert recipe_of(folder).also_valid == ()


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"name": "sudoku5"}', '{"name": "sudoku4", "x": 1}']
)
def test_a_damaged_recipe_is_named(tmp_path, text):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.json is not a recipe"):
        read_recipe(path)


def test_shipped_models_have_recipes_that_fit_them():
    if not hub.shipped():
        pytest.skip("no checkpoint is shipped in this tree")
    for name in hub.shipped():
        recipe: Any = recipe_of(name)
        model = hub.load(name)
        if isinstance(recipe, HuginnRecipe):
            want = recipe.model.config(
                vocab_size=recipe.data.vocab_size, block_size=recipe.block_size, depth=recipe.depth
            )
            for key in ("n_embd", "layers", "vocab_size", "block_size", "mean_recurrence"):
                assert getattr(model.config, key) == getattr(want, key), key
        elif isinstance(recipe, CoconutRecipe):
            fresh = recipe.model()
            assert fresh.tokenizer.get_vocab() == model.tokenizer.get_vocab()
            assert fresh.specials == model.specials
            weights, want = model.base.state_dict(), fresh.base.state_dict()
            assert {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in want.items()}
        elif isinstance(recipe, TiDARRecipe):
            assert (
                recipe.method == model.settings
                and recipe.adapter.rank == model.adapter.settings.rank
            )
        else:
            assert recipe.model == model.settings


def test_tasks_by_name():
    assert task_named("sudoku6") == SudokuTask(6)
    assert task_named("sudoku", (9, 9)) == SudokuTask(9)
    assert task_named("maze15").grid == (15, 15)
    assert task_named("maze", (5, 9)).grid == (5, 9)
    assert task_named("maze5x9").grid == (5, 9) and task_named("maze5").grid == (5, 5)
    assert isinstance(task_named("arc"), ArcTask)
    for name, told in (("chess", "chess"), ("maze", "0x0"), ("sudoku5", "5"), ("", "no task"),
                       ("sudoku9x9", "no task"), ("maze0", "0x0")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            task_named(name)


def test_puzzles_are_read_from_every_kind_of_file(tmp_path, puzzles):
    task = SudokuTask(4)
    puzzles.save(tmp_path / "p.npz")
    sudoku.write_csv(puzzles, tmp_path / "p.csv")
    write_puzzles(tmp_path / "folder", "test", puzzles)
    lines = ["".join(str(t - 1) for t in row) for row in puzzles.inputs]
    (tmp_path / "p.txt").write_text("\n".join(lines))
    for name in ("p.npz", "p.csv", "folder", "p.txt"):
        read = read_puzzles(tmp_path / name, task)
        assert (read.inputs == puzzles.inputs).all(), name
        assert (read.labels == puzzles.labels).all(), name
        some = read_puzzles(tmp_path / name, task, num=7, seed=3)
        assert (some.inputs == part(puzzles, 7, seed=3).inputs).all(), name
        assert guess_task(tmp_path / name) == task, name
    mazes = maze.generate(3, size=7, seed=1)
    maze.write_csv(mazes, tmp_path / "m.csv")
    assert (read_puzzles(tmp_path / "m.csv", MazeTask(7)).inputs == mazes.inputs).all()
    assert guess_task(tmp_path / "m.csv").name == "maze"


def test_the_source_of_a_csv_decides_nothing(tmp_path, puzzles):
    """A Sudoku whose source holds an S is no maze, a maze from "12.3" no Sudoku."""
    sudoku.write_csv(puzzles, tmp_path / "s.csv", source="Some S of #  G")
    assert guess_task(tmp_path / "s.csv") == SudokuTask(4)
    maze.write_csv(maze.generate(2, size=7, seed=1), tmp_path / "m.csv", source="12.3")
    assert guess_task(tmp_path / "m.csv").name == "maze"
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv, line 1: the header is \[\]"):
        read_puzzles(tmp_path / "empty.csv", guess_task(tmp_path / "empty.csv"))
    (tmp_path / "wide.csv").write_text("source,question\na,b\n" + "x" * 200_000)
    assert guess_task(tmp_path / "wide.csv").name == "sudoku9"
    (tmp_path / "wide.csv").write_text("source,question\n" + "x" * 200_000)
    with pytest.raises(ValueError, match=r"wide\.csv, line 2 is no CSV row"):
        guess_task(tmp_path / "wide.csv")


def test_a_part_is_drawn_by_a_seed():
    """Not the first ones: sets lie sorted. Every row has the same chance, order is kept."""
    rows = [drawn(100, 10, seed=seed) for seed in range(200)]
    assert all((np.diff(row) > 0).all() and len(row) == 10 for row in rows)
    counts = np.bincount(np.concatenate(rows), minlength=100)
    assert counts.min() > 5 and counts.max() < 40  # 20 each on average
    assert (drawn(100, 10, seed=5) == rows[5]).all() and (drawn(7, None) == np.arange(7)).all()
    assert (drawn(7, 7, seed=1) == np.arange(7)).all()
    for num in (0, 8, -1):
        with pytest.raises(ValueError, match=f"asked for {num} cats, there are 7; choose 1 to"):
            drawn(7, num, what="cats")
    with pytest.raises(ValueError, match="seed is -1"):
        drawn(7, 2, seed=-1)


def test_unreadable_files_are_named(tmp_path, puzzles):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_puzzles(tmp_path / "nowhere.npz", SudokuTask(4))
    (tmp_path / "p.xls").write_text("")
    with pytest.raises(ValueError, match=r"p\.xls"):
        read_puzzles(tmp_path / "p.xls", SudokuTask(4))
    puzzles.save(tmp_path / "p.npz")
    with pytest.raises(ValueError, match="there are 40"):
        read_puzzles(tmp_path / "p.npz", SudokuTask(4), num=41)


def test_typed_puzzles_bring_their_size():
    text = "#####\n#S G#\n#####"
    task, tokens = parse_puzzle(text, MazeTask(11))
    assert task.grid == (3, 5) and task.format(tokens) == text
    task, _ = parse_puzzle("#####" + "#S G#" + "#####" * 3, MazeTask(11))
    assert task.grid == (5, 5)
    assert puzzle_texts("1...\n.2..\n\n", SudokuTask(4)) == ["1...\n.2.."]
    one_a_line = "1..............2\n\n.2.............1\n"
    assert puzzle_texts(one_a_line, SudokuTask(4)) == one_a_line.split()
    assert puzzle_texts(f"{text}\n\n{text}\n", MazeTask(11)) == [text, text]


# --- bench --------------------------------------------------------------------------------------


def test_bench_measures_a_recipe():
    from rich.console import Console

    said: list[str] = []
    rows = bench(("sudoku4",), repeats=2, num_rows=4, threads=1, say=said.append)
    assert said == ["measuring sudoku4"]
    assert [row.unit for row in rows] == ["ms", "ms", "puzzles/s", "GFLOP/s"]
    assert all(0 < row.low <= row.median <= row.high for row in rows)
    assert all(row.threads == 1 and row.repeats == 2 for row in rows)
    shown = io.StringIO()
    Console(width=120, file=shown).print(bench_table(rows))
    assert "training step" in shown.getvalue()


def test_bench_refuses_nonsense_before_measuring():
    said: list[str] = []
    with pytest.raises(ValueError, match="nothing"):
        bench(("nothing",), say=said.append)
    with pytest.raises(ValueError, match="repeats is 0"):
        bench(("sudoku4",), repeats=0, say=said.append)
    assert said == []


def test_quartiles():
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert BenchRow("a", "b", 1, 1, 1, "ms", 1, 1).to_row()["unit"] == "ms"


def test_environment_names_what_a_bug_report_needs():
    found = environment()
    assert found["torch"] == torch.__version__
    for name in ("python", "inward", "transformers", "threads", "processor", "cuda", "checkpoints"):
        assert found[name]
