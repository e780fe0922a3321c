"""Speed and memory of Coconut beside a plain step, at any size, and beside the paper's code.

    python benchmarks/coconut/speed.py
    python benchmarks/coconut/speed.py --reference path/to/coconut --packages folder/of/packages

What is measured, and how, is said in `inward.bench.coconut`; `inward bench coconut` does the
same at the default sizes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro

from inward.bench.coconut import DEFAULT, BaseSizes, job
from inward.bench.run import quartiles
from inward.evals.rows import append_row, machine


def main(
    sizes: tyro.conf.OmitArgPrefixes[BaseSizes] = DEFAULT,
    *,
    reference: Path | None = None,
    packages: Path | None = None,
    threads: int = 2,
    rounds: int = 7,
    out: Path | None = None,
) -> None:
    """Measure and print medians with quartiles, and write the rows.

    Args:
        sizes: The configuration.
        reference: A clone of facebookresearch/coconut.
        packages: A folder with the transformers that it needs.
        threads: Of both sides.
        rounds: Turns of every side.
        out: File for the rows, a JSON line each.
    """
    torch.set_num_threads(threads)
    for what, unit, values, note in job(reference, packages=packages, sizes=sizes, say=print)(
        rounds
    ):
        low, median, high = quartiles(values)
        print(f"{what:34}{median:10.3f} {unit:4} ({low:.3f} to {high:.3f})  {note}", flush=True)
        if out is not None:
            row = {"what": what, "unit": unit, "median": median, "low": low, "high": high}
            about = {"sizes": str(sizes), "threads": threads, "rounds": rounds, "note": note}
            append_row(out, {**row, **about, "machine": machine()})


if __name__ == "__main__":
    tyro.cli(main)
