"""Many tokens of a text refine at once: the parallel sampler of recurrent-depth models ("diffusion
forcing"), after arXiv 2510.14961, batched.

Instead of finishing the recurrences of one token before the next begins, a *wave* of places is in
work. One turn of a text:

1. every place of the wave goes through the prelude again if a token in the wave has changed;
2. every place gets `inner_steps` recurrences (1: a new token per recurrence);
3. every place is read out: its guess at the token that follows it, the input of the next place;
4. the places at the front that are done, one after the other without a gap, are frozen: the tokens
   that they predict are said;
5. behind the last place a new one begins, with the guess of the one before it and a cold state.

Two modes differ in what becomes of the places behind a guess that has changed:

    "free"    they keep their states and go on with the new input (the paper). All recurrences share
              a cache slot, since places of any depth look at each other. A place is done when the
              exit rule says so, by default that its state moved by less than 3 %, or at max_steps.
              The text is not that of sequential decoding; it comes close where states forget where
              they started, and is equal where they have converged (tested).
    "exact"   they are dropped, and begin again from the first place. Each recurrence has its own
              slot, a place is done at max_steps: then a place's states are those of sequential
              decoding at that depth, and so is the text, token for token, sampled ones included.

Where the released code differs: it freezes everything up to the right-most converged place, even
with gaps; it handles one text; it mixes embeddings of successive turns (eta = 0.1), adds noise to
states (beta; 0 in the paper's best row) and can begin several places a turn, all of which are left
out here. Sampling noise belongs to the place here, so a place keeps its token once its logits have
settled.

Sequential passes of the core are what this saves; the work grows, because places think again.

Shape letters: n places in work, of all texts together; d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from inward.common import halting
from inward.common.halting import DepthView, Seen
from inward.common.requests import Prompts
from inward.common.sampling import Sampling
from inward.methods.huginn.cache import DeepestAvailable, PerDepth, Policy, RecurrentCache
from inward.methods.huginn.context import Context
from inward.methods.huginn.generate import context_at, inference, think
from inward.methods.huginn.texts import (
    Detail,
    HuginnGenerated,
    HuginnPlan,
    HuginnText,
    OnToken,
    Start,
    Work,
    choose,
    generated,
    model_prompts,
    plan,
    texts_of,
)

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM

Mode = Literal["free", "exact"]


def generate_in_parallel(
    model: HuginnForCausalLM,
    input_ids: Prompts,
    attention_mask: Tensor | None = None,
    *,
    mode: Mode = "free",
    inner_steps: int = 1,
    max_wave: int = 128,
    max_new_tokens: int = 64,
    max_steps: int | None = None,
    exit: str | halting.Rule | None = None,
    policy: str | Policy | None = None,
    start: Start = "noise",
    sampling: Sampling | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    state_seed: int | Sequence[int] = 0,
    trace: Detail | None = None,
    on_token: OnToken | None = None,
) -> HuginnGenerated:
    """Continue prompts with a wave of places; other arguments as in `generate`.

    Args:
        mode: "free" or "exact", see the top of this file.
        inner_steps: recurrences a turn.
        max_wave: places of a text in work at once.
        max_steps: recurrences of a prompt, and the most that a place gets with one input.
        exit: when a place is done, asked once a turn. Default: "latent" in free mode; exact mode
            takes none.
        policy: default "shared" in free mode, "deepest" in exact mode, which takes no other.
    Returns:
        steps: recurrences of the place that predicted each token. meta: "changed", guesses that
        were replaced, and "wave", places per turn and text.
    Raises:
        ValueError: bad prompts or options, before any work.
    """
    prompts = model_prompts(model, input_ids, attention_mask)
    _check(mode, inner_steps, max_wave, exit)
    free = mode == "free"
    chosen = plan(
        model,
        len(prompts),
        max_new_tokens=max_new_tokens,
        max_steps=max_steps,
        exit=exit if exit is not None else "latent" if free else "never",
        exit_in_prompt=False,
        policy=policy if policy is not None else "shared" if free else "deepest",
        start=start,
        sampling=sampling,
        eos_token_id=eos_token_id,
        state_seed=state_seed,
        trace=trace,
        on_token=on_token,
    )
    if (chosen.policy in (PerDepth(), DeepestAvailable())) == free:
        raise ValueError(
            f"the {mode} mode cannot work with {chosen.policy}: in free mode places of any depth "
            "share slots ('shared'), in exact mode none do ('deepest')"
        )
    if chosen.max_steps % inner_steps:
        raise ValueError(
            f"max_steps {chosen.max_steps} is no multiple of inner_steps {inner_steps}, the "
            "recurrences that a turn adds"
        )
    texts = texts_of(chosen, prompts)
    waves = _Waves(model, chosen, texts, free, inner_steps, max_wave)
    with inference(model):
        waves.run()
    return generated(chosen, texts, waves.passes, waves.meta())


def _check(mode: str, inner_steps: int, max_wave: int, exit: object) -> None:
    if mode not in ("free", "exact"):
        raise ValueError(f"mode is {mode!r}; there are free, exact")
    for name, value in (("inner_steps", inner_steps), ("max_wave", max_wave)):
        if value < 1:
            raise ValueError(f"{name} is {value}, must be at least 1")
    if mode == "exact" and exit not in (None, "never"):
        raise ValueError(
            f"exit is {exit!r}: the exact mode equals sequential decoding at max_steps and takes "
            "none; use mode='free'"
        )


@dataclass
class _Place:
    """A place in work: its input token, that embedded (1, d), its state (1, d), what it guesses.

    steps: recurrences it has had;  since: those with its present input;  logits: (V,) of its last
    read-out;  looks, held: how many there were, and how many in a row gave the same token.
    """

    token: int
    position: int
    e: Tensor | None = None
    s: Tensor | None = None
    steps: int = 0
    since: int = 0
    guess: int | None = None
    done: bool = False
    logits: Tensor | None = None
    looks: int = 0
    held: int = 0


@dataclass
class _Wave:
    """The places of one text in work, in order; the first holds the last token said."""

    text: HuginnText
    places: list[_Place] = field(default_factory=list)

    def prefix(self, i: int) -> list[int]:
        """All tokens up to the input of place i."""
        return self.text.ids[:-1] + [place.token for place in self.places[: i + 1]]


class _Waves:
    """Turns of all texts together; row i of the cache belongs to text i."""

    def __init__(
        self,
        model: HuginnForCausalLM,
        chosen: HuginnPlan,
        texts: Sequence[HuginnText],
        free: bool,
        inner_steps: int,
        max_wave: int,
    ):
        self.model, self.chosen, self.texts, self.free = model, chosen, texts, free
        self.inner_steps, self.max_wave = inner_steps, max_wave
        self.work = Work(model.config)
        longest = max(len(text.prompt) for text in texts) + chosen.max_new_tokens
        self.cache = RecurrentCache(
            chosen.policy,
            capacity=min(longest, chosen.limit),
            num_recurrences=chosen.max_steps,
            num_rows=len(texts),
        )
        self.passes = self.changed = self.turns = self.places = 0

    def meta(self) -> dict[str, float]:
        return {"changed": float(self.changed), "wave": self.places / max(1, self.turns)}

    def run(self) -> None:
        """Work until every text has ended."""
        waves = [_Wave(text) for text in self.texts]
        for wave in waves:
            self._prefill(wave)
        while waves := [wave for wave in waves if not wave.text.stopped]:
            self._turn(waves)

    def _prefill(self, wave: _Wave) -> None:
        """The prompt thinks to full depth and says the first token; that begins the wave."""
        model, text = self.model, wave.text
        tokens = torch.tensor([text.prompt], device=model.device)
        e, context = model.embed(tokens, cache=self.cache, rows=torch.tensor([text.number]))
        seen = Seen(1, model.config.vocab_size, model.device)
        thought = think(model, self.chosen, text, e, context, None, seen, self.work)
        self.passes += thought.steps
        (token,) = choose([text], thought.logits[None])
        text.say(self.chosen, token, thought.steps, thought.logits)
        assert context.place is not None
        self.cache.commit(context.place, thought.steps)
        wave.places = [_Place(token, len(text.prompt))]

    def _turn(self, waves: list[_Wave]) -> None:
        """Steps 1 to 5."""
        pairs = [(wave, place) for wave in waves for place in wave.places]
        rows = torch.tensor([wave.text.number for wave, _ in pairs], device=self.model.device)
        columns = torch.tensor([place.position for _, place in pairs])
        context = context_at(self.model, self.cache, rows, columns)
        e = self._prelude(pairs, context)  # 1
        view = self._refine(pairs, rows, e, context)  # 2, 3
        done = halting.verdict(self.chosen.rule, view) if self.free else None
        for i, (_, place) in enumerate(pairs):
            ruled = done is not None and bool(done[i])
            place.done = ruled or place.since >= self.chosen.max_steps
            place.logits, place.looks = view.logits[i], place.looks + 1
            place.held = int(view.stable_for[i])
        first = 0
        for wave in waves:
            num = len(wave.places)
            logits = view.logits[first : first + num]
            self._guess(wave, logits)
            self._freeze(wave, logits)  # 4
            self._extend(wave)  # 5
            first += num
        self.turns += len(waves)
        self.places += len(pairs)

    def _prelude(self, pairs: list[tuple[_Wave, _Place]], context: Context) -> Tensor:
        """e (n, 1, d). In each wave the places from the first new input on are embedded (again):
        the prelude, too, looks at the places before."""
        index = []
        for i, (wave, place) in enumerate(pairs):
            if place.e is None or (index and pairs[index[-1]][0] is wave):
                index.append(i)
        if index:
            some = torch.tensor(index, device=self.model.device)
            part = context.select(some, len(pairs))
            tokens = torch.tensor([[pairs[i][1].token] for i in index], device=self.model.device)
            x = self.model.transformer.wte(tokens)
            for p, block in enumerate(self.model.transformer.prelude):
                x = block(x, part, p)
            seeds = torch.tensor([pairs[i][0].text.state_seed for i in index], device=x.device)
            cold = self.chosen.first_state(self.model, x, part.positions, seeds)
            for i, e_i, s_i in zip(index, x, cold, strict=True):
                wave, place = pairs[i]
                place.e = e_i
                place.s = s_i if place.s is None else place.s
                wave.text.spend(0, self.work.prelude(place.position))
        return torch.stack([place.e for _, place in pairs if place.e is not None])

    def _refine(
        self, pairs: list[tuple[_Wave, _Place]], rows: Tensor, e: Tensor, context: Context
    ) -> DepthView:
        """`inner_steps` recurrences of all places, and the view of the last."""
        device = self.model.device
        s = before = torch.stack([place.s for _, place in pairs if place.s is not None])
        steps = torch.tensor([place.steps for _, place in pairs], device=device)
        for i in range(self.inner_steps):
            before, s = s, self.model.iterate(s, e, context, recurrence=steps + i)
        self.passes += self.inner_steps
        for text in {id(wave): wave.text for wave, _ in pairs}.values():
            text.spend(self.inner_steps, 0)
        for (wave, place), s_i in zip(pairs, s, strict=True):
            place.s, place.steps = s_i, place.steps + self.inner_steps
            place.since += self.inner_steps
            core = self.inner_steps * self.work.core(place.position)
            wave.text.spend(0, core + self.work.read_out(place.position))
        first = [len(wave.text.prompt) for wave, _ in pairs]
        index = [place.position - n + 1 for n, (_, place) in zip(first, pairs, strict=True)]
        return DepthView(
            step=steps + self.inner_steps,
            index=torch.tensor(index, device=device),
            text=rows,
            state=s,
            before=before,
            read_out=lambda: self.model.read_out(s, context, logits_to_keep=1)[1][:, -1],
            seen=self._seen(pairs),
            rows=torch.arange(len(pairs), device=device),
        )

    def _seen(self, pairs: list[tuple[_Wave, _Place]]) -> Seen:
        """What the read-outs before left, as rules want it."""
        seen = Seen(len(pairs), self.model.config.vocab_size, self.model.device)
        for i, (_, place) in enumerate(pairs):
            if place.logits is not None and place.guess is not None:
                seen.logits[i] = place.logits
                seen.top[i] = place.logits.argmax()
                seen.looks[i], seen.stable_for[i] = place.looks, place.held
        return seen

    def _guess(self, wave: _Wave, logits: Tensor) -> None:
        """The guess of each place becomes the input of the next; see the modes."""
        sampler = wave.text.sampler
        argmax = logits.argmax(-1).tolist() if sampler.is_argmax else None
        for i, place in enumerate(wave.places):
            if argmax is not None:
                guess = argmax[i]
            else:
                prefix = wave.prefix(i)
                guess = sampler.draw(sampler.scores(prefix, logits[i]), len(prefix))
            place.guess = guess
            if i + 1 == len(wave.places) or wave.places[i + 1].token == guess:
                continue
            self.changed += 1
            if not self.free:
                del wave.places[i + 1 :]
                return
            following = wave.places[i + 1]
            following.token, following.since, following.done = guess, 0, False
            following.e = None

    def _freeze(self, wave: _Wave, logits: Tensor) -> None:
        """Say the tokens of the places at the front that are done."""
        text, num = wave.text, 0
        for i, place in enumerate(wave.places):
            if not place.done or text.stopped:
                break
            assert place.guess is not None
            text.say(self.chosen, place.guess, place.steps, logits[i])
            num += 1
        frozen, wave.places = wave.places[:num], wave.places[num:]
        if not frozen or text.stopped:
            return
        row = torch.tensor([text.number], device=self.model.device)
        for place in frozen:
            at = context_at(self.model, self.cache, row, torch.tensor([place.position])).place
            assert at is not None
            self.cache.commit(at, place.steps)
        if not wave.places:
            wave.places = [_Place(text.tokens[-1], text.length - 1)]

    def _extend(self, wave: _Wave) -> None:
        """A new place behind the last, unless the text would end there."""
        text, last = wave.text, wave.places[-1] if wave.places else None
        if text.stopped or last is None or last.guess is None or last.guess in self.chosen.ends:
            return
        position = last.position + 1
        said = position - len(text.prompt) + 1  # tokens of the text if its guess stands
        full = len(wave.places) >= self.max_wave or position + 1 >= self.chosen.limit
        if not full and said < self.chosen.max_new_tokens:
            wave.places.append(_Place(last.guess, position))
