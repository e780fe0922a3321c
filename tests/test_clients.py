"""What clients of transformers hand to a generate acts as in transformers, or is refused by name:
every field of its GenerationConfig, for Coconut, TiDAR, TiDAR as `custom_generate`, and Huginn."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    TextIteratorStreamer,
    WatermarkingConfig,
)

from inward.common.generation import ACTS, DRAWN, METADATA, REFUSED
from inward.data.thoughts.segments import Specials
from inward.methods.coconut.model import Coconut
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.tidar.hf_generate import generate
from inward.methods.tidar.model import TiDAR
from tests.methods.tidar.toys import stories

V, EOS, PAD = 40, 5, 0
SPECIALS = Specials(bot=37, eot=38, latent=39)
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.6,
    "tie_word_embeddings": False,
}
NEW = 10


def base(kind: str = "llama", **ends: Any) -> PreTrainedModel:
    """A tiny random model that never says the tokens of thoughts (nor the mask token, 39)."""
    torch.manual_seed(3)
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | ends
    if kind == "gpt2":
        sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64}
        config = transformers.GPT2Config(
            vocab_size=V, **sizes, initializer_range=0.6, tie_word_embeddings=False, **ends
        )
        model: Any = transformers.GPT2LMHeadModel(config)
    elif kind == "huginn":
        config = HuginnConfig(
            n_embd=16,
            num_attention_heads=2,
            intermediate_size=24,
            n_layers_in_prelude=1,
            n_layers_in_recurrent_block=1,
            n_layers_in_coda=1,
            vocab_size=V,
            block_size=64,
            mean_recurrence=2,
            mean_backprop_depth=2,
            state_init="zero",
            **ends,
        )
        model = HuginnForCausalLM(config)
        for parameter in model.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    else:
        name = {"llama": "Llama", "qwen2": "Qwen2"}[kind]
        config = getattr(transformers, f"{name}Config")(**SIZES, **ends)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        model.get_output_embeddings().weight[37:] = 0.0
    return model.eval()


LLAMA: Any = base()
PROMPT = torch.tensor([[7, 3, 22, 3, 22, 11]])
SHORT = torch.tensor([[8, 2, 6]])
BATCH = torch.tensor([[7, 3, 22, 3, 22, 11], [PAD, PAD, PAD, 8, 2, 6]])
MASK = torch.tensor([[1] * 6, [0, 0, 0, 1, 1, 1]])


def custom(model: Any, *ids: Tensor, **options: Any) -> Any:
    """TiDAR as a way to generate of transformers."""
    return model.generate(*ids, custom_generate=generate, mask_id=39, K=4, **options)


def ways(model: PreTrainedModel) -> dict[str, Callable[..., Any]]:
    """Every way to generate over this base."""
    return {
        "coconut": Coconut(model, SPECIALS).eval().generate,
        "tidar": partial(TiDAR(model, 39, 4, probe=False).generate),
        "custom": partial(custom, model),
    }


WAYS = ways(LLAMA)
PLAIN: dict[str, Any] = {"eos_token_id": EOS, "pad_token_id": PAD}
"""Of every call"""

# field -> what is asked for, with what else it needs
ASKED: dict[str, dict[str, Any]] = {
    "sequence_bias": {"sequence_bias": [[[3], 5.0], [[22, 4], 7.0]]},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
    "repetition_penalty": {"repetition_penalty": 2.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[34], [22, 22]]},
    "min_length": {"min_length": 12, "eos_token_id": [*range(5, 30)]},
    "min_new_tokens": {"min_new_tokens": 4, "eos_token_id": [*range(5, 30)]},
    "forced_bos_token_id": {"forced_bos_token_id": 12},
    "forced_eos_token_id": {"forced_eos_token_id": 4},
    "remove_invalid_values": {"remove_invalid_values": True},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2, 3.0)},
    "suppress_tokens": {"suppress_tokens": [*range(0, 30, 2)]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [*range(0, 37, 2)]},
    "renormalize_logits": {"renormalize_logits": True},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=6.0)},
    "max_length": {"max_length": 13, "max_new_tokens": None},
    "max_new_tokens": {"max_new_tokens": 3},
    "eos_token_id": {"eos_token_id": [*range(10, 37)]},
    "temperature": {"temperature": 0.3},
    "top_h": {"top_h": 0.3},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.3},
    "min_p": {"min_p": 0.3},
    "typical_p": {"typical_p": 0.3},
    "epsilon_cutoff": {"epsilon_cutoff": 0.05},
    "eta_cutoff": {"eta_cutoff": 0.05},
}
ELSEWHERE = {
    *("do_sample", "num_return_sequences", "output_scores", "output_logits", "max_time"),
    *("return_dict_in_generate", "stop_strings", "pad_token_id", "bos_token_id"),
}
"""Tested below"""
BAD: dict[str, Any] = {
    "num_beams": 2,
    "num_beam_groups": 2,
    "early_stopping": True,
    "length_penalty": 2.0,
    "diversity_penalty": 0.5,
    "constraints": [1],
    "force_words_ids": [[1]],
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "low_memory": True,
    "guidance_scale": 2.0,
    "use_mtp": True,
    "prompt_lookup_num_tokens": 3,
    "max_matching_ngram_size": 3,
    "assistant_early_exit": 1,
    "assistant_ensemble_weight": 0.5,
    "speculation_type": "dflash",
    "is_assistant": True,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.9,
    "assistant_lookbehind": 3,
    "target_lookbehind": 3,
    "output_attentions": True,
    "output_hidden_states": True,
    "use_cache": False,
    "cache_implementation": "offloaded",
    "cache_config": {"a": 1},
    "max_cache_len": 9,
    "prefill_chunk_size": 2,
    "compile_config": transformers.CompileConfig(),
    "continuous_batching_config": {"a": 1},
    "decoder_start_token_id": 3,
    "token_healing": True,
}


def test_every_field_has_a_case():
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    known = set(ASKED) | ELSEWHERE | set(BAD) | set(METADATA)
    assert fields <= known, f"no case for {sorted(fields - known)}"
    assert set(BAD) == set(REFUSED)
    assert set(ASKED) | ELSEWHERE == set(ACTS)


def test_the_documentation_tells_of_every_field():
    page = (Path(__file__).parents[1] / "docs" / "clients.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (acts|refused) \|", page, re.MULTILINE))
    assert rows == dict.fromkeys(ACTS, "acts") | dict.fromkeys(REFUSED, "refused")


def theirs(ids: Tensor, model: Any = LLAMA, **options: Any) -> Any:
    return model.generate(ids, **{"max_new_tokens": NEW} | PLAIN | options)


def ours(way: str, ids: Tensor, **options: Any) -> Any:
    return WAYS[way](ids, **{"max_new_tokens": NEW} | PLAIN | options)


@pytest.mark.parametrize("field", sorted(set(ASKED) - set(DRAWN)))
@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_field_acts_as_in_transformers(way, field):
    ids = PROMPT[:, :1] if field == "forced_bos_token_id" else PROMPT
    wanted = theirs(ids, **ASKED[field])
    assert ours(way, ids, **ASKED[field]).tolist() == wanted.tolist()
    idle = ("remove_invalid_values", "renormalize_logits")
    assert field in idle or wanted.tolist() != theirs(ids).tolist(), "the field changed nothing"


@pytest.mark.parametrize("field", DRAWN)
@pytest.mark.parametrize("way", sorted(WAYS))
def test_what_tokens_are_drawn_from_is_as_in_transformers(way, field):
    asked = {
        **ASKED[field],
        "do_sample": True,
        "max_new_tokens": 1,
        "output_scores": True,
        "return_dict_in_generate": True,
        "top_k": ASKED[field].get("top_k", 0),
    }
    wanted, found = theirs(PROMPT, **asked).scores[0], ours(way, PROMPT, **asked).scores[0]
    free = theirs(PROMPT, **asked | {field: {"top_k": 0}.get(field)}).scores[0]
    assert not torch.allclose(wanted, free), "the field changed nothing"
    torch.testing.assert_close(found[:, :37], wanted[:, :37], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("field", sorted(BAD))
@pytest.mark.parametrize("way", sorted(WAYS))
def test_what_is_not_done_is_refused_by_name(way, field):
    call = partial(ours, way, PROMPT, **{field: BAD[field]})
    if way == "custom" and field in ("use_mtp", "token_healing"):
        # of these transformers wants more before it calls anybody
        config = GenerationConfig(**{field: BAD[field]})
        call = partial(generate, LLAMA, PROMPT, LogitsProcessorList(), [], config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LLAMA.model, "forward", None)  # before any work
        with pytest.raises(ValueError, match=field):
            call()


@pytest.mark.parametrize("way", ("coconut", "tidar"))
def test_unknown_fields_and_names_are_refused(way):
    with pytest.raises(ValueError, match="beams"):
        ours(way, PROMPT, beams=2)
    with pytest.raises(ValueError, match=r"chat_format='x': no such field"):
        WAYS[way](PROMPT, generation_config=GenerationConfig(chat_format="x"))
    for name in ("assistant_model", "negative_prompt_ids", "synced_gpus"):
        with pytest.raises(ValueError, match=name):
            ours(way, PROMPT, **{name: True})
    with pytest.raises(ValueError, match=r"temperature=0\.7 act on drawn"):
        ours(way, PROMPT, temperature=0.7)
    with pytest.raises(ValueError, match="return_dict_in_generate=True alone"):
        ours(way, PROMPT, output_scores=True)
    with pytest.raises(ValueError, match="num_return_sequences is 2"):
        ours(way, PROMPT, num_return_sequences=2)
    with pytest.raises(ValueError, match="max_length is 4, but a prompt has 6"):
        ours(way, PROMPT, max_length=4, max_new_tokens=None)
    with pytest.raises(ValueError, match="logprobs do not fit into a tensor"):
        ours(way, PROMPT, logprobs=True)


def test_a_models_own_file_may_say_what_other_programs_know():
    model: Any = base()
    model.generation_config.chat_format = "x"
    for way in ways(model).values():
        assert way(PROMPT, max_new_tokens=2).shape == (1, 8)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_temperature_0_is_what_transformers_makes_of_it(way):
    """Greedy, unless tokens are to be drawn: then it is no number to divide by."""
    wanted = theirs(PROMPT).tolist()
    assert ours(way, PROMPT, temperature=0.0).tolist() == wanted
    with pytest.raises(ValueError, match="temperature"):
        ours(way, PROMPT, temperature=0.0, do_sample=True)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_padded_row_says_what_it_says_alone(way):
    """Of what counts tokens, min_length and max_length count columns where transformers does."""
    options: dict[str, Any] = {
        "min_new_tokens": 4,
        "eos_token_id": [*range(5, 30)],
        "repetition_penalty": 1.5,
        "begin_suppress_tokens": [*range(0, 30, 2)],
        "exponential_decay_length_penalty": (2, 1.5),
        "encoder_no_repeat_ngram_size": 2,
    }
    found = ours(way, BATCH, attention_mask=MASK, **options)
    for r, alone in enumerate((PROMPT, SHORT)):
        wanted = theirs(alone, **options)[0, alone.shape[1] :].tolist()
        own = found[r].tolist()
        begin = 6 if way != "coconut" else alone.shape[1]
        assert own[begin : begin + len(wanted)] == wanted
        assert set(own[begin + len(wanted) :]) <= {PAD}
    if way == "custom":
        lengths = {"min_length": 9, "max_length": 12, "max_new_tokens": None}
        asked = {**lengths, "eos_token_id": [*range(5, 37)], "attention_mask": MASK}
        assert ours(way, BATCH, **asked).tolist() == theirs(BATCH, **asked).tolist()


@pytest.mark.parametrize("way", sorted(WAYS))
def test_scores_and_logits_are_those_of_transformers(way):
    options: dict[str, Any] = {
        "output_scores": True,
        "output_logits": True,
        "return_dict_in_generate": True,
        "repetition_penalty": 1.5,
    }
    wanted, found = theirs(PROMPT, **options), ours(way, PROMPT, **options)
    assert found.sequences.tolist() == wanted.sequences.tolist()
    for name in ("scores", "logits"):
        a, b = (torch.stack(getattr(out, name))[..., :37] for out in (found, wanted))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    said = LLAMA.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
    assert said.shape == (1, NEW) and bool((said <= 0).all()) and bool((said > -9).all())


@pytest.mark.parametrize("way", sorted(WAYS))
def test_processors_and_criteria_of_the_caller_act(way):
    def only_even(ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, torch.arange(1, V, 2), -torch.inf)

    def three_more(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((ids.shape[0],), ids.shape[1] >= PROMPT.shape[1] + 3)

    options: dict[str, Any] = {
        "logits_processor": LogitsProcessorList([only_even]),
        "stopping_criteria": transformers.StoppingCriteriaList([three_more]),
        "prefix_allowed_tokens_fn": lambda row, said: [*range(10, 30)],
    }
    wanted = theirs(PROMPT, **options)
    assert wanted.shape == (1, 9) and ours(way, PROMPT, **options).tolist() == wanted.tolist()
    late = ours(way, PROMPT, max_time=1e-9)
    assert late.shape == (1, 7)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_several_answers_to_a_prompt(way):
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 3, "seed": 4}
    found = ours(way, BATCH, attention_mask=MASK, **options)
    assert found.shape[0] == 6
    assert len({tuple(row) for row in found[:3].tolist()}) == 3
    options |= {"num_return_sequences": 1, "seed": 5}
    alone = ours(way, BATCH, attention_mask=MASK, **options | {"num_return_sequences": 1})
    width = min(alone.shape[1], found.shape[1])
    assert alone[0, :width].tolist() == found[1, :width].tolist(), "row r draws with seed + r"


@pytest.mark.parametrize("way", ("coconut", "tidar"))
def test_a_prompt_may_be_left_out(way):
    wanted = LLAMA.generate(bos_token_id=3, max_new_tokens=4, pad_token_id=0)
    assert WAYS[way](bos_token_id=3, max_new_tokens=4).tolist() == wanted.tolist()
    assert WAYS[way](inputs=PROMPT, max_new_tokens=2).shape == (1, 8)
    with pytest.raises(ValueError, match="no bos_token_id"):
        WAYS[way]()


@pytest.mark.parametrize("kind", ("llama", "qwen2", "gpt2"))
def test_what_a_tokenizer_gives_goes_in(kind):
    """input_ids and attention_mask by name, with padding and without."""
    model = base(kind)
    inputs = transformers.BatchEncoding({"input_ids": BATCH, "attention_mask": MASK})
    alone = transformers.BatchEncoding({"input_ids": PROMPT, "attention_mask": MASK[:1]})
    wanted = theirs(PROMPT, model)
    for name, way in ways(model).items():
        assert way(**alone, max_new_tokens=NEW, **PLAIN).tolist() == wanted.tolist(), name
        rows = way(**inputs, max_new_tokens=NEW, **PLAIN)
        assert rows[0, : wanted.shape[1]].tolist() == wanted[0].tolist(), name


# --- a real tokenizer -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told() -> tuple[Any, Any, dict[str, Callable[..., Any]]]:
    """A model with a tokenizer."""
    model, tokenizer = stories()
    model.generation_config.pad_token_id = 2
    size = model.get_input_embeddings().weight.shape[0]
    specials = Specials(bot=size - 3, eot=size - 2, latent=size - 1)
    coconut = Coconut(model, specials, tokenizer=tokenizer).eval()
    tidar = TiDAR(model, 0, 4, probe=False)
    call = partial(model.generate, custom_generate=generate, mask_id=0, K=4)
    return model, tokenizer, {"coconut": coconut.generate, "tidar": tidar.generate, "custom": call}


def named(way: str, tokenizer: Any) -> dict[str, Any]:
    """A Coconut model knows its tokenizer."""
    return {} if way == "coconut" else {"tokenizer": tokenizer}


@pytest.mark.parametrize("way", sorted(WAYS))
def test_stop_strings_with_a_tokenizer(told, way):
    model, tokenizer, calls = told
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    options: dict[str, Any] = {"max_new_tokens": 40, "stop_strings": ["day,", "never"]}
    wanted = model.generate(**inputs, **options, tokenizer=tokenizer)
    assert 8 < wanted.shape[1] < 40
    found = calls[way](**inputs, **options, **named(way, tokenizer))
    assert found.tolist() == wanted.tolist()
    if way != "coconut":
        with pytest.raises(ValueError, match="tokenizer"):
            calls[way](**inputs, **options)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_streamers_tell_every_word_and_end(told, way):
    model, tokenizer, calls = told
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    heard = {}
    for name, call in {"theirs": model.generate, way: calls[way]}.items():
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        given = {**inputs, "streamer": streamer, "max_new_tokens": 20}
        thread = Thread(target=call, kwargs=given)
        thread.start()
        heard[name] = "".join(streamer)
        thread.join()
    assert heard["theirs"] and heard[way] == heard["theirs"]


def test_a_streamer_ends_when_the_work_fails(told):
    _, tokenizer, calls = told
    inputs = tokenizer("Once upon a time", return_tensors="pt")

    def fails(ids: Tensor, scores: Tensor) -> Tensor:
        raise RuntimeError("broken")

    for call in calls.values():
        streamer = TextIteratorStreamer(tokenizer, timeout=60)
        broken = LogitsProcessorList([fails])
        with pytest.raises(RuntimeError, match="broken"):
            call(**inputs, streamer=streamer, logits_processor=broken, max_new_tokens=9)
        list(streamer)


# --- Huginn is a model of transformers itself -----------------------------------------------------


def test_huginn_generates_by_transformers_with_every_field():
    """Its cache must bear what transformers does with it: beams, several answers, padding."""
    model = base("huginn")
    plain = theirs(PROMPT, model)
    for field in sorted(set(ASKED) - set(DRAWN)):
        ids = PROMPT[:, :1] if field == "forced_bos_token_id" else PROMPT
        slow = theirs(ids, model, use_cache=False, **ASKED[field])
        assert theirs(ids, model, **ASKED[field]).tolist() == slow.tolist(), field
    for asked in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        slow = theirs(PROMPT, model, use_cache=False, **asked)
        assert theirs(PROMPT, model, **asked).tolist() == slow.tolist()
    lookup = theirs(PROMPT, model, prompt_lookup_num_tokens=3)
    assert lookup.tolist() == plain.tolist()
    assert (
        theirs(BATCH, model, attention_mask=MASK)[0].tolist()[: plain.shape[1]] == plain[0].tolist()
    )
    streamed = theirs(PROMPT, model, return_dict_in_generate=True, output_scores=True)
    assert streamed.sequences.tolist() == plain.tolist()
