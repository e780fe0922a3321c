"""Train and test the ablations of TRM (`python benchmarks/trm/ablations.py`, 2 h on one core).

Runs are resumed where they stopped, and a finished one is not done again, so the table may be
spread over time. Each finished run adds one row to benchmarks/trm/ablations.jsonl. The test set is
looked at once per run, after training, never halted.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from inward.evals.puzzles import evaluate
from inward.evals.rows import append_row
from inward.evals.stats import over_seeds
from inward.studies.trm_ablations import BASE_STEPS, CHANGES, ablation, step_cost
from inward.train import train

ROWS = Path(__file__).with_suffix(".jsonl")
LOOKS = (1, 8, 16)


def run(name: str, seed: int, out: Path, base_steps: int) -> dict:
    """Train one variant with one seed (or go on with it), test it, and return its row."""
    recipe = ablation(name, seed, base_steps=base_steps)
    built = recipe.build()
    summary = train(built, recipe.train, out / f"{name}-{seed}")
    log = [json.loads(line) for line in (out / f"{name}-{seed}" / "log.jsonl").open()]
    from inward.hub import load

    model = load(out / f"{name}-{seed}")
    result = evaluate(
        model, recipe.test_puzzles(), recipe.task(), max_steps=max(LOOKS), halt="never"
    )
    return {
        "variant": name,
        "seed": seed,
        "steps": recipe.train.steps,
        "layers_a_step": step_cost(recipe.model),
        "parameters": result.parameters,
        "num": result.num,
        "exact": {str(k): result.by_step[k - 1] for k in LOOKS},
        "curve": [[r["step"], r["metrics"]["exact"]] for r in log if r["kind"] == "eval"],
        "cpu_seconds": summary["cpu_seconds"],
        "machine": result.machine,
        "model": asdict(recipe.model),
    }


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table, one line a variant, mean and 95 % interval over seeds."""
    lines = [
        "| variant | parameters | steps | seeds | exact after 1 | after 8 | after 16 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in CHANGES:
        own = [row for row in rows if row["variant"] == name]
        if own:
            cells = [_cell([row["exact"][str(k)] for row in own]) for k in LOOKS]
            head = f"| {name} | {own[0]['parameters']:,} | {own[0]['steps']} | {len(own)} | "
            lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(shares: list[float]) -> str:
    if len(shares) < 2:
        return f"{100 * shares[0]:.1f} %"
    found = over_seeds(shares, within=(0.0, 1.0))
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


def main() -> None:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--base-steps", type=int, default=BASE_STEPS)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--only", nargs="*", default=list(CHANGES))
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.rows.open()] if args.rows.exists() else []
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in range(args.seeds):
        for name in args.only:
            if (name, seed) not in done:
                row = run(name, seed, args.out, args.base_steps)
                append_row(args.rows, row)
                rows.append(row)
                print(table(rows), flush=True)


if __name__ == "__main__":
    main()
