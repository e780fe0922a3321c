"""Training of Huginn: depths, truncated gradients, monitors; each against the obvious version."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inward.common.draws import Draws
from inward.data.texts.hops import Hops
from inward.data.texts.text import TextSource
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.huginn.settings import CollapseError, Depth, HuginnSettings, Watch
from inward.methods.huginn.train import (
    HuginnTraining,
    depth_of,
    look,
    loss,
    muon_parts,
    relative_change,
    sample_depth,
    sample_depths,
    sample_recurrences,
    split,
    token_correlation,
    unroll,
)
from inward.train.optim import build_optimizers, dense_parameters
from inward.train.settings import OptimSettings

ROWS = Hops(num_nodes=5, max_hops=3, num_walks=1)
SMALL = HuginnSettings(width=16, num_heads=2, mlp_width=24, prelude=1, core=2, coda=1)


def small(seed=0, **changes):
    torch.manual_seed(seed)
    depth = Depth(mean=4, backprop=2)
    config = replace(SMALL, **changes).config(
        vocab_size=ROWS.vocab_size, block_size=16, depth=depth
    )
    return HuginnForCausalLM(config)


def batch_of(num_rows=6, step=0, rows=None):
    rows = range(num_rows) if rows is None else rows
    return TextSource(ROWS, seed=0).batch(step, rows, num_rows)


def draws_of(num_rows=6, step=0, rows=None, seed=0):
    return Draws(seed, step, range(num_rows) if rows is None else rows, num_rows)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- depths


def test_depths_have_the_papers_distribution():
    """Monte-Carlo values of the notes, section 2.1, for 200,000 draws."""
    r = sample_recurrences(32, torch.Generator().manual_seed(0), num=200_000).double()
    assert r.mean() == pytest.approx(33.0, abs=0.2) and r.median() == 29
    assert r.std() == pytest.approx(18.0, abs=0.3)
    assert float(r.quantile(0.95)) == pytest.approx(67, abs=1)
    assert float((r < 8).double().mean()) == pytest.approx(0.009, abs=0.001)
    assert float((r - 8).clamp(min=0).mean()) == pytest.approx(25.0, abs=0.2)
    assert float(r.clamp(max=8).mean()) == pytest.approx(7.98, abs=0.01)


def test_one_depth_for_every_slice_of_a_step_and_another_for_the_next():
    depth = Depth(mean=16, backprop=4)
    whole = sample_depths(depth, draws_of(8))
    assert len(set(whole.tolist())) == 1
    assert torch.equal(sample_depths(depth, draws_of(8, rows=range(5, 8))), whole[5:])
    others = {int(sample_depths(depth, draws_of(8, step=s))[0]) for s in range(20)}
    assert len(others) > 5
    config = HuginnConfig(mean_recurrence=16, mean_backprop_depth=4)
    n, k = sample_depth(config, draws_of(8).generator)
    assert n + k == int(whole[0]) and k == min(4, n + k)


def test_a_row_keeps_its_own_depth_in_every_slice():
    depth = Depth(mean=16, backprop=4, sampling="row")
    whole = sample_depths(depth, draws_of(8))
    assert len(set(whole.tolist())) > 3
    assert torch.equal(sample_depths(depth, draws_of(8, rows=range(2, 5))), whole[2:5])


def test_fixed_bounded_and_ramped_depths():
    assert sample_depths(Depth(5, 2, "fixed"), draws_of(3)).tolist() == [5, 5, 5]
    bounded = Depth(mean=8, sampling="row", sigma=2.0, longest=1.5)
    assert int(sample_depths(bounded, draws_of(500)).max()) == 12
    ramp = Depth(mean=9, ramp=100)
    assert [ramp.at(step) for step in (0, 50, 100, 900)] == [1.0, 5.0, 9.0, 9.0]
    short = sample_depths(replace(ramp, sampling="row"), draws_of(2000)).double()
    assert short.mean() == pytest.approx(2.0, abs=0.1)


def test_split_differentiates_the_last_recurrences():
    config = HuginnConfig(mean_backprop_depth=8)
    assert [split(r, config) for r in (1, 8, 9, 40)] == [(0, 1), (0, 8), (1, 8), (32, 8)]
    assert depth_of(config) == Depth(32, 8)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"mean": 0}, "depth.mean is 0"),
        ({"backprop": 0}, "depth.backprop"),
        ({"sampling": "batch"}, "depth.sampling"),
        ({"longest": 0.5}, "depth.longest"),
        ({"sigma": -1.0}, "depth.sigma"),
    ],
)
def test_depths_out_of_range_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        Depth(**change)


# --- loss and gradient


def by_hand(model, batch, depths, k, seeds):
    """Every row alone, step by step, through `forward`."""
    total = torch.zeros(())
    for i, r in enumerate(depths.tolist()):
        ids, labels = batch["input_ids"][i : i + 1], batch["labels"][i : i + 1]
        steps = (max(r - k, 0), min(r, k))
        logits = model(ids[:, :-1], num_steps=steps, state_seed=seeds[i : i + 1]).logits
        total = total + F.cross_entropy(logits[0], labels[0, 1:], reduction="sum")
    return total


@pytest.mark.parametrize("sampling", ["step", "row", "fixed"])
def test_loss_and_gradient_are_those_of_the_rows_one_by_one(sampling):
    model, batch = small(), batch_of()
    depth = Depth(mean=4, backprop=2, sampling=sampling)
    draws = draws_of(step=1)
    depths, seeds = sample_depths(depth, draws), draws.integers(0, 2**62)
    if sampling == "row":  # some rows shorter than the window, some longer, none in order
        assert depths.min() <= 2 < depths.max() and depths.tolist() != sorted(depths)
    expected = by_hand(model, batch, depths, 2, seeds)
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    found = loss(model, batch, draws_of(step=1), depth=depth)
    found.total.backward()
    torch.testing.assert_close(found.total, expected, rtol=1e-5, atol=1e-5)
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-3, atol=1e-5, msg=name)
    total, rows = found.metrics["depth"]
    assert float(total) == float(depths.sum()) and rows == 6
    assert float(found.metrics["token_loss"][1]) == int(batch["weight"].sum())


def test_metrics_count_labels_and_right_ones():
    model, batch = small(), batch_of()
    found = loss(model, batch, draws_of())
    draws = draws_of()
    num = int(sample_depths(depth_of(model.config), draws)[0])
    logits = model(
        batch["input_ids"][:, :-1], num_steps=num, state_seed=draws.integers(0, 2**62)
    ).logits
    labels = batch["labels"][:, 1:]
    right = ((logits.argmax(-1) == labels) & (labels != -100)).sum()
    assert float(found.metrics["token_accuracy"][0]) == float(right)
    assert float(found.metrics["token_accuracy"][1]) == float(batch["weight"].sum())


def test_a_step_does_not_depend_on_how_its_batch_is_cut():
    model = small()
    for sampling in ("step", "row"):
        depth = Depth(mean=4, backprop=2, sampling=sampling)
        whole = loss(model, batch_of(), draws_of(), depth=depth).total
        parts = [
            loss(model, batch_of(rows=rows), draws_of(rows=rows), depth=depth).total
            for rows in (range(0, 2), range(2, 6))
        ]
        torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")  # renamed
def test_the_window_cuts_the_gradient_and_checkpointing_does_not_change_it():
    model, batch = small(), batch_of()
    deep, window = Depth(mean=6, backprop=6, sampling="fixed"), Depth(6, 2, "fixed")
    grads = {}
    for name, depth, checkpointing in (
        ("all", deep, False),
        ("window", window, False),
        ("checkpointed", window, True),
    ):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        loss(model, batch, draws_of(), depth=depth).total.backward()
        grads[name] = gradients(model)
    for name, grad in grads["window"].items():
        torch.testing.assert_close(grads["checkpointed"][name], grad, rtol=1e-5, atol=1e-6)
    adapter = "transformer.adapter.weight"
    assert not torch.allclose(grads["all"][adapter], grads["window"][adapter], rtol=1e-2)
    # the prelude is read at every recurrence, so it learns although its own pass is far away
    assert all(float(g.abs().max()) > 0 for n, g in grads["window"].items() if "prelude" in n)


def test_autocast_does_not_lose_the_gradient_of_weights_cast_without_a_graph():
    """PyTorch issue 65766: what the no-gradient recurrences cast must not be used again."""
    model, batch = small(), batch_of()
    depth = Depth(mean=5, backprop=2, sampling="fixed")
    grads = []
    for cache in (True, False):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache):
            found = loss(model, batch, draws_of(), depth=depth, watch=Watch(after=0))
        found.total.backward()
        grads.append(gradients(model))
    assert set(grads[0]) == set(grads[1]) == set(dict(model.named_parameters()))
    for name, grad in grads[1].items():
        off = (grads[0][name] - grad).norm() / grad.norm()
        assert float(off) < 2e-2, name  # a copy used twice adds its gradients in bfloat16


def test_unroll_of_equal_depths_is_a_plain_loop():
    model = small()
    e, context = model.embed(batch_of()["input_ids"])
    s = model.initial_state(e, seed=1)
    ours = unroll(model, s, e, context, torch.full((6,), 3), 2)
    for i in range(3):
        s = model.iterate(s, e, context, recurrence=i)
    assert torch.equal(ours, s)


# --- monitors


def test_correlation_and_change_are_their_definitions():
    s = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    cosines = torch.stack([F.cosine_similarity(s[:, i], s[:, j], dim=-1) for i, j in pairs])
    torch.testing.assert_close(token_correlation(s), cosines.mean(0), atol=1e-6, rtol=1e-5)
    same = s[:, :1].expand(2, 4, 5)
    torch.testing.assert_close(token_correlation(same), torch.ones(2))
    assert float(token_correlation(s[:, :1]).abs().max()) < 1e-6
    torch.testing.assert_close(relative_change(2 * s, s), torch.full((2,), 0.5))


class Constant(nn.Module):
    """A core that ignores its state: the same output for every token (or per token)."""

    def __init__(self, width, per_token):
        super().__init__()
        self.value = nn.Parameter(torch.randn(width))
        self.per_token = per_token

    def forward(self, x, context, layer_idx):
        ramp = torch.arange(1.0, 1 + x.shape[1])[:, None].sin() if self.per_token else 1.0
        return x * 0 + self.value * ramp + (self.per_token * 3) * torch.eye(*x.shape[1:])


def broken(per_token):
    model = small()
    model.transformer.core_block = nn.ModuleList([Constant(16, per_token)])
    return model


def test_looks_see_what_is_wrong():
    seeds = torch.arange(6)
    for model, correlation, changes in ((small(), 0.98, True), (broken(False), 1.0, False)):
        e, context = model.embed(batch_of()["input_ids"])
        found = {k: float(v.mean()) for k, v in look(model, e, context, seeds, 6).items()}
        assert (found["first_change"] > 1e-2) == changes
        assert (found["path"] > 1e-2) == changes  # untrained: not settled after 6
        assert math.isclose(found["correlation"], 1.0, abs_tol=1e-5) == (correlation == 1.0)


@pytest.mark.parametrize(
    "per_token, told", [(False, "all tokens of a row"), (True, "ignores its state")]
)
def test_a_broken_core_warns_or_stops(per_token, told):
    model, batch = broken(per_token), batch_of()
    with pytest.raises(CollapseError, match=f"step 201: .*{told}"):
        loss(model, batch, draws_of(step=200), watch=Watch("stop", after=200, every=100))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loss(model, batch, draws_of(step=200), watch=Watch(after=200, every=100))
    assert any(told in str(warning.message) for warning in seen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step, watch in (
            (100, Watch("stop", after=200)),  # too early
            (250, Watch("stop", after=200)),  # no look at this step
            (200, Watch("off", after=200)),
        ):
            loss(model, batch, draws_of(step=step), watch=watch)


def test_path_dependence_is_told():
    watch = Watch("stop", after=0)
    good = {"correlation": 0.1, "first_change": 0.5, "path": 0.1}
    watch.check(0, good)
    with pytest.raises(CollapseError, match=r"path of the states is 0\.7.*initial one"):
        watch.check(0, good | {"path": 0.7})


def test_metrics_keep_their_names_and_looks_change_nothing_else():
    model, batch = small(), batch_of()
    watch = Watch(after=10**6, every=10)
    at, between = (loss(model, batch, draws_of(step=s), watch=watch) for s in (10, 11))
    assert set(at.metrics) == set(between.metrics)
    assert float(between.metrics["path"][1]) == 0 and float(at.metrics["path"][1]) == 4
    plain = loss(model, batch, draws_of(step=10))
    assert torch.equal(plain.total, at.total)


@pytest.mark.parametrize("change", [{"action": "shout"}, {"every": 0}, {"rows": 0}])
def test_watches_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match="watch"):
        Watch(**change)


# --- what the loop trains


def test_training_saves_the_model_alone_and_names_its_matrices(tmp_path):
    training = HuginnTraining(small())
    assert training.depth == Depth(4, 2)
    training.save_pretrained(tmp_path)
    again = HuginnForCausalLM.from_pretrained(tmp_path)
    ids = batch_of()["input_ids"]
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, training.model.eval()(ids).logits)
    parts = muon_parts(training.model)
    assert parts["transformer.core_block.0.attn.Wqkv.weight"] == (16, 16, 16)
    assert parts["transformer.coda.0.mlp.fc.weight"] == (24, 24)
    assert parts["transformer.adapter.weight"] == ()
    assert len(parts) == 4 * 4 + 1  # four blocks of four matrices, the adapter, no embedding
    muon, rest = build_optimizers(training, OptimSettings(name="muon", muon_rest="adamw"))
    names = {
        n.split("[")[0] for o in (muon, rest) for g in o.param_groups for n in g["param_names"]
    }
    assert names == set(dense_parameters(training))


def test_the_models_own_loss_is_this_one():
    model, batch = small(), batch_of()
    found = model.loss(batch, None, draws_of())
    torch.testing.assert_close(found.total, loss(model, batch, draws_of()).total)


# --- answers by depth


def test_questions_run_with_those_of_their_length_each_once(monkeypatch):
    """Seven questions of three lengths, three at a time, without padding."""
    from inward.data.texts.text import TextQuestions
    from inward.methods.huginn import depths

    monkeypatch.setattr(depths, "BATCH", 3)
    lengths = [4, 3, 4, 4, 4, 5, 3]
    ids = np.array([[*range(i + 1, i + n + 1)] + [0] * (5 - n) for i, n in enumerate(lengths)])
    labels = np.where(ids > 0, ids, -100)
    held = TextQuestions(ids, labels, np.zeros(7, dtype=np.int64))
    found = list(depths.batches_of(held, small()))
    assert [rows.tolist() for rows, _, _ in found] == [[1, 6], [0, 2, 3], [4], [5]]
    for rows, tokens, wanted in found:
        length = lengths[rows[0]]
        assert tokens.tolist() == ids[rows, :length].tolist() == wanted.tolist()


def test_right_by_depth_is_the_forward_of_that_depth():
    """Against whole forwards of one question alone, at each depth."""
    from inward.data.texts.text import TextQuestions
    from inward.methods.huginn.depths import right_by_depth, state_seeds

    model = small(state_init="zero").eval()
    g = np.random.default_rng(0)
    ids = g.integers(1, ROWS.vocab_size, (30, 5))
    ids[::2, 4] = 0  # of two lengths
    labels = np.full_like(ids, -100)
    labels[:, 3] = ids[:, 3]
    want = np.zeros((30, 2), dtype=bool)
    for i, row in enumerate(ids):
        prompt = torch.tensor(row[row > 0])[None, :-1]
        for j, depth in enumerate((1, 3)):
            with torch.no_grad():
                said = model(prompt, num_steps=depth).logits[0].argmax(-1)
            if i % 3 == 0:
                labels[i, 3] = ids[i, 3] = int(said[2]) if j == 0 and ids[i, 4] == 0 else ids[i, 3]
            want[i, j] = int(said[2]) == labels[i, 3]
    found = right_by_depth(model, TextQuestions(ids, labels, np.zeros(30, dtype=int)), (1, 3))
    assert np.array_equal(found, want) and 0 < want.sum() < want.size
    for wrong in ((), (0, 1), (3, 1), (1, 1)):
        with pytest.raises(ValueError, match="give rising numbers from 1 on"):
            right_by_depth(model, TextQuestions(ids, labels, ids[:, 0]), wrong)
    assert state_seeds(np.array([0, 3])).tolist() == [0, 3 << 16]
