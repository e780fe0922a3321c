"""Results of `inward.evals.texts` and `inward.evals.drafts` as tables at the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from inward.common.trace import flops_text
from inward.evals.tables import percent

if TYPE_CHECKING:
    from inward.evals.drafts import DraftResult
    from inward.evals.texts import Share, TextResult


def text_tables(result: TextResult) -> Group:
    """The numbers, by difficulty, by stage."""
    main = Table(show_header=False, box=SIMPLE)
    main.add_row("right", _told(result.right))
    if result.paired is not None:
        main.add_row("question and its swap, both right", _told(result.paired))
        main.add_row("mean over question and swap", percent(result.both_sides))
    for name, value in result.metrics.items():
        main.add_row(name.replace("_", " "), f"{value:.4g}")
    main.add_row("tokens an answer", f"{result.tokens:.1f}")
    main.add_row(f"{result.unit} an answer", f"{result.steps:.1f}")
    main.add_row("cost an answer", f"{result.forwards:.1f} forwards, {flops_text(result.flops)}")
    main.add_row("time an answer", f"{result.seconds:.3f} s, asked together")
    main.add_row("ended by", _counts(result.stopped))
    if result.failed:
        main.add_row("could not be asked", _counts(result.failed))
    main.add_row("parameters", f"{result.parameters:,}")
    parts: list[Text | Table] = [_title(result.what, result.dataset, result.right.num), main]
    if result.groups:
        parts += [Text("by difficulty", "bold"), _shares("difficulty", result.groups)]
    if result.stages:
        parts += [Text("asked as at each stage", "bold"), _shares("stage", result.stages)]
    return Group(*parts)


def drafts_table(result: DraftResult) -> Group:
    """Perplexity, and how much of a draft stands."""
    main = Table(show_header=False, box=SIMPLE)
    low, high = result.interval
    main.add_row("perplexity", f"{result.perplexity:.3f}   95 %: {low:.3f} to {high:.3f}")
    main.add_row("tokens", f"{result.tokens:,}")
    if result.accepted is not None:
        main.add_row(
            "accepted a step, by teacher forcing", f"{result.accepted:.2f} of {result.block}"
        )
    if result.first is not None:
        main.add_row("first guess right", percent(result.first))
    if result.num_decoded:
        main.add_row("tokens a forward, decoding", f"{result.decoded:.2f}")
        main.add_row("forwards a text", f"{result.forwards:.1f}")
        main.add_row(
            "speed", f"{result.tokens_per_second:.0f} tokens/s, {result.num_decoded} texts"
        )
    main.add_row("parameters", f"{result.parameters:,}")
    return Group(_title(result.what, result.dataset, result.num), main)


def _title(what: str, dataset: str, num: int) -> Text:
    return Text(f"{what} on {dataset or 'questions'} ({num})", "bold")


def _told(share: Share) -> str:
    low, high = share.interval
    return f"{percent(share.accuracy)}   95 %: {percent(low)} to {percent(high)}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {num}" for name, num in counts.items())


def _shares(name: str, shares: Sequence[Share]) -> Table:
    table = Table(box=SIMPLE)
    for column in (name, "questions", "right", "95 %"):
        table.add_column(column, justify="right")
    for share in shares:
        bounds = f"{percent(share.interval[0])} to {percent(share.interval[1])}"
        table.add_row(share.name, str(share.num), percent(share.accuracy), bounds)
    return table
