"""Pretrained models that learn to think in depth: Llama and OLMo-2 cut into prelude, core and coda.

"Teaching Pretrained Language Models to Think Deeper with Retrofitted Recurrence", McLeish et al.
2025, arXiv 2511.07384. The first layers become the prelude, the last ones the coda, the layers just
before those the core; what lies between is dropped (TinyLlama: 4, 8, 4 of 22). The blocks stay what
they were, see blocks.py; embeddings are not scaled, and no norm stands before the coda.

Published checkpoints of that kind load as they are, see stored.py; `retrofit` makes a new one. Here
the adapter starts as [0 | I], so that a fresh model says at every depth what the kept layers say
one after the other; `difference` measures that. It has to be trained to do more.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM

BASES = {"llama": "TransformerPreNormBlock", "olmo2": "SwinBlock"}
"""model_type of a base -> its block."""


def kept_layers(num_layers: int, parts: Sequence[int], start: int | None = None) -> list[range]:
    """Which layers of a base become prelude, core and coda of (P, R, C) blocks: the first P, R from
    `start` on (by default those before the coda), and the last C.

    Raises:
        ValueError: they do not fit in, or overlap.
    """
    if len(parts) != 3 or min(parts) < 0 or parts[1] < 1:
        raise ValueError(f"layers are {list(parts)}; give prelude, core (at least 1) and coda")
    P, R, C = parts
    first = num_layers - C - R if start is None else start
    if not P <= first <= num_layers - C - R:
        raise ValueError(
            f"the core would begin at layer {first} of {num_layers}, but {P} layers of prelude lie "
            f"before it, {R} of core and {C} of coda follow; choose fewer layers, or another start"
        )
    return [range(P), range(first, first + R), range(num_layers - C, num_layers)]


def check_base(base: Any) -> None:
    """Raise a ValueError unless the base is a Llama or an OLMo-2 without what no block has here."""
    config = base.config
    if config.model_type not in BASES:
        raise ValueError(
            f"the base is a {config.model_type}; {', '.join(BASES)} can be cut into prelude, core "
            "and coda"
        )
    neutral = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
    for name, value in neutral.items():
        if getattr(config, name, value) != value:
            raise ValueError(
                f"the base has {name} {getattr(config, name)!r}; only {value!r} can be cut"
            )


def config_for(base: Any, parts: Sequence[int], **choices: Any) -> HuginnConfig:
    """The configuration of a retrofit of (P, R, C) blocks; `choices`: other fields of it."""
    of = base.config
    chosen: dict[str, Any] = {"mean_recurrence": 8, "mean_backprop_depth": 8} | choices
    return HuginnConfig(
        n_embd=of.hidden_size,
        n_heads=of.num_attention_heads,
        num_key_value_heads=of.num_key_value_heads,
        head_dim=getattr(of, "head_dim", None),
        intermediate_size=of.intermediate_size,
        vocab_size=of.vocab_size,
        block_size=of.max_position_embeddings,
        n_layers_in_prelude=parts[0],
        n_layers_in_recurrent_block=parts[1],
        n_layers_in_coda=parts[2],
        norm_eps=of.rms_norm_eps,
        rope_parameters=dict(of.rope_parameters),
        rope_pairs="halves",
        block_class_name=BASES[of.model_type],
        qk_norm="projection" if of.model_type == "olmo2" else False,
        qk_bias=False,
        norm_after_core=False,
        init_strategy="scaled",
        tie_embeddings=of.tie_word_embeddings,
        **chosen,
    )


@torch.no_grad()
def retrofit(
    base: Any, parts: Sequence[int], *, start: int | None = None, **choices: Any
) -> HuginnForCausalLM:
    """A Huginn model of a Llama's or an OLMo-2's layers, in evaluation mode.

    Args:
        base: LlamaForCausalLM or Olmo2ForCausalLM; it is left as it is.
        parts: blocks of prelude, core and coda.
        start: the base's layer that the core begins with; see `kept_layers`.
        choices: fields of the configuration, such as mean_recurrence (8) and mean_backprop_depth.
    Raises:
        ValueError: another base, or layers that it does not have.
    """
    check_base(base)
    kept = kept_layers(base.config.num_hidden_layers, parts, start)
    config = config_for(base, parts, **choices)
    with torch.device("meta"):
        model = HuginnForCausalLM(config)
    tensors = stem(base)
    for part, layers in zip(("prelude", "core_block", "coda"), kept, strict=True):
        for i, layer in enumerate(layers):
            block = block_of(base.model.layers[layer])
            tensors |= {f"transformer.{part}.{i}.{name}": t for name, t in block.items()}
    dtype, device = base.dtype, base.device
    own = {name: t.detach().clone().to(device, dtype) for name, t in tensors.items()}
    model.load_state_dict(own, strict=not config.tie_embeddings, assign=True)
    model.tie_weights()
    if base.generation_config is not None:
        model.generation_config = copy.deepcopy(base.generation_config)
    return model.eval()


def stem(base: Any) -> dict[str, Tensor]:
    """All but the blocks, under our names; the adapter lets the input through: [0 | I]."""
    d = base.config.hidden_size
    adapter = torch.cat([torch.zeros(d, d), torch.eye(d)], dim=1)
    tensors = {
        "transformer.wte.weight": base.model.embed_tokens.weight,
        "transformer.adapter.weight": adapter,
        "transformer.ln_f.weight": base.model.norm.weight,
    }
    if not base.config.tie_word_embeddings:
        tensors["lm_head.weight"] = base.lm_head.weight
    return tensors


def block_of(layer: Any) -> dict[str, Tensor]:
    """A base's layer under the names of a block."""
    attn, mlp = layer.self_attn, layer.mlp
    tensors = {
        "attn.Wqkv.weight": torch.cat([attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight]),
        "attn.proj.weight": attn.o_proj.weight,
        "mlp.fc.weight": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
        "mlp.proj.weight": mlp.down_proj.weight,
    }
    if hasattr(attn, "q_norm"):  # OLMo-2
        return tensors | {
            "attn.q_norm.weight": attn.q_norm.weight,
            "attn.k_norm.weight": attn.k_norm.weight,
            "norm_1.weight": layer.post_attention_layernorm.weight,
            "norm_2.weight": layer.post_feedforward_layernorm.weight,
        }
    return tensors | {
        "norm_1.weight": layer.input_layernorm.weight,
        "norm_2.weight": layer.post_attention_layernorm.weight,
    }


@torch.no_grad()
def difference(
    model: HuginnForCausalLM, base: Any, *, start: int | None = None, tokens: Tensor | None = None
) -> float:
    """The largest difference between the logits of a fresh retrofit at r = 1 and those of the
    layers that it kept, one after the other. `tokens`: (B, S); by default 16 of the vocabulary."""
    if tokens is None:
        tokens = torch.arange(16, device=base.device)[None] * 7919 % base.config.vocab_size
    layers = base.model.layers
    kept = kept_layers(len(layers), model.config.layers, start)
    shallow = copy.copy(base)
    shallow._modules = dict(base._modules)
    shallow.model = copy.copy(base.model)
    shallow.model._modules = dict(base.model._modules)
    shallow.model.config = copy.copy(base.config)
    shallow.model.config.num_hidden_layers = sum(map(len, kept))
    shallow.model.layers = nn.ModuleList(layers[i] for part in kept for i in part)
    want = shallow(tokens, use_cache=False).logits
    got = model(tokens, num_steps=1).logits
    worst = (got.float() - want.float()).abs().max().item()
    return worst if math.isfinite(worst) else math.inf
