"""What all ways to generate with Huginn share: the plan of a text, its checks, the text in work.

A *plan* is everything that was chosen for one text, checked before the first forward. A *text* is
one row from its prompt to its end: its tokens, how deep each thought, what that cost, its record,
and the events that tell of it. The loops that run the model over texts are in `generate`,
`speculate` and `parallel`, on the form of `loop`.

Two things are a function of the text alone, whatever shares its batch and however often a place is
visited: the state that a token starts from, drawn for (state_seed, position), and the noise that
samples a token, drawn for (seed + row, position) by `inward.common.sampling`.

Shape letters: B rows, S tokens, d width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from inward.common import halting
from inward.common.requests import Prompts, end_tokens, prompts_of
from inward.common.sampling import Sampler, Sampling, check_logits, sampling_of
from inward.common.speaking import StopWords
from inward.common.thinking import Answer, Event, Memory
from inward.common.trace import NUMBERS, Cost, Span, Step, Trace, plane, total
from inward.methods.huginn.costs import Took
from inward.methods.huginn.options import NAME, TRACES
from inward.methods.huginn.sharing import PerDepth, Sharing, sharing_of

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM

Start = Literal["noise", "zero"]
Warm = Literal["raw", "normed"]
LENS = 5
"""Tokens of a lens."""
MOST_STEPS = 65_536
"""Recurrences of a token: 2,000 times those of the published training."""
SEEDS = 1 << 63
"""Seeds of states are below it."""


# --------------------------------------------------------------------------------------------------
# The plan


@dataclass(frozen=True)
class HuginnPlan:
    """What was chosen for a text; `plan` makes and checks it. The arguments of `generate.generate`
    have the same names and say what they mean."""

    max_new_tokens: int
    max_steps: int
    rule: halting.Rule
    min_steps: int
    check_every: int
    halt_in_prompt: bool
    sharing: Sharing
    start: Start
    warm: Warm | None
    ends: frozenset[int]
    sampling: Sampling
    state_seed: int
    limit: int
    trace: frozenset[str] | None
    lens: int | None
    stop: StopWords | None
    logprobs: bool

    def asks(self, step: int, index: int) -> bool:
        """Whether the rule is asked after this recurrence (from 1) of new token `index`."""
        if isinstance(self.rule, halting.Never) or (index == 0 and not self.halt_in_prompt):
            return False
        return step >= self.min_steps and (step - self.min_steps) % self.check_every == 0

    @property
    def watched(self) -> bool:
        """Whether every recurrence is told of, or recorded."""
        return bool(self.trace or self.lens)

    @property
    def num_lens(self) -> int:
        """Tokens of the lens on a recurrence; 0: nobody asked for it."""
        return self.lens or (LENS if self.trace and "lens" in self.trace else 0)

    def next_state(self, model: HuginnForCausalLM, s: Tensor) -> Tensor | None:
        """s_0 (B, 1, d) of the tokens that follow those with the final states s (B, S, d); None:
        they start cold."""
        if self.warm is None:
            return None
        last = s[:, -1:]
        return last if self.warm == "raw" else model.transformer.ln_f(last)


def plan(
    model: HuginnForCausalLM,
    *,
    max_new_tokens: int = 64,
    max_steps: int | None = None,
    halt: str | halting.Rule = "never",
    min_steps: int = 1,
    check_every: int = 1,
    halt_in_prompt: bool = True,
    sharing: str | Sharing = "deepest",
    start: Start = "noise",
    warm: Warm | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    sampling: Sampling | None = None,
    state_seed: int = 0,
    trace: bool | Collection[str] | None = None,
    lens: int | None = None,
    stop: StopWords | None = None,
    logprobs: bool = False,
) -> HuginnPlan:
    """The checked plan.

    Raises:
        ValueError: a value out of range, a rule that can never fire, choices that exclude each
            other.
    """
    config, depth = model.config, model.config.mean_recurrence if max_steps is None else max_steps
    for name, value, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("max_steps", depth, 1),
        ("min_steps", min_steps, 1),
        ("check_every", check_every, 1),
        ("state_seed", state_seed, -SEEDS),
        ("lens", LENS if lens is None else lens, 1),
    ):
        whole(name, value, least)
    if depth > MOST_STEPS:
        raise ValueError(
            f"max_steps is {depth}; each recurrence keeps keys and values of its own, so there are "
            f"at most {MOST_STEPS:,}"
        )
    if state_seed >= SEEDS:
        raise ValueError(f"state_seed is {state_seed}, must be below {SEEDS}")
    rule = halting.depth_rule(halt, max_steps=depth, min_steps=min_steps, every=check_every)
    slots = sharing_of(sharing)
    if slots == PerDepth() and rule != halting.Never():
        raise ValueError(
            "PerDepth cannot answer a token that thinks longer than an earlier one did; where a "
            "rule halts use sharing='deepest', or one that shares"
        )
    for name, value, kind in (("start", start, Start), ("warm", warm, Warm)):
        if value not in get_args(kind) and not (value is None and name != "start"):
            raise ValueError(f"{name} is {value!r}; there are {', '.join(get_args(kind))}")
    if not isinstance(halt_in_prompt, bool):
        raise ValueError(f"halt_in_prompt is {halt_in_prompt!r}; it is True or False")
    generation = model.generation_config
    return HuginnPlan(
        max_new_tokens=max_new_tokens,
        max_steps=depth,
        rule=rule,
        min_steps=min_steps,
        check_every=check_every,
        halt_in_prompt=halt_in_prompt,
        sharing=slots,
        start=start,
        warm=warm,
        ends=end_tokens(eos_token_id, generation, config.vocab_size),
        sampling=sampling or sampling_of(generation, refuse=("stop_strings",)),
        state_seed=state_seed,
        limit=config.block_size,
        trace=_trace_names(trace),
        lens=lens,
        stop=stop,
        logprobs=logprobs,
    )


def plans(
    model: HuginnForCausalLM, num_rows: int, *, state_seed: int | Sequence[int] = 0, **options: Any
) -> list[HuginnPlan]:
    """One plan for each of the rows, which differ in their seeds of states alone."""
    one = not isinstance(state_seed, Sequence | np.ndarray | Tensor)
    seeds: list[Any] = [state_seed] * num_rows if one else list(state_seed)
    if len(seeds) != num_rows:
        raise ValueError(f"{len(seeds)} state seeds for {num_rows} rows; give one a row, or one")
    for seed in seeds:
        whole("state_seed", seed, -SEEDS)
    first = plan(model, **options)
    return [replace(first, state_seed=int(seed)) for seed in seeds]


def whole(name: str, value: Any, least: int) -> None:
    """Raise a ValueError unless the value is a whole number, and not below `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} is {value!r}, must be a whole number")
    if value < least:
        raise ValueError(f"{name} is {value}, must be at least {least}")


def _trace_names(trace: bool | Collection[str] | None) -> frozenset[str] | None:
    """Which extras the record holds; None: there is no record."""
    if trace is None or isinstance(trace, bool):
        return frozenset() if trace else None
    names = frozenset([trace] if isinstance(trace, str) else trace)
    if wrong := sorted(names - set(TRACES)):
        raise ValueError(f"trace names {', '.join(wrong)}; {NAME} can record {', '.join(TRACES)}")
    return names


def model_prompts(
    model: HuginnForCausalLM, input_ids: Prompts, attention_mask: Tensor | None = None
) -> list[list[int]]:
    """The prompts without padding, checked against the model; see `prompts_of`."""
    limit, V = model.config.block_size, model.config.vocab_size
    return prompts_of(input_ids, attention_mask, context=limit, vocab_size=V)


# --------------------------------------------------------------------------------------------------
# A text in work


@dataclass
class Spent:
    """What a text has taken since it was last asked."""

    parts: dict[str, list[float]] = field(default_factory=dict)
    """numbers of a `Cost` by its part"""
    clock: float = field(default_factory=time.perf_counter)
    last: str = "words"
    """the part that was spent on before"""

    def add(self, part: str, evaluations: int, flops: int, forwards: int, read: int) -> None:
        """Numbers for a part, and the time since something was spent before."""
        now = time.perf_counter()
        found = self.parts.get(part)
        if found is None:
            found = self.parts[part] = [0, 0, 0, 0, 0.0]
        found[0] += evaluations
        found[1] += flops
        found[2] += forwards
        found[3] += read
        found[4] += now - self.clock
        self.clock, self.last = now, part

    def take(self) -> Cost:
        """As a `Cost`; begins anew."""
        self.add(self.last, 0, 0, 0, 0)  # time that is left
        found = total(
            Cost(**dict(zip(NUMBERS, numbers, strict=True))).under(name)
            for name, numbers in self.parts.items()
        )
        self.__init__(clock=self.clock, last=self.last)
        return found


@dataclass(eq=False)
class HuginnText:
    """One row: the prompt, the tokens said so far, the recurrences each took, and the record.

    number: of the request in its lane, or the row of `generate`. told: where its events go.
    own: settings, facts: numbers that belong to one way to generate. memory: of its conversation;
    memory_key: what its keys and values depend on beside the tokens, None: more than that.
    most: recurrences that a token may take; hurried: and no more than now.
    """

    number: int
    plan: HuginnPlan
    prompt: list[int]
    sampler: Sampler
    told: list[Event] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: str = ""
    cost: Cost = field(default_factory=Cost)
    num_steps: int = 0
    record: list[Step] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    facts: dict[str, int] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    memory: Memory | None = None
    memory_key: tuple[Any, ...] | None = None
    hurried: bool = False
    most: int = 0

    def __post_init__(self) -> None:
        self.most = self.plan.max_steps

    def enough(self, step: int) -> bool:
        """Whether its token takes no more than these recurrences. Where the caller wants no more
        thinking, the first one that asks sets the depth of all that follow."""
        if self.hurried:
            self.most = min(self.most, step)
        return step >= self.most

    prompt_view: dict[str, Span] = field(default_factory=dict)
    prompt_arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def ids(self) -> list[int]:
        """Prompt and tokens."""
        return self.prompt + self.tokens

    @property
    def length(self) -> int:
        """How many these are."""
        return len(self.prompt) + len(self.tokens)

    def spend(self, evaluations: int, took: Took, times: int = 1, *, on: str) -> None:
        """Work that was done for this text, `on` a part of `inward.common.trace.PARTS`."""
        self.spent.add(on, evaluations, times * took.flops, 0, times * took.bytes)

    def restart(self) -> None:
        """As before the first recurrence; the clock runs from here."""
        self.num_steps, self.record, self.spent = 0, [], Spent()
        self.cost = Cost()

    def count(self, **facts: int) -> None:
        """Add to the facts."""
        for name, num in facts.items():
            self.facts[name] = self.facts.get(name, 0) + num

    def note(self, kind: str, scores: dict[str, float], **more: Any) -> None:
        """A step; in the record it carries what was spent since the last one."""
        self.num_steps += 1
        if self.plan.trace is not None:
            cost = self.spent.take()
            self.cost += cost
            step = Step(self.num_steps, kind, scores=scores, cost=cost, **more)
            self.record.append(step)

    def prompt_seen(self, states: Tensor, before: Tensor, logits: Tensor) -> None:
        """What the recurrence that `recur` tells of next did to every token of the prompt: states
        (S, d) after and before it, outputs (S, V)."""
        sure, ids = logits.float().softmax(-1).max(-1)
        new, old = states.float(), before.float()
        change = (new - old).norm(dim=-1) / new.norm(dim=-1)
        self.prompt_view = {"prompt": Span.of(ids.tolist(), sure.tolist())}
        arrays = {"prompt_change": change.cpu().numpy()}
        if "plane" in (self.plan.trace or ()):
            arrays["prompt_state"] = new.cpu().numpy().copy()
        self.prompt_arrays = arrays

    def recur(
        self,
        step: int,
        change: float,
        state: Tensor,
        logits: Tensor | None,
        exit_at: float | None = None,
    ) -> None:
        """A recurrence to tell of: the last token's state (d,), for the lens the output (V,) after
        it, and the number that the rule compared with its threshold. The record holds it if it
        shall hold more than words."""
        names = self.plan.trace or ()
        view, arrays, tokens = self.prompt_view, self.prompt_arrays, ()
        self.prompt_view, self.prompt_arrays = {}, {}
        if logits is not None and self.plan.num_lens:
            top = logits.float().softmax(-1).topk(min(self.plan.num_lens, len(logits)))
            tokens = tuple(top.indices.tolist())
            if "lens" in names:
                view["lens"] = Span.of(tokens, top.values.tolist())
        if "state" in names or "plane" in names:
            arrays["state"] = state.float().cpu().numpy().copy()
        scores = {"recurrence": step, "change": change}
        if exit_at is not None:
            scores["exit"] = exit_at
        if names:
            self.note("recur", scores, position=self.length, view=view, arrays=arrays)
        else:
            self.num_steps += 1
        self.told.append(Event("thought", self.number, tokens, "", self.num_steps, scores))

    def draft(self, tokens: Sequence[int]) -> None:
        """Guesses at what follows."""
        if tokens:
            self.told.append(Event("draft", self.number, tuple(tokens), "", self.num_steps + 1))

    def say(self, token: int, steps: int, logits: Tensor) -> None:
        """The next token stands; `logits` (V,) chose it after `steps` recurrences."""
        plan, says = self.plan, None
        self.spent.add("words" if self.tokens else "prompt", 0, 0, 1, 0)
        if plan.trace is not None or plan.logprobs:
            logp = float(logits.float().log_softmax(-1)[token])
            self.logprobs.append(logp)
            says = Span.of([token], [np.exp(logp)])
        self.note("word", {"steps": steps}, position=self.length, says=says)
        self.tokens.append(token)
        self.steps.append(steps)
        scores = {"steps": float(steps)}
        self.told.append(Event("word", self.number, (token,), "", self.num_steps, scores))
        if token in plan.ends:
            self.end("end")
        elif plan.stop is not None and plan.stop.found(self.tokens):
            self.end("stop")
        elif len(self.tokens) >= plan.max_new_tokens:
            self.end("length")
        elif self.length >= plan.limit:
            self.end("context")

    def end(self, stopped: str) -> None:
        """It says no more."""
        self.stopped = stopped
        self.cost += self.spent.take()

    def trace(self) -> Trace | None:
        """If it was asked for."""
        if self.plan.trace is None:
            return None
        about = {
            "halt": str(self.plan.rule),
            "max_steps": self.plan.max_steps,
            "sharing": str(self.plan.sharing),
        }
        rule, record = self.plan.rule, self.record
        if hasattr(rule, "score"):
            times = getattr(rule, "times", None)
            about |= {"below": rule.threshold} if times is None else {"from": times}  # pyright: ignore
        if "plane" in self.plan.trace:
            record = _in_planes(record, keep="state" in self.plan.trace)
        question = np.array(self.prompt, dtype=np.int64)
        return Trace(NAME, question, record, self.stopped, about)

    def answer(self) -> Answer:
        """What came of it, when it has ended."""
        return Answer(
            tokens=tuple(self.tokens),
            steps=sum(self.steps),
            stopped=self.stopped,
            cost=self.cost,
            logprobs=tuple(self.logprobs) if self.plan.logprobs else None,
            trace=self.trace(),
            details={"steps": tuple(self.steps), **self.facts},
        )


def _in_planes(record: list[Step], *, keep: bool) -> list[Step]:
    """The record with each state's place in its token's plane (`trace.plane`): "plane" (2,), for
    the prompt "prompt_plane" (S, 2), and the share of the movement that the plane shows. The states
    themselves stay if they are to `keep`."""
    paths: dict[int | None, list[Step]] = {}
    for step in record:
        if "state" in step.arrays:
            paths.setdefault(step.position, []).append(step)
    new: dict[int, dict[str, np.ndarray]] = {}
    shares: dict[int, float] = {}
    for steps in paths.values():
        places, share = plane(np.stack([step.arrays["state"] for step in steps]))
        for step, place in zip(steps, places, strict=True):
            new[step.index], shares[step.index] = {"plane": place}, share
        whole = [step for step in steps if "prompt_state" in step.arrays]
        if whole:
            states = np.stack([step.arrays["prompt_state"] for step in whole])  # (N, S, d)
            seen = np.stack([plane(states[:, i])[0] for i in range(states.shape[1])], axis=1)
            for step, places in zip(whole, seen, strict=True):
                new[step.index]["prompt_plane"] = places
    dropped = {"prompt_state"} if keep else {"prompt_state", "state"}
    return [
        replace(
            step,
            arrays={k: a for k, a in step.arrays.items() if k not in dropped} | new[step.index],
            scores=step.scores | {"plane": shares[step.index]},
        )
        if step.index in new
        else step
        for step in record
    ]


def texts_of(plans: Sequence[HuginnPlan], prompts: Iterable[list[int]]) -> list[HuginnText]:
    """A text for each prompt; row b draws from the seed of its sampling + b."""
    return [
        HuginnText(number, plans[number], prompt, Sampler(plans[number].sampling, number))
        for number, prompt in enumerate(prompts)
    ]


def first_states(
    model: HuginnForCausalLM, texts: Sequence[HuginnText], e: Tensor, positions: Tensor
) -> Tensor:
    """s_0 (B, S, d) of cold tokens of these texts at `positions` (B or 1, S)."""
    zero = [text.plan.start == "zero" for text in texts]
    if all(zero):
        return torch.zeros_like(e)
    seeds = torch.tensor([text.plan.state_seed for text in texts], device=e.device)
    s = model.initial_state(e, seed=seeds, positions=positions)
    if any(zero):
        s = s.masked_fill(torch.tensor(zero, device=e.device)[:, None, None], 0.0)
    return s


def choose(texts: Sequence[HuginnText], logits: Tensor) -> list[int]:
    """The next token of each text from logits (B, V).

    Raises:
        NotFiniteError: NaN, or no token that could be said.
    """
    check_logits(logits, [len(text.tokens) + 1 for text in texts])
    plain = [text.sampler.is_argmax for text in texts]
    tokens = logits.argmax(-1).tolist() if any(plain) else [0] * len(texts)
    for i, text in enumerate(texts):
        if not plain[i]:
            scores = text.sampler.scores(text.ids, logits[i])
            tokens[i] = text.sampler.draw(scores, text.length)
    return tokens


# --------------------------------------------------------------------------------------------------
# The result of the functions


@dataclass
class HuginnGenerated:
    """What was generated; B rows, in the order of the prompts.

    tokens: per row (T,) int64 new tokens, the end token included.
    steps: per row (T,) int64 recurrences that each took (the first: those of the prompt).
    stopped: per row one of `inward.common.thinking.STOPPED`.
    costs: per row the core forwards that it took part in, its FLOPs (read-outs included), ...
    passes: core forwards that ran one after the other, whatever the number of rows in them.
    traces: per row, if asked for: a step "word" a token, its scores hold "steps"; with extras a
        step "recur" for each recurrence stands before it.
    meta: numbers that belong to one way to generate.
    """

    tokens: list[Tensor]
    steps: list[Tensor]
    stopped: list[str]
    costs: list[Cost]
    passes: int
    traces: list[Trace] | None = None
    meta: dict[str, float] = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """Of all rows together."""
        return total(self.costs)

    @property
    def answers(self) -> list[list[int]]:
        """The new tokens as lists."""
        return [row.tolist() for row in self.tokens]


def generated(
    texts: Sequence[HuginnText], passes: int, meta: dict[str, float] | None = None
) -> HuginnGenerated:
    """The result of texts that have ended."""
    assert all(text.stopped for text in texts), "a text was left unfinished"
    traces = [trace for text in texts if (trace := text.trace()) is not None]
    return HuginnGenerated(
        tokens=[torch.tensor(text.tokens) for text in texts],
        steps=[torch.tensor(text.steps) for text in texts],
        stopped=[text.stopped for text in texts],
        costs=[text.cost for text in texts],
        passes=passes,
        traces=traces or None,
        meta=meta or {},
    )
