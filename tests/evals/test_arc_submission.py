"""Submissions are scored as the competition and as the reference do, and faults are named."""

import json
from pathlib import Path

import numpy as np
import pytest

from inward.cli.main import main
from inward.data.puzzles.arc import Pair, Task, build
from inward.evals.arc import ArcQuestions, evaluate_arc
from inward.evals.arc_submission import known_tasks, score_submission
from tests.evals.test_arc_pipeline import Oracle, random_task, some_tasks

WRONG = [[9, 9, 9]]


def tasks() -> list[Task]:
    return [*some_tasks(), random_task("five", "evaluation", num_test=5)]


def answers(held) -> dict:
    return {
        task.name: [{f"attempt_{i}": pair.output.tolist() for i in (1, 2)} for pair in task.test]
        for task in held
    }


@pytest.fixture
def held() -> list[Task]:
    return [task for task in tasks() if task.subset == "evaluation"]


def write(content, name="sub.json") -> Path:
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
    return Path(name)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_both_means_are_right(held):
    """two: 1 of 2 at once, the other at the second try; full: never; one: second; five: 4 of 5."""
    content = answers(held)
    content["two"][1]["attempt_1"] = WRONG
    content["full"][0] = {"attempt_1": WRONG, "attempt_2": WRONG}
    content["one"][0]["attempt_1"] = WRONG
    content["five"][3] = {"attempt_1": WRONG, "attempt_2": [[0]]}
    score = score_submission(write(content), tasks())
    assert (score.num_tasks, score.num_tests, score.missing, score.unknown) == (4, 9, (), 0)
    assert score.by_task[1] == pytest.approx((0.5 + 0 + 0 + 0.8) / 4)
    assert score.by_task[2] == pytest.approx((1 + 0 + 1 + 0.8) / 4)
    assert score.by_test == {1: pytest.approx(5 / 9), 2: pytest.approx(7 / 9)}
    assert score.interval(2).low < 7 / 9 < score.interval(2).high


def test_the_second_attempt_alone_counts_from_two(held):
    content = answers(held)
    for answer in content["five"]:
        answer["attempt_1"] = WRONG
    score = score_submission(write(content), held)
    assert score.by_test_right == {1: 4, 2: 9}


def test_our_own_submission_scores_what_its_evaluation_said():
    made = build(some_tasks(), seed=0, num_variants=4)
    questions = ArcQuestions.of(made)

    def spoil(name, x, y):
        return np.where(y > 1, 2 + (y - 1) % 10, y) if name.startswith("one") else y

    result = evaluate_arc(Oracle(questions, spoil=spoil), questions, submission="sub.json")
    score = score_submission("sub.json", some_tasks())
    for k in (1, 2):
        assert score.by_task[k] == result.reports[-1][f"arc/pass@{k}"]
    assert 0 < score.by_task[2] < 1


def test_missing_tasks_are_wrong_and_unknown_answers_do_not_count(held):
    content = answers(held)
    del content["one"], content["full"]
    score = score_submission(write(content), tasks())
    assert score.missing == ("full", "one") and score.by_test[2] == 7 / 9
    hidden = [
        Task(t.name, t.train, tuple(Pair(p.input, None) for p in t.test), t.subset)
        if t.name == "two" else t
        for t in held
    ]  # fmt: skip
    score = score_submission(write(answers(held)), hidden)
    assert (score.num_tests, score.num_tasks, score.unknown) == (7, 3, 2)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda c: c.update(other=[]), r"sub\.json answers 1 tasks .* such as other; give the"),
        (lambda c: c.update(two=[c["two"][0]]), "task two: 1 answers to 2 tests"),
        (lambda c: c.update(two={}), "task two: dict answers to 2 tests"),
        (lambda c: c["two"].__setitem__(1, [1]), r"task two, test 1 has not the form \{attempt_1"),
        (lambda c: c["two"][0].pop("attempt_2"), "task two, test 0 has not the form"),
        (lambda c: c["one"][0].update(attempt_2=[[1, 2], [3]]), "test 0, attempt_2: .*lengths"),
        (lambda c: c["one"][0].update(attempt_1=[[10]]), "attempt_1: .*holds colour 10"),
        (lambda c: c["one"][0].update(attempt_1="x"), "attempt_1: grid is"),
    ],
)
def test_faults_are_named(held, change, told):
    content = answers(held)
    change(content)
    with pytest.raises(ValueError, match=told):
        score_submission(write(content), held)


def test_files_are_named(held):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        score_submission("nowhere.json", held)
    with pytest.raises(ValueError, match=r"sub\.json is not JSON"):
        score_submission(write("{"), held)
    with pytest.raises(ValueError, match=r"sub\.json holds a list"):
        score_submission(write([1]), held)
    with pytest.raises(ValueError, match="no answer"):
        score_submission(write({}), held)
    with pytest.raises(FileNotFoundError, match="no file or folder nowhere of ARC tasks"):
        known_tasks("nowhere")


def test_the_command(held, capsys):
    own = {task.name: task.to_json() for task in held}
    write(own, "arc-agi_evaluation_challenges.json")
    write(answers(held))
    data = ["--data", "arc-agi_evaluation_challenges.json"]
    assert main(["arc", "--score", "sub.json", *data, "--out", "rows.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "sub.json: 4 tasks, 9 test inputs" in shown and shown.count("100.0 %") == 4
    row = json.loads(Path("rows.jsonl").read_text())
    assert row["by_task"] == {"1": 1.0, "2": 1.0} and row["command"].startswith(
        "inward arc --score"
    )
    assert main(["arc", "--score", "sub.json"]) == 2
    assert "--data FILE or FOLDER" in capsys.readouterr().err
    assert main(["arc", "m", "--score", "sub.json", *data]) == 2
    assert "takes no model" in capsys.readouterr().err


def test_a_dataset_folder_holds_the_answers():
    build(some_tasks(), seed=0, num_variants=1).write("data")
    made = known_tasks("data")
    assert score_submission(write(answers(made)), made).by_task == {1: 1.0, 2: 1.0}
