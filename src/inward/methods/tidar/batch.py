"""One forward of TiDAR decoding for texts that are in different places, over any causal LM.

Each text brings its own piece of the input, [its tokens that are not cached yet | its guesses | its
mask blocks], laid out by `Layout`: one text may verify eight guesses while its neighbour reads a
prompt and a third only drafts. Pieces are padded at the right to the longest.

    cache slots of text b     0 .. P_b - 1     its committed tokens
                              P_b ..           this forward's rows, in the order of its layout

Drafts come before mask blocks in a layout, so the keys and values of accepted tokens already lie
where they belong, right behind the prefix. To commit n of them is `lengths[b] += n`, a crop that
moves nothing; whatever lies beyond is never seen again, and the next forward overwrites it.

What is unusual: the vocabulary head runs on chosen rows only. A one-pass step with K = 8 has 72
rows of which at most 15 are ever read, and the head of a small model is a third of its cost.
Models whose logits are more than `head(hidden)` (soft caps, scales) are found out by a probe and
run whole.

Shapes: B texts, q rows of the longest piece, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inward.common.bases import cache_name
from inward.common.costs import Sizes, forward_cost, parameters, sizes_of
from inward.common.cpu.decoding import Decoding
from inward.common.ragged import Book, RaggedCache
from inward.common.reach import Placed, first_position, looking, reach_of
from inward.common.trace import Cost, total
from inward.methods.tidar import masks
from inward.methods.tidar.base import check_masks_once, lm_of, splits, tidar_of

if TYPE_CHECKING:
    from inward.methods.tidar.model import TiDAR

# --------------------------------------------------------------------------------------------------
# The piece of one text


@dataclass(frozen=True)
class Layout:
    """[num_draft tokens | mask blocks]: block (j, w) is the pre-draft for "exactly j of the tokens
    are kept", w masks that see tokens 1..j and each other (section 3.2, figure 3 right).

    A block narrower than the widest one is what stays of it before the end of the context.
    """

    num_draft: int
    blocks: tuple[tuple[int, int], ...] = ()

    @cached_property
    def num_rows(self) -> int:
        """q of this piece."""
        return self.num_draft + sum(width for _, width in self.blocks)

    @cached_property
    def begins(self) -> dict[int, int]:
        """Row where the block of outcome j begins."""
        found, row = {}, self.num_draft
        for outcome, width in self.blocks:
            found[outcome] = row
            row += width
        return found

    @cached_property
    def widths(self) -> dict[int, int]:
        """Number of masks in the block of outcome j."""
        return dict(self.blocks)

    def block_rows(self, outcome: int) -> range:
        """Rows of the block of outcome j."""
        begin = self.begins[outcome]
        return range(begin, begin + self.widths[outcome])

    @property
    def offsets(self) -> Tensor:
        """(q,) positions of the rows, counted from the first draft token."""
        return _geometry(self)[0]

    @property
    def tail(self) -> Tensor:
        """(q, q) bool: which rows of the piece see which. All of them see the whole prefix."""
        return _geometry(self)[1]


_PROMPT = 64  # longer pieces are prompts, which come once: not worth keeping


def _geometry(layout: Layout) -> tuple[Tensor, Tensor]:
    return (_make_geometry if layout.num_draft > _PROMPT else _kept_geometry)(layout)


def _make_geometry(layout: Layout) -> tuple[Tensor, Tensor]:
    """Offsets and tail mask, from the one rule in masks.py; narrow blocks are cut out of full
    ones, which changes nothing for the rows that stay."""
    widest = max(layout.widths.values(), default=1)
    outcomes = tuple(layout.widths)
    rows = masks.decode(layout.num_draft, outcomes, block_size=widest)
    keep = list(range(layout.num_draft))
    for index, width in enumerate(layout.widths.values()):
        begin = layout.num_draft + index * widest
        keep += range(begin, begin + width)
    kept = masks.Rows(
        *(t[:, keep] for t in (rows.position, rows.horizon, rows.block, rows.document))
    )
    return kept.position[0], masks.dense(masks.sees(kept), len(keep))[0, 0]


_kept_geometry = lru_cache(maxsize=512)(_make_geometry)


@dataclass(frozen=True)
class Piece:
    """What one text puts into a forward: a layout and a token for each of its rows."""

    layout: Layout
    ids: list[int]

    def __post_init__(self) -> None:
        assert len(self.ids) == self.layout.num_rows, "a token per row"


# --------------------------------------------------------------------------------------------------
# The model: hidden rows first, logits of chosen rows later


READ_AHEAD = 16
"""Rows up to which the vocabulary head runs once a forward, before it is known which are needed."""


@dataclass
class Output:
    """Last hidden states (B, q, d) of a forward; or, without a head, its logits (B, q, V)."""

    tensor: Tensor
    head: Callable[[Tensor], Tensor] | None
    known: Tensor | None = None
    """logits that `read_ahead` has made"""
    places: dict[tuple[int, int], int] = field(default_factory=dict)
    """row -> its place in them"""

    def read_ahead(self, rows: Sequence[tuple[int, int]]) -> None:
        """Run the head on these rows at once; `logits` finds them afterwards."""
        self.known = self.logits(rows)
        self.places = {row: place for place, row in enumerate(rows)}

    def logits(self, rows: Sequence[tuple[int, int]]) -> Tensor:
        """(len(rows), V) float32 logits of the rows (text, row)."""
        if self.known is not None and all(row in self.places for row in rows):
            return self.known[[self.places[row] for row in rows]]
        texts, places = zip(*rows, strict=True)
        index = torch.tensor([texts, places], device=self.tensor.device)
        chosen = self.tensor[index[0], index[1]]
        return (chosen if self.head is None else self.head(chosen)).float()


@dataclass
class Runner:
    """Runs pieces through a model.

    model: a TiDAR model, or a causal LM of transformers whose mask rows are ordinary tokens.
    options: further arguments of the model's forward (Huginn: num_steps).
    draft, verify: those of mask rows and of all others, where the model takes a number for each
        position (Huginn: {"num_steps": 2}); they go before `options`.
    packed: what is done to be faster on a CPU, see `inward.common.cpu.decoding.Decoding`.
    """

    model: TiDAR | PreTrainedModel
    options: dict[str, Any] = field(default_factory=dict)
    packed: bool | None = None
    draft: dict[str, int] = field(default_factory=dict)
    verify: dict[str, int] = field(default_factory=dict)
    _masks: dict[Layout, masks.DecodeMask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lm, self.tidar = lm_of(self.model), tidar_of(self.model)
        if self.tidar is None:
            check_masks_once(self.lm)  # a TiDAR model has been asked when it was made
        own = self.options or self.draft or self.verify
        self.split = not own and splits(self.lm)
        self.reach, self.first = reach_of(self.lm), first_position(self.lm)
        adapter = None if self.tidar is None else self.tidar.adapter
        low = (
            () if adapter is None else (*adapter.lora_A.parameters(), *adapter.lora_B.parameters())
        )
        self._entries = sum(p.numel() for p in low)
        self._entry_bytes = sum(p.numel() * p.element_size() for p in low)
        self.renew()

    def new_cache(self, num_texts: int, capacity: int) -> RaggedCache:
        """Of texts that have read nothing."""
        return RaggedCache(num_texts, capacity, getattr(self.lm, "looped", None))

    def renew(self) -> None:
        """See the model as it is now: its weights, which are packed, its parts and its hooks."""
        parts = () if self.tidar is None or self.tidar.adapter is None else (self.tidar.adapter,)
        self.fast = Decoding(self.model, self.lm, *parts, wanted=self.packed)

    @cached_property
    def device(self) -> torch.device:
        """Where the model lives. Kept: to ask a model walks through its parts."""
        return self.lm.device

    @cached_property
    def _dtype(self) -> torch.dtype:
        return self.lm.dtype

    @cached_property
    def _cache_name(self) -> str:
        return cache_name(self.lm.base_model if self.split else self.lm)

    @cached_property
    def _sizes(self) -> Sizes | None:
        return None if hasattr(self.lm, "forward_cost") else sizes_of(self.lm)

    def cost(
        self, layout: Layout, *, past: int, reads: tuple[int, int], on: str, seconds: float = 0.0
    ) -> Cost:
        """What a piece takes behind `past` cached tokens, by the model's own account.

        What its mask rows add to a forward of the others is drafting, an adapter's part included;
        the rest goes `on` another account of `inward.common.trace.PARTS`. Seconds are shared as
        FLOPs are.

        Args:
            reads: (others, mask rows) whose logits are made.
        """
        clean, masks_ = layout.num_draft, layout.num_rows - layout.num_draft
        first = self._forward_cost(clean, past, reads[0], None) if clean else Cost()
        if not masks_:
            return replace(first, seconds=seconds).under(on)
        pairs = past * layout.num_rows + int(layout.tail.sum())
        both = self._forward_cost(layout.num_rows, past, sum(reads), pairs)
        if self.draft or self.verify:  # at their own depth
            alone = self._forward_cost(clean, past, reads[0], None, drafts=True) if clean else None
            both = self._forward_cost(layout.num_rows, past, sum(reads), pairs, drafts=True)
            drafts = both.less(alone) if alone is not None else both
            deeper = Cost() if alone is None else alone.less(first)
            more = max(0.0, deeper.evaluations), max(0.0, deeper.bytes)
            drafts = replace(drafts, evaluations=more[0], bytes=drafts.bytes + more[1])
        else:
            drafts = both.less(first)
        flops, read = 2.0 * self._entries * masks_, float(self._entry_bytes)
        drafts = replace(drafts, flops=drafts.flops + flops, bytes=drafts.bytes + read)
        share = seconds * drafts.flops / (drafts.flops + first.flops)
        costs = [replace(drafts, seconds=share).under("drafting")]
        if clean:
            costs.append(replace(first, seconds=seconds - share).under(on))
        return total(costs)

    def _forward_cost(
        self, rows: int, past: int, reads: int, pairs: int | None, *, drafts: bool = False
    ) -> Cost:
        options = self.options | (self._said(self.draft) if drafts else self._said(self.verify))
        return forward_cost(
            self.lm,
            rows=rows,
            past=past,
            reads=reads if self.split else rows,
            pairs=pairs,
            sizes=self._sizes,
            **options,
        )

    def _said(self, kind: dict[str, int]) -> dict[str, int]:
        """All arguments that one of the two kinds of rows has of its own, for this kind."""
        usual: dict[str, int] = getattr(self.lm, "per_position", {})
        known = {**usual, **self.options, **kind}
        return {name: known[name] for name in sorted({*self.draft, *self.verify})}

    def _further(self, pieces: Sequence[Piece], q: int) -> dict[str, Any]:
        """Further arguments of a forward of these pieces."""
        if not (self.draft or self.verify):
            return self.options
        drafts, others = self._said(self.draft), self._said(self.verify)
        if not any(piece.layout.blocks for piece in pieces) or drafts == others:
            return self.options | others
        clean = torch.zeros(len(pieces), q, dtype=torch.bool)
        for b, piece in enumerate(pieces):
            clean[b, : piece.layout.num_draft] = True
        given = {n: torch.where(clean, others[n], drafts[n]).to(self.device) for n in others}
        return self.options | given

    @cached_property
    def parameters(self) -> int:
        """Of the model and its adapter."""
        own = () if self.tidar is None or self.tidar.adapter is None else (self.tidar.adapter,)
        return parameters(self.lm, *own)

    def __call__(self, cache: RaggedCache, pieces: Sequence[Piece]) -> Output:
        """One forward; the cache then holds all rows behind each prefix, none committed."""
        q = max(piece.layout.num_rows for piece in pieces)
        cache.begin(q, self.device)
        lengths = cache.book.lengths
        ids = [piece.ids + [0] * (q - len(piece.ids)) for piece in pieces]
        inputs: dict[str, Any] = {
            "attention_mask": self._mask(cache.book, pieces, q),
            "position_ids": self._positions(lengths, pieces, q),
            self._cache_name: cache,
            "use_cache": True,
        }
        drafting = any(piece.layout.blocks for piece in pieces)
        inputs |= self._further(pieces, q)
        return self._run(torch.tensor(ids, device=self.device), inputs, drafting)

    def _run(self, ids: Tensor, inputs: dict[str, Any], drafting: bool) -> Output:
        own = self.fast(ids.shape[1])
        lm, tidar = lm_of(own), tidar_of(own)
        acting, tokens = nullcontext(), {"input_ids": ids}
        if drafting and tidar is not None:
            masked = ids == tidar.mask_id
            acting, tokens = tidar._acting(masked), tidar._embedded(ids, masked)
        looks = looking(inputs.pop("attention_mask"), len(ids), ids.shape[1], self.reach)
        with acting, looks as handed:
            asked = lm.base_model if self.split else lm
            said = asked(**tokens, attention_mask=handed, **inputs)
        if self.split:
            return Output(said.last_hidden_state, self._read)
        return Output(said.logits, None)

    def _read(self, hidden: Tensor) -> Tensor:
        return cast(nn.Module, lm_of(self.fast()).get_output_embeddings())(hidden)

    def _positions(self, lengths: list[int], pieces: Sequence[Piece], q: int) -> Tensor:
        if q == 1:  # as in all plain decoding
            places = torch.tensor(lengths, device=self.device)[:, None]
        else:
            places = self._offsets(lengths, pieces, q).to(self.device)
        return places + self.first if self.first else places

    def _offsets(self, lengths: list[int], pieces: Sequence[Piece], q: int) -> Tensor:
        """(B, q) positions of the rows, from 0."""
        rows = []
        for length, piece in zip(lengths, pieces, strict=True):
            own = piece.layout.offsets + length
            rows.append(nn.functional.pad(own, (0, q - len(own))))
        return torch.stack(rows)

    def _mask(self, book: Book, pieces: Sequence[Piece], q: int) -> Tensor | Placed | None:
        """(B, 1, q, used) additive; None, which is faster, where the model's own causal mask will
        do: a row per text of equal length, or fresh prompts of equal length without masks; `Placed`
        where a text is longer than the model's shortest window.

        The additive form, because SDPA would turn a boolean mask into it in every layer.
        """
        fresh = max(book.lengths) == 0 and all(p.layout == Layout(q) for p in pieces)
        if book.slots is None and (q == 1 or fresh):
            return None
        far = book.used > self.reach
        if not far and len(pieces) == 1 and pieces[0].layout.num_draft <= _PROMPT:
            return self._slice(pieces[0].layout, book)
        mask = torch.zeros(len(pieces), 1, q, book.used, dtype=torch.bool)
        for b, (piece, length) in enumerate(zip(pieces, book.lengths, strict=True)):
            own = piece.layout.num_rows
            mask[b, 0, :own, :length] = True
            mask[b, 0, :own, length : length + own] = piece.layout.tail
            # padding sees itself, or its softmax would be empty
            mask[b, 0, range(own, q), range(length + own, length + q)] = True
        if far:
            return self._placed(mask, book, pieces, q)
        return masks.additive(mask.to(self.device), self._dtype)

    def _placed(self, mask: Tensor, book: Book, pieces: Sequence[Piece], q: int) -> Placed:
        query = self._offsets(book.lengths, pieces, q)
        key = torch.arange(book.used).repeat(len(pieces), 1)
        for b, length in enumerate(book.lengths):
            key[b, length : length + q] = query[b]
        return Placed(mask.to(self.device), query.to(self.device), key.to(self.device))

    def _slice(self, layout: Layout, book: Book) -> Tensor:
        """A view of the layout's mask, built once for the longest prefix."""
        kept = self._masks.get(layout)
        if kept is None or kept.max_prefix < book.lengths[0]:
            tail = layout.tail.to(self.device)
            if len(self._masks) >= 64:  # an adaptive scheme meets many layouts
                self._masks.clear()
            kept = masks.DecodeMask(tail, book.capacity, dtype=self._dtype)
            self._masks[layout] = kept
        return kept.at(book.lengths[0])
