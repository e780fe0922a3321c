"""What the loops must know of Huginn: its options, its unit of effort, and how its work begins."""

from __future__ import annotations

from typing import Any

from inward.common.thinking import Method, Work
from inward.methods.huginn.options import NAME, OPTIONS, TRACES


def begin(model: Any, *, batch_size: int = 16, in_flight: int | None = None) -> Work:
    """Work with a Huginn model.

    batch_size: rows of a pass. in_flight: texts with a place in the cache, at least batch_size;
        default: twice as many. Both of each lane: requests share passes if `mode`, `sharing`,
        `packed`, and in the parallel mode `exact` and `inner_steps`, are the same.
    """
    from inward.methods.huginn.work import begin

    return begin(model, batch_size=batch_size, in_flight=in_flight)


METHOD = Method(
    name=NAME,
    begin=begin,
    options=OPTIONS,
    traces=TRACES,
    unit=("max_steps", "recurrences"),
    steps="recurrences",
    remembers=True,
    budget=("max_steps", "recurrences a token"),
)
