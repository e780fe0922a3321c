"""Generation with silent thoughts: batched, cached, each row in its own mode.

    out = generate(model, [prompt, ...], policy=Boundary(), max_new_tokens=64)
    out.tokens[0], out.traces[0]
    for event in stream(model, [prompt]): ...
    vote(model, [prompt], num_samples=8, noise=0.1, answer=last_number)

Every forward adds one position to every row: a thought where a row is silent (its last hidden state
goes in), a token where it speaks. A *policy* decides which, see `policies`. Prompts are
samples, so thoughts of a fixed schedule may stand in the prompt already; then no policy is needed.

A row depends on nothing but itself: not on its neighbours, nor on how they are padded. Tokens are
drawn by `inward.common.sampling` for (seed + row, place), noise for (seed + row, number of the
thought).

Steps of a trace: "thought" (tokens and confidence hold the lens on it: the likeliest tokens of the
head) and "word" (the token said), `position` is the place in the row, thoughts counted.

Shape letters: B rows, S columns, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

from inward.common.cpu.decoding import Decoding
from inward.common.sampling import Sampler
from inward.common.trace import Cost, Step, Trace
from inward.data.thoughts.columns import LatentBatch, before_thoughts, widened
from inward.data.thoughts.segments import Latent, Sample, Segment, Text, flat
from inward.methods.coconut.base import unwrapped
from inward.methods.coconut.cache import new_cache
from inward.methods.coconut.model import Coconut
from inward.methods.coconut.plan import CoconutPlan, plan
from inward.methods.coconut.policies import Speaking, SwitchView

_MORE = 256
"""Columns by which the attention mask grows."""

_NOISE = 3
"""Stream of the thoughts' noise, beside those of `inward.common.sampling`."""


@dataclass(frozen=True)
class Event:
    """One position of one row: a "thought", or the "word" `token`."""

    row: int
    kind: Literal["thought", "word"]
    position: int
    token: int | None = None


@dataclass
class CoconutGenerated:
    """What was generated, B rows.

    tokens: per row the tokens spoken, boundary tokens and the end token included.
    samples: per row the prompt and what followed, as segments; they can be prompts again.
    thoughts: per row how many thoughts were added to the prompt's.
    stopped: per row "end", "stop string", "length" (max_new_tokens) or "context".
    logprobs: per row the summed log-probability of its words, under the model's own distribution;
        empty unless asked for.
    num_passes: forwards of the base, prompts included.
    traces: per row; empty unless asked for.
    """

    tokens: list[list[int]]
    samples: list[Sample]
    thoughts: list[int]
    stopped: list[str]
    num_passes: int
    logprobs: list[float] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)


def generate(
    model: Coconut,
    prompts: Sequence[Sample],
    *,
    streamer: Any = None,
    **options: Any,
) -> CoconutGenerated:
    """Continue prompts until each of them ends.

    Args:
        prompts: samples; the last block of thoughts may be open.
        streamer: one of transformers' (for one prompt): gets the tokens as they are spoken.
        options: see `plan.plan`.

    Raises:
        ValueError: bad prompts or options, before any work.
    """
    if streamer is not None and len(prompts) != 1:
        raise ValueError(f"a streamer takes one prompt, not {len(prompts)}; use `stream`")
    engine = _Engine(model, prompts, plan(model, **options))
    for events in engine.steps():
        for event in events:
            if streamer is not None and event.token is not None:
                streamer.put(torch.tensor([event.token]))
    if streamer is not None:
        streamer.end()
    return engine.result()


def stream(model: Coconut, prompts: Sequence[Sample], **options: Any) -> Iterator[Event]:
    """As `generate`, event by event as they happen. Bad arguments raise at once."""
    return chain.from_iterable(_Engine(model, prompts, plan(model, **options)).steps())


# --------------------------------------------------------------------------------------------------
# The engine


@dataclass
class _Row:
    """One row in work. `spoken` are all its tokens, the prompt's included, without thoughts."""

    prompt: Sample
    spoken: list[int]
    length: int
    thinking: bool
    run: int
    thoughts: int
    blocks: int
    new: list[int] = field(default_factory=list)
    said: list[int] = field(default_factory=list)
    added: list[Segment] = field(default_factory=list)
    new_thoughts: int = 0
    reference: float = float("nan")
    stopped: str = ""
    steps: list[Step] = field(default_factory=list)

    @staticmethod
    def of(prompt: Sample, bot: int) -> _Row:
        spoken = [i for s in prompt.segments if isinstance(s, Text) for i in s.ids]
        last = prompt.segments[-1]
        opened = isinstance(last, Text) and last.ids[-1] == bot
        return _Row(
            prompt=prompt,
            spoken=spoken,
            length=len(prompt),
            thinking=opened or isinstance(last, Latent),
            run=len(last) if isinstance(last, Latent) else 0,
            thoughts=prompt.num_thoughts,
            blocks=len(prompt.blocks) + opened,
        )

    def think(self) -> None:
        """One more thought."""
        if not self.thinking:
            self.enter()
        self.run += 1
        self.length += 1
        self.thoughts += 1
        self.new_thoughts += 1
        self.added.append(Latent(1))

    def say(self, token: int) -> None:
        """One more word."""
        self.run += 1
        self.length += 1
        self.spoken.append(token)
        self.new.append(token)
        self.said.append(token)
        self.added.append(Text((token,), False))

    def enter(self) -> None:
        """Begin a block."""
        self.thinking, self.run = True, 0
        self.blocks += 1

    def leave(self) -> None:
        """End a block."""
        self.thinking, self.run = False, 0
        self.said = []

    def sample(self) -> Sample:
        """The prompt and what followed, neighbours of one kind joined."""
        segments: list[Segment] = []
        for segment in (*self.prompt.segments, *self.added):
            last = segments[-1] if segments else None
            if isinstance(segment, Latent) and isinstance(last, Latent):
                segments[-1] = Latent(last.num + segment.num)
            elif isinstance(segment, Text) and isinstance(last, Text):
                both = last.supervised and segment.supervised
                segments[-1] = Text(last.ids + segment.ids, both)
            else:
                segments.append(segment)
        return Sample(tuple(segments))


class _Engine:
    """One batch from its prompts to its end."""

    def __init__(self, model: Coconut, prompts: Sequence[Sample], plan: CoconutPlan) -> None:
        self.model = model
        self.plan = plan
        self.specials = model.specials
        limit = model.max_positions
        for r, prompt in enumerate(prompts):
            if limit is not None and len(prompt) >= limit:
                raise ValueError(
                    f"prompt {r} has {len(prompt)} positions, thoughts included, and the context "
                    f"holds {limit}: no room for an answer"
                )
            if plan.thought == "soft" and prompt.blocks:
                raise ValueError(
                    f"prompt {r} holds thoughts, and thought='soft' makes them only while "
                    "generating; leave them to a policy"
                )
        self.batch: LatentBatch = model.collate(prompts, may_end_open=True)
        self.rows = [_Row.of(prompt, self.specials.bot) for prompt in prompts]
        never = (self.specials.latent, self.specials.eot)
        self.banned = {True: never, False: (*never, self.specials.bot)}
        self.samplers = {
            bot: [Sampler(plan.sampling, r, banned=ids) for r in range(len(prompts))]
            for bot, ids in self.banned.items()
        }
        self.columns = self.batch["attention_mask"].shape[1]
        self.mask = F.pad(self.batch["attention_mask"], (0, _MORE))
        self.num_passes = 0
        self.fast = Decoding(unwrapped(model.base), wanted=plan.packed)
        self.num_weights, self.per_position = position_cost(model)

    # -- the loop

    @torch.no_grad()
    def steps(self) -> Iterator[list[Event]]:
        """Run to the end, with the events of each step."""
        with self.fast(self.columns):
            self.prefill()
        while True:
            kinds = self.decide()
            yield [
                Event(r, kind, row.length - 1, row.new[-1] if kind == "word" else None)
                for r, (row, kind) in enumerate(zip(self.rows, kinds, strict=True))
                if kind is not None
            ]
            if all(row.stopped for row in self.rows):
                return
            self.forward([kind == "thought" for kind in kinds])

    def prefill(self) -> None:
        """Run the prompts; keep each row's last hidden state and logits."""
        batch, B = self.batch, len(self.rows)
        mask = batch["attention_mask"]
        columns = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * columns).argmax(1)
        wanted = columns == last[:, None]
        if self.plan.trace:
            wanted = wanted | before_thoughts(batch["latent"])
        room = mask.shape[1] + min(self.plan.max_new_tokens + self.plan.max_new_thoughts, 256)
        self.cache: Cache = new_cache(self.model.base, mask, capacity=room)
        parts = self.model.sequential(
            batch,
            wanted=wanted,
            edit=self.edit,
            cache=self.cache,
            per_pass=self.plan.per_pass,
        )
        for part in parts:
            self.num_passes += 1
            rows, places = wanted[:, part.start : part.stop].nonzero(as_tuple=True)
            if part.start == 0:
                self.hidden = part.hidden.new_zeros(B, part.hidden.shape[-1])
                self.logits = widened(part.logits).new_zeros(B, part.logits.shape[-1])
                self.logprobs = self.logits.new_zeros(B)
                self.bans = {bot: self.ban(ids) for bot, ids in self.banned.items()}
            ends = places + part.start == last[rows]
            self.hidden[rows[ends]] = part.hidden[rows[ends], places[ends]]
            self.logits[rows[ends]] = widened(part.logits[ends])
            if self.plan.trace:
                self.record_prompt(part.start, rows, places, part.logits)

    def ban(self, ids: Sequence[int]) -> Tensor:
        """(V,) to add to logits so that these tokens are not said."""
        return torch.zeros_like(self.logits[0]).index_fill(
            0, torch.tensor(ids, device=self.logits.device), -torch.inf
        )

    def decide(self) -> list[Literal["thought", "word"] | None]:
        """What each row does next, and do it: its kind, None for rows that have ended."""
        forced: list[int | None] = [None] * len(self.rows)
        kinds: list[Literal["thought", "word"] | None] = ["word"] * len(self.rows)
        for r, (row, thinks) in enumerate(zip(self.rows, self.silent(), strict=True)):
            if row.stopped:
                kinds[r] = None
                continue
            thinks = thinks and row.new_thoughts < self.plan.max_new_thoughts
            if thinks != row.thinking:
                row.reference = float(self.view.entropy[r])
                if self.plan.boundaries:
                    forced[r] = self.specials.bot if thinks else self.specials.eot
                elif not thinks:
                    row.leave()
            if thinks and forced[r] is None:
                kinds[r] = "thought"
        self.do(kinds, forced)
        return kinds

    def silent(self) -> list[bool]:
        """Which rows the policy wants to think at the next position."""
        if isinstance(self.plan.policy, Speaking):
            return [False] * len(self.rows)  # the common case, without making a view
        silent = self.plan.policy(self.view)
        if silent.shape != (len(self.rows),) or silent.dtype != torch.bool:
            raise ValueError(
                f"the policy gave {silent.dtype} {tuple(silent.shape)}, must be bool "
                f"({len(self.rows)},)"
            )
        return silent.tolist()

    def do(
        self,
        kinds: Sequence[Literal["thought", "word"] | None],
        forced: Sequence[int | None],
    ) -> None:
        """Add the next position to every row that has not ended."""
        drawn = [r for r, kind in enumerate(kinds) if kind == "word" and forced[r] is None]
        words = dict(zip(drawn, self.draw(drawn, bot=False), strict=True))
        self.count(words)
        said = {r: words.get(r, forced[r]) for r, kind in enumerate(kinds) if kind == "word"}
        for r, row in enumerate(self.rows):
            if kinds[r] is None:
                continue
            if self.plan.trace:
                self.record(r, self.view, cast(int, said[r]) if r in said else None)
            if r not in said:
                row.think()
                continue
            token = cast(int, said[r])
            row.say(token)
            if forced[r] == self.specials.bot:
                row.enter()
            elif forced[r] is not None:
                row.leave()
        for row in self.rows:
            row.stopped = row.stopped or self.reason(row)

    def count(self, words: dict[int, int]) -> None:
        """Add the log-probabilities of words to their rows' (kept on the device: no wait)."""
        if words and self.plan.logprobs:
            facts = torch.tensor([*words.items()], device=self.logits.device)
            rows, tokens = facts.unbind(1)
            logits = self.logits[rows] if len(rows) < len(self.rows) else self.logits
            chances = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)
            self.logprobs.index_add_(0, rows, chances)

    def reason(self, row: _Row) -> str:
        """Why a row ends here; "" if it goes on."""
        if row.new and row.added and isinstance(row.added[-1], Text):
            if row.new[-1] in self.plan.ends:
                return "end"
            if self.plan.stop and self.says_stop(row):
                return "stop string"
            if len(row.new) >= self.plan.max_new_tokens:
                return "length"
        limit = self.model.max_positions
        return "context" if limit is not None and row.length >= limit else ""

    def says_stop(self, row: _Row) -> bool:
        """Whether the last words spell a stop string. (transformers' criterion knows only
        tokenizers that join words without a space between.)"""
        longest = max(len(string.encode()) for string in self.plan.stop)
        tail = self.model.tokenizer.decode(row.new[-longest:])
        return any(string in tail for string in self.plan.stop)

    def draw(self, rows: Sequence[int], *, bot: bool) -> list[int]:
        """The next word of these rows; `bot`: <bot> may be one."""
        if not rows:
            return []
        logits = self.logits[list(rows)] if len(rows) < len(self.rows) else self.logits
        samplers = self.samplers[bot]
        if samplers[0].is_argmax:
            return (logits + self.bans[bot]).argmax(-1).tolist()
        return [
            samplers[r].draw(samplers[r].scores(self.rows[r].spoken, own), self.rows[r].length)
            for r, own in zip(rows, logits, strict=True)
        ]

    @cached_property
    def view(self) -> SwitchView:
        """What the policy sees; made anew after each forward."""
        rows, device = self.rows, self.logits.device
        # one tensor, not five: at small models a step is mostly such small change
        numbers = [[row.thinking, row.run, row.thoughts, row.blocks] for row in rows]
        thinking, run, thoughts, blocks = torch.tensor(numbers, device=device).unbind(1)
        return SwitchView(
            specials=self.specials,
            thinking=thinking.bool(),
            run=run,
            thoughts=thoughts,
            blocks=blocks,
            said=[row.said for row in rows],
            logits=self.logits,
            reference=torch.tensor([row.reference for row in rows], device=device),
            propose=lambda: torch.tensor(self.draw(range(len(rows)), bot=True), device=device),
        )

    def forward(self, thinks: Sequence[bool]) -> None:
        """One more position of every row; rows that have ended get a masked one."""
        model, start = self.model, self.columns
        numbers = [
            [row.spoken[-1], row.length - 1, row.thoughts - 1, not row.stopped, thinks[r]]
            for r, row in enumerate(self.rows)
        ]
        facts = torch.tensor(numbers, device=self.mask.device)
        tokens, positions, thoughts, live, silent = facts.unbind(1)
        inputs = model.embedding(tokens)
        if any(thinks):
            where = (silent & live).bool()
            # row.thoughts counts the thought that is now fed in
            thought = self.edit(self.thought().to(inputs.dtype), where, thoughts)
            inputs = torch.where(where[:, None], thought, inputs)
        if start == self.mask.shape[1]:
            self.mask = F.pad(self.mask, (0, _MORE))
        self.mask[:, start] = live
        self.columns += 1
        options = {} if self.plan.per_pass is None else self.plan.per_pass(start, start + 1)
        with self.fast(1):
            hidden, logits, _ = model.run(
                inputs[:, None],
                self.mask[:, : self.columns],
                positions[:, None],
                cache=self.cache,
                **options,
            )
        self.num_passes += 1
        self.hidden, self.logits = hidden[:, 0], widened(logits[:, 0])
        self.__dict__.pop("view", None)

    # -- thoughts

    def thought(self) -> Tensor:
        """(B, d) what a silent row gets as its next input."""
        if self.plan.thought == "hidden":
            return self.model.feedback(self.hidden)
        ids = torch.arange(self.model.embedding.weight.shape[0], device=self.hidden.device)
        table = self.model.embedding(ids)
        return self.logits[:, : len(ids)].softmax(-1).to(table.dtype) @ table

    def edit(self, thought: Tensor, where: Tensor, number: Tensor) -> Tensor:
        """The caller's edit, then noise for (seed + row, number of the thought)."""
        if self.plan.edit is not None:
            thought = self.plan.edit(thought, where, number)
        if not self.plan.noise:
            return thought
        seed, shape = self.plan.sampling.seed, thought.shape[1]
        drawn = np.zeros(tuple(thought.shape), np.float32)
        for r, (thinks, n) in enumerate(zip(where.tolist(), number.tolist(), strict=True)):
            if thinks:
                bits = np.random.Philox(key=seed + r, counter=[0, n, _NOISE, 0])
                drawn[r] = np.random.Generator(bits).standard_normal(shape, np.float32)
        rms = thought.float().square().mean(-1, keepdim=True).sqrt()
        noise = torch.from_numpy(drawn).to(thought.device) * rms * self.plan.noise
        return thought + noise.to(thought.dtype)

    # -- what is kept

    def record(self, r: int, view: SwitchView, token: int | None) -> None:
        """Trace the position that row r adds: a word, or a thought through the lens."""
        row, entropy = self.rows[r], float(view.entropy[r])
        row.steps.append(self.step(row, row.length, view.logp[r], token, entropy))

    def record_prompt(self, start: int, rows: Tensor, places: Tensor, logits: Tensor) -> None:
        """Trace the thoughts that stand in the prompts."""
        latent, positions = self.batch["latent"], self.batch["position_ids"]
        for r, place, own in zip(rows.tolist(), places.tolist(), widened(logits), strict=True):
            column = start + place + 1
            if column < latent.shape[1] and bool(latent[r, column]):
                logp = own.log_softmax(-1)
                entropy = float(-(logp.exp() * logp).nan_to_num(0.0).sum())
                row, position = self.rows[r], int(positions[r, column])
                row.steps.append(self.step(row, position, logp, None, entropy))

    def step(
        self, row: _Row, position: int, logp: Tensor, token: int | None, entropy: float
    ) -> Step:
        """One step of a trace."""
        if token is None:
            top = logp.topk(min(self.plan.lens, len(logp)))
            tokens, chances = top.indices.tolist(), top.values.exp().tolist()
        else:
            tokens, chances = [token], [float(logp[token].exp())]
        text = None
        if token is not None and self.model.tokenizer is not None:
            text = self.model.tokenizer.decode([token])
        return Step(
            index=len(row.steps),
            kind="thought" if token is None else "word",
            tokens=np.asarray(tokens, np.int64),
            confidence=np.asarray(chances, np.float32),
            scores={"entropy": entropy},
            cost=Cost(1.0, 2.0 * self.num_weights + self.per_position * position),
            position=position,
            text=text,
        )

    def result(self) -> CoconutGenerated:
        """What came of it."""
        rows = self.rows
        latent, about = self.specials.latent, {"policy": str(self.plan.policy)}
        traces = [
            Trace("coconut", np.asarray(flat(row.prompt, latent=latent)[0]), row.steps, row.stopped)
            for row in rows
        ]
        for trace in traces:
            trace.meta.update(about)
        return CoconutGenerated(
            tokens=[row.new for row in rows],
            samples=[row.sample() for row in rows],
            thoughts=[row.new_thoughts for row in rows],
            stopped=[row.stopped for row in rows],
            logprobs=self.logprobs.tolist() if self.plan.logprobs else [],
            num_passes=self.num_passes,
            traces=traces if self.plan.trace else [],
        )


def position_cost(model: Coconut) -> tuple[int, int]:
    """(weights that multiply one position, FLOPs of attention per cached position)."""
    base = unwrapped(model.base)
    tables = [m.weight.numel() for m in base.modules() if isinstance(m, torch.nn.Embedding)]
    matrices = sum(p.numel() for p in base.parameters() if p.ndim > 1) - sum(tables)
    head = cast(Tensor, cast(torch.nn.Module, base.get_output_embeddings()).weight)
    if head is model.embedding.weight:
        matrices += head.numel()
    config = base.config.get_text_config()
    return matrices, 4 * int(config.num_hidden_layers) * int(config.hidden_size)


# --------------------------------------------------------------------------------------------------
# Parallel test-time scaling
