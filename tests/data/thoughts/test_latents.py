"""Batches of thoughts: a function of the step, cut anywhere, with stages that begin where said."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inward.data.thoughts import prosqa
from inward.data.thoughts.curriculum import BlockLayout, Curriculum, Stages
from inward.data.thoughts.latents import LatentSource, scored, step_entropies
from inward.data.thoughts.patterns import (
    Cot,
    EntropySteps,
    NoCot,
    Pieces,
    Prefix,
    RandomSteps,
    Rhythm,
)
from inward.data.thoughts.records import Record
from inward.data.thoughts.segments import Latent, flat
from inward.data.thoughts.tokenizers import add_specials, byte_tokenizer, word_tokenizer
from inward.tasks.prosqa import ProsQATask

RECORDS = [
    Record(f"{letter}?", tuple(f"{letter}{i}" for i in range(n)), letter)
    for letter, n in zip("abcdefghij", (1, 2, 3, 4, 5, 6, 1, 2, 3, 4), strict=True)
]
COCONUT = Curriculum(Prefix(c=2, max_stage=3), stages=Stages((1, 2, 1), reset="stage"))


def bytes_with_specials():
    tokenizer = byte_tokenizer()
    add_specials(tokenizer, pause=True)
    return tokenizer


@pytest.fixture(scope="module")
def letters():
    return bytes_with_specials()


def source(letters, curriculum=COCONUT, **changes: Any) -> LatentSource:
    arguments: dict[str, Any] = {"records": RECORDS, "seed": 3} | changes
    records = arguments.pop("records")
    return LatentSource(records, letters, curriculum, **arguments)


def asked(letters, sample) -> str:
    """First letter of the question."""
    ids, _ = flat(sample, latent=0)
    return chr(ids[0])


def test_every_record_is_seen_once_an_epoch(letters):
    made = source(letters)
    assert made.steps_per_epoch(4) == 3
    seen = [
        [
            asked(letters, s)
            for step in range(e * 3, e * 3 + 3)
            for s in made.samples(step, range(4), 4)
        ]
        for e in (0, 1)
    ]
    for epoch in seen:
        assert sorted(epoch[:10]) == list("abcdefghij")
        assert epoch[10:] == epoch[:2]  # the last batch is filled up from the beginning
    assert seen[0] != seen[1]


def test_slices_make_up_the_batch_and_nothing_is_remembered(letters):
    mixed = Curriculum(RandomSteps(1), stages=Stages((1, 1), first=1, uniform_prob=0.5))
    made = source(letters, mixed)
    whole = [made.samples(step, range(6), 6) for step in range(7)]
    for step in (6, 0, 3):
        parts = [made.samples(step, range(a, a + 2), 6) for a in (4, 0, 2)]
        assert parts[1] + parts[2] + parts[0] == whole[step]
    again = source(letters, mixed)
    assert again.samples(5, range(6), 6) == whole[5]
    assert source(letters, mixed, seed=4).samples(5, range(6), 6) != whole[5]


def test_stages_begin_where_stage_steps_says(letters):
    made = source(letters)
    assert made.stage_steps(4) == {0: 0, 3: 1, 9: 2, 12: 3}
    for step in range(18):
        stage = max(s for start, s in made.stage_steps(4).items() if start <= step)
        assert made.stage(step, 4) == stage
        thoughts = {s.num_thoughts for s in made.samples(step, range(4), 4)}
        assert thoughts == {2 * stage}
    assert made.reset_steps(4, 18) == (3, 9, 12)
    assert made.reset_steps(4, 9) == (3,)
    every = Curriculum(Prefix(), stages=Stages((2,), reset="epoch"))
    assert source(letters, every).reset_steps(4, 8) == (3, 6)


def test_a_batch_is_what_collate_makes(letters):
    made = source(letters, learned_stop=True)
    batch = made.batch(4, range(4), 4)
    samples = made.samples(4, range(4), 4)
    assert set(batch) >= {
        "input_ids",
        "attention_mask",
        "position_ids",
        "labels",
        "latent",
        "weight",
    }
    assert batch["attention_mask"].sum(1).tolist() == [len(s) for s in samples]
    assert batch["latent"].sum(1).tolist() == [s.num_thoughts for s in samples]
    # learned_stop also teaches each thought to say "think on"
    assert batch["weight"].tolist() == [s.num_supervised + s.num_thoughts for s in samples]
    plain = source(letters).batch(4, range(4), 4)
    assert plain["weight"].tolist() == [s.num_supervised for s in samples]


def test_pairs_stay_together_and_are_rewritten_alike():
    task = ProsQATask("symbolic")
    pairs = prosqa.generate(8, seed=0, pairs=True)
    draws = np.random.default_rng(0)
    words = word_tokenizer(
        [task.rewrite(r, draws).question + "\n### 1" for r in prosqa.generate(40, seed=1)]
    )
    specials = add_specials(words)
    made = LatentSource(pairs, words, Curriculum(Prefix()), seed=0, rewrite=task.rewrite, group=2)
    seen = set()
    for step in range(6):
        rows = made.samples(step, range(4), 4)
        assert [made.samples(step, range(i, i + 1), 4)[0] for i in range(4)] == rows
        for one, two in ((rows[0], rows[1]), (rows[2], rows[3])):
            (a, learned), (b, _) = (flat(s, latent=specials.latent) for s in (one, two))
            question = learned.index(True)
            assert sum(x != y for x, y in zip(a[:question], b[:question], strict=True)) == 1
            assert a[-2] != b[-2]  # the answers
            seen |= {a, b}
    assert len(seen) == 24  # each visit is written anew
    with pytest.raises(ValueError, match="would cut groups of 2"):
        made.samples(0, range(3), 3)
    with pytest.raises(ValueError, match="do not divide into groups of 3"):
        LatentSource(pairs, words, Curriculum(Prefix()), seed=0, group=3)


def test_controls_differ_in_the_layout_alone(letters):
    pause = source(letters, Curriculum(COCONUT.pattern, BlockLayout("pause"), COCONUT.stages))
    for step in (0, 4, 13):
        for a, b in zip(
            source(letters).samples(step, range(4), 4),
            pause.samples(step, range(4), 4),
            strict=True,
        ):
            assert len(a) == len(b) and a.num_supervised == b.num_supervised
            assert b.num_thoughts == 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"records": []}, "no records"),
        ({"seed": -1}, "seed is -1"),
        ({"records": [Record("q", (), "a")]}, "has no steps"),
        ({"records": [Record("q <|latent|>", ("s",), "a")]}, "a special token"),
        ({"max_positions": 20}, r"record \d at stage 0: .* the context holds 20"),
    ],
)
def test_bad_input_is_refused_before_training(letters, changes, message):
    with pytest.raises(ValueError, match=message):
        source(letters, **changes)


def test_thoughts_that_do_not_fit_are_found_before_training(letters):
    long = Curriculum(Prefix(c=40, max_stage=3), stages=Stages((1, 1, 1)))
    with pytest.raises(ValueError, match=r"at stage 2: .* 80 of them thoughts"):
        source(letters, long, max_positions=90)


def test_bad_rows(letters):
    made = source(letters)
    for step, rows in ((-1, range(2)), (0, range(3, 5))):
        with pytest.raises(ValueError, match="rows below 4"):
            made.samples(step, rows, 4)
    with pytest.raises(ValueError, match="lacks"):
        LatentSource(RECORDS, byte_tokenizer(), COCONUT, seed=0)


def test_no_cot_needs_no_steps(letters):
    made = source(letters, Curriculum(NoCot()), records=[Record("q", (), "a")])
    assert made.samples(0, range(1), 1)[0].num_thoughts == 0


def test_describe_is_json(letters):
    for curriculum in (COCONUT, Curriculum(Rhythm(), BlockLayout(boundaries="supervised"))):
        told = source(letters, curriculum).describe()
        assert json.loads(json.dumps(told))["pattern"] == type(curriculum.pattern).__name__


def test_entropies_are_those_of_each_token(letters):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # peaked, so that steps differ
    pieces = Pieces((5, 6), ((7, 8, 9), (10,)), (11,))
    found = step_entropies(model, pieces)
    by_hand = []
    with torch.no_grad():
        for end in range(2, 6):  # token by token, nothing shared
            p = model(torch.tensor([[5, 6, 7, 8, 9, 10][:end]])).logits[0, -1].softmax(-1)
            by_hand.append(float(-(p * p.clamp_min(1e-30).log()).sum()))
    assert found == pytest.approx((np.mean(by_hand[:3]), by_hand[3]), abs=1e-4)
    assert step_entropies(model, Pieces((5,), (), (1,))) == ()

    marked = scored(RECORDS[:4], model, letters)
    assert [len(r.meta["scores"]) for r in marked] == [1, 2, 3, 4]
    chosen = Curriculum(EntropySteps(1), stages=Stages(first=1))
    for sample in source(letters, chosen, records=marked).samples(0, range(4), 4):
        assert sample.blocks == (1,)
    with pytest.raises(ValueError, match="step_entropies"):
        source(letters, chosen)


def test_rhythm_interleaves_in_the_batch(letters):
    made = source(letters, Curriculum(Rhythm(2), stages=Stages(first=9)), records=RECORDS[:6])
    blocks = {asked(letters, s): s.blocks for s in made.samples(0, range(6), 6)}
    assert blocks == {
        "a": (2, 2)[:1],
        "b": (2, 2),
        "c": (2, 2),
        "d": (2, 2, 2),
        "e": (2, 2, 2),
        "f": (2, 2, 2, 2),
    }
    sample = source(letters, Curriculum(Cot())).samples(0, range(1), 1)[0]
    assert not any(isinstance(segment, Latent) for segment in sample.segments)
