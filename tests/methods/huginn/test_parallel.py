"""The parallel sampler: exact mode is sequential decoding; free mode becomes it where states
settle."""

from typing import Any

import pytest
import torch

from inward.common import halting
from inward.common.sampling import Sampling
from inward.methods.huginn.generate import generate
from inward.methods.huginn.parallel import generate_in_parallel
from tests.methods.huginn.test_generate import random_prompts, small_model

PROMPTS = random_prompts([4, 2, 7])
NEW, DEPTH = 10, 6
PLAIN: dict[str, Any] = {"max_new_tokens": NEW, "max_steps": DEPTH, "eos_token_id": ()}


def parallel(model, prompts=PROMPTS, **options):
    return generate_in_parallel(model, prompts, **PLAIN | options)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("inner_steps", [1, 2, 3, 6])
@pytest.mark.parametrize("gain", [0.3, 0.7, 1.2])
def test_exact_mode_is_sequential_decoding(gain, inner_steps):
    model = small_model(2, gain=gain)
    plain = generate(model, PROMPTS, **PLAIN)
    out = parallel(model, exact=True, inner_steps=inner_steps)
    assert out.answers == plain.answers
    assert all(row.tolist() == [DEPTH] * NEW for row in out.steps)
    if inner_steps == DEPTH:  # no place begins before the one before it is done
        assert out.meta == {"changed": 0.0, "wave": 1.0}
    else:
        assert out.meta["wave"] > 1


def test_exact_mode_replaces_wrong_guesses_and_saves_passes():
    wild, calm = (parallel(small_model(2, gain=g), exact=True) for g in (1.2, 0.2))
    assert wild.meta["changed"] > 10
    assert calm.meta["changed"] < wild.meta["changed"]
    assert calm.passes < wild.passes
    plain = generate(small_model(2, gain=0.2), PROMPTS[:1], **PLAIN)
    assert parallel(small_model(2, gain=0.2), PROMPTS[:1], exact=True).passes < plain.passes


def test_exact_mode_samples_what_sequential_sampling_samples():
    model, sampling = small_model(3, gain=0.5), Sampling(rule="gumbel", temperature=1.3, seed=4)
    plain = generate(model, PROMPTS, sampling=sampling, **PLAIN)
    out = parallel(model, exact=True, sampling=sampling)
    assert out.answers == plain.answers and out.meta["changed"] > 0


def test_exact_mode_obeys_a_small_wave_the_end_token_and_the_context():
    model = small_model(4, gain=0.4, block_size=16)
    options: dict[str, Any] = {"max_new_tokens": 40}
    plain = generate(model, PROMPTS, **PLAIN | options)
    for wave in (1, 2, 128):
        out = parallel(model, exact=True, max_wave=wave, **options)
        assert out.answers == plain.answers and out.stopped == ["context"] * 3
        assert out.meta["wave"] <= wave
    ends = sorted({row[len(row) // 2] for row in plain.answers})
    last: dict[str, Any] = {"eos_token_id": ends}
    plain = generate(model, PROMPTS, **PLAIN | options | last)
    out = parallel(model, exact=True, eos_token_id=ends, **options)
    assert out.answers == plain.answers and out.stopped == plain.stopped
    assert "end" in out.stopped


@pytest.mark.parametrize("inner_steps", [1, 2])
@pytest.mark.parametrize("rule", ["never", halting.LatentChange(1e-5)])
def test_free_mode_is_sequential_decoding_where_states_settle(rule, inner_steps):
    """With states that forget where they started, at full depth or a threshold near 0."""
    model = small_model(5, memory=0.2)
    deep: dict[str, Any] = PLAIN | {"max_steps": 24, "sharing": "shared"}
    deeper: dict[str, Any] = deep | {"max_steps": 48}
    plain = generate(model, PROMPTS, **deep)
    assert plain.answers == generate(model, PROMPTS, **deeper).answers
    out = generate_in_parallel(model, PROMPTS, halt=rule, inner_steps=inner_steps, **deep)
    assert out.answers == plain.answers
    assert inner_steps > 1 or out.meta["changed"] > 0
    alone = generate_in_parallel(model, PROMPTS[:1], halt=rule, **deep)
    assert alone.passes < generate(model, PROMPTS[:1], **deep).passes / 2


def agreement(threshold: float) -> float:
    """Share of tokens that free mode has in common with sequential decoding, over 3 models."""
    pairs = []
    for seed in range(3):
        model = small_model(seed, memory=0.4)
        options: dict[str, Any] = PLAIN | {"max_steps": 16, "sharing": "shared"}
        plain = generate(model, PROMPTS, **options)
        out = generate_in_parallel(model, PROMPTS, halt=halting.LatentChange(threshold), **options)
        for row, want in zip(out.answers, plain.answers, strict=True):
            pairs += list(zip(row, want, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def test_agreement_of_free_mode_grows_as_the_threshold_falls():
    loose, tight = agreement(0.9), agreement(0.01)
    assert loose < 0.7 and tight > 0.95, (loose, tight)


def test_only_a_contiguous_front_is_frozen():
    """Places 2, 3, ... claim to be done at once, place 1 after 5 recurrences: nothing is said
    before."""
    model, said = small_model(6, gain=0.3), []

    def rule(view: halting.DepthView) -> torch.Tensor:
        return (view.step >= 5) | (view.index > 1)

    out = parallel(
        model, PROMPTS[:1], halt=rule, max_steps=8, on_token=lambda *what: said.append(what)
    )
    steps = [step for _, _, step in said]
    assert steps[0] == 8 and steps[1] == 5
    assert steps == out.steps[0].tolist() and [token for _, token, _ in said] == out.answers[0]
    assert steps[2] == 4  # began one turn later, frozen in the same


def test_rules_on_the_output_compare_with_the_turn_before():
    model, looks = small_model(6, gain=0.3), []

    def rule(view: halting.DepthView) -> torch.Tensor:
        looks.append((view.step.tolist(), view.looks.tolist(), view.previous_logits.clone()))
        return halting.ArgmaxStable(2)(view)

    out = parallel(model, PROMPTS[:1], halt=rule, max_steps=8)
    assert all(looks == [step - 1 for step in steps] for steps, looks, _ in looks)
    assert min(out.steps[0].tolist()[1:]) >= 3
    later = [before[0] for steps, _, before in looks if steps[0] > 1]
    assert all(bool((row != 0).any()) for row in later)


@pytest.mark.parametrize("exact", [False, True])
def test_each_row_alone(exact):
    model = small_model(7, gain=0.4)
    together = parallel(model, exact=exact)
    for row, prompt in enumerate(PROMPTS):
        alone = parallel(model, [prompt], exact=exact)
        assert alone.answers[0] == together.answers[row]
        assert torch.equal(alone.steps[0], together.steps[row])
        assert alone.costs[0].flops == pytest.approx(together.costs[row].flops)
        assert alone.costs[0].evaluations == alone.passes == together.costs[row].evaluations


def test_trace_and_cost():
    model = small_model(7, gain=0.3)
    out = parallel(model, trace=True)
    for row, trace in enumerate(out.traces or []):
        assert [int(step.says.ids[0]) for step in trace.steps] == out.answers[row]
        assert [step.scores["steps"] for step in trace.steps] == out.steps[row].tolist()
        assert trace.cost.evaluations == out.costs[row].evaluations
    assert out.passes <= sum(cost.evaluations for cost in out.costs)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"inner_steps": 4}, "no multiple of inner_steps 4"),
        ({"max_wave": 0}, "max_wave is 0"),
        ({"exact": True, "halt": "latent"}, "takes none"),
        ({"exact": True, "sharing": "shared"}, "exact=True cannot work"),
        ({"sharing": "deepest"}, "exact=False cannot work"),
        ({"halt": halting.ArgmaxStable(6)}, "can never fire"),
    ],
)
def test_bad_options(options, message):
    model = small_model()
    setattr(model, "embed", None)  # noqa: B010 - nothing may run
    with pytest.raises(ValueError, match=message):
        parallel(model, **options)
