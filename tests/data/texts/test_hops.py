"""Pointer chasing: rows mean what they say, and the task reads back what it writes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.common import IGNORE
from inward.data.texts.hops import DOT, FIRST_NODE, Hops, follow, random_cycle
from inward.data.texts.text import questions
from inward.tasks.hops import HopsTask

SETTINGS = st.builds(
    Hops,
    num_nodes=st.integers(5, 12),
    max_hops=st.integers(1, 4),
    num_walks=st.integers(1, 3),
    arrows=st.sampled_from(["token", "pair"]),
)


def nodes(text):
    return np.array([ord(letter) - ord("a") for letter in text])


def test_the_example_of_the_docstring():
    task = HopsTask(Hops(num_nodes=4, max_hops=3))
    prompt = task.parse("d>b a>d c>a b>c | a . .")
    assert task.format(prompt) == "d>b a>d c>a b>c | a . ."
    assert task.word(task.solve(prompt)) == "c"
    assert task.word(task.solve(task.parse("d>b a>d c>a b>c | a . b."))) == "a"


@given(SETTINGS, st.integers(0, 2**32 - 1))
def test_every_place_of_a_row_asks_for_the_next_node(rows, seed):
    task = HopsTask(rows)
    ids, labels = rows.row(np.random.default_rng(seed))
    assert len(ids) == len(labels) == rows.row_length
    assert (labels[: rows.graph_length] == IGNORE).all()
    arrows, walks = ids[: rows.graph_length], ids[rows.graph_length :]
    asked = labels[rows.graph_length :].reshape(rows.num_walks, -1)
    for walk, wanted in zip(walks.reshape(rows.num_walks, -1), asked, strict=True):
        assert wanted[0] == IGNORE and walk[0] != DOT and walk[-1] != DOT
        for place in range(rows.max_hops):
            prompt = np.concatenate([arrows, walk[: place + 1]])
            assert wanted[place + 1] == task.solve(prompt)
        shown = walk != DOT
        assert (wanted[1:][shown[1:]] == walk[1:][shown[1:]]).all()


@given(SETTINGS, st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_questions_have_that_many_hops_and_one_answer(rows, seed, hops):
    task = HopsTask(rows)
    ids, labels = rows.question(np.random.default_rng(seed), hops)
    assert (labels[:-1] == IGNORE).all() and labels[-1] == ids[-1] == task.solve(ids[:-1])
    assert (ids == DOT).sum() == hops - 1
    assert np.array_equal(task.parse(task.format(ids[:-1])), ids[:-1])
    right = task.verify([ids[:-1], ids[:-1]], np.array([ids[-1], ids[-2]]))
    assert right[0] and (not right[1] or ids[-2] == ids[-1])


@given(st.integers(2, 26), st.integers(0, 2**32 - 1))
def test_one_cycle_goes_through_all_nodes(num_nodes, seed):
    next_node = random_cycle(num_nodes, np.random.default_rng(seed))
    path = follow(next_node, 0, num_nodes)
    assert sorted(path[:-1]) == list(range(num_nodes)) and path[-1] == 0


def test_all_shares_of_hidden_nodes_and_all_lengths_of_chains_occur():
    rows = Hops(num_nodes=8, max_hops=6, num_walks=1)
    walks = np.stack([rows.row(np.random.default_rng(i))[0][8:] for i in range(400)])
    hidden = (walks[:, 1:-1] == DOT).sum(1)
    counts = np.bincount(hidden, minlength=6) / len(walks)
    assert (counts > 0.1).all()  # uniform: 1/6 each
    assert set(np.unique(walks)) == {DOT, *range(FIRST_NODE, FIRST_NODE + 8)}


def test_answers_are_spread_over_the_nodes():
    held = questions(Hops(num_nodes=6, max_hops=5), 300, difficulty=3, seed=0)
    answers = np.array([held.answer(i)[0] for i in range(len(held))])
    counts = np.bincount(answers - FIRST_NODE, minlength=6)
    assert counts.min() > 25
    starts = np.array([held.prompt(i)[6] for i in range(len(held))])
    assert (starts != answers).all()  # three hops of six never come back


@pytest.mark.parametrize(
    "change, told",
    [
        ({"num_nodes": 1}, "2 to 26"),
        ({"num_nodes": 5, "max_hops": 5}, "1 to 4"),
        ({"num_walks": 0}, "at least 1"),
        ({"arrows": "both"}, "arrows"),
    ],
)
def test_settings_out_of_range_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        Hops(**change)


@pytest.mark.parametrize(
    "text, told",
    [
        ("a>b b>c c>a a .", r"\|"),
        ("a>b b>c | a", "from each of the 3"),
        ("a>b b>c c>a a>c | a", "from each of the 3"),
        ("a>b b>c c>d | a", "'d' is no node"),
        ("a>b b>c ca | a", "'ca' is no node"),
        ("a>b b>c c>a | . a", "begin with a node"),
        ("a>b b>c c>a |", "begin with a node"),
        ("a>b b>c c>a | ab", "'ab' is no node"),
    ],
)
def test_texts_that_are_no_question_are_refused(text, told):
    with pytest.raises(ValueError, match=told):
        HopsTask(Hops(num_nodes=3, max_hops=2)).parse(text)


def test_a_question_can_not_come_back_to_its_start():
    with pytest.raises(ValueError, match="1 to 5 hops"):
        Hops(num_nodes=6, max_hops=5).question(np.random.default_rng(0), 6)
    with pytest.raises(ValueError, match="begin with 6 arrows"):
        HopsTask(Hops(num_nodes=6, max_hops=5)).solve(np.array([8, 9, 2]))
