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
    "cot": "inward.recipes.own_thoughts:cot",
    "coconut": "inward.recipes.own_thoughts:coconut",
    "interleaved": "inward.recipes.own_thoughts:interleaved",
    "tidar": "inward.recipes.own_drafts:tidar",
    "tidar-adapter": "inward.recipes.own_drafts:tidar_adapter",
    "huginn-finetune": "inward.recipes.own_huginn:finetune",
    "sudoku4": "inward.recipes.trm:sudoku4",
    "sudoku6": "inward.recipes.trm:sudoku6",
    "sudoku9": "inward.recipes.trm:sudoku9",
    "sudoku9-cube-start": "inward.recipes.trm_cube:sudoku9_cube_start",
    "sudoku9-cube": "inward.recipes.trm_cube:sudoku9_cube",
    "maze11": "inward.recipes.trm:maze11",
    "maze-open": "inward.recipes.trm:maze_open",
    "arc1-small": "inward.recipes.arc:arc1_small",
    "arc2-small": "inward.recipes.arc:arc2_small",
    "huginn-hops": "inward.recipes.huginn:hops",
    "huginn-add": "inward.recipes.huginn:addition",
    "huginn-stories": "inward.recipes.huginn_stories:stories",
    "prosqa-coconut": "inward.recipes.coconut:prosqa_symbolic",
    "prosqa-interleaved": "inward.recipes.coconut:prosqa_interleaved",
    "prosqa-interleaved-learned": "inward.recipes.coconut:prosqa_learned",
    "prosqa-cot": "inward.recipes.coconut:prosqa_cot",
    "chains-coconut": "inward.recipes.coconut:chains_symbolic",
    "tidar-stories": "inward.recipes.tidar:stories",
    "tidar-stories-adapter": "inward.recipes.tidar:stories_adapter",
    "tidar-huginn-stories": "inward.recipes.huginn_stories:drafts",
    "tidar-smollm-adapter": "inward.recipes.tidar:smollm_adapter",
    "trm-sudoku-extreme": "inward.recipes.trm:published_sudoku_extreme",
    "trm-sudoku-extreme-attention": "inward.recipes.trm:published_sudoku_extreme_attention",
    "trm-maze-hard": "inward.recipes.trm:published_maze_hard",
    "trm-arc1": "inward.recipes.trm:published_arc1",
    "trm-arc2": "inward.recipes.trm:published_arc2",
    "huginn-0125": "inward.recipes.huginn:published",
    "gsm8k-smollm-interleaved": "inward.recipes.coconut:gsm8k_smollm",
    "gsm8k-smollm-coconut": "inward.recipes.coconut:gsm8k_smollm_coconut",
    "coconut-gsm8k-cot": "inward.recipes.coconut_published:published_gsm8k_cot",
    "coconut-gsm8k": "inward.recipes.coconut_published:published_gsm8k",
    "coconut-prontoqa": "inward.recipes.coconut_published:published_prontoqa",
    "coconut-prosqa": "inward.recipes.coconut_published:published_prosqa",
    "tidar-qwen2.5-1.5b": "inward.recipes.tidar:published_qwen_1_5b",
    "tidar-qwen3-8b": "inward.recipes.tidar:published_qwen_8b",
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
