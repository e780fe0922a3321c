"""Silent, interleaved and spoken thinking beside their controls: one table, one seed after another.

    python benchmarks/coconut/table.py --task prosqa
    python benchmarks/coconut/table.py --task chains --rows coconut cot --seeds 2
    python benchmarks/coconut/table.py --rows coconut no-cot --stretch 6     six times the steps

For each seed first the CoT run, then the rows from it: those that begin with CoT anyway start from
its weights (`CoconutRecipe.start`) and go on for the recipe's steps, the others are trained from
scratch for as many steps as both together. Training is measured on validation questions; the test
questions and their swaps are asked once, at the end. Runs are resumed where they stopped, and a
finished one is not done again, so the table may be spread over time. Each finished run adds one row
to coconut_table.jsonl.

An answer costs one forward for each thought and each token spoken (the first of them is the pass
over the question itself); pause tokens stand in the question and cost no pass of their own. FLOPs
count a multiply-add as two, and every position once, the question's too.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from inward.evals.rows import append_row, machine
from inward.evals.stats import Interval, over_seeds
from inward.hub import load
from inward.methods.coconut.model import Coconut
from inward.recipes import coconut
from inward.recipes.coconut import CoconutRecipe, score, shares_cot
from inward.train import train

ROWS = Path(__file__).with_suffix(".jsonl")
TASKS: dict[str, Callable[..., CoconutRecipe]] = {
    "prosqa": coconut.prosqa_symbolic,
    "chains": coconut.chains_symbolic,
}
DEFAULT = (
    *("coconut", "interleaved", "interleaved-learned", "cot"),
    *("no-cot", "pause-as-thought", "without-curriculum"),
)
SHOWN = (
    *("accuracy", "paired", "valid"),
    *("tokens", "thoughts", "forwards", "flops", "cpu_seconds"),
)


def cot_recipe(task: str, seed: int, steps: int | None) -> CoconutRecipe:
    """The run that the rows of a seed share: what a whole run takes beyond a row with a start."""
    recipe = _seeded(TASKS[task]("cot"), seed)
    later = TASKS[task]("cot", start="this run").train.steps
    return _long(recipe, steps or recipe.train.steps - later)


def row_recipe(
    task: str,
    row: str,
    seed: int,
    start: str,
    cot_steps: int,
    steps: int | None,
    stretch: int = 1,
) -> CoconutRecipe:
    """A row: from the CoT run of its seed, or from scratch with the steps of both; steps and the
    length of each stage `stretch` times over."""
    shared = shares_cot(row)
    recipe = _seeded(TASKS[task](row, start=start if shared else ""), seed)
    stages = recipe.curriculum.stages
    stages = replace(stages, lengths=tuple(stretch * length for length in stages.lengths))
    recipe = replace(recipe, curriculum=replace(recipe.curriculum, stages=stages))
    num = stretch * (steps or TASKS[task](row, start="cot").train.steps)
    return _long(recipe, num if shared else cot_steps + num)


def _seeded(recipe: CoconutRecipe, seed: int) -> CoconutRecipe:
    """Another seed draws weights and batches; the puzzles stay."""
    return replace(recipe, train=replace(recipe.train, seed=seed))


def _long(recipe: CoconutRecipe, steps: int) -> CoconutRecipe:
    every = max(1, min(recipe.train.eval_every or steps, steps))
    return replace(recipe, train=replace(recipe.train, steps=steps, eval_every=every))


def run(recipe: CoconutRecipe, folder: Path) -> dict[str, Any]:
    """Train (or go on), test, and return what is known of the run."""
    summary = train(recipe.build(), recipe.train, folder)
    model = load(folder / "model")
    written = (folder / "log.jsonl").read_text(encoding="utf-8")
    log = [json.loads(line) for line in written.splitlines()]
    return {
        "steps": recipe.train.steps,
        "rows_a_step": recipe.train.batch_rows,
        "parameters": summary["parameters"],
        "cpu_seconds": summary["cpu_seconds"],
        **tested(model, recipe),
        "curve": [[r["step"], _short(r["metrics"])] for r in log if r["kind"] == "eval"],
        "machine": machine(),
        "command": shlex.join(sys.argv),
        "recipe": asdict(recipe),
    }


def tested(model: Coconut, recipe: CoconutRecipe) -> dict[str, Any]:
    """The test questions and their swaps, once."""
    task = recipe.task()
    asked = task.ask(recipe.data.split("test"))
    swaps = task.swap(asked)
    texts, cost = _asked(model, recipe, asked)
    others, _ = _asked(model, recipe, swaps)
    metrics = score(task, asked, texts, others)
    return {"num": len(asked), **_short(metrics), **cost, "metrics": metrics}


def _asked(model: Coconut, recipe: CoconutRecipe, asked: Sequence[Any]) -> tuple[list[str], dict]:
    """What is said, and means of what it took."""
    texts: list[str] = []
    tokens = thoughts = flops = 0.0
    for made in recipe.generated(model, asked):
        texts += model.tokenizer.batch_decode(made.tokens, skip_special_tokens=True)
        tokens += sum(map(len, made.tokens))
        thoughts += sum(sample.num_thoughts for sample in made.samples)
        flops += sum(cost.flops for cost in made.costs)
    num = len(asked)
    cost = {"tokens": tokens / num, "thoughts": thoughts / num, "flops": flops / num}
    return texts, cost | {"forwards": cost["tokens"] + cost["thoughts"]}


def _short(metrics: dict[str, float]) -> dict[str, float | None]:
    valid = metrics.get("valid_edges", metrics.get("gold_equations"))
    return {"accuracy": metrics["accuracy"], "paired": metrics.get("paired"), "valid": valid}


# --------------------------------------------------------------------------------------------------
# Table and figure


def table(rows: Sequence[dict], task: str) -> str:
    """One line a row of the table, mean and 95 % interval over seeds."""
    lines = [
        "| row | seeds | steps | accuracy | paired | valid steps | tokens | thoughts | forwards |"
        " MFLOP an answer | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    mine = [row for row in rows if row["task"] == task]
    for name in dict.fromkeys(row["row"] for row in mine):
        own = [row for row in mine if row["row"] == name]
        cells = [_percent([row[key] for row in own]) for key in SHOWN[:3]]
        means = {
            key: sum(row[key] for row in own) / len(own) for key in (*SHOWN[3:], "cpu_seconds")
        }
        cells += [f"{means[key]:.1f}" for key in ("tokens", "thoughts", "forwards")]
        cells += [f"{means['flops'] / 1e6:.1f}", f"{means['cpu_seconds']:.0f}"]
        lines.append(f"| {name} | {len(own)} | {own[0]['steps']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(shares: Sequence[float | None]) -> str:
    known = [share for share in shares if share is not None]
    if not known or len(known) < len(shares):
        return "-"
    if len(known) == 1:
        return f"{100 * known[0]:.1f} %"
    found = over_seeds(known, within=(0.0, 1.0))
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


def figure(rows: Sequence[dict], task: str, what: str = "paired") -> Any:
    """Validation curves, mean and interval over the seeds that reached a step."""
    from inward.viz.plots import curves

    lines: dict[str, list[tuple[float, Interval]]] = {}
    mine = [row for row in rows if row["task"] == task]
    for name in dict.fromkeys(row["row"] for row in mine):
        own = [row for row in mine if row["row"] == name]
        points: dict[int, list[float]] = {}
        for row in own:
            for step, metrics in row["curve"]:
                if metrics[what] is not None:
                    points.setdefault(step, []).append(metrics[what])
        kept = [(float(step), _over(values)) for step, values in sorted(points.items())]
        if kept:
            lines[name] = kept
    return curves(lines, x_label="optimizer step of the row", y_label=f"{what} (validation)")


def _over(values: list[float]) -> Interval:
    return over_seeds(values) if len(values) > 1 else Interval(values[0], values[0], values[0])


# --------------------------------------------------------------------------------------------------
# Doing what is not done yet


def jobs(
    args: argparse.Namespace, done: set[tuple[str, str, int]]
) -> Sequence[tuple[str, int, CoconutRecipe, Path]]:
    """(row, seed, recipe, folder) of every run that is missing, the shared ones first."""
    found = []
    for seed in range(args.seeds):
        base = cot_recipe(args.task, seed, args.cot_steps)
        folder = args.out / f"{args.task}-start-{seed}"
        found.append(("start", seed, base, folder))
        for row in args.rows:
            told = (str(folder / "model"), base.train.steps, args.steps, args.stretch)
            own = row_recipe(args.task, row, seed, *told)
            name = row if args.stretch == 1 else f"{row}-x{args.stretch}"
            found.append((name, seed, own, args.out / f"{args.task}-{name}-{seed}"))
    return [job for job in found if (args.task, job[0], job[1]) not in done]


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--task", choices=list(TASKS), default="prosqa")
    parser.add_argument("--rows", nargs="*", default=list(DEFAULT))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cot-steps", type=int, default=None, help="default: the recipe's")
    parser.add_argument("--steps", type=int, default=None, help="of a row; default: the recipe's")
    parser.add_argument("--stretch", type=int, default=1, help="steps and stages, times this")
    parser.add_argument("--out", type=Path, default=Path("runs/coconut-table"))
    parser.add_argument("--jsonl", type=Path, default=ROWS)
    parser.add_argument("--figure", type=Path, default=None, help="svg, png or pdf")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is not done yet, then print the table and draw the curves."""
    args = parsed(arguments)
    written = args.jsonl.read_text(encoding="utf-8") if args.jsonl.exists() else ""
    rows = [json.loads(line) for line in written.splitlines()]
    done = {(row["task"], row["row"], row["seed"]) for row in rows}
    for name, seed, recipe, folder in jobs(args, done):
        row = {"task": args.task, "row": name, "seed": seed, **run(recipe, folder)}
        append_row(args.jsonl, row)
        rows.append(row)
        print(table(rows, args.task), flush=True)
    if args.figure is not None:
        from inward.viz.plots import save

        save(figure(rows, args.task), args.figure)


if __name__ == "__main__":
    main()
