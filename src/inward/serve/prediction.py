"""A user's guess at the answer as a source of drafts, which the verifier judges like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Predicted:
    """Guesses what follows in a predicted text; of one request.

    While the answer keeps to the prediction, what comes next there; once they differ, what follows
    the place where the last few tokens of the answer occur again, the longest match first and of
    equals the nearest behind the last place.

    text: the prediction; tokens: its, once `place_behind` has been told the prompt. most, least:
    tokens that are compared.
    """

    text: str
    tokens: tuple[int, ...] = ()
    most: int = 8
    least: int = 2
    begin: int | None = field(default=None, init=False)
    place: int = field(default=0, init=False)
    length: int = field(default=0, init=False)

    def place_behind(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        """Find the tokens of the text as they follow a prompt: many tokenizers write the beginning
        of a text in another way than its middle."""
        tail = tokenizer.decode(list(prompt[-4:]), clean_up_tokenization_spaces=False)
        alone = list(tokenizer(tail, add_special_tokens=False).input_ids)
        both = list(tokenizer(tail + self.text, add_special_tokens=False).input_ids)
        if both[: len(alone)] != alone:  # the two grow together at the seam
            both, alone = list(tokenizer(self.text, add_special_tokens=False).input_ids), []
        self.tokens = tuple(both[len(alone) :])

    def __call__(self, tokens: Sequence[int], num: int) -> Sequence[int]:
        """Up to `num` guesses for what follows the tokens of prompt and answer."""
        if self.begin is None:
            self.begin = self.length = len(tokens)
        new = list(tokens[self.length :])
        self.length = len(tokens)
        if list(self.tokens[self.place : self.place + len(new)]) == new:
            self.place += len(new)
        else:
            self.place = self._found(tokens[self.begin :])
        return self.tokens[self.place : self.place + num]

    def _found(self, said: Sequence[int]) -> int:
        """Where in the prediction to go on; its end if the last tokens occur nowhere."""
        for length in range(min(self.most, len(said)), self.least - 1, -1):
            tail = tuple(said[-length:])
            places = [
                end
                for end in range(length, len(self.tokens))
                if self.tokens[end - length : end] == tail
            ]
            if places:
                return min(places, key=lambda end: (end < self.place, abs(end - self.place)))
        return len(self.tokens)
