"""The candidate cube: a mixer that has a token for every row, column and digit of a Latin-square
puzzle (Sudoku), and pools over the four kinds of units.

Not in the paper, and not comparable with its mixers: this one is told the rules' units. What it is
not told is what to do with them; no digit is chosen by search or propagation.

    h           (B, n, n, n, d)   the token of row r, column c, digit k
    one layer   g = W h + sum over the units u of U_u mean_u(h);  (a, b) = halves of g
                h <- rms(h + O (silu(a) * b))
    units u     cell (mean over k), row (over c), col (over r), box (over the box, for one k)
    f           `num_layers` different layers; no biases, no gains, no positions
    x           a table of three vectors: cell blank, this digit given, another digit given
    y           read by one vector shared by all tokens: softmax over the digits of a cell
    q           reads mean, greatest and least, over the cells, of sum over k of p_k y_k

What is unusual: permuted digits, rows in a band and bands permute the answer in the same way by
construction, so only a transposed puzzle is a new view; and no weight is tied to the size n, so the
same weights run on 4x4, 6x6, 9x9 and 16x16.

`layer` is the definition. `layer_fast` gives the same without a graph: tokens of a few puzzles at a
time so that they stay in the cache, sums that rows and boxes share done once. For training,
`CubeNetwork.compile_training` compiles `layer`.

Shape letters: B rows of the batch, n side of the grid, d width.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inward.methods.trm.layers import Linear, truncated_normal_

if TYPE_CHECKING:
    from inward.methods.trm.settings import TRMSettings

UNITS = ("cell", "row", "col", "box")
_PUZZLES_AT_ONCE = 8  # 8 puzzles of 9x9 are 1.5 MB of g: a second-level cache
_NOWHERE = -1e4  # logit of padding and blank, which are no answers; finite, so that 0 * it is 0


def box_shape(n: int) -> tuple[int, int]:
    """Rows and columns of a box: the most nearly square ones, rows <= columns (6: 2 x 3)."""
    rows = max(r for r in range(1, math.isqrt(n) + 1) if n % r == 0)
    return rows, n // rows


def layer(h: Tensor, W: Tensor, U: list[Tensor], O: Tensor, eps: float) -> Tensor:  # noqa: E741
    """One layer, h (B, n, n, n, d) to the same; W and each of U (4d, d), O (d, 2d)."""
    B, n, _, _, d = h.shape
    rows, cols = box_shape(n)
    bands, stacks = n // rows, n // cols
    in_box = h.view(B, bands, rows, stacks, cols, n, d).sum(4)  # over the columns of each box
    cell = F.linear(h.mean(3), U[0]).view(B, n, n, 1, -1)
    row = F.linear(in_box.sum(3) / n, U[1]).view(B, bands, rows, 1, n, 4 * d)
    col = F.linear(h.mean(1), U[2]).view(B, 1, n, n, 4 * d)
    box = F.linear(in_box.sum(2) / n, U[3]).view(B, bands, 1, stacks, n, 4 * d)
    row_box = (row + box).view(B, n, stacks, 1, n, 4 * d).expand(-1, -1, -1, cols, -1, -1)
    g = F.linear(h, W) + cell + col + row_box.reshape(B, n, n, n, 4 * d)
    a, b = g.chunk(2, dim=-1)
    h = h + F.linear(F.silu(a) * b, O)
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)


def layer_fast(h: Tensor, W: Tensor, U: list[Tensor], O: Tensor, eps: float) -> Tensor:  # noqa: E741
    """`layer` without a graph, some puzzles at a time; h must be contiguous."""
    parts = [_few(part, W, U, O, eps) for part in h.split(_PUZZLES_AT_ONCE)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _few(h: Tensor, W: Tensor, U: list[Tensor], O: Tensor, eps: float) -> Tensor:  # noqa: E741
    B, n, _, _, d = h.shape
    rows, cols = box_shape(n)
    bands, stacks, D = n // rows, n // cols, 4 * d
    in_box = h.view(B * n * stacks, cols, n * d).sum(1).view(B, bands, rows, stacks, n * d)
    cell = h.view(B * n * n, n, d).sum(1) @ (U[0].t() / n)
    row = in_box.sum(3).view(-1, d) @ (U[1].t() / n)
    col = h.view(B, n, n * n * d).sum(1).view(-1, d) @ (U[2].t() / n)
    box = in_box.sum(2).view(-1, d) @ (U[3].t() / n)
    row_box = row.view(B, bands, rows, 1, n * D) + box.view(B, bands, 1, stacks, n * D)
    g = h.new_empty(B * n**3, D)
    # long inner dimensions: a broadcast over the last axes would run at a tenth of the speed
    g.view(-1, cols, n * D).copy_(row_box.view(-1, 1, n * D))
    g.view(B, n, n * n * D).add_(col.view(B, 1, n * n * D))
    g.view(-1, n, D).add_(cell.view(-1, 1, D))
    g.addmm_(h.view(-1, d), W.t())
    change = F.silu(g[:, : D // 2]).mul_(g[:, D // 2 :])
    out = torch.addmm(h.view(-1, d), change, O.t())
    out.mul_(out.square().sum(1, keepdim=True).div_(d).add_(eps).rsqrt_())
    return out.view(h.shape)


class CubeLayer(nn.Module):
    """The weights of one layer."""

    def __init__(self, d: int):
        super().__init__()
        self.W = Linear(d, 4 * d, bias=False)
        self.U = nn.ModuleDict({unit: Linear(d, 4 * d, bias=False) for unit in UNITS})
        self.O = Linear(2 * d, d, bias=False)

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], Tensor]:
        """W, the four U, O."""
        U = [cast(Linear, self.U[unit]).weight.to(dtype) for unit in UNITS]
        return self.W.weight.to(dtype), U, self.O.weight.to(dtype)


class CubeNetwork(nn.Module):
    """f(state, injection) on cubes."""

    def __init__(self, settings: TRMSettings):
        super().__init__()
        self.eps = settings.norm_eps
        self.layers = nn.ModuleList(
            CubeLayer(settings.hidden_size) for _ in range(settings.num_layers)
        )
        self._compiled: Any = None

    def forward(self, state: Tensor, injection: Tensor, where: Any = None) -> Tensor:
        weights = [part.weights(state.dtype) for part in self.layers]  # pyright: ignore
        if torch.is_grad_enabled():
            return (self._compiled or _layers)(state, injection, weights, self.eps)
        h = (state + injection).contiguous()
        for W, U, O in weights:  # noqa: E741
            h = layer_fast(h, W, U, O, self.eps)
        return h

    def compile_training(self) -> None:
        """Let `torch.compile` fuse the layers wherever a graph is kept; without a C++ compiler
        they stay as they are, about three times slower."""
        self._compiled = _Fallback()


class _Fallback:
    """The compiled layers, or the plain ones with a warning if compiling fails."""

    def __init__(self) -> None:
        self.run: Any = torch.compile(_layers, dynamic=False)

    def __call__(self, *args: Any) -> Tensor:
        try:
            # one graph for each size of grid and each pattern of what needs a gradient
            with torch._dynamo.config.patch(recompile_limit=64):  # pyright: ignore
                return self.run(*args)
        except Exception as error:
            if self.run is _layers:
                raise
            warnings.warn(f"not compiled, training is slower: {error}"[:300], stacklevel=2)
            self.run = _layers
            return _layers(*args)


def _layers(state: Tensor, injection: Tensor, weights: Any, eps: float) -> Tensor:
    h = state + injection
    for W, U, O in weights:  # noqa: E741
        h = layer(h, W, U, O, eps)
    return h


# --------------------------------------------------------------------------------------------------
# x, and what is read from y


def embed(inputs: Tensor, table: Tensor) -> Tensor:
    """x (B, n, n, n, d) of tokens (B, n * n): 0 and 1 blank, digit k as k + 1."""
    n = math.isqrt(inputs.shape[1])
    cells = inputs.view(-1, n, n, 1)
    digits = torch.arange(2, n + 2, device=inputs.device)
    kind = torch.where(cells == digits, 1, 2)
    return F.embedding(torch.where(cells > 1, kind, 0), table)


def read_out(y: Tensor, head: nn.Module, q_head: nn.Module) -> tuple[Tensor, Tensor]:
    """Logits (B, n * n, n + 2) and halting logits (B,) float32."""
    scores = head(y)[..., 0].flatten(1, 2)
    # a cell's answered token, softly: a mean over all tokens would depend on n
    answered = (scores.detach().softmax(-1).unsqueeze(-2) @ y.flatten(1, 2)).squeeze(-2)
    pooled = torch.cat([answered.mean(1), answered.amax(1), answered.amin(1)], dim=-1)
    return F.pad(scores, (2, 0), value=_NOWHERE), q_head(pooled)[:, 0].float()


@torch.no_grad()
def initialise(module: nn.Module, name: str) -> None:
    """Truncated normals of deviation gain / sqrt(fan in): W 0.707, U 0.53, O and the head 1."""
    gain = {"W": 0.707, "O": 1.0}.get(name.rpartition(".")[2], 0.53 if ".U." in name else 1.0)
    truncated_normal_(module.weight, gain * module.in_features**-0.5)  # pyright: ignore


def flops(settings: TRMSettings, num_cells: int) -> tuple[float, float]:
    """FLOPs of one evaluation of f and of one read-out (the head, the cells' answers that the
    halting head pools, and that head), for one row."""
    n, d = math.isqrt(num_cells), settings.hidden_size
    units = len(UNITS) * n * n * 2 * 4 * d * d
    return float(settings.num_layers * (n**3 * 2 * 6 * d * d + units)), float(n**3 * 4 * d + 6 * d)
