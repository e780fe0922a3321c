"""What a forward of a causal language model takes, from the model that runs.

A model that knows better says so itself, in a method `forward_cost` with the same arguments: Huginn
counts its recurrences, and whatever is built on Huginn then counts them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from inward.common.trace import Cost


@dataclass(frozen=True)
class Sizes:
    """Of a model whose every layer runs once.

    matrices: weights that multiply every row, embeddings and head left out; head: weights of the
    head; weight_bytes: of both together. attention: FLOPs of one row for each position it looks
    at; cached: bytes of keys and values of one position.
    """

    matrices: int
    head: int
    weight_bytes: int
    attention: int
    cached: int


def sizes_of(model: Any) -> Sizes:
    """Sizes of a causal LM of transformers (of a mixture of experts all experts count)."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = cast(Any, model.get_output_embeddings())
    kept = {} if head is None else {id(head.weight): head.weight}
    apart = tables | kept.keys()
    matrices = {id(p): p for p in model.parameters() if p.ndim > 1 and id(p) not in apart}
    layers, heads = _number(model, "num_hidden_layers"), _number(model, "num_attention_heads")
    width = _number(model, "head_dim") or _number(model, "hidden_size") // max(1, heads)
    keys = _number(model, "num_key_value_heads") or heads
    parts = [*matrices.values(), *kept.values()]
    return Sizes(
        matrices=sum(p.numel() for p in matrices.values()),
        head=sum(p.numel() for p in kept.values()),
        weight_bytes=sum(p.numel() * p.element_size() for p in parts),
        attention=4 * layers * heads * width,
        cached=2 * layers * keys * width * torch.empty((), dtype=model.dtype).element_size(),
    )


def _number(model: Any, name: str) -> int:
    """A field of the model's configuration; 0 where it has none (heads of a Mamba), or one for each
    layer."""
    config = model.config.get_text_config()
    try:
        found = getattr(config, name, None)
    except RuntimeError:  # transformers does not say which layer's
        return 0
    return found if isinstance(found, int) else 0


def parameters(*models: Any) -> int:
    """Entries of all parameters, each tensor once, shared ones too."""
    return sum({id(p): p.numel() for model in models for p in model.parameters()}.values())


def pairs_of(rows: int, past: int) -> int:
    """How often one of `rows` rows of a text looks at a position: each at the `past` cached ones,
    at the rows before it, and at itself."""
    return rows * past + rows * (rows + 1) // 2


def forward_cost(
    model: Any,
    *,
    rows: int,
    past: int,
    reads: int,
    pairs: int | None = None,
    sizes: Sizes | None = None,
    **options: Any,
) -> Cost:
    """One forward's cost for one text.

    Args:
        rows: new rows of the text (mask rows too). past: cached positions that they look at.
        reads: rows whose logits are made.
        pairs: how often a row looks at a position; default: see `pairs_of`. (A kernel that is
            given a mask may multiply hidden pairs as well; these are not counted.)
        sizes: of `sizes_of`, where the caller keeps them.
        options: further arguments of the forward, which a model with a method `forward_cost` may
            need (Huginn: num_steps); others cost the same whatever they say.
    """
    own = getattr(model, "forward_cost", None)
    if own is not None:
        more = {} if pairs is None else {"pairs": pairs}
        return own(rows=rows, past=past, reads=reads, **more, **options)
    sizes = sizes or sizes_of(model)
    pairs = pairs_of(rows, past) if pairs is None else pairs
    flops = 2 * (rows * sizes.matrices + reads * sizes.head) + sizes.attention * pairs
    read = sizes.weight_bytes + sizes.cached * (past + rows)
    return Cost(evaluations=1, flops=float(flops), forwards=1, bytes=float(read))
