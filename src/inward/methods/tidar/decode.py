"""Decode texts at once, or event by event: loops over `decoder` for texts that begin together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StopStringCriteria
from transformers.generation.streamers import BaseStreamer

from inward.common.requests import end_tokens, prompts_of
from inward.common.sampling import Sampling
from inward.common.thinking import Event, Request, run
from inward.common.trace import Trace
from inward.methods.tidar.base import context_limit, lm_of
from inward.methods.tidar.decoder import Decoder
from inward.methods.tidar.measure import measured
from inward.methods.tidar.request import MAX_NEW_TOKENS, DecodeSettings, check_ids

if TYPE_CHECKING:
    from inward.methods.tidar.model import TiDAR


@dataclass(frozen=True)
class Decoded:
    """tokens: per text, its new tokens, the one that ended it included. traces: per text.
    num_forwards: of the whole batch. picked: forwards by scheme, if "auto"."""

    tokens: list[list[int]]
    traces: list[Trace]
    num_forwards: int
    picked: dict[str, int] = field(default_factory=dict)

    @property
    def tokens_per_forward(self) -> list[float]:
        """The paper's T/NFE, per text, the forward that reads the prompt included."""
        pairs = zip(self.tokens, self.traces, strict=True)
        return [len(tokens) / max(len(trace.steps), 1) for tokens, trace in pairs]


def decode(
    model: TiDAR | PreTrainedModel,
    input_ids: Tensor,
    *,
    streamer: BaseStreamer | None = None,
    on_event: Callable[[Event], None] | None = None,
    **arguments: Any,
) -> Decoded:
    """Continue texts.

    Args:
        model: a TiDAR model; or any causal LM with `mask_id`, which drafts as well as it happens
            to (plain decoding, or a drafter with "plain", needs no mask token).
        input_ids: (B, S) prompts.
        streamer: gets committed tokens of a single text, never a draft, and the prompt first, as
            in transformers. on_event: gets every event, drafts included.
        arguments: of `begin`, and fields of `DecodeSettings`: scheme, K, beta, ...

    Raises:
        ValueError: a setting out of range; K or a prompt beyond the context; the mask token within
            a prompt; no mask token; a model that ignores 4-D masks, or lies on another device than
            the ids.
    """
    decoder, prompts = begin(model, input_ids, **arguments)
    if streamer is not None:
        if len(prompts) > 1:
            raise ValueError(f"a streamer shows one text, the batch has {len(prompts)}")
        streamer.put(torch.tensor([prompts[0]]))
    for event in run(decoder):
        if on_event is not None:
            on_event(event)
        if streamer is not None and event.kind == "word":
            streamer.put(torch.tensor(event.tokens))
    if streamer is not None:
        streamer.end()
    answers = [decoder.result(number) for number in range(len(prompts))]
    traces = [answer.trace for answer in answers if answer.trace is not None]
    picked = {} if decoder.chooser is None else decoder.chooser.picked
    return Decoded([list(a.tokens) for a in answers], traces, decoder.num_forwards, picked)


def stream(model: TiDAR | PreTrainedModel, input_ids: Tensor, **arguments: Any) -> Iterator[Event]:
    """As `decode`, but yields each event when it comes; closing the iterator ends the work."""
    return run(begin(model, input_ids, **arguments)[0])


def begin(
    model: TiDAR | PreTrainedModel,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int | None = MAX_NEW_TOKENS,
    eos_token_id: int | Sequence[int] | None = None,
    stop_strings: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    stopping_criteria: Sequence[Callable[..., Any]] = (),
    sampling: Sampling | None = None,
    trace: frozenset[str] | None = frozenset(),
    **settings: Any,
) -> tuple[Decoder, list[list[int]]]:
    """A batch in work, its texts numbered from 0, and their prompts.

    Args:
        attention_mask: (B, S), 0 on padding, at either side.
        max_new_tokens: None: up to the end of the context, where decoding ends in any case.
        eos_token_id: ids that end a text; None: those of the model's generation config; (): none.
        stop_strings: texts that end a text, with a tokenizer.
        sampling: rule, temperature, processors, seed; row b draws from seed + b. None: greedy.
        settings: see `DecodeSettings`.
    """
    lm, criteria = lm_of(model), list(stopping_criteria)
    if stop_strings:
        if tokenizer is None:
            raise ValueError("stop_strings need the tokenizer; pass tokenizer=")
        criteria.append(StopStringCriteria(tokenizer, list(stop_strings)))
    asked = DecodeSettings(stopping_criteria=criteria, **settings)
    check_ids(lm, input_ids)
    context = context_limit(lm)
    decoder = Decoder(model, asked, batch_size=len(input_ids), measured=measured)
    prompts = prompts_of(input_ids, attention_mask, context=context)
    sampling = sampling or Sampling()
    for b, prompt in enumerate(prompts):
        request = Request(
            prompt,
            max_new_tokens=context if max_new_tokens is None else max_new_tokens,
            sampling=sampling,
            seed=sampling.seed + b,
            ends=end_tokens(eos_token_id, lm.generation_config),
            trace=trace,
        )
        decoder.add(request)
    return decoder, prompts


def continued(
    model: TiDAR | PreTrainedModel, input_ids: Tensor, *, pad_id: int | None = None, **options: Any
) -> Tensor:
    """(B, S + longest) ids: `input_ids` as they are, then the new tokens, shorter texts padded at
    the right: with `pad_id`, else the padding token of the model's generation config, else the
    first text's last token."""
    found = decode(model, input_ids, **options)
    config = lm_of(model).generation_config
    if pad_id is None and config is not None:
        pad_id = config.pad_token_id
    longest = max(len(tokens) for tokens in found.tokens)
    filler = found.tokens[0][-1] if pad_id is None else pad_id
    new = [tokens + [filler] * (longest - len(tokens)) for tokens in found.tokens]
    return torch.cat([input_ids, torch.tensor(new, device=input_ids.device)], dim=1)
