"""Replacing thoughts and reading them: exact on a toy whose thoughts are set by hand."""

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from inward.data.thoughts import prosqa
from inward.data.thoughts.prosqa import ProsQASettings
from inward.data.thoughts.segments import Latent, Sample, Text
from inward.methods.coconut.generate import generate
from inward.methods.coconut.model import Coconut
from inward.methods.coconut.switch import Scripted
from inward.recipes.coconut import CoconutRecipe, ProsQAData, SmallBase
from inward.studies import thoughts_ablate as causal
from inward.studies import thoughts_read as reading
from inward.studies import thoughts_search as search
from inward.studies.thoughts_ablate import (
    Thoughts,
    ablate,
    block_of,
    cut,
    replaced,
    step_after,
    swap_block,
)
from inward.studies.thoughts_jacobi import jacobi_errors
from inward.studies.thoughts_read import readability
from inward.studies.thoughts_search import by_height, groups, heights, read_out, superposition
from tests.methods.coconut.toys import (
    BASES,
    SPECIALS,
    VOCAB,
    bot,
    distance,
    eot,
    interleaved,
    make_model,
    ragged,
    text,
)

END = 5
"""The token that ends a step in these tests."""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=BASES, scope="module")
def model(request):
    return make_model(request.param)


@pytest.fixture(scope="module")
def gpt2():
    return make_model("gpt2")


def questions(num: int = 7, thoughts: int = 3) -> list[Sample]:
    """Of different lengths, with the same number of thoughts."""
    return [Sample((text(3 + r % 4, r), bot(), Latent(thoughts), eot())) for r in range(num)]


@pytest.fixture(scope="module")
def parrot() -> Coconut:
    """A base without layers, one-hot embeddings and no positions: it says what it just heard.

    Its thoughts are the layer norm of the last token's embedding, over and over, so what they hold
    is known exactly: that token.
    """
    config = GPT2Config(
        vocab_size=VOCAB, n_layer=0, n_embd=VOCAB, n_head=1, n_positions=64,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    base = GPT2LMHeadModel(config)
    with torch.no_grad():
        base.transformer.wte.weight.copy_(torch.eye(VOCAB))
        base.transformer.wpe.weight.zero_()
    return Coconut(base, SPECIALS).eval()


def parroting(word: int) -> Sample:
    """A question that ends with a word, and two thoughts of it; no boundary tokens."""
    return Sample((Text((1, word), False), Latent(2)))


def some(N: int = 6, K: int = 3, d: int = 4) -> Thoughts:
    """Thoughts with a hole: the last question has one only."""
    vectors = torch.randn(N, K, d, generator=torch.Generator().manual_seed(1)).double()
    there = torch.ones(N, K, dtype=torch.bool)
    there[-1, 1:] = False
    return Thoughts(vectors * there[..., None], there)


# --- replacing ------------------------------------------------------------------------------------


def test_what_takes_the_place_of_a_thought():
    own = some()
    assert torch.equal(replaced(own, "same").vectors, own.vectors)
    assert not replaced(own, "nothing").there.any()
    assert (replaced(own, "zero").vectors == 0).all()
    noise = replaced(own, "noise", seed=3)
    assert torch.allclose(
        noise.vectors.norm(dim=-1)[own.there], own.vectors.norm(dim=-1)[own.there]
    )
    assert distance(noise.vectors[own.there], own.vectors[own.there]) > 0.1
    assert (
        torch.equal(noise.vectors, replaced(own, "noise", seed=3).vectors)
        or noise.vectors.isnan().any()
    )
    mean = replaced(own, "mean").vectors
    assert torch.allclose(mean[0, 0], own.vectors[:, 0].mean(0))
    assert torch.allclose(mean[4, 2], own.vectors[:-1, 2].mean(0)), "absent thoughts are no zeros"
    other = replaced(own, "other", seed=2)
    for r in range(6):
        donors = [q for q in range(6) if torch.equal(other.vectors[r], own.vectors[q])]
        assert len(donors) == 1 and donors != [r]
        assert torch.equal(other.there[r], own.there[donors[0]])


def test_nobody_is_their_own_other():
    for num in (2, 3, 10):
        for seed in range(5):
            donors = causal.others(num, seed)
            assert sorted(donors) == list(range(num)) and not (donors == np.arange(num)).any()


def test_putting_replaces_the_named_thoughts_alone():
    own = some()
    edit = causal.putting(own, {1})
    inputs = torch.full((6, 4), 9.0).double()
    where = torch.tensor([True, True, False, True, True, True])
    out = edit(inputs, where, torch.tensor([1, 0, 1, 1, 7, 1]))
    assert torch.equal(out[0], own.vectors[0, 1]) and torch.equal(out[3], own.vectors[3, 1])
    # not named; not thinking; beyond what there is; not there
    assert (out[[1, 2, 4, 5]] == 9).all()


def test_steps_and_blocks_of_a_sample():
    sample = Sample(
        (text(2, 1), bot(), Latent(2), Text((SPECIALS.eot, 7, END, 8), True), bot(), Latent(1))
    )
    assert step_after(sample, 0, SPECIALS, {END}) == (7, END)
    assert step_after(sample, 0, SPECIALS, set()) == (7, END, 8)
    assert step_after(sample, 1, SPECIALS, {END}) == ()
    assert [block_of(sample, n) for n in range(4)] == [0, 0, 1, -1]
    assert cut(sample, 0, SPECIALS) == Sample((text(2, 1), bot(), Latent(2), eot()))
    assert cut(sample, 1, SPECIALS).blocks == (2, 1)
    assert len(cut(sample, 1, SPECIALS)) == len(sample)


# --- ablation -------------------------------------------------------------------------------------


def golds_of(model, prompts) -> list:
    return [tuple(t) for t in generate(model, prompts, max_new_tokens=6).tokens]


def test_the_same_thoughts_change_nothing(model):
    prompts = questions()
    golds = golds_of(model, prompts)
    options = {"answer": tuple, "ends": {END}, "max_new_tokens": 6, "batch": 3}
    found = {a.kind: a for a in ablate(model, prompts, golds, kinds=causal.KINDS, **options)}
    for kind in ("nothing", "same"):
        assert found[kind].accuracy.value == 1
        assert found[kind].answer_changed.value == found[kind].step_changed.value == 0
    assert found["same"].replaced == 3 and found["nothing"].replaced == 0
    assert found["other"].replaced == found["zero"].replaced == 3
    for a in found.values():
        # the gold answers are the untouched ones, so both say the same
        assert a.before.value == 1 and a.num == 7
        assert a.accuracy.value == pytest.approx(1 - a.answer_changed.value)
        assert a.gain.difference.value == pytest.approx(a.accuracy.value - 1)
        assert a.step_changed.value <= a.answer_changed.value


def test_the_parrot_says_what_its_thoughts_hold(parrot):
    """Every number of every kind is known."""
    words = [7, 7, 7, 8, 9]
    prompts = [parroting(word) for word in words]
    options = {"answer": tuple, "ends": {END}, "max_new_tokens": 1, "boundaries": False, "batch": 2}
    golds = [(word,) for word in words]
    found = ablate(parrot, prompts, golds, kinds=("same", "other", "mean", "zero"), **options)
    same, other, mean, zero = found
    assert [same.accuracy.value, same.answer_changed.value] == [1, 0]
    donors = [words[d] for d in causal.others(5, 0)]
    told = np.mean([a == b for a, b in zip(words, donors, strict=True)])
    assert other.accuracy.value == told and other.step_changed.value == 1 - told
    assert mean.accuracy.value == 3 / 5  # the mean of five one-hot words is mostly a 7
    assert zero.accuracy.value == 0 and zero.gain.only_second == 5
    # the first thought alone: the second is made from it
    (first,) = ablate(parrot, prompts, golds, kinds=("other",), which=[0], **options)
    assert first.accuracy.value == told
    swaps = swap_block(parrot, prompts, ends=range(VOCAB), max_new_tokens=1)
    assert [s.step_changed.value for s in swaps] == [0, 0, 1 - told]


def test_thoughts_of_a_switch_are_replaced_too(model):
    prompts = [Sample((text(3 + r, r),)) for r in range(4)]
    script = Scripted((2, 1), sentences=1, ends=range(37))
    options = {"answer": tuple, "ends": range(37), "max_new_tokens": 8, "switch": script}
    golds = [tuple(t) for t in generate(model, prompts, max_new_tokens=8, switch=script).tokens]
    same, zero = ablate(model, prompts, golds, kinds=("same", "zero"), **options)
    assert same.replaced == 3 and same.answer_changed.value == 0
    # the same by hand
    edited = generate(
        model, prompts, max_new_tokens=8, switch=script, edit=lambda t, *_: torch.zeros_like(t)
    ).tokens
    changed = np.mean([tuple(t) != g for t, g in zip(edited, golds, strict=True)])
    assert zero.answer_changed.value == changed


def test_one_thought_alone(gpt2):
    prompts = questions()
    golds = golds_of(gpt2, prompts)
    (found,) = ablate(
        gpt2, prompts, golds, answer=tuple, ends={END}, kinds=("zero",), which=[2], max_new_tokens=6
    )

    def edit(thoughts, where, number):
        return torch.where((number == 2)[:, None], 0.0, thoughts)

    edited = generate(gpt2, prompts, max_new_tokens=6, edit=edit).tokens
    assert found.which == (2,) and found.replaced == 1
    changed = np.mean([tuple(t) != g for t, g in zip(edited, golds, strict=True)])
    assert found.answer_changed.value == changed


def test_mean_ablation_by_hand(gpt2):
    """Two questions: the mean of their thoughts, worked out with the plain forward."""
    prompts = questions(2, thoughts=1)
    with torch.no_grad():
        means = torch.stack([gpt2(gpt2.collate([p])).thoughts()[0][0, 0] for p in prompts]).mean(0)
    want = generate(gpt2, prompts, max_new_tokens=6, edit=lambda t, *_: means.expand_as(t)).tokens
    (found,) = ablate(
        gpt2,
        prompts,
        [tuple(t) for t in want],
        answer=tuple,
        ends={END},
        kinds=("mean",),
        max_new_tokens=6,
    )
    assert found.accuracy.value == 1


def test_ablation_refuses_what_makes_no_sense(gpt2):
    prompts, options = questions(2), {"answer": tuple, "ends": {END}}
    with pytest.raises(ValueError, match="one answer a question"):
        ablate(gpt2, prompts, [1], **options)
    with pytest.raises(ValueError, match="one answer a question"):
        ablate(gpt2, [], [], **options)
    with pytest.raises(ValueError, match="no kind 'magic'"):
        ablate(gpt2, prompts, [1, 2], kinds=cast(Any, ["magic"]), **options)
    with pytest.raises(ValueError, match="thoughts 0 to 2"):
        ablate(gpt2, prompts, [1, 2], which=[3], **options)
    never = {"switch": "budget:total=0", **options}
    with pytest.raises(ValueError, match="no question led to a thought"):
        ablate(gpt2, [Sample((text(3, 1),))] * 2, [1, 2], **never)
    with pytest.raises(ValueError, match="two questions"):
        ablate(gpt2, prompts[:1], [1], kinds=("other",), **options)


# --- the step after a block -----------------------------------------------------------------------


def spoken(model, num: int = 6) -> list[Sample]:
    """What a model says in a rhythm whose blocks differ in length."""
    rows = [Sample((text(3 + r, r),)) for r in range(num)]
    script = Scripted((2, 3), sentences=1, ends=range(37))
    return generate(model, rows, switch=script, max_new_tokens=8).samples


def test_swapping_nothing_or_the_same_changes_no_step(model):
    samples = spoken(model)
    for block in (0, 1):
        found = swap_block(model, samples, block=block, ends=range(37), batch=4)
        assert [f.kind for f in found] == ["nothing", "same", "other"]
        assert [f.step_changed.value for f in found[:2]] == [0, 0]
        assert all(f.num == 6 for f in found)


def test_a_block_is_swapped_as_a_whole(gpt2):
    """Against the same by hand: thoughts of the donor in the second block, its own in the first."""
    samples = spoken(gpt2, 2)
    prompts = [cut(s, 1, SPECIALS) for s in samples]
    with torch.no_grad():
        own = [gpt2(gpt2.collate([p])).thoughts()[0][0] for p in prompts]
    changed = []
    for r, prompt in enumerate(prompts):

        def edit(thoughts, where, number, donor=own[1 - r]):
            n = int(number[0])
            return donor[n][None] if n >= 2 else thoughts

        steps = [
            generate(gpt2, [prompt], eos_token_id=list(range(37)), edit=e).tokens[0]
            for e in (None, edit)
        ]
        changed.append(steps[0] != steps[1])
    (found,) = swap_block(gpt2, samples, block=1, ends=range(37), kinds=("other",))
    assert found.step_changed.value == np.mean(changed)


def test_blocks_of_different_lengths_swap(gpt2):
    samples = ragged()  # second blocks of 1, none, none, 2 thoughts
    (same, other) = swap_block(gpt2, samples, block=1, ends={END}, kinds=("same", "other"))
    assert same.num == other.num == 2 and same.step_changed.value == 0
    with pytest.raises(ValueError, match="1 of 4 samples have a block 2"):
        swap_block(gpt2, samples, block=2, ends={END})


def test_a_short_block_is_filled_up_with_its_last_thought():
    own = some()
    aligned = causal._align(own, [2, 1, 3, 3, 2, 1])
    assert torch.equal(aligned.vectors[0], own.vectors[0, [1, 2, 2]])
    assert torch.equal(aligned.vectors[5], own.vectors[5, [0, 0, 0]])
    back = causal._in_place(own, aligned, [2, 1, 3, 3, 2, 1])
    assert torch.equal(back.vectors, own.vectors)
    assert back.there.sum(1).tolist() == [2, 1, 3, 3, 2, 1]
    assert back.there[0].tolist() == [False, True, True]


# --- readability ----------------------------------------------------------------------------------


def test_the_lens_is_the_head_before_each_thought(model):
    samples = spoken(model)
    found = reading.blocks(model, samples, ends=range(37), target=lambda step: step[0], k=4)
    assert len(found.targets) == 12 and found.top.shape == (12, 3, 4)
    for i, (q, j) in enumerate(zip(found.question, found.block, strict=True)):
        assert found.targets[i] == step_after(samples[q], j, SPECIALS, range(37))[0]
        with torch.no_grad():
            out = model(model.collate([samples[q]]), logits="all")
        columns = out.batch["latent"][0].nonzero()[:, 0]
        own = columns[:2] if j == 0 else columns[2:]
        want = out.logits[0, own - 1].topk(4).indices
        assert found.top[i, : len(own)].tolist() == want.tolist()
        assert (found.top[i, len(own) :] == -1).all()
        # the shortest block has two thoughts: the last two of each
        fed = out.inputs_embeds[0, own[-2:]].flatten()
        assert distance(found.vectors[i], fed) < 1e-5


def test_what_the_thoughts_of_the_parrot_hold_is_read(parrot):
    """Its thoughts hold a word: the next spoken one is read always, another question's never."""
    held = list(range(10, 22))
    samples = [Sample((*parroting(w).segments, Text((w, END), True))) for w in held]
    found = readability(parrot, samples, ends={END}, k=2)
    assert (found.num, found.top_1.value, found.top_k.value) == (12, 1, 1)
    assert found.shuffled_top_1.value == 0
    # every target occurs once, so no probe can know those of its test questions
    assert found.num_tested == 6 and found.probe.value == found.majority.value == 0
    twice = readability(parrot, samples * 8, ends={END}, seed=1)
    assert twice.probe.value == 1 and twice.shuffled_probe.value < 0.4
    assert twice.majority.value < 0.4
    # a step that says something else than the thoughts hold
    other = [Sample((*parroting(w).segments, Text((w + 1, END), True))) for w in held]
    assert readability(parrot, other, ends={END}, k=1).top_k.value == 0


def test_the_probe_reads_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    X = torch.from_numpy(rng.standard_normal((300, 12)))
    targets = X[:, :5].argmax(1).numpy() + 10
    named = reading.probe(X[:200], targets[:200], X[200:], ridge=0.01)
    assert (named == targets[200:]).mean() > 0.8
    nothing = rng.permutation(targets)
    named = reading.probe(X[:200], nothing[:200], X[200:], ridge=0.01)
    assert (named == nothing[200:]).mean() < 0.4
    # fewer rows than columns: the other form of the same solution
    few = reading.probe(X[:8], targets[:8], X, ridge=0.1)
    big = torch.cat([X, torch.zeros(300, 1)], 1)
    assert (few == reading.probe(big[:8], targets[:8], big, ridge=0.1)).all()


def test_both_forms_of_the_probe_agree():
    X = torch.randn(10, 10, generator=torch.Generator().manual_seed(0)).double()
    targets = np.arange(10) % 3
    tall = reading.probe(torch.cat([X, X]), np.tile(targets, 2), X, ridge=0.5)
    wide = reading.probe(X, targets, X, ridge=0.5)  # the same means: the same weights
    assert (tall == wide).all()


def test_shuffled_thoughts_come_from_another_question_and_the_same_block():
    found = reading.Blocks(
        question=np.array([0, 0, 1, 1, 2, 2, 3]),
        block=np.array([0, 1, 0, 1, 0, 1, 2]),
        targets=np.zeros(7, dtype=int),
        top=np.zeros((7, 1, 1), dtype=int),
        vectors=torch.zeros(7, 2),
    )
    donors = reading.other_questions(found, 1)
    assert donors[6] == -1
    for i, donor in enumerate(donors[:6]):
        assert found.block[donor] == found.block[i] and found.question[donor] != found.question[i]


def test_readability_refuses_what_makes_no_sense(gpt2):
    samples = spoken(gpt2)
    with pytest.raises(ValueError, match="fit_share 1"):
        readability(gpt2, samples, ends={END}, fit_share=1)
    with pytest.raises(ValueError, match="no block"):
        readability(gpt2, samples, ends={END}, target=lambda step: None)
    with pytest.raises(ValueError, match="two or more"):
        readability(gpt2, samples[:1], ends=range(37), target=lambda step: step[0])
    with pytest.raises(ValueError, match="no block"):
        readability(gpt2, [interleaved(seed=1)], ends={END})


# --- the search tree ------------------------------------------------------------------------------

SMALL = ProsQASettings(num_nodes=10, min_hops=2, max_hops=3, shortcut=False)


def asked(rendering: Any = "symbolic", num: int = 3) -> tuple:
    """A small model with its questions."""
    data = ProsQAData(rendering=rendering, graphs=SMALL, num_train=4, num_valid=4, num_test=num)
    base = SmallBase("llama" if rendering == "text" else "gpt2", width=16, num_heads=2)
    torch.manual_seed(0)
    model = CoconutRecipe("toy", "", data=data, base=base).model().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model, data.task().ask(data.split("test"))


@pytest.mark.parametrize("rendering", ["symbolic", "text"])
def test_the_value_of_a_node_is_the_probability_of_its_name(rendering):
    model, records = asked(rendering)
    found = read_out(model, records, num=3, batch=3)
    for tree, record in zip(found, records, strict=True):
        names = [search._name(model, record, i) for i in range(len(tree.symbols))]
        prompts = [search._forced(model, record, t) for t in range(4)]
        with torch.no_grad():
            slow = search._spelled(model, prompts, names, 5)
        assert np.abs(tree.values - slow).max() < 1e-9
        assert (tree.values > 0).all() and (tree.values.sum(1) < 1).all()
        assert [p.num_thoughts for p in prompts] == [0, 1, 2, 3]


def test_names_of_several_tokens_are_spelled_out(monkeypatch):
    model, records = asked()
    whole = search._name
    monkeypatch.setattr(search, "_name", lambda m, r, i: whole(m, r, i) + whole(m, r, 0))
    (tree,) = read_out(model, records[:1], num=1)
    ids = search._name(model, records[0], 2)
    row = Sample((*search._forced(model, records[0], 1).segments, Text(ids, True)))
    with torch.no_grad():
        logp = model(model.collate([row])).row_loss.neg()
    assert tree.values[1, 2] == pytest.approx(float(logp.exp()))
    with pytest.raises(ValueError, match="2 tokens"):
        superposition(model, records, num=1)


DIAMOND = prosqa.Graph(
    7, edges=((0, 2), (0, 3), (2, 4), (3, 4), (4, 5), (1, 6), (3, 6)), root=0, other_root=1,
    target=5, neg_target=6,
)  # fmt: skip


def test_groups_of_a_graph_by_hand():
    assert groups(DIAMOND, 1) == {
        "unreachable": [1, 4, 5, 6],
        "reachable": [0],
        "frontier": [],
        "optimal": [2, 3],
    }
    assert groups(DIAMOND, 2)["frontier"] == [6] and groups(DIAMOND, 2)["optimal"] == [4]
    assert groups(DIAMOND, 4)["reachable"] == [0, 2, 3, 4, 5, 6]
    assert heights(DIAMOND).tolist() == [2, 1, 2, 1, 1, 0, 0]
    assert heights(DIAMOND, "longest").tolist() == [3, 1, 2, 2, 1, 0, 0]
    with pytest.raises(ValueError, match="shortest"):
        heights(DIAMOND, "tall")  # pyright: ignore[reportArgumentType]


def diamond(values) -> search.ReadOut:
    record = prosqa.render(DIAMOND, np.random.default_rng(0), rendering="symbolic")
    return search.ReadOut(record, np.asarray(values, dtype=float))


def test_height_against_value_by_hand():
    trees = [diamond([[0] * 7, [0] * 7, [0, 0, 0, 0, v, 0, w]]) for v, w in ((0.5, 0.1), (0.7, 0))]
    table = by_height(trees, hops=2)
    low, high = table.rows  # node 6 is a leaf and wrong, node 4 one above a leaf and right
    assert (low.height, low.num_right, low.num_wrong) == (0, 0, 2)
    assert low.right is None and low.wrong.value == pytest.approx(0.05)
    assert high.right.value == pytest.approx(0.6) and high.wrong is None
    # errors 0.1 and 0 at height 0, 0.5 and 0.3 at height 1
    assert table.correlation == pytest.approx(0.894, abs=1e-3)
    with pytest.raises(ValueError, match="0 to 2"):
        by_height(trees, hops=3)
    sums = search.parallelism(trees, hops=2)
    assert sums == pytest.approx(np.array([[0.5, 0.6, 0.6], [0.7, 0.7, 0.7]]))


def test_superposition_by_hand():
    model, records = asked()
    found = superposition(model, records, num=2, batch=2)
    assert found.num == 3 and len(found.inner) == len(found.lens) == 2
    inner, lens = [], []
    for record in records:
        ids = [search._name(model, record, i)[0] for i in range(len(record.meta["idx_to_symbol"]))]
        with torch.no_grad():
            out = model(model.collate([search._forced(model, record, 2)]), logits="all")
        column = int(out.batch["latent"][0].nonzero()[1])
        nodes = groups(prosqa.graph_of(record), 2)["optimal"]
        vectors = model.embedding.weight[[ids[n] for n in nodes]].detach()
        inner.append(float((vectors @ out.inputs_embeds[0, column]).mean()))
        lens.append(float(out.logits[0, column - 1].softmax(-1)[[ids[n] for n in nodes]].sum()))
    assert found.inner[1]["optimal"].value == pytest.approx(np.mean(inner), rel=1e-5)
    assert found.lens[1]["optimal"].value == pytest.approx(np.mean(lens), rel=1e-5)
    assert math.isfinite(found.lens[1]["optimal"].low)
    total = sum(found.nodes[0].values())
    assert total == pytest.approx(np.mean([len(r.meta["idx_to_symbol"]) for r in records]))


def test_thoughts_of_two_count_as_one_hop():
    model, records = asked()
    wide = superposition(model, records, num=2, per_hop=2)
    assert wide.nodes[0] == wide.nodes[1]
    trees = read_out(model, records[:1], num=4, per_hop=2)
    assert (trees[0].after(2) == trees[0].values[4]).all()
    assert trees[0].depths[records[0].meta["root"]] == 0


def test_the_search_refuses_what_makes_no_sense():
    model, records = asked()
    with pytest.raises(ValueError, match="0 records"):
        read_out(model, [], num=2)
    with pytest.raises(ValueError, match="0 thoughts"):
        read_out(model, records, num=0)
    with pytest.raises(ValueError, match="no ProsQA puzzle"):
        read_out(model, [prosqa.Record("a", ("b",), "c")], num=1)
    model.tokenizer = None
    with pytest.raises(ValueError, match="tokenizer"):
        superposition(model, records, num=1)


# --------------------------------------------------------------------------------------------------
# All thoughts at once


def test_jacobi_errors_end_with_the_last_thought(model):
    """Against the executors called by hand, sample by sample."""
    samples = ragged()
    found = jacobi_errors(model, samples, batch=2)
    assert [e.iterations for e in found] == list(range(1 + max(s.num_thoughts for s in samples)))
    assert found[-1].thoughts < 1e-6 and abs(found[-1].loss) < 1e-6 and found[-1].words == 0
    assert found[0].thoughts > found[1].thoughts > 1e-6

    off = length = loss = count = words = 0.0
    for sample in samples:
        batch = model.collate([sample])
        first, said = True, torch.full_like(batch["labels"], -100)
        for i, (is_latent, token) in enumerate(
            zip(*(batch[k][0] for k in ("latent", "input_ids")), strict=True)
        ):
            first = first and not is_latent
            if not first and not is_latent and int(token) not in (SPECIALS.bot, SPECIALS.eot):
                said[0, i - 1] = token
        batch["labels"] = said
        with torch.no_grad():
            exact, near = model(batch), model(batch, executor="jacobi", iterations=1)
        one, other = exact.thoughts()[0], near.thoughts()[0]
        off, length = off + float((other - one).square().sum()), length + float(one.square().sum())
        loss += float(near.total - exact.total)
        words += int((near.logits.argmax(-1) != exact.logits.argmax(-1)).sum())
        count += int(exact.row_count.sum())
    assert found[1].thoughts == pytest.approx((off / length) ** 0.5, rel=1e-5)
    assert found[1].loss == pytest.approx(loss / count, abs=1e-6)
    assert found[1].words == pytest.approx(words / count)
    assert jacobi_errors(model, samples, most=1, batch=2) == found[:2]


def test_jacobi_errors_refuse_what_makes_no_sense(gpt2):
    with pytest.raises(ValueError, match="most is -1"):
        jacobi_errors(gpt2, ragged(), most=-1)
    with pytest.raises(ValueError, match="has a thought"):
        jacobi_errors(gpt2, [Sample((text(4, 0),))])
    with pytest.raises(ValueError, match="says a word"):
        jacobi_errors(gpt2, questions(3))
