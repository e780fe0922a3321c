"""The candidate cube on lists of puzzles (`python benchmarks/trm/cube.py MODEL LIST ...`).

Each list is cut in two by `--half-seed`: the first half may be looked at while a model is made
(`--half 0`), the second is for the end (`--half 1`); `--num` puzzles of it, in an order drawn by
the same seed.
Without lists: plain irreducible puzzles of the recipe, held out, and 4x4 and 6x6 by the same
weights.

Effort, all from the same weights:
    one      one chain, its answer where q > 0 and the answer stood still, else at the last step
    high     `--attempts` chains, the first without noise; the rules accept an answer or do not
Curve: exact after each number of steps, never halted; "ever" is the share that was right at some
step. Belief: mean sigmoid(q) of the answers given, less the share of them that is right.
Rows go to benchmarks/trm/cube.jsonl; CPU seconds are of the process. `--table FILE` writes the rows
of `--half 1` into the section of that Markdown file that begins with `HEADING`, and measures
nothing.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inward import hub
from inward.data.puzzles.puzzles import Puzzles
from inward.data.puzzles.sudoku import generate
from inward.evals.rows import append_row, machine
from inward.evals.stats import calibration_error, wilson
from inward.recipes.trm_cube import broken_sudokus, half_of
from inward.tasks.sudoku import SudokuTask

HEADING = "## TRM, the candidate cube"
ROWS = Path(__file__).with_suffix(".jsonl")


def chosen(puzzles: Puzzles, num: int, seed: int, *, skip: int = 0) -> Puzzles:
    """A part of a set, in an order drawn by a seed."""
    order = np.random.default_rng(seed).permutation(len(puzzles))
    return puzzles.select(order[skip : skip + num])


def share(right: np.ndarray) -> dict[str, float]:
    """Share and its 95 % Wilson interval."""
    interval = wilson(int(right.sum()), len(right))
    return {"exact": interval.value, "low": interval.low, "high": interval.high}


def one(model: Any, puzzles: Puzzles, max_steps: int) -> dict[str, Any]:
    """One chain at the model's own stop."""
    began = time.process_time()
    solution = model.solve(puzzles.inputs, max_steps=max_steps)
    seconds = time.process_time() - began
    right = (solution.answers.numpy() == puzzles.labels).all(1)
    stopped = solution.halted.numpy()
    belief = torch.sigmoid(solution.q).numpy()
    return share(right) | {
        "effort": "one",
        "max_steps": max_steps,
        "stopped": float(stopped.mean()),
        "stopped_wrong": float((stopped & ~right).mean()),
        "belief_gap": float(belief.mean() - right.mean()),
        "calibration_error": calibration_error(belief, right),
        "mean_steps": float(solution.steps.float().mean()),
        "evaluations": float(solution.evaluations.mean()),
        "cpu_seconds": seconds / len(puzzles),
    }


def high(model: Any, puzzles: Puzzles, max_steps: int, attempts: int, noise: float) -> dict:
    """Attempts that differ in their first z; the rules say when one is right."""
    task = SudokuTask(puzzles.grid[0])
    began, seconds, right, spent = time.process_time(), [], [], []
    for row, label in zip(puzzles.inputs, puzzles.labels, strict=True):
        start = time.process_time()
        solution = model.solve(
            row[None],
            max_steps=max_steps,
            rollouts=attempts,
            noise=noise,
            noise_when="start",
            halt="never",
            select=task.verify,
            until_right=True,
        )
        seconds.append(time.process_time() - start)
        right.append((solution.answers[0].numpy() == label).all())
        spent.append(float(solution.evaluations[0]))
    return share(np.array(right)) | {
        "effort": "high",
        "max_steps": max_steps,
        "attempts": attempts,
        "noise": noise,
        "evaluations": float(np.mean(spent)),
        "cpu_seconds": (time.process_time() - began) / len(puzzles),
        "cpu_seconds_worst": float(np.max(seconds)),
    }


@torch.no_grad()
def curve(model: Any, puzzles: Puzzles, max_steps: int) -> dict[str, Any]:
    """Exact after 8, 16, 32 ... steps, and at some step."""
    inputs, labels = (
        torch.from_numpy(part.astype(np.int64)) for part in (puzzles.inputs, puzzles.labels)
    )
    state = model.initial_state(*inputs.shape)
    ever, right, found = *torch.zeros(2, len(inputs), dtype=torch.bool), {}
    for step in range(1, max_steps + 1):
        state, logits, _ = model.supervision_step(inputs, state)
        right = (logits.argmax(-1) == labels).all(1)
        ever |= right
        if step & (step - 1) == 0:
            found[str(step)] = float(right.float().mean())
    left = float((ever & ~right).float().mean())
    return {"effort": "curve", "after": found, "ever": float(ever.float().mean()), "left": left}


def sixteen(num: int, clues: float, seed: int) -> np.ndarray:
    """Questions (num, 256) of 16x16: shuffled pattern grids with a share of their cells. They may
    have several solutions; the library has no generator of this size."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:16, :16]
    pattern = (4 * (rows % 4) + rows // 4 + cols) % 16
    found = []
    for _ in range(num):
        lines = [
            (4 * rng.permutation(4)[:, None] + rng.permuted(np.tile(np.arange(4), (4, 1)), axis=1))
            for _ in range(2)
        ]
        grid = rng.permutation(16)[pattern][lines[0].ravel()][:, lines[1].ravel()]
        found.append(np.where(rng.random((16, 16)) < clues, grid + 2, 1).ravel())
    return np.array(found)


def obeys(questions: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Which answers (B, 256) keep the clues and hold every digit once in each unit."""
    grids = answers.reshape(-1, 16, 16)
    boxes = grids.reshape(-1, 4, 4, 4, 4).swapaxes(2, 3).reshape(-1, 16, 16)
    digits = np.arange(2, 18)
    units = [grids, grids.swapaxes(1, 2), boxes]
    full = np.array([(np.sort(part, axis=2) == digits).all((1, 2)) for part in units]).all(0)
    return full & ((questions == 1) | (questions == answers)).all(1)


def own_sets(data: Any, num: int, seed: int, *, half: int, skip: int) -> dict[str, Puzzles]:
    """Plain puzzles of the recipe, and generated ones of other sizes."""
    split = "test" if half else "valid"
    sets = {"irreducible": chosen(data.puzzles(split), num, seed, skip=skip)}
    for n, count in ((4, 200), (6, num)):
        drawn = 70 + n + half + 1000 * skip
        sets[f"{n}x{n}"] = generate(min(num, count), n=n, seed=drawn, progress=False)
    return sets


def table(rows: list[dict[str, Any]], intro: str) -> str:
    """Markdown: accuracy by set and effort, then the curves."""
    lines = [HEADING, "", intro, ""]
    lines += [
        "| puzzles | effort | exact | interval | wrong and stopped | belief less truth |"
        " evaluations | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.get("effort") not in ("one", "high"):
            continue
        clues = f", {100 * row['clues']:.0f} % given" if "clues" in row else ""
        effort = f"one chain, {row['max_steps']} steps at most"
        if row["effort"] == "high":
            effort = f"{row['attempts']} attempts of {row['max_steps']} steps at most"
        told = [f"{row['num']} {row['set']}{clues}", effort, f"{100 * row['exact']:.1f} %"]
        told.append(f"{100 * row['low']:.1f} to {100 * row['high']:.1f}")
        wrong, gap = row.get("stopped_wrong"), row.get("belief_gap")
        told.append("" if wrong is None else f"{100 * wrong:.1f} %")
        told.append("" if gap is None else f"{100 * gap:+.1f} points")
        told.append(f"{row['evaluations']:,.0f}" if "evaluations" in row else "")
        worst = f", worst {row['cpu_seconds_worst']:.2f}" if "cpu_seconds_worst" in row else ""
        told.append(f"{row['cpu_seconds']:.3f}{worst}" if "cpu_seconds" in row else "")
        lines.append("| " + " | ".join(told) + " |")
    curves = [row for row in rows if row.get("effort") == "curve"]
    if curves:
        steps = list(curves[0]["after"])
        lines += [
            "",
            "Exact after so many steps, never halted; right once and wrong at the end:",
            "",
        ]
        lines.append("| puzzles | " + " | ".join(steps) + " | at some step | left |")
        lines.append("|---" * (len(steps) + 3) + "|")
        for row in curves:
            shares = [*row["after"].values(), row["ever"], row["left"]]
            told = [f"{row['num']} {row['set']}", *(f"{100 * share:.1f} %" for share in shares)]
            lines.append("| " + " | ".join(told) + " |")
    for row in rows:
        if row["set"] == "broken":
            told = f"{100 * row['believed']:.1f} % of {row['num']} unsolvable puzzles are believed"
            lines += ["", told + " solved when the chain ends (q > 0)."]
    commands = sorted({row["command"] for row in rows})
    return "\n".join([*lines, "", "Commands:", "", *(f"    {c}" for c in commands), ""])


def write_table(rows: list[dict[str, Any]], file: Path) -> None:
    """Replace the section, or add it at the end."""
    text = file.read_text(encoding="utf-8")
    before, found, rest = text.partition(HEADING)
    intro = rest.strip("\n").partition("\n\n")[0] if found else rows[0]["machine"]
    after = rest.partition("\n## ")[2]
    new = table(rows, intro) + ("\n## " + after if after else "")
    file.write_text((before if found else text.rstrip("\n") + "\n\n") + new, encoding="utf-8")


def main() -> None:
    """Measure and write rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("lists", nargs="*")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--half", type=int, choices=(0, 1), default=0)
    parser.add_argument("--skip", type=int, default=0, help="puzzles that were looked at before")
    parser.add_argument("--half-seed", type=int, default=9)
    parser.add_argument("--max-steps", type=int, default=128)
    parser.add_argument("--attempts", type=int, default=16)
    parser.add_argument("--high-num", type=int, default=0, help="puzzles at effort high; 0: all")
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--only", nargs="*", default=["one", "high", "curve"])
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--table", type=Path, help="Markdown file to write the rows into")
    args = parser.parse_args()
    if args.table:
        rows = [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row["half"] == 1]
        rows.sort(key=lambda row: (row["set"], row.get("effort") != "one"))
        write_table(rows, args.table)
        return
    torch.set_num_threads(1)
    model = hub.load(args.model)
    from inward.recipes.trm_cube import CubeData

    sets: dict[str, Puzzles] = {}
    for path in args.lists:
        found = half_of(path, seed=args.half_seed, which=args.half, num=args.skip + args.num)
        sets[Path(path).stem] = found.select(slice(args.skip, None))
    sets = sets or own_sets(CubeData(), args.num, args.seed, half=args.half, skip=args.skip)
    command = shlex.join(["python", *sys.argv])
    for name, puzzles in sets.items():
        some = chosen(puzzles, args.high_num or len(puzzles), args.seed)
        runs = {
            "one": lambda puzzles=puzzles: one(model, puzzles, args.max_steps),
            "high": lambda some=some: high(model, some, args.max_steps, args.attempts, args.noise),
            "curve": lambda some=some: curve(model, some, 4 * args.max_steps),
        }
        for kind in args.only:
            row = {"set": name, "half": args.half, "num": len(puzzles if kind == "one" else some)}
            row |= runs[kind]() | {"seed": args.seed, "machine": machine(), "command": command}
            append_row(args.rows, row)
            print({k: v for k, v in row.items() if k not in ("machine", "command")}, flush=True)
    for clues in (0.7, 0.6, 0.5) if "one" in args.only and not args.lists else ():
        questions = sixteen(min(args.num, 20), clues, seed=16)
        solution = model.solve(questions, max_steps=64)
        row = {"set": "16x16", "clues": clues, "num": len(questions), "half": args.half}
        row |= share(obeys(questions, solution.answers.numpy()))
        row |= {"effort": "one", "max_steps": 64}
        append_row(args.rows, row | {"machine": machine(), "command": command})
        print(row, flush=True)
    if "one" in args.only and not args.lists:
        unsolvable = broken_sudokus(sets["irreducible"], min(args.num, 200), seed=77)
        q = model.solve(unsolvable.inputs, max_steps=args.max_steps).q
        row = {
            "set": "broken",
            "num": len(q),
            "half": args.half,
            "believed": float((q > 0).float().mean()),
        }
        append_row(args.rows, row | {"machine": machine(), "command": command})
        print(row, flush=True)


if __name__ == "__main__":
    main()
