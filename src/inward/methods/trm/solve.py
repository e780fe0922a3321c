"""Solving with TRM: how long to think about each puzzle, how often, and which answer to believe.

The paper runs N_sup steps for everybody. Here chains (attempts, `asked.py`) of all puzzles share a
working batch (`work.py`) and leave it when they halt; `solve` is a loop over that work for a set of
puzzles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from inward.common import halting
from inward.common.thinking import Answer, Request, run
from inward.common.trace import Trace
from inward.data.puzzles.puzzles import Symmetry
from inward.methods.trm.asked import Verify
from inward.methods.trm.door import begin

if TYPE_CHECKING:
    from inward.methods.trm.model import TRM


@dataclass
class Solution:
    """One answer a puzzle, in the order of the questions; B puzzles of L cells.

    answers: (B, L) int64 tokens.
    q: (B,) halting logit of the chosen chain; sigmoid(q) is the model's belief that the answer is
        right.
    confidence: (B, L) probability of each answered token.
    steps: (B,) supervision steps of the chosen chain;  halted: (B,) it stopped by the rule, not by
        the budget.
    answered: (B,) False where the model abstains (the answer is still there to look at).
    evaluations, flops: (B,) network evaluations and FLOPs of all chains of the puzzle.
    candidates: per puzzle the distinct answers of its chains with their votes, most votes first.
    traces: per puzzle the chosen chain's trace, as asked for.
    """

    answers: Tensor
    q: Tensor
    confidence: Tensor
    steps: Tensor
    halted: Tensor
    answered: Tensor
    evaluations: Tensor
    flops: Tensor
    candidates: list[list[tuple[np.ndarray, int]]] = field(default_factory=list)
    traces: list[Trace] | None = None


def solve(
    model: TRM,
    inputs: Tensor | np.ndarray,
    *,
    identifiers: Tensor | np.ndarray | None = None,
    grid: tuple[int, int] | None = None,
    max_steps: int | None = None,
    halt: str | halting.Rule = "q+stable",
    rollouts: int = 1,
    noise: float = 0.0,
    noise_on: Literal["z", "y", "both"] = "z",
    noise_when: Literal["steps", "start"] = "steps",
    symmetries: Sequence[Symmetry] = (),
    select: Literal["q", "majority"] | Verify = "q",
    first_to_halt: bool = False,
    until_right: bool = False,
    abstain_below: float | None = None,
    abstain: bool | Verify = False,
    seed: int = 0,
    batch_size: int = 256,
    trace: bool = False,
    progress: bool = False,
) -> Solution:
    """Answer puzzles.

    Args:
        inputs: (B, L) tokens.
        identifiers: (B,) rows of the identifier table (default 0).
        grid: rows and columns, for lengths the model was not built for and that are no squares.
        max_steps: the budget per chain, free of what training used (default N_sup).
        halt: "q" (the paper's), "stable", "q+stable", "never", or a rule (inward.common.halting).
            The default waits until the believed answer has stood still for one step: the head alone
            fires early.
        rollouts: chains per puzzle and symmetry. The first is free of noise, so that 1 is the
            plain model.
        noise: sigma, in units of the latent (whose entries have mean square 1).
        noise_on: which latent gets the noise; summaries of PTRM disagree, "z" leaves the current
            answer alone.
        noise_when: "steps": before each step; "start": before the first alone, so that a rollout is
            a new attempt and not a shaken one (for models trained with `start_noise`).
        symmetries: chains also see the puzzle through each of these; the untouched puzzle is
            always one.
        select: "q": the chain that believes most in its answer; "majority": most votes, then
            belief; or a verifier: an answer it accepts wins, then belief.
        first_to_halt: the chains of a puzzle start together; the first that halts decides, and
            ends the others.
        until_right: likewise, but the first answer that `select`, a verifier, accepts ends its
            puzzle. It stops the work and picks among answers, it never changes one.
        abstain_below: withhold answers believed less than this (or, with a verifier, not accepted).
        abstain: withhold answers that a verifier (the rules) does not accept; True, where there
            are no rules: those that not more than half of the chains agree on, or that are
            believed less than 1/2.
        seed: of the noise.
        batch_size: rows of a forward at most.
        trace: keep every step of every chain and return the chosen ones.
    Raises:
        ValueError: shapes, tokens or options out of range, before any work. What a rule or a
            verifier raises.
    """
    tokens = _cells(inputs)
    names = _identifiers(model, identifiers, len(tokens))
    work = begin(model, batch_size=batch_size, rewrites=False)
    own = {
        "grid": grid,
        "max_steps": max_steps,
        "halt": halt,
        "rollouts": rollouts,
        "noise": noise,
        "noise_on": noise_on,
        "noise_when": noise_when,
        "symmetries": symmetries,
        "select": select,
        "first_to_halt": first_to_halt,
        "until_right": until_right,
        "abstain_below": abstain_below,
        "abstain": abstain,
    }
    recorded = frozenset() if trace else None
    noisy = rollouts != 1 and noise != 0
    numbers = [
        work.add(
            Request(
                row,
                seed=seed,
                trace=recorded,
                own={**own, "identifier": name, "puzzle": puzzle if noisy else 0},
            )
        )
        for puzzle, (row, name) in enumerate(zip(tokens, names, strict=True))
    ]
    for _ in _followed(run(work), len(tokens), progress):
        pass
    return _solution([work.result(number) for number in numbers], trace)


def _cells(inputs: Tensor | np.ndarray) -> np.ndarray:
    tokens = inputs.cpu().numpy() if isinstance(inputs, Tensor) else np.asarray(inputs)
    if tokens.ndim != 2 or tokens.size == 0:
        raise ValueError(
            f"solve: inputs have shape {tokens.shape}, expected (puzzles, cells), both at least 1; "
            "for one puzzle pass tokens[None]"
        )
    return tokens


def _identifiers(model: TRM, identifiers: Any, num: int) -> list[int]:
    """One a puzzle; a model without a table has no use for those of a data set."""
    if identifiers is None:
        return [0] * num
    names = np.asarray(identifiers.cpu() if isinstance(identifiers, Tensor) else identifiers)
    if names.shape != (num,):
        raise ValueError(
            f"solve: identifiers have shape {names.shape}, expected one a puzzle: ({num},)"
        )
    return names.tolist() if model.settings.num_identifiers else [0] * num


def _followed(events: Iterator[Any], num: int, progress: bool) -> Iterator[Any]:
    """The events, with a bar of the puzzles that have ended."""
    from tqdm import tqdm

    with tqdm(total=num, disable=not progress, unit="puzzle", desc="solve") as bar:
        for event in events:
            bar.update(event.kind == "end")
            yield event


def _solution(answers: Sequence[Answer], trace: bool) -> Solution:
    for answer in answers:
        if answer.error is not None:
            raise answer.details["exception"]
    details = [answer.details for answer in answers]
    return Solution(
        answers=torch.tensor([answer.tokens for answer in answers]),
        q=torch.tensor([told["q"] for told in details]),
        confidence=torch.tensor([told["confidence"] for told in details]),
        steps=torch.tensor([answer.steps for answer in answers]),
        halted=torch.tensor([answer.stopped == "halted" for answer in answers]),
        answered=torch.tensor([told["answered"] for told in details]),
        evaluations=torch.tensor([a.cost.evaluations for a in answers], dtype=torch.float64),
        flops=torch.tensor([a.cost.flops for a in answers], dtype=torch.float64),
        candidates=[
            [(np.array(tokens, np.int64), votes) for tokens, votes in told["candidates"]]
            for told in details
        ],
        traces=[answer.trace for answer in answers if answer.trace] if trace else None,
    )
