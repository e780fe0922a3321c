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

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inward.common.cpu.linears import LIMIT_BYTES, Kept, can_pack, matrix
from inward.common.twins import Twin
from inward.methods.huginn.cache import RecurrentCache

if TYPE_CHECKING:
    from inward.methods.huginn.blocks import SandwichBlock
    from inward.methods.huginn.context import Context
    from inward.methods.huginn.model import HuginnForCausalLM

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
    own = ("inward.methods.huginn.model", "inward.methods.huginn.blocks", "torch.nn.modules")
    return (
        type(part).__module__.startswith(own)
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
        whole, eps = model.transformer, model.config.norm_eps
        self.prelude, self.core_block, self.coda = (
            [_Block(block, eps) for block in blocks]  # type: ignore[arg-type]
            for blocks in (whole.prelude, whole.core_block, whole.coda)
        )
        self.adapter, self.lm_head = matrix(whole.adapter.weight), matrix(model.lm_head.weight)
        final = _norm(whole.ln_f.weight, eps)
        self.ln_f = lambda x: final(x.float()).to(x.dtype)


def _norm(weight: Tensor, eps: float) -> Any:
    """x -> rms_norm(x) * weight = sqrt(d) x / sqrt(|x|^2 + d eps) * weight, in float32."""
    d = weight.shape[0]
    scaled, least = weight.detach().float() * d**0.5, torch.tensor((d * eps) ** 0.5)
    length, hypot = torch.ops.aten.linalg_vector_norm.default, torch.hypot
    return lambda x: x / hypot(length(x, 2, [-1], True), least) * scaled


class _Block:
    """`blocks.SandwichBlock`, operation by operation."""

    def __init__(self, block: SandwichBlock, eps: float):
        norms = (block.norm_1, block.norm_2, block.norm_3, block.norm_4)
        self.norms = [_norm(norm.weight, eps) for norm in norms]
        self.qkv, self.proj = matrix(block.attn.Wqkv.weight), matrix(block.attn.proj.weight)
        self.fc, self.down = matrix(block.mlp.fc.weight), matrix(block.mlp.proj.weight)
        self.qk_bias = block.attn.qk_bias.detach()[:, 0].float()  # (2, N, H)

    def __call__(self, x: Tensor, context: Context, layer_idx: Any) -> Tensor:
        norm_1, norm_2, norm_3, norm_4 = self.norms
        dtype, x = x.dtype, x.float()
        a = norm_2(x + self.attend(norm_1(x).to(dtype), context, layer_idx))
        gate, up = self.fc(norm_3(a).to(dtype)).chunk(2, dim=-1)
        return norm_4(a + self.down(F.silu(gate).mul_(up))).to(dtype)

    def attend(self, h: Tensor, context: Context, layer_idx: Any) -> Tensor:
        B, S, d = h.shape
        _, N, H = self.qk_bias.shape
        qkv = self.qkv(h).view(B, S, 3, N, H)
        qk = qkv[:, :, :2].float() + self.qk_bias
        pairs = torch.view_as_complex(qk.view(B, S, 2, N, H // 2, 2))
        turned = torch.view_as_real(pairs * context.turn).view(B, S, 2, N, H)
        q, k = turned.transpose(1, 3).unbind(2)  # each (B, N, S, H) float32
        out = _attention(q, k, qkv[:, :, 2].transpose(1, 2), context, layer_idx)
        return self.proj(out.transpose(1, 2).reshape(B, S, d).to(h.dtype))


def _attention(q: Tensor, k: Tensor, v: Tensor, context: Context, layer_idx: Any) -> Tensor:
    """(B, N, S, H) in the dtype of v or float32; q and k come in float32."""
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
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=context.causal)


def _one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query a row, float32, that sees all of k and v (B, N, K, H); float32."""
    return F.scaled_dot_product_attention(q, k.float(), v.float())
