"""`inward frontier`: methods that think, compared for the same training FLOPs.

tyro reads the fields' types at run time, so there is no `from __future__ import annotations` here.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.cli.options import _console, _go

if TYPE_CHECKING:
    from inward.studies.frontier.runs import Estimate
    from inward.studies.frontier.scales import Scale


def frontier(words: list[str]) -> int:
    """Plan, run or report."""
    return _go(Frontier, "frontier", words)


@dataclass(kw_only=True)
class Frontier:
    """Plain answers, chain of thought, pause tokens, Huginn, Coconut, interleaved and superposed
    thoughts, TRM: the same questions, parameters and training FLOPs. Tells its core-hours before it
    starts; the same command goes on where it stopped, and runs nothing twice."""

    scale: str = "pilot"
    """tiny (a test), first (a look, one task), or pilot (the comparison)"""
    only: tuple[str, ...] = ()
    """TASK, TASK/ARM or TASK/ARM/SEED; several may be named"""
    list: bool = False
    """show what is done, what is missing and what it would take; run nothing"""
    report: bool = False
    """tables and plots from the rows there are; run nothing"""
    max_hours: float | None = None
    """core-hours at most; None: those of the scale"""
    out: Path = field(default_factory=lambda: Path("runs/frontier"))
    """where runs train"""
    rows: Path = field(default_factory=lambda: Path("benchmarks/frontier"))
    """where rows, report and plots are written"""
    findings: Path | None = None
    """with --report: a page that gets the tables between its marks, such as docs/findings.md"""

    def run(self, words: Sequence[str]) -> int:
        """Run it."""
        from inward.studies.frontier.arms import chosen
        from inward.studies.frontier.scales import SCALES

        (name,) = chosen([self.scale], SCALES, "scale")
        if self.max_hours is not None and not 0 < self.max_hours < float("inf"):
            raise ValueError(f"max_hours is {self.max_hours}; give a number above 0")
        if self.list and self.report:
            raise ValueError("--list and --report are two things; ask for one of them")
        if self.findings is not None and not self.report:
            raise ValueError("--findings is for --report; add it, or leave --findings out")
        if self.report:
            return self._report(SCALES[name])
        return self._run(SCALES[name], words)

    def _report(self, scale: "Scale") -> int:
        from inward.common.files import replacing
        from inward.studies.frontier.report import put_into, report
        from inward.studies.frontier.rows import read_rows, selected

        rows = read_rows(self.rows, scale.name)
        text = report(scale, rows)
        with replacing(self.rows / f"{scale.name}.md") as partial:
            partial.write_text(text, encoding="utf-8")
        print(text)
        if self.findings is not None:
            put_into(self.findings, text)
        from inward.viz import plots

        if not plots.available():
            print("(no plots: pip install 'inward[viz]')")
            return 0
        from inward.viz.frontier import draw

        for task in dict.fromkeys(row["task"] for row in selected(rows)):
            for path in draw(rows, task, self.rows / scale.name):
                print(path)
        return 0

    def _run(self, scale: "Scale", words: Sequence[str]) -> int:
        from inward.common.files import check_target
        from inward.evals.rows import command_line
        from inward.studies.frontier.rows import read_rows
        from inward.studies.frontier.runs import absent, estimates, job_of, run_job, wishes

        rows = read_rows(self.rows, scale.name)
        wanted = wishes(scale, self.only)
        left = [wish for wish in wanted if not wish.done(rows)]
        if self.list:
            for (task, arm), why in absent(scale).items():
                print(f"  none     {task}/{arm}: {why}")
            for wish in wanted:
                print(f"  {'missing' if wish in left else 'done':<9}{wish.name}")
        if not left:
            print(f"{len(wanted)} runs, all done: inward frontier --scale {scale.name} --report")
            return 0
        told = estimates(scale, left)
        limit = scale.max_hours if self.max_hours is None else self.max_hours
        self._tell(told)
        if self.list:
            return 0
        hours = sum(one.seconds for one in told) / 3600
        if hours > limit:
            raise ValueError(
                f"these {len(left)} runs take about {hours:.2f} core-hours, at most {limit:g} are "
                "allowed; name fewer with --only, or allow more with --max-hours"
            )
        for folder in (self.out, self.rows):
            check_target(folder)
        start, command = time.process_time(), command_line(["frontier", *words])
        for one in told:
            spent = (time.process_time() - start + one.seconds) / 3600
            if spent > limit:
                raise ValueError(
                    f"{one.wish.name} would end at {spent:.2f} core-hours, at most {limit:g} are "
                    "allowed; the same command goes on with a new account"
                )
            job = job_of(scale, one.wish, read_rows(self.rows, scale.name))
            row = run_job(job, one.plan, out=self.out, rows=self.rows, command=command)
            print(f"  {job.name} at rate {job.rate:g}: {_result(row)}", flush=True)
        return 0

    def _tell(self, told: "Sequence[Estimate]") -> None:
        """What is missing and what it takes, a line for each arm of a task."""
        console, seen = _console(), {}
        for one in told:
            seen.setdefault((one.wish.task.name, one.wish.arm.name), []).append(one)
        for (task, arm), own in seen.items():
            plan, minutes = own[0].plan, own[0].seconds / 60
            console.print(
                f"  {task + '/' + arm:<22}{plan.parameters:>9,} parameters  {plan.steps:>6} steps  "
                f"{plan.flops:.4g} FLOPs  {minutes:6.2f} core-minutes  x {len(own)}",
                highlight=False,
                soft_wrap=True,
            )
        hours = sum(one.seconds for one in told) / 3600
        console.print(f"  {len(told)} runs, about {hours:.2f} core-hours", highlight=False)


def _result(row: dict[str, Any]) -> str:
    """A row in a few words."""
    if "error" in row:
        return f"failed: {row['error']}"
    from inward.studies.frontier.rows import bits, effort_of

    right = bits(effort_of(row)["test"])
    return f"{right.mean():.1%} of {len(right)} at effort {row['chosen']}"
