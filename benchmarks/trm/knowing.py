"""Does a 9x9 model know when it is wrong? (`python benchmarks/trm/knowing.py MODEL [--list FILE]`)

Four sets, none seen in training:

    34 clues     solvable, easy
    broken       the same with one clue changed, so that nothing is a solution (no digit repeats)
    several      irreducible ones with one clue taken away
    foreign      a list from elsewhere (`--list`), another distribution than training

and all of them together. Rows go to benchmarks/trm/knowing.jsonl; what the columns mean is told in
`inward.evals.knowing`.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np

from inward import hub
from inward.data.puzzles.puzzles import Puzzles
from inward.data.puzzles.sudoku import generate, read_lines
from inward.data.puzzles.sudoku_solver import BLANK
from inward.evals.knowing import joined, known
from inward.evals.rows import append_row, machine
from inward.recipes.trm_cube import broken_sudokus
from inward.tasks.sudoku import SudokuTask


def several(puzzles: Puzzles, seed: int) -> Puzzles:
    """Irreducible puzzles without one of their clues: each has several solutions."""
    rng = np.random.default_rng(seed)
    inputs = puzzles.inputs.copy()
    for row in inputs:
        row[rng.choice(np.flatnonzero(row != BLANK))] = BLANK
    return Puzzles(inputs, np.zeros_like(inputs), grid=(9, 9), vocab_size=11, rating=None)


def sets(num: int, seed: int, file: Path | None) -> dict[str, Puzzles]:
    """The four kinds."""
    easy = generate(num, n=9, clues=34, seed=seed, progress=False)
    plain = generate(num, n=9, seed=seed + 1, progress=False)
    found = {
        "34 clues": easy,
        "broken": broken_sudokus(easy, num, seed=seed + 2, more=0),
        "several": several(plain, seed + 3),
    }
    if file is not None:
        rows = read_lines(file, solve=False)
        drawn = np.random.default_rng(seed).permutation(len(rows))[:num]
        found["foreign"] = rows.select(drawn)
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--list", type=Path, help="puzzles of elsewhere, one a line")
    parser.add_argument("--num", type=int, default=400)
    parser.add_argument("--views", type=int, default=5)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--seed", type=int, default=7000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    options = parser.parse_args()
    model, task = hub.load(options.model), SudokuTask(9)
    command = shlex.join(["python", "benchmarks/trm/knowing.py", *sys.argv[1:]])
    asked = {"views": options.views, "max_steps": options.max_steps, "seed": options.seed}
    parts = {
        name: known(model, puzzles, task, **asked)
        for name, puzzles in sets(options.num, options.seed, options.list).items()
    }
    for name, part in [*parts.items(), ("all", joined(parts))]:
        row = {"model": options.model, "set": name, **part.row(), **asked}
        print(row)
        append_row(options.out, row | {"command": command, "machine": machine()})


if __name__ == "__main__":
    main()
