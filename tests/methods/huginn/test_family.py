"""The Huginn family: the same numbers as the authors' modules on every folder of
tests/golden/huginn-family (made by tests/golden/make_huginn_family.py), and on each of them what
is promised of the published model: cached is full, batched is single, packed is plain, costs are
counted, training and files work."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from inward.common.draws import Draws
from inward.hub import load
from inward.methods.huginn import blocks, cpu, fields, norms, states
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.generate import generate
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.huginn.retrofit import difference, kept_layers, retrofit
from tests.methods.huginn.test_model import SMALL

FOLDERS = sorted(p.parent for p in Path("tests/golden/huginn-family").glob("*/config.json"))
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
Variant = tuple[dict[str, Tensor], Any]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def variant(request: pytest.FixtureRequest) -> Variant:
    torch.set_num_threads(1)
    return load_file(request.param / "reference.safetensors"), load(request.param)


def test_the_variants():
    assert {folder.name for folder in FOLDERS} == {
        "prenorm-gqa",
        "sandwich-untied",
        "postnorm-add",
        "sandwich-bare-norm",
        "branch-sandwich-ffn",
        "branch-gate-layernorm",
        "prenorm-qk-norm",
        "retrofit-llama",
        "retrofit-olmo",
    }


def test_every_name_of_a_configuration_is_built():
    """The names that a configuration may say, and the tables of what is built."""
    assert set(fields.NAMES["block_class_name"]) == set(blocks.BLOCKS)
    assert set(fields.NAMES["mlp_class_name"]) == set(blocks.MLPS)
    assert set(fields.NAMES["nonlin_name"]) == set(blocks.NONLINEAR)
    assert set(fields.NAMES["norm_class_name"]) == set(norms.NORMS)
    assert set(fields.NAMES["injection_type"]) == set(states.INJECTIONS) == set(states.ADAPTERS)
    assert set(fields.NAMES["state_init"]) == set(states.DRAWN | states.FIXED)


@pytest.mark.parametrize("r", [1, 4])
@torch.no_grad()
def test_logits_of_the_authors_module(variant, r):
    values, model = variant
    out = model(values["input_ids"], num_steps=r, state=values["input_states"])
    torch.testing.assert_close(out.logits, values[f"logits.r{r}"], **CLOSE)
    if f"latents.r{r}" in values:
        torch.testing.assert_close(out.latents, values[f"latents.r{r}"], **CLOSE)


def test_loss_and_gradients_of_the_authors_module(variant):
    values, model = variant
    if "loss.n1k2" not in values:
        pytest.skip("made for inference alone")
    model.zero_grad()
    ids, labels = values["input_ids"][:, :-1], values["input_ids"].clone()
    labels[:, 0] = -100  # theirs are shifted
    out = model(ids, num_steps=(1, 2), state=values["input_states"][:, :-1])
    loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(loss, values["loss.n1k2"], **CLOSE)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    told = {name for name in values if name.startswith("grad.")}
    assert told
    for name in told:
        grad = found[name.removeprefix("grad.n1k2.")]
        norm = torch.zeros(()) if grad is None else grad.norm()
        torch.testing.assert_close(norm, values[name], rtol=1e-4, atol=1e-5)
    model.zero_grad()


@torch.no_grad()
def test_cached_is_full(variant):
    values, model = variant
    ids = values["input_ids"]
    for r in (1, 3):
        full = model(ids, num_steps=r).logits
        for cache in (DynamicCache(), RecurrentCache("per-depth"), RecurrentCache("deepest")):
            parts = [
                model(ids[:, a:b], num_steps=r, past_key_values=cache).logits
                for a, b in ((0, 5), (5, 8), (8, 9))
            ]
            torch.testing.assert_close(torch.cat(parts, dim=1), full, **CLOSE)


@torch.no_grad()
def test_batched_and_padded_is_single(variant):
    values, model = variant
    ids = values["input_ids"][:, :6].clone()
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    alone = model(ids[:1, 2:], num_steps=3).logits
    together = model(ids, attention_mask=mask, num_steps=3).logits
    torch.testing.assert_close(together[:1, 2:], alone, **CLOSE)
    torch.testing.assert_close(together[1:], model(ids[1:], num_steps=3).logits, **CLOSE)


@torch.no_grad()
def test_eager_attention_is_the_kernel(variant):
    values, model = variant
    want = model(values["input_ids"], num_steps=2).logits
    model.set_attn_implementation("eager")
    try:
        out = model(values["input_ids"], num_steps=2, output_attentions=True)
    finally:
        model.set_attn_implementation("sdpa")
    torch.testing.assert_close(out.logits, want, **CLOSE)
    assert out.attentions[0].shape == (2, model.config.n_heads, 9, 9)


def test_generation_rows_are_alone_and_packed_is_plain(variant):
    """Ragged prompts, an exit rule, rows that come and go; the packed engine where there is one."""
    values, model = variant
    prompts = [values["input_ids"][0, :7], values["input_ids"][1, :3], values["input_ids"][1]]
    options: dict[str, Any] = {"max_new_tokens": 5, "max_steps": 4, "halt": "latent"}
    plain = generate(model, prompts, **options, packed=False, batch_size=2)
    for row, prompt in enumerate(prompts):
        alone = generate(model, prompt[None], **options, packed=False)
        assert alone.tokens[0].tolist() == plain.tokens[row].tolist()
    auto = generate(model, prompts, **options, batch_size=2)
    assert [t.tolist() for t in auto.tokens] == [t.tolist() for t in plain.tokens]
    assert [s.tolist() for s in auto.steps] == [s.tolist() for s in plain.steps]


UNPACKED = {"GatedMLPSeparated", "HalfGateMLP"}


@torch.no_grad()
def test_packed_forwards(variant):
    values, model = variant
    if model.config.mlp_class_name in UNPACKED:
        assert not cpu.suits(model)
        with pytest.raises(ValueError, match="cannot be packed"), cpu.packed(model, wanted=True):
            pass
        return
    want = model(values["input_ids"], num_steps=4, state=values["input_states"]).logits
    with cpu.packed(model, wanted=True):
        got = model(values["input_ids"], num_steps=4, state=values["input_states"]).logits
        torch.testing.assert_close(got, want, **CLOSE)
        cache = RecurrentCache()
        parts = [
            model(
                values["input_ids"][:, a:b],
                num_steps=4,
                state=values["input_states"][:, a:b],
                past_key_values=cache,
            ).logits
            for a, b in ((0, 7), (7, 8), (8, 9))
        ]
        torch.testing.assert_close(torch.cat(parts, dim=1), want, **CLOSE)


@torch.no_grad()
def test_flops_are_those_that_run(variant):
    values, model = variant
    ids = values["input_ids"][:1, :8]
    # only this kernel's products are counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids, num_steps=3, use_cache=False)
    counted = counter.get_total_flops()
    said = model.forward_cost(rows=8, past=0, reads=8, num_steps=3).flops
    # what is counted is full attention, 8 x 8 a head; said is causal
    heads = 4 * model.config.n_embd * (sum(model.config.layers[::2]) + 3 * model.config.layers[1])
    assert said + heads * (64 - 36) == counted


@torch.no_grad()
def test_bytes_of_keys_and_values(variant):
    _, model = variant
    G, H = model.config.num_key_value_heads, model.config.head_dim
    cache = RecurrentCache(capacity=64)
    model(torch.ones(1, 4, dtype=torch.long), num_steps=2, past_key_values=cache)
    assert cache.store[0].shape == (2, 1, 1, G, 64, H)
    assert cache.bytes_per_token(2) == (2 + 2 * 2) * 2 * G * H * 4


def test_a_step_of_training_lowers_the_loss(variant):
    values, model = variant
    model = HuginnForCausalLM(model.config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    ids = values["input_ids"]
    losses = []
    for step in range(20):
        loss = model(ids, labels=ids, num_steps=(1, 2), state_seed=step).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    batch = {"input_ids": ids, "labels": ids}
    assert math.isfinite(model.loss(batch, None, Draws(0, 0, range(2), 2)).total.item())


def test_files_come_back(variant, tmp_path):
    values, model = variant
    model.save_pretrained(tmp_path)
    row = json.loads((tmp_path / "config.json").read_text())
    for again in (load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()):
        with torch.no_grad():
            got = again(values["input_ids"], num_steps=2).logits
            assert torch.equal(got, model(values["input_ids"], num_steps=2).logits)
        ours = {k: v for k, v in again.config.to_dict().items() if k in fields.PUBLISHED}
        assert ours == {k: v for k, v in model.config.to_dict().items() if k in fields.PUBLISHED}
    assert "rope_theta" not in row


# --------------------------------------------------------------------------------------------------
# Initial states, initialisation


@pytest.mark.parametrize(
    ("kind", "mean", "deviation"),
    [("normal", 0.0, 1.0), ("embed", 0.0, 1 / 16), ("unit", 0.0, 1.0), ("like-init", 0.0, 0.624)],
)
def test_the_law_of_initial_states(kind, mean, deviation):
    """As drawn by `initialize_state` of the authors' model_dynamic.py; at +-3 sigma a like-init
    state of sigma sqrt(2/5) is cut."""
    sizes: dict[str, Any] = SMALL | {"n_embd": 256, "block_size": 4096}
    model: Any = HuginnForCausalLM(HuginnConfig(**sizes, state_init=kind))
    e = torch.randn(2, 400, 256)
    for drawn in (
        model.initial_state(e, seed=3),
        model.initial_state(e, generator=torch.Generator().manual_seed(1)),
    ):
        assert drawn.mean().item() == pytest.approx(mean, abs=0.01)
        assert drawn.std().item() == pytest.approx(deviation, rel=0.01)
        assert drawn.isfinite().all()
    if kind == "unit":
        deviations, means = torch.std_mean(drawn, dim=-1)
        torch.testing.assert_close(means, torch.zeros(2, 400), atol=1e-6, rtol=0)
        torch.testing.assert_close(deviations, torch.ones(2, 400), atol=1e-5, rtol=0)


def test_a_state_that_is_the_input():
    model: Any = HuginnForCausalLM(HuginnConfig(**SMALL, state_init="input"))
    e = torch.randn(1, 3, 32)
    assert torch.equal(model.initial_state(e), e)


def test_orthogonal_initialisation():
    """Each part of a fused matrix has orthogonal rows or columns of the deviation asked for."""
    sizes: dict[str, Any] = SMALL | {"n_embd": 64, "intermediate_size": 96}
    config = HuginnConfig(**sizes, init_orthogonal=True, init_strategy="scaled")
    model: Any = HuginnForCausalLM(config)
    block = model.transformer.core_block[0]
    for weight, sigma in (
        *((part, config.init_std) for part in block.attn.Wqkv.weight.split(64)),
        *((part, config.init_std) for part in block.mlp.fc.weight.split(96)),
        (block.mlp.proj.weight, config.init_std_out),
    ):
        small = weight if weight.shape[0] <= weight.shape[1] else weight.T
        want = sigma**2 * max(weight.shape) * torch.eye(len(small))
        torch.testing.assert_close(small @ small.T, want, atol=1e-5, rtol=1e-4)
    assert model.transformer.wte.embed_scale == 1.0


# --------------------------------------------------------------------------------------------------
# Retrofitted models


def test_fields_of_retrofitted_models():
    """Their config.json is a copy of the published one in which rope_base, block_size and the
    blocks' name are left over; their module reads other fields."""
    model: Any = load(FOLDERS[0].parent / "retrofit-llama")
    config = model.config
    assert (config.rope_base, config.block_size, config.embed_scale) == (5000.0, 64, 1.0)
    assert (config.block_class_name, config.qk_norm) == ("TransformerPreNormBlock", False)
    assert config.init_std == pytest.approx(0.0087039, abs=1e-7)  # of the copied width
    assert config.rotary_scaling["factor"] == 4.0
    olmo: Any = load(FOLDERS[0].parent / "retrofit-olmo")
    assert (olmo.config.block_class_name, olmo.config.qk_norm) == ("SwinBlock", "projection")
    deeper: Any = load(FOLDERS[0].parent / "retrofit-olmo", mean_recurrence=3)
    assert deeper.config.mean_recurrence == 3 and deeper.config.qk_norm == "projection"


def test_a_mode_that_is_not_built():
    row = json.loads((FOLDERS[0].parent / "retrofit-olmo" / "config.json").read_text())
    assert HuginnConfig(**row | {"initial_state_mode": "embed-init"}).state_init == "input"
    with pytest.raises(ValueError, match="initial_state_mode is 'skip-adapter'"):
        HuginnConfig(**row | {"initial_state_mode": "skip-adapter"})


SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "vocab_size": 60,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.fixture(scope="module", params=["llama", "llama-tied-scaled", "olmo2"])
def base(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    if request.param == "olmo2":
        made: Any = Olmo2ForCausalLM(Olmo2Config(**SIZES, pad_token_id=0))
    elif request.param == "llama":
        made = LlamaForCausalLM(LlamaConfig(**SIZES))
    else:
        options: dict[str, Any] = {"tie_word_embeddings": True, "rope_parameters": LLAMA3}
        made = LlamaForCausalLM(LlamaConfig(**SIZES, **options))
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return made.eval()


@pytest.mark.parametrize("start", [None, 1])
def test_a_retrofit_says_what_its_layers_say(base, start, tmp_path):
    """At r = 1, and at any depth before training; after a round through files, too."""
    tokens = torch.randint(60, (2, 40), generator=torch.Generator().manual_seed(1))
    model = retrofit(base, (1, 2, 2), start=start, mean_recurrence=4)
    assert difference(model, base, start=start, tokens=tokens) < 1e-5
    assert len(base.model.layers) == base.config.num_hidden_layers == 7  # left alone
    with torch.no_grad():
        one, four = (model(tokens, num_steps=r, state_seed=r).logits for r in (1, 4))
    torch.testing.assert_close(four, one, **CLOSE)
    model.save_pretrained(tmp_path)
    again: Any = load(tmp_path)
    assert again.config.layers == (1, 2, 2) and again.config.mean_recurrence == 4
    assert difference(again, base, start=start, tokens=tokens) < 1e-5
    tied = again.lm_head.weight is again.transformer.wte.weight
    assert tied == base.config.tie_word_embeddings


def test_a_difference_is_seen(base):
    model: Any = retrofit(base, (1, 2, 2))
    with torch.no_grad():
        model.transformer.core_block[1].norm_2.weight.mul_(1.5)
    assert difference(model, base) > 1e-3


@pytest.mark.parametrize(
    ("parts", "start", "told"),
    [
        ((4, 8, 4), None, "the core would begin at layer -5 of 7"),
        ((2, 2, 2), 1, "begin at layer 1 of 7, but 2 layers of prelude"),
        ((1, 0, 1), None, "core \\(at least 1\\)"),
        ((1, 2), None, "give prelude, core"),
    ],
)
def test_layers_that_are_not_there(base, parts, start, told):
    with pytest.raises(ValueError, match=told):
        retrofit(base, parts, start=start)


def test_which_layers_are_kept():
    """TinyLlama as in section 3 of arXiv 2511.07384."""
    assert [list(part) for part in kept_layers(22, (4, 8, 4))] == [
        [0, 1, 2, 3],
        [10, 11, 12, 13, 14, 15, 16, 17],
        [18, 19, 20, 21],
    ]


def test_bases_that_cannot_be_cut():
    with pytest.raises(ValueError, match="the base is a qwen2; llama, olmo2 can be cut"):
        retrofit(Qwen2ForCausalLM(Qwen2Config(**SIZES)), (1, 2, 2))
    with pytest.raises(ValueError, match="the base has attention_bias True"):
        retrofit(LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)), (1, 2, 2))
