"""Complete runs as Python functions: one function returns one frozen config, every number with its
source.

    inward train                          lists them
    inward train sudoku6                  runs one
    inward train sudoku6 --train.steps 10 --model.hidden-size 32

Looking a recipe up imports no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from typing import Any

RECIPES = {
    "sudoku4": "inward.recipes.trm:sudoku4",
    "sudoku6": "inward.recipes.trm:sudoku6",
    "sudoku9": "inward.recipes.trm:sudoku9",
    "maze11": "inward.recipes.trm:maze11",
    "arc1-small": "inward.recipes.arc:arc1_small",
    "arc2-small": "inward.recipes.arc:arc2_small",
    "trm-sudoku-extreme": "inward.recipes.trm:published_sudoku_extreme",
    "trm-sudoku-extreme-attention": "inward.recipes.trm:published_sudoku_extreme_attention",
    "trm-maze-hard": "inward.recipes.trm:published_maze_hard",
    "trm-arc1": "inward.recipes.trm:published_arc1",
    "trm-arc2": "inward.recipes.trm:published_arc2",
}


def find(name: str) -> Callable[[], Any]:
    """The recipe function of that name.

    Raises:
        ValueError: there is none; close matches are named.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"recipes are {', '.join(RECIPES)}"
        raise ValueError(f"there is no recipe {name!r}; {hint}")
    module, function = RECIPES[name].split(":")
    return getattr(import_module(module), function)
