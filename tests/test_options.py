"""Every option of every method acts, or is refused by name: a table of when, and what then changes.

`ACTS` says for each option a value that is not its default, what must be said beside it, and what
differs then from the same request without it. Where that is nothing that an answer shows (packed
weights, a limit of memory), it names another proof. An option whose `Option.acts` says that it
acts beside others only is refused without them.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import pytest
import torch

from inward import hub
from inward.common.sampling import Sampling
from inward.common.thinking import Answer, Request, answers, run
from inward.data.puzzles.dihedral import Dihedral
from inward.data.thoughts.segments import Sample, Text
from inward.methods.coconut.model import Coconut
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.tidar.choose import Chooser
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.schemes import Costs
from inward.methods.trm.model import TRM
from inward.methods.trm.settings import TRMSettings
from tests.methods.coconut.toys import SPECIALS, make_base
from tests.methods.tidar.toys import MASK, llama


@dataclass(frozen=True)
class When:
    """value: of the option. beside: what must be said with it. asked: fields of the request.
    shows: which parts of an answer differ from the same request without it; `proof` shows it where
    an answer does not. idle: beside what it would do nothing, if the defaults are not enough.
    """

    value: Any
    beside: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    shows: tuple[str, ...] = ("tokens",)
    proof: Callable[[Any], None] | None = None
    idle: dict[str, Any] = field(default_factory=dict)


def _trm() -> TRM:
    torch.manual_seed(0)
    settings = TRMSettings(
        vocab_size=6, seq_len=16, hidden_size=16, swiglu_multiple=16, prefix_len=1,
        num_identifiers=3, T=1, n=1, n_sup=3,
    )  # fmt: skip
    model = TRM(settings).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.4 * torch.randn(p.shape))
    return model


def _huginn() -> HuginnForCausalLM:
    torch.manual_seed(0)
    config = HuginnConfig(
        n_embd=32, n_heads=2, intermediate_size=48, n_layers_in_prelude=1,
        n_layers_in_recurrent_block=1, n_layers_in_coda=1, vocab_size=31, block_size=64,
        mean_recurrence=6, mean_backprop_depth=2, bos_token_id=None, eos_token_id=None,
        pad_token_id=None,
    )  # fmt: skip
    model = HuginnForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.copy_(1.5 / p.shape[1] ** 0.5 * torch.randn(p.shape))
    return model


MODELS: Mapping[str, Callable[[], Any]] = {
    "trm": _trm,
    "huginn": _huginn,
    "coconut": lambda: Coconut(make_base("llama", dtype=torch.float32), SPECIALS).eval(),
    "tidar": lambda: TiDAR(llama(), MASK, 3),
    "plain": llama,
}
PROMPTS: Mapping[str, Any] = {
    "trm": np.arange(16) % 5 + 1,
    "huginn": [3, 5, 7, 11],
    "coconut": Sample((Text((3, 5, 7, 11), False),)),
    "tidar": [3, 5, 7, 11],
    "plain": [3, 5, 7, 11],
}


def _second(view: Any) -> Any:
    return view.step >= 2


def _few(tokens: Any, num: int) -> list[int]:
    return [int(tokens[-1])] * num


def _no_answer(puzzles: Any, found: Any) -> Any:
    return np.zeros(len(found), bool)


def _any_answer(puzzles: Any, found: Any) -> Any:
    return np.ones(len(found), bool)


def _unpackable(make: Callable[[], Any], prompt: Any, method: str) -> Callable[[Any], None]:
    """packed=True is refused by a model that cannot be packed: so it is not ignored."""

    def proof(_: Any) -> None:
        model = make()
        inner: Any = model.model if isinstance(model, TiDAR) else model
        inner.to(torch.float64)
        with pytest.raises(ValueError, match="pack"):
            asked(method, model, {"packed": True}, {})

    return proof


def _shares(model: Any) -> None:
    """Fewer places at once: more turns for the same text."""
    wide = asked("huginn", model, {"mode": "parallel"}, {"max_new_tokens": 8})
    slim = asked("huginn", model, {"mode": "parallel", "max_wave": 1}, {"max_new_tokens": 8})
    assert slim.details["turns"] > wide.details["turns"]


COSTS = Costs((1, 100), (1.0, 1.0))
DEAR = Costs((1, 2, 100), (1.0, 100.0, 1000.0))
NOISY = {"rollouts": 3, "noise": 1.0}
THINKS = {"thoughts": (2,)}
VOTES = {"votes": 3, **THINKS}


def _chooser() -> Chooser:
    return Chooser(DEAR, 3)


ACTS: Mapping[str, Mapping[str, When]] = {
    "trm": {
        "max_steps": When(1, {"halt": "never"}, shows=("steps",)),
        "halt": When(_second, shows=("steps", "stopped")),
        "rollouts": When(3, {}, {"with": {"noise": 1.0}}, shows=("evaluations",)),
        "noise": When(2.0, {"rollouts": 3}, {"without": {"noise": 0.5}}, shows=("candidates",)),
        "noise_on": When("y", NOISY, shows=("candidates",)),
        "noise_when": When("start", NOISY, shows=("candidates",)),
        "symmetries": When([Dihedral((4, 4), 1)], shows=("evaluations",)),
        "views": When(2, proof=lambda model: _views(model)),
        "select": When(_no_answer, {"abstain_below": 0.0}, shows=("answered",)),
        "first_to_halt": When(True, {**NOISY, "halt": lambda view: view.q == view.q.max()},
                              shows=("evaluations",)),
        "until_right": When(True, {"select": _any_answer, "halt": "never", "max_steps": 5,
                                   "abstain_below": 0.1}, shows=("steps",)),
        "abstain_below": When(1.0, shows=("answered",)),
        "abstain": When(_no_answer, shows=("answered",)),
        "grid": When((2, 8), asked={"trace": frozenset()}, shows=("trace",)),
        "identifier": When(2, shows=("q",)),
        "puzzle": When(4, NOISY, shows=("candidates",)),
    },
    "huginn": {
        "max_steps": When(2, shows=("steps",)),
        "halt": When(_second, shows=("steps",)),
        "min_steps": When(4, {"halt": _second}, shows=("steps",)),
        "check_every": When(3, {"halt": _second}, shows=("steps",)),
        "halt_in_prompt": When(False, {"halt": _second}, shows=("steps",)),
        "sharing": When("ring:1", shows=("tokens",)),
        "start": When("zero", {"max_steps": 1}, shows=("logprobs",)),
        "warm": When("raw", {"max_steps": 1}, shows=("logprobs",)),
        "state_seed": When(9, {"max_steps": 1}, shows=("logprobs",), idle={"start": "zero"}),
        "lens": When(2, proof=lambda model: _lens(model)),
        "packed": When(True, proof=_unpackable(_huginn, PROMPTS["huginn"], "huginn")),
        "mode": When("speculate", shows=("evaluations",)),
        "draft_steps": When(3, {"mode": "speculate"}, shows=("evaluations",)),
        "draft_tokens": When(2, {"mode": "speculate"}, shows=("evaluations",)),
        "exact": When(True, {"mode": "parallel"}, shows=("evaluations",)),
        "inner_steps": When(3, {"mode": "parallel"}, shows=("evaluations",)),
        "max_wave": When(1, proof=_shares),
    },
    "coconut": {
        "switch": When("entropy:longest=2,max_blocks=1", shows=("tokens",)),
        "thoughts": When((2,), shows=("thoughts",)),
        "boundaries": When(False, THINKS, shows=("tokens",)),
        "count_marks": When(False, THINKS, shows=("tokens",)),
        "thought": When("soft", THINKS, shows=("logprobs",)),
        "noise": When(0.5, THINKS, shows=("logprobs",)),
        "edit": When(lambda thought, where, number: 0 * thought, THINKS, shows=("logprobs",)),
        "max_new_thoughts": When(1, THINKS, shows=("thoughts",)),
        "lens": When(2, THINKS, {"trace": frozenset({"lens"})}, shows=("trace",)),
        "votes": When(3, THINKS, shows=("evaluations",)),
        "ballot": When(lambda tokens: 1, VOTES, shows=("share",)),
        "per_pass": When({"output_attentions": True}, proof=lambda model: _per_pass(model)),
        "per_thought": When({"num_steps": 5}, proof=lambda _: _deeper("coconut", "per_thought")),
        "per_word": When({"num_steps": 5}, proof=lambda _: _deeper("coconut", "per_word")),
        "packed": When(True, proof=_unpackable(MODELS["coconut"], PROMPTS["coconut"], "coconut")),
    },
    "tidar": {
        "scheme": When("plain", shows=("flops",)),
        "num_blocks": When(1, {"scheme": "partial"}, shows=("flops",)),
        "beta": When(0.3, shows=("logprobs",)),
        "threshold": When(0.0, {"scheme": "diffusion"}, shows=("forwards",)),
        "costs": When(DEAR, {"scheme": "auto"}, {"without": {"costs": COSTS}}, shows=("flops",)),
        "chooser": When(_chooser(), {"scheme": "auto"}, {"without": {"costs": COSTS}},
                        shows=("flops",)),
        "mask_id": When(MASK - 1, proof=lambda model: _other_mask(model)),
        "draft": When({"num_steps": 5}, proof=lambda _: _deeper("tidar", "draft"),
                      idle={"scheme": "plain"}),
        "verify": When({"num_steps": 5}, proof=lambda _: _deeper("tidar", "verify")),
        "K": When(2, shows=("flops",), idle={"scheme": "plain"}),
        "drafter": When(_few, shows=("flops",)),
        "stopping_criteria": When([lambda ids, _: ids.shape[1] > 6], shows=("stopped",)),
        "packed": When(True, proof=_unpackable(MODELS["tidar"], PROMPTS["tidar"], "tidar")),
        "options": When({"nonsense": 1}, proof=lambda model: _nonsense("tidar", model)),
    },
    "plain": {
        "K": When(2, {"drafter": _few}, shows=("flops",)),
        "drafter": When(_few, shows=("flops",)),
        "stopping_criteria": When([lambda ids, _: ids.shape[1] > 6], shows=("stopped",)),
        "packed": When(True, proof=_unpackable(llama, PROMPTS["plain"], "plain")),
        "options": When({"nonsense": 1}, proof=lambda model: _nonsense("plain", model)),
    },
}  # fmt: skip
CASES = [(method, option) for method, table in ACTS.items() for option in table]
BESIDE = [
    (method.name, name)
    for method in hub.doors()
    for name, option in method.options.items()
    if option.acts is not None
]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: make() for name, make in MODELS.items()}


def asked(method: str, model: Any, own: Mapping[str, Any], fields: Mapping[str, Any]) -> Answer:
    texts = {} if method == "trm" else {"max_new_tokens": 12}
    request = Request(PROMPTS[method], seed=1, logprobs=True, own=dict(own), **{**texts, **fields})
    return answers(hub.door(method).begin(model), [request])[0]


def part(answer: Answer, name: str) -> Any:
    """A part of an answer as plain values."""
    if name in answer.details:
        return answer.details[name]
    if name == "trace":
        assert answer.trace is not None
        return str(replace_seconds(answer.trace.to_dict()))
    cost = asdict(answer.cost)
    return cost[name] if name in cost else getattr(answer, name)


def replace_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: replace_seconds(v) for k, v in value.items() if k != "seconds"}
    return [replace_seconds(v) for v in value] if isinstance(value, list) else value


def _views(model: Any) -> None:
    with pytest.raises(ValueError, match="views=2 are drawn from the puzzle's task"):
        asked("trm", model, {"views": 2}, {})


def _per_pass(model: Any) -> None:
    for wrong in ({"nonsense": 1}, lambda start, stop: {"nonsense": 1}):
        with pytest.raises(ValueError, match="per_pass names nonsense"):
            asked("coconut", model, {"per_pass": wrong}, {})
    with pytest.raises(ValueError, match="attention_mask, which thinking gives"):
        asked("coconut", model, {"per_pass": {"attention_mask": None}}, {})
    deep = Coconut(make_base("huginn", dtype=torch.float32), SPECIALS).eval()
    few, many = (
        asked("coconut", deep, {"per_pass": {"num_steps": num}}, {}).cost.flops for num in (1, 3)
    )
    assert many > few


def _deeper(method: str, option: str) -> None:
    """Over a looped model, more recurrences of one kind of position cost more on its account."""
    kinds = {"draft": "drafting", "verify": "verification", "per_thought": "thinking"}
    if method == "coconut":
        model: Any = Coconut(make_base("huginn", dtype=torch.float32), SPECIALS).eval()
    else:
        model = TiDAR(_huginn(), MASK, 3)
    beside = THINKS if method == "coconut" else {}
    few, many = (
        asked(method, model, {**beside, option: {"num_steps": num}}, {}).cost.parts
        for num in (1, 4)
    )
    kind = kinds.get(option, "words")
    each = [p[kind].flops / (p[kind].forwards or 1) for p in (few, many)]
    assert each[1] > 1.5 * each[0]


def _lens(model: Any) -> None:
    """Two tokens with every recurrence, in events, without a trace."""
    work = hub.door("huginn").begin(model)
    work.add(Request(PROMPTS["huginn"], max_new_tokens=2, own={"lens": 2}))
    told = [event for event in run(work) if event.kind == "thought"]
    assert told and all(len(event.tokens) == 2 for event in told)


def _other_mask(model: Any) -> None:
    with pytest.raises(ValueError, match="mask_id is"):
        asked("tidar", model, {"mask_id": MASK - 1}, {})


def _nonsense(method: str, model: Any) -> None:
    with pytest.raises(ValueError, match=r"knows no .*nonsense"):
        asked(method, model, {"options": {"nonsense": 1}}, {})


def test_the_table_knows_every_option_of_every_method():
    assert {m.name: set(m.options) for m in hub.doors()} == {m: set(t) for m, t in ACTS.items()}


@pytest.mark.parametrize("method, option", CASES)
def test_an_option_acts(models, method, option):
    when, model = ACTS[method][option], models[method]
    if when.proof is not None:
        when.proof(model)
        return
    fields = {k: v for k, v in when.asked.items() if k not in ("with", "without")}
    without = when.beside | when.asked.get("without", {})
    within = when.beside | when.asked.get("with", {}) | {option: when.value}
    before, after = (asked(method, model, own, fields) for own in (without, within))
    assert all(part(before, name) != part(after, name) for name in when.shows), when.shows


@pytest.mark.parametrize("method, option", BESIDE)
def test_an_option_that_would_do_nothing_is_refused_by_name(models, method, option):
    when = ACTS[method][option]
    with pytest.raises(ValueError, match=option):
        asked(method, models[method], when.idle | {option: when.value}, {})


@pytest.mark.parametrize("method, option", BESIDE)
def test_its_default_may_be_said_anywhere(models, method, option):
    """So that a caller may hand on all that he has."""
    default = hub.door(method).options[option].default
    assert asked(method, models[method], {option: default}, {}).tokens


@pytest.mark.parametrize(
    "method, own, told",
    [
        ("tidar", {"drafter": len}, "drafter is"),
        ("tidar", {"drafter": lambda tokens, num: ["x"]}, "drafter gave"),
        ("tidar", {"drafter": lambda tokens, num: [10**6]}, "drafter gave"),
        ("tidar", {"drafter": lambda tokens, num: None}, "drafter gave None"),
        ("tidar", {"stopping_criteria": [len]}, "stopping_criteria is"),
        ("tidar", {"scheme": "auto", "costs": COSTS, "chooser": _chooser()}, "costs="),
        ("tidar", {"scheme": "plain", "K": 4}, "K=4 would do nothing"),
        ("coconut", {"votes": 2, "thoughts": (1,), "ballot": 3}, "ballot is 3"),
        ("coconut", {"votes": 2, "thoughts": (1,), "ballot": lambda: 3}, "ballot is"),
        ("coconut", {"votes": 2, "thoughts": (1,), "ballot": list}, "ballot gave"),
        ("coconut", {"thoughts": (1,), "edit": len}, "edit is"),
        ("coconut", {"switch": lambda: 1}, "switch is"),
        ("coconut", {"votes": 3}, "never thinks are all the same"),
        ("huginn", {"halt": lambda: 1}, "halt is"),
        ("huginn", {"state_seed": -1}, "state_seed is -1"),
        ("huginn", {"start": "zero", "state_seed": 3}, "state_seed=3 would do nothing"),
        ("trm", {"select": lambda: 1}, "select is"),
        ("trm", {"halt": lambda: 1}, "halt is"),
        ("trm", {**NOISY, "halt": "never", "first_to_halt": True}, "first_to_halt=True would do"),
    ],
)
def test_functions_and_choices_of_a_wrong_kind(models, method, own, told):
    with pytest.raises(ValueError, match=told):
        asked(method, models[method], own, {})


@pytest.mark.parametrize("method", MODELS)
def test_work_takes_requests_only(models, method):
    with pytest.raises(ValueError, match="3 is no Request"):
        hub.door(method).begin(models[method]).add(cast(Any, 3))


def test_a_parallel_text_holds_no_lens(models):
    with pytest.raises(ValueError, match="mode 'parallel' keeps no record of lens"):
        asked("huginn", models["huginn"], {"mode": "parallel"}, {"trace": frozenset({"lens"})})


def test_a_model_that_starts_at_zero_has_no_noise_to_seed():
    model = _huginn()
    model.config.state_init = "zero"
    with pytest.raises(ValueError, match="state_seed=3 would do nothing"):
        asked("huginn", model, {"state_seed": 3}, {})


def test_votes_that_are_drawn_need_no_thoughts(models):
    drawn = {"sampling": Sampling("match")}
    assert asked("coconut", models["coconut"], {"votes": 3}, drawn).details["votes"] == 3
