"""Rows for a causal language model as a pure function of the step, made on the fly or read.

A row is a pair of equally long integer arrays: `ids`, what the model reads, and `labels`, what it
must predict, in the convention of transformers: the output at position t is compared with
labels[t + 1], and -100 is not compared at all. Unusual: labels need not repeat ids. A task may ask
for a hidden result at every token of a row (see `inward.data.texts.hops`), which teaches far faster
than one answer per row.

    TextSource(Hops(), seed=0)          rows of a generator, never the same twice
    TokenSource("tokens/", ...)         rows of token files, in a new order every epoch
    questions(Hops(), 500, ...)         held-out questions of one difficulty

What a row holds depends on (seed, step, row) alone: see `inward.data.puzzles.source`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from inward.common import IGNORE
from inward.common.checks import check_slice, checked_seed
from inward.data.arrays import mapped

if TYPE_CHECKING:
    import torch

# numpy pads a seed sequence with zeros, so these must not look like a step and a row.
_QUESTIONS, _EPOCH = (0, 2), (0, 1)


class RowMaker(Protocol):
    """What makes rows: a task with its format."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids, padding (id 0) included."""
        ...

    @property
    def row_length(self) -> int:
        """Longest row that `row` makes; shorter ones are padded on the right."""
        ...

    def row(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """ids and labels of a training row, (L,) int64 each."""
        ...

    def question(self, rng: np.random.Generator, difficulty: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and labels of one question, (L,) int64: only its answer, at the end, has labels."""
        ...

    def describe(self) -> dict[str, Any]:
        """Settings as JSON values, for logs and model cards."""
        ...


@dataclass(frozen=True, eq=False)
class TextQuestions:
    """Held-out questions, padded on the right with id 0.

    ids, labels: (N, L) int64; labels are -100 but for the answer, where they equal ids.
    difficulty: (N,) int64.
    """

    ids: np.ndarray
    labels: np.ndarray
    difficulty: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def prompt(self, index: int) -> np.ndarray:
        """(P,) the question without its answer, as a model is asked it."""
        return self.ids[index, : int(np.argmax(self.labels[index] != IGNORE))]

    def answer(self, index: int) -> np.ndarray:
        """(A,) the tokens that are asked for."""
        return self.labels[index][self.labels[index] != IGNORE]


def questions(rows: RowMaker, num: int, *, difficulty: int, seed: int) -> TextQuestions:
    """`num` questions of one difficulty, from a stream that no training row comes from.

    Raises ValueError if `num` is not positive or the task has no such difficulty.
    """
    if num < 1:
        raise ValueError(f"num is {num}; ask for at least 1 question")
    checked_seed(seed)
    made = [
        rows.question(np.random.default_rng([seed, difficulty, i, *_QUESTIONS]), difficulty)
        for i in range(num)
    ]
    length = max(len(ids) for ids, _ in made)
    ids, labels = (_padded([row[part] for row in made], length, pad)
                   for part, pad in ((0, 0), (1, IGNORE)))  # fmt: skip
    return TextQuestions(ids, labels, np.full(num, difficulty, dtype=np.int64))


def joined(parts: Iterable[TextQuestions]) -> TextQuestions:
    """All questions of several sets, one set after the other; ValueError if there is none."""
    sets = list(parts)
    if not sets:
        raise ValueError("there are no questions to join")
    length = max(part.ids.shape[1] for part in sets)
    return TextQuestions(
        np.concatenate([_padded(list(part.ids), length, 0) for part in sets]),
        np.concatenate([_padded(list(part.labels), length, IGNORE) for part in sets]),
        np.concatenate([part.difficulty for part in sets]),
    )


class TextSource:
    """Make every row when it is asked for: nothing is stored, nothing repeats.

    `batch` returns input_ids, labels, attention_mask (b, row_length) int64 and weight (b,), the
    number of labels that count in each row (the first position predicts nothing).
    """

    def __init__(self, rows: RowMaker, *, seed: int) -> None:
        self.rows = rows
        self.seed = checked_seed(seed)

    def batch(self, step: int, rows: range, num_rows: int) -> dict[str, torch.Tensor]:
        """Rows `rows` of batch `step`; ValueError for rows outside it or a negative step."""
        check_slice(step, rows, num_rows)
        made = [self.rows.row(np.random.default_rng([self.seed, step, row])) for row in rows]
        return _tensors([ids for ids, _ in made], [x for _, x in made], self.rows.row_length)

    def describe(self) -> dict[str, Any]:
        """Settings as JSON values, for logs and model cards."""
        return {"kind": "rows made on the fly", "seed": self.seed, **self.rows.describe()}


class TokenSource:
    """Rows of token files: all `.npy` files of a folder, in the order of their names.

    A file is a 2-D integer array, one row of `length` ids or more a line (what is longer is cut);
    it is mapped, not read. Every epoch visits all rows in a new order. The labels are the ids: a
    row of n + 1 ids gives n predictions, as Huginn's rows of 4,097 do.
    """

    def __init__(self, folder: str | Path, *, length: int, vocab_size: int, seed: int) -> None:
        """Raises FileNotFoundError if nothing is there, ValueError for files of another form."""
        self.folder = Path(folder)
        self.length, self.vocab_size = length, vocab_size
        self.seed = checked_seed(seed)
        self._files = [_token_file(path, length) for path in _npy_files(self.folder)]
        self._ends = np.cumsum([len(file) for file in self._files])
        self._orders: dict[int, np.ndarray] = {}  # a memo of `_order`, not state

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, step: int, rows: range, num_rows: int) -> dict[str, torch.Tensor]:
        """See `TextSource.batch`; ValueError also for an id outside the vocabulary."""
        check_slice(step, rows, num_rows)
        made = [self._row(step * num_rows + row) for row in rows]
        return _tensors(made, made, self.length)

    def _row(self, position: int) -> np.ndarray:
        epoch, place = divmod(position, len(self))
        index = int(self._order(epoch)[place])
        number = int(np.searchsorted(self._ends, index, side="right"))
        file = self._files[number]
        ids = np.asarray(file[index - self._ends[number], : self.length], dtype=np.int64)
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(
                f"row {index} of {self.folder} holds id {ids.max()}, the model knows 0 to "
                f"{self.vocab_size - 1}; it was tokenized for another vocabulary"
            )
        return ids

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            rng = np.random.default_rng([self.seed, epoch, *_EPOCH])
            if len(self._orders) >= 2:  # a batch seldom spans more than two epochs
                del self._orders[min(self._orders)]
            self._orders[epoch] = rng.permutation(len(self))
        return self._orders[epoch]

    def describe(self) -> dict[str, Any]:
        """Settings as JSON values, for logs and model cards."""
        return {
            "kind": "token files",
            "folder": str(self.folder),
            "num_files": len(self._files),
            "num_rows": len(self),
            "length": self.length,
            "seed": self.seed,
        }


def _npy_files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.npy"))
    if not paths:
        state = "holds no .npy file" if folder.is_dir() else "is no folder"
        raise FileNotFoundError(
            f"{folder} {state}; tokenize your text into 2-D integer arrays, one row of ids a line, "
            "write them there with numpy.save, and name the folder as data.path"
        )
    return paths


def _token_file(path: Path, length: int) -> np.ndarray:
    file = mapped(path)
    if file.ndim != 2 or not len(file) or not np.issubdtype(file.dtype, np.integer):
        raise ValueError(f"{path} holds {file.dtype} {file.shape}; rows of integer ids are needed")
    if file.shape[1] < length:
        raise ValueError(f"{path} has rows of {file.shape[1]} ids, but {length} are asked for")
    return file


def _padded(rows: list[np.ndarray], length: int, value: int) -> np.ndarray:
    out = np.full((len(rows), length), value, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _tensors(
    ids: list[np.ndarray], labels: list[np.ndarray], length: int
) -> dict[str, torch.Tensor]:
    import torch

    wide = _padded(labels, length, IGNORE)
    real = np.arange(length) < np.array([len(row) for row in ids], dtype=np.int64)[:, None]
    arrays = {
        "input_ids": _padded(ids, length, 0),
        "labels": wide,
        "attention_mask": real.astype(np.int64),
        "weight": (wide[:, 1:] != IGNORE).sum(1),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
