"""The demo's part on depth, with the shipped model: what it prints is what the model does."""

import io

import pytest
import torch
from rich.console import Console

from inward.demo.depth import MAX_STEPS, depth_demo, read_outs
from inward.hub import load
from inward.recipes.of import recipe_of


@pytest.fixture(scope="module")
def shipped_model():
    return load("huginn-hops"), recipe_of("huginn-hops")


def test_more_hops_take_more_recurrences_and_are_answered(shipped_model):
    model, recipe = shipped_model
    screen = io.StringIO()
    console = Console(file=screen, width=100)
    lines = depth_demo("huginn-hops", model, recipe, seed=5, num=8, console=console)
    assert [line.hops for line in lines] == list(range(1, 10))
    assert [line.trained for line in lines] == 7 * [True] + 2 * [False]
    assert sum(line.right for line in lines) >= 70  # of 72
    steps = [line.steps for line in lines]
    assert steps == sorted(steps) and steps[-1] > steps[0] + 5 and steps[-1] < MAX_STEPS
    shown = screen.getvalue()
    assert "9 hops, model huginn-hops" in shown and "after 12:" in shown and "8/8" in shown


def test_read_outs_are_those_of_the_forward(shipped_model):
    model, recipe = shipped_model
    prompt = recipe.task().parse("a>c b>a c>d d>e e>f f>g g>h h>i i>j j>b | a . . .")
    said = read_outs(model, prompt, num_steps=12, seed=3)
    for r in (1, 4, 12):
        with torch.no_grad():
            out = model(torch.from_numpy(prompt)[None], num_steps=r, state_seed=3)
        share = out.logits[0, -1].float().softmax(-1)
        assert said[r - 1] == (int(share.argmax()), pytest.approx(float(share.max()), abs=1e-5))
    assert said[-1][0] == recipe.task().solve(prompt) and said[-1][1] > 0.99
