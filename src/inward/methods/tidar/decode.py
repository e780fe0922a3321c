"""Decode texts at once, or burst by burst: the doors to `decoder`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from inward.methods.tidar.decoder import Burst, Decoded, Decoder
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.request import DecodeSettings


def decode(
    model: TiDAR | PreTrainedModel,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    mask_id: int | None = None,
    streamer: BaseStreamer | None = None,
    on_burst: Callable[[Burst], None] | None = None,
    **settings: Any,
) -> Decoded:
    """Continue texts.

    Args:
        model: a TiDAR model; or any causal LM with `mask_id`, which drafts as well as it happens
            to (plain decoding, or a drafter with "plain", needs no mask token).
        input_ids: (B, S) prompts. attention_mask: (B, S), 0 on padding, at either side.
        streamer: gets committed tokens of a single text, never a draft, and the prompt first, as
            in transformers. on_burst: gets every `Burst`, drafts included.
        settings: fields of `DecodeSettings`: scheme, K, beta, max_new_tokens, sampling, ...

    Raises:
        ValueError: a setting out of range; K or a prompt beyond the context; the mask token within
            a prompt; no mask token; a model that ignores 4-D masks, is in training mode or on
            another device than the ids.
    """
    decoder = Decoder(
        model,
        input_ids,
        attention_mask=attention_mask,
        mask_id=mask_id,
        settings=DecodeSettings(**settings),
    )
    if streamer is not None:
        if len(decoder.rows) > 1:
            raise ValueError(f"a streamer shows one text, the batch has {len(decoder.rows)}")
        streamer.put(torch.tensor([decoder.rows[0].tokens]))
    while decoder.active:
        for burst in decoder.step():
            if on_burst is not None:
                on_burst(burst)
            if streamer is not None and burst.tokens:
                streamer.put(torch.tensor(burst.tokens))
    if streamer is not None:
        streamer.end()
    return decoder.result()


def stream(model: TiDAR | PreTrainedModel, input_ids: Tensor, **arguments: Any) -> Iterator[Burst]:
    """As `decode`, but yields each burst when it comes; closing the iterator ends the work."""
    own = {name: arguments.pop(name, None) for name in ("attention_mask", "mask_id")}
    decoder = Decoder(model, input_ids, settings=DecodeSettings(**arguments), **own)
    while decoder.active:
        yield from decoder.step()
