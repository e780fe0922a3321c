"""Settings of Coconut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from inward.data.thoughts.superposed import Superposing

Feedback = Literal["none", "norm", "projector", "adapter", "mixture"]


@dataclass(frozen=True)
class CoconutSettings:
    """Options of the wrapper; all off is the paper.

    feedback: what happens to h before it is the next input. "norm": scaled to the root mean square
        of the embeddings. "projector": Linear, GELU, Linear, LayerNorm (CODI). "adapter":
        h + W2 silu(W1 h), then as "norm" (SpiralThinker, arXiv 2511.08983). "mixture": not h, but
        the embeddings of all tokens, mixed by what the head says of h.
    feedback_width: inner width of projector and adapter; None: d.
    seed: of their initial weights.
    distill: weight of the alignment with a teacher's hidden states; needs `with_teacher`.
    step_decoder: weight of the loss of a decoder that spells out steps; needs `with_steps`, and a
        decoder given to the model. thoughts_per_step: c.
    alarms: measure the thoughts of each training batch, and warn when they collapse.
    superpose: thoughts hold words that can be read (`inward.data.thoughts.superposed`): the ratio
        of the weights of neighbouring words, above 0, at most 1/2; 0: thoughts hold what they will.
        The batch must say the words (`Curriculum(span=...)`); needs feedback "mixture".
    span: words of such a thought, at most. superpose_weight: what its loss weighs, in tokens.
    thought_steps, word_steps: recurrences of thoughts and of words over a looped base (Huginn), in
        training and where a request does not say otherwise; 0: as the base says.
    """

    feedback: Feedback = "none"
    feedback_width: int | None = None
    seed: int = 0
    distill: float = 0.0
    step_decoder: float = 0.0
    thoughts_per_step: int = 1
    alarms: bool = False
    superpose: float = 0.0
    span: int = 4
    superpose_weight: float = 1.0
    thought_steps: int = 0
    word_steps: int = 0

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
        self._check_superposing()
        if min(self.thought_steps, self.word_steps) < 0:
            raise ValueError(
                f"thought_steps {self.thought_steps} and word_steps {self.word_steps} must be 0 or "
                "more"
            )
        if self.feedback_width is not None and self.feedback_width < 1:
            raise ValueError(f"feedback_width is {self.feedback_width}, must be 1 or more")

    @property
    def superposing(self) -> Superposing | None:
        """How words lie in a thought; None: they need not."""
        return Superposing(self.span, self.superpose) if self.superpose else None

    def _check_superposing(self) -> None:
        usual = CoconutSettings.__dataclass_fields__
        if not self.superpose:
            for name in ("span", "superpose_weight"):
                if getattr(self, name) != usual[name].default:
                    raise ValueError(
                        f"{name} is {getattr(self, name)}, but superpose is 0, so nothing would "
                        "come of it; set superpose to 0.5 or less, or leave it out"
                    )
            return
        Superposing(self.span, self.superpose)
        if self.feedback != "mixture":
            raise ValueError(
                f"superpose is {self.superpose} and feedback {self.feedback!r}: a superposed "
                "thought is fed back as the mixture that it holds; set feedback to 'mixture'"
            )
        if not 0.0 < self.superpose_weight < float("inf"):
            raise ValueError(f"superpose_weight is {self.superpose_weight}, must be above 0")
