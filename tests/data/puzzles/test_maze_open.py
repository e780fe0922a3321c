"""Mazes with open areas: what they are, and that any shortest path is right."""

from __future__ import annotations

import numpy as np
import pytest

from inward.data.puzzles import maze_open
from inward.data.puzzles.maze import PATH, VOCAB_SIZE, encode, maze_keys, shortest_paths
from inward.data.puzzles.puzzles import Puzzles
from inward.data.puzzles.source import MazeSource
from inward.evals.puzzles import scored_right
from inward.tasks.maze import MazeTask


@pytest.mark.parametrize("kind", sorted(maze_open.KINDS))
def test_labels_are_shortest_paths_by_the_fixed_rule(kind):
    made = maze_open.generate(60, size=11, seed=3, kinds=(kind,))
    task = MazeTask(11)
    assert task.verify(made.inputs, made.labels).all()
    assert made.rating is not None
    for maze, label, moves in zip(made.inputs, made.labels, made.rating, strict=True):
        found = shortest_paths(maze.reshape(11, 11))
        assert found.length == moves >= 2
        assert sorted(found.path[1:-1]) == np.flatnonzero(label == PATH).tolist()
    again = maze_open.generate(20, size=11, seed=3, kinds=(kind,))
    assert np.array_equal(again.inputs, made.inputs[:20])


def test_many_have_several_shortest_paths_and_are_no_squares():
    made = maze_open.generate(200, size=11, seed=0)
    task = MazeTask(11)
    several = np.mean([task.fault(maze) == "several solutions" for maze in made.inputs])
    assert 0.4 < several < 0.9
    open_cells = (made.inputs != 1).reshape(-1, 11, 11)
    heights, widths = open_cells.any(2).sum(1), open_cells.any(1).sum(1)
    assert (heights != widths).mean() > 0.5
    assert made.rating is not None and made.rating.max() >= 20  # not only short ones


def test_the_rule_goes_up_then_left_from_the_goal():
    text = "#####\n#S  #\n#   #\n#  G#\n#####".replace("\n", "")
    path = shortest_paths(encode(text).reshape(5, 5)).path
    assert [divmod(cell, 5) for cell in path] == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3)]


def test_any_shortest_path_is_right_where_a_label_holds_one():
    task = MazeTask((3, 3))
    maze = encode("S      G ").reshape(1, 9)  # S at (0, 0), G at (2, 1): three shortest paths
    down = encode("S  o  oG ").reshape(1, 9)
    across = encode("So  o  G ").reshape(1, 9)
    for answer in (down, across):
        assert task.verify(maze, answer).all()
    exact = (down == across).all(1)
    right, by = scored_right(task, exact, task.verify(maze, down))
    assert right.all() and by == "rules"


def test_training_leaves_held_out_mazes_out_and_old_streams_stay():
    held = maze_open.generate(5, size=5, seed=1)
    source = MazeSource((5,), seed=2, canvas=5, open_share=1.0, exclude=held)
    batch = source.batch(0, range(300), 300)
    inputs = batch["inputs"].numpy().astype(np.uint8)
    made = Puzzles(inputs, inputs, (5, 5), VOCAB_SIZE)
    assert not maze_keys(held) & maze_keys(made)
    plain = MazeSource((5, 7), seed=2, canvas=7).batch(3, range(8), 8)["inputs"]
    none = MazeSource((5, 7), seed=2, canvas=7, open_share=0.0).batch(3, range(8), 8)["inputs"]
    assert plain.equal(none)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 4}, "size is 4"),
        ({"kinds": ("caves",)}, "caves"),
        ({"kinds": ()}, "kinds are"),
        ({"num": 0}, "cannot generate 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    given = {"num": 3, "size": 7, "seed": 0} | changes
    with pytest.raises(ValueError, match=message):
        maze_open.generate(given.pop("num"), **given)
    with pytest.raises(ValueError, match=r"open_share is 1\.5"):
        MazeSource((5,), seed=0, open_share=1.5)
