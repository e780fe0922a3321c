"""`inward bench` and `inward env`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from inward.cli.options import _console, _go
from inward.common.files import check_targets


def bench(words: list[str]) -> int:
    """Measure speed."""
    return _go(Bench, "bench", words)


def env(words: list[str]) -> int:
    """Print versions and hardware."""
    return _go(Env, "env", words)


@dataclass(kw_only=True)
class Bench:
    """Measure start-up, training steps, solving and answering; medians and quartiles over
    repeats."""

    subjects: tuple[str, ...]
    """startup, recipes, models and runs, trm (the published Sudoku shape), huginn (30M
    parameters), coconut (4 layers of width 256); none: startup and the small recipes"""
    repeats: int = 7
    """counted runs of each measurement"""
    threads: int | None = None
    """threads of torch"""
    rows: int | None = None
    """rows of a training batch; None: the recipe's (trm: 16 and 64, coconut: 16)"""
    reference: Path | None = None
    """a clone to run beside ours; trm: of SamsungSAILMontreal/TinyRecursiveModels, huginn: of
    seal-rg/recurrent-pretraining, coconut: of facebookresearch/coconut"""
    reference_packages: Path | None = None
    """huginn, coconut: folder with the transformers 4.53 that their clones need"""
    dtype: Literal["float32", "bfloat16"] | None = None
    """trm, huginn: None: both"""
    compile: bool = False
    """trm: also under torch.compile"""
    prompts: Path | None = None
    """models that write: texts or questions to go on from; None: the run's held-out ones"""
    num_prompts: int | None = None
    """models that write: so many of them; None: 8"""
    batch: int | None = None
    """models that write: texts at a time; None: 1"""
    max_new_tokens: int | None = None
    """models that write: of each text; None: 64"""
    scheme: str | None = None
    """models that draft: how, see inward ask"""
    K: int | None = None
    """models that draft: tokens of a draft"""
    assistant: str | None = None
    """models that write: a smaller model that assists transformers; None: half of the same one"""
    base: str | None = None
    """the model below an adapter, or its folder"""
    out: Path | None = None
    """file to which the rows are added as JSON lines"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.bench.run import DEFAULT, bench, bench_tables
        from inward.evals.rows import append_row, command_line, machine

        check_targets(self.out)
        rows = bench(
            self.subjects or DEFAULT,
            repeats=self.repeats,
            threads=self.threads,
            num_rows=self.rows,
            reference=self.reference,
            reference_packages=self.reference_packages,
            dtype=self.dtype,
            compile=self.compile,
            texts=self._texts(),
            say=lambda text: print(text, file=sys.stderr),
        )
        where, command = machine(), command_line(["bench", *words])
        for table in bench_tables(rows):
            _console().print(table)
        print(where)
        if self.out is not None:
            for row in rows:
                append_row(self.out, replace(row, machine=where, command=command).to_row())
        return 0

    def _texts(self) -> dict[str, Any]:
        """Options of models that write, those that were given."""
        own = {"scheme": self.scheme, "K": self.K}
        given = {
            "prompts": self.prompts,
            "num": self.num_prompts,
            "batch": self.batch,
            "max_new_tokens": self.max_new_tokens,
            "own": {name: value for name, value in own.items() if value is not None} or None,
            "assistant": self.assistant,
            "base": self.base,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(kw_only=True)
class Env:
    """Versions, threads, processor, devices and shipped checkpoints, for bug reports."""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.bench.environment import environment

        for name, value in environment().items():
            print(f"{name:<14}{value}")
        return 0
