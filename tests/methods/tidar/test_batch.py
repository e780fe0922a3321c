"""Rows of unequal texts in one forward, and a cache of committed tokens and nothing else."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from inward.common.bases import with_cache
from inward.common.ragged import RaggedCache
from inward.common.thinking import Request
from inward.methods.tidar import masks
from inward.methods.tidar.batch import Layout, Piece, Runner, splits
from inward.methods.tidar.decoder import Decoder
from inward.methods.tidar.request import DecodeSettings
from tests.methods.tidar.toys import MASK, Leaning, gpt2, granite, llama, prompts


def piece(ids: list[int], *blocks: tuple[int, int]) -> Piece:
    layout = Layout(len(ids), blocks)
    return Piece(layout, ids + [MASK] * (layout.num_rows - len(ids)))


@torch.no_grad()
def slow_logits(model, text: list[int], own: Piece) -> Tensor:
    """All rows of a piece behind a text, without a cache, by the definition of the mask."""
    layout, P, q = own.layout, len(text), own.layout.num_rows
    ids = text + own.ids
    position, mask = list(range(P)), torch.zeros(P + q, P + q, dtype=torch.bool)
    mask[:P, :P] = torch.ones(P, P, dtype=torch.bool).tril()
    mask[P:, :P] = True
    for i in range(layout.num_draft):
        position.append(P + i)
        mask[P + i, P : P + i + 1] = True
    for outcome, width in layout.blocks:
        begin = len(position)
        for i in range(width):
            position.append(P + outcome + i)
            mask[begin + i, P : P + outcome] = True
            mask[begin + i, begin : begin + width] = True
    additive = masks.additive(mask[None, None], torch.float32)
    options = {"position_ids": torch.tensor([position]), "attention_mask": additive}
    return model(torch.tensor([ids]), use_cache=False, **options).logits[0, P:]


def all_rows(pieces: list[Piece]) -> list[tuple[int, int]]:
    return [(b, i) for b, own in enumerate(pieces) for i in range(own.layout.num_rows)]


# --- layouts --------------------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(1, 4), st.data())
@settings(max_examples=60)
def test_full_blocks_are_those_of_the_mask_module(num_draft, K, data):
    outcomes = tuple(
        sorted(data.draw(st.sets(st.integers(0, num_draft), min_size=0 if num_draft else 1)))
    )
    layout = Layout(num_draft, tuple((j, K) for j in outcomes))
    assert torch.equal(layout.tail, masks.decode_tail(num_draft, outcomes, K))
    assert layout.num_rows == num_draft + K * len(outcomes)
    for j in outcomes:
        rows = layout.block_rows(j)
        assert layout.offsets[rows.start : rows.stop].tolist() == list(range(j, j + K))


def test_a_narrow_block_is_a_shorter_block():
    layout = Layout(3, ((1, 4), (2, 3), (3, 2)))
    assert layout.offsets.tolist() == [0, 1, 2, 1, 2, 3, 4, 2, 3, 4, 3, 4]
    alone = Layout(3, ((3, 2),))
    rows = [0, 1, 2, *layout.block_rows(3)]
    assert torch.equal(layout.tail[rows][:, rows], alone.tail)
    assert not layout.tail[list(layout.block_rows(1))][:, list(layout.block_rows(2))].any()


# --- one forward ----------------------------------------------------------------------------------

TEXTS = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3, 5, 8, 9, 7, 9, 3]]
PIECES = [
    piece([8, 4, 6], (1, 3), (3, 2)),
    piece([7], (1, 4)),
    piece([1, 2, 3, 4, 5, 6, 7]),
]


@pytest.mark.parametrize("build", (llama, gpt2, granite), ids=lambda f: f.__name__)
def test_ragged_rows_see_what_they_should(build):
    """Texts of 6, 1 and 9 cached tokens, each with rows of its own kind, in one forward."""
    model = build()
    runner, cache = Runner(model), RaggedCache(3, 4)
    with torch.no_grad():
        output = runner(cache, [piece(text) for text in TEXTS])
        cache.commit([len(text) for text in TEXTS])
        output = runner(cache, PIECES)
        found = output.logits(all_rows(PIECES))
    wanted = torch.cat([slow_logits(model, t, p) for t, p in zip(TEXTS, PIECES, strict=True)])
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    some = [(2, 0), (0, 4)]
    index = [all_rows(PIECES).index(place) for place in some]
    torch.testing.assert_close(output.logits(some), found[index], atol=1e-5, rtol=1e-4)


def test_what_splits_and_what_does_not():
    assert splits(llama())
    assert splits(gpt2())
    assert not splits(granite()), "its logits are scaled"
    assert not splits(llama(Leaning))


def test_plain_rows_need_no_mask():
    runner = Runner(llama())
    cache = RaggedCache(2, 8)
    seen = []

    def watch(module, arguments, options):
        seen.append(options["attention_mask"])

    handle = runner.lm.model.register_forward_pre_hook(watch, with_kwargs=True)
    with torch.no_grad():
        runner(cache, [piece([1, 2, 3])] * 2)
        cache.commit([3, 3])
        runner(cache, [piece([4])] * 2)
        cache.commit([1, 0])
        runner(cache, [piece([5]), piece([6])])
        runner(RaggedCache(2, 8), [piece([1, 2, 3]), piece([1, 2])])
        runner(RaggedCache(1, 8), [piece([1, 2, 3], (3, 2))])
    handle.remove()
    assert [mask is None for mask in seen] == [True, True, False, False, False]


# --- the cache ------------------------------------------------------------------------------------


def test_the_cache_is_that_of_plain_tokens():
    """Committed keys and values of ragged pieces = those of one plain forward; growth included."""
    model = llama()
    runner, cache = Runner(model), RaggedCache(3, 4)
    texts = [list(text) for text in TEXTS]
    with torch.no_grad():
        runner(cache, [piece(text) for text in texts])
        cache.commit([len(text) for text in texts])
        for keep in ([2, 1, 4], [0, 1, 7], [3, 0, 1]):
            runner(cache, PIECES)
            cache.commit(keep)
            for text, own, num in zip(texts, PIECES, keep, strict=True):
                text += own.ids[:num]
        check_cache(model, cache, texts)
        cache.select([2, 0])
        check_cache(model, cache, [texts[2], texts[0]])
        runner(cache, [PIECES[1], PIECES[0]])
        cache.commit([1, 2])
        check_cache(model, cache, [texts[2] + [7], texts[0] + [8, 4]])


def check_cache(model, cache: RaggedCache, texts: list[list[int]]) -> None:
    assert cache.book.lengths == [len(text) for text in texts]
    for b, text in enumerate(texts):
        plain = DynamicCache()
        model(torch.tensor([text]), **with_cache(model, {"cache": plain}))
        for layer in range(len(plain.layers)):
            keys, values = cache.committed(b, layer)
            wanted: Any = plain.layers[layer]
            torch.testing.assert_close(keys, wanted.keys[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(values, wanted.values[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scheme", ("plain", "two_pass", "one_pass", "partial", "diffusion"))
def test_decoding_leaves_committed_tokens_in_the_cache(scheme):
    """After every forward: all tokens but the uncached ones, no mask row, no rejected draft."""
    model = llama(Leaning)
    settings = DecodeSettings(scheme=scheme, K=4, threshold=0.3, mask_id=MASK)
    decoder = Decoder(model, settings)
    for prompt in prompts(2, 5).tolist():
        decoder.add(Request(prompt, max_new_tokens=14))
    while True:
        decoder.step()
        if len(decoder.rows) < 2:
            break
        with torch.no_grad():
            cache: Any = decoder.cache
            check_cache(model, cache, [r.tokens[: r.cached] for r in decoder.rows])
        uncached = {len(row.final) for row in decoder.rows}
        assert uncached <= ({0, 4} if scheme == "diffusion" else {1})


def test_a_cache_grows_and_keeps_what_it_holds():
    model, text = llama(), list(range(20))
    runner, cache = Runner(model), RaggedCache(1, 2)
    with torch.no_grad():
        for token in text:
            runner(cache, [piece([token])])
            cache.commit([1])
        check_cache(model, cache, [text])
    assert 20 <= cache.book.capacity <= 40


def test_more_rows_than_were_put_in_cannot_be_kept():
    runner, cache = Runner(llama()), RaggedCache(1, 8)
    with torch.no_grad():
        runner(cache, [piece([1, 2])])
    with pytest.raises(AssertionError, match="3 rows of 2"):
        cache.commit([3])
