"""Less compute to the same accuracy: the published TRM recipe, scaled down, and what others added.

A later run reaches the published Sudoku accuracy with about an eighth of its FLOPs
(arXiv 2601.19085 and its code), another saves two fifths by its cycle schedule (arXiv 2511.08653).
What they changed is laid here as a ladder: each rung keeps the changes of those before it. Every
rung gets the same training FLOPs, so a cheaper step means more steps.

    published   AdamATan2 at a constant rate, weight decay 1, stable-max, 16 prefix rows, no clip
    prefix      one prefix row: 15 empty rows less in every product
    cycles      1 x 2, then 1 x 3, at last 2 x 3 as published: shallow while little is known
    smoothing   softmax with labels smoothed by 0.1
    muon        Muon for the matrices of f, AdamW for the rest, cosine, clipping at 1

Scaled down alike for all: width 64, batch 64, T = 2, n = 3 (published: 512, 768, 3, 6), a short
average of the weights, and 9x9 puzzles with so many clues that both ends of the ladder learn
something within about 6 minutes on one core. The published rate (1e-4) would leave all of that
at 0 %: each rung gets its own, the best of `RATES` in pilots judged on validation puzzles.

Data: 1,000 base puzzles, each visit under a fresh random symmetry. The published set holds 1,000
fixed images of each; a run as short as these sees an image twice about never.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from inward.methods.trm.settings import TRMSettings
from inward.recipes.trm import TRMRecipe
from inward.recipes.trm_data import SudokuData
from inward.train.settings import OptimSettings, TrainSettings

BUDGET = 50e12 / 3
"""training FLOPs of one run; about 6 minutes on one core"""

RATES = (4e-3, 8e-3, 16e-3)
"""what a pilot tries"""

CLUES = (52, 44, 36)
"""an equal share of the puzzles each, in training and test: easy ones come first, so that a curve
rises over the whole budget and not in one jump"""

_PHASES = ((0.0, 1, 2), (0.3, 1, 3), (0.6, 2, 3))
"""(share of the steps, T, n), the shares of CGAR (arXiv 2511.08653)"""


def _published() -> TRMRecipe:
    return TRMRecipe(
        name="sudoku9",
        about="9x9 Sudoku with many clues, to a fixed number of FLOPs",
        model=TRMSettings(
            vocab_size=11,
            seq_len=81,
            hidden_size=64,
            swiglu_multiple=32,
            num_identifiers=0,
            T=2,
            n=3,
        ),
        data=SudokuData(n=9, num_train=1000, num_valid=125, num_test=1000, clues=CLUES),
        train=TrainSettings(
            batch_rows=64,
            optim=OptimSettings(name="adam_atan2", lr=2e-3, weight_decay=1.0),
            ema_decay=0.98,
            ema_ramp=True,
            save_every=50,
            log_every=10,
        ),
    )


def _muon(recipe: TRMRecipe) -> TRMRecipe:
    optim = OptimSettings(name="muon", lr=2e-3, muon_rest="adamw", weight_decay=0.1)
    train = replace(recipe.train, optim=optim, clip=1.0, schedule="cosine", min_ratio=0.1)
    return replace(recipe, train=train)


def _prefix(recipe: TRMRecipe) -> TRMRecipe:
    return replace(recipe, model=replace(recipe.model, prefix_len=1))


def _smoothing(recipe: TRMRecipe) -> TRMRecipe:
    return replace(recipe, model=replace(recipe.model, loss="softmax", label_smoothing=0.1))


LADDER: dict[str, Callable[[TRMRecipe], TRMRecipe]] = {
    "published": lambda recipe: recipe,
    "prefix": _prefix,
    "cycles": lambda recipe: recipe,  # the last phase is the published one; `recipe` lays the rest
    "smoothing": _smoothing,
    "muon": _muon,
}


def recipe(
    name: str, seed: int, *, budget: float = BUDGET, lr: float | None = None, looks: int = 10
) -> TRMRecipe:
    """One run of a rung: as many steps as the budget pays for, with `looks` evaluations.

    Raises:
        ValueError: there is no such rung, or the budget does not pay for one step a look.
    """
    if name not in LADDER:
        raise ValueError(f"there is no rung {name!r}; rungs are {', '.join(LADDER)}")
    found, rungs = _published(), list(LADDER)
    passed = rungs[: rungs.index(name) + 1]
    for rung in passed:
        found = LADDER[rung](found)
    phases = _PHASES if "cycles" in passed else ()
    steps, schedule = _within(found.model, found.train.batch_rows, budget, phases)
    if steps < looks:
        raise ValueError(
            f"a budget of {budget:.3g} FLOPs pays for {steps} steps of {name}, fewer than "
            f"{looks} evaluations; raise it"
        )
    optim = found.train.optim if lr is None else replace(found.train.optim, lr=lr)
    train = replace(
        found.train,
        steps=steps,
        seed=seed,
        optim=optim,
        warmup=max(1, round(0.03 * steps)),  # as published: 2,000 of 65,104
        eval_every=max(1, steps // looks),
    )
    model = replace(found.model, cycle_schedule=schedule)
    return replace(found, model=model, train=train)


def _within(
    model: TRMSettings, batch_rows: int, budget: float, phases: tuple[tuple[float, int, int], ...]
) -> tuple[int, tuple[tuple[int, int, int], ...]]:
    """(steps, cycle schedule) that spend the budget; `phases` are (share of the steps, T, n)."""
    if not phases:
        return int(budget / step_flops(model, batch_rows)), ()
    ends = [*(start for start, _, _ in phases[1:]), 1.0]
    mean = sum(
        (end - start) * step_flops(replace(model, T=T, n=n), batch_rows)
        for (start, T, n), end in zip(phases, ends, strict=True)
    )
    steps = int(budget / mean)
    return steps, tuple((round(start * steps), T, n) for start, T, n in phases)


def step_flops(model: TRMSettings, batch_rows: int, step: int | None = None) -> float:
    """FLOPs of one training step: forward, and twice that backward where a graph is kept.

    A multiply-add is two. `step` counts from 0, for the cycle schedule; None: without it. Norms,
    the loss and the optimizer are left out; of the optimizers Muon has matrix products of its own,
    about 2 % at 64 rows.
    """
    from inward.methods.trm.model import TRM

    network = TRM(replace(model, cycle_schedule=()))
    evaluation, read_out = network.flops()
    T, n = model.cycles(step)
    total = T * model.evaluations(n)
    kept = total - network.first_with_gradient(T, n)
    return batch_rows * ((total + 2 * kept) * evaluation + 3 * read_out)
