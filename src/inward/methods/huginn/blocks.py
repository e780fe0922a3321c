"""The blocks of Huginn (section 3.2): attention, MLP, and the norms around them.

Shape letters: B rows, S new tokens, K cached and new tokens, d width, N heads, H head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inward.common.nn import rms_norm
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.context import Context, rotate_pairs


class RMSNorm(nn.Module):
    """rms_norm(x) * weight; the norm in float32, the product in the dtype of x."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps) * self.weight


class OutProjection(nn.Linear):
    """A matrix that writes to the stream; it starts smaller (see `_init_weights`)."""


class Attention(nn.Module):
    """Causal attention with a learned bias on q and k; Wqkv holds all q heads, then k, then v."""

    def __init__(self, config: HuginnConfig):
        super().__init__()
        self.num_heads = config.n_heads
        self.Wqkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.qk_bias = nn.Parameter(torch.zeros(2, 1, config.n_heads, config.head_dim))
        self.proj = OutProjection(config.n_embd, config.n_embd, bias=False)

    def forward(self, h: Tensor, context: Context, layer_idx: Any) -> Tensor:
        q, k, v = self.Wqkv(h).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        # the bias comes after the projection was rounded, and before the rotation
        q = rotate_pairs(q + self.qk_bias[0].to(q.dtype), *context.rotary)
        k = rotate_pairs(k + self.qk_bias[1].to(k.dtype), *context.rotary)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = context.attend(q, *context.extend(k, v, layer_idx))
        return self.proj(out.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """proj(silu(gate) * up); fc holds gate, then up."""

    def __init__(self, config: HuginnConfig):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 2 * config.intermediate_size, bias=False)
        self.proj = OutProjection(config.intermediate_size, config.n_embd, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        gate, up = self.fc(h).chunk(2, dim=-1)
        return self.proj(F.silu(gate) * up)


class SandwichBlock(nn.Module):
    """a = n_2(x + Attn(n_1(x)));  y = n_4(a + MLP(n_3(a))).

    n_3 is redundant, as the paper says; the weights were trained with it."""

    def __init__(self, config: HuginnConfig):
        super().__init__()
        self.norm_1, self.norm_2, self.norm_3, self.norm_4 = (
            RMSNorm(config.n_embd, config.norm_eps) for _ in range(4)
        )
        self.attn = Attention(config)
        self.mlp = GatedMLP(config)

    def forward(self, x: Tensor, context: Context, layer_idx: Any) -> Tensor:
        a = self.norm_2(x + self.attn(self.norm_1(x), context, layer_idx))
        return self.norm_4(a + self.mlp(self.norm_3(a)))
