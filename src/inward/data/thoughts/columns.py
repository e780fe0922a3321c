"""Segments become columns: the batch that Coconut runs on.

Block j of every row starts in the same column, so that one pass serves all rows. The masked columns
that this takes come before the text that leads to a block, never between a thought and the position
it comes from; for the first block that is the left padding of the released code.

Shape letters: B rows, S columns, K thoughts of a row, d width, L positions of one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inward.common import IGNORE
from inward.data.thoughts.segments import Latent, Sample, Specials

LatentBatch = dict[str, Tensor]
"""What `collate` makes. All (B, S) but the last:

input_ids       int64, tokens; the placeholder id at thoughts, the pad id at masked columns
attention_mask  int64, 1 where a row has a token or a thought
position_ids    int64, the place within the row, masked columns not counted
labels          int64, the token that this column shall predict (already shifted), or -100
latent          bool, the column is a thought
weight          (B,) int64, labels of each row; the training loop divides by their sum
spans           (B, S, W) int64, only where thoughts are to hold words: what the thought after this
                column is to hold, or -100
"""


def collate(
    samples: Sequence[Sample],
    specials: Specials,
    *,
    pad: int = 0,
    max_positions: int | None = None,
    learned_stop: bool = False,
    may_end_open: bool = False,
) -> LatentBatch:
    """Columns for a batch of samples, block j of every row starting in the same column.

    Args:
        pad: id in masked columns; never attended to.
        max_positions: what the context of the base holds (`Coconut.max_positions`).
        learned_stop: also teach the positions before a thought to say the placeholder ("think
            on"), so that the <eot> after the last one, if it is supervised, becomes a decision.
        may_end_open: rows are prompts, whose last block of thoughts may still be open.

    Raises:
        ValueError: no samples, unbalanced boundary tokens, a placeholder inside text, a row longer
            than `max_positions`; the row is named.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample, got none")
    for r, sample in enumerate(samples):
        try:
            sample.check(specials, max_positions=max_positions, may_end_open=may_end_open)
        except ValueError as error:
            raise ValueError(f"row {r} of the batch: {error}") from error
    columns = _columns(samples)
    B, S = len(samples), max(int(c[-1]) for c in columns) + 1
    arrays = {
        "input_ids": np.full((B, S), pad, np.int64),
        "attention_mask": np.zeros((B, S), np.int64),
        "position_ids": np.zeros((B, S), np.int64),
        "labels": np.full((B, S), IGNORE, np.int64),
        "latent": np.zeros((B, S), bool),
    }
    for r, (sample, column) in enumerate(zip(samples, columns, strict=True)):
        ids, supervised, latent = _flat(sample, specials.latent)
        arrays["input_ids"][r, column] = ids
        arrays["attention_mask"][r, column] = 1
        arrays["position_ids"][r, column] = np.arange(len(ids))
        arrays["latent"][r, column] = latent
        wanted = supervised | latent if learned_stop else supervised
        arrays["labels"][r, column[:-1]] = np.where(wanted[1:], ids[1:], IGNORE)
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    batch["weight"] = (batch["labels"] != IGNORE).sum(1)
    if (spans := _spans(samples, columns, S, learned_stop)) is not None:
        batch["spans"] = torch.from_numpy(spans)
    return batch


def _spans(
    samples: Sequence[Sample], columns: Sequence[np.ndarray], S: int, learned_stop: bool
) -> np.ndarray | None:
    """(B, S, W) what thoughts are to hold, in the column before each; None: nothing."""
    held: dict[tuple[int, int], tuple[int, ...]] = {}
    for r, (sample, column) in enumerate(zip(samples, columns, strict=True)):
        place = 0
        for segment in sample.segments:
            if isinstance(segment, Latent):
                held |= {(r, int(column[place + j]) - 1): s for j, s in enumerate(segment.spans)}
            place += len(segment)
    if not held:
        return None
    if learned_stop:
        raise ValueError(
            "learned_stop teaches the position before a thought to say the placeholder, and these "
            "thoughts are to hold words there; use one of the two"
        )
    widths = {len(span) for span in held.values()}
    if len(widths) > 1:
        raise ValueError(f"spans have {sorted(widths)} places; all of a batch must have the same")
    found = np.full((len(samples), S, widths.pop()), IGNORE, np.int64)
    for (r, c), span in held.items():
        found[r, c] = span
    return found


def _flat(sample: Sample, latent: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids (placeholder at thoughts), supervised flags and thought flags of one row, each (L,)."""
    ids, supervised, thinks = [], [], []
    for segment in sample.segments:
        silent = isinstance(segment, Latent)
        ids.append(np.full(len(segment), latent) if silent else np.asarray(segment.ids))
        supervised.append(np.full(len(segment), not silent and segment.supervised))
        thinks.append(np.full(len(segment), silent))
    return np.concatenate(ids), np.concatenate(supervised), np.concatenate(thinks)


def _columns(samples: Sequence[Sample]) -> list[np.ndarray]:
    """For each row the column of each of its positions.

    A row is cut into stretches: the text before block j and the block itself. Block j starts where
    the slowest of the rows that have one is ready; the masked columns come before the text, so that
    the column before a thought always holds what the thought comes from. What follows the last
    block of a row needs no alignment.
    """
    stretches = [_stretches(sample) for sample in samples]
    cursor = [0] * len(samples)
    parts: list[list[np.ndarray]] = [[] for _ in samples]
    for j in range(max(len(row) for row in stretches)):
        ready = [cursor[r] + row[j][0] for r, row in enumerate(stretches) if j + 1 < len(row)]
        for r, row in enumerate(stretches):
            if j >= len(row):
                continue
            text, num = row[j]
            start = cursor[r] if j + 1 == len(row) else max(ready) - text
            parts[r].append(np.arange(start, start + text + num))
            cursor[r] = start + text + num
    return [np.concatenate(part) for part in parts]


def _stretches(sample: Sample) -> list[tuple[int, int]]:
    """(tokens, thoughts after them) for each block, and (tokens, 0) for the text at the end."""
    stretches, text = [], 0
    for segment in sample.segments:
        if isinstance(segment, Latent):
            stretches.append((text, segment.num))
            text = 0
        else:
            text += len(segment)
    return [*stretches, (text, 0)]


def thought_numbers(latent: Tensor) -> Tensor:
    """(B, S) int64: which thought of its row a column is, from 0; -1 where it is none."""
    return torch.where(latent, latent.cumsum(1) - 1, -1)


def before_thoughts(latent: Tensor) -> Tensor:
    """(B, S) bool: columns whose hidden state becomes a thought. Their logits are the lens on it.

    The first column can hold no thought, and `collate` leaves no masked column before one.
    """
    return F.pad(latent[:, 1:], (0, 1))


def pick(values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen columns (B, S) bool of values (B, S, d), row by row from the left: (B, K, d) and
    (B, K) bool."""
    num = chosen.sum(1)
    K = int(num.max())
    first = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :K]
    there = torch.arange(K, device=num.device) < num[:, None]
    picked = values.gather(1, first[:, :, None].expand(-1, -1, values.shape[-1]))
    return picked * there[:, :, None], there


def widened(x: Tensor) -> Tensor:
    """At least float32: what losses and probabilities are computed in."""
    return x if x.dtype == torch.float64 else x.float()
