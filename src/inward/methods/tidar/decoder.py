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
random numbers and end, may verify while its neighbour drafts, and comes and goes when it likes: one
that joins reads its prompt in a forward of its own, then its cache is put behind the others'. So
batched = single. A `Decoder` is work in the sense of common/thinking.py, for texts that are decoded
alike; work.py sorts them.

With beta = 1 the text never depends on drafts: under the rules greedy, match and gumbel of
sampling.py it is, token for token and up to rounding, the text of plain decoding. With beta < 1 it
is that of another autoregressive model, the mixture; `plain` then decodes it token by token.

Deviations from the paper: keys in cache order instead of step tokens first; the head on rows that
are read or may be; sampling and processors, of which the paper has none; blocks narrow down before
the end of the context; no block where nothing is left to draft.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inward.common.ragged import RaggedCache
from inward.common.sampling import Sampler, Verdict, argmaxes, check_logits, matched
from inward.common.thinking import Answer, Event, Request
from inward.methods.tidar.alone import AloneRunner, OwnCaches, why_alone
from inward.methods.tidar.base import context_limit, lm_of, num_embedded, tidar_of
from inward.methods.tidar.batch import READ_AHEAD, Layout, Output, Piece, Runner
from inward.methods.tidar.choose import Chooser
from inward.methods.tidar.request import (
    MAX_NEW_TOKENS,
    DecodeSettings,
    Drafter,
    check_model,
    check_request,
    draws_of,
    ends_of,
    find_mask,
    prompt_of,
    tokens_of,
)
from inward.methods.tidar.row import TextRow, hopes_of
from inward.methods.tidar.schemes import Costs, Scheme

if TYPE_CHECKING:
    from inward.methods.tidar.model import TiDAR

Measured = Callable[[Runner, int, int], Costs]
"""(runner, number of texts, context) -> what its forwards cost here"""


# --------------------------------------------------------------------------------------------------
# Who comes and goes


class Decoder:
    """Texts being decoded alike, see `inward.common.thinking.Work`; a step is a forward for all of
    them, and one for those that have just come.

    Args:
        batch_size: texts at once; more wait.
        measured: for the scheme "auto", where costs come from if the settings hold none.
        method: the name in traces.

    Raises:
        ValueError: settings that do not suit the model.
    """

    def __init__(
        self,
        model: TiDAR | PreTrainedModel,
        settings: DecodeSettings,
        *,
        batch_size: int = 32,
        measured: Measured | None = None,
        method: str = "tidar",
    ):
        self.model, self.lm, tidar = model, lm_of(model), tidar_of(model)
        self.settings, self.beta = settings, settings.beta
        self.batch_size, self.method, self._measured = batch_size, method, measured
        self.mask_id = find_mask(model, settings)
        self.context, self.num_embedded = context_limit(self.lm), num_embedded(self.lm)
        self.K = settings.K or (8 if tidar is None else tidar.block_size)
        self.lead = 1 if tidar is None else tidar.settings.lead
        check_model(self.lm, settings, self.K, self.context)
        name = "plain" if settings.scheme == "auto" else settings.scheme
        self.scheme = Scheme(name, self.K, settings.num_blocks)
        self.chooser: Chooser | None = None
        self._num_measured = 0
        self.num_forwards = 0
        self.rows: list[TextRow] = []
        """texts under way, in the order of the cache"""
        self.waiting: list[TextRow] = []
        self.cache: RaggedCache | OwnCaches = RaggedCache(0, 0)
        self._answers: dict[int, Answer] = {}
        self._events: list[Event] = []
        """told at the end of a step, or of the next one after an exception"""
        self._next = 0
        self._seen = False
        """whether the runner knows the model as it is now"""

    @cached_property
    def runner(self) -> Runner | AloneRunner:
        """Packs weights, and may find the model out: long work, for a request that is sound."""
        self._seen = True
        drafts = self.scheme.name != "plain" or self.settings.scheme == "auto"
        if not drafts and tidar_of(self.model) is None and why_alone(self.lm):
            return AloneRunner(self.lm, dict(self.settings.options))
        settings, known = self.settings, tidar_of(self.model)
        draft, verify = dict(settings.draft), dict(settings.verify)
        trained = known is not None and (known.settings.draft_steps or known.settings.steps)
        if known is not None and trained and "num_steps" not in settings.options:
            usual = known.settings.steps or cast(Any, self.lm).per_position["num_steps"]
            verify = {"num_steps": usual} | verify
            draft = {"num_steps": known.settings.draft_steps or usual} | draft
        return Runner(self.model, dict(settings.options), settings.packed, draft, verify)

    def _see(self) -> None:
        """The model as it is when a request comes: once for those that come together."""
        runner = self.runner
        if not self._seen:
            runner.renew()
        self._seen = True

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self.rows or self.waiting or self._events)

    def add(self, request: Request) -> int:
        """Take a text in; returns its number.

        Raises:
            ValueError: anything in the request that cannot be done.
        """
        check_request(request)
        prompt = prompt_of(request, self.lm, self.context, self.mask_id)
        limit = min(len(prompt) + (request.max_new_tokens or MAX_NEW_TOKENS), self.context)
        full = "context" if limit == self.context else "length"
        sampling = draws_of(request, self.lm)
        if request.seed is not None:
            sampling = replace(sampling, seed=request.seed)
        mask = self.mask_id
        # an adapter's mask token lies beyond the vocabulary: nothing to ban
        banned = [mask] if mask is not None and mask < self.num_embedded else []
        sampler, ends = Sampler(sampling, banned=banned), ends_of(request, self.lm)
        self._see()  # when a request has passed all checks
        row = TextRow(self._next, request, prompt, len(prompt), limit, full, sampler, ends)
        row.drafter = request.own.get("drafter", self.settings.drafter)
        if row.drafter is not None and isinstance(self.runner, AloneRunner):
            raise ValueError(
                f"a drafter's guesses cannot be judged here: {why_alone(self.lm)}; ask without one"
            )
        self._next += 1
        self.waiting.append(row)
        return row.number

    def step(self) -> list[Event]:
        """One forward for every text that has not ended, and what it brought."""
        self._seen = False
        self._dismiss()
        if self.rows:
            self._forward(self.rows, self.cache)
            self._leave()
        fresh = self.waiting[: max(0, self.batch_size - len(self.rows))]
        if fresh:
            longest = max(min(row.limit, row.num_prompt + 512) for row in fresh)
            capacity = min(longest, self.context) + (self.K + 1) * self.K
            cache = self.runner.new_cache(len(fresh), capacity)
            self._recall(fresh, cache)
            self._forward(fresh, cache)
            del self.waiting[: len(fresh)]
            if self.rows:
                cast(Any, self.cache).join(cache)
            else:
                self.cache = cache
            self.rows = [*self.rows, *fresh]
            self._leave()
        events, self._events = self._events, []
        return events

    def cancel(self, number: int) -> None:
        """End a text: "cancelled", told by the next step. One that has ended stays as it is."""
        if number in self._answers:
            return
        self._row(number).stopped = "cancelled"

    def end_thinking(self, number: int) -> None:
        """Blocks that diffusion refines are said as they are after the next forward. KeyError:
        there is no such text; ValueError: the scheme refines nothing."""
        if number in self._answers:
            return
        row = self._row(number)
        if self.settings.scheme != "diffusion":
            raise ValueError(
                f"{self.method} has no thinking to end: each word of scheme "
                f"{self.settings.scheme!r} stands as soon as it is said"
            )
        row.hurried = True

    def result(self, number: int) -> Answer:
        """The answer to a request that has ended; afterwards nobody knows it any more."""
        if number in self._answers:
            return self._answers.pop(number)
        row = self._row(number)
        raise ValueError(
            f"request {number} has not ended: {len(row.said)} tokens so far; step until its end "
            "comes, or cancel it and step once"
        )

    def _row(self, number: int) -> TextRow:
        for row in (*self.rows, *self.waiting):
            if row.number == number:
                return row
        raise KeyError(f"there is no request {number}")

    def _dismiss(self) -> None:
        """Those that were cancelled end before the next forward."""
        self._end([row for row in self.waiting if row.stopped])
        self.waiting = [row for row in self.waiting if not row.stopped]
        self._leave()

    def _leave(self) -> None:
        """Texts that have ended make room."""
        stay = [b for b, row in enumerate(self.rows) if not row.stopped]
        if len(stay) < len(self.rows):
            ended = [row for row in self.rows if row.stopped]
            self._remember()
            self.rows = [self.rows[b] for b in stay]
            if stay:
                self.cache.select(stay)
            else:
                self.cache = RaggedCache(0, 0)
            self._end(ended)

    # what conversations have read

    @property
    def _memory_key(self) -> tuple[Any, ...]:
        """What keys and values of tokens depend on."""
        settings = self.settings
        given = (settings.options, settings.verify, settings.draft)
        return (self.lm, *(pair for options in given for pair in sorted(options.items())))

    def _recall(self, rows: Sequence[TextRow], cache: RaggedCache | OwnCaches) -> None:
        """Texts whose beginning has been read before begin behind it. Caches of the model's own
        kind are not kept: a state cannot be cut back to where two texts part."""
        if isinstance(cache, OwnCaches):
            return
        for b, row in enumerate(rows):
            memory = row.request.memory
            if memory is not None and not row.cached:
                row.reused = row.cached = memory.take(row.tokens, self._memory_key)
                if row.reused:
                    num = row.reused
                    past = [(k[None, :, :num], v[None, :, :num]) for k, v in memory.past]
                    cache.insert([b], [num], past)

    def _remember(self) -> None:
        """Before texts that have ended go."""
        if isinstance(self.cache, OwnCaches):
            return
        for b, row in enumerate(self.rows):
            memory = row.request.memory
            if row.stopped and memory is not None:
                layers = range(len(self.cache.layers))
                past = [self.cache.committed(b, layer) for layer in layers]
                memory.past = [(k.clone(), v.clone()) for k, v in past]
                memory.tokens, memory.key = row.tokens[: row.cached], self._memory_key

    def _end(self, rows: Sequence[TextRow]) -> None:
        settings = self.settings
        for row in rows:
            meta = {"scheme": settings.scheme, "K": self.K, "beta": self.beta}
            row.cost = replace(row.cost, parameters=self.runner.parameters)
            answer = row.answer(self.method, {**meta, "rule": row.sampler.rule})
            self._answers[row.number] = answer
            self._events.append(Event("end", row.number, step=row.num_steps, answer=answer))

    # ----------------------------------------------------------------------------------------------
    # The loop

    @torch.no_grad()
    def _forward(self, rows: Sequence[TextRow], cache: RaggedCache | OwnCaches) -> None:
        """Steps 1 to 5 of the top of the file for texts whose cache this is."""
        began = time.perf_counter()
        self._choose(len(rows))
        diffusion = self.scheme.name == "diffusion"
        for row in rows:
            row.begin, row.past, row.reads = len(row.tokens), row.cached, [0, 0]
        # 1. plan
        plan = self._plan_canvas if diffusion else self._plan
        pieces = [plan(row) for row in rows]
        # 2. forward
        output = cast(Any, self.runner)(cache, pieces)  # a runner makes its own kind of cache
        self.num_forwards += 1
        if diffusion:
            counts = self._unmask(rows, output)
        else:
            self._read_ahead(rows, output)
            # 3. verify
            verdicts = self._verify(rows, output)
            # 4. commit
            counts = [
                self._commit(row, verdict) for row, verdict in zip(rows, verdicts, strict=True)
            ]
            # 5. draft
            self._draft(rows, output, counts)
        for row, count in zip(rows, counts, strict=True):
            row.cached += count
        cache.commit(counts)
        seconds = time.perf_counter() - began
        for row in rows:
            on = row.account(diffusion or self.scheme.name == "plain")
            reads = self._reads(row)
            cost = self.runner.cost(row.layout, past=row.past, reads=reads, on=on, seconds=seconds)
            self._events += row.tell(cost)

    def _choose(self, num_rows: int) -> None:
        """The scheme of this forward, if the fastest one is wanted. Costs are measured when they
        are first needed, and again for twice as many texts."""
        if self.settings.scheme != "auto":
            return
        chooser, costs = self.settings.chooser, self.settings.costs
        if chooser is None and costs is None and num_rows > 2 * self._num_measured:
            assert self._measured is not None, "nobody measures"
            costs = self._measured(cast(Runner, self.runner), num_rows, self.context)
            self._num_measured = num_rows
            if self.chooser is not None:
                self.chooser.costs = costs
        if self.chooser is None:
            assert chooser is not None or costs is not None, "costs are measured first"
            self.chooser = chooser or Chooser(costs, self.K)  # pyright: ignore[reportArgumentType]
            self.chooser.lead = self.lead
        self.scheme = self.chooser()

    # 1. plan

    def _plan(self, row: TextRow) -> Piece:
        final, room, K = row.final, row.room, self.scheme.K
        row.offers, row.looked_up = row.guesses[: min(K, room) - 1], False
        row.offer_laws, row.offer_hopes = row.laws, row.hopes[: len(row.offers)]
        if row.drafter is not None:
            self._look_up(row, row.drafter, min(self.K, room) - 1)
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
        row.given = row.offers + self._masks(row.layout)
        return Piece(row.layout, final + row.given)

    def _look_up(self, row: TextRow, drafter: Drafter, num: int) -> None:
        """Guesses of the drafter instead of the drafted ones, if it has any."""
        found = tokens_of(drafter(row.tokens, num), self.num_embedded)[:num]
        if found and (self.chooser is None or self.chooser.worth(len(found))):
            row.offers, row.offer_laws, row.looked_up = found, [], True

    def _masks(self, layout: Layout) -> list[int]:
        num = layout.num_rows - layout.num_draft
        assert num == 0 or self.mask_id is not None, "mask rows without a mask token"
        return [self.mask_id or 0] * num

    # 3. verify

    def _judged(self, rows: Sequence[TextRow]) -> list[tuple[int, int]]:
        """The last final token and the guesses of every text: what the verifier reads."""
        return [
            (b, i)
            for b, row in enumerate(rows)
            for i in range(len(row.final) - 1, row.layout.num_draft)
        ]

    def _read_ahead(self, rows: Sequence[TextRow], output: Output) -> None:
        """Where all rows that may be read are few, read them at once: the head takes hardly longer
        for a dozen rows than for one, but twice as long for two calls."""
        if not any(row.layout.blocks for row in rows):
            return  # only what is judged will be read
        places, first = self._judged(rows), self.lead if self.beta == 1.0 else 0
        for b, row in enumerate(rows):
            layout = row.layout
            for outcome, width in layout.blocks:
                begin = layout.begins[outcome]
                places += [(b, i) for i in range(begin + first, begin + width)]
        if len(places) <= READ_AHEAD:
            output.read_ahead(places)

    def _reads(self, row: TextRow) -> tuple[int, int]:
        """Rows of a text whose logits are made when it is alone, mask rows apart: the account of a
        text does not depend on its neighbours."""
        clean, drafted = row.reads
        if row.layout.blocks and self.scheme.name != "diffusion":
            first = self.lead if self.beta == 1.0 else 0
            ahead = sum(max(0, width - first) for _, width in row.layout.blocks)
            if clean + ahead <= READ_AHEAD:
                return clean, ahead
        return clean, drafted

    def _verify(self, rows: Sequence[TextRow], output: Output) -> list[Verdict]:
        """Judge all guesses."""
        places = self._judged(rows)
        logits = output.logits(places)
        if self.beta < 1.0:
            masks = [(b, rows[b].layout.begins[i + 1]) for b, i in places]
            logits = self.beta * logits + (1.0 - self.beta) * output.logits(masks)
        check_logits(logits, [rows[b].num_steps + 1 for b, _ in places])
        choices = self._choices(rows, logits)
        verdicts, begin = [], 0
        for row in rows:
            own = slice(begin, begin + len(row.offers) + 1)
            begin = own.stop
            if row.sampler.is_argmax:
                verdict = matched(choices[own], row.offers)
            else:
                verdict = row.sampler.verify(row.tokens, logits[own], row.offers, row.offer_laws)
            if row.request.logprobs:
                row.odds += row.weigh(logits[own], [*row.offers[: verdict.accepted], verdict.token])
            judged = own.stop - own.start
            row.reads = [judged, 0 if self.beta == 1.0 else judged]
            verdicts.append(verdict)
        return verdicts

    def _choices(self, rows: Sequence[TextRow], logits: Tensor) -> list[int]:
        """The likeliest token of all places at once, where a text takes these."""
        greedy = [row.sampler for row in rows if row.sampler.is_argmax]
        return argmaxes(logits, greedy[0].banned) if greedy else []

    # 4. commit

    def _commit(self, row: TextRow, verdict: Verdict) -> int:
        """Say the guesses that stand and the correction, up to whatever ends the text; how many
        rows of the forward stand."""
        offered, accepted = len(row.offers), verdict.accepted
        row.judge(offered, accepted)
        count = len(row.final) + accepted
        if offered and not row.looked_up:
            row.acceptance.add(offered, accepted)
        if offered and self.chooser is not None:
            chooser = self.chooser
            known = chooser.looked_up if row.looked_up else chooser.acceptance
            known.add(offered, accepted)
        self._say(row, [*row.offers[:accepted], verdict.token])
        prepared = len(row.layout.blocks)
        row.scores = {"offered": offered, "accepted": accepted, "blocks": prepared}
        row.guesses, row.laws, row.hopes = [], [], []
        if "drafts" in (row.request.trace or ()):
            row.scores |= {"K": self.scheme.K if self.scheme.name != "plain" else 1}
            row.scores |= {"block": accepted} if row.layout.widths.get(count) else {}
        return count

    def _say(self, row: TextRow, tokens: Sequence[int]) -> None:
        row.say(tokens, self.settings.stopping_criteria, self.runner.device)
        if row.request.logprobs:  # what would have followed an end was weighed, too
            del row.odds[len(row.tokens) - row.num_prompt :]

    # 5. draft

    def _draft(self, rows: Sequence[TextRow], output: Output, counts: list[int]) -> None:
        """Guesses from the blocks of the outcomes that came."""
        wanted: list[tuple[TextRow, list[tuple[int, int]]]] = []
        for b, (row, outcome) in enumerate(zip(rows, counts, strict=True)):
            num = row.layout.widths.get(outcome, 0) - self.lead
            num = min(num, row.room - 1, self.scheme.K - 1)
            if num > 0 and not row.stopped and self.scheme.name != "plain":
                begin = row.layout.begins[outcome] + self.lead
                wanted.append((row, [(b, i) for i in range(begin, begin + num)]))
        if not wanted:
            return
        logits = output.logits([place for _, places in wanted for place in places])
        steps = [row.num_steps + 1 for row, places in wanted for _ in places]
        check_logits(logits, steps, "draft logits")
        choices = self._choices([row for row, _ in wanted], logits)
        begin = 0
        for row, places in wanted:
            own = slice(begin, begin + len(places))
            begin = own.stop
            row.reads[1] += len(places)
            if row.sampler.is_argmax:
                row.guesses = choices[own]
            else:
                row.guesses, row.laws = row.sampler.draft(row.tokens, logits[own])
            if "drafts" in (row.request.trace or ()):
                row.hopes = hopes_of(logits[own], row.guesses)

    # ----------------------------------------------------------------------------------------------
    # Pure block diffusion: no verification (the paper's table 4)

    def _plan_canvas(self, row: TextRow) -> Piece:
        """[finished block | block in work, masks where the model was not sure yet]."""
        final = row.final
        if not row.canvas:
            row.canvas = [None] * min(self.scheme.K, row.room)
            row.sure = [0.0] * len(row.canvas)
        row.layout = Layout(len(final), ((len(final), len(row.canvas)),))
        mask = self.mask_id or 0
        row.given = [mask if t is None else t for t in row.canvas]
        return Piece(row.layout, final + row.given)

    def _unmask(self, rows: Sequence[TextRow], output: Output) -> list[int]:
        """Keep what is sure, at least the surest; a block without masks is said."""
        counts = []
        for b, row in enumerate(rows):
            counts.append(row.layout.num_draft)
            open_ = [i for i, token in enumerate(row.canvas) if token is None]
            logits = output.logits([(b, row.layout.num_draft + i) for i in open_])
            check_logits(logits, [row.num_steps + 1] * len(open_), "draft logits")
            found = [self._sure(row, i, place) for i, place in zip(open_, logits, strict=True)]
            surest = max(sure for _, sure in found)
            for i, (token, sure) in zip(open_, found, strict=True):
                if sure > self.settings.threshold or sure == surest or row.hurried:
                    row.canvas[i], row.sure[i] = token, math.log(max(sure, 1e-300))
            kept = len(open_) - row.canvas.count(None)
            row.reads, row.scores = [0, len(open_)], {"kept": kept, "open": len(open_)}
            row.guesses = [t for t in row.canvas if t is not None]
            if None not in row.canvas:
                if row.request.logprobs:
                    row.odds += row.sure
                self._say(row, row.guesses)
                row.canvas, row.guesses = [], []
        return counts

    def _sure(self, row: TextRow, place: int, logits: Tensor) -> tuple[int, float]:
        """A token for the canvas, and its probability."""
        scores = row.sampler.scores(row.tokens, logits)
        token = row.sampler.draw(scores, len(row.tokens) + place)
        return token, float(scores.softmax(-1)[token])
