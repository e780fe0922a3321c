"""The reference's dataset folder, so that people can bring what they have, and a source over it.

Layout (TinyRecursiveModels and HRM, `puzzle_dataset.py`). L cells, N examples:

    <dir>/identifiers.json                list: identifier -> name (0 is "<blank>")
    <dir>/test_puzzles.json               ARC only: name -> {"train": pairs, "test": pairs}
    <dir>/{train,test}/dataset.json       sizes and special tokens
    <dir>/{train,test}/<set>__inputs.npy              (N, L)   <set> is nearly always "all"
    <dir>/{train,test}/<set>__labels.npy              (N, L)
    <dir>/{train,test}/<set>__puzzle_identifiers.npy  (puzzles,)
    <dir>/{train,test}/<set>__puzzle_indices.npy      (puzzles + 1,) first example of each puzzle
    <dir>/{train,test}/<set>__group_indices.npy       (groups + 1,)  first puzzle of each group

A group is an original puzzle with all its augmentations, a puzzle is one of these, an example is
one input with its label. What is unusual here: nothing is loaded. All arrays are memory-mapped, a
read copies the rows it was asked for, and the writer streams, so neither direction ever holds a
set in memory. We write one byte a cell (the reference's Sudoku builder writes eight); we read any
integer type. Nothing is unpickled.
"""

import bisect
import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from inward.common import IGNORE, files
from inward.common.checks import checked_seed
from inward.common.files import replacing
from inward.data.arrays import mapped
from inward.data.puzzles.puzzles import PAD, Puzzles

if TYPE_CHECKING:
    import torch

ARRAYS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
_CHUNK = 1 << 20  # cells that `Folder.check` looks at in one go
_HEADER = 128
_UNBOUNDED = 1 << 62
_SAMPLE = 256  # rows whose alphabet is looked at when a folder is opened; later reads check theirs

Rows = np.ndarray | range | Sequence[int]
Group = Iterable[tuple[int, np.ndarray, np.ndarray]]  # (identifier, inputs (n, L), labels (n, L))


@dataclass(frozen=True)
class FolderInfo:
    """The contents of `dataset.json`, with the reference's names.

    `ignore_label_id` is the label value that means "not scored" (None: every label is scored).
    `total_puzzles` is None in folders older than the field. The reference's ARC builder writes the
    number of puzzles there, its Sudoku and Maze builders that of the groups.
    """

    vocab_size: int
    seq_len: int
    num_puzzle_identifiers: int
    total_groups: int
    mean_puzzle_examples: float
    sets: tuple[str, ...]
    total_puzzles: int | None = None
    pad_id: int = PAD
    ignore_label_id: int | None = PAD
    blank_identifier_id: int = 0

    @classmethod
    def load(cls, path: Path) -> "FolderInfo":
        """Read a `dataset.json`; ValueError names what is missing, of wrong type or impossible."""
        data = read_json(path)
        if not isinstance(data, dict):
            raise ValueError(
                f"{path} holds a {type(data).__name__}; expected an object of dataset sizes"
            )
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in data]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; add them (see FolderInfo)")
        values = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        sets = values.pop("sets")
        good = isinstance(sets, list) and sets and all(isinstance(s, str) and s for s in sets)
        if not good or any(s != os.path.basename(s) for s in sets) or len(set(sets)) < len(sets):
            raise ValueError(f'{path}: sets is {sets!r}; expected distinct names such as ["all"]')
        for name, value in values.items():
            kinds = (int, float) if name == "mean_puzzle_examples" else (int,)
            if value is None and name in ("ignore_label_id", "total_puzzles"):
                continue
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ValueError(f"{path}: {name} is {value!r}; expected a number")
            low = {"ignore_label_id": -math.inf, "pad_id": 0, "blank_identifier_id": 0}.get(name, 1)
            if value < low:
                raise ValueError(f"{path}: {name} is {value}; it must be at least {low}")
        return cls(**values, sets=tuple(sets))


@dataclass(frozen=True, eq=False)
class FolderSet:
    """The five memory-mapped arrays of one set (see the top of this file)."""

    inputs: np.ndarray
    labels: np.ndarray
    puzzle_identifiers: np.ndarray
    puzzle_indices: np.ndarray
    group_indices: np.ndarray
    stem: Path  # <dir>/<split>/<set>, for messages

    def file(self, array: str) -> Path:
        """Return the path of one of the five arrays."""
        return self.stem.with_name(f"{self.stem.name}__{array}.npy")


class Grouped(Protocol):
    """What a `FolderSource` draws from: a `Folder`, or anything that makes examples on the fly.

    group_indices (groups + 1,) and puzzle_indices (puzzles + 1,): offsets as in the files.
    """

    group_indices: np.ndarray
    puzzle_indices: np.ndarray

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return int64 inputs (n, L), labels (n, L) with IGNORE, identifiers (n,)."""
        ...


class Folder:
    """One split of a dataset folder, memory-mapped; several sets appear as one after another.

    Opening checks file names, shapes, offsets, identifiers and totals, and the tokens of a few
    rows; every read checks the tokens it returns, and `check()` those of the whole split.

    Raises FileNotFoundError for a missing file, ValueError for a damaged or inconsistent one.
    """

    def __init__(self, path: str | os.PathLike, split: str = "train") -> None:
        self.path, self.split = Path(path), split
        folder = self.path / split
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; a dataset folder holds train/ and test/")
        self.info = FolderInfo.load(folder / "dataset.json")
        self.sets = {name: _open_set(folder / name, self.info) for name in self.info.sets}
        parts = list(self.sets.values())
        self._starts = np.cumsum([0, *(len(part.inputs) for part in parts)])
        self.puzzle_indices = _joined([part.puzzle_indices for part in parts])
        self.group_indices = _joined([part.group_indices for part in parts])
        self._check_totals(folder / "dataset.json")
        for part in parts:
            spread = np.linspace(0, len(part.inputs) - 1, _SAMPLE, dtype=np.int64)
            _check_tokens(part, self.info, np.unique(spread))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def tokens(self, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return inputs (n, L), labels (n, L) and identifiers (n,) at `rows`, as int64, unchanged.

        Raises IndexError for a row outside the split, ValueError for tokens outside the alphabet.
        """
        rows = _checked_rows(rows, len(self))
        inputs = np.empty((len(rows), self.info.seq_len), np.int64)
        labels = np.empty_like(inputs)
        identifiers = np.empty(len(rows), np.int64)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for index, part in enumerate(self.sets.values()):
            mine = np.flatnonzero(owner == index)
            if len(mine) == 0:
                continue
            local = rows[mine] - self._starts[index]
            inputs[mine], labels[mine] = _check_tokens(part, self.info, local)
            # The offsets' own type: searchsorted would otherwise convert (copy) the whole map.
            key = local.astype(part.puzzle_indices.dtype)
            puzzle = np.searchsorted(part.puzzle_indices, key, side="right") - 1
            identifiers[mine] = part.puzzle_identifiers[puzzle]
        return inputs, labels, identifiers

    def read(self, rows: Rows, *, pad_to: int | None = None) -> dict[str, np.ndarray]:
        """Return int64 inputs (n, L), labels (n, L) with -100 = not scored, identifiers (n,).

        With `pad_to` the batch is filled up to that many rows the way the reference fills its
        last one: inputs pad_id, labels -100, identifiers blank_identifier_id.
        """
        inputs, labels, identifiers = self.tokens(rows)
        if self.info.ignore_label_id is not None:
            labels[labels == self.info.ignore_label_id] = IGNORE
        missing = 0 if pad_to is None else pad_to - len(inputs)
        if missing < 0:
            raise ValueError(f"cannot pad {len(inputs)} rows to {pad_to}; read fewer at once")
        blank = self.info.blank_identifier_id
        return {
            "inputs": np.pad(inputs, ((0, missing), (0, 0)), constant_values=self.info.pad_id),
            "labels": np.pad(labels, ((0, missing), (0, 0)), constant_values=IGNORE),
            "identifiers": np.pad(identifiers, (0, missing), constant_values=blank),
        }

    def batches(self, num_rows: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield all examples once, in order, `num_rows` at a time; the last batch is padded."""
        if num_rows < 1:
            raise ValueError(f"num_rows is {num_rows}; a batch needs at least 1 row")
        for start in range(0, len(self), num_rows):
            yield self.read(range(start, min(start + num_rows, len(self))), pad_to=num_rows)

    def puzzles(self, grid: tuple[int, int], rows: Rows | None = None) -> Puzzles:
        """Return rows (all if None) as a `Puzzles` set in memory, cells not scored as PAD."""
        rows = _checked_rows(range(len(self)) if rows is None else rows, len(self))
        cells = np.empty((2, len(rows), self.info.seq_len), np.uint8)
        identifiers = np.empty(len(rows), np.int32)
        for part in self._pieces(len(rows)):
            inputs, labels, identifiers[part] = self.tokens(rows[part])
            if self.info.ignore_label_id is not None:
                labels[labels == self.info.ignore_label_id] = PAD
            cells[0, part], cells[1, part] = inputs, labels
        return Puzzles(cells[0], cells[1], grid, self.info.vocab_size, identifiers=identifiers)

    def names(self) -> list[str]:
        """Return identifiers.json: the name of each identifier."""
        path = self.path / "identifiers.json"
        names = read_json(path)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path} holds a {type(names).__name__}; expected a list of names")
        if len(names) != self.info.num_puzzle_identifiers:
            raise ValueError(
                f"{path} names {len(names)} identifiers, dataset.json says "
                f"{self.info.num_puzzle_identifiers}; build both files together"
            )
        return names

    def check(self) -> None:
        """Look at every token of the split, a piece at a time; ValueError names file and row."""
        for part in self._pieces(len(self)):
            self.tokens(range(part.start, part.stop))

    def _pieces(self, num_rows: int) -> Iterator[slice]:
        """Cut num_rows into slices of about _CHUNK cells."""
        step = max(1, _CHUNK // self.info.seq_len)
        return (slice(i, min(i + step, num_rows)) for i in range(0, num_rows, step))

    def _check_totals(self, path: Path) -> None:
        groups, puzzles = len(self.group_indices) - 1, len(self.puzzle_indices) - 1
        # two builders of the reference count groups as puzzles, see FolderInfo
        known = {"total_groups": (groups,), "total_puzzles": (puzzles, groups, None)}
        for name, good in known.items():
            if getattr(self.info, name) not in good:
                raise ValueError(
                    f"{path}: {name} is {getattr(self.info, name)}, but the offset arrays hold "
                    f"{good[0]}; the files are not of one build, build the folder again"
                )


class FolderSource:
    """Training batches in the reference's order, as a pure function of the step (a `Source`).

    How epochs become rows: epoch e takes, from a generator keyed by (seed, e), one random puzzle
    of every group (one augmentation of each original), the groups in random order, and all
    examples of each chosen puzzle in random order. The epochs laid end to end are one endless
    stream; batch s of num_rows rows is its rows s * num_rows up to (s + 1) * num_rows. A batch
    may so begin inside a puzzle and run over the end of an epoch.

    What the reference does otherwise (`puzzle_dataset.py`):
    - A puzzle that does not fit into a batch is cut and its other examples are dropped, as is the
      last, incomplete batch of an iteration. Here every example of a chosen puzzle comes up.
    - Examples are ordered by NumPy's process-wide generator, so no run can be repeated or resumed.
    - Several sets are run through one after another; here their groups are one pool.
    """

    def __init__(self, data: Grouped, *, seed: int) -> None:
        self.data, self.seed = data, checked_seed(seed)
        self._groups = np.asarray(data.group_indices, np.int64)
        self._sizes = np.diff(data.puzzle_indices).astype(np.int32)
        low, high = (f.reduceat(self._sizes, self._groups[:-1]) for f in (np.minimum, np.maximum))
        # If all augmentations of an original are of one size, so are all epochs (in practice).
        self._equal = bool((low == high).all())
        self._starts = [0, self._length(0)]  # first row of each epoch, as far as it was asked for
        self._plans: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def rows_per_epoch(self) -> float:
        """The expected number of rows of an epoch (exact where augmentations are of one size)."""
        sums = np.add.reduceat(self._sizes, self._groups[:-1], dtype=np.int64)
        return float((sums / np.diff(self._groups)).sum())

    def batch(self, step: int, rows: range, num_rows: int) -> dict[str, "torch.Tensor"]:
        """Return rows `rows` of batch `step`, which has num_rows rows in all (b = len(rows)).

        inputs (b, L), labels (b, L) with -100 = not scored, identifiers (b,): int64 tensors.
        """
        import torch

        if step < 0 or rows.step != 1 or not 0 <= rows.start <= rows.stop <= num_rows:
            raise ValueError(f"step {step}, {rows} of {num_rows}; give a step >= 0, rows within")
        stream = step * num_rows + np.arange(rows.start, rows.stop, dtype=np.int64)
        found, done = np.empty(len(rows), np.int64), 0
        while done < len(rows):
            epoch, start, end = self._locate(int(stream[done]))
            part = slice(done, done + min(len(rows) - done, end - int(stream[done])))
            found[part] = self._examples(epoch, stream[part] - start)
            done = part.stop
        return {name: torch.from_numpy(value) for name, value in self.data.read(found).items()}

    def describe(self) -> dict[str, Any]:
        """Return settings as JSON values, for logs and model cards."""
        return {
            "kind": "groups of augmented puzzles",
            "num_groups": len(self._groups) - 1,
            "num_puzzles": len(self._sizes),
            "num_examples": int(self.data.puzzle_indices[-1]),
            "seed": self.seed,
        }

    def _locate(self, position: int) -> tuple[int, int, int]:
        """Return the epoch that holds a row of the stream, its first row and its end."""
        if self._equal:
            epoch, length = position // self._starts[1], self._starts[1]
            return epoch, epoch * length, (epoch + 1) * length
        while self._starts[-1] <= position:
            self._starts.append(self._starts[-1] + self._length(len(self._starts) - 1))
        epoch = bisect.bisect_right(self._starts, position) - 1
        return epoch, self._starts[epoch], self._starts[epoch + 1]

    def _length(self, epoch: int) -> int:
        return int(self._sizes[self._choice(epoch)[0]].sum())

    def _choice(self, epoch: int) -> tuple[np.ndarray, np.random.Generator]:
        """Return the puzzle chosen from every group, and the generator that chose."""
        rng = np.random.default_rng([self.seed, epoch, 0])
        return rng.integers(self._groups[:-1], self._groups[1:]), rng

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the puzzles of an epoch in order and where each ends; the last two are kept."""
        if epoch not in self._plans:
            puzzles, rng = self._choice(epoch)
            puzzles = puzzles[rng.permutation(len(puzzles))]
            while len(self._plans) > 1:
                self._plans.pop(min(self._plans))
            self._plans[epoch] = puzzles, np.cumsum(self._sizes[puzzles], dtype=np.int64)
        return self._plans[epoch]

    def _examples(self, epoch: int, rows: np.ndarray) -> np.ndarray:
        """Return the examples at rows (rising) of an epoch."""
        puzzles, ends = self._plan(epoch)
        slots = np.searchsorted(ends, rows, side="right")
        found = np.empty(len(rows), np.int64)
        for slot in np.unique(slots):
            puzzle, mine = int(puzzles[slot]), slots == slot
            size = int(self._sizes[puzzle])
            # The key differs from the choice's: [.., 0] and [..] are the same seed to NumPy.
            rng = np.random.default_rng([self.seed, epoch, 1 + puzzle])
            order = rng.permutation(size) if size > 1 else np.zeros(1, np.int64)
            within = rows[mine] - (ends[slot] - size)
            found[mine] = int(self.data.puzzle_indices[puzzle]) + order[within]
        return found


def _open_set(stem: Path, info: FolderInfo) -> FolderSet:
    paths = {name: stem.with_name(f"{stem.name}__{name}.npy") for name in ARRAYS}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{stem.parent} lacks {', '.join(missing)}, which dataset.json lists in sets; "
            "copy them from where the folder was built"
        )
    part = FolderSet(**{name: _map_array(path) for name, path in paths.items()}, stem=stem)
    for name in ARRAYS:
        shape, wide = getattr(part, name).shape, name in ("inputs", "labels")
        if len(shape) != 1 + wide or shape[1:] != (info.seq_len,) * wide:
            expected = f"(N, {info.seq_len}), seq_len of dataset.json" if wide else "(N,)"
            raise ValueError(f"{part.file(name)} has shape {shape}; expected {expected}")
    _check_offsets(part)
    low, high = _range(part.puzzle_identifiers)
    if low < 0 or high >= info.num_puzzle_identifiers:
        raise ValueError(
            f"{part.file('puzzle_identifiers')} holds {low if low < 0 else high}; identifiers are "
            f"0 to {info.num_puzzle_identifiers - 1} (num_puzzle_identifiers in dataset.json)"
        )
    return part


def _map_array(path: Path) -> np.ndarray:
    """Map a .npy file; only that format, so nothing in it can be a pickle."""
    array = mapped(path)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{path} holds {array.dtype} values; expected integers")
    if array.size == 0:
        raise ValueError(f"{path} is empty (shape {array.shape}); a set holds at least one example")
    return array


def _check_offsets(part: FolderSet) -> None:
    """Offsets start at 0, rise (no group and no puzzle is empty) and end at the next length."""
    if len(part.inputs) != len(part.labels):
        sizes = f"{len(part.labels)} rows for {len(part.inputs)} inputs"
        raise ValueError(f"{part.file('labels')} holds {sizes}; one file is of another build")
    num_puzzles = len(part.puzzle_identifiers)
    ends = {"puzzle_indices": len(part.inputs), "group_indices": num_puzzles}
    for name, end in ends.items():
        path, offsets = part.file(name), getattr(part, name)
        if int(offsets[0]) != 0 or int(offsets[-1]) != end:
            found = f"{offsets[0]} to {offsets[-1]}, expected 0 to {end}"
            raise ValueError(f"{path} runs from {found}; the files are not of one build")
        if len(bad := np.flatnonzero(offsets[1:] <= offsets[:-1])):
            before, after = offsets[bad[0] : bad[0] + 2]
            raise ValueError(f"{path}: {after} follows {before}; an offset must exceed the last")
    if len(part.puzzle_indices) != num_puzzles + 1:
        sizes = f"{len(part.puzzle_indices)} offsets for {num_puzzles} puzzle_identifiers"
        raise ValueError(f"{part.file('puzzle_indices')} holds {sizes}; expected one more")


def _check_tokens(
    part: FolderSet, info: FolderInfo, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels at rows, after a check of their alphabet."""
    found = []
    for name in ("inputs", "labels"):
        cells = getattr(part, name)[rows]
        wrong = (cells < 0) | (cells >= info.vocab_size)
        if name == "labels" and info.ignore_label_id is not None:
            wrong &= cells != info.ignore_label_id
        if wrong.any():
            row, cell = (int(i[0]) for i in np.nonzero(wrong))
            raise ValueError(
                f"{part.file(name)} row {rows[row]} holds token {cells[row, cell]}, but "
                f"vocab_size is {info.vocab_size} in dataset.json; correct whichever is wrong"
            )
        found.append(cells)
    return found[0], found[1]


def _checked_rows(rows: Rows, num_examples: int) -> np.ndarray:
    if isinstance(rows, range):
        rows = np.arange(rows.start, rows.stop, rows.step)
    rows = np.asarray(rows, dtype=np.int64).reshape(-1)
    if len(rows) and (rows.min() < 0 or rows.max() >= num_examples):
        bad = rows.min() if rows.min() < 0 else rows.max()
        raise IndexError(f"row {bad} of a split of {num_examples} examples")
    return rows


def _joined(offsets: list[np.ndarray]) -> np.ndarray:
    """Chain the offsets of several sets; those of a single set stay on disk."""
    if len(offsets) == 1:
        return offsets[0]
    shifts = np.cumsum([0, *(int(o[-1]) for o in offsets)])
    moved = [np.asarray(o[:-1], np.int64) + s for o, s in zip(offsets, shifts, strict=False)]
    return np.concatenate([*moved, shifts[-1:]])


def _range(values: np.ndarray) -> tuple[int, int]:
    return int(values.min()), int(values.max())


def read_json(path: str | os.PathLike) -> Any:
    """Parse a JSON file of any size (ARC has names for 900,000 identifiers); FileNotFoundError or
    ValueError names the file."""
    return files.read_json(path, largest=_UNBOUNDED)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, allow_nan=False)


def write_split(
    path: str | os.PathLike,
    split: str,
    sets: Mapping[str, Iterable[Group]],
    *,
    seq_len: int,
    vocab_size: int,
    num_identifiers: int,
    pad_id: int = PAD,
    ignore_label_id: int | None = PAD,
) -> Path:
    """Write one split, streaming: memory holds one puzzle at a time. Returns <path>/<split>.

    `sets` maps a set's name (the reference knows "all") to its groups; a group is an iterable of
    puzzles (identifier, inputs (n, L), labels (n, L)), tokens 0 to vocab_size - 1, stored as uint8.
    The folder appears under its name only when it is whole. Raises ValueError for an existing
    split, an empty set, group or puzzle, a wrong shape, a token or identifier out of range.
    """
    target = Path(path) / split
    if target.exists():
        raise ValueError(f"{target} exists; remove it or write to another folder")
    if not 2 <= vocab_size <= 256:
        raise ValueError(f"vocab_size is {vocab_size}; tokens are one byte, so use 2 to 256")
    if ignore_label_id is not None and not 0 <= ignore_label_id < vocab_size:
        raise ValueError(f"ignore_label_id is {ignore_label_id}; use 0 to {vocab_size - 1} or None")
    partial = target.with_name(f".{split}.{os.getpid()}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    limits = (seq_len, vocab_size, num_identifiers)
    try:
        counts = [_write_set(partial / name, groups, limits) for name, groups in sets.items()]
        groups, puzzles, examples = (sum(column) for column in zip(*counts, strict=True))
        info = FolderInfo(
            vocab_size, seq_len, num_identifiers, groups, examples / puzzles, tuple(sets), puzzles,
            pad_id, ignore_label_id,
        )  # fmt: skip
        write_json(partial / "dataset.json", asdict(info))
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def write_puzzles(path: str | os.PathLike, split: str, puzzles: Puzzles) -> Path:
    """Write a `Puzzles` set as one split in which every puzzle is its own group."""
    given = puzzles.identifiers
    identifiers = np.zeros(len(puzzles), np.int32) if given is None else given
    groups = (
        [(int(identifiers[i]), puzzles.inputs[i : i + 1], puzzles.labels[i : i + 1])]
        for i in range(len(puzzles))
    )
    return write_split(
        path,
        split,
        {"all": groups},
        seq_len=puzzles.inputs.shape[1],
        vocab_size=puzzles.vocab_size,
        num_identifiers=int(identifiers.max()) + 1,
    )


def _write_set(
    stem: Path, groups: Iterable[Group], limits: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Stream one set to `<stem>__*.npy`; return its numbers of groups, puzzles and examples."""
    seq_len, vocab_size, num_identifiers = limits
    files = {name: stem.with_name(f"{stem.name}__{name}.npy") for name in ARRAYS}
    identifiers, puzzle_ends, group_ends = [], [0], [0]
    with files["inputs"].open("wb") as inputs, files["labels"].open("wb") as labels:
        for file in (inputs, labels):
            file.write(bytes(_HEADER))  # the number of rows is known only at the end
        for group in groups:
            for identifier, x, y in group:
                where = f"puzzle {len(identifiers)} of set {stem.name!r}"
                if not 0 <= identifier < num_identifiers:
                    raise ValueError(
                        f"{where}: identifier {identifier}; use 0 to {num_identifiers - 1}"
                    )
                if len(x) == 0 or len(x) != len(y):
                    raise ValueError(f"{where}: {len(x)} inputs, {len(y)} labels; one each, not 0")
                inputs.write(_bytes(x, seq_len, vocab_size, f"{where}: inputs"))
                labels.write(_bytes(y, seq_len, vocab_size, f"{where}: labels"))
                identifiers.append(identifier)
                puzzle_ends.append(puzzle_ends[-1] + len(x))
            if len(identifiers) == group_ends[-1]:
                raise ValueError(f"group {len(group_ends) - 1} of set {stem.name!r} is empty")
            group_ends.append(len(identifiers))
        for file in (inputs, labels):
            _write_header(file, (puzzle_ends[-1], seq_len))
    if len(identifiers) == 0:
        raise ValueError(f"set {stem.name!r} is empty; write at least one group")
    columns = (identifiers, puzzle_ends, group_ends)
    for name, column in zip(ARRAYS[2:], columns, strict=True):
        with files[name].open("wb") as file:
            np.lib.format.write_array(file, np.array(column, np.int32), allow_pickle=False)
    return len(group_ends) - 1, len(identifiers), puzzle_ends[-1]


def _bytes(cells: np.ndarray, seq_len: int, vocab_size: int, where: str) -> bytes:
    cells = np.asarray(cells)
    if cells.ndim != 2 or cells.shape[1] != seq_len or cells.dtype.kind not in "iu":
        raise ValueError(
            f"{where} are {cells.dtype} of shape {cells.shape}; expected integers (n, {seq_len})"
        )
    low, high = _range(cells)
    if low < 0 or high >= vocab_size:
        raise ValueError(f"{where} hold token {min(low, 0) or high}; use 0 to {vocab_size - 1}")
    return cells.astype(np.uint8).tobytes()


def _write_header(file: IO[bytes], shape: tuple[int, int]) -> None:
    """Put a .npy header (format 1.0) for uint8 rows into the space left for it at the start."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    file.seek(0)
    file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", _HEADER - 10))
    file.write(text.encode("ascii").ljust(_HEADER - 11) + b"\n")
