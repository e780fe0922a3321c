"""Several tries at one prompt, whose answers vote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inward.data.thoughts.segments import Sample
from inward.methods.coconut.generate import generate
from inward.methods.coconut.model import Coconut
from inward.methods.coconut.plan import plan


@dataclass(frozen=True)
class Vote:
    """What several tries at one prompt came to.

    answer: the commonest answer; of equally common ones the likeliest.
    share: the part of the tries that gave it.
    answers, tokens: of every try.
    """

    answer: Hashable
    share: float
    answers: list[Hashable]
    tokens: list[list[int]]


def vote(
    model: Coconut,
    prompts: Sequence[Sample],
    *,
    num_samples: int,
    answer: Callable[[list[int]], Hashable] | None = None,
    noise: float = 0.1,
    **options: Any,
) -> list[Vote]:
    """Try each prompt several times with noise on its thoughts (and sampling, if asked for), and
    let the answers vote.

    Args:
        answer: from the tokens of a try to what is counted; None: all tokens.
        options: of `generate`.

    Raises:
        ValueError: bad options; or nothing differs between the tries.
    """
    chosen = plan(model, noise=noise, **options)
    if num_samples < 1 or (num_samples > 1 and not noise and chosen.sampling.rule == "greedy"):
        raise ValueError(
            f"{num_samples} samples with noise {noise} and rule {chosen.sampling.rule!r}: there "
            "must be at least one, and they must differ; use noise > 0 or do_sample=True"
        )
    tries = [prompt for prompt in prompts for _ in range(num_samples)]
    out = generate(model, tries, noise=noise, logprobs=True, **options)
    votes = []
    for p in range(len(prompts)):
        own = range(p * num_samples, (p + 1) * num_samples)
        answers = [(answer or tuple)(out.tokens[r]) for r in own]
        counts = Counter(answers)
        best: dict[Hashable, float] = {}
        for r, given in zip(own, answers, strict=True):
            best[given] = max(best.get(given, -np.inf), out.logprobs[r])
        winner = max(counts, key=lambda given: (counts[given], best[given]))
        tokens = [out.tokens[r] for r in own]
        votes.append(Vote(winner, counts[winner] / num_samples, answers, tokens))
    return votes
