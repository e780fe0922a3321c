"""Halting against fixed steps (`python benchmarks/trm/halting.py --model sudoku6`).

Rules are compared on validation puzzles, all from one table. "Equal" to `--fixed` steps means: the
95 % interval of the paired difference of accuracy lies within `--margin`. The cheapest rule that is
not worse (equal, or better) is then run on the test puzzles once, beside fixed steps and the
library's default rule: evaluations and CPU time, for the puzzles that fixed steps solve and those
that they do not. CPU time is that of the process, so a loaded machine spoils it less. Rows go to
benchmarks/trm/halting.jsonl.
"""

import argparse
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from inward import hub
from inward.common.halting import AllOf, ArgmaxStable, LatentChange, QHalt, Rule
from inward.data.puzzles.puzzles import Puzzles
from inward.evals.rows import append_row, machine
from inward.evals.stats import paired_difference, wilson
from inward.recipes.of import recipe_of
from inward.studies.trm_scaling import (
    Compared,
    cheapest,
    compare_rules,
    record,
    some_of,
    validation_puzzles,
)
from inward.tasks.named import read_puzzles

ROWS = Path(__file__).with_suffix(".jsonl")
DEFAULT = "q+stable"
RULES: dict[str, Rule] = {
    "q": QHalt(),
    "q > 2": QHalt(2.0),
    "q > 4": QHalt(4.0),
    "stable": ArgmaxStable(1),
    "stable 2": ArgmaxStable(2),
    "stable 3": ArgmaxStable(3),
    "change < 0.1": LatentChange(0.1),
    "change < 0.03": LatentChange(0.03),
    "change < 0.01": LatentChange(0.01),
    DEFAULT: AllOf(QHalt(), ArgmaxStable(1)),
    "q > 2 + stable": AllOf(QHalt(2.0), ArgmaxStable(1)),
    "q + stable 2": AllOf(QHalt(), ArgmaxStable(2)),
}


def validation_table(compared: list[Compared], fixed: int, evaluations: float) -> str:
    """The rules as a Markdown table, cheapest first."""
    lines = [
        f"| rule ({fixed} steps at most) | exact | difference, points | equal | not worse |"
        " evaluations | fewer |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(compared, key=lambda row: row.evaluations):
        gap = row.difference.difference
        lines.append(
            f"| {row.rule} | {100 * row.accuracy:.1f} % | {100 * gap.value:+.2f} "
            f"({100 * gap.low:+.2f} to {100 * gap.high:+.2f}) | {'yes' if row.equal else 'no'} | "
            f"{'yes' if row.not_worse else 'no'} | {row.evaluations:.1f} | "
            f"{evaluations / row.evaluations:.1f}x |"
        )
    return "\n".join(lines)


def timed(model: Any, puzzles: Puzzles, **options: Any) -> tuple[np.ndarray, np.ndarray, float]:
    """(right, evaluations) of each puzzle, and CPU seconds."""
    began = time.process_time()
    solution = model.solve(
        puzzles.inputs, identifiers=puzzles.identifiers, grid=puzzles.grid, **options
    )
    seconds = time.process_time() - began
    scored = puzzles.labels != 0
    right = ((solution.answers.numpy() == puzzles.labels) | ~scored).all(1)
    return right, solution.evaluations.numpy(), seconds


def test_rows(
    model: Any, puzzles: Puzzles, rules: dict[str, Rule], fixed: int, margin: float
) -> list[dict[str, Any]]:
    """Each rule against fixed steps: all puzzles, and those that fixed steps solve or not."""
    everybody = timed(model, puzzles, max_steps=fixed, halt="never")[0]
    groups = {"solved": everybody, "unsolved": ~everybody}
    rows: list[dict[str, Any]] = []
    for name, rule in rules.items():
        parts: list[tuple[np.ndarray, ...]] = []
        for group, members in groups.items():
            if members.any():
                part = puzzles.select(members)
                base = timed(model, part, max_steps=fixed, halt="never")
                own = timed(model, part, max_steps=fixed, halt=rule)
                parts.append((own[0], base[0], own[1], base[1], np.array([own[2], base[2]])))
                rows.append(test_row(name, group, parts[-1:], margin))
        rows.append(test_row(name, "all", parts, margin))
    return rows


def test_row(
    name: str, group: str, parts: list[tuple[np.ndarray, ...]], margin: float
) -> dict[str, Any]:
    """`parts`: (right, right fixed, evaluations, evaluations fixed, CPU seconds of both)."""
    right, fixed, own, base = (np.concatenate([part[i] for part in parts]) for i in range(4))
    seconds = np.sum([part[4] for part in parts], axis=0)
    share, paired = wilson(int(right.sum()), len(right)), paired_difference(right, fixed)
    gap = paired.difference
    return {
        "rule": name,
        "group": group,
        "num": len(right),
        "exact": share.value,
        "interval": [share.low, share.high],
        "exact_fixed": float(fixed.mean()),
        "difference": [gap.value, gap.low, gap.high],
        "only_rule": paired.only_first,
        "only_fixed": paired.only_second,
        "equal": bool(-margin <= gap.low and gap.high <= margin),
        "not_worse": bool(-margin <= gap.low),
        "evaluations": float(own.mean()),
        "evaluations_fixed": float(base.mean()),
        "cpu_ms": 1000 * float(seconds[0]) / len(right),
        "cpu_ms_fixed": 1000 * float(seconds[1]) / len(right),
    }


def test_table(rows: list[dict[str, Any]], fixed: int) -> str:
    """The test rows in Markdown."""
    lines = [
        f"| rule | puzzles | number | exact | {fixed} steps | difference, points | evaluations |"
        f" {fixed} steps | fewer | CPU ms | {fixed} steps | less |",
        "|" + "---|" * 12,
    ]
    for row in rows:
        value, low, high = (100 * x for x in row["difference"])
        lines.append(
            f"| {row['rule']} | {row['group']} | {row['num']} | {100 * row['exact']:.1f} % | "
            f"{100 * row['exact_fixed']:.1f} % | {value:+.2f} ({low:+.2f} to {high:+.2f}) | "
            f"{row['evaluations']:.1f} | {row['evaluations_fixed']:.0f} | "
            f"{row['evaluations_fixed'] / row['evaluations']:.1f}x | {row['cpu_ms']:.2f} | "
            f"{row['cpu_ms_fixed']:.2f} | {row['cpu_ms_fixed'] / row['cpu_ms']:.1f}x |"
        )
    return "\n".join(lines)


def main() -> None:
    """Choose on validation puzzles, report on test puzzles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sudoku6", help="shipped model, run or model folder")
    parser.add_argument("--name", help="what to call the model in the rows; default: --model")
    parser.add_argument("--data", type=Path, help="test puzzles; default: the recipe's")
    parser.add_argument("--num", type=int, default=1000, help="test puzzles, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-valid", type=int, default=1000)
    parser.add_argument("--fixed", type=int, default=16, help="steps to compare with")
    parser.add_argument("--margin", type=float, default=0.01, help="what counts as equal")
    parser.add_argument("--rows", type=Path, default=ROWS)
    args = parser.parse_args()
    recipe, model = recipe_of(args.model), hub.load(args.model)
    task = recipe.task()
    puzzles = recipe.test_puzzles() if args.data is None else read_puzzles(args.data, task)
    puzzles = some_of(puzzles, args.num, seed=args.seed)
    command = shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])
    common = {
        "what": args.name or str(args.model),
        "dataset": f"{recipe.name} test" if args.data is None else args.data.name,
        "fixed": args.fixed,
        "margin": args.margin,
        "machine": machine(),
        "command": command,
    }
    valid = validation_puzzles(recipe, args.num_valid)
    table = record(model, valid, task, max_steps=args.fixed)
    compared = compare_rules(table, RULES, fixed=args.fixed, margin=args.margin)
    chosen = cheapest(compared)
    print(f"\n### {common['what']}, {len(valid)} validation puzzles\n")
    print(validation_table(compared, args.fixed, args.fixed * table.evaluations))
    print(f"\nchosen: {chosen.rule}\n", flush=True)
    for row in compared:
        told = {"split": "valid", "dataset": f"{recipe.name} validation", "chosen": row is chosen}
        append_row(args.rows, common | told | asdict(row))
    rows = test_rows(
        model,
        puzzles,
        {name: RULES[name] for name in dict.fromkeys([chosen.rule, DEFAULT])},
        args.fixed,
        args.margin,
    )
    print(test_table(rows, args.fixed), flush=True)
    for row in rows:
        append_row(args.rows, common | {"split": "test"} | row)


if __name__ == "__main__":
    main()
