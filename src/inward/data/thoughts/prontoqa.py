"""ProntoQA in the JSON of its generator, read as Coconut reads it; and questions of its kind.

Source of the format: PrOntoQA (arXiv 2210.01240), `run_experiment.py --model-name json`: an object
of "example1", "example2", ..., each with a "test_example" of question (the context), query,
chain_of_thought (sentences) and answer. Coconut (arXiv 2412.06769) makes a record of it: question =
context and query, steps = consecutive pairs of sentences (11 sentences of 5 hops make 6 steps),
answer = True or False; split by order into 9,000 / 200 / 800.

`generate` is our own small generator of the same shape for work offline: a chain of fictional
kinds, a distractor property at each of them, rules in random order, answers half true. Its texts
are *not* those of the official generator, whose numbers must not be compared with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from inward.common.files import read_text, replacing
from inward.data.thoughts.records import Record

KINDS = (
    "wumpus yumpus zumpus dumpus rompus numpus tumpus vumpus impus jompus gorpus shumpus lempus "
    "sterpus grimpus lorpus brimpus"
).split()
PROPERTIES = (
    "bright dull red blue brown small large wooden metallic luminous liquid floral fruity spicy "
    "sweet sour earthy bitter opaque transparent kind mean angry happy feisty shy hot cold"
).split()
PERSONS = "Alex Fae Max Polly Rex Sally Sam Stella Wren".split()
_FIELDS = ("question", "query", "chain_of_thought", "answer")


def read_prontoqa(path: str | os.PathLike) -> list[Record]:
    """Read the generator's JSON in the order of its numbers.

    Raises FileNotFoundError, or ValueError that names the file and the example, with the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no data file at {path}; write one with ProntoQA's generator")
    try:
        examples = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno} is not JSON: {error.msg}; if the file was cut off, make "
            "it again"
        ) from error
    if not isinstance(examples, dict) or not examples:
        raise ValueError(
            f"{path} holds no object of examples; for the list that Coconut makes of it use "
            "inward.data.thoughts.records.read_json"
        )
    return [_read(path, name, examples[name]) for name in sorted(examples, key=_number)]


def _number(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name if c.isdigit())
    return (int(digits) if digits else 0, name)


def _read(path: Path, name: str, example: Any) -> Record:
    test = example.get("test_example") if isinstance(example, dict) else None
    missing = [f for f in _FIELDS if f not in test] if isinstance(test, dict) else ["test_example"]
    if missing or not isinstance(test, dict):
        raise ValueError(
            f"{path}, {name} lacks {', '.join(missing)}; each example needs a test_example with "
            f"{', '.join(_FIELDS)} (run the generator with --model-name json)"
        )
    try:
        return record_of(test["question"], test["query"], test["chain_of_thought"], test["answer"])
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}, {name}: {error}") from error


def record_of(context: str, query: str, sentences: Sequence[str], answer: str) -> Record:
    """A record as Coconut makes it: two sentences of the chain of thought are one step."""
    steps = tuple(" ".join(sentences[i : i + 2]) for i in range(0, len(sentences), 2))
    meta = {"context": context, "query": query, "chain_of_thought": list(sentences)}
    return Record(f"{context} {query}", steps, answer, meta)


def write_prontoqa(records: Iterable[Record], path: str | os.PathLike) -> Path:
    """Write the generator's form (temporary name, then rename); what `read_prontoqa` reads."""
    examples = {}
    for number, record in enumerate(records, start=1):
        examples[f"example{number}"] = {
            "test_example": {
                "question": record.meta["context"],
                "query": record.meta["query"],
                "chain_of_thought": record.meta["chain_of_thought"],
                "answer": record.answer,
            }
        }
    with replacing(path) as partial:
        partial.write_text(json.dumps(examples), encoding="utf-8")
    return Path(path)


def split(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Coconut's split of 10,000 by order: 9,000 train, 200 valid, the rest test."""
    if len(records) < 9201:
        raise ValueError(f"{len(records)} records; the published split needs more than 9,200")
    return {
        "train": list(records[:9000]),
        "valid": list(records[9000:9200]),
        "test": list(records[9200:]),
    }


def generate(num: int, *, seed: int, hops: int = 5) -> list[Record]:
    """Make `num` questions of `hops` rules each; question i depends on (seed, i) alone.

    Raises ValueError for a number of hops without enough names of kinds.
    """
    if num < 1 or not 1 <= hops <= len(KINDS) - 1:
        raise ValueError(
            f"num is {num} and hops {hops}; give 1 or more questions and 1 to {len(KINDS) - 1} hops"
        )
    return [_one(np.random.default_rng([seed, i]), hops) for i in range(num)]


def _one(rng: np.random.Generator, hops: int) -> Record:
    kinds = [KINDS[i] for i in rng.permutation(len(KINDS))[: hops + 1]]
    traits = [PROPERTIES[i] for i in rng.permutation(len(PROPERTIES))[: hops + 1]]
    person = str(rng.choice(PERSONS))
    *chain, stray = kinds
    holds = rng.random(hops + 1) < 0.5  # whether a kind has its trait, or lacks it

    def trait(i: int) -> str:
        return traits[i] if holds[i] else f"not {traits[i]}"

    rules = [f"Each {a} is {_a(b)}." for a, b in pairwise(chain)]
    rules += [f"Every {kind} is {trait(i)}." for i, kind in enumerate(chain)]
    # A kind off the chain claims the opposite of what is asked about: reading alone does not do.
    opposite = f"not {traits[hops - 1]}" if holds[hops - 1] else traits[hops - 1]
    rules.append(f"Every {stray} is {opposite}.")
    context = " ".join([*(rules[i] for i in rng.permutation(len(rules))), ""])
    context += f"{person} is {_a(chain[0])}."
    sentences = [f"{person} is {_a(chain[0])}."]
    for a, b in pairwise(chain):
        sentences += [f"Each {a} is {_a(b)}.", f"{person} is {_a(b)}."]
    last = trait(hops - 1)
    sentences += [f"Every {chain[-1]} is {last}.", f"{person} is {last}."]
    true = bool(rng.random() < 0.5)
    asked = last if true else opposite
    return record_of(context, f"True or false: {person} is {asked}.", sentences, str(true))


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
