"""Prompts without their padding, and the tokens that end a text: read and checked in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM


Prompts = Tensor | Sequence[Sequence[int]] | Sequence[Tensor]


def ends_of(
    eos_token_id: int | Sequence[int] | None, generation: GenerationConfig | None, vocab_size: int
) -> frozenset[int]:
    """Tokens that end a text: those given, else those of the generation config; () for none."""
    chosen: Any = eos_token_id
    if chosen is None and generation is not None:
        chosen = generation.eos_token_id
    ends = frozenset() if chosen is None else frozenset(np.atleast_1d(chosen).astype(int).tolist())
    if any(not 0 <= token < vocab_size for token in ends):
        raise ValueError(f"end tokens {sorted(ends)}: the vocabulary has {vocab_size}")
    return ends


def prompts_of(
    model: HuginnForCausalLM, input_ids: Prompts, attention_mask: Tensor | None = None
) -> list[list[int]]:
    """The prompts without padding.

    Args:
        input_ids: (B, S) tensor, or B sequences of token ids.
        attention_mask: (B, S) 1 = real, padded on either side; only with a tensor.
    Raises:
        ValueError: no prompt, an empty or too long one, tokens outside the vocabulary, a mask of
            another shape or with holes.
    """
    if isinstance(input_ids, Tensor):
        prompts = _unpad(input_ids, attention_mask)
    elif attention_mask is not None:
        raise ValueError("attention_mask belongs to a tensor of input_ids; lists need none")
    else:
        prompts = [torch.as_tensor(row, dtype=torch.long).tolist() for row in input_ids]
    limit, V = model.config.block_size, model.config.vocab_size
    if not prompts:
        raise ValueError("there is no prompt; input_ids is empty")
    for row, prompt in enumerate(prompts):
        if not 0 < len(prompt) < limit:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens; the context is {limit}, so 1 to "
                f"{limit - 1} leave room for an answer"
            )
        if not 0 <= min(prompt) <= max(prompt) < V:
            raise ValueError(
                f"prompt {row}: tokens run from {min(prompt)} to {max(prompt)}, the model knows 0 "
                f"to {V - 1}"
            )
    return prompts


def _unpad(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    if input_ids.ndim != 2 or input_ids.is_floating_point():
        raise ValueError(
            f"input_ids is {input_ids.dtype} of shape {tuple(input_ids.shape)}; expected integers "
            "(rows, tokens); for one prompt pass input_ids[None]"
        )
    if attention_mask is None:
        return input_ids.tolist()
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids "
            f"{tuple(input_ids.shape)}; they must be the same"
        )
    real = attention_mask.bool()
    if int((real.long().diff(dim=1) != 0).sum(1).amax(0)) > 1:
        raise ValueError("attention_mask has holes: pad on one side only")
    return [ids[kept].tolist() for ids, kept in zip(input_ids, real, strict=True)]


def split_prompts(
    input_ids: Tensor, attention_mask: Tensor | None, context: int
) -> list[list[int]]:
    """The real tokens of each text, wherever its padding is."""
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if real.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask is {tuple(real.shape)}, input_ids {tuple(input_ids.shape)}; both must "
            "be (texts, tokens)"
        )
    prompts = [ids[keep.bool()].tolist() for ids, keep in zip(input_ids, real, strict=True)]
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens; it must have 1..{context - 1}, or there "
                "is nothing to continue or no room to do so"
            )
    if not prompts:
        raise ValueError("input_ids hold no prompt")
    return prompts


def end_tokens(lm: PreTrainedModel, given: int | Sequence[int] | None) -> frozenset[int]:
    """Ids that end a text."""
    if given is None:
        found = lm.generation_config.eos_token_id if lm.generation_config is not None else None
        given = () if found is None else found
    return frozenset([given] if isinstance(given, int) else given)
