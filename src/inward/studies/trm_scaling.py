"""What more thinking buys a frozen model: run every chain once, ask every question afterwards.

A chain is one attempt at one puzzle (`trm.solve`). `record` runs C chains of each puzzle for S
steps without ever halting, and keeps for each (puzzle, chain, step) whether the answer was right,
how much it was believed, and which answer it was. Accuracy for any budget of steps, any K <= C
chains, any selector, halting rule or threshold is then read off the same table, so that all points
of a curve are paired on the same puzzles and the same noise, and the whole study costs one run of
its largest point.

    table = record(model, puzzles, task, max_steps=16, rollouts=64, noise=0.3)
    outcome(table, chains=8, select="majority").right.mean()
    outcome(table, chains=1, halt="q+stable").evaluations.mean()

`outcome` takes the options of `solve` and returns what `solve` would have answered, noise included;
a test holds the two against each other. The published selectors (PTRM, arXiv 2605.19943) are "q"
(best-Q) and "majority" (mode), and "oracle" is its pass@K: any chain right, which nobody can know
without the answer. "verify" asks the rules of the task, which for Sudoku is as good as the oracle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inward.data.puzzles.puzzles import PAD, Puzzles, Symmetry
from inward.evals.puzzles import scored_right
from inward.evals.stats import Paired, paired_difference
from inward.tasks.arc import ArcTask
from inward.tasks.named import part

if TYPE_CHECKING:
    from inward.common.halting import Rule, StepView
    from inward.recipes.trm import TRMRecipe

SELECTORS = ("q", "majority", "verify", "oracle")
_CHAINS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Table:
    """P puzzles, C chains each, S steps each.

    right: (P, C, S) bool, the answer equals the label (or obeys the rules, without labels).
    verified: (P, C, S) bool, the answer obeys the rules; None where the task has none.
    q: (P, C, S) float32 halting logit.
    answer: (P, C, S) int64, equal for equal answers of one puzzle (a 64-bit sum of the cells).
    stable_for, change: (P, C, S) as `halting.View` has them.
    evaluations, flops: of one step of one chain.
    """

    right: np.ndarray
    verified: np.ndarray | None
    q: np.ndarray
    answer: np.ndarray
    stable_for: np.ndarray
    change: np.ndarray
    evaluations: float
    flops: float

    def __len__(self) -> int:
        return len(self.right)

    @property
    def num_chains(self) -> int:
        return self.right.shape[1]

    @property
    def num_steps(self) -> int:
        return self.right.shape[2]


def record(
    model: Any,
    puzzles: Puzzles,
    task: Any,
    *,
    max_steps: int,
    rollouts: int = 1,
    noise: float = 0.0,
    symmetries: Sequence[Symmetry] = (),
    seed: int = 0,
    chains_at_once: int = _CHAINS_AT_ONCE,
    progress: bool = False,
    **options: Any,
) -> Table:
    """Run every chain for `max_steps` steps, never halted.

    Chains are numbered as in `solve`: rollout 0 in each view (the puzzle as it is, then through
    each symmetry), rollout 1, ... Puzzles are worked on in parts of about `chains_at_once` chains;
    a part that starts at puzzle i draws its noise from seed + i, so that a set in one part is
    `solve` with the same seed.

    Args:
        options: further keywords of `solve` (noise_on).
    Raises:
        ValueError: as `solve` does; puzzles without labels of a task without rules.
    """
    from tqdm import tqdm

    if isinstance(task, ArcTask) and not (puzzles.labels != PAD).any(axis=1).all():
        raise ValueError("these puzzles have no labels and their task no rules; nothing to count")
    views = 1 + len(symmetries)
    size = max(1, chains_at_once // (rollouts * views))
    parts = []
    for start in tqdm(range(0, len(puzzles), size), disable=not progress, desc="record"):
        part = puzzles.select(slice(start, start + size))
        recorder = _StateRecorder(part, task, rollouts, symmetries)
        model.solve(
            part.inputs,
            identifiers=part.identifiers,
            grid=part.grid,
            max_steps=max_steps,
            halt=recorder,
            rollouts=rollouts,
            noise=noise,
            symmetries=symmetries,
            seed=seed + start,
            batch_size=len(part) * rollouts * views,
            **options,
        )
        parts.append(recorder.columns())
    T, n = model.settings.cycles()
    evaluation, read_out = model.flops(puzzles.inputs.shape[1])
    num = T * model.settings.evaluations(n)
    joined = {
        name: None if column is None else np.concatenate([part[name] for part in parts])
        for name, column in parts[0].items()
    }
    return Table(**joined, evaluations=num, flops=num * evaluation + read_out)  # pyright: ignore


class _StateRecorder:
    """A halting rule that never fires and writes down what it is shown.

    All chains are in one batch and none leaves before the last step, so row i is always chain i.
    """

    def __init__(
        self, puzzles: Puzzles, task: Any, rollouts: int, symmetries: Sequence[Symmetry]
    ) -> None:
        self.puzzles, self.task = puzzles, task
        self.views: list[Symmetry | None] = [None, *symmetries]
        self.shape = (len(puzzles), rollouts * len(self.views))
        self.steps: dict[str, list[np.ndarray | None]] = {}
        # odd numbers: a change of any single cell changes the sum
        words = np.random.default_rng(0).integers(2**62, size=puzzles.inputs.shape[1])
        self.words = 2 * words + 1

    def __call__(self, view: StepView) -> Any:
        import torch

        assert len(view.q) == self.shape[0] * self.shape[1], "a chain left the batch"
        answers = self.seen_back(view.tokens.cpu().numpy().reshape(*self.shape, -1))
        verified = self.verify(answers)
        exact = self.exact(answers)
        values = {
            "right": scored_right(self.task, exact, verified)[0],
            "verified": verified,
            "q": view.q.float().cpu().numpy().reshape(self.shape),
            "answer": (answers.astype(np.int64) * self.words).sum(-1),
            "stable_for": view.stable_for.cpu().numpy().reshape(self.shape),
            "change": view.change.float().cpu().numpy().reshape(self.shape),
        }
        for name, value in values.items():
            self.steps.setdefault(name, []).append(value)
        return torch.zeros_like(view.q, dtype=torch.bool)

    def seen_back(self, tokens: np.ndarray) -> np.ndarray:
        """(P, C, L) answers in the puzzle's own orientation and digits."""
        answers = np.array(tokens)
        for i, symmetry in enumerate(self.views):
            if symmetry is not None:
                mine = np.s_[:, i :: len(self.views)]
                answers[mine] = symmetry.invert(tokens[mine])
        return answers

    def exact(self, answers: np.ndarray) -> np.ndarray | None:
        labels = self.puzzles.labels[:, None]
        if not (labels != PAD).any(axis=2).all():
            return None
        return ((answers == labels) | (labels == PAD)).all(axis=2)

    def verify(self, answers: np.ndarray) -> np.ndarray | None:
        if isinstance(self.task, ArcTask):
            return None
        inputs = np.repeat(self.puzzles.inputs, self.shape[1], axis=0)
        flat = answers.reshape(len(inputs), -1)
        return np.asarray(self.task.verify(inputs, flat)).reshape(self.shape)

    def columns(self) -> dict[str, np.ndarray | None]:
        """name -> (P, C, S)."""
        return {
            name: None if values[0] is None else np.stack(values, axis=-1)  # pyright: ignore
            for name, values in self.steps.items()
        }


# --------------------------------------------------------------------------------------------------
# Questions to a table


@dataclass(frozen=True, eq=False)
class Outcome:
    """One answer a puzzle, all of (P,).

    right; q: the chosen chain's halting logit; votes: share of the chains that gave its answer.
    chain, steps: number of the chosen chain and its steps; halted: the rule stopped it.
    evaluations, flops: of all chains of the puzzle.
    """

    right: np.ndarray
    q: np.ndarray
    votes: np.ndarray
    chain: np.ndarray
    steps: np.ndarray
    halted: np.ndarray
    evaluations: np.ndarray
    flops: np.ndarray


def outcome(
    table: Table,
    *,
    chains: int | None = None,
    max_steps: int | None = None,
    halt: str | Rule = "never",
    select: str = "q",
    first_to_halt: bool = False,
) -> Outcome:
    """What `solve` with these options answers: the first `chains` chains, `max_steps` at most.

    A rule of your own sees `answer` in place of the tokens.

    Raises:
        ValueError: more chains or steps than were recorded, an unknown selector, "verify" for a
            task without rules.
    """
    K = table.num_chains if chains is None else chains
    S = table.num_steps if max_steps is None else max_steps
    _check(table, K, S, select)
    stop, halted = stopping(table, halt, chains=K, max_steps=S)
    entitled = np.ones_like(halted)
    if first_to_halt:
        first = np.where(halted, stop, S).min(axis=1, keepdims=True)
        ending = halted & (stop == first)
        entitled = np.where(ending.any(axis=1, keepdims=True), ending, True)
        stop = np.broadcast_to(first, stop.shape)
        halted = ending

    def at(values: np.ndarray) -> np.ndarray:
        """(P, K) what each chain held when it stopped."""
        return np.take_along_axis(values[:, :K], stop[..., None] - 1, axis=2)[..., 0]

    q, right, answer = at(table.q), at(table.right), at(table.answer)
    same = (answer[:, :, None] == answer[:, None, :]) & entitled[:, None, :]
    votes = same.sum(axis=2)
    merits = {"q": np.zeros_like(votes), "majority": votes, "oracle": right}
    if select == "verify":
        assert table.verified is not None, "checked before"
        merits["verify"] = at(table.verified)
    best = _best(merits[select].astype(np.int64), q, entitled)

    def of_best(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, best[:, None], axis=1)[:, 0]

    spent = stop.sum(axis=1)
    return Outcome(
        right=of_best(right),
        q=of_best(q),
        votes=of_best(votes) / entitled.sum(axis=1),
        chain=best,
        steps=of_best(stop),
        halted=of_best(halted),
        evaluations=spent * table.evaluations,
        flops=spent * table.flops,
    )


def stopping(
    table: Table, halt: str | Rule, *, chains: int, max_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """(P, K) the step at which each chain stops, from 1, and whether the rule stopped it."""
    import torch

    from inward.common import halting

    shape = (len(table), chains, max_steps)
    parts = {
        name: torch.from_numpy(np.ascontiguousarray(getattr(table, name)[:, :chains, :max_steps]))
        for name in ("q", "answer", "stable_for", "change")
    }
    view = halting.StepView(
        step=torch.arange(1, max_steps + 1).expand(shape).flatten(),
        q=parts["q"].flatten(),
        tokens=parts["answer"].flatten()[:, None],
        stable_for=parts["stable_for"].flatten(),
        change=parts["change"].flatten(),
    )
    fires = halting.rule(halt)(view).numpy().reshape(shape)
    halted = np.asarray(fires.any(axis=2))
    return np.where(halted, fires.argmax(axis=2) + 1, max_steps), halted


def _check(table: Table, chains: int, steps: int, select: str) -> None:
    for name, value, limit in (
        ("chains", chains, table.num_chains),
        ("max_steps", steps, table.num_steps),
    ):
        if not 1 <= value <= limit:
            raise ValueError(f"{name} is {value}; the table holds 1 to {limit}, record more")
    if select not in SELECTORS:
        raise ValueError(f"select is {select!r}, must be one of {', '.join(SELECTORS)}")
    if select == "verify" and table.verified is None:
        raise ValueError("select='verify' needs a task with rules; use 'q' or 'majority'")


def _best(merit: np.ndarray, q: np.ndarray, entitled: np.ndarray) -> np.ndarray:
    """(P,) the chain of most merit, then most belief, then the earliest; all arguments (P, K)."""
    merit = np.where(entitled, merit, -1)
    top = merit == merit.max(axis=1, keepdims=True)
    return np.where(top, q, -np.inf).argmax(axis=1)


# --------------------------------------------------------------------------------------------------
# Abstention


def coverage(belief: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) shares of puzzles answered, and accuracy among them, as the bar of belief comes down.

    Point i answers the i + 1 puzzles that are believed most; puzzles believed alike are answered
    together, so a point inside such a group has the accuracy of the whole group in it (the order
    of equals must not decide).
    """
    belief, right = np.asarray(belief, dtype=float), np.asarray(right, dtype=float)
    if belief.shape != right.shape or belief.ndim != 1 or belief.size == 0:
        raise ValueError(f"beliefs {belief.shape} and outcomes {right.shape} must be (P,) alike")
    values, group = np.unique(-belief, return_inverse=True)
    mean = np.bincount(group, right, len(values)) / np.bincount(group, minlength=len(values))
    hits = mean[np.sort(group)].cumsum()
    num = np.arange(1, len(right) + 1)
    return num / len(right), hits / num


def area_over_coverage(belief: np.ndarray, right: np.ndarray) -> float:
    """Mean share of errors over all coverages (AURC): 0 is best, 1 - accuracy is no ranking."""
    return float(1 - coverage(belief, right)[1].mean())


# --------------------------------------------------------------------------------------------------
# Halting rules against fixed steps


@dataclass(frozen=True)
class Compared:
    """A rule against `fixed` steps on the same puzzles; the difference is rule minus fixed.

    equal: its 95 % interval lies within -margin .. margin; not_worse: it lies above -margin.
    """

    rule: str
    num: int
    accuracy: float
    difference: Paired
    steps: float
    evaluations: float
    equal: bool
    not_worse: bool


def compare_rules(
    table: Table, rules: Mapping[str, Rule | str], *, fixed: int, margin: float = 0.01
) -> list[Compared]:
    """Each rule, `fixed` steps at most, against `fixed` steps; chain 0 only."""
    base = outcome(table, chains=1, max_steps=fixed)
    found = []
    for name, rule in rules.items():
        own = outcome(table, chains=1, max_steps=fixed, halt=rule)
        difference = paired_difference(own.right, base.right)
        interval = difference.difference
        found.append(
            Compared(
                rule=name,
                num=len(table),
                accuracy=float(own.right.mean()),
                difference=difference,
                steps=float(own.steps.mean()),
                evaluations=float(own.evaluations.mean()),
                equal=-margin <= interval.low and interval.high <= margin,
                not_worse=-margin <= interval.low,
            )
        )
    return found


def cheapest(compared: Sequence[Compared]) -> Compared:
    """The rule of fewest evaluations among those not worse than fixed steps; if all are, the one
    whose interval reaches least far down."""
    fit = [row for row in compared if row.not_worse]
    if fit:
        return min(fit, key=lambda row: row.evaluations)
    return max(compared, key=lambda row: row.difference.difference.low)


def some_of(puzzles: Puzzles, num: int, *, seed: int = 0) -> Puzzles:
    """`num` of the puzzles (all, if there are not more), drawn by `seed`: generated sets lie sorted
    by their clue counts, so the first ones would be the easy ones."""
    return part(puzzles, min(num, len(puzzles)), seed=seed)


def validation_puzzles(recipe: TRMRecipe, num: int) -> Puzzles:
    """`num` puzzles to choose by: the recipe's validation set, and fresh ones if it is too small.

    None of them is a test or a training puzzle in any symmetric form.
    """
    from inward.data.puzzles.sudoku_canonical import symmetric_to_any
    from inward.recipes.trm_data import SudokuData

    valid = recipe.data.puzzles("valid")
    if num <= len(valid) or not isinstance(recipe.data, SudokuData):
        return some_of(valid, num)
    fresh = recipe.data.fresh(num - len(valid), seed=_FRESH_SEED)
    kept = ~symmetric_to_any(fresh, recipe.data.puzzles("test"))
    kept &= ~symmetric_to_any(fresh, valid)
    fresh = fresh.select(kept)
    return Puzzles(
        np.concatenate([valid.inputs, fresh.inputs]),
        np.concatenate([valid.labels, fresh.labels]),
        valid.grid,
        valid.vocab_size,
    )


_FRESH_SEED = 4_000_000
