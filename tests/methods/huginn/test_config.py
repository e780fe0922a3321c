"""Huginn's configuration: every field is kept, or refused by name."""

from typing import Any, cast

import numpy as np
import pytest
from transformers import AutoConfig

from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.generate import generate
from inward.methods.huginn.model import HuginnForCausalLM
from tests.methods.huginn.test_model import SMALL, build, ids


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mean_recurence": 4}, "no field mean_recurence .*did you mean mean_recurrence"),
        ({"flavour": "x"}, "no field flavour .*; remove it"),
        ({"sliding_window": 128}, "sliding_window is 128, but nothing here does that"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"rope_theta": 10_000.0, "rope_base": 50_000}, "rope_base is 50000 and rope_theta 10000"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling"),
        ({"num_attention_heads": 8}, "n_heads is 4 and num_attention_heads 8"),
        ({"hidden_size": 64}, "n_embd is 32 and hidden_size 64"),
        ({"max_position_embeddings": 32}, "block_size is 64 and max_position_embeddings 32"),
        ({"tie_embeddings": True, "tie_word_embeddings": False}, "they are one field"),
        ({"tie_embeddings": 1}, "tie_embeddings is 1"),
        ({"head_dim": 16}, "head_dim is 16, but it is n_embd / n_heads, 8 here"),
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2, but it is the blocks"),
        ({"n_embd": 32.0}, "n_embd is 32.0, must be a whole number"),
        ({"n_embd": "32"}, "n_embd is '32', must be a whole number"),
        ({"mean_recurrence": 2.5}, "mean_recurrence is 2.5, must be a whole number"),
        ({"mean_recurrence": True}, "mean_recurrence is True, must be a whole number"),
        ({"block_size": -1}, "block_size is -1, must be at least 1"),
        ({"vocab_size": float("nan")}, "vocab_size is nan"),
        ({"norm_eps": float("nan")}, "norm_eps is nan, must be a finite number above 0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"rope_base": float("inf")}, "rope_base is inf"),
        ({"rope_base": "50000"}, "rope_base is '50000'"),
        ({"sampling_scheme": 3}, "sampling_scheme is 3, must be a name"),
        ({"embed_step": True}, "embed_step is True, but nothing here does that"),
    ],
)
def test_fields_are_kept_or_refused_by_name(change, told):
    with pytest.raises(ValueError, match=told):
        HuginnConfig(**(SMALL | change))


def test_what_says_the_same_is_taken():
    same: dict[str, Any] = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "head_dim": 8,
        "num_hidden_layers": 4,
    }
    same |= {"sliding_window": None, "attention_dropout": 0.0, "hidden_act": "silu"}
    same |= {"max_position_embeddings": 64, "effective_expected_depth": 132}
    config = HuginnConfig(**SMALL, **same)
    assert config.to_dict() == HuginnConfig(**SMALL).to_dict()
    theta = HuginnConfig(**SMALL, rope_theta=10_000.0)
    assert theta.rope_base == 10_000.0 and "rope_theta" not in theta.to_dict()


def test_numpy_numbers_are_numbers(tmp_path):
    sizes: dict[str, Any] = {name: np.int64(value) for name, value in SMALL.items()}
    config = HuginnConfig(**sizes, norm_eps=cast(Any, np.float32(1e-5)))
    assert all(type(getattr(config, name)) is int for name in SMALL)
    config.save_pretrained(tmp_path)  # JSON knows no numpy
    assert AutoConfig.from_pretrained(tmp_path).norm_eps == float(np.float32(1e-5))


def test_what_was_set_later_is_checked_when_a_model_is_built(tmp_path):
    config = HuginnConfig(**SMALL)
    config.mean_recurrence = 0
    with pytest.raises(ValueError, match="mean_recurrence is 0, must be at least 1"):
        HuginnForCausalLM(config)
    with pytest.raises(ValueError, match="n_layers counts prelude, core and coda"):
        config.num_hidden_layers = 9
    build().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="norm_eps is -1"):
        HuginnForCausalLM.from_pretrained(tmp_path, norm_eps=-1)


def test_the_training_codes_own_fields_say_what_holds_here():
    """Fields of the paper's training configurations (config_dynamic.py) at their defaults."""
    row: dict[str, Any] = {
        "attn_impl": "tridao",
        "lockstep_n": True,
        "lockstep_k": True,
        "clip_qkv": None,
    }
    row |= {"use_abacus": False, "randomize_positions_from": None, "mup_model_scaling_factor": 1}
    row |= {"qk_norm": False, "embed_step": False, "intermediate_noise_injection": 0.0}
    assert HuginnConfig(**SMALL, **row).n_embd == 32


def test_what_is_noted_comes_back(tmp_path):
    """Fields that say nothing about the numbers: kept, and written back."""
    noted: dict[str, Any] = {"name": "tiny", "hf_config": {"org": "us"}, "lockstep_n": True}
    HuginnConfig(**SMALL, **noted).save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in noted} == noted
    found, want = again.to_dict(), HuginnConfig(**SMALL, **noted).to_dict()
    assert {name for name in found | want if found.get(name) != want.get(name)} <= {
        "_name_or_path",
        "transformers_version",
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_steps": 2.5}, "max_steps is 2.5, must be a whole number"),
        ({"max_steps": True}, "max_steps is True"),
        ({"max_new_tokens": float("nan")}, "max_new_tokens is nan"),
        ({"batch_size": 2.5}, "batch_size is 2.5, must be a whole number"),
        ({"in_flight": 20.5}, "in_flight is 20.5"),
        ({"state_seed": 1.5}, "state_seed is 1.5"),
        ({"state_seed": [True]}, "state_seed is True"),
        ({"input_ids": "text"}, "input_ids is a str"),
    ],
)
def test_generation_takes_whole_numbers(options, told):
    usual: dict[str, Any] = {"input_ids": ids(1, 5), "max_new_tokens": 2, "max_steps": 2}
    with pytest.raises(ValueError, match=told):
        generate(build(), **usual | options)


def test_generation_takes_numpys_whole_numbers():
    model, prompt = build(), ids(1, 5)
    want = generate(model, prompt, max_new_tokens=3, max_steps=2, state_seed=3, batch_size=2)
    sizes: dict[str, Any] = {"max_new_tokens": 3, "max_steps": 2, "state_seed": 3, "batch_size": 2}
    numbers: dict[str, Any] = {name: np.int64(value) for name, value in sizes.items()}
    got = generate(model, prompt, **numbers)
    assert got.tokens[0].tolist() == want.tokens[0].tolist() and want.steps[0].tolist() == [2] * 3
