"""The cache of thinking: one copy of the past, the same numbers as transformers' growing cache."""

import gc

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import DynamicCache

from inward.common import IGNORE
from inward.data.thoughts.segments import Latent, Sample
from inward.methods.coconut.cache import RoomyLayer
from tests.methods.coconut.toys import distance, make_model, ragged, text

pytestmark = pytest.mark.versions


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_the_cache_keeps_one_copy_of_the_past():
    """What autograd saves does not grow by a copy of the past for each thought."""
    model = make_model(dtype=torch.float32)

    def saved(num: int) -> int:
        storages = {}
        with saved_tensors_hooks(
            lambda t: storages.setdefault(t.untyped_storage().data_ptr(), t) is None or t,
            lambda t: t,
        ):
            output = model(
                model.collate([Sample((text(70, 0), Latent(num), text(3, 1, supervised=True)))])
            )
        total = sum(t.untyped_storage().nbytes() for t in storages.values())
        del output
        gc.collect()
        return total

    few, many = saved(2), saved(10)
    past = 2 * 2 * 70 * 16 * 4  # layers, keys and values, columns, width, bytes
    assert many - few < 8 * past / 2


def test_roomy_layers_equal_growing_ones():
    model = make_model("llama")
    batch = model.collate(ragged())
    wanted = batch["labels"] != IGNORE
    grads = []
    for cache in (model.new_cache(batch["attention_mask"]), DynamicCache()):
        model.zero_grad()
        parts = list(model.sequential(batch, wanted=wanted, cache=cache))
        torch.stack([(p.logits**2).sum() for p in parts]).sum().backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert distance(grad, grads[1][name]) < 1e-9, name


def test_roomy_layers_grow_select_and_crop():
    def fill(layer, num, start=0):
        x = torch.arange(start, start + num, dtype=torch.float64)
        x = x[None, None, :, None] + torch.tensor([0.0, 100.0])[:, None, None, None]
        return layer.update(x, -x)

    layer = RoomyLayer(4)
    fill(layer, 3)
    keys, values = fill(layer, 200, 3)
    assert keys[1, 0, :, 0].tolist() == [100.0 + i for i in range(203)]
    assert torch.equal(values, -keys)
    layer.crop(-200)
    layer.batch_select_indices(torch.tensor([1, 0]))
    keys, _ = fill(layer, 1, 50)
    assert keys[:, 0, :, 0].tolist() == [[100, 101, 102, 50], [0, 1, 2, 150]]
    layer.reorder_cache(torch.tensor([1, 0]))
    keys, values = fill(layer, 1, 60)
    assert keys[:, 0, :, 0].tolist() == [[0, 1, 2, 150, 60], [100, 101, 102, 50, 160]]
    layer.batch_repeat_interleave(2)
    keys, values = layer.update(*(torch.full((4, 1, 1, 1), v).double() for v in (7.0, -7.0)))
    first, second = [0, 1, 2, 150, 60, 7], [100, 101, 102, 50, 160, 7]
    assert keys[:, 0, :, 0].tolist() == [first, first, second, second]
    assert torch.equal(values, -keys)
    layer.reset()
    assert layer.get_seq_length() == 0
    grown = RoomyLayer(4)
    grown.update(*torch.zeros(2, 1, 1, 1, 1, requires_grad=True).unbind(0))
    with pytest.raises(ValueError, match="cannot be cropped"):
        grown.crop(-1)
