"""Sums over rows that predict a token: cross-entropy, right answers, distillation; the vocabulary
head in pieces where all its logits would be too many.

Shape letters: B samples, n rows, V vocabulary, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORE = -100
"""Label of a row whose prediction does not count."""


@dataclass(frozen=True)
class Unread:
    """Rows whose logits would be too many: last hidden states (B, n, d), and what reads them.

    Only labelled rows are ever read, `at_once` of them at a time, and read again in backward, so
    that no more than at_once x V logits (and as many of their gradients) exist together.
    """

    hidden: Tensor
    read: Callable[[Tensor], Tensor]
    at_once: int
    taught: tuple[Tensor, float] | None = None
    """distillation: last hidden states (B, n, d) of a teacher that the same head reads, and its
    share of the loss"""

    def select(self, start: int, stop: int | None = None) -> Unread:
        """Rows start..stop-1 of every sample."""
        return replace(self, hidden=self.hidden[:, start:stop])

    def argmax(self) -> Tensor:
        """(B, n) the likeliest token of every row."""
        rows = self.hidden.flatten(0, 1).split(self.at_once)
        best = torch.cat([self.read(piece).argmax(-1) for piece in rows])
        return best.view(self.hidden.shape[:2])

    def sums(self, labels: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cross-entropy and right answers over the labelled rows, times `weight` (B, 1 or n)."""
        rows = (labels != IGNORE).flatten().nonzero()[:, 0]
        if len(rows) == 0:  # one unlabelled row: nothing, but with its place in the graph
            rows = rows.new_zeros(1)
        shares = torch.ones_like(labels, dtype=torch.float32)
        shares = shares if weight is None else shares * weight
        chosen = [self.hidden.flatten(0, 1), labels.flatten(), shares.flatten()]
        if self.taught is not None:
            chosen.append(self.taught[0].flatten(0, 1))
        total = self.hidden.new_zeros(2, dtype=torch.float32)
        for piece in zip(*(t[rows].split(self.at_once) for t in chosen), strict=True):
            found = checkpoint(self._sums, *piece, use_reentrant=False, preserve_rng_state=False)
            total = total + cast(Tensor, found)
        return total[0], total[1].detach()

    def _sums(
        self, hidden: Tensor, labels: Tensor, shares: Tensor, teacher: Tensor | None = None
    ) -> Tensor:
        logits = self.read(hidden).float()
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
        if teacher is not None and self.taught is not None:
            with torch.no_grad():
                known = self.read(teacher).float()
            losses = mixed_loss(losses, logits, known, labels, self.taught[1])
        right = (logits.detach().argmax(-1) == labels).float()
        return torch.stack([(losses * shares).sum(), (right * shares).sum()])


def mixed_loss(
    losses: Tensor, logits: Tensor, teacher: Tensor, labels: Tensor, share: float
) -> Tensor:
    """(1 - share) * losses + share * KL(teacher || model) on labelled rows; logits (n, V)."""
    known = teacher.log_softmax(-1)
    # a banned token has no probability in either: exp(-inf) * (-inf - -inf) would be NaN
    gap = (known - logits.log_softmax(-1)).masked_fill(known == -torch.inf, 0.0)
    divergence = (known.exp() * gap).sum(-1).masked_fill(labels == IGNORE, 0.0)
    return (1 - share) * losses + share * divergence


def branch(
    name: str,
    logits: Tensor | Unread,
    labels: Tensor,
    weight: Tensor | None,
    taught: tuple[Tensor, float] | None = None,
) -> dict[str, Tensor]:
    """Sums over the labelled rows: loss in float32 and right answers, times `weight` (B, 1 or n).
    The loss is cross-entropy, or in part (taught: logits (B, n, V), share) distillation."""
    if isinstance(logits, Unread):
        loss, right = logits.sums(labels, weight)
        return {f"{name}_loss": loss, f"{name}_accuracy": right}
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="none"
    ).view_as(labels)
    if taught is not None:
        teacher, share = taught
        losses = mixed_loss(losses, logits.float(), teacher.float(), labels, share)
    right = (logits.detach().argmax(-1) == labels).float()
    if weight is not None:
        losses, right = losses * weight, right * weight
    return {f"{name}_loss": losses.sum(), f"{name}_accuracy": right.sum()}
