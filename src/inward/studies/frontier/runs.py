"""The command's work: which runs are missing, what they will take, and one run after another.

A run trains into its own folder and goes on where it stopped (`inward.train`), then answers the
validation questions and the test questions at every effort; its row is the last thing that is
written. So a command that was killed does again at most what lies behind the last saved state.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from inward import hub
from inward.common.files import read_text
from inward.data.thoughts.records import Record
from inward.evals.rows import machine
from inward.studies.frontier import budget
from inward.studies.frontier.arms import (
    ARMS,
    Arm,
    Dial,
    chosen,
    dials,
    lesson,
    usual_effort,
    why_not,
)
from inward.studies.frontier.models import (
    Job,
    feed_forward,
    how_asked,
    most_words,
    run_of,
    tokenizer_for,
)
from inward.studies.frontier.rows import (
    Row,
    add_row,
    best_effort,
    best_rate,
    bits,
    effort_of,
    of_run,
    told,
)
from inward.studies.frontier.scales import Scale
from inward.studies.frontier.tasks import FrontierTask, right
from inward.tasks.processors import PuzzleProcessor, TextProcessor
from inward.thinker import Thinker
from inward.train.run import NonFiniteError

if TYPE_CHECKING:
    from torch import nn

LOOKED_AT = 60
"""validation questions that are asked during training"""
LOOKS = 4
"""times that they are asked"""

Tell = Callable[[str], None]

# --------------------------------------------------------------------------------------------------
# Which runs there are


@dataclass(frozen=True)
class Wish:
    """A run that the plan has. rate: None: the one that the first seed chooses."""

    task: FrontierTask
    arm: Arm
    seed: int
    rate: float | None

    @property
    def name(self) -> str:
        """As in --only, and the rate."""
        rate = "best rate" if self.rate is None else f"rate {self.rate:g}"
        return f"{self.task.name}/{self.arm.name}/{self.seed} at {rate}"

    def done(self, rows: Sequence[Row]) -> bool:
        """Whether a row of it is there, one that failed too."""
        return any(
            (row["task"], row["arm"], row["seed"]) == (self.task.name, self.arm.name, self.seed)
            and self.rate in (None, row["rate"])
            for row in rows
        )


def wishes(scale: Scale, only: Sequence[str] = ()) -> list[Wish]:
    """The runs of a scale: every rate on the first seed, then the other seeds; `only` names some,
    as TASK, TASK/ARM or TASK/ARM/SEED.

    Raises ValueError for a name that there is not, or an arm that has no run on that task.
    """
    found: list[Wish] = []
    for task, arm, seed in _named(scale, only):
        if why_not(ARMS[arm], scale.tasks[task]):
            continue
        rates = scale.rates if seed == scale.seeds[0] else (None,)
        found += [Wish(scale.tasks[task], ARMS[arm], seed, rate) for rate in rates]
    return list(dict.fromkeys(found))


def absent(scale: Scale) -> dict[tuple[str, str], str]:
    """(task, arm) -> why there is no run of it."""
    pairs = {(task, arm): why_not(ARMS[arm], scale.tasks[task]) for task in scale.tasks
             for arm in ARMS}  # fmt: skip
    return {pair: why for pair, why in pairs.items() if why}


def _named(scale: Scale, only: Sequence[str]) -> list[tuple[str, str, int]]:
    known = {str(seed): seed for seed in scale.seeds}
    found = []
    for name in only or ("",):
        parts = name.split("/") if name else []
        if len(parts) > 3:
            raise ValueError(f"only is {name!r}; name TASK, TASK/ARM or TASK/ARM/SEED")
        tasks, arms, seeds = ([part] if part else None for part in (*parts, *("",) * 3)[:3])
        tasks = chosen(tasks, scale.tasks, f"task at scale {scale.name}")
        arms = chosen(arms, ARMS, "arm")
        seeds = chosen(seeds, known, f"seed at scale {scale.name}")
        if len(parts) > 1 and (why := why_not(ARMS[arms[0]], scale.tasks[tasks[0]])):
            raise ValueError(f"{name}: {why}")
        found += [(t, a, known[s]) for t in tasks for s in seeds for a in arms]
    return found


def job_of(scale: Scale, wish: Wish, rows: Sequence[Row]) -> Job:
    """The run with its rate.

    Raises ValueError if a rate must be chosen and not every rate has a row.
    """
    rate = wish.rate
    if rate is None:
        first = scale.seeds[0]
        name = f"{wish.task.name}/{wish.arm.name}/{first}"
        tried = {row["rate"] for row in rows if (row["task"], row["arm"], row["seed"])
                 == (wish.task.name, wish.arm.name, first)}  # fmt: skip
        if missing := sorted(set(scale.rates) - tried):
            raise ValueError(
                f"{wish.name}: its rate is chosen on seed {first}, where {missing} have no row; "
                f"run --only {name} first"
            )
        rate, _ = best_rate(of_run(rows, wish.task.name, wish.arm.name, first))
    return Job(scale, wish.task, wish.arm, wish.seed, rate)


# --------------------------------------------------------------------------------------------------
# What they will take


@dataclass(frozen=True)
class Estimate:
    """Of one run. seconds: of a core, training and answering."""

    wish: Wish
    plan: budget.StepPlan
    training: float
    answering: float

    @property
    def seconds(self) -> float:
        """Both."""
        return self.training + self.answering


def estimates(scale: Scale, wanted: Sequence[Wish]) -> list[Estimate]:
    """Measured: a few steps of each arm times those of its budget, and a few answers of a model
    that has learned nothing (which says as much as it may)."""
    known: dict[tuple[str, str, int], tuple[budget.StepPlan, float]] = {}
    found = []
    for wish in wanted:
        # another rate takes the same; another seed of Huginn draws other depths
        seed = wish.seed if wish.arm.method == "huginn" else scale.seeds[0]
        key = (wish.task.name, wish.arm.name, seed)
        if key not in known:
            job = Job(scale, wish.task, wish.arm, seed, scale.rates[0])
            known[key] = budget.plan(job), _answer_seconds(job)
        plan, answer = known[key]
        looks = LOOKS * min(LOOKED_AT, len(wish.task.records("valid")))
        num = sum(len(wish.task.records(split)) for split in ("valid", "test")) + scale.timed
        each = len(_dials(Job(scale, wish.task, wish.arm, seed, scale.rates[0]), None))
        found.append(Estimate(wish, plan, plan.seconds + looks * answer, num * each * answer))
    return found


def _answer_seconds(job: Job, num: int = 2) -> float:
    run, _ = run_of(job, ((0, 1),))
    asker = asker_of(job, run.model)
    records = job.task.records("valid")[:num]
    usual = next(dial for dial in _dials(job, asker) if dial.trained)
    start = time.process_time()
    asker.ask(records, usual)
    return (time.process_time() - start) / len(records)


def _dials(job: Job, asker: Asker | None) -> list[Dial]:
    usual = usual_effort(job.arm, job.task, job.scale.shape)
    if asker is None:  # only their number is asked for
        stand_in = {"opening": [["text", [0]]], "switch": {}}
        return dials(job.arm, job.task, stand_in, usual)
    return dials(job.arm, job.task, asker.thinker.ask_as, usual)


# --------------------------------------------------------------------------------------------------
# Asking


@dataclass(frozen=True, eq=False)
class Asked:
    """What some questions came to: right (N,), and means of an answer."""

    right: list[bool]
    flops: float
    tokens: float
    steps: float


@dataclass(frozen=True, eq=False)
class Asker:
    """A model of an arm, and how it is asked. words: said at most."""

    job: Job
    thinker: Thinker
    words: int

    def ask(self, records: Sequence[Record], dial: Dial) -> Asked:
        """All questions at one effort."""
        answers = self.answers(records, dial)
        if failed := [answer.error for answer in answers if answer.error]:
            raise ValueError(f"{self.job.name} at {dial.amount}: {failed[0]}")
        cells = self.job.arm.reads == "cells"
        return Asked(
            self._right(records, answers),
            float(np.mean([answer.cost.flops for answer in answers])),
            0.0 if cells else float(np.mean([len(answer.tokens) for answer in answers])),
            float(np.mean([answer.steps for answer in answers])),
        )

    def answers(self, records: Sequence[Record], dial: Dial) -> list[Any]:
        """Of `Thinker.ask`."""
        thinker = self.thinker if dial.ask is None else replace(self.thinker, ask_as=dial.ask)
        if self.job.arm.reads == "text":
            questions = [record.question for record in records]
            return thinker.ask(questions, max_new_tokens=self.words, **dial.own)
        return thinker.ask(list(self._puzzles(records).inputs.astype(np.int64)), **dial.own)

    def seconds(self, records: Sequence[Record], dial: Dial) -> float:
        """Median seconds of an answer that is asked for alone."""
        taken = []
        for record in records:
            start = time.perf_counter()
            self.answers([record], dial)
            taken.append(time.perf_counter() - start)
        return float(np.median(taken))

    def _puzzles(self, records: Sequence[Record]) -> Any:
        puzzles = self.job.task.cells(records)
        assert puzzles is not None, "an arm that reads cells has none without"
        return puzzles

    def _right(self, records: Sequence[Record], answers: Sequence[Any]) -> list[bool]:
        if self.job.arm.reads == "text":
            return [right(r, a.text) for r, a in zip(records, answers, strict=True)]
        said = np.array([answer.tokens for answer in answers])
        inputs = self._puzzles(records).inputs
        return self.job.task.grid_task().verify(inputs, said).astype(bool).tolist()


def asker_of(job: Job, model: nn.Module) -> Asker:
    """Around a model in memory, trained or not."""
    from inward.methods.huginn.train import HuginnTraining

    if job.arm.method == "trm":
        processor = PuzzleProcessor(job.task.grid_task())
        return Asker(job, Thinker(model, hub.door("trm"), processor, job.name), 0)
    inner: Any = model.model if isinstance(model, HuginnTraining) else model
    words, said = most_words(job.task), {}
    after = "\n"
    if job.arm.method == "coconut":
        said = how_asked(job.task, lesson(job.arm, job.task), words).asked(cast("Any", model))
        after = said.pop("after")
    processor = TextProcessor(tokenizer_for(job.task), after)
    return Asker(job, Thinker(inner, hub.door(job.arm.method), processor, job.name, said), words)


# --------------------------------------------------------------------------------------------------
# One run


def folder_of(job: Job, out: Path) -> Path:
    """Where a run trains."""
    return out / job.scale.name / f"{job.task.name}-{job.arm.name}-{job.seed}-{job.rate:g}"


def run_job(
    job: Job, planned: budget.StepPlan, *, out: Path, rows: Path, command: str
) -> dict[str, Any]:
    """Train (or go on), choose on validation, ask the test questions, write the row.

    Raises KeyboardInterrupt when stopped; the same call goes on.
    """
    from inward.train import train

    run, settings = run_of(job, planned.schedule)
    run.evaluate = _looks(job)
    settings = replace(settings, eval_every=max(1, planned.steps // LOOKS))
    folder, start = folder_of(job, out), time.process_time()
    row: dict[str, Any] = dict(zip(("scale", "task", "arm", "seed", "rate"), job.key, strict=True))
    row |= {
        "steps": planned.steps,
        "schedule": [list(part) for part in planned.schedule],
        "batch_rows": settings.batch_rows,
        "budget": job.scale.budget[job.task.name],
        "flops": planned.flops,
        "parameters": planned.parameters,
        "feed_forward": feed_forward(job.arm, job.task, job.scale.shape),
    }
    try:
        with hub.quiet():
            summary = train(run, settings, folder)
    except NonFiniteError as error:
        row["error"] = str(error)
    else:
        row |= {name: summary[name] for name in ("seconds", "cpu_seconds")}
        row["curve"] = _curve(folder, planned)
        row |= _answered(job, asker_of(job, hub.load(folder / "model")))
    row |= _circumstances(command, time.process_time() - start)
    add_row(rows, row)
    return row


def _circumstances(command: str, seconds: float) -> dict[str, Any]:
    from inward import __version__

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "core_seconds": seconds,
        "command": command,
        "version": __version__,
        "machine": machine(),
        "load": load,
    }


def _looks(job: Job) -> Callable[[nn.Module], dict[str, float]]:
    records = job.task.records("valid")[:LOOKED_AT]

    def evaluate(model: nn.Module) -> dict[str, float]:
        asker = asker_of(job, model)
        usual = next(dial for dial in _dials(job, asker) if dial.trained)
        return {"accuracy": float(np.mean(asker.ask(records, usual).right))}

    return evaluate


def _curve(folder: Path, planned: budget.StepPlan) -> list[list[float]]:
    import json

    lines = read_text(folder / "log.jsonl").splitlines()
    found = [row for row in map(json.loads, lines) if row["kind"] == "eval"]
    return [[flops_until(planned, r["step"]), r["metrics"]["accuracy"]] for r in found]


def flops_until(planned: budget.StepPlan, step: int) -> float:
    """Of the first `step` steps of a run."""
    spent, left = 0.0, step
    for (_, num), cost in zip(planned.schedule, planned.step_flops, strict=True):
        spent += min(num, left) * cost
        left -= min(num, left)
    return spent


def _answered(job: Job, asker: Asker) -> dict[str, Any]:
    efforts = []
    valid, test = job.task.records("valid"), job.task.records("test")
    for dial in _dials(job, asker):
        on_valid, on_test = asker.ask(valid, dial), asker.ask(test, dial)
        efforts.append(
            {
                "amount": dial.amount,
                "trained": dial.trained,
                "valid": told(on_valid.right),
                "test": told(on_test.right),
                "flops": on_test.flops,
                "tokens": on_test.tokens,
                "steps": on_test.steps,
                "seconds": asker.seconds(test[: job.scale.timed], dial),
            }
        )
    row: dict[str, Any] = {"efforts": efforts, "chosen": best_effort(efforts)}
    levels = np.array([job.task.level(record) for record in test])
    own = bits(effort_of(row)["test"])
    row["by_level"] = {str(k): float(own[levels == k].mean()) for k in np.unique(levels)}
    return row
