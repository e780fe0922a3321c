"""Traces are plain data: they survive JSON, and say what is wrong with a file that is none."""

import numpy as np
import pytest

from inward.common.trace import Cost, Step, Trace, read_traces, write_traces


def a_trace() -> Trace:
    steps = [
        Step(1, "refine", np.array([1, 2]), np.array([0.5, 0.25], np.float32), {"halt": -1.5}),
        Step(2, "say", cost=Cost(3, 12.5), position=7, text="two"),
    ]
    return Trace("trm", np.array([0, 2]), steps, "halted", {"grid": [1, 2]})


def test_round_trip(tmp_path):
    write_traces([a_trace(), a_trace()], tmp_path / "deep" / "t.jsonl")
    again = read_traces(tmp_path / "deep" / "t.jsonl")
    assert [t.to_dict() for t in again] == [a_trace().to_dict()] * 2
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["t.jsonl"]
    assert again[0].steps[0].confidence.dtype == np.float32


def test_cost_and_answer():
    trace = a_trace()
    assert trace.cost == Cost(3, 12.5)
    assert trace.answer.tolist() == [1, 2]
    with pytest.raises(ValueError, match="no answer"):
        _ = Trace("trm", np.array([1])).answer


@pytest.mark.parametrize(
    "line", ["{", "{}", '{"method": "trm", "question": [], "steps": [{}]}', "3"]
)
def test_lines_that_are_no_traces(tmp_path, line):
    path = tmp_path / "t.jsonl"
    write_traces([a_trace()], path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match="line 2 is not a trace"):
        read_traces(path)
