"""Watching thoughts while training: geometry, and a warning when they collapse."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inward.methods.coconut.losses import Metrics

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut
    from inward.methods.coconut.output import CoconutOutput


class CollapseWarning(UserWarning):
    """The thoughts have become all alike, or vanishingly small, or huge."""


@torch.no_grad()
def geometry(thoughts: Tensor, there: Tensor, table: Tensor) -> dict[str, float]:
    """Where the thoughts of a batch lie.

    Args:
        thoughts: (B, K, d);  there: (B, K) bool, which of them exist.
        table: (V, d) embeddings of the vocabulary.
    Returns:
        distance: mean distance between thoughts of one row (SIM-CoT's collapse measure).
        center: mean distance to the mean embedding.
        norm: mean length, as a multiple of the mean embedding length.
        cosine: mean cosine between a thought and the next.
        rank: effective rank of all thoughts around their mean, exp of the entropy of the shares of
            the singular values; 1 when all lie on a line.
        NaN where there are too few thoughts to tell. Empty if there are none.
    """
    if not bool(there.any()):
        return {}
    z, table = thoughts.float(), table.float()
    both = there[:, :, None] & there[:, None, :]
    both &= ~torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    pair = there[:, 1:] & there[:, :-1]
    flat = z[there]
    values = torch.linalg.svdvals(flat - flat.mean(0))
    shares = values / values.sum().clamp(min=1e-12)
    rank = torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum())
    out = {
        "distance": torch.cdist(z, z)[both].mean(),
        "center": (flat - table.mean(0)).norm(dim=-1).mean(),
        "norm": flat.norm(dim=-1).mean() / table.norm(dim=-1).mean(),
        "cosine": F.cosine_similarity(z[:, 1:], z[:, :-1], dim=-1)[pair].mean(),
        "rank": rank if len(flat) > 2 else rank.new_tensor(float("nan")),
    }
    return {name: float(value) for name, value in out.items()}


def collapsed(
    where: dict[str, float],
    *,
    cosine: float = 0.99,
    rank: float = 1.05,
    norms: tuple[float, float] = (0.01, 1000.0),
) -> list[str]:
    """What is wrong with a `geometry`, in words; empty if nothing is."""
    told = []
    if where.get("cosine", 0.0) > cosine:
        told.append(f"successive thoughts are alike (cosine {where['cosine']:.4f} > {cosine})")
    if where.get("rank", rank) < rank:
        told.append(f"all thoughts lie on a line (effective rank {where['rank']:.3f} < {rank})")
    if not norms[0] <= where.get("norm", norms[0]) <= norms[1]:
        told.append(f"thoughts are {where['norm']:.3g} times as long as embeddings")
    return told


def alarm_metrics(model: Coconut, output: CoconutOutput) -> Metrics:
    """`geometry` of a training batch for the log; warns when the thoughts have collapsed."""
    where = geometry(*output.thoughts(), model.embedding.weight)
    told = collapsed(where)
    if told:
        warnings.warn("collapse: " + "; ".join(told), CollapseWarning, stacklevel=2)
    names = ("distance", "center", "norm", "cosine", "rank")
    values = {name: where.get(name, float("nan")) for name in names}
    return {
        f"thought_{name}": (
            output.total.new_tensor(0.0 if np.isnan(value) else value),
            output.total.new_tensor(float(not np.isnan(value))),
        )
        for name, value in values.items()
    }
