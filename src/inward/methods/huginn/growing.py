"""A cache that grows, keeps gradients, and holds tokens of different depth.

Its layers are transformers' own, one for each (recurrence, layer) as in cache.py; a plain
`DynamicCache` is that too, but its tokens must all have one depth. Here a slot that an earlier
token never reached holds what that token was at its deepest: a deeper forward begins its new slots
with copies, and a shallower one leaves a copy in those below it.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from inward.methods.huginn.config import HuginnConfig


class GrowingCache(Cache):
    """See the top of the file.

    Args:
        outer, core: layers outside the loop (they come first), and in it.
        layer: what makes a layer; default transformers' growing one.
    """

    def __init__(self, outer: int, core: int, layer: Any = DynamicLayer):
        super().__init__(layer_class_to_replicate=layer)
        self.looped = self.outer, self.core = outer, core

    @staticmethod
    def of(config: HuginnConfig, layer: Any = None) -> GrowingCache:
        """For a model of this configuration."""
        prelude, core, coda = config.layers
        return GrowingCache(prelude + coda, core, layer or DynamicLayer)

    def check(self, config: HuginnConfig) -> None:
        """Raise a ValueError unless it was made for a model of this shape."""
        prelude, core, coda = config.layers
        outer, shape = prelude + coda, (config.n_heads, config.head_dim)
        found = tuple(self._held(0)[0].shape[1::2]) if self.layers else shape
        if (self.outer, self.core, found) != (outer, core, shape):
            raise ValueError(
                f"this cache belongs to another model: {self.outer} layers outside the loop and "
                f"{self.core} in it, (heads, width) {found}; here {outer}, {core} and {shape}"
            )

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As in transformers; a slot that is deeper than any before begins with what earlier
        tokens were at their deepest."""
        above = layer_idx - self.core
        if len(self.layers) <= layer_idx and above >= self.outer:
            keys, values = self._held(above)
            past = keys.shape[2] - key_states.shape[2]  # it has taken this forward's tokens in
            if past > 0:
                super().update(keys[:, :, :past], values[:, :, :past], layer_idx)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def level(self, depth: int) -> None:
        """A forward of so many recurrences is over: its tokens go into deeper slots as they are."""
        for layer_idx in range(self.outer + self.core * depth, len(self.layers)):
            above = self.outer + self.core * (depth - 1) + (layer_idx - self.outer) % self.core
            keys, values = self._held(above)
            layer: Any = self.layers[layer_idx]
            have = layer.get_seq_length()
            if have < keys.shape[2]:
                super().update(keys[:, :, have:], values[:, :, have:], layer_idx)

    def _held(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        layer = cast(Any, self.layers[layer_idx])
        return layer.keys, layer.values
