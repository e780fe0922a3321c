"""Every choice of TRM in one frozen record; no torch here, so that recipes and the command line
stay light.

The table in `trm.py` says which value follows the paper and which the released code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TRMSettings:
    """Every choice of the method; defaults are the released Sudoku-Extreme recipe.

    Raises:
        ValueError: a value is out of its range, or two values cannot go together.
    """

    vocab_size: int = 11
    """V, with 0 = padding"""
    seq_len: int = 81
    """L; the token MLP is tied to it, the other mixers take any length at use"""
    grid: tuple[int, int] | None = None
    """rows and columns; None: square if L is a square number"""
    hidden_size: int = 512
    """D"""
    num_layers: int = 2
    """blocks of f"""
    num_heads: int = 8
    expansion: float = 4.0
    swiglu_multiple: int = 256
    """SwiGLU widths are rounded up to it (256 in the released code, 32 for small models)"""
    mixer: Literal["mlp", "attention", "conv", "cube"] = "mlp"
    """what mixes the cells: token MLP, attention, depthwise convolution over the grid; for Sudoku
    also the units of the candidate cube (not the paper's: see `cube.py`)"""
    positions: Literal["none", "rope", "rope2d", "learned"] = "none"
    kernel_size: int = 3
    """of the convolution mixer"""
    mask_padding: bool = False
    """cells with token 0 are hidden from attention and convolution (the released code attends to
    them)"""
    T: int = 3
    """latent recursions per deep recursion (released code: H_cycles)"""
    n: int = 6
    """updates of z per latent recursion (released code: L_cycles)"""
    cycle_schedule: tuple[tuple[int, int, int], ...] = ()
    """training only: (from step, T, n) rows, ascending, that replace T and n from that step on"""
    gradient: Literal["last_cycle", "last_k", "all"] = "last_cycle"
    """which evaluations of f are back-propagated: the last latent recursion, the last
    `gradient_k`, or all"""
    gradient_k: int = 2
    latents: Literal[1, 2] = 2
    """2: y and z; 1: the paper's single-z ablation (z carries the answer)"""
    answer_update: bool = True
    """each latent recursion ends with an update that does not see x; False, for one latent only: it
    does not, so that T=1, n=1 is a plain stack of layers (the control without recursion)"""
    supervision: Literal["carry", "loop", "stay"] = "carry"
    """slots as in the released code, whole batches as in the paper, or slots that also learn to
    leave a right answer alone (`staying.py`, with the three fields below)"""
    leave: float = 0.75
    """stay: chance, per step, that a slot whose answer is right is freed"""
    stay: float = 0.05
    """stay: share of the slots that right answers do not free"""
    start_noise: float = 0.0
    """stay: the most noise on the first z, in units of the latent"""
    n_sup: int = 16
    """N_sup, the most supervision steps a sample gets in training"""
    exploration: float = 0.1
    """probability, per slot and step, of forbidding a halt before a random step"""
    loss: Literal["stablemax", "softmax"] = "stablemax"
    label_smoothing: float = 0.0
    """share of each target that is spread evenly over the alphabet; 0: none, as published"""
    halt_weight: float = 0.5
    prefix_len: int = 16
    """P; row 0 carries the halting state. With a table, the identifier's vector fills the rows
    from the left"""
    num_identifiers: int = 1
    """rows of the identifier table; 0: no table, the prefix starts at zero"""
    identifier_dim: int | None = None
    """width of an identifier's vector; None: D"""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """of activations and states; parameters, norms, halting and loss keep float32 or more"""
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        # JSON has no tuples
        object.__setattr__(self, "grid", None if self.grid is None else tuple(self.grid))
        object.__setattr__(self, "cycle_schedule", tuple(tuple(row) for row in self.cycle_schedule))
        self._check_ranges()
        self._check_pairs()

    def _check_ranges(self) -> None:
        least = {
            "vocab_size": 2,
            "seq_len": 1,
            "hidden_size": 1,
            "num_layers": 1,
            "num_heads": 1,
            "T": 1,
            "n": 1,
        }
        least |= {
            "gradient_k": 1,
            "n_sup": 1,
            "prefix_len": 0,
            "num_identifiers": 0,
            "swiglu_multiple": 1,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"TRM: {name} is {getattr(self, name)}, must be at least {low}")
        if not 0.0 <= self.exploration <= 1.0:
            raise ValueError(f"TRM: exploration is {self.exploration}, a probability lies in 0..1")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(
                f"TRM: label_smoothing is {self.label_smoothing}, must be at least 0 and below 1"
            )
        for name in ("leave", "stay"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"TRM: {name} is {getattr(self, name)}, must lie in 0..1")
        if not 0.0 <= self.start_noise < float("inf"):
            raise ValueError(f"TRM: start_noise is {self.start_noise}, must be finite and >= 0")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"TRM: kernel_size is {self.kernel_size}, must be odd and positive")
        starts = [row[0] for row in self.cycle_schedule]
        if starts != sorted(set(starts)) or any(
            min(row[1:]) < 1 or len(row) != 3 for row in self.cycle_schedule
        ):
            raise ValueError(
                f"TRM: cycle_schedule is {self.cycle_schedule}, must be (from step, T, n) rows "
                "with ascending "
                "steps and T, n of at least 1"
            )

    def _check_pairs(self) -> None:
        if self.grid is not None and self.grid[0] * self.grid[1] != self.seq_len:
            raise ValueError(
                f"TRM: a grid of {self.grid} has not seq_len = {self.seq_len} cells; change "
                "one of them"
            )
        if self.mixer == "attention" and self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"TRM: hidden_size {self.hidden_size} does not split into {self.num_heads} "
                "heads of even width"
            )
        if self.positions in ("rope", "rope2d") and self.mixer != "attention":
            raise ValueError(
                f"TRM: positions={self.positions!r} needs mixer='attention', not {self.mixer!r}"
            )
        if self.positions == "rope2d" and (self.hidden_size // self.num_heads) % 4:
            raise ValueError(
                "TRM: rope2d needs a head width divisible by 4, it is "
                f"{self.hidden_size // self.num_heads}"
            )
        if self.mixer == "mlp" and self.mask_padding:
            raise ValueError(
                "TRM: the token MLP cannot mask padding; use mixer='attention' or 'conv'"
            )
        if self.mixer == "cube" and (
            self.prefix_len or self.num_identifiers or math.isqrt(self.seq_len) ** 2 != self.seq_len
        ):
            raise ValueError(
                "TRM: the candidate cube has no prefix and no identifiers, and its grid is square; "
                "set prefix_len=0, num_identifiers=0 and a square seq_len, not "
                f"{self.prefix_len}, {self.num_identifiers}, {self.seq_len}"
            )
        if self.latents == 2 and not self.answer_update:
            raise ValueError("TRM: answer_update=False leaves y as it was; it needs latents=1")
        if self.mixer == "conv" and self.prefix_len < 1:
            raise ValueError(
                "TRM: the convolution mixer needs prefix_len >= 1: its pooled row carries the "
                "halting state"
            )
        room = self.prefix_len * self.hidden_size
        if self.num_identifiers and self.identifier_width > room:
            raise ValueError(
                f"TRM: an identifier of {self.identifier_width} numbers does not fit "
                f"{self.prefix_len} prefix rows of "
                f"{self.hidden_size}; raise prefix_len, or set num_identifiers=0 for none"
            )

    @property
    def identifier_width(self) -> int:
        return self.hidden_size if self.identifier_dim is None else self.identifier_dim

    def cycles(self, step: int | None = None) -> tuple[int, int]:
        """(T, n) at a training step, or the final ones for `None`."""
        T, n = self.T, self.n
        if step is not None:
            for start, scheduled_T, scheduled_n in self.cycle_schedule:
                if step >= start:
                    T, n = scheduled_T, scheduled_n
        return T, n

    def tokens(self, num_cells: int) -> int:
        """V for a grid of that many cells: the cube's alphabet grows with the grid."""
        return math.isqrt(num_cells) + 2 if self.mixer == "cube" else self.vocab_size

    def evaluations(self, n: int) -> int:
        """Evaluations of f in one latent recursion: n updates of z, and one of the answer."""
        return n + self.answer_update

    def layout(self, num_cells: int, grid: tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns for `num_cells` cells: `grid` if given, else the configured one, else a
        square.

        Raises:
            ValueError: the cells do not form the grid, or the token MLP is asked for another
                length.
        """
        if self.mixer == "mlp" and num_cells != self.seq_len:
            raise ValueError(
                f"TRM: the token MLP was built for {self.seq_len} cells, got {num_cells}; "
                "use mixer='conv' or 'attention' for other lengths"
            )
        if grid is None and self.grid is not None and num_cells == self.seq_len:
            grid = self.grid
        if grid is None:
            side = math.isqrt(num_cells)
            grid = (side, side) if side * side == num_cells else (1, num_cells)
        if self.mixer == "cube" and grid[0] != grid[1]:
            raise ValueError(f"TRM: the candidate cube needs a square grid, not {grid}")
        if grid[0] * grid[1] != num_cells:
            raise ValueError(
                f"TRM: {num_cells} cells do not form a {grid[0]} x {grid[1]} grid; pass the "
                "right grid="
            )
        return grid
