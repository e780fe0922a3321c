"""ARC-AGI from checkpoints to a score and a submission: ask, vote, count, write.

    result = evaluate_arc(["runs/a/model", "runs/b/model"], data.arc_set(), submission="sub.json")

Every test input of the held-out tasks is put to a model under every variant of its task. What comes
back is turned back and voted on (`inward.evals.voting`): once for each checkpoint alone and once
over all checkpoints so far, which is what the reference reports as its result.

Two sources of questions give the same votes: an `ArcSet`, whose variants are made as they are read,
and a dataset folder with all of them written out (the published recipes'; the reference's own).

A large set takes long (ARC-AGI-1 has 420,000 rows a checkpoint), so with `state` the votes are
kept in a folder and a killed evaluation goes on from there. Asking again with one more checkpoint
adds its votes to those that are there.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from inward.data.drawn import drawn
from inward.data.puzzles.arc import GRID, VOCAB_SIZE, ArcSet, Task, Variant, read_kaggle
from inward.data.puzzles.folder import Folder, Rows, read_json, write_json
from inward.evals.rows import machine
from inward.evals.stats import wilson
from inward.evals.voting import KS, Voting, votes_from
from inward.tasks.arc import ArcTask

if TYPE_CHECKING:
    from rich.table import Table

_FORMAT = "inward-arc-1"
_BATCHES_AT_ONCE = 4  # handed to the solver: a chain that halts leaves its place to one that waits
_LAST, _ALL = "arc/pass@", "arc/accumulated/pass@"


# -- Questions -----------------------------------------------------------------------------------


class Examples(Protocol):
    """Where questions are read: `data.arc.Split`, or the test split of a `Folder`."""

    group_indices: np.ndarray
    puzzle_indices: np.ndarray

    def tokens(self, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return inputs (n, 900), labels (n, 900), 0 where not scored, and identifiers (n,)."""
        ...


@dataclass(frozen=True, eq=False)
class ArcQuestions:
    """What models are asked: rows of `examples`; `names` says which variant an identifier is."""

    tasks: tuple[Task, ...]
    names: Sequence[str]
    examples: Examples
    rows: np.ndarray

    @classmethod
    def of(cls, made: ArcSet) -> ArcQuestions:
        """All held-out questions of a set. Raises ValueError if nothing is held out."""
        if made.test is None:
            raise ValueError("the set holds no task out; build it with an evaluation subset")
        return cls(made.held_out, list(made.names()), made.test, np.arange(len(made.test)))

    @classmethod
    def read(cls, path: str | os.PathLike) -> ArcQuestions:
        """All questions of a dataset folder: test/, identifiers.json, test_puzzles.json.

        Raises FileNotFoundError or ValueError for a file that is missing or of another build.
        """
        folder = Folder(path, "test")
        if (folder.info.seq_len, folder.info.vocab_size) != (GRID[0] * GRID[1], VOCAB_SIZE):
            raise ValueError(
                f"{path} holds {folder.info.seq_len} cells of {folder.info.vocab_size} tokens; "
                f"a folder of ARC has {GRID[0] * GRID[1]} of {VOCAB_SIZE}"
            )
        tasks = tuple(read_kaggle(Path(path) / "test_puzzles.json", subset="evaluation"))
        return cls(tasks, folder.names(), folder, np.arange(len(folder)))

    def part(
        self, *, num_tasks: int | None = None, num_variants: int | None = None, seed: int = 0
    ) -> ArcQuestions:
        """So many of the tasks, drawn by `seed`, or only so many variants of each besides the
        original (they are random already).

        Raises ValueError for more tasks than there are, and for numbers below 1 and 0.
        """
        if num_variants is not None and num_variants < 0:
            raise ValueError(f"variants is {num_variants}; use at least 0, or None for all")
        starts = np.asarray(self.examples.group_indices, np.int64)
        some = drawn(len(starts) - 1, num_tasks, seed=seed, what="tasks")
        firsts, ends = starts[:-1][some], starts[1:][some]
        if num_variants is not None:
            ends = np.minimum(ends, firsts + 1 + num_variants)
        cuts = np.asarray(self.examples.puzzle_indices, np.int64)
        spans = zip(cuts[firsts].tolist(), cuts[ends].tolist(), strict=True)
        rows = np.concatenate([np.arange(start, end) for start, end in spans])
        found = self.examples.tokens(cuts[firsts])[2]
        asked = {Variant.parse(self.names[int(i)])[0] for i in found}
        tasks = tuple(task for task in self.tasks if task.name in asked)
        return ArcQuestions(tasks, self.names, self.examples, rows)

    @property
    def num_tests(self) -> int:
        """Test inputs of the tasks, each asked under every variant."""
        return sum(len(task.test) for task in self.tasks)

    def digest(self) -> str:
        """A number that stands for tasks, variants and rows in a saved state."""
        found = hashlib.sha256("\n".join(self.names).encode())
        found.update("\n".join(task.name for task in self.tasks).encode())
        found.update(self.rows.astype("<i8").tobytes())
        return found.hexdigest()


# -- Evaluation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArcResult:
    """What was asked of which checkpoints, what came out, at what cost.

    reports: one a checkpoint, 'arc/pass@K' by its own votes and 'arc/accumulated/pass@K' by those
        of all up to it, 'arc/exact_accuracy': share of rows whose every scored cell is right,
        'arc/unanswered': test inputs without a vote. No scores where no answer is known.
    intervals: 95 % of the last report's pass@K, over tasks (Wilson, which is wide rather than
        narrow for tasks with several tests).
    num_rows: questions per checkpoint: test inputs times variants.
    steps, flops: means per row, over all checkpoints.
    """

    models: tuple[str, ...]
    dataset: str
    num_tasks: int
    num_tests: int
    num_rows: int
    reports: tuple[dict[str, float], ...]
    intervals: dict[str, tuple[float, float]]
    steps: float
    flops: float
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    machine: str = ""
    command: str = ""

    def to_row(self) -> dict[str, Any]:
        """JSON values, for `inward.evals.rows.append_row`."""
        return asdict(self)


def evaluate_arc(
    models: Any,
    questions: ArcSet | ArcQuestions,
    *,
    max_steps: int | None = None,
    halt: Any = "never",
    batch_size: int = 64,
    ks: Sequence[int] = KS,
    submission: str | os.PathLike | None = None,
    submit: Literal["accumulated", "last"] = "accumulated",
    state: str | os.PathLike | None = None,
    save_every: float = 60.0,
    device: str = "auto",
    dataset: str = "ARC",
    progress: bool = False,
    command: str = "",
) -> ArcResult:
    """Ask every model every question, vote, score, and write the submission.

    Args:
        models: checkpoints in the order of their training: folders, names of shipped models, or
            models (a TRM, or anything with its `solve` and `settings`); one, or a list. Folders
            are loaded one at a time.
        max_steps: supervision steps; None: N_sup, as the reference.
        halt: a halting rule or its name (`inward.common.halting`); the reference never halts early.
        batch_size: rows in work at a time.
        submission: file for the competition's JSON, written at the end (under a temporary name,
            then renamed).
        submit: which votes go into it: of all checkpoints, or of the last alone.
        state: folder in which votes are kept every `save_every` seconds and after each checkpoint.
        device: where folders are loaded to ("auto": an accelerator if there is one); models that
            are given as such stay where they are.
    Raises:
        FileNotFoundError, ValueError: a checkpoint, a file or an option does not fit, before any
            work where that can be known.
    """
    asked = questions if isinstance(questions, ArcQuestions) else ArcQuestions.of(questions)
    checkpoints = list(models) if isinstance(models, list | tuple) else [models]
    settings = {"max_steps": max_steps, "halt": str(halt), "ks": list(ks)}
    _check(checkpoints, submission, submit, batch_size)
    voting = Voting(asked.tasks, ks=ks)
    store = _Store(state, checkpoints, {"questions": asked.digest(), **settings})
    work = _ArcWork(
        asked, voting, store, store.load(voting), max_steps, halt, batch_size, save_every
    )
    work.run(checkpoints, device, progress)
    if submission is not None:
        write_json(submission, voting.submission(accumulated=submit == "accumulated"))
    done = work.done
    return ArcResult(
        models=tuple(_name(checkpoint) for checkpoint in checkpoints),
        dataset=dataset,
        num_tasks=len(asked.tasks),
        num_tests=asked.num_tests,
        num_rows=len(asked.rows),
        reports=tuple(done.reports),
        intervals=_intervals(voting),
        steps=done.steps / (len(asked.rows) * len(checkpoints)),
        flops=done.flops / (len(asked.rows) * len(checkpoints)),
        seconds=done.seconds,
        settings=settings | {"submit": submit, "batch_size": batch_size},
        machine=machine(),
        command=command or "python: inward.evals.arc.evaluate_arc",
    )


def _check(checkpoints: list[Any], submission: Any, submit: str, batch_size: int) -> None:
    if not checkpoints:
        raise ValueError("no model to evaluate; give at least one")
    if submit not in ("accumulated", "last"):
        raise ValueError(f"submit is {submit!r}; choose 'accumulated' or 'last'")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if submission is not None and Path(submission).is_dir():
        raise ValueError(f"{submission} is a folder; name a file for the submission")
    for checkpoint in checkpoints:
        if isinstance(checkpoint, str | Path):
            from inward.hub import resolve

            resolve(checkpoint)


def _name(checkpoint: Any) -> str:
    return str(checkpoint) if isinstance(checkpoint, str | Path) else type(checkpoint).__name__


def _loaded(checkpoint: Any, device: str) -> Any:
    if not isinstance(checkpoint, str | Path):
        return checkpoint
    import torch

    from inward.hub import load

    where: Any = device
    if device == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        where = "cpu" if found is None else found
    return load(checkpoint).to(where)


def _check_fit(model: Any, questions: ArcQuestions, name: str) -> None:
    settings = model.settings
    if settings.vocab_size != VOCAB_SIZE:
        raise ValueError(
            f"{name} knows {settings.vocab_size} tokens, ARC has {VOCAB_SIZE}; "
            "it was trained on something else"
        )
    if settings.num_identifiers != len(questions.names):
        raise ValueError(
            f"{name} has {settings.num_identifiers} identifiers, the questions "
            f"{len(questions.names)}; ask it with the tasks, variants and seed of its training"
        )
    settings.layout(GRID[0] * GRID[1], GRID)


def _intervals(voting: Voting) -> dict[str, tuple[float, float]]:
    found = {}
    for prefix, accumulated in ((_LAST, False), (_ALL, True)):
        scores = np.array(list(voting.task_scores(accumulated=accumulated).values()))
        if len(scores):
            for k, right in zip(voting.ks, scores.sum(axis=0).tolist(), strict=True):
                share = wilson(right, len(scores))
                found[f"{prefix}{k}"] = (share.low, share.high)
    return found


@dataclass
class _Done:
    """How far an evaluation is: `row` rows of checkpoint number `checkpoint`, and sums so far."""

    checkpoint: int = 0
    row: int = 0
    exact: int = 0  # rows of this checkpoint
    labelled: int = 0
    steps: int = 0  # of all checkpoints
    flops: float = 0.0
    seconds: float = 0.0
    reports: list[dict[str, float]] = field(default_factory=list)


@dataclass
class _ArcWork:
    """One evaluation under way."""

    questions: ArcQuestions
    voting: Voting
    store: _Store
    done: _Done
    max_steps: int | None
    halt: Any
    batch_size: int
    save_every: float

    def run(self, checkpoints: list[Any], device: str, progress: bool) -> None:
        from tqdm import tqdm

        num_rows = len(self.questions.rows)
        with tqdm(
            total=num_rows * len(checkpoints),
            initial=self.done.checkpoint * num_rows + self.done.row,
            disable=not progress,
            unit="grid",
            desc="ARC",
        ) as bar:
            for number in range(self.done.checkpoint, len(checkpoints)):
                model = _loaded(checkpoints[number], device)
                _check_fit(model, self.questions, _name(checkpoints[number]))
                for num in self._ask_all(model):
                    bar.update(num)

    def _ask_all(self, model: Any) -> Iterator[int]:
        """Put all questions that are left to one checkpoint; yields how many were answered."""
        done, rows = self.done, self.questions.rows
        if done.row == 0:
            self.voting.begin()
        size, saved = _BATCHES_AT_ONCE * self.batch_size, time.monotonic()
        while done.row < len(rows):
            part = rows[done.row : done.row + size]
            began = time.perf_counter()
            self._ask(model, part)
            done.row += len(part)
            done.seconds += time.perf_counter() - began
            if time.monotonic() - saved >= self.save_every and done.row < len(rows):
                self.store.save(self.voting, done)
                saved = time.monotonic()
            yield len(part)
        # scores are NaN where no answer is known, and JSON has no such number
        report = {key: v for key, v in self.voting.report().items() if not math.isnan(v)}
        if done.labelled:
            report["arc/exact_accuracy"] = done.exact / done.labelled
        done.reports.append(report)
        done.checkpoint, done.row, done.exact, done.labelled = done.checkpoint + 1, 0, 0, 0
        self.store.save(self.voting, done)

    def _ask(self, model: Any, rows: np.ndarray) -> None:
        inputs, labels, identifiers = self.questions.examples.tokens(rows)
        solution = model.solve(
            inputs,
            identifiers=identifiers,
            grid=GRID,
            max_steps=self.max_steps,
            halt=self.halt,
            batch_size=self.batch_size,
        )
        tokens = solution.answers.numpy()
        self.voting.add(
            votes_from(
                self.questions.names,
                identifiers=identifiers,
                inputs=inputs,
                tokens=tokens,
                logits=solution.q.numpy(),
            )
        )
        labelled = (labels > 0).any(axis=1)
        self.done.labelled += int(labelled.sum())
        self.done.exact += int((ArcTask().exact(labels, tokens) & labelled).sum())
        self.done.steps += int(solution.steps.sum())
        self.done.flops += float(solution.flops.sum())


# -- State ---------------------------------------------------------------------------------------


class _Store:
    """Votes in a folder: evaluation.json tells how far they go and which file holds them.

    The votes' file is written first, under a new name, so that the two always belong together.
    """

    def __init__(self, path: Any, checkpoints: list[Any], identity: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.identity = {"format": _FORMAT, **identity}
        self.models = [] if path is None else [_fingerprint(c) for c in checkpoints]

    def load(self, voting: Voting) -> _Done:
        """Put the saved votes into `voting`; ValueError if they are of another evaluation."""
        if self.path is None or not (self.path / "evaluation.json").is_file():
            return _Done()
        found = read_json(self.path / "evaluation.json")
        other = f"{self.path} holds votes of another evaluation"
        remedy = "; name another folder, or remove this one"
        if not isinstance(found, dict) or found.get("identity") != self.identity:
            raise ValueError(f"{other} (tasks, variants, steps, halting or K differ){remedy}")
        try:
            begun, votes, done = found["models"], found["votes"], _Done(**found["done"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path / 'evaluation.json'} is damaged ({error!r}){remedy}"
            ) from error
        if begun != self.models[: len(begun)]:
            raise ValueError(
                f"{other}: its {len(begun)} checkpoints are not the first ones of the "
                f"{len(self.models)} given{remedy}"
            )
        voting.restore(self.path / votes)
        return done

    def save(self, voting: Voting, done: _Done) -> None:
        if self.path is None:
            return
        name = f"votes-{done.checkpoint}-{done.row}.json"
        voting.save(self.path / name)
        state = {
            "identity": self.identity,
            "models": self.models[: done.checkpoint + (done.row > 0)],
            "votes": name,
            "done": asdict(done),
        }
        write_json(self.path / "evaluation.json", state)
        for old in self.path.glob("votes-*.json"):
            if old.name != name:
                old.unlink()


def _fingerprint(checkpoint: Any) -> str:
    """A number that stands for the weights of a folder or a model."""
    digest = hashlib.sha256()
    if isinstance(checkpoint, str | Path):
        from inward.hub import resolve

        for path in sorted(resolve(checkpoint).glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    elif hasattr(checkpoint, "state_dict"):
        for name, tensor in sorted(checkpoint.state_dict().items()):
            digest.update(name.encode())
            digest.update(_bytes(tensor))
    else:
        digest.update(type(checkpoint).__qualname__.encode())
    return digest.hexdigest()


def _bytes(tensor: Any) -> bytes:
    import torch

    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


# -- In the terminal -----------------------------------------------------------------------------


def arc_table(result: ArcResult) -> Table:
    """pass@K of the last checkpoint and, if there are several, over all of them, with intervals."""
    from rich.box import SIMPLE
    from rich.table import Table

    shown = {_LAST: "last checkpoint"}
    if len(result.models) > 1:
        shown[_ALL] = f"all {len(result.models)} checkpoints"
    table = Table(box=SIMPLE)
    for column in ("attempts", *(part for title in shown.values() for part in (title, "95 %"))):
        table.add_column(column, justify="right")
    for k in result.settings["ks"]:
        cells = []
        for prefix in shown:
            share = result.reports[-1].get(f"{prefix}{k}")
            if share is None:
                cells += ["not known", ""]
            else:
                low, high = result.intervals[f"{prefix}{k}"]
                cells += [f"{100 * share:.1f} %", f"{100 * low:.1f} - {100 * high:.1f}"]
        table.add_row(str(k), *cells)
    return table
