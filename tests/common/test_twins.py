"""A twin is the model over the same parameters, and the model does not feel it."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from inward.common.twins import Twin
from tests.methods.tidar.toys import gpt2, llama, prompts


class Tangled(nn.Module):
    """Modules in every place where one can stand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)
        self.listed = [self.first, self.norm]
        self.bound = self.first.forward
        self.part = partial(Tangled.helper, self)
        object.__setattr__(self, "up", self)

    def helper(self, x: torch.Tensor) -> torch.Tensor:
        return x + float(self.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.part(self.norm(self.drop(self.first(x))))
        return self.seen


def test_a_twin_is_another_module_in_every_place():
    model = Tangled()
    twin = Twin(model)
    own = twin.model
    assert own is not model and own.first is own.again is twin.of(model.first)
    assert own.listed == [own.first, own.norm] and own.up is own
    assert own.bound.__self__ is own.first and own.part.args == (own,)
    assert own.first.weight is model.first.weight
    assert model.listed == [model.first, model.norm] and model.bound.__self__ is model.first
    assert not own.training and not own.drop.training and model.drop.training


def test_what_a_twin_does_stays_in_it():
    model = Tangled()
    buffers = {name: t.clone() for name, t in model.named_buffers()}
    twin = Twin(model)
    own = twin.model
    own(torch.randn(3, 4))
    own.register_buffer("more", torch.zeros(1))
    own.norm.register_buffer("running_mean", torch.ones(4))
    twin.apart(model.first)
    own.first.register_forward_hook(lambda *_: None)
    assert not hasattr(model, "seen") and "more" not in dict(model.named_buffers())
    assert not model.first._forward_hooks and all(m.training for m in model.modules())
    assert all(torch.equal(t, buffers[name]) for name, t in model.named_buffers())
    assert set(vars(copy.deepcopy(model))) == set(vars(model))


@pytest.mark.parametrize("build", (llama, gpt2), ids=lambda f: f.__name__)
def test_a_twin_says_the_same_and_calls_the_same_hooks(build):
    model: Any = build()
    called: list[Any] = []
    handle = model.register_forward_hook(lambda module, *_: called.append(module))
    model.train()
    twin = Twin(model)
    with torch.no_grad():
        said = twin.model(prompts(2, 6)).logits
        assert called == [twin.model] and model.training
        handle.remove()
        late = model.register_forward_pre_hook(lambda module, *_: called.append("late"))
        twin.model(prompts(2, 6))
        assert called == [twin.model, "late"], "as they are now"
        late.remove()
        model.eval()
        assert torch.equal(said, model(prompts(2, 6)).logits)
        model.get_input_embeddings().weight.mul_(2)
        assert not torch.equal(said, twin.model(prompts(2, 6)).logits), "the same parameters"
        model.get_input_embeddings().weight = nn.Parameter(torch.zeros(40, 8))
        assert twin.model.get_input_embeddings().weight.shape == (40, 8), "replaced ones too"


def test_hidden_states_are_captured_once():
    """transformers hooks a model when somebody first asks for them."""
    model: Any = llama()
    for _ in range(3):
        with torch.no_grad():
            said = Twin(model).model(prompts(1, 5), output_hidden_states=True)
        assert len(said.hidden_states) == model.config.num_hidden_layers + 1
    with torch.no_grad():
        assert len(model(prompts(1, 5), output_hidden_states=True).hidden_states) == 3
        assert len(Twin(model).model(prompts(1, 5), output_hidden_states=True).hidden_states) == 3
