"""Huginn in a graph: torch.export, torch.compile(fullgraph=True), and a cache of fixed length.

A graph at fixed depth says what the same call says without one; `aot_eager` traces all and needs no
compiler.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inward.hub import load
from inward.methods.huginn.static import static_cache
from tests.methods.huginn.test_model import build, ids

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
FAMILY = Path("tests/golden/huginn-family")
INPUTS: dict[str, dict[str, Tensor]] = {
    "plain": {},
    "padded": {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])},
    "packed": {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]])},
}
CASES = [
    pytest.param("published", "plain", id="published"),
    *(
        pytest.param(name, kind, marks=pytest.mark.slow, id=f"{name}-{kind}")
        for name, kind in (
            ("published", "padded"),
            ("published", "packed"),
            ("retrofit-llama", "padded"),
            ("branch-sandwich-ffn", "plain"),
        )
    ),
]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    torch.set_num_threads(1)
    names = ("retrofit-llama", "branch-sandwich-ffn")
    return {"published": build(n_layers_in_recurrent_block=1)} | {
        name: load(FAMILY / name) for name in names
    }


@pytest.fixture(autouse=True)
def afresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize(("name", "kind"), CASES)
@torch.no_grad()
def test_an_exported_forward_says_the_same(models, name, kind):
    model, tokens = models[name], ids(2, 7) % 40
    options: dict[str, Any] = {"num_steps": 2, "use_cache": False, **INPUTS[kind]}
    want = model(tokens, **options).logits
    graph = torch.export.export(model, (tokens,), options).module()
    torch.testing.assert_close(graph(tokens, **options).logits, want, **CLOSE)
    other = tokens.roll(1, dims=1)
    torch.testing.assert_close(
        graph(other, **options).logits, model(other, **options).logits, **CLOSE
    )


@pytest.mark.parametrize(("name", "kind"), CASES)
@torch.no_grad()
def test_a_compiled_forward_is_one_graph(models, name, kind):
    model, tokens = models[name], ids(2, 7) % 40
    options: dict[str, Any] = {"num_steps": 2, "use_cache": False, **INPUTS[kind]}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    want = model(tokens, **options).logits
    torch.testing.assert_close(compiled(tokens, **options).logits, want, **CLOSE)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_a_compiled_step_of_training(models):
    """(n, k) recurrences without and with gradient, in one graph."""
    model, tokens = build(3, n_layers_in_recurrent_block=1), ids(2, 7)
    options: dict[str, Any] = {"num_steps": (2, 2), "labels": tokens, "state_seed": 5}
    model(tokens, **options).loss.backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(tokens, **options).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, want[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["published", "retrofit-llama"])
@torch.no_grad()
def test_decoding_with_a_static_cache(models, name):
    """Prompt and tokens one by one are the whole, without a graph and with one for all steps."""
    model, tokens = models[name], ids(2, 9) % 40
    want = model(tokens, num_steps=3, use_cache=False).logits
    for step in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        cache = static_cache(model, 16, num_steps=3, batch_size=2)
        parts = [model(tokens[:, :4], num_steps=3, past_key_values=cache).logits]
        for i in range(4, 9):
            out = step(tokens[:, i : i + 1], num_steps=3, past_key_values=cache)
            parts.append(out.logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), want, **CLOSE)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    pointer = cache.layers[0].keys.data_ptr()  # type: ignore[union-attr]
    model(tokens[:, :1], num_steps=3, past_key_values=cache)
    assert cache.layers[0].keys.data_ptr() == pointer  # type: ignore[union-attr]


@torch.no_grad()
def test_padded_rows_in_a_static_cache(models):
    model, tokens = models["published"], ids(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    cache = static_cache(model, 12, num_steps=2)
    parts = [
        model(tokens[:, :a], attention_mask=mask[:, :a], num_steps=2, past_key_values=cache).logits
        if first
        else model(
            tokens[:, a - 1 : a], attention_mask=mask[:, :a], num_steps=2, past_key_values=cache
        ).logits
        for a, first in ((4, True), (5, False), (6, False))
    ]
    got = torch.cat(parts, dim=1)
    alone = model(tokens[:1, 2:], num_steps=2, use_cache=False).logits
    torch.testing.assert_close(got[:1, 2:], alone, **CLOSE)
    want = model(tokens[1:], num_steps=2, use_cache=False).logits
    torch.testing.assert_close(got[1:], want, **CLOSE)


def test_generate_with_a_static_cache(models):
    model, tokens = models["published"], ids(2, 5)
    mask = torch.tensor([[0, 1, 1, 1, 1], [1] * 5])
    options: dict[str, Any] = {"max_new_tokens": 6, "num_steps": 3, "do_sample": False}
    want = model.generate(tokens, attention_mask=mask, **options)
    got = model.generate(tokens, attention_mask=mask, cache_implementation="static", **options)
    assert got.tolist() == want.tolist()


@torch.no_grad()
def test_what_does_not_fit_a_static_cache(models):
    model = models["published"]
    with pytest.raises(ValueError, match="max_cache_len is 65; it must be at least 1"):
        static_cache(model, 65)
    cache = static_cache(model, 6, num_steps=2)
    model(ids(1, 4), num_steps=2, past_key_values=cache)
    with pytest.raises(ValueError, match="holds 4 of 6 tokens, 3 more do not go in"):
        model(ids(1, 3), num_steps=2, past_key_values=cache)
    with pytest.raises(ValueError, match="3 recurrences need 5"):
        model(ids(1, 1), num_steps=3, past_key_values=cache)
    with pytest.raises(ValueError, match=r"another (model|depth)"):
        model(ids(1, 1), num_steps=1, past_key_values=cache)
