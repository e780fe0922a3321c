"""The key/value cache of thinking: one copy of the past, in training too.

A thought needs a pass of its own, and every pass attends to the same past. The usual growing cache
concatenates, so each pass would leave another copy of the past in the autograd graph: as many as
there are thoughts. Here a layer has room for all columns from the start; a pass writes its keys and
values behind the others, and what attention saves for its backward are views of that room.

Writing into a tensor that the graph has saved is what autograd forbids, rightly, because it cannot
know that only columns are written which nobody has looked at. `_Append` knows: it hands out views
that do not share a version counter (`.data`), and its backward cuts the gradient where it joined.
The plain growing cache stays the yardstick: tests compare the two, gradients included.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from inward.common.ragged import beyond_keys
from inward.methods.coconut.base import unwrapped

_MORE = 64
"""Columns added at least when a room becomes too small (generation beyond what was announced)."""


class _Append(torch.autograd.Function):
    """past (B, N, t, H) and new (B, N, c, H) joined in `room`, of which `past` is the beginning."""

    @staticmethod
    def forward(ctx: Any, past: Tensor, new: Tensor, room: Tensor) -> Tensor:
        ctx.past = t = past.shape[-2]
        joined = room.data[..., : t + new.shape[-2], :]
        joined[..., t:, :] = new
        return joined

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        return grad[..., : ctx.past, :], grad[..., ctx.past :, :], None


def _append(past: Tensor, new: Tensor, room: Tensor | None, capacity: int) -> tuple[Tensor, Tensor]:
    """(past and new joined, the room they lie in)."""
    need = past.shape[-2] + new.shape[-2]
    if room is None or room.shape[-2] < need:
        size = capacity if need <= capacity else need + max(_MORE, need // 2)
        room = new.new_empty(*new.shape[:-2], size, new.shape[-1])
        room.data[..., : past.shape[-2], :] = past.detach()
    if torch.is_grad_enabled():
        return cast(Tensor, _Append.apply(past, new, room)), room
    room[..., past.shape[-2] : need, :] = new
    return room[..., :need, :], room


class RoomyLayer(DynamicLayer):
    """A growing layer that never copies its past while it has room for `capacity` columns.

    Cropping is for inference: in a graph, new columns would overwrite ones that attention has
    saved.
    """

    def __init__(self, capacity: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.capacity = capacity
        self.rooms: list[Tensor | None] = [None, None]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Join the new columns to the old ones; see `_Append`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = (cast(Tensor, self.keys), cast(Tensor, self.values))
        pairs = zip(past, (key_states, value_states), self.rooms, strict=True)
        joined = [_append(old, new, room, self.capacity) for old, new, room in pairs]
        self.rooms = [room for _, room in joined]
        self.keys, self.values = joined[0][0], joined[1][0]
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last columns (a negative number, as transformers has it)."""
        if self.is_initialized and cast(Tensor, self.keys).requires_grad:
            raise ValueError(
                "a cache with gradients cannot be cropped: the columns written next would "
                "overwrite ones that the backward still needs; use torch.no_grad()"
            )
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Forget everything."""
        self.rooms = [None, None]
        # older transformers zero the columns and keep them, unless there is nothing to zero
        self.keys = self.values = None
        self.is_initialized = False
        super().reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows in another order."""
        super().reorder_cache(cast(torch.LongTensor, beam_idx))
        self.rooms = [None, None]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        super().batch_repeat_interleave(repeats)
        self.rooms = [None, None]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self.rooms = [None, None]


def new_cache(base: nn.Module, attention_mask: Tensor, *, capacity: int | None = None) -> Cache:
    """An empty cache for a batch with this mask (B, S).

    Layers with a window keep all columns too: what falls out of it is counted in positions of each
    row (`inward.common.reach`), and rows with masked columns are in different places. A base that
    keeps anything but keys and values gets its own kind.

    Args:
        capacity: columns to make room for; default S. More than that fit too, at a copy.

    Raises:
        ValueError: layers with a state that masked columns would corrupt, and masked columns.
    """
    model = unwrapped(base)
    if kept := beyond_keys(model):
        if not bool(attention_mask.all()):
            raise ValueError(
                f"{model.config.model_type} keeps its past in {kept}, which masked columns would "
                "change; give it rows one by one"
            )
        return DynamicCache(config=model.config)
    columns = capacity or attention_mask.shape[1]
    layer = cast(Any, partial(RoomyLayer, columns))
    if own := getattr(model, "new_cache", None):  # Huginn has a slot for each recurrence
        return own(layer)
    return Cache(layer_class_to_replicate=layer)
