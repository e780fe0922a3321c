"""A set of puzzles at rest: what generators write and what training, solving and tests read.

A puzzle is a grid of small integers, so it is stored as one byte a cell: 1,000 Sudokus of 81
cells take 162 kB with their answers, and a set on disk can be memory-mapped. Nothing here knows
a benchmark's rules (see `inward.tasks`) and nothing imports torch, so reading a set costs no
start-up time.

Token 0 is PAD in every task: a cell outside the puzzle, ignored by the loss where a label holds it.

Files are `.npz` archives, read and written without pickle. They are written under a temporary
name and renamed, so a half-written one never carries the final name.
"""

import math
import os
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, BinaryIO, Protocol

import numpy as np

from inward.common.files import replacing

PAD = 0
_LARGEST = 1 << 32  # bytes of one array: a compressed file of a few MB can claim any size
_OPTIONAL = ("rating", "identifiers")
# All that zipfile and numpy's header parser raise on damaged bytes (found by flipping every byte).
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    EOFError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    ValueError,
)


class Symmetry(Protocol):
    """A map of token grids under which a solved puzzle stays solved, with its inverse."""

    def apply(self, tokens: np.ndarray) -> np.ndarray:
        """Map tokens (..., L) of any integer dtype to a new array of the same shape and dtype."""
        ...

    def invert(self, tokens: np.ndarray) -> np.ndarray:
        """Undo `apply`: `invert(apply(t))` equals t."""
        ...


class Identity:
    """The symmetry that changes nothing (every task's `identity()`)."""

    def apply(self, tokens: np.ndarray) -> np.ndarray:
        """Return a copy of tokens (..., L)."""
        return np.array(tokens)

    def invert(self, tokens: np.ndarray) -> np.ndarray:
        """Return a copy of tokens (..., L)."""
        return np.array(tokens)


@dataclass(frozen=True, eq=False)
class Puzzles:
    """N puzzles of one shape with their answers.

    inputs       (N, L) uint8    tokens of the questions, row major
    labels       (N, L) uint8    tokens of the answers; PAD (0) = cell not scored
    grid         (rows, cols)    with rows * cols = L
    vocab_size   V               every token is below it; at most 256
    rating       (N,) int32      difficulty in the generator's unit (guesses, path length), or None
    identifiers  (N,) int32      row of the model's puzzle-identifier table, or None

    Raises ValueError for a wrong dtype or shape, a token outside the alphabet, or an empty set.
    """

    inputs: np.ndarray
    labels: np.ndarray
    grid: tuple[int, int]
    vocab_size: int
    rating: np.ndarray | None = None
    identifiers: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", _checked_grid(self.grid))
        if not 2 <= self.vocab_size <= 256:
            raise ValueError(
                f"vocab_size is {self.vocab_size}; tokens are one byte, so it must be 2 to 256"
            )
        for name in ("inputs", "labels"):
            _check_cells(name, getattr(self, name), self.grid, self.vocab_size)
        if len(self.inputs) != len(self.labels):
            raise ValueError(
                f"{len(self.inputs)} inputs but {len(self.labels)} labels; give one label row each"
            )
        for name in _OPTIONAL:
            _check_column(name, getattr(self, name), len(self.inputs))
        if self.identifiers is not None and (smallest := self.identifiers.min()) < 0:
            raise ValueError(f"identifiers hold {smallest}; they index a table, use 0 or more")

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, index: np.ndarray | slice | list[int]) -> "Puzzles":
        """Return the puzzles at `index`: a slice, integers, or a boolean mask of length N.

        Raises ValueError if nothing is selected and IndexError for a position outside the set.
        """
        if not isinstance(index, slice):
            index = np.atleast_1d(np.asarray(index, dtype=None if np.size(index) else np.intp))
        columns = {name: getattr(self, name) for name in _OPTIONAL}
        return Puzzles(
            self.inputs[index],
            self.labels[index],
            self.grid,
            self.vocab_size,
            **{name: None if column is None else column[index] for name, column in columns.items()},
        )

    def split(self, num_first: int) -> tuple["Puzzles", "Puzzles"]:
        """Split into the first `num_first` puzzles and the rest (both non-empty), in order."""
        if not 0 < num_first < len(self):
            raise ValueError(
                f"cannot split {len(self)} puzzles after {num_first}; "
                f"choose 1 to {len(self) - 1}, so that both parts hold something"
            )
        return self.select(slice(0, num_first)), self.select(slice(num_first, None))

    def save(self, path: str | os.PathLike, *, compress: bool = False) -> Path:
        """Write a `.npz` file (temporary name, then rename) and return its path.

        Uncompressed files can be memory-mapped by `load`; compressed ones are several times
        smaller. Equal sets give equal bytes. Raises ValueError if the name does not end in .npz.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"cannot save puzzles as {path.name!r}; the name must end in .npz")
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays = {name: np.asarray(v) for name, v in values.items() if v is not None}
        with replacing(path) as partial, partial.open("wb") as file:
            _write_npz(file, arrays, compress=compress)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike, *, mapped: bool = False) -> "Puzzles":
        """Read a file that `save` wrote.

        `mapped=True` leaves inputs and labels on disk and pages them in when they are touched
        (the file must be uncompressed; contents are then checked against the alphabet, not by CRC).
        Raises FileNotFoundError, or ValueError for an empty, truncated, damaged or foreign file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no puzzle file at {path}")
        arrays = _read_npz(path, mapped=mapped)
        try:
            rows, cols = (int(v) for v in arrays.pop("grid"))
            return cls(grid=(rows, cols), vocab_size=int(arrays.pop("vocab_size")), **arrays)
        except (ArithmeticError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a valid puzzle file: {error}") from error


def _checked_grid(grid: tuple[int, int]) -> tuple[int, int]:
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(f"grid is {grid!r}; give (rows, columns), both at least 1")
    return int(grid[0]), int(grid[1])


def _check_cells(name: str, cells: np.ndarray, grid: tuple[int, int], vocab_size: int) -> None:
    if not isinstance(cells, np.ndarray) or cells.dtype != np.uint8:
        found = getattr(cells, "dtype", type(cells).__name__)
        raise ValueError(f"{name} must be a uint8 array, not {found}; use .astype(np.uint8)")
    num_cells = grid[0] * grid[1]
    if cells.ndim != 2 or cells.shape[1] != num_cells:
        raise ValueError(
            f"{name} has shape {cells.shape}; a {grid[0]}x{grid[1]} grid needs (N, {num_cells})"
        )
    if len(cells) == 0:
        raise ValueError(f"{name} is empty; a puzzle set holds at least one puzzle")
    if (largest := int(cells.max())) >= vocab_size:
        raise ValueError(
            f"{name} holds token {largest}, but vocab_size is {vocab_size}; "
            f"tokens must be 0 to {vocab_size - 1}"
        )


def _check_column(name: str, column: np.ndarray | None, num_puzzles: int) -> None:
    if column is None:
        return
    if not isinstance(column, np.ndarray) or column.dtype != np.int32:
        found = getattr(column, "dtype", type(column).__name__)
        raise ValueError(f"{name} must be an int32 array, not {found}; use .astype(np.int32)")
    if column.shape != (num_puzzles,):
        raise ValueError(
            f"{name} has shape {column.shape}; it needs one value for each of {num_puzzles} puzzles"
        )


def _write_npz(file: BinaryIO, arrays: dict[str, np.ndarray], *, compress: bool) -> None:
    """Write what np.savez would, but never pickle and never today's date."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # the date is 1980: equal sets, equal bytes
            info.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _read_npz(path: Path, *, mapped: bool) -> dict[str, np.ndarray]:
    """Read the members of a puzzle file; inputs and labels as memory maps if asked."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                _check_names(set(members), {f.name for f in fields(Puzzles)})
                return {
                    name: _map_member(path, info)
                    if mapped and name in ("inputs", "labels")
                    else _read_member(archive, info)
                    for name, info in members.items()
                }
        except _DAMAGE as error:
            raise ValueError(
                f"cannot read puzzles from {path} ({path.stat().st_size} bytes): {error}. "
                "If it is empty, truncated or damaged, write it again with Puzzles.save"
            ) from error


def _check_names(found: set[str], known: set[str]) -> None:
    missing = sorted(known - found - set(_OPTIONAL))
    unexpected = sorted(found - known)
    if missing or unexpected:
        raise ValueError(
            f"not a puzzle file: missing {missing or 'nothing'}, "
            f"unexpected {unexpected or 'nothing'}"
        )


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    _check_size(archive, info)
    with archive.open(info) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read()  # to the end: only there does zipfile compare the checksum
    return array


def _check_size(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Before memory is taken: what the two headers say of the size must agree, and be bearable."""
    if info.file_size > _LARGEST:
        raise ValueError(
            f"{info.filename} says that it holds {info.file_size} bytes; at most {_LARGEST} are "
            "read, larger sets only with mapped=True"
        )
    with archive.open(info) as file:
        shape, _, dtype = _read_header(file)
        told = math.prod(shape) * dtype.itemsize
        if told != info.file_size - file.tell() or min(shape, default=1) < 0:
            raise ValueError(f"{info.filename} says {dtype}{shape}, but has {info.file_size} bytes")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"unknown .npy version {version}")
    return read_header(file)


def _map_member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """Map an uncompressed member in place: local zip header, .npy header, then the bytes."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
            "a compressed file cannot be mapped; load it with mapped=False, "
            "or save it with compress=False"
        )
    with path.open("rb") as file:
        file.seek(info.header_offset)
        # Local file header (30 bytes); the central directory's lengths may differ from these two.
        len_name, len_extra = struct.unpack("<26xHH", file.read(30))
        file.seek(len_name + len_extra, os.SEEK_CUR)
        shape, fortran, dtype = _read_header(file)
        if math.prod(shape) == 0:
            return np.zeros(shape, dtype)  # mmap refuses zero bytes; Puzzles names the real fault
        return np.memmap(
            path, dtype, "r", offset=file.tell(), shape=shape, order="F" if fortran else "C"
        )
