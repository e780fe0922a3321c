"""What can be read in silent thoughts before the next step is spoken: by the lens, by a probe.

    readability(model, samples, ends={newline}, target=next_node)

Hidden thoughts cannot be seen, which is what interleaving is for: between two spoken steps the
thoughts are few, and what they lead to is said soon. This measures how much of the next spoken step
already stands in the thoughts of the block before it:

    lens     the model's own head on the hidden state that becomes the thought: is the step's target
             its likeliest token, or among the k likeliest, for any thought of the block?
    probe    ridge regression from the block's thoughts to the target, fitted on some questions and
             tested on others

each against the same with the thoughts of another question, block by block. A probe that finds the
target says that it stands there, not that the model uses it: for that, see `thoughts.swap_block`.

Shape letters: B rows, M blocks that a step follows, K thoughts of a row, n thoughts of a block,
k tokens of the lens, d width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inward.common import IGNORE
from inward.data.thoughts.columns import before_thoughts, thought_numbers
from inward.data.thoughts.segments import Sample
from inward.evals.stats import Interval, wilson
from inward.studies.thoughts_ablate import others, step_after

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut
    from inward.methods.coconut.output import CoconutOutput

Target = Callable[[tuple[int, ...]], int | None]
"""From the tokens of a spoken step to the one that must be readable; None: this step has none."""


@dataclass(frozen=True)
class Readability:
    """How often the step spoken after a block was readable in the thoughts before it.

    num: blocks with a step after them; num_tested: those of the probe's test questions.
    top_1, top_k: the target is the likeliest, or one of the `k` likeliest, tokens of the lens on
        some thought of the block; shuffled_*: of another question's block of the same number.
    probe: the probe names the target (test questions); shuffled_probe: one that was fitted and
        tested on thoughts of other questions; majority: the commonest target of the fitting
        questions. None where the questions are too few to split.
    """

    num: int
    num_tested: int
    k: int
    top_1: Interval
    top_k: Interval
    shuffled_top_1: Interval
    shuffled_top_k: Interval
    probe: Interval | None
    shuffled_probe: Interval | None
    majority: Interval | None


@dataclass(frozen=True, eq=False)
class Blocks:
    """M blocks: the question (M,) and block number (M,) of each, the `targets` (M,) of the step
    after it, the lens' `top` tokens (M, n, k), -1 where a block is shorter, and its last thoughts
    `vectors` (M, m d), m the shortest block."""

    question: np.ndarray
    block: np.ndarray
    targets: np.ndarray
    top: np.ndarray
    vectors: Tensor


def before_end(step: tuple[int, ...]) -> int | None:
    """The token before the last one: of a line "3 14 <newline>" the node that it leads to."""
    return step[-2] if len(step) >= 2 else None


def readability(
    model: Coconut,
    samples: Sequence[Sample],
    *,
    ends: Collection[int],
    target: Target = before_end,
    block: int | None = None,
    k: int = 5,
    ridge: float = 0.1,
    fit_share: float = 0.5,
    seed: int = 0,
    batch: int = 50,
) -> Readability:
    """Read what comes in the thoughts before it, over all blocks of all samples.

    Args:
        samples: what the model said (`Generated.samples`), one a question; gold samples ask the
            same of a model that is told what to say.
        ends: tokens that end a spoken step.
        target: which token of the step must be readable.
        block: only blocks of this number, from 0; None: all.
        k: tokens of the lens.
        ridge: penalty of the probe, as a multiple of the number of blocks that it is fitted on
            (thoughts are scaled to unit variance).
        fit_share: share of the questions on which it is fitted.
        seed: of the split and of the shuffling.

    Raises:
        ValueError: options out of range; or fewer than two questions have such a block.
    """
    if k < 1 or ridge <= 0 or not 0 < fit_share < 1 or batch < 1:
        raise ValueError(
            f"k {k} and batch {batch} must be 1 or more, ridge {ridge} above 0, fit_share "
            f"{fit_share} between 0 and 1"
        )
    found = blocks(model, samples, ends=ends, target=target, block=block, k=k, batch=batch)
    donors = other_questions(found, seed)
    kept = donors >= 0
    if len(np.unique(found.question[kept])) < 2:
        raise ValueError(
            f"{len(np.unique(found.question))} of {len(samples)} samples have a block with a step "
            "after it; two or more are needed"
        )
    lens = [_in_lens(found.top, found.targets), _in_lens(found.top[donors], found.targets)]
    lens[1] = [hit[kept] for hit in lens[1]]
    (top_1, top_k), (other_1, other_k) = [[_rate(hit) for hit in pair] for pair in lens]
    probes = _probes(found, donors, ridge, fit_share, seed)
    return Readability(len(found.targets), probes[0], k, top_1, top_k, other_1, other_k, *probes[1])


@torch.no_grad()
def blocks(
    model: Coconut,
    samples: Sequence[Sample],
    *,
    ends: Collection[int],
    target: Target = before_end,
    block: int | None = None,
    k: int = 5,
    batch: int = 50,
) -> Blocks:
    """The blocks of samples that a step with a target follows; see `readability`.

    Raises:
        ValueError: there is none.
    """
    rows: list[tuple[int, int, int, int, int]] = []  # question, block, target, first thought, n
    for q, sample in enumerate(samples):
        first = 0
        for j, n in enumerate(sample.blocks):
            token = target(step_after(sample, j, model.specials, ends))
            if token is not None and block in (None, j):
                rows.append((q, j, token, first, n))
            first += n
    if not rows:
        raise ValueError(
            f"no block of the {len(samples)} samples is followed by a step with a target; give "
            "samples that think and speak"
        )
    question, number, targets, first, n = np.array(rows).T
    top = np.full((len(rows), int(n.max()), k), -1, dtype=np.int64)
    vectors: list[Tensor] = []
    for start in range(0, len(samples), batch):
        own = np.flatnonzero((question >= start) & (question < start + batch))
        if not len(own):
            continue
        tokens, thoughts = _look(model, samples[start : start + batch], k)
        for i in own:
            r, span = question[i] - start, slice(first[i], first[i] + n[i])
            top[i, : n[i], : tokens.shape[2]] = tokens[r, span]
            vectors.append(thoughts[r, span][-int(n.min()) :].flatten())
    return Blocks(question, number, targets, top, torch.stack(vectors).cpu())


def _look(model: Coconut, samples: Sequence[Sample], k: int) -> tuple[np.ndarray, Tensor]:
    """(B, K, k) the lens' tokens on each thought and (B, K, d) the thoughts of some samples."""
    batch = model.collate(samples, may_end_open=True)
    lens = before_thoughts(batch["latent"])
    batch = {**batch, "labels": torch.full_like(batch["labels"], IGNORE)}  # the lens alone
    output = model(batch, logits=lens)
    thoughts, there = output.thoughts()
    return lens_tokens(output, k, there.shape), thoughts.float()


def lens_tokens(output: CoconutOutput, k: int, shape: Sequence[int]) -> np.ndarray:
    """(B, K, k) the likeliest tokens of the head before each thought, -1 where there is none; of a
    forward whose logits are those of `before_thoughts` alone."""
    latent = output.batch["latent"]
    lens, numbers = before_thoughts(latent), thought_numbers(latent)
    tokens = np.full((*shape, k), -1, dtype=np.int64)
    for part in output.parts:
        rows, places = lens[:, part.start : part.stop].nonzero(as_tuple=True)
        best = part.logits.topk(min(k, part.logits.shape[-1])).indices
        at = numbers[rows, places + part.start + 1]
        tokens[rows.cpu().numpy(), at.cpu().numpy(), : best.shape[1]] = best.cpu().numpy()
    return tokens


def other_questions(found: Blocks, seed: int) -> np.ndarray:
    """(M,) for each block one of the same number of another question; -1 if there is no other."""
    donors = np.full(len(found.targets), -1, dtype=np.int64)
    for number in np.unique(found.block):
        own = np.flatnonzero(found.block == number)
        if len(own) > 1:
            donors[own] = own[others(len(own), seed)]
    return donors


def _in_lens(top: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
    """(M,) bool whether some thought has the target first, and among its tokens at all."""
    hits = top == targets[:, None, None]
    return [hits[:, :, 0].any(1), hits.any((1, 2))]


def _rate(hits: np.ndarray) -> Interval:
    return wilson(int(hits.sum()), len(hits))


# --------------------------------------------------------------------------------------------------
# The probe


def _probes(
    found: Blocks, donors: np.ndarray, ridge: float, fit_share: float, seed: int
) -> tuple[int, tuple[Interval | None, Interval | None, Interval | None]]:
    """Number of tested blocks; rates of the probe, of the shuffled one, of the commonest target."""
    kept = donors >= 0
    questions = np.random.default_rng([seed, 1]).permutation(np.unique(found.question[kept]))
    fitted = questions[: max(1, round(fit_share * len(questions)))]
    is_fitted = np.isin(found.question, fitted)
    fit, test = np.flatnonzero(kept & is_fitted), np.flatnonzero(kept & ~is_fitted)
    if not len(test) or len(fit) < 2:
        return 0, (None, None, None)
    rates = []
    for X in (found.vectors, found.vectors[np.maximum(donors, 0)]):
        named = probe(X[fit], found.targets[fit], X[test], ridge=ridge)
        rates.append(_rate(named == found.targets[test]))
    values, counts = np.unique(found.targets[fit], return_counts=True)
    common = _rate(found.targets[test] == values[counts.argmax()])
    return len(test), (rates[0], rates[1], common)


def probe(X: Tensor, targets: np.ndarray, X_test: Tensor, *, ridge: float) -> np.ndarray:
    """Targets that a linear probe names for X_test: ridge regression onto one-hot targets.

    W = X' (X X' + ridge M I)^-1 Y = (X' X + ridge M I)^-1 X' Y, whichever is smaller, with X and Y
    (M, C) centred and X scaled to unit variance by what it is fitted on.
    """
    values, classes = np.unique(targets, return_inverse=True)
    X, X_test = X.double(), X_test.double()
    middle, scale = X.mean(0), X.std(0, unbiased=False).clamp(min=1e-6)
    X, X_test = (X - middle) / scale, (X_test - middle) / scale
    Y = torch.nn.functional.one_hot(torch.from_numpy(classes)).double()
    centred = Y - Y.mean(0)
    M, d = X.shape
    if d > M:
        eye = torch.eye(M, dtype=X.dtype)
        W = X.T @ torch.linalg.solve(X @ X.T + ridge * M * eye, centred)
    else:
        eye = torch.eye(d, dtype=X.dtype)
        W = torch.linalg.solve(X.T @ X + ridge * M * eye, X.T @ centred)
    return values[(X_test @ W + Y.mean(0)).argmax(1).numpy()]
