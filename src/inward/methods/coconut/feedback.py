"""What becomes of a thought before it is fed in: as it is (the paper), or stabilised."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inward.methods.coconut.settings import CoconutSettings


class MatchNorm(nn.Module):
    """Scale vectors to the root mean square that the embeddings had when the model was made.

    A thought is as long as the final norm makes it, often many times an embedding."""

    rms: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.register_buffer("rms", embedding_rms(embedding))

    def forward(self, h: Tensor) -> Tensor:
        """(..., d) -> (..., d)"""
        own = h.float().square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()
        return (h.float() * own * self.rms).to(h.dtype)


class Projector(nn.Module):
    """LayerNorm(W2 gelu(W1 h)), CODI's projector."""

    def __init__(self, d: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = _linear(d, width, generator)
        self.outer = _linear(width, d, generator)
        self.norm = nn.LayerNorm(d)

    def forward(self, h: Tensor) -> Tensor:
        """(..., d) -> (..., d)"""
        return self.norm(self.outer(F.gelu(self.inner(h))))


class Adapter(nn.Module):
    """h + W2 silu(W1 h), scaled like embeddings; W2 starts at 0, so it starts as `MatchNorm`."""

    def __init__(
        self, embedding: nn.Embedding, d: int, width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.inner = _linear(d, width, generator)
        self.outer = _linear(width, d, generator)
        nn.init.zeros_(self.outer.weight)
        self.match = MatchNorm(embedding)

    def forward(self, h: Tensor) -> Tensor:
        """(..., d) -> (..., d)"""
        return self.match(h + self.outer(F.silu(self.inner(h))))


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = cast(nn.Linear, nn.utils.skip_init(nn.Linear, inputs, outputs))
    nn.init.normal_(layer.weight, std=inputs**-0.5, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def mixed(logits: Tensor, embedding: nn.Module) -> Tensor:
    """(B, d) the embeddings of all tokens, mixed by the softmax of logits (B, V)."""
    weight = cast(Tensor, embedding.weight)
    ids = torch.arange(weight.shape[0], device=logits.device)
    table = weight if type(embedding) is nn.Embedding else embedding(ids)  # some scale, some add
    return logits[:, : len(ids)].softmax(-1).to(table.dtype) @ table


@torch.no_grad()
def embedding_rms(embedding: nn.Embedding) -> Tensor:
    """Scalar float32: root mean square of what the embedding gives, over all tokens."""
    ids = torch.arange(embedding.weight.shape[0], device=embedding.weight.device)
    return embedding(ids).float().square().mean().sqrt()


def feedback_module(settings: CoconutSettings, embedding: nn.Embedding) -> nn.Module:
    """What lies between h and the next input, on the embedding's device and in its dtype."""
    weight = embedding.weight
    d = weight.shape[1]
    width = settings.feedback_width or d
    generator = torch.Generator().manual_seed(settings.seed)
    if settings.feedback == "norm":
        return MatchNorm(embedding)
    if settings.feedback == "projector":
        return Projector(d, width, generator).to(weight.device, weight.dtype)
    if settings.feedback == "adapter":
        return Adapter(embedding, d, width, generator).to(weight.device, weight.dtype)
    return nn.Identity()
