"""Generation with Huginn where each token takes the depth it needs (arXiv 2502.05171, section 6),
one text at a time and many at once.

A token's state runs through the core block until a halting rule (`inward.common.halting`) says it
is done, or until `max_steps`; then it is read out and the next token begins. A prompt takes one
decision together. `generate_one` is that sentence, for one text.

In a batch a token that is done early would have to wait for the others, so halting would save
little. The `Engine` keeps the loop full instead (continuous depth batching, after arXiv
2608.09444): a *seat* of the cache holds one text, more texts have seats than the loop has rows, and
each pass of the core carries rows at different recurrences, each reading and writing its own slots.
Rows may differ in everything but the sharing of slots: depth, rule, sampling, starts.

    waiting prompts -> [prefill] -> ready -> [core, a recurrence a pass] -> done -> [read-out] --+
                                      ^                                                          |
                                      +------------------- [prelude of the new token] <----------+

Read-out and prelude run when the loop would otherwise lack rows, so that they too come in batches.
A row's numbers do not depend on what shares its pass, except by rounding: `generate` says what
`generate_one` says, unless two logits or a threshold are closer than that.

`speculate` and `parallel` generate in other ways; `texts`, `think` and `loop` hold what all share.

Shape letters: B rows in a pass, S tokens, d width, V vocabulary, K columns of the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inward.common import halting
from inward.common.halting import Seen
from inward.common.requests import Prompts
from inward.common.sampling import Sampling
from inward.common.thinking import Request, check_acts, run
from inward.methods.huginn import cpu as huginn_cpu
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.context import Context
from inward.methods.huginn.costs import HuginnCosts
from inward.methods.huginn.loop import HuginnLoop
from inward.methods.huginn.options import NAME, OPTIONS
from inward.methods.huginn.sharing import Sharing
from inward.methods.huginn.texts import (
    HuginnGenerated,
    HuginnPlan,
    HuginnText,
    Start,
    Warm,
    choose,
    first_states,
    generated,
    model_prompts,
    plans,
    texts_of,
)
from inward.methods.huginn.think import Thought, by_rule, context_at, think, view_of

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM

OnToken = Callable[[int, int, int], Any]
"""(row, token, recurrences that it took), called as soon as the token stands"""
PASSES = 4
"""Passes of the core in one step at most, while none of its rows is done: who arrives or cancels
waits for no more, and to enter a step costs little beside them."""


def generate(
    model: HuginnForCausalLM,
    input_ids: Prompts,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 64,
    max_steps: int | None = None,
    halt: str | halting.Rule = "never",
    min_steps: int = 1,
    check_every: int = 1,
    halt_in_prompt: bool = True,
    sharing: str | Sharing = "deepest",
    start: Start = "noise",
    warm: Warm | None = None,
    sampling: Sampling | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    state_seed: int | Sequence[int] = 0,
    batch_size: int = 16,
    in_flight: int | None = None,
    trace: bool | Collection[str] = False,
    on_token: OnToken | None = None,
    packed: bool | None = None,
) -> HuginnGenerated:
    """Continue prompts, each token as deep as the halting rule asks.

    Args:
        input_ids: (B, S) tokens with their attention_mask (B, S), padded on either side; or B
            sequences of any length. More than `in_flight` of them wait for their turn.
        max_steps: recurrences a token may take; default: the mean of the configuration.
        halt: "never", "entropy", "kl", "minp-kl", "latent", "cosine", "stable", a rule of
            `inward.common.halting`, or a function (DepthView) -> (B,) bool.
        min_steps, check_every: the rule is asked after recurrence min_steps, min_steps +
            check_every, ...; it compares a state with the one before, an output with the last one
            looked at.
        halt_in_prompt: False: prompts take max_steps.
        sharing: which recurrences share cache slots ("deepest", "shared", "ring:4", ...).
        start: what a token's state starts from: "noise", the model's initial distribution, drawn
            for (state_seed, position); or "zero".
        warm: None; "raw": a new token starts from the last state of the token before it (the
            paper's continuous chain of thought, section 6.3); "normed": from that state after the
            final norm, as the reference's plain path does. Prompts start as `start` says.
        sampling: default: what the model's generation config says, greedy if nothing.
        eos_token_id: tokens that end a text; default: the generation config's; () for none.
        state_seed: one for all rows, or one a row.
        batch_size: rows of a pass.
        in_flight: texts in work, at least batch_size; default: twice as many. Each takes cache;
            the more there are, the larger the batches in which tokens are read out.
        trace: True: a step a token; names: also one for each recurrence, with its "lens" (the
            likeliest tokens), its "state".
        on_token: called with (row, token, recurrences) as soon as a token stands.
        packed: whether weights are packed for a CPU first, see `cpu.packed`; None: if they
            can be and take less than 4 GiB.
    Raises:
        ValueError: bad prompts or options, before any work.
    """
    prompts = model_prompts(model, input_ids, attention_mask)
    rules = {"min_steps": min_steps, "check_every": check_every, "halt_in_prompt": halt_in_prompt}
    check_acts(NAME, OPTIONS, model, Request(None, own={"halt": halt, **rules}))
    chosen = plans(
        model,
        len(prompts),
        max_new_tokens=max_new_tokens,
        max_steps=max_steps,
        halt=halt,
        min_steps=min_steps,
        check_every=check_every,
        halt_in_prompt=halt_in_prompt,
        sharing=sharing,
        start=start,
        warm=warm,
        sampling=sampling,
        eos_token_id=eos_token_id,
        state_seed=state_seed,
        trace=trace,
    )
    sizes: dict[str, Any] = {"batch_size": batch_size, "in_flight": in_flight}
    engine = Engine(model, chosen[0].sharing, packed=packed, **sizes)
    texts = texts_of(chosen, prompts)
    finish(engine, texts, on_token)
    return generated(texts, engine.passes, engine.meta())


def finish(loop: HuginnLoop, texts: Sequence[HuginnText], on_token: OnToken | None) -> None:
    """Run texts through a loop of their own."""
    loop.enter(texts)
    for event in run(loop):
        if on_token is not None and event.kind == "word":
            (token,) = event.tokens
            on_token(event.request, token, int(event.scores["steps"]))


# --------------------------------------------------------------------------------------------------
# One text: the obvious version


def generate_one(
    model: HuginnForCausalLM,
    prompt: list[int],
    chosen: HuginnPlan,
    row: int = 0,
    *,
    packed: bool | None = False,
) -> HuginnText:
    """Generate for one prompt, token by token, as row `row` of `generate`."""
    text = texts_of([chosen] * (row + 1), [[]] * row + [prompt])[row]
    cache = RecurrentCache(chosen.sharing, num_recurrences=chosen.max_steps)
    seen = Seen(1, model.config.vocab_size, model.device)
    costs, state, ids = HuginnCosts(model.config, model.dtype), None, prompt
    model = huginn_cpu.thinking(model, packed)
    with torch.inference_mode():
        while not text.stopped:
            tokens = torch.tensor([ids], device=model.device)
            e, context = model.embed(tokens, cache=cache)
            seen.forget(torch.tensor([0]))
            thought = think(model, text, e, context, state, seen, costs)
            (token,) = choose([text], thought.logits[None])
            text.say(token, thought.steps, thought.logits)
            assert context.place is not None
            cache.commit(context.place, thought.steps)
            state, ids = chosen.next_state(model, thought.s), [token]
    return text


# --------------------------------------------------------------------------------------------------
# Many texts: rows at different recurrences in one pass


@dataclass
class Crew:
    """Who is in the loop, while these stay the same: their texts, where they are in tensors of all
    seats (B,), their embeddings (B, 1, d)."""

    texts: list[HuginnText]
    rows: Tensor
    e: Tensor

    @cached_property
    def quiet(self) -> bool:
        """No rule is asked and nothing recorded: a recurrence is only counted."""
        plans = [text.plan for text in self.texts]
        return not any(plan.watched or not isinstance(plan.rule, halting.Never) for plan in plans)


class Engine(HuginnLoop):
    """The loop that stays full. Seat i of the cache and of every tensor belongs to `self.texts[i]`.

    A seat is empty, or its newest token is said (not embedded yet), ready (embedded, waits for a
    place in the loop), in the loop, or done (waits to be read out). Until a token is committed the
    cache keeps no trace of it.
    """

    rows_carried = loop_passes = read_outs = 0

    def _furnish(self) -> None:
        super()._furnish()
        self.steps: list[int] = []
        self.fresh: list[bool] = []  # self.seen holds the output of the newest recurrence
        self.said: list[int] = []
        self.ready: deque[int] = deque()
        self.loop: list[int] = []
        self.done: list[int] = []
        model = self.model
        self.e = torch.zeros(0, 1, model.config.n_embd, dtype=model.dtype, device=self.device)
        self.s = self.e  # of the newest token, or the last of the one before
        self.seen = Seen(0, model.config.vocab_size, self.device)
        self.context: Context | None = None  # of the rows in the loop, while these stay the same
        self.crew = Crew([], self.rows([]), self.e)

    def meta(self) -> dict[str, float]:
        """loop_fill: mean rows of a pass over batch_size;  read_outs: calls of coda and head."""
        carried = self.loop_passes * self.batch_size
        fill = self.rows_carried / carried if carried else 1.0
        return {"loop_fill": fill, "read_outs": float(self.read_outs)}

    # -- seats

    def _grow(self, num_seats: int) -> None:
        super()._grow(num_seats)
        more = num_seats - len(self.texts)
        self.e, self.s = (torch.cat([t, t.new_zeros(more, *t.shape[1:])]) for t in (self.e, self.s))
        self.seen.grow(more)
        self.steps += [0] * more
        self.fresh += [False] * more
        self.context = None  # the cache counts its rows anew

    def _seat(self, seat: int, text: HuginnText, thought: Thought) -> None:
        self.s[seat] = thought.s[0, -1:]
        self.said.append(seat)

    def _leave(self, seat: int) -> None:
        if seat not in self.said:
            self._spend_core(seat)
        for group in (self.said, self.ready, self.loop, self.done):
            if seat in group:
                group.remove(seat)
        self.context = None

    def _spend_core(self, seat: int) -> None:
        """The recurrences of its newest token; a record has taken them one by one."""
        text, num = self.text(seat), self.steps[seat]
        if not text.plan.watched:
            text.spend(num, self.costs.core(text.length - 1), num, on="thinking")

    def _turn(self) -> None:
        if self.said:
            self._enter()
        while self.ready and len(self.loop) < self.batch_size:
            self.loop.append(self.ready.popleft())
            self.context = None
        if self.done and len(self.loop) < self.batch_size:
            self._settle()
        else:
            for _ in range(PASSES if self.loop else 0):
                self._recur()
                if self.done or self.told:
                    break

    # -- tokens

    def _enter(self) -> None:
        """The newest token of each seat is embedded and gets its first state."""
        seats, texts = self.said, [self.text(seat) for seat in self.said]
        rows = self.rows(seats)
        tokens = torch.tensor([[text.tokens[-1]] for text in texts], device=self.device)
        e, context = self.model.embed(tokens, cache=self.cache, rows=rows)
        self.e[rows], self.s[rows] = e, self._first(texts, rows, e, context)
        self.seen.forget(rows)
        for seat, text in zip(seats, texts, strict=True):
            self.steps[seat], self.fresh[seat] = 0, False
            text.spend(0, self.costs.prelude(text.length - 1), on="words")
        self.ready.extend(seats)
        self.said = []

    def _first(self, texts: list[HuginnText], rows: Tensor, e: Tensor, context: Context) -> Tensor:
        """(B, 1, d) what new tokens start from: cold, or where the token before has ended."""
        cold = first_states(self.model, texts, e, context.positions)
        if all(text.plan.warm is None for text in texts):
            return cold
        last = [
            text.plan.next_state(self.model, s)
            for text, s in zip(texts, self.s[rows].split(1), strict=True)
        ]
        return torch.cat([s if w is None else w for s, w in zip(cold.split(1), last, strict=True)])

    def _recur(self) -> None:
        """One pass of the core over the rows in the loop; those that are done leave it."""
        seats = self.loop
        if self.context is None:
            rows = self.rows(seats)
            self.context = self._context(seats, rows)
            self.crew = Crew([self.text(seat) for seat in seats], rows, self.e[rows])
        rows = self.crew.rows
        steps = [self.steps[seat] for seat in seats]
        same = min(steps) == max(steps)
        at = steps[0] if same else torch.tensor(steps, device=self.device)
        before = self.s[rows]
        s = self.model.iterate(before, self.crew.e, self.context, recurrence=at)
        after = [step + 1 for step in steps]
        finished = self._verdict(seats, after, before, s)
        self.s[rows] = s
        for seat, step in zip(seats, after, strict=True):
            self.steps[seat] = step
        self.passes += 1
        self.loop_passes += 1
        self.rows_carried += len(seats)
        if finished:
            self.done += finished
            self.loop = [seat for seat in seats if seat not in set(finished)]
            self.context = None

    def _verdict(self, seats: list[int], steps: list[int], before: Tensor, s: Tensor) -> list[int]:
        """The seats whose token is done, in the order of `seats`. Only those whose turn it is are
        asked."""
        texts, rows = self.crew.texts, list(zip(self.crew.texts, steps, strict=True))
        finished = [text.enough(step) for text, step in rows]
        if self.crew.quiet:
            return [seat for seat, done in zip(seats, finished, strict=True) if done]
        asked = [i for i, (text, n) in enumerate(rows) if text.plan.asks(n, len(text.tokens))]
        views, read, scores = [], dict[int, Tensor](), dict[int, float]()
        for group in by_rule(texts, asked):
            view = self._look(seats, steps, before, s, group)
            verdict = halting.verdict(texts[group[0]].plan.rule, view).tolist()
            views.append(view)
            if any(texts[i].plan.watched for i in group):
                seen = halting.score(texts[group[0]].plan.rule, view)
                scores |= dict(zip(group, seen or (), strict=False))
            for i, done in zip(group, verdict, strict=True):
                finished[i] |= done
            if view.was_read:
                read |= dict(zip(group, view.logits, strict=True))
        for view in views:  # all rules have answered: now what they saw may be written down
            self.read_outs += view.was_read
            self.seen.update(view)
        for i, (seat, text) in enumerate(zip(seats, texts, strict=True)):
            self.fresh[seat] = i in read
            if text.plan.watched:
                text.spend(1, self.costs.core(text.length - 1), on="thinking")
            if i in read:
                text.spend(0, self.costs.read_out(text.length - 1), on="thinking")
        self._record(seats, steps, before, s, read, scores)
        return [seat for seat, done in zip(seats, finished, strict=True) if done]

    def _record(
        self,
        seats: list[int],
        steps: list[int],
        before: Tensor,
        s: Tensor,
        read: dict[int, Tensor],
        scores: dict[int, float],
    ) -> None:
        """The recurrence in the records that hold it; what no rule has `read` is read for a lens,
        at the cost of the text that asked for it. `scores`: what the rules looked at."""
        texts = [self.text(seat) for seat in seats]
        watched = [i for i, text in enumerate(texts) if text.plan.watched]
        if not watched:
            return
        change = self._look(seats, steps, before, s, watched).change.tolist()
        lens = [i for i in watched if texts[i].plan.num_lens]
        if unread := [i for i in lens if i not in read]:
            logits = self._look(seats, steps, before, s, unread).logits
            read = read | dict(zip(unread, logits, strict=True))
            for i in unread:
                texts[i].spend(0, self.costs.read_out(texts[i].length - 1), on="thinking")
        for i, moved in zip(watched, change, strict=True):
            logits = read[i] if i in lens else None
            texts[i].recur(steps[i], moved, s[i, -1], logits, scores.get(i))

    def _look(
        self, seats: list[int], steps: list[int], before: Tensor, s: Tensor, chosen: list[int]
    ) -> halting.DepthView:
        """The view of some rows of the pass."""
        assert self.context is not None
        context = self.context
        if len(chosen) < len(seats):
            index = torch.tensor(chosen, device=s.device)
            context = context.select(index, len(seats))
            before, s = before[index], s[index]
        some = [seats[i] for i in chosen]
        texts, steps = [self.text(seat) for seat in some], [steps[i] for i in chosen]
        return view_of(self.model, context, before, s, texts, steps, self.seen, some)

    def _settle(self) -> None:
        """Read out the tokens that are done, and choose what follows them."""
        seats, rows = self.done, self.rows(self.done)
        texts = [self.text(seat) for seat in seats]
        logits = self._read_out(seats, rows)
        tokens = choose(texts, logits)
        place = self._context(seats, rows).place
        assert place is not None
        self.cache.commit(place, torch.tensor([self.steps[seat] for seat in seats]))
        self.done = []
        for i, (seat, text) in enumerate(zip(seats, texts, strict=True)):
            self._spend_core(seat)
            text.say(tokens[i], self.steps[seat], logits[i])
            if not self.end_if_stopped(seat):
                self.said.append(seat)

    def _read_out(self, seats: list[int], rows: Tensor) -> Tensor:
        """(B, V) output of the tokens that are done; what a rule has just read counts."""
        logits = self.seen.logits[rows]
        unread = [i for i, seat in enumerate(seats) if not self.fresh[seat]]
        if unread:
            index = torch.tensor(unread, device=rows.device)
            some = [seats[i] for i in unread]
            context = self._context(some, rows[index])
            _, read = self.model.read_out(self.s[rows[index]], context, logits_to_keep=1)
            logits[index] = read[:, -1].float()
            self.read_outs += 1
            for seat in some:
                text = self.text(seat)
                text.spend(0, self.costs.read_out(text.length - 1), on="words")
        return logits

    def _context(self, seats: list[int], rows: Tensor) -> Context:
        """The context of the newest tokens of these seats; each looks at its own columns."""
        starts = self.cache.lengths[torch.tensor(seats)]
        return context_at(self.model, self.cache, rows, starts)
