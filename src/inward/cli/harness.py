"""`inward eval MODEL --harness TASKS`: lm-eval's benchmarks, and what they cost.

tyro reads the fields' types at run time, so there is no `from __future__ import annotations` here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inward.cli.ask import Asking, command
from inward.cli.options import UsageError, _console, _go


def asked_for(words: list[str]) -> bool:
    """Whether a command line names tasks of lm-eval."""
    return any(word == "--harness" or word.startswith("--harness=") for word in words)


def harness(words: list[str]) -> int:
    """Run tasks of lm-eval."""
    return _go(command(HarnessEval), "eval", words)


@dataclass(kw_only=True)
class HarnessEval(Asking):
    """Tasks of lm-eval (pip install 'inward[harness]'), the cost beside the scores. Tasks that
    generate ask the model as `inward ask` does; docs/harness.md says what a log-likelihood is."""

    harness: str = ""
    """names of tasks, commas between them"""
    include: Path | None = None
    """folder with tasks of your own (YAML; dataset_path: json needs no network)"""
    limit: int | None = None
    """only the first so many documents of each task"""
    shots: int | None = None
    """examples before a question; None: as the task says"""
    batch: int = 8
    """rows of a forward that judges"""
    out: Path | None = None
    """file to which the result is added as a JSON line"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.common.files import check_targets
        from inward.evals import harness
        from inward.evals.rows import append_row, command_line, machine

        if not harness.available():
            raise ImportError(harness.MISSING)
        check_targets(self.out)
        if self.max_new_tokens is not None or self.stop or self.sample:
            raise UsageError("tasks say themselves how long answers are, and where they end")
        names = tuple(name.strip() for name in self.harness.split(",") if name.strip())
        found = harness.evaluate(
            self.thinker(),
            names,
            include=self.include,
            limit=self.limit,
            shots=self.shots,
            batch_size=self.batch,
            seed=self.seed,
            **self.options(),
        )
        _console().print(table(found))
        if self.out is not None:
            told = {"command": command_line(["eval", *words]), "machine": machine()}
            append_row(self.out, found.to_row() | told)
        return 0


def table(found: Any) -> Any:
    """The scores, and below them what they took."""
    from rich.console import Group
    from rich.table import Table

    from inward.common.trace import flops_text

    shown = Table("task", "metric", "value", "±", "documents", title=found.model)
    for row in found.scores:
        error = "" if row["stderr"] is None else f"{row['stderr']:.4f}"
        shown.add_row(row["task"], row["metric"], f"{row['value']:.4f}", error, str(row["num"]))
    each = found.num_requests or 1
    lines = [
        f"{found.num_requests} requests, {flops_text(found.cost.flops / each)} and "
        f"{found.cost.evaluations / each:.1f} evaluations each, {found.seconds:.1f} s"
    ]
    if found.means:
        lines.append(f"a log-likelihood is {found.means}")
    if found.truncated:
        lines.append(
            f"{found.truncated} contexts were longer than the model's, and cut at the left"
        )
    return Group(shown, *lines)
