"""How a recurrence of the Huginn family begins: s_0, and how the input e enters each step.

Shape letters: B rows, S tokens, d width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from inward.methods.huginn.blocks import MLPS
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.noise import truncated_normal

# --------------------------------------------------------------------------------------------------
# Injection


def _linear(config: HuginnConfig) -> nn.Module:
    return nn.Linear(2 * config.n_embd, config.n_embd, bias=False)


def _mlp(config: HuginnConfig) -> nn.Module:
    return MLPS[config.mlp_class_name](config, 2 * config.n_embd)


def _none(config: HuginnConfig) -> nn.Module:
    return nn.Identity()


ADAPTERS: dict[str, Callable[[HuginnConfig], nn.Module]] = {
    "linear": _linear,
    "ffn": _mlp,
    "add": _none,
    "gate": _none,
}
"""injection_type -> the adapter."""


def _adapted(adapter: Callable[[Tensor], Tensor], s: Tensor, e: Tensor) -> Tensor:
    return adapter(torch.cat([s, e], dim=-1))


INJECTIONS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]] = {
    "linear": _adapted,
    "ffn": _adapted,
    "add": lambda adapter, s, e: s + e,
    "gate": lambda adapter, s, e: s * e,
}
"""injection_type -> what the core reads, (B, S, d), of (adapter, s, e)."""


# --------------------------------------------------------------------------------------------------
# s_0


def _normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones in [0, 1)."""
    return math.sqrt(2) * torch.erfinv(2 * uniform.clamp(min=2**-25) - 1)


def _like_init(uniform: Tensor, config: HuginnConfig) -> Tensor:
    return config.embed_scale * config.init_std * truncated_normal(uniform)


def _unit(uniform: Tensor, config: HuginnConfig) -> Tensor:
    drawn = _normal(uniform)
    deviation, mean = torch.std_mean(drawn, dim=-1, keepdim=True)
    return (drawn - mean) / deviation


DRAWN: dict[str, Callable[[Tensor, HuginnConfig], Tensor]] = {
    "like-init": _like_init,
    "normal": lambda uniform, config: _normal(uniform),
    "embed": lambda uniform, config: _normal(uniform) / math.sqrt(config.n_embd),
    "unit": _unit,
}
"""state_init -> s_0 of uniform numbers in [0, 1), (B, S, d)."""

FIXED: dict[str, Callable[[Tensor], Tensor]] = {"zero": torch.zeros_like, "input": torch.clone}
"""state_init -> s_0 of e, where nothing is drawn."""
