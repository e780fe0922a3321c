"""Damaged files of every kind, many of them, against every loader.

    python tests/fuzz_loaders.py --cases 3000 --seed 0 [--only puzzles]

Each case takes good files (`KINDS`), damages one of them by a seeded draw (bytes: flips, cuts,
insertions, other files' content; structures: values of JSON and of array headers replaced by
wrong types, huge numbers, other names), and loads. What may come of it: the loader succeeds, or a
ValueError or OSError whose message names the file or its folder. Anything else, more than
`--seconds` for one case, or more than `--gib` of memory, is a failure, told by the case's number.
Cases run in one process with a limit on its memory and an alarm; a crash of the process is told by
the last number printed with --verbose.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHIPPED = Path(__file__).parents[1] / "src" / "inward" / "checkpoints"


# --- good files -----------------------------------------------------------------------------------


def _model(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copytree(SHIPPED / name, folder, dirs_exist_ok=True)

    return make


def _open_model(folder: Path) -> None:
    from inward.hub import load, read_about

    load(folder)
    read_about(folder)


def _open_thinker(folder: Path) -> None:
    import inward

    inward.open(folder)


def _read_recipe(folder: Path) -> None:
    from inward.recipes.of import recipe_of

    recipe_of(folder)


def _make_run(folder: Path) -> None:
    from tests.train.toy import toy_train

    toy_train(folder, steps=4, save_every=2, eval_every=2)


def _go_on(folder: Path) -> None:
    from tests.train.toy import toy_train

    toy_train(folder, steps=5, save_every=2, eval_every=2)


def _make_plain(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="6KB")


def _make_puzzles(folder: Path) -> None:
    from inward.data.puzzles import sudoku

    puzzles = sudoku.generate(5, n=4, seed=1, progress=False)
    puzzles.save(folder / "plain.npz")
    puzzles.save(folder / "small.npz", compress=True)


def _read_puzzles(folder: Path) -> None:
    from inward.data.puzzles.puzzles import Puzzles

    for name in ("plain.npz", "small.npz"):
        Puzzles.load(folder / name)
    Puzzles.load(folder / "plain.npz", mapped=True)


def _make_tables(folder: Path) -> None:
    from inward.data.puzzles import maze, sudoku

    puzzles = sudoku.generate(4, n=4, seed=1, progress=False)
    sudoku.write_csv(puzzles, folder / "sudoku.csv")
    lines = [sudoku.decode(row) for row in puzzles.inputs]
    (folder / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    maze.write_csv(maze.generate(3, size=5, seed=1), folder / "maze.csv")


def _read_tables(folder: Path) -> None:
    from inward.data.puzzles import maze, sudoku

    sudoku.read_csv(folder / "sudoku.csv", progress=False)
    sudoku.read_lines(folder / "lines.txt", progress=False)
    maze.read_csv(folder / "maze.csv")


def _make_dataset(folder: Path) -> None:
    from inward.data.puzzles import sudoku
    from inward.data.puzzles.folder import write_json, write_puzzles

    write_puzzles(folder, "test", sudoku.generate(6, n=4, seed=1, progress=False))
    write_json(folder / "identifiers.json", ["<blank>"])


def _read_dataset(folder: Path) -> None:
    from inward.data.puzzles.folder import Folder

    found = Folder(folder, "test")
    found.check()
    found.puzzles((4, 4))


ARC = {"train": [{"input": [[0, 1]], "output": [[1]]}], "test": [{"input": [[2]], "output": [[3]]}]}


def _make_arc(folder: Path) -> None:
    (folder / "tasks").mkdir()
    for name in ("a", "b"):
        (folder / "tasks" / f"{name}.json").write_text(json.dumps(ARC), encoding="utf-8")
    questions = {"a": {**ARC, "test": [{"input": [[2]]}]}}
    (folder / "x_challenges.json").write_text(json.dumps(questions), encoding="utf-8")
    (folder / "x_solutions.json").write_text(json.dumps({"a": [[[3]]]}), encoding="utf-8")


def _read_arc(folder: Path) -> None:
    from inward.data.puzzles import arc

    arc.read_folder(folder / "tasks")
    arc.read_kaggle(folder / "x_challenges.json")


def _make_texts(folder: Path) -> None:
    from inward.data.texts.packed import PackedTokens

    PackedTokens.from_answers([([1, 2], [3]), ([4], [5, 6])]).save(folder / "packed")
    (folder / "rows").mkdir()
    np.save(folder / "rows" / "a.npy", np.arange(12).reshape(3, 4))


def _read_texts(folder: Path) -> None:
    from inward.data.texts.packed import PackedTokens
    from inward.data.texts.text import TokenSource

    PackedTokens.open(folder / "packed")
    TokenSource(folder / "rows", length=4, vocab_size=12, seed=0)


def _make_records(folder: Path) -> None:
    row = {"question": "one and two?", "steps": ["<<1+2=3>>"], "answer": "3"}
    gsm = {"question": "one and two?", "answer": "it is <<1+2=3>>3\n#### 3"}
    example = {
        "question": "q",
        "query": "True or false: x",
        "chain_of_thought": ["a"],
        "answer": "True",
    }
    files = {
        "list.json": json.dumps([row, row]),
        "gsm.jsonl": json.dumps(gsm) + "\n" + json.dumps(gsm) + "\n",
        "icot.txt": "one and two?||<<1+2=3>> #### 3\n",
        "pronto.json": json.dumps({"example1": {"test_example": example}}),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _read_records(folder: Path) -> None:
    from inward.data.thoughts.prontoqa import read_prontoqa
    from inward.data.thoughts.records import read_gsm8k, read_icot, read_json

    read_json(folder / "list.json")
    read_gsm8k(folder / "gsm.jsonl")
    read_gsm8k(folder / "gsm.jsonl", steps="sentences")
    read_icot(folder / "icot.txt")
    read_prontoqa(folder / "pronto.json")


def _make_traces(folder: Path) -> None:
    from inward.common.trace import Cost, Span, Step, Trace, write_traces

    span = Span(np.arange(3), np.ones(3))
    step = Step(1, "write", says=span, scores={"p": 0.5}, cost=Cost(forwards=1, flops=2.0))
    write_traces([Trace("trm", np.arange(4), [step], pieces={1: "a"})] * 2, folder / "t.jsonl")


def _read_traces(folder: Path) -> None:
    from inward.common.trace import read_traces

    read_traces(folder / "t.jsonl")


@dataclass(frozen=True)
class Kind:
    """Files, how they are made and how they are read; `share` weighs the draw of kinds."""

    make: Callable[[Path], None]
    read: Callable[[Path], None]
    share: int = 10


KINDS = {
    "trm": Kind(_model("sudoku6"), _open_model),
    "huginn": Kind(_model("huginn-hops"), _open_model),
    "coconut": Kind(_model("prosqa"), _open_model),
    "tidar": Kind(_model("stories-draft"), _open_model, 5),
    "plain": Kind(_make_plain, _open_model),
    "thinker": Kind(_model("sudoku6"), _open_thinker),
    "recipe": Kind(_model("sudoku6"), _read_recipe),
    "run": Kind(_make_run, _go_on),
    "puzzles": Kind(_make_puzzles, _read_puzzles, 15),
    "tables": Kind(_make_tables, _read_tables, 15),
    "dataset": Kind(_make_dataset, _read_dataset, 15),
    "arc": Kind(_make_arc, _read_arc, 15),
    "texts": Kind(_make_texts, _read_texts, 15),
    "records": Kind(_make_records, _read_records, 15),
    "traces": Kind(_make_traces, _read_traces, 15),
}


# --- damage ---------------------------------------------------------------------------------------

WRONG: list[Any] = [
    None, True, -1, 0, 1, 3, 7, 2**31, 10**12, 2**63, -(10**30), 0.5, 1e308, float("nan"),
    float("inf"), "", "x", "../x", "/etc/passwd", "\0", [], {}, [[]], [None], [1, "a"], {"a": 1},
    "a" * 5000, [0] * 300,
]  # fmt: skip
NUMBERS = (b"0", b"-1", b"99999999999", b"(3,", b"'O'", b"<f4", b"True", b"None")


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, cut, insert, repeat, blank, or replace."""
    size = max(1, len(content))
    at, to = sorted((rng.randrange(size), rng.randrange(size)))
    near = min(at, rng.choice((16, 128, size)))  # headers are worth more than bodies
    way = rng.randrange(8)
    if way == 0:
        return content[:at]
    if way == 1:
        return content[:near] + rng.randbytes(rng.choice((1, 8, 64))) + content[near:]
    if way == 2:
        return content[:at] + content[to:]
    if way == 3:
        return content + content[at:to]
    if way == 4:
        return content[:near] + b"\0" * 8 + content[near + 8 :]
    if way == 5:
        return rng.choice((b"", b"\0", b"\xff\xfe", b"[" * 100_000, rng.randbytes(200)))
    if way == 6:
        return content[:near] + rng.choice(NUMBERS) + content[near:]
    changed = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 1, 4, 32))):
        changed[rng.randrange(min(len(changed), rng.choice((64, 512, size))))] ^= (
            1 << rng.randrange(8)
        )
    return bytes(changed)


def damage_value(rng: random.Random, value: Any) -> Any:
    """Somewhere inside a JSON value: another value, a missing name, a new one, twice the items."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(sorted(value))
        way = rng.random()
        if way < 0.1:
            return {key: inner for key, inner in value.items() if key != name}
        if way < 0.2:
            return {**value, rng.choice(("x", "", "auto_map", "__class__")): rng.choice(WRONG)}
        return {**value, name: damage_value(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        way = rng.random()
        if way < 0.1:
            return value[:place] + value[place + 1 :]
        if way < 0.2:
            return value + value[place:]
        return [*value[:place], damage_value(rng, value[place]), *value[place + 1 :]]
    return rng.choice(WRONG)


def damage_json(rng: random.Random, text: str) -> str:
    """One value of a JSON file, or of one line of it."""
    lines = [text] if text.lstrip().startswith(("[\n", "{\n")) else text.splitlines()
    place = rng.randrange(max(1, len(lines)))
    try:
        lines[place] = json.dumps(damage_value(rng, json.loads(lines[place])))
    except (ValueError, IndexError):
        return text[: len(text) // 2]
    return "\n".join(lines) + "\n"


def damage_header(rng: random.Random, content: bytes) -> bytes:
    """One value in the header of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
    except ValueError:
        return damage_bytes(rng, content)
    changed = json.dumps(damage_value(rng, header)).encode()
    return len(changed).to_bytes(8, "little") + changed + content[8 + length :]


def damage(rng: random.Random, folder: Path) -> str:
    """Damage one file of a folder (small ones first in half of the cases); says how."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    told = [path for path in files if path.suffix in (".json", ".jsonl")]
    path = rng.choice(told if told and rng.random() < 0.5 else files)
    name, way = path.relative_to(folder).as_posix(), rng.random()
    if way < 0.04:
        path.unlink()
        return f"{name}: deleted"
    if way < 0.07:
        path.unlink()
        path.mkdir()
        return f"{name}: a folder"
    if way < 0.1:
        path.write_bytes(rng.choice(files).read_bytes() if path not in files[:1] else b"")
        return f"{name}: another file's content"
    if path.suffix in (".json", ".jsonl") and way < 0.8:
        text = path.read_text(encoding="utf-8", errors="replace")
        path.write_text(damage_json(rng, text), encoding="utf-8")
        return f"{name}: a value"
    if path.suffix == ".safetensors" and way < 0.6:
        path.write_bytes(damage_header(rng, path.read_bytes()))
        return f"{name}: a value of the header"
    path.write_bytes(damage_bytes(rng, path.read_bytes()))
    return f"{name}: bytes"


# --- cases ----------------------------------------------------------------------------------------


class Late(BaseException):
    """A case took too long."""


def _late(*_: Any) -> None:
    raise Late


def make_all(root: Path, names: list[str]) -> None:
    """The good files, once, and see that they are good."""
    for name in names:
        (root / name).mkdir(parents=True)
        KINDS[name].make(root / name)
        copy = root / f"copy-{name}"
        shutil.copytree(root / name, copy)
        KINDS[name].read(copy)
        shutil.rmtree(copy)


def run_case(
    number: int, seed: int, root: Path, names: list[str], seconds: float
) -> tuple[str, str]:
    """(what came of it, what was done): "loaded", "ValueError", "OSError", or "FAILED: ..."."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choices(names, [KINDS[n].share for n in names])[0]
    folder = root / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / name, folder)
    what = f"case {number}, {name}, {damage(rng, folder)}"
    began = time.monotonic()
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _late)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        KINDS[name].read(folder)
        return "loaded", what
    except (ValueError, OSError) as error:
        kind = "OSError" if isinstance(error, OSError) else "ValueError"
        if str(folder) not in str(error):
            return f"FAILED: names no file: {kind}: {error}", what
        return kind, what
    except Late:
        return f"FAILED: {time.monotonic() - began:.1f} s", what
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return f"FAILED: {type(error).__name__}: {error}", what
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz(
    cases: range,
    *,
    seed: int,
    names: list[str],
    seconds: float = 20.0,
    verbose: bool = False,
    stop: int = 10**9,
) -> tuple[Counter[str], Counter[str], list[str]]:
    """Run cases; returns outcomes, cases by kind, and the failures in words."""
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a strange file may make any package beneath us warn
        root = Path(temporary)
        make_all(root, names)
        for number in cases:
            outcome, what = run_case(number, seed, root, names, seconds)
            kinds[what.split(", ")[1]] += 1
            outcomes[outcome.split(":")[0]] += 1
            if outcome.startswith("FAILED"):
                failures.append(f"{what}: {outcome[:600]}")
            if verbose:
                print(what, "->", outcome[:200], flush=True)
            if len(failures) >= stop:
                break
    return outcomes, kinds, failures


def _limit_memory(gib: float) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    size = int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def main() -> int:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    _limit_memory(options.gib)
    began = time.monotonic()
    outcomes, kinds, failures = fuzz(
        range(options.first, options.first + options.cases),
        seed=options.seed,
        names=options.only,
        seconds=options.seconds,
        verbose=options.verbose,
    )
    for failure in failures:
        print(failure)
    print(f"{options.cases} cases, seed {options.seed}, {time.monotonic() - began:.0f} s")
    print("outcomes:", dict(sorted(outcomes.items())))
    print("kinds:", dict(sorted(kinds.items())))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
