"""`inward plan`: what a recipe takes on so many devices, and what to change if it does not fit."""

from __future__ import annotations

import json
from dataclasses import field, fields, make_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from inward.cli.options import UsageError, _console, parse
from inward.cli.train import recipe_entries, recipe_named

if TYPE_CHECKING:
    from inward.train.planning import Needs, Plan

ABOUT = """{about}

A plan: bytes on each device and hours of {name}, before it is started. Any field of the recipe can
be changed as in `inward train {name}`.

--gpus devices, --memory GB (10^9 bytes) of each; --parallel is --train.parallel: ddp (a copy on
each), fsdp (one copy over all) or hsdp (one over each group of --train.shard-processes, here 8);
--tflops the peak of a device (0: an H100's, 989 in bfloat16, 67 in float32), --mfu the share of it
that is reached (0: what is known of the method); --length tokens of a record, --identifiers rows of
TRM's table, where only the data know; --json for programs.
"""


def plan(words: list[str]) -> int:
    """Plan one recipe."""
    if not words or words[0] in ("-h", "--help"):
        print("usage: inward plan RECIPE [--gpus N] [--memory GB] [--parallel ddp|fsdp|hsdp] ...")
        print("       inward train lists the recipes (RECIPE may be a .json file),")
        print("       inward plan RECIPE --help shows every option")
        return 0
    name, *rest = words
    if name.startswith("-"):
        raise UsageError(f"name the recipe before its options: inward plan RECIPE {name} ...")
    recipe = recipe_named(name)
    given = parse(_options(recipe), rest, f"inward plan {name}")
    return 0 if given is None else _planned(recipe, given)


def _options(recipe: Any) -> type:
    extra: list[Any] = [
        ("gpus", int, field(default=8)),
        ("memory", float, field(default=80.0)),
        ("parallel", Literal["", "ddp", "fsdp", "hsdp"], field(default="")),
        ("tflops", float, field(default=0.0)),
        ("mfu", float, field(default=0.0)),
        ("length", int, field(default=0)),
        ("identifiers", int, field(default=0)),
        ("json", bool, field(default=False)),
    ]
    about = ABOUT.format(about=recipe.about, name=recipe.name)
    return make_dataclass("Plan", [*recipe_entries(recipe), *extra], namespace={"__doc__": about})


def _planned(recipe: Any, given: Any) -> int:
    from inward import hub
    from inward.recipes.planned import needs_of
    from inward.train import planning

    own = {entry[0] for entry in recipe_entries(recipe)}
    recipe = replace(recipe, **{f.name: getattr(given, f.name) for f in fields(given)
                                if f.name in own})  # fmt: skip
    names = [f.name for f in fields(planning.Cluster)]
    cluster = planning.Cluster(**{name: getattr(given, name) for name in names})
    settings = recipe.train
    if given.parallel:
        if settings.parallel not in ("ddp", given.parallel):
            raise ValueError(
                f"--parallel is {given.parallel} and --train.parallel {settings.parallel}; say one"
            )
        settings = replace(settings, parallel=given.parallel)
    with hub.quiet():
        needs = needs_of(recipe, length=given.length, identifiers=given.identifiers)
        found = planning.plan(needs, settings, cluster)
        turned = replace(settings, recompute=not settings.recompute)
        other = planning.plan(needs, turned, cluster) if needs.recomputes else None
        better = None if found.fits else planning.advise(needs, settings, cluster)
    if given.json:
        advised = None if better is None else better.to_dict()
        print(json.dumps({**found.to_dict(), "asked_bytes": needs.asked_bytes, "advised": advised}))
        return 0
    for line in told(needs, found, other):
        _console().print(line, highlight=False, soft_wrap=True)
    for line in advice(found, better):
        _console().print(line, highlight=False, soft_wrap=True)
    return 0


def told(needs: Needs, found: Plan, other: Plan | None) -> list[str]:
    """A plan in lines."""
    from inward.train.planning import USABLE

    cluster = found.cluster
    spread = {"ddp": "a copy on each", "fsdp": "one copy over all"}
    groups = spread.get(found.parallel, f"one copy over each {found.shared_by}")
    lines = [
        f"{found.name}: {found.parameters:,} trainable parameters; {cluster.gpus} devices of "
        f"{cluster.memory:g} GB, {found.parallel} ({groups})",
        f"  a row is {needs.rows_in}; {found.micro_rows:,} rows at a time on each, "
        f"{found.accumulation} times a step" + (", recomputing" if found.recompute else ""),
        "",
    ]
    lines += [f"  {part:<13}{gb(size):>12}" for part, size in found.bytes.items() if size]
    limit = f"{USABLE:.0%} of {cluster.memory:g} GB is {USABLE * cluster.memory:.1f} GB"
    verdict = "it fits" if found.fits else "it does not fit"
    lines += [f"  {'together':<13}{gb(found.total):>12}   {limit}: {verdict}", ""]
    if other is not None:
        word = "without" if found.recompute else "with"
        lines.append(
            f"  {word} recomputing: activations {gb(other.bytes['activations'])}, together "
            f"{gb(other.total)}, FLOPs times {other.flops / found.flops:.2f}"
        )
    if needs.asked_bytes:
        lines.append(
            f"  a text of full length, when the model is asked: {gb(needs.asked_bytes)} of keys "
            "and values (bfloat16)"
        )
    if found.steps:
        source = "given" if cluster.mfu else needs.mfu_from
        lines.append(
            f"  {found.flops:.3g} FLOP in {found.steps:,} steps: {hours(found.hours)}, "
            f"{found.hours * cluster.gpus:,.4g} device hours, at {found.mfu:.0%} of "
            f"{found.tflops:g} TFLOP/s ({source})"
        )
    else:
        lines.append(
            f"  {found.step_flops:.3g} FLOP a step; how many steps the data say, or --train.steps"
        )
    return lines + [f"  {line}" for line in found.told]


def advice(found: Plan, better: Plan | None) -> list[str]:
    """What to change so that it fits."""
    if found.fits:
        return []
    if better is None:
        return ["", "  not even one row fits on 65,536 such devices: take larger ones"]
    words = []
    if better.cluster.gpus != found.cluster.gpus:
        words += [f"--gpus {better.cluster.gpus}"]
    if better.parallel != found.parallel:
        words += [f"--train.parallel {better.parallel}"]
    if better.recompute and not found.recompute:
        words += ["--train.recompute"]
    if better.accumulation != found.accumulation:
        words += [f"--train.accumulation {better.accumulation}"]
    return [
        "",
        f"  to make it fit: {' '.join(words)}   ({gb(better.total)}, {hours(better.hours)})",
    ]


def gb(size: float) -> str:
    """Bytes in a unit that people read."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit / 10:
            return f"{size / unit:,.2f} {name}"
    return f"{size / 1e3:,.1f} kB"


def hours(number: float) -> str:
    """Hours, or days if they are many, or minutes and seconds if few."""
    if number >= 72:
        return f"{number / 24:,.1f} days"
    if number >= 1:
        return f"{number:.1f} hours"
    return f"{number * 60:.1f} minutes" if number >= 1 / 60 else f"{number * 3600:.2g} seconds"
