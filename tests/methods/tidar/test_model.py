"""TiDAR's training: no leak, train = decode, the loss against the paper's sums, the mask token."""

import copy
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from inward.common.bases import cache_of
from inward.common.draws import Draws
from inward.data.texts.packed import PackedSource, PackedTokens
from inward.methods.huginn.model import HuginnConfig
from inward.methods.tidar import masks
from inward.methods.tidar.acceptance import acceptance
from inward.methods.tidar.base import (
    add_mask_token,
    check_masks,
    context_limit,
    num_embedded,
    refuse_mask,
)
from inward.methods.tidar.model import IGNORE, TiDAR, branch
from inward.methods.tidar.samples import (
    Part,
    answer_starts,
    doubled,
    draft_branch,
    hidden_tokens,
    training_rows,
)
from inward.methods.tidar.settings import TiDARSettings

V, MASK = 40, 39
FIXED = TiDARSettings(block_size=3, grid="fixed", align_answers=False)

SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GPT2: dict[str, Any] = {
    "vocab_size": V,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": None,
    "eos_token_id": None,
}
HUGINN: dict[str, Any] = {
    "vocab_size": V,
    "n_embd": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "n_layers_in_prelude": 1,
    "n_layers_in_recurrent_block": 1,
    "n_layers_in_coda": 1,
    "block_size": 64,
    "mean_recurrence": 3,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, head_dim=8),
    "huginn": lambda: HuginnConfig(**HUGINN),
}


def tiny(kind: str = "llama", attention: str = "sdpa", **changes: Any) -> Any:
    """A random model with large weights, so that every input counts; but not where a recurrence
    would multiply rounding errors."""
    torch.manual_seed(0)
    config = CONFIGS[kind]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.ndim == 2 and kind != "huginn":
            parameter.data.mul_(4)
    return model.eval()


def tokens(B: int, S: int, seed: int = 1) -> Tensor:
    return torch.randint(0, MASK, (B, S), generator=torch.Generator().manual_seed(seed))


def batch_of(ids: Tensor, **more: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "weight": torch.tensor(float(ids.numel())), **more}


def logits_of(tidar: TiDAR, ids: Tensor, offset: int = 0) -> Tensor:
    rows = masks.training(ids.shape[1], tidar.block_size, offset=offset)
    with torch.no_grad():
        return tidar.logits(Part(ids, ids, rows))


# --------------------------------------------------------------------------------------------------
# The mask, through real models


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_clean_token_leaks(kind, attention):
    """Perturb a clean token: no earlier row and no mask row of its own or an earlier block
    moves by a bit, and the next block does."""
    K, S, offset = 3, 8, 2
    tidar = TiDAR(tiny(kind, attention), MASK, K)
    ids = tokens(1, S)
    usual = logits_of(tidar, ids, offset)
    starts = [0, 0, 2, 2, 2, 5, 5, 5]  # where the block of each place begins
    for j in range(S):
        other = ids.clone()
        other[0, j] = (other[0, j] + 1) % MASK
        moved = (logits_of(tidar, other, offset) != usual).any(-1)[0].tolist()
        assert moved == [i >= j for i in range(S)] + [starts[i] > j for i in range(S)]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("K", [1, 2, 3])
def test_training_is_decoding_at_every_offset(kind, K):
    """Each row of a decode step, cache and all, has the logits it had in training."""
    tidar = TiDAR(tiny(kind), MASK, K)
    S = 9
    ids = tokens(2, S)
    trained: dict[int, Tensor] = {}
    for offset in range(K):
        logits = logits_of(tidar, ids, offset)
        for start in range(offset, S - K + 1, K):
            trained[start] = logits[:, S + start : S + start + K]
        clean = logits[:, :S]
    assert sorted(trained) == list(range(S - K + 1))
    for prefix in range(1, S - 2 * K + 1):
        with torch.no_grad():
            cache = cache_of(tidar.model(ids[:, :prefix], use_cache=True))
        rows = masks.decode(K, start=prefix)
        q = rows.shape[1]
        step = torch.full((2, q), MASK)
        step[:, :K] = ids[:, prefix : prefix + K]
        with torch.no_grad():
            found = tidar(
                step,
                position_ids=rows.position,
                attention_mask=masks.after_prefix(masks.decode_tail(K), prefix),
                past_key_values=cache,
            ).logits
        close(found[:, :K], clean[:, prefix : prefix + K])
        for j in range(1, K + 1):
            close(found[:, j * K : (j + 1) * K], trained[prefix + j])


def close(found: Tensor, wanted: Tensor) -> None:
    real = wanted.isfinite()
    assert torch.equal(found.isfinite(), real)
    assert torch.allclose(found[real], wanted[real], atol=2e-5, rtol=1e-4)


def test_prefill_drafts_as_training_did():
    K, S = 3, 8
    tidar = TiDAR(tiny(), MASK, K)
    ids = tokens(1, S)
    prompt = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids[:, :5]], dim=1)  # left padding
    rows = masks.prefill(torch.tensor([[False] * 2 + [True] * 5]), K)
    step = torch.cat([prompt, torch.full((1, K), MASK)], dim=1)
    mask = masks.dense(masks.sees(rows), step.shape[1])
    with torch.no_grad():
        found = tidar(step, position_ids=rows.position, attention_mask=mask).logits
    trained = logits_of(tidar, ids, offset=2)
    close(found[:, 2:7], trained[:, :5])
    close(found[:, 7:], trained[:, S + 5 : S + 8])


# --------------------------------------------------------------------------------------------------
# The loss


def by_the_paper(tidar: TiDAR, ids: Tensor, counts: list[bool], rows: masks.Rows) -> Tensor:
    """The sums of section 3.1, term by term, for one sample."""
    S, alpha = ids.shape[1], tidar.settings.alpha
    log_p = F.log_softmax(tidar.logits(Part(ids, ids, rows)).float(), dim=-1)[0]
    total = torch.zeros(())
    for i in range(1, S):
        if counts[i]:
            target = int(ids[0, i])
            total = total - alpha / (1 + alpha) * log_p[i - 1, target]  # shifted
            total = total - 1 / (1 + alpha) * log_p[S + i, target]  # not shifted
    return total


@pytest.mark.parametrize("alpha", [1.0, 0.3, 2.5])
def test_loss_is_the_papers(alpha):
    tidar = TiDAR(tiny(), MASK, replace(FIXED, alpha=alpha))
    ids = tokens(2, 8)
    loss = tidar.loss(batch_of(ids), None, None)
    rows = masks.training(8, 3)
    wanted = sum(by_the_paper(tidar, ids[b : b + 1], [True] * 8, rows) for b in range(2))
    assert torch.allclose(loss.total, torch.as_tensor(wanted), rtol=1e-5)
    ar, count = loss.metrics["ar_loss"]
    draft, _ = loss.metrics["draft_loss"]
    assert torch.allclose(loss.total, (alpha * ar + draft) / (1 + alpha))
    assert int(count) == 2 * 7


def test_answers_have_a_shift_of_their_own_in_each_branch():
    tidar = TiDAR(tiny(), MASK, replace(FIXED, align_answers=True))
    ids = tokens(1, 9)
    supervised = torch.tensor([[False, False, False, False, True, True, True, False, True]])
    batch = batch_of(ids, supervised=supervised)
    rows = training_rows(batch, tidar.settings, None)
    # blocks: 0 1 2 | 3 | 4 5 6 | 7 | 8: one begins at each answer
    assert rows.block[0, 9:].tolist() == [0, 0, 0, 3, 4, 4, 4, 7, 8]
    loss = tidar.loss(batch, None, None)
    wanted = by_the_paper(tidar, ids, supervised[0].tolist(), rows)
    assert torch.allclose(loss.total, wanted, rtol=1e-5)
    assert int(loss.metrics["draft_loss"][1]) == 4
    assert answer_starts(supervised)[0].nonzero()[:, 0].tolist() == [4, 8]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dense_masks", ["one", "batch"])
def test_packed_texts_are_texts_alone(kind, dense_masks):
    settings = replace(FIXED, dense_masks=dense_masks)
    tidar = TiDAR(tiny(kind), MASK, settings)
    texts = [tokens(1, n, seed=n) for n in (5, 3, 7)]
    ids = torch.zeros(2, 8, dtype=torch.long)
    ids[0, :5], ids[0, 5:], ids[1, :7] = texts[0], texts[1], texts[2]
    documents = torch.tensor([[0] * 5 + [1] * 3, [0] * 7 + [-1]])
    packed = tidar.loss(batch_of(ids, documents=documents), None, None)
    alone = [
        tidar.loss(batch_of(t, documents=torch.zeros_like(t)), None, None).total for t in texts
    ]
    assert torch.allclose(packed.total, torch.stack(alone).sum(), rtol=1e-5)
    assert int(packed.metrics["ar_loss"][1]) == 4 + 2 + 6


def test_padding_behind_a_text_needs_no_documents():
    """Whatever stands there: nothing real looks at it, and the last block stays whole."""
    tidar = TiDAR(tiny(), MASK, FIXED)
    ids = tokens(2, 8)
    supervised = torch.ones(2, 8, dtype=torch.bool)
    supervised[1, 5:] = False
    first = tidar.loss(batch_of(ids, supervised=supervised), None, None)
    ids[1, 5:] = 0
    second = tidar.loss(batch_of(ids, supervised=supervised), None, None)
    assert torch.equal(first.total, second.total)


def test_one_mask_at_a_time_gives_the_same_gradients():
    model = tiny()
    ids = tokens(3, 8)
    documents = torch.tensor([[0] * 8, [0] * 4 + [1] * 4, [0] * 6 + [-1] * 2])
    grads = []
    for dense_masks in ("one", "batch"):
        settings = TiDARSettings(block_size=3, dense_masks=dense_masks)
        tidar = TiDAR(copy.deepcopy(model).train(), MASK, settings)
        draws = Draws(0, 0, range(3), 3)
        loss = tidar.loss(batch_of(ids, documents=documents), None, draws)
        loss.total.backward()
        grads.append([loss.total.detach(), *(p.grad for p in tidar.parameters())])
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, atol=1e-4 * float(other.abs().max()))


def test_one_mask_at_a_time_keeps_one_mask(monkeypatch):
    """Masks made while a graph is built must be gone before the next one is made."""
    alive, most = weakref.WeakSet(), []
    original = masks.additive

    def watched(mask: Tensor, dtype: torch.dtype) -> Tensor:
        made = original(mask, dtype)
        alive.add(made)
        most.append(len(alive))
        return made

    tidar = TiDAR(tiny(), MASK, TiDARSettings(block_size=3, dense_masks="one"))
    monkeypatch.setattr(masks, "additive", watched)
    documents = torch.tensor([[0] * 4 + [1] * 4]).repeat(4, 1)
    tidar.loss(batch_of(tokens(4, 8), documents=documents), None, None).total.backward()
    assert len(most) == 8 and max(most) <= 2
    most.clear()
    tidar.loss(batch_of(tokens(4, 8)), None, None).total.backward()
    assert len(most) == 1  # samples without documents share one


@pytest.mark.parametrize("masking", ["full", "random"])
@pytest.mark.parametrize("form", ["plain", "documents", "answers"])
def test_a_step_does_not_depend_on_how_its_batch_is_cut(masking, form):
    tidar = TiDAR(tiny(), MASK, TiDARSettings(block_size=3, masking=masking))
    more = {}
    if form == "documents":
        more["documents"] = torch.tensor([[0] * 4 + [1] * 4]).repeat(4, 1)
    if form == "answers":
        more["supervised"] = torch.arange(8)[None] >= torch.tensor([2, 3, 4, 5])[:, None]
    batch = batch_of(tokens(4, 8), **more)
    whole = tidar.loss(batch, None, Draws(1, 5, range(4), 4))
    parts = []
    for rows in (range(0, 1), range(1, 4)):
        part = {n: t if t.ndim == 0 else t[rows.start : rows.stop] for n, t in batch.items()}
        parts.append(tidar.loss(part, None, Draws(1, 5, rows, 4)))
    assert torch.allclose(whole.total, parts[0].total + parts[1].total, rtol=1e-5)
    for name, (value, count) in whole.metrics.items():
        sums = [torch.stack([p.metrics[name][i] for p in parts]).sum() for i in (0, 1)]
        assert torch.allclose(value, sums[0], rtol=1e-4)
        assert torch.equal(count, sums[1])


def test_the_grid_meets_every_offset():
    settings = TiDARSettings(block_size=4)
    first = set()
    for step in range(40):
        rows = training_rows(batch_of(tokens(2, 9)), settings, Draws(0, step, range(2), 2))
        assert rows.shape == (1, 18)
        first.add(int((rows.block[0, 9:] == 0).sum()))
    assert first == {1, 2, 3, 4}
    documents = torch.zeros(64, 9, dtype=torch.long)
    batch = batch_of(tokens(64, 9), documents=documents)
    rows = training_rows(batch, settings, Draws(0, 0, range(64), 64))
    assert set((rows.block[:, 9:] == 0).sum(1).tolist()) == {1, 2, 3, 4}


def test_random_masking_has_the_expectation_of_full_masking():
    """1/t makes up for what is not masked; with t = 1 it is full masking."""
    S, B = 16, 4096
    settings = TiDARSettings(masking="random", min_mask=0.05)
    drawn = hidden_tokens(S, settings, Draws(0, 0, range(B), B))
    assert drawn is not None
    wanted = torch.randint(0, 5, (B, S), generator=torch.Generator().manual_seed(0))
    logits = torch.zeros(B, S, 5)
    rows = masks.training(S, 4)
    sums = draft_branch(logits, Part(wanted, wanted, rows, drawn))
    full = branch("draft", logits, wanted, None)
    assert float(sums["draft_loss"] / full["draft_loss"]) == pytest.approx(1, abs=0.03)
    assert float(drawn[0].float().mean()) == pytest.approx((1 + 0.05) / 2, abs=0.02)

    tidar = TiDAR(tiny(), MASK, replace(FIXED, masking="random", min_mask=1.0))
    plain = TiDAR(tidar.model, MASK, FIXED)
    batch = batch_of(tokens(2, 8))
    found = tidar.loss(batch, None, Draws(0, 0, range(2), 2)).total
    assert torch.allclose(found, plain.loss(batch, None, None).total)


def test_random_masking_shows_the_tokens_it_does_not_mask():
    ids = tokens(1, 4)
    hidden = torch.tensor([[True, False, True, False]])
    second = doubled(ids, MASK, hidden)[0, 4:]
    assert second.tolist() == [MASK, int(ids[0, 1]), MASK, int(ids[0, 3])]
    logits = torch.randn(1, 4, V, generator=torch.Generator().manual_seed(0))
    part = Part(ids, ids, masks.training(4, 2), (hidden, torch.tensor([[2.0]])))
    terms = F.cross_entropy(logits[0], ids[0], reduction="none")
    assert torch.allclose(draft_branch(logits, part)["draft_loss"], 2 * (terms[0] + terms[2]))


def test_decay_weighs_the_places_of_a_block():
    """0.5 and K = 2: the first mask of a block counts twice the second, whole blocks as before."""
    settings = TiDARSettings(block_size=2, decay=0.5)
    logits = torch.randn(1, 5, V, generator=torch.Generator().manual_seed(0))
    ids = tokens(1, 5)
    part = Part(ids, ids, masks.training(5, 2, offset=1))  # blocks of 1, 2 and 2
    terms = F.cross_entropy(logits[0], ids[0], reduction="none")
    weights = torch.tensor([4, 4, 2, 4, 2]) / 3
    found = draft_branch(logits, part, settings)["draft_loss"]
    assert torch.allclose(found, (terms * weights).sum())
    with pytest.raises(ValueError, match="decay"):
        TiDARSettings(decay=0.0)


def test_acceptance_counts_the_run_behind_the_first_word():
    """Against a count by hand over the drafts and the words of one forward."""
    tidar, K, S, B = TiDAR(tiny(), MASK, FIXED), 3, 11, 60
    ids = tokens(B, S)
    supervised = torch.ones(B, S, dtype=torch.bool)
    supervised[0, :4] = False  # the block at 3 begins outside
    found = acceptance(tidar, batch_of(ids, supervised=supervised))
    best = logits_of(tidar, ids).argmax(-1)
    accepted, first, count = 0, 0, 0
    for b in range(B):
        for start in (3, 6) if b else (6,):
            same = [bool(best[b, S + start + i] == best[b, start + i - 1]) for i in range(K)]
            accepted += 1 + (0 if not same[1] else 2 if same[2] else 1)
            first, count = first + same[0], count + 1
    assert {name: (int(n), int(c)) for name, (n, c) in found.items()} == {
        "accepted": (accepted, count),
        "first": (first, count),
    }
    assert count < accepted and first, "nothing to count: take another seed"


def test_packed_source_counts_what_the_loss_counts():
    rng = np.random.default_rng(0)
    pairs = [
        (rng.integers(0, MASK, 3).tolist(), rng.integers(0, MASK, n).tolist()) for n in (4, 1, 6, 5)
    ]
    source = PackedSource(PackedTokens.from_answers([*pairs, ([], [1, 2, 3])]), seq_len=12, seed=0)
    batch = source.batch(0, range(len(source)), len(source))
    tidar = TiDAR(tiny(), MASK, 4)
    loss = tidar.loss(batch, None, Draws(0, 0, range(len(source)), len(source)))
    assert int(loss.metrics["ar_loss"][1]) == int(batch["weight"].sum()) == 16 + 2


# --------------------------------------------------------------------------------------------------
# The mask token


@pytest.mark.parametrize("tied", [True, False])
def test_the_mask_is_never_an_answer(tied):
    tidar = TiDAR(tiny(tie_word_embeddings=tied), MASK, FIXED)
    logits = logits_of(tidar, tokens(1, 8))
    assert (logits[..., MASK] == -torch.inf).all()
    assert logits[..., :MASK].isfinite().all()
    loss = tidar.loss(batch_of(tokens(1, 8)), None, None)
    loss.total.backward()
    assert loss.total.isfinite()
    if not tied:
        model: Any = tidar.model
        head = model.get_output_embeddings().weight.grad
        assert head[MASK].abs().max() == 0 and head[:MASK].abs().amin(1).max() > 0
        assert model.get_input_embeddings().weight.grad[MASK].abs().max() > 0


@pytest.fixture(scope="module")
def stories() -> tuple[Any, Any]:
    models = Path(__file__).resolve().parents[4] / "shared" / "models"
    folder = Path(os.environ.get("INWARD_MODELS", models)) / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}; set INWARD_MODELS to the folder that holds it")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def test_a_real_checkpoint_gets_a_row_and_keeps_its_words(stories, tmp_path):
    model, tokenizer = copy.deepcopy(stories[0]), stories[1]
    mask_id = add_mask_token(model, tokenizer)
    assert mask_id == 512 and model.config.vocab_size == 513
    assert num_embedded(model) == 513
    table = model.get_input_embeddings().weight
    assert torch.allclose(table[512], stories[0].get_input_embeddings().weight.mean(0), atol=1e-6)
    tidar = TiDAR(model, mask_id, 4)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    with torch.no_grad():
        usual = stories[0](ids).logits
    clean = logits_of(tidar, ids)[:, : ids.shape[1], :512]
    assert torch.allclose(clean, usual, atol=1e-4)

    tidar.save_pretrained(tmp_path / "tidar")
    loaded = TiDAR.from_pretrained(tmp_path / "tidar")
    assert loaded.mask_id == 512 and loaded.settings == tidar.settings
    assert not loaded.model.training
    assert torch.equal(logits_of(loaded, ids), logits_of(tidar, ids))
    # the wrapped model is an ordinary checkpoint
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tidar")
    assert plain.config.vocab_size == 513
    with pytest.raises(FileNotFoundError, match="no TiDAR model"):
        TiDAR.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["<mask>", "[MASK]", "<|mask|>", "<unused512>", "<0x200>"])
def test_no_text_spells_the_mask(stories, text):
    model, tokenizer = copy.deepcopy(stories[0]), stories[1]
    mask_id = add_mask_token(model, tokenizer)
    assert mask_id not in tokenizer(text).input_ids
    refuse_mask(torch.tensor([tokenizer(text).input_ids]), mask_id)


def test_a_mask_in_a_prompt_is_refused():
    with pytest.raises(ValueError, match=r"mask token \(id 39\)"):
        refuse_mask(torch.tensor([[1, MASK, 2]]), MASK)


class SmallTokenizer:
    """Knows ids 0 to n - 1."""

    def __init__(self, n: int) -> None:
        self.n = n

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(self.n)}


def test_spare_rows_are_used_first():
    model = tiny()
    before = model.get_input_embeddings().weight.clone()
    assert add_mask_token(model, SmallTokenizer(30), resize=False) == 30
    assert num_embedded(model) == V
    changed = (model.get_input_embeddings().weight != before).any(1)
    assert changed.nonzero()[:, 0].tolist() == [30]
    with pytest.raises(ValueError, match="40 tokens and the model embeds 40"):
        add_mask_token(model, SmallTokenizer(40), resize=False)
    # without a tokenizer nobody knows which rows are spare
    assert add_mask_token(model, multiple=16) == V
    assert num_embedded(model) == model.config.vocab_size == 48
    # an id that only the configuration uses is taken too
    assert add_mask_token(tiny(eos_token_id=35), SmallTokenizer(30)) == 36


def test_untied_heads_grow_with_the_embedding():
    model = tiny(tie_word_embeddings=False)
    before = copy.deepcopy(model)
    mask_id = add_mask_token(model)
    assert mask_id == V
    head = model.get_output_embeddings().weight
    assert torch.equal(head[:V], before.get_output_embeddings().weight)
    assert torch.allclose(head[V], head[:V].mean(0), atol=1e-6)
    assert logits_of(TiDAR(model, V, 3), tokens(1, 6)).shape == (1, 12, V + 1)


# --------------------------------------------------------------------------------------------------
# Models that do not fit


class Deaf(transformers.LlamaForCausalLM):
    """Throws away a part of what it is given."""

    ignored = "attention_mask"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop(self.ignored, None)
        return super().forward(*args, **kwargs)


class Lost(Deaf):
    ignored = "position_ids"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Deaf(transformers.LlamaConfig(**SHAPE)), "Deaf with sdpa.*wrong rows"),
        (
            lambda: Lost(transformers.LlamaConfig(**SHAPE)),
            "Lost.*cannot draft.*takes no position_ids",
        ),
        (
            lambda: transformers.BloomForCausalLM(
                transformers.BloomConfig(vocab_size=V, hidden_size=32, n_layer=1, n_head=4)
            ),
            "BloomForCausalLM with eager.*its forward fails.*ALiBi",
        ),
        (
            lambda: transformers.MambaForCausalLM(
                transformers.MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1)
            ),
            "MambaForCausalLM.*cannot draft.*keeps its past in LinearAttentionLayer",
        ),
    ],
)
def test_a_model_that_does_not_honour_masks_is_named(make, told):
    torch.manual_seed(0)
    model = make().train()
    with pytest.raises(ValueError, match=told):
        TiDAR(model, MASK, 4)
    assert model.training


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_lets_good_models_pass(kind, dtype):
    check_masks(tiny(kind).to(dtype))
    check_masks(tiny(kind, "eager").to(dtype))


def test_positions_bound_the_context_and_a_window_does_not():
    config = transformers.MistralConfig(**SHAPE, sliding_window=16, max_position_embeddings=64)
    model: Any = transformers.MistralForCausalLM(config)
    assert context_limit(model) == 64
    assert context_limit(tiny("gpt2")) == 64
    assert context_limit(tiny("qwen2")) == 32768
    with pytest.raises(ValueError, match="65 tokens, this model has positions for 64"):
        TiDAR(model, MASK, 4).loss(batch_of(tokens(1, 65)), None, None)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda t: TiDAR(t.model, V, 4), "mask_id is 40, but the model embeds ids 0..39"),
        (lambda t: TiDAR(t.model, MASK, 0), "block_size is 0"),
        (lambda t: TiDAR(tiny(eos_token_id=MASK), MASK, 4), "already the end"),
        (lambda t: t.loss({"input_ids": tokens(1, 8)}, None, None), "no weight"),
        (lambda t: t.loss(batch_of(torch.full((1, 8), MASK)), None, None), "clean tokens"),
        (lambda t: TiDARSettings(alpha=0), "alpha is 0"),
        (lambda t: TiDARSettings(min_mask=0), "min_mask is 0"),
    ],
)
def test_bad_input(call, told):
    with pytest.raises(ValueError, match=told):
        call(TiDAR(tiny(), MASK, 4))


def test_ignored_targets_cost_nothing():
    logits = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[IGNORE, 2, IGNORE]])
    sums = branch("ar", logits, labels, None)
    assert torch.allclose(sums["ar_loss"], F.cross_entropy(logits[0, 1:2], labels[0, 1:2]))
