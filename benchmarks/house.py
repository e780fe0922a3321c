"""Is this checkout as fast as an older one? Both sides take turns in processes of their own.

    git clone -q . /tmp/old && git -C /tmp/old checkout -q 08c7739
    python benchmarks/house.py /tmp/old                 # all jobs
    python benchmarks/house.py /tmp/old huginn --rounds 40

A number is CPU time of this checkout over CPU time of the older one, one thread: the median over
the rounds, their quartiles, and the ratio of the two fastest runs, which a busy machine disturbs
least. 08c7739, the commit before everything moved, needs transformers < 5.24: run both with an
environment that holds such a version.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
HOPS = "d>b a>d c>a b>f e>j f>e g>h h>i i>c j>g | a . . . . . . . ."
STORY = [1, 403, 407, 261]  # "Once upon a time"

JOBS = [
    *("trm sudoku6 x100", "trm sudoku6 x10 one by one", "trm sudoku6 x16, 4 rollouts"),
    *("huginn 1 text", "huginn 16 texts", "huginn 16 texts, halt kl", "huginn speculate"),
    *("huginn parallel", "coconut 1 text", "coconut 16 texts", "tidar plain", "tidar one_pass"),
    *("tidar plain x8", "tidar one_pass x8"),
]


def jobs(new: bool) -> dict[str, Callable[[], Any]]:
    """The same work as each side calls it."""
    import importlib

    import torch

    import inward

    torch.set_num_threads(1)

    def find(method: str, part: str, name: str) -> Any:
        path = f"{method}.{part}" if new else f"{method}_{part}"
        return getattr(importlib.import_module(f"inward.methods.{path}"), name)

    of = importlib.import_module("inward.recipes.of" if new else "inward.evals.run").recipe_of
    trm, huginn, coconut, tidar = map(
        inward.load, ("sudoku6", "huginn-hops", "prosqa", "stories-draft")
    )
    puzzles = of("sudoku6").test_puzzles().inputs[:100]
    hops = [of("huginn-hops").task().parse(HOPS).tolist()] * 16
    recipe = of("prosqa")
    questions = recipe.task().ask(recipe.data.split("valid")[:16])
    story = torch.tensor([STORY] * 8)
    think, guess = find("huginn", "generate", "generate"), find("huginn", "speculate", _GUESS)
    wave, decode = find("huginn", "parallel", _WAVE), find("tidar", "decode", "decode")
    kl = {"halt" if new else "exit": "kl"}
    long: dict[str, Any] = {"max_new_tokens": 24, "eos_token_id": ()}
    deep = long | {"max_steps": 16}
    drafts = deep | {"draft_steps": 4}
    far: dict[str, Any] = {"max_new_tokens": 96, "eos_token_id": ()}
    tries: dict[str, Any] = {"rollouts": 4, "noise": 0.3, "max_steps": 8}
    work = (
        lambda: trm.solve(puzzles, max_steps=16),
        lambda: [trm.solve(puzzles[i : i + 1], max_steps=16) for i in range(10)],
        lambda: trm.solve(puzzles[:16], **tries),
        lambda: think(huginn, hops[:1], **deep),
        lambda: think(huginn, hops, **deep),
        lambda: think(huginn, hops, **deep, **kl),
        lambda: guess(huginn, hops[:1], **drafts),
        lambda: wave(huginn, hops[:1], **deep),
        lambda: list(recipe.generated(coconut, questions[:1])),
        lambda: list(recipe.generated(coconut, questions)),
        lambda: decode(tidar, story[:1], scheme="plain", **far),
        lambda: decode(tidar, story[:1], scheme="one_pass", **far),
        lambda: decode(tidar, story, scheme="plain", **far),
        lambda: decode(tidar, story, scheme="one_pass", **far),
    )
    return dict(zip(JOBS, work, strict=True))


_GUESS, _WAVE = "generate_speculatively", "generate_in_parallel"


def side() -> None:
    """Answer each line, the name of a job and how often, with its CPU seconds."""
    import warnings

    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    todo = jobs(sys.argv[2] == "new")
    print("ready", flush=True)
    for line in sys.stdin:
        name, repeats = line.rstrip("\n").rsplit("|", 1)
        began = time.process_time()
        for _ in range(int(repeats)):
            todo[name]()
        print(time.process_time() - began, flush=True)


def start(kind: str, folder: Path) -> subprocess.Popen[str]:
    """A side in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--side", kind]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)


def asked(process: subprocess.Popen[str], job: str, repeats: int) -> float:
    """CPU seconds of a job."""
    assert process.stdin and process.stdout
    process.stdin.write(f"{job}|{repeats}\n")
    process.stdin.flush()
    return float(process.stdout.readline()) / repeats


def main() -> None:
    """Both sides in turns, job by job."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("old", type=Path, help="the older checkout")
    parser.add_argument("jobs", nargs="*", help="parts of names of jobs; none: all")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--new", type=Path, default=HERE, help="the newer checkout: this one")
    given = parser.parse_args()
    sides = {"new": start("new", given.new), "old": start("old", given.old)}
    for name, process in sides.items():
        if not process.stdout or process.stdout.readline().strip() != "ready":
            raise SystemExit(f"the {name} side did not start")
    for job in JOBS:
        if given.jobs and not any(part in job for part in given.jobs):
            continue
        spent: dict[str, list[float]] = {"new": [], "old": []}
        first = max(asked(process, job, 1) for process in sides.values())
        repeats = max(1, round(0.1 / first))
        for turn in range(given.rounds):
            for name in ("new", "old") if turn % 2 else ("old", "new"):
                spent[name].append(asked(sides[name], job, repeats))
        ratios = sorted(n / o for n, o in zip(spent["new"], spent["old"], strict=True))
        low, middle, high = (ratios[int(part * (len(ratios) - 1))] for part in (0.25, 0.5, 0.75))
        best = min(spent["new"]) / min(spent["old"])
        print(
            f"{job:28} {middle:.3f} ({low:.3f} - {high:.3f}), fastest {best:.3f}, "
            f"{1e3 * min(spent['new']):.1f} ms now, {given.rounds} rounds",
            flush=True,
        )
    for process in sides.values():
        process.kill()


if __name__ == "__main__":
    side() if sys.argv[1:2] == ["--side"] else main()
