"""Which held-out questions a model answers rightly after each number of recurrences: one run of all
of them to the largest depth, read out on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inward.common import IGNORE
from inward.data.texts.text import TextQuestions

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM

BATCH = 256


@torch.no_grad()
def right_by_depth(
    model: HuginnForCausalLM, held: TextQuestions, depths: Sequence[int], *, seed: int = 0
) -> np.ndarray:
    """(N, D) bool: which questions are answered rightly after depths[j] recurrences."""
    if not depths or min(depths) < 1 or list(depths) != sorted(set(depths)):
        raise ValueError(f"depths are {list(depths)}; give rising numbers from 1 on")
    out = np.zeros((len(held), len(depths)), dtype=bool)
    for rows, ids, labels in batches_of(held, model):
        e, context = model.embed(ids[:, :-1])
        s = model.initial_state(e, seed=seed + state_seeds(rows), positions=context.positions)
        counted = labels[:, 1:] != IGNORE
        for i in range(max(depths)):
            s = model.iterate(s, e, context, recurrence=i)
            if i + 1 in depths:
                _, logits = model.read_out(s, context)
                wrong = (logits.argmax(-1) != labels[:, 1:]) & counted
                out[rows, list(depths).index(i + 1)] = ~wrong.any(1).cpu().numpy()
    return out


def batches_of(
    held: TextQuestions, model: HuginnForCausalLM
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Questions of one length at a time, at most BATCH: (their numbers, ids, labels) unpadded."""
    lengths = (held.ids != 0).sum(1)
    device = model.lm_head.weight.device
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        for start in range(0, len(same), BATCH):
            rows = same[start : start + BATCH]
            ids = torch.from_numpy(held.ids[rows, :length]).to(device)
            yield rows, ids, torch.from_numpy(held.labels[rows, :length]).to(device)


def state_seeds(rows: np.ndarray) -> Tensor:
    """Seeds of the initial states: every question has its own, in any batch."""
    return torch.from_numpy(rows.astype(np.int64)) << 16
