"""Several words in one thought, and back: superposed thoughts (MUX, arXiv 2607.18264).

A thought holds a *span* of W places, each a word or the filler, which is no word. Place j weighs

    alpha_j = rho^j / (1 + rho + ... + rho^(W-1)),        0 < rho <= 1/2

and what the thought holds is a distribution over the vocabulary: t(v) = sum of alpha_j over the
places j where v stands. `superposition` makes it, `read_out` takes it apart.

**The read-out is exact.** All places after j together weigh less than place j, because
rho / (1 - rho) <= 1:

    sum_{i>j} rho^i = rho^(j+1) (1 - rho^(W-1-j)) / (1 - rho) <= rho^j (1 - rho^(W-1-j)) < rho^j

So of what is left after places 0 to j-1 are taken out, the word of place j has alpha_j or more, and
any other word less: it is the largest, whether words repeat or not. Take alpha_j off it and go on.
With rho = 1/2 this is reading binary digits.

**How far off a distribution may be.** The gap at place j is alpha_j - sum_{i>j} alpha_i. If no
entry is off by half the smallest gap or more (`tolerance`), the largest is still the right one at
every place. With rho = 1/2 all gaps are 1 / (2^W - 1).

**Why spans have one width.** Of spans of unknown length, w and w w have the same normalised weights
for every rho (the second is the first times 1 + rho^|w|), so length must be known: short spans are
filled up, and the filler ends the words.

**Why rho <= 1/2.** Beyond it the places after the first can outweigh it, and as near to 1/2 as one
likes lie ratios at which two spans are one: with 1 = rho + rho^2 (0.618) "a b b" and "b a a", with
1 = rho + rho^2 + rho^3 (0.544) "a b b b" and "b a a a". A span of one place has nothing to take
apart: each thought would be one word, which is a silent chain of thought, refused by that name.

No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inward.common.checks import need

LEAST_GAP = 1e-6
"""Of weights; below it a probability in float32 does not tell two spans apart"""


@dataclass(frozen=True)
class Superposing:
    """How words lie in a thought.

    span    W, places of a thought, 2 or more
    ratio   rho, weight of a place over that of the place before it, above 0, at most 1/2

    Raises ValueError for numbers out of range, or that leave gaps which float32 cannot tell.
    """

    span: int
    ratio: float = 0.5

    def __post_init__(self) -> None:
        check_span(self.span)
        limit = "above 0 and at most 0.5: beyond that different words give the same weights"
        need(0.0 < self.ratio <= 0.5, "superpose (the ratio of the weights)", self.ratio, limit)
        if 2 * self.tolerance < LEAST_GAP:
            raise ValueError(
                f"span {self.span} with the ratio {self.ratio} leaves {2 * self.tolerance:.1e} "
                f"between two spans, less than {LEAST_GAP:.0e}, which probabilities cannot tell; "
                "use a shorter span, or a ratio nearer to 0.5"
            )

    @property
    def weights(self) -> np.ndarray:
        """(W,) float64, alpha: they sum to 1."""
        powers = float(self.ratio) ** np.arange(self.span)
        return powers / powers.sum()

    @property
    def tolerance(self) -> float:
        """Half the smallest gap: entries that are off by less are read exactly."""
        alpha = self.weights
        after = alpha.sum() - np.cumsum(alpha)
        return float((alpha - np.maximum(after, 0.0)).min()) / 2


def check_span(span: int) -> None:
    """Raise ValueError for a span that holds no superposition."""
    if span == 1:
        raise ValueError(
            "span is 1: a thought of one token is a silent chain of thought, no superposition; "
            "use 2 or more"
        )
    need(isinstance(span, int) and not isinstance(span, bool) and span >= 2, "span", span,
         "2 or more tokens")  # fmt: skip


def cut(step: Sequence[int], num: int, span: int, filler: int) -> tuple[tuple[int, ...], ...]:
    """A step's tokens in `num` contiguous parts, as equal as can be, the first ones longer; each
    filled up to `span`.

    Raises ValueError for a step that does not fit, or one that would put a single token in each.
    """
    length = len(step)
    if length > num * span:
        raise ValueError(
            f"a step has {length} tokens, but its {num} thoughts hold {num * span} (span {span}); "
            "give more thoughts a step, a longer span, or shorter steps"
        )
    sizes = [length // num + (j < length % num) for j in range(num)]
    parts, place = [], 0
    for size in sizes:
        part = (*step[place : place + size],)
        parts.append(part + (filler,) * (span - size))
        place += size
    return tuple(parts)


def superposition(span: Sequence[int], how: Superposing, num_tokens: int) -> np.ndarray:
    """(V,) float64: the distribution that holds a span.

    Raises ValueError for a span of another width.
    """
    if len(span) != how.span:
        raise ValueError(f"the span has {len(span)} places, must be {how.span}; fill it up")
    found = np.zeros(num_tokens)
    np.add.at(found, np.asarray(span), how.weights)
    return found


def read_out(chances: np.ndarray, how: Superposing, filler: int) -> list[tuple[int, float]]:
    """The words that a distribution (V,) holds, in order, each with the weight found in its place
    (alpha_j, if the distribution is exact); the filler ends them."""
    left = np.asarray(chances, np.float64).copy()
    found: list[tuple[int, float]] = []
    for alpha in how.weights:
        word = int(left.argmax())
        if word == filler:
            break
        found.append((word, float(min(max(left[word], 0.0), alpha))))
        left[word] -= alpha
    return found
