"""The page at the end of `inward demo`: shipped models thinking, for a browser (demo/index.html).

Every part asks as a user would, and what is shown is what came of it: one question for several
depths, two networks on one puzzle, drafts beside plain decoding. A model that is not shipped has no
part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inward.data.puzzles import maze, sudoku
from inward.data.texts.text import questions
from inward.data.thoughts import prosqa
from inward.demo.drafts import NUM_TOKENS, OPENINGS
from inward.hub import resolve, shipped
from inward.recipes.of import recipe_of
from inward.studies.pictured import beside
from inward.thinker import open_thinker
from inward.viz.page import page, wanted

if TYPE_CHECKING:
    from inward.common.trace import Trace
    from inward.thinker import Thinker

MAZE_SIDE, NUM_TRIED, DEPTHS = 15, 24, (3, 6)


def demo_page(out: Path, *, seed: int) -> Path | None:
    """Write out/index.html; None where no shipped model has a part.

    seed: of the questions.
    """
    traces = [t for name in shipped() if name in _PARTS for t in _PARTS[name](name, seed)]
    if not traces:
        return None
    return page(traces, out / "index.html", title="thinking inside, step by step")


def asked(thinker: Thinker, question: Any, **options: Any) -> Trace:
    """The whole trace of a question, and what stands beside it."""
    answer = thinker.ask(question, trace=wanted(thinker.method.name, options), **options)
    beside(thinker, question, answer, **options)
    assert answer.trace is not None, "a trace was asked for"
    return answer.trace


def _sudoku(name: str, seed: int) -> Iterator[Trace]:
    """The solved puzzle that was rewritten longest, and the same one by the cube."""
    thinker = open_thinker(name)
    puzzles = sudoku.generate(NUM_TRIED, n=9, seed=seed, progress=False)
    answers = thinker.ask([row.astype(np.int64) for row in puzzles.inputs])
    solved = [a.details["obeys_rules"] is True and a.stopped == "halted" for a in answers]
    best = max(range(len(answers)), key=lambda i: (solved[i], answers[i].steps))
    for other in (name, *(n for n in shipped() if n == f"{name}-cube")):
        one = thinker if other == name else open_thinker(other)
        yield asked(one, puzzles.inputs[best].astype(np.int64))


def _maze(name: str, seed: int) -> Iterator[Trace]:
    data: Any = recipe_of(resolve(name)).data
    drawn = maze.generate(NUM_TRIED, size=MAZE_SIDE, seed=seed, braid=data.braid)
    longest = 0 if drawn.rating is None else int(np.argmax(drawn.rating))
    grid = drawn.inputs[longest].astype(np.int64).reshape(drawn.grid)
    yield asked(open_thinker(name), grid)


def _hops(name: str, seed: int) -> Iterator[Trace]:
    """The longest walk: as deep as its rule says, and at depths that are too few."""
    thinker, recipe = open_thinker(name), recipe_of(resolve(name))
    rows: Any = recipe.task().rows
    prompt = questions(rows, 1, difficulty=rows.hardest, seed=seed).prompt(0)
    text = recipe.task().format(prompt)
    yield asked(thinker, text, halt="kl", max_steps=32)
    for depth in DEPTHS:
        yield asked(thinker, text, max_steps=depth)


def _prosqa(name: str, seed: int) -> Iterator[Trace]:
    """A question answered right, the longest of some; if none is, the longest."""
    thinker, recipe = open_thinker(name), recipe_of(resolve(name))
    data: Any = recipe.data
    task: Any = recipe.task()
    records = task.ask(prosqa.generate(NUM_TRIED, seed=seed, settings=data.graphs), seed=seed)
    answers = thinker.ask([record.question for record in records])
    right = [task.score(r, a.text).right for r, a in zip(records, answers, strict=True)]
    best = max(range(len(records)), key=lambda i: (right[i], len(records[i].steps), -i))
    yield asked(thinker, records[best].question)


def _drafts(name: str, seed: int) -> Iterator[Trace]:
    thinker = open_thinker(name)
    text = OPENINGS[seed % len(OPENINGS)]
    yield asked(thinker, text, max_new_tokens=NUM_TOKENS // 2)
    yield thinker.ask(text, scheme="plain", trace=True, max_new_tokens=NUM_TOKENS // 2).trace


_PARTS: Mapping[str, Callable[[str, int], Iterator[Trace]]] = {
    "sudoku9": _sudoku,
    "maze11": _maze,
    "huginn-hops": _hops,
    "prosqa": _prosqa,
    "stories-draft": _drafts,
}
