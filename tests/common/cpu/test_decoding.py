"""Attention of few rows on a CPU: the same numbers, less rounded; the model as it was after."""

from typing import Any

import pytest
import torch
import transformers
from transformers import AttentionInterface

from inward.common.bases import cache_of, with_cache
from inward.common.cpu import decoding as cpu_decode
from inward.common.cpu import linears as cpu
from inward.common.cpu.decoding import MOST_ROWS, Decoding, suits
from inward.common.ragged import RaggedCache
from inward.data.thoughts.segments import Latent, Sample
from inward.methods.coconut.generate import generate
from inward.methods.coconut.switch import Scripted
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.tidar import masks
from inward.methods.tidar.batch import Layout, Piece, Runner
from tests.methods.coconut.toys import bot, eot, make_model, text
from tests.methods.tidar.toys import CONTEXT, SHAPE, gpt2, llama, prompts

pytestmark = pytest.mark.versions


def behind_a_prefix(model: Any, num_rows: int, *, num_texts: int = 1) -> torch.Tensor:
    """Logits of some rows behind 11 cached tokens; two blocks of them if there are enough."""
    ids = prompts(num_texts, 11)
    with torch.no_grad():
        cache = with_cache(model, {"cache": cache_of(model(ids, use_cache=True))})
        if num_rows == 1:
            return model(prompts(num_texts, 1, seed=2), **cache).logits
        layout = Layout(num_rows - 2, ((num_rows - 2, 2),))
        mask = masks.additive(masks.after_prefix(layout.tail, 11), model.dtype)
        return model(
            prompts(num_texts, num_rows, seed=2),
            attention_mask=mask,
            position_ids=(layout.offsets + 11)[None],
            **cache,
        ).logits


@pytest.mark.parametrize("build", (llama, gpt2), ids=lambda f: f.__name__)
@pytest.mark.parametrize("num_rows", (1, 3, 8))
@pytest.mark.parametrize("num_texts", (1, 3))
def test_logits_are_those_of_the_usual_call(build, num_rows, num_texts, monkeypatch):
    model, calls = build(), []
    wanted = behind_a_prefix(model, num_rows, num_texts=num_texts)
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        cpu_decode.F,
        "scaled_dot_product_attention",
        lambda *args, **options: (calls.append(options), kernel(*args, **options))[1],
    )
    found = behind_a_prefix(Decoding(model)(num_rows), num_rows, num_texts=num_texts)
    assert torch.allclose(found, wanted, atol=1e-5)
    own = [options for options in calls if "enable_gqa" in options and "dropout_p" not in options]
    assert len(own) == 2, "one a layer, but not for the prompt"
    assert own[0]["enable_gqa"] == (build is llama)


def test_bfloat16_is_rounded_less():
    """The distance of one layer's answer from that in float64."""
    torch.manual_seed(0)
    q = torch.randn(1, 4, 1, 8).bfloat16()
    k, v = torch.randn(2, 1, 2, 500, 8).bfloat16()
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), enable_gqa=True
    ).transpose(1, 2)
    with torch.no_grad():
        found, weights = cpu_decode.attend(module, q, k, v, None)
    assert found.dtype == torch.bfloat16 and found.shape == (1, 1, 4, 8) and weights is None
    assert torch.equal(found, wanted.to(torch.bfloat16))


def test_a_runner_attends_so_and_leaves_the_model_as_it_was():
    seen: list[str] = []
    for dtype, packed, wanted in (
        (torch.float32, None, True),
        (torch.bfloat16, None, True),
        (torch.float32, False, False),
        (torch.float64, None, False),
    ):
        model = llama(max_position_embeddings=4 * CONTEXT).to(dtype)
        layer = model.model.layers[0].self_attn
        layer.register_forward_pre_hook(
            lambda module, args: seen.append(module.config._attn_implementation)
        )
        runner, cache = Runner(model, packed=packed), RaggedCache(1, 100)
        seen.clear()
        with torch.no_grad():
            runner(cache, [Piece(Layout(MOST_ROWS + 1), [1] * (MOST_ROWS + 1))])
            cache.commit([MOST_ROWS + 1])
            runner(cache, [Piece(Layout(3), [1, 2, 3])])
        assert seen == ["sdpa", cpu_decode.NAME if wanted else "sdpa"]
        assert model.config._attn_implementation == "sdpa"
        assert layer.config is model.config is model.model.config


def test_models_that_would_not_notice_are_left_alone():
    assert suits(llama()) and suits(gpt2())
    eager = llama()
    eager.set_attn_implementation("eager")
    own = HuginnForCausalLM(HuginnConfig(vocab_size=8, n_embd=8, num_attention_heads=2))
    assert not suits(eager) and not suits(own)


def test_training_takes_the_usual_call():
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    Decoding(model)(5)(prompts(1, 5), labels=prompts(1, 5)).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("base", ("llama", "gpt2"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_coconut_thinks_and_says_the_same(base, dtype, monkeypatch):
    """Prompts of unequal length, so with padding that nobody may see."""
    monkeypatch.setattr(cpu, "SMALLEST", {})
    coconut, seen = make_model(base), set()
    coconut.base.to(dtype)
    samples = [Sample((text(9, 1),)), Sample((text(3, 2), bot(), Latent(3), eot(), text(2, 3)))]
    script = Scripted((2, 1), ends=range(0, 37, 2))
    options: dict[str, Any] = {"switch": script, "max_new_tokens": 12, "trace": True}
    usual = generate(coconut, samples, packed=False, **options)
    kernel = cpu_decode.attend
    monkeypatch.setitem(
        AttentionInterface._global_mapping,
        cpu_decode.NAME,
        lambda *args, **kwargs: (seen.add(args[1].shape[2]), kernel(*args, **kwargs))[1],
    )
    fast = generate(coconut, samples, **options)
    assert 1 in seen and max(seen) > 1, "prompts and single positions"
    assert fast.thoughts == usual.thoughts and fast.stopped == usual.stopped
    if dtype == torch.float32:
        assert fast.tokens == usual.tokens
    else:  # the first word, before words can part ways
        assert [t[0] for t in fast.tokens] == [t[0] for t in usual.tokens]
    with pytest.raises(ValueError, match="cannot be packed"):
        generate(coconut.to(torch.float64), samples, packed=True, **options)
