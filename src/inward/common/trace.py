"""The record of thinking: what a model held at each step, what it cost, and why it stopped.

Every method produces traces and nothing else about its inside; `viz`, `evals` and `serve` read
traces and know no method. A trace belongs to one sample. A step is whatever the method repeats: a
supervision step of TRM, a recurrence of Huginn, a thought of Coconut, a forward of TiDAR.

    trace.steps[3].says              tokens that stand from step 4 on: part of the answer
    trace.steps[3].view["lens"]      tokens that are only shown: "lens", "draft", "grid", "canvas"
    trace.steps[3].scores            named numbers: TRM writes "halt" (the halting logit)
    trace.answer                     all that was said, in order
    trace.cost                       of all steps together
    trace.pieces[17]                 the text of token 17, so that who shows a trace needs no
                                     tokenizer

No step repeats what an earlier one said. What only a picture needs ("lens", "state", ...) is there
if it was asked for.

Traces are plain data: `to_dict` / `from_dict` round-trip through JSON, `write_traces` /
`read_traces` through JSON lines. No torch here: what shows or serves a trace must not need it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from inward.common.files import read_text, replacing

FORMAT = 2
"""Version of the JSON form."""


PARTS = ("prompt", "thinking", "drafting", "verification", "words")
"""Accounts of an answer's cost. prompt: reading the question. thinking: what is silent: recurrences
of a word, thoughts, steps, and what a halting rule or a lens reads of them. drafting: guesses that
do not stand yet. verification: rows that judge guesses and say what follows them. words: rows that
say a word where nothing is judged."""


@dataclass(frozen=True)
class Cost:
    """What a piece of thinking took.

    evaluations: forwards of the network that is repeated (TRM: of f; Huginn: of the core block).
    flops: floating point operations, a multiply-add counted as two, norms and activations left out.
    forwards: calls of the whole model that this sample took part in.
    bytes: of weights, keys and values read, each weight once a forward.
    seconds: of wall clock, shared with whatever was in the same batch.
    parts: the same numbers by what they were for, see `PARTS`; those that are there add up to the
        whole.
    parameters: of the model, each tensor once; of a sum the largest.
    """

    evaluations: float = 0.0
    flops: float = 0.0
    forwards: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    parts: Mapping[str, Cost] = field(default_factory=dict)
    parameters: int = 0

    def __add__(self, other: Cost) -> Cost:
        return total((self, other))

    def under(self, name: str) -> Cost:
        """The same, all of it on the account of one part."""
        plain = replace(self, parts={}, parameters=0)
        return replace(self, parts={name: plain})

    def less(self, other: Cost) -> Cost:
        """What this took beyond another piece of thinking; accounts of parts are left out."""
        numbers = (getattr(self, name) - getattr(other, name) for name in NUMBERS)
        return Cost(*numbers, parameters=self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: what is 0 is left out; one part alone is the name that the whole goes by."""
        row: dict[str, Any] = {name: getattr(self, name) for name in (*NUMBERS, "parameters")}
        row = {name: value for name, value in row.items() if value}
        if self.parts:
            row["parts"] = {name: part.to_dict() for name, part in self.parts.items()}
        plain = {name: value for name, value in row.items() if name in NUMBERS}
        if list(row.get("parts", {}).values()) == [plain]:
            (row["parts"],) = self.parts
        return row

    @staticmethod
    def from_dict(row: Mapping[str, Any]) -> Cost:
        """What `to_dict` wrote."""
        parts = row.get("parts", {})
        if isinstance(parts, str):
            return Cost(**{**row, "parts": {}}).under(parts)
        parts = {name: Cost.from_dict(part) for name, part in parts.items()}
        return Cost(**{**row, "parts": parts})


NUMBERS = ("evaluations", "flops", "forwards", "bytes", "seconds")
"""Fields of a cost that add up."""


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs and of the accounts of their parts, each name by itself."""
    costs = list(costs)
    numbers = {name: sum(getattr(cost, name) for cost in costs) for name in NUMBERS}
    named: dict[str, list[Cost]] = {}
    for cost in costs:
        for name, part in cost.parts.items():
            named.setdefault(name, []).append(part)
    parts = {
        name: named[name][0] if len(named[name]) == 1 else total(named[name])
        for name in sorted(named, key=_place)
    }
    most = max((cost.parameters for cost in costs), default=0)
    return Cost(**numbers, parts=parts, parameters=most)


def _place(name: str) -> tuple[int, str]:
    """Parts of an answer in the order in which they are named, others behind them."""
    return (PARTS.index(name) if name in PARTS else len(PARTS)), name


@dataclass(frozen=True, eq=False)
class Span:
    """Some tokens: `ids` (N,) int64 and, if known, the probability of each in `confidence` (N,)."""

    ids: np.ndarray
    confidence: np.ndarray | None = None

    @staticmethod
    def of(ids: Iterable[int], confidence: Iterable[float] | None = None) -> Span:
        """From any sequences."""
        sure = None if confidence is None else np.asarray(list(confidence), np.float32)
        return Span(np.asarray(list(ids), np.int64), sure)

    def to_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {"ids": self.ids.tolist()}
        if self.confidence is not None:
            row["confidence"] = [round(float(c), 6) for c in self.confidence]
        return row

    @staticmethod
    def from_dict(row: Mapping[str, Any]) -> Span:
        sure = row.get("confidence")
        return Span.of(row["ids"], sure)


@dataclass(frozen=True, eq=False)
class Step:
    """One step, counted from 1.

    kind: what the method did: "refine", "recur", "thought", "word", "forward".
    says: what stands from here on. view: what is only shown, by name.
    position: where in the row of tokens (thoughts counted) the step took place.
    arrays: numbers for pictures, by name ("state": a vector), only where asked for.
    """

    index: int
    kind: str
    says: Span | None = None
    view: dict[str, Span] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    cost: Cost = Cost()
    position: int | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.index < 1:
            raise ValueError(f"steps count from 1, this one has number {self.index}")

    def to_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {"index": self.index, "kind": self.kind}
        if self.says is not None:
            row["says"] = self.says.to_dict()
        if self.view:
            row["view"] = {name: span.to_dict() for name, span in self.view.items()}
        row["scores"] = dict(self.scores)
        row["cost"] = self.cost.to_dict()
        if self.position is not None:
            row["position"] = self.position
        if self.arrays:
            row["arrays"] = {name: np.asarray(a).tolist() for name, a in self.arrays.items()}
        return row

    @staticmethod
    def from_dict(row: Mapping[str, Any]) -> Step:
        return Step(
            index=row["index"],
            kind=row["kind"],
            says=Span.from_dict(row["says"]) if "says" in row else None,
            view={name: Span.from_dict(span) for name, span in row.get("view", {}).items()},
            scores=row["scores"],
            cost=Cost.from_dict(row["cost"]),
            position=row.get("position"),
            arrays={name: np.asarray(a) for name, a in row.get("arrays", {}).items()},
        )


@dataclass(eq=False)
class Trace:
    """One sample's thinking.

    question: the tokens it was given; roles: (who, how many tokens) of its parts in order, where
        it is a conversation.
    stopped: one of `inward.common.thinking.STOPPED`.
    model: the name under which it was opened. pieces: text of every token that the trace names.
    """

    method: str
    question: np.ndarray
    steps: list[Step] = field(default_factory=list)
    stopped: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    roles: list[tuple[str, int]] = field(default_factory=list)
    pieces: dict[int, str] = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """Cost of all steps together."""
        return total(step.cost for step in self.steps)

    @property
    def answer(self) -> np.ndarray:
        """All that was said, in order.

        Raises:
            ValueError: nothing was.
        """
        said = [step.says.ids for step in self.steps if step.says is not None]
        if not said:
            raise ValueError("this trace holds no answer: none of its steps says anything")
        return np.concatenate(said)

    def named(self) -> set[int]:
        """Every token that the trace names."""
        found = {int(i) for i in self.question}
        for step in self.steps:
            for span in (*([] if step.says is None else [step.says]), *step.view.values()):
                found |= {int(i) for i in span.ids}
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "method": self.method,
            "model": self.model,
            "question": self.question.tolist(),
            "roles": [list(role) for role in self.roles],
            "steps": [step.to_dict() for step in self.steps],
            "stopped": self.stopped,
            "pieces": {str(token): text for token, text in sorted(self.pieces.items())},
            "meta": self.meta,
        }

    @staticmethod
    def from_dict(row: Mapping[str, Any]) -> Trace:
        if row.get("format") != FORMAT:
            raise ValueError(
                f"this is no trace of format {FORMAT} (it says {row.get('format')!r}); record it "
                "again with this version"
            )
        missing = {"method", "question", "steps"} - set(row)
        if missing:
            raise ValueError(
                f"not a trace: it lacks {sorted(missing)}; write traces with write_traces"
            )
        return Trace(
            method=row["method"],
            question=np.asarray(row["question"], dtype=np.int64),
            steps=[Step.from_dict(step) for step in row["steps"]],
            stopped=row.get("stopped", ""),
            meta=row.get("meta", {}),
            model=row.get("model", ""),
            roles=[(str(who), int(num)) for who, num in row.get("roles", [])],
            pieces={int(token): text for token, text in row.get("pieces", {}).items()},
        )


def write_traces(traces: Iterable[Trace], path: str | Path) -> None:
    """Write one trace a line (JSON), to a temporary name first."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for trace in traces:
            file.write(json.dumps(trace.to_dict()) + "\n")


def plane(states: np.ndarray) -> tuple[np.ndarray, float]:
    """A path (N, d) seen in the plane in which it moves most: (N, 2), and the share of its movement
    that lies in this plane (1 where it does not move).

    The two leading principal directions of the path itself; the larger component of each points up,
    so that the same path gives the same picture.
    """
    moved = np.asarray(states, np.float64)
    moved = moved - moved.mean(0)
    left, sizes, _ = np.linalg.svd(moved, full_matrices=False)
    places = np.zeros((len(moved), 2))
    found = (left * sizes)[:, :2]
    places[:, : found.shape[1]] = found
    largest = np.abs(places).argmax(0)
    places *= np.where(places[largest, [0, 1]] < 0, -1.0, 1.0)
    whole = float((sizes**2).sum())
    return places, 1.0 if whole == 0 else float((sizes[:2] ** 2).sum() / whole)


_DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What the contents of a line that is no trace make its reader raise"""


def read_traces(path: str | Path) -> list[Trace]:
    """Read what `write_traces` wrote.

    Raises:
        ValueError: a line is not a trace; the line's number is named.
    """
    traces = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            traces.append(Trace.from_dict(json.loads(line)))
        except _DAMAGE as error:
            raise ValueError(f"{path}, line {number} is not a trace: {error}") from error
    return traces


def flops_text(flops: float) -> str:
    """FLOPs with a readable unit."""
    for size, unit in ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops:.0f} FLOP"
