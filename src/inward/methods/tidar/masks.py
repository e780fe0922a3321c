"""Who may look at whom: attention masks as predicates, with dense, additive and block forms.

A mask is a predicate in FlexAttention's signature, `(b, h, q, k) -> bool` on index tensors, so that
one definition serves a dense tensor (SDPA, eager) and a block form (FlexAttention on GPU).

TiDAR (arXiv 2511.08923, figures 2 and 3) trains on [clean tokens | mask tokens], prefills with
[prompt | one mask block] and decodes with [draft | mask blocks]. That looks like three masks but is
one rule on `Rows`:

    a row sees the clean rows of its text whose position lies before its horizon,
    and the mask rows of its own block;

a clean row's horizon is its own position + 1 (causal), a mask row's is the start of its block
(strictly before the block, or the draft would copy the answer). Clean rows have no block.
Training, prefill and decoding differ only in the rows they list, and so cannot drift apart.

    rows = training(S, block_size, offset=offset)       (1, 2S)
    dense(sees(rows))                                   (1, 1, 2S, 2S) bool, True = may look
    decode_tail(K)                                      (q, q) bool, constant over the steps

Every row sees itself, padding included, so no softmax is empty and -inf is a safe additive mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Predicate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) index tensors -> bool tensor of their common shape"""

PADDING = -1
"""Document number of rows that belong to no text: nobody sees them, they see themselves."""

CLEAN = -1
"""Block number of clean rows."""


@dataclass(frozen=True)
class Rows:
    """What the mask must know of each row of an input; all (B, n) int64, B = 1: the same for
    every sample."""

    position: Tensor
    """place in the text, what rotary or learned positions are given"""
    horizon: Tensor
    """clean rows at positions below it are seen"""
    block: Tensor
    """number of the mask block, unique within the sample; CLEAN for clean rows"""
    document: Tensor
    """number of the text within the sample; PADDING for none"""

    def __post_init__(self) -> None:
        shapes = {tuple(t.shape) for t in (self.position, self.horizon, self.block, self.document)}
        assert len(shapes) == 1 and self.position.ndim == 2, f"rows of unequal shapes {shapes}"

    @property
    def shape(self) -> tuple[int, int]:
        """(B, n)."""
        B, n = self.position.shape
        return B, n

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def select(self, start: int, stop: int | None = None) -> Rows:
        """Rows start..stop-1 of every sample."""
        return self._each(lambda tensor: tensor[:, start:stop])

    def gather(self, places: Tensor) -> Rows:
        """The rows at `places` (B, m) of each sample."""
        return self._each(lambda tensor: tensor.gather(1, places))

    def sample(self, index: int) -> Rows:
        """The rows of one sample, B = 1."""
        return self._each(lambda tensor: tensor[index : index + 1])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Rows:
        return Rows(*(change(getattr(self, name)) for name in _FIELDS))


_FIELDS = ("position", "horizon", "block", "document")


def joined(first: Rows, second: Rows) -> Rows:
    """The rows of `first`, then those of `second`."""
    return Rows(*(torch.cat([getattr(first, f), getattr(second, f)], dim=1) for f in _FIELDS))


# --------------------------------------------------------------------------------------------------
# The rule, and its forms


def sees(rows: Rows, prefix: Rows | None = None) -> Predicate:
    """The predicate whose queries are `rows` and whose keys are `prefix` (cached rows, if any)
    followed by `rows`."""
    key = rows if prefix is None else joined(prefix, rows)
    cached = 0 if prefix is None else prefix.shape[1]

    def predicate(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        block = key.block[b, k]
        before = (block == CLEAN) & (key.position[b, k] < rows.horizon[b, q])
        beside = (block != CLEAN) & (block == rows.block[b, q])
        document = key.document[b, k]
        together = (document == rows.document[b, q]) & (document != PADDING)
        return together & (before | beside) | (q + cached == k)

    return predicate


def dense(
    predicate: Predicate,
    num_queries: int,
    num_keys: int | None = None,
    *,
    num_samples: int = 1,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The predicate as a (num_samples, 1, num_queries, num_keys) bool tensor, True = may look.
    Keys default to as many as queries."""
    num_keys = num_queries if num_keys is None else num_keys
    b = torch.arange(num_samples, device=device)[:, None, None, None]
    q = torch.arange(num_queries, device=device)[:, None]
    k = torch.arange(num_keys, device=device)
    return predicate(b, torch.zeros_like(b), q, k)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the bool mask is True and -inf elsewhere.

    Eager attention adds its mask: given the boolean form it runs and is silently wrong. SDPA takes
    either, but turns a boolean mask into this one in every layer, and keeps each for backward.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def block(
    predicate: Predicate,
    num_queries: int,
    num_keys: int | None = None,
    *,
    num_samples: int = 1,
    device: torch.device | str = "cpu",
) -> BlockMask:
    """The predicate for FlexAttention: only tiles that hold anything are computed, nothing of size
    queries x keys is kept. For training on GPU; on CPU FlexAttention has no backward."""
    from torch.nn.attention.flex_attention import create_block_mask

    num_keys = num_queries if num_keys is None else num_keys
    return create_block_mask(
        predicate, num_samples, None, num_queries, num_keys, device=str(device)
    )


# --------------------------------------------------------------------------------------------------
# The three lists of rows


def training(
    documents: int | Tensor,
    block_size: int,
    *,
    offset: int | Tensor = 0,
    restarts: Tensor | None = None,
) -> Rows:
    """Rows of the doubled sequence [S clean | S mask], (B, 2S) (section 3.1, figure 3 left).

    Args:
        documents: (B, S) number of each token's text, PADDING for none; a text begins where the
            number changes. An int S: one text of that length, the same mask for every sample.
        block_size: K.
        offset: length of the first block of each text, 0 for a whole one; an int or (B,). Decoding
            meets every prefix length, a fixed grid only multiples of K.
        restarts: (B, S) bool, further places where a block starts (the first token of an answer);
            `offset` counts from each of them anew.

    Positions start from 0 in each text. The last block before a text's end or a restart may be
    short.

    Raises:
        ValueError: block_size < 1, or an offset outside 0..block_size-1.
    """
    _check_block_size(block_size)
    if isinstance(documents, int):
        documents = torch.zeros(1, documents, dtype=torch.long)
    offset = torch.as_tensor(offset, device=documents.device).reshape(-1, 1)
    if bool(((offset < 0) | (offset >= block_size)).any()):
        raise ValueError(
            f"the grid offset {offset.flatten().tolist()} must lie in 0..{block_size - 1}, "
            f"one block of {block_size}"
        )
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    document_start = _latest(place, first)
    document = torch.where(documents == PADDING, PADDING, document_start)
    position = place - document_start
    begin = _latest(place, first if restarts is None else first | restarts)
    since = place - begin
    whole = torch.div(since - offset, block_size, rounding_mode="floor") * block_size + offset
    start = begin + whole.clamp(min=0)
    clean = Rows(position, position + 1, torch.full_like(position, CLEAN), document)
    # the start's place in the sample is a number that no other block has
    masked = Rows(position, position.gather(1, start), start, document)
    return joined(clean, masked)


def _latest(place: Tensor, marked: Tensor) -> Tensor:
    """Place of the last marked one, at or before each; the first place counts as marked."""
    return torch.where(marked, place, 0).cummax(dim=1).values


def prefill(prompt: int | Tensor, block_size: int) -> Rows:
    """Rows of [prompt | one mask block], (B, S + K): the block sees the whole prompt.

    Args:
        prompt: length S, or (B, S) bool, True on real tokens (padding on either side).
        block_size: K; 0: the prompt alone.
    """
    if isinstance(prompt, int):
        prompt = torch.ones(1, prompt, dtype=torch.bool)
    real = prompt.long()
    position = (real.cumsum(1) - 1).clamp(min=0)
    clean = Rows(position, position + 1, torch.full_like(position, CLEAN), real - 1)
    length = real.sum(1, keepdim=True)
    return joined(clean, _mask_block(length, block_size, number=0))


def decode(
    num_drafts: int,
    outcomes: Sequence[int] | None = None,
    *,
    block_size: int | None = None,
    start: int | Tensor = 0,
) -> Rows:
    """Rows of one decode step: [K draft tokens | a mask block for each outcome], (B, q)
    (section 3.2, figure 3 right).

    Args:
        num_drafts: K, drafts d_1..d_K at positions start..start+K-1. 0: mask blocks alone.
        outcomes: the acceptance counts j that get a block, at positions start+j.., which sees
            d_1..d_j; default all of 1..K. j = 0 is a block right after the prefix; () verifies
            only.
        block_size: mask tokens per block, default K.
        start: P, the number of committed tokens: an int, or (B,) for samples of unequal length.

    Raises:
        ValueError: an outcome outside 0..K or twice, no row at all, or a block size below 1.
    """
    outcomes = range(1, num_drafts + 1) if outcomes is None else outcomes
    block_size = num_drafts if block_size is None else block_size
    if num_drafts < 0 or num_drafts + len(outcomes) == 0:
        raise ValueError(f"{num_drafts} drafts and {len(outcomes)} mask blocks make no decode step")
    if len(set(outcomes)) < len(outcomes) or not all(0 <= j <= num_drafts for j in outcomes):
        raise ValueError(
            f"outcomes {list(outcomes)} must be distinct acceptance counts in 0..{num_drafts}"
        )
    if outcomes:
        _check_block_size(block_size)
    first = torch.as_tensor(start, dtype=torch.long).reshape(-1, 1)
    position = first + torch.arange(num_drafts, device=first.device)
    unmarked = torch.full_like(position, CLEAN)
    rows = Rows(position, position + 1, unmarked, torch.zeros_like(position))
    for j in outcomes:
        rows = joined(rows, _mask_block(first + j, block_size, number=j))
    return rows


def _mask_block(start: Tensor, block_size: int, *, number: int) -> Rows:
    """One block of mask rows from position `start` (B, 1) on."""
    position = start + torch.arange(block_size, device=start.device)
    return Rows(
        position,
        start.expand_as(position),
        torch.full_like(position, number),
        torch.zeros_like(position),
    )


def _check_block_size(block_size: int) -> None:
    if block_size < 1:
        raise ValueError(f"the block size K is {block_size}; a draft needs at least 1 token")


# --------------------------------------------------------------------------------------------------
# Decoding: a constant tail behind a prefix that grows


@lru_cache(maxsize=256)
def decode_tail(
    num_drafts: int, outcomes: tuple[int, ...] | None = None, block_size: int | None = None
) -> Tensor:
    """(q, q) bool mask among the rows of `decode`; the same at every step, so kept. Do not write
    into it.

    Every row of a step also sees the whole committed prefix, whose columns are all ones: see
    `after_prefix` and `DecodeMask`.
    """
    rows = decode(num_drafts, outcomes, block_size=block_size)
    return dense(sees(rows), rows.shape[1])[0, 0]


def after_prefix(tail: Tensor, prefix: int | Tensor) -> Tensor:
    """The tail (q, q) behind cached rows: (B, 1, q, P + q) bool.

    `prefix` is P, or (B, P) bool, True where a sample's cache slot holds a committed token.
    """
    if isinstance(prefix, int):
        prefix = tail.new_ones(1, prefix)
    B, P = prefix.shape
    q = tail.shape[-1]
    left = prefix.to(tail.device)[:, None, None, :].expand(B, 1, q, P)
    return torch.cat([left, tail.expand(B, 1, q, q)], dim=-1)


class DecodeMask:
    """`after_prefix` for one text at a time, built once for the longest prefix: a step takes a
    slice, a view (the paper's trick with the keys in cache order)."""

    def __init__(self, tail: Tensor, max_prefix: int, *, dtype: torch.dtype | None = None):
        """dtype: make the additive form, None: stay boolean."""
        self.max_prefix = max_prefix
        mask = after_prefix(tail, max_prefix)
        self.mask = mask if dtype is None else additive(mask, dtype)

    def at(self, prefix: int) -> Tensor:
        """(1, 1, q, P + q) for a prefix of P committed tokens."""
        if not 0 <= prefix <= self.max_prefix:
            raise ValueError(f"prefix is {prefix}; this mask was built for 0..{self.max_prefix}")
        return self.mask[..., self.max_prefix - prefix :]
