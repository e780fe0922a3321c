"""How many drafted tokens stand: by teacher forcing, without decoding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from inward.common import IGNORE
from inward.common.draws import Batch
from inward.methods.tidar.losses import Unread
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.samples import Part, next_targets, targets, training_rows


@torch.no_grad()
def acceptance(tidar: TiDAR, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """How much of a draft the model itself would say, by teacher forcing: (sum, count) of

    accepted   tokens a decode step commits: its first, which is the verifier's own, and the drafts
               behind it up to the first that differs from the model's greedy word (section 3.2)
    first      how often the first mask of a block names the model's greedy word

    over the whole blocks of a batch (see `TiDAR.loss`) on the fixed grid. On the model's own greedy
    text `accepted` is what greedy decoding with all outcomes pre-drafted will show.
    """
    settings, S = tidar.settings, batch["input_ids"].shape[1]
    rows = training_rows(batch, tidar.settings, None)
    wanted = targets(batch, rows)
    scores = tidar.read_or_not(Part(batch["input_ids"], wanted, rows))
    best = scores.argmax() if isinstance(scores, Unread) else scores.argmax(-1)
    said, drafted, M = best[:, :S], best[:, S:], settings.num_masks
    if settings.shifted:  # mask row i and clean row i speak of the same token
        aims = next_targets(wanted)
    else:  # mask row i and clean row i - 1
        said, aims = F.pad(said[:, :-1], (1, 0), value=IGNORE), wanted
    match = (drafted == said).unfold(1, M, 1)
    block = rows.block[:, S:].expand_as(aims)
    place = torch.arange(S, device=block.device)
    starts = (block == place) & (wanted != IGNORE)
    last = S - M + 1
    whole = starts[:, :last] & (block[:, M - 1 :] == place[:last]) & (aims[:, M - 1 :] != IGNORE)
    runs = match[whole]
    count = torch.tensor(len(runs))
    accepted = 1 + runs[:, settings.lead :].cumprod(1).sum(1)
    return {"accepted": (accepted.sum(), count), "first": (runs[:, 0].sum(), count)}
