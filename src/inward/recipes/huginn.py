"""Runs of Huginn: small ones that train here, their controls, and the published pre-training.

The small recipes were found by short probes, one seed each, on one core. What learned, against what
had not begun to learn when it was stopped (after 150 to 600 steps, so nothing is ruled out):
- No blocks outside the core. With one before and one after it, one arrow was read rightly at step
  200 and two were not followed at 600; with the core alone two hops came within 100 steps of one.
  The number of nodes differed as well.
- Walks whose nodes are sometimes shown, rather than all hidden.
- Few nodes: with 16 instead of 8 or 10, two hops had only begun at step 1000.

    huginn-hops    k-hop pointer chasing, the evidence that depth helps (benchmarks/huginn/depth.py)
    huginn-add     addition of several numbers
    huginn-0125    the published 3.5B model, NOT RUN HERE
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from inward.data.texts.arithmetic_text import Addition
from inward.data.texts.hops import Hops
from inward.data.texts.text import RowMaker, TextQuestions, TextSource, TokenSource, questions
from inward.methods.huginn.settings import Depth, HuginnSettings, Watch
from inward.tasks.addition import AdditionTask
from inward.tasks.hops import HopsTask
from inward.train.settings import OptimSettings, TrainSettings

if TYPE_CHECKING:
    from torch import nn

    from inward.methods.huginn.model import HuginnForCausalLM
    from inward.train.loop import Run

_SPLIT_SEEDS = {"test": 1, "valid": 2}


# --------------------------------------------------------------------------------------------------
# Data. Rows are made on the fly and never repeat; held-out questions come from streams of their own


@dataclass(frozen=True)
class _Generated:
    num_valid: int = 40
    """held-out questions of each difficulty looked at during training"""
    num_test: int = 500
    """and after it"""
    hardest: int = 0
    """largest difficulty of held-out questions; 0: the largest of training"""
    seed: int = 0
    """of the held-out questions; training rows depend on the seed of training"""

    def rows(self) -> RowMaker:
        raise NotImplementedError

    def trained(self) -> range:
        """Difficulties that training rows have."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        return self.rows().vocab_size

    def difficulties(self) -> range:
        """Difficulties of held-out questions."""
        trained = self.trained()
        return range(trained.start, max(trained.stop, self.hardest + 1))

    def questions(self, split: str) -> dict[int, TextQuestions]:
        """Held-out questions by difficulty, "valid" or "test"; the same for the same fields."""
        num, seed = getattr(self, f"num_{split}"), 10 * self.seed + _SPLIT_SEEDS[split]
        return {
            k: questions(self.rows(), num, difficulty=k, seed=seed) for k in self.difficulties()
        }

    def source(self, seed: int) -> TextSource:
        return TextSource(self.rows(), seed=seed)


@dataclass(frozen=True)
class HopsData(_Generated):
    """Pointer chasing (`inward.data.texts.hops`); difficulty is the number of hops."""

    num_nodes: int = 10
    max_hops: int = 6
    """in training"""
    num_walks: int = 2
    """walks in a training row"""

    def rows(self) -> Hops:
        return Hops(self.num_nodes, self.max_hops, self.num_walks)

    def task(self) -> HopsTask:
        return HopsTask(self.rows())

    def trained(self) -> range:
        return range(1, self.max_hops + 1)


@dataclass(frozen=True)
class AdditionData(_Generated):
    """Sums in text (`inward.data.texts.arithmetic_text`); difficulty is the number of operands."""

    num_digits: int = 2
    max_operands: int = 4
    """in training"""
    num_sums: int = 1
    """sums in a training row"""

    def rows(self) -> Addition:
        return Addition(self.num_digits, self.max_operands, self.num_sums)

    def task(self) -> AdditionTask:
        return AdditionTask(self.rows())

    def trained(self) -> range:
        return range(2, self.max_operands + 1)


@dataclass(frozen=True)
class TokenData:
    """A folder of token files: `.npy`, one row of ids a line
    (`inward.data.texts.text.TokenSource`)."""

    path: str = "data/huginn-tokens"
    length: int = 4097
    """ids of a row; one more than the context, because the last one is only predicted"""
    vocab_size: int = 65536

    def source(self, seed: int) -> TokenSource:
        return TokenSource(self.path, length=self.length, vocab_size=self.vocab_size, seed=seed)


# --------------------------------------------------------------------------------------------------
# The recipe


@dataclass(frozen=True)
class HuginnRecipe:
    """One complete run of Huginn."""

    name: str
    about: str
    model: HuginnSettings = field(default_factory=HuginnSettings)
    depth: Depth = field(default_factory=Depth)
    data: HopsData | AdditionData | TokenData = field(default_factory=HopsData)
    watch: Watch = field(default_factory=Watch)
    train: TrainSettings = field(default_factory=TrainSettings)
    block_size: int = 256
    """longest text of the model"""
    depths: tuple[int, ...] = (4, 8, 16)
    """at which held-out questions are answered during training, rising"""

    @property
    def has_task(self) -> bool:
        """Whether there are questions to write and check: token files hold none."""
        return not isinstance(self.data, TokenData)

    def task(self) -> Any:
        """How to write and check questions; ValueError for a recipe without a task."""
        if isinstance(self.data, TokenData):
            raise ValueError(f"{self.name} trains on token files, which have no task")
        return self.data.task()

    def build(self) -> Run:
        """Model, source and evaluation, ready for `train`.

        Raises:
            ValueError, FileNotFoundError: shapes that do not fit, or token files that are missing;
                before the model is made.
        """
        import torch

        from inward.methods.huginn.model import HuginnForCausalLM
        from inward.methods.huginn.train import HuginnTraining
        from inward.train.loop import Run

        source = self.data.source(self.train.seed)
        config = self.model.config(
            vocab_size=self.data.vocab_size, block_size=self.block_size, depth=self.depth
        )
        torch.manual_seed(self.train.seed)
        model = HuginnForCausalLM(config)
        return Run(
            model=HuginnTraining(model, depth=self.depth, watch=self.watch),
            source=source,
            evaluate=self.evaluation(),
            config=asdict(self),
        )

    def asked(self, model: Any) -> dict[str, Any]:
        """How models of this recipe are asked, for inward.json: walks have no end token."""
        return {"max_new_tokens": 1} if isinstance(self.data, HopsData) else {}

    def evaluation(self) -> Callable[[nn.Module], dict[str, float]] | None:
        """Accuracy on held-out questions at each of `depths`: `trained_r8` over the difficulties of
        training, `beyond_r8` over harder ones; None for token files."""
        if isinstance(self.data, TokenData):
            return None
        held, trained = self.data.questions("valid"), self.data.trained()

        def evaluate(model: nn.Module) -> dict[str, float]:
            from inward.methods.huginn.depths import right_by_depth

            shares = {
                difficulty: right_by_depth(_inner(model), questions, self.depths).mean(0)
                for difficulty, questions in held.items()
            }
            found = {}
            for i, depth in enumerate(self.depths):
                for name, known in (("trained", True), ("beyond", False)):
                    own = [float(s[i]) for d, s in shares.items() if (d in trained) == known]
                    if own:
                        found[f"{name}_r{depth}"] = sum(own) / len(own)
            return found

        return evaluate


def _inner(model: Any) -> HuginnForCausalLM:
    from inward.methods.huginn.train import HuginnTraining

    assert isinstance(model, HuginnTraining), "the loop evaluates what it trains"
    return model.model


# --------------------------------------------------------------------------------------------------
# Small recipes: run here

_FAST = TrainSettings(
    steps=2500,
    batch_rows=32,
    optim=OptimSettings(
        name="muon",
        muon_lr=6e-3,
        muon_rest="adamw",
        lr=3e-3,
        weight_decay=0.1,
        decay_vectors=False,
    ),
    clip=1.0,
    schedule="cosine",
    warmup=100,
    min_ratio=0.1,
    ema_decay=0.99,
    ema_ramp=True,
    eval_every=500,
    save_every=100,
    log_every=20,
)

_SMALL = HuginnSettings(width=64, num_heads=2, mlp_width=128, prelude=0, core=2, coda=0)


def hops() -> HuginnRecipe:
    """Walks of up to 7 hops over 10 nodes; questions of up to 9."""
    return HuginnRecipe(
        name="huginn-hops",
        about="k-hop pointer chasing, a core of two blocks; five minutes on one core",
        model=_SMALL,
        depth=Depth(mean=8, backprop=3, ramp=800),
        data=HopsData(num_nodes=10, max_hops=7, hardest=9),
        train=_FAST,
        depths=(2, 4, 8, 16, 32),
    )


def addition() -> HuginnRecipe:
    """Two to four numbers of two digits; questions of up to six."""
    return HuginnRecipe(
        name="huginn-add",
        about="addition of 2 to 4 numbers of two digits, written out; not tried yet",
        model=replace(_SMALL, width=96),
        depth=Depth(mean=8, backprop=4, ramp=800),
        data=AdditionData(num_sums=2, hardest=6),
        train=replace(_FAST, steps=6000),
        depths=(2, 4, 8, 16),
    )


# --------------------------------------------------------------------------------------------------
# Controls of huginn-hops: the same rows in the same order, one thing changed

_ONCE = Depth(mean=1, backprop=1, sampling="fixed")


def _flat(recipe: HuginnRecipe, *, rate: float = 1.0) -> HuginnRecipe:
    """As many different blocks as the recipe runs at its mean depth, each once."""
    core, optim = recipe.model.core * recipe.depth.mean, recipe.train.optim
    slower = replace(optim, lr=rate * optim.lr, muon_lr=rate * (optim.muon_lr or optim.lr))
    return replace(
        recipe,
        model=replace(recipe.model, core=core),
        depth=_ONCE,
        train=replace(recipe.train, optim=slower),
    )


CONTROLS: dict[str, Callable[[HuginnRecipe], HuginnRecipe]] = {
    "base": lambda recipe: recipe,
    "flat-params": lambda recipe: replace(recipe, depth=_ONCE),
    "flat-flops": _flat,
    "flat-flops-slow": lambda recipe: _flat(recipe, rate=1 / 3),
    "fixed-depth": lambda recipe: replace(
        recipe, depth=replace(recipe.depth, sampling="fixed", ramp=0)
    ),
    "row-depth": lambda recipe: replace(recipe, depth=replace(recipe.depth, sampling="row")),
    "zero-state": lambda recipe: replace(recipe, model=replace(recipe.model, state_init="zero")),
}
"""base: depth drawn anew at every step. flat-params: the core runs once, an ordinary network of
equal parameters. flat-flops: as many *different* blocks as base runs at its mean depth, and the
same with a third of the rate, because a deep network may want less. fixed-depth: always the mean
depth. row-depth: a depth of its own for each row. zero-state: thinking starts from zeros."""


def control(name: str, seed: int, *, recipe: HuginnRecipe | None = None) -> HuginnRecipe:
    """One run of the experiment: a variant of `recipe` (default huginn-hops), with a seed of
    its own for weights, depths and rows. All runs answer the same held-out questions.

    Raises:
        ValueError: there is no such variant.
    """
    if name not in CONTROLS:
        raise ValueError(f"there is no variant {name!r}; variants are {', '.join(CONTROLS)}")
    changed = CONTROLS[name](hops() if recipe is None else recipe)
    depths = changed.depths if changed.depth.mean > 1 else (1,)
    return replace(changed, train=replace(changed.train, seed=seed), depths=depths)


# --------------------------------------------------------------------------------------------------
# Published: NOT RUN HERE. Sources: arXiv 2502.05171, section 4, and the launch files of the
# released code (seal-rg/recurrent-pretraining, 59e0b69). Where they differ (section 4.1 has a rate
# of 5e-4, section 4.3 and the launch file 4e-5), the launch file is followed: it made the weights.


def published() -> HuginnRecipe:
    """huginn-0125: 795B tokens in 47,360 steps of 16.8M, about 172 GFLOP a token (1.4e23 FLOP in
    all) on 4,096 MI250X dies; 1.0 to 1.2M tokens a second, so 8 to 9 days.

    The rows are those of tomg-group-umd/huginn-dataset, 4,097 ids each, as .npy files. Not built
    here: the sharding of the optimizer's state over a node (ZeRO-1), without which a device holds
    43 GB of weights, means and squares.
    """
    return HuginnRecipe(
        name="huginn-0125",
        about="NOT RUN HERE: the published 3.5B pre-training; 1.4e23 FLOP, ~9 days on 4,096 MI250X",
        model=HuginnSettings(),
        depth=Depth(mean=32, backprop=8),
        data=TokenData(),
        watch=Watch(action="stop", after=4096),
        train=TrainSettings(
            steps=47_360,
            batch_rows=4096,
            optim=OptimSettings(
                name="ellis_adam",
                lr=4e-5,
                weight_decay=4e-5,
                betas=(0.9, 0.95),
                decay_vectors=False,
            ),
            clip=1.0,
            schedule="constant",
            warmup=4096,
            ema_decay=0.0,
            save_every=500,
            precision="bfloat16",
        ),
        block_size=4096,
    )
