"""`inward chat`: talk with a model, word by word as it speaks.

tyro reads the fields' types at run time, so there is no `from __future__ import annotations` here.
"""

import sys
from dataclasses import dataclass
from typing import Any

from inward.cli.ask import Asking, command, effort_of, spelled_out, summary
from inward.cli.options import _go

HELP = """/effort low|medium|high|N   how hard to think; /effort alone: as by default
/show                      how the last answer came about
/reset                     forget the conversation
/quit                      end (so does an empty input, Ctrl-D)"""


def chat(words: list[str]) -> int:
    """Talk with a model."""
    return _go(command(Chat), "chat", spelled_out(words))


@dataclass(kw_only=True)
class Chat(Asking):
    """Talk with a model; /help says what else can be typed. Where the model's tokenizer has a chat
    template, it sees the whole conversation (of which a plain model and a TiDAR read only what is
    new); elsewhere every line is a question of its own."""

    def run(self, words: list[str]) -> int:
        """Run it."""
        options, thinker = self.options(), self.thinker()
        talk = Talk(thinker, options, self.seed)
        if sys.stdin.isatty():
            print(f"{thinker!r}; /help for commands", file=sys.stderr)
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "")
            except EOFError:
                return 0
            if not line.strip() or line.strip() == "/quit":
                return 0
            try:
                talk.hear(line)
            except ValueError as error:
                print(f"inward: {error}", file=sys.stderr)


class Talk:
    """A conversation."""

    def __init__(self, thinker: Any, options: dict[str, Any], seed: int):
        from inward.common.thinking import Memory

        self.thinker, self.options, self.seed = thinker, options, seed
        # a model that was trained on single questions has never seen a conversation
        self.has_turns = getattr(thinker.processor, "chats", False)
        self.messages: list[dict[str, str]] = []
        self.memory = Memory() if self.has_turns and thinker.method.remembers else None
        self.last: Any = None

    def hear(self, line: str) -> None:
        """A line typed: a command, or something to answer."""
        word, _, rest = line.strip().partition(" ")
        if word == "/help":
            print(HELP)
        elif word == "/reset":
            self.messages = []
        elif word == "/effort":
            self._effort(rest.strip())
        elif word == "/show":
            self._show()
        elif word.startswith("/"):
            raise ValueError(f"there is no command {word}; /help lists them")
        else:
            self._answer(line)

    def _effort(self, text: str) -> None:
        before = self.options.pop("effort", None)
        if not text:
            return
        try:
            self.thinker.check(effort=effort_of(text))
        except ValueError:
            if before is not None:
                self.options["effort"] = before
            raise
        self.options["effort"] = effort_of(text)

    def _show(self) -> None:
        from inward.viz.show import show

        if self.last is None or self.last.trace is None:
            raise ValueError("nothing has been answered yet")
        show(self.last.trace)

    def _reused(self) -> str:
        """What of the conversation was not read again."""
        facts = self.last.details
        if not facts.get("reused"):
            return ""
        return f", {facts['reused']} of {facts['num_prompt']} tokens of the prompt known already"

    def _answer(self, line: str) -> None:
        question: Any = line
        if self.has_turns:
            question = [*self.messages, {"role": "user", "content": line}]
        asked = {"seed": self.seed, "trace": True, "memory": self.memory} | self.options
        for event in self.thinker.stream(question, **asked):
            if event.kind == "word":
                print(event.text, end="", flush=True)
            elif event.kind == "end":
                self.last = event.answer
        print(f"\n  [{summary(self.thinker, self.last)}{self._reused()}]")
        if self.has_turns:
            self.messages = [*question, {"role": "assistant", "content": self.last.text}]
