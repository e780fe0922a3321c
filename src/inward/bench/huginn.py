"""Huginn's speed beside the official module, and beside what the memory allows.

    inward bench huginn --reference CLONE --reference-packages FOLDER --threads 2

CLONE is one of seal-rg/recurrent-pretraining. Its module needs transformers 4.53: FOLDER holds that
version (`pip install --target FOLDER transformers==4.53.3`) and is put first on the import path of
that process alone.

What is measured, at a shape of 30M parameters (d 512, 8 heads, MLP 1408, vocabulary 8192, blocks
2/4/2), r = 16, batch 1, a prompt of 64, 512 or 2048 tokens:

    prompt    seconds until the first token stands
    token     median of the tokens after it, each side by its own generator: `generate` here (exact
              cache, and the one shared by all recurrences), `generate_minimal` there
    limit     (weights + cache read per token) / (best rate of one-row products at these shapes);
              `share` is the part of it that is reached

A token reads the matrices of 2 + 4 r + 2 blocks and in each the keys and values of all tokens
before it, whether recurrences share them or not: sharing saves memory, and reads that stay in the
processor's cache, not work.

Both sides load the same weights and first have to agree on the logits of a prompt and of four
tokens after it. Then they take turns. With one thread, CPU time is taken, otherwise wall time.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from inward.bench.huginn_sides import MODEL_FILE, SHORT, HuginnOrder
from inward.bench.process import Process

CONTEXTS = (64, 512, 2048)
DTYPES = ("float32", "bfloat16")
DEPTH = 16
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest relative difference (of norms) of logits before timing."""
SHAPE: dict[str, Any] = {
    "n_embd": 512,
    "n_heads": 8,
    "intermediate_size": 1408,
    "vocab_size": 8192,
    "block_size": 4096,
    "n_layers_in_prelude": 2,
    "n_layers_in_recurrent_block": 4,
    "n_layers_in_coda": 2,
    "mean_recurrence": DEPTH,
}

Measured = tuple[str, str, list[float], str]


def job(
    reference: Path | None,
    *,
    packages: Path | None = None,
    dtype: str | None = None,
    contexts: Sequence[int] = CONTEXTS,
    shape: dict[str, Any] = SHAPE,
    num_new: int = 8,
    plain: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Callable[[int], Iterator[Measured]]:
    """What `bench` runs for the subject huginn; (what, unit, values, note) per measurement.

    Args:
        reference: the clone; None: ours and the products only.
        packages: folder with transformers 4.53 for the official side.
        dtype: one dtype; None: float32 and bfloat16.
        num_new: tokens said per turn, the first of them with the prompt.
        plain: ours without packed weights too.
    Raises:
        FileNotFoundError: `reference` does not hold the official module, `packages` no
            transformers.
    """
    if reference is not None and not (reference / MODEL_FILE).is_file():
        raise FileNotFoundError(
            f"{reference} holds no {MODEL_FILE}; --reference takes a clone of the repository "
            "seal-rg/recurrent-pretraining"
        )
    if packages is not None:
        check_packages(packages)
    if min(contexts) < 1 or max(contexts) + num_new > shape["block_size"] or num_new < 2:
        raise ValueError(
            f"contexts {list(contexts)} and {num_new} new tokens; they must be at least 1 and 2 "
            f"and fit a block_size of {shape['block_size']}"
        )

    def measure(repeats: int) -> Iterator[Measured]:
        for kind in DTYPES if dtype is None else (dtype,):
            order = HuginnOrder(
                "ours", "ours", dict(shape), shape["mean_recurrence"], kind, num_new
            )
            if reference is not None:
                order = replace(order, reference=str(reference.resolve()))
            yield from _case(order, packages, contexts, plain, repeats, say)

    return measure


def check_packages(folder: Path) -> None:
    """FileNotFoundError unless there is a transformers in the folder."""
    if not (folder / "transformers").is_dir():
        raise FileNotFoundError(
            f"{folder} holds no transformers; make it with: pip install --target {folder} "
            "transformers==4.53.3"
        )


def _case(
    order: HuginnOrder,
    packages: Path | None,
    contexts: Sequence[int],
    plain: bool,
    repeats: int,
    say: Callable[[str], None],
) -> Iterator[Measured]:
    import torch

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        weights = str(write_weights(folder, order.config))
        order = replace(order, weights=weights, threads=torch.get_num_threads())
        orders = [order, replace(order, side="ours shared", sharing="shared")]
        if plain:
            orders.append(replace(order, side="ours plain", packed=False))
        if order.reference:
            orders.append(replace(order, side="official", kind="official"))
        sides = {o.side: stack.enter_context(_process(o, packages)) for o in orders}
        if order.reference:
            say(f"official: {sides['official'].ready['about']}")
            outputs = {name: side.ask("outputs")["logits"] for name, side in sides.items()}
            say(f"{order.dtype}: {agreement(outputs, order.dtype)}")
        products = stack.enter_context(_process(replace(order, side="products", kind="products")))
        for context in contexts:
            yield from _turns(order, context, sides, products, repeats)


def _process(order: HuginnOrder, packages: Path | None = None) -> Process:
    ahead = "" if packages is None or order.kind != "official" else str(packages.resolve())
    return Process(order, "inward.bench.huginn_sides", bench="huginn", packages=ahead)


def write_weights(folder: Path, config: dict[str, Any]) -> Path:
    """Random weights in the published names, the embedding once; qk_bias, zero at the start, is
    filled too."""
    import torch
    from safetensors.torch import save_file

    from inward.methods.huginn.config import HuginnConfig
    from inward.methods.huginn.model import HuginnForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HuginnForCausalLM(HuginnConfig(**config))
        for name, weight in model.named_parameters():
            if name.endswith("qk_bias"):
                torch.nn.init.normal_(weight, std=0.1)
    tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
    tensors.pop("lm_head.weight")
    path = folder / "weights.safetensors"
    save_file(tensors, path)
    return path


def agreement(found: dict[str, list[list[float]]], dtype: str) -> str:
    """Compare the logits of all sides (the shared cache is another model after the prompt).

    Raises ValueError if they differ: then the times would compare different things.
    """
    import torch

    worst = 0.0
    for name, logits in found.items():
        last = 1 if "shared" in name else None
        mine, want = torch.tensor(logits[:last]), torch.tensor(found["official"][:last])
        gap = float(((mine - want).norm(dim=-1) / want.norm(dim=-1)).max())
        if not gap <= TOLERANCE[dtype]:
            raise ValueError(
                f"{name} differs from the official module by {gap:.2g} in logits ({dtype}, allowed "
                f"is {TOLERANCE[dtype]}); is the clone another version than 59e0b69?"
            )
        worst = max(worst, gap)
    num = len(found["official"]) - 1
    return (
        f"logits of a prompt of {SHORT} and of {num} tokens after it agree within {worst:.1g} "
        "before anything is timed"
    )


def token_bytes(config: dict[str, Any], depth: int, context: float, itemsize: int) -> float:
    """Bytes that a token at position `context` reads: matrices, and keys and values."""
    d, m = config["n_embd"], config["intermediate_size"]
    prelude, core, coda = (
        config[f"n_layers_in_{part}"] for part in ("prelude", "recurrent_block", "coda")
    )
    blocks = prelude + core * depth + coda
    weights = blocks * (4 * d * d + 3 * d * m) + depth * 2 * d * d + d * config["vocab_size"]
    return itemsize * (weights + blocks * 2 * d * context)


def _turns(
    order: HuginnOrder,
    context: int,
    sides: dict[str, Process],
    products: Process,
    repeats: int,
) -> Iterator[Measured]:
    import torch

    prompts: dict[str, list[float]] = {name: [] for name in sides}
    tokens: dict[str, list[float]] = {name: [] for name in sides}
    rates, forms = [], []
    for side in sides.values():
        side.ask(f"time {min(context, 64)}")  # allocators settle, weights are packed
    for _ in range(repeats):
        for name, side in sides.items():
            answer = side.ask(f"time {context}")
            prompts[name].append(answer["prompt"])
            tokens[name].append(statistics.median(answer["tokens"]))
        answer = products.ask("rate")
        rates.append(answer["rate"])
        forms.append(answer["form"])
    clock = "CPU" if order.threads == 1 else "wall"
    label = f"{context} {order.dtype}"
    for what, found in (("prompt", prompts), ("token", tokens)):
        for name, seconds in found.items():
            yield f"{what} {label}, {name}", "ms", [1000 * s for s in seconds], f"{clock} time"
        for name, seconds in found.items():
            if name != "official" and "official" in found:
                ratios = [a / b for a, b in zip(found["official"], seconds, strict=True)]
                yield f"{what} {label}, official / {name}", "x", ratios, "turn by turn"
    itemsize = getattr(torch, order.dtype).itemsize
    read = token_bytes(order.config, order.depth, context + order.num_new / 2, itemsize)
    kept = read - token_bytes(order.config, order.depth, 0, itemsize)
    form = statistics.mode(forms)
    yield f"products {label}", "GB/s", [rate / 1e9 for rate in rates], f"one row, {form}"
    note = f"{read / 1e6:.0f} MB a token, {kept / 1e6:.0f} of them cache, at that rate"
    yield f"limit {label}", "ms", [1000 * read / rate for rate in rates], note
    for name, seconds in tokens.items():
        shares = [100 * read / r / s for s, r in zip(seconds, rates, strict=True)]
        yield f"token {label}, share of {name}", "%", shares, "of the limit"
