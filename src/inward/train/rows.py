"""What methods carry from step to step, by the rows of the global batch that it belongs to.

A state holds one piece of it for each micro-batch of each process. Another number of processes has
other micro-batches; each takes its rows out of the pieces that have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Carry = dict[str, Tensor] | None
Place = tuple[int, int]
"""Process and micro-batch, from 0"""


def slices(batch_rows: int, parts: int, rank: int, world_size: int) -> list[range]:
    """Rows of the global batch that each of `parts` micro-batches of process `rank` owns."""
    size = batch_rows // (parts * world_size)
    return [range(n * size, (n + 1) * size) for n in range(rank * parts, (rank + 1) * parts)]


def saved_rows(content: Mapping[str, Any]) -> dict[Place, range]:
    """Where the rows of a state lie: (process, micro-batch) -> rows; {} if it does not say."""
    rows = content.get("rows")
    world, parts = content["world_size"], content["micro_batches"]
    settings = content["identity"].get("settings")
    if rows is None and isinstance(settings, Mapping) and "batch_rows" in settings:  # format 1
        rows = settings["batch_rows"]
    if rows is None:
        return {}
    return {
        (rank, number): span
        for rank in range(world)
        for number, span in enumerate(slices(rows, parts, rank, world))
    }


def carries_of(
    wanted: list[range], saved: Mapping[Place, range], read: Callable[[Place], Carry], folder: Any
) -> list[Carry]:
    """The method state of these micro-batches.

    Raises:
        ValueError: its tensors do not have one row for each row of the batch, so that it cannot be
            divided anew.
    """
    kept: dict[Place, Carry] = {}

    def once(place: Place) -> Carry:
        if place not in kept:
            kept[place] = read(place)
        return kept[place]

    return [_rows_of(rows, saved, once, folder) for rows in wanted]


def _rows_of(
    rows: range, saved: Mapping[Place, range], read: Callable[[Place], Carry], folder: Any
) -> Carry:
    for place, span in saved.items():
        if span == rows:
            return read(place)
    found: list[dict[str, Tensor]] = []
    for place, span in sorted(saved.items(), key=lambda item: item[1].start):
        first, last = max(rows.start, span.start), min(rows.stop, span.stop)
        if first >= last:
            continue
        carry = read(place)
        if carry is None:
            return None  # methods carry always or never
        for name, value in carry.items():
            if value.ndim == 0 or len(value) != len(span):
                raise ValueError(
                    f"{folder} holds method state {name!r} of shape {tuple(value.shape)} for "
                    f"{len(span)} rows; what does not lie row by row cannot be divided among "
                    "another number of processes. Start it with as many as it was started with"
                )
        found.append({n: v[first - span.start : last - span.start] for n, v in carry.items()})
    names = {name for piece in found for name in piece}
    return {name: torch.cat([piece[name] for piece in found]) for name in sorted(names)}
