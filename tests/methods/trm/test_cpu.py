"""The path for CPUs against the plain modules: values, gradients, and when it is taken."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inward.common.draws import Draws
from inward.common.nn import rms_norm
from inward.methods.trm import cpu as nn_cpu
from inward.methods.trm import layers as inward_nn
from inward.methods.trm.layers import Linear, SwiGLU, residual_norm, residual_swiglu
from tests.methods.trm.test_model import KINDS, batch_of, build

EPS = 1e-5
B, S, D = 5, 7, 12
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
AXES = pytest.mark.parametrize("axis", [1, 2])
DTYPES = pytest.mark.parametrize("dtype", list(CLOSE), ids=str)


def mlp_for(axis: int) -> SwiGLU:
    torch.manual_seed(axis)
    return SwiGLU((S, D)[axis - 1], expansion=2.0, multiple=4)


def plain(h: Tensor, mlp: nn.Module, axis: int) -> Tensor:
    """The definition."""
    turned = h.transpose(axis, 2)
    return rms_norm(turned + mlp(turned), EPS).transpose(axis, 2)


def values(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=[1, 2400, 1 << 30], ids=["row by row", "in parts", "at once"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How much is worked on at a time, whatever the size of the weights."""
    size = nn_cpu._parts

    def cut(x: Tensor, up: Tensor) -> list[slice]:
        return size(x, up[:, :0])  # a weight without columns takes no room

    monkeypatch.setattr(nn_cpu, "_parts", cut)
    monkeypatch.setattr(nn_cpu, "PART_BYTES", request.param)
    return request.param


def test_parts_cover_all_rows_once(monkeypatch):
    up = torch.zeros(8, 3)
    for part_bytes in (1, 100, 1000, 10**9):
        monkeypatch.setattr(nn_cpu, "PART_BYTES", part_bytes)
        for shape in ((11, 3), (11, 3, 2)):
            found = nn_cpu._parts(torch.zeros(shape), up)
            assert [i for part in found for i in range(part.start, part.stop)] == list(range(11))
            assert found[0].stop == max(part.stop - part.start for part in found)
    assert len(found) == 1
    monkeypatch.setattr(nn_cpu, "PART_BYTES", 1)
    assert len(nn_cpu._parts(torch.zeros(11, 3), up)) == 2  # two weights' worth: six rows
    assert len(nn_cpu._parts(torch.zeros(11, 3), up[:, :0])) == 11


def test_only_what_will_be_differentiated_is_kept(monkeypatch):
    kept, really = [], nn_cpu._forward

    def forward(*args, keep):
        kept.append(keep)
        return really(*args, keep=keep)

    monkeypatch.setattr(nn_cpu, "_forward", forward)
    mlp, h = mlp_for(2), values()
    up, down = mlp.gate_up_proj.weight, mlp.down_proj.weight
    fixed = [w.detach() for w in (up, down)]
    with torch.no_grad():
        nn_cpu.residual_swiglu(h, up, down, EPS, axis=2)
    nn_cpu.residual_swiglu(h, fixed[0], fixed[1], EPS, axis=2)
    assert kept == [False, False]
    for leaf in (0, 1, 2):
        parts = [h.clone(), *(w.clone() for w in fixed)]
        parts[leaf].requires_grad_()
        x, wide, narrow = parts
        assert nn_cpu.residual_swiglu(x, wide, narrow, EPS, axis=2).requires_grad
    assert kept == [False, False, True, True, True]


@AXES
@DTYPES
def test_values(parts, axis, dtype):
    h, mlp = values(dtype), mlp_for(axis)
    want = plain(h, mlp, axis)
    with torch.no_grad():
        torch.testing.assert_close(
            residual_swiglu(h, mlp, EPS, axis=axis), want, rtol=0, atol=CLOSE[dtype]
        )
    with torch.inference_mode():
        residual_swiglu(h, mlp, EPS, axis=axis)
    got = residual_swiglu(h, mlp, EPS, axis=axis)
    assert got.dtype == dtype and got.requires_grad
    torch.testing.assert_close(got, want, rtol=0, atol=CLOSE[dtype])
    change = values(dtype, 1)
    want = rms_norm(h + change, EPS)
    torch.testing.assert_close(residual_norm(h, change, EPS), want, rtol=0, atol=CLOSE[dtype])


@AXES
@DTYPES
@pytest.mark.parametrize("turned", [False, True])
def test_gradients(parts, axis, dtype, turned):
    """Also of an input and for an output gradient that are not contiguous."""
    mlp, weight = mlp_for(axis), values(dtype, 2)
    found = []
    for path in (lambda h: residual_swiglu(h, mlp, EPS, axis=axis), lambda h: plain(h, mlp, axis)):
        leaf = values(dtype).requires_grad_()
        h = leaf.flip(0).transpose(0, 1).contiguous().transpose(0, 1) if turned else leaf
        out = path(h)
        out = out.transpose(1, 2).contiguous() if turned else out
        (out * weight.reshape(out.shape)).sum().backward()
        found.append([leaf.grad, *(p.grad for p in mlp.parameters())])
        mlp.zero_grad()
    assert [g.dtype for g in found[0]] == [dtype, torch.float32, torch.float32]
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=CLOSE[dtype] * float(want.abs().max()))


@AXES
def test_gradient_of_a_sum_which_is_expanded(axis):
    h, mlp = values().requires_grad_(), mlp_for(axis)
    (got,) = torch.autograd.grad(residual_swiglu(h, mlp, EPS, axis=axis).sum(), h)
    (want,) = torch.autograd.grad(plain(h, mlp, axis).sum(), h)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@AXES
@pytest.mark.parametrize("frozen", ["input", "up", "down", "both"])
def test_what_needs_no_gradient_gets_none(axis, frozen):
    h, mlp = values().requires_grad_(frozen != "input"), mlp_for(axis)
    mlp.gate_up_proj.weight.requires_grad_(frozen not in ("up", "both"))
    mlp.down_proj.weight.requires_grad_(frozen not in ("down", "both"))
    leaves = [h, *mlp.parameters()]
    found = []
    for out in (residual_swiglu(h, mlp, EPS, axis=axis), plain(h, mlp, axis)):
        (out * values(seed=3)).sum().backward()
        found.append([leaf.grad for leaf in leaves])
        for leaf in leaves:
            leaf.grad = None
    for leaf, got, want in zip(leaves, *found, strict=True):
        assert (got is None) == (want is None) == (not leaf.requires_grad)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@DTYPES
def test_gradients_of_the_residual_norm(dtype):
    found = []
    for path in (residual_norm, lambda h, c, eps: rms_norm(h + c, eps)):
        h, change = values(dtype).requires_grad_(), values(dtype, 1).requires_grad_()
        (path(h, change, EPS) * values(dtype, 2)).sum().backward()
        found.append([h.grad, change.grad])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=CLOSE[dtype])


def test_a_second_derivative_is_refused():
    h, mlp = values().requires_grad_(), mlp_for(2)
    out = residual_swiglu(h, mlp, EPS, axis=2).square().sum()
    (first,) = torch.autograd.grad(out, h, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# --- when it is taken ---------------------------------------------------------------------------


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The axis of every call of the path for CPUs."""
    calls: list[int] = []
    real = nn_cpu.residual_swiglu

    def seen(*args: Any, axis: int) -> Tensor:
        calls.append(axis)
        return real(*args, axis=axis)

    monkeypatch.setattr(inward_nn.nn_cpu, "residual_swiglu", seen)
    return calls


def test_no_rows_are_no_error(taken):
    h, mlp = values()[:0], mlp_for(1)
    assert residual_swiglu(h, mlp, EPS, axis=1).shape == (0, S, D) and taken == []


def test_taken_by_default_and_not_under_autocast(taken):
    h, mlp = values(), mlp_for(2)
    residual_swiglu(h, mlp, EPS, axis=2)
    assert taken == [2]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = residual_swiglu(h, mlp, EPS, axis=2)
        want = plain(h, mlp, 2)
    assert taken == [2] and torch.equal(got, want)


def test_not_taken_by_torch_compile(taken):
    h, mlp = values(), mlp_for(1)

    def f(h: Tensor) -> Tensor:
        return residual_swiglu(h, mlp, EPS, axis=1)

    got = torch.compile(f, backend="eager", fullgraph=True)(h)
    assert taken == []
    torch.testing.assert_close(got, f(h))


@pytest.mark.parametrize("part", ["", "gate_up_proj", "down_proj"])
def test_hooks_see_what_they_watch(taken, part):
    h, mlp = values(), mlp_for(2)
    seen = []
    watched = mlp.get_submodule(part)
    for register in (watched.register_forward_pre_hook, watched.register_forward_hook):
        handle = register(lambda *_: seen.append(1))
        residual_swiglu(h, mlp, EPS, axis=2)
        handle.remove()
    assert len(seen) == 2 and taken == []
    residual_swiglu(h, mlp, EPS, axis=2)
    assert taken == [2]


def test_a_replaced_projection_is_used(taken):
    """As an adapter does it: a module of its own that holds the old one."""
    h, mlp = values(), mlp_for(2)

    class Adapter(Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    new = Adapter(mlp.down_proj.in_features, D, bias=False)
    new.weight = mlp.down_proj.weight
    before = residual_swiglu(h, mlp, EPS, axis=2)
    mlp.down_proj = new
    got = residual_swiglu(h, mlp, EPS, axis=2)
    assert taken == [2] and not torch.allclose(got, before)
    torch.testing.assert_close(got, plain(h, mlp, 2))


# --- the whole model ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient", ["last_cycle", "all"])
def test_the_model_agrees_with_the_plain_path(kind, gradient, monkeypatch):
    settings = replace(KINDS[kind], gradient=gradient)
    batch = batch_of(settings)
    found = []
    for fast in (True, False):
        monkeypatch.setattr(nn_cpu, "suits", lambda h, fast=fast: fast)
        model = build(settings)
        carry, total = None, torch.zeros(())
        for step in range(2):
            loss = model.loss(batch, carry, Draws(0, step, range(4), 4))
            carry, total = loss.state, total + loss.total
        total.backward()
        grads = {n: p.grad.to_dense() for n, p in model.named_parameters() if p.grad is not None}
        found.append((total.detach(), grads))
    (total, grads), (want, want_grads) = found
    torch.testing.assert_close(total, want, rtol=1e-4, atol=1e-4)
    assert grads.keys() == want_grads.keys()
    for name, grad in grads.items():
        scale = float(want_grads[name].abs().max())
        torch.testing.assert_close(grad, want_grads[name], rtol=1e-3, atol=1e-3 * scale)


def test_a_step_at_the_published_width_keeps_less_memory():
    """Saved for backward: input, gate|up and output, and not what can be computed again."""
    mlp = SwiGLU(64, expansion=4.0, multiple=64)
    h = torch.randn(4, 50, 64).requires_grad_()

    def saved(path: Any) -> int:
        sizes: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            path(h)
        return sum(sizes.values())

    fast = saved(lambda h: residual_swiglu(h, mlp, EPS, axis=2))
    slow = saved(lambda h: plain(h, mlp, 2))
    assert fast < 0.75 * slow, (fast, slow)
