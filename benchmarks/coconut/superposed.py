"""Thoughts that can be read: accuracy, exact read-outs, use, and more thoughts than in training.

    nice python benchmarks/coconut/superposed.py                       all rows, three seeds
    nice python benchmarks/coconut/superposed.py --rows superposed soft coconut --seeds 1

For each seed first the chain of thought that its rows start from. Runs are resumed where they
stopped and a finished one is not done again, so the plan may be spread over time; each finished run
adds a row to superposed.jsonl. *Use*: all thoughts of a question replaced by those of another one
(`inward.studies.thoughts_ablate`). About four minutes of one core a row.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from inward.data.thoughts.patterns import Prefix
from inward.data.thoughts.tokenizers import encode_text
from inward.evals.rows import append_row, machine
from inward.evals.stats import over_seeds
from inward.hub import load
from inward.recipes.coconut import CoconutRecipe, score
from inward.studies.thoughts_ablate import ablate
from inward.studies.thoughts_held import ROWS, STAGES, C, dial, exactness, recipe
from inward.tasks.chains import final_answer
from inward.train import train

LINES = Path(__file__).with_suffix(".jsonl")


def run(own: CoconutRecipe, folder: Path) -> dict[str, Any]:
    """Train (or go on), ask the test questions, and return what is known of the run."""
    summary = train(own.build(), own.train, folder)
    model = load(folder / "model")
    task = own.task()
    asked = task.ask(own.data.split("test"))
    texts, others = own.answers(model, asked), own.answers(model, task.swap(asked))
    metrics = score(task, asked, texts, others)
    found: dict[str, Any] = {
        "num": len(asked),
        "accuracy": metrics["accuracy"],
        "paired": metrics["paired"],
        "metrics": metrics,
        "steps": own.train.steps,
        "cpu_seconds": summary["cpu_seconds"],
    }
    if model.settings.superpose:
        found["exactness"] = asdict(exactness(model, own.curriculum, asked))
    if own.curriculum.pattern.last_stage:

        def answer(tokens: list[int]) -> str:
            return final_answer(model.tokenizer.decode(tokens, skip_special_tokens=True))

        swaps = ablate(
            *(model, own.prompts(model, [r.question for r in asked]), [r.answer for r in asked]),
            answer=answer,
            ends={encode_text(model.tokenizer, "\n")[0]},
            kinds=("same", "other", "mean"),
            **own.options(model),
        )
        found["use"] = [asdict(a) for a in swaps]
    if isinstance(own.curriculum.pattern, Prefix):
        numbers = [C * n for n in range(1, 2 * STAGES + 1)]
        told = dial(model, own, asked[:100], numbers)
        found["dial"] = {str(num): asdict(interval) for num, interval in told.items()}
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a row, mean and interval over its seeds (of one seed the value alone)."""
    lines = [
        "| row | seeds | accuracy | paired | read out exactly | swapped | thoughts: 2 4 6 8"
        " 10 12 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        use = [[u["accuracy"]["value"] for u in r.get("use", []) if u["kind"] == "other"]
               for r in own]  # fmt: skip
        dials = [list(r["dial"].values()) for r in own if "dial" in r]
        cells = [
            _percent([row["accuracy"] for row in own]),
            _percent([row["paired"] for row in own]),
            _percent([r["exactness"]["thoughts"]["value"] for r in own if "exactness" in r]),
            _percent([value for values in use for value in values]),
            " ".join(f"{100 * sum(d['value'] for d in at) / len(at):.0f}"
                     for at in zip(*dials, strict=True)),
        ]  # fmt: skip
        lines.append(f"| {name} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(shares: Sequence[float]) -> str:
    if len(shares) < 2:
        return f"{100 * shares[0]:.1f} %" if shares else "-"
    found = over_seeds(shares, within=(0.0, 1.0))
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is not done yet, and print the table."""
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    parser.add_argument("--small", action="store_true", help="two sums up to 30, a minute a row")
    parser.add_argument("--num", type=int, default=500, help="test questions")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None, help="of every run; default: the plan's")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/superposed"), help="one a plan: small and whole ones"
    )
    parser.add_argument("--jsonl", type=Path, default=LINES)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    written = args.jsonl.read_text(encoding="utf-8") if args.jsonl.exists() else ""
    rows = [json.loads(line) for line in written.splitlines()]
    for seed in range(args.seeds):
        start = args.out / f"start-{seed}"
        plan = [("start", recipe("cot", seed, small=args.small), start)]
        for name in args.rows:
            folder = args.out / f"{name}-{seed}"
            plan.append((name, recipe(name, seed, str(start / "model"), small=args.small), folder))
        for name, own, folder in plan:
            if any((r["row"], r["seed"], r["small"]) == (name, seed, args.small) for r in rows):
                continue
            if args.steps is not None:
                own = replace(own, train=replace(own.train, steps=args.steps))
            own = replace(own, data=replace(own.data, num_test=args.num))
            found = run(own, folder)
            facts = {"machine": machine(), "command": shlex.join(sys.argv), "recipe": asdict(own)}
            rows.append({"row": name, "seed": seed, "small": args.small, **found, **facts})
            append_row(args.jsonl, rows[-1])
            print(table([r for r in rows if r["small"] == args.small]), flush=True)


if __name__ == "__main__":
    main()
