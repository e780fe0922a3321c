"""k-hop pointer chasing: a shuffled list of arrows, then a walk along them whose middle is hidden.

    d>b a>d c>a b>c | a . .     which node comes next?   (c: a > d > b > c, three hops)

The arrows form one cycle through all nodes, so the nodes after 1, 2, ... n - 1 hops are all
different and none can be guessed from another. Difficulty is the number of hops from the last node
that is shown, that is the dots plus one: each hop needs the result of the one before, which is why
a network needs depth for it.

Unusual: a training row asks for the next node at *every* place of its walks, also where it then
shows a dot. So a row teaches all difficulties at once, from reading an arrow (a node is shown) to
long chains (only dots), the rule is the same everywhere, and a model can be asked for more hops
than it was trained on. The share of hidden nodes is drawn for each walk. A dot is a thought where a
shown node would be a word: this is the chain of thought and its latent form in one task.

Tokens: 0 padding, 1 dot, 2 .. n + 1 the nodes, then either n * n arrows, one token each
(arrows="token"), or the n nodes as sources (arrows="pair": source and target are two tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from inward.common import IGNORE

PAD, DOT, FIRST_NODE = 0, 1, 2
MAX_NODES = 26  # nodes have one letter each in text


@dataclass(frozen=True)
class Hops:
    """The generator; a `Rows` of inward.data.texts.text. ValueError for settings out of range."""

    num_nodes: int = 10
    max_hops: int = 6
    """length of a walk in a training row; questions may be longer"""
    num_walks: int = 2
    """walks in a training row, after one list of arrows"""
    arrows: Literal["token", "pair"] = "token"

    def __post_init__(self) -> None:
        if not 2 <= self.num_nodes <= MAX_NODES:
            raise ValueError(f"num_nodes is {self.num_nodes}; choose 2 to {MAX_NODES}")
        if not 1 <= self.max_hops < self.num_nodes:
            raise ValueError(
                f"max_hops is {self.max_hops}; choose 1 to {self.num_nodes - 1}, for after "
                f"{self.num_nodes} hops the cycle starts again"
            )
        if self.num_walks < 1:
            raise ValueError(f"num_walks is {self.num_walks}; a row needs at least 1")
        if self.arrows not in ("token", "pair"):
            raise ValueError(f"arrows is {self.arrows!r}; choose 'token' or 'pair'")

    @property
    def vocab_size(self) -> int:
        """Padding, dot, nodes, and arrows or sources."""
        n = self.num_nodes
        return FIRST_NODE + n + (n * n if self.arrows == "token" else n)

    @property
    def graph_length(self) -> int:
        """Tokens of the list of arrows."""
        return self.num_nodes * (1 if self.arrows == "token" else 2)

    @property
    def row_length(self) -> int:
        """Tokens of a training row."""
        return self.graph_length + self.num_walks * (self.max_hops + 1)

    @property
    def hardest(self) -> int:
        """Most hops of a question: one more would come back to the start."""
        return self.num_nodes - 1

    def row(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """ids and labels (row_length,): every place of a walk asks for the next node."""
        next_node = random_cycle(self.num_nodes, rng)
        ids = [self.graph(next_node, rng)]
        labels = [np.full(self.graph_length, IGNORE, dtype=np.int64)]
        for start in rng.integers(0, self.num_nodes, self.num_walks):
            path = FIRST_NODE + follow(next_node, int(start), self.max_hops)
            hidden = rng.random(len(path)) < rng.random()
            hidden[[0, -1]] = False  # the start, and the last node, which nothing follows
            ids.append(np.where(hidden, DOT, path))
            labels.append(np.concatenate([[IGNORE], path[1:]]))
        return np.concatenate(ids), np.concatenate(labels)

    def question(self, rng: np.random.Generator, difficulty: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and labels of one question of `difficulty` hops; only the last node has a label.

        Raises ValueError for less than one hop, or so many that the cycle starts again.
        """
        if not 1 <= difficulty <= self.hardest:
            raise ValueError(f"difficulty is {difficulty}; choose 1 to {self.hardest} hops")
        next_node = random_cycle(self.num_nodes, rng)
        path = FIRST_NODE + follow(next_node, int(rng.integers(self.num_nodes)), difficulty)
        arrows, dots = self.graph(next_node, rng), np.full(difficulty - 1, DOT)
        ids = np.concatenate([arrows, path[:1], dots, path[-1:]])
        labels = np.full(len(ids), IGNORE, dtype=np.int64)
        labels[-1] = path[-1]
        return ids, labels

    def graph(self, next_node: Sequence[int] | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Tokens of the arrows i -> next_node[i] in random order, (graph_length,)."""
        sources = rng.permutation(self.num_nodes)
        return self.arrow_tokens(sources, np.asarray(next_node)[sources])

    def arrow_tokens(self, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Tokens of the arrows sources[i] -> targets[i] (node numbers from 0), in this order."""
        first = FIRST_NODE + self.num_nodes
        if self.arrows == "token":
            return first + sources * self.num_nodes + targets
        return np.stack([first + sources, FIRST_NODE + targets], axis=1).ravel()

    def describe(self) -> dict[str, Any]:
        """Settings as JSON values, for logs and model cards."""
        return {"task": "hops", **asdict(self)}


def random_cycle(num_nodes: int, rng: np.random.Generator) -> np.ndarray:
    """(num_nodes,) the successor of each node, all on one cycle, all cycles equally likely."""
    order = rng.permutation(num_nodes)
    next_node = np.empty(num_nodes, dtype=np.int64)
    next_node[order] = np.roll(order, -1)
    return next_node


def follow(next_node: Sequence[int] | np.ndarray, start: int, hops: int) -> np.ndarray:
    """(hops + 1,) the nodes met on the way, `start` first."""
    path = [start]
    for _ in range(hops):
        path.append(int(next_node[path[-1]]))
    return np.array(path, dtype=np.int64)
