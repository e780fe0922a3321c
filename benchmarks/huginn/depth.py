"""More thought, better answers? Pointer chasing by Huginn and its controls.

    python benchmarks/huginn/depth.py

Trains every variant of `inward.recipes.huginn.CONTROLS` with every seed on the same stream of rows
a seed, and tests it once: accuracy for each number of hops after each number of recurrences, also
deeper than in training and for more hops than in training; what exit rules save; whether the end
depends on the start. Runs are resumed where they stopped, and a finished one is not done again, so
the table may be spread over time. Each finished run adds one row to huginn_depth.jsonl.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from inward.common.halting import KL, ArgmaxStable, EntropyChange, LatentChange, Rule
from inward.data.texts.text import joined
from inward.evals.depth import accuracy_by_depth, engine_exits, exits, path_independence
from inward.evals.rows import append_row, machine
from inward.evals.stats import over_seeds
from inward.methods.huginn.model import HuginnForCausalLM
from inward.recipes.huginn import CONTROLS, HopsData, HuginnRecipe, control
from inward.train import train

ROWS = Path(__file__).with_suffix(".jsonl")
DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
BUDGET = 32
RULES: dict[str, Rule | str] = {
    "kl 5e-4": KL(5e-4),
    "latent 0.03": LatentChange(0.03),
    "entropy 1e-3": EntropyChange(1e-3),
    "argmax 2": ArgmaxStable(2),
}


def run(name: str, seed: int, out: Path, steps: int | None) -> dict[str, Any]:
    """Train one variant with one seed (or go on with it), test it, and return its row."""
    recipe = control(name, seed)
    if steps is not None:
        recipe = replace(recipe, train=replace(recipe.train, steps=steps))
    folder = out / f"{name}-{seed}"
    summary = train(recipe.build(), recipe.train, folder)
    model = HuginnForCausalLM.from_pretrained(folder / "model").eval()
    return {
        "variant": name,
        "seed": seed,
        "steps": recipe.train.steps,
        "parameters": summary["parameters"],
        "cpu_seconds": summary["cpu_seconds"],
        "machine": machine(),
        "recipe": asdict(recipe),
        **tested(model, recipe),
    }


def tested(model: HuginnForCausalLM, recipe: HuginnRecipe) -> dict[str, Any]:
    """What the test questions say; a model that was trained to run once is run once."""
    assert isinstance(recipe.data, HopsData), "these questions have one answer token"
    flat = recipe.depth.mean == 1
    depths = (1,) if flat else DEPTHS
    sets = recipe.data.questions("test")
    once, rest = model.flops(context=recipe.data.rows().row_length)
    row = {
        "num_questions": recipe.data.num_test,
        "trained_hops": max(recipe.data.trained()),
        "flops_per_token": {str(r): r * once + rest for r in depths},
        "accuracy": {
            str(curve.difficulty): dict(zip(map(str, depths), curve.accuracy, strict=True))
            for curve in accuracy_by_depth(model, sets, depths)
        },
    }
    return row if flat else row | thinking(model, recipe, sets)


def thinking(model: HuginnForCausalLM, recipe: HuginnRecipe, sets: dict) -> dict[str, Any]:
    """Exits and path independence, over questions of all difficulties together."""
    held = joined(sets.values())
    found = exits(model, held, RULES, max_steps=BUDGET)
    some = joined(list(sets.values())[::3])
    engine = engine_exits(model, some, RULES["kl 5e-4"], max_steps=BUDGET)
    (alone,) = exits(model, some, {"kl": RULES["kl 5e-4"]}, max_steps=BUDGET)
    paths = path_independence(model, held, depths=DEPTHS, seeds=(0, 1))
    return {
        "exits": [result.row(held.difficulty) for result in found],
        "engine_agrees": float((engine.steps == alone.steps).mean()),
        "path": [asdict(path) for path in paths],
    }


# --------------------------------------------------------------------------------------------------
# Tables


def mean_accuracy(row: dict, *, depth: int, beyond: bool) -> float:
    """Over the hops of training, or those beyond, at a depth (its only one if it runs once)."""
    last = row["trained_hops"]
    curves = [curve for k, curve in row["accuracy"].items() if (int(k) > last) == beyond]
    return sum(curve["1" if len(curve) == 1 else str(depth)] for curve in curves) / len(curves)


def table(rows: list[dict]) -> str:
    """One line a variant: mean and 95 % interval over seeds, in percent."""
    lines = [
        "| variant | parameters | seeds | trained hops, r = 8 | r = 16 | more, r = 8 | r = 16 |"
        " CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in CONTROLS:
        own = [row for row in rows if row["variant"] == name]
        if own:
            cells = [
                _percent([mean_accuracy(row, depth=r, beyond=beyond) for row in own])
                for beyond in (False, True)
                for r in (8, 16)
            ]
            cpu = sum(row["cpu_seconds"] for row in own) / len(own)
            head = f"| {name} | {own[0]['parameters']:,} | {len(own)} | "
            lines.append(head + " | ".join(cells) + f" | {cpu:.0f} |")
    return "\n".join(lines)


def by_hops(rows: list[dict], name: str = "base") -> str:
    """Accuracy of one variant for each number of hops (lines) after r recurrences (columns)."""
    own = [row for row in rows if row["variant"] == name]
    if not own:
        return ""
    depths = list(next(iter(own[0]["accuracy"].values())))
    lines = ["| hops | " + " | ".join(f"r = {r}" for r in depths) + " |"]
    lines += ["|---" * (len(depths) + 1) + "|"]
    for k in own[0]["accuracy"]:
        means = [sum(row["accuracy"][k][r] for row in own) / len(own) for r in depths]
        lines.append(f"| {k} | " + " | ".join(f"{100 * mean:.1f}" for mean in means) + " |")
    return "\n".join(lines)


def gains(rows: list[dict], *, depth: int = 16) -> str:
    """Base minus each control on the same seeds, hops of training, with the 95 % interval."""
    of = {(row["variant"], row["seed"]): row for row in rows}
    lines = []
    for name in CONTROLS:
        seeds = [s for v, s in of if v == name and ("base", s) in of and name != "base"]
        differences = [
            mean_accuracy(of["base", s], depth=depth, beyond=False)
            - mean_accuracy(of[name, s], depth=depth, beyond=False)
            for s in seeds
        ]
        if differences:
            lines.append(f"base (r = {depth}) - {name}: {_percent(differences, -1.0)}")
    return "\n".join(lines)


def _percent(shares: list[float], least: float = 0.0) -> str:
    if len(shares) < 2:
        return f"{100 * shares[0]:.1f}"
    found = over_seeds(shares, within=(least, 1.0))
    return f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def main() -> None:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/huginn-depth"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None, help="default: the recipe's")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--only", nargs="*", default=list(CONTROLS))
    args = parser.parse_args()
    written = args.rows.read_text(encoding="utf-8") if args.rows.exists() else ""
    rows = [json.loads(line) for line in written.splitlines()]
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in range(args.seeds):
        for name in args.only:
            if (name, seed) not in done:
                row = run(name, seed, args.out, args.steps)
                append_row(args.rows, row)
                rows.append(row)
                print(table(rows), gains(rows), by_hops(rows), sep="\n\n", flush=True)


if __name__ == "__main__":
    main()
