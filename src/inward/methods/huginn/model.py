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

These four lines are the four methods `embed`, `initial_state`, `iterate` and `decode` of
`HuginnModel`, the model without its head; `forward` calls them in this order. `HuginnForCausalLM`
has the same and the head. `context.py` turns masks, positions and caches of every kind into what
attention needs; a cache slot belongs to a (recurrence, layer), see `cache.py`. Training is in
`train.py`, files are in `files.py`; `door.py` says how to ask, `generate.py` how it is decoded.

Where the released code (seal-rg/recurrent-pretraining, 59e0b69) differs from the paper or from
here:

    topic              released code                    here
    core norm n_c      ln_f, after the loop only        the same (paper: end of the core block)
    num_steps=r        r steps, none with gradient      r steps, all with gradient; a pair is (n, k)
    no num_steps       drawn in training, each process  the same, one depth for all processes
                       its own                          (see `train.drawn_depth`)
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

from collections.abc import Sequence
from dataclasses import replace
from threading import get_ident
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    GenerationMixin,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from inward.common.bases import given_cache, run_layers_again
from inward.common.draws import Draws, Loss
from inward.common.trace import Cost
from inward.methods.huginn.blocks import BLOCKS, ScaledEmbedding, initialize
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.context import (
    BlockRecord,
    Context,
    check_inputs,
    check_passed,
    check_plain_cache,
    context_of,
    record_of,
    rotary_of,
    split_depth,
)
from inward.methods.huginn.costs import HuginnCosts
from inward.methods.huginn.growing import GrowingCache
from inward.methods.huginn.noise import uniform_at
from inward.methods.huginn.norms import NORMS
from inward.methods.huginn.outside import (
    CACHE,
    PASSED_ON,
    UNUSED,
    Generates,
    HuginnFiles,
    HuginnModelOutput,
    HuginnOutput,
)
from inward.methods.huginn.states import ADAPTERS, DRAWN, FIXED, INJECTIONS
from inward.methods.huginn.train import drawn_depth, loss
from inward.methods.huginn.uneven import Uneven, check_uneven, depths_of


class HuginnPreTrainedModel(HuginnFiles, PreTrainedModel):
    """What the model with and without its head have in common for transformers."""

    config_class = HuginnConfig
    config: HuginnConfig
    base_model_prefix = "transformer"
    _no_split_modules = sorted({block.__name__ for block in BLOCKS.values()})
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _can_set_attn_implementation_cached_value = True  # transformers looks for words in the source

    def _set_gradient_checkpointing(
        self, *args: Any, every_n_layers: int = 1, **kwargs: Any
    ) -> None:
        if every_n_layers != 1:
            raise ValueError(
                f"every_n_layers is {every_n_layers}, but a loop is recomputed one recurrence at a "
                "time; leave it at 1"
            )
        super()._set_gradient_checkpointing(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The configuration's initialisation (as published "takase", section 3.2), normals cut at
        +-3 sigma; the up half of the MLP has the plain sigma, as in training."""
        initialize(module, self.config)


class HuginnModel(HuginnPreTrainedModel):
    """All but the head. Its parts have their published names."""

    _keys_to_ignore_on_load_unexpected = [*UNUSED, r"^lm_head\."]  # noqa: RUF012

    def __init__(self, config: HuginnConfig, *, initialize: bool = True):
        config.check()
        super().__init__(config)
        self._initialize = initialize
        prelude, core, coda = config.layers
        block, norm = BLOCKS[config.block_class_name], NORMS[config.norm_class_name]
        self.wte = ScaledEmbedding(config.vocab_size, config.n_embd, config.embed_scale)
        self.prelude = nn.ModuleList(block(config) for _ in range(prelude))
        self.adapter = ADAPTERS[config.injection_type](config)
        self.core_block = nn.ModuleList(block(config) for _ in range(core))
        self.coda = nn.ModuleList(block(config) for _ in range(coda))
        self.ln_f = norm(config.n_embd, config.norm_eps)
        self.gradient_checkpointing = False
        self.active_parts: dict[int, Any] = {}  # of a thread, see `parts`
        self.own_parts: Any = None  # of a twin
        rotary_of(config, torch.zeros(1, 1))  # before any graph
        self.post_init()

    def init_weights(self) -> None:
        """Nothing, if the model around it does so: the numbers that a seed draws do not depend on
        who asks for them."""
        if self._initialize:
            super().init_weights()

    @property
    def parts(self) -> Any:
        """The blocks to run: these, or what `cpu` made of them for this thread or for a twin, which
        knows no gradients and no graphs."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self
        return self.own_parts or self.active_parts.get(get_ident()) or self

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
        record: BlockRecord | None = None,
    ) -> tuple[Tensor, Context]:
        """e = P(x), (B, S, d), and the context of the tokens. `rows`: the cache rows of this batch,
        if it is not all of them. `record`: where to keep what the blocks say."""
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        context = self.context(x, attention_mask, position_ids, cache, rows)
        if record is not None:
            record.block(x)
            context = replace(context, record=record)
        return self._blocks(self.parts.prelude, x, context, range(len(self.prelude))), context

    # -- s_0

    def initial_state(
        self,
        e: Tensor,
        *,
        generator: torch.Generator | None = None,
        seed: int | Tensor = 0,
        positions: Tensor | None = None,
    ) -> Tensor:
        """s_0 (B, S, d), as the configuration's state_init says; as published a normal of variance
        2/5 before it is cut at +-3 sigma.

        With a generator the numbers are drawn from it; else they depend on `seed` (a number, or
        (B,)) and the absolute position alone, `Context.positions`, by default 0, 1, ...
        """
        if (fixed := FIXED.get(self.config.state_init)) is not None:
            return fixed(e)
        if generator is not None:
            drawn = torch.rand(e.shape, generator=generator, device=generator.device)
            uniform = drawn.to(e.device)
        else:
            if positions is None:
                positions = torch.arange(e.shape[1], device=e.device)[None]
            uniform = uniform_at(seed, positions, e.shape[2])
        state = DRAWN[self.config.state_init](uniform, self.config)
        return state.to(e.dtype).expand_as(e)

    # -- R: the core

    def iterate(
        self, s: Tensor, e: Tensor, context: Context, *, recurrence: int | Tensor
    ) -> Tensor:
        """s_{i+1} = R(e, s_i), all (B, S, d). `recurrence` is i, from 0: it says which cache slots
        are read and written; (B,) if the rows have come differently far."""
        parts = self.parts
        h = INJECTIONS[self.config.injection_type](parts.adapter, s, e)
        indices = context.visit(recurrence, self.config.layers)
        for block, layer_idx in zip(parts.core_block, indices, strict=False):
            h = block(h, context, layer_idx)
            if context.record is not None:
                context.record.block(h)
        return h

    # -- C: the coda, without the head

    def decode(self, s: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """(ln_f(s), what the head reads), each (B, S, d); retrofitted models have no norm before
        the coda, there it is s itself."""
        parts = self.parts
        latents = parts.ln_f(s) if self.config.norm_after_core else s
        first = len(self.prelude)
        x = self._blocks(parts.coda, latents, context, range(first, first + len(self.coda)))
        return latents, parts.ln_f(x)

    # -- all of it

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        cache: Cache | None = None,
        num_steps: int | Sequence[int] | Tensor | None = None,
        state: Tensor | None = None,
        generator: torch.Generator | None = None,
        state_seed: int | Tensor | None = None,
        output_states: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> HuginnModelOutput:
        """One pass with r recurrences for every token.

        Args:
            input_ids: (B, S); or inputs_embeds (B, S, d), which enter the prelude as they are.
            attention_mask: (B, K) 1 = real token, padding on either side; or 4-D (B or 1, N or 1,
                S, K), bool (True = may look) or additive, which says all: nothing is added to it.
            position_ids: (B or 1, S). Without a mask and a cache, rows may be packed: a position
                that is not its left neighbour's successor starts a new text.
            use_cache: return a cache. Default: what the configuration says, and it says no: in a
                loop a cache has a slot for each of P + R r + C blocks (11 GB for 4,096 tokens of
                the published model in bfloat16). `generate` asks for one.
            cache: newer name of past_key_values.
            num_steps: r; or (n, k): n recurrences without gradient, then k with; or a tensor (B or
                1, S), a depth for each position (uneven.py), all with gradient. Default: the mean
                recurrence; in training drawn as the configuration's sampling_scheme says, the last
                `mean_backprop_depth` of them with gradient (`train.drawn_depth`).
            state: s_0 (B, S, d). Default: see `initial_state`; in training drawn from `generator`
                or torch's default one, in evaluation from `state_seed` (0).
            output_states, output_hidden_states, output_attentions: see `HuginnModelOutput`.
            token_type_ids, and others of `inward.common.passed`: taken where they change nothing.
        Raises:
            ValueError: inputs that do not fit together, before anything is computed.
            TypeError: an argument that there is not.
        """
        if num_steps is None and self.training:
            num_steps = drawn_depth(self.config, self.device)
        check_inputs(input_ids, inputs_embeds, state, self.config.n_embd)
        new = cast(Tensor, input_ids if inputs_embeds is None else inputs_embeds)
        depths = depths_of(num_steps, (new.shape[0], new.shape[1]))
        depth = num_steps if depths is None else int(depths.max())
        no_grad, with_grad = split_depth(depth, self.config)
        given = given_cache(cache, past_key_values)
        kwargs["token_type_ids"] = token_type_ids
        if unknown := check_passed(new, position_ids, attention_mask, given, kwargs):
            raise TypeError(f"forward knows no {sorted(unknown)}")
        record = record_of(
            self.config, output_hidden_states, output_attentions, packed=self.parts is not self
        )
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache(given, use_cache, no_grad + with_grad)
        if depths is not None:
            check_uneven(cache, checkpointed=self._checkpoints(), recorded=record is not None)
        e, context = self.embed(
            inputs_embeds=x,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            record=record,
        )
        if state is None:
            state = self._start(e, context, generator, state_seed)
        states = [state.to(e.dtype)]
        uneven = None if depths is None else Uneven(self, e, context, depths)
        for i in range(no_grad + with_grad):
            with torch.set_grad_enabled(i >= no_grad and torch.is_grad_enabled()):
                if uneven is None:
                    states.append(self.step(states[-1], e, context, i))
                else:
                    states.append(uneven.step(states[-1], i))
            if i + 1 == no_grad:
                # Autocast keeps the weights it has cast; those were cast without a graph, and used
                # again they would cut the gradient (PyTorch issue 65766).
                torch.clear_autocast_cache()
            if not output_states:
                del states[:-1]
        latents, hidden = self.decode(states[-1], context)
        if context.place is not None:
            cast(RecurrentCache, cache).commit(context.place, no_grad + with_grad)
        elif isinstance(cache, GrowingCache):
            cache.level(no_grad + with_grad)
        return HuginnModelOutput(
            last_hidden_state=hidden,
            **{CACHE: cache},  # pyright: ignore
            **({} if record is None else record.close(hidden)),  # pyright: ignore
            latents=latents,
            states=tuple(states[1:]) if output_states else None,
        )

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
        return context_of(self.config, x, attention_mask, position_ids, cache, rows)

    def step(self, s: Tensor, e: Tensor, context: Context, i: int) -> Tensor:
        """`iterate`, recomputed in the backward pass if gradient checkpointing is on."""
        if self._checkpoints():
            return self._gradient_checkpointing_func(self._iterate, s, e, context, i)
        return self.iterate(s, e, context, recurrence=i)

    def _iterate(self, s: Tensor, e: Tensor, context: Context, i: int) -> Tensor:
        return self.iterate(s, e, context, recurrence=i)

    def _checkpoints(self) -> bool:
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()

    def _blocks(self, blocks: Any, x: Tensor, context: Context, indices: range) -> Tensor:
        """Blocks of the prelude or the coda, one after the other."""
        for block, layer_idx in zip(blocks, indices, strict=True):
            if self._checkpoints():
                x = self._gradient_checkpointing_func(block, x, context, layer_idx)
            else:
                x = block(x, context, layer_idx)
            if context.record is not None:
                context.record.block(x)
        return x

    def _cache(self, cache: Cache | None, use_cache: bool | None, depth: int) -> Cache | None:
        """The cache to use: the given one if it fits; with use_cache and none, a new one (one that
        keeps gradients where there are any)."""
        if use_cache is None:
            use_cache = self.config.use_cache and not self._checkpoints()
        if cache is None and use_cache:
            cache = GrowingCache.of(self.config) if torch.is_grad_enabled() else RecurrentCache()
        if cache is None:
            return None
        if self._checkpoints():
            raise ValueError(
                "a cache and gradient checkpointing exclude each other: the second run of a "
                "recurrence would write its keys again; pass use_cache=False"
            )
        if isinstance(cache, RecurrentCache):
            cache.reserve(depth)
            return cache
        if isinstance(cache, GrowingCache):
            cache.check(self.config)
        else:
            check_plain_cache(cache, self.config, depth)
        return cache

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

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.wte = cast(ScaledEmbedding, value)


class HuginnForCausalLM(HuginnPreTrainedModel, Generates, GenerationMixin):
    """The recurrent-depth language model.

    transformer: the model without its head; `embed`, `initial_state`, `iterate`, `decode` and
        `context` are its own.
    lm_head: (V, d), tied to the embedding as published.
    """

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012

    def __init__(self, config: HuginnConfig):
        config.check()
        super().__init__(config)
        self.transformer = HuginnModel(config, initialize=False)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def embed(self, input_ids: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Context]:
        """e = P(x), and the context of the tokens; see `HuginnModel.embed`."""
        return self.transformer.embed(input_ids, **kwargs)

    def initial_state(self, e: Tensor, **kwargs: Any) -> Tensor:
        """s_0; see `HuginnModel.initial_state`."""
        return self.transformer.initial_state(e, **kwargs)

    def iterate(
        self, s: Tensor, e: Tensor, context: Context, *, recurrence: int | Tensor
    ) -> Tensor:
        """s_{i+1} = R(e, s_i); see `HuginnModel.iterate`."""
        return self.transformer.iterate(s, e, context, recurrence=recurrence)

    def decode(self, s: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """(ln_f(s), what the head reads); see `HuginnModel.decode`."""
        return self.transformer.decode(s, context)

    def context(self, x: Tensor, *args: Any, **kwargs: Any) -> Context:
        """Where tokens stand and what they may see; see `HuginnModel.context`."""
        return self.transformer.context(x, *args, **kwargs)

    def read_out(
        self, s: Tensor, context: Context, *, logits_to_keep: int | Tensor = 0
    ) -> tuple[Tensor, Tensor]:
        """(ln_f(s), logits): (B, S, d) and (B, S or fewer, V) in the dtype of the model.

        logits_to_keep: only the last so many (0: all), or these positions.
        """
        latents, x = self.decode(s, context)
        return latents, self.head(x, logits_to_keep)

    def head(self, x: Tensor, logits_to_keep: int | Tensor = 0) -> Tensor:
        """Logits (B, S or fewer, V) of what `decode` returned."""
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        parts = self.transformer.parts
        logits = (self if parts is self.transformer else parts).lm_head(x[:, kept])
        return logits if self.config.logit_scale == 1 else logits * self.config.logit_scale

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
        output_attentions: bool | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> HuginnOutput:
        """One pass with r recurrences for every token; all other arguments and errors are those of
        `HuginnModel.forward`.

        Args:
            labels: (B, S) unshifted, -100 does not count.
            logits_to_keep: logits of only the last so many tokens (0: all), or of these positions.
        """
        of_loss = {name: kwargs.pop(name) for name in PASSED_ON & kwargs.keys()}
        out: HuginnModelOutput = self.transformer(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            cache=cache,
            num_steps=num_steps,
            state=state,
            generator=generator,
            state_seed=state_seed,
            output_states=output_states,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            token_type_ids=token_type_ids,
            return_dict=True,
            **kwargs,
        )
        logits = self.head(cast(Tensor, out.last_hidden_state), logits_to_keep)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **of_loss)
        rest = {name: value for name, value in out.items() if name != "last_hidden_state"}
        return HuginnOutput(loss=loss, logits=logits, **rest)

    def loss(self, batch: dict[str, Tensor], state: dict[str, Tensor] | None, draws: Draws) -> Loss:
        """Next-token cross-entropy at a sampled depth (section 3.3); see `train.loss`."""
        return loss(self, batch, draws)

    def sharded_blocks(self) -> list[nn.Module]:
        """What runs once a forward; the core runs r times and stays gathered."""
        return [*self.transformer.prelude, *self.transformer.coda]

    def recompute_in_backward(self) -> None:
        """Run each recurrence again in the backward pass instead of keeping what it computed."""
        run_layers_again(self)

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.wte = cast(ScaledEmbedding, value)

    @property
    def per_position(self) -> dict[str, int]:
        """Arguments of the forward that may hold a number for each position, and the usual one."""
        return {"num_steps": self.config.mean_recurrence}

    @property
    def looped(self) -> tuple[int, int]:
        """(layers outside the loop, layers in it), as `inward.common.ragged` asks."""
        return self.config.layers[0] + self.config.layers[2], self.config.layers[1]

    def new_cache(self, layer: Any = None) -> GrowingCache:
        """An empty cache with gradients, for tokens of different depth; see growing.py."""
        return GrowingCache.of(self.config, layer)

    def forward_cost(
        self,
        *,
        rows: int,
        past: int,
        reads: int,
        num_steps: int | Sequence[int] | Tensor | None = None,
        pairs: int | None = None,
    ) -> Cost:
        """What a forward of `rows` new tokens behind `past` cached ones takes, if the logits of
        `reads` of them are made; see `inward.common.costs`."""
        costs = HuginnCosts(self.config, self.dtype)
        if (depths := depths_of(num_steps, (1, rows))) is not None:
            assert pairs is None, "a depth for each position comes with the causal mask"
            return costs.uneven(past, depths[0].tolist(), reads)
        depth = sum(split_depth(num_steps, self.config))
        return costs.forward(past, rows, reads, depth, pairs)

    def flops(self, context: int = 0) -> tuple[float, float]:
        """FLOPs of one token that sees `context` tokens: (one recurrence, everything else)."""
        costs = HuginnCosts(self.config, self.dtype)
        prelude, core, coda = self.config.layers
        block = 2 * costs.block + costs.seen * context
        rest = (prelude + coda) * block + 2 * costs.head
        return float(core * block + 2 * costs.adapter), float(rest)


AutoConfig.register(HuginnConfig.model_type, HuginnConfig, exist_ok=True)
AutoModel.register(HuginnConfig, HuginnModel, exist_ok=True)
AutoModelForCausalLM.register(HuginnConfig, HuginnForCausalLM, exist_ok=True)
