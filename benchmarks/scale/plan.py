"""Plans of the recipes that do not run here, and of published runs beside what was reported.

    python benchmarks/scale/plan.py            writes plan.jsonl beside it, prints the tables

No accelerator and no data are needed; a minute on one core.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from inward.cli.plan import gb, hours
from inward.recipes import RECIPES, find
from inward.recipes.planned import needs_of
from inward.train.planning import Cluster, Plan, advise, plan

ROWS = Path(__file__).with_suffix(".jsonl")

PUBLISHED = (
    (
        "huginn-0125",
        Cluster(gpus=4096, memory=64, tflops=191.5),
        {"parallel": "hsdp", "recompute": True},
        "1.4e23 FLOP without attention and recomputing; 8 to 9 days on 4,096 MI250X dies of 64 GB",
    ),
    ("trm-arc1", Cluster(gpus=4), {}, "158 EFLOP; about 3 days on four H100"),
    (
        "trm-sudoku-extreme",
        Cluster(gpus=1, memory=48, tflops=181),
        {},
        "2.1 EFLOP; 18 to 20 hours on one L40S",
    ),
    (
        "trm-maze-hard",
        Cluster(gpus=4, memory=48, tflops=181),
        {},
        "20 EFLOP; under 24 hours on four L40S",
    ),
    (
        "tidar-qwen2.5-1.5b",
        Cluster(),
        {"accumulation": 64},
        "0.93 ZFLOP without attention; no time told",
    ),
)
"""Recipe, devices, settings, and what the notes of the papers' code say."""


def row(found: Plan, **more: object) -> dict[str, object]:
    """One line of the file."""
    return {**found.to_dict(), **more, "command": "python benchmarks/scale/plan.py"}


def main() -> None:
    """All plans, and the tables of docs/scale.md."""
    rows, lines = [], []
    for name in RECIPES:
        recipe = find(name)()
        if "NOT RUN HERE" not in recipe.about:
            continue
        needs = needs_of(recipe)
        first = plan(needs, recipe.train, Cluster())
        best = first if first.fits else advise(needs, recipe.train, Cluster())
        assert best is not None, name
        rows += [row(first, of="as it stands"), row(best, of="advised")]
        how = [] if best.cluster.gpus == 8 else [f"{best.cluster.gpus} devices"]
        how += [] if best.parallel == "ddp" else [best.parallel]
        how += ["recompute"] if best.recompute else []
        how += [] if best.accumulation == 1 else [f"accumulation {best.accumulation}"]
        size = best.bytes
        states = size["weights"] + size["gradients"] + size["optimizer"] + size["average"]
        kept = size["activations"] + size["working"]
        lines.append(
            f"| {name} | {best.parameters:,} | {', '.join(how) or 'as it is'} | {gb(states)} | "
            f"{gb(kept)} | {gb(best.total)} | {best.flops:.2g} | {hours(best.hours)} at "
            f"{best.mfu:.0%} |"
        )
    print("\n".join(lines), "\n")
    for name, cluster, changed, said in PUBLISHED:
        recipe = find(name)()
        found = plan(needs_of(recipe), replace(recipe.train, **changed), cluster)
        rows.append(row(found, of="published", said=said))
        fits = "fits" if found.fits else "does not fit"
        print(
            f"| {name} | {said} | {found.flops:.3g} FLOP; {hours(found.hours)} at {found.mfu:.0%} "
            f"of {found.tflops:g} TFLOP/s; {gb(found.total)} of {cluster.memory:g} GB: {fits} |"
        )
    partial = ROWS.with_suffix(".partial")
    partial.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    partial.replace(ROWS)


if __name__ == "__main__":
    main()
