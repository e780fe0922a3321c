"""The options of generation with thoughts, checked before any work.

How tokens are drawn is transformers' business: a `GenerationConfig` says it, and its processors do
it (`inward.common.sampling.sampling_of`).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from transformers import GenerationConfig

from inward.common.sampling import Sampling, sampling_of
from inward.methods.coconut.model import Coconut, Edit, PerPass
from inward.methods.coconut.policies import Policy, Speaking


@dataclass(frozen=True)
class CoconutPlan:
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
    packed: bool | None


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
    packed: bool | None = None,
    **overrides: Any,
) -> CoconutPlan:
    """Check options.

    Args:
        policy: who switches; default: `Speaking`, the thoughts are in the prompt.
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
        packed: what is done to be faster on a CPU, see `inward.common.cpu.decoding.Decoding`.

    Raises:
        ValueError: an option out of range, or one that is not supported.
    """
    config = deepcopy(generation_config or model.base.generation_config) or GenerationConfig()
    unknown = config.update(**overrides)
    if unknown:
        raise ValueError(f"there are no options {sorted(unknown)}; see methods/coconut/plan.py")
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
    return CoconutPlan(
        policy=policy or Speaking(),
        sampling=sampling or sampling_of(config, seed, rule="match"),
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
        packed=packed,
    )
