"""The recipe that a model or a run was made by, read back from its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.common.files import read_object

if TYPE_CHECKING:
    from inward.recipes.trm import TRMRecipe


def recipe_of(model: str | os.PathLike) -> TRMRecipe:
    """The resolved recipe that a model was trained by: recipe.json beside it, or its run's.

    Raises FileNotFoundError if there is none, ValueError if it names no known recipe or field.
    """
    from inward.hub import resolve

    folder = resolve(Path(model) if Path(model).exists() else str(model))
    for path in (folder / "recipe.json", folder.parent / "config.json"):
        if path.is_file():
            return read_recipe(path)
    raise FileNotFoundError(
        f"{folder} has no recipe.json that tells what it was trained on; "
        "name the task and a file of puzzles (--task, --data)"
    )


def read_recipe(path: Path) -> TRMRecipe:
    """The recipe that `asdict` wrote as JSON."""
    from inward.recipes import find

    try:
        saved = read_object(path, "name")
        return _restored(find(saved["name"])(), saved)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a recipe that this version knows: {error}") from error


def _restored(default: Any, saved: Mapping[str, Any]) -> Any:
    """`default` with the saved values; JSON's lists become tuples again."""
    if not isinstance(saved, Mapping):
        raise ValueError(f"{type(default).__name__} holds {saved!r}; expected names with values")
    known = {entry.name for entry in fields(default)}
    if unknown := sorted(set(saved) - known):
        raise ValueError(f"{type(default).__name__} has no field {', '.join(unknown)}")
    values = {}
    for name, value in saved.items():
        current = getattr(default, name)
        values[name] = _restored(current, value) if is_dataclass(current) else _tuples(value)
    return replace(default, **values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
