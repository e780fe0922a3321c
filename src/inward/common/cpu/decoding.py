"""Decoding with a model of transformers on a CPU: packed weights, and attention of few rows.

    fast = Decoding(model)
    fast(num_rows)(...)             # the same results up to rounding

Linear layers run from packed weights (`inward.common.cpu.linears`). Attention of few rows runs in
float32 and without copies of shared heads: torch's CPU kernel reads keys and values in bfloat16 at
4 GB/s if a single row asks, and transformers copies shared heads once for each of their queries as
soon as there is a mask. A layer of SmolLM2-135M (9 heads, 3 of keys) takes, on one thread of an
EPYC 9004, microseconds for 1, 4, 9 and 72 rows:

    behind 256 tokens    242, 120, 171, 732 before,  59,  79, 129, 623 so
    behind 1,000         946, 393, 592, 2781        161, 271, 466, 2421

The model is not changed, it is a twin of it that runs (`inward.common.twins`): its layers multiply
from packed weights, and its own copy of the configuration names `attend`, which transformers then
calls in each layer.
"""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from inward.common.cpu.linears import Linears
from inward.common.twins import Twin

NAME = "inward_few_rows"
MOST_ROWS = 72
"""Beyond it, as in prompts, the usual call is as good; nothing larger was measured."""
_THEIRS = ("position_bias", "softcap", "cache", "output_attentions")
"""Arguments that the usual call is left to deal with."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """softmax(scaling * query key^T + mask) value, in transformers' form.

    Shapes: query (B, N, q, H), key and value (B, N / groups, K, H), mask (B or 1, 1, q, K);
    returns (B, q, N, H), and no weights.
    """
    rows = query.shape[2]
    causal = rows > 1 and attention_mask is None
    unusual = dropout > 0 or any(options.get(name) for name in _THEIRS)
    if causal or unusual or rows > MOST_ROWS or torch.is_grad_enabled():
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            **options,
        )
    mask = attention_mask
    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    found = F.scaled_dot_product_attention(
        query.float(),
        key.float(),
        value.float(),
        attn_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found.to(query.dtype).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def suits(model: nn.Module) -> bool:
    """Whether the model runs on a CPU, in a dtype that gains, and calls whatever function of
    attention its configuration names."""
    if not isinstance(model, PreTrainedModel):
        return False
    config: Any = model.config
    return (
        model.device.type == "cpu"
        and model.dtype in (torch.float32, torch.bfloat16)
        and getattr(model, "_supports_attention_backend", False)
        and config._attn_implementation == "sdpa"
        and not config.sub_configs  # parts may have implementations of their own
    )


Kind = TypeVar("Kind", bound=nn.Module)


class Decoding(Generic[Kind]):
    """Whatever makes forwards without gradient faster on a CPU, where the model allows it.

    model: the one that runs, a twin in evaluation mode of the one given: a causal LM, or one that
        wraps it.
    lm: the causal LM in it; None: the model itself. parts: further modules in it that run within
        the LM's forward, such as an adapter.
    wanted: False: nothing; True: weights are packed even if that takes long or much memory; None:
        where it pays (`inward.common.cpu.linears.Linears`).

    One caller's own: how it attends depends on the rows it has said it will run.

    Raises:
        ValueError: packed weights are wanted and cannot be had.
    """

    def __init__(
        self,
        model: Kind,
        lm: nn.Module | None = None,
        *parts: nn.Module,
        wanted: bool | None = None,
    ) -> None:
        lm = model if lm is None else lm
        self.linears = [Linears(part, wanted=wanted) for part in (lm, *parts)]
        self.attends = wanted is not False and suits(lm)
        self.twin = Twin(model)
        for linears in self.linears:
            linears.into(self.twin)
        head = lm.get_output_embeddings() if isinstance(lm, PreTrainedModel) else None
        if head is not None:
            self.twin.apart(head)  # thoughts are caught there
        self.model = self.twin.model
        self._config: Any = None
        if self.attends:
            self._config = copy.copy(lm.config)
            self.twin.replace(lm.config, self._config)

    @property
    def kind(self) -> tuple[bool, ...]:
        """What is done: packed weights, of each part; attention."""
        return (*(bool(linears.products) for linears in self.linears), self.attends)

    def __call__(self, num_rows: int = MOST_ROWS) -> Kind:
        """The model to run forwards of so many rows a text with."""
        if self.attends:
            self._config._attn_implementation = NAME if num_rows <= MOST_ROWS else "sdpa"
        return self.model
