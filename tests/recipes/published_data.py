"""The data that the published recipes ask for, at toy size, under the names that they ask for."""

import json
from pathlib import Path

import numpy as np

from inward.data.puzzles import arc, maze, sudoku
from inward.data.puzzles.folder import write_puzzles
from inward.data.texts.packed import PackedTokens
from inward.data.thoughts import prontoqa, prosqa
from inward.data.thoughts.records import write_json


def lay_out(root: Path) -> None:
    """Everything below root/data."""
    data = root / "data"
    data.mkdir()
    _records(data)
    _tokens(data)
    for split, seed in (("train", 0), ("test", 1)):
        write_puzzles(
            data / "sudoku-extreme-1k-aug-1000", split, sudoku.generate(3, n=9, seed=seed)
        )
        hard = maze.generate(3, size=29, seed=seed, canvas=30)
        write_puzzles(data / "maze-30x30-hard-1k", split, hard)
    for name in ("arc1concept-aug-1000", "arc2concept-aug-1000"):
        made = arc.build([_task("a", "training"), _task("b", "evaluation")], seed=0, num_variants=2)
        made.write(data / name)


def _task(name: str, subset: str) -> arc.Task:
    rng = np.random.default_rng(len(subset))
    pairs = [
        {
            "input": rng.integers(0, 10, (3, 3)).tolist(),
            "output": rng.integers(0, 10, (2, 3)).tolist(),
        }
        for _ in range(3)
    ]
    return arc.Task.parse(name, {"train": pairs[:2], "test": pairs[2:]}, subset=subset)


def _records(data: Path) -> None:
    (data / "gsm").mkdir()
    for name, first in (("train", 1), ("valid", 20), ("test", 30)):
        lines = [f"{i} and {i}?||<<{i}+{i}={2 * i}>> #### {2 * i}" for i in range(first, first + 8)]
        (data / "gsm" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    for seed, name in enumerate(("train", "valid", "test")):
        # as the official scripts leave them: ProntoQA without a graph, ProsQA with its own
        made = [
            {"question": r.question, "steps": list(r.steps), "answer": r.answer}
            for r in prontoqa.generate(6, seed=seed, hops=2)
        ]
        (data / f"prontoqa_{name}.json").write_text(json.dumps(made))
        small = prosqa.ProsQASettings(num_nodes=10, min_hops=2, max_hops=2)
        write_json(prosqa.generate(4, seed=seed, settings=small, rendering="text"),
                   data / f"prosqa_{name}.json")  # fmt: skip


def _tokens(data: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("train", "valid"):
        texts = [rng.integers(3, 60, size=int(n)).tolist() for n in rng.integers(9, 30, size=12)]
        PackedTokens.from_ids(texts).save(data / "tokens" / name)
    (data / "huginn-tokens").mkdir()
    np.save(data / "huginn-tokens" / "a.npy", rng.integers(0, 60, (6, 33)))
