"""One model, many callers, asked of all methods and hybrids: what each gets is what it would get
alone, and the model is at every moment what it was.

Answers are compared by their tokens; the model by everything that a call could leave behind.
"""

import copy
import gc
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from inward.common.cpu import linears
from inward.common.draws import Draws
from inward.common.sampling import NotFiniteError, Sampling
from inward.methods.tidar.adapter import DraftAdapter
from inward.methods.tidar.model import TiDAR
from inward.thinker import Thinker
from inward.train.generators import Generators
from tests.methods.tidar.toys import MASK, V, llama
from tests.test_promises import BYTES, IDS, METHODS, Promise, asked, made, options


def adapted(vocab_size: int) -> TiDAR:
    """With an adapter that does something to the drafts."""
    base = llama(vocab_size=vocab_size)
    adapter = DraftAdapter(base)
    for B in adapter.lora_B.parameters():
        nn.init.normal_(B, std=0.3, generator=torch.Generator().manual_seed(3))
    return TiDAR(base, vocab_size, 3, adapter=adapter)


ALL = METHODS | {
    "tidar+adapter": replace(
        METHODS["tidar"],
        build=lambda: adapted(V),
        batch=lambda _: {"input_ids": IDS % (MASK - 1), "weight": torch.tensor(20.0)},
        talker=lambda: adapted(BYTES),
    )
}


@pytest.fixture(scope="module", params=ALL)
def method(request: pytest.FixtureRequest) -> Promise:
    return ALL[request.param]


@pytest.fixture(autouse=True)
def small_matrices_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "SMALLEST", {})
    torch.set_num_threads(1)


def thinker_of(method: Promise, build: Callable[[], Any] | None = None) -> Thinker:
    return asked(method, made(build or method.talker))


def told(answer: Any) -> tuple[Any, ...]:
    return answer.tokens, answer.text, answer.stopped, answer.steps


def of_model(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a call could leave behind."""
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_buffers", "_modules")
    drawn = Generators.capture(torch.device("cpu"))
    found: dict[str, Any] = {f"rng.{k}": t.sum().item() for k, t in drawn.tensors.items()}
    found["rng"] = drawn.scalars
    for name, module in model.named_modules():
        found[name] = [
            type(module), module.training, sorted(set(module.__dict__) - {"_forward_hooks"}),
            *(list(module.__dict__[table]) for table in tables),
        ]  # fmt: skip
        if isinstance(module, PreTrainedModel):
            found[f"{name}/config"] = (id(module.config), module.config._attn_implementation)
        found[f"{name}/parts"] = dict(getattr(module, "active_parts", {}))
    for name, p in model.named_parameters():
        found[f"{name}/p"] = (id(p), p.requires_grad, p.grad is None, p.detach().sum().item())
    for name, t in model.named_buffers():
        found[f"{name}/b"] = (id(t), t.sum().item())
    return found


def calls(method: Promise, thinker: Thinker) -> list[Callable[[], Any]]:
    """Ten calls that differ in question, seed, length and form."""
    said, text = options(method, thinker), thinker.method.reads == "text"
    found = []
    for k in range(10):
        question = method.questions[k % 2]
        own = dict(said)
        if text:
            own |= {"max_new_tokens": 3 + k % 5, "seed": k}
            if k % 3 == 0:
                own["sampling"] = Sampling("gumbel")
        if "packed" in thinker.method.options:
            own["packed"] = (None, True, False)[k % 3]
        found.append(_call(thinker, question, own, stream=k % 4 == 1))
    return found


def _call(thinker: Thinker, question: Any, own: dict[str, Any], *, stream: bool) -> Any:
    def call() -> Any:
        if not stream:
            return told(thinker.ask(question, **own))
        *_, end = thinker.stream(question, **own)
        return told(end.answer)

    return call


# --------------------------------------------------------------------------------------------------
# Threads


def test_eight_threads_get_the_serial_answers(method):
    thinker = thinker_of(method)
    work = calls(method, thinker)
    wanted = [call() for call in work]
    before = of_model(thinker.model)

    def ten(shift: int) -> list[Any]:
        order = [(i + shift) % 10 for i in range(10)]
        found = {i: work[i]() for i in order}
        return [found[i] for i in range(10)]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(ten, range(8)):
            assert found == wanted
    assert of_model(thinker.model) == before


def test_the_model_is_untouched_in_the_middle_of_a_forward(method):
    """Looked at by a hook, from within: not even for the while is it another."""
    thinker = thinker_of(method)
    before, seen = of_model(thinker.model), []

    def look(*_: Any) -> None:
        if not seen:
            seen.append(of_model(thinker.model))

    inner: Any = thinker.model
    for name in ("model", "base"):
        inner = getattr(inner, name, inner) if not isinstance(inner, PreTrainedModel) else inner
    watched = next(
        m for m in inner.modules() if type(m) is nn.Embedding or "Scaled" in str(type(m))
    )
    handle = watched.register_forward_hook(look)
    if thinker.method.name == "trm":  # its tables are read, not called
        handle.remove()
        handle = inner.network.register_forward_hook(look)
    thinker.ask(method.questions[0], **options(method, thinker))
    handle.remove()
    (found,) = seen
    changed = {name for name in before if found[name] != before[name]}
    assert len(changed) <= 1, "but for the hook that looks"


# --------------------------------------------------------------------------------------------------
# Streams


def test_two_streams_in_one_thread(method):
    thinker = thinker_of(method)
    said, (first, second) = options(method, thinker), method.questions
    wanted = [told(thinker.ask(q, **said)) for q in (first, second)]
    before = of_model(thinker.model)
    pairs = []
    for pair in zip(thinker.stream(first, **said), thinker.stream(first, **said), strict=True):
        assert of_model(thinker.model) == before
        pairs.append(pair)
    assert [told(end.answer) for end in pairs[-1]] == [wanted[0]] * 2
    streams = [thinker.stream(q, **said) for q in (first, second)]
    ends: list[Any] = [None, None]
    while None in ends:
        for i, stream in enumerate(streams):
            event = next(stream, None)
            if event is not None and event.kind == "end":
                ends[i] = told(event.answer)
    assert ends == wanted and of_model(thinker.model) == before


@pytest.mark.parametrize("end", ["closed", "collected", "left"])
def test_streams_that_nobody_reads_to_the_end(method, end):
    thinker = thinker_of(method)
    said = options(method, thinker)
    wanted, before = told(thinker.ask(method.questions[1], **said)), of_model(thinker.model)
    left = [thinker.stream(method.questions[0], **said) for _ in range(3)]
    next(left[1])
    next(left[2])
    if end == "closed":
        list(map(Generator.close, left))
    elif end == "collected":
        left.clear()
        gc.collect()
    assert of_model(thinker.model) == before
    assert told(thinker.ask(method.questions[1], **said)) == wanted


def test_two_models_around_one(method):
    """Wrappers with settings of their own over the same causal LM, in threads."""
    thinker = thinker_of(method)
    twin = copy.copy(thinker.model)  # a wrapper of its own, the same modules below
    other = replace(thinker, model=twin)
    work = calls(method, thinker)
    wanted = [call() for call in work]
    before = of_model(thinker.model)
    pairs = [(a, b) for a, b in zip(work, calls(method, other), strict=True)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda call: call(), [c for pair in pairs for c in pair]))
    assert found == [answer for answer in wanted for _ in range(2)]
    assert of_model(thinker.model) == before


# --------------------------------------------------------------------------------------------------
# Beside a training


TRAINED = [name for name, promise in ALL.items() if promise.batch is not None]
TRAINED = [name for name in TRAINED if not name.endswith("-depths")]  # as those without depths


@pytest.mark.parametrize("name", TRAINED)
def test_beside_a_training_step_in_another_thread(name):
    """Neither feels the other: losses and gradients in training mode, answers in evaluation."""
    method = replace(ALL[name], talker=ALL[name].build)
    model: Any = made(method.build)
    thinker = asked(method, model) if name == "trm" else None
    want_losses = []
    model.train()
    for step in range(6):
        want_losses.append(_trained(model, method, step))
    run = _asker(model, name, thinker)
    wanted = run()
    losses: list[Any] = []
    answers: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(run())

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        for step in range(6):
            losses.append(_trained(model, method, step))
        while len(answers) < 2 and not any(job.done() for job in asking):
            pass
        stop.set()
        for job in asking:
            job.result()
    assert losses == want_losses
    assert answers and all(answer == wanted for answer in answers)
    assert model.training and all(module.training for module in model.modules())


def _trained(model: Any, method: Promise, step: int) -> tuple[float, float]:
    """The loss of a step and the size of its gradient; the weights stay."""
    model.train()
    loss = model.loss(method.batch(model), None, Draws(0, step, range(2), 2))  # type: ignore[misc]
    for p in model.parameters():
        p.grad = None
    loss.total.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    size = sum(float((g.to_dense() if g.is_sparse else g).square().sum()) for g in grads)
    return float(loss.total.detach()), size


def _asker(model: Any, name: str, thinker: Thinker | None) -> Callable[[], Any]:
    if thinker is not None:
        question = "1..............."
        return lambda: told(thinker.ask(question, max_steps=2, halt="never"))
    from inward.common.thinking import Request, answers
    from inward.data.thoughts.segments import Sample, Text
    from inward.hub import door
    from inward.thinker import _row_of

    prompt: Any = Sample((Text((5, 6, 7), False),)) if name == "coconut" else [5, 6, 7]
    request = Request(prompt, max_new_tokens=4, ends=frozenset())
    method = door(_row_of(model))
    return lambda: [a.tokens for a in answers(method.begin(model), [request])]


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_of_a_fused_optimizer_is_seen(name):
    method = ALL[name]
    thinker = thinker_of(method)
    model, said = thinker.model, options(method, thinker)
    if "packed" in thinker.method.options:
        said |= {"packed": True}
    thinker.ask(method.questions[0], **said)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if not _sparse(model, p)],
                                  lr=0.3, fused=True)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
    optimizer.step()
    fresh = asked(method, copy.deepcopy(model))
    for question in method.questions:
        assert told(thinker.ask(question, **said)) == told(fresh.ask(question, **said))


def _sparse(model: nn.Module, p: nn.Parameter) -> bool:
    return any(isinstance(m, nn.Embedding) and m.sparse and m.weight is p for m in model.modules())


# --------------------------------------------------------------------------------------------------
# Errors on the way


class Trouble(Exception):
    """Of the caller's own making."""


def raising(kind: type[BaseException]) -> Any:
    def process(ids: Any, scores: Any) -> Any:
        raise kind("on the way")

    return process


TROUBLES: dict[str, Callable[..., Any]] = {
    "NaN": lambda ids, scores: scores * float("nan"),
    "one NaN": lambda ids, scores: scores.index_fill(1, torch.tensor([7]), float("nan")),
    "nothing left": lambda ids, scores: scores.fill_(-torch.inf),
    "another shape": lambda ids, scores: scores[:, :-1],
    "no tensor": lambda ids, scores: None,
    "an error": raising(Trouble),
    "Ctrl-C": raising(KeyboardInterrupt),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_bad_processor_is_an_error_and_the_model_stays_clean(method, trouble):
    thinker = thinker_of(method)
    if thinker.method.reads == "puzzle":
        pytest.skip("a puzzle's answer is not drawn")
    said = options(method, thinker)
    wanted, before = told(thinker.ask(method.questions[0], **said)), of_model(thinker.model)
    for rule in ("greedy", "gumbel", "match"):
        bad: Any = Sampling(rule, processors=(TROUBLES[trouble],))
        kind = {"an error": Trouble, "Ctrl-C": KeyboardInterrupt}.get(trouble, ValueError)
        with pytest.raises(kind) as caught:
            thinker.ask(method.questions[0], **said | {"sampling": bad})
        if kind is ValueError:
            assert "token" in str(caught.value) and "processor" in str(caught.value)
            nothing = trouble in ("another shape", "no tensor")
            assert isinstance(caught.value, FloatingPointError) != nothing
        with pytest.raises(kind):
            list(thinker.stream(method.questions[0], **said | {"sampling": bad}))
    assert of_model(thinker.model) == before
    assert told(thinker.ask(method.questions[0], **said)) == wanted


@pytest.mark.parametrize("trouble", [name for name in TROUBLES if name != "Ctrl-C"])
def test_a_bad_processor_fails_its_own_question_alone(method, trouble):
    """In a list, and among requests that share forwards with it."""
    thinker = thinker_of(method)
    if thinker.method.reads == "puzzle":
        pytest.skip("a puzzle's answer is not drawn")
    first, second = method.questions
    said = options(method, thinker)
    calls = []

    def bad(ids, scores):
        """Its second call of the second question goes wrong."""
        if ids[0, 0] != start:
            return scores
        calls.append(1)
        return scores if len(calls) < 2 else TROUBLES[trouble](ids, scores)

    start = int(thinker.processor.read(second).tokens[0])
    assert start != int(thinker.processor.read(first).tokens[0])
    rule: Any = Sampling(processors=(bad,))
    plain: Any = Sampling(processors=(lambda i, s: s,))
    wanted = told(thinker.ask(first, **said | {"sampling": plain}))
    right, wrong = thinker.ask([first, second], **said | {"sampling": rule})
    assert told(right) == wanted and not right.error
    assert wrong.error and not wrong.text and wrong.cost.forwards > 0
    kind = Trouble if trouble == "an error" else ValueError
    assert isinstance(wrong.details["exception"], kind)

    calls.clear()
    work, found = thinker.begin(), {}
    good = work.add(thinker.request(first, **said))
    lost = work.add(thinker.request(second, **said | {"sampling": rule}))
    while work.busy:
        for event in work.step():
            found.setdefault(event.request, []).append(event)
    assert [event.kind for event in found[lost]][-1] == "end"
    assert found[lost][-1].answer.error == work.result(lost).error != ""
    assert work.result(good).tokens == thinker.ask(first, **said).tokens


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_head_that_says_nonsense_is_an_error(method, value):
    thinker = thinker_of(method)
    said = options(method, thinker)
    if "packed" in thinker.method.options:
        said |= {"packed": False}  # the hook below is to be heard
    wanted, before = told(thinker.ask(method.questions[0], **said)), of_model(thinker.model)
    model = thinker.model
    for name in ("model", "base"):
        model = getattr(model, name, model) if not isinstance(model, PreTrainedModel) else model
    heads = [model.lm_head, *([model.q_head] if hasattr(model, "q_head") else [])]
    for head in heads:
        handle = head.register_forward_hook(lambda *args: torch.full_like(args[2], value))
        with pytest.raises(NotFiniteError, match=r"^(prompt \d+: )?step \d+: the .*logit"):
            thinker.ask(method.questions[0], **said)
        handle.remove()
    assert of_model(thinker.model) == before
    assert told(thinker.ask(method.questions[0], **said)) == wanted


@pytest.mark.parametrize("kind", [Trouble, KeyboardInterrupt, MemoryError])
def test_a_forward_that_fails_leaves_the_model_clean(method, kind):
    thinker = thinker_of(method)
    said = options(method, thinker)
    wanted, before = told(thinker.ask(method.questions[0], **said)), of_model(thinker.model)
    model: Any = thinker.model
    for name in ("model", "base"):
        model = getattr(model, name, model) if not isinstance(model, PreTrainedModel) else model

    def fail(*_: Any) -> None:
        raise kind("on the way")

    handle = (model.q_head if hasattr(model, "q_head") else model.lm_head).register_forward_hook(
        fail
    )
    with pytest.raises(kind, match="on the way"):
        thinker.ask(method.questions[0], **said)
    handle.remove()
    assert of_model(thinker.model) == before
    assert told(thinker.ask(method.questions[0], **said)) == wanted


def test_drafts_that_are_nan_are_an_error():
    """Of an adapter that is damaged: the words would still be right, the guesses are not."""
    thinker = thinker_of(ALL["tidar+adapter"])
    with torch.no_grad():
        thinker.model.adapter.mask_embedding.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"step 1: the (draft )?logits are NaN"):
        thinker.ask("the cat", max_new_tokens=5, scheme="one_pass")
    with pytest.raises(NotFiniteError, match="step 1: the draft logits are NaN"):
        thinker.ask("the cat", max_new_tokens=5, scheme="diffusion")


@pytest.mark.parametrize("mode", ["speculate", "parallel"])
def test_every_mode_of_huginn_refuses_nan(mode):
    thinker = thinker_of(ALL["huginn"])
    handle = thinker.model.lm_head.register_forward_hook(lambda *args: args[2] * float("nan"))
    with pytest.raises(NotFiniteError, match="step 1: the logits are NaN"):
        thinker.ask("the cat", max_new_tokens=5, mode=mode, max_steps=4)
    handle.remove()


def test_a_puzzle_that_is_nan_is_alone_with_its_error():
    thinker = thinker_of(ALL["trm"])
    with torch.no_grad():
        thinker.model.lm_head.weight[1] = float("nan")
    answers = thinker.ask(list(ALL["trm"].questions), max_steps=2, halt="never")
    assert all("lm_head" in answer.error and "step 1" in answer.error for answer in answers)
    with pytest.raises(NotFiniteError, match="lm_head"):
        thinker.model.solve(torch.ones(1, 16, dtype=torch.long))
