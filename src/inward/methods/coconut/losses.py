"""Options around Coconut: stabilisers of the fed-back state, extra losses, alarms for collapse.

    CoconutSettings(feedback="projector")     a small network between h and the next input (CODI)
    CoconutSettings(distill=1.0)              align with a spoken chain (CODI, arXiv 2502.21074)
    CoconutSettings(step_decoder=1.0)         thoughts must spell their step (SIM-CoT, 2509.20317)
    CoconutSettings(feedback="mixture", superpose=0.5)   thoughts that can be read (MUX, 2607.18264)
    CoconutSettings(alarms=True)              geometry of the thoughts in the log

The paper's method has none of these, and that is the default. The extra losses are means over the
tokens of a row, as published; so with them a row is the unit of the loss (`weight` is 1 a row), and
the ordinary loss becomes a mean over each row's labels too. `with_teacher` and `with_steps` make
such batches. The loss of superposed thoughts alone leaves the unit as it is: there a thought counts
like `superpose_weight` tokens.

Shape letters: B rows, K thoughts of a row, G groups of c thoughts, T tokens, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inward.common import IGNORE
from inward.data.thoughts.columns import LatentBatch, widened

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut
    from inward.methods.coconut.output import CoconutOutput

Metrics = dict[str, tuple[Tensor, Tensor]]

TEACHER = "teacher."
"""Prefix of the teacher's entries in a batch."""


# --------------------------------------------------------------------------------------------------
# Stabilisers


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


def check_spans(model: Coconut, batch: LatentBatch) -> None:
    """Raise a ValueError for a batch whose thoughts are to hold nothing although the settings say
    so, or spans of another width, or spans although the settings do not."""
    how, spans = model.settings.superposing, batch.get("spans")
    if how is None and spans is not None:
        raise ValueError(
            "the batch says what its thoughts are to hold (spans), but the model's settings do not "
            "superpose; set superpose and feedback='mixture', or leave out Curriculum(span=...)"
        )
    if how is None or not bool(batch["latent"].any()):
        return
    want = (*batch["latent"].shape, how.span)
    if spans is None or tuple(spans.shape) != want:
        has = "no spans" if spans is None else f"spans of shape {tuple(spans.shape)}"
        raise ValueError(
            f"superposed thoughts need to be told their words: spans {want}, and the batch has "
            f"{has}; make it from a curriculum with span={how.span}"
        )


def superposed_loss(
    model: Coconut, batch: LatentBatch, output: CoconutOutput
) -> tuple[Tensor | None, Metrics]:
    """(B,) KL from what each thought is to hold to what the head says of it, summed over a row's
    thoughts (nats); metrics: its mean, and the share of thoughts that read out exactly by the
    likeliest word alone (their first). (None, {}) where thoughts are not superposed."""
    how = model.settings.superposing
    if how is None or "spans" not in batch:
        return None, {}
    rows = output.total.new_zeros(len(batch["latent"]))
    right = count = output.total.new_zeros(())
    alpha = torch.as_tensor(how.weights, dtype=rows.dtype, device=rows.device)
    for part in output.parts:
        spans = batch["spans"][:, part.start : part.stop]
        there = spans[..., 0] != IGNORE
        read = torch.ones_like(there)
        if output.wanted is not None:
            read = output.wanted[:, part.start : part.stop]
        logits = part.logits.reshape(-1, part.logits.shape[-1])[there[read]]
        if not len(logits):
            continue
        words, logp = spans[there], widened(logits).log_softmax(-1)
        same = words[:, :, None] == words[:, None, :]
        entropy = -(alpha * (same * alpha).sum(-1).log()).sum(-1)
        gap = -(alpha * logp.gather(1, words)).sum(-1) - entropy
        rows = rows.index_add(0, there.nonzero()[:, 0], gap.to(rows.dtype))
        right = right + (logp.detach().argmax(-1) == words[:, 0]).sum()
        count = count + len(words)
    metrics = {"superposed_loss": (rows.detach().sum(), count), "first_word": (right, count)}
    return rows, metrics


def extra_losses(
    model: Coconut, batch: LatentBatch, output: CoconutOutput, held: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """The sum over rows of the ordinary loss, as a mean over each row's labels, and of the extra
    losses that the settings ask for; their metrics. held: (B,) of `superposed_loss`, summed over
    the thoughts of each row.

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
    if held is not None:
        thoughts = batch["latent"].sum(1).clamp(min=1)
        rows = rows + settings.superpose_weight * held / thoughts
    return rows.sum(), metrics


# --------------------------------------------------------------------------------------------------
# Alarms
