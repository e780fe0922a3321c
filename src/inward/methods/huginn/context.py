"""What the tokens of one forward of Huginn know about their surroundings: positions, mask, cache.

An ordinary causal LM is asked in many ways: padded on either side, packed, with a mask of four
dimensions, after a cache whose rows differ in length. All of them become one `Context` here, after
checks that raise a ValueError before anything is computed, so that the model itself knows one case.

Shape letters: B rows, S new tokens, K cached and new tokens, N heads, H head width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, LlamaConfig
from transformers.cache_utils import DynamicLayer, StaticLayer
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from inward.common.passed import Passed, begins_of
from inward.methods.huginn.cache import Place, RecurrentCache, SlotLayout
from inward.methods.huginn.config import HuginnConfig


class BlockRecord:
    """What a caller of `forward` wants to see of the blocks: the output of each, in the order in
    which they run, a block that runs r times r times, and the weights of its attention.

    hidden: [(B, S, d)] or None.  attentions: [(B, N, S, K)] or None.
    """

    def __init__(self, *, hidden: bool, attentions: bool) -> None:
        self.hidden: list[Tensor] | None = [] if hidden else None
        self.attentions: list[Tensor] | None = [] if attentions else None
        self.closed = False  # a backward pass that runs blocks again tells nothing new

    def close(self, last: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """What was kept, by its name in outputs; the last hidden state is the normed one, as in any
        model of transformers."""
        self.closed = True
        kept: dict[str, tuple[Tensor, ...]] = {}
        if self.hidden is not None:
            kept["hidden_states"] = (*self.hidden[:-1], last)
        if self.attentions is not None:
            kept["attentions"] = tuple(self.attentions)
        return kept

    def block(self, x: Tensor) -> None:
        """A block has said x."""
        if self.hidden is not None and not self.closed:
            self.hidden.append(x)

    def attended(self, weights: Tensor) -> None:
        """A block has looked so."""
        if self.attentions is not None and not self.closed:
            self.attentions.append(weights)


@dataclass(frozen=True)
class Context:
    """Positions, mask and cache of one forward; `embed` makes it, the other steps read it.

    positions: (B or 1, S) absolute.
    rotary: cos and sin, each (B or 1, S, 1, H / 2) float32.
    mask: (B or 1, N or 1, S, K) bool (True = may look) or additive; None: see `causal`.
    causal: without a mask, token j looks at tokens 0..j; else at all K.
    cache, place: where keys and values are kept, and where in it these tokens lie.
    lengths: (B,) if each row's one new token looks at so many columns of its own, from the first
        on; then the mask says nothing else.
    eager: attention is written out, so that its weights can be seen; else a kernel computes it.
    record: what a caller wants to see of the blocks; None: nothing.
    """

    positions: Tensor
    rotary: tuple[Tensor, Tensor]
    mask: Tensor | None
    causal: bool
    cache: Cache | None = None
    place: Place | None = None
    lengths: tuple[int, ...] | None = None
    eager: bool = False
    record: BlockRecord | None = None

    @cached_property
    def turn(self) -> Tensor:
        """(B or 1, S, 1, H / 2) the rotary angles as complex numbers."""
        return torch.complex(*self.rotary)

    def visit(self, recurrence: int | Tensor, layers: tuple[int, int, int]) -> Sequence[Any]:
        """What the core layers of (prelude, core, coda) call `extend` with at a recurrence: an
        index each, see cache.py; the slots of rows that differ, found once for all of them."""
        prelude, core, coda = layers
        first = prelude + coda
        if isinstance(recurrence, int):
            return range(first + core * recurrence, first + core * (recurrence + 1))
        if self.place is None:
            raise ValueError("rows at different recurrences need a RecurrentCache")
        slots = cast(RecurrentCache, self.cache).find(recurrence, self.place)
        return [(first + layer, slots) for layer in range(core)]

    def extend(self, k: Tensor, v: Tensor, layer_idx: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (B, N, K, H) that the new ones (B, N, S, H) come last in."""
        if self.cache is None:
            return k, v
        if self.place is None:
            return self.cache.update(k, v, cast(int, layer_idx))
        return cast(RecurrentCache, self.cache).update(k, v, layer_idx, self.place)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What queries (B, N, S, H) read in the keys and values (B, N, K, H) that they may see."""
        mask = self.mask
        if self.eager:
            out, weights = written_out(q, k, v, mask, self.causal)
            if self.record is not None:
                self.record.attended(weights)
            return out
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=self.causal, enable_gqa=grouped
        )

    def select(self, index: Tensor, num_rows: int) -> Context:
        """The context of some of the batch's `num_rows` rows, (B',) in this order: rows that are
        done leave the loop. Needs a RecurrentCache, or none."""

        def rows(t: Tensor) -> Tensor:
            return t[index] if t.shape[0] == num_rows else t

        cos, sin = self.rotary
        place = None if self.place is None else self.place.select(index, num_rows)
        mask = None if self.mask is None else rows(self.mask)
        lengths = self.lengths
        if lengths is not None:
            lengths = tuple(lengths[i] for i in index.tolist())
        moved = replace(self, positions=rows(self.positions), rotary=(rows(cos), rows(sin)))
        return replace(moved, mask=mask, place=place, lengths=lengths)


def rotary_angles(positions: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-2j / width), j = 0 .. width/2 - 1, each (B, S, 1, width/2)
    float32."""
    j = torch.arange(0, width, 2, device=positions.device).float()
    angles = positions[..., None, None].float() * (1.0 / base ** (j / width))
    return angles.cos(), angles.sin()


@lru_cache
def _made_scaled(width: int, base: float, scaling: tuple) -> tuple[tuple[float, ...], float]:
    """Frequencies (width/2,) and a factor on cos and sin, as transformers makes them of a base and
    the items of a `rope_scaling`."""
    rope = dict(scaling) | {"rope_theta": base}
    config: Any = LlamaConfig(head_dim=width, rope_parameters=rope)
    if "original_max_position_embeddings" in rope:
        config.max_position_embeddings = rope["original_max_position_embeddings"]
    with torch.device("cpu"), torch.inference_mode(False):  # it is kept, whoever asks first
        made = LlamaRotaryEmbedding(config)
    return tuple(made.inv_freq.double().tolist()), float(made.attention_scaling)


@torch.compiler.assume_constant_result
def _scaled(width: int, base: float, scaling: tuple) -> tuple[tuple[float, ...], float]:
    """`_made_scaled`, which is no part of a graph."""
    return _made_scaled(width, base, scaling)


def rotary_of(config: HuginnConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of positions (B, S), each (B, S, 1, H/2) float32, as the configuration says."""
    if config.rotary_scaling is None:
        return rotary_angles(positions, config.head_dim, config.rope_base)
    scaling = tuple(sorted(config.rotary_scaling.items()))
    frequencies, factor = _scaled(config.head_dim, config.rope_base, scaling)
    spectrum = torch.tensor(frequencies, dtype=torch.float32, device=positions.device)
    angles = positions[..., None, None].float() * spectrum
    return angles.cos() * factor, angles.sin() * factor


def rotate_halves(x_BSNH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the pairs (j, j + H/2), as in Llama, in float32."""
    a, b = x_BSNH.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_BSNH.dtype)


def rotate_pairs(x_BSNH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the pairs (2j, 2j + 1), in float32."""
    a, b = x_BSNH.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return turned.flatten(-2).to(x_BSNH.dtype)


def record_of(
    config: HuginnConfig, hidden: bool | None, attentions: bool | None, *, packed: bool
) -> BlockRecord | None:
    """Where to keep what was asked for; None if nothing was.

    hidden, attentions: None: what the configuration says. packed: blocks run that keep no weights.
    """
    hidden = config.output_hidden_states if hidden is None else hidden
    attentions = config.output_attentions if attentions is None else attentions
    if not isinstance(hidden, bool):
        raise ValueError(f"output_hidden_states is {hidden!r}; Huginn gives all of them (True)")
    if attentions and config._attn_implementation != "eager":
        raise ValueError(
            "output_attentions is True, but attention runs as a kernel (SDPA) that keeps no "
            "weights; load the model with attn_implementation='eager', or call "
            "model.set_attn_implementation('eager')"
        )
    if attentions and packed:
        raise ValueError("output_attentions is True, but packed blocks keep no weights")
    return BlockRecord(hidden=hidden, attentions=bool(attentions)) if hidden or attentions else None


def written_out(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(H)) v, (B, N, S, H), and its weights (B, N, S, K); the softmax in
    float32."""
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    weights = scores.float().softmax(-1).to(q.dtype)
    return weights @ v, weights


# --------------------------------------------------------------------------------------------------
# Masks and checks


def context_of(
    config: HuginnConfig,
    x: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    cache: Cache | None = None,
    rows: Tensor | None = None,
) -> Context:
    """Where the tokens of `x` (B, S, d) stand and what they may see; see `HuginnModel.context`."""
    (B, S, _), device = x.shape, x.device
    place, start, K = None, torch.zeros(1, dtype=torch.long, device=device), S
    if isinstance(cache, RecurrentCache):
        place = cache.begin(B, S, _layout(config, x), rows=rows)
        start = torch.as_tensor(place.start, device=device).reshape(-1)
        K = place.width
    elif cache is not None:
        start = start + cache.get_seq_length()
        K, _ = cache.get_mask_sizes(S, 0)
        check_room(cache, start, S)
        attention_mask = padded_mask(attention_mask, cache, K)
    check_mask(attention_mask, (B, config.n_heads, S, K))
    columns = start[:, None] + torch.arange(S, device=device)
    positions = positions_of(attention_mask, position_ids, columns)
    check_positions(positions, (B, S), config.block_size)
    packed = position_ids if attention_mask is None and cache is None else None
    mask, causal = visible(attention_mask, packed, columns, K, full=not is_static(cache))
    rotary = rotary_of(config, positions)
    eager = config._attn_implementation == "eager"
    return Context(positions, rotary, mask, causal, cache, place, eager=eager)


def _layout(config: HuginnConfig, x: Tensor) -> SlotLayout:
    """What a cache must be made for."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return SlotLayout(*config.layers, config.num_key_value_heads, config.head_dim, dtype, x.device)


def split_depth(
    num_steps: int | Sequence[int] | Tensor | None, config: HuginnConfig
) -> tuple[int, int]:
    """(recurrences without gradient, with gradient); None: the mean. See `HuginnModel.forward`."""
    if num_steps is None:
        num_steps = int(config.mean_recurrence)
    given = num_steps.tolist() if isinstance(num_steps, Tensor | np.ndarray) else num_steps
    pair = tuple(given) if isinstance(given, Sequence) else (0, given)
    whole = all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in pair)
    pair = tuple(int(n) for n in pair) if whole else pair
    if len(pair) != 2 or not whole or min(pair) < 0 or sum(pair) < 1:
        raise ValueError(
            f"num_steps is {num_steps}: the depth must be a whole number of at least 1, or "
            "(recurrences without, with gradient)"
        )
    return cast(tuple[int, int], pair)


def check_inputs(
    input_ids: Tensor | None, inputs_embeds: Tensor | None, state: Tensor | None, d: int
) -> None:
    """Raise a ValueError unless there are ids (B, S) or embeddings (B, S, d), and a state, if any,
    of (B, S, d)."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")
    given = cast(Tensor, input_ids if inputs_embeds is None else inputs_embeds)
    ndim = 2 if inputs_embeds is None else 3
    if given.ndim != ndim or 0 in given.shape[:2] or given.shape[2:] not in ((), (d,)):
        raise ValueError(
            f"inputs of shape {tuple(given.shape)}; input_ids must be (batch, length), "
            f"inputs_embeds (batch, length, {d}), of at least one token"
        )
    if state is not None and state.shape != (*given.shape[:2], d):
        raise ValueError(
            f"state of shape {tuple(state.shape)}; s_0 must be {(*given.shape[:2], d)}, one "
            "vector for each new token"
        )


def check_passed(
    new: Tensor,
    position_ids: Tensor | None,
    mask: Tensor | None,
    cache: Cache | None,
    given: dict[str, Any],
) -> dict[str, Any]:
    """What of the further arguments `given` is not known to be inert for new tokens (B, S, ...).

    Raises:
        ValueError: one that would have to change the numbers, or asks for what is not there.
    """
    given = {
        k: v for k, v in given.items() if v is not None and (v is not False or k == "is_causal")
    }
    if not given:
        return {}  # as at every token
    B, S = new.shape[:2]
    alone = mask is None and cache is None  # else rows are not packed, see `visible`
    past = 0 if cache is None else int(cache.get_seq_length())
    begins = begins_of(position_ids, B) if alone else None
    return Passed("Huginn", B, S, past, begins).rest(given)


def is_static(cache: Cache | None) -> bool:
    """Whether the cache is transformers' of a fixed length: it always shows all of it."""
    layers = [] if cache is None else cache.layers
    return bool(layers) and isinstance(layers[0], StaticLayer)


def check_room(cache: Cache, start: Tensor, num_new: int) -> None:
    """Raise a ValueError if a static cache is full. In a graph its own writing says so."""
    if is_static(cache) and not torch.compiler.is_compiling():
        room = cast(StaticLayer, cache.layers[0]).max_cache_len
        if int(start) + num_new > room:
            raise ValueError(
                f"the static cache holds {int(start)} of {room} tokens, {num_new} more do not go "
                "in; make it longer"
            )


def padded_mask(mask: Tensor | None, cache: Cache, K: int) -> Tensor | None:
    """A mask (B, K' <= K) for all columns of a static cache; those behind it are not there yet."""
    if mask is None or mask.ndim != 2 or not is_static(cache) or mask.shape[1] >= K:
        return mask
    return F.pad(mask, (0, K - mask.shape[1]))


def check_mask(mask: Tensor | None, shape: tuple[int, int, int, int]) -> None:
    """Raise a ValueError unless the mask is (B, K), or (B or 1, N or 1, S, K) bool or float."""
    if mask is None:
        return
    B, N, S, K = shape
    if mask.ndim == 2 and mask.shape == (B, K):
        return
    if mask.ndim == 4 and mask.shape[0] in (1, B) and mask.shape[1] in (1, N):
        typed = mask.dtype == torch.bool or mask.is_floating_point()
        if mask.shape[2:] == (S, K) and typed:
            return
    raise ValueError(
        f"attention_mask of shape {tuple(mask.shape)} and {mask.dtype}; for {B} rows of {S} new "
        f"and {K - S} cached tokens it must be {(B, K)}, or {(B, 1, S, K)} of bool (True = may "
        "look) or additive float"
    )


def positions_of(mask: Tensor | None, given: Tensor | None, columns: Tensor) -> Tensor:
    """(B or 1, S): the given ones; else the number of real tokens before; else the column."""
    if given is not None:
        return given
    if mask is None or mask.ndim == 4:
        return columns
    before = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return before.gather(1, columns.expand(len(mask), -1))


def check_positions(positions: Tensor, shape: tuple[int, int], block_size: int) -> None:
    """Raise a ValueError unless the positions are (B or 1, S) and lie in the context."""
    if positions.ndim != 2 or positions.shape not in (shape, (1, shape[1])):
        raise ValueError(
            f"position_ids of shape {tuple(positions.shape)}; must be {shape} or {(1, shape[1])}"
        )
    if torch.compiler.is_compiling():  # a graph looks at no number
        if shape[1] > block_size:
            raise ValueError(f"{shape[1]} tokens, but block_size is {block_size}; give fewer")
        return
    low, high = (int(end) for end in positions.aminmax())
    if low < 0 or high >= block_size:
        raise ValueError(
            f"positions {low} to {high} leave the context: block_size is {block_size}; shorten the "
            "prompt, or ask for fewer new tokens"
        )


def check_plain_cache(cache: Cache, config: HuginnConfig, depth: int) -> None:
    """Raise a ValueError unless transformers' own cache has, or can get, a slot for each layer and
    recurrence, all of one length, from a model of this shape."""
    prelude, core, coda = config.layers
    needed = prelude + coda + core * depth
    lacking = needed - len(cache.layers)
    if cache.layer_class_to_replicate is None and lacking > 0:
        fresh = [
            type(layer) is DynamicLayer and not layer.get_seq_length() for layer in cache.layers
        ]
        if not fresh or not all(fresh):
            raise ValueError(
                f"the cache has {len(cache.layers)} layers, {depth} recurrences need {needed}; "
                "pass inward.methods.huginn.cache.RecurrentCache(), or an empty DynamicCache()"
            )
        # one of num_hidden_layers: it gets those that the loop needs, as in transformers' own loops
        cache.layers.extend(copy.deepcopy(cache.layers[-1]) for _ in range(lacking))
    if torch.compiler.is_compiling():  # a graph looks at no number
        return
    lengths = {int(cache.get_seq_length(i)) for i in range(needed)}
    if len(lengths) > 1:
        raise ValueError(
            "the cached tokens had another depth; keep num_steps, or pass "
            "inward.methods.huginn.cache.RecurrentCache('deepest')"
        )
    want = (config.num_key_value_heads, config.head_dim)
    filled = cast(list[DynamicLayer], cache.layers if lengths != {0} else [])
    shapes = {tuple(cast(Tensor, layer.keys).shape[1::2]) for layer in filled}
    mixes = getattr(cache, "looped", None) is not None  # tokens of different depth
    if shapes - {want} or (len(filled) > needed and not mixes):
        raise ValueError(
            f"this cache belongs to another model or depth: {len(filled)} layers with (heads, "
            f"width) {sorted(shapes)}; here {needed} with {want}"
        )


def visible(
    mask: Tensor | None, packed: Tensor | None, columns: Tensor, K: int, *, full: bool = True
) -> tuple[Tensor | None, bool]:
    """(mask, causal) as in `Context`: token at column c sees columns up to c that are real.

    full: all K columns are written; a static cache has more. In a graph, where no number is looked
    at, a mask or positions are taken to say something.

    A padded token sees itself, so that nothing is divided by zero; nobody sees it.
    """
    if mask is not None and mask.ndim == 4:
        return mask, False
    graph = torch.compiler.is_compiling()
    mask = None if mask is None or (not graph and bool(mask.all())) else mask.bool()
    texts = None if packed is None else F.pad(packed.diff(dim=1) != 1, (1, 0)).cumsum(1)
    if texts is not None and not graph and bool((texts[:, -1] == 0).all()):
        texts = None
    S = columns.shape[1]
    if mask is None and texts is None and columns.shape[0] == 1 and full and S in (1, K):
        return None, S > 1
    k = torch.arange(K, device=columns.device)
    allowed = k <= columns[..., None]
    if mask is not None:
        allowed = (allowed & mask[:, None, :]) | (k == columns[..., None])
    if texts is not None:
        allowed = allowed & (texts[:, :, None] == texts[:, None, :])
    return allowed[:, None], False
