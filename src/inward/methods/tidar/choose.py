"""Which scheme, and how long a draft: decided by what a forward costs here and how far drafts get.

The paper's one-pass step is nearly free on an H100 and ruinous on two CPU cores: there a forward of
272 rows (K = 16) takes twelve times as long as one of a single row, in float32 even a second row
costs as much as the first. So nothing is assumed. `measure` times forwards of q rows on this
machine, once; `Acceptance` counts how far drafts get in this text; and with

    c(q)     seconds of a forward of q rows
    P(n)     probability that n of the K draft tokens stand, n = 1..K (the first one is final)
    E        sum n P(n), the tokens of a verification
    h        probability that n is an outcome with a mask block: the next draft is there at once

the long-run rate of a scheme with m blocks per verification is

    (E + (1 - h)) / (c(K + m w) + (1 - h) c(1 + w))         tokens a second

where w = K masks make a block (K - 1 if the model was trained `shifted`), because a miss costs a
draft pass, [token | block], which gives one token. One-pass is m = K, h = 1; two-pass is m = 0,
h = 0; plain decoding is 1 / c(1). The chooser takes the best of all. Several texts at once share
each forward and seldom miss together: there a draft pass has as many rows as its neighbours'
verification; but in two-pass all of them draft, then all verify. To each c is added what a step
takes outside its forward: next to a forward of a small model that is not little, and it is more
with drafts than without.

No torch but in `measure`: costs are plain numbers that may be kept in a file.
"""

from __future__ import annotations

from inward.methods.tidar.schemes import Acceptance, Costs, Scheme


def speed(scheme: Scheme, costs: Costs, acceptance: Acceptance, lead: int = 1) -> float:
    """Expected tokens a second and text of a verifying scheme (the formula above), whose blocks
    have w = K - 1 + lead masks."""
    K, (plain, around) = scheme.K, costs.around
    if scheme.name == "plain" or K == 1:
        return 1 / (costs.without_masks(1) + plain)
    counts = acceptance.counts(K - 1)
    tokens = sum((a + 1) * p for a, p in enumerate(counts))
    prepared = scheme.outcomes(K - 1, acceptance)
    hit = sum(counts[a] for a in prepared)
    width = K - 1 + lead
    verifying, drafting = K + width * len(prepared), 1 + width
    if costs.num_texts > 1 and prepared:
        verifying = drafting = max(verifying, drafting)
    seconds = costs(verifying) if prepared else costs.without_masks(verifying)
    seconds += around + (1 - hit) * (costs(drafting) + around)
    return (tokens + 1 - hit) / seconds


def candidates(max_K: int) -> list[Scheme]:
    """Every scheme worth a thought with drafts of up to max_K tokens."""
    found = [Scheme("plain", 1)]
    for K in range(2, max_K + 1):
        found.append(Scheme("two_pass", K))
        found += [Scheme("partial", K, m) for m in range(1, min(K, 5))]
        found.append(Scheme("one_pass", K))
    return found


class Chooser:
    """Takes the fastest scheme by the running acceptance, again every few forwards.

    Keep one and pass it to every call of `decode`: what it has learned about drafts holds for the
    next text as well, better than the hope it starts with.

    Args:
        costs: of this machine and batch size, see `measure`.
        max_K: longest draft; a model drafts best up to the block size of its training.
        every: forwards between two decisions.
        explore: forwards of plain decoding after which a short draft is tried again, or acceptance
            would never be heard of any more; twice as many after each try in vain, up to 8 times.
    """

    def __init__(self, costs: Costs, max_K: int, *, every: int = 8, explore: int = 32):
        self.costs = costs
        self.lead = 1
        """masks of a block that guess nothing new: the decoder sets it to 0 for a model that was
        trained `shifted`"""
        self.acceptance = Acceptance()
        self.looked_up = Acceptance()
        """of guesses from a look-up, which come without mask rows"""
        self.every, self.explore = every, explore
        self.schemes = candidates(max_K)
        self.current = self.schemes[0]
        self.picked: dict[str, int] = {}
        """forwards by scheme"""
        self.speed = 0.0
        """tokens a second expected of the current scheme"""
        self._forwards = 0
        self._plain = 0
        """in a row, since the last try"""
        self._pause = explore
        self._trial = Scheme("two_pass", min(4, max_K)) if max_K > 1 else None

    def __call__(self) -> Scheme:
        """The scheme of the next forward."""
        if self._forwards % self.every == 0:
            speeds = [speed(s, self.costs, self.acceptance, self.lead) for s in self.schemes]
            self.speed = max(speeds)
            self.current = self.schemes[speeds.index(self.speed)]
        self._forwards += 1
        scheme = self.current
        if scheme.name != "plain":
            self._plain, self._pause = 0, self.explore
        elif self._trial is not None:
            self._plain += 1
            if self._plain >= self._pause:
                # two forwards: one drafts, one verifies
                scheme = self._trial
                if self._plain > self._pause:
                    self._plain, self._pause = 0, min(2 * self._pause, 8 * self.explore)
        label = f"{scheme.name} K={scheme.K}"
        label += f" m={scheme.num_blocks}" if scheme.name == "partial" else ""
        self.picked[label] = self.picked.get(label, 0) + 1
        return scheme

    def worth(self, num_guesses: int) -> bool:
        """True if judging so many looked-up guesses, with the blocks that the current scheme puts
        behind them, promises no less than that scheme does."""
        counts = self.looked_up.counts(num_guesses)
        tokens = sum((a + 1) * p for a, p in enumerate(counts))
        blocks = len(self.current.outcomes(num_guesses, self.looked_up))
        rows = 1 + num_guesses + blocks * (self.current.K - 1 + self.lead)
        seconds = self.costs(rows) if blocks else self.costs.without_masks(rows)
        return tokens / (seconds + self.costs.around[1]) >= self.speed
