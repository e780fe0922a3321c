"""Speed and memory of Coconut beside a plain step of the same batch, and beside the paper's code.

    python benchmarks/coconut_speed.py
    python benchmarks/coconut_speed.py --reference path/to/coconut --python path/to/its/python

Sides take turns within a round, so that what else the machine does hits all of them; the figure is
the median over rounds of the ratio within a round. The reference (facebookresearch/coconut, a clone
of the user's) runs in a process of its own, because it needs transformers 4.46 to 4.53; it gets the
same weights and the same batch, and its loss is compared before anything is timed.

    plain         one pass over the same columns, the same columns read by the head
    coconut       the same batch with its thoughts in one block
    interleaved   the same number of thoughts in two blocks
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import GPT2Config, GPT2LMHeadModel

from inward.data.segments import Latent, Sample, Specials, Text
from inward.methods.coconut import Coconut
from inward.methods.coconut_generate import generate


@dataclass(frozen=True)
class Sizes:
    """The configuration, printed with every result; the defaults are the project's goal."""

    layers: int = 4
    width: int = 256
    heads: int = 8
    vocabulary: int = 1024
    rows: int = 16
    columns: int = 200
    thoughts: int = 6
    new_tokens: int = 64
    threads: int = 2
    rounds: int = 7
    seed: int = 0


DEFAULT = Sizes()

Side = Callable[[], Any]


def make_model(sizes: Sizes) -> Coconut:
    """A GPT-2 of this size without dropout, from the seed."""
    torch.manual_seed(sizes.seed)
    config = GPT2Config(
        n_layer=sizes.layers,
        n_embd=sizes.width,
        n_head=sizes.heads,
        vocab_size=sizes.vocabulary,
        n_positions=2 * sizes.columns,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    V = sizes.vocabulary
    return Coconut(GPT2LMHeadModel(config), Specials(V - 3, V - 2, V - 1))


def rows_of(sizes: Sizes, specials: Specials, blocks: tuple[int, ...]) -> list[Sample]:
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


def sides_of(sizes: Sizes, model: Coconut) -> tuple[dict[str, Side], dict[str, int]]:
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

    def __init__(self, path: Path, python: str, sizes: Sizes, model: Coconut, folder: Path) -> None:
        if not (path / "coconut.py").is_file():
            raise FileNotFoundError(f"{path} holds no coconut.py; pass a clone of its repository")
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
            "threads": sizes.threads,
            "config": config,
            "weights": str(folder / "weights.safetensors"),
            "batch": str(folder / "batch.safetensors"),
            "specials": [model.specials.bot, model.specials.eot, model.specials.latent],
            "vocabulary": sizes.vocabulary,
            "new_tokens": sizes.new_tokens,
        }
        self.process = subprocess.Popen(
            [python, "-c", WORKER, json.dumps(facts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ours = float(model(batch).loss.detach())
        _, theirs = self.ask("step")
        if abs(ours - theirs) > 1e-4:
            raise ValueError(f"the losses differ: ours {ours}, the reference's {theirs}")

    def ask(self, what: str) -> tuple[float, float]:
        """(seconds, loss or 0) of one "step" or "generate"."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(
                f"the reference ended with code {self.process.wait()}; see its message above. It "
                "needs transformers 4.46 to 4.53 in the environment that --python names"
            )
        seconds, value = json.loads(line)
        return seconds, value

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# --------------------------------------------------------------------------------------------------
# Turns


def measure(sizes: Sizes, sides: dict[str, Side], reference: Reference | None) -> dict[str, list]:
    """Seconds of every side in every round, after one round that is thrown away."""
    seconds: dict[str, list[float]] = {}
    for n in range(sizes.rounds + 1):
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


def report(sizes: Sizes, seconds: dict[str, list[float]], memory: dict[str, int]) -> str:
    """A table: median seconds, and the median of the ratios to the plain side of the same round."""
    lines = [
        f"{sizes.layers} layers, width {sizes.width}, {sizes.heads} heads, vocabulary "
        f"{sizes.vocabulary}; {sizes.rows} rows of {sizes.columns}, {sizes.thoughts} thoughts; "
        f"{sizes.threads} threads, {sizes.rounds} rounds; torch {torch.__version__}",
        f"{'side':24}{'seconds':>10}{'to plain':>10}{'saved MiB':>11}",
    ]
    for name, times in seconds.items():
        plain = seconds[name.rsplit(" ", 1)[0] + " plain"]
        ratio = statistics.median(a / b for a, b in zip(times, plain, strict=True))
        line = f"{name:24}{statistics.median(times):10.3f}{ratio:10.2f}"
        side = name.split(" ", 1)[1]
        lines.append(line + (f"{memory[side] / 2**20:11.0f}" if side in memory else ""))
    return "\n".join(lines)


def main(
    sizes: tyro.conf.OmitArgPrefixes[Sizes] = DEFAULT,
    *,
    reference: Path | None = None,
    python: str = sys.executable,
    out: Path | None = None,
) -> None:
    """Measure, print a table, and write the numbers.

    Args:
        sizes: The configuration.
        reference: A clone of facebookresearch/coconut.
        python: The interpreter that runs it.
        out: JSON file for the numbers.
    """
    torch.set_num_threads(sizes.threads)
    model = make_model(sizes).eval()
    sides, memory = sides_of(sizes, model)
    with tempfile.TemporaryDirectory() as folder:
        other = None
        if reference is not None:
            other = Reference(reference, python, sizes, model, Path(folder))
        try:
            seconds = measure(sizes, sides, other)
        finally:
            if other is not None:
                other.close()
    print(report(sizes, seconds, memory))
    if out is not None:
        facts = {"sizes": asdict(sizes), "seconds": seconds, "saved_bytes": memory}
        out.write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
