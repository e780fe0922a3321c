"""Sums over rows that predict a token: cross-entropy, right answers, distillation; the vocabulary
head in pieces where all its logits would be too many.

Shape letters: B samples, n rows, V vocabulary, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from inward.common import IGNORE

Taught = tuple[Tensor, float]
"""Distillation: what a teacher says at the same rows, logits (B, n, V), or beside `Unread` rows its
last hidden states (B, n, d) for the same head; and its share of the loss."""


@dataclass(frozen=True)
class Unread:
    """Rows whose logits would be too many: last hidden states (B, n, d), and what reads them.

    Only labelled rows are ever read, `at_once` of them at a time, and read again in backward, so
    that no more than at_once x V logits (and as many of their gradients) exist together.
    """

    hidden: Tensor
    read: Callable[[Tensor], Tensor]
    at_once: int

    def select(self, start: int, stop: int | None = None) -> Unread:
        """Rows start..stop-1 of every sample."""
        return replace(self, hidden=self.hidden[:, start:stop])

    def argmax(self) -> Tensor:
        """(B, n) the likeliest token of every row."""
        rows = self.hidden.flatten(0, 1).split(self.at_once)
        best = torch.cat([self.read(piece).argmax(-1) for piece in rows])
        return best.view(self.hidden.shape[:2])

    def sums(
        self, labels: Tensor, weight: Tensor | None, taught: Taught | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and right answers over the labelled rows, times `weight` (B, 1 or n)."""
        rows = (labels != IGNORE).flatten().nonzero()[:, 0]
        if len(rows) == 0:  # one unlabelled row: nothing, but with its place in the graph
            rows = rows.new_zeros(1)
        shares = torch.ones_like(labels, dtype=torch.float32)
        shares = shares if weight is None else shares * weight
        chosen = [self.hidden.flatten(0, 1), labels.flatten(), shares.flatten()]
        share = 0.0
        if taught is not None:
            chosen.append(taught[0].flatten(0, 1))
            share = taught[1]
        total = self.hidden.new_zeros(2, dtype=torch.float32)
        for piece in zip(*(t[rows].split(self.at_once) for t in chosen), strict=True):
            found = checkpoint(
                partial(self._sums, share), *piece, use_reentrant=False, preserve_rng_state=False
            )
            total = total + cast(Tensor, found)
        return total[0], total[1].detach()

    def _sums(
        self,
        share: float,
        hidden: Tensor,
        labels: Tensor,
        shares: Tensor,
        teacher: Tensor | None = None,
    ) -> Tensor:
        taught = None
        if teacher is not None:
            with torch.no_grad():
                taught = (self.read(teacher), share)
        losses, right = row_losses(self.read(hidden), labels, taught)
        return torch.stack([(losses * shares).sum(), (right * shares).sum()])


def row_losses(logits: Tensor, labels: Tensor, taught: Taught | None) -> tuple[Tensor, Tensor]:
    """Loss in float32, and 1.0 where the likeliest token is the right one, of rows (n, V): with a
    teacher (1 - share) * cross-entropy + share * KL(teacher || model); 0 where unlabelled."""
    logits = logits.float()
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    if taught is not None:
        teacher, share = taught
        known = teacher.float().log_softmax(-1)
        # a banned token has no probability in either: exp(-inf) * (-inf - -inf) would be NaN
        gap = (known - logits.log_softmax(-1)).masked_fill(known == -torch.inf, 0.0)
        divergence = (known.exp() * gap).sum(-1).masked_fill(labels == IGNORE, 0.0)
        losses = (1 - share) * losses + share * divergence
    return losses, (logits.detach().argmax(-1) == labels).float()


def branch(
    name: str,
    logits: Tensor | Unread,
    labels: Tensor,
    weight: Tensor | None,
    taught: Taught | None = None,
) -> dict[str, Tensor]:
    """Sums over the labelled rows: loss in float32 and right answers, times `weight` (B, 1 or n).
    The loss is cross-entropy, or in part (`taught`) distillation."""
    if isinstance(logits, Unread):
        loss, right = logits.sums(labels, weight, taught)
        return {f"{name}_loss": loss, f"{name}_accuracy": right}
    if taught is not None:
        taught = (taught[0].flatten(0, 1), taught[1])
    losses, right = (
        found.view_as(labels)
        for found in row_losses(logits.flatten(0, 1), labels.flatten(), taught)
    )
    if weight is not None:
        losses, right = losses * weight, right * weight
    return {f"{name}_loss": losses.sum(), f"{name}_accuracy": right.sum()}
