"""The factor that multiplies every base learning rate, as a pure function of the step.

Steps count from 1, so the first step already has a rate above 0 (TRM's released code: warm-up
`step / warmup`, then a cosine from 1 to `min_ratio`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inward.train.settings import TrainSettings


def lr_factor(settings: TrainSettings, step: int) -> float:
    """Factor for optimizer step `step` (1 to steps): rises to 1, then follows the schedule."""
    assert step >= 1, f"steps count from 1, got {step}"
    if step < settings.warmup:
        return step / settings.warmup
    if settings.schedule == "constant":
        return 1.0
    late = settings.schedule == "late"
    first = max(settings.warmup, settings.steps - settings.decay_steps if late else 0)
    done = max(0.0, min(1.0, (step - first) / max(1, settings.steps - first)))
    left = (
        1 - done
        if settings.schedule in ("linear", "late")
        else 0.5 * (1 + math.cos(math.pi * done))
    )
    return settings.min_ratio + (1 - settings.min_ratio) * left
