"""Thinking in silence, step by step: the one engine behind `generate`, `stream`, `vote`, `ask`.

    work = METHOD.begin(model)
    number = work.add(Request(sample, own={"switch": "boundary"}))
    while work.busy:
        events = work.step()

A step adds one position to every row: a thought where a row is silent (its last hidden state goes
in), a token where it speaks. A *switch* decides which, see `switch`. Prompts are samples, so
thoughts of a fixed schedule may stand in the prompt already; then no switch is needed.

    1. run the position that each row decided on in the step before   (`seats`)
    2. read the prompts of rows that wait, and seat them
    3. each row decides: silent or not; draw, record, end

A row depends on nothing but itself: not on its neighbours, nor on when it joined. Tokens are drawn
by `inward.common.sampling` for (seed + row, place), noise for (seed + row, number of the thought);
a request has one row, 0, or one for each of its votes.

Steps of a trace: "thought" (under "lens" the likeliest tokens of the head; under "words", where
thoughts are superposed, the words that it holds and their weights, read out exactly) and "word"
(the token said), `position` is the place in the row, thoughts counted.

Shape letters: B rows, d width, V vocabulary.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from inward.common.costs import parameters, sizes_of
from inward.common.cpu.decoding import MOST_ROWS, Decoding
from inward.common.sampling import check_logits
from inward.common.thinking import Answer, Event, Lanes, Method, Request
from inward.common.trace import Cost, Span, Trace, total
from inward.data.thoughts.segments import flat
from inward.data.thoughts.superposed import read_out
from inward.methods.coconut.base import unwrapped
from inward.methods.coconut.depths import Further, lane_of
from inward.methods.coconut.plan import (
    BatchEdit,
    CoconutPlan,
    edited,
    plan_of,
)
from inward.methods.coconut.row import Reading, ThinkingRow, in_plane, thought_positions
from inward.methods.coconut.seats import (
    OwnPast,
    Seats,
    SharedPast,
    honest,
    keeps_all,
    looped_of,
    prefill,
)
from inward.methods.coconut.switch import Speaking, Switch, SwitchView

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut

_NOISE = 3
"""Stream of the thoughts' noise, beside those of `inward.common.sampling`."""


# --------------------------------------------------------------------------------------------------
# Lanes


class CoconutLanes(Lanes):
    """Work on one model; requests share forwards if these take the same further arguments.

    A `per_pass` that is a function looks at places, so its request runs alone.

    Args:
        method: whose options and traces requests may name.
        batch_size: rows at a time in a lane; further ones wait.
    """

    def __init__(self, model: Coconut, method: Method, *, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, must be 1 or more")
        self.num_passes = 0
        self._alone = 0

        def engine(key: tuple[Hashable, ...]) -> CoconutWork:
            return CoconutWork(
                model, method, batch_size=batch_size, packed=cast(Any, key[0]), count=self._count
            )

        super().__init__(self._lane, engine)

    def _count(self, passes: int) -> None:
        self.num_passes += passes

    def _lane(self, request: Request) -> tuple[Hashable, ...]:
        if (key := lane_of(request.own)) is not None:
            return key
        self._alone += 1
        return request.own.get("packed"), self._alone


# --------------------------------------------------------------------------------------------------
# The engine


@dataclass(eq=False)
class _Asked:
    """A request: its plan, its tries, those that have ended; hurried: they only speak now."""

    request: Request
    plan: CoconutPlan
    rows: list[ThinkingRow]
    ended: int = 0
    hurried: bool = False
    answer: Answer | None = None


class CoconutWork:
    """Requests in work, see the top of the file and `inward.common.thinking.Work`.

    Args:
        packed: what is done to be faster on a CPU, see `inward.common.cpu.decoding.Decoding`.
        count: told the number of forwards of the base.
    """

    def __init__(
        self,
        model: Coconut,
        method: Method,
        *,
        batch_size: int,
        packed: bool | None = None,
        count: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.model = model
        self.method = method
        self.batch_size = batch_size
        self.packed = packed
        self.count = count
        self.base = unwrapped(model.base)
        self.asked: dict[int, _Asked] = {}
        self.waiting: deque[ThinkingRow] = deque()
        self.groups: list[Seats] = []
        self.due: list[Event] = []
        self.next = 0
        self.seen = False
        self.bans: dict[bool, Tensor] = {}
        self.options = Further(model, {})
        specials = model.specials
        self.never = (specials.latent, specials.eot)

    @property
    def busy(self) -> bool:
        """See `Work`."""
        return bool(self.waiting or self.groups or self.due)

    def add(self, request: Request) -> int:
        """See `Work`."""
        self.method.check_options(request.own)
        plan = plan_of(self.model, request, self.method.traces)
        self.method.check_acts(self.model, request)
        options = Further(self.model, request.own)
        if not self.busy:
            self.sizes = None if hasattr(self.base, "forward_cost") else sizes_of(self.base)
            self.options = options
            self.limit = self.model.max_positions
        if not self.seen:  # the model as it is now, once for requests that come together
            self.fast = Decoding(self.model, self.base, wanted=self.packed)
            for group in self.groups:
                group.fast = self.fast
        self.seen = True
        number, self.next = self.next, self.next + 1
        rows = [
            ThinkingRow.of(
                number, plan, request.prompt, self.model.specials, index=t, never=self.never
            )
            for t in range(plan.votes)
        ]
        self.asked[number] = _Asked(request, plan, rows)
        self.waiting += rows
        return number

    def step(self) -> list[Event]:
        """See `Work`. If it raises, nothing is lost: the next step goes on from there."""
        self.seen = False
        with torch.no_grad():
            for group in self.groups:
                if any(row.pending for _, row in group.live):
                    group.forward(self.edits, self.options)
                    self.count(1)
            self._admit()
            for group in self.groups:
                self._decide(group)
        self.groups = [group for group in self.groups if group.live]
        events, self.due = self.due, []
        return events

    def cancel(self, number: int) -> None:
        """See `Work`."""
        asked = self._of(number)
        gone = [row for row in asked.rows if not row.stopped]
        if asked.answer is not None:
            return
        for row in gone:
            row.stopped = "cancelled"
        names = {id(row) for row in gone}
        self.waiting = deque(row for row in self.waiting if id(row) not in names)
        for group in self.groups:
            group.leave(gone)
        self.groups = [group for group in self.groups if group.live]
        self._finish(number, asked, cancelled=True)

    def end_thinking(self, number: int) -> None:
        """See `Work`."""
        self._of(number).hurried = True

    def result(self, number: int) -> Answer:
        """See `Work`."""
        answer = self._of(number).answer
        told = not any(event.kind == "end" and event.request == number for event in self.due)
        if answer is None or not told:
            raise ValueError(f"request {number} has not ended yet; go on with step, or cancel it")
        del self.asked[number]
        return answer

    def _of(self, number: int) -> _Asked:
        if number not in self.asked:
            raise KeyError(f"there is no request {number}")
        return self.asked[number]

    # -- 2. joining

    def _admit(self) -> None:
        room = self.batch_size - sum(len(group.live) for group in self.groups)
        rows = [self.waiting[i] for i in range(min(room, len(self.waiting)))]
        if not rows:
            return
        many = len(rows) > 1 or bool(self.groups)
        plain = keeps_all(self.model)
        if plain and (not many or honest(self.fast(MOST_ROWS + 1), self.options, self.base)):
            self._seat(rows, self.groups[0] if self.groups else None)
        else:
            for row in rows:
                self._seat([row], None, own=not plain)

    def _seat(self, rows: Sequence[ThinkingRow], group: Seats | None, *, own: bool = False) -> None:
        """Read the prompts of these rows, and let them join."""
        read = prefill(self.fast, rows, self.edits, self.options)
        self.count(read.num_passes)
        if group is None:
            past = (
                OwnPast(read)
                if own
                else SharedPast(1, self.model.manners.reach, looped_of(self.model))
            )
            group = Seats(self.fast, past)
            self.groups.append(group)
        group.join(rows, read)
        for row, seen in zip(rows, read.seen, strict=True):
            self.waiting.popleft()
            self._note_prompt(row, seen)

    def _note_prompt(self, row: ThinkingRow, seen: Sequence[tuple[int, Tensor, Tensor]]) -> None:
        """The thoughts that stand in its prompt."""
        known = {position: found for position, *found in seen}
        for position, block in thought_positions(row.prompt):
            logits, state = known.get(position, (None, None))
            reading = None if logits is None else Reading(logits[None])
            state = state if row.plan.keeps_states else None
            self._note(row, position, reading, 0, None, state, block)

    # -- 3. deciding

    def _decide(self, group: Seats) -> None:
        """Each row's next position, and the end of those that end with it."""
        live, reading = group.live, Reading(group.logits)
        check_logits(_of_seats(group, live), [len(row.marks) + 1 for _, row in live])
        silent = self._silent(group, live, reading)
        words = {}
        forced: dict[int, int] = {}
        for seat, row in live:
            hurried = self.asked[row.number].hurried
            silent[seat] = thinks = silent[seat] and row.may_think and not hurried
            if thinks != row.thinking and row.plan.boundaries:
                specials = self.model.specials
                forced[seat] = specials.bot if thinks else specials.eot
        drawn = [(s, row) for s, row in live if s not in forced and not silent[s]]
        words = dict(zip([s for s, _ in drawn], self._draw(group, drawn, bot=False), strict=True))
        chances = self._chances(group, words | forced)
        for seat, row in live:
            if silent[seat] != row.thinking:
                row.reference = reading.entropy[seat]
            self._act(group, row, seat, reading, silent[seat], words.get(seat), forced.get(seat))
            row.stopped = row.reason(self.limit)
            if seat in chances:
                row.logprobs.append(chances[seat])
        self._end(group, [row for _, row in live if row.stopped])

    def _act(
        self,
        group: Seats,
        row: ThinkingRow,
        seat: int,
        reading: Reading,
        thinks: bool,
        word: int | None,
        forced: int | None,
    ) -> None:
        """Add a position to a row."""
        token = word if forced is None else forced
        state = group.hidden[seat] if token is None and row.plan.keeps_states else None
        self._note(row, row.length, reading if row.plan.watched else None, seat, token, state)
        if token is None:
            row.think()
        else:
            if word is not None and not thinks and row.thinking:
                row.leave()  # without saying so
            row.say(token)
            if forced is not None:
                row.num_marks += 1
                (row.enter if thinks else row.leave)()

    def _silent(
        self, group: Seats, live: Sequence[tuple[int, ThinkingRow]], reading: Reading
    ) -> dict[int, bool]:
        """Which rows want to think at the next position, asked of each switch at once."""
        asked: list[tuple[Switch, list[tuple[int, ThinkingRow]]]] = []
        for seat, row in live:
            switch = row.plan.switch
            own = next((rows for s, rows in asked if s is switch or s == switch), None)
            if own is None:
                asked.append((switch, own := []))
            own.append((seat, row))
        silent: dict[int, bool] = {}
        for switch, rows in asked:
            if isinstance(switch, Speaking):  # the common case, without making a view
                silent |= {seat: False for seat, _ in rows}
                continue
            said = switch(self._view(group, rows))
            if said.shape != (len(rows),) or said.dtype != torch.bool:
                raise ValueError(
                    f"the switch gave {said.dtype} {tuple(said.shape)}, must be bool ({len(rows)},)"
                )
            silent |= dict(zip([seat for seat, _ in rows], said.tolist(), strict=True))
        return silent

    def _view(self, group: Seats, rows: Sequence[tuple[int, ThinkingRow]]) -> SwitchView:
        """What a switch sees of its rows."""
        device = group.logits.device
        # one tensor, not five: at small models a step is mostly such small change
        numbers = [[row.thinking, row.run, row.thoughts, row.blocks] for _, row in rows]
        thinking, run, thoughts, blocks = torch.tensor(numbers, device=device).unbind(1)
        return SwitchView(
            specials=self.model.specials,
            thinking=thinking.bool(),
            run=run,
            thoughts=thoughts,
            blocks=blocks,
            said=[row.said for _, row in rows],
            logits=_of_seats(group, rows),
            reference=torch.tensor([row.reference for _, row in rows], device=device),
            propose=lambda: torch.tensor(self._draw(group, rows, bot=True), device=device),
        )

    def _draw(
        self, group: Seats, rows: Sequence[tuple[int, ThinkingRow]], *, bot: bool
    ) -> list[int]:
        """The next word of these rows; `bot`: <bot> may be one."""
        plain = [(seat, row) for seat, row in rows if row.samplers[bot].is_argmax]
        words: dict[int, int] = {}
        if plain:
            likeliest = (_of_seats(group, plain) + self._ban(group.logits, bot)).argmax(-1)
            words = dict(zip([seat for seat, _ in plain], likeliest.tolist(), strict=True))
        for seat, row in rows:
            if seat not in words:
                sampler = row.samplers[bot]
                scores = sampler.scores(row.spoken, group.logits[seat])
                words[seat] = sampler.draw(scores, row.length)
        return [words[seat] for seat, _ in rows]

    def _ban(self, logits: Tensor, bot: bool) -> Tensor:
        """(V,) to add to logits so that special tokens are not said."""
        if bot not in self.bans or self.bans[bot].shape[0] != logits.shape[1]:
            never = [*self.never, *(() if bot else (self.model.specials.bot,))]
            places = torch.tensor(never, device=logits.device)
            self.bans[bot] = torch.zeros_like(logits[0]).index_fill(0, places, -torch.inf)
        return self.bans[bot]

    def _chances(self, group: Seats, said: Mapping[int, int]) -> dict[int, float]:
        """Log-probabilities of what is said, under the model's own distribution, where asked."""
        seats = [s for s in said if cast(ThinkingRow, group.rows[s]).plan.logprobs]
        if not seats:
            return {}
        logits = group.logits[seats]
        tokens = torch.tensor([said[s] for s in seats], device=logits.device)
        found = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)
        return dict(zip(seats, found.tolist(), strict=True))

    # -- thoughts

    def edits(
        self, rows: Sequence[ThinkingRow | None], thought: Tensor, where: Tensor, number: Tensor
    ) -> Tensor:
        """The callers' edits, then noise for (seed + row, number of the thought)."""
        batches: list[Any] = []
        for r, row in enumerate(rows):
            if row is None or row.plan.edit is None:
                continue
            edit = row.plan.edit
            if not isinstance(edit, BatchEdit):
                own = slice(r, r + 1)
                new = edit(thought[own], where[own], number[own])
                thought = torch.cat([thought[:r], new, thought[r + 1 :]])
            elif not any(edit.edit is other for other in batches):
                batches.append(edit.edit)
                thought = edited(edit, rows, thought, where, number)
        if not any(row is not None and row.plan.noise for row in rows):
            return thought
        return thought + self._noise(rows, thought, where, number)

    @staticmethod
    def _noise(
        rows: Sequence[ThinkingRow | None], thought: Tensor, where: Tensor, number: Tensor
    ) -> Tensor:
        drawn, shares = np.zeros(tuple(thought.shape), np.float32), [0.0] * len(rows)
        facts = zip(rows, where.tolist(), number.tolist(), strict=True)
        for r, (row, thinks, n) in enumerate(facts):
            if row is not None and thinks and row.plan.noise:
                shares[r] = row.plan.noise
                seed = row.samplers[True].noise.seed
                bits = np.random.Philox(key=seed, counter=[0, n, _NOISE, 0])
                own = np.random.Generator(bits).standard_normal(thought.shape[1], np.float32)
                drawn[r] = own
        rms = thought.float().square().mean(-1, keepdim=True).sqrt()
        share = torch.tensor(shares, device=thought.device)[:, None]
        noise = torch.from_numpy(drawn).to(thought.device) * rms * share
        return noise.to(thought.dtype)

    # -- what is kept

    def _note(
        self,
        row: ThinkingRow,
        position: int,
        reading: Reading | None,
        seat: int,
        token: int | None,
        state: Tensor | None = None,
        block: int | None = None,
    ) -> None:
        """Record the step that decides on `position`; a thought's `state` (d,) if it is kept."""
        facts: dict[str, Any] = {"token": token}
        if reading is not None:
            logp = reading.logp[seat]
            facts["entropy"] = reading.entropy[seat] if row.plan.trace is not None else 0.0
            if token is not None:
                facts["chance"] = float(logp[token].exp())
            elif row.plan.num_lens:
                top = logp.topk(min(row.plan.num_lens, len(logp)))
                facts["lens"] = Span.of(top.indices.tolist(), top.values.exp().tolist())
            how = self.model.settings.superposing
            if token is None and how is not None and row.plan.trace is not None:
                held = read_out(logp.exp().cpu().numpy(), how, self.model.specials.latent)
                facts["words"] = Span.of([w for w, _ in held], [share for _, share in held])
        if state is not None:
            facts["state"] = state.float().cpu().numpy().copy()
        event = row.mark(position, **facts, block=block)
        (row.events if row.plan.votes > 1 else self.due).append(event)

    def _end(self, group: Seats, rows: Sequence[ThinkingRow]) -> None:
        """Rows that have ended go, and with the last of a request its answer comes."""
        if not rows:
            return
        group.leave(rows)
        for row in rows:
            asked = self.asked[row.number]
            asked.ended += 1
            if asked.ended == len(asked.rows):
                self._finish(row.number, asked)

    def _finish(self, number: int, asked: _Asked, *, cancelled: bool = False) -> None:
        if len(asked.rows) == 1:
            asked.answer = self._answer(asked.rows[0], asked.request.logprobs)
        elif cancelled:
            steps, cost = sum(r.thoughts for r in asked.rows), self._cost(asked.rows)
            asked.answer = Answer(steps=steps, stopped="cancelled", cost=cost)
        else:
            asked.answer = self._elected(asked)
        last = max(len(row.marks) for row in asked.rows)
        self.due.append(Event("end", number, step=last, answer=asked.answer))

    def _elected(self, asked: _Asked) -> Answer:
        """The commonest answer of the tries; of equally common ones the likeliest."""
        ballots = [(asked.plan.ballot or tuple)(row.new) for row in asked.rows]
        if not all(isinstance(ballot, Hashable) for ballot in ballots):
            raise ValueError(
                f"ballot gave {ballots[0]!r:.60}, which cannot be counted; let it return a text, a "
                "number or a tuple"
            )
        counts = Counter(ballots)
        totals = [own_words(self.model, row.new, row.logprobs) for row in asked.rows]
        places = range(len(ballots))
        best = max(places, key=lambda t: (counts[ballots[t]], totals[t], -t))
        self.due += asked.rows[best].events
        answer = self._answer(asked.rows[best], asked.request.logprobs)
        facts = {
            "votes": len(ballots),
            "share": counts[ballots[best]] / len(ballots),
            "winner": ballots[best],
            "ballots": ballots,
            "tries": [list(row.new) for row in asked.rows],
        }
        if answer.trace is not None:
            answer.trace.meta.update(votes=facts["votes"], share=facts["share"])
        fields = {name: getattr(answer, name) for name in Answer.__dataclass_fields__}
        return Answer(
            **fields | {"cost": self._cost(asked.rows), "details": {**answer.details, **facts}}
        )

    def _answer(self, row: ThinkingRow, logprobs: bool) -> Answer:
        trace = None
        if row.plan.trace is None:
            cost = self._cost([row])
        else:
            costs = row.costs(self.base, self.sizes, self.options)
            cost = total([*costs, self._soft(row)])
            cost = replace(cost, parameters=parameters(self.model))
            question = np.asarray(flat(row.prompt, latent=self.model.specials.latent)[0])
            steps = [replace(s, cost=c) for s, c in zip(row.steps, costs, strict=True)]
            if "plane" in row.plan.trace:
                steps = in_plane(steps, keep="state" in row.plan.trace)
            meta = {"switch": str(row.plan.switch), "thought": self._kind(row)}
            trace = Trace("coconut", question, steps, row.stopped, meta)
        return Answer(
            tokens=tuple(row.new),
            steps=row.thoughts,
            stopped=row.stopped,
            cost=cost,
            logprobs=tuple(row.logprobs) if logprobs else None,
            trace=trace,
            details=row.facts(),
        )

    def _kind(self, row: ThinkingRow) -> str:
        """What its thoughts are: hidden, soft or superposed."""
        if self.model.settings.superpose:
            return "superposed"
        return "soft" if self.model.reads_thoughts else row.plan.thought

    def _cost(self, rows: Sequence[ThinkingRow]) -> Cost:
        costs = [row.cost(self.base, self.sizes, self.options) for row in rows]
        cost = total([*costs, *map(self._soft, rows)])
        return replace(cost, parameters=parameters(self.model))

    def _soft(self, row: ThinkingRow) -> Cost:
        """What mixing embeddings took, where thoughts are mixtures."""
        table = self.model.embedding.weight.numel()
        return row.soft_thoughts(table, read=self.model.reads_thoughts)


def _of_seats(group: Seats, rows: Sequence[tuple[int, ThinkingRow]]) -> Tensor:
    """Logits of these rows; without a copy if they are all."""
    if len(rows) == len(group.rows):
        return group.logits
    return group.logits[[seat for seat, _ in rows]]


def own_words(model: Coconut, tokens: Sequence[int], logprobs: Sequence[float]) -> float:
    """The summed log-probability of words: boundary tokens are no choice of the model's words."""
    marks = (model.specials.bot, model.specials.eot)
    return sum(p for token, p in zip(tokens, logprobs, strict=True) if token not in marks)
