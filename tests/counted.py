"""FLOPs by torch's own counter, the independent witness of the meter (docs/meter.md).

FlopCounterMode knows no formula for `addmm_` and `addbmm_` (in place), nor for SDPA's kernel on
CPUs. It is told both here; attention from the tensors that the kernel gets: twice 2 H for each pair
of a query and a key that the mask lets through, five times in the backward, which computes the
scores again. Everything else is counted by torch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def _pairs(q: Tensor, k: Tensor, causal: bool, mask: Tensor | None) -> int:
    B, N, S, _ = q.shape
    K = k.shape[2]
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else mask == 0
        return int(seen.expand(B, N, S, K).sum())
    return B * N * int(torch.ones(S, K).tril().sum()) if causal else B * N * S * K


def _forward(q, k, v, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None, out_val=None):
    return 2 * _pairs(q, k, is_causal, attn_mask) * (q.shape[3] + v.shape[3])


def _backward(
    grad, q, k, v, out, lse, dropout_p, is_causal, *, attn_mask=None, scale=None, out_val=None
):
    return 2 * _pairs(q, k, is_causal, attn_mask) * (3 * q.shape[3] + 2 * v.shape[3])


def _added(into, a, b, *, beta=1, alpha=1, out_val=None):
    return 2 * a.numel() * b.shape[-1]


_added._get_raw = _forward._get_raw = _backward._get_raw = True  # pyright: ignore
_aten: Any = torch.ops.aten
KERNELS = {
    _aten.addmm_: _added,
    _aten.addbmm_: _added,
    _aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def counter(*, attention: bool = True) -> FlopCounterMode:
    """A counter to run something under; without `attention`, as torch has it on a CPU."""
    return FlopCounterMode(display=False, custom_mapping=KERNELS if attention else {})
