"""Which Sudokus are images of each other: one key for each class of symmetric puzzles.

Training shows every puzzle through a fresh `SudokuSymmetry` at each visit (digits relabelled,
bands, stacks, rows and columns moved, transposition where boxes are square). A held-out puzzle that
is an image of a training puzzle is then not held out at all, though cell by cell the two differ.

Exact: the key of a puzzle is the token bytes of one of its own images, so equal keys mean
symmetric puzzles; and the choice among the images uses nothing that a symmetry changes, so
symmetric puzzles have equal keys. The choice (individualisation and refinement, as in McKay and
Piperno, "Practical graph isomorphism, II", arXiv 1301.1493, here with bands and stacks):

1. Both orientations of the grid are nodes (only one where boxes are not square).
2. Rows, columns and digits get colours: hashes of the colours they meet in the cells and of the
   other lines of their band or stack, a fixed number of times.
3. Where every line that holds a clue has a colour of its own, the colours arrange the grid. Of a
   puzzle's nodes only such ones stay, if there are any; of these, those with the least hash over
   all colours. Arranged grids leave for step 5.
4. In the others, each line of the largest class of equal colours is set apart, in a node of its
   own, and step 2 follows. Puzzles that somebody would want to solve hardly ever come here.
5. Digits are renamed by first appearance; the least grid of a puzzle's nodes is its key.

Unusual: all puzzles of a block take the steps together, as numpy arrays with one row per node, so
a puzzle costs 0.02 ms without compiled code (a full 9x9 grid 2 ms, the worst puzzle found, nine
different digits on the diagonal, 60 ms). A collision of hashes costs time, never exactness: it is
the same collision in every image, and no two lines are treated as one because of it.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from inward.data.puzzles.puzzles import Puzzles
from inward.data.puzzles.sudoku_solver import BLANK, box_shape, check_clues, conflicts

__all__ = ["canonical", "canonical_rows", "symmetric_to_any"]

_BLOCK = 256  # puzzles done together: more is no faster, and takes more memory
_MOST_NODES = 16_384  # at once, if several puzzles share them: bounds the memory
_ROUNDS = 4  # of recolouring after each change; fewer mean more nodes
_LAST = np.uint64(2**64 - 1)
_ROW, _COL, _SYMBOL, _OWN, _GROUP, _APART = np.array(  # digits of pi, made odd
    [
        0x243F6A8885A308D3,
        0x13198A2E03707345,
        0xA4093822299F31D1,
        0x082EFA98EC4E6C89,
        0x452821E638D01377,
        0xBE5466CF34E90C6D,
    ],
    dtype=np.uint64,
)


def canonical(tokens: np.ndarray, *, n: int) -> bytes | list[bytes]:
    """Return a key that exactly the symmetric images of a puzzle share.

    tokens     (L,) or (N, L) integers: 1 = blank, digit d = d + 1, any number of clues and
               solutions
    n          4, 6 or 9, L = n * n
    returns    bytes, or a list of N: the tokens (uint8, row major) of the image that stands for
               all of them. `canonical` of this image is again the key

    Raises ValueError for another shape or dtype, for PAD and unknown tokens, and for clues that
    contradict each other.
    """
    if tokens.ndim == 1:
        return canonical_rows(tokens[None], n=n)[0]
    return canonical_rows(tokens, n=n)


def canonical_rows(rows: np.ndarray, *, n: int) -> list[bytes]:
    """Return the keys of puzzles (N, L); errors as `canonical`."""
    box = box_shape(n)
    if rows.ndim != 2 or rows.shape[1] != n * n:
        raise ValueError(f"puzzles of shape {rows.shape}; give ({n * n},) or (N, {n * n})")
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"tokens are {rows.dtype}; they must be integers")
    keys: list[bytes] = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        _check_block(block, start, n)
        keys += _keys(block.reshape(-1, n, n).astype(np.uint8), box)
    return keys


def symmetric_to_any(puzzles: Puzzles, others: Puzzles) -> np.ndarray:
    """Tell which puzzles are images of one of `others`, or equal to it: (N,) bool.

    Only the questions (`inputs`) are compared. Raises ValueError as `canonical` does, and for
    grids of different sizes.
    """
    if puzzles.grid != others.grid:
        raise ValueError(f"puzzles are {puzzles.grid}, others {others.grid}; they must agree")
    known = set(canonical_rows(others.inputs, n=others.grid[0]))
    return np.array([key in known for key in canonical_rows(puzzles.inputs, n=puzzles.grid[0])])


# ---------------------------------------------------------------------------- nodes


@dataclass(frozen=True)
class _Nodes:
    """M arrangements on trial; nodes of one puzzle are neighbours, puzzles are in order.

    owner    (M,) int             index of the puzzle
    cells    (M, n, n) uint8      its tokens, transposed in some nodes
    clear    (M, 2n) bool         the rows, then the columns, that hold no clue
    lines    (M, 2n) uint64       colours of the rows, then of the columns
    symbols  (M, n + 2) uint64    colours of the tokens
    """

    owner: np.ndarray
    cells: np.ndarray
    clear: np.ndarray
    lines: np.ndarray
    symbols: np.ndarray

    def __len__(self) -> int:
        return len(self.owner)

    def take(self, index: np.ndarray) -> "_Nodes":
        return _Nodes(*(getattr(self, f.name)[index] for f in fields(self)))


def _keys(cells: np.ndarray, box: tuple[int, int]) -> list[bytes]:
    """Do the five steps for puzzles (N, n, n) uint8."""
    keys: dict[int, bytes] = {}
    nodes = _refine(_first_nodes(cells, square=box[0] == box[1]), box)
    while len(nodes):
        classes = _largest_classes(nodes)
        done = np.logical_not(classes.any(axis=1))
        kept = _least(nodes, done)
        nodes, classes, done = nodes.take(kept), classes[kept], done[kept]
        leaves = nodes.take(done)
        for owner, grid in zip(leaves.owner.tolist(), _arranged(leaves, box), strict=True):
            key = grid.tobytes()
            keys[owner] = min(key, keys.get(owner, key))
        if classes.sum() > _MOST_NODES and len(cells) > 1:
            half = len(cells) // 2
            return _keys(cells[:half], box) + _keys(cells[half:], box)
        nodes = _set_apart(nodes, classes)  # arranged nodes have no class: none is left of them
        if len(nodes):
            nodes = _refine(nodes, box)
    return [keys[index] for index in range(len(cells))]


def _first_nodes(cells: np.ndarray, *, square: bool) -> _Nodes:
    """Step 1."""
    owner, n = np.arange(len(cells)), cells.shape[1]
    if square:
        owner = np.repeat(owner, 2)
        cells = np.stack([cells, cells.swapaxes(1, 2)], axis=1).reshape(-1, n, n)
    blank = cells == BLANK
    clear = np.concatenate([blank.all(axis=2), blank.all(axis=1)], axis=1)
    lines = np.ones((len(cells), 2 * n), dtype=np.uint64)
    symbols = np.ones((len(cells), n + 2), dtype=np.uint64)
    symbols[:, BLANK] = 2  # a blank is never renamed
    return _Nodes(owner, cells, clear, lines, symbols)


def _refine(nodes: _Nodes, box: tuple[int, int]) -> _Nodes:
    """Step 2. The number of rounds is fixed: it must not depend on the other puzzles."""
    num, n = nodes.cells.shape[:2]
    lines, symbols = nodes.lines, nodes.symbols
    flat = nodes.cells.reshape(num, -1).astype(np.intp)
    slot = flat + np.arange(num)[:, None] * (n + 2)  # where a cell's token is in `symbols`
    for _ in range(_ROUNDS):
        # Sums are hashes of multisets: order, which a symmetry changes, does not matter.
        cross = (lines[:, :n, None] * _ROW + lines[:, None, n:] * _COL).reshape(num, -1)
        met = _mix(cross + symbols.ravel()[slot] * _SYMBOL)
        of_symbols = np.zeros(symbols.size, dtype=np.uint64)
        np.add.at(of_symbols, slot.ravel(), met.ravel())
        met = met.reshape(num, n, n)
        of_lines = np.concatenate([met.sum(axis=2), met.sum(axis=1)], axis=1)
        groups = [_group_sums(lines[:, :n], box[0]), _group_sums(lines[:, n:], box[1])]
        lines = _mix(lines * _OWN + np.concatenate(groups, axis=1) * _GROUP + of_lines)
        symbols = _mix(symbols * _OWN + of_symbols.reshape(symbols.shape))
    return replace(nodes, lines=lines, symbols=symbols)


def _least(nodes: _Nodes, done: np.ndarray) -> np.ndarray:
    """Step 3: indices of the nodes that stay; arranged ones before others, else the least hash."""
    n = nodes.lines.shape[1] // 2
    sums = nodes.lines[:, :n].sum(axis=1) * _ROW + nodes.lines[:, n:].sum(axis=1) * _COL
    score = (_mix(sums) >> np.uint64(1)) | ((~done).astype(np.uint64) << np.uint64(63))
    starts = np.flatnonzero(np.diff(nodes.owner, prepend=-1))
    counts = np.diff(starts, append=len(nodes))
    return np.flatnonzero(score == np.repeat(np.minimum.reduceat(score, starts), counts))


def _largest_classes(nodes: _Nodes) -> np.ndarray:
    """Lines to set apart in step 4: (M, 2n) bool, all False where the grid can be arranged.

    Lines without clues are never set apart: see `_arranged`.
    """
    lines, held = nodes.lines, ~nodes.clear
    sizes = ((lines[:, :, None] == lines[:, None, :]) & held[:, None, :]).sum(axis=2)
    sizes = np.where(held & (sizes > 1), sizes, 0)
    largest = (sizes > 0) & (sizes == sizes.max(axis=1, keepdims=True))
    colour = np.where(largest, lines, _LAST).min(axis=1, keepdims=True)
    return largest & (lines == colour)


def _set_apart(nodes: _Nodes, classes: np.ndarray) -> _Nodes:
    """Step 4: one child for each line of each node's class."""
    parent, line = np.nonzero(classes)
    children = nodes.take(parent)
    lines = children.lines.copy()
    lines[np.arange(len(parent)), line] ^= _APART
    return replace(children, lines=lines)


def _arranged(leaves: _Nodes, box: tuple[int, int]) -> np.ndarray:
    """Step 5: the grids (M, L) uint8 that the colours stand for.

    Lines come in the order of their colours, those without clues last in their band; bands in the
    order of their first line. Ties are left only between lines without clues in one band, or in
    bands without any clue, and moving those changes nothing.
    """
    n = leaves.cells.shape[1]
    colours = np.where(leaves.clear, _LAST, leaves.lines)
    rows = _line_order(colours[:, :n], box[0])
    cols = _line_order(colours[:, n:], box[1])
    which = np.arange(len(leaves))[:, None, None]
    grids = leaves.cells[which, rows[:, :, None], cols[:, None, :]].reshape(-1, n * n)
    digits = np.arange(BLANK + 1, n + 2)
    met = grids[:, None, :] == digits[:, None]
    first = np.where(met.any(axis=2), met.argmax(axis=2), n * n)
    names = np.ones((len(leaves), n + 2), dtype=np.uint8)  # BLANK stays, PAD does not occur
    order = np.argsort(first, axis=1, kind="stable") + BLANK + 1
    np.put_along_axis(names, order, digits[None].astype(np.uint8), axis=1)
    return np.take_along_axis(names, grids.astype(np.intp), axis=1)


def _line_order(colours: np.ndarray, size: int) -> np.ndarray:
    """Sort lines (M, n) by the least colour of their group of `size`, then by their own."""
    num, n = colours.shape
    groups = colours.reshape(num, n // size, size).min(axis=2)
    return np.lexsort((colours, np.repeat(groups, size, axis=1)), axis=1)


def _group_sums(colours: np.ndarray, size: int) -> np.ndarray:
    """Sum over the group of each line: (M, n) to (M, n)."""
    num, n = colours.shape
    return colours.reshape(num, n // size, size).sum(axis=2).repeat(size, axis=1)


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble uint64 (in place) so that sums of results tell multisets apart."""
    x ^= x >> np.uint64(32)
    x *= _SYMBOL
    x ^= x >> np.uint64(29)
    x *= _ROW
    x ^= x >> np.uint64(32)
    return x


def _check_block(block: np.ndarray, start: int, n: int) -> None:
    """Raise ValueError naming the first puzzle that cannot be canonicalised.

    Contradictory clues are refused because a grid of one digit has millions of automorphisms.
    """
    for index in np.flatnonzero(((block < BLANK) | (block > n + 1)).any(axis=1))[:1]:
        raise ValueError(
            f"puzzle {start + index} holds tokens {block[index].min()} to {block[index].max()}; "
            f"a {n}x{n} Sudoku uses 1 (blank) to {n + 1}"
        )
    for index in np.flatnonzero(conflicts(block).any(axis=1))[:1]:
        try:
            check_clues(block[index])
        except ValueError as error:
            raise ValueError(f"puzzle {start + index}: {error}") from error
