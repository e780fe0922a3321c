"""How a base takes thoughts: found out on the base itself, when it is wrapped.

A list of supported classes would be wrong on the day it is written. A few forwards of seven tokens
tell what matters, and what would go wrong silently:

- Is what stands behind a token's embedding all that the base makes of the token? Some look further
  values up by its id (Gemma 3n): for a thought there are none. Some scale the embeddings that they
  are given in place (CTRL): they get a copy. Some count positions from another number than 0
  (RoBERTa): it is added.
- Does a position look at what comes after it? Then a thought would depend on its own future.
- Do masked columns leave the others alone? If so rows of a batch share their forwards. If not (a
  recurrent state, positions counted in columns, local attention by columns) each row runs alone,
  slower and exact.
- Does a text that comes in parts, behind a cache, say what it says as a whole?
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inward.common.bases import cache_of, with_cache
from inward.common.ragged import beyond_keys
from inward.common.reach import (
    ALL,
    FAILURES,
    first_position,
    looking,
    nearness,
    quiet,
    reach_of,
)
from inward.methods.coconut.base import head_input
from inward.methods.coconut.cache import new_cache

_SHORT, _LONG, _ROWS = 7, 24, 8
"""Tokens of a probe, and rows of a long one: recurrent states drift from the whole only after a
while, and not with every text"""


@dataclass(frozen=True)
class Manners:
    """What a base is like.

    first     position of a text's first token
    copies    it writes into the embeddings that it is given, so it gets copies
    together  rows with masked columns may share a forward
    plain     its past is keys and values: it may be cut, moved, and differentiated through
    steps     behind a cache it takes one position at a time
    reach     positions within which rows with masked columns get the base's own masks: as long as
              every layer sees all that comes before; 0 if those masks fail
    """

    first: int = 0
    copies: bool = False
    together: bool = True
    plain: bool = True
    steps: bool = False
    reach: int = ALL


_KNOWN: weakref.WeakKeyDictionary[nn.Module, Manners] = weakref.WeakKeyDictionary()


def manners_of(base: PreTrainedModel, accepts: frozenset[str]) -> Manners:
    """Find a base out, once.

    Raises:
        ValueError: it cannot think exactly; what it is about this base is named.
    """
    if base not in _KNOWN:
        with quiet(base):
            _KNOWN[base] = _Probe(base, accepts).manners()
    return _KNOWN[base]


class _Probe:
    """A few tokens, and what a base makes of them."""

    def __init__(self, base: PreTrainedModel, accepts: frozenset[str]):
        self.base, self.accepts = base, accepts
        self.name = type(base).__name__
        size = cast(Tensor, base.get_input_embeddings().weight).shape[0]
        generator = torch.Generator().manual_seed(0)
        # the first ids are often padding, which some bases count no position for
        drawn = torch.randint(min(8, size - 1), size, (_ROWS, _LONG), generator=generator)
        self.ids = drawn.to(base.device)

    def manners(self) -> Manners:
        """The answers to the questions at the top of the file."""
        try:
            self._causal()
            found = self._embedded()
            alone = self._whole(found, _SHORT)
            long = alone if found.plain else self._whole(found, _LONG)
        except FAILURES as error:
            if isinstance(error, _Refused):
                raise ValueError(str(error)) from None
            raise ValueError(
                f"{self.name} fails on the embeddings of a few tokens in place of their ids "
                f"({type(error).__name__}: {str(error)[:200]}); choose a base that needs no ids"
            ) from error
        if found.plain:
            ours = [] if self._pads(found) else [replace(found, reach=0)]
            for own in (*ours, found):
                if self._shares(own, alone):
                    return own
        for steps in (False, True):
            own = replace(found, together=False, steps=steps)
            if self._goes_on(own, long):
                return own
        raise ValueError(
            f"{self.name} gives other logits for a text that comes in parts, each behind a cache "
            f"of those before, than for the whole: {self._reason()}. A thought follows what is "
            "cached, so choose a base that goes on exactly"
        )

    # -- forwards

    def _embeds(self, num: int) -> Tensor:
        """(1, num, d); a long probe has all rows."""
        ids = self.ids[: _ROWS if num == _LONG else 1, :num]
        return cast(nn.Module, self.base.get_input_embeddings())(ids)

    def _logits(self, **given: Any) -> Tensor:
        return self.base(**given, use_cache=False).logits.float()

    def _whole(self, manners: Manners, num: int) -> Tensor:
        """Logits of the first tokens as embeddings, in one forward."""
        embeds = self._embeds(num)
        positions = torch.arange(num, device=embeds.device).expand(len(embeds), -1)
        return self._logits(inputs_embeds=embeds, **self._places(positions, manners))

    def _places(self, positions: Tensor, manners: Manners) -> dict[str, Tensor]:
        takes = "position_ids" in self.accepts
        return {"position_ids": positions + manners.first} if takes else {}

    def _near(self, got: Tensor, want: Tensor) -> bool:
        gap, size = float((got - want).abs().max()), float(want.abs().max())
        near = nearness(self.base.dtype)
        # transformers' own caches of recurrent states are off by as much in single models
        return gap <= (near if near > 0.01 else near / 5) * size

    # -- questions

    def _causal(self) -> None:
        """Raise if the last token changes what is said before it."""
        ids = self.ids[:1]
        usual = self._logits(input_ids=ids[:, :7])
        other = self._logits(input_ids=torch.cat([ids[:, :6], ids[:, 7:8]], 1))
        if not self._near(other[:, :6], usual[:, :6]):
            config: Any = self.base.config.get_text_config(decoder=True)
            encodes = getattr(config, "is_decoder", True) is False
            remedy = " (its config says is_decoder=False: load it with is_decoder=True)"
            raise _Refused(
                f"{self.name} lets a position look at what comes after it"
                f"{remedy if encodes else ''}; a thought can only come from what stands before it"
            )

    def _embedded(self) -> Manners:
        """Embeddings in place of tokens: from which position on, whether they are written to, and
        whether what the head reads is as wide as they are."""
        base, kept = self.base, self._embeds(_SHORT)
        found = Manners(
            first=first_position(base), plain=not beyond_keys(base), reach=reach_of(base)
        )
        given = kept.clone()
        places = self._places(torch.arange(_SHORT, device=kept.device)[None], found)
        with head_input(base, None) as caught:
            got = self._logits(inputs_embeds=given, **places)
        if caught and caught[0].shape[-1] != kept.shape[-1]:
            raise _Refused(
                f"the head of {self.name} reads {caught[0].shape[-1]} numbers, and its embeddings "
                f"have {kept.shape[-1]}: what the head reads cannot be fed in"
            )
        if not self._near(got, self._logits(input_ids=self.ids[:1, :_SHORT])):
            raise _Refused(
                f"{self.name} makes more of a token than its embedding: with inputs_embeds it "
                f"gives other logits than with the tokens that they stand for{self._more()}. A "
                "thought is an embedding alone, so choose a base that needs no ids"
            )
        return replace(found, copies=not torch.equal(given, kept))

    def _goes_on(self, manners: Manners, whole: Tensor) -> bool:
        """Whether a text that comes in parts says what it says as a whole."""
        got = self._in_parts(manners, self._embeds(whole.shape[1]), None)
        return got is not None and self._near(got, whole)

    def _pads(self, manners: Manners) -> bool:
        """Whether columns that see nothing come to numbers, under the base's own masks: in float64
        eager attention makes NaN of them, and keys of NaN spoil every row that masks them."""
        mask = torch.tensor([[0, 0, 1, 1]], device=self.ids.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        try:
            got = self._logits(
                inputs_embeds=self._embeds(4).clone(),
                attention_mask=mask,
                **self._places(positions, manners),
            )
        except FAILURES:
            return True
        return bool(got.isfinite().all())

    def _shares(self, manners: Manners, alone: Tensor) -> bool:
        """Whether masked columns, left and between, leave a row's logits as they are alone."""
        columns = [2, 3, 4, 7, 8, 10, 11]
        embeds = self._embeds(_SHORT)[0]
        inputs = embeds[[0, 1, 2, 3, 4, 5, 6, 0, 3, 2, 5, 1]].clone()
        inputs[columns] = embeds
        mask = torch.zeros(1, 12, dtype=torch.long, device=embeds.device)
        mask[0, columns] = 1
        got = self._in_parts(manners, inputs[None], mask)
        return got is not None and self._near(got[:, columns], alone)

    def _in_parts(self, manners: Manners, inputs: Tensor, mask: Tensor | None) -> Tensor | None:
        """Logits of columns (rows, S, d) that come in parts, each behind a cache of the others;
        None if that fails, or the base keeps no cache."""
        rows, S = inputs.shape[:2]
        real = inputs.new_ones(rows, S, dtype=torch.long) if mask is None else mask
        places = (real.cumsum(1) - 1).clamp(min=0)
        middle = 5 if S == _LONG else S - 3
        last = S if manners.steps else middle + (2 if S < _LONG else 12)
        said: list[Tensor] = []
        try:
            cache = new_cache(self.base, real)
            for start, stop in pairwise([0, *range(middle, last), S]):
                given = None if mask is None else mask[:, :stop]
                with looking(given, rows, stop - start, manners.reach) as handed:
                    output = self.base(
                        inputs_embeds=inputs[:, start:stop].clone(),
                        attention_mask=handed,
                        use_cache=True,
                        **self._places(places[:, start:stop], manners),
                        **with_cache(self.base, {"cache": cache}),
                    )
                if cache_of(output) is None:
                    return None
                said.append(output.logits.float())
        except FAILURES:
            return None
        return torch.cat(said, 1)

    # -- words

    def _more(self) -> str:
        config = self.base.config.get_text_config(decoder=True)
        width = getattr(config, "hidden_size_per_layer_input", None)
        return f" (per-layer embeddings of width {width})" if width else ""

    def _reason(self) -> str:
        if kept := beyond_keys(self.base):
            return f"it keeps its past in {kept}"
        return "it counts positions, or what it may look at, in columns of its input"


class _Refused(ValueError):
    """An answer, and no failure on the way to one."""
