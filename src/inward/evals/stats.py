"""How sure a number is: intervals for an accuracy, for a paired difference, over seeds.

Three questions, three functions, and none of them needs scipy.

    wilson(9, 10)                      one model on one set: the interval of Wilson (1927)
    paired_difference(right_a, right_b)   two models on the *same* puzzles: pairing removes the
                                       puzzles' own difficulty, so the interval is narrower
    over_seeds([0.91, 0.93, 0.90])     one recipe trained several times: Student's t over the runs

The first two say how far the *puzzles* were lucky, the third how far the *training* was. A result
that claims one recipe beats another needs the third.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_RESAMPLES_AT_ONCE = 1 << 22  # numbers drawn per block of the bootstrap: 32 MB


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that holds the true value with probability `level`."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Paired:
    """Difference first minus second on the same items, and how likely it is by chance.

    only_first, only_second: items that one was right about and the other was not (0 unless the
    outcomes are right or wrong); p_value: exact McNemar test, two-sided, None for other outcomes.
    """

    difference: Interval
    only_first: int = 0
    only_second: int = 0
    p_value: float | None = None


def wilson(num_right: float, num: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval for `num_right` successes in `num` trials.

    With p the share and z the normal quantile: centre (p + z^2 / 2n) / (1 + z^2 / n). It stays
    within 0..1 and is honest at 100 %: 1000 of 1000 gives [0.9962, 1]. A sum of
    shares (ARC tasks with half of their tests right) will do: as nothing in 0..1 varies more than
    0 or 1, the interval is then wide rather than narrow.

    Raises ValueError unless 0 <= num_right <= num, num >= 1 and 0 < level < 1.
    """
    if not 0 <= num_right <= num or num < 1:
        raise ValueError(f"{num_right} right of {num}: need 0 <= right <= number and a number >= 1")
    z = _normal_quantile(level)
    share = num_right / num
    centre = share + z * z / (2 * num)
    half = z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    scale = 1 + z * z / num
    # at the ends the bound is the share itself; rounding must not push it a hair inside
    low = 0.0 if num_right == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if num_right == num else min(1.0, (centre + half) / scale)
    return Interval(share, low, high, level)


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    level: float = 0.95,
    seed: int = 0,
    num_resamples: int = 10_000,
) -> Paired:
    """Mean of first - second with its interval; item i of both belongs to the same puzzle.

    Right-or-wrong outcomes (bool): the adjusted Wald interval of Bonett and Price (2012), which
    keeps its coverage when few items differ, where a bootstrap does not (no item differs: it would
    claim a difference of exactly 0), and the exact McNemar test. Other numbers (steps, costs): the
    percentile bootstrap over items, `num_resamples` draws from `seed`.

    Raises ValueError for unequal lengths, no items, or values that are not finite.
    """
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(
            f"outcomes have shapes {a.shape} and {b.shape}; give one value per puzzle for both, "
            "in the same order"
        )
    z = _normal_quantile(level)
    if a.dtype == bool and b.dtype == bool:
        return _paired_right_or_wrong(a, b, z, level)
    difference = a.astype(float) - b.astype(float)
    if not np.isfinite(difference).all():
        raise ValueError("outcomes hold NaN or infinity; leave such puzzles out of both")
    means = _resampled_means(difference, np.random.default_rng(seed), num_resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Paired(Interval(float(difference.mean()), float(low), float(high), level))


def _paired_right_or_wrong(a: np.ndarray, b: np.ndarray, z: float, level: float) -> Paired:
    num = len(a)
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    # Bonett and Price: one item is added to each of the two discordant cells
    p, q = (only_first + 1) / (num + 2), (only_second + 1) / (num + 2)
    half = z * math.sqrt((p + q - (p - q) ** 2) / (num + 2))
    low, high = max(-1.0, p - q - half), min(1.0, p - q + half)
    difference = Interval((only_first - only_second) / num, low, high, level)
    return Paired(difference, only_first, only_second, mcnemar(only_first, only_second))


def _resampled_means(values: np.ndarray, rng: np.random.Generator, num: int) -> np.ndarray:
    """(num,) means of as many values drawn with replacement, in blocks of bounded memory."""
    block = max(1, _RESAMPLES_AT_ONCE // len(values))
    sizes = [min(block, num - start) for start in range(0, num, block)]
    return np.concatenate([values[rng.integers(len(values), size=(n, len(values)))].mean(1)
                           for n in sizes])  # fmt: skip


def calibration_error(
    believed: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, *, bins: int = 10
) -> float:
    """Expected calibration error: |mean belief - share right| over equal bins of belief, weighted
    by their size (Naeini et al., AAAI 2015). 0: belief is the share of answers that are right.

    Raises ValueError for unequal lengths, no items, or beliefs outside [0, 1].
    """
    p, hit = np.asarray(believed, dtype=float), np.asarray(right, dtype=float)
    if p.shape != hit.shape or p.ndim != 1 or p.size == 0:
        raise ValueError(f"beliefs {p.shape} and outcomes {hit.shape}: give one of each per answer")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"beliefs run from {p.min()} to {p.max()}; a probability lies in 0..1")
    place = np.minimum((p * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=p - hit, minlength=bins)
    return float(np.abs(gaps).sum() / p.size)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar p-value: were the items that differ heads and tails of a fair coin?

    Raises ValueError for negative counts.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts are {only_first} and {only_second}; they cannot be negative")
    num = only_first + only_second
    tail = sum(math.comb(num, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**num)


def over_seeds(
    values: Sequence[float],
    *,
    level: float = 0.95,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Mean over independent runs with Student's interval: mean +- t * s / sqrt(n).

    within: what the quantity can be at all, (0, 1) for shares; the interval is cut there.

    Raises ValueError for fewer than two runs, or values that are not finite.
    """
    runs = np.asarray(values, dtype=float)
    if runs.ndim != 1 or len(runs) < 2:
        raise ValueError(f"{runs.size} run(s) show no spread; train at least 2 seeds")
    if not np.isfinite(runs).all():
        raise ValueError(f"runs are {list(values)}; only finite results can be averaged")
    half = t_quantile((1 + level) / 2, len(runs) - 1) * runs.std(ddof=1) / math.sqrt(len(runs))
    mean = float(runs.mean())
    low, high = max(mean - float(half), within[0]), min(mean + float(half), within[1])
    return Interval(mean, low, high, level)


def t_quantile(probability: float, freedom: int) -> float:
    """The t below which Student's distribution with `freedom` degrees lies with `probability`.

    Raises ValueError unless 0.5 <= probability < 1 and freedom >= 1.
    """
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"probability {probability} and freedom {freedom}: need 0.5..1 and >= 1")
    low, high = 0.0, math.pi / 2  # bisect the angle atan(t / sqrt(freedom)): it is bounded
    for _ in range(100):
        middle = (low + high) / 2
        if 0.5 + _t_area(middle, freedom) / 2 < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _t_area(angle: float, freedom: int) -> float:
    """P(|t| < sqrt(freedom) * tan(angle)): the finite series 26.7.3-4 of Abramowitz and Stegun."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = sine * cosine if odd else sine
    total = term if freedom > 1 else 0.0
    for k in range(2 if odd else 1, freedom - 1, 2):
        term *= cosine * cosine * k / (k + 1)
        total += term
    return 2 / math.pi * (angle + total) if odd else total


def _normal_quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; choose a probability between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf((1 + level) / 2)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rho, equal values at their mean rank; None where one side has one value only."""
    a, b = _ranks(np.asarray(first)), _ranks(np.asarray(second))
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"shapes {a.shape} and {b.shape}; give one number per question for both")
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
