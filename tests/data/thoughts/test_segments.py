"""Segments: what a sample may be, and its translation to and from the published flat form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.data.thoughts.segments import Latent, Sample, Specials, Text, flat, parse

S = Specials(bot=100, eot=101, latent=102)
BOT, EOT = Text((100,), False), Text((101,), False)


def samples() -> st.SearchStrategy[Sample]:
    words = st.lists(st.integers(0, 99), min_size=1, max_size=4).map(tuple)
    block = st.integers(0, 3)

    def build(parts: list[tuple[tuple[int, ...], int]], learned: bool) -> Sample:
        # supervised flags alternate where two texts would touch, so that no two could be one
        segments: list[Text | Latent] = []
        for ids, num in parts:
            segments.append(Text((*ids, 100), False))
            segments += [Latent(num)] if num else []
            segments.append(Text((101,), True) if learned or not num else Text((101, 7), True))
        return Sample(tuple(segments))

    pairs = st.lists(st.tuples(words, block), min_size=1, max_size=4)
    return st.builds(build, pairs, st.booleans())


@given(samples())
def test_flat_and_parse_are_inverse(sample: Sample):
    ids, supervised = flat(sample, latent=S.latent)
    assert parse(ids, supervised, specials=S) == sample
    assert len(ids) == len(supervised) == len(sample)
    assert ids.count(S.latent) == sample.num_thoughts == sum(sample.blocks)
    assert sum(supervised) == sample.num_supervised


def test_properties_of_an_interleaved_sample():
    sample = Sample(
        (Text((1, 2), False), Latent(2), Text((3,), True), Latent(1), Text((4, 5), True))
    )
    assert (len(sample), sample.blocks, sample.num_thoughts) == (8, (2, 1), 3)
    assert sample.num_supervised == 3


def test_the_first_token_has_nothing_to_predict_it():
    assert Sample((Text((1, 2, 3), True),)).num_supervised == 2


def test_empty_texts_vanish():
    assert Sample((Text((1,), False), Text((), True))) == Sample((Text((1,), False),))


@pytest.mark.parametrize(
    "segments, message",
    [
        ((), "no tokens"),
        ((Text((), True),), "no tokens"),
        ((Latent(1), Text((1,), True)), "begins with thoughts"),
        ((Text((), False), Latent(1)), "begins with thoughts"),
        ((Text((1,), False), Latent(1), Latent(2)), r"write one Latent\(3\)"),
    ],
)
def test_what_a_sample_may_not_be(segments, message):
    with pytest.raises(ValueError, match=message):
        Sample(segments)


def test_bad_segments():
    with pytest.raises(ValueError, match="0 thoughts"):
        Latent(0)
    with pytest.raises(ValueError, match="token id -1"):
        Text((3, -1), False)
    with pytest.raises(ValueError, match="three different"):
        Specials(1, 1, 2)


Q = Text((1,), False)


@pytest.mark.parametrize(
    "segments, message",
    [
        ((Q, BOT, Latent(1)), "open at the end"),
        ((Q, EOT), "where thinking is not open"),
        ((Q, BOT, BOT, EOT), "already open"),
        ((Q, Latent(1), BOT, EOT), "not preceded by <bot>"),
        ((Q, Text((102,), False)), "placeholder of a thought"),
        ((Q, BOT, Latent(4), EOT), "7 positions, 4 of them thoughts, but the context holds 6"),
    ],
)
def test_what_boundaries_may_not_be(segments, message):
    with pytest.raises(ValueError, match=message):
        Sample(segments).check(S, max_positions=6)


def test_what_boundaries_may_be():
    for segments in (
        (Q, BOT, EOT),  # stage 0 of the released code
        (Q, Latent(2)),  # no boundaries at all
        (Q, BOT, Latent(1), EOT, Q, BOT, Latent(2), EOT),
    ):
        sample = Sample(segments)
        assert sample.check(S, max_positions=len(sample)) is sample
    prompt = Sample((Q, BOT, Latent(2)))
    assert prompt.check(S, may_end_open=True) is prompt


def test_parse_refuses_other_numbers_of_flags_and_unbalanced_rows():
    with pytest.raises(ValueError, match="2 ids but 1 supervised"):
        parse([1, 2], [True], specials=S)
    with pytest.raises(ValueError, match="unbalanced"):
        parse([1, 100, 102], specials=S)
    with pytest.raises(ValueError, match="begins with thoughts"):
        parse([102, 1], specials=S)
