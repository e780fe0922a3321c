"""What a request to Huginn may say, and what its traces can hold. Nothing heavy is imported."""

from __future__ import annotations

from inward.common.thinking import Acts, Option, is_never

NAME = "huginn"
_RULE = Acts("where a rule halts (halt)", lambda _model, _asked, own: not is_never(own["halt"]))
_NOISE = Acts(
    "where states start from noise (start)",
    lambda model, _asked, own: own["start"] == "noise" and model.config.state_init != "zero",
)
OPTIONS = {
    "max_steps": Option(None, "recurrences a token may take; None: the mean it was made for", int),
    "halt": Option("never", "when a token is done: a rule of depth, its name, or a function"),
    "min_steps": Option(1, "recurrences before the rule is asked", None, _RULE),
    "check_every": Option(1, "recurrences between two questions to the rule", None, _RULE),
    "halt_in_prompt": Option(
        True, "whether the rule also ends the thinking about the prompt", None, _RULE
    ),
    "sharing": Option("deepest", "which recurrences share a cache slot: deepest, ring:4, ..."),
    "start": Option("noise", "first state of a token: noise, or zero"),
    "warm": Option(None, "raw, normed: a token starts from the last state of the one before", str),
    "state_seed": Option(
        None, "of the noise that states start from; None: the request's seed", None, _NOISE
    ),
    "lens": Option(None, "likeliest tokens told of each recurrence; 5 if a trace has a lens", int),
    "packed": Option(None, "weights packed for a CPU: True, False; None: where that pays"),
    "mode": Option("plain", "plain; speculate: few recurrences draft; parallel: many places"),
    "draft_steps": Option(None, "speculate: recurrences of a draft; None: a quarter", int),
    "draft_tokens": Option(4, "speculate: guesses of a round"),
    "exact": Option(False, "parallel: drop places behind a changed guess; the text is plain's"),
    "inner_steps": Option(1, "parallel: recurrences of a turn"),
    "max_wave": Option(128, "parallel: places in work at once"),
}
TRACES = ("lens", "state", "plane", "prompt")
"""Of each recurrence: the likeliest tokens; the state; where the state is in the plane in which its
token's states move most; and the first and the last of these for every token of the prompt."""
