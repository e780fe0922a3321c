"""What is asked: pointer chasing, arithmetic chains, 6x6 Sudoku as text and as a grid.

One generator a task gives records (question, steps, answer), which every method that reads text
gets; the puzzles are the same questions as cells, where these stand in a fixed form. Validation and
test questions are held out by what makes two questions the same: the cycle of arrows, the
computations of a chain, the canonical form of a Sudoku.

    pointers  "4_1 0_3 ... | 2 3": three arrows on from node 2; a step is the node that is met
    chains    "a=5. b=a+3. b=?": a step is an equation
    sudoku    36 digits, 0 for a blank; a step is what naked and hidden singles tell at once
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from inward.data.puzzles.puzzles import Puzzles
from inward.data.puzzles.sudoku import sample_symmetry
from inward.data.puzzles.sudoku_canonical import canonical
from inward.data.puzzles.sudoku_solver import units
from inward.data.texts.hops import follow, random_cycle
from inward.data.thoughts import chains
from inward.data.thoughts.records import Record
from inward.recipes.coconut_data import ChainData
from inward.recipes.trm_data import SudokuData
from inward.tasks.sudoku import SudokuTask

Rewrite = Callable[[Record, np.random.Generator], Record]
SPLITS = ("train", "valid", "test")


class FrontierTask(Protocol):
    """What the arms need of a task; records and puzzles are the same for the same fields."""

    @property
    def name(self) -> str:
        """In rows and commands."""
        ...

    @property
    def max_steps(self) -> int:
        """Spoken steps at most."""
        ...

    @property
    def digits(self) -> bool:
        """Whether every digit is a token."""
        ...

    @property
    def thoughts(self) -> int:
        """Thoughts that stand for a step."""
        ...

    @property
    def longest_step(self) -> int:
        """Tokens of a step at most, its line end included."""
        ...

    def records(self, split: str) -> list[Record]:
        """Questions with steps and answers: "train", "valid" or "test"."""
        ...

    def words(self) -> list[str]:
        """Texts that hold every word, for the tokenizer."""
        ...

    def key(self, record: Record) -> Any:
        """What two records must not share if one is held out."""
        ...

    def level(self, record: Record) -> int:
        """Difficulty, for tables."""
        ...

    def rewrite(self) -> Rewrite | None:
        """The same question written anew at every visit of training, or None."""
        ...

    def cells(self, records: Sequence[Record]) -> Puzzles | None:
        """The same questions as cells; None where their form is not fixed."""
        ...

    def grid_task(self) -> Any:
        """Name, grid, alphabet and symmetries of those cells."""
        ...


def right(record: Record, text: str) -> bool:
    """Whether what was said ends with the answer, blanks left out."""
    said = text.rpartition("###")[2] if "###" in text else ""
    return "".join(said.split()) == "".join(record.answer.split())


# --------------------------------------------------------------------------------------------------
# Pointer chasing


@dataclass(frozen=True)
class Pointers:
    """A cycle of arrows through all nodes, a start and a number of hops; all graded equally often.

    One cycle is written with its arrows in a drawn order. Held out are whole cycles: a training
    question never shows all the arrows of a test question.
    """

    num_nodes: int = 8
    max_hops: int = 5
    num_train: int = 20_000
    num_valid: int = 250
    num_test: int = 500
    seed: int = 0
    name = "pointers"
    digits = False
    thoughts = 1
    longest_step = 2

    def __post_init__(self) -> None:
        if self.num_nodes < 3 or not 1 <= self.max_hops < self.num_nodes:
            raise ValueError(
                f"num_nodes {self.num_nodes} and max_hops {self.max_hops}: use 3 nodes or more, "
                "and 1 hop to one fewer than there are nodes"
            )

    @property
    def max_steps(self) -> int:
        """Spoken steps at most: the last node is the answer."""
        return self.max_hops - 1

    def records(self, split: str) -> list[Record]:
        """See `FrontierTask`."""
        return list(_pointers(self)[split])

    def words(self) -> list[str]:
        """Nodes are numbers, and so is the number of hops."""
        nodes = [str(i) for i in range(max(self.num_nodes, self.max_hops + 1))]
        arrows = [f"{a}_{b}" for a in nodes for b in nodes]
        return [" ".join([*nodes, *arrows, "|"]) + "\n### 0"]

    def key(self, record: Record) -> tuple[int, ...]:
        """The cycle."""
        return tuple(record.meta["next"])

    def level(self, record: Record) -> int:
        """Hops."""
        return record.meta["hops"]

    def rewrite(self) -> Rewrite:
        """The arrows in another order."""
        return _arrows_anew

    def cells(self, records: Sequence[Record]) -> Puzzles:
        """Cell i holds the target of node i, two more the start and the number of hops; the answer
        stands in the cell of the start. Token 0 is padding, then the numbers from 0."""
        n = self.num_nodes
        inputs = [(*r.meta["next"], r.meta["start"], r.meta["hops"]) for r in records]
        labels = np.zeros((len(records), n + 2), dtype=np.uint8)
        labels[:, n] = [int(r.answer) + 1 for r in records]
        task = self.grid_task()
        cells = np.array(inputs, dtype=np.uint8) + 1
        return Puzzles(cells, labels, task.grid, task.vocab_size)

    def grid_task(self) -> PointerCells:
        """See `FrontierTask`."""
        return PointerCells(self.num_nodes, self.max_hops)


@dataclass(frozen=True)
class PointerCells:
    """Pointer chasing as a row of cells."""

    num_nodes: int
    max_hops: int
    name = "pointers"
    blank = None

    def verify(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Which answers (B, L) name the node where the arrows of inputs (B, L) lead: (B,) bool."""
        n = self.num_nodes
        ends = [follow(row[:n] - 1, int(row[n]) - 1, int(row[n + 1]) - 1)[-1] for row in inputs]
        return np.asarray(answers)[:, n] == np.array(ends) + 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return 1, self.num_nodes + 2

    @property
    def vocab_size(self) -> int:
        """Padding and the numbers."""
        return 1 + max(self.num_nodes, self.max_hops + 1)


@functools.lru_cache(maxsize=4)
def _pointers(task: Pointers) -> Mapping[str, list[Record]]:
    taken: set[tuple[int, ...]] = set()
    made: dict[str, list[Record]] = {}
    for stream, split in enumerate(("test", "valid", "train")):
        rng = np.random.default_rng([task.seed, stream])
        cycles, found, tries = set(), [], 0
        while len(found) < getattr(task, f"num_{split}"):
            cycle = random_cycle(task.num_nodes, rng)
            tries += 1
            if tries > 1000 and not cycles:
                raise ValueError(
                    f"{task.num_nodes} nodes have too few cycles: those of test and validation "
                    "leave none; use more nodes, or hold out fewer questions"
                )
            if tuple(cycle.tolist()) not in taken:
                cycles.add(tuple(cycle.tolist()))
                found.append(_pointer(task, cycle, len(found) % task.max_hops + 1, rng))
        taken |= cycles
        made[split] = found
    return made


def _pointer(task: Pointers, cycle: np.ndarray, hops: int, rng: np.random.Generator) -> Record:
    path = follow(cycle, int(rng.integers(task.num_nodes)), hops).tolist()
    meta = {"next": cycle.tolist(), "start": path[0], "hops": hops}
    steps, answer = tuple(str(node) for node in path[1:-1]), str(path[-1])
    return _arrows_anew(Record("?", steps, answer, meta), rng)


def _arrows_anew(record: Record, rng: np.random.Generator) -> Record:
    after = record.meta["next"]
    arrows = " ".join(f"{a}_{after[a]}" for a in rng.permutation(len(after)).tolist())
    return replace(record, question=f"{arrows} | {record.meta['start']} {record.meta['hops']}")


# --------------------------------------------------------------------------------------------------
# Arithmetic chains


@dataclass(frozen=True)
class Equations:
    """Two or more operations in the order in which they are computed, and one quantity that nobody
    asks for (`inward.data.thoughts.chains`). No computation of training is in the tests."""

    max_steps: int = 4
    num_train: int = 12_000
    num_valid: int = 250
    num_test: int = 500
    seed: int = 0
    max_term: int = 9
    name = "chains"
    digits = True
    thoughts = 2

    @property
    def longest_step(self) -> int:
        """<<, two numbers below 100, the operand, + and = between them, >>, and the line end."""
        return 9 + len(str(self.max_term))

    def _data(self) -> ChainData:
        return ChainData(
            settings=chains.ChainSettings(
                min_steps=2,
                max_steps=self.max_steps,
                num_branches=1,
                max_term=self.max_term,
                max_factor=3,
                shuffled=False,
            ),
            num_train=self.num_train,
            num_valid=self.num_valid,
            num_test=self.num_test,
            seed=self.seed,
        )

    def records(self, split: str) -> list[Record]:
        """See `FrontierTask`."""
        return list(_chains(self, split))

    def words(self) -> list[str]:
        """See `FrontierTask`."""
        return self._data().words()

    def key(self, record: Record) -> Any:
        """The computation, names left out."""
        return chains.key(record)

    def level(self, record: Record) -> int:
        """Operations."""
        return len(record.steps)

    def rewrite(self) -> Rewrite:
        """Under other names."""
        return self._data().task().rewrite

    def cells(self, records: Sequence[Record]) -> None:
        """A chain has no fixed form."""

    def grid_task(self) -> None:
        """See `cells`."""


@functools.lru_cache(maxsize=8)
def _chains(task: Equations, split: Any) -> list[Record]:
    return task._data().split(split)


# --------------------------------------------------------------------------------------------------
# Sudoku


@dataclass(frozen=True)
class Grids:
    """6x6 Sudoku with a given number of clues. Training sees every puzzle under a fresh symmetry,
    as text and as a grid; test and validation are in no symmetric form among it."""

    clues: int = 20
    num_train: int = 4000
    num_valid: int = 250
    num_test: int = 500
    max_steps: int = 3
    """spoken at most; what singles tell later, and what they do not, is in the last one"""
    seed: int = 0
    name = "sudoku"
    digits = False
    thoughts = 2

    @property
    def longest_step(self) -> int:
        """Every blank cell with its digit, and the line end."""
        return 2 * (36 - self.clues) + 1

    def _data(self) -> SudokuData:
        return SudokuData(
            n=6,
            num_train=self.num_train,
            num_valid=self.num_valid,
            num_test=self.num_test,
            clues=(self.clues,),
            seed=self.seed,
        )

    def records(self, split: str) -> list[Record]:
        """See `FrontierTask`."""
        return list(_grids(self)[split])

    def words(self) -> list[str]:
        """See `FrontierTask`."""
        cells = " ".join(cell_name(i) for i in range(36))
        return [f"0 1 2 3 4 5 6 {cells}\n### 0"]

    def key(self, record: Record) -> bytes:
        """The canonical form."""
        found = canonical(np.array(record.meta["puzzle"], dtype=np.uint8), n=6)
        assert isinstance(found, bytes), "one row, one form"
        return found

    def level(self, record: Record) -> int:
        """Rounds of singles."""
        return record.meta["rounds"]

    def rewrite(self) -> Rewrite:
        """Under a drawn symmetry."""
        return _turned

    def cells(self, records: Sequence[Record]) -> Puzzles:
        """See `FrontierTask`."""
        inputs, labels = (
            np.array([r.meta[name] for r in records], dtype=np.uint8)
            for name in ("puzzle", "solution")
        )
        return Puzzles(inputs, labels, (6, 6), 8)

    def grid_task(self) -> SudokuTask:
        """See `FrontierTask`."""
        return SudokuTask(6)

    def record(self, puzzle: np.ndarray, solution: np.ndarray) -> Record:
        """A puzzle (36,) and its solution, as tokens, written down."""
        found, order = rounds(puzzle, solution), np.zeros(len(puzzle), dtype=np.uint8)
        for number, group in enumerate(found, start=1):
            order[group] = min(number, self.max_steps)
        return _written(puzzle, solution, order, len(found))


def cell_name(cell: int) -> str:
    """One word for a cell: r1c1 to r6c6."""
    return f"r{cell // 6 + 1}c{cell % 6 + 1}"


def _digits(tokens: np.ndarray) -> str:
    return " ".join(str(token - 1) for token in tokens.tolist())


@functools.lru_cache(maxsize=2)
def _grids(task: Grids) -> Mapping[str, list[Record]]:
    made = {}
    for split in SPLITS:
        puzzles = task._data().puzzles(split)
        pairs = zip(puzzles.inputs, puzzles.labels, strict=True)
        made[split] = [task.record(puzzle, solution) for puzzle, solution in pairs]
    return made


def _written(puzzle: np.ndarray, solution: np.ndarray, order: np.ndarray, num: int) -> Record:
    """order (L,): the step that fills a cell, from 1; 0 where a clue stands."""
    steps = []
    for number in range(1, int(order.max()) + 1):
        cells = np.flatnonzero(order == number).tolist()
        steps.append(" ".join(f"{cell_name(i)} {solution[i] - 1}" for i in cells))
    meta = {"puzzle": puzzle.tolist(), "solution": solution.tolist(), "order": order.tolist()}
    return Record(_digits(puzzle), tuple(steps), _digits(solution), meta | {"rounds": num})


def _turned(record: Record, rng: np.random.Generator) -> Record:
    symmetry = sample_symmetry(6, rng)
    where = replace(symmetry, digits=np.arange(1, 7))  # steps are numbers, not digits
    puzzle, solution, order = (
        kind.apply(np.array(record.meta[name], dtype=np.uint8))
        for kind, name in ((symmetry, "puzzle"), (symmetry, "solution"), (where, "order"))
    )
    return _written(puzzle, solution, order, record.meta["rounds"])


def rounds(puzzle: np.ndarray, solution: np.ndarray) -> list[list[int]]:
    """Blank cells (by number) in the order in which they can be filled: in each round those that
    are naked or hidden singles by what stood before it; what singles do not tell comes last.

    puzzle, solution: (L,) tokens, digit d is d + 1, a blank 1.
    """
    all_units = units(int(len(puzzle) ** 0.5))
    shown = _seen_by(len(puzzle))
    now, blank = np.array(puzzle), [int(i) for i in np.flatnonzero(puzzle == 1)]
    found: list[list[int]] = []
    while blank:
        ruled = {cell: set(now[shown[cell]].tolist()) for cell in blank}
        told = [
            cell
            for cell in blank
            if len(ruled[cell] - {1}) == len(all_units) // 3 - 1
            or _hidden_single(cell, int(solution[cell]), ruled, all_units)
        ] or blank
        found.append(told)
        now[told] = solution[told]
        blank = [cell for cell in blank if cell not in set(told)]
    return found


def _hidden_single(
    cell: int, digit: int, ruled: Mapping[int, set[int]], all_units: np.ndarray
) -> bool:
    """Whether a unit has no other place for the digit; `ruled` holds what blank cells cannot be."""
    return any(
        all(digit in ruled[other] for other in unit.tolist() if other in ruled and other != cell)
        for unit in all_units
        if cell in unit
    )


@functools.cache
def _seen_by(num_cells: int) -> list[np.ndarray]:
    """Of every cell the others of its row, column and box."""
    all_units = units(int(num_cells**0.5))
    return [
        np.setdiff1d(np.unique(all_units[(all_units == cell).any(1)]), [cell])
        for cell in range(num_cells)
    ]
