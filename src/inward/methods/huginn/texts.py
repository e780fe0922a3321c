"""What all ways to generate with Huginn share: the plan, its checks, a text in work, the result.

A *plan* is everything that the caller chose, checked before the first forward. A *text* is one row
from its prompt to its end: its tokens, how deep each thought, what that cost, and its trace. The
loops that run the model over texts are in `generate`, `speculate` and
`parallel`.

Two things are a function of the text alone, whatever shares its batch and however often a place is
visited: the state that a token starts from, drawn for (state_seed, position), and the noise that
samples a token, drawn for (seed + row, position) by `inward.common.sampling`.

Shape letters: B rows, S tokens, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from inward.common import halting
from inward.common.requests import Prompts, end_tokens, prompts_of
from inward.common.sampling import Sampler, Sampling, sampling_of
from inward.common.trace import Cost, Step, Trace
from inward.methods.huginn.cache import PerDepth, Policy
from inward.methods.huginn.cache import policy as policy_of

if TYPE_CHECKING:
    from inward.methods.huginn.config import HuginnConfig
    from inward.methods.huginn.model import HuginnForCausalLM

Start = Literal["noise", "zero"]
Warm = Literal["raw", "normed"]
Detail = Literal["tokens", "recurrences"]
OnToken = Callable[[int, int, int], Any]
"""(row, token, recurrences that it took), called as soon as the token stands"""


@dataclass(frozen=True)
class HuginnPlan:
    """What the caller chose; `plan` makes and checks it. The arguments of
    `generate.generate` have the same names and say what they mean."""

    max_new_tokens: int
    max_steps: int
    rule: halting.Rule
    min_steps: int
    check_every: int
    exit_in_prompt: bool
    policy: Policy
    start: Start
    warm: Warm | None
    ends: frozenset[int]
    sampling: Sampling
    state_seeds: tuple[int, ...]
    limit: int
    trace: Detail | None
    on_token: OnToken | None

    def asks(self, step: int, index: int) -> bool:
        """Whether the rule is asked after this recurrence (from 1) of new token `index`."""
        if self.rule == halting.Never() or (index == 0 and not self.exit_in_prompt):
            return False
        return step >= self.min_steps and (step - self.min_steps) % self.check_every == 0

    def first_state(self, model: HuginnForCausalLM, e: Tensor, positions: Tensor, seeds: Any):
        """s_0 (B, S, d) of cold tokens at `positions` (B or 1, S); `seeds`: a number, or (B,)."""
        if self.start == "zero":
            return torch.zeros_like(e)
        return model.initial_state(e, seed=seeds, positions=positions)

    def next_state(self, model: HuginnForCausalLM, s: Tensor) -> Tensor | None:
        """s_0 (B, 1, d) of the tokens that follow those with the final states s (B, S, d); None:
        they start cold."""
        if self.warm is None:
            return None
        last = s[:, -1:]
        return last if self.warm == "raw" else model.transformer.ln_f(last)


def plan(
    model: HuginnForCausalLM,
    num_rows: int,
    *,
    max_new_tokens: int,
    max_steps: int | None,
    exit: str | halting.Rule = "never",
    min_steps: int = 1,
    check_every: int = 1,
    exit_in_prompt: bool = True,
    policy: str | Policy = "deepest",
    start: Start = "noise",
    warm: Warm | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    sampling: Sampling | None = None,
    state_seed: int | Sequence[int] = 0,
    trace: Detail | None = None,
    on_token: OnToken | None = None,
) -> HuginnPlan:
    """The checked plan.

    Raises:
        ValueError: a value out of range, a rule that can never fire, choices that exclude each
            other.
    """
    config = model.config
    depth = config.mean_recurrence if max_steps is None else max_steps
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, must be at least 1")
    rule = halting.depth_rule(exit, max_steps=depth, min_steps=min_steps, every=check_every)
    slots = policy_of(policy)
    if slots == PerDepth() and rule != halting.Never():
        raise ValueError(
            "PerDepth cannot answer a token that thinks longer than an earlier one did; with exits "
            "use the policy 'deepest', or one that shares"
        )
    kinds = (("start", start, Start), ("warm", warm, Warm), ("trace", trace, Detail))
    for name, value, kind in kinds:
        if value not in get_args(kind) and not (value is None and name != "start"):
            raise ValueError(f"{name} is {value!r}; there are {', '.join(get_args(kind))}")
    seeds = (state_seed,) * num_rows if isinstance(state_seed, int) else tuple(state_seed)
    if len(seeds) != num_rows:
        raise ValueError(f"{len(seeds)} state seeds for {num_rows} rows; give one a row, or one")
    generation = model.generation_config
    return HuginnPlan(
        max_new_tokens=max_new_tokens,
        max_steps=depth,
        rule=rule,
        min_steps=min_steps,
        check_every=check_every,
        exit_in_prompt=exit_in_prompt,
        policy=slots,
        start=start,
        warm=warm,
        ends=end_tokens(eos_token_id, generation, config.vocab_size),
        sampling=sampling or sampling_of(generation, refuse=("stop_strings",)),
        state_seeds=seeds,
        limit=config.block_size,
        trace=trace,
        on_token=on_token,
    )


def model_prompts(
    model: HuginnForCausalLM, input_ids: Prompts, attention_mask: Tensor | None = None
) -> list[list[int]]:
    """The prompts without padding, checked against the model; see `prompts_of`."""
    limit, V = model.config.block_size, model.config.vocab_size
    return prompts_of(input_ids, attention_mask, context=limit, vocab_size=V)


# --------------------------------------------------------------------------------------------------
# A text in work


class Work:
    """FLOPs of the parts of a model, a multiply-add counted as two, norms left out."""

    def __init__(self, config: HuginnConfig):
        d = config.n_embd
        self.block = 2 * d * (4 * d + 3 * config.intermediate_size)
        self.seen = 4 * d  # per token looked at
        self.adapter = 4 * d * d
        self.head = 2 * d * config.vocab_size
        self.prelude_blocks, self.core_blocks, self.coda_blocks = config.layers

    def _blocks(self, first: int, num: int) -> int:
        looked_at = num * first + num * (num + 1) // 2
        return num * self.block + self.seen * looked_at

    def prelude(self, first: int, num: int = 1) -> int:
        """Of `num` tokens from position `first` on."""
        return self.prelude_blocks * self._blocks(first, num)

    def core(self, first: int, num: int = 1) -> int:
        """One recurrence of these tokens."""
        return self.core_blocks * self._blocks(first, num) + num * self.adapter

    def read_out(self, first: int, num: int = 1, num_logits: int = 1) -> int:
        """The coda of these tokens, and the head of `num_logits` of them."""
        return self.coda_blocks * self._blocks(first, num) + num_logits * self.head


@dataclass
class HuginnText:
    """One row: the prompt, the tokens said so far, the recurrences each took, and the record."""

    number: int
    prompt: list[int]
    sampler: Sampler
    state_seed: int
    tokens: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    stopped: str = ""
    cost: Cost = field(default_factory=Cost)
    record: list[Step] = field(default_factory=list)
    unrecorded: Cost = field(default_factory=Cost)

    @property
    def ids(self) -> list[int]:
        """Prompt and tokens."""
        return self.prompt + self.tokens

    @property
    def length(self) -> int:
        """How many these are."""
        return len(self.prompt) + len(self.tokens)

    def spend(self, evaluations: float, flops: float) -> None:
        """Work that was done for this text."""
        spent = Cost(evaluations, flops)
        self.cost += spent
        self.unrecorded += spent

    def note(self, position: int, scores: dict[str, float], **more: Any) -> None:
        """A step of the trace; it carries what was spent since the last one."""
        step = Step(
            index=len(self.record) + 1,
            kind="recur",
            scores=scores,
            cost=self.unrecorded,
            position=position,
            **more,
        )
        self.record.append(step)
        self.unrecorded = Cost()

    def say(self, plan: HuginnPlan, token: int, steps: int, logits: Tensor) -> None:
        """The next token stands; `logits` (V,) chose it after `steps` recurrences."""
        if plan.trace is not None:
            sure = logits.float().softmax(-1)[token].item()
            confidence = np.array([sure], dtype=np.float32)
            tokens = np.array([token], dtype=np.int64)
            self.note(self.length, {"steps": steps}, tokens=tokens, confidence=confidence)
        self.tokens.append(token)
        self.steps.append(steps)
        if plan.on_token is not None:
            plan.on_token(self.number, token, steps)
        if token in plan.ends:
            self.stopped = "end"
        elif len(self.tokens) >= plan.max_new_tokens:
            self.stopped = "budget"
        elif self.length >= plan.limit:
            self.stopped = "context"


def texts_of(plan: HuginnPlan, prompts: Iterable[list[int]]) -> list[HuginnText]:
    """A text for each prompt."""
    return [
        HuginnText(number, prompt, Sampler(plan.sampling, number), plan.state_seeds[number])
        for number, prompt in enumerate(prompts)
    ]


def choose(texts: Sequence[HuginnText], logits: Tensor) -> list[int]:
    """The next token of each text from logits (B, V)."""
    if all(text.sampler.is_argmax for text in texts):
        return logits.argmax(-1).tolist()
    return [
        text.sampler.draw(text.sampler.scores(text.ids, row), text.length)
        for text, row in zip(texts, logits, strict=True)
    ]


# --------------------------------------------------------------------------------------------------
# The result


@dataclass
class HuginnGenerated:
    """What was generated; B rows, in the order of the prompts.

    tokens: per row (T,) int64 new tokens, the end token included.
    steps: per row (T,) int64 recurrences that each took (the first: those of the prompt).
    stopped: per row "end", "budget" (max_new_tokens) or "context".
    costs: per row the core forwards that it took part in, and its FLOPs, read-outs included.
    passes: core forwards that ran one after the other, whatever the number of rows in them.
    traces: per row, if asked for. A step with `tokens` is the token said there, its scores hold
        "steps"; with trace="recurrences" steps without tokens stand between, one a recurrence.
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
        return sum(self.costs, Cost())

    @property
    def answers(self) -> list[list[int]]:
        """The new tokens as lists."""
        return [row.tolist() for row in self.tokens]


def generated(
    plan: HuginnPlan, texts: Sequence[HuginnText], passes: int, meta: dict[str, float] | None = None
) -> HuginnGenerated:
    """The result of texts that have ended."""
    assert all(text.stopped for text in texts), "a text was left unfinished"
    about = {"exit": str(plan.rule), "max_steps": plan.max_steps, "policy": str(plan.policy)}
    traces = [
        Trace("huginn", np.array(text.prompt), text.record, text.stopped, about) for text in texts
    ]
    return HuginnGenerated(
        tokens=[torch.tensor(text.tokens) for text in texts],
        steps=[torch.tensor(text.steps) for text in texts],
        stopped=[text.stopped for text in texts],
        costs=[text.cost for text in texts],
        passes=passes,
        traces=None if plan.trace is None else traces,
        meta=meta or {},
    )
