"""`inward ask` and `inward chat`: every language model by one command, and its story told."""

import io
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from inward.cli.main import main
from inward.common.trace import Trace, read_traces
from inward.data.thoughts.tokenizers import byte_tokenizer
from inward.methods.tidar.model import TiDAR
from inward.recipes import find
from inward.recipes.coconut import ProsQAData, SmallBase
from inward.tasks.hops import HopsTask
from inward.thinker import open_thinker
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
    torch.manual_seed(0)
    model = TiDAR(llama(vocab_size=len(tokenizer) + 1), len(tokenizer), 4).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A causal LM of transformers that knows nothing of us."""
    folder = tmp_path_factory.mktemp("plain")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_huginn_answers_in_the_letters_of_its_task(capsys, tmp_path):
    words = [HOPS, "--max-steps", "16", "--halt", "kl", "--show"]
    assert main(["ask", "huginn-hops", *words, "--trace", str(tmp_path / "t.jsonl")]) == 0
    shown = capsys.readouterr().out.splitlines()
    task = HopsTask()
    answer = task.word(task.solve(task.parse(HOPS)))
    assert answer in shown and "1 tokens" in shown[-1] and "recurrences" in shown[-1]
    (trace,) = read_traces(tmp_path / "t.jsonl")
    said = [step for step in trace.steps if step.says is not None]
    assert [trace.pieces[int(t)] for t in trace.answer] == [answer] and len(said) == 1
    assert trace.meta["question"] == HOPS


def test_coconut_is_asked_as_it_was_trained(coconut, capsys):
    folder, question = coconut
    thinker = open_thinker(folder)
    recipe = find("prosqa-interleaved")()
    trace = thinker.ask(question, max_new_tokens=20, trace=True).trace
    kinds = [step.kind for step in trace.steps]
    assert kinds[: recipe.curriculum.pattern.thoughts] == ["thought"] * 2
    assert main(["ask", str(folder), question, "--max-new-tokens", "8", "--show"]) == 0
    shown = capsys.readouterr().out
    assert "thought 1 " in shown and "thoughts, " in shown
    again = thinker.ask(question, thoughts=(5,), max_new_tokens=4, trace=True).trace
    assert [step.kind for step in again.steps].count("thought") >= 5


def test_tidar_says_what_plain_decoding_says(tidar, capsys):
    thinker = open_thinker(tidar)
    prompts = ["Once upon", "abc"]
    plain = thinker.ask(prompts, scheme="plain", max_new_tokens=12)
    drafted = thinker.ask(prompts, scheme="one_pass", K=3, max_new_tokens=12, trace=True)
    assert [one.tokens for one in drafted] == [one.tokens for one in plain]
    trace = drafted[0].trace
    assert len(told(trace).plain.split("\n")) == len(trace.steps) == drafted[0].steps
    assert main(["ask", str(tidar), *prompts, "--K", "3", "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out.count("forwards") == 2


def test_any_causal_model_decodes_plainly(plain, capsys):
    thinker = open_thinker(plain)
    prompt = torch.tensor([list(b"ab")])
    wanted = thinker.model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
    answer = thinker.ask("ab", max_new_tokens=6)
    assert list(answer.tokens) == wanted[0, 2:].tolist() and answer.stopped == "length"
    with pytest.raises(ValueError, match="nothing to turn"):
        thinker.ask("ab", effort=2)
    assert main(["ask", str(plain), "ab", "--max-new-tokens", "6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == list(answer.tokens)


def test_sampling_belongs_to_a_seed(tidar):
    from inward.common.sampling import Sampling

    thinker = open_thinker(tidar)

    def tokens(seed):
        made = thinker.ask(["ab", "ab"], sampling=Sampling("gumbel"), seed=seed, K=2)
        assert made[0].tokens == made[1].tokens  # one seed, one question: one answer
        return made[0].tokens

    assert tokens(1) == tokens(1) != tokens(2)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["huginn-hops", HOPS, "--K", "3"], 1, "huginn has no option K (of tidar"),
        (["huginn-hops"], 2, "no question given"),
        (["huginn-hops", "nonsense"], 1, "write arrows"),
        (["huginn-hops", HOPS, "--top-k", "3"], 2, "add --sample"),
        (["huginn-hops", HOPS, "--effort", "0.5"], 1, "the words are low, medium, high"),
        (["huginn-hops", HOPS, "--effort=--5"], 1, "the words are low, medium, high"),
        (["huginn-hops", HOPS, "--svg", "a.svg"], 1, "only puzzles are drawn"),
        (["sudoku6", "." * 36, "--tokenizer", "."], 1, "has no use for a tokenizer"),
        (["nowhere", "a"], 1, "no shipped model"),
        (["stories-draft", "a", "--effort", "high"], 1, "verified drafts change no word"),
    ],
)
def test_what_is_refused(words, code, told, capsys):
    assert main(["ask", *words]) == code
    assert told in capsys.readouterr().err


def test_without_letters_there_is_no_text(tidar, tmp_path):
    from inward import hub

    bare = tmp_path / "bare"
    model = hub.load(tidar)
    model.tokenizer = None  # else it is saved with the model
    model.save_pretrained(bare)
    with pytest.raises(FileNotFoundError, match="tokenizer="):
        open_thinker(bare)
    assert open_thinker(bare, tokenizer=tidar).ask("any", max_new_tokens=2).tokens


def test_a_puzzle_is_not_told_as_text():
    with pytest.raises(ValueError, match="'trm' is not told here"):
        told(Trace("trm", np.array([1])), str)
    assert [piece(" a"), piece("\n"), piece(" ")] == ["a", "\\n", "_"]


# --------------------------------------------------------------------------------------------------
# chat


def chatted(folder, lines, capsys, monkeypatch, *words) -> tuple[str, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert main(["chat", str(folder), *words]) == 0
    out, err = capsys.readouterr()
    return out, err


def test_chat_answers_line_by_line_and_takes_commands(plain, capsys, monkeypatch):
    lines = ["ab", "/show", "/help", "/effort 4", "/nonsense", "/reset", "ab"]
    out, err = chatted(plain, lines, capsys, monkeypatch, "--max-new-tokens", "4")
    assert out.count("4 tokens") == 2 and "/quit" in out
    assert "nothing to turn" in err and "no command /nonsense" in err


def test_chat_sees_the_whole_conversation(plain, capsys, monkeypatch, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    seen = []
    real = open_thinker(plain).method.begin

    def spying(model, **sizes):
        work = real(model, **sizes)
        add = work.add
        work.add = lambda request: (seen.append(bytes(request.prompt)), add(request))[1]
        return work

    import inward.methods.tidar.door as door

    monkeypatch.setattr(door, "PLAIN", replace(door.PLAIN, begin=spying))
    words = ("--tokenizer", str(tmp_path), "--max-new-tokens", "2")
    out, _ = chatted(plain, ["hi", "ho", "/reset", "hu"], capsys, monkeypatch, *words)
    # the second turn begins with the first and its answer, of which the last token is unread
    assert "4 of 14 tokens of the prompt known already" in out.replace("\n", " ")
    assert seen[0] == b"<hi>" and seen[1].startswith(b"<hi><") and seen[1].endswith(b"><ho>")
    assert seen[2] == b"<hu>"
