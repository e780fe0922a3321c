"""Masks against the paper's figures written out as loops, and their forms against each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from inward.methods.tidar import masks


def by_the_figure(documents: list[int], K: int, offset: int, restarts: list[bool]) -> Tensor:
    """Figure 3 left, read off entry by entry; the slow obvious version."""
    S = len(documents)
    start = []  # where the block of place i begins
    for i in range(S):
        new = i == 0 or documents[i] != documents[i - 1] or restarts[i]
        if new:
            anchor = i
        since = i - anchor
        begins = new or (since >= offset and (since - offset) % K == 0)
        start.append(i if begins else start[-1])
    seen = torch.zeros(2 * S, 2 * S, dtype=torch.bool)
    for i in range(S):
        for j in range(S):
            # runs of equal numbers are texts; a number may come back later as another text
            low, high = min(i, j), max(i, j)
            same = len(set(documents[low : high + 1])) == 1 and documents[i] >= 0
            seen[i, j] = same and j <= i
            seen[S + i, j] = same and j < start[i]
            seen[S + i, S + j] = same and start[i] == start[j]
        seen[i, i] = seen[S + i, S + i] = True
    return seen


@st.composite
def samples(draw):
    S = draw(st.integers(1, 12))
    K = draw(st.integers(1, 5))
    documents = draw(st.lists(st.sampled_from([-1, 0, 0, 0, 1, 2]), min_size=S, max_size=S))
    restarts = draw(st.lists(st.sampled_from([False, False, True]), min_size=S, max_size=S))
    return documents, K, draw(st.integers(0, K - 1)), restarts


@settings(max_examples=150)
@given(samples())
def test_training_is_the_figure(sample):
    documents, K, offset, restarts = sample
    rows = masks.training(
        torch.tensor([documents]), K, offset=offset, restarts=torch.tensor([restarts])
    )
    found = masks.dense(masks.sees(rows), 2 * len(documents))
    assert torch.equal(found[0, 0], by_the_figure(documents, K, offset, restarts))
    positions = rows.position[0].tolist()
    assert positions[: len(documents)] == positions[len(documents) :]


def test_samples_keep_their_own_masks():
    documents = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, -1]])
    offset = torch.tensor([1, 0])
    rows = masks.training(documents, 2, offset=offset)
    together = masks.dense(masks.sees(rows), 10, num_samples=2)
    for b in range(2):
        own = masks.training(documents[b : b + 1], 2, offset=int(offset[b]))
        assert torch.equal(together[b], masks.dense(masks.sees(own), 10)[0])
        assert torch.equal(rows.sample(b).block, own.block)
    assert rows.position[0].tolist() == [0, 1, 2, 0, 1] * 2


@pytest.mark.parametrize("K", [1, 2, 3, 5])
def test_decode_is_the_figure(K):
    tail = masks.decode_tail(K)
    q = K * (K + 1)
    wanted = torch.zeros(q, q, dtype=torch.bool)
    for i in range(K):
        wanted[i, : i + 1] = True
        block = slice(K + i * K, K + (i + 1) * K)  # the outcome "i + 1 drafts are accepted"
        wanted[block, : i + 1] = True
        wanted[block, block] = True
    assert torch.equal(tail, wanted)
    rows = masks.decode(K, start=7)
    blocks = [p for j in range(1, K + 1) for p in range(7 + j, 7 + j + K)]
    assert rows.position.tolist() == [[*range(7, 7 + K), *blocks]]


def test_decode_with_some_outcomes_is_a_part_of_the_whole():
    whole, K = masks.decode_tail(4), 4
    rows = [0, 1, 2, 3, *range(4 + 4, 4 + 8), *range(4 + 12, 4 + 16)]  # outcomes 2 and 4
    assert torch.equal(masks.decode_tail(K, (2, 4)), whole[rows][:, rows])
    assert torch.equal(masks.decode_tail(K, ()), torch.ones(K, K, dtype=torch.bool).tril())
    assert masks.decode_tail(0, (0,), 3).all()
    shorter = masks.decode(4, (3,), block_size=2, start=torch.tensor([5, 9]))
    assert shorter.position.tolist() == [[5, 6, 7, 8, 8, 9], [9, 10, 11, 12, 12, 13]]


def test_prefill_ignores_padding_on_either_side():
    real = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    rows = masks.prefill(real, 2)
    found = masks.dense(masks.sees(rows), 7, num_samples=3)[:, 0]
    for b in range(3):
        kept = [*real[b].nonzero()[:, 0].tolist(), 5, 6]
        alone = masks.dense(masks.sees(masks.prefill(len(kept) - 2, 2)), len(kept))[0, 0]
        assert torch.equal(found[b][kept][:, kept], alone)
        padding = (~real[b]).nonzero()[:, 0].tolist()
        assert not found[b][kept][:, padding].any()
        assert rows.position[b][kept].tolist() == list(range(len(kept)))
    assert found.diagonal(dim1=1, dim2=2).all()


@settings(max_examples=50)
@given(st.integers(1, 10), st.integers(1, 4), st.data())
def test_a_training_block_is_a_decode_step(prefix, K, data):
    """For every prefix length some offset puts a block there, and it sees what the block of a
    decode step with that prefix sees."""
    S = prefix + K
    rows = masks.training(S, K, offset=prefix % K)
    mask = masks.dense(masks.sees(rows), 2 * S)[0, 0]
    place = S + prefix
    seen = mask[place : place + K]
    num_drafts = data.draw(st.integers(0, min(prefix, K)))
    step = masks.decode(num_drafts, (num_drafts,), block_size=K, start=prefix - num_drafts)
    tail = masks.dense(masks.sees(step), step.shape[1])[0, 0]
    whole = masks.after_prefix(tail, prefix - num_drafts)[0, 0]
    assert torch.equal(seen[:, [*range(prefix), *range(place, place + K)]], whole[num_drafts:])
    assert int(seen.sum()) == K * (prefix + K)
    assert step.position[0, num_drafts:].tolist() == rows.position[0, place : place + K].tolist()


def test_a_cached_prefix_gives_the_rows_below_it():
    rows = masks.training(torch.tensor([[0, 0, 0, 1, 1, 1, -1]]), 2, offset=1)
    whole = masks.dense(masks.sees(rows), 14)
    clean, masked = rows.select(0, 7), rows.select(7)
    assert torch.equal(masks.dense(masks.sees(clean), 7), whole[..., :7, :7])
    assert torch.equal(masks.dense(masks.sees(masked, clean), 7, 14), whole[..., 7:, :])
    again = masks.joined(clean, masked)
    assert torch.equal(again.horizon, rows.horizon)


def test_the_decode_mask_is_built_once_and_sliced():
    tail = masks.decode_tail(2)
    mask = masks.DecodeMask(tail, 20)
    memory = mask.mask.untyped_storage().data_ptr()
    for prefix in (0, 1, 20):
        assert torch.equal(mask.at(prefix), masks.after_prefix(tail, prefix))
        assert mask.at(prefix).untyped_storage().data_ptr() == memory
    slots = torch.tensor([[True, False, True], [True, True, True]])
    ragged = masks.after_prefix(tail, slots)
    assert ragged.shape == (2, 1, 6, 9)
    assert torch.equal(ragged[0, 0, :, :3], slots[:1].expand(6, 3))
    assert torch.equal(ragged[1, 0, :, 3:], tail)
    added = masks.DecodeMask(tail, 20, dtype=torch.bfloat16).at(3)
    assert torch.equal(added, masks.additive(mask.at(3), torch.bfloat16))
    with pytest.raises(ValueError, match=r"prefix is 21.*0\.\.20"):
        mask.at(21)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_additive_and_block_forms_attend_alike():
    from torch.nn.attention.flex_attention import flex_attention

    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [0] * 6 + [-1] * 2])
    rows = masks.training(documents, 3, offset=torch.tensor([1, 2]))
    predicate = masks.sees(rows)
    q, k, v = torch.randn(3, 2, 2, 16, 8, generator=torch.Generator().manual_seed(0))
    mask = masks.dense(predicate, 16, num_samples=2)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    added = masks.additive(mask, torch.float32)
    assert torch.equal(added == 0, mask)
    assert torch.allclose(F.scaled_dot_product_attention(q, k, v, attn_mask=added), wanted)
    tiles = masks.block(predicate, 16, num_samples=2)
    assert torch.allclose(flex_attention(q, k, v, block_mask=tiles), wanted, atol=1e-6)


def test_the_block_form_skips_empty_tiles():
    """At 1024 tokens a quarter is clean to mask, and most mask tiles see one another nowhere."""
    tiles = masks.block(masks.sees(masks.training(1024, 8)), 2048)
    assert tiles.sparsity() > 60
    assert tiles.kv_num_blocks.shape == (1, 1, 16)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: masks.training(8, 0), "block size K is 0"),
        (lambda: masks.training(8, 4, offset=4), r"offset \[4\].*0\.\.3"),
        (lambda: masks.training(8, 4, offset=-1), r"offset \[-1\]"),
        (lambda: masks.decode(0), "no decode step"),
        (lambda: masks.decode(3, (4,)), r"outcomes \[4\].*0\.\.3"),
        (lambda: masks.decode(3, (1, 1)), "distinct"),
        (lambda: masks.decode(3, (1,), block_size=0), "block size K is 0"),
    ],
)
def test_bad_input(call, told):
    with pytest.raises(ValueError, match=told):
        call()
