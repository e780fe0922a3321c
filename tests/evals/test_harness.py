"""Every text system under lm-eval: its scores, what a log-likelihood is, cost; no network."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="pip install 'inward[harness]'")

from transformers import LlamaConfig, LlamaForCausalLM

from inward import hub
from inward.cli.main import main
from inward.data.thoughts.tokenizers import byte_tokenizer
from inward.evals.harness import MEANS, Judge, evaluate
from inward.methods.coconut.base import add_specials
from inward.methods.coconut.model import Coconut
from inward.methods.coconut.reference import asked_as
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.tidar.adapter import DraftAdapter
from inward.methods.tidar.model import TiDAR
from inward.thinker import Thinker, open_thinker

pytestmark = pytest.mark.filterwarnings("ignore")

QUESTIONS = [("2+2=", " 4", " 5"), ("one two", " three four", " x"), ("a b a b a", " b", " a b c")]


def tiny(**ends: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.5,
        eos_token_id=256,
        bos_token_id=256,
        pad_token_id=256,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks over JSON: choices, text, a rolling likelihood."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"q": q, "choices": [a, b], "gold": i % 2, "text": q + a}
        for i, (q, a, b) in enumerate(QUESTIONS)
    ]
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    shared = (
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.json'}}}}}\n"
        "test_split: test\n"
    )
    (folder / "choices.yaml").write_text(
        "task: tiny_choices\noutput_type: multiple_choice\n" + shared + "doc_to_text: '{{q}}'\n"
        "doc_to_choice: choices\ndoc_to_target: gold\ntarget_delimiter: ''\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    (folder / "text.yaml").write_text(
        "task: tiny_text\noutput_type: generate_until\n" + shared + "doc_to_text: '{{q}}'\n"
        "doc_to_target: '{{choices[gold]}}'\n"
        "generation_kwargs: {until: ['e'], max_gen_toks: 12, do_sample: false}\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    (folder / "rolling.yaml").write_text(
        "task: tiny_rolling\noutput_type: loglikelihood_rolling\n" + shared + "doc_to_text: ''\n"
        "doc_to_target: '{{text}}'\nmetric_list: [{metric: bits_per_byte}]\n"
    )
    return folder


def thinker(kind: str) -> Thinker:
    """A tiny random model of a method."""
    tokenizer = byte_tokenizer()
    model: Any = tiny()
    if kind == "huginn":
        torch.manual_seed(0)
        model = HuginnForCausalLM(
            HuginnConfig(
                n_embd=16,
                num_attention_heads=2,
                intermediate_size=24,
                n_layers_in_prelude=1,
                n_layers_in_recurrent_block=1,
                n_layers_in_coda=1,
                vocab_size=260,
                block_size=128,
                mean_recurrence=3,
                mean_backprop_depth=3,
                eos_token_id=256,
                bos_token_id=256,
            )
        ).eval()
    elif kind == "tidar":
        adapter = DraftAdapter(model, own_mask=True)
        for B in adapter.lora_B.parameters():
            torch.nn.init.normal_(B, generator=torch.Generator().manual_seed(3))
        model = TiDAR(model, 260, 4, adapter=adapter).eval()
    elif kind == "coconut":
        specials = add_specials(tokenizer, model)
        model = Coconut(model, specials, tokenizer=tokenizer).eval()
    return Thinker.of(model, name=kind, tokenizer=tokenizer)


def asked(folder: Path) -> Thinker:
    """A Coconut model that was trained to think twice after a question."""
    model = thinker("coconut").model
    model.save_pretrained(folder)
    processor = {"kind": "tokenizer", "after": "\n"}
    hub.write_about(folder, processor=processor, ask=asked_as(model, 2))
    return open_thinker(folder)


def numbers(result: Any) -> dict[tuple[str, str], float]:
    return {(row["task"], row["metric"]): row["value"] for row in result.scores}


NAMES = ["tiny_choices", "tiny_text", "tiny_rolling"]


def test_a_plain_model_has_the_scores_that_lm_eval_gives_it(tasks):
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    plain = thinker("plain")
    found = evaluate(plain, NAMES, include=tasks)
    theirs: Any = simple_evaluate(
        model=HFLM(pretrained=plain.model, tokenizer=plain.processor.tokenizer, batch_size=2),  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        tasks=NAMES,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    for (task, metric), value in numbers(found).items():
        assert value == pytest.approx(theirs["results"][task][f"{metric},none"], abs=1e-5)
    assert set(numbers(found)) >= {("tiny_choices", "acc"), ("tiny_text", "exact_match")}
    assert found.cost.flops > 0 and found.num_requests == 12 and found.seconds > 0
    assert found.means == MEANS["plain"] and found.truncated == 0


@pytest.mark.parametrize("kind", ("plain", "tidar", "huginn", "coconut"))
def test_a_batch_says_what_single_rows_say(kind, tmp_path):
    model = asked(tmp_path) if kind == "coconut" else thinker(kind)
    pairs = [(q, c) for q, *both in QUESTIONS for c in both]
    found = []
    for batch_size in (1, 4):
        judge = Judge(model, {}, batch_size=batch_size, seed=0)
        if kind == "coconut":
            found.append(judge.likelihoods(pairs))
        else:
            found.append(judge.judge([([*q.encode()], [*c.encode()]) for q, c in pairs]))
    for (one, right), (many, also) in zip(*found, strict=True):
        assert one == pytest.approx(many, abs=1e-4) and right == also


def test_drafts_change_no_number_and_cost_fewer_forwards(tasks):
    """A TiDAR model under its tasks is its base; so is look-up under plain decoding."""
    plain, tidar = thinker("plain"), thinker("tidar")
    base = evaluate(plain, NAMES, include=tasks)
    assert numbers(evaluate(tidar, NAMES, include=tasks)) == pytest.approx(numbers(base))
    known = {q: [*q.encode(), *plain.ask(q, max_new_tokens=12).tokens] for q, *_ in QUESTIONS}

    def oracle(tokens: Sequence[int], num: int) -> Sequence[int]:
        text = next(t for q, t in known.items() if [*q.encode()] == list(tokens[: len(q)]))
        return text[len(tokens) :][:num]

    drafted = evaluate(plain, ["tiny_text"], include=tasks, drafter=oracle, K=6)
    alone = evaluate(plain, ["tiny_text"], include=tasks)
    assert numbers(drafted) == numbers(alone)
    assert drafted.cost.forwards < 0.5 * alone.cost.forwards


def test_a_depth_is_asked_for(tasks):
    """Huginn's likelihood at a depth is that of a forward of so many recurrences."""
    huginn = thinker("huginn")
    question, said = [*b"2+2="], [*b" 4"]
    for depth in (1, 5):
        judge = Judge(huginn, {"max_steps": depth}, batch_size=2, seed=0)
        ids = torch.tensor([question + said])
        logits = huginn.model(ids, num_steps=depth).logits[0, 3:-1].float().log_softmax(-1)
        wanted = float(logits[torch.arange(2), ids[0, 4:]].sum())
        assert judge.judge([(question, said)])[0][0] == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(ValueError, match="halt is 'kl'"):
        evaluate(huginn, ["tiny_choices"], include=tasks, halt="kl")


def test_a_model_with_thoughts_judges_behind_them(tasks, tmp_path):
    model = asked(tmp_path)
    found = evaluate(model, ["tiny_choices", "tiny_text"], include=tasks)
    assert found.means == MEANS["coconut"]
    judge = Judge(model, {}, batch_size=2, seed=0)
    ((chance, _),) = judge.likelihoods([("one two", " x")])
    prompt = model.request("one two").prompt
    assert prompt.num_thoughts == 2
    coconut = model.model
    batch = coconut.collate([prompt], may_end_open=True)
    out = coconut(batch, logits="all")
    first = out.logits[0, -1].log_softmax(-1)[ord(" ")]
    assert chance < float(first.detach())
    with pytest.raises(ValueError, match="thinks after a question"):
        evaluate(model, ["tiny_rolling"], include=tasks)
    with pytest.raises(ValueError, match="decides between words"):
        evaluate(thinker("coconut"), ["tiny_choices"], include=tasks)


def test_what_cannot_be_asked_is_told_first(tasks, tmp_path):
    plain = thinker("plain")
    with pytest.raises(ValueError, match=r"no task tiny_choice; did you mean tiny_choices"):
        evaluate(plain, ["tiny_choice"], include=tasks)
    with pytest.raises(ValueError, match="limit is 0"):
        evaluate(plain, NAMES, include=tasks, limit=0)
    with pytest.raises(ValueError, match="no option votes"):
        evaluate(plain, NAMES, include=tasks, votes=3)
    with pytest.raises(ValueError, match="reads no free text"):
        evaluate(open_thinker("sudoku6"), NAMES, include=tasks)


def test_the_command_shows_scores_and_cost(tasks, tmp_path, capsys):
    model, tokenizer = tiny(), byte_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = ["eval", str(tmp_path / "model"), "--harness", "tiny_choices,tiny_text"]
    out = tmp_path / "rows.jsonl"
    assert main([*words, "--include", str(tasks), "--limit", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "tiny_choices" in shown and "exact_match" in shown and "evaluations each" in shown
    row = json.loads(out.read_text())
    assert row["num_requests"] == 6 and row["means"] == MEANS["plain"] and row["cost"]["flops"] > 0
