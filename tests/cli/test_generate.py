"""`inward generate` and what is behind it: every language model by one call, and its story told."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from inward import hub
from inward.cli.main import main
from inward.common.sampling import Sampling
from inward.common.trace import Trace, read_traces
from inward.data.thoughts.tokenizers import byte_tokenizer
from inward.methods.tidar.model import TiDAR
from inward.recipes import find
from inward.recipes.coconut import ProsQAData, SmallBase
from inward.tasks.hops import HopsTask
from inward.thinker import codec_of, write
from inward.viz.text import piece, told
from tests.methods.tidar.toys import llama

HOPS = "a>c b>a c>f d>b e>d f>e g>j h>g i>h j>i | a . . ."


@pytest.fixture(scope="module")
def coconut(tmp_path_factory):
    """An untrained interleaved model with its recipe, as a folder."""
    recipe = find("prosqa-interleaved")()
    data = replace(recipe.data, num_train=4, num_valid=2, num_test=2)
    assert isinstance(data, ProsQAData)
    recipe = replace(recipe, data=data, base=SmallBase(width=16, num_layers=1, num_heads=2))
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("coconut")
    recipe.model().save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))
    record = recipe.task().ask(data.split("valid"))[0]
    return folder, record.question


@pytest.fixture(scope="module")
def tidar(tmp_path_factory):
    """A random TiDAR over bytes, its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("tidar")
    tokenizer = byte_tokenizer()
    model = TiDAR(llama(vocab_size=len(tokenizer) + 1), len(tokenizer), 4).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_huginn_answers_in_the_letters_of_its_task(capsys, tmp_path):
    words = [HOPS, "--max-steps", "16", "--exit", "kl", "--max-new-tokens", "1", "--show"]
    assert main(["generate", "huginn-hops", *words, "--trace", str(tmp_path / "t.jsonl")]) == 0
    shown = capsys.readouterr().out
    task = HopsTask()
    answer = task.word(task.solve(task.parse(HOPS)))
    assert f"{HOPS}{answer}\n" in shown and "recurrences a token" in shown
    (trace,) = read_traces(tmp_path / "t.jsonl")
    depth, letter = trace.steps[0].scores["steps"], shown.split()[0]
    assert (letter, shown.split()[1]) == (answer, f"{depth:.0f}")


def test_coconut_is_asked_as_it_was_trained(coconut, capsys):
    folder, question = coconut
    model = hub.load(folder)
    recipe = find("prosqa-interleaved")()
    codec = codec_of(folder, model)
    (one,) = write(model, codec, [question], recipe=recipe, max_new_tokens=20)
    kinds = [step.kind for step in one.trace.steps]
    assert kinds[: recipe.curriculum.pattern.thoughts] == ["thought"] * 2
    assert main(["generate", str(folder), question, "--max-new-tokens", "8", "--show"]) == 0
    shown = capsys.readouterr().out
    assert "thought 1 " in shown and "thoughts, " in shown
    (two,) = write(model, codec, [question], thoughts=(5,), max_new_tokens=4)
    assert [step.kind for step in two.trace.steps].count("thought") == 5


def test_tidar_says_what_plain_decoding_says(tidar, capsys):
    model = hub.load(tidar)
    codec = codec_of(tidar, model)
    prompts = ["Once upon", "abc"]
    plain = write(model, codec, prompts, scheme="plain", max_new_tokens=12)
    drafted = write(model, codec, prompts, scheme="one_pass", K=3, max_new_tokens=12)
    assert [one.tokens for one in drafted] == [one.tokens for one in plain]
    lines = told(drafted[0].trace, codec.decode).plain.split("\n")
    assert len(lines) == len(drafted[0].trace.steps)
    assert main(["generate", str(tidar), *prompts, "--K", "3", "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out.count("tokens a forward") == 2


def test_sampling_belongs_to_a_seed(tidar):
    model = hub.load(tidar)
    codec = codec_of(tidar, model)

    def texts(seed):
        made = write(model, codec, ["ab"], sampling=Sampling("gumbel", seed=seed), K=2)
        return made[0].tokens

    assert texts(1) == texts(1) != texts(2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["huginn-hops", HOPS, "--K", "3"], "HuginnForCausalLM, which has no K (of TiDAR)"),
        (["huginn-hops"], "no prompt given"),
        (["huginn-hops", "nonsense"], "write arrows"),
        (["huginn-hops", HOPS, "--top-k", "3"], "add --sample"),
        (["maze11", "a"], "inward solve"),
        (["nowhere", "a"], "no shipped model"),
    ],
)
def test_what_is_refused(words, told, capsys):
    assert main(["generate", *words]) == 1
    assert told in capsys.readouterr().err


def test_without_letters_there_is_no_text(tidar, tmp_path):
    bare = tmp_path / "bare"
    hub.load(tidar).save_pretrained(bare)
    with pytest.raises(FileNotFoundError, match="--tokenizer"):
        codec_of(bare, hub.load(bare))
    model = hub.load(bare)
    codec = codec_of(bare, model, tidar)
    assert codec.decode(codec.encode("any text")) == "any text"


def test_a_puzzle_is_not_told_as_text():
    with pytest.raises(ValueError, match="'trm' is not told here"):
        told(Trace("trm", np.array([1])), str)
    assert [piece(" a"), piece("\n"), piece(" ")] == ["a", "\\n", "_"]
