"""What a base is like is found out when it is wrapped: taken as it is, or refused by name."""

from dataclasses import replace

import pytest
import torch
import transformers
from packaging.version import parse

from inward.common.costs import sizes_of
from inward.common.thinking import Request, run
from inward.data.thoughts.segments import Latent, Sample, Text
from inward.methods.coconut.door import METHOD
from inward.methods.coconut.model import Coconut
from inward.studies.bases_checks import SPECIALS, greedy, thinking_alone, words
from inward.studies.bases_tiny import VOCAB, tiny
from tests.methods.coconut.toys import distance, make_model, ragged

NEVER = (SPECIALS.bot, SPECIALS.eot, SPECIALS.latent)


NEWEST = pytest.mark.skipif(
    parse(transformers.__version__) < parse("5.24"), reason="made otherwise in older transformers"
)


def wrapped(kind, **changes):
    return Coconut(tiny(kind, **changes), SPECIALS).eval()


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("bert", {"is_decoder": False}, "BertLMHeadModel lets a position look.*is_decoder=True"),
        ("gemma3n_text", {}, "more of a token than its embedding.*per-layer embeddings of width 8"),
        pytest.param("rembert", {}, "head of RemBertForCausalLM reads 1664 numbers", marks=NEWEST),
        ("nemotron_h", {}, "in parts.*keeps its past in .*LinearAttentionLayer"),
        ("recurrent_gemma", {}, "RecurrentGemmaForCausalLM gives other logits.*in parts"),
    ],
)
def test_a_base_that_cannot_think_is_refused_by_what_it_is(kind, changes, told):
    model = tiny(kind, **changes).train()
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=told):
        Coconut(model, SPECIALS)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("kind", "changes", "manners"),
    [
        ("llama", {}, {"together": True, "plain": True}),
        ("mistral", {}, {"together": True, "reach": 6}),
        ("roberta", {"pad_token_id": 1}, {"first": 2, "together": True}),
        ("ctrl", {}, {"copies": True}),
        ("bart", {}, {"together": False, "plain": True}),
        ("jamba", {}, {"together": False, "plain": False}),
    ],
)
def test_what_a_base_is_like(kind, changes, manners):
    found = wrapped(kind, **changes).manners
    assert {name: getattr(found, name) for name in manners} == manners


def test_positions_that_begin_later_end_earlier():
    model = wrapped("roberta", pad_token_id=1, max_position_embeddings=20)
    assert model.max_positions == 18
    sample = Sample((Text(words(14, 1), False), Latent(2), Text(words(3, 2), True)))
    with pytest.raises(ValueError, match=r"19 positions.*18"):
        model.collate([sample])


# --- rows one by one ------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["sequential", "recompute", "jacobi"])
def test_rows_alone_give_what_rows_together_give(executor):
    model = make_model("llama", dtype=torch.float64)
    batch = model.collate(ragged())
    seen: dict[str, list] = {}

    def run_it(name):
        def edit(thought, where, number):
            seen.setdefault(name, []).extend(number[where].tolist())
            return thought * (1 + 0.1 * number[:, None])

        out = model(batch, executor=executor, logits="all", edit=edit, layers=True)
        weights = [p for p in model.parameters() if p.requires_grad]
        return out, torch.autograd.grad(out.total, weights)

    together, grads = run_it("together")
    model.manners = replace(model.manners, together=False)
    apart, own = run_it("apart")
    real = batch["attention_mask"].bool()
    for name in ("logits", "hidden", "inputs_embeds"):
        want, got = getattr(together, name), getattr(apart, name)
        assert got.shape == want.shape, name
        assert distance(got[real], want[real]) < 1e-9, name
    assert all(
        distance(got[real], want[real]) < 1e-9
        for got, want in zip(apart.layers, together.layers, strict=True)
    )
    assert distance(apart.row_loss, together.row_loss) < 1e-9
    assert all(distance(got, want) < 1e-7 for got, want in zip(own, grads, strict=True))
    if executor != "jacobi":  # which may go over a thought more than once
        assert sorted(seen["apart"]) == sorted(seen["together"])
        rows, thoughts = len(real), int(batch["latent"].sum())
        assert apart.num_passes == rows + thoughts


def test_labelled_logits_come_row_by_row_either_way():
    model = make_model("llama", dtype=torch.float64)
    batch = model.collate(ragged())
    want = model(batch, executor="recompute").logits
    model.manners = replace(model.manners, together=False)
    assert distance(model(batch).logits, want) < 1e-9


def test_masked_columns_never_reach_a_base_that_they_would_change():
    model = wrapped("bart")
    samples = [
        Sample((Text(words(n, n), False), Latent(1), Text(words(2, 2), True))) for n in (2, 5)
    ]
    batch = model.collate(samples)
    assert model(batch).loss.isfinite()
    with pytest.raises(ValueError, match=r"masked columns would change.*BartForCausalLM"):
        list(model.sequential(batch))


def test_a_recurrent_base_thinks_in_one_row_and_in_many():
    model = wrapped("jamba")
    prompts = [Sample((Text(words(n, n), False),)) for n in (3, 9)]
    work = METHOD.begin(model)
    options = {"thoughts": (2,), "boundaries": False}
    numbers = [work.add(Request(p, max_new_tokens=5, own=options)) for p in prompts]
    list(run(work))
    for number in numbers:
        answer = work.result(number)
        sample = answer.details["sample"]
        with torch.no_grad():
            _, logits = thinking_alone(model.base, sample)
        logits[:, list(NEVER)] = -torch.inf
        last = len(sample) - len(answer.tokens)
        best = logits[last - 1 : -1].argmax(-1).tolist()
        assert tuple(best) == answer.tokens


def test_a_model_without_attention_has_a_cost():
    sizes = sizes_of(tiny("mamba"))
    assert sizes.attention == sizes.cached == 0 < sizes.matrices


@pytest.mark.parametrize("kind", ["bart", "jamba"])
def test_a_forward_that_fails_is_run_again_or_cannot_be(kind):
    model = wrapped(kind)
    prompt = words(5, 1)
    want = greedy(model.base, prompt, 6, NEVER)
    work = METHOD.begin(model)
    number = work.add(Request(Sample((Text(prompt, False),)), max_new_tokens=6))
    work.step()
    work.step()
    handle = model.base.register_forward_hook(lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        work.step()
    handle.remove()
    if kind == "jamba":  # its state has taken the word in, and cannot give it back
        with pytest.raises(ValueError, match="cannot be taken back"):
            work.step()
        return
    list(run(work))
    assert list(work.result(number).tokens) == want


def test_the_vocabulary_of_these_checks_is_that_of_the_models():
    assert max(NEVER) == VOCAB - 1
