"""Huginn's work: requests sorted into lanes, each with the loop of its mode."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from inward.common.thinking import Lanes, Request
from inward.methods.huginn.asked import mode_of, sharing_in
from inward.methods.huginn.generate import Engine
from inward.methods.huginn.loop import HuginnLoop, seats_of
from inward.methods.huginn.parallel import Waves
from inward.methods.huginn.speculate import Drafts
from inward.methods.huginn.texts import whole

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM


def begin(model: HuginnForCausalLM, *, batch_size: int = 16, in_flight: int | None = None) -> Lanes:
    """See `door.begin`."""
    seats_of(batch_size, in_flight)  # refuses before any request
    sizes: dict[str, Any] = {"batch_size": batch_size, "in_flight": in_flight}

    def engine(key: tuple[str, Any, bool | None, Any]) -> HuginnLoop:
        mode, sharing, packed, more = key
        if mode == "parallel":
            exact, inner_steps = more
            return Waves(
                model, sharing, exact=exact, inner_steps=inner_steps, packed=packed, **sizes
            )
        return (Drafts if mode == "speculate" else Engine)(model, sharing, packed=packed, **sizes)

    return Lanes(_lane, engine)


def _lane(request: Request) -> Hashable:
    """What two requests must have in common to share a forward: the rest may differ row by row."""
    own, mode = request.own, mode_of(request.own)
    more = None
    if mode == "parallel":
        inner_steps = own.get("inner_steps", 1)
        whole("inner_steps", inner_steps, 1)
        more = own.get("exact", False), inner_steps
    return mode, sharing_in(own), own.get("packed"), more
