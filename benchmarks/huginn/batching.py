"""Do saved recurrences become saved time? (`python benchmarks/huginn/batching.py`, minutes)

A queue of prompts is continued twice by the same engine with the same weights: every token at full
depth, and with exits. What share of the recurrences saved becomes time saved depends on whether the
loop stays full and on what read-out and prelude cost beside it:

    share = (1 - time with exits / time at full depth) / (1 - recurrences with / at full depth)

`limit` is the share that a perfect engine would reach at this shape, by FLOPs: only the core is
saved, read-out and prelude stay. `closed` is the share of recurrences saved that a batch whose rows
wait for each other would save as passes (counted, not measured).

The two take turns; the medians are reported. With one thread CPU time is taken, else wall time.
Exits are scripted (a depth drawn for each token, about half the full one on average), because
random weights have no depth of their own; `--halt latent:0.1` lets the latent rule decide.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from inward.common import halting
from inward.evals.rows import append_row
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.costs import HuginnCosts
from inward.methods.huginn.generate import generate
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.huginn.texts import HuginnGenerated


def random_model(args: argparse.Namespace) -> HuginnForCausalLM:
    """Random weights, small enough that states converge."""
    config = HuginnConfig(
        n_embd=args.width,
        num_attention_heads=max(1, args.width // 64),
        intermediate_size=args.width * 11 // 4,
        vocab_size=args.vocab,
        block_size=args.prompt + args.new + 1,
        mean_recurrence=args.depth,
    )
    model = HuginnForCausalLM(config)
    generator = torch.Generator().manual_seed(args.seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                drawn = torch.randn(weight.shape, generator=generator)
                weight.copy_(0.5 / weight.shape[1] ** 0.5 * drawn)
    return model.eval().to(getattr(torch, args.dtype))


def halting_rule(args: argparse.Namespace) -> halting.Rule:
    """The scripted depths, or the latent rule."""
    name, _, threshold = args.halt.partition(":")
    if name == "latent":
        return halting.LatentChange(float(threshold))
    if name != "scripted":
        raise ValueError(f"--halt is {args.halt!r}: 'scripted' or 'latent:THRESHOLD'")
    generator = torch.Generator().manual_seed(args.seed)
    drawn = torch.rand(args.prompts, args.new, 3, generator=generator).mean(-1)
    depths = 1 + (drawn * (args.depth - 1)).round().long()

    def scripted(view: halting.DepthView) -> Tensor:
        return view.step >= depths[view.text, view.index]

    return scripted


def timed(args: argparse.Namespace, model: HuginnForCausalLM, rule: str | halting.Rule):
    """(seconds, what was generated)."""
    generator = torch.Generator().manual_seed(args.seed + 1)
    lengths = torch.randint(args.prompt // 2, args.prompt + 1, (args.prompts,), generator=generator)
    prompts = [torch.randint(args.vocab, (int(n),), generator=generator) for n in lengths]
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    out = generate(
        model,
        prompts,
        max_new_tokens=args.new,
        halt=rule,
        sharing=args.sharing,
        eos_token_id=(),
        batch_size=args.batch,
        in_flight=args.seats,
    )
    return clock() - begin, out


def closed_batch(out: HuginnGenerated, batch: int) -> int:
    """Passes if rows wait for each other at every token."""
    steps = [row[1:] for row in out.steps]
    groups = [torch.stack(steps[i : i + batch]) for i in range(0, len(steps), batch)]
    return sum(int(group.amax(0).sum()) for group in groups)


def compare(args: argparse.Namespace) -> dict:
    """One row of results."""
    model, rule = random_model(args), halting_rule(args)
    full, early = [], []
    for _ in range(args.turns):
        full.append(timed(args, model, "never"))
        early.append(timed(args, model, rule))
    (t_full, out_full), (t_early, out_early) = (
        (statistics.median(t for t, _ in turns), turns[0][1]) for turns in (full, early)
    )
    count = [sum(int(row.sum()) for row in out.steps) for out in (out_full, out_early)]
    decoding = [sum(int(row[1:].sum()) for row in out.steps) for out in (out_full, out_early)]
    saved = 1 - count[1] / count[0]
    costs, middle = HuginnCosts(model.config), args.prompt + args.new // 2
    core = args.depth * costs.core(middle).flops
    outside = costs.prelude(middle).flops + costs.read_out(middle).flops
    passes = closed_batch(out_early, args.batch) / (decoding[0] / args.batch)
    return {
        "share": round((1 - t_early / t_full) / saved, 4),
        "limit": round(core / (core + outside), 4),
        "closed": round((1 - passes) / (1 - decoding[1] / decoding[0]), 4),
        "saved_recurrences": round(saved, 4),
        "seconds_full": round(t_full, 2),
        "seconds_early": round(t_early, 2),
        "fill_full": round(out_full.meta["loop_fill"], 3),
        "fill_early": round(out_early.meta["loop_fill"], 3),
        "threads": torch.get_num_threads(),
        **{name: value for name, value in vars(args).items() if name != "rows"},
    }


def main(argv: list[str] | None = None) -> dict:
    """Measure, print, and append to a file of rows if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=24, help="tokens of the longest prompt")
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seats", type=int, default=None)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--sharing", default="deepest")
    parser.add_argument("--halt", default="scripted")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, default=None)
    args = parser.parse_args(argv)
    row = compare(args)
    for name, value in row.items():
        print(f"{name:18s} {value}")
    if args.rows is not None:
        append_row(args.rows, row)
    return row


if __name__ == "__main__":
    main()
