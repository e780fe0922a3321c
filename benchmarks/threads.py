"""What eight threads on one model lose (`python benchmarks/threads.py`).

Eighty questions to one model, one after the other, then ten by each of eight threads, in turn for
`--rounds` rounds; torch runs on one thread. The least CPU seconds and the least wall seconds of
either side are told, and whether every answer was the serial one. A row a model goes to
benchmarks/threads.jsonl.

    --only NAME ...   of trm, huginn, coconut, tidar+adapter, tidar, plain
    --rounds N        of each side, in turn
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import inward
from inward.evals.rows import append_row, machine

THREADS, EACH = 8, 10
PUZZLE = "5........3..14...62...1.....62.6...."
HOPS = "d>b a>d c>a b>f e>j f>e g>h h>i i>c j>g | a . . . . . . . ."
PROSQA = "7_15 0_7 7_8 14_5 14_11 6_11 8_4 2_1 10_0 1_14 1_4 1_6 13_3 14_13 [Q] 12 5 [R] 2"
STORY = "Once upon a time there was a little"
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "trm": ("sudoku6", PUZZLE, {"max_steps": 8, "halt": "never"}),
    "huginn": ("huginn-hops", HOPS, {"effort": 16}),
    "coconut": ("prosqa", PROSQA, {}),
    "tidar+adapter": ("stories-draft", STORY, {"max_new_tokens": 48}),
    "tidar": ("stories-draft", STORY, {"max_new_tokens": 48, "scheme": "plain"}),
    "plain": ("stories260k", STORY, {"max_new_tokens": 48}),
}
"""What is asked: model, question, options"""


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        row = measured(name, args.rounds)
        row |= {"machine": machine(), "command": shlex.join(sys.argv)}
        print(json.dumps(row))
        append_row(Path(__file__).with_suffix(".jsonl"), row)


def measured(name: str, rounds: int) -> dict[str, Any]:
    """Both sides in turn."""
    model, question, options = MODELS[name]
    thinker = inward.open(model)

    def ask(_: int) -> tuple[int, ...]:
        return thinker.ask(question, **options).tokens

    wanted, calls = ask(0), range(THREADS * EACH)
    sides: dict[str, Callable[[], list[Any]]] = {
        "serial": lambda: list(map(ask, calls)),
        "threads": lambda: _in_threads(ask),
    }
    best = {side: [float("inf")] * 2 for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            began = time.process_time(), time.perf_counter()
            found = run()
            spent = time.process_time() - began[0], time.perf_counter() - began[1]
            best[side] = [min(a, b) for a, b in zip(best[side], spent, strict=True)]
            assert found == [wanted] * len(calls), f"{side}: another answer"
    cpu, wall = (best["threads"][i] / best["serial"][i] for i in (0, 1))
    return {
        "what": name, "model": model, "tokens": len(wanted), "calls": len(calls),
        "threads": THREADS, "rounds": rounds,
        "serial_cpu": round(best["serial"][0], 3), "threads_cpu": round(best["threads"][0], 3),
        "serial_wall": round(best["serial"][1], 3), "threads_wall": round(best["threads"][1], 3),
        "cpu_ratio": round(cpu, 3), "wall_ratio": round(wall, 3),
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def _in_threads(ask: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(lambda: list(map(ask, range(EACH)))) for _ in range(THREADS)]
        return [answer for job in jobs for answer in job.result()]


if __name__ == "__main__":
    main()
