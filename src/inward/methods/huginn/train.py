"""Training of Huginn: how deep each step goes, what of it is differentiated, and what is watched.

"Scaling up Test-Time Compute with Latent Reasoning", arXiv 2502.05171, section 3.3 and appendix;
the model itself is in `model.py`.

    tau ~ Normal(log(mean) - sigma^2 / 2, sigma),   sigma = 0.5
    r   ~ Poisson(exp(tau)) + 1                      so the mean depth is mean + 1
    the first n = max(r - k, 0) recurrences without a graph, the last min(r, k) with it
    loss = next-token cross-entropy of the output after r recurrences, nothing else

What is unusual: one depth for all rows of a step, the same on every process (the paper; otherwise
some would wait for others); the prelude gets its gradient through the last k recurrences, each of
which reads e. With `sampling="row"` each row has a depth of its own (as in Parcae, arXiv
2604.12946): rows of small depth *start* late, so that all end together and share the window of k
recurrences, and a recurrence is computed for the rows that have started only.

Two ways to fail are known from the paper (section 4.2), both invisible in the loss for long: all
tokens get the same state, and the core learns to ignore its state. `Watch` measures both now
and then, and whether the end depends on where the state started (path dependence).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inward.common import IGNORE
from inward.common.draws import Batch, Draws, Loss
from inward.methods.huginn.settings import Depth, Watch

if TYPE_CHECKING:
    from inward.methods.huginn.config import HuginnConfig
    from inward.methods.huginn.context import Context
    from inward.methods.huginn.model import HuginnForCausalLM


# --------------------------------------------------------------------------------------------------
# Depth


def depth_of(config: HuginnConfig) -> Depth:
    """What a model's configuration says about its training."""
    return Depth(config.mean_recurrence, config.mean_backprop_depth)


def sample_depths(depth: Depth, draws: Draws) -> Tensor:
    """(rows,) int64 depths of this slice's rows; equal numbers unless sampling is "row"."""
    mean, rows = depth.at(draws.step), draws.rows
    if depth.sampling == "fixed":
        return torch.full((len(rows),), round(mean))
    num = draws.num_rows if depth.sampling == "row" else 1
    drawn = sample_recurrences(mean, draws.generator, num=num, sigma=depth.sigma)
    if depth.longest:
        drawn = drawn.clamp(max=round(depth.longest * mean))
    return drawn.expand(len(rows)) if num == 1 else drawn[rows.start : rows.stop]


def sample_recurrences(
    mean: float, generator: torch.Generator, *, num: int = 1, sigma: float = 0.5
) -> Tensor:
    """(num,) int64 depths, log-normal Poisson plus one (section 3.3)."""
    tau = math.log(mean) - sigma**2 / 2 + sigma * torch.randn(num, generator=generator)
    return torch.poisson(tau.exp(), generator=generator).long() + 1


def sample_depth(config: HuginnConfig, generator: torch.Generator) -> tuple[int, int]:
    """(recurrences without gradient, recurrences with) of one training step, on a generator that
    all processes have in the same state."""
    return split(int(sample_recurrences(config.mean_recurrence, generator)[0]), config)


def drawn_depth(config: HuginnConfig, device: torch.device) -> tuple[int, int]:
    """(n, k) for a forward in training that was told no depth: drawn as `sampling_scheme` says from
    torch's own generator, as dropout is, so that a trainer who saves its state resumes exactly.

    All processes of a run take the depth of the first: with sharded weights they gather the same
    blocks the same number of times, and none waits for another.

    device: of the model, for the message between processes.
    Raises:
        ValueError: depths are not drawn by this scheme here.
    """
    if config.sampling_scheme == "fixed":
        return split(config.mean_recurrence, config)
    if config.sampling_scheme != "poisson-lognormal-filling":
        raise ValueError(
            f"sampling_scheme is {config.sampling_scheme!r}; depths are drawn as "
            "'poisson-lognormal-filling', or are 'fixed'; choose one, or pass num_steps=(n, k)"
        )
    depth = sample_recurrences(config.mean_recurrence, torch.default_generator)
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        depth = depth.to(device)
        distributed.broadcast(depth, src=0)
    return split(int(depth), config)


def split(depth: int, config: HuginnConfig) -> tuple[int, int]:
    """(n, k): the last k = mean_backprop_depth of `depth` recurrences are differentiated."""
    k = min(depth, config.mean_backprop_depth)
    return depth - k, k


# --------------------------------------------------------------------------------------------------
# The recurrence with truncated backpropagation


def unroll(
    model: HuginnForCausalLM, s: Tensor, e: Tensor, context: Context, depths: Tensor, k: int
) -> Tensor:
    """s_r (B, S, d) after depths[b] recurrences of row b, with a graph for the last k of them.

    Rows are sorted by depth and start one after the other, so that they end together; those at
    work are always the first of the batch.

    Args:
        s, e: (B, S, d) initial state and embedded input.
        depths: (B,) at least 1 each, on CPU.
    """
    longest, num_rows = int(depths.max()), len(depths)
    order = torch.argsort(depths, descending=True, stable=True)
    # a row at work at recurrence i has a depth of at least longest - i
    at_work = [int((depths >= longest - i).sum()) for i in range(longest)]
    mixed = at_work[0] < num_rows
    if mixed:
        order = order.to(e.device)
        s, e, context = s[order], e[order], context.select(order, num_rows)
    for i, num in enumerate(at_work):
        with torch.set_grad_enabled(i >= longest - k and torch.is_grad_enabled()):
            s = _step_of_first(model, s, e, context, i, num)
        if i + 1 == longest - k:
            # Autocast keeps the weights that it has cast. Those were cast without a graph; used
            # again they would cut the gradient (PyTorch issue 65766).
            torch.clear_autocast_cache()
    return s[torch.argsort(order)] if mixed else s


def _step_of_first(
    model: HuginnForCausalLM, s: Tensor, e: Tensor, context: Context, i: int, num: int
) -> Tensor:
    """Recurrence i for the first `num` rows; the others keep their state."""
    if num == len(s):
        return model.transformer.step(s, e, context, i)
    some = context.select(torch.arange(num, device=s.device), len(s))
    return torch.cat([model.transformer.step(s[:num], e[:num], some, i), s[num:]])


# --------------------------------------------------------------------------------------------------
# Watching


LOOKED_AT = ("correlation", "first_change", "last_change", "path", "state_rms")


@torch.no_grad()
def look(
    model: HuginnForCausalLM, e: Tensor, context: Context, seeds: Tensor, depth: int
) -> dict[str, Tensor]:
    """Measures of the states, (B,) each; see `Watch`.

    Args:
        e: (B, S, d) embedded input.
        seeds: (B,) of the initial states; seeds + 1 make the second ones.
        depth: recurrences, at least 2.
    """
    ends = []
    for seed in (seeds, seeds + 1):
        s = model.initial_state(e, seed=seed, positions=context.positions)
        states = [s := model.iterate(s, e, context, recurrence=i) for i in range(depth)]
        ends.append(states)
    (first, second, *_), last = ends[0], ends[0][-1]
    return {
        "correlation": token_correlation(last),
        "first_change": relative_change(second, first),
        "last_change": relative_change(last, ends[0][-2]),
        "path": relative_change(last, ends[1][-1]),
        "state_rms": last.float().square().mean((1, 2)).sqrt(),
    }


def token_correlation(s: Tensor) -> Tensor:
    """(B,) mean cosine between the states (B, S, d) of two different tokens; 0 if there is one."""
    unit, num = F.normalize(s.float(), dim=-1), s.shape[1]
    # the squared length of a sum holds the cosines of all pairs, those of a token with itself too
    return (unit.sum(1).square().sum(-1) - num) / max(1, num * (num - 1))


def relative_change(new: Tensor, old: Tensor) -> Tensor:
    """(B,) |new - old| / |new| of states (B, S, d), mean over the tokens."""
    new, old = new.float(), old.float()
    return ((new - old).norm(dim=-1) / new.norm(dim=-1).clamp(min=1e-12)).mean(1)


# --------------------------------------------------------------------------------------------------
# Loss


def loss(
    model: HuginnForCausalLM,
    batch: Batch,
    draws: Draws,
    *,
    depth: Depth | None = None,
    watch: Watch | None = None,
) -> Loss:
    """Next-token cross-entropy after a sampled depth (section 3.3), summed over the labels.

    The last token predicts nothing and is not computed, so that rows of 4,097 ids fill a context
    of 4,096, as in the paper.

    Args:
        batch: input_ids (B, S), labels (B, S) unshifted with -100 = does not count, optionally
            attention_mask and position_ids; `weight` should count the labels[:, 1:] that do.
        draws: the depth, and a seed for the initial state of each row.
        depth, watch: default: what the configuration says; no monitors.
    Raises:
        CollapseError: see `Watch`.
    """
    depth = depth_of(model.config) if depth is None else depth
    depths = sample_depths(depth, draws)
    seeds = draws.integers(0, 2**62)
    e, context = model.embed(
        batch["input_ids"][:, :-1],
        attention_mask=_but_last(batch.get("attention_mask")),
        position_ids=_but_last(batch.get("position_ids")),
    )
    s = model.initial_state(e, seed=seeds, positions=context.positions)
    metrics = _watched(model, e, context, seeds, draws.step, depth, watch)
    s = unroll(model, s, e, context, depths, depth.backprop)
    _, hidden = model.decode(s, context)
    targets = batch["labels"][:, 1:]
    counted = targets != IGNORE
    logits, targets = model.lm_head(hidden[counted]).float(), targets[counted]
    total = F.cross_entropy(logits, targets, reduction="sum")
    count = torch.tensor(float(len(targets)))
    rows = torch.tensor(float(len(depths)))
    metrics |= {
        "token_loss": (total.detach(), count),
        "token_accuracy": ((logits.argmax(-1) == targets).sum().float(), count),
        "depth": (depths.sum().float(), rows),
    }
    return Loss(total=total, metrics=metrics)


def _but_last(values: Tensor | None) -> Tensor | None:
    return None if values is None else values[..., :-1]


def _watched(
    model: HuginnForCausalLM,
    e: Tensor,
    context: Context,
    seeds: Tensor,
    step: int,
    depth: Depth,
    watch: Watch | None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Metrics of a look; a count of 0, which leaves them out of the log, if this step has none."""
    if watch is None:
        return {}
    if not watch.looks_at(step):
        return {name: (torch.zeros(()), torch.zeros(())) for name in LOOKED_AT}
    num = min(watch.rows, len(e))
    some = context.select(torch.arange(num, device=e.device), len(e))
    found = look(model, e[:num].detach(), some, seeds[:num], max(2, round(depth.mean)))
    torch.clear_autocast_cache()  # see `unroll`
    watch.check(step, {name: float(values.mean()) for name, values in found.items()})
    count = torch.tensor(float(num))
    return {name: (values.sum(), count) for name, values in found.items()}


# --------------------------------------------------------------------------------------------------
# What the loop trains


class HuginnTraining(nn.Module):
    """A model with the way it is trained, as the loop wants it; saved is the model alone."""

    def __init__(
        self,
        model: HuginnForCausalLM,
        *,
        depth: Depth | None = None,
        watch: Watch | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.depth = depth_of(model.config) if depth is None else depth
        self.watch = watch
        self.tokenizer: Any = None  # saved with the model

    def loss(self, batch: Batch, state: dict[str, Tensor] | None, draws: Draws) -> Loss:
        """See the function `loss`."""
        return loss(self.model, batch, draws, depth=self.depth, watch=self.watch)

    def sharded_blocks(self) -> list[nn.Module]:
        """See the model."""
        return self.model.sharded_blocks()

    def recompute_in_backward(self) -> None:
        """See the model."""
        self.model.recompute_in_backward()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as `HuginnForCausalLM.from_pretrained` reads it, and its tokenizer."""
        self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def muon_parameters(self) -> dict[str, tuple[int, ...]]:
        """The matrices for Muon, fused ones in their parts."""
        return {f"model.{name}": rows for name, rows in muon_parts(self.model).items()}


def muon_parts(model: HuginnForCausalLM) -> dict[str, tuple[int, ...]]:
    """Matrices of the blocks and the adapter -> rows of the parts that are fused in them."""
    return {
        f"{path}.weight": getattr(module, "widths", ())
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not model.lm_head
    }
