"""The loss of a draft adapter, on the rows that it needs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from inward.common import IGNORE
from inward.common.bases import growing_cache
from inward.methods.tidar.base import looks_of, splits
from inward.methods.tidar.losses import Taught, Unread

if TYPE_CHECKING:
    from inward.methods.tidar.model import TiDAR
    from inward.methods.tidar.samples import Part


def needed_rows(part: Part) -> Tensor:
    """(B, n) places, rising, of the mask rows whose block has a token to predict: nothing is
    learnt from the others, and nobody sees them. n is that of the fullest sample; in the rest
    some other blocks, or parts of them, run along. Samples that share a mask go on sharing it:
    (1, n), the blocks that any of them needs."""
    wanted = part.wanted != IGNORE
    if part.hidden is not None:
        wanted = wanted & part.hidden[0]
    block = part.rows.block[:, wanted.shape[1] :]
    if len(block) < len(wanted):
        wanted = wanted.any(0, keepdim=True)
    hits = torch.zeros_like(block).scatter_add_(1, block, wanted.long())
    needed = hits.gather(1, block) > 0
    n = max(1, int(needed.sum(1).max()))
    return (~needed).long().argsort(dim=1, stable=True)[:, :n].sort(dim=1).values


def _kept(part: Part, places: Tensor) -> Part:
    """The mask rows at these places, with what they are to predict."""
    B, S = part.ids.shape
    rows, places = part.rows.select(S).gather(places), places.expand(B, -1)
    hidden = part.hidden and (part.hidden[0].gather(1, places), part.hidden[1])
    return replace(part, wanted=part.wanted.gather(1, places), rows=rows, hidden=hidden)


def draft_logits(tidar: TiDAR, part: Part, kept: Tensor) -> tuple[Tensor | Unread, Taught | None]:
    """(B, n, V) logits of the mask rows at places `kept` (B or 1, n), or these rows unread
    (`TiDAR.scores`), with gradient to the adapter alone: the clean half runs first, without
    gradient, and its keys and values are a constant prefix. And, for settings.distill, what the
    clean half says of the same places."""
    B, S = part.ids.shape
    from inward.methods.tidar.samples import doubled  # it knows this module

    device = part.ids.device
    clean, masked = part.rows.select(0, S), part.rows.select(S).gather(kept)
    nobody = torch.zeros(B, S, dtype=torch.bool, device=device)
    # one that keeps gradients and forgets nothing, whatever the model would make by itself
    cache = growing_cache(tidar.model)
    share, unread = tidar.settings.distill, splits(tidar.model)
    with torch.no_grad():
        said = tidar(
            part.ids,
            position_ids=clean.position,
            attention_mask=looks_of(tidar.model, clean),
            draft_rows=nobody,
            cache=cache,
            use_cache=True,
            logits_to_keep=0 if share else 1,
            unread=unread,
            **tidar.depths(None),
        )
    n = kept.shape[1]
    ids = doubled(part.ids, tidar.mask_id, part.hidden and part.hidden[0])[:, S:]
    drafting = torch.ones(B, n, dtype=torch.bool, device=device)
    scores = tidar.scores(
        ids.gather(1, kept.expand(B, -1)),
        position_ids=masked.position,
        attention_mask=looks_of(tidar.model, masked, clean),
        draft_rows=drafting,
        cache=cache,
        use_cache=True,
        **tidar.depths(drafting),
    )
    if not share:
        return scores, None
    # clean row i - 1 (shifted: i) says what mask row i is to predict; nobody is asked for the first
    # token of a text
    before = (kept.expand(B, -1) - tidar.settings.lead).clamp(min=0)[..., None]
    found = said.last_hidden_state if unread else said.logits
    found = found.gather(1, before.expand(-1, -1, found.shape[-1]))
    if unread and not isinstance(scores, Unread):
        with torch.no_grad():
            found = tidar.ban(cast(nn.Module, tidar.model.get_output_embeddings())(found))
    return scores, (found, share)
