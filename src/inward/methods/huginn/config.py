"""Configuration of Huginn, field for field as published (tomg-group-umd/huginn-0125, model_type
"huginn_raven").

`HuginnConfig()` is the published 3.5B model; name the fields that differ for a smaller one. A
published config.json loads as it is: either spelling of the heads (`n_heads`,
`num_attention_heads`) and of tying (`tie_embeddings`, `tie_word_embeddings`), with or without
`rope_base`. It is written back with one spelling of each, because the paper's own class stops on
both.

Fields that name a part of the architecture have one value that this library builds; another one is
an error, not a silently different model.
"""

from __future__ import annotations

import math
from typing import Any

from transformers import PreTrainedConfig

ONLY = {
    "bias": False,
    "architecture_class_name": "RecurrentGPT",
    "block_class_name": "SandwichBlock",
    "norm_class_name": "RMSNorm_llama",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "init_strategy": "takase",
    "init_orthogonal": False,
    "injection_type": "linear",
    "qk_bias": True,
    "test_time_noise": 0,
}
"""The architecture that exists here: field -> its only value."""

DERIVED = ("head_dim", "effective_expected_depth", "init_values", "padded_vocab_size", "n_layers")
"""Written by the paper's own class; computed from the other fields here."""

LEAST = {
    "n_embd": 2,
    "n_heads": 1,
    "intermediate_size": 1,
    "vocab_size": 2,
    "block_size": 1,
    "n_layers_in_prelude": 0,
    "n_layers_in_recurrent_block": 1,
    "n_layers_in_coda": 0,
    "mean_recurrence": 1,
    "mean_backprop_depth": 1,
}


class HuginnConfig(PreTrainedConfig):
    """All choices of the method (paper, section 3 and appendix A.2); the defaults are huginn-0125.

    Args:
        n_embd: d, width of embeddings and states.
        n_heads: or num_attention_heads; head width n_embd / n_heads must be even.
        n_layers_in_prelude, n_layers_in_recurrent_block, n_layers_in_coda: blocks of P, R and C.
        mean_recurrence: r-bar, the depth trained for, and the depth used when none is asked for.
        mean_backprop_depth: k, the last recurrences that are back-propagated.
        state_init: "like-init" (truncated normal, as published) or "zero".
        block_size: longest position + 1.
    Raises:
        ValueError: a value is out of range, or names an architecture that is not built here.
    """

    model_type = "huginn_raven"
    attribute_map = {  # noqa: RUF012 - the base class declares it so
        "num_attention_heads": "n_heads",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "block_size",
    }
    keys_to_ignore_at_inference = ["cache", "past_key_values", "states"]  # noqa: RUF012

    def __init__(
        self,
        n_embd: int = 5280,
        n_heads: int | None = None,
        intermediate_size: int = 17920,
        vocab_size: int = 65536,
        block_size: int = 4096,
        n_layers_in_prelude: int = 2,
        n_layers_in_recurrent_block: int = 4,
        n_layers_in_coda: int = 2,
        mean_recurrence: int = 32,
        mean_backprop_depth: int = 8,
        sampling_scheme: str = "poisson-lognormal-filling",
        state_init: str = "like-init",
        norm_eps: float = 1e-6,
        rope_base: float = 50_000,
        padding_multiple: int = 4096,
        tie_embeddings: bool | None = None,
        activation_checkpoint_impl: str = "per-iteration",
        **kwargs: Any,
    ):
        self.n_embd = kwargs.pop("hidden_size", n_embd)
        heads = kwargs.pop("num_attention_heads", n_heads)
        self.n_heads = 55 if heads is None else heads
        self.num_key_value_heads = kwargs.pop("num_key_value_heads", None) or self.n_heads
        self.intermediate_size = intermediate_size
        self.vocab_size = max(vocab_size, kwargs.get("padded_vocab_size") or 0)
        self.block_size = kwargs.pop("max_position_embeddings", block_size)
        self.n_layers_in_prelude = n_layers_in_prelude
        self.n_layers_in_recurrent_block = n_layers_in_recurrent_block
        self.n_layers_in_coda = n_layers_in_coda
        self.n_layers = n_layers_in_prelude + n_layers_in_recurrent_block + n_layers_in_coda
        self.mean_recurrence = mean_recurrence
        self.mean_backprop_depth = mean_backprop_depth
        self.sampling_scheme = sampling_scheme
        self.state_init = state_init
        self.norm_eps = norm_eps
        self.rope_base = rope_base
        self.padding_multiple = padding_multiple
        self.activation_checkpoint_impl = activation_checkpoint_impl
        tied = kwargs.pop("tie_word_embeddings", True)
        self.tie_embeddings = bool(tied if tie_embeddings is None else tie_embeddings)
        for name, value in ONLY.items():
            setattr(self, name, kwargs.pop(name, value))
        for name in (*DERIVED, "num_hidden_layers"):
            kwargs.pop(name, None)
        self._check()
        super().__init__(**{"tie_word_embeddings": self.tie_embeddings, **kwargs})

    def _check(self) -> None:
        for name, low in LEAST.items():
            if getattr(self, name) < low:
                raise ValueError(f"Huginn: {name} is {getattr(self, name)}, must be at least {low}")
        for name, only in ONLY.items():
            if getattr(self, name) != only:
                raise ValueError(
                    f"Huginn: {name} is {getattr(self, name)!r}, but only {only!r} is built here"
                )
        if self.n_embd % (2 * self.n_heads):
            raise ValueError(
                f"Huginn: n_embd {self.n_embd} does not split into {self.n_heads} heads of even "
                "width; change one of them"
            )
        if self.num_key_value_heads != self.n_heads:
            raise ValueError(
                f"Huginn: {self.num_key_value_heads} key-value heads for {self.n_heads} heads; "
                "grouped queries are not built here"
            )
        if self.state_init not in ("like-init", "zero"):
            raise ValueError(f"Huginn: state_init is {self.state_init!r}: 'like-init' or 'zero'")

    @property
    def head_dim(self) -> int:
        """H, width of a head."""
        return self.n_embd // self.n_heads

    @property
    def layers(self) -> tuple[int, int, int]:
        """Blocks in prelude, core and coda."""
        return self.n_layers_in_prelude, self.n_layers_in_recurrent_block, self.n_layers_in_coda

    @property
    def effective_expected_depth(self) -> int:
        """L, blocks that a token passes at the mean recurrence (132 as published)."""
        prelude, core, coda = self.layers
        return prelude + core * self.mean_recurrence + coda

    @property
    def init_std(self) -> float:
        """sqrt(2 / (5 d)), of every matrix but the ones that write to the stream."""
        return math.sqrt(2 / (5 * self.n_embd))

    @property
    def init_std_out(self) -> float:
        """Of attention output and MLP down projection: init_std / sqrt(2 L)."""
        return self.init_std / math.sqrt(2 * self.effective_expected_depth)

    def to_dict(self) -> dict[str, Any]:
        """As saved: one spelling of tying (see the top of this file)."""
        row = super().to_dict()
        row.pop("tie_word_embeddings", None)
        return row
