"""Traces of language models in the terminal: the text, and beside each piece how it came about.

    told(trace)             Huginn: recurrences under every token; TiDAR: one line a forward, what
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


def decoder(trace: Trace, decode: Decode | None = None) -> Decode:
    """The decoder given, or the trace's own pieces."""
    if decode is not None:
        return decode
    if not trace.pieces:
        raise ValueError(
            "this trace names no pieces of text; make it with ask(..., trace=True), or pass decode="
        )
    return lambda ids: "".join(trace.pieces[int(i)] for i in ids)


def told(trace: Trace, decode: Decode | None = None) -> Text:
    """The story of one text.

    decode: default: the pieces in the trace.

    Raises ValueError for a trace of another method.
    """
    tellers = {"huginn": _depths, "tidar": _bursts, "plain": _bursts}
    if trace.method not in tellers:
        raise ValueError(f"a trace of {trace.method!r} is not told here; {sorted(tellers)} are")
    return tellers[trace.method](trace, decoder(trace, decode))


def piece(text: str) -> str:
    """A token as one visible word: blanks at its ends dropped, line ends written as \\n."""
    return visible(text).strip() or "_"


def visible(text: str) -> str:
    """Joined pieces on one line: blanks kept, line ends written as \\n."""
    return text.replace("\n", "\\n")


def _depths(trace: Trace, decode: Decode) -> Text:
    """Words above, recurrences below, in lines of _WIDTH columns."""
    steps = [step for step in trace.steps if step.says is not None]
    most = max((step.scores["steps"] for step in steps), default=1.0)
    lines, words, depths = [], Text(), Text()
    for step in steps:
        assert step.says is not None
        word, depth = piece(decode(step.says.ids.tolist())), f"{step.scores['steps']:.0f}"
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
    lines = []
    for step in trace.steps:
        new = [] if step.says is None else step.says.ids.tolist()
        accepted, offered = step.scores.get("accepted"), step.scores.get("offered")
        judged = "" if not offered else f"{accepted:.0f} of {offered:.0f} stood"
        line = Text(f"{step.index:>4}  {judged:<15}", "dim")
        kept = int(accepted or 0)
        line.append(decode(new[:kept]).replace("\n", "\\n"), "green")
        line.append(decode(new[kept:]).replace("\n", "\\n"), "bold")
        lines.append(line)
    return Text("\n").join(lines)
