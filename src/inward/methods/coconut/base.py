"""What Coconut asks of the base model, and the three tokens it adds to a tokenizer.

A base is any causal LM that takes `inputs_embeds`, `attention_mask` and a cache, and calls its
output embedding once in a forward. Everything else about it (norms, adapters, scaled or capped
logits) may be as it likes, because the hidden state is caught where the head reads it.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available

from inward.common.bases import (
    CACHE_NAMES,
    base_record,
    checked_base,
    load_causal_lm,
    recorded_base,
)
from inward.common.files import read_object, write_json
from inward.data.thoughts import tokenizers
from inward.data.thoughts.segments import Specials


def unwrapped(base: nn.Module) -> PreTrainedModel:
    """The model of transformers inside a PEFT model, or the model itself."""
    if is_peft_available():
        from peft import PeftModel

        if isinstance(base, PeftModel):
            return cast(PreTrainedModel, base.get_base_model())
    return cast(PreTrainedModel, base)


def check_base(base: nn.Module, specials: Specials) -> frozenset[str]:
    """Refuse a base that cannot think; return the names of its forward's parameters.

    Raises:
        ValueError: no `inputs_embeds` or no cache in its forward, no output embedding, special
            tokens beyond its vocabulary, or an adapter that rewrites prompts.
    """
    if is_peft_available():
        from peft import PeftModel

        if isinstance(base, PeftModel) and base.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"{type(base.active_peft_config).__name__} prepends virtual tokens, which thoughts "
                "and their positions do not know of; use an adapter on the weights, such as LoRA"
            )
    inner = unwrapped(base)
    name = type(inner).__name__
    if not isinstance(inner, PreTrainedModel):
        raise ValueError(f"{name} is no model of transformers; wrap an AutoModelForCausalLM")
    accepts = frozenset(inspect.signature(inner.forward).parameters)
    lacking = {"inputs_embeds", "attention_mask"} - accepts
    lacking |= set() if accepts.intersection(CACHE_NAMES) else {" or ".join(CACHE_NAMES)}
    if lacking:
        raise ValueError(
            f"{name} takes no {' and no '.join(sorted(lacking))}; a thought is fed in through "
            "inputs_embeds on top of a key/value cache, so choose a base that has both"
        )
    if inner.get_output_embeddings() is None:
        raise ValueError(f"{name} has no output embedding; load it as an AutoModelForCausalLM")
    size = int(cast(Tensor, inner.get_input_embeddings().weight).shape[0])
    beyond = [i for i in (specials.bot, specials.eot, specials.latent) if i >= size]
    if beyond:
        raise ValueError(
            f"special tokens {beyond} lie beyond the vocabulary of {size} tokens; call "
            "add_specials(tokenizer, base), or base.resize_token_embeddings"
        )
    return accepts


def without_frozen(module: nn.Module, tensors: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Hook for a model below an adapter: resume states need not repeat what never changes."""
    for name, parameter in module.named_parameters(prefix.rstrip("."), remove_duplicate=False):
        if not parameter.requires_grad:
            tensors.pop(name, None)


@contextmanager
def head_input(base: PreTrainedModel, wanted: Tensor | None) -> Iterator[list[Tensor]]:
    """While open, catch what the head of `base` reads, and let it read only the wanted columns.

    wanted   (B, c) bool: the head gets the N columns that are set as (1, N, d); None: it gets all.
    The hook acts in this thread alone and while this is open: another forward of the same model, or
    a twin that was made meanwhile, is not touched.
    """
    caught: list[Tensor] = []
    owner: int | None = threading.get_ident()

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if threading.get_ident() != owner:
            return None
        caught.append(args[0])
        return None if wanted is None else (args[0][wanted][None], *args[1:])

    handle = cast(nn.Module, base.get_output_embeddings()).register_forward_pre_hook(hook)
    try:
        yield caught
    finally:
        owner = None
        handle.remove()


_OWN_TOKENS = 4096
"""Rows that a model with thoughts may have beyond those of the model below its adapter"""


RECORD = "base_model.json"
"""beside an adapter's files: what the model below it is, and where it was"""


def load_base(
    folder: Path,
    base: nn.Module | str | Path | None = None,
    *,
    num_tokens: int = 0,
    trainable: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """A saved base: a model, or a PEFT adapter on top of `base` (or of the model that was recorded
    with it, see `inward.common.bases.recorded_base`).

    Args:
        base: a model, or where it lies.
        trainable: an adapter's weights can be trained on.
        num_tokens: rows that the embedding needs at least; a model below an adapter is given them.
            The adapter holds what stands in them.

    Raises:
        FileNotFoundError: there is nothing to load.
        ValueError: an adapter whose base is not known, is another model, or weights that do not
            fit.
    """
    if isinstance(base, str | Path):
        base = cast(nn.Module, load_causal_lm(base, **kwargs))
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        from peft import PeftModel

        inner = cast(PreTrainedModel, _below(folder, base, kwargs))
        _check_rows(folder, inner, num_tokens)
        if cast(Tensor, inner.get_input_embeddings().weight).shape[0] < num_tokens:
            inner.resize_token_embeddings(num_tokens, mean_resizing=False)
        return PeftModel.from_pretrained(cast(Any, inner), str(folder), is_trainable=trainable)
    return base if base is not None else load_causal_lm(folder, **kwargs)


def _below(folder: Path, base: nn.Module | None, kwargs: dict[str, Any]) -> nn.Module:
    """The model below an adapter."""
    record = folder / RECORD
    known = read_object(record) if record.is_file() else {}
    if base is not None:
        return checked_base(base, known, "the model given as base")
    if known.get("name"):
        return recorded_base(known, folder, **kwargs)
    named: Any = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
    if not named:
        raise ValueError(
            f"{folder} is an adapter that does not say of which model; pass it as base="
        )
    return load_causal_lm(named, **kwargs)


def _check_rows(folder: Path, base: PreTrainedModel, num_tokens: int) -> None:
    """The tokens of thoughts follow those of the base; a number far beyond costs memory."""
    rows = cast(Tensor, base.get_input_embeddings().weight).shape[0]
    if num_tokens > rows + _OWN_TOKENS:
        raise ValueError(
            f"{folder} needs {num_tokens} tokens, but the model below it has {rows}; "
            "they do not belong together"
        )


def save_base(base: nn.Module, folder: Path, **kwargs: Any) -> None:
    """Write a base, or its adapter and where the model below it is; of embeddings, an adapter that
    trains single rows has these."""
    if unwrapped(base) is not base:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD, base_record(unwrapped(base), folder))
        rows = cast(Any, base).active_peft_config.to_dict().get("trainable_token_indices")
        kwargs = ({"save_embedding_layers": False} if rows else {}) | kwargs
    cast(PreTrainedModel, base).save_pretrained(folder, **kwargs)


# --------------------------------------------------------------------------------------------------
# Tokens


def own_tokens(tokenizer: Any, specials: Specials) -> list[int]:
    """Ids of the tokens that a model with thoughts has beside its base's: the three, and the pause
    token where the tokenizer has one."""
    pause = None if tokenizer is None else tokenizers.pause_of(tokenizer)
    own = [specials.bot, specials.eot, specials.latent]
    return own if pause is None else [*own, pause]


def add_specials(
    tokenizer: Any, base: PreTrainedModel, *, init_from: int | None = None, pause: bool = False
) -> Specials:
    """Give a tokenizer the tokens <bot>, <eot> and placeholder (`inward.data.thoughts.tokenizers`),
    and the base their rows. Tokens that are there already keep their rows.

    Args:
        init_from: token whose embedding and head rows the new tokens start from (paper: "<<").
            None: the mean of all rows.
        pause: also the pause token, which "pause as thought" says instead of a thought.

    Raises:
        ValueError: `init_from` lies beyond the vocabulary.
    """
    old = len(tokenizer)
    if init_from is not None and not 0 <= init_from < old:
        raise ValueError(f"init_from is {init_from}, must be one of the {old} tokens")
    specials = tokenizers.add_specials(tokenizer, pause=pause)
    ids = own_tokens(tokenizer, specials)
    size = cast(nn.Embedding, base.get_input_embeddings()).weight.shape[0]
    if max(ids) >= size:
        base.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    tables = cast(list[nn.Linear], [base.get_input_embeddings(), base.get_output_embeddings()])
    with torch.no_grad():
        for weight in {id(table.weight): table.weight for table in tables}.values():
            start = weight[:old].mean(0) if init_from is None else weight[init_from].clone()
            weight[[i for i in ids if i >= old]] = start
    return specials
