"""The blocks of the Huginn family (section 3.2): attention and MLP, wired between norms.

The published model has `SandwichBlock`s of `Attention` and `GatedMLP`; BLOCKS and MLPS hold those
of the paper's other configurations, and of models that were retrofitted (arXiv 2511.07384), under
the names that configurations give them.

Shape letters: B rows, S new tokens, K cached and new tokens, d width, N heads, G heads of keys and
values, H head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.context import Context, rotate_halves, rotate_pairs
from inward.methods.huginn.norms import NORMS, RMSNorm

Part = Callable[[Tensor], Tensor]


class OutProjection(nn.Linear):
    """A matrix that writes to the stream; it starts smaller (see `initialize`)."""


class FusedLinear(nn.Linear):
    """Matrices that read the same input, one below the other; `widths`: rows of each."""

    def __init__(self, width: int, widths: Sequence[int]):
        super().__init__(width, sum(widths), bias=False)
        self.widths = tuple(widths)


def parts_of(module: nn.Linear | nn.Embedding) -> Sequence[Tensor]:
    """The matrices that a weight is made of."""
    widths = getattr(module, "widths", None)
    return [module.weight] if widths is None else module.weight.split(widths)


# --------------------------------------------------------------------------------------------------
# Attention


class Attention(nn.Module):
    """Causal attention. Wqkv holds all q heads, then k, then v; N / G q heads share a head of k and
    v. What the published model has of the rest is the learned bias on q and k.

    q_norm, k_norm: over all heads together, before the rotation (OLMo-2's); or None.
    """

    qk_bias: nn.Parameter | None

    def __init__(self, config: HuginnConfig):
        super().__init__()
        N, G, H = config.n_heads, config.num_key_value_heads, config.head_dim
        self.head_dim, self.widths = H, (N * H, G * H, G * H)
        self.clip, self.norm_heads = config.clip_qkv, config.qk_norm is True
        self.rotate = rotate_halves if config.rope_pairs == "halves" else rotate_pairs
        self.Wqkv = FusedLinear(config.n_embd, self.widths)
        bias = nn.Parameter(torch.zeros(2, 1, N, H)) if config.qk_bias else None
        self.register_parameter("qk_bias", bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm == "projection":
            self.q_norm, self.k_norm = (RMSNorm(n, config.norm_eps) for n in self.widths[:2])
        self.proj = OutProjection(N * H, config.n_embd, bias=False)

    def forward(self, h: Tensor, context: Context, layer_idx: Any) -> Tensor:
        q, k, v = self.heads(h)
        if self.qk_bias is not None:
            # the bias comes after the projection was rounded, and before the rotation
            q, k = q + self.qk_bias[0].to(q.dtype), k + self.qk_bias[1].to(k.dtype)
        q, k = self.rotate(q, *context.rotary), self.rotate(k, *context.rotary)
        if self.norm_heads:
            q, k = F.rms_norm(q, (self.head_dim,)), F.rms_norm(k, (self.head_dim,))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = context.attend(q, *context.extend(k, v, layer_idx))
        return self.proj(out.transpose(1, 2).flatten(2))

    def heads(self, h: Tensor) -> Sequence[Tensor]:
        """q (B, S, N, H), k and v (B, S, G, H), before bias and rotation."""
        qkv = self.Wqkv(h)
        if self.clip is not None:
            qkv = qkv.clamp(-self.clip, self.clip)
        q, k, v = qkv.split(self.widths, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return [t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v)]


# --------------------------------------------------------------------------------------------------
# MLPs; as an adapter, they read [s, e] of twice the width


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square() * 0.5


NONLINEAR: dict[str, Part] = {"SiLU": F.silu, "GELU": F.gelu, "ReLU": F.relu, "ReLU2": _relu2}
"""nonlin_name -> f."""


class GatedMLP(nn.Module):
    """proj(f(gate) * up); fc holds gate, then up."""

    def __init__(self, config: HuginnConfig, width: int | None = None):
        super().__init__()
        m, wide = config.intermediate_size, width or config.n_embd
        self.f = NONLINEAR[config.nonlin_name]
        self.fc = FusedLinear(wide, (m, m))
        self.proj = OutProjection(m, config.n_embd, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        gate, up = self.fc(h).chunk(2, dim=-1)
        return self.proj(self.f(gate) * up)


class SplitGatedMLP(nn.Module):
    """proj(f(gate) * up); gate is fc1, up fc2."""

    def __init__(self, config: HuginnConfig, width: int | None = None):
        super().__init__()
        m, wide = config.intermediate_size, width or config.n_embd
        self.f = NONLINEAR[config.nonlin_name]
        self.fc1, self.fc2 = (nn.Linear(wide, m, bias=False) for _ in range(2))
        self.proj = OutProjection(m, config.n_embd, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.proj(self.f(self.fc1(h)) * self.fc2(h))


class PlainMLP(nn.Module):
    """proj(f(fc(h)))."""

    def __init__(self, config: HuginnConfig, width: int | None = None):
        super().__init__()
        m, wide = config.intermediate_size, width or config.n_embd
        self.f = NONLINEAR[config.nonlin_name]
        self.fc = nn.Linear(wide, m, bias=False)
        self.proj = OutProjection(m, config.n_embd, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.proj(self.f(self.fc(h)))


class SelfGatedMLP(nn.Module):
    """proj(f(fc(h)) * h), all of width d."""

    def __init__(self, config: HuginnConfig):
        super().__init__()
        self.f = NONLINEAR[config.nonlin_name]
        self.fc = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.proj = OutProjection(config.n_embd, config.n_embd, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.proj(self.f(self.fc(h)) * h)


MLPS: dict[str, Callable[..., nn.Module]] = {
    "GatedMLP": GatedMLP,
    "GatedMLPSeparated": SplitGatedMLP,
    "BaseMLP": PlainMLP,
    "HalfGateMLP": SelfGatedMLP,
}
"""mlp_class_name -> made of (config), or of (config, width)."""


# --------------------------------------------------------------------------------------------------
# Blocks


class Wired(nn.Module):
    """Attention and MLP between `num_norms` norms n_1, n_2, ... A subclass is its equation, `wire`,
    which runs plain parts and those that `cpu` packed alike."""

    num_norms = 2

    def __init__(self, config: HuginnConfig):
        super().__init__()
        norm = NORMS[config.norm_class_name]
        for i in range(self.num_norms):
            self.add_module(f"norm_{i + 1}", norm(config.n_embd, config.norm_eps))
        self.attn = Attention(config)
        self.mlp = MLPS[config.mlp_class_name](config)

    @property
    def norms(self) -> list[Any]:
        """n_1, n_2, ..."""
        return [getattr(self, f"norm_{i + 1}") for i in range(self.num_norms)]

    def forward(self, x: Tensor, context: Context, layer_idx: Any) -> Tensor:
        return self.wire(x, self.norms, lambda h: self.attn(h, context, layer_idx), self.mlp)

    @staticmethod
    def wire(x: Tensor, n: Sequence[Part], attn: Part, mlp: Part) -> Tensor:
        """The block's equation."""
        raise NotImplementedError


class SandwichBlock(Wired):
    """a = n_2(x + Attn(n_1(x)));  y = n_4(a + MLP(n_3(a))).

    n_3 is redundant, as the paper says; the weights were trained with it."""

    num_norms = 4

    @staticmethod
    def wire(x: Tensor, n: Sequence[Part], attn: Part, mlp: Part) -> Tensor:
        a = n[1](x + attn(n[0](x)))
        return n[3](a + mlp(n[2](a)))


class BranchSandwichBlock(Wired):
    """a = x + n_2(Attn(n_1(x)));  y = a + n_4(MLP(n_3(a)))."""

    num_norms = 4

    @staticmethod
    def wire(x: Tensor, n: Sequence[Part], attn: Part, mlp: Part) -> Tensor:
        a = x + n[1](attn(n[0](x)))
        return a + n[3](mlp(n[2](a)))


class PreNormBlock(Wired):
    """a = x + Attn(n_1(x));  y = a + MLP(n_2(a)), as in Llama."""

    @staticmethod
    def wire(x: Tensor, n: Sequence[Part], attn: Part, mlp: Part) -> Tensor:
        a = x + attn(n[0](x))
        return a + mlp(n[1](a))


class PostNormBlock(Wired):
    """a = n_1(x + Attn(x));  y = n_2(a + MLP(a))."""

    @staticmethod
    def wire(x: Tensor, n: Sequence[Part], attn: Part, mlp: Part) -> Tensor:
        a = n[0](x + attn(x))
        return n[1](a + mlp(a))


class BranchNormBlock(Wired):
    """a = x + n_1(Attn(x));  y = a + n_2(MLP(a)), as in OLMo-2."""

    @staticmethod
    def wire(x: Tensor, n: Sequence[Part], attn: Part, mlp: Part) -> Tensor:
        a = x + n[0](attn(x))
        return a + n[1](mlp(a))


BLOCKS: dict[str, type[Wired]] = {
    "SandwichBlock": SandwichBlock,
    "SandwichBlockSwin": BranchSandwichBlock,
    "TransformerPreNormBlock": PreNormBlock,
    "TransformerScaledPreNormBlock": PreNormBlock,
    "TransformerPostNormBlock": PostNormBlock,
    "ScaledTransformerPostNormBlock": PostNormBlock,
    "SwinBlock": BranchNormBlock,
    "SwinScaledBlock": BranchNormBlock,
}
"""block_class_name -> class. The scaled ones scale by 1 under every initialisation built here."""


# --------------------------------------------------------------------------------------------------
# Embedding and first weights

LOADED = "_is_hf_initialized"
"""What transformers calls a weight that came from a file; its `nn.init` knows, a part of it not."""


class ScaledEmbedding(nn.Embedding):
    """Rows times a number, by default sqrt(d)."""

    def __init__(self, num_embeddings: int, width: int, scale: float | None = None, **kwargs: Any):
        super().__init__(num_embeddings, width, **kwargs)
        self.embed_scale = math.sqrt(width) if scale is None else scale

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.embed_scale


@torch.no_grad()
def initialize(module: nn.Module, config: HuginnConfig) -> None:
    """The configuration's first weights of a module (as published "takase", section 3.2), normals
    cut at +-3 sigma; the up half of the MLP has the plain sigma, as in training."""
    if isinstance(module, nn.Linear | nn.Embedding):
        out = isinstance(module, OutProjection)
        sigma = config.init_std_out if out else config.init_std
        if config.init_orthogonal and not getattr(module.weight, LOADED, False):
            for part in parts_of(module):
                nn.init.orthogonal_(part, gain=sigma * math.sqrt(max(part.shape)))
        else:
            nn.init.trunc_normal_(module.weight, std=sigma, a=-3 * sigma, b=3 * sigma)
    elif isinstance(module, RMSNorm | nn.LayerNorm):
        nn.init.ones_(module.weight)
        if isinstance(module, nn.LayerNorm):
            nn.init.zeros_(module.bias)
    elif isinstance(module, Attention) and module.qk_bias is not None:
        nn.init.zeros_(module.qk_bias)
