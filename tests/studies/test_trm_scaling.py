"""The table that answers every question at once is held against `solve`, asked one by one."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from inward.common import halting
from inward.data.drawn import drawn
from inward.data.puzzles import sudoku
from inward.data.puzzles.puzzles import Puzzles
from inward.data.puzzles.sudoku_canonical import symmetric_to_any
from inward.methods.trm.model import TRM
from inward.methods.trm.settings import TRMSettings
from inward.recipes import find
from inward.studies import trm_scaling as scaling
from inward.studies.trm_scaling import Table, compare_rules, coverage, outcome, record
from inward.tasks.arc import ArcTask
from inward.tasks.sudoku import SudokuTask

SETTINGS = TRMSettings(
    vocab_size=6, seq_len=16, hidden_size=16, swiglu_multiple=16, prefix_len=1,
    num_identifiers=0, T=1, n=1, n_sup=3,
)  # fmt: skip
TASK = SudokuTask(4)


@pytest.fixture(scope="module")
def puzzles() -> Puzzles:
    return sudoku.generate(12, n=4, seed=11, clues=12, progress=False)


@pytest.fixture(scope="module")
def model() -> TRM:
    """Untrained, but for a read-out that repeats the clues and a halting head of both signs."""
    torch.manual_seed(3)
    model = TRM(SETTINGS).eval()
    with torch.no_grad():
        model.q_head.weight.normal_(0, 2.0)
        model.q_head.bias.zero_()
        model.lm_head.weight[1] -= 10.0  # never answers "blank"
    return model


def views(num: int):
    rng = np.random.default_rng(5)
    return [TASK.symmetry(rng) for _ in range(num)]


class Parity:
    """A task whose rules an untrained model obeys half of the time."""

    def verify(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        return (inputs[:, :3].sum(1) + answers[:, :3].sum(1)) % 2 == 0


def asked(model: TRM, puzzles: Puzzles, select: str, **options):
    chosen: Any = Parity().verify if select == "verify" else select
    if options.get("rollouts", 1) == 1 and not options.get("symmetries"):
        chosen = "q"  # a single chain: nothing to choose from, nobody to race
        options.pop("first_to_halt", None)
    if options.get("halt") == "never":
        options.pop("first_to_halt", None)
    return model.solve(puzzles.inputs, select=chosen, seed=4, batch_size=10_000, **options)


def assert_same(found: scaling.Outcome, want, puzzles: Puzzles) -> None:
    right = Parity().verify(puzzles.inputs, want.answers.numpy())
    np.testing.assert_array_equal(found.right, right)
    np.testing.assert_allclose(found.q, want.q.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.steps, want.steps.numpy())
    np.testing.assert_array_equal(found.halted, want.halted.numpy())
    np.testing.assert_allclose(found.evaluations, want.evaluations.numpy())
    np.testing.assert_allclose(found.flops, want.flops.numpy())


@pytest.fixture(scope="module")
def unlabelled(puzzles) -> Puzzles:
    return replace(puzzles, labels=np.zeros_like(puzzles.labels))


@pytest.mark.parametrize("first_to_halt", [False, True])
def test_rollouts_read_off_a_table_are_what_solve_answers(model, unlabelled, first_to_halt):
    table = record(model, unlabelled, Parity(), max_steps=5, rollouts=4, noise=0.5, seed=4)
    right, halted, differ = set(), set(), 0
    for chains, steps, halt in product((1, 2, 4), (2, 5), ("never", "q", "q+stable")):
        chosen = []
        for select in ("q", "majority", "verify") if chains > 1 else ("q",):
            options = {"max_steps": steps, "halt": halt, "first_to_halt": first_to_halt}
            found = outcome(table, chains=chains, select=select, **options)
            noise = 0.5 if chains > 1 else 0.0
            options |= {"rollouts": chains, "noise": noise}
            assert_same(found, asked(model, unlabelled, select, **options), unlabelled)
            right.add(int(found.right.sum()))
            halted.add(int(found.halted.sum()))
            chosen.append(found.chain.tolist())
        differ += any(c != chosen[0] for c in chosen)
    assert len(right) > 2 and len(halted) > 2 and differ > 2, "too easy a comparison"


def test_views_read_off_a_table_are_what_solve_answers(model, unlabelled):
    all_views = views(3)
    table = record(model, unlabelled, Parity(), max_steps=4, symmetries=all_views)
    for chains, select in product((1, 3, 4), ("q", "majority")):
        found = outcome(table, chains=chains, halt="q", select=select)
        options = {"symmetries": all_views[: chains - 1], "halt": "q", "max_steps": 4}
        assert_same(found, asked(model, unlabelled, select, **options), unlabelled)


def test_a_verifier_is_asked_about_the_puzzles_own_orientation(model):
    puzzles = sudoku.generate(6, n=4, seed=2, clues=12, progress=False)
    recorder = scaling._StateRecorder(puzzles, TASK, 2, views(2))
    seen = np.stack([
        np.tile(v.apply(puzzles.labels) if v else puzzles.labels, 1) for v in recorder.views
    ], axis=1)  # fmt: skip
    seen = np.concatenate([seen, seen], axis=1)  # (P, rollouts x views, L)
    answers = recorder.seen_back(seen)
    assert recorder.exact(answers).all() and recorder.verify(answers).all()
    seen[:, 4, 0] = seen[:, 4, 0] % 4 + 2  # one wrong cell in rollout 1, view 1
    answers = recorder.seen_back(seen)
    wrong = ~recorder.exact(answers)
    assert wrong[:, 4].all() and wrong.sum() == len(puzzles)
    np.testing.assert_array_equal(recorder.verify(answers), recorder.exact(answers))


def test_parts_change_nothing_without_noise(model, puzzles):
    whole = record(model, puzzles, TASK, max_steps=3, symmetries=views(1))
    parts = record(model, puzzles, TASK, max_steps=3, symmetries=views(1), chains_at_once=7)
    np.testing.assert_array_equal(whole.answer, parts.answer)
    np.testing.assert_allclose(whole.q, parts.q, atol=1e-5)
    assert whole.right.shape == (12, 2, 3) and whole.evaluations == 2


def hand_table() -> Table:
    """Two puzzles, three chains, two steps."""
    right = np.array([[[0, 1], [0, 0], [0, 0]], [[0, 0], [1, 1], [0, 0]]], dtype=bool)
    q = np.array([[[-9, 1], [-9, 3], [-9, 2]], [[5, -1], [-9, 2], [-9, -3]]], dtype=np.float32)
    answer = np.array([[[1, 2], [3, 4], [3, 4]], [[8, 9], [7, 7], [8, 9]]])
    zeros = np.zeros_like(answer)
    return Table(right, right, q, answer, zeros, zeros.astype(np.float32), 6.0, 10.0)


def test_selectors_by_hand():
    table = hand_table()
    found = {name: outcome(table, select=name) for name in scaling.SELECTORS}
    assert {name: o.chain.tolist() for name, o in found.items()} == {
        "q": [1, 1],  # the most believed
        "majority": [1, 0],  # answers 4 and 9 have two votes; within them, belief
        "verify": [0, 1],
        "oracle": [0, 1],
    }
    np.testing.assert_allclose(found["majority"].votes, [2 / 3, 2 / 3])
    assert found["q"].evaluations.tolist() == [36.0, 36.0]
    first = outcome(table, halt="q", first_to_halt=True)
    # puzzle 1: chain 0 halts at step 1, wrongly, and ends the others
    assert first.chain.tolist() == [1, 0] and first.steps.tolist() == [2, 1]
    assert first.evaluations.tolist() == [36.0, 18.0] and first.right.tolist() == [False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": 4}, "1 to 3"),
        ({"max_steps": 3}, "1 to 2"),
        ({"select": "best"}, "q, majority"),
    ],
)
def test_more_than_was_recorded_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        outcome(hand_table(), **options)


def test_a_task_without_rules_has_no_verifier(model, unlabelled):
    table = replace(hand_table(), verified=None)
    with pytest.raises(ValueError, match="rules"):
        outcome(table, select="verify")
    with pytest.raises(ValueError, match="no labels"):
        record(model, unlabelled, ArcTask(), max_steps=1)


def test_without_labels_the_rules_decide(model, unlabelled):
    table = record(model, unlabelled, TASK, max_steps=2)
    np.testing.assert_array_equal(table.right, table.verified)


def test_coverage_by_hand():
    share, accuracy = coverage(np.array([0.1, 0.9, 0.5, 0.7]), np.array([0, 1, 0, 1], dtype=bool))
    np.testing.assert_allclose(share, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(accuracy, [1, 1, 2 / 3, 0.5])
    # equals are answered together: their order cannot matter
    for right in ([1, 0], [0, 1]):
        np.testing.assert_allclose(coverage(np.ones(2), np.array(right, bool))[1], [0.5, 0.5])
    assert scaling.area_over_coverage(np.ones(4), np.array([1, 0, 0, 0], bool)) == 0.75


def test_rules_are_compared_pair_by_pair():
    num, rng = 1000, np.random.default_rng(0)
    right = np.ones((num, 1, 4), dtype=bool)
    right[:400, 0, 0] = False  # 40 % need a second step
    q = np.where(right, 1.0, -1.0).astype(np.float32)
    q[:30, 0, 0] = 1.0  # 3 % are believed too early
    answer = right.astype(np.int64)
    stable = np.zeros(answer.shape, np.int64)
    table = Table(right, right, q, answer, stable, rng.random(stable.shape), 2.0, 1.0)
    rules = {"q": halting.QHalt(), "never": "never"}
    early, never = compare_rules(table, rules, fixed=4)
    assert early.accuracy == 0.97 and not early.equal
    assert early.difference.only_second == 30 and early.steps == 1 + 370 / 1000
    assert never.equal and never.evaluations == 8.0
    assert scaling.cheapest([early, never]) is never
    assert scaling.cheapest([early]) is early
    assert compare_rules(table, rules, fixed=4, margin=0.05)[0].equal
    # a rule that stops before the answer is lost again is better: not equal, and welcome
    right[:100, 0, 3] = False
    (better,) = compare_rules(table, {"q": halting.QHalt()}, fixed=4)
    assert better.not_worse and not better.equal and scaling.cheapest([better]) is better


def test_validation_puzzles_are_neither_test_nor_training():
    recipe = find("sudoku6")()
    data = replace(recipe.data, num_train=40, num_valid=10, num_test=30)
    recipe = replace(recipe, data=data)
    more = scaling.validation_puzzles(recipe, 25)
    assert len(more) == 25
    for split in ("test", "train"):
        assert not symmetric_to_any(more, data.puzzles(split)).any()
    few = scaling.validation_puzzles(recipe, 5)
    np.testing.assert_array_equal(few.inputs, more.inputs[drawn(10, 5)])


def test_a_part_is_drawn_by_a_seed(puzzles):
    found = scaling.some_of(puzzles, 5, seed=4)  # of 12
    np.testing.assert_array_equal(found.inputs, puzzles.inputs[drawn(12, 5, seed=4)])
    for num in (12, 99):
        np.testing.assert_array_equal(scaling.some_of(puzzles, num).inputs, puzzles.inputs)
