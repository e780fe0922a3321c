"""Operations that several papers use."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis, in float32, without a gain.

    Written out instead of `F.rms_norm`, whose other order of rounding grows along a recursion (to
    1e-3 after a hundred evaluations of TRM's f); in this order the papers' modules are met to the
    last bit.
    """
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
