"""What a recipe says about Huginn: its shape, the depth of its training, what is watched. No torch.

`HuginnSettings` is the part of `HuginnConfig` (config.py) that one chooses; `Depth` and
`Watch` belong to training alone (train.py).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from inward.methods.huginn.config import HuginnConfig


@dataclass(frozen=True)
class HuginnSettings:
    """Shape of a model; the defaults are the published one's (paper, section 4.1)."""

    width: int = 5280
    """d"""
    num_heads: int = 55
    mlp_width: int = 17920
    prelude: int = 2
    """blocks before the core"""
    core: int = 4
    """blocks that are repeated"""
    coda: int = 2
    """blocks after the core"""
    state_init: Literal["like-init", "zero"] = "like-init"
    rope_base: float = 50_000.0

    def config(self, *, vocab_size: int, block_size: int, depth: Depth) -> HuginnConfig:
        """The configuration that transformers saves; ValueError for shapes that do not fit."""
        from inward.methods.huginn.config import HuginnConfig

        return HuginnConfig(
            n_embd=self.width,
            n_heads=self.num_heads,
            intermediate_size=self.mlp_width,
            n_layers_in_prelude=self.prelude,
            n_layers_in_recurrent_block=self.core,
            n_layers_in_coda=self.coda,
            vocab_size=vocab_size,
            block_size=block_size,
            mean_recurrence=depth.mean,
            mean_backprop_depth=depth.backprop,
            state_init=self.state_init,
            rope_base=self.rope_base,
        )


@dataclass(frozen=True)
class Depth:
    """Recurrences of a training step. ValueError for numbers out of range."""

    mean: int = 32
    """of the Poisson distribution; the depth is one more on average"""
    backprop: int = 8
    """k, the last recurrences, which are differentiated"""
    sampling: Literal["step", "row", "fixed"] = "step"
    """one random depth per step (the paper), one per row, or always `mean`"""
    sigma: float = 0.5
    """spread of the logarithm of the Poisson rate (the paper calls it a variance)"""
    ramp: int = 0
    """steps over which the mean grows from 1 (a curriculum, arXiv 2511.07384); 0: none"""
    longest: float = 0.0
    """bound on a drawn depth, as a multiple of the mean; 0: none, as in the paper"""

    def __post_init__(self) -> None:
        for name, low in (("mean", 1), ("backprop", 1), ("sigma", 0), ("ramp", 0), ("longest", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"depth.{name} is {getattr(self, name)}, must be at least {low}")
        if 0 < self.longest < 1:
            raise ValueError(f"depth.longest is {self.longest}, must be 0 or at least 1")
        if self.sampling not in ("step", "row", "fixed"):
            raise ValueError(f"depth.sampling is {self.sampling!r}; choose step, row or fixed")

    def at(self, step: int) -> float:
        """The mean at a training step (from 0)."""
        if step >= self.ramp:
            return float(self.mean)
        return 1 + (self.mean - 1) * step / self.ramp


class CollapseError(FloatingPointError):
    """A monitor with action="stop" has seen what it looks for."""


@dataclass(frozen=True)
class Watch:
    """What is measured of the states every so many steps, the limits, and what happens beyond."""

    action: Literal["warn", "stop", "off"] = "warn"
    max_correlation: float = 0.98
    """mean cosine between final states of two tokens of a row; near 1: all tokens have the same
    state, and nothing is left to read (the paper's first failed run)"""
    min_first_change: float = 1e-3
    """|s_2 - s_1| / |s_2|; near 0: the core ignores its state, and depth is spent for nothing (the
    second failed run). The *last* change falls to 0 in a good model too: it converges"""
    max_path: float = 0.5
    """|s_r - s'_r| / |s_r| from two initial states; large: the end depends on the start"""
    after: int = 500
    """steps before the limits count: an untrained model may look like a broken one"""
    every: int = 100
    """steps between two looks"""
    rows: int = 4
    """rows looked at, run twice to the mean depth without gradient"""

    def __post_init__(self) -> None:
        if self.action not in ("warn", "stop", "off"):
            raise ValueError(f"watch.action is {self.action!r}; choose warn, stop or off")
        if self.every < 1 or self.rows < 1 or self.after < 0:
            raise ValueError("watch: every and rows must be at least 1, after at least 0")

    def looks_at(self, step: int) -> bool:
        """Whether step `step` (from 0) is one of those that are measured."""
        return self.action != "off" and step % self.every == 0

    def check(self, step: int, found: dict[str, float]) -> None:
        """Compare measured means (correlation, first_change, path) with the limits.

        Raises:
            CollapseError: something is beyond its limit and action is "stop".
        """
        for name, limit, beyond, meaning in (
            ("correlation", self.max_correlation, found["correlation"] > self.max_correlation,
             "all tokens of a row have the same state"),
            ("first_change", self.min_first_change, found["first_change"] < self.min_first_change,
             "the core ignores its state"),
            ("path", self.max_path, found["path"] > self.max_path,
             "the final state depends on the initial one"),
        ):  # fmt: skip
            if beyond and step >= self.after:
                self._act(
                    f"step {step + 1}: {name} of the states is {found[name]:.4g}, beyond the limit "
                    f"of {limit:g}: {meaning}. Try a lower rate or a longer warm-up; watch.action "
                    "says what happens then"
                )

    def _act(self, told: str) -> None:
        if self.action == "stop":
            raise CollapseError(told)
        warnings.warn(told, stacklevel=3)
