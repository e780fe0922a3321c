"""Exit rules of language models: each against its formula, and what can never fire is refused."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inward.common import halting
from inward.common.halting import DepthView, Seen

V = 7


def view(
    logits: torch.Tensor,
    *,
    seen: Seen | None = None,
    step: int = 1,
    state: torch.Tensor | None = None,
    before: torch.Tensor | None = None,
    counts: torch.Tensor | None = None,
) -> DepthView:
    """All rows of one recurrence, with these logits."""
    num = len(logits)
    state = torch.ones(num, 1, 4) if state is None else state
    return DepthView(
        step=torch.full((num,), step),
        index=torch.zeros(num, dtype=torch.int64),
        text=torch.arange(num),
        state=state,
        before=torch.zeros_like(state) if before is None else before,
        read_out=lambda: logits,
        seen=Seen(num, V) if seen is None else seen,
        rows=torch.arange(num),
        counts=counts,
    )


def fires(rule: halting.Rule, *looks: torch.Tensor) -> list[list[bool]]:
    """What the rule says after each of these outputs (B, V) in turn."""
    seen, found = Seen(len(looks[0]), V), []
    for step, logits in enumerate(looks, start=1):
        now = view(logits, seen=seen, step=step)
        found.append(halting.verdict(rule, now).tolist())
        seen.update(now)
    return found


def random_logits(seed: int, num: int = 3) -> torch.Tensor:
    return 3 * torch.randn(num, V, generator=torch.Generator().manual_seed(seed))


def entropy(logits: torch.Tensor) -> torch.Tensor:
    p = logits.double().softmax(-1)
    return -(p * p.log()).sum(-1)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum(-1)


def test_entropy_change_fires_from_its_threshold_on_and_never_at_the_first_look():
    a, b = random_logits(0), random_logits(1)
    moved = (entropy(a) - entropy(b)).abs()
    for share in (0.99, 1.01):
        got = fires(halting.EntropyChange(float(moved[1]) * share), a, b)
        assert got == [[False] * 3, (moved < moved[1] * share).tolist()]
    assert fires(halting.EntropyChange(1e9), a) == [[False] * 3]


def test_kl_is_from_the_earlier_output_to_the_later_and_starts_from_uniform():
    a, b = random_logits(2), random_logits(3)
    pa, pb = a.double().softmax(-1), b.double().softmax(-1)
    first, second = kl(torch.full_like(pa, 1 / V), pa), kl(pa, pb)
    for value in (*first.tolist(), *second.tolist()):
        got = fires(halting.KL(value * 1.001), a, b)
        assert got == [(first < value * 1.001).tolist(), (second < value * 1.001).tolist()]
    assert not torch.allclose(second, kl(pb, pa), rtol=0.1)  # the direction shows


def test_minp_kl_does_not_see_what_happens_in_the_tail():
    a = torch.tensor([[5.0, 4.0, 0.0, -1.0, -2.0, -3.0, -4.0]])
    tail = torch.tensor([[5.0, 4.0, -4.0, -3.0, 0.0, -1.0, -2.0]])  # the same p, permuted
    assert fires(halting.MinPKL(1e-6), a, tail)[1] == [True]
    assert fires(halting.KL(1e-2), a, tail)[1] == [False]
    floored = torch.tensor([[math.exp(5), math.exp(4)]])
    p = floored / a.exp().sum()
    p = torch.cat([p, torch.full((1, V - 2), 1 / V)], 1)
    p = p / p.sum()
    value = float(kl(torch.full((1, V), 1 / V), p))
    assert fires(halting.MinPKL(value * 1.001), a) == [[True]]
    assert fires(halting.MinPKL(value * 0.999), a) == [[False]]


def test_latent_rules_divide_by_the_new_state_and_average_over_the_tokens_that_count():
    g = torch.Generator().manual_seed(4)
    new, old = torch.randn(2, 3, 5, generator=g), torch.randn(2, 3, 5, generator=g)
    counts = torch.tensor([[True, True, True], [False, True, True]])
    for kept in (None, counts):
        weight = torch.ones(2, 3) if kept is None else kept.float()
        now = view(torch.zeros(2, V), state=new, before=old, counts=kept)
        for rule, of_token in (
            (halting.LatentChange, (new - old).norm(dim=-1) / new.norm(dim=-1)),
            (
                halting.Cosine,
                1 - (new * old).sum(-1) / (new.norm(dim=-1) * old.norm(dim=-1)),
            ),
        ):
            mean = (of_token * weight).sum(1) / weight.sum(1)
            found = now.change if rule is halting.LatentChange else now.turn
            torch.testing.assert_close(found, mean)
            between = float(mean.mean())
            assert rule(between)(now).tolist() == (mean < between).tolist()
            assert (mean < between).any() and not (mean < between).all()
    assert not now.was_read


def test_a_zero_state_is_a_change_of_one_and_a_turn_of_one():
    now = view(torch.zeros(2, V), state=torch.randn(2, 1, 4), before=torch.zeros(2, 1, 4))
    assert torch.allclose(now.change, torch.ones(2)) and torch.allclose(now.turn, torch.ones(2))


def one_hot(*tokens: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), V).float()


def test_argmax_stability_counts_repeats_row_by_row():
    looks = [one_hot(1, 1), one_hot(1, 2), one_hot(1, 2), one_hot(3, 2), one_hot(3, 2)]
    got = fires(halting.ArgmaxStable(2), *looks)
    assert got == [
        [False, False],
        [False, False],  # row 0 held once
        [True, False],
        [False, True],
        [False, True],
    ]


def test_recurrences_and_combinations():
    rule = halting.AnyOf(
        halting.Recurrences(3), halting.AllOf(halting.Recurrences(2), halting.KL(1e-9))
    )
    same = one_hot(2)
    assert fires(rule, same, same, same) == [[False], [True], [True]]
    assert fires(halting.AnyOf(halting.Recurrences(2), halting.Never()), same, same) == [
        [False],
        [True],
    ]


def test_a_row_that_begins_another_token_remembers_nothing():
    seen = Seen(2, V)
    for _ in range(3):
        seen.update(read(view(one_hot(1, 2), seen=seen)))
    assert seen.stable_for.tolist() == [2, 2] and seen.looks.tolist() == [3, 3]
    seen.forget(torch.tensor([1]))
    assert seen.stable_for.tolist() == [2, 0] and seen.looks.tolist() == [3, 0]
    assert seen.top.tolist() == [1, -1]
    assert bool((seen.logits[1] == 0).all()) and seen.logits[0].tolist() == one_hot(1)[0].tolist()


def read(now: DepthView) -> DepthView:
    _ = now.logits
    return now


def test_rules_speak_of_their_rows_wherever_these_stand():
    """Rows 3 and 1 of a memory of five: what the others saw does not matter."""
    seen = Seen(5, V)
    seen.logits[:] = random_logits(5, 5)
    seen.top[:] = seen.logits.argmax(-1)
    seen.looks[:] = 1
    rows = torch.tensor([3, 1])
    logits = seen.logits[rows].clone()
    logits[1] = -logits[1]
    state = torch.ones(2, 1, 4)
    now = DepthView(rows, rows, rows, state, state, lambda: logits, seen, rows)
    assert halting.KL(1e-6)(now).tolist() == [True, False]
    before = seen.logits.clone()
    seen.update(now)
    assert torch.equal(seen.logits[rows], logits) and seen.looks.tolist() == [1, 2, 1, 2, 1]
    untouched = torch.tensor([0, 2, 4])
    assert torch.equal(seen.logits[untouched], before[untouched])


def test_the_read_out_runs_once_and_only_when_asked():
    calls = []

    def read_out() -> torch.Tensor:
        calls.append(1)
        return one_hot(1)

    state, rows = torch.ones(1, 1, 4), torch.zeros(1, dtype=torch.int64)
    seen = Seen(1, V)
    now = DepthView(rows, rows, rows, state, state, read_out, seen, rows)
    halting.AllOf(halting.LatentChange(), halting.Cosine())(now)
    seen.update(now)
    assert not calls and seen.looks.tolist() == [0]
    halting.AllOf(halting.KL(), halting.ArgmaxStable())(now)
    seen.update(now)
    assert len(calls) == 1 and seen.looks.tolist() == [1]


@given(st.integers(0, 2**31), st.floats(-50, 50))
def test_rules_on_the_output_do_not_see_a_constant_added_to_all_logits(seed: int, shift: float):
    a, b = random_logits(seed), random_logits(seed + 1)
    for value in (0.01, 0.3, 3.0):
        for rule in (halting.EntropyChange(value), halting.KL(value), halting.MinPKL(value)):
            plain = fires(rule, a, b)
            moved = fires(rule, a + shift, b - shift)
            if plain != moved:  # only at a margin of rounding
                near = [fires(type(rule)(value * (1 + e)), a, b) for e in (-1e-3, 1e-3)]
                assert near[0] != near[1]


def test_names():
    for name in halting.NAMED_DEPTH:
        assert halting.depth_rule(name, max_steps=32) is halting.NAMED_DEPTH[name]
    assert halting.NAMED_DEPTH["kl"] == halting.KL(5e-4)
    assert halting.NAMED_DEPTH["latent"] == halting.LatentChange(0.03)

    def mine(seen: DepthView) -> torch.Tensor:
        return seen.step >= 2

    assert halting.depth_rule(mine, max_steps=4) is mine


def any_of(value: Any) -> Any:
    """Of a type that the checker would not let pass."""
    return value


BAD: list[tuple[Any, str]] = [
    (lambda: halting.EntropyChange(0.0), "EntropyChange: threshold 0.0 can never fire"),
    (lambda: halting.KL(-1e-3), "KL: threshold -0.001 can never fire"),
    (lambda: halting.KL(math.nan), "can never fire"),
    (lambda: halting.MinPKL(math.inf), "always fires"),
    (lambda: halting.MinPKL(1e-5, min_p=1.0), "min_p is 1.0"),
    (lambda: halting.Cosine(0.0), "can never fire"),
    (lambda: halting.Recurrences(0), "at least 1"),
    (lambda: halting.depth_rule("klx", max_steps=4), "no halting rule 'klx'.*minp-kl"),
    (lambda: halting.depth_rule(any_of(3), max_steps=4), "halt is 3"),
    (lambda: halting.depth_rule("kl", max_steps=0), "max_steps is 0"),
    (lambda: halting.depth_rule("kl", max_steps=4, min_steps=0), "min_steps is 0"),
    (lambda: halting.depth_rule("kl", max_steps=4, min_steps=5), "min_steps 5 exceeds"),
    (lambda: halting.depth_rule("kl", max_steps=4, every=0), "every is 0"),
    (lambda: halting.depth_rule("stable", max_steps=5), "can never fire before the budget of 5"),
    (lambda: halting.depth_rule("stable", max_steps=12, every=3), "can never fire"),
    (lambda: halting.depth_rule("entropy", max_steps=8, every=7), "able to at 8"),
    (lambda: halting.depth_rule(halting.Recurrences(9), max_steps=8), "can never fire"),
    (lambda: halting.depth_rule("kl", max_steps=8, min_steps=8), "can never fire"),
    (
        lambda: halting.depth_rule(
            halting.AllOf(halting.KL(), halting.ArgmaxStable(8)), max_steps=8
        ),
        "can never fire",
    ),
    (
        lambda: halting.depth_rule(halting.AllOf(halting.Never(), halting.KL()), max_steps=8),
        "can never fire",
    ),
    (lambda: halting.depth_rule(halting.QHalt(), max_steps=8), "halting head"),
    (
        lambda: halting.depth_rule(halting.AnyOf(halting.KL(), halting.QHalt()), max_steps=8),
        "halting head",
    ),
    (lambda: halting.verdict(any_of(lambda _: True), view(one_hot(1))), "returned bool"),
    (lambda: halting.verdict(lambda v: v.change, view(one_hot(1))), "expected a boolean tensor"),
    (lambda: halting.verdict(lambda v: v.logits > 0, view(one_hot(1))), r"\(1, 7\)"),
]


@pytest.mark.parametrize("act, message", BAD)
def test_bad_rules_are_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_a_rule_is_asked_at_its_stride_and_refused_by_the_recurrence_it_could_first_fire_at():
    """Asked at 1, 5, 9, ...: what waits for recurrence 6 is first asked at 9."""
    six = halting.Recurrences(6)
    with pytest.raises(ValueError, match=r"able to at 9 \(min_steps 1, asked every 4\)"):
        halting.depth_rule(six, max_steps=9, every=4)
    assert halting.depth_rule(six, max_steps=10, every=4) is six
    # a recurrence at which it is asked is waited for no longer; nor is the first, where it is later
    five, two = halting.Recurrences(5), halting.Recurrences(2)
    assert halting.depth_rule(five, max_steps=6, every=4) is five
    assert halting.depth_rule(two, max_steps=4, min_steps=3) is two
    with pytest.raises(ValueError, match="able to at 3"):
        halting.depth_rule(two, max_steps=3, min_steps=3)


def test_what_can_fire_just_in_time_is_accepted():
    halting.depth_rule("stable", max_steps=7)
    halting.depth_rule("stable", max_steps=17, every=3)
    halting.depth_rule(halting.Recurrences(8), max_steps=8)
    halting.depth_rule(halting.AnyOf(halting.KL(), halting.ArgmaxStable(99)), max_steps=8)
    halting.depth_rule("never", max_steps=1)
