"""Generation with Huginn where each token takes the depth it needs (arXiv 2502.05171, section 6),
one text at a time and many at once.

A token's state runs through the core block until an exit rule (`inward.common.halting`) says it is
done, or until `max_steps`; then it is read out and the next token begins. A prompt takes one
decision together. `generate_one` is that sentence, for one text.

In a batch a token that is done early would have to wait for the others, so exits would save little.
`generate` keeps the loop full instead (continuous depth batching, after arXiv 2608.09444): a *seat*
of the cache holds one text, more texts have seats than the loop has rows, and each pass of the core
carries rows at different recurrences, each reading and writing its own slots.

    waiting prompts -> [prefill] -> ready -> [core, a recurrence a pass] -> done -> [read-out] --+
                                      ^                                                          |
                                      +------------------- [prelude of the new token] <----------+

Read-out and prelude run when the loop would otherwise lack rows, so that they too come in batches.
A row's numbers do not depend on what shares its pass, except by rounding: `generate` says what
`generate_one` says, unless two logits or a threshold are closer than that.

`speculate` and `parallel` generate in other ways; `texts` holds what all share.

Shape letters: B rows in a pass, S tokens, d width, V vocabulary, K columns of the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inward.common import halting
from inward.common.halting import DepthView, Seen
from inward.common.requests import Prompts
from inward.common.sampling import Sampling
from inward.methods.huginn import cpu as huginn_cpu
from inward.methods.huginn.cache import Place, Policy, RecurrentCache
from inward.methods.huginn.context import Context, rotary_angles
from inward.methods.huginn.texts import (
    Detail,
    HuginnGenerated,
    HuginnPlan,
    HuginnText,
    OnToken,
    Start,
    Warm,
    Work,
    choose,
    generated,
    model_prompts,
    plan,
    texts_of,
)

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM


def generate(
    model: HuginnForCausalLM,
    input_ids: Prompts,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 64,
    max_steps: int | None = None,
    exit: str | halting.Rule = "never",
    min_steps: int = 1,
    check_every: int = 1,
    exit_in_prompt: bool = True,
    policy: str | Policy = "deepest",
    start: Start = "noise",
    warm: Warm | None = None,
    sampling: Sampling | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    state_seed: int | Sequence[int] = 0,
    batch_size: int = 16,
    in_flight: int | None = None,
    trace: Detail | None = None,
    on_token: OnToken | None = None,
    packed: bool | None = None,
) -> HuginnGenerated:
    """Continue prompts, each token as deep as the exit rule asks.

    Args:
        input_ids: (B, S) tokens with their attention_mask (B, S), padded on either side; or B
            sequences of any length. More than `in_flight` of them wait for their turn.
        max_steps: recurrences a token may take; default: the mean of the configuration.
        exit: "never", "entropy", "kl", "minp-kl", "latent", "cosine", "stable", a rule of
            `inward.common.halting`, or a function (DepthView) -> (B,) bool.
        min_steps, check_every: the rule is asked after recurrence min_steps, min_steps +
            check_every, ...; it compares a state with the one before, an output with the last one
            looked at.
        exit_in_prompt: False: prompts take max_steps.
        policy: which recurrences share cache slots ("deepest", "shared", "ring:4", ...).
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
        trace: "tokens": a step a token; "recurrences": also one for each recurrence.
        on_token: called with (row, token, recurrences) as soon as a token stands.
        packed: whether weights are packed for a CPU first, see `cpu.packed`; None: if they
            can be and take less than 4 GiB.
    Raises:
        ValueError: bad prompts or options, before any work.
    """
    prompts = model_prompts(model, input_ids, attention_mask)
    seats = _seats(batch_size, in_flight)
    chosen = plan(
        model,
        len(prompts),
        max_new_tokens=max_new_tokens,
        max_steps=max_steps,
        exit=exit,
        min_steps=min_steps,
        check_every=check_every,
        exit_in_prompt=exit_in_prompt,
        policy=policy,
        start=start,
        warm=warm,
        sampling=sampling,
        eos_token_id=eos_token_id,
        state_seed=state_seed,
        trace=trace,
        on_token=on_token,
    )
    texts = texts_of(chosen, prompts)
    engine = Engine(model, chosen, batch_size, min(seats, len(texts)))
    with inference(model, packed=packed):
        engine.run(texts)
    return generated(chosen, texts, engine.passes, engine.meta())


def _seats(batch_size: int, in_flight: int | None) -> int:
    if batch_size < 1 or (in_flight is not None and in_flight < batch_size):
        raise ValueError(
            f"batch_size is {batch_size} and in_flight {in_flight}; they must be at least 1, and "
            "in_flight not below batch_size"
        )
    return 2 * batch_size if in_flight is None else in_flight


@contextmanager
def inference(model: HuginnForCausalLM, *, packed: bool | None = None) -> Iterator[None]:
    """Evaluation mode without gradients, and the mode from before afterwards; `packed` as in
    `cpu.packed`."""
    was_training = model.training
    model.eval()
    try:
        with huginn_cpu.packed(model, wanted=packed), torch.inference_mode():
            yield
    finally:
        model.train(was_training)


# --------------------------------------------------------------------------------------------------
# One text: the obvious version


@dataclass
class Thought:
    """What became of the tokens that thought together.

    s: (1, S, d) raw final state;  steps: recurrences;  logits: (V,) of the last token.
    """

    s: Tensor
    steps: int
    logits: Tensor


def generate_one(
    model: HuginnForCausalLM,
    prompt: list[int],
    chosen: HuginnPlan,
    row: int = 0,
    *,
    packed: bool | None = False,
) -> HuginnText:
    """Generate for one prompt, token by token; see `generate` for the plan."""
    text = texts_of(chosen, [[]] * row + [prompt])[row]
    cache = RecurrentCache(chosen.policy, num_recurrences=chosen.max_steps)
    seen = Seen(1, model.config.vocab_size, model.device)
    work, state, ids = Work(model.config), None, prompt
    with inference(model, packed=packed):
        while not text.stopped:
            tokens = torch.tensor([ids], device=model.device)
            e, context = model.embed(tokens, cache=cache)
            seen.forget(torch.tensor([0]))
            thought = think(model, chosen, text, e, context, state, seen, work)
            (token,) = choose([text], thought.logits[None])
            text.say(chosen, token, thought.steps, thought.logits)
            assert context.place is not None
            cache.commit(context.place, thought.steps)
            state, ids = chosen.next_state(model, thought.s), [token]
    return text


def think(
    model: HuginnForCausalLM,
    chosen: HuginnPlan,
    text: HuginnText,
    e: Tensor,
    context: Context,
    state: Tensor | None,
    seen: Seen,
    work: Work,
    *,
    seat: int = 0,
) -> Thought:
    """Run the tokens e (1, S, d) of one text from `state` (None: cold) until their rule fires."""
    s = chosen.first_state(model, e, context.positions, text.state_seed) if state is None else state
    S, index = e.shape[1], len(text.tokens)
    first = text.length - S
    text.spend(0, work.prelude(first, S))
    step, done, view = 0, False, None
    while step < chosen.max_steps and not done:
        before, s = s, model.iterate(s, e, context, recurrence=step)
        step += 1
        view = _view(model, context, before, s, [text], [step], seen, [seat])
        done = chosen.asks(step, index) and bool(halting.verdict(chosen.rule, view))
        seen.update(view)
        text.spend(1, work.core(first, S) + view.was_read * work.read_out(first, S))
        _note_recurrence(chosen, [text], view)
    assert view is not None
    if not view.was_read:
        text.spend(0, work.read_out(first, S))
    return Thought(s, step, view.logits[0])


def _view(
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


def _note_recurrence(chosen: HuginnPlan, texts: Sequence[HuginnText], view: DepthView) -> None:
    if chosen.trace != "recurrences":
        return
    steps, change = view.step.tolist(), view.change.tolist()
    tops = view.logits.argmax(-1).tolist() if view.was_read else None
    for i, text in enumerate(texts):
        scores = {"recurrence": steps[i], "change": change[i]}
        if tops is not None:
            scores["top"] = tops[i]
        text.note(text.length, scores)


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
    rotary = rotary_angles(columns, model.config.head_dim, model.config.rope_base)
    lengths = tuple((starts + 1).tolist()) if num_new == 1 else None
    return Context(columns, rotary, mask, False, cache, place, lengths)


# --------------------------------------------------------------------------------------------------
# Many texts: rows at different recurrences in one pass


class Engine:
    """The loop that stays full. Seat i of the cache and of every tensor belongs to `self.texts[i]`.

    A seat is empty, or its newest token is ready (embedded, waits for a place in the loop), in the
    loop, or done (waits to be read out). Until a token is committed the cache keeps no trace of it.
    """

    def __init__(
        self, model: HuginnForCausalLM, chosen: HuginnPlan, batch_size: int, num_seats: int
    ):
        self.model, self.chosen, self.batch_size = model, chosen, batch_size
        self.work = Work(model.config)
        depth = chosen.max_steps
        self.cache = RecurrentCache(chosen.policy, num_recurrences=depth, num_rows=num_seats)
        self.seen = Seen(num_seats, model.config.vocab_size, model.device)
        self.texts: list[HuginnText | None] = [None] * num_seats
        self.steps = [0] * num_seats
        self.fresh = [False] * num_seats  # self.seen holds the output of the newest recurrence
        self.empty, self.loop, self.done = list(range(num_seats)), [], []
        self.ready: deque[int] = deque()
        width = model.config.n_embd
        self.e = torch.zeros(num_seats, 1, width, dtype=model.dtype, device=model.device)
        self.s = torch.zeros_like(self.e)
        self.context: Context | None = None  # of the rows in the loop, while these stay the same
        self.passes = self.rows_carried = self.loop_passes = self.read_outs = 0

    def meta(self) -> dict[str, float]:
        """loop_fill: mean rows of a pass over batch_size;  read_outs: calls of coda and head."""
        carried = self.loop_passes * self.batch_size
        fill = self.rows_carried / carried if carried else 1.0
        return {"loop_fill": fill, "read_outs": float(self.read_outs)}

    def run(self, texts: Sequence[HuginnText]) -> None:
        """Work until every text has ended."""
        waiting = deque(texts)
        while waiting or len(self.empty) < len(self.texts):
            self._admit(waiting)
            while self.ready and len(self.loop) < self.batch_size:
                self.loop.append(self.ready.popleft())
                self.context = None
            if self.done and len(self.loop) < self.batch_size:
                self._settle()
            elif self.loop:
                self._recur()

    # -- prompts

    def _admit(self, waiting: deque[HuginnText]) -> None:
        """Prompts take the empty seats: one after the other, as each takes a depth of its own."""
        entering, states = [], []
        while self.empty and waiting:
            seat, text = self.empty.pop(), waiting.popleft()
            state = self._prefill(seat, text)
            if text.stopped:
                self.empty.append(seat)
            else:
                self.texts[seat] = text
                entering.append(seat)
                states.append(state)
        if entering:
            self._enter(entering, None if states[0] is None else torch.cat(states))

    def _prefill(self, seat: int, text: HuginnText) -> Tensor | None:
        """Think about a prompt and say its first token; returns what the next starts from."""
        row = torch.tensor([seat])
        self.cache.lengths[seat] = 0
        tokens = torch.tensor([text.prompt], device=self.model.device)
        e, context = self.model.embed(tokens, cache=self.cache, rows=row)
        self.seen.forget(row)
        args = (e, context, None, self.seen, self.work)
        thought = think(self.model, self.chosen, text, *args, seat=seat)
        self.passes += thought.steps
        (token,) = choose([text], thought.logits[None])
        text.say(self.chosen, token, thought.steps, thought.logits)
        assert context.place is not None
        self.cache.commit(context.place, thought.steps)
        return self.chosen.next_state(self.model, thought.s)

    # -- tokens

    def _enter(self, seats: list[int], state: Tensor | None) -> None:
        """The newest token of each seat is embedded and gets its first state."""
        texts = [self._text(seat) for seat in seats]
        rows = torch.tensor(seats, device=self.model.device)
        tokens = torch.tensor([[text.tokens[-1]] for text in texts], device=self.model.device)
        e, context = self.model.embed(tokens, cache=self.cache, rows=rows)
        if state is None:
            seeds = torch.tensor([text.state_seed for text in texts], device=self.model.device)
            state = self.chosen.first_state(self.model, e, context.positions, seeds)
        self.e[rows], self.s[rows] = e, state
        self.seen.forget(rows)
        for seat, text in zip(seats, texts, strict=True):
            self.steps[seat], self.fresh[seat] = 0, False
            text.spend(0, self.work.prelude(text.length - 1))
        self.ready.extend(seats)

    def _recur(self) -> None:
        """One pass of the core over the rows in the loop; those that are done leave it."""
        seats = self.loop
        rows = torch.tensor(seats, device=self.model.device)
        if self.context is None:
            self.context = self._context(seats, rows)
        steps = [self.steps[seat] for seat in seats]
        same = min(steps) == max(steps)
        at = steps[0] if same else torch.tensor(steps, device=self.model.device)
        before = self.s[rows]
        s = self.model.iterate(before, self.e[rows], self.context, recurrence=at)
        self.s[rows] = s
        for seat in seats:
            self.steps[seat] += 1
            self.fresh[seat] = False
            text = self._text(seat)
            text.spend(1, self.work.core(text.length - 1))
        finished = self._verdict(seats, before, s)
        self.passes += 1
        self.loop_passes += 1
        self.rows_carried += len(seats)
        if finished:
            self.done += finished
            self.loop = [seat for seat in seats if seat not in set(finished)]
            self.context = None

    def _verdict(self, seats: list[int], before: Tensor, s: Tensor) -> list[int]:
        """The seats whose token is done, in the order of `seats`. Only those whose turn it is are
        asked."""
        chosen, texts = self.chosen, [self._text(seat) for seat in seats]
        finished = [self.steps[seat] >= chosen.max_steps for seat in seats]
        turn = [
            chosen.asks(self.steps[seat], len(text.tokens))
            for seat, text in zip(seats, texts, strict=True)
        ]
        asked = [i for i, now in enumerate(turn) if now]
        if asked:
            view = self._look(seats, before, s, asked)
            for i, done in zip(asked, halting.verdict(chosen.rule, view).tolist(), strict=True):
                finished[i] |= done
                self.fresh[seats[i]] = view.was_read
                if view.was_read:
                    texts[i].spend(0, self.work.read_out(texts[i].length - 1))
            self.read_outs += view.was_read
            self.seen.update(view)
            _note_recurrence(chosen, [texts[i] for i in asked], view)
        others = [i for i, now in enumerate(turn) if not now]
        if others and chosen.trace == "recurrences":
            view = self._look(seats, before, s, others)
            _note_recurrence(chosen, [texts[i] for i in others], view)
        return [seat for seat, done in zip(seats, finished, strict=True) if done]

    def _look(self, seats: list[int], before: Tensor, s: Tensor, chosen: list[int]) -> DepthView:
        """The view of some rows of the pass."""
        assert self.context is not None
        context = self.context
        if len(chosen) < len(seats):
            index = torch.tensor(chosen, device=s.device)
            context = context.select(index, len(seats))
            before, s = before[index], s[index]
        some = [seats[i] for i in chosen]
        texts, steps = [self._text(seat) for seat in some], [self.steps[seat] for seat in some]
        return _view(self.model, context, before, s, texts, steps, self.seen, some)

    def _settle(self) -> None:
        """Read out the tokens that are done, choose what follows them, and begin that."""
        seats, self.done = self.done, []
        rows = torch.tensor(seats, device=self.model.device)
        texts = [self._text(seat) for seat in seats]
        logits = self._read_out(seats, rows)
        place = self._context(seats, rows).place
        assert place is not None
        self.cache.commit(place, torch.tensor([self.steps[seat] for seat in seats]))
        state = self.chosen.next_state(self.model, self.s[rows])
        tokens = choose(texts, logits)
        for i, (seat, text) in enumerate(zip(seats, texts, strict=True)):
            text.say(self.chosen, tokens[i], self.steps[seat], logits[i])
            if text.stopped:
                self.texts[seat] = None
                self.empty.append(seat)
        go_on = [i for i, text in enumerate(texts) if not text.stopped]
        if go_on:
            kept = None if state is None else state[torch.tensor(go_on, device=state.device)]
            self._enter([seats[i] for i in go_on], kept)

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
                text = self._text(seat)
                text.spend(0, self.work.read_out(text.length - 1))
        return logits

    # -- where rows lie

    def _text(self, seat: int) -> HuginnText:
        text = self.texts[seat]
        assert text is not None, f"seat {seat} is empty"
        return text

    def _context(self, seats: list[int], rows: Tensor) -> Context:
        """The context of the newest tokens of these seats; each looks at its own columns."""
        starts = self.cache.lengths[torch.tensor(seats)]
        return context_at(self.model, self.cache, rows, starts)
