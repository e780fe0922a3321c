"""What silent thoughts do: replace them and see what breaks.

    ablate(model, prompts, golds, answer=..., ends={newline})   all thoughts, or one, replaced
    swap_block(model, samples, block=1, ends={newline})         does the step after it change?

What a score does not show is whether the answer comes *through* the thoughts: pause tokens do as
well on some tasks, and answers hardly change when thoughts are cut (arXiv 2604.04902). Every number
here has its control: the same thoughts put back (nothing may change), those of another question,
noise of the same length, the mean thought. What can be read in thoughts is in `thoughts_read`, what
they hold of a search in `thoughts_search`.

What is unusual: nothing is patched. Thoughts are caught and replaced by `edit`, the public hook of
`Coconut.forward` and of `generate`: any base and any rhythm of thinking will do, and what follows
a replaced thought is computed from it, as it would be if the model had thought it.

Shape letters: N questions, B of them in a batch, K thoughts of a row, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from inward.data.thoughts.segments import Latent, Sample, Segment, Specials, Text
from inward.evals.stats import Interval, Paired, over_seeds, paired_difference, wilson
from inward.methods.coconut.generate import generate

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut, Edit

Kind = Literal["nothing", "same", "other", "noise", "mean", "zero"]
"""What takes a thought's place: nothing does (a control), itself (a control), the thought of the
same number of another question, Gaussian noise of the same length, the mean over questions, 0."""

KINDS: tuple[Kind, ...] = get_args(Kind)


# --------------------------------------------------------------------------------------------------
# Catching and replacing


@dataclass(frozen=True, eq=False)
class Thoughts:
    """Thoughts of N questions as they were fed in: vectors (N, K, d), and (N, K) bool which there
    are; the vectors of the others are 0."""

    vectors: Tensor
    there: Tensor

    @property
    def counts(self) -> Tensor:
        """(N,) thoughts of each question."""
        return self.there.sum(1)


class _Recorder:
    """An `edit` that changes nothing and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, thoughts: Tensor, where: Tensor, number: Tensor) -> Tensor:
        self.seen.append((thoughts.detach().clone(), where.clone(), number.clone()))
        return thoughts

    def thoughts(self) -> tuple[Tensor, Tensor]:
        """(B, K, d) and (B, K); K is 0 if nobody thought."""
        if not self.seen:
            return torch.zeros(0, 0, 0), torch.zeros(0, 0, dtype=torch.bool)
        B, d = self.seen[0][0].shape
        last = max(int(torch.where(w, n, -1).max()) for _, w, n in self.seen)
        vectors = self.seen[0][0].new_zeros(B, last + 1, d)
        there = torch.zeros(B, last + 1, dtype=torch.bool, device=vectors.device)
        for thoughts, where, number in self.seen:
            rows = where.nonzero()[:, 0]
            vectors[rows, number[rows]] = thoughts[rows]
            there[rows, number[rows]] = True
        return vectors, there


def replaced(thoughts: Thoughts, kind: Kind, *, seed: int = 0) -> Thoughts:
    """What takes the place of each thought of each question.

    "other": every question gets the thoughts of one other; numbers that the other one does not have
    stay as they are (`there` is False). Draws come from `seed`.

    Raises:
        ValueError: an unknown kind, or "other" and "mean" of fewer than two questions.
    """
    _check_kind(kind)
    vectors, there = thoughts.vectors, thoughts.there
    if kind in ("other", "mean") and len(vectors) < 2:
        raise ValueError(f"{kind!r} needs two questions or more, there is {len(vectors)}")
    if kind == "nothing":
        return Thoughts(vectors, torch.zeros_like(there))
    if kind == "other":
        donors = torch.from_numpy(others(len(vectors), seed)).to(vectors.device)
        return Thoughts(vectors[donors], there[donors])
    if kind == "noise":
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(vectors.shape, generator=generator).to(vectors)
        length = vectors.norm(dim=-1, keepdim=True)
        return Thoughts(noise / noise.norm(dim=-1, keepdim=True) * length, there)
    if kind == "mean":
        num = there.sum(0).clamp(min=1)[:, None]
        mean = vectors.sum(0) / num  # absent ones are 0
        return Thoughts(mean.expand_as(vectors), there.any(0).expand_as(there))
    return Thoughts(torch.zeros_like(vectors) if kind == "zero" else vectors, there)


def others(num: int, seed: int) -> np.ndarray:
    """(num,) for each question another one, each used once: a cycle through a drawn order."""
    order = np.random.default_rng(seed).permutation(num)
    donors = np.empty(num, dtype=np.int64)
    donors[order] = np.roll(order, -1)
    return donors


def putting(thoughts: Thoughts, which: Collection[int] | None = None) -> Edit:
    """An `edit` that puts these thoughts in the place of the model's, row by row.

    which: numbers of the thoughts that are replaced; None: all that are `there`.
    """
    vectors, there = thoughts.vectors, thoughts.there.clone()
    K = there.shape[1]
    if which is not None:
        there[:, [k for k in range(K) if k not in set(which)]] = False

    def edit(own: Tensor, where: Tensor, number: Tensor) -> Tensor:
        if not K:
            return own
        rows, n = torch.arange(len(own), device=own.device), number.clamp(0, K - 1)
        chosen = where & (number < K) & there[rows, n]
        return torch.where(chosen[:, None], vectors[rows, n].to(own.dtype), own)

    return edit


@dataclass(frozen=True, eq=False)
class _Said:
    """What N questions led to."""

    tokens: list[list[int]]
    samples: list[Sample]
    thoughts: Thoughts


def _say(
    model: Coconut,
    prompts: Sequence[Sample],
    new: Thoughts | None,
    which: Collection[int] | None,
    batch: int,
    options: dict[str, Any],
) -> _Said:
    """Answers with some thoughts replaced (new=None: none), and the thoughts that were fed in."""
    tokens: list[list[int]] = []
    samples: list[Sample] = []
    caught = []
    for start in range(0, len(prompts), batch):
        rows, recorder = slice(start, start + batch), _Recorder()
        put = None
        if new is not None:
            put = putting(Thoughts(new.vectors[rows], new.there[rows]), which)

        def edit(own: Tensor, where: Tensor, number: Tensor, put=put, keep=recorder) -> Tensor:
            return keep(own if put is None else put(own, where, number), where, number)

        made = generate(model, prompts[rows], **options, edit=edit)
        tokens += made.tokens
        samples += made.samples
        caught.append((len(made.tokens), *recorder.thoughts()))
    return _Said(tokens, samples, _joined(caught, model))


def _joined(parts: Sequence[tuple[int, Tensor, Tensor]], model: Coconut) -> Thoughts:
    """One `Thoughts` of several batches of so many rows."""
    weight = model.embedding.weight
    num, K = sum(rows for rows, _, _ in parts), max(there.shape[1] for _, _, there in parts)
    dtype = next((own.dtype for _, own, _ in parts if own.numel()), weight.dtype)
    vectors = weight.new_zeros(num, K, weight.shape[1], dtype=dtype)
    there = torch.zeros(num, K, dtype=torch.bool, device=weight.device)
    start = 0
    for rows, own, is_there in parts:
        if is_there.numel():
            vectors[start : start + rows, : own.shape[1]] = own
            there[start : start + rows, : own.shape[1]] = is_there
        start += rows
    return Thoughts(vectors, there)


def step_after(
    sample: Sample, block: int, specials: Specials, ends: Collection[int]
) -> tuple[int, ...]:
    """Tokens spoken after a block, without boundary tokens, up to and with the first of `ends`;
    up to the next block, or the sample's end, if there is none."""
    said: list[int] = []
    seen = -1
    for segment in sample.segments:
        if isinstance(segment, Latent):
            if seen == block:
                break
            seen += 1
        elif seen == block:
            for token in segment.ids:
                if token not in (specials.bot, specials.eot):
                    said.append(token)
                if token in ends:
                    return tuple(said)
    return tuple(said)


def block_of(sample: Sample, number: int) -> int:
    """The block that holds thought `number` of a sample; -1 if it has fewer thoughts."""
    last = -1
    for j, num in enumerate(sample.blocks):
        last += num
        if number <= last:
            return j
    return -1


# --------------------------------------------------------------------------------------------------
# Causal ablation


@dataclass(frozen=True)
class Ablation:
    """What replacing thoughts did to N answers.

    accuracy, before: with replaced thoughts, and as the model thinks; gain: accuracy - before.
    answer_changed: how often the answer is another one.
    step_changed: how often the first step spoken after the (first) replaced thought is another one.
    replaced: thoughts replaced a question.
    """

    kind: Kind
    which: tuple[int, ...] | None
    num: int
    accuracy: Interval
    before: Interval
    gain: Paired
    answer_changed: Interval
    step_changed: Interval
    replaced: float


def ablate(
    model: Coconut,
    prompts: Sequence[Sample],
    golds: Sequence[Hashable],
    *,
    answer: Callable[[list[int]], Hashable],
    ends: Collection[int],
    kinds: Sequence[Kind] = ("same", "other", "noise", "mean", "zero"),
    which: Collection[int] | None = None,
    seed: int = 0,
    batch: int = 50,
    **options: Any,
) -> list[Ablation]:
    """Answer every question as the model thinks, and once for each kind with replaced thoughts.

    Args:
        prompts: questions, with their thoughts where a prompt sets them; a switch among `options`
            may add more, and they are replaced too.
        golds: the right answer of each question, in the form that `answer` gives.
        answer: from the tokens spoken to the answer.
        ends: tokens that end a spoken step.
        which: numbers of the thoughts to replace, from 0 in each row; None: all.
        seed: of donors and noise.
        batch: questions at a time.
        options: of `generate` (switch, boundaries, max_new_tokens, ...); greedy unless they say
            otherwise.

    Raises:
        ValueError: no questions, golds that do not match, an unknown kind, a question that leads to
            no thought, or numbers that no question has.
    """
    if not prompts or len(prompts) != len(golds) or batch < 1:
        raise ValueError(
            f"{len(prompts)} questions, {len(golds)} right answers, {batch} at a time; give one "
            "answer a question, at least one question, and a batch of 1 or more"
        )
    for kind in kinds:
        _check_kind(kind)
    options = {"do_sample": False, **options}
    plain = _say(model, prompts, None, None, batch, options)
    numbers = None if which is None else tuple(sorted(set(which)))
    _check_numbers(plain.thoughts, numbers)
    found = []
    for kind in kinds:
        new = replaced(plain.thoughts, kind, seed=seed)
        said = _say(model, prompts, new, numbers, batch, options)
        there = new.there if numbers is None else new.there[:, list(numbers)]
        about = {"kind": kind, "which": numbers, "replaced": float(there.sum(1).float().mean())}
        first = 0 if numbers is None else numbers[0]
        found.append(Ablation(**about, **_compared(plain, said, golds, answer, first, model, ends)))
    return found


def _compared(
    plain: _Said,
    said: _Said,
    golds: Sequence[Hashable],
    answer: Callable[[list[int]], Hashable],
    first: int,
    model: Coconut,
    ends: Collection[int],
) -> dict[str, Any]:
    """The numbers of an `Ablation`."""
    num = len(golds)
    old, new = ([answer(row) for row in run.tokens] for run in (plain, said))
    was = np.array([a == gold for a, gold in zip(old, golds, strict=True)])
    now = np.array([a == gold for a, gold in zip(new, golds, strict=True)])
    steps = [
        [step_after(s, block_of(s, first), model.specials, ends) for s in run.samples]
        for run in (plain, said)
    ]
    return {
        "num": num,
        "accuracy": wilson(int(now.sum()), num),
        "before": wilson(int(was.sum()), num),
        "gain": paired_difference(now, was),
        "answer_changed": _share(a != b for a, b in zip(old, new, strict=True)),
        "step_changed": _share(a != b for a, b in zip(*steps, strict=True)),
    }


def _check_numbers(thoughts: Thoughts, numbers: tuple[int, ...] | None) -> None:
    K = thoughts.there.shape[1]
    if not K or not bool(thoughts.there.any()):
        raise ValueError("no question led to a thought; give prompts with thoughts, or a switch")
    if numbers is not None and (not numbers or numbers[0] < 0 or numbers[-1] >= K):
        raise ValueError(f"which is {numbers}; the questions have thoughts 0 to {K - 1}")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r}; choose of {', '.join(KINDS)}")


def _share(outcomes: Any) -> Interval:
    values = [bool(outcome) for outcome in outcomes]
    return wilson(sum(values), len(values))


def mean(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean over questions with Student's 95 % interval; NaN bounds for a single one."""
    if len(values) == 1:
        return Interval(float(values[0]), float("nan"), float("nan"))
    return over_seeds([float(value) for value in values])


# --------------------------------------------------------------------------------------------------
# The step after a block


@dataclass(frozen=True)
class Swap:
    """How often the step spoken after a block changes when the block's thoughts are replaced."""

    kind: Kind
    block: int
    num: int
    step_changed: Interval


def swap_block(
    model: Coconut,
    samples: Sequence[Sample],
    *,
    block: int = 0,
    ends: Collection[int],
    kinds: Sequence[Kind] = ("nothing", "same", "other"),
    seed: int = 0,
    batch: int = 50,
    max_new_tokens: int = 32,
) -> list[Swap]:
    """Replace all thoughts of one block, let the model say the step that follows, compare.

    What stands before the block stays as it is. A question gets the whole block of another one; if
    that is shorter, its last thought fills up.

    Args:
        samples: what the model said (`Generated.samples`), or gold samples; those without such a
            block are left out.

    Raises:
        ValueError: fewer than two samples have the block, or an unknown kind.
    """
    for kind in kinds:
        _check_kind(kind)
    specials = model.specials
    prompts = [cut(s, block, specials) for s in samples if 0 <= block < len(s.blocks)]
    if len(prompts) < 2:
        raise ValueError(
            f"{len(prompts)} of {len(samples)} samples have a block {block} (from 0); two or more "
            "are needed"
        )
    stops = {*ends, *np.atleast_1d(model.base.generation_config.eos_token_id or []).tolist()}
    marked = isinstance(last := prompts[0].segments[-1], Text) and last.ids[-1] == specials.eot
    options: dict[str, Any] = {
        "do_sample": False,
        "eos_token_id": [int(token) for token in stops],
        "max_new_tokens": max_new_tokens,
        "boundaries": marked,
    }
    plain = _say(model, prompts, None, None, batch, options)
    lengths = [prompt.blocks[-1] for prompt in prompts]
    aligned = _align(plain.thoughts, lengths)
    found = []
    for kind in kinds:
        new = _in_place(plain.thoughts, replaced(aligned, kind, seed=seed), lengths)
        said = _say(model, prompts, new, None, batch, options)
        changed = _share(a != b for a, b in zip(plain.tokens, said.tokens, strict=True))
        found.append(Swap(kind, block, len(prompts), changed))
    return found


def cut(sample: Sample, block: int, specials: Specials) -> Sample:
    """The sample up to the end of a block, its <eot> included: a prompt for the step after it."""
    kept: list[Segment] = []
    seen = -1
    for segment in sample.segments:
        if seen == block:
            if isinstance(segment, Text) and segment.ids[0] == specials.eot:
                kept.append(Text((specials.eot,), False))
            break
        kept.append(segment)
        seen += isinstance(segment, Latent)
    return Sample(tuple(kept))


def _align(thoughts: Thoughts, lengths: Sequence[int]) -> Thoughts:
    """The last lengths[r] thoughts of each row from column 0 on; the last one fills up."""
    n = torch.tensor(lengths, device=thoughts.there.device)[:, None]
    steps = torch.arange(max(lengths), device=n.device)[None]
    places = thoughts.counts[:, None] - n + torch.minimum(steps, n - 1)
    rows = torch.arange(len(n), device=n.device)[:, None]
    return Thoughts(thoughts.vectors[rows, places], torch.ones_like(places, dtype=torch.bool))


def _in_place(own: Thoughts, new: Thoughts, lengths: Sequence[int]) -> Thoughts:
    """The inverse of `_align`: `new` as the last lengths[r] thoughts of each row, no others."""
    vectors, there = own.vectors.clone(), torch.zeros_like(own.there)
    for r, (count, n) in enumerate(zip(own.counts.tolist(), lengths, strict=True)):
        vectors[r, count - n : count] = new.vectors[r, :n]
        there[r, count - n : count] = new.there[r, :n]
    return Thoughts(vectors, there)
