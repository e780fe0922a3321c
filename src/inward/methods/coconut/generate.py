"""Generation with silent thoughts: batched, cached, each row in its own mode.

    out = generate(model, [prompt, ...], switch=Boundary(), max_new_tokens=64)
    out.tokens[0], out.traces[0]
    for event in stream(model, [prompt]): ...

Both are loops over the work of `work`, where all that happens is explained.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inward.common.clients import prompt_ids, streaming
from inward.common.passed import passed_of
from inward.common.requests import end_tokens, prompts_of
from inward.common.thinking import Answer, Event, Request, run, stood
from inward.common.trace import Cost, Trace
from inward.data.thoughts.segments import Sample, flat, parse
from inward.methods.coconut.calls import Call, call_of
from inward.methods.coconut.door import METHOD
from inward.methods.coconut.plan import plan_of
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
        streamer: one of transformers' (for one prompt): gets the prompt, then the tokens as they
            are spoken.
        options: see `calls.call_of`, and `door.METHOD`.

    Raises:
        ValueError: bad prompts or options, before any work.
    """
    return _generated(model, call_of(model, prompts, **options), streamer)[0]


def _generated(model: Coconut, call: Call, streamer: Any) -> tuple[CoconutGenerated, list[Answer]]:
    rows = call.prompts
    work = begun(model, call.requests)
    ids = None
    if streamer is not None and rows:
        ids = torch.tensor([flat(rows[0], latent=model.specials.latent)[0]])
    with streaming(streamer, ids, len(rows)) as tell:
        for event in run(work):
            if event.kind == "word":
                tell(event.tokens)
    answers = [stood(work.result(number)) for number in range(len(rows))]
    sums = [own_words(model, a.tokens, a.logprobs) for a in answers if a.logprobs is not None]
    out = CoconutGenerated(
        tokens=[list(answer.tokens) for answer in answers],
        samples=[answer.details["sample"] for answer in answers],
        thoughts=[answer.details["thoughts"] for answer in answers],
        stopped=[answer.stopped for answer in answers],
        logprobs=sums,
        num_passes=work.num_passes,
        traces=[answer.trace for answer in answers if answer.trace is not None],
        costs=[answer.cost for answer in answers],
    )
    return out, answers


def stream(model: Coconut, prompts: Sequence[Sample], **options: Any) -> Iterator[Event]:
    """As `generate`, event by event as they happen; `Event.request` is the row. Bad arguments raise
    at once."""
    return run(begun(model, call_of(model, prompts, **options).requests))


def continued(
    model: Coconut,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    inputs: Tensor | None = None,
    streamer: Any = None,
    **options: Any,
) -> Any:
    """See `Coconut.generate`."""
    if asked := [name for name in ("trace", "logprobs") if options.pop(name, False)]:
        raise ValueError(
            f"{' and '.join(asked)} do not fit into a tensor; inward.methods.coconut.generate"
            ".generate gives them (or return_dict_in_generate=True with output_scores=True)"
        )
    ids = prompt_ids(input_ids, inputs, options, model.base.generation_config)
    options = passed_of("Coconut", ids, options)
    limit = model.max_positions or sys.maxsize
    size = model.embedding.weight.shape[0]
    prompts = prompts_of(ids, attention_mask, context=limit, vocab_size=size)
    samples = [parse(row, specials=model.specials, may_end_open=True) for row in prompts]
    call = call_of(model, samples, **options)
    out, answers = _generated(model, call, streamer)
    config = call.wishes.config
    ends, pad = end_tokens(None, config), config.pad_token_id
    pad = min(ends, default=0) if pad is None else int(pad)
    asked_rows = [row for row in prompts for _ in range(call.wishes.copies)]
    rows = [[*row, *new] for row, new in zip(asked_rows, out.tokens, strict=True)]
    longest = max(map(len, rows))
    padded = [row + [pad] * (longest - len(row)) for row in rows]
    device = ids.device if isinstance(ids, Tensor) else model.device
    sequences = torch.tensor(padded, device=device)
    recorded = call.recorded(answers) if call.recorders else []
    return call.wishes.output(sequences, out.tokens, recorded, pad=pad)


def acting_rows(model: Coconut, requests: Sequence[Request]) -> list[Request]:
    """The requests of a batch, each without the options that have nothing to do in its row: they
    were said of all rows.

    Raises:
        ValueError: an option that has nothing to do in any row.
    """
    idle = [METHOD.idle(model, request) for request in requests]
    # a recipe says whether its layout marks blocks, also where no row has one
    if set.intersection(*map(set, idle)) - {"boundaries"}:
        plan_of(model, requests[0], METHOD.traces)  # a value out of range is told first
        METHOD.check_acts(model, requests[0])
    return [
        replace(request, own={k: v for k, v in request.own.items() if k not in names})
        for request, names in zip(requests, idle, strict=True)
    ]


def begun(model: Coconut, requests: Sequence[Request]) -> CoconutLanes:
    """Work on all of these requests together."""
    if not requests:
        raise ValueError("there is no prompt; give at least one")
    requests = acting_rows(model, requests)
    rows = sum(request.own.get("votes", 1) for request in requests)
    work = METHOD.begin(model, batch_size=max(1, rows))
    assert isinstance(work, CoconutLanes), "of this method"
    for r, request in enumerate(requests):
        try:
            work.add(request)
        except ValueError as error:
            raise ValueError(f"prompt {r}: {error}") from error
    return work
