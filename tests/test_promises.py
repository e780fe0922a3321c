"""What every method promises, asked of all of them with one list: this file is the interface.

A loss that sums over rows and is the same for the same draws, gradients, a folder that `hub.load`
reads back to the same numbers; and a verb: one answer for one question, a stream whose words are
the answer, lists that are singles, traces that need no tokenizer, refusals by name, and a model
that is afterwards what it was before. Hybrids are asked the same list.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch

from inward import hub
from inward.common.draws import Draws
from inward.common.sampling import Sampling
from inward.common.thinking import STOPPED
from inward.common.trace import Trace
from inward.data.thoughts.segments import Latent, Sample, Specials, Text
from inward.data.thoughts.tokenizers import byte_tokenizer
from inward.hub import load
from inward.methods.coconut.model import Coconut
from inward.methods.coconut.settings import CoconutSettings
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.settings import TiDARSettings
from inward.methods.trm.model import TRM
from inward.methods.trm.settings import TRMSettings
from inward.tasks.processors import PuzzleProcessor, TextProcessor
from inward.tasks.sudoku import SudokuTask
from inward.thinker import Thinker
from inward.viz.show import show
from tests.methods.tidar.toys import MASK, llama

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
SPECIALS = Specials(bot=26, eot=27, latent=28)
PROMPT = Sample((Text((5, 6, 26), False), Latent(2), Text((27,), False)))
SAMPLES = [
    Sample((*PROMPT.segments, Text((7, 8), True))),
    Sample(
        (Text((9, 26), False), Latent(1), Text((27, 10, 26), True), Latent(1), Text((27, 11), True))
    ),
]


BYTES = 257 + 4  # a byte each, the end of text, and tokens of our own


@dataclass(frozen=True)
class Promise:
    """A small model, a batch for its loss; and how it is asked: two questions, what they may say,
    and a trace beside the plain one.

    others: an option that is not this method's, and whose it is.
    """

    build: Callable[[], Any]
    batch: Callable[[Any], dict[str, torch.Tensor]] | None
    talker: Callable[[], Any]
    questions: tuple[Any, Any]
    own: dict[str, Any] = field(default_factory=dict)
    others: tuple[str, Any, str] = ("scheme", "plain", "tidar")
    traces: tuple[str, ...] = ()


def _trm() -> TRM:
    settings = TRMSettings(
        vocab_size=6, seq_len=16, hidden_size=16, swiglu_multiple=16, prefix_len=1,
        num_identifiers=0, T=1, n=1, n_sup=3,
    )  # fmt: skip
    return TRM(settings).eval()


def _puzzles(_: Any) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    cells = [torch.randint(1, 6, (2, 16), generator=g) for _ in range(2)]
    return {"inputs": cells[0], "labels": cells[1]}


def _huginn(vocab_size: int = 31, context: int = 32) -> HuginnForCausalLM:
    config = HuginnConfig(
        n_embd=16, n_heads=2, intermediate_size=24, n_layers_in_prelude=1,
        n_layers_in_recurrent_block=1, n_layers_in_coda=1, vocab_size=vocab_size,
        block_size=context, mean_recurrence=3, mean_backprop_depth=2, bos_token_id=None,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return HuginnForCausalLM(config).eval()


def _specials() -> Specials:
    return Specials(bot=BYTES - 3, eot=BYTES - 2, latent=BYTES - 1)


TEXTS = ("the cat", "a dog sat")
PUZZLES = ("1...............", "..2.........3..4")

SUPERPOSED = CoconutSettings("mixture", superpose=0.5, span=3)

METHODS = {
    "trm": Promise(
        _trm, _puzzles, _trm, PUZZLES, {"max_steps": 3, "halt": "never"}, traces=()
    ),
    "huginn": Promise(
        _huginn,
        lambda _: {"input_ids": IDS, "labels": IDS},
        lambda: _huginn(BYTES, 64),
        TEXTS,
        {"max_steps": 4, "halt": "kl"},
        traces=("lens", "state"),
    ),
    "coconut": Promise(
        lambda: Coconut(llama(), SPECIALS),
        lambda model: model.collate(SAMPLES),
        lambda: Coconut(llama(vocab_size=BYTES), _specials()),
        TEXTS,
        {"thoughts": (2,)},
        traces=("lens",),
    ),
    "coconut(superposed)": Promise(
        lambda: Coconut(llama(), SPECIALS, SUPERPOSED), None,
        lambda: Coconut(llama(vocab_size=BYTES), _specials(), SUPERPOSED),
        TEXTS, {"thoughts": (2, 1)}, traces=("lens",),
    ),
    "tidar": Promise(
        lambda: TiDAR(llama(), MASK, 3),
        lambda _: {"input_ids": IDS, "weight": torch.tensor(20.0)},
        lambda: TiDAR(llama(vocab_size=BYTES), BYTES - 1, 3),
        TEXTS,
        {"scheme": "one_pass"},
        ("max_steps", 3, "trm, huginn"),
        traces=("canvas",),
    ),
    "plain": Promise(
        lambda: llama(), None, lambda: llama(vocab_size=BYTES), TEXTS, {}, ("votes", 3, "coconut")
    ),
    "tidar(huginn)": Promise(
        lambda: TiDAR(_huginn(), MASK, 3), None, lambda: TiDAR(_huginn(BYTES, 64), BYTES - 1, 3),
        TEXTS, {"options": {"num_steps": 2}},
    ),
    "tidar(huginn)-depths": Promise(
        lambda: TiDAR(_huginn(), MASK, TiDARSettings(block_size=3, draft_steps=1)),
        lambda _: {"input_ids": IDS, "weight": torch.tensor(20.0)},
        lambda: TiDAR(_huginn(BYTES, 64), BYTES - 1, TiDARSettings(block_size=3, draft_steps=1)),
        TEXTS, {"verify": {"num_steps": 4}},
    ),
    "coconut(huginn)": Promise(
        lambda: Coconut(_huginn(), SPECIALS), None,
        lambda: Coconut(_huginn(BYTES, 64), _specials()), TEXTS, {"thoughts": (2,)},
    ),
    "coconut(huginn)-depths": Promise(
        lambda: Coconut(_huginn(), SPECIALS, CoconutSettings(thought_steps=4, word_steps=1)),
        lambda model: model.collate(SAMPLES),
        lambda: Coconut(_huginn(BYTES, 64), _specials()),
        TEXTS, {"thoughts": (2, 1), "per_thought": {"num_steps": 5}, "per_word": {"num_steps": 2}},
        traces=("lens",),
    ),
    "coconut(tidar.model)": Promise(
        lambda: Coconut(TiDAR(llama(), MASK, 3).model, SPECIALS), None,
        lambda: Coconut(TiDAR(llama(vocab_size=BYTES), BYTES - 1, 3).model, _specials()),
        TEXTS, {"thoughts": (1, 1)},
    ),
}  # fmt: skip
TRAINED = [name for name, promise in METHODS.items() if promise.batch is not None]


@pytest.fixture(params=METHODS)
def method(request) -> Promise:
    return METHODS[request.param]


@pytest.fixture(params=TRAINED)
def trained(request) -> Promise:
    return METHODS[request.param]


def made(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return build().eval()


def loss_of(model: Any, method: Promise, step: int = 0) -> Any:
    assert method.batch is not None
    return model.loss(method.batch(model), None, Draws(0, step, range(2), 2))


def asked(method: Promise, model: Any = None) -> Thinker:
    """A thinker around a small model that speaks bytes, or solves 4x4 Sudokus."""
    model = made(method.talker) if model is None else model
    processor: Any = TextProcessor(byte_tokenizer())
    if isinstance(model, TRM):
        processor = PuzzleProcessor(SudokuTask(4))
    if hasattr(model, "tokenizer"):
        model.tokenizer = cast(Any, byte_tokenizer())
    kind = "trm" if isinstance(model, TRM) else ""
    door = hub.door(kind) if kind else Thinker.of(model, tokenizer=byte_tokenizer()).method
    return Thinker(model, door, processor, "small")


def options(method: Promise, thinker: Thinker) -> dict[str, Any]:
    short = {} if thinker.method.reads == "puzzle" else {"max_new_tokens": 6}
    return short | method.own


# --------------------------------------------------------------------------------------------------
# Trained and saved


def test_the_loss_is_a_sum_with_gradients_and_the_same_for_the_same_draws(trained):
    model = made(trained.build)
    first, again = loss_of(model, trained), loss_of(model, trained)
    assert first.total.ndim == 0 and float(first.total.detach()) > 0
    assert torch.equal(first.total, again.total)
    assert first.metrics and all(len(pair) == 2 for pair in first.metrics.values())
    first.total.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads)
    assert any(float(g.abs().max()) > 0 for g in grads)


def test_a_folder_comes_back_as_the_same_model(method, tmp_path):
    model = made(method.talker)
    before = asked(method, model).ask(method.questions[0], **options(method, asked(method, model)))
    model.save_pretrained(tmp_path / "model")
    back = load(tmp_path / "model")
    assert type(back) is type(model) and not back.training
    thinker = asked(method, back)
    assert thinker.ask(method.questions[0], **options(method, thinker)).tokens == before.tokens
    if method.batch is not None:
        small = made(method.build)
        small.save_pretrained(tmp_path / "small")
        again = load(tmp_path / "small")
        assert torch.equal(loss_of(small, method).total, loss_of(again, method).total)


# --------------------------------------------------------------------------------------------------
# Asked


def test_an_answer_says_how_it_ended_and_what_it_cost(method):
    thinker = asked(method)
    answer = thinker.ask(method.questions[0], **options(method, thinker))
    again = thinker.ask(method.questions[0], **options(method, thinker))
    assert answer.tokens == again.tokens and answer.text == again.text
    assert answer.stopped in STOPPED and answer.steps >= 1 and answer.error is None
    cost = answer.cost
    assert min(cost.evaluations, cost.flops, cost.forwards, cost.bytes, cost.seconds) > 0
    assert answer.believed is None or 0 <= answer.believed <= 1
    assert (answer.believed is not None) == (thinker.method.reads == "puzzle")


def test_a_list_is_its_singles(method):
    thinker = asked(method)
    said = options(method, thinker)
    singles = [thinker.ask(q, **said) for q in method.questions]
    together = thinker.ask(list(method.questions), **said)
    assert [a.tokens for a in together] == [a.tokens for a in singles]
    first, bad, last = thinker.ask([method.questions[0], "", method.questions[1]], **said)
    assert bad.error and (first.tokens, last.tokens) == tuple(a.tokens for a in singles)


def test_the_words_of_a_stream_are_the_answer(method):
    thinker = asked(method)
    said = options(method, thinker)
    answer = thinker.ask(method.questions[0], **said)
    *events, end = thinker.stream(method.questions[0], **said)
    assert end.kind == "end" and end.answer.tokens == answer.tokens
    words = [event for event in events if event.kind == "word"]
    assert "".join(word.text for word in words) == answer.text == end.answer.text
    assert sum((word.tokens for word in words), ()) == answer.tokens
    assert all(event.kind in ("word", "thought", "draft", "rewrite") for event in events)
    assert all(event.step >= 1 for event in events)


def test_streams_side_by_side_and_abandoned_ones_leave_the_model_as_it_was(method):
    model = made(method.talker)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    forwards = [module.forward for module in model.modules()]
    thinker = asked(method, model)
    said = options(method, thinker)
    alone = [thinker.ask(q, **said).text for q in method.questions]
    streams: list[Any] = [thinker.stream(q, **said) for q in method.questions]
    texts = ["", ""]
    while streams[0] or streams[1]:
        for i in (0, 1):
            event = next(streams[i], None) if streams[i] else None
            if event is None:
                streams[i] = None
            elif event.kind == "word":
                texts[i] += event.text
    assert texts == alone
    left = thinker.stream(method.questions[0], **said)
    next(left)
    left.close()
    assert thinker.ask(method.questions[1], **said).text == alone[1]
    assert [module.training for module in model.modules()] == modes
    assert [module.forward for module in model.modules()] == forwards
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_trace_says_what_the_answer_says(method):
    thinker = asked(method)
    said = options(method, thinker)
    plain = thinker.ask(method.questions[0], **said)
    for wanted in (True, *method.traces):
        more: dict[str, Any] = {"scheme": "diffusion"} if wanted == "canvas" else {}
        answer = thinker.ask(method.questions[0], trace=wanted, **said | more)
        trace = answer.trace
        assert trace.answer.tolist() == list(answer.tokens)
        assert [step.index for step in trace.steps] == list(range(1, len(trace.steps) + 1))
        assert trace.stopped == answer.stopped and trace.model == "small"
        assert trace.named() <= set(trace.pieces)
        assert Trace.from_dict(json.loads(json.dumps(trace.to_dict()))).to_dict() == trace.to_dict()
        show(trace)
        if not more:
            assert answer.tokens == plain.tokens
    assert plain.trace is None


def test_what_another_method_offers_is_refused_by_name(method):
    thinker = asked(method)
    name, value, owner = method.others
    if name not in thinker.method.options:
        with pytest.raises(ValueError, match=rf"{name} .of .*{owner.split(',')[0]}"):
            thinker.ask(method.questions[0], **{name: value})
    with pytest.raises(ValueError, match="traces have no nonsense"):
        thinker.ask(method.questions[0], trace="nonsense")
    wrongs: list[Any] = [0.5, True, "some"]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="effort|" + (thinker.method.why_no_effort or "x")):
            thinker.ask(method.questions[0], effort=wrong)


def test_effort_is_the_methods_own_unit(method):
    thinker = asked(method)
    if thinker.method.unit is None:
        with pytest.raises(ValueError, match=thinker.method.why_no_effort[:20]):
            thinker.ask(method.questions[0], effort=2)
        return
    unit = thinker.method.unit[0]
    short = {k: v for k, v in options(method, thinker).items() if k not in (unit, "halt")}
    never: dict[str, Any] = {"halt": "never"} if "halt" in thinker.method.options else {}
    less = thinker.ask(method.questions[0], effort=1, **short, **never)
    more = thinker.ask(method.questions[0], effort=3, **short, **never)
    assert more.cost.evaluations > less.cost.evaluations and more.cost.flops > less.cost.flops


def test_sampling_belongs_to_the_seed_of_the_question(method):
    thinker = asked(method)
    if thinker.method.reads == "puzzle":
        pytest.skip("a puzzle's answer is not drawn")
    said = options(method, thinker) | {"sampling": Sampling("gumbel"), "max_new_tokens": 8}
    one, two = thinker.ask([method.questions[0]] * 2, seed=[1, 2], **said)
    assert one.tokens != two.tokens
    assert thinker.ask(method.questions[0], seed=2, **said).tokens == two.tokens
    alone = thinker.ask(method.questions[0], seed=1, logprobs=True, **said)
    assert alone.tokens == one.tokens and len(alone.logprobs) == len(alone.tokens)
    assert all(value <= 0 for value in alone.logprobs)


def test_a_stop_word_ends_the_answer(method):
    thinker = asked(method)
    if thinker.method.reads == "puzzle":
        with pytest.raises(ValueError, match="no stop words"):
            thinker.ask(method.questions[0], stop="1")
        return
    said = options(method, thinker)
    text = thinker.ask(method.questions[0], **said).text
    word = next((c for c in text if c.isprintable() and c != "\ufffd"), None)
    if word is None:
        pytest.skip("the small model says no whole character")
    answer = thinker.ask(method.questions[0], stop=word, **said)
    assert answer.stopped == "stop" and answer.text == text[: text.index(word)]


def test_only_what_is_called_is_copied(method):
    """A model can be copied and asked again: nothing of a call stays in it."""
    model = made(method.talker)
    thinker = asked(method, model)
    said = options(method, thinker)
    before = thinker.ask(method.questions[0], **said).tokens
    twin = asked(method, copy.deepcopy(model))
    assert twin.ask(method.questions[0], **said).tokens == before


def test_every_row_of_the_hub_is_asked_here():
    assert set(hub.METHODS) <= set(METHODS)


def test_the_stepping_form_has_one_order(method):
    """Cancelled work ends with the next step; nobody has a result before its end, nor twice."""
    thinker = asked(method)
    work = thinker.begin()
    first, second = (
        work.add(thinker.request(q, **options(method, thinker))) for q in method.questions
    )
    work.cancel(first)
    with pytest.raises(ValueError, match="has not ended"):
        work.result(first)
    ends = []
    while work.busy:
        ends += [event.request for event in work.step() if event.kind == "end"]
    work.cancel(second)  # has ended: stays as it is
    assert sorted(ends) == [first, second]
    assert work.result(first).stopped == "cancelled"
    alone = thinker.ask(method.questions[1], **options(method, thinker))
    assert work.result(second).tokens == alone.tokens
    with pytest.raises(KeyError):
        work.result(second)


def test_thinking_ends_when_the_caller_wants_the_answer_so_far(method):
    """It thinks less than it would have, its neighbour as much as ever; what has nothing to end
    says so."""
    thinker = asked(method)
    never: dict[str, Any] = {"halt": "never"} if "halt" in thinker.method.options else {}
    said = options(method, thinker) | never
    whole, other = (thinker.ask(q, **said) for q in method.questions)
    work = thinker.begin()
    first, second = (work.add(thinker.request(q, **said)) for q in method.questions)
    work.step()
    if thinker.method.budget is None:
        with pytest.raises(ValueError, match="no thinking to end"):
            work.end_thinking(first)
    else:
        work.end_thinking(first)
    while work.busy:
        work.step()
    work.end_thinking(second)  # has ended: stays as it is
    answer = work.result(first)
    assert work.result(second).tokens == other.tokens
    assert answer.tokens and answer.stopped in STOPPED
    if thinker.method.budget is None:
        assert answer.tokens == whole.tokens
    else:
        assert answer.steps < whole.steps
        assert answer.stopped == ("budget" if thinker.method.reads == "puzzle" else whole.stopped)
    with pytest.raises(KeyError):
        work.end_thinking(first)


def test_what_answers_without_thinking_says_how(method):
    thinker = asked(method)
    if thinker.method.silent is None:
        return
    short: dict[str, Any] = {"max_new_tokens": 6, **thinker.method.silent}
    answer = thinker.ask(method.questions[0], **short)
    assert answer.tokens and answer.details.get("thoughts", 0) == 0
