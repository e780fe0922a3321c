"""The same numbers as the paper's own module, on every golden folder `trm-*` (see
tests/golden/README.md).

Shapes, identifier widths, cycle counts and mixers come from the folder's config.json.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inward.common.draws import Draws
from inward.common.weights import read_tensors
from inward.methods.trm.model import TRM
from inward.methods.trm.reference import load_reference, save_reference
from tests.golden_folders import golden_folders, golden_ids

FOLDERS = golden_folders("trm-")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
LR = 0.02  # the golden README: SGD, lr 0.02, on loss / 4, and 4 is the batch size
STATES = {"y": "z_H", "z": "z_L"}


@pytest.fixture(params=FOLDERS, ids=golden_ids(FOLDERS))
def golden(request: pytest.FixtureRequest) -> tuple[Path, dict[str, Tensor], TRM]:
    torch.set_num_threads(1)
    folder = request.param
    config = json.loads((folder / "config.json").read_text())
    model = load_reference(folder / "model.safetensors", config)
    return folder, load_file(folder / "reference.safetensors"), model


def test_there_are_golden_folders():
    assert {"trm-attention-tiny", "trm-mlp-tiny"} <= {folder.name for folder in FOLDERS}


def batch_of(values: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {
        "inputs": values[f"{key}.inputs"].long(),
        "labels": values[f"{key}.labels"].long(),
        "identifiers": values[f"{key}.puzzle_identifiers"].long(),
    }


def num_steps(values: dict[str, Tensor], kind: str) -> int:
    return len({name.split(".")[1] for name in values if name.startswith(f"{kind}.step")})


def test_eval_outputs_and_states(golden):
    """Each step from the reference's own states: rounding, which differs between processors, grows
    about sixfold a step."""
    _, values, model = golden
    batch = batch_of(values, "eval")
    carry = None
    for i in range(num_steps(values, "eval")):
        key = f"eval.step{i}"
        with torch.no_grad():
            start = model.initial_state(*batch["inputs"].shape)
            if carry is not None:
                start = {name: values[f"eval.step{i - 1}.{STATES[name]}"] for name in start}
                carry |= start
            _, logits, q = model.supervision_step(
                batch["inputs"], start, identifiers=batch["identifiers"]
            )
            loss = model.loss(batch, carry, None)
        carry = loss.state
        torch.testing.assert_close(logits, values[f"{key}.logits"], **CLOSE)
        torch.testing.assert_close(q, values[f"{key}.q_halt_logits"], **CLOSE)
        for name in start:
            torch.testing.assert_close(carry[name], values[f"{key}.{STATES[name]}"], **CLOSE)
        torch.testing.assert_close(loss.total.double(), values[f"{key}.loss"][0], **CLOSE)


def train_step(model: TRM, batch: dict[str, Tensor], carry: dict[str, Tensor] | None, step: int):
    """One of the golden training steps; returns the loss, and has the gradients of loss / rows
    in place."""
    rows = len(batch["inputs"])
    model.zero_grad()
    loss = model.loss(batch, carry, Draws(0, step, range(rows), rows))
    (loss.total / rows).backward()
    return loss


def dense(model: TRM) -> list[torch.nn.Parameter]:
    return [p for name, p in model.named_parameters() if not name.startswith("identifiers.")]


def grad_norm(model: TRM) -> Tensor:
    return torch.stack([p.grad.norm() for p in dense(model) if p.grad is not None]).norm()


def check_step(model: TRM, loss, values, key: str, *, tight: bool) -> None:
    def near(got, want, loose):
        close: dict[str, Any] = CLOSE if tight else {"rtol": loose, "atol": loose}
        torch.testing.assert_close(got.double(), want.reshape(got.shape).double(), **close)

    near(loss.total.detach(), values[f"{key}.loss"], 2e-3)
    near(grad_norm(model), values[f"{key}.grad_norm"], 1e-2)
    assert torch.equal(loss.state["halted"], values[f"{key}.halted"])
    assert torch.equal(loss.state["steps"].int(), values[f"{key}.steps"].int())
    with torch.no_grad():
        _, q = model.read_out({name: loss.state[name] for name in ("y", "z") if name in loss.state})
    near(q, values[f"{key}.q_halt_logits"], 0.1)
    for name in ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps"):
        total, count = loss.metrics[name]
        near(total, values[f"{key}.metric.{name}"], 1e-2)
        assert count == values[f"{key}.metric.count"][0]


def sgd(model: TRM) -> torch.optim.Optimizer:
    return torch.optim.SGD(dense(model), lr=LR)


def test_gradients_of_the_first_step(golden):
    _, values, model = golden
    model.train()
    loss = train_step(model, batch_of(values, "train.step0"), None, 0)
    check_step(model, loss, values, "train.step0", tight=True)
    from inward.methods.trm.reference import _ours

    prefix = "train.step0.grad."
    names = [name for name in values if name.startswith(prefix)]
    parameters = dict(model.named_parameters())
    assert len(names) == len(dense(model))
    for name in names:
        got = parameters[_ours(name.removeprefix(prefix))].grad.norm()
        torch.testing.assert_close(got, values[name][0], **CLOSE)
    if "train.step0.puzzle_emb_grad" in values:
        rows = model.identifiers.weight.grad
        assert rows.is_sparse
        assert torch.equal(rows._indices()[0], values["train.step0.puzzle_identifiers"].long())
        torch.testing.assert_close(rows._values(), values["train.step0.puzzle_emb_grad"], **CLOSE)


def test_training_with_slot_refill(golden):
    """The free run: rounding grows along it, so it is compared loosely."""
    _, values, model = golden
    model.train()
    optimizer, carry = sgd(model), None
    for i in range(num_steps(values, "train")):
        key = f"train.step{i}"
        loss = train_step(model, batch_of(values, key), carry, i)
        check_step(model, loss, values, key, tight=i == 0)
        optimizer.step()
        carry = loss.state


def test_training_from_the_recorded_state(golden):
    """Steps 4 on from the reference's own weights and carry: compared tightly at the first step
    taken."""
    _folder, values, model = golden
    weights = {
        name.removeprefix("resume.step4.weights."): tensor
        for name, tensor in values.items()
        if name.startswith("resume.step4.weights.")
    }
    from inward.methods.trm.reference import _ours

    model.load_state_dict({_ours(name): tensor for name, tensor in weights.items()})
    model.train()
    current = batch_of({k.replace("current.", ""): v for k, v in values.items()}, "resume.step4")
    states = {name: values[f"resume.step4.{STATES[name]}"] for name in model.initial_state(1, 1)}
    carry = current | {
        **states,
        "steps": values["resume.step4.steps"].long(),
        "halted": values["resume.step4.halted"],
    }
    optimizer = sgd(model)
    for i in range(4, num_steps(values, "train")):
        key = f"train.step{i}"
        loss = train_step(model, batch_of(values, key), carry, i)
        check_step(model, loss, values, key, tight=i == 4)
        optimizer.step()
        carry = loss.state


@pytest.mark.parametrize("prefix", ["_orig_mod.model.inner.", "model.inner.", ""])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_written_back_bit_for_bit(golden, tmp_path, prefix, suffix):
    folder, _, model = golden
    save_reference(model, tmp_path / f"back{suffix}", prefix=prefix)
    back = read_tensors(tmp_path / f"back{suffix}")
    was = load_file(folder / "model.safetensors")
    assert {prefix + name.removeprefix("model.inner.") for name in was} == back.keys()
    for name, tensor in was.items():
        assert torch.equal(back[prefix + name.removeprefix("model.inner.")].float(), tensor.float())
    config = json.loads((folder / "config.json").read_text())
    again = load_reference(tmp_path / f"back{suffix}", config)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_bfloat16_initial_states_load(golden, tmp_path):
    folder, _, _ = golden
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith("_init"):
            tensors[name] = tensors[name].bfloat16()
    save_file(tensors, tmp_path / "m.safetensors")
    config = json.loads((folder / "config.json").read_text())
    model = load_reference(tmp_path / "m.safetensors", config)
    assert torch.equal(model.state_dict()["z_init"], tensors["model.inner.L_init"].float())


def test_other_table_sizes_start_at_the_mean_row(golden):
    folder, _, model = golden
    config = json.loads((folder / "config.json").read_text())
    if not model.settings.num_identifiers:
        pytest.skip("this folder's model has no identifier table")
    old = model.identifiers.weight
    grown = load_reference(folder / "model.safetensors", config, num_identifiers=len(old) + 3)
    assert torch.equal(grown.identifiers.weight[: len(old)], old)
    torch.testing.assert_close(grown.identifiers.weight[-1], old.mean(0))
    assert grown.settings.num_identifiers == len(old) + 3
    shrunk = load_reference(folder / "model.safetensors", config, num_identifiers=1)
    torch.testing.assert_close(shrunk.identifiers.weight[0], old.mean(0))
