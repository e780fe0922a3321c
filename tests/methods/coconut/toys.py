"""Small bases and samples for the tests of Coconut."""

import math
from functools import cache
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from inward.data.thoughts.segments import Latent, Sample, Specials, Text
from inward.methods.coconut.model import Coconut
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM

VOCAB = 40
SPECIALS = Specials(bot=37, eot=38, latent=39)
BASES = ("gpt2", "llama", "huginn")


def make_base(kind: str, *, dtype: torch.dtype = torch.float64, **options: Any) -> PreTrainedModel:
    """A base in evaluation mode, every parameter away from its initial value."""
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 96}
        no_drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        ends = {"bos_token_id": None, "eos_token_id": None}
        config = GPT2Config(vocab_size=VOCAB, **sizes, **no_drop, **ends, **options)
        base = GPT2LMHeadModel(config)
    elif kind == "llama":
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=96,
            bos_token_id=None,
            eos_token_id=None,
            **options,
        )
        base = LlamaForCausalLM(config)
    else:
        config = HuginnConfig(
            n_embd=16,
            num_attention_heads=2,
            intermediate_size=24,
            n_layers_in_prelude=1,
            n_layers_in_recurrent_block=1,
            n_layers_in_coda=1,
            vocab_size=VOCAB,
            block_size=96,
            mean_recurrence=3,
            mean_backprop_depth=3,
            bos_token_id=None,
            eos_token_id=None,
            **options,
        )
        base = HuginnForCausalLM(config)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return cast(Any, base).to(dtype).eval()


def make_model(
    kind: str = "gpt2", *, dtype: torch.dtype = torch.float64, **options: Any
) -> Coconut:
    return Coconut(make_base(kind, dtype=dtype, **options), SPECIALS).eval()


def text(num: int, seed: int, *, supervised: bool = False) -> Text:
    """`num` tokens, none of them special."""
    ids = torch.randint(0, 37, (num,), generator=torch.Generator().manual_seed(seed))
    return Text(tuple(ids.tolist()), supervised)


def bot(supervised: bool = False) -> Text:
    return Text((SPECIALS.bot,), supervised)


def eot(supervised: bool = False) -> Text:
    return Text((SPECIALS.eot,), supervised)


def interleaved(*shape: int, seed: int = 0) -> Sample:
    """Question, then for each number so many thoughts and a step of some tokens."""
    segments = [text(4 + seed % 3, 100 * seed)]
    for j, num in enumerate(shape):
        segments += [bot(), Latent(num), eot(), text(2 + (seed + j) % 3, seed + j, supervised=True)]
    return Sample((*segments, text(2, seed + 50, supervised=True)))


def ragged() -> list[Sample]:
    """Rows that differ in number, length and place of their blocks; one does not think at all."""
    return [
        interleaved(2, 1, seed=1),
        interleaved(3, seed=2),
        interleaved(seed=3),
        interleaved(1, 2, 1, seed=4),
    ]


def words(sample: Sample) -> list[int]:
    """All tokens of a sample, without its thoughts."""
    return [i for s in sample.segments if isinstance(s, Text) for i in s.ids]


def distance(a: Any, b: Any) -> float:
    return float((a - b).detach().abs().max()) if a.numel() else math.inf


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words w0 to w36."""
    vocab = {f"w{i}": i for i in range(37)}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")
