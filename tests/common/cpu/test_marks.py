"""Whatever way a weight changes, the next call sees it; and a mark misses nothing."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from inward.common.cpu import linears
from inward.common.cpu.linears import Linears, can_pack
from inward.common.cpu.marks import WIDTH, Mark
from inward.common.twins import Twin

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(params=DTYPES, ids=["float32", "bfloat16"])
def weight(request: pytest.FixtureRequest) -> Tensor:
    """Three rows of a mark and a rest."""
    torch.manual_seed(0)
    found = torch.randn(96, WIDTH // 64 + 7).to(request.param)
    assert found.numel() * found.element_size() % WIDTH
    return found


def one_entry(w: Tensor, at: int) -> None:
    """The last bit of one entry."""
    bits = w.view(-1).view(torch.int32 if w.element_size() == 4 else torch.int16)
    bits[at] ^= 1


def two_rows(w: Tensor, at: int) -> None:
    w[[3, 60]] = w[[60, 3]]


def two_entries(w: Tensor, at: int) -> None:
    flat = w.view(-1)
    flat[[at, at - 1]] = flat[[at - 1, at]]


def signs(w: Tensor, at: int) -> None:
    """Of two columns: sums of words of eight bytes would stay."""
    w[:, [3, 7]] *= -1


def rectangle(w: Tensor, at: int) -> None:
    """Four bytes such that the sums of all rows and columns stay."""
    flat = w.view(torch.uint8)
    flat[2, 10], flat[2, 50], flat[9, 10], flat[9, 50] = 7, 9, 9, 7
    Mark(w)
    flat[2, 10], flat[2, 50], flat[9, 10], flat[9, 50] = 9, 7, 7, 9


def equal_sums(w: Tensor, at: int) -> None:
    """Two pairs of the same sum change places."""
    flat = w.view(-1)
    flat[[at, at - 1]] = torch.tensor([1.0, 4.0]).to(w.dtype)
    before = Mark(w)
    flat[[at, at - 1]] = torch.tensor([2.0, 3.0]).to(w.dtype)
    assert Mark(w) != before


@pytest.mark.parametrize("at", [1, 5000, -1])
@pytest.mark.parametrize("change", [one_entry, two_rows, two_entries, signs, rectangle, equal_sums])
def test_a_mark_feels_every_change(weight, change, at):
    before = Mark(weight)
    assert before == Mark(weight.clone())
    change(weight, at)
    assert Mark(weight) != before
    assert Mark(weight) == Mark(weight.clone())


def test_a_mark_knows_shape_and_dtype():
    w = torch.zeros(4, 6)
    assert Mark(w) == Mark(torch.zeros(4, 6)) and Mark(w) != Mark(w.view(6, 4))
    assert Mark(w) != Mark(w.view(torch.int32)) and Mark(w) != Mark(w[:3]) and Mark(w) != w
    spread = torch.randn(40, 60).t()
    assert Mark(spread) == Mark(spread.contiguous())
    assert Mark(torch.zeros(0, 3)) == Mark(torch.zeros(0, 3))
    with torch.inference_mode():
        assert Mark(torch.ones(4, 6)) == Mark(torch.ones(4, 6))


def test_every_single_byte_counts():
    """No entry of the matrix is 0, and no two rows of it are the same."""
    from inward.common.cpu.marks import _matrix

    assert int((_matrix() == 0).sum()) == 0
    assert len(torch.unique(_matrix(), dim=0)) == WIDTH


# --------------------------------------------------------------------------------------------------
# All ways in which weights change


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.SiLU(), nn.Linear(40, 24, bias=False))


def step_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    model(torch.ones(2, 24)).square().sum().backward()
    optimizer.step()


def fused(model: nn.Module) -> None:
    """The default of transformers' Trainer: it raises no version counter."""
    step_of(torch.optim.AdamW(model.parameters(), lr=0.1, fused=True), model)


def foreach(model: nn.Module) -> None:
    step_of(torch.optim.SGD(model.parameters(), lr=0.1, foreach=True), model)


def through_data(model: nn.Module) -> None:
    model.get_parameter("0.weight").data[3, 4] += 1


def other_data(model: nn.Module) -> None:
    model.get_parameter("2.weight").data = torch.randn(24, 40)


def loaded(model: nn.Module) -> None:
    model.load_state_dict({k: t + 1 for k, t in model.state_dict().items()})


def assigned(model: nn.Module) -> None:
    model.load_state_dict({k: t + 1 for k, t in model.state_dict().items()}, assign=True)


def copied(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("0.bias").copy_(torch.ones(40))


def in_numpy(model: nn.Module) -> None:
    model.get_parameter("0.weight").detach().numpy()[:] *= -1


def replaced(model: Any) -> None:
    model[0].weight = nn.Parameter(torch.randn(40, 24))


def other_layer(model: Any) -> None:
    model[0] = nn.Linear(24, 40)


def narrower(model: nn.Module) -> None:
    model.to(torch.bfloat16)


WAYS = (fused, foreach, through_data, other_data, loaded, assigned, copied, in_numpy, replaced)


@pytest.mark.parametrize("change", (*WAYS, other_layer, narrower), ids=lambda f: f.__name__)
def test_the_next_call_sees_every_change(change: Callable[[Any], None], monkeypatch):
    monkeypatch.setattr(linears, "SMALLEST", {})
    model = net()
    if not can_pack(list(model.parameters())):
        pytest.skip("oneDNN does not pack weights on this machine")

    def packed(x: Tensor) -> Tensor:
        twin = Twin(model)
        found = Linears(model, wanted=True)
        found.into(twin)
        assert len(found.products) == 2
        with torch.no_grad():
            return twin.model(x)

    first = packed(torch.ones(3, 24))
    change(model)
    x = torch.ones(3, 24).to(next(model.parameters()).dtype)
    after = packed(x)
    with torch.no_grad():
        plain = model(x)
    assert (after.float() - first).abs().max() > (1e-5 if change is narrower else 1e-3)
    assert torch.allclose(after, plain, atol=0.05 if change is narrower else 1e-5)
    kept = linears._KEPT._kept[model]
    packed(x)
    assert linears._KEPT._kept[model] is kept, "what did not change is not packed again"


def test_adapters_that_are_merged_are_seen(monkeypatch):
    peft = pytest.importorskip("peft")
    monkeypatch.setattr(linears, "SMALLEST", {})
    model: Any = net()
    if not can_pack(list(model.parameters())):
        pytest.skip("oneDNN does not pack weights on this machine")
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0", "2"], r=2))
    for name, p in lora.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p)
    x = torch.randn(3, 24)

    def both() -> tuple[Tensor, Tensor]:
        twin = Twin(lora)
        Linears(lora).into(twin)
        with torch.no_grad():
            return twin.model(x), lora.eval()(x)

    outputs = []
    for change in (lambda: None, lora.disable_adapter_layers, lora.enable_adapter_layers,
                   lora.merge_adapter, lora.unmerge_adapter):  # fmt: skip
        change()
        fast, plain = both()
        assert torch.allclose(fast, plain, atol=1e-4)
        outputs.append(fast)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-2)
    assert torch.allclose(outputs[3], outputs[2], atol=1e-4)


# --------------------------------------------------------------------------------------------------
# Weights of other kinds


class Quantized(Tensor):
    """A matrix as int8 with a scale a row, as torchao's: there are no bytes of its dtype."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> "Quantized":
        own = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)  # type: ignore[attr-defined]
        own.codes, own.scale = codes, scale
        return own

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        flat = [a.codes * a.scale if isinstance(a, cls) else a for a in args]
        return func(*flat, **(kwargs or {}))


def test_weights_of_other_kinds_take_the_plain_product(monkeypatch):
    monkeypatch.setattr(linears, "SMALLEST", {})
    model = net()
    codes = torch.randint(-128, 128, (40, 24)).to(torch.int8)
    model[0].weight = nn.Parameter(Quantized(codes, torch.rand(40, 1)), requires_grad=False)
    x = torch.randn(3, 24)
    with torch.no_grad():
        plain = model(x)
        found = Linears(model)
        assert [layer for layer, _ in found.products] in ([], [model[2]])
        twin = Twin(model)
        found.into(twin)
        assert torch.allclose(twin.model(x), plain, atol=1e-5)
    assert not can_pack(list(model.parameters()))


def test_weights_that_are_made_at_each_forward_are_not_packed(monkeypatch):
    monkeypatch.setattr(linears, "SMALLEST", {})
    model = net()
    torch.nn.utils.parametrizations.weight_norm(model[0])
    pruned: Any = copy.deepcopy(net())
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    for each in (model, pruned):
        assert [layer for layer, _ in Linears(each).products] in ([], [each[2]])
