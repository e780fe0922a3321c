"""A `GenerationConfig` of transformers, field by field: what acts here, what is refused.

transformers says one token after each forward, of all rows at once. Here rows draft, think and end
on their own, so its loop is not used, only its parts: its processors and its criteria, made for
each row from the row's own prompt. Padding therefore counts nowhere, and a row of a batch says what
it says alone.

    ACTS       lengths, ends, processors, how tokens are drawn, what comes back
    REFUSED    what is asked for by any but the neutral values, and what to do instead
    METADATA   says nothing about the text

A field that stands in none of them (a newer release may bring one) must have its default.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import transformers as hf
from transformers import GenerationConfig, SynthIDTextWatermarkingConfig

Chain = list[Callable[[Any, Any], Any]]

OF_PROMPTS = (
    *("min_new_tokens", "exponential_decay_length_penalty", "begin_suppress_tokens"),
    *("encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "forced_eos_token_id"),
)
"""Processors that cannot be made without knowing the prompt, and how much may be said"""

PROCESSED = (
    *("sequence_bias", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_length"),
    *("forced_bos_token_id", "remove_invalid_values", "suppress_tokens"),
    *OF_PROMPTS,
)
DRAWN = (
    *("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff"),
    "eta_cutoff",
)
"""Act on drawn tokens alone"""
OF_CALLS = (
    *("num_return_sequences", "max_time", "max_length", "output_scores", "output_logits"),
    *("return_dict_in_generate", "bos_token_id"),
)
"""Act in a call of `generate`, which makes several requests and returns a tensor"""
ACTS = frozenset(
    (
        *(*PROCESSED, *DRAWN, *OF_CALLS, "max_new_tokens", "stop_strings", "do_sample"),
        *("renormalize_logits", "watermarking_config", "pad_token_id", "eos_token_id"),
    )
)
METADATA = frozenset(("transformers_version", "disable_compile"))

_BEAMS = "one text is kept for each row; leave it out, or use transformers' own generate"
_DRAFTS = "it belongs to transformers' assisted decoding; TiDAR's scheme and drafter do that here"
_SEARCH = "transformers keeps it outside of itself; leave it out"
_CACHE = "the cache is this method's own; leave it out"
_TWO = "it belongs to models with an encoder; leave it out"
_INSIDE = "traces hold what happened inside: trace=True"
REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1,), _BEAMS),
    "num_beam_groups": ((1,), _BEAMS),
    "early_stopping": ((False,), _BEAMS),
    "length_penalty": ((1.0,), _BEAMS),
    "diversity_penalty": ((0.0,), _BEAMS),
    "constraints": ((), _BEAMS),
    "force_words_ids": ((), _BEAMS),
    "penalty_alpha": ((0.0,), _SEARCH),
    "dola_layers": ((), _SEARCH),
    "low_memory": ((False,), _SEARCH),
    "guidance_scale": (
        (1,),
        "guidance runs the model again for each token, with a memory that drafts and thoughts "
        "would confuse; use transformers' own generate",
    ),
    "use_mtp": ((False,), _DRAFTS),
    "prompt_lookup_num_tokens": ((), _DRAFTS),
    "max_matching_ngram_size": ((), _DRAFTS),
    "assistant_early_exit": ((), _DRAFTS),
    "assistant_ensemble_weight": ((), _DRAFTS),
    "speculation_type": ((), _DRAFTS),
    "is_assistant": ((False,), _DRAFTS),
    "num_assistant_tokens": ((20,), _DRAFTS),
    "num_assistant_tokens_schedule": (("constant",), _DRAFTS),
    "assistant_confidence_threshold": ((0.4,), _DRAFTS),
    "assistant_lookbehind": ((10,), _DRAFTS),
    "target_lookbehind": ((10,), _DRAFTS),
    "output_attentions": ((False,), _INSIDE),
    "output_hidden_states": ((False,), _INSIDE),
    "use_cache": ((True,), _CACHE),
    "cache_implementation": (("dynamic",), _CACHE),
    "cache_config": ((), _CACHE),
    "max_cache_len": ((), _CACHE),
    "prefill_chunk_size": ((), _CACHE),
    "compile_config": ((), "nothing is compiled here; leave it out"),
    "continuous_batching_config": ((), "requests join at any time here: `begin` and `add`"),
    "decoder_start_token_id": ((), _TWO),
    "token_healing": ((False,), "heal the prompt first: model.heal_tokens(input_ids, tokenizer)"),
}


def check_fields(
    config: GenerationConfig, *, own: GenerationConfig | None = None, keeps: Collection[str] = ACTS
) -> None:
    """Raise a ValueError that names each field which asks for what is not done.

    Args:
        own: the model's, in whose files anything may stand that other programs know.
        keeps: those of `ACTS` that the caller honours.
    """
    plain, files = _plain(), {} if own is None else vars(own)
    told = []
    for name, value in sorted(vars(config).items()):
        if name.startswith("_") or name in METADATA or value is None or name in keeps:
            continue
        if name in ACTS:
            if not _neutral(name, value):
                told.append(f"{name}={value!r}: this way in has no use for it")
        elif name in REFUSED:
            neutral, why = REFUSED[name]
            usual = name == "decoder_start_token_id" and files.get(name) == value
            if not usual and value not in neutral:
                told.append(f"{name}={value!r}: {why}")
        elif name not in plain:
            if name not in files or files[name] != value:
                told.append(f"{name}={value!r}: no such field is known")
        elif value != plain[name]:
            told.append(f"{name}={value!r}: this field of transformers is not known here")
    if told:
        raise ValueError(
            f"the generation config asks for what is not done here: {'; '.join(told)}. (Any of "
            "transformers' LogitsProcessors acts as sampling=Sampling(processors=...).)"
        )


@functools.cache
def _plain() -> Mapping[str, Any]:
    """Every field as transformers leaves it; made once, for it takes longer than a small model's
    token."""
    return vars(GenerationConfig())


_ONE = {"min_new_tokens", "max_time", "max_length"}
"""Of these 1 is a wish like any other"""


def _neutral(name: str, value: Any) -> bool:
    return value in ([], {}, False, 0) or (value == 1 and name not in _ONE)


def merged(
    own: GenerationConfig | None,
    given: GenerationConfig | None,
    fields: Mapping[str, Any],
) -> GenerationConfig:
    """What a call asks for: its fields, then those of the config that it gives, then the model's.
    The model's `max_length` is left out: it is a habit of files, and no wish.

    Raises:
        ValueError: fields that act on drawn tokens, where none are drawn.
    """
    config = GenerationConfig() if given is None else deepcopy(given)
    for name, value in fields.items():
        setattr(config, name, value)  # without a word about what this way in does not ignore
    lengths = {"max_length", "min_length"} | ({"max_new_tokens"} if config.max_length else set())
    for name, value in ({} if own is None else vars(own)).items():
        if name not in lengths and not name.startswith("_") and getattr(config, name, None) is None:
            setattr(config, name, deepcopy(value))
    idle = [
        f"{name}={fields[name]!r}"
        for name in DRAWN
        if fields.get(name) not in (None, 1, 0) or (name == "top_k" and fields.get(name) == 1)
    ]
    if idle and not config.do_sample:
        raise ValueError(f"{', '.join(idle)} act on drawn tokens; add do_sample=True")
    return config


# --------------------------------------------------------------------------------------------------
# Processors, in the order of transformers


def processors_of(
    config: GenerationConfig,
    prompt: Sequence[int] = (),
    *,
    silent: int = 0,
    limit: int = 0,
    allowed: Callable[[int, Any], Any] | None = None,
    vocab_size: int = 0,
    device: Any = "cpu",
) -> tuple[Chain, Chain]:
    """(what comes before a caller's own processors, what comes after them) for one row.

    Args:
        prompt: the row's tokens, without padding and thoughts.
        silent: thoughts in it, which count as part of the length.
        limit: tokens that may be said.
        allowed: `prefix_allowed_tokens_fn`, of this row.
        vocab_size: of the logits, for watermarks.
    """
    first: Chain = []
    ends: Any = config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or ()) or None
    length = len(prompt)
    ids: Any = torch.tensor([list(prompt)], dtype=torch.long, device=device)

    def on(name: str) -> Any:
        value = getattr(config, name, None)
        return None if value is None or value in (False, [], {}) else value

    if bias := on("sequence_bias"):
        first.append(hf.SequenceBiasLogitsProcessor(sequence_bias=bias))
    if (value := on("encoder_repetition_penalty")) not in (None, 1.0):
        first.append(hf.EncoderRepetitionPenaltyLogitsProcessor(float(value), ids))
    if (value := on("repetition_penalty")) not in (None, 1.0):
        first.append(hf.RepetitionPenaltyLogitsProcessor(float(value)))
    if value := on("no_repeat_ngram_size"):
        first.append(hf.NoRepeatNGramLogitsProcessor(value))
    if value := on("encoder_no_repeat_ngram_size"):
        first.append(hf.EncoderNoRepeatNGramLogitsProcessor(value, ids))
    if value := on("bad_words_ids"):
        first.append(hf.NoBadWordsLogitsProcessor(value, ends))
    if (value := on("min_length")) and ends is not None:
        first.append(hf.MinLengthLogitsProcessor(max(0, value - silent), ends, device=device))
    if (value := on("min_new_tokens")) and ends is not None:
        first.append(hf.MinNewTokensLengthLogitsProcessor(length, value, ends, device=device))
    if allowed is not None:
        first.append(hf.PrefixConstrainedLogitsProcessor(allowed, 1))
    if (value := config.forced_bos_token_id) is not None:
        first.append(hf.ForcedBOSTokenLogitsProcessor(value))
    if (value := config.forced_eos_token_id) is not None:
        first.append(hf.ForcedEOSTokenLogitsProcessor(length + limit, value, device=device))
    if config.remove_invalid_values is True:
        first.append(hf.InfNanRemoveLogitsProcessor())
    if (value := on("exponential_decay_length_penalty")) and ends is not None:
        eos = torch.tensor(ends, device=device)
        first.append(hf.ExponentialDecayLengthPenalty(value, eos, length))
    if value := on("suppress_tokens"):
        first.append(hf.SuppressTokensLogitsProcessor(value, device=device))
    if value := on("begin_suppress_tokens"):
        begin = length + (length == 1 and config.forced_bos_token_id is not None)
        first.append(hf.SuppressTokensAtBeginLogitsProcessor(value, begin, device=device))
    return first, _after(config, vocab_size, device)


def _after(config: GenerationConfig, vocab_size: int, device: Any) -> Chain:
    """What acts on drawn tokens, and what comes last."""
    chain: Chain = []
    if config.do_sample:
        if config.temperature is not None and config.temperature != 1.0:
            chain.append(hf.TemperatureLogitsWarper(float(config.temperature)))
        if config.top_h is not None:
            chain.append(hf.TopHLogitsWarper(float(config.top_h)))
        if config.top_k:
            chain.append(hf.TopKLogitsWarper(config.top_k))
        if config.top_p is not None and config.top_p < 1.0:
            chain.append(hf.TopPLogitsWarper(float(config.top_p)))
        if config.min_p is not None:
            chain.append(hf.MinPLogitsWarper(float(config.min_p)))
        if config.typical_p is not None and config.typical_p < 1.0:
            chain.append(hf.TypicalLogitsWarper(float(config.typical_p)))
        if config.epsilon_cutoff is not None and 0.0 < config.epsilon_cutoff < 1.0:
            chain.append(hf.EpsilonLogitsWarper(float(config.epsilon_cutoff)))
        if config.eta_cutoff is not None and 0.0 < config.eta_cutoff < 1.0:
            chain.append(hf.EtaLogitsWarper(float(config.eta_cutoff), device=device))
    mark = config.watermarking_config
    if isinstance(mark, SynthIDTextWatermarkingConfig):
        raise ValueError(
            "watermarking_config: SynthID's processor remembers the tokens it has seen, which "
            "drafts would confuse; use WatermarkingConfig, or transformers' own generate"
        )
    if mark is not None:
        chain.append(mark.construct_processor(vocab_size, device))
    if config.renormalize_logits is True:
        chain.append(hf.LogitNormalization())
    return chain
