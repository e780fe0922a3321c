"""The form that all loops over Huginn's texts have: texts wait, get a seat, work, and end.

A *seat* is a row of the cache, and of whatever else a loop keeps for a text. Seats are made when
they are needed, up to `in_flight`; when nothing is left to do, their memory is given back. A step
is one piece of work: one prompt is thought about, or the texts that have seats go on. What thinks
is a twin of the model, in evaluation mode, its weights packed; the model itself is only looked at.

A step may raise (a rule or a processor of the caller's does). The request that is to blame can be
cancelled; it answers with what it has said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inward.common.costs import parameters
from inward.common.halting import Seen
from inward.common.thinking import Answer, Event, Request
from inward.methods.huginn import cpu as huginn_cpu
from inward.methods.huginn.asked import text_of
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.costs import HuginnCosts
from inward.methods.huginn.sharing import Sharing
from inward.methods.huginn.texts import HuginnText, choose, whole
from inward.methods.huginn.think import Thought, think

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM


def seats_of(batch_size: int, in_flight: int | None) -> int:
    """How many texts may have seats."""
    whole("batch_size", batch_size, 1)
    if in_flight is not None:
        whole("in_flight", in_flight, 1)
    if batch_size < 1 or (in_flight is not None and in_flight < batch_size):
        raise ValueError(
            f"batch_size is {batch_size} and in_flight {in_flight}; they must be at least 1, and "
            "in_flight not below batch_size"
        )
    return 2 * batch_size if in_flight is None else in_flight


class HuginnLoop:
    """Texts of one sharing; see the top of the file. A subclass says what a text does in a seat.

    texts: of each seat; None: it is empty.
    """

    def __init__(
        self,
        model: HuginnForCausalLM,
        sharing: Sharing,
        *,
        batch_size: int = 16,
        in_flight: int | None = None,
        packed: bool | None = None,
    ):
        self.given = self.model = model
        self.sharing, self.batch_size = sharing, batch_size
        self.max_seats = seats_of(batch_size, in_flight)
        self.costs = HuginnCosts(model.config, model.dtype)
        self._packed, self._looked = packed, False
        self._counted: list[Tensor] = []
        self._versions: list[int] = []
        self.waiting: deque[HuginnText] = deque()
        self.told: list[Event] = []
        self.passes = 0
        self._open: dict[int, HuginnText] = {}
        self._cancelled: list[HuginnText] = []
        self._ended: dict[int, Answer] = {}
        self._next = 0
        self._furnish()

    def _furnish(self) -> None:
        """As if no text had ever had a seat."""
        self.device = self.model.device  # kept: to ask a model walks through its parts
        self.texts: list[HuginnText | None] = []
        self.empty: list[int] = []
        self.cache = RecurrentCache(self.sharing)

    # -- `inward.common.thinking.Work`

    @property
    def busy(self) -> bool:
        """Whether a text has not ended, or its end was not told."""
        return bool(self._open or self.told)

    def add(self, request: Request) -> int:
        """Take a request in; ValueErrors before any work."""
        text = text_of(self.given, request, self._next)
        self.enter([text])
        return text.number

    def enter(self, texts: Sequence[HuginnText]) -> None:
        """Take texts in, by their own numbers."""
        if not self._looked:  # once for texts that come together
            self._look_at()
        self._looked = True
        for text in texts:
            text.told = self.told
            self._open[text.number] = text
            self.waiting.append(text)
            self._next = text.number + 1

    def step(self) -> list[Event]:
        """One piece of work."""
        for text in self._cancelled:
            self._drop(text)
        self._cancelled.clear()
        self._looked = False
        if self._open:
            if self._versions != [p._version for p in self._counted]:
                self._look_at()  # what torch knows to have changed is seen on the way, too
            with torch.inference_mode():
                if not self._admit():
                    self._turn()
        if not self._open and self.texts:
            self._furnish()
        found = self.told[:]
        self.told.clear()
        return found

    def cancel(self, number: int) -> None:
        """End a request with what it has said."""
        if number in self._open:
            text = self._open[number]
            if text not in self._cancelled:
                self._cancelled.append(text)
        elif number not in self._ended:
            raise KeyError(f"there is no request {number}")

    def end_thinking(self, number: int) -> None:
        """The token under way is said as it stands, later ones think no deeper than it did; in the
        mode "speculate" no deeper than a draft."""
        if (text := self._open.get(number)) is not None:
            text.hurried = True
        elif number not in self._ended:
            raise KeyError(f"there is no request {number}")

    def result(self, number: int) -> Answer:
        """The answer of a request that has ended, once."""
        if number in self._open:
            raise ValueError(f"request {number} has not ended; take steps, or cancel it")
        if number not in self._ended:
            raise KeyError(f"there is no request {number}")
        return self._ended.pop(number)

    def _look_at(self) -> None:
        """The model as it is now; may refuse to pack."""
        self.model = huginn_cpu.thinking(self.given, self._packed)
        packed = self.model.transformer.own_parts is not None
        self._counted = [p for p in self.given.parameters() if packed and not p.is_inference()]
        self._versions = [p._version for p in self._counted]

    # -- texts and seats

    def _admit(self) -> bool:
        """Think about the prompt of the first text that waits, if there is a seat for it."""
        if not self.waiting or not self._has_seat():
            return False
        text, seat, told = self.waiting[0], self.empty[-1], len(self.told)
        try:
            thought = self._prefill(seat, text)
        except BaseException:
            del self.told[told:]  # it will be told again
            raise
        self.waiting.popleft()
        if text.stopped:
            self._ends(text)
        else:
            self.texts[self.empty.pop()] = text
            self._seat(seat, text, thought)
        return True

    def _has_seat(self) -> bool:
        if not self.empty and (have := len(self.texts)) < self.max_seats:
            want = have + len(self.waiting)
            num = min(self.max_seats, max(want, 2 * have))
            self._grow(num)
            self.empty += range(have, num)
            self.texts += [None] * (num - have)
        return bool(self.empty)

    def _prefill(self, seat: int, text: HuginnText) -> Thought:
        """Think about a prompt and say its first token."""
        row, plan = torch.tensor([seat]), text.plan
        # what a rule will hardly reach is made when it is reached
        slots = min(plan.max_steps, 4 * self.model.config.mean_recurrence)
        self.cache.reserve(slots, columns=self._columns(text))
        self.cache.lengths[seat] = 0
        text.restart()
        reused = self._recall(row, text)
        tokens = torch.tensor([text.prompt[reused:]], device=self.device)
        e, context = self.model.embed(tokens, cache=self.cache, rows=row)
        seen = Seen(1, self.model.config.vocab_size, self.device)
        thought = think(self.model, text, e, context, None, seen, self.costs)
        (token,) = choose([text], thought.logits[None])
        assert context.place is not None
        self.cache.commit(context.place, thought.steps)
        self.passes += thought.steps
        text.say(token, thought.steps, thought.logits)
        if text.stopped:
            self._remember(seat, text)
        return thought

    def _recall(self, row: Tensor, text: HuginnText) -> int:
        """Put what a conversation has read before into the text's row; how many tokens that is."""
        memory, key = text.memory, text.memory_key
        if memory is None or key is None:
            return 0
        reused = memory.take(text.prompt, (self.given, *key))
        if reused:
            self.cache.insert(row, memory.past)
            self.cache.lengths[row] = reused
        text.facts |= {"reused": reused, "num_prompt": len(text.prompt)}
        return reused

    def _remember(self, seat: int, text: HuginnText) -> None:
        """Keep for the conversation what the text has read, before its row is another's."""
        memory, key = text.memory, text.memory_key
        if memory is None:
            return
        if key is None or text.hurried:  # its tokens differ in depth: a fresh reading would not
            memory.tokens, memory.past, memory.key = [], None, None
            return
        length = int(self.cache.lengths[seat])
        memory.past = self.cache.row(seat, length)
        memory.tokens, memory.key = text.ids[:length], (self.given, *key)

    def end_if_stopped(self, seat: int) -> bool:
        """Empty the seat of a text that has ended."""
        text = self.text(seat)
        if text.stopped:
            self._remember(seat, text)
            self.texts[seat] = None
            self.empty.append(seat)
            self._ends(text)
        return bool(text.stopped)

    def _drop(self, text: HuginnText) -> None:
        """End a text that was cancelled, wherever it is."""
        if text.stopped:
            return
        if text in self.waiting:
            self.waiting.remove(text)
        else:
            seat = self.texts.index(text)
            self._leave(seat)
            self._remember(seat, text)
            self.texts[seat] = None
            self.empty.append(seat)
        text.end("cancelled")
        self._ends(text)

    def _ends(self, text: HuginnText) -> None:
        text.cost = replace(text.cost, parameters=parameters(self.given))
        answer = text.answer()
        self.told.append(Event("end", text.number, step=text.num_steps, answer=answer))
        self._ended[text.number] = answer
        del self._open[text.number]

    def text(self, seat: int) -> HuginnText:
        """Who sits there."""
        text = self.texts[seat]
        assert text is not None, f"seat {seat} is empty"
        return text

    def rows(self, seats: Sequence[int]) -> Tensor:
        """(B,) where they are in tensors of all seats."""
        return torch.tensor(seats, device=self.device)

    # -- what a subclass says

    def _columns(self, text: HuginnText) -> int:
        """Columns of the cache that the text needs at once; 0: they grow with it."""
        return 0

    def _grow(self, num_seats: int) -> None:
        """Room for so many seats."""
        self.cache.reserve(1, rows=num_seats)

    def _seat(self, seat: int, text: HuginnText, thought: Thought) -> None:
        """A text has said its first token and takes its seat."""
        raise NotImplementedError

    def _leave(self, seat: int) -> None:
        """The text there is cancelled: forget what it was about to do."""
        raise NotImplementedError

    def _turn(self) -> None:
        """One piece of work of the texts that have seats."""
        raise NotImplementedError
