"""What a caller of TiDAR decoding may ask for, and the refusals, before any long work starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StopStringCriteria

from inward.common.sampling import Sampling
from inward.methods.tidar.base import num_embedded, refuse_mask
from inward.methods.tidar.choose import Chooser
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.schemes import Costs, Scheme

Drafter = Callable[[Sequence[int], int], Sequence[int]]
"""(tokens of a text, how many) -> guesses for what follows, none if it has no idea"""


@dataclass(frozen=True)
class DecodeSettings:
    """How to decode.

    scheme: see `Scheme`; "auto": the fastest by measured costs and running acceptance.
    K: tokens of a draft; None: the block size of the TiDAR model (8 for others).
    num_blocks: of "partial".
    beta: trust in the autoregressive logits, 1 all, 0 none; below 1 for plain and one_pass only,
        since the others lack f_j.
    threshold: of "diffusion": probability above which a drafted token is kept unverified.
    max_new_tokens: None: up to the end of the context, where decoding ends in any case.
    eos_token_id: ids that end a text; None: those of the model's generation config; (): none.
    stop_strings: texts that end a text, with a tokenizer. stopping_criteria: transformers' ones,
        asked after every new token with the (1, length) ids of the text and no scores.
    sampling: the rule, temperature, processors, seed.
    drafter: a further source of guesses (`PromptLookup`); where it has any they are judged instead
        of the drafted ones.
    costs: for "auto", instead of measuring. chooser: for "auto", one that other texts have taught.
    packed: whether weights are packed for a CPU first (`inward.common.cpu.linears`); None: if they
        can be and are 4 GiB or less; False: nor is anything else done to be faster there
        (`inward.common.cpu.decoding`).
    options: further arguments of the model's forward.
    """

    scheme: str = "one_pass"
    K: int | None = None
    num_blocks: int = 2
    beta: float = 1.0
    threshold: float = 0.9
    max_new_tokens: int | None = 128
    eos_token_id: int | Sequence[int] | None = None
    stop_strings: Sequence[str] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    stopping_criteria: Sequence[Callable[..., Any]] = ()
    sampling: Sampling = field(default_factory=Sampling)
    drafter: Drafter | None = None
    costs: Costs | None = None
    chooser: Chooser | None = None
    packed: bool | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = "one_pass" if self.scheme == "auto" else self.scheme
        Scheme(name, 8 if self.K is None else self.K, self.num_blocks)
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta is {self.beta}, must lie in [0, 1]; 1 trusts AR alone")
        if self.beta < 1.0 and self.scheme not in ("plain", "one_pass"):
            raise ValueError(
                f"beta is {self.beta}, but scheme {self.scheme!r} has no mask block for every "
                "outcome to mix with; use 'one_pass' (or 'plain'), or beta=1"
            )
        if self.beta < 1.0 and self.drafter is not None:
            raise ValueError("a drafter's guesses have no mask blocks to mix with; use beta=1")
        if self.scheme == "diffusion" and self.drafter is not None:
            raise ValueError("scheme 'diffusion' judges nothing, so it has no use for a drafter")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is {self.threshold}, must be a probability")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, must be at least 1")
        if self.stop_strings and self.tokenizer is None:
            raise ValueError("stop_strings need the tokenizer; pass tokenizer=")


@dataclass
class PromptLookup:
    """Guesses what followed the last time the last few tokens occurred: free, and right where text
    is copied. At least `least` tokens have to agree, at most `most` are compared."""

    least: int = 3
    most: int = 6

    def __call__(self, tokens: Sequence[int], num: int) -> Sequence[int]:
        """Up to `num` guesses."""
        text = np.asarray(tokens)
        for length in range(min(self.most, len(text) - 1), self.least - 1, -1):
            windows = np.lib.stride_tricks.sliding_window_view(text[:-1], length)
            found = np.flatnonzero((windows == text[-length:]).all(axis=1))
            if len(found):
                begin = int(found[-1]) + length
                return text[begin : begin + num].tolist()
        return []


# --------------------------------------------------------------------------------------------------
# Checks


def find_mask(
    model: TiDAR | PreTrainedModel, mask_id: int | None, settings: DecodeSettings
) -> int | None:
    """The mask token's id; None if nothing will be drafted by masks."""
    if isinstance(model, TiDAR):
        if mask_id not in (None, model.mask_id):
            raise ValueError(f"mask_id is {mask_id}, but the model's own is {model.mask_id}")
        if model.settings.shifted and (settings.beta < 1.0 or settings.scheme == "diffusion"):
            raise ValueError(
                f"scheme {settings.scheme!r} with beta {settings.beta} needs a mask that predicts "
                "the first token of a block; this model, trained with shifted=True, has none: use "
                "beta=1 and a scheme that verifies"
            )
        return model.mask_id
    size = num_embedded(model)
    if mask_id is not None and not 0 <= mask_id < size:
        raise ValueError(f"mask_id is {mask_id}, but the model embeds ids 0..{size - 1}")
    if mask_id is None and (settings.scheme != "plain" or settings.beta < 1.0):
        raise ValueError(
            f"scheme {settings.scheme!r} with beta {settings.beta} drafts with a mask token; pass "
            "mask_id=, or a TiDAR model, or scheme='plain'"
        )
    return mask_id


def check_inputs(
    lm: PreTrainedModel, input_ids: Tensor, K: int, context: int, mask_id: int | None
) -> None:
    """Raise ValueError unless the model can continue these ids."""
    if input_ids.ndim != 2 or input_ids.dtype != torch.long:
        raise ValueError(
            f"input_ids must be (texts, tokens) int64; got {tuple(input_ids.shape)} "
            f"{input_ids.dtype}"
        )
    if input_ids.device != lm.device:
        raise ValueError(f"input_ids lie on {input_ids.device}, the model on {lm.device}")
    if lm.training:
        raise ValueError("the model is in training mode, where dropout acts; call model.eval()")
    if context < K:
        raise ValueError(f"K is {K}, but this model attends over {context} tokens; use a smaller K")
    if mask_id is not None:
        refuse_mask(input_ids, mask_id)


def stop_criteria(settings: DecodeSettings) -> list[Callable[..., Any]]:
    """Whatever else may end a text."""
    criteria = list(settings.stopping_criteria)
    if settings.stop_strings and settings.tokenizer is not None:
        criteria.append(StopStringCriteria(settings.tokenizer, list(settings.stop_strings)))
    return criteria
