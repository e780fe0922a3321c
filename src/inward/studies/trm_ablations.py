"""What carries TRM: the 6x6 Sudoku recipe with one thing changed at a time, to the same compute.

Every variant gets the training FLOPs of `base` (a multiply-add is two, backward twice the forward
of the evaluations that keep a graph), so a cheaper step means more steps. The outer loop is deep
supervision: N_sup looks at the same puzzle, the state kept, an optimizer step after each.

    base             T = 2, n = 2, two layers, N_sup = 8, EMA
    no-supervision   N_sup = 1: every step a new puzzle and a fresh state
    one-step         gradient through the last two evaluations of f only (HRM's approximation)
    single-latent    z alone (the paper's ablation)
    no-ema           raw weights
    flat-depth       no recursion: 12 different layers (the depth of base's step), outer loop kept
    flat-params      no recursion: the same 2 layers once per step, outer loop kept
    direct           12 different layers and no outer loop: an ordinary network
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from inward.methods.trm.settings import TRMSettings
from inward.recipes.trm import TRMRecipe, sudoku6

BASE_STEPS = 1250

_FLAT: dict[str, Any] = {"latents": 1, "T": 1, "n": 1, "answer_update": False}

CHANGES: dict[str, Callable[[TRMSettings], TRMSettings]] = {
    "base": lambda model: model,
    "no-supervision": lambda model: replace(model, n_sup=1),
    "one-step": lambda model: replace(model, gradient="last_k", gradient_k=2),
    "single-latent": lambda model: replace(model, latents=1),
    "no-ema": lambda model: model,
    "flat-depth": lambda model: replace(model, num_layers=12, **_FLAT),
    "flat-params": lambda model: replace(model, **_FLAT),
    "direct": lambda model: replace(model, num_layers=12, n_sup=1, **_FLAT),
}


def step_cost(model: TRMSettings) -> int:
    """Layers passed in one training step, forward and backward (one backward = two forwards)."""
    cycle = model.evaluations(model.n)
    total = model.T * cycle
    window = {"last_cycle": cycle, "last_k": model.gradient_k, "all": total}[model.gradient]
    return model.num_layers * (total + 2 * min(window, total))


def ablation(name: str, seed: int, *, base_steps: int = BASE_STEPS) -> TRMRecipe:
    """The recipe of one run.

    Raises:
        ValueError: there is no such variant.
    """
    if name not in CHANGES:
        raise ValueError(f"there is no variant {name!r}; variants are {', '.join(CHANGES)}")
    recipe = sudoku6()
    model = CHANGES[name](recipe.model)
    steps = round(base_steps * step_cost(recipe.model) / step_cost(model))
    train = replace(
        recipe.train,
        steps=steps,
        seed=seed,
        warmup=max(1, steps * recipe.train.warmup // recipe.train.steps),
        ema_decay=0.0 if name == "no-ema" else recipe.train.ema_decay,
        eval_every=max(1, steps // 10),
    )
    return replace(recipe, model=model, train=train)
