"""Rows for language models: pure functions of the step, padded, read from files."""

import numpy as np
import pytest
import torch

from inward.common import IGNORE
from inward.data.texts.arithmetic_text import Addition
from inward.data.texts.hops import Hops
from inward.data.texts.text import TextSource, TokenSource, joined, questions

MAKERS = [Hops(num_nodes=6, max_hops=4), Addition(num_digits=2, max_operands=3)]


@pytest.mark.parametrize("rows", MAKERS, ids=lambda rows: type(rows).__name__)
def test_a_batch_is_a_function_of_seed_and_step_however_it_is_cut(rows):
    source = TextSource(rows, seed=3)
    whole = source.batch(7, range(6), 6)
    parts = [source.batch(7, range(0, 2), 6), source.batch(7, range(2, 6), 6)]
    for name, tensor in whole.items():
        assert torch.equal(tensor, torch.cat([part[name] for part in parts]))
        assert tensor.dtype == torch.int64 and len(tensor) == 6
    other = TextSource(rows, seed=4).batch(7, range(6), 6)["input_ids"]
    later = source.batch(8, range(6), 6)["input_ids"]
    assert not torch.equal(whole["input_ids"], other)
    assert not torch.equal(whole["input_ids"], later)
    assert whole["input_ids"].shape == (6, rows.row_length)
    assert int(whole["input_ids"].max()) < rows.vocab_size


@pytest.mark.parametrize("rows", MAKERS, ids=lambda rows: type(rows).__name__)
def test_weight_counts_the_labels_that_are_predicted(rows):
    batch = TextSource(rows, seed=0).batch(0, range(5), 5)
    counted = (batch["labels"][:, 1:] != IGNORE).sum(1)
    assert torch.equal(batch["weight"], counted) and int(counted.min()) > 0
    # padding is neither read nor asked for
    padding = batch["attention_mask"] == 0
    assert torch.equal(padding, batch["input_ids"] == 0)
    assert (batch["labels"][padding] == IGNORE).all()


@pytest.mark.parametrize("rows", MAKERS, ids=lambda rows: type(rows).__name__)
def test_questions_end_with_their_answer_and_come_from_another_stream(rows):
    held = questions(rows, 20, difficulty=2, seed=0)
    assert len(held) == 20 and (held.difficulty == 2).all()
    for i in range(len(held)):
        prompt, answer = held.prompt(i), held.answer(i)
        real = held.ids[i][held.ids[i] != 0]
        assert np.array_equal(real, np.concatenate([prompt, answer]))
    again = questions(rows, 20, difficulty=2, seed=0)
    assert np.array_equal(held.ids, again.ids) and np.array_equal(held.labels, again.labels)
    assert not np.array_equal(held.ids, questions(rows, 20, difficulty=2, seed=1).ids)
    # rows number 2 and question number i of difficulty 2 share [seed, 2, i] and nothing else
    first = np.random.default_rng([0, 2, 0]).random()
    assert first != np.random.default_rng([0, 2, 0, 0, 2]).random()


def test_joined_questions_keep_what_they_are():
    parts = [questions(MAKERS[0], 3, difficulty=k, seed=0) for k in (3, 1)]
    whole = joined(parts)
    assert whole.difficulty.tolist() == [3, 3, 3, 1, 1, 1]
    for i in range(6):
        part, j = parts[i // 3], i % 3
        assert np.array_equal(whole.prompt(i), part.prompt(j))
        assert np.array_equal(whole.answer(i), part.answer(j))
    with pytest.raises(ValueError, match="no questions"):
        joined([])


def test_bad_requests_are_refused():
    rows = MAKERS[0]
    with pytest.raises(ValueError, match="at least 1"):
        questions(rows, 0, difficulty=1, seed=0)
    with pytest.raises(ValueError, match="seed is -1"):
        TextSource(rows, seed=-1)
    source = TextSource(rows, seed=0)
    with pytest.raises(ValueError, match="count from 0"):
        source.batch(-1, range(2), 2)
    with pytest.raises(ValueError, match="outside a batch of 2"):
        source.batch(0, range(3), 2)


def write(folder, **files):
    folder.mkdir()
    for name, array in files.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_token_files_are_walked_once_an_epoch_in_a_new_order(tmp_path):
    tokens = np.arange(40, dtype=np.uint16).reshape(8, 5)
    folder = write(tmp_path / "t", a=tokens[:3], b=tokens[3:])
    source = TokenSource(folder, length=4, vocab_size=64, seed=0)
    assert len(source) == 8 and source.describe()["num_files"] == 2
    epochs = [
        torch.cat([source.batch(2 * e + i, range(4), 4)["input_ids"] for i in (0, 1)])
        for e in (0, 1)
    ]
    for ids in epochs:  # every row once, its fifth id cut off
        assert sorted(ids[:, 0].tolist()) == list(range(0, 40, 5)) and ids.shape == (8, 4)
    assert not torch.equal(*epochs)
    batch = source.batch(0, range(4), 4)
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch["weight"].tolist() == [3] * 4  # the first id of a row is not predicted


def test_token_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder; tokenize your text"):
        TokenSource(tmp_path / "none", length=4, vocab_size=9, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.npy file.*data\.path"):
        TokenSource(tmp_path / "empty", length=4, vocab_size=9, seed=0)
    for name, array, told in (
        ("flat", np.zeros(8, dtype=np.int32), "rows of integer ids"),
        ("real", np.zeros((2, 8)), "rows of integer ids"),
        ("short", np.zeros((2, 3), dtype=np.int32), "rows of 3 ids, but 4"),
    ):
        with pytest.raises(ValueError, match=told):
            TokenSource(write(tmp_path / name, x=array), length=4, vocab_size=9, seed=0)
    foreign = write(tmp_path / "foreign", x=np.full((2, 4), 9))
    with pytest.raises(ValueError, match="holds id 9, the model knows 0 to 8"):
        TokenSource(foreign, length=4, vocab_size=9, seed=0).batch(0, range(1), 1)
