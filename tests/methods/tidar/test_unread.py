"""The loss where the vocabulary is large: the head in pieces, the same numbers, few logits."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inward.common.draws import Draws
from inward.methods.tidar.acceptance import acceptance
from inward.methods.tidar.base import splits
from inward.methods.tidar.model import TiDAR, Unread
from inward.methods.tidar.settings import TiDARSettings
from tests.methods.tidar.test_adapter import shaken
from tests.methods.tidar.test_model import MASK, V, batch_of, tiny, tokens

pytestmark = pytest.mark.versions

PIECES = 7 * V
"""7 rows at a time: no divisor of the numbers of rows below"""


class Widest(TorchDispatchMode):
    """The most entries of a tensor whose last dimension is the vocabulary."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for found in output if isinstance(output, tuple | list) else (output,):
            # (32, V) is the head's weight, turned
            if (
                isinstance(found, torch.Tensor)
                and found.shape[-1:] == (V,)
                and found.shape != (32, V)
            ):
                self.entries = max(self.entries, found.numel())
        return output


def losses(model: Any, settings: TiDARSettings, **options: Any) -> tuple[Any, dict[str, Any]]:
    tidar = TiDAR(model, MASK, settings, probe=False, **options)
    batch = batch_of(tokens(3, 17))
    batch["supervised"] = torch.rand(3, 17, generator=torch.Generator().manual_seed(4)) < 0.6
    draws = Draws(1, 2, range(3), 3)
    loss = tidar.loss(batch, None, draws)
    loss.total.backward()
    grads = {n: p.grad for n, p in tidar.named_parameters() if p.grad is not None}
    return loss, grads


@pytest.mark.parametrize("masking", ["full", "random"])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_pieces_give_the_loss_and_the_gradients_of_the_whole(kind, adapted, masking):
    settings = TiDARSettings(block_size=4, masking=masking, max_logits=0, dense_masks="batch")
    found = {}
    for limit in (0, PIECES):
        model = tiny(kind)
        options = {"adapter": shaken(model, own_mask=False)} if adapted else {}
        found[limit] = losses(model, replace(settings, max_logits=limit), **options)
    (whole, wanted), (pieces, got) = found[0], found[PIECES]
    assert torch.allclose(whole.total, pieces.total, rtol=1e-5)
    for name, (value, count) in whole.metrics.items():
        assert torch.allclose(value, pieces.metrics[name][0], rtol=1e-5)
        assert torch.equal(count, pieces.metrics[name][1])
    assert wanted.keys() == got.keys() and len(got) > 4
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        assert torch.allclose(got[name], gradient, atol=1e-4 * scale, rtol=0), name


def test_no_more_logits_than_allowed_exist_at_once():
    settings = TiDARSettings(block_size=4, max_logits=PIECES)
    with Widest() as limited:
        losses(tiny(), settings)
    with Widest() as free:
        losses(tiny(), replace(settings, max_logits=0))
    assert limited.entries == PIECES
    assert free.entries == 34 * V, "a sample at a time (dense_masks)"


def test_acceptance_reads_in_pieces_too():
    batch = batch_of(tokens(2, 21))
    settings = TiDARSettings(block_size=4, max_logits=0)
    whole = acceptance(TiDAR(tiny(), MASK, settings, probe=False), batch)
    with Widest() as limited:
        tidar = TiDAR(tiny(), MASK, replace(settings, max_logits=PIECES), probe=False)
        pieces = acceptance(tidar, batch)
    assert limited.entries == PIECES
    assert all(torch.equal(whole[name][0], pieces[name][0]) for name in whole)


def test_nothing_to_predict_is_no_loss_but_a_gradient():
    hidden = torch.randn(1, 3, 5, requires_grad=True)
    head = torch.nn.Linear(5, V)
    loss, right = Unread(hidden, head, 2).sums(torch.full((1, 3), -100), None)
    assert float(loss.detach()) == float(right) == 0.0
    loss.backward()
    assert head.weight.grad is not None and not head.weight.grad.any()


def test_dropout_does_not_hide_that_the_head_is_apart():
    model = tiny("gpt2", resid_pdrop=0.5, embd_pdrop=0.5).train()
    assert splits(model) and model.training and model.transformer.drop.training
