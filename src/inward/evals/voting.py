"""Votes over the augmented variants of ARC tasks, the way HRM and TRM are scored on ARC-AGI.

One test input is put to the model hundreds of times, under other colours and orientations. Every
prediction is cropped, turned back and counted:

1. undo the variant on the input, which says which test input of the task this is;
2. undo it on the prediction: a candidate grid;
3. rank the candidates of a test input by (votes, mean sigmoid of the halting logit);
4. pass@K: the right grid is among the first K. A task scores the mean over its test inputs, the
   set the mean over its tasks; a submission holds the first two.

The reference (`evaluators/arc.py`) never clears its votes, so its last figure is an ensemble over
all checkpoints evaluated in a run, and may hide that the last one got worse. We keep the two apart
and report both. Other deviations: a tie is broken by the grid itself, so the order of the votes
does not matter; a test input nobody voted for keeps its place in the submission; a vote for an
unknown task or input is an error.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from inward.data.puzzles.arc import Task, Variant, decode, find_offset
from inward.data.puzzles.folder import read_json, write_json

KS = (1, 2, 5, 10, 100, 1000)
NUM_ATTEMPTS = 2
_FORMAT = "inward-votes-1"

# (task, packed test input) -> packed candidate -> [votes, sum of confidences]
_Tally = dict[tuple[str, bytes], dict[bytes, list[float]]]


class VariantVote(NamedTuple):
    """One prediction for one variant of one test input."""

    task: str
    input: np.ndarray  # (900,) canvas of the variant's input, as the model saw it
    variant: str  # 'task|||t<k>|||<colour map>', or the task's name for the original
    tokens: np.ndarray  # (900,) canvas the model answered with
    logit: float  # its halting logit


class Candidate(NamedTuple):
    """One answer to one test input."""

    grid: np.ndarray  # (rows, cols) uint8; (0, 0) if the prediction held no grid
    votes: int
    confidence: float  # mean sigmoid of the halting logits


def votes_from(
    names: Sequence[str] | Mapping[int, str],
    *,
    identifiers: np.ndarray,
    inputs: np.ndarray,
    tokens: np.ndarray,
    logits: np.ndarray,
) -> Iterator[VariantVote]:
    """Turn a batch into votes; rows with identifier 0 are padding and left out.

    names: identifier -> variant name (`identifiers.json`). identifiers (B,), inputs (B, 900),
    tokens (B, 900), logits (B,).
    """
    for identifier, x, y, logit in zip(identifiers, inputs, tokens, logits, strict=True):
        if int(identifier) != 0:
            variant = names[int(identifier)]
            yield VariantVote(Variant.parse(variant)[0], x, variant, y, float(logit))


class Voting:
    """Count votes and score them against the tasks' answers.

    Call `begin` before each checkpoint, `add` with its votes, then `report`. With
    `accumulate=True` votes are also summed over checkpoints and reported beside those of the
    last one alone.
    """

    def __init__(
        self, tasks: Iterable[Task], *, ks: Sequence[int] = KS, accumulate: bool = True
    ) -> None:
        self.tasks = {task.name: task for task in tasks}
        if not self.tasks:
            raise ValueError("no tasks to vote on; give at least one")
        if not ks or min(ks) < 1:
            raise ValueError(f"ks is {tuple(ks)}; give numbers of attempts, each at least 1")
        self.ks, self.accumulate = tuple(ks), accumulate
        self._single: _Tally = {}
        self._all: _Tally = {}
        self._tests = {
            name: [_pack(pair.input) for pair in task.test] for name, task in self.tasks.items()
        }

    def begin(self) -> None:
        """Start a checkpoint: forget the votes of the last one (the accumulated ones stay)."""
        self._single = {}

    def add(self, votes: Iterable[VariantVote]) -> None:
        """Count votes.

        Raises ValueError for a task or input that is not among the tasks' tests, a variant of
        another task, or a logit that is not finite.
        """
        for vote in votes:
            key, candidate, confidence = self._read(vote)
            self._count(self._single, key, candidate, 1, confidence)
            if self.accumulate:
                self._count(self._all, key, candidate, 1, confidence)

    def _read(self, vote: VariantVote) -> tuple[tuple[str, bytes], bytes, float]:
        task, variant = Variant.parse(vote.variant)
        if task != vote.task:
            raise ValueError(f"variant {vote.variant!r} is not one of task {vote.task!r}")
        if not math.isfinite(vote.logit):
            raise ValueError(
                f"halting logit of {vote.variant!r} is {vote.logit}; is the model sound?"
            )
        offset = find_offset(vote.input)
        asked = _pack(variant.invert(decode(vote.input, offset)))
        answer = _pack(variant.invert(decode(vote.tokens, offset)))
        self._check_key(task, asked)
        return (task, asked), answer, _sigmoid(vote.logit)

    def _check_key(self, task: str, asked: bytes) -> None:
        if task not in self._tests:
            raise ValueError(f"a vote for task {task!r}, which is not among the tasks")
        if asked not in self._tests[task]:
            raise ValueError(
                f"a vote for an input of {asked[0]}x{asked[1]} that is no test input of task "
                f"{task!r}; are the predictions for these tasks and variants?"
            )

    @staticmethod
    def _count(
        tally: _Tally, key: tuple[str, bytes], candidate: bytes, votes: float, confidence: float
    ) -> None:
        entry = tally.setdefault(key, {}).setdefault(candidate, [0, 0.0])
        entry[0] += votes
        entry[1] += confidence

    def candidates(self, task: str, test: int, *, accumulated: bool = False) -> list[Candidate]:
        """Return the answers to one test input, best first."""
        key = (task, self._tests[task][test])
        found = self._tally(accumulated).get(key, {})
        ranked = sorted(found.items(), key=lambda item: (*_merit(item[1]), item[0]))
        return [Candidate(_unpack(c), int(n), total / n) for c, (n, total) in ranked]

    def _tally(self, accumulated: bool) -> _Tally:
        if accumulated and not self.accumulate:
            raise ValueError("votes were not accumulated; make Voting with accumulate=True")
        return self._all if accumulated else self._single

    def score(self, *, accumulated: bool = False) -> dict[int, float]:
        """Return K -> pass@K of the last checkpoint, or of all since the start.

        Only tests whose answer is known count, and tasks that have one; NaN if there is none.
        """
        tasks = list(self.task_scores(accumulated=accumulated).values())
        means = np.mean(tasks, axis=0).tolist() if tasks else [math.nan] * len(self.ks)
        return dict(zip(self.ks, means, strict=True))

    def task_scores(self, *, accumulated: bool = False) -> dict[str, list[float]]:
        """Return task -> share of its tests whose answer is known that pass, for each of `ks`."""
        scores = {}
        for name, task in self.tasks.items():
            places = [
                self._place(name, i, pair.output, accumulated)
                for i, pair in enumerate(task.test)
                if pair.output is not None
            ]
            if places:
                scores[name] = [sum(p < k for p in places) / len(places) for k in self.ks]
        return scores

    def _place(self, task: str, test: int, answer: np.ndarray, accumulated: bool) -> float:
        """Return the rank of the right answer, from 0; infinity if nobody gave it."""
        for place, candidate in enumerate(self.candidates(task, test, accumulated=accumulated)):
            if np.array_equal(candidate.grid, answer):
                return place
        return math.inf

    def report(self) -> dict[str, float]:
        """Return 'arc/pass@K' of the last checkpoint, 'arc/accumulated/pass@K' if it is kept.

        'arc/unanswered' is the number of test inputs without a vote.
        """
        out = {f"arc/pass@{k}": value for k, value in self.score().items()}
        if self.accumulate:
            both = self.score(accumulated=True)
            out |= {f"arc/accumulated/pass@{k}": value for k, value in both.items()}
        tests = [(name, test) for name, tests in self._tests.items() for test in tests]
        out["arc/unanswered"] = float(sum(test not in self._single for test in tests))
        return out

    def submission(self, *, accumulated: bool = False) -> dict[str, list[dict[str, list]]]:
        """Return the competition's form: task -> one {"attempt_1", "attempt_2"} a test input.

        With fewer candidates the best one is repeated; without any, or for a prediction that
        held no grid, an attempt is [[0]].
        """
        out = {}
        for name, task in self.tasks.items():
            out[name] = []
            for test in range(len(task.test)):
                found = self.candidates(name, test, accumulated=accumulated)[:NUM_ATTEMPTS]
                grids = [c.grid.tolist() or [[0]] for c in found] or [[[0]]]
                grids += [grids[0]] * (NUM_ATTEMPTS - len(grids))
                out[name].append({f"attempt_{i}": grid for i, grid in enumerate(grids, start=1)})
        return out

    def merge(self, other: "Voting") -> None:
        """Add the votes that another process counted for the same tasks."""
        for mine, theirs in ((self._single, other._single), (self._all, other._all)):
            for key, candidates in theirs.items():
                self._check_key(*key)
                for candidate, (votes, total) in candidates.items():
                    self._count(mine, key, candidate, votes, total)

    def save(self, path: str | os.PathLike) -> None:
        """Write all votes as JSON, so that a later evaluation can go on accumulating."""
        rows = {
            name: [
                [task, asked.hex(), [[c.hex(), *entry] for c, entry in candidates.items()]]
                for (task, asked), candidates in tally.items()
            ]
            for name, tally in (("single", self._single), ("all", self._all))
        }
        write_json(path, {"format": _FORMAT, **rows})

    def restore(self, path: str | os.PathLike) -> None:
        """Add the votes of a file that `save` wrote. Raises ValueError if it is another file."""
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise ValueError(f"{path} holds no votes (format {_FORMAT}); write it with Voting.save")
        try:
            saved = Voting(self.tasks.values(), ks=self.ks, accumulate=self.accumulate)
            for name, tally in (("single", saved._single), ("all", saved._all)):
                for key, candidate, votes, total in _rows(data[name]):
                    self._count(tally, key, candidate, votes, total)
            self.merge(saved)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged or of other tasks: {error}") from error


def _rows(data: Any) -> Iterator[tuple[tuple[str, bytes], bytes, int, float]]:
    for task, asked, candidates in data:
        for candidate, votes, total in candidates:
            yield (task, bytes.fromhex(asked)), bytes.fromhex(candidate), int(votes), float(total)


def _merit(entry: list[float]) -> tuple[float, float]:
    votes, total = entry
    return -votes, -total / votes


def _pack(grid: np.ndarray) -> bytes:
    """Return a grid as bytes, its key in a tally: rows, columns, cells."""
    return bytes(grid.shape) + grid.astype(np.uint8).tobytes()


def _unpack(packed: bytes) -> np.ndarray:
    return np.frombuffer(packed, np.uint8, offset=2).reshape(packed[0], packed[1])


def _sigmoid(logit: float) -> float:
    small = math.exp(-abs(logit))  # never overflows
    return 1 / (1 + small) if logit >= 0 else small / (1 + small)
