"""Traces are plain data: they survive JSON, and say what is wrong with a file that is none."""

import json

import numpy as np
import pytest

from inward.common.trace import Cost, Span, Step, Trace, read_traces, write_traces


def a_trace() -> Trace:
    steps = [
        Step(1, "refine", view={"grid": Span.of([1, 2], [0.5, 0.25])}, scores={"halt": -1.5}),
        Step(2, "say", Span.of([7, 8], [0.5, 1]), cost=Cost(3, 12.5, 1, 100.0, 0.5), position=7),
        Step(3, "say", Span.of([9]), arrays={"state": np.array([0.5, -1.0])}),
    ]
    return Trace(
        "trm", np.array([0, 2]), steps, "halted", {"grid": [1, 2]}, "mine", [("user", 2)], {0: " a"}
    )


def test_round_trip(tmp_path):
    write_traces([a_trace(), a_trace()], tmp_path / "deep" / "t.jsonl")
    again = read_traces(tmp_path / "deep" / "t.jsonl")
    assert [t.to_dict() for t in again] == [a_trace().to_dict()] * 2
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["t.jsonl"]
    assert again[0].steps[0].view["grid"].confidence.dtype == np.float32
    assert (again[0].roles, again[0].pieces, again[0].model) == ([("user", 2)], {0: " a"}, "mine")
    assert again[0].steps[2].arrays["state"].tolist() == [0.5, -1.0]


def test_the_answer_is_what_was_said_and_not_what_was_shown():
    trace = a_trace()
    assert trace.cost == Cost(3, 12.5, 1, 100.0, 0.5)
    assert trace.answer.tolist() == [7, 8, 9]
    assert trace.named() == {0, 2, 1, 7, 8, 9}
    with pytest.raises(ValueError, match="no answer"):
        _ = Trace("trm", np.array([1])).answer


def test_steps_count_from_one():
    with pytest.raises(ValueError, match="count from 1"):
        Step(0, "word")


def test_another_format_is_named(tmp_path):
    old = a_trace().to_dict() | {"format": 1}
    (tmp_path / "t.jsonl").write_text(json.dumps(old) + "\n")
    with pytest.raises(ValueError, match=r"no trace of format 2 .it says 1.; record it again"):
        read_traces(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    "line", ["{", "{}", '{"method": "trm", "question": [], "steps": [{}], "format": 2}', "3", "[]"]
)
def test_lines_that_are_no_traces(tmp_path, line):
    path = tmp_path / "t.jsonl"
    write_traces([a_trace()], path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match="line 2 is not a trace"):
        read_traces(path)
