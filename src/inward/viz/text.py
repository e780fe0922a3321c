"""Traces of language models in the terminal: the text, and beside each piece how it came about.

    told(trace, decode)     Huginn: recurrences under every token; TiDAR: one line a forward, what
                            was drafted and what stood

Thoughts of Coconut have a module of their own, `inward.viz.thoughts`. Colour is a help, never the
carrier: numbers and marks say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.text import Text

from inward.common.trace import Trace

Decode = Callable[[Sequence[int]], str]
"""token ids -> text"""

_WIDTH = 72


def told(trace: Trace, decode: Decode) -> Text:
    """The story of one text.

    Raises ValueError for a trace of another method.
    """
    tellers = {"huginn": _depths, "tidar": _bursts}
    if trace.method not in tellers:
        raise ValueError(f"a trace of {trace.method!r} is not told here; {sorted(tellers)} are")
    return tellers[trace.method](trace, decode)


def piece(text: str) -> str:
    """A token as one visible word: blanks at its ends dropped, line ends written as \\n."""
    return text.replace("\n", "\\n").strip() or "_"


def _depths(trace: Trace, decode: Decode) -> Text:
    """Words above, recurrences below, in lines of _WIDTH columns."""
    steps = [step for step in trace.steps if step.tokens is not None]
    most = max((step.scores["steps"] for step in steps), default=1.0)
    lines, words, depths = [], Text(), Text()
    for step in steps:
        assert step.tokens is not None
        word, depth = piece(decode(step.tokens.tolist())), f"{step.scores['steps']:.0f}"
        width = max(len(word), len(depth)) + 1
        if len(words) + width > _WIDTH:
            lines += [words, depths]
            words, depths = Text(), Text()
        style = ("dim", "", "bold")[min(2, int(3 * step.scores["steps"] / (most + 1)))]
        words.append(word.ljust(width), style)
        depths.append(depth.ljust(width), "cyan")
    return Text("\n").join([*lines, words, depths])


def _bursts(trace: Trace, decode: Decode) -> Text:
    """A line a forward: +accepted of offered, and the words that it added."""
    lines, before = [], 0
    for number, step in enumerate(trace.steps, start=1):
        assert step.tokens is not None
        new = step.tokens[before:].tolist()
        before = len(step.tokens)
        accepted, offered = step.scores.get("accepted"), step.scores.get("offered")
        judged = "" if not offered else f"{accepted:.0f} of {offered:.0f} stood"
        line = Text(f"{number:>4}  {judged:<15}", "dim")
        kept = int(accepted or 0)
        line.append(decode(new[:kept]).replace("\n", "\\n"), "green")
        line.append(decode(new[kept:]).replace("\n", "\\n"), "bold")
        lines.append(line)
    return Text("\n").join(lines)
