"""TiDAR decoding: draft by diffusion, verify autoregressively, say what plain decoding would say.

"TiDAR: Think in Diffusion, Talk in Autoregression", arXiv 2511.08923, sections 3.2 to 3.3.

Between two forwards a text consists of P committed tokens, whose keys and values are cached, and
*final* tokens that are not: the prompt at first, later one token, the verifier's last word (the
paper's d_1). Behind them stand guesses d_2..d_K that the model has drafted but not judged.

    1. plan     rows of the forward: final tokens, guesses, a block of K masks for each outcome that
                the scheme prepares; outcome j = "j of these tokens stand"              (figure 2)
    2. forward  all texts at once, each with its own rows                        (batch.py)
    3. verify   a_j, the logits at token j, judge guess j + 1; with beta < 1 mixed with f_j, the
                first mask of block j: beta a_j + (1 - beta) f_j                 (section 4.4.3)
    4. commit   the tokens that stand, by a crop; the correction becomes the next final token
    5. draft    masks 2..K of the block of the outcome that came are the next guesses (all K - 1
                masks of a model trained `shifted`); was there no such block, the next forward is
                [final token | block]

All verifying schemes are this loop and differ in step 1 alone (`Scheme.outcomes`): none for plain,
all for one_pass, some for partial, one every other forward for two_pass. What a draft pass learns
about its single token is not thrown away: it is a verification with K = 1 and yields a token too.

What is unusual: texts of a batch share nothing but the forward. Each has its own length, guesses,
random numbers and end, and may verify while its neighbour drafts; so batched = single.

With beta = 1 the text never depends on drafts: under the rules greedy, match and gumbel of
sampling.py it is, token for token and up to rounding, the text of plain decoding. With beta < 1 it
is that of another autoregressive model, the mixture; `plain` then decodes it token by token.

Deviations from the paper: keys in cache order instead of step tokens first; the head on rows that
are read or may be; sampling and processors, of which the paper has none; blocks narrow down before
the end of the context; no block where nothing is left to draft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inward.common.ragged import RaggedCache
from inward.common.requests import end_tokens, prompts_of
from inward.common.sampling import Law, Sampler, Verdict, argmaxes, matched
from inward.common.trace import Cost, Step, Trace
from inward.methods.tidar.base import context_limit, num_embedded
from inward.methods.tidar.batch import READ_AHEAD, Layout, Output, Piece, Runner
from inward.methods.tidar.choose import Chooser
from inward.methods.tidar.measure import measured
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.request import DecodeSettings, check_inputs, find_mask, stop_criteria
from inward.methods.tidar.schemes import Acceptance, Scheme
from inward.methods.tidar.settings import TiDARSettings


@dataclass(frozen=True)
class Burst:
    """What one forward added to one text: committed tokens, and, provisional, the next guesses."""

    row: int
    tokens: tuple[int, ...]
    draft: tuple[int, ...]
    stopped: str


@dataclass(frozen=True)
class Decoded:
    """tokens: per text, its new tokens, the one that ended it included. traces: per text.
    num_forwards: of the whole batch. picked: forwards by scheme, if "auto"."""

    tokens: list[list[int]]
    traces: list[Trace]
    num_forwards: int
    picked: dict[str, int] = field(default_factory=dict)

    @property
    def tokens_per_forward(self) -> list[float]:
        """The paper's T/NFE, per text, the forward that reads the prompt included."""
        pairs = zip(self.tokens, self.traces, strict=True)
        return [len(tokens) / max(len(trace.steps), 1) for tokens, trace in pairs]


# --------------------------------------------------------------------------------------------------
# One text


@dataclass
class Row:
    """The state of one text between forwards, and what its running forward consists of."""

    index: int
    tokens: list[int]
    num_prompt: int
    limit: int
    """length at which it ends, for the reason `full`"""
    full: str
    sampler: Sampler
    acceptance: Acceptance = field(default_factory=Acceptance)
    cached: int = 0
    guesses: list[int] = field(default_factory=list)
    laws: list[Law] = field(default_factory=list)
    canvas: list[int | None] = field(default_factory=list)
    """diffusion: the block in work, None where it is still masked"""
    stopped: str = ""
    steps: list[Step] = field(default_factory=list)
    drafts: list[list[int]] = field(default_factory=list)
    layout: Layout = field(default_factory=lambda: Layout(1))
    begin: int = 0
    """length before the running forward"""
    offers: list[int] = field(default_factory=list)
    looked_up: bool = False

    @property
    def final(self) -> list[int]:
        """Tokens that stand but are not cached."""
        return self.tokens[self.cached :]

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self.limit - len(self.tokens)

    def trace(self, meta: dict[str, Any]) -> Trace:
        """The record: a step per forward, its tokens those of the answer as it stood then."""
        answer = np.asarray(self.tokens[self.num_prompt :], dtype=np.int64)
        steps = [replace(s, tokens=answer[: int(s.scores["length"])]) for s in self.steps]
        question = np.asarray(self.tokens[: self.num_prompt], dtype=np.int64)
        return Trace("tidar", question, steps, self.stopped, {**meta, "drafts": self.drafts})


# --------------------------------------------------------------------------------------------------
# The loop


class Decoder:
    """Texts being decoded; `step` does one forward for all that have not ended.

    Raises:
        ValueError: see `decode`.
    """

    def __init__(
        self,
        model: TiDAR | PreTrainedModel,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        mask_id: int | None = None,
        settings: DecodeSettings,
    ):
        lm = model.model if isinstance(model, TiDAR) else model
        self.settings, self.beta = settings, settings.beta
        self.mask_id = find_mask(model, mask_id, settings)
        self.context, self.num_embedded = context_limit(lm), num_embedded(lm)
        K = settings.K or (model.block_size if isinstance(model, TiDAR) else 8)
        check_inputs(lm, input_ids, K, self.context, self.mask_id)
        prompts = prompts_of(input_ids, attention_mask, context=self.context)
        self.K = K
        self.lead = (model.settings if isinstance(model, TiDAR) else TiDARSettings()).lead
        self.runner = Runner(model, settings.options, settings.packed)
        self.rows = [self._row(index, prompt) for index, prompt in enumerate(prompts)]
        self.active = list(self.rows)
        self.ends = end_tokens(settings.eos_token_id, lm.generation_config)
        self.criteria = stop_criteria(settings)
        self.chooser = self._chooser(K) if settings.scheme == "auto" else None
        if self.chooser is None:
            self.scheme = Scheme(settings.scheme, K, settings.num_blocks)
        else:
            self.scheme = self.chooser.current
        longest = max(min(row.limit, row.num_prompt + 512) for row in self.rows)
        self.cache = RaggedCache(len(self.rows), min(longest, self.context) + (K + 1) * K)
        self.num_forwards = 0
        self.flops_per_row = 2.0 * _size(lm)
        self.flops_per_read = 2.0 * cast(nn.Embedding, lm.get_input_embeddings()).weight.numel()

    def _row(self, index: int, prompt: list[int]) -> Row:
        wanted = self.settings.max_new_tokens
        limit = self.context if wanted is None else min(len(prompt) + wanted, self.context)
        full = "context" if limit == self.context else "length"
        mask = self.mask_id
        # an adapter's mask token lies beyond the vocabulary: nothing to ban
        banned = [mask] if mask is not None and mask < self.num_embedded else []
        sampler = Sampler(self.settings.sampling, index, banned=banned)
        return Row(index, prompt, len(prompt), limit, full, sampler)

    def _chooser(self, K: int) -> Chooser:
        chooser = self.settings.chooser
        if chooser is None:
            costs = self.settings.costs or measured(self.runner, len(self.rows), self.context)
            chooser = Chooser(costs, K)
        chooser.lead = self.lead
        return chooser

    @torch.no_grad()
    def step(self) -> list[Burst]:
        """One forward for every text that has not ended, and what it brought."""
        assert self.active, "all texts have ended"
        if self.chooser is not None:
            self.scheme = self.chooser()
        rows, diffusion = self.active, self.scheme.name == "diffusion"
        plan = self._plan_canvas if diffusion else self._plan
        output = self.runner(self.cache, [plan(row) for row in rows])
        self.num_forwards += 1
        for row in rows:
            row.begin = len(row.tokens)
        if diffusion:
            counts = self._unmask(output)
        else:
            self._read_ahead(output)
            counts = self._verify(output)
            self._draft(output, counts)
        for row, count in zip(rows, counts, strict=True):
            row.cached += count
        self.cache.commit(counts)
        self._leave()
        return [
            Burst(row.index, tuple(row.tokens[row.begin :]), tuple(row.guesses), row.stopped)
            for row in rows
        ]

    # 1. plan

    def _plan(self, row: Row) -> Piece:
        final, room, K = row.final, row.room, self.scheme.K
        row.offers, row.looked_up = row.guesses[: min(K, room) - 1], False
        if self.settings.drafter is not None:
            self._look_up(row, min(self.K, room) - 1)
        wanted = range(len(row.offers) + 1)
        if self.beta == 1.0:
            # no block after an outcome that leaves nothing to guess
            wanted = self.scheme.outcomes(len(row.offers), row.acceptance)
            wanted = [a for a in wanted if room - a > 2]
        blocks = []
        for a in wanted:
            outcome = len(final) + a
            width = min(K - 1 + self.lead, self.context - row.cached - outcome)
            if width > self.lead or self.beta < 1.0:
                blocks.append((outcome, width))
        row.layout = Layout(len(final) + len(row.offers), tuple(blocks))
        return Piece(row.layout, final + row.offers + self._masks(row.layout))

    def _look_up(self, row: Row, num: int) -> None:
        """Guesses of the drafter instead of the drafted ones, if it has any."""
        assert self.settings.drafter is not None, "no drafter"
        found = list(self.settings.drafter(row.tokens, num))[:num]
        if found and (self.chooser is None or self.chooser.worth(len(found))):
            row.offers, row.laws, row.looked_up = found, [], True

    def _masks(self, layout: Layout) -> list[int]:
        num = layout.num_rows - layout.num_draft
        assert num == 0 or self.mask_id is not None, "mask rows without a mask token"
        return [self.mask_id or 0] * num

    # 3. verify

    def _judged(self) -> list[tuple[int, int]]:
        """The last final token and the guesses of every text: what the verifier reads."""
        return [
            (b, i)
            for b, row in enumerate(self.active)
            for i in range(len(row.final) - 1, row.layout.num_draft)
        ]

    def _read_ahead(self, output: Output) -> None:
        """Where all rows that may be read are few, read them at once: the head takes hardly longer
        for a dozen rows than for one, but twice as long for two calls."""
        if not any(row.layout.blocks for row in self.active):
            return  # only what is judged will be read
        rows, first = self._judged(), self.lead if self.beta == 1.0 else 0
        for b, row in enumerate(self.active):
            layout = row.layout
            for outcome, width in layout.blocks:
                begin = layout.begins[outcome]
                rows += [(b, i) for i in range(begin + first, begin + width)]
        if len(rows) <= READ_AHEAD:
            output.read_ahead(rows)

    def _verify(self, output: Output) -> list[int]:
        """Judge all guesses; how many rows of each text stand."""
        first = [len(row.final) - 1 for row in self.active]
        places = self._judged()
        logits = output.logits(places)
        if self.beta < 1.0:
            masks = [(b, self.active[b].layout.begins[i + 1]) for b, i in places]
            logits = self.beta * logits + (1.0 - self.beta) * output.logits(masks)
        choices = None
        if self.active[0].sampler.is_argmax:
            choices = argmaxes(logits, self.active[0].sampler.banned)
        counts, begin = [], 0
        for b, row in enumerate(self.active):
            own = slice(begin, begin + len(row.offers) + 1)
            begin = own.stop
            if choices is None:
                verdict = row.sampler.verify(row.tokens, logits[own], row.offers, row.laws)
            else:
                verdict = matched(choices[own], row.offers)
            self._take(row, verdict)
            counts.append(first[b] + 1 + verdict.accepted)
        return counts

    def _take(self, row: Row, verdict: Verdict) -> None:
        """Say the guesses that stand and the correction, up to whatever ends the text."""
        offered = len(row.offers)
        if offered and not row.looked_up:
            row.acceptance.add(offered, verdict.accepted)
        if offered and self.chooser is not None:
            chooser = self.chooser
            known = chooser.looked_up if row.looked_up else chooser.acceptance
            known.add(offered, verdict.accepted)
        self._say(row, [*row.offers[: verdict.accepted], verdict.token])
        prepared = len(row.layout.blocks)
        scores = {"offered": offered, "accepted": verdict.accepted, "blocks": prepared}
        self._record(row, scores, num_read=offered + 1)
        row.drafts.append(row.offers)
        row.guesses, row.laws = [], []

    def _say(self, row: Row, tokens: Sequence[int]) -> None:
        for token in tokens:
            row.tokens.append(token)
            row.stopped = self._end(row)
            if row.stopped:
                return

    def _end(self, row: Row) -> str:
        """Why the text ends with its last token; empty if it does not."""
        if row.tokens[-1] in self.ends:
            return "eos"
        if self.criteria:
            ids = torch.tensor([row.tokens], device=self.runner.device)
            if any(bool(torch.as_tensor(stop(ids, None)).all()) for stop in self.criteria):
                return "stop"
        return "" if row.room > 0 else row.full

    def _record(self, row: Row, scores: Mapping[str, float], *, num_read: int) -> None:
        slots = row.layout.num_rows
        flops = slots * self.flops_per_row + num_read * self.flops_per_read
        length = len(row.tokens) - row.num_prompt
        scores = {"length": length, "slots": slots, **scores}
        step = Step(
            len(row.steps), "forward", scores=scores, cost=Cost(1, flops), position=row.begin
        )
        row.steps.append(step)

    # 5. draft

    def _draft(self, output: Output, counts: list[int]) -> None:
        """Guesses from the blocks of the outcomes that came."""
        wanted: list[tuple[Row, list[tuple[int, int]]]] = []
        for b, (row, outcome) in enumerate(zip(self.active, counts, strict=True)):
            num = row.layout.widths.get(outcome, 0) - self.lead
            num = min(num, row.room - 1, self.scheme.K - 1)
            if num > 0 and not row.stopped and self.scheme.name != "plain":
                begin = row.layout.begins[outcome] + self.lead
                wanted.append((row, [(b, i) for i in range(begin, begin + num)]))
        if not wanted:
            return
        logits = output.logits([place for _, places in wanted for place in places])
        begin, choices = 0, None
        if wanted[0][0].sampler.is_argmax:
            choices = argmaxes(logits, wanted[0][0].sampler.banned)
        for row, places in wanted:
            own = slice(begin, begin + len(places))
            begin = own.stop
            if choices is None:
                row.guesses, row.laws = row.sampler.draft(row.tokens, logits[own])
            else:
                row.guesses = choices[own]

    def _leave(self) -> None:
        """Texts that have ended make room."""
        stay = [b for b, row in enumerate(self.active) if not row.stopped]
        if len(stay) < len(self.active):
            self.active = [self.active[b] for b in stay]
            if stay:
                self.cache.select(stay)

    # Pure block diffusion: no verification (the paper's table 4)

    def _plan_canvas(self, row: Row) -> Piece:
        """[finished block | block in work, masks where the model was not sure yet]."""
        final = row.final
        if not row.canvas:
            row.canvas = [None] * min(self.scheme.K, row.room)
        row.layout = Layout(len(final), ((len(final), len(row.canvas)),))
        mask = self.mask_id or 0
        return Piece(row.layout, final + [mask if t is None else t for t in row.canvas])

    def _unmask(self, output: Output) -> list[int]:
        """Keep what is sure, at least the surest; a block without masks is said."""
        counts = []
        for b, row in enumerate(self.active):
            counts.append(row.layout.num_draft)
            open_ = [i for i, token in enumerate(row.canvas) if token is None]
            logits = output.logits([(b, row.layout.num_draft + i) for i in open_])
            found = [self._sure(row, i, place) for i, place in zip(open_, logits, strict=True)]
            surest = max(sure for _, sure in found)
            for i, (token, sure) in zip(open_, found, strict=True):
                if sure > self.settings.threshold or sure == surest:
                    row.canvas[i] = token
            kept = len(open_) - row.canvas.count(None)
            row.guesses = [t for t in row.canvas if t is not None]
            if None not in row.canvas:
                self._say(row, row.guesses)
                row.canvas, row.guesses = [], []
            self._record(row, {"kept": kept, "open": len(open_)}, num_read=len(open_))
        return counts

    def _sure(self, row: Row, place: int, logits: Tensor) -> tuple[int, float]:
        """A token for the canvas, and its probability."""
        scores = row.sampler.scores(row.tokens, logits)
        token = row.sampler.draw(scores, len(row.tokens) + place)
        return token, float(scores.softmax(-1)[token])

    def result(self) -> Decoded:
        """What has been said so far."""
        name = self.settings.scheme
        meta = {"scheme": name, "K": self.K, "beta": self.beta, "rule": self.settings.sampling.rule}
        tokens = [row.tokens[row.num_prompt :] for row in self.rows]
        picked = {} if self.chooser is None else self.chooser.picked
        return Decoded(tokens, [row.trace(meta) for row in self.rows], self.num_forwards, picked)


# --------------------------------------------------------------------------------------------------
# What callers use


def _size(lm: PreTrainedModel) -> int:
    """Parameters that every row passes: all but the embeddings."""
    tables = {id(lm.get_input_embeddings().weight)}
    head = lm.get_output_embeddings()
    tables |= set() if head is None else {id(head.weight)}
    return sum(p.numel() for p in lm.parameters() if id(p) not in tables)
