"""Optimizers against scalar loops that follow the formulas line by line."""

from __future__ import annotations

import math
import resource

import pytest
import torch
from torch import nn

from inward.train.optim import (
    AdamATan2,
    ELLISAdam,
    Muon,
    SparseSignSGD,
    build_optimizers,
    dense_parameters,
    hidden_matrices,
    sparse_parameters,
)
from inward.train.settings import OptimSettings
from tests.train.toy import Toy, finish, start

BETAS = (0.9, 0.95)


def atan2_reference(theta, grads, rates, weight_decay):
    """Notes 3.1 for one number in double precision."""
    m = v = 0.0
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), start=1):
        theta = theta * (1 - lr * weight_decay)
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g * g
        root = math.sqrt(v) / math.sqrt(1 - BETAS[1] ** t)
        theta = theta - lr / (1 - BETAS[0] ** t) * math.atan2(m, root)
    return theta


def gradients(shapes, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [[draw(s) * 10.0 ** (i - 2) for i, s in enumerate(shapes)] for _ in range(steps)]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-14), (torch.float32, 2e-6)])
def test_adam_atan2_is_the_scalar_formula(dtype, tolerance):
    shapes, rates, decay = [(3, 2), (4,), ()], [0.0, 0.05, 0.1, 0.1, 0.02, 0.2], 0.7
    grads = gradients(shapes, len(rates))
    grads[2][1].zero_()  # atan2(m, .) must go on with the old mean
    params = [nn.Parameter(torch.full(s, 0.5 + i, dtype=dtype)) for i, s in enumerate(shapes)]
    optimizer = AdamATan2(params, 0.0, betas=BETAS, weight_decay=decay)
    for step_grads, lr in zip(grads, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        for param, grad in zip(params, step_grads, strict=True):
            param.grad = grad.to(dtype)
        optimizer.step()
    for i, param in enumerate(params):
        for j, value in enumerate(param.detach().flatten().tolist()):
            column = [g[i].flatten()[j].item() for g in grads]
            expected = atan2_reference(0.5 + i, column, rates, decay)
            assert value == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_adam_atan2_counts_steps_per_parameter():
    """A parameter that had no gradient is not corrected as if it had one."""
    early, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdamATan2([early, late], 0.1, weight_decay=0.0)
    for step in range(3):
        early.grad = torch.ones(2)
        late.grad = torch.ones(2) if step == 2 else None
        optimizer.step()
    expected = atan2_reference(1.0, [1.0], [0.1], 0.0)
    assert late.tolist() == pytest.approx([expected] * 2)
    assert early.tolist() == pytest.approx([atan2_reference(1.0, [1.0] * 3, [0.1] * 3, 0.0)] * 2)


def test_adam_atan2_survives_zero_gradients():
    param = nn.Parameter(torch.ones(3))
    optimizer = AdamATan2([param], 0.1, weight_decay=0.0)
    param.grad = torch.zeros(3)
    optimizer.step()
    assert param.tolist() == [1.0, 1.0, 1.0]


def test_adam_atan2_first_step_is_bounded_by_a_quarter_turn():
    param = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = AdamATan2([param], 0.1, weight_decay=0.0)
    param.grad = torch.tensor([1e30, -1e-30], dtype=torch.float64)
    optimizer.step()
    # m / (sqrt(v) corrected) is 0.1 at first, and the correction by 1 / 0.1 stands outside.
    step = 0.1 / 0.1 * math.atan2(0.1, 1.0)
    assert param.tolist() == pytest.approx([-step, step], rel=1e-9)


def ellis_reference(theta, grads, rates, base, weight_decay, eps=1e-6):
    """Huginn notes 2.4 for one tensor in double precision, line by line."""
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), start=1):
        if t == 1:
            m, v = g, g**2
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = (BETAS[1] * v + (1 - BETAS[1]) * g**2).clamp(min=eps**2)
        rho = ((g**2 / v).mean() ** 0.5).item()
        step = lr / max(1.0, rho) / (1 - BETAS[0] ** t)
        theta = theta * (1 - (lr / base) * weight_decay)
        theta = theta - step * torch.atan2(m, v.sqrt() / math.sqrt(1 - BETAS[1] ** t))
    return theta


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-14), (torch.float32, 4e-6)])
def test_ellis_adam_is_the_formula_of_one_tensor(dtype, tolerance):
    shapes, rates, base, decay = [(3, 2), (4,), ()], [0.0, 0.05, 0.1, 0.1, 0.02], 0.1, 0.2
    grads = gradients(shapes, len(rates))
    grads[1][1].zero_()
    grads[2] = [100 * g for g in grads[2]]  # the update is clipped: rho > 1
    grads[3][2].fill_(0.0)
    params = [nn.Parameter(torch.full(s, 0.5 + i, dtype=dtype)) for i, s in enumerate(shapes)]
    optimizer = ELLISAdam(params, base, betas=BETAS, weight_decay=decay)
    for step_grads, lr in zip(grads, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        for param, grad in zip(params, step_grads, strict=True):
            param.grad = grad.to(dtype)
        optimizer.step()
    for i, param in enumerate(params):
        start = torch.full(shapes[i], 0.5 + i, dtype=torch.float64)
        expected = ellis_reference(start, [g[i] for g in grads], rates, base, decay)
        torch.testing.assert_close(param.double(), expected, rtol=tolerance, atol=tolerance)


def test_ellis_adam_first_step_is_long_and_tiny_gradients_are_left_alone():
    param = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = ELLISAdam([param], 0.1, betas=BETAS)
    param.grad = torch.tensor([1.0, 0.0], dtype=torch.float64)
    optimizer.step()
    assert param.tolist() == pytest.approx([-1.0 * math.atan2(1.0, 1 / math.sqrt(0.05)), 0.0])
    small = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = ELLISAdam([small], 0.1, betas=BETAS, eps=1e-3)
    small.grad = torch.tensor([1e-6], dtype=torch.float64)  # v is held at eps^2
    optimizer.step()
    assert small.item() == pytest.approx(-math.atan2(1e-6, 1e-3 / math.sqrt(0.05)))


def test_ellis_adam_clips_each_tensor_by_its_own_surprise():
    quiet, loud = (nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    optimizer = ELLISAdam([quiet, loud], 0.1, weight_decay=0.0)
    sizes = []
    for scale in (1.0, 1000.0):
        before = [p.detach().clone() for p in (quiet, loud)]
        quiet.grad, loud.grad = torch.ones_like(quiet), scale * torch.ones_like(loud)
        optimizer.step()
        moved = zip((quiet, loud), before, strict=True)
        sizes.append([float((p.detach() - b).abs().max()) for p, b in moved])
    unclipped = (
        0.1 / (1 - 0.9**2) * math.atan2(0.9 + 100, math.sqrt(0.95 + 5e4) / math.sqrt(0.0975))
    )
    rho = 1000 / math.sqrt(0.95 + 5e4)
    assert rho > 4 and sizes[1][1] == pytest.approx(unclipped / rho, rel=1e-4)
    assert sizes[0][0] == sizes[0][1]


def test_ellis_adam_from_settings_leaves_norms_and_every_bias_undecayed():
    class Headed(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.qk_bias = nn.Parameter(torch.zeros(2, 1, 4, 3))  # a matrix by its shape

    settings = OptimSettings(name="ellis_adam", lr=4e-5, weight_decay=4e-5, decay_vectors=False)
    optimizer = build_optimizers(Headed(), settings)[0]
    assert isinstance(optimizer, ELLISAdam)
    undecayed = [g for g in optimizer.param_groups if g["weight_decay"] == 0.0]
    names = {n for g in undecayed for n in g["param_names"]}
    assert names == {"qk_bias", "hidden.bias", "head.bias"}
    assert all(g["initial_lr"] == 4e-5 for g in optimizer.param_groups)


def table_with_gradient(ids, scale, num_rows=6, width=3):
    table = nn.Embedding(num_rows, width, sparse=True)
    out = table(torch.tensor(ids)) * torch.tensor(scale)[:, None]
    out.sum().backward()
    return table


def test_sparse_sign_sgd_is_the_formula_on_touched_rows_only():
    ids, scale = [4, 1, 4, 2, 2], [1.0, -2.0, 0.5, 1.0, -1.0]
    table = table_with_gradient(ids, scale)
    before = table.weight.detach().clone()
    optimizer = SparseSignSGD([table.weight], 0.1, weight_decay=0.5)
    optimizer.step()
    sums = {4: 1.5, 1: -2.0, 2: 0.0}  # row 2 cancels: decayed, not moved
    for row in range(6):
        expected = before[row]
        if row in sums:
            expected = before[row] * (1 - 0.1 * 0.5) - 0.1 * math.copysign(
                bool(sums[row]), sums[row]
            )
            torch.testing.assert_close(table.weight[row], expected, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(table.weight[row], expected)


def test_sparse_sign_sgd_sums_micro_batches():
    """Gradients that accumulate are concatenated by torch and must be summed before the sign."""
    table = nn.Embedding(3, 2, sparse=True)
    before = table.weight.detach().clone()
    (table(torch.tensor([0])).sum() * 3).backward()
    (table(torch.tensor([0, 2])).sum() * -1).backward()
    SparseSignSGD([table.weight], 0.1, weight_decay=0.0).step()
    torch.testing.assert_close(table.weight[0], before[0] - 0.1)
    torch.testing.assert_close(table.weight[2], before[2] + 0.1)


def test_sparse_sign_sgd_without_gradient_does_nothing():
    table = nn.Embedding(3, 2, sparse=True)
    before = table.weight.detach().clone()
    SparseSignSGD([table.weight], 0.1).step()
    assert torch.equal(table.weight, before)


def sparse_step_in_child() -> None:
    """Steps on a table of 128 MB must not need memory of that size."""
    table = nn.Embedding(1 << 19, 64, sparse=True)
    optimizer = SparseSignSGD([table.weight], 0.1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for step in range(3):
        table(torch.arange(64) * 100 + step).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 40, f"{grown} MB for 192 rows of 128 MB"


def test_sparse_sign_sgd_needs_memory_for_touched_rows_only():
    finish(start(sparse_step_in_child))


@pytest.mark.parametrize("kind", [AdamATan2, ELLISAdam, SparseSignSGD])
@pytest.mark.parametrize("lr, decay", [(-1.0, 0.0), (math.nan, 0.0), (0.1, -0.5)])
def test_bad_rates_are_refused(kind, lr, decay):
    with pytest.raises(ValueError, match="0 or more"):
        kind([nn.Parameter(torch.ones(1))], lr, weight_decay=decay)


def test_gradients_of_the_wrong_kind_are_refused():
    table = table_with_gradient([0], [1.0])
    with pytest.raises(ValueError, match="SparseSignSGD"):
        AdamATan2([table.weight]).step()
    dense = nn.Embedding(3, 2)
    dense(torch.tensor([0])).sum().backward()
    with pytest.raises(ValueError, match="sparse=True"):
        SparseSignSGD([dense.weight]).step()


class Fused(nn.Module):
    """Names as in TRM: token table, fused matrices, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(5, 4)
        self.qkv_proj = nn.Linear(4, 12)
        self.gate_up_proj = nn.Linear(4, 10, bias=False)
        self.down_proj = nn.Linear(5, 4, bias=False)
        self.lm_head = nn.Linear(4, 5, bias=False)
        self.tied = nn.Linear(4, 5, bias=False)
        self.tied.weight = self.embed_tokens.weight


def test_default_choice_of_hidden_matrices():
    assert hidden_matrices(Fused()) == {
        "qkv_proj.weight": (4, 4, 4),
        "gate_up_proj.weight": (5, 5),
        "down_proj.weight": (),
    }
    assert set(hidden_matrices(Fused(), split=False).values()) == {()}


def test_muon_on_parts_is_torch_muon_on_separate_matrices():
    generator = torch.Generator().manual_seed(0)
    whole = nn.Parameter(torch.randn(12, 4, generator=generator))
    parts = [nn.Parameter(part.clone()) for part in whole.detach().split(4)]
    ours = Muon({"qkv": whole}, {"qkv": (4, 4, 4)}, 0.1, weight_decay=0.2)
    theirs = torch.optim.Muon(
        parts, lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw", momentum=0.95
    )
    for _ in range(3):
        whole.grad = torch.randn(12, 4, generator=generator)
        for part, grad in zip(parts, whole.grad.split(4), strict=True):
            part.grad = grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(whole.detach(), torch.cat([p.detach() for p in parts]))
    ours.zero_grad()
    assert whole.grad is None


def test_muon_refuses_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="add up to its 12 rows"):
        Muon({"w": torch.zeros(12, 4)}, {"w": (4, 4)}, 0.1)
    with pytest.raises(ValueError, match="shape"):
        Muon({"w": torch.zeros(12)}, {}, 0.1)


def test_build_muon_covers_every_parameter_once():
    model = Fused()
    muon, rest = build_optimizers(model, OptimSettings(name="muon", lr=0.1))
    assert isinstance(muon, Muon) and isinstance(rest, AdamATan2)
    names = [n for o in (muon, rest) for g in o.param_groups for n in g["param_names"]]
    split = {"qkv_proj.weight", "gate_up_proj.weight", "down_proj.weight"}
    assert {n.split("[")[0] for n in names} == set(dense_parameters(model))
    assert {n.split("[")[0] for n in names if "[" in n} == split
    assert len(names) == len(set(names)) == 6 + 3  # 3 + 2 + 1 parts; table, bias, head


class Choosy(Toy):
    def muon_parameters(self):
        return ["mix.weight"]


class Wrong(Toy):
    def muon_parameters(self):
        return {"mixx.weight": ()}


def test_a_model_may_choose_its_muon_parameters():
    muon = build_optimizers(Choosy(), OptimSettings(name="muon"))[0]
    assert muon.param_groups[0]["param_names"] == ["mix.weight[0:8]"]
    with pytest.raises(ValueError, match="mixx"):
        build_optimizers(Wrong(), OptimSettings(name="muon"))
    with pytest.raises(ValueError, match="no hidden matrix"):
        build_optimizers(nn.Embedding(3, 2), OptimSettings(name="muon"))


def test_sparse_and_dense_are_told_apart():
    model = Toy()
    assert list(sparse_parameters(model)) == ["table.weight"]
    assert "table.weight" not in dense_parameters(model)
    model.head.bias.requires_grad_(False)
    assert "head.bias" not in dense_parameters(model)


def test_vectors_may_be_left_undecayed():
    settings = OptimSettings(name="adamw", decay_vectors=False, weight_decay=0.3)
    optimizer = build_optimizers(Toy(), settings)[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {
        name: group["weight_decay"]
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert decays == {
        "hidden.weight": 0.3,
        "mix.weight": 0.3,
        "head.weight": 0.3,
        "hidden.bias": 0.0,
        "head.bias": 0.0,
    }


@pytest.mark.parametrize(
    "change, told",
    [
        ({"name": "sgd"}, "optim.name"),
        ({"lr": -1.0}, "optim.lr"),
        ({"betas": (0.9, 1.0)}, "optim.betas"),
        ({"muon_momentum": 1.0}, "muon_momentum"),
        ({"sparse_weight_decay": math.inf}, "sparse_weight_decay"),
    ],
)
def test_bad_settings_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        OptimSettings(**change)
