"""Plain decoding of texts one by one, for models whose rows cannot share a forward.

Drafting and batches of ragged texts ask a model for masks in four dimensions, for positions, and
for a cache of which each text owns a part (`base.check_masks`). Models with a recurrent state
(Mamba, RWKV), with ALiBi, or that count positions in columns cannot do that, and none of it is
needed to decode plainly: each text has a cache of the model's own kind and runs alone, unpadded.
As many forwards as texts; exact.

Where a model does not say behind its own cache what it says without one, there is no cache, and
each forward reads the whole text.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inward.common.bases import CACHE_NAMES, parameters_of
from inward.common.costs import forward_cost, parameters
from inward.common.reach import FAILURES, nearness, quiet
from inward.common.trace import Cost
from inward.common.twins import Twin
from inward.methods.tidar.base import check_masks_once, tokens_for
from inward.methods.tidar.batch import Layout, Output, Piece

_SHARES: weakref.WeakKeyDictionary[PreTrainedModel, str] = weakref.WeakKeyDictionary()
"""Why the rows of a model cannot share a forward; "" if they can"""
_KEPT = (*CACHE_NAMES, "cache_params", "state")
"""What models call what they keep of a text, as argument and in outputs"""
_GOES_ON: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


def why_alone(model: PreTrainedModel) -> str:
    """Why the texts of a model have to run one by one, found out once; "" if they need not."""
    if model not in _SHARES:
        try:
            check_masks_once(model)
            _SHARES[model] = ""
        except FAILURES as error:  # some cannot even say what they keep
            _SHARES[model] = str(error)
    return _SHARES[model]


@torch.no_grad()
def _goes_on(model: PreTrainedModel) -> bool:
    """Whether a text in parts, behind the model's own cache, says what it says as a whole."""
    own = Twin(model).model
    ids = tokens_for(model, 24, 3)[None]
    with quiet(own):
        whole = own(input_ids=ids, use_cache=False).logits.float()
        try:
            past, parts = None, []
            for start, stop in ((0, 12), *((i, i + 1) for i in range(12, 24))):
                logits, past = _read(own, ids, start, stop, past)
                if past is None:
                    return False
                parts.append(logits.float())
        except FAILURES:
            return False
    gap = float((torch.cat(parts, 1) - whole).abs().max())
    return gap <= nearness(model.dtype) * float(whole.abs().max())


def _read(
    model: PreTrainedModel, ids: Tensor, start: int, stop: int, past: Any, **options: Any
) -> tuple[Tensor, Any]:
    """Logits (1, stop - start, V) of some tokens of a text (1, S), and the cache behind them."""
    takes = parameters_of(model)
    name = next((name for name in _KEPT if name in takes), _KEPT[-1])
    given: dict[str, Any] = {"use_cache": True, **options}
    if past is not None:
        given[name] = past
    output = model(input_ids=ids[:, start:stop], **given)
    return output.logits, next(
        (output[name] for name in _KEPT if output.get(name) is not None), None
    )


@dataclass
class OwnCaches:
    """What each text has read: the tokens, and a cache of the model's own kind behind them."""

    tokens: list[list[int]]
    past: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.past = self.past or [None] * len(self.tokens)

    def commit(self, counts: Sequence[int]) -> None:
        """Rows of the last forward that stand: all of them, as nothing is guessed."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep some texts."""
        self.tokens = [self.tokens[row] for row in rows]
        self.past = [self.past[row] for row in rows]

    def join(self, other: OwnCaches) -> None:
        """Put the texts of another one behind these."""
        self.tokens, self.past = self.tokens + other.tokens, self.past + other.past


class AloneRunner:
    """Runs the pieces of texts one by one, see `inward.methods.tidar.batch.Runner`.

    options: further arguments of the model's forward.
    """

    split = False

    def __init__(self, model: PreTrainedModel, options: dict[str, Any]):
        self.model = self.lm = model
        self.options = options
        if model not in _GOES_ON:
            _GOES_ON[model] = _goes_on(model)
        self.cached = _GOES_ON[model]
        self.renew()

    def renew(self) -> None:
        """See the model as it is now."""
        self._own = Twin(self.lm).model

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.lm.device

    def new_cache(self, num_texts: int, capacity: int) -> OwnCaches:
        """Of texts that have read nothing."""
        return OwnCaches([[] for _ in range(num_texts)])

    @property
    def parameters(self) -> int:
        """Of the model."""
        return parameters(self.lm)

    def cost(
        self, layout: Layout, *, past: int, reads: tuple[int, int], on: str, seconds: float = 0.0
    ) -> Cost:
        """What a piece takes behind `past` tokens, which are read again where there is no cache."""
        rows = layout.num_rows
        again = 0 if self.cached else past
        cost = forward_cost(
            self.lm, rows=rows + again, past=past - again, reads=rows + again, **self.options
        )
        return replace(cost, seconds=seconds).under(on)

    def __call__(self, cache: OwnCaches, pieces: Sequence[Piece]) -> Output:
        """A forward for each text."""
        longest = max(len(piece.ids) for piece in pieces)
        said: list[Tensor] = []
        for b, piece in enumerate(pieces):
            assert not piece.layout.blocks, "nothing is drafted"
            tokens = cache.tokens[b]
            tokens += piece.ids
            ids = torch.tensor([tokens], device=self.device)
            start = len(tokens) - len(piece.ids)
            if self.cached:
                logits, cache.past[b] = _read(
                    self._own, ids, start, len(tokens), cache.past[b], **self.options
                )
            else:
                logits = self._own(input_ids=ids, use_cache=False, **self.options).logits[:, start:]
            said.append(torch.nn.functional.pad(logits, (0, 0, 0, longest - len(piece.ids))))
        return Output(torch.cat(said), None)
