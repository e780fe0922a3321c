"""Training batches that think: records and a curriculum, as a pure function of the step.

`LatentSource` is a `Source` (see `inward.data.puzzles.source`): rows of batch `step` depend on
(seed, step, row) alone, so a run resumes, splits over processes and accumulates to the same
numbers. The stage of a step is that of its epoch; no run keeps a stage in memory.

What is unusual:
- An epoch is a whole number of batches. If the records do not fill the last one, it is filled from
  the beginning of the same order, so that no batch ever mixes two stages.
- `group=2` keeps a question and its swap side by side, rewritten with the same draws.
- `rewrite` writes a record anew at every visit (order of sentences, names, which shortest path),
  as arXiv 2505.12514 does; without it records are tokenized once.
- Where stages begin and where the optimizer starts afresh is said in steps: `stage_steps` and
  `reset_steps`.

The tensors are those of `inward.data.thoughts.columns.collate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from inward.common.checks import checked_seed
from inward.data.thoughts.curriculum import Curriculum, arrange
from inward.data.thoughts.patterns import Fixed, NoCot, Pieces, Think
from inward.data.thoughts.records import Record, with_steps
from inward.data.thoughts.segments import Sample
from inward.data.thoughts.tokenizers import Form, encode_record, pause_of, specials_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Streams apart from that of the rows, [seed, step, row]: numpy pads a seed sequence with zeros.
_ORDER, _REWRITE = 1, 2

Rewrite = Callable[[Record, np.random.Generator], Record]


class LatentSource:
    """Walk through `records` in a new order every epoch, each under the curriculum of that epoch.

    tokenizer      with the special tokens (`inward.data.thoughts.tokenizers.add_specials`)
    rewrite        writes a record anew at each visit, e.g. `ProsQATask("symbolic").rewrite`
    group          records that stay together, in order: 2 for a list of pairs
    max_positions  what the base's context holds; checked now for the longest records and then for
                   every batch
    learned_stop   see `inward.data.thoughts.columns.collate`
    Raises ValueError: records without steps for a pattern that needs them, special tokens in their
    text or missing from the tokenizer, samples that are too long, numbers that do not divide.
    """

    def __init__(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        curriculum: Curriculum,
        *,
        seed: int,
        rewrite: Rewrite | None = None,
        group: int = 1,
        form: Form | None = None,
        max_positions: int | None = None,
        learned_stop: bool = False,
    ) -> None:
        checked_seed(seed)
        if not records:
            raise ValueError("no records to train on; read or generate some first")
        if group < 1 or len(records) % group:
            raise ValueError(f"{len(records)} records do not divide into groups of {group}")
        if not isinstance(curriculum.pattern, NoCot | Fixed):
            with_steps(records)
        self.records = records
        self.tokenizer = tokenizer
        self.curriculum = curriculum
        self.seed = seed
        self.rewrite = rewrite
        self.group = group
        self.form = form or Form()
        self.max_positions = max_positions
        self.learned_stop = learned_stop
        self.specials = specials_of(tokenizer)
        self.pause = pause_of(tokenizer)
        self._pieces: dict[int, Pieces] = {}  # a memo of what tokenizing gives, not state
        self._orders: dict[int, np.ndarray] = {}  # a memo of `_order`
        self._check_longest()

    # --- steps, epochs, stages ------------------------------------------------------------------

    def steps_per_epoch(self, num_rows: int) -> int:
        """Batches of `num_rows` rows in which every record is seen."""
        return -(-len(self.records) // num_rows)

    def stage(self, step: int, num_rows: int) -> int:
        """Stage of a step (mixing aside)."""
        return self.curriculum.stages.at(step // self.steps_per_epoch(num_rows))

    def stage_steps(self, num_rows: int) -> dict[int, int]:
        """First step of each stage: {step: stage}, ascending."""
        stages, long = self.curriculum.stages, self.steps_per_epoch(num_rows)
        return {start * long: stages.at(start) for start in stages.starts}

    def reset_steps(self, num_rows: int, num_steps: int) -> tuple[int, ...]:
        """Steps before which the optimizer starts afresh, in a run of `num_steps` steps."""
        long = self.steps_per_epoch(num_rows)
        return tuple(epoch * long for epoch in self.curriculum.stages.resets(-(-num_steps // long)))

    # --- batches --------------------------------------------------------------------------------

    def batch(self, step: int, rows: range, num_rows: int) -> dict[str, torch.Tensor]:
        """See `Source.batch`; the tensors are those of `inward.data.thoughts.columns.collate`."""
        from inward.data.thoughts.columns import collate

        pad = self.tokenizer.pad_token_id
        return collate(
            self.samples(step, rows, num_rows),
            self.specials,
            pad=pad if isinstance(pad, int) else 0,
            max_positions=self.max_positions,
            learned_stop=self.learned_stop,
        )

    def samples(self, step: int, rows: range, num_rows: int) -> list[Sample]:
        """Rows `rows` of batch `step`, which has `num_rows` rows in all.

        Raises ValueError for rows outside the batch, a negative step, or groups cut by the batch.
        """
        if step < 0 or (len(rows) and (min(rows) < 0 or max(rows) >= num_rows)):
            raise ValueError(
                f"step {step}, rows {rows}: use steps from 0 and rows below {num_rows}"
            )
        if num_rows % self.group:
            raise ValueError(
                f"a batch of {num_rows} rows would cut groups of {self.group}; use a multiple"
            )
        return [self._sample(step, row, num_rows) for row in rows]

    def _sample(self, step: int, row: int, num_rows: int) -> Sample:
        long = self.steps_per_epoch(num_rows)
        epoch, within = divmod(step, long)
        place = (within * num_rows + row) % len(self.records)
        first = int(self._order(epoch)[place // self.group]) * self.group
        drawn = [self.seed, step, row - row % self.group, _REWRITE]
        pieces = self._encoded(first + place % self.group, drawn)
        rng = np.random.default_rng([self.seed, step, row])
        return self.curriculum.sample(pieces, epoch, rng, self.specials, pause=self.pause)

    def _encoded(self, index: int, drawn: list[int]) -> Pieces:
        if self.rewrite is not None:
            record = self.rewrite(self.records[index], np.random.default_rng(drawn))
            return encode_record(record, self.tokenizer, form=self.form)
        if index not in self._pieces:
            record = self.records[index]
            self._pieces[index] = encode_record(record, self.tokenizer, form=self.form)
        return self._pieces[index]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            rng = np.random.default_rng([self.seed, epoch, 0, _ORDER])
            if len(self._orders) >= 2:
                del self._orders[min(self._orders)]
            self._orders[epoch] = rng.permutation(len(self.records) // self.group)
        return self._orders[epoch]

    def _check_longest(self) -> None:
        """Every stage of the longest records: too long or unknown words show up before training."""
        self._check_spans()
        lengths = [len(self.form.text(record)) for record in self.records]
        rng = np.random.default_rng(0)
        for index in np.argsort(lengths)[-4:].tolist():
            pieces = self._encoded(index, [0])
            first = self.curriculum.stages.first
            for stage in range(first, first + len(self.curriculum.stages.lengths) + 1):
                plan = self.curriculum.pattern.plan(pieces, stage, rng)
                sample = arrange(
                    *(pieces, plan, self.curriculum.layout, self.specials),
                    pause=self.pause,
                    span=self.curriculum.span,
                )
                try:
                    sample.check(self.specials, max_positions=self.max_positions)
                except ValueError as error:
                    raise ValueError(f"record {index} at stage {stage}: {error}") from error

    def _check_spans(self) -> None:
        """Steps that do not fit into superposed thoughts show up before training, and so do
        thoughts that would never hold more than one token."""
        span = self.curriculum.span
        if not span:
            return
        rng, most, each = np.random.default_rng(0), 0, 1
        last = self.curriculum.pattern.last_stage
        for index, record in enumerate(self.records):
            pieces = self._encoded(index, [0])
            plan = self.curriculum.pattern.plan(pieces, last, rng)
            for turn in plan.turns:
                if not isinstance(turn, Think):
                    continue
                for i in turn.steps:
                    each, length = turn.each, len(pieces.steps[i])
                    most = max(most, -(-length // each))
                    if length > each * span:
                        raise ValueError(
                            f"record {index}: the step {record.steps[i][:60]!r} has {length} "
                            f"tokens with its end, but its {each} thoughts hold {each * span} "
                            f"(span {span}); give more thoughts a step, a longer span, or shorter "
                            "steps"
                        )
        if most == 1:
            raise ValueError(
                f"with {each} thoughts a step no thought of these records would hold more than one "
                "token: a silent chain of thought, no superposition; give fewer thoughts a step"
            )

    def describe(self) -> dict[str, Any]:
        """Return settings as JSON values, for logs and model cards."""
        return {
            "kind": "records under a curriculum",
            "num_records": len(self.records),
            "pattern": type(self.curriculum.pattern).__name__,
            "curriculum": asdict(self.curriculum),
            "group": self.group,
            "rewritten": self.rewrite is not None,
            "form": asdict(self.form),
            "learned_stop": self.learned_stop,
            "seed": self.seed,
        }


def longest_sample(
    record: Record,
    tokenizer: PreTrainedTokenizerBase,
    curriculum: Curriculum,
    enough: int,
    *,
    form: Form | None = None,
) -> int:
    """Positions that a record takes at most, over the stages of a curriculum; of a text that is so
    short that it takes `enough` or fewer at any, only that (nothing is tokenized then)."""
    form = form or Form()
    first = curriculum.stages.first
    stages = range(first, max(first, curriculum.pattern.last_stage) + 1)
    # a token is a byte or more; a stage has so many thoughts, each block two boundaries
    thoughts = max(_most_thoughts(curriculum, len(record.steps), stage) for stage in stages)
    if len(form.text(record).encode()) + thoughts + 8 <= enough:
        return enough
    pieces = encode_record(record, tokenizer, form=form)
    steps = sum(map(len, pieces.steps))
    return len(pieces.question) + steps + len(pieces.answer) + thoughts


def _most_thoughts(curriculum: Curriculum, num_steps: int, stage: int) -> int:
    """Thoughts and boundaries of a plan, whatever is drawn: no step of it is hidden twice."""
    empty = Pieces((0,), ((0,),) * num_steps, (0,), (0.0,) * num_steps)
    plan = curriculum.pattern.plan(empty, stage, np.random.default_rng(0))
    return sum(turn.num + 2 for turn in plan.turns if isinstance(turn, Think))


# --------------------------------------------------------------------------------------------------
# Scores for EntropySteps


def step_entropies(model: PreTrainedModel, pieces: Pieces) -> tuple[float, ...]:
    """Mean entropy (nats) of the model's prediction of each token of each step, teacher forced.

    `model` is any causal LM with the vocabulary of the pieces: the base before it learns to think.
    One row at a time: this runs once over a data set.
    """
    import torch

    if not pieces.steps:
        return ()
    ids = [*pieces.question, *(token for step in pieces.steps for token in step)]
    with torch.no_grad():
        logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0].float()
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)  # (S,): of the token after each position
    ends = np.cumsum([len(pieces.question), *map(len, pieces.steps)]) - 1
    return tuple(float(entropy[a:b].mean()) for a, b in pairwise(ends))


def scored(
    records: Sequence[Record],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    form: Form | None = None,
) -> list[Record]:
    """Records whose `meta["scores"]` holds the entropies of their steps, for `EntropySteps`."""
    return [
        replace(
            record,
            meta={
                **record.meta,
                "scores": list(step_entropies(model, encode_record(record, tokenizer, form=form))),
            },
        )
        for record in records
    ]
