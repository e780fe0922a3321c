"""What a forward of an ordinary model costs, against sizes counted by hand."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from inward.common.costs import Sizes, forward_cost, sizes_of

d, LAYERS, HEADS, KEYS, WIDTH, MLP, V = 32, 3, 4, 2, 16, 40, 50
MATRICES = LAYERS * (2 * d * HEADS * WIDTH + 2 * d * KEYS * WIDTH + 3 * d * MLP)


def llama(tied: bool) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=d,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        head_dim=WIDTH,
        intermediate_size=MLP,
        vocab_size=V,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("tied", [False, True])
def test_sizes_of_grouped_heads_of_their_own_width(tied):
    """Scores and values are 2 FLOPs each for a number of a head; keys and values are kept."""
    model = llama(tied)
    want = Sizes(
        matrices=MATRICES,
        head=V * d,
        weight_bytes=4 * (MATRICES + V * d),
        attention=2 * 2 * LAYERS * HEADS * WIDTH,
        cached=2 * LAYERS * KEYS * WIDTH * 4,
    )
    assert sizes_of(model) == want
    half = sizes_of(model.bfloat16())
    assert (half.weight_bytes, half.cached) == (want.weight_bytes // 2, want.cached // 2)


def test_width_and_key_heads_where_the_config_names_none():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=9, n_positions=6))
    sizes = sizes_of(gpt2)
    assert (sizes.matrices, sizes.head) == (2 * 12 * 8 * 8, 9 * 8)
    assert (sizes.attention, sizes.cached) == (4 * 2 * 8, 2 * 2 * 8 * 4)


def test_new_rows_see_the_past_and_each_other_up_to_themselves():
    model = llama(False)
    sizes = sizes_of(model)
    cost = forward_cost(model, rows=3, past=5, reads=2)
    pairs = (5 + 1) + (5 + 2) + (5 + 3)
    assert cost.flops == 2 * (3 * MATRICES + 2 * V * d) + sizes.attention * pairs
    assert cost.bytes == sizes.weight_bytes + sizes.cached * 8
    assert (cost.evaluations, cost.forwards) == (1, 1)
    assert forward_cost(model, rows=3, past=5, reads=2, sizes=sizes) == cost
