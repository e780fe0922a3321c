"""Texts come, go and are cancelled at any time: each says what it says alone, and the model stays
as it was."""

import random
import threading
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from inward.common.cpu.linears import can_pack
from inward.common.sampling import Sampling
from inward.common.speaking import StopWords
from inward.common.thinking import Answer, Event, Request, answers, run
from inward.common.trace import Cost
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.tidar.adapter import DraftAdapter
from inward.methods.tidar.batch import Layout, Runner
from inward.methods.tidar.choose import Chooser
from inward.methods.tidar.decode import decode
from inward.methods.tidar.door import METHOD, PLAIN
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.request import TRACES, DecodeSettings, PromptLookup
from inward.methods.tidar.schemes import Costs
from tests.methods.tidar.toys import CONTEXT, MASK, Leaning, V, llama, prompts, record, slow

FLAT = Costs((1, 100), (1.0, 1.0))
NONE: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def leaning() -> TiDAR:
    return TiDAR(llama(Leaning), MASK, 4).eval()


def adapted(base: Any = None) -> TiDAR:
    """A model with an adapter that has learnt something, whatever it is."""
    base = llama() if base is None else base
    adapter = DraftAdapter(base)
    generator = torch.Generator().manual_seed(3)
    for B in adapter.lora_B.parameters():
        torch.nn.init.normal_(B, generator=generator)
    return TiDAR(base, V, 4, adapter=adapter).eval()


def letters(tokens: Any) -> str:
    return "".join(chr(97 + token) for token in tokens)


OWN: tuple[dict[str, Any], ...] = (
    {},
    {"scheme": "plain"},
    {"scheme": "two_pass", "K": 5},
    {"scheme": "partial", "num_blocks": 1},
    {"beta": 0.5},
    {"scheme": "diffusion", "threshold": 0.3},
    {"scheme": "plain", "drafter": PromptLookup(1)},
)
SAMPLINGS = (
    Sampling(),
    Sampling("gumbel", temperature=0.8, top_k=12, seed=4),
    Sampling("match", seed=5),
    Sampling("rejection", seed=6),
    Sampling(processors=(RepetitionPenaltyLogitsProcessor(1.4),)),  # pyright: ignore
)


def drawn(rng: random.Random, *, kinds: int = len(OWN)) -> Request:
    """Any request."""
    length = rng.choice((1, 3, 7, 20, CONTEXT - 5))
    return Request(
        prompts(1, length, seed=rng.randrange(99))[0].tolist(),
        max_new_tokens=rng.choice((1, 2, 9, 25)),
        sampling=rng.choice(SAMPLINGS),
        seed=rng.choice((None, 7, 8)),
        ends=frozenset(rng.choice(((), (2, 5, 17)))),
        stop=rng.choice((None, StopWords(("ab", "q"), letters))),
        trace=rng.choice((None, frozenset(), frozenset({"canvas"}))),
        logprobs=rng.random() < 0.5,
        own=OWN[rng.randrange(kinds)],
    )


def alone(model: Any, request: Request) -> Answer:
    return answers(METHOD.begin(model), [request])[0]


def timeless(cost: Cost) -> Cost:
    parts = {name: replace(part, seconds=0.0) for name, part in cost.parts.items()}
    return replace(cost, seconds=0.0, parts=parts)


def same(one: Answer, other: Answer) -> None:
    assert (one.tokens, one.steps, one.stopped) == (other.tokens, other.steps, other.stopped)
    assert one.details == other.details
    assert timeless(one.cost) == timeless(other.cost)
    assert (one.logprobs is None) == (other.logprobs is None)
    if one.logprobs is not None and other.logprobs is not None:
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert len(one.logprobs) == len(one.tokens)
    assert (one.trace is None) == (other.trace is None)
    if one.trace is not None and other.trace is not None:
        rows = [record(trace) for trace in (one.trace, other.trace)]
        for row in rows:
            for step in row["steps"]:
                step.get("says", {}).pop("confidence", None)
        assert rows[0] == rows[1]


def is_clean(model: Any) -> bool:
    lm = getattr(model, "model", model) if isinstance(model, TiDAR) else model
    patched = any("forward" in module.__dict__ for module in model.modules())
    return not patched and lm.config._attn_implementation == "sdpa" and not model.training


# --- random arrivals ------------------------------------------------------------------------------


def live(model: Any, requests: list[Request], rng: random.Random, *, batch_size: int) -> Any:
    """Requests that arrive and are cancelled at random; answers, events and who was cancelled."""
    work, waiting = METHOD.begin(model, batch_size=batch_size), list(enumerate(requests))
    numbers: dict[int, int] = {}
    events: list[Event] = []
    cancelled: set[int] = set()
    while waiting or work.busy:
        while waiting and (rng.random() < 0.4 or not work.busy):
            index, request = waiting.pop(0)
            numbers[work.add(request)] = index
        under_way = sorted(set(numbers) - {e.request for e in events if e.kind == "end"})
        if under_way and rng.random() < 0.1:
            number = rng.choice(under_way)
            work.cancel(number)
            cancelled.add(numbers[number])
        events += work.step()
    found = {index: work.result(number) for number, index in numbers.items()}
    told = {i: [e for e in events if e.request == n] for n, i in numbers.items()}
    return found, told, cancelled


@pytest.mark.parametrize("seed", range(4))
def test_arrivals_and_cancellations_change_nothing(leaning, seed):
    rng = random.Random(seed)
    requests = [drawn(rng) for _ in range(14)]
    found, told, cancelled = live(leaning, requests, rng, batch_size=3)
    assert is_clean(leaning) and len(found) == len(requests)
    assert sum(answer.stopped != "cancelled" for answer in found.values()) > 8
    for index, request in enumerate(requests):
        answer, events = found[index], told[index]
        wanted = alone(leaning, request)
        if answer.stopped == "cancelled":
            assert index in cancelled
            assert answer.tokens == wanted.tokens[: len(answer.tokens)]
        else:
            same(answer, wanted)
        assert [event.kind for event in events].count("end") == 1 and events[-1].kind == "end"
        assert events[-1].answer is answer
        said = [token for event in events if event.kind == "word" for token in event.tokens]
        assert said == list(answer.tokens)
        steps = [event.step for event in events]
        assert steps == sorted(steps) and steps[-1] == answer.steps


def test_texts_with_an_adapter_join_as_well():
    model, rng = adapted(), random.Random(5)
    requests = [drawn(rng, kinds=4) for _ in range(8)]
    found, _, _ = live(model, requests, rng, batch_size=4)
    for index, request in enumerate(requests):
        if found[index].stopped != "cancelled":
            same(found[index], alone(model, request))
    assert is_clean(model)


def test_plain_is_the_slow_loop():
    model, ids = llama(), prompts(3, 6)
    work = PLAIN.begin(model)
    requests = [Request(row, max_new_tokens=12, ends=NONE) for row in ids.tolist()]
    found = answers(work, [*requests[:2]])
    late = answers(work, [requests[2]])
    for answer, row in zip([*found, *late], ids, strict=True):
        # the slow loop bans the mask token, plain decoding knows none
        ids_of, keep = row[None], torch.ones_like(row[None])
        plain = model.generate(ids_of, attention_mask=keep, max_new_tokens=12, do_sample=False)
        assert list(answer.tokens) == plain[0, 6:].tolist()
        assert answer.steps == 12 and answer.stopped == "length"
        assert answer.details["scheme"] == "plain"
    wanted = slow(model, ids[0].tolist(), 12)
    masked = answers(METHOD.begin(model), [replace(requests[0], own={"mask_id": MASK})])
    assert list(masked[0].tokens) == wanted


def test_one_that_joins_shares_the_forwards():
    widths: list[int] = []
    model = llama()
    model.lm_head.register_forward_hook(lambda m, x, y: widths.append(y.shape[0]))
    work = PLAIN.begin(model)
    work.add(Request([1, 2, 3], max_new_tokens=6, ends=NONE))
    work.step()
    work.add(Request([4, 5], max_new_tokens=6, ends=NONE))
    widths.clear()
    for _ in run(work):
        pass
    # the newcomer reads its prompt beside the other's second word, then they go together
    assert widths == [1, 1, 2, 2, 2, 2, 1]


def test_two_works_over_one_model(leaning):
    requests = [drawn(random.Random(i), kinds=4) for i in range(4)]
    works = [METHOD.begin(leaning), METHOD.begin(leaning)]
    numbers = [[work.add(r) for r in requests[i::2]] for i, work in enumerate(works)]
    while any(work.busy for work in works):
        for work in works:
            if work.busy:
                work.step()
                assert is_clean(leaning)
    for i, work in enumerate(works):
        for number, request in zip(numbers[i], requests[i::2], strict=True):
            same(work.result(number), alone(leaning, request))


def test_work_that_is_left_leaves_nothing_behind():
    model = adapted()
    work = METHOD.begin(model)
    request = Request([1, 2, 3], max_new_tokens=20, ends=NONE, own={"packed": None})
    work.add(request)
    work.step()
    del work
    assert is_clean(model)
    assert alone(model, request).tokens == alone(adapted(), request).tokens


# --- the end --------------------------------------------------------------------------------------


def test_cancelled_before_while_and_after(leaning):
    work = METHOD.begin(leaning, batch_size=2)
    request = Request([1, 2, 3], max_new_tokens=9, ends=NONE)
    first, second, third = (work.add(request) for _ in range(3))
    work.cancel(third)
    events = work.step()
    (end,) = [event for event in events if event.kind == "end"]
    assert end.request == third and end.answer is not None
    assert (end.answer.stopped, end.answer.tokens, end.answer.steps) == ("cancelled", (), 0)
    work.cancel(first)
    work.cancel(first)
    rest = list(run(work))
    assert [e.answer.stopped for e in rest if e.answer] == ["cancelled", "length"]
    assert not [e for e in rest if e.request == first and e.kind == "word"]
    work.cancel(second)
    assert work.result(second).stopped == "length"
    (word,) = [event for event in events if event.request == first and event.kind == "word"]
    assert work.result(first).tokens == word.tokens == alone(leaning, request).tokens[:1]


def test_a_result_is_had_once_and_not_before(leaning):
    work = METHOD.begin(leaning)
    number = work.add(Request([1, 2], max_new_tokens=8))
    with pytest.raises(ValueError, match="request 0 has not ended: 0 tokens so far"):
        work.result(number)
    for _ in run(work):
        pass
    assert len(work.result(number).tokens) == 8
    for strange in (number, 99):
        with pytest.raises(KeyError, match=f"there is no request {strange}"):
            work.result(strange)
        with pytest.raises(KeyError, match=f"there is no request {strange}"):
            work.cancel(strange)
    assert not work.busy and work.step() == []


def test_why_it_ended(leaning):
    def stopped(**changes: Any) -> tuple[str, int]:
        usual = {"prompt": [1, 2, 3, 4, 5], "max_new_tokens": 30, "ends": NONE}
        found = alone(leaning, Request(**{**usual, **changes}))
        return found.stopped, len(found.tokens)

    text = alone(leaning, Request([1, 2, 3, 4, 5], max_new_tokens=30, ends=NONE)).tokens
    place = next(i for i in range(3, 30) if text[i] not in text[:i])
    assert stopped() == ("length", 30)
    assert stopped(ends=frozenset({text[place]})) == ("end", place + 1)
    two = letters(text[place - 1 : place + 1])
    assert stopped(stop=StopWords((two,), letters)) == ("stop", place + 1)
    never = [lambda ids, scores: torch.tensor([ids.shape[1] >= 5 + 7])]
    assert stopped(own={"stopping_criteria": never}) == ("stop", 7)
    assert stopped(max_new_tokens=999) == ("context", CONTEXT - 5)
    assert stopped(max_new_tokens=None, prompt=[1] * 9) == ("context", CONTEXT - 9)


def test_what_a_config_says_holds_where_a_request_does_not():
    model = llama()
    model.generation_config.eos_token_id = None
    request = Request([1, 2, 3, 4, 5], max_new_tokens=20)
    text = answers(PLAIN.begin(model), [request])[0].tokens
    model.generation_config.update(do_sample=True, temperature=0.9, eos_token_id=text[4])
    sampled = answers(PLAIN.begin(model), [request, replace(request, seed=3)])
    assert sampled[0].details["rule"] == "gumbel" and sampled[0].tokens != sampled[1].tokens
    greedy = replace(request, sampling=Sampling())
    (found,) = answers(PLAIN.begin(model), [greedy])
    assert found.stopped == "end" and found.tokens == text[: text.index(text[4]) + 1]


# --- what is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize("own", OWN[:6], ids=str)
@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=lambda s: s.rule)
def test_probabilities_are_of_the_distribution_that_chose(own, sampling):
    """Against the slow loop, for the verifying schemes; for all of them within what may be."""
    base = llama(Leaning)
    model = TiDAR(base, MASK, 4).eval()
    asked = frozenset({"canvas"})
    request = Request([1, 2, 3], 14, sampling, ends=NONE, trace=asked, logprobs=True, own={**own})
    found = alone(model, request)
    assert found.logprobs is not None and len(found.logprobs) == 14 and found.trace is not None
    assert max(found.logprobs) <= 1e-6
    steps = found.trace.steps
    said = [step.says for step in steps if step.says is not None]
    assert np.concatenate([s.ids for s in said]).tolist() == list(found.tokens)
    sure = np.concatenate([s.confidence for s in said])  # pyright: ignore
    assert np.log(sure).tolist() == pytest.approx(found.logprobs, abs=1e-4)
    if own.get("scheme") == "diffusion":
        assert steps[0].view["canvas"].ids.tolist() == [MASK] * 4
        return
    odds: list[float] = []

    def choose(text: list[int], logits: torch.Tensor) -> int:
        token = found.tokens[len(odds)]
        scores = logits.clone()
        for process in sampling.chain:
            scores = process(torch.tensor([text]), scores[None])[0]
        odds.append(float(scores.log_softmax(-1)[token]))
        return token

    slow(base, [1, 2, 3], 14, beta=own.get("beta", 1.0), choose=choose)
    assert found.logprobs == pytest.approx(odds, abs=1e-3)
    for step in steps:
        judged = step.view["draft"].ids.tolist() if "draft" in step.view else []
        canvas = step.view["canvas"].ids.tolist()
        assert canvas[: len(judged)] == judged and len(judged) == step.scores["offered"]
        assert set(canvas[len(judged) :]) <= {MASK}


def test_drafts_are_told_before_they_are_judged(leaning):
    request = Request([1, 2, 3], max_new_tokens=20, ends=NONE, trace=frozenset())
    work = METHOD.begin(leaning)
    work.add(request)
    events = list(run(work))
    answer = events[-1].answer
    assert answer is not None and answer.trace is not None
    drafts = {e.step + 1: list(e.tokens) for e in events if e.kind == "draft"}
    assert len(drafts) > 3
    for step in answer.trace.steps:
        judged = step.view["draft"].ids.tolist() if "draft" in step.view else []
        assert judged == drafts.get(step.index, [])[: len(judged)]
    assert answer.trace.stopped == "length" and answer.trace.method == "tidar"
    sizes = [len(step.says.ids) for step in answer.trace.steps if step.says is not None]
    assert sum(sizes) == 20, "a step repeats what was said before"


# --- what it costs --------------------------------------------------------------------------------


class Dear(type(llama())):
    """A model that knows what its forwards cost."""

    def forward_cost(self, *, rows: int, past: int, reads: int, depth: int = 1) -> Cost:
        asked.append((rows, past, reads))
        return Cost(evaluations=depth, flops=100.0 * rows * depth + past, forwards=1, bytes=7.0)

    def forward(self, *args: Any, depth: int = 1, **options: Any) -> Any:
        return super().forward(*args, **options)


asked: list[tuple[int, int, int]] = []


def test_costs_are_those_of_the_model_that_runs():
    model = llama(Dear)
    asked.clear()
    request = Request([1, 2, 3, 4, 5], max_new_tokens=3, sampling=Sampling(), ends=NONE)
    (found,) = answers(PLAIN.begin(model), [request])
    assert asked == [(5, 0, 1), (1, 5, 1), (1, 6, 1)]
    assert replace(found.cost, seconds=0.0, parts={}, parameters=0) == Cost(3, 711.0, 3, 21.0)
    assert found.cost.seconds > 0
    asked.clear()
    deep = replace(request, own={"options": {"depth": 4}})
    (found,) = answers(PLAIN.begin(model), [deep])
    assert found.cost.evaluations == 12 and found.cost.flops == 2800 + 11
    assert asked == [(5, 0, 5), (1, 5, 1), (1, 6, 1)], "with options the head runs on every row"


def test_an_adapter_costs_on_mask_rows_alone():
    model = adapted()
    with_it, without = Runner(model), Runner(model.model)
    clean, masked = Layout(3), Layout(1, ((1, 4),))
    asked: dict[str, Any] = {"past": 9, "reads": (1, 0), "on": "words"}
    assert with_it.cost(clean, **asked) == without.cost(clean, **asked)
    assert model.adapter is not None
    low = sum(p.numel() for n, p in model.adapter.named_parameters() if "lora" in n)
    dear, cheap = (runner.cost(masked, **asked) for runner in (with_it, without))
    assert dear.flops - cheap.flops == pytest.approx(4 * 2 * low)
    assert dear.parts["words"] == cheap.parts["words"]


def test_recurrences_cost_what_they_do():
    if not hasattr(HuginnForCausalLM, "forward_cost"):
        pytest.skip("Huginn does not say yet what its forwards cost")
    torch.manual_seed(0)
    config = HuginnConfig(
        vocab_size=V, n_embd=32, num_attention_heads=4, intermediate_size=48, block_size=CONTEXT,
        n_layers_in_prelude=1, n_layers_in_recurrent_block=1, n_layers_in_coda=1,
        mean_recurrence=3, mean_backprop_depth=2,
    )  # fmt: skip
    model = TiDAR(HuginnForCausalLM(config).eval(), MASK, 4).eval()
    request = Request([1, 2, 3], max_new_tokens=4, sampling=Sampling(), ends=NONE)
    own = [{"scheme": "plain", "options": {"num_steps": n}} for n in (1, 16)]
    one, many = answers(METHOD.begin(model), [replace(request, own=o) for o in own])
    assert many.cost.evaluations == 16 * one.cost.evaluations
    assert many.cost.flops > 3 * one.cost.flops


# --- auto -----------------------------------------------------------------------------------------


def test_auto_takes_newcomers_and_measures_for_them(monkeypatch):
    from inward.methods.tidar import work as door

    counts: list[int] = []

    def measured(runner: Any, num_texts: int, context: int) -> Costs:
        counts.append(num_texts)
        return replace(FLAT, num_texts=num_texts)

    monkeypatch.setattr(door, "measured", measured)
    model = TiDAR(llama(Leaning), MASK, 4).eval()
    request = Request([1, 2, 3], max_new_tokens=30, ends=NONE, own={"scheme": "auto"})
    plain = alone(model, replace(request, own={"scheme": "plain"}))
    work = METHOD.begin(model)
    assert counts == [], "nothing is measured before it is needed"
    numbers = [work.add(request)]
    work.step()
    assert counts == [1]
    numbers += [work.add(request) for _ in range(5)]
    for _ in run(work):
        pass
    assert counts == [1, 5]
    for number in numbers:
        found = work.result(number)
        assert found.tokens == plain.tokens and found.steps < 30


def test_where_drafts_decide_the_text_auto_does_not_share(leaning):
    own = {"scheme": "auto", "costs": FLAT}
    requests = [
        Request([i, 2], 20, Sampling("rejection", seed=i), ends=NONE, own=own) for i in range(3)
    ]
    for found, request in zip(answers(METHOD.begin(leaning), requests), requests, strict=True):
        same(found, alone(leaning, request))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompt": "a text"}, "the prompt is 'a text'"),
        ({"prompt": [0.5]}, "TiDAR continues a list of token ids"),
        ({"prompt": []}, "the prompt has 0 tokens"),
        ({"prompt": [1] * CONTEXT}, f"the prompt has {CONTEXT} tokens; the context is {CONTEXT}"),
        ({"prompt": [1, V]}, f"tokens run from 1 to {V}, the model knows 0 to {V - 1}"),
        ({"prompt": [1, MASK]}, "holds the mask token"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"sampling": "greedy"}, "must be a Sampling"),
        ({"stop": ["a"]}, "build StopWords"),
        ({"ends": frozenset({V})}, f"the vocabulary has {V}"),
        ({"trace": frozenset({"lens"})}, r"traces hold no \['lens'\] here"),
        ({"own": {"halt": 1, "K": 3}}, "tidar has no option halt; it has scheme"),
        ({"own": {"K": "many"}}, "K is 'many', must be a number"),
        ({"own": {"K": CONTEXT + 1}}, f"this model attends over {CONTEXT} tokens"),
        ({"own": {"scheme": "three_pass"}}, "scheme is 'three_pass'"),
        ({"own": {"beta": "low"}}, "beta is 'low', must be a number"),
        ({"own": {"packed": 1}}, "packed is 1, must be True, False or None"),
        ({"own": {"costs": 3}}, "must be Costs"),
        ({"own": {"chooser": 3}}, "must be a Chooser"),
        ({"own": {"drafter": 3}}, "drafter is 3"),
        ({"own": {"stopping_criteria": [1]}}, "a list of functions"),
        ({"own": {"mask_id": 7}}, "mask_id is 7, but the model's own is"),
        ({"own": {"options": {"use_cache": 1}}}, "gives the forward itself"),
        ({"own": {"options": {"num_steps": 1}}}, r"knows no \['num_steps'\]"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(changes, message):
    model = TiDAR(llama(), MASK, 4).eval()
    work = METHOD.begin(model)
    model.model.model.register_forward_pre_hook(lambda m, x: pytest.fail("it runs"))
    with pytest.raises(ValueError, match=message):
        work.add(replace(Request([1, 2, 3], ends=NONE), **changes))
    assert not work.busy and work.step() == []


def test_other_refusals(leaning):
    with pytest.raises(ValueError, match="plain has no option scheme; it has K, drafter"):
        PLAIN.begin(llama()).add(Request([1], own={"scheme": "plain"}))
    with pytest.raises(ValueError, match="pass mask_id="):
        METHOD.begin(llama()).add(Request([1]))
    with pytest.raises(ValueError, match="batch_size is 0"):
        METHOD.begin(leaning, batch_size=0)


def test_the_door_says_what_there_is():
    names = [f.name for f in fields(DecodeSettings)]
    assert set(METHOD.options) == set(names) and METHOD.traces == TRACES == PLAIN.traces
    defaults = DecodeSettings()
    for name, option in METHOD.options.items():
        assert option.default == getattr(defaults, name), name
    assert set(PLAIN.options) < set(METHOD.options)
    for method in (METHOD, PLAIN):
        assert method.unit is None and method.why_no_effort and method.reads == "text"


def test_what_is_another_object_is_another_lane():
    one, other = Chooser(FLAT, 4), Chooser(FLAT, 4)
    assert DecodeSettings(chooser=one).shared != DecodeSettings(chooser=other).shared
    assert DecodeSettings(chooser=one).shared == DecodeSettings(chooser=one).shared
    assert DecodeSettings(K=4).shared != DecodeSettings(K=5).shared
    deep, deeper = (DecodeSettings(options={"num_steps": n}).shared for n in (4, 8))
    assert deep != deeper != DecodeSettings().shared


# --- faults and threads ---------------------------------------------------------------------------


def test_an_exception_leaves_the_model_clean_and_the_work_whole():
    model = adapted()
    requests = [Request([1, 2, i], max_new_tokens=12, ends=NONE) for i in range(3)]
    wanted = [alone(adapted(), request) for request in requests]
    work = METHOD.begin(model)
    numbers = [work.add(request) for request in requests[:2]]
    work.step()
    numbers.append(work.add(requests[2]))
    num_calls = 0

    def fail(*_: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls % 2:
            raise MemoryError("full")

    handle = model.model.model.layers[1].register_forward_pre_hook(fail)
    for _ in range(3):
        with pytest.raises(MemoryError):
            work.step()
        assert is_clean(model)
        x = torch.ones(1, 1, dtype=torch.long)
        handle.remove()
        assert torch.equal(model.model(x).logits, llama()(x).logits), "the adapter still acts"
        handle = model.model.model.layers[1].register_forward_pre_hook(fail)
        num_calls = 0
    handle.remove()
    for _ in run(work):
        pass
    for number, answer in zip(numbers, wanted, strict=True):
        same(work.result(number), answer)


@pytest.mark.parametrize("packed", (None, True))
def test_threads_share_a_model_with_an_adapter(packed):
    """One is held in the middle of a drafting forward while another decodes from begin to end."""
    model = adapted()
    if packed and not can_pack(list(model.model.parameters())):
        pytest.skip("oneDNN does not pack weights on this machine")
    own = [{"scheme": s, "packed": packed} for s in ("one_pass", "plain", "two_pass")]
    # the others' prompts reach over the rows that the held one's adapter acts on
    texts = [[5, 6, 7], prompts(1, 30)[0].tolist(), prompts(1, 30, seed=2)[0].tolist()]
    requests = [
        Request(text, max_new_tokens=8, ends=NONE, own=o)
        for text, o in zip(texts, own, strict=True)
    ]
    wanted = [alone(model, request) for request in requests]
    assert wanted[0].details["accepted"] != wanted[1].details["accepted"]
    inside, done, found = threading.Event(), threading.Event(), []

    def hold(*_: Any) -> None:
        if threading.current_thread().name == "held" and not done.is_set():
            inside.set()
            assert done.wait(30)

    held = threading.Thread(name="held", target=lambda: found.append(alone(model, requests[0])))
    handle = model.model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(hold)
    held.start()
    assert inside.wait(30)
    found += [alone(model, request) for request in requests[1:]]
    done.set()
    held.join()
    handle.remove()
    for answer, other in zip([found[2], *found[:2]], wanted, strict=True):
        same(answer, other)
    assert is_clean(model)


# --- generate -------------------------------------------------------------------------------------


def test_generate_gives_the_prompt_and_the_new_tokens(leaning):
    ids = prompts(3, 5)
    found = decode(leaning, ids, max_new_tokens=12, eos_token_id=[2, 5, 17])
    assert len({len(tokens) for tokens in found.tokens}) > 1
    made = leaning.generate(ids, max_new_tokens=12, eos_token_id=[2, 5, 17], pad_id=0)
    assert made.dtype == torch.long and torch.equal(made[:, :5], ids)
    for row, tokens in zip(made[:, 5:].tolist(), found.tokens, strict=True):
        assert row == tokens + [0] * (made.shape[1] - 5 - len(tokens))
    keep = torch.ones_like(ids)
    keep[0, :2] = 0
    padded = leaning.generate(ids, keep, max_new_tokens=6)
    short = leaning.generate(ids[:1, 2:], max_new_tokens=6)
    assert padded[0, 5:].tolist() == short[0, 3:].tolist()
    assert leaning.config is leaning.model.config and leaning.device == leaning.model.device
