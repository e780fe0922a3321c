"""Files that do not fit say how, before anything is built on them."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from inward.hub import load, resolve, shipped
from inward.methods.trm.model import TRM
from inward.methods.trm.reference import load_reference, save_reference
from tests.methods.trm.test_model import SMALL, build

REFERENCE = {
    "H_cycles": 2,
    "L_cycles": 2,
    "num_heads": 2,
    "pos_encodings": "none",
    "puzzle_emb_len": 2,
    "forward_dtype": "float32",
}


@pytest.fixture
def folder(tmp_path):
    build(SMALL).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def rewrite(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_unexpected_and_misshapen_names_are_listed_together(folder):
    def change(tensors):
        del tensors["q_head.bias"]
        tensors["stranger"] = torch.zeros(1)
        tensors["lm_head.weight"] = torch.zeros(3, 3)

    rewrite(folder, change)
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        load(folder)
    message = str(caught.value)
    assert "missing: q_head.bias" in message
    assert "unexpected: stranger" in message
    assert "of wrong shape: lm_head.weight (3, 3) instead of (7, 16)" in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_a_checkpoint(folder, bad):
    rewrite(folder, lambda t: t["lm_head.weight"].__setitem__((0, 0), bad))
    for reader in (load, TRM.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=r"NaN or infinity in lm_head\.weight"):
            reader(folder)


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut or damaged"):
        load(folder)


def test_no_such_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no shipped model"):
        load(tmp_path / "nothing")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt7"}))
    with pytest.raises(ValueError, match="gpt7"):
        load(tmp_path)


@pytest.mark.parametrize("name", shipped())
def test_shipped_models_load_and_have_their_card(name):
    path = shipped()[name]
    assert resolve(name) == path
    model = load(name)
    assert not model.training
    for file in ("README.md", "log.jsonl", "recipe.json"):
        assert (path / file).stat().st_size > 100
    assert sum(f.stat().st_size for p in shipped().values() for f in p.iterdir()) < 15e6


def test_reference_files_that_do_not_fit(tmp_path):
    settings = replace(SMALL, swiglu_multiple=256, n_sup=16)
    path = tmp_path / "r.safetensors"
    save_reference(build(settings), path)
    assert not list(tmp_path.glob("*.tmp"))
    assert load_reference(path, REFERENCE, grid=(3, 4)).settings.grid == (3, 4)
    tensors = load_file(path)
    tensors["_orig_mod.model.inner.q_head.bias"][0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"NaN or infinity in q_head\.bias"):
        load_reference(path, REFERENCE)
    del tensors["_orig_mod.model.inner.q_head.bias"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"missing: q_head\.bias"):
        load_reference(path, REFERENCE)
    with pytest.raises(ValueError, match="lacks"):
        load_reference(path, {"H_cycles": 2})
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        load_reference(tmp_path / "none.pt", REFERENCE)
    (tmp_path / "junk.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        load_reference(tmp_path / "junk.pt", REFERENCE)


def test_a_pickle_with_code_is_refused(tmp_path):
    """The reference saves with torch; nothing of such a file may run."""

    class Evil:
        def __reduce__(self):
            return (print, ("this must not be printed",))

    torch.save({"H_init": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        load_reference(tmp_path / "evil.pt", REFERENCE)


HELD = replace(SMALL, swiglu_multiple=256)
"""A model that the reference's classes hold."""


@pytest.mark.parametrize(
    "kind, reason",
    [
        ({"mixer": "conv"}, "it has no mixer 'conv'"),
        ({"mixer": "attention", "positions": "rope2d"}, "2-D rotary"),
        ({"mixer": "attention", "mask_padding": True}, "attends to padding"),
        ({"latents": 1, "answer_update": False}, "always updates the answer"),
        ({"swiglu_multiple": 32}, r"hidden_size 16 is 256 wide, here 64 \(swiglu_multiple 32"),
        ({"swiglu_multiple": 32}, r"seq_len \+ prefix_len 14 is 256 wide, here 64"),
        ({"num_identifiers": 0}, r"num_identifiers=0\) it has no prefix, here of 2 rows"),
        ({"prefix_len": 1, "num_identifiers": 0}, "no prefix, here of 1 rows"),
    ],
)
def test_what_the_reference_cannot_hold(kind, reason, tmp_path):
    with pytest.raises(ValueError, match=f"cannot load this model: .*{reason}.*save_pretrained"):
        save_reference(build(replace(HELD, **kind)), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"mixer": "attention", "positions": "rope"},
        {"latents": 1},
        {"num_identifiers": 0, "prefix_len": 0},
        {"gradient": "all", "supervision": "loop", "label_smoothing": 0.1},  # of the training alone
        # 2/3 * 4 * 96 = 256: another multiple, the same widths
        {"mixer": "attention", "hidden_size": 96, "swiglu_multiple": 32},
    ],
)
def test_what_the_reference_holds_is_written(kind, tmp_path):
    model = build(replace(HELD, **kind))
    save_reference(model, tmp_path / "x.safetensors")
    config = REFERENCE | {"puzzle_emb_len": model.settings.prefix_len, "seq_len": 12}
    if kind.get("positions"):
        config["pos_encodings"] = "rope"
    again = load_reference(tmp_path / "x.safetensors", config)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "names, told",
    [
        (("H_init", "L_init", "embed_tokens.embedding_weight", "lm_head.weight", "q_head.weight",
          "H_level.layers.0.self_attn.qkv_proj.weight",
          "L_level.layers.0.self_attn.qkv_proj.weight"), r"of HRM \(two networks"),
        (("L1_init", "L6_init", "embed_tokens.embedding_weight"), "six latents"),
        (("embed_tokens.embedding_weight", "layers.0.mlp.up_proj.weight"), "transformer baseline"),
        (("blocks.0.weight",), r"no TRM checkpoint: .* it has \['blocks\.0\.weight'\]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["_orig_mod.model.inner.", "model.inner.", ""])
def test_other_models_of_the_reference_are_named(names, told, prefix, tmp_path):
    path = tmp_path / "step_100.pt"
    torch.save({prefix + name: torch.zeros(4, 4) for name in names}, path)
    with pytest.raises(ValueError, match=f"step_100.*{told}"):
        load_reference(path, REFERENCE)


def test_files_that_hold_no_tensors_are_named(tmp_path):
    for content in ([torch.zeros(2)], torch.zeros(2), {"model": {"a": torch.zeros(1)}}, {}):
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(ValueError, match=r"odd\.pt holds no names with tensors"):
            load_reference(tmp_path / "odd.pt", REFERENCE)
    save_reference(build(HELD), tmp_path / "x.safetensors")
    (tmp_path / "all_config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"all_config\.yaml is not UTF-8"):
        load_reference(tmp_path / "x.safetensors", tmp_path / "all_config.yaml")
    (tmp_path / "all_config.yaml").write_text("arch: [1, 2")
    with pytest.raises(ValueError, match=r"all_config\.yaml is neither YAML nor JSON"):
        load_reference(tmp_path / "x.safetensors", tmp_path / "all_config.yaml")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_reference(tmp_path / "x.safetensors", tmp_path / "nowhere.yaml")
