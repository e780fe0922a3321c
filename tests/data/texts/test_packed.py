"""Packed rows: nothing lost, nothing doubled, and a pure function of the step."""

from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inward.data.texts.packed import PADDING, PackedSource, PackedTokens

LENGTHS = st.lists(st.integers(1, 25), min_size=1, max_size=30)


def numbered(lengths: list[int]) -> PackedTokens:
    """Texts whose ids count up over the whole corpus: every token can be told apart."""
    edges = np.cumsum([0, *lengths])
    return PackedTokens.from_ids([range(a, b) for a, b in pairwise(edges)])


def texts_of(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """The texts of a batch, as runs of one document number."""
    found = []
    for ids, documents in zip(batch["input_ids"], batch["documents"], strict=True):
        for number in sorted(set(documents.tolist()) - {PADDING}):
            found.append(ids[documents == number].tolist())
    return found


@settings(max_examples=60)
@given(LENGTHS, st.integers(2, 12))
def test_an_epoch_holds_every_token_once(lengths, seq_len):
    tokens = numbered(lengths)
    source = PackedSource(tokens, seq_len=seq_len, seed=3)
    batch = source.batch(0, range(len(source)), len(source))
    texts = texts_of(batch)
    assert sorted(i for text in texts for i in text) == list(range(sum(lengths)))
    starts = set(tokens.starts.tolist())
    for text in texts:
        # whole, or a piece that begins at a multiple of the row length
        assert text == list(range(text[0], text[-1] + 1))
        origin = max(s for s in starts if s <= text[0])
        assert (text[0] - origin) % seq_len == 0
        assert text[-1] + 1 in starts or len(text) == seq_len
    held = (batch["documents"] != PADDING).float().mean()
    assert source.filled == pytest.approx(float(held))
    # documents are numbered in order and padding is at the end
    for row in batch["documents"].tolist():
        real = [d for d in row if d != PADDING]
        assert real == sorted(real) and row[len(real) :] == [PADDING] * (seq_len - len(real))


@settings(max_examples=60)
@given(LENGTHS, st.integers(2, 12))
def test_a_stream_has_no_padding(lengths, seq_len):
    tokens = numbered(lengths)
    if sum(lengths) < seq_len:
        with pytest.raises(ValueError, match="do not fill one row"):
            PackedSource(tokens, seq_len=seq_len, seed=0, cut="stream")
        return
    source = PackedSource(tokens, seq_len=seq_len, seed=0, cut="stream")
    batch = source.batch(0, range(len(source)), len(source))
    seen = sorted(batch["input_ids"].flatten().tolist())
    assert seen == list(range(sum(lengths) // seq_len * seq_len))
    edges = tokens.starts.tolist()
    for text in texts_of(batch):
        assert not any(text[0] < edge <= text[-1] for edge in edges), "two texts under one number"


def test_best_fit_packs_tightly():
    source = PackedSource(numbered([6, 4, 5, 5, 7, 3]), seq_len=10, seed=0)
    assert len(source) == 3 and source.filled == 1.0


def test_rows_depend_on_step_and_row_alone():
    rng = np.random.default_rng(0)
    tokens = numbered(rng.integers(1, 9, size=40).tolist())
    source, again = (PackedSource(tokens, seq_len=10, seed=5) for _ in range(2))
    for step in (0, 3, 1000):
        whole = source.batch(step, range(6), 6)
        parts = [again.batch(step, rows, 6) for rows in (range(0, 2), range(2, 6))]
        assert sorted(whole) == ["documents", "input_ids", "weight"]
        for name, value in whole.items():
            assert torch.equal(value, torch.cat([part[name] for part in parts]))
    other = PackedSource(tokens, seq_len=10, seed=6).batch(0, range(6), 6)
    assert not torch.equal(other["input_ids"], source.batch(0, range(6), 6)["input_ids"])
    # epochs differ in order, not in content
    n = len(source)
    first, second = (source.batch(step, range(n), n)["input_ids"] for step in (0, 1))
    assert not torch.equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist())


def test_answers_alone_are_predicted():
    tokens = PackedTokens.from_answers([([1, 2, 3], [4, 5]), ([], [6, 7])])
    batch = PackedSource(tokens, seq_len=8, seed=0).batch(0, range(1), 1)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 0]]
    assert batch["documents"].tolist() == [[0] * 5 + [1] * 2 + [PADDING]]
    marks = [False, False, False, True, True, True, True, False]
    assert batch["supervised"].tolist() == [marks]
    # 4, 5 and 7: nothing comes before 6, the first token of its text
    assert batch["weight"].tolist() == [3]


def test_weight_without_answers_leaves_out_first_tokens():
    batch = PackedSource(numbered([3, 4]), seq_len=8, seed=0).batch(0, range(1), 1)
    assert batch["weight"].tolist() == [2 + 3]
    joined = PackedSource(numbered([3, 5]), seq_len=8, seed=0, cut="stream", separate=False)
    batch = joined.batch(0, range(1), 1)
    assert sorted(batch) == ["input_ids", "weight"]
    assert batch["weight"].tolist() == [7]


def test_tokens_come_back_from_files(tmp_path):
    tokens = PackedTokens.from_answers([([1, 2], [3]), ([4], [5, 6])])
    tokens.save(tmp_path / "corpus")
    opened = PackedTokens.open(tmp_path / "corpus")
    assert isinstance(opened.ids, np.memmap)
    assert len(opened) == 2
    for name in ("ids", "starts", "supervised"):
        assert np.array_equal(getattr(opened, name), getattr(tokens, name))
    plain = numbered([2, 3])
    plain.save(tmp_path / "plain")
    assert PackedTokens.open(tmp_path / "plain").supervised is None
    with pytest.raises(FileNotFoundError, match="no tokens"):
        PackedTokens.open(tmp_path)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda t: PackedSource(t, seq_len=1, seed=0), "seq_len is 1"),
        (lambda t: PackedSource(t, seq_len=4, seed=-1), "seed is -1"),
        (lambda t: PackedSource(t, seq_len=4, seed=0, cut=cast("Any", "half")), "cut is 'half'"),
        (lambda t: PackedSource(t, seq_len=4, seed=0, separate=False), "separate=False"),
        (lambda t: PackedSource(t, seq_len=4, seed=0).batch(-1, range(1), 1), "step is -1"),
        (lambda t: PackedSource(t, seq_len=4, seed=0).batch(0, range(2), 1), "outside a batch"),
        (lambda t: PackedTokens.from_ids([]), "0 texts"),
        (lambda t: PackedTokens.from_ids([[1], []]), "no text may be empty"),
    ],
)
def test_bad_input(call, told):
    with pytest.raises(ValueError, match=told):
        call(numbered([3, 4]))


def test_rows_in_which_nothing_is_to_be_predicted_are_left_out():
    """A long question is cut into rows of its own; a batch of such a row would teach nothing."""
    pairs = [(range(20), [90, 91]), ([1, 2], [3, 4, 5])]
    source = PackedSource(PackedTokens.from_answers(pairs), seq_len=8, seed=0)
    assert len(source) == 2
    for step in range(len(source)):
        assert source.batch(step, range(1), 1)["weight"].item() > 0
    said = sum(source.batch(step, range(1), 1)["weight"].item() for step in range(len(source)))
    assert said == 5  # as many as all answers have tokens
    with pytest.raises(ValueError, match="no row holds a token that is to be predicted"):
        PackedSource(PackedTokens.from_answers([(range(8), [1])]), seq_len=8, seed=0)
