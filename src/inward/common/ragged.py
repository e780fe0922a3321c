"""A cache whose rows have lengths of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

PLAIN = frozenset({DynamicLayer, DynamicSlidingWindowLayer})
"""Kinds of layers whose past is keys and values, one for each position"""


def kinds_of(model: Any) -> set[type[Any]]:
    """Of the layers of the cache that a model of transformers makes for itself."""
    return {type(layer) for layer in DynamicCache(config=model.config).layers}


def beyond_keys(model: Any) -> str:
    """What it keeps beside keys and values, in words; empty: nothing."""
    return ", ".join(sorted(kind.__name__ for kind in kinds_of(model) - PLAIN))


@dataclass
class Book:
    """What all layers of a cache share: how many tokens of each text are committed, and where the
    rows of the running forward go."""

    lengths: list[int]
    capacity: int
    num_new: int = 0
    writes: int = 0
    """layers that the running forward has written"""
    texts: Tensor | None = None
    """(B, 1) numbers of the texts, beside their slots"""
    slots: Tensor | None = None
    """(B, q) slot of each new row; None: all texts are equally long"""

    @property
    def used(self) -> int:
        """Slots that the running forward may see."""
        return max(self.lengths) + self.num_new


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer, (B, heads, capacity, head width), a length per text."""

    is_sliding = False

    def __init__(self, book: Book):
        super().__init__()
        self.book = book

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Room for `capacity` tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            t.new_zeros(t.shape[0], t.shape[1], self.book.capacity, t.shape[3])
            for t in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put the new rows behind each text's prefix; return what this forward may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.book.writes += 1
        stored = cast("tuple[Tensor, Tensor]", (self.keys, self.values))
        for store, new in zip(stored, (key_states, value_states), strict=True):
            self._write(store, new)
        used = self.book.used
        return stored[0][:, :, :used], stored[1][:, :, :used]

    def _write(self, store: Tensor, new: Tensor) -> None:
        slots = self.book.slots
        if slots is None:
            begin = self.book.lengths[0]
            store[:, :, begin : begin + new.shape[2]] = new
        else:
            store[self.book.texts, :, slots] = new.transpose(1, 2)

    def extend(self, num: int) -> None:
        """Room for so many more texts."""
        if self.is_initialized:
            self.keys, self.values = (
                nn.functional.pad(t, (0, 0, 0, 0, 0, 0, 0, num))
                for t in cast("tuple[Tensor, Tensor]", (self.keys, self.values))
            )

    def put(self, texts: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Let the past of these texts be these keys and values (texts, heads, length, head
        width)."""
        num = len(self.book.lengths)
        if not self.is_initialized:
            self.lazy_initialization(
                keys[:1].expand(num, *keys.shape[1:]), values[:1].expand(num, *values.shape[1:])
            )
        where = slice(None) if [*texts] == [*range(num)] else [*texts]
        for store, new in zip((self.keys, self.values), (keys, values), strict=True):
            cast(Tensor, store)[where, :, : new.shape[2]] = new

    def change(self, select: Tensor | None = None) -> None:
        """Keep the texts `select`, or grow to the book's capacity."""
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            if select is not None:
                old = old[select]
            if old.shape[2] < self.book.capacity:
                room = self.book.capacity - old.shape[2]
                old = nn.functional.pad(old, (0, 0, 0, room))
            setattr(self, name, old)

    def join(self, other: RaggedLayer) -> None:
        """Put another layer's texts behind one's own; both have the room of their books."""
        for name in ("keys", "values"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))

    def get_seq_length(self) -> int:
        """The longest text's."""
        return max(self.book.lengths)

    def get_max_length(self) -> int:
        """No limit: the cache grows."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys of a forward of so many rows, and the first one's number."""
        return self.get_seq_length() + query_length, 0


class RaggedCache(Cache):
    """A preallocated cache for B texts of unequal length; layers appear when they are first used.

    Args:
        num_texts: B.
        capacity: slots to begin with; doubled when they run out.
        looped: of a model that runs layers again and again: (layers outside the loop, which come
            first, layers in it). Then forwards may differ in depth: of what was less deep, deeper
            layers hold the deepest that there is.
    """

    def __init__(self, num_texts: int, capacity: int, looped: tuple[int, int] | None = None):
        self.book, self.looped = Book([0] * num_texts, capacity), looped
        layer = cast("type[CacheLayerMixin]", partial(RaggedLayer, self.book))
        super().__init__(layer_class_to_replicate=layer)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The longest text's length."""
        return max(self.book.lengths)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As in transformers; a layer that is deeper than any before holds what there is."""
        if self.looped is not None and len(self.layers) <= layer_idx and max(self.book.lengths):
            self._deepen(layer_idx + 1)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def _deepen(self, num_layers: int) -> None:
        """So many layers; new ones are copies of those a round above."""
        while len(self.layers) < num_layers:
            new = cast(RaggedLayer, cast(Any, self.layer_class_to_replicate)())
            above = len(self.layers) - self.looped[1] if self.looped is not None else -1
            if self.looped is not None and above >= self.looped[0]:
                old = cast(RaggedLayer, self.layers[above])
                if old.is_initialized:
                    assert old.keys is not None and old.values is not None
                    new.dtype, new.device = old.dtype, old.device
                    new.keys, new.values = old.keys.clone(), old.values.clone()
                    new.is_initialized = True
            self.layers.append(new)

    def _level(self) -> None:
        """Rows of a forward that is less deep than others go into the deeper layers as they are."""
        book = self.book
        if self.looped is None or not book.writes or book.writes >= len(self.layers):
            return
        outer, core = self.looped
        last = book.writes - core
        for number in range(book.writes, len(self.layers)):
            source = cast(RaggedLayer, self.layers[last + (number - outer) % core])
            target = cast(RaggedLayer, self.layers[number])
            for name in ("keys", "values"):
                old, new = getattr(source, name), getattr(target, name)
                if book.slots is None:
                    rows = slice(book.lengths[0], book.lengths[0] + book.num_new)
                    new[:, :, rows] = old[:, :, rows]
                else:
                    new[book.texts, :, book.slots] = old[book.texts, :, book.slots]

    def begin(self, num_new: int, device: torch.device) -> None:
        """Make room for a forward of `num_new` rows per text."""
        book = self.book
        book.num_new, book.writes = num_new, 0
        if book.used > book.capacity:
            self.reserve(max(2 * book.capacity, book.used))
        book.slots = None
        if min(book.lengths) < max(book.lengths):
            first = torch.tensor(book.lengths, device=device)[:, None]
            book.slots = first + torch.arange(num_new, device=device)
            book.texts = torch.arange(len(book.lengths), device=device)[:, None]

    def reserve(self, capacity: int) -> None:
        """Room for so many tokens a text."""
        if capacity > self.book.capacity:
            self.book.capacity = capacity
            self._change()

    def extend(self, num: int) -> None:
        """Room for so many more texts, behind the others, nothing committed."""
        self.book.lengths += [0] * num
        for layer in cast("list[RaggedLayer]", self.layers):
            layer.extend(num)

    def insert(
        self, texts: Sequence[int], lengths: Sequence[int], past: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        """Let texts begin anew with this past: of each layer keys and values (texts, heads, longest
        length, head width), of which the first `lengths` are committed."""
        self.reserve(max([*lengths, *(keys.shape[2] for keys, _ in past)]))
        self._deepen(len(past))
        if self.looped is not None and past:
            outer, core = self.looped
            last = len(past) - core
            deeper = range(len(past), len(self.layers))
            past = [*past, *(past[last + (number - outer) % core] for number in deeper)]
        for layer, (keys, values) in zip(self.layers, past, strict=False):
            cast(RaggedLayer, layer).put(texts, keys, values)
        for text, length in zip(texts, lengths, strict=True):
            self.book.lengths[text] = length

    def commit(self, counts: Sequence[int]) -> None:
        """Keep the first counts[b] rows that text b has just put in; the rest is out of sight."""
        self._level()
        for b, count in enumerate(counts):
            assert 0 <= count <= self.book.num_new, f"{count} rows of {self.book.num_new}"
            self.book.lengths[b] += count

    def select(self, rows: Sequence[int]) -> None:
        """Keep these texts only, in this order."""
        self.book.lengths = [self.book.lengths[b] for b in rows]
        self._change(torch.tensor(rows, dtype=torch.long))

    def join(self, other: RaggedCache) -> None:
        """Take the texts of another cache of the same model in, behind one's own; both have been
        through a forward, and the other is not used any more."""
        book = self.book
        book.capacity = other.book.capacity = max(book.capacity, other.book.capacity)
        book.lengths = [*book.lengths, *other.book.lengths]
        self._change()
        other._change()
        if self.looped is not None:
            self._deepen(len(other.layers))
            other._deepen(len(self.layers))
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            cast(RaggedLayer, mine).join(cast(RaggedLayer, theirs))

    def _change(self, select: Tensor | None = None) -> None:
        for layer in cast("list[RaggedLayer]", self.layers):
            layer.change(None if select is None else select.to(layer.device))

    def committed(self, text: int, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (heads, length, head width) of a text's committed tokens."""
        found = cast(RaggedLayer, self.layers[layer])
        length = self.book.lengths[text]
        assert found.keys is not None and found.values is not None, "nothing is cached yet"
        return found.keys[text, :, :length], found.values[text, :, :length]
