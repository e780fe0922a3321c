"""Which positions of a forward are being computed, where some have been taken out.

A looped model whose positions differ in depth goes on with those still at work; what listens to its
layers and knows positions by their place in the forward (an adapter that acts on some of them) asks
here where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_TAKEN: ContextVar[tuple[Tensor, int] | None] = ContextVar("taken", default=None)


@contextmanager
def taken_out(index: Tensor, num: int) -> Iterator[None]:
    """Within, layers see of each row the positions index (B, n) of `num`."""
    before = _TAKEN.set((index, num))
    try:
        yield
    finally:
        _TAKEN.reset(before)


def among_taken(rows: Tensor | slice) -> Tensor | slice:
    """Places of positions, counted over all rows of the batch, among those that are computed."""
    known = _TAKEN.get()
    if known is None:
        return rows
    index, num = known
    chosen = torch.zeros(len(index) * num, dtype=torch.bool, device=index.device)
    chosen[rows] = True
    return chosen.view(-1, num).gather(1, index).flatten().nonzero()[:, 0]
