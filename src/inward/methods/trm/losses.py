"""Cross-entropy of TRM's answers: softmax as in the paper, or the released code's stable-max."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from inward.common import IGNORE


def log_stablemax(logits: Tensor) -> Tensor:
    """log( s(v) / sum s ), s(v) = v + 1 for v >= 0 and 1 / (1 - v) below, in float64 where the
    device has it."""
    v = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    s = torch.where(v < 0, 1 / (1 - v + 1e-30), v + 1)
    return torch.log(s / s.sum(dim=-1, keepdim=True))


def token_loss(logits: Tensor, labels: Tensor, kind: str, smoothing: float = 0.0) -> Tensor:
    """(B,) cross-entropy, the mean over each row's labelled cells (0 for a row that has none).

    The target holds 1 - smoothing at the label, and smoothing / V at each of the V tokens besides.
    """
    log_p = log_stablemax(logits) if kind == "stablemax" else F.log_softmax(logits.float(), dim=-1)
    valid = labels != IGNORE
    picked = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    if smoothing:
        picked = torch.lerp(picked, log_p.mean(-1), smoothing)
    return -(picked * valid).sum(-1) / valid.sum(-1).clamp(min=1)
