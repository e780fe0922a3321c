"""Tokens become text while they are said: no half characters, no stop word that then has to be
taken back.

A tokenizer is asked for the text of tokens together with those before them, never of one token
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


WINDOW = 16
"""Tokens after which those before them are looked at no more."""


@dataclass
class Speaker:
    """The text of an answer as it grows.

    The text of all tokens is what counts, but it is not decoded again for each of them: what comes
    is decoded behind the last WINDOW tokens or so, whose text stands, and what these add to the
    text of all is what they add to that of their neighbours (a blank is dropped at the beginning
    of a text, and there alone). Where a decoder does not keep to this, all is decoded.

    decode: of the tokens of the answer, end tokens left out by the caller.
    unsettled: how many of the last tokens may still change their text, whatever it is now: of a
        vocabulary with bytes a run of them, which is no text at all if one byte is wrong.
    given: characters that have been given.
    """

    decode: Decode
    stop: StopWords | None = None
    unsettled: Callable[[Sequence[int]], int] | None = None
    tokens: list[int] = field(default_factory=list)
    given: int = 0
    _begin: int = 0
    """the window is tokens[_begin:], of which those before _end stand"""
    _end: int = 0
    _before: str = ""
    """text of tokens[_begin:_end]"""
    _kept: str = ""
    """text of tokens[:_end] from character `_from` on, where `given` was then"""
    _from: int = 0

    def say(self, tokens: Sequence[int]) -> str:
        """What these further tokens make certain: text that nothing later can change."""
        self.tokens += tokens
        num_open = 0 if self.unsettled is None else self.unsettled(self.tokens)
        num = len(self.tokens) - num_open
        text = self._late(num)
        sure = text.rstrip(_UNFINISHED)[self.given - self._from :]
        if self.stop is not None:
            # what has been given begins no stop word: that would have been held back
            cut = self.stop.cut(sure)
            sure = cut if len(cut) < len(sure) else sure[: len(sure) - self.stop.held(sure)]
        self.given += len(sure)
        if num - self._end >= WINDOW and not num_open and not text.endswith(_UNFINISHED):
            self._move(num, text)
        return sure

    def rest(self) -> str:
        """What was held back, now that nothing more comes."""
        text = self._late(len(self.tokens))[self.given - self._from :]
        new = text if self.stop is None else self.stop.cut(text)
        self.given += len(new)
        return new

    def text(self, num: int | None = None) -> str:
        """Of all tokens so far, or of the first `num`; decoded anew."""
        told = self.tokens[:num]
        return self.decode(told) if told else ""

    def _late(self, num: int) -> str:
        """The text of the first `num` tokens from character `_from` on."""
        if num < self._end:  # what stood is open again
            self._start_over()
        window = self.tokens[self._begin : num]
        text = self.decode(window) if window else ""
        if not text.startswith(self._before):
            self._start_over()
            text = self.text(num)
        return self._kept + text[len(self._before) :]

    def _start_over(self) -> None:
        self._begin = self._end = self._from = 0
        self._before = self._kept = ""

    def _move(self, num: int, text: str) -> None:
        """The window begins where what stands ended, if its text is the same without what was
        before; `text` as of `_late`."""
        alone = self.decode(self.tokens[self._end : num])
        added = text[len(self._kept) :]
        if not alone or added.lstrip(" ") != alone.lstrip(" "):
            return
        self._kept, self._from = text[self.given - self._from :], self.given
        self._begin, self._end, self._before = self._end, num, alone
