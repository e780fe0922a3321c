"""Tokens become text while they are said: no half characters, no stop word that then has to be
taken back.

A tokenizer is asked for the text of all tokens of an answer again and again, never of one token
alone: pieces of byte-level vocabularies are no characters, and a space may belong to its neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Decode = Callable[[Sequence[int]], str]
"""Token ids -> their text."""

_UNFINISHED = "�"
"""What decoders write for bytes that are no character yet."""


@dataclass(frozen=True)
class StopWords:
    """Texts that end an answer; it holds what came before the first of them.

    decode: of the model's tokenizer.
    """

    words: tuple[str, ...]
    decode: Decode

    def __post_init__(self) -> None:
        if not self.words or not all(isinstance(w, str) and w for w in self.words):
            raise ValueError(f"stop words are {self.words!r}; give texts that are not empty")

    def found(self, tokens: Sequence[int]) -> bool:
        """Whether the text of these tokens holds one of the words. Only the end is looked at: what
        lies before has been looked at when it was said."""
        longest = max(len(word.encode()) for word in self.words)
        tail = self.decode(list(tokens[-(longest + 1) :]))
        return any(word in tail for word in self.words)

    def cut(self, text: str) -> str:
        """The text before the first of the words."""
        places = [place for word in self.words if (place := text.find(word)) >= 0]
        return text[: min(places)] if places else text

    def held(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a word."""
        most = min(len(text), max(map(len, self.words)) - 1)
        starts = range(most, 0, -1)
        return next((n for n in starts if any(w.startswith(text[-n:]) for w in self.words)), 0)


@dataclass
class Speaker:
    """The text of an answer as it grows.

    decode: of the tokens of the answer, end tokens left out by the caller.
    unsettled: how many of the last tokens may still change their text, whatever it is now: of a
        vocabulary with bytes a run of them, which is no text at all if one byte is wrong.
    """

    decode: Decode
    stop: StopWords | None = None
    unsettled: Callable[[Sequence[int]], int] | None = None
    tokens: list[int] = field(default_factory=list)
    given: int = 0

    def say(self, tokens: Sequence[int]) -> str:
        """What these further tokens make certain: text that nothing later can change."""
        self.tokens += tokens
        num_open = 0 if self.unsettled is None else self.unsettled(self.tokens)
        text = self.text(len(self.tokens) - num_open)
        sure = text.rstrip(_UNFINISHED)
        if self.stop is not None:
            cut = self.stop.cut(sure)
            sure = cut if len(cut) < len(sure) else sure[: len(sure) - self.stop.held(sure)]
        return self._give(sure)

    def rest(self) -> str:
        """What was held back, now that nothing more comes."""
        text = self.text()
        return self._give(text if self.stop is None else self.stop.cut(text))

    def text(self, num: int | None = None) -> str:
        """Of all tokens so far, or of the first `num`."""
        told = self.tokens[:num]
        return self.decode(told) if told else ""

    def _give(self, sure: str) -> str:
        new, self.given = sure[self.given :], max(self.given, len(sure))
        return new
