"""What the parts of Huginn take: FLOPs, and bytes of weights, keys and values read.

A multiply-add counts as two; norms, activations and biases are left out. Weights are read once by
each part and once more by each recurrence, whatever else shares the pass: the cost of a text is
that of the text alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from inward.common.trace import Cost

if TYPE_CHECKING:
    from inward.methods.huginn.config import HuginnConfig


MLP_WEIGHTS: dict[str, Callable[[int, int, int], int]] = {
    "GatedMLP": lambda width, d, m: (2 * width + d) * m,
    "GatedMLPSeparated": lambda width, d, m: (2 * width + d) * m,
    "BaseMLP": lambda width, d, m: (width + d) * m,
    "HalfGateMLP": lambda width, d, m: (width + d) * d,
}
"""mlp_class_name -> weights of one that reads `width` numbers."""


class Took(NamedTuple):
    """Of one part."""

    flops: int
    bytes: int


class HuginnCosts:
    """Of the parts, for `num` tokens of a text from position `first` on."""

    def __init__(self, config: HuginnConfig, dtype: torch.dtype = torch.float32):
        d, m, self.itemsize = config.n_embd, config.intermediate_size, dtype.itemsize
        kv = config.num_key_value_heads * config.head_dim
        mlp = MLP_WEIGHTS[config.mlp_class_name]
        self.block = d * (2 * d + 2 * kv) + mlp(d, d, m)  # weights
        adapters = {"linear": 2 * d * d, "ffn": mlp(2 * d, d, m)}
        self.adapter, self.head = adapters.get(config.injection_type, 0), d * config.vocab_size
        self.seen = 4 * d  # FLOPs for each token looked at
        self.cached = 2 * kv * self.itemsize  # bytes of a token in one slot of one layer
        self.prelude_blocks, self.core_blocks, self.coda_blocks = config.layers

    def _part(self, blocks: int, first: int, num: int, more: int = 0, rows: int = 0) -> Took:
        """`blocks` blocks and a matrix of `more` weights that multiplies `rows` rows."""
        looked_at = num * first + num * (num + 1) // 2
        flops = blocks * (2 * num * self.block + self.seen * looked_at) + 2 * rows * more
        weights = blocks * self.block + (more if rows else 0)
        return Took(flops, weights * self.itemsize + blocks * self.cached * (first + num))

    def prelude(self, first: int, num: int = 1) -> Took:
        """P."""
        return self._part(self.prelude_blocks, first, num)

    def core(self, first: int, num: int = 1) -> Took:
        """One recurrence of R."""
        return self._part(self.core_blocks, first, num, self.adapter, num)

    def read_out(self, first: int, num: int = 1, num_logits: int = 1) -> Took:
        """C, and the head of `num_logits` of the tokens."""
        return self._part(self.coda_blocks, first, num, self.head, num_logits)

    def forward(self, first: int, num: int, num_logits: int, num_steps: int) -> Cost:
        """All of it, with so many recurrences."""
        core = self.core(first, num)
        parts = [self.prelude(first, num), self.read_out(first, num, num_logits)]
        return Cost(
            evaluations=num_steps,
            flops=float(num_steps * core.flops + sum(part.flops for part in parts)),
            forwards=1,
            bytes=float(num_steps * core.bytes + sum(part.bytes for part in parts)),
        )
