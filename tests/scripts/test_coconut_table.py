"""The table's protocol at toy size: a shared start, resumable rows, honest costs, a figure."""

import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inward.data.thoughts.prosqa import ProsQASettings
from inward.recipes import coconut
from inward.recipes.coconut import SmallBase

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coconut" / "table.py"


def tiny(make):
    """The recipe function with a model and data that train in no time."""

    def made(row: str = "coconut", *, start: str = ""):
        recipe = make(row, start=start)
        sizes: dict[str, Any] = {"num_train": 8, "num_valid": 4, "num_test": 6}
        if hasattr(recipe.data, "graphs"):
            sizes["graphs"] = ProsQASettings(num_nodes=8, min_hops=2, max_hops=2, shortcut=False)
        return replace(
            recipe,
            base=SmallBase(num_layers=1, width=16, num_heads=2),
            data=replace(recipe.data, **sizes),
            train=replace(recipe.train, batch_rows=4, eval_every=2, progress="off"),
            max_new_tokens=6,
        )

    return made


@pytest.fixture
def script(monkeypatch) -> SimpleNamespace:
    monkeypatch.setattr(coconut, "prosqa_symbolic", tiny(coconut.prosqa_symbolic))
    monkeypatch.setattr(coconut, "chains_symbolic", tiny(coconut.chains_symbolic))
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def arguments(tmp_path: Path, *more: str) -> list[str]:
    own = ["--out", str(tmp_path / "runs"), "--jsonl", str(tmp_path / "rows.jsonl")]
    return [*own, "--cot-steps", "2", "--steps", "4", *more]


def rows_in(tmp_path: Path) -> list[dict]:
    written = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in written.splitlines()]


def test_rows_share_the_start_and_a_finished_one_is_not_done_again(script, tmp_path, capsys):
    few = ["--seeds", "1", "--rows", "coconut", "no-cot"]
    script.main(arguments(tmp_path, *few))
    start, silent, direct = rows_in(tmp_path)
    assert [r["row"] for r in (start, silent, direct)] == ["start", "coconut", "no-cot"]
    assert [r["steps"] for r in (start, silent, direct)] == [2, 4, 6]
    assert silent["recipe"]["start"].endswith("prosqa-start-0/model")
    assert direct["recipe"]["start"] == "" == start["recipe"]["start"]
    for row in (start, silent, direct):
        assert row["num"] == 6 and row["parameters"] == start["parameters"]
        assert row["forwards"] == row["tokens"] + row["thoughts"]
        assert {"accuracy", "paired", "blind_depth"} <= set(row["metrics"])
        assert [step for step, _ in row["curve"]][-1] == row["steps"]
    assert silent["thoughts"] == 4 and direct["thoughts"] == 0
    printed = capsys.readouterr().out
    assert "| coconut | 1 | 4 |" in printed and "| no-cot | 1 | 6 |" in printed

    made = (tmp_path / "rows.jsonl").read_bytes()
    script.main(arguments(tmp_path, *few, "--figure", str(tmp_path / "curves.svg")))
    assert (tmp_path / "rows.jsonl").read_bytes() == made
    assert (tmp_path / "curves.svg").stat().st_size > 1000


def test_a_stretched_row_takes_longer_in_every_stage(script, tmp_path):
    script.main(arguments(tmp_path, "--seeds", "1", "--rows", "coconut", "--stretch", "3"))
    start, silent = rows_in(tmp_path)
    assert (start["row"], start["steps"]) == ("start", 2)
    assert (silent["row"], silent["steps"]) == ("coconut-x3", 12)
    plain = coconut.prosqa_symbolic("coconut", start="x").curriculum.stages
    stages = silent["recipe"]["curriculum"]["stages"]
    assert stages["lengths"] == [3 * length for length in plain.lengths]
    assert stages["first"] == plain.first


def test_seeds_become_intervals_and_other_tasks_stay_apart(script, tmp_path):
    script.main(arguments(tmp_path, "--task", "chains", "--rows", "interleaved", "--seeds", "2"))
    rows = rows_in(tmp_path)
    assert [(r["row"], r["seed"]) for r in rows] == [
        ("start", 0),
        ("interleaved", 0),
        ("start", 1),
        ("interleaved", 1),
    ]
    assert rows[0]["metrics"]["constant"] == rows[2]["metrics"]["constant"]  # the same questions
    assert {r["recipe"]["train"]["seed"] for r in rows} == {0, 1}
    rows[1] |= {"paired": 0.4}
    rows[3] |= {"paired": 0.6}
    line = script.table(rows, "chains").split("\n")[-1]
    assert line.startswith("| interleaved | 2 | 4 |") and "50.0 % (" in line
    assert len(script.table(rows, "prosqa").split("\n")) == 2
    assert len(script.figure(rows, "chains").axes[0].lines) == 2


def test_the_flops_of_an_answer_by_hand(script, tmp_path):
    """One row: every position once, two per weight, attention by how far it looks back (itself
    included); the head once for each word: thoughts and the prompt's other positions spare it."""
    recipe = coconut.prosqa_symbolic("coconut")
    model = recipe.model().eval()
    asked = recipe.task().ask(recipe.data.split("test"))[:1]
    _, cost = script._asked(model, recipe, asked)
    (made,) = recipe.generated(model, asked)
    P = len(made.samples[0]) - 1
    block = 12 * 16 * 16  # of GPT-2: 4 d^2 attention, 8 d^2 MLP
    head = model.embedding.weight.numel() * len(made.tokens[0])
    assert cost["flops"] == 2 * (block * P + head) + 4 * 16 * P * (P + 1) / 2
    assert cost["tokens"] == len(made.tokens[0])


# --- what the thoughts of a row do ----------------------------------------------------------------


@pytest.mark.parametrize("row", ["coconut", "interleaved"])
def test_the_study_of_thoughts_says_everything(script, tmp_path, capsys, row):
    """On random weights: its measurements have tests of their own."""
    study = SimpleNamespace(**runpy.run_path(str(SCRIPT.with_name("thoughts.py"))))
    torch.manual_seed(0)
    model = study.TASKS["prosqa"](row).model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "model")
    steps = [{"kind": "train", "step": i, "metrics": {"token_loss": 2.0 - i}} for i in range(3)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    options = ["--model", str(tmp_path / "model"), "--row", row]
    more = ["--jsonl", str(tmp_path / "out.jsonl"), "--figures", str(tmp_path / "figures")]
    study.main([*options, *more])
    found = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert found["num"] == 6
    kinds = [(a["kind"], a["which"]) for a in found["ablations"]]
    assert kinds[:2] == [("same", None), ("other", None)] and ("other", [1]) in kinds
    same = found["ablations"][0]
    assert same["answer_changed"]["value"] == same["step_changed"]["value"] == 0
    assert [s["step_changed"]["value"] for s in found["swaps"][:2]] == [0, 0]
    assert found["jacobi"][-1]["thoughts"] < 1e-5 < found["jacobi"][0]["thoughts"]
    printed = capsys.readouterr().out
    assert "the same put back (control)" in printed and "likeliest token" in printed
    search = {"tree.svg", "held.svg", "parallel.svg", "height.svg"}
    drawn = {path.name for path in (tmp_path / "figures").glob("*.svg")}
    assert drawn == {*search, "lens.svg", "loss.svg"}
    assert len(found["superposition"]["lens"]) == (4 if row == "coconut" else 2)


def test_the_result_of_an_equation_is_its_first_digit(script):
    study = SimpleNamespace(**runpy.run_path(str(SCRIPT.with_name("thoughts.py"))))
    model = study.TASKS["chains"]("cot").model()
    target = study.result_of(model)

    def digit(text: str) -> str | None:
        token = target(tuple(model.tokenizer.encode(text)))
        return None if token is None else model.tokenizer.decode([token])

    assert [digit(t) for t in ("<<5+3=82>>\n", "### 47", "a b", "<<5+3=")] == ["8", "4", None, None]
