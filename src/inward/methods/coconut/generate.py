"""Generation with silent thoughts: batched, cached, each row in its own mode.

    out = generate(model, [prompt, ...], switch=Boundary(), max_new_tokens=64)
    out.tokens[0], out.traces[0]
    for event in stream(model, [prompt]): ...

Both are loops over the work of `work`, where all that happens is explained.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from inward.common.passed import Passed
from inward.common.requests import end_tokens, prompts_of
from inward.common.thinking import Event, Request, run
from inward.common.trace import Cost, Trace
from inward.data.thoughts.segments import Sample, parse
from inward.methods.coconut.door import METHOD
from inward.methods.coconut.plan import requests_of
from inward.methods.coconut.work import CoconutLanes, own_words

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut


@dataclass
class CoconutGenerated:
    """What was generated, B rows.

    tokens: per row the tokens spoken, boundary tokens and the end token included.
    samples: per row the prompt and what followed, as segments; they can be prompts again.
    thoughts: per row how many thoughts were added to the prompt's.
    stopped: per row "end", "stop", "length" (max_new_tokens) or "context".
    logprobs: per row the summed log-probability of its words, under the model's own distribution;
        empty unless asked for.
    num_passes: forwards of the base, prompts included.
    traces: per row; empty unless asked for. costs: per row.
    """

    tokens: list[list[int]]
    samples: list[Sample]
    thoughts: list[int]
    stopped: list[str]
    num_passes: int
    logprobs: list[float] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)


def generate(
    model: Coconut,
    prompts: Sequence[Sample],
    *,
    streamer: Any = None,
    **options: Any,
) -> CoconutGenerated:
    """Continue prompts until each of them ends.

    Args:
        prompts: samples; the last block of thoughts may be open.
        streamer: one of transformers' (for one prompt): gets the tokens as they are spoken.
        options: see `plan.requests_of`, and `door.METHOD`.

    Raises:
        ValueError: bad prompts or options, before any work.
    """
    if streamer is not None and len(prompts) != 1:
        raise ValueError(f"a streamer takes one prompt, not {len(prompts)}; use `stream`")
    work = begun(model, requests_of(model, prompts, **options))
    for event in run(work):
        if streamer is not None and event.kind == "word":
            streamer.put(torch.tensor(event.tokens))
    if streamer is not None:
        streamer.end()
    answers = [work.result(number) for number in range(len(prompts))]
    sums = [own_words(model, a.tokens, a.logprobs) for a in answers if a.logprobs is not None]
    return CoconutGenerated(
        tokens=[list(answer.tokens) for answer in answers],
        samples=[answer.details["sample"] for answer in answers],
        thoughts=[answer.details["thoughts"] for answer in answers],
        stopped=[answer.stopped for answer in answers],
        logprobs=sums,
        num_passes=work.num_passes,
        traces=[answer.trace for answer in answers if answer.trace is not None],
        costs=[answer.cost for answer in answers],
    )


def stream(model: Coconut, prompts: Sequence[Sample], **options: Any) -> Iterator[Event]:
    """As `generate`, event by event as they happen; `Event.request` is the row. Bad arguments raise
    at once."""
    return run(begun(model, requests_of(model, prompts, **options)))


def continued(
    model: Coconut, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
) -> torch.LongTensor:
    """See `Coconut.generate`."""
    tokenizer = options.pop("tokenizer", None)
    options = Passed("Coconut", len(input_ids), input_ids.shape[-1]).rest(options) | {"tokenizer": tokenizer}
    limit = model.max_positions or sys.maxsize
    size = model.embedding.weight.shape[0]
    prompts = prompts_of(input_ids, attention_mask, context=limit, vocab_size=size)
    samples = [parse(ids, specials=model.specials, may_end_open=True) for ids in prompts]
    said = generate(model, samples, **options).tokens
    config = options.get("generation_config") or model.base.generation_config
    ends = end_tokens(options.get("eos_token_id"), config)
    pad = getattr(config, "pad_token_id", None)
    pad = min(ends, default=0) if pad is None else int(pad)
    rows = [[*ids, *new] for ids, new in zip(prompts, said, strict=True)]
    longest = max(map(len, rows))
    padded = [row + [pad] * (longest - len(row)) for row in rows]
    return cast(torch.LongTensor, torch.tensor(padded, device=input_ids.device))


def begun(model: Coconut, requests: Sequence[Request]) -> CoconutLanes:
    """Work on all of these requests together."""
    if not requests:
        raise ValueError("there is no prompt; give at least one")
    rows = sum(request.own.get("votes", 1) for request in requests)
    work = METHOD.begin(model, batch_size=max(1, rows))
    assert isinstance(work, CoconutLanes), "of this method"
    for r, request in enumerate(requests):
        try:
            work.add(request)
        except ValueError as error:
            raise ValueError(f"prompt {r}: {error}") from error
    return work
