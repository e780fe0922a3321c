"""A plugin for vLLM (group `vllm.general_plugins`): Huginn in an engine that exists.

    pip install "inward[vllm]"                   in an environment of its own
    vllm serve FOLDER                            model_type huginn_raven: ours, or as published
    vllm serve FOLDER --hf-overrides '{"mean_recurrence": 16}'        the depth, for all requests

    model       the model in vLLM's layers: one cache slot for each (recurrence, layer)
    requests    refuses what a request cannot choose: vLLM knows no depth of a request

vLLM calls `register` in each of its processes. Nothing else in the package imports this folder.
"""

from __future__ import annotations

ARCHITECTURES = ("HuginnForCausalLM", "RavenForCausalLM")
"""Names in config.json: ours, and the paper's class."""


def register() -> None:
    """Tell transformers the configuration and vLLM the model; harmless when called again."""
    from transformers import AutoConfig
    from vllm import ModelRegistry  # pyright: ignore - not here

    from inward.methods.huginn.config import HuginnConfig

    AutoConfig.register(HuginnConfig.model_type, HuginnConfig, exist_ok=True)
    for name in ARCHITECTURES:
        # by name, so that the engine's process alone imports it
        ModelRegistry.register_model(name, "inward.serve.vllm.model:HuginnInVLLM")
