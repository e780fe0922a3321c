"""The rows as Markdown: tables, ties, what failed, and what is missing with its command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inward.common.files import read_text, replacing
from inward.studies.frontier.arms import ARMS
from inward.studies.frontier.compare import constant, size_fault, standings, verdicts
from inward.studies.frontier.rows import Row, best_rate, bits, effort_of, of_run, selected
from inward.studies.frontier.runs import absent, wishes
from inward.studies.frontier.scales import Scale

BEGIN, END = "<!-- frontier: written by inward frontier --report -->", "<!-- end of frontier -->"


def report(scale: Scale, rows: Sequence[Row]) -> str:
    """All that the rows of a scale say.

    Raises ValueError if there are none.
    """
    if not rows:
        raise ValueError(
            f"there are no rows at scale {scale.name}; make some with inward frontier --scale "
            f"{scale.name}"
        )
    parts = [f"### Scale {scale.name}", ""]
    parts += [_about(scale, rows), ""]
    for name, task in scale.tasks.items():
        if any(row["task"] == name for row in rows):
            num = len(task.records("test"))
            parts += [f"**{name}** ({num} test questions; a constant answer: {constant(task):.1%})"]
            if fault := size_fault(rows, task):
                parts += ["", f"Not to be compared: {fault}."]
            parts += ["", *_table(rows, name), "", *_pairs(rows, name), "", *_efforts(rows, name)]
            parts += ["", *_rates(scale, rows, name), ""]
    parts += [*_failed(rows), *_missing(scale, rows)]
    return "\n".join(parts).rstrip() + "\n"


def _about(scale: Scale, rows: Sequence[Row]) -> str:
    seconds = sum(row["core_seconds"] for row in rows)
    loads = [row["load"] for row in rows if row["load"] is not None]
    load = f", load {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    return (
        f"{len(rows)} runs, {seconds / 3600:.2f} core-hours, version {rows[0]['version']}, "
        f"{rows[0]['machine']}{load}."
    )


def _table(rows: Sequence[Row], task: str) -> list[str]:
    lines = [
        "| arm | seeds | accuracy | 95 % | effort | FLOPs an answer | tokens said | ms an answer "
        "| FLOPs of training | parameters |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in standings(rows, task):
        effort = ", ".join(dict.fromkeys(map(str, s.efforts))) if ARMS[s.arm].unit else "no dial"
        unit = f" {ARMS[s.arm].unit}" if ARMS[s.arm].unit else ""
        lines.append(
            f"| {s.arm} | {len(s.seeds)} | {s.accuracy.value:.1%} | {s.accuracy.low:.1%} to "
            f"{s.accuracy.high:.1%} | {effort}{unit} | {s.flops:.3g} | {s.tokens:.1f} | "
            f"{1000 * s.seconds:.0f} | {s.training:.3g} | {s.parameters:,} |"
        )
    return lines


def _pairs(rows: Sequence[Row], task: str) -> list[str]:
    told = []
    for v in verdicts(rows, task):
        d = v.paired.difference
        text = "tie" if not v.winner else f"{v.winner} wins"
        text += ", and dominates (no more FLOPs an answer)" if v.dominates else ""
        told.append(
            f"- {v.first} - {v.second}: {d.value:+.1%} [{d.low:+.1%}, {d.high:+.1%}]: {text}"
        )
    return ["Paired differences, question by question:", "", *told] if told else []


def _efforts(rows: Sequence[Row], task: str) -> list[str]:
    lines = []
    for row in selected(rows):
        if row["task"] == task and len(row["efforts"]) > 1:
            shown = ", ".join(
                f"{e['amount']}{'*' if e['trained'] else ''}: {bits(e['test']).mean():.1%}"
                for e in row["efforts"]
            )
            lines.append(f"- {row['arm']}, seed {row['seed']}, {ARMS[row['arm']].unit}: {shown}")
    return ["Accuracy at every effort (* as in training):", "", *lines] if lines else []


def _rates(scale: Scale, rows: Sequence[Row], task: str) -> list[str]:
    lines = []
    for arm in ARMS:
        own = of_run(rows, task, arm, scale.seeds[0])
        if len(own) > 1:
            rate, ties = best_rate(own)
            shown = ", ".join(
                f"{r['rate']:g}: {bits(effort_of(r)['valid']).mean():.1%}"
                for r in sorted(own, key=lambda r: r["rate"])
            )
            tied = f"; validation cannot tell it from {ties}" if ties else ""
            lines.append(f"- {arm}: {shown}; {rate:g} is chosen{tied}")
    return ["Rates, accuracy on validation:", "", *lines] if lines else []


def _failed(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"- {row['task']}/{row['arm']}/{row['seed']} at rate {row['rate']:g}: {row['error']}"
        for row in rows
        if "error" in row
    ]
    return ["What failed:", "", *lines, ""] if lines else []


def _missing(scale: Scale, rows: Sequence[Row]) -> list[str]:
    lines = [f"- {task}/{arm}: {why}" for (task, arm), why in absent(scale).items()]
    left = [wish for wish in wishes(scale) if not wish.done(rows)]
    if left:
        names = ", ".join(dict.fromkeys(f"{w.task.name}/{w.arm.name}" for w in left))
        lines.append(
            f"- {len(left)} runs of {names}: `inward frontier --scale {scale.name}`, which tells "
            "its core-hours before it starts"
        )
    return ["What is missing:", "", *lines] if lines else []


def put_into(page: Path, text: str) -> None:
    """Replace what stands between the marks of a page.

    Raises ValueError for a page without them.
    """
    before = read_text(page)
    head, found, rest = before.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{page} has no place for the tables: the lines {BEGIN} and {END}")
    with replacing(page) as partial:
        partial.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{tail}", encoding="utf-8")
