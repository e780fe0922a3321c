"""Requests of every kind in work: those whose texts can share a forward are decoded together."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from inward.common.thinking import Lanes, Method, Request
from inward.methods.tidar.decoder import Decoder
from inward.methods.tidar.measure import measured
from inward.methods.tidar.request import DecodeSettings

if TYPE_CHECKING:
    from inward.methods.tidar.model import TiDAR


@dataclass(frozen=True)
class Lane:
    """Settings as the key of a lane: equal where texts may share a forward. It holds the settings,
    so that what is told apart by being another object stays alive."""

    shared: tuple[Hashable, ...]
    settings: DecodeSettings = field(compare=False)


def begin(method: Method, model: TiDAR | PreTrainedModel, *, batch_size: int = 32) -> Lanes:
    """Work for requests to decode; plain, if the method has no scheme to choose.

    Args:
        batch_size: texts that share a forward; in each lane more wait.

    Raises:
        ValueError: batch_size < 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, must be at least 1")
    fixed = {} if "scheme" in method.options else {"scheme": "plain"}
    num_alone = 0

    def key(request: Request) -> Lane:
        nonlocal num_alone
        method.check_options(request.own)
        settings = DecodeSettings(**{**request.own, **fixed})
        method.check_acts(model, request)
        shared = settings.shared
        if settings.scheme == "auto" and request.sampling and request.sampling.rule == "rejection":
            # under this rule the text depends on what was drafted, and here neighbours have a say
            num_alone += 1
            shared = (*shared, num_alone)
        return Lane(shared, settings)

    def engine(lane: Lane) -> Decoder:
        settings = replace(lane.settings, drafter=None)  # of the request that came first
        return Decoder(
            model, settings, batch_size=batch_size, measured=measured, method=method.name
        )

    return Lanes(key, engine)
