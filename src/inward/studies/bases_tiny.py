"""A tiny random model of every causal type that the installed transformers maps.

    model = tiny("gemma3_text")         # about 40,000 weights, all of which matter

Nothing is downloaded: a type's configuration is asked for its fields, those that say a size are
made small, and lists with an entry a layer are cut to a few layers in which every kind of layer
occurs. Weights are drawn so large that attention, positions and windows change the logits: with
the usual 0.02 a model of 16 dimensions hardly looks at what came before, and a wrong mask would
pass for rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 64
WINDOW = 6
"""Positions that a layer with a window or chunks attends to"""
LAYERS = 4
_MOST_PARAMETERS = 100_000_000

_SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_dim", "embedding_size"), 32
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dff", "dim_ff"), 48
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp"), 24
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"), LAYERS
    ),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_size", "d_head", "kv_channels", "dim_head"), 8),
    **dict.fromkeys(("global_head_dim", "swa_head_dim"), 8),
    **dict.fromkeys(("swa_num_attention_heads",), 4),
    **dict.fromkeys(("swa_num_key_value_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(
        ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2
    ),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_groups"), 1),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "hc_lowrank"), 16),
    "qk_head_dim": 16,
    **dict.fromkeys(("index_head_dim",), 16),
    **dict.fromkeys(("index_n_heads",), 2),
    **dict.fromkeys(("index_topk",), 64),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(
        ("sliding_window", "sliding_window_size", "attention_chunk_size", "window_size"), WINDOW
    ),
    **dict.fromkeys(("local_attention", "attention_window_size", "local_window_size"), WINDOW),
    "max_position_embeddings": 128,
    **dict.fromkeys(("n_positions", "max_seq_len", "n_ctx", "max_target_positions"), 128),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    "is_decoder": True,
    "vocab_size": VOCAB,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "sep_token_id", "cls_token_id"), 0),
    "eos_token_id": 1,
    **dict.fromkeys(("vocab_size_per_layer_input", "unpadded_vocab_size"), VOCAB),
    "hidden_size_per_layer_input": 8,
    "rotary_dim": 4,
    "shared_intermediate_size": 24,
    "expert_ffn_hidden_size": 24,
    "ffn_hidden_size": 48,
    "dense_intermediate_size": 48,
}
"""Field of a configuration -> its tiny value"""

_SAME_HEADS = {"num_key_value_heads": 4}
_HEADS_OF_NOTE = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "head_dim": 16,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "qk_rope_head_dim": 8,
}
_TEXT_OF_NOTE = {
    **_SAME_HEADS,
    "shared_experts_intermediate_size": 24,
    "per_layer_config": {"1": _HEADS_OF_NOTE, "3": _HEADS_OF_NOTE},
}
_INDEXED = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}
_RECURRENT = ["linear_attention", "full_attention"] * 2
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "bert-generation": {"is_decoder": True},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
    },
    "dots3_note_text": _TEXT_OF_NOTE,
    "dory": {
        "layer_types": None,
        "num_hidden_layers": 4,
        "n_input_layers": 1,
        "n_recurrent_layers": 2,
        "n_output_layers": 1,
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": _RECURRENT},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "qwen4_exp": _INDEXED,
    "qwen4_exp_text": _INDEXED,
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a type needs beside"""


def causal_types() -> list[str]:
    """All model types that `AutoModelForCausalLM` maps."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(kind: str, **changes: Any) -> Any:
    """The configuration of a tiny model of this type; `changes` are fields of its text part."""
    own = dict(_OWN.get(kind, {}))
    made = CONFIG_MAPPING[kind]
    return _shrunk(made, {**own, **changes})


def _shrunk(made: Any, own: dict[str, Any]) -> Any:
    base = made()
    parts = getattr(made, "sub_configs", {}) or {}
    given: dict[str, Any] = {}
    for name, part in parts.items():
        kind = type(getattr(base, name)) if getattr(base, name, None) is not None else part
        if hasattr(kind, "model_type") and kind.__name__ != "AutoConfig":
            given[name] = _shrunk(kind, own if "text" in name or "decoder" in name else {})
    fields = base.to_dict()
    given |= {
        name: _SIZES[name]
        for name, value in fields.items()
        if name in _SIZES and value is not None and name not in parts
    }
    if fields.get("kv_lora_rank") and "num_key_value_heads" in given:
        given |= _SAME_HEADS  # latent attention unfolds its keys for every head
    layers = given.get("num_hidden_layers", LAYERS)
    for name, value in fields.items():
        if name in ("layer_types", "mlp_layer_types", "layers_block_type") and value:
            kinds = list(dict.fromkeys(value))
            given[name] = (kinds * layers)[:layers]
    return made(**given | own)


def tiny(kind: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """A tiny model of a causal type in evaluation mode, at its default attention.

    Raises:
        Exception: whatever its configuration or its class raise; there are types that need more
            than a configuration.
    """
    config = tiny_config(kind, **changes)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > _MOST_PARAMETERS:
        raise ValueError(f"a {kind} of {size:,} parameters is not tiny")
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig()
    _draw(model, seed)
    return model.to(dtype).eval()


@torch.no_grad()
def _draw(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim >= 2:
            parameter.normal_(std=min(1.0, 1.5 * parameter.shape[-1] ** -0.5), generator=generator)
        else:  # gains, biases, and gates that begin closed
            parameter += torch.empty_like(parameter).normal_(std=0.2, generator=generator)
