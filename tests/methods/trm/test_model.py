"""TRM against its equations, and the promises every method keeps."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from inward.common.draws import Draws
from inward.hub import load
from inward.methods.trm.losses import log_stablemax, token_loss
from inward.methods.trm.model import TRM, TRMConfig
from inward.methods.trm.settings import TRMSettings

SMALL = TRMSettings(
    vocab_size=7,
    seq_len=12,
    grid=(3, 4),
    hidden_size=16,
    num_heads=2,
    swiglu_multiple=8,
    T=2,
    n=2,
    n_sup=3,
    prefix_len=2,
    num_identifiers=5,
)
KINDS = {
    "mlp": SMALL,
    "attention": replace(SMALL, mixer="attention", positions="rope"),
    "attention2d": replace(SMALL, mixer="attention", positions="rope2d"),
    "learned": replace(SMALL, positions="learned"),
    "conv": replace(SMALL, mixer="conv"),
    "one latent": replace(SMALL, latents=1),
    "no recursion": replace(SMALL, latents=1, T=1, n=1, answer_update=False, num_layers=3),
    "masked attention": replace(SMALL, mixer="attention", positions="rope", mask_padding=True),
    "masked conv": replace(SMALL, mixer="conv", mask_padding=True),
    "no table": replace(SMALL, num_identifiers=0),
}


def build(settings: TRMSettings, seed: int = 0) -> TRM:
    """A model whose every parameter is away from its initial value."""
    torch.manual_seed(seed)
    model = TRM(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.q_head.bias.zero_()
    return model.eval()


def batch_of(settings: TRMSettings, num: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shape = (num, settings.seq_len)
    labels = torch.randint(1, settings.vocab_size, shape, generator=g)
    labels[:, -1] = -100
    return {
        "inputs": torch.randint(1, settings.vocab_size, shape, generator=g),
        "labels": labels,
        "identifiers": torch.randint(0, max(1, settings.num_identifiers), (num,), generator=g),
    }


@pytest.fixture(params=KINDS, ids=list(KINDS))
def model(request: pytest.FixtureRequest) -> TRM:
    return build(KINDS[request.param])


# -- equations -------------------------------------------------------------------------------------


def test_deep_recursion_is_the_papers_pseudo_code(model):
    """Figure 3 written down plainly, against `deep_recursion`."""
    settings = model.settings
    batch = batch_of(settings)
    x = model.embed(batch["inputs"], batch["identifiers"])
    where = model.where(batch["inputs"])
    start = model.initial_state(*batch["inputs"].shape)

    def net(*parts):
        return model.network(parts[0], sum(parts[1:], torch.zeros_like(x)), where)

    y, z = start.get("y"), start["z"]
    for _ in range(settings.T):
        for _ in range(settings.n):
            z = net(z, x) if y is None else net(z, y, x)
        if y is None and settings.answer_update:
            z = net(z)
        elif y is not None:
            y = net(y, z)
    got = model.deep_recursion(x, start, where, settings.T, settings.n)
    torch.testing.assert_close(got["z"], z, rtol=1e-4, atol=1e-5)
    if y is not None:
        torch.testing.assert_close(got["y"], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "gradient, k", [("last_cycle", 3), ("last_k", 1), ("last_k", 2), ("all", 6)]
)
def test_gradient_window(gradient, k):
    """Only the last k evaluations of f keep a graph: the same gradient as when earlier states are
    constants."""
    settings = replace(SMALL, gradient=gradient, gradient_k=k)
    model = build(settings)
    batch = batch_of(settings)
    calls = []

    def seen(module, args, out):
        calls.append(out.requires_grad)

    hook = model.network.register_forward_hook(seen)
    _state, logits, _ = model.supervision_step(
        batch["inputs"], model.initial_state(4, 12), identifiers=batch["identifiers"]
    )
    hook.remove()
    assert calls == [False] * (6 - k) + [True] * k
    loss = token_loss(logits, batch["labels"], "stablemax").sum()
    got = torch.autograd.grad(loss, list(model.network.parameters()))

    # by hand: run the first 6 - k evaluations without a graph, the others with one
    x = model.embed(batch["inputs"], batch["identifiers"])
    where = model.where(batch["inputs"])
    start = model.initial_state(4, 12)
    y, z = start["y"], start["z"]
    for i in range(6):
        with torch.set_grad_enabled(i >= 6 - k):
            if i % 3 == 2:
                y = model.network(y, z, where)
            else:
                z = model.network(z, y + x, where)
    loss = token_loss(model.read_out({"y": y, "z": z})[0], batch["labels"], "stablemax").sum()
    want = torch.autograd.grad(loss, list(model.network.parameters()))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)
    assert sum(float(g.abs().sum()) for g in got) > 0


def test_stablemax_by_hand():
    p = log_stablemax(torch.tensor([0.0, 1.0, -1.0])).exp()
    # s = 1, 2, 1/2
    torch.testing.assert_close(p, torch.tensor([2 / 7, 4 / 7, 1 / 7], dtype=torch.float64))
    assert torch.isfinite(log_stablemax(torch.tensor([1e6, -1e6, 0.0]))).all()


def test_token_loss_is_a_mean_per_row_and_zero_without_labels():
    logits = torch.randn(3, 4, 5)
    labels = torch.tensor([[1, 2, 3, 4], [-100, -100, 2, 1], [-100] * 4])
    got = token_loss(logits, labels, "softmax")
    want = torch.nn.functional.cross_entropy(logits[1, 2:], labels[1, 2:])
    torch.testing.assert_close(got[1], want)
    assert got[2] == 0.0


@pytest.mark.parametrize("kind", ["softmax", "stablemax"])
def test_label_smoothing_spreads_the_target_over_the_alphabet(kind):
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, 5), torch.tensor([[1, 2, 3, 4], [-100, 0, 2, 1], [4] * 4])
    log_p = log_stablemax(logits) if kind == "stablemax" else logits.log_softmax(-1)
    want = torch.nn.functional.nll_loss(log_p[1, 1:], labels[1, 1:])
    want = 0.7 * want - 0.3 * log_p[1, 1:].mean()
    torch.testing.assert_close(token_loss(logits, labels, kind, 0.3)[1], want)
    smoothed = torch.nn.functional.cross_entropy(logits[0], labels[0], label_smoothing=0.3)
    if kind == "softmax":
        torch.testing.assert_close(token_loss(logits, labels, kind, 0.3)[0], smoothed)
    assert torch.equal(token_loss(logits, labels, kind, 0.0), token_loss(logits, labels, kind))


def test_the_loss_smooths_labels_when_its_settings_say_so():
    batch, totals = batch_of(SMALL), {}
    for share in (0.0, 0.2):
        model = build(replace(SMALL, label_smoothing=share))
        logits, _ = model(batch["inputs"], batch["identifiers"], num_steps=1)
        loss = model.loss(batch, None, None)
        totals[share] = loss.metrics["token_loss"][0]
        want = token_loss(logits, batch["labels"], SMALL.loss, share).sum()
        torch.testing.assert_close(totals[share], want.detach())
    assert totals[0.0] != totals[0.2]


def test_initial_deviation_is_what_is_asked():
    torch.manual_seed(0)
    model = TRM(replace(SMALL, hidden_size=256, num_heads=4, vocab_size=200))
    weight = dict(model.named_parameters())["network.blocks.0.mlp.down_proj.weight"]
    assert math.isclose(float(weight.detach().std()) * weight.shape[1] ** 0.5, 1.0, rel_tol=0.02)
    assert math.isclose(float(model.embed_tokens.weight.detach().std()) * 16, 1.0, rel_tol=0.02)
    assert float(model.identifiers.weight.detach().abs().sum()) == 0.0
    assert torch.equal(model.q_head.bias, torch.tensor([-5.0, -5.0]))
    assert float(model.q_head.weight.detach().abs().sum()) == 0.0
    model = TRM(replace(SMALL, hidden_size=1024, expansion=0.1, mixer="conv", kernel_size=5))
    states = dict(model.named_buffers())
    for state in (states["y_init"], states["z_init"]):  # a unit normal cut at two of its deviations
        assert math.isclose(float(state.std()), 1.0, rel_tol=0.05)
        assert 2.1 < float(state.abs().max()) < 2 / 0.8796
    kernels = [m.weight.detach() for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert kernels and all(math.isclose(float(k.std()) * 5, 1.0, rel_tol=0.05) for k in kernels)


def test_flops_agree_with_a_counter(model):
    batch = batch_of(model.settings, num=1)
    if model.settings.mask_padding:
        pytest.skip("the counter and the formula see the same products; masks add none")
    # the counter does not know the fused attention kernel of the CPU
    kernel = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), kernel:
        model.supervision_step(
            batch["inputs"], model.initial_state(1, 12), identifiers=batch["identifiers"]
        )
    evaluation, read_out = model.flops()
    settings = model.settings
    want = settings.T * settings.evaluations(settings.n) * evaluation + read_out
    assert math.isclose(counter.get_total_flops(), want, rel_tol=1e-6)


def test_published_sizes():
    """Parameter counts of the released models (notes, section 1.8), on the meta device."""
    sudoku = TRMSettings()
    attention = replace(sudoku, mixer="attention", positions="rope")
    grid30 = replace(attention, seq_len=900)
    want = [
        (sudoku, 5_028_866),
        (attention, 6_828_034),
        (replace(grid30, vocab_size=6), 6_822_914),
        (replace(sudoku, vocab_size=6, seq_len=900), 18_795_522),
        (replace(grid30, vocab_size=12), 6_829_058),
    ]
    for settings, count in want:
        with torch.device("meta"):
            model = TRM(settings)
        assert model.num_parameters_by_part() == {"network": count, "identifiers": 512}


# -- deep supervision ------------------------------------------------------------------------------


def test_slots_keep_their_row_until_they_halt():
    model = build(SMALL)
    model.q_head.bias.data.fill_(-100.0)  # nobody halts by itself
    first, second = batch_of(SMALL, seed=1), batch_of(SMALL, seed=2)
    carry = model.loss(first, None, Draws(0, 0, range(4), 4)).state
    for step in range(1, SMALL.n_sup):
        assert not carry["halted"].any()
        carry = model.loss(second, carry, Draws(0, step, range(4), 4)).state
        assert torch.equal(carry["inputs"], first["inputs"])
    assert carry["halted"].all()
    assert torch.equal(carry["steps"], torch.full((4,), SMALL.n_sup))
    fresh = model.loss(second, carry, Draws(0, 9, range(4), 4)).state
    assert torch.equal(fresh["inputs"], second["inputs"])
    assert torch.equal(fresh["steps"], torch.ones(4, dtype=torch.int64))
    start = model.loss(second, None, Draws(0, 9, range(4), 4)).state
    assert torch.equal(fresh["y"], start["y"])


def test_exploration_holds_slots_back_as_often_as_it_says():
    settings = replace(SMALL, n_sup=16, exploration=0.5)
    model = build(settings)
    num = 4000
    q, steps = torch.ones(num), torch.ones(num, dtype=torch.int64)
    halted = model.halts(q, steps, Draws(0, 0, range(num), num))
    # at step 1 every drawn bound in 2..16 holds back, so half of the slots stay
    assert abs(float(halted.float().mean()) - 0.5) < 0.03
    halted = model.halts(q, steps * 9, Draws(0, 1, range(num), num))
    assert abs(float(halted.float().mean()) - (0.5 + 0.5 * 8 / 15)) < 0.03
    # of the bounds only 16 itself holds back at step 15
    halted = model.halts(q, steps * 15, Draws(0, 3, range(num), num))
    assert abs(float(halted.float().mean()) - (1 - 0.5 / 15)) < 0.01
    assert model.halts(-q, steps * 16, Draws(0, 2, range(num), num)).all()
    assert not model.halts(q, steps, None).any()
    assert not model.halts(0 * q, steps * 15, Draws(0, 3, range(num), num)).any()


@pytest.mark.parametrize("n_sup, waiting", [(1, [0.0]), (2, [1.0, 0.0]), (3, [1.0, 0.5, 0.0])])
def test_explored_slots_halt_at_a_step_drawn_evenly_from_2_to_n_sup(n_sup, waiting):
    model = build(replace(SMALL, n_sup=n_sup, exploration=1.0))
    num = 4000
    q, steps = torch.ones(num), torch.ones(num, dtype=torch.int64)
    for step, share in enumerate(waiting, start=1):
        halted = model.halts(q, step * steps, Draws(0, step, range(num), num))
        assert abs(float((~halted).float().mean()) - share) < (0.03 if share % 1 else 1e-9)


def test_loop_supervision_works_on_a_batch_as_a_whole():
    model = build(replace(SMALL, supervision="loop"))
    model.q_head.bias.data.fill_(100.0)
    first, second = batch_of(SMALL, seed=1), batch_of(SMALL, seed=2)
    carry = model.loss(first, None, Draws(0, 0, range(4), 4)).state
    for step in range(1, 2 * SMALL.n_sup):
        offered = first if step < SMALL.n_sup else second
        carry = model.loss(offered, carry, Draws(0, step, range(4), 4)).state
        assert torch.equal(carry["inputs"], offered["inputs"])
        assert torch.equal(carry["steps"], torch.full((4,), step % SMALL.n_sup + 1))


def test_cycle_schedule_counts_evaluations():
    settings = replace(SMALL, cycle_schedule=((0, 1, 1), (10, 2, 2)))
    assert [settings.cycles(s) for s in (0, 9, 10, None)] == [(1, 1), (1, 1), (2, 2), (2, 2)]
    model = build(settings)
    calls = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    model.loss(batch_of(settings), None, Draws(0, 0, range(4), 4))
    assert len(calls) == 2
    model.loss(batch_of(settings), None, Draws(0, 10, range(4), 4))
    assert len(calls) == 8


def test_loss_is_a_sum_over_rows(model):
    """The loop may cut a batch anywhere: totals and metrics add up, states are the rows' own."""
    batch = batch_of(model.settings)
    whole = model.loss(batch, None, Draws(0, 0, range(4), 4))
    parts = []
    for rows in (range(0, 1), range(1, 4)):
        part = {name: tensor[rows.start : rows.stop] for name, tensor in batch.items()}
        parts.append(model.loss(part, None, Draws(0, 0, rows, 4)))
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total)
    for name, (total, count) in whole.metrics.items():
        torch.testing.assert_close(total, parts[0].metrics[name][0] + parts[1].metrics[name][0])
        assert count == parts[0].metrics[name][1] + parts[1].metrics[name][1]
    for name, tensor in whole.state.items():
        joined = torch.cat([parts[0].state[name], parts[1].state[name]])
        torch.testing.assert_close(tensor, joined, rtol=1e-4, atol=1e-5)


def test_metrics_count_a_sample_once_at_its_end():
    """Five slots of three cells: two halt with labels, one halts without, two go on."""
    right = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]]).bool()
    valid = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1]]).bool()
    carry = {
        "halted": torch.tensor([True, True, True, False, False]),
        "steps": torch.tensor([3, 2, 16, 5, 7]),
    }
    exact = torch.tensor([True, False, True, True, False])
    q = torch.tensor([0.0, 0.5, -1.0, 1.0, 1.0])  # 0 says "right", rightly; 0.5 wrongly
    found = TRM.metrics(right, valid, exact, q, carry)
    want = {"accuracy": 1.5, "exact_accuracy": 1.0, "q_halt_accuracy": 1.0, "steps": 5.0}
    assert {name: float(total) for name, (total, _) in found.items()} == want
    assert all(float(count) == 2.0 for _, count in found.values())


def test_loss_is_the_tokens_and_half_the_halting_loss():
    model, batch = build(SMALL), batch_of(SMALL)
    with torch.no_grad():
        logits, q = model(batch["inputs"], batch["identifiers"], num_steps=1)
    batch["labels"][0] = logits[0].argmax(-1)  # the first row is right
    loss = model.loss(batch, None, Draws(0, 0, range(4), 4))
    exact = torch.tensor([1.0, 0.0, 0.0, 0.0])
    log_p = log_stablemax(logits)
    token = torch.zeros((), dtype=torch.float64)
    for row in range(4):
        cells = [i for i in range(12) if batch["labels"][row, i] != -100]
        token -= sum(log_p[row, i, batch["labels"][row, i]] for i in cells) / len(cells)
    halting = -(exact * q.sigmoid().log() + (1 - exact) * (-q).sigmoid().log()).sum()
    assert loss.total.item() == pytest.approx(float(token) + 0.5 * float(halting), rel=1e-5)
    for name, part in (("token_loss", token), ("halt_loss", halting)):
        total, rows = loss.metrics[name]
        assert (float(total), float(rows)) == (pytest.approx(float(part), rel=1e-5), 4.0)


# -- lengths, padding ------------------------------------------------------------------------------


def test_convolution_runs_on_other_grids():
    model = build(replace(SMALL, mixer="conv"))
    logits, q = model(torch.randint(1, 7, (2, 20)), grid=(4, 5))
    assert logits.shape == (2, 20, 7) and q.shape == (2,)


def test_convolution_knows_the_grid_shape():
    """The same cells as 3 x 4 and as 4 x 3 are other neighbourhoods."""
    model = build(replace(SMALL, mixer="conv"))
    inputs = batch_of(SMALL)["inputs"]
    wide, _ = model(inputs, grid=(3, 4), num_steps=1)
    tall, _ = model(inputs, grid=(4, 3), num_steps=1)
    assert not torch.allclose(wide, tall, atol=1e-3)


@pytest.mark.parametrize("kind", ["masked attention", "masked conv"])
def test_padding_changes_nothing_when_masked(kind):
    """A row of 12 cells, alone and with 8 padding cells behind it."""
    model = build(replace(KINDS[kind], grid=None))
    inputs = batch_of(SMALL)["inputs"]
    alone, q_alone = model(inputs, grid=(1, 12))
    padded = torch.cat([inputs, torch.zeros(4, 8, dtype=torch.int64)], dim=1)
    together, q_together = model(padded, grid=(1, 20))
    torch.testing.assert_close(together[:, :12], alone, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(q_together, q_alone, rtol=1e-3, atol=1e-4)
    unmasked = build(replace(KINDS[kind], grid=None, mask_padding=False))
    _, q_unmasked = unmasked(padded, grid=(1, 20))
    assert not torch.allclose(q_unmasked, q_alone, atol=1e-3)


# -- promises of every method ----------------------------------------------------------------------


def test_batch_equals_single(model):
    batch = batch_of(model.settings)
    together, q = model(batch["inputs"], batch["identifiers"])
    for i in range(4):
        alone, q_alone = model(batch["inputs"][i : i + 1], batch["identifiers"][i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(q_alone[0], q[i], rtol=1e-3, atol=1e-4)


def test_identifiers_matter_where_there_is_a_table(model):
    inputs = batch_of(model.settings)["inputs"]
    first, _ = model(inputs, torch.zeros(4, dtype=torch.int64))
    second, _ = model(inputs, torch.ones(4, dtype=torch.int64))
    # in the convolution mixer the prefix reaches the halting head only
    same = model.settings.num_identifiers == 0 or model.settings.mixer == "conv"
    assert torch.equal(first, second) == same


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    assert not list((tmp_path / "m").glob("*.bin"))
    inputs = batch_of(model.settings)["inputs"]
    want = model(inputs)[0]
    for again in (
        TRM.from_pretrained(tmp_path / "m"),
        AutoModel.from_pretrained(tmp_path / "m"),
        load(tmp_path / "m"),
    ):
        assert again.settings == model.settings
        assert torch.equal(again.eval()(inputs)[0], want)
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor)
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "m"), TRMConfig)


def test_same_seed_same_model():
    first, second = build(SMALL, seed=3), build(SMALL, seed=3)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_bfloat16_states_stay_near_float32():
    wide = build(SMALL)
    narrow = TRM(replace(SMALL, compute_dtype="bfloat16")).eval()
    narrow.load_state_dict(wide.state_dict())
    batch = batch_of(SMALL)
    got, q = narrow(batch["inputs"], batch["identifiers"], num_steps=1)
    want, _ = wide(batch["inputs"], batch["identifiers"], num_steps=1)
    assert got.dtype == torch.bfloat16 and q.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(got.float().flatten(), want.flatten(), 0) > 0.99
    loss = narrow.loss(batch, None, Draws(0, 0, range(4), 4))
    loss.total.backward()
    assert narrow.lm_head.weight.grad.dtype == torch.float32


def test_learns_to_copy():
    """Real training, a few seconds: a trivial task must be solved, and known to be solved."""
    settings = replace(SMALL, num_identifiers=0, exploration=0.0, T=1, n=1, hidden_size=32)
    torch.manual_seed(0)
    model = TRM(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    carry = None
    for step in range(200):
        batch = batch_of(settings, num=16, seed=step)
        batch["labels"] = batch["inputs"]
        loss = model.loss(batch, carry, Draws(0, step, range(16), 16))
        carry = loss.state
        optimizer.zero_grad()
        (loss.total / 16).backward()
        optimizer.step()
    logits, q = model(batch["inputs"])
    assert (logits.argmax(-1) == batch["inputs"]).float().mean() > 0.99
    assert (q > 0).float().mean() > 0.8


# -- identifiers -----------------------------------------------------------------------------------


def test_table_gradient_is_sparse_and_only_for_the_batch():
    model = build(SMALL)
    batch = batch_of(SMALL) | {"identifiers": torch.tensor([1, 1, 3, 1])}
    model.loss(batch, None, None).total.backward()
    gradient = model.identifiers.weight.grad.coalesce()
    assert gradient.indices().tolist() == [[1, 3]]


PEAK_WITH_TABLE = """
import resource, sys, torch
from inward.methods.trm.model import TRM
from inward.methods.trm.settings import TRMSettings
from inward.common.draws import Draws
from inward.train.optim import build_optimizers
from inward.train.settings import OptimSettings
torch.set_num_threads(1)
rows = int(sys.argv[1])
settings = TRMSettings(vocab_size=7, seq_len=12, hidden_size=64, num_heads=2, swiglu_multiple=8,
                       T=1, n=1, prefix_len=2, num_identifiers=rows)
model = TRM(settings)
optimizers = build_optimizers(model, OptimSettings(sparse_lr=0.1))
carry = None
for step in range(3):
    batch = {"inputs": torch.randint(1, 7, (8, 12)), "labels": torch.randint(1, 7, (8, 12)),
             "identifiers": torch.randint(0, rows, (8,))}
    loss = model.loss(batch, carry, Draws(0, step, range(8), 8))
    for o in optimizers: o.zero_grad()
    loss.total.backward()
    for o in optimizers: o.step()
    carry = loss.state
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(peak, int((model.identifiers.weight != 0).any(1).sum()))
"""


def test_a_table_of_876406_rows_costs_memory_for_the_touched_rows_only():
    """Beside the table itself (224 MB here), training ARC-1's table takes what a small table
    takes."""

    def peak(rows: int) -> tuple[int, int]:
        command = [sys.executable, "-c", PEAK_WITH_TABLE, str(rows)]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        memory, touched = map(int, out.stdout.split())
        return memory, touched

    (large, touched), (small, _) = peak(876_406), peak(100)
    table = 876_406 * 64 * 4
    assert 1 <= touched <= 24
    beside = large - small - table
    assert beside < 0.1 * table, f"{beside / 1e6:.0f} MB beside the table of {table / 1e6:.0f} MB"


def test_resize_identifiers():
    model = build(SMALL)
    old = model.identifiers.weight.detach().clone()
    model.resize_identifiers(8)
    assert torch.equal(model.identifiers.weight[:5], old)
    torch.testing.assert_close(model.identifiers.weight[7], old.mean(0))
    assert model.settings.num_identifiers == model.config.num_identifiers == 8
    assert model.identifiers.sparse and model.identifiers.weight.requires_grad
    model.resize_identifiers(3)  # which rows to keep is not known
    torch.testing.assert_close(model.identifiers.weight, old.mean(0).expand(3, -1))
    with pytest.raises(ValueError, match="to 0"):
        model.resize_identifiers(0)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"n": 0}, "n is 0"),
        ({"T": -1}, "T is -1"),
        ({"n_sup": 0}, "n_sup is 0"),
        ({"grid": (5, 5)}, "cells"),
        ({"mixer": "attention", "num_heads": 3}, "heads"),
        ({"positions": "rope"}, "needs mixer='attention'"),
        ({"mask_padding": True}, "cannot mask"),
        ({"mixer": "conv", "prefix_len": 0, "num_identifiers": 0}, "prefix_len >= 1"),
        ({"answer_update": False}, "needs latents=1"),
        ({"exploration": 1.5}, "probability"),
        ({"label_smoothing": 1.0}, "below 1"),
        ({"kernel_size": 4}, "odd"),
        ({"identifier_dim": 100}, "does not fit"),
        ({"cycle_schedule": ((5, 1, 1), (5, 2, 2))}, "ascending"),
    ],
)
def test_settings_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **wrong)


def test_wrong_lengths_and_steps():
    model = build(SMALL)
    with pytest.raises(ValueError, match="built for 12 cells, got 10"):
        model(torch.ones(1, 10, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_steps is -1"):
        model(torch.ones(1, 12, dtype=torch.int64), num_steps=-1)
    conv = build(replace(SMALL, mixer="conv"))
    with pytest.raises(ValueError, match="do not form a 3 x 3 grid"):
        conv(torch.ones(1, 10, dtype=torch.int64), grid=(3, 3))


def test_unknown_numpy_identifier_is_an_error():
    model = build(SMALL)
    with pytest.raises(ValueError, match=r"0\.\.4"):
        model.solve(np.ones((2, 12), dtype=np.int64), identifiers=np.array([0, 5]))
