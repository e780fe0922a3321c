"""A `Request` becomes a text with a plan: every option is checked, and none is ignored.

Which options a mode takes:

    plain      max_steps, halt, min_steps, check_every, halt_in_prompt, sharing, start, warm, lens
    speculate  max_steps, sharing, start, draft_steps, draft_tokens
    parallel   max_steps, halt, sharing, start, exact, inner_steps, max_wave
    all        state_seed, packed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inward.common.halting import Never
from inward.common.requests import check_prompt
from inward.common.sampling import Sampler
from inward.common.thinking import Request, check_acts, check_options
from inward.methods.huginn.options import NAME, OPTIONS
from inward.methods.huginn.sharing import DeepestAvailable, PerDepth, sharing_of
from inward.methods.huginn.texts import HuginnPlan, HuginnText, plan, whole

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM

ALL = {"mode", "max_steps", "sharing", "start", "state_seed", "packed"}
RULES = {"halt", "min_steps", "check_every", "halt_in_prompt"}
TAKES = {
    "plain": ALL | RULES | {"warm", "lens"},
    "speculate": ALL | {"draft_steps", "draft_tokens"},
    "parallel": ALL | {"halt", "exact", "inner_steps", "max_wave"},
}
PLANNED = {"max_steps", "start", "warm", "lens"} | RULES
"""Options that `texts.plan` checks."""
SEPARATE = (PerDepth(), DeepestAvailable())
"""Sharings with a slot for each recurrence."""


def mode_of(own: Mapping[str, Any]) -> str:
    """The mode; ValueErrors for one that is none, and for options of another mode."""
    check_options(NAME, OPTIONS, own)
    mode = own.get("mode", "plain")
    if not isinstance(mode, str) or mode not in TAKES:
        raise ValueError(f"mode is {mode!r}; there are {', '.join(TAKES)}")
    if wrong := sorted(set(own) - TAKES[mode]):
        raise ValueError(
            f"mode {mode!r} has no option {', '.join(wrong)}; it has "
            f"{', '.join(sorted(TAKES[mode]))}"
        )
    if own.get("packed") not in (None, True, False):
        raise ValueError(f"packed is {own['packed']!r}; it is True, False or None")
    if not isinstance(own.get("exact", False), bool):
        raise ValueError(f"exact is {own['exact']!r}; it is True or False")
    return mode


def sharing_in(own: Mapping[str, Any]) -> Any:
    """Which recurrences share slots: in the parallel mode all of them, unless it is exact."""
    free = own.get("mode") == "parallel" and not own.get("exact", False)
    return sharing_of(own.get("sharing", "shared" if free else "deepest"))


def text_of(model: HuginnForCausalLM, request: Request, number: int) -> HuginnText:
    """The text of a request.

    Raises:
        ValueError: anything in it that cannot be kept.
    """
    mode, own = mode_of(request.own), dict(request.own)
    options = {name: value for name, value in own.items() if name in PLANNED}
    options |= {"sharing": sharing_in(own), "state_seed": _state_seed(request)}
    if mode == "parallel":
        options |= {"halt": own.get("halt") or _usual_halt(own), "halt_in_prompt": False}
    if mode != "plain" and request.trace:
        names = ", ".join(sorted(request.trace))
        raise ValueError(
            f"mode {mode!r} keeps no record of {names}; ask for trace=True, or for mode='plain'"
        )
    if request.max_new_tokens is not None:
        options["max_new_tokens"] = request.max_new_tokens
    ends = None if request.ends is None else sorted(request.ends)
    chosen = plan(
        model,
        **options,
        eos_token_id=ends,
        sampling=request.sampling,
        trace=request.trace,
        stop=request.stop,
        logprobs=request.logprobs,
    )
    check_mode(chosen, mode, own)
    check_acts(NAME, OPTIONS, model, request)
    if request.seed is not None:
        whole("seed", request.seed, 0)
        chosen = replace(chosen, sampling=replace(chosen.sampling, seed=request.seed))
    own |= {"draft_steps": draft_steps_of(chosen, own), "draft_tokens": own.get("draft_tokens", 4)}
    text = HuginnText(number, chosen, _prompt(model, request), Sampler(chosen.sampling), own=own)
    if request.memory is not None:
        text.memory, text.memory_key = request.memory, _memory_key(chosen, mode)
    return text


def _memory_key(chosen: HuginnPlan, mode: str) -> tuple[Any, ...] | None:
    """What keys and values depend on beside model and tokens; None: on how deep each token was
    thought of, on what its neighbours left in a shared slot, or on a state it started from, so that
    words said are not what they would be when read."""
    same = chosen.rule == Never() and chosen.warm is None and chosen.sharing in SEPARATE
    if mode != "plain" or not same or "prompt" in (chosen.trace or ()):
        return None
    return chosen.max_steps, str(chosen.sharing), chosen.state_seed, chosen.start


def _state_seed(request: Request) -> int:
    """Given, or the request's, which is of all that is drawn for it."""
    given = request.own.get("state_seed")
    if given is None:
        return request.seed or 0
    whole("state_seed", given, 0)
    return given


def _usual_halt(own: Mapping[str, Any]) -> str:
    return "never" if own.get("exact", False) else "latent"


def _prompt(model: HuginnForCausalLM, request: Request) -> list[int]:
    given: Any = request.prompt
    try:
        ids = given if isinstance(given, Tensor) else torch.tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the prompt is {given!r:.60}; Huginn takes token ids") from error
    if ids.ndim != 1 or (ids.is_floating_point() and len(ids)):
        raise ValueError(
            f"the prompt is {ids.dtype} of shape {tuple(ids.shape)}; Huginn takes one row of token "
            "ids"
        )
    tokens = ids.long().tolist()
    check_prompt(tokens, context=model.config.block_size, vocab_size=model.config.vocab_size)
    return tokens


# --------------------------------------------------------------------------------------------------
# What the other modes ask of a plan


def check_mode(chosen: HuginnPlan, mode: str, own: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the mode can work with this plan and its own options."""
    if mode == "speculate":
        check_drafts(chosen, draft_steps_of(chosen, own), own.get("draft_tokens", 4))
    if mode == "parallel":
        exact = own.get("exact", False)
        check_wave(chosen, exact, own.get("inner_steps", 1), own.get("max_wave", 128))


def draft_steps_of(chosen: HuginnPlan, own: Mapping[str, Any]) -> int:
    """Recurrences of a draft."""
    given = own.get("draft_steps")
    return max(1, chosen.max_steps // 4) if given is None else given


def check_drafts(chosen: HuginnPlan, draft_steps: int, draft_tokens: int) -> None:
    """Raise a ValueError unless self-speculation can work so."""
    whole("draft_steps", draft_steps, 1)
    if draft_steps >= chosen.max_steps:
        raise ValueError(
            f"draft_steps is {draft_steps}; a draft takes at least 1 recurrence and fewer than the "
            f"full depth of {chosen.max_steps}"
        )
    whole("draft_tokens", draft_tokens, 1)
    if chosen.sharing not in SEPARATE:
        raise ValueError(
            f"self-speculation needs a slot for each recurrence, {chosen.sharing} shares them; use "
            "sharing='deepest'"
        )


def check_wave(chosen: HuginnPlan, exact: bool, inner_steps: int, max_wave: int) -> None:
    """Raise a ValueError unless the parallel sampler can work so."""
    whole("inner_steps", inner_steps, 1)
    whole("max_wave", max_wave, 1)
    if exact and chosen.rule != Never():
        raise ValueError(
            f"halt is {chosen.rule}: the exact way equals sequential decoding at max_steps and "
            "takes none; use exact=False"
        )
    if (chosen.sharing in SEPARATE) != exact:
        raise ValueError(
            f"exact={exact} cannot work with {chosen.sharing}: without it places of any depth "
            "share slots ('shared'), with it none do ('deepest')"
        )
    if chosen.max_steps % inner_steps:
        raise ValueError(
            f"max_steps {chosen.max_steps} is no multiple of inner_steps {inner_steps}, the "
            "recurrences that a turn adds"
        )
