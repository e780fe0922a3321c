"""What a request may say, checked before any work.

How tokens are drawn is transformers' business: a `GenerationConfig` says it, and its processors do
it (`inward.common.sampling.sampling_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from transformers import GenerationConfig

from inward.common.requests import end_tokens
from inward.common.sampling import Sampling, sampling_of
from inward.common.speaking import StopWords
from inward.common.thinking import Request
from inward.data.thoughts.segments import Sample, Text
from inward.data.thoughts.tokenizers import encode_text
from inward.methods.coconut.switch import Scripted, Speaking, Switch, named

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut, Edit

DEFAULTS: Mapping[str, Any] = {
    "switch": None,
    "thoughts": None,
    "boundaries": True,
    "thought": "hidden",
    "noise": None,
    "edit": None,
    "max_new_thoughts": 256,
    "lens": None,
    "votes": 1,
    "ballot": None,
    "per_pass": None,
    "packed": None,
}
"""Of the options in `Request.own`; `door` says what they mean."""

VOTE_NOISE = 0.1
"""Of several tries, where a request does not say."""


@dataclass(frozen=True)
class BatchEdit:
    """An edit that looks at all rows of a batch at once: row `row` of `num`. It is called with all
    of them, where only those count that think now."""

    edit: Edit
    row: int
    num: int


@dataclass(frozen=True, eq=False)
class CoconutPlan:
    """What a request asked for, checked; `door.METHOD` and `Request` say what the names mean."""

    switch: Switch
    sampling: Sampling
    ends: frozenset[int]
    max_new_tokens: int
    max_new_thoughts: int
    boundaries: bool
    thought: Literal["hidden", "soft"]
    noise: float
    edit: Edit | BatchEdit | None
    stop: StopWords | None
    trace: frozenset[str] | None
    lens: int | None
    logprobs: bool
    votes: int
    ballot: Callable[[list[int]], Hashable] | None

    @property
    def watched(self) -> bool:
        """Whether thoughts are looked at."""
        return self.trace is not None or self.lens is not None

    @property
    def num_lens(self) -> int:
        """Tokens of the lens on a thought; 0: it is not asked for."""
        return self.lens or (5 if self.trace and "lens" in self.trace else 0)


def plan_of(model: Coconut, request: Request, traces: Sequence[str]) -> CoconutPlan:
    """Check a request.

    Raises:
        ValueError: a prompt that the model cannot continue, or an option out of range.
    """
    own = {**DEFAULTS, **request.own}
    _check_kinds(own)
    _check_prompt(model, request.prompt, own["thought"])
    if request.trace is not None and (unknown := sorted(set(request.trace) - set(traces))):
        raise ValueError(f"a trace of coconut holds no {unknown}; it can hold {', '.join(traces)}")
    config = model.base.generation_config or GenerationConfig()
    max_new = request.max_new_tokens
    max_new = (config.max_new_tokens or 128) if max_new is None else max_new
    votes, noise = own["votes"], own["noise"]
    noise = (VOTE_NOISE if votes > 1 else 0.0) if noise is None else noise
    _check_numbers(max_new, own, noise)
    vocab = model.embedding.weight.shape[0]
    chosen = CoconutPlan(
        switch=_switch(model, own["switch"], own["thoughts"]),
        sampling=_sampling(request, config),
        ends=end_tokens(None if request.ends is None else [*request.ends], config, vocab),
        max_new_tokens=max_new,
        max_new_thoughts=own["max_new_thoughts"],
        boundaries=bool(own["boundaries"]),
        thought=own["thought"],
        noise=noise,
        edit=own["edit"],
        stop=request.stop,
        trace=request.trace,
        lens=own["lens"],
        logprobs=request.logprobs or votes > 1,
        votes=votes,
        ballot=own["ballot"],
    )
    if votes > 1 and not noise and chosen.sampling.rule == "greedy":
        raise ValueError(
            f"{votes} votes with noise 0 and rule 'greedy': the tries must differ; use noise > 0, "
            "or sample"
        )
    return chosen


def _sampling(request: Request, config: GenerationConfig) -> Sampling:
    seed = request.seed
    if request.sampling is None:
        return sampling_of(config, seed or 0, rule="match")
    return request.sampling if seed is None else replace(request.sampling, seed=seed)


def _check_prompt(model: Coconut, prompt: Any, thought: str) -> None:
    if not isinstance(prompt, Sample):
        raise ValueError(
            f"the prompt is a {type(prompt).__name__}, must be a Sample; make one of token "
            "ids with inward.data.thoughts.segments.parse"
        )
    prompt.check(model.specials, may_end_open=True)
    limit = model.max_positions
    if limit is not None and len(prompt) >= limit:
        raise ValueError(
            f"it has {len(prompt)} positions, thoughts included, and the context holds {limit}: no "
            "room for an answer"
        )
    size = model.embedding.weight.shape[0]
    largest = max(max(s.ids) for s in prompt.segments if isinstance(s, Text))
    if largest >= size:
        raise ValueError(f"it holds the token {largest}; the model knows 0 to {size - 1}")
    if thought not in ("hidden", "soft"):
        raise ValueError(f"thought is {thought!r}, must be 'hidden' or 'soft'")
    if thought == "soft" and prompt.blocks:
        raise ValueError(
            "it holds thoughts, and thought='soft' makes them only while generating; leave them to "
            "a switch"
        )


def _check_kinds(own: Mapping[str, Any]) -> None:
    """Raise a ValueError that names an option of another kind than it must be."""
    for name, (told, fits) in _KINDS.items():
        value = own[name]
        if value is None and DEFAULTS[name] is None:
            continue
        if not fits(value):
            raise ValueError(f"{name} is {value!r}, must be {told}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _several(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(_whole, value))


_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "thoughts": ("numbers of thoughts, such as (2, 2)", _several),
    "boundaries": ("True or False", lambda value: isinstance(value, bool)),
    "noise": ("a number", lambda value: isinstance(value, float) or _whole(value)),
    "edit": ("a function", lambda value: callable(value) or isinstance(value, BatchEdit)),
    "max_new_thoughts": ("a whole number", _whole),
    "lens": ("a whole number", _whole),
    "votes": ("a whole number", _whole),
    "ballot": ("a function", callable),
    "per_pass": ("a mapping, or a function", lambda v: callable(v) or isinstance(v, Mapping)),
    "packed": ("True, False or None", lambda value: isinstance(value, bool)),
}


def _check_numbers(max_new: int, own: Mapping[str, Any], noise: float) -> None:
    thoughts, lens, votes = own["max_new_thoughts"], own["lens"], own["votes"]
    if max_new < 1 or thoughts < 0 or not 0.0 <= noise < float("inf"):
        raise ValueError(
            f"max_new_tokens {max_new} must be 1 or more, max_new_thoughts {thoughts} 0 or more, "
            f"noise {noise} a share of 0 or more"
        )
    if (lens is not None and lens < 1) or votes < 1:
        raise ValueError(f"lens {lens} and votes {votes} must be 1 or more")
    if own["ballot"] is not None and votes == 1:
        raise ValueError("ballot says what votes, but votes is 1; ask for more votes")


def _switch(model: Coconut, switch: Any, thoughts: Sequence[int] | None) -> Switch:
    if thoughts is None:
        return Speaking() if switch is None else named(switch)
    if switch is not None:
        raise ValueError(
            f"thoughts {tuple(thoughts)} and switch {switch!r} both say when to think; give one"
        )
    ends: frozenset[int] = frozenset()
    if len(thoughts) > 1 and model.tokenizer is not None:
        ends = frozenset(encode_text(model.tokenizer, "\n")[-1:])
    return Scripted(tuple(thoughts), ends=ends)


# --------------------------------------------------------------------------------------------------
# A batch of prompts


def requests_of(
    model: Coconut,
    prompts: Sequence[Sample],
    *,
    generation_config: GenerationConfig | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    trace: bool | Sequence[str] = False,
    logprobs: bool = False,
    tokenizer: Any = None,
    **overrides: Any,
) -> list[Request]:
    """The requests of `generate`.

    Args:
        generation_config: default: the base's. `overrides` are fields of it (do_sample,
            temperature, top_k, top_p, min_p, repetition_penalty, eos_token_id, stop_strings, ...),
            or options of the method (`door.METHOD`).
        sampling: instead of what the generation config says about drawing tokens.
        seed: row r draws with seed + r.
        max_new_tokens: words a row may say, boundary tokens included; default: the generation
            config's, or 128.
        trace: record what happens; names of what the record shall hold beside it ("lens").
        logprobs: add up the log-probability of each row's words.
        tokenizer: for stop_strings; default: the model's own.

    Raises:
        ValueError: an option that there is not, or that is not supported.
    """
    own = {name: overrides.pop(name) for name in tuple(overrides) if name in DEFAULTS}
    config = deepcopy(generation_config or model.base.generation_config) or GenerationConfig()
    unknown = config.update(**overrides)
    if unknown:
        raise ValueError(f"there are no options {sorted(unknown)}; see methods/coconut/plan.py")
    stop = config.stop_strings or ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    tokenizer = tokenizer or model.tokenizer
    if stop and tokenizer is None:
        raise ValueError(
            "stop_strings need a tokenizer; pass tokenizer=, or give one to the Coconut model"
        )
    drawn = sampling or sampling_of(config, seed, rule="match")
    first = drawn.seed
    names = None if trace is False else frozenset(() if trace is True else trace)
    edit = own.get("edit")
    return [
        Request(
            prompt,
            max_new_tokens=config.max_new_tokens if max_new_tokens is None else max_new_tokens,
            sampling=drawn,
            seed=first + r * own.get("votes", 1),
            ends=end_tokens(None, config),
            stop=StopWords(stop, tokenizer.decode) if stop else None,
            trace=names,
            logprobs=logprobs,
            own=own if edit is None else {**own, "edit": BatchEdit(edit, r, len(prompts))},
        )
        for r, prompt in enumerate(prompts)
    ]
