"""Verdicts on states whose fate is known."""

import numpy as np
import pytest
import torch

from inward.studies.trm_settling import LastQuarter, Settling, settling
from tests.methods.trm.test_model import SMALL, batch_of, build

STEPS = 128


def judged(states):
    follow = LastQuarter(STEPS)
    for t in range(1, STEPS + 1):
        follow.add(t, states(t))
    return follow.kinds().tolist()


def test_kinds():
    angle = torch.tensor([0.0, 2 * torch.pi / 7, 2 * torch.pi / 16, 2 * torch.pi / 17, 0.11])

    def states(t):
        """A point that halves its way to rest; circles of period 7, 16, 17 and of none."""
        circle = torch.stack([torch.cos(angle * t), torch.sin(angle * t)], dim=1)
        circle[0] = torch.tensor([1.0 + 0.5**t, 2.0])
        return circle

    assert judged(states) == ["settles", "cycles", "cycles", "drifts", "drifts"]


def test_slow_motion_is_no_rest_and_no_cycle():
    """A circle of period 2 whose steps are between the two limits drifts."""

    def states(t):
        return torch.tensor(
            [[1.0, 0.002 * (t % 2)], [1.0, 0.0004 * (t % 2)], [1.0, 0.05 * (t % 2)]]
        )

    assert judged(states) == ["drifts", "settles", "cycles"]


def test_only_the_last_quarter_counts():
    def states(t):
        late = float(t > 96) * 0.1 * t
        return torch.tensor([[1.0, 0.1 * t if t < 90 else 9.0], [1.0, late]])

    assert judged(states) == ["settles", "drifts"]


def test_verdict_needs_95_of_100():
    kinds = np.array(["settles"] * 95 + ["drifts"] * 5)
    assert Settling(kinds, {}, {}, 0, 0).verdict == "settles"
    kinds[0] = "cycles"
    assert Settling(kinds, {}, {}, 0, 0).verdict == "mixed"


def test_curve_is_that_of_the_plain_forward():
    model, batch = build(SMALL), batch_of(SMALL, num=5)
    labels = model(batch["inputs"], num_steps=4)[0].argmax(-1)
    times = -(-128 // model.settings.n_sup)
    found = settling(model, batch["inputs"], labels, times=times)
    assert found.exact[4] == 1.0 and found.ever == 1.0
    assert found.left == pytest.approx(1 - found.exact[times * model.settings.n_sup])


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="at least 128"):
        LastQuarter(100)
