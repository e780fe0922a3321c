"""Prompts without their padding, and the tokens that end a text: read and checked in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

Prompts = Tensor | Sequence[Sequence[int]] | Sequence[Tensor]


def end_tokens(
    given: int | Sequence[int] | None,
    generation: GenerationConfig | None,
    vocab_size: int | None = None,
) -> frozenset[int]:
    """Tokens that end a text: those given, else those of the generation config; () for none.

    Raises:
        ValueError: a token that is no part of a vocabulary of `vocab_size`, or no token.
    """
    chosen: Any = given
    if chosen is None and generation is not None:
        chosen = generation.eos_token_id
    given_ends = np.asarray([] if chosen is None else chosen).reshape(-1)
    if given_ends.size and not np.issubdtype(given_ends.dtype, np.integer):
        raise ValueError(f"end tokens are {chosen!r}; give a token id, or several")
    ends = frozenset(given_ends.astype(int).tolist())
    if vocab_size is not None and any(not 0 <= token < vocab_size for token in ends):
        raise ValueError(f"end tokens {sorted(ends)}: the vocabulary has {vocab_size}")
    return ends


def prompts_of(
    input_ids: Prompts,
    attention_mask: Tensor | None = None,
    *,
    context: int,
    vocab_size: int | None = None,
) -> list[list[int]]:
    """The prompts without padding.

    Args:
        input_ids: (B, S) tensor, or B sequences of token ids.
        attention_mask: (B, S) 1 = real, padded on either side; only with a tensor.
        context: tokens that the model attends over; a prompt leaves room for one more.
        vocab_size: tokens that the model knows; None: they are not checked.
    Raises:
        ValueError: no prompt, an empty or too long one, tokens outside the vocabulary, a mask of
            another shape or with holes.
    """
    if isinstance(input_ids, Tensor):
        prompts = _unpad(input_ids, attention_mask)
    elif attention_mask is not None:
        raise ValueError("attention_mask belongs to a tensor of input_ids; lists need none")
    else:
        prompts = _rows(input_ids)
    if not prompts:
        raise ValueError("there is no prompt; input_ids is empty")
    for row, prompt in enumerate(prompts):
        check_prompt(prompt, f"prompt {row}", context=context, vocab_size=vocab_size)
    return prompts


def _rows(given: Any) -> list[list[int]]:
    """Sequences of token ids, as they are."""
    told = "expected a tensor (rows, tokens) of integers, or a sequence of such for each prompt"
    if isinstance(given, str | bytes) or not isinstance(given, Sequence | np.ndarray):
        raise ValueError(f"input_ids is a {type(given).__name__}; {told}")
    found = []
    for row in given:
        try:
            ids = row if isinstance(row, Tensor) else np.asarray(row)
        except ValueError:  # of unequal lengths
            ids = np.asarray(None)
        whole = _is_whole(ids)
        if ids.ndim != 1 or (len(ids) and not whole):
            raise ValueError(f"input_ids holds {str(row)[:40]!r}; {told}")
        found.append(list(map(int, ids.tolist())))
    return found


def _is_whole(ids: Any) -> bool:
    if isinstance(ids, Tensor):
        return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    return bool(np.issubdtype(ids.dtype, np.integer))


def check_prompt(
    prompt: Sequence[int], name: str = "the prompt", *, context: int, vocab_size: int | None = None
) -> None:
    """Raise a ValueError unless a model with this context and vocabulary can continue `prompt`."""
    if not 0 < len(prompt) < context:
        raise ValueError(
            f"{name} has {len(prompt)} tokens; the context is {context}, so 1 to {context - 1} "
            "leave room for an answer"
        )
    if vocab_size is not None and not 0 <= min(prompt) <= max(prompt) < vocab_size:
        raise ValueError(
            f"{name}: tokens run from {min(prompt)} to {max(prompt)}, the model knows 0 to "
            f"{vocab_size - 1}"
        )


def _unpad(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    if input_ids.ndim != 2 or not _is_whole(input_ids):
        raise ValueError(
            f"input_ids is {input_ids.dtype} of shape {tuple(input_ids.shape)}; expected integers "
            "(rows, tokens); for one prompt pass input_ids[None]"
        )
    if attention_mask is None:
        return input_ids.tolist()
    if not isinstance(attention_mask, Tensor):
        raise ValueError(
            f"attention_mask is a {type(attention_mask).__name__}; expected a tensor (rows, tokens)"
        )
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids "
            f"{tuple(input_ids.shape)}; they must be the same"
        )
    real = attention_mask.bool()
    if int((real.long().diff(dim=1) != 0).sum(1).amax(0)) > 1:
        raise ValueError("attention_mask has holes: pad on one side only")
    return [ids[kept].tolist() for ids, kept in zip(input_ids, real, strict=True)]
