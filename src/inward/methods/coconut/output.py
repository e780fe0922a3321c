"""What a forward of Coconut returns: one `PassOutput` a pass, and the whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from inward.data.thoughts.columns import LatentBatch, pick


@dataclass(frozen=True)
class PassOutput:
    """Columns [start, stop) of a batch after their last pass."""

    start: int
    stop: int
    inputs: Tensor
    """(B, stop - start, d) embeddings with the thoughts filled in"""
    hidden: Tensor
    """(B, stop - start, d) what the head reads"""
    logits: Tensor
    """(N, V) of the wanted columns, row by row; (B, stop - start, V) if all are wanted"""
    layers: tuple[Tensor, ...] = ()
    """the base's hidden_states, if asked for"""


@dataclass(frozen=True)
class CoconutOutput:
    """Result of a forward.

    parts: what each pass left, in the order of the columns.
    row_loss, row_right, row_count: (B,) over the labels of each row: summed cross-entropy (with
        gradient), correct predictions, and how many there are.
    num_passes: forwards of the base.
    wanted: (B, S) bool, the columns whose logits the parts hold; None: all.
    changes: jacobi only, (iterations,): |new - old| / |new| of the thoughts at each iteration.
    """

    batch: LatentBatch
    parts: tuple[PassOutput, ...]
    row_loss: Tensor
    row_right: Tensor
    row_count: Tensor
    num_passes: int
    changes: Tensor | None = None
    wanted: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """Cross-entropy summed over all labels."""
        return self.row_loss.sum()

    @property
    def loss(self) -> Tensor:
        """Mean cross-entropy over the labels (0 if there are none)."""
        return self.total / self.row_count.sum().clamp(min=1)

    @cached_property
    def logits(self) -> Tensor:
        """(B, S, V) if all were asked for; else (N, V) of the wanted columns, pass by pass."""
        return torch.cat([part.logits for part in self.parts], dim=-2)

    @cached_property
    def hidden(self) -> Tensor:
        """(B, S, d) what the head reads."""
        return torch.cat([part.hidden for part in self.parts], dim=1)

    @cached_property
    def inputs_embeds(self) -> Tensor:
        """(B, S, d) the embeddings with the thoughts filled in."""
        return torch.cat([part.inputs for part in self.parts], dim=1)

    @cached_property
    def layers(self) -> tuple[Tensor, ...]:
        """The base's hidden states, (B, S, d) each; asked for with layers=True."""
        return tuple(
            torch.cat(states, dim=1)
            for states in zip(*(part.layers for part in self.parts), strict=True)
        )

    def thoughts(self) -> tuple[Tensor, Tensor]:
        """(B, K, d) the thoughts of each row as they were fed in, 0 where it has fewer; (B, K) bool
        which there are."""
        return pick(self.inputs_embeds, self.batch["latent"])
