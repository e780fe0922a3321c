"""The part of `inward demo` that shows drafts: a TiDAR model writes in bursts, and says exactly
what it would have said token by token.

A line a forward: how many drafted tokens stood (green), and the one that the verifier put behind
them. Then both ways side by side: forwards, time, and whether the texts are the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console

from inward.viz.text import told

if TYPE_CHECKING:
    from inward.methods.tidar.model import TiDAR

OPENINGS = (
    "Once upon a time, there was a little girl named Lily.",
    "One day, a boy named Tim went to the park.",
    "Tom had a big red ball.",
    "The dog was very happy.",
)
NUM_TOKENS, K = 160, 8


@dataclass(frozen=True)
class Drafted:
    """Both ways over the same openings: forwards and seconds, and whether every token agrees."""

    tokens: int
    forwards: int
    seconds: float
    plain_seconds: float
    same: bool


def draft_demo(
    name: str,
    model: TiDAR,
    tokenizer: Any,
    *,
    seed: int,
    num: int | None = None,
    console: Console,
) -> Drafted:
    """Show one text as it grows, and print what drafting saved over `num` openings."""
    order = np.random.default_rng(seed).permutation(len(OPENINGS))
    prompts = [OPENINGS[i] for i in order[: num or len(OPENINGS)]]
    plain, plain_seconds = _write(model, tokenizer, prompts, "plain")
    drafted, seconds = _write(model, tokenizer, prompts, "one_pass")

    def decode(ids: Any) -> str:
        return tokenizer.decode(list(ids))

    console.print(f"{name} continues: {prompts[0]}", style="bold", highlight=False)
    console.print(told(drafted[0].traces[0], decode), highlight=False)
    found = Drafted(
        sum(len(made.tokens[0]) for made in drafted),
        sum(made.num_forwards for made in drafted),
        seconds,
        plain_seconds,
        all(a.tokens == b.tokens for a, b in zip(drafted, plain, strict=True)),
    )
    same = "the same words as" if found.same else "OTHER WORDS THAN"
    console.print(
        f"{name}: {found.tokens} tokens in {found.forwards} forwards "
        f"({found.tokens / found.forwards:.2f} a forward), {same} token by token; "
        f"{found.seconds:.1f} s instead of {found.plain_seconds:.1f} s\n",
        highlight=False,
    )
    return found


def _write(
    model: TiDAR, tokenizer: Any, prompts: list[str], scheme: str
) -> tuple[list[Any], float]:
    from inward.methods.tidar.decode import decode

    began = time.perf_counter()
    made = [
        decode(
            model,
            torch.tensor([tokenizer(prompt).input_ids]),
            scheme=scheme,
            K=None if scheme == "plain" else K,
            max_new_tokens=NUM_TOKENS,
        )
        for prompt in prompts
    ]
    return made, time.perf_counter() - began
