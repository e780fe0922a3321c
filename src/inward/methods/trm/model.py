"""TRM: rewrite a whole answer again and again with one tiny network.

"Less is More: Recursive Reasoning with Tiny Networks", Jolicoeur-Martineau 2025, arXiv 2510.04871.

    x   the embedded question                    (paper: x; released code: input embeddings)
    y   the current answer, embedded             (paper: y; released code: z_H)
    z   the latent, a scratch-pad                (paper: z; released code: z_L)
    f   one two-layer network that does both     (released code: L_level)

    latent recursion    n times  z <- f(z, y + x);  then  y <- f(y, z)       (section 4.1, figure 3)
    deep recursion      T latent recursions, the last of them with gradient  (section 4.1)
    deep supervision    after each deep recursion a loss on y; the states are detached; N_sup times
    halting             q = head(y) says "this answer is right": binary cross-entropy (section 4.6)

What is unusual: the same f updates z and y, and only the presence of x tells it which job it does;
the initial states are fixed random buffers, not parameters; there is no norm before the first block
and no residual around f; and the token MLP mixes over the *sequence*, so its first norm runs over
the sequence too.

Where the paper and the released code (SamsungSAILMontreal/TinyRecursiveModels, e7b6871) differ:

    topic             paper                   released code              here
    loss              softmax cross-entropy   stable-max, float64        loss="stablemax" (code)
    halting weight    1                       0.5                        halt_weight=0.5 (code)
    optimiser         AdamW                   AdamATan2                  both, see train.optim
    deep supervision  a loop over one batch   slots with a carry, each   supervision="carry" (code)
                                              refilled when it halts     or "loop" (see `refill`)
    cycles            T=3, n=6 everywhere     n=4 on mazes and ARC       T, n
    prefix            one row                 16 rows, 15 of them zero   prefix_len
    halting head      one output              two, one never trained     two, so checkpoints fit
    gradient          last latent recursion   the same                   gradient="last_cycle"
    halt at test      yes, by q               never                      solve(halt=...)

Not in the paper: the depthwise convolution mixer (no weight is tied to the length, so one model
serves grids of several sizes), 2-D rotary positions, the padding mask, the cycle schedule
(CGAR, arXiv 2511.08653) and label smoothing (arXiv 2601.19085).

Shape letters: B rows, L cells, P prefix rows, S = P + L, D width, V vocabulary.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from inward.common import IGNORE
from inward.common.draws import Draws, Loss
from inward.common.weights import strict
from inward.methods.trm import cube, staying
from inward.methods.trm.layers import (
    Convolution,
    Linear,
    SwiGLU,
    attend,
    residual_norm,
    residual_swiglu,
    rotary_table,
    rotary_table_2d,
    rotate,
    truncated_normal_,
)
from inward.methods.trm.losses import token_loss
from inward.methods.trm.settings import TRMSettings

if TYPE_CHECKING:
    from inward.methods.trm.solve import Solution


class TRMConfig(PreTrainedConfig):
    """`TRMSettings` in the container that transformers saves and loads; the fields lie at the top
    of config.json."""

    model_type = "inward_trm"

    def __init__(self, settings: TRMSettings | None = None, **kwargs: Any):
        names = [field.name for field in fields(TRMSettings)]
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        settings = replace(settings or TRMSettings(), **given)
        super().__init__(**kwargs)
        for name, value in asdict(settings).items():
            setattr(self, name, value)

    @property
    def settings(self) -> TRMSettings:
        """The frozen, checked settings."""
        return TRMSettings(
            **{field.name: getattr(self, field.name) for field in fields(TRMSettings)}
        )


# --------------------------------------------------------------------------------------------------
# The network f (section 4: two layers, post-norm, no biases, no gains)


@dataclass(frozen=True)
class Where:
    """What a mixer must know about the sequence of one forward."""

    prefix: int
    grid: tuple[int, int]
    rotary: tuple[Tensor, Tensor] | None = None
    real: Tensor | None = None
    """(B, S) bool, False on padding; None: nothing is masked"""


class CellAttention(nn.Module):
    """Bidirectional attention over prefix and cells; the fused projection holds all q heads, then
    k, then v."""

    def __init__(self, settings: TRMSettings):
        super().__init__()
        self.num_heads = settings.num_heads
        self.qkv_proj = Linear(settings.hidden_size, 3 * settings.hidden_size, bias=False)
        self.o_proj = Linear(settings.hidden_size, settings.hidden_size, bias=False)

    def forward(self, h: Tensor, where: Where) -> Tensor:
        q, k, v = self.qkv_proj(h).unflatten(-1, (3 * self.num_heads, -1)).chunk(3, dim=2)
        if where.rotary is not None:
            q, k = rotate(q, *where.rotary), rotate(k, *where.rotary)
        mask = None if where.real is None else where.real[:, None, None, :]
        return self.o_proj(attend(q, k, v, mask).flatten(2))


class Block(nn.Module):
    """h <- norm(h + mix(h));  h <- norm(h + swiglu(h))."""

    def __init__(self, settings: TRMSettings):
        super().__init__()
        self.eps = settings.norm_eps
        self.over_sequence = settings.mixer == "mlp"
        shape = {"expansion": settings.expansion, "multiple": settings.swiglu_multiple}
        if settings.mixer == "mlp":
            self.mixer: nn.Module = SwiGLU(settings.prefix_len + settings.seq_len, **shape)
        elif settings.mixer == "attention":
            self.mixer = CellAttention(settings)
        else:
            self.mixer = Convolution(settings)
        self.mlp = SwiGLU(settings.hidden_size, **shape)

    def forward(self, h: Tensor, where: Where) -> Tensor:
        if self.over_sequence:
            # the norm, too, runs over the S positions of each channel
            h = residual_swiglu(h, cast(SwiGLU, self.mixer), self.eps, axis=1)
        else:
            h = residual_norm(h, self.mixer(h, where), self.eps)
        return residual_swiglu(h, self.mlp, self.eps, axis=2)


class Network(nn.Module):
    """f(state, injection): the blocks in order on state + injection."""

    def __init__(self, settings: TRMSettings):
        super().__init__()
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.num_layers))

    def forward(self, state: Tensor, injection: Tensor, where: Where) -> Tensor:
        h = state + injection
        for block in self.blocks:
            h = block(h, where)
        return h


# --------------------------------------------------------------------------------------------------
# The model


class TRM(PreTrainedModel):
    """The Tiny Recursive Model. In training: `loss`. In use: `solve`. Plain: `forward`."""

    config_class = TRMConfig
    main_input_name = "inputs"
    _no_split_modules = ["Block"]  # noqa: RUF012 - the base class declares it so
    config: TRMConfig

    def __init__(self, config: TRMConfig | TRMSettings):
        super().__init__(TRMConfig(config) if isinstance(config, TRMSettings) else config)
        settings = self.settings = self.config.settings
        self.state_dtype = getattr(torch, settings.compute_dtype)
        self.recomputed = False
        D, V = settings.hidden_size, settings.vocab_size
        is_cube = settings.mixer == "cube"
        self.embed_tokens = nn.Embedding(3 if is_cube else V, D)
        if settings.positions == "learned":
            self.embed_positions = nn.Embedding(settings.prefix_len + settings.seq_len, D)
        if settings.num_identifiers:
            # sparse: a step costs memory for the rows of its batch, not for the table
            self.identifiers = nn.Embedding(
                settings.num_identifiers, settings.identifier_width, sparse=True
            )
        self.network = cube.CubeNetwork(settings) if is_cube else Network(settings)
        self.lm_head = Linear(D, 1 if is_cube else V, bias=False)
        self.q_head = Linear(3 * D, 1) if is_cube else Linear(D, 2)
        # fixed random states, saved with the model; rounded so that they are the same in either
        # compute dtype
        for name in ("y_init", "z_init")[2 - settings.latents :]:
            self.register_buffer(name, torch.empty(D))
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but names that are missing, unexpected or of wrong shape, and NaN,
        are errors."""
        return strict(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normals of deviation 1/sqrt(fan in); identifiers zero; q starts at -5: "not
        right yet"."""
        if module is self:
            for name in ("y_init", "z_init")[2 - self.settings.latents :]:
                truncated_normal_(getattr(self, name), 1.0)
        elif module is self.q_head:
            nn.init.zeros_(self.q_head.weight)
            nn.init.constant_(self.q_head.bias, -5.0)
        elif isinstance(module, nn.Embedding) and module.sparse:
            nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding):
            is_cube = self.settings.mixer == "cube"
            truncated_normal_(module.weight, 1.0 if is_cube else module.embedding_dim**-0.5)
        elif isinstance(module, nn.Conv2d):
            truncated_normal_(module.weight, module.kernel_size[0] ** -1.0)
        elif isinstance(module, nn.Linear) and self.settings.mixer == "cube":
            cube.initialise(module, next(k for k, m in self.named_modules() if m is module))
        elif isinstance(module, nn.Linear):
            truncated_normal_(module.weight, module.in_features**-0.5)

    def muon_parameters(self) -> list[str]:
        """Names of the matrices inside f, the ones Muon may orthogonalise; heads and embeddings
        are not among them."""
        return [
            name
            for name, p in self.named_parameters()
            if name.startswith("network.") and p.ndim == 2
        ]

    # -- x
    # -------------------------------------------------------------------------------------------

    def embed(self, inputs: Tensor, identifiers: Tensor | None = None) -> Tensor:
        """x, (B, S, D): prefix rows, then the cells, times sqrt(D)."""
        settings = self.settings
        D, dtype = settings.hidden_size, self.state_dtype
        if settings.mixer == "cube":
            return cube.embed(inputs, self.embed_tokens.weight.to(dtype))
        x = F.embedding(inputs, self.embed_tokens.weight.to(dtype))
        prefix = x.new_zeros(x.shape[0], settings.prefix_len * D)
        if settings.num_identifiers:
            if identifiers is None:
                identifiers = inputs.new_zeros(inputs.shape[0])
            row = self.identifiers(identifiers).to(dtype)
            prefix = F.pad(row, (0, settings.prefix_len * D - row.shape[-1]))
        x = torch.cat([prefix.unflatten(-1, (settings.prefix_len, D)), x], dim=1)
        if settings.positions == "learned":
            x = math.sqrt(0.5) * (x + self.embed_positions.weight[: x.shape[1]].to(dtype))
        return math.sqrt(D) * x

    def where(self, inputs: Tensor, grid: tuple[int, int] | None = None) -> Where:
        """Layout, rotary angles and mask of the sequence that belongs to `inputs` (B, L)."""
        settings = self.settings
        grid = settings.layout(inputs.shape[1], grid)
        P, width = settings.prefix_len, settings.hidden_size // settings.num_heads
        rotary, real = None, None
        if settings.positions == "rope":
            places = torch.arange(P + inputs.shape[1], device=inputs.device)
            rotary = rotary_table(places, width, settings.rope_theta)
        elif settings.positions == "rope2d":
            # the prefix lies on the diagonal above and left of the grid, each row in a place of
            # its own
            cells = torch.arange(inputs.shape[1], device=inputs.device)
            before = torch.arange(-P, 0, device=inputs.device)
            rows, columns = (
                torch.cat([before, cells // grid[1]]),
                torch.cat([before, cells % grid[1]]),
            )
            rotary = rotary_table_2d(rows, columns, width, settings.rope_theta)
        if settings.mask_padding:
            real = F.pad(inputs != 0, (P, 0), value=True)
        return Where(P, grid, rotary, real)

    # -- recursion
    # -----------------------------------------------------------------------------------

    def initial_state(self, num_rows: int, num_cells: int) -> dict[str, Tensor]:
        """The states every sample starts from: {"y": (B, S, D), "z": (B, S, D)}, or z alone for
        one latent."""
        names = ("y", "z")[2 - self.settings.latents :]
        shape: tuple[int, ...] = (num_rows, self.settings.prefix_len + num_cells, -1)
        if self.settings.mixer == "cube":
            shape = (num_rows, *[math.isqrt(num_cells)] * 3, -1)
        return {
            name: getattr(self, f"{name}_init").to(self.state_dtype).expand(shape) for name in names
        }

    def deep_recursion(
        self, x: Tensor, state: dict[str, Tensor], where: Where, T: int, n: int, *, first: int = 0
    ) -> dict[str, Tensor]:
        """T latent recursions of n updates of z and one of y; evaluations of f before number
        `first` keep no graph.

        One latent: z <- f(z, x) n times, then z <- f(z, 0).
        """
        f = self.network
        if self.recomputed and self.training and torch.is_grad_enabled():
            f = partial(checkpoint, self.network, use_reentrant=False)
        y, z = state.get("y"), state["z"]
        evaluation = 0
        for _ in range(T):
            for i in range(self.settings.evaluations(n)):
                with nullcontext() if evaluation >= first else torch.no_grad():
                    if y is None:
                        z = f(z, x if i < n else torch.zeros_like(x), where)
                    elif i < n:
                        z = f(z, y + x, where)
                    else:
                        y = f(y, z, where)
                evaluation += 1
        return {"z": z} if y is None else {"y": y, "z": z}

    def recompute_in_backward(self) -> None:
        """Run each evaluation of f again in the backward pass instead of keeping what it
        computed."""
        self.recomputed = True

    def read_out(self, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of the cells (B, L, V) and the halting logits (B,) float32."""
        y = state.get("y", state["z"])
        if self.settings.mixer == "cube":
            return cube.read_out(y, self.lm_head, self.q_head)
        q = self.q_head(y[:, 0]).float()
        return self.lm_head(y[:, self.settings.prefix_len :]), q[:, 0]

    def first_with_gradient(self, T: int, n: int) -> int:
        """Number of the first evaluation of f that is back-propagated."""
        cycle = self.settings.evaluations(n)
        total = T * cycle
        window = {"last_cycle": cycle, "last_k": self.settings.gradient_k, "all": total}
        return max(0, total - window[self.settings.gradient])

    def supervision_step(
        self,
        inputs: Tensor,
        state: dict[str, Tensor],
        *,
        identifiers: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        step: int | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """One deep recursion and its read-out: (state, logits (B, L, V), halting logits (B,)).

        The state keeps its graph here; `loss` detaches it. `step` is the training step, for the
        cycle schedule.
        """
        T, n = self.settings.cycles(step)
        first = self.first_with_gradient(T, n)
        x = self.embed(inputs, identifiers)
        state = self.deep_recursion(x, state, self.where(inputs, grid), T, n, first=first)
        return state, *self.read_out(state)

    def forward(
        self,
        inputs: Tensor,
        identifiers: Tensor | None = None,
        *,
        num_steps: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The plain way to use the model: `num_steps` supervision steps (default N_sup) for every
        row, no halting.

        Args:
            inputs: (B, L) token ids.
            identifiers: (B,) rows of the identifier table, default 0.
        Returns:
            logits (B, L, V) and halting logits (B,) after the last step.
        """
        num_steps = self.settings.n_sup if num_steps is None else num_steps
        if num_steps < 1:
            raise ValueError(
                f"TRM: num_steps is {num_steps}, at least one supervision step is needed"
            )
        state = self.initial_state(*inputs.shape)
        for _ in range(num_steps):
            state = {name: tensor.detach() for name, tensor in state.items()}
            state, logits, q = self.supervision_step(
                inputs, state, identifiers=identifiers, grid=grid
            )
        return logits, q

    # -- deep supervision
    # ----------------------------------------------------------------------------

    def refill(
        self, carry: dict[str, Tensor] | None, batch: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Slots that halted start anew on the rows that the batch offers them; what the other
        slots are offered is
        thrown away (released code). With supervision="loop" all slots halt at step N_sup together,
        so a batch is
        worked on as a whole; the paper's early break (all rows right) is left out, because it
        would make a row's
        training depend on which rows share its process.
        """
        offered = {name: batch[name] for name in ("inputs", "labels")}
        offered["identifiers"] = batch.get(
            "identifiers", batch["inputs"].new_zeros(batch["inputs"].shape[0])
        )
        fresh = self.initial_state(*batch["inputs"].shape) | offered
        fresh["steps"] = torch.zeros_like(offered["identifiers"])
        if carry is None:
            return fresh
        halted = carry["halted"]
        return {
            name: torch.where(halted.view(-1, *[1] * (new.ndim - 1)), new, carry[name])
            for name, new in fresh.items()
        }

    def halts(self, q: Tensor, steps: Tensor, draws: Draws | None) -> Tensor:
        """(B,) which slots are done: out of steps, or q > 0 and not held back by exploration."""
        spent = steps >= self.settings.n_sup
        if draws is None or self.settings.supervision == "loop":
            return spent
        explores = draws.uniform().to(q.device) < self.settings.exploration
        held = torch.zeros_like(steps)
        if self.settings.n_sup > 1:
            held = draws.integers(2, self.settings.n_sup + 1).to(q.device) * explores
        return spent | ((q > 0) & (steps >= held))

    def loss(
        self, batch: dict[str, Tensor], state: dict[str, Tensor] | None, draws: Draws | None
    ) -> Loss:
        """One supervision step of the slots: token loss + halt_weight * halting loss, summed over
        the rows.

        Args:
            batch: inputs (B, L), labels (B, L) with -100 = does not count, optionally identifiers
                (B,).
            state: the carry, `Loss.state` of the step before; None at the start.
            draws: exploration; None: no exploration and no halt before N_sup (as in evaluation).
        """
        if self.settings.supervision == "stay":
            return staying.loss(self, batch, state, draws)
        carry = self.refill(state, batch)
        step = None if draws is None else draws.step
        latent = {name: carry[name] for name in ("y", "z") if name in carry}
        latent, logits, q = self.supervision_step(
            carry["inputs"], latent, identifiers=carry["identifiers"], step=step
        )
        labels = carry["labels"]
        valid = labels != IGNORE
        right = (logits.argmax(-1) == labels) & valid
        exact = right.sum(-1) == valid.sum(-1)
        settings = self.settings
        token = token_loss(logits, labels, settings.loss, settings.label_smoothing).sum()
        halting = F.binary_cross_entropy_with_logits(q, exact.to(q.dtype), reduction="sum")

        carry |= {name: tensor.detach() for name, tensor in latent.items()}
        carry["steps"] = carry["steps"] + 1
        carry["halted"] = self.halts(q.detach(), carry["steps"], draws)
        metrics = self.metrics(right, valid, exact, q.detach(), carry)
        rows = torch.tensor(float(len(q)))
        metrics |= {"token_loss": (token.detach(), rows), "halt_loss": (halting.detach(), rows)}
        return Loss(total=token + settings.halt_weight * halting, metrics=metrics, state=carry)

    @staticmethod
    def metrics(
        right: Tensor, valid: Tensor, exact: Tensor, q: Tensor, carry: dict[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """(sum, count) over the slots that halt at this step and have a label: a sample counts
        once, at its end."""
        counted = carry["halted"] & valid.any(-1)
        count = counted.sum().float()
        values = {
            "accuracy": right.sum(-1) / valid.sum(-1).clamp(min=1),
            "exact_accuracy": exact,
            "q_halt_accuracy": (q >= 0) == exact,
            "steps": carry["steps"],
        }
        return {name: ((value * counted).sum().float(), count) for name, value in values.items()}

    # -- use
    # -----------------------------------------------------------------------------------------

    def solve(self, inputs: Tensor | np.ndarray, **options: Any) -> Solution:
        """Answer puzzles with halting, rollouts, symmetries, selection: see `solve.solve` for
        the options."""
        from inward.methods.trm.solve import solve  # it imports this module

        return solve(self, inputs, **options)

    def flops(self, num_cells: int | None = None) -> tuple[float, float]:
        """FLOPs for one row of (one evaluation of f, one read-out); a multiply-add is two, norms
        are left out."""
        settings = self.settings
        D, P = settings.hidden_size, settings.prefix_len
        L = settings.seq_len if num_cells is None else num_cells
        S = P + L
        if settings.mixer == "cube":
            return cube.flops(settings, L)
        block = cast(Block, cast(Network, self.network).blocks[0])
        if settings.mixer == "mlp":
            mixing = 2 * D * 3 * S * cast(SwiGLU, block.mixer).width
        elif settings.mixer == "attention":
            mixing = 2 * S * 4 * D * D + 4 * S * S * D
        else:
            mixing = 2 * L * D * (settings.kernel_size**2 + D) + 4 * D * D
        evaluation = settings.num_layers * (mixing + 2 * S * 3 * D * block.mlp.width)
        return float(evaluation), float(2 * L * D * settings.vocab_size + 4 * D)

    @torch.no_grad()
    def resize_identifiers(self, num: int) -> None:
        """Give the identifier table `num` rows. Rows that exist keep their value, new ones start
        at the mean row
        (for a model that shall learn new puzzles); shrinking leaves nothing to tell which rows to
        keep, so all rows
        become the mean (as in the released code for any other size).

        Raises:
            ValueError: the model has no table, or `num` is not positive.
        """
        if not self.settings.num_identifiers or num < 1:
            raise ValueError(
                f"cannot resize a table of {self.settings.num_identifiers} identifiers to "
                f"{num}: both must be positive"
            )
        old = self.identifiers.weight
        new = old.mean(0, keepdim=True).repeat(num, 1)
        if num >= len(old):
            new[: len(old)] = old
        self.identifiers = nn.Embedding.from_pretrained(new, freeze=False, sparse=True)
        self.config.num_identifiers = num
        self.settings = self.config.settings

    def num_parameters_by_part(self) -> dict[str, int]:
        """Parameters of the network and of the identifier table apart: the table can be far the
        larger."""
        table = self.identifiers.weight.numel() if self.settings.num_identifiers else 0
        return {"network": sum(p.numel() for p in self.parameters()) - table, "identifiers": table}


AutoConfig.register(TRMConfig.model_type, TRMConfig, exist_ok=True)
AutoModel.register(TRMConfig, TRM, exist_ok=True)
