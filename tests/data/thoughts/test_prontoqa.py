"""ProntoQA's JSON: what Coconut makes of it, and questions of our own with a known truth."""

import json
import re

import pytest

from inward.data.thoughts import prontoqa


def example(**changes) -> dict:
    test = {
        "question": "Each wumpus is a dumpus. Max is a wumpus.",
        "query": "True or false: Max is a dumpus.",
        "chain_of_thought": ["Max is a wumpus.", "Each wumpus is a dumpus.", "Max is a dumpus."],
        "answer": "True",
    }
    return {"test_example": {k: v for k, v in (test | changes).items() if v is not None}}


def test_reading_is_coconuts(tmp_path):
    path = tmp_path / "1hop.json"
    data = {f"example{i}": example(answer="True" if i % 2 else "False") for i in (10, 9, 1, 2)}
    path.write_text(json.dumps(data))
    found = prontoqa.read_prontoqa(path)
    assert [record.answer for record in found] == ["True", "False", "True", "False"]  # by number
    first = found[0]
    assert first.question == (
        "Each wumpus is a dumpus. Max is a wumpus. True or false: Max is a dumpus."
    )
    assert first.steps == ("Max is a wumpus. Each wumpus is a dumpus.", "Max is a dumpus.")


def test_writing_is_what_reading_reads(tmp_path):
    made = prontoqa.generate(12, seed=0)
    path = prontoqa.write_prontoqa(made, tmp_path / "5hop.json")
    assert prontoqa.read_prontoqa(path) == made


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"example1":\n 4,}', "line 2 is not JSON"),
        ("[]", "read_json"),
        ("{}", "no object of examples"),
        ('{"example1": {}}', "example1 lacks test_example"),
        (json.dumps({"example7": example(query=None)}), "example7 lacks query"),
        (json.dumps({"example7": example(answer="")}), "example7: the answer is ''"),
    ],
)
def test_errors_name_the_example(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        prontoqa.read_prontoqa(path)
    with pytest.raises(FileNotFoundError, match="generator"):
        prontoqa.read_prontoqa(tmp_path / "none.json")


def truth(context: str, query: str) -> bool:
    """Close the context under its rules and look the query up."""
    facts, rules = set(), []
    for sentence in re.findall(r"[^.]+", context):
        rule = re.fullmatch(r"(?:Each|Every) (\w+) is (.+)", sentence.strip())
        if rule:
            rules.append((re.compile(rf"an? {rule[1]}"), rule[2]))
        else:
            person, _, what = sentence.strip().partition(" is ")
            facts.add((person, what))
    for _ in range(20):
        facts |= {(p, new) for p, what in facts for old, new in rules if old.fullmatch(what)}
    person, _, what = query.removeprefix("True or false: ").rstrip(".").partition(" is ")
    opposite = what.removeprefix("not ") if what.startswith("not ") else f"not {what}"
    assert ((person, what) in facts) != ((person, opposite) in facts)
    return (person, what) in facts


def test_generated_answers_are_true():
    made = prontoqa.generate(200, seed=1)
    for record in made:
        context, query = record.meta["context"], record.meta["query"]
        assert record.answer == str(truth(context, query))
        assert len(record.steps) == 6 and len(record.meta["chain_of_thought"]) == 11
    share = sum(record.answer == "True" for record in made) / 200
    assert 0.38 < share < 0.62
    assert made[:3] == prontoqa.generate(3, seed=1)


def test_the_chain_of_thought_follows_from_the_context():
    for record in prontoqa.generate(30, seed=2, hops=3):
        sentences = record.meta["chain_of_thought"]
        stated = {s.strip() + "." for s in record.meta["context"].split(".") if s.strip()}
        assert len(sentences) == 7
        assert {sentences[0], *sentences[1::2]} <= stated
        assert not set(sentences[2::2]) & stated


def test_split_is_by_order():
    records = prontoqa.generate(1, seed=0) * 9300
    assert {k: len(v) for k, v in prontoqa.split(records).items()} == {
        "train": 9000,
        "valid": 200,
        "test": 100,
    }
    with pytest.raises(ValueError, match="more than 9,200"):
        prontoqa.split(records[:9200])
    with pytest.raises(ValueError, match="1 to 16 hops"):
        prontoqa.generate(1, seed=0, hops=40)
