"""The benchmark of Coconut at toy size, beside a stand-in for the official module."""

import pytest
import torch

from inward.bench import coconut as bench_coconut
from inward.bench.coconut import BaseSizes, job

TINY = BaseSizes(layers=1, width=16, heads=2, vocabulary=30, rows=2, columns=24, new_tokens=3)

OFFICIAL = """
import torch
from types import SimpleNamespace
from inward.data.thoughts.segments import Specials
from inward.methods.coconut.model import Coconut as Ours

class Coconut(torch.nn.Module):
    def __init__(self, base, latent, bot, eot, eos):
        super().__init__()
        self.model = Ours(base, Specials(bot, eot, latent))
        self.latent = latent
    def forward(self, input_ids, attention_mask, position_ids, labels):
        shifted = torch.full_like(labels, -100)
        shifted[:, :-1] = labels[:, 1:]
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": shifted,
                 "position_ids": position_ids, "latent": input_ids == self.latent}
        return SimpleNamespace(loss=self.model(batch).loss)
    def generate(self, ids, mask, max_new_tokens):
        print("something on the standard output")
        assert ids.shape[0] == 1 and max_new_tokens == 3
"""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def clone(tmp_path):
    (tmp_path / "coconut.py").write_text(OFFICIAL, encoding="utf-8")
    return tmp_path


def test_sides_take_turns_and_ratios_are_theirs(tmp_path):
    told = []
    rows = list(job(clone(tmp_path), sizes=TINY, say=told.append)(3))
    found = {what: (unit, values) for what, unit, values, _ in rows}
    assert len(found) == len(rows)
    for name in ("step plain", "step coconut", "step interleaved", "step reference",
                 "generate 1 plain", "generate 2 coconut", "generate 1 reference"):  # fmt: skip
        assert found[name][0] == "ms" and len(found[name][1]) == 3 and min(found[name][1]) > 0
    ours, plain = found["step coconut"][1], found["step plain"][1]
    assert found["step coconut / plain"][1] == pytest.approx(
        [a / b for a, b in zip(ours, plain, strict=True)]
    )
    theirs = found["generate 1 reference"][1]
    assert found["generate 1, reference / coconut"][1] == pytest.approx(
        [a / b for a, b in zip(theirs, found["generate 1 coconut"][1], strict=True)]
    )
    assert "step plain / plain" not in found
    assert found["step coconut, saved"][1][0] > 0
    assert "2 rows of 24, 6 thoughts" in told[0] and "agrees" in told[1]
    assert [path.name for path in tmp_path.iterdir()] == ["coconut.py"], "nothing is left there"


def test_without_a_reference_the_rest_is_measured():
    names = [what for what, *_ in job(None, sizes=TINY, num_rows=3)(1)]
    assert "generate 3 coconut / plain" in names and not any("reference" in n for n in names)


def test_a_reference_that_differs_or_fails_is_refused(tmp_path, monkeypatch):
    answering = "import sys\nfor line in sys.stdin: print('[1.0, LOSS]', flush=True)"
    for loss in ("2.5", "NaN"):
        monkeypatch.setattr(bench_coconut, "WORKER", answering.replace("LOSS", loss))
        with pytest.raises(ValueError, match="losses of the same batch differ"):
            list(job(clone(tmp_path), sizes=TINY)(1))
    monkeypatch.setattr(bench_coconut, "WORKER", "import transformers_of_long_ago")
    with pytest.raises(ValueError, match=r"ended with code 1.*4\.46 to 4\.53"):
        list(job(tmp_path, sizes=TINY)(1))
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "transformers_of_long_ago.py").write_text(answering.replace("LOSS", "2.5"))
    with pytest.raises(ValueError, match="losses of the same batch differ"):
        list(job(tmp_path, packages=folder, sizes=TINY)(1))


def test_bad_input_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(FileNotFoundError, match="facebookresearch/coconut"):
        job(tmp_path)
    with pytest.raises(ValueError, match="leave no text"):
        job(None, sizes=BaseSizes(columns=9))


def test_interleaved_rows_think_as_much_as_coconut():
    model = bench_coconut.make_model(TINY)
    counts = []
    for blocks in ((6,), (3, 3)):
        rows = bench_coconut.rows_of(TINY, model.specials, blocks)
        counts.append(({len(row) for row in rows}, {row.num_thoughts for row in rows}))
    assert counts == [({24}, {6})] * 2
