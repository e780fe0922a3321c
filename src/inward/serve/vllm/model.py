"""Huginn in vLLM's layers (arXiv 2502.05171); the model itself is in `inward.methods.huginn`.

    transformer.wte, prelude, adapter, core_block, coda, ln_f; lm_head     names as published

What is unusual for vLLM: the blocks of the core run `mean_recurrence` times over the same weights,
but what a token looks at differs with each: so a block holds one `Attention` for each recurrence,
which is a name and a place in the paged cache and no weights. vLLM finds them by their names, in
which it wants one number each, the slot:

    slot    0 .. P-1  prelude,   P .. P+C-1  coda,   P + C + R * i + l  layer l of recurrence i

All else is vLLM's own: chunked prefill, cached prefixes, preemption and tensor parallelism see a
model of P + C + R * r layers. The initial state is a function of (seed 0, position), as in ours, so
that a prompt whose beginning is cached goes on as if it were not. The depth is the configuration's
mean_recurrence (`--hf-overrides`), because the loop is part of the compiled graph.

Shape letters: T tokens of all requests of a step, d width, N heads, H head width.
"""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix

from inward.methods.huginn.blocks import RMSNorm
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.context import rotary_angles, rotate_pairs
from inward.methods.huginn.noise import uniform_at
from inward.methods.huginn.states import DRAWN, FIXED

BUILT: dict[str, tuple[Any, ...]] = {
    "block_class_name": ("SandwichBlock",),
    "norm_class_name": ("RMSNorm_llama", "RMSNorm"),
    "mlp_class_name": ("GatedMLP",),
    "nonlin_name": ("SiLU",),
    "injection_type": ("linear",),
    "rope_pairs": ("interleaved",),
    "qk_bias": (True,),
    "norm_after_core": (True,),
    "qk_norm": (False,),
    "clip_qkv": (None,),
    "rotary_scaling": (None,),
    "logit_scale": (1, 1.0),
}
"""Field -> the values that are built here: the published model's. Retrofits and the training code's
other variants run in `inward serve`."""


class SlottedAttention(nn.Module):
    """Attention of a block whose keys and values lie in `slots`, one for each time it runs."""

    def __init__(self, config: HuginnConfig, slots: Iterable[int], vllm_config: Any, prefix: str):
        super().__init__()
        quant, cache = vllm_config.quant_config, vllm_config.cache_config
        d, ranks = config.n_embd, get_tensor_model_parallel_world_size()
        self.num_heads, self.width = config.n_heads // ranks, config.head_dim
        more = {"bias": False, "quant_config": quant}
        self.Wqkv = QKVParallelLinear(
            d, self.width, config.n_heads, prefix=f"{prefix}.Wqkv", **more
        )
        self.proj = RowParallelLinear(d, d, prefix=f"{prefix}.proj", **more)
        self.qk_bias = nn.Parameter(torch.zeros(2, 1, self.num_heads, self.width))
        self.qk_bias.weight_loader = _load_own_heads  # pyright: ignore - as vLLM asks for it
        top = prefix.partition(".")[0]
        self.attend = nn.ModuleList(
            Attention(
                self.num_heads,
                self.width,
                self.width**-0.5,
                cache_config=cache,
                quant_config=quant,
                prefix=f"{top}.slots.{slot}.attn",
            )
            for slot in slots
        )

    def forward(self, h: Tensor, rotary: tuple[Tensor, Tensor], time: int) -> Tensor:
        """(T, d) of tokens that run through the block for the `time`-th time, from 0."""
        qkv, _ = self.Wqkv(h)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.width)).unbind(1)
        # the bias comes after the projection was rounded, and before the rotation
        q = rotate_pairs(q + self.qk_bias[0].to(q.dtype), *rotary)
        k = rotate_pairs(k + self.qk_bias[1].to(k.dtype), *rotary)
        seen = self.attend[time](q.flatten(1), k.flatten(1), v.flatten(1).contiguous())
        return self.proj(seen)[0]


def _load_own_heads(param: Tensor, loaded: Tensor) -> None:
    """The bias of this rank's heads, of (2, 1, N, H)."""
    num = param.shape[2]
    first = get_tensor_model_parallel_rank() * num
    param.data.copy_(loaded[:, :, first : first + num])


class SlottedMLP(nn.Module):
    """proj(silu(gate) * up); fc holds gate, then up."""

    def __init__(self, config: HuginnConfig, vllm_config: Any, prefix: str):
        super().__init__()
        more = {"bias": False, "quant_config": vllm_config.quant_config}
        d, m = config.n_embd, config.intermediate_size
        self.fc = MergedColumnParallelLinear(d, [m, m], prefix=f"{prefix}.fc", **more)
        self.proj = RowParallelLinear(m, d, prefix=f"{prefix}.proj", **more)

    def forward(self, h: Tensor) -> Tensor:
        gate, up = self.fc(h)[0].chunk(2, dim=-1)
        return self.proj(F.silu(gate) * up)[0]


class SlottedBlock(nn.Module):
    """The block of section 3.2: norms lie on the residual sum."""

    def __init__(self, config: HuginnConfig, slots: Iterable[int], vllm_config: Any, prefix: str):
        super().__init__()
        self.norm_1, self.norm_2, self.norm_3, self.norm_4 = (
            RMSNorm(config.n_embd, config.norm_eps) for _ in range(4)
        )
        self.attn = SlottedAttention(config, slots, vllm_config, f"{prefix}.attn")
        self.mlp = SlottedMLP(config, vllm_config, f"{prefix}.mlp")

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], time: int = 0) -> Tensor:
        a = self.norm_2(x + self.attn(self.norm_1(x), rotary, time))
        return self.norm_4(a + self.mlp(self.norm_3(a)))


TOKENS = {"input_ids": 0, "positions": -1, "intermediate_tensors": 0, "inputs_embeds": 0}
"""The dimension of each argument that is the number of tokens: the compiled graph serves any."""


@support_torch_compile(dynamic_arg_dims=TOKENS)
class HuginnTrunk(nn.Module):
    """All but the head: P, s_0, R r times, C up to its last norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = self.config = _checked(vllm_config)
        prelude, core, coda = config.layers
        first = prelude + coda
        self.depth = config.mean_recurrence

        def blocks(name: str, slots: list[Iterable[int]]) -> nn.ModuleList:
            return nn.ModuleList(
                SlottedBlock(config, own, vllm_config, f"{prefix}.{name}.{i}")
                for i, own in enumerate(slots)
            )

        quant = vllm_config.quant_config
        self.wte = VocabParallelEmbedding(
            config.vocab_size, config.n_embd, quant_config=quant, prefix=f"{prefix}.wte"
        )
        self.prelude = blocks("prelude", [[p] for p in range(prelude)])
        self.adapter = ReplicatedLinear(
            2 * config.n_embd,
            config.n_embd,
            bias=False,
            quant_config=quant,
            prefix=f"{prefix}.adapter",
        )
        self.core_block = blocks(
            "core_block",
            [range(first + layer, first + core * self.depth, core) for layer in range(core)],
        )
        self.coda = blocks("coda", [[prelude + c] for c in range(coda)])
        self.ln_f = RMSNorm(config.n_embd, config.norm_eps)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Rows times the scale, sqrt(d) as published."""
        return self.wte(input_ids) * self.config.embed_scale

    def initial_state(self, e: Tensor, positions: Tensor) -> Tensor:
        """s_0 (T, d): what `HuginnForCausalLM.initial_state` says for seed 0."""
        if (fixed := FIXED.get(self.config.state_init)) is not None:
            return fixed(e)
        uniform = uniform_at(0, positions[None], e.shape[-1])
        return DRAWN[self.config.state_init](uniform, self.config)[0].to(e.dtype)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """(T, d) what the head reads."""
        config = self.config
        x = inputs_embeds
        if x is None:
            assert input_ids is not None
            x = self.embed_input_ids(input_ids)
        cos, sin = rotary_angles(positions[None], config.head_dim, config.rope_base)
        rotary = cos[0], sin[0]
        for block in self.prelude:
            x = block(x, rotary)
        s = self.initial_state(x, positions)
        for i in range(self.depth):
            s = self.adapter(torch.cat([s, x], dim=-1))[0]
            for block in self.core_block:
                s = block(s, rotary, i)
        x = self.ln_f(s)
        for block in self.coda:
            x = block(x, rotary)
        return self.ln_f(x)


class HuginnInVLLM(nn.Module):
    """What vLLM loads and runs for `HuginnForCausalLM` and `RavenForCausalLM`."""

    packed_modules_mapping = {"Wqkv": ["Wqkv"], "fc": ["fc"]}  # noqa: RUF012 - fused on disk, too

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = self.config = _checked(vllm_config)
        self.transformer = HuginnTrunk(
            vllm_config=vllm_config, prefix=maybe_prefix(prefix, "transformer")
        )
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.n_embd,
            quant_config=vllm_config.quant_config,
            prefix=maybe_prefix(prefix, "lm_head"),
        )
        if config.tie_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.transformer.wte)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """What the prelude sees."""
        return self.transformer.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """(T, d) what the head reads."""
        return self.transformer(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """(T, V), of the rows that vLLM chose."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Of 77 tensors (the head twice, a table of angles) or 76; ValueError for missing ones."""
        tied = {"lm_head.weight"} if self.config.tie_embeddings else set()
        left_out = tied | {"freqs_cis"}
        loaded = AutoWeightsLoader(self).load_weights(
            (name, tensor) for name, tensor in weights if name not in left_out
        )
        missing = sorted({name for name, _ in self.named_parameters()} - loaded - tied)
        if missing:
            raise ValueError(f"the folder lacks {', '.join(missing[:5])} ({len(missing)} in all)")
        return loaded | tied


def _checked(vllm_config: VllmConfig) -> HuginnConfig:
    """The configuration, overrides and all, checked again: vLLM sets them without a look.

    Raises:
        ValueError: a value that the model cannot have, or a parallelism it is not built for.
    """
    found = vllm_config.model_config.hf_config
    config = HuginnConfig(**{k: v for k, v in found.to_dict().items() if k != "model_type"})
    for name, values in BUILT.items():
        if (value := getattr(config, name)) not in values:
            raise ValueError(
                f"{name} is {value!r}, but in vLLM only {values[0]!r} is built; use inward serve"
            )
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise ValueError(
            f"pipeline_parallel_size is {parallel.pipeline_parallel_size}, but Huginn's core runs "
            "again and again on all of its blocks; use tensor parallelism"
        )
    if config.n_heads % parallel.tensor_parallel_size:
        raise ValueError(
            f"tensor_parallel_size is {parallel.tensor_parallel_size}, which does not divide "
            f"{config.n_heads} heads; use a divisor"
        )
    return config
