"""A Coconut model in transformers' Trainer and in TRL's, beside steps taken by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from inward.common import IGNORE
from inward.data.thoughts.curriculum import BlockLayout, Curriculum
from inward.data.thoughts.patterns import Prefix
from inward.data.thoughts.tokenizers import word_tokenizer
from inward.methods.coconut.base import add_specials
from inward.methods.coconut.model import Coconut
from inward.methods.coconut.settings import CoconutSettings
from inward.methods.coconut.trainer import CoconutCollator, TrainableCoconut
from tests.methods.coconut.toys import SPECIALS, make_base, make_model

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = [
    {"question": "a b", "steps": ["c d", "e f"], "answer": "a"},
    {"question": "b", "steps": ["d"], "answer": "b c"},
    {"question": "c a b", "steps": ["e", "f", "a"], "answer": "d"},
    {"question": "d", "steps": ["a"], "answer": "e"},
]
THINKING = Curriculum(Prefix(c=2, max_stage=2), BlockLayout())


def model(kind: str = "llama", **options: Any) -> Coconut:
    """A tiny base with tied weights, its tokenizer, the tokens of thoughts."""
    options = {"tie_word_embeddings": True} | options
    base = make_base(kind, dtype=torch.float32, **options)
    tokenizer = word_tokenizer(["a b c d e f\n### <<"])
    specials = add_specials(tokenizer, base)
    torch.manual_seed(1)
    return Coconut(base, specials, tokenizer=tokenizer)


def arguments(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "optim": "adamw_torch",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "logging_steps": 1,
        "report_to": [],
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_steps": 1,
        "save_strategy": "steps",
    } | options


class InOrder(Trainer):
    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.SequentialSampler(ROWS)


def by_hand(steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Every step takes all rows: the summed loss over the number of labels."""
    coconut = model().train()
    batch = coconut.collate([CoconutCollator(coconut, THINKING).sample(row) for row in ROWS])
    optimizer = torch.optim.AdamW(coconut.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        out = coconut(batch)
        loss = out.total / out.row_count.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, dict(coconut.named_parameters())


def test_trainer_takes_the_steps_that_are_taken_by_hand(tmp_path):
    coconut = model()
    collate = CoconutCollator(coconut, THINKING)
    args = TrainingArguments(**arguments(tmp_path))
    trainer = InOrder(TrainableCoconut(coconut), args, collate, train_dataset=ROWS)
    trainer.train()
    wanted, weights = by_hand(3)
    found = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert found == pytest.approx(wanted, abs=2e-4)
    for name, weight in coconut.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_with_tied_weights_is_saved_and_gone_on_from(tmp_path):
    whole = model()
    args = TrainingArguments(**arguments(tmp_path / "a"))
    collate = CoconutCollator(whole, THINKING)
    InOrder(TrainableCoconut(whole), args, collate, train_dataset=ROWS).train()
    again = model()
    table = again.base.get_input_embeddings().weight
    assert again.base.get_output_embeddings().weight is table
    trainer = InOrder(
        TrainableCoconut(again), args, CoconutCollator(again, THINKING), train_dataset=ROWS
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert again.base.get_output_embeddings().weight is again.embedding.weight
    for (name, one), two in zip(whole.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, two, msg=name)
    again.eval().save_pretrained(tmp_path / "ours")
    loaded = Coconut.from_pretrained(tmp_path / "ours")
    for (name, one), two in zip(whole.named_parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def test_trl_takes_the_same_steps(tmp_path):
    pytest.importorskip("trl", reason="pip install trl")
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    class SFTInOrder(SFTTrainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(ROWS)

    coconut = model()
    options = arguments(tmp_path, gradient_checkpointing=False, save_strategy="no", bf16=False)
    args = SFTConfig(**options, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None)
    trainer = SFTInOrder(
        TrainableCoconut(coconut),  # pyright: ignore[reportArgumentType]
        args,
        CoconutCollator(coconut, THINKING),  # pyright: ignore[reportArgumentType]
        train_dataset=Dataset.from_list(ROWS),
        processing_class=coconut.tokenizer,
    )
    trainer.train()
    wanted, weights = by_hand(3)
    found = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert found == pytest.approx(wanted, abs=2e-4)
    for name, weight in coconut.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-4)


def test_rows_of_ids_are_rows_of_segments():
    coconut = make_model("llama", dtype=torch.float32)
    bot, eot, latent = SPECIALS.bot, SPECIALS.eot, SPECIALS.latent
    ids = [3, 4, bot, latent, latent, eot, 7, 8]
    labels = [IGNORE] * 6 + [7, 8]
    batch = CoconutCollator(coconut)(
        [{"input_ids": ids, "labels": labels}, {"input_ids": [3, 7, 8], "labels": [IGNORE, 7, 8]}]
    )
    assert int(batch["latent"].sum()) == 2
    assert (batch["shift_labels"] != IGNORE).sum(1).tolist() == [2, 2]
    assert torch.equal(batch["labels"][:, 1:], batch["shift_labels"][:, :-1])
    plain = TrainableCoconut(coconut)
    by_labels = {k: v for k, v in batch.items() if k != "shift_labels"}
    torch.testing.assert_close(plain(**batch).loss, plain(**by_labels).loss)
    for row, told in (
        ({"input_ids": ids}, "8 input_ids and 0 labels"),
        ({"input_ids": ids, "labels": [IGNORE] * 7 + [9]}, "label of token 7 is 9"),
        ({"text": "a"}, "needs question, steps and answer"),
        (ROWS[0], "need a curriculum"),
    ):
        with pytest.raises(ValueError, match=told):
            CoconutCollator(coconut)([row])


def test_losses_that_need_more_are_refused():
    settings = CoconutSettings(distill=1.0)
    with pytest.raises(ValueError, match=r"distill 1\.0"):
        TrainableCoconut(Coconut(make_base("llama"), SPECIALS, settings))
