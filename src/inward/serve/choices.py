"""What of a request a method can keep: effort, budgets, drawing, drafts. Kept or refused by name,
never ignored."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from inward.common.sampling import Sampling, sampling_of
from inward.serve.errors import ApiError, refused
from inward.serve.limits import Limits
from inward.serve.prediction import Predicted
from inward.serve.schemas import AskingBody, Drawing, words_of
from inward.thinker import EFFORTS, Thinker

POINTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"}
POINTS |= {"max": "high"}
"""Words of `reasoning_effort` -> saved points."""

SINGLE = ("identifier", "puzzle", "mask_id")
"""Options that belong to a set of questions, or to a model, and not to a request."""

LENS = 3
"""Tokens told of each thought."""


@dataclass(frozen=True)
class Wanted:
    """What the routes have in common, whatever their fields are called.

    effort: of `reasoning_effort`. own: `inward`'s. reasoning: None: where the method thinks.
    """

    effort: str | float | None = None
    budget: int | None = None
    own_effort: int | str | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    reasoning: bool | None = None
    logprobs: bool = False
    trace: bool | tuple[str, ...] = False
    prediction: str | None = None

    @staticmethod
    def of(body: AskingBody, **more: Any) -> Wanted:
        """From a body."""
        own = body.inward
        return Wanted(
            effort=body.reasoning_effort,
            budget=body.thinking_token_budget,
            own_effort=None if own is None else own.effort,
            own={} if own is None else dict(own.options),
            reasoning=body.include_reasoning,
            **more,
        )


@dataclass(frozen=True)
class Choice:
    """Arguments of `Thinker.asked`; what was made of the effort; whether thoughts are told."""

    options: dict[str, Any]
    effort: dict[str, Any]
    reasoning: bool


def choose(thinker: Thinker, limits: Limits, wishes: Wanted, *, reasoning: bool = True) -> Choice:
    """What to ask the model for.

    Args:
        reasoning: whether thoughts are told where a request does not say.

    Raises:
        ApiError: something that cannot be kept.
    """
    own = _own(thinker, limits, wishes.own)
    told = _effort(thinker, wishes, own)
    options: dict[str, Any] = own | told.get("options", {}) | {"usual": {}}
    _budget(thinker, wishes, options, told)
    tells = _thoughts(thinker, wishes, options, reasoning=reasoning)
    if "count_marks" in thinker.method.options and "count_marks" not in options:
        options["usual"]["count_marks"] = False  # thinking eats up no max_tokens
    if wishes.prediction is not None:
        options["drafter"] = _drafter(thinker, wishes.prediction, options)
    _bound(limits, options)
    _length(thinker, limits, wishes, options)
    if wishes.logprobs:
        options["logprobs"] = True
    if wishes.trace:
        options["trace"] = wishes.trace if wishes.trace is True else list(wishes.trace)
    return Choice(options, told, tells)


# --------------------------------------------------------------------------------------------------
# Options of the method


def settable(thinker: Thinker) -> dict[str, Any]:
    """Options of the method that a request may set, with their types."""
    return {
        name: option.kind
        for name, option in thinker.method.options.items()
        if option.kind is not None and name not in SINGLE
    }


def _own(thinker: Thinker, limits: Limits, given: Mapping[str, Any]) -> dict[str, Any]:
    known, found = settable(thinker), {}
    for name, value in given.items():
        if name not in known:
            raise refused(
                f"{thinker.method.name} has no option {name!r} that a request can set; there are "
                f"{', '.join(known) or 'none'}",
                f"inward.options.{name}",
            )
        if isinstance(value, list):
            value = tuple(value)
        if isinstance(value, tuple) != (known[name] == tuple[int, ...]) and value is not None:
            raise refused(f"{name} is {value!r}, which is of another kind", "inward.options")
        if value is not None:
            found[name] = value
    return found


_ROWS = ("rollouts", "views", "votes")


def _bound(limits: Limits, options: Mapping[str, Any]) -> None:
    """Refuse what a server cannot spend on one request."""
    for name, value in options.items():
        if name == "lens" or isinstance(value, bool) or not isinstance(value, int | tuple):
            continue
        most = limits.max_rows if name in _ROWS else limits.max_steps
        if max((value,) if isinstance(value, int) else value, default=0) > most:
            raise refused(f"{name} is {value}; this server takes at most {most}", name)
    rows = options.get("rollouts", 1) * options.get("views", 1)
    if isinstance(rows, int) and rows > limits.max_rows:
        raise refused(f"views times rollouts is {rows}; at most {limits.max_rows} here", "inward")


# --------------------------------------------------------------------------------------------------
# Effort


def _effort(thinker: Thinker, wishes: Wanted, own: Mapping[str, Any]) -> dict[str, Any]:
    """What an effort stands for, as {"asked", "point", "options", "unit"}; {} for none."""
    if wishes.effort is None and wishes.own_effort is None:
        return {}
    if wishes.effort is not None and wishes.own_effort is not None:
        raise refused("reasoning_effort and inward.effort say one thing twice", "inward.effort")
    asked = wishes.effort if wishes.effort is not None else wishes.own_effort
    param = "reasoning_effort" if wishes.effort is not None else "inward.effort"
    method = thinker.method
    if asked == "none":
        return _no_thinking(thinker, own, param)
    if method.unit is None:
        raise refused(f"{thinker.name}: {method.why_no_effort}", param)
    option, unit = method.unit
    if isinstance(asked, int) and wishes.effort is None:
        told = {"asked": asked, "options": {option: asked}, "unit": unit}
    else:
        point = _point(asked)
        if point not in thinker.effort.points:
            why = thinker.effort.why_not or (
                f"nobody has measured its points; inward.effort takes an int ({unit})"
            )
            raise refused(f"{thinker.name} has no effort {asked!r}: {why}", param)
        options = dict(thinker.effort.points[point]["own"])
        told = {"asked": asked, "point": point, "options": options, "unit": unit}
    _refuse_both(told["options"], own, param)
    return told


def _point(asked: Any) -> str:
    """The saved point of a word; of a share the nearest, low at 0, medium at 1/2, high at 1."""
    if isinstance(asked, str):
        return POINTS[asked]
    return EFFORTS[min(range(3), key=lambda i: abs(i / 2 - asked))]


def _no_thinking(thinker: Thinker, own: Mapping[str, Any], param: str) -> dict[str, Any]:
    silent = thinker.method.silent
    if silent is None:
        raise refused(
            f"{thinker.method.name} always thinks: one of its {thinker.method.steps} is the least; "
            "ask for 'low'",
            param,
        )
    _refuse_both(silent, own, param)
    return {"asked": "none", "options": dict(silent), "unit": thinker.method.steps}


def _refuse_both(chosen: Mapping[str, Any], own: Mapping[str, Any], param: str) -> None:
    if both := sorted(set(chosen) & set(own)):
        raise refused(f"{param} sets {', '.join(both)}, which is given too; leave one out", param)


def _budget(
    thinker: Thinker, wishes: Wanted, options: dict[str, Any], told: dict[str, Any]
) -> None:
    """`thinking_token_budget`: a bound in the method's own unit, beside what an effort says."""
    budget, param = wishes.budget, "thinking_token_budget"
    if budget is None:
        return
    method = thinker.method
    if budget == 0 and method.silent is not None:
        options |= method.silent
        told |= {"budget": 0, "unit": method.steps}
        return
    if method.budget is None:
        raise refused(
            f"{method.name} does not think, so there is nothing to bound; 0 is taken", param
        )
    option, unit = method.budget
    if budget == 0:
        raise refused(f"{method.name} always thinks; the least is 1 ({unit})", param)
    least = _opening(thinker, options)
    if budget < least:
        raise refused(
            f"{thinker.name} begins with {least} {unit}; ask for so many, or for 0", param
        )
    given = options.get(option)
    options[option] = budget - least if given is None else min(given, budget - least)
    told |= {"budget": budget, "unit": unit}


def _opening(thinker: Thinker, options: Mapping[str, Any]) -> int:
    """Thoughts that stand in the prompt, as the model was trained to be asked."""
    if {"switch", "thoughts"} & set(options):
        return 0
    opening = thinker.ask_as.get("opening", [])
    return sum(int(what) for kind, what in opening if kind == "latent")


def _thoughts(
    thinker: Thinker, wishes: Wanted, options: dict[str, Any], *, reasoning: bool
) -> bool:
    """Whether thoughts are told; asks the method for a lens on them if they need one."""
    thinks = thinker.method.budget is not None
    wanted = (thinks and reasoning) if wishes.reasoning is None else wishes.reasoning
    lens = thinker.method.options.get("lens")
    if wanted and lens is not None and options.get("mode", "plain") == "plain":
        options["usual"] |= {} if "lens" in options else {"lens": LENS}
    return wanted


def _length(thinker: Thinker, limits: Limits, wishes: Wanted, options: dict[str, Any]) -> None:
    asked = wishes.max_tokens
    if thinker.method.reads == "puzzle":
        if asked is not None:
            raise refused(
                f"{thinker.method.name} rewrites a whole answer: no tokens to bound", "max_tokens"
            )
        return
    if asked is not None and asked > limits.max_tokens:
        raise refused(
            f"max_tokens is {asked}; this server says at most {limits.max_tokens}", "max_tokens"
        )
    if asked is not None or "max_new_tokens" not in thinker.ask_as:
        options["max_new_tokens"] = asked or limits.default_tokens


def _drafter(thinker: Thinker, text: str, options: Mapping[str, Any]) -> Predicted:
    tokenizer = getattr(thinker.processor, "tokenizer", None)
    if "drafter" not in thinker.method.options or tokenizer is None:
        raise refused(
            f"{thinker.method.name} verifies no guesses; leave prediction out", "prediction"
        )
    return Predicted(text)


# --------------------------------------------------------------------------------------------------
# Drawing


def draw(thinker: Thinker, body: Drawing) -> tuple[dict[str, Any], list[int | None]]:
    """How tokens are drawn, and the seed of each of the n choices.

    Without a seed a request that draws gets one of its own, which `usage.inward.seed` tells.

    Raises:
        ApiError: a puzzle has nothing to draw.
    """
    num, stop = body.n or 1, words_of(body.stop)
    if thinker.method.reads == "puzzle":
        for name in ("temperature", "top_p", "top_k", "stop"):
            if getattr(body, name) is not None:
                raise refused(f"a puzzle's answer is not drawn: it has no {name}", name)
        if num > 1:
            raise refused("a puzzle has one answer here; n can only be 1", "n")
        return {}, [body.seed]
    sampling = _sampling(thinker, body)
    draws = (
        _base_sampling(thinker).rule != "greedy" if sampling is None else sampling.rule != "greedy"
    )
    seed = secrets.randbelow(1 << 31) if draws and body.seed is None else body.seed
    seeds: list[int | None] = [seed]
    if num > 1:
        seeds = [(seed or 0) + i for i in range(num)]
    options: dict[str, Any] = {} if sampling is None else {"sampling": sampling}
    return options | ({"stop": stop} if stop else {}), seeds


def _base_sampling(thinker: Thinker) -> Sampling:
    return sampling_of(generation_of(thinker.model), refuse=())


def _sampling(thinker: Thinker, body: Drawing) -> Sampling | None:
    """None: as the model's generation config says."""
    if body.temperature is None and body.top_p is None and body.top_k is None:
        return None
    config = generation_of(thinker.model)
    chain = _base_sampling(thinker) if config is None else _undrawn(config)
    if body.temperature == 0.0:
        if body.top_p not in (None, 1.0) or body.top_k not in (None, 0):
            raise refused(
                "temperature 0 takes the likeliest token: no top_p or top_k acts", "top_p"
            )
        return Sampling(processors=chain.processors)
    usual = config if config is not None and config.do_sample else None
    temperature = body.temperature or (getattr(usual, "temperature", None) or 1.0)
    top_p = body.top_p or (getattr(usual, "top_p", None) or 1.0)
    top_k = (getattr(usual, "top_k", None) or 0) if body.top_k is None else body.top_k
    return Sampling(
        "gumbel", temperature=temperature, top_p=top_p, top_k=top_k, processors=chain.processors
    )


def _undrawn(config: Any) -> Sampling:
    """What the config does to the scores before anything is drawn."""
    config = copy(config)
    config.do_sample = False
    return sampling_of(config)


def generation_of(model: Any) -> Any:
    """The generation config of a model, or of the one that it wraps."""
    for inner in (model, getattr(model, "base", None), getattr(model, "model", None)):
        found = getattr(inner, "generation_config", None)
        if found is not None:
            return found
    return None


__all__ = ["ApiError", "Choice", "Wanted", "choose", "draw", "generation_of", "settable"]
