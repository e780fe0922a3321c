"""Which cache slots the recurrences of a loop share; the table is at the top of `cache.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Sharing(Protocol):
    """Which slot a recurrence reads and writes."""

    def slots(self, num_recurrences: int) -> int:
        """Slots that a token of that many recurrences fills."""
        ...

    def slot(self, recurrence: int | Tensor) -> int | Tensor:
        """The slot of a recurrence, counted from 0."""
        ...


@dataclass(frozen=True)
class PerDepth:
    """A slot for each recurrence; a read below a token's depth is an error. Exact, and strict."""

    def slots(self, num_recurrences: int) -> int:
        return num_recurrences

    def slot(self, recurrence: int | Tensor) -> int | Tensor:
        return recurrence


@dataclass(frozen=True)
class DeepestAvailable(PerDepth):
    """A slot for each recurrence; a token that stopped earlier answers with its deepest one (paper,
    section 6.1). The same as PerDepth while all tokens have the same depth."""


@dataclass(frozen=True)
class Ring:
    """The last `n` recurrences (paper, section 6.2: "zero-shot KV-cache sharing")."""

    n: int

    def __post_init__(self) -> None:
        _positive("Ring", self.n)

    def slots(self, num_recurrences: int) -> int:
        return min(self.n, num_recurrences)

    def slot(self, recurrence: int | Tensor) -> int | Tensor:
        return recurrence % self.n


@dataclass(frozen=True)
class FirstThenShared:
    """A slot for each of the first `n` recurrences, and one that all later ones share."""

    n: int

    def __post_init__(self) -> None:
        _positive("FirstThenShared", self.n)

    def slots(self, num_recurrences: int) -> int:
        return min(self.n + 1, num_recurrences)

    def slot(self, recurrence: int | Tensor) -> int | Tensor:
        if isinstance(recurrence, Tensor):
            return recurrence.clamp(max=self.n)
        return min(recurrence, self.n)


@dataclass(frozen=True)
class Shared(Ring):
    """One slot for all recurrences: a cache that does not grow with the depth."""

    n: int = 1


def _positive(name: str, n: int) -> None:
    if n < 1:
        raise ValueError(f"{name}: n is {n}; it counts recurrences and must be at least 1")


def sharing_of(choice: str | Sharing) -> Sharing:
    """The sharing of that name: "per-depth", "deepest", "ring:4", "first-then-shared:8", "shared".

    Raises:
        ValueError: there is no such sharing, or its number is missing or not positive.
    """
    if hasattr(choice, "slots"):
        return choice  # type: ignore[return-value]
    name, _, number = str(choice).partition(":")
    plain = {"per-depth": PerDepth, "deepest": DeepestAvailable, "shared": Shared}
    counted = {"ring": Ring, "first-then-shared": FirstThenShared}
    if name in plain and not number:
        return plain[name]()
    if name in counted and re.fullmatch(r"-?\d+", number):
        return counted[name](int(number))
    raise ValueError(
        f"there is no sharing {choice!r}; there are {', '.join(plain)}, ring:N and "
        "first-then-shared:N, N a number of recurrences"
    )


def reference_sharing(name: str, num_core_layers: int) -> Sharing:
    """The sharing that the paper's code calls `name`, where R = `num_core_layers`.

    Raises:
        ValueError: the name is unknown, or its budget would let layers read each other's keys.
    """
    if "anchor" in name:
        return FirstThenShared(8)  # hard-wired there
    found = re.search(r"compress-([sr])(\d+)", name)
    if found is None:
        lookups = {"full": PerDepth(), "latest-m4": DeepestAvailable()}
        lookups["available-m4"] = lookups["latest-m4"]
        if name not in lookups:
            raise ValueError(f"there is no sharing of the reference that is called {name!r}")
        return lookups[name]
    kind, budget = found[1], int(found[2])
    if kind == "r" or budget < 1 or budget % num_core_layers:
        raise ValueError(
            f"{name!r} would mix layers: a budget counts layer-steps and must be compress-sK with "
            f"K a multiple of the {num_core_layers} core layers"
        )
    return Ring(budget // num_core_layers)
