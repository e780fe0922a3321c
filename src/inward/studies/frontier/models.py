"""What an arm trains: model, batches and settings, for a schedule of stages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inward.common import IGNORE
from inward.common.checks import check_slice, checked_seed
from inward.data.thoughts.curriculum import Curriculum, Stages
from inward.data.thoughts.patterns import Pieces
from inward.data.thoughts.records import Record
from inward.data.thoughts.tokenizers import Form, add_specials, encode_record, pause_of, specials_of
from inward.methods.huginn.settings import Depth, HuginnSettings, Watch
from inward.methods.trm.settings import TRMSettings
from inward.recipes.coconut import CoconutRecipe
from inward.recipes.coconut_base import SmallBase
from inward.studies.frontier.arms import Arm, Lesson, lesson
from inward.studies.frontier.scales import Scale, Shape
from inward.studies.frontier.tasks import FrontierTask, Rewrite
from inward.train.run import Run
from inward.train.settings import OptimSettings, TrainSettings

if TYPE_CHECKING:
    import torch
    from torch import nn

Schedule = tuple[tuple[int, int], ...]
"""(stage, steps) in their order"""
POSITIONS = 320
"""longest text"""
SAME = 0.02
"""share by which the numbers of parameters of a task's arms may differ"""
_ORDER = (0, 3)  # a stream apart from that of the rows, [seed, step, row]
_WIDEST = 1 << 13


# --------------------------------------------------------------------------------------------------
# Text


@functools.lru_cache(maxsize=8)
def tokenizer_for(task: FrontierTask) -> Any:
    """Words of the task with the tokens of thinking and the pause token: every arm has them all."""
    from inward.data.thoughts.tokenizers import word_tokenizer

    tokenizer = word_tokenizer(task.words(), digits=task.digits)
    add_specials(tokenizer, pause=True)
    return tokenizer


class StagedRecords:
    """Records under a curriculum whose stages are counted in steps; row r of step t is the same
    record for every arm and schedule, because it depends on (seed, t, r) alone.

    plain: batches as Huginn reads them (input_ids and labels side by side).
    """

    def __init__(
        self,
        records: Sequence[Record],
        tokenizer: Any,
        curriculum: Curriculum,
        schedule: Schedule,
        *,
        seed: int,
        rewrite: Rewrite | None = None,
        plain: bool = False,
    ) -> None:
        self.records, self.tokenizer, self.curriculum = records, tokenizer, curriculum
        self.schedule, self.seed = schedule, checked_seed(seed)
        self.rewrite, self.plain = rewrite, plain
        self.specials, self.pause = specials_of(tokenizer), pause_of(tokenizer)
        self._orders: dict[int, np.ndarray] = {}  # a memo, not state

    def stage(self, step: int) -> int:
        """Stage of a step; the last one does not end."""
        end = 0
        for stage, steps in self.schedule:
            end += steps
            if step < end:
                return stage
        return self.schedule[-1][0]

    def batch(self, step: int, rows: range, num_rows: int) -> dict[str, torch.Tensor]:
        """See `Source.batch`."""
        from inward.data.thoughts.columns import collate

        check_slice(step, rows, num_rows)
        now = replace(self.curriculum, stages=Stages(first=self.stage(step)))
        samples = []
        for row in rows:
            rng = np.random.default_rng([self.seed, step, row])
            pieces = self._pieces(step * num_rows + row, rng)
            samples.append(now.sample(pieces, 0, rng, self.specials, pause=self.pause))
        pad = self.tokenizer.pad_token_id
        batch = collate(samples, self.specials, pad=pad, max_positions=POSITIONS)
        return _side_by_side(batch) if self.plain else batch

    def _pieces(self, position: int, rng: np.random.Generator) -> Pieces:
        epoch, place = divmod(position, len(self.records))
        if epoch not in self._orders:
            while len(self._orders) >= 2:
                del self._orders[min(self._orders)]
            order = np.random.default_rng([self.seed, epoch, *_ORDER])
            self._orders[epoch] = order.permutation(len(self.records))
        record = self.records[int(self._orders[epoch][place])]
        record = record if self.rewrite is None else self.rewrite(record, rng)
        return encode_record(record, self.tokenizer)

    def describe(self) -> dict[str, Any]:
        """Settings as JSON values."""
        return {"kind": "records by stages", "num_records": len(self.records), "seed": self.seed}


def _side_by_side(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Labels moved to the token that they name: there Huginn's loss looks for them."""
    import torch.nn.functional as F

    labels = F.pad(batch["labels"][:, :-1], (1, 0), value=IGNORE)
    kept = ("input_ids", "attention_mask", "weight")
    return {name: batch[name] for name in kept} | {"labels": labels}


def how_asked(task: FrontierTask, taught: Lesson, words: int) -> CoconutRecipe:
    """The recipe that knows how models of this lesson are asked; words: said at most."""
    return CoconutRecipe("frontier", task.name, taught.curriculum, max_new_tokens=words)


def most_words(task: FrontierTask) -> int:
    """Tokens of the longest answer of training with its steps, and room for boundaries."""
    tokenizer, form, longest = tokenizer_for(task), Form(), 0
    records = task.records("train")
    texts = [form.text(record)[len(record.question) + 1 :] for record in records]
    for start in range(0, len(texts), 1000):
        longest = max(longest, *map(len, tokenizer(texts[start : start + 1000]).input_ids))
    return longest + 3 + 2 * task.max_steps


# --------------------------------------------------------------------------------------------------
# Models of equal size


def parameters_of(model: nn.Module) -> int:
    """Each tensor once."""
    from inward.common.costs import parameters

    return parameters(model)


def closest_width(count: Callable[[int], int], wanted: int, what: str) -> int:
    """The width at which `count` (rising) is closest to a number of parameters.

    Raises ValueError if that is further than `SAME` away.
    """
    low, high = 8, 16  # narrower, a token MLP of few cells would have none
    while count(high) < wanted and high < _WIDEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < wanted else (low, middle)
    best = min((low, high), key=lambda width: abs(count(width) - wanted))
    if abs(count(best) - wanted) > SAME * wanted:
        raise ValueError(
            f"{what} has {count(best)} parameters at its closest, {wanted} are wanted, which is "
            f"more than {SAME:.0%} apart; choose another width or number of layers"
        )
    return best


@functools.lru_cache(maxsize=32)
def feed_forward(arm: Arm, task: FrontierTask, shape: Shape) -> int:
    """Width of an arm's feed-forward at which it has the parameters of the Llama type."""
    if arm.method == "coconut":
        return shape.feed_forward
    wanted = parameters_of(_llama(task, shape))
    build = _huginn if arm.method == "huginn" else _trm

    def count(width: int) -> int:
        return parameters_of(build(task, shape, width))

    return closest_width(count, wanted, f"{arm.name} on {task.name}")


def _llama(task: FrontierTask, shape: Shape) -> Any:
    from transformers import LlamaForCausalLM

    tokenizer = tokenizer_for(task)
    base = SmallBase("llama", shape.layers, shape.width, shape.heads, POSITIONS, init_std=0.1)
    built: Any = base.build(len(tokenizer), tokenizer.eos_token_id)
    if built.config.intermediate_size != shape.feed_forward:
        built.config.intermediate_size = shape.feed_forward
        built = LlamaForCausalLM(built.config)
    return built


def _huginn(task: FrontierTask, shape: Shape, width: int) -> Any:
    from inward.methods.huginn.model import HuginnForCausalLM

    tokenizer = tokenizer_for(task)
    settings = HuginnSettings(
        width=shape.width,
        num_heads=shape.heads,
        mlp_width=width,
        prelude=0,
        core=shape.layers,
        coda=0,
    )
    config = settings.config(
        vocab_size=len(tokenizer), block_size=POSITIONS, depth=Depth(shape.depth, shape.backprop)
    )
    model = HuginnForCausalLM(config)
    for owner in (model.config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(owner, name, tokenizer.eos_token_id)
    return model


def _trm(task: FrontierTask, shape: Shape, width: int) -> Any:
    from inward.methods.trm.model import TRM

    grid_task, multiple = task.grid_task(), 3.0 / (2 * shape.width)
    rows, columns = grid_task.grid
    settings = TRMSettings(
        vocab_size=grid_task.vocab_size,
        seq_len=rows * columns,
        grid=grid_task.grid,
        hidden_size=shape.width,
        num_heads=shape.heads,
        expansion=width * multiple,
        swiglu_multiple=1,
        prefix_len=1,
        num_identifiers=0,
        T=shape.T,
        n=shape.n,
        n_sup=shape.n_sup,
    )
    return TRM(settings)


# --------------------------------------------------------------------------------------------------
# Runs


@dataclass(frozen=True)
class Job:
    """One run: an arm on a task of a scale, with a seed and a rate."""

    scale: Scale
    task: FrontierTask
    arm: Arm
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """As in --only."""
        return f"{self.task.name}/{self.arm.name}/{self.seed}"

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells its row from others."""
        return self.scale.name, self.task.name, self.arm.name, self.seed, self.rate


def settings_of(job: Job, steps: int) -> TrainSettings:
    """The same for every arm: AdamW, a short warm-up, a cosine, a short average of the weights."""
    return TrainSettings(
        steps=steps,
        batch_rows=job.scale.batch_rows,
        seed=job.seed,
        optim=OptimSettings(name="adamw", lr=job.rate, weight_decay=0.1, betas=(0.9, 0.98)),
        clip=1.0,
        schedule="cosine",
        warmup=max(1, steps // 20),
        min_ratio=0.05,
        ema_decay=0.99,
        ema_ramp=True,
        save_every=max(1, min(200, steps // 4)),
        log_every=max(1, min(50, steps // 4)),
        device="cpu",
        progress="off",
    )


def run_of(job: Job, schedule: Schedule) -> tuple[Run, TrainSettings]:
    """What is trained, for a schedule of stages."""
    import torch

    steps = sum(num for _, num in schedule)
    settings, width = settings_of(job, steps), feed_forward(job.arm, job.task, job.scale.shape)
    torch.manual_seed(job.seed)
    build = {"coconut": _coconut_run, "huginn": _huginn_run, "trm": _trm_run}[job.arm.method]
    model, source = build(job, schedule, width)
    config = {
        "study": "frontier",
        "key": list(job.key),
        "schedule": [list(part) for part in schedule],
        "feed_forward": width,
        "task": repr(job.task),
        "shape": repr(job.scale.shape),
    }
    return Run(model=model, source=source, config=config), settings


def _records(job: Job, curriculum: Curriculum, schedule: Schedule, **more: Any) -> StagedRecords:
    return StagedRecords(
        job.task.records("train"),
        tokenizer_for(job.task),
        curriculum,
        schedule,
        seed=job.seed,
        rewrite=job.task.rewrite(),
        **more,
    )


def _coconut_run(job: Job, schedule: Schedule, width: int) -> tuple[Any, Any]:
    from inward.methods.coconut.model import Coconut

    taught, tokenizer = lesson(job.arm, job.task), tokenizer_for(job.task)
    base = _llama(job.task, replace(job.scale.shape, feed_forward=width))
    model = Coconut(base, specials_of(tokenizer), taught.settings, tokenizer=tokenizer)
    return model, _records(job, taught.curriculum, schedule)


def _huginn_run(job: Job, schedule: Schedule, width: int) -> tuple[Any, Any]:
    from inward.methods.huginn.train import HuginnTraining

    shape, steps = job.scale.shape, sum(num for _, num in schedule)
    depth = Depth(shape.depth, shape.backprop, ramp=steps // 3, longest=3.0)
    model = _huginn(job.task, shape, width)
    training = HuginnTraining(model, depth=depth, watch=Watch(action="off"))
    training.tokenizer = tokenizer_for(job.task)
    return training, _records(job, lesson(job.arm, job.task).curriculum, schedule, plain=True)


def _trm_run(job: Job, schedule: Schedule, width: int) -> tuple[Any, Any]:
    from inward.data.puzzles.source import PuzzleSource

    del schedule  # it has one stage
    task = job.task
    puzzles = task.cells(task.records("train"))
    assert puzzles is not None, "an arm that reads cells has none without"
    augment = hasattr(task.grid_task(), "symmetry")
    source = PuzzleSource(puzzles, task.grid_task(), seed=job.seed, augment=augment)
    return _trm(task, job.scale.shape, width), source
