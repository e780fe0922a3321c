"""Rows that share a forward although each is in a place of its own.

Prompts that come together are read in one batch, in columns (`Coconut.sequential`); then each row's
keys and values move into a cache in which rows have lengths of their own, so that a later row can
join those under way, and none drags along columns that only its neighbours needed. A step adds one
position to every row; what a row must not see is masked by a (B, 1, 1, K) additive mask, or none is
needed because all are equally long.

A seat whose row has ended is given to the next one that comes; until then a token runs in it that
nobody reads. When more than half are empty the others move together.

Where a row is longer than the base's window, the mask counts positions (`inward.common.reach`).
Bases that cannot share (recurrent states, positions that only a mask tells, attention that does
not honour such a mask) get a place for each row, with the cache that training uses.

Shape letters: B seats, K positions, d width, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache

from inward.common.cpu.decoding import Decoding
from inward.common.ragged import RaggedCache
from inward.common.reach import Placed
from inward.data.thoughts.columns import before_thoughts, widened
from inward.methods.coconut.base import unwrapped
from inward.methods.coconut.cache import RoomyLayer, new_cache
from inward.methods.coconut.feedback import mixed
from inward.methods.coconut.row import Asked, ThinkingRow
from inward.methods.coconut.switch import Speaking

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut

Edits = Callable[[Sequence[ThinkingRow | None], Tensor, Tensor, Tensor], Tensor]
"""(rows, thoughts (B, d), which rows think (B,), their numbers (B,)) -> thoughts"""


# --------------------------------------------------------------------------------------------------
# Reading prompts


@dataclass
class Prefilled:
    """What prompts came to: hidden (B, d), logits (B, V) of each row's last position; `seen`: the
    logits and the states that the thoughts of each row came from, if a record was asked for:
    [(position, (V,), (d,))].
    """

    cache: Cache
    mask: Tensor
    hidden: Tensor
    logits: Tensor
    seen: list[list[tuple[int, Tensor, Tensor]]]
    num_passes: int

    def past(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (rows, heads, S, head width) of each layer that saw all columns; what a
        row has kept comes first, in order."""
        S = self.mask.shape[1]
        order = None
        if not bool(self.mask.all()):
            order = self.mask.argsort(dim=1, descending=True, stable=True)[:, None, :, None]
        layers: list[tuple[Tensor, Tensor]] = []
        for layer in cast(Iterable[Any], self.cache.layers):
            if layer.keys is None or layer.keys.shape[2] != S:
                break  # of a base that went less deep in a later pass
            keys, values = layer.keys, layer.values
            if order is not None:
                keys, values = (
                    t.gather(2, order.expand(-1, t.shape[1], -1, t.shape[3]))
                    for t in (keys, values)
                )
            layers.append((keys, values))
        return layers


def prefill(
    fast: Decoding[Coconut], rows: Sequence[ThinkingRow], edits: Edits, asked: Asked
) -> Prefilled:
    """Read the prompts of these rows together."""
    model = fast.model
    batch = model.collate([row.prompt for row in rows], may_end_open=True)
    mask, latent = batch["attention_mask"], batch["latent"]
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * columns).argmax(1)
    wanted = columns == last[:, None]
    watched = torch.tensor([row.plan.watched for row in rows], device=mask.device)
    wanted = model.read_columns(wanted | (before_thoughts(latent) & watched[:, None]), latent)
    found = Prefilled(new_cache(model.base, mask), mask, mask, mask, [[] for _ in rows], 0)

    def edit(thought: Tensor, where: Tensor, number: Tensor) -> Tensor:
        return edits(rows, thought, where, number)

    model = fast(mask.shape[1])

    def further(start: int, stop: int) -> Any:
        return asked(start, stop, latent[:, start:stop])

    parts = model.sequential(batch, wanted=wanted, edit=edit, cache=found.cache, per_pass=further)
    for part in parts:
        found.num_passes += 1
        where, places = wanted[:, part.start : part.stop].nonzero(as_tuple=True)
        logits = widened(part.logits)
        if part.start == 0:
            found.hidden = part.hidden.new_zeros(len(rows), part.hidden.shape[-1])
            found.logits = logits.new_zeros(len(rows), logits.shape[-1])
        ends = places + part.start == last[where]
        found.hidden[where[ends]] = part.hidden[where[ends], places[ends]]
        found.logits[where[ends]] = logits[ends]
        for r, place, own in zip(where.tolist(), places.tolist(), logits, strict=True):
            column = part.start + place + 1
            watched = rows[r].plan.watched
            if watched and column < latent.shape[1] and bool(latent[r, column]):
                at = int(batch["position_ids"][r, column])
                found.seen[r].append((at, own, part.hidden[r, place]))
    return found


# --------------------------------------------------------------------------------------------------
# The past of the rows


def looped_of(model: Coconut) -> tuple[int, int] | None:
    """Layers of the base outside its loop and in it, if it has one; see `RaggedCache`."""
    return getattr(unwrapped(model.base), "looped", None)


class SharedPast:
    """Of many rows, in a `RaggedCache`. reach: positions that every layer of the base sees."""

    def __init__(self, capacity: int, reach: int, looped: tuple[int, int] | None = None) -> None:
        self.cache = RaggedCache(0, capacity, looped)
        self.reach = reach
        self.depth: int | None = None

    def take(self, seats: Sequence[int], read: Prefilled) -> None:
        """Give seats the past of the rows that have been read, in order."""
        past = read.past()
        self.depth = len(past) if self.depth is None else min(self.depth, len(past))
        self.cache.insert(seats, read.mask.sum(1).tolist(), past)

    def begin(
        self, live: Sequence[bool], device: torch.device, dtype: torch.dtype
    ) -> Tensor | Placed | None:
        """The mask of the next position."""
        lengths = self.cache.book.lengths
        known = {n for n, lives in zip(lengths, live, strict=True) if lives}
        idle = 0 if len(known) > 1 else max(known)  # so that empty seats ask for no mask
        lengths[:] = [n if lives else idle for n, lives in zip(lengths, live, strict=True)]
        self.cache.begin(1, device)
        book = self.cache.book
        if book.slots is None:
            return None
        slots = torch.arange(book.used, device=device)[None]
        hidden = slots > book.slots
        if book.used > self.reach:
            return Placed(~hidden[:, None, None], book.slots, slots)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
        return mask.masked_fill_(hidden, -torch.inf)[:, None, None]

    def end(self) -> None:
        """The position has been run.

        Raises:
            ValueError: it went through layers that earlier positions did not.
        """
        writes = self.cache.book.writes
        if self.depth is not None and writes > self.depth and self.cache.looped is None:
            raise ValueError(
                f"a forward went through {writes} layers, those before it through {self.depth}; "
                "what the deeper ones would look at is missing: let per_pass ask for the same or "
                "less"
            )
        self.depth = writes
        self.cache.commit([1] * len(self.cache.book.lengths))


class OwnPast:
    """Of one row, in the cache that it was read into."""

    def __init__(self, read: Prefilled) -> None:
        self.cache = read.cache
        self.mask = read.mask
        self.running = False

    def begin(
        self, live: Sequence[bool], device: torch.device, dtype: torch.dtype
    ) -> Tensor | None:
        """The mask of the next position.

        Raises:
            ValueError: the forward before this one failed, and left a state that cannot be undone.
        """
        if self.running:  # a forward that failed is run again
            self._undo()
        else:
            self.mask = F.pad(self.mask, (0, 1), value=1)
        self.running = True
        return self.mask

    def _undo(self) -> None:
        kept = self.mask.shape[1] - 1
        for layer in cast(Iterable[Any], self.cache.layers):
            if not isinstance(layer, RoomyLayer):
                raise ValueError(
                    f"a forward of this row failed on the way, and its {type(layer).__name__} "
                    "cannot be taken back to what it was; cancel the request and ask again"
                )
            if (excess := layer.get_seq_length() - kept) > 0:
                layer.crop(-excess)

    def end(self) -> None:
        """The position has been run."""
        self.running = False


# --------------------------------------------------------------------------------------------------
# Seats


class Seats:
    """Rows in work together; None where a seat is empty.

    hidden (B, d), logits (B, V): of each row's last position, in the order of the seats.
    """

    def __init__(self, fast: Decoding[Coconut], past: SharedPast | OwnPast) -> None:
        self.fast = fast
        self.past = past
        self.hidden = self.logits = torch.empty(0)
        self.rows = []

    @property
    def rows(self) -> list[ThinkingRow | None]:
        """Of each seat; to be set, not changed."""
        return self._rows

    @rows.setter
    def rows(self, rows: Sequence[ThinkingRow | None]) -> None:
        self._rows = [*rows]
        self.live = [(seat, row) for seat, row in enumerate(rows) if row is not None]
        """(seat, row) of all rows"""

    def join(self, rows: Sequence[ThinkingRow], read: Prefilled) -> None:
        """Seat rows that have been read."""
        free = [seat for seat, row in enumerate(self.rows) if row is None][: len(rows)]
        more = len(rows) - len(free)
        seats = [*free, *range(len(self.rows), len(self.rows) + more)]
        past = self.past
        if isinstance(past, SharedPast):
            past.cache.extend(more)
            past.cache.reserve(_room(rows))
            past.take(seats, read)
        if not self.rows:
            self.rows = [*rows]
            self.hidden, self.logits = read.hidden, read.logits
            return
        self.hidden = _placed(self.hidden, read.hidden, seats, more)
        self.logits = _placed(self.logits, read.logits, seats, more)
        seated = [*self.rows, *[None] * more]
        for seat, row in zip(seats, rows, strict=True):
            seated[seat] = row
        self.rows = seated

    def leave(self, gone: Iterable[ThinkingRow]) -> None:
        """These rows have ended; if few are left they move together."""
        names = {id(row) for row in gone}
        self.rows = [None if row is None or id(row) in names else row for row in self.rows]
        kept = [seat for seat, _ in self.live]
        if not kept or 2 * len(kept) >= len(self.rows) or not isinstance(self.past, SharedPast):
            return
        self.past.cache.select(kept)
        self.rows = [self.rows[seat] for seat in kept]
        self.hidden, self.logits = self.hidden[kept], self.logits[kept]

    def forward(self, edits: Edits, asked: Asked) -> None:
        """Run the position that every row has decided on."""
        model, device = self.fast(1), self.hidden.device
        live = [row is not None for row in self.rows]
        numbers = [
            [0, 0, 0, False] if row is None
            else [row.spoken[-1], row.length - 1, row.thoughts - 1, row.silent]
            for row in self.rows
        ]  # fmt: skip
        tokens, positions, number, silent = torch.tensor(numbers, device=device).unbind(1)
        inputs = model.embedding(tokens)
        if any(row is not None and row.silent for row in self.rows):
            # a row's `thoughts` counts the one that is now fed in
            where = silent.bool()
            thought = edits(self.rows, self._thoughts(model).to(inputs.dtype), where, number)
            inputs = torch.where(where[:, None], thought, inputs)
        place = max(row.length for _, row in self.live) - 1
        hidden, logits, _ = model.run(
            inputs[:, None],
            self.past.begin(live, device, inputs.dtype),
            positions[:, None],
            cache=self.past.cache,
            **asked(place, place + 1, silent.bool()[:, None]),
        )
        self.past.end()
        self.hidden, self.logits = hidden[:, 0], widened(logits[:, 0])
        for _, row in self.live:
            row.pending = False

    def _thoughts(self, model: Coconut) -> Tensor:
        """(B, d) what silent rows get as their next input."""
        soft = [row is not None and row.plan.thought == "soft" for row in self.rows]
        if not any(soft):
            return model.fed(self.hidden, self.logits)
        mean = mixed(self.logits, model.embedding)
        if all(soft):
            return mean
        hidden = model.fed(self.hidden, self.logits).to(mean.dtype)
        return torch.where(torch.tensor(soft, device=mean.device)[:, None], mean, hidden)


def _room(rows: Sequence[ThinkingRow]) -> int:
    """Positions to make room for; more than that fit too, at a copy."""
    most = 0
    for row in rows:
        plan = row.plan
        silent = isinstance(plan.switch, Speaking)
        thoughts = 0 if silent else min(plan.max_new_thoughts, plan.max_new_tokens)
        most = max(most, row.length + min(plan.max_new_tokens + thoughts, 256))
    return most


def _placed(old: Tensor, new: Tensor, seats: Sequence[int], more: int) -> Tensor:
    grown = torch.cat([old, old.new_zeros(more, old.shape[1])]) if more else old.clone()
    grown[list(seats)] = new
    return grown


# --------------------------------------------------------------------------------------------------
# Who can share

_HONEST: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def keeps_all(model: Coconut) -> bool:
    """Whether the base's cache is plain, and positions can be told it: what rows of lengths of
    their own need beside an honest mask."""
    return model.manners.together and "position_ids" in model.accepts


def honest(model: Coconut, asked: Asked, base: nn.Module | None = None) -> bool:
    """Whether the base honours positions and a mask for rows of unequal length, found out once by
    a few tiny forwards: what is masked must not change a bit, what is not must count.

    base: under which it is remembered, if `model` is a twin.
    """
    base = unwrapped(model.base) if base is None else base
    if base not in _HONEST:
        try:
            _HONEST[base] = _keeps_promises(model, asked)
        except (ValueError, RuntimeError, TypeError, IndexError):
            _HONEST[base] = False
    return _HONEST[base]


@torch.no_grad()
def _keeps_promises(model: Coconut, asked: Asked) -> bool:
    table = model.embedding
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(table.weight.shape[0], (7,), generator=generator).to(table.weight.device)
    embeds = table(ids)[None]

    def ones(num: int) -> Tensor:
        return torch.ones(1, num, dtype=torch.long, device=ids.device)

    def places(first: int, num: int) -> Tensor:
        return torch.arange(first, first + num, device=ids.device)[None]

    def read(num: int) -> Prefilled:
        cache = new_cache(model.base, ones(num))
        inputs = embeds[:, :num]
        model.run(inputs, ones(num), places(0, num), cache=cache, **asked(0, num))
        return Prefilled(cache, ones(num), inputs[:, -1], inputs[:, -1], [[]], 1)

    def step(garbage: float) -> Tensor:
        past = SharedPast(8, model.manners.reach, looped_of(model))
        past.cache.extend(2)
        for seat, num in enumerate((2, 6)):
            past.take([seat], read(num))
        for layer in cast(Iterable[Any], past.cache.layers):
            layer.keys[0, :, 2:] = layer.values[0, :, 2:] = garbage
        mask = past.begin([True, True], ids.device, embeds.dtype)
        inputs, at = embeds[0, [2, 6]][:, None], torch.tensor([[2], [6]], device=ids.device)
        hidden, _, _ = model.run(inputs, mask, at, cache=past.cache, **asked(6, 7))
        return hidden[:, 0].float()

    def alone(num: int) -> Tensor:
        hidden, _, _ = model.run(embeds[:, :num], ones(num), places(0, num), **asked(0, num))
        return hidden[0, -1].float()

    said, want = step(0.5), torch.stack([alone(3), alone(7)])
    near = (said - want).norm(dim=-1) <= 0.05 * want.norm(dim=-1)
    return bool(torch.equal(said, step(3.0))) and bool(near.all())
