"""What is right for a base, and whether thinking and drafting on it come to the same.

*Right* is transformers' own forward of a row alone: unpadded, without a cache, at the model's
default attention. A check compares something else with it and raises `Differs`: rows of unequal
length in one batch, a cache that grows thought by thought, text longer than the model's window,
gradients, drafts that are judged, prompts padded at the left and at the right.

The models are those of `bases_tiny`, or other small ones with its vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inward.common.reach import FAILURES
from inward.common.sampling import Sampling
from inward.data.thoughts.segments import Latent, Sample, Specials, Text
from inward.methods.coconut.base import head_input
from inward.methods.coconut.generate import generate
from inward.methods.coconut.model import Coconut
from inward.methods.tidar.decode import decode
from inward.methods.tidar.model import TiDAR
from inward.studies.bases_tiny import VOCAB

NEAR = 1e-3
"""Share of the largest value by which results may differ: these models compute in float32"""

SPECIALS = Specials(VOCAB - 1, VOCAB - 2, VOCAB - 3)
MASK = VOCAB - 4
_WORDS = VOCAB - 8


class Differs(Exception):
    """A result that is not the right one."""


# --------------------------------------------------------------------------------------------------
# The right results


def words(num: int, seed: int) -> tuple[int, ...]:
    """Ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(2, _WORDS, (num,), generator=generator).tolist())


def alone(model: Any, ids: Sequence[int]) -> Tensor:
    """(S, V) what the model's own forward says of these tokens."""
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


def thinking_alone(model: Any, sample: Sample) -> tuple[Tensor, Tensor]:
    """(S, d) what the head reads, (S, V) logits: each thought by a forward of all before it."""
    embed = model.get_input_embeddings()
    inputs: list[Tensor] = []
    for segment in sample.segments:
        if isinstance(segment, Text):
            inputs += [*embed(torch.tensor(segment.ids))]
            continue
        for _ in range(len(segment)):
            inputs.append(_read(model, torch.stack(inputs))[0][-1].to(inputs[0].dtype))
    return _read(model, torch.stack(inputs))


def _read(model: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    with head_input(model, None) as caught:
        logits = model(inputs_embeds=inputs[None].clone(), use_cache=False).logits
    return caught[0][0], logits[0]


def greedy(model: Any, prompt: Sequence[int], num: int, never: Sequence[int]) -> list[int]:
    """What plain decoding says, a full forward for each token."""
    ids = list(prompt)
    for _ in range(num):
        logits = alone(model, ids)[-1].clone()
        logits[list(never)] = -torch.inf
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


def compare(what: str, got: Tensor, want: Tensor) -> None:
    """Raise `Differs` unless two results agree up to rounding."""
    gap = float((got - want).abs().max()) / max(float(want.abs().max()), 1e-6)
    if not gap <= NEAR:
        raise Differs(f"{what}: off by {gap:.2g} of the largest value")


def same_text(
    what: str, model: Any, prompt: Sequence[int], got: Sequence[int], never: Sequence[int]
) -> None:
    """Raise `Differs` unless each token is what plain decoding says at its place; of two tokens
    equally likely up to rounding either will do."""
    logits = alone(model, [*prompt, *got])[len(prompt) - 1 : -1].clone()
    logits[:, list(never)] = -torch.inf
    best = logits.max(-1).values
    said = logits.gather(1, torch.tensor(list(got))[:, None])[:, 0]
    size = float(logits.masked_fill(logits.isinf(), 0).abs().max())
    wrong = (best - said > NEAR * size).nonzero()[:, 0].tolist()
    if wrong:
        raise Differs(f"{what}: other words than plain decoding from token {wrong[0] + 1} on")


# --------------------------------------------------------------------------------------------------
# Coconut


def _samples(scale: int) -> list[Sample]:
    """Rows whose blocks start in different places: masked columns at the left and in the middle."""
    return [
        Sample(
            (
                Text(words(2 * scale, 1), False),
                Latent(2),
                Text(words(scale, 2), True),
                Latent(1),
                Text(words(scale, 7), True),
            )
        ),
        Sample(
            (
                Text(words(scale, 3), False),
                Latent(1),
                Text(words(3 * scale, 4), True),
                Latent(2),
                Text(words(scale + 1, 5), True),
            )
        ),
        Sample((Text(words(3 * scale, 6), True),)),
    ]


def coconut_checks(model: Any) -> dict[str, Callable[[Coconut], None]]:
    """By name what is tried with a wrapped model; the right values come from the bare one."""

    def batch(scale: int, executor: Any) -> Callable[[Coconut], None]:
        def check(wrapped: Coconut) -> None:
            samples = _samples(scale)
            made = wrapped.collate(samples)
            with torch.no_grad():
                found = wrapped(made, executor=executor, logits="all").logits
            for row, sample in enumerate(samples):
                with torch.no_grad():
                    _, want = thinking_alone(model, sample)
                own = made["attention_mask"][row].bool()
                compare(f"row {row}", found[row][own], want)
            with torch.no_grad():
                ids = words(2 * scale, 6)
                text = wrapped.collate([Sample((Text(ids, True),)), *samples])
                said = wrapped(text, executor=executor, logits="all").logits[0]
                said = said[text["attention_mask"][0].bool()]
                compare("text alone", said, alone(model, ids))

        return check

    def gradients(wrapped: Coconut) -> None:
        samples = _samples(3)
        weights = [p for p in model.parameters() if p.requires_grad]

        def grads(loss: Tensor) -> list[Tensor | None]:
            return list(torch.autograd.grad(loss, weights, allow_unused=True))

        got = grads(wrapped(wrapped.collate(samples)).total)
        want = grads(torch.stack([_loss_alone(model, s) for s in samples]).sum())
        # a gradient that is 0 but for rounding, as of a key's bias, has no scale of its own
        size = max(float(right.abs().max()) for right in want if right is not None)
        for own, right in zip(got, want, strict=True):
            pair = [torch.zeros(()) if grad is None else grad for grad in (own, right)]
            if float((pair[0] - pair[1]).abs().max()) > NEAR * size:
                raise Differs("gradients")

    def generation(scale: int) -> Callable[[Coconut], None]:
        def check(wrapped: Coconut) -> None:
            prompts = [Sample((Text(words(n * scale, n), False),)) for n in (1, 3, 2)]
            said = generate(
                wrapped, prompts, thoughts=(3,), boundaries=False, max_new_tokens=4 + 2 * scale
            )
            for sample in said.samples:
                _follow(model, sample)

        return check

    return {
        "short, cached": batch(1, "sequential"),
        "past the window, cached": batch(4, "sequential"),
        "past the window, recompute": batch(4, "recompute"),
        "past the window, jacobi": batch(4, "jacobi"),
        "gradients": gradients,
        "generation, short": generation(1),
        "generation, past the window": generation(4),
    }


def _loss_alone(model: Any, sample: Sample) -> Tensor:
    _, logits = thinking_alone(model, sample)
    losses, place = [logits.new_zeros(())], 0
    for segment in sample.segments:
        for own in range(len(segment)):
            if isinstance(segment, Text) and segment.supervised and place:
                target = torch.tensor(segment.ids[own])
                losses.append(F.cross_entropy(logits[place - 1].float(), target))
            place += 1
    return torch.stack(losses).sum()


def _follow(model: Any, sample: Sample) -> None:
    """Each word of a generated row must be the likeliest of the row alone."""
    with torch.no_grad():
        _, logits = thinking_alone(model, sample)
    logits = logits.clone()
    logits[:, [SPECIALS.bot, SPECIALS.eot, SPECIALS.latent]] = -torch.inf
    size = float(logits.masked_fill(logits.isinf(), 0).abs().max())
    place = 0
    for number, segment in enumerate(sample.segments):
        for own in range(len(segment)):
            if number and isinstance(segment, Text):
                row = logits[place - 1]
                if float(row.max() - row[segment.ids[own]]) > NEAR * size:
                    raise Differs(f"another word than a forward of the row alone at place {place}")
            place += 1


# --------------------------------------------------------------------------------------------------
# TiDAR


def tidar_checks(model: Any) -> dict[str, Callable[[TiDAR], None]]:
    """As `coconut_checks`."""

    def drafted(scale: int, side: str, scheme: str) -> Callable[[TiDAR], None]:
        def check(wrapped: TiDAR) -> None:
            prompts = [words(n * scale, n) for n in (1, 3, 2)]
            longest = max(map(len, prompts))
            gaps = [[0] * (longest - len(prompt)) for prompt in prompts]
            rows = [
                ([*g, *p] if side == "left" else [*p, *g])
                for g, p in zip(gaps, prompts, strict=True)
            ]
            ones = [[1] * len(prompt) for prompt in prompts]
            mask = [(g + o if side == "left" else o + g) for g, o in zip(gaps, ones, strict=True)]
            found = decode(
                wrapped,
                torch.tensor(rows),
                attention_mask=torch.tensor(mask),
                max_new_tokens=4 + 3 * scale,
                scheme=scheme,
                eos_token_id=(),
                sampling=Sampling(),
            )
            with torch.no_grad():
                for prompt, said in zip(prompts, found.tokens, strict=True):
                    same_text(f"prompt of {len(prompt)}", model, prompt, said, [MASK])

        return check

    def training(scale: int) -> Callable[[TiDAR], None]:
        def check(wrapped: TiDAR) -> None:
            ids = torch.tensor([words(4 * scale, 1), words(4 * scale, 2)])
            batch = {"input_ids": ids, "weight": torch.full((2,), ids.shape[1] - 1)}
            loss = wrapped.loss(batch, None, None)
            got = loss.metrics["ar_loss"][0]
            want = torch.zeros(())
            for row in ids.tolist():
                logits = alone(model, row)[:-1].float().clone()
                logits[:, MASK] = -torch.inf
                want = want + F.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum")
            compare("loss of the clean half", got.detach(), want.detach())
            weights = [p for p in model.parameters() if p.requires_grad]
            alpha = wrapped.settings.alpha
            grads = torch.autograd.grad(loss.total, weights, allow_unused=True)
            if not any(g is not None and bool(g.abs().max() > 0) for g in grads) or alpha <= 0:
                raise Differs("no gradient reaches the weights")

        return check

    return {
        "short, padded at the left": drafted(1, "left", "one_pass"),
        "past the window, left": drafted(4, "left", "one_pass"),
        "past the window, right": drafted(4, "right", "two_pass"),
        "past the window, partial": drafted(4, "left", "partial"),
        "past the window, plain": drafted(4, "left", "plain"),
        "training, short": training(1),
        "training, past the window": training(4),
    }


# --------------------------------------------------------------------------------------------------
# transformers itself


def decodes_batched(model: Any) -> bool:
    """Whether transformers' own `generate` says the same for two prompts of unequal length, padded
    at the left, as for each alone: what a base that we refuse could do."""
    prompts = [words(12, 1), words(5, 2)]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    rows = torch.tensor([prompts[0], (0,) * 7 + prompts[1]])
    mask = torch.ones_like(rows)
    mask[1, :7] = 0
    try:
        with torch.no_grad():
            both = model.generate(rows, attention_mask=mask, **options)[:, 12:].tolist()
            for prompt, said in zip(prompts, both, strict=True):
                same_text("", model, prompt, said, ())
    except (Differs, *FAILURES):
        return False
    return True
