"""What joint training costs and gives: TiDAR's ablations on a tiny model, and its trade-off.

    python benchmarks/tidar/quality.py train            every variant and seed that is missing
    python benchmarks/tidar/quality.py table
    python benchmarks/tidar/quality.py trade --figure tradeoff.svg

All variants start from stories260k and see the same rows of text that it wrote itself at
temperature 1: the true law is known, and no model can have a lower loss than the one that wrote it.
`ar` is the control that the paper concedes: the same text and steps without the diffusion loss.

    ar_loss      nats a token of the autoregressive branch on held-out text
    accepted     tokens a decode step commits there, by teacher forcing (K at most)
    per forward  tokens a forward of greedy one-pass decoding on held-out beginnings
    judged       nats a token of what was said, under the model that wrote the training text:
                 greedy text is likelier than sampled text, so compare within the column only

`trade` decodes with the joint model: plain, pure diffusion by threshold, the schemes, and trust in
diffusion (beta); and pure diffusion once more with the model of random masks, which alone has seen
blocks that are half written. Tokens a second are CPU time on one thread. Rows go to
tidar_quality.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from inward.common.bases import open_base
from inward.evals.rows import append_row, machine
from inward.evals.stats import over_seeds
from inward.hub import load
from inward.methods.tidar.acceptance import acceptance
from inward.methods.tidar.decode import decode
from inward.methods.tidar.settings import TiDARSettings
from inward.recipes.tidar import OwnText, TiDARRecipe, stories
from inward.train import train

ROWS = Path(__file__).with_suffix(".jsonl")
JOINT = TiDARSettings(dense_masks="batch")
VARIANTS = {
    "joint": JOINT,
    "random masks": replace(JOINT, masking="random"),
    "alpha 0.3": replace(JOINT, alpha=0.3),
    "alpha 3": replace(JOINT, alpha=3.0),
    "K 4": replace(JOINT, block_size=4),
    "K 16": replace(JOINT, block_size=16),
    "ar": replace(JOINT, alpha=1e6),  # the weight of the diffusion loss is one in a million
}
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.9)
BETAS = (0.0, 0.25, 0.5, 0.75)


def recipe(variant: str, seed: int, args: argparse.Namespace) -> TiDARRecipe:
    """One run: the recipe tidar-stories on shorter rows."""
    base = stories()
    data = OwnText(
        path=str(args.out / "own-text.jsonl"),
        temperature=1.0,
        num_texts=args.texts,
        num_valid=args.held,
        seq_len=args.length,
        seed=0,  # the text stays, draws and batches differ
    )
    every = dict.fromkeys(("eval_every", "save_every"), max(1, args.steps // 4))
    own = replace(base.train, steps=args.steps, batch_rows=args.rows, seed=seed, **every)
    return replace(base, name=f"tidar-{variant}", method=VARIANTS[variant], data=data, train=own)


@dataclass
class Held:
    """What nothing was trained on."""

    beginnings: list[list[int]]
    rows: Any
    judge: Any


def held(args: argparse.Namespace) -> Held:
    """Held-out rows, beginnings of held-out texts, and the model that wrote them."""
    judge, tokenizer = open_base("stories260k")
    data = recipe("joint", 0, args).data
    assert isinstance(data, OwnText)
    _, texts = data.tokens(judge, tokenizer)
    whole = [texts.ids[a:b].tolist() for a, b in zip(texts.starts, texts.starts[1:], strict=False)]
    begin = [text[: 12 + i % 8] for i, text in enumerate(whole) if len(text) > 40]
    return Held(begin[: args.decoded], data.sources(judge, tokenizer)[1], judge)


@torch.no_grad()
def judged(judge: Any, prompt: Sequence[int], said: Sequence[int]) -> tuple[float, int]:
    """Nats of what was said, under the judge, and how many tokens."""
    logits = judge(torch.tensor([[*prompt, *said[:-1]]]), use_cache=False).logits[0]
    logs = logits[len(prompt) - 1 :].float().log_softmax(-1)
    return -float(logs.gather(1, torch.tensor(said)[:, None]).sum()), len(said)


def spoken(model: Any, known: Held, num: int, **how: Any) -> dict[str, float]:
    """Decode all beginnings, one at a time, and have the result judged."""
    nats = tokens = forwards = 0.0
    began = time.process_time()
    texts = []
    for begin in known.beginnings:
        found = decode(model, torch.tensor([begin]), max_new_tokens=num, eos_token_id=(), **how)
        texts.append(found.tokens[0])
        forwards += found.num_forwards
    seconds = time.process_time() - began
    for begin, text in zip(known.beginnings, texts, strict=True):
        more, count = judged(known.judge, begin, text)
        nats, tokens = nats + more, tokens + count
    threes = [set(zip(t, t[1:], t[2:], strict=False)) for t in texts]
    return {
        "judged": nats / tokens,
        "distinct": sum(map(len, threes)) / sum(len(t) - 2 for t in texts),
        "per_forward": tokens / forwards,
        "rate": tokens / seconds,
    }


@torch.no_grad()
def tested(model: Any, known: Held, args: argparse.Namespace) -> dict[str, Any]:
    """What a table row says."""
    batch = known.rows.batch(0, range(len(known.rows)), len(known.rows))
    found = model.loss(batch, None, None).metrics | acceptance(model, batch)
    measured = {name: float(total / count) for name, (total, count) in found.items()}
    return measured | spoken(model, known, args.tokens, scheme="one_pass")


def run_folder(args: argparse.Namespace, variant: str, seed: int) -> Path:
    """Where a run lies."""
    return args.out / f"{variant.replace(' ', '-')}-{seed}"


def runs(args: argparse.Namespace, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """Rows of the table, those that are missing; a killed run goes on where it was saved."""
    known = None
    for seed in range(args.seeds):
        for variant in args.variants:
            if (variant, seed) in done:
                continue
            own = recipe(variant, seed, args)
            folder = run_folder(args, variant, seed)
            summary = train(own.build(), own.train, folder)
            known = known or held(args)
            model = load(folder / "model").eval()
            row = {"study": "ablation", "variant": variant, "seed": seed, "steps": args.steps}
            yield row | tested(model, known, args) | {"cpu_seconds": summary["cpu_seconds"]}


def ways() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(variant of the model, name of the line in the figure, setting, options of `decode`)."""
    yield "joint", "plain", "", {"scheme": "plain"}
    for variant, name in (("joint", "diffusion"), ("random masks", "diffusion, random masks")):
        for t in THRESHOLDS:
            yield variant, name, f"{t:g}", {"scheme": "diffusion", "threshold": t}
    for scheme in ("two_pass", "partial", "one_pass"):
        for K in (2, 4, 8):
            yield "joint", scheme, f"K {K}", {"scheme": scheme, "K": K}
    for b in BETAS:
        yield "joint", "one_pass, beta", f"{b:g}", {"scheme": "one_pass", "beta": b, "K": 4}


def trade(args: argparse.Namespace, done: set[tuple[str, str, int]]) -> Iterator[dict[str, Any]]:
    """Rows of the trade-off, those that are missing, over every seed's models."""
    known = held(args)
    for seed in range(args.seeds):
        models = {
            name: load(run_folder(args, name, seed) / "model").eval()
            for name in ("joint", "random masks")
        }
        for variant, scheme, setting, how in ways():
            if (scheme, setting, seed) in done:
                continue
            row = {"study": "trade", "scheme": scheme, "setting": setting, "seed": seed}
            yield row | spoken(models[variant], known, args.tokens, **how)


# --------------------------------------------------------------------------------------------------
# Table and figure


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a variant, mean and 95 % interval over seeds."""
    columns = ("ar_loss", "accepted", "per_forward", "judged")
    lines = [
        "| variant | seeds | AR loss | accepted | tokens a forward | judged |",
        "|---|---|---|---|---|---|",
    ]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = [_with_interval([row[name] for row in own]) for name in columns]
        lines.append(f"| {variant} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _with_interval(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    found = over_seeds(values)
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def trade_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a way to decode, means over seeds."""
    lines = [
        "| scheme | setting | tokens a forward | tokens a second | judged | distinct 3-grams |",
        "|---|---|---|---|---|---|",
    ]
    for scheme, setting in dict.fromkeys((row["scheme"], row["setting"]) for row in rows):
        own = [r for r in rows if (r["scheme"], r["setting"]) == (scheme, setting)]
        mean = {
            name: sum(r[name] for r in own) / len(own)
            for name in ("per_forward", "rate", "judged", "distinct")
        }
        lines.append(
            f"| {scheme} | {setting} | {mean['per_forward']:.2f} | {mean['rate']:.0f} | "
            f"{mean['judged']:.3f} | {100 * mean['distinct']:.0f} % |"
        )
    return "\n".join(lines)


def figure(rows: Sequence[dict[str, Any]]) -> Any:
    """Both horns of the dilemma: tokens a second against how likely the text is."""
    from inward.viz.plots import scatter

    points: dict[str, list[tuple[float, float, str]]] = {}
    for scheme, setting in dict.fromkeys((row["scheme"], row["setting"]) for row in rows):
        own = [r for r in rows if (r["scheme"], r["setting"]) == (scheme, setting)]
        x, y = (sum(r[name] for r in own) / len(own) for name in ("rate", "judged"))
        points.setdefault(scheme, []).append((x, y, setting))
    labels = {"x_label": "tokens a second", "y_label": "nats a token, judged"}
    return scatter(points, **labels, doubling=True)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "table", "trade"))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--length", type=int, default=128, help="of a row, in clean tokens")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--held", type=int, default=64, help="texts held out")
    parser.add_argument("--decoded", type=int, default=24, help="beginnings to go on from")
    parser.add_argument("--tokens", type=int, default=100, help="new tokens a beginning")
    parser.add_argument("--out", type=Path, default=Path("runs/tidar-quality"))
    parser.add_argument("--jsonl", type=Path, default=ROWS)
    parser.add_argument("--figure", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is asked, write rows down, print."""
    args = parsed(arguments)
    torch.set_num_threads(1)
    written = args.jsonl.read_text(encoding="utf-8") if args.jsonl.exists() else ""
    rows = [json.loads(line) for line in written.splitlines()]
    given = sys.argv[1:] if arguments is None else arguments
    told = {
        "machine": machine(),
        "command": shlex.join(["python", "benchmarks/tidar/quality.py", *given]),
    }
    ablations = [row for row in rows if row["study"] == "ablation"]
    trades = [row for row in rows if row["study"] == "trade"]
    if args.what == "train":
        for row in runs(args, {(row["variant"], row["seed"]) for row in ablations}):
            append_row(args.jsonl, row | told)
            ablations.append(row)
            print(table(ablations), flush=True)
    elif args.what == "trade":
        for row in trade(args, {(r["scheme"], r["setting"], r["seed"]) for r in trades}):
            append_row(args.jsonl, row | told)
            trades.append(row)
        print(trade_table(trades))
    else:
        print(table(ablations))
    if args.figure is not None:
        from inward.viz.plots import save

        save(figure(trades), args.figure)


if __name__ == "__main__":
    main()
