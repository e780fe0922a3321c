"""How the tokens of one text think together (a prompt, or one token), and what rules and traces see
of it. The loops share this.

Shape letters: B rows, S tokens, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inward.common import halting
from inward.common.halting import DepthView, Seen
from inward.methods.huginn.cache import Place, RecurrentCache
from inward.methods.huginn.context import Context, rotary_of
from inward.methods.huginn.costs import HuginnCosts
from inward.methods.huginn.texts import HuginnText, first_states

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM


@dataclass
class Thought:
    """What became of the tokens that thought together.

    s: (1, S, d) raw final state;  steps: recurrences;  logits: (V,) of the last token.
    """

    s: Tensor
    steps: int
    logits: Tensor


def think(
    model: HuginnForCausalLM,
    text: HuginnText,
    e: Tensor,
    context: Context,
    state: Tensor | None,
    seen: Seen,
    costs: HuginnCosts,
) -> Thought:
    """Run the tokens e (1, S, d) of one text from `state` (None: cold) until their rule fires."""
    plan = text.plan
    s = first_states(model, [text], e, context.positions) if state is None else state
    S, index = e.shape[1], len(text.tokens)
    first = text.length - S
    text.spend(0, costs.prelude(first, S))
    step, done, view = 0, False, None
    while not done:
        before, s = s, model.iterate(s, e, context, recurrence=step)
        step += 1
        view = view_of(model, context, before, s, [text], [step], seen, [0])
        asks = plan.asks(step, index)
        done = text.enough(step)
        done |= asks and bool(halting.verdict(plan.rule, view))
        score = halting.score(plan.rule, view) if asks and plan.watched else None
        seen.update(view)
        text.spend(1, costs.core(first, S))
        logits = view.logits[0] if plan.num_lens else None
        if view.was_read:
            text.spend(0, costs.read_out(first, S))
        if plan.watched:
            exit_at = None if score is None else score[0]
            if "prompt" in (plan.trace or ()) and index == 0:
                text.prompt_seen(s[0], before[0], model.read_out(s, context)[1][0])
                text.spend(0, costs.read_out(first, S, S))
            text.recur(step, float(view.change), s[0, -1], logits, exit_at)
    assert view is not None
    if not view.was_read:
        text.spend(0, costs.read_out(first, S))
    return Thought(s, step, view.logits[0])


def view_of(
    model: HuginnForCausalLM,
    context: Context,
    before: Tensor,
    s: Tensor,
    texts: Sequence[HuginnText],
    steps: list[int],
    seen: Seen,
    seats: list[int],
) -> DepthView:
    """What a rule may know of rows after a recurrence."""
    device = s.device
    return DepthView(
        step=torch.tensor(steps, device=device),
        index=torch.tensor([len(text.tokens) for text in texts], device=device),
        text=torch.tensor([text.number for text in texts], device=device),
        state=s,
        before=before,
        read_out=lambda: model.read_out(s, context, logits_to_keep=1)[1][:, -1],
        seen=seen,
        rows=torch.tensor(seats, device=device),
    )


def by_rule(texts: Sequence[HuginnText], asked: Sequence[int]) -> list[list[int]]:
    """The `asked` of these texts, those with the same rule together."""
    groups: list[list[int]] = []
    for i in asked:
        rule = texts[i].plan.rule
        for group in groups:
            other = texts[group[0]].plan.rule
            if rule is other or (type(rule) is type(other) and rule == other):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def context_at(
    model: HuginnForCausalLM, cache: RecurrentCache, rows: Tensor, starts: Tensor, num_new: int = 1
) -> Context:
    """The context of `num_new` tokens of each of the cache rows (B,), at the columns from starts
    (B,) on (both int64); a row may be named twice, with other columns.

    Each token looks at its row up to itself. Positions are columns: rows have no padding.
    """
    same, width = bool((starts == starts[0]).all()), int(starts.max()) + num_new
    place = Place(rows, int(starts[0]) if same else starts.to(rows.device), num_new, width)
    columns = (starts[:, None] + torch.arange(num_new)).to(rows.device)
    mask = None
    if num_new > 1 or not same:
        hidden = torch.arange(width, device=rows.device) > columns[..., None]
        mask = torch.zeros(hidden.shape, device=rows.device).masked_fill_(hidden, -torch.inf)
        mask = mask[:, None]
    rotary = rotary_of(model.config, columns)
    lengths = tuple((starts + 1).tolist()) if num_new == 1 else None
    return Context(columns, rotary, mask, False, cache, place, lengths)
