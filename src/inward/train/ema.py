"""Exponential moving average of the weights: what TRM evaluates and ships.

theta_ema <- decay * theta_ema + (1 - decay) * theta after every step, started at the first weights.
Switched off, TRM loses 7.5 points on Sudoku-Extreme (arXiv 2510.04871, ablations).
For use, average and raw weights change places by pointer: no third copy, and the raw weights come
back as the same bytes (rows of a sharded parameter change places by value, a tensor at a time:
what gathers them knows their memory). The rows of a sparse identifier table are not averaged, as
in the reference.
"""

# torch's stubs hide the foreach functions, its documentation of optimizers does not.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class EMA:
    """Average of named parameters; `shadow` holds it under the same names."""

    def __init__(
        self,
        params: Mapping[str, Tensor],
        *,
        decay: float,
        ramp: bool = False,
        by_value: bool = False,
    ) -> None:
        """Start at the present weights. `by_value`: these keep their memory when they are swapped.

        Raises ValueError for weights below float32: there a decay of 0.999 rounds to no change.
        """
        for name, param in params.items():
            if param.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"cannot average {name} in {param.dtype}: the average would stand still. Keep "
                    "weights in float32 (with precision bfloat16 if wanted) or set ema_decay to 0"
                )
        self.decay = decay
        self.ramp = ramp
        self.by_value = by_value
        self.num_updates = 0
        self.params = dict(params)
        self.shadow = {name: param.detach().clone() for name, param in params.items()}

    def current_decay(self) -> float:
        """Decay of the next update: short at the start if the ramp is on."""
        if not self.ramp:
            return self.decay
        return min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights; call once after each optimizer step."""
        if self.params:
            weight = 1 - self.current_decay()
            params = list(self.params.values())
            torch._foreach_lerp_(list(self.shadow.values()), params, weight)
        self.num_updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the parameters hold the average and `shadow` the raw weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, param in self.params.items():
            if self.by_value:
                raw = param.clone()
                param.copy_(self.shadow[name])
                self.shadow[name].copy_(raw)
            else:
                param.data, self.shadow[name] = self.shadow[name], param.data
