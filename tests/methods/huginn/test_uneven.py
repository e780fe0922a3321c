"""A depth for each position: one forward against the engine that takes token after token, and
against the definition unrolled, gradients included."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from inward.common.costs import forward_cost
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.context import Context, rotary_angles
from inward.methods.huginn.model import HuginnForCausalLM
from tests.counted import counter

V = 23


def huginn(**more: Any) -> HuginnForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "n_embd": 16, "n_heads": 2, "intermediate_size": 24, "n_layers_in_prelude": 1,
        "n_layers_in_recurrent_block": 2, "n_layers_in_coda": 1, "vocab_size": V,
        "block_size": 32, "mean_recurrence": 3, "mean_backprop_depth": 2, "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    model = HuginnForCausalLM(HuginnConfig(**{**sizes, **more})).eval()
    for p in model.parameters():  # else every state is about the same
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else None
    return model.double()


IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
DEPTHS = torch.tensor([[3, 1, 4, 2, 2, 5], [1, 1, 6, 1, 2, 1]])


def by_token(model: HuginnForCausalLM, ids: Tensor, depths: Tensor) -> Tensor:
    """The obvious version: the engine's cache, a row and a token at a time. (B, S, V)"""
    rows = []
    for row, own in zip(ids, depths, strict=True):
        cache, said = RecurrentCache("deepest"), []
        for token, depth in zip(row.tolist(), own.tolist(), strict=True):
            with torch.no_grad():
                out = model(torch.tensor([[token]]), cache=cache, num_steps=depth)
            said.append(out.logits[0, -1])
        rows.append(torch.stack(said))
    return torch.stack(rows)


class Unrolled:
    """The definition, with gradients: each token's keys and values of every visit in a list."""

    def __init__(self, model: HuginnForCausalLM):
        self.model, self.held = model, {}

    def read(self, ids: list[int], depths: list[int]) -> Tensor:
        """(S, V) logits of one row."""
        model, prelude = self.model, self.model.config.layers[0]
        said = []
        for t, (token, depth) in enumerate(zip(ids, depths, strict=True)):
            position = torch.tensor([[t]])
            angles = rotary_angles(position, model.config.head_dim, model.config.rope_base)
            context: Any = OneToken(position, angles, None, False, held=self.held)
            x = model.transformer.wte(torch.tensor([[token]]))
            for p, block in enumerate(model.transformer.prelude):
                x = block(x, context, ("outer", p))
            s = model.initial_state(x, positions=position)
            for i in range(depth):
                h = model.transformer.adapter(torch.cat([s, x], -1))
                for layer, block in enumerate(model.transformer.core_block):
                    h = block(h, context, ("core", layer, i))
                s = h
            y = model.transformer.ln_f(s)
            for c, block in enumerate(model.transformer.coda):
                y = block(y, context, ("outer", prelude + c))
            said.append(model.lm_head(model.transformer.ln_f(y))[0, 0])
        return torch.stack(said)


class OneToken(Context):
    """Of each token before the keys and values of its deepest visit not deeper than this one."""

    def __init__(self, *args: Any, held: dict[Any, Any]):
        super().__init__(*args)
        object.__setattr__(self, "held", held)

    def extend(self, k: Tensor, v: Tensor, layer_idx: Any) -> tuple[Tensor, Tensor]:
        kind, layer, *deep = layer_idx
        position = int(self.positions)
        visits = self.held.setdefault((kind, layer), {})  # pyright: ignore
        visits.setdefault(position, {})[deep[0] if deep else 0] = (k, v)
        found = []
        for t in range(position + 1):
            reached = [i for i in visits[t] if not deep or i <= deep[0]]
            found.append(visits[t][max(reached)])
        keys, values = zip(*found, strict=True)
        return torch.cat(keys, 2), torch.cat(values, 2)


def test_one_forward_is_the_engine_token_by_token():
    model = huginn()
    want = by_token(model, IDS, DEPTHS)
    with torch.no_grad():
        assert (model(IDS, num_steps=DEPTHS).logits - want).abs().max() < 1e-12
    single = huginn().float()
    with torch.no_grad():
        assert (single(IDS, num_steps=DEPTHS).logits - want).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["recurrent", "growing"])
@pytest.mark.parametrize("cuts", [(0, 2, 6), (0, 1, 3, 4, 6), (0, 5, 6)])
def test_in_parts_behind_a_cache(kind, cuts):
    """Forwards whose depths differ within and between them; also with one depth a forward."""
    model = huginn()
    want = by_token(model, IDS, DEPTHS)
    cache: Any = RecurrentCache() if kind == "recurrent" else model.new_cache()
    said = []
    with torch.no_grad():
        for start, stop in pairwise(cuts):
            part = slice(start, stop)
            out = model(IDS[:, part], cache=cache, num_steps=DEPTHS[:, part])
            said.append(out.logits)
    assert (torch.cat(said, 1) - want).abs().max() < 1e-12
    assert cache.get_seq_length() == 6


@pytest.mark.parametrize("kind", ["recurrent", "growing"])
def test_one_depth_a_forward_mixes_with_others(kind):
    model = huginn()
    depths = torch.tensor([[2, 2, 5, 1, 1, 3]])
    want = by_token(model, IDS[:1], depths)
    cache: Any = RecurrentCache() if kind == "recurrent" else model.new_cache()
    said = []
    with torch.no_grad():
        for start, stop, depth in ((0, 2, 2), (2, 3, 5), (3, 5, 1), (5, 6, 3)):
            said.append(model(IDS[:1, start:stop], cache=cache, num_steps=depth).logits)
    assert (torch.cat(said, 1) - want).abs().max() < 1e-12


@pytest.mark.parametrize("cached", [False, True])
def test_gradients_are_those_of_the_definition(cached):
    model = huginn()
    ids, depths = IDS[:1], DEPTHS[:1]
    weights = torch.randn(6, V, dtype=torch.double, generator=torch.Generator().manual_seed(1))

    def gradients(logits: Tensor) -> list[Tensor]:
        model.zero_grad()
        (logits * weights).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    want_logits = Unrolled(model).read(ids[0].tolist(), depths[0].tolist())
    want = gradients(want_logits)
    if cached:
        cache = model.new_cache()
        parts = [slice(0, 2), slice(2, 3), slice(3, 6)]
        said = [model(ids[:, p], cache=cache, num_steps=depths[:, p]).logits[0] for p in parts]
        logits = torch.cat(said)
    else:
        logits = model(ids, num_steps=depths).logits[0]
    assert (logits - want_logits).abs().max() < 1e-12
    got = gradients(logits)
    assert len(got) == len(want)
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(got, want, strict=True))


def test_equal_depths_are_the_plain_forward_and_padding_stays_padding():
    model = huginn()
    with torch.no_grad():
        plain = model(IDS, num_steps=4).logits
        assert torch.equal(model(IDS, num_steps=torch.full((1, 6), 4)).logits, plain)
        mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
        padded = model(IDS, attention_mask=mask, num_steps=DEPTHS).logits
        alone = model(IDS[:1, 2:], num_steps=DEPTHS[:1, 2:]).logits
        assert (padded[0, 2:] - alone[0]).abs().max() < 1e-12
        # nothing earlier looks at a deeper token, nothing deep at a shallow one's missing slots
        tail = DEPTHS.clone()
        tail[:, -1] = 9
        deep, shallow = (model(IDS, num_steps=d).logits[:, :-1] for d in (tail, DEPTHS))
        assert torch.equal(deep, shallow)


def test_tokens_that_have_stopped_are_not_computed():
    model = huginn()
    depths = torch.tensor([[8, 1, 1, 1, 1, 1]])
    with torch.no_grad(), counter() as found:
        model(IDS[:1], num_steps=depths)
    cost = forward_cost(model, rows=6, past=0, reads=6, num_steps=depths)
    assert cost.flops == found.get_total_flops() and cost.evaluations == 8
    assert cost.flops < forward_cost(model, rows=6, past=0, reads=6, num_steps=3).flops


def test_what_cannot_be_is_refused():
    model = huginn()
    for wrong, told in (
        (torch.ones(2, 5, dtype=torch.long), "shape"),
        (torch.ones(2, 6), "whole numbers"),
        (torch.zeros(2, 6, dtype=torch.long), "at least 1"),
    ):
        with pytest.raises(ValueError, match=told):
            model(IDS, num_steps=wrong)
    with pytest.raises(ValueError, match="sharing='deepest'"), torch.no_grad():
        model(IDS, num_steps=DEPTHS, cache=RecurrentCache("ring:2"))
    other, cache = huginn(n_layers_in_coda=2), model.new_cache()
    with torch.no_grad():
        model(IDS, num_steps=2, cache=cache)
    with pytest.raises(ValueError, match="another model"), torch.no_grad():
        other(IDS, num_steps=2, cache=cache)
    with pytest.raises(ValueError, match="one depth for all"), torch.no_grad():
        model(IDS, num_steps=DEPTHS, cache=DynamicCache())
    model.transformer.gradient_checkpointing = True
    with pytest.raises(ValueError, match="checkpointing"):
        model.train()(IDS, num_steps=DEPTHS)
