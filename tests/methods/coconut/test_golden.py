"""The same numbers as the paper's own module, on every golden folder `coconut-*`, whatever its
base model (see tests/golden/README.md)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from inward.data.thoughts.segments import Latent, Sample, Specials, Text, parse
from inward.methods.coconut.generate import generate
from inward.methods.coconut.model import IGNORE, Coconut
from tests.golden_folders import golden_folders, golden_ids

pytestmark = pytest.mark.versions

FOLDERS = golden_folders("coconut-")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def load_weights(base: PreTrainedModel, folder: Path) -> None:
    """Only a tied head may be missing in the file."""
    missing, unexpected = base.load_state_dict(
        load_file(folder / "model.safetensors"), strict=False
    )
    assert not unexpected
    assert set(missing) <= set(base.all_tied_weights_keys)


class Golden:
    """One folder: its values, its model, its rows as samples."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.values = load_file(folder / "reference.safetensors")
        self.facts = json.loads((folder / "reference.json").read_text())
        self.tokens = self.facts["tokens"]
        self.specials = Specials(*(self.tokens[name] for name in ("bot", "eot", "latent")))
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        load_weights(base, folder)
        self.model = Coconut(base, self.specials).eval()
        self.samples = [self.sample(row) for row in self.facts["rows"]]
        self.batch = self.model.collate(self.samples, pad=self.tokens["pad"])
        self.real = self.batch["attention_mask"].bool()

    def sample(self, row: dict[str, Any]) -> Sample:
        """Question, boundaries and thoughts are given, the answer is learned."""
        thoughts = [Latent(row["n_latent"])] if row["n_latent"] else []
        question = Text((*row["question"], self.specials.bot), False)
        answer = Text(tuple(row["answer"]), True)
        return Sample((question, *thoughts, Text((self.specials.eot,), False), answer))


@pytest.fixture(params=FOLDERS, ids=golden_ids(FOLDERS), scope="module")
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_there_are_golden_folders():
    assert "coconut-gpt2-tiny" in {folder.name for folder in FOLDERS}


def test_columns_are_those_of_the_reference(golden):
    for name in ("input_ids", "attention_mask", "position_ids"):
        assert torch.equal(golden.batch[name], golden.values[name]), name
    # Ours are shifted: column c says what comes next.
    assert torch.equal(golden.batch["labels"][:, :-1], golden.values["labels"][:, 1:])
    assert (golden.batch["labels"][:, -1] == IGNORE).all()


@pytest.mark.parametrize("executor", ["sequential", "recompute", "jacobi"])
def test_loss_logits_and_filled_embeddings(golden, executor):
    with torch.no_grad():
        output = golden.model(golden.batch, executor=executor, logits="all")
    torch.testing.assert_close(output.loss, golden.values["loss"][0], **CLOSE)
    for name, got in (("logits", output.logits), ("inputs_embeds", output.inputs_embeds)):
        want = golden.values[name]
        torch.testing.assert_close(got[golden.real], want[golden.real], **CLOSE)


@pytest.mark.parametrize("executor", ["sequential", "recompute", "jacobi"])
def test_gradients(golden, executor):
    golden.model.zero_grad()
    output = golden.model(golden.batch, executor=executor)
    torch.testing.assert_close(output.loss, golden.values["loss"][0].requires_grad_(), **CLOSE)
    output.loss.backward()
    parameters = dict(golden.model.base.named_parameters())
    names = [name for name in golden.values if name.startswith("grad.")]
    assert len(names) == len(parameters)
    for name in names:
        got = parameters[name.removeprefix("grad.")].grad.norm()
        torch.testing.assert_close(got, golden.values[name][0], **CLOSE)


def test_greedy_tokens(golden):
    """All rows in one batch: the reference can do only one at a time."""
    told = golden.facts["generation"]
    prompts = [parse(row["prompt"], specials=golden.specials) for row in told]
    num = len(told[0]["tokens"]) - len(told[0]["prompt"])
    out = generate(golden.model, prompts, max_new_tokens=num, eos_token_id=golden.tokens["eos"])
    for got, row in zip(out.tokens, told, strict=True):
        assert got == row["tokens"][len(row["prompt"]) :]
