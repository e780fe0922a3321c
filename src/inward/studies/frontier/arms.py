"""The methods that are compared: how each is taught a task, and at which efforts it is asked.

    plain         the answer right after the question
    cot           every step spoken
    pause         as many learned pause tokens as Coconut has thoughts, then the answer
    huginn        the answer, its core run as often as a drawn depth says
    coconut       steps become thoughts, stage by stage, after a beginning with all of them spoken
    interleaved   two thoughts stand for a step, the next one is spoken, and so on
    superposed    coconut whose thoughts are trained to hold the words of the step they stand for
    trm           cells are rewritten again and again; only where the form of a question is fixed

All that read text have one vocabulary and one base; what differs is what they are taught, stage by
stage, as shares of one budget of FLOPs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from inward.data.thoughts.curriculum import BlockLayout, Curriculum
from inward.data.thoughts.patterns import Cot, Fixed, NoCot, Prefix, Rhythm
from inward.methods.coconut.settings import CoconutSettings
from inward.studies.frontier.tasks import FrontierTask

START = 0.4
"""share of the budget in which arms with a curriculum speak every step"""
STAGES = 0.3
"""share of it for the stages between; the rest is for the last one"""
LONGEST_SPAN = 8
"""words that a superposed thought may hold"""


@dataclass(frozen=True)
class Arm:
    """One method. reads: "text" or "cells". unit: what an effort counts."""

    name: str
    about: str
    method: Literal["coconut", "huginn", "trm"] = "coconut"
    unit: str = ""

    @property
    def reads(self) -> str:
        """What a question is for it."""
        return "cells" if self.method == "trm" else "text"


ARMS = {
    arm.name: arm
    for arm in (
        Arm("plain", "the answer right after the question"),
        Arm("cot", "every step spoken"),
        Arm("pause", "learned pause tokens before the answer", unit="pause tokens"),
        Arm("huginn", "recurrent depth", "huginn", "recurrences"),
        Arm("coconut", "thoughts for steps", unit="thoughts"),
        Arm("interleaved", "thoughts, a spoken step, thoughts", unit="thoughts a block"),
        Arm("superposed", "thoughts that hold the words of their step", unit="thoughts"),
        Arm("trm", "an answer in cells, rewritten", "trm", "supervision steps"),
    )
}


def why_not(arm: Arm, task: FrontierTask) -> str:
    """Why an arm has no run on a task; "" if it has."""
    if arm.reads == "cells" and task.grid_task() is None:
        return f"the questions of {task.name} have no fixed form"
    most = LONGEST_SPAN * task.thoughts
    if arm.name == "superposed" and task.longest_step > most:
        return (
            f"a step of {task.name} has up to {task.longest_step} words, {task.thoughts} thoughts "
            f"hold {most}"
        )
    return ""


@dataclass(frozen=True)
class Lesson:
    """What a text arm is taught. shares: (stage, share of the budget) in their order."""

    curriculum: Curriculum
    shares: tuple[tuple[int, float], ...] = ((0, 1.0),)
    settings: CoconutSettings = field(default_factory=CoconutSettings)


def lesson(arm: Arm, task: FrontierTask) -> Lesson:
    """Curriculum and shares of an arm on a task."""
    stages = max(1, task.max_steps)
    prefix = Prefix(c=task.thoughts, max_stage=stages)
    if arm.name == "cot":
        return Lesson(Curriculum(Cot()))
    if arm.name == "pause":
        return Lesson(Curriculum(Fixed(stages * task.thoughts), BlockLayout("pause", "none")))
    if arm.name == "interleaved":
        rhythm = Rhythm(2, hidden=1, sentences=1, blocks=max(1, (stages + 1) // 2))
        return Lesson(Curriculum(rhythm), _shares(rhythm.last_stage))
    if arm.name == "coconut":
        return Lesson(Curriculum(prefix), _shares(prefix.last_stage))
    if arm.name == "superposed":
        span = -(-task.longest_step // task.thoughts)
        settings = CoconutSettings(feedback="mixture", superpose=0.5, span=span)
        return Lesson(Curriculum(prefix, span=span), _shares(prefix.last_stage), settings)
    return Lesson(Curriculum(NoCot()))


def _shares(last: int) -> tuple[tuple[int, float], ...]:
    """Stage 0, the stages between in equal parts, and the last one."""
    between = [(stage, STAGES / (last - 1)) for stage in range(1, last)]
    return (0, START), *between, (last, 1.0 - START - (STAGES if between else 0.0))


# --------------------------------------------------------------------------------------------------
# Efforts


@dataclass(frozen=True)
class Dial:
    """One effort: how much of the arm's unit, and what that means for who asks.

    ask: in place of what the model was trained to be asked (Coconut's opening and switch).
    own: options of the method. trained: it is as in training.
    """

    amount: int
    ask: Mapping[str, Any] | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = False


def dials(arm: Arm, task: FrontierTask, ask: Mapping[str, Any], usual: int) -> list[Dial]:
    """The efforts at which an arm is scored, from little to much.

    ask: as the model was trained to be asked (`CoconutRecipe.asked`). usual: the effort of
    training, in the arm's unit; 0 where there is no dial.
    """
    if not arm.unit:
        return [Dial(0, trained=True)]
    amounts = sorted({1, 2, 4, 8, usual} | ({16} if arm.method == "huginn" else set()))
    if arm.method in ("huginn", "trm"):
        never = {"halt": "never"}
        return [Dial(k, None, {"max_steps": k, **never}, k == usual) for k in amounts]
    return [Dial(k, _asked(arm, ask, k), {}, k == usual) for k in amounts]


def _asked(arm: Arm, ask: Mapping[str, Any], amount: int) -> dict[str, Any]:
    """The same way to be asked with another number of thoughts (or pause tokens)."""
    if arm.name == "pause":  # `ask` opens with pause tokens and nothing else
        (_, ids), *_ = ask["opening"]
        return {**ask, "opening": [["text", [ids[0]] * amount]]}
    opening = [[kind, amount if kind == "latent" else what] for kind, what in ask["opening"]]
    switch = dict(ask["switch"])
    if "thoughts" in switch:
        switch["thoughts"] = [amount] * len(switch["thoughts"])
    return {**ask, "opening": opening, "switch": switch}


def usual_effort(arm: Arm, task: FrontierTask, shape: Any) -> int:
    """The effort that training knows, in the arm's unit."""
    if arm.method == "huginn":
        return shape.depth
    if arm.method == "trm":
        return shape.n_sup
    if arm.name == "interleaved":
        return 2
    return max(1, task.max_steps) * task.thoughts if arm.unit else 0


def chosen(names: Sequence[str] | None, known: Mapping[str, Any], what: str) -> list[str]:
    """Names that were asked for, all of them by default.

    Raises ValueError for one that there is not.
    """
    for name in names or ():
        if name not in known:
            raise ValueError(f"there is no {what} {name!r}; there are {', '.join(known)}")
    return list(names or known)
