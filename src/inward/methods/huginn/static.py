"""A cache of fixed length for graphs: transformers' static layers, one a (recurrence, layer).

`RecurrentCache` grows, and its rows have lengths of their own, which Python keeps: that is what
decoding here wants, and what a graph cannot have. A static cache holds at most `max_cache_len`
tokens of one depth; every forward attends to all of its columns, those not written yet masked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import Cache
from transformers.cache_utils import StaticLayer

from inward.methods.huginn.context import split_depth

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM, HuginnModel


def static_cache(
    model: HuginnForCausalLM | HuginnModel,
    max_cache_len: int,
    *,
    num_steps: int | None = None,
    batch_size: int | None = None,
) -> Cache:
    """An empty cache of P + R r + C layers for `torch.compile` and `torch.export`.

    Args:
        max_cache_len: tokens that it holds; ValueError beyond the model's block_size.
        num_steps: the depth r of every forward; by default the mean recurrence.
        batch_size: allocates at once, for so many rows, which a graph that is exported needs.
    """
    config = model.config
    if not 1 <= max_cache_len <= config.block_size:
        raise ValueError(
            f"max_cache_len is {max_cache_len}; it must be at least 1, and at most block_size, "
            f"{config.block_size}"
        )
    prelude, core, coda = config.layers
    num = prelude + coda + core * sum(split_depth(num_steps, config))
    cache = Cache(layers=[StaticLayer(max_cache_len) for _ in range(num)])
    if batch_size is not None:
        cache.early_initialization(
            batch_size=batch_size,
            num_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            dtype=model.dtype,
            device=model.device,
        )
    return cache
