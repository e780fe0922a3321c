"""What becomes of shipped TRMs that are never halted (`benchmarks/trm/settling.py MODEL ...`).

Test puzzles of each model's recipe, drawn by `--seed`, for 64 times the supervision steps of
training, float32. Verdicts are told in `inward.studies.trm_settling`; rows go to
benchmarks/trm/settling.jsonl, and `--cards` writes each into the model's card.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch

from inward import hub
from inward.common.files import read_text, replacing
from inward.evals.rows import append_row, machine
from inward.recipes.of import recipe_of
from inward.studies.trm_settling import Settling, settling
from inward.tasks.named import part

HEADING = "## Never halted"


def section(found: Settling, num: int, n_sup: int) -> str:
    """Markdown for a card."""
    shares = ", ".join(f"{100 * share:.0f} % {kind}" for kind, share in found.shares.items())
    steps = list(found.exact)
    lines = [
        HEADING,
        "",
        f"{num} test puzzles, {steps[-1]} steps ({steps[-1] // n_sup} times those of training), "
        f"float32: **{found.verdict}** ({shares}). Right at some step {100 * found.ever:.0f} %, of "
        f"all puzzles right once and wrong at the end {100 * found.left:.0f} %.",
        "",
        "| steps | " + " | ".join(map(str, steps)) + " |",
        "|---" * (len(steps) + 1) + "|",
        "| exact | " + " | ".join(f"{100 * v:.0f} %" for v in found.exact.values()) + " |",
        "| change of the state | " + " | ".join(f"{v:.0e}" for v in found.change.values()) + " |",
    ]
    return "\n".join([*lines, ""])


def write_card(card: Path, new: str) -> None:
    """Replace the section, or add it at the end."""
    before, _, rest = read_text(card).partition(HEADING)
    after = rest.partition("\n## ")[2]
    with replacing(card) as partial:
        text = before.rstrip("\n") + "\n\n" + new + ("\n## " + after if after else "")
        partial.write_text(text, encoding="utf-8")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--times", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cards", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    options = parser.parse_args()
    command = shlex.join(["python", "benchmarks/trm/settling.py", *sys.argv[1:]])
    for name in options.models:
        model, recipe = hub.load(name), recipe_of(name)
        puzzles = part(recipe.test_puzzles(), options.num, seed=options.seed)
        cells = [
            torch.from_numpy(grids.astype(np.int64)) for grids in (puzzles.inputs, puzzles.labels)
        ]
        began = time.process_time()
        found = settling(model, *cells, times=options.times)
        row = {
            "model": name,
            "num": len(puzzles),
            "seed": options.seed,
            "steps": max(found.exact),
            "verdict": found.verdict,
            "shares": found.shares,
            "exact": found.exact,
            "change": found.change,
            "ever": found.ever,
            "left": found.left,
            "cpu_seconds": round(time.process_time() - began, 1),
        }
        print(row, flush=True)
        append_row(options.out, row | {"command": command, "machine": machine()})
        if options.cards:
            new = section(found, len(puzzles), model.settings.n_sup)
            write_card(hub.resolve(name) / "README.md", new)


if __name__ == "__main__":
    main()
