"""Huginn's files: the published layout in all the forms it is found in, read and written back."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from inward.cli.main import main
from inward.hub import load
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM, HuginnModel
from inward.methods.huginn.standalone import AUTO_MAP
from tests.methods.huginn.test_model import SMALL, build, ids


def published_shapes(config: HuginnConfig) -> dict[str, tuple[int, ...]]:
    """The table of the published checkpoint, written out apart from the code."""
    d, m = 5280, 17920
    block = {f"norm_{i}.weight": (d,) for i in (1, 2, 3, 4)} | {
        "attn.Wqkv.weight": (15840, d),
        "attn.qk_bias": (2, 1, 55, 96),
        "attn.proj.weight": (d, d),
        "mlp.fc.weight": (35840, d),
        "mlp.proj.weight": (d, m),
    }
    table: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (65536, d),
        "lm_head.weight": (65536, d),
        "transformer.adapter.weight": (d, 10560),
        "transformer.ln_f.weight": (d,),
    }
    for part, num in (("prelude", 2), ("core_block", 4), ("coda", 2)):
        for i in range(num):
            table |= {f"transformer.{part}.{i}.{name}": shape for name, shape in block.items()}
    return table


def test_the_published_model_on_the_meta_device():
    with torch.device("meta"):
        model = HuginnForCausalLM(HuginnConfig())
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == published_shapes(model.config)
    assert len(found) + 1 == 77  # and the table of rotary angles
    assert sum(p.numel() for p in model.parameters()) == 3_564_976_800
    assert model.config.effective_expected_depth == 132
    assert model.config.init_std == pytest.approx(0.0087039, abs=1e-7)
    assert model.config.init_std_out == pytest.approx(0.00053569, abs=1e-8)


PUBLISHED = {
    "architectures": ["RavenForCausalLM"],
    "auto_map": {
        "AutoConfig": "raven_config_minimal.RavenConfig",
        "AutoModelForCausalLM": "raven_modeling_minimal.RavenForCausalLM",
    },
    "model_type": "huginn_raven",
    "torch_dtype": "float32",
    "hf_config": {},
    "name": "tiny",
    "bias": False,
    "architecture_class_name": "RecurrentGPT",
    "block_class_name": "SandwichBlock",
    "norm_class_name": "RMSNorm_llama",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "init_strategy": "takase",
    "init_orthogonal": False,
    "state_init": "like-init",
    "injection_type": "linear",
    "sampling_scheme": "poisson-lognormal-filling",
    "qk_bias": True,
    "activation_checkpoint_impl": "per-iteration",
    "padding_multiple": 4096,
    "norm_eps": 1e-6,
}


@pytest.mark.parametrize("heads", ["n_heads", "num_attention_heads"])
@pytest.mark.parametrize("tying", [{"tie_embeddings": True}, {"tie_word_embeddings": True}, "both"])
def test_published_configurations_load(tmp_path, heads, tying):
    """Either spelling of heads and tying, remote code named in it, no rotary base."""
    model = build()
    model.save_pretrained(tmp_path)
    sizes = {name: value for name, value in SMALL.items() if name != "n_heads"}
    tied = {"tie_embeddings": True, "tie_word_embeddings": True} if tying == "both" else tying
    row = PUBLISHED | sizes | {heads: 4, "num_key_value_heads": 4} | tied
    (tmp_path / "config.json").write_text(json.dumps(row))
    assert AutoConfig.from_pretrained(tmp_path).rope_base == 50_000
    for again in (load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()):
        assert type(again) is HuginnForCausalLM
        with torch.no_grad():
            assert torch.equal(again(ids(2, 7)).logits, model(ids(2, 7)).logits)
    config = again.config
    assert (config.num_attention_heads, config.hidden_size, config.num_hidden_layers) == (4, 32, 4)
    again.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["tie_embeddings"] is True and "tie_word_embeddings" not in saved
    assert saved["n_heads"] == 4 and "num_attention_heads" not in saved


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bias": True}, "bias is True, but only False"),
        ({"block_class_name": "PreNormBlock"}, "block_class_name is 'PreNormBlock'"),
        ({"num_key_value_heads": 2}, "there are 2 key-value heads; set qk_bias=False"),
        ({"num_key_value_heads": 3, "qk_bias": False}, "3 key-value heads for 4 heads"),
        ({"injection_type": "modulated"}, "injection_type is 'modulated', but only linear, ffn"),
        ({"norm_class_name": "BatchNorm"}, "norm_class_name is 'BatchNorm'"),
        ({"mlp_class_name": "HalfGateMLP", "injection_type": "ffn"}, "HalfGateMLP cannot read"),
        ({"qk_norm": 1}, "qk_norm is 1"),
        ({"init_values": {"std": float("nan")}}, "init_values.std is nan"),
        ({"n_heads": 3}, "n_embd 32 does not split into 3 heads"),
        ({"mean_recurrence": 0}, "mean_recurrence is 0, must be at least 1"),
        ({"state_init": "uniform"}, "state_init is 'uniform'"),
    ],
)
def test_configurations_that_are_not_built_here(change, told):
    with pytest.raises(ValueError, match=told):
        HuginnConfig(**(SMALL | change))


def rewrite(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_all_published_forms_of_the_weights_load(tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "m")
    assert len(load_file(tmp_path / "m" / "model.safetensors")) == len(model.state_dict())

    def agrees(folder, **options) -> None:
        again = HuginnForCausalLM.from_pretrained(folder, **options)
        assert again.lm_head.weight is again.transformer.wte.weight
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name].float(), tensor), name

    rewrite(tmp_path / "m", lambda t: t.pop("freqs_cis"))
    agrees(tmp_path / "m")
    copy = model.transformer.wte.weight.detach().clone()
    rewrite(tmp_path / "m", lambda t: t.update({"lm_head.weight": copy}))
    agrees(tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: t.pop("transformer.wte.weight"))
    agrees(tmp_path / "m")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    agrees(tmp_path / "sharded")
    raw = {f"_orig_mod._original_module.{n}": t.clone() for n, t in model.state_dict().items()}
    save_file(raw, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    agrees(tmp_path / "m", key_mapping={r"^_orig_mod\._original_module\.": ""})
    agrees(tmp_path / "m")
    base = HuginnModel.from_pretrained(tmp_path / "m")
    assert torch.equal(base.wte.weight, model.transformer.wte.weight)
    raw = {f"module.{n}": t.clone() for n, t in model.state_dict().items()}
    save_file(raw, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    agrees(tmp_path / "m")
    for dtype in (torch.bfloat16, torch.float16):
        build().to(dtype).save_pretrained(tmp_path / "half")
        half = HuginnForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
        want = model.transformer.adapter.weight.to(dtype).float()
        assert torch.equal(half.transformer.adapter.weight, want)


def test_weights_that_do_not_fit(tmp_path):
    build().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1}))
    with pytest.raises(ValueError, match=r"lm_head.weight and transformer.wte.weight differ"):
        load(tmp_path)
    rewrite(tmp_path, lambda t: t.pop("lm_head.weight"))
    rewrite(tmp_path, lambda t: t.pop("transformer.ln_f.weight"))
    with pytest.raises(ValueError, match=r"missing: transformer\.ln_f\.weight"):
        load(tmp_path)


def test_untied_weights_survive(tmp_path):
    """Whichever spelling says so, and whenever."""
    by_field = build(tie_embeddings=False)
    config = build().config
    config.tie_word_embeddings = False
    later = HuginnForCausalLM(config)
    for i, model in enumerate((by_field, build(tie_word_embeddings=False), later)):
        assert model.lm_head.weight is not model.transformer.wte.weight
        model.save_pretrained(tmp_path / str(i))
        again = HuginnForCausalLM.from_pretrained(tmp_path / str(i))
        assert again.config.tie_word_embeddings is again.config.tie_embeddings is False
        assert again.lm_head.weight is not again.transformer.wte.weight
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("wrong", [49, 65])
def test_a_wrong_vocabulary_names_both_numbers(tmp_path, tied, wrong):
    build(tie_embeddings=tied).save_pretrained(tmp_path)
    row = json.loads((tmp_path / "config.json").read_text()) | {"vocab_size": wrong}
    (tmp_path / "config.json").write_text(json.dumps(row))
    for kind in (HuginnForCausalLM, HuginnModel, AutoModelForCausalLM):
        with pytest.raises(ValueError, match=f"vocab_size {wrong}, but .*weight in .* has 50 rows"):
            kind.from_pretrained(tmp_path)


# --------------------------------------------------------------------------------------------------
# Folders that others open


def test_a_folder_written_anew_names_what_is_there(tmp_path, capsys):
    """The published code is not copied, so the new folder does not name it."""
    build().save_pretrained(tmp_path / "old")
    row = json.loads((tmp_path / "old" / "config.json").read_text()) | {
        name: PUBLISHED[name] for name in ("architectures", "auto_map")
    }
    (tmp_path / "old" / "config.json").write_text(json.dumps(row))
    (tmp_path / "old" / "chat_template.jinja").write_text("{{ messages }}")
    for words, named in (([], None), (["--standalone"], AUTO_MAP)):
        new = tmp_path / f"new{len(words)}"
        assert main(["convert", "huginn", str(tmp_path / "old"), str(new), *words]) == 0
        saved = json.loads((new / "config.json").read_text())
        assert saved["architectures"] == ["HuginnForCausalLM"] and saved.get("auto_map") == named
        assert (new / "chat_template.jinja").read_text() == "{{ messages }}"
        assert load(new).config.auto_map == (named or {})
        load(new).save_pretrained(tmp_path / "again")
        assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())
    assert main(["convert", "huginn", str(tmp_path / "old"), str(new)]) == 1
    assert "exists" in capsys.readouterr().err


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "inward":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModel, AutoModelForCausalLM
torch.set_num_threads(1)
folder, again, given = sys.argv[1:]
ids, logits, said = torch.load(given)
for name in (folder, again):
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules")
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), said)
    model.save_pretrained(again)
assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ == "HuginnModel"
model.train()(ids, labels=ids).loss.backward()
print("done", "inward" in sys.modules)
"""


def test_a_standalone_folder_loads_where_this_library_is_not(tmp_path):
    model, x = build(), ids(2, 6)
    model.save_pretrained(tmp_path / "m", standalone=True)
    with torch.no_grad():
        given = (x, model(x).logits, model.generate(x, max_new_tokens=5, do_sample=False))
    torch.save(given, tmp_path / "given.pt")
    (tmp_path / "run.py").write_text(WITHOUT)
    words = [str(tmp_path / name) for name in ("run.py", "m", "again", "given.pt")]
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, *words], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0 and ran.stdout.strip().endswith("done False"), ran.stderr[-2000:]


def test_rounding_the_weights_leaves_the_angles_alone(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    loaded = HuginnForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        got = model.bfloat16()(ids(1, 60)).logits
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, loaded(ids(1, 60)).logits)
    _, context = loaded.embed(ids(1, 60))
    assert context.rotary[0].dtype == torch.float32


def test_initialisation():
    torch.manual_seed(0)
    sizes: dict[str, Any] = SMALL | {"n_embd": 256, "intermediate_size": 512}
    config = HuginnConfig(**sizes)
    model: Any = HuginnForCausalLM(config)
    block = model.transformer.core_block[1]
    cut = 0.98658  # deviation of a normal cut at 3 sigma
    for weight, sigma in (
        (model.transformer.wte.weight, config.init_std),
        (model.transformer.adapter.weight, config.init_std),
        (block.attn.Wqkv.weight, config.init_std),
        (block.mlp.fc.weight[512:], config.init_std),
        (block.attn.proj.weight, config.init_std_out),
        (block.mlp.proj.weight, config.init_std_out),
    ):
        assert weight.std().item() == pytest.approx(cut * sigma, rel=0.03)
        assert weight.abs().max().item() <= 3 * sigma
    assert (block.norm_1.weight == 1).all() and (block.attn.qk_bias == 0).all()
