import json
import warnings
from functools import partial
from itertools import zip_longest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
)

from inward.common import IGNORE
from inward.data.thoughts.columns import before_thoughts, collate, pick
from inward.data.thoughts.segments import Latent, Sample, Specials, Text
from inward.data.thoughts.tokenizers import encode_text
from inward.methods.coconut.base import add_specials
from inward.methods.coconut.model import Coconut
from inward.methods.coconut.settings import CoconutSettings
from tests.methods.coconut.toys import (
    BASES,
    SPECIALS,
    VOCAB,
    bot,
    distance,
    eot,
    interleaved,
    make_base,
    make_model,
    make_tokenizer,
    ragged,
    text,
    words,
)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=BASES, scope="module")
def model(request) -> Coconut:
    return make_model(request.param)


# --- columns --------------------------------------------------------------------------------------

shapes = st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5)


@given(shapes, st.integers(0, 20))
def test_columns_hold_the_rows_in_order(shapes, seed):
    samples = [interleaved(*shape, seed=seed + r) for r, shape in enumerate(shapes)]
    batch = collate(samples, SPECIALS, pad=7)
    latent, mask = batch["latent"], batch["attention_mask"].bool()
    for r, sample in enumerate(samples):
        ids, supervised = [], []
        for s in sample.segments:
            silent = isinstance(s, Latent)
            ids += [SPECIALS.latent] * s.num if silent else s.ids
            supervised += [not silent and s.supervised] * len(s)
        assert batch["input_ids"][r, mask[r]].tolist() == ids
        assert batch["position_ids"][r, mask[r]].tolist() == list(range(len(ids)))
        assert (batch["input_ids"][r, mask[r]] == SPECIALS.latent).equal(latent[r, mask[r]])
        want = [i if s else IGNORE for i, s in zip(ids[1:], supervised[1:], strict=True)]
        assert batch["labels"][r, mask[r]].tolist() == [*want, IGNORE]
        assert batch["weight"][r] == sample.num_supervised
    assert (batch["input_ids"][~mask] == 7).all()
    assert (batch["labels"][~mask] == IGNORE).all()
    assert not latent[:, 0].any()
    assert mask[before_thoughts(latent)].all(), "a masked column lies before a thought"
    longest = sum(max(block) for block in zip_longest(*shapes, fillvalue=0))
    assert int(latent.any(0).sum()) <= longest


def test_block_j_starts_in_one_column():
    batch = collate(ragged(), SPECIALS)
    starts = batch["latent"] & ~torch.nn.functional.pad(batch["latent"][:, :-1], (1, 0))
    columns = [row.nonzero()[:, 0].tolist() for row in starts]
    assert [len(c) for c in columns] == [2, 1, 0, 3]
    for j in range(3):
        assert len({c[j] for c in columns if len(c) > j}) == 1


def test_learned_stop_teaches_the_placeholder_before_each_thought():
    sample = Sample((text(3, 0), bot(True), Latent(2), eot(True), text(1, 1, supervised=True)))
    labels = collate([sample], SPECIALS, learned_stop=True)["labels"][0].tolist()
    word = words(sample)[-1]
    latent = SPECIALS.latent
    assert labels == [IGNORE, IGNORE, SPECIALS.bot, latent, latent, SPECIALS.eot, word, IGNORE]
    assert collate([sample], SPECIALS)["labels"][0].tolist()[3:5] == [IGNORE, IGNORE]


def test_pick_takes_chosen_columns_from_the_left():
    values = torch.arange(8.0).reshape(2, 4, 1)
    chosen = torch.tensor([[False, True, False, True], [False, False, True, False]])
    picked, there = pick(values, chosen)
    assert picked[..., 0].tolist() == [[1.0, 3.0], [6.0, 0.0]]
    assert there.tolist() == [[True, True], [True, False]]


# --- the executors --------------------------------------------------------------------------------


def run_counting(model: Coconut, batch, **options):
    calls, reads = [], []
    first = model.base.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs["inputs_embeds"].shape), with_kwargs=True
    )
    second = model.base.get_output_embeddings().register_forward_hook(
        lambda _, args, out: reads.append(out.shape[:-1].numel())
    )
    output = model(batch, **options)
    first.remove()
    second.remove()
    return output, calls, sum(reads)


def gradients(model: Coconut, batch, **options) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(batch, **options).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_no_more_passes_than_the_longest_blocks(model):
    batch = model.collate(ragged())
    output, calls, _ = run_counting(model, batch)
    # blocks (2, 1), (3), (), (1, 2, 1): 1 + 3 + 2 + 1
    assert len(calls) == output.num_passes == 7
    assert sum(shape[1] for shape in calls) == batch["input_ids"].shape[1]


def test_overlapping_blocks_share_passes():
    """A long first block of one row covers the second block of another."""
    model = make_model()
    rows = [
        Sample((text(3, 0), Latent(8), text(1, 1))),
        Sample((text(3, 2), Latent(1), text(1, 3), Latent(1), text(1, 4))),
    ]
    assert model(model.collate(rows)).num_passes == 9


def test_sequential_equals_recomputation(model):
    batch = model.collate(ragged())
    with torch.no_grad():
        fast = model(batch, logits="all")
        slow = model(batch, logits="all", executor="recompute")
    real = batch["attention_mask"].bool()
    assert distance(fast.loss, slow.loss) < 1e-9
    for name in ("logits", "inputs_embeds", "hidden"):
        a, b = getattr(fast, name), getattr(slow, name)
        assert distance(a[real], b[real]) < 1e-9, name
    got = gradients(model, batch)
    want = gradients(model, batch, executor="recompute")
    assert got.keys() == want.keys()
    for name, grad in want.items():
        assert distance(got[name], grad) < 1e-6, name
        assert grad.isfinite().all()


def test_the_gradient_passes_through_every_thought():
    """A number: the gradient of the loss by one embedding row, against a finite difference."""
    model = make_model()
    batch = model.collate([interleaved(2, 2, seed=1)])
    token = int(batch["input_ids"][0, 0])
    weight = model.embedding.weight
    grad = gradients(model, batch)["base.transformer.wte.weight"][token, 3]
    with torch.no_grad():
        losses = []
        for step in (1e-5, -2e-5):
            weight[token, 3] += step
            losses.append(model(batch).loss)
        weight[token, 3] += 1e-5
    assert abs(float((losses[0] - losses[1]) / 2e-5 - grad)) < 1e-6


def test_batched_equals_single(model):
    rows = ragged()
    batch = model.collate(rows)
    with torch.no_grad():
        whole = model(batch, logits="all")
        for r, row in enumerate(rows):
            alone = model(model.collate([row]), logits="all")
            real = batch["attention_mask"][r].bool()
            assert distance(whole.logits[r, real], alone.logits[0]) < 1e-9
            assert distance(whole.row_loss[r], alone.row_loss[0]) < 1e-9
            assert whole.row_count[r] == row.num_supervised


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masked_columns_do_no_harm(attention):
    """Masked queries see nothing at all; no kernel may turn that into NaN."""
    model = make_model("llama", dtype=torch.float32, attn_implementation=attention)
    rows = [Sample((text(9, 0), Latent(2), text(2, 1, supervised=True))), interleaved(1, seed=2)]
    grads = gradients(model, model.collate(rows))
    assert all(grad.isfinite().all() for grad in grads.values())


def test_thoughts_are_what_the_head_reads(model):
    batch = model.collate(ragged())
    with torch.no_grad():
        output = model(batch, logits="all", layers=True)
        head = model.base.get_output_embeddings()
        assert distance(head(output.hidden), output.logits) < 1e-9
    rows, columns = batch["latent"].nonzero(as_tuple=True)
    fed = output.inputs_embeds[rows, columns]
    assert torch.equal(fed, output.hidden[rows, columns - 1])
    thoughts, there = output.thoughts()
    assert torch.equal(thoughts[there], fed)
    assert there.sum(1).tolist() == [row.num_thoughts for row in ragged()]
    # transformers' last hidden state is after the final norm for all three types
    assert distance(output.layers[-1], output.hidden) < 1e-9


def test_capped_logits_and_norms_are_the_bases_own():
    """Gemma 2 scales its embeddings and caps its logits after the head."""
    config = Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue] - taken by the base class
    )
    torch.manual_seed(0)
    model = Coconut(Gemma2ForCausalLM(config).eval(), SPECIALS)
    sample = interleaved(seed=1)
    batch = model.collate([sample])
    with torch.no_grad():
        ids = batch["input_ids"]
        plain = model.base(input_ids=ids).logits
        assert distance(model(batch, logits="all").logits, plain) < 1e-5
        assert plain.abs().max() < 0.5
        fast, slow = (
            model(model.collate(ragged()), executor=e).loss for e in ("sequential", "recompute")
        )
        assert distance(fast, slow) < 1e-5


def test_no_thoughts_is_the_base_model(model):
    rows = [interleaved(seed=s) for s in (1, 2)]
    batch = model.collate(rows)
    labels = torch.full_like(batch["labels"], IGNORE)
    labels[:, 1:] = batch["labels"][:, :-1]
    out = model.base(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        labels=labels,
    )
    ours = model(batch)
    assert ours.num_passes == 1
    assert distance(ours.loss, out.loss) < 1e-6


def test_the_head_reads_labelled_columns_only(model):
    batch = model.collate(ragged())
    output, _, reads = run_counting(model, batch)
    assert reads == int(batch["weight"].sum()) == len(output.logits)
    everything, _, reads = run_counting(model, batch, logits="all")
    assert reads == batch["input_ids"].numel()
    assert distance(output.loss, everything.loss) < 1e-9
    lens = before_thoughts(batch["latent"])
    some, _, reads = run_counting(model, batch, logits=lens)
    assert reads == int((lens | (batch["labels"] != IGNORE)).sum())
    assert distance(some.loss, everything.loss) < 1e-9


def test_jacobi_is_exact_after_as_many_iterations_as_thoughts(model):
    batch = model.collate(ragged())
    exact = model(batch, logits="all")
    jacobi = model(batch, logits="all", executor="jacobi")
    assert jacobi.num_passes == 5
    assert (
        distance(exact.inputs_embeds[batch["latent"]], jacobi.inputs_embeds[batch["latent"]]) < 1e-9
    )
    assert distance(exact.loss, jacobi.loss) < 1e-9
    got, want = gradients(model, batch, executor="jacobi"), gradients(model, batch)
    for name, grad in want.items():
        assert distance(got[name], grad) < 1e-6, name


def test_fewer_jacobi_iterations_leave_the_first_thoughts_exact():
    model = make_model()
    batch = model.collate([interleaved(6, seed=1)])
    with torch.no_grad():
        exact, _ = model(batch).thoughts()
        errors = []
        for k in range(7):
            output = model(batch, executor="jacobi", iterations=k)
            thoughts, _ = output.thoughts()
            assert k == 0 or distance(thoughts[:, :k], exact[:, :k]) < 1e-9
            assert k == 6 or distance(thoughts[:, k], exact[:, k]) > 1e-4
            errors.append(float((thoughts - exact).norm()))
            assert output.num_passes == 1 + k
    assert errors[6] < 1e-9 < errors[5] < errors[0]
    changes = model(batch, executor="jacobi", iterations=8).changes
    assert changes[5] > 0 and float(changes[6:].abs().max()) < 1e-12


def test_edits_see_every_thought_once(model):
    batch = model.collate(ragged())
    seen = []

    def edit(thought, where, number):
        seen.extend((r, int(number[r])) for r in where.nonzero()[:, 0].tolist())
        return torch.zeros_like(thought)

    with torch.no_grad():
        output = model(batch, edit=edit)
        slow = model(batch, edit=lambda t, *_: torch.zeros_like(t), executor="recompute")
    assert sorted(seen) == [(r, n) for r, s in enumerate(ragged()) for n in range(s.num_thoughts)]
    assert (output.inputs_embeds[batch["latent"]] == 0).all()
    assert distance(output.loss, slow.loss) < 1e-9


def test_bfloat16_autocast_trains():
    model = make_model(dtype=torch.float32).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(model.collate(ragged())).total
    loss.backward()
    assert loss.isfinite()
    assert model.embedding.weight.grad.isfinite().all()


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "segments, told",
    [
        ((text(2, 0), bot(), Latent(1)), "open at the end"),
        ((text(2, 0), Latent(1), eot()), "not preceded by <bot>"),
        ((text(2, 0), eot()), "not open"),
        ((Text((1, SPECIALS.latent), False),), "placeholder"),
        ((text(2, 0), Latent(95)), "context holds 96"),
    ],
)
def test_bad_rows_are_named(segments, told):
    rows = [interleaved(1), Sample(segments)]
    with pytest.raises(ValueError, match=f"row 1 of the batch: .*{told}"):
        make_model().collate(rows)


def test_bad_batches_and_options_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match="at least one sample"):
        model.collate([])
    batch = model.collate([interleaved(2, seed=1)])
    with pytest.raises(ValueError, match="no executor 'fast'"):
        model(batch, executor="fast")
    with pytest.raises(ValueError, match="iterations is -1"):
        model(batch, executor="jacobi", iterations=-1)
    first = {**batch, "latent": torch.ones_like(batch["latent"])}
    with pytest.raises(ValueError, match="thought in column 0"):
        model(first)
    mask = batch["attention_mask"].clone()
    mask[0, int(batch["latent"].nonzero()[0, 1]) - 1] = 0
    with pytest.raises(ValueError, match="is masked"):
        model({**batch, "attention_mask": mask})
    with pytest.raises(ValueError, match="context of the base holds 96"):
        model({**batch, "position_ids": batch["position_ids"] + 90})


def test_bases_that_cannot_think_are_refused():
    with pytest.raises(ValueError, match=r"vocabulary of 40 tokens; call add_specials"):
        Coconut(make_base("gpt2"), Specials(38, 39, 40))
    with pytest.raises(ValueError, match="Linear is no model of transformers"):
        Coconut(torch.nn.Linear(2, 2), SPECIALS)

    class WithoutEmbeds(type(make_base("gpt2"))):
        def forward(self, input_ids, attention_mask=None, past_key_values=None):
            return super().forward(input_ids)

    with pytest.raises(ValueError, match="takes no inputs_embeds"):
        Coconut(WithoutEmbeds(make_base("gpt2").config), SPECIALS)
    model = make_model()
    head = model.base.lm_head
    model.base.get_output_embeddings = lambda: torch.nn.Linear(2, head.out_features)
    with pytest.raises(ValueError, match="0 times in a forward"):
        model(model.collate(ragged()))
    assert not head._forward_pre_hooks


def test_checkpointing_is_refused_where_it_drops_the_cache():
    model = make_model()
    for module in model.base.modules():  # what gradient_checkpointing_enable sets in any version
        if hasattr(module, "gradient_checkpointing"):
            again = partial(checkpoint, use_reentrant=False)
            vars(module).update(gradient_checkpointing=True, _gradient_checkpointing_func=again)
    model.train()
    batch = model.collate(ragged())
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(batch)
    assert model(batch, executor="recompute").loss.isfinite()


# --- tokens and files -----------------------------------------------------------------------------


def table_of(base) -> torch.Tensor:
    return base.get_input_embeddings().weight


def test_specials_are_added_once_and_start_from_a_token():
    tokenizer, base = make_tokenizer(), make_base("gpt2")
    base.resize_token_embeddings(37)
    before = table_of(base)[5].clone()
    specials = add_specials(tokenizer, base, init_from=5)
    assert (specials.bot, specials.eot, specials.latent) == (37, 38, 39)
    table = table_of(base)
    assert len(table) == 40 and (table[37:] == before).all()
    with torch.no_grad():
        table[38] = 1.0
    assert add_specials(tokenizer, base) == specials
    assert (table_of(base)[38] == 1.0).all(), "a trained row was overwritten"
    fresh, roomy = make_tokenizer.__wrapped__(), make_base("gpt2")
    # a table longer than the tokenizer's keeps its length
    roomy.resize_token_embeddings(64)
    mean = table_of(roomy)[:37].mean(0)
    assert add_specials(fresh, roomy) == specials and len(table_of(roomy)) == 64
    assert torch.allclose(table_of(roomy)[37:40], mean.expand(3, -1), atol=1e-6)
    with pytest.raises(ValueError, match="init_from is 37"):
        add_specials(make_tokenizer.__wrapped__(), make_base("gpt2"), init_from=37)
    assert tokenizer.decode([3, 38, 4], skip_special_tokens=True) == "w3 w4", "boundaries show"
    with pytest.raises(ValueError, match=r"end-latent"):
        encode_text(tokenizer, "w3 <|end-latent|> w4")
    with pytest.raises(ValueError, match="init_from is 99"):
        add_specials(tokenizer, base, init_from=99)


@pytest.mark.parametrize("kind", BASES)
def test_saved_and_loaded(kind, tmp_path):
    settings = CoconutSettings(feedback="projector", seed=3)
    tokenizer = make_tokenizer()
    base = make_base(kind, dtype=torch.float32)
    model = Coconut(base, SPECIALS, settings, tokenizer=tokenizer).eval()
    model.save_pretrained(tmp_path / "m")
    again = Coconut.from_pretrained(tmp_path / "m").eval()
    assert again.settings == settings and again.specials == SPECIALS
    assert again.tokenizer.get_vocab() == tokenizer.get_vocab()
    batch = model.collate(ragged())
    with torch.no_grad():
        assert torch.equal(model(batch).loss, again(batch).loss)
    assert (
        json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "inward_coconut"
    )


def test_what_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        Coconut.from_pretrained(tmp_path)
    model = Coconut(make_base("gpt2"), SPECIALS, CoconutSettings(feedback="norm"))
    model.save_pretrained(tmp_path)
    (tmp_path / "feedback.safetensors").unlink()
    with pytest.raises(ValueError, match="missing: rms"):
        Coconut.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="model_type is 'gpt2'"):
        Coconut.from_pretrained(tmp_path)


def lora(base):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    return peft.get_peft_model(base, config)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
def test_adapters_train_alone_and_are_saved(tmp_path):
    base = make_base("llama", dtype=torch.float32)
    model = Coconut(lora(base), SPECIALS).eval()
    batch = model.collate(ragged())
    fast, slow = (model(batch, executor=e) for e in ("sequential", "recompute"))
    assert distance(fast.loss, slow.loss) < 1e-5
    grads = gradients(model, batch)
    assert grads and all("lora_" in name for name in grads)
    assert max(float(grad.abs().max()) for grad in grads.values()) > 0
    model.save_pretrained(tmp_path)
    fresh = make_base("llama", dtype=torch.float32)
    again = Coconut.from_pretrained(tmp_path, base=fresh).eval()
    with torch.no_grad():
        assert torch.equal(model(batch).loss, again(batch).loss)
        plain = make_model("llama", dtype=torch.float32)(batch).loss
    assert distance(plain, fast.loss) > 1e-4, "the adapter does nothing"
    with pytest.raises(ValueError, match="pass it as base="):
        Coconut.from_pretrained(tmp_path)


def test_prompt_adapters_are_refused():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = peft.get_peft_model(make_base("gpt2"), config)
    with pytest.raises(ValueError, match="prepends virtual tokens"):
        Coconut(base, SPECIALS)


# --- the loss of the training loop ----------------------------------------------------------------


def test_the_loss_does_not_depend_on_how_the_batch_is_cut(model):
    rows = ragged()
    whole = model.loss(model.collate(rows))
    parts = [model.loss(model.collate(rows[a:b])) for a, b in ((0, 1), (1, 4))]
    assert distance(whole.total, sum(part.total for part in parts)) < 1e-9
    for name, (value, count) in whole.metrics.items():
        assert distance(value, sum(part.metrics[name][0] for part in parts)) < 1e-9
        assert count == sum(part.metrics[name][1] for part in parts)


def test_a_step_of_learning_makes_the_loss_fall():
    model = make_model(dtype=torch.float32).train()
    batch = model.collate(ragged())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model.loss(batch).total / batch["weight"].sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
