"""The benchmark scripts run end to end on a model of two steps and write rows that say everything.

Their numbers are `inward.studies.trm_scaling`'s, tested there; here it is the protocol: validation
puzzles choose, test puzzles are counted, a finished run is not done again.
"""

import json
import math
import runpy
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from inward.data.puzzles.folder import write_json
from inward.recipes import find
from inward.studies import trm_compute
from inward.train.loop import train

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "trm"


def script(name: str) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPTS / f"{name}.py")))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = find("sudoku4")()
    data = replace(recipe.data, num_train=20, num_valid=10, num_test=30)
    settings = replace(recipe.train, steps=2, batch_rows=4, warmup=1, eval_every=0, save_every=0)
    recipe = replace(recipe, data=data, train=settings)
    train(recipe.build(), settings, folder)
    write_json(folder / "model" / "recipe.json", asdict(recipe))
    return folder


def rows_of(name: str, options: list[str], path: Path, monkeypatch) -> list[dict]:
    monkeypatch.setattr(sys, "argv", [name, *options, "--rows", str(path)])
    script(name).main()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_halting_is_chosen_on_validation_and_counted_on_test(model, tmp_path, monkeypatch, capsys):
    options = ["--model", str(model), "--name", "tiny", "--num", "12", "--num-valid", "10"]
    rows = rows_of("halting", [*options, "--fixed", "4"], tmp_path / "rows", monkeypatch)
    valid = [row for row in rows if row["split"] == "valid"]
    test = [row for row in rows if row["split"] == "test"]
    (chosen,) = [row["rule"] for row in valid if row["chosen"]]
    assert {row["rule"] for row in test} == {chosen, "q+stable"}
    assert {row["num"] for row in valid} == {10}
    assert {row["num"] for row in test if row["group"] == "all"} == {12}
    assert sum(row["num"] for row in test if row["group"] != "all" and row["rule"] == chosen) == 12
    assert all(row["what"] == "tiny" and row["evaluations_fixed"] == 12 for row in test)
    assert "validation puzzles" in capsys.readouterr().out


def test_scaling_writes_every_study(model, tmp_path, monkeypatch, capsys):
    options = ["--model", str(model), "--num", "12", "--num-chains", "6", "--num-valid", "4"]
    options += ["--max-steps", "4", "--steps", "2", "--rollouts", "2", "--views", "4"]
    options += ["--noises", "0.3", "--figures", str(tmp_path)]
    rows = rows_of("scaling", options, tmp_path / "rows", monkeypatch)
    studies = {name: [r for r in rows if r["study"] == name] for name in {r["study"] for r in rows}}
    assert [row["steps"] for row in studies["steps"]] == [1, 2, 4, 4]
    for study, chains in (("rollouts", [1, 2]), ("views", [1, 2, 4])):
        found = studies[study]
        assert [row["chains"] for row in found if row["select"] == "majority"] == chains
        best = {row["chains"]: row["exact"] for row in found if row["select"] == "oracle"}
        assert all(row["exact"] <= best[row["chains"]] for row in found)
    assert next(row["coverage"] for row in studies["coverage"]) == 1.0
    assert all(row["interval"][0] <= row["exact"] <= row["interval"][1] for row in rows)
    assert {path.stem for path in tmp_path.glob("*.svg")} == set(studies)


def test_flops_to_a_level_lie_on_the_line_between_looks():
    flops_to = script("compute").flops_to
    curve = [[10, 1e12, 0.0, 0.5], [20, 2e12, 0.4, 0.7], [30, 3e12, 0.2, 0.7], [40, 4e12, 0.8, 0.9]]
    assert flops_to(curve, 0.2) == 1.5e12
    assert flops_to(curve, 0.5) == 3.5e12
    assert math.isnan(flops_to(curve, 0.9))


def test_compute_pilots_choose_the_rate_and_nothing_is_done_twice(tmp_path, monkeypatch, capsys):
    published = trm_compute._published()
    data = replace(published.data, num_train=6, num_valid=2, num_test=3)
    model = replace(published.model, hidden_size=16, swiglu_multiple=8, n_sup=2)
    settings = replace(published.train, batch_rows=2)
    small = replace(published, data=data, model=model, train=settings)
    monkeypatch.setattr(trm_compute, "_published", lambda: small)
    options = ["--out", str(tmp_path / "runs"), "--budget", "5e9", "--seeds", "2"]
    options += ["--rates", "1e-3", "2e-3", "--only", "cycles"]
    rows = rows_of("compute", options, tmp_path / "rows", monkeypatch)
    pilots = [row for row in rows if row["kind"] == "pilot"]
    runs = [row for row in rows if row["kind"] == "run"]
    best = max(pilots, key=lambda row: row["cells"])["lr"]
    assert [row["lr"] for row in pilots] == [1e-3, 2e-3] and [row["seed"] for row in runs] == [0, 1]
    assert all(row["lr"] == best and row["num"] == 3 for row in runs)
    assert all(abs(row["flops"] / 5e9 - 1) < 0.15 and len(row["curve"]) >= 10 for row in runs)
    assert rows_of("compute", options, tmp_path / "rows", monkeypatch) == rows
