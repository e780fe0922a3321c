"""The verbs of the command line: one dataclass each, whose fields are the options.

tyro reads the fields' types at run time, so there is no `from __future__ import annotations` here.
Heavy imports (torch, matplotlib) stay inside `run`, so that a wrong option is told at once.
"""

import os
import sys
from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from inward.cli import UsageError, parse, quiet, unknown

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console


def demo(words: list[str]) -> int:
    """Solve fresh puzzles with the shipped models."""
    return _go(Demo, "demo", words)


def eval(words: list[str]) -> int:
    """Measure a model."""
    return _go(Eval, "eval", words)


def arc(words: list[str]) -> int:
    """Score models on ARC-AGI."""
    from inward.commands_arc import Arc

    return _go(Arc, "arc", words)


def solve(words: list[str]) -> int:
    """Solve what the user types."""
    return _go(Solve, "solve", words)


def generate(words: list[str]) -> int:
    """Continue what the user types."""
    from inward.commands_generate import Generate

    return _go(Generate, "generate", words)


def bench(words: list[str]) -> int:
    """Measure speed."""
    return _go(Bench, "bench", words)


def env(words: list[str]) -> int:
    """Print versions and hardware."""
    return _go(Env, "env", words)


def data(words: list[str]) -> int:
    """Make or show puzzles; the first word says which."""
    from inward.commands_data import ArcFolder, MazeFile, ShowFile, SudokuFile

    kinds = {"sudoku": SudokuFile, "maze": MazeFile, "arc": ArcFolder, "show": ShowFile}
    if not words or words[0] in ("-h", "--help"):
        print("usage: inward data sudoku|maze|arc|show ... ; inward data sudoku --help")
        return 0
    if words[0] not in kinds:
        raise UsageError(unknown("kind of data", words[0], kinds))
    return _go(kinds[words[0]], f"data {words[0]}", words[1:])


def _go(kind: Any, name: str, words: list[str]) -> int:
    options = parse(kind, words, f"inward {name}")
    return 0 if options is None else options.run(words)


def _console() -> "Console":
    from rich.console import Console

    return Console()


def _load(name: str) -> Any:
    from inward.hub import load

    quiet()
    model = load(name)
    if not hasattr(model, "solve"):
        raise ValueError(
            f"{name} is a {type(model).__name__}, which writes text: use `inward generate`; "
            "eval and solve are for models that solve puzzles"
        )
    return model


# --------------------------------------------------------------------------------------------------
# demo


@dataclass
class Demo:
    """Solve fresh puzzles with the models that come with the package, and show how."""

    seed: int = 0
    """of the puzzles"""
    num: int | None = None
    """puzzles of each kind; None: as many as take seconds"""
    out: Path = Path("demo")
    """folder for the pictures"""
    seconds: float = 4.0
    """length of an animation (terminals only)"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.demo import demo

        quiet()
        demo(seed=self.seed, num=self.num, out=self.out, console=_console(), seconds=self.seconds)
        return 0


# --------------------------------------------------------------------------------------------------
# train


def train(words: list[str]) -> int:
    """Run a recipe, or list them."""
    from inward.recipes import RECIPES, find

    if not words or words[0] == "--list":
        width = max(map(len, RECIPES))
        print("inward train RECIPE [--field value ...] [--out DIR] [--resume]\n")
        for name in RECIPES:
            print(f"  {name:<{width}}  {find(name)().about}")
        return 0
    name, *rest = words
    if name in ("-h", "--help"):
        print("usage: inward train RECIPE [options]; inward train lists the recipes,")
        print("       inward train RECIPE --help shows every field with its default")
        return 0
    if name.startswith("-"):
        raise UsageError(f"name the recipe before its options: inward train RECIPE {name} ...")
    if name not in RECIPES:
        raise UsageError(unknown("recipe", name, RECIPES))
    recipe = find(name)()
    options = parse(_overrides(recipe), rest, f"inward train {name}")
    if options is None:
        return 0
    changed = {f.name: getattr(options, f.name) for f in fields(options)}
    out, resume = changed.pop("out"), changed.pop("resume")
    return _train_recipe(replace(recipe, **changed), out, resume=resume)


def _overrides(recipe: Any) -> type:
    """A dataclass of the recipe's fields, with its values as defaults, and where to write."""
    hints = get_type_hints(type(recipe))
    entries: list[Any] = []
    for entry in fields(recipe):
        value = getattr(recipe, entry.name)
        # the type of the value, not of the field: a union would offer a choice of data sets
        kind = type(value) if is_dataclass(value) else hints[entry.name]
        if entry.name not in ("name", "about"):
            entries.append((entry.name, kind, field(default=value)))
    entries.append(("out", Path, field(default=Path("runs") / recipe.name)))
    entries.append(("resume", bool, field(default=False)))
    about = (
        f"{recipe.about}\n\n--out is the folder of the run. A run that stopped goes on by the same "
        "command; --resume insists that there is one."
    )
    return make_dataclass("Train", entries, namespace={"__doc__": about})


def _train_recipe(recipe: Any, out: Path, *, resume: bool) -> int:
    from inward.train import train as train_run

    if resume and not (out / "states").is_dir():
        raise ValueError(f"there is no run to resume in {out}; name its folder with --out")
    quiet()
    run = recipe.build()
    summary = train_run(run, recipe.train, out)
    if os.environ.get("RANK", "0") != "0":
        return 0
    from inward.data.folder import write_json

    write_json(out / "model" / "recipe.json", asdict(recipe))
    console = _console()
    for name, value in summary.items():
        console.print(f"  {name:<20}{value}", highlight=False, soft_wrap=True)
    console.print(f"model: {out / 'model'}   (inward eval {out / 'model'})", highlight=False)
    return 0


# --------------------------------------------------------------------------------------------------
# eval and solve


def _check_pictures(*paths: Path | None) -> None:
    """Refuse pictures that cannot be written before any work."""
    from inward.viz import plots

    for path in paths:
        if path is not None:
            plots.kind_of(path)
            if not plots.available():
                raise ValueError(plots.MISSING)


@dataclass(kw_only=True)
class _Thinking:
    """Options that eval and solve share."""

    task: str = ""
    """sudoku4, sudoku6, sudoku9, maze, arc; empty: that of the model's recipe"""
    max_steps: int | None = None
    """supervision steps; None: as in training, in proportion for larger grids"""
    halt: str = "q+stable"
    """when to stop: q (the paper's), stable, q+stable, never"""
    rollouts: int = 1
    """attempts per puzzle; more than one need --noise"""
    noise: float = 0.0
    """strength of the noise on the latent (0.3 is the published one)"""
    symmetries: int = 0
    """further views of each puzzle that are solved too"""
    select: Literal["q", "majority", "verify"] = "q"
    """which answer counts: most believed, most frequent, or one that obeys the rules"""
    first_to_halt: bool = False
    """the first attempt that halts decides"""
    abstain_below: float | None = None
    """withhold answers that are believed less than this probability"""
    seed: int = 0
    """of noise and symmetries"""
    batch_size: int = 256
    """rows in work at a time"""
    threads: int | None = None
    """threads of torch"""

    def options(self, task: Any) -> dict[str, Any]:
        """Keywords for `solve`, those that eval and solve hand over alike."""
        if self.threads is not None:
            import torch

            if self.threads < 1:
                raise ValueError(f"threads is {self.threads}; use at least 1")
            torch.set_num_threads(self.threads)
        names = ("halt", "rollouts", "noise", "first_to_halt", "abstain_below", "batch_size")
        select = task.verify if self.select == "verify" else self.select
        return {name: getattr(self, name) for name in names} | {"select": select}


@dataclass(kw_only=True)
class Eval(_Thinking):
    """Accuracy of a model on its recipe's held-out puzzles, or on those of a file."""

    model: str
    """a shipped model's name, or the folder of a run or a model"""
    data: Path | None = None
    """.npz, .csv, .txt (Sudoku lines) or a dataset folder; None: the recipe's test puzzles"""
    num: int | None = None
    """the first so many puzzles; None: all"""
    size: int | None = None
    """mazes: side of the test mazes, if not that of the training"""
    by_step: bool = True
    """leave out the second run, without halting, that counts after every step"""
    out: Path | None = None
    """file to which the result is added as one JSON line"""
    figure: Path | None = None
    """.svg or .png of accuracy by step"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.evals.run import append_row, command_line, evaluate
        from inward.viz import plots, terminal

        if self.figure is not None and not self.by_step:
            raise ValueError("--figure draws accuracy by step; leave out --no-by-step")
        _check_pictures(self.figure)
        puzzles, task, dataset = self.puzzles()
        model = _load(self.model)
        result = evaluate(
            model,
            puzzles,
            task,
            what=self.model,
            dataset=dataset,
            max_steps=self.max_steps,
            num_symmetries=self.symmetries,
            seed=self.seed,
            by_step=self.by_step,
            progress=sys.stderr.isatty(),
            command=command_line(["eval", *words]),
            **self.options(task),
        )
        _console().print(terminal.result_tables(result))
        if self.out is not None:
            append_row(self.out, result.to_row())
        if self.figure is not None:
            plots.save(plots.accuracy_by_step([result.to_row()]), self.figure)
        return 0

    def puzzles(self) -> tuple[Any, Any, str]:
        """Puzzles, their task, and what to call them."""
        from inward.evals.run import first, read_puzzles, recipe_of, task_named
        from inward.recipes.trm import MazeData

        if self.data is not None:
            task = task_named(self.task) if self.task else recipe_of(self.model).task()
            puzzles = read_puzzles(self.data, task, num=self.num)
            if task.name.startswith("maze"):
                task = task_named("maze", puzzles.grid)
            return puzzles, task, str(self.data)
        if self.task:
            raise ValueError("--task says what a file holds; name the file with --data")
        recipe = recipe_of(self.model)
        if self.size is None:
            return first(recipe.test_puzzles(), self.num), recipe.task(), f"{recipe.name} test"
        if not isinstance(recipe.data, MazeData):
            raise ValueError(f"--size is for models of generated mazes, not for {recipe.name}")
        puzzles = recipe.data.puzzles("test", self.size)
        name = f"{recipe.name} {self.size}x{self.size} test"
        return first(puzzles, self.num), task_named("maze", puzzles.grid), name


@dataclass(kw_only=True)
class Solve(_Thinking):
    """Solve puzzles that you type: digits and dots for a Sudoku, lines of '# SG' for a maze."""

    model: str
    """a shipped model's name, or the folder of a run or a model"""
    puzzle: tuple[str, ...]
    """puzzles (quote them); - reads one from standard input"""
    file: Path | None = None
    """text with one Sudoku a line, or mazes with an empty line between; or .npz, .csv"""
    show: bool = False
    """the draft as it is rewritten, step by step"""
    svg: Path | None = None
    """draw the first puzzle's steps to this file"""
    png: Path | None = None
    """the same as PNG"""
    trace: Path | None = None
    """write all traces to this file, one JSON line each"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.trace import write_traces
        from inward.viz import plots

        _check_pictures(self.svg, self.png)
        questions = self.questions()
        model = _load(self.model)
        for task, tokens in questions:
            if model.settings.vocab_size != task.vocab_size:
                raise ValueError(f"{self.model} was not trained on {task.name} puzzles")
            model.settings.layout(len(tokens), task.grid)
        traces = []
        for _, same in groupby(questions, key=lambda pair: pair[0].grid):
            traces += self.answer(model, list(same), alone=len(questions) == 1)
        if self.trace is not None:
            write_traces(traces, self.trace)
        for path in (self.svg, self.png):
            if path is not None:
                plots.save(plots.refinement(traces[0], questions[0][0]), path)
        return 0

    def questions(self) -> "list[tuple[Any, np.ndarray]]":
        """(task, tokens) of every puzzle given."""
        from inward.evals.run import parse_puzzle, puzzle_texts, read_puzzles, recipe_of, task_named

        task = task_named(self.task) if self.task else recipe_of(self.model).task()
        if self.file is not None and self.file.suffix in (".npz", ".csv"):
            kept = read_puzzles(self.file, task)
            return [(task_named(task.name, kept.grid), tokens) for tokens in kept.inputs]
        texts = [sys.stdin.read() if text == "-" else text for text in self.puzzle]
        if self.file is not None:
            texts += puzzle_texts(self.file.read_text(encoding="utf-8"), task)
        if not texts:
            raise ValueError("no puzzle given; type one after the model, or - or --file FILE")
        return [parse_puzzle(text, task) for text in texts]

    def answer(self, model: Any, questions: list[Any], *, alone: bool) -> list[Any]:
        """Solve puzzles of one size, print the answers, return the traces."""
        import numpy as np

        from inward.evals.run import default_steps

        task, inputs = questions[0][0], np.stack([tokens for _, tokens in questions])
        rng = np.random.default_rng(self.seed)
        steps = default_steps(model, inputs.shape[1]) if self.max_steps is None else self.max_steps
        solution = model.solve(
            inputs,
            grid=task.grid,
            max_steps=steps,
            symmetries=[task.symmetry(rng) for _ in range(self.symmetries)],
            seed=self.seed,
            trace=True,
            **self.options(task),
        )
        for row, tokens in enumerate(inputs):
            solution.traces[row].meta["task"] = task.name
            self.tell(solution, row, task, tokens, "" if alone else f"puzzle {row + 1}")
        return solution.traces

    def tell(self, solution: Any, row: int, task: Any, tokens: Any, title: str) -> None:
        """Print one answer, what the rules say of it, and what it cost."""
        from inward.viz import sigmoid, terminal

        if self.show:
            terminal.play(solution.traces[row], task, console=_console(), title=title)
        elif title:
            print(title)
        answer = solution.answers[row].numpy()
        if bool(solution.answered[row]):
            print(task.format(answer, given=tokens))
        else:
            print("no answer: withheld, below --abstain-below; what it would have been:")
        verdict = "there is no rule to check it by"
        if task.name != "arc":
            right = bool(task.verify(tokens[None], answer[None])[0])
            verdict = "solved, by the rules" if right else "NOT solved, by the rules"
        print(
            f"{verdict}; belief {sigmoid(float(solution.q[row])):.2f}; "
            f"{int(solution.steps[row])} steps, "
            f"{float(solution.evaluations[row]):.0f} evaluations, "
            f"{terminal.flops_text(float(solution.flops[row]))}"
        )


# --------------------------------------------------------------------------------------------------
# bench and env


@dataclass(kw_only=True)
class Bench:
    """Measure start-up, training steps and solving; medians and quartiles over repeats."""

    subjects: tuple[str, ...]
    """startup, recipes, models, trm (the published Sudoku shape), huginn (30M parameters), coconut
    (4 layers of width 256); none: startup and the small recipes"""
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
    out: Path | None = None
    """file to which the rows are added as JSON lines"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.evals.bench import DEFAULT, bench, bench_table
        from inward.evals.run import append_row, command_line, machine

        rows = bench(
            self.subjects or DEFAULT,
            repeats=self.repeats,
            threads=self.threads,
            num_rows=self.rows,
            reference=self.reference,
            reference_packages=self.reference_packages,
            dtype=self.dtype,
            compile=self.compile,
            say=lambda text: print(text, file=sys.stderr),
        )
        where, command = machine(), command_line(["bench", *words])
        _console().print(bench_table(rows))
        print(where)
        if self.out is not None:
            for row in rows:
                append_row(self.out, replace(row, machine=where, command=command).to_row())
        return 0


@dataclass(kw_only=True)
class Env:
    """Versions, threads, processor, devices and shipped checkpoints, for bug reports."""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.evals.bench import environment

        for name, value in environment().items():
            print(f"{name:<14}{value}")
        return 0
