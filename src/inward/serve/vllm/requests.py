"""What a request to vLLM may not say (group `vllm.logits_processors`; no logit is changed).

vLLM takes a request's `extra_args` (`vllm_xargs` over HTTP) for anything and tells a model nothing
of them. A depth that stands there would be ignored; here it is refused before the request waits.
"""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor

DEPTHS = ("num_steps", "mean_recurrence", "max_steps", "halt", "min_steps")
"""What a depth is called here and in the paper's code."""


class DepthOfRequest(LogitsProcessor):
    """Refuses a depth for one request."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """ValueError if the request names a depth."""
        given = [name for name in DEPTHS if name in (sampling_params.extra_args or {})]
        if given:
            raise ValueError(
                f"{', '.join(given)}: vLLM runs all requests of a batch through one forward and "
                "shares cached prompts between them, so that Huginn's depth is one for all; start "
                "the engine with hf_overrides={'mean_recurrence': N}, or use inward serve, where "
                "every request has its own"
            )

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        del vllm_config, device, is_pin_memory

    def is_argmax_invariant(self) -> bool:
        """Nothing is changed."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Nothing is kept."""

    def apply(self, logits: Any) -> Any:
        """The logits as they are."""
        return logits
