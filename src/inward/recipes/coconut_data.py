"""What the runs of Coconut train on and are measured on: generated puzzles and chains, or files.

Each is a frozen value with the same three things: `task()`, `split(name)`, and how many records
stay together (`group`); those that are generated also name their `words`, for a tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast

from inward.common.checks import need
from inward.common.files import digest
from inward.data.drawn import drawn
from inward.data.rows import place_of
from inward.data.thoughts import chains, prosqa, records
from inward.data.thoughts.anyfile import Names, ReadFile, RecordKind, apart, cut, read_any
from inward.data.thoughts.records import Record
from inward.tasks.chains import ChainTask
from inward.tasks.exact import ExactTask
from inward.tasks.prosqa import ProsQATask

AnyTask = ProsQATask | ChainTask | ExactTask


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
    """Files as they stand, of any form that `inward.data.thoughts.anyfile` reads.

    Files are paths, or names in $INWARD_DATA. No question is in two splits: those of valid and test
    are left out of training, and told.

    valid        empty: `num_valid` questions of the training file
    test         empty: `num_test` questions of it (0: there is no test set)
    num_train    so many of the records, drawn by the seed (without one: the first ones); 0: all
    longest      leave out records of more characters, question and steps together; 0: none
    seed         what is held out is drawn by it; None: it is the end of the file
    split_field  the field of each record that names its split, in a file that holds all
    question, steps, answer   what the fields of a record are called
    without_steps   records without steps: skip (and count) them, refuse them, or keep them
    score_by     how answers are judged: exact, equations (numbers; spoken equations are checked),
                 prosqa (the graph is checked, swaps are asked); auto: what the records allow
    """

    train: str
    valid: str
    test: str
    kind: RecordKind = "json"
    group: int = 1
    num_valid: int = 0
    num_train: int = 0
    longest: int = 0
    num_test: int = 0
    seed: int | None = None
    split_field: str = ""
    question: str = "question"
    steps: str = "steps"
    answer: str = "answer"
    without_steps: Literal["skip", "refuse", "keep"] = "skip"
    score_by: Literal["auto", "exact", "equations", "prosqa"] = "auto"

    def __post_init__(self) -> None:
        if not self.valid and not self.split_field and self.num_valid < 1:
            raise ValueError(
                f"valid is empty and num_valid is {self.num_valid}; name a file, or hold 1 or more "
                "training records out"
            )
        if self.split_field and (self.valid or self.test or self.num_valid or self.num_test):
            raise ValueError(
                f"split_field is {self.split_field!r}: the file itself says what is held out; "
                "leave out valid, test and their numbers, or the field"
            )
        for name in ("num_valid", "num_train", "num_test", "longest"):
            need(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")

    def task(self) -> AnyTask:
        """What the answers are judged by.

        Raises ValueError: `score_by` asks for what the records lack.
        """
        return judge_for(self.split("valid"), self.score_by)

    @property
    def has_test(self) -> bool:
        """Whether there is a test set beside the validation set."""
        return bool(self.test or self.num_test or (self.split_field and self.parts().sets["test"]))

    def split(self, name: Literal["train", "valid", "test"]) -> list[Record]:
        """Records of a split; FileNotFoundError names the file that is missing."""
        return list(self.parts().sets[name])

    def parts(self) -> FileParts:
        """All splits, and what was read."""
        files = tuple(_digest(name) for name in (self.train, self.valid, self.test) if name)
        return _parts(self, files)

    def read(self, name: str) -> ReadFile:
        """One of the files."""
        return read_any(
            name,
            self.kind,
            names=Names(self.question, self.steps, self.answer, self.split_field),
            without_steps=self.without_steps,
            longest=self.longest,
        )


def _digest(name: str) -> str:
    return digest(place_of(name))


@dataclass(frozen=True, eq=False)
class FileParts:
    """The splits of files.

    files: of each file its name, form, number of records, and skipped ones with the reason.
    moved: training records whose question is held out. read: name -> SHA-256, what a run is tied to
    """

    sets: Mapping[str, list[Record]]
    files: tuple[ReadFile, ...]
    moved: int
    read: Mapping[str, str]

    def told(self) -> list[str]:
        """What was read, a line a file, and the splits."""
        lines = []
        for file in self.files:
            skipped = "".join(f"; skipped {n}: {why}" for why, n in file.skipped.items())
            notes = "".join(f"; {note}" for note in file.notes)
            lines.append(f"{file.path}: {len(file.records)} records ({file.kind}){skipped}{notes}")
        sizes = ", ".join(f"{name} {len(part)}" for name, part in self.sets.items() if part)
        moved = f"; {self.moved} left out of training, their questions are held out"
        return [*lines, f"splits: {sizes}{moved if self.moved else ''}"]


@lru_cache(maxsize=4)
def _parts(data: FileData, digests: tuple[str, ...]) -> FileParts:
    """See `FileData.parts`; read again when a file has changed."""
    del digests
    main = data.read(data.train)
    files, moved = [main], 0
    sets: dict[str, list[Record]] = {"train": main.records, "valid": [], "test": []}
    if data.split_field:
        for name in sets:
            rows = zip(main.records, main.splits, strict=True)
            sets[name] = [record for record, split in rows if split == name]
        if empty := [name for name in ("train", "valid") if not sets[name]]:
            raise ValueError(
                f"{main.path}: the field {data.split_field!r} puts no record into "
                f"{' nor '.join(empty)}"
            )
    for name in ("valid", "test"):
        if getattr(data, name):
            files.append(data.read(getattr(data, name)))
            sets[name] = files[-1].records
    num_valid = 0 if data.valid else data.num_valid
    num_test = 0 if data.test else data.num_test
    if num_valid or num_test:
        if data.seed is None:
            made = _last(main.records, num_valid, num_test)
        else:
            made = cut(main.records, num_valid=num_valid, num_test=num_test, seed=data.seed)
        sets |= {name: part for name, part in made.items() if part}
    sets["train"], moved = apart(sets["train"], sets["valid"], sets["test"])
    if not sets["train"]:
        raise ValueError(
            f"{main.path}: no record is left to train on: of all {moved} the question is held out; "
            "hold out fewer, or name other files"
        )
    if data.num_train:
        sets["train"] = _some(sets["train"], data.num_train, data.seed)
    read = {str(file.path.name): file.sha256 for file in files}
    return FileParts(sets, tuple(files), moved, read)


def _some(records: list[Record], num: int, seed: int | None) -> list[Record]:
    if seed is None or num >= len(records):
        return records[:num]
    return [records[i] for i in drawn(len(records), num, seed=seed, what="records")]


def _last(records: list[Record], num_valid: int, num_test: int) -> dict[str, list[Record]]:
    """The end of a file is held out, as it stands."""
    if num_valid + num_test >= len(records):
        raise ValueError(
            f"{num_valid + num_test} of {len(records)} records are to be held out; nothing is left "
            "to train on"
        )
    rest, held = records[: -num_valid - num_test], records[-num_valid - num_test :]
    return {"train": rest, "valid": held[:num_valid], "test": held[num_valid:]}


def judge_for(records: Sequence[Record], name: str = "auto") -> AnyTask:
    """The task by which answers to these records are judged, see `FileData.score_by`.

    Raises ValueError: a name that there is not, or one that asks for what the records lack.
    """
    if name not in ("auto", "exact", "equations", "prosqa"):
        raise ValueError(f"score_by is {name!r}; choose auto, exact, equations or prosqa")
    name = _judge_of(records) if name == "auto" else name
    if name == "exact":
        ExactTask().check(records)
        return ExactTask()
    if name == "equations":
        return ChainTask()
    for record in records:
        prosqa.graph_of(record)
    return ProsQATask("text")


def _judge_of(records: Sequence[Record]) -> str:
    """The strictest of the tasks that all records allow."""
    if all("edges" in record.meta for record in records):
        try:
            for record in records:
                prosqa.graph_of(record)
            return "prosqa"
        except ValueError:
            pass
    steps = [step for record in records for step in record.steps]
    if steps and all(re.fullmatch(r"<<[^<>]*=[^<>]*>>", step) for step in steps):
        return "equations"
    return "exact"
