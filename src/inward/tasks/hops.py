"""The pointer-chasing task: how to write, read and check a question (`inward.data.texts.hops`).

`verify` follows the arrows that stand in the question, so it needs no label, and it judges
questions that a person has typed: any arrows will do, also ones that do not form one cycle.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from string import ascii_lowercase

import numpy as np

from inward.data.texts.hops import DOT, FIRST_NODE, PAD, Hops, follow


@dataclass(frozen=True)
class HopsTask:
    """Questions with the alphabet of `rows`."""

    rows: Hops = field(default_factory=Hops)

    @property
    def name(self) -> str:
        """Name in tables and file names, such as hops10."""
        return f"hops{self.rows.num_nodes}"

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.rows.vocab_size

    @property
    def _names(self) -> str:
        return ascii_lowercase[: self.rows.num_nodes]

    def parse(self, text: str) -> np.ndarray:
        """Token ids (P,) of a question such as "a>c b>a c>b | a . .".

        Raises ValueError unless every node has one arrow and the walk begins with a node.
        """
        if text.count("|") != 1:
            names = self._names
            ring = " ".join(f"{a}>{b}" for a, b in zip(names, names[1:] + names[:1], strict=True))
            raise ValueError(f"{text!r}: write arrows, '|', a node and dots, as in '{ring} | a .'")
        drawn, walk = text.split("|")
        arrows = [word.partition(">") for word in drawn.split()]
        sources = np.array([self._node(a) for a, _, _ in arrows], dtype=np.int64)
        targets = np.array([self._node(b) for _, _, b in arrows], dtype=np.int64)
        if sorted(sources) != list(range(self.rows.num_nodes)):
            raise ValueError(
                f"{drawn.strip()!r} must hold one arrow x>y from each of the {len(self._names)} "
                f"nodes a to {self._names[-1]}"
            )
        places = re.findall(r"\.|[^.\s]+", walk)
        if not places or places[0] == ".":
            raise ValueError(f"{walk.strip()!r} must begin with a node; dots may follow")
        ids = [DOT if place == "." else FIRST_NODE + self._node(place) for place in places]
        return np.concatenate([self.rows.arrow_tokens(sources, targets), ids])

    def _node(self, name: str) -> int:
        if len(name) != 1 or name not in self._names:
            raise ValueError(f"{name!r} is no node; nodes are a to {self._names[-1]}")
        return self._names.index(name)

    def format(self, ids: np.ndarray) -> str:
        """Text of a question or a row; `parse` reads it back. ValueError for a wrong token."""
        ids = np.asarray(ids)
        ids = ids[ids != PAD]
        sources, targets = self._arrows(ids)
        arrows = [
            f"{self._names[a]}>{self._names[b]}" for a, b in zip(sources, targets, strict=True)
        ]
        walk = [self.word(int(token)) for token in ids[self.rows.graph_length :]]
        return " ".join([*arrows, "|", *walk])

    def word(self, token: int) -> str:
        """A token of a walk as text; ValueError if it is neither a node nor a dot."""
        if token == DOT:
            return "."
        if not FIRST_NODE <= token < FIRST_NODE + self.rows.num_nodes:
            raise ValueError(f"token {token} is neither a node nor a dot")
        return self._names[token - FIRST_NODE]

    def piece(self, token: int) -> str:
        """A token of a question or a walk as text; ValueError as `word`."""
        pair = token - FIRST_NODE - self.rows.num_nodes
        if self.rows.arrows == "token" and 0 <= pair < self.rows.num_nodes**2:
            source, target = divmod(pair, self.rows.num_nodes)
            return f"{self._names[source]}>{self._names[target]}"
        return self.word(token)

    def _arrows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sources and targets of the arrows at the head of `ids`, node numbers from 0."""
        n, first = self.rows.num_nodes, FIRST_NODE + self.rows.num_nodes
        head = np.asarray(ids)[: self.rows.graph_length]
        if self.rows.arrows == "token":
            sources, targets = np.divmod(head - first, n)
        else:
            sources, targets = head[0::2] - first, head[1::2] - FIRST_NODE
        both = np.concatenate([sources, targets])
        if len(head) != self.rows.graph_length or both.min() < 0 or both.max() >= n:
            raise ValueError(f"the row does not begin with {n} arrows")
        return sources, targets

    def solve(self, prompt: np.ndarray) -> int:
        """The token of the node that comes next in the walk, from its last shown node."""
        prompt = np.asarray(prompt)
        sources, targets = self._arrows(prompt)
        next_node = np.empty(self.rows.num_nodes, dtype=np.int64)
        next_node[sources] = targets
        walk = prompt[self.rows.graph_length :]
        shown = np.flatnonzero(walk != DOT)
        if not len(shown):
            raise ValueError("the walk shows no node to start from")
        hops = len(walk) - shown[-1]
        return FIRST_NODE + int(follow(next_node, int(walk[shown[-1]]) - FIRST_NODE, hops)[-1])

    def verify(self, prompts: list[np.ndarray], answers: np.ndarray) -> np.ndarray:
        """(B,) bool: which answers, (B,) or (B, 1) token ids, are the node that comes next."""
        answers = np.asarray(answers).reshape(len(prompts), -1)
        if answers.shape[1] != 1:
            raise ValueError(f"answers have shape {answers.shape}; one token per prompt is needed")
        return answers[:, 0] == np.array([self.solve(prompt) for prompt in prompts])
