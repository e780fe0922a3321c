"""The cache against a slow, obvious one: a dictionary entry per token, layer and recurrence."""

import random
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from inward.methods.huginn.cache import RecurrentCache, SlotLayout, token_bytes
from inward.methods.huginn.sharing import (
    DeepestAvailable,
    FirstThenShared,
    PerDepth,
    Ring,
    Shared,
    Sharing,
    reference_sharing,
    sharing_of,
)
from tests.methods.huginn.test_model import CLOSE, build, ids

CPU = torch.device("cpu")
LAYOUT = SlotLayout(1, 2, 1, 2, 4, torch.float32, CPU)
SHARINGS = [DeepestAvailable(), Ring(1), Ring(3), FirstThenShared(1), FirstThenShared(3), Shared()]


# --------------------------------------------------------------------------------------------------
# Sharing


def test_which_slot_a_recurrence_has():
    def slots(p: Sharing) -> list[int | Tensor]:
        return [p.slot(i) for i in range(6)]

    assert slots(PerDepth()) == slots(DeepestAvailable()) == [0, 1, 2, 3, 4, 5]
    assert slots(Ring(4)) == [0, 1, 2, 3, 0, 1]
    assert slots(FirstThenShared(3)) == [0, 1, 2, 3, 3, 3]
    assert slots(Shared()) == [0] * 6
    for p in (PerDepth(), *SHARINGS):
        for r in range(1, 8):
            assert p.slots(r) == len({p.slot(i) for i in range(r)})
        assert torch.equal(torch.as_tensor(p.slot(torch.arange(6))), torch.tensor(slots(p)))


def test_names_of_sharings():
    named = {
        "per-depth": PerDepth(),
        "deepest": DeepestAvailable(),
        "ring:4": Ring(4),
        "first-then-shared:8": FirstThenShared(8),
        "shared": Shared(),
    }
    for name, p in named.items():
        assert sharing_of(name) == p == sharing_of(p)
    assert PerDepth() != DeepestAvailable()
    for bad in ("ring", "ring:", "ring:x", "deep", "shared:2", ""):
        with pytest.raises(ValueError, match="there is no sharing"):
            sharing_of(bad)
    for bad in ("ring:0", "ring:-1", "first-then-shared:0"):
        with pytest.raises(ValueError, match="must be at least 1"):
            sharing_of(bad)


def test_names_of_the_reference():
    assert reference_sharing("full", 4) == PerDepth()
    assert reference_sharing("latest-m4", 4) == DeepestAvailable()
    assert reference_sharing("compress-s4", 4) == Ring(1)
    assert reference_sharing("latest-m4-compress-s8", 4) == Ring(2)
    assert reference_sharing("compress-anchor", 4) == FirstThenShared(8)
    # budgets that let one layer read another's keys
    for bad in ("compress-s5", "compress-s2", "compress-r2", "compress-s0"):
        with pytest.raises(ValueError, match="would mix layers"):
            reference_sharing(bad, 4)
    with pytest.raises(ValueError, match="no sharing of the reference"):
        reference_sharing("always-last", 4)


# --------------------------------------------------------------------------------------------------
# Against the obvious cache


class Obvious:
    """tokens[row] is a list of {(layer, recurrence): key} with the depth under "depth"."""

    def __init__(self, sharing: Sharing, num_rows: int):
        self.sharing = sharing
        self.tokens: list[list[dict[Any, Any]]] = [[] for _ in range(num_rows)]

    def key(self, token: dict[Any, Any], layer: int, recurrence: int) -> Tensor:
        """What a finished token answers: the last it wrote to the slot, else its deepest."""
        slot = self.sharing.slot(recurrence)
        wrote = [j for j in range(token["depth"]) if self.sharing.slot(j) == slot]
        return token[layer, max(wrote, default=token["depth"] - 1)]


def one_forward(cache: RecurrentCache, obvious: Obvious, dice: random.Random) -> None:
    """Some rows get new tokens; each starts at a tick of its own, stops at a depth of its own."""
    all_rows = range(len(obvious.tokens))
    rows = sorted(dice.sample(all_rows, dice.randint(1, len(all_rows))))
    whole = len(rows) == len(all_rows) and dice.random() < 0.5
    num_new = dice.randint(1, 3)
    depths = [dice.randint(1, 6) for _ in rows]
    starts = [dice.randint(0, 2) for _ in rows]
    if whole:
        depths, starts = [depths[0]] * len(rows), [0] * len(rows)
    index = None if whole else torch.tensor(rows)
    place = cache.begin(len(rows), num_new, LAYOUT, rows=index)
    new: dict[int, list[dict[Any, Any]]] = {b: [{} for _ in range(num_new)] for b in rows}

    def visit(at: list[int], layer: int, recurrences: list[int]) -> None:
        """The rows rows[at] pass a layer; all keys they get must be the obvious ones."""
        k = torch.randn(len(at), 2, num_new, 4)
        outer = LAYOUT.prelude + LAYOUT.coda
        idx: Any = layer
        if layer >= outer:
            idx = outer + LAYOUT.core * torch.tensor(recurrences) + layer - outer
            if len(set(recurrences)) == 1 and dice.random() < 0.5:
                idx = int(idx[0])
        here = place if len(at) == len(rows) else place.select(torch.tensor(at), len(rows))
        keys, values = cache.update(k, k + 1, idx, here)
        for j, (n, i) in enumerate(zip(at, recurrences, strict=True)):
            b = rows[n]
            for t, token in enumerate(new[b]):
                token[layer, i] = k[j, :, t]
            past = [
                obvious.key(token, layer, i if layer >= outer else 0) for token in obvious.tokens[b]
            ]
            want = torch.stack([*past, *(token[layer, i] for token in new[b])], dim=1)
            assert torch.equal(keys[j, :, : want.shape[1]], want)
            assert torch.equal(values[j, :, : want.shape[1]], want + 1)

    every = list(range(len(rows)))
    visit(every, 0, [0] * len(rows))
    for tick in range(max(s + d for s, d in zip(starts, depths, strict=True))):
        at = [n for n in every if starts[n] <= tick < starts[n] + depths[n]]
        if not at:
            continue
        for layer in range(LAYOUT.core):
            visit(at, LAYOUT.prelude + LAYOUT.coda + layer, [tick - starts[n] for n in at])
        done = [n for n in at if tick + 1 == starts[n] + depths[n]]
        if done and not whole:
            visit(done, 1, [0] * len(done))
            reached = torch.tensor([depths[n] for n in done])
            cache.commit(place.select(torch.tensor(done), len(rows)), reached)
    if whole:
        visit(every, 1, [0] * len(rows))
        cache.commit(place, depths[0])
    for n, b in enumerate(rows):
        for token in new[b]:
            token["depth"] = depths[n]
            # prelude and coda are outside the loop: one key, whatever the recurrence
            token |= {(layer, d): token[layer, 0] for layer in (0, 1) for d in range(depths[n])}
            obvious.tokens[b].append(token)


def move_rows(cache: RecurrentCache, obvious: Obvious, dice: random.Random) -> None:
    """Roll back, reorder, or let other rows take some places."""
    kind, num = dice.choice(["crop", "crop all", "select", "insert"]), len(obvious.tokens)
    lengths = [len(row) for row in obvious.tokens]
    if kind == "crop":
        kept = [dice.randint(0, n) for n in lengths]
        cache.crop(torch.tensor(kept))
        obvious.tokens = [row[:n] for row, n in zip(obvious.tokens, kept, strict=True)]
    elif kind == "crop all" and min(lengths) > 0:
        cache.crop(-1)
        obvious.tokens = [row[:-1] for row in obvious.tokens]
    elif kind == "select":
        order = [dice.randrange(num) for _ in range(num)]
        cache.select(torch.tensor(order))
        obvious.tokens = [list(obvious.tokens[b]) for b in order]
    elif kind == "insert":
        other, twin = RecurrentCache(obvious.sharing), Obvious(obvious.sharing, 1)
        one_forward(other, twin, dice)
        b = dice.randrange(num)
        cache.insert(torch.tensor([b]), other)
        obvious.tokens[b] = twin.tokens[0]
    assert cache.lengths.tolist() == [len(row) for row in obvious.tokens]


@pytest.mark.parametrize("sharing", SHARINGS, ids=str)
@given(seed=st.integers(0, 2**32))
@hypothesis_settings(max_examples=15)
def test_the_cache_is_the_obvious_one(sharing, seed):
    torch.manual_seed(seed)
    dice = random.Random(seed)
    cache, obvious = RecurrentCache(sharing, num_rows=3), Obvious(sharing, 3)
    with patch("inward.methods.huginn.cache.CHUNK", 2):  # room must be added again and again
        one_forward(cache, obvious, dice)
        for _ in range(5):
            dice.choice([one_forward, one_forward, move_rows])(cache, obvious, dice)
    assert cache.get_seq_length() == max(len(row) for row in obvious.tokens)
    assert cache.get_mask_sizes(2) == (cache.get_seq_length() + 2, 0)


# --------------------------------------------------------------------------------------------------
# In the model


def think(model, x: Tensor, cache: RecurrentCache, depths: list[int]) -> tuple[Tensor, Tensor]:
    """States and last logits of tokens x (B, S), row b after depths[b] recurrences: rows that are
    done leave the loop."""
    e, context = model.embed(x, cache=cache)
    s = model.initial_state(e, positions=context.positions).clone()
    for i in range(max(depths)):
        at = torch.tensor([b for b, depth in enumerate(depths) if i < depth])
        some = context.select(at, len(x))
        s[at] = model.iterate(s[at], e[at], some, recurrence=i)
    logits = model.read_out(s, context)[1]
    cache.commit(context.place, torch.tensor(depths))
    return s, logits


@pytest.mark.parametrize("sharing", SHARINGS, ids=str)
@torch.no_grad()
def test_rows_that_leave_early_are_rows_alone(sharing):
    model, x = build(), ids(3, 9)
    plan = ((4, [2, 5, 3]), (1, [6, 1, 2]), (2, [1, 4, 6]), (1, [7, 7, 7]), (1, [2, 2, 1]))
    together, single = RecurrentCache(sharing), [RecurrentCache(sharing) for _ in range(3)]
    first = 0
    for num, depths in plan:
        part = x[:, first : first + num]
        s, logits = think(model, part, together, depths)
        for b, cache in enumerate(single):
            alone = think(model, part[b : b + 1], cache, depths[b : b + 1])
            torch.testing.assert_close(s[b : b + 1], alone[0], **CLOSE)
            torch.testing.assert_close(logits[b : b + 1], alone[1], **CLOSE)
        first += num


@torch.no_grad()
def test_rows_at_different_recurrences_in_one_step():
    """A row that is at recurrence 3 and one that begins, in one call of the core."""
    model, x = build(), ids(2, 1)
    prompt = ids(2, 5, seed=2)
    want = model(torch.cat([prompt, x], 1), num_steps=4, output_states=True).states[-1][:, -1:]
    cache = RecurrentCache(num_recurrences=4)
    model(prompt, num_steps=4, past_key_values=cache)
    e, context = model.embed(x, cache=cache)
    s = model.initial_state(e, positions=context.positions).expand_as(e).clone()
    head = torch.tensor([0])
    for i in range(3):
        s[head] = model.iterate(s[head], e[head], context.select(head, 2), recurrence=i)
    s = model.iterate(s, e, context, recurrence=torch.tensor([3, 0]))
    tail = torch.tensor([1])
    for i in range(1, 4):
        s[tail] = model.iterate(s[tail], e[tail], context.select(tail, 2), recurrence=i)
    torch.testing.assert_close(s, want, **CLOSE)


@torch.no_grad()
def test_no_context_is_dropped_after_an_early_exit():
    """The reference's default does drop it: a token that thinks deeper than the prompt then sees
    nobody but itself. Here it sees the prompt's deepest keys, and PerDepth refuses."""
    model, prompt, x = build(), ids(1, 6), ids(1, 1, seed=3)
    logits = []
    for seed in (4, 5):
        cache = RecurrentCache()
        other = prompt if seed == 4 else ids(1, 6, seed=seed)
        model(other, num_steps=1, past_key_values=cache, state_seed=0)
        out = model(x, num_steps=6, past_key_values=cache, state=torch.zeros(1, 1, 32))
        logits.append(out.logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-2, "the prompt makes a difference"
    strict = RecurrentCache("per-depth")
    model(prompt, num_steps=2, past_key_values=strict)
    model(x, num_steps=2, past_key_values=strict)
    with pytest.raises(ValueError, match="recurrence 3 reads tokens that stopped after 2"):
        model(x, num_steps=3, past_key_values=strict)
    mixed = RecurrentCache("per-depth")  # the shallowest of all tokens decides
    for tokens, num_steps in ((prompt, 4), (x, 2), (x, 2)):
        model(tokens, num_steps=num_steps, past_key_values=mixed)
    with pytest.raises(ValueError, match="recurrence 3 reads tokens that stopped after 2"):
        model(x, num_steps=3, past_key_values=mixed)


@torch.no_grad()
def test_a_prompt_is_exact_under_every_sharing():
    model, x = build(), ids(2, 7)
    want = model(x, num_steps=5).logits
    for p in SHARINGS:
        got = model(x, num_steps=5, past_key_values=RecurrentCache(p)).logits
        torch.testing.assert_close(got, want, **CLOSE)


# --------------------------------------------------------------------------------------------------
# Memory


def test_bytes_per_token_of_the_published_model():
    layout = SlotLayout(2, 4, 2, 55, 96, torch.bfloat16, CPU)
    assert layout.token_slot_bytes == 21_120
    sizes = {
        name: token_bytes(name, 32, layout)
        for name in ("per-depth", "deepest", "ring:4", "first-then-shared:8", "shared")
    }
    assert sizes == {
        "per-depth": 2_787_840,
        "deepest": 2_787_840,
        "ring:4": 20 * 21_120,
        "first-then-shared:8": 40 * 21_120,
        "shared": 168_960,
    }


@torch.no_grad()
def test_bytes_that_are_held():
    model, x = build(), ids(2, 7)

    def held(sharing: str, r: int) -> int:
        cache = RecurrentCache(sharing, capacity=16)
        model(x, num_steps=r, past_key_values=cache)
        assert cache.bytes() == 2 * 16 * cache.bytes_per_token(r)
        return cache.bytes()

    assert held("shared", 2) == held("shared", 9)
    assert held("ring:3", 3) == held("ring:3", 9)
    assert held("deepest", 9) > held("deepest", 3)
    cache = RecurrentCache()
    with pytest.raises(ValueError, match="its model is not known yet"):
        cache.bytes_per_token(4)


@torch.no_grad()
def test_emptied_caches_are_new_ones():
    model, x = build(), ids(2, 7)
    cache = RecurrentCache("per-depth")
    model(x, num_steps=2, past_key_values=cache)
    held = cache.bytes()
    cache.reset()
    out = model(x, num_steps=2, past_key_values=cache)
    assert torch.equal(out.logits, model(x, num_steps=2).logits)
    assert cache.bytes() == held


# --------------------------------------------------------------------------------------------------
# Bad input


def test_what_a_cache_refuses():
    cache = RecurrentCache()
    cache.commit(cache.begin(2, 3, LAYOUT), 1)
    with pytest.raises(ValueError, match="holds 2 rows, the batch has 3"):
        cache.begin(3, 1, LAYOUT)
    for other in (replace(LAYOUT, core=3), replace(LAYOUT, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="belongs to another model"):
            cache.begin(2, 1, other)
    for lengths in (torch.tensor([4, 0]), torch.tensor([1]), -4):
        with pytest.raises(ValueError, match="cannot crop rows of \\[3, 3\\] tokens"):
            cache.crop(lengths)
    cache.crop(0)
    cache.crop(2)
    assert cache.lengths.tolist() == [2, 2]
    with pytest.raises(ValueError, match="another sharing"):
        cache.insert(torch.tensor([0]), RecurrentCache("shared"))
    k = torch.zeros(2, 2, 1, 4, requires_grad=True)
    with pytest.raises(ValueError, match="keeps no gradients"):
        cache.update(k, k, 0, cache.begin(2, 1, LAYOUT))
    with pytest.raises(ValueError, match="there is no sharing"):
        RecurrentCache("deeper")
