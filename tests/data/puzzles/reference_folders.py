"""Dataset folders as the reference's builders leave them, written by their rules and not by our
writer (TinyRecursiveModels, dataset/build_sudoku_dataset.py and build_maze_dataset.py):

- a group is an original puzzle with its augmentations, the original first; one example a puzzle;
- Sudoku: token = digit + 1, blank 1; augmented boards come out of a digit table, so int64;
- mazes: '# SGo' are 1 to 5; with `aug` eight turned and mirrored copies of each training maze;
- offsets and identifiers are int32, every identifier is 0, the only name is "<blank>";
- `total_puzzles` is the number of groups, as `total_groups` is;
- the test split is never augmented.
"""

import json
from pathlib import Path

import numpy as np

from inward.data.puzzles.puzzles import Puzzles

CHARACTERS = "# SGo"


def sudoku_folder(path: Path, split: str, puzzles: Puzzles, *, num_aug: int = 0) -> Path:
    """`build_sudoku_dataset.py --num-aug`: bands, rows of a band, stacks, columns, digits,
    transposition."""
    rng = np.random.default_rng(0)
    boards = [
        (q.astype(np.int64).reshape(9, 9) - 1, a.astype(np.int64).reshape(9, 9) - 1)
        for q, a in zip(puzzles.inputs, puzzles.labels, strict=True)
    ]
    groups = [
        [pair, *(_shuffled(pair, rng) for _ in range(num_aug if split == "train" else 0))]
        for pair in boards
    ]
    return _write(path, split, groups, vocab_size=11, shift=1, dtype=np.int64)


def _shuffled(pair, rng):
    digits = np.concatenate([[0], rng.permutation(np.arange(1, 10))])
    transpose = rng.random() < 0.5
    rows, cols = (
        np.concatenate([3 * band + rng.permutation(3) for band in rng.permutation(3)])
        for _ in range(2)
    )

    def moved(board):
        board = board.T if transpose else board
        return digits[board[rows][:, cols]]

    return tuple(moved(board) for board in pair)


def maze_folder(path: Path, split: str, texts: list[tuple[str, str]], *, aug: bool = False) -> Path:
    """`build_maze_dataset.py --aug`: questions and answers are squares in one line of '# SGo'."""
    ids = {character: token for token, character in enumerate(CHARACTERS, start=1)}

    def grid(text):
        side = int(len(text) ** 0.5)
        return np.array([ids[character] for character in text], np.uint8).reshape(side, side)

    groups = []
    for pair in texts:
        grids = tuple(grid(text) for text in pair)
        copies = 8 if split == "train" and aug else 1
        groups.append([tuple(_turned(g, number) for g in grids) for number in range(copies)])
    return _write(path, split, groups, vocab_size=6, shift=0, dtype=np.uint8)


def _turned(grid, number):
    turned = np.rot90(grid, number % 4)
    return turned if number < 4 else turned.T


def _write(path, split, groups, *, vocab_size, shift, dtype):
    folder = path / split
    folder.mkdir(parents=True)
    puzzles = [pair for group in groups for pair in group]
    sizes = np.cumsum([0, *(len(group) for group in groups)])
    arrays = {
        "inputs": np.stack([pair[0].reshape(-1) for pair in puzzles]).astype(dtype) + shift,
        "labels": np.stack([pair[1].reshape(-1) for pair in puzzles]).astype(dtype) + shift,
        "puzzle_identifiers": np.zeros(len(puzzles), np.int32),
        "puzzle_indices": np.arange(len(puzzles) + 1, dtype=np.int32),
        "group_indices": sizes.astype(np.int32),
    }
    info = {
        "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": vocab_size,
        "seq_len": arrays["inputs"].shape[1], "num_puzzle_identifiers": 1,
        "total_groups": len(groups), "mean_puzzle_examples": 1, "total_puzzles": len(groups),
        "sets": ["all"],
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / f"all__{name}.npy", array)
    (folder / "dataset.json").write_text(json.dumps(info))
    (path / "identifiers.json").write_text(json.dumps(["<blank>"]))
    return folder
