"""Puzzles in work: one batch of chains (`asked.py`) that takes supervision steps together.

All chains wait in one queue. The batch takes them in, does one supervision step at a time, lets
chains that halt leave and others take their place, so that it stays full while work waits. With
`first_to_halt` the first chain of a puzzle that halts ends its sisters (arXiv 2601.19085), with
`until_right` the first whose answer the verifier accepts, at whatever step. When a puzzle's chains
are over, one of them is selected by the halting logit, by majority, or by a verifier, and its
answer may be withheld (abstain).

Budgets, halting rules, noise and selection belong to the puzzle, so whatever is asked shares the
forward; only length and grid must be equal. A chain's result does not depend on what shares its
batch: its noise comes from its own generator. Costs count every chain, also those that were ended.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inward.common import halting
from inward.common.sampling import NotFiniteError
from inward.common.thinking import Answer, Event, Method, Request
from inward.common.trace import Cost
from inward.common.twins import Twin
from inward.methods.trm.asked import (
    PuzzleAsk,
    PuzzleChain,
    StepCosts,
    Verify,
    asked,
    chains_of,
)
from inward.methods.trm.told import recorded, rewrite, sigmoid, trace_of

if TYPE_CHECKING:
    from inward.methods.trm.model import TRM


@dataclass(eq=False)
class OpenPuzzle:
    """A request under way.

    running: chains that have not left. settled: they need not run on. hurried: its answer is what
    they hold after one step, of those that have begun. wrong: what a function of the request did
    instead of what it is for. seconds: of the steps that it took part in.
    """

    number: int
    ask: PuzzleAsk
    chains: list[PuzzleChain] = field(default_factory=list)
    running: int = 0
    settled: bool = False
    cancelled: bool = False
    hurried: bool = False
    wrong: Exception | None = None
    seconds: float = 0.0


class PuzzleWork:
    """A `Work` for puzzles of one length and grid, see the top of the file.

    Args:
        method: whose options the requests give. layout: cells, and the grid they form.
        batch_size: rows of a forward at most. rewrites: make an event of each step.

    Row i of `state` (what the model repeats on) and of `columns` (what is known of each row)
    belongs to `rows[i]`. A function of a request (a rule, a verifier) that raises ends its request
    with an error, and no other.
    """

    def __init__(
        self,
        model: TRM,
        method: Method,
        layout: tuple[int, tuple[int, int]],
        *,
        batch_size: int,
        rewrites: bool = True,
    ):
        self.given, self.model, self.method = model, model, method
        self.num_cells, self.grid = layout
        self.batch_size, self.rewrites = batch_size, rewrites
        self.open: dict[int, OpenPuzzle] = {}
        self.cancelled: list[OpenPuzzle] = []
        self.answers: dict[int, Answer] = {}
        self.waiting: deque[PuzzleChain] = deque()
        self.rows: list[PuzzleChain] = []
        self.state: dict[str, Tensor] = {}
        self.columns: dict[str, Tensor] = {}
        self.rules: dict[Any, halting.Rule] = {}
        self.second: dict[str, Tensor] = {}
        self.next = 0

    @property
    def busy(self) -> bool:
        """See `Work`."""
        return bool(self.open)

    def add(self, request: Request) -> int:
        """See `Work`."""
        ask = asked(self.given, self.method, request, self.rules)
        if not self.open:
            self.model = Twin(self.given).model  # in evaluation mode, whatever others do meanwhile
        number, self.next = self.next, self.next + 1
        puzzle = OpenPuzzle(number, ask)
        puzzle.chains = chains_of(puzzle, ask)
        puzzle.running = len(puzzle.chains)
        self.open[number] = puzzle
        self.waiting += puzzle.chains
        return number

    def cancel(self, number: int) -> None:
        """See `Work`."""
        puzzle = self.open.get(number)
        if puzzle is not None and not puzzle.cancelled:
            puzzle.cancelled = puzzle.settled = True
            self.cancelled.append(puzzle)
        elif puzzle is None and number not in self.answers:
            raise KeyError(f"there is no request {number}")

    def end_thinking(self, number: int) -> None:
        """See `Work`."""
        puzzle = self.open.get(number)
        if puzzle is not None:
            puzzle.hurried = True
        elif number not in self.answers:
            raise KeyError(f"there is no request {number}")

    def result(self, number: int) -> Answer:
        """See `Work`."""
        if number in self.open:
            raise ValueError(f"request {number} has not ended; go on while the work is busy")
        if number not in self.answers:
            raise KeyError(f"there is no request {number}")
        return self.answers.pop(number)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One supervision step of every row."""
        self._keep([i for i, chain in enumerate(self.rows) if not chain.owner.settled])
        over = list(self.cancelled)
        if any(chain.owner.hurried for chain in self.rows):
            over += self._let_go(np.zeros(len(self.rows), dtype=bool))
        self._take_in()
        events: list[Event] = []
        if self.rows:
            done, events = self._advance()
            over += self._let_go(done)
        self.cancelled.clear()
        return events + self._end(sorted(over, key=lambda puzzle: puzzle.number))

    @cached_property
    def costs(self) -> StepCosts:
        """Of a step of one row."""
        return StepCosts.of(self.model, self.num_cells)

    # -- the batch

    def _take_in(self) -> None:
        """Fill the batch from the queue."""
        fresh = self._fresh()
        if not fresh:
            return
        device = self.model.device
        seen = torch.from_numpy(np.stack([chain.seen for chain in fresh]).astype(np.int64))
        step = torch.zeros(len(fresh), dtype=torch.int64, device=device)
        columns = {
            "inputs": seen.to(device),
            "identifiers": torch.tensor([c.ask.identifier for c in fresh], device=device),
            "step": step,
            "stable_for": step.clone(),
            "tokens": torch.full_like(seen, -1, device=device),
        }
        state = self.model.initial_state(len(fresh), self.num_cells)
        state = _with_noise(state, fresh, "start")
        kept = {name: self.columns[name] for name in columns} if self.rows else {}
        self.state = _joined(self.state, {name: t.clone() for name, t in state.items()})
        self.columns = _joined(kept, columns)
        self.rows += fresh

    def _fresh(self) -> list[PuzzleChain]:
        """Who comes next. Chains that race each other start together, however many they are:
        otherwise the first to halt would depend on who else is here."""
        fresh: list[PuzzleChain] = []
        while self.waiting:
            owner = self.waiting[0].owner
            if owner.settled:
                self.waiting.popleft()
                continue
            together = len(owner.chains) if owner.ask.races else 1
            busy = len(self.rows) + len(fresh)
            if busy and busy + together > self.batch_size:
                break
            fresh += [self.waiting.popleft() for _ in range(together)]
        return fresh

    def _keep(self, rows: list[int]) -> None:
        """These rows stay, moved together."""
        if len(rows) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in rows]
        if not rows:
            self.state, self.columns = {}, {}
            return
        index = torch.tensor(rows, device=self.model.device)
        self.state = {name: tensor[index] for name, tensor in self.state.items()}
        self.columns = {name: tensor[index] for name, tensor in self.columns.items()}

    def _advance(self) -> tuple[np.ndarray, list[Event]]:
        """One supervision step of every row: which rows are done by their rule, and the events."""
        began = time.perf_counter()
        columns, old = self.columns, self.state
        new, confidence, tokens, q = self._forward(_with_noise(old, self.rows, "steps"))
        self._check(q, confidence)
        answer = next(iter(new))
        moved = (new[answer] - old[answer]).float().flatten(1).norm(dim=1)
        change = moved / old[answer].float().flatten(1).norm(dim=1)
        same = (tokens == columns["tokens"]).all(1)
        stable_for = torch.where(same, columns["stable_for"] + 1, 0)
        view = halting.StepView(columns["step"] + 1, q, tokens, stable_for, change)
        self.state = new
        self.columns = {
            "inputs": columns["inputs"],
            "identifiers": columns["identifiers"],
            "confidence": confidence,
            **self.second,
            **{name: getattr(view, name) for name in _VIEW},
        }
        done = self._verdicts(view).cpu().numpy() | self._found(tokens)
        return done, self._write_down(time.perf_counter() - began)

    def _check(self, q: Tensor, confidence: Tensor) -> None:
        """NaN is no answer: the requests of such rows are over."""
        bad = {"halting logit (q_head)": ~torch.isfinite(q)}
        bad["logits of the cells (lm_head)"] = ~torch.isfinite(confidence).all(1)
        for name, rows in bad.items():
            for i in rows.nonzero()[:, 0].tolist() if bool(rows.any()) else ():
                chain = self.rows[i]
                chain.owner.settled, chain.owner.wrong = (
                    True,
                    NotFiniteError(
                        f"step {chain.steps + 1}: the {name} are not finite: the model's weights "
                        "are damaged, or its compute_dtype overflows; try compute_dtype='float32'"
                    ),
                )

    def _forward(
        self, latent: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """State, confidence (B, L), tokens (B, L) and halting logits (B,) after one more step."""
        parts, second, all_shares = [], [], []
        named = {name for chain in self.rows for name in chain.ask.trace or ()}
        self.second = {}
        for first in range(0, len(self.rows), self.batch_size):
            some = slice(first, first + self.batch_size)
            state, logits, q = self.model.supervision_step(
                self.columns["inputs"][some],
                {name: tensor[some] for name, tensor in latent.items()},
                identifiers=self.columns["identifiers"][some],
                grid=self.grid,
            )
            shares = logits.float().softmax(-1)
            parts.append((state, *shares.max(-1), q))
            if "shares" in named:
                all_shares.append(shares)
            if "runner_up" in named:
                second.append(shares.scatter(-1, parts[-1][2][..., None], -1.0).max(-1))
        if all_shares:
            self.second = {"shares": torch.cat(all_shares)}
        if second:
            sure, ids = map(torch.cat, zip(*second, strict=True))
            self.second |= {"second": ids, "second_confidence": sure}
        if len(parts) == 1:
            return parts[0]
        states, *others = zip(*parts, strict=True)
        state = {name: torch.cat([part[name] for part in states]) for name in states[0]}
        confidence, tokens, q = map(torch.cat, others)
        return state, confidence, tokens, q

    def _verdicts(self, view: halting.StepView) -> Tensor:
        """(B,) which rows are done by their rule; each rule is asked once, of its own rows."""
        if len({id(chain.ask.rule) for chain in self.rows}) == 1:
            return _verdict(view, self.rows)
        groups: dict[int, list[int]] = {}
        for i, chain in enumerate(self.rows):
            groups.setdefault(id(chain.ask.rule), []).append(i)
        done = torch.zeros_like(view.q, dtype=torch.bool)
        for rows in groups.values():
            index = torch.tensor(rows, device=done.device)
            part = halting.StepView(*(getattr(view, name)[index] for name in _VIEW))
            done[index] = _verdict(part, [self.rows[i] for i in rows])
        return done

    def _found(self, tokens: Tensor) -> np.ndarray:
        """(B,) which rows hold an answer that their puzzle's verifier accepts, of those that wait
        for one; it decides for its puzzle."""
        groups: dict[int, list[int]] = {}
        for i, chain in enumerate(self.rows):
            if chain.ask.until_right:
                groups.setdefault(id(chain.ask.verifier), []).append(i)
        found = np.zeros(len(self.rows), dtype=bool)
        if not groups:
            return found
        answers = tokens.cpu().numpy()
        for rows in groups.values():
            chains = [self.rows[i] for i in rows]
            here = [chain.back(answers[i]) for i, chain in zip(rows, chains, strict=True)]
            try:
                found[rows] = _judged(chains, here)
            except Exception as error:  # noqa: BLE001 - as with rules
                for chain in chains:
                    chain.owner.settled, chain.owner.wrong = True, error
        for chain, right in zip(self.rows, found, strict=True):
            chain.owner.settled |= bool(right)
        return found

    def _write_down(self, seconds: float) -> list[Event]:
        """Each chain's record of this step, and its event if the chain is the plain one."""
        for chain in self.rows:
            chain.steps += 1
        for puzzle in {id(chain.owner): chain.owner for chain in self.rows}.values():
            puzzle.seconds += seconds
        if not self.rewrites and all(chain.ask.trace is None for chain in self.rows):
            return []
        known = {name: self.columns[name].cpu().numpy() for name in (*_TOLD, *self.second)}
        cost = self.costs.times(1, seconds)
        events = []
        for i, chain in enumerate(self.rows):
            if chain.ask.trace is not None:
                chain.record.append(recorded(chain, known, i, cost))
            if self.rewrites and chain.number == 0:
                events.append(rewrite(chain, known, i))
        return events

    def _let_go(self, done: np.ndarray) -> list[OpenPuzzle]:
        """Rows that are done leave, with first_to_halt they take their sisters along; the puzzles
        that are over."""
        for chain, halted in zip(self.rows, done, strict=True):
            chain.owner.settled |= bool(halted) and chain.ask.first_to_halt
        # read once: it may change meanwhile
        hurried = {id(chain.owner) for chain in self.rows if chain.owner.hurried}
        leaving = [
            i
            for i, chain in enumerate(self.rows)
            if done[i]
            or chain.steps >= chain.ask.max_steps
            or chain.owner.settled
            or id(chain.owner) in hurried
        ]
        if not leaving:
            return []
        index = torch.tensor(leaving, device=self.model.device)
        columns = [
            self.columns[name][index].cpu().numpy() for name in ("q", "tokens", "confidence")
        ]
        for i, q, tokens, confidence in zip(leaving, *columns, strict=True):
            self.rows[i].finish(float(q), tokens, confidence, halted=bool(done[i]))
            self.rows[i].owner.running -= 1
        touched = {id(self.rows[i].owner): self.rows[i].owner for i in leaving}
        self._keep(sorted(set(range(len(self.rows))) - set(leaving)))
        over = [p for name, p in touched.items() if p.settled or not p.running or name in hurried]
        for puzzle in over:
            puzzle.settled = True  # chains that still wait need not begin
        return over

    # -- answers

    def _end(self, puzzles: list[OpenPuzzle]) -> list[Event]:
        """Select, answer and forget puzzles that are over."""
        if not puzzles:
            return []
        accepted = _accepted([p for p in puzzles if not p.cancelled and p.wrong is None])
        events = []
        for puzzle in puzzles:
            answer = _answer(puzzle, accepted, self.costs)
            if answer.tokens:
                word = Event("word", puzzle.number, tokens=answer.tokens, step=answer.steps)
                events.append(word)
            events.append(Event("end", puzzle.number, step=answer.steps, answer=answer))
            self.answers[puzzle.number] = answer
            del self.open[puzzle.number]
        return events


_KEPT = ("q", "tokens", "confidence")
_TOLD = (*_KEPT, "change")
_VIEW = ("step", "q", "tokens", "stable_for", "change")


def _verdict(view: halting.StepView, rows: Sequence[PuzzleChain]) -> Tensor:
    """What the rule of these rows says of them; the requests of one that fails are over."""
    try:
        done = rows[0].ask.rule(view)
        if not isinstance(done, Tensor) or done.dtype != torch.bool or done.shape != view.q.shape:
            raise ValueError(
                f"trm: the halting rule returned {type(done).__name__} "
                f"{tuple(getattr(done, 'shape', ()))}, expected a boolean tensor of "
                f"{tuple(view.q.shape)}"
            )
        return done
    except Exception as error:  # noqa: BLE001 - a user's function: its requests fail, no others
        for chain in rows:
            chain.owner.settled, chain.owner.wrong = True, error
        return torch.zeros_like(view.q, dtype=torch.bool)


def _joined(old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([old[name], t]) if old else t for name, t in new.items()}


def _with_noise(latent: dict[str, Tensor], rows: list[PuzzleChain], when: str) -> dict[str, Tensor]:
    """latent + sigma * N(0, 1) where it is asked for, each row from its own generator."""
    noisy = [
        (i, chain)
        for i, chain in enumerate(rows)
        if chain.noise is not None and chain.ask.noise_when == when
    ]
    found = dict(latent)
    for name, clean in latent.items() if noisy else ():
        here = [(i, c) for i, c in noisy if c.ask.noise_on in (name, "both") or len(latent) == 1]
        if not here:
            continue
        drawn = torch.stack([torch.randn(clean.shape[1:], generator=c.noise) for _, c in here])
        drawn = drawn.to(clean)
        # one by one, as a number: a tensor of sigmas would be rounded to the latent's precision
        for noise, (_, chain) in zip(drawn, here, strict=True):
            noise.mul_(chain.ask.noise)
        index = torch.tensor([i for i, _ in here], device=clean.device)
        found[name] = clean.index_add(0, index, drawn)
    return found


# --------------------------------------------------------------------------------------------------
# Selection


def _answer(puzzle: OpenPuzzle, accepted: set[int], costs: StepCosts) -> Answer:
    """Of a puzzle that is over; one that was cancelled or went wrong has said nothing."""
    plain = puzzle.chains[0]
    cost = costs.times(sum(c.steps for c in puzzle.chains), puzzle.seconds)
    if (wrong := puzzle.wrong) is not None:
        told = str(wrong) if isinstance(wrong, ValueError) else f"{type(wrong).__name__}: {wrong}"
        return Answer(steps=plain.steps, cost=cost, error=told, details={"exception": wrong})
    if puzzle.cancelled:
        trace = trace_of(plain, "cancelled")
        return Answer(steps=plain.steps, stopped="cancelled", cost=cost, trace=trace)
    return _chosen(puzzle, accepted, costs, cost)


def _chosen(puzzle: OpenPuzzle, accepted: set[int], costs: StepCosts, cost: Cost) -> Answer:
    """The answer of the chain that is believed most, or as `select` says."""
    ask = puzzle.ask
    # with first_to_halt only those that halted have a say, if any did
    entitled = [c for c in puzzle.chains if c.steps and not c.ended]
    best = max(entitled, key=_ranking(entitled, ask.select, accepted))
    stopped = "halted" if best.halted else "budget"
    if ask.trace is not None:
        last = best.record[-1]
        best.record[-1] = replace(last, says=last.view["grid"])
    return Answer(
        tokens=tuple(best.tokens.tolist()),
        steps=best.steps,
        stopped=stopped,
        cost=cost,
        believed=sigmoid(best.q),
        logprobs=tuple(np.log(best.confidence).tolist()) if ask.logprobs else None,
        trace=trace_of(best, stopped),
        details={
            "q": best.q,
            "chain": best.number,
            "answered": _stands(best, entitled, accepted),
            "candidates": tuple((tuple(c.tokens.tolist()), v) for c, v in _votes(entitled)),
            "confidence": tuple(best.confidence.tolist()),
            "evaluations": tuple(c.steps * costs.evaluations for c in puzzle.chains),
        },
    )


def _accepted(puzzles: list[OpenPuzzle]) -> set[int]:
    """ids of the chains whose answer the verifier of their puzzle accepts; each verifier is asked
    once."""
    groups: dict[int, list[OpenPuzzle]] = {}
    for puzzle in puzzles:
        if puzzle.ask.verifier is not None:
            groups.setdefault(id(puzzle.ask.verifier), []).append(puzzle)
    found: set[int] = set()
    for group in groups.values():
        try:
            found |= _accepted_by([c for p in group for c in p.chains])
        except Exception as error:  # noqa: BLE001 - as with rules
            for puzzle in group:
                puzzle.wrong = error
    return found


def _accepted_by(chains: list[PuzzleChain]) -> set[int]:
    judged = [c for c in chains if c.steps]
    verdict = _judged(judged, [c.tokens for c in judged])
    return {id(c) for c, ok in zip(judged, verdict, strict=True) if ok}


def _judged(chains: list[PuzzleChain], answers: list[np.ndarray]) -> np.ndarray:
    """(len(chains),) what their verifier, one for all, says of these answers."""
    verify: Any = chains[0].ask.verifier
    verdict = np.asarray(verify(np.stack([c.ask.tokens for c in chains]), np.stack(answers)))
    if verdict.shape != (len(chains),) or verdict.dtype != bool:
        raise ValueError(
            f"trm: the verifier returned {verdict.dtype} {verdict.shape}, expected bool "
            f"({len(chains)},)"
        )
    return verdict


def _votes(group: list[PuzzleChain]) -> list[tuple[PuzzleChain, int]]:
    """One chain per distinct answer with its votes, most votes first, then greatest belief."""
    heads: dict[bytes, tuple[PuzzleChain, int]] = {}
    for chain in sorted(group, key=lambda c: -c.q):
        key = np.ascontiguousarray(chain.tokens).tobytes()
        first, votes = heads.get(key, (chain, 0))
        heads[key] = (first, votes + 1)
    return sorted(heads.values(), key=lambda pair: (-pair[1], -pair[0].q))


def _ranking(
    group: list[PuzzleChain], select: str | Verify, accepted: set[int]
) -> Callable[[PuzzleChain], tuple[float, ...]]:
    """What makes one chain better than another; the earlier chain wins a tie (max keeps the
    first)."""
    if not isinstance(select, str):
        return lambda c: (id(c) in accepted, c.q)
    if select == "majority":
        votes = {np.ascontiguousarray(c.tokens).tobytes(): v for c, v in _votes(group)}
        return lambda c: (votes[np.ascontiguousarray(c.tokens).tobytes()], c.q)
    return lambda c: (c.q,)


def _stands(chain: PuzzleChain, group: list[PuzzleChain], accepted: set[int]) -> bool:
    """Whether the chosen answer is given, or withheld."""
    ask, believed = chain.ask, sigmoid(chain.q)
    if callable(ask.abstain):
        stands = id(chain) in accepted
    else:
        stands = not ask.abstain or (_agree(chain, group) and believed >= 0.5)
    if ask.abstain_below is None:
        return stands
    if not isinstance(ask.select, str):
        return stands and id(chain) in accepted
    return stands and believed >= ask.abstain_below


def _agree(chain: PuzzleChain, group: list[PuzzleChain]) -> bool:
    """More than half of the chains answer as this one does."""
    same = sum(np.array_equal(chain.tokens, other.tokens) for other in group)
    return 2 * same > len(group)
