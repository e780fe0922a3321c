"""Decoding schemes by name, running acceptance, and what forwards cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

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
