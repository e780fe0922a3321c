"""Plain decoding of models whose rows cannot share a forward: each text alone, exact."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

import inward
from inward.common.costs import forward_cost
from inward.common.sampling import Sampling
from inward.common.thinking import Request
from inward.hub import shipped
from inward.methods.tidar import alone
from inward.methods.tidar.door import PLAIN
from inward.studies.bases_tiny import tiny

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [30, 31, 32, 33, 34]]


def bare(kind: str):
    model = tiny(kind)
    model.generation_config.eos_token_id = None
    return model


@torch.no_grad()
def said_alone(model, prompt, num):
    """The likeliest tokens by whole forwards without a cache."""
    tokens = list(prompt)
    for _ in range(num):
        ids = torch.tensor([tokens])
        tokens.append(int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(
    ("kind", "cached"),
    [("mamba", True), ("rwkv", True), ("bloom", True), ("jamba", True), ("recurrent_gemma", False)],
)
def test_a_model_that_cannot_share_is_asked_all_the_same(kind, cached):
    model = bare(kind)
    work = PLAIN.begin(model)
    first = work.add(Request(prompt=PROMPTS[0], max_new_tokens=9))
    for _ in range(3):
        work.step()
    others = [work.add(Request(prompt=p, max_new_tokens=12)) for p in PROMPTS[1:]]
    gone = work.add(Request(prompt=PROMPTS[1], max_new_tokens=12))
    work.step()
    work.cancel(gone)
    while work.busy:
        work.step()
    assert list(work.result(first).tokens) == said_alone(model, PROMPTS[0], 9)
    for number, prompt in zip(others, PROMPTS[1:], strict=True):
        assert list(work.result(number).tokens) == said_alone(model, prompt, 12)
    assert work.result(gone).stopped == "cancelled"
    assert alone.why_alone(model)
    assert alone._GOES_ON[model] == cached


def test_draws_are_those_of_a_text_alone_and_costs_count_what_is_read_again():
    for kind in ("mamba", "recurrent_gemma"):
        model = bare(kind)
        drawn = Sampling(temperature=1.0, seed=3)
        together, single = PLAIN.begin(model), PLAIN.begin(model)
        numbers = [
            together.add(Request(prompt=p, max_new_tokens=8, sampling=drawn)) for p in PROMPTS
        ]
        while together.busy:
            together.step()
        costs = []
        for number, prompt in zip(numbers, PROMPTS, strict=True):
            own = single.add(Request(prompt=prompt, max_new_tokens=8, sampling=drawn))
            while single.busy:
                single.step()
            answer, want = together.result(number), single.result(own)
            assert answer.tokens == want.tokens
            assert answer.cost.forwards == 8
            costs.append(answer.cost.flops)
        lengths = range(7, 15)  # of the first text: read whole each time, or each token once
        if kind == "recurrent_gemma":
            steps = [forward_cost(model, rows=n, past=0, reads=n) for n in lengths]
        else:
            steps = [forward_cost(model, rows=7, past=0, reads=7)]
            steps += [forward_cost(model, rows=1, past=n - 1, reads=1) for n in lengths[1:]]
        assert costs[0] == sum(step.flops for step in steps)


def test_a_drafter_is_refused_with_what_it_is_about_the_model():
    work = PLAIN.begin(bare("mamba"))
    with pytest.raises(ValueError, match=r"drafter.*keeps its past in .*ask without one"):
        work.add(Request(prompt=[1, 2, 3], own={"drafter": lambda tokens, num: [1]}))


def test_a_folder_of_such_a_model_is_asked_and_streams(tmp_path):
    model = bare("mamba")
    tokenizer = AutoTokenizer.from_pretrained(shipped()["stories-draft"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    thinker = inward.open(tmp_path)
    answer = thinker.ask("Once upon a time", max_new_tokens=6)
    assert answer.stopped in ("length", "end")
    events = thinker.stream("Once upon a time", max_new_tokens=6)
    assert "".join(e.text for e in events if e.kind == "word") == answer.text
