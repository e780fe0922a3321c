"""What it costs to think all thoughts at once: the Jacobi executor with fewer iterations than
thoughts, beside the exact one.

    for error in jacobi_errors(model, samples): print(error)

After k iterations the first k thoughts of a row are exact (PCCoT, arXiv 2506.18582), the later ones
approximate. How wrong they are, and whether it matters for what is said, depends on the model: so
it is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from inward.common import IGNORE
from inward.data.thoughts.columns import LatentBatch
from inward.data.thoughts.segments import Sample

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut


@dataclass(frozen=True)
class JacobiError:
    """After so many iterations, over all samples: relative distance of the thoughts from the exact
    ones, |jacobi - exact| / |exact|; and of the words after the first thought, nats a word above
    the exact loss (negative: below), and the share of places whose likeliest word is another."""

    iterations: int
    thoughts: float
    loss: float
    words: float


@torch.no_grad()
def jacobi_errors(
    model: Coconut, samples: Sequence[Sample], *, most: int | None = None, batch: int = 8
) -> list[JacobiError]:
    """Errors after 0, 1, .. `most` iterations; None: until they are exact, one for each thought.

    Args:
        samples: with words after their first thought, of the data or said (`Generated.samples`).

    Raises:
        ValueError: most is negative, no sample thinks, or none says anything afterwards.
    """
    if most is not None and most < 0:
        raise ValueError(f"most is {most}, must be 0 or more iterations")
    num = max((sample.num_thoughts for sample in samples), default=0)
    if num == 0:
        raise ValueError(f"none of the {len(samples)} samples has a thought; nothing is iterated")
    sums = torch.zeros(1 + (num if most is None else most), 3, dtype=torch.float64)
    places = range(0, len(samples), batch)
    batches = [_after_thoughts(model, samples[i : i + batch]) for i in places]
    count = sum(int((rows["labels"] != IGNORE).sum()) for rows in batches)
    if count == 0:
        raise ValueError("no sample says a word after its first thought; give samples that do")
    length = 0.0
    for rows in batches:
        exact = model(rows, logits="all")  # the passes of both read their columns in other orders
        thoughts, _ = exact.thoughts()
        words, spoken = exact.logits.argmax(-1), rows["labels"] != IGNORE
        length += float(thoughts.double().square().sum())
        for k in range(len(sums)):
            found = model(rows, executor="jacobi", iterations=k, logits="all")
            distance = (found.thoughts()[0] - thoughts).double().square().sum()
            differing = ((found.logits.argmax(-1) != words) & spoken).sum()
            sums[k] += torch.stack([distance, found.total - exact.total, differing]).cpu()
    return [
        JacobiError(k, (float(square) / length) ** 0.5, float(loss) / count, float(words) / count)
        for k, (square, loss, words) in enumerate(sums)
    ]


def _after_thoughts(model: Coconut, samples: Sequence[Sample]) -> LatentBatch:
    """The samples, every word after the first thought a label, boundary tokens not."""
    batch = model.collate(samples, may_end_open=True)
    ids, latent = batch["input_ids"], batch["latent"]
    said = (latent.cumsum(1) > 0) & ~latent & batch["attention_mask"].bool()
    for boundary in (model.specials.bot, model.specials.eot):
        said &= ids != boundary
    labels = torch.full_like(ids, IGNORE)
    labels[:, :-1] = ids[:, 1:].masked_fill(~said[:, 1:], IGNORE)
    return {**batch, "labels": labels}
