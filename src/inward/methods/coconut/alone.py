"""Rows of a batch one by one, for bases that masked columns would change (`manners`).

Exact and slow: as many forwards as all rows have passes. What comes back is laid into the columns
of the batch, 0 where a column is masked, so that nobody else has to know.

Shape letters: B rows, S columns, L positions of one row, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from inward.data.thoughts.columns import LatentBatch
from inward.methods.coconut.output import PassOutput

Edit = Callable[[Tensor, Tensor, Tensor], Tensor]
Execute = Callable[[LatentBatch, Tensor | None, Edit | None], Iterator[PassOutput]]
"""(batch, wanted columns, edit) -> parts"""

_COLUMNS = ("input_ids", "attention_mask", "position_ids", "labels", "latent")


def rows_alone(
    batch: LatentBatch, wanted: Tensor | None, edit: Edit | None, execute: Execute
) -> PassOutput:
    """All columns of a batch as one part.

    wanted   (B, S) bool, none of them masked; None: the logits of all columns, (B, S, V)
    """
    mask = batch["attention_mask"].bool()
    B, S = mask.shape
    rows: list[PassOutput] = []
    for r in range(B):
        own = mask[r].nonzero()[:, 0]
        row = {name: batch[name][r : r + 1, own] for name in _COLUMNS}
        chosen = None if wanted is None else wanted[r : r + 1, own]
        parts = execute(row, chosen, None if edit is None else _of_row(edit, r, B))
        rows.append(_joined(list(parts)))
    places = [mask[r].nonzero()[:, 0] for r in range(B)]

    def laid(of_rows: list[Tensor]) -> Tensor:
        found = [_spread(one, own, S) for one, own in zip(of_rows, places, strict=True)]
        return torch.cat(found)

    logits = [row.logits for row in rows]
    return PassOutput(
        0,
        S,
        laid([row.inputs for row in rows]),
        laid([row.hidden for row in rows]),
        laid(logits) if wanted is None else torch.cat(logits),
        tuple(laid(list(states)) for states in zip(*(row.layers for row in rows), strict=True)),
    )


def _spread(values: Tensor, own: Tensor, S: int) -> Tensor:
    """(1, L, d) into S columns."""
    return values.new_zeros(1, S, values.shape[-1]).index_copy(1, own, values)


def _joined(parts: list[PassOutput]) -> PassOutput:
    """The parts of one row."""
    return PassOutput(
        0,
        parts[-1].stop,
        torch.cat([part.inputs for part in parts], 1),
        torch.cat([part.hidden for part in parts], 1),
        torch.cat([part.logits for part in parts], -2),
        tuple(torch.cat(states, 1) for states in zip(*(p.layers for p in parts), strict=True)),
    )


def _of_row(edit: Edit, r: int, B: int) -> Edit:
    """An edit that is shown all rows, of which one is thinking."""

    def own(thought: Tensor, where: Tensor, number: Tensor) -> Tensor:
        def among(value: Tensor) -> Tensor:
            return value.new_zeros(B, *value.shape[1:]).index_copy(
                0, torch.tensor([r], device=value.device), value
            )

        return edit(among(thought), among(where), among(number))[r : r + 1]

    return own
