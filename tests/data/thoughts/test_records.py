"""Records and their readers, on small files and on the real ones."""

import json
from collections import Counter
from typing import Any

import pytest

from inward.data.thoughts import records
from inward.data.thoughts.records import Record


def test_json_round_trip_keeps_everything(tmp_path):
    made = [
        Record("q1?", ("a", "b"), "4", {"edges": [[0, 1]], "root": 0}),
        Record('q2 "ü"\u2028?', (), "no"),
    ]
    path = records.write_json(made, tmp_path / "data.json")
    assert records.read_json(path) == made
    assert [set(row) for row in json.loads(path.read_text())] == [
        {"question", "steps", "answer", "edges", "root"},
        {"question", "steps", "answer"},
    ]


def test_icot_and_gsm8k(tmp_path):
    (tmp_path / "a.txt").write_text("How\u2028many?||<<1+2=3>> <<3*4=12>> #### 1,2\nB?|| #### 3\n")
    assert records.read_icot(tmp_path / "a.txt") == [
        Record("How\u2028many?", ("<<1+2=3>>", "<<3*4=12>>"), "1,2"),
        Record("B?", (), "3"),
    ]
    row = {"question": "Q?", "answer": "He has 3*4=$<<3*4=12>>12.\n\nNo sum.\n#### 1,200"}
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n")
    assert records.read_gsm8k(tmp_path / "b.jsonl") == [Record("Q?", ("<<3*4=12>>",), "1200")]
    (sentences,) = records.read_gsm8k(tmp_path / "b.jsonl", steps="sentences")
    assert sentences.steps == ("He has 3*4=$12.", "No sum.")


@pytest.mark.parametrize(
    "reader, text, message",
    [
        (records.read_json, '[{"question": 1},\n nonsense]', "line 2 is not JSON"),
        (records.read_json, "{}", "expected a list"),
        (records.read_json, "[]", "holds no records"),
        (records.read_json, '[{"question": "q", "answer": "a"}]', "entry 1: it lacks steps"),
        (
            records.read_json,
            '[{"question": "q", "answer": "a", "steps": "abc"}]',
            "entry 1: steps is the text",
        ),
        (
            records.read_json,
            '[{"question": "q", "answer": "a", "steps": [" "]}]',
            "entry 1: step 1 is ' '",
        ),
        (records.read_json, "[3]", "entry 1: it is a JSON int"),
        (records.read_icot, "q||s #### 1\nq s #### 1\n", r"line 2: it has no '\|\|'"),
        (records.read_icot, "q||s\n", "line 1: it has no '####'"),
        (records.read_icot, "||s #### 1\n", "line 1: the question is ''"),
        (records.read_icot, "", "holds no records"),
        (records.read_gsm8k, '{"question": "q"}\n', "line 1: it lacks answer"),
        (records.read_gsm8k, '{"question": "q", "answer": "4"}\n', "line 1: it has no '####'"),
        (records.read_gsm8k, "{]\n", "line 1: Expecting property name"),
    ],
)
def test_errors_name_file_place_and_remedy(tmp_path, reader, text, message):
    path = tmp_path / "data.x"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        reader(path)
    assert str(path) in str(error.value)


def test_missing_file_and_wrong_choice(tmp_path):
    for reader in (records.read_json, records.read_icot, records.read_gsm8k):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            reader(tmp_path / "nowhere")
    wrong: Any = "words"
    with pytest.raises(ValueError, match="steps is 'words'"):
        records.read_gsm8k(tmp_path / "x", steps=wrong)


def test_with_steps():
    full, bare = Record("q", ("s",), "a"), Record("bare question", (), "a")
    assert records.with_steps([full]) == [full]
    assert records.with_steps([full, bare], skip=True) == [full]
    with pytest.raises(ValueError, match=r"record 1 \('bare question'\) has no steps"):
        records.with_steps([full, bare])
    with pytest.raises(ValueError, match="no record with steps is left"):
        records.with_steps([bare], skip=True)


def test_real_prosqa(shared_data):
    test = records.read_json(shared_data / "prosqa" / "prosqa_test.json")
    assert len(test) == 500
    assert set(test[0].meta) == {"edges", "root", "target", "neg_target", "idx_to_symbol"}
    assert all(3 <= len(record.steps) <= 6 for record in test)


def test_real_gsm8k(shared_data):
    icot = records.read_icot(shared_data / "gsm8k-icot" / "test.txt")
    own = records.read_gsm8k(shared_data / "gsm8k" / "test.jsonl")
    assert len(icot) == len(own) == 1319
    # The step counts of the research notes, where the 18 chains without a step count as one step:
    # the released code splits an empty text at spaces.
    counts = Counter(len(record.steps) for record in icot)
    assert [counts[n] for n in range(9)] == [18, 83 - 18, 357, 364, 290, 138, 57, 21, 9]
    assert [r.answer.replace(",", "") for r in icot] == [r.answer for r in own]
    assert sum(not record.steps for record in own) == 18
    # The marks are the same; iCoT's own cleaning explains the rest.
    assert sum(a.steps == b.steps for a, b in zip(icot, own, strict=True)) > 1250
