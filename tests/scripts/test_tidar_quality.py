"""The quality study at toy size: runs that are done stay done, columns mean what they say."""

import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tidar" / "quality.py"


@pytest.fixture
def script(shared_models, monkeypatch) -> SimpleNamespace:
    monkeypatch.setenv("INWARD_MODELS", str(shared_models))
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_rows_are_written_once_and_traded(script, tmp_path, capsys):
    sizes = "--seeds 1 --steps 2 --rows 2 --length 32 --texts 12 --held 8 --decoded 2 --tokens 12"
    places = ["--out", str(tmp_path / "runs"), "--jsonl", str(tmp_path / "rows.jsonl")]
    options = [*sizes.split(), *places]
    for variants in (["joint"], ["joint", "random masks"]):
        script.main(["train", *options, "--variants", *variants])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["variant"] for row in rows] == ["joint", "random masks"]
    for row in rows:
        assert 0 < row["ar_loss"] < math.log(513) and 1 <= row["accepted"] <= 8
        assert row["judged"] > 0 and 0 < row["distinct"] <= 1 and row["per_forward"] > 0.8
    script.main(["trade", *options, "--figure", str(tmp_path / "trade.svg")])
    found = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()][2:]
    said = {(row["scheme"], row["setting"]): row["judged"] for row in found}
    same = [judged for (scheme, setting), judged in said.items() if "K" in setting]
    assert len(same) == 9 and max(same) - min(same) < 1e-9, "verified drafts say the same"
    assert said["plain", ""] == pytest.approx(same[0])
    assert (tmp_path / "trade.svg").stat().st_size > 1000
    assert "| diffusion, random masks | 0.9 |" in capsys.readouterr().out
    made = (tmp_path / "rows.jsonl").read_bytes()
    script.main(["trade", *options])
    assert (tmp_path / "rows.jsonl").read_bytes() == made


def test_a_text_is_judged_by_its_own_tokens(script, shared_models):
    from inward.common.bases import open_base

    judge, tokenizer = open_base(str(shared_models / "stories260k"))
    ids = tokenizer("Once upon a time, there was a little girl").input_ids
    nats, count = script.judged(judge, ids[:4], ids[4:])
    with torch.no_grad():
        whole = judge(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = -sum(float(whole[i - 1, ids[i]]) for i in range(4, len(ids)))
    assert nats == pytest.approx(wanted, rel=1e-5) and count == len(ids) - 4
