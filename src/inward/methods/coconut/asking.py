"""How a model was trained to be asked: what follows a question in its prompts, and who switches.

As JSON in inward.json, written by recipes:

    opening   [["text", ids], ["latent", 2], ...] after the question's tokens
    switch    {"name": "scripted", "thoughts": [2, 2], "sentences": 1, "ends": [13]}, or a name and
              numbers of `switch.NAMED`
    own       further options
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inward.data.thoughts.segments import Latent, Sample, Segment, Text
from inward.methods.coconut.switch import NAMED, Boundary, Scripted, Switch


def prepare(
    model: Any, tokens: Sequence[int], ask: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[Sample, dict[str, Any]]:
    """The prompt for a question's tokens, and options as in training. Who says himself when to
    think (`thoughts`, `switch`) gets the bare question; a model of which nothing is known switches
    by the boundaries that it says.

    Raises:
        ValueError: an opening or a switch that this version does not know.
    """
    question = Text(tuple(tokens), False)
    options = dict(ask.get("own", {}))
    if {"thoughts", "switch"} & set(own):
        return Sample((question,)), options
    options["switch"] = switch_from(ask["switch"]) if "switch" in ask else Boundary()
    return Sample(tuple(_joined(question, ask.get("opening", [])))), options


def _joined(question: Text, opening: Sequence[Sequence[Any]]) -> list[Segment]:
    segments: list[Segment] = [question]
    for kind, what in opening:
        last = segments[-1]
        if kind == "latent":
            segments.append(Latent(int(what)))
        elif kind == "text" and isinstance(last, Text):
            segments[-1] = Text(last.ids + tuple(what), False)
        elif kind == "text":
            segments.append(Text(tuple(what), False))
        else:
            raise ValueError(f"a prompt's opening has no parts of kind {kind!r}")
    return segments


def switch_from(spec: Mapping[str, Any]) -> Switch:
    """The switch that was saved.

    Raises:
        ValueError: a name that is not known, or numbers that are not its own.
    """
    name, numbers = spec["name"], {key: value for key, value in spec.items() if key != "name"}
    if name == "scripted":
        ends = frozenset(numbers.get("ends", ()))
        return Scripted(tuple(numbers["thoughts"]), int(numbers.get("sentences", 1)), ends)
    if name not in NAMED:
        raise ValueError(f"there is no switch {name!r}; there are scripted, {', '.join(NAMED)}")
    return NAMED[name](**numbers)
