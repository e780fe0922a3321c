"""Drafts of few recurrences for a Huginn that speaks (`python benchmarks/tidar/depths.py`).

The Huginn of `inward train huginn-stories` (0.5 M parameters, mean depth 6) and the drafts of
`inward train tidar-huginn-stories` (an adapter, K = 6, mask rows of 2 recurrences) say greedy text
from openings that neither has seen: one token at a time (plain), by Huginn's own speculation
(mode="speculate": a few recurrences draft) and by TiDAR's schemes with mask rows of some depth.
Each way must say plain's text; counted are tokens a forward, recurrences and FLOPs a token, all by
the meter.

Time: on a model this small rows cost what forwards cost. `--wide` runs each way on a random Huginn
of a width at which weights are what a CPU waits for, which gives seconds a forward; times the
forwards a token of the small model. Ways are measured in turn, the median of the rounds counts.

Rows are added to depths.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from inward.common.bases import open_base
from inward.common.sampling import Sampling
from inward.common.thinking import Answer, Request, answers
from inward.evals.rows import append_row, machine
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.door import METHOD as HUGINN
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.tidar.door import METHOD as TIDAR
from inward.methods.tidar.model import TiDAR
from inward.recipes.tidar import OwnText

ROWS = Path(__file__).with_suffix(".jsonl")
DEPTH = 6


def ways() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> the method whose work it is, and its options."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {
        "plain": (HUGINN, {"max_steps": DEPTH}),
    }
    for steps, tokens in ((1, 3), (2, 3), (2, 5), (3, 3)):
        own = {"mode": "speculate", "max_steps": DEPTH, "draft_steps": steps}
        found[f"speculate m={steps} G={tokens}"] = HUGINN, {**own, "draft_tokens": tokens}
    for scheme in ("two_pass", "one_pass"):
        for draft in (1, 2, 3, DEPTH):
            own = {"scheme": scheme, "draft": {"num_steps": draft}}
            found[f"{scheme} d={draft}"] = TIDAR, {**own, "verify": {"num_steps": DEPTH}}
    return found


def run(model: Any, way: tuple[Any, dict[str, Any]], prompts: Any, num: int) -> list[Answer]:
    """Greedy answers of exactly `num` tokens."""
    method, own = way
    asked = [
        Request(prompt, max_new_tokens=num, sampling=Sampling(), ends=frozenset(), own=own)
        for prompt in prompts
    ]
    base = model.model if method is HUGINN else model
    return answers(method.begin(base), asked)


def forwards_of(found: list[Answer]) -> float:
    """Forwards at full depth behind the prompts': rounds of speculation, forwards of TiDAR."""
    if "rounds" in found[0].details:
        return float(sum(a.details["rounds"] for a in found))
    return sum(a.cost.forwards - 1 for a in found)


def small(
    model: TiDAR, tokenizer: Any, num_texts: int, num: int, opener: str
) -> dict[str, dict[str, float]]:
    """What each way takes on the trained model."""
    text = OwnText(path="", num_texts=num_texts, num_valid=1, opening=12, seed=77)
    prompts = text._openings(open_base(opener)[0], [tokenizer.bos_token_id])
    found: dict[str, dict[str, float]] = {}
    plain: list[Answer] = []
    for name, way in ways().items():
        said = run(model, way, prompts, num)
        plain = plain or said
        tokens = num_texts * (num - 1)  # the first one is the prompt's
        costs = [answer.cost for answer in said]
        prompt = [cost.parts["prompt"] for cost in costs]
        flops = sum(c.flops for c in costs) - sum(p.flops for p in prompt)
        read = sum(c.bytes for c in costs) - sum(p.bytes for p in prompt)
        loops = sum(c.evaluations for c in costs) - sum(p.evaluations for p in prompt)
        found[name] = {
            "equal": sum(a.tokens == b.tokens for a, b in zip(said, plain, strict=True)),
            "texts": num_texts,
            "tokens_a_forward": tokens / forwards_of(said),
            "recurrences_a_token": loops / tokens,
            "mflops_a_token": flops / tokens / 1e6,
            "bytes_a_token": read / tokens,
        }
        told = {k: round(v, 3) for k, v in found[name].items()}
        print(f"{name:<22}{told}", flush=True)
    return found


def wide_model(width: int) -> TiDAR:
    """A random Huginn of this width with the blocks of the small one; the last id is the mask."""
    torch.manual_seed(0)
    config = HuginnConfig(
        n_embd=width, n_heads=width // 64, intermediate_size=11 * width // 4,
        n_layers_in_prelude=1, n_layers_in_recurrent_block=2, n_layers_in_coda=1, vocab_size=513,
        block_size=512, mean_recurrence=DEPTH, mean_backprop_depth=3, bos_token_id=None,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return TiDAR(HuginnForCausalLM(config).eval(), 512, 6).eval()


def seconds_a_forward(model: TiDAR, num: int, rounds: int) -> dict[str, float]:
    """Median over rounds in which all ways take their turn, one text, after a round to warm up."""
    prompts, found = [list(range(1, 17))], {name: [] for name in ways()}
    for turn in range(rounds + 1):
        for name, way in ways().items():
            (answer,) = said = run(model, way, prompts, num)
            took = answer.cost.seconds - answer.cost.parts["prompt"].seconds
            if turn:
                found[name].append(took / forwards_of(said))
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    """Measure and write rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="runs/tidar-huginn-stories/model")
    parser.add_argument("--base", default="runs/huginn-stories/model")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--opener", default="stories260k", help="model that writes the openings")
    parser.add_argument("--wide", type=int, default=0, help="width of the random model; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    base, tokenizer = open_base(args.base)
    model = TiDAR.from_pretrained(args.model, base=base)
    found = small(model, tokenizer, args.texts, args.tokens, args.opener)
    if args.wide:
        times = seconds_a_forward(wide_model(args.wide), 12, args.rounds)
        for name, seconds in times.items():
            each = seconds / found[name]["tokens_a_forward"]
            found[name] |= {"wide_seconds_a_forward": seconds, "wide_seconds_a_token": each}
            speed = times["plain"] / each
            found[name]["wide_speed"] = speed
            print(f"{name:<22}{seconds:.4f} s a forward, {each:.4f} a token, {speed:.2f}x plain")
    about = {"command": " ".join(["python", *sys.argv]), "machine": machine(), "depth": DEPTH}
    for name, numbers in found.items():
        append_row(ROWS, {"way": name, **numbers, "wide": args.wide, **about})


if __name__ == "__main__":
    main()
