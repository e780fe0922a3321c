"""Several tries at one prompt, whose answers vote."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inward.common.thinking import run, stood
from inward.data.thoughts.segments import Sample
from inward.methods.coconut.calls import call_of
from inward.methods.coconut.generate import begun

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut


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
    let the answers vote. The option `votes` of a request does the same.

    Args:
        answer: from the tokens of a try to what is counted; None: all tokens.
        options: of `generate`.

    Raises:
        ValueError: bad options; or nothing differs between the tries.
    """
    ballot = {} if num_samples == 1 else {"ballot": answer}
    call = call_of(model, prompts, noise=noise, votes=num_samples, **ballot, **options)
    work = begun(model, call.requests)
    for _ in run(work):
        pass
    found = []
    for number in range(len(call.requests)):
        made = stood(work.result(number))
        facts = made.details
        if num_samples == 1:
            only = list(made.tokens)
            own = (answer or tuple)(only)
            found.append(Vote(own, 1.0, [own], [only]))
        else:
            found.append(Vote(facts["winner"], facts["share"], facts["ballots"], facts["tries"]))
    return found
