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

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inward.common.halting import Seen
from inward.common.requests import Prompts
from inward.common.sampling import Law, Sampling, Verdict, matched
from inward.methods.huginn.cache import DeepestAvailable, PerDepth, Policy, RecurrentCache
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


def generate_speculatively(
    model: HuginnForCausalLM,
    input_ids: Prompts,
    attention_mask: Tensor | None = None,
    *,
    draft_steps: int,
    draft_tokens: int = 4,
    max_new_tokens: int = 64,
    max_steps: int | None = None,
    policy: str | Policy = "deepest",
    start: Start = "noise",
    sampling: Sampling | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    state_seed: int | Sequence[int] = 0,
    trace: Detail | None = None,
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
    chosen = plan(
        model,
        len(prompts),
        max_new_tokens=max_new_tokens,
        max_steps=max_steps,
        policy=policy,
        start=start,
        sampling=sampling,
        eos_token_id=eos_token_id,
        state_seed=state_seed,
        trace=trace,
        on_token=on_token,
    )
    if not 1 <= draft_steps < chosen.max_steps:
        raise ValueError(
            f"draft_steps is {draft_steps}; a draft takes at least 1 recurrence and fewer than the "
            f"full depth of {chosen.max_steps}"
        )
    if draft_tokens < 1:
        raise ValueError(f"draft_tokens is {draft_tokens}, must be at least 1; or use generate")
    if chosen.policy not in (PerDepth(), DeepestAvailable()):
        raise ValueError(
            f"self-speculation needs a slot for each recurrence, {chosen.policy} shares them; use "
            "policy='deepest'"
        )
    texts = texts_of(chosen, prompts)
    drafts = _Drafts(model, chosen, len(texts), draft_steps, draft_tokens)
    with inference(model):
        drafts.run(texts)
    shares = {"accepted": drafts.accepted / max(1, drafts.judged), "rounds": float(drafts.rounds)}
    return generated(chosen, texts, drafts.passes, shares)


class _Drafts:
    """The rounds; row i of the cache belongs to text i."""

    def __init__(
        self, model: HuginnForCausalLM, chosen: HuginnPlan, num_rows: int, m: int, num_guesses: int
    ):
        self.model, self.chosen, self.m, self.num_guesses = model, chosen, m, num_guesses
        self.work = Work(model.config)
        self.cache = RecurrentCache(
            chosen.policy, num_recurrences=chosen.max_steps, num_rows=num_rows
        )
        self.passes = self.rounds = self.judged = self.accepted = 0

    def run(self, texts: Sequence[HuginnText]) -> None:
        """Work until every text has ended."""
        for text in texts:
            self._prefill(text)
        active = [text for text in texts if not text.stopped]
        while active:
            self._round(active)
            active = [text for text in active if not text.stopped]

    def _prefill(self, text: HuginnText) -> None:
        model, row = self.model, torch.tensor([text.number])
        tokens = torch.tensor([text.prompt], device=model.device)
        e, context = model.embed(tokens, cache=self.cache, rows=row)
        seen = Seen(1, model.config.vocab_size, model.device)
        thought = think(model, self.chosen, text, e, context, None, seen, self.work)
        self.passes += thought.steps
        (token,) = choose([text], thought.logits[None])
        text.say(self.chosen, token, thought.steps, thought.logits)
        assert context.place is not None
        self.cache.commit(context.place, thought.steps)

    def _round(self, texts: list[HuginnText]) -> None:
        """Steps 1 to 4 for the texts that go on."""
        starts = torch.tensor([text.length - 1 for text in texts])
        rows = torch.tensor([text.number for text in texts], device=self.model.device)
        G = self._guesses_worth_making(texts)
        guesses: list[list[int]] = [[] for _ in texts]
        laws: list[list[Law]] = [[] for _ in texts]
        e, s = [], []
        for j in range(G + 1):  # 1
            e_j, s_j, logits = self._draft(texts, rows, starts + j, guesses, last=j == G)
            e.append(e_j)
            s.append(s_j)
            if logits is not None:
                self._guess(texts, logits, guesses, laws)
        logits = self._think_on(texts, rows, starts, torch.cat(e, 1), torch.cat(s, 1))  # 2
        kept = self.cache.lengths.clone()
        for i, text in enumerate(texts):
            for j in range(G + 1):
                self._charge_draft(text, int(starts[i]) + j, last=j == G)
            said = self._say(text, logits[i], self._judge(text, logits[i], guesses[i], laws[i]))
            kept[text.number] = int(starts[i]) + said
        self.cache.crop(kept)  # 4
        self.rounds += 1

    def _guesses_worth_making(self, texts: list[HuginnText]) -> int:
        """G, or fewer if no text can use so many, or one would leave the context."""
        needed = max(self.chosen.max_new_tokens - len(text.tokens) for text in texts) - 1
        room = min(self.chosen.limit - text.length for text in texts)
        return max(0, min(self.num_guesses, needed, room))

    def _draft(
        self,
        texts: list[HuginnText],
        rows: Tensor,
        starts: Tensor,
        guesses: list[list[int]],
        *,
        last: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embed the newest token of each row, said or guessed, and run m recurrences: e and s
        (B, 1, d), and logits (B, V) unless it is the last of the round."""
        newest = [[(text.tokens + more)[-1]] for text, more in zip(texts, guesses, strict=True)]
        self.cache.lengths[rows.cpu()] = starts  # guesses lie behind what stands
        tokens = torch.tensor(newest, device=self.model.device)
        e, context = self.model.embed(tokens, cache=self.cache, rows=rows)
        seeds = torch.tensor([text.state_seed for text in texts], device=self.model.device)
        s = self.chosen.first_state(self.model, e, context.positions, seeds)
        for i in range(self.m):
            s = self.model.iterate(s, e, context, recurrence=i)
        self.passes += self.m
        if last:
            return e, s, None
        return e, s, self.model.read_out(s, context, logits_to_keep=1)[1][:, -1]

    def _guess(
        self,
        texts: list[HuginnText],
        logits: Tensor,
        guesses: list[list[int]],
        laws: list[list[Law]],
    ) -> None:
        if all(text.sampler.is_argmax for text in texts):
            for row, token in zip(guesses, logits.argmax(-1).tolist(), strict=True):
                row.append(token)
            return
        for i, text in enumerate(texts):
            tokens, law = text.sampler.draft(text.ids + guesses[i], logits[i : i + 1])
            guesses[i] += tokens
            laws[i] += law

    def _think_on(
        self, texts: list[HuginnText], rows: Tensor, starts: Tensor, e: Tensor, s: Tensor
    ) -> Tensor:
        """Recurrences m to r of all tokens of the round, (B, G + 1, d): logits (B, G + 1, V)."""
        num, depth = e.shape[1], self.chosen.max_steps
        self.cache.lengths[rows.cpu()] = starts
        context = context_at(self.model, self.cache, rows, starts, num)
        for i in range(self.m, depth):
            s = self.model.iterate(s, e, context, recurrence=i)
        self.passes += depth - self.m
        _, logits = self.model.read_out(s, context)
        assert context.place is not None
        self.cache.commit(context.place, depth)
        for text in texts:
            first = text.length - 1
            text.spend(depth - self.m, (depth - self.m) * self.work.core(first, num))
            text.spend(0, self.work.read_out(first, num, num))
        return logits

    def _judge(
        self, text: HuginnText, logits: Tensor, guesses: list[int], laws: list[Law]
    ) -> list[int]:
        """3: the tokens that stand, guesses first, from logits (G + 1, V)."""
        if text.sampler.is_argmax:
            verdict: Verdict = matched(logits.argmax(-1).tolist(), guesses)
        else:
            verdict = text.sampler.verify(text.ids, logits, guesses, laws)
        self.accepted += verdict.accepted
        self.judged += min(verdict.accepted + 1, len(guesses))
        return [*guesses[: verdict.accepted], verdict.token]

    def _say(self, text: HuginnText, logits: Tensor, tokens: list[int]) -> int:
        """Say them until the text ends; how many were said."""
        for j, token in enumerate(tokens):
            text.say(self.chosen, token, self.chosen.max_steps, logits[j])
            if text.stopped:
                return j + 1
        return len(tokens)

    def _charge_draft(self, text: HuginnText, position: int, *, last: bool) -> None:
        flops = self.work.prelude(position) + self.m * self.work.core(position)
        text.spend(self.m, flops + (0 if last else self.work.read_out(position)))
