"""How fast is it here: start-up, training steps, solving; medians over repeats, with their spread.

    inward bench                       start-up and two small recipes
    inward bench maze11 --threads 1    one recipe
    inward bench runs/mine             a run: solving and training steps (puzzles), or answers in
                                       text beside transformers' ways (see texts.py)
    inward bench trm --reference DIR   TRM beside the official code (see trm.py)
    inward bench huginn --reference D  Huginn beside the official module (see huginn.py)
    inward bench coconut --reference D Coconut beside the official module (see coconut.py)

A subject is a name of `SUBJECTS` or of `BESIDE`, a recipe, a shipped model or a model folder. Every
subject returns rows of the same form, so they end up in the same table. Random weights do for
speed: nothing here depends on values, because solving runs a fixed number of steps (halt="never").
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.bench import huginn as bench_huginn
from inward.bench import trm as bench_trm

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT = ("startup", "sudoku6", "maze11")
SOLVED_AT_ONCE = 32
_WARM_UP = 2  # repeats that are not counted: allocators and kernels settle


@dataclass(frozen=True)
class BenchRow:
    """One measurement: the median of `repeats` runs and the quartiles around it, in `unit`."""

    subject: str
    what: str
    median: float
    low: float
    high: float
    unit: str
    repeats: int
    threads: int
    note: str = ""
    machine: str = ""
    command: str = ""

    def to_row(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


BESIDE: dict[str, tuple[str, ...]] = {
    "trm": ("reference", "num_rows", "dtype", "compile"),
    "huginn": ("reference", "reference_packages", "dtype"),
    "coconut": ("reference", "reference_packages", "num_rows"),
}
"""Methods that can be measured beside their official code, and the options they take"""


def bench(
    subjects: tuple[str, ...] = DEFAULT,
    *,
    repeats: int = 7,
    threads: int | None = None,
    num_rows: int | None = None,
    reference: Path | None = None,
    reference_packages: Path | None = None,
    dtype: str | None = None,
    compile: bool = False,
    texts: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[BenchRow]:
    """Measure every subject.

    num_rows: rows of a training batch (default: the recipe's); reference, reference_packages,
    dtype, compile: of the subjects that `BESIDE` names, see their `job`; texts: fields of
    `inward.bench.texts.TextBench`, of models that write; say: told what is being measured.

    Raises ValueError for an unknown subject, a number below 1 or an option without its subject,
    before anything is measured.
    """
    for name, value in (("repeats", repeats), ("threads", threads), ("num_rows", num_rows)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    given = {
        "num_rows": num_rows,
        "reference": reference,
        "reference_packages": reference_packages,
        "dtype": dtype,
        "compile": compile or None,
    }
    writers = [subject for subject in subjects if _writes(subject)]
    if texts and not writers:
        raise ValueError(f"{', '.join(texts)}: of models that write; name a run of one")
    puzzles = tuple(subject for subject in subjects if subject not in writers)
    _check_options(puzzles, {name for name, value in given.items() if value is not None})
    jobs = []
    for subject in subjects:
        if subject in writers:
            from inward.bench.texts import TextBench
            from inward.bench.texts import job as texts_job

            jobs.append(texts_job(subject, TextBench(**(texts or {})), say))
            continue
        if subject not in BESIDE:
            jobs.append(_job(subject, num_rows))
            continue
        options = {name: given[name] for name in BESIDE[subject] if name != "reference"}
        options["compile"] = compile
        jobs.append(_beside(subject, reference, options, say))
    rows = []
    with _threads(threads) as used:
        for subject, job in zip(subjects, jobs, strict=True):
            say(f"measuring {subject}")
            for what, unit, times, note in job(repeats):
                low, median, high = quartiles(times)
                rows.append(
                    BenchRow(subject, what, median, low, high, unit, len(times), used, note)
                )
    return rows


def _writes(subject: str) -> bool:
    """Whether a subject is a model that answers in text."""
    from inward import hub
    from inward.recipes import RECIPES
    from inward.thinker import find_model

    if subject in SUBJECTS or subject in BESIDE:
        return False
    try:
        return hub.door(hub.method_of(find_model(subject))).reads == "text"
    except (FileNotFoundError, NotADirectoryError):
        if subject in RECIPES:
            return False
        raise ValueError(
            f"cannot bench {subject!r}: it is neither {', '.join([*SUBJECTS, *BESIDE])}, a recipe "
            f"({', '.join(RECIPES)}) nor a model"
        ) from None


def _check_options(subjects: tuple[str, ...], given: set[str]) -> None:
    """Refuse an option that no subject takes, and one clone for two official codes."""
    for name in sorted(given):
        takers = [subject for subject in BESIDE if name in BESIDE[subject]]
        others = [subject for subject in subjects if subject not in BESIDE]
        if not set(takers) & set(subjects) and not (name == "num_rows" and others):
            raise ValueError(f"{name} belongs to the subjects {', '.join(takers)}; name one too")
    beside = [subject for subject in subjects if subject in BESIDE]
    if len(beside) > 1 and "reference" in given:
        raise ValueError(f"a reference is a clone for one of {', '.join(beside)}; measure one")


def _beside(
    subject: str, reference: Path | None, options: dict[str, Any], say: Callable[[str], None]
) -> Job:
    """The measurement of a method beside its official code."""
    if subject == "trm":
        return bench_trm.job(reference, **options, say=say)
    packages = options["reference_packages"]
    if subject == "huginn":
        return bench_huginn.job(reference, packages=packages, dtype=options["dtype"], say=say)
    from inward.bench import coconut as bench_coconut  # imports torch

    rows = options["num_rows"]
    return bench_coconut.job(reference, packages=packages, num_rows=rows, say=say)


Measured = tuple[str, str, list[float], str]
"""what, unit, one value per repeat, a note"""
Job = Callable[[int], Iterator[Measured]]


def _job(subject: str, num_rows: int | None) -> Job:
    if subject in SUBJECTS:
        return SUBJECTS[subject]
    recipe = _recipe(subject)
    return lambda repeats: _method(recipe, repeats, num_rows)


def _recipe(subject: str) -> Any:
    """The recipe of that name, or that of a model, with no more data than a benchmark needs."""
    from inward import recipes
    from inward.recipes.of import recipe_of
    from inward.recipes.trm import TRMRecipe

    try:
        known = subject in recipes.RECIPES
        recipe = recipes.find(subject)() if known else recipe_of(subject)
        if not isinstance(recipe, TRMRecipe):
            raise ValueError(
                f"bench measures recipes of TRM, {subject} is a {type(recipe).__name__}; of the "
                "others it measures what they train: name a run's folder"
            )
        return recipe
    except FileNotFoundError as error:
        names = ", ".join([*SUBJECTS, *BESIDE])
        raise ValueError(
            f"cannot bench {subject!r}: it is neither {names}, a recipe "
            f"({', '.join(recipes.RECIPES)}) nor a model with a recipe"
        ) from error


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """25 %, 50 % and 75 % of the values; one value is all three."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


@contextmanager
def _threads(num: int | None) -> Iterator[int]:
    import torch

    before = torch.get_num_threads()
    if num is not None:
        torch.set_num_threads(num)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _timed(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each call, after some that are not counted."""
    times = []
    for index in range(_WARM_UP + repeats):
        began = time.perf_counter()
        work()
        if index >= _WARM_UP:
            times.append(time.perf_counter() - began)
    return times


# --------------------------------------------------------------------------------------------------
# Start-up


def _startup(repeats: int) -> Iterator[Measured]:
    """CPU time of fresh processes (wall time would measure the neighbours too)."""
    programs = {
        "inward --help": "from inward.cli.main import main; main(['--help'])",
        "import inward": "import inward",
        "import the model code": "import inward.methods.trm.model",
    }
    for what, program in programs.items():
        _cpu_seconds(program)  # files into the page cache
        times = [_cpu_seconds(program) for _ in range(min(repeats, 5))]
        yield what, "ms", [1000 * seconds for seconds in times], "CPU time of a fresh process"


def _cpu_seconds(program: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", program]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# --------------------------------------------------------------------------------------------------
# A method with a recipe


def _method(recipe: Any, repeats: int, num_rows: int | None) -> Iterator[Measured]:
    import torch

    from inward.methods.trm.model import TRM

    rows = recipe.train.batch_rows if num_rows is None else num_rows
    small = _small(recipe, rows)
    torch.manual_seed(0)
    fitted = small.data.fit(small.model) if hasattr(small.data, "fit") else small.model
    model = TRM(fitted)
    source = small.data.source()
    times = _timed(lambda: source.batch(0, range(rows), rows), repeats)
    yield "data for a batch", "ms", [1000 * t for t in times], f"{rows} rows"
    times = _timed(_training_step(model, source, small, rows), repeats)
    note = f"{rows} rows, forward, backward and update"
    yield "training step", "ms", [1000 * t for t in times], note
    yield from _solving(model, small, repeats)


def _small(recipe: Any, rows: int) -> Any:
    """The recipe with so little data that making it takes no time worth mentioning."""
    sizes = {"num_train": max(rows, SOLVED_AT_ONCE), "num_valid": 1, "num_test": SOLVED_AT_ONCE}
    known = {name: value for name, value in sizes.items() if hasattr(recipe.data, name)}
    return replace(recipe, data=replace(recipe.data, **known))


def _training_step(model: Any, source: Any, recipe: Any, rows: int) -> Callable[[], None]:
    """What the loop does in a step, less its logging and saving."""
    import torch

    from inward.common.draws import Draws
    from inward.train.optim import build_optimizers, dense_parameters

    optimizers = build_optimizers(model, recipe.train.optim)
    dense = list(dense_parameters(model).values())
    batch = source.batch(0, range(rows), rows)
    state: dict[str, Any] = {"carry": None, "step": 0}

    def step() -> None:
        draws = Draws(0, state["step"], range(rows), rows)
        loss = model.loss(batch, state["carry"], draws)
        (loss.total / rows).backward()
        if recipe.train.clip:
            torch.nn.utils.clip_grad_norm_(dense, recipe.train.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        state.update(carry=loss.state, step=state["step"] + 1)

    return step


def _solving(model: Any, recipe: Any, repeats: int) -> Iterator[Measured]:
    puzzles = recipe.test_puzzles()
    num, steps = len(puzzles), model.settings.n_sup
    spent: list[float] = []

    def solve() -> None:
        solution = model.solve(puzzles.inputs, grid=puzzles.grid, halt="never", max_steps=steps)
        spent.append(float(solution.flops.sum()))

    times = _timed(solve, repeats)
    note = f"{num} at a time, {steps} steps each, no halting"
    yield "solving", "puzzles/s", [num / t for t in times], note
    yield "arithmetic while solving", "GFLOP/s", [spent[0] / t / 1e9 for t in times], note


SUBJECTS: dict[str, Job] = {"startup": _startup}
"""Subjects that are no recipe."""


def bench_tables(rows: Sequence[BenchRow]) -> list[Table]:
    """The rows for a terminal; of models that write, one table each with a line a side."""
    from inward.bench.texts import UNITS, sides_table

    writers = list(dict.fromkeys(row.subject for row in rows if row.unit in UNITS))
    others = [row for row in rows if row.subject not in writers]
    tables = [bench_table(others)] if others else []
    return tables + [sides_table([row for row in rows if row.subject == w]) for w in writers]


def bench_table(rows: Sequence[BenchRow]) -> Table:
    """The rows for a terminal."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE)
    for column in ("subject", "what", "median", "25 % - 75 %", "unit", "note"):
        table.add_column(column, justify="right" if column[0] in "m2" else "left")
    for row in rows:
        spread = f"{row.low:.4g} - {row.high:.4g}"
        note = f"{row.note}; {row.threads} threads"
        table.add_row(row.subject, row.what, f"{row.median:.4g}", spread, row.unit, note)
    return table


# --------------------------------------------------------------------------------------------------
# The environment, for bug reports
