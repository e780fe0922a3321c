"""Self-speculation says what plain decoding at full depth says, at any draft depth and length."""

from typing import Any

import pytest
import torch

from inward.common.sampling import Sampling
from inward.methods.huginn.generate import generate
from inward.methods.huginn.speculate import generate_speculatively
from tests.methods.huginn.test_generate import random_prompts, small_model

PROMPTS = random_prompts([3, 9, 5, 1, 7])
DEPTH, NEW = 6, 13


@pytest.fixture(scope="module", params=[0.3, 0.7, 1.2])
def model(request: pytest.FixtureRequest):
    torch.set_num_threads(1)
    return small_model(3, gain=request.param)


@pytest.fixture(scope="module")
def plain(model):
    return generate(model, PROMPTS, max_new_tokens=NEW, max_steps=DEPTH, eos_token_id=()).answers


@pytest.mark.parametrize("draft_steps", [1, 2, 5])
@pytest.mark.parametrize("draft_tokens", [1, 3, 20])
def test_lossless_over_depths_and_draft_lengths(model, plain, draft_steps, draft_tokens):
    out = generate_speculatively(
        model,
        PROMPTS,
        draft_steps=draft_steps,
        draft_tokens=draft_tokens,
        max_new_tokens=NEW,
        max_steps=DEPTH,
        eos_token_id=(),
    )
    assert out.answers == plain
    assert all(row.tolist() == [DEPTH] * NEW for row in out.steps)


def speculate(model, prompts, **options):
    settings: dict[str, Any] = {
        "draft_steps": 2,
        "draft_tokens": 3,
        "max_new_tokens": NEW,
        "max_steps": DEPTH,
        "eos_token_id": (),
    }
    return generate_speculatively(model, prompts, **settings | options)


def test_drafts_stand_and_fall_in_these_tests():
    """Else the tests above would show nothing."""
    shares = [
        speculate(small_model(3, gain=gain), PROMPTS, draft_steps=m).meta["accepted"]
        for gain in (0.3, 0.7, 1.2)
        for m in (1, 5)
    ]
    assert min(shares) < 0.5 and max(shares) > 0.7, shares


@pytest.mark.parametrize("rule", ["gumbel", "match"])
def test_sampled_text_is_that_of_plain_sampling(rule):
    model, sampling = small_model(4, gain=0.5), Sampling(rule=rule, temperature=1.5, seed=5)
    options: dict[str, Any] = {"max_steps": DEPTH, "eos_token_id": (), "max_new_tokens": NEW}
    plain = generate(model, PROMPTS, sampling=sampling, **options)
    out = speculate(model, PROMPTS, sampling=sampling)
    assert out.answers == plain.answers
    assert 0 < out.meta["accepted"] < 1


def test_rejection_knows_what_each_guess_was_drawn_from():
    """A guess of probability q stands with min(1, p / q): nearly always where draft and judge
    agree, though no token is likely."""
    sampling = Sampling("rejection", temperature=3.0, seed=5)
    out = speculate(small_model(4, gain=0.3), PROMPTS, draft_steps=5, sampling=sampling)
    assert out.meta["accepted"] > 0.8  # with probability p, of some 40 tokens, hardly ever


def test_from_zero_states_and_with_seeds_of_states():
    model = small_model(5)
    for start, seed in (("zero", 0), ("noise", 7), ("noise", [4, 3, 2, 1, 0])):
        options: dict[str, Any] = {"start": start, "state_seed": seed}
        plain = generate(
            model, PROMPTS, max_new_tokens=NEW, max_steps=DEPTH, eos_token_id=(), **options
        )
        assert speculate(model, PROMPTS, **options).answers == plain.answers


def test_end_tokens_inside_a_draft_and_the_end_of_the_context():
    model = small_model(6, gain=0.4, block_size=16)
    options: dict[str, Any] = {"max_new_tokens": 50, "max_steps": DEPTH}
    plain = generate(model, PROMPTS, eos_token_id=(), **options)
    assert set(plain.stopped) == {"context"}
    out = speculate(model, PROMPTS, max_new_tokens=50, draft_tokens=5)
    assert out.answers == plain.answers and out.stopped == plain.stopped
    ends = sorted({row[len(row) // 2] for row in plain.answers})
    plain = generate(model, PROMPTS, eos_token_id=ends, **options)
    out = speculate(model, PROMPTS, max_new_tokens=50, draft_tokens=5, eos_token_id=ends)
    assert out.answers == plain.answers and out.stopped == plain.stopped
    assert "end" in out.stopped and all(row[-1] in ends for row in out.answers)


def test_each_row_alone():
    model = small_model(7)
    together = speculate(model, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = speculate(model, [prompt])
        assert alone.answers[0] == together.answers[row]
        assert alone.costs[0].evaluations == together.costs[row].evaluations


def test_passes_and_cost_by_hand():
    """All guesses stand: a constant text, (G + 1) m + (r - m) passes per G + 1 tokens."""
    model = small_model(8)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # token 0 whatever the state
    out = speculate(model, [PROMPTS[0]], max_new_tokens=1 + 4 * 3, trace=True)
    assert out.answers[0] == [0] * 13 and out.meta == {"accepted": 1.0, "rounds": 3.0}
    rounds = 3 * (4 * 2 + DEPTH - 2)
    assert out.passes == out.costs[0].evaluations == DEPTH + rounds
    trace = out.traces[0]
    assert trace.cost.evaluations == out.passes
    assert trace.cost.flops == pytest.approx(out.costs[0].flops)
    assert [int(step.says.ids[0]) for step in trace.steps] == out.answers[0]
    plain = generate(model, [PROMPTS[0]], max_new_tokens=13, max_steps=DEPTH, eos_token_id=())
    core = plain.costs[0].evaluations - out.costs[0].evaluations
    assert core == 12 * DEPTH - rounds > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"draft_steps": 0}, "draft_steps is 0"),
        ({"draft_steps": DEPTH}, "fewer than the full depth of 6"),
        ({"draft_tokens": 0}, "draft_tokens is 0"),
        ({"sharing": "shared"}, "needs a slot for each recurrence"),
        ({"sharing": "first-then-shared:8"}, "use sharing='deepest'"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"start": "warm"}, "start is 'warm'"),
    ],
)
def test_bad_options(options, message):
    model = small_model()
    setattr(model, "embed", None)  # noqa: B010 - nothing may run
    with pytest.raises(ValueError, match=message):
        speculate(model, PROMPTS, **options)
