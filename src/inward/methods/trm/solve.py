"""Solving with TRM: how long to think about each puzzle, how often, and which answer to believe.

The paper runs N_sup steps for everybody. Here a **chain** is one attempt at one puzzle; chains
differ by

    rollout     noise N(0, sigma^2) on the latent before each step     (PTRM, arXiv 2605.19943)
    symmetry    the puzzle seen through a transform, the answer seen back

All chains of all puzzles wait in one queue. A working batch takes them in, does one supervision
step at a time, lets chains that halt leave and others take their place, so that the batch stays
full while work waits. With `first_to_halt` the first chain of a puzzle that halts ends its sisters
(arXiv 2601.19085). What the chains of a puzzle answered is then selected by the halting logit, by
majority, or by a verifier, and may be withheld (abstain).

A chain's result does not depend on what shares its batch: its noise comes from its own generator.
Costs count every chain, also those that were ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from inward.common import halting
from inward.common.trace import Cost, Step, Trace
from inward.data.puzzles.puzzles import Symmetry

if TYPE_CHECKING:
    from inward.methods.trm.model import TRM

_NOTHING = np.empty(0)  # what a chain holds before it has run

Verify = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(inputs (B, L), answers (B, L)) -> (B,) bool"""


@dataclass
class Solution:
    """One answer a puzzle, in the order of the questions; B puzzles of L cells.

    answers: (B, L) int64 tokens.
    q: (B,) halting logit of the chosen chain; sigmoid(q) is the model's belief that the answer is
        right.
    confidence: (B, L) probability of each answered token.
    steps: (B,) supervision steps of the chosen chain;  halted: (B,) it stopped by the rule, not by
        the budget.
    answered: (B,) False where the model abstains (the answer is still there to look at).
    evaluations, flops: (B,) network evaluations and FLOPs of all chains of the puzzle.
    candidates: per puzzle the distinct answers of its chains with their votes, most votes first.
    traces: per puzzle the chosen chain's trace, as asked for.
    """

    answers: Tensor
    q: Tensor
    confidence: Tensor
    steps: Tensor
    halted: Tensor
    answered: Tensor
    evaluations: Tensor
    flops: Tensor
    candidates: list[list[tuple[np.ndarray, int]]] = field(default_factory=list)
    traces: list[Trace] | None = None


@dataclass
class _Chain:
    """One attempt: what is seen (tokens through the symmetry), and what became of it."""

    puzzle: int
    number: int
    symmetry: Symmetry | None
    noise: torch.Generator | None
    steps: int = 0
    halted: bool = False
    ended: bool = False
    q: float = 0.0
    tokens: np.ndarray = field(default_factory=lambda: _NOTHING)
    confidence: np.ndarray = field(default_factory=lambda: _NOTHING)
    record: list[Step] = field(default_factory=list)
    cells: np.ndarray | None = None

    def seen(self, tokens: np.ndarray) -> np.ndarray:
        return tokens if self.symmetry is None else self.symmetry.apply(tokens)

    def back(self, tokens: np.ndarray) -> np.ndarray:
        return tokens if self.symmetry is None else self.symmetry.invert(tokens)

    def cells_back(self, values: np.ndarray) -> np.ndarray:
        """Numbers that belong to cells, moved as the symmetry moves cells.

        A symmetry may rename tokens too, so the numbers cannot go through it: L grids with one
        marked cell each tell where every cell goes.
        """
        if self.symmetry is None:
            return values
        if self.cells is None:
            marked = self.symmetry.invert(np.eye(len(values), dtype=np.int64))
            blank = self.symmetry.invert(np.zeros(len(values), dtype=np.int64))
            self.cells = np.argmax(marked != blank, axis=0)
        return values[self.cells]


@torch.inference_mode()
def solve(
    model: TRM,
    inputs: Tensor | np.ndarray,
    *,
    identifiers: Tensor | np.ndarray | None = None,
    grid: tuple[int, int] | None = None,
    max_steps: int | None = None,
    halt: str | halting.Rule = "q+stable",
    rollouts: int = 1,
    noise: float = 0.0,
    noise_on: Literal["z", "y", "both"] = "z",
    symmetries: Sequence[Symmetry] = (),
    select: Literal["q", "majority"] | Verify = "q",
    first_to_halt: bool = False,
    abstain_below: float | None = None,
    seed: int = 0,
    batch_size: int = 256,
    trace: bool = False,
    progress: bool = False,
) -> Solution:
    """Answer puzzles.

    Args:
        inputs: (B, L) tokens.
        identifiers: (B,) rows of the identifier table (default 0).
        grid: rows and columns, for lengths the model was not built for and that are no squares.
        max_steps: the budget per chain, free of what training used (default N_sup).
        halt: "q" (the paper's), "stable", "q+stable", "never", or a rule (inward.common.halting).
        The
            default waits until the believed answer has stood still for one step: the head alone
            fires early.
        rollouts: chains per puzzle and symmetry. The first is free of noise, so that 1 is the
            plain model.
        noise: sigma, in units of the latent (whose entries have mean square 1).
        noise_on: which latent gets the noise; summaries of PTRM disagree, "z" leaves the current
            answer alone.
        symmetries: chains also see the puzzle through each of these; the untouched puzzle is
            always one.
        select: "q": the chain that believes most in its answer; "majority": most votes, then
            belief; or a verifier:
            an answer it accepts wins, then belief.
        first_to_halt: the first chain that halts decides, and ends the others.
        abstain_below: withhold answers believed less than this (or, with a verifier, not accepted).
        seed: of the noise.
        batch_size: rows in work at a time.
        trace: keep every step of every chain and return the chosen ones.
    Raises:
        ValueError: shapes, tokens or options out of range, before any work.
    """
    tokens = _check_inputs(model, inputs)
    _check_options(max_steps, rollouts, noise, noise_on, select, abstain_below, batch_size)
    model.settings.layout(tokens.shape[1], grid)
    names = _check_identifiers(model, identifiers, len(tokens))
    chains = _chains(len(tokens), rollouts, noise, symmetries, seed)
    work = _Work(
        model=model,
        tokens=tokens,
        identifiers=names,
        grid=grid,
        max_steps=model.settings.n_sup if max_steps is None else max_steps,
        rule=halting.rule(halt),
        sigma=noise,
        noise_on=noise_on,
        first_to_halt=first_to_halt,
        batch_size=batch_size,
        trace=trace,
    )
    was_training = model.training
    model.eval()
    try:
        work.run(chains, progress)
    finally:
        model.train(was_training)
    return _select(work, chains, select, abstain_below)


# --------------------------------------------------------------------------------------------------
# Checks and set-up


def _check_inputs(model: TRM, inputs: Tensor | np.ndarray) -> np.ndarray:
    tokens = inputs.cpu().numpy() if isinstance(inputs, Tensor) else np.asarray(inputs)
    if tokens.ndim != 2 or tokens.size == 0:
        raise ValueError(
            f"solve: inputs have shape {tokens.shape}, expected (puzzles, cells), both at least 1; "
            "for one puzzle pass tokens[None]"
        )
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"solve: inputs are {tokens.dtype}, expected integer tokens")
    low, high, V = int(tokens.min()), int(tokens.max()), model.settings.vocab_size
    if low < 0 or high >= V:
        raise ValueError(f"solve: tokens run from {low} to {high}, the model knows 0 to {V - 1}")
    return tokens


def _check_options(
    max_steps: int | None,
    rollouts: int,
    noise: float,
    noise_on: str,
    select: Any,
    abstain_below: float | None,
    batch_size: int,
) -> None:
    for name, value in (
        ("max_steps", max_steps),
        ("rollouts", rollouts),
        ("batch_size", batch_size),
    ):
        if value is not None and value < 1:
            raise ValueError(f"solve: {name} is {value}, must be at least 1")
    if not 0.0 <= noise < float("inf"):
        raise ValueError(
            f"solve: noise is {noise}, must be finite and not negative (0.3 is the published one)"
        )
    if rollouts > 1 and noise == 0.0:
        raise ValueError(
            f"solve: {rollouts} rollouts without noise are all the same; set noise=0.3, or "
            "rollouts=1"
        )
    if noise_on not in ("z", "y", "both"):
        raise ValueError(f"solve: noise_on is {noise_on!r}, must be 'z', 'y' or 'both'")
    if isinstance(select, str) and select not in ("q", "majority"):
        raise ValueError(
            f"solve: select is {select!r}, must be 'q', 'majority' or a verifier function"
        )
    if abstain_below is not None and not 0.0 <= abstain_below <= 1.0:
        raise ValueError(f"solve: abstain_below is {abstain_below}, a probability lies in 0..1")


def _check_identifiers(model: TRM, identifiers: Any, num: int) -> np.ndarray:
    if identifiers is None:
        return np.zeros(num, dtype=np.int64)
    names = np.asarray(identifiers.cpu() if isinstance(identifiers, Tensor) else identifiers)
    table = model.settings.num_identifiers
    if names.shape != (num,) or names.min() < 0 or (table and names.max() >= table):
        raise ValueError(
            f"solve: identifiers must be ({num},) numbers in 0..{table - 1}, got shape "
            f"{names.shape}" + (f" from {names.min()} to {names.max()}" if names.size else "")
        )
    return names.astype(np.int64)


def _chains(
    num_puzzles: int, rollouts: int, sigma: float, symmetries: Sequence[Symmetry], seed: int
) -> list[_Chain]:
    """Puzzle by puzzle; within a puzzle the plain chain first."""
    views: list[Symmetry | None] = [None, *symmetries]
    chains = []
    for puzzle in range(num_puzzles):
        for number, (rollout, view) in enumerate((r, v) for r in range(rollouts) for v in views):
            generator = None
            if rollout and sigma:
                state = np.random.SeedSequence([seed, puzzle, number]).generate_state(1, np.uint64)[
                    0
                ]
                generator = torch.Generator().manual_seed(int(state >> 1))
            chains.append(_Chain(puzzle, number, view, generator))
    return chains


# --------------------------------------------------------------------------------------------------
# The working batch


@dataclass
class _Work:
    """The queue and the batch in work. Row i of every tensor belongs to `self.rows[i]`."""

    model: TRM
    tokens: np.ndarray
    identifiers: np.ndarray
    grid: tuple[int, int] | None
    max_steps: int
    rule: halting.Rule
    sigma: float
    noise_on: str
    first_to_halt: bool
    batch_size: int
    trace: bool
    rows: list[_Chain] = field(default_factory=list)
    batch: dict[str, Tensor] = field(default_factory=dict)

    def run(self, chains: list[_Chain], progress: bool) -> None:
        from tqdm import tqdm

        settled: set[int] = set()  # puzzles decided by first_to_halt
        waiting = iter(chains)
        with tqdm(total=len(chains), disable=not progress, unit="chain", desc="solve") as bar:
            while self._take_in(waiting, settled):
                self._step()
                bar.update(self._let_go(settled))
            bar.update(len(chains) - bar.n)

    def _take_in(self, waiting: Iterator[_Chain], settled: set[int]) -> bool:
        """Fill the batch from the queue; False when nothing is left to do."""
        fresh = []
        while len(self.rows) + len(fresh) < self.batch_size:
            chain = next(waiting, None)
            if chain is None:
                break
            if chain.puzzle in settled:
                chain.ended = True
                continue
            fresh.append(chain)
        if fresh:
            self._append(fresh)
        return bool(self.rows)

    def _append(self, fresh: list[_Chain]) -> None:
        device = self.model.device
        seen = np.stack([chain.seen(self.tokens[chain.puzzle]) for chain in fresh])
        state = self.model.initial_state(len(fresh), seen.shape[1])
        new = {name: tensor.clone() for name, tensor in state.items()}
        new["inputs"] = torch.from_numpy(seen.astype(np.int64)).to(device)
        names = self.identifiers[[chain.puzzle for chain in fresh]]
        new["identifiers"] = torch.from_numpy(names).to(device)
        new["step"] = torch.zeros(len(fresh), dtype=torch.int64, device=device)
        new["stable_for"] = torch.zeros_like(new["step"])
        new["tokens"] = torch.full_like(new["inputs"], -1)
        if self.rows:
            new = {name: torch.cat([self.batch[name], tensor]) for name, tensor in new.items()}
        self.batch = new
        self.rows += fresh

    def _step(self) -> None:
        """One supervision step of every row, and what the rule says of it."""
        model, batch = self.model, self.batch
        names = [name for name in ("y", "z") if name in batch]
        latent = {name: batch[name] for name in names}
        if self.sigma:
            self._add_noise(latent)
        new, logits, q = model.supervision_step(
            batch["inputs"], latent, identifiers=batch["identifiers"], grid=self.grid
        )
        probability, tokens = logits.float().softmax(-1).max(-1)
        answer = names[0]
        moved = (new[answer] - batch[answer]).float().flatten(1).norm(dim=1)
        change = moved / batch[answer].float().flatten(1).norm(dim=1)
        same = (tokens == batch["tokens"]).all(1)
        batch |= new | {"tokens": tokens, "q": q, "confidence": probability}
        batch["step"] = batch["step"] + 1
        batch["stable_for"] = torch.where(same, batch["stable_for"] + 1, 0)
        view = halting.StepView(batch["step"], q, tokens, batch["stable_for"], change)
        batch["done"] = self._verdict(view)
        if self.trace:
            self._record(change)

    def _verdict(self, view: halting.StepView) -> Tensor:
        done = self.rule(view)
        if not isinstance(done, Tensor) or done.dtype != torch.bool or done.shape != view.q.shape:
            raise ValueError(
                f"solve: the halting rule returned {type(done).__name__} "
                f"{tuple(getattr(done, 'shape', ()))}, expected a boolean tensor of "
                f"{tuple(view.q.shape)}"
            )
        return done

    def _add_noise(self, latent: dict[str, Tensor]) -> None:
        """In place of the latents named: latent + sigma * N(0, 1), each row from its own
        generator."""
        targets = [name for name in latent if self.noise_on in (name, "both") or len(latent) == 1]
        for name in targets:
            shape = latent[name].shape[1:]
            drawn = [
                torch.zeros(shape)
                if chain.noise is None
                else torch.randn(shape, generator=chain.noise)
                for chain in self.rows
            ]
            drawn = torch.stack(drawn).to(latent[name])
            latent[name] = latent[name] + self.sigma * drawn

    def _let_go(self, settled: set[int]) -> int:
        """Rows that are done leave the batch; the others are moved together. Returns how many
        left."""
        done = self.batch["done"].cpu().numpy()
        spent = (self.batch["step"] >= self.max_steps).cpu().numpy()
        if self.first_to_halt:
            settled |= {
                chain.puzzle for chain, halted in zip(self.rows, done, strict=True) if halted
            }
            ended = np.array([chain.puzzle in settled for chain in self.rows]) & ~done
        else:
            ended = np.zeros_like(done)
        leaving = done | spent | ended
        if not leaving.any():
            return 0
        for i in np.flatnonzero(leaving):
            self._finish(self.rows[i], int(i), halted=bool(done[i]), ended=bool(ended[i]))
        keep = np.flatnonzero(~leaving)
        index = torch.from_numpy(keep).to(self.model.device)
        self.batch = {name: tensor[index] for name, tensor in self.batch.items()}
        self.rows = [self.rows[i] for i in keep]
        return int(leaving.sum())

    def _finish(self, chain: _Chain, i: int, *, halted: bool, ended: bool) -> None:
        chain.steps = int(self.batch["step"][i])
        chain.halted, chain.ended = halted, ended
        chain.q = float(self.batch["q"][i])
        chain.tokens = chain.back(self.batch["tokens"][i].cpu().numpy())
        chain.confidence = chain.cells_back(self.batch["confidence"][i].cpu().numpy())

    def _record(self, change: Tensor) -> None:
        evaluations, flops = self.step_cost()
        tokens, confidence = (self.batch[name].cpu().numpy() for name in ("tokens", "confidence"))
        for i, chain in enumerate(self.rows):
            step = Step(
                index=len(chain.record) + 1,
                kind="refine",
                tokens=chain.back(tokens[i]),
                confidence=chain.cells_back(confidence[i]),
                scores={"halt": float(self.batch["q"][i]), "change": float(change[i])},
                cost=Cost(evaluations, flops),
            )
            chain.record.append(step)

    def step_cost(self) -> tuple[float, float]:
        """Evaluations and FLOPs of one supervision step of one row."""
        T, n = self.model.settings.cycles()
        evaluation, read_out = self.model.flops(self.tokens.shape[1])
        num = T * self.model.settings.evaluations(n)
        return num, num * evaluation + read_out


# --------------------------------------------------------------------------------------------------
# Selection


def _select(
    work: _Work, chains: list[_Chain], select: str | Verify, abstain_below: float | None
) -> Solution:
    by_puzzle: list[list[_Chain]] = [[] for _ in work.tokens]
    for chain in chains:
        by_puzzle[chain.puzzle].append(chain)
    accepted = _accepted(work.tokens, chains, select)
    evaluations, flops = work.step_cost()
    chosen, answered, candidates, spent = [], [], [], []
    for group in by_puzzle:
        # with first_to_halt only those that halted have a say, if any did
        entitled = [c for c in group if c.steps and not c.ended]
        best = max(entitled, key=_ranking(entitled, select, accepted))
        chosen.append(best)
        candidates.append([(c.tokens, votes) for c, votes in _votes(entitled)])
        answered.append(_stands(best, accepted, abstain_below))
        spent.append(sum(c.steps for c in group))
    steps = torch.tensor(spent, dtype=torch.float64)
    return Solution(
        answers=torch.from_numpy(np.stack([c.tokens for c in chosen]).astype(np.int64)),
        q=torch.tensor([c.q for c in chosen]),
        confidence=torch.from_numpy(np.stack([c.confidence for c in chosen])),
        steps=torch.tensor([c.steps for c in chosen]),
        halted=torch.tensor([c.halted for c in chosen]),
        answered=torch.tensor(answered),
        evaluations=steps * evaluations,
        flops=steps * flops,
        candidates=candidates,
        traces=[_trace(work, c) for c in chosen] if work.trace else None,
    )


def _accepted(tokens: np.ndarray, chains: list[_Chain], select: str | Verify) -> set[int] | None:
    """ids of the chains whose answer the verifier accepts; None when there is no verifier."""
    if isinstance(select, str):
        return None
    judged = [c for c in chains if c.steps]
    verdict = np.asarray(
        select(tokens[[c.puzzle for c in judged]], np.stack([c.tokens for c in judged]))
    )
    if verdict.shape != (len(judged),) or verdict.dtype != bool:
        raise ValueError(
            f"solve: the verifier returned {verdict.dtype} {verdict.shape}, expected bool "
            f"({len(judged)},)"
        )
    return {id(c) for c, ok in zip(judged, verdict, strict=True) if ok}


def _votes(group: list[_Chain]) -> list[tuple[_Chain, int]]:
    """One chain per distinct answer with its votes, most votes first, then greatest belief."""
    heads: dict[bytes, tuple[_Chain, int]] = {}
    for chain in sorted(group, key=lambda c: -c.q):
        key = np.ascontiguousarray(chain.tokens).tobytes()
        first, votes = heads.get(key, (chain, 0))
        heads[key] = (first, votes + 1)
    return sorted(heads.values(), key=lambda pair: (-pair[1], -pair[0].q))


def _ranking(
    group: list[_Chain], select: str | Verify, accepted: set[int] | None
) -> Callable[[_Chain], tuple[float, ...]]:
    """What makes one chain better than another; the earlier chain wins a tie (max keeps the
    first)."""
    if accepted is not None:
        return lambda c: (id(c) in accepted, c.q)
    if select == "majority":
        votes = {np.ascontiguousarray(c.tokens).tobytes(): v for c, v in _votes(group)}
        return lambda c: (votes[np.ascontiguousarray(c.tokens).tobytes()], c.q)
    return lambda c: (c.q,)


def _stands(chain: _Chain, accepted: set[int] | None, abstain_below: float | None) -> bool:
    if abstain_below is None:
        return True
    if accepted is not None:
        return id(chain) in accepted
    return 1 / (1 + np.exp(-chain.q)) >= abstain_below


def _trace(work: _Work, chain: _Chain) -> Trace:
    rows, columns = work.model.settings.layout(work.tokens.shape[1], work.grid)
    return Trace(
        method="trm",
        question=work.tokens[chain.puzzle].astype(np.int64),
        steps=chain.record,
        stopped="halted" if chain.halted else "budget",
        meta={"grid": [rows, columns], "chain": chain.number},
    )
