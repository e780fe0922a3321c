"""Decode texts at once, or event by event: loops over `decoder` for texts that begin together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from inward.common.clients import (
    Criteria,
    Recorded,
    Recorder,
    Wishes,
    prompt_ids,
    streaming,
)
from inward.common.passed import passed_of
from inward.common.requests import end_tokens, prompts_of
from inward.common.sampling import Rule, Sampling
from inward.common.thinking import Event, Request, run
from inward.common.trace import Trace
from inward.methods.tidar.base import context_limit, lm_of, num_embedded
from inward.methods.tidar.decoder import Decoder
from inward.methods.tidar.door import METHOD
from inward.methods.tidar.measure import measured
from inward.methods.tidar.request import MAX_NEW_TOKENS, DecodeSettings, check_ids

if TYPE_CHECKING:
    from inward.methods.tidar.model import TiDAR


@dataclass(frozen=True)
class Decoded:
    """tokens: per text, its new tokens, the one that ended it included. traces: per text.
    num_forwards: of the whole batch. picked: forwards by scheme, if "auto". logprobs: per text, of
    its new tokens, if asked for."""

    tokens: list[list[int]]
    traces: list[Trace]
    num_forwards: int
    picked: dict[str, int] = field(default_factory=dict)
    logprobs: list[list[float]] = field(default_factory=list)

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
    ids = None if streamer is None else torch.tensor(prompts[:1])
    return finished(decoder, len(prompts), streamer=streamer, ids=ids, on_event=on_event)


def finished(
    decoder: Decoder,
    num_texts: int,
    *,
    streamer: BaseStreamer | None = None,
    ids: Tensor | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Decoded:
    """The texts 0 .. num_texts - 1 of a decoder, decoded to their ends. ids: (1, S) what the
    streamer is told first."""
    with streaming(streamer, ids, num_texts) as tell:
        for event in run(decoder):
            if on_event is not None:
                on_event(event)
            if event.kind == "word":
                tell(event.tokens)
    answers = [decoder.result(number) for number in range(num_texts)]
    traces = [answer.trace for answer in answers if answer.trace is not None]
    picked = {} if decoder.chooser is None else decoder.chooser.picked
    odds = [list(a.logprobs) for a in answers if a.logprobs is not None]
    return Decoded([list(a.tokens) for a in answers], traces, decoder.num_forwards, picked, odds)


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
    stop_strings: str | Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    stopping_criteria: Sequence[Callable[..., Any]] = (),
    sampling: Sampling | None = None,
    trace: frozenset[str] | None = frozenset(),
    logprobs: bool = False,
    **settings: Any,
) -> tuple[Decoder, list[list[int]]]:
    """A batch in work, its texts numbered from 0, and their prompts.

    Args:
        attention_mask: (B, S), 0 on padding, at either side.
        max_new_tokens: None: up to the end of the context, where decoding ends in any case.
        eos_token_id: ids that end a text; None: those of the model's generation config; (): none.
        stop_strings: texts that end a text, with a tokenizer.
        sampling: rule, temperature, processors, seed; row b draws from seed + b. None: greedy.
        logprobs: the log-probability of each new token, as it was chosen.
        settings: see `DecodeSettings`.
    """
    lm = lm_of(model)
    words = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
    if words and tokenizer is None:
        raise ValueError("stop_strings need the tokenizer; pass tokenizer=")
    asked = DecodeSettings(stopping_criteria=stopping_criteria, **settings)
    METHOD.check_acts(model, Request(None, own=settings))
    prompts = _prompts(lm, input_ids, attention_mask)
    decoder = Decoder(model, asked, batch_size=len(prompts), measured=measured)
    sampling = sampling or Sampling()
    for b, prompt in enumerate(prompts):
        decode_ids: Any = None if tokenizer is None else tokenizer.decode
        request = Request(
            prompt,
            max_new_tokens=decoder.context if max_new_tokens is None else max_new_tokens,
            sampling=sampling,
            seed=sampling.seed + b,
            ends=end_tokens(eos_token_id, lm.generation_config),
            stop=Criteria(words, decode_ids, tuple(prompt)) if words and decode_ids else None,
            trace=trace,
            logprobs=logprobs,
        )
        decoder.add(request)
    return decoder, prompts


def _settings(**given: Any) -> DecodeSettings:
    """Raises a ValueError for names that there are not, as any other."""
    names = [f.name for f in fields(DecodeSettings)]
    if strange := sorted(set(given) - set(names)):
        raise ValueError(f"there are no options {strange}; decoding has {', '.join(names)}")
    return DecodeSettings(**given)


def _prompts(lm: PreTrainedModel, input_ids: Any, attention_mask: Tensor | None) -> list[list[int]]:
    check_ids(lm, input_ids)
    size, context = num_embedded(lm), context_limit(lm)
    return prompts_of(input_ids, attention_mask, context=context, vocab_size=size)


# --------------------------------------------------------------------------------------------------
# As models of transformers generate


def continued(
    model: TiDAR | PreTrainedModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    inputs: Tensor | None = None,
    pad_id: int | None = None,
    rule: Rule = "gumbel",
    seed: int = 0,
    streamer: BaseStreamer | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> Any:
    """See `TiDAR.generate`."""
    lm = lm_of(model)
    context = context_limit(lm)
    if asked := [name for name in ("trace", "logprobs") if options.pop(name, False)]:
        raise ValueError(
            f"{' and '.join(asked)} do not fit into a tensor; inward.methods.tidar.decode.decode "
            "gives them (or return_dict_in_generate=True with output_scores=True)"
        )
    endless = "max_new_tokens" in options and options["max_new_tokens"] is None
    names = [f.name for f in fields(DecodeSettings) if f.name != "stopping_criteria"]
    own = {name: options.pop(name) for name in names if name in options}
    options = passed_of("TiDAR", input_ids if inputs is None else inputs, options)
    wishes, strange = Wishes.read(lm.generation_config, options)
    settings = _settings(**own, **strange)
    ids = prompt_ids(input_ids, inputs, options, lm.generation_config)
    prompts = [p for p in _prompts(lm, ids, attention_mask) for _ in range(wishes.copies)]
    if wishes.records:
        check_records(settings)
    if wishes.drawn is not None:
        seed = wishes.drawn.seed
    decoder = Decoder(model, settings, batch_size=len(prompts), measured=measured)
    recorders = [Recorder() for _ in prompts]
    for r, prompt in enumerate(prompts):
        limit = wishes.limit(len(prompt), context if endless else MAX_NEW_TOKENS)
        limit = min(limit or context, context - len(prompt))
        drawn = wishes.sampling(
            prompt,
            row=r,
            rule=rule,
            limit=limit,
            seed=seed,
            vocab_size=num_embedded(lm),
            device=lm.device,
            recorder=recorders[r] if wishes.records else None,
        )
        request = Request(
            prompt,
            max_new_tokens=limit,
            sampling=drawn,
            seed=seed + r,
            ends=end_tokens(None, wishes.config),
            stop=wishes.stop(prompt, lm.device),
        )
        decoder.add(request)
    first = None if streamer is None else torch.tensor(prompts[:1])
    found = finished(decoder, len(prompts), streamer=streamer, ids=first, on_event=on_event)
    pad_id = wishes.config.pad_token_id if pad_id is None else pad_id
    whole = ids.repeat_interleave(wishes.copies, dim=0)
    return returned(wishes, whole, prompts, found.tokens, recorders, pad_id)


def check_records(settings: DecodeSettings) -> None:
    """Raise a ValueError where tokens are not chosen one by one from scores."""
    if settings.scheme == "diffusion":
        raise ValueError(
            "scheme 'diffusion' judges nothing, so there are no scores that a token was chosen by; "
            "use a scheme that verifies, or leave output_scores and output_logits out"
        )


def returned(
    wishes: Wishes,
    input_ids: Tensor,
    prompts: Sequence[Sequence[int]],
    said: Sequence[Sequence[int]],
    recorders: Sequence[Recorder],
    pad_id: int | None,
) -> Any:
    """(B, S + longest) ids: `input_ids` as they are, then the new tokens, shorter texts padded at
    the right: with `pad_id`, else the first text's last token; or transformers' output with it."""
    longest = max(map(len, said))
    pad = said[0][-1] if pad_id is None else int(pad_id)
    new = [[*tokens, *[pad] * (longest - len(tokens))] for tokens in said]
    sequences = torch.cat([input_ids, torch.tensor(new, device=input_ids.device)], dim=1)
    recorded = [
        Recorded.of(recorder, range(len(prompt), len(prompt) + len(tokens)))
        for recorder, prompt, tokens in zip(recorders, prompts, said, strict=True)
    ]
    return wishes.output(sequences, said, recorded, pad=pad)
