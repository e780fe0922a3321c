"""Two processes over gloo against one process with the same global batch."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from inward.train import state as state_module
from inward.train.optim import SparseSignSGD
from tests.train.toy import rows_of, saved_tensors, start_ranks, timeless, toy_train, train_in_child

EVERY = {"save_every": 1, "keep": 20, "source": {"weighted": True}, "eval_every": 5}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    toy_train(out, **EVERY)
    return out


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_are_one(tmp_path, one, accumulation):
    start_ranks(2, train_in_child, tmp_path, EVERY | {"accumulation": accumulation})
    for step, tolerance in ((1, 1e-5), (10, 1e-2)):
        expected, row = rows_of(one)[step - 1], rows_of(tmp_path)[step - 1]
        assert row["loss"] == pytest.approx(expected["loss"], rel=tolerance)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=10 * tolerance)
        left, right = saved_tensors(one, step), saved_tensors(tmp_path, step)
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            torch.testing.assert_close(
                tensor, right[name], rtol=tolerance, atol=tolerance, msg=name
            )
    # Sums of counts are exact, so the metrics of the first step are too.
    assert rows_of(one)[0]["metrics"] == rows_of(tmp_path)[0]["metrics"]
    table = [saved_tensors(tmp_path, step)["model.table.weight"] for step in (1, 10)]
    assert not torch.equal(*table)
    assert len(rows_of(tmp_path)) == 10 and len(rows_of(tmp_path, "eval")) == 2


def test_two_processes_resume_bit_for_bit(tmp_path):
    options = {"dropout": 0.2, "eval_every": 3}
    start_ranks(2, train_in_child, tmp_path / "whole", options)
    start_ranks(2, train_in_child, tmp_path / "cut", options | {"steps": 6})
    ranks = sorted(path.name for path in (tmp_path / "cut/states/step-000000006").glob("rank-*"))
    stems = [f"rank-0000{rank}" for rank in (0, 1)]
    assert ranks == [stem + end for stem in stems for end in (".json", ".safetensors")]
    start_ranks(2, train_in_child, tmp_path / "cut", options)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")


def train_where_rank_1_cannot_write(out: Path, options: dict[str, Any], count: int) -> None:
    """Its disk is full from the `count`-th flush of a state's part on; what each process is told
    goes to a file."""
    torch.set_num_threads(1)
    rank, calls = int(os.environ["RANK"]), itertools.count(1)
    real = state_module.write_tensors

    def write(path: Path, tensors: Any, *header: Any) -> None:
        if rank == 1 and next(calls) >= count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, tensors, *header)

    state_module.write_tensors = write
    try:
        toy_train(out, **options)
    except OSError as error:
        (out.parent / f"told-{rank}").write_text(str(error))


def test_a_process_that_cannot_write_ends_the_job_and_is_named(tmp_path):
    options = {"dropout": 0.2, "save_every": 2, "steps": 6}
    out = tmp_path / "cut"
    start_ranks(2, train_where_rank_1_cannot_write, out, options, 2)
    told = [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)]
    line = (
        f"cannot write into {out}: the disk is full for process 1 (of 2, counted from 0). Stopped "
        "after step 4, the state of step 2 is safe; make room, then the same command goes on from "
        "there"
    )
    assert told == [line, line]
    names = sorted(path.name for path in (out / "states").iterdir())
    assert names == ["step-000000002"], "nothing torn stands there"
    start_ranks(2, train_in_child, out, options)
    start_ranks(2, train_in_child, tmp_path / "whole", options)
    assert timeless(out) == timeless(tmp_path / "whole")


def check_sparse_sums(folder: Path) -> None:
    """Ranks touch different numbers of rows; every copy of the table must take all of them."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    table = nn.Embedding(8, 2, sparse=True)
    with torch.no_grad():
        table.weight.fill_(1.0)
    optimizer = SparseSignSGD([table.weight], 0.1, weight_decay=1.0)
    if rank == 0:  # row 3: 1 - 2 < 0; row 5: 1 - 1 = 0
        (table(torch.tensor([3, 5, 7])) * 1.0).sum().backward()
    else:
        scale = torch.tensor([[-2.0], [-1.0]])
        (table(torch.tensor([3, 5])) * scale).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    expected = {3: 0.9 + 0.1, 5: 0.9, 7: 0.9 - 0.1}
    for row in range(8):
        wanted = torch.full((2,), expected.get(row, 1.0))
        torch.testing.assert_close(table.weight[row].detach(), wanted)
    if rank == 1:  # a step in which the other process has nothing
        table(torch.tensor([0])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(table.weight[0].detach(), torch.full((2,), 0.8))
    optimizer.zero_grad()
    optimizer.step()  # nobody has anything
    (folder / f"done-{rank}").touch()
    dist.destroy_process_group()


def test_sparse_sign_sgd_sums_over_processes(tmp_path):
    start_ranks(2, check_sparse_sums, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
