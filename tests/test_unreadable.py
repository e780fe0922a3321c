"""Whatever reads a file names it when it cannot: neither numpy, json nor a decoder does so."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inward.common.bases import load_causal_lm
from inward.common.files import read_text
from inward.common.trace import read_traces
from inward.common.weights import read_tensors
from inward.data.puzzles import arc, maze, sudoku
from inward.data.puzzles.folder import Folder, FolderInfo
from inward.data.puzzles.puzzles import Puzzles
from inward.data.texts.packed import PackedTokens
from inward.data.texts.text import TokenSource
from inward.data.thoughts import records
from inward.data.thoughts.prontoqa import read_prontoqa
from inward.evals.arc_submission import known_tasks, score_submission
from inward.evals.rows import append_row
from inward.methods.coconut.model import Coconut
from inward.methods.tidar.model import TiDAR
from inward.recipes.of import read_recipe
from inward.recipes.tidar import OwnText
from inward.tasks.named import guess_task, read_puzzles, task_named

GARBAGE = {
    "bytes that are no text": b"\x93\xff\xfe\x80\x81 no text in any encoding",
    "empty": b"",
    "half a line": b'{"question": "a',
    "a list": b"[1, 2]",
}


def packed(path: Path) -> PackedTokens:
    path.with_name("starts.npy").touch()
    return PackedTokens.open(path.parent)


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "puzzles": ("f.npz", Puzzles.load),
    "sudoku lines": ("f.txt", sudoku.read_lines),
    "sudoku csv": ("f.csv", sudoku.read_csv),
    "maze csv": ("f.csv", maze.read_csv),
    "a csv of some kind": ("f.csv", lambda path: read_puzzles(path, guess_task(path))),
    "a list of some kind": ("f.txt", lambda path: read_puzzles(path, guess_task(path))),
    "a named task's csv": ("f.csv", lambda path: read_puzzles(path, task_named("sudoku9"))),
    "sizes of a folder": ("dataset.json", FolderInfo.load),
    "arc challenges": ("f.json", arc.read_kaggle),
    "arc tasks": ("f.json", lambda path: arc.read_folder(path.parent)),
    "arc tasks or challenges": ("f.json", known_tasks),
    "a submission": ("f.json", lambda path: score_submission(path, [])),
    "thoughts": ("f.json", records.read_json),
    "thoughts of GSM8k-Aug": ("f.txt", records.read_icot),
    "thoughts of GSM8K": ("f.jsonl", records.read_gsm8k),
    "prontoqa": ("f.json", read_prontoqa),
    "tokens": ("f.npy", lambda path: TokenSource(path.parent, length=4, vocab_size=9, seed=0)),
    "packed tokens": ("ids.npy", packed),
    "weights": ("f.pt", read_tensors),
    "weights, safe": ("f.safetensors", read_tensors),
    "a recipe": ("f.json", read_recipe),
    "a base": ("config.json", lambda path: load_causal_lm(path.parent)),
    "a coconut model": ("config.json", lambda path: Coconut.from_pretrained(path.parent)),
    "a tidar model": ("tidar.json", lambda path: TiDAR.from_pretrained(path.parent)),
    "traces": ("f.jsonl", read_traces),
}


@pytest.mark.parametrize("content", GARBAGE)
@pytest.mark.parametrize("reader", READERS)
def test_the_file_is_named(reader, content, tmp_path):
    name, read = READERS[reader]
    path = tmp_path / name
    path.write_bytes(GARBAGE[content])
    if content == "empty" and reader == "traces":
        assert read(path) == []
        return
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read(path)


def test_rows_are_not_added_to_something_else(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GARBAGE["bytes that are no text"])
    with pytest.raises(ValueError, match=r"rows\.jsonl is not UTF-8 text"):
        append_row(path, {"a": 1})
    assert path.read_bytes() == GARBAGE["bytes that are no text"]


def test_a_question_without_its_field_is_named(tmp_path):
    path = tmp_path / "q.jsonl"
    for bad in ("{", "[]", json.dumps({"q": "x"})):
        path.write_text(json.dumps({"question": "x"}) + "\n" + bad + "\n")
        data = OwnText(questions=str(path), num_texts=2, requested=0)
        with pytest.raises(ValueError, match=r"q\.jsonl, line 2 is no JSON object with a field"):
            data._question(path, path.read_text().splitlines(), 1)


def test_damaged_folders_and_checkpoints_name_their_file(tmp_path):
    made = sudoku.generate(3, n=4, seed=0, progress=False)
    from inward.data.puzzles.folder import write_puzzles

    write_puzzles(tmp_path, "train", made)
    for file in (tmp_path / "train").glob("*.npy"):
        good = file.read_bytes()
        for bad in (b"", good[:20], b"\x80" * 200):
            file.write_bytes(bad)
            with pytest.raises(ValueError, match=file.name.replace(".", r"\.")):
                Folder(tmp_path)
        file.write_bytes(good)
    torch.save({"a": torch.zeros(50)}, tmp_path / "w.pt")
    good = (tmp_path / "w.pt").read_bytes()
    for at in range(0, len(good), 97):
        (tmp_path / "w.pt").write_bytes(good[:at] + b"\xff" + good[at + 1 :])
        told = "w.pt"
        try:
            read_tensors(tmp_path / "w.pt")
        except ValueError as error:
            told = str(error)
        assert "w.pt" in told
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_text(tmp_path / "nowhere")
