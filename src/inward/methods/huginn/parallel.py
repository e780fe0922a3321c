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

Two ways differ in what becomes of the places behind a guess that has changed:

    free     they keep their states and go on with the new input (the paper). All recurrences share
             a cache slot, since places of any depth look at each other. A place is done when the
             halting rule says so, by default that its state moved by less than 3 %, or at
             max_steps. The text is not that of sequential decoding; it comes close where states
             forget where they started, and is equal where they have converged (tested).
    exact    they are dropped, and begin again from the first place. Each recurrence has its own
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

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inward.common import halting
from inward.common.halting import DepthView, Seen
from inward.common.requests import Prompts
from inward.common.sampling import Sampling, check_logits
from inward.methods.huginn.asked import check_wave
from inward.methods.huginn.context import Context
from inward.methods.huginn.costs import Took
from inward.methods.huginn.generate import OnToken, finish
from inward.methods.huginn.loop import HuginnLoop
from inward.methods.huginn.sharing import Sharing
from inward.methods.huginn.texts import (
    HuginnGenerated,
    HuginnText,
    Start,
    first_states,
    generated,
    model_prompts,
    plans,
    texts_of,
)
from inward.methods.huginn.think import Thought, by_rule, context_at

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM

NOTHING = Took(0, 0)


def generate_in_parallel(
    model: HuginnForCausalLM,
    input_ids: Prompts,
    attention_mask: Tensor | None = None,
    *,
    exact: bool = False,
    inner_steps: int = 1,
    max_wave: int = 128,
    max_new_tokens: int = 64,
    max_steps: int | None = None,
    halt: str | halting.Rule | None = None,
    sharing: str | Sharing | None = None,
    start: Start = "noise",
    sampling: Sampling | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    state_seed: int | Sequence[int] = 0,
    trace: bool | Collection[str] = False,
    on_token: OnToken | None = None,
) -> HuginnGenerated:
    """Continue prompts with a wave of places; other arguments as in `generate`.

    Args:
        exact: see the top of this file.
        inner_steps: recurrences a turn.
        max_wave: places of a text in work at once.
        max_steps: recurrences of a prompt, and the most that a place gets with one input.
        halt: when a place is done, asked once a turn. Default: "latent"; the exact way takes none.
        sharing: default "shared"; exact "deepest", and no other.
    Returns:
        steps: recurrences of the place that predicted each token. meta: "changed", guesses that
        were replaced, and "wave", places per turn and text.
    Raises:
        ValueError: bad prompts or options, before any work.
    """
    prompts = model_prompts(model, input_ids, attention_mask)
    chosen = plans(
        model,
        len(prompts),
        max_new_tokens=max_new_tokens,
        max_steps=max_steps,
        halt=halt if halt is not None else "never" if exact else "latent",
        halt_in_prompt=False,
        sharing=sharing if sharing is not None else "deepest" if exact else "shared",
        start=start,
        sampling=sampling,
        eos_token_id=eos_token_id,
        state_seed=state_seed,
        trace=trace,
    )
    check_wave(chosen[0], exact, inner_steps, max_wave)
    texts, num = texts_of(chosen, prompts), len(prompts)
    for text in texts:
        text.own = {"max_wave": max_wave}
    sizes: dict[str, Any] = {"batch_size": num, "in_flight": num}
    waves = Waves(model, chosen[0].sharing, exact=exact, inner_steps=inner_steps, **sizes)
    finish(waves, texts, on_token)
    changed, places, turns = (
        sum(text.facts.get(name, 0) for text in texts) for name in ("changed", "places", "turns")
    )
    meta = {"changed": float(changed), "wave": places / max(1, turns)}
    return generated(texts, waves.passes, meta)


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
    """The places of one text in work, in order; the first holds the last token said.

    row: of the cache."""

    text: HuginnText
    row: int
    places: list[_Place] = field(default_factory=list)

    def prefix(self, i: int) -> list[int]:
        """All tokens up to the input of place i."""
        return self.text.ids[:-1] + [place.token for place in self.places[: i + 1]]


class Waves(HuginnLoop):
    """Turns of all texts together; row i of the cache belongs to seat i."""

    def __init__(
        self,
        model: HuginnForCausalLM,
        sharing: Sharing,
        *,
        exact: bool,
        inner_steps: int,
        **sizes: Any,
    ):
        self.free, self.inner_steps = not exact, inner_steps
        super().__init__(model, sharing, **sizes)

    def _furnish(self) -> None:
        super()._furnish()
        self.waves: dict[int, _Wave] = {}  # by seat

    def _columns(self, text: HuginnText) -> int:
        return min(len(text.prompt) + text.plan.max_new_tokens, text.plan.limit)

    def _seat(self, seat: int, text: HuginnText, thought: Thought) -> None:
        """The prompt has said the first token; that begins the wave."""
        self.waves[seat] = _Wave(text, seat, [_Place(text.tokens[-1], len(text.prompt))])

    def _leave(self, seat: int) -> None:
        del self.waves[seat]

    def _turn(self) -> None:
        waves = list(self.waves.values())
        for first in range(0, len(waves), self.batch_size):
            self._advance(waves[first : first + self.batch_size])

    def _advance(self, waves: list[_Wave]) -> None:
        """Steps 1 to 5."""
        pairs = [(wave, place) for wave in waves for place in wave.places]
        rows = self.rows([wave.row for wave, _ in pairs])
        columns = torch.tensor([place.position for _, place in pairs])
        context = context_at(self.model, self.cache, rows, columns)
        e = self._prelude(pairs, context)  # 1
        view = self._refine(pairs, e, context)  # 2, 3
        done = self._verdict(pairs, view)
        for i, (wave, place) in enumerate(pairs):
            place.done = wave.text.enough(place.since) or done[i]
            place.logits, place.looks = view.logits[i], place.looks + 1
            place.held = int(view.stable_for[i])
        first = 0
        for wave in waves:
            num = len(wave.places)
            logits = view.logits[first : first + num]
            wave.text.count(turns=1, places=num)
            self._guess(wave, logits)
            self._freeze(wave, logits)  # 4
            self._extend(wave)  # 5
            first += num
            if self.end_if_stopped(wave.row):
                del self.waves[wave.row]

    def _verdict(self, pairs: list[tuple[_Wave, _Place]], view: DepthView) -> list[bool]:
        """Which places are done by the rules of their texts."""
        done, texts = [False] * len(pairs), [wave.text for wave, _ in pairs]
        if self.free:
            for group in by_rule(texts, range(len(pairs))):
                part = view if len(group) == len(pairs) else _part(view, group)
                found = halting.verdict(texts[group[0]].plan.rule, part).tolist()
                for i, ruled in zip(group, found, strict=True):
                    done[i] = ruled
        return done

    def _prelude(self, pairs: list[tuple[_Wave, _Place]], context: Context) -> Tensor:
        """e (n, 1, d). In each wave the places from the first new input on are embedded (again):
        the prelude, too, looks at the places before."""
        index = []
        for i, (wave, place) in enumerate(pairs):
            if place.e is None or (index and pairs[index[-1]][0] is wave):
                index.append(i)
        if index:
            some = torch.tensor(index, device=self.device)
            part = context.select(some, len(pairs))
            tokens = torch.tensor([[pairs[i][1].token] for i in index], device=self.device)
            x = self.model.transformer.wte(tokens)
            for p, block in enumerate(self.model.transformer.prelude):
                x = block(x, part, p)
            cold = first_states(self.model, [pairs[i][0].text for i in index], x, part.positions)
            for i, e_i, s_i in zip(index, x, cold, strict=True):
                wave, place = pairs[i]
                place.e = e_i
                place.s = s_i if place.s is None else place.s
                wave.text.spend(0, self.costs.prelude(place.position), on="words")
        return torch.stack([place.e for _, place in pairs if place.e is not None])

    def _refine(self, pairs: list[tuple[_Wave, _Place]], e: Tensor, context: Context) -> DepthView:
        """`inner_steps` recurrences of all places, and the view of the last."""
        device = self.device
        s = before = torch.stack([place.s for _, place in pairs if place.s is not None])
        steps = torch.tensor([place.steps for _, place in pairs], device=device)
        for i in range(self.inner_steps):
            before, s = s, self.model.iterate(s, e, context, recurrence=steps + i)
        self.passes += self.inner_steps
        for text in {id(wave): wave.text for wave, _ in pairs}.values():
            text.spend(self.inner_steps, NOTHING, on="thinking")
        for (wave, place), s_i in zip(pairs, s, strict=True):
            place.s, place.steps = s_i, place.steps + self.inner_steps
            place.since += self.inner_steps
            core, read = self.costs.core(place.position), self.costs.read_out(place.position)
            wave.text.spend(0, core, self.inner_steps, on="thinking")
            wave.text.spend(0, read, on="thinking")
        first = [len(wave.text.prompt) for wave, _ in pairs]
        index = [place.position - n + 1 for n, (_, place) in zip(first, pairs, strict=True)]
        return DepthView(
            step=steps + self.inner_steps,
            index=torch.tensor(index, device=device),
            text=torch.tensor([wave.text.number for wave, _ in pairs], device=device),
            state=s,
            before=before,
            read_out=lambda: self.model.read_out(s, context, logits_to_keep=1)[1][:, -1],
            seen=self._seen(pairs),
            rows=torch.arange(len(pairs), device=device),
        )

    def _seen(self, pairs: list[tuple[_Wave, _Place]]) -> Seen:
        """What the read-outs before left, as rules want it."""
        seen = Seen(len(pairs), self.model.config.vocab_size, self.device)
        for i, (_, place) in enumerate(pairs):
            if place.logits is not None and place.guess is not None:
                seen.logits[i] = place.logits
                seen.top[i] = place.logits.argmax()
                seen.looks[i], seen.stable_for[i] = place.looks, place.held
        return seen

    def _guess(self, wave: _Wave, logits: Tensor) -> None:
        """The guess of each place becomes the input of the next, see the top of the file."""
        sampler = wave.text.sampler
        first = wave.places[0].position - len(wave.text.prompt) + 2
        check_logits(logits, range(first, first + len(logits)))
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
            wave.text.count(changed=1)
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
            text.say(place.guess, place.steps, logits[i])
            num += 1
        frozen, wave.places = wave.places[:num], wave.places[num:]
        if not frozen or text.stopped:
            return
        row = self.rows([wave.row])
        for place in frozen:
            at = context_at(self.model, self.cache, row, torch.tensor([place.position])).place
            assert at is not None
            self.cache.commit(at, place.steps)
        if not wave.places:
            wave.places = [_Place(text.tokens[-1], text.length - 1)]

    def _extend(self, wave: _Wave) -> None:
        """A new place behind the last, unless the text would end there."""
        text, last = wave.text, wave.places[-1] if wave.places else None
        if text.stopped or last is None or last.guess is None or last.guess in text.plan.ends:
            return
        position = last.position + 1
        said = position - len(text.prompt) + 1  # tokens of the text if its guess stands
        full = len(wave.places) >= text.own.get("max_wave", 128) or position + 1 >= text.plan.limit
        if not full and said < text.plan.max_new_tokens:
            wave.places.append(_Place(last.guess, position))


def _part(view: DepthView, chosen: Sequence[int]) -> DepthView:
    """The view of some of the rows."""
    index = torch.tensor(chosen, device=view.step.device)
    names = ("step", "index", "text", "state", "before", "rows")
    rows: dict[str, Any] = {name: getattr(view, name)[index] for name in names}
    return replace(view, **rows, read_out=lambda: view.logits[index])
