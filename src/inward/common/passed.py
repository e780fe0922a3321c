"""What clients of transformers pass along to a model's `forward` and `generate`.

Trainers, collators, tokenizers and servers hand every model the same arguments, and those of
transformers take them all. Ours take what is true and changes nothing here, and refuse by name what
would have to change the numbers:

    tokenizer                       for stop strings; nothing in a forward
    use_cache=True, is_causal=True  as it is anyway
    token_type_ids                  all 0: there is one type of text
    cache_position                  the columns that the cache says
    cu_seq_lens_q, cu_seq_lens_k,   where packed texts begin and how long they are, for the kernels
    max_length_q, max_length_k,     of FlashAttention; ours go by position_ids, so the two must
    seq_idx                         agree
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_KNOWN = (
    *("tokenizer", "use_cache", "is_causal", "token_type_ids", "cache_position", "seq_idx"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
)


@dataclass(frozen=True)
class Passed:
    """Of whom and about what: rows of `num_new` tokens behind `num_past` cached ones.

    begins: place of each packed text in the rows laid end to end, from 0; None: a text a row.
    """

    model: str
    num_rows: int
    num_new: int
    num_past: int = 0
    begins: Sequence[int] | None = None

    def rest(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that are not known here.

        Raises:
            ValueError: a known one that would have to change the numbers.
        """
        return {name: value for name, value in given.items() if not self._inert(name, value)}

    def _inert(self, name: str, value: Any) -> bool:
        """Whether the name is known; a value that is not inert is refused."""
        if name in _KNOWN and (value is None or name == "tokenizer"):
            return True
        if name == "is_causal":
            if not value:
                self._refuse(name, value, "it reads from left to right alone")
        elif name == "use_cache":
            if not value:
                self._refuse(name, value, "it always keeps what it has read")
        elif name == "token_type_ids":
            if bool(torch.as_tensor(value).any()):
                self._refuse(name, "not 0 everywhere", "it knows one type of text")
        elif name == "cache_position":
            self._same(name, value, list(range(self.num_past, self.num_past + self.num_new)))
        elif name in ("cu_seq_lens_q", "cu_seq_lens_k"):
            self._same(name, value, self._bounds(0 if name.endswith("q") else self.num_past))
        elif name in ("max_length_q", "max_length_k"):
            bounds = self._bounds(0 if name.endswith("q") else self.num_past)
            longest = max(b - a for a, b in pairwise(bounds))
            if int(value) < longest:
                self._refuse(name, int(value), f"the longest text has {longest} tokens")
        elif name == "seq_idx":
            flat = torch.as_tensor(value).reshape(-1).tolist()
            changes = [i for i in range(1, len(flat)) if flat[i] != flat[i - 1]]
            self._same(name, [0, *changes, len(flat)], self._bounds(0))
        else:
            return False
        return True

    def _bounds(self, num_past: int) -> list[int]:
        """Where the texts begin and the last one ends, in the rows laid end to end."""
        length = num_past + self.num_new
        if self.begins is not None and not num_past:
            return [*self.begins, self.num_rows * length]
        return [row * length for row in range(self.num_rows + 1)]

    def _same(self, name: str, value: Any, expected: list[int]) -> None:
        found = torch.as_tensor(value).reshape(-1).tolist()
        if found != expected:
            told = f"{expected[:8]}{' ...' if len(expected) > 8 else ''}"
            why = f"position_ids and the cache make it {told}; leave it out, or make them agree"
            self._refuse(name, f"{found[:8]}{' ...' if len(found) > 8 else ''}", why)

    def _refuse(self, name: str, value: Any, why: str) -> None:
        raise ValueError(f"{name} is {value}, which {self.model} cannot follow: {why}")


def begins_of(position_ids: Tensor | None, num_rows: int) -> list[int] | None:
    """Where texts begin in rows that are packed, as position_ids (B or 1, S) say it: a position
    that is not its left neighbour's successor begins one."""
    if position_ids is None:
        return None
    starts = position_ids.diff(dim=1, prepend=position_ids[:, :1]) != 1
    starts[:, 0] = True
    return starts.expand(num_rows, -1).reshape(-1).nonzero()[:, 0].tolist()


def passed_of(model: str, ids: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a `generate` for ids (B, S) that are not known here, `tokenizer` among them:
    stop strings need it. See `Passed.rest`."""
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return dict(given)  # refused, or read, by who reads the prompts
    tokenizer = given.get("tokenizer")
    return Passed(model, len(ids), ids.shape[1]).rest(given) | (
        {} if tokenizer is None else {"tokenizer": tokenizer}
    )
