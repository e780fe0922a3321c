"""What a training step takes by the meter, against the kernels that torch's counter sees."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from inward.common.draws import Draws
from inward.data.thoughts.segments import Sample, Text
from inward.methods.coconut.model import Coconut
from inward.methods.huginn.settings import Depth, Watch
from inward.methods.huginn.train import HuginnTraining
from inward.methods.tidar.adapter import DraftAdapter
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.settings import AdapterSettings, TiDARSettings
from inward.train.meter import StepMeter, step_cost, visible_pairs
from tests.counted import counter
from tests.methods.tidar.toys import MASK, llama
from tests.test_meter import _trm
from tests.test_promises import METHODS, SAMPLES, SPECIALS, _huginn

SPOKEN = [Sample((Text((5, 6), False), Text((7, 8, 9), True)))] * 2
"""A chain of thought in words, with which the curriculum of Coconut begins."""


def _adapted(**more: Any) -> TiDAR:
    base = llama()
    adapter = DraftAdapter(base, AdapterSettings(rank=4))
    return TiDAR(base, 31, TiDARSettings(block_size=3, **more), adapter=adapter)


def _checkpointed() -> Any:
    model = _huginn()
    model.transformer.gradient_checkpointing = True
    model.transformer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    return model


def _tidar(**more: Any) -> TiDAR:
    return TiDAR(llama(), MASK, TiDARSettings(block_size=3, **more))


TEXT = METHODS["huginn"].batch
ROWS = METHODS["tidar"].batch
STEPS: dict[str, tuple[Any, Any]] = {
    "trm": (_trm, METHODS["trm"].batch),
    "trm-mlp": (lambda: _trm(mixer="mlp"), METHODS["trm"].batch),
    "trm-cube": (lambda: _trm(mixer="cube", prefix_len=0), METHODS["trm"].batch),
    "trm-without-gradient": (lambda: _trm(T=3, n=2), METHODS["trm"].batch),
    "huginn": (_huginn, TEXT),
    "huginn-rows-watched": (
        lambda: HuginnTraining(
            _huginn(), depth=Depth(6, 2, "row"), watch=Watch("warn", every=1)
        ),
        TEXT,
    ),
    "huginn-checkpointed": (_checkpointed, TEXT),
    "coconut": (lambda: Coconut(llama(), SPECIALS), lambda m: m.collate(SAMPLES)),
    "coconut-spoken": (lambda: Coconut(llama(), SPECIALS), lambda m: m.collate(SPOKEN)),
    "coconut(huginn)": (lambda: Coconut(_huginn(), SPECIALS), lambda m: m.collate(SAMPLES)),
    "tidar": (_tidar, ROWS),
    "tidar-row-by-row": (lambda: _tidar(dense_masks="one"), ROWS),
    "tidar-unread": (lambda: _tidar(max_logits=40), ROWS),
    "tidar(huginn)": (lambda: TiDAR(_huginn(), MASK, 3), ROWS),
    "tidar-adapter": (_adapted, ROWS),
    "tidar-adapter-taught": (lambda: _adapted(distill=0.5), ROWS),
}  # fmt: skip
AGAIN = ("huginn-checkpointed", "tidar-unread")


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_is_what_torch_counts(name):
    build, batch_of = STEPS[name]
    torch.manual_seed(0)
    model = build().train()
    batch = batch_of(model)

    def step() -> None:
        model.zero_grad()
        torch.manual_seed(0)  # Huginn draws a depth where nobody says one
        model.loss(batch, None, Draws(0, 0, range(2), 2)).total.backward()

    with set_checkpoint_early_stop(False):  # else the last products are not run again
        step()  # a model is found out once
        with StepMeter() as meter:
            step()
        with counter() as found:
            step()
    assert meter.cost.flops == found.get_total_flops()
    parts = meter.cost.parts
    assert meter.cost.flops == sum(part.flops for part in parts.values())
    assert ("again" in parts) == (name in AGAIN)
    assert parts["backward"].flops > 0


def test_the_stated_difference_of_grouped_convolutions():
    """torch's counter takes the weight's gradient of a depthwise convolution for that of a full
    one: 15 forwards too many at 16 channels."""
    torch.manual_seed(0)
    model = _trm(mixer="conv").train()
    batch = METHODS["trm"].batch
    assert batch is not None

    def step() -> None:
        model.loss(batch(model), None, Draws(0, 0, range(2), 2)).total.backward()

    with StepMeter() as meter:
        step()
    with counter() as found:
        step()
    settings, calls = model.settings, 2 * 2  # layers, evaluations with gradient
    forward = calls * 2 * 2 * 16 * 16 * settings.kernel_size**2
    assert found.get_total_flops() - meter.cost.flops == 15 * forward


def test_pairs_that_a_mask_lets_through():
    q, k = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 6, 5)
    assert visible_pairs(q, k, False, None) == 2 * 3 * 4 * 6
    assert visible_pairs(q, q, True, None) == 2 * 3 * 10
    mask = torch.ones(4, 6).tril(2).bool()
    assert visible_pairs(q, k, False, mask) == 6 * int(mask.sum())
    additive = torch.zeros(2, 1, 4, 6).masked_fill(~mask, -torch.inf)
    assert visible_pairs(q, k, False, additive) == 6 * int(mask.sum())
    assert visible_pairs(q, k, False, mask[:1][None]) == 6 * 4 * int(mask[0].sum())


def test_a_step_of_a_recipe_leaves_the_run_as_it_was():
    from dataclasses import replace

    from inward.recipes.huginn import hops
    from inward.train.settings import OptimSettings, TrainSettings

    train = TrainSettings(steps=1, batch_rows=4, optim=OptimSettings(name="adamw"))
    recipe = hops()
    small = replace(recipe.model, width=16, num_heads=2, mlp_width=16)
    recipe = replace(recipe, model=small, depth=replace(recipe.depth, ramp=0), train=train)
    run = recipe.build()
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    first, again = (step_cost(run, train, 3) for _ in range(2))
    assert first == again and set(first.parts) == {"forward", "backward"}
    assert step_cost(run, train, 4).flops != first.flops, "each step draws a depth of its own"
    assert all(p.grad is None for p in run.model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    twice = step_cost(run, replace(train, batch_rows=8), 3)
    assert 1.8 < twice.flops / first.flops < 2.2
