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


@pytest.mark.parametrize("kind", [{"mixer": "conv"}, {"mixer": "attention", "positions": "rope2d"}])
def test_what_the_reference_cannot_hold(kind, tmp_path):
    with pytest.raises(ValueError, match="use save_pretrained"):
        save_reference(build(replace(SMALL, **kind)), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
