"""Linear layers on a CPU without gradients, from weights packed for oneDNN.

A decode step multiplies few rows with every weight, so it takes as long as reading the weights.
oneDNN reads a matrix about twice as fast if it lies in its own layout (`matrix`), and then a dozen
rows cost little more than one: SmolLM2-135M, one thread of an EPYC 9004, milliseconds for all
linear layers of a forward of 1, 4 and 12 rows: bfloat16 27, 28, 37 as they are, 17, 14, 21 packed;
float32 30, 40, 54 and 30, 24, 39.

    twin = Twin(model)
    Linears(model).into(twin)
    twin.model(...)             # same results up to rounding

The model is not changed: in a twin of it (`inward.common.twins`) the `nn.Linear` modules, and
GPT-2's `Conv1D` ones, which keep the matrix the other way round, multiply from the packed copy;
hooks run as ever, and whoever wants gradients gets the plain product. The copy takes the memory of
the weights once more; it is kept while the model lives and its weights stay what they are, which is
asked of every byte (`inward.common.cpu.marks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from inward.common.cpu.marks import Mark
from inward.common.twins import Twin

LIMIT_BYTES = 4 << 30
"""Larger models are not packed unless that is asked for: the copy may not fit."""
SMALLEST = {torch.float32: 100_000, torch.bfloat16: 16_384}
"""Entries of a matrix from which packing pays: calling oneDNN takes 10 microseconds longer than
torch's own product of a small one, which in float32 is faster up to 256 x 256."""
ROWS_HINT = 16
"""The number of rows that oneDNN is told when it packs; the layout for one row would suit only one,
this one was as fast for one and for many."""


FEWEST_ROWS, LARGE = 4, 1 << 18
"""oneDNN is slower for 1 to 3 rows than for 4 to 6: a large matrix gets 4, some of them zeros. One
row times 1,536 x 576, microseconds: bfloat16 133 as it is, 109 with three more; float32 247, 197.
Below LARGE entries the call that adds them would take as long as it saves."""


def matrix(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """x -> x W^T + bias for x (..., into) of any number of rows, in the dtype of W (out, into)."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS_HINT)
    product = torch.ops.mkldnn._linear_pointwise.default
    bias = None if bias is None else bias.detach()
    num_out, num_in = weight.shape
    few = FEWEST_ROWS if weight.numel() >= LARGE else 1

    def times(x: Tensor) -> Tensor:
        rows = x.numel() // num_in
        if not 0 < rows < few:
            return product(x, packed, bias, "none", [], "")
        more = F.pad(x.reshape(rows, num_in), (0, 0, 0, few - rows))
        return product(more, packed, bias, "none", [], "")[:rows].view(*x.shape[:-1], num_out)

    return times


def can_pack(parameters: Sequence[Tensor]) -> bool:
    """Whether weights like these can be packed here: plain tensors on a CPU, of one dtype that
    oneDNN has."""
    if not all(map(is_plain, parameters)):
        return False
    kinds = {(p.device.type, p.dtype) for p in parameters}
    mkldnn = torch.backends.mkldnn
    if len(kinds) != 1 or not (mkldnn.is_available() and mkldnn.enabled):  # type: ignore[attr-defined]
        return False
    ((device, dtype),) = kinds
    if device != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))


def is_plain(weight: object) -> bool:
    """Whether its bytes are its values: no subclass of Tensor (quantized, sharded, ...), which
    multiplies in a way of its own, and no sparse one."""
    plain = type(weight) in (Tensor, nn.Parameter)
    return plain and weight.layout == torch.strided  # type: ignore[union-attr]


Made = TypeVar("Made")


class Kept(Generic[Made]):
    """What was made of a model's tensors: kept while the model lives and they stay what they are.

    Not an attribute of the model: it is no part of a copy or a file.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[nn.Module, tuple[list[Mark], Made]] = WeakKeyDictionary()
        self._locks: WeakKeyDictionary[nn.Module, Lock] = WeakKeyDictionary()

    def get(self, model: nn.Module, tensors: Iterable[Tensor], make: Callable[[], Made]) -> Made:
        """What `make` has made of these tensors, made anew if one of them has changed. Callers in
        many threads wait for the first of them."""
        tensors = list(tensors)
        marks = [Mark(t) for t in tensors]
        with _LOCK:
            lock = self._locks.setdefault(model, Lock())
        with lock:
            found = self._kept.get(model)
            if found is None or found[0] != marks:
                # marked before it is made: what changes between is noticed by the next call
                marks = [Mark(t) for t in tensors]
                with torch.no_grad():
                    found = self._kept[model] = (marks, make())
        return found[1]

    def __contains__(self, model: nn.Module) -> bool:
        return model in self._kept

    def drop(self, model: nn.Module) -> None:
        """Give its memory back."""
        self._kept.pop(model, None)


_LOCK = Lock()
Layer = nn.Linear | Conv1D


class _PackedLinear(nn.Linear):
    """In a twin: an `nn.Linear` that multiplies from a packed copy."""

    times: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != self.weight.dtype:
            return super().forward(x)
        return self.times(x)


class _PackedConv1D(Conv1D):
    """In a twin: a `Conv1D` that multiplies from a packed copy."""

    times: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != self.weight.dtype:
            return super().forward(x)
        return self.times(x)


_PACKED: dict[type, Any] = {nn.Linear: _PackedLinear, Conv1D: _PackedConv1D}


class Linears:
    """The linear layers of a model, packed where that is possible.

    wanted: False: never; True: all of them; None: where it pays (SMALLEST), if they can be packed
        and take LIMIT_BYTES or less.

    Raises:
        ValueError: it is wanted and cannot be.
    """

    def __init__(self, model: nn.Module, *, wanted: bool | None = None) -> None:
        self.model = model
        self.products: list[tuple[Layer, Callable[[Tensor], Tensor]]] = []
        if wanted is False:
            return
        layers: list[Any] = [m for m in model.modules() if type(m) in _PACKED and _own_weight(m)]
        if not wanted:
            layers = [m for m in layers if m.weight.numel() >= SMALLEST.get(m.weight.dtype, 0)]
        weights = [m.weight for m in layers]
        size = sum(w.numel() * w.element_size() for w in weights)
        if weights and can_pack(weights) and (wanted or size <= LIMIT_BYTES):
            self.products = _products(model, layers)
        elif wanted:
            raise ValueError(
                f"{type(model).__name__} cannot be packed: its linear layers must lie on a CPU in "
                "float32 or bfloat16, all alike; pass packed=None to run it as it is"
            )

    def into(self, twin: Twin[Any]) -> None:
        """Let the layers in this twin, of the model or of one around it, multiply from the copy."""
        for layer, times in self.products:
            own = twin.of(layer)
            own.__class__ = _PACKED[type(layer)]
            own.__dict__["times"] = times


def _own_weight(layer: Any) -> bool:
    """Whether its weight is a parameter, not made anew at each forward (weight norm, pruning) nor
    of a kind of its own, and its forward the usual one."""
    table = layer.__dict__["_parameters"]
    usual = "forward" not in layer.__dict__ and table.get("weight") is not None
    return usual and all(p is None or is_plain(p) for p in table.values())


_KEPT: Kept[list[Callable[[Tensor], Tensor]]] = Kept()


def _products(
    model: nn.Module, layers: list[Layer]
) -> list[tuple[Layer, Callable[[Tensor], Tensor]]]:
    tensors = [p for m in layers for p in m.parameters(recurse=False)]
    found = _KEPT.get(model, tensors, lambda: [_product(layer) for layer in layers])
    return list(zip(layers, found, strict=True))


def _product(layer: Layer) -> Callable[[Tensor], Tensor]:
    """Holds tensors alone: a reference to the layer would keep its model alive."""
    weight = layer.weight.t().contiguous() if isinstance(layer, Conv1D) else layer.weight
    return matrix(weight, layer.bias)


def unpack(model: nn.Module) -> None:
    """Give the memory of the packed weights back."""
    _KEPT.drop(model)
