"""Addition in text: rows are right sums, and the task reads back what it writes."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.common import IGNORE
from inward.data.texts.arithmetic_text import Addition
from inward.data.texts.text import questions
from inward.tasks.addition import AdditionTask

SETTINGS = st.builds(
    Addition,
    num_digits=st.integers(1, 5),
    max_operands=st.integers(2, 12),
    num_sums=st.integers(1, 3),
    order=st.sampled_from(["low", "high"]),
)


def read(answer, rows):
    return int(answer[::-1] if rows.order == "low" else answer)


def test_the_example_of_the_docstring():
    task = AdditionTask(Addition(num_digits=2, max_operands=4))
    prompt = task.parse("12+7 + 93=")
    assert task.format(prompt) == "12+07+93="
    assert task.format(task.solve(prompt)) == "211;"
    high = AdditionTask(Addition(num_digits=2, max_operands=12, order="high"))
    assert high.format(high.solve(prompt)) == "0112;"
    assert task.format(task.solve(task.parse("70+8"))) == "870;"


@given(SETTINGS, st.integers(0, 2**32 - 1))
def test_a_row_holds_right_sums_and_asks_for_their_answers(rows, seed):
    task = AdditionTask(rows)
    ids, labels = rows.row(np.random.default_rng(seed))
    assert len(ids) <= rows.row_length and ids.max() < rows.vocab_size
    sums = task.format(ids).removesuffix(";").split(";")
    assert len(sums) == rows.num_sums
    for text in sums:
        asked, answer = text.split("=")
        numbers = asked.split("+")
        assert 2 <= len(numbers) <= rows.max_operands
        assert {len(number) for number in numbers} == {rows.num_digits}
        assert read(answer, rows) == sum(map(int, numbers)) and len(answer) == rows.answer_digits
    wanted = task.format(labels[labels != IGNORE])
    assert wanted == "".join(re.findall(r"=(\d+;)", task.format(ids)))
    assert (labels[labels != IGNORE] == ids[labels != IGNORE]).all()


@given(SETTINGS, st.integers(0, 2**32 - 1))
def test_questions_are_verified(rows, seed):
    task = AdditionTask(rows)
    held = questions(rows, 3, difficulty=3, seed=seed)
    prompts = [held.prompt(i) for i in range(3)]
    answers = np.stack([held.answer(i) for i in range(3)])
    assert task.verify(prompts, answers).all()
    answers[1, 0] = answers[1, 0] % 10 + 1
    assert task.verify(prompts, answers).tolist() == [True, False, True]
    assert np.array_equal(task.parse(task.format(prompts[0])), prompts[0])


def test_all_numbers_of_operands_occur_and_the_length_says_nothing_of_the_sum():
    rows = Addition(num_digits=1, max_operands=5)
    texts = [AdditionTask(rows).format(rows.row(np.random.default_rng(i))[0]) for i in range(400)]
    counts = np.bincount([text.count("+") + 1 for text in texts])
    assert counts[2:].min() > 60 and len(counts) == 6
    assert {len(text.split("=")[1]) for text in texts} == {3}


@pytest.mark.parametrize(
    "change, told",
    [
        ({"num_digits": 0}, "1 to 15"),
        ({"max_operands": 1}, "2 to 100"),
        ({"num_sums": 0}, "at least 1"),
        ({"order": "up"}, "order"),
    ],
)
def test_settings_out_of_range_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        Addition(**change)


def test_questions_that_cannot_be_asked_are_refused():
    rows = Addition(num_digits=2, max_operands=4)
    with pytest.raises(ValueError, match="2 to 10 operands"):
        rows.question(np.random.default_rng(0), 11)
    task = AdditionTask(rows)
    for text in ("12", "12+", "12-3", "a+b", "1+2=3"):
        with pytest.raises(ValueError, match="is no sum"):
            task.parse(text)
    with pytest.raises(ValueError, match="123 does not have 2 digits"):
        task.parse("123+1")
    with pytest.raises(ValueError, match="does not end with '='"):
        task.solve(np.array([2, 11, 3]))
    with pytest.raises(ValueError, match="shape"):
        task.verify([task.parse("1+2")], np.zeros((1, 2)))
