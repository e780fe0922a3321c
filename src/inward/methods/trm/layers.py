"""Operations that more than one paper uses: RMS norm, rotary positions, SwiGLU, one attention call.

Weights stay in their own dtype (float32 masters) and are cast to the dtype of the activations at
use, so that one setting, the dtype of the embedded input, decides the precision of a whole forward;
norms and rotary angles are computed in float32 whatever it is.

Shape letters: B batch, S sequence, D width, N heads, H width of a head.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inward.common.nn import rms_norm
from inward.methods.trm import cpu as nn_cpu

if TYPE_CHECKING:
    from inward.methods.trm.model import Where
    from inward.methods.trm.settings import TRMSettings

# Standard deviation of a unit normal cut at +-2. JAX-style truncated initialisers divide by it, so
# that the result has the deviation asked for; torch's trunc_normal_ does not.
_TRUNCATED_STD = 0.87962566103423978


def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with a normal cut at two sigmas whose deviation *after* the cut is `std`."""
    sigma = std / _TRUNCATED_STD
    return nn.init.trunc_normal_(tensor, std=sigma, a=-2 * sigma, b=2 * sigma)


class Linear(nn.Linear):
    """`nn.Linear` whose weight follows the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class SwiGLU(nn.Module):
    """down(silu(gate) * up), d -> m -> d without biases; m = 2/3 * expansion * d, rounded up to
    `multiple`."""

    def __init__(self, d: int, *, expansion: float, multiple: int = 256):
        super().__init__()
        self.width = multiple * math.ceil(round(expansion * d * 2 / 3) / multiple)
        self.gate_up_proj = Linear(d, 2 * self.width, bias=False)
        self.down_proj = Linear(self.width, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


def residual_norm(h: Tensor, change: Tensor, eps: float) -> Tensor:
    """rms_norm(h + change) over the last axis of (B, S, D)."""
    if nn_cpu.suits(h):
        return nn_cpu.residual_norm(h, change, eps)
    return rms_norm(h + change, eps)


def residual_swiglu(h: Tensor, mlp: SwiGLU, eps: float, *, axis: int) -> Tensor:
    """rms_norm(h + mlp(h)), both along `axis` (1: sequence, 2: width) of h (B, S, D)."""
    if nn_cpu.suits(h) and _bare(mlp):
        up, down = mlp.gate_up_proj.weight, mlp.down_proj.weight
        return nn_cpu.residual_swiglu(h, up, down, eps, axis=axis)
    turned = h.transpose(1, 2) if axis == 1 else h
    turned = rms_norm(turned + mlp(turned), eps)
    return turned.transpose(1, 2) if axis == 1 else turned


def _bare(mlp: SwiGLU) -> bool:
    """True if nothing watches or replaces a part (hooks, adapters, parametrizations): then nobody
    notices when the MLP is computed as one."""
    return all(
        type(part) in (SwiGLU, Linear)
        and not part._forward_hooks
        and not part._forward_pre_hooks
        and not part._backward_hooks
        and not part._backward_pre_hooks
        for part in (mlp, mlp.gate_up_proj, mlp.down_proj)
    )


def _frequencies(width: int, theta: float, device: torch.device) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, width, 2, device=device).float() / width)


def rotary_table(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, (S, width) float32, for 1-D positions (S,): the `width / 2` frequencies stand
    twice in a row, because the two halves of a head are rotated against each other ("rotate
    half")."""
    frequencies = _frequencies(width, theta, positions.device)
    angles = positions.float()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotary_table_2d(
    rows: Tensor, columns: Tensor, width: int, theta: float
) -> tuple[Tensor, Tensor]:
    """As `rotary_table`, with the first half of the frequency pairs driven by the row and the
    other by the column."""
    frequencies = _frequencies(width // 2, theta, rows.device)
    angles = torch.cat(
        [rows.float()[:, None] * frequencies, columns.float()[:, None] * frequencies], -1
    )
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BSNH: Tensor, cos_SH: Tensor, sin_SH: Tensor) -> Tensor:
    """Apply rotary positions to queries or keys."""
    x = x_BSNH.float()
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * cos_SH[:, None, :] + turned * sin_SH[:, None, :]).to(x_BSNH.dtype)


def attend(q_BSNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, mask: Tensor | None = None) -> Tensor:
    """Full attention scaled by 1/sqrt(H). `mask` is boolean, True = may look, broadcastable to (B,
    N, S, S)."""
    q, k, v = (t.transpose(1, 2) for t in (q_BSNH, k_BSNH, v_BSNH))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


class Convolution(nn.Module):
    """Depthwise convolution over the grid, then a linear map; the prefix rows read mean and maximum
    of the grid.

    Nothing flows from the prefix back into the cells: a cell's next value depends on its
    neighbourhood alone, which is what lets one model run on grids of other sizes.
    """

    def __init__(self, settings: TRMSettings):
        super().__init__()
        D = settings.hidden_size
        self.depthwise = nn.Conv2d(D, D, settings.kernel_size, padding="same", groups=D, bias=False)
        self.cell_proj = Linear(D, D, bias=False)
        self.pool_proj = Linear(2 * D, D, bias=False)

    def forward(self, h: Tensor, where: Where) -> Tensor:
        cells = h[:, where.prefix :]
        lowest = cells
        if where.real is not None:
            real = where.real[:, where.prefix :, None]
            lowest = cells.masked_fill(~real, torch.finfo(cells.dtype).min)
            cells = cells * real
        # (B, L, D) seen as (B, D, rows, columns) is already in channels-last order: no copy
        image = cells.unflatten(1, where.grid).permute(0, 3, 1, 2)
        image = F.conv2d(
            image, self.depthwise.weight.to(h.dtype), padding="same", groups=h.shape[-1]
        )
        mixed = self.cell_proj(image.permute(0, 2, 3, 1).flatten(1, 2))
        num_real = h.shape[1] - where.prefix if where.real is None else real.sum(1)
        pooled = torch.cat([cells.sum(1) / num_real, lowest.amax(1)], dim=-1)
        return torch.cat(
            [self.pool_proj(pooled)[:, None].expand(-1, where.prefix, -1), mixed], dim=1
        )
