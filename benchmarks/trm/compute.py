"""Accuracy against training FLOPs (`python benchmarks/trm/compute.py`, 80 minutes on one core).

First pilots: every rate of every rung at half of the budget, judged by the cells of validation
puzzles it gets right (exact accuracy may still be 0 there). Then the runs, the published recipe and
that rung which did best in the pilots, each at its best rate: three seeds to the same FLOPs,
accuracy on validation puzzles along the way, on test puzzles once at the end. Runs are resumed
where they stopped and a finished one is not done again: the same command goes on. Rows go to
benchmarks/trm/compute.jsonl.

The rungs are those of `inward.studies.trm_compute`; `--only` names those to run, `--seeds 0` stops
after the pilots.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from inward.evals.puzzles import evaluate
from inward.evals.rows import append_row
from inward.evals.stats import Interval, over_seeds
from inward.recipes.trm import TRMRecipe
from inward.studies.trm_compute import BUDGET, LADDER, RATES, recipe, step_flops
from inward.train import train

ROWS = Path(__file__).with_suffix(".jsonl")
PILOT_SEED = 100
LEVELS = (0.25, 0.5, 0.75)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def spent(run: TRMRecipe) -> np.ndarray:
    """(steps,) training FLOPs after each step; evaluations are not training."""
    model, rows = run.model, run.train.batch_rows
    phases = {model.cycles(step): step for step in range(run.train.steps)}
    cost = {cycles: step_flops(model, rows, step) for cycles, step in phases.items()}
    return np.cumsum([cost[model.cycles(step)] for step in range(run.train.steps)])


def trained(run: TRMRecipe, folder: Path) -> dict[str, Any]:
    """Train (or go on), and return the row's common part with the curve over FLOPs."""
    summary = train(run.build(), run.train, folder)
    log = read(folder / "log.jsonl")
    flops = spent(run)
    looks = {row["step"]: row["metrics"] for row in log if row["kind"] == "eval"}
    curve = [
        [step, float(flops[step - 1]), seen["exact"], seen["cells"]]
        for step, seen in sorted(looks.items())
    ]
    return {
        "lr": run.train.optim.lr,
        "seed": run.train.seed,
        "steps": run.train.steps,
        "flops": float(flops[-1]),
        "curve": curve,
        "cpu_seconds": summary["cpu_seconds"],
        "recipe": asdict(run),
    }


def pilot(name: str, lr: float, out: Path, budget: float) -> dict[str, Any]:
    """A short run that only judges a rate."""
    run = recipe(name, PILOT_SEED, budget=budget / 2, lr=lr, looks=2)
    row = trained(run, out / f"pilot-{name}-{lr:g}")
    return {"kind": "pilot", "rung": name, "cells": row["curve"][-1][3]} | row


def measured(name: str, seed: int, lr: float, out: Path, budget: float) -> dict[str, Any]:
    """A full run and its test."""
    from inward.hub import load

    run, folder = recipe(name, seed, budget=budget, lr=lr), out / f"{name}-{seed}"
    row = trained(run, folder)
    result = evaluate(
        load(folder), run.test_puzzles(), run.task(), max_steps=16, halt="never", by_step=False
    )
    row |= {"exact": result.accuracy, "interval": result.interval, "num": result.num}
    return {"kind": "run", "rung": name, "machine": result.machine} | row


def flops_to(curve: list[list[float]], level: float) -> float:
    """FLOPs at which the curve first reaches `level` exact, on the straight line between looks;
    NaN if it never does."""
    before_flops, before = 0.0, 0.0
    for _, flops, exact, _ in curve:
        if exact >= level:
            share = (level - before) / (exact - before)
            return before_flops + share * (flops - before_flops)
        before_flops, before = flops, exact
    return float("nan")


def table(rows: list[dict[str, Any]]) -> str:
    """The runs in Markdown, one line a rung."""
    levels = " | ".join(f"TFLOP to {100 * level:.0f} % of validation" for level in LEVELS)
    lines = [
        f"| rung | rate | steps | TFLOP | CPU s | seeds | test, exact | {levels} |",
        "|" + "---|" * (7 + len(LEVELS)),
    ]
    for name in LADDER:
        own = [row for row in rows if row["kind"] == "run" and row["rung"] == name]
        if own:
            cells = [
                name,
                f"{own[0]['lr']:g}",
                str(own[0]["steps"]),
                f"{own[0]['flops'] / 1e12:.1f}",
                f"{np.mean([row['cpu_seconds'] for row in own]):.0f}",
                str(len(own)),
                _percent([row["exact"] for row in own]),
            ]
            for level in LEVELS:
                reached = [flops_to(row["curve"], level) / 1e12 for row in own]
                cells.append(", ".join("never" if x != x else f"{x:.1f}" for x in reached))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(shares: list[float]) -> str:
    if len(shares) < 2:
        return f"{100 * shares[0]:.1f} %"
    found = over_seeds(shares, within=(0.0, 1.0))
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against FLOPs, mean and interval over seeds."""
    from inward.viz import plots

    lines: dict[str, list[tuple[float, Interval]]] = {}
    for name in LADDER:
        curves = [row["curve"] for row in rows if row["kind"] == "run" and row["rung"] == name]
        for looks in zip(*curves, strict=True):
            values = [look[2] for look in looks]
            mean = (
                over_seeds(values, within=(0.0, 1.0)) if len(values) > 1 else Interval(*values * 3)
            )
            lines.setdefault(name, []).append((looks[0][1] / 1e12, mean))
    plots.save(plots.curves(lines, x_label="training TFLOP"), path)


def main() -> None:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/compute"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=BUDGET, help="training FLOPs of a run")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--only", nargs="+", choices=LADDER, help="rungs; the best two otherwise")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--figure", type=Path, help=".svg or .png of accuracy against FLOPs")
    args = parser.parse_args()
    rows = read(args.rows) if args.rows.exists() else []

    def keep(row: dict[str, Any]) -> None:
        append_row(args.rows, row)
        rows.append(row)

    best: dict[str, tuple[float, float]] = {}
    for name in args.only or LADDER:
        for lr in args.rates:
            done = {(row["rung"], row["lr"]) for row in rows if row["kind"] == "pilot"}
            if (name, lr) not in done:
                keep(pilot(name, lr, args.out, args.budget))
                print(f"pilot {name} {lr:g}: {100 * rows[-1]['cells']:.1f} % cells", flush=True)
        tried = [row for row in rows if row["kind"] == "pilot" and row["rung"] == name]
        best[name] = max((row["cells"], row["lr"]) for row in tried)
    others = [name for name in best if name != "published"]
    names = args.only or ["published", max(others, key=lambda name: best[name])]
    for seed in range(args.seeds):
        for name in names:
            done = {(row["rung"], row["seed"]) for row in rows if row["kind"] == "run"}
            if (name, seed) not in done:
                keep(measured(name, seed, best[name][1], args.out, args.budget))
                print(table(rows), flush=True)
    print(table(rows))
    if args.figure is not None:
        draw(rows, args.figure)


if __name__ == "__main__":
    main()
