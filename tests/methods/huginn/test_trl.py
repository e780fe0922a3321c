"""TRL's SFTTrainer on Huginn: from an object and from a folder, packed, with LoRA, recomputed.

It needs trl, peft and datasets, which nothing else here does: run it in an environment of its own.
"""

from typing import Any

import pytest
import torch

trl = pytest.importorskip("trl", reason="pip install trl peft datasets, in an environment apart")
datasets = pytest.importorskip("datasets")
peft = pytest.importorskip("peft")

from inward.data.thoughts.tokenizers import byte_tokenizer  # noqa: E402
from inward.hub import load  # noqa: E402
from tests.methods.huginn.test_model import build  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def model_of() -> Any:
    return build(vocab_size=260, block_size=128, mean_recurrence=4)


@pytest.mark.parametrize("kind", ["object", "folder", "packing", "lora", "checkpointing"])
def test_it_trains(kind, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{"text": "Once upon a time. " * k} for k in (1, 2, 3, 4) * 4]
    model: Any = model_of()
    options: dict[str, Any] = {"gradient_checkpointing": kind == "checkpointing"}
    if kind == "folder":
        model.save_pretrained(tmp_path / "m")
        model = str(tmp_path / "m")
    if kind == "lora":
        names = ["Wqkv", "fc", "proj"]
        options["peft_config"] = peft.LoraConfig(r=4, target_modules=names)
    trainer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "run"), max_steps=6, per_device_train_batch_size=4,
            report_to=[], use_cpu=True, logging_steps=1, max_length=64, save_strategy="no",
            bf16=False, learning_rate=1e-2, packing=kind == "packing",
            gradient_checkpointing=options.pop("gradient_checkpointing"),
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        **options,
    )  # fmt: skip
    whole = trainer.model.get_base_model() if kind == "lora" else trainer.model
    depths: list[bool] = []
    per_step: list[int] = []
    whole.transformer.adapter.register_forward_pre_hook(
        lambda *_: depths.append(torch.is_grad_enabled())
    )
    step = trainer.training_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        depths.clear()
        loss = step(*args, **kwargs)
        per_step.append(len(depths))
        return loss

    trainer.training_step = counted
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert len(set(per_step)) > 1, "the depth is drawn anew at each step"
    trainer.save_model(str(tmp_path / "out"))
    if kind != "lora":
        again = load(tmp_path / "out")
        for name, tensor in trainer.model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
