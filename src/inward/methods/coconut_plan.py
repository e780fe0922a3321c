"""The options of generation with thoughts, checked before any work.

How tokens are drawn is transformers' business: a `GenerationConfig` says it, and its processors do
it, in transformers' order. One difference: a field that nobody set is off (transformers' sampling
would still cut to the 50 likeliest tokens).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from inward.methods.coconut import Coconut, Edit, PerPass
from inward.methods.coconut_policies import Policy, Speak
from inward.sampling import Sampling


@dataclass(frozen=True)
class Plan:
    """What the caller chose, checked; the arguments of `plan` say what the names mean."""

    policy: Policy
    sampling: Sampling
    ends: frozenset[int]
    max_new_tokens: int
    max_new_thoughts: int
    boundaries: bool
    thought: Literal["hidden", "soft"]
    noise: float
    edit: Edit | None
    stop: tuple[str, ...]
    trace: bool
    lens: int
    logprobs: bool
    per_pass: PerPass | None


def plan(
    model: Coconut,
    *,
    policy: Policy | None = None,
    generation_config: GenerationConfig | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    max_new_thoughts: int = 256,
    boundaries: bool = True,
    thought: Literal["hidden", "soft"] = "hidden",
    noise: float = 0.0,
    edit: Edit | None = None,
    trace: bool = False,
    lens: int = 5,
    logprobs: bool = False,
    per_pass: PerPass | None = None,
    **overrides: Any,
) -> Plan:
    """Check options.

    Args:
        policy: who switches; default: `Speak`, the thoughts are in the prompt.
        generation_config: default: the base's. `overrides` are fields of it (do_sample,
            temperature, top_k, top_p, min_p, repetition_penalty, eos_token_id, stop_strings, ...).
        sampling: instead of what the generation config says about drawing tokens.
        seed: row r draws with seed + r.
        max_new_tokens: words a row may say, boundary tokens included; default: the generation
            config's, or 128.
        max_new_thoughts: thoughts a row may add; then it must speak.
        boundaries: say <bot> and <eot> around thoughts; False for models without these tokens.
        thought: "hidden" (Coconut), or "soft": the mean embedding under the model's distribution,
            which needs no training.
        noise: standard deviation of Gaussian noise on thoughts, as a share of their RMS.
        edit: changes thoughts before they are fed in.
        trace, lens: record what happens, with so many tokens of the lens on a thought.
        logprobs: add up the log-probability of each row's words.

    Raises:
        ValueError: an option out of range, or one that is not supported.
    """
    config = deepcopy(generation_config or model.base.generation_config) or GenerationConfig()
    unknown = config.update(**overrides)
    if unknown:
        raise ValueError(f"there are no options {sorted(unknown)}; see coconut_plan.plan")
    if max_new_tokens is None:
        max_new_tokens = config.max_new_tokens or 128
    if max_new_tokens < 1 or max_new_thoughts < 0 or not 0.0 <= noise < float("inf") or lens < 1:
        raise ValueError(
            f"max_new_tokens {max_new_tokens} and lens {lens} must be 1 or more, max_new_thoughts "
            f"{max_new_thoughts} 0 or more, noise {noise} a share of 0 or more"
        )
    if thought not in ("hidden", "soft"):
        raise ValueError(f"thought is {thought!r}, must be 'hidden' or 'soft'")
    if model.training:
        raise ValueError("the model is in training mode, where dropout acts; call model.eval()")
    stop = config.stop_strings or ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if stop and model.tokenizer is None:
        raise ValueError("stop_strings need a tokenizer; give one to the Coconut model")
    ends = frozenset(np.atleast_1d([] if config.eos_token_id is None else config.eos_token_id))
    return Plan(
        policy=policy or Speak(),
        sampling=sampling or sampling_of(config, seed),
        ends=frozenset(int(token) for token in ends),
        max_new_tokens=max_new_tokens,
        max_new_thoughts=max_new_thoughts,
        boundaries=boundaries,
        thought=thought,
        noise=noise,
        edit=edit,
        stop=stop,
        trace=trace,
        lens=lens,
        logprobs=logprobs,
        per_pass=per_pass,
    )


_REFUSED = (
    *("num_beams", "num_beam_groups", "num_return_sequences", "penalty_alpha", "dola_layers"),
    *("constraints", "force_words_ids", "guidance_scale", "watermarking_config", "max_time"),
    *("min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "top_h"),
    *("epsilon_cutoff", "eta_cutoff", "sequence_bias", "encoder_repetition_penalty"),
    *("exponential_decay_length_penalty", "begin_suppress_tokens", "assistant_early_exit"),
)


def sampling_of(config: GenerationConfig, seed: int = 0) -> Sampling:
    """How a generation config of transformers draws tokens, by transformers' own processors.

    Raises:
        ValueError: it asks for a search, or a processor that is not offered here.
    """
    asked = {k: v for k, v in config.to_dict().items() if v not in (None, False, [], {})}
    other = sorted(name for name in _REFUSED if asked.get(name, 1) not in (0, 1))
    if other:
        raise ValueError(
            f"the generation config sets {other}, which generation with thoughts does not do; "
            "unset it, or pass sampling=Sampling(processors=...) with what you need"
        )
    chain = LogitsProcessorList()
    if asked.get("repetition_penalty", 1.0) != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(float(asked["repetition_penalty"])))
    if "no_repeat_ngram_size" in asked:
        chain.append(NoRepeatNGramLogitsProcessor(asked["no_repeat_ngram_size"]))
    if "bad_words_ids" in asked:
        chain.append(NoBadWordsLogitsProcessor(asked["bad_words_ids"], config.eos_token_id))
    if "suppress_tokens" in asked:
        chain.append(SuppressTokensLogitsProcessor(asked["suppress_tokens"]))
    if not config.do_sample:
        return Sampling(processors=tuple(chain), seed=seed)
    if asked.get("temperature", 1.0) != 1.0:
        chain.append(TemperatureLogitsWarper(float(asked["temperature"])))
    if "top_k" in asked:
        chain.append(TopKLogitsWarper(asked["top_k"]))
    if asked.get("top_p", 1.0) < 1.0:
        chain.append(TopPLogitsWarper(float(asked["top_p"])))
    if "min_p" in asked:
        chain.append(MinPLogitsWarper(float(asked["min_p"])))
    if asked.get("typical_p", 1.0) < 1.0:
        chain.append(TypicalLogitsWarper(float(asked["typical_p"])))
    return Sampling(rule="match", processors=tuple(chain), seed=seed)
