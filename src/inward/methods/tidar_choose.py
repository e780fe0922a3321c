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

import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inward.methods.tidar_batch import Runner

NAMES = ("plain", "diffusion", "two_pass", "one_pass", "partial")


@dataclass(frozen=True)
class Scheme:
    """How drafts are made.

    plain      a token a forward
    diffusion  no verification: blocks of K are unmasked where the model is sure (fast and worse)
    two_pass   a forward drafts, the next one verifies
    one_pass   every verification carries a mask block for each of its outcomes (the paper)
    partial    only for the `num_blocks` likeliest outcomes; if another one comes, a draft pass

    K: tokens of a draft (the final first one included), and masks of a block.

    Raises:
        ValueError: an unknown name, K < 1, or no block for partial.
    """

    name: str = "one_pass"
    K: int = 8
    num_blocks: int = 2

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"scheme is {self.name!r}; there are {', '.join(NAMES)} and auto")
        if self.K < 1:
            raise ValueError(f"K is {self.K}; a draft has at least 1 token")
        if self.num_blocks < 1:
            raise ValueError(
                f"num_blocks is {self.num_blocks}, must be at least 1; for none use 'two_pass'"
            )

    def outcomes(self, num_guesses: int, acceptance: Acceptance) -> tuple[int, ...]:
        """Numbers of guesses that stand (0..num_guesses) for which the next draft is prepared."""
        if self.name == "plain":
            return ()
        if self.name == "one_pass" or num_guesses == 0:
            return tuple(range(num_guesses + 1))
        if self.name == "two_pass":
            return ()
        return acceptance.likeliest(num_guesses, self.num_blocks)


@dataclass
class Acceptance:
    """How far drafts get: for each guess, how often it stood when all before it had.

    prior: the rate believed at first, worth `weight` observations; high, so that drafts are tried.
    memory: verifications after which an observation counts 1/e: texts change their mood.
    """

    prior: float = 0.85
    weight: float = 2.0
    memory: float = 64.0
    stood: list[float] = field(default_factory=list)
    tried: list[float] = field(default_factory=list)
    histogram: dict[int, int] = field(default_factory=dict)
    """guesses that stood -> how often, never forgotten"""

    def add(self, offered: int, accepted: int) -> None:
        """`accepted` of `offered` guesses stood."""
        assert 0 <= accepted <= offered, f"{accepted} of {offered} guesses"
        keep = 1 - 1 / self.memory
        self.stood = [keep * n for n in self.stood] + [0.0] * (offered - len(self.stood))
        self.tried = [keep * n for n in self.tried] + [0.0] * (offered - len(self.tried))
        for i in range(min(accepted + 1, offered)):
            self.tried[i] += 1.0
            self.stood[i] += float(i < accepted)
        self.histogram[accepted] = self.histogram.get(accepted, 0) + 1

    def rate(self, guess: int) -> float:
        """P(guess stands | those before it stood), guesses counted from 0. Never tried so far:
        the rate of the last one that was."""
        if guess >= len(self.tried):
            return self.rate(len(self.tried) - 1) if self.tried else self.prior
        before = self.rate(guess - 1) if guess else self.prior
        stood = self.stood[guess] + self.weight * before
        return stood / (self.tried[guess] + self.weight)

    def counts(self, num_guesses: int) -> list[float]:
        """P(exactly a of them stand), a = 0..num_guesses."""
        reached, found = 1.0, []
        for guess in range(num_guesses):
            rate = self.rate(guess)
            found.append(reached * (1 - rate))
            reached *= rate
        return [*found, reached]

    def likeliest(self, num_guesses: int, num: int) -> tuple[int, ...]:
        """The `num` likeliest numbers of standing guesses, ascending."""
        counts = self.counts(num_guesses)
        ranked = sorted(range(len(counts)), key=lambda a: (-counts[a], a))
        return tuple(sorted(ranked[:num]))


# --------------------------------------------------------------------------------------------------
# What a forward costs


@dataclass(frozen=True)
class Costs:
    """Seconds of a forward by its number of rows per text, for one batch size.

    rows: ascending; between two of them the cost is a straight line, beyond the last it grows as
        between the last two.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    note: str = ""
    num_texts: int = 1
    """batch size"""
    clean: Costs | None = None
    """of forwards without mask rows, where these cost less: an adapter has nothing to do there"""
    around: tuple[float, float] = (0.0, 0.0)
    """seconds that a step takes outside its forward: of plain decoding, and with drafts"""

    def __post_init__(self) -> None:
        rows, seconds = self.rows, self.seconds
        good = len(rows) == len(seconds) >= 2 and all(a < b for a, b in pairwise(rows))
        if not good or rows[0] < 1 or min(seconds) <= 0 or min(self.around) < 0:
            raise ValueError(
                "costs need two or more ascending row counts with positive seconds, and none "
                f"around them below 0; got {rows}, {seconds} and {self.around}"
            )

    def __call__(self, q: int) -> float:
        """Seconds of a forward of q rows per text."""
        rows, seconds = self.rows, self.seconds
        if q <= rows[0]:
            return seconds[0]
        right = next((i for i, known in enumerate(rows) if known >= q), len(rows) - 1)
        share = (q - rows[right - 1]) / (rows[right] - rows[right - 1])
        found = seconds[right - 1] + share * (seconds[right] - seconds[right - 1])
        return max(found, seconds[0] if q > rows[-1] else 0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "rows": list(self.rows),
            "seconds": list(self.seconds),
            "note": self.note,
            "num_texts": self.num_texts,
            "clean": None if self.clean is None else self.clean.to_dict(),
            "around": list(self.around),
        }

    @staticmethod
    def from_dict(row: dict[str, Any]) -> Costs:
        """What `to_dict` gave."""
        clean = row.get("clean")
        plain, drafting = row.get("around", (0.0, 0.0))
        return Costs(
            tuple(row["rows"]),
            tuple(row["seconds"]),
            row.get("note", ""),
            row.get("num_texts", 1),
            None if clean is None else Costs.from_dict(clean),
            (plain, drafting),
        )

    def without_masks(self, q: int) -> float:
        """Seconds of a forward of q rows per text, none of them a mask."""
        return self(q) if self.clean is None else self.clean(q)


ROWS = (1, 2, 3, 4, 5, 6, 7, 9, 12, 16, 20, 24, 32, 48, 72)
MOST_CLEAN = 24
"""Rows without masks that `measure` times: a verification seldom has more."""


def measure(
    runner: Runner,
    *,
    num_texts: int = 1,
    num_cached: int = 256,
    rows: Sequence[int] = ROWS,
    repeats: int = 5,
) -> Costs:
    """Time forwards of q rows behind a filled cache: the median of `repeats` rounds, in each of
    which every q has a turn, so that a machine that slows down slows them all.

    Where the model has mask rows, all rows but one are some, so that an adapter's work is counted;
    then up to MOST_CLEAN rows are timed without masks as well.
    The head runs on all rows, but on READ_AHEAD of all texts together at most, much as in decoding.
    Several texts are of different lengths, as they become in decoding: that has its price.
    """
    import torch

    from inward.methods.tidar import TiDAR
    from inward.methods.tidar_batch import READ_AHEAD, Layout, Piece, RaggedCache

    mask_id = runner.model.mask_id if isinstance(runner.model, TiDAR) else None
    clean_rows = () if mask_id is None else tuple(q for q in rows if q <= MOST_CLEAN)

    def clean(q: int) -> Piece:
        return Piece(Layout(q), [1] * q)

    def usual(q: int) -> Piece:
        if mask_id is None or q == 1:
            return clean(q)
        return Piece(Layout(1, ((1, q - 1),)), [1] + [mask_id] * (q - 1))

    pieces = [*map(usual, rows), *map(clean, clean_rows)]

    def forward(cache: RaggedCache, piece: Piece) -> float:
        began = time.perf_counter()
        output = runner(cache, [piece] * num_texts)
        read = min(max(1, READ_AHEAD // num_texts), piece.layout.num_rows)
        output.logits([(b, i) for b in range(num_texts) for i in range(read)]).argmax(-1).tolist()
        return time.perf_counter() - began

    with torch.no_grad():
        cache = RaggedCache(num_texts, num_cached + max(rows))
        runner(cache, [Piece(Layout(num_cached), [1] * num_cached)] * num_texts)
        cache.commit([max(1, num_cached - b) for b in range(num_texts)])
        for piece in pieces:  # kernels and masks are made
            forward(cache, piece)
        rounds = [[forward(cache, piece) for piece in pieces] for _ in range(repeats)]
    middle = [sorted(column)[repeats // 2] for column in zip(*rounds, strict=True)]
    note = f"{num_texts} texts of {num_cached} tokens, {runner.lm.dtype}, {torch.get_num_threads()}"
    note = f"{note} threads, {runner.device}"
    seconds, clean_seconds = tuple(middle[: len(rows)]), tuple(middle[len(rows) :])
    bare = None
    if len(clean_rows) > 1:
        bare = Costs(clean_rows, clean_seconds, note, num_texts)
    return Costs(tuple(rows), seconds, note, num_texts, bare)


_STEPS = 8
"""Steps that are timed to learn what one takes outside its forward."""


def around(runner: Runner, costs: Costs, *, num_cached: int = 256) -> tuple[float, float]:
    """Seconds outside the forward, of a step without drafts and of one with: as many texts as the
    costs are of are decoded for a moment, from `num_cached` tokens on; the median of the steps,
    less what their rows cost."""
    import torch

    from inward.methods.tidar import TiDAR
    from inward.methods.tidar_base import context_limit
    from inward.methods.tidar_decode import Decoder
    from inward.methods.tidar_request import DecodeSettings

    model, K = runner.model, 3
    names = ["plain", "two_pass"] if isinstance(model, TiDAR) else ["plain"]
    room = min(num_cached, context_limit(runner.lm) - K * (_STEPS + 2))
    if room < 1:
        return 0.0, 0.0  # a context too short for long work
    ids = torch.ones(costs.num_texts, room, dtype=torch.long, device=runner.device)
    found = []
    for name in names:
        settings = DecodeSettings(
            scheme=name, K=K, eos_token_id=(), options=runner.options, packed=runner.packed
        )
        decoder = Decoder(model, ids, settings=settings)
        decoder.step()  # the prompt
        outside = []
        for _ in range(_STEPS):
            began = time.perf_counter()
            decoder.step()
            seconds = time.perf_counter() - began
            layouts = [row.layout for row in decoder.rows]
            cost = costs if any(layout.blocks for layout in layouts) else costs.without_masks
            outside.append(seconds - cost(max(layout.num_rows for layout in layouts)))
        found.append(max(0.0, sorted(outside)[_STEPS // 2]))
    return found[0], found[-1]


_MEASURED: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], Costs]] = (
    weakref.WeakKeyDictionary()
)


def measured(runner: Runner, num_texts: int, context: int) -> Costs:
    """`measure` with the usual rows, and `around`, once per model, dtype, thread count and number
    of texts."""
    import torch

    known = _MEASURED.setdefault(runner.model, {})
    key = (runner.lm.dtype, runner.device, torch.get_num_threads(), num_texts, *runner.fast.kind)
    if key not in known:
        num_cached = max(1, min(256, context // 2))
        costs = measure(runner, num_texts=num_texts, num_cached=num_cached)
        known[key] = replace(costs, around=around(runner, costs, num_cached=num_cached))
    return known[key]


# --------------------------------------------------------------------------------------------------
# The choice


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
