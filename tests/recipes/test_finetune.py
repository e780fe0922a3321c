"""`inward train huginn-finetune`: the template's role, what is learned, what is saved, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inward import hub
from inward.common import IGNORE
from inward.common.draws import Draws
from inward.data.texts.anyfile import Passage
from inward.data.texts.dialogue import Dialogue, DialogueSource
from inward.methods.huginn.settings import Depth
from inward.methods.huginn.tune import low_rank, merged
from inward.recipes import find
from inward.train.loop import train

from .small_huginn import HUGINN, small_huginn

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
DEPTH = Depth(mean=4, backprop=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return small_huginn(tmp_path_factory.mktemp("base") / "mine", template=HUGINN)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return small_huginn(tmp_path_factory.mktemp("plain") / "mine")


@pytest.fixture
def rows(tmp_path) -> Path:
    found = [{"question": f"{a} and {a + 1}?", "answer": str(2 * a + 1)} for a in range(12)]
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def recipe_for(base: Path, data: Path, **changes: Any) -> Any:
    recipe = find("huginn-finetune")()
    quick = replace(recipe.train, steps=3, batch_rows=4, device="cpu", progress="off", warmup=1)
    usual = {"depth": DEPTH, "depths": (2, 4), "num_valid": 2}
    return replace(recipe, base=str(base), data=str(data), train=quick, **usual | changes)


# -- the template's role


def test_the_role_is_the_one_that_the_template_answers_as(base):
    tokenizer = recipe_for(base, base).dialogue.tokenizer
    assert Dialogue.of(tokenizer).role == "Huginn"
    assert Dialogue.of(tokenizer, "Huginn").role == "Huginn"
    with pytest.raises(ValueError, match=r"role is 'assistant'.*its own is 'Huginn'"):
        Dialogue.of(tokenizer, "assistant")


def test_a_template_that_answers_as_assistant_keeps_it(base):
    tokenizer = recipe_for(base, base).dialogue.tokenizer
    kept = tokenizer.chat_template
    tokenizer.chat_template = HUGINN.replace("Huginn", "assistant")
    assert Dialogue.of(tokenizer).role == "assistant"
    tokenizer.chat_template = HUGINN.replace("<Huginn>", "nobody: ")
    with pytest.raises(ValueError, match="whatever the role is called"):
        Dialogue.of(tokenizer)
    tokenizer.chat_template = kept


def test_without_a_template_a_role_is_refused_and_so_are_chats(plain):
    tokenizer = recipe_for(plain, plain).dialogue.tokenizer
    with pytest.raises(ValueError, match="role is 'Huginn', but the base has no chat template"):
        Dialogue.of(tokenizer, "Huginn")
    with pytest.raises(ValueError, match="no chat template to write them with"):
        Dialogue.of(tokenizer).pair(Passage((("user", "a"),), "b"))


def test_a_pair_is_what_chat_asks_and_the_reply_with_its_end(base):
    dialogue = recipe_for(base, base).dialogue
    tokenizer = dialogue.tokenizer
    chat = (("user", "a dog"), ("assistant", "yes"), ("user", "a cat"))
    asked, said = dialogue.pair(Passage(chat, " no "))
    assert said[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in said[:-1]
    assert tokenizer.decode(said[:-1]).strip() == "no"
    text = tokenizer.decode(asked)
    assert "<Huginn>yes" in text and text.endswith("<Huginn>") and "assistant" not in text
    messages = dialogue.messages(Passage(chat, ""))
    from inward.tasks.processors import TextProcessor

    assert list(TextProcessor(tokenizer).read(messages).tokens) == asked


@pytest.mark.parametrize("name", ["assistant", "Huginn"])
def test_chats_may_call_who_answers_either_way(name, base, tmp_path):
    path = tmp_path / "chats.jsonl"
    chats = [[{"role": "user", "content": f"q {i}"}, {"role": name, "content": f"a {i}"}]
             for i in range(4)]  # fmt: skip
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    train_part, held = recipe_for(base, path).parts()
    assert len(train_part) == 2 and len(held) == 2


# -- rows


def test_answers_alone_are_learned_and_batches_do_not_depend_on_how_they_are_cut():
    pairs = [([1, 2, 3], [4, 5]), ([], [6, 7, 8]), ([9], [10])]
    source = DialogueSource(pairs, seed=0)
    batch = source.batch(0, range(3), 3)
    assert batch["weight"].sum() == source.learned == 2 + 2 + 1
    for ids, labels, mask in zip(
        batch["input_ids"].tolist(), batch["labels"], batch["attention_mask"], strict=True
    ):
        asked, said = next(p for p in pairs if [*p[0], *p[1]] == ids[: int(mask.sum())])
        assert labels[mask].tolist() == [IGNORE] * len(asked) + said
        assert (labels[~mask] == IGNORE).all()
    parts = [source.batch(0, range(i, i + 1), 3) for i in range(3)]
    for name, value in batch.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), value), name
    assert DialogueSource(pairs, seed=0, whole=True).learned == 4 + 2 + 1


def test_padding_changes_no_loss(base):
    """Rows of unequal length: together as apart."""
    from inward.methods.huginn.train import loss

    model = hub.load(base)
    pairs = [([1, 2, 3], [4, 5]), ([3, 9, 9, 9, 5], [6, 7, 8, 9])]
    source = DialogueSource(pairs, seed=0)
    fixed = Depth(mean=3, backprop=1, sampling="fixed")

    def total(rows: range, cut: bool) -> float:
        batch = source.batch(0, rows, 2)
        if cut:
            longest = int(batch["attention_mask"].sum(1).max())
            batch = {k: v[:, :longest] if v.ndim == 2 else v for k, v in batch.items()}
        return float(loss(model, batch, Draws(0, 0, rows, 2), depth=fixed).total)

    apart = total(range(0, 1), True) + total(range(1, 2), True)
    assert total(range(2), False) == pytest.approx(apart, rel=1e-5)


# -- low-rank weights


def test_merged_weights_say_what_the_adapted_model_says(base):
    model: Any = hub.load(base).eval()
    names = set(model.state_dict())
    low_rank(model, 4)
    for name, p in model.named_parameters():
        assert p.requires_grad == ("lora_" in name)
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        adapted = model(ids, num_steps=3).logits
        state = merged(model)
        assert set(state) == names
        whole: Any = hub.load(base).eval()
        before = whole(ids, num_steps=3).logits
        whole.load_state_dict(state)
        after = whole(ids, num_steps=3).logits
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(after, adapted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [4, 0])
def test_a_run_is_saved_as_a_whole_model_that_has_learned(rank, base, rows, tmp_path):
    recipe = recipe_for(base, rows, lora_rank=rank)
    recipe = replace(
        recipe,
        train=replace(recipe.train, steps=40, optim=replace(recipe.train.optim, lr=1e-2)),
    )
    run = recipe.build()
    assert run.evaluate is not None
    first = run.evaluate(run.model)
    train(run, recipe.train, tmp_path / "run")
    assert any("the answering role is 'Huginn'" in note for note in run.notes)
    last = run.evaluate(run.model)
    assert set(last) == {f"{n}_r{r}" for n in ("token_loss", "token_accuracy") for r in (2, 4)}
    assert last["token_loss_r4"] < first["token_loss_r4"] - 1
    again: Any = hub.load(tmp_path / "run")
    start: Any = hub.load(base)
    assert set(again.state_dict()) == set(start.state_dict())
    held = recipe.sources(256)[1]
    batch = held.batch(0, range(2), 2)
    from inward.methods.huginn.train import loss

    fixed = Depth(mean=4, backprop=1, sampling="fixed")
    with torch.no_grad():
        total, count = loss(again, batch, Draws(0, 0, range(2), 2), depth=fixed).metrics[
            "token_loss"
        ]
    assert float(total / count) == pytest.approx(last["token_loss_r4"], rel=1e-4)
    tables = [m.transformer.wte.weight for m in (again, start)]
    assert torch.equal(*tables) == bool(rank), "low-rank weights leave the embedding alone"


# -- refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": ""}, "--base FOLDER"),
        ({"data": ""}, "--data FILE"),
        ({"lora_rank": -1}, "lora_rank is -1"),
        ({"depths": (4, 2)}, "depths"),
        ({"depths": ()}, "depths"),
        ({"role": "assistant"}, "its own is 'Huginn'"),
        ({"dtype": "bfloat16", "lora_rank": 0}, "steps of all weights are lost"),
        ({"max_len": 3}, "longer than 3 tokens"),
        ({"valid": "v.jsonl"}, "leave one out"),
        ({"num_valid": 12}, "num_valid is 12"),
    ],
)
def test_what_is_refused_before_the_model_is_read(changes, said, base, rows, monkeypatch):
    import inward.common.bases as bases

    monkeypatch.setattr(bases, "load_causal_lm", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ValueError, match=said):
        replace(recipe_for(base, rows), **changes).build()


def test_another_kind_of_model_is_refused(rows, shared_models):
    with pytest.raises(ValueError, match="trains a Huginn"):
        recipe_for(shared_models / "stories260k", rows).build()


def test_held_out_questions_are_asked_through_the_template(base, plain, rows):
    from inward.evals.questions import questions_of

    (first, second) = questions_of(recipe_for(base, rows), "valid")
    assert first.record is not None and second.record is not None
    assert first.question == [{"role": "user", "content": first.record.question}]
    bare = questions_of(recipe_for(plain, rows), "valid")
    assert [q.question for q in bare] == [first.record.question, second.record.question]


@pytest.mark.parametrize("rank", [4, 0])
def test_it_can_be_planned(rank, base, rows):
    from inward.recipes.planned import needs_of

    recipe = recipe_for(base, rows, lora_rank=rank)
    needs, tuned = needs_of(recipe), recipe.build().model
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    frozen = sum(4 * p.numel() for p in tuned.parameters() if not p.requires_grad)
    assert (needs.dense, needs.frozen_bytes) == (trained, frozen)
    assert needs.rows_in == "255 tokens"
