"""What befalls the folder of a run: a second run, damage, a full disk, lost parts, more steps."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from inward.cli.main import main
from inward.common.files import (
    FolderLock,
    as_os_error,
    check_free,
    check_target,
    check_target_file,
    manifest_fault,
    write_manifest,
    write_tensors,
)
from inward.train import loop as loop_module
from inward.train import process as process_module
from inward.train.loop import Run, train
from inward.train.schedule import lr_factor
from tests.train.test_resume import stop_after
from tests.train.toy import (
    Toy,
    ToySource,
    evaluate,
    finish,
    rows_of,
    start,
    start_ranks,
    timeless,
    toy_settings,
    toy_train,
    train_in_child,
)


def go_on(out: Path, **options: Any) -> dict[str, Any]:
    return toy_train(out, **({"dropout": 0.2, "save_every": 2} | options))


# --- one run at a time ----------------------------------------------------------------------------


def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(tmp_path):
    child = start(train_in_child, tmp_path, {"steps": 400, "source": {"delay": 0.01}})
    log = tmp_path / "log.jsonl"
    while not log.exists() or not log.stat().st_size:
        time.sleep(0.01)
    with pytest.raises(BlockingIOError, match=f"{tmp_path} is in use by process {child.pid};"):
        toy_train(tmp_path, steps=400)
    with pytest.raises(BlockingIOError, match=f"in use by process {child.pid};"):
        check_free(tmp_path)
    child.kill()
    child.join()
    assert (tmp_path / "run.lock").read_text() == f"{child.pid}\n"
    rows = [row["step"] for row in rows_of(tmp_path)]
    assert rows == list(range(1, len(rows) + 1))
    toy_train(tmp_path, steps=5)  # the dead one's lock is taken over
    assert not (tmp_path / "run.lock").exists()


def test_locks_are_taken_over_from_the_dead_and_by_one_alone(tmp_path):
    (tmp_path / "run.lock").write_text("1\n")  # a number that lives, but holds nothing
    first = FolderLock(tmp_path)
    assert (tmp_path / "run.lock").read_text() == f"{os.getpid()}\n" and first.held()
    with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()}; wait"):
        FolderLock(tmp_path)
    first.release()
    first.release()
    assert not (tmp_path / "run.lock").exists()
    second = FolderLock(tmp_path)
    (tmp_path / "run.lock").unlink()
    assert not second.held()
    second.release()


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch):
    from inward.common import files

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", none)
    with pytest.warns(UserWarning, match=r"run\.lock cannot be locked .*start no second run"):
        lock = FolderLock(tmp_path)
    lock.release()


def hold_and_refuse(out: Path) -> None:
    with pytest.raises(BlockingIOError, match="is in use by process"):
        toy_train(out)


def test_all_processes_of_a_refused_run_are_told(tmp_path):
    lock = FolderLock(tmp_path)
    start_ranks(2, hold_and_refuse, tmp_path)
    lock.release()


# --- states that changed on the disk --------------------------------------------------------------


def flip_a_bit(folder: Path) -> None:
    file = folder / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def drop_a_file(folder: Path) -> None:
    (folder / "rank-00000.json").unlink()


def tear_the_manifest(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-60])


def drop_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def drop_an_optimizer_tensor(folder: Path) -> None:
    """By a hand that knows of the manifest."""
    tensors = load_file(folder / "state.safetensors")
    del tensors["optim.0.head.bias/exp_avg"]
    save_file(tensors, folder / "state.safetensors")
    write_manifest(folder)


def change_the_step(folder: Path) -> None:
    content = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(content | {"step": 3}))
    write_manifest(folder)


DAMAGE = {
    flip_a_bit: r"step-000000004/state.safetensors is not what was written \(its SHA-256 differs\)",
    drop_a_file: r"rank-00000.json is missing",
    tear_the_manifest: r"manifest.json is damaged",
    drop_the_manifest: r"manifest.json is missing",
    change_the_step: r"is the state of step 3, its folder's name says 4",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_changed_state_is_refused_and_the_older_one_named(tmp_path, damage):
    stop_after(tmp_path / "cut", 5)
    toy_train(tmp_path / "whole", dropout=0.2, save_every=2)
    folder = tmp_path / "cut" / "states" / "step-000000004"
    damage(folder)
    log = (tmp_path / "cut" / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match=DAMAGE[damage]) as caught:
        go_on(tmp_path / "cut")
    assert str(caught.value).endswith(
        f"delete {folder} to go on from {folder.parent}/step-000000002"
    )
    assert (tmp_path / "cut" / "log.jsonl").read_bytes() == log
    shutil.rmtree(folder)
    go_on(tmp_path / "cut")
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")


def test_a_missing_optimizer_tensor_is_told(tmp_path):
    stop_after(tmp_path, 5)
    drop_an_optimizer_tensor(tmp_path / "states" / "step-000000004")
    with pytest.raises(ValueError, match=r"missing: optim\.0\.head\.bias/exp_avg"):
        go_on(tmp_path)


def test_the_only_state_says_so(tmp_path):
    stop_after(tmp_path, 3)
    flip_a_bit(tmp_path / "states" / "step-000000002")
    with pytest.raises(ValueError, match=r"to begin at step 0 again \(there is no older state\)"):
        go_on(tmp_path)


def test_a_state_from_before_manifests_is_resumed(tmp_path):
    stop_after(tmp_path / "cut", 5)
    folder = tmp_path / "cut" / "states" / "step-000000004"
    content = json.loads((folder / "state.json").read_text())
    for name in ("manifest", "optimizer_tensors"):
        del content[name]
    for name in ("log", "planned_steps"):
        del content["record"][name]
    (folder / "state.json").write_text(json.dumps(content))
    (folder / "manifest.json").unlink()
    go_on(tmp_path / "cut")
    toy_train(tmp_path / "whole", dropout=0.2, save_every=2)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")


def test_a_manifest_knows_no_layout(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.bin").write_bytes(b"\0" * 1000)
    (tmp_path / "y.distcp").write_bytes(b"abc")
    write_manifest(tmp_path)
    files = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert files == {
        "a/b/x.bin": {
            "bytes": 1000,
            "sha256": "541b3e9daa09b20bf85fa273e5cbd3e80185aa4ec298e765db87742b70138a53",
        },
        "y.distcp": {
            "bytes": 3,
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        },
    }
    assert manifest_fault(tmp_path) == ""
    (tmp_path / "a" / "b" / "x.bin").write_bytes(b"\0" * 999)
    assert manifest_fault(tmp_path).endswith("x.bin has 999 bytes, 1000 were written")
    for content in ("[]", "{}", '{"files": 3}', '{"files": {"y.distcp": {"bytes": "x"}}}', "\xff"):
        (tmp_path / "manifest.json").write_text(content)
        assert "manifest.json is damaged" in manifest_fault(tmp_path)


# --- the log --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda rows: rows[:1] + rows[2:], r"3 of the 4 training rows up to step 4 \(the first"),
        (lambda rows: rows[:2], "2 of the 4 training rows up to step 4"),
        (
            lambda rows: [rows[0], rows[2], rows[1], rows[3]],
            "the row of step 2 stands after a later",
        ),
        (lambda rows: ["[1, 2]\n", *rows], "line 1 is no JSON row"),
        (lambda rows: ['{"kind": "train"}\n', *rows], "line 1 is no JSON row"),
    ],
)
def test_a_log_with_a_gap_or_of_two_runs_is_refused(tmp_path, change, told):
    stop_after(tmp_path, 4)
    log = tmp_path / "log.jsonl"
    changed = "".join(change(log.read_text().splitlines(keepends=True)))
    log.write_text(changed)
    with pytest.raises(ValueError, match=told) as caught:
        go_on(tmp_path)
    assert "move it away to go on with a new one" in str(caught.value)
    assert log.read_text() == changed


def test_a_missing_evaluation_is_a_gap(tmp_path):
    stop_after(tmp_path, 7, eval_every=2)
    log = tmp_path / "log.jsonl"
    rows = log.read_text().splitlines(keepends=True)
    log.write_text("".join(row for row in rows if '"eval", "step": 2,' not in row))
    with pytest.raises(ValueError, match="1 of the 2 evaluation rows up to step 6"):
        go_on(tmp_path, eval_every=2)


def test_a_lost_log_begins_anew_and_says_so(tmp_path, capfd):
    stop_after(tmp_path, 5)
    (tmp_path / "log.jsonl").unlink()
    go_on(tmp_path)
    assert "log.jsonl is gone, with the rows of steps 1 to 4" in capfd.readouterr().err
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(5, 11))
    go_on(tmp_path, steps=12)


# --- deleted parts --------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [False, True])
def test_a_deleted_folder_stops_the_run(tmp_path, moved):
    out = tmp_path / "run"

    def delete(step: int, batch: Any) -> None:
        if step == 3:
            shutil.move(out, tmp_path / "elsewhere") if moved else shutil.rmtree(out)

    with pytest.raises(FileNotFoundError, match=f"^{out} was deleted or moved while") as caught:
        train(Run(Toy(), ToySource(hook=delete), evaluate), toy_settings(save_every=1), out)
    assert "stopped after step 3" in str(caught.value) and "\n" not in str(caught.value)
    assert not out.exists()
    if moved:
        toy_train(tmp_path / "elsewhere", save_every=1)
        assert [row["step"] for row in rows_of(tmp_path / "elsewhere")] == list(range(1, 11))


@pytest.mark.parametrize("lost", ["model", "model/model.safetensors"])
def test_a_finished_run_writes_its_model_again(tmp_path, lost, capfd):
    first = toy_train(tmp_path)
    content, rows = (tmp_path / "model/model.safetensors").read_bytes(), timeless(tmp_path)
    path = tmp_path / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert toy_train(tmp_path) == first
    assert "model is not whole; it is written again" in capfd.readouterr().err
    assert (tmp_path / "model/model.safetensors").read_bytes() == content
    assert timeless(tmp_path) == rows


def test_a_changed_model_is_told_and_left_alone(tmp_path, capfd):
    toy_train(tmp_path)
    (tmp_path / "model/model.safetensors").write_bytes(b"mine")
    toy_train(tmp_path)
    assert "model.safetensors has 4 bytes" in capfd.readouterr().err
    assert (tmp_path / "model/model.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"steps": []}'])
def test_a_damaged_summary_is_made_again(tmp_path, content):
    first = toy_train(tmp_path)
    (tmp_path / "summary.json").write_text(content)
    assert toy_train(tmp_path)["loss"] == first["loss"]
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 10


# --- a full disk ----------------------------------------------------------------------------------


def full_at(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full from the `count`-th flush on."""
    calls: Iterator[int] = iter(range(1, 10**6))
    real = os.fsync

    def fsync(handle: int) -> None:
        if next(calls) >= count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 9, 12, 17, 25, 30, 31])
def test_on_a_full_disk_a_run_stops_with_one_line_and_nothing_is_lost(tmp_path, monkeypatch, count):
    toy_train(tmp_path / "whole", dropout=0.2, save_every=2)
    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        full_at(count, patch)
        with pytest.raises(OSError, match=f"^cannot write into {out}: the disk is full") as caught:
            go_on(out)
    assert "\n" not in str(caught.value)
    assert not list(out.rglob(".new-*")), "what is half-written takes room"
    go_on(out)
    assert timeless(out) == timeless(tmp_path / "whole")


def limited(out: Path, largest: int) -> None:
    """The system itself refuses: no file of this process may be longer."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    with pytest.raises(OSError, match=f"^cannot write into {out}: File too large"):
        go_on(out)


@pytest.mark.skipif(os.name == "nt", reason="no limits there")
@pytest.mark.parametrize("largest", [100, 900, 3000])
def test_files_that_the_system_refuses(tmp_path, largest):
    finish(start(limited, tmp_path, largest))
    toy_train(tmp_path)


def test_tensors_that_cannot_be_written_are_an_os_error(tmp_path):
    error = SafetensorError("I/O error: No space left on device (os error 28)")
    assert as_os_error(error, tmp_path).errno == errno.ENOSPC
    assert as_os_error(SafetensorError("odd"), tmp_path).errno == errno.EIO
    with pytest.raises(OSError, match="No such file") as caught:
        write_tensors(tmp_path / "none" / "x.safetensors", {"x": torch.zeros(1)})
    assert caught.value.errno == errno.ENOENT


def test_the_command_tells_a_full_disk_in_one_line(tmp_path, monkeypatch, capsys):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loop_module, "write_json", full)
    words = (
        "train sudoku4 --train.steps 1 --train.batch-rows 2 --data.num-train 4 --data.num-valid 2"
    )
    assert main([*words.split(), "--out", str(tmp_path / "run")]) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("inward:")]
    assert "the disk is full" in line and "no state was saved yet" in line


# --- more steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_run_is_extended_and_says_what_that_does_to_its_rate(tmp_path, schedule, capfd):
    changes: dict[str, Any] = {"schedule": schedule, "min_ratio": 0.1}
    toy_train(tmp_path, steps=6, **changes)
    capfd.readouterr()
    toy_train(tmp_path, steps=20, **changes)
    told = capfd.readouterr().err
    assert "is extended from 6 to 20 steps" in told
    longer = toy_settings(steps=20, **changes)
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(1, 21))
    rates = [row["lr"] for row in rows_of(tmp_path)]
    assert rates[6:] == pytest.approx([2e-2 * lr_factor(longer, step) for step in range(7, 21)])
    if schedule == "constant":
        assert "the rate stays constant" in told
    else:
        factor = lr_factor(longer, 7)
        assert (
            f"the rate of step 7 is {factor:.3g} of its base, by the shorter plan it was 0.1"
            in told
        )
    toy_train(tmp_path, steps=20, **changes)
    assert " is extended from" not in capfd.readouterr().err


def test_a_stopped_run_is_extended_too_and_a_shorter_one_refused(tmp_path, capfd):
    stop_after(tmp_path, 5, schedule="linear", steps=10)
    with pytest.raises(ValueError, match=r"settings.steps \(saved 10, now 8\)"):
        go_on(tmp_path, schedule="linear", steps=8)
    go_on(tmp_path, schedule="linear", steps=12)
    assert "the rate of step 5 is 0.875 of its base, by the shorter plan it was 0.833" in (
        capfd.readouterr().err
    )


# --- clocks and targets ---------------------------------------------------------------------------


def test_a_clock_that_jumps_back_gives_no_negative_seconds(tmp_path, monkeypatch):
    ticks = iter(range(10**6))
    real = time.perf_counter

    def jumping() -> float:
        number = next(ticks)
        return real() - (3600.0 if number % 3 == 2 else 0.0)

    monkeypatch.setattr(process_module.Stopwatch.__init__, "__defaults__", (jumping,))
    summary = toy_train(tmp_path, eval_every=3)
    rows = rows_of(tmp_path) + rows_of(tmp_path, "eval")
    assert all(row["seconds"] >= 0 for row in rows) and summary["seconds"] >= 0
    assert all(row["rows_per_second"] > 0 for row in rows_of(tmp_path))
    seconds = [row["seconds"] for row in rows_of(tmp_path)]
    assert seconds == sorted(seconds)


def test_targets_that_cannot_be_written_are_refused_before_and_leave_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    check_target(tmp_path / "new" / "folder" / "x.svg")
    check_target_file(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(NotADirectoryError, match="file is a file; name another place"):
        check_target(tmp_path / "file" / "x.svg")
    with pytest.raises(NotADirectoryError, match="it is a file; name a folder"):
        check_free(tmp_path / "file")
    with pytest.raises(IsADirectoryError, match="it is a folder; name a file"):
        check_target_file(tmp_path)
    with pytest.raises(OSError, match=r"cannot write /proc/x\.svg: /proc takes no files"):
        check_target("/proc/x.svg")


def test_training_checks_its_folder_before_it_makes_data(tmp_path, capsys):
    lock = FolderLock(tmp_path / "busy")
    (tmp_path / "file").write_text("x")
    for out, told in (
        ("busy", "in use by process"),
        ("file", "it is a file"),
        ("file/x", "a file"),
    ):
        began = time.monotonic()
        words = ["train", "sudoku9", "--data.num-train", "100000", "--out", str(tmp_path / out)]
        assert main(words) == 1
        assert told in capsys.readouterr().err
        assert time.monotonic() - began < 30
    lock.release()
