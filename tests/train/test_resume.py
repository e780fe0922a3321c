"""Killed or stopped anywhere, a run goes on with the same bits."""

from __future__ import annotations

import json
import random
import signal
import time
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inward.common.files import write_manifest
from inward.train.loop import Run, train
from inward.train.settings import OptimSettings
from tests.train.toy import (
    Toy,
    ToySource,
    evaluate,
    finish,
    rows_of,
    saved_tensors,
    start,
    timeless,
    toy_settings,
    toy_train,
    train_in_child,
)

# Everything at once: dropout from the global generator, method state in two micro-batches, draws,
# sparse rows, an average, a schedule, and log rows that cover several steps.
FULL: dict[str, Any] = {
    "steps": 60,
    "dropout": 0.2,
    "accumulation": 2,
    "schedule": "cosine",
    "eval_every": 7,
    "log_every": 2,
    "save_every": 3,
    "best_metric": "accuracy",
}


def kill_and_resume(out, num_kills: int, *, seed: int = 0, **options) -> None:
    """Kill the run at random moments `num_kills` times, then let it finish.

    A step takes at least 4 ms, so a kill comes within 12 steps of the child's first row.
    """
    rng = random.Random(seed)
    log = out / "log.jsonl"
    options = FULL | {"source": {"delay": 0.002}} | options
    for _ in range(num_kills):
        before = log.stat().st_mtime_ns if log.exists() else 0
        child = start(train_in_child, out, options)
        while child.is_alive() and (log.stat().st_mtime_ns if log.exists() else 0) == before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        child.kill()
        child.join()
        assert child.exitcode == -9, f"exit code {child.exitcode} before the kill"
    finish(start(train_in_child, out, options))


def assert_same_run(out, whole) -> None:
    assert timeless(out) == timeless(whole)
    states = sorted(path.name for path in (whole / "states").iterdir())
    assert sorted(path.name for path in (out / "states").iterdir()) == states
    for name in ("model/model.safetensors", f"states/{states[-1]}/state.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (out, whole)]
    for name in ("loss", "evaluation", "best", "steps"):
        assert summaries[0][name] == summaries[1][name]
    assert not list(out.rglob(".new-*")) and not list(out.rglob(".old-*"))


def test_killed_at_random_moments_resumes_bit_for_bit(tmp_path):
    finish(start(train_in_child, tmp_path / "whole", FULL))
    steps = [row["step"] for row in rows_of(tmp_path / "whole")]
    assert steps == list(range(2, 61, 2))
    kill_and_resume(tmp_path / "killed", 4)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_20_random_moments_resumes_bit_for_bit(tmp_path):
    finish(start(train_in_child, tmp_path / "whole", FULL | {"steps": 300}))
    kill_and_resume(tmp_path / "killed", 20, seed=1, steps=300)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("part", ["rng.cpu", "carry.0.memory", "carry.1.age"])
def test_the_comparison_sees_a_wrong_state(tmp_path, part):
    """One changed tensor in the files shows in the losses: nothing that is saved is idle."""
    options: dict[str, Any] = {"dropout": 0.2, "accumulation": 2}
    toy_train(tmp_path / "whole", **options)
    toy_train(tmp_path / "changed", **options, steps=5)
    path = tmp_path / "changed" / "states" / "step-000000005" / "rank-00000.safetensors"
    tensors = load_file(path)
    other = torch.Generator().manual_seed(5).get_state()
    tensors[part] = other if part == "rng.cpu" else tensors[part] + 1
    save_file(tensors, path)
    write_manifest(path.parent)  # or the manifest would refuse it
    toy_train(tmp_path / "changed", **options)
    whole, changed = (
        [row for row in timeless(tmp_path / name) if row["kind"] == "train"]
        for name in ("whole", "changed")
    )
    assert whole[:5] == changed[:5] and whole[5:7] != changed[5:7]


def test_a_killed_save_is_ignored(tmp_path):
    toy_train(tmp_path / "whole", save_every=2, dropout=0.2)
    out = tmp_path / "cut"
    stop_after(out, 6)
    states = out / "states"
    (states / ".new-step-000000008").mkdir()
    (states / ".new-step-000000008" / "state.json").write_text('{"step": 8')
    with (out / "log.jsonl").open("a") as log:
        log.write('{"kind": "train", "step": 7, "loss": 99.0}\n{"kind": "tra')
    toy_train(out, save_every=2, dropout=0.2)
    assert timeless(out) == timeless(tmp_path / "whole")
    assert [path.name for path in sorted(states.iterdir())] == ["step-000000008", "step-000000010"]


def stop_after(out, step: int, **options) -> None:
    """Train and leave as if the power failed in the batch after `step`."""

    class Failure(Exception):
        pass

    def fail(at, batch):
        if at == step:
            raise Failure

    settings = toy_settings(**({"save_every": 2} | options))
    with pytest.raises(Failure):
        train(Run(Toy(dropout=0.2), ToySource(hook=fail), evaluate), settings, out)


def test_it_says_where_it_goes_on(tmp_path, capfd):
    stop_after(tmp_path, 5)
    toy_train(tmp_path, dropout=0.2, save_every=2)
    assert "after step 4" in capfd.readouterr().err


def test_a_finished_run_says_so_and_returns(tmp_path, capfd):
    first, rows = toy_train(tmp_path), timeless(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model*")}
    capfd.readouterr()
    assert toy_train(tmp_path) == first
    assert "is finished at step 10" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model*")} == files
    assert timeless(tmp_path) == rows and len(rows) == 11


def test_a_run_killed_before_its_summary_finishes(tmp_path):
    first = toy_train(tmp_path, eval_every=5)
    (tmp_path / "summary.json").unlink()
    rows = timeless(tmp_path)
    again = toy_train(tmp_path, eval_every=5)
    assert timeless(tmp_path) == rows
    assert again["evaluation"] == first["evaluation"] and again["loss"] == first["loss"]


def test_a_run_with_constant_rate_can_be_made_longer(tmp_path):
    toy_train(tmp_path / "short", dropout=0.2, steps=6)
    toy_train(tmp_path / "short", dropout=0.2, steps=10)
    toy_train(tmp_path / "long", dropout=0.2, steps=10)
    assert rows_of(tmp_path / "short")[-1]["loss"] == rows_of(tmp_path / "long")[-1]["loss"]
    assert [row["step"] for row in rows_of(tmp_path / "short", "eval")] == [6, 10]
    with pytest.raises(ValueError, match="at step 10, beyond steps = 8"):
        toy_train(tmp_path / "short", steps=8)


def test_harmless_settings_may_change(tmp_path):
    stop_after(tmp_path, 5)
    toy_train(tmp_path, dropout=0.2, save_every=3, keep=1, eval_every=5, log_every=3)
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4, 6, 9, 10]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"seed": 3}, r"settings.seed \(saved 0, now 3\)"),
        ({"optim": OptimSettings(lr=1.0)}, r"settings.optim.lr \(saved 0.02, now 1.0\)"),
        ({"batch_rows": 16}, "settings.batch_rows"),
        ({"schedule": "linear"}, "missing: settings.steps"),
        ({"accumulation": 2}, "settings.accumulation"),
        ({"width": 6}, r"of wrong shape: .*model.mix.weight \(saved \(8, 8\), needed \(6, 6\)\)"),
    ],
)
def test_another_run_in_the_folder_is_refused(tmp_path, change, told):
    stop_after(tmp_path, 5)
    log = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match=told):
        toy_train(tmp_path, **({"dropout": 0.2} | change))
    assert (tmp_path / "log.jsonl").read_bytes() == log


def test_another_config_is_refused_but_not_for_its_settings(tmp_path):
    def go(data: str, **changes):
        settings = toy_settings(**changes)
        from dataclasses import asdict

        config = {"data": {"name": data}, "train": asdict(settings)}
        return train(Run(Toy(), ToySource(), config=config), settings, tmp_path)

    go("maze", steps=4)
    assert json.loads((tmp_path / "config.json").read_text())["data"] == {"name": "maze"}
    go("maze", steps=6, log_every=2)
    with pytest.raises(ValueError, match=r"config.data.name \(saved maze, now sudoku\)"):
        go("sudoku", steps=6)


def test_a_damaged_log_is_told(tmp_path):
    stop_after(tmp_path, 5)
    log = tmp_path / "log.jsonl"
    log.write_text("{broken\n" + log.read_text())
    with pytest.raises(ValueError, match=r"log.jsonl, line 1"):
        toy_train(tmp_path, dropout=0.2)


# --- an optimizer that starts afresh --------------------------------------------------------------


def run_with_resets(out, resets, *, steps: int = 6, **changes) -> dict[str, torch.Tensor]:
    """The saved tensors after `steps` steps."""
    run = Run(Toy(dropout=0.0, width=8, seed=0), ToySource(), evaluate, resets=resets)
    train(run, toy_settings(steps=steps, save_every=1, keep=20, **changes), out)
    return saved_tensors(out, steps)


def test_a_reset_forgets_the_moments_and_keeps_the_weights(tmp_path):
    plain, reset = (run_with_resets(tmp_path / str(r), r) for r in ((), (4,)))
    before, same = (saved_tensors(tmp_path / str(r), 4) for r in ((), (4,)))
    assert all(torch.equal(before[name], same[name]) for name in before)  # nothing happened yet
    counts = [t for name, t in reset.items() if name.endswith("step") and t.numel() == 1]
    assert counts and all(int(count) == 2 for count in counts), "steps since the reset"
    assert any(not torch.equal(plain[name], reset[name]) for name in plain)


def test_a_run_resumed_at_a_reset_is_the_same_run(tmp_path):
    whole = run_with_resets(tmp_path / "whole", (2, 4))
    for stop in (4, 5):
        out = tmp_path / str(stop)
        source = ToySource(hook=lambda step, batch, stop=stop: _interrupt(step, stop))
        run = Run(Toy(dropout=0.0, width=8, seed=0), source, evaluate, resets=(2, 4))
        with pytest.raises(KeyboardInterrupt):
            train(run, toy_settings(steps=6, save_every=1, keep=20), out)
        again = run_with_resets(out, (2, 4))
        assert all(torch.equal(whole[name], again[name]) for name in whole)


def _interrupt(step: int, stop: int) -> None:
    if step == stop - 1:
        signal.raise_signal(signal.SIGINT)


def test_a_late_decay_may_be_moved_until_it_begins(tmp_path):
    late: dict[str, Any] = {"schedule": "late", "decay_steps": 4, "steps": 20}
    late |= {"save_every": 2}
    toy_train(tmp_path / "whole", dropout=0.2, **late)
    stop_after(tmp_path / "moved", 10, **late | {"steps": 14})
    toy_train(tmp_path / "moved", dropout=0.2, **late)  # step 10 was still at the full rate
    assert timeless(tmp_path / "moved") == timeless(tmp_path / "whole")
    stop_after(tmp_path / "begun", 12, **late | {"steps": 14})
    with pytest.raises(ValueError, match="falls towards step 14"):
        toy_train(tmp_path / "begun", dropout=0.2, **late)
