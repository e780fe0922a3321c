"""A question on its way through a method: what went in, and how what comes out becomes text.

Whoever loops over the stepping form with a processor (`Thinker`, the server) tells events and
answers through this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from inward.common.speaking import Speaker
from inward.common.thinking import Answer, Event, Request
from inward.common.trace import Trace
from inward.tasks.processors import Processor, Prompt


@dataclass(frozen=True, eq=False)
class AskedQuestion:
    """A question that has been read and checked; it is told once.

    request: for the work. speaker: its text so far. model: the name for traces.
    """

    prompt: Prompt
    request: Request
    speaker: Speaker
    processor: Processor
    model: str = ""

    def told(self, events: Sequence[Event], answer: Answer | None = None) -> Iterator[Event]:
        """The events of one step of this request with their texts, and under the number 0.

        answer: if one of them is the end, what `finished` made of the work's result; before the end
            then comes what was held back of the text.
        """
        said = [event for event in events if event.kind == "word"]
        for event in events:
            if event.kind == "end":
                assert answer is not None, "an end has an answer"
                rest = answer.text[self.speaker.given :]
                if rest:
                    yield Event("word", 0, (), rest, answer.steps)
                yield replace(event, request=0, answer=answer)
                continue
            # an end token is a token said, but no text
            silent = answer is not None and answer.stopped == "end" and event is said[-1]
            yield self._told(event, event.tokens[: -1 if silent else None])

    def _told(self, event: Event, tokens: tuple[int, ...]) -> Event:
        if event.kind == "word":
            text = self.speaker.say(tokens)
        elif event.kind == "rewrite":
            text = self.processor.write(tokens, self.prompt)
        else:
            text = "".join(map(self.processor.piece, tokens))
        return replace(event, request=0, text=text)

    def finished(self, answer: Answer, seconds: float) -> Answer:
        """The answer with its text, its seconds, and a trace that needs no tokenizer."""
        tokens = answer.tokens[:-1] if answer.stopped == "end" else answer.tokens
        text = self.processor.write(tokens, self.prompt)
        if self.request.stop is not None:
            text = self.request.stop.cut(text)
        if answer.trace is not None:
            self._complete(answer.trace)
        details = dict(answer.details)
        verdict = getattr(self.processor, "verdict", None)
        if verdict is not None:
            details["obeys_rules"] = verdict(self.prompt, answer.tokens)
        cost = replace(answer.cost, seconds=answer.cost.seconds or seconds)
        return replace(answer, text=text, cost=cost, details=details)

    def _complete(self, trace: Trace) -> None:
        trace.model = self.model
        trace.roles = list(self.prompt.roles)
        trace.pieces = {token: self.processor.piece(token) for token in sorted(trace.named())}
        trace.meta |= self.processor.meta(self.prompt)
