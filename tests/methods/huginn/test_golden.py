"""The same numbers as the paper's own module, on every golden folder `huginn-*` (see
tests/golden/README.md).

What is compared follows from the names in the folder: `logits.rN`, `grad.n3k2.NAME`, `greedy.rN`,
`greedy.rN.compress-X`. Exit rules and warm starts are compared where they are built, in
test_huginn_generate.py.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache

from inward.hub import load
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.huginn.sharing import reference_sharing
from tests.golden_folders import golden_folders, golden_ids

pytestmark = pytest.mark.versions

FOLDERS = golden_folders("huginn-")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
Golden = tuple[Path, dict[str, Tensor], HuginnForCausalLM]


@pytest.fixture(params=FOLDERS, ids=golden_ids(FOLDERS))
def golden(request: pytest.FixtureRequest) -> Golden:
    torch.set_num_threads(1)
    folder = request.param
    model = load(folder)
    assert isinstance(model, HuginnForCausalLM)
    return folder, load_file(folder / "reference.safetensors"), model


def depths(names, pattern: str) -> list[tuple[str, int]]:
    """(name, number in it) of the names that match."""
    found = [(name, re.fullmatch(pattern, name)) for name in names]
    return [(name, int(match[1])) for name, match in found if match]


def test_there_are_golden_folders():
    assert "huginn-tiny" in {folder.name for folder in FOLDERS}


@torch.no_grad()
def test_logits_and_latents_at_each_depth(golden):
    _, values, model = golden
    names = depths(values, r"logits\.r(\d+)")
    assert names
    for name, r in names:
        out = model(values["input_ids"], num_steps=r, state=values["input_states"])
        torch.testing.assert_close(out.logits, values[name], **CLOSE)
        torch.testing.assert_close(out.latents, values[f"latents.r{r}"], **CLOSE)


@torch.no_grad()
def test_the_four_functions_give_the_same(golden):
    _, values, model = golden
    (name, r), *_ = sorted(depths(values, r"logits\.r(\d+)"), key=lambda pair: -pair[1])
    e, context = model.embed(values["input_ids"])
    s = values["input_states"]
    for i in range(r):
        s = model.iterate(s, e, context, recurrence=i)
    latents, logits = model.read_out(s, context)
    torch.testing.assert_close(logits, values[name], **CLOSE)
    torch.testing.assert_close(latents, values[f"latents.r{r}"], **CLOSE)


@torch.no_grad()
def test_logits_from_a_zero_state(golden):
    _, values, model = golden
    names = depths(values, r"logits\.zero_init\.r(\d+)")
    assert names
    model.config.state_init = "zero"
    for name, r in names:
        out = model(values["input_ids"], num_steps=r)
        torch.testing.assert_close(out.logits, values[name], **CLOSE)


def test_loss_and_gradients_of_truncated_backpropagation(golden):
    """The reference's labels are shifted already; ours are not: put a column before them."""
    _, values, model = golden
    names = [match for match in (re.fullmatch(r"loss\.(n(\d+)k(\d+))", n) for n in values) if match]
    assert names
    labels = F.pad(values["labels"], (1, 0), value=-100)
    for match in names:
        model.zero_grad()
        steps = int(match[2]), int(match[3])
        out = model(values["input_ids"], num_steps=steps, state=values["input_states"])
        # the last column predicts too: as many labels as logits after transformers' shift
        loss = model.loss_function(F.pad(out.logits, (0, 0, 0, 1)), labels, model.config.vocab_size)
        torch.testing.assert_close(loss, values[match[0]][0], **CLOSE)
        loss.backward()
        parameters = {n: p.grad.norm() for n, p in model.named_parameters() if p.grad is not None}
        prefix = f"grad.{match[1]}."
        expected = {n.removeprefix(prefix): v[0] for n, v in values.items() if n.startswith(prefix)}
        assert parameters.keys() == expected.keys()
        for name, norm in expected.items():
            torch.testing.assert_close(parameters[name], norm, **CLOSE)


def greedy(model: Any, prompt: Tensor, tokens: list[int], r: int, cache) -> list[int]:
    model.config.state_init = "zero"
    new = len(tokens) - prompt.shape[1]
    out = model.generate(
        prompt, num_steps=r, past_key_values=cache, max_new_tokens=new, do_sample=False
    )
    return out[0].tolist()


@pytest.mark.parametrize("make", [RecurrentCache, DynamicCache])
def test_greedy_continuations(golden, make):
    folder, values, model = golden
    runs = json.loads((folder / "reference.json").read_text())["generation"]
    prompt = values["input_ids"][:1, :12]
    names = depths(runs, r"greedy\.r(\d+)")
    assert names
    for name, r in names:
        assert greedy(model, prompt, runs[name], r, make()) == runs[name]


def test_greedy_continuations_with_shared_slots(golden):
    folder, values, model = golden
    runs = json.loads((folder / "reference.json").read_text())["generation"]
    prompt = values["input_ids"][:1, :12]
    names = depths(runs, r"greedy\.r(\d+)\.compress-\w+")
    assert names
    told = []
    for name, r in names:
        sharing = reference_sharing(name.split(".")[-1], model.config.n_layers_in_recurrent_block)
        told.append(greedy(model, prompt, runs[name], r, RecurrentCache(sharing)))
        assert told[-1] == runs[name]
    exact = [greedy(model, prompt, runs[name], r, RecurrentCache("per-depth")) for name, r in names]
    assert all(shared != own for shared, own in zip(told, exact, strict=True)), "nothing was shared"


def test_published_layout_is_written_back(golden, tmp_path):
    folder, _, model = golden
    model.save_pretrained(tmp_path / "back")
    was = load_file(folder / "model.safetensors")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == was.keys()
    for name, tensor in was.items():
        if name == "freqs_cis":
            torch.testing.assert_close(back[name], tensor, rtol=0, atol=1e-6)
        else:
            assert torch.equal(back[name], tensor), name
    again = load(tmp_path / "back")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
