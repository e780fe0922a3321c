"""Deep supervision for answers that stay (supervision="stay"), for any mixer.

The released code takes a slot's puzzle away when q says "right", so that a model sees hardly any
state that is right already, and none from far beyond N_sup. Asked for more steps than that it may
wander off. Here

    a slot has a limit of its own, drawn from N_sup / 4 to N_sup
    it is freed at its limit, or, once exactly right, with probability `leave` at each step
    a share `stay` of the slots is never freed for being right, and has limits up to 4 N_sup
    every `noisy_every`-th step starts its new puzzles from a noisy z, with a deviation drawn
    from 0 to `start_noise`: what later makes a second attempt differ from the first

Batches may differ in length from step to step (Sudokus of several sizes): each length has slots of
its own, named `cells/name` in the state.

A puzzle without labels has no answer (a wrong clue): its target is q = "not right", and no tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from inward.common import IGNORE
from inward.common.draws import Loss
from inward.methods.trm.losses import token_loss

if TYPE_CHECKING:
    from inward.common.draws import Draws
    from inward.methods.trm.model import TRM

NOISY_EVERY = 4
"""Noise for all rows costs a tenth of a small step; so only every fourth step draws it"""


def refill(
    model: TRM, carry: dict[str, Tensor] | None, batch: dict[str, Tensor], draws: Draws | None
) -> dict[str, Tensor]:
    """Slots that are free start anew on the rows that the batch offers them."""
    settings = model.settings
    offered = {name: batch[name] for name in ("inputs", "labels")}
    rows = batch["inputs"].shape[0]
    nothing = batch["inputs"].new_zeros(rows)
    offered["identifiers"] = batch.get("identifiers", nothing)
    state = model.initial_state(*batch["inputs"].shape)
    fresh = state | offered | {"steps": nothing, "limit": nothing + settings.n_sup}
    fresh["stays"] = nothing.bool()
    if draws is not None:
        u = draws.uniform(3)
        fresh["stays"] = u[:, 0] < settings.stay
        most = torch.where(fresh["stays"], 4 * settings.n_sup, settings.n_sup)
        least = settings.n_sup // 4
        fresh["limit"] = (least + u[:, 1] * (most - least + 1)).long().clamp(min=1)
        if settings.start_noise and draws.step % NOISY_EVERY == 0:
            noise = draws.normal(*state["z"].shape[1:]).to(state["z"])
            sigma = (settings.start_noise * u[:, 2]).to(noise).view(-1, *[1] * (noise.ndim - 1))
            fresh["z"] = state["z"] + sigma * noise
    if carry is None:
        return fresh
    free = carry["halted"]
    return {
        name: torch.where(free.view(-1, *[1] * (new.ndim - 1)), new, carry[name])
        for name, new in fresh.items()
    }


def loss(
    model: TRM, batch: dict[str, Tensor], state: dict[str, Tensor] | None, draws: Draws | None
) -> Loss:
    """As `TRM.loss`, with these rules for the slots."""

    settings = model.settings
    mark = f"{batch['inputs'].shape[1]}/"
    own = {k.removeprefix(mark): v for k, v in (state or {}).items() if k.startswith(mark)}
    others = {k: v for k, v in (state or {}).items() if not k.startswith(mark)}
    carry = refill(model, own or None, batch, draws)
    latent = {name: carry[name] for name in ("y", "z") if name in carry}
    latent, logits, q = model.supervision_step(
        carry["inputs"],
        latent,
        identifiers=carry["identifiers"],
        step=None if draws is None else draws.step,
    )
    labels = carry["labels"]
    valid = labels != IGNORE
    right = (logits.argmax(-1) == labels) & valid
    exact = (right == valid).all(-1) & valid.any(-1)
    token = token_loss(logits, labels, settings.loss, settings.label_smoothing).sum()
    halting = F.binary_cross_entropy_with_logits(q, exact.to(q.dtype), reduction="sum")

    carry |= {name: tensor.detach() for name, tensor in latent.items()}
    carry["steps"] = carry["steps"] + 1
    carry["halted"] = carry["steps"] >= carry["limit"]
    if draws is not None:
        leaves = draws.uniform().to(q.device) < settings.leave
        carry["halted"] = carry["halted"] | (exact & ~carry["stays"] & leaves)
    metrics = model.metrics(right, valid, exact, q.detach(), carry)
    rows = torch.tensor(float(len(q)))
    metrics |= {"token_loss": (token.detach(), rows), "halt_loss": (halting.detach(), rows)}
    metrics["right_now"] = (exact.sum().float(), rows)
    total = token + settings.halt_weight * halting
    return Loss(total, metrics, others | {mark + name: value for name, value in carry.items()})
