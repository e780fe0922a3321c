"""Puzzles in work: whatever arrives, leaves or stands beside it, each gets what it gets alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from inward.common import halting
from inward.common.speaking import StopWords
from inward.common.thinking import STOPPED, Request, answers, run
from inward.common.trace import Trace
from inward.data.puzzles.dihedral import Dihedral
from inward.methods.trm.door import METHOD, begin
from tests.acting import acting
from tests.methods.trm.test_model import KINDS, SMALL, batch_of, build
from tests.methods.trm.test_solve import Flip, Shift

HALTS = ("q", "stable", "q+stable", "never", halting.QHalt(0.3), halting.LatentChange(0.2))


@pytest.fixture(scope="module")
def model():
    """Of any length, its halting logits spread around 0, so that rows leave at different steps."""
    model = build(replace(KINDS["conv"], n_sup=5))
    inputs = batch_of(SMALL, num=11)["inputs"]
    with torch.no_grad():
        model.q_head.weight.mul_(8)
        spread = [model(inputs, num_steps=k)[1] for k in range(1, 6)]
        model.q_head.bias[0] -= torch.stack(spread).quantile(0.6)
    return model


def puzzle(rng: np.random.Generator, num: int = 12) -> np.ndarray:
    return rng.integers(1, 7, num)


def anything(rng: np.random.Generator) -> Request:
    """A request drawn from all that can be asked."""
    grid = [(3, 4), (4, 3), (2, 3)][rng.integers(3)]
    own = {
        "grid": grid,
        "max_steps": int(rng.integers(1, 7)),
        "halt": HALTS[rng.integers(len(HALTS))],
        "identifier": int(rng.integers(5)),
        "select": ["q", "majority", small_third_cell][rng.integers(3)],
        "first_to_halt": bool(rng.integers(2)),
        "puzzle": int(rng.integers(9)),
    }
    if rng.integers(2):
        own |= {"rollouts": int(rng.integers(2, 4)), "noise": float(rng.uniform(0.1, 0.9))}
        own["noise_on"] = ["z", "y", "both"][rng.integers(3)]
    if grid == (3, 4):
        own["symmetries"] = [Flip(), Shift()][: rng.integers(3)]
    if rng.integers(2):
        own["abstain_below"] = 0.5
    request = Request(
        puzzle(rng, grid[0] * grid[1]),
        seed=[None, 7][rng.integers(2)],
        trace=[None, frozenset()][rng.integers(2)],
        logprobs=bool(rng.integers(2)),
        own=own,
    )
    return acting(METHOD, None, request)


def small_third_cell(questions: np.ndarray, given: np.ndarray) -> np.ndarray:
    assert questions.shape == given.shape
    return given[:, 2] <= 3


def alone(model, request: Request):
    (answer,) = answers(begin(model), [request])
    return answer


def same(got, want) -> None:
    """Equal but for seconds, and for what a batch of another size rounds otherwise."""
    assert (got.tokens, got.steps, got.stopped) == (want.tokens, want.steps, want.stopped)
    assert replace(got.cost, seconds=0.0, parts={}) == replace(want.cost, seconds=0.0, parts={})
    assert got.believed == pytest.approx(want.believed, abs=1e-4)
    assert (got.logprobs is None) == (want.logprobs is None)
    if want.logprobs is not None:
        assert got.logprobs == pytest.approx(want.logprobs, abs=1e-3)
    for name in ("chain", "answered", "candidates", "evaluations"):
        assert got.details[name] == want.details[name], name
    assert (got.trace is None) == (want.trace is None)
    if want.trace is not None:
        assert grids(got.trace) == grids(want.trace)
        assert np.array_equal(got.trace.answer, got.tokens)
        assert got.trace.meta == want.trace.meta


def grids(trace: Trace) -> list[list[int]]:
    return [step.view["grid"].ids.tolist() for step in trace.steps]


# -- arrivals, cancellations -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_whoever_arrives_and_leaves_each_gets_what_it_gets_alone(model, seed):
    rng = np.random.default_rng(seed)
    requests = [anything(rng) for _ in range(24)]
    work = begin(model, batch_size=int(rng.integers(2, 9)))
    waiting, numbers, ended, cancelled = list(requests), {}, {}, set()
    while waiting or work.busy:
        for _ in range(rng.integers(0, 4)):
            if waiting:
                request = waiting.pop(0)
                numbers[work.add(request)] = request
        for event in work.step():
            assert event.request not in ended, "nothing comes after the end"
            if event.kind == "end":
                ended[event.request] = event.answer
        under_way = sorted(set(numbers) - set(ended) - cancelled)
        if under_way and rng.random() < 0.2:
            cancelled.add(gone := int(rng.choice(under_way)))
            work.cancel(gone)
    assert set(ended) == set(numbers) and len(cancelled) > 1
    for number, request in numbers.items():
        assert work.result(number) is ended[number]
        if number in cancelled:
            assert ended[number].stopped == "cancelled" and not ended[number].tokens
        else:
            same(ended[number], alone(model, request))
    assert not work.busy


def test_two_works_take_turns(model):
    """Also with one that nobody finishes."""
    rng = np.random.default_rng(11)
    halves = [[anything(rng) for _ in range(6)] for _ in range(2)]
    works = [begin(model, batch_size=3) for _ in halves]
    numbers = [[w.add(r) for r in some] for w, some in zip(works, halves, strict=True)]
    abandoned = begin(model)
    abandoned.add(halves[0][0])
    abandoned.step()
    while works[0].busy or works[1].busy:
        for work in works:
            work.step()
    for work, some, half in zip(works, numbers, halves, strict=True):
        for number, request in zip(some, half, strict=True):
            same(work.result(number), alone(model, request))


def test_cancelling_before_during_and_after(model):
    rng = np.random.default_rng(3)
    work = begin(model, batch_size=1)
    options = {"grid": (3, 4), "max_steps": 3, "halt": "never"}
    first, second, third = (
        work.add(Request(puzzle(rng), trace=frozenset(), own=options)) for _ in range(3)
    )
    work.step()
    work.cancel(first)  # under way
    work.cancel(first)
    work.cancel(third)  # not yet in the batch
    with pytest.raises(ValueError, match="has not ended"):
        work.result(first)
    events = list(run(work))
    assert [(e.request, e.kind) for e in events if e.kind in ("word", "end")] == [
        (first, "end"),
        (third, "end"),
        (second, "word"),
        (second, "end"),
    ]
    work.cancel(second)  # over: it stays as it is
    answer = work.result(second)
    assert answer.stopped == "budget" and len(answer.tokens) == 12 and answer.steps == 3
    early, never = work.result(first), work.result(third)
    assert (early.steps, early.cost.forwards, never.steps, never.cost.flops) == (1, 1, 0, 0)
    assert early.trace.stopped == "cancelled" and len(early.trace.steps) == 1
    for number in (first, second, third, 99):
        with pytest.raises(KeyError, match=f"no request {number}"):
            work.result(number)
    with pytest.raises(KeyError):
        work.cancel(99)
    assert not work.busy and work.step() == []


# -- what is told ----------------------------------------------------------------------------------


def test_events_tell_every_step_of_the_plain_chain_and_then_the_answer(model):
    rng = np.random.default_rng(5)
    own = {"rollouts": 3, "noise": 0.5, "max_steps": 4, "halt": "never", "grid": (3, 4)}
    request = Request(puzzle(rng), trace=frozenset(), own=own)
    work = begin(model)
    number = work.add(request)
    events = list(run(work))
    assert [e.kind for e in events] == ["rewrite"] * 4 + ["word", "end"]
    assert {e.request for e in events} == {number}
    rewrites, (word, end) = events[:4], events[4:]
    for k, event in enumerate(rewrites, start=1):
        with torch.no_grad():
            logits, q = model(torch.from_numpy(request.prompt)[None], num_steps=k, grid=(3, 4))
        assert event.step == k and event.tokens == tuple(logits[0].argmax(-1).tolist())
        assert event.scores["halt"] == pytest.approx(float(q[0]), rel=1e-3, abs=1e-4)
        assert event.scores["belief"] == pytest.approx(float(q[0].sigmoid()), abs=1e-4)
        assert event.scores["change"] > 0
    answer = work.result(number)
    assert end.answer is answer and word.tokens == answer.tokens == tuple(answer.trace.answer)
    assert answer.text == "" and answer.stopped in STOPPED
    assert answer.believed == pytest.approx(1 / (1 + np.exp(-answer.details["q"])))
    assert sum(votes for _, votes in answer.details["candidates"]) == 3


def test_cost_is_that_of_the_model_that_runs(model):
    request = Request(
        np.ones(6, np.int64),
        trace=frozenset(),
        own={"grid": (2, 3), "max_steps": 3, "halt": "never", "rollouts": 2, "noise": 0.1},
    )
    answer = alone(model, request)
    evaluation, read_out = model.flops(6)
    weights = sum(4 * p.numel() for p in model.network.parameters())
    heads = sum(4 * p.numel() for m in (model.lm_head, model.q_head) for p in m.parameters())
    for cost, steps in ((answer.cost, 6), (answer.trace.cost, 3)):
        assert cost.evaluations == steps * 6 and cost.forwards == steps
        assert cost.flops == pytest.approx(steps * (6 * evaluation + read_out))
        assert cost.bytes == steps * (6 * weights + heads)
        assert cost.seconds > 0
    assert answer.details["evaluations"] == (18, 18)


# -- refused, before any work ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"own": {"switch": "script"}}, "trm has no option switch"),
        ({"own": {"views": 4}}, "views=4 are drawn from the puzzle's task"),
        ({"own": {"max_steps": 0}}, "max_steps is 0"),
        ({"own": {"max_steps": 2.5}}, "whole number"),
        ({"own": {"halt": 3}}, "halt is 3"),
        ({"own": {"halt": "soon"}}, "no halting rule 'soon'"),
        ({"own": {"rollouts": 2}}, "without noise"),
        ({"own": {"identifier": 5}}, "lie in 0..4"),
        ({"own": {"grid": (5, 5)}}, "do not form"),
        ({"own": {"grid": 12}}, "expected .rows, columns."),
        ({"own": {"symmetries": [lambda tokens: tokens]}}, "apply and invert"),
        ({"own": {"symmetries": 3}}, "symmetries are 3"),
        ({"own": {"symmetries": [Dihedral((3, 4), 1)], "grid": (3, 4)}}, "must keep the shape"),
        ({"own": {"noise": "0.3"}}, "expected a number"),
        ({"own": {"noise": None}}, "noise is None, expected a number"),
        ({"own": {"noise": True}}, "noise is True, expected a number"),
        ({"own": {"abstain_below": 1.5}}, "abstain_below is 1.5"),
        ({"own": {"first_to_halt": "yes"}}, "True or False"),
        ({"max_new_tokens": 12}, "max_new_tokens"),
        ({"ends": frozenset({3})}, "ends"),
        ({"stop": StopWords(("x",), str)}, "stop"),
        ({"trace": frozenset({"lens"})}, "cannot hold lens"),
        ({"seed": -1}, "seed is -1"),
        ({"prompt": np.ones((1, 12), int)}, "expected .cells,."),
        ({"prompt": np.full(12, 7)}, "tokens run from 7 to 7"),
        ({"prompt": np.ones(12)}, "integer"),
    ],
)
def test_refusals(model, wrong, message):
    work = begin(model)
    with pytest.raises(ValueError, match=message):
        work.add(Request(**{"prompt": np.ones(12, int), **wrong}))
    assert not work.busy


def test_every_option_has_its_default():
    """What the door shows is what `solve` does without being told."""
    import inspect

    from inward.methods.trm.solve import solve

    known = inspect.signature(solve).parameters
    for name, option in METHOD.options.items():
        if name in known:
            assert option.default == known[name].default, name
    outside = {"model", "inputs", "batch_size", "trace", "progress", "seed", "identifiers"}
    assert set(known) - outside == set(METHOD.options) - {"views", "identifier", "puzzle"}
    assert METHOD.unit[0] in METHOD.options and METHOD.reads == "puzzle"


def test_a_table_is_needed_for_identifiers():
    model = build(KINDS["no table"])
    with pytest.raises(ValueError, match="no table"):
        begin(model).add(Request(np.ones(12, int), own={"identifier": 1}))


# -- the model is left as it was -------------------------------------------------------------------


def raises(view: halting.StepView) -> torch.Tensor:
    raise RuntimeError(f"no opinion on {len(view.q)} rows")


@pytest.mark.parametrize(
    "own, message",
    [
        ({"halt": raises}, "no opinion on 1 rows"),
        ({"halt": lambda view: view.q}, "expected a boolean tensor"),
        (
            {"select": lambda questions, given: given, "abstain_below": 0.5},
            "the verifier returned",
        ),
    ],
)
def test_a_function_that_fails_ends_its_request_alone(model, own, message):
    rng = np.random.default_rng(8)
    good = Request(puzzle(rng), own={"grid": (3, 4), "halt": "q", "max_steps": 4})
    work = begin(model)
    number = work.add(good)
    bad = work.add(Request(puzzle(rng), own={"grid": (3, 4), "max_steps": 2, **own}))
    assert [e.kind for e in run(work) if e.request == bad][-1] == "end"
    same(work.result(number), alone(model, good))
    answer = work.result(bad)
    assert message in answer.error and answer.stopped == "" and not answer.tokens
    with pytest.raises((RuntimeError, ValueError), match=message):
        model.solve(np.ones((1, 12), int), max_steps=2, **own)


def test_a_step_that_fails_leaves_the_model_and_the_work_as_they_were(model):
    rng = np.random.default_rng(9)
    request = Request(puzzle(rng), own={"grid": (3, 4), "halt": "q", "max_steps": 5})
    want = alone(model, request)
    model.network.train()  # a part of the model alone
    was = [module.training for module in model.modules()]
    work = begin(model)
    number = work.add(request)
    work.step()
    modes = []

    def break_off(module, given):
        modes.append(module.training)
        raise RuntimeError("out of memory")

    hook = model.network.register_forward_pre_hook(break_off)
    with pytest.raises(RuntimeError, match="out of memory"):
        work.step()
    hook.remove()
    assert modes == [False] and [module.training for module in model.modules()] == was
    list(run(work))
    same(work.result(number), want)
    assert [module.training for module in model.modules()] == was
    model.eval()
