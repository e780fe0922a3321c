"""The comparison with the official TRM code, on a clone that is made up here; and on a real one if
INWARD_TRM_REFERENCE names it."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inward.bench import trm as bench_trm
from inward.bench import trm_sides as bench_trm_sides
from inward.bench.run import bench
from inward.bench.trm import _agreement, _outputs, _write_weights, job
from inward.bench.trm_sides import (
    Forms,
    TRMOrder,
    _flops,
    _import_from,
    _Products,
    _Record,
    left_forms,
    reference_config,
    right_forms,
)
from inward.cli.main import main
from inward.methods.trm.model import TRM
from inward.methods.trm.reference import load_reference
from inward.methods.trm.settings import TRMSettings

TINY = TRMSettings(vocab_size=5, seq_len=4, hidden_size=8, num_heads=1, T=2, n=1, prefix_len=2)

# The module layout and the interface of the official code around our own model.
FAKE = {
    "models/recursive_reasoning/trm.py": """
import einops
import torch
from pydantic import BaseModel
from inward.methods.trm.reference import _ours
from inward.methods.trm.model import TRM
from inward.methods.trm.settings import TRMSettings

print("noise on standard output")

class Inner(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.trm = TRM(TRMSettings(
            vocab_size=c["vocab_size"], seq_len=c["seq_len"], hidden_size=c["hidden_size"],
            num_heads=c["num_heads"], T=c["H_cycles"], n=c["L_cycles"],
            prefix_len=c["puzzle_emb_len"], compute_dtype=c["forward_dtype"],
        ))
        self.trm.identifiers.weight.requires_grad_(False)

    def load_state_dict(self, tensors):
        self.trm.load_state_dict({_ours(n): t.float() for n, t in tensors.items()})

    def empty_carry(self, rows):
        return rows

    def reset_carry(self, flags, carry):
        assert flags.all() and flags.dtype == torch.bool
        return self.trm.initial_state(carry, self.trm.settings.seq_len)

    def forward(self, carry, batch):
        return self.trm.supervision_step(batch["inputs"], carry)

class TinyRecursiveReasoningModel_ACTV1(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config["mlp_t"] and config["no_ACT_continue"]
        self.inner = Inner(config)
        self.puzzle_emb = torch.nn.Module()
""",
    "models/losses.py": """
import torch

class ACTLossHead(torch.nn.Module):
    def __init__(self, model, loss_type):
        super().__init__()
        assert loss_type == "stablemax_cross_entropy"
        self.model = model

    def initial_carry(self, batch):
        assert batch["puzzle_identifiers"].shape == batch["inputs"].shape[:1]
        return None

    def forward(self, return_keys, carry, batch):
        assert self.training and self.model.training
        loss = self.model.inner.trm.loss(batch, carry, None)
        return loss.state, loss.total, {}, {}, False
""",
    "models/sparse_embedding.py": """
class CastedSparseEmbeddingSignSGD_Distributed:
    def __init__(self, params, world_size, lr, weight_decay):
        assert list(params) == [] and world_size == 1

    def step(self): pass

    def zero_grad(self): pass
""",
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name, text in FAKE.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "clone"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_sides_take_turns_and_the_clone_stays_as_it_was(clone):
    said: list[str] = []
    run = job(
        clone, num_rows=2, dtype="float32", settings=TINY, product_seconds=0.01, say=said.append
    )
    found = {what: (unit, values, note) for what, unit, values, note in run(2)}
    assert list(found) == [
        f"{work} 2 x float32, {what}"
        for work in ("step", "forward")
        for what in (
            "ours",
            "official",
            "official / ours",
            "products",
            "share of ours",
            "share of official",
        )
    ]
    assert [unit for unit, _, _ in found.values()] == ["ms", "ms", "x", "GFLOP/s", "%", "%"] * 2
    assert all(len(values) == 2 and min(values) > 0 for _, values, _ in found.values())
    ours, official, ratio = (
        found[f"step 2 x float32, {w}"][1] for w in ("ours", "official", "official / ours")
    )
    assert ratio == [a / b for a, b in zip(official, ours, strict=True)]
    assert files(clone) == sorted(FAKE)
    assert len(said) == 2
    assert "TinyRecursiveReasoningModel_ACTV1 in ACTLossHead" in said[0]
    assert str(clone) in said[0] and "commit unknown" in said[0]
    assert "agree within" in said[1]


def test_an_error_over_there_is_told(clone):
    (clone / "models" / "losses.py").write_text("raise RuntimeError('no such loss')")
    run = job(clone, num_rows=2, dtype="float32", settings=TINY)
    with pytest.raises(ValueError, match="the side official: RuntimeError: no such loss"):
        next(run(1))


def test_another_folder_is_refused_at_once(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="holds no models"):
        job(tmp_path)
    assert main(["bench", "trm", "--reference", str(tmp_path)]) == 1
    assert "--reference takes a clone" in capsys.readouterr().err
    with pytest.raises(ValueError, match="belongs to the subjects trm"):
        bench(("startup",), reference=tmp_path)


def outputs(scale: float, loss: float = 2.0) -> dict[str, Any]:
    logits = (scale * torch.ones(2, 3)).tolist()
    return {"logits": logits, "loss": loss, "gradient_norm": 1.0}


@pytest.mark.parametrize(
    "other, dtype, refused",
    [
        (outputs(1.0005), "float32", None),
        (outputs(1.01), "float32", "0.01 in logits"),
        (outputs(1.01), "bfloat16", None),
        (outputs(1.0, loss=2.5), "bfloat16", "0.25 in loss"),
        (outputs(float("nan")), "float32", "nan in logits"),
    ],
)
def test_sides_that_differ_are_not_timed(other, dtype, refused):
    found = {"official": outputs(1.0), "ours": other}
    if refused is None:
        assert "agree within" in _agreement(found, dtype)
    else:
        with pytest.raises(ValueError, match=f"ours differs .* by {refused}"):
            _agreement(found, dtype)


def test_compiling_is_timed_beside_the_same_side_without_it(monkeypatch):
    class Takes:
        def __init__(self, seconds: float):
            self.seconds = seconds

        def ask(self, line: str) -> dict[str, Any]:
            now[0] += self.seconds
            return {"line": line}

    now = [0.0]
    monkeypatch.setattr(bench_trm.time, "perf_counter", lambda: now[0])
    seconds = {"ours": 1.0, "official": 2.0, "ours compiled": 5.0, "official compiled": 9.0}
    sides: Any = {name: Takes(s) for name, s in seconds.items()}
    found, compiling = _outputs(sides)
    assert compiling == {"ours compiled": 4.0, "official compiled": 7.0}
    assert found == {name: {"line": "outputs"} for name in seconds}


def test_the_configuration_comes_back(tmp_path):
    settings = replace(TINY, n_sup=3, identifier_dim=8)
    weights = _write_weights(tmp_path, asdict(settings))
    model = load_reference(weights, reference_config(settings, 7))
    assert model.settings == settings
    order = TRMOrder("ours", json.loads(json.dumps(asdict(settings))), 7, 1, str(weights))
    flops = _flops(order)
    evaluation, read_out = model.flops()
    # T = 2, n = 1: four evaluations, two of them with backward
    assert flops == {
        "forward": 7 * (4 * evaluation + read_out),
        "step": 7 * (8 * evaluation + 3 * read_out),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_those_of_the_network(dtype):
    settings = replace(TINY, compute_dtype=dtype, num_layers=2)
    made = _Products(settings, TRMOrder("products", {}, 3, product_seconds=0.01))
    evaluation, _ = TRM(settings).flops()
    assert made.work * settings.num_layers == 3 * evaluation
    assert len(made.forward) == 4 and len(made.backward) == 8
    for form in made.forward + made.backward:
        form()
    step, forward = made.do("step"), made.do("forward")
    assert step["flops"] == made.work * (4 + 2 * 2) and forward["flops"] == made.work * 4
    assert forward["seconds"] > 0 and step["seconds"] > 0


def test_every_form_is_the_same_product():
    B, D, out, into = 4, 6, 5, 3
    torch.manual_seed(0)

    def check(forms: Forms, targets: list[list[torch.Tensor]], want: torch.Tensor, kind):
        for form, target in zip(forms[kind], targets[kind], strict=True):
            kept = target.clone()
            target.fill_(9.0)
            form()
            torch.testing.assert_close(target.reshape(want.shape), want, msg=str((kind, form)))
            target.copy_(kept)

    W, dW = torch.randn(out, into), torch.randn(out, into)
    x, y = torch.randn(B, into, D), torch.randn(B, out, D)
    xt, yt = x.mT.reshape(B * D, into), y.mT.reshape(B * D, out)
    forms = left_forms(W, x, y, xt, yt, dW)
    targets = [[y, y], [x, x], [dW, dW, dW]]
    for kind, text in enumerate(("oi,bid->bod", "oi,bod->bid", "bod,bid->oi")):
        want = torch.einsum(text, *((W, x), (W, y), (y, x))[kind])
        check((forms[0][:2], forms[1][:2], forms[2]), targets, want, kind)
    turned = ([forms[0][2]], [forms[1][2]], [])
    check(turned, [[yt], [xt], []], xt @ W.T, 0)
    check(turned, [[yt], [xt], []], yt @ W, 1)

    x, y = torch.randn(B * D, into), torch.randn(B * D, out)
    forms = right_forms(W, dW, x, y, part=5)
    for kind, want in enumerate((x @ W.T, y @ W, y.T @ x)):
        check(forms, [[y, y], [x, x], [dW, dW]], want, kind)


def test_stand_ins(monkeypatch, tmp_path):
    import sys

    find_spec = bench_trm_sides.importlib.util.find_spec
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("einops", "pydantic"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(
        bench_trm_sides.importlib.util,
        "find_spec",
        lambda n: None if n in ("einops", "pydantic") else find_spec(n),
    )
    assert _import_from(tmp_path) == ["einops", "pydantic"]
    assert sys.path[0] == str(tmp_path)
    with pytest.raises(RuntimeError, match="needs einops"):
        sys.modules["einops"].rearrange()

    class Config(_Record):
        a: int
        b: int = 3

    assert (Config(a=1).b, Config(a=1, b=2).b, Config(a=1).a) == (3, 2, 1)
    with pytest.raises(AttributeError):
        Config(b=1)
    for name in ("einops", "pydantic"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.skipif(
    "INWARD_TRM_REFERENCE" not in os.environ, reason="INWARD_TRM_REFERENCE names no clone"
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_real_clone(dtype):
    clone = Path(os.environ["INWARD_TRM_REFERENCE"])
    before = files(clone)
    said: list[str] = []
    settings = replace(TINY, hidden_size=64, num_heads=2, T=2, n=2)
    rows = list(job(clone, num_rows=2, dtype=dtype, settings=settings, say=said.append)(1))
    assert len(rows) == 12 and "agree within" in said[-1]
    assert files(clone) == before
