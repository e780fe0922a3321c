"""The candidate cube: fast layer against the plain one, its symmetries, sizes, and slots that
stay."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from inward.common.draws import Draws
from inward.data.puzzles.sudoku import sample_symmetry
from inward.methods.trm import cube, staying
from inward.methods.trm.model import TRM
from inward.methods.trm.settings import TRMSettings
from inward.tasks.sudoku import SudokuTask

CUBE = TRMSettings(
    vocab_size=11,
    seq_len=81,
    hidden_size=6,
    mixer="cube",
    prefix_len=0,
    num_identifiers=0,
    T=1,
    n=2,
    n_sup=4,
    loss="softmax",
    halt_weight=0.1,
    norm_eps=1e-6,
    supervision="stay",
)


def build(settings: TRMSettings = CUBE) -> TRM:
    torch.manual_seed(0)
    model = TRM(settings)
    torch.nn.init.normal_(model.q_head.weight, generator=torch.Generator().manual_seed(1))
    return model


def puzzles(n: int = 9, num: int = 5) -> torch.Tensor:
    """Random clues: the model need not know that they contradict each other."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.where(rng.random((num, n * n)) < 0.4, rng.integers(2, n + 2), 1))


def obvious_layer(h, W, U, O):  # noqa: E741
    """The definition token by token."""
    n = h.shape[1]
    rows, cols = cube.box_shape(n)
    out = torch.empty_like(h)
    for r in range(n):
        for c in range(n):
            top, left = r // rows * rows, c // cols * cols
            for k in range(n):
                means = [
                    h[:, r, c].mean(1),
                    h[:, r, :, k].mean(1),
                    h[:, :, c, k].mean(1),
                    h[:, top : top + rows, left : left + cols, k].mean((1, 2)),
                ]
                g = h[:, r, c, k] @ W.T + sum(m @ u.T for m, u in zip(means, U, strict=True))
                a, b = g.chunk(2, -1)
                v = h[:, r, c, k] + (torch.nn.functional.silu(a) * b) @ O.T
                out[:, r, c, k] = v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return out


@pytest.mark.parametrize("n", [4, 6, 9])
def test_both_layers_are_the_definition(n):
    h = torch.randn(2, n, n, n, 6, dtype=torch.float64)
    network: Any = build().network
    weights = network.layers[0].weights(torch.float64)
    W, U, out = weights
    want = obvious_layer(h, W, U, out)
    torch.testing.assert_close(cube.layer(h, W, U, out, 1e-6), want)
    torch.testing.assert_close(cube.layer_fast(h, W, U, out, 1e-6), want)
    nothing = torch.zeros_like(h)
    for way in (cube.layer, cube.layer_fast):
        assert torch.equal(way(nothing, W, U, out, 1e-6), nothing), "not 0 / 0"


def test_gradient_of_the_layer():
    h = torch.randn(1, 4, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    W, O = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((12, 3), (3, 6)))  # noqa: E741
    U = [torch.randn(12, 3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(
        lambda h, W, out, *U: cube.layer(h, W, list(U), out, 1e-6),
        (h, W, O, *U),
    )


def test_with_and_without_a_graph_it_answers_alike():
    model, inputs = build(), puzzles(num=11)  # more than one block of the fast layer
    with torch.no_grad():
        fast, q_fast = model(inputs, num_steps=3)
    slow, q_slow = model(inputs, num_steps=3)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(q_fast, q_slow, rtol=1e-4, atol=1e-4)
    solved = model.solve(inputs, max_steps=3, halt="never", batch_size=2)
    # digits that no clue tells apart tie exactly, so answers may differ where beliefs do not
    torch.testing.assert_close(
        solved.confidence, slow.detach().softmax(-1).amax(-1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("n", [4, 6, 9])
def test_it_sees_through_every_symmetry_but_transposition(n):
    model, inputs = build(), puzzles(n)
    rng = np.random.default_rng(1)
    symmetry = sample_symmetry(n, rng)
    while symmetry.transpose:
        symmetry = sample_symmetry(n, rng)
    seen = torch.from_numpy(symmetry.apply(inputs.numpy()))
    with torch.no_grad():
        plain, q = model(inputs, num_steps=2)
        moved, q_moved = model(seen, num_steps=2)
    want = plain.view(5, n, n, n + 2)[:, symmetry.rows][:, :, symmetry.cols].flatten(1, 2)
    want = want[..., np.argsort(symmetry.digits) + 2]
    torch.testing.assert_close(moved[..., 2:], want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(q, q_moved, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [4, 6, 9, 16])
def test_every_size_is_answered_with_its_own_digits(n):
    solved = build().solve(puzzles(n), max_steps=2)
    assert solved.answers.shape == (5, n * n)
    assert solved.answers.min() >= 2 and solved.answers.max() <= n + 1


def test_tokens_and_grids_out_of_range_are_refused():
    with pytest.raises(ValueError, match="0 to 5"):
        build().solve(puzzles(9)[:, :16].clamp(min=7), max_steps=1)
    with pytest.raises(ValueError, match="square grid"):
        build().solve(puzzles(9)[:, :12].clamp(max=4), max_steps=1)
    for wrong in ({"prefix_len": 1}, {"num_identifiers": 2, "prefix_len": 1}, {"seq_len": 80}):
        with pytest.raises(ValueError, match="candidate cube"):
            replace(CUBE, **wrong)
    with pytest.raises(ValueError, match=r"stay is 1\.5"):
        replace(CUBE, stay=1.5)


def test_it_is_saved_and_loaded(tmp_path):
    model, inputs = build(), puzzles()
    model.save_pretrained(tmp_path)
    loaded = TRM.from_pretrained(tmp_path)
    assert loaded.settings == model.settings
    with torch.no_grad():
        assert torch.equal(model(inputs, num_steps=1)[0], loaded(inputs, num_steps=1)[0])


def test_clues_are_told_from_blanks_and_digits():
    x = cube.embed(torch.tensor([[1, 3] + [1] * 14]), torch.tensor([[0.0], [1.0], [2.0]]))
    assert x.shape == (1, 4, 4, 4, 1)
    assert x[0, 0, 0, :, 0].tolist() == [0, 0, 0, 0]
    assert x[0, 0, 1, :, 0].tolist() == [2, 1, 2, 2]


def batch(num: int = 8) -> dict[str, torch.Tensor]:
    inputs = puzzles(4, num)
    return {"inputs": inputs, "labels": inputs}  # a blank as label: never right


def steps(model: TRM, num: int, labels: torch.Tensor | None = None) -> list[dict]:
    states, state = [], None
    for step in range(num):
        given = batch() if labels is None else batch() | {"labels": labels}
        state = model.loss(given, state, Draws(0, step, range(8), 8)).state
        assert state is not None
        states.append({name[3:]: value.clone() for name, value in state.items()})  # "16/"
    return states


def test_slots_end_at_their_limits():
    model = build(replace(CUBE, stay=0.5, n_sup=8))
    states = steps(model, 40)
    for state in states:
        assert (state["halted"] == (state["steps"] >= state["limit"])).all()  # never right
        longest = torch.where(state["stays"], 32, 8)
        assert (state["limit"] <= longest).all() and (state["limit"] >= 2).all()
    assert any((state["steps"] > 8).any() for state in states)


def test_limits_are_drawn_evenly_from_a_quarter_to_all_of_n_sup_or_to_four_times_it():
    model, num = build(replace(CUBE, stay=0.25, n_sup=8)), 8000
    given = {"inputs": torch.ones(num, 1, dtype=torch.int64)}
    given["labels"] = given["inputs"]
    fresh = staying.refill(model, None, given, Draws(0, 1, range(num), num))
    stays = fresh["stays"]
    assert abs(float(stays.float().mean()) - 0.25) < 0.02
    for which, most in ((~stays, 8), (stays, 32)):
        seen, counts = fresh["limit"][which].unique(return_counts=True)
        assert seen.tolist() == list(range(2, most + 1))
        share = counts / counts.sum() * len(seen)
        assert (share - 1).abs().max() < 0.5
    assert (fresh["steps"] == 0).all() and torch.equal(fresh["labels"], given["labels"])
    untold = staying.refill(model, None, given, None)
    assert (untold["limit"] == 8).all() and not untold["stays"].any()
    short = build(replace(CUBE, n_sup=1))
    assert staying.refill(short, None, given, Draws(0, 1, range(num), num))["limit"].min() == 1


def test_first_noise_is_as_large_as_asked_at_most_and_the_same_in_no_two_slots():
    model, num = build(replace(CUBE, start_noise=2.0)), 400
    given = {"inputs": torch.ones(num, 16, dtype=torch.int64)}
    given["labels"] = given["inputs"]
    fresh = staying.refill(model, None, given, Draws(0, 4, range(num), num))
    noise = (fresh["z"] - model.initial_state(num, 16)["z"]).flatten(1)
    sigma = noise.std(1)  # of 384 numbers a row, itself uniform in 0..2
    assert 1.9 < float(sigma.max()) < 2.2 and float(sigma.min()) < 0.1
    assert abs(float(sigma.mean()) - 1.0) < 0.1
    assert torch.equal(fresh["y"], model.initial_state(num, 16)["y"].expand_as(fresh["y"]))


def test_weights_begin_with_the_gains_of_their_part():
    torch.manual_seed(0)
    model = TRM(replace(CUBE, hidden_size=128))
    gains = {"W": 0.707, "O": 1.0, "row": 0.53, "col": 0.53, "box": 0.53, "cell": 0.53}
    seen = set()
    for name, weight in model.named_parameters():
        part = name.removesuffix(".weight").rpartition(".")[2]
        if part in gains or name == "lm_head.weight":
            gain = float(weight.detach().std()) * weight.shape[1] ** 0.5
            # 128 numbers of the head tell its deviation to a sixteenth
            assert gain == pytest.approx(
                gains.get(part, 1.0), rel=0.2 if part == "lm_head" else 0.02
            )
            seen.add(part)
    assert seen == {*gains, "lm_head"}
    assert float(model.embed_tokens.weight.detach().std()) == pytest.approx(1.0, rel=0.15)


def test_right_slots_leave_unless_they_stay(monkeypatch):
    model = build(replace(CUBE, stay=0.5, leave=1.0, n_sup=8))
    answer = torch.full((8, 16), 2)
    forced = torch.nn.functional.one_hot(answer, 6).float()
    real = TRM.supervision_step

    def always(self, *args, **kwargs):
        state, logits, q = real(self, *args, **kwargs)
        return state, forced + 0 * logits, q

    monkeypatch.setattr(TRM, "supervision_step", always)
    state = steps(model, 1, labels=answer)[0]
    assert torch.equal(state["halted"], ~state["stays"])


def test_puzzles_without_answer_only_teach_disbelief():
    model = build()
    none = torch.full((8, 16), -100)
    loss = model.loss(batch() | {"labels": none}, None, None)
    with torch.no_grad():
        _, q = model(batch()["inputs"], num_steps=1)
    want = 0.1 * torch.nn.functional.softplus(q).sum()
    torch.testing.assert_close(loss.total.detach(), want)
    assert loss.metrics["right_now"][0] == 0


def test_a_batch_may_be_cut_anywhere():
    model = build(replace(CUBE, start_noise=1.0, stay=0.3))
    whole: Any = None
    parts: list[Any] = [None, None]
    for step in range(9):
        whole = model.loss(batch(), whole, Draws(3, step, range(8), 8)).state
        for i, rows in enumerate((range(3), range(3, 8))):
            part = {name: value[rows.start : rows.stop] for name, value in batch().items()}
            parts[i] = model.loss(part, parts[i], Draws(3, step, rows, 8)).state
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value)


def test_each_size_has_slots_of_its_own():
    model, state = build(), None
    for step, n in enumerate((4, 6, 4, 6, 4)):
        given = puzzles(n, 8)
        state = model.loss(
            {"inputs": given, "labels": given}, state, Draws(0, step, range(8), 8)
        ).state
    assert state["16/inputs"].shape == (8, 16) and state["36/inputs"].shape == (8, 36)
    assert state["16/steps"].max() >= 2 >= state["36/steps"].max()


def test_some_starts_are_noisy():
    model = build(replace(CUBE, start_noise=1.0))
    for step in (0, 1):
        fresh = staying.refill(model, None, batch(), Draws(0, step, range(8), 8))
        noisy = not torch.equal(fresh["z"], model.initial_state(8, 16)["z"])
        assert noisy == (step % staying.NOISY_EVERY == 0)


def test_rollouts_with_noise_at_the_start_are_new_attempts():
    model, inputs = build(), puzzles(4, 3)
    one = model.solve(inputs, max_steps=3, halt="never")
    many = model.solve(inputs, max_steps=3, halt="never", rollouts=3, noise=1.0, noise_when="start")
    assert (many.evaluations == 3 * one.evaluations).all()
    with pytest.raises(ValueError, match="noise_when is 'end'"):
        model.solve(inputs, noise_when="end")
    with pytest.raises(ValueError, match="needs a verifier"):
        model.solve(inputs, until_right=True)


def test_the_rules_stop_and_pick_but_change_nothing():
    model, inputs = build(), puzzles(4, 3)
    kept = model.solve(
        inputs, max_steps=5, halt="never", select=SudokuTask(4).verify, until_right=True
    )
    plain = model.solve(inputs, max_steps=5, halt="never")
    assert torch.equal(kept.steps, plain.steps)  # random clues: nothing to accept
    second = model.solve(inputs, max_steps=2, halt="never").answers.numpy()

    def accept(questions, answers):
        return (answers == second[:1]).all(1) & (questions == inputs.numpy()[:1]).all(1)

    got = model.solve(
        inputs,
        max_steps=5,
        halt="never",
        rollouts=2,
        noise=0.5,
        noise_when="start",
        select=accept,
        until_right=True,
    )
    assert got.halted.tolist() == [True, False, False]
    assert got.steps[0] <= 2 and (got.answers[0].numpy() == second[0]).all()


@pytest.mark.slow
def test_compiled_layers_train_like_plain_ones():
    losses = []
    for compiled in (False, True):
        model = build()
        network: Any = model.network
        if compiled:
            network.compile_training()
        loss = model.loss(batch(), None, Draws(0, 1, range(8), 8)).total
        loss.backward()
        losses.append((loss.item(), network.layers[0].W.weight.grad.norm().item()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
