"""Recipes of Coconut: complete, consistent, runnable at toy size; published values as published."""

import json
from dataclasses import asdict, replace
from typing import Any, cast

import pytest
import torch
import tyro

from inward.data.thoughts import prosqa
from inward.data.thoughts.patterns import Script, Speak, Think
from inward.data.thoughts.prosqa import ProsQASettings
from inward.methods.coconut.model import Coconut
from inward.recipes import coconut, coconut_published
from inward.recipes.coconut import ChainData, CoconutRecipe, FileData, ProsQAData, SmallBase
from inward.train.settings import TrainSettings

TINY = ProsQASettings(num_nodes=10, min_hops=2, max_hops=2, shortcut=False)


def small(recipe: CoconutRecipe, **changes) -> CoconutRecipe:
    data = recipe.data
    if isinstance(data, ProsQAData):
        data = replace(data, graphs=TINY, num_train=16, num_valid=4, num_test=4)
    elif isinstance(data, ChainData):
        data = replace(data, num_train=16, num_valid=4, num_test=4)
    return replace(
        recipe,
        base=SmallBase(num_layers=1, width=16, num_heads=2),
        data=data,
        train=TrainSettings(steps=2, batch_rows=4, ema_decay=0.0, progress="off"),
        max_new_tokens=8,
        **changes,
    )


@pytest.mark.parametrize("row", list(coconut.rows(first=1, each=1)))
def test_every_row_trains_and_answers(row):
    run: Any = small(coconut.prosqa_symbolic(row)).build()
    for step in (0, 60, 200):  # from the first stage to the last
        batch = run.source.batch(step, range(4), 4)
        loss = run.model.loss(batch, None, None)
        assert float(loss.total.detach()) > 0
        assert int(batch["weight"].sum()) > 0
    found = run.evaluate(run.model.eval())
    assert {"accuracy", "paired", "both_sides", "blind_depth"} <= set(found)
    json.dumps(run.config)


@pytest.mark.parametrize("row", ["interleaved", "interleaved-learned"])
def test_chains_too(row):
    run: Any = small(coconut.chains_symbolic(row)).build()
    run.model.loss(run.source.batch(30, range(4), 4), None, None).total.backward()
    assert {"accuracy", "paired", "constant"} <= set(run.evaluate(run.model.eval()))


def test_rows_differ_in_the_curriculum_alone():
    made = {row: coconut.prosqa_symbolic(row) for row in coconut.rows(first=1, each=1)}
    plain = {
        row: {k: v for k, v in asdict(recipe).items() if k not in ("name", "about", "curriculum")}
        for row, recipe in made.items()
    }
    assert all(other == plain["coconut"] for other in plain.values())
    with pytest.raises(ValueError, match="rows are coconut"):
        coconut.prosqa_symbolic("magic")
    with pytest.raises(ValueError, match="rows are coconut"):
        coconut.chains_symbolic("magic")


def test_a_rhythm_is_a_row():
    recipe = coconut.prosqa_symbolic("rhythm-4-2", start="somewhere")
    same = coconut.prosqa_symbolic("interleaved", start="somewhere")
    rhythm: Any = recipe.curriculum.pattern
    assert (rhythm.thoughts, rhythm.sentences, rhythm.hidden) == (4, 2, 1)
    assert replace(recipe, name="", about="", curriculum=same.curriculum) == replace(
        same, name="", about=""
    )
    assert coconut.shares_cot("rhythm-4-2") and not coconut.shares_cot("no-cot")
    with pytest.raises(ValueError, match="rhythm-K-M"):
        coconut.prosqa_symbolic("rhythm-0-1")


def test_splits_share_no_puzzle():
    data = ProsQAData(graphs=TINY, num_train=30, num_valid=8, num_test=8, pairs=True)
    keys = {n: {prosqa.key(r) for r in data.split(n)} for n in ("train", "valid", "test")}
    assert [len(keys[n]) for n in ("train", "valid", "test")] == [15, 8, 8]  # 15 pairs
    assert not keys["train"] & (keys["valid"] | keys["test"])
    assert not keys["valid"] & keys["test"]


def test_the_released_test_set_can_be_the_test(shared_data):
    path = str(shared_data / "prosqa" / "prosqa_test.json")
    recipe = small(coconut.prosqa_symbolic())
    recipe = replace(recipe, data=replace(recipe.data, test_file=path, num_symbols=28))
    asked = recipe.task().ask(recipe.data.split("test"))
    assert len(asked) == 500
    prompts = recipe.prompts(recipe.model(), [record.question for record in asked[:5]])
    assert {prompt.num_thoughts for prompt in prompts} == {4}


def test_switches_fit_the_rows():
    kinds = {}
    for row in ("coconut", "interleaved", "interleaved-learned", "cot", "pause-as-thought"):
        recipe = small(coconut.prosqa_symbolic(row))
        kinds[row] = type(recipe.switch(recipe.model())).__name__
    assert kinds == {
        "coconut": "Speaking",
        "interleaved": "Scripted",
        "interleaved-learned": "Boundary",
        "cot": "Speaking",
        "pause-as-thought": "Speaking",
    }


def test_published_values():
    gsm, pro = coconut_published.published_gsm8k(), coconut_published.published_prosqa()
    stages = [gsm.curriculum.stages.at(epoch) for epoch in (0, 3, 6, 9, 21)]
    assert stages == [1, 2, 3, 4, 4]
    assert gsm.curriculum.pattern.script(4) == Script((Think(6), Speak()))
    assert [pro.curriculum.stages.at(epoch) for epoch in (0, 5, 30, 35, 49)] == [0, 1, 6, 7, 7]
    for recipe in (
        gsm,
        pro,
        coconut_published.published_prontoqa(),
        coconut_published.published_gsm8k_cot(),
    ):
        assert recipe.about.startswith("NOT RUN HERE")
        assert isinstance(recipe.data, FileData)
        settings = recipe.train
        assert (settings.batch_rows, settings.optim.lr, settings.optim.weight_decay) == (
            128,
            1e-4,
            0.01,
        )
        json.dumps(asdict(recipe))
    assert pro.train.steps == 50 * -(-17_886 // 128)
    assert gsm.train.steps == 22 * -(-385_620 // 128)


def test_the_optimizer_starts_afresh_where_the_curriculum_says():
    recipe = small(coconut.prosqa_symbolic())
    assert recipe.build().resets == ()
    stages = replace(recipe.curriculum.stages, reset="epoch")
    recipe = replace(recipe, curriculum=replace(recipe.curriculum, stages=stages))
    assert isinstance(recipe.data, coconut.ProsQAData)
    long = -(-recipe.data.num_train // recipe.train.batch_rows)
    run = replace(recipe, train=replace(recipe.train, steps=3 * long + 1)).build()
    assert run.resets == (long, 2 * long, 3 * long)


def test_files_need_a_trained_base():
    with pytest.raises(ValueError, match="use a PretrainedBase"):
        replace(coconut_published.published_prosqa(), base=SmallBase()).model()
    with pytest.raises(FileNotFoundError, match="prosqa_train"):
        coconut_published.published_prosqa().data.split("train")


def gsm8k(tmp_path) -> FileData:
    lines = [
        {"question": f"{i} and {i}?", "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}"}
        for i in range(1, 8)
    ]
    lines.append({"question": "unmarked?", "answer": "none\n#### 1"})
    lines.append({"question": "long " * 40 + "?", "answer": "<<1+1=2>>2\n#### 2"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "gsm.jsonl").write_text(text)
    (tmp_path / "test.jsonl").write_text(text.replace(" and ", " plus "))
    name, test = str(tmp_path / "gsm.jsonl"), str(tmp_path / "test.jsonl")
    return FileData(name, "", test, "gsm8k", num_valid=2, num_train=4, longest=100)


def test_a_file_without_a_valid_set_lends_its_end(tmp_path):
    data = gsm8k(tmp_path)
    train, valid, test = (data.split(n) for n in ("train", "valid", "test"))
    assert [r.answer for r in train] == ["2", "4", "6", "8"]
    assert [r.answer for r in valid] == ["12", "14"]
    assert len(test) == 7 and test[0].steps == ("<<1+1=2>>",)
    assert len(replace(data, num_train=0).split("train")) == 5
    # the same questions in both files: those of the test are not trained on
    both = replace(data, test=data.train)
    with pytest.raises(ValueError, match="no record is left to train on"):
        both.split("train")
    with pytest.raises(ValueError, match="num_valid is 0"):
        FileData("a", "", "b", "gsm8k")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.filterwarnings("ignore:.*Could not find a config file:UserWarning")  # peft's
def test_a_lora_on_a_real_model_trains_is_resumed_and_loads(tmp_path, shared_models):
    pytest.importorskip("peft")
    from inward.hub import load
    from inward.train import train

    base = replace(coconut.gsm8k_smollm().base, path=str(shared_models / "stories260k"))
    recipe = replace(
        coconut.gsm8k_smollm(),
        base=base,
        data=gsm8k(tmp_path),
        train=replace(
            *(coconut.gsm8k_smollm().train,),
            **{"steps": 4, "batch_rows": 2, "eval_every": 4, "save_every": 2, "warmup": 0},
        ),
        num_evaluated=2,
        max_new_tokens=16,
    )
    run: Any = recipe.build()
    names = set(run.model.state_dict())
    assert names and all("lora_" in name or "trainable_tokens" in name for name in names)
    start = run.model.base.get_base_model().model.embed_tokens
    before = start.original_module.weight.detach().clone()
    train(run, recipe.train, tmp_path / "run")
    assert torch.equal(before, start.original_module.weight), "the model below stays"
    again = load(tmp_path / "run" / "model")
    batch = run.source.batch(0, range(2), 2)
    with torch.no_grad():
        losses = [float(m.eval().loss(batch, None, None).total) for m in (run.model, again)]
    assert losses[0] == losses[1]


def test_fields_can_be_overridden_on_a_command_line():
    recipe: Any = tyro.cli(
        CoconutRecipe,
        default=coconut.prosqa_symbolic("interleaved"),
        args=["--train.steps", "3", "--curriculum.pattern.thoughts", "5", "--base.width", "32"],
        config=(tyro.conf.AvoidSubcommands,),
    )
    assert recipe.train.steps == 3 and recipe.base.width == 32
    assert recipe.curriculum.pattern.thoughts == 5


# --- a shared start -------------------------------------------------------------------------------


def trained(tmp_path, recipe: CoconutRecipe, name: str = "cot"):
    """A run of two steps."""
    from inward.train import train

    train(recipe.build(), recipe.train, tmp_path / name)
    return tmp_path / name


def test_a_row_starts_from_a_trained_folder(tmp_path):
    folder = trained(tmp_path, small(coconut.prosqa_symbolic("cot")))
    row = small(coconut.prosqa_symbolic("coconut", start=str(folder / "model")))
    assert row.curriculum.stages.at(0) == 1
    assert coconut.prosqa_symbolic("coconut").curriculum.stages.at(0) == 0
    built: Any = row.build()
    weights = Coconut.from_pretrained(folder / "model").base.state_dict()
    ours = built.model.base.state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in weights.items())
    fresh: Any = replace(row, start="").build()
    assert not torch.equal(fresh.model.embedding.weight, built.model.embedding.weight)
    # the run's folder will do, and the first batch thinks
    again: Any = replace(row, start=str(folder)).build()
    assert torch.equal(again.model.embedding.weight, built.model.embedding.weight)
    assert bool(built.source.batch(0, range(4), 4)["latent"].any())
    assert asdict(row)["start"] == str(folder / "model")  # a resumed run knows where it began


def test_a_start_that_does_not_fit_is_refused(tmp_path):
    folder = str(trained(tmp_path, small(coconut.prosqa_symbolic("cot"))))
    row = small(coconut.prosqa_symbolic("coconut", start=folder))
    wide = replace(row, base=replace(row.base, width=32))
    with pytest.raises(ValueError, match="of wrong shape"):
        wide.build()
    deep = replace(row, base=replace(row.base, num_layers=2))
    with pytest.raises(ValueError, match="missing"):
        deep.build()
    with pytest.raises(ValueError, match="another vocabulary"):
        small(coconut.chains_symbolic("coconut", start=folder)).build()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        replace(row, start=str(tmp_path / "nowhere")).build()


def test_rows_that_share_the_start_begin_with_spoken_steps():
    later, whole = coconut.rows(first=0, each=2), coconut.rows(first=3, each=2)
    for name, curriculum in whole.items():
        stages, rest = curriculum.stages, later[name].stages
        if name not in coconut.SHARE_COT:
            assert stages == rest
        elif stages.lengths:
            # the same stages, without the first
            assert [rest.at(e) for e in range(20)] == [stages.at(e + 3) for e in range(20)]
            assert stages.at(0) == 0 and rest.at(0) == 1


def test_the_small_base_has_the_spread_it_is_given():
    for kind in ("gpt2", "llama"):
        torch.manual_seed(0)
        model = SmallBase(kind, width=64, init_std=0.1).build(50, 0)
        weight = cast(Any, model).get_input_embeddings().weight.detach()
        assert float(weight.std()) == pytest.approx(0.1, rel=0.1)


def test_fewer_numbers_name_the_nodes():
    data = ProsQAData(graphs=TINY, num_train=4, num_valid=4, num_test=20, num_symbols=12)
    asked = data.task().ask(data.split("test"))
    names = {int(name) for record in asked for name in record.meta["idx_to_symbol"]}
    assert names == set(range(12))


def test_edges_can_be_one_word():
    recipe = small(coconut.prosqa_symbolic("cot"))
    recipe = replace(recipe, data=replace(recipe.data, joined=True, num_symbols=10))
    run: Any = recipe.build()
    (sample,) = run.source.samples(0, range(1), 4)
    words = run.model.tokenizer.convert_ids_to_tokens(sample.segments[0].ids)
    at = words.index("[Q]")
    assert all("_" in word for word in words[:at]) and len(words[at:]) == 6  # options, root, line
    found = run.evaluate(run.model.eval())
    assert {"accuracy", "paired", "outcome_hallucination"} <= set(found)
