"""Files of one's own: what they are is told by their content, and what is left out is counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from inward.data.rows import read_rows
from inward.data.texts.anyfile import Passage, read_texts, split_texts
from inward.data.thoughts import prontoqa
from inward.data.thoughts.anyfile import Names, apart, cut, question_key, read_any
from inward.data.thoughts.records import Record, write_json

PLAIN = {"question": "2 and 3?", "steps": ["2+3=5"], "answer": "5", "id": 7}
TURN = [{"role": "user", "content": "2 and 3?"}, {"role": "assistant", "content": "5"}]


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_list_and_lines_of_json_are_the_same(tmp_path):
    record = Record("2 and 3?", ("2+3=5",), "5", {"id": 7})
    listed = tmp_path / "a.json"
    listed.write_text(json.dumps([PLAIN], indent=2))
    for path in (listed, written(tmp_path / "b.jsonl", [PLAIN])):
        found = read_any(path)
        assert (found.kind, found.records, found.skipped) == ("json", [record], {})
        assert len(found.sha256) == 64
    # the official form, as it is written here
    write_json([record], tmp_path / "c.json")
    assert read_any(tmp_path / "c.json").records == [record]


def test_each_form_is_told_by_its_first_row(tmp_path):
    gsm = {"question": "Q?", "answer": "3*4=<<3*4=12>>12\n#### 1,200"}
    found = read_any(written(tmp_path / "g.jsonl", [gsm]))
    assert found.kind == "gsm8k" and found.records == [Record("Q?", ("<<3*4=12>>",), "1200")]
    (tmp_path / "i.txt").write_text("Q?||<<1+2=3>> <<3*4=12>> #### 12\n")
    found = read_any(tmp_path / "i.txt")
    assert found.kind == "icot" and found.records[0].steps == ("<<1+2=3>>", "<<3*4=12>>")
    made = prontoqa.generate(3, seed=0, hops=3)
    prontoqa.write_prontoqa(made, tmp_path / "p.json")
    found = read_any(tmp_path / "p.json")
    assert found.kind == "prontoqa" and [r.answer for r in found.records] == [
        r.answer for r in made
    ]


def test_chats_give_steps_where_the_assistant_reasons(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"messages": [system, TURN[0], {**TURN[1], "reasoning_content": "2+3\n\n is 5"}]},
        {"messages": [TURN[0], {**TURN[1], "content": "<think>\n2+3=5\n</think>\n5"}]},
        {"messages": [*TURN, *TURN]},
        {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A"}]},
    ]
    found = read_any(written(tmp_path / "c.jsonl", rows))
    assert found.kind == "chat" and found.skipped == {"more or less than one turn": 1}
    assert [(r.question, r.steps, r.answer) for r in found.records] == [
        ("2 and 3?", ("2+3", "is 5"), "5"),
        ("2 and 3?", ("2+3=5",), "5"),
        ("Q?", (), "A"),
    ]


def test_records_without_steps_can_be_skipped_in_every_form(tmp_path):
    files = {
        "json": [PLAIN, {**PLAIN, "steps": []}],
        "gsm8k": [
            {"question": "Q?", "answer": "<<1+1=2>>2\n#### 2"},
            {"question": "R?", "answer": "so\n#### 2"},
        ],
        "chat": [
            {"messages": [TURN[0], {**TURN[1], "thinking": "2+3=5"}]},
            {"messages": TURN},
        ],
    }
    paths = {kind: written(tmp_path / f"{kind}.jsonl", rows) for kind, rows in files.items()}
    paths["icot"] = tmp_path / "icot.txt"
    paths["icot"].write_text("Q?||<<1+1=2>> #### 2\nR?|| #### 2\n")
    for kind, path in paths.items():
        kept = read_any(path)
        assert kept.kind == kind and len(kept.records) == 2
        found = read_any(path, without_steps="skip")
        assert len(found.records) == 1 and found.skipped == {"no steps": 1}
        with pytest.raises(ValueError, match=r"(line|entry) 2: the record .* has no steps"):
            read_any(path, without_steps="refuse")


def test_fields_have_the_names_of_the_file(tmp_path):
    row = {"prompt": "Q?", "cot": "one\ntwo", "target": 3, "part": "dev"}
    path = written(tmp_path / "n.jsonl", [row, {**row, "part": "train"}])
    names = Names("prompt", "cot", "target", "part")
    found = read_any(path, names=names)
    assert found.records[0] == Record("Q?", ("one", "two"), "3", {})
    assert found.splits == ["valid", "train"]
    with pytest.raises(ValueError, match=r"line 1: it lacks question, answer \(it has prompt, "):
        read_any(path)
    with pytest.raises(ValueError, match="field 'cot' is 'one"):
        read_any(path, names=Names("prompt", "", "target", "cot"))


def test_a_field_of_the_same_name_that_was_not_meant_is_not_taken(tmp_path):
    row = {"prompt": "Q?", "question": "id 9", "cot": ["one"], "steps": 4, "target": "3"}
    path = written(tmp_path / "n.jsonl", [row, dict(reversed(row.items()))])
    found = read_any(path, names=Names("prompt", "cot", "target"))
    assert found.records == [Record("Q?", ("one",), "3")] * 2


def test_names_that_nothing_has_or_that_mean_two_things_are_refused(tmp_path):
    path = written(tmp_path / "a.jsonl", [PLAIN])
    with pytest.raises(ValueError, match=r"no record has the field 'cott' \(it has question, "):
        read_any(path, names=Names(steps="cott"))
    with pytest.raises(ValueError, match="'answer' is named for two things"):
        Names(question="answer")
    chats = written(tmp_path / "c.jsonl", [{"messages": TURN}])
    with pytest.raises(ValueError, match="read as chat, which has its own names"):
        read_any(chats, names=Names(question="prompt"))
    # of some records only: those have no steps
    mixed = [{**PLAIN, "cot": "x"}, PLAIN]
    found = read_any(written(tmp_path / "m.jsonl", mixed), names=Names(steps="cot"))
    assert [r.steps for r in found.records] == [("x",), ()]


def test_steps_that_are_one_text(tmp_path):
    texts = ["a\n\n b ", '["a", "b"]', "[a\nb]", "[1, 2]"]
    path = written(tmp_path / "s.jsonl", [{**PLAIN, "steps": text} for text in texts])
    found = [record.steps for record in read_any(path).records]
    assert found == [("a", "b"), ("a", "b"), ("[a", "b]"), ("[1, 2]",)]


def test_system_messages_are_told(tmp_path):
    row = {"messages": [{"role": "system", "content": "Be brief."}, *TURN]}
    found = read_any(written(tmp_path / "c.jsonl", [row, {"messages": TURN}]))
    assert [r.question for r in found.records] == ["2 and 3?"] * 2
    assert found.notes == ("left out 1 system messages: a question is what the user says",)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl.gz", "t.PARQUET"])
def test_tables_and_packed_files_are_named(tmp_path, name):
    (tmp_path / name).write_text("question,answer\na,b\n")
    for read in (read_any, read_texts):
        with pytest.raises(ValueError, match="write it as JSON lines"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "is empty"),
        ("Once upon a time\n", "lines of text"),
        ('{"question": "Q", "answer": "A"}\n{"question": \n', "line 2 is not JSON"),
        ('[{"question": "Q", "answer": "A"},\n x]', "line 2 is not JSON"),
        ('{"question": "Q"}\n', "lacks answer"),
        ("[3]", "entry 1 is a JSON int"),
        ('{\n "question": "Q",\n "answer": "A"\n}\n', "holds one JSON object"),
        ('{"messages": [{"role": "user"}]}\n', "message 1 needs a role and a content"),
        ('{"question": "Q", "answer": "A", "steps": [3]}\n', "line 1: step 1 is 3"),
        ('{"question": "Q", "answer": NaN}\n', "line 1: the answer is nan, which is no number"),
        ('{"question": "Q", "answer": null}\n', "line 1: the answer is None"),
        ('{"question": "Q", "answer": "#### 1"}\n{"question": "Q"}\n', "line 2: it lacks answer"),
        (
            '{"question": "Q", "answer": "#### 1"}\n{"question": "Q", "answer": 3}\n',
            "line 2: the answer is 3; GSM8K's is a text",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, told):
    (tmp_path / "f").write_text(text)
    with pytest.raises(ValueError, match=told):
        read_any(tmp_path / "f")


def test_a_file_is_looked_for_in_the_data_folder_too(tmp_path, monkeypatch):
    monkeypatch.setenv("INWARD_DATA", str(tmp_path))
    written(tmp_path / "a.jsonl", [PLAIN])
    assert len(read_rows("a.jsonl").rows) == 1
    with pytest.raises(FileNotFoundError, match=r"no data file at b.jsonl, nor at .*b.jsonl"):
        read_rows("b.jsonl")


def test_no_question_is_in_two_splits():
    made = [Record(f"Q{i % 20}  ?" if i % 2 else f"Q{i % 20} ?", ("s",), str(i)) for i in range(60)]
    parts = cut(made, num_valid=4, num_test=3, seed=1)
    keys = {name: {question_key(r) for r in part} for name, part in parts.items()}
    assert [len(keys[n]) for n in ("train", "valid", "test")] == [13, 4, 3]
    assert not keys["train"] & (keys["valid"] | keys["test"]) and not keys["valid"] & keys["test"]
    assert len(parts["train"]) == 39 and len(parts["valid"]) == 4  # each held-out question once
    assert cut(made, num_valid=4, num_test=3, seed=1) == parts
    assert cut(made, num_valid=4, num_test=3, seed=2) != parts
    kept, moved = apart(made, parts["valid"])
    assert moved == 12 and len(kept) == 48
    with pytest.raises(ValueError, match="leave none to train on"):
        cut(made, num_valid=18, num_test=2)


# --- texts ----------------------------------------------------------------------------------------


def test_texts_of_every_kind(tmp_path):
    (tmp_path / "a.txt").write_text("One\nline.\n\n\nTwo.\n")
    assert [p.said for p in read_texts(tmp_path / "a.txt").passages] == ["One\nline.", "Two."]
    (tmp_path / "b.txt").write_text("One.\nTwo.\n")
    assert [p.said for p in read_texts(tmp_path / "b.txt").passages] == ["One.", "Two."]
    found = read_texts(written(tmp_path / "c.jsonl", [{"text": "One."}, {"text": " "}]))
    assert (found.kind, found.skipped, len(found.passages)) == ("jsonl", 1, 1)
    found = read_texts(written(tmp_path / "d.jsonl", [{"messages": [*TURN, *TURN]}]))
    first, second = found.passages
    assert first == Passage((("user", "2 and 3?"),), "5")
    assert len(second.asked) == 3 and second.asked[1] == ("assistant", "5")
    found = read_texts(written(tmp_path / "e.jsonl", [PLAIN]))
    (passage,) = found.passages
    assert (passage.asked, passage.said) == ("2 and 3?", "2+3=5\n### 5")
    assert passage.record is not None and "1 texts (json)" in found.told()
    with pytest.raises(ValueError, match="line 1: it has no field text"):
        read_texts(written(tmp_path / "f.jsonl", [{"text": 3}]))


def test_records_among_texts_have_the_names_of_the_file(tmp_path):
    row = {"prompt": "2 and 3?", "target": "5", "text": "unused"}
    path = written(tmp_path / "a.jsonl", [row])
    (passage,) = read_texts(path, names=Names("prompt", answer="target")).passages
    assert (passage.asked, passage.said) == ("2 and 3?", "### 5")
    (tmp_path / "b.txt").write_text("One.\n")
    with pytest.raises(ValueError, match="read as text, which has no fields of records"):
        read_texts(tmp_path / "b.txt", names=Names("prompt"))
    assert read_texts(path, "jsonl").passages == [Passage("", "unused")]
    with pytest.raises(ValueError, match="line 1: it has no '####'"):
        read_texts(written(tmp_path / "c.jsonl", [PLAIN]), "gsm8k")


def test_equal_texts_stay_together():
    made = [Passage("", f"text {i % 10}") for i in range(30)]
    train, valid = split_texts(made, 3, seed=0)
    assert len(train) == 21 and len(valid) == 9
    assert not {p.said for p in train} & {p.said for p in valid}
    with pytest.raises(ValueError, match="num_valid is 10 of 10"):
        split_texts(made, 10, seed=0)
