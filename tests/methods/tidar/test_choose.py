"""The chooser believes what was measured, and nothing else."""

import json
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inward.common.bases import cache_of
from inward.methods.tidar.adapter import DraftAdapter
from inward.methods.tidar.batch import Runner
from inward.methods.tidar.choose import Chooser, candidates, speed
from inward.methods.tidar.decode import decode
from inward.methods.tidar.decoder import Decoder
from inward.methods.tidar.measure import around, measure
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.schemes import Acceptance, Costs, Scheme
from tests.methods.tidar.toys import MASK, Leaning, drafts, llama, prompts, stories

FLAT = Costs((1, 400), (1.0, 1.0))
STEEP = Costs((1, 2), (1.0, 2.0))
CLIFF = Costs((1, 2, 16, 72), (1.0, 2.0, 2.4, 6.4))  # float32 on a CPU


def knowing(rate: float, num: int = 15) -> Acceptance:
    found = Acceptance(weight=1e9, prior=rate)
    assert found.rate(num) == rate
    return found


# --- acceptance -----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 7), max_size=60), st.integers(1, 12))
def test_counts_are_a_distribution(accepted, num_guesses):
    acceptance = Acceptance()
    for number in accepted:
        acceptance.add(7, number)
    counts = acceptance.counts(num_guesses)
    assert len(counts) == num_guesses + 1
    assert min(counts) >= 0
    assert sum(counts) == pytest.approx(1)
    assert sum(acceptance.histogram.values()) == len(accepted)


def test_rates_are_learned_and_forgotten():
    acceptance = Acceptance(memory=50)
    generator = torch.Generator().manual_seed(0)

    def live(rates: list[float], num: int) -> None:
        for _ in range(num):
            draws = torch.rand(len(rates), generator=generator).tolist()
            stood = [draw < rate for draw, rate in zip(draws, rates, strict=True)]
            acceptance.add(len(rates), [*stood, False].index(False))

    live([0.9, 0.5, 0.8], 600)
    assert [acceptance.rate(i) for i in range(3)] == pytest.approx([0.9, 0.5, 0.8], abs=0.15)
    assert acceptance.rate(9) == acceptance.rate(2)
    live([0.1, 0.5, 0.5], 200)
    assert acceptance.rate(0) < 0.25


def test_likeliest_outcomes():
    acceptance = Acceptance(weight=1e-9)
    for accepted in [3] * 6 + [0] * 3 + [1] * 1:
        acceptance.add(3, accepted)
    assert acceptance.likeliest(3, 1) == (3,)
    assert acceptance.likeliest(3, 2) == (0, 3)
    assert acceptance.likeliest(3, 9) == (0, 1, 2, 3)
    assert Scheme("partial", 4, 2).outcomes(3, acceptance) == (0, 3)
    assert Scheme("partial", 4, 2).outcomes(0, acceptance) == (0,)
    assert Scheme("two_pass", 4).outcomes(3, acceptance) == ()
    assert Scheme("two_pass", 4).outcomes(0, acceptance) == (0,)
    assert Scheme("one_pass", 4).outcomes(3, acceptance) == (0, 1, 2, 3)
    assert Scheme("plain", 4).outcomes(0, acceptance) == ()


# --- costs ----------------------------------------------------------------------------------------


def test_costs_lie_on_straight_lines():
    costs = Costs((1, 3, 11), (2.0, 4.0, 5.0), "here", 4, Costs((1, 2), (1.0, 1.5)))
    assert costs.without_masks(2) == 1.5 and STEEP.without_masks(2) == STEEP(2) == 2.0
    assert [costs(q) for q in (1, 2, 3, 7, 11, 19)] == pytest.approx([2, 3, 4, 4.5, 5, 6])
    assert Costs.from_dict(json.loads(json.dumps(costs.to_dict()))) == costs


@pytest.mark.parametrize(
    "rows, seconds", [((1,), (1.0,)), ((2, 1), (1.0, 1.0)), ((1, 2), (0.0, 1.0))]
)
def test_costs_that_make_no_sense_are_refused(rows, seconds):
    with pytest.raises(ValueError, match="ascending row counts with positive seconds"):
        Costs(rows, seconds)


def test_measured_costs_are_of_forwards():
    runner = Runner(llama())
    widths = []
    runner.lm.model.register_forward_pre_hook(
        lambda m, x, o: widths.append(o["input_ids"].shape), with_kwargs=True
    )
    costs = measure(runner, num_texts=2, num_cached=10, rows=(1, 5, 9), repeats=3)
    assert costs.rows == (1, 5, 9)
    assert min(costs.seconds) > 0
    assert "2 texts of 10 tokens, torch.float32" in costs.note
    assert widths == [(2, 10)] + [(2, 1), (2, 5), (2, 9)] * 4


# --- the formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme", [Scheme("two_pass", 5), Scheme("partial", 5, 1), Scheme("partial", 5, 2)], ids=str
)
def test_speed_is_that_of_a_simulated_run(scheme):
    acceptance, generator = knowing(0.6), torch.Generator().manual_seed(1)
    tokens, seconds, ready = 0, 0.0, False
    for _ in range(20_000):
        if not ready:
            tokens, seconds, ready = tokens + 1, seconds + CLIFF(1 + 5), True
            continue
        stood = (torch.rand(4, generator=generator) < 0.6).tolist()
        accepted = [*stood, False].index(False)
        prepared = scheme.outcomes(4, acceptance)
        tokens, seconds = tokens + accepted + 1, seconds + CLIFF(5 + 5 * len(prepared))
        ready = accepted in prepared
    assert speed(scheme, CLIFF, acceptance) == pytest.approx(tokens / seconds, rel=0.03)


@pytest.mark.parametrize("scheme", [Scheme("two_pass", 5), Scheme("partial", 5, 2)], ids=str)
def test_texts_that_share_forwards_wait_for_each_other(scheme):
    """A forward is as wide as the widest of its texts."""
    acceptance, generator = knowing(0.6), torch.Generator().manual_seed(1)
    costs = Costs(CLIFF.rows, CLIFF.seconds, num_texts=6)
    tokens, seconds, ready = 0, 0.0, [False] * 6
    for _ in range(5_000):
        prepared = scheme.outcomes(4, acceptance)
        seconds += costs(max(5 + 5 * len(prepared) if r else 1 + 5 for r in ready))
        for b, is_ready in enumerate(ready):
            stood = (torch.rand(4, generator=generator) < 0.6).tolist()
            accepted = [*stood, False].index(False) if is_ready else 0
            tokens += accepted + 1
            ready[b] = accepted in prepared if is_ready else True
    assert speed(scheme, costs, acceptance) == pytest.approx(tokens / 6 / seconds, rel=0.03)


def test_speed_where_it_is_known():
    assert speed(Scheme("plain", 1), CLIFF, knowing(0.5)) == 1.0
    assert speed(Scheme("one_pass", 4), FLAT, knowing(1.0)) == pytest.approx(4.0)
    assert speed(Scheme("two_pass", 4), FLAT, knowing(1.0)) == pytest.approx(2.5)
    assert speed(Scheme("one_pass", 4), FLAT, knowing(0.0)) == pytest.approx(1.0)


def best(costs: Costs, rate: float) -> Scheme:
    return max(candidates(8), key=lambda scheme: speed(scheme, costs, knowing(rate)))


def test_the_choice_follows_the_costs():
    assert best(FLAT, 0.8) == Scheme("one_pass", 8), "rows are free: the paper's scheme"
    assert best(STEEP, 0.9).name == "plain", "every row costs as much as the first"
    assert best(CLIFF, 0.05).name == "plain", "drafts that fall are not worth a forward"
    assert best(CLIFF, 0.95).name in ("two_pass", "partial")
    assert best(CLIFF, 0.95).K == 8
    assert (
        speed(Scheme("one_pass", 8), CLIFF, knowing(0.8))
        < 1.0
        < speed(best(CLIFF, 0.8), CLIFF, knowing(0.8))
    )


def test_a_chooser_gives_up_on_bad_drafts_and_tries_again():
    chooser = Chooser(CLIFF, 8, every=4, explore=16)
    names = []
    for _ in range(120):
        scheme = chooser()
        names.append(scheme.name)
        if scheme.name != "plain":
            chooser.acceptance.add(scheme.K - 1, 0)
    assert names[0] != "plain"
    late = names[60:]
    assert late.count("plain") > 0.8 * len(late)
    assert "two_pass" in late
    assert sum(chooser.picked.values()) == 120
    tried = [i for i, name in enumerate(names) if name != "plain"]
    gaps = [b - a for a, b in pairwise(tried) if b - a > 1]
    assert gaps == [16, 32, 64], "twice as long after a try in vain"


def test_rows_with_and_without_masks_are_timed_apart():
    base = llama()
    model = TiDAR(base, MASK + 1, 4, adapter=DraftAdapter(base)).eval()
    runner, acted = Runner(model), []
    whole = DraftAdapter.acting_on
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            DraftAdapter, "acting_on", lambda self, r: acted.append(int(r.sum())) or whole(self, r)
        )
        costs = measure(runner, num_cached=10, rows=(1, 5, 30), repeats=1)
    assert costs.clean is not None and costs.clean.rows == (1, 5) and costs.rows == (1, 5, 30)
    assert acted == [4, 29] * 2, "once to warm up, once measured"
    assert costs.without_masks(5) == costs.clean(5)


def test_a_verification_without_blocks_costs_what_clean_rows_do():
    free = Costs((1, 400), (1.0, 1.0))
    dear = Costs((1, 400), (3.0, 3.0), clean=free)
    for rate in (0.2, 0.9):
        tokens = speed(Scheme("two_pass", 4), FLAT, knowing(rate)) * 2
        assert speed(Scheme("two_pass", 4), dear, knowing(rate)) == pytest.approx(tokens / 4)
    assert speed(Scheme("plain", 1), dear, knowing(0.5)) == 1.0
    assert speed(Scheme("one_pass", 4), dear, knowing(1.0)) == pytest.approx(4 / 3)


def test_what_a_step_takes_outside_its_forward_counts():
    """Python is slept in, by turns before forwards with drafts and all forwards."""
    tidar = TiDAR(llama(), MASK, 4).eval()
    runner = Runner(tidar)
    costs = measure(runner, num_texts=2, num_cached=10, rows=(1, 5, 9, 15), repeats=3)
    assert costs.around == (0.0, 0.0)
    for pauses in ((0.03, 0.03), (0.0, 0.03)):
        with pytest.MonkeyPatch.context() as patch:
            usual = Decoder._plan

            def plan(self, row, pauses=pauses, usual=usual):
                time.sleep(pauses[self.scheme.name != "plain"] / 2)  # two texts
                return usual(self, row)

            patch.setattr(Decoder, "_plan", plan)
            found = around(runner, costs, num_cached=10)
        assert found[1] >= 0.02
        assert (found[0] >= 0.02) == (pauses[0] > 0)
    dear = replace(costs, around=(0.5, 2.0))
    assert speed(Scheme("plain", 1), dear, knowing(1.0)) == 1 / (costs.without_masks(1) + 0.5)
    seconds = 3 / speed(Scheme("two_pass", 2), dear, knowing(1.0))
    assert seconds == pytest.approx(costs(3) + costs.without_masks(2) + 4.0)
    assert Costs.from_dict(json.loads(json.dumps(dear.to_dict()))) == dear
    with pytest.raises(ValueError, match="below 0"):
        replace(costs, around=(-1.0, 0.0))


def test_texts_of_a_measured_batch_have_different_lengths():
    runner, lengths = Runner(llama()), []
    runner.lm.model.register_forward_pre_hook(
        lambda m, x, o: lengths.append(list(cache_of(o).book.lengths)), with_kwargs=True
    )
    costs = measure(runner, num_texts=3, num_cached=10, rows=(1, 5), repeats=1)
    assert costs.num_texts == 3
    assert lengths[0] == [0, 0, 0] and set(map(tuple, lengths[1:])) == {(10, 9, 8)}


def test_auto_drafts_where_drafts_are_good_and_says_the_same():
    model, ids = llama(Leaning), prompts(1, 5)
    options: dict[str, Any] = {"mask_id": MASK, "max_new_tokens": 50}
    plain = decode(model, ids, scheme="plain", **options)
    options["K"] = 4
    flat = decode(model, ids, scheme="auto", costs=FLAT, **options)
    steep = decode(model, ids, scheme="auto", costs=STEEP, **options)
    assert plain.tokens == flat.tokens == steep.tokens
    assert flat.num_forwards < 35
    assert max(flat.picked, key=lambda name: flat.picked[name]) == "one_pass K=4"
    assert steep.num_forwards > 40


def test_look_ups_are_judged_where_they_are_worth_it():
    model, ids = llama(Leaning), prompts(1, 5)
    options: dict[str, Any] = {"mask_id": MASK, "max_new_tokens": 40}
    plain = decode(model, ids, scheme="plain", **options)
    options["K"] = 6

    def oracle(tokens, num):
        return plain.tokens[0][len(tokens) - 5 :][:num]

    def liar(tokens, num):
        return [(token + 1) % MASK for token in oracle(tokens, num)]

    for costs, drafter, least, most in (
        (FLAT, oracle, 7, 14),  # up to six tokens a forward
        (STEEP, oracle, 35, 40),  # but for the forwards that explore
        (CLIFF, oracle, 7, 12),
        (CLIFF, liar, 25, 60),
    ):
        found = decode(model, ids, scheme="auto", costs=costs, drafter=drafter, **options)
        assert found.tokens == plain.tokens
        assert least <= found.num_forwards <= most, (costs, drafter)
        lies = sum(step.scores["accepted"] == 0 for step in found.traces[0].steps)
        assert drafter is oracle or lies < 40


def test_a_chooser_that_is_kept_remembers():
    model = llama()
    options: dict[str, Any] = {"mask_id": MASK, "K": 4, "max_new_tokens": 40}
    chooser = Chooser(CLIFF, 4)
    first = decode(model, prompts(1, 5), scheme="auto", chooser=chooser, **options)
    learned = sum(chooser.acceptance.histogram.values())
    assert learned > 0
    assert chooser.acceptance.rate(0) < 0.5
    second = decode(model, prompts(1, 6), scheme="auto", chooser=chooser, **options)
    assert sum(chooser.picked.values()) == first.num_forwards + second.num_forwards
    drafted = [drafts(trace) for trace in (first.traces[0], second.traces[0])]
    assert sum(map(bool, drafted[1])) < sum(map(bool, drafted[0])), "drafts that never stood"


def test_auto_measures_when_it_is_told_nothing():
    found = decode(llama(), prompts(1, 5), mask_id=MASK, scheme="auto", K=3, max_new_tokens=10)
    assert len(found.tokens[0]) == 10
    assert sum(found.picked.values()) == found.num_forwards


@pytest.mark.parametrize("wrong", [{"K": 0}, {"name": "fast"}, {"num_blocks": 0}])
def test_wrong_schemes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "name" not in wrong else "scheme is"):
        Scheme(**wrong)


def test_the_benchmark_writes_rows(tmp_path, capsys):
    from benchmarks.tidar.decode import main

    stories()
    threads = torch.get_num_threads()
    rows = tmp_path / "rows.jsonl"
    common = ["--rows", str(rows), "--K", "3", "--tokens", "8"]
    main(["identity", *common, "--texts", "3", "--schemes", "two_pass", "partial"])
    main(["costs", *common, "--cached", "20"])
    main(["speed", *common, "--rounds", "2", "--schemes", "one_pass"])
    with pytest.raises(ValueError, match=r"'poems'.*there are prompts of"):
        main(["speed", *common, "--kinds", "poems"])
    torch.set_num_threads(threads)
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    identical = [row["different_texts"] for row in written if row["study"] == "identity"]
    assert identical == [0, 0]
    fast = {row["contender"]: row for row in written if row["study"] == "speed"}
    assert {"plain", "transformers plain", "one_pass", "look-up", "auto"} < set(fast)
    assert all(row["different_texts"] == 0 for row in fast.values())
    assert all(len(row["rate"]) == 3 and row["command"] for row in fast.values())
    assert sum(fast["auto"]["picked"].values()) > 0
    assert capsys.readouterr().out.count("\n") >= len(written)
