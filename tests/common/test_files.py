"""Damaged and strange files of models and data: each ends in an error that names it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import inward
from inward import hub
from inward.cli.main import main
from inward.common import weights
from inward.common.bases import load_causal_lm, open_tokenizer
from inward.common.files import read_json, read_object, reading
from inward.common.weights import check_files, tensor_names
from inward.data.puzzles import sudoku
from inward.data.puzzles.puzzles import Puzzles
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.tidar.model import TiDAR
from inward.recipes.of import read_recipe
from tests.fuzz_loaders import fuzz

TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A plain model in several files with an index."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(tmp_path / "m", max_shard_size="6KB")
    return tmp_path / "m"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- folders of models ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors", ""]
)
def test_an_index_that_leaves_its_folder_is_refused(tiny, name):
    (tiny.parent / "x.safetensors").write_bytes(b"not to be read")
    index = tiny / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lies outside its folder; it is not read") as caught:
        hub.load(tiny)
    assert str(index) in str(caught.value)


def test_an_index_of_a_missing_file_is_refused(tiny):
    sorted(tiny.glob("model-*"))[0].unlink()
    with pytest.raises(ValueError, match=r"names 'model-00001-.*', which is not there"):
        hub.load(tiny)


def test_a_configuration_may_not_name_weights_elsewhere(tiny):
    change(tiny / "config.json", transformers_weights="../x.safetensors")
    with pytest.raises(ValueError, match="lies outside its folder"):
        check_files(tiny)


def test_weights_of_pickle_are_not_read(tiny):
    for file in tiny.glob("model*"):
        file.unlink()
    torch.save({"x": torch.zeros(1)}, tiny / "pytorch_model.bin")
    with pytest.raises(OSError, match="m"):
        hub.load(tiny)


@pytest.mark.parametrize(
    "values, told",
    [
        ({"hidden_size": 1 << 24}, "asks for"),
        ({"vocab_size": 1 << 40}, "asks for"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but"),
    ],
)
def test_sizes_are_bounded_before_memory_is_taken(tiny, values, told, monkeypatch):
    change(tiny / "config.json", **values)
    monkeypatch.setattr(weights, "check_finite", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=told) as caught:
        hub.load(tiny)
    assert str(tiny) in str(caught.value)


@pytest.mark.parametrize("length", [0, 10**6, 2**63])
def test_a_header_longer_than_its_file_is_not_read(tmp_path, length):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    assert tensor_names(path) == ["a"]
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ValueError, match=f"x.safetensors .* header has {length} bytes"):
        tensor_names(path)


def test_code_of_a_stranger_is_never_asked_for(tiny, monkeypatch):
    ran = tiny.parent / "ran"
    code = f"open({str(ran)!r}, 'w')\nclass A: pass\n"
    (tiny / "evil.py").write_text(code)
    auto = {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.A", "AutoTokenizer": "evil.A"}
    change(tiny / "config.json", auto_map=auto)
    (tiny / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.A", None]}, "tokenizer_class": "EvilTok"})
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked to run his code"))
    hub.load(tiny)  # transformers knows this kind without his code
    with pytest.raises((ValueError, OSError), match=str(tiny)):
        open_tokenizer(tiny)
    change(tiny / "config.json", model_type="evil")
    with pytest.raises(ValueError, match="model_type is 'evil'"):
        hub.load(tiny)
    with pytest.raises(ValueError, match=str(tiny)):
        load_causal_lm(tiny)
    assert not ran.exists()


def test_no_tokenizer_or_model_is_opened_without_refusing_code():
    """Every call of transformers' openers in the package says trust_remote_code, or is strict."""
    package = Path(inward.__file__).parent
    for path in package.rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            if "Tokenizer.from_pretrained(" in line or "AutoConfig.from_pretrained(" in line:
                assert "trust_remote_code=False" in line, f"{path}, line {number}"


@pytest.mark.parametrize(
    "change_it, told",
    [
        (lambda t: t.pop("model.norm.weight"), "missing: model.norm.weight"),
        (lambda t: t.update(x=torch.zeros(1)), "unexpected: x"),
        (lambda t: t["model.norm.weight"].fill_(torch.nan), "NaN or infinity in model.norm.weight"),
    ],
)
def test_a_tidar_folder_that_does_not_fit_is_refused(tmp_path, change_it, told):
    torch.manual_seed(0)
    TiDAR(LlamaForCausalLM(LlamaConfig(**TINY)), 39).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    change_it(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    for load in (hub.load, TiDAR.from_pretrained):
        with pytest.raises(ValueError, match=told) as caught:
            load(tmp_path)
        assert str(tmp_path) in str(caught.value)


def test_a_saved_tidar_over_huginn_opens_in_a_fresh_process(tmp_path):
    base = HuginnForCausalLM.from_pretrained(hub.resolve("huginn-hops"))
    TiDAR(base, base.config.vocab_size - 1).save_pretrained(tmp_path / "m")
    code = (
        "import sys, inward.hub as hub\n"
        "model = hub.load(sys.argv[1])\n"
        "print(type(model).__name__, type(model.model).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True
    )
    assert done.stdout.split() == ["TiDAR", "HuginnForCausalLM"], done.stderr


# --- small files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "holds a list; expected names"),
        (b"{}", "lacks x"),
        (b'{"x": "' + b"a" * 300 + b'"}', "has 309 bytes; at most 200"),
    ],
)
def test_json_within_bounds(tmp_path, content, told):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told) as caught:
        read_object(path, "x", largest=200 if len(content) == 309 else 1 << 20)
    assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("error", [KeyError("a"), RecursionError("deep"), Exception("tokenizers")])
def test_whatever_a_reader_raises_names_the_file(error):
    with pytest.raises(ValueError, match=r"x\.json is damaged"), reading("x.json"):
        raise error
    with pytest.raises(FileNotFoundError, match=r"^x\.json: none"), reading("x.json"):
        raise FileNotFoundError("none")
    with pytest.raises(ImportError), reading("x.json"):
        raise ImportError("peft")


@pytest.mark.parametrize("part", ["processor", "ask", "effort"])
def test_parts_of_inward_json_are_objects(tmp_path, part):
    (tmp_path / "inward.json").write_text(json.dumps({part: [1]}))
    with pytest.raises(ValueError, match=rf"inward\.json: {part} holds a list"):
        hub.read_about(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"name": 3}', '{"name": "sudoku6", "data": 3}'])
def test_recipes_that_are_none(tmp_path, content):
    path = tmp_path / "recipe.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=str(path)):
        read_recipe(path)


def test_a_small_file_that_claims_a_huge_array_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "x.npz"
    sudoku.generate(2, n=4, seed=0, progress=False).save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 16)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            with archive.open(name, "w") as member:
                if name == "inputs.npy":
                    np.lib.format.write_array_header_1_0(member, header)
                    member.write(b"\0" * 32)
                else:
                    member.write(content)
    with pytest.raises(ValueError, match=r"inputs\.npy says uint8\(1099511627776, 16\), but"):
        Puzzles.load(path)


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "data sudoku FILE/x.npz --n 9 --num 100000",
        "data maze FILE/x.csv --num 1000000",
        "data sudoku FOLDER --num 100000",
        "data arc FILE/x",
        "eval sudoku6 --out FOLDER",
        "eval sudoku6 --figure FILE/x.svg",
        "demo --out FILE",
        "bench --out FOLDER",
    ],
)
def test_targets_are_checked_before_the_work(tmp_path, words, capsys, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.npz").mkdir()
    for place in ("inward.data.puzzles.sudoku", "inward.data.puzzles.maze"):
        monkeypatch.setattr(f"{place}.generate", lambda *_, **__: pytest.fail("it worked"))
    names = {"FILE": str(tmp_path / "file"), "FOLDER": str(tmp_path / "folder.npz")}
    for name, path in names.items():
        words = words.replace(name, path)
    assert main(words.split()) == 1
    told = capsys.readouterr().err
    assert "cannot write" in told and str(tmp_path) in told and told.count("\n") == 1


# --- at random ------------------------------------------------------------------------------------


def test_200_damaged_files_end_in_errors_that_name_them():
    """`python tests/fuzz_loaders.py` does 3,000; models that are slow to load are left to it."""
    quick = ["trm", "plain", "recipe", "puzzles", "tables", "dataset", "arc", "texts", "records"]
    outcomes, _, failures = fuzz(range(200), seed=7, names=[*quick, "traces"])
    assert not failures
    assert outcomes["ValueError"] > 80 and outcomes["loaded"] > 20


@pytest.mark.slow
def test_3000_damaged_files_end_in_errors_that_name_them():
    """In a process of its own, because it bounds its memory."""
    script = Path(__file__).parents[1] / "fuzz_loaders.py"
    done = subprocess.run(
        [sys.executable, script, "--cases", "3000", "--seed", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
