"""Huginn as transformers expects a model: with and without its head, what its outputs show, how its
configuration and its depth in training act."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache

from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.context import visible
from inward.methods.huginn.model import HuginnForCausalLM, HuginnModel
from inward.methods.huginn.train import drawn_depth, sample_recurrences
from tests.methods.huginn.test_model import OLD_NAMES, build, gradients, ids


@torch.no_grad()
def test_the_model_without_its_head():
    model, x = build(), ids(2, 6)
    base = model.base_model
    assert type(base) is HuginnModel and base is model.transformer is model.get_decoder()
    assert base.get_input_embeddings() is model.get_input_embeddings()
    assert model.get_output_embeddings() is model.lm_head
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    out = base(x, attention_mask=mask, num_steps=3)
    whole = model(x, attention_mask=mask, num_steps=3)
    assert torch.equal(model.lm_head(out.last_hidden_state), whole.logits)
    assert torch.equal(out.latents, whole.latents)
    assert isinstance(base(x, return_dict=False), tuple)
    with pytest.raises(TypeError, match="num_step"):
        base(x, num_step=3)
    with pytest.raises(TypeError, match="num_items_in_batch"):
        base(x, num_items_in_batch=3)  # of the loss, which it has not


@pytest.mark.parametrize("kind", [HuginnModel, AutoModel])
@torch.no_grad()
def test_both_kinds_of_folder_load_both_kinds_of_model(tmp_path, kind):
    model, x = build(), ids(1, 5)
    model.save_pretrained(tmp_path / "whole")
    model.base_model.save_pretrained(tmp_path / "base")
    want = model.base_model(x).last_hidden_state
    for name in ("whole", "base"):
        base = kind.from_pretrained(tmp_path / name).eval()
        assert type(base) is HuginnModel
        assert torch.equal(base(x).last_hidden_state, want), name
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert type(again) is HuginnForCausalLM  # the head is the embedding
    assert torch.equal(again(x).logits, model(x).logits)


# --------------------------------------------------------------------------------------------------
# What outputs show


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_attentions_are_the_weights_of_every_block_that_ran(masked):
    model, x = build(), ids(2, 6)
    options: dict[str, Any] = {"num_steps": 3}
    if masked:
        options["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    plain = model(x, **options).logits
    with pytest.raises(ValueError, match=r"output_attentions is True.*attn_implementation='eager'"):
        model(x, output_attentions=True)
    model.set_attn_implementation("eager")
    out = model(x, output_attentions=True, output_hidden_states=True, **options)
    torch.testing.assert_close(out.logits, plain)
    assert len(out.attentions) == len(out.hidden_states) - 1 == 1 + 2 * 3 + 1
    allowed, causal = visible(options.get("attention_mask"), None, torch.arange(6)[None], 6)
    allowed = torch.ones(6, 6).tril().bool() if causal else allowed
    for weights in out.attentions:
        assert weights.shape == (2, 4, 6, 6)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 6))
        assert (weights[~allowed.expand_as(weights)] == 0).all()
    assert model(x).attentions is None

    block, (_, context) = (
        model.transformer.prelude[0],
        model.embed(x, **{k: v for k, v in options.items() if k != "num_steps"}),
    )
    h = block.norm_1(out.hidden_states[0])
    _, _, v = block.attn.Wqkv(h).unflatten(-1, (3, 4, -1)).unbind(2)
    read = (out.attentions[0] @ v.transpose(1, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.attn.proj(read), block.attn(h, context, 0))


@torch.no_grad()
def test_attentions_behind_a_cache_and_in_generate():
    model, x = build(attn_implementation="eager"), ids(1, 6)
    whole = model(x, num_steps=2, output_attentions=True).attentions
    for make in (RecurrentCache, DynamicCache):
        cache = make()
        model(x[:, :4], num_steps=2, past_key_values=cache)
        out = model(x[:, 4:], num_steps=2, past_key_values=cache, output_attentions=True)
        for part, all_of_it in zip(out.attentions, whole, strict=True):
            torch.testing.assert_close(part, all_of_it[:, :, 4:])
    said = model.generate(
        x, max_new_tokens=2, output_attentions=True, output_hidden_states=True,
        return_dict_in_generate=True, do_sample=False,
    )  # fmt: skip
    assert [len(step) for step in said.attentions] == [model.config.total_num_hidden_layers] * 2
    assert said.hidden_states[1][0].shape == (1, 1, 32)


def test_gradients_reach_what_outputs_show():
    model = build(attn_implementation="eager").train()
    out = model(ids(1, 4), num_steps=2, output_hidden_states=True, output_attentions=True)
    shown = [*out.hidden_states, *out.attentions]
    for tensor in shown:
        tensor.retain_grad()
    out.logits.sum().backward()
    assert all(tensor.grad is not None for tensor in shown)


# --------------------------------------------------------------------------------------------------
# Gradient checkpointing


@OLD_NAMES
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_turned_on_and_off_from_either_model(reentrant):
    model = build().train()
    plain = gradients(model, num_steps=(1, 2))
    calls: list[int] = []
    for blocks in (model.transformer.prelude, model.transformer.core_block, model.transformer.coda):
        for block in blocks:
            block.register_forward_pre_hook(lambda *_: calls.append(1))

    def count() -> int:
        calls.clear()
        got = gradients(model, num_steps=(1, 2))
        for name, grad in plain.items():
            torch.testing.assert_close(got[name], grad, msg=name)
        return len(calls)

    once, again = 1 + 3 * 2 + 1, 1 + 2 * 2 + 1  # blocks that run; those with a gradient
    assert count() == once
    for part in (model, model.base_model):
        part.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:  # torch's reentrant form needs an input with a gradient, as transformers says
            model.enable_input_require_grads()
        assert model.is_gradient_checkpointing and count() == once + again
        seen = model(ids(1, 3), num_steps=(1, 2), output_hidden_states=True).hidden_states
        assert len(seen) == once + 1
        part.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing and count() == once
    if hasattr(model, "activation_checkpointing_enable"):  # newer than 5.16
        with pytest.raises(ValueError, match="every_n_layers is 2"):
            model.activation_checkpointing_enable(every_n_layers=2)


# --------------------------------------------------------------------------------------------------
# The configuration


@torch.no_grad()
def test_use_cache_in_the_configuration():
    x = ids(1, 4)
    for choice, forward, generated in ((None, 0, 1), (True, 1, 1), (False, 0, 0)):
        model = build(use_cache=choice)
        assert (model(x).past_key_values is not None) == bool(forward)
        assert model(x, use_cache=False).past_key_values is None
        said = model.generate(x, max_new_tokens=3, return_dict_in_generate=True)
        assert (said.past_key_values is not None) == bool(generated)
        assert said.sequences.tolist() == build().generate(x, max_new_tokens=3).tolist()
        assert model.config.to_dict()["use_cache"] is choice


@torch.no_grad()
def test_a_cache_of_the_configuration_gets_the_slots_of_the_loop():
    model, x = build(), ids(1, 6)
    cache = DynamicCache(config=model.config)
    assert len(cache.layers) == model.config.num_hidden_layers
    model(x[:, :4], past_key_values=cache)
    assert len(cache.layers) == model.config.total_num_hidden_layers
    again = model(x[:, 4:], past_key_values=cache).logits
    torch.testing.assert_close(again, model(x).logits[:, 4:])


@torch.no_grad()
def test_generation_goes_on_from_a_cache():
    """The whole text is given again, and what is cached is not run again."""
    model, x = build(), ids(1, 5)
    whole = model.generate(x, max_new_tokens=6, do_sample=False)
    first = model.generate(x, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    cache = first.past_key_values
    assert cache and len(cache) == model.config.total_num_hidden_layers
    lengths = []
    model.transformer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    again = model.generate(first.sequences, past_key_values=cache, max_new_tokens=3)
    assert torch.equal(again, whole) and lengths == [1, 1, 1]


@torch.no_grad()
def test_a_smaller_depth_drafts_for_a_larger_one():
    """transformers' assisted decoding, with the model's own weights at another depth."""
    model, x = build(), ids(1, 5)
    assistant = build(mean_recurrence=2)
    whole = model.generate(x, max_new_tokens=8, do_sample=False)
    assisted = model.generate(x, max_new_tokens=8, do_sample=False, assistant_model=assistant)
    assert torch.equal(assisted, whole)


def test_layers_that_run_and_layers_that_have_weights():
    config = build().config
    assert config.num_hidden_layers == 1 + 2 + 1
    assert config.total_num_hidden_layers == 1 + 2 * 5 + 1


# --------------------------------------------------------------------------------------------------
# Depth in training


def test_a_model_in_training_draws_its_depth(monkeypatch):
    model, x, ran = build(mean_recurrence=4).train(), ids(1, 3), []
    model.transformer.adapter.register_forward_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    torch.manual_seed(3)
    depths, with_gradient = [], []
    for _ in range(100):
        ran.clear()
        model(x, state_seed=0)
        depths.append(len(ran))
        with_gradient.append(sum(ran))
        assert ran == sorted(ran)  # those without come first
    assert with_gradient == [min(depth, 2) for depth in depths]
    assert min(depths) < 4 < max(depths) and len(set(depths)) > 6
    torch.manual_seed(3)
    drawn = sample_recurrences(4, torch.default_generator, num=100_000).float()
    assert drawn.mean().item() == pytest.approx(5, abs=0.05)  # the mean, and one
    assert sum(depths) / 100 == pytest.approx(5, abs=4 * drawn.std().item() / 10)
    for call, want in (({"num_steps": 3}, [True] * 3), ({"num_steps": (1, 1)}, [False, True])):
        ran.clear()
        model(x, **call)
        assert ran == want
    ran.clear()
    model.eval()(x)
    assert len(ran) == 4


def test_a_trainer_that_restores_torchs_state_draws_the_same_depths():
    config, device = build().config, torch.device("cpu")
    torch.manual_seed(7)
    saved = torch.get_rng_state()
    first = [drawn_depth(config, device) for _ in range(8)]
    torch.set_rng_state(saved)
    assert [drawn_depth(config, device) for _ in range(8)] == first
    config.sampling_scheme = "fixed"
    assert drawn_depth(config, device) == (3, 2)
    config.sampling_scheme = "geometric"
    with pytest.raises(ValueError, match="sampling_scheme is 'geometric'"):
        drawn_depth(config, device)


def test_a_process_takes_what_the_first_one_says(monkeypatch, tmp_path):
    sent = []

    def broadcast(tensor: torch.Tensor, src: int) -> None:
        sent.append((tensor.clone(), src))
        tensor.fill_(7)

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    torch.distributed.init_process_group(
        "gloo", f"file://{tmp_path / 'meet'}", rank=0, world_size=1
    )
    try:
        assert drawn_depth(build().config, torch.device("cpu")) == (5, 2)
    finally:
        torch.distributed.destroy_process_group()
    assert len(sent) == 1 and sent[0][1] == 0


def _draw(rank: int, file: str, told: Any) -> None:
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    config = build().config
    torch.manual_seed(rank)
    told.put([drawn_depth(config, torch.device("cpu")) for _ in range(6)])
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_take_the_depth_of_the_first(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    told = context.Queue()
    workers = [
        context.Process(target=_draw, args=(rank, str(tmp_path / "meet"), told)) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    first, second = told.get(timeout=120), told.get(timeout=120)
    for worker in workers:
        worker.join()
    torch.manual_seed(0)
    config = build().config
    torch.manual_seed(0)
    assert first == second == [drawn_depth(config, torch.device("cpu")) for _ in range(6)]


def test_parts_have_their_published_names():
    model: nn.Module = build()
    names = {name.split(".")[0] for name in model.state_dict()}
    assert names == {"transformer", "lm_head"}
    assert {name.split(".")[1] for name in model.state_dict() if name.startswith("tr")} == {
        "wte", "prelude", "adapter", "core_block", "coda", "ln_f",
    }  # fmt: skip


def test_prompts_are_token_ids():
    model = build()
    for prompt in ("one two", ["one two"], [[1, 2]]):
        for call in ([(prompt,), {}], [(), {"inputs": prompt}], [(), {"input_ids": prompt}]):
            with pytest.raises(ValueError, match="generate takes token ids"):
                model.generate(*call[0], **call[1])


@torch.no_grad()
def test_numpy_integers_are_integers():
    model, x = build(), ids(1, 4)
    want = model(x, num_steps=3).logits
    for depth in (np.int64(3), np.int32(3), np.array([0, 3]), torch.tensor(3)):
        assert torch.equal(model(x, num_steps=depth).logits, want)
    for depth in (np.float64(3), np.array([1.5, 2]), True):
        with pytest.raises(ValueError, match="whole number"):
            model(x, num_steps=depth)
