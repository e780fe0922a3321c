"""Have these weights changed? Asked of every byte, once a call.

Nothing else tells: a step of `AdamW(fused=True)`, an edit through `.data` and the merge of an
adapter change a weight in place and do not raise its version counter.

    mark = Mark(weight)
    ...
    mark == Mark(weight)        # every byte is what it was, and where it was

The bytes are read as rows of WIDTH small integers and multiplied with a fixed matrix of random
ones, COLUMNS to a row. Products of int8 are exact in int32, so this is a linear map over the
integers: a change d of a row is missed only if all columns are orthogonal to d. A single byte never
is (no entry is 0); any other change by one chance in 255^COLUMNS, whether entries are swapped, rows
change places, signs flip, or sums stay. What fills no row is kept as it is.

It takes twice as long as a sum of the bytes, which is as fast as memory is read: a fifth of a hash
that processors have instructions for (CRC, SHA), and needs no copy to compare with.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

WIDTH, COLUMNS = 1 << 14, 16
"""128 * 128 * WIDTH < 2^31: no sum overflows. Narrower rows take longer."""


class Mark:
    """What a tensor's bytes, dtype and shape are; equal to that of the same, see above."""

    def __init__(self, tensor: Tensor) -> None:
        with torch.no_grad():
            flat = tensor.detach().reshape(-1).view(torch.int8)
            whole = len(flat) // WIDTH * WIDTH
            self.kind = tensor.dtype, tensor.shape
            self.rest = flat[whole:].clone()
            self.rows = torch._int_mm(flat[:whole].view(-1, WIDTH), _matrix()) if whole else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mark) or self.kind != other.kind:
            return False
        if self.rows is not None and other.rows is not None:
            return torch.equal(self.rows, other.rows) and torch.equal(self.rest, other.rest)
        return torch.equal(self.rest, other.rest)

    __hash__ = None  # type: ignore[assignment]


@lru_cache(maxsize=1)
def _matrix() -> Tensor:
    """(WIDTH, COLUMNS) int8 from 1 to 127 and from -128 to -1."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(-127, 128, (WIDTH, COLUMNS), generator=generator)
    return torch.where(drawn == 0, -128, drawn).to(torch.int8)
