"""What a batch of columns must hold, asked before the base's first forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from inward.common import IGNORE
from inward.data.thoughts.columns import LatentBatch, before_thoughts

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut

_COLUMNS = ("input_ids", "attention_mask", "position_ids", "latent", "labels")


def check_columns(batch: Any, num_tokens: int, num_logits: int) -> None:
    """Raise a ValueError that names what is no batch of `collate`: parts that lack, are no tensors,
    of another kind or shape; tokens that the base does not embed, labels that its head does not
    know."""
    lacking = sorted(set(_COLUMNS) - set(batch)) if isinstance(batch, Mapping) else list(_COLUMNS)
    if lacking:
        raise ValueError(f"the batch lacks {', '.join(lacking)}; make batches with `collate`")
    shape = None
    for name in _COLUMNS:
        tensor = batch[name]
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"{name} is a {type(tensor).__name__}, must be a tensor (rows, columns)"
            )
        wrong = tensor.is_floating_point() or (tensor.dtype == torch.bool) != (name == "latent")
        if wrong and name != "attention_mask":
            kind = "bool" if name == "latent" else "integers"
            raise ValueError(
                f"{name} is {tensor.dtype}, must be {kind}; make batches with `collate`"
            )
        shape = shape or tensor.shape
        if tensor.shape != shape or tensor.ndim != 2 or not tensor.numel():
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, input_ids {tuple(shape)}; all are (rows, "
                "columns) of one size"
            )
    ids, labels = batch["input_ids"], batch["labels"]
    labels = labels.masked_fill(labels == IGNORE, 0)
    for name, tensor, size in (("input_ids", ids, num_tokens), ("labels", labels, num_logits)):
        low, high = (int(found) for found in tensor.aminmax())
        if low < 0 or high >= size:
            raise ValueError(f"{name} run from {low} to {high}, the model knows 0 to {size - 1}")


def check_batch(model: Coconut, batch: LatentBatch) -> None:
    """Raise a ValueError for a batch that this model cannot run."""
    head = cast(nn.Linear, model.base.get_output_embeddings())
    check_columns(batch, model.embedding.weight.shape[0], head.weight.shape[0])
    latent, mask = batch["latent"], batch["attention_mask"].bool()
    if bool(latent[:, 0].any()):
        raise ValueError("a batch has a thought in column 0; nothing comes before it")
    if bool((latent & ~mask).any()) or bool((before_thoughts(latent) & ~mask).any()):
        raise ValueError(
            "a thought, or the column before one, is masked; make batches with `collate`"
        )
    longest = int(batch["position_ids"].max()) + 1
    if model.max_positions is not None and longest > model.max_positions:
        raise ValueError(
            f"a row has {longest} positions, thoughts included, but the context of the base "
            f"holds {model.max_positions}; shorten the text or use fewer thoughts"
        )
