"""What sharing a cache saves and what it costs. (`python benchmarks/huginn/cache.py`, minutes)

For each sharing of `inward.methods.huginn.cache`: bytes of keys and values that a token takes, at
the published 3.5B shape (r = 32, bfloat16) and in the shipped model huginn-hops; and that model's
accuracy by number of hops when its questions are read *token by token* under it. (A prompt
that is read at once is exact under every sharing, because all its tokens overwrite a shared slot
together; the first row says what that gives.) 95 % Wilson intervals; the same questions and initial
states for every sharing. Each adds one row to cache.jsonl.

With --training: the peak of memory that a training step holds for its backward pass, by depth.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from inward import hub
from inward.data.texts.text import TextQuestions, questions
from inward.evals.rows import append_row, machine
from inward.evals.stats import wilson
from inward.methods.huginn.cache import RecurrentCache, SlotLayout, token_bytes
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.huginn.sharing import sharing_of
from inward.recipes.huginn import HopsData, hops

ROWS = Path(__file__).with_suffix(".jsonl")
SHARINGS = ("per-depth", "first-then-shared:4", "ring:4", "ring:2", "shared")
AT_ONCE = "prompt at once"


def layout(config: HuginnConfig, dtype: torch.dtype) -> SlotLayout:
    """What a cache of that model is made for."""
    return SlotLayout(*config.layers, config.n_heads, config.head_dim, dtype, torch.device("cpu"))


@torch.no_grad()
def right(model: HuginnForCausalLM, held: TextQuestions, choice: str, depth: int) -> int:
    """Questions answered rightly after `depth` recurrences a token, read under the sharing."""
    prompts = [held.prompt(i) for i in range(len(held))]
    num_right = 0
    for length in sorted({len(p) for p in prompts}):
        rows = [i for i, p in enumerate(prompts) if len(p) == length]
        ids = torch.tensor([prompts[i].tolist() for i in rows])
        want = torch.tensor([held.answer(i)[0] for i in rows])
        options: dict[str, Any] = {"num_steps": depth, "state_seed": torch.tensor(rows) << 16}
        if choice == AT_ONCE:
            logits = model(ids, use_cache=False, **options).logits
        else:
            cache = RecurrentCache(choice, capacity=length, num_recurrences=depth)
            for token in ids.split(1, dim=1):
                logits = model(token, past_key_values=cache, **options).logits
        num_right += int((logits[:, -1].argmax(-1) == want).sum())
    return num_right


def measured(
    model: HuginnForCausalLM, sets: dict[int, TextQuestions], choice: str, depth: int
) -> dict[str, Any]:
    """One row of results."""
    found = {k: wilson(right(model, held, choice, depth), len(held)) for k, held in sets.items()}
    row: dict[str, Any] = {
        "sharing": choice,
        "depth": depth,
        "num_questions": len(next(iter(sets.values()))),
        "accuracy": {str(k): round(share.value, 4) for k, share in found.items()},
        "low": {str(k): round(share.low, 4) for k, share in found.items()},
        "high": {str(k): round(share.high, 4) for k, share in found.items()},
    }
    if choice != AT_ONCE:
        large, small = layout(HuginnConfig(), torch.bfloat16), layout(model.config, model.dtype)
        row["bytes_3.5B_r32"] = token_bytes(sharing_of(choice), 32, large)
        row["bytes_hops"] = token_bytes(sharing_of(choice), depth, small)
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy in percent by hops, with the width of the interval on either side."""
    names = list(rows[0]["accuracy"])
    heads = [f"{k} hops" for k in names]
    lines = ["| sharing | MB a token, 3.5B | kB, hops | " + " | ".join(heads) + " |"]
    lines.append("|---" * (3 + len(names)) + "|")
    for row in rows:
        large, small = row.get("bytes_3.5B_r32", 0) / 1e6, row.get("bytes_hops", 0) / 1e3
        cells = [row["sharing"], f"{large:.3f}" if large else "", f"{small:.1f}" if small else ""]
        for k in names:
            value, half = row["accuracy"][k], (row["high"][k] - row["low"][k]) / 2
            cells.append(f"{100 * value:.1f} ({100 * half:.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------
# Training


def kept_bytes(no_grad: int, with_grad: int, *, checkpointing: bool, length: int = 64) -> int:
    """Bytes that the forward of a training step keeps for its backward, weights left out."""
    config = HuginnConfig(
        n_embd=64,
        num_attention_heads=4,
        intermediate_size=176,
        vocab_size=256,
        block_size=length,
        n_layers_in_prelude=1,
        n_layers_in_recurrent_block=2,
        n_layers_in_coda=1,
        mean_recurrence=no_grad + with_grad,
        mean_backprop_depth=max(with_grad, 1),
    )
    model = HuginnForCausalLM(config).train()
    if checkpointing:
        # the method got another name, which older versions of transformers lack
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            model.gradient_checkpointing_enable({"use_reentrant": False})
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    ids = torch.randint(256, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = model(ids, labels=ids, use_cache=False, num_steps=(no_grad, with_grad), state_seed=0)
    total = sum(kept.values())
    out.loss.backward()
    return total


def training_table() -> str:
    """Bytes kept by recurrences without and with gradient."""
    lines = ["| without gradient | with | MB kept | MB kept, checkpointed |", "|---|---|---|---|"]
    for no_grad, with_grad in ((0, 4), (12, 4), (60, 4), (0, 8), (0, 16), (0, 32)):
        cells = [kept_bytes(no_grad, with_grad, checkpointing=c) / 1e6 for c in (False, True)]
        lines.append(f"| {no_grad} | {with_grad} | {cells[0]:.2f} | {cells[1]:.2f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and add the rows to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="huginn-hops")
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--hops", type=int, nargs="*", default=list(range(1, 10)))
    parser.add_argument("--sharings", nargs="*", default=list(SHARINGS))
    parser.add_argument("--seed", type=int, default=1_000_007)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--training", action="store_true")
    args = parser.parse_args(argv)
    if args.training:
        print(training_table())
        return []
    model = hub.load(args.model).eval()
    made = cast(HopsData, hops().data).rows()
    sets = {k: questions(made, args.num, difficulty=k, seed=args.seed) for k in args.hops}
    rows = []
    words = sys.argv[1:] if argv is None else argv
    for choice in (AT_ONCE, *args.sharings):
        rows.append(measured(model, sets, choice, args.depth))
        command = "python benchmarks/huginn/cache.py " + " ".join(words)
        append_row(args.rows, rows[-1] | {"machine": machine(), "command": command.strip()})
        print(table(rows), flush=True)
    return rows


if __name__ == "__main__":
    main()
