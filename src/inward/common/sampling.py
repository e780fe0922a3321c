"""Logits to tokens, and the tests that accept or reject drafted tokens without changing the text.

A draft is a guess at tokens that the model has not produced yet. A rule looks at the model's own
distribution p in each guessed place and says how many guesses stand and which token follows them.
Whatever the guesses are worth, the text must come out distributed as if nobody had guessed.

    greedy      token = argmax p; a guess stands if it is that token
    match       token ~ p; a guess stands if it is that token            P(stands) = p(guess)
    rejection   guess ~ q stands with probability min(1, p/q), else token ~ (p - q)+
                (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1)   P(stands) = sum min(p, q)
    gumbel      token = argmax(log p + G), guess = argmax(log q + G), with the same Gumbel noise G
                in the same place: as match, but guess and token lean the same way

What is unusual: every random number belongs to a *place in the text*, not to a moment in time.
Under match and gumbel the text is therefore a function of the seed alone: drafting, block sizes and
batching cannot change a single token of it (up to rounding), exactly as in greedy decoding. Under
rejection only its distribution is fixed, because which token replaces a refused guess depends on q.
Noise of one place may be drawn again when that place is drafted again: everything that happened
before is independent of it, since a place is judged only after all places before it are final.

Processors (repetition penalty, n-gram bans, temperature, top-k) are those of transformers. They see
the prefix of each place, guesses before it included, one place at a time and only up to the first
rejection: as many calls as tokens come out, which is what plain decoding pays.

Shapes: V vocabulary, m places. Logits are (m, V), distributions (V,) float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inward.common.generation import ACTS, OF_CALLS, OF_PROMPTS, check_fields, processors_of

Rule = Literal["greedy", "match", "rejection", "gumbel"]

Processor = Callable[[Any, Any], Any]
"""(1, length) ids and (1, V) scores -> (1, V) scores: transformers' LogitsProcessor, or any
function of these two arguments alone"""

Law = Tensor | None
"""(V,) distribution that a guess was drawn from; None: it was not drawn (all mass on the guess)"""

# Streams of random numbers of one place.
_TOKEN, _ACCEPT, _DRAFT = range(3)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    rule: see the top of this file. The other fields change p before the rule sees it.
    processors: applied first, in order; then temperature, top-k (0: off), top-p (1: off).
    seed: row b of a batch draws from seed + b, so it says what it would say alone with that seed.

    Raises:
        ValueError: a field out of its range, or sampling options beside the greedy rule.
    """

    rule: Rule = "greedy"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    processors: tuple[Processor, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule is {self.rule!r}; there are {', '.join(get_args(Rule))}")
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature is {self.temperature}, must be positive and finite; "
                "for the likeliest token use rule='greedy'"
            )
        if self.top_k < 0 or not 0.0 < self.top_p <= 1.0:
            raise ValueError(
                f"top_k is {self.top_k} and top_p {self.top_p}; they must be >= 0 (0: off) and in "
                "(0, 1] (1: off)"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, must be 0 or more")
        changed = (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0)
        if self.rule == "greedy" and changed:
            raise ValueError(
                "greedy decoding has no temperature, top_k or top_p; choose rule='gumbel', "
                "'match' or 'rejection' to sample"
            )

    @property
    def chain(self) -> tuple[Processor, ...]:
        """Everything that is applied to the scores of a place, in order."""
        steps: list[Processor] = list(self.processors)
        if self.temperature != 1.0:
            steps.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            steps.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            steps.append(TopPLogitsWarper(float(self.top_p)))
        return tuple(steps)


def sampling_of(
    config: GenerationConfig | None,
    seed: int = 0,
    *,
    rule: Rule = "gumbel",
    refuse: Sequence[str] = (),
    prompt: Sequence[int] | None = None,
    **facts: Any,
) -> Sampling:
    """How a generation config of transformers draws tokens, by transformers' own processors.

    One difference: a field that nobody set is off (transformers' sampling would still cut to the
    50 likeliest tokens).

    Args:
        config: None: greedy.
        rule: if it samples.
        refuse: further fields that the caller does not honour.
        prompt: the tokens that a text begins with; None: fields that count from its end, or read
            it, are refused.
        facts: of `inward.common.generation.processors_of`.
    Raises:
        ValueError: it asks for a search over several texts, or for what is not done here; build a
            `Sampling` with processors instead.
    """
    if config is None:
        return Sampling(seed=seed)
    unknown = {*OF_CALLS, *refuse} | (set(OF_PROMPTS) if prompt is None else set())
    # a habit of files, which say how much else by `max_new_tokens`
    keeps = (ACTS - unknown) | {"max_length", "bos_token_id"}
    check_fields(config, own=config, keeps=keeps)
    first, last = processors_of(config, prompt or (), **facts)
    return Sampling(rule if config.do_sample else "greedy", processors=(*first, *last), seed=seed)


# --------------------------------------------------------------------------------------------------
# Numbers that nothing can be drawn from


class NotFiniteError(ValueError, FloatingPointError):
    """NaN where a model or a processor should have said how likely something is, or nothing left
    to say. An argmax would take it for an answer."""


def check_logits(logits: Tensor, steps: Sequence[int], name: str = "logits") -> None:
    """Refuse logits (m, V) of which a row is NaN anywhere, or nowhere finite.

    steps: of each row, what the message calls it.

    Raises:
        NotFiniteError: the step, the tensor and what is wrong with it.
    """
    top = logits.amax(-1)  # NaN if one of them is
    if bool(torch.isfinite(top).all()):
        return
    row = int((~torch.isfinite(top)).nonzero()[0, 0])
    raise NotFiniteError(
        f"step {steps[row]}: the {name} are {_wrong(float(top[row]))}: the model's weights or what "
        f"it was given are damaged, or {logits.dtype} overflows in it; find the module with "
        "torch.autograd.set_detect_anomaly or a forward hook, or load the model in float32"
    )


def _wrong(top: float) -> str:
    return "NaN" if math.isnan(top) else "-inf everywhere" if top < 0 else "inf"


def _check_scores(scores: Any, num: int, place: int, process: object) -> None:
    """Refuse what a processor has made of (1, num) scores if it cannot be drawn from."""
    name = getattr(process, "__name__", type(process).__name__)
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if shape != (1, num):
        raise ValueError(
            f"token {place}: the processor {name} returned {shape}, must be scores (1, {num})"
        )
    top = float(scores.amax())
    if math.isnan(top) or top == -math.inf:
        wrong = "NaN scores" if math.isnan(top) else "no token: all scores are -inf"
        raise NotFiniteError(
            f"token {place}: the processor {name} left {wrong}; it must leave a token to say"
        )


@dataclass(eq=False)
class Guarded:
    """A processor that fails for itself alone: what it raises, or scores that nothing can be drawn
    from, is kept in `wrong`, and the scores go on as they came. Whoever put it there ends the text.
    """

    process: Processor
    wrong: Exception | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(1, length) ids and (1, V) scores -> (1, V) scores."""
        if self.wrong is not None:
            return scores
        try:
            found = self.process(input_ids, scores.clone())
            _check_scores(found, scores.shape[-1], input_ids.shape[-1], self.process)
        except Exception as error:  # noqa: BLE001 - a user's function
            self.wrong = error
            return scores
        return found


def guarded(sampling: Sampling | None) -> tuple[Sampling | None, tuple[Guarded, ...]]:
    """The same with its processors guarded, and the guards."""
    if sampling is None or not sampling.processors:
        return sampling, ()
    guards = tuple(map(Guarded, sampling.processors))
    return replace(sampling, processors=guards), guards


@dataclass(frozen=True)
class Verdict:
    """What a row of guesses came to: the first `accepted` of them stand, `token` follows them."""

    accepted: int
    token: int


class Noise:
    """Random numbers of the places of one text: the same place gives the same numbers, asked once
    or ten times, in any order (Philox counts instead of remembering)."""

    def __init__(self, seed: int):
        self.seed = seed

    def _at(self, place: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, place, stream, 0]))

    def uniform(self, place: int, stream: int) -> float:
        """One number in [0, 1)."""
        return self._at(place, stream).random()

    def gumbel(self, place: int, num: int) -> Tensor:
        """(num,) float64 of the standard Gumbel distribution, -log of an exponential."""
        waiting = self._at(place, _TOKEN).standard_exponential(num)
        return -torch.from_numpy(waiting).clamp_(min=1e-300).log_()


# --------------------------------------------------------------------------------------------------
# One place


def distribution(scores: Tensor) -> Tensor:
    """(V,) scores, -inf where forbidden -> (V,) float64 probabilities."""
    p = scores.double().softmax(dim=-1)
    if math.isnan(float(p[0])):  # then all are
        raise NotFiniteError(
            f"scores are {_wrong(float(scores.amax()))}, which is no probability; to force a token "
            "set the others to -inf"
        )
    return p


def inverse_cdf(p: Tensor, u: float) -> int:
    """The token at the share u in [0, 1) of the mass of p (V,), which need not sum to 1. Never one
    of mass 0."""
    total = p.cumsum(0)
    return int(torch.searchsorted(total, u * total[-1], right=True).clamp(max=len(p) - 1))


def race(scores: Tensor, gumbel: Tensor) -> int:
    """argmax(scores + G): distributed as softmax(scores)."""
    return int((scores.double() + gumbel.to(scores.device)).argmax())


def accepts(p: Tensor, guess: int, law: Law, u: float) -> bool:
    """The test of speculative sampling: true with probability min(1, p/q) at the guess."""
    q = 1.0 if law is None else float(law[guess])
    return u * q < float(p[guess])


def residual(p: Tensor, guess: int, law: Law) -> Tensor:
    """(p - q)+, what a refused guess leaves to draw from, not normalised; p itself if rounding
    leaves nothing."""
    rest = p.clone()
    if law is None:
        rest[guess] = 0.0
    else:
        rest = (rest - law).clamp_(min=0.0)
    return rest if float(rest.sum()) > 0.0 else p


# --------------------------------------------------------------------------------------------------
# A row of places


def argmaxes(logits: Tensor, banned: Sequence[int] = ()) -> list[int]:
    """The likeliest token of each of the m places of (m, V) logits, `banned` left out. The logits
    are written to."""
    if banned:
        logits[:, list(banned)] = -torch.inf
    return logits.argmax(dim=-1).tolist()


def matched(choices: Sequence[int], guesses: Sequence[int]) -> Verdict:
    """The verdict when the token of each place (one more than guesses) is already known."""
    assert len(choices) == len(guesses) + 1, f"{len(choices)} places for {len(guesses)} guesses"
    for place, guess in enumerate(guesses):
        if choices[place] != guess:
            return Verdict(place, choices[place])
    return Verdict(len(guesses), choices[-1])


class Sampler:
    """Chooses and judges the tokens of one text.

    Args:
        sampling: the rule and what changes p.
        row: the text's place in its batch.
        banned: tokens that are never produced nor drafted (the mask token).
    """

    def __init__(self, sampling: Sampling, row: int = 0, *, banned: Sequence[int] = ()):
        self.rule = sampling.rule
        self.chain = sampling.chain
        self.noise = Noise(sampling.seed + row)
        self.banned = list(banned)

    @property
    def is_argmax(self) -> bool:
        """True if `argmaxes` and `matched` say the same as `verify` and `draft`, for many rows at
        once."""
        return self.rule == "greedy" and not self.chain

    def scores(self, prefix: Sequence[int], logits: Tensor) -> Tensor:
        """(V,) logits of the place after `prefix` -> (V,) float32 scores that the rule works on.

        Raises:
            NotFiniteError: a processor left NaN, or no token. ValueError: another shape.
        """
        scores = logits.to(torch.float32, copy=True)
        scores[self.banned] = -torch.inf
        if not self.chain:
            return scores
        ids = torch.tensor([prefix], dtype=torch.long, device=logits.device)
        scores = scores[None]
        for process in self.chain:
            scores = process(ids, scores)
            _check_scores(scores, len(logits), len(prefix), process)
        return scores[0]

    def verify(
        self,
        prefix: Sequence[int],
        logits: Tensor,
        guesses: Sequence[int] = (),
        laws: Sequence[Law] = (),
    ) -> Verdict:
        """Judge guesses left to right, stop at the first that falls.

        Args:
            prefix: all tokens before the first place.
            logits: (len(guesses) + 1, V), the model's, each given the guesses before it.
            guesses, laws: what was drafted and from which distributions (rule "rejection").
        """
        assert len(logits) == len(guesses) + 1, f"{len(logits)} places, {len(guesses)} guesses"
        prefix = list(prefix)
        for place, guess in enumerate(guesses):
            scores = self.scores(prefix, logits[place])
            token = self._judge(scores, len(prefix), guess, laws[place] if laws else None)
            if token != guess:
                return Verdict(place, token)
            prefix.append(guess)
        return Verdict(len(guesses), self.draw(self.scores(prefix, logits[-1]), len(prefix)))

    def _judge(self, scores: Tensor, place: int, guess: int, law: Law) -> int:
        """The token of a place for which there is a guess."""
        if self.rule != "rejection":
            return self.draw(scores, place)
        p = distribution(scores)
        if accepts(p, guess, law, self.noise.uniform(place, _ACCEPT)):
            return guess
        return inverse_cdf(residual(p, guess, law), self.noise.uniform(place, _TOKEN))

    def draw(self, scores: Tensor, place: int) -> int:
        """A token of the place's own distribution."""
        if self.rule == "greedy":
            return int(scores.argmax())
        if self.rule == "gumbel":
            return race(scores, self.noise.gumbel(place, len(scores)))
        return inverse_cdf(distribution(scores), self.noise.uniform(place, _TOKEN))

    def draft(self, prefix: Sequence[int], logits: Tensor) -> tuple[list[int], list[Law]]:
        """Guesses for the m places after `prefix` from a drafter's (m, V) logits, and the laws
        they were drawn from. Processors see the guesses before, as they will when judging."""
        prefix = list(prefix)
        begin = len(prefix)
        laws: list[Law] = []
        for place_logits in logits:
            scores, place = self.scores(prefix, place_logits), len(prefix)
            if self.rule == "gumbel":
                prefix.append(race(scores, self.noise.gumbel(place, len(scores))))
            elif self.rule == "rejection":
                q = distribution(scores)
                prefix.append(inverse_cdf(q, self.noise.uniform(place, _DRAFT)))
                laws.append(q)
            else:
                prefix.append(int(scores.argmax()))
        return prefix[begin:], laws
