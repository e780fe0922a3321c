"""A conversation is not read anew at each turn, and says what it would say if it were."""

from __future__ import annotations

from typing import Any

import pytest

from inward.common.sampling import Sampling
from inward.common.thinking import Memory, Request, answers, run
from inward.methods.huginn.door import METHOD
from tests.methods.huginn.test_generate import small_model


def asked(model: Any, prompt: list[int], memory: Memory | None = None, **own: Any) -> Any:
    request = Request(list(prompt), max_new_tokens=3, memory=memory, own=own, seed=4)
    return answers(METHOD.begin(model), [request])[0]


@pytest.mark.parametrize(
    "own",
    [{}, {"max_steps": 3}, {"sharing": "per-depth"}, {"start": "zero"}],
    ids=["usual", "shallow", "per depth", "from zero"],
)
@pytest.mark.parametrize("packed", [False, None])
def test_turns_say_what_fresh_ones_say(own, packed):
    model, memory, prompt, saved = small_model(), Memory(), [1, 2, 3, 4], []
    for turn in ([5, 6], [7, 8, 9], [3]):
        prompt = [*prompt, *turn]
        fresh = asked(model, prompt, packed=packed, **own)
        known = asked(model, prompt, memory, packed=packed, **own)
        assert known.tokens == fresh.tokens
        assert known.details["num_prompt"] == len(prompt)
        saved.append(known.details["reused"])
        assert known.cost.flops < fresh.cost.flops or not saved[-1]
        prompt = [*prompt, *known.tokens]
    assert saved == [0, 8, 14], "the last token said has not been read yet"


def test_draws_and_changed_beginnings():
    model, memory = small_model(), Memory()
    asked(model, [1, 2, 3, 4], memory)
    for prompt, reused in (([1, 2, 9, 4], 2), ([1, 2, 9, 4], 3), ([8, 2], 0)):
        drawn = Sampling(temperature=1.0, seed=2)
        request = Request(prompt, max_new_tokens=3, sampling=drawn, memory=memory, seed=4)
        (known,) = answers(METHOD.begin(model), [request])
        (fresh,) = answers(METHOD.begin(model), [Request(prompt, 3, drawn, 4)])
        assert known.tokens == fresh.tokens
        assert known.details["reused"] == reused
    other = asked(small_model(1), [8, 2], memory)
    assert other.details["reused"] == 0, "it is another model's"


@pytest.mark.parametrize(
    "own",
    [
        {"max_steps": 5},
        {"state_seed": 9},
        {"halt": "kl"},
        {"warm": "raw"},
        {"sharing": "shared"},
        {"mode": "speculate"},
        {"mode": "parallel"},
    ],
    ids=lambda own: next(f"{name}={value}" for name, value in own.items()),
)
def test_what_would_be_read_otherwise_is_read_anew(own):
    """Other depths, other first states, and words that thought less deeply than a reader would."""
    model, memory = small_model(), Memory()
    asked(model, [1, 2, 3, 4], memory)
    fresh, known = (
        asked(model, [1, 2, 3, 4, 5], **own),
        asked(model, [1, 2, 3, 4, 5], memory, **own),
    )
    assert known.tokens == fresh.tokens
    assert known.details.get("reused", 0) == 0
    again = asked(model, [1, 2, 3, 4, 5, 6], memory, **own)
    assert again.tokens == asked(model, [1, 2, 3, 4, 5, 6], **own).tokens


def test_beside_others_and_after_a_cancelled_turn():
    model, memory = small_model(), Memory()
    asked(model, [1, 2, 3, 4, 5], memory)
    work = METHOD.begin(model, batch_size=4)

    def add(prompt: list[int], kept: Memory | None = None) -> int:
        return work.add(Request(prompt, max_new_tokens=9, memory=kept, seed=4))

    numbers = [add([9, 8, 7])]
    for _ in range(4):
        work.step()
    numbers += [add([1, 2, 3, 4, 6], memory), add([4, 4])]
    for _ in run(work):
        pass
    for prompt, number in zip(([9, 8, 7], [1, 2, 3, 4, 6], [4, 4]), numbers, strict=True):
        (alone,) = answers(METHOD.begin(model), [Request(prompt, max_new_tokens=9, seed=4)])
        assert work.result(number).tokens == alone.tokens
    gone = add([1, 2, 3, 4, 6, 7, 8], memory)
    for _ in range(20):
        work.step()
    work.cancel(gone)
    for _ in run(work):
        pass
    said = list(work.result(gone).tokens)
    prompt = [1, 2, 3, 4, 6, 7, 8, *said, 2]
    known = asked(model, prompt, memory)
    assert known.tokens == asked(model, prompt).tokens
    assert known.details["reused"] >= 7
