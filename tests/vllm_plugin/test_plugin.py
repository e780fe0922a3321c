"""Huginn in vLLM says what Huginn says: the same greedy tokens as `HuginnForCausalLM.generate`.

Run by `make test-vllm`, in an environment of its own; skipped where vLLM is missing. One engine a
model, because to start one takes most of the time.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import os
import random

import pytest

pytest.importorskip("vllm", reason="vLLM lives in an environment of its own: make test-vllm")

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import torch
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError

from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM

SHAPE = {"dtype": "float32", "enforce_eager": True, "skip_tokenizer_init": True}


def said(engine, prompts, num, **options):
    """Greedy tokens after prompts of ids."""
    params = SamplingParams(
        temperature=0, max_tokens=num, ignore_eos=True, detokenize=False, **options
    )
    asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    return [list(o.outputs[0].token_ids) for o in engine.generate(asked, params, use_tqdm=False)]


def ours(model, prompts, num, **options):
    """The same by transformers' `generate` on our model, one prompt at a time."""
    more = {"max_new_tokens": num, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return [
        model.generate(torch.tensor([prompt]), **more, **options)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]


def prompts_of(vocab_size, lengths, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(vocab_size) for _ in range(length)] for length in lengths]


@pytest.fixture(scope="module")
def hops():
    from inward.hub import resolve

    return resolve("huginn-hops")


@pytest.fixture(scope="module")
def engine(hops):
    """The shipped model; prompts are cut in chunks of 32 tokens, and cached."""
    return LLM(
        str(hops),
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=32,
        enable_chunked_prefill=True,
        enable_prefix_caching=True,
        **SHAPE,
    )


@pytest.fixture(scope="module")
def model(hops):
    return HuginnForCausalLM.from_pretrained(hops).eval()


def test_a_batch_of_prompts_of_many_lengths(engine, model):
    prompts = prompts_of(112, (1, 2, 7, 16, 31))
    assert said(engine, prompts, 24) == ours(model, prompts, 24)


def test_long_prompts_come_in_chunks(engine, model):
    prompts = prompts_of(112, (33, 64, 150, 200), seed=1)
    assert said(engine, prompts, 12) == ours(model, prompts, 12)


def test_a_cached_beginning_changes_nothing(engine, model):
    (shared,) = prompts_of(112, (130,), seed=2)
    prompts = [shared + tail for tail in prompts_of(112, (3, 9, 20), seed=3)]
    want = ours(model, prompts, 12)
    assert [said(engine, [prompt], 12)[0] for prompt in prompts] == want
    asked = [{"prompt_token_ids": prompts[-1]}]
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, detokenize=False)
    (again,) = engine.generate(asked, params, use_tqdm=False)
    assert again.num_cached_tokens >= 128
    assert list(again.outputs[0].token_ids) == want[-1][:2]


def test_a_slot_for_each_recurrence_and_layer(engine):
    config = engine.llm_engine.vllm_config
    names = [n for n in config.compilation_config.static_forward_context if ".slots." in n]
    assert len(names) == len(set(names)) == 2 * 8  # two core blocks, eight recurrences


def test_a_depth_of_one_request_is_refused(engine):
    with pytest.raises(VLLMValidationError, match="Huginn's depth is one for all"):
        said(engine, [[1, 2, 3]], 1, extra_args={"num_steps": 4})


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A text model of random weights in the published layout: 77 tensors, a prelude, a coda, the
    paper's class in config.json."""
    import json

    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("raven")
    torch.manual_seed(0)
    config = HuginnConfig(
        n_embd=96,
        n_heads=3,
        intermediate_size=256,
        vocab_size=512,
        block_size=128,
        n_layers_in_prelude=1,
        n_layers_in_recurrent_block=2,
        n_layers_in_coda=1,
        mean_recurrence=6,
    )
    model = HuginnForCausalLM(config)
    for param in model.parameters():  # so that logits differ by more than rounding
        if param.ndim == 2:
            param.data.mul_(2.0)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    row = json.loads((folder / "config.json").read_text())
    row |= {"architectures": ["RavenForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(row))
    assert {"freqs_cis", "lm_head.weight"} <= set(tensors)
    return folder


def test_the_published_layout_at_another_depth(published):
    engine = LLM(
        str(published),
        max_model_len=128,
        max_num_seqs=4,
        max_num_batched_tokens=128,
        hf_overrides={"mean_recurrence": 4},
        **SHAPE,
    )
    names = engine.llm_engine.vllm_config.compilation_config.static_forward_context
    assert len([n for n in names if ".slots." in n]) == 1 + 2 * 4 + 1
    model = HuginnForCausalLM.from_pretrained(published).eval()
    prompts = prompts_of(512, (1, 5, 20, 60), seed=4)
    found = said(engine, prompts, 16)
    assert found == ours(model, prompts, 16, num_steps=4)
    assert found != ours(model, prompts, 16, num_steps=1)


@pytest.mark.parametrize(
    "fields, ranks, told",
    [
        ({"mean_recurrence": 0}, {}, "mean_recurrence"),
        ({"mean_recurrence": 2.5}, {}, "mean_recurrence"),
        ({"mean_recurence": 4}, {}, "mean_recurence"),
        ({"block_class_name": "TransformerPreNormBlock"}, {}, "in vLLM only 'SandwichBlock'"),
        ({"rope_pairs": "halves"}, {}, "in vLLM only 'interleaved'"),
        ({"norm_after_core": False}, {}, "in vLLM only True"),
        ({}, {"tensor_parallel_size": 2}, "does not divide 55 heads"),
        ({}, {"pipeline_parallel_size": 2}, "pipeline_parallel_size is 2"),
    ],
)
def test_overrides_and_parallelism_are_checked(fields, ranks, told):
    from types import SimpleNamespace

    from inward.serve.vllm.model import _checked

    config = HuginnConfig()
    config.update(fields)  # as vLLM does
    ranks = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1} | ranks
    asked = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=config), parallel_config=SimpleNamespace(**ranks)
    )
    with pytest.raises(ValueError, match=told):
        _checked(asked)
