"""Evaluation of Huginn by depth: batched equals one by one, exits equal the engine's."""

import numpy as np
import pytest
import torch

from inward.common.halting import KL, LatentChange, Recurrences
from inward.data.texts.arithmetic_text import Addition
from inward.data.texts.hops import Hops
from inward.data.texts.text import RowMaker, TextQuestions, joined, questions
from inward.evals.depth import (
    accuracy_by_depth,
    engine_exits,
    exits,
    path_independence,
)
from inward.evals.stats import rank_correlation
from inward.methods.huginn.depths import right_by_depth
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.huginn.settings import Depth, HuginnSettings

ROWS = Hops(num_nodes=5, max_hops=3, num_walks=1)


def small(rows: RowMaker = ROWS, *, loud=1.0):
    torch.manual_seed(0)
    settings = HuginnSettings(width=16, num_heads=2, mlp_width=24, prelude=1, core=1, coda=1)
    config = settings.config(vocab_size=rows.vocab_size, block_size=32, depth=Depth(4, 2))
    model = HuginnForCausalLM(config).eval()
    with torch.no_grad():  # louder matrices: answers that change with depth
        for name, p in model.named_parameters():
            if p.ndim == 2 and "wte" not in name:
                p.mul_(loud)
    return model


def mixed(num=12, rows: RowMaker = ROWS, difficulties=(1, 2, 4)):
    return joined(questions(rows, num, difficulty=k, seed=0) for k in difficulties)


def taught(model, held, depth=2):
    """The questions with what the model says after `depth` recurrences as their answers, so that an
    untrained model is sometimes right."""
    ids, labels = held.ids.copy(), held.labels.copy()
    for i in range(len(held)):
        prompt = torch.tensor(held.prompt(i))[None]
        with torch.no_grad():
            logits = model(prompt, num_steps=depth, state_seed=i << 16).logits[0, -1]
        ids[i, prompt.shape[1]] = labels[i, prompt.shape[1]] = 1 + int(logits[1:].argmax())
    return TextQuestions(ids, labels, held.difficulty)


@pytest.mark.parametrize("rows", [ROWS, Addition(num_digits=1, max_operands=4)])
def test_right_by_depth_is_forward_one_question_at_a_time(rows):
    model, held = small(rows, loud=1.5), mixed(6, rows, (2, 3, 4))
    held, depths = held if rows is not ROWS else taught(model, held), (1, 2, 5)
    found = right_by_depth(model, held, depths, seed=0)
    for i in range(len(held)):
        full = torch.tensor(held.ids[i][held.ids[i] != 0])[None]
        answer = torch.tensor(held.answer(i))
        for j, depth in enumerate(depths):
            with torch.no_grad():
                logits = model(full[:, :-1], num_steps=depth, state_seed=i << 16).logits[0]
            assert found[i, j] == torch.equal(logits[-len(answer) :].argmax(-1), answer)
    assert rows is not ROWS or 0 < found.mean() < 1


def test_curves_are_shares_with_intervals():
    model = small(loud=1.5)
    sets = {k: taught(model, questions(ROWS, 40, difficulty=k, seed=0), 4) for k in (1, 3)}
    one, three = accuracy_by_depth(model, sets, (1, 4))
    assert (one.difficulty, three.difficulty, one.num, one.depths) == (1, 3, 40, (1, 4))
    right = right_by_depth(model, sets[3], (1, 4))
    assert three.accuracy == tuple(right.mean(0))
    low, high = three.intervals[1]
    assert low < three.accuracy[1] <= high and three.accuracy[1] > three.accuracy[0]


@pytest.mark.parametrize("depths", [(), (0, 2), (4, 2), (2, 2)])
def test_bad_depths_are_refused(depths):
    with pytest.raises(ValueError, match="rising numbers"):
        right_by_depth(small(), mixed(2), depths)


def test_exits_are_those_of_the_engine():
    model = small(loud=1.5)
    held = taught(model, mixed(), depth=6)
    rules = {
        "latent": LatentChange(0.2),
        "kl": KL(0.01),
        "stable": "stable",
        "five": Recurrences(5),
    }
    for found in exits(model, held, rules, max_steps=12):
        engine = engine_exits(model, held, rules[found.rule], max_steps=12, batch_size=8)
        assert found.steps.tolist() == engine.steps.tolist()
        assert found.right.tolist() == engine.right.tolist()
        assert found.rule != "five" or set(found.steps) == {5}
        assert found.rule != "latent" or (len(set(found.steps)) > 2 and 0 < found.right.mean() < 1)
    with pytest.raises(ValueError, match="can never fire"):
        exits(model, held, {"late": Recurrences(30)}, max_steps=12)


def test_exit_rows_name_share_and_correlation():
    model, held = small(loud=1.5), mixed()
    (found,) = exits(model, held, {"five": Recurrences(5)}, max_steps=20)
    row = found.row(held.difficulty)
    assert row["share_of_depth"] == 0.25 and row["rank_correlation"] is None
    assert row["steps_by_difficulty"] == {1: 5.0, 2: 5.0, 4: 5.0}
    assert row["accuracy"] == right_by_depth(model, held, (5,)).mean()


def test_long_answers_need_the_engine():
    rows = Addition(num_digits=1, max_operands=3)
    model, held = small(rows), mixed(4, rows, (2, 3))
    with pytest.raises(ValueError, match="engine_exits"):
        exits(model, held, {"kl": "kl"}, max_steps=8)
    found = engine_exits(model, held, Recurrences(3), max_steps=8)
    assert found.steps.tolist() == [3.0] * 8
    assert found.right.tolist() == right_by_depth(model, held, (3,))[:, 0].tolist()


def test_rank_correlation_is_spearmans():
    assert rank_correlation(np.array([1, 2, 3]), np.array([10, 20, 90])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3]), np.array([9, 2, 1])) == pytest.approx(-1)
    # ranks less their mean: -1.5 0 0 1.5 and -0.5 -1.5 0.5 1.5; products 3, squares 4.5 and 5
    found = rank_correlation(np.array([1, 5, 5, 7]), np.array([2, 1, 3, 4]))
    assert found == pytest.approx(3 / (4.5 * 5) ** 0.5)
    assert rank_correlation(np.array([1, 1]), np.array([1, 2])) is None
    with pytest.raises(ValueError, match="one number per question"):
        rank_correlation(np.array([1, 2]), np.array([1]))


def test_path_independence_tells_settled_states_from_unsettled_ones():
    held = mixed(8)
    near, far = path_independence(small(), held, depths=(1, 30), seeds=(0, 1))
    assert near.distance > 10 * far.distance and (near.depth, far.depth) == (1, 30)
    same = path_independence(small(), held, depths=(1,), seeds=(5, 5))[0]
    assert same.distance == 0 and same.same_answer == 1
    with pytest.raises(ValueError, match="from 1 on"):
        path_independence(small(), held, depths=(0,), seeds=(0, 1))
