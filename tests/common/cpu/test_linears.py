"""Linear layers from packed weights: the same numbers, nothing left behind."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from inward.common.cpu import linears as cpu
from inward.common.cpu.linears import Linears, matrix, unpack
from inward.common.twins import Twin

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can; small matrices are packed too."""
    monkeypatch.setattr(cpu, "SMALLEST", {})
    if not cpu.can_pack([nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))]):
        pytest.skip("oneDNN does not pack bfloat16 weights on this machine")


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(24, 40), nn.SiLU(), nn.Linear(40, 24, bias=False), nn.LayerNorm(24)
    ).to(dtype)


def turned(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The same with GPT-2's layers."""
    torch.manual_seed(0)
    net = nn.Sequential(Conv1D(40, 24), nn.SiLU(), Conv1D(24, 40), nn.LayerNorm(24))
    for layer in (net[0], net[2]):
        nn.init.normal_(layer.get_parameter("weight"), std=0.3)
        nn.init.normal_(layer.get_parameter("bias"))
    return net.to(dtype)


def run_packed(net: nn.Module) -> Any:
    """A twin that multiplies from the packed copy."""
    twin = Twin(net)
    Linears(net).into(twin)
    return twin.model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [(1,), (7,), (2, 3), (1, 1), (3, 1), (300,), (2, 0)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("large", [0, cpu.LARGE])
def test_products_are_those_of_linear(dtype, rows, bias, large, monkeypatch):
    monkeypatch.setattr(cpu, "LARGE", large)
    torch.manual_seed(1)
    weight = torch.randn(33, 50).to(dtype)
    offset = torch.randn(33).to(dtype) if bias else None
    x = torch.randn(*rows, 50).to(dtype)
    found = matrix(weight, offset)(x)
    wanted = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
    assert found.dtype == dtype and found.shape == (*rows, 33)
    atol = 1e-4 if dtype == torch.float32 else 0.07
    assert torch.allclose(found.double(), wanted, atol=atol, rtol=0.01)
    # a view whose rows are not next to each other
    spread = torch.randn(*rows, 100).to(dtype)[..., ::2]
    assert torch.allclose(matrix(weight)(spread), F.linear(spread, weight), atol=atol, rtol=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_of_a_large_matrix_are_multiplied_as_four(dtype):
    torch.manual_seed(1)
    weight, x = torch.randn(512, 520).to(dtype), torch.randn(4, 520).to(dtype)
    times = matrix(weight)
    whole = times(x)
    for num in (1, 2, 3):
        assert torch.equal(times(x[:num]), whole[:num])
        assert times(x[:num, None]).shape == (num, 1, 512)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_runs_packed_within_and_is_itself_after(dtype):
    net, x = model(dtype), torch.randn(5, 24).to(dtype)
    seen: list[int] = []
    net[0].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    with torch.no_grad():
        before = net(x)
        linears = Linears(net)
        assert [layer for layer, _ in linears.products] == [net[0], net[2]]
        own = run_packed(net)
        assert own[0].times is linears.products[0][1] and isinstance(own[0], nn.Linear)
        inside, after = own(x), net(x)
    assert torch.equal(before, after) and seen == [5, 5, 5]
    assert torch.allclose(inside, before, atol=1e-5 if dtype == torch.float32 else 0.1)
    assert own[0].weight is net[0].weight and type(net[0]) is nn.Linear
    assert "times" not in net[0].__dict__


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (1, 1, 24)])
def test_gpt2s_layers_are_packed_too(dtype, shape):
    net, x = turned(dtype), torch.randn(shape).to(dtype)
    with torch.no_grad():
        before = net(x)
        own = net[0].forward
        net[0].forward = own
        assert len(Linears(net).products) == 1, "others' forwards stay theirs"
        del net[0].forward
        inside = run_packed(net)(x)
    assert inside.shape == before.shape and len(Linears(net).products) == 2
    assert torch.allclose(inside, before, atol=1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("make", ["model", "turned"])
def test_gradients_and_other_dtypes_take_the_plain_product(make):
    net, x = globals()[make](), torch.randn(5, 24)
    run_packed(net)(x).sum().backward()
    inside = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    net(x).sum().backward()
    outside = [p.grad for p in net.parameters() if p.grad is not None]
    assert len(inside) == 5 + (make == "turned")
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
        run_packed(net)(x.double())


def test_changed_weights_are_packed_anew():
    net, x = model(), torch.randn(5, 24)
    with torch.no_grad():
        first = Linears(net).products
        assert [a is b for (_, a), (_, b) in zip(first, Linears(net).products, strict=True)] == [
            True,
            True,
        ]
        net.get_parameter("0.weight").mul_(2)
        assert torch.allclose(run_packed(net)(x), net(x), atol=1e-5)


def test_the_copy_goes_with_the_model_or_before():
    net = model()
    Linears(net)
    assert net in cpu._KEPT and copy.deepcopy(net) not in cpu._KEPT
    unpack(net)
    assert net not in cpu._KEPT
    Linears(net)
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None, "what is kept does not keep the model"


def test_what_is_not_packed(monkeypatch):
    net = model()
    assert Linears(net, wanted=False).products == []
    monkeypatch.setattr(cpu, "SMALLEST", {torch.float32: 961})
    assert Linears(net).products == []
    assert len(Linears(net, wanted=True).products) == 2
    monkeypatch.setattr(cpu, "SMALLEST", {torch.float32: 960})
    assert len(Linears(net).products) == 2
    monkeypatch.setattr(cpu, "LIMIT_BYTES", 10)
    assert Linears(net).products == []
    assert len(Linears(net, wanted=True).products) == 2
    replaced = model()
    replaced[0].__dict__["forward"] = lambda x: torch.zeros(len(x), 40)
    assert [layer for layer, _ in Linears(replaced, wanted=True).products] == [replaced[2]]
    mixed = model()
    mixed[2].to(torch.bfloat16)
    for wrong in (mixed, model().double(), nn.Sequential(nn.LayerNorm(3))):
        assert Linears(wrong).products == []
        with pytest.raises(ValueError, match="cannot be packed"):
            Linears(wrong, wanted=True)
