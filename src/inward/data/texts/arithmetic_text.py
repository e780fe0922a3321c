"""Addition of several numbers, written out: `12+07+93=211;`.

Difficulty is the number of operands. The answer has the lowest digit first, as one adds on paper:
each digit then needs the digits and the carry that are already there; with the highest first, the
first digit would need all of them (`order="high"` asks for that, to see what depth alone can do).
Operands have the same number of digits, with zeros in front; the answer has as many as the largest
sum can need. `;` ends it.

Tokens: 0 padding, 1 to 10 the digits 0 to 9, 11 `+`, 12 `=`, 13 `;`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from inward.common import IGNORE

PAD, FIRST_DIGIT, PLUS, EQUALS, END = 0, 1, 11, 12, 13
SIGNS = {PLUS: "+", EQUALS: "=", END: ";"}


@dataclass(frozen=True)
class Addition:
    """The generator; a `Rows` of inward.data.texts.text. ValueError for settings out of range."""

    num_digits: int = 2
    """of each operand"""
    max_operands: int = 4
    """in training, where 2 to this many are equally likely; questions may have more"""
    num_sums: int = 1
    """sums in a training row"""
    order: Literal["low", "high"] = "low"

    def __post_init__(self) -> None:
        if not 1 <= self.num_digits <= 15:
            raise ValueError(f"num_digits is {self.num_digits}; choose 1 to 15")
        if not 2 <= self.max_operands <= self.hardest:
            raise ValueError(f"max_operands is {self.max_operands}; choose 2 to {self.hardest}")
        if self.num_sums < 1:
            raise ValueError(f"num_sums is {self.num_sums}; a row needs at least 1")
        if self.order not in ("low", "high"):
            raise ValueError(f"order is {self.order!r}; choose 'low' or 'high'")

    @property
    def vocab_size(self) -> int:
        """Padding, digits and three signs."""
        return END + 1

    @property
    def hardest(self) -> int:
        """Most operands of a question: the sum then still has two digits more than an operand."""
        return 100

    @property
    def answer_digits(self) -> int:
        """Digits of every answer; the same for all numbers of operands, so that length says
        nothing."""
        return self.num_digits + (1 if self.max_operands <= 10 else 2)

    @property
    def row_length(self) -> int:
        """Tokens of the longest training row."""
        operands = self.max_operands * (self.num_digits + 1)
        return self.num_sums * (operands + self.answer_digits + 1)

    def row(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """ids and labels (row_length or less,): the digits of every answer and its end count."""
        sums = [
            self.question(rng, int(rng.integers(2, self.max_operands + 1)))
            for _ in range(self.num_sums)
        ]
        return np.concatenate([ids for ids, _ in sums]), np.concatenate([x for _, x in sums])

    def question(self, rng: np.random.Generator, difficulty: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and labels of one sum of `difficulty` operands.

        Raises ValueError for less than two operands, or so many that the answer may not fit.
        """
        most = min(self.hardest, 10 ** (self.answer_digits - self.num_digits))
        if not 2 <= difficulty <= most:
            raise ValueError(f"difficulty is {difficulty}; choose 2 to {most} operands")
        numbers = rng.integers(0, 10**self.num_digits, difficulty)
        asked, answer = self.prompt(numbers.tolist()), self.answer(int(numbers.sum()))
        ids = np.concatenate([asked, answer])
        labels = ids.copy()
        labels[: len(asked)] = IGNORE
        return ids, labels

    def prompt(self, numbers: list[int]) -> np.ndarray:
        """Tokens of `12+07=`; ValueError for a number with too many digits."""
        ids: list[int] = []
        for number in numbers:
            ids += [*_digits(number, self.num_digits), PLUS]
        ids[-1] = EQUALS
        return np.array(ids, dtype=np.int64)

    def answer(self, total: int) -> np.ndarray:
        """Tokens of the answer and its end."""
        digits = _digits(total, self.answer_digits)
        return np.array([*(digits[::-1] if self.order == "low" else digits), END], dtype=np.int64)

    def describe(self) -> dict[str, Any]:
        """Settings as JSON values, for logs and model cards."""
        return {"task": "addition", **asdict(self)}


def _digits(number: int, width: int) -> list[int]:
    """Tokens of a number, the highest digit first."""
    if not 0 <= number < 10**width:
        raise ValueError(f"{number} does not have {width} digits or less")
    return [FIRST_DIGIT + int(digit) for digit in str(number).zfill(width)]
