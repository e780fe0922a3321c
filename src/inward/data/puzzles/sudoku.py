"""Sudoku of 4x4, 6x6 and 9x9 cells: generator, readers, symmetries.

TRM's first benchmark is Sudoku-Extreme (arXiv 2510.04871 section 5; the data set is from HRM,
arXiv 2506.21734), whose files a machine without network cannot have. So the library makes puzzles
of the same kind: one solution, irreducible, rated by the guesses they need. They are not
Sudoku-Extreme and nothing here calls them so. The published CSV can be read and written.

Unusual: every puzzle has its own random stream, so the result does not depend on the number of
processes; and the 1,000-fold augmentation that the papers store on disk is a `SudokuSymmetry`
drawn when a row is used: one gather and one table look-up, with its inverse.

Tokens, boxes and what a rating counts: see `inward.data.puzzles.sudoku_solver`.
"""

import csv
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from inward.common.files import replacing
from inward.data.puzzles.puzzles import Puzzles
from inward.data.puzzles.sudoku_canonical import canonical_rows
from inward.data.puzzles.sudoku_solver import (
    BLANK,
    BOXES,
    Solved,
    box_shape,
    check_clues,
    conflicts,
    dig,
    digits_of,
    grid_size,
    place_clues,
    rate,
    read_state,
    search,
    solve,
    solve_unique,
    tables_for,
    units,
)

__all__ = [
    "BLANK",
    "BOXES",
    "FEWEST_CLUES",
    "Solved",
    "SudokuSymmetry",
    "check_clues",
    "conflicts",
    "decode",
    "encode",
    "generate",
    "random_grid",
    "rate",
    "read_csv",
    "read_lines",
    "sample_symmetry",
    "solve",
    "units",
    "write_csv",
]

FEWEST_CLUES = {4: 4, 6: 8, 9: 17}  # with one solution; 17: McGuire et al., arXiv 1201.0749
CSV_HEADER = ["source", "question", "answer", "rating"]
_BAR_FROM = 500  # more puzzles than this show a progress bar
_MAX_REPEATS = 1000  # unusable draws in a row after which the supply counts as exhausted
_ROWS_AT_ONCE = 8192  # rows checked together
_DRAWS_AT_ONCE = 64  # new puzzles whose symmetric images are looked for together


# ---------------------------------------------------------------------------- generator


@dataclass(frozen=True)
class _Wish:
    """What `generate` was asked for, as its worker processes need it."""

    n: int
    seed: int
    clues: int | None
    min_rating: int
    max_rating: int | None
    max_attempts: int


def generate(
    num: int,
    *,
    n: int,
    seed: int,
    clues: int | None = None,
    min_rating: int = 0,
    max_rating: int | None = None,
    exclude: Puzzles | None = None,
    exclude_solutions: bool = False,
    exclude_symmetric: bool = False,
    max_attempts: int = 1000,
    workers: int = 1,
    progress: bool = True,
) -> Puzzles:
    """Generate `num` different n x n Sudokus with one solution each, rated.

    Clues of a random full grid are removed in random order, each only if the solution stays
    unique: until none can go (clues=None: irreducible), or until `clues` are left.

    seed               puzzle i depends on (seed, i) and, after a duplicate, on the earlier puzzles;
                       never on `workers`
    min_rating, max_rating   bounds of the guess nodes, both included (see the module docstring)
    exclude            puzzles that must not come out (say the test set), compared cell by cell;
                       exclude_solutions=True also forbids their solution grids, and
                       exclude_symmetric=True every image under a `SudokuSymmetry` of the puzzles
                       (puzzles that come out may still be images of each other)
    max_attempts       full grids tried for one puzzle before giving up
    workers            processes; with more than one, call from under `if __name__ == "__main__"`

    Raises ValueError for impossible or unlucky wishes, naming the remedy.
    """
    wish = _Wish(n, seed, clues, min_rating, max_rating, max_attempts)
    _check_wish(wish, num, workers)
    seen, banned = _forbidden(n, exclude, exclude_solutions)
    held_out = _classes(n, exclude) if exclude_symmetric else set()
    drawn: dict[int, tuple[bytes, bytes, int]] = {}
    pending, round_, repeats = list(range(num)), 0, 0
    with _mapping(workers) as run, _bar(num, f"sudoku{n}", progress) as advance:
        while pending:
            jobs, pending = [(index, round_) for index in pending], []
            draws = _marked(run(functools.partial(_draw, wish), jobs), n, held_out)
            for (index, _), (draw, image) in zip(jobs, draws, strict=True):
                if image or draw[0] in seen or draw[1] in banned:
                    pending.append(index)
                    repeats += round_ > 0  # round 0 may be `exclude` again, if the seed is the same
                    if repeats == _MAX_REPEATS:
                        raise ValueError(_exhausted(num, len(drawn), wish))
                else:
                    seen.add(draw[0])
                    drawn[index], repeats = draw, 0
                    advance(1)
            round_ += 1
    inputs, labels, ratings = zip(*(drawn[index] for index in range(num)), strict=True)
    return _puzzles(n, b"".join(inputs), b"".join(labels), ratings)


def random_grid(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a full grid (L,) uint8 tokens: a search with random guesses, then a random symmetry.

    Every grid can come out, and all grids that are symmetric images of each other are equally
    likely. Between such classes the chance differs: by a factor of 2 on 4x4 (two classes), by
    e**0.7 on 6x6 and e**1.2 on 9x9 (one standard deviation of its logarithm).
    """
    tables = tables_for(n)
    found, _ = search(tables, tables.start, 1, rng=rng)
    return sample_symmetry(n, rng).apply(np.array(read_state(tables, found[0]), dtype=np.uint8))


def _draw(wish: _Wish, job: tuple[int, int]) -> tuple[bytes, bytes, int]:
    """Puzzle, solution (token bytes) and rating for (index, round)."""
    rng = np.random.default_rng(np.random.SeedSequence(wish.seed, spawn_key=job))
    tables = tables_for(wish.n)
    for _ in range(wish.max_attempts):
        solution = random_grid(wish.n, rng)
        digits = dig(tables, digits_of(solution), wish.clues, rng)
        if digits is None:
            continue
        found, rating = search(tables, place_clues(tables, digits), 2)
        assert len(found) == 1, f"digging left {len(found)} solutions"
        if rating >= wish.min_rating and (wish.max_rating is None or rating <= wish.max_rating):
            return bytes(digit + 1 for digit in digits), solution.tobytes(), rating
    upper = "any" if wish.max_rating is None else wish.max_rating
    raise ValueError(
        f"no {wish.n}x{wish.n} puzzle with clues={wish.clues} and rating {wish.min_rating} to "
        f"{upper} in {wish.max_attempts} attempts; widen the rating bounds, "
        "raise max_attempts, or ask for more clues"
    )


def _check_wish(wish: _Wish, num: int, workers: int) -> None:
    box_shape(wish.n)
    name, fewest, num_cells = f"{wish.n}x{wish.n}", FEWEST_CLUES[wish.n], wish.n**2
    for what, value, least in (
        ("num", num, 1),
        ("seed", wish.seed, 0),
        ("workers", workers, 1),
        ("max_attempts", wish.max_attempts, 1),
        ("min_rating", wish.min_rating, 0),
    ):
        if value < least:
            raise ValueError(f"{what} is {value}; it must be {least} or more")
    if wish.clues is not None and not fewest <= wish.clues <= num_cells:
        raise ValueError(
            f"clues is {wish.clues}; a {name} Sudoku with one solution has {fewest} to "
            f"{num_cells} (leave it out for irreducible puzzles)"
        )
    if wish.max_rating is not None and wish.max_rating < wish.min_rating:
        raise ValueError(
            f"max_rating {wish.max_rating} is below min_rating {wish.min_rating}; swap them"
        )


def _forbidden(n: int, exclude: Puzzles | None, solutions: bool) -> tuple[set[bytes], set[bytes]]:
    """Return token bytes of forbidden puzzles and of forbidden solutions."""
    if exclude is None:
        if solutions:
            raise ValueError("exclude_solutions=True needs the puzzles: pass exclude=")
        return set(), set()
    if exclude.grid != (n, n):
        raise ValueError(f"exclude holds {exclude.grid} grids, but n is {n}; they must agree")
    if solutions and not exclude.labels.all():
        raise ValueError("exclude has no solutions (labels hold PAD); read it with solve=True")
    banned = {row.tobytes() for row in exclude.labels} if solutions else set()
    return {row.tobytes() for row in exclude.inputs}, banned


def _classes(n: int, exclude: Puzzles | None) -> set[bytes]:
    """Return the keys of the classes of symmetric puzzles that `exclude` rules out."""
    if exclude is None:
        raise ValueError("exclude_symmetric=True needs the puzzles: pass exclude=")
    return set(canonical_rows(exclude.inputs, n=n))


def _marked(draws: Iterable, n: int, classes: set[bytes]) -> Iterator[tuple[Any, bool]]:
    """Yield each draw, and whether its puzzle belongs to one of `classes`."""
    draws = iter(draws)
    if not classes:
        yield from ((draw, False) for draw in draws)  # and leaves none for the loop
    while block := list(islice(draws, _DRAWS_AT_ONCE)):
        puzzles = np.frombuffer(b"".join(draw[0] for draw in block), dtype=np.uint8)
        keys = canonical_rows(puzzles.reshape(len(block), -1), n=n)
        yield from ((draw, key in classes) for draw, key in zip(block, keys, strict=True))


def _exhausted(num: int, num_drawn: int, wish: _Wish) -> str:
    return (
        f"only {num_drawn} of {num} different {wish.n}x{wish.n} puzzles found: the last "
        f"{_MAX_REPEATS} draws were repeats or excluded; ask for fewer puzzles, a larger n, "
        "another clue count, or exclude less"
    )


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[..., Iterable]]:
    """Yield a map(function, jobs) that keeps the order, over processes if workers > 1."""
    if workers == 1:
        yield map
        return
    import multiprocessing  # only here: most callers never start a process
    from concurrent.futures import ProcessPoolExecutor

    # spawn: a forked child of a process that runs torch threads can hang
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield lambda function, jobs: pool.map(
            function, jobs, chunksize=max(1, min(64, len(jobs) // (4 * workers)))
        )
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _bar(num: int, what: str, progress: bool) -> Iterator[Callable[[int], Any]]:
    """Yield a function that reports n more puzzles done."""
    if not progress or num <= _BAR_FROM:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=num, desc=what, unit="puzzle") as bar:
        yield bar.update


def _puzzles(n: int, inputs: bytes, labels: bytes, ratings: Iterable[int]) -> Puzzles:
    """Build a set from token bytes."""
    question, answer = (
        np.frombuffer(bytearray(data), dtype=np.uint8).reshape(-1, n * n)  # bytearray: writeable
        for data in (inputs, labels)
    )
    rating = np.array(list(ratings), dtype=np.int32)
    return Puzzles(question, answer, grid=(n, n), vocab_size=n + 2, rating=rating)


# ---------------------------------------------------------------------------- text and files


def encode(text: str, *, n: int | None = None) -> np.ndarray:
    """Tokens (L,) uint8 of a line of digits, '.' or '0' for blank; n is taken from the length.

    Raises ValueError for a wrong length (of n x n, if n is given) or a wrong character.
    """
    if n is not None and len(text) != n * n:
        raise ValueError(f"{len(text)} cells; a {n}x{n} Sudoku has {n * n}")
    n = grid_size(len(text))
    tokens = _lookup(n)[np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)]
    bad = np.flatnonzero(tokens == 0)
    if len(bad):
        raise ValueError(
            f"{text[bad[0]]!r} at position {bad[0] + 1}; a {n}x{n} Sudoku uses the digits "
            f"1 to {n}, and '.' or '0' for a blank"
        )
    return tokens


def decode(tokens: np.ndarray) -> str:
    """Write tokens (L,) as one line: digits, '.' for blank and PAD."""
    return "".join(str(digit) if digit else "." for digit in digits_of(tokens))


def read_lines(
    path: str | os.PathLike,
    *,
    solve: bool = True,
    num: int | None = None,
    progress: bool = True,
) -> Puzzles:
    """Read a list of puzzles, one a line: 16, 36 or 81 characters, '.' or '0' blank, '#' comment.

    solve=True solves each, for labels and ratings; solve=False leaves the labels PAD and finds
    neither unsolvable nor ambiguous puzzles. `num` stops after that many puzzles.

    Raises FileNotFoundError, or ValueError with the line number: wrong length or character,
    sizes mixed, contradictory clues, no or several solutions; or for a file without puzzles.
    """
    _check_num(num)
    numbers, rows = [], []
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        lines = ((i, line.partition("#")[0].strip()) for i, line in enumerate(file, 1))
        for number, text in islice((item for item in lines if item[1]), num):
            with _located(path, number):
                rows.append(encode(text))
                if len(rows[-1]) != len(rows[0]):
                    raise ValueError(f"{len(text)} cells after puzzles of {len(rows[0])}; split")
            numbers.append(number)
    if not rows:
        raise ValueError(f"{path} holds no puzzle; give lines of 16, 36 or 81 characters")
    inputs = np.array(rows)
    _check_rows(path, numbers, inputs)
    n = grid_size(inputs.shape[1])
    if not solve:
        return Puzzles(inputs, np.zeros_like(inputs), grid=(n, n), vocab_size=n + 2)
    labels, rating = _solve_rows(path, numbers, inputs, progress)
    return Puzzles(inputs, labels, grid=(n, n), vocab_size=n + 2, rating=rating)


def read_csv(
    path: str | os.PathLike,
    *,
    num: int | None = None,
    check_unique: bool = False,
    progress: bool = True,
) -> Puzzles:
    """Read the published Sudoku-Extreme format: CSV with source, question, answer, rating.

    Answers are checked against the rules and the clues. check_unique=True also solves each
    question (0.2 to 2 ms a puzzle), to find those with several solutions. Ratings are the file's:
    the published ones are guesses of tdoku (see the module docstring). `num` stops after that many.

    Raises FileNotFoundError, or ValueError with the line number.
    """
    _check_num(num)
    inputs, labels, ratings, numbers = [], [], [], []
    n = 0
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = islice(_csv_rows(path, file), num)
        while block := list(islice(rows, _ROWS_AT_ONCE)):
            with _located(path, block[0][0]):
                n = n or grid_size(len(block[0][1]))
            at = [row[0] for row in block]
            question = _encode_block(path, at, [row[1] for row in block], n)
            answer = _encode_block(path, at, [row[2] for row in block], n)
            _check_rows(path, at, question, answer)
            inputs.append(question)
            labels.append(answer)
            ratings += [row[3] for row in block]
            numbers += at
    if not inputs:
        raise ValueError(f"{path} has no rows after its header; nothing to read")
    question, answer = np.concatenate(inputs), np.concatenate(labels)
    if check_unique:
        _solve_rows(path, numbers, question, progress)
    rating = np.array(ratings, dtype=np.int32)
    return Puzzles(question, answer, grid=(n, n), vocab_size=n + 2, rating=rating)


def write_csv(puzzles: Puzzles, path: str | os.PathLike, *, source: str = "inward") -> Path:
    """Write puzzles in the published CSV format ('.' blank) and return the path.

    Missing ratings are computed. Raises ValueError for a set without solutions.
    """
    path = Path(path)
    if not (puzzles.labels > BLANK).all():
        raise ValueError("labels hold blank or PAD cells; solve the puzzles before writing them")
    rating = puzzles.rating
    if rating is None:
        rating = [rate(row) for row in puzzles.inputs]
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        for question, answer, value in zip(puzzles.inputs, puzzles.labels, rating, strict=True):
            writer.writerow([source, decode(question), decode(answer), int(value)])
    return path


@functools.cache
def _lookup(n: int) -> np.ndarray:
    """ASCII code -> token (256,) uint8, 0 where the character is not allowed."""
    table = np.zeros(256, dtype=np.uint8)
    table[[ord("."), ord("0")]] = BLANK
    table[[ord(str(digit)) for digit in range(1, n + 1)]] = np.arange(2, n + 2)
    return table


@contextmanager
def _located(path: str | os.PathLike, number: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from error


def _check_num(num: int | None) -> None:
    if num is not None and num < 1:
        raise ValueError(f"num is {num}; read at least 1 puzzle, or leave it out to read all")


def _csv_rows(path: str | os.PathLike, file: Iterable[str]) -> Iterator[tuple[int, str, str, int]]:
    """Yield (line number, question, answer, rating) of each row after the header."""
    reader = csv.reader(file)
    with _located(path, 1):
        header = next(reader, [])
        if [name.strip().lower() for name in header] != CSV_HEADER:
            raise ValueError(f"the header is {header}; it must be {','.join(CSV_HEADER)}")
    while True:
        with _located(path, reader.line_num + 1):
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise ValueError(f"not a CSV row: {error}") from error
            if row is None:
                return
            if not row:  # an empty line
                continue
            if len(row) != 4:
                raise ValueError(f"{len(row)} columns; a row has {','.join(CSV_HEADER)}")
            if not row[3].strip().isdecimal() or int(row[3]) >= 2**31:
                raise ValueError(f"rating {row[3]!r} is not a count of guesses (0 to 2^31 - 1)")
            item = (reader.line_num, row[1].strip(), row[2].strip(), int(row[3]))
        yield item


def _encode_block(
    path: str | os.PathLike, numbers: list[int], texts: list[str], n: int
) -> np.ndarray:
    """Tokens (N, L) of many lines at once: the published file has 3.8 million."""
    if all(len(text) == n * n for text in texts):
        codes = np.frombuffer("".join(texts).encode("ascii", "replace"), dtype=np.uint8)
        tokens = _lookup(n)[codes].reshape(-1, n * n)
        if tokens.all():
            return tokens
    for number, text in zip(numbers, texts, strict=True):  # something is wrong: find out where
        with _located(path, number):
            encode(text, n=n)
    raise AssertionError("a block failed that consists of good lines")


def _check_rows(
    path: str | os.PathLike,
    numbers: list[int],
    questions: np.ndarray,
    answers: np.ndarray | None = None,
) -> None:
    """Raise ValueError naming the first line whose clues or answer break the rules."""
    for start in range(0, len(questions), _ROWS_AT_ONCE):  # bounds the memory of `conflicts`
        wrong = conflicts(questions[start : start + _ROWS_AT_ONCE]).any(axis=1)
        for index in np.flatnonzero(wrong)[:1] + start:
            with _located(path, numbers[index]):
                check_clues(questions[index])
    if answers is None:
        return
    wrong = (answers == BLANK).any(axis=1) | conflicts(answers).any(axis=1)
    for index in np.flatnonzero(wrong)[:1]:
        raise ValueError(f"{path}, line {numbers[index]}: the answer is not a full valid grid")
    wrong = ((questions != BLANK) & (questions != answers)).any(axis=1)
    for index in np.flatnonzero(wrong)[:1]:
        raise ValueError(f"{path}, line {numbers[index]}: the answer contradicts the clues")


def _solve_rows(
    path: str | os.PathLike, numbers: list[int], inputs: np.ndarray, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N, L) uint8 and ratings (N,) int32, or ValueError naming the line."""
    labels, rating = np.empty_like(inputs), np.empty(len(inputs), dtype=np.int32)
    with _bar(len(inputs), "solving", progress) as advance:
        for index, number in enumerate(numbers):
            with _located(path, number):
                labels[index], rating[index] = solve_unique(inputs[index])
            advance(1)
    return labels, rating


# ---------------------------------------------------------------------------- symmetries


@dataclass(frozen=True, eq=False)
class SudokuSymmetry:
    """A map under which a valid Sudoku stays valid: digits, rows, columns, transposition.

    digits     (n,) permutation of 1..n: digit d becomes digits[d - 1]
    rows       (n,) permutation of 0..n-1: row i of the image is row rows[i] of the grid
               (after the transposition); rows of a band stay together
    cols       (n,) likewise, columns of a stack stay together
    transpose  only where boxes are square (4x4, 9x9)

    Blank and PAD stay what they are. Raises ValueError if this is not a symmetry.
    """

    digits: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    transpose: bool = False

    def __post_init__(self) -> None:
        n = len(self.digits)
        box_rows, box_cols = box_shape(n)
        digits = np.asarray(self.digits).tolist()
        if sorted(digits) != list(range(1, n + 1)):
            raise ValueError(f"digits {digits} are not a permutation of 1 to {n}")
        _check_lines("rows", self.rows, n, box_rows)
        _check_lines("cols", self.cols, n, box_cols)
        if self.transpose and box_rows != box_cols:
            raise ValueError(f"boxes of {box_rows}x{box_cols} cells cannot be transposed")

    @functools.cached_property
    def _maps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Gather index (L,) and token table (n + 2,), then their inverses."""
        n = len(self.digits)
        cells = np.arange(n * n).reshape(n, n)
        cells = cells.T if self.transpose else cells
        index = cells[np.asarray(self.rows)][:, np.asarray(self.cols)].ravel()
        table = np.concatenate([[0, BLANK], np.asarray(self.digits) + 1])
        return index, table, np.argsort(index), np.argsort(table)

    def apply(self, tokens: np.ndarray) -> np.ndarray:
        """Map tokens (..., L) of any integer dtype; same shape and dtype."""
        index, table = self._maps[:2]
        return self._map(tokens, index, table)

    def invert(self, tokens: np.ndarray) -> np.ndarray:
        """Undo `apply`."""
        index, table = self._maps[2:]
        return self._map(tokens, index, table)

    def _map(self, tokens: np.ndarray, index: np.ndarray, table: np.ndarray) -> np.ndarray:
        if tokens.shape[-1] != len(index):
            raise ValueError(f"rows of {tokens.shape[-1]} tokens; this symmetry has {len(index)}")
        if tokens.size and (tokens.min() < 0 or tokens.max() >= len(table)):
            raise ValueError(
                f"tokens are {tokens.min()} to {tokens.max()}; they must be 0 to {len(table) - 1} "
                "(map labels before replacing PAD by an ignore index)"
            )
        return table.astype(tokens.dtype)[tokens[..., index]]


def sample_symmetry(n: int, rng: np.random.Generator) -> SudokuSymmetry:
    """Draw one of the symmetries of an n x n Sudoku, all equally likely.

    There are 9! * 2 * 6**8 for 9x9, 6! * (6 * 2**3) * (2 * 6**2) for 6x6, 4! * 2 * 8**2 for 4x4.
    """
    box_rows, box_cols = box_shape(n)
    return SudokuSymmetry(
        digits=rng.permutation(n) + 1,
        rows=_shuffled_lines(n, box_rows, rng),
        cols=_shuffled_lines(n, box_cols, rng),
        transpose=bool(box_rows == box_cols and rng.integers(2)),
    )


def _shuffled_lines(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Permute groups of `size` neighbouring lines, and the lines in each group."""
    groups = rng.permuted(np.arange(n).reshape(-1, size), axis=1)
    return groups[rng.permutation(n // size)].ravel()


def _check_lines(name: str, lines: np.ndarray, n: int, size: int) -> None:
    lines = np.asarray(lines).tolist()  # plain ints: this runs once for every training row
    together = all(
        lines[i] // size == lines[i - i % size] // size for i in range(min(n, len(lines)))
    )
    if sorted(lines) != list(range(n)) or not together:
        raise ValueError(
            f"{name} {lines} must permute 0 to {n - 1} and keep groups of {size} together"
        )
