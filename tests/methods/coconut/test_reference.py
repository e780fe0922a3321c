"""The Coconut paper's own files: its trainer's state dict and its arguments, both ways."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

import inward
from inward.cli.main import main
from inward.data.thoughts.segments import Latent, Sample, Text
from inward.data.thoughts.tokenizers import BOT, EOT, LATENT, word_tokenizer
from inward.methods.coconut.generate import generate
from inward.methods.coconut.model import Coconut
from inward.methods.coconut.reference import load_reference, save_reference
from inward.recipes import find
from inward.recipes.coconut_args import args_of_recipe, read_args, recipe_of_args
from inward.recipes.of import read_recipe

WORDS = "Is Tom a wumpus or cat? << >> ### 0 1 2 3 4"


def gpt2(vocab_size: int, *, seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "n_layer": 2,
        "n_embd": 16,
        "n_head": 2,
        "n_positions": 48,
        "initializer_range": 0.5,
    }
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **sizes, **ends)).eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the official run was trained from: a model and its tokenizer, without the tokens."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = word_tokenizer([WORDS])
    gpt2(len(tokenizer), seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path) -> GPT2LMHeadModel:
    """What came of it, three tokens more."""
    return gpt2(len(word_tokenizer([WORDS])) + 3, seed=1)


def official(model: GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    """The state dict of the official wrapper."""
    tensors = {f"base_causallm.{name}": t for name, t in model.state_dict().items()}
    return tensors | {"embedding.weight": model.transformer.wte.weight.detach()}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("suffix", (".pt", "", ".safetensors"))
def test_a_checkpoint_goes_in_and_comes_out_bit_by_bit(base, trained, tmp_path, dtype, suffix):
    wanted = {name: t.to(dtype) for name, t in official(trained).items()}
    path, again = tmp_path / f"checkpoint_40{suffix}", tmp_path / f"again{suffix}"
    if suffix == ".safetensors":
        from inward.common.files import write_tensors

        write_tensors(path, wanted)
    else:
        torch.save(wanted, path)
    model = load_reference(path, base)
    assert [*asdict(model.specials).values()][:3] == [
        model.tokenizer.convert_tokens_to_ids(token) for token in (BOT, EOT, LATENT)
    ]
    save_reference(model, again)
    from inward.common.weights import read_tensors

    found = read_tensors(again)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[n], wanted[n]) and found[n].dtype == dtype for n in wanted)


def test_it_thinks_what_the_official_model_thinks(base, trained, tmp_path):
    """Three thoughts by hand: each is the hidden state that the head read at the place before."""
    torch.save(official(trained), tmp_path / "checkpoint")
    model = load_reference(tmp_path / "checkpoint", base)
    question = [5, 6, 7, model.specials.bot]
    inputs = trained.transformer.wte(torch.tensor([question]))
    for _ in range(3):
        hidden = trained.transformer(inputs_embeds=inputs).last_hidden_state
        inputs = torch.cat([inputs, hidden[:, -1:]], dim=1)
    eot = trained.transformer.wte(torch.tensor([[model.specials.eot]]))
    wanted = trained(inputs_embeds=torch.cat([inputs, eot], dim=1)).logits[0, -1]
    sample = Sample((Text(tuple(question), False), Latent(3), Text((model.specials.eot,), False)))
    out = model(model.collate([sample], may_end_open=True), logits="all")
    torch.testing.assert_close(out.logits[0, -1], wanted, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_told(base, trained, tmp_path):
    tensors = official(trained)
    path = tmp_path / "checkpoint"

    def saved(**changes: Any) -> Path:
        torch.save({n: t for n, t in (tensors | changes).items() if t is not None}, path)
        return path

    table = "base_causallm.transformer.wte.weight"
    head = "base_causallm.lm_head.weight"
    wide = torch.zeros(99, 16)
    saved(**{table: wide, head: wide, "embedding.weight": wide})
    with pytest.raises(ValueError, match="do not belong together"):
        load_reference(path, base)
    with pytest.raises(ValueError, match=r"missing: transformer\.ln_f\.bias"):
        load_reference(saved(**{"base_causallm.transformer.ln_f.bias": None}), base)
    with pytest.raises(ValueError, match=r"unexpected: .*extra"):
        load_reference(saved(**{"base_causallm.extra": torch.ones(1)}), base)
    with pytest.raises(ValueError, match="are one tensor, but differ"):
        load_reference(saved(**{head: tensors[head] + 1}), base)
    saved(**{"base_causallm.transformer.ln_f.bias": torch.full((16,), torch.nan)})
    with pytest.raises(ValueError, match=r"finite|NaN"):
        load_reference(path, base)
    stale = saved(**{"embedding.weight": tensors["embedding.weight"] + 1})
    with pytest.warns(UserWarning, match="taken is the former"):
        model = load_reference(stale, base)
    assert torch.equal(model.embedding.weight, tensors["embedding.weight"] + 1)
    once = load_reference(saved(**{head: None, "embedding.weight": None}), base)
    assert torch.equal(once.embedding.weight, tensors["embedding.weight"])


def test_a_run_without_thoughts_gets_the_three_tokens(base, tmp_path):
    """cot and no_cot save the plain model; rows start from those of "<<", as there."""
    tokenizer = word_tokenizer([WORDS])
    plain = gpt2(len(tokenizer), seed=2)
    torch.save(plain.state_dict(), tmp_path / "checkpoint_6")
    model = load_reference(tmp_path / "checkpoint_6", base)
    like = plain.transformer.wte.weight[tokenizer.convert_tokens_to_ids("<<")]
    assert torch.equal(model.embedding.weight[-3:], like.expand(3, -1))
    assert torch.equal(model.embedding.weight[:-3], plain.transformer.wte.weight)


def test_the_command_converts_both_ways(base, trained, tmp_path, capsys):
    torch.save(official(trained), tmp_path / "checkpoint_40")
    folder, back = tmp_path / "ours", tmp_path / "back.pt"
    words = ["convert", "coconut", str(tmp_path / "checkpoint_40"), str(folder)]
    assert main(words) == 2 and "--base" in capsys.readouterr().err
    assert main([*words, "--base", str(base), "--thoughts", "2"]) == 0
    thinker = inward.open(folder)
    answer = thinker.ask("Is Tom a wumpus or cat?", max_new_tokens=4)
    asked = thinker.request("Is Tom a wumpus or cat?").prompt
    assert answer.steps == 2 and asked.num_thoughts == 2
    assert isinstance(thinker.model, Coconut)
    wanted = generate(thinker.model, [asked], max_new_tokens=4).tokens[0]
    assert list(answer.tokens) == wanted
    assert main([*words, "--base", str(base)]) == 1 and "exists" in capsys.readouterr().err
    assert main(["convert", "coconut", str(folder), str(back)]) == 0
    found = torch.load(back, weights_only=True)
    assert all(torch.equal(found[name], t) for name, t in official(trained).items())


def test_other_parts_are_not_lost_without_a_word(base, trained, tmp_path):
    from inward.methods.coconut.settings import CoconutSettings

    torch.save(official(trained), tmp_path / "checkpoint")
    plain = load_reference(tmp_path / "checkpoint", base)
    model = Coconut(plain.base, plain.specials, CoconutSettings(feedback="projector"))
    with pytest.raises(ValueError, match="feedback 'projector'"):
        save_reference(model, tmp_path / "out")


# --- arguments ------------------------------------------------------------------------------------

GSM = """
project: coconut
save_path: runs
name: gsm-coconut
only_eval: False
coconut: True
cot: False
no_thoughts: False
no_cot: False
c_thought: 2
epochs_per_stage: 3
max_latent_stage: 3
pad_latent_to_max: True
save_only_improve: False
uniform_prob: 0.0
model_id: openai-community/gpt2
load_model_path: None
seed: 0
resume: 3
bf16: False
train_path: data/gsm_train.json
val_path: data/gsm_valid.json
reset_optimizer: True
batch_size_training: 32
debug: False
gradient_accumulation_steps: 1
num_epochs: 25
lr: !!float "1e-4"
weight_decay: 0.01
"""


def test_arguments_become_a_recipe_and_come_back(tmp_path, capsys):
    path, made, back = tmp_path / "gsm.yaml", tmp_path / "gsm.json", tmp_path / "back.yaml"
    path.write_text(GSM)
    assert main(["convert", "coconut", str(path), str(made), "--records", "385620"]) == 0
    assert "project 'coconut' is left out" in capsys.readouterr().out
    recipe: Any = read_recipe(made)
    published = find("coconut-gsm8k")()
    assert recipe.train == published.train
    assert recipe.curriculum.stages == published.curriculum.stages
    pattern = recipe.curriculum.pattern
    assert (pattern.c, pattern.max_stage, pattern.pad_to_max) == (2, 3, True)
    assert json.loads(made.read_text())["data"]["train"] == "data/gsm_train.json"
    assert main(["convert", "coconut", str(made), str(back), "--records", "385620"]) == 0
    theirs, ours = yaml.safe_load(GSM), yaml.safe_load(back.read_text())
    assert {k: v for k, v in ours.items() if k != "name"} == {
        k: v for k, v in theirs.items() if k not in ("name",)
    }
    assert main(["train", str(made), "--help"]) == 0


@pytest.mark.parametrize(
    "changes",
    (
        {"resume": 4},
        {"resume": 0, "bf16": True, "uniform_prob": 0.3, "gradient_accumulation_steps": 2},
        {"coconut": False, "no_thoughts": True, "resume": 0},
        {"coconut": False, "cot": True, "resume": 2, "c_thought": 0, "max_latent_stage": 0,
         "epochs_per_stage": 1},
        {"load_model_path": "runs/cot"},
    ),
)  # fmt: skip
def test_round_trips_of_arguments(changes):
    given = yaml.safe_load(GSM) | changes
    recipe, _ = recipe_of_args(given, num_records=1000)
    again = args_of_recipe(recipe, num_records=1000)
    if changes.get("cot"):  # where a run without stages begins is no part of it
        given["num_epochs"] -= given["resume"]
        given["resume"] = 0
    assert {k: v for k, v in again.items() if k != "name"} == {
        k: v for k, v in given.items() if k != "name"
    }


def test_arguments_that_cannot_be_kept_are_refused(tmp_path):
    path = tmp_path / "a.yaml"
    for text, told in (
        ("coconut: True\nlearning_rate: 1", "no argument learning_rate"),
        ("only_eval: True", "only_eval is True"),
        ("[1, 2]", "no arguments"),
        ("a: [", "no YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=told):
            read_args(path)
    with pytest.raises(ValueError, match="coconut and cot"):
        recipe_of_args(yaml.safe_load(GSM) | {"cot": True}, num_records=10)
    with pytest.raises(ValueError, match="nothing is left"):
        recipe_of_args(yaml.safe_load(GSM) | {"num_epochs": 3}, num_records=10)
    with pytest.raises(ValueError, match=r"not pretrained; .*pattern Rhythm"):
        args_of_recipe(find("prosqa-interleaved")())
