"""The part of `inward demo` that shows depth: a Huginn model follows arrows, a hop a recurrence.

One question is shown with what the model would say after each recurrence, then a table: for each
number of hops, how many questions it answers and how many recurrences it took before its output
stood still. Questions come from a seed far above those of training and of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from inward.common.halting import KL
from inward.data.texts.text import joined, questions
from inward.evals.depth import exits

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM
    from inward.recipes.huginn import HuginnRecipe

NUM_QUESTIONS, MAX_STEPS = 50, 32
RULE, RULE_NAME = KL(5e-4), "kl 5e-4"


@dataclass(frozen=True)
class DepthDemo:
    """One line of the table: questions of one number of hops; steps is the mean."""

    hops: int
    trained: bool
    num: int
    right: int
    steps: float


def depth_demo(
    name: str,
    model: HuginnForCausalLM,
    recipe: HuginnRecipe,
    *,
    seed: int,
    num: int | None = None,
    console: Console,
) -> list[DepthDemo]:
    """Show one question and print the table.

    num: questions of each number of hops; None: as many as take seconds.
    """
    rows: Any = recipe.task().rows
    trained: range = recipe.data.trained()  # pyright: ignore[reportAttributeAccessIssue]
    hardest = rows.hardest
    count = NUM_QUESTIONS if num is None else num
    held = joined(questions(rows, count, difficulty=k, seed=seed) for k in range(1, hardest + 1))
    (found,) = exits(model, held, {RULE_NAME: RULE}, max_steps=MAX_STEPS, seed=seed)
    _show(name, model, recipe, held.prompt(len(held) - 1), hardest, seed, console)
    lines = []
    for k in range(1, hardest + 1):
        own = held.difficulty == k
        right, steps = int(found.right[own].sum()), float(found.steps[own].mean())
        lines.append(DepthDemo(k, k in trained, count, right, steps))
    console.print(_table(name, lines))
    return lines


@torch.no_grad()
def read_outs(
    model: HuginnForCausalLM, prompt: np.ndarray, *, num_steps: int, seed: int
) -> list[tuple[int, float]]:
    """The likeliest next token after each recurrence, and its probability."""
    e, context = model.embed(torch.from_numpy(prompt)[None])
    s = model.initial_state(e, seed=seed, positions=context.positions)
    said = []
    for i in range(num_steps):
        s = model.iterate(s, e, context, recurrence=i)
        share = model.read_out(s, context, logits_to_keep=1)[1][0, -1].float().softmax(-1)
        said.append((int(share.argmax()), float(share.max())))
    return said


def _show(
    name: str,
    model: HuginnForCausalLM,
    recipe: HuginnRecipe,
    prompt: np.ndarray,
    hops: int,
    seed: int,
    console: Console,
) -> None:
    task = recipe.task()
    said = read_outs(model, prompt, num_steps=hops + 3, seed=seed)
    console.print(f"{hops} hops, model {name}: which node comes next?", style="bold")
    console.print(f"  {task.format(prompt)}", highlight=False)
    answer = task.solve(prompt)
    for i, (token, share) in enumerate(said, start=1):
        word = _word(task, token)
        mark = "right" if token == answer else ""
        bar = "#" * round(20 * share)
        console.print(f"  after {i:>2}: {word} {share:>4.0%} {bar:<20} {mark}", highlight=False)
    console.print()


def _word(task: Any, token: int) -> str:
    """A node's letter, or "?": early on the likeliest token may be no part of a walk."""
    try:
        return task.word(token)
    except ValueError:
        return "?"


def _table(name: str, lines: list[DepthDemo]) -> Table:
    shown = Table(
        box=SIMPLE,
        title=f"{name}: more hops, more thought",
        caption=f"recurrences: mean until the output stands still ({RULE_NAME})",
    )
    for column in ("hops", "trained on", "right", "recurrences"):
        shown.add_column(column, justify="right")
    for line in lines:
        shown.add_row(
            str(line.hops),
            "yes" if line.trained else "no",
            f"{line.right}/{line.num}",
            f"{line.steps:.1f}",
        )
    return shown
