"""Coconut in the trainers of others: transformers' Trainer, TRL's SFTTrainer.

    model = TrainableCoconut(coconut)
    collate = CoconutCollator(coconut)
    Trainer(model, TrainingArguments(..., remove_unused_columns=False), collate, train_dataset=rows)
    SFTTrainer(model, SFTConfig(..., gradient_checkpointing=False, remove_unused_columns=False,
               dataset_kwargs={"skip_prepare_dataset": True}), collate, train_dataset=rows,
               processing_class=coconut.tokenizer)
    coconut.save_pretrained(folder)

rows: dicts {"question", "steps", "answer"} as texts, which a curriculum arranges; or {"input_ids",
"labels"}, placeholders in the ids being thoughts and IGNORE in the labels what is not learned.

What is unusual: masked columns lie between a token and the position that predicts it, so labels are
shifted when the batch is made; batches carry them as `shift_labels`, which both trainers know. Both
divide by the labels of the whole accumulated batch, as our own loop does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from inward.common import IGNORE
from inward.data.thoughts.curriculum import Curriculum
from inward.data.thoughts.records import Record
from inward.data.thoughts.segments import Latent, Sample, Text, parse
from inward.data.thoughts.tokenizers import encode_record, pause_of
from inward.methods.coconut.model import Coconut

if TYPE_CHECKING:
    from inward.data.thoughts.segments import Segment

_COLUMNS = ("input_ids", "attention_mask", "position_ids", "latent")


@dataclass
class CoconutCollator:
    """Rows of a data set as a batch of columns, see `inward.data.thoughts.columns.collate`.

    model: for its tokens, tokenizer and context.
    curriculum, stage: of rows with steps: which of them are hidden (None: the last stage).
    """

    model: Coconut
    curriculum: Curriculum | None = None
    stage: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """input_ids, attention_mask, position_ids, latent, labels and shift_labels, (B, S) each.

        Raises:
            ValueError: a row that is neither a record nor token ids; rows without a label.
        """
        batch = self.model.collate([self.sample(row) for row in rows])
        shifted = batch["labels"]
        found = {name: batch[name].cpu() for name in _COLUMNS}
        found["labels"] = F.pad(shifted[:, :-1], (1, 0), value=IGNORE).cpu()
        return found | {"shift_labels": shifted.cpu()}

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """A row as segments."""
        if "input_ids" in row:
            return self._of_ids(row)
        lacking = {"question", "steps", "answer"} - set(row)
        if lacking:
            raise ValueError(
                f"a row has {', '.join(sorted(row))}; it needs question, steps and answer, or "
                "input_ids and labels (with remove_unused_columns=False the trainer leaves them)"
            )
        if self.curriculum is None or self.model.tokenizer is None:
            raise ValueError(
                "rows of text need a curriculum, which says what is thought, and a tokenizer; give "
                "CoconutCollator(model, curriculum) and Coconut(..., tokenizer=)"
            )
        record = Record(row["question"], tuple(row["steps"]), row["answer"])
        pieces = encode_record(record, self.model.tokenizer)
        curriculum = self.curriculum
        stage = curriculum.pattern.last_stage if self.stage is None else self.stage
        plan = curriculum.pattern.plan(pieces, stage, np.random.default_rng(0))
        from inward.data.thoughts.curriculum import arrange

        pause = pause_of(self.model.tokenizer)
        return arrange(pieces, plan, curriculum.layout, self.model.specials, pause=pause)

    def _of_ids(self, row: Mapping[str, Any]) -> Sample:
        ids, labels = list(map(int, row["input_ids"])), list(map(int, row.get("labels", ())))
        if len(ids) != len(labels):
            raise ValueError(
                f"a row has {len(ids)} input_ids and {len(labels)} labels; each token has one, "
                f"{IGNORE} where it is not learned"
            )
        pairs = enumerate(zip(ids, labels, strict=True))
        wrong = [place for place, (token, label) in pairs if label not in (IGNORE, token)]
        if wrong:
            raise ValueError(
                f"the label of token {wrong[0]} is {labels[wrong[0]]}, must be the token itself "
                f"({ids[wrong[0]]}) or {IGNORE}"
            )
        segments: list[Segment] = []
        place = 0
        for segment in parse(ids, specials=self.model.specials).segments:
            if isinstance(segment, Latent):
                segments.append(segment)
                place += len(segment)
                continue
            for token in segment.ids:
                learned = labels[place] != IGNORE
                last = segments[-1] if segments else None
                if isinstance(last, Text) and last.supervised == learned:
                    segments[-1] = Text((*last.ids, token), learned)
                else:
                    segments.append(Text((token,), learned))
                place += 1
        return Sample(tuple(segments))


class TrainableCoconut(nn.Module):
    """A Coconut model as trainers take one: keyword arguments, a loss by the number of labels, and
    a state dict without the second name of tied weights.

    Raises:
        ValueError: losses beside the cross-entropy, which need batches that trainers do not make.
    """

    loss_type = "ForCausalLM"
    accepts_loss_kwargs = True
    _keys_to_ignore_on_save = None

    def __init__(self, coconut: Coconut) -> None:
        super().__init__()
        settings = coconut.settings
        if settings.distill or settings.step_decoder:
            raise ValueError(
                f"distill {settings.distill} and step_decoder {settings.step_decoder} need "
                "teachers and steps in each batch; train with inward's own loop, or set them to 0"
            )
        if settings.superpose:
            raise ValueError(
                f"superpose is {settings.superpose}: its loss needs each thought's words in the "
                "batch; train with inward's own loop, or set it to 0"
            )
        self.coconut = coconut
        self.warnings_issued: dict[str, bool] = {}
        self.register_state_dict_post_hook(_once)

    @property
    def config(self) -> Any:
        """The base's."""
        return self.coconut.config

    @property
    def generation_config(self) -> Any:
        """The base's."""
        return self.coconut.base.generation_config

    def add_model_tags(self, tags: Any) -> None:
        """Of model cards, as TRL writes them."""
        self.coconut.base.add_model_tags(tags)

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self.coconut.device

    @property
    def base_model(self) -> Any:
        """A function that runs a batch up to what the head reads (TRL scores that itself)."""
        return self._hidden

    def get_output_embeddings(self) -> Any:
        """The head."""
        return self.coconut.base.get_output_embeddings()

    def get_input_embeddings(self) -> Any:
        """The table."""
        return self.coconut.embedding

    def _hidden(self, **batch: Any) -> BaseModelOutput:
        columns = {name: batch[name] for name in _COLUMNS}
        columns["labels"] = torch.full_like(columns["input_ids"], IGNORE)
        # of an empty selection the head reads nothing
        out = self.coconut(columns, logits=torch.zeros_like(columns["latent"]))
        return BaseModelOutput(last_hidden_state=out.hidden)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        latent: Tensor,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        use_cache: bool | None = None,
    ) -> CausalLMOutput:
        """Loss and logits (B, S, V) of a batch that `CoconutCollator` made.

        Args:
            labels: as in transformers, column c + 1 for what column c predicts; shift_labels: as
                our batches have them. One of the two.
            num_items_in_batch: labels of the whole accumulated batch; None: of this one.
        """
        if shift_labels is None:
            shift_labels = torch.full_like(input_ids, IGNORE)
            if labels is not None:
                shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
        values = (input_ids, attention_mask, position_ids, latent)
        batch = dict(zip(_COLUMNS, values, strict=True)) | {"labels": shift_labels}
        out = self.coconut(batch, logits="all")
        count = (
            out.row_count.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        )
        return CausalLMOutput(loss=out.total / count, logits=out.logits)


def _once(module: nn.Module, tensors: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Hook: of a tensor with several names the first one stays; loading finds the others tied."""
    seen: set[tuple[Any, ...]] = set()
    for name in [name for name in tensors if name.startswith(prefix)]:
        tensor = tensors[name]
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            del tensors[name]
        seen.add(place)
