"""Scoring ProsQA: answers, pairs, edges, classes of output; a blind player is found out."""

import numpy as np
import pytest

from inward.data.thoughts import prosqa, records
from inward.data.thoughts.records import Record
from inward.tasks.prosqa import ProsQATask, blind, final_answer, report, spoken_steps

# Tom(0) -> cat(2) -> pet(4); Tom -> dog(3) -> fox(5) -> pet; Sam(1) -> bug(6); dog -> hen(7)
SYMBOLS = ["Tom", "Sam", "cat", "dog", "pet", "fox", "bug", "hen"]
EDGES = [[0, 2], [2, 4], [0, 3], [3, 5], [5, 4], [1, 6], [3, 7]]
META = {"edges": EDGES, "root": 0, "target": 4, "neg_target": 6, "idx_to_symbol": SYMBOLS}
RECORD = Record(
    "Tom is a cat. Every cat is a pet. Is Tom a pet or bug?",
    ("Tom is a cat.", "Every cat is a pet."),
    "Tom is a pet.",
    META,
)
TEXT = ProsQATask("text")


@pytest.mark.parametrize(
    "text, right, outcome, spoken, edges",
    [
        ("Tom is a cat.\nEvery cat is a pet.\n### Tom is a pet.", True, "correct_path", 2, 2),
        ("Every cat is a pet.\n### Tom is a pet.", True, "correct_path", 1, 1),  # one step silent
        ("Tom is a cat.\n### Tom is a pet.", True, "correct_path", 1, 1),  # the last one silent
        (
            "Tom is a dog.\nEvery dog is a fox.\nEvery fox is a pet.\n### Tom is a pet.",
            True,
            "longer_path",
            3,
            3,
        ),
        ("Tom is a dog.\nEvery fox is a pet.\n### Tom is a bug.", False, "longer_path", 2, 2),
        ("Tom is a pet.\n### Tom is a pet.", True, "hallucination", 1, 0),
        ("Tom is a cat.\nEvery bug is a pet.\n### Tom is a pet.", True, "hallucination", 2, 1),
        ("Every cat is a pet.\nTom is a dog.\n### Tom is a pet.", True, "hallucination", 2, 2),
        ("Sam is a bug.\n### Sam is a bug.", False, "hallucination", 1, 1),  # not from Tom
        ("Tom is a dog.\nEvery dog is a hen.\n### Tom is a bug.", False, "wrong_target", 2, 2),
        ("### Tom is a pet.", True, "correct_label", 0, 0),
        ("### Tom is a bug.", False, "incorrect_label", 0, 0),
        ("", False, "incorrect_label", 0, 0),
        ("blah\n\n", False, "hallucination", 1, 0),
        ("Tom is a unicorn.\n### Tom is a pet.", True, "hallucination", 1, 0),
        ("### Tom is a bug. # Tom, is a pet. ", True, "correct_label", 0, 0),  # the last mark
    ],
)
def test_text_scores(text, right, outcome, spoken, edges):
    score = TEXT.score(RECORD, text)
    assert (score.right, score.outcome) == (right, outcome)
    assert (score.num_spoken, score.num_edges) == (spoken, edges)


def test_symbolic_scores():
    task = ProsQATask("symbolic", rename=False)
    (record,) = task.ask([RECORD])
    assert record.answer == "4" and record.steps == ("0 2", "2 4")
    full = task.score(record, "0 2\n2 4\n### 4")
    assert full.right and full.outcome == "correct_path" and full.num_edges == 2
    wrong = task.score(record, "0 3\n3 7\n### 6")
    assert not wrong.right and wrong.outcome == "wrong_target"
    assert task.score(record, "0 2 4\n### 4").outcome == "hallucination"


def test_gold_chains_score_full_marks_in_both_renderings():
    made = prosqa.generate(40, seed=0)
    for rendering in ("text", "symbolic"):
        task = ProsQATask(rendering)
        asked = task.ask(made, seed=4)
        assert asked == task.ask(made, seed=4)
        gold = ["\n".join([*r.steps, f"### {r.answer}"]) for r in asked]
        swaps = ["\n".join([*r.steps, f"### {r.answer}"]) for r in task.swap(asked)]
        found = report(task, asked, gold, swaps).metrics
        for name in ("accuracy", "paired", "both_sides", "valid_edges", "outcome_correct_path"):
            assert found[name] == 1.0, name
        assert found["spoken"] == pytest.approx(np.mean([len(r.steps) for r in asked]))


def test_the_blind_player_wins_plain_and_loses_paired():
    """Say the option farther from every entity: 9 of 10 plain, nothing paired."""
    made = prosqa.generate(300, seed=1)
    task = ProsQATask("text")
    swaps = task.swap(made)

    def play(record: Record) -> str:
        # blind_depth above 0.5: the record's own answer is the deeper one; ties say the target's
        graph = prosqa.graph_of(record)
        pick = graph.target if prosqa.blind_depth(record) > 0.5 else graph.neg_target
        symbols = record.meta["idx_to_symbol"]
        return f"### {symbols[graph.root]} is a {symbols[pick]}."

    found = report(task, made, [play(r) for r in made], [play(r) for r in swaps]).metrics
    assert found["accuracy"] > 0.8
    assert found["both_sides"] < 0.51
    assert found["paired"] == found["blind_depth_paired"] == 0.0
    assert found["blind_depth"] == pytest.approx(0.91, abs=0.05)
    assert "valid_edges" not in found and found["spoken"] == 0
    assert sum(found[k] for k in found if k.startswith("outcome_")) == pytest.approx(1)


def test_blind_scores_of_the_released_test_set(shared_data):
    real = records.read_json(shared_data / "prosqa" / "prosqa_test.json")
    assert blind(real)["blind_depth"] == pytest.approx(0.911, abs=0.001)
    task = ProsQATask("symbolic")
    asked = task.ask(real[:50])
    assert blind(asked) == blind(real[:50])
    assert report(task, asked, [f"### {r.answer}" for r in asked]).metrics["accuracy"] == 1


def test_paired_needs_both():
    task = ProsQATask("text")
    swap = task.swap([RECORD])[0]
    right, wrong = [f"### {RECORD.answer}"], ["### no"]
    assert report(task, [RECORD], right, [f"### {swap.answer}"]).metrics["paired"] == 1
    for one, two in ((right, wrong), (wrong, [f"### {swap.answer}"]), (wrong, wrong)):
        assert report(task, [RECORD], one, two).metrics["paired"] == 0
    assert report(task, [RECORD], right, wrong).metrics["both_sides"] == 0.5


def test_reading_helpers_and_errors():
    assert final_answer("a # b ### 1,234 ") == "1234"
    assert final_answer("no mark") == "no mark"
    assert spoken_steps(" a\n\nb\n### c\nd") == ["a", "b"]
    with pytest.raises(ValueError, match="1 records but 2 texts"):
        report(TEXT, [RECORD], ["a", "b"])
    with pytest.raises(ValueError, match="0 records"):
        report(TEXT, [], [])
    with pytest.raises(ValueError, match="1 swapped_texts"):
        report(TEXT, [RECORD, RECORD], ["a", "b"], ["c"])
