"""How Huginn's models meet transformers: what their outputs are called, how their files are read
and written, what `generate` must know of a loop.

Shape letters as in model.py; P, R and C are the numbers of blocks in prelude, core and coda.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from inward.common.bases import both_cache_names, cache_field, given_cache
from inward.common.files import read_object, write_json
from inward.common.weights import strict, tensor_names
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.context import rotary_of
from inward.methods.huginn.static import static_cache
from inward.methods.huginn.stored import as_stored

if TYPE_CHECKING:
    from transformers import GenerationMixin
    from transformers.modeling_utils import PreTrainedModel
else:  # transformers looks for its own classes among a model's direct bases
    GenerationMixin = PreTrainedModel = object

PASSED_ON = {"num_items_in_batch", "shift_labels", "ignore_index"}
"""Arguments of transformers' loss."""
CACHE = cache_field(CausalLMOutputWithPast)
"""What the installed transformers calls a cache, in `generate` and in outputs; we take both names.
"""


@both_cache_names
@dataclass
class HuginnModelOutput(BaseModelOutputWithPast):
    """As of any model in transformers; at depth r, P + R r + C blocks have run, in this order.

    last_hidden_state: (B, S, d) what the head reads.
    hidden_states: with output_hidden_states, P + R r + C + 1 of (B, S, d): the embeddings, then the
        output of each block that ran; the last one is last_hidden_state.
    attentions: with output_attentions (and attn_implementation="eager"), P + R r + C of (B, N, S,
        K), the weights of each block that ran.
    latents: (B, S, d) ln_f(s_r), what the coda reads.
    states: s_1 .. s_r, each (B, S, d), raw; only with output_states.
    """

    latents: Tensor | None = None
    states: tuple[Tensor, ...] | None = None


@both_cache_names
@dataclass
class HuginnOutput(CausalLMOutputWithPast):
    """As of any causal LM in transformers; hidden_states, attentions, latents and states as in
    `HuginnModelOutput`."""

    latents: Tensor | None = None
    states: tuple[Tensor, ...] | None = None


# --------------------------------------------------------------------------------------------------
# Files


UNUSED = (r"^freqs_cis$", r"\.(res|skip)_scale$")
"""Tensors of published files that are computed here, or are 1."""


class HuginnFiles(PreTrainedModel):
    """The published layout, read strictly and written back."""

    _keys_to_ignore_on_load_unexpected = list(UNUSED)  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but names that are missing, unexpected or of wrong shape, NaN, and
        two different embeddings in a model that ties them, are errors. What compilers and trainers
        put before names (`_orig_mod.`, `_original_module.`, `module.`) is taken off."""
        source = pretrained_model_name_or_path
        kwargs = as_stored(source, kwargs)
        kwargs["key_mapping"] = {_WRAPPED: "", **(kwargs.get("key_mapping") or {})}
        if Path(str(source)).is_dir():
            check_vocabulary(Path(str(source)), kwargs.get("config"))
        loaded = strict(super().from_pretrained, source, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        head = getattr(model, "lm_head", None)
        apart = head is not None and head.weight is not model.transformer.wte.weight
        if model.config.tie_embeddings and apart:
            raise ValueError(
                f"{source}: lm_head.weight and transformer.wte.weight differ, but the "
                "configuration ties them; set tie_embeddings to false, or remove one of them"
            )
        return loaded

    def save_pretrained(
        self, save_directory: Any, *args: Any, standalone: bool = False, **kwargs: Any
    ) -> Any:
        """As in transformers, with the table of rotary angles that the published layout holds
        (retrofitted models have none).

        standalone: put this model's source beside the weights, so that the folder loads with
            `trust_remote_code=True` where this package is not installed.
        """
        tensors = kwargs.pop("state_dict", None)
        tensors = dict(self.state_dict() if tensors is None else tensors)
        if self.config.rope_pairs == "interleaved":
            positions = torch.arange(self.config.block_size)[None]
            tensors["freqs_cis"] = torch.stack(
                rotary_of(cast("Any", self.config), positions), dim=-1
            )
        saved = super().save_pretrained(save_directory, *args, state_dict=tensors, **kwargs)
        if Path(save_directory, "config.json").is_file():  # else another process writes it
            _write_code(Path(save_directory), standalone)
        return saved


_WRAPPED = r"^(?:_orig_mod\.|_original_module\.|module\.)+"
_OF_VOCABULARY = re.compile(_WRAPPED[:-1] + r"*(?:(?:transformer\.)?wte|lm_head)\.weight")


def _write_code(folder: Path, standalone: bool) -> None:
    """Our source, if it is wanted, and an `auto_map` that names what is there."""
    row = read_object(folder / "config.json")
    named = row.pop("auto_map", None) or {}
    if standalone:
        from inward.methods.huginn.standalone import AUTO_MAP, write_source

        write_source(folder)
        named = AUTO_MAP
    there = {
        auto: place
        for auto, place in named.items()
        if (folder / f"{str(place).partition('.')[0]}.py").is_file()
    }
    write_json(folder / "config.json", row | ({"auto_map": there} if there else {}))


def check_vocabulary(folder: Path, config: Any = None) -> None:
    """Raise a ValueError that names both numbers if the embedding in a folder's files has another
    number of rows than the configuration (default: the folder's) says."""
    if config is None and (folder / "config.json").is_file():
        row = read_object(folder / "config.json")
        said = max(row.get("vocab_size") or 0, row.get("padded_vocab_size") or 0) or None
    else:
        said = getattr(config, "vocab_size", None)
    for file in sorted(folder.glob("model*.safetensors")):
        names = [name for name in tensor_names(file) if _OF_VOCABULARY.fullmatch(name)]
        if not names or said is None:
            continue
        with safe_open(file, framework="pt") as tensors:
            for name in names:
                rows = tensors.get_slice(name).get_shape()[0]
                if rows != said:
                    raise ValueError(
                        f"{folder}: the configuration says vocab_size {said}, but {name} in "
                        f"{file.name} has {rows} rows; set vocab_size to {rows}"
                    )


# --------------------------------------------------------------------------------------------------
# Generation


class Generates(GenerationMixin):
    """`generate` for a model whose cache has more slots than it has layers."""

    def generate(
        self, *args: Any, cache: Any = None, past_key_values: Any = None, **kwargs: Any
    ) -> Any:
        """As in transformers, with the cache under either name."""
        first = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        if first is not None and not isinstance(first, Tensor):
            raise ValueError(
                f"the prompt is a {type(first).__name__}; generate takes token ids (rows, tokens), "
                "as a tokenizer gives them with return_tensors='pt'; inward.open(folder).ask takes "
                "text"
            )
        given = given_cache(cache, past_key_values)
        if given is not None:
            kwargs[CACHE] = given
        return super().generate(*args, **kwargs)  # pyright: ignore - as below

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """`generate` would make a cache of num_hidden_layers slots, too few for a loop: give it one
        that counts recurrences."""
        if model_kwargs.get("state") is not None:
            raise ValueError(
                "generate cannot take one state for tokens that are not there yet; use "
                "state_seed, or state_init='zero' in the configuration"
            )
        plain = generation_config.cache_implementation in (None, "dynamic")
        if model_kwargs.get(CACHE) is None and generation_config.use_cache and plain:
            model_kwargs[CACHE] = RecurrentCache()
            return None
        static = generation_config.cache_implementation == "static"
        if model_kwargs.get(CACHE) is None and generation_config.use_cache and static:
            length = kwargs["max_cache_length"] if "max_cache_length" in kwargs else args[2]
            depth = model_kwargs.get("num_steps")
            model_kwargs[CACHE] = static_cache(cast("Any", self), length, num_steps=depth)
            return None
        # (transformers types self as a protocol that no model class satisfies)
        prepare = super()._prepare_cache_for_generation  # pyright: ignore
        return prepare(generation_config, model_kwargs, *args, **kwargs)
