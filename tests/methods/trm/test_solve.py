"""Solving: the fast way (halting, compaction, queue) against the plain forward, and every
option."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from inward.common import halting
from inward.common.trace import read_traces, write_traces
from inward.data.puzzles.puzzles import Identity
from inward.methods.trm.model import TRM
from tests.methods.trm.test_model import KINDS, SMALL, batch_of, build

MANY = 11


@pytest.fixture
def model() -> TRM:
    """Its halting logits spread around 0, so that rows leave at different steps."""
    model = build(replace(SMALL, n_sup=6))
    questions = batch_of(SMALL, num=MANY)
    with torch.no_grad():
        model.q_head.weight.mul_(8)
        spread = [model(questions["inputs"], num_steps=k)[1] for k in range(1, 7)]
        model.q_head.bias[0] -= torch.stack(spread).quantile(0.75)
    return model


@pytest.fixture
def inputs() -> torch.Tensor:
    return batch_of(SMALL, num=MANY)["inputs"]


class Flip:
    """Mirror the 3 x 4 grid left to right: a symmetry whose inverse is itself."""

    def apply(self, tokens: np.ndarray) -> np.ndarray:
        return tokens.reshape(*tokens.shape[:-1], 3, 4)[..., ::-1].reshape(tokens.shape)

    invert = apply


class Shift:
    """Move cells by one: the inverse differs from the map."""

    def apply(self, tokens: np.ndarray) -> np.ndarray:
        return np.roll(tokens, 1, axis=-1)

    def invert(self, tokens: np.ndarray) -> np.ndarray:
        return np.roll(tokens, -1, axis=-1)


@pytest.mark.parametrize("kind", list(KINDS))
def test_never_halting_is_the_plain_forward(kind):
    model = build(KINDS[kind])
    batch = batch_of(SMALL, num=5)
    names = batch["identifiers"] % max(1, model.settings.num_identifiers)
    logits, q = model(batch["inputs"], names, num_steps=5)
    got = model.solve(batch["inputs"], identifiers=names, max_steps=5, halt="never", batch_size=2)
    assert torch.equal(got.answers, logits.argmax(-1))
    torch.testing.assert_close(got.q, q, rtol=1e-3, atol=1e-4)
    assert got.steps.tolist() == [5] * 5 and not got.halted.any() and got.answered.all()


def test_halting_row_by_row_is_each_row_alone(model, inputs):
    """Compaction and refill change nothing: every batch size gives what each row gives alone."""
    alone = [model.solve(row[None], max_steps=6, halt="q") for row in inputs]
    steps = torch.cat([s.steps for s in alone])
    assert len(set(steps.tolist())) > 2, "the fixture should make rows leave at different steps"
    for batch_size in (1, 3, 256):
        got = model.solve(inputs, max_steps=6, halt="q", batch_size=batch_size)
        assert torch.equal(got.steps, steps)
        assert torch.equal(got.answers, torch.cat([s.answers for s in alone]))
        torch.testing.assert_close(got.q, torch.cat([s.q for s in alone]), rtol=1e-3, atol=1e-4)
        assert torch.equal(got.halted, torch.cat([s.halted for s in alone]))


def test_a_row_stops_at_the_first_step_its_rule_allows(model, inputs):
    spread = torch.stack([model(inputs, num_steps=k)[1] for k in range(1, 7)])
    first = [next((k for k in range(6) if column[k] > 0), 5) + 1 for column in spread.T]
    assert model.solve(inputs, max_steps=6, halt="q").steps.tolist() == first


def test_the_default_waits_for_a_stable_answer(model, inputs):
    got, named = model.solve(inputs, max_steps=6), model.solve(inputs, max_steps=6, halt="q+stable")
    assert torch.equal(got.steps, named.steps)
    assert (got.steps >= model.solve(inputs, max_steps=6, halt="q").steps).all()


def test_budget_is_free_of_training(model, inputs):
    assert model.solve(inputs, max_steps=20, halt="never").steps.tolist() == [20] * MANY
    assert model.solve(inputs, max_steps=1).steps.tolist() == [1] * MANY


def test_other_rules(model, inputs):
    answers = torch.stack([model(inputs, num_steps=k)[0].argmax(-1) for k in range(1, 13)])
    got = model.solve(inputs, max_steps=12, halt=halting.ArgmaxStable(2))
    for i, steps in enumerate(got.steps.tolist()):
        same = (answers[1:, i] == answers[:-1, i]).all(-1)
        runs = [k + 1 for k in range(1, 11) if same[k] and same[k - 1]]
        assert steps == (runs[0] + 1 if runs else 12)
    assert (model.solve(inputs, max_steps=12, halt="q+stable").steps >= 2).all()
    still = model.solve(inputs, max_steps=12, halt=halting.LatentChange(1e9))
    assert still.steps.tolist() == [1] * MANY
    mine = model.solve(inputs, max_steps=12, halt=lambda view: view.step >= 3)
    assert mine.steps.tolist() == [3] * MANY and mine.halted.all()


def test_costs_are_counted(model, inputs):
    got = model.solve(inputs, max_steps=6)
    evaluation, read_out = model.flops()
    assert torch.equal(got.evaluations, got.steps.double() * 6)
    torch.testing.assert_close(got.flops, got.steps.double() * (6 * evaluation + read_out))
    calls = []
    hook = model.network.register_forward_hook(lambda m, a, out: calls.append(len(out)))
    model.solve(inputs, max_steps=6, batch_size=4)
    hook.remove()
    assert sum(calls) == got.evaluations.sum()


def test_rollouts_are_reproducible_and_free_of_the_batch(model, inputs):
    options = {"max_steps": 4, "rollouts": 3, "noise": 0.5, "seed": 7}
    first = model.solve(inputs, batch_size=4, **options)
    again = model.solve(inputs, batch_size=50, **options)
    assert torch.equal(first.answers, again.answers)
    torch.testing.assert_close(first.q, again.q, rtol=1e-3, atol=1e-4)
    other = model.solve(inputs, batch_size=50, **options | {"seed": 8})
    assert not torch.allclose(first.q, other.q)
    assert (first.evaluations >= 3 * 6).all()


@pytest.mark.parametrize("noise_on", ["z", "y", "both"])
def test_noise_goes_where_it_is_told(model, inputs, noise_on):
    """Two rollouts of one step, by hand: latent + sigma * N(0, 1), from the chain's own
    generator."""
    got = model.solve(
        inputs[:1], max_steps=1, rollouts=2, noise=0.7, noise_on=noise_on, halt="never", seed=3
    )
    seed = np.random.SeedSequence([3, 0, 1]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(seed >> 1))
    state = model.initial_state(1, 12)
    for name in ("y", "z"):
        if noise_on in (name, "both"):
            drawn = torch.randn(state[name].shape[1:], generator=generator)
            state[name] = state[name] + 0.7 * drawn
    with torch.no_grad():
        _, _logits, q = model.supervision_step(inputs[:1], state)
    _, plain = model(inputs[:1], num_steps=1)
    torch.testing.assert_close(got.q, torch.maximum(q, plain), rtol=1e-4, atol=1e-5)


def test_selection(model, inputs):
    options = {"max_steps": 3, "rollouts": 6, "noise": 1.0, "halt": "never"}
    by_q = model.solve(inputs, select="q", **options)
    majority = model.solve(inputs, select="majority", **options)
    assert (by_q.q >= majority.q - 1e-4).all()
    for i in range(MANY):
        votes = [v for _, v in majority.candidates[i]]
        assert votes == sorted(votes, reverse=True) and sum(votes) == 6
        assert np.array_equal(majority.candidates[i][0][0], majority.answers[i].numpy())

    def third_cell_is_small(questions, answers):
        assert len(questions) == len(answers) == 6 * MANY
        return answers[:, 2] <= 3

    verified = model.solve(inputs, select=third_cell_is_small, abstain_below=0.5, **options)
    for i in range(MANY):
        possible = any(answer[2] <= 3 for answer, _ in verified.candidates[i])
        assert bool(verified.answered[i]) == possible
        assert (verified.answers[i, 2] <= 3) == possible


def test_symmetries_are_undone(model, inputs):
    """A chain through a symmetry answers like the model on the transformed puzzle, seen back."""
    for view in (Flip(), Shift()):
        turned = torch.from_numpy(view.apply(inputs.numpy()).copy())
        seen = model.solve(turned, max_steps=3, halt="never")
        back = view.invert(seen.answers.numpy())
        got = model.solve(inputs, max_steps=3, halt="never", symmetries=[view])
        plain = model.solve(inputs, max_steps=3, halt="never")
        want = np.where((seen.q > plain.q).numpy()[:, None], back, plain.answers.numpy())
        assert np.array_equal(got.answers.numpy(), want)
        assert (got.evaluations == 2 * plain.evaluations).all()


def test_first_to_halt_ends_the_others(model, inputs):
    options = {"max_steps": 6, "halt": "q", "rollouts": 4, "noise": 0.5}
    every = model.solve(inputs, **options)
    first = model.solve(inputs, first_to_halt=True, **options)
    assert (first.evaluations <= every.evaluations).all()
    assert first.evaluations.sum() < every.evaluations.sum()
    assert torch.equal(first.halted, every.halted | first.halted)
    for i in range(MANY):
        if first.halted[i]:
            assert first.evaluations[i] <= 4 * 6 * first.steps[i]


def test_abstaining(model, inputs):
    got = model.solve(inputs, max_steps=6, abstain_below=0.5)
    assert torch.equal(got.answered, got.q >= 0)
    assert 0 < got.answered.sum() < MANY
    assert model.solve(inputs, max_steps=6, abstain_below=0.0).answered.all()
    assert not model.solve(inputs, max_steps=6, abstain_below=1.0).answered.any()


def test_abstaining_by_agreement_and_belief(model, inputs):
    """Without rules: more than half of the chains answer alike, and the answer is believed."""
    views = (Identity(), Flip())  # the mirrored puzzle is another one to this model
    got = model.solve(inputs, max_steps=6, symmetries=views, abstain=True)
    votes = [{tuple(a.tolist()): v for a, v in found} for found in got.candidates]
    agree = [votes[i][tuple(got.answers[i].tolist())] >= 2 for i in range(MANY)]
    assert got.answered.tolist() == [a and bool(q >= 0) for a, q in zip(agree, got.q, strict=True)]
    assert 0 < got.answered.sum() < sum(agree) < MANY


def test_abstaining_by_rules(model, inputs):
    """A verifier decides, whatever is believed, and changes no choice."""

    def third_cell_is_small(questions, answers):
        return answers[:, 2] <= 3

    plain = model.solve(inputs, max_steps=6)
    got = model.solve(inputs, max_steps=6, abstain=third_cell_is_small)
    assert torch.equal(got.answers, plain.answers)
    assert got.answered.tolist() == (plain.answers[:, 2] <= 3).tolist()
    assert 0 < got.answered.sum() < MANY


def test_traces(model, inputs, tmp_path):
    got = model.solve(inputs, max_steps=6, trace=True)
    for i, trace in enumerate(got.traces):
        assert len(trace.steps) == got.steps[i]
        assert np.array_equal(trace.question, inputs[i].numpy())
        assert np.array_equal(trace.answer, got.answers[i].numpy())
        assert trace.stopped == ("halted" if got.halted[i] else "budget")
        assert trace.cost.evaluations == float(got.evaluations[i])
        assert trace.cost.flops == pytest.approx(float(got.flops[i]))
        for k, step in enumerate(trace.steps, start=1):
            with torch.no_grad():
                logits, q = model(inputs[i : i + 1], num_steps=k)
            grid = step.view["grid"]
            assert np.array_equal(grid.ids, logits[0].argmax(-1).numpy())
            assert step.index == k and (step.says is not None) == (k == len(trace.steps))
            assert step.scores["halt"] == pytest.approx(float(q[0]), rel=1e-3, abs=1e-4)
            want = logits[0].softmax(-1).amax(-1).numpy()
            np.testing.assert_allclose(grid.confidence, want, rtol=1e-3, atol=1e-4)
    write_traces(got.traces, tmp_path / "t.jsonl")
    again = read_traces(tmp_path / "t.jsonl")
    assert [t.to_dict() for t in again] == [t.to_dict() for t in got.traces]
    assert model.solve(inputs, max_steps=2).traces is None


def test_training_mode_is_left_as_it_was(model, inputs):
    model.train()
    model.solve(inputs, max_steps=1)
    assert model.training


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_steps": 0}, "max_steps is 0"),
        ({"max_steps": -3}, "max_steps is -3"),
        ({"rollouts": 0}, "rollouts is 0"),
        ({"rollouts": 4}, "without noise"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"noise_on": "x"}, "noise_on"),
        ({"halt": "sometimes"}, "sometimes"),
        ({"select": "best"}, "select is 'best'"),
        ({"abstain_below": 1.5}, "probability"),
        ({"abstain": "yes"}, "expected True, False or a verifier"),
        ({"abstain": np.equal, "select": np.less}, "two verifiers"),
        ({"batch_size": 0}, "batch_size"),
        ({"grid": (5, 5)}, "do not form"),
        ({"halt": lambda view: view.q}, "boolean tensor"),
    ],
)
def test_bad_options(model, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        model.solve(inputs, **options)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (torch.ones(12, dtype=torch.int64), "puzzles, cells"),
        (torch.ones(0, 12, dtype=torch.int64), "at least 1"),
        (torch.full((1, 12), 7), "the model knows 0 to 6"),
        (torch.full((1, 12), -1), "-1"),
        (torch.ones(1, 12), "integer"),
        (torch.ones(1, 11, dtype=torch.int64), "built for 12"),
    ],
)
def test_bad_inputs(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        model.solve(wrong)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: halting.QHalt(float("nan")), "never fire"),
        (lambda: halting.ArgmaxStable(0), "at least 1"),
        (lambda: halting.LatentChange(0.0), "can never fire"),
    ],
)
def test_rules_that_can_never_fire(make, message):
    with pytest.raises(ValueError, match=message):
        make()
