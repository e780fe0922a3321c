"""The draft-only adapter: the base model keeps its bits, PEFT reads the files, own text resumes."""

import copy
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from inward.common.bases import cache_of
from inward.common.draws import Draws
from inward.data.texts.packed import PackedSource, PackedTokens
from inward.methods.tidar import masks
from inward.methods.tidar.acceptance import acceptance
from inward.methods.tidar.adapter import DraftAdapter, linear_layers
from inward.methods.tidar.adapter_loss import needed_rows
from inward.methods.tidar.base import add_mask_token, num_embedded
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.own_text import own_text
from inward.methods.tidar.samples import Part
from inward.methods.tidar.settings import AdapterSettings, TiDARSettings
from inward.train.loop import Run, train
from inward.train.settings import OptimSettings, TrainSettings
from tests.methods.tidar import toys
from tests.methods.tidar.test_model import CONFIGS, MASK, V, batch_of, tiny, tokens

SMALL = AdapterSettings(rank=3, alpha=6.0)
KINDS = ["gpt2", "llama", "qwen3", "huginn"]

# peft still asks transformers by an old name
of_peft = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


def shaken(model: Any, settings: AdapterSettings = SMALL, **options: Any) -> DraftAdapter:
    """An adapter that does something: B is 0 in a new one."""
    adapter = DraftAdapter(model, settings, **options)
    generator = torch.Generator().manual_seed(2)
    for parameter in adapter.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return adapter


def decode_step(tidar: TiDAR, ids: Tensor, **options: Any) -> Tensor:
    """Logits of a decode step whose drafts are `ids` (B, K), behind a prefix of 4 tokens."""
    K = ids.shape[1]
    rows = masks.decode(K, start=4)
    step = torch.full((len(ids), rows.shape[1]), tidar.mask_id)
    step[:, :K] = ids
    with torch.no_grad():
        prefix = cache_of(tidar.model(tokens(len(ids), 4, seed=9), use_cache=True))
        return tidar(
            step,
            position_ids=rows.position,
            attention_mask=masks.after_prefix(masks.decode_tail(K), 4),
            past_key_values=prefix,
            **options,
        ).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "own"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_clean_rows_keep_every_bit(kind, dtype, own):
    """At equal shapes: with the adapter, with it idle, and without any hook."""
    K, base = 3, tiny(kind).to(dtype)
    tidar = TiDAR(base, V, K, adapter=shaken(base).to(own))
    drafts = tokens(2, K)
    acting = decode_step(tidar, drafts)
    idle = decode_step(tidar, drafts, draft_rows=torch.zeros(2, K * (K + 1), dtype=torch.bool))
    assert tidar.adapter is not None
    tidar.adapter.detach()
    bare = decode_step(tidar, drafts)
    assert torch.equal(acting[:, :K], bare[:, :K])
    assert torch.equal(idle, bare)
    assert (acting[:, K:] != bare[:, K:]).any(-1).all()
    assert acting.shape[-1] == V  # the model was not resized


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_a_run_are_the_same_as_rows_here_and_there(kind):
    """A run of rows is a view, others are indexed; with gradients and without."""
    base = tiny(kind)
    adapter = shaken(base)
    adapter.attach(base)
    ids = tokens(2, 8)
    run, scattered = torch.zeros(2, 2, 8, dtype=torch.bool)
    run[0, 3:] = run[1, :5] = True
    scattered[0, 3:7:2] = scattered[1, 1] = True
    for rows in (run, scattered):
        with torch.no_grad(), adapter.acting_on(rows):
            quick = base(ids).logits
        with adapter.acting_on(rows):
            slow = base(ids).logits
        layers = dict(base.named_modules())
        adapter.detach()
        hooks = [
            layers[name].register_forward_hook(_definition(adapter, name, rows))
            for name in adapter.layers
        ]
        wanted = base(ids).logits
        for hook in hooks:
            hook.remove()
        adapter.attach(base)
        assert torch.allclose(quick, wanted, atol=1e-4)
        assert torch.allclose(slow, wanted, atol=1e-4)
        assert not torch.allclose(base(ids).logits, wanted, atol=1e-3)


def _definition(adapter: DraftAdapter, name: str, rows: Tensor) -> Any:
    """y + (alpha / r) B A x on rows, y elsewhere."""
    key = name.replace(".", "/")
    A, B = (adapter.get_parameter(f"lora_{side}.{key}.weight") for side in "AB")

    def add(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        change = args[0] @ A.T @ B.T * (adapter.settings.alpha / adapter.settings.rank)
        return torch.where(rows[..., None], output + change.view_as(output), output)

    return add


def test_plain_use_of_the_model_does_not_notice():
    base = tiny()
    ids = tokens(2, 9)
    before = base(ids).logits
    tidar = TiDAR(base, V, 4, adapter=shaken(base))
    assert torch.equal(base(ids).logits, before)
    assert tidar.adapter is not None
    with pytest.raises(RuntimeError, match="on the way"), tidar.adapter.acting_on(ids > 3):
        raise RuntimeError("on the way")
    assert torch.equal(base(ids).logits, before)
    assert not any(p.requires_grad for p in base.parameters())


def test_rows_can_be_chosen_whatever_they_hold():
    """Block diffusion fills a block step by step: its tokens are draft rows too."""
    base = tiny()
    tidar = TiDAR(base, V, 2, adapter=shaken(base))
    ids, rows = tokens(1, 6), masks.training(6, 2)
    mask = masks.dense(masks.sees(rows), 12)
    options = {"position_ids": rows.position, "attention_mask": mask}
    step = torch.cat([ids, ids], dim=1)
    second = torch.arange(12)[None] >= 6
    with torch.no_grad():
        chosen = tidar(step, draft_rows=second, **options).logits
        none = tidar(step, **options).logits
    assert torch.equal(chosen[:, :6], none[:, :6])
    assert (chosen[:, 6:] != none[:, 6:]).any(-1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masking", ["full", "random"])
@pytest.mark.parametrize("asked", [False, True], ids=["all", "answers"])
def test_the_cached_prefix_gives_the_doubled_forward_and_its_gradients(kind, masking, asked):
    """Blocks without anything to predict are left out, and nothing changes."""
    base = tiny(kind)
    settings = TiDARSettings(block_size=3, masking=masking, decay=0.7, align_answers=False)
    tidar = TiDAR(base, V, settings, adapter=shaken(base))
    documents = torch.tensor([[0] * 5 + [1] * 4, [0] * 7 + [-1] * 2])
    batch = batch_of(tokens(2, 9), documents=documents)
    if asked:
        batch["supervised"] = (
            torch.tensor([[0, 0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1, 1, 0, 0]]) > 0
        )
    found = {}
    for dense_masks in ("one", "batch"):
        tidar.settings = replace(settings, dense_masks=dense_masks)
        loss = tidar.loss(batch, None, Draws(0, 0, range(2), 2))
        tidar.zero_grad()
        loss.total.backward()
        grads = {n: p.grad.clone() for n, p in tidar.named_parameters() if p.grad is not None}
        assert all(name.startswith("adapter.") for name in grads)
        assert len(grads) == len(list(shaken(base).parameters()))
        found[dense_masks] = (loss.total.detach(), grads)
    # the slow obvious version: everything at once, gradients through all of it
    from inward.methods.tidar.samples import draft_branch, hidden_tokens, targets, training_rows

    draws = Draws(0, 0, range(2), 2)
    rows = training_rows(batch, tidar.settings, draws)
    hidden = hidden_tokens(9, tidar.settings, draws)
    part = Part(batch["input_ids"], targets(batch, rows), rows, hidden)
    kept = needed_rows(part)
    assert (kept.shape[1] < 9 or not asked) and (kept.diff(dim=1) > 0).all()
    total = draft_branch(tidar.logits(part)[:, 9:], part, settings)["draft_loss"]
    tidar.zero_grad()
    total.backward()
    for loss, grads in found.values():
        assert torch.allclose(loss, total, rtol=1e-5)
        for name, grad in grads.items():
            wanted = tidar.get_parameter(name).grad
            assert wanted is not None
            assert torch.allclose(grad, wanted, atol=1e-4 * float(wanted.abs().max())), name


def test_samples_that_share_a_mask_share_the_rows_they_need(monkeypatch):
    """One mask for the batch, and the loss of the doubled forward."""
    from inward.methods.tidar.samples import draft_branch, targets, training_rows

    base = tiny("llama")
    settings = TiDARSettings(block_size=3, align_answers=False)
    tidar = TiDAR(base, V, settings, adapter=shaken(base))
    supervised = torch.zeros(2, 12, dtype=torch.bool)
    supervised[0, 4], supervised[1, 10] = True, True
    batch = batch_of(tokens(2, 12), supervised=supervised)
    rows = training_rows(batch, settings, None)
    part = Part(batch["input_ids"], targets(batch, rows), rows)
    assert needed_rows(part).tolist() == [[3, 4, 5, 9, 10, 11]]
    wanted = draft_branch(tidar.logits(part)[:, 12:], part, settings)["draft_loss"]
    made, dense = [], masks.dense
    monkeypatch.setattr(masks, "dense", lambda *a, **o: made.append(dense(*a, **o)) or made[-1])
    assert torch.allclose(tidar.loss(batch, None, None).total, wanted, rtol=1e-5)
    assert [mask.shape for mask in made] == [(1, 1, 12, 12), (1, 1, 6, 18)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_logits", [0, 5 * V])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_distillation_compares_a_mask_row_with_what_the_model_says_of_its_place(
    kind, max_logits, share
):
    """The share of KL, with its gradients, against the definition on the doubled forward."""
    from inward.methods.tidar.samples import targets, training_rows

    base = tiny(kind)
    settings = TiDARSettings(block_size=3, distill=share, max_logits=max_logits)
    tidar = TiDAR(base, V, settings, adapter=shaken(base))
    supervised = torch.rand(2, 12, generator=torch.Generator().manual_seed(2)) < 0.5
    batch = batch_of(tokens(2, 12), supervised=supervised)
    loss = tidar.loss(batch, None, None)
    loss.total.backward()
    grads = {n: p.grad.clone() for n, p in tidar.named_parameters() if p.grad is not None}

    rows = training_rows(batch, settings, None)
    wanted = targets(batch, rows)
    logits = tidar.logits(Part(batch["input_ids"], wanted, rows))
    said, drafted = logits[:, :11].detach().double(), logits[:, 13:].double()
    total = torch.zeros((), dtype=torch.float64)
    for b, i in (wanted[:, 1:] >= 0).nonzero().tolist():
        p, q = said[b, i].softmax(-1), drafted[b, i].log_softmax(-1)
        divergence = torch.distributions.kl_divergence(
            torch.distributions.Categorical(p), torch.distributions.Categorical(logits=q)
        )
        total = total - (1 - share) * q[wanted[b, i + 1]] + share * divergence
    tidar.zero_grad()
    total.backward()
    assert torch.allclose(loss.total.double(), total, rtol=1e-5)
    assert len(grads) > 4
    for name, grad in grads.items():
        slow = tidar.get_parameter(name).grad
        assert slow is not None
        assert torch.allclose(grad, slow, atol=1e-4 * float(slow.abs().max())), name


def test_a_banned_token_leaves_the_divergence_finite():
    base = tiny("llama")
    settings = TiDARSettings(block_size=3, distill=1.0)
    tidar = TiDAR(base, MASK, settings, adapter=shaken(base, own_mask=False))
    loss = tidar.loss(batch_of(tokens(2, 12)), None, None)
    loss.total.backward()
    grads = [p.grad for p in tidar.parameters() if p.grad is not None]
    assert grads and all(bool(grad.isfinite().all()) for grad in [loss.total, *grads])


# --------------------------------------------------------------------------------------------------
# Files


@of_peft
@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_and_merges_what_we_write(kind, tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny(kind)
    adapter = shaken(base)
    untouched = copy.deepcopy(base)
    tidar = TiDAR(base, V, 2, adapter=adapter)
    tidar.save_pretrained(tmp_path)
    ids = tokens(2, 6)
    with torch.no_grad():
        with adapter.acting_on(torch.ones(2, 6, dtype=torch.bool)):
            ours = base(ids).logits
        theirs = peft.PeftModel.from_pretrained(untouched, tmp_path)
        assert torch.allclose(theirs(ids).logits, ours, atol=1e-4)
        assert not torch.allclose(base(ids).logits, ours, atol=1e-2)
        merged = theirs.merge_and_unload()
        assert torch.allclose(merged(ids).logits, ours, atol=1e-3)


@of_peft
def test_we_load_what_peft_writes(tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny()
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "up_proj"])
    wrapped = peft.get_peft_model(copy.deepcopy(base), config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    wrapped.save_pretrained(tmp_path)
    adapter = DraftAdapter.from_pretrained(tmp_path, base)
    assert len(adapter.layers) == 4 and adapter.mask_embedding is None
    adapter.attach(base)
    ids = tokens(1, 5)
    with torch.no_grad(), adapter.acting_on(torch.ones(1, 5, dtype=torch.bool)):
        assert torch.allclose(base(ids).logits, wrapped(ids).logits, atol=1e-5)


def test_a_model_with_its_adapter_comes_back(tmp_path):
    base = tiny()
    base.save_pretrained(tmp_path / "base")
    tidar = TiDAR(base, V, 3, adapter=shaken(base))
    tidar.save_pretrained(tmp_path / "tidar")
    names = {path.name for path in (tmp_path / "tidar").iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "draft.safetensors",
        "tidar.json",
    }
    drafts = tokens(1, 3)
    for given in (base, tmp_path / "base", str(tmp_path / "base")):
        loaded = TiDAR.from_pretrained(tmp_path / "tidar", given)
        assert torch.equal(decode_step(loaded, drafts), decode_step(tidar, drafts))
    with pytest.raises(FileNotFoundError, match="pass base="):
        TiDAR.from_pretrained(tmp_path / "tidar")
    # resume states hold what is trained
    assert all(name.startswith("adapter.") for name in tidar.state_dict())
    assert str(tmp_path) not in (tmp_path / "tidar" / "adapter_config.json").read_text()


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    base = tiny()
    shaken(base).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit.*layers\.1"):
        DraftAdapter.from_pretrained(tmp_path, tiny(num_hidden_layers=1))
    with pytest.raises(ValueError, match="of wrong shape"):
        DraftAdapter.from_pretrained(tmp_path, tiny(intermediate_size=40))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora"):
        DraftAdapter.from_pretrained(tmp_path, base)
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing"):
        DraftAdapter.from_pretrained(tmp_path / "nowhere", base)


def test_layers_are_all_but_the_head():
    names = {name.rpartition(".")[2] for name in linear_layers(tiny())}
    assert names == set("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())
    ends = {name.rpartition(".")[2] for name in linear_layers(tiny("gpt2"))}
    assert ends == {"c_attn", "c_proj", "c_fc"}
    assert next(iter(linear_layers(tiny(), ("o_proj",)))) == "model.layers.0.self_attn.o_proj"
    with pytest.raises(ValueError, match=r"no linear layer named \['attn'\]; it has \['c_attn'"):
        linear_layers(tiny("gpt2"), ("attn",))


# --------------------------------------------------------------------------------------------------
# The model's own text, and learning to draft it


def ends_with_7(kind: str = "llama") -> Any:
    model = tiny(kind)
    model.generation_config.eos_token_id = 7
    return model


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_own_text_goes_on_where_it_was_killed(tmp_path, temperature):
    model = ends_with_7()
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (3, 1, 5, 2, 4)]
    options: dict[str, Any] = {"max_new_tokens": 12, "batch_size": 2, "temperature": temperature}

    def run(path: Path, seed: int = 0) -> list[tuple[list[int], list[int]]]:
        state = torch.random.get_rng_state()
        found = own_text(model, prompts, path, seed=seed, **options)
        assert torch.equal(torch.random.get_rng_state(), state)
        return found

    whole = run(tmp_path / "whole.jsonl")
    assert [prompt for prompt, _ in whole] == prompts
    assert all(1 <= len(answer) <= 12 and 7 not in answer[:-1] for _, answer in whole)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 5
    for kept in range(1, 7):
        path = tmp_path / f"{kept}.jsonl"
        path.write_bytes(b"".join(lines[:kept]) + b"[1, 2")  # killed in the middle of a line
        assert run(path) == whole
        assert path.read_bytes() == b"".join(lines)
    differs = run(tmp_path / "other.jsonl", seed=1) != whole
    assert differs == (temperature > 0)
    with pytest.raises(ValueError, match=r"another call \(different: seed\)"):
        run(tmp_path / "whole.jsonl", seed=1)


def test_greedy_own_text_is_what_the_model_says(tmp_path):
    model = ends_with_7()
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (4, 2)]
    found = own_text(model, prompts, tmp_path / "t.jsonl", max_new_tokens=8, temperature=0)
    for prompt, answer in found:
        ids = list(prompt)
        for word in answer:
            with torch.no_grad():
                assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == word
            ids.append(word)
    with pytest.raises(ValueError, match="without tokens"):
        own_text(model, [[1], []], tmp_path / "e.jsonl", max_new_tokens=8)


def test_a_continuation_ends_with_the_end_of_text(tmp_path):
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (4, 2, 3)]
    options: dict[str, Any] = {"max_new_tokens": 10, "temperature": 0}
    endless = own_text(tiny(), prompts, tmp_path / "endless.jsonl", **options)
    model, end = tiny(), endless[0][1][3]
    model.generation_config.eos_token_id = [end, V + 5]
    ended = own_text(model, prompts, tmp_path / "ended.jsonl", **options)
    for (_, whole), (_, answer) in zip(endless, ended, strict=True):
        assert answer == (whole[: whole.index(end) + 1] if end in whole else whole)
    assert len(ended[0][1]) <= 4


def test_a_real_model_learns_to_draft_its_own_text_and_keeps_its_words(tmp_path):
    models = Path(__file__).resolve().parents[4] / "shared" / "models"
    folder = Path(os.environ.get("INWARD_MODELS", models)) / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}; set INWARD_MODELS to the folder that holds it")
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompts = [[1, 403 + i] for i in range(16)]
    pairs = own_text(base, prompts, tmp_path / "t.jsonl", max_new_tokens=48, temperature=0)
    source = PackedSource(PackedTokens.from_answers(pairs), seq_len=50, seed=0)
    adapter = DraftAdapter(base, AdapterSettings(rank=16, alpha=32.0))
    settings = TiDARSettings(block_size=4, dense_masks="batch", align_answers=False)
    tidar = TiDAR(base, base.config.vocab_size, settings, adapter=adapter)
    held = source.batch(0, range(len(source)), len(source))
    before = {name: p.clone() for name, p in base.named_parameters()}
    first, first_count = acceptance(tidar, held)["accepted"]

    optim = OptimSettings(name="adamw", lr=1e-2, weight_decay=0.0)
    plan = TrainSettings(steps=20, batch_rows=8, optim=optim, ema_decay=0.0, log_every=20, clip=1.0)
    train(Run(tidar, source), plan, tmp_path / "run")
    last, count = acceptance(tidar.eval(), held)["accepted"]
    assert float(first / first_count) < 1.3
    assert float(last / count) > 1.5
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())
    loaded = TiDAR.from_pretrained(tmp_path / "run" / "model", folder)
    assert float(acceptance(loaded, held)["accepted"][0]) == float(last)


def test_kinds_are_covered():
    assert set(KINDS) <= set(CONFIGS)


def test_transformers_opens_a_whole_model_and_refuses_an_adapter_by_name(tmp_path):
    """Loaded as PEFT's, a draft adapter would act on every row and change the words."""
    base = toys.llama()
    base.save_pretrained(tmp_path / "base")
    whole = toys.llama()
    TiDAR(whole, add_mask_token(whole), 4).save_pretrained(tmp_path / "whole")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    ids = toys.prompts(1, 5)
    assert torch.equal(opened(ids).logits, whole(ids).logits)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapter = DraftAdapter(base)
    TiDAR(base, num_embedded(base), 4, adapter=adapter).save_pretrained(tmp_path / "adapter")
    shutil.copytree(tmp_path / "base", tmp_path / "adapter" / "base")
    assert type(TiDAR.from_pretrained(tmp_path / "adapter").model) is type(base)
    with pytest.raises((OSError, ValueError), match=r"draft-only adapter of base.*inward\.load"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
