"""A tiny untrained Huginn with a tokenizer of words."""

from pathlib import Path
from typing import Any

import torch

from inward.common.bases import open_tokenizer
from inward.hub import shipped
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM

HUGINN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<Huginn>{% endif %}"
)
"""As the published one in this: whatever a role is called is written, and Huginn answers"""


def small_huginn(folder: Path, *, template: str | None = None, **changes: Any) -> Path:
    """Write one with the tokenizer of `stories-draft`."""
    tokenizer = open_tokenizer(shipped()["stories-draft"])
    tokenizer.chat_template = template
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "n_embd": 32, "n_heads": 2, "intermediate_size": 64, "n_layers_in_prelude": 1,
        "n_layers_in_recurrent_block": 1, "n_layers_in_coda": 1, "block_size": 256,
        "mean_recurrence": 4, "mean_backprop_depth": 2,
    }  # fmt: skip
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    fields: dict[str, Any] = shape | ends | {"vocab_size": len(tokenizer)} | changes
    config = HuginnConfig(**fields)
    HuginnForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
