"""Configuration of Huginn, field for field as published (tomg-group-umd/huginn-0125, model_type
"huginn_raven").

`HuginnConfig()` is the published 3.5B model; name the fields that differ for a smaller one. A
published config.json loads as it is: either spelling of the heads (`n_heads`,
`num_attention_heads`) and of tying (`tie_embeddings`, `tie_word_embeddings`), with or without
`rope_base`. It is written back with one spelling of each, because the paper's own class stops on
both.

Fields that name a part of the architecture choose among the parts of the paper's configurations and
of retrofitted models that this library builds (docs/huginn-family.md); another name is an error,
not a silently different model. fields.py says what each field may be.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from inward.methods.huginn import fields


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
        use_cache: whether a forward that is not told keeps a cache, and whether `generate` does;
            None: `generate` alone does.
    Raises:
        ValueError: a value is out of range, or names an architecture that is not built here.
    """

    model_type = "huginn_raven"
    attribute_map = {  # noqa: RUF012 - the base class declares it so
        "num_attention_heads": "n_heads",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "block_size",
        "tie_word_embeddings": "tie_embeddings",
    }
    keys_to_ignore_at_inference = ["cache", "past_key_values", "latents", "states"]  # noqa: RUF012

    def __init__(
        self,
        n_embd: int | None = None,
        n_heads: int | None = None,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
        vocab_size: int | None = None,
        block_size: int | None = None,
        n_layers_in_prelude: int | None = None,
        n_layers_in_recurrent_block: int | None = None,
        n_layers_in_coda: int | None = None,
        mean_recurrence: int | None = None,
        mean_backprop_depth: int | None = None,
        sampling_scheme: str | None = None,
        state_init: str | None = None,
        norm_eps: float | None = None,
        rope_base: float | None = None,
        padding_multiple: int | None = None,
        tie_embeddings: bool | None = None,
        activation_checkpoint_impl: str | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ):
        named = {name: value for name, value in locals().items() if name in fields.PUBLISHED}
        own, rest = fields.sift(named | kwargs)
        for name, value in own.items():
            setattr(self, name, value)
        self.use_cache = use_cache
        # of published files; TRL asks every configuration that transformers does not know for it
        self.auto_map = dict(rest.pop("auto_map", None) or {})
        super().__init__(**{"tie_word_embeddings": self.tie_embeddings, **rest})

    def check(self) -> None:
        """Raise a ValueError if a field was set to what cannot be; a model is built after this."""
        own = {name: getattr(self, name) for name in fields.PUBLISHED}
        fields.check(own)
        for name, value in own.items():
            setattr(self, name, value)

    @property
    def n_layers(self) -> int:
        """Blocks that have weights: P + R + C."""
        return sum(self.layers)

    @n_layers.setter
    def n_layers(self, value: int) -> None:
        if value != self.n_layers:
            raise ValueError(
                f"Huginn: {value} layers, but n_layers counts prelude, core and coda, "
                f"{self.layers}; set those"
            )

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
    def total_num_hidden_layers(self) -> int:
        """Blocks that run at the mean recurrence, which is what transformers calls it in looped
        models; `num_hidden_layers` counts those that have weights."""
        return self.effective_expected_depth

    @property
    def _scales(self) -> dict[str, float]:
        """Of `fields.strategy`, where init_values says nothing else."""
        made = fields.strategy(self.init_strategy, self.n_embd, self.effective_expected_depth)
        return made | (self.init_values or {})

    @property
    def init_std(self) -> float:
        """Of every matrix but the ones that write to the stream, sqrt(2 / (5 d)) as published; and
        of a state before `embed_scale`."""
        return self._scales["std"]

    @property
    def init_std_out(self) -> float:
        """Of attention output and MLP down projection: init_std / sqrt(2 L) as published."""
        return self._scales["out_proj"]

    @property
    def embed_scale(self) -> float:
        """What embeddings are multiplied with, sqrt(d) as published."""
        return self._scales["embed_scale"]

    @property
    def logit_scale(self) -> float:
        """What logits are multiplied with, 1 as published."""
        return self._scales["logit_scale"]

    def to_dict(self) -> dict[str, Any]:
        """As saved: one spelling of tying (see the top of this file), and of what the paper's own
        class does not know only what is not as published."""
        row = super().to_dict()
        row.pop("tie_word_embeddings", None)
        if not row.get("auto_map"):
            row.pop("auto_map", None)
        row["n_layers"] = self.n_layers
        for name in fields.UNSAID:
            if row.get(name) == fields.PUBLISHED[name]:
                row.pop(name, None)
        return row
