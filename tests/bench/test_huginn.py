"""The comparison with the official Huginn module, on a clone made up here; and on a real one
if INWARD_HUGINN_REFERENCE names it (and INWARD_HUGINN_PACKAGES a folder with transformers 4.53)."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from inward.bench import huginn as bench_huginn
from inward.bench.huginn import SHAPE, agreement, job, write_weights
from inward.bench.huginn_sides import HuginnOrder, Products, product_forms
from inward.bench.run import bench
from inward.cli.main import main
from inward.methods.huginn.cache import SlotLayout, token_bytes
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM

TINY: dict[str, Any] = SHAPE | {
    "n_embd": 16,
    "n_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 32,
    "block_size": 64,
    "mean_recurrence": 3,
}

# The interface of the official module around our own model.
FAKE = {
    "recpre/__init__.py": "raise RuntimeError('the training code is not wanted')",
    "recpre/raven_config_minimal.py": """
import marked
from inward.methods.huginn.config import HuginnConfig as RavenConfig
""",
    "recpre/raven_modeling_minimal.py": """
import torch
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.model import HuginnForCausalLM
from .raven_config_minimal import RavenConfig

print("noise on standard output")

class HuginnDynamicCache(RecurrentCache):
    pass

class RavenForCausalLM(HuginnForCausalLM):
    freqs_cis = torch.zeros(1)

    def forward(self, ids, cache_position=None, init_scale=1.0, num_steps=None, **kwargs):
        assert init_scale == 0.0 and isinstance(num_steps, int)
        state = torch.zeros(*ids.shape, self.config.n_embd)
        if cache_position is not None:
            kwargs["position_ids"] = cache_position[None]
        return super().forward(ids, num_steps=num_steps, state=state, **kwargs)

    def generate_minimal(self, ids, streamer, max_new_tokens, init_scale, num_steps):
        for _ in range(max_new_tokens):
            out = self(ids, num_steps=num_steps, init_scale=init_scale, use_cache=False)
            ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], dim=1)
            streamer.put(ids[:, -1])
        streamer.end()
        return ids
""",
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name, text in FAKE.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "marked.py").write_text("")  # what only its own packages have
    return tmp_path / "clone"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_sides_take_turns_with_packages_of_their_own(clone, monkeypatch):
    monkeypatch.setattr(bench_huginn, "check_packages", lambda folder: None)
    said: list[str] = []
    run = job(
        clone,
        packages=clone.parent / "packages",
        dtype="float32",
        contexts=(5,),
        shape=TINY,
        num_new=3,
        say=said.append,
    )
    found = {what: (unit, values, note) for what, unit, values, note in run(2)}
    sides = ("ours", "ours shared", "official")
    ratios = ("official / ours", "official / ours shared")
    assert list(found) == [
        *(f"prompt 5 float32, {what}" for what in (*sides, *ratios)),
        *(f"token 5 float32, {what}" for what in (*sides, *ratios)),
        "products 5 float32",
        "limit 5 float32",
        *(f"token 5 float32, share of {name}" for name in sides),
    ]
    assert all(len(values) == 2 and min(values) > 0 for _, values, _ in found.values())
    ours, official, ratio = (
        found[f"token 5 float32, {w}"][1] for w in ("ours", "official", "official / ours")
    )
    assert ratio == [a / b for a, b in zip(official, ours, strict=True)]
    assert files(clone) == sorted(FAKE)
    assert "generate_minimal with HuginnDynamicCache" in said[0] and "commit unknown" in said[0]
    assert "4 tokens after it agree within" in said[1]


def test_an_error_over_there_is_told(clone):
    run = job(clone, dtype="float32", contexts=(5,), shape=TINY)
    with pytest.raises(ValueError, match=r"the side official: ModuleNotFoundError: .*marked"):
        next(run(1))


def test_bad_options_are_refused_at_once(tmp_path, clone, capsys):
    with pytest.raises(FileNotFoundError, match="holds no recpre"):
        job(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no transformers; make it with: pip"):
        job(clone, packages=tmp_path)
    with pytest.raises(ValueError, match="fit a block_size of 64"):
        job(None, contexts=(60,), shape=TINY)
    assert main(["bench", "huginn", "--reference", str(tmp_path)]) == 1
    assert "a clone of the repository seal-rg" in capsys.readouterr().err
    with pytest.raises(ValueError, match="one of trm, huginn"):
        bench(("trm", "huginn"), reference=tmp_path)
    with pytest.raises(ValueError, match="belongs to the subjects huginn, coconut"):
        bench(("trm",), reference_packages=tmp_path)
    with pytest.raises(ValueError, match="num_rows belongs to the subjects trm, coconut"):
        bench(("huginn",), num_rows=3)


def logits(scale: float, later: float | None = None) -> list[list[float]]:
    return [[scale, 2 * scale], [scale if later is None else later, 2.0 * scale]]


@pytest.mark.parametrize(
    "name, other, dtype, refused",
    [
        ("ours", logits(1.0005), "float32", None),
        ("ours", logits(1.01), "float32", "0.01"),
        ("ours", logits(1.0, later=2.0), "bfloat16", "0.45"),
        ("ours shared", logits(1.0, later=2.0), "float32", None),
        ("ours", logits(float("nan")), "float32", "nan"),
    ],
)
def test_sides_that_differ_are_not_timed(name, other, dtype, refused):
    found = {"official": logits(1.0), name: other}
    if refused is None:
        assert "agree within" in agreement(found, dtype)
    else:
        with pytest.raises(ValueError, match=f"ours differs .* by {refused}"):
            agreement(found, dtype)


def test_the_weights_are_all_there_and_the_bytes_are_theirs(tmp_path):
    from safetensors.torch import load_file

    model = HuginnForCausalLM(HuginnConfig(**TINY))
    tensors = load_file(write_weights(tmp_path, TINY))
    assert set(model.state_dict()) - set(tensors) == {"lm_head.weight"}
    assert all(t.std() > 0 for name, t in tensors.items() if name.endswith("qk_bias"))
    once = sum(t.numel() for name, t in tensors.items() if t.ndim == 2)
    core = sum(
        t.numel()
        for name, t in tensors.items()
        if t.ndim == 2 and ("core_block" in name or "adapter" in name)
    )
    read = bench_huginn.token_bytes(TINY, 3, 0, 4)
    assert read == 4 * (once + 2 * core)
    layout = SlotLayout(2, 4, 2, 2, 8, torch.float32, torch.device("cpu"))
    per_token = token_bytes("deepest", 3, layout)
    assert bench_huginn.token_bytes(TINY, 3, 10, 4) - read == 10 * per_token


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_form_is_the_same_product(dtype):
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    weights = [torch.randn(shape, generator=generator).to(kind) for shape in ((6, 4), (32, 16))]
    rows = [torch.randn(1, w.shape[1], generator=generator).to(kind) for w in weights]
    forms = product_forms(weights, rows)
    assert {"linear", "turned"} <= set(forms)
    for form in forms.values():
        with torch.inference_mode():
            for got, x, w in zip(form(), rows, weights, strict=True):
                want = x.double() @ w.double().T
                torch.testing.assert_close(got.double(), want, rtol=0.02, atol=0.02)
    order = HuginnOrder("products", "products", TINY, 3, dtype, 2)
    made = Products(order)
    per_block = 4 * 16 * 16 + 3 * 16 * 24
    assert made.bytes == (4 * per_block + 2 * 16 * 16) * kind.itemsize
    assert made.do("rate")["rate"] > 0


@pytest.mark.skipif(
    "INWARD_HUGINN_REFERENCE" not in os.environ, reason="INWARD_HUGINN_REFERENCE names no clone"
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_real_clone(dtype):
    clone = Path(os.environ["INWARD_HUGINN_REFERENCE"])
    packages: Any = os.environ.get("INWARD_HUGINN_PACKAGES")
    before, said = files(clone), []
    options: dict[str, Any] = {"shape": TINY | {"n_embd": 64, "vocab_size": 128}, "contexts": (8,)}
    packages = None if packages is None else Path(packages)
    rows = list(job(clone, packages=packages, dtype=dtype, say=said.append, **options)(1))
    assert len(rows) == 15 and "agree within" in said[-1]
    assert files(clone) == before
