"""Packed blocks say what the plain ones say, are made anew when a weight changes, and stay away
from models that they do not suit."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from inward.common import halting
from inward.methods.huginn import cpu as huginn_cpu
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.context import _layout
from inward.methods.huginn.cpu import Packed, packed, suits, unpack
from inward.methods.huginn.generate import context_at, generate, generate_one
from inward.methods.huginn.texts import plan
from tests.methods.huginn.test_generate import random_prompts, small_model

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.05}
DTYPES = list(TOLERANCE)


@pytest.fixture(scope="module", params=DTYPES, ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest):
    torch.set_num_threads(1)
    made = small_model(1).to(request.param)
    if not suits(made):
        pytest.skip("this processor or build of torch has no packed products")
    return made


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    gap = (a.float() - b.float()).norm() / b.float().norm()
    assert gap < TOLERANCE[a.dtype], gap


def both(model, work):
    """What `work` returns on the plain path and on the packed one, which must have been taken."""
    with torch.inference_mode():
        plain = work()
        with packed(model):
            assert isinstance(model.transformer.parts, Packed)
            fast = work()
    assert model.transformer.parts is model.transformer
    return plain, fast


@pytest.mark.parametrize("sharing", ["deepest", "ring:2", "shared"])
def test_prompt_and_tokens_with_a_cache(model, sharing):
    ids = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(0))

    def work():
        cache, out = RecurrentCache(sharing), []
        for part in (ids[:, :5], *ids[:, 5:].split(1, dim=1)):
            said = model(part, past_key_values=cache, num_steps=4)
            out += [said.logits[:, -1], said.latents[:, -1]]
        assert model.dtype == said.logits.dtype
        return torch.cat(out, -1)

    close(*reversed(both(model, work)))


@pytest.mark.parametrize("kind", ["none", "left padding", "4-D", "additive", "packed rows"])
def test_without_a_cache_every_mask_counts(model, kind):
    ids = torch.randint(40, (2, 6), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"use_cache": False, "num_steps": 3}
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    if kind == "left padding":
        options["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    elif kind == "4-D":
        options["attention_mask"] = causal.clone().index_fill_(3, torch.tensor([1]), False)
        options["attention_mask"][..., 1, 1] = True
    elif kind == "additive":
        allowed = causal & (torch.arange(6) != 1) | torch.eye(6, dtype=torch.bool)
        options["attention_mask"] = torch.zeros(1, 1, 6, 6).masked_fill(~allowed, -1e4)
    elif kind == "packed rows":
        options["position_ids"] = torch.tensor([[0, 1, 2, 0, 1, 2]])
    plain, fast = both(model, lambda: model(ids, **options).logits)
    close(fast, plain)
    if kind != "none":  # the mask did something
        free = model(ids, use_cache=False, num_steps=3).logits
        assert (free - plain).abs().max() > 0.01


@pytest.mark.parametrize("width", [3, huginn_cpu.LONG + 5], ids=["gathered", "in place"])
@pytest.mark.parametrize("num", [1, 3])
def test_rows_of_different_length_and_depth(model, width, num):
    """A pass of the engine; rows that look at little are gathered, others attended to in place."""
    lengths = torch.tensor([width, width - 2, width - 1])[:num]
    rows, depth = torch.tensor([2, 0, 3])[:num], torch.tensor([1, 0, 2])[:num]
    generator = torch.Generator().manual_seed(0)
    s, e = (torch.randn(num, 1, 32, generator=generator).to(model.dtype) for _ in range(2))

    def work():
        cache = RecurrentCache("deepest", num_rows=4, num_recurrences=3, capacity=width + 1)
        cache._bind(4, _layout(model.config, e), None)
        filling = torch.Generator().manual_seed(1)
        cache.store = [torch.randn(t.shape, generator=filling).to(t.dtype) for t in cache.store]
        context = context_at(model, cache, rows, lengths)
        out = model.iterate(s, e, context, recurrence=depth if num > 1 else int(depth))
        written = torch.stack([store[:, depth, rows, :, lengths] for store in cache.store[-2:]])
        return torch.cat([out.flatten(), written.flatten()])

    plain, fast = both(model, work)
    close(fast, plain)


OPTIONS: dict[str, dict[str, Any]] = {
    "never": {},
    "kl": {"halt": halting.KL(0.1)},
    "latent, shared": {"halt": halting.LatentChange(0.3), "sharing": "shared"},
    "warm": {"halt": halting.KL(0.1), "warm": "raw"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_texts_of_the_packed_engine_are_those_of_the_plain_loop(name):
    torch.set_num_threads(1)
    model = small_model(1)
    if not suits(model):
        pytest.skip("no packed products here")
    prompts = random_prompts([3, 9, 110, 105, 100, 5], seed=4)
    options: dict[str, Any] = {"max_new_tokens": 8, "max_steps": 8, "eos_token_id": ()}
    model.config.block_size = 128
    options |= OPTIONS[name]
    chosen = plan(model, **options)
    alone = [generate_one(model, prompt, chosen, i) for i, prompt in enumerate(prompts)]
    for sizes in ((1, 1), (4, 6)):
        out = generate(
            model, prompts, batch_size=sizes[0], in_flight=sizes[1], packed=True, **options
        )
        assert out.answers == [text.tokens for text in alone]
        assert [row.tolist() for row in out.steps] == [text.steps for text in alone]


def test_a_changed_weight_is_packed_anew_and_an_unchanged_one_is_not():
    model = small_model(0)
    ids = torch.tensor([[1, 2, 3]])

    def logits() -> torch.Tensor:
        with packed(model), torch.inference_mode():
            return model(ids, num_steps=2, use_cache=False).logits

    before, kept = logits(), huginn_cpu._packed(model)
    assert huginn_cpu._packed(model) is kept
    with torch.no_grad():
        model.get_parameter("transformer.core_block.0.mlp.fc.weight").mul_(1.5)
    after = logits()
    assert huginn_cpu._packed(model) is not kept and (after - before).abs().max() > 1e-3
    model.load_state_dict(small_model(3).state_dict())
    with torch.inference_mode():
        close(logits(), model(ids, num_steps=2, use_cache=False).logits)
    copied = copy.deepcopy(model)
    assert copied not in huginn_cpu._KEPT
    unpack(model)
    assert model not in huginn_cpu._KEPT


def test_gradients_take_the_plain_path():
    model = small_model(0)
    with packed(model):
        out = model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]]), num_steps=2)
        out.loss.backward()
    assert model.transformer.adapter.weight.grad is not None


def test_models_that_do_not_suit():
    class Other(nn.Linear):
        pass

    model = small_model(0)
    assert suits(model)
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    assert not suits(model)
    handle.remove()
    assert suits(model)
    model.transformer.adapter = Other(64, 32, bias=False)
    assert not suits(model)
    with packed(model):
        assert model.transformer.parts is model.transformer
    with (
        pytest.raises(ValueError, match=r"cannot be packed.*packed=None"),
        packed(model, wanted=True),
    ):
        pass
    assert not suits(small_model(0).double())


def test_a_large_model_is_packed_only_if_that_is_asked_for(monkeypatch):
    model = small_model(0)
    monkeypatch.setattr(huginn_cpu, "LIMIT_BYTES", 10)
    with packed(model), torch.inference_mode():
        assert model.transformer.parts is model.transformer
    with packed(model, wanted=True), torch.inference_mode():
        assert isinstance(model.transformer.parts, Packed)
        with packed(model, wanted=False):
            assert model.transformer.parts is model.transformer
        assert isinstance(model.transformer.parts, Packed)
