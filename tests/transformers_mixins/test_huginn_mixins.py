"""Huginn under transformers' own tests of a causal LM.

The tests are those of a checkout of transformers, which INWARD_TRANSFORMERS_TESTS names; nothing of
them is copied here. `make test-mixins` runs them; what is excepted, and why, is in exceptions.py.
"""

import os
import unittest

import pytest

if not os.environ.get("INWARD_TRANSFORMERS_TESTS"):
    pytest.skip(
        "INWARD_TRANSFORMERS_TESTS names no checkout of transformers", allow_module_level=True
    )
common = pytest.importorskip(
    "tests.causal_lm_tester", reason="`make test-mixins` runs these: tests is another package here"
)

from transformers.models.auto import modeling_auto  # noqa: E402

from inward.methods.huginn.cache import RecurrentCache  # noqa: E402
from inward.methods.huginn.config import HuginnConfig  # noqa: E402
from inward.methods.huginn.model import HuginnForCausalLM, HuginnModel  # noqa: E402

# The tests look up by these names which kind of model a class is; `register` does not write them.
modeling_auto.MODEL_MAPPING_NAMES["huginn_raven"] = "HuginnModel"
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["huginn_raven"] = "HuginnForCausalLM"


def _less_flaky(config):
    """transformers' own sets the epsilon of every kind of norm, which our configuration refuses to
    read back: there is one kind here."""
    config.norm_eps = 1.0


from tests import test_modeling_common  # noqa: E402  # pyright: ignore

test_modeling_common.set_config_for_less_flaky_test = _less_flaky


class HuginnModelTester(common.CausalLMModelTester):
    """A small Huginn: two blocks that run once, one that runs three times."""

    base_model_class = HuginnModel
    config_class = HuginnConfig
    causal_lm_class = HuginnForCausalLM

    def __init__(self, parent):
        super().__init__(parent, batch_size=2, vocab_size=99)
        self.num_hidden_layers = 1 + 3 + 1  # those that run

    def get_config(self):
        return HuginnConfig(
            n_embd=self.hidden_size,
            n_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            block_size=self.max_position_embeddings,
            n_layers_in_prelude=1,
            n_layers_in_recurrent_block=1,
            n_layers_in_coda=1,
            mean_recurrence=3,
            mean_backprop_depth=3,
            sampling_scheme="fixed",
            pad_token_id=self.pad_token_id,
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
        )


class HuginnModelTest(common.CausalLMModelTest, unittest.TestCase):
    """All of them."""

    model_tester_class = HuginnModelTester
    pipeline_model_mapping = {  # noqa: RUF012 - the base class declares it so
        "feature-extraction": HuginnModel,
        "text-generation": HuginnForCausalLM,
    }
    all_model_classes = (HuginnModel, HuginnForCausalLM)

    def _check_past_key_values_for_generate(self, batch_size, past_key_values, seq_length, config):
        """A slot for each block that runs, all tokens in each."""
        assert len(past_key_values) == config.total_num_hidden_layers
        assert past_key_values.get_seq_length() == seq_length
        if isinstance(past_key_values, RecurrentCache):
            assert past_key_values.lengths.tolist() == [seq_length] * batch_size
        else:  # where there are gradients
            shape = (batch_size, config.n_heads, seq_length, config.head_dim)
            assert all(layer.keys.shape == shape for layer in past_key_values.layers)
