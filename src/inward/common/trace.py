"""The record of thinking: what a model held at each step, what it cost, and why it stopped.

Every method produces traces and nothing else about its inside; `viz`, `evals` and `serve` read
traces and know no method. A trace belongs to one sample. A step is whatever the method repeats: a
supervision step of TRM, a recurrence of Huginn, a thought of Coconut, a forward of TiDAR.

    trace.steps[3].tokens        the answer, or the tokens, as they stood after step 4
    trace.steps[3].confidence    probability of each of these tokens
    trace.steps[3].scores        named numbers: TRM writes "halt" (the halting logit)
    trace.cost                   network evaluations and FLOPs of the whole sample

Traces are plain data: `to_dict` / `from_dict` round-trip through JSON, `write_traces` /
`read_traces` through JSON lines. No torch here: what shows or serves a trace must not need it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Cost:
    """What a piece of thinking took.

    evaluations: forwards of the network that is repeated (TRM: of f; Huginn: of the core block).
    flops: floating point operations, a multiply-add counted as two, norms and activations left out.
    """

    evaluations: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.evaluations + other.evaluations, self.flops + other.flops)


@dataclass(frozen=True, eq=False)
class Step:
    """One step. `tokens` and `confidence` have one entry per cell or token; `position` and `text`
    serve the language models, where a step belongs to a place in a text."""

    index: int
    kind: str
    tokens: np.ndarray | None = None
    confidence: np.ndarray | None = None
    scores: dict[str, float] = field(default_factory=dict)
    cost: Cost = Cost()
    position: int | None = None
    text: str | None = None

    def to_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {"index": self.index, "kind": self.kind}
        if self.tokens is not None:
            row["tokens"] = self.tokens.tolist()
        if self.confidence is not None:
            row["confidence"] = [round(float(c), 6) for c in self.confidence]
        row["scores"] = dict(self.scores)
        row["cost"] = [self.cost.evaluations, self.cost.flops]
        if self.position is not None:
            row["position"] = self.position
        if self.text is not None:
            row["text"] = self.text
        return row

    @staticmethod
    def from_dict(row: dict[str, Any]) -> Step:
        confidence = row.get("confidence")
        return Step(
            index=row["index"],
            kind=row["kind"],
            tokens=np.asarray(row["tokens"], dtype=np.int64) if "tokens" in row else None,
            confidence=None if confidence is None else np.asarray(confidence, dtype=np.float32),
            scores=row["scores"],
            cost=Cost(*row["cost"]),
            position=row.get("position"),
            text=row.get("text"),
        )


@dataclass(eq=False)
class Trace:
    """One sample's thinking: the `question` it was given (tokens), its `steps`, and why it
    `stopped`."""

    method: str
    question: np.ndarray
    steps: list[Step] = field(default_factory=list)
    stopped: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """Cost of all steps together."""
        return sum((step.cost for step in self.steps), Cost())

    @property
    def answer(self) -> np.ndarray:
        """The tokens of the last step.

        Raises:
            ValueError: the trace has no step with tokens.
        """
        for step in reversed(self.steps):
            if step.tokens is not None:
                return step.tokens
        raise ValueError("this trace holds no answer: none of its steps recorded tokens")

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "question": self.question.tolist(),
            "steps": [step.to_dict() for step in self.steps],
            "stopped": self.stopped,
            "meta": self.meta,
        }

    @staticmethod
    def from_dict(row: dict[str, Any]) -> Trace:
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
        )


def write_traces(traces: Iterable[Trace], path: str | Path) -> None:
    """Write one trace a line (JSON), to a temporary name first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for trace in traces:
            file.write(json.dumps(trace.to_dict()) + "\n")
    os.replace(temporary, path)


def read_traces(path: str | Path) -> list[Trace]:
    """Read what `write_traces` wrote.

    Raises:
        ValueError: a line is not a trace; the line's number is named.
    """
    traces = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            traces.append(Trace.from_dict(json.loads(line)))
        except (json.JSONDecodeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a trace: {error}") from error
    return traces


def flops_text(flops: float) -> str:
    """FLOPs with a readable unit."""
    for size, unit in ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops:.0f} FLOP"
