"""The loop that stays full says what each row says alone, token for token and step for step."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from inward.common import halting
from inward.common.sampling import Sampling
from inward.methods.huginn.generate import generate, generate_one
from inward.methods.huginn.texts import plans
from tests.methods.huginn.test_generate import random_prompts, small_model

PROMPTS = random_prompts([3, 9, 5, 1, 7, 4, 2, 6, 8])
NEW, DEPTH = 8, 9
PLAIN: dict[str, Any] = {"max_new_tokens": NEW, "max_steps": DEPTH, "eos_token_id": ()}
OPTIONS: dict[str, dict[str, Any]] = {
    "never": {},
    "kl": {"halt": halting.KL(0.1)},
    "minp-kl": {"halt": halting.MinPKL(0.05)},
    "entropy": {"halt": halting.EntropyChange(0.05)},
    "latent": {"halt": halting.LatentChange(0.3)},
    "cosine": {"halt": halting.Cosine(0.05)},
    "stable": {"halt": halting.ArgmaxStable(3)},
    "both": {"halt": halting.AllOf(halting.KL(0.3), halting.LatentChange(0.4))},
    "seldom": {"halt": halting.KL(0.2), "min_steps": 2, "check_every": 2},
    "prompt in full": {"halt": halting.KL(0.1), "halt_in_prompt": False},
    "ring": {"halt": halting.KL(0.1), "sharing": "ring:2"},
    "first then shared": {"halt": halting.LatentChange(0.3), "sharing": "first-then-shared:3"},
    "shared": {"halt": halting.LatentChange(0.3), "sharing": "shared"},
    "per depth": {"sharing": "per-depth"},
    "raw": {"halt": halting.KL(0.1), "warm": "raw"},
    "normed": {"halt": halting.LatentChange(0.3), "warm": "normed"},
    "zero": {"halt": halting.KL(0.1), "start": "zero"},
    "seeds": {"halt": halting.KL(0.1), "state_seed": list(range(9))},
    "sampled": {
        "halt": halting.KL(0.1),
        "sampling": Sampling(rule="gumbel", temperature=1.5, seed=2),
    },
    "ends": {"halt": halting.KL(0.1), "eos_token_id": list(range(0, 40, 5))},
}
VARIED = {"kl", "latent", "cosine", "stable", "entropy", "minp-kl"}


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return small_model(1)


@pytest.mark.parametrize("name", OPTIONS)
def test_each_row_alone(model, name):
    options: dict[str, Any] = PLAIN | OPTIONS[name]
    out = generate(model, PROMPTS, batch_size=3, in_flight=5, trace=True, **options)
    chosen = plans(model, len(PROMPTS), trace=True, **options)
    for row, prompt in enumerate(PROMPTS):
        one = generate_one(model, prompt, chosen[row], row)
        assert out.answers[row] == one.tokens
        assert out.steps[row].tolist() == one.steps
        assert out.stopped[row] == one.stopped
        assert out.costs[row].evaluations == one.cost.evaluations
        assert out.costs[row].flops == pytest.approx(one.cost.flops)
    if name in VARIED:  # rows did leave at different recurrences
        assert len(set(torch.cat(out.steps).tolist())) >= 4


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (4, 9), (64, 64)])
def test_any_number_of_rows_and_seats(model, sizes):
    options: dict[str, Any] = PLAIN | {"halt": halting.KL(0.1)}
    out = generate(model, PROMPTS, batch_size=sizes[0], in_flight=sizes[1], **options)
    same = generate(model, PROMPTS, batch_size=3, in_flight=5, **options)
    assert out.answers == same.answers
    assert all(torch.equal(a, b) for a, b in zip(out.steps, same.steps, strict=True))


def test_seats_are_reused_by_longer_and_shorter_texts(model):
    prompts = random_prompts([30, 1, 2, 20, 1, 15], seed=9)
    options: dict[str, Any] = PLAIN | {"halt": halting.LatentChange(0.3)}
    out = generate(model, prompts, batch_size=2, in_flight=2, **options)
    for row, prompt in enumerate(prompts):
        assert generate(model, [prompt], **options).answers[0] == out.answers[row]


def test_the_loop_stays_full_and_read_outs_come_in_batches(model):
    many = random_prompts([2] * 32, seed=3)

    def scripted(view: halting.DepthView) -> torch.Tensor:
        return view.step >= 1 + (3 * view.index + 5 * view.text) % 8

    options: dict[str, Any] = PLAIN | {"halt": scripted, "batch_size": 4}
    spare = generate(model, many, in_flight=8, **options)
    tight = generate(model, many, in_flight=4, **options)
    assert spare.meta["loop_fill"] > 0.95
    assert spare.meta["read_outs"] < 0.6 * tight.meta["read_outs"]
    decoding = sum(int(row[1:].sum()) for row in spare.steps)
    prompts = sum(int(row[0]) for row in spare.steps)
    assert spare.passes - prompts == round(decoding / 4 / spare.meta["loop_fill"])


def test_exits_save_passes_that_a_closed_batch_would_not(model):
    many = random_prompts([2] * 24, seed=4)
    options: dict[str, Any] = PLAIN | {"batch_size": 4, "in_flight": 6}
    generator = torch.Generator().manual_seed(0)
    depths = torch.randint(1, DEPTH + 1, (24, NEW), generator=generator)
    full = generate(model, many, **options)
    early = generate(model, many, halt=lambda v: v.step >= depths[v.text, v.index], **options)
    saved = 1 - early.cost.evaluations / full.cost.evaluations
    assert 1 - early.passes / full.passes > 0.93 * saved
    closed = sum(int(depths[i : i + 4].amax(0).sum()) for i in range(0, 24, 4))
    assert 1 - closed / (6 * NEW * DEPTH) < 0.5 * saved


def test_a_row_finishes_with_its_first_token(model):
    once: dict[str, Any] = PLAIN | {"max_new_tokens": 1}
    first = generate(model, PROMPTS, **once)
    assert [len(row) for row in first.answers] == [1] * 9
    longer = generate(model, PROMPTS, **PLAIN)
    assert [row[:1] for row in longer.answers] == first.answers


def test_the_benchmark_runs(monkeypatch, tmp_path):
    folder = Path(__file__).parents[3] / "benchmarks" / "huginn"
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "argv", ["batching.py"])
    huginn_batching = importlib.import_module("batching")

    small = "--prompts 6 --prompt 4 --new 4 --depth 6 --batch 2 --width 64 --vocab 64 --turns 1"
    row = huginn_batching.main([*small.split(), "--rows", str(tmp_path / "rows.jsonl")])
    assert 0.3 < row["saved_recurrences"] < 0.7 and 0 < row["limit"] < 1
    assert row["closed"] < 1 and (tmp_path / "rows.jsonl").read_text().count("\n") == 1
