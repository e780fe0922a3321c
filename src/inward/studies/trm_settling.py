"""What becomes of a TRM that is never halted: does it settle, cycle or drift?

Each puzzle runs for many times the supervision steps of training, in float32. With s_t the state
after step t (y and z as one vector) and d(t, p) = |s_t - s_{t-p}| / |s_t|, over the last quarter:

    settles   d(t, 1) < 1e-3 throughout
    cycles    d(t, p) < 1e-3 throughout for a period p in 2..16, while d(t, 1) > 1e-2 throughout
    drifts    neither

A model has a verdict if 95 % of the puzzles share it, else it is "mixed".
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

STILL, MOVING, PERIODS, AGREED = 1e-3, 1e-2, 16, 0.95
KINDS = ("settles", "cycles", "drifts")


@dataclass(frozen=True)
class Settling:
    """kinds: (N,) one of `KINDS` each. exact: share right after so many steps. change: median over
    the puzzles of d(t, 1) after so many steps. ever, left: shares right at some step, and of these
    wrong at the end."""

    kinds: np.ndarray
    exact: dict[int, float]
    change: dict[int, float]
    ever: float
    left: float

    @property
    def shares(self) -> dict[str, float]:
        """Of each kind."""
        return {kind: float((self.kinds == kind).mean()) for kind in KINDS}

    @property
    def verdict(self) -> str:
        """One of `KINDS`, or "mixed"."""
        return next((kind for kind, share in self.shares.items() if share >= AGREED), "mixed")


class LastQuarter:
    """Follow states (N, ...) and judge the last quarter of `num_steps`."""

    def __init__(self, num_steps: int) -> None:
        if num_steps < 8 * PERIODS:
            raise ValueError(
                f"{num_steps} steps: a quarter of them must hold a period of {PERIODS} twice; give "
                f"at least {8 * PERIODS}"
            )
        self.first = num_steps - num_steps // 4 + 1
        self.past: deque[Tensor] = deque(maxlen=PERIODS)
        self.most = np.zeros((PERIODS, 0))
        self.least = np.zeros(0)

    def add(self, step: int, state: Tensor) -> np.ndarray:
        """Take s_t in, t from 1; returns d(t, 1), or NaN at the first."""
        norm = state.norm(dim=1)
        lags = PERIODS if step >= self.first else 1
        past = list(self.past)[: -lags - 1 : -1]  # the youngest first
        change = np.full((PERIODS, len(state)), np.nan)
        for p, old in enumerate(past):
            change[p] = ((state - old).norm(dim=1) / norm).cpu().numpy()
        self.past.append(state)
        if step == self.first:
            self.most, self.least = change.copy(), change[0].copy()
        elif step > self.first:
            self.most, self.least = np.maximum(self.most, change), np.minimum(self.least, change[0])
        return change[0]

    def kinds(self) -> np.ndarray:
        """(N,) one of `KINDS`."""
        settles = self.most[0] < STILL
        cycles = (self.most[1:] < STILL).any(axis=0) & (self.least > MOVING)
        return np.where(settles, "settles", np.where(cycles, "cycles", "drifts"))


@torch.no_grad()
def settling(model: Any, inputs: Tensor, labels: Tensor, *, times: int = 64) -> Settling:
    """Run puzzles (N, L) for `times` N_sup steps; labels (N, L) say what is right."""
    num_steps = times * model.settings.n_sup
    follow = LastQuarter(num_steps)
    state = model.initial_state(*inputs.shape)
    ever = right = torch.zeros(len(inputs), dtype=torch.bool)
    exact: dict[int, float] = {}
    moved: dict[int, float] = {}
    for step in range(1, num_steps + 1):
        state, logits, _ = model.supervision_step(inputs, state)
        right = (logits.argmax(-1) == labels).all(1)
        ever = ever | right
        flat = torch.cat([part.flatten(1).float() for part in state.values()], dim=1)
        change = follow.add(step, flat)
        if step & (step - 1) == 0 or step == num_steps:
            exact[step] = float(right.float().mean())
            moved[step] = float(np.median(change))
    left = float((ever & ~right).float().mean())
    return Settling(follow.kinds(), exact, moved, float(ever.float().mean()), left)
