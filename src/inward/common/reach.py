"""How far back the layers of a model look, and masks that count positions instead of columns.

Many models have layers with a sliding window (Mistral, Gemma, gpt-oss), or chunks (Llama 4).
transformers makes the mask of each kind of layer itself, from a predicate on numbers of columns:
right for a text alone, wrong as soon as rows of a batch have masked columns between their tokens,
or lie in a cache where each has a length of its own. A mask of ours, on the other hand, is taken
for the layers of all kinds, and forgets the windows.

So the two are put together where the predicate is asked: within

    with placed(Placed(allowed, query, key)) as mask:
        model(..., attention_mask=mask)

every mask that the model's forward has made says

    allowed[b, q, k]  and  the model's own predicate of (position of q, position of k)

whatever its layers are called and however many kinds there are. Nothing of the kind happens while
a text is shorter than the shortest window (`reach_of`): one mask serves all layers then.

Shape letters: B rows, q queries, K keys.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import signature
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask

ALL = sys.maxsize
"""The reach of a model whose layers look at everything before"""
_FARTHEST = 2**20
"""Positions that a window is looked for in; it costs a byte for each"""


@dataclass(frozen=True)
class Placed:
    """Who may look at whom, windows aside, and where everybody stands.

    allowed   (B or 1, 1, q, K) bool, True = may look; every query sees some key
    query     (B or 1, q) int64 positions of the queries
    key       (B or 1, K) int64 positions of the keys
    """

    allowed: Tensor
    query: Tensor
    key: Tensor


@dataclass
class _Running:
    """A forward within `placed`, and whether it has asked for a mask."""

    place: Placed
    asked: bool = False


_PLACED: ContextVar[_Running | None] = ContextVar("placed", default=None)
_SEEN: ContextVar[list[Callable[..., Tensor]] | None] = ContextVar("seen", default=None)
_LOCK = Lock()
_USUAL: dict[str, Callable[..., Any]] = {}
"""By the name of an attention, what makes its masks when nobody is within `_listening`"""
_num_within = 0


@contextmanager
def placed(place: Placed, num_rows: int) -> Iterator[Tensor]:
    """Within, the masks that a model makes in this thread are those of `place`. Gives the mask to
    hand to the model, (num_rows, K), which says nothing.

    Raises:
        ValueError: the model has made none that could be asked, as with FlashAttention.
    """
    running = _Running(place)
    token = _PLACED.set(running)
    K = place.key.shape[1]
    try:
        with _listening():
            yield torch.ones(num_rows, K, dtype=torch.long, device=place.key.device)
    finally:
        _PLACED.reset(token)
    if not running.asked:
        raise ValueError(
            "rows of unequal length are longer than the window of this model, and its attention "
            'makes no masks that count positions; load it with attn_implementation="sdpa" or '
            '"eager", or give it rows one by one'
        )


@contextmanager
def _listening() -> Iterator[None]:
    """Within, we are asked for masks first, in all threads."""
    global _num_within
    with _LOCK:
        _num_within += 1
        if _num_within == 1:
            for name in list(ALL_MASK_ATTENTION_FUNCTIONS):
                usual = _USUAL[name] = ALL_MASK_ATTENTION_FUNCTIONS[name]
                AttentionMaskInterface.register(name, _asking(usual))
    try:
        yield
    finally:
        with _LOCK:
            _num_within -= 1
            if _num_within == 0:
                for name, usual in _USUAL.items():
                    AttentionMaskInterface.register(name, usual)
                _USUAL.clear()


def _asking(usual: Callable[..., Any]) -> Callable[..., Any]:
    """What makes masks, with us in front of it."""

    def mask(*args: Any, **options: Any) -> Any:
        seen, running = _SEEN.get(), _PLACED.get()
        if seen is not None:
            seen.append(options["mask_function"])
        if running is None or usual not in (sdpa_mask, eager_mask):
            return usual(*args, **options)
        running.asked = True
        made = restricted(
            running.place, options["mask_function"], options["kv_offset"], options["kv_length"]
        )
        if usual is sdpa_mask:
            return made
        dtype = options["dtype"]
        hidden = torch.finfo(dtype).min
        return torch.zeros(made.shape, dtype=dtype, device=made.device).masked_fill(~made, hidden)

    return mask


def restricted(
    place: Placed, predicate: Callable[..., Tensor], first: int = 0, num: int | None = None
) -> Tensor:
    """(B, 1, q, num) bool: what is allowed, and near enough for a layer whose masks are made with
    `predicate` (transformers': of row, head, query and key). Keys from `first` on.

    A draft's masks see each other both ways, so of two places the later one is asked about the
    earlier: windows and chunks count alike in both directions.
    """
    stop = None if num is None else first + num
    query, key = place.query[:, None, :, None], place.key[:, None, None, first:stop]
    rows = torch.arange(max(len(query), len(key)), device=key.device)[:, None, None, None]
    later, earlier = torch.maximum(query, key), torch.minimum(query, key)
    return predicate(rows, torch.zeros_like(rows), later, earlier) & place.allowed[..., first:stop]


def of_columns(mask: Tensor, num_new: int) -> Placed:
    """Rows with masked columns: mask (B, K), 1 where a row has something, of which the last
    `num_new` columns are the queries. Positions count what is there; a masked column sees itself.
    """
    key = (mask.cumsum(1) - 1).clamp(min=0)
    K = mask.shape[1]
    columns = torch.arange(K, device=mask.device)
    new = columns[K - num_new :, None]
    allowed = mask[:, None, None, :].bool() & (columns <= new) | (columns == new)
    return Placed(allowed, key[:, K - num_new :], key)


@contextmanager
def looking(mask: Any, num_rows: int, num_new: int, reach: int) -> Iterator[Any]:
    """Within, a forward of a model with this reach looks as `mask` says; gives what to hand to it.

    mask   `Placed`; or a mask of columns (B, K), of which the last `num_new` are new; or whatever
           else the model takes
    """
    if (
        isinstance(mask, Tensor)
        and mask.ndim == 2
        and mask.shape[1] > reach
        and not bool(mask.all())
    ):
        mask = of_columns(mask, num_new)
    if not isinstance(mask, Placed):
        if isinstance(mask, Tensor) and mask.ndim == 4 and len(mask) < num_rows:
            mask = mask.expand(num_rows, -1, -1, -1)  # XGLM wants one for each row
        yield mask
        return
    with placed(mask, num_rows) as handed:
        yield handed


# --------------------------------------------------------------------------------------------------
# Finding a model out

FAILURES = (
    ValueError,
    RuntimeError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)
"""What models of transformers raise when they are asked for what they cannot do"""


def nearness(dtype: torch.dtype) -> float:
    """Share of the largest logit by which two ways to the same may differ."""
    return 0.05 if dtype in (torch.bfloat16, torch.float16) else 1e-3


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Within, forwards that find a model out: without dropout or gradient, and afterwards torch's
    random numbers go on as if nothing had been."""
    modes = [(module, module.training) for module in model.modules()]
    state = torch.get_rng_state()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_rng_state(state)
        for module, mode in modes:
            module.training = mode


# --------------------------------------------------------------------------------------------------
# Where positions begin

_FIRSTS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def first_position(model: nn.Module) -> int:
    """The position that a text's first token has in `position_ids`: 0, or for RoBERTa and its kin
    the padding id + 1. Found out with two or three forwards of four tokens, once per model."""
    if model not in _FIRSTS:
        with quiet(model):
            _FIRSTS[model] = _first(model)
    return _FIRSTS[model]


def _first(model: Any) -> int:
    pad = getattr(model.config.get_text_config(decoder=True), "pad_token_id", None)
    if not isinstance(pad, int) or "position_ids" not in signature(model.forward).parameters:
        return 0
    size = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(4, device=model.device)[None] + pad + 1) % size
    usual = model(input_ids=ids, use_cache=False).logits
    for first in (0, pad + 1):
        places = torch.arange(first, first + 4, device=model.device)[None]
        try:
            said = model(input_ids=ids, position_ids=places, use_cache=False).logits
        except IndexError:  # there is no such position
            continue
        if torch.allclose(said, usual, rtol=1e-3, atol=1e-3 * float(usual.abs().max())):
            return first
    return 0


# --------------------------------------------------------------------------------------------------
# How far a model looks

_REACHES: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def reach_of(model: nn.Module) -> int:
    """Positions of a text within which every layer sees all that comes before; `ALL` if there is no
    window. Found out with a forward of two tokens, once per model.

    model   a causal LM of transformers, without adapters around it
    """
    if model not in _REACHES:
        with quiet(model):
            _REACHES[model] = _found(model)
    return _REACHES[model]


def _found(model: Any) -> int:
    seen: list[Callable[..., Tensor]] = []
    token = _SEEN.set(seen)
    try:
        ids = torch.tensor([[0, 1]], device=model.device)
        with _listening():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        _SEEN.reset(token)
    limits = [_limit(predicate, model.device) for predicate in seen]
    # what hides everything is the mask of a kind of layer that this model has none of
    return min([limit for limit in limits if limit], default=ALL)


def _limit(predicate: Callable[..., Tensor], device: torch.device) -> int:
    """The first position from which position 0 is out of sight."""
    query = torch.arange(_FARTHEST, device=device)[None, None, :, None]
    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    try:
        hidden = ~predicate(nothing, nothing, query, nothing).flatten()
    except (IndexError, RuntimeError):  # it asks a table of the text at hand, as for images
        return ALL
    return int(hidden.nonzero()[0]) if bool(hidden.any()) else ALL
