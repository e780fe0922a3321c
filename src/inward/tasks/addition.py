"""The addition task: how to write, read and check a sum (`inward.data.texts.arithmetic_text`)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from inward.data.texts.arithmetic_text import EQUALS, FIRST_DIGIT, PAD, PLUS, SIGNS, Addition


@dataclass(frozen=True)
class AdditionTask:
    """Sums with the format of `rows`."""

    rows: Addition = field(default_factory=Addition)

    @property
    def name(self) -> str:
        """Name in tables and file names, such as add2x4 (digits x operands in training)."""
        return f"add{self.rows.num_digits}x{self.rows.max_operands}"

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.rows.vocab_size

    def parse(self, text: str) -> np.ndarray:
        """Token ids (P,) of a question such as "12 + 7 + 93 =" (the last sign may be missing).

        Raises ValueError for anything else, or a number with too many digits.
        """
        if not re.fullmatch(r"\s*\d+(\s*\+\s*\d+)+\s*=?\s*", text):
            raise ValueError(f"{text!r} is no sum; write two or more numbers as in '12+7='")
        return self.rows.prompt([int(number) for number in re.findall(r"\d+", text)])

    def format(self, ids: np.ndarray) -> str:
        """Text of a question or a row, digits in the order in which they stand."""
        return "".join(self.word(int(token)) for token in np.asarray(ids) if token != PAD)

    def word(self, token: int) -> str:
        """A token as text; ValueError if there is no such token."""
        if token in SIGNS:
            return SIGNS[token]
        if not FIRST_DIGIT <= token < PLUS:
            raise ValueError(f"token {token} is neither a digit nor a sign")
        return str(token - FIRST_DIGIT)

    def solve(self, prompt: np.ndarray) -> np.ndarray:
        """(A,) the tokens of the right answer to the last sum of a prompt."""
        text = self.format(prompt)
        if not text or int(np.asarray(prompt)[-1]) != EQUALS:
            raise ValueError(f"{text!r} does not end with '='")
        numbers = re.findall(r"\d+", text.rpartition(";")[2])
        return self.rows.answer(sum(int(number) for number in numbers))

    def verify(self, prompts: list[np.ndarray], answers: np.ndarray) -> np.ndarray:
        """(B,) bool: which answers, (B, A) token ids with the end, are the sum."""
        right = np.stack([self.solve(prompt) for prompt in prompts])
        answers = np.asarray(answers)
        if answers.shape != right.shape:
            raise ValueError(f"answers have shape {answers.shape}; must be {right.shape}")
        return (answers == right).all(axis=1)
