"""Intervals against published values, against their own definition, and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.evals.stats import mcnemar, over_seeds, paired_difference, t_quantile, wilson


def test_wilson_gives_published_values():
    # Newcombe (1998), Statistics in Medicine 17: table I, method 3 (score without correction)
    for right, num, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        interval = wilson(right, num)
        assert interval.low == pytest.approx(low, abs=5e-5)
        assert interval.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_the_score_equation(case: tuple[int, int]):
    right, num = case
    interval = wilson(right, num)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    for bound in {interval.low, interval.high} - {0.0, 1.0}:
        score = (right / num - bound) / math.sqrt(bound * (1 - bound) / num)
        assert abs(score) == pytest.approx(1.959964, rel=1e-4)


@pytest.mark.parametrize(("right", "num"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_impossible_counts(right: int, num: int):
    with pytest.raises(ValueError, match="right"):
        wilson(right, num)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_is_a_probability(level: float):
    with pytest.raises(ValueError, match="level"):
        wilson(1, 2, level=level)


def test_t_quantiles_match_the_printed_table():
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 30: 2.0423}
    for freedom, value in table.items():
        assert t_quantile(0.975, freedom) == pytest.approx(value, abs=5e-5)
    assert t_quantile(0.95, 7) == pytest.approx(1.8946, abs=5e-5)
    assert t_quantile(0.5, 4) == pytest.approx(0.0, abs=1e-9)
    assert t_quantile(0.975, 100_001) == pytest.approx(1.95999, abs=1e-4)


def test_over_seeds_stays_within_what_can_be():
    wide = over_seeds([0.90, 1.0])
    cut = over_seeds([0.90, 1.0], within=(0.0, 1.0))
    assert wide.high > 1.0 and (cut.low, cut.high) == (wide.low, 1.0)


def test_over_seeds_is_the_textbook_interval():
    interval = over_seeds([0.90, 0.92, 0.94])
    assert interval.value == pytest.approx(0.92)
    assert interval.high - interval.value == pytest.approx(4.3027 * 0.02 / math.sqrt(3), abs=1e-5)
    with pytest.raises(ValueError, match="at least 2 seeds"):
        over_seeds([0.9])
    with pytest.raises(ValueError, match="finite"):
        over_seeds([0.9, math.nan])


def test_mcnemar_is_the_two_sided_binomial_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(10, 0) == pytest.approx(2 / 2**10)
    assert mcnemar(1, 8) == mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 3)


def test_paired_difference_of_right_and_wrong():
    first = np.array([True] * 90 + [False] * 10)
    second = np.array([True] * 80 + [False] * 20)
    result = paired_difference(first, second)
    assert (result.only_first, result.only_second) == (10, 0)
    assert result.difference.value == pytest.approx(0.10)
    assert 0.02 < result.difference.low < 0.05 < 0.15 < result.difference.high < 0.18
    assert result.p_value == pytest.approx(2 / 2**10)


def test_equal_outcomes_are_not_claimed_to_be_exactly_equal():
    same = np.ones(50, dtype=bool)
    result = paired_difference(same, same)
    assert result.difference.value == 0.0
    assert result.difference.low < -0.01 < 0.01 < result.difference.high
    assert result.p_value == 1.0


def test_paired_intervals_cover_the_true_difference_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = {"bool": 0, "float": 0}
    for trial in range(300):
        draws = rng.random(120)
        first, second = draws < 0.85, draws + 0.1 * rng.random(120) < 0.85
        interval = paired_difference(first, second).difference  # true difference: 0.05
        covered["bool"] += interval.low <= 0.05 <= interval.high
        steps = rng.normal(1.0, 2.0, 120)
        interval = paired_difference(steps, np.zeros(120), seed=trial, num_resamples=400).difference
        covered["float"] += interval.low <= 1.0 <= interval.high
    assert 0.90 <= covered["bool"] / 300 <= 0.995
    assert 0.90 <= covered["float"] / 300 <= 0.985


def test_the_bootstrap_repeats_itself_by_its_seed():
    a, b = np.arange(40.0), np.arange(40.0)[::-1] ** 1.1
    runs = [paired_difference(a, b, seed=seed, num_resamples=500) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0].p_value is None


def test_paired_difference_refuses_what_is_not_paired():
    with pytest.raises(ValueError, match="same order"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="same order"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="NaN"):
        paired_difference([1.0, math.nan], [1.0, 2.0])
