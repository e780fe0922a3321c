"""What the loops must know of Huginn: its options, its unit of effort, and how its work begins."""

from __future__ import annotations

from typing import Any

from inward.common.thinking import Method, Option, Work


def begin(model: Any, *, batch_size: int = 16, in_flight: int | None = None) -> Work:
    """Work with a Huginn model.

    batch_size: rows of a pass. in_flight: texts with a place in the cache, at least batch_size;
        default: twice as many. Both of each lane: requests share passes if `mode`, `sharing`,
        `packed`, and in the parallel mode `exact` and `inner_steps`, are the same.
    """
    from inward.methods.huginn.work import begin

    return begin(model, batch_size=batch_size, in_flight=in_flight)


METHOD = Method(
    name="huginn",
    begin=begin,
    options={
        "max_steps": Option(None, "recurrences a token may take; None: the mean it was made for"),
        "halt": Option("never", "when a token is done: a rule of depth, its name, or a function"),
        "min_steps": Option(1, "recurrences before the rule is asked"),
        "check_every": Option(1, "recurrences between two questions to the rule"),
        "halt_in_prompt": Option(True, "whether the rule also ends the thinking about the prompt"),
        "sharing": Option("deepest", "which recurrences share a cache slot: deepest, ring:4, ..."),
        "start": Option("noise", "first state of a token: noise, or zero"),
        "warm": Option(None, "raw, normed: a token starts from the last state of the one before"),
        "state_seed": Option(None, "of the noise that states start from; None: the request's seed"),
        "packed": Option(None, "weights packed for a CPU: True, False; None: where that pays"),
        "mode": Option("plain", "plain; speculate: few recurrences draft; parallel: many places"),
        "draft_steps": Option(None, "speculate: recurrences of a draft; None: a quarter"),
        "draft_tokens": Option(4, "speculate: guesses of a round"),
        "exact": Option(False, "parallel: drop places behind a changed guess; the text is plain's"),
        "inner_steps": Option(1, "parallel: recurrences of a turn"),
        "max_wave": Option(128, "parallel: places in work at once"),
    },
    traces=("lens", "state"),
    unit=("max_steps", "recurrences"),
)
