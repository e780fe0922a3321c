"""TiDAR decoding: is it the same text, and is it faster (`python benchmarks/tidar/decode.py WHAT`)?

    identity   schemes x K, greedy: texts that differ from plain greedy decoding (written down here
               with transformers' own cache), and, by one teacher-forced forward per text, every
               place where the said token is not the likeliest, with its distance in logits
    costs      seconds of a forward of q rows, by dtype and batch, with weights as they are and
               packed for the CPU: what the chooser decides by
    speed      schemes x K x dtype x batch, beside plain decoding here and in transformers and
               beside its prompt look-up and early-exit assisted decoding (batch 1 only)

In `speed` all contenders of all dtypes take one turn a round, on the same prompts; every round
takes other prompts. A rate is tokens a second, its ratio is taken within each round to the plain
decoding that is fastest in that batch size in any dtype. With one thread CPU time is measured,
otherwise wall time. Texts are compared with plain ones of the same dtype.

    --model FOLDER            a model of transformers; default stories260k in $INWARD_MODELS
    --gguf FILE               the GGUF file in that folder to read it from
    --tidar FOLDER            a TiDAR model; if it holds an adapter, --model is its base

Without --tidar the model drafts with a mask token it was never taught: enough for identity and for
costs, and an honest worst case for speed. Rows go to benchmarks/tidar/decode.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from inward.bench.run import quartiles
from inward.common.bases import with_cache
from inward.common.sampling import argmaxes
from inward.evals.rows import append_row, machine
from inward.methods.tidar.base import add_mask_token
from inward.methods.tidar.batch import Runner
from inward.methods.tidar.choose import Chooser
from inward.methods.tidar.decode import Decoded, decode
from inward.methods.tidar.measure import measure, measured
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.request import PromptLookup

ROWS = Path(__file__).with_suffix(".jsonl")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VERIFYING = ("two_pass", "one_pass", "partial")
THEIRS = "transformers plain"
IDENTITY_K = (*range(1, 9), 16)

STARTS = "Once upon a time,|One day,|There was|In a big house|Every morning".split("|")
HEROES = "a little girl|Tom|the old cat|a small dog named Max|Lily and her mom".split("|")

PROMPTS = {
    "ordinary": [
        "Explain in a few sentences why the sky is blue.",
        "Write a short letter to a friend about a walk in the mountains.",
        "What should one think about before buying a used bicycle?",
        "Describe how bread is made, from flour to loaf.",
        "Tell a short story about a lighthouse keeper and a storm.",
        "What is the difference between weather and climate?",
    ],
    "predictable": [
        "Count from 1 to 60, separated by commas.",
        "Write the alphabet five times, each time on a line of its own.",
        "List the twelve months with their number of days, one per line.",
        "Write a Python function that returns the sum of a list, then the same for the product, "
        "the minimum and the maximum.",
        "Repeat this sentence ten times: The quick brown fox jumps over the lazy dog.",
        "Copy this text exactly: 'The ship left the harbour at dawn. The crew was small but eager. "
        "The captain looked at the sea and said nothing.'",
    ],
}


# --------------------------------------------------------------------------------------------------
# Subjects


@dataclass
class Subject:
    """A model that can draft, in one dtype."""

    model: TiDAR
    tokenizer: Any
    dtype: str

    @property
    def lm(self) -> Any:
        """The model of transformers inside."""
        return self.model.model

    def banned(self) -> list[int]:
        """The mask token, if the model could say it."""
        id_ = self.model.mask_id
        return [id_] if id_ < self.lm.get_input_embeddings().weight.shape[0] else []

    def ids(self, text: str) -> list[int]:
        """Tokens of a prompt, in the chat form where there is one."""
        if self.tokenizer.chat_template:
            chat = [{"role": "user", "content": text}]
            options = {"add_generation_prompt": True, "return_dict": False}
            return list(self.tokenizer.apply_chat_template(chat, **options))
        return list(self.tokenizer(text).input_ids)


def default_model() -> Path:
    """stories260k, in $INWARD_MODELS or beside the repository."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "models"
    folder = Path(os.environ.get("INWARD_MODELS", beside)) / "stories260k"
    if not folder.is_dir():
        raise FileNotFoundError(f"no model at {folder}; pass --model or set INWARD_MODELS")
    return folder


def load(
    model: str | Path | None = None,
    *,
    gguf: str | None = None,
    tidar: str | Path | None = None,
    dtypes: Sequence[str] = ("float32",),
    block_size: int = 8,
) -> list[Subject]:
    """The same weights in each dtype."""
    if tidar is not None and model is None:
        wrapped, base = TiDAR.from_pretrained(tidar, dtype=torch.float32), tidar
        tokenizer = AutoTokenizer.from_pretrained(base)
    else:
        options = {} if gguf is None else {"gguf_file": gguf}
        folder = model or default_model()
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
        if tidar is None:
            wrapped = TiDAR(lm, add_mask_token(lm, tokenizer), block_size).eval()
        else:
            wrapped = TiDAR.from_pretrained(tidar, base=lm)
    found = []
    for name in dtypes:
        # hooks of an adapter do not survive a copy of the model alone: copy all, attach anew
        own = wrapped if len(dtypes) == 1 else copy.deepcopy(wrapped)
        own.to(DTYPES[name])
        if own.adapter is not None:
            own.adapter.attach(own.model)
        found.append(Subject(own.eval(), tokenizer, name))
    return found


def batch(prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Prompts padded at the left, and where they are real."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    return ids, torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])


# --------------------------------------------------------------------------------------------------
# identity


@torch.no_grad()
def greedy(lm: Any, prompt: list[int], num: int, banned: list[int]) -> list[int]:
    """Plain greedy decoding, with nothing of ours in it."""
    cache, new = DynamicCache(), []
    ids = torch.tensor([prompt])
    for _ in range(num):
        options = with_cache(lm, {"cache": cache, "use_cache": True, "logits_to_keep": 1})
        logits = lm(ids, **options).logits[:, -1]
        new.append(argmaxes(logits.float(), banned)[0])
        ids = torch.tensor([new[-1:]])
    return new


@torch.no_grad()
def teacher_forced(
    lm: Any, prompt: list[int], said: list[int], banned: list[int]
) -> list[tuple[int, float]]:
    """Places where another token was likelier, and by how much (logits), in one plain forward."""
    logits = lm(torch.tensor([prompt + said[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
    logits = logits.float()
    logits[:, banned] = -torch.inf
    short = logits.amax(-1) - logits.gather(-1, torch.tensor(said)[:, None])[:, 0]
    return [(int(i), float(short[i])) for i in short.nonzero()[:, 0]]


def starts(subject: Subject, num: int) -> list[list[int]]:
    """`num` prompts of different lengths."""
    if subject.tokenizer.chat_template:
        texts = [text for kind in PROMPTS.values() for text in kind]
    else:
        texts = [f"{start} {hero}" for start, hero in itertools.product(STARTS, HEROES)]
    # more than there are: the same ones with a number in front, which are other texts
    rounds = (f"{i}. " if i else "" for i in itertools.count())
    endless = (number + text for number in rounds for text in texts)
    return [subject.ids(text) for text in itertools.islice(endless, num)]


def identity(
    subject: Subject | None = None,
    *,
    num_texts: int = 25,
    max_new_tokens: int = 400,
    schemes: Sequence[str] = VERIFYING,
    Ks: Sequence[int] = IDENTITY_K,
    at_once: int = 25,
) -> Iterator[dict[str, Any]]:
    """A row per scheme and K, of num_texts * max_new_tokens tokens; no text ends early."""
    subject = load()[0] if subject is None else subject
    lm, banned = subject.lm, subject.banned()
    prompts = starts(subject, num_texts)
    plain = [greedy(lm, prompt, max_new_tokens, banned) for prompt in prompts]
    for scheme, K in itertools.product(schemes, Ks):
        said: list[list[int]] = []
        forwards = []
        for begin in range(0, num_texts, at_once):
            ids, real = batch(prompts[begin : begin + at_once])
            found = decode(
                subject.model,
                ids,
                attention_mask=real,
                scheme=scheme,
                K=K,
                max_new_tokens=max_new_tokens,
                eos_token_id=(),
            )
            said += found.tokens
            forwards += [len(trace.steps) for trace in found.traces]
        flips = [teacher_forced(lm, p, new, banned) for p, new in zip(prompts, said, strict=True)]
        margins = [margin for text in flips for _, margin in text]
        yield {
            "study": "identity",
            "scheme": scheme,
            "K": K,
            "dtype": subject.dtype,
            "texts": num_texts,
            "tokens": sum(map(len, said)),
            "different_texts": sum(a != b for a, b in zip(said, plain, strict=True)),
            "flips": len(margins),
            "largest_margin": max(margins, default=0.0),
            "tokens_per_forward": sum(map(len, said)) / sum(forwards),
        }


# --------------------------------------------------------------------------------------------------
# speed


@dataclass
class Contender:
    """A way to continue prompts; `go` returns new tokens per text, and traces where it has them."""

    name: str
    subject: Subject
    go: Callable[[Tensor, Tensor], tuple[list[list[int]], Decoded | None]]
    K: int = 0
    is_plain: bool = False
    chooser: Chooser | None = None
    rates: list[float] = field(default_factory=list)
    tokens: dict[int, list[list[int]]] = field(default_factory=dict)
    decoded: list[Decoded] = field(default_factory=list)
    seconds: float = 0.0


def contenders(
    subject: Subject, *, schemes: Sequence[str], Ks: Sequence[int], num: int, batch_size: int
) -> list[Contender]:
    """Everything that takes part in one dtype and batch size."""
    lm = subject.lm

    def ours(**settings: Any) -> Callable[..., Any]:
        def go(ids: Tensor, real: Tensor) -> tuple[list[list[int]], Decoded]:
            options = {"max_new_tokens": num, "attention_mask": real, **settings}
            found = decode(subject.model, ids, **options)
            return found.tokens, found

        return go

    def theirs(**settings: Any) -> Callable[..., Any]:
        def go(ids: Tensor, real: Tensor) -> tuple[list[list[int]], None]:
            options = {"max_new_tokens": num, "attention_mask": real, **settings}
            options |= {"do_sample": False, "suppress_tokens": subject.banned() or None}
            options["pad_token_id"] = subject.lm.generation_config.pad_token_id or 0
            new = lm.generate(ids, **options)[:, ids.shape[1] :]
            return [_cut(row, lm.generation_config.eos_token_id) for row in new.tolist()], None

        return go

    found = [
        Contender("plain", subject, ours(scheme="plain"), is_plain=True),
        Contender(THEIRS, subject, theirs(), is_plain=True),
    ]
    if batch_size == 1:
        layers = max(1, lm.config.num_hidden_layers // 3)
        look_up = {"prompt_lookup_num_tokens": 10}
        found += [
            Contender("transformers prompt look-up", subject, theirs(**look_up)),
            Contender("transformers early exit", subject, theirs(assistant_early_exit=layers)),
        ]
    for K in Ks:
        drafter = PromptLookup()
        found.append(Contender("look-up", subject, ours(scheme="plain", K=K, drafter=drafter), K))
        found += [Contender(s, subject, ours(scheme=s, K=K), K) for s in schemes]
    longest = max(Ks)
    for name, drafter in (("auto", None), ("auto + look-up", PromptLookup())):
        # one chooser for all texts, as in use
        chooser = Chooser(measured(Runner(subject.model), batch_size, 512), longest)
        go = ours(scheme="auto", K=longest, drafter=drafter, chooser=chooser)
        found.append(Contender(name, subject, go, longest, chooser=chooser))
    return found


def _cut(tokens: list[int], ends: int | list[int] | None) -> list[int]:
    """Without what comes after the end of a text."""
    ends = [ends] if isinstance(ends, int) else ends or []
    place = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: place + 1]


def speed(
    subjects: list[Subject],
    *,
    prompts: dict[str, list[str]],
    batch_size: int,
    schemes: Sequence[str],
    Ks: Sequence[int],
    rounds: int,
    max_new_tokens: int,
    skip: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Rows of every kind of prompt for one batch size, without the contenders named in `skip`."""
    for kind, texts in prompts.items():
        options = {"schemes": schemes, "Ks": Ks, "num": max_new_tokens, "batch_size": batch_size}
        everyone = [c for subject in subjects for c in contenders(subject, **options)]
        everyone = [c for c in everyone if c.is_plain or c.name not in skip]
        encoded = [subjects[0].ids(text) for text in texts]
        for turn in range(-1, rounds):  # the first turn warms up and measures costs
            first = turn * batch_size
            own = [encoded[(first + i) % len(encoded)] for i in range(batch_size)]
            for contender in everyone:
                _take_turn(contender, turn, *batch(own))
        plain = [c for c in everyone if c.is_plain]
        fastest = [
            max(group, key=lambda c: statistics.median(c.rates))
            for group in (plain, [c for c in plain if c.name == THEIRS])
        ]
        for contender in everyone:
            yield _speed_row(contender, fastest, plain, kind, batch_size)


def _take_turn(contender: Contender, turn: int, ids: Tensor, real: Tensor) -> None:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    tokens, decoded = contender.go(ids, real)
    seconds = clock() - began
    if turn < 0:
        return
    contender.rates.append(sum(map(len, tokens)) / seconds)
    contender.seconds += seconds
    contender.tokens[turn] = tokens
    if decoded is not None:
        contender.decoded.append(decoded)


def _speed_row(
    contender: Contender,
    fastest: Sequence[Contender],
    plain: list[Contender],
    kind: str,
    batch_size: int,
) -> dict[str, Any]:
    """fastest: plain decoding, and transformers' plain decoding."""
    subject = contender.subject
    same = next(c for c in plain if c.subject is subject)
    texts = [(t, b) for t, new in contender.tokens.items() for b in range(len(new))]
    ratio, to_theirs = (
        _spread([a / b for a, b in zip(contender.rates, other.rates, strict=True)])
        for other in fastest
    )
    row = {
        "study": "speed",
        "kind": kind,
        "contender": contender.name,
        "K": contender.K,
        "dtype": subject.dtype,
        "batch": batch_size,
        "threads": torch.get_num_threads(),
        "rate": _spread(contender.rates),
        "ratio": ratio,
        "ratio_to_transformers": to_theirs,
        "fastest_plain": f"{fastest[0].name}, {fastest[0].subject.dtype}",
        "texts": len(texts),
        "different_texts": sum(contender.tokens[t][b] != same.tokens[t][b] for t, b in texts),
    }
    return row | (_inside(contender) if contender.decoded else {})


def _spread(values: list[float]) -> list[float]:
    low, middle, high = sorted(quartiles(values))
    return [round(middle, 4), round(low, 4), round(high, 4)]


def _inside(contender: Contender) -> dict[str, Any]:
    """What the traces tell: tokens per forward, acceptance by place, rows per forward."""
    traces = [trace for decoded in contender.decoded for trace in decoded.traces]
    steps = [step for trace in traces for step in trace.steps[1:]]  # without the prompt
    forwards = sum(decoded.num_forwards for decoded in contender.decoded)
    tried, stood = [0] * contender.K, [0] * contender.K
    for step in steps:
        offered, accepted = int(step.scores["offered"]), int(step.scores["accepted"])
        for i in range(min(accepted + 1, offered)):
            tried[i] += 1
            stood[i] += i < accepted
    tokens = sum(len(trace.answer) for trace in traces)
    return {
        "tokens_per_forward": tokens / sum(len(trace.steps) for trace in traces),
        "acceptance": [round(s / t, 3) if t else None for s, t in zip(stood, tried, strict=True)],
        "slots": sum(step.scores["slots"] for step in steps) / max(len(steps), 1),
        "ms_per_forward": 1000 * contender.seconds / forwards,
        "picked": {} if contender.chooser is None else contender.chooser.picked,
    }


# --------------------------------------------------------------------------------------------------
# Command line


def read_prompts(path: Path | None, subject: Subject) -> dict[str, list[str]]:
    """JSON lines with `kind` and `text`; None: those at the top, or beginnings of stories."""
    if path is None and subject.tokenizer.chat_template:
        return PROMPTS
    if path is None:
        return {"stories": [f"{a} {b}" for a, b in itertools.product(STARTS, HEROES)]}
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["kind"], []).append(row["text"])
    return found


def rows_of(args: argparse.Namespace, subjects: list[Subject]) -> Iterator[dict[str, Any]]:
    """What the command line asks for."""
    if args.what == "identity":
        for subject in subjects:
            options = {"num_texts": args.texts, "max_new_tokens": args.tokens}
            yield from identity(subject, schemes=args.schemes, Ks=args.K, **options)
    elif args.what == "costs":
        turns = [
            (s, num, packed) for s in subjects for num in args.batch for packed in (False, None)
        ]
        for subject, num, packed in turns:
            runner = Runner(subject.model, packed=packed)
            costs = measure(runner, num_texts=num, num_cached=args.cached)
            ratios = [round(s / costs.seconds[0], 3) for s in costs.seconds]
            row = {"study": "costs", "dtype": subject.dtype, "batch": num}
            row |= {"packed": any(linears.products for linears in runner.fast.linears)}
            yield row | costs.to_dict() | {"to_one_row": ratios}
    else:
        prompts = read_prompts(args.prompts, subjects[0])
        unknown = sorted(set(args.kinds or ()) - set(prompts))
        if unknown:
            raise ValueError(f"--kinds {unknown}: there are prompts of {sorted(prompts)}")
        prompts = {kind: prompts[kind] for kind in args.kinds or prompts}
        for num in args.batch:
            yield from speed(
                subjects,
                prompts=prompts,
                batch_size=num,
                schemes=args.schemes,
                Ks=args.K,
                rounds=args.rounds,
                max_new_tokens=args.tokens,
                skip=args.skip,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("identity", "costs", "speed"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--gguf")
    parser.add_argument("--tidar", type=Path)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=DTYPES)
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--schemes", nargs="+", default=list(VERIFYING))
    parser.add_argument("--K", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--prompts", type=Path, help="JSON lines with kind and text")
    parser.add_argument("--skip", nargs="*", default=[], help="speed: contenders left out")
    parser.add_argument("--kinds", nargs="*", help="only these kinds of prompts")
    parser.add_argument("--texts", type=int, default=25, help="identity: number of texts")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens per text")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cached", type=int, default=256, help="costs: tokens in the cache")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=Path, default=ROWS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    subjects = load(args.model, gguf=args.gguf, tidar=args.tidar, dtypes=args.dtypes)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "benchmarks/tidar/decode.py", *given])
    told = {"model": str((args.tidar or args.model or default_model()).name)}
    told |= {"machine": machine(), "command": command}
    for row in rows_of(args, subjects):
        print(json.dumps(row), flush=True)
        append_row(args.rows, {**row, **told})


if __name__ == "__main__":
    main()
