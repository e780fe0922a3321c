"""Words in one thought and back: exact for every span, within the tolerance, and not beyond 1/2."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inward.data.thoughts.curriculum import BlockLayout, Curriculum, Stages
from inward.data.thoughts.patterns import Cot, Fixed, Pieces, Prefix, Rhythm
from inward.data.thoughts.segments import Latent, Specials, Text
from inward.data.thoughts.superposed import Superposing, cut, read_out, superposition

SPECIALS = Specials(37, 38, 39)
FILLER, VOCAB = 39, 40


def words(span, how, off=None):
    held = superposition(span, how, VOCAB)
    return [w for w, _ in read_out(held if off is None else held + off, how, FILLER)]


@st.composite
def spans(draw):
    width = draw(st.integers(2, 10))
    ratio = draw(st.sampled_from([0.5, 0.5, 0.4, 0.3]))
    own = draw(st.lists(st.integers(0, 4), max_size=width))  # few words: many repeats
    return own, Superposing(width, ratio)


@settings(max_examples=150, deadline=None)
@given(spans(), st.integers(0, 2**31))
def test_every_span_is_read_out_exactly_also_within_the_tolerance(case, seed):
    own, how = case
    filled = (*own, *(FILLER,) * (how.span - len(own)))
    assert words(filled, how) == own
    off = np.random.default_rng(seed).uniform(-1, 1, VOCAB)
    assert words(filled, how, 0.999 * how.tolerance * off) == own


def test_all_spans_of_a_width_differ_as_whole_numbers_would():
    """With ratio 1/2 weights are k / (2^W - 1): no two spans share one, by exact arithmetic."""
    for width in (2, 3, 4, 5):
        seen = set()
        for span in itertools.product(range(3), repeat=width):
            held = [Fraction(0)] * 3
            for place, word in enumerate(span):
                held[word] += Fraction(2 ** (width - 1 - place), 2**width - 1)
            seen.add(tuple(held))
            assert sum(held) == 1
            found = superposition(span, Superposing(width), VOCAB)[:3]
            assert found == pytest.approx([float(h) for h in held], abs=1e-15)
        assert len(seen) == 3**width


def test_the_weights_found_are_those_of_the_places():
    how = Superposing(4)
    held = superposition((7, 7, 3, FILLER), how, VOCAB)
    assert held[7] == pytest.approx(12 / 15) and held[3] == pytest.approx(2 / 15)
    assert read_out(held, how, FILLER) == [
        (7, pytest.approx(8 / 15)), (7, pytest.approx(4 / 15)), (3, pytest.approx(2 / 15)),
    ]  # fmt: skip
    assert how.tolerance == pytest.approx(1 / 30)


def test_why_width_is_fixed_and_the_ratio_at_most_a_half():
    one = superposition((1, 2), Superposing(2), 3)
    two = superposition((1, 2, 1, 2), Superposing(4), 3)
    assert one == pytest.approx(two)  # of unknown length, these would be the same
    golden = 2 / (1 + 5**0.5)
    powers = golden ** np.arange(3)
    assert powers[0] == pytest.approx(powers[1] + powers[2])  # "a b b" is "b a a"
    with pytest.raises(ValueError, match=r"ratio.*0\.6.*at most 0\.5"):
        Superposing(3, 0.6)
    for ratio in (0.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match="ratio"):
            Superposing(3, ratio)
    with pytest.raises(ValueError, match="silent chain of thought"):
        Superposing(1)
    with pytest.raises(ValueError, match="shorter span"):
        Superposing(12, 0.25)
    with pytest.raises(ValueError, match="span"):
        Superposing(2.0)  # pyright: ignore[reportArgumentType]


def test_a_step_is_cut_into_parts_that_make_it_up():
    assert cut((1, 2, 3, 4, 5), 2, 4, FILLER) == ((1, 2, 3, FILLER), (4, 5, FILLER, FILLER))
    for length in range(9):
        parts = cut(tuple(range(length)), 3, 3, FILLER)
        assert [t for part in parts for t in part if t != FILLER] == list(range(length))
    with pytest.raises(ValueError, match="10 tokens, but its 3 thoughts hold 9"):
        cut(tuple(range(10)), 3, 3, FILLER)


PIECES = Pieces((1, 2), ((3, 4, 5), (6, 7), (8, 9, 10, 11)), (20, 21))


def test_thoughts_of_a_prefix_hold_the_steps_that_they_hide():
    curriculum = Curriculum(Prefix(c=2, max_stage=4), stages=Stages((1,) * 4), span=2)
    rng = np.random.default_rng(0)
    sample = curriculum.sample(PIECES, 2, rng, SPECIALS)
    assert sample.segments == (
        Text((1, 2, 37), False),
        Latent(4, ((3, 4), (5, FILLER), (6, FILLER), (7, FILLER))),
        Text((38,), False),
        Text((8, 9, 10, 11, 20, 21), True),
    )
    last = curriculum.sample(PIECES, 9, rng, SPECIALS).segments[1]
    assert isinstance(last, Latent) and last.num == 8
    assert last.spans[4:] == ((8, 9), (10, 11), (FILLER, FILLER), (FILLER, FILLER))


def test_blocks_of_a_rhythm_hold_their_own_step():
    curriculum = Curriculum(Rhythm(2, hidden=1, blocks=3), stages=Stages(first=3), span=2)
    sample = curriculum.sample(PIECES, 0, np.random.default_rng(0), SPECIALS)
    blocks = [s for s in sample.segments if isinstance(s, Latent)]
    assert [b.spans for b in blocks] == [
        ((3, 4), (5, FILLER)),
        ((8, 9), (10, 11)),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": Cot()}, "Cot has no thoughts that stand for a step"),
        ({"pattern": Fixed(3)}, "Fixed has no thoughts that stand for a step"),
        ({"pattern": Rhythm(2, hidden=0)}, "hides 0 steps"),
        ({"pattern": Rhythm(3, hidden=2)}, "3 thoughts hides 2 steps"),
        ({"layout": BlockLayout("pause")}, "thought is 'pause'"),
        ({"layout": BlockLayout(boundaries="supervised")}, "supervised boundaries"),
        ({"span": 1}, "silent chain of thought"),
    ],
)
def test_what_cannot_be_read_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(**{"span": 2, **options})


def test_a_latent_segment_refuses_spans_that_do_not_fit():
    with pytest.raises(ValueError, match="2 thoughts has 1 spans"):
        Latent(2, ((1, 2),))
    with pytest.raises(ValueError, match="same width"):
        Latent(2, ((1, 2), (1, 2, 3)))


def test_surplus_thoughts_are_drawn_and_hold_nothing():
    curriculum = Curriculum(Prefix(c=1, max_stage=2, surplus=3), stages=Stages(first=1), span=4)
    rng = np.random.default_rng(0)
    found = [curriculum.sample(PIECES, 0, rng, SPECIALS).segments[1] for _ in range(60)]
    assert {s.num for s in found if isinstance(s, Latent)} == {1, 2, 3, 4}
    assert all(s.spans[0] == (3, 4, 5, FILLER) for s in found if isinstance(s, Latent))
    with pytest.raises(ValueError, match="surplus"):
        Prefix(surplus=-1)
