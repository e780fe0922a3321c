"""The part of `inward demo` that shows silent thoughts: a Coconut model searches a graph.

One question is shown: the graph as a tree with what the model would say next after each number of
silent thoughts, then its answer with its thoughts through the lens between the words it speaks.
Then how many fresh questions it answers, alone and together with their swaps (the other start on
the same graph, so that a rule that never looks at the start gets none of the pairs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from inward.data.thoughts import prosqa
from inward.data.thoughts.patterns import Rhythm
from inward.studies.thoughts_search import read_out
from inward.tasks.prosqa import ProsQATask, report
from inward.viz.studies import show_tree
from inward.viz.thoughts import show_thoughts

if TYPE_CHECKING:
    from inward.data.thoughts.records import Record
    from inward.methods.coconut.model import Coconut
    from inward.recipes.coconut import CoconutRecipe

NUM_QUESTIONS = 60


@dataclass(frozen=True)
class Searched:
    """num questions: how many right, how many with their swaps; the blind rule's on the same."""

    num: int
    accuracy: float
    paired: float
    blind: float


def thoughts_demo(
    name: str,
    model: Coconut,
    recipe: CoconutRecipe,
    *,
    seed: int,
    num: int | None = None,
    console: Console,
) -> Searched:
    """Show one question and print what came of `num` fresh ones."""
    graphs = getattr(recipe.data, "graphs", None)
    task = None if graphs is None else recipe.task()  # that of files reads them
    if graphs is None or not isinstance(task, ProsQATask):
        raise ValueError(f"{name} was not trained on generated ProsQA; there is nothing to show")
    count = NUM_QUESTIONS if num is None else num
    asked = task.ask(prosqa.generate(count, seed=seed, settings=graphs), seed=seed)
    texts = recipe.answers(model, asked)
    found = report(task, asked, texts, recipe.answers(model, task.swap(asked)))
    _show(name, model, recipe, asked[_interesting(asked, found.scores)], console)
    result = Searched(
        count,
        found.metrics["accuracy"],
        found.metrics["paired"],
        found.metrics["blind_depth"],
    )
    console.print(
        f"{name}: {result.accuracy:.0%} of {count} fresh questions right, {result.paired:.0%} "
        f"together with their swaps; a rule that never looks at the start: {result.blind:.0%} "
        "and 0%\n",
        highlight=False,
    )
    return result


def _interesting(asked: list[Record], scores: list) -> int:
    """Answered right if any is, with the longest way."""
    return max(range(len(asked)), key=lambda i: (scores[i].right, len(asked[i].steps), -i))


def _show(
    name: str, model: Coconut, recipe: CoconutRecipe, record: Record, console: Console
) -> None:
    hops, pattern = len(record.steps), recipe.curriculum.pattern
    per_hop, hidden = getattr(pattern, "c", 1), hops
    if isinstance(pattern, Rhythm):  # a block hides so many hops, then it speaks
        per_hop, hidden = pattern.thoughts, pattern.hidden
    console.print(f"{hops} hops, model {name}: which of the two is reached?", style="bold")
    console.print(f"  {record.question}", highlight=False)
    (tree,) = read_out(model, [record], num=per_hop * hidden, per_hop=per_hop)
    show_tree(tree, console=console, title="the silent search, from")
    (made,) = recipe.generated(model, [record], trace=("lens",), lens=3)
    show_thoughts(made.traces[0], lambda token: model.tokenizer.decode([token]), console=console)
    console.print(Text(f"  right answer: {record.answer}\n"))
