"""What the runs of Coconut train on and are measured on: generated puzzles and chains, or files.

Each is a frozen value with the same three things: `task()`, `split(name)`, and how many records
stay together (`group`); those that are generated also name their `words`, for a tokenizer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from inward.data.thoughts import chains, prosqa, records
from inward.data.thoughts.records import Record
from inward.tasks.chains import ChainTask
from inward.tasks.prosqa import ProsQATask


@dataclass(frozen=True)
class ProsQAData:
    """Generated puzzles for training, none of them in valid or test; written anew at every visit.

    test_file   the released prosqa_test.json; empty: generated as well
    pairs       a question and its swap stand side by side in every batch
    num_symbols numbers that name nodes in the symbolic rendering, at least as many as there are
                nodes; the released graphs need 28
    joined      an edge of the question is one word ("3_14") instead of a pair; see
                `inward.data.thoughts.prosqa.joined`
    """

    rendering: prosqa.Rendering = "symbolic"
    graphs: prosqa.ProsQASettings = field(default_factory=prosqa.ProsQASettings)
    num_train: int = 17_886
    num_valid: int = 300
    num_test: int = 500
    test_file: str = ""
    pairs: bool = False
    num_symbols: int = 28
    joined: bool = False
    seed: int = 0

    @property
    def group(self) -> int:
        """Records that stay together."""
        return 2 if self.pairs else 1

    def task(self) -> ProsQATask:
        """How to ask and score."""
        return ProsQATask(self.rendering, num_symbols=self._num_symbols, joined=self.joined)

    @property
    def _num_symbols(self) -> int:
        return max(self.num_symbols, self.graphs.num_nodes)

    def split(self, name: Literal["train", "valid", "test"]) -> list[Record]:
        """Puzzles of a split, the same for the same fields."""
        if name == "test":
            return records.read_json(self.test_file) if self.test_file else self._test()
        if name == "valid":
            return self._make(self.num_valid, 2, self.split("test"))
        held_out = self.split("test") + self.split("valid")
        return self._make(self.num_train, 3, held_out, pairs=self.pairs)

    def _test(self) -> list[Record]:
        return self._make(self.num_test, 1, [])

    def _make(
        self, num: int, stream: int, exclude: list[Record], *, pairs: bool = False
    ) -> list[Record]:
        return prosqa.generate(
            num, seed=10 * self.seed + stream, settings=self.graphs, exclude=exclude, pairs=pairs
        )

    def words(self) -> list[str]:
        """Texts that hold every word of the rendering, whatever was generated."""
        if self.rendering == "symbolic":
            numbers = [str(i) for i in range(self._num_symbols)]
            edges = [f"{a}_{b}" for a in numbers for b in numbers] if self.joined else [prosqa.BAR]
            return [" ".join([*numbers, *edges, prosqa.QUERY, prosqa.ROOT]) + "\n### 0"]
        names = " ".join([*prosqa.ENTITIES, *prosqa.concepts(max(38, self.graphs.num_nodes))])
        return [f"Every {names} is a or. Is?\n### a"]


@dataclass(frozen=True)
class ChainData:
    """Generated arithmetic chains, digits as tokens; no computation of training is in the tests."""

    rendering: chains.Rendering = "symbolic"
    settings: chains.ChainSettings = field(default_factory=chains.ChainSettings)
    num_train: int = 20_000
    num_valid: int = 300
    num_test: int = 500
    pairs: bool = False
    seed: int = 0

    @property
    def group(self) -> int:
        """Records that stay together."""
        return 2 if self.pairs else 1

    def task(self) -> ChainTask:
        """How to ask and score."""
        return ChainTask(self.rendering)

    def split(self, name: Literal["train", "valid", "test"]) -> list[Record]:
        """Chains of a split, the same for the same fields."""
        before: dict[str, list[str]] = {"test": [], "valid": ["test"], "train": ["test", "valid"]}
        exclude = [r for earlier in before[name] for r in self.split(cast(Any, earlier))]
        stream = ("test", "valid", "train").index(name) + 1
        return chains.generate(
            getattr(self, f"num_{name}"),
            seed=10 * self.seed + stream,
            settings=self.settings,
            rendering=self.rendering,
            exclude=exclude,
            pairs=self.pairs and name == "train",
        )

    def words(self) -> list[str]:
        """Texts that hold every word of the rendering."""
        names = chains.LETTERS if self.rendering == "symbolic" else chains.NAMES
        told = " ".join([*names, "has times as many coins than more fewer How"])
        return [f"{told}. 0123456789?\n<<0+0-0*0=0>>\n### 0"]


@dataclass(frozen=True)
class FileData:
    """Files as they stand: the released JSON, GSM8k-Aug's text, or GSM8K's own JSON lines.

    Files are paths, or names in $INWARD_DATA.

    valid       empty: the last `num_valid` records of the training file
    num_train   the first ones only; 0: all
    longest     leave out records of more characters, question and steps together; 0: none
    """

    train: str
    valid: str
    test: str
    kind: Literal["json", "icot", "gsm8k"] = "json"
    group: int = 1
    num_valid: int = 0
    num_train: int = 0
    longest: int = 0

    def __post_init__(self) -> None:
        if not self.valid and self.num_valid < 1:
            raise ValueError(
                f"valid is empty and num_valid is {self.num_valid}; name a file, or hold 1 or more "
                "training records out"
            )

    def task(self) -> ChainTask | ProsQATask:
        """Exact answers: arithmetic for GSM8K; ProsQA's own for files with graphs."""
        return ProsQATask("text") if self.kind == "json" else ChainTask()

    def split(self, name: Literal["train", "valid", "test"]) -> list[Record]:
        """Records of a split; FileNotFoundError names the file that is missing."""
        own = getattr(self, name)
        found = self._read(own or self.train)
        if name == "valid":
            return found if own else found[-self.num_valid :]
        if name == "train":
            found = found if self.valid else found[: -self.num_valid]
            return found[: self.num_train or None]
        return found

    def _read(self, name: str) -> list[Record]:
        path = Path(name)
        if not path.exists():
            path = Path(os.environ.get("INWARD_DATA", "data")) / name
        if self.kind == "json":
            found = records.read_json(path)
        elif self.kind == "icot":
            found = records.read_icot(path)
        else:  # a few solutions carry no calculator marks
            found = records.with_steps(records.read_gsm8k(path), skip=True)
        return [r for r in found if not self.longest or _length(r) <= self.longest]


def _length(record: Record) -> int:
    return len(record.question) + sum(map(len, record.steps))
