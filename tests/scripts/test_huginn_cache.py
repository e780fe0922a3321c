"""benchmarks/huginn/cache.py runs, and says what it must: sharing changes only what is read token
by token, and memory grows with the window of the gradient alone."""

import importlib
import json
from pathlib import Path

import pytest


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "huginn"))
    return importlib.import_module("cache")


def test_sharings_side_by_side(bench, tmp_path):
    path = tmp_path / "rows.jsonl"
    words = "--num 20 --depth 4 --hops 2 6 --sharings per-depth shared --rows"
    once, deep, shared = bench.main([*words.split(), str(path)])
    assert deep["accuracy"] == once["accuracy"] and once["accuracy"]["2"] == 1.0
    assert once["accuracy"]["6"] < 0.6 < shared["accuracy"]["6"]  # read deeper than its own depth
    assert deep["bytes_3.5B_r32"] == 132 * 21120 and shared["bytes_3.5B_r32"] == 8 * 21120
    assert deep["bytes_hops"] == 4 * shared["bytes_hops"]
    assert (
        next(json.loads(line)["sharing"] for line in path.read_text().splitlines()) == bench.AT_ONCE
    )


def test_training_keeps_the_window_only_and_checkpointing_a_state_a_recurrence(bench):
    kept = {
        (n, k, c): bench.kept_bytes(n, k, checkpointing=c, length=16)
        for n, k, c in ((0, 2, False), (9, 2, False), (0, 4, False), (0, 2, True), (0, 6, True))
    }
    assert kept[9, 2, False] <= 1.02 * kept[0, 2, False]
    assert kept[0, 4, False] > 1.4 * kept[0, 2, False]
    per_step = (kept[0, 6, True] - kept[0, 2, True]) / 4
    assert per_step < 0.2 * (kept[0, 4, False] - kept[0, 2, False]) / 2
