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
Rows go to benchmarks/trm/cube.jsonl; CPU seconds are of the process.
"""

import argparse
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
from inward.evals.stats import wilson
from inward.recipes.trm_cube import broken_sudokus, half_of
from inward.tasks.sudoku import SudokuTask

ROWS = Path(__file__).with_suffix(".jsonl")


def chosen(puzzles: Puzzles, num: int, seed: int) -> Puzzles:
    """A part of a set, drawn by a seed."""
    return puzzles.select(np.random.default_rng(seed).permutation(len(puzzles))[:num])


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
        "calibration_error": calibration(belief, right),
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
            until=task.verify,
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
    ever, found = torch.zeros(len(inputs), dtype=torch.bool), {}
    for step in range(1, max_steps + 1):
        state, logits, _ = model.supervision_step(inputs, state)
        right = (logits.argmax(-1) == labels).all(1)
        ever |= right
        if step & (step - 1) == 0:
            found[str(step)] = float(right.float().mean())
    left = float((ever & ~right).float().mean())
    return {"effort": "curve", "after": found, "ever": float(ever.float().mean()), "left": left}


def calibration(belief: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error over equal bins of belief."""
    place = np.minimum((belief * bins).astype(int), bins - 1)
    parts = [place == i for i in range(bins)]
    return float(sum(abs(belief[p].sum() - right[p].sum()) for p in parts if p.any()) / len(right))


def own_sets(data: Any, num: int, seed: int, *, half: int) -> dict[str, Puzzles]:
    """Plain puzzles of the recipe, and generated ones of other sizes."""
    split = "test" if half else "valid"
    sets = {"irreducible": chosen(data.puzzles(split), num, seed)}
    for n, count in ((4, 200), (6, num)):
        sets[f"{n}x{n}"] = generate(min(num, count), n=n, seed=70 + n + half, progress=False)
    return sets


def main() -> None:
    """Measure and write rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("lists", nargs="*")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--half", type=int, choices=(0, 1), default=0)
    parser.add_argument("--half-seed", type=int, default=9)
    parser.add_argument("--max-steps", type=int, default=128)
    parser.add_argument("--attempts", type=int, default=16)
    parser.add_argument("--high-num", type=int, default=0, help="puzzles at effort high; 0: all")
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--only", nargs="*", default=["one", "high", "curve"])
    parser.add_argument("--rows", type=Path, default=ROWS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = hub.load(args.model)
    from inward.recipes.trm_cube import CubeData

    sets: dict[str, Puzzles] = {}
    for path in args.lists:
        sets[Path(path).stem] = half_of(path, seed=args.half_seed, which=args.half, num=args.num)
    sets = sets or own_sets(CubeData(), args.num, args.seed, half=args.half)
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
    if "one" in args.only and not args.lists:
        unsolvable = broken_sudokus(sets["irreducible"], min(args.num, 500), seed=77)
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
