"""What a saved state must share with the run that goes on from it, and what an extension changes.

A state fits if recipe and settings are those that it was made with, but for what touches no weights
(`HARMLESS`). `steps` may grow. With a constant rate nothing else changes by that; cosine and linear
schedules end at the last step, so their rate jumps, and the run says from what to what.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from inward.train.schedule import lr_factor
from inward.train.settings import TrainSettings

HARMLESS = (
    "best_metric",
    "eval_every",
    "keep",
    "log_every",
    "parallel",
    "progress",
    "recompute",
    "save_every",
    "shard_processes",
    "trackers",
)
"""Settings that may change between a run and its continuation: they do not touch the weights, or
in their last bits alone (parallel, as the number of processes does)."""


def identity_of(settings: TrainSettings, config: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for a state to fit: recipe and settings, without what is harmless."""
    plain = json.loads(json.dumps(asdict(settings)))
    decisive = {name: value for name, value in plain.items() if name not in HARMLESS}
    if settings.schedule in ("constant", "late"):
        del decisive["steps"]  # then a run may be made longer
    return {
        "settings": decisive,
        # The recipe usually contains the settings; there they are judged once, above.
        "config": _without(json.loads(json.dumps(config)), plain),
    }


def _without(config: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without(value, part) if isinstance(value, dict) else value
        for name, value in config.items()
        if value != part
    }


def extend(content: dict[str, Any], settings: TrainSettings) -> str:
    """Let a saved state (`StateFolder.content`) fit a run of more steps, if only they differ.

    Returns: what that does to the schedule, in one sentence; "" if the run is as long as before.
    """
    kept = content["identity"]["settings"]
    before = kept.get("steps", content["record"].get("planned_steps", settings.steps))
    same = kept.get("schedule") == settings.schedule
    if not same or not isinstance(before, int) or not before < settings.steps:
        return ""
    if "steps" in kept:
        kept["steps"] = settings.steps
    told = f"extended from {before} to {settings.steps} steps"
    if settings.schedule == "constant":
        return f"{told}; the rate stays constant"
    old = lr_factor(replace(settings, steps=before), min(content["step"] + 1, before))
    new = lr_factor(settings, content["step"] + 1)
    return (
        f"{told}: the {settings.schedule} schedule now ends at step {settings.steps}; the rate of "
        f"step {content['step'] + 1} is {new:.3g} of its base, by the shorter plan it was {old:.3g}"
    )


def other_data(content: dict[str, Any], identity: dict[str, Any], keys: tuple[str, ...]) -> str:
    """Let a saved state fit a run that differs in its data alone: in what was read, and in the
    entries `keys` of its configuration.

    Returns: what differs, in words; "" if nothing does.
    """
    kept = content["identity"]
    before, now = kept.get("read"), identity["read"]
    told = []
    if before is not None and keys and before != now:
        told += [f"{name} has changed" for name in sorted(before.keys() & now.keys())
                 if before[name] != now[name]]  # fmt: skip
        told += [f"{name} instead of {', '.join(sorted(before.keys() - now.keys())) or 'none'}"
                 for name in sorted(now.keys() - before.keys())]  # fmt: skip
        told += [f"{name} is gone" for name in sorted(before.keys() - now.keys())
                 if not now.keys() - before.keys()]  # fmt: skip
    for key in keys:
        old, new = kept["config"].get(key), identity["config"].get(key)
        if old != new:
            told.append(f"{key} was {json.dumps(old)}, is {json.dumps(new)}")
            kept["config"] = {**kept["config"], key: new}
            if new is None:
                del kept["config"][key]
    if keys or before is None:  # of before this was written down, nothing can be said
        kept["read"] = now
    return "; ".join(told)
