"""Checks that settings and training sources share; each raises the ValueError that it says. No
torch, and nothing of the package: anybody may import it."""

from __future__ import annotations

import inspect
from functools import cache, partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

MAX_SEED = 2**32 - 1
"""One word of a seed sequence: [seed, step, row] cannot be ambiguous."""


def need(good: bool, name: str, value: object, limit: str) -> None:
    """Raise the one kind of error that a wrong field causes, unless `good`."""
    if not good:
        raise ValueError(f"{name} is {value!r}, but must be {limit}")


def takes(function: Any, num: int) -> bool:
    """Whether something can be called with so many arguments, as far as it says what it takes."""
    if not callable(function):
        return False
    if isinstance(function, _SINGLE):
        return _binds(function, num)
    return _kept(type(function).__call__, num + 1)  # an object: itself comes first


_SINGLE = (FunctionType, MethodType, BuiltinFunctionType, partial, type)


def _binds(function: Any, num: int) -> bool:
    try:
        inspect.signature(function).bind(*range(num))
    except TypeError:
        return False
    except ValueError:  # written in C, without a signature
        return True
    return True


_kept = cache(_binds)
"""Of classes: to read a signature takes long beside a small request"""


def checked_seed(seed: int) -> int:
    """The seed, if it is 0 to MAX_SEED."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed is {seed}; choose 0 to {MAX_SEED}")
    return seed


def check_slice(step: int, rows: range, num_rows: int) -> None:
    """Refuse a step below 0, and rows outside a batch of `num_rows`."""
    if step < 0:
        raise ValueError(f"step is {step}; steps count from 0")
    if len(rows) and (min(rows) < 0 or max(rows) >= num_rows):
        raise ValueError(
            f"rows {rows} lie outside a batch of {num_rows}; choose 0 to {num_rows - 1}"
        )
