"""Whatever is guessed, the text is distributed as if nobody had guessed."""

import itertools
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inward.common.sampling import (
    Noise,
    Sampler,
    Sampling,
    accepts,
    argmaxes,
    distribution,
    inverse_cdf,
    matched,
    residual,
    sampling_of,
)

V = 6
SAMPLING_RULES = ("match", "rejection", "gumbel")


def p_value(counts: Tensor, expected: Tensor) -> float:
    """Chi-square, cells that expect fewer than 5 put together."""
    rare = expected < 5
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        keep = expected > 0
        assert int(counts[~keep].sum()) == 0, "an impossible cell was seen"
        counts, expected = counts[keep], expected[keep]
    statistic = ((counts - expected) ** 2 / expected).sum()
    half = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, statistic.double() / 2))


def random_logits(seed: int, *shape: int, scale: float = 1.5) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_step(sampling: Sampling, row: int, model: Tensor, drafter: Tensor) -> list[int]:
    """Two places: guesses for both from the drafter, judged by a model that has a Markov table."""
    sampler = Sampler(sampling, row)
    guesses, laws = sampler.draft([0], drafter)
    logits = torch.stack([model[0], *(model[g] for g in guesses)])
    verdict = sampler.verify([0], logits, guesses, laws)
    return [*guesses[: verdict.accepted], verdict.token]


# --- the p-value itself ---------------------------------------------------------------------------


def test_p_value_tells_right_from_wrong():
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = torch.multinomial(p, 4000, replacement=True, generator=generator).bincount(minlength=4)
    assert p_value(draws, 4000 * p) > 1e-3
    assert p_value(draws, 4000 * torch.tensor([0.45, 0.35, 0.15, 0.05])) < 1e-6


# --- exactness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", SAMPLING_RULES)
@pytest.mark.parametrize("changed", [{}, {"temperature": 0.6, "top_k": 4}, {"top_p": 0.7}], ids=str)
def test_sequences_are_distributed_as_the_model_says(rule, changed):
    """First token alone, and the pair where a guess stood: both against the exact law."""
    model, drafter = random_logits(1, V, V), random_logits(2, 2, V)
    num = 2000
    law = torch.stack([distribution(s) for s in _processed(model, changed)])
    first, pairs, pairs_offered = torch.zeros(V), torch.zeros(V, V), torch.zeros(V)
    for row in range(num):
        tokens = one_step(Sampling(rule, seed=7, **changed), row, model, drafter)
        first[tokens[0]] += 1
        if len(tokens) > 1:
            pairs[tokens[0], tokens[1]] += 1
            pairs_offered[tokens[0]] += 1
    assert p_value(first, num * law[0]) > 1e-3
    assert pairs_offered.sum() > 0.1 * num, "too few guesses stood to say anything"
    for token in range(V):
        if pairs_offered[token] > 100:
            assert p_value(pairs[token], pairs_offered[token] * law[token]) > 1e-3


def _processed(model: Tensor, changed: dict) -> Tensor:
    ids = torch.zeros(len(model), 1, dtype=torch.long)
    warpers = {
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
    }
    for name, value in changed.items():
        model = warpers[name](value)(ids, model)
    return model


def test_a_rejection_that_forgets_the_residual_would_be_seen():
    """The test above has teeth: drawing anew from p after a refusal fails it."""
    p, q = distribution(random_logits(1, V)), distribution(random_logits(2, V))
    counts, wrong = torch.zeros(V), torch.zeros(V)
    for row in range(3000):
        u = torch.rand(4, generator=torch.Generator().manual_seed(row)).tolist()
        guess = inverse_cdf(q, u[0])
        stands = accepts(p, guess, q, u[1])
        counts[guess if stands else inverse_cdf(residual(p, guess, q), u[2])] += 1
        wrong[guess if stands else inverse_cdf(p, u[3])] += 1
    assert p_value(counts, 3000 * p) > 1e-3
    assert p_value(wrong, 3000 * p) < 1e-6


def test_a_guess_that_was_not_drawn_is_exact_too():
    """Guesses from a look-up have no law: all mass on the guess."""
    logits, counts = random_logits(3, 2, V), torch.zeros(V)
    for row in range(3000):
        verdict = Sampler(Sampling("rejection"), row).verify([0], logits, [2], [None])
        counts[2 if verdict.accepted else verdict.token] += 1
    assert p_value(counts, 3000 * distribution(logits[0])) > 1e-3


def acceptance(rule: Any, num: int = 1500) -> float:
    p, q = random_logits(1, 2, V), random_logits(2, 1, V)
    stood = 0
    for row in range(num):
        sampler = Sampler(Sampling(rule), row)
        guesses, laws = sampler.draft([0], q)
        stood += sampler.verify([0], p, guesses, laws).accepted
    return stood / num


def test_acceptance_is_what_the_rules_promise():
    p, q = distribution(random_logits(1, 2, V)[0]), distribution(random_logits(2, 1, V)[0])
    assert acceptance("rejection") == pytest.approx(float(torch.minimum(p, q).sum()), abs=0.04)
    assert acceptance("match") == pytest.approx(float(p[q.argmax()]), abs=0.04)
    independent = float((p * q).sum())
    assert independent + 0.05 < acceptance("gumbel") <= float(torch.minimum(p, q).sum()) + 0.04


@pytest.mark.parametrize("rule", ("match", "gumbel"))
def test_guesses_cannot_change_the_text(rule):
    """Not in distribution only: the tokens themselves, whatever is guessed."""
    model = random_logits(1, V, V)
    for row, guesses in itertools.product(range(20), ([], [3], [1, 4], [5, 5])):
        sampler = Sampler(Sampling(rule, seed=3), row)
        plain = [0]
        for _ in range(3):
            plain.append(sampler.verify(plain, model[plain[-1]][None]).token)
        logits = torch.stack([model[t] for t in [0, *guesses]])
        verdict = sampler.verify([0], logits, guesses)
        text = [*guesses[: verdict.accepted], verdict.token]
        assert text == plain[1 : 1 + len(text)]


# --- the parts ------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 2.0]), min_size=1, max_size=6), st.floats(0, 1))
def test_inverse_cdf_never_draws_what_has_no_mass(masses, u):
    p = torch.tensor(masses, dtype=torch.float64)
    if p.sum() > 0 and u < 1:
        assert p[inverse_cdf(p, u)] > 0


@given(st.lists(st.integers(0, 3), min_size=0, max_size=5), st.integers(0, 10_000))
def test_many_rows_at_once_say_what_one_place_at_a_time_says(guesses, seed):
    logits = random_logits(seed, len(guesses) + 1, 4)
    sampler = Sampler(Sampling(), banned=[1])
    assert sampler.is_argmax
    assert matched(argmaxes(logits.clone(), [1]), guesses) == sampler.verify([0], logits, guesses)


def test_noise_belongs_to_the_place():
    noise = Noise(5)
    later = noise.gumbel(9, 4)
    assert torch.equal(noise.gumbel(8, 4), Noise(5).gumbel(8, 4))
    assert torch.equal(noise.gumbel(9, 4), later)
    assert noise.uniform(9, 1) == Noise(5).uniform(9, 1)
    numbers = {noise.uniform(place, stream) for place in range(20) for stream in range(3)}
    assert len(numbers | {Noise(6).uniform(0, 0)}) == 61


def test_row_of_a_batch_draws_as_a_single_text_with_its_seed():
    logits = random_logits(0, 1, 50)
    for rule in SAMPLING_RULES:
        in_batch = [Sampler(Sampling(rule, seed=4), r).verify([0], logits).token for r in range(9)]
        alone = [Sampler(Sampling(rule, seed=4 + r)).verify([0], logits).token for r in range(9)]
        assert in_batch == alone
        assert len(set(in_batch)) > 1


def test_processors_see_the_prefix_of_each_place():
    """Bigram ban and penalty: judged in one go = token by token as transformers would."""
    processors = LogitsProcessorList(
        [NoRepeatNGramLogitsProcessor(2), RepetitionPenaltyLogitsProcessor(1.7)]
    )
    model = random_logits(4, V, V)
    model[:, :2] += 4.0  # left to itself it would say 0 and 1 for ever
    prefix = [0, 3, 0, 2]
    plain = list(prefix)
    for _ in range(4):
        scores = processors(
            cast(Any, torch.tensor([plain])), cast(Any, model[plain[-1]].clone()[None])
        )
        plain.append(int(scores.argmax()))
    sampler = Sampler(Sampling(processors=tuple(processors)))
    without = Sampler(Sampling())
    guesses = plain[4:7]
    logits = torch.stack([model[t] for t in [prefix[-1], *guesses]])
    assert sampler.verify(prefix, logits, guesses).accepted == 3
    assert sampler.verify(prefix, logits, guesses).token == plain[7]
    assert without.verify(prefix, logits, guesses).accepted < 3


def test_banned_tokens_are_neither_produced_nor_drafted():
    logits = torch.zeros(3, V)
    logits[:, 2] = 50.0
    for rule in ("greedy", *SAMPLING_RULES):
        sampler = Sampler(Sampling(rule), banned=[2])
        guesses, laws = sampler.draft([0], logits[:2])
        verdict = sampler.verify([0], logits, guesses, laws)
        assert 2 not in [*guesses, verdict.token]
    assert logits.max() == 50.0, "the caller's logits were written to"


def test_processing_happens_up_to_the_first_rejection_only():
    calls = []

    def count(ids: Tensor, scores: Tensor) -> Tensor:
        calls.append(ids.shape[1])
        return scores

    logits = torch.zeros(5, V)
    logits[:, 1] = 9.0
    Sampler(Sampling(processors=(count,))).verify([0, 0], logits, [1, 4, 1, 1])
    assert calls == [2, 3]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"rule": "typical"}, "rule is 'typical'"),
        ({"rule": "match", "temperature": 0.0}, "temperature is 0.0"),
        ({"rule": "match", "top_k": -1}, "top_k is -1"),
        ({"rule": "match", "top_p": 0.0}, "top_p 0.0"),
        ({"temperature": 0.7}, "greedy decoding has no temperature"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)


# --- what a generation config of transformers asks for ------------------------------------------


def test_processors_of_a_config_in_transformers_order():
    sampling = sampling_of(
        GenerationConfig(
            do_sample=True, temperature=0.5, top_k=1, top_p=0.9, min_p=0.1, typical_p=0.8
        ),
        rule="match",
    )
    names = [type(p).__name__ for p in sampling.processors]
    assert sampling.rule == "match"
    assert [n[:5] for n in names] == ["Tempe", "TopKL", "TopPL", "MinPL", "Typic"]
    greedy = sampling_of(GenerationConfig(temperature=0.5, no_repeat_ngram_size=2))
    assert greedy.rule == "greedy" and len(greedy.processors) == 1
    assert sampling_of(None) == Sampling()


def test_a_setting_of_one_is_not_unset():
    asked = sampling_of(GenerationConfig(do_sample=True, temperature=1.0, top_k=1))
    assert asked.rule == "gumbel" and len(asked.processors) == 1
    assert len(sampling_of(GenerationConfig(no_repeat_ngram_size=1)).processors) == 1


@pytest.mark.parametrize(
    "wish", [{"num_beams": 2}, {"penalty_alpha": 0.5}, {"min_new_tokens": 1}, {"max_time": 1}]
)
def test_what_is_not_done_is_refused(wish):
    with pytest.raises(ValueError, match=next(iter(wish))):
        sampling_of(GenerationConfig(**wish))
    sampling_of(GenerationConfig(num_beams=1, stop_strings="a"))
    with pytest.raises(ValueError, match="stop_strings"):
        sampling_of(GenerationConfig(stop_strings="a"), refuse=("stop_strings",))
