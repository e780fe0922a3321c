"""Settings of Coconut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Feedback = Literal["none", "norm", "projector", "adapter"]


@dataclass(frozen=True)
class CoconutSettings:
    """Options of the wrapper; all off is the paper.

    feedback: what happens to h before it is the next input. "norm": scaled to the root mean square
        of the embeddings. "projector": Linear, GELU, Linear, LayerNorm (CODI). "adapter":
        h + W2 silu(W1 h), then as "norm" (SpiralThinker, arXiv 2511.08983).
    feedback_width: inner width of projector and adapter; None: d.
    seed: of their initial weights.
    distill: weight of the alignment with a teacher's hidden states; needs `with_teacher`.
    step_decoder: weight of the loss of a decoder that spells out steps; needs `with_steps`, and a
        decoder given to the model. thoughts_per_step: c.
    alarms: measure the thoughts of each training batch, and warn when they collapse.
    """

    feedback: Feedback = "none"
    feedback_width: int | None = None
    seed: int = 0
    distill: float = 0.0
    step_decoder: float = 0.0
    thoughts_per_step: int = 1
    alarms: bool = False

    def __post_init__(self) -> None:
        if self.feedback not in get_args(Feedback):
            raise ValueError(
                f"feedback is {self.feedback!r}, must be one of {', '.join(get_args(Feedback))}"
            )
        if min(self.distill, self.step_decoder) < 0.0 or self.thoughts_per_step < 1:
            raise ValueError(
                f"distill {self.distill} and step_decoder {self.step_decoder} must be 0 or more, "
                f"thoughts_per_step {self.thoughts_per_step} 1 or more"
            )
        if self.feedback_width is not None and self.feedback_width < 1:
            raise ValueError(f"feedback_width is {self.feedback_width}, must be 1 or more")
