"""Huginn's work: what a request gets is what it would get alone, whoever comes, goes or fails
beside it; and the model is left as it was."""

import random
import threading
from typing import Any

import pytest
import torch

from inward.common import costs, halting
from inward.common.sampling import Sampling
from inward.common.speaking import StopWords
from inward.common.thinking import STOPPED, Answer, Event, Request, answers, run
from inward.methods.huginn.door import METHOD
from inward.methods.huginn.generate import generate
from tests.acting import acting
from tests.methods.huginn.test_generate import random_prompts, small_model

SAMPLINGS = (
    None,
    Sampling(rule="gumbel", temperature=1.5, seed=2),
    Sampling(rule="rejection", temperature=1.2, top_k=20),
    Sampling(processors=(lambda ids, scores: scores - 2.0 * (scores == scores.max()),)),
)
HALTS = ("never", halting.KL(0.1), halting.LatentChange(0.3), halting.EntropyChange(0.05))
MODES: tuple[dict[str, Any], ...] = (
    {"mode": "speculate", "draft_steps": 1, "draft_tokens": 3},
    {"mode": "speculate", "draft_steps": 2, "start": "zero"},
    {"mode": "parallel", "exact": True, "inner_steps": 2},
    {"mode": "parallel", "halt": halting.LatentChange(0.3), "max_wave": 3},
    {"mode": "parallel", "halt": halting.KL(0.2)},
)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return small_model(1)


def random_request(dice: random.Random) -> Request:
    own: dict[str, Any] = {"max_steps": dice.choice((2, 4, 6)), "packed": False}
    trace = dice.choice(
        (None, None, frozenset(), frozenset({"lens"}), frozenset({"lens", "state"}))
    )
    if dice.random() < 0.3:
        own |= dice.choice(MODES) | {"max_steps": dice.choice((4, 6))}
        trace = trace and frozenset()
    else:
        own["halt"] = dice.choice(HALTS)
        own["min_steps"], own["check_every"] = dice.choice(((1, 1), (1, 2), (2, 1)))
        if own["max_steps"] == 2:
            own |= {"halt": "never", "min_steps": 1}
        own["halt_in_prompt"] = dice.random() < 0.7
        own["sharing"] = dice.choice(("deepest", "deepest", "deepest", "ring:2"))
        own["warm"] = dice.choice((None, None, "raw", "normed"))
        own["start"] = dice.choice(("noise", "zero"))
    (prompt,) = random_prompts([dice.randint(1, 12)], seed=dice.randrange(1 << 30))
    request = Request(
        prompt,
        max_new_tokens=dice.randint(1, 7),
        sampling=dice.choice(SAMPLINGS),
        seed=dice.choice((None, 0, 5)),
        ends=dice.choice((None, frozenset({3, 17, 30}))),
        stop=dice.choice((None, StopWords(("5", "22"), lambda ids: " ".join(map(str, ids))))),
        trace=trace,
        logprobs=dice.random() < 0.5,
        own=own,
    )
    return acting(METHOD, small_model(), request)


def same(got: Answer, want: Answer) -> None:
    """But for seconds, and rounding."""
    assert got.tokens == want.tokens and got.stopped == want.stopped
    assert got.steps == want.steps and got.details == want.details
    assert (got.cost.flops, got.cost.evaluations) == (want.cost.flops, want.cost.evaluations)
    assert (got.cost.bytes, got.cost.forwards) == (want.cost.bytes, want.cost.forwards)
    assert got.logprobs == (want.logprobs and pytest.approx(want.logprobs, abs=1e-3))
    assert (got.trace is None) == (want.trace is None)
    if got.trace is not None and want.trace is not None:
        assert got.trace.answer.tolist() == list(got.tokens)
        for a, b in zip(got.trace.steps, want.trace.steps, strict=True):
            assert (a.index, a.kind, a.position) == (b.index, b.kind, b.position)
            assert a.scores == pytest.approx(b.scores, abs=1e-3)
            assert a.view.keys() == b.view.keys() and a.arrays.keys() == b.arrays.keys()
            for name, state in a.arrays.items():
                assert state == pytest.approx(b.arrays[name], abs=1e-3)


def check_events(events: list[Event], answer: Answer) -> None:
    """Words joined are the answer, the last event is the end and carries it."""
    said = tuple(token for event in events if event.kind == "word" for token in event.tokens)
    assert said == answer.tokens and answer.stopped in STOPPED
    assert [event.kind for event in events].count("end") == 1 and events[-1].answer is answer
    steps = [event.step for event in events if event.kind in ("word", "thought")]
    assert steps == list(range(1, len(steps) + 1))
    if answer.trace is not None:
        assert len(answer.trace.steps) == len(steps)
    extras = answer.trace is not None and any(s.kind == "recur" for s in answer.trace.steps)
    assert ("thought" in {event.kind for event in events}) == extras


@pytest.mark.parametrize("seed", range(4))
def test_random_arrivals_and_cancellations_against_each_alone(model, seed):
    dice = random.Random(seed)
    requests = [random_request(dice) for _ in range(10)]
    work, numbers, events = METHOD.begin(model, batch_size=3, in_flight=4), [], {}
    cancelled, waiting = set[int](), list(requests)
    while waiting or work.busy:
        while waiting and (not work.busy or dice.random() < 0.3):
            numbers.append(work.add(waiting.pop(0)))
        if numbers and dice.random() < 0.05:
            cancelled.add(dice.choice(numbers))
            work.cancel(dice.choice(sorted(cancelled)))
        for event in work.step():
            events.setdefault(event.request, []).append(event)
    ended = set()
    for number, request in zip(numbers, requests, strict=True):
        got, (want,) = work.result(number), answers(METHOD.begin(model), [request])
        check_events(events[number], got)
        ended.add(got.stopped)
        if got.stopped == "cancelled":
            assert number in cancelled and got.tokens == want.tokens[: len(got.tokens)]
        else:
            same(got, want)
        with pytest.raises(KeyError):
            work.result(number)
    assert len(ended) > 1 and model.transformer.active_parts == {}


def test_two_works_stepped_in_turn_and_one_left_alone(model):
    dice = random.Random(9)
    sets = [[random_request(dice) for _ in range(4)] for _ in range(2)]
    works = [METHOD.begin(model, batch_size=2) for _ in sets]
    abandoned = METHOD.begin(model)
    abandoned.add(sets[0][0])
    numbers = [[w.add(r) for r in rs] for w, rs in zip(works, sets, strict=True)]
    while any(work.busy for work in works):
        for work in (*works, abandoned):
            work.step()
    for work, mine, requests in zip(works, numbers, sets, strict=True):
        for number, request in zip(mine, requests, strict=True):
            same(work.result(number), *answers(METHOD.begin(model), [request]))


def test_generate_is_a_loop_over_the_same_work(model):
    prompts = random_prompts([3, 1, 8])
    options: dict[str, Any] = {"halt": halting.KL(0.1), "max_steps": 6}
    out = generate(model, prompts, max_new_tokens=5, eos_token_id=(), **options)
    asked = [Request(p, max_new_tokens=5, ends=frozenset(), own=options) for p in prompts]
    got = answers(METHOD.begin(model), asked)
    assert [list(answer.tokens) for answer in got] == out.answers
    assert [list(answer.details["steps"]) for answer in got] == [s.tolist() for s in out.steps]


def test_cancel_before_while_and_after(model):
    work = METHOD.begin(model)
    first, second = (work.add(Request([1, 2, 3], max_new_tokens=4)) for _ in range(2))
    work.cancel(first)
    with pytest.raises(ValueError, match="has not ended"):
        work.result(first)
    events = work.step()
    assert (events[0].kind, events[0].request) == ("end", first)
    assert work.result(first).tokens == ()
    while not any(event.kind == "word" for event in events):
        events = work.step()
    work.cancel(second)
    (end,) = work.step()
    assert end.answer is not None and end.answer.stopped == "cancelled"
    assert len(end.answer.tokens) >= 1 and not work.busy and work.step() == []
    work.cancel(second)  # it has ended: nothing happens
    assert work.result(second) is end.answer
    for method in (work.result, work.cancel):
        with pytest.raises(KeyError, match=f"no request {second}"):
            method(second)


def test_stop_words_limits_and_costs(model):
    prompt = [1, 2, 3]
    words = StopWords(("stop",), lambda ids: "st" * (len(ids) > 1) + "op" * (len(ids) > 2))
    request = Request(prompt, max_new_tokens=9, stop=words, ends=frozenset())
    (answer,) = answers(METHOD.begin(model), [request])
    assert answer.stopped == "stop" and len(answer.tokens) == 3 and answer.believed is None
    one = Request(prompt, max_new_tokens=1, own={"max_steps": 5, "packed": False})
    (answer,) = answers(METHOD.begin(model), [one])
    assert answer.stopped == "length" and answer.steps == 5 and answer.cost.seconds > 0
    whole = costs.forward_cost(model, rows=3, past=0, reads=1, num_steps=5)
    assert answer.cost.flops == whole.flops and answer.cost.bytes == whole.bytes
    assert (whole.evaluations, whole.forwards) == (5, 1)


def test_a_forward_of_one_recurrence_costs_what_its_layers_cost():
    """Without an adapter, it is a plain model of four layers."""
    model = small_model()
    got = costs.forward_cost(model, rows=3, past=4, reads=2, num_steps=1)
    adapter = 2 * 32 * 32
    sizes = costs.sizes_of(model)
    biases = sum(p.numel() for name, p in model.named_parameters() if name.endswith("qk_bias"))
    looked_at = 3 * 4 + 3 * 2
    flops = 2 * (3 * (sizes.matrices - biases) + 2 * sizes.head) + sizes.attention * looked_at
    assert got.flops == flops
    assert got.bytes == sizes.weight_bytes - 4 * biases + sizes.cached * 7
    more = costs.forward_cost(model, rows=3, past=4, reads=2, num_steps=(2, 3))
    core = 2 * 3 * (2 * (4 * 32 * 32 + 3 * 32 * 48) + adapter) + 2 * 4 * 32 * looked_at
    assert more.flops == got.flops + 4 * core and more.evaluations == 5


BAD: list[tuple[dict[str, Any], str]] = [
    ({"own": {"exit": "kl"}}, "huginn has no option exit"),
    ({"own": {"mode": "fast"}}, "mode is 'fast'; there are plain, speculate, parallel"),
    ({"own": {"draft_steps": 2}}, "mode 'plain' has no option draft_steps"),
    ({"own": {"mode": "speculate", "halt": "kl"}}, "mode 'speculate' has no option halt"),
    ({"own": {"mode": "speculate", "draft_steps": 8}}, "fewer than the full depth of 8"),
    ({"own": {"mode": "speculate", "sharing": "shared"}}, "needs a slot for each recurrence"),
    ({"own": {"mode": "parallel", "inner_steps": 3}}, "no multiple of inner_steps 3"),
    ({"own": {"mode": "parallel", "inner_steps": "2"}}, "inner_steps is '2'"),
    ({"own": {"mode": "parallel", "exact": True, "halt": "kl"}}, "takes none"),
    ({"own": {"mode": "parallel"}, "trace": frozenset({"lens"})}, "keeps no record of lens"),
    ({"own": {"max_steps": 0}}, "max_steps is 0"),
    ({"own": {"max_steps": 2.5}}, "max_steps is 2.5, must be a whole number"),
    ({"own": {"halt": "sometimes"}}, "no halting rule 'sometimes'"),
    ({"own": {"halt_in_prompt": 1}}, "halt_in_prompt is 1"),
    ({"own": {"sharing": "ring"}}, "no sharing 'ring'"),
    ({"own": {"sharing": 3}}, "no sharing 3"),
    ({"own": {"packed": "yes"}}, "packed is 'yes'"),
    ({"own": {"state_seed": 1 << 63}}, "must be below"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"trace": frozenset({"tree"})}, "trace names tree; huginn can record lens, state"),
    ({"ends": frozenset({40})}, "the vocabulary has 40"),
    ({"seed": -1}, "seed is -1"),
    ({"prompt": []}, "the prompt has 0 tokens"),
    ({"prompt": [1] * 96}, "the context is 96"),
    ({"prompt": [40]}, "the model knows 0 to 39"),
    ({"prompt": "words"}, "Huginn takes token ids"),
    ({"prompt": [[1, 2]]}, "takes one row of token ids"),
]


@pytest.mark.parametrize("changes, message", BAD)
def test_bad_requests_are_refused_before_any_work_and_change_nothing(model, changes, message):
    work = METHOD.begin(model)
    number = work.add(Request([1, 2], max_new_tokens=1))
    with pytest.raises(ValueError, match=message):
        work.add(Request(**{"prompt": [1, 2], **changes}))
    assert sum(event.kind == "end" for event in run(work)) == 1
    assert len(work.result(number).tokens) == 1
    with pytest.raises(ValueError, match="batch_size is 0"):
        METHOD.begin(model, batch_size=0)


@pytest.mark.parametrize("mode", ["plain", "parallel"])
@pytest.mark.parametrize("packed", [None, False])
def test_an_exception_in_a_step_leaves_the_model_clean(mode, packed):
    """A rule of the caller's raises in the middle: modes and parts are as before; without its
    request the others get what they would have got."""
    torch.set_num_threads(1)
    model = small_model(1).train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    fails = True

    def rule(view: halting.DepthView) -> torch.Tensor:
        if fails and int(view.index.max()) >= 2:
            raise RuntimeError("out of luck")
        return view.step >= 4

    own = {"mode": mode, "packed": packed, "max_steps": 6}
    good = Request([1, 2], max_new_tokens=5, own=own | {"halt": halting.LatentChange(0.3)})
    work = METHOD.begin(model, batch_size=2)
    numbers = [work.add(good), work.add(Request([5], max_new_tokens=5, own=own | {"halt": rule}))]
    with pytest.raises(RuntimeError, match="out of luck"):
        for _ in run(work):
            pass
    assert [module.training for module in model.modules()] == modes
    assert model.transformer.active_parts == {} and model.transformer.parts is model.transformer
    work.cancel(numbers[1])
    for _ in run(work):
        pass
    assert work.result(numbers[1]).stopped == "cancelled"
    assert len(work.result(numbers[0]).tokens) == 5
    if mode == "plain":
        (want,) = answers(METHOD.begin(model), [good])
        again = METHOD.begin(model, batch_size=2)
        mine, other = again.add(good), again.add(Request([5], own=own | {"halt": rule}))
        while again.busy:
            try:
                again.step()
            except RuntimeError:
                again.cancel(other)
        same(again.result(mine), want)


def test_packed_weights_that_cannot_be_are_refused_and_changed_ones_are_seen():
    torch.set_num_threads(1)
    model = small_model(1)
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="cannot be packed"):
        METHOD.begin(model).add(Request([1], own={"packed": True}))
    handle.remove()
    request = Request([1, 2, 3], max_new_tokens=6, ends=frozenset())
    work = METHOD.begin(model)
    first, second = work.add(request), work.add(request)
    while not any(event.kind == "word" for event in work.step()):
        pass
    work.cancel(first)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    for _ in run(work):
        pass
    tail = work.result(second).tokens[1:]
    assert tail == (0,) * len(tail) and len(tail) == 5


def test_threads_get_what_serial_calls_get(model):
    requests = [random_request(random.Random(seed)) for seed in (20, 21, 22)]
    requests = [Request(r.prompt, r.max_new_tokens, own={"packed": None}) for r in requests]
    want = [answers(METHOD.begin(model), [request])[0] for request in requests]
    got: list[Any] = [None] * 3

    def think(i: int) -> None:
        got[i] = answers(METHOD.begin(model), [requests[i]])[0]

    threads = [threading.Thread(target=think, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, theirs in zip(got, want, strict=True):
        same(mine, theirs)
    assert model.transformer.active_parts == {}
