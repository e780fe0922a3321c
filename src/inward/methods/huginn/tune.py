"""Fine-tuning Huginn with low-rank weights (LoRA, arXiv 2106.09685), by PEFT.

They lie on the linear layers of all blocks and on the adapter that takes in e; the core's are used
in every recurrence, so their gradient is that of all the differentiated ones. What is saved is the
whole model with the low-rank weights added, so nothing but its folder is needed to open it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inward.methods.huginn.train import HuginnTraining, muon_parts

if TYPE_CHECKING:
    from inward.methods.huginn.model import HuginnForCausalLM


def low_rank(model: HuginnForCausalLM, rank: int) -> None:
    """Put low-rank weights, in float32 and of alpha twice the rank, into a model; nothing else is
    trained from then on.

    Raises:
        ImportError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError(
            "low-rank weights need peft: pip install peft, or train all (--lora-rank 0)"
        ) from error
    names = [name.removesuffix(".weight") for name in muon_parts(model)]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        own = "lora_" in name
        parameter.requires_grad_(own)
        if own:
            parameter.data = parameter.data.float()


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with its low-rank weights added, by the names that it had before; the
    model stays as it is."""
    changes = {
        f"{path}.weight": layer
        for path, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    found = {}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            plain = name.replace(".base_layer.", ".")
            if ".lora_" in name:
                continue
            if plain in changes:
                layer: Any = changes[plain]
                change = layer.get_delta_weight("default")
                tensor = (tensor.float() + change.float()).to(tensor.dtype)
            found[plain] = tensor
    return found


class HuginnTuning(HuginnTraining):
    """`HuginnTraining` of a model that may hold low-rank weights."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the whole model, low-rank weights added, and the tokenizer."""
        self.model.save_pretrained(folder, state_dict=merged(self.model))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def muon_parameters(self) -> dict[str, tuple[int, ...]]:
        """As in `HuginnTraining`, of what is trained."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return {name: rows for name, rows in super().muon_parameters().items() if name in trained}
