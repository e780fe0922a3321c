"""Requests that come and go while others are under way: each gets what it would get alone."""

import inspect
import math
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from inward.common.cpu import linears
from inward.common.sampling import Sampling
from inward.common.speaking import StopWords
from inward.common.thinking import Answer, Request, answers, run
from inward.data.thoughts.segments import Latent, Sample, Text
from inward.methods.coconut import seats
from inward.methods.coconut.door import METHOD
from inward.methods.coconut.generate import generate
from inward.methods.coconut.model import Coconut
from inward.methods.coconut.switch import Boundary, EntropySwitch, Scripted
from tests.acting import acting
from tests.methods.coconut.toys import (
    SPECIALS,
    bot,
    eot,
    make_base,
    make_model,
    make_tokenizer,
    text,
)
from tests.methods.tidar.toys import untimed


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=("gpt2", "llama", "huginn"))
def model(request) -> Coconut:
    return make_model(request.param)


@pytest.fixture(scope="module")
def gpt2() -> Coconut:
    return make_model("gpt2")


def sample(dice: random.Random) -> Sample:
    head = text(dice.randint(1, 9), dice.randint(0, 99))
    shapes = [
        (head,),
        (head, bot(), Latent(dice.randint(1, 4)), eot(), text(dice.randint(1, 4), 3)),
        (head, bot(), Latent(dice.randint(1, 3))),
        (head, bot()),
    ]
    return Sample(dice.choice(shapes))


def asked(dice: random.Random) -> Request:
    """Any request."""
    switch = dice.choice(
        [
            None,
            Scripted((2, 1), ends=range(0, 37, 2)),
            EntropySwitch(dwell=1, longest=3),
            Boundary(0.026, longest=3),
            "entropy:dwell=2,longest=2",
        ]
    )
    own: dict[str, Any] = {"switch": switch, "noise": dice.choice([0.0, 0.3])}
    if dice.random() < 0.3:
        own["votes"], own["noise"] = 3, 1.0
    if dice.random() < 0.2:
        own["edit"] = lambda thought, where, number: thought * 0.5
    if dice.random() < 0.2:
        own["max_new_thoughts"] = 2
    prompt = sample(dice)
    if not prompt.blocks and dice.random() < 0.3:
        own["thought"] = "soft"
    draws = [Sampling(), Sampling("match", temperature=1.7), Sampling("gumbel", top_k=9)]
    request = Request(
        prompt,
        max_new_tokens=dice.randint(1, 9),
        sampling=dice.choice(draws),
        seed=dice.randint(0, 9),
        ends=frozenset(dice.sample(range(37), 3)) if dice.random() < 0.5 else None,
        trace=dice.choice([None, frozenset(), frozenset({"lens"})]),
        logprobs=True,
        own=own,
    )
    if not prompt.blocks and switch is None:
        own.pop("votes", None)
    return acting(METHOD, SimpleNamespace(specials=SPECIALS), request)


class Close(float):
    """A number that is equal to one as good as it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and math.isclose(self, other, abs_tol=1e-5)

    __hash__ = float.__hash__


def told(answer: Answer) -> dict[str, Any]:
    """All of an answer that is not time."""
    assert answer.logprobs is not None
    facts = {
        "tokens": answer.tokens,
        "steps": answer.steps,
        "stopped": answer.stopped,
        "logprobs": [Close(p) for p in answer.logprobs],
        "flops": answer.cost.flops,
        "details": dict(answer.details),
    }
    if answer.trace is not None:
        row = facts["trace"] = answer.trace.to_dict()
        for step in row["steps"]:
            step["cost"] = untimed(step["cost"])
            for span in (*step.get("view", {}).values(), step.get("says")):
                if span:
                    span["confidence"] = [Close(p) for p in span["confidence"]]
            step["scores"] = {name: Close(value) for name, value in step["scores"].items()}
    return facts


def alone(model: Coconut, request: Request) -> Answer:
    (answer,) = answers(METHOD.begin(model), [request])
    return answer


# --- arrivals and cancellations -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_request_gets_what_it_would_get_alone(model, seed):
    dice = random.Random(seed)
    requests = [asked(dice) for _ in range(10)]
    work = METHOD.begin(model, batch_size=dice.choice([3, 5, 9]))
    waiting, numbers, cancelled = list(range(10)), {}, set()
    words: dict[int, list[int]] = {}
    while waiting or work.busy:
        while waiting and (dice.random() < 0.4 or not work.busy):
            r = waiting.pop(0)
            numbers[r] = work.add(requests[r])
        if dice.random() < 0.06 and numbers:
            r = dice.choice(list(numbers))
            work.cancel(numbers[r])
            cancelled.add(r)
        for event in work.step():
            if event.kind == "word":
                words.setdefault(event.request, []).extend(event.tokens)
    for r, number in numbers.items():
        got, want = work.result(number), alone(model, requests[r])
        if got.stopped == "cancelled":
            assert r in cancelled and got.tokens == want.tokens[: len(got.tokens)]
        else:
            assert told(got) == told(want)
        assert words.get(number, []) == list(got.tokens)
        with pytest.raises(KeyError, match=str(number)):
            work.result(number)
    assert not work.busy and work.step() == []


def test_rows_are_masked_from_each_other(gpt2, monkeypatch):
    """The test above must be able to fail."""
    honest = seats.SharedPast.begin

    def careless(self, *args):
        mask: Any = honest(self, *args)
        return None if mask is None else torch.zeros_like(mask)

    monkeypatch.setattr(seats.SharedPast, "begin", careless)
    monkeypatch.setitem(seats._HONEST, gpt2.base, True)
    requests = [Request(Sample((text(n, n),)), max_new_tokens=8, logprobs=True) for n in (2, 9)]
    together = answers(METHOD.begin(gpt2), requests)
    assert told(together[0]) != told(alone(gpt2, requests[0]))


def test_seats_are_used_again(gpt2):
    """Many rows one after the other take no more room than those that run together."""
    requests = [Request(Sample((text(3 + n % 4, n),)), max_new_tokens=1 + n % 5) for n in range(20)]
    work = METHOD.begin(gpt2, batch_size=4)
    for request in requests:
        work.add(request)
    most = 0
    got = {}
    while work.busy:
        for event in work.step():
            if event.answer is not None:
                got[event.request] = event.answer.tokens
        (lane,) = cast(Any, work)._lanes.values()
        most = max([most, *(len(group.rows) for group in lane.groups)])
    assert most == 4
    assert [got[n] for n in range(20)] == [alone(gpt2, r).tokens for r in requests]


def test_two_works_over_one_model(model):
    dice = random.Random(7)
    first, second = ([asked(dice) for _ in range(3)] for _ in range(2))
    works = [METHOD.begin(model), METHOD.begin(model)]
    for work, requests in zip(works, (first, second), strict=True):
        for request in requests:
            work.add(request)
    while any(work.busy for work in works):
        for work in works:
            work.step()
    for work, requests in zip(works, (first, second), strict=True):
        for number, request in enumerate(requests):
            assert told(work.result(number)) == told(alone(model, request))


# --- cancel, result, refusals ---------------------------------------------------------------------


def test_cancel_before_while_and_after(gpt2):
    request = Request(Sample((text(4, 1),)), max_new_tokens=6)
    work = METHOD.begin(gpt2, batch_size=1)
    runs, waits = work.add(request), work.add(request)
    for _ in range(2):
        work.step()
    work.cancel(waits)
    work.cancel(runs)
    with pytest.raises(KeyError, match="no request 9"):
        work.cancel(9)
    ends = [event for event in run(work) if event.kind == "end"]
    assert sorted(event.request for event in ends) == [runs, waits]
    stopped, never = work.result(runs), work.result(waits)
    assert stopped.stopped == never.stopped == "cancelled"
    assert stopped.tokens == alone(gpt2, request).tokens[:2] and never.tokens == ()
    number = work.add(request)
    with pytest.raises(ValueError, match="has not ended"):
        work.result(number)
    list(run(work))
    work.cancel(number)
    assert not work.busy and work.result(number).stopped == "length"


def test_events_are_the_answer(gpt2):
    prompt = Sample((text(3, 2), bot(), Latent(2)))
    own = {"switch": Scripted((4,)), "lens": 3}
    request = Request(prompt, max_new_tokens=5, trace=frozenset({"lens"}), own=own)
    work = METHOD.begin(gpt2)
    number = work.add(request)
    events = list(run(work))
    answer = work.result(number)
    assert answer.trace is not None
    assert [e.kind for e in events[:-1]] == [step.kind for step in answer.trace.steps]
    assert [e.step for e in events[:-1]] == [step.index for step in answer.trace.steps]
    assert all(len(e.tokens) == 3 for e in events if e.kind == "thought")
    assert [len(s.view["lens"].ids) for s in answer.trace.steps if s.kind == "thought"] == [3] * 4
    assert events[-1].kind == "end" and events[-1].answer is answer
    assert answer.steps == 4 and answer.details["thoughts"] == 2
    assert replace(answer.cost, parameters=0) == answer.trace.cost and answer.cost.seconds > 0
    assert answer.trace.answer.tolist() == list(answer.tokens)


def test_votes_say_words_when_they_are_decided(gpt2):
    prompt = Sample((text(3, 2), bot(), Latent(3), eot(), text(2, 3)))
    own = {"votes": 5, "noise": 2.0, "ballot": lambda ids: ids[-1] % 3}
    work = METHOD.begin(gpt2)
    number = work.add(Request(prompt, max_new_tokens=3, own=own))
    steps = []
    while work.busy:
        steps.append([event.kind for event in work.step()])
    assert all(not kinds for kinds in steps[:-1])
    assert steps[-1] == ["thought"] * 3 + ["word"] * 3 + ["end"]
    answer = work.result(number)
    facts = answer.details
    assert facts["votes"] == 5 and list(answer.tokens) in facts["tries"]
    assert facts["tries"] == generate(gpt2, [prompt] * 5, noise=2.0, max_new_tokens=3).tokens
    assert facts["share"] == facts["ballots"].count(facts["winner"]) / 5
    assert facts["winner"] == answer.tokens[-1] % 3
    single = alone(gpt2, Request(prompt, max_new_tokens=3))
    assert answer.cost.flops == pytest.approx(5 * single.cost.flops)
    assert answer.logprobs is None


def test_bad_requests_are_refused_when_they_are_added(gpt2):
    prompt = Sample((text(3, 1),))
    work = METHOD.begin(gpt2)
    bad = [
        (Request(prompt, own={"scheme": "plain"}), "coconut has no option scheme"),
        (Request(prompt, max_new_tokens=0), "max_new_tokens 0"),
        (Request(prompt, trace=frozenset({"tree"})), r"holds no \['tree'\]"),
        (Request([1, 2]), "must be a Sample"),
        (Request(Sample((text(96, 1),))), "no room"),
        (Request(Sample((*prompt.segments, bot(), bot()))), "unbalanced"),
        (Request(prompt, ends=frozenset({99})), r"end tokens \[99\]"),
        (Request(prompt, own={"switch": "loud"}), "no switch 'loud'"),
        (Request(prompt, own={"switch": "entropy:width=3"}), "has the numbers dwell"),
        (Request(prompt, own={"switch": "entropy:dwell=x"}), "is no number"),
        (Request(prompt, own={"switch": 3}), "switch is 3"),
        (Request(prompt, own={"switch": "speak", "thoughts": (2,)}), "give one"),
        (Request(prompt, own={"thoughts": (2, 2)}), "where a sentence ends"),
        (Request(prompt, own={"votes": 0}), "votes 0"),
        (Request(prompt, own={"lens": 0}), "lens 0"),
        (Request(prompt, own={"votes": 3, "noise": 0.0}), "must differ"),
        (Request(prompt, own={"ballot": tuple}), "votes is 1"),
        (Request(prompt, own={"noise": -1.0}), "noise -1.0"),
        (Request(prompt, own={"thought": "loud"}), "thought is 'loud'"),
        (Request(prompt, own={"packed": True}), "cannot be packed"),
        (Request(prompt, own={"packed": [1]}), r"packed is \[1\]"),
        (Request(prompt, own={"votes": 2.5}), "votes is 2.5, must be a whole number"),
        (Request(prompt, own={"thoughts": 3}), "thoughts is 3"),
        (Request(prompt, own={"noise": "loud"}), "noise is 'loud', must be a number"),
        (Request(prompt, own={"per_pass": 4}), "per_pass is 4"),
    ]
    for request, message in bad:
        with pytest.raises(ValueError, match=message):
            work.add(request)
    assert not work.busy
    with pytest.raises(ValueError, match="batch_size is 0"):
        METHOD.begin(gpt2, batch_size=0)


def test_switches_by_name(gpt2):
    prompt = Sample((text(5, 1),))
    pairs = [
        ("entropy:dwell=1,longest=3", EntropySwitch(dwell=1, longest=3)),
        ("boundary:threshold=0.03", Boundary(0.03)),
    ]
    for name, switch in pairs:
        said = [
            alone(gpt2, Request(prompt, max_new_tokens=6, own={"switch": own}))
            for own in (name, switch)
        ]
        assert said[0].tokens == said[1].tokens and said[0].steps == said[1].steps
    bounded = {"switch": "budget:of=entropy,total=2"}
    assert alone(gpt2, Request(prompt, max_new_tokens=6, own=bounded)).steps <= 2
    two = alone(gpt2, Request(prompt, max_new_tokens=6, own={"thoughts": (2,)}))
    assert two.details["thoughts"] == 2


# --- the model stays as it is ---------------------------------------------------------------------


def state(model: Coconut) -> list[Any]:
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    forwards = [m for m in model.modules() if "forward" in m.__dict__]
    return [hooks, forwards, model.base.config._attn_implementation, model.base.training]


def test_steps_and_errors_leave_the_model_clean(monkeypatch):
    monkeypatch.setattr(linears, "SMALLEST", {})
    model = make_model("llama", dtype=torch.float32)
    clean = state(model)
    request = Request(Sample((text(4, 1), bot(), Latent(2))), max_new_tokens=5)
    work = METHOD.begin(model)
    number = work.add(request)
    work.step()
    assert state(model) == clean, "an abandoned work"

    def fails(view):
        raise RuntimeError("no idea")

    bad = work.add(Request(request.prompt, own={"switch": fails}))
    with pytest.raises(RuntimeError, match="no idea"):
        work.step()
    assert state(model) == clean
    work.cancel(bad)
    work.step()
    handle = model.base.register_forward_hook(lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        work.step()
    handle.remove()
    assert state(model) == clean
    list(run(work))  # it goes on where it was
    assert work.result(number).tokens == alone(model, request).tokens


def test_rows_share_a_base_with_a_window():
    config = make_base("llama").config.to_dict() | {"model_type": "mistral", "sliding_window": 6}
    torch.manual_seed(0)
    base = MistralForCausalLM(MistralConfig(**config)).double().eval()
    model = Coconut(base, SPECIALS).eval()
    requests = [Request(Sample((text(n, n),)), max_new_tokens=7, logprobs=True) for n in (2, 9, 5)]
    work: Any = METHOD.begin(model)
    together = answers(work, requests)
    assert work.num_passes == 7  # one for the prompts, one for each word but the last
    for request, got in zip(requests, together, strict=True):
        assert told(got) == told(alone(model, request))
        ids = torch.tensor([[i for s in request.prompt.segments for i in s.ids]])
        said = list(ids[0].tolist())
        for token in got.tokens:
            with torch.no_grad():
                logits = base(torch.tensor([said])).logits[0, -1]
            logits[[SPECIALS.bot, SPECIALS.eot, SPECIALS.latent]] = -torch.inf
            assert token == int(logits.argmax())
            said.append(token)


def test_bases_that_honour_no_mask_are_not_shared(gpt2, monkeypatch):
    class Deaf(LlamaForCausalLM):
        def forward(self, *args, attention_mask=None, **kwargs):
            if attention_mask is not None and attention_mask.ndim == 4:
                attention_mask = None
            return super().forward(*args, attention_mask=attention_mask, **kwargs)

        forward.__signature__ = inspect.signature(LlamaForCausalLM.forward)

    torch.manual_seed(0)
    config = LlamaConfig(**make_base("llama").config.to_dict())
    model = Coconut(Deaf(config).double().eval(), SPECIALS).eval()
    requests = [Request(Sample((text(n, n),)), max_new_tokens=5, logprobs=True) for n in (2, 9)]
    together = answers(METHOD.begin(model), requests)
    assert [told(a) for a in together] == [told(alone(model, r)) for r in requests]
    assert not seats.honest(model, lambda a, b: {})
    assert seats.honest(gpt2, lambda a, b: {})


def test_further_arguments_of_the_base():
    model = make_model("huginn")
    prompt = Sample((text(4, 1), bot(), Latent(2)))
    deep = [
        alone(model, Request(prompt, max_new_tokens=4, logprobs=True, own={"per_pass": own}))
        for own in ({"num_steps": 5}, lambda start, stop: {"num_steps": 5}, None)
    ]
    assert told(deep[0]) == told(deep[1]) and deep[0].logprobs != deep[2].logprobs


# --- generate, as transformers has it -------------------------------------------------------------


def test_generate_of_the_model(gpt2):
    ids = torch.tensor([[0, 0, 3, 4, 5], [1, 2, 3, 37, 39]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    out = gpt2.generate(ids, mask, max_new_tokens=4)
    want = generate(
        gpt2,
        [Sample((Text((3, 4, 5), False),)), Sample((Text((1, 2, 3, 37), False), Latent(1)))],
        max_new_tokens=4,
    ).tokens
    assert out.dtype == torch.long and out.shape == (2, 9)
    assert out[0].tolist() == [3, 4, 5, *want[0], 0, 0]
    assert out[1].tolist() == [*ids[1].tolist(), *want[1]]
    assert gpt2.config is gpt2.base.config and gpt2.device == torch.device("cpu")
    with pytest.raises(ValueError, match="holes"):
        gpt2.generate(ids, torch.tensor([[1, 0, 1, 1, 1]] * 2))


def test_stop_words(gpt2):
    prompt = Sample((text(5, 1),))
    said = alone(gpt2, Request(prompt, max_new_tokens=8)).tokens
    stop = StopWords((f"w{said[2]}",), cast(Any, make_tokenizer()).decode)
    cut = alone(gpt2, Request(prompt, max_new_tokens=8, stop=stop))
    assert cut.stopped == "stop" and cut.tokens == said[: said.index(said[2]) + 1]
