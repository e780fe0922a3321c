"""TiDAR's recipes: the small ones train, the published ones read tokens that are there."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from inward.data.texts.packed import PackedTokens
from inward.methods.tidar.model import TiDAR
from inward.recipes import tidar as recipes
from inward.recipes.tidar import OwnText, TiDARRecipe, TokenFolder
from inward.train.loop import train


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(__file__).resolve().parents[3] / "shared" / "models"
    folder = Path(os.environ.get("INWARD_MODELS", folder))
    if not (folder / "stories260k").is_dir():
        pytest.skip(f"no model at {folder}/stories260k; set INWARD_MODELS to the folder around it")
    monkeypatch.setenv("INWARD_MODELS", str(folder))
    return folder


def shrunk(recipe: TiDARRecipe, folder: Path, **data: Any) -> TiDARRecipe:
    small = {"num_texts": 12, "num_valid": 4, "max_new_tokens": 16, "seq_len": 32, "batch_size": 6}
    settings = replace(recipe.train, steps=2, batch_rows=4, eval_every=0, save_every=0, warmup=1)
    own: Any = recipe.data
    changed = replace(own, path=str(folder / "own.jsonl"), **{**small, **data})
    return replace(recipe, data=changed, train=settings)


@pytest.mark.parametrize("make", [recipes.stories, recipes.stories_adapter])
def test_small_recipes_train_and_load(make, models, tmp_path):
    recipe = shrunk(make(), tmp_path)
    run = recipe.build()
    summary = train(run, recipe.train, tmp_path / "run")
    wanted = {"draft_loss", "draft_accuracy", "accepted", "first"}
    wanted |= set() if recipe.draft_only else {"ar_loss", "ar_accuracy"}
    assert set(summary["evaluation"]) == wanted
    assert 1 <= summary["evaluation"]["accepted"] <= recipe.method.block_size
    base = models / "stories260k" if recipe.draft_only else None
    loaded = TiDAR.from_pretrained(tmp_path / "run" / "model", base)
    assert loaded.settings == recipe.method and loaded.mask_id == 512
    # the model's text is read, not written again
    again = recipe.build().source.batch(0, range(4), 4)
    assert all(
        torch.equal(value, again[n]) for n, value in run.source.batch(0, range(4), 4).items()
    )


def test_own_text_answers_questions(models, tmp_path):
    names = ("Lily", "Tom", "Ben", "Sam")
    lines = [json.dumps({"question": f"Where is {name}?"}) + "\n" for name in names]
    (tmp_path / "q.jsonl").write_text("".join(lines))
    asked = {"questions": str(tmp_path / "q.jsonl"), "num_texts": 4, "num_valid": 1}
    batch = (
        shrunk(recipes.stories_adapter(), tmp_path, **asked).build().source.batch(0, range(1), 1)
    )
    assert "supervised" in batch and not bool(batch["supervised"][:, 0].any())
    with pytest.raises(ValueError, match="holds 4 questions, 9 are to be asked"):
        shrunk(recipes.stories_adapter(), tmp_path, **{**asked, "num_texts": 9}).build()


def test_a_chat_model_asks_itself(models, tmp_path):
    from inward.common.bases import open_base

    model, tokenizer = open_base("stories260k")
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    data = OwnText(str(tmp_path / "own.jsonl"), num_texts=6, num_valid=2, max_new_tokens=8)
    train, valid = data.tokens(model, tokenizer)
    assert len(train) == 4 and len(valid) == 2
    marks = train.supervised
    assert marks is not None
    prompts = [
        tokenizer.decode(train.ids[a:b][~marks[a:b]])
        for a, b in zip(train.starts, train.starts[1:], strict=False)
    ]
    assert all("user" in prompt and prompt.rstrip().endswith("[assistant]") for prompt in prompts)
    assert len(set(prompts)) == 4, "the questions differ"
    assert all(prompt.count("</s>") == 1 for prompt in prompts)
    # and it is asked as well
    from inward.data.texts.requests import requests

    data = replace(data, path=str(tmp_path / "more.jsonl"), requested=3)
    parts = data.tokens(model, tokenizer)
    texts = [
        tokenizer.decode(part.ids[a:b])
        for part in parts
        for a, b in zip(part.starts, part.starts[1:], strict=False)
    ]
    given = [*requests("ordinary", 2), requests("repetitive", 2)[0]]
    found = [sum(request in text for text in texts) for request in given]
    assert found == [1, 1, 1] and len(texts) == 6
    # or does nothing else
    data = replace(data, path=str(tmp_path / "only.jsonl"), num_texts=3)
    assert [len(part) for part in data.tokens(model, tokenizer)] == [1, 2]
    assert not (tmp_path / "only.jsonl.openings").exists()


def test_a_published_recipe_reads_token_folders(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    letters = {letter: i for i, letter in enumerate("abcdefgh")}
    model = transformers.PreTrainedTokenizerFast(tokenizer_object=word_level(letters))
    model.save_pretrained(tmp_path / "base")
    rng = np.random.default_rng(0)
    for name in ("train", "valid"):
        texts = [rng.integers(0, 8, size=int(n)).tolist() for n in rng.integers(4, 20, size=12)]
        PackedTokens.from_ids(texts).save(tmp_path / "tokens" / name)
    recipe = recipes.published_qwen_1_5b()
    assert "NOT RUN HERE" in recipe.about and recipe.train.warmup == 238
    recipe = replace(
        recipe,
        base=str(tmp_path / "base"),
        attention="sdpa",
        data=TokenFolder(path=str(tmp_path / "tokens"), seq_len=24),
        train=replace(recipe.train, steps=2, batch_rows=8, warmup=0, precision="float32"),
    )
    run = recipe.build()
    assert isinstance(run.model, TiDAR) and run.model.mask_id == 8  # a row the tokenizer left free
    assert train(run, recipe.train, tmp_path / "run")["steps"] == 2


def word_level(vocabulary: dict[str, int]) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return Tokenizer(WordLevel(vocabulary, unk_token="a"))


@pytest.mark.parametrize(
    "make", [recipes.stories, recipes.smollm_adapter, recipes.published_qwen_8b]
)
def test_a_recipe_is_one_plain_config(make):
    recipe = make()
    assert recipe == make() and asdict(recipe)["method"]["block_size"] in (5, 8, 16)


def test_bad_input(models, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model 'nowhere'.*INWARD_MODELS"):
        replace(recipes.stories(), base="nowhere").build()
    with pytest.raises(ValueError, match="num_texts is 3, of which 4 are held out"):
        shrunk(recipes.stories(), tmp_path, num_texts=3).build()
    with pytest.raises(ValueError, match=r"requested is 3; .* chat template"):
        shrunk(recipes.stories(), tmp_path, requested=3).build()
    with pytest.raises(FileNotFoundError, match="no questions at absent"):
        shrunk(recipes.stories(), tmp_path, questions="absent.jsonl").build()
    with pytest.raises(FileNotFoundError, match="no tokens"):
        replace(recipes.stories(), data=TokenFolder(str(tmp_path))).build()
    assert OwnText().num_valid < OwnText().num_texts
