"""Arithmetic chains: true steps, values in range, and a swap that changes every number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.data.thoughts import chains
from inward.data.thoughts.chains import ChainSettings
from inward.data.thoughts.records import Record
from inward.tasks.chains import is_true


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["text", "symbolic"]),
    st.integers(1, 5),
    st.integers(0, 4),
)
def test_a_chain_computes_its_answer(seed, rendering, num_steps, num_branches):
    rng = np.random.default_rng(seed)
    made = ChainSettings(min_steps=num_steps, max_steps=num_steps, num_branches=num_branches)
    chain = chains.draw_chain(made, rng)
    assert len(chain.needed()) == num_steps and len(chain.links) == num_steps + num_branches
    record = chains.render(chain, rng, rendering=rendering)
    swap = chains.swapped(record)
    for one in (record, swap):
        assert all(1 <= value <= made.max_value for value in chains.chain_of(one).values())
        assert len(one.steps) == num_steps and all(map(is_true, one.steps))
        results = [step[:-2].split("=")[1] for step in one.steps]
        assert results[-1] == one.answer
        begins = [step[2:].split("=")[0] for step in one.steps]
        assert all(b.startswith(r) for r, b in zip(results, begins[1:], strict=False))
    # The swap: one word differs in the question, every step and the answer differ.
    words, other = record.question.split(), swap.question.split()
    assert sum(a != b for a, b in zip(words, other, strict=True)) == 1
    assert record.answer != swap.answer
    assert all(a != b for a, b in zip(record.steps, swap.steps, strict=True))
    assert chains.swapped(swap) == record
    assert chains.key(swap) == chains.key(record)


def test_a_chain_by_hand():
    chain = chains.Chain(5, 7, ((0, "+", 3), (1, "*", 2), (0, "-", 1)), asked=2)
    assert chain.values() == [5, 8, 16, 4] and chain.needed() == [0, 1]
    how = {"names": list("abcd"), "order": [2, 3, 0, 1], "rendering": "symbolic", "shuffled": True}
    record = chains._written(chain, how)
    assert record.question == "c=b*2. d=a-1. a=5. b=a+3. c=?"
    assert record.steps == ("<<5+3=8>>", "<<8*2=16>>") and record.answer == "16"
    names = ["Ann", "Bob", "Cat", "Dan"]
    told = chains._written(
        chain, {"names": names, "order": [0, 1, 2, 3], "rendering": "text", "shuffled": False}
    )
    assert told.question == (
        "Ann has 5 coins. Bob has 3 coins more than Ann. Cat has 2 times as many coins as Bob. "
        "Dan has 1 coins fewer than Ann. How many coins has Cat?"
    )
    assert chains.swapped(record).question == "c=b*2. d=a-1. a=7. b=a+3. c=?"


def test_sets_repeat_exclude_and_pair():
    settings = ChainSettings(min_steps=1, max_steps=1, num_branches=0, max_value=12, max_term=3)
    test = chains.generate(30, seed=0, settings=settings)
    assert test == chains.generate(30, seed=0, settings=settings)
    keys = {chains.key(record) for record in test}
    assert len(keys) == 30
    train = chains.generate(60, seed=1, settings=settings, exclude=test)
    assert not keys & {chains.key(record) for record in train}
    pairs = chains.generate(4, seed=2, pairs=True)
    assert pairs[1] == chains.swapped(pairs[0]) and pairs[3] == chains.swapped(pairs[2])


def test_rewriting_keeps_the_numbers():
    (record,) = chains.generate(1, seed=3)
    again = chains.rendered(record, np.random.default_rng(1), rendering="symbolic")
    assert again.steps == record.steps and again.answer == record.answer
    assert "coins" not in again.question
    assert chains.rendered(record, np.random.default_rng(1)).question != record.question


def test_a_chain_told_in_order_stays_so():
    settings = ChainSettings(shuffled=False)
    for record in chains.generate(6, seed=4, settings=settings, pairs=True):
        for one in (record, chains.rendered(record, np.random.default_rng(5))):
            assert one.meta["order"] == list(range(len(one.meta["names"])))
    assert chains.rendered(record, np.random.default_rng(5)).question != record.question


def test_bad_settings(monkeypatch):
    with pytest.raises(ValueError, match="1 <= min_steps"):
        ChainSettings(min_steps=0)
    with pytest.raises(ValueError, match="33 quantities"):
        ChainSettings(max_steps=30)
    with pytest.raises(ValueError, match="max_value 5"):
        ChainSettings(max_value=5)
    with pytest.raises(ValueError, match="no chain"):
        chains.chain_of(Record("q", (), "a"))
    monkeypatch.setattr(chains, "MAX_TRIES", 50)
    few = ChainSettings(1, 1, 0, max_value=10, max_term=1, max_factor=1)
    with pytest.raises(ValueError, match="seem to be used"):
        chains.generate(2000, seed=0, settings=few)
    tight = ChainSettings(15, 15, 0, max_value=10, max_term=10, max_factor=4)
    with pytest.raises(ValueError, match="stayed within 1 to 10"):
        chains.draw_chain(tight, np.random.default_rng(0))
