"""`inward plan`: its lines, its JSON, and what it refuses."""

import json

import pytest

from inward.cli.main import main


def test_a_plan_in_lines(capsys):
    assert main(["plan", "huginn-hops", "--gpus", "1", "--memory", "1"]) == 0
    out = capsys.readouterr().out
    assert "98,112 trainable parameters; 1 devices of 1 GB, ddp" in out
    assert "it fits" in out and "with recomputing: activations" in out
    assert "2,500 steps" in out


def test_what_does_not_fit_is_told_with_the_change(capsys):
    words = ["plan", "huginn-hops", "--gpus", "1", "--memory", "0.02"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "it does not fit" in out
    remedy = out.split("to make it fit: ")[1].split("   (")[0].split()
    assert main([*words, *remedy]) == 0
    assert "it fits" in capsys.readouterr().out


def test_a_plan_for_programs_and_fields_of_the_recipe(capsys):
    words = ["plan", "sudoku6", "--gpus", "2", "--json", "--train.batch-rows", "8"]
    assert main([*words, "--parallel", "fsdp"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["micro_rows"] == 4 and found["parallel"] == "fsdp" and found["shared_by"] == 2
    assert found["fits"] and found["advised"] is None


@pytest.mark.parametrize(
    "words, code, told",
    [
        (["plan", "sudokuu6"], 2, "sudoku6"),
        (["plan", "--gpus", "8"], 2, "name the recipe before its options"),
        (["plan", "sudoku6", "--gpus", "0"], 1, "gpus is 0, but must be 1 or more"),
        (["plan", "sudoku6", "--length", "9"], 1, "length is for records of Coconut"),
        (["plan", "sudoku6", "--gpus", "5"], 1, "do not divide"),
        (["plan", "sudoku6", "--speed", "5"], 2, "speed"),
    ],
)
def test_what_cannot_be_planned_is_refused(capsys, words, code, told):
    assert main(words) == code
    assert told in capsys.readouterr().err
