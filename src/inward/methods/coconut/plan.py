"""What a request may say, checked before any work.

How tokens are drawn is transformers' business: a `GenerationConfig` says it, and its processors do
it (`inward.common.sampling.sampling_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig

from inward.common.bases import parameters_of
from inward.common.checks import takes
from inward.common.requests import end_tokens
from inward.common.sampling import Sampling, sampling_of
from inward.common.speaking import StopWords
from inward.common.thinking import Request
from inward.data.thoughts.segments import Sample, Text
from inward.data.thoughts.tokenizers import encode_text
from inward.methods.coconut.base import unwrapped
from inward.methods.coconut.switch import Scripted, Speaking, Switch, named

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut, Edit
    from inward.methods.coconut.row import ThinkingRow

DEFAULTS: Mapping[str, Any] = {
    "switch": None,
    "thoughts": None,
    "boundaries": True,
    "count_marks": True,
    "thought": "hidden",
    "noise": None,
    "edit": None,
    "max_new_thoughts": 256,
    "lens": None,
    "votes": 1,
    "ballot": None,
    "per_pass": None,
    "per_thought": {},
    "per_word": {},
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
    count_marks: bool
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
    def keeps_states(self) -> bool:
        """Whether the record holds what is fed back."""
        return bool({"state", "plane"} & (self.trace or frozenset()))

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
        sampling=_sampling(model, request, config, max_new),
        ends=end_tokens(None if request.ends is None else [*request.ends], config, vocab),
        max_new_tokens=max_new,
        max_new_thoughts=own["max_new_thoughts"],
        boundaries=bool(own["boundaries"]),
        count_marks=own["count_marks"],
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
    thinks = request.prompt.blocks or not isinstance(chosen.switch, Speaking)
    if votes > 1 and chosen.sampling.rule == "greedy" and not thinks:
        raise ValueError(
            f"{votes} votes of a greedy model that never thinks are all the same; say when to "
            "think (switch, thoughts), or sample"
        )
    return chosen


def _sampling(model: Coconut, request: Request, config: GenerationConfig, max_new: int) -> Sampling:
    seed = request.seed
    if request.sampling is None:
        facts = facts_of(model, request.prompt)
        return sampling_of(config, seed or 0, rule="match", limit=max_new, **facts)
    return request.sampling if seed is None else replace(request.sampling, seed=seed)


def facts_of(model: Coconut, prompt: Sample) -> dict[str, Any]:
    """What processors are made from (`inward.common.generation.processors_of`)."""
    return {
        "prompt": [i for s in prompt.segments if isinstance(s, Text) for i in s.ids],
        "silent": prompt.num_thoughts,
        "vocab_size": model.config.get_text_config().vocab_size,
        "device": model.device,
    }


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
    "count_marks": ("True or False", lambda value: isinstance(value, bool)),
    "noise": ("a number", lambda value: isinstance(value, float) or _whole(value)),
    "edit": (
        "a function of a thought, which rows think, and its number",
        lambda value: takes(value, 3) or isinstance(value, BatchEdit),
    ),
    "max_new_thoughts": ("a whole number", _whole),
    "lens": ("a whole number", _whole),
    "votes": ("a whole number", _whole),
    "ballot": ("a function of the tokens of a try", lambda value: takes(value, 1)),
    "per_pass": (
        "a mapping, or a function of (start, stop)",
        lambda value: takes(value, 2) or isinstance(value, Mapping),
    ),
    **dict.fromkeys(
        ("per_thought", "per_word"),
        ("whole numbers by name", lambda value: isinstance(value, Mapping)),
    ),
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


_OURS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "use_cache")
_OURS = (*_OURS, "cache", "past_key_values", "output_hidden_states")
"""Arguments of a forward that thinking gives itself"""


def check_passes(model: Coconut, per_pass: Any) -> None:
    """Refuse further arguments of a forward that it does not take."""
    if per_pass is not None:
        check_names(model, per_pass if isinstance(per_pass, Mapping) else per_pass(0, 1))


def check_names(model: Coconut, options: Any) -> Mapping[str, Any]:
    """Arguments of one forward, if the base takes them."""
    if not isinstance(options, Mapping):
        raise ValueError(f"per_pass gave {options!r:.60}, must give arguments by name")
    if clash := sorted(set(options) & set(_OURS)):
        raise ValueError(f"per_pass names {', '.join(clash)}, which thinking gives the base itself")
    if strange := sorted(set(options) - parameters_of(unwrapped(model.base))):
        raise ValueError(
            f"per_pass names {', '.join(strange)}, but the forward of "
            f"{type(unwrapped(model.base)).__name__} takes no such argument"
        )
    return options


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


def edited(
    batch: BatchEdit,
    rows: Sequence[ThinkingRow | None],
    thought: Tensor,
    where: Tensor,
    number: Tensor,
) -> Tensor:
    """The rows of a batch that share an edit, shown to it in their order."""
    own = {
        row.plan.edit.row: r
        for r, row in enumerate(rows)
        if row is not None
        and isinstance(row.plan.edit, BatchEdit)
        and row.plan.edit.edit is batch.edit
    }
    places = torch.tensor(list(own), device=thought.device)
    seats = torch.tensor(list(own.values()), device=thought.device)
    whole = thought.new_zeros(batch.num, thought.shape[1]).index_copy(0, places, thought[seats])
    active = where.new_zeros(batch.num).index_copy(0, places, where[seats])
    numbers = number.new_zeros(batch.num).index_copy(0, places, number[seats])
    new = batch.edit(whole, active, numbers)
    return thought.index_copy(0, seats, new[places].to(thought.dtype))
