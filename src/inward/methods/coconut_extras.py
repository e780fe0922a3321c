"""Options around Coconut: stabilisers of the fed-back state, extra losses, alarms for collapse.

    CoconutSettings(feedback="projector")     a small network between h and the next input (CODI)
    CoconutSettings(distill=1.0)              align with a spoken chain (CODI, arXiv 2502.21074)
    CoconutSettings(step_decoder=1.0)         thoughts must spell their step (SIM-CoT, 2509.20317)
    CoconutSettings(alarms=True)              geometry of the thoughts in the log

The paper's method has none of these, and that is the default. The extra losses are means over the
tokens of a row, as published; so with them a row is the unit of the loss (`weight` is 1 a row), and
the ordinary loss becomes a mean over each row's labels too. `with_teacher` and `with_steps` make
such batches.

Shape letters: B rows, K thoughts of a row, G groups of c thoughts, T tokens, d width, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inward.methods.coconut_batch import IGNORE, LatentBatch

if TYPE_CHECKING:
    from inward.methods.coconut import Coconut, CoconutOutput

Feedback = Literal["none", "norm", "projector", "adapter"]
Metrics = dict[str, tuple[Tensor, Tensor]]

TEACHER = "teacher."
"""Prefix of the teacher's entries in a batch."""


@dataclass(frozen=True)
class CoconutSettings:
    """Options of the wrapper; all off is the paper.

    feedback: what happens to h before it is the next input. "norm": scaled to the root mean square
        of the embeddings. "projector": Linear, GELU, Linear, LayerNorm (CODI). "adapter":
        h + W2 silu(W1 h), then as "norm" (SpiralThinker, arXiv 2511.08983).
    feedback_width: inner width of projector and adapter; None: d.
    seed: of their initial weights.
    distill: weight of the alignment with a teacher's hidden states; needs `with_teacher`.
    step_decoder: weight of the loss of a decoder that spells out steps; needs `with_steps`, and a
        decoder given to the model. thoughts_per_step: c.
    alarms: measure the thoughts of each training batch, and warn when they collapse.
    """

    feedback: Feedback = "none"
    feedback_width: int | None = None
    seed: int = 0
    distill: float = 0.0
    step_decoder: float = 0.0
    thoughts_per_step: int = 1
    alarms: bool = False

    def __post_init__(self) -> None:
        if self.feedback not in get_args(Feedback):
            raise ValueError(
                f"feedback is {self.feedback!r}, must be one of {', '.join(get_args(Feedback))}"
            )
        if min(self.distill, self.step_decoder) < 0.0 or self.thoughts_per_step < 1:
            raise ValueError(
                f"distill {self.distill} and step_decoder {self.step_decoder} must be 0 or more, "
                f"thoughts_per_step {self.thoughts_per_step} 1 or more"
            )
        if self.feedback_width is not None and self.feedback_width < 1:
            raise ValueError(f"feedback_width is {self.feedback_width}, must be 1 or more")


# --------------------------------------------------------------------------------------------------
# Stabilisers


class MatchNorm(nn.Module):
    """Scale vectors to the root mean square that the embeddings had when the model was made.

    A thought is as long as the final norm makes it, often many times an embedding."""

    rms: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.register_buffer("rms", embedding_rms(embedding))

    def forward(self, h: Tensor) -> Tensor:
        """(..., d) -> (..., d)"""
        own = h.float().square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()
        return (h.float() * own * self.rms).to(h.dtype)


class Projector(nn.Module):
    """LayerNorm(W2 gelu(W1 h)), CODI's projector."""

    def __init__(self, d: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = _linear(d, width, generator)
        self.outer = _linear(width, d, generator)
        self.norm = nn.LayerNorm(d)

    def forward(self, h: Tensor) -> Tensor:
        """(..., d) -> (..., d)"""
        return self.norm(self.outer(F.gelu(self.inner(h))))


class Adapter(nn.Module):
    """h + W2 silu(W1 h), scaled like embeddings; W2 starts at 0, so it starts as `MatchNorm`."""

    def __init__(
        self, embedding: nn.Embedding, d: int, width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.inner = _linear(d, width, generator)
        self.outer = _linear(width, d, generator)
        nn.init.zeros_(self.outer.weight)
        self.match = MatchNorm(embedding)

    def forward(self, h: Tensor) -> Tensor:
        """(..., d) -> (..., d)"""
        return self.match(h + self.outer(F.silu(self.inner(h))))


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = cast(nn.Linear, nn.utils.skip_init(nn.Linear, inputs, outputs))
    nn.init.normal_(layer.weight, std=inputs**-0.5, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def embedding_rms(embedding: nn.Embedding) -> Tensor:
    """Scalar float32: root mean square of what the embedding gives, over all tokens."""
    ids = torch.arange(embedding.weight.shape[0], device=embedding.weight.device)
    return embedding(ids).float().square().mean().sqrt()


def feedback_module(settings: CoconutSettings, embedding: nn.Embedding) -> nn.Module:
    """What lies between h and the next input, on the embedding's device and in its dtype."""
    weight = embedding.weight
    d = weight.shape[1]
    width = settings.feedback_width or d
    generator = torch.Generator().manual_seed(settings.seed)
    if settings.feedback == "norm":
        return MatchNorm(embedding)
    if settings.feedback == "projector":
        return Projector(d, width, generator).to(weight.device, weight.dtype)
    if settings.feedback == "adapter":
        return Adapter(embedding, d, width, generator).to(weight.device, weight.dtype)
    return nn.Identity()


# --------------------------------------------------------------------------------------------------
# Extra losses


def with_teacher(
    batch: LatentBatch, teacher: LatentBatch, anchors: Tensor, teacher_anchors: Tensor
) -> LatentBatch:
    """A batch for `distill`: the same rows thinking (`batch`) and speaking (`teacher`).

    Args:
        anchors, teacher_anchors: (B,) position within each row whose hidden states are aligned;
            CODI takes the token just before the answer.
    """
    out = {**batch, **{TEACHER + name: value for name, value in teacher.items()}}
    out["anchor"] = _column_of(batch, anchors)
    out[TEACHER + "anchor"] = _column_of(teacher, teacher_anchors)
    out["weight"] = torch.ones_like(batch["weight"])
    return out


def _column_of(batch: LatentBatch, positions: Tensor) -> Tensor:
    real = batch["attention_mask"].bool()
    hits = real & (batch["position_ids"] == positions[:, None].to(real.device))
    if not bool((hits.sum(1) == 1).all()):
        raise ValueError(f"anchors {positions.tolist()} do not all lie within their rows")
    return hits.long().argmax(1)


def with_steps(
    batch: LatentBatch,
    steps: Sequence[Sequence[Sequence[int]]],
    answers: Sequence[Sequence[int]],
    *,
    num_groups: int,
) -> LatentBatch:
    """A batch for `step_decoder`: the text that each group of thoughts must spell, (B, G, T).

    The last group takes all steps that are left; a row with fewer steps than groups repeats its
    answer as a pseudo-step (SIM-CoT).

    Args:
        steps: tokens of each step of each row.
        answers: tokens of each row's answer.
    """
    if num_groups < 1 or len(steps) != len(answers) or len(steps) != len(batch["weight"]):
        raise ValueError(
            f"{len(steps)} rows of steps and {len(answers)} answers for a batch of "
            f"{len(batch['weight'])} rows, in {num_groups} groups; the rows must agree, and there "
            "must be a group"
        )
    rows = []
    for own, answer in zip(steps, answers, strict=True):
        groups = [list(step) for step in own[: num_groups - 1]]
        rest = [token for step in own[num_groups - 1 :] for token in step]
        groups += [rest] if rest else []
        rows.append(groups + [list(answer)] * (num_groups - len(groups)))
    T = max(len(group) for groups in rows for group in groups)
    out = np.full((len(rows), num_groups, T), IGNORE, np.int64)
    for r, groups in enumerate(rows):
        for g, group in enumerate(groups):
            out[r, g, : len(group)] = group
    weight = torch.ones_like(batch["weight"])
    return {**batch, "steps": torch.from_numpy(out).to(weight.device), "weight": weight}


def distillation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """(B,) CODI's alignment: mean over layers of smooth L1 between hidden states (B, d), the
    teacher's without gradient, divided by the standard deviation of the teacher's layer."""
    losses = []
    for own, spoken in zip(student, teacher, strict=True):
        target = spoken.detach().float()
        gap = F.smooth_l1_loss(own.float(), target, reduction="none").mean(-1)
        losses.append(gap / target.std().clamp(min=1e-6))
    return torch.stack(losses).mean(0)


def step_decoder_loss(decoder: nn.Module, thoughts: Tensor, steps: Tensor, c: int) -> Tensor:
    """(B,) SIM-CoT's loss: the decoder gets the c thoughts of a group as a prefix and must write
    its step; cross-entropy summed over the tokens, mean over the groups.

    Args:
        decoder: a causal LM as wide as the thoughts.
        thoughts: (B, K, d) with K >= G c.
        steps: (B, G, T), -100 beyond a step's end.
    """
    B, G, T = steps.shape
    if thoughts.shape[1] < G * c:
        raise ValueError(
            f"{G} groups of {c} thoughts need {G * c}, the batch has {thoughts.shape[1]}; make "
            "fewer groups, or think longer"
        )
    prefix = thoughts[:, : G * c].reshape(B * G, c, -1)
    labels = steps.reshape(B * G, T)
    real = labels != IGNORE
    embedding: Any = decoder.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    words = embedding(labels.clamp(min=0)[:, :-1])
    mask = torch.cat([real.new_ones(B * G, c), real[:, :-1]], dim=1).long()
    logits = decoder(
        inputs_embeds=torch.cat([prefix.to(words.dtype), words], dim=1), attention_mask=mask
    ).logits[:, c - 1 :]
    losses = F.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
    )
    return losses.sum(1).reshape(B, G).mean(1)


def extra_losses(
    model: Coconut, batch: LatentBatch, output: CoconutOutput
) -> tuple[Tensor, Metrics]:
    """The sum over rows of the ordinary loss, as a mean over each row's labels, and of the extra
    losses that the settings ask for; their metrics.

    Raises:
        ValueError: the batch lacks what they need.
    """
    settings, one = model.settings, output.row_count.new_tensor(float(len(output.row_count)))
    wanted = {"anchor": settings.distill, "steps": settings.step_decoder}
    lacking = [name for name, weight in wanted.items() if weight and name not in batch]
    if lacking or not bool((batch["weight"] == 1).all()):
        raise ValueError(
            f"the batch lacks {lacking or 'a weight of 1 a row'} for the extra losses of the "
            "settings; make it with with_teacher (distill) or with_steps (step_decoder)"
        )
    rows = output.row_loss / output.row_count.clamp(min=1)
    metrics: Metrics = {}
    if settings.distill:
        speech = {k.removeprefix(TEACHER): v for k, v in batch.items() if k.startswith(TEACHER)}
        teacher = model.forward(speech, layers=True)
        index = torch.arange(len(rows), device=rows.device)
        gap = distillation_loss(
            [layer[index, batch["anchor"]] for layer in output.layers],
            [layer[index, speech["anchor"]] for layer in teacher.layers],
        )
        spoken = teacher.row_loss / teacher.row_count.clamp(min=1)
        rows = rows + spoken + settings.distill * gap
        metrics["distill_loss"] = (gap.detach().sum(), one)
        metrics["teacher_loss"] = (spoken.detach().sum(), one)
    if settings.step_decoder:
        assert model.decoder is not None, "checked when the model was made"
        thoughts, _ = output.thoughts()
        spelled = step_decoder_loss(
            model.decoder, thoughts, batch["steps"], settings.thoughts_per_step
        )
        rows = rows + settings.step_decoder * spelled
        metrics["step_loss"] = (spelled.detach().sum(), one)
    return rows.sum(), metrics


# --------------------------------------------------------------------------------------------------
# Alarms


class CollapseWarning(UserWarning):
    """The thoughts have become all alike, or vanishingly small, or huge."""


@torch.no_grad()
def geometry(thoughts: Tensor, there: Tensor, table: Tensor) -> dict[str, float]:
    """Where the thoughts of a batch lie.

    Args:
        thoughts: (B, K, d);  there: (B, K) bool, which of them exist.
        table: (V, d) embeddings of the vocabulary.
    Returns:
        distance: mean distance between thoughts of one row (SIM-CoT's collapse measure).
        center: mean distance to the mean embedding.
        norm: mean length, as a multiple of the mean embedding length.
        cosine: mean cosine between a thought and the next.
        rank: effective rank of all thoughts around their mean, exp of the entropy of the shares of
            the singular values; 1 when all lie on a line.
        NaN where there are too few thoughts to tell. Empty if there are none.
    """
    if not bool(there.any()):
        return {}
    z, table = thoughts.float(), table.float()
    both = there[:, :, None] & there[:, None, :]
    both &= ~torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    pair = there[:, 1:] & there[:, :-1]
    flat = z[there]
    values = torch.linalg.svdvals(flat - flat.mean(0))
    shares = values / values.sum().clamp(min=1e-12)
    rank = torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum())
    out = {
        "distance": torch.cdist(z, z)[both].mean(),
        "center": (flat - table.mean(0)).norm(dim=-1).mean(),
        "norm": flat.norm(dim=-1).mean() / table.norm(dim=-1).mean(),
        "cosine": F.cosine_similarity(z[:, 1:], z[:, :-1], dim=-1)[pair].mean(),
        "rank": rank if len(flat) > 2 else rank.new_tensor(float("nan")),
    }
    return {name: float(value) for name, value in out.items()}


def collapsed(
    where: dict[str, float],
    *,
    cosine: float = 0.99,
    rank: float = 1.05,
    norms: tuple[float, float] = (0.01, 1000.0),
) -> list[str]:
    """What is wrong with a `geometry`, in words; empty if nothing is."""
    told = []
    if where.get("cosine", 0.0) > cosine:
        told.append(f"successive thoughts are alike (cosine {where['cosine']:.4f} > {cosine})")
    if where.get("rank", rank) < rank:
        told.append(f"all thoughts lie on a line (effective rank {where['rank']:.3f} < {rank})")
    if not norms[0] <= where.get("norm", norms[0]) <= norms[1]:
        told.append(f"thoughts are {where['norm']:.3g} times as long as embeddings")
    return told


def alarm_metrics(model: Coconut, output: CoconutOutput) -> Metrics:
    """`geometry` of a training batch for the log; warns when the thoughts have collapsed."""
    where = geometry(*output.thoughts(), model.embedding.weight)
    told = collapsed(where)
    if told:
        warnings.warn("collapse: " + "; ".join(told), CollapseWarning, stacklevel=2)
    names = ("distance", "center", "norm", "cosine", "rank")
    values = {name: where.get(name, float("nan")) for name in names}
    return {
        f"thought_{name}": (
            output.total.new_tensor(0.0 if np.isnan(value) else value),
            output.total.new_tensor(float(not np.isnan(value))),
        )
        for name, value in values.items()
    }
