"""What a picture of thinking shows beside the trace, found by asking the same model again.

    beside(thinker, question, answer)      adds to answer.trace.meta what there is for this method

    "plain"   TiDAR: the clock of plain decoding of the same text, a number a token
    "tree"    Coconut on ProsQA: how likely the next spoken step begins with each node, after each
              thought of this very trace (the forced read-out of `thoughts_search`)
    "swaps"   Coconut: what it says when one of its thoughts is another question's

Nothing here is needed to draw a trace; each costs as much as asking once more, or, for swaps and
trees, as often as there are thoughts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from inward.data.thoughts.prosqa import distances, graph_of, swapped
from inward.data.thoughts.records import Record
from inward.studies.thoughts_search import along
from inward.tasks.prosqa import read_question

if TYPE_CHECKING:
    from inward.common.thinking import Answer
    from inward.thinker import Thinker

MOST_SWAPS = 12
_DRAFTING = ("scheme", "num_blocks", "threshold", "costs", "chooser", "drafter", "K")


def beside(
    thinker: Thinker,
    question: Any,
    answer: Answer,
    *,
    other: str | None = None,
    seed: int | None = None,
    **options: Any,
) -> None:
    """Add to the trace of an answer what a page shows beside it.

    Args:
        question, seed, options: as they were asked.
        other: Coconut: the question whose thoughts are put in; default: on ProsQA the same graph
            asked from its other root, elsewhere none, and then nothing is swapped.

    Raises:
        ValueError: the answer has no trace.
    """
    if answer.trace is None:
        raise ValueError("this answer has no trace to add to; ask with trace=True")
    options.pop("trace", None)
    if thinker.method.name == "tidar" and not answer.error:
        answer.trace.meta["plain"] = plain_clock(thinker, question, answer, seed=seed, **options)
    if thinker.method.name == "coconut" and options.get("votes", 1) == 1:
        record = _record(question)
        if record is not None:
            answer.trace.meta["tree"] = search_tree(thinker, record, answer)
            other = swapped(record).question if other is None else other
        if other is not None and isinstance(question, str):
            found = swaps(thinker, question, other, seed=seed, **options)
            answer.trace.meta |= {"swaps": found, "other": other}


# --------------------------------------------------------------------------------------------------
# TiDAR


def plain_clock(
    thinker: Thinker, question: Any, answer: Answer, *, seed: int | None = None, **options: Any
) -> dict[str, Any]:
    """Plain decoding of the same question: "seconds", "flops" and "forwards" spent when each token
    stood, and whether all are the "same" tokens."""
    asked = {name: value for name, value in options.items() if name not in _DRAFTING}
    asked |= {"scheme": "plain", "max_new_tokens": max(1, len(answer.tokens))}
    plain = thinker.ask(question, seed=seed, trace=True, **asked)
    found: dict[str, list[float]] = {"seconds": [], "flops": [], "forwards": []}
    spent = dict.fromkeys(found, 0.0)
    for step in plain.trace.steps:
        for name in found:
            spent[name] += getattr(step.cost, name)
            found[name] += [spent[name]] * (0 if step.says is None else len(step.says.ids))
    return {**found, "same": plain.tokens == answer.tokens}


# --------------------------------------------------------------------------------------------------
# Coconut


def _record(question: Any) -> Record | None:
    """A ProsQA question read; None for any other."""
    try:
        return read_question(question) if isinstance(question, str) else None
    except ValueError:
        return None


def search_tree(thinker: Thinker, record: Record, answer: Answer) -> dict[str, Any]:
    """The graph of a ProsQA question, and the value of every node after each thought of an answer.

    Returns:
        {"symbols": a name a node, "edges": [[from, to], ...], "root", "options": the nodes asked
        for, the right one first, "depths": hops from the root, -1 where it does not lead,
        "values": (T + 1) x nodes, that the next spoken step begins there, the first row before any
        thought, "answers": (T + 1) x 2, of each option if it had to answer at once}
    """
    graph = graph_of(record)
    depths = distances(graph.children, graph.root)
    sample, model = answer.details["sample"], thinker.model
    values = along(model, record, sample)
    answers = along(model, record, sample, asked="answer")[:, [graph.target, graph.neg_target]]
    return {
        "symbols": list(record.meta["idx_to_symbol"]),
        "edges": [list(edge) for edge in graph.edges],
        "root": graph.root,
        "options": [graph.target, graph.neg_target],
        "depths": [depths.get(node, -1) for node in range(graph.num_nodes)],
        "values": _rounded(values),
        "answers": _rounded(answers),
    }


def _rounded(values: np.ndarray) -> list[list[float]]:
    return np.round(values.astype(np.float64), 4).tolist()


def swaps(
    thinker: Thinker, question: str, other: str, *, seed: int | None = None, **options: Any
) -> list[dict[str, Any]]:
    """What is said when thought n is the n-th thought of the other question, for each n in turn;
    the first row, thought 0, puts every thought back as it was and must change nothing.

    Returns:
        [{"thought": n, "text": what was said, "changed": whether that is something else}, ...]
    """
    options = {name: value for name, value in options.items() if name != "edit"}
    theirs, mine = _Thoughts(), _Thoughts()
    thinker.ask(other, seed=seed, edit=theirs, **options)
    first = thinker.ask(question, seed=seed, edit=mine, **options)

    def put(number: int, kept: Mapping[int, Tensor]) -> dict[str, Any]:
        edit = _Thoughts({number - 1: kept[number - 1]} if number else kept)
        said = thinker.ask(question, seed=seed, edit=edit, **options)
        return {"thought": number, "text": said.text, "changed": said.tokens != first.tokens}

    numbers = sorted(set(mine.kept) & set(theirs.kept))[:MOST_SWAPS]
    return [put(0, mine.kept), *(put(n + 1, theirs.kept) for n in numbers)]


class _Thoughts:
    """An edit that keeps every thought by its number, or puts others in their place."""

    def __init__(self, instead: Mapping[int, Tensor] | None = None):
        self.kept: dict[int, Tensor] = {}
        self.instead = instead or {}

    def __call__(self, thought: Tensor, where: Tensor, number: Tensor) -> Tensor:
        if not bool(where[0]):
            return thought
        n = int(number[0])
        self.kept[n] = thought[0].detach().clone()
        return self.instead[n][None].to(thought) if n in self.instead else thought
