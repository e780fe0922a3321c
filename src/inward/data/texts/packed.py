"""Packed token rows as a pure function of the step: text for language models.

Texts of unequal length share rows of `seq_len` tokens, so that little is spent on padding. What a
row holds is settled once, when the source is made; an epoch visits all rows in a new order. So the
data position is the step (see source.py).

    tokens = Tokens.from_ids(list_of_ids)                        plain text
    tokens = Tokens.from_answers([(question, answer), ...])      only answers are predicted
    source = PackedSource(tokens, seq_len=512, seed=0)

A batch holds input_ids (b, S) int64; documents (b, S) int64, the number of each token's text within
its row, -1 for padding; supervised (b, S) bool, the tokens that are to be predicted, if not all;
and weight (b,), how many predictions that makes: the first token of a text is nobody's.
Losses that shift must shift `supervised` by themselves.

`PackedTokens` saves as plain .npy files and opens them memory-mapped, so a corpus need not fit in
memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from inward.common.checks import check_slice, checked_seed
from inward.common.files import reading
from inward.data.arrays import mapped

if TYPE_CHECKING:
    import torch

PADDING = -1
_EPOCH_STREAM = (0, 1)


@dataclass(frozen=True, eq=False)
class PackedTokens:
    """Texts one after the other."""

    ids: np.ndarray
    """(n,) int32, all texts"""
    starts: np.ndarray
    """(number of texts + 1,) int64: text t is ids[starts[t]:starts[t + 1]]"""
    supervised: np.ndarray | None = None
    """(n,) bool, which tokens are to be predicted; None: all"""

    def __post_init__(self) -> None:
        for name in ("ids", "starts"):
            array = getattr(self, name)
            if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
                raise ValueError(
                    f"{name} holds {array.dtype} {array.shape}; a row of integers is needed"
                )
        good = len(self.starts) > 1 and self.starts[0] == 0 and self.starts[-1] == len(self.ids)
        if not good or (np.diff(self.starts) < 1).any():
            raise ValueError(
                f"{len(self.starts) - 1} texts over {len(self.ids)} tokens do not fit: starts must "
                "rise from 0 to the number of tokens, and no text may be empty"
            )
        if self.supervised is not None and len(self.supervised) != len(self.ids):
            raise ValueError(
                f"supervised has {len(self.supervised)} entries for {len(self.ids)} tokens"
            )

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def from_ids(cls, texts: Iterable[Sequence[int]]) -> PackedTokens:
        """Every token is to be predicted."""
        kept = [np.asarray(text, dtype=np.int32) for text in texts]
        return cls(_joined(kept, np.int32), _starts(kept))

    @classmethod
    def from_answers(cls, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> PackedTokens:
        """Pairs (question, answer): only the answers are to be predicted."""
        kept, marks = [], []
        for question, answer in pairs:
            kept.append(np.asarray([*question, *answer], dtype=np.int32))
            marks.append(np.arange(len(kept[-1])) >= len(question))
        return cls(_joined(kept, np.int32), _starts(kept), _joined(marks, np.bool_))

    def save(self, folder: str | Path) -> None:
        """Write ids.npy, supervised.npy and, last, starts.npy."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("ids", "supervised", "starts"):
            array = getattr(self, name)
            if array is not None:
                temporary = folder / f".new-{name}.npy"
                np.save(temporary, array, allow_pickle=False)
                temporary.replace(folder / f"{name}.npy")

    @classmethod
    def open(cls, folder: str | Path) -> PackedTokens:
        """Open what `save` wrote, without reading it into memory.

        Raises:
            FileNotFoundError: there is no such folder, or it is not complete.
            ValueError: a file is damaged.
        """
        folder = Path(folder)
        if not (folder / "starts.npy").exists():
            raise FileNotFoundError(f"{folder} holds no tokens: there is no starts.npy in it")

        def read(name: str) -> np.ndarray:
            return mapped(folder / f"{name}.npy")

        marked = (folder / "supervised.npy").exists()
        with reading(folder):
            return cls(read("ids"), read("starts"), read("supervised") if marked else None)


def _joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _starts(parts: list[np.ndarray]) -> np.ndarray:
    return np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)


class PackedSource:
    """Rows of `seq_len` tokens.

    cut        "whole": texts stay whole, each in the fullest row that still has room (a text
               longer than a row is cut into rows of its own). "stream": texts end to end, cut
               every seq_len tokens; no padding, and the last tokens, less than a row, are left out
    separate   True: batches say which text a token belongs to. False: a row is one text, as is
               common in pretraining; only with "stream"
    """

    def __init__(
        self,
        tokens: PackedTokens,
        *,
        seq_len: int,
        seed: int,
        cut: Literal["whole", "stream"] = "whole",
        separate: bool = True,
    ) -> None:
        if seq_len < 2:
            raise ValueError(f"seq_len is {seq_len}; a row needs at least 2 tokens")
        if cut not in ("whole", "stream"):
            raise ValueError(f'cut is {cut!r}; choose "whole" or "stream"')
        if cut == "whole" and not separate:
            raise ValueError('separate=False needs cut="stream": whole texts leave padding')
        self.tokens = tokens
        self.seq_len = seq_len
        self.seed = checked_seed(seed)
        self.cut = cut
        self.separate = separate
        pieces = _pieces(tokens.starts, seq_len, stream=cut == "stream")
        self._rows = _stream(pieces, seq_len) if cut == "stream" else _best_fit(pieces, seq_len)
        if cut == "whole" and tokens.supervised is not None:
            self._rows = _taught(self._rows, tokens.supervised)
        if not self._rows:
            raise ValueError(
                f"{len(tokens.ids)} tokens do not fill one row of {seq_len}; take a shorter "
                'seq_len, or cut="whole"'
            )
        self._orders: dict[int, np.ndarray] = {}  # a memo of `_order`, not state

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self._rows)

    @property
    def filled(self) -> float:
        """Share of the rows' places that hold tokens."""
        held = sum(stop - start for row in self._rows for start, stop in row)
        return held / (len(self) * self.seq_len)

    def batch(self, step: int, rows: range, num_rows: int) -> dict[str, torch.Tensor]:
        """See `inward.data.puzzles.source.Source.batch`, and the top of this file for what is in
        it."""
        import torch

        check_slice(step, rows, num_rows)
        shape = (len(rows), self.seq_len)
        ids, documents = np.zeros(shape, np.int64), np.full(shape, PADDING, np.int64)
        supervised = np.zeros(shape, bool)
        for i, row in enumerate(rows):
            self._fill(self._index(step * num_rows + row), ids[i], documents[i], supervised[i])
        first = np.ones(shape, bool)
        first[:, 1:] = documents[:, 1:] != documents[:, :-1]
        batch = {"input_ids": ids, "weight": (supervised & ~first).sum(1)}
        if self.separate:
            batch["documents"] = documents
        if self.tokens.supervised is not None:
            batch["supervised"] = supervised
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _fill(
        self, index: int, ids: np.ndarray, documents: np.ndarray, supervised: np.ndarray
    ) -> None:
        place = 0
        for number, (start, stop) in enumerate(self._rows[index]):
            into = slice(place, place + stop - start)
            ids[into] = self.tokens.ids[start:stop]
            documents[into] = number if self.separate else 0
            marks = self.tokens.supervised
            supervised[into] = True if marks is None else marks[start:stop]
            place = into.stop

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self))
        if epoch not in self._orders:
            rng = np.random.default_rng([self.seed, epoch, *_EPOCH_STREAM])
            if len(self._orders) >= 2:  # a batch seldom spans more than two epochs
                del self._orders[min(self._orders)]
            self._orders[epoch] = rng.permutation(len(self))
        return int(self._orders[epoch][place])

    def describe(self) -> dict[str, Any]:
        """Return settings as JSON values, for logs and model cards."""
        return {
            "kind": "packed tokens",
            "num_texts": len(self.tokens),
            "num_tokens": len(self.tokens.ids),
            "answers_only": self.tokens.supervised is not None,
            "seq_len": self.seq_len,
            "num_rows": len(self),
            "filled": round(self.filled, 4),
            "cut": self.cut,
            "separate": self.separate,
            "seed": self.seed,
        }


Piece = tuple[int, int]
"""ids[start:stop] of one text"""


def _pieces(starts: np.ndarray, seq_len: int, *, stream: bool) -> list[Piece]:
    """Texts, in whole mode cut where they are longer than a row."""
    texts = [(int(a), int(b)) for a, b in pairwise(starts)]
    if stream:
        return texts
    cuts = [(a, stop) for start, stop in texts for a in range(start, stop, seq_len)]
    return [(a, min(a + seq_len, stop)) for a, stop in cuts]


def _stream(texts: list[Piece], seq_len: int) -> list[list[Piece]]:
    """Rows of exactly seq_len tokens; a text that crosses an edge goes on in the next row."""
    rows: list[list[Piece]] = [[] for _ in range(texts[-1][1] // seq_len)]
    for start, stop in texts:
        for row in range(start // seq_len, min(-(-stop // seq_len), len(rows))):
            low, high = max(start, row * seq_len), min(stop, (row + 1) * seq_len)
            rows[row].append((low, high))
    return rows


def _taught(rows: list[list[Piece]], supervised: np.ndarray) -> list[list[Piece]]:
    """Rows in which something is to be predicted; others are parts of long questions.

    Raises ValueError if there is none.
    """
    # the first token of a piece is nobody's prediction
    kept = [row for row in rows if any(supervised[start + 1 : stop].any() for start, stop in row)]
    if not kept:
        raise ValueError(
            "no row holds a token that is to be predicted: the questions fill the rows, or the "
            "answers are empty; take a longer seq_len"
        )
    return kept


def _best_fit(pieces: list[Piece], seq_len: int) -> list[list[Piece]]:
    """Best-fit decreasing: longest first, each into the row with the least room that is enough."""
    rows: list[list[Piece]] = []
    with_room: list[list[int]] = [[] for _ in range(seq_len + 1)]  # free places -> rows
    rooms = np.zeros(seq_len + 1, dtype=np.int64)
    for start, stop in sorted(pieces, key=lambda piece: piece[0] - piece[1]):
        length = stop - start
        enough = np.flatnonzero(rooms[length:])
        if len(enough):
            room = length + int(enough[0])
            row = with_room[room].pop()
            rooms[room] -= 1
        else:
            room, row = seq_len, len(rows)
            rows.append([])
        rows[row].append((start, stop))
        with_room[room - length].append(row)
        rooms[room - length] += 1
    return rows
