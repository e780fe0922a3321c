"""Patterns, layouts and stages: published settings step by step, and what must hold for all."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.data.thoughts.curriculum import BlockLayout, Curriculum, Stages, arrange
from inward.data.thoughts.patterns import (
    Cot,
    EntropySteps,
    Fixed,
    HiddenTokens,
    Mixture,
    NextOnly,
    NoCot,
    Pieces,
    Prefix,
    RandomSteps,
    Rhythm,
    Say,
    Script,
    Speak,
    Think,
    Turns,
    alternate,
)
from inward.data.thoughts.segments import Latent, Sample, Specials, Text, flat

S = Specials(bot=90, eot=91, latent=92)
PAUSE = 93


def pieces(num: int, scores: tuple[float, ...] = ()) -> Pieces:
    """Question 1 2; step i is i 50 (two tokens, i from 10); answer 80 99."""
    return Pieces((1, 2), tuple((10 + i, 50) for i in range(num)), (80, 99), scores)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def shown(pattern, stage: int, num: int = 4, seed: int = 0, scores=()) -> str:
    """A plan as text: T2 = two thoughts, 1 = say step 1 (from 1), A = the answer."""
    plan = pattern.plan(pieces(num, scores), stage, rng(seed))
    turns = [f"T{t.num}" if isinstance(t, Think) else str(t.step + 1) for t in plan.turns]
    return " ".join([*turns, "A"] if plan.answer else turns)


# --- the published curriculum -----------------------------------------------------------------


def test_prefix_is_the_released_one():
    two = Prefix(c=2, max_stage=3)
    assert [shown(two, s) for s in range(6)] == [
        "T0 1 2 3 4 A",
        "T2 2 3 4 A",
        "T4 3 4 A",
        "T6 4 A",
        "T6 A",  # the extra stage: all text goes, no thought comes
        "T6 A",
    ]
    assert two.last_stage == 4
    # Stages up to the maximum pad short chains; the extra one pads only if told to.
    assert [shown(two, s, num=1) for s in (2, 3, 4)] == ["T4 A", "T6 A", "T6 A"]
    assert shown(replace(two, pad_to_max=False), 4, num=1) == "T2 A"
    assert shown(replace(two, pad_to_max=False), 3, num=1) == "T6 A"
    assert shown(replace(two, mark_zero=False), 0) == "1 2 3 4 A"


def test_one_thought_at_a_time():
    slow = Prefix(c=3, max_stage=2, one_at_a_time=True)
    assert [shown(slow, s, num=3) for s in range(8)] == [
        "T0 1 2 3 A",
        "T1 2 3 A",
        "T2 2 3 A",
        "T3 2 3 A",
        "T4 3 A",
        "T5 3 A",
        "T6 3 A",
        "T6 A",
    ]
    assert slow.last_stage == 7
    # It passes through the same states as the published one.
    fast = Prefix(c=3, max_stage=2)
    assert [shown(slow, s) for s in (0, 3, 6, 7)] == [shown(fast, s) for s in (0, 1, 2, 3)]


# --- interleaving -----------------------------------------------------------------------------


def test_rhythm():
    last = 9
    assert shown(Rhythm(2, hidden=1, sentences=1), last, num=4) == "T2 2 T2 4 T2 A"
    assert shown(Rhythm(2, hidden=1, sentences=1), last, num=5) == "T2 2 T2 4 T2 A"
    assert shown(Rhythm(3, hidden=0, sentences=2), last, num=4) == "T3 1 2 T3 3 4 T3 A"
    assert shown(Rhythm(1, hidden=2, sentences=2), last, num=6) == "T1 3 4 T1 A"
    assert shown(alternate(4, silent="even"), last, num=4) == "1 T4 3 T4 A"
    assert shown(alternate(4, silent="odd"), last, num=4) == "T4 2 T4 4 T4 A"
    assert shown(Rhythm(2, hidden=1, sentences=1), last, num=0) == "T2 A"


def test_rhythm_grows_block_by_block():
    slow = Rhythm(2, hidden=1, sentences=1, blocks=2)
    assert [shown(slow, s, num=6) for s in range(4)] == [
        "1 2 3 4 5 6 A",
        "T2 2 3 4 5 6 A",
        "T2 2 T2 4 T2 6 T2 A",
        "T2 2 T2 4 T2 6 T2 A",
    ]
    assert slow.script(0) == Script((Speak(),))
    assert slow.script(1) == Script((Think(2), Speak(1), Speak()))
    assert slow.script(2) == Script((), repeat=(Think(2), Speak(1)))


@given(
    st.builds(
        Rhythm,
        thoughts=st.integers(1, 4),
        hidden=st.integers(0, 3),
        sentences=st.integers(1, 3),
        lead=st.integers(0, 2),
        blocks=st.integers(1, 4),
    ),
    st.integers(0, 9),
    st.integers(0, 6),
)
def test_a_script_follows_every_rhythm_without_knowing_the_steps(pattern, num, stage):
    """Replaying the script against a speaker who says the plan's sentences gives the plan back."""
    plan = pattern.plan(pieces(num), stage, rng())
    spoken = [turn for turn in plan.turns if isinstance(turn, Say)]
    script, replayed = pattern.script(stage), []
    turns = list(script.opening)
    left = len(spoken) + 1  # and the answer
    while left > 0:
        turns = turns or list(script.repeat)
        turn = turns.pop(0)
        if isinstance(turn, Think):
            replayed.append(turn)
        else:
            said = left if turn.sentences is None else min(turn.sentences, left)
            replayed += [Speak(1)] * said
            left -= said
    assert replayed == [t if isinstance(t, Think) else Speak(1) for t in (*plan.turns, Say(99))]


def test_random_steps():
    drawn = {shown(RandomSteps(2, max_stage=3), 2, seed=s) for s in range(60)}
    assert drawn == {
        "T4 3 4 A",
        "T2 2 T2 4 A",
        "T2 2 3 T2 A",
        "1 T4 4 A",
        "1 T2 3 T2 A",
        "1 2 T4 A",
    }
    assert shown(RandomSteps(2, max_stage=3), 9, num=2) == "T4 A"
    assert RandomSteps().script(1) is None and RandomSteps().script(0) == Script((Speak(),))


def test_entropy_steps():
    scores = (0.5, 2.0, 1.0, 2.0)
    high, low = EntropySteps(1), EntropySteps(1, which="low")
    assert [shown(high, s, scores=scores) for s in (0, 1, 2, 3)] == [
        "1 2 3 4 A",
        "1 T1 3 4 A",
        "1 T1 3 T1 A",
        "1 T3 A",
    ]
    assert shown(low, 2, scores=scores) == "T1 2 T1 4 A"
    with pytest.raises(ValueError, match="4 steps but 0 scores"):
        high.plan(pieces(4), 1, rng())


def test_next_only_says_one_step_or_the_answer():
    pattern = NextOnly(c=1, max_stage=4)
    assert [shown(pattern, s, num=3) for s in range(5)] == ["T0 1", "T1 2", "T2 3", "T3 A", "T3 A"]


# --- controls ---------------------------------------------------------------------------------


def test_controls():
    assert shown(Cot(), 5) == "1 2 3 4 A"
    assert shown(NoCot(), 5) == "A"
    assert shown(Fixed(6), 0) == "T6 A"
    modes = Mixture(((Cot(), 1), (NoCot(), 1), (Fixed(2), 1)))
    drawn = [shown(modes, 0, num=1, seed=s) for s in range(300)]
    assert {mode: 70 < drawn.count(mode) < 130 for mode in ("1 A", "A", "T2 A")} == {
        "1 A": True,
        "A": True,
        "T2 A": True,
    }
    assert modes.script(0) is None


def test_icot_removes_tokens_from_the_left():
    plain = HiddenTokens(per_stage=3, all_beyond=7, smoothing=float("inf"))
    plans = [plain.plan(pieces(3), s, rng()) for s in range(4)]
    assert plans[0] == Turns((Say(0), Say(1), Say(2)))
    assert plans[1] == Turns((Say(1, 1), Say(2)))  # three of six tokens are gone
    assert plans[2] == Turns(())  # six are
    assert plans[3] == Turns(()) and plain.last_stage == 3  # nine would be more than seven
    ids, supervised = flat(arrange(pieces(3), plans[1], BlockLayout(), S), latent=S.latent)
    assert ids == (1, 2, 50, 12, 50, 80, 99)
    assert supervised == (False, False, True, True, True, True, True)


def test_icot_smoothing_has_the_published_tail():
    pattern = HiddenTokens(per_stage=1, all_beyond=10**6, smoothing=0.7)
    long = Pieces((1,), ((5,) * 60,), (9,))
    draws = np.random.default_rng(3)
    plans = [pattern.plan(long, 0, draws) for _ in range(4000)]
    skips = [turn.skip for plan in plans for turn in plan.turns if isinstance(turn, Say)]
    shares = np.bincount(skips, minlength=3)[:3] / len(skips)
    assert np.allclose(shares[1:] / shares[:-1], np.exp(-0.7), atol=0.06)


# --- layout -----------------------------------------------------------------------------------


def test_layouts_of_one_plan():
    plan = Turns((Think(2), Say(1)))

    def laid(**layout) -> Sample:
        return arrange(pieces(2), plan, BlockLayout(**layout), S, pause=PAUSE)

    q, end = Text((1, 2), False), Text((11, 50, 80, 99), True)
    given_ = (Text((1, 2, 90), False), Latent(2), Text((91,), False), end)
    assert laid().segments == given_
    assert laid(boundaries="none").segments == (q, Latent(2), end)
    assert laid(boundaries="supervised").segments == (
        q,
        Text((90,), True),
        Latent(2),
        Text((91, 11, 50, 80, 99), True),
    )
    assert laid(thought="pause").segments == (Text((1, 2, 90, 93, 93, 91), False), end)
    assert laid(thought="pause", boundaries="none").segments == (Text((1, 2, 93, 93), False), end)
    assert laid(thought="nothing").segments == (q, end)
    # As many positions, so that a control differs in the recurrence alone.
    assert len(laid()) == len(laid(thought="pause"))
    with pytest.raises(ValueError, match="give the id"):
        arrange(pieces(2), plan, BlockLayout("pause"), S)


@given(
    st.sampled_from(
        [
            Prefix(2, 3),
            Prefix(3, 2, one_at_a_time=True),
            Rhythm(2),
            Rhythm(1, hidden=0, sentences=2, lead=1),
            RandomSteps(2),
            EntropySteps(1),
            NextOnly(2),
            HiddenTokens(2, 5),
            Cot(),
            NoCot(),
            Fixed(3),
            Mixture(((Cot(), 1.0), (Prefix(1), 2.0))),
        ]
    ),
    st.sampled_from(["latent", "pause", "nothing"]),
    st.sampled_from(["given", "supervised", "none"]),
    st.integers(0, 8),
    st.integers(0, 7),
    st.integers(0, 2**32 - 1),
)
def test_every_sample_is_well_formed(pattern, thought, boundaries, stage, num, seed):
    record = pieces(num, scores=tuple(float(i % 3) for i in range(num)))
    plan = pattern.plan(record, stage, rng(seed))
    sample = arrange(record, plan, BlockLayout(thought, boundaries), S, pause=PAUSE).check(S)
    ids, supervised = flat(sample, latent=S.latent)
    assert ids[:2] == record.question and not any(supervised[:2])
    if plan.answer:
        assert ids[-2:] == record.answer and all(supervised[-2:])
    spoken = [i for i in ids if 10 <= i < 50]
    assert spoken == sorted(set(spoken))  # steps stay in order and are said once
    later = pattern.plan(record, pattern.last_stage + stage, rng(seed))
    assert later == pattern.plan(record, pattern.last_stage, rng(seed))  # nothing changes any more


# --- stages -----------------------------------------------------------------------------------


def test_published_schedules():
    prosqa = Stages((5,) * 7, reset="epoch")
    assert [prosqa.at(e) for e in (0, 4, 5, 29, 30, 34, 35, 49)] == [0, 0, 1, 5, 6, 6, 7, 7]
    gsm8k = Stages((3, 3, 3), first=1, reset="stage")
    assert [gsm8k.at(e) for e in (0, 2, 3, 6, 8, 9, 40)] == [1, 1, 2, 3, 3, 4, 4]
    assert gsm8k.resets(9) == (3, 6)
    assert gsm8k.resets(100) == (3, 6, 9)
    assert prosqa.resets(4) == (1, 2, 3)
    assert replace(gsm8k, reset="never").resets(100) == ()
    assert Stages(first=7).at(0) == Stages(first=7).at(1000) == 7  # without curriculum


def test_mixing_draws_all_stages_evenly():
    mixed = Curriculum(Prefix(), stages=Stages((1,), first=2, uniform_prob=0.3))
    draws = np.random.default_rng(5)
    stages = [mixed.stage(pieces(4), 0, draws) for _ in range(4000)]
    shares = np.bincount(stages, minlength=5) / len(stages)
    assert np.allclose(shares, [0.06, 0.06, 0.76, 0.06, 0.06], atol=0.02)
    earlier = replace(mixed, stages=replace(mixed.stages, mix="earlier", uniform_prob=1.0))
    stages = [earlier.stage(pieces(4), 0, draws) for _ in range(3000)]
    assert np.allclose(np.bincount(stages) / 3000, [1 / 3] * 3, atol=0.05)


def test_a_sample_is_a_function_of_its_arguments():
    made = Curriculum(RandomSteps(2), stages=Stages((1, 1), uniform_prob=0.5))
    first = [made.sample(pieces(5), 1, rng(s), S) for s in range(20)]
    assert first == [made.sample(pieces(5), 1, rng(s), S) for s in range(20)]
    assert len(set(first)) > 3


def test_prompts_open_as_training_does():
    coconut = Curriculum(Prefix(c=2, max_stage=3))
    assert coconut.prompt(pieces(9), 9, S).segments == (
        Text((1, 2, 90), False),
        Latent(6),
        Text((91,), False),
    )
    rhythm = Curriculum(Rhythm(3), BlockLayout(boundaries="none"))
    assert rhythm.prompt(pieces(2), 9, S).segments == (Text((1, 2), False), Latent(3))
    question = (Text((1, 2), False),)
    learned = Curriculum(Rhythm(3), BlockLayout(boundaries="supervised"))
    for other in (learned, Curriculum(Cot()), Curriculum(Rhythm(3, lead=1)), Curriculum(NoCot())):
        assert other.prompt(pieces(2), 9, S).segments == question


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        (Prefix, {"c": 0}, "c is 0"),
        (Rhythm, {"thoughts": 0}, "thoughts is 0"),
        (alternate, {"thoughts": 1, "silent": "third"}, "silent is 'third'"),
        (EntropySteps, {"which": "odd"}, "which is 'odd'"),
        (HiddenTokens, {"per_stage": 0}, "per_stage is 0"),
        (Fixed, {"num": 0}, "num is 0"),
        (Mixture, {"modes": ()}, "modes is"),
        (Mixture, {"modes": ((Cot(), 0.0),)}, "weights is"),
        (BlockLayout, {"thought": "words"}, "thought is 'words'"),
        (BlockLayout, {"boundaries": "free"}, "boundaries is 'free'"),
        (Stages, {"lengths": (1, 0)}, "lengths is"),
        (Stages, {"uniform_prob": 2}, "uniform_prob is 2"),
        (Stages, {"reset": "always"}, "reset is 'always'"),
        (Stages, {"mix": "none"}, "mix is 'none'"),
    ],
)
def test_bad_settings_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)
