"""Training: one loop for every method, and what it needs to stop and go on without a trace.

Names are loaded on first use, so that recipes and the command line can read `TrainSettings`
without paying for an import of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inward.common.draws import Draws, Loss
    from inward.train.loop import NonFiniteError, Run, train
    from inward.train.settings import OptimSettings, TrainSettings

_HOMES = {
    "Draws": "draws",
    "Loss": "draws",
    "NonFiniteError": "loop",
    "OptimSettings": "settings",
    "Run": "loop",
    "TrainSettings": "settings",
    "train": "loop",
}

__all__ = [
    "Draws",
    "Loss",
    "NonFiniteError",
    "OptimSettings",
    "Run",
    "TrainSettings",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'inward.train' has no attribute {name!r}")
    return getattr(import_module(f"inward.train.{_HOMES[name]}"), name)
