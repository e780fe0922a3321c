"""The initial state as a function of (seed, position) alone: a hash, then a truncated normal."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def truncated_normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers cut at +-3 from uniform ones in [0, 1], by the inverse of the
    distribution function."""
    inside = math.erf(3 / math.sqrt(2))
    return math.sqrt(2) * torch.erfinv(inside * (2 * uniform - 1))


def _mix(x: Tensor) -> Tensor:
    """A bijection of 64-bit integers that scatters neighbours (the finaliser of splitmix64)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor  # >> keeps the sign: clear it
    return x ^ (x >> 31 & (1 << 33) - 1)


def uniform_at(seed: int | Tensor, positions: Tensor, width: int) -> Tensor:
    """(B, S, width) float32 in (0, 1), each number a function of (seed, position, channel) alone:
    a token gets the same ones in any batch, behind any padding, with or without a cache.

    Args:
        seed: a number, or (B,) one for each row.
        positions: (B or 1, S).
    """
    seeds = torch.as_tensor(seed, dtype=torch.long, device=positions.device).reshape(-1, 1)
    token = _mix(_mix(seeds) + positions.long())
    bits = _mix(token[..., None] + torch.arange(1, width + 1, device=positions.device))
    return ((bits & (1 << 23) - 1).float() + 0.5) / (1 << 23)
