"""What more thinking buys a frozen TRM (`python benchmarks/trm/scaling.py --model sudoku6`).

Four studies, each read off tables that `inward.studies.trm_scaling.record` makes once:

    steps       accuracy after 1 .. 64 supervision steps, one chain
    rollouts    K = 1 .. 64 noisy chains (PTRM, arXiv 2605.19943) by best-Q, majority, rules, and
                the oracle; and the first of K chains that halts (arXiv 2601.19085)
    views       the same for 1 .. 16 symmetric views of the puzzle, without noise
    coverage    accuracy among the puzzles that the model believes in most

Strength and place of the noise (summaries of PTRM disagree which latent gets it) are the best of
--noises and --noise-on on validation puzzles. Intervals are 95 % Wilson over puzzles, gains are
paired with the single chain. Rows go to benchmarks/trm/scaling.jsonl, tables in Markdown to the
screen.
"""

import argparse
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inward import hub
from inward.data.puzzles.puzzles import Puzzles
from inward.evals.rows import append_row, machine
from inward.evals.stats import Interval, paired_difference, wilson
from inward.recipes.of import recipe_of
from inward.studies.trm_scaling import (
    SELECTORS,
    Outcome,
    Table,
    area_over_coverage,
    coverage,
    outcome,
    record,
    some_of,
    validation_puzzles,
)
from inward.tasks.named import read_puzzles

ROWS = Path(__file__).with_suffix(".jsonl")
HALT = "q+stable"
SHARES = (1.0, 0.95, 0.9, 0.75, 0.5)


@dataclass
class Report:
    """Collects rows, prints tables."""

    path: Path
    common: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, study: str, found: Outcome, base: Outcome, **labels: Any) -> Interval:
        """One point; `base` is the single chain it is paired with."""
        share = wilson(int(found.right.sum()), len(found.right))
        gain = paired_difference(found.right, base.right)
        row = self.common | {"study": study} | labels
        row |= {"num": len(found.right), "exact": share.value, "interval": [share.low, share.high]}
        row |= {"evaluations": float(found.evaluations.mean()), "flops": float(found.flops.mean())}
        row |= {"gain": gain.difference.value, "p_value": gain.p_value}
        row["gain_interval"] = [gain.difference.low, gain.difference.high]
        self.write(row)
        return share

    def write(self, row: dict[str, Any]) -> None:
        append_row(self.path, row)
        self.rows.append(row)

    def table(self, title: str, head: list[str], lines: list[list[str]]) -> None:
        """Print one Markdown table."""
        print(f"\n### {title}\n")
        for cells in (head, ["---"] * len(head), *lines):
            print("| " + " | ".join(cells) + " |", flush=True)


def percent(share: Interval) -> str:
    """Share and interval in percent."""
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"


def doubled(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**i for i in range(most.bit_length()) if 2**i <= most]


def by_steps(report: Report, table: Table, usual: int) -> None:
    """One chain, more and more steps; gains are against `usual` of them."""
    base, lines = outcome(table, max_steps=usual), []
    for steps in doubled(table.num_steps):
        found = outcome(table, max_steps=steps)
        share = report.add("steps", found, base, steps=steps, halt="never")
        lines.append([str(steps), percent(share), f"{found.evaluations.mean():.0f}"])
    halted = outcome(table, halt=HALT)
    share = report.add("steps", halted, base, steps=table.num_steps, halt=HALT)
    lines.append([f"{HALT}, at most {table.num_steps}", percent(share),
                  f"{halted.evaluations.mean():.1f}"])  # fmt: skip
    report.table(f"steps, {len(table)} puzzles", ["steps", "exact", "evaluations"], lines)


def by_chains(report: Report, study: str, table: Table, **labels: Any) -> None:
    """More and more chains, each selector; then the first of them that halts."""
    base, lines = outcome(table, chains=1), []
    selectors = [s for s in SELECTORS if s != "verify" or table.verified is not None]
    for chains in doubled(table.num_chains):
        cells = [str(chains)]
        options = {"chains": chains, **labels}
        for select in selectors:
            found = outcome(table, chains=chains, select=select)
            cells.append(percent(report.add(study, found, base, select=select, **options)))
        quick = outcome(table, chains=chains, halt=HALT, first_to_halt=True)
        share = report.add(study, quick, base, select="first to halt", halt=HALT, **options)
        cells += [f"{found.evaluations.mean():.0f}", percent(share)]
        lines.append([*cells, f"{quick.evaluations.mean():.0f}"])
    head = ["chains", *selectors, "evaluations", f"first to halt ({HALT})", "evaluations"]
    told = ", ".join(f"{name} {value}" for name, value in labels.items())
    report.table(f"{study}, {len(table)} puzzles, {told}", head, lines)


def by_coverage(report: Report, beliefs: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """`beliefs`: name -> (belief, right), both (P,)."""
    lines = []
    for name, (belief, right) in beliefs.items():
        shares, accuracy = coverage(belief, right)
        cells = [name]
        for share in SHARES:
            place = round(share * len(right)) - 1
            told = wilson(min(1.0, accuracy[place]) * (place + 1), place + 1)
            cells.append(percent(told))
            report.write(
                report.common
                | {"study": "coverage", "belief": name, "coverage": float(shares[place])}
                | {"num": place + 1, "exact": told.value, "interval": [told.low, told.high]}
            )
        lines.append([*cells, f"{area_over_coverage(belief, right):.4f}"])
    head = ["belief", *(f"{100 * share:.0f} % answered" for share in SHARES), "AURC"]
    report.table(f"coverage, {len(right)} puzzles", head, lines)


def choose_noise(
    model: Any, puzzles: Puzzles, task: Any, tried: list[tuple[float, str]], steps: int, chains: int
) -> tuple[float, str]:
    """The (strength, latent) of best accuracy by best-Q on validation puzzles, then by the oracle,
    then the first."""
    merits = {}
    for noise, latent in tried:
        table = record(
            model, puzzles, task, max_steps=steps, rollouts=chains, noise=noise, noise_on=latent,
            seed=1,
        )  # fmt: skip
        found = [outcome(table, select=name).right.mean() for name in ("q", "oracle")]
        merits[noise, latent] = found
        told = f"validation: noise {noise:g} on {latent}: best-Q {found[0]:.3f}"
        print(f"{told}, oracle {found[1]:.3f}, one chain {table.right[:, 0, -1].mean():.3f}")
    return max(tried, key=lambda pair: merits[pair])


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sudoku6", help="shipped model, run or model folder")
    parser.add_argument("--name", help="what to call the model in the rows; default: --model")
    parser.add_argument("--data", type=Path, help="puzzles; default: the recipe's test puzzles")
    parser.add_argument("--num", type=int, default=1000, help="puzzles for `steps`")
    parser.add_argument("--num-chains", type=int, default=200, help="puzzles for many chains")
    parser.add_argument("--num-valid", type=int, default=60, help="puzzles that choose the noise")
    parser.add_argument("--max-steps", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16, help="steps of a chain among many")
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--noises", type=float, nargs="+", default=[0.3, 0.1, 1.0])
    parser.add_argument("--noise-on", nargs="+", default=["z", "y"], choices=["z", "y", "both"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--figures", type=Path, help="folder for one SVG a study")
    return parser.parse_args()


def main() -> None:
    """Run the four studies."""
    args = parse()
    recipe, model = recipe_of(args.model), hub.load(args.model)
    task = recipe.task()
    puzzles = recipe.test_puzzles() if args.data is None else read_puzzles(args.data, task)
    dataset = f"{recipe.name} test" if args.data is None else args.data.name
    name = args.name or str(args.model)
    common = {"what": name, "dataset": dataset, "seed": args.seed, "machine": machine()}
    common["command"] = shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])
    report = Report(args.rows, common)
    few = some_of(puzzles, args.num_chains, seed=args.seed)
    by_steps(
        report,
        record(model, some_of(puzzles, args.num, seed=args.seed), task, max_steps=args.max_steps),
        args.steps,
    )
    valid = validation_puzzles(recipe, args.num_valid)
    tried = [(noise, latent) for latent in args.noise_on for noise in args.noises]
    noise, latent = choose_noise(model, valid, task, tried, args.steps, min(8, args.rollouts))
    rollouts = record(
        model, few, task, max_steps=args.steps, rollouts=args.rollouts, noise=noise,
        noise_on=latent, seed=args.seed,
    )  # fmt: skip
    by_chains(report, "rollouts", rollouts, noise=noise, noise_on=latent, steps=args.steps)
    rng = np.random.default_rng(args.seed)
    symmetries = [task.symmetry(rng) for _ in range(args.views - 1)]
    views = record(model, few, task, max_steps=args.steps, symmetries=symmetries)
    by_chains(report, "views", views, steps=args.steps)
    single, chosen = outcome(rollouts, chains=1), outcome(rollouts, select="majority")
    turned = outcome(views, select="majority")
    by_coverage(
        report,
        {
            "q of one chain": (single.q, single.right),
            f"votes of {rollouts.num_chains} rollouts": (chosen.votes, chosen.right),
            f"votes of {views.num_chains} views": (turned.votes, turned.right),
        },
    )
    if args.figures is not None:
        draw(report.rows, args.figures)


def draw(rows: list[dict[str, Any]], folder: Path) -> None:
    """One figure a study, from its rows."""
    from inward.viz import plots

    for study, x, split in (
        ("steps", "steps", "halt"), ("rollouts", "chains", "select"), ("views", "chains", "select"),
        ("coverage", "coverage", "belief"),
    ):  # fmt: skip
        lines: dict[str, list[tuple[float, Interval]]] = {}
        for row in rows:
            if row["study"] == study:
                point = (row[x], Interval(row["exact"], *row["interval"]))
                lines.setdefault(row[split], []).append(point)
        lines = {name: sorted(points, key=lambda p: p[0]) for name, points in lines.items()}
        figure = plots.curves(lines, x_label=x, doubling=study != "coverage")
        plots.save(figure, folder / f"{study}.svg")


if __name__ == "__main__":
    main()
