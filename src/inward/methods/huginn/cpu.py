"""Huginn on a CPU without gradients: the arithmetic of the plain blocks with less traffic.

A token at depth r passes 4 r blocks one after the other, and each is a few products of one row with
a matrix. On a CPU that is bound by how fast weights are read, and then by the number of small
operations. Here

- matrices are packed once (`inward.common.cpu.linears.matrix`; measured on an EPYC 9004 with two
threads: 22 GB/s
  instead of 11 in float32, 32 instead of 18 in bfloat16);
- rotary positions are one complex product, norms four operations;
- in bfloat16 the stream within a block stays in float32, which rounds less and converts less;
- in bfloat16 the cache is attended to in float32, block by block converted: torch's kernel for one
  bfloat16 query reads 4 GB/s, conversion and float32 kernel together do three times that;
- rows of a batch that look at long texts are attended to one by one, in place, not gathered.

`packed(model)` turns it on for a while; `generate` runs a twin of the model so. The results are
those of the plain path up to rounding (tests/methods/huginn/test_cpu.py). It takes the memory of
the weights once more, which stays with the model until a weight changes or `unpack` is called.

Shape letters: B rows, S tokens, M = B * S, d width, N heads, H head width, K cached tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inward.common.cpu.linears import LIMIT_BYTES, Kept, can_pack, matrix
from inward.common.twins import Twin
from inward.methods.huginn.blocks import (
    Attention,
    GatedMLP,
    PlainMLP,
    SelfGatedMLP,
    SplitGatedMLP,
    Wired,
)
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.context import Context, rotate_halves
from inward.methods.huginn.norms import RMSNorm

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM

OWN = (
    "inward.methods.huginn.model",
    "inward.methods.huginn.blocks",
    "inward.methods.huginn.norms",
    "torch.nn.modules",
)
"""Where the parts come from that have a packed form."""
LONG = 96
"""From this length on rows are attended to one by one."""


_KEPT: Kept[Packed] = Kept()


def suits(model: HuginnForCausalLM) -> bool:
    """Whether the model can be packed: on a CPU, one dtype, and nothing that watches or replaces a
    part (hooks, adapters, parametrizations), because nobody would notice the packed ones."""
    if not can_pack(list(model.parameters())):
        return False
    return all(_bare(part) for part in model.modules())


def _bare(part: nn.Module) -> bool:
    return (
        type(part).__module__.startswith(OWN)
        and not isinstance(part, SplitGatedMLP | SelfGatedMLP)  # these have no packed form
        and "forward" not in part.__dict__
        and not part._forward_hooks
        and not part._forward_pre_hooks
    )


@contextmanager
def packed(model: HuginnForCausalLM, *, wanted: bool | None = None) -> Iterator[None]:
    """Forwards of this model without gradient run here for the while, in this thread.

    wanted: False: they do not; True: also if the model is larger than LIMIT_BYTES; None: if it
        suits and is small enough.
    Raises:
        ValueError: it is wanted and cannot be.
    """
    with active(model, chosen(model, wanted)):
        yield


def chosen(model: HuginnForCausalLM, wanted: bool | None) -> Packed | None:
    """What `packed` runs; None: the plain blocks."""
    if wanted is False:
        return None
    use = suits(model) and (wanted or _bytes(model) <= LIMIT_BYTES)
    if wanted and not use:
        raise ValueError(
            "this model cannot be packed: it must lie on a CPU in float32 or bfloat16, with no "
            "hooks, adapters or replaced parts; pass packed=None to run it as it is"
        )
    return _packed(model) if use else None


@contextmanager
def active(model: HuginnForCausalLM, parts: Packed | None) -> Iterator[None]:
    """Forwards of this model without gradient run with these parts for the while, in this
    thread."""
    active_parts = model.transformer.active_parts
    me, before = get_ident(), active_parts.get(get_ident())
    active_parts[me] = parts
    try:
        yield
    finally:
        if before is None:
            active_parts.pop(me, None)
        else:
            active_parts[me] = before


def thinking(model: HuginnForCausalLM, packed: bool | None = None) -> HuginnForCausalLM:
    """A twin to think with: in evaluation mode, its weights packed. The model is left alone.

    packed: as in `packed`; ValueError if it is wanted and cannot be.
    """
    parts = chosen(model, packed)
    own = Twin(model).model
    own.transformer.active_parts, own.transformer.own_parts = {}, parts
    return own


def unpack(model: HuginnForCausalLM) -> None:
    """Give the memory of the packed weights back."""
    _KEPT.drop(model)


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _packed(model: HuginnForCausalLM) -> Packed:
    """The packed weights, made anew if a weight has changed."""
    return _KEPT.get(model, model.parameters(), lambda: Packed(model))


class Packed:
    """The parts of `HuginnModel` and the head, packed; they are called as those are."""

    def __init__(self, model: HuginnForCausalLM):
        whole = model.transformer
        self.prelude, self.core_block, self.coda = (
            [_Block(block) for block in blocks]  # type: ignore[arg-type]
            for blocks in (whole.prelude, whole.core_block, whole.coda)
        )
        self.adapter, self.lm_head = _adapter(whole.adapter), matrix(model.lm_head.weight)
        final = _norm(whole.ln_f)
        self.ln_f = lambda x: final(x.float()).to(x.dtype)


def _norm(norm: nn.Module) -> Any:
    """The norm of float32, in float32. An RMS norm is
    x -> rms_norm(x) * weight = sqrt(d) x / sqrt(|x|^2 + d eps) * weight."""
    if not isinstance(norm, RMSNorm):
        return copy.deepcopy(norm).float() if isinstance(norm, nn.LayerNorm) else norm
    weight, eps = norm.weight, norm.eps
    d = weight.shape[0]
    scaled, least = weight.detach().float() * d**0.5, torch.tensor((d * eps) ** 0.5)
    length, hypot = torch.ops.aten.linalg_vector_norm.default, torch.hypot
    return lambda x: x / hypot(length(x, 2, [-1], True), least) * scaled


def _mlp(mlp: nn.Module) -> Any:
    """A `GatedMLP` or `PlainMLP`."""
    assert isinstance(mlp, GatedMLP | PlainMLP)
    f, fc, down = mlp.f, matrix(mlp.fc.weight), matrix(mlp.proj.weight)
    if isinstance(mlp, PlainMLP):
        return lambda h: down(f(fc(h)))

    def gated(h: Tensor) -> Tensor:
        gate, up = fc(h).chunk(2, dim=-1)
        return down(f(gate).mul_(up))

    return gated


def _adapter(adapter: nn.Module) -> Any:
    if isinstance(adapter, nn.Linear):
        return matrix(adapter.weight)
    return adapter if isinstance(adapter, nn.Identity) else _mlp(adapter)


class _Block:
    """A block, operation by operation; the order is its own `wire`."""

    def __init__(self, block: Wired):
        self.wire, self.norms = block.wire, [_norm(norm) for norm in block.norms]
        self.attend, self.mlp = _Attention(block.attn), _mlp(block.mlp)

    def __call__(self, x: Tensor, context: Context, layer_idx: Any) -> Tensor:
        attend, mlp, dtype = self.attend, self.mlp, x.dtype
        out = self.wire(
            x.float(),
            self.norms,
            lambda h: attend(h.to(dtype), context, layer_idx),
            lambda h: mlp(h.to(dtype)),
        )
        return out.to(dtype)


class _Attention:
    """`blocks.Attention`, operation by operation."""

    def __init__(self, attn: Attention):
        self.heads, self.head_dim = [width // attn.head_dim for width in attn.widths], attn.head_dim
        self.widths, self.clip, self.norm_heads = attn.widths, attn.clip, attn.norm_heads
        self.rotate = _rotate_halves if attn.rotate is rotate_halves else _rotate_pairs
        self.qkv, self.proj = matrix(attn.Wqkv.weight), matrix(attn.proj.weight)
        self.qk_bias = None
        if attn.qk_bias is not None:
            self.qk_bias = attn.qk_bias.detach().flatten(0, 2).float()  # (2 N, H)
        self.norms = None
        if attn.q_norm is not None and attn.k_norm is not None:
            self.norms = _norm(attn.q_norm), _norm(attn.k_norm)

    def __call__(self, h: Tensor, context: Context, layer_idx: Any) -> Tensor:
        B, S, _ = h.shape
        (N, G, _), H = self.heads, self.head_dim
        qkv = self.qkv(h)
        if self.clip is not None:
            qkv = qkv.clamp_(-self.clip, self.clip)
        qk, v = qkv[..., : -G * H].float(), qkv[..., -G * H :].view(B, S, G, H)
        if self.norms is not None:
            parts = zip(self.norms, qk.split(self.widths[:2], dim=-1), strict=True)
            qk = torch.cat([norm(part) for norm, part in parts], dim=-1)
        qk = qk.view(B, S, N + G, H)
        if self.qk_bias is not None:
            qk = qk + self.qk_bias
        qk = self.rotate(qk, context.turn)
        if self.norm_heads:
            qk = F.rms_norm(qk, (H,))
        q, k = qk.transpose(1, 2).split((N, G), dim=1)  # (B, N, S, H) and (B, G, S, H) float32
        out = _attention(q, k, v.transpose(1, 2), context, layer_idx)
        return self.proj(out.transpose(1, 2).reshape(B, S, N * H).to(h.dtype))


def _rotate_pairs(x: Tensor, turn: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


def _rotate_halves(x: Tensor, turn: Tensor) -> Tensor:
    turned = torch.complex(*x.chunk(2, dim=-1)) * turn
    return torch.cat([turned.real, turned.imag], dim=-1)


def _attention(q: Tensor, k: Tensor, v: Tensor, context: Context, layer_idx: Any) -> Tensor:
    """(B, N, S, H) in the dtype of v or float32; q (B, N, S, H) and k (B, G, S, H) in float32."""
    place, lengths = context.place, context.lengths
    if lengths is not None and place is not None and (len(lengths) == 1 or place.width >= LONG):
        cache = context.cache
        assert isinstance(cache, RecurrentCache)
        views = cache.update_views(k, v, layer_idx, place, lengths)
        if len(views) == 1:
            return _one(q, *views[0])
        return torch.cat([_one(part, *kv) for part, kv in zip(q.split(1), views, strict=True)])
    if place is None:
        k = k.to(v.dtype)  # RecurrentCache converts while it copies
    k, v = context.extend(k, v, layer_idx)
    if q.shape[2] == 1 and context.mask is None:
        return _one(q, k, v)
    q, mask = q.to(v.dtype), context.mask
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=context.causal, enable_gqa=grouped
    )


def _one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query a row, float32, that sees all of k and v (B, G, K, H); float32. Heads that share
    keys stand where tokens would."""
    if q.shape[1] == k.shape[1]:
        return F.scaled_dot_product_attention(q, k.float(), v.float())
    together = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    return F.scaled_dot_product_attention(together, k.float(), v.float()).reshape(q.shape)
