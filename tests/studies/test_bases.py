"""docs/bases.md: a dozen of its rows are measured here, and nothing in it is wrong."""

import re
from pathlib import Path

import pytest
import torch
import transformers

from inward.methods.coconut.model import Coconut
from inward.methods.tidar.model import TiDAR
from inward.studies.bases import Finding, main, measure, page
from inward.studies.bases_checks import (
    MASK,
    SPECIALS,
    Differs,
    coconut_checks,
    tidar_checks,
)
from inward.studies.bases_tiny import causal_types, tiny

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/bases.md").read_text(encoding="utf-8")

ALONE = "exact, a row at a time"


@pytest.mark.parametrize(
    ("kind", "coconut", "tidar"),
    [
        ("mistral", "exact", "exact"),
        ("gemma2", "exact", "exact"),
        ("gemma3_text", "exact", "exact"),
        ("cohere2", "exact", "exact"),
        ("gpt_oss", "exact", "exact"),
        ("llama4_text", "exact", "exact"),
        ("roberta", "exact", "exact"),
        ("ctrl", "exact", "exact"),
        ("bloom", ALONE, "ALiBi"),
        ("bart", ALONE, "takes no position_ids"),
        ("gemma3n_text", "per-layer embeddings", "exact"),
        ("jamba", ALONE, "keeps its past in LinearAttentionLayer"),
    ],
)
def test_a_dozen_types(kind, coconut, tidar):
    for column, (wanted, found) in enumerate(zip((coconut, tidar), measure(kind), strict=True)):
        cell = _cells()[kind][column]
        if wanted.startswith("exact"):
            assert found.state == "exact", found
            assert cell == wanted == f"exact, {found.why}".removesuffix(", "), (cell, found)
        else:
            assert found.state == "refused", found
            assert wanted in found.why
            assert cell.startswith("refused")
            # nobody is told to load a model with what it runs already
            assert "attn_implementation" not in found.why


def test_a_window_that_is_forgotten_would_be_noticed():
    narrow = tiny("mistral")
    wide = tiny("mistral", sliding_window=None)  # the same weights
    checks = coconut_checks(narrow)
    model = Coconut(wide, SPECIALS).eval()
    for name in (
        "past the window, cached",
        "past the window, jacobi",
        "generation, past the window",
    ):
        with pytest.raises(Differs):
            checks[name](model)
    drafting = tidar_checks(narrow)
    for name in ("past the window, left", "training, past the window"):
        with pytest.raises(Differs):
            drafting[name](TiDAR(wide, MASK, 3).eval())


def _cells() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.*?) \|$", PAGE, re.M)
    return {kind: list(cells) for kind, *cells in rows}


def test_the_page_holds_every_type_and_nothing_wrong():
    version, num = re.search(r"transformers (\S+), (\d+) causal types", PAGE).groups()
    pinned = re.search(r"^transformers==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)[1]
    assert version == pinned
    assert len(_cells()) == int(num)
    for method in ("Coconut", "TiDAR"):
        row = re.search(rf"^\| {method} \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.M)
        counts = [int(count) for count in row.groups()]
        assert sum(counts) == int(num)
        assert counts[-1] == 0
    if transformers.__version__ == version:
        assert set(_cells()) == set(causal_types())


def test_findings_become_a_page_and_reasons_are_told_once():
    found = [
        Finding("one", "coconut", "exact", "a row at a time", name="OneForCausalLM"),
        Finding("one", "tidar", "refused", "OneForCausalLM hums", True, "OneForCausalLM"),
        Finding("two", "coconut", "wrong", "off", name="TwoForCausalLM"),
        Finding("two", "tidar", "refused", "TwoForCausalLM hums", False, "TwoForCausalLM"),
    ]
    text = page(found)
    assert "| `one` | exact, a row at a time | refused (1) |" in text
    assert "| `two` | wrong (2) | refused (1) |" in text
    assert "1. It hums\n2. off" in text
    assert "| Coconut | 1 | 0 | 0 | 1 |" in text
    assert text.rstrip().endswith("`one`.")


def test_the_command_goes_on_from_its_rows(tmp_path, capsys, monkeypatch):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "bases.md"
    monkeypatch.setattr(
        "inward.studies.bases.measure",
        lambda kind, methods: [Finding(kind, method, "exact") for method in methods],
    )
    threads = torch.get_num_threads()
    main(["gpt2", "--rows", str(rows)])
    assert len(rows.read_text().splitlines()) == 2
    found = main(["gpt2", "llama", "--rows", str(rows), "--out", str(out)])
    assert len(found) == len(rows.read_text().splitlines()) == 4
    assert "| `llama` | exact | exact |" in out.read_text()
    assert capsys.readouterr().out.count("gpt2 coconut") == 1
    with pytest.raises(SystemExit):
        main(["no-such-type"])
    assert torch.get_num_threads() == threads
