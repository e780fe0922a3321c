"""Requests from templates."""

import pytest

from inward.data.texts.requests import KINDS, requests


@pytest.mark.parametrize("kind", KINDS)
def test_they_differ_repeat_with_the_seed_and_read_as_sentences(kind):
    found = requests(kind, 600)
    assert len(set(found)) == len(found) == 600
    assert found == requests(kind, 600) and found[:50] == requests(kind, 50)
    assert requests(kind, 20) != requests(kind, 20, seed=1)
    for text in found:
        assert text[0].isupper() and text[-1] in ".?'" and "{" not in text
    first = {" ".join(text.split()[:2]) for text in found}
    assert len(first) > 10, "many forms of request"


def test_the_kinds_are_apart_from_each_other_and_from_the_benchmark():
    kinds = [set(requests(kind, 600)) for kind in KINDS]
    assert not kinds[0] & kinds[1]
    from benchmarks.tidar.decode import PROMPTS

    measured = {text for texts in PROMPTS.values() for text in texts}
    assert not measured & (kinds[0] | kinds[1])


def test_bad_input():
    with pytest.raises(ValueError, match="kind is 'odd'; there are ordinary, repetitive"):
        requests("odd", 3)
    with pytest.raises(ValueError, match="num is -1"):
        requests("ordinary", -1)
    with pytest.raises(ValueError, match="num is 1000000; the ordinary templates gave"):
        requests("ordinary", 1_000_000)
