"""What each recipe needs, for `inward.train.planning`: its model with shapes alone, and one
micro-batch of its training, forward and backward.

The blocks that are run are the model's own; only what looks at numbers (checks of ids, choosing
rows that count) is left out, as if every token counted. What grows in a straight line, recurrences
and layers, is run for small numbers and drawn on.

Nothing needs to be there: bases that are not on this machine have the shapes in `BASES`, data the
sizes that the recipes name.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from inward.common.checks import need
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.context import Context, rotary_angles
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.huginn.train import HuginnTraining, sample_recurrences
from inward.methods.trm import cpu as trm_cpu
from inward.methods.trm.losses import token_loss
from inward.methods.trm.model import TRM
from inward.recipes.coconut import CoconutRecipe
from inward.recipes.coconut_base import PretrainedBase, adapted
from inward.recipes.huginn import HuginnRecipe
from inward.recipes.own_huginn import FineTuneRecipe
from inward.recipes.tidar import TiDARRecipe
from inward.recipes.trm import TRMRecipe
from inward.train.optim import build_optimizers, dense_parameters, sparse_parameters
from inward.train.planning import Needs, state_bytes
from inward.train.traced import Traced, shapes_only, trace

if TYPE_CHECKING:
    from inward.methods.tidar.settings import TiDARSettings

BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "openai-community/gpt2": ("gpt2", {}),
    "Qwen2.5-1.5B": (
        "qwen2",
        {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
         "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151_936,
         "tie_word_embeddings": True, "max_position_embeddings": 32_768},
    ),
    "Qwen3-8B-Base": (
        "qwen3",
        {"hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
         "vocab_size": 151_936, "tie_word_embeddings": False, "max_position_embeddings": 32_768},
    ),
    "smollm2-135m-instruct": (
        "llama",
        {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152,
         "tie_word_embeddings": True, "max_position_embeddings": 8192},
    ),
}  # fmt: skip
"""Shapes of the bases that recipes name, as published, for machines where they are not."""

PUBLISHED = ("huginn-0125", "tomg-group-umd/huginn-0125")
"""Names of the published Huginn, whose shape is the configuration's default"""

IDENTIFIERS = {"trm-arc1": 876_406, "trm-arc2": 1_168_541}
"""Rows of the published tables. ARC-1's is that of the reference's data set; ARC-2's is ours: as
many variants of each task, times its 1,280 tasks over ARC-1's 960."""

LENGTHS = {"coconut-gsm8k-cot": 100, "coconut-gsm8k": 100, "coconut-prontoqa": 400,
           "coconut-prosqa": 500, "gsm8k-smollm-interleaved": 200,
           "gsm8k-smollm-coconut": 200}  # fmt: skip
"""Tokens of a record, of sets that are not on this machine, as their recipes count them."""


def needs_of(recipe: Any, *, length: int = 0, identifiers: int = 0) -> Needs:
    """Of any recipe.

    Args:
        length: tokens of a row where only the data know (Coconut); 0: what is known of them.
        identifiers: rows of TRM's table where only the data know; 0: what is known of them.
    Raises:
        ValueError: an option that this recipe has no use for, or a recipe whose base is not named;
            FileNotFoundError: a base that is nowhere.
    """
    need(length >= 0, "length", length, "a number of tokens, or 0")
    need(identifiers >= 0, "identifiers", identifiers, "a number of rows, or 0")
    if hasattr(recipe, "whole"):
        recipe = recipe.whole()
    if length and not isinstance(recipe, CoconutRecipe):
        raise ValueError(f"length is for records of Coconut; {recipe.name} says itself how long")
    if identifiers and not isinstance(recipe, TRMRecipe):
        raise ValueError(f"identifiers are TRM's; {recipe.name} has none")
    if isinstance(recipe, HuginnRecipe | FineTuneRecipe):
        return _huginn(recipe)
    if isinstance(recipe, TRMRecipe):
        return _trm(recipe, identifiers)
    if isinstance(recipe, TiDARRecipe):
        return _tidar(recipe)
    if isinstance(recipe, CoconutRecipe):
        return _coconut(recipe, length)
    raise TypeError(f"{type(recipe).__name__} is no recipe that can be planned")


def _sizes(model: nn.Module, recipe: Any, blocks: Sequence[nn.Module] = ()) -> dict[str, Any]:
    """What `Needs` asks of a model: weights, states, and how they lie in blocks that are gathered
    one by one."""
    dense, sparse = dense_parameters(model), sparse_parameters(model)
    trained = {id(p) for p in (*dense.values(), *sparse.values())}
    frozen = [p for p in model.parameters() if id(p) not in trained]
    tables = sum(p.numel() for p in sparse.values())
    return {
        "name": recipe.name,
        "dense": sum(p.numel() for p in dense.values()),
        "sparse": tables,
        "frozen_bytes": sum(p.numel() * p.element_size() for p in frozen),
        "state_bytes": state_bytes(build_optimizers(model, recipe.train.optim)),
        "common": _count(model) - tables - sum(map(_count, blocks)),
        "block": max(map(_count, blocks), default=0),
        "precision": recipe.train.precision,
    }


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _cross_entropy(logits: Tensor) -> Tensor:
    flat = logits.flatten(0, -2).float()
    return F.cross_entropy(flat, flat.new_zeros(len(flat), dtype=torch.long), reduction="sum")


# --------------------------------------------------------------------------------------------------
# Huginn


def _huginn_shape(recipe: HuginnRecipe | FineTuneRecipe) -> tuple[Any, int]:
    """(configuration, tokens of a row)"""
    if isinstance(recipe, FineTuneRecipe):
        config = HuginnConfig() if recipe.base in PUBLISHED else _config(recipe.base)
        if not isinstance(config, HuginnConfig):
            raise ValueError(
                f"{recipe.base} is a {config.model_type}; {recipe.name} trains Huginns"
            )
        return config, min(recipe.max_len, config.block_size) - 1
    config = recipe.model.config(
        vocab_size=recipe.data.vocab_size, block_size=recipe.block_size, depth=recipe.depth
    )
    length = getattr(recipe.data, "length", 0) - 1
    if length < 1:
        rows = cast(Any, recipe.data).source(0).batch(0, range(1), 1)
        length = rows["input_ids"].shape[1] - 1
    return config, length


def _huginn_sizes(recipe: HuginnRecipe | FineTuneRecipe, config: Any) -> dict[str, Any]:
    rank = recipe.lora_rank if isinstance(recipe, FineTuneRecipe) else 0
    if not rank:
        with shapes_only():
            model = HuginnForCausalLM(config)
            model.tie_weights()
            apart = [*model.transformer.prelude, *model.transformer.coda]
            return _sizes(HuginnTraining(model, depth=recipe.depth), recipe, apart)
    from inward.methods.huginn.tune import HuginnTuning, low_rank

    with torch.device("meta"), no_init_weights():  # PEFT moves its weights about
        dtype = getattr(torch, cast(FineTuneRecipe, recipe).dtype)
        model = HuginnForCausalLM(config).to(dtype)
        model.tie_weights()
        low_rank(model, rank)
        apart = [*model.transformer.prelude, *model.transformer.coda]
        return _sizes(HuginnTuning(model, depth=recipe.depth), recipe, apart)


def _huginn(recipe: HuginnRecipe | FineTuneRecipe) -> Needs:
    from inward.methods.huginn.costs import HuginnCosts

    config, length = _huginn_shape(recipe)
    tuned = isinstance(recipe, FineTuneRecipe) and bool(recipe.lora_rank)
    k = recipe.depth.backprop
    deep, kept = _mean_depth(recipe)

    def run(rows: int, again: bool) -> Traced:
        with shapes_only():
            model = HuginnForCausalLM(config)
            model.tie_weights()
            few = [_huginn_run(model, rows, length, i, False, recipe) for i in (1, 2)]
            part = few[1].activations - few[0].activations
            if again:
                few = [_huginn_run(model, rows, length, i, True, recipe) for i in (1, 2)]
        found = few[0].deeper(few[1], k - 1)
        if again:
            head = _head_run(config.n_embd, config.vocab_size, rows * length, recipe)
            found = found.recomputing(part, head)
        each = few[1].forward - few[0].forward, few[1].backward - few[0].backward
        return Traced(
            found.activations,
            found.peak,
            found.copies,
            few[0].forward + (deep - 1) * each[0],
            few[0].backward + (kept - 1) * each[1],
        )

    slots = HuginnCosts(config, torch.bfloat16)
    blocks = config.effective_expected_depth
    return Needs(
        **_huginn_sizes(recipe, config),
        micro=cache(run),
        asked_bytes=slots.cached * blocks * config.block_size,
        rows_in=f"{length} tokens",
        mfu=0.3,
        mfu_from="the published run reached 52 to 64 of 191.5 TFLOP/s",
        told=(
            f"depth: {deep:.1f} recurrences on average, {kept:.2f} of them with gradient",
            "recomputed: each recurrence, and each block around, keeps its input alone",
            *(("activations as if the base were trained: an upper bound for LoRA",) * tuned),
        ),
    )


def _mean_depth(recipe: HuginnRecipe | FineTuneRecipe) -> tuple[float, float]:
    """(recurrences, those with gradient) of a step on average, after the ramp."""
    depth = recipe.depth
    if depth.sampling == "fixed":
        drawn = torch.tensor([float(depth.mean)])
    else:
        generator = torch.Generator().manual_seed(0)
        drawn = sample_recurrences(depth.mean, generator, num=100_000, sigma=depth.sigma).float()
        if depth.longest:
            drawn = drawn.clamp(max=round(depth.longest * depth.mean))
    return float(drawn.mean()), float(drawn.clamp(max=depth.backprop).mean())


def _head_run(width: int, vocab_size: int, rows: int, recipe: Any) -> Traced:
    """The head alone, and the loss."""
    with shapes_only():
        head = nn.Linear(width, vocab_size, bias=False)

        def loss() -> Tensor:
            return _cross_entropy(head(torch.zeros(rows, width, requires_grad=True) + 0))

        return trace(head, loss, precision=recipe.train.precision)


def _huginn_run(
    model: HuginnForCausalLM, rows: int, length: int, num: int, again: bool, recipe: Any
) -> Traced:
    """`num` recurrences with gradient; those without keep nothing."""
    config = model.config
    places = torch.arange(length)[None]
    angles = rotary_angles(places, config.head_dim, config.rope_base)
    context = Context(places, angles, None, True)
    if again:
        _run_again(model)
    model.train()

    def loss() -> Tensor:
        below = model.transformer
        x = below.wte(torch.zeros(rows, length, dtype=torch.long))
        x = below._blocks(below.prelude, x, context, range(len(below.prelude)))
        s = torch.zeros_like(x)
        for i in range(num):
            s = below.step(s, x, context, i)
        _, hidden = model.decode(s, context)
        return _cross_entropy(model.lm_head(hidden))

    return trace(model, loss, precision=recipe.train.precision, attended=0.5)


# --------------------------------------------------------------------------------------------------
# TRM


def _trm(recipe: TRMRecipe, identifiers: int) -> Needs:
    from pathlib import Path

    from inward.recipes.trm_data import FolderData

    settings, told = recipe.model, []
    if isinstance(recipe.data, FolderData) and Path(recipe.data.path).exists():
        settings = recipe.data.fit(settings)
    elif identifiers or recipe.name in IDENTIFIERS:
        settings = replace(settings, num_identifiers=identifiers or IDENTIFIERS[recipe.name])
    if settings.num_identifiers > 1:
        told.append(f"{settings.num_identifiers:,} identifiers")
    if settings.supervision == "stay":
        told.append("counted as slots with a carry, which differ in the loss")
    T, n = settings.cycles()
    cycle = settings.evaluations(n)
    with shapes_only():
        model = TRM(settings)
        first = model.first_with_gradient(T, n)
        sizes = _sizes(model, recipe)
        states = model.initial_state(1, settings.seq_len)
        carried = sum(t.numel() * t.element_size() for t in states.values())
        carried += 2 * 8 * settings.seq_len + 17

    def run(rows: int, again: bool) -> Traced:
        with shapes_only(), trm_cpu.left_out():
            model = TRM(replace(settings, num_identifiers=min(2, settings.num_identifiers)))
            found = _trm_run(model, rows, T, n, first, again)
            if not again:
                return found
            plain = _trm_run(TRM(model.settings), rows, T, n, first, again=False)
        # one evaluation at a time is there as without checkpointing
        one = plain.activations / (T * cycle - first)
        return replace(found, peak=found.activations + one + plain.working)

    told.append(f"a step: {T * cycle} evaluations of f, {T * cycle - first} with gradient")
    return Needs(
        **{**sizes, "precision": settings.compute_dtype},
        micro=cache(run),
        carried=carried,
        rows_in=f"a grid of {settings.seq_len} cells",
        mfu=0.15,
        mfu_from="the published ARC-1 run, 3 days on 4 H100",
        told=(*told, "recomputed: each evaluation of f with gradient keeps its inputs alone"),
    )


def _trm_run(model: TRM, rows: int, T: int, n: int, first: int, again: bool) -> Traced:
    settings = model.settings
    if again:
        _checkpointed(model.network)

    def loss() -> Tensor:
        inputs = torch.zeros(rows, settings.seq_len, dtype=torch.long)
        identifiers = torch.zeros(rows, dtype=torch.long)
        where = model.where(inputs)
        x = model.embed(inputs, identifiers)
        state = model.initial_state(rows, settings.seq_len)
        state = {name: value + 0 for name, value in state.items()}  # carried, not drawn out
        state = model.deep_recursion(x, state, where, T, n, first=first)
        logits, q = model.read_out(state)
        token = token_loss(logits, inputs, settings.loss, settings.label_smoothing).sum()
        halting = F.binary_cross_entropy_with_logits(q, torch.zeros_like(q), reduction="sum")
        return token + settings.halt_weight * halting

    return trace(model, loss)


def _run_again(model: Any) -> None:
    """Switch checkpointing on, by its name of today or by that before."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    enable = enable or model.gradient_checkpointing_enable
    enable({"use_reentrant": False, "preserve_rng_state": False})


def _checkpointed(module: nn.Module) -> None:
    """Let a module keep its inputs alone, and run again in backward."""
    from torch.utils.checkpoint import checkpoint

    plain = module.forward

    def forward(*args: Any) -> Any:
        return checkpoint(plain, *args, use_reentrant=False, preserve_rng_state=False)

    module.forward = forward


# --------------------------------------------------------------------------------------------------
# Causal LMs: TiDAR and Coconut


def _config(base: str) -> Any:
    """Of a base on this machine, or of `BASES`."""
    from transformers import AutoConfig

    from inward.common.bases import find_base

    try:
        path = find_base(base)
    except FileNotFoundError:
        if base not in BASES:
            raise
        path = None
    if path is not None and path.suffix != ".gguf":
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    kind, fields = BASES[base]
    return AutoConfig.for_model(kind, **fields)


def _made(config: Any, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", **options)
    model.tie_weights()
    return model.train()


def _blocks_of(model: Any) -> list[nn.Module]:
    """The layers of a causal LM."""
    names = set(model._no_split_modules or ())
    return [m for m in model.modules() if type(m).__name__ in names]


def _asked_bytes(config: Any, length: int) -> int:
    """Keys and values of one text in bfloat16."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    return 2 * 2 * config.num_hidden_layers * keys * width * length


def _layers(config: Any, num: int) -> Any:
    from copy import deepcopy

    few = deepcopy(config)
    few.num_hidden_layers = num
    if getattr(few, "layer_types", None):
        few.layer_types = few.layer_types[:num]
    return few


def _lm_run(
    config: Any,
    rows: int,
    length: int,
    *,
    precision: str,
    attended: float,
    again: bool,
    whole: bool = True,
) -> Traced:
    """A causal LM of any depth, from one and two of its layers; whole: with head and loss."""

    def run(num: int) -> Traced:
        with shapes_only():
            model = _made(_layers(config, num))
            if again:
                _run_again(model)

            def loss() -> Tensor:
                ids = torch.zeros(rows, length, dtype=torch.long)
                if whole:
                    return _cross_entropy(model(input_ids=ids, use_cache=False).logits)
                below = getattr(model, model.base_model_prefix)
                return below(input_ids=ids, use_cache=False).last_hidden_state.sum()

            return trace(model, loss, precision=precision, attended=attended)

    one, two = run(1), run(2)
    found = one.deeper(two, config.num_hidden_layers - 1)
    # of more layers than one the trace holds what was run again, see `Traced.recomputing`
    return replace(found, peak=found.activations + one.working) if again else found


def _tidar(recipe: TiDARRecipe) -> Needs:
    config, settings = _config(recipe.base), recipe.method
    length = 2 * cast(Any, recipe.data).seq_len
    flex = recipe.attention == "flex_attention"
    told = [f"{length} rows for a text of {length // 2}: clean tokens and masks"]
    if recipe.draft_only:
        told.append("activations as if the base were trained: an upper bound for an adapter")
    if not flex:
        told.append("a mask of (2S)^2 numbers for each text, without FlexAttention")

    def run(rows: int, again: bool) -> Traced:
        more = {"precision": recipe.train.precision, "attended": 0.25, "again": again}
        read = settings.max_logits and rows * length * config.vocab_size > settings.max_logits
        found = _lm_run(config, rows, length, whole=not read, **more)
        if read:
            found += _read_in_pieces(config, settings, rows * length, recipe.train.precision)
        mask = 0 if flex else 4 * length**2 * (rows if settings.dense_masks == "batch" else 1)
        return Traced(
            *(found.activations + mask, found.peak + mask),
            *(found.copies, found.forward, found.backward),
        )

    with shapes_only():
        model = _made(config, dtype=getattr(torch, recipe.dtype))
        if recipe.draft_only:
            model.requires_grad_(False)
        trained = _Adapted(model, recipe) if recipe.draft_only else model
        sizes = _sizes(trained, recipe, _blocks_of(model))
    return Needs(
        **sizes,
        micro=cache(run),
        asked_bytes=_asked_bytes(config, length // 2),
        rows_in=f"{length // 2} tokens",
        recomputes=not recipe.draft_only,
        told=tuple(told),
    )


class _Adapted(nn.Module):
    """A frozen base and the low-rank weights of a draft-only adapter, by their shapes."""

    def __init__(self, model: nn.Module, recipe: TiDARRecipe):
        super().__init__()
        from inward.methods.tidar.adapter import linear_layers

        self.base, r = model, recipe.adapter.rank
        for i, layer in enumerate(linear_layers(cast(Any, model), recipe.adapter.targets).values()):
            self.register_parameter(f"A{i}", nn.Parameter(torch.empty(r, layer.weight.shape[1])))
            self.register_parameter(f"B{i}", nn.Parameter(torch.empty(layer.weight.shape[0], r)))
        self.mask = nn.Parameter(torch.empty(cast(Any, model).config.hidden_size))


def _read_in_pieces(config: Any, settings: TiDARSettings, rows: int, precision: str) -> Traced:
    """The head over `rows` rows, `max_logits` logits at a time, read again in backward."""
    from torch.utils.checkpoint import checkpoint

    at_once = max(1, settings.max_logits // config.vocab_size)
    with shapes_only():
        head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

        def loss() -> Tensor:
            hidden = torch.zeros(at_once, config.hidden_size, requires_grad=True) + 0

            def read(piece: Tensor) -> Tensor:
                return _cross_entropy(head(piece))

            found = checkpoint(read, hidden, use_reentrant=False, preserve_rng_state=False)
            return cast(Tensor, found)

        one = trace(head, loss, precision=precision)
    pieces = rows / at_once
    kept = 4.0 * rows * config.hidden_size  # the rows that count, and in backward their gradients
    return Traced(*(kept, 2 * kept + one.peak, 0.0), *(pieces * one.forward, pieces * one.backward))


def _coconut(recipe: CoconutRecipe, length: int) -> Needs:
    base, told = recipe.base, []
    if isinstance(base, PretrainedBase):
        config = _config(base.path)
        config.vocab_size += 4 if base.pause else 3  # the marks of a thought
        length = length or LENGTHS.get(recipe.name, 0)
    else:
        small = recipe.model()
        config = cast(Any, small.base).config
        length = length or _longest(recipe, small)
    if not length:
        raise ValueError(
            f"how long the records of {recipe.name} are only its data know; say it: --length TOKENS"
        )

    def run(rows: int, again: bool) -> Traced:
        more = {"precision": recipe.train.precision, "attended": 0.5, "again": again}
        return _lm_run(config, rows, length, **more)

    # PEFT moves its weights about, which fake tensors refuse: the sizes come from "meta"
    with torch.device("meta"), no_init_weights(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PEFT's about transformers
        model = _made(config)
        if isinstance(base, PretrainedBase) and base.lora_rank:
            model = adapted(model, base, [0, 1, 2])
            told.append("activations as if the base were trained: an upper bound for LoRA")
        sizes = _sizes(model, recipe)
    told.append("thoughts add passes of one token each, whose keys and values are counted once")
    return Needs(
        **sizes,
        micro=cache(run),
        asked_bytes=_asked_bytes(config, length),
        rows_in=f"{length} tokens",
        recomputes=False,
        told=tuple(told),
    )


def _longest(recipe: CoconutRecipe, model: Any) -> int:
    """Tokens of the longest row of the first batch, thoughts included."""
    batch = recipe.source(model).batch(0, range(recipe.train.batch_rows), recipe.train.batch_rows)
    return max(value.shape[1] for value in batch.values() if value.ndim == 2)
