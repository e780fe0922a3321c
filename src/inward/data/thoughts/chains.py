"""Arithmetic chains with their steps: an offline stand-in for GSM8k-Aug, where spoken CoT wins.

    Ann has 5 coins. Bob has 3 coins more than Ann. ... How many coins has Bob?
    a=5. b=a+3. ... b=?                                       (symbolic rendering)
    steps <<5+3=8>>   answer 8

GSM8k-Aug (arXiv 2405.14838) cannot be made without a language model; its lines, `<<a*b=c>>` steps
and number answers, can. A chain starts from a number, and every quantity but the first follows from
an earlier one. Sentences are shuffled, and side branches that the question does not need can be
added, so the chain must be found before it is computed. Every value lies in 1 to `max_value`.

What is unusual: each chain knows a second start (`other_start`) that stays in range and, as every
operation is one to one, changes every step and the answer: `swapped` asks with it, and an answer
guessed from the rest of the text cannot be right for both. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from inward.data.thoughts.records import Record

NAMES = (
    "Ann Bob Cat Dan Eve Fay Gus Hal Ida Jay Kim Leo Mia Ned Oda Pam Roy Sue Tim Una Vic Zoe"
).split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MAX_TRIES = 5000
"""Chains drawn for one record before the settings count as impossible."""

Rendering = Literal["text", "symbolic"]
Link = tuple[int, str, int]
"""(index of the quantity it follows from, operation, operand)"""

_PHRASES = {
    "+": "{name} has {k} coins more than {source}.",
    "-": "{name} has {k} coins fewer than {source}.",
    "*": "{name} has {k} times as many coins as {source}.",
}


@dataclass(frozen=True)
class ChainSettings:
    """How chains are drawn.

    min_steps, max_steps   operations from the start to what is asked, equally likely
    num_branches           quantities that the question does not need
    max_value              largest number that may occur
    max_term, max_factor   largest k of + k and - k, and of * k (from 2)
    shuffled               sentences in any order; False: in the order of the computation
    """

    min_steps: int = 2
    max_steps: int = 6
    num_branches: int = 2
    max_value: int = 99
    max_term: int = 20
    max_factor: int = 4
    shuffled: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.min_steps <= self.max_steps or self.num_branches < 0:
            raise ValueError(
                f"min_steps {self.min_steps}, max_steps {self.max_steps}, num_branches "
                f"{self.num_branches}: use 1 <= min_steps <= max_steps and 0 or more branches"
            )
        needed = self.max_steps + self.num_branches + 1
        if needed > len(NAMES):
            raise ValueError(f"{needed} quantities, but there are {len(NAMES)} names; use fewer")
        if self.max_value < 10 or self.max_term < 1 or self.max_factor < 1:
            raise ValueError(
                f"max_value {self.max_value} must be 10 or more, max_term {self.max_term} and "
                f"max_factor {self.max_factor} 1 or more (1: no multiplication)"
            )


@dataclass(frozen=True)
class Chain:
    """Quantity 0 is `start`; quantity i + 1 follows from links[i]; `asked` is the one asked for."""

    start: int
    other_start: int
    links: tuple[Link, ...]
    asked: int

    @property
    def swapped(self) -> Chain:
        """The same chain from the other start."""
        return Chain(self.other_start, self.start, self.links, self.asked)

    def values(self) -> list[int]:
        """Every quantity."""
        found = [self.start]
        for source, operation, k in self.links:
            found.append(_apply(found[source], operation, k))
        return found

    def needed(self) -> list[int]:
        """Indices of the links from the start to what is asked, in order."""
        path, at = [], self.asked
        while at:
            path.append(at - 1)
            at = self.links[at - 1][0]
        return path[::-1]


def _apply(value: int, operation: str, k: int) -> int:
    return {"+": value + k, "-": value - k, "*": value * k}[operation]


def draw_chain(settings: ChainSettings, rng: np.random.Generator) -> Chain:
    """Draw chains until one has two starts in range.

    Raises ValueError after MAX_TRIES chains.
    """
    for _ in range(MAX_TRIES):
        num_steps = int(rng.integers(settings.min_steps, settings.max_steps + 1))
        sources = [*range(num_steps)]
        sources += [int(rng.integers(num_steps + i)) for i in range(settings.num_branches)]
        links = tuple((source, *_operation(settings, rng)) for source in sources)
        starts = rng.permutation(np.arange(1, settings.max_value + 1)).tolist()
        good = []
        for start in starts:
            values = Chain(start, start, links, num_steps).values()
            if min(values) >= 1 and max(values) <= settings.max_value:
                good.append(start)
            if len(good) == 2:
                return Chain(good[0], good[1], links, num_steps)
    raise ValueError(
        f"no chain of {settings.min_steps} to {settings.max_steps} steps stayed within 1 to "
        f"{settings.max_value} in {MAX_TRIES} tries; use a larger max_value or smaller terms"
    )


def _operation(settings: ChainSettings, rng: np.random.Generator) -> tuple[str, int]:
    operation = "+-*"[int(rng.integers(3 if settings.max_factor > 1 else 2))]
    if operation == "*":
        return operation, int(rng.integers(2, settings.max_factor + 1))
    return operation, int(rng.integers(1, settings.max_term + 1))


# --------------------------------------------------------------------------------------------------
# Records


def render(
    chain: Chain,
    rng: np.random.Generator,
    *,
    rendering: Rendering = "text",
    shuffled: bool = True,
) -> Record:
    """Write a chain down, under drawn names and in drawn order (or in that of the chain)."""
    if rendering not in ("text", "symbolic"):
        raise ValueError(f"rendering is {rendering!r}; choose 'text' or 'symbolic'")
    pool = NAMES if rendering == "text" else list(LETTERS)
    num = len(chain.links) + 1
    names = [pool[i] for i in rng.permutation(len(pool))[:num]]
    order = rng.permutation(num).tolist() if shuffled else list(range(num))
    meta = {"names": names, "order": order, "rendering": rendering, "shuffled": shuffled}
    return _written(chain, meta)


def _written(chain: Chain, how: dict[str, Any]) -> Record:
    """`how`: names, order, rendering, shuffled; kept in the record's meta."""
    names, rendering = how["names"], how["rendering"]
    values = chain.values()
    told = [_sentence(chain, i, names, rendering) for i in how["order"]]
    asked = names[chain.asked]
    told.append(f"How many coins has {asked}?" if rendering == "text" else f"{asked}=?")
    steps = []
    for i in chain.needed():
        source, operation, k = chain.links[i]
        steps.append(f"<<{values[source]}{operation}{k}={values[i + 1]}>>")
    meta: dict[str, Any] = {
        "start": chain.start,
        "other_start": chain.other_start,
        "links": [list(link) for link in chain.links],
        "asked": chain.asked,
        **how,
    }
    return Record(" ".join(told), tuple(steps), str(values[chain.asked]), meta)


def _sentence(chain: Chain, i: int, names: Sequence[str], rendering: Rendering) -> str:
    if i == 0:
        told = f"{names[0]} has {chain.start} coins."
        return told if rendering == "text" else f"{names[0]}={chain.start}."
    source, operation, k = chain.links[i - 1]
    if rendering == "symbolic":
        return f"{names[i]}={names[source]}{operation}{k}."
    return _PHRASES[operation].format(name=names[i], k=k, source=names[source])


def chain_of(record: Record) -> Chain:
    """The chain in a record's `meta`; ValueError if the record was not made here."""
    meta = record.meta
    missing = [n for n in ("start", "other_start", "links", "asked") if n not in meta]
    if missing:
        raise ValueError(
            f"this record is no chain: meta lacks {', '.join(missing)}; make chains with "
            "inward.data.thoughts.chains.generate"
        )
    links = tuple((int(s), str(op), int(k)) for s, op, k in meta["links"])
    return Chain(meta["start"], meta["other_start"], links, meta["asked"])


def rendered(
    record: Record, rng: np.random.Generator, *, rendering: Rendering | None = None
) -> Record:
    """The same chain written anew: other names, another order if it had a drawn one."""
    return render(
        chain_of(record),
        rng,
        rendering=rendering or record.meta["rendering"],
        shuffled=record.meta["shuffled"],
    )


def swapped(record: Record) -> Record:
    """The same text but for the number it starts from, with another answer."""
    how = {name: record.meta[name] for name in ("names", "order", "rendering", "shuffled")}
    return _written(chain_of(record).swapped, how)


def key(record: Record) -> tuple[Any, ...]:
    """Equal for chains that ask the same computation, whatever names, order, branches or start."""
    chain = chain_of(record)
    starts = tuple(sorted((chain.start, chain.other_start)))
    return (starts, tuple(chain.links[i][1:] for i in chain.needed()))


def generate(
    num: int,
    *,
    seed: int,
    settings: ChainSettings = ChainSettings(),
    rendering: Rendering = "text",
    exclude: Iterable[Record] = (),
    pairs: bool = False,
) -> list[Record]:
    """Make `num` chains, no two the same; chain i depends on (seed, i) and what it may not be.

    exclude   chains whose computation may not appear, from either start: the test set
    pairs     every second record is the one before it from the other start
    """
    if num < 1 or (pairs and num % 2):
        raise ValueError(f"num is {num}; give 1 or more chains, an even number with pairs=True")
    seen = {key(record) for record in exclude}
    records: list[Record] = []
    while len(records) < num:
        rng = np.random.default_rng([seed, len(records)])
        for _ in range(MAX_TRIES):
            chain = draw_chain(settings, rng)
            record = render(chain, rng, rendering=rendering, shuffled=settings.shuffled)
            if (own := key(record)) not in seen:
                break
        else:
            raise ValueError(
                f"all chains of {settings} seem to be used after {len(records)} records; allow "
                "longer chains or larger numbers"
            )
        seen.add(own)
        records += [record, swapped(record)] if pairs else [record]
    return records
