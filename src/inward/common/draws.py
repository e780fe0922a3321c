"""What passes between the loop and a method: what `loss` gets, returns, and may draw.

A training step must not depend on how its batch is cut: one process or four, one micro-batch or
eight. So `Loss` carries sums, never means, and `Draws` gives row r of step s the same numbers
wherever that row is computed: each call draws for the whole global batch and hands out a slice.
That costs a draw per row that is thrown away, which is nothing beside a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Tensor]


@dataclass
class Loss:
    """Result of one micro-batch.

    total: scalar with gradient, the SUM over the rows (or over the items that `batch["weight"]`
        counts); the loop divides by the number in the whole global batch.
    metrics: name -> (sum, count), scalars; added over micro-batches and processes, then divided.
        The names must be the same at every call; a count of 0 leaves the metric out of the log.
    state: what the method carries to the next step (TRM's slots), detached; None if nothing.
    """

    total: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    state: dict[str, Tensor] | None = None


class Draws:
    """Random numbers for the rows `rows` of global batch `step`, the same for every split.

    Every slice of a batch must make the same calls in the same order. Numbers that all rows of a
    step share (a depth drawn per step) come from `generator` with a shape free of the batch.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        rows: range,
        num_rows: int,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        """Seed the generator from (seed, step); numbers are drawn on CPU, then moved to `device`.

        Raises ValueError if seed or step is negative or `rows` does not lie in the batch.
        """
        if seed < 0 or step < 0:
            raise ValueError(f"seed {seed} and step {step} must both be 0 or more")
        if rows.step != 1 or not 0 <= rows.start <= rows.stop <= num_rows:
            raise ValueError(f"rows {rows} must be a plain range within the batch of {num_rows}")
        self.step = step
        self.rows = rows
        self.num_rows = num_rows
        self.device = torch.device(device)
        mixed = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
        self.generator = torch.Generator().manual_seed(int(mixed[0]))

    def uniform(self, *shape: int) -> Tensor:
        """(len(rows), *shape) float32 in [0, 1)."""
        return self._own(torch.rand(self.num_rows, *shape, generator=self.generator))

    def normal(self, *shape: int) -> Tensor:
        """(len(rows), *shape) float32 of mean 0 and standard deviation 1."""
        return self._own(torch.randn(self.num_rows, *shape, generator=self.generator))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """(len(rows), *shape) int64 with low <= n < high."""
        size = (self.num_rows, *shape)
        return self._own(torch.randint(low, high, size, generator=self.generator))

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn[self.rows.start : self.rows.stop].to(self.device)


class Trainable(Protocol):
    """What the loop needs of a model."""

    def loss(self, batch: Batch, state: dict[str, Tensor] | None, draws: Draws) -> Loss:
        """Loss of one micro-batch, given what the method left behind at the step before."""
        ...
