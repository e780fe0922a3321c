"""The Coconut paper's own checkpoints, read and written (facebookresearch/coconut, 27273cb).

Its trainer saves the state dict of its wrapper: `base_causallm.*`, a causal LM of transformers,
whose vocabulary ends with <|start-latent|>, <|end-latent|>, <|latent|>, and `embedding.weight`,
which is the input table once more. Its runs without thoughts (cot, no_cot, no_thoughts) save the
causal LM itself, without the three tokens.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inward.common.bases import open_base
from inward.common.files import replacing
from inward.common.weights import check_fit, read_tensors
from inward.data.thoughts import tokenizers
from inward.data.thoughts.segments import Specials
from inward.methods.coconut.base import add_specials, unwrapped
from inward.methods.coconut.model import Coconut

WRAPPED, ALIAS = "base_causallm.", "embedding.weight"
_BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|rotary_emb\.inv_freq$")
"""What older transformers saved beside weights"""
_START_LIKE = "<<"
"""The token whose rows the three start from"""


def load_reference(path: str | Path, base: str | Path, **options: Any) -> Coconut:
    """A checkpoint of the Coconut paper's trainer as a model of ours, in its precision.

    Args:
        path: the file that its trainer saved (read with weights_only=True), or safetensors.
        base: the model that it was trained from, for its shape and its tokenizer; its weights are
            replaced.
        options: of the base's `from_pretrained`.

    Raises:
        FileNotFoundError: there is no such file, or no such base.
        ValueError: names or shapes that do not fit; NaN; a tokenizer without a place for the three
            tokens.
    """
    found = {name.removeprefix("module."): t for name, t in read_tensors(path).items()}
    wrapped = any(name.startswith(WRAPPED) for name in found)
    tensors = {
        name.removeprefix(WRAPPED): tensor
        for name, tensor in found.items()
        if name != ALIAS and not _BUFFERS.search(name)
    }
    model, tokenizer = open_base(base, **options)
    floats = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if len(floats) > 1:
        raise ValueError(f"{path} holds weights of several precisions: {sorted(map(str, floats))}")
    model.to(*floats)
    if not wrapped:
        _fill(model, tensors, path)
        specials = add_specials(tokenizer, model, init_from=_like(tokenizer))
        return Coconut(model, specials, tokenizer=tokenizer).eval()
    specials = tokenizers.add_specials(tokenizer)
    table = _table_name(model)
    _check_rows(tensors, table, specials, path, base)
    model.resize_token_embeddings(tensors[table].shape[0], mean_resizing=False)
    if ALIAS in found and not torch.equal(found[ALIAS], tensors[table]):
        warnings.warn(
            f"{path}: {ALIAS} is not {WRAPPED}{table}, though its trainer reads and writes both "
            "as one table; taken is the former, which its own loader leaves standing",
            stacklevel=2,
        )
        for name in _tied(model, table):
            tensors[name] = found[ALIAS]
    _fill(model, tensors, path)
    return Coconut(model, specials, tokenizer=tokenizer).eval()


def _check_rows(
    tensors: Mapping[str, Tensor], table: str, specials: Specials, path: object, base: object
) -> None:
    """Raise a ValueError where the checkpoint's vocabulary is another than the tokenizer's."""
    if table not in tensors:
        raise ValueError(f"{path} has no {WRAPPED}{table}; is {base} what it was trained from?")
    last = max(specials.bot, specials.eot, specials.latent)
    if tensors[table].shape[0] != last + 1:
        raise ValueError(
            f"{path} has {tensors[table].shape[0]} tokens; the tokenizer of {base} with the three "
            f"of thoughts has {last + 1}: they do not belong together"
        )


def _like(tokenizer: Any) -> int | None:
    found = tokenizer.convert_tokens_to_ids(_START_LIKE)
    return None if found in (None, tokenizer.unk_token_id) else int(found)


def _table_name(model: PreTrainedModel) -> str:
    table = cast(nn.Module, model.get_input_embeddings()).weight
    return next(name for name, p in model.named_parameters(remove_duplicate=False) if p is table)


def _tied(model: PreTrainedModel, name: str) -> list[str]:
    """All names of the tensor of this name."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return [other for other, p in named.items() if p is named[name]]


def _fill(model: PreTrainedModel, tensors: Mapping[str, Tensor], path: object) -> None:
    """All of these weights, and no others; of tied ones each name, or only one."""
    expected = model.state_dict()
    for name in list(expected):
        same = [other for other in _tied_in(model, name) if other in tensors]
        if name not in tensors and same:
            expected.pop(name)
        elif name in tensors and any(not torch.equal(tensors[name], tensors[o]) for o in same):
            raise ValueError(f"{path}: {name} and {', '.join(same)} are one tensor, but differ")
    check_fit(tensors, expected, path)
    model.load_state_dict(dict(tensors), strict=False)


def _tied_in(model: PreTrainedModel, name: str) -> list[str]:
    try:
        model.get_parameter(name)
    except AttributeError:  # a buffer
        return []
    return [other for other in _tied(model, name) if other != name]


def reference_tensors(model: Coconut) -> dict[str, Tensor]:
    """What the official wrapper's state dict would hold.

    Raises:
        ValueError: the model has parts that the official code has no place for.
    """
    if model.feedback.state_dict():
        raise ValueError(
            f"feedback {model.settings.feedback!r}: the official code feeds the hidden state back "
            "as it is, and has no place for these weights; use save_pretrained"
        )
    if unwrapped(model.base) is not model.base:
        raise ValueError("the base wears an adapter; merge it first: base.merge_and_unload()")
    found = {WRAPPED + name: t.detach() for name, t in model.base.state_dict().items()}
    return found | {ALIAS: model.embedding.weight.detach()}


def save_reference(model: Coconut, path: str | Path) -> None:
    """Write the official wrapper's state dict: what its `load_model_path` reads, or safetensors if
    that is the suffix.

    Raises:
        ValueError: see `reference_tensors`.
    """
    from inward.common.files import write_tensors

    tensors = reference_tensors(model)
    with replacing(path) as partial:
        if Path(path).suffix == ".safetensors":
            write_tensors(partial, tensors)
        else:
            torch.save({name: t.cpu() for name, t in tensors.items()}, partial)


def asked_as(model: Coconut, thoughts: int) -> dict[str, Any]:
    """How the paper's models are asked, for inward.json: question and line end, <bot>, so many
    thoughts, <eot>."""
    specials = model.specials
    block: list[list[Any]] = [["text", [specials.bot]], ["text", [specials.eot]]]
    if thoughts:
        block.insert(1, ["latent", thoughts])
    return {"opening": block, "switch": {"name": "speak"}, "own": {"boundaries": False}}
