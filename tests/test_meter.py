"""The meter (docs/meter.md): what an answer took, by the model's account and by torch's counter.

On tiny models the two agree to the last FLOP, for every method, hybrid and way to decode; what the
counter does not see is named in tests/counted.py and docs/meter.md.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from inward.common.trace import NUMBERS, PARTS, Cost, total
from inward.methods.coconut.model import Coconut
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.tidar.adapter import DraftAdapter
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.settings import AdapterSettings
from inward.methods.trm.model import TRM
from inward.methods.trm.settings import TRMSettings
from tests.counted import counter
from tests.methods.tidar.toys import llama
from tests.test_promises import BYTES, METHODS, asked, made, options


def _adapted() -> TiDAR:
    base = llama(vocab_size=BYTES)
    adapter = DraftAdapter(base, AdapterSettings(rank=4))
    for p in adapter.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return TiDAR(base, BYTES, 3, adapter=adapter)


def _trm(**more: Any) -> TRM:
    small: dict[str, Any] = {
        "vocab_size": 6, "seq_len": 16, "hidden_size": 16, "swiglu_multiple": 16, "prefix_len": 1,
        "num_identifiers": 0, "T": 1, "n": 1, "n_sup": 3,
    }  # fmt: skip
    return TRM(TRMSettings(**{**small, **more}))


NEVER = {"halt": "never"}
WAYS: list[tuple[str, Any, dict[str, Any]]] = [
    *((name, None, {}) for name in METHODS),
    ("huginn", None, {**NEVER, "max_steps": 2}),
    ("huginn", None, {"mode": "speculate", "max_steps": 4, "draft_steps": 2}),
    ("huginn", None, {"mode": "parallel", "max_steps": 4}),
    ("huginn", None, {"max_steps": 3, "trace": ("lens", "prompt")}),
    ("huginn", None, {"max_steps": 3, "warm": "normed", "sharing": "ring:2"}),
    ("coconut", None, {"thoughts": (2, 1), "thought": "soft"}),
    ("coconut", None, {"thoughts": (2,), "votes": 3, "noise": 0.1}),
    ("coconut(huginn)", None, {"thoughts": (2, 1), "per_pass": {"num_steps": 1}}),
    *(("tidar", None, {"scheme": s}) for s in ("plain", "two_pass", "partial", "diffusion")),
    ("tidar", None, {"beta": 0.5}),
    ("tidar", None, {"K": 6, "max_new_tokens": 12}),
    ("tidar", None, {"drafter": lambda tokens, num: tokens[:num]}),
    ("tidar", _adapted, {}),
    ("tidar", _adapted, {"scheme": "two_pass"}),
    ("tidar(huginn)", None, {"scheme": "two_pass", "options": {"num_steps": 3}}),
    ("trm", lambda: _trm(mixer="mlp"), {}),
    ("trm", lambda: _trm(mixer="conv"), {}),
    ("trm", lambda: _trm(mixer="cube", prefix_len=0), {}),
    ("trm", lambda: _trm(latents=1, T=2, n=3), {}),
    ("trm", None, {"views": 2, "rollouts": 2, "noise": 0.1}),
]
NAMES = [f"{name}-{i}" if more or build else name for i, (name, build, more) in enumerate(WAYS)]


@pytest.mark.parametrize(("name", "build", "more"), WAYS, ids=NAMES)
def test_the_account_is_what_torch_counts(name, build, more):
    method = METHODS[name]
    thinker = asked(method, made(build) if build else None)
    said = {**options(method, thinker), **more}
    if "mode" in more:
        del said["halt"]
    if "packed" in thinker.method.options:
        said["packed"] = False  # packed products are no operations that torch knows
    thinker.ask(method.questions[0], **said)  # a model is found out once
    with counter() as found:
        answer = thinker.ask(method.questions[0], **said)
    cost = answer.cost
    assert cost.flops == found.get_total_flops()
    assert set(cost.parts) <= set(PARTS)
    for number in NUMBERS:
        whole, parts = getattr(cost, number), [getattr(p, number) for p in cost.parts.values()]
        assert sum(parts) == pytest.approx(whole, rel=1e-9), number
        assert all(part >= 0 for part in parts)
    model = thinker.model
    assert cost.parameters == sum(p.numel() for p in {*model.parameters()})
    if answer.trace is not None:
        assert answer.trace.cost.flops == cost.flops


def test_without_attention_the_counter_misses_what_the_account_says_attention_takes():
    """The stated difference to a counter as torch has it on a CPU: 4 H FLOPs a head, a layer and a
    pair of positions."""
    thinker = asked(METHODS["plain"])
    thinker.ask("the cat", max_new_tokens=1, packed=False)
    with counter(attention=False) as bare:
        answer = thinker.ask("the cat", max_new_tokens=4, packed=False)
    config = thinker.model.config
    pairs = sum(range(1, 7 + 3 + 1))
    seen = 4 * config.num_hidden_layers * config.hidden_size * pairs
    assert answer.cost.flops - bare.get_total_flops() == seen


# --------------------------------------------------------------------------------------------------
# Bytes, by hand


def test_bytes_of_a_llama_by_hand():
    model = llama(vocab_size=BYTES)  # width 32, 2 layers, 4 heads and 4 key heads of 8, MLP 48
    thinker = asked(METHODS["plain"], model)
    answer = thinker.ask("the cat", max_new_tokens=3, packed=False)
    c = model.config
    d, m, kv = c.hidden_size, c.intermediate_size, c.num_key_value_heads * 8
    weights = c.num_hidden_layers * (2 * d * d + 2 * d * kv + 3 * d * m) + d * BYTES
    cache = 2 * c.num_hidden_layers * kv * (7 + 8 + 9)  # keys and values of 7, 8 and 9 positions
    assert answer.cost.bytes == 4 * (3 * weights + cache)
    assert answer.cost.parts["prompt"].bytes == 4 * (weights + 2 * c.num_hidden_layers * kv * 7)


def test_bytes_of_a_huginn_by_hand():
    thinker = asked(METHODS["huginn"])  # d = 16, MLP 24, one block in each part
    answer = thinker.ask("the cat", max_new_tokens=2, max_steps=3, halt="never", packed=False)
    block, cached = 4 * 16 * 16 + 3 * 16 * 24, 2 * 16
    part = {
        "prelude": block + 7 * cached,
        "core": block + 2 * 16 * 16 + 7 * cached,
        "coda": block + 16 * BYTES + 7 * cached,
    }
    prompt = part["prelude"] + 3 * part["core"] + part["coda"]
    word = prompt + 5 * cached  # one more position in each of five visits
    assert answer.cost.bytes == 4 * (prompt + word)
    thinking = 3 * (part["core"] + cached)
    assert answer.cost.parts["thinking"].bytes == 4 * thinking
    assert answer.cost.parts["thinking"].evaluations == 3 and answer.cost.evaluations == 6


def test_bytes_of_a_trm_by_hand():
    thinker = asked(METHODS["trm"])
    answer = thinker.ask(METHODS["trm"].questions[0], max_steps=3, halt="never")
    model: Any = thinker.model
    network = sum(p.numel() for p in model.network.parameters())
    heads = 6 * 16 + (2 * 16 + 2)  # words; halting with its bias
    assert answer.cost.evaluations == 3 * 2  # one z and one y a step
    assert answer.cost.bytes == 4 * 3 * (2 * network + heads)


# --------------------------------------------------------------------------------------------------
# Sums


def test_costs_and_their_parts_add_up_and_survive_json():
    one = Cost(1, 2.0, 3, 4.0, 5.0, parameters=7).under("thinking")
    two = Cost(10, 20.0, 30, 40.0, 50.0, parameters=6).under("prompt")
    both = one + two + one
    assert both == total([one, two, one])
    assert both.flops == 24 and both.parameters == 7 and list(both.parts) == ["prompt", "thinking"]
    assert both.parts["thinking"] == Cost(2, 4.0, 6, 8.0, 10.0)
    assert Cost.from_dict(both.to_dict()) == both
    assert replace(two.less(one), parameters=0) == Cost(9, 18.0, 27, 36.0, 45.0)
    assert total([]) == Cost()


@pytest.mark.parametrize("name", ["huginn", "coconut", "plain"])
def test_a_list_costs_what_its_singles_cost(name):
    method = METHODS[name]
    thinker = asked(method)
    said = options(method, thinker)
    alone = [thinker.ask(q, **said).cost for q in method.questions]
    together = [answer.cost for answer in thinker.ask(list(method.questions), **said)]
    for a, b in zip(alone, together, strict=True):
        assert {n: p.flops for n, p in a.parts.items()} == {n: p.flops for n, p in b.parts.items()}


def test_hybrids_count_the_base_they_run_on():
    models = [made(METHODS[name].talker) for name in ("coconut(huginn)", "tidar(huginn)")]
    assert isinstance(models[0], Coconut) and isinstance(models[1].model, HuginnForCausalLM)
    for name in ("coconut(huginn)", "tidar(huginn)"):
        answer = asked(METHODS[name]).ask("the cat", max_new_tokens=4)
        assert answer.cost.evaluations == 3 * answer.cost.forwards  # mean recurrence 3
