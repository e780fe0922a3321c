"""What it costs to ask every byte whether weights have changed (`python benchmarks/stale.py`).

A causal LM of SmolLM2-135M's shape says `--tokens` tokens, then its weights are marked as they are
at the beginning of a call (`inward.common.cpu.marks`), in turn for `--rounds` rounds; torch runs on
one thread, CPU seconds count, the least of either. A row a dtype goes to benchmarks/stale.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inward.common.cpu.linears import Linears
from inward.common.cpu.marks import Mark
from inward.common.sampling import Sampling
from inward.common.thinking import Request, answers
from inward.evals.rows import append_row, machine
from inward.methods.tidar.door import PLAIN

SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}  # fmt: skip


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16", "float32"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for dtype in args.dtypes:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(getattr(torch, dtype)).eval()
        weights = [layer.weight for layer, _ in Linears(model).products]
        num_bytes = sum(w.numel() * w.element_size() for w in weights)
        prompt = torch.randint(49152, (16,), generator=torch.Generator().manual_seed(0)).tolist()
        request = Request(prompt, args.tokens, sampling=Sampling(), ends=frozenset())
        calls, marks = [], []
        for _ in range(args.rounds):
            began = time.process_time()
            (answer,) = answers(PLAIN.begin(model), [request])
            calls.append(time.process_time() - began)
            assert len(answer.tokens) == args.tokens
            for _ in range(5):
                began = time.process_time()
                for weight in weights:
                    Mark(weight)
                marks.append(time.process_time() - began)
        row = {
            "what": "marks", "dtype": dtype, "megabytes": round(num_bytes / 1e6, 1),
            "tokens": args.tokens, "call_seconds": round(min(calls), 4),
            "mark_seconds": round(min(marks), 4), "share": round(min(marks) / min(calls), 4),
            "rounds": args.rounds, "machine": machine(), "command": shlex.join(sys.argv),
        }  # fmt: skip
        print(json.dumps(row))
        append_row(Path(__file__).with_suffix(".jsonl"), row)


if __name__ == "__main__":
    main()
