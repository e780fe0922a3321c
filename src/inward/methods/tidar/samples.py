"""Training samples of TiDAR: [clean tokens | masks], targets and weights by place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from inward.common import IGNORE
from inward.common.draws import Batch, Draws
from inward.methods.tidar import masks
from inward.methods.tidar.losses import Taught, Unread, branch
from inward.methods.tidar.masks import Rows
from inward.methods.tidar.settings import TiDARSettings


def training_rows(batch: Batch, settings: TiDARSettings, draws: Draws | None) -> Rows:
    """Rows of the doubled sequences of a batch, (B or 1, 2S).

    Without documents and aligned answers all samples share one grid, drawn for the step, and
    with it one mask. draws=None: the fixed grid.
    """
    ids = batch["input_ids"]
    K = settings.num_masks
    documents, restarts = batch.get("documents"), None
    if settings.align_answers and "supervised" in batch:
        restarts = answer_starts(batch["supervised"])
    shared = documents is None and restarts is None
    offset: int | Tensor = 0
    if draws is not None and settings.grid == "random":
        # drawn both ways, so that the draws that follow are the same
        own = draws.integers(0, K)
        common = torch.randint(0, K, (1,), generator=draws.generator)
        offset = common if shared else own
    if shared:
        rows = masks.training(ids.shape[1], K, offset=offset)
    else:
        documents = torch.zeros_like(ids) if documents is None else documents
        rows = masks.training(documents, K, offset=offset, restarts=restarts)
    return rows.to(ids.device)


def answer_starts(supervised: Tensor) -> Tensor:
    """(B, S) bool: the first token of each run of supervised ones."""
    starts = supervised.clone()
    starts[:, 1:] &= ~supervised[:, :-1]
    return starts


def doubled(input_ids: Tensor, mask_id: int, hidden: Tensor | None = None) -> Tensor:
    """[clean | masked], (B, 2S). `hidden` (B, S) bool: which tokens of the second half are masked,
    default all."""
    if hidden is None:
        return torch.cat([input_ids, torch.full_like(input_ids, mask_id)], dim=1)
    return torch.cat([input_ids, input_ids.masked_fill(hidden, mask_id)], dim=1)


def targets(batch: Batch, rows: Rows) -> Tensor:
    """(B, S) the token where it is to be predicted, IGNORE elsewhere: not supervised, padding, or
    the first of its text, which nothing comes before."""
    ids = batch["input_ids"]
    S = ids.shape[1]
    counts = (rows.position[:, :S] > 0) & (rows.document[:, :S] != masks.PADDING)
    if "supervised" in batch:
        counts = counts & batch["supervised"]
    return torch.where(counts, ids, IGNORE)


def next_targets(wanted: Tensor) -> Tensor:
    """(B, S) the targets shifted for the clean rows: row i predicts target i + 1."""
    return F.pad(wanted[:, 1:], (0, 1), value=IGNORE)


def draft_part(part: Part, settings: TiDARSettings) -> Part:
    """The part with what its mask rows are to predict in `wanted`."""
    return replace(part, wanted=next_targets(part.wanted)) if settings.shifted else part


def hidden_tokens(
    num_tokens: int, settings: TiDARSettings, draws: Draws | None
) -> tuple[Tensor, Tensor] | None:
    """Random masking: which tokens are masked, (B, S) bool, and 1 / t, (B, 1). None: full masking.

    The number of masked tokens is t * S on average, so the weighted sum has the expectation of
    the unweighted sum under full masking.
    """
    if settings.masking == "full" or draws is None:
        return None
    t = settings.min_mask + (1 - settings.min_mask) * draws.uniform(1)
    return draws.uniform(num_tokens) < t, 1 / t


@dataclass(frozen=True)
class Part:
    """Samples that run together."""

    ids: Tensor
    """(B, S)"""
    wanted: Tensor
    """(B, S), see `targets`"""
    rows: Rows
    """(B or 1, 2S)"""
    hidden: tuple[Tensor, Tensor] | None = None
    """see `hidden_tokens`"""


def draft_branch(
    logits: Tensor | Unread,
    part: Part,
    settings: TiDARSettings | None = None,
    taught: Taught | None = None,
) -> dict[str, Tensor]:
    """`branch` of the mask rows, (B, S, V): only tokens that were masked count.

    settings   for the weights by place in the block; None: all places count alike
    """
    wanted, weight = part.wanted, None
    if part.hidden is not None:
        hidden, weight = part.hidden
        wanted = wanted.masked_fill(~hidden, IGNORE)
    if settings is not None and settings.decay < 1:
        places = place_weights(part.rows.select(-wanted.shape[1]), settings)
        weight = places if weight is None else weight * places
        weight = weight.expand_as(wanted)
    return branch("draft", logits, wanted, weight, taught)


def place_weights(masked: Rows, settings: TiDARSettings) -> Tensor:
    """settings.decay ** place of each mask row in its block, over the mean of a whole block."""
    ratio, K = settings.decay, settings.num_masks
    mean = sum(ratio**j for j in range(K)) / K
    return ratio ** (masked.position - masked.horizon) / mean
