"""Generation, one text at a time, against the paper's own code, and every option and refusal."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from inward.common import halting
from inward.common.sampling import Sampling
from inward.common.trace import read_traces, write_traces
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.generate import generate, generate_one
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.huginn.sharing import reference_sharing
from inward.methods.huginn.texts import plan
from tests.golden_folders import golden_folders, golden_ids

FOLDERS = golden_folders("huginn-")
RULES: dict[str, Any] = {
    "latent-diff": halting.LatentChange,
    "entropy-diff": halting.EntropyChange,
    "kl": halting.KL,
    "minp-kl": halting.MinPKL,
    "cosine": halting.Cosine,
    "argmax-stability": halting.ArgmaxStable,
}


def small_model(
    seed: int = 0, *, gain: float = 0.6, memory: float = 1.0, **changes: Any
) -> HuginnForCausalLM:
    """A tiny model with random weights. The gain of its matrices says how long states wander (at
    0.5 many settle, from 1 on none do); `memory` scales what a recurrence takes from the state
    before, at 0.2 all of them settle, whatever they start from."""
    sizes: dict[str, Any] = {
        "n_embd": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "n_layers_in_prelude": 1,
        "n_layers_in_recurrent_block": 2,
        "n_layers_in_coda": 1,
        "vocab_size": 40,
        "block_size": 96,
        "mean_recurrence": 8,
        "mean_backprop_depth": 4,
    }
    model = HuginnForCausalLM(HuginnConfig(**sizes | changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            scale = gain / weight.shape[-1] ** 0.5 if weight.ndim > 1 else 0.1
            weight.copy_(scale * noise + (0 if weight.ndim > 1 else 1))
        adapter: Any = model.transformer.adapter
        adapter.weight[:, : model.config.n_embd] *= memory
    return model.eval()


def random_prompts(lengths: Sequence[int], seed: int = 1, vocab: int = 40) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths]


@pytest.fixture(params=FOLDERS, ids=golden_ids(FOLDERS), scope="module")
def golden(request: pytest.FixtureRequest) -> tuple[HuginnForCausalLM, list[int], dict, dict]:
    torch.set_num_threads(1)
    folder: Path = request.param
    model = HuginnForCausalLM.from_pretrained(folder)
    tensors = load_file(folder / "reference.safetensors")
    text = json.loads((folder / "reference.json").read_text())["generation"]
    prompt = tensors["input_ids"][0, :12].tolist()
    return model, prompt, text, tensors


def said(model: HuginnForCausalLM, prompt: list[int], tokens: list[int], **options: Any):
    """Continue the prompt from a zero state to as many tokens as the reference; through both
    versions, which must agree."""
    num = len(tokens) - len(prompt)
    out = generate(model, [prompt], max_new_tokens=num, start="zero", eos_token_id=(), **options)
    chosen = plan(model, max_new_tokens=num, start="zero", eos_token_id=(), **options)
    one = generate_one(model, prompt, chosen)
    assert one.tokens == out.answers[0] and one.steps == out.steps[0].tolist()
    return prompt + out.answers[0], out.steps[0].tolist()


@pytest.mark.parametrize("depth", [1, 3, 4, 8])
def test_fixed_depth(golden, depth):
    model, prompt, text, _ = golden
    want = text[f"greedy.r{depth}"]
    got, steps = said(model, prompt, want, max_steps=depth)
    assert got == want and set(steps) == {depth}


@pytest.mark.parametrize("name", RULES)
def test_exit_rules(golden, name):
    model, prompt, text, _ = golden
    row = text[f"adaptive.{name}"]
    got, steps = said(
        model,
        prompt,
        row["tokens"],
        max_steps=row["max_steps"],
        halt=RULES[name](row["threshold"]),
        sharing=reference_sharing(row["cache_lookup"], 4),
    )
    assert got == row["tokens"]
    assert steps == row["steps"]


def test_warm_start_from_the_normed_state(golden):
    model, prompt, text, tensors = golden
    want, heard = text["greedy.continuous.r3"], []

    def listen(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        heard.append(scores[0].clone())
        return scores

    got, _ = said(model, prompt, want, max_steps=3, warm="normed")
    assert got == want
    said(model, prompt, want, max_steps=3, warm="normed", sampling=Sampling(processors=(listen,)))
    logits = tensors["logits.continuous.r3"]
    assert torch.allclose(torch.stack(heard[: len(logits)]), logits, rtol=1e-4, atol=1e-4)
    raw, _ = said(model, prompt, want, max_steps=3, warm="raw")
    assert raw != want


def test_warm_start_deep(golden):
    """At depth 8 raw and normed states lead to the same text."""
    model, prompt, text, _ = golden
    want = text["greedy.continuous.r8"]
    for warm in ("normed", "raw"):
        assert said(model, prompt, want, max_steps=8, warm=warm)[0] == want


@pytest.mark.parametrize("name", ["compress-s8", "compress-anchor"])
def test_shared_caches(golden, name):
    model, prompt, text, _ = golden
    want = text[f"greedy.r16.{name}"]
    sharing = reference_sharing(name, model.config.n_layers_in_recurrent_block)
    got, _ = said(model, prompt, want, max_steps=16, sharing=sharing)
    assert got == want


# --------------------------------------------------------------------------------------------------
# Every option, on small models

PROMPTS = random_prompts([5, 3, 8])


@pytest.fixture(scope="module")
def model() -> HuginnForCausalLM:
    torch.set_num_threads(1)
    return small_model()


def short(model: HuginnForCausalLM, prompts: Any = None, **options: Any):
    settings: dict[str, Any] = {"max_new_tokens": 6, "max_steps": 5, "eos_token_id": ()}
    return generate(model, PROMPTS if prompts is None else prompts, **settings | options)


def recomputed(model: HuginnForCausalLM, prompt: list[int], num: int, depth: int) -> list[int]:
    """Without any cache: the whole text through the whole model for each token."""
    ids = list(prompt)
    for _ in range(num):
        logits = model(torch.tensor([ids]), num_steps=depth, state_seed=3, use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def test_fixed_depth_is_recomputing_everything_and_is_transformers_generate(model):
    out = short(model, state_seed=3)
    assert out.answers == [recomputed(model, prompt, 6, 5) for prompt in PROMPTS]
    theirs = model.generate(
        torch.tensor(PROMPTS[:1]), num_steps=5, state_seed=3, max_new_tokens=6, do_sample=False
    )
    assert theirs[0, 5:].tolist() == out.answers[0]


def test_padding_on_either_side_and_lists_are_the_same(model):
    out = short(model)
    for left in (False, True):
        ids, mask = torch.full((3, 8), 7), torch.zeros(3, 8, dtype=torch.long)
        for row, prompt in enumerate(PROMPTS):
            at = slice(8 - len(prompt), 8) if left else slice(0, len(prompt))
            ids[row, at], mask[row, at] = torch.tensor(prompt), 1
        assert short(model, ids, attention_mask=mask).answers == out.answers


def test_states_depend_on_seed_and_position_not_on_the_row(model):
    twice = short(model, [PROMPTS[0], PROMPTS[0]], max_steps=2)
    assert twice.answers[0] == twice.answers[1]
    seeds = [short(model, [PROMPTS[0]], max_steps=2, state_seed=s).answers[0] for s in range(4)]
    assert len({tuple(row) for row in seeds}) > 1
    each = short(model, [PROMPTS[0]] * 4, max_steps=2, state_seed=list(range(4)))
    assert each.answers == seeds


def test_warm_starts_change_the_text_and_the_first_token_never():
    model = small_model(gain=1.0)
    cold, raw, normed = (short(model, warm=warm, max_steps=2) for warm in (None, "raw", "normed"))
    assert cold.answers != raw.answers != normed.answers
    assert [r[0] for r in cold.answers] == [r[0] for r in raw.answers]
    assert [r[0] for r in cold.answers] == [r[0] for r in normed.answers]


def test_end_tokens_come_from_the_call_or_the_generation_config(model):
    free = short(model)
    end = free.answers[0][2]
    at = free.answers[0].index(end)
    for ends in (end, [end]):
        out = short(model, eos_token_id=ends)
        assert out.answers[0] == free.answers[0][: at + 1] and out.stopped[0] == "end"
    model.generation_config.eos_token_id = end
    try:
        assert short(model, eos_token_id=None).answers == out.answers
        assert short(model, eos_token_id=()).answers == free.answers
    finally:
        model.generation_config.eos_token_id = None


def test_the_context_ends_a_text():
    model = small_model(block_size=12)
    out = short(model, max_new_tokens=50)
    assert out.stopped == ["context"] * 3
    assert [len(p) + len(t) for p, t in zip(PROMPTS, out.answers, strict=True)] == [12] * 3


def test_sampling_is_seeded_by_row_and_processors_are_heard(model):
    hot = Sampling(rule="gumbel", temperature=2.0, seed=3)
    out = short(model, sampling=hot)
    assert out.answers == short(model, sampling=hot).answers
    assert (
        out.answers[1:2]
        == short(
            model, PROMPTS[1:2], sampling=Sampling(rule="gumbel", temperature=2.0, seed=4)
        ).answers
    )
    assert out.answers != short(model).answers
    only = Sampling(processors=(lambda ids, scores: scores.index_fill(1, torch.arange(39), -1e9),))
    assert short(model, sampling=only).answers == [[39] * 6] * 3


def test_the_generation_config_decides_how_tokens_are_chosen(model):
    keep, seen = model.generation_config, short(model)
    try:
        model.generation_config = GenerationConfig(do_sample=True, temperature=2.0, top_k=30)
        assert short(model).answers != seen.answers
        assert short(model, sampling=Sampling()).answers == seen.answers
        model.generation_config = GenerationConfig(repetition_penalty=50.0)
        assert all(len(set(row)) == 6 for row in short(model).answers)
        model.generation_config = GenerationConfig(num_beams=3)
        with pytest.raises(ValueError, match="num_beams"):
            short(model)
    finally:
        model.generation_config = keep


def test_tokens_are_told_as_they_stand(model):
    told = []
    out = short(model, halt="latent", on_token=lambda *what: told.append(what))
    for row in range(3):
        mine = [(token, steps) for number, token, steps in told if number == row]
        assert mine == list(zip(out.answers[row], out.steps[row].tolist(), strict=True))


def test_a_user_function_scripts_the_depth(model):
    out = short(model, halt=lambda view: view.step >= 1 + (view.index + view.text) % 4)
    for row in range(3):
        assert out.steps[row].tolist() == [1 + (i + row) % 4 for i in range(6)]


def test_min_steps_every_and_prompts_without_exit(model):
    always: dict[str, Any] = {"halt": lambda view: view.step > 0, "max_steps": 7}
    assert set(torch.cat(short(model, **always).steps).tolist()) == {1}
    assert set(torch.cat(short(model, min_steps=3, **always).steps).tolist()) == {3}
    steps = short(model, halt_in_prompt=False, **always).steps
    assert [row.tolist() for row in steps] == [[7, 1, 1, 1, 1, 1]] * 3
    late: dict[str, Any] = {"halt": lambda view: view.step >= 3, "max_steps": 7}
    assert set(torch.cat(short(model, check_every=3, **late).steps).tolist()) == {4}


@pytest.mark.parametrize("names", [True, ("state",), ("lens", "state")], ids=str)
def test_traces_hold_tokens_depths_and_the_whole_cost(model, names, tmp_path):
    plain = short(model, halt=halting.KL(0.1), max_steps=9)
    out = short(model, halt=halting.KL(0.1), max_steps=9, trace=names)
    assert out.answers == plain.answers
    assert all(torch.equal(a, b) for a, b in zip(out.steps, plain.steps, strict=True))
    write_traces(out.traces or [], tmp_path / "traces.jsonl")
    for row, trace in enumerate(read_traces(tmp_path / "traces.jsonl")):
        words = [step for step in trace.steps if step.says is not None]
        assert [step.index for step in trace.steps] == list(range(1, len(trace.steps) + 1))
        assert trace.answer.tolist() == out.answers[row]
        assert {step.kind for step in words} == {"word"}
        assert [step.scores["steps"] for step in words] == out.steps[row].tolist()
        assert [step.position for step in words] == [len(PROMPTS[row]) + i for i in range(6)]
        assert all(0 < float(step.says.confidence[0]) <= 1 for step in words)
        assert trace.cost.evaluations == out.costs[row].evaluations == int(out.steps[row].sum())
        assert trace.cost.flops == pytest.approx(out.costs[row].flops)
        assert trace.cost.bytes == pytest.approx(out.costs[row].bytes) and trace.cost.forwards == 6
        assert trace.cost.seconds == pytest.approx(out.costs[row].seconds, rel=0.01)
        assert trace.meta["halt"] == "KL(threshold=0.1)" and trace.stopped == "length"
        between = [step for step in trace.steps if step.says is None]
        if names is True:
            assert not between
            continue
        assert {step.kind for step in between} == {"recur"}
        assert [step.scores["recurrence"] for step in between] == [
            i + 1 for num in out.steps[row].tolist() for i in range(num)
        ]
        assert all(step.scores["change"] > 0 for step in between)
        assert all(step.arrays["state"].shape == (32,) for step in between)
        assert all(("lens" in step.view) == ("lens" in names) for step in between)


@pytest.mark.parametrize("rule", [halting.LatentChange(0.3), halting.EntropyChange(0.05)], ids=str)
def test_the_lens_shows_what_each_recurrence_would_say(model, rule):
    """The state in the record, read out by hand, says what the lens says; the last lens of a token
    holds the token."""
    out = short(model, PROMPTS[:1], halt=rule, max_steps=5, trace=("lens", "state"))
    (trace,) = out.traces or []
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        e, context = model.embed(ids)
        s = model.initial_state(e, positions=context.positions)
        for i, step in enumerate(trace.steps[: int(out.steps[0][0])]):
            s = model.iterate(s, e, context, recurrence=i)
            logits = model.read_out(s, context)[1][0, -1].softmax(-1)
            top = logits.topk(5)
            assert step.view["lens"].ids.tolist() == top.indices.tolist()
            assert step.view["lens"].confidence == pytest.approx(top.values.numpy(), abs=1e-5)
            assert np.allclose(step.arrays["state"], s[0, -1], atol=1e-4)
    for before, step in pairwise(trace.steps):
        if step.says is not None:
            assert before.view["lens"].ids[0] == step.says.ids[0]


def test_flops_by_hand():
    """One token after a prompt of two: d 32, MLP 48, V 40, blocks 1/2/1, 3 recurrences."""
    out = short(small_model(), [[1, 2]], max_new_tokens=2, max_steps=3)
    block = 2 * (4 * 32 * 32 + 3 * 32 * 48)
    look = 4 * 32
    prompt = 4 * (2 * block + look * (1 + 2))  # four blocks outside and in a recurrence
    core, outer = 2 * (2 * block + 3 * look), 2 * (2 * block + 3 * look)
    adapter, head = 2 * 2 * 32 * 32, 2 * 32 * 40
    first = 3 * (core + 2 * adapter) + outer + head
    second = 3 * (2 * (block + 3 * look) + adapter) + 2 * (block + 3 * look) + head
    assert prompt > 0 and out.costs[0].flops == first + second
    assert out.costs[0].evaluations == 6 and out.passes == 6


def test_the_mode_of_the_model_is_left_as_it_was(model):
    model.train()
    before = short(model).answers
    assert model.training
    model.eval()
    assert short(model).answers == before and not model.training


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_steps": 0}, "max_steps is 0"),
    ({"max_steps": -1}, "max_steps is -1"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"halt": "sometimes"}, "no halting rule 'sometimes'"),
    ({"halt": "stable"}, "can never fire"),
    ({"halt": "kl", "sharing": "per-depth"}, "use sharing='deepest'"),
    ({"sharing": "ring"}, "no sharing 'ring'"),
    ({"start": "cold"}, "start is 'cold'"),
    ({"warm": "hot"}, "warm is 'hot'"),
    ({"trace": "all"}, "trace names all; huginn can record lens, state"),
    ({"eos_token_id": 40}, "the vocabulary has 40"),
    ({"state_seed": [1, 2]}, "2 state seeds for 3 rows"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": 4, "in_flight": 3}, "in_flight 3"),
    ({"prompts": []}, "no prompt"),
    ({"prompts": [[1], []]}, "prompt 1 has 0 tokens"),
    ({"prompts": [[1] * 96]}, "prompt 0 has 96 tokens; the context is 96"),
    ({"prompts": [[1, 40]]}, "run from 1 to 40, the model knows 0 to 39"),
    ({"prompts": torch.tensor([1, 2])}, r"pass input_ids\[None\]"),
    ({"prompts": torch.rand(2, 3)}, "expected integers"),
    ({"prompts": [[1]], "attention_mask": torch.ones(1, 1)}, "lists need none"),
    (
        {"prompts": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 4)},
        r"shape \(2, 4\)",
    ),
    (
        {"prompts": torch.ones(1, 3).long(), "attention_mask": torch.tensor([[1, 0, 1]])},
        "has holes",
    ),
]


@pytest.mark.parametrize("options, message", BAD)
def test_bad_input_is_refused_before_the_first_forward(options, message):
    model = small_model()
    setattr(model, "embed", None)  # noqa: B010 - nothing may run
    with pytest.raises(ValueError, match=message):
        short(model, **options)


def test_a_rule_that_does_not_answer_row_by_row_is_told(model):
    with pytest.raises(ValueError, match="expected a boolean tensor"):
        short(model, halt=lambda view: np.bool_(True))
