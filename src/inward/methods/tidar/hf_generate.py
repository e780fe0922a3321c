"""TiDAR as a way to generate of transformers: `model.generate(ids, custom_generate=generate, ...)`.

transformers prepares processors, warpers and stopping criteria from its own configuration, whatever
they are, and this function hands them to `decode`, which applies them per place and per text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
)

from inward.common.sampling import Processor, Rule, Sampling
from inward.common.thinking import Event
from inward.methods.tidar.choose import Chooser
from inward.methods.tidar.decode import continued
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.request import Drafter


def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    *,
    mask_id: int | None = None,
    tidar: TiDAR | None = None,
    scheme: str = "one_pass",
    K: int | None = None,
    num_blocks: int = 2,
    beta: float = 1.0,
    threshold: float = 0.9,
    rule: Rule = "gumbel",
    seed: int = 0,
    drafter: Drafter | None = None,
    chooser: Chooser | None = None,
    on_event: Callable[[Event], None] | None = None,
    attention_mask: Tensor | None = None,
    **ignored: Any,
) -> Tensor:
    """`model.generate(ids, custom_generate=generate, mask_id=..., scheme=..., K=...)`.

    transformers has prepared processors, warpers and stopping criteria; they are applied per place
    and per text. `tidar`: the TiDAR model around `model`, where it has an adapter. `rule` is used
    with do_sample=True. Returns (B, S + longest) ids, shorter texts padded at the right.

    Unlike in transformers, processors do not see the padding of a prompt.
    """
    if generation_config.num_beams > 1:
        raise ValueError(f"num_beams is {generation_config.num_beams}; TiDAR keeps one beam")
    limits = [c.max_length for c in stopping_criteria if isinstance(c, MaxLengthCriteria)]
    rest = [c for c in stopping_criteria if not isinstance(c, MaxLengthCriteria)]
    processors: tuple[Processor, ...] = tuple(logits_processor)
    return continued(
        model if tidar is None else tidar,
        input_ids,
        pad_id=generation_config.pad_token_id,
        attention_mask=attention_mask,
        mask_id=mask_id,
        on_event=on_event,
        scheme=scheme,
        K=K,
        num_blocks=num_blocks,
        beta=beta,
        threshold=threshold,
        max_new_tokens=min(limits) - input_ids.shape[1] if limits else None,
        eos_token_id=(),  # among the criteria
        stopping_criteria=rest,
        sampling=Sampling(
            rule if generation_config.do_sample else "greedy", processors=processors, seed=seed
        ),
        drafter=drafter,
        chooser=chooser,
    )
