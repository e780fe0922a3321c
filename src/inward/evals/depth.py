"""Does more thought give better answers? Accuracy of a recurrent-depth model by its depth and the
question's difficulty.

    curve = accuracy_by_depth(model, {k: questions(rows, 500, difficulty=k, seed=1) ...}, (1, 2, 4))
    spent = exits(model, held_out, {"kl": KL(), "latent": LatentChange(0.03)}, max_steps=32)
    same  = path_independence(model, held_out, depths=(8, 16), seeds=(0, 1))

Everything here is the slow obvious way: all rows run to the last depth, every depth is read out, a
rule's exit is found in what was computed. `engine_exits` asks the engine that lets rows leave early
(`Engine` of methods/huginn/generate.py) the same, and must agree.

An answer is right if every token of it is the likeliest one given the right tokens before it, which
is what greedy decoding at that depth would produce.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inward.common import IGNORE
from inward.common.halting import DepthView, Rule, Seen, depth_rule, verdict
from inward.data.texts.text import TextQuestions
from inward.evals.stats import rank_correlation, wilson
from inward.methods.huginn.depths import batches_of, right_by_depth, state_seeds

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM


@dataclass(frozen=True)
class Curve:
    """Accuracy of one difficulty at each depth, with 95 % Wilson intervals."""

    difficulty: int
    num: int
    depths: tuple[int, ...]
    accuracy: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]


def accuracy_by_depth(
    model: HuginnForCausalLM,
    sets: Mapping[int, TextQuestions],
    depths: Sequence[int],
    *,
    seed: int = 0,
) -> list[Curve]:
    """One curve per difficulty; every question is run once, to the largest depth.

    Raises ValueError for depths that are not rising from 1 or more.
    """
    curves = []
    for difficulty, held in sets.items():
        right = right_by_depth(model, held, depths, seed=seed)
        found = [wilson(int(column.sum()), len(column)) for column in right.T]
        curves.append(
            Curve(
                difficulty=int(difficulty),
                num=len(held),
                depths=tuple(depths),
                accuracy=tuple(share.value for share in found),
                intervals=tuple((share.low, share.high) for share in found),
            )
        )
    return curves


# --------------------------------------------------------------------------------------------------
# Exits


@dataclass(frozen=True, eq=False)
class Exits:
    """When a rule stopped each question, and whether the answer was right then.

    steps: (N,) recurrences taken (mean over the answer's tokens);  right: (N,) bool.
    """

    rule: str
    max_steps: int
    steps: np.ndarray
    right: np.ndarray

    def row(self, difficulty: np.ndarray) -> dict[str, Any]:
        """The numbers of a results table; `difficulty` (N,) as in the questions."""
        return {
            "rule": self.rule,
            "max_steps": self.max_steps,
            "mean_steps": float(self.steps.mean()),
            "share_of_depth": float(self.steps.mean() / self.max_steps),
            "accuracy": float(self.right.mean()),
            "steps_by_difficulty": {
                int(k): float(self.steps[difficulty == k].mean()) for k in np.unique(difficulty)
            },
            "rank_correlation": rank_correlation(self.steps, difficulty),
        }


@torch.no_grad()
def exits(
    model: HuginnForCausalLM,
    held: TextQuestions,
    rules: Mapping[str, Rule | str],
    *,
    max_steps: int,
    min_steps: int = 1,
    seed: int = 0,
) -> list[Exits]:
    """Where each rule would have stopped, from one run of all questions to `max_steps`.

    For questions with an answer of one token: a prompt takes one decision
    (`inward.common.halting`).

    Raises ValueError for longer answers, or a rule that can never fire within the budget.
    """
    if ((held.labels != IGNORE).sum(1) != 1).any():
        raise ValueError("these answers have several tokens; ask engine_exits")
    asked = {
        name: depth_rule(rule, max_steps=max_steps, min_steps=min_steps)
        for name, rule in rules.items()
    }
    found = {
        name: Exits(name, max_steps, np.zeros(len(held)), np.zeros(len(held), dtype=bool))
        for name in asked
    }
    for rows, ids, labels in batches_of(held, model):
        steps, tops = _run_prompts(model, ids[:, :-1], asked, max_steps, min_steps, rows, seed)
        for name, at in steps.items():
            chosen = tops.gather(1, at[:, None] - 1)[:, 0]
            found[name].steps[rows] = at.cpu().numpy()
            found[name].right[rows] = (chosen == labels[:, -1]).cpu().numpy()
    return list(found.values())


def engine_exits(
    model: HuginnForCausalLM,
    held: TextQuestions,
    rule: Rule | str,
    *,
    max_steps: int,
    min_steps: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    **options: Any,
) -> Exits:
    """As `exits`, by generating the answers with the engine; answers of any length.

    options: see `inward.methods.huginn.generate.generate` (sharing, warm, check_every, ...).
    """
    from inward.methods.huginn.generate import generate

    answers = [held.answer(i).tolist() for i in range(len(held))]
    seeds = (seed + state_seeds(np.arange(len(held)))).tolist()
    made = generate(
        model,
        [held.prompt(i).tolist() for i in range(len(held))],
        max_new_tokens=max(map(len, answers)),
        max_steps=max_steps,
        min_steps=min_steps,
        halt=rule,
        eos_token_id=(),
        state_seed=seeds,
        batch_size=batch_size,
        **options,
    )
    steps = [float(s[: len(a)].double().mean()) for s, a in zip(made.steps, answers, strict=True)]
    right = [g[: len(a)] == a for g, a in zip(made.answers, answers, strict=True)]
    return Exits(str(rule), max_steps, np.array(steps), np.array(right))


def _run_prompts(
    model: HuginnForCausalLM,
    ids: Tensor,
    rules: Mapping[str, Rule],
    max_steps: int,
    min_steps: int,
    rows: np.ndarray,
    seed: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """(rule -> (B,) exit step, at most max_steps; (B, max_steps) likeliest next token)."""
    num = len(ids)
    e, context = model.embed(ids)
    s = model.initial_state(e, seed=seed + state_seeds(rows), positions=context.positions)
    seen = {name: Seen(num, model.config.vocab_size, ids.device) for name in rules}
    steps = {name: torch.full((num,), max_steps, device=ids.device) for name in rules}
    open_rows = {name: torch.ones(num, dtype=torch.bool, device=ids.device) for name in rules}
    all_rows, tops = torch.arange(num, device=ids.device), []
    for i in range(max_steps):
        before, s = s, model.iterate(s, e, context, recurrence=i)
        logits = model.read_out(s, context, logits_to_keep=1)[1][:, -1]
        tops.append(logits.argmax(-1))
        if i + 1 < min_steps:
            continue
        for name, rule in rules.items():
            view = DepthView(
                step=torch.full_like(all_rows, i + 1),
                index=torch.zeros_like(all_rows),
                text=all_rows,
                state=s,
                before=before,
                read_out=lambda logits=logits: logits,
                seen=seen[name],
                rows=all_rows,
            )
            fires = verdict(rule, view) & open_rows[name]
            steps[name] = torch.where(fires, i + 1, steps[name])
            open_rows[name] &= ~fires
            seen[name].update(view)
    return steps, torch.stack(tops, dim=1)


# --------------------------------------------------------------------------------------------------
# Path independence


@dataclass(frozen=True)
class Path:
    """How much the end depends on the start, over pairs of initial states.

    distance: |s_r - s'_r| / |s_r|, mean over the tokens and questions; at s_0 it is about 1.4.
    same_answer: share of questions with the same likeliest answer.
    """

    depth: int
    distance: float
    same_answer: float


@torch.no_grad()
def path_independence(
    model: HuginnForCausalLM, held: TextQuestions, *, depths: Sequence[int], seeds: tuple[int, int]
) -> list[Path]:
    """Run every question from two initial states, and compare after each of `depths`."""
    from inward.methods.huginn.train import relative_change

    if not depths or min(depths) < 1:
        raise ValueError(f"depths are {list(depths)}; give numbers from 1 on")
    sums = {depth: np.zeros(3) for depth in depths}
    for rows, ids, labels in batches_of(held, model):
        e, context = model.embed(ids[:, :-1])
        numbers = state_seeds(rows)
        pair = [
            model.initial_state(e, seed=seed + numbers, positions=context.positions)
            for seed in seeds
        ]
        counted = labels[:, 1:] != IGNORE
        for i in range(max(depths)):
            pair = [model.iterate(s, e, context, recurrence=i) for s in pair]
            if i + 1 in sums:
                tops = [model.read_out(s, context)[1].argmax(-1) for s in pair]
                same = ((tops[0] == tops[1]) | ~counted).all(1)
                moved = relative_change(*pair)
                sums[i + 1] += [float(moved.sum()), float(same.sum()), len(rows)]
    return [
        Path(depth, float(moved / num), float(same / num))
        for depth, (moved, same, num) in sums.items()
    ]
