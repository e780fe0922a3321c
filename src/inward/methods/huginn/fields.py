"""What the fields of a Huginn configuration may be: kept, or refused by name; nothing is ignored.

`sift` sorts what a caller or a config.json says into the fields of `HuginnConfig` and what
transformers keeps of any model. The second spelling of a field must agree with the first, derived
fields must agree with what they derive from, fields of other models may only say what holds here
anyway, and a name that nobody knows is an error.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import fields as fields_of
from numbers import Integral, Real
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

ALIASES = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_heads",
    "max_position_embeddings": "block_size",
    "tie_word_embeddings": "tie_embeddings",
    "rope_theta": "rope_base",
}
"""Second spelling -> field."""

DEFAULTS: dict[str, Any] = {
    "n_embd": 5280,
    "n_heads": 55,
    "num_key_value_heads": None,
    "intermediate_size": 17920,
    "vocab_size": 65536,
    "block_size": 4096,
    "n_layers_in_prelude": 2,
    "n_layers_in_recurrent_block": 4,
    "n_layers_in_coda": 2,
    "mean_recurrence": 32,
    "mean_backprop_depth": 8,
    "padding_multiple": 4096,
    "norm_eps": 1e-6,
    "rope_base": 50_000,
    "tie_embeddings": True,
    "sampling_scheme": "poisson-lognormal-filling",
    "state_init": "like-init",
    "activation_checkpoint_impl": "per-iteration",
}
"""The published model's; None: what another field says."""

LEAST = {
    "n_embd": 2,
    "n_heads": 1,
    "num_key_value_heads": 1,
    "intermediate_size": 1,
    "vocab_size": 2,
    "block_size": 1,
    "n_layers_in_prelude": 0,
    "n_layers_in_recurrent_block": 1,
    "n_layers_in_coda": 0,
    "mean_recurrence": 1,
    "mean_backprop_depth": 1,
    "padding_multiple": 1,
}
"""Whole numbers, and the least they may be."""

POSITIVE = ("norm_eps", "rope_base")
"""Finite numbers above 0."""

ONLY: dict[str, Any] = {
    "bias": False,
    "architecture_class_name": "RecurrentGPT",
    "block_class_name": "SandwichBlock",
    "norm_class_name": "RMSNorm_llama",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "init_strategy": "takase",
    "init_orthogonal": False,
    "injection_type": "linear",
    "qk_bias": True,
    "test_time_noise": 0,
}
"""The architecture that exists here: field -> its only value."""

ABSENT: dict[str, tuple[Any, ...]] = {
    # of transformers' other models
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "attention_dropout": (0,),
    "attn_logit_softcapping": (None,),
    "chunk_size_feed_forward": (0,),
    "final_logit_softcapping": (None,),
    "hidden_act": ("silu",),
    "hidden_dropout": (0,),
    "is_encoder_decoder": (False,),
    "layer_types": (None,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (None, 1),
    "per_layer_config": (None,),
    "pretraining_tp": (None, 1),
    "rope_parameters": (None,),
    "rope_scaling": (None,),
    "sliding_window": (None,),
    "use_sliding_window": (False,),
    # of the paper's training code
    "center_attention": (False,),
    "clip_qkv": (None,),
    "debias_attention": (False,),
    "elbayad_weighing": (False,),
    "embed_step": (False,),
    "intermediate_noise_injection": (0,),
    "lm_head_bias": (False,),
    "loss_shape": ("none",),
    "mcleish_throttle": (False,),
    "mup_model_scaling_factor": (1,),
    "normalize_rec": ("",),
    "qk_norm": (False,),
    "randomize_embed_step": (False,),
    "randomize_positions_from": (None,),
    "seers": (0,),
    "use_abacus": (False,),
}
"""What is not built here: field -> the values that say so, the only ones that are taken."""

NOTES = {
    # where a model comes from
    "auto_map", "hf_config", "name", "quantization_config", "test_time_noise_type",
    # how the paper's code ran: the numbers are the same
    "abacus_ids", "attn_impl", "elbayad_exponent", "geom_noise_injection", "lockstep_k",
    "lockstep_n", "mod_capacity_factor", "simple_ops", "skip_initialization", "strategy",
    "use_fused_head",
    # what transformers takes of any model, in some of its releases
    "attn_implementation", "cross_attention_hidden_size", "dtype", "experts_implementation",
    "finetuning_task", "gradient_checkpointing", "is_decoder", "loss_type", "model_type",
    "name_or_path", "num_labels", "output_attentions", "output_hidden_states", "prefix",
    "pruned_heads", "return_dict", "sep_token_id", "task_specific_params", "tf_legacy_loss",
    "tie_encoder_decoder", "tie_last_hidden_states", "tokenizer_class", "torch_dtype",
    "torchscript", "use_bfloat16", "use_cache", "xla_device",
}  # fmt: skip
"""Kept, and no part of the architecture."""

OF_TRANSFORMERS = (
    NOTES | {f.name for f in fields_of(PreTrainedConfig)} | {*GenerationConfig().to_dict()}
)

DERIVED = ("head_dim", "n_layers", "num_hidden_layers", "padded_vocab_size")
"""Said twice: checked against the fields they follow from."""
RECOMPUTED = ("effective_expected_depth", "init_values")
"""Written by the paper's own class, at times of another shape; computed anew."""


def sift(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the fields of `HuginnConfig`, all of them; the rest, which transformers keeps).

    given: what a caller or a config.json says; a field that is None is not said.
    Raises:
        ValueError: an unknown field, or two that contradict each other; `check` does the values.
    """
    row = dict(given)
    unspell(row)
    for name in RECOMPUTED:
        row.pop(name, None)
    derived = {name: row.pop(name, None) for name in DERIVED}
    for name, same in ABSENT.items():
        check_absent(name, row.pop(name, same[0]), same)
    own = {name: row.pop(name, None) for name in DEFAULTS | ONLY}
    unsaid = {name: value for name, value in (DEFAULTS | ONLY).items() if own[name] is None}
    own |= unsaid
    if own["num_key_value_heads"] is None:
        own["num_key_value_heads"] = own["n_heads"]
    check_known(row)
    check(own)
    check_derived(own, derived)
    return own, row


def unspell(row: dict[str, Any]) -> None:
    """Second spellings become first ones; in place."""
    for alias, name in ALIASES.items():
        value = row.pop(alias, None)
        if value is None:
            continue
        if row.get(name) is not None and row[name] != value:
            raise ValueError(
                f"Huginn: {name} is {row[name]!r} and {alias} {value!r}, but they are one field; "
                "give one of them"
            )
        row[name] = value


def check_absent(name: str, value: Any, same: tuple[Any, ...]) -> None:
    """Raise a ValueError unless the value says that the field's part is not there."""
    if value not in same:
        only = " or ".join(repr(other) for other in same)
        raise ValueError(
            f"Huginn: {name} is {value!r}, but nothing here does that; remove it, or set it to "
            f"{only}"
        )


def check_known(row: Mapping[str, Any]) -> None:
    """Raise a ValueError if a name is neither a field here nor one of transformers'."""
    known = {*DEFAULTS, *ONLY, *ALIASES, *ABSENT, *DERIVED, *RECOMPUTED, *OF_TRANSFORMERS}
    for name in row:
        if name not in known and not name.startswith("_"):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "remove it"
            raise ValueError(f"Huginn: there is no field {name} (it is {row[name]!r:.60}); {hint}")


def check(own: dict[str, Any]) -> None:
    """Whole numbers become int, in place.

    Raises:
        ValueError: a value of the wrong kind or range, or that is not built here.
    """
    for name, low in LEAST.items():
        own[name] = whole(name, own[name], low)
    for name in POSITIVE:
        own[name] = positive(name, own[name])
    if not isinstance(own["tie_embeddings"], bool):
        raise ValueError(f"Huginn: tie_embeddings is {own['tie_embeddings']!r}; True or False")
    for name in ("sampling_scheme", "activation_checkpoint_impl"):
        if not isinstance(own[name], str):
            raise ValueError(f"Huginn: {name} is {own[name]!r}, must be a name")
    for name, only in ONLY.items():
        if own[name] != only or isinstance(own[name], bool) != isinstance(only, bool):
            raise ValueError(f"Huginn: {name} is {own[name]!r}, but only {only!r} is built here")
    if own["n_embd"] % (2 * own["n_heads"]):
        raise ValueError(
            f"Huginn: n_embd {own['n_embd']} does not split into {own['n_heads']} heads of even "
            "width; change one of them"
        )
    if own["num_key_value_heads"] != own["n_heads"]:
        raise ValueError(
            f"Huginn: {own['num_key_value_heads']} key-value heads for {own['n_heads']} heads; "
            "grouped queries are not built here"
        )
    if own["state_init"] not in ("like-init", "zero"):
        raise ValueError(f"Huginn: state_init is {own['state_init']!r}: 'like-init' or 'zero'")


def check_derived(own: dict[str, Any], derived: Mapping[str, Any]) -> None:
    """Raise a ValueError if a derived field says something else than what it derives from. A padded
    vocabulary may be larger, and counts."""
    blocks = [own[f"n_layers_in_{part}"] for part in ("prelude", "recurrent_block", "coda")]
    want = {
        "head_dim": (own["n_embd"] // own["n_heads"], "n_embd / n_heads"),
        "n_layers": (sum(blocks), "the blocks of prelude, core and coda together"),
    }
    want["num_hidden_layers"] = want["n_layers"]
    for name, (value, source) in want.items():
        if derived[name] is not None and derived[name] != value:
            raise ValueError(
                f"Huginn: {name} is {derived[name]!r}, but it is {source}, {value} here; remove "
                "it, or change those"
            )
    if derived["padded_vocab_size"]:
        own["vocab_size"] = max(
            own["vocab_size"], whole("padded_vocab_size", derived["padded_vocab_size"], 2)
        )


def whole(name: str, value: Any, least: int) -> int:
    """The value as an int; a ValueError unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"Huginn: {name} is {value!r}, must be a whole number")
    if value < least:
        raise ValueError(f"Huginn: {name} is {value}, must be at least {least}")
    return int(value)


def positive(name: str, value: Any) -> float:
    """The value as a plain number; a ValueError unless it is finite and above 0."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ValueError(f"Huginn: {name} is {value!r}, must be a finite number above 0")
    return value if type(value) in (int, float) else float(value)
