"""A depth for each position of one forward.

    token t thinks r_t recurrences; at recurrence i it reads of every token what that one was at its
    deepest recurrence not deeper than i, of itself and its neighbours in the same forward too

That is what generation does when tokens stop at different depths and the cache is shared as
"deepest" says, token after token; here it is one forward, with gradients where they are asked for.
Only tokens still at work are computed: where each row has few of them left, these are taken out,
and the keys and values of the others stand as they stopped.

The slow, obvious version is `generate.generate_one` (one token at a time, in inference), and for
gradients the unrolled sentence above in tests/methods/huginn/test_uneven.py.

Shape letters: B rows, S new tokens, n of them at work, K cached and new, N heads, H head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inward.common.taken import taken_out
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.context import Context
from inward.methods.huginn.sharing import DeepestAvailable

if TYPE_CHECKING:
    from transformers import Cache

    from inward.methods.huginn.model import HuginnModel

Kept = dict[int, tuple[Tensor, Tensor]]
"""core layer -> keys and values (B, N, S, H) of all new tokens at their newest recurrence"""


def depths_of(num_steps: Any, shape: tuple[int, int]) -> Tensor | None:
    """(B, S) depths, if `num_steps` is a tensor of two axes (B or 1, S); None: it is one for all.

    Raises:
        ValueError: another shape, no whole numbers, or a depth below 1.
    """
    if not isinstance(num_steps, Tensor) or num_steps.ndim != 2:
        return None
    if num_steps.shape not in (shape, (1, shape[1])) or num_steps.is_floating_point():
        raise ValueError(
            f"num_steps of shape {tuple(num_steps.shape)} and {num_steps.dtype}; a depth for each "
            f"position must be whole numbers of shape {shape}"
        )
    if int(num_steps.min()) < 1:
        raise ValueError(f"num_steps holds {int(num_steps.min())}; a depth must be at least 1")
    return num_steps.expand(shape)


def check_uneven(cache: Cache | None, *, checkpointed: bool, recorded: bool) -> None:
    """Refuse what cannot hold tokens of different depth, before anything is computed."""
    if checkpointed or recorded:
        told = "gradient checkpointing" if checkpointed else "hidden states or attentions"
        raise ValueError(
            f"a depth for each position and {told} exclude each other; leave one out, or give one "
            "num_steps"
        )
    if isinstance(cache, RecurrentCache):
        known = type(cache.sharing) is DeepestAvailable
        if not known:
            raise ValueError(
                f"the cache is shared as {cache.sharing}, but tokens of different depth need "
                "sharing='deepest'"
            )
    elif cache is not None and getattr(cache, "looped", None) is None:
        raise ValueError(
            f"a {type(cache).__name__} knows one depth for all tokens; pass "
            "inward.methods.huginn.cache.RecurrentCache(), or with gradients model.new_cache()"
        )


@dataclass(frozen=True)
class SomeContext(Context):
    """The context of the tokens at work; keys and values of all of them are laid together.

    whole: of all new tokens. index: (B, n) places of those at work, other ones behind them where a
    row has fewer; at_work: (B, n) which these are; None: all tokens are at work.
    """

    whole: Context = None  # type: ignore[assignment]
    kept: Kept = field(default_factory=dict)
    outer: int = 0
    core: int = 1
    index: Tensor | None = None
    at_work: Tensor | None = None

    def visit(self, recurrence: int | Tensor, layers: tuple[int, int, int]) -> Sequence[Any]:
        """See `Context.visit`."""
        return self.whole.visit(recurrence, layers)

    def extend(self, k: Tensor, v: Tensor, layer_idx: Any) -> tuple[Tensor, Tensor]:
        """See `Context.extend`; k and v (B, N, n, H) of those at work."""
        layer = (layer_idx - self.outer) % self.core
        if self.index is not None:
            assert self.at_work is not None
            index, at_work = self.index[:, None, :, None], self.at_work[:, None, :, None]
            old = self.kept[layer]
            k, v = (_laid(new, o, index, at_work) for new, o in zip((k, v), old, strict=True))
        self.kept[layer] = k, v
        return self.whole.extend(k, v, layer_idx)


def _laid(new: Tensor, old: Tensor, index: Tensor, at_work: Tensor) -> Tensor:
    """old (B, N, S, H) with new (B, N, n, H) at the places that are at work."""
    places = index.expand(-1, new.shape[1], -1, new.shape[3])
    return old.scatter(2, places, torch.where(at_work, new, old.gather(2, places)))


class Uneven:
    """The recurrences of one forward, with depths (B, S)."""

    def __init__(self, model: HuginnModel, e: Tensor, context: Context, depths: Tensor):
        self.model, self.e, self.context = model, e, context
        self.depths = depths.to(e.device)
        self.longest = int(depths.max())
        prelude, self.core, coda = model.config.layers
        self.outer = prelude + coda
        self.kept: Kept = {}
        self.known: tuple[Tensor, Any] | None = None

    def step(self, s: Tensor, i: int) -> Tensor:
        """s (B, S, d) after recurrence i, from 0; tokens that have stopped keep theirs."""
        at_work = self.depths > i
        context, index = self._context(at_work)
        if index is None:
            return self.model.iterate(s, self.e, context, recurrence=i)
        some = index[..., None].expand(-1, -1, s.shape[2])
        old = s.gather(1, some)
        with taken_out(index, s.shape[1]):
            new = self.model.iterate(old, self.e.gather(1, some), context, recurrence=i)
        new = torch.where(context.at_work[..., None], new, old)
        return s.scatter(1, some, new)

    def _context(self, at_work: Tensor) -> tuple[Any, Tensor | None]:
        """Of the tokens at work, kept while these stay the same; and their places."""
        if self.known is not None and torch.equal(self.known[0], at_work):
            return self.known[1]
        common = {"whole": self.context, "kept": self.kept, "outer": self.outer, "core": self.core}
        whole = {name: getattr(self.context, name) for name in _FIELDS}
        index = None
        if bool(at_work.all()):
            found: Any = SomeContext(**whole, **common)
        else:
            n = int(at_work.sum(1).max())
            index = (~at_work).long().argsort(dim=1, stable=True)[:, :n]
            found = SomeContext(**whole, **common, index=index, at_work=at_work.gather(1, index))
            found = self._taken_out(found, index)
        self.known = at_work, (found, index)
        return found, index

    def _taken_out(self, context: Any, index: Tensor) -> Any:
        """Positions, angles and mask of some tokens."""
        B, S = self.depths.shape
        mask, causal = context.mask, context.causal
        if mask is None and causal:  # nothing is cached, see `visible`
            k = torch.arange(S, device=index.device)
            mask = (k <= index[..., None])[:, None]
        elif mask is not None:
            rows = mask.expand(B, -1, -1, -1)
            places = index[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3])
            mask = rows.gather(2, places)

        def some(t: Tensor) -> Tensor:
            t = t.expand(B, *t.shape[1:])
            return torch.stack([row[own] for row, own in zip(t, index, strict=True)])

        cos, sin = context.rotary
        moved = replace(context, positions=some(context.positions), rotary=(some(cos), some(sin)))
        return replace(moved, mask=mask, causal=False, lengths=None)


_FIELDS = tuple(f.name for f in fields(Context))
