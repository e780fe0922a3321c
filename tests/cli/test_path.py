"""The whole path with a model and data of one's own: train, then the commands that training prints,
also after the folder has moved."""

import contextlib
import io
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from inward.cli.main import main
from inward.hub import load
from tests.recipes.small_huginn import HUGINN, small_huginn

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft's
    pytest.mark.filterwarnings("ignore:.*Could not find a config file:UserWarning"),  # peft's
]

STORIES = [
    "Once upon a time there was a cat. The cat had a red ball.",
    "Lily went to the park. She saw a big dog and they played all day.",
    "Tom was sad. His mom gave him a hug and he was happy again.",
    "The sun was hot. Ben and Sam swam in the lake.",
    "A little bird sat in a tree. It sang a song for the girl.",
]
SMALL = [
    *("--train.batch-rows", "4", "--train.device", "cpu", "--train.progress", "off"),
    *("--train.warmup", "1", "--num-valid", "2"),
]
DRAFTS = [*("--train.steps", "3", "--max-new-tokens", "12", "--seq-len", "64")]
TRAINED = {
    "cot": ["--data", "balls.json", "--num-test", "2", "--lora-rank", "4"],
    "coconut": ["--data", "balls.json", "--stages", "1", "--lora-rank", "4"],
    "interleaved": ["--data", "balls.jsonl", "--stages", "1", "--lora-rank", "0"],
    "tidar-adapter": ["--data", "stories.txt", *DRAFTS],
    "tidar": ["--data", "stories.txt", *DRAFTS],
    "huginn-finetune": [
        *("--data", "balls.jsonl", "--train.steps", "3", "--lora-rank", "4"),
        *("--depth.mean", "4", "--depth.backprop", "2", "--depths", "2", "4"),
    ],
}


def balls(num: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"{a} and {a + 1} and 2?",
            "steps": [f"{a}+{a + 1}={2 * a + 1}", f"{2 * a + 1}+2={2 * a + 3}"],
            "answer": str(2 * a + 3),
        }
        for a in range(1, num + 1)
    ]


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A folder with a model, data, and a run of each recipe, as one trains them there."""
    import os

    models = os.environ.get("INWARD_MODELS", Path(__file__).parents[3] / "shared" / "models")
    if not (Path(models) / "stories260k").is_dir():
        pytest.skip("no model stories260k; set INWARD_MODELS to the folder around it")
    root = tmp_path_factory.mktemp("house") / "here"
    shutil.copytree(Path(models) / "stories260k", root / "mine")
    small_huginn(root / "huginn", template=HUGINN)
    (root / "balls.json").write_text(json.dumps([*balls(9), {**balls(1)[0], "steps": []}]))
    (root / "balls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in balls(9)))
    (root / "stories.txt").write_text("\n\n".join(STORIES) + "\n")
    with contextlib.chdir(root):
        for name, options in TRAINED.items():
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                base = "huginn" if name == "huginn-finetune" else "mine"
                words = ["train", name, "--base", base, "--out", f"runs/{name}"]
                assert main([*words, *SMALL, *options]) == 0
            (root / f"{name}.said").write_text(said.getvalue())
    return root


@pytest.fixture
def at_home(house, monkeypatch) -> Path:
    monkeypatch.chdir(house)
    monkeypatch.setenv("INWARD_MODELS", str(house / "nowhere"))
    return house


def printed(house: Path, name: str) -> list[list[str]]:
    """The commands at the end of what training said."""
    lines = (house / f"{name}.said").read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("model: "))
    assert all(line.startswith("  inward ") for line in lines[place + 1 :])
    return [shlex.split(line)[1:] for line in lines[place + 1 :]]


def test_what_was_read_is_told_before_training(at_home):
    said = (at_home / "coconut.said").read_text()
    assert "balls.json: 9 records (json); skipped 1: no steps" in said
    assert "splits: train 7, valid 2" in said
    assert "training: 7 records, " in said and " tokens, 14 steps" in said
    assert "stages: 0 from step 1, 1 from step 3, 2 from step 5; 6 steps of 4 records" in said
    said = (at_home / "tidar.said").read_text()
    assert "stories.txt: 5 texts (text)" in said
    assert "train 3, valid 2, as they stand" in said


@pytest.mark.parametrize("name", TRAINED)
def test_the_commands_that_training_prints_run(name, at_home, monkeypatch, capsys):
    commands = printed(at_home, name)
    assert [words[0] for words in commands] == ["ask", "chat", "eval", "bench"]
    monkeypatch.setattr("sys.stdin", io.StringIO("How many?\n"))
    more = {
        "ask": ["--max-new-tokens", "4"],
        "chat": ["--max-new-tokens", "4"],
        "eval": ["--max-new-tokens", "8", "--out", f"{name}.eval"],
        "bench": ["--repeats", "1", "--num-prompts", "1", "--max-new-tokens", "6"],
    }
    more["bench"] += ["--out", f"{name}.bench"]
    for words in commands:
        assert main([*words, *more[words[0]]]) == 0, (words, capsys.readouterr().err)
    capsys.readouterr()
    (found,) = map(json.loads, (at_home / f"{name}.eval").read_text().splitlines())
    if "tidar" in name:
        assert found["perplexity"] > 1 and 1 <= found["accepted"] <= 8
        assert 1 <= found["decoded"] <= 8 and found["num"] == 2
    else:
        assert found["right"]["num"] == 2 and found["right"]["interval"][1] > 0
        assert found["dataset"] == f"{name} {'test' if name == 'cot' else 'valid'}"
        stages = {"cot": ["0"], "coconut": ["0", "1", "2"], "interleaved": ["0", "1"]}
        assert [share["name"] for share in found.get("stages", ())] == stages.get(name, [])
        assert found["forwards"] >= 1 and found["flops"] > 0
    rows = [json.loads(line) for line in (at_home / f"{name}.bench").read_text().splitlines()]
    sides = list(dict.fromkeys(row["what"] for row in rows))
    if "huginn" in name:  # at the depth it was trained with, alone
        assert sides == ["ours, recurrent"]
        return
    ours = "one_pass, K 8" if "tidar" in name else "with thoughts"
    plain = ["ours, plain"] if "tidar" in name else []
    theirs = [f"transformers, {way}" for way in ("plain", "look-up", "assisted")]
    assert sides == [f"ours, {ours}", *plain, *theirs]
    same = {row["what"]: row["median"] for row in rows if row["unit"] == "texts as plain"}
    assert same["transformers, look-up"] == 1 and same["transformers, assisted"] == 1
    if "tidar" in name:  # verified drafts say what plain decoding says
        assert same[f"ours, {ours}"] == same["ours, plain"] == 1
    assert all(row["median"] > 0 for row in rows if row["unit"] != "texts as plain")


def test_a_run_holds_its_tokenizer_and_where_its_base_is(at_home):
    for name in ("tidar", "tidar-adapter"):
        assert (at_home / "runs" / name / "model/tokenizer.json").is_file()
    below = json.loads((at_home / "runs/tidar-adapter/model/tidar.json").read_text())["below"]
    other = json.loads((at_home / "runs/coconut/model/base/base_model.json").read_text())
    assert below["path"] == "../../../mine" and other["path"] == "../../../../mine"
    assert below["name"] == other["name"] == "mine" and below["fingerprint"] == other["fingerprint"]


@pytest.mark.parametrize("name", ["coconut", "tidar-adapter"])
def test_a_folder_that_moved_works(name, at_home, tmp_path, monkeypatch, capsys):
    """All of it together; the run alone with the models folder; with --base; and told without."""
    moved = tmp_path / "there"
    moved.mkdir()
    shutil.copytree(at_home / "runs" / name, moved / "runs" / name)
    words = ["ask", f"runs/{name}", "Tom", "--max-new-tokens", "3", "--json"]
    assert main(words) == 0
    before = json.loads(capsys.readouterr().out)["tokens"]
    monkeypatch.chdir(moved)
    assert main(words) == 1
    told = capsys.readouterr().err
    assert "is not there" in told and "--base" in told and "INWARD_MODELS" in told
    shutil.copytree(at_home / "mine", moved / "mine")
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == before
    (moved / "mine").rename(moved / "elsewhere")
    assert main([*words, "--base", "elsewhere"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == before
    (moved / "models").mkdir()
    (moved / "elsewhere").rename(moved / "models/mine")
    monkeypatch.setenv("INWARD_MODELS", "models")
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == before


@pytest.mark.parametrize("name", ["coconut", "tidar-adapter"])
def test_another_base_is_refused(name, at_home, tmp_path):
    import torch

    other = load(at_home / "mine")
    with torch.no_grad():
        other.model.layers[2].mlp.up_proj.weight[0, 0] += 1
    other.save_pretrained(tmp_path / "mine")
    with pytest.raises(ValueError, match="another model than the adapter was trained on"):
        load(at_home / "runs" / name, base=tmp_path / "mine")
    with pytest.raises(ValueError, match="another model than the adapter was trained on"):
        load(at_home / "runs" / name, base=other)
    # read in fewer bits it is still the same one
    load(at_home / "runs" / name, base=at_home / "mine", dtype=torch.bfloat16)


def test_an_adapter_loads_trainable_on_request(at_home):
    frozen, free = (
        load(at_home / "runs/coconut", **options) for options in ({}, {"trainable": True})
    )
    assert not any(p.requires_grad for n, p in frozen.named_parameters() if "lora_" in n)
    assert all(p.requires_grad for n, p in free.named_parameters() if "lora_" in n)
    below = [p for n, p in free.named_parameters() if "lora_" not in n and "trainable" not in n]
    assert below and not any(p.requires_grad for p in below)


def test_a_run_goes_on_with_other_data_only_if_allowed(at_home, tmp_path, monkeypatch, capsys):
    shutil.copytree(at_home / "runs/cot", tmp_path / "runs/cot")
    shutil.copytree(at_home / "mine", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "balls.json").write_text(json.dumps(balls(12)))
    words = ["train", "cot", "--base", "mine", "--out", "runs/cot", *SMALL, *TRAINED["cot"]]
    words += ["--train.steps", "4", "--train.schedule", "constant"]
    first = ["--out", "runs/new", "--train.steps", "2"]
    assert main([*words, *first]) == 0
    capsys.readouterr()
    (tmp_path / "balls.json").write_text(json.dumps(balls(13)))
    again = [*words, "--out", "runs/new"]
    assert main(again) == 1
    told = capsys.readouterr().err
    assert "was trained on other data: balls.json has changed" in told and "--other-data" in told
    (tmp_path / "more.json").write_text(json.dumps(balls(14)))
    other = [*again, "--data", "more.json"]
    assert main(other) == 1
    assert 'data was "balls.json", is "more.json"' in capsys.readouterr().err
    assert main([*other, "--other-data"]) == 0
    told = capsys.readouterr()
    assert "goes on with other data after step 2" in told.out + told.err
    assert json.loads((tmp_path / "runs/new/summary.json").read_text())["steps"] == 4
    # from now on these are its data
    assert main([*other, "--train.steps", "5"]) == 0
    # what makes its own data has none to change
    assert main(["train", "sudoku4", "--other-data", "--out", "runs/s", "--data.num-train", "8",
                 "--data.num-valid", "2", "--data.num-test", "2"]) == 1  # fmt: skip
    assert "makes its own data" in capsys.readouterr().err


def test_a_run_starts_from_another(at_home, tmp_path, capsys):
    words = ["train", "coconut", "--start", "runs/cot", "--data", "balls.json", *SMALL]
    words += ["--stages", "1", "--spoken-epochs", "0", "--lora-rank", "4"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert "stages: 1 from step 1, 2 from step 3" in told


def test_eval_takes_files(at_home, capsys):
    (at_home / "ask.txt").write_text("1 and 2?||1+2=3 #### 3\n4 and 5?|| #### 9\n")
    words = ["eval", "runs/coconut", "--data", "ask.txt", "--max-new-tokens", "6", "--no-by-stage"]
    assert main([*words, "--out", "o.jsonl"]) == 0
    (row,) = map(json.loads, (at_home / "o.jsonl").read_text().splitlines())
    assert row["right"]["num"] == 2 and row["stages"] == [] and row["dataset"] == "ask.txt"
    # a model that drafts: both, if the file holds answers; a plain one too
    for model in ("runs/tidar", "mine"):
        out = f"{Path(model).name}.both"
        words = ["eval", model, "--data", "ask.txt", "--max-new-tokens", "4", "--out", out]
        assert main(words) == 0
        rows = [json.loads(line) for line in (at_home / out).read_text().splitlines()]
        assert [("right" in row, "perplexity" in row) for row in rows] == [
            (True, False),
            (False, True),
        ]
    assert main(["eval", "mine"]) == 1
    assert "give it some: --data" in capsys.readouterr().err
    assert main(["eval", "runs/coconut", "--data", "stories.txt"]) == 1
    assert "lines of text" in capsys.readouterr().err


def test_the_path_refuses_before_any_work(at_home, capsys):
    (at_home / "long.txt").write_text("Hi\n\n" + "w" * 3000 + "\n")
    for words, told in [
        (["train", "coconut", "--data", "balls.json"], "--base FOLDER"),
        (["train", "coconut", "--base", "mine"], "--data FILE"),
        (["train", "coconut", "--base", "absent", "--data", "balls.json"], "no model 'absent'"),
        (["train", "tidar", "--base", "mine"], "--data FILE"),
        (["train", "cot", "--base", "mine", "--data", "balls.json", "--thoughts", "3"],
         "the pattern cot does not use it"),
        (["train", "coconut", "--base", "mine", "--data", "balls.json", "--train.steps", "2",
          "--train.batch-rows", "4"], "begins after step"),
        (["train", "coconut", "--base", "mine", "--data", "balls.json", "--pattern", "random"],
         "set boundaries to supervised"),
        (["train", "cot", "--base", "mine", "--data", "balls.json", "--max-new-tokens", "1"],
         "it could never be right"),
        (["train", "cot", "--base", "mine", "--data", "balls.json", "--score-by", "prosqa"],
         "no ProsQA puzzle"),
        (["train", "cot", "--base", "mine", "--data", "balls.json", "--without-steps", "refuse"],
         "entry 10: the record"),
        (["train", "cot", "--base", "runs/coconut", "--data", "balls.json"],
         "runs/coconut is a run, not a base; to train it on, name it by --start"),
        (["train", "cot", "--base", "runs/coconut/model", "--data", "balls.json"],
         "is a model that thinks, not a base"),
        (["train", "tidar", "--base", "mine", "--data", "balls.json", "--question", "prompt"],
         "lacks prompt"),
        (["train", "tidar", "--base", "mine", "--data", "stories.txt", "--question", "prompt"],
         "has no fields of records to name"),
        (["bench", "runs/tidar", "--prompts", "long.txt"], "prompt 2: the prompt has"),
        (["eval", "mine", "--data", "balls.json", "--answer", "target"], "lacks target"),
        (["train", "cot", "--base", "mine", "--data", "balls.json", "--lora-rank", "-1"],
         "lora_rank is -1, but must be 0 or more"),
        (["train", "coconut", "--base", "mine", "--data", "balls.json", "--thoughts", "0"],
         "thoughts is 0, but must be 1 or more"),
        (["train", "cot", "--base", "mine", "--data", "balls.json", "--valid", "balls.json"],
         "of all 9 the question is held out"),
        (["train", "tidar-adapter", "--base", "mine", "--data", "stories.txt", "--opening", "0"],
         "opening is 0, but must be 1 or more"),
        (["bench", "mine"], "--prompts FILE"),
        (["bench", "sudoku6", "--prompts", "stories.txt"], "of models that write"),
    ]:  # fmt: skip
        assert main([*words, "--out", "runs/refused"]) == 1, words
        assert told in capsys.readouterr().err, words
    assert not (at_home / "runs/refused/states").exists()


def test_the_texts_of_a_model_are_its_own(at_home, tmp_path, monkeypatch, capsys):
    """A second base does not learn from what the first one wrote."""
    import torch

    monkeypatch.chdir(tmp_path)
    shutil.copy(at_home / "stories.txt", tmp_path / "stories.txt")
    shutil.copytree(at_home / "mine", tmp_path / "a")
    other = load(at_home / "mine")
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    shutil.copytree(at_home / "mine", tmp_path / "b")
    other.save_pretrained(tmp_path / "b")
    words = ["train", "tidar-adapter", *SMALL, *TRAINED["tidar-adapter"]]
    for name in ("a", "b"):
        assert main([*words, "--base", name, "--out", f"runs/{name}"]) == 0
    files = sorted((tmp_path / "runs/own-text").iterdir())
    assert [path.name[:2] for path in files] == ["a-", "b-"]
    marks = [json.loads(path.read_text().splitlines()[0])["base"] for path in files]
    assert marks[0] != marks[1]
    capsys.readouterr()
    named = [*words, "--own-text", str(files[0]), "--base", "b", "--out", "runs/c"]
    assert main(named) == 1
    assert "text that another model wrote" in capsys.readouterr().err


def test_one_process_cannot_be_sharded_and_hears_it_before_data_is_made(tmp_path, capsys):
    words = ["train", "sudoku9", "--out", str(tmp_path / "run"), "--parallel", "fsdp"]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert "parallel is 'fsdp', but this is one process" in told and "puzzle/s" not in told
    assert not (tmp_path / "run").exists()
