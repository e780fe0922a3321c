"""What is trained, and how a run may stop: what the loop and those who start it share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn

    from inward.data.puzzles.source import Source


@runtime_checkable
class SavesItself(Protocol):
    """A model of transformers, or one that has the same method."""

    def save_pretrained(self, folder: str | Path) -> Any:
        """Write weights and configuration into a folder."""
        ...


@dataclass
class Run:
    """What is trained. `config` is the resolved recipe (JSON values), saved as config.json."""

    model: nn.Module
    source: Source
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    """Called on every process with the averaged weights in place; all get the same result."""
    config: dict[str, Any] = field(default_factory=dict)
    resets: tuple[int, ...] = ()
    """Steps (from 0) before which the optimizer starts afresh, as at the stages of a curriculum.
    A function of `config`: a resumed run must name the same ones."""
    notes: tuple[str, ...] = ()
    """What a person who starts this run should know of what was read for it."""
    read: dict[str, str] = field(default_factory=dict)
    """Files that the run was made from: name -> SHA-256. A resumed run must find the same ones."""
    data_keys: tuple[str, ...] = ()
    """Entries of `config` that say what is trained on: these, and `read`, may change if a run goes
    on with `other_data`."""
    other_data: bool = False
    """Whether a run that is resumed may go on with other data than it began with."""


class NonFiniteError(FloatingPointError):
    """Loss or gradient is NaN or infinite; `step` counts from 1, `tensor` is the first culprit."""

    def __init__(self, step: int, tensor: str, kept: Path) -> None:
        self.step = step
        self.tensor = tensor
        super().__init__(
            f"step {step} stopped before its update: {tensor} is not finite. The state before it "
            f"is kept in {kept}; lower the rate or set clip, or look at the data of this step"
        )
