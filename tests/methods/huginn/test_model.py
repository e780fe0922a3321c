"""Huginn from outside is an ordinary causal LM: batches, padding, masks, caches, generation.

Every equality is checked at several depths, because a wrong slot, position or mask may show only
from the second recurrence on.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, StaticCache, pipeline

from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.huginn.noise import truncated_normal, uniform_at

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
DEPTHS = (1, 2, 5)
SMALL: dict[str, Any] = {
    "n_embd": 32,
    "n_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 50,
    "block_size": 64,
    "n_layers_in_prelude": 1,
    "n_layers_in_recurrent_block": 2,
    "n_layers_in_coda": 1,
    "mean_recurrence": 5,
    "mean_backprop_depth": 2,
}


def build(seed: int = 0, **changes: Any) -> Any:
    """A small model none of whose gains and biases sits at its initial value."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = HuginnForCausalLM(HuginnConfig(**(SMALL | changes))).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.3 if p.ndim != 2 else 0.1))
    return model


def ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(
        1, SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(seed)
    )


# --------------------------------------------------------------------------------------------------
# Batches, padding, masks


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("r", DEPTHS)
@torch.no_grad()
def test_batched_and_padded_is_single_and_unpadded(r, side):
    """The initial state goes with the token: seeds of rows and positions, not places in a batch."""
    model, lengths = build(), (9, 4, 1)
    seeds = torch.tensor([5, 6, 7])
    rows = [ids(1, n, seed=n) for n in lengths]
    batch, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for b, row in enumerate(rows):
        at = slice(9 - lengths[b], 9) if side == "left" else slice(0, lengths[b])
        batch[b, at], mask[b, at] = row, 1
    out = model(batch, attention_mask=mask, num_steps=r, state_seed=seeds, output_states=True)
    for b, row in enumerate(rows):
        alone = model(row, num_steps=r, state_seed=seeds[b : b + 1], output_states=True)
        real = mask[b].bool()
        torch.testing.assert_close(out.logits[b, real], alone.logits[0], **CLOSE)
        for mine, theirs in zip(out.states, alone.states, strict=True):
            torch.testing.assert_close(mine[b, real], theirs[0], **CLOSE)
    assert out.logits.isfinite().all()


@pytest.mark.parametrize("r", DEPTHS)
@torch.no_grad()
def test_four_dimensional_masks(r):
    model, x = build(), ids(2, 8)
    plain = model(x, num_steps=r).logits
    may = torch.ones(8, 8, dtype=torch.bool).tril()[None, None]
    additive = torch.zeros(2, 1, 8, 8).masked_fill(~may, -torch.inf)
    per_head = may.expand(2, 4, 8, 8)
    for mask in (may, additive, per_head):
        got = model(x, attention_mask=mask, num_steps=r).logits
        torch.testing.assert_close(got, plain, **CLOSE)
    # it says everything: tokens may be told to look ahead, too
    both = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    seen = model(x, attention_mask=both, num_steps=r).logits
    assert (seen[:, 0] - plain[:, 0]).abs().max() > 1e-3
    # the order of the tokens is then in their positions alone
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    moved = model(x[:, order], attention_mask=both, position_ids=order[None], num_steps=r).logits
    torch.testing.assert_close(moved, seen[:, order], **CLOSE)


@pytest.mark.parametrize("r", DEPTHS)
@torch.no_grad()
def test_packed_rows_are_separate_texts(r):
    model = build()
    packing = ((3, 5), (6, 2))
    texts = [[ids(1, n, seed=n) for n in row] for row in packing]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in packing])
    packed = torch.stack([torch.cat(row, dim=1)[0] for row in texts])
    out = model(packed, position_ids=positions, num_steps=r).logits
    for b, row in enumerate(texts):
        alone = torch.cat([model(text, num_steps=r).logits[0] for text in row])
        torch.testing.assert_close(out[b], alone, **CLOSE)


@torch.no_grad()
def test_embeddings_enter_as_they_are():
    model, x = build(), ids(2, 6)
    embedded = model.get_input_embeddings()(x)
    torch.testing.assert_close(embedded, model.transformer.wte.weight[x] * 32**0.5)
    assert torch.equal(model(inputs_embeds=embedded).logits, model(x).logits)


@torch.no_grad()
def test_logits_to_keep():
    model, x = build(), ids(2, 6)
    full = model(x).logits
    assert torch.equal(model(x, logits_to_keep=2).logits, full[:, -2:])
    where = torch.tensor([0, 4])
    assert torch.equal(model(x, logits_to_keep=where).logits, full[:, where])


def test_labels_are_those_of_transformers():
    model, x = build(), ids(2, 6)
    labels = x.clone()
    labels[0, 3] = -100
    out = model(x, labels=labels)
    log_p = out.logits[:, :-1].log_softmax(-1).gather(-1, x[:, 1:, None])[..., 0]
    counted = labels[:, 1:] != -100
    torch.testing.assert_close(out.loss, -log_p[counted].mean())
    summed = model(x, labels=labels, num_items_in_batch=3).loss
    torch.testing.assert_close(summed, -log_p[counted].sum() / 3)
    assert isinstance(model(x, return_dict=False), tuple)


# --------------------------------------------------------------------------------------------------
# The state


@torch.no_grad()
def test_states_after_every_recurrence():
    model, x = build(), ids(2, 6)
    s = torch.randn(2, 6, 32)
    out = model(x, num_steps=4, state=s, output_states=True, output_hidden_states=True)
    e, context = model.embed(x)
    assert len(out.states) == 4
    for i, state in enumerate(out.states):
        s = model.iterate(s, e, context, recurrence=i)
        assert torch.equal(s, state)
        latents, logits = model.read_out(s, context)
        assert torch.equal(
            logits, model(x, num_steps=i + 1, state=torch.zeros(2, 6, 32)).logits
        ) is (False)
    assert torch.equal(latents, out.latents) and torch.equal(logits, out.logits)
    seen = out.hidden_states
    assert len(seen) == 1 + 2 * 4 + 1 + 1  # a prelude, four times two, a coda; the inputs before
    assert torch.equal(seen[0], model.get_input_embeddings()(x)) and torch.equal(seen[1], e)
    assert all(map(torch.equal, seen[3:10:2], out.states))
    assert torch.equal(model.lm_head(seen[-1]), out.logits)


def test_the_initial_state_is_a_cut_normal():
    model = build(n_embd=128, block_size=4096)
    e = torch.zeros(1, 3000, 128)
    drawn = model.initial_state(e, generator=torch.Generator().manual_seed(0))
    for s in (model.initial_state(e, seed=3), drawn):
        assert s.std().item() == pytest.approx(0.624, abs=2e-3)
        assert abs(s.mean().item()) < 3e-3
        assert 1.88 < s.abs().max().item() <= 3 * 0.4**0.5 + 1e-6
        flat = s[0] - s.mean()
        assert (flat[1:] * flat[:-1]).mean().abs() < 2e-3  # neighbours in position
        assert (flat[:, 1:] * flat[:, :-1]).mean().abs() < 2e-3  # and in channel
    quantiles = truncated_normal(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(quantiles, torch.tensor([-3.0, 0.0, 3.0]), atol=1e-4, rtol=0)


def test_noise_belongs_to_seed_and_position():
    positions = torch.tensor([[0, 1, 2, 3]])
    noise = uniform_at(7, positions, 16)
    assert noise.min() > 0 and noise.max() < 1
    assert torch.equal(uniform_at(7, positions[:, 2:], 16), noise[:, 2:])
    assert torch.equal(uniform_at(torch.tensor([9, 7]), positions, 16)[1:], noise)
    assert not torch.equal(uniform_at(8, positions, 16), noise)
    assert len(noise.unique()) == noise.numel()


@torch.no_grad()
def test_which_state_a_call_starts_from():
    model, x = build(), ids(1, 5)

    def logits(**options) -> Tensor:
        return model(x, num_steps=1, **options).logits

    def drawn(seed: int) -> Tensor:
        return logits(generator=torch.Generator().manual_seed(seed))

    assert torch.equal(logits(), logits(state_seed=0))
    assert not torch.equal(logits(), logits(state_seed=1))
    assert torch.equal(drawn(3), drawn(3)) and not torch.equal(drawn(3), drawn(4))
    zero = logits(state=torch.zeros(1, 5, 32))
    model.config.state_init = "zero"
    assert torch.equal(logits(), zero)
    model.config.state_init = "like-init"
    model.train()
    assert not torch.equal(logits(), logits())
    torch.manual_seed(1)
    first = logits()
    torch.manual_seed(1)
    assert torch.equal(logits(), first)


# --------------------------------------------------------------------------------------------------
# Gradients


def gradients(model: Any, **options: Any) -> dict[str, Tensor]:
    model.zero_grad()
    x = ids(2, 6)
    model(x, labels=x, state_seed=0, **options).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_goes_through_the_last_k_recurrences():
    model, x = build(), ids(2, 6)
    got = gradients(model, num_steps=(3, 2))
    model.zero_grad()
    e, context = model.embed(x)
    with torch.no_grad():
        s = model.initial_state(e, positions=context.positions)
        for i in range(3):
            s = model.iterate(s, e, context, recurrence=i)
    for i in (3, 4):
        s = model.iterate(s, e, context, recurrence=i)
    _, logits = model.read_out(s, context)
    model.loss_function(logits, x, model.config.vocab_size).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad)
    full = gradients(model, num_steps=5)
    assert not torch.allclose(full["transformer.adapter.weight"], got["transformer.adapter.weight"])
    model.train()
    model.config.sampling_scheme = "fixed"
    torch.testing.assert_close(gradients(model), got)  # mean_recurrence 5, mean_backprop_depth 2


OLD_NAMES = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)
"""gradient_checkpointing_enable and what PEFT asks got other names, which older versions lack."""


@OLD_NAMES
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_plain_gradients(reentrant):
    model = build().train()
    plain = gradients(model, num_steps=(2, 3))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    model.transformer.adapter.register_forward_hook(count)
    got = gradients(model, num_steps=(2, 3))
    assert calls == 2 + 3 + 3  # those with gradient run again, one recurrence at a time
    assert got.keys() == plain.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(got[name], grad, msg=name)
    with pytest.raises(ValueError, match="cache and gradient checkpointing exclude"):
        model(ids(1, 3), use_cache=True)


def test_autocast_keeps_no_weight_of_the_prefix(monkeypatch):
    """PyTorch issue 65766: a weight that autocast cast without a graph, used again with one, gets
    no gradient. Not every version does so: that the cast weights are dropped is checked by itself.
    """
    model, events = build(), []

    def grads(cache_enabled: bool) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache_enabled):
            return gradients(model, num_steps=(2, 2))

    careful = grads(False)
    clear = torch.clear_autocast_cache
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (events.append("drop"), clear()))
    model.transformer.adapter.register_forward_hook(lambda *_: events.append("core"))
    plain = grads(True)
    assert events[:5] == ["core", "core", "drop", "core", "core"]
    assert plain.keys() == careful.keys() == dict(model.named_parameters()).keys()
    for name, grad in careful.items():
        # a cast weight that is used twice gathers its gradient in bfloat16
        assert (plain[name] - grad).norm() < 0.02 * grad.norm(), name


# --------------------------------------------------------------------------------------------------
# Caches


@pytest.mark.parametrize(
    "make", [RecurrentCache, DynamicCache, lambda: RecurrentCache("per-depth")]
)
@pytest.mark.parametrize("r", DEPTHS)
@torch.no_grad()
def test_cached_is_uncached(r, make):
    model, x = build(), ids(2, 12)
    full = model(x, num_steps=r, output_states=True)
    for cuts in ((12,), (5, 1, 1, 4, 1), (1,) * 12):
        cache, logits, done = make(), [], 0
        for n in cuts:
            part = x[:, done : done + n]
            out = model(part, past_key_values=cache, num_steps=r, output_states=True)
            logits.append(out.logits)
            torch.testing.assert_close(out.states[-1], full.states[-1][:, done : done + n], **CLOSE)
            done += n
        torch.testing.assert_close(torch.cat(logits, 1), full.logits, **CLOSE)
        assert out.past_key_values is cache and cache.get_seq_length() == 12
        cache.crop(-4)
        again = model(x[:, 8:], past_key_values=cache, num_steps=r).logits
        torch.testing.assert_close(again, full.logits[:, 8:], **CLOSE)


@pytest.mark.parametrize("r", DEPTHS)
@torch.no_grad()
def test_a_mask_after_a_cache(r):
    """A block of tokens that see each other and the past, then a causal token: both by 4-D mask."""
    model, x = build(), ids(1, 9)
    may = torch.ones(9, 9, dtype=torch.bool).tril()
    may[4:8, 4:8] = True
    want = model(x, attention_mask=may[None, None], num_steps=r).logits
    cache = RecurrentCache()
    model(x[:, :4], past_key_values=cache, num_steps=r)
    for first, end in ((4, 8), (8, 9)):
        mask = may[None, None, first:end, :end]
        out = model(x[:, first:end], attention_mask=mask, past_key_values=cache, num_steps=r)
        torch.testing.assert_close(out.logits, want[:, first:end], **CLOSE)


def test_gradients_through_a_growing_cache():
    """With use_cache and gradients the model takes the cache that keeps them."""
    model, x = build(), ids(1, 8)
    model(x, num_steps=3, state_seed=0).logits[:, 4:].sum().backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    first = model(x[:, :4], num_steps=3, state_seed=0, use_cache=True)
    rest = model(x[:, 4:], num_steps=3, state_seed=0, past_key_values=first.past_key_values)
    rest.logits.sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, want[name], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="keeps no gradients"):
        model(x, past_key_values=RecurrentCache())


# --------------------------------------------------------------------------------------------------
# Generation and the tools around it


def slow_greedy(model: Any, prompt: Tensor, new: int, r: int) -> list[int]:
    for _ in range(new):
        logits = model(prompt, num_steps=r).logits[:, -1]
        prompt = torch.cat([prompt, logits.argmax(-1, keepdim=True)], dim=1)
    return prompt[0].tolist()


@pytest.mark.parametrize("r", DEPTHS)
@torch.no_grad()
def test_generate_is_the_slow_way(r):
    model = build()
    options = {"num_steps": r, "do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    prompts = [ids(1, n, seed=n) for n in (3, 6)]
    want = [slow_greedy(model, prompt, 8, r) for prompt in prompts]
    for prompt, tokens in zip(prompts, want, strict=True):
        for more in ({}, {"use_cache": False}, {"past_key_values": DynamicCache()}):
            assert model.generate(prompt, **options, **more)[0].tolist() == tokens
        looked_up = model.generate(prompt, **options, prompt_lookup_num_tokens=2)
        assert looked_up[0].tolist() == tokens  # it rolls the cache back
    batch = torch.zeros(2, 6, dtype=torch.long)
    batch[0, 3:], batch[1] = prompts[0], prompts[1]
    out = model.generate(batch, attention_mask=(batch != 0).long(), **options)
    assert [out[0, 3:].tolist(), out[1].tolist()] == want
    embedded = model.get_input_embeddings()(prompts[1])
    out = model.generate(inputs_embeds=embedded, **options)
    assert out[0].tolist() == want[1][6:]


def test_beams_and_samples():
    model, prompt = build(), ids(2, 4)
    options = {"num_steps": 2, "max_new_tokens": 5, "pad_token_id": 0}
    beams = model.generate(prompt, num_beams=3, do_sample=False, **options)
    plain = model.generate(prompt, num_beams=3, do_sample=False, use_cache=False, **options)
    assert torch.equal(beams, plain)
    out = model.generate(prompt, do_sample=True, num_return_sequences=2, **options)
    assert out.shape == (4, 9)


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(SMALL["vocab_size"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="w0", padding_side="left")


def test_pipeline():
    model = build()
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer(), device="cpu")
    options = {"do_sample": False, "max_new_tokens": 4, "num_steps": 3}
    texts = ["w3 w4 w5", "w9"]
    alone = [pipe(text, **options)[0]["generated_text"] for text in texts]
    want = model.generate(torch.tensor([[3, 4, 5]]), pad_token_id=0, **options)
    assert alone[0].replace(" ", "") == str(tokenizer().decode(want[0])).replace(" ", "")
    together = pipe(texts, batch_size=2, **options)
    assert [row[0]["generated_text"] for row in together] == alone


@OLD_NAMES
def test_low_rank_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    model, x = build(), ids(2, 6)
    with torch.no_grad():
        before = model(x).logits
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["Wqkv", "fc", "adapter", "attn.proj"]
    )
    adapted = peft.get_peft_model(model, settings).train()
    adapted.gradient_checkpointing_enable()
    adapted.enable_input_require_grads()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        adapted(input_ids=x, labels=x, num_steps=(2, 2)).loss.backward()
        optimizer.step()
    adapted.eval()
    with torch.no_grad():
        after = adapted(input_ids=x).logits
    assert (after - before).abs().max() > 1e-4
    tokens = adapted.generate(input_ids=x, num_steps=2, max_new_tokens=3, pad_token_id=0)
    assert tokens.shape == (2, 9)
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(build(), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=x).logits, after)
        torch.testing.assert_close(again.merge_and_unload()(x).logits, after, **CLOSE)


def test_a_larger_vocabulary_keeps_the_scale():
    model, x = build(), ids(2, 6)
    with torch.no_grad():
        before = model(x).logits
        model.resize_token_embeddings(57, mean_resizing=False)
        after = model(x).logits
    assert after.shape[-1] == model.config.vocab_size == 57
    assert model.lm_head.weight is model.transformer.wte.weight
    torch.testing.assert_close(after[..., :50], before)


@torch.no_grad()
def test_flops_are_those_that_are_counted():
    model = build()
    measured = []
    for r in (1, 2):
        cache = RecurrentCache()
        model(ids(1, 9), num_steps=r, past_key_values=cache)
        # only the plain kernel's products are counted on a CPU
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(ids(1, 1), num_steps=r, past_key_values=cache)
        measured.append(counter.get_total_flops())
    recurrence, rest = model.flops(context=10)
    assert measured == [recurrence + rest, 2 * recurrence + rest]


# --------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_steps": 0}, "num_steps is 0: the depth must be a whole number of at least 1"),
        ({"num_steps": -3}, "num_steps is -3"),
        ({"num_steps": 2.5}, "num_steps is 2.5"),
        ({"num_steps": (0, 0)}, "at least 1"),
        ({"num_steps": (3, -1)}, "at least 1"),
        ({"num_steps": (1, 2, 3)}, "recurrences without, with gradient"),
        (
            {"state": torch.zeros(2, 5, 32)},
            r"state of shape \(2, 5, 32\); s_0 must be \(2, 6, 32\)",
        ),
        ({"attention_mask": torch.ones(2, 5)}, r"must be \(2, 6\)"),
        ({"attention_mask": torch.ones(2, 6, 6)}, r"attention_mask of shape \(2, 6, 6\)"),
        ({"attention_mask": torch.ones(2, 1, 6, 6, dtype=torch.long)}, "torch.int64"),
        ({"attention_mask": torch.ones(2, 1, 6, 5, dtype=torch.bool)}, r"\(2, 1, 6, 5\)"),
        ({"position_ids": torch.arange(5)[None]}, r"position_ids of shape \(1, 5\)"),
        (
            {"position_ids": torch.arange(60, 66)[None]},
            "60 to 65 leave the context: block_size is 64",
        ),
        ({"position_ids": torch.arange(-1, 5)[None]}, "positions -1 to 4"),
        ({"inputs_embeds": torch.zeros(2, 6, 32)}, "either input_ids or inputs_embeds"),
        (
            {"past_key_values": StaticCache(config=HuginnConfig(**SMALL), max_cache_len=9)},
            r"has 4 layers, 5 recurrences need 12; pass .*an empty DynamicCache\(\)",
        ),
    ],
)
def test_calls_that_cannot_be_meant(options, told):
    model = build()
    ran = []
    model.transformer.prelude[0].register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=told):
        model(ids(2, 6), **options)
    assert not ran, "nothing is computed before the checks"


def test_more_calls_that_cannot_be_meant():
    model = build()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match=r"inputs of shape \(6,\)"):
        model(ids(6))
    with pytest.raises(ValueError, match=r"inputs_embeds \(batch, length, 32\)"):
        model(inputs_embeds=torch.zeros(1, 3, 31))
    with pytest.raises(ValueError, match="leave the context"):
        model(ids(1, 65))
    with pytest.raises(TypeError, match="num_step"):
        model(ids(1, 3), num_step=3)
    with pytest.raises(ValueError, match="use state_seed"):
        model.generate(ids(1, 3), state=torch.zeros(1, 3, 32), max_new_tokens=2)
    with pytest.raises(ValueError, match="num_stepz"):
        model.generate(ids(1, 3), num_stepz=2, max_new_tokens=2)


@torch.no_grad()
def test_caches_of_another_model_or_depth():
    x = ids(1, 4)
    for make in (RecurrentCache, DynamicCache):
        cache = make()
        build(n_heads=2)(x, num_steps=2, past_key_values=cache)
        with pytest.raises(ValueError, match="belongs to another model"):
            build()(x, num_steps=2, past_key_values=cache)
    cache = DynamicCache()
    build()(x, num_steps=2, past_key_values=cache)
    for r in (1, 3):
        with pytest.raises(ValueError, match="depth"):
            build()(x, num_steps=r, past_key_values=cache)
    cache = RecurrentCache()
    build()(x, num_steps=2, past_key_values=cache)
    with pytest.raises(ValueError, match="holds 1 rows, the batch has 2"):
        build()(ids(2, 4), past_key_values=cache)
