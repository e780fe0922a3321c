"""TiDAR as a way to generate of transformers: `model.generate(ids, custom_generate=generate, ...)`.

transformers prepares processors, warpers and stopping criteria from its own configuration, whatever
they are, and this function applies them per place and per text. A text is decoded without its
padding; lengths (`max_length`, `min_length`) count columns all the same, as transformers counts
them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
)

from inward.common.clients import (
    Criteria,
    CustomGenerate,
    Recorder,
    Wishes,
    check_output,
    refuse_arguments,
)
from inward.common.generation import check_fields
from inward.common.requests import prompts_of
from inward.common.sampling import Processor, Rule, Sampling
from inward.common.thinking import Event, Request
from inward.methods.tidar.base import context_limit, num_embedded
from inward.methods.tidar.choose import Chooser
from inward.methods.tidar.decode import check_records, finished, returned
from inward.methods.tidar.decoder import Decoder
from inward.methods.tidar.measure import measured
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.request import DecodeSettings, Drafter, check_ids


@CustomGenerate
def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    *,
    mask_id: int | None = None,
    tidar: TiDAR | None = None,
    scheme: str = "one_pass",
    K: int | None = None,
    num_blocks: int = 2,
    beta: float = 1.0,
    threshold: float = 0.9,
    rule: Rule = "gumbel",
    seed: int = 0,
    drafter: Drafter | None = None,
    chooser: Chooser | None = None,
    on_event: Callable[[Event], None] | None = None,
    streamer: Any = None,
    tokenizer: Any = None,
    given_streamer: Any = None,
    assistant_model: Any = None,
    **prepared: Any,
) -> Any:
    """`model.generate(ids, custom_generate=generate, mask_id=..., scheme=..., K=...)`.

    transformers has prepared processors, warpers and stopping criteria; they are applied per place
    and per text. `tidar`: the TiDAR model around `model`, where it has an adapter. `rule` is used
    with do_sample=True. `streamer`: one that has not heard the prompt yet; transformers' own is
    found. Further arguments of the model's forward go to it (Huginn: num_steps).

    Returns (B, S + longest) ids, shorter texts padded at the right; with return_dict_in_generate
    transformers' output. Unlike in transformers, a caller's own processors and criteria do not see
    the padding of a prompt.

    Raises:
        ValueError: a field of the generation config, or an argument, that cannot act.
    """
    refuse_arguments({} if assistant_model is None else {"assistant_model": assistant_model})
    check_fields(generation_config, own=model.generation_config)
    wishes = Wishes(generation_config)
    check_output(generation_config)
    check_ids(model, input_ids)
    mask = prepared.pop("attention_mask", None)
    S, prompts = input_ids.shape[1], _prompts(model, input_ids, mask)
    settings = DecodeSettings(
        scheme=scheme,
        K=K,
        num_blocks=num_blocks,
        beta=beta,
        threshold=threshold,
        drafter=drafter,
        chooser=chooser,
        mask_id=mask_id,
        options=_further(model, prepared, input_ids, mask),
    )
    if wishes.records:
        check_records(settings)
    limits = [c.max_length for c in stopping_criteria if isinstance(c, MaxLengthCriteria)]
    rest = tuple(c for c in stopping_criteria if not isinstance(c, MaxLengthCriteria))
    batch: dict[str, Any] = {"batch_size": len(prompts), "measured": measured}
    decoder = Decoder(model if tidar is None else tidar, settings, **batch)
    recorders = [Recorder() for _ in prompts]
    for r, prompt in enumerate(prompts):
        chain = [for_row(p, prompt, S - len(prompt), r) for p in logits_processor]
        if wishes.records:
            chain = [recorders[r].first, *chain, recorders[r].last]
        request = Request(
            prompt,
            max_new_tokens=min(limits) - S if limits else decoder.context,
            sampling=Sampling(
                rule if generation_config.do_sample else "greedy", processors=tuple(chain)
            ),
            seed=seed + r,
            ends=frozenset(),  # among the criteria
            stop=Criteria((), str, tuple(prompt), rest, input_ids.device),
        )
        decoder.add(request)
    if given_streamer is not None and streamer is None:
        streamer, ids = given_streamer, None
    else:
        ids = input_ids[:1]
    found = finished(decoder, len(prompts), streamer=streamer, ids=ids, on_event=on_event)
    pad = generation_config.pad_token_id
    if pad is None and getattr(generation_config, "_pad_token_tensor", None) is not None:
        pad = int(generation_config._pad_token_tensor)
    return returned(wishes, input_ids, prompts, found.tokens, recorders, pad)


def _prompts(model: PreTrainedModel, input_ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    size, context = num_embedded(model), context_limit(model)
    return prompts_of(input_ids, mask, context=context, vocab_size=size)


_PREPARED = ("position_ids", "use_cache", "logits_to_keep", "cache", "past_key_values")
"""What transformers prepares for a forward, which decoding prepares itself"""


def _further(
    model: PreTrainedModel, prepared: Mapping[str, Any], input_ids: Tensor, mask: Tensor | None
) -> dict[str, Any]:
    """Arguments of the caller's for the model's forward.

    Raises:
        ValueError: of a shape that belongs to whole batches; positions that are not the usual; a
            cache that holds something.
    """
    for name in ("cache", "past_key_values"):
        cache = prepared.get(name)
        if cache is not None and cache.get_seq_length():
            raise ValueError(
                f"{name} holds {cache.get_seq_length()} tokens already; decoding reads the whole "
                "prompt, so leave it out"
            )
    positions = prepared.get("position_ids")
    if positions is not None:
        real = torch.ones_like(input_ids) if mask is None else mask
        usual = (real.cumsum(-1) - 1)[real.bool()]
        if not torch.equal(positions.expand_as(input_ids)[real.bool()].long(), usual.long()):
            raise ValueError("position_ids are not 0, 1, 2, ...; decoding knows no others")
    rest = {k: v for k, v in prepared.items() if k not in _PREPARED and v is not None}
    if wide := sorted(name for name, value in rest.items() if isinstance(value, Tensor)):
        raise ValueError(
            f"{', '.join(wide)}: a tensor for a whole batch fits no forward here, in which each "
            "text has rows of its own"
        )
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in rest.items() if name in known}


_BY_LENGTH = (
    hf.MinLengthLogitsProcessor,
    hf.MinNewTokensLengthLogitsProcessor,
    hf.ExponentialDecayLengthPenalty,
    hf.SuppressTokensAtBeginLogitsProcessor,
    hf.ForcedBOSTokenLogitsProcessor,
    hf.ForcedEOSTokenLogitsProcessor,
)
"""These look at nothing but the number of columns"""


def for_row(processor: Any, prompt: Sequence[int], padding: int, row: int) -> Processor:
    """A processor that transformers has made for a padded batch, for one row of it without its
    padding."""
    if isinstance(processor, _BY_LENGTH):
        looks: Any = processor
        return lambda ids, scores: looks(F.pad(ids, (padding, 0)), scores)
    ids: Any = torch.tensor([list(prompt)])
    if isinstance(processor, hf.RepetitionPenaltyLogitsProcessor):
        if isinstance(processor.prompt_ignore_length, Tensor):
            return hf.RepetitionPenaltyLogitsProcessor(processor.penalty)
    elif isinstance(processor, hf.EncoderRepetitionPenaltyLogitsProcessor):
        device = processor.encoder_input_ids.device
        return hf.EncoderRepetitionPenaltyLogitsProcessor(1 / processor.penalty, ids.to(device))
    elif isinstance(processor, hf.EncoderNoRepeatNGramLogitsProcessor):
        return hf.EncoderNoRepeatNGramLogitsProcessor(processor.ngram_size, ids)
    elif isinstance(processor, hf.PrefixConstrainedLogitsProcessor):
        allowed, each = processor._prefix_allowed_tokens_fn, processor._num_beams
        return hf.PrefixConstrainedLogitsProcessor(lambda _, said: allowed(row // each, said), 1)
    return processor
