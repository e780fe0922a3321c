"""Evaluate a model on puzzles: one call, one row that says everything needed to believe the number.

    result = evaluate(model, puzzles, task, what="maze11", dataset="maze 15x15 test")
    append_row("results.jsonl", result.to_row())

Two accuracies are counted. `accuracy` compares every scored cell with the label, as the papers do;
`verified` asks the task's own rules and needs no label. The first run uses the halting rule asked
for; accuracy after each step comes from a second run that never halts, because an answer that
halted at step 3 says nothing about step 5.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inward.data.puzzles import PAD, Puzzles, replacing
from inward.evals.stats import wilson
from inward.tasks.arc import ArcTask

if TYPE_CHECKING:
    from inward.recipes.trm import TRMRecipe
    from inward.trace import Step

MAX_BUCKETS = 6
_TRACE_BYTES = 64 << 20  # of traces held at a time while counting accuracy by step
_BYTES_PER_CELL = 12  # of a traced step: the token in 8 bytes, its confidence in 4


@dataclass(frozen=True)
class Bucket:
    """Puzzles whose rating lies in low..high, both included."""

    low: int
    high: int
    num: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Result:
    """What was measured, on what, at what cost, where and by which command.

    accuracy: share of puzzles whose every scored cell equals the label; None: there are no labels.
    verified: share of answers that satisfy the task's rules; None: the task has no rule (ARC).
    interval: 95 % Wilson interval of accuracy, or of verified where there are no labels.
    answered, accuracy_answered: share that the model did not withhold, and accuracy among those.
    believed: share of answers whose correctness the halting head (q > 0) told rightly.
    steps, evaluations, flops: means per puzzle; the last two count all chains of a puzzle.
    by_step: accuracy after step 1, 2, ... of a run that never halts.
    """

    what: str
    dataset: str
    num: int
    seed: int
    accuracy: float | None
    verified: float | None
    interval: tuple[float, float]
    answered: float
    accuracy_answered: float | None
    believed: float
    steps: float
    evaluations: float
    flops: float
    seconds: float
    parameters: int
    by_rating: tuple[Bucket, ...] = ()
    by_step: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    machine: str = ""
    command: str = ""

    @property
    def share(self) -> float:
        """The number that `interval` belongs to."""
        best = self.verified if self.accuracy is None else self.accuracy
        assert best is not None, "a result has one of the two"
        return best

    def to_row(self) -> dict[str, Any]:
        """JSON values, for `append_row` and for `viz.plots.accuracy_by_step`."""
        return asdict(self)


def evaluate(
    model: Any,
    puzzles: Puzzles,
    task: Any,
    *,
    what: str = "",
    dataset: str = "",
    max_steps: int | None = None,
    halt: Any = "q+stable",
    num_symmetries: int = 0,
    seed: int = 0,
    by_step: bool = True,
    progress: bool = False,
    command: str = "",
    **options: Any,
) -> Result:
    """Solve all puzzles and count.

    Args:
        model: a TRM, or anything with its `solve` and `settings`.
        task: an object of `inward.tasks` for the puzzles' grid.
        max_steps: budget per chain; None: N_sup, in proportion for larger grids (`default_steps`).
        halt: a halting rule or its name (`inward.halting`).
        num_symmetries: further views of each puzzle, drawn from `seed` by the task.
        by_step: also run without halting and count after each step (doubles the time).
        options: passed to `solve`: rollouts, noise, select, first_to_halt, abstain_below, ...
    Raises:
        ValueError: puzzles, task and model do not fit, or an option is out of range.
    """
    _check_fit(model, puzzles, task)
    steps = default_steps(model, puzzles.inputs.shape[1]) if max_steps is None else max_steps
    rng = np.random.default_rng(seed)
    common = {"identifiers": puzzles.identifiers, "grid": puzzles.grid, "max_steps": steps}
    views = [task.symmetry(rng) for _ in range(num_symmetries)]
    began = time.perf_counter()
    solution = model.solve(
        puzzles.inputs,
        halt=halt,
        symmetries=views,
        seed=seed,
        progress=progress,
        **common,
        **options,
    )
    seconds = time.perf_counter() - began
    answers = solution.answers.numpy()
    exact, verified = _exact(puzzles, answers), _verified(task, puzzles, answers)
    right = verified if exact is None else exact
    if right is None:
        raise ValueError("these puzzles have no labels and their task no rules; nothing to count")
    answered = solution.answered.numpy()
    interval = wilson(int(right.sum()), len(right))
    told = {"max_steps": steps, "halt": str(halt), "num_symmetries": num_symmetries}
    return Result(
        what=what,
        dataset=dataset,
        num=len(puzzles),
        seed=seed,
        accuracy=None if exact is None else float(exact.mean()),
        verified=None if verified is None else float(verified.mean()),
        interval=(interval.low, interval.high),
        answered=float(answered.mean()),
        accuracy_answered=float(right[answered].mean()) if answered.any() else None,
        believed=float(((solution.q.numpy() > 0) == right).mean()),
        steps=float(solution.steps.double().mean()),
        evaluations=float(solution.evaluations.mean()),
        flops=float(solution.flops.mean()),
        seconds=seconds,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        by_rating=_by_rating(puzzles.rating, right),
        by_step=_by_step(model, puzzles, task, common) if by_step else (),
        settings=told | {name: _told(value) for name, value in options.items()},
        machine=machine(),
        command=command or "python: inward.evals.run.evaluate",
    )


def default_steps(model: Any, num_cells: int) -> int:
    """N_sup for the length the model was trained on; a larger grid gets more in proportion.

    Paths in a maze k times as wide are about k^2 times as long, and a step carries news only so
    far.
    """
    settings = model.settings
    return max(settings.n_sup, round(settings.n_sup * num_cells / settings.seq_len))


def _check_fit(model: Any, puzzles: Puzzles, task: Any) -> None:
    if tuple(task.grid) != tuple(puzzles.grid):
        raise ValueError(
            f"the puzzles have a {puzzles.grid} grid, the task {task.name} {task.grid}; "
            "make the task for the puzzles' grid"
        )
    if model.settings.vocab_size != task.vocab_size:
        raise ValueError(
            f"the model knows {model.settings.vocab_size} tokens, the task {task.name} has "
            f"{task.vocab_size}; it was trained on something else"
        )
    model.settings.layout(puzzles.inputs.shape[1], puzzles.grid)


def _exact(puzzles: Puzzles, answers: np.ndarray) -> np.ndarray | None:
    """(B,) every scored cell equals the label; None unless every puzzle has a label."""
    scored = puzzles.labels != PAD
    if not scored.any(axis=1).all():
        return None
    return ((answers == puzzles.labels) | ~scored).all(axis=1)


def _verified(task: Any, puzzles: Puzzles, answers: np.ndarray) -> np.ndarray | None:
    return None if isinstance(task, ArcTask) else task.verify(puzzles.inputs, answers)


def _by_rating(rating: np.ndarray | None, right: np.ndarray) -> tuple[Bucket, ...]:
    """One bucket per rating, or about equally full ranges where there are many."""
    if rating is None:
        return ()
    values = np.unique(rating)
    if len(values) <= MAX_BUCKETS:
        edges = [(int(value), int(value)) for value in values]
    else:
        cuts = np.unique(np.quantile(rating, np.linspace(0, 1, MAX_BUCKETS), method="lower"))
        lows = [cuts[0], *(cut + 1 for cut in cuts[1:-1])]
        edges = [(int(low), int(high)) for low, high in zip(lows, cuts[1:], strict=True)]
    buckets = []
    for low, high in edges:
        inside = right[(rating >= low) & (rating <= high)]
        if len(inside):
            share = wilson(int(inside.sum()), len(inside))
            bucket = Bucket(low, high, len(inside), share.value, (share.low, share.high))
            buckets.append(bucket)
    return tuple(buckets)


def _by_step(
    model: Any, puzzles: Puzzles, task: Any, common: Mapping[str, Any]
) -> tuple[float, ...]:
    """Accuracy after each step of a plain run without halting, in parts that fit in memory."""
    bytes_per_puzzle = common["max_steps"] * puzzles.inputs.shape[1] * _BYTES_PER_CELL
    size = max(1, min(1024, _TRACE_BYTES // bytes_per_puzzle))
    counts = np.zeros(common["max_steps"], int)
    for start in range(0, len(puzzles), size):
        part = puzzles.select(slice(start, start + size))
        options = {**common, "identifiers": part.identifiers}
        traces = model.solve(part.inputs, halt="never", trace=True, **options).traces
        for index in range(len(counts)):
            answers = np.stack([_recorded(trace.steps[index]) for trace in traces])
            exact = _exact(part, answers)
            right = _verified(task, part, answers) if exact is None else exact
            assert right is not None, "checked before"
            counts[index] += int(right.sum())
    return tuple(float(count) / len(puzzles) for count in counts)


def _recorded(step: Step) -> np.ndarray:
    assert step.tokens is not None, "solve records the answer of every step"
    return step.tokens


def _told(value: Any) -> Any:
    """An option as a JSON value; functions by their name."""
    if isinstance(value, str | int | float | bool | None):
        return value
    return getattr(value, "__qualname__", None) or repr(value)


# --------------------------------------------------------------------------------------------------
# Where, and by what


def machine() -> str:
    """Processor, cores, threads and versions in one line, for result rows."""
    import torch

    where = processor()
    if torch.cuda.is_available():
        where += f", {torch.cuda.get_device_name()}"
    return (
        f"{where}; {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"python {platform.python_version()}, torch {torch.__version__}"
    )


def processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command as one could type it again."""
    return shlex.join(["inward", *(sys.argv[1:] if arguments is None else arguments)])


def append_row(path: str | os.PathLike, row: Mapping[str, Any]) -> None:
    """Add one JSON line to a file; a kill in the middle leaves the old file."""
    path = Path(path)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    with replacing(path) as partial:
        partial.write_text(before + json.dumps(row) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------------
# The recipe behind a checkpoint, the task behind a name, the puzzles behind a path


def recipe_of(model: str | os.PathLike) -> TRMRecipe:
    """The resolved recipe that a model was trained by: recipe.json beside it, or its run's.

    Raises FileNotFoundError if there is none, ValueError if it names no known recipe or field.
    """
    from inward.hub import resolve

    folder = resolve(Path(model) if Path(model).exists() else str(model))
    for path in (folder / "recipe.json", folder.parent / "config.json"):
        if path.is_file():
            return read_recipe(path)
    raise FileNotFoundError(
        f"{folder} has no recipe.json that tells what it was trained on; "
        "name the task and a file of puzzles (--task, --data)"
    )


def read_recipe(path: Path) -> TRMRecipe:
    """The recipe that `asdict` wrote as JSON."""
    from inward.recipes import find

    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return _restored(find(saved["name"])(), saved)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a recipe that this version knows: {error}") from error


def _restored(default: Any, saved: Mapping[str, Any]) -> Any:
    """`default` with the saved values; JSON's lists become tuples again."""
    known = {entry.name for entry in fields(default)}
    if unknown := sorted(set(saved) - known):
        raise ValueError(f"{type(default).__name__} has no field {', '.join(unknown)}")
    values = {}
    for name, value in saved.items():
        current = getattr(default, name)
        values[name] = _restored(current, value) if is_dataclass(current) else _tuples(value)
    return replace(default, **values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def task_named(name: str, grid: tuple[int, int] | None = None) -> Any:
    """The task object: "sudoku4", "sudoku6", "sudoku9", "maze" (any `grid`), "maze15", "arc".

    Raises ValueError for another name, or a maze without a size.
    """
    from inward.tasks.maze import MazeTask
    from inward.tasks.sudoku import SudokuTask

    if name == "arc":
        return ArcTask()
    kind = name.rstrip("0123456789")
    size = int(name[len(kind) :] or 0)
    makers: dict[str, Callable[[], Any]] = {
        "sudoku": lambda: SudokuTask(size or (grid or (0, 0))[0]),
        "maze": lambda: MazeTask(size or grid or (0, 0)),
    }
    if kind not in makers:
        raise ValueError(f"there is no task {name!r}; tasks are sudoku4/6/9, maze<side>, arc")
    return makers[kind]()


def read_puzzles(path: str | os.PathLike, task: Any, *, num: int | None = None) -> Puzzles:
    """Puzzles of a file: .npz, .csv (published columns), .txt (Sudoku lines), or a dataset folder.

    Raises FileNotFoundError, or ValueError for a file that holds something else.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.is_dir():
        from inward.data.folder import Folder

        puzzles = Folder(path, "test").puzzles(task.grid)
    elif path.suffix == ".npz":
        puzzles = Puzzles.load(path)
    elif path.suffix == ".csv" and task.name.startswith("maze"):
        from inward.data.maze import read_csv

        puzzles = read_csv(path)
    elif path.suffix == ".csv":
        from inward.data.sudoku import read_csv

        puzzles = read_csv(path, num=num)
    elif path.suffix == ".txt" and task.name.startswith("sudoku"):
        from inward.data.sudoku import read_lines

        puzzles = read_lines(path, num=num)
    else:
        raise ValueError(
            f"cannot read puzzles from {path.name!r} for {task.name}; "
            "use .npz, .csv, .txt (Sudoku) or a dataset folder"
        )
    return first(puzzles, num)


def first(puzzles: Puzzles, num: int | None) -> Puzzles:
    """The first `num` puzzles; ValueError if there are not as many."""
    if num is None:
        return puzzles
    if not 1 <= num <= len(puzzles):
        raise ValueError(f"asked for {num} puzzles, there are {len(puzzles)}; choose 1 to that")
    return puzzles.select(slice(0, num))


def guess_task(path: str | os.PathLike) -> Any:
    """The task that the puzzles of a file seem to belong to, by their grid and alphabet.

    Raises FileNotFoundError, or ValueError where they tell too little.
    """
    path = Path(path)
    if path.suffix == ".txt":
        return task_named("sudoku9")
    if path.suffix == ".csv":
        with path.open(encoding="utf-8") as file:
            file.readline()
            return task_named("maze", (1, 2)) if "S" in file.readline() else task_named("sudoku9")
    if path.is_dir():
        from inward.data.folder import Folder

        info = Folder(path, "test" if (path / "test").is_dir() else "train").info
        cells, vocab_size = info.seq_len, info.vocab_size
    else:
        puzzles = Puzzles.load(path)
        cells, vocab_size = puzzles.inputs.shape[1], puzzles.vocab_size
    known = {(16, 6): "sudoku4", (36, 8): "sudoku6", (81, 11): "sudoku9", (900, 12): "arc"}
    if (cells, vocab_size) in known:
        return task_named(known[cells, vocab_size])
    if vocab_size == 6:
        side = math.isqrt(cells)
        return task_named("maze", (side, side) if side * side == cells else (1, cells))
    raise ValueError(f"{path} holds {cells} cells of {vocab_size} tokens; say what with --task")


def puzzle_texts(text: str, task: Any) -> list[str]:
    """The puzzles of a text: one Sudoku a line, or paragraphs."""
    lines = text.splitlines()
    if task.name.startswith("sudoku"):
        filled = [line.split(",")[0].strip() for line in lines if line.strip()]
        if all(len(line) == task.grid[0] * task.grid[1] for line in filled):
            return filled
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return ["\n".join(block) for block in blocks if block]


def parse_puzzle(text: str, task: Any) -> tuple[Any, np.ndarray]:
    """A typed puzzle's tokens (L,), and its task: a maze has the size of its text.

    Raises ValueError as `task.parse` does.
    """
    if not task.name.startswith("maze"):
        return task, task.parse(text)
    lines = [line for line in text.splitlines() if line]
    grid = (len(lines), max(map(len, lines), default=0))
    side = math.isqrt(grid[1])
    if grid[0] == 1 and side * side == grid[1]:
        grid = (side, side)
    task = task_named("maze", grid)
    return task, task.parse(text)
