"""The Sudoku that people paste: TRM on the candidate cube, any number of generated puzzles.

A regime of its own, not the paper's 1,000 puzzles: the mixer is told the units, and the data is as
much as it takes. Four kinds of puzzles, mixed by `shares`:

    plain    random irreducible ones, 20 to 29 clues
    hard     found by a walk towards many guesses, 10 or more (`inward.data.puzzles.sudoku_hard`)
    extreme  by a longer walk, 40 or more
    broken   with one wrong clue and no solution, from which the halting head learns to say no

Two runs: `sudoku9-cube-start` learns on short lives and mostly plain puzzles, `sudoku9-cube` goes
on from its weights with longer lives, harder puzzles and a rate that falls at the end.

Symmetries: the cube is equivariant under permuted digits, rows and bands by construction; so a row
is only transposed, or not.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inward.data.puzzles import sudoku
from inward.data.puzzles.puzzles import Puzzles
from inward.data.puzzles.sudoku_canonical import canonical_rows
from inward.data.puzzles.sudoku_hard import hard_sudokus
from inward.data.puzzles.sudoku_solver import BLANK, conflicts, solve
from inward.methods.trm.settings import TRMSettings
from inward.recipes.trm import TRMRecipe
from inward.recipes.trm_data import _joined
from inward.tasks.sudoku import SudokuTask
from inward.train.settings import OptimSettings, TrainSettings

if TYPE_CHECKING:
    from torch import Tensor

    from inward.data.puzzles.source import Source
    from inward.train.loop import Run

_CHUNK = 10_000
KINDS = ("plain", "hard", "extreme", "broken")


@dataclass(frozen=True)
class CubeData:
    """Generated 9x9 Sudoku; training puzzles are made once (minutes) and kept in `path`."""

    num_plain: int = 60_000
    num_hard: int = 2000
    num_extreme: int = 0
    num_broken: int = 3000
    shares: tuple[float, float, float, float] = (0.74, 0.24, 0.0, 0.02)
    """of plain, hard, extreme and broken puzzles among those that training starts"""
    sizes: tuple[int, ...] = ()
    """grids, 4 or 6, that are trained on beside 9: in turn, at every `every`-th step"""
    every: int = 8
    num_small: int = 2000
    """puzzles of each such size; 4x4 has few that differ by more than symmetry"""
    num_valid: int = 2000
    num_test: int = 2000
    look: int = 128
    """validation puzzles of each kind looked at during training"""
    exclude: tuple[str, ...] = ()
    """files of puzzles, one a line: none of them in any symmetric form is trained on"""
    path: str = "runs/sudoku9-cube-data"
    seed: int = 9
    hard_seed: int = 2

    def task(self) -> SudokuTask:
        return SudokuTask(9)

    def puzzles(self, split: str) -> Puzzles:
        """The plain puzzles of "test", "valid" or "train", made anew. Later ones leave out the
        earlier."""
        if split == "valid":
            return _plain(self.num_valid, 1000 * self.seed + 2, None)
        held_out = self.puzzles("valid")
        if split == "test":
            return _plain(self.num_test, 1000 * self.seed + 1, held_out)
        held_out = _joined(held_out, self.puzzles("test"))
        parts = [
            _plain(min(_CHUNK, self.num_plain - first), 1000 * self.seed + 100 + i, held_out)
            for i, first in enumerate(range(0, self.num_plain, _CHUNK))
        ]
        return functools.reduce(_joined, parts)

    def notes(self) -> list[str]:
        """What a person who trains should know: nothing out of the ordinary."""
        return []

    def fresh(self, num: int, seed: int) -> Puzzles:
        """More plain puzzles; among 5.5e9 grids they meet none of training."""
        return _plain(num, seed, None)

    def kept(self, kind: str) -> Puzzles:
        """Training puzzles of one kind: read from `path`, or made and written there."""
        number = getattr(self, f"num_{kind}")
        file = Path(self.path) / f"{kind}-{number}-{self.seed}.npz"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            self._made(kind).save(file, compress=True)
        return _without(Puzzles.load(file), self.exclude)

    def _made(self, kind: str) -> Puzzles:
        if kind == "plain":
            return self.puzzles("train")
        if kind == "hard":
            return hard_sudokus(self.num_hard, seed=self.hard_seed)
        if kind == "extreme":
            rated = {"min_rating": 40, "max_rating": 400, "steps": 400}
            return hard_sudokus(self.num_extreme, seed=self.hard_seed + 1, **rated)
        return broken_sudokus(self.kept("plain"), self.num_broken, seed=self.seed)

    def source(self) -> Source:
        used = [kind for kind, share in zip(KINDS, self.shares, strict=True) if share > 0]
        shares = tuple(share for share in self.shares if share > 0)
        small = [
            sudoku.generate(self.num_small if n > 4 else 500, n=n, seed=1000 * self.seed + n)
            for n in self.sizes
        ]
        kinds = [self.kept(kind) for kind in used]
        return CubeSource(kinds, shares, seed=self.seed, small=small, every=self.every)


def _plain(num: int, seed: int, exclude: Puzzles | None) -> Puzzles:
    symmetric = exclude is not None
    return sudoku.generate(num, n=9, seed=seed, exclude=exclude, exclude_symmetric=symmetric)


def _without(puzzles: Puzzles, files: tuple[str, ...]) -> Puzzles:
    """Those that are no symmetric image of a puzzle in `files`."""
    if not files:
        return puzzles
    keys: set[bytes] = set()
    for file in files:
        keys |= set(canonical_rows(sudoku.read_lines(file, solve=False).inputs, n=9))
    mine = [_key(row) not in keys for row in puzzles.inputs]
    return puzzles.select(np.flatnonzero(mine))


def _key(row: np.ndarray) -> bytes | None:
    """The class of a puzzle; contradictory clues have none and are on no list."""
    return None if conflicts(row[None]).any() else canonical_rows(row[None], n=9)[0]


def broken_sudokus(puzzles: Puzzles, num: int, *, seed: int, more: int = 12) -> Puzzles:
    """Make `num` puzzles without solution: up to `more` further clues, then one clue changed to a
    digit that repeats nowhere, so that only thinking finds the fault. Labels are PAD: there is
    nothing to answer."""
    rng = np.random.default_rng([seed, 3])
    found: list[np.ndarray] = []
    while len(found) < num:
        i = int(rng.integers(len(puzzles)))
        row = puzzles.inputs[i].copy()
        given = rng.permutation(np.flatnonzero(row == BLANK))[: rng.integers(more + 1)]
        row[given] = puzzles.labels[i][given]
        cell = rng.choice(np.flatnonzero(row != BLANK))
        row[cell] = rng.choice([d for d in range(2, 11) if d != row[cell]])
        if not conflicts(row[None]).any() and not len(solve(row, limit=1).solutions):
            found.append(row)
    inputs = np.array(found)
    rating = np.zeros(num, dtype=np.int32)
    return Puzzles(inputs, np.zeros_like(inputs), grid=(9, 9), vocab_size=11, rating=rating)


class CubeSource:
    """Draw every row: its kind by `shares`, the puzzle evenly, transposed half of the time (where
    boxes are square). At every `every`-th step the rows are of a set in `small`, in turn."""

    def __init__(
        self,
        kinds: list[Puzzles],
        shares: tuple[float, ...],
        *,
        seed: int,
        small: Sequence[Puzzles] = (),
        every: int = 8,
    ) -> None:
        if len(kinds) != len(shares) or min(shares) < 0 or not sum(shares) > 0:
            raise ValueError(f"shares {shares} must be {len(kinds)} numbers >= 0, not all 0")
        self.kinds = kinds
        self.edges = np.cumsum(shares) / sum(shares)
        self.seed = seed
        self.inputs = np.concatenate([kind.inputs for kind in kinds]).astype(np.int64)
        labels = np.concatenate([kind.labels for kind in kinds]).astype(np.int64)
        self.labels = np.where(labels == 0, -100, labels)
        self.small, self.every = small, every

    def batch(self, step: int, rows: range, num_rows: int) -> dict[str, Tensor]:
        """See `inward.data.puzzles.source.Source.batch`."""
        u = np.random.default_rng([self.seed, step]).random((num_rows, 3))
        u = u[rows.start : rows.stop]
        if self.small and step % self.every == self.every - 1:
            some = self.small[step // self.every % len(self.small)]
            parts = [part.astype(np.int64) for part in (some.inputs, some.labels)]
            index, n = (u[:, 1] * len(some)).astype(np.int64), some.grid[0]
            return self._turned(parts, index, (u[:, 2:] < 0.5) & (n != 6), n)
        kind = np.minimum(np.searchsorted(self.edges, u[:, 0], side="right"), len(self.kinds) - 1)
        sizes = np.array([len(part) for part in self.kinds])
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        index = first[kind] + (u[:, 1] * sizes[kind]).astype(np.int64)
        return self._turned([self.inputs, self.labels], index, u[:, 2:] < 0.5, 9)

    @staticmethod
    def _turned(
        parts: list[np.ndarray], index: np.ndarray, turn: np.ndarray, n: int
    ) -> dict[str, Tensor]:
        import torch

        cells = np.arange(n * n).reshape(n, n).T.ravel()
        inputs, labels = (
            torch.from_numpy(np.where(turn, part[index][:, cells], part[index])) for part in parts
        )
        return {"inputs": inputs, "labels": labels}

    def describe(self) -> dict[str, Any]:
        """Return settings as JSON values, for logs and model cards."""
        sizes = [len(part) for part in self.kinds]
        return {"kind": "sudoku cube", "sizes": sizes, "seed": self.seed}


@dataclass(frozen=True)
class CubeRecipe(TRMRecipe):
    """`TRMRecipe` whose layers are compiled and whose evaluation looks at hard puzzles too."""

    data: CubeData = field(default_factory=CubeData)  # pyright: ignore[reportIncompatibleVariableOverride]
    compiled: bool = True
    """let torch.compile fuse the layers (needs a C++ compiler, else a warning): 2 to 3x as fast"""
    start: str = ""
    """folder of a model to begin from; empty: random weights"""
    lists: tuple[str, ...] = ()
    """more files of puzzles, one a line, looked at during training: every second of a random order
    by `data.seed`, so that the others stay for the end"""

    def _run(self) -> Run:
        run = super()._run()
        if self.start:
            from inward import hub

            run.model.load_state_dict(hub.load(self.start).state_dict())
        if self.compiled:
            run.model.network.compile_training()  # pyright: ignore
        return run

    def evaluation(self) -> Callable[[Any], dict[str, float]]:
        """For each set: exact after N_sup and 4 N_sup steps, at the model's own stop, and how
        far its belief there is from the truth."""
        sets = {"plain": self.data.puzzles("valid")}
        for path in self.lists:
            sets[Path(path).stem] = half_of(path, seed=self.data.seed, which=0, num=self.data.look)
        look = {name: _some(puzzles, self.data.look) for name, puzzles in sets.items()}

        def evaluate(model: Any) -> dict[str, float]:
            found: dict[str, float] = {}
            for name, puzzles in look.items():
                for key, value in measured(model, puzzles).items():
                    found[f"{key}_{name}"] = value
            found["exact"] = found["own_plain"]
            return found

        return evaluate


def half_of(path: str | os.PathLike, *, seed: int, which: int, num: int | None = None) -> Puzzles:
    """Up to `num` of one half (0: to look at while choosing, 1: for the end) of a list, drawn by
    `seed`, solved."""
    puzzles = sudoku.read_lines(path, solve=False)
    order = np.random.default_rng(seed).permutation(len(puzzles))[which::2][:num]
    rows = puzzles.select(order)
    labels = np.array([solve(row).solutions[0] for row in rows.inputs])
    return replace(rows, labels=labels)


def _some(puzzles: Puzzles, num: int) -> Puzzles:
    order = np.random.default_rng(0).permutation(len(puzzles))[:num]
    return puzzles.select(order)


def measured(model: Any, puzzles: Puzzles, *, far: int = 4) -> dict[str, float]:
    """Shares of puzzles: `at` N_sup steps, `far` times as many, `ever` on the way, `own`: at the
    first step where q > 0 and the answer did not change; `drift`: right there, not at the end;
    `q_own`: mean belief at the own stop less `own`, of those that stop."""
    import torch

    steps = model.settings.n_sup
    inputs = torch.from_numpy(puzzles.inputs.astype(np.int64))
    labels = torch.from_numpy(puzzles.labels.astype(np.int64))
    state = {k: v.clone() for k, v in model.initial_state(*inputs.shape).items()}
    ever = torch.zeros(len(inputs), dtype=torch.bool)
    stopped, own, belief, before = ever.clone(), ever.clone(), torch.zeros(len(inputs)), None
    found: dict[str, float] = {}
    false = ever.clone()
    right = ever
    for step in range(1, far * steps + 1):
        state, logits, q = model.supervision_step(inputs, state)
        tokens = logits.argmax(-1)
        right = (tokens == labels).all(1)
        ever |= right
        same = torch.zeros_like(ever) if before is None else (tokens == before).all(1)
        now = ~stopped & (q > 0) & same
        own, belief = torch.where(now, right, own), torch.where(now, q.sigmoid(), belief)
        false |= (q > 0) & ~right & (step > 1)
        stopped, before = stopped | now, tokens
        if step == steps:
            found["at"] = float(right.float().mean())
    found["far"] = float(right.float().mean())
    found["ever"] = float(ever.float().mean())
    found["own"] = float(own.float().mean())
    found["wrong_stop"] = float((stopped & ~own).float().mean())
    found["q_gap"] = float((belief - own.float())[stopped].mean()) if stopped.any() else 0.0
    found["drift"] = float((ever & ~right).float().mean())
    return found


_MODEL = TRMSettings(
    vocab_size=11,
    seq_len=81,
    hidden_size=16,
    mixer="cube",
    prefix_len=0,
    num_identifiers=0,
    T=1,
    n=2,
    n_sup=16,
    loss="softmax",
    halt_weight=0.1,
    norm_eps=1e-6,
    supervision="stay",
    stay=0.08,
    start_noise=1.0,
)

_TRAIN = TrainSettings(
    steps=9000,
    batch_rows=32,
    optim=OptimSettings(name="muon", lr=5e-3, muon_rest="adamw", weight_decay=0.01),
    clip=1.0,
    schedule="constant",
    warmup=100,
    ema_decay=0.999,
    eval_every=3000,
    save_every=300,
    log_every=50,
)


def sudoku9_cube_start() -> CubeRecipe:
    """The first of two runs; it already solves most irreducible puzzles."""
    return CubeRecipe(
        name="sudoku9-cube-start",
        about="9x9 Sudoku by the candidate cube, first half: a quarter of an hour on one core",
        model=_MODEL,
        train=_TRAIN,
    )


def sudoku9_cube() -> CubeRecipe:
    """Shipped; its card says what came out."""
    return CubeRecipe(
        name="sudoku9-cube",
        about="9x9 Sudoku by the candidate cube, for puzzles that people paste; hours on one core",
        model=replace(_MODEL, n_sup=32, stay=0.05, start_noise=2.0),
        data=CubeData(num_extreme=1000, shares=(0.5, 0.27, 0.2, 0.03)),
        train=replace(_TRAIN, steps=30_000, schedule="late", decay_steps=10_000, min_ratio=0.02),
        start="runs/sudoku9-cube-start/model",
    )
