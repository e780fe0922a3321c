"""Keys and values of a looped model: one slot per (recurrence, layer), each row with a length of
its own.

A model that runs its core block r times attends, at recurrence i, to what the earlier tokens were
at recurrence i. So a token owns a slot for each recurrence and layer:

    layer_idx = P + C + R * i + l       prelude | coda | core at recurrence 0 | core at 1 | ...
                                        (P, R, C layers; recurrence i, core layer l, both from 0)

A plain `transformers.DynamicCache()` works with these indices too; it is the slow, obvious version.
`RecurrentCache` is preallocated, rolls back by moving a length, holds rows of different length and
depth, and may share slots between recurrences:

    sharing            slots   recurrence i reads and writes slot        reference's name
    PerDepth           r       i                                         full
    DeepestAvailable   r       i                                         latest-m4
    Ring(n)            n       i mod n                                   compress-s{n * R}
    FirstThenShared(n) n + 1   min(i, n)                                 compress-anchor (n = 8)
    Shared             1       0                                         compress-s{R}

A token that left the loop early has not written its deeper slots; when it is committed they are
filled with its deepest one, so a later token that thinks longer reads "the deepest slot not deeper
than its own recurrence" and no context is dropped. `PerDepth` alone refuses such a read. While a
prompt of many tokens runs, all of them overwrite a shared slot together, so a prompt is exact under
every sharing, and only later tokens see what it kept.

The reference counts its budgets in layer-steps, where a number that is no multiple of R lets one
layer read another's keys; here the unit is the recurrence, so that cannot be said.

Shape letters: B batch rows, S new tokens, N heads, H width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

from inward.methods.huginn.sharing import (
    DeepestAvailable as DeepestAvailable,
)
from inward.methods.huginn.sharing import (
    FirstThenShared as FirstThenShared,
)
from inward.methods.huginn.sharing import (
    PerDepth as PerDepth,
)
from inward.methods.huginn.sharing import (
    Ring as Ring,
)
from inward.methods.huginn.sharing import (
    Shared as Shared,
)
from inward.methods.huginn.sharing import (
    Sharing as Sharing,
)
from inward.methods.huginn.sharing import (
    reference_sharing as reference_sharing,
)
from inward.methods.huginn.sharing import (
    sharing_of as sharing_of,
)

CHUNK = 64
"""Columns are allocated in multiples of it."""


# --------------------------------------------------------------------------------------------------
# The cache


@dataclass(frozen=True)
class SlotLayout:
    """What a cache was made for; a model with another layout cannot read it."""

    prelude: int
    core: int
    coda: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_slot_bytes(self) -> int:
        """Bytes of keys and values that one token takes in one slot of one layer."""
        return 2 * self.num_heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True)
class Place:
    """Where the tokens of one forward lie: `num_new` columns from `start` on, in `rows`.

    rows: (B,) rows of the cache; None: all of them in order.
    start: the first new column: a number if it is the same for all rows, else (B,).
    width: columns that these tokens may read: the largest start + num_new.
    """

    rows: Tensor | None
    start: int | Tensor
    num_new: int
    width: int
    known: tuple[Any, Tensor] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def columns(self) -> Tensor:
        """(B or 1, S) the new tokens' columns."""
        start = self.start if isinstance(self.start, Tensor) else torch.tensor([self.start])
        return start[:, None] + torch.arange(self.num_new, device=start.device)

    def flat(self, slot: int | Tensor, num_rows: int) -> Tensor:
        """(B,) where rows lie in a store whose slots and `num_rows` rows are one axis."""
        if self.known is not None and self.known[0] is slot:
            return self.known[1]
        device = slot.device if isinstance(slot, Tensor) else None
        rows = torch.arange(num_rows, device=device) if self.rows is None else self.rows
        at = slot * num_rows + rows
        object.__setattr__(self, "known", (slot, at))  # the next layer asks the same
        return at

    def select(self, index: Tensor, num_rows: int) -> Place:
        """The place of some of the `num_rows` batch rows (B', in this order)."""
        rows = torch.arange(num_rows, device=index.device) if self.rows is None else self.rows
        start = self.start[index] if isinstance(self.start, Tensor) else self.start
        return Place(rows[index], start, self.num_new, self.width)


class RecurrentCache(Cache):
    """Keys and values, shared as `sharing` says (see the top of this file).

    One forward is `begin` (where do the new tokens lie), `update` by each layer (any number of
    times: a second visit overwrites), `commit` (the tokens are kept, with the depth they reached).
    Without `commit` nothing has happened.

    Args:
        sharing: which recurrences share a slot, or the name of that.
        capacity: columns to allocate at once; more are added when needed.
        num_recurrences: slots to allocate at once; more are added when needed.
        num_rows: rows, if more than the first batch will come and go.
    """

    def __init__(
        self,
        sharing: str | Sharing = "deepest",
        *,
        capacity: int = 0,
        num_recurrences: int = 1,
        num_rows: int | None = None,
    ):
        super().__init__(layers=[])
        self.sharing = sharing_of(sharing)
        self.strict = self.sharing == PerDepth()
        self.capacity, self.num_recurrences = capacity, num_recurrences
        self.num_rows = num_rows or 0  # 0: as many as the first batch
        self.layout: SlotLayout | None = None
        self.store: list[Tensor] = []  # per layer: (2, slots, rows, N, capacity, H)
        self.lengths = torch.zeros(self.num_rows, dtype=torch.long)  # on the CPU: no waiting
        self.depth = self.lengths.clone()  # the smallest depth of a row's tokens

    # -- one forward

    def begin(
        self, num_rows: int, num_new: int, layout: SlotLayout, *, rows: Tensor | None = None
    ) -> Place:
        """Room for `num_new` tokens behind each of the rows.

        Raises:
            ValueError: another batch size, or a model of another shape, dtype or device.
        """
        self._bind(num_rows, layout, rows)
        lengths = self.lengths if rows is None else self.lengths[rows.cpu()]
        if len(lengths) != num_rows:
            raise ValueError(
                f"this cache holds {len(self.lengths)} rows, the batch has {num_rows}; pass a new "
                "cache, or select its rows first"
            )
        width = int(lengths.max()) + num_new
        self._grow_columns(width)
        same = bool((lengths == lengths[0]).all())
        start = int(lengths[0]) if same else lengths.to(layout.device)
        return Place(rows, start, num_new, width)

    def update(  # type: ignore[override]
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int | Tensor | tuple[int, Tensor],
        place: Place,
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, N, S, H) of the new tokens, and return those of all columns,
        (B, N, width, H). `layer_idx` as at the top of this file; (B,) if rows differ in depth; or
        (layer, slots) where `find` has found the slots.

        Raises:
            ValueError: gradients are asked for; or PerDepth, and an earlier token never came this
                deep.
        """
        if key_states.requires_grad:
            raise ValueError(
                "RecurrentCache keeps no gradients; run under torch.no_grad(), or pass "
                "transformers.DynamicCache()"
            )
        layer, slot = self._find(layer_idx, place)
        store = self.store[layer]
        if isinstance(slot, int) and place.rows is None and isinstance(place.start, int):
            store = store.select(1, slot)
            new = store.narrow(3, place.start, place.num_new)
            new[0].copy_(key_states)
            new[1].copy_(value_states)
            keys, values = store.narrow(3, 0, place.width).unbind(0)
            return keys, values
        keys, values = self._write(key_states, value_states, layer, slot, place)
        keys, values = keys[..., : place.width, :], values[..., : place.width, :]
        if isinstance(slot, int) and place.rows is None:
            first = slot * self.num_rows
            return keys[first : first + self.num_rows], values[first : first + self.num_rows]
        at = place.flat(slot, self.num_rows)
        return keys.index_select(0, at), values.index_select(0, at)

    def update_views(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int | Tensor | tuple[int, Tensor],
        place: Place,
        lengths: Sequence[int],
    ) -> list[tuple[Tensor, Tensor]]:
        """As `update`, but returns for each row its own first lengths[b] columns, a view (1, N,
        lengths[b], H): nothing is gathered."""
        layer, slot = self._find(layer_idx, place)
        at, store = place.flat(slot, self.num_rows), self.store[layer].flatten(1, 2)
        alone = len(lengths) == 1
        if not alone:
            self._write(key_states, value_states, layer, slot, place)
        views = []
        for row, length in zip(at.tolist(), lengths, strict=True):
            seen = store.narrow(1, row, 1)
            if alone:  # cheaper than by an index
                new = seen.narrow(3, length - 1, 1)
                new[0].copy_(key_states)
                new[1].copy_(value_states)
            keys, values = seen.narrow(3, 0, length).unbind(0)
            views.append((keys, values))
        return views

    def _write(
        self, k: Tensor, v: Tensor, layer: int, slot: int | Tensor, place: Place
    ) -> tuple[Tensor, Tensor]:
        """Write, and return all keys and values of the layer, (slots * rows, N, columns, H)."""
        keys, values = self.store[layer].flatten(1, 2).unbind(0)
        at = place.flat(slot, self.num_rows)[:, None], slice(None), place.columns
        keys[at] = k.transpose(1, 2).to(keys.dtype)
        values[at] = v.transpose(1, 2)
        return keys, values

    def find(self, recurrence: Tensor, place: Place) -> Tensor:
        """(B,) the core slots of rows at these recurrences, made if they are not there yet."""
        deepest = int(recurrence.max())
        if self.strict:
            self._check_depth(deepest, place)
        if self.sharing.slots(deepest + 1) > self.num_slots:
            self._grow_slots(self.sharing.slots(max(deepest + 1, 2 * self.num_slots)))
        slot = self.sharing.slot(recurrence)
        assert isinstance(slot, Tensor)
        return slot

    def commit(self, place: Place, depth: int | Tensor) -> None:
        """Keep the tokens of `place`, which ran `depth` recurrences ((B,): each row its own)."""
        rows = self._rows(place).cpu()
        depths = torch.as_tensor(depth).cpu().expand(len(rows))
        start = torch.as_tensor(place.start).cpu().expand(len(rows))
        for row, first, num in zip(rows.tolist(), start.tolist(), depths.tolist(), strict=True):
            if self.sharing.slots(num) < self.num_slots:
                self._fill(row, slice(first, first + place.num_new), self.sharing.slots(num))
        fresh = self.lengths[rows] == 0
        self.depth[rows] = torch.where(fresh, depths, torch.minimum(self.depth[rows], depths))
        self.lengths[rows] = start + place.num_new

    def _fill(self, row: int, columns: slice, filled: int) -> None:
        """Copy the deepest written slot of some tokens to the deeper ones."""
        assert self.layout is not None
        for store in self.store[self.layout.prelude + self.layout.coda :]:
            part = store[:, :, row, :, columns]
            part[:, filled:] = part[:, filled - 1 : filled]

    def crop(self, tokens_to_remove: int | Tensor) -> None:
        """Roll back. A tensor (rows,): keep so many tokens of each row; a negative number: remove
        so many from every row; a positive one: keep at most so many; 0: nothing.

        Raises:
            ValueError: a row is shorter than what it shall keep or lose.
        """
        if isinstance(tokens_to_remove, Tensor) and tokens_to_remove.ndim == 0:
            tokens_to_remove = int(tokens_to_remove)  # transformers 5.16 computes it so
        if isinstance(tokens_to_remove, Tensor):
            kept = tokens_to_remove.cpu().long()
        elif tokens_to_remove > 0:
            kept = self.lengths.clamp(max=tokens_to_remove)
        else:
            kept = self.lengths + tokens_to_remove
        if kept.shape != self.lengths.shape or (kept < 0).any() or (kept > self.lengths).any():
            raise ValueError(
                f"cannot crop rows of {self.lengths.tolist()} tokens to {kept.tolist()}"
            )
        self.lengths = kept.clone()

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be named twice (beams)."""
        self.store = [store.index_select(2, rows.to(store.device)) for store in self.store]
        self.lengths, self.depth = self.lengths[rows.cpu()], self.depth[rows.cpu()]
        self.num_rows = len(rows)

    def insert(self, rows: Tensor, other: RecurrentCache) -> None:
        """Put the rows of `other`, in order, in the place of `rows` here.

        Raises:
            ValueError: the caches were made for different models or sharings.
        """
        if other.layout is None or other.sharing != self.sharing:
            raise ValueError("insert: the other cache is empty or has another sharing")
        self._bind(self.num_rows or len(other.lengths), other.layout, rows)
        self._grow_columns(other.columns)
        self._grow_slots(other.num_slots)
        for mine, theirs in zip(self.store, other.store, strict=True):
            slots, columns = theirs.shape[1], theirs.shape[4]
            at = rows.to(mine.device)
            mine[:, :slots, at, :, :columns] = theirs
            mine[:, slots:, at, :, :columns] = theirs[:, -1:]  # they have not come so deep
        self.lengths[rows.cpu()], self.depth[rows.cpu()] = other.lengths, other.depth

    def row(self, row: int, num_tokens: int) -> RecurrentCache:
        """A copy of the first tokens of one row, for `insert`."""
        own, part = RecurrentCache(self.sharing, num_rows=1), slice(row, row + 1)
        store = [kept[:, :, part, :, :num_tokens].clone() for kept in self.store]
        own.layout, own.store = self.layout, store
        own.lengths[0], own.depth[0] = num_tokens, self.depth[row]
        return own

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.select(torch.arange(len(self.lengths)).repeat_interleave(repeats))

    def reset(self) -> None:
        """Empty, with the memory kept."""
        self.lengths.zero_()

    # -- what it holds

    @property
    def columns(self) -> int:
        """Allocated tokens per row."""
        return self.store[0].shape[4] if self.store else self.capacity

    @property
    def num_slots(self) -> int:
        """Allocated slots per core layer."""
        return max((store.shape[1] for store in self.store), default=0)

    def bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(store.numel() * store.element_size() for store in self.store)

    def bytes_per_token(self, num_recurrences: int) -> int:
        """Bytes that one token takes when it thinks `num_recurrences` deep."""
        if self.layout is None:
            raise ValueError("the cache is empty: its model is not known yet; use token_bytes()")
        return token_bytes(self.sharing, num_recurrences, self.layout)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest row."""
        return int(self.lengths.max()) if len(self.lengths) else 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def is_initialized(self) -> bool:
        return self.layout is not None

    @property
    def is_linear(self) -> list[bool]:
        """No layer keeps a state instead of its tokens: transformers goes by it when it cuts off
        the part of a prompt that is cached."""
        return [False]

    @property
    def is_croppable(self) -> bool:
        return True

    def __len__(self) -> int:
        """Slots of all layers."""
        if self.layout is None:
            return 0
        return self.layout.prelude + self.layout.coda + self.layout.core * self.num_slots

    def __bool__(self) -> bool:
        return True  # an empty cache is one

    @property
    def batch_size(self) -> int:
        return len(self.lengths) if self.layout is not None else -1

    def __repr__(self) -> str:
        return f"RecurrentCache({self.sharing}, lengths={self.lengths.tolist()})"

    # -- memory

    def reserve(self, num_recurrences: int, *, rows: int = 0, columns: int = 0) -> None:
        """Allocate at once the slots of so many recurrences, and room for so many rows and columns
        if that is more than there is."""
        self.num_recurrences = max(self.num_recurrences, num_recurrences)
        more, self.num_rows = rows - self.num_rows, max(rows, self.num_rows)
        if more > 0:
            self.lengths, self.depth = (F.pad(t, (0, more)) for t in (self.lengths, self.depth))
            for i, old in enumerate(self.store):
                self.store[i] = self._empty(old.shape[1], old.shape[4])
                self.store[i][:, :, :-more] = old
        if self.store:
            self._grow_slots(self.sharing.slots(num_recurrences))
            self._grow_columns(columns)
        else:
            self.capacity = max(self.capacity, columns)

    def _bind(self, num_rows: int, layout: SlotLayout, rows: Tensor | None) -> None:
        if self.layout is None:
            self.layout = layout
            if not self.num_rows:
                self.num_rows = num_rows if rows is None else int(rows.max()) + 1
                self.lengths = torch.zeros(self.num_rows, dtype=torch.long)
                self.depth = self.lengths.clone()
            slots = self.sharing.slots(self.num_recurrences)
            for layer in range(layout.prelude + layout.coda + layout.core):
                num = slots if layer >= layout.prelude + layout.coda else 1
                self.store.append(self._empty(num, self.capacity))
        if layout != self.layout:
            raise ValueError(
                f"this cache belongs to another model: it was made for {self.layout}, the model "
                f"is {layout}; pass a new RecurrentCache"
            )

    def _empty(self, slots: int, columns: int) -> Tensor:
        assert self.layout is not None
        spec = self.layout
        shape = (2, slots, self.num_rows, spec.num_heads, columns, spec.head_dim)
        # zeros: what is masked must still be finite
        return torch.zeros(shape, dtype=spec.dtype, device=spec.device)

    def _grow_columns(self, width: int) -> None:
        if width <= self.columns:
            return
        columns = -(-max(width, 2 * self.columns) // CHUNK) * CHUNK
        for i, old in enumerate(self.store):
            self.store[i] = self._empty(old.shape[1], columns)
            self.store[i][..., : old.shape[4], :] = old

    def _grow_slots(self, slots: int) -> None:
        """More slots; tokens that are in have not come so deep: they answer with their deepest."""
        assert self.layout is not None
        for i in range(self.layout.prelude + self.layout.coda, len(self.store)):
            old = self.store[i]
            if slots > old.shape[1]:
                extra = old[:, -1:].expand(-1, slots - old.shape[1], -1, -1, -1, -1)
                self.store[i] = torch.cat([old, extra], dim=1)

    def _find(
        self, layer_idx: int | Tensor | tuple[int, Tensor], place: Place
    ) -> tuple[int, int | Tensor]:
        """(layer, slot) of an index."""
        if isinstance(layer_idx, tuple):
            return layer_idx
        assert self.layout is not None, "begin comes before update"
        outer, core = self.layout.prelude + self.layout.coda, self.layout.core
        if isinstance(layer_idx, Tensor):
            layer = outer + int((layer_idx[0] - outer) % core)
            return layer, self.find((layer_idx - outer) // core, place)
        if layer_idx < outer:
            return layer_idx, 0
        recurrence, layer = divmod(layer_idx - outer, core)
        if self.strict:
            self._check_depth(recurrence, place)
        if self.sharing.slots(recurrence + 1) > self.num_slots:
            self._grow_slots(self.sharing.slots(max(recurrence + 1, 2 * self.num_slots)))
        slot = self.sharing.slot(recurrence)
        assert isinstance(slot, int)
        return outer + layer, slot

    def _check_depth(self, recurrence: int, place: Place) -> None:
        rows = self._rows(place).cpu()
        depth = self.depth[rows][self.lengths[rows] > 0]
        if len(depth) and int(depth.min()) <= recurrence:
            raise ValueError(
                f"PerDepth: recurrence {recurrence + 1} reads tokens that stopped after "
                f"{int(depth.min())}; use sharing='deepest', or the same num_steps throughout"
            )

    def _rows(self, place: Place) -> Tensor:
        assert self.layout is not None
        if place.rows is not None:
            return place.rows.to(self.layout.device)
        return torch.arange(len(self.lengths), device=self.layout.device)


def token_bytes(choice: str | Sharing, num_recurrences: int, layout: SlotLayout) -> int:
    """Bytes of cache per token under a sharing at a depth."""
    slots = sharing_of(choice).slots(num_recurrences)
    return (layout.prelude + layout.coda + layout.core * slots) * layout.token_slot_bytes
