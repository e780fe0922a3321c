"""Huginn: a language model that runs its core block as often as each token needs.

"Scaling up Test-Time Compute with Latent Reasoning: A Recurrent Depth Approach", Geiping et al.
2025, arXiv 2502.05171; weights tomg-group-umd/huginn-0125.

    e   = P(x)                        prelude: scaled embedding, then blocks           (section 3.1)
    s_0 ~ N(0, sigma^2 I)             a random state per token                         (section 3.1)
    s_i = R(e, s_{i-1})   i = 1..r    core: blocks on Adapter[s_{i-1}, e]              (section 3.1)
    p   = C(s_r)                      coda: norm, blocks, norm, tied head              (section 3.1)

What is unusual: the embedded input e enters every recurrence; norms lie on the residual *sum*, so
there is no clean residual stream; one norm, ln_f, stands both before and after the coda; the depth
r is a number chosen at each call, and the state starts as noise.

These four lines are the four methods `embed`, `initial_state`, `iterate` and `read_out` (`decode`,
then `head`); `forward` calls them in this order. `context.py` turns masks, positions and
caches of every kind into what attention needs; a cache slot belongs to a (recurrence, layer), see
`cache.py`. Training is in `train.py`; `door.py` says how to ask, `generate.py` how it is decoded.

Where the released code (seal-rg/recurrent-pretraining, 59e0b69) differs from the paper or from
here:

    topic              released code                    here
    core norm n_c      ln_f, after the loop only        the same (paper: end of the core block)
    num_steps=r        r steps, none with gradient      r steps, all with gradient; a pair is (n, k)
    labels             already shifted                  unshifted, as everywhere in transformers
    attention_mask     accepted and ignored             padding, 4-D masks, packed rows
    embedding override input_embeds, scaled inside      inputs_embeds, not scaled: the scale sqrt(d)
                                                        belongs to the embedding module, so that
                                                        get_input_embeddings()(ids) is what the
                                                        prelude sees
    s_0                drawn at every call              argument `state`; else drawn in training,
                                                        and a function of (seed, position) in use
    init of MLP up     HF file: out-proj sigma          plain sigma, as the weights were trained
    rotary angles      a saved table                    from positions, float32; block_size checked

Shape letters: B rows, S new tokens, K cached and new tokens, d width, N heads, H head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from threading import get_ident
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Cache, DynamicCache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from inward.common.bases import both_cache_names, cache_field, given_cache
from inward.common.draws import Draws, Loss
from inward.common.trace import Cost
from inward.common.weights import strict
from inward.methods.huginn.blocks import Attention, OutProjection, RMSNorm, SandwichBlock
from inward.methods.huginn.cache import RecurrentCache, SlotLayout
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.context import (
    Context,
    check_inputs,
    check_mask,
    check_passed,
    check_plain_cache,
    check_positions,
    positions_of,
    rotary_angles,
    split_depth,
    visible,
)
from inward.methods.huginn.costs import HuginnCosts
from inward.methods.huginn.noise import truncated_normal, uniform_at


class ScaledEmbedding(nn.Embedding):
    """Rows times sqrt(d)."""

    def __init__(self, num_embeddings: int, width: int, **kwargs: Any):
        super().__init__(num_embeddings, width, **kwargs)
        self.embed_scale = math.sqrt(width)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.embed_scale


class Transformer(nn.Module):
    """All weights but the head, under their published names."""

    def __init__(self, config: HuginnConfig):
        super().__init__()
        prelude, core, coda = config.layers
        self.wte = ScaledEmbedding(config.vocab_size, config.n_embd)
        self.prelude = nn.ModuleList(SandwichBlock(config) for _ in range(prelude))
        self.adapter = nn.Linear(2 * config.n_embd, config.n_embd, bias=False)
        self.core_block = nn.ModuleList(SandwichBlock(config) for _ in range(core))
        self.coda = nn.ModuleList(SandwichBlock(config) for _ in range(coda))
        self.ln_f = RMSNorm(config.n_embd, config.norm_eps)


# --------------------------------------------------------------------------------------------------
# The model

PASSED_ON = {"num_items_in_batch", "shift_labels", "ignore_index"}
"""Arguments of transformers' loss."""
CACHE = cache_field(CausalLMOutputWithPast)
"""What the installed transformers calls a cache, in `generate` and in outputs; we take both names.
"""


@both_cache_names
@dataclass
class HuginnOutput(CausalLMOutputWithPast):
    """As of any causal LM in transformers, and:

    latents: (B, S, d) ln_f(s_r), what the coda reads.
    states: s_1 .. s_r, each (B, S, d), raw; only with output_states.
    """

    latents: Tensor | None = None
    states: tuple[Tensor, ...] | None = None


class HuginnForCausalLM(PreTrainedModel, GenerationMixin):
    """The recurrent-depth language model."""

    config_class = HuginnConfig
    config: HuginnConfig
    _no_split_modules = ["SandwichBlock"]  # noqa: RUF012 - the base class declares these so
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"^freqs_cis$"]  # noqa: RUF012
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: HuginnConfig):
        config.check()
        super().__init__(config)
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.gradient_checkpointing = False
        self.active_parts: dict[int, Any] = {}  # of a thread, see `parts`
        self.own_parts: Any = None  # of a twin
        self.post_init()

    @property
    def parts(self) -> Any:
        """The blocks to run: `transformer` and the head, or what `cpu` made of them for this
        thread or for a twin, which knows no gradients."""
        if torch.is_grad_enabled():
            return self.transformer
        return self.own_parts or self.active_parts.get(get_ident()) or self.transformer

    # -- P: the prelude

    def embed(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Context]:
        """e = P(x), (B, S, d), and the context of the tokens. `rows`: the cache rows of this batch,
        if it is not all of them."""
        x = self.transformer.wte(input_ids) if inputs_embeds is None else inputs_embeds
        context = self.context(x, attention_mask, position_ids, cache, rows)
        for p, block in enumerate(self.parts.prelude):
            x = block(x, context, p)
        return x, context

    # -- s_0

    def initial_state(
        self,
        e: Tensor,
        *,
        generator: torch.Generator | None = None,
        seed: int | Tensor = 0,
        positions: Tensor | None = None,
    ) -> Tensor:
        """s_0 (B, S, d): a normal of variance 2/5 before it is cut at +-3 sigma, or zeros if the
        configuration says state_init="zero".

        With a generator the numbers are drawn from it; else they depend on `seed` (a number, or
        (B,)) and the absolute position alone, `Context.positions`, by default 0, 1, ...
        """
        if self.config.state_init == "zero":
            return torch.zeros_like(e)
        if generator is not None:
            drawn = torch.rand(e.shape, generator=generator, device=generator.device)
            uniform = drawn.to(e.device)
        else:
            if positions is None:
                positions = torch.arange(e.shape[1], device=e.device)[None]
            uniform = uniform_at(seed, positions, e.shape[2])
        state = math.sqrt(e.shape[2]) * self.config.init_std * truncated_normal(uniform)
        return state.to(e.dtype).expand_as(e)

    # -- R: the core

    def iterate(
        self, s: Tensor, e: Tensor, context: Context, *, recurrence: int | Tensor
    ) -> Tensor:
        """s_{i+1} = R(e, s_i), all (B, S, d). `recurrence` is i, from 0: it says which cache slots
        are read and written; (B,) if the rows have come differently far."""
        parts = self.parts
        h = parts.adapter(torch.cat([s, e], dim=-1))
        indices = context.visit(recurrence, self.config.layers)
        for block, layer_idx in zip(parts.core_block, indices, strict=False):
            h = block(h, context, layer_idx)
        return h

    # -- C: the coda

    def read_out(
        self, s: Tensor, context: Context, *, logits_to_keep: int | Tensor = 0
    ) -> tuple[Tensor, Tensor]:
        """(ln_f(s), logits): (B, S, d) and (B, S or fewer, V) in the dtype of the model.

        logits_to_keep: only the last so many (0: all), or these positions.
        """
        latents, x = self.decode(s, context)
        return latents, self.head(x, logits_to_keep)

    def decode(self, s: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """(ln_f(s), what the head reads), each (B, S, d)."""
        parts = self.parts
        latents = x = parts.ln_f(s)
        for c, block in enumerate(parts.coda):
            x = block(x, context, self.config.n_layers_in_prelude + c)
        return latents, parts.ln_f(x)

    def head(self, x: Tensor, logits_to_keep: int | Tensor = 0) -> Tensor:
        """Logits (B, S or fewer, V) of what `decode` returned."""
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        parts = self.parts
        return (self if parts is self.transformer else parts).lm_head(x[:, kept])

    # -- all of it

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        *,
        cache: Cache | None = None,
        num_steps: int | Sequence[int] | Tensor | None = None,
        state: Tensor | None = None,
        generator: torch.Generator | None = None,
        state_seed: int | Tensor | None = None,
        output_states: bool = False,
        output_hidden_states: bool | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> HuginnOutput:
        """One pass with r recurrences for every token.

        Args:
            input_ids: (B, S); or inputs_embeds (B, S, d), which enter the prelude as they are.
            attention_mask: (B, K) 1 = real token, padding on either side; or 4-D (B or 1, N or 1,
                S, K), bool (True = may look) or additive, which says all: nothing is added to it.
            position_ids: (B or 1, S). Without a mask and a cache, rows may be packed: a position
                that is not its left neighbour's successor starts a new text.
            cache: newer name of past_key_values.
            labels: (B, S) unshifted, -100 does not count.
            num_steps: r; or (n, k): n recurrences without gradient, then k with. Default: the mean
                recurrence; in training its last `mean_backprop_depth` recurrences with gradient.
            state: s_0 (B, S, d). Default: see `initial_state`; in training drawn from `generator`
                or torch's default one, in evaluation from `state_seed` (0).
            output_states: return s_1 .. s_r.
            token_type_ids, and others of `inward.common.passed`: taken where they change nothing.
        Raises:
            ValueError: inputs that do not fit together, before anything is computed.
            TypeError: an argument that there is not.
        """
        no_grad, with_grad = split_depth(num_steps, self.config, self.training)
        check_inputs(input_ids, inputs_embeds, state, self.config.n_embd)
        given = given_cache(cache, past_key_values)
        new = cast(Tensor, input_ids if inputs_embeds is None else inputs_embeds)
        kwargs["token_type_ids"] = token_type_ids
        kwargs = check_passed(new, position_ids, attention_mask, given, kwargs)
        if unknown := set(kwargs) - PASSED_ON:
            raise TypeError(f"forward knows no {sorted(unknown)}")
        if not isinstance(output_hidden_states, bool | None):
            raise ValueError(
                f"output_hidden_states is {output_hidden_states!r}; Huginn gives all of them (True)"
            )
        x = self.transformer.wte(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache(given, use_cache, no_grad + with_grad)
        e, context = self.embed(
            inputs_embeds=x, attention_mask=attention_mask, position_ids=position_ids, cache=cache
        )
        if state is None:
            state = self._start(e, context, generator, state_seed)
        states = [state.to(e.dtype)]
        for i in range(no_grad + with_grad):
            with torch.set_grad_enabled(i >= no_grad and torch.is_grad_enabled()):
                states.append(self._step(states[-1], e, context, i))
            if i + 1 == no_grad:
                # Autocast keeps the weights it has cast; those were cast without a graph, and used
                # again they would cut the gradient (PyTorch issue 65766).
                torch.clear_autocast_cache()
            if not (output_states or output_hidden_states):
                del states[:-1]
        latents, hidden = self.decode(states[-1], context)
        logits = self.head(hidden, logits_to_keep)
        if context.place is not None:
            cast(RecurrentCache, cache).commit(context.place, no_grad + with_grad)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return HuginnOutput(
            loss=loss,
            logits=logits,
            **{CACHE: cache},  # pyright: ignore
            latents=latents,
            states=tuple(states[1:]) if output_states else None,
            hidden_states=(x, e, *states[1:], latents, hidden) if output_hidden_states else None,
        )

    def _cache(self, cache: Cache | None, use_cache: bool | None, depth: int) -> Cache | None:
        """The cache to use: the given one if it fits; with use_cache and none, a new one (one that
        keeps gradients where there are any)."""
        if cache is None and use_cache:
            cache = DynamicCache() if torch.is_grad_enabled() else RecurrentCache()
        if cache is None:
            return None
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            raise ValueError(
                "a cache and gradient checkpointing exclude each other: the second run of a "
                "recurrence would write its keys again; pass use_cache=False"
            )
        if isinstance(cache, RecurrentCache):
            cache.reserve(depth)
            return cache
        check_plain_cache(cache, self.config, depth)
        return cache

    def context(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        rows: Tensor | None = None,
    ) -> Context:
        """Where the tokens of `x` (B, S, d) stand and what they may see; ValueErrors as `forward`.

        Of x only shape, dtype and device count. Until a RecurrentCache commits them, the tokens
        behind its rows stay the new ones: the context can be made anew for any of its rows.
        """
        (B, S, _), device = x.shape, x.device
        place, start, K = None, torch.zeros(1, dtype=torch.long, device=device), S
        if isinstance(cache, RecurrentCache):
            place = cache.begin(B, S, self._layout(x), rows=rows)
            start = torch.as_tensor(place.start, device=device).reshape(-1)
            K = place.width
        elif cache is not None:
            start = start + cache.get_seq_length()
            K = int(start) + S
        check_mask(attention_mask, (B, self.config.n_heads, S, K))
        columns = start[:, None] + torch.arange(S, device=device)
        positions = positions_of(attention_mask, position_ids, columns)
        check_positions(positions, (B, S), self.config.block_size)
        packed = position_ids if attention_mask is None and cache is None else None
        mask, causal = visible(attention_mask, packed, columns, K)
        rotary = rotary_angles(positions, self.config.head_dim, self.config.rope_base)
        return Context(positions, rotary, mask, causal, cache, place)

    def _layout(self, x: Tensor) -> SlotLayout:
        """What a cache must be made for."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        heads, width = self.config.n_heads, self.config.head_dim
        return SlotLayout(*self.config.layers, heads, width, dtype, x.device)

    def _start(
        self,
        e: Tensor,
        context: Context,
        generator: torch.Generator | None,
        seed: int | Tensor | None,
    ) -> Tensor:
        """s_0 when the caller gave none."""
        if generator is None and seed is None and self.training:
            generator = torch.default_generator  # as dropout does
        seed = 0 if seed is None else seed
        return self.initial_state(e, generator=generator, seed=seed, positions=context.positions)

    def _step(self, s: Tensor, e: Tensor, context: Context, i: int) -> Tensor:
        """`iterate`, recomputed in the backward pass if gradient checkpointing is on."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self._iterate, s, e, context, i)
        return self.iterate(s, e, context, recurrence=i)

    def _iterate(self, s: Tensor, e: Tensor, context: Context, i: int) -> Tensor:
        return self.iterate(s, e, context, recurrence=i)

    # -- training

    def loss(self, batch: dict[str, Tensor], state: dict[str, Tensor] | None, draws: Draws) -> Loss:
        """Next-token cross-entropy at a sampled depth (section 3.3); see `train.loss`."""
        from inward.methods.huginn.train import loss

        return loss(self, batch, draws)

    def sharded_blocks(self) -> list[nn.Module]:
        """What runs once a forward; the core runs r times and stays gathered."""
        return [*self.transformer.prelude, *self.transformer.coda]

    def recompute(self) -> None:
        """Run each recurrence again in the backward pass instead of keeping what it computed."""
        self.gradient_checkpointing_enable()

    # -- files, generation, cost

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The paper's initialisation ("takase", section 3.2), normals cut at +-3 sigma; the up half
        of the MLP has the plain sigma, as in training."""
        if isinstance(module, nn.Linear | nn.Embedding):
            out = isinstance(module, OutProjection)
            sigma = self.config.init_std_out if out else self.config.init_std
            nn.init.trunc_normal_(module.weight, std=sigma, a=-3 * sigma, b=3 * sigma)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.qk_bias)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but names that are missing, unexpected or of wrong shape, NaN, and
        two different embeddings in a model that ties them, are errors."""
        loaded = strict(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        tied = model.lm_head.weight is model.transformer.wte.weight
        if model.config.tie_embeddings and not tied:
            raise ValueError(
                f"{pretrained_model_name_or_path}: lm_head.weight and transformer.wte.weight "
                "differ, but the configuration ties them; set tie_embeddings to false, or remove "
                "one of them"
            )
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with the table of rotary angles that the published layout holds."""
        tensors = kwargs.pop("state_dict", None)
        tensors = dict(self.state_dict() if tensors is None else tensors)
        positions = torch.arange(self.config.block_size)[None]
        angles = rotary_angles(positions, self.config.head_dim, self.config.rope_base)
        tensors["freqs_cis"] = torch.stack(angles, dim=-1)
        return super().save_pretrained(save_directory, *args, state_dict=tensors, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.wte = cast(ScaledEmbedding, value)

    def generate(
        self, *args: Any, cache: Any = None, past_key_values: Any = None, **kwargs: Any
    ) -> Any:
        """As in transformers, with the cache under either name."""
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
        # (transformers types self as a protocol that no model class satisfies)
        prepare = super()._prepare_cache_for_generation  # pyright: ignore
        return prepare(generation_config, model_kwargs, *args, **kwargs)

    def forward_cost(
        self,
        *,
        rows: int,
        past: int,
        reads: int,
        num_steps: int | Sequence[int] | Tensor | None = None,
    ) -> Cost:
        """What a forward of `rows` new tokens behind `past` cached ones takes, if the logits of
        `reads` of them are made; see `inward.common.costs`."""
        depth = sum(split_depth(num_steps, self.config, self.training))
        return HuginnCosts(self.config, self.dtype).forward(past, rows, reads, depth)

    def flops(self, context: int = 0) -> tuple[float, float]:
        """FLOPs of one token that sees `context` tokens: (one recurrence, everything else)."""
        d, (prelude, core, coda) = self.config.n_embd, self.config.layers
        block = 2 * d * (4 * d + 3 * self.config.intermediate_size) + 4 * d * context
        rest = (prelude + coda) * block + 2 * d * self.config.vocab_size
        return float(core * block + 4 * d * d), float(rest)


AutoConfig.register(HuginnConfig.model_type, HuginnConfig, exist_ok=True)
AutoModelForCausalLM.register(HuginnConfig, HuginnForCausalLM, exist_ok=True)
