"""Coconut's speed and memory beside a plain step of the same batch, and beside the paper's code.

    inward bench coconut --reference CLONE --reference-packages FOLDER --threads 2

CLONE is one of facebookresearch/coconut. Its module needs transformers 4.46 to 4.53: FOLDER holds
such a version (`pip install --target FOLDER transformers==4.53.3`) and is put first on the import
path of the process that the reference runs in. It gets the same weights and the same batch, and its
loss is compared before anything is timed. Nothing is written into the clone.

Sides take turns within a round, so that what else the machine does hits all of them; the figure is
the ratio within a round.

    plain         one pass over the same columns, the same columns read by the head
    coconut       the same batch with its thoughts in one block
    interleaved   the same number of thoughts in two blocks

A step is forward and backward. "generate n" answers n prompts that hold the thoughts already;
plain is transformers' own greedy generation after as many positions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import GPT2Config, GPT2LMHeadModel

from inward.data.thoughts.segments import Latent, Sample, Specials, Text
from inward.methods.coconut.generate import generate
from inward.methods.coconut.model import Coconut


@dataclass(frozen=True)
class BaseSizes:
    """The configuration, printed with every result; the defaults are the project's goal."""

    layers: int = 4
    width: int = 256
    heads: int = 8
    vocabulary: int = 1024
    rows: int = 16
    columns: int = 200
    thoughts: int = 6
    new_tokens: int = 64
    seed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.layers} layers, width {self.width}, {self.heads} heads, vocabulary "
            f"{self.vocabulary}; {self.rows} rows of {self.columns}, {self.thoughts} thoughts"
        )


DEFAULT = BaseSizes()

Side = Callable[[], Any]


def make_model(sizes: BaseSizes) -> Coconut:
    """A GPT-2 of this size without dropout, from the seed."""
    torch.manual_seed(sizes.seed)
    config = GPT2Config(
        n_layer=sizes.layers,
        n_embd=sizes.width,
        n_head=sizes.heads,
        vocab_size=sizes.vocabulary,
        n_positions=sizes.columns + max(sizes.columns, sizes.new_tokens),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    V = sizes.vocabulary
    return Coconut(GPT2LMHeadModel(config), Specials(V - 3, V - 2, V - 1))


def rows_of(sizes: BaseSizes, specials: Specials, blocks: tuple[int, ...]) -> list[Sample]:
    """Half the columns are question; thoughts, boundaries and what is learned share the rest."""
    rng = np.random.default_rng(sizes.seed)

    def text(num: int, supervised: bool) -> Text:
        return Text(tuple(rng.integers(0, specials.bot, num).tolist()), supervised)

    rest = sizes.columns // 2 - sum(blocks) - 2 * len(blocks)
    if rest < len(blocks):
        raise ValueError(
            f"{sizes.columns} columns leave no text beside {sum(blocks)} thoughts; use more columns"
        )
    rows = []
    for _ in range(sizes.rows):
        segments: list[Text | Latent] = [text(sizes.columns - sizes.columns // 2, False)]
        for j, num in enumerate(blocks):
            own = rest // len(blocks) + (j < rest % len(blocks))
            bot, eot = Text((specials.bot,), False), Text((specials.eot,), False)
            segments += [bot, Latent(num), eot, text(own, True)]
        rows.append(Sample(tuple(segments)))
    return rows


# --------------------------------------------------------------------------------------------------
# Sides


def step_of(model: Coconut, batch: dict[str, Tensor]) -> Side:
    """One forward and backward."""

    def step() -> None:
        model.zero_grad()
        model(batch).loss.backward()

    return step


def saved_bytes(model: Coconut, batch: dict[str, Tensor]) -> int:
    """Bytes that autograd keeps for the backward of a step, each storage counted once."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(batch)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total


def plain_generation(model: Coconut, prompts: list[Sample], num: int) -> Side:
    """transformers' own greedy generation after as many positions."""
    length = len(prompts[0])
    rng = np.random.default_rng(1)
    ids = torch.from_numpy(rng.integers(0, model.specials.bot, (len(prompts), length)))
    base = cast(Any, model.base)

    def run() -> None:
        base.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num,
            do_sample=False,
            pad_token_id=0,
        )

    return run


def sides_of(sizes: BaseSizes, model: Coconut) -> tuple[dict[str, Side], dict[str, int]]:
    """What is timed, and the memory of the steps."""
    one = model.collate(rows_of(sizes, model.specials, (sizes.thoughts,)))
    half = sizes.thoughts // 2
    two = model.collate(rows_of(sizes, model.specials, (sizes.thoughts - half, half)))
    plain = {**one, "latent": torch.zeros_like(one["latent"])}
    prompts = [
        Sample(row.segments[:-1]) for row in rows_of(sizes, model.specials, (sizes.thoughts,))
    ]
    batches = {"plain": plain, "coconut": one, "interleaved": two}
    sides: dict[str, Side] = {f"step {name}": step_of(model, b) for name, b in batches.items()}
    num = sizes.new_tokens
    for rows in (1, sizes.rows):
        own = prompts[:rows]
        sides[f"generate {rows} plain"] = plain_generation(model, own, num)
        sides[f"generate {rows} coconut"] = lambda own=own: generate(
            model, own, max_new_tokens=num, eos_token_id=()
        )
    return sides, {name: saved_bytes(model, batch) for name, batch in batches.items()}


# --------------------------------------------------------------------------------------------------
# The reference, in a process of its own

WORKER = """
import json, os, sys, time, warnings
answers = os.fdopen(os.dup(1), "w")  # whatever the module prints goes to stderr
os.dup2(2, 1)
warnings.simplefilter("ignore")
facts = json.loads(sys.argv[1])
sys.path.insert(0, facts["path"])
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel
from coconut import Coconut
torch.set_num_threads(facts["threads"])
base = GPT2LMHeadModel(GPT2Config(**facts["config"]))
base.load_state_dict(load_file(facts["weights"]), strict=False)
base.tie_weights()
bot, eot, latent = facts["specials"]
model = Coconut(base, latent, bot, eot, facts["vocabulary"])
batch = load_file(facts["batch"])
prompt = batch.pop("prompt")
def step():
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return float(loss)
def generation():
    with torch.no_grad():
        model.generate(prompt, torch.ones_like(prompt), max_new_tokens=facts["new_tokens"])
    return 0.0
for line in sys.stdin:
    began = time.perf_counter()
    value = {"step": step, "generate": generation}[line.strip()]()
    print(json.dumps([time.perf_counter() - began, value]), file=answers, flush=True)
"""


class Reference:
    """The paper's module behind a pipe: `ask` lets it work once."""

    def __init__(
        self, path: Path, packages: Path | None, sizes: BaseSizes, model: Coconut, folder: Path
    ) -> None:
        rows = rows_of(sizes, model.specials, (sizes.thoughts,))
        batch = model.collate(rows)
        labels = torch.full_like(batch["labels"], -100)
        labels[:, 1:] = batch["labels"][:, :-1]
        prompt = model.collate([Sample(rows[0].segments[:-1])])["input_ids"]
        tensors = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
        save_file({**tensors, "labels": labels, "prompt": prompt}, folder / "batch.safetensors")
        weights = {name: p.contiguous() for name, p in model.base.named_parameters()}
        save_file(weights, folder / "weights.safetensors")
        names = ("n_layer", "n_embd", "n_head", "vocab_size", "n_positions")
        config = {name: getattr(model.base.config, name) for name in names}
        config |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        facts = {
            "path": str(path.resolve()),
            "threads": torch.get_num_threads(),
            "config": config,
            "weights": str(folder / "weights.safetensors"),
            "batch": str(folder / "batch.safetensors"),
            "specials": [model.specials.bot, model.specials.eot, model.specials.latent],
            "vocabulary": sizes.vocabulary,
            "new_tokens": sizes.new_tokens,
        }
        paths = ["" if packages is None else str(packages.resolve())]
        paths.append(os.environ.get("PYTHONPATH", ""))
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(facts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "PYTHONDONTWRITEBYTECODE": "1",  # the clone stays as it is
            },
        )
        try:
            self._compare(float(model(batch).loss.detach()))
        except BaseException:
            self.close()
            raise

    def _compare(self, ours: float) -> None:
        _, theirs = self.ask("step")
        if not abs(ours - theirs) <= 1e-4:
            raise ValueError(
                f"the losses of the same batch differ: ours {ours}, the reference's {theirs}; is "
                "the clone another version than 27273cb?"
            )

    def ask(self, what: str) -> tuple[float, float]:
        """(seconds, loss or 0) of one "step" or "generate"."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended; the empty answer tells
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(
                f"the reference ended with code {self.process.wait()}; see its message above. It "
                "needs transformers 4.46 to 4.53 in the folder that --reference-packages names"
            )
        seconds, value = json.loads(line)
        return seconds, value

    def close(self) -> None:
        """End its process."""
        self.process.terminate()
        self.process.communicate()


# --------------------------------------------------------------------------------------------------
# Turns


def job(
    reference: Path | None,
    *,
    packages: Path | None = None,
    num_rows: int | None = None,
    sizes: BaseSizes = DEFAULT,
    say: Callable[[str], None] = lambda _: None,
) -> Callable[[int], Iterator[tuple[str, str, list[float], str]]]:
    """What `bench` runs for the subject coconut; (what, unit, values, note) per measurement.

    Args:
        reference: the clone; None: plain and ours only.
        packages: a folder of packages to import before all others there.
        num_rows: rows of a batch, instead of the sizes'.
        say: told the configuration, and that the losses agree.
    Raises:
        FileNotFoundError: `reference` does not hold the official module.
        ValueError: sizes that leave no text; while measuring: the reference fails or differs.
    """
    if reference is not None and not (reference / "coconut.py").is_file():
        raise FileNotFoundError(
            f"{reference} holds no coconut.py; --reference takes a clone of the repository "
            "facebookresearch/coconut"
        )
    own = sizes if num_rows is None else replace(sizes, rows=num_rows)
    rows_of(own, Specials(own.vocabulary - 3, own.vocabulary - 2, own.vocabulary - 1), (1, 1))

    def measure(repeats: int) -> Iterator[tuple[str, str, list[float], str]]:
        say(str(own))
        model = make_model(own).eval()
        sides, memory = sides_of(own, model)
        with tempfile.TemporaryDirectory() as folder:
            other = None
            if reference is not None:
                other = Reference(reference, packages, own, model, Path(folder))
                say("the reference's loss on the same batch agrees within 1e-4")
            try:
                seconds = turns(sides, other, repeats)
            finally:
                if other is not None:
                    other.close()
        yield from _measurements(seconds, memory)

    return measure


def turns(
    sides: dict[str, Side], reference: Reference | None, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every side in every round, after one round that is thrown away."""
    seconds: dict[str, list[float]] = {}
    for n in range(repeats + 1):
        times = {}
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            times[name] = time.perf_counter() - began
        if reference is not None:
            times["step reference"], _ = reference.ask("step")
            times["generate 1 reference"], _ = reference.ask("generate")
        for name, value in times.items() if n else ():
            seconds.setdefault(name, []).append(value)
    return seconds


def _measurements(
    seconds: dict[str, list[float]], memory: dict[str, int]
) -> Iterator[tuple[str, str, list[float], str]]:
    """Times, ratios to the plain side of the same round, and memory of a step."""
    for name, times in seconds.items():
        yield name, "ms", [1000 * t for t in times], "wall time"
    for name, times in seconds.items():
        plain = name.rsplit(" ", 1)[0] + " plain"
        if name != plain:
            ratios = [a / b for a, b in zip(times, seconds[plain], strict=True)]
            yield f"{name} / plain", "x", ratios, "round by round"
    for name in ("step", "generate 1"):
        if f"{name} reference" in seconds:
            pairs = zip(seconds[f"{name} reference"], seconds[f"{name} coconut"], strict=True)
            yield f"{name}, reference / coconut", "x", [a / b for a, b in pairs], "round by round"
    for name, size in memory.items():
        yield f"step {name}, saved", "MiB", [size / 2**20], "kept by autograd for the backward"
