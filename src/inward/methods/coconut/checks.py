"""What a batch of columns must hold, asked before the base's first forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inward.common import IGNORE

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
