"""A call of `generate` for a batch of prompts, read and checked: one request for each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inward.common.clients import Recorded, Recorder, Wishes
from inward.common.requests import end_tokens
from inward.common.thinking import Answer, Request
from inward.data.thoughts.segments import Sample
from inward.methods.coconut.plan import DEFAULTS, BatchEdit, facts_of

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut

MAX_NEW_TOKENS = 128
"""Where neither a call nor the generation config names a number."""


@dataclass(frozen=True)
class Call:
    """requests: one for each answer, those to one prompt side by side. prompts: of each request.
    recorders: of each, if scores are to come back."""

    wishes: Wishes
    requests: list[Request]
    prompts: list[Sample]
    recorders: list[Recorder]

    def recorded(self, answers: Sequence[Answer]) -> list[Recorded]:
        """What the words of each answer were chosen by."""
        found = []
        for prompt, recorder, answer in zip(self.prompts, self.recorders, answers, strict=True):
            begin = len(prompt) - prompt.num_thoughts
            found.append(Recorded.of(recorder, range(begin, begin + len(answer.tokens))))
        return found


def call_of(
    model: Coconut,
    prompts: Sequence[Sample],
    *,
    seed: int = 0,
    trace: bool | Sequence[str] = False,
    logprobs: bool = False,
    **options: Any,
) -> Call:
    """The requests of `generate`.

    Args:
        seed: row r draws with seed + r.
        trace: record what happens; names of what the record shall hold beside it ("lens").
        logprobs: add up the log-probability of each row's words.
        options: fields of transformers' GenerationConfig, or one (`generation_config`; the rest is
            the base's), and the other arguments of transformers' generate, see
            `inward.common.generation`; sampling= instead of what they say about drawing tokens;
            and options of the method (`door.METHOD`).

    Raises:
        ValueError: an option that there is not, or that is not supported.
    """
    if not isinstance(prompts, Sequence) or not all(isinstance(p, Sample) for p in prompts):
        raise ValueError(
            f"the prompts are {str(prompts)[:60]}; give a list of Samples, which "
            "inward.data.thoughts.segments.parse makes of token ids"
        )
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed is {seed!r}, must be a whole number of 0 or more")
    own = {name: options.pop(name) for name in tuple(options) if name in DEFAULTS}
    config = model.base.generation_config
    wishes, unknown = Wishes.read(config, options, tokenizer=model.tokenizer)
    if unknown:
        raise ValueError(
            f"there are no options {sorted(unknown)}; there are fields of transformers' "
            f"GenerationConfig, and {', '.join(DEFAULTS)}"
        )
    votes = own.get("votes", 1)
    if wishes.records and votes != 1:
        raise ValueError(f"{votes} tries vote, and scores are of one text; use votes=1")
    if wishes.drawn is not None:
        seed = wishes.drawn.seed
    rows = [prompt for prompt in prompts for _ in range(wishes.copies)]
    names = None if trace is False else frozenset(() if trace is True else trace)
    edit = own.get("edit")
    call = Call(wishes, [], rows, [Recorder() for _ in rows] if wishes.records else [])
    for r, prompt in enumerate(rows):
        limit = wishes.limit(len(prompt), MAX_NEW_TOKENS)
        assert limit is not None, "there is a default"
        facts = facts_of(model, prompt)
        drawn = wishes.sampling(
            facts.pop("prompt"),
            row=r,
            rule="match",
            limit=limit,
            seed=seed,
            recorder=call.recorders[r] if wishes.records else None,
            **facts,
        )
        request = Request(
            prompt,
            max_new_tokens=limit,
            sampling=drawn,
            seed=seed + r * (votes if isinstance(votes, int) else 1),
            ends=end_tokens(None, wishes.config),
            stop=wishes.stop(facts_of(model, prompt)["prompt"], model.device),
            trace=names,
            logprobs=logprobs,
            own=own if edit is None else {**own, "edit": BatchEdit(edit, r, len(rows))},
        )
        call.requests.append(request)
    return call
