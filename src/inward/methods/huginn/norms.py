"""The norms of the Huginn family, under the names of the paper's training code (norms.py there)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inward.common.nn import rms_norm


class RMSNorm(nn.Module):
    """rms_norm(x) * weight; the norm in float32, the product in the dtype of x."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps) * self.weight


class WideRMSNorm(RMSNorm):
    """rms_norm(x) * weight; the product in float32, too."""

    def forward(self, x: Tensor) -> Tensor:
        return (rms_norm(x.float(), self.eps) * self.weight).to(x.dtype)


class BareRMSNorm(nn.Module):
    """rms_norm(x), without a gain."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps)


class BareLayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) in float32, without gain and shift."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), (self.width,), eps=self.eps).to(x.dtype)


def _none(width: int, eps: float) -> nn.Module:
    return nn.Identity()


NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "RMSNorm_llama": RMSNorm,
    "RMSNorm": RMSNorm,
    "TorchRMSNorm": WideRMSNorm,
    "GemmalikeRMS": WideRMSNorm,
    "FusedRMSNorm": WideRMSNorm,
    "UnparametrizedRMSNorm": BareRMSNorm,
    "OlmoLayerNorm": BareLayerNorm,
    "LayerNorm": nn.LayerNorm,
    "Identity": _none,
}
"""norm_class_name -> made of (width, eps)."""
