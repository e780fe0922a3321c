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
    "rope_scaling": "rotary_scaling",
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
    "sampling_scheme": "poisson-lognormal-filling",
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

NAMES: dict[str, tuple[str, ...]] = {
    "architecture_class_name": ("RecurrentGPT",),
    "block_class_name": (
        "SandwichBlock",
        "SandwichBlockSwin",
        "TransformerPreNormBlock",
        "TransformerScaledPreNormBlock",
        "TransformerPostNormBlock",
        "ScaledTransformerPostNormBlock",
        "SwinBlock",
        "SwinScaledBlock",
    ),
    "norm_class_name": (
        "RMSNorm_llama",
        "RMSNorm",
        "TorchRMSNorm",
        "GemmalikeRMS",
        "FusedRMSNorm",
        "UnparametrizedRMSNorm",
        "OlmoLayerNorm",
        "LayerNorm",
        "Identity",
    ),
    "mlp_class_name": ("GatedMLP", "GatedMLPSeparated", "BaseMLP", "HalfGateMLP"),
    "nonlin_name": ("SiLU", "GELU", "ReLU", "ReLU2"),
    "init_strategy": ("takase", "takase-scaled", "scaled", "small", "normal"),
    "injection_type": ("linear", "ffn", "add", "gate"),
    "state_init": ("like-init", "normal", "embed", "unit", "zero", "input"),
    "rope_pairs": ("interleaved", "halves"),
}
"""The architectures that exist here: field -> what it may name, first what is published. The
classes behind the names are in blocks.py, norms.py and states.py."""

FLAGS = {
    "tie_embeddings": True,
    "qk_bias": True,
    "init_orthogonal": False,
    "norm_after_core": True,
}
"""True or False, as published."""

ONLY: dict[str, Any] = {"bias": False, "test_time_noise": 0}
"""Field -> the only value that is built here."""

MORE: dict[str, Any] = {
    "qk_norm": False,
    "clip_qkv": None,
    "rotary_scaling": None,
    "init_values": None,
}
"""What the published model does not have."""

UNSAID = (*MORE, "rope_pairs", "norm_after_core")
"""Not written to a file at their published values: the paper's class does not know them."""

ROTARY_TYPES = ("linear", "llama3", "yarn")
"""Ways to stretch positions that need no more than the position."""

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
    "sliding_window": (None,),
    "use_sliding_window": (False,),
    # of the paper's training code
    "center_attention": (False,),
    "debias_attention": (False,),
    "elbayad_weighing": (False,),
    "embed_step": (False,),
    "intermediate_noise_injection": (0,),
    "lm_head_bias": (False,),
    "loss_shape": ("none",),
    "mcleish_throttle": (False,),
    "mup_model_scaling_factor": (1,),
    "normalize_rec": ("",),
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
RECOMPUTED = ("effective_expected_depth",)
"""Written by the paper's own class, and not kept up by it; computed anew."""


PUBLISHED: dict[str, Any] = (
    DEFAULTS | {name: names[0] for name, names in NAMES.items()} | FLAGS | ONLY | MORE
)
"""All fields of `HuginnConfig`, with the published model's values."""


def sift(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the fields of `HuginnConfig`, all of them; the rest, which transformers keeps).

    given: what a caller or a config.json says; a field that is None is not said.
    Raises:
        ValueError: an unknown field, or two that contradict each other; `check` does the values.
    """
    row = retrofitted(given) if is_retrofitted(given) else dict(given)
    unnest(row)
    unspell(row)
    for name in RECOMPUTED:
        row.pop(name, None)
    derived = {name: row.pop(name, None) for name in DERIVED}
    for name, same in ABSENT.items():
        check_absent(name, row.pop(name, same[0]), same)
    own = {name: row.pop(name, None) for name in PUBLISHED}
    own |= {name: value for name, value in PUBLISHED.items() if own[name] is None}
    if own["num_key_value_heads"] is None:
        own["num_key_value_heads"] = own["n_heads"]
    check_known(row)
    check(own)
    check_derived(own, derived)
    return own, row


def unnest(row: dict[str, Any]) -> None:
    """Fields that are said in a dictionary become fields; in place.

    rope_parameters: transformers' base and stretching of positions. rope_settings: of the paper's
    training code. embed_step and the like have no dictionary."""
    rope = dict(row.pop("rope_parameters", None) or {})
    if rope:
        said = {"rope_theta": rope.pop("rope_theta", None)}
        check_absent("partial_rotary_factor", rope.pop("partial_rotary_factor", None), (None, 1))
        kind = rope.get("rope_type", rope.get("type", "default"))
        said["rope_scaling"] = None if kind == "default" else rope
        add(row, said, "rope_parameters")
    settings = dict(row.pop("rope_settings", None) or {})
    if settings:
        check_absent("rope_settings.use_rope", settings.pop("use_rope", True), (True,))
        said = {"rope_base": settings.pop("rope_base", None)}
        if (factor := settings.pop("rope_condense_ratio", 1)) != 1:
            said["rope_scaling"] = {"rope_type": "linear", "factor": factor}
        if settings:
            raise ValueError(f"Huginn: rope_settings says {settings}, which nobody knows")
        add(row, said, "rope_settings")


NESTED = ("rope_parameters", "rope_settings")


def add(row: dict[str, Any], said: Mapping[str, Any], source: str) -> None:
    """Put what `source` says into the row; a ValueError if the row says something else."""
    for name, value in said.items():
        if value is not None and row.get(name) not in (None, value):
            raise ValueError(
                f"Huginn: {source} says {name} {value!r}, but {name} is {row[name]!r}; give one"
            )
        if value is not None:
            row[name] = value


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
    known = {*PUBLISHED, *ALIASES, *ABSENT, *DERIVED, *RECOMPUTED, *NESTED, *OF_TRANSFORMERS}
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
    for name in FLAGS:
        if not isinstance(own[name], bool):
            raise ValueError(f"Huginn: {name} is {own[name]!r}, must be True or False")
    for name in ("sampling_scheme", "activation_checkpoint_impl"):
        if not isinstance(own[name], str):
            raise ValueError(f"Huginn: {name} is {own[name]!r}, must be a name")
    for name, names in NAMES.items():
        if own[name] not in names:
            what = f"only {names[0]!r} is" if len(names) == 1 else f"only {', '.join(names)} are"
            raise ValueError(f"Huginn: {name} is {own[name]!r}, but {what} built here")
    for name, only in ONLY.items():
        if own[name] != only or isinstance(own[name], bool) != isinstance(only, bool):
            raise ValueError(f"Huginn: {name} is {own[name]!r}, but only {only!r} is built here")
    check_heads(own)
    check_more(own)


def check_heads(own: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the heads divide the width, and each other."""
    d, N, G = own["n_embd"], own["n_heads"], own["num_key_value_heads"]
    if d % (2 * N):
        raise ValueError(
            f"Huginn: n_embd {d} does not split into {N} heads of even width; change one of them"
        )
    if N % G:
        raise ValueError(
            f"Huginn: {G} key-value heads for {N} heads; the heads must be a multiple of them"
        )
    if own["qk_bias"] and N != G:
        raise ValueError(
            f"Huginn: qk_bias gives each of {N} heads keys of its own, but there are {G} key-value "
            "heads; set qk_bias=False, or num_key_value_heads to the heads"
        )


def check_more(own: dict[str, Any]) -> None:
    """Raise a ValueError for what the published model does not have and is not built here."""
    if not isinstance(own["qk_norm"], bool) and own["qk_norm"] != "projection":
        raise ValueError(f"Huginn: qk_norm is {own['qk_norm']!r}: False, True or 'projection'")
    if own["clip_qkv"] is not None:
        own["clip_qkv"] = positive("clip_qkv", own["clip_qkv"])
    if own["mlp_class_name"] == "HalfGateMLP" and own["injection_type"] == "ffn":
        raise ValueError(
            "Huginn: injection_type is 'ffn', but a HalfGateMLP cannot read state and input "
            "together; choose another mlp_class_name, or injection_type='linear'"
        )
    scaling = own["rotary_scaling"]
    if scaling is not None:
        kind = (
            scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, Mapping) else None
        )
        if kind not in ROTARY_TYPES:
            raise ValueError(
                f"Huginn: rope_scaling is {scaling!r}; of its types {', '.join(ROTARY_TYPES)} are "
                "built here"
            )
        own["rotary_scaling"] = {**scaling, "rope_type": kind}
    if own["init_values"] is not None:
        check_init_values(own["init_values"])


INIT_VALUES = ("std", "out_proj", "embedding", "embed_scale")


def check_init_values(given: Any) -> None:
    """Raise a ValueError unless these are deviations of fresh weights and the embedding's scale."""
    if not isinstance(given, Mapping) or set(given) - set(INIT_VALUES):
        raise ValueError(f"Huginn: init_values is {given!r}; it has {', '.join(INIT_VALUES)}")
    for name, value in given.items():
        positive(f"init_values.{name}", value)


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


# --------------------------------------------------------------------------------------------------
# Initialisation


def strategy(name: str, d: int, depth: int) -> dict[str, float]:
    """Deviations of fresh matrices, of those that write to the stream, and the scales of embedding
    and logits, of width d and L = `depth` blocks at the mean recurrence (init.py of the paper's
    code; "takase" is arXiv 2312.16903)."""
    plain = math.sqrt(2 / (5 * d)) if name != "normal" else 1 / math.sqrt(d)
    scaled = name in ("takase", "takase-scaled", "scaled")
    return {
        "std": plain,
        "out_proj": plain / math.sqrt(2 * depth) if scaled else plain,
        "embed_scale": math.sqrt(d) if name.startswith("takase") else 1.0,
        "logit_scale": math.sqrt(2 / 5) / math.sqrt(d) if name == "takase-scaled" else 1.0,
    }


# --------------------------------------------------------------------------------------------------
# Retrofitted models (arXiv 2511.07384)


def is_retrofitted(row: Mapping[str, Any]) -> bool:
    """Whether a config.json was made by that paper's conversion: it says "SandwichBlock", but the
    blocks are those of Llama or OLMo-2, which the names of the weights tell."""
    values = row.get("init_values") or {}
    return (
        row.get("rope_theta") is not None
        and row.get("qk_bias") is False
        and isinstance(values, Mapping)
        and values.get("embed_scale") == 1
        and row.get("block_class_name") in (None, "SandwichBlock")
        and row.get("rope_pairs") is None
    )


def retrofitted(given: Mapping[str, Any]) -> dict[str, Any]:
    """That config.json in our fields. Its rope_base, block_size and tie_word_embeddings are left
    over from the configuration it was copied from; its module reads rope_theta and
    max_position_embeddings."""
    row = dict(given)
    row |= {"block_class_name": "TransformerPreNormBlock", "rope_pairs": "halves"}
    row |= {"norm_after_core": False, "rope_base": row.pop("rope_theta")}
    row["block_size"] = row.pop("max_position_embeddings", None) or row.get("block_size")
    if row.get("tie_embeddings") is not None:
        row.pop("tie_word_embeddings", None)
    modes = {"random": row.get("state_init"), "embed-init": "input"}
    mode = row.pop("initial_state_mode", None) or "random"
    if mode not in modes:
        raise ValueError(
            f"Huginn: initial_state_mode is {mode!r}, but only {', '.join(modes)} are built here"
        )
    return row | {"state_init": modes[mode]}


# --------------------------------------------------------------------------------------------------
# Values


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
    return value if isinstance(value, int) else float(value)
