"""The frontier: what is asked and held out, equal budgets and sizes, rows written once, reports."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from inward.cli.main import main
from inward.studies.frontier import budget, compare, models, report, rows, runs, scales, tasks
from inward.studies.frontier.arms import ARMS, lesson, why_not
from inward.studies.frontier.models import Job
from inward.train.meter import step_cost

TINY = scales.SCALES["tiny"]
POINTERS: Any = TINY.tasks["pointers"]
TEXT = [name for name, arm in ARMS.items() if arm.reads == "text"]
OPEN = [name for name, arm in ARMS.items() if not why_not(arm, POINTERS)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def job(arm, *, seed=0, rate=2e-3, task=POINTERS, **changes):
    return Job(replace(TINY, **changes), task, ARMS[arm], seed, rate)


# --------------------------------------------------------------------------------------------------
# Tasks


@pytest.mark.parametrize("task", TINY.tasks.values(), ids=lambda task: task.name)
def test_what_is_held_out_is_in_no_other_split(task):
    keys = {split: {task.key(r) for r in task.records(split)} for split in tasks.SPLITS}
    assert all(len(task.records(split)) == getattr(task, f"num_{split}") for split in keys)
    assert not keys["test"] & keys["train"] and not keys["valid"] & keys["train"]
    assert not keys["test"] & keys["valid"]


@pytest.mark.parametrize("task", TINY.tasks.values(), ids=lambda task: task.name)
def test_records_written_anew_stay_the_same_question(task):
    rng = np.random.default_rng(0)
    for record in task.records("train")[:8]:
        again = task.rewrite()(record, rng)
        assert task.key(again) == task.key(record)
        assert len(again.steps) == len(record.steps) <= task.max_steps
        assert tasks.right(again, f"### {again.answer}")
        assert not tasks.right(again, again.answer)  # no mark: a step is no answer


@pytest.mark.parametrize("task", TINY.tasks.values(), ids=lambda task: task.name)
def test_no_step_is_longer_than_told(task):
    tokenizer = models.tokenizer_for(task)
    steps = [step + "\n" for record in task.records("train") for step in record.steps]
    longest = max(map(len, tokenizer(steps).input_ids))
    assert longest <= task.longest_step and (task.name == "sudoku" or longest > 1)


def test_superposed_thoughts_are_for_short_steps():
    dear = scales.SCALES["pilot"].tasks
    assert not why_not(ARMS["superposed"], dear["chains"])
    assert why_not(ARMS["superposed"], dear["sudoku"]).startswith("a step of sudoku has up to 33")
    assert lesson(ARMS["superposed"], dear["chains"]).settings.span == 5


def test_pointers_follow_their_arrows():
    for record in POINTERS.records("test"):
        arrows, _, asked = record.question.partition(" | ")
        after = dict(arrow.split("_") for arrow in arrows.split())
        start, hops = asked.split()
        path = [start]
        for _ in range(int(hops)):
            path.append(after[path[-1]])
        assert record.steps == tuple(path[1:-1]) and record.answer == path[-1]
    assert [POINTERS.level(r) for r in POINTERS.records("test")][:4] == [1, 2, 3, 1]
    cells = POINTERS.cells(POINTERS.records("test"))
    verify = POINTERS.grid_task().verify
    assert verify(cells.inputs, cells.labels).all()
    wrong = np.where(cells.labels > 0, cells.labels % 5 + 1, 0)
    assert not verify(cells.inputs, wrong).any()


def test_steps_of_a_sudoku_are_what_singles_tell():
    task = TINY.tasks["sudoku"]
    for record in task.records("train")[:8]:
        puzzle, solution = (np.array(record.meta[name]) for name in ("puzzle", "solution"))
        filled = puzzle.copy()
        for step in record.steps:
            words = step.split()
            for cell, digit in zip(words[::2], words[1::2], strict=True):
                filled[6 * (int(cell[1]) - 1) + int(cell[3]) - 1] = int(digit) + 1
        assert (filled == solution).all()
        assert record.answer == " ".join(str(token - 1) for token in solution)


def test_a_cell_waits_for_the_round_in_which_a_single_tells_it():
    solution = np.array([int(c) + 1 for c in "123456456123231564564231312645645312"])
    puzzle = solution.copy()
    puzzle[[0, 1]] = 1  # each the only blank of its column
    assert tasks.rounds(puzzle, solution) == [[0, 1]]
    puzzle = np.ones(36, dtype=int)
    puzzle[:5] = solution[:5]
    found = tasks.rounds(puzzle, solution)
    assert found[0] == [5]  # the sixth digit of its row; nothing tells another cell
    assert sorted(cell for group in found for cell in group) == list(range(5, 36))


# --------------------------------------------------------------------------------------------------
# Budgets and sizes


def test_a_budget_is_divided_to_within_a_step():
    shares, costs = [(0, 0.4), (1, 0.3), (2, 0.3)], [7.0, 11.0, 13.0]
    schedule = budget.divided(1000.0, shares, costs)
    assert schedule[:2] == ((0, 57), (1, 27))  # 400 / 7, 300 / 11
    left = 1000.0 - sum(num * cost for (_, num), cost in zip(schedule, costs, strict=True))
    assert 0 <= left < 13.0


def test_most_steps_of_a_curriculum_that_knows_its_length():
    def spent(steps):  # the first third costs 1 a step, the rest 4
        return np.cumsum([1.0 if step < steps // 3 else 4.0 for step in range(steps)])

    steps = budget.most_steps(spent, 100.0, 1000)
    assert spent(steps)[-1] <= 100.0 < spent(steps + 1)[-1]


@pytest.fixture(scope="module")
def plans():
    return {arm: budget.plan(job(arm)) for arm in OPEN}


def test_every_arm_ends_within_a_step_of_the_budget(plans):
    whole = TINY.budget["pointers"]
    for arm, plan in plans.items():
        most = max(plan.step_flops) * (3 if arm == "huginn" else 1)  # its deepest steps
        assert 0 <= whole - plan.flops < most, (arm, plan)
        assert runs.flops_until(plan, plan.steps) == pytest.approx(plan.flops)
    assert len(plans["coconut"].schedule) == len(lesson(ARMS["coconut"], POINTERS).shares) == 4
    assert plans["plain"].steps > plans["cot"].steps  # shorter texts, more of them


def test_a_budget_that_pays_for_no_step_is_refused():
    with pytest.raises(ValueError, match=r"1e\+03 FLOPs does not pay"):
        budget.plan(job("coconut", budget={"pointers": 1e3}))


def test_steps_of_drawn_depth_add_up_to_what_the_meter_counts(plans):
    planned = plans["huginn"]
    run, settings = models.run_of(job("huginn"), planned.schedule)
    counted = sum(step_cost(run, settings, step=step).flops for step in range(planned.steps))
    assert planned.flops == pytest.approx(counted, rel=1e-9)


def test_arms_have_the_same_size(plans):
    sizes = {arm: plan.parameters for arm, plan in plans.items()}
    assert sizes["coconut"] == sizes["plain"] == sizes["pause"]
    for size in sizes.values():
        assert abs(size - sizes["plain"]) <= 0.02 * sizes["plain"], sizes
    with pytest.raises(ValueError, match="more than 2% apart"):
        models.closest_width(lambda width: 1000 * width, 1500, "a model")


def test_all_text_arms_read_the_same_records_in_the_same_order():
    batches = {}
    for arm in ("plain", "cot", "coconut", "superposed", "huginn"):
        run, settings = models.run_of(job(arm), ((0, 5),))
        num = settings.batch_rows
        batch = run.source.batch(3, range(num), num)
        tokenizer = models.tokenizer_for(POINTERS)
        batches[arm] = [
            tokenizer.decode(row[seen.bool()]).partition("\n")[0].removesuffix(" ")
            for row, seen in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
    assert all(found == batches["plain"] for found in batches.values())
    assert len(set(batches["plain"])) > 1


def test_stages_are_counted_in_steps():
    run, _ = models.run_of(job("coconut"), ((0, 2), (2, 3), (3, 1)))
    source: Any = run.source
    assert [source.stage(step) for step in range(8)] == [0, 0, 2, 2, 2, 3, 3, 3]
    thoughts = [int(run.source.batch(step, range(2), 4)["latent"].sum()) for step in (0, 2)]
    assert thoughts == [0, 4]  # two rows of two thoughts


# --------------------------------------------------------------------------------------------------
# Runs


@pytest.fixture(scope="module")
def done(tmp_path_factory, plans):
    """A row of some arms, and where they are."""
    place = tmp_path_factory.mktemp("frontier")
    where = {"out": place / "runs", "rows": place / "rows", "command": "inward frontier"}
    found = {arm: runs.run_job(job(arm), plans[arm], **where) for arm in OPEN}
    return place, found


def test_every_arm_answers_at_every_effort(done):
    _, found = done
    for arm, row in found.items():
        efforts = row["efforts"]
        assert [len(e["test"]) for e in efforts] == [POINTERS.num_test] * len(efforts)
        assert row["chosen"] == rows.best_effort(efforts)
        assert row["curve"][-1][0] == pytest.approx(row["flops"], rel=0.2) and row["by_level"]
        assert sum(e["trained"] for e in efforts) == 1 and {"load", "version", "machine"} <= set(
            row
        )
        if ARMS[arm].unit:
            flops = [e["flops"] for e in efforts]
            assert len(efforts) >= 4 and all(e["seconds"] > 0 for e in efforts), arm
            assert flops[-1] > flops[0], (arm, flops)  # who says less may think more for less
    thoughts = {e["amount"]: e["steps"] for e in found["coconut"]["efforts"]}
    assert all(steps == amount for amount, steps in thoughts.items())
    cells = {e["amount"]: e["flops"] for e in found["trm"]["efforts"]}
    assert cells[8] == pytest.approx(8 * cells[1])


def test_a_stopped_run_goes_on_to_the_same_row(done, plans, tmp_path, monkeypatch):
    _, found = done
    where = {"out": tmp_path / "runs", "rows": tmp_path, "command": "inward frontier"}
    looks, calls = runs._looks, []

    def stopped(own):
        evaluate = looks(own)

        def evaluating(model):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return evaluate(model)

        return evaluating

    monkeypatch.setattr(runs, "_looks", stopped)
    with pytest.raises(KeyboardInterrupt):
        runs.run_job(job("coconut"), plans["coconut"], **where)
    assert rows.read_rows(tmp_path, "tiny") == []
    again = runs.run_job(job("coconut"), plans["coconut"], **where)
    for row in (again, first := dict(found["coconut"])):
        for name in ("seconds", "cpu_seconds", "core_seconds", "load"):
            row.pop(name)
        row["efforts"] = [{**e, "seconds": 0} for e in row["efforts"]]
    assert again == first


def test_no_row_is_written_twice(done, plans):
    place, found = done
    path = rows.file_of(place / "rows", "tiny")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not written twice"):
        rows.add_row(place / "rows", found["plain"])
    assert path.read_bytes() == before
    assert len(rows.read_rows(place / "rows", "tiny")) == len(OPEN)
    path.write_bytes(before + before.splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match="stands there twice"):
        rows.read_rows(place / "rows", "tiny")
    path.write_bytes(before)


def test_the_command_runs_what_is_missing_and_nothing_twice(tmp_path, capsys):
    words = ["frontier", "--scale", "tiny", "--only", "pointers/plain/0"]
    words += ["--out", str(tmp_path / "runs"), "--rows", str(tmp_path / "rows")]
    assert main([*words, "--max-hours", "1e-7"]) == 1
    told = capsys.readouterr()
    assert "core-hours" in told.out and "at most 1e-07 are allowed" in told.err
    assert not (tmp_path / "rows").exists()
    assert main([*words, "--max-hours", "1"]) == 0
    path = tmp_path / "rows" / "tiny.jsonl"
    written = path.read_bytes()
    assert [json.loads(line)["rate"] for line in written.splitlines()] == [1e-3, 2e-3]
    assert "inward frontier --scale tiny" in json.loads(written.splitlines()[0])["command"]
    assert main(words) == 0 and "all done" in capsys.readouterr().out
    assert path.read_bytes() == written
    pytest.importorskip("matplotlib")
    assert main(["frontier", "--scale", "tiny", "--report", *words[5:]]) == 0
    assert "| plain | 1 |" in (tmp_path / "rows" / "tiny.md").read_text()
    assert (tmp_path / "rows" / "tiny" / "pointers-compute.svg").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--scale", "huge"], "there is no scale 'huge'; there are tiny, first, pilot"),
        (["--only", "riddles"], "there is no task at scale tiny 'riddles'"),
        (["--only", "pointers/oracle"], "there is no arm 'oracle'; there are plain, cot"),
        (["--only", "pointers/plain/7"], "there is no seed at scale tiny '7'; there are 0, 1"),
        (["--only", "chains/trm"], "chains/trm: the questions of chains have no fixed form"),
        (["--only", "a/b/c/d"], "name TASK, TASK/ARM or TASK/ARM/SEED"),
        (["--max-hours", "-1"], "max_hours is -1.0; give a number above 0"),
        (["--list", "--report"], "ask for one of them"),
        (["--findings", "page.md"], "--findings is for --report"),
        (["--report"], "there are no rows at scale tiny"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(words, told, tmp_path, capsys):
    scale = [] if "--scale" in words else ["--scale", "tiny"]
    assert main(["frontier", *scale, *words, "--rows", str(tmp_path / "rows")]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()


def test_later_seeds_wait_for_the_rate():
    (wish,) = runs.wishes(TINY, ["pointers/cot/1"])
    with pytest.raises(ValueError, match=r"run --only pointers/cot/0 first"):
        runs.job_of(TINY, wish, [])
    tried = [row("cot", rate=0.001, right="0011"), row("cot", rate=0.002, right="0111")]
    assert runs.job_of(TINY, wish, tried).rate == 0.002
    assert len(runs.wishes(TINY, ["pointers/cot"])) == 3  # two rates, and the second seed


# --------------------------------------------------------------------------------------------------
# Reports, from rows that are given


def row(arm, *, seed=0, rate=0.001, right="0110", flops=10.0, valid=None):
    effort = {"amount": 0, "trained": True, "valid": valid or right, "test": right}
    effort |= {"flops": flops, "tokens": 3.0, "steps": 0.0, "seconds": 0.01}
    return {
        **{"scale": "tiny", "task": "pointers", "arm": arm, "seed": seed, "rate": rate},
        **{"flops": 5e7, "parameters": 4000, "efforts": [effort], "chosen": 0},
        **{"core_seconds": 36.0, "load": 1.0, "version": "1", "machine": "m", "curve": []},
    }


def test_rates_are_chosen_on_validation_and_ties_are_told():
    right = "1" * 40 + "0" * 60
    close, far = "1" * 39 + "0" * 61, "1" * 10 + "0" * 90
    tried = [
        row("cot", rate=0.001, right="1" * 100, valid=close),  # the test set has no say
        row("cot", rate=0.002, right="0" * 100, valid=right),
        row("cot", rate=0.004, right="1" * 100, valid=far),
    ]
    assert rows.best_rate(tried) == (0.002, [0.001])
    assert [r["rate"] for r in rows.selected(tried)] == [0.002]


def test_dominance_is_claimed_only_where_the_interval_excludes_0():
    good, worse, close = "1" * 80 + "0" * 20, "1" * 50 + "0" * 50, "1" * 79 + "0" * 21
    given = [
        row("coconut", right=good, flops=5.0),
        row("cot", right=worse, flops=9.0),
        row("pause", right=close, flops=5.0),
        row("huginn", right="1" * 95 + "0" * 5, flops=20.0),
    ]
    found = {(v.first, v.second): v for v in compare.verdicts(given, "pointers")}
    assert found["coconut", "pause"].winner == "" and not found["coconut", "pause"].dominates
    assert found["coconut", "cot"].winner == "coconut" and found["coconut", "cot"].dominates
    assert found["coconut", "cot"].paired.difference.value == pytest.approx(0.3)
    dear = found["huginn", "coconut"]
    assert dear.winner == "huginn" and not dear.dominates  # better, and dearer
    text = report.report(TINY, given)
    assert "coconut - pause: +1.0% [" in text and ": tie\n" in text
    assert "coconut - cot: +30.0% [" in text and "coconut wins, and dominates" in text


def test_several_seeds_give_one_share_a_question():
    given = [
        *(row("plain", seed=s, right=r) for s, r in ((0, "1100"), (1, "1000"))),
        row("cot", right="1111"),
    ]
    assert compare.outcomes(given, "pointers", "plain", [0, 1]).tolist() == [1.0, 0.5, 0.0, 0.0]
    (first, second) = compare.standings(given, "pointers")
    assert (first.arm, second.arm, second.seeds) == ("cot", "plain", (0, 1))
    assert second.accuracy.value == pytest.approx(0.375)
    (verdict,) = compare.verdicts(given, "pointers")  # of the seed that both have
    assert verdict.paired.only_first == 2 and verdict.paired.p_value is not None


def test_failures_and_what_is_missing_are_listed(tmp_path):
    failed = {k: v for k, v in row("cot").items() if k not in ("efforts", "chosen", "curve")}
    given = [row("plain"), failed | {"error": "step 3 stopped before its update"}]
    text = report.report(TINY, given)
    assert "- pointers/cot/0 at rate 0.001: step 3 stopped before its update" in text
    assert "chains/trm: the questions of chains have no fixed form" in text
    left = [wish for wish in runs.wishes(TINY) if not wish.done(given)]
    assert f"- {len(left)} runs of pointers/plain," in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.put_into(page, text)
    now = page.read_text()
    assert now.startswith("before\n") and now.endswith("\nafter\n") and "old\n" not in now
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no place for the tables"):
        report.put_into(page, text)


def test_a_task_that_tells_nothing_apart_is_told():
    assert "too easy" in compare.size_fault([row("plain", right="1" * 50)], POINTERS)
    assert "too hard" in compare.size_fault([row("plain", right="0" * 50)], POINTERS)
    some = row("plain", right="1" * 40 + "0" * 10)
    assert compare.size_fault([some], POINTERS) == ""
    assert not math.isnan(compare.constant(POINTERS))
