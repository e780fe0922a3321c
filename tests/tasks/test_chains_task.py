"""Scoring arithmetic: answers, true equations, gold equations, pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.data.thoughts import chains, records
from inward.data.thoughts.records import Record
from inward.tasks.chains import ChainTask, is_true, report

TASK = ChainTask()


@pytest.mark.parametrize(
    "equation, truth",
    [
        ("<<2+3=5>>", True),
        ("<<2+3=6>>", False),
        ("<<2+3*4=14>>", True),
        ("<<(2+3)*4=20>>", True),
        ("<<16-3-4=9>>", True),
        ("<<12/4/3=1>>", True),
        ("<<80,000*1.5=120,000>>", True),
        ("<<2/.5=4>>", True),
        ("<<10/3=3.33>>", True),
        ("<<10/3=3.5>>", False),
        ("<<3-5=-2>>", True),
        (" << 7 * 6 = 42 >> ", True),
        ("<<1/0=1>>", False),
        ("<<2+=2>>", False),
        ("<<(2+3=5>>", False),
        ("<<2 3=5>>", False),
        ("2+3=5", False),
        ("<<import os=1>>", False),
        ("<<" + "(" * 150 + "1=1>>", False),
        ("<<" + "9" * 300 + "=1>>", False),
    ],
)
def test_equations(equation, truth):
    assert is_true(equation) is truth


@given(st.text(alphabet="<>=+-*/()., 0123456789", max_size=30))
def test_any_text_is_true_or_not(text):
    assert is_true(f"<<{text}>>") in (True, False)


def test_real_calculator_marks_are_true(shared_data):
    read = records.read_icot(shared_data / "gsm8k-icot" / "test.txt")
    steps = [step for record in read for step in record.steps]
    # Percent signs and rounding coarser than cents are all that is left.
    assert sum(map(is_true, steps)) / len(steps) > 0.97


def test_scores():
    record = Record("q", ("<<2+3=5>>", "<<5*2=10>>"), "1,0")
    score = TASK.score(record, "<<2+3=5>>\n<<5*3=15>>\n<<1+1=3>>\n### 10")
    assert score.right
    assert (score.num_spoken, score.num_true, score.num_gold) == (3, 2, 1)
    assert not TASK.score(record, "").right


def test_report_and_pairs():
    made = chains.generate(20, seed=0)
    swaps = TASK.swap(made)
    gold = ["\n".join([*r.steps, f"### {r.answer}"]) for r in made]
    other = ["\n".join([*r.steps, f"### {r.answer}"]) for r in swaps]
    found = report(TASK, made, gold, other).metrics
    for name in ("accuracy", "paired", "both_sides", "true_equations", "gold_equations"):
        assert found[name] == 1.0
    # Who answers from the rest of the text says the same to both, and loses every pair.
    same = [f"### {r.answer}" for r in made]
    found = report(TASK, made, same, same).metrics
    assert (found["accuracy"], found["paired"], found["both_sides"]) == (1.0, 0.0, 0.5)
    assert "true_equations" not in found and found["spoken"] == 0
    assert 0 < found["constant"] < 0.5
    with pytest.raises(ValueError, match="20 records but 0 texts"):
        report(TASK, made, [])


def test_the_symbolic_rendering_keeps_the_computation():
    task = ChainTask("symbolic")
    (record,) = chains.generate(1, seed=1)
    again = task.rewrite(record, np.random.default_rng([0, 0]))
    assert task.ask([record]) == [again] == task.ask([record]) and TASK.ask([record]) == [record]
    assert again.steps == record.steps and "=?" in again.question
    assert (task.name, TASK.name) == ("chains-symbolic", "chains")
