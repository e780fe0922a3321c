"""Self-speculation: Huginn drafts with few recurrences what it then says with all of them
(arXiv 2502.05171, section 6.4), without changing a token and without thinking anything twice.

Plain decoding runs r recurrences for one token after the other. Here, per round,

1. draft: m recurrences of the newest token, read out, take the guess as the next token; G times.
2. think on: all G + 1 tokens together from recurrence m to r, each from the state its draft left.
3. judge: the logits of full depth say which guesses stand, and which token follows them.
4. roll the cache back to what stands.

Why step 2 may go on where step 1 stopped: with a slot for each recurrence, the state of a token
after i recurrences depends on its predecessors' states after at most i, never on deeper ones. The
first m recurrences of a draft *are* those of full depth, as long as the tokens before stand; only
the read-out differs, and its slots are written again in step 2. So a round costs
(G + 1) m + (r - m) passes of the core for up to G + 1 tokens, instead of r for each.

Therefore refused: caches that share slots (a token's early recurrences would depend on how deep its
predecessors went, and in what order), and warm starts (a token's first state would be its
predecessor's last, so nothing of it can be known before that one has finished).

The released code drafts and then verifies from scratch, gives no token beyond the accepted ones and
accepts by a threshold on p; here all rules of `inward.common.sampling` hold, and under greedy,
match and gumbel the text is the one of plain decoding, token for token.

Shape letters: B rows, G guesses, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inward.common.requests import Prompts
from inward.common.sampling import Law, Sampling, Verdict, check_logits, matched
from inward.methods.huginn.asked import check_drafts
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
from inward.methods.huginn.think import Thought, context_at

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM


def generate_speculatively(
    model: HuginnForCausalLM,
    input_ids: Prompts,
    attention_mask: Tensor | None = None,
    *,
    draft_steps: int,
    draft_tokens: int = 4,
    max_new_tokens: int = 64,
    max_steps: int | None = None,
    sharing: str | Sharing = "deepest",
    start: Start = "noise",
    sampling: Sampling | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    state_seed: int | Sequence[int] = 0,
    trace: bool | Collection[str] = False,
    on_token: OnToken | None = None,
) -> HuginnGenerated:
    """Continue prompts at full depth, with guesses; other arguments as in `generate`.

    Args:
        draft_steps: m, recurrences of a draft.
        draft_tokens: G, guesses per round.
        max_steps: r, the full depth.
    Returns:
        as `generate` at the fixed depth r; meta: "accepted", the share of the guesses judged that
        stood, and "rounds".
    Raises:
        ValueError: bad prompts or options, before any work.
    """
    prompts = model_prompts(model, input_ids, attention_mask)
    chosen = plans(
        model,
        len(prompts),
        max_new_tokens=max_new_tokens,
        max_steps=max_steps,
        sharing=sharing,
        start=start,
        sampling=sampling,
        eos_token_id=eos_token_id,
        state_seed=state_seed,
        trace=trace,
    )
    check_drafts(chosen[0], draft_steps, draft_tokens)
    texts = texts_of(chosen, prompts)
    for text in texts:
        text.own = {"draft_steps": draft_steps, "draft_tokens": draft_tokens}
    drafts = Drafts(model, chosen[0].sharing, batch_size=len(texts), in_flight=len(texts))
    finish(drafts, texts, on_token)
    accepted, judged = (sum(t.facts.get(n, 0) for t in texts) for n in ("accepted", "judged"))
    shares = {"accepted": accepted / max(1, judged), "rounds": float(drafts.rounds)}
    return generated(texts, drafts.passes, shares)


class Drafts(HuginnLoop):
    """The rounds; row i of the cache belongs to seat i. A turn is a round of every text.

    Texts with the same m and r go through it together, to the longest of their drafts. How many
    guesses are worth making is each text's own affair (under the rule "rejection" its words depend
    on it): it looks at the first of them only, and pays for these.
    """

    rounds = 0

    def _seat(self, seat: int, text: HuginnText, thought: Thought) -> None:
        pass  # nothing is kept between rounds but the cache

    def _leave(self, seat: int) -> None:
        pass

    def _turn(self) -> None:
        groups: dict[tuple[int, ...], list[int]] = {}
        for seat, text in enumerate(self.texts):
            if text is not None:
                m = text.own["draft_steps"]
                if text.hurried:
                    text.enough(m)  # as deep as a draft, so that what is drafted stands
                shape = m, text.most, text.own["draft_tokens"]
                # a text at the end of its context cannot follow a longer draft
                short = min(text.plan.limit - text.length, text.own["draft_tokens"])
                groups.setdefault((*shape, short), []).append(seat)
        for (m, depth, *_), seats in groups.items():
            for first in range(0, len(seats), self.batch_size):
                _Round(self, seats[first : first + self.batch_size], m, depth).run()
        self.rounds += 1


def _guesses(text: HuginnText) -> int:
    """G, or fewer if the text cannot use so many, or would leave the context."""
    needed = text.plan.max_new_tokens - len(text.tokens) - 1
    room = text.plan.limit - text.length
    return max(0, min(text.own["draft_tokens"], needed, room))


class _Round:
    """Steps 1 to 4 for texts of one m and r = `depth`.

    own: G of each text;  G: the largest, in the batch.
    """

    def __init__(self, loop: Drafts, seats: list[int], m: int, depth: int):
        self.loop, self.model, self.cache, self.costs = loop, loop.model, loop.cache, loop.costs
        self.seats, self.m, self.depth = seats, m, depth
        self.texts = [loop.text(seat) for seat in seats]
        self.own = [_guesses(text) for text in self.texts]
        self.G = max(self.own)
        self.rows = loop.rows(seats)
        self.starts = torch.tensor([text.length - 1 for text in self.texts])
        self.guesses: list[list[int]] = [[] for _ in seats]
        self.laws: list[list[Law]] = [[] for _ in seats]

    def run(self) -> None:
        """All four."""
        e, s = [], []
        for j in range(self.G + 1):  # 1
            e_j, s_j, logits = self._draft(j)
            e.append(e_j)
            s.append(s_j)
            if logits is not None:
                self._guess(logits)
        logits = self._think_on(torch.cat(e, 1), torch.cat(s, 1))  # 2
        judged = [self._judge(i, logits[i]) for i in range(len(self.seats))]
        kept = self.cache.lengths.clone()
        for i, (seat, text) in enumerate(zip(self.seats, self.texts, strict=True)):
            self._charge(i)
            text.draft(self.guesses[i][: self.own[i]])
            kept[seat] = int(self.starts[i]) + self._say(text, logits[i], judged[i])
            self.loop.end_if_stopped(seat)
        self.cache.crop(kept)  # 4

    def _draft(self, j: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embed the newest token of each row, said or guessed, and run m recurrences: e and s
        (B, 1, d), and logits (B, V) unless it is the last of the round."""
        pairs = list(zip(self.texts, self.guesses, strict=True))
        newest = [[(text.tokens + more)[-1]] for text, more in pairs]
        self.cache.lengths[self.rows.cpu()] = self.starts + j  # guesses lie behind what stands
        tokens = torch.tensor(newest, device=self.loop.device)
        e, context = self.model.embed(tokens, cache=self.cache, rows=self.rows)
        s = first_states(self.model, self.texts, e, context.positions)
        for i in range(self.m):
            s = self.model.iterate(s, e, context, recurrence=i)
        self.loop.passes += self.m
        if j == self.G:
            return e, s, None
        return e, s, self.model.read_out(s, context, logits_to_keep=1)[1][:, -1]

    def _guess(self, logits: Tensor) -> None:
        steps = [len(text.tokens) + 1 for text in self.texts]
        check_logits(logits, steps, "draft logits")
        likeliest = logits.argmax(-1).tolist()
        for i, text in enumerate(self.texts):
            if text.sampler.is_argmax:
                self.guesses[i].append(likeliest[i])
            else:
                tokens, law = text.sampler.draft(text.ids + self.guesses[i], logits[i : i + 1])
                self.guesses[i] += tokens
                self.laws[i] += law

    def _think_on(self, e: Tensor, s: Tensor) -> Tensor:
        """Recurrences m to r of all tokens of the round, (B, G + 1, d): logits (B, G + 1, V)."""
        num, more = self.G + 1, self.depth - self.m
        self.cache.lengths[self.rows.cpu()] = self.starts
        context = context_at(self.model, self.cache, self.rows, self.starts, num)
        for i in range(self.m, self.depth):
            s = self.model.iterate(s, e, context, recurrence=i)
        self.loop.passes += more
        _, logits = self.model.read_out(s, context)
        assert context.place is not None
        self.cache.commit(context.place, self.depth)
        return logits

    def _charge(self, i: int) -> None:
        """What the round of text i took."""
        text, costs, first, num = self.texts[i], self.costs, int(self.starts[i]), self.own[i] + 1
        for j in range(num):
            text.spend(0, costs.prelude(first + j), on="drafting")
            text.spend(self.m, costs.core(first + j), self.m, on="drafting")
            if j + 1 < num:
                text.spend(0, costs.read_out(first + j), on="drafting")
        more = self.depth - self.m
        text.spend(more, costs.core(first, num), more, on="verification")
        text.spend(0, costs.read_out(first, num, num), on="verification")

    def _judge(self, i: int, logits: Tensor) -> list[int]:
        """3: the tokens of text i that stand, guesses first, from logits (G + 1, V)."""
        text, num = self.texts[i], self.own[i]
        guesses, laws, logits = self.guesses[i][:num], self.laws[i][:num], logits[: num + 1]
        check_logits(logits, range(len(text.tokens) + 1, len(text.tokens) + num + 2))
        if text.sampler.is_argmax:
            verdict: Verdict = matched(logits.argmax(-1).tolist(), guesses)
        else:
            verdict = text.sampler.verify(text.ids, logits, guesses, laws)
        judged = min(verdict.accepted + 1, len(guesses))
        text.count(rounds=1, accepted=verdict.accepted, judged=judged)
        return [*guesses[: verdict.accepted], verdict.token]

    def _say(self, text: HuginnText, logits: Tensor, tokens: list[int]) -> int:
        """Say them until the text ends; how many were said."""
        for j, token in enumerate(tokens):
            text.say(token, self.depth, logits[j])
            if text.stopped:
                return j + 1
        return len(tokens)
