"""Our engine beside vLLM's on the same Huginn: `.venv-vllm/bin/python benchmarks/scale/serving.py`

30M parameters (the shape of `inward bench huginn`), random weights, r = 16, float32, one thread a
side, prompts of 32 random tokens, greedy, exact cache. 1, 4 and 16 requests come together. The two
take turns in pairs, each in a process of its own that waits while the other works; taken is the CPU
time of the process (one thread each, so that a shared machine changes little), wall time and load
stand beside it. Both must say the same tokens. Rows go to serving.jsonl beside this file.

    ratio = our tokens a CPU second / vLLM's      (median over pairs)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inward.bench.huginn import SHAPE
from inward.evals.rows import append_row

ROWS = Path(__file__).with_suffix(".jsonl")
Run = Callable[[list[list[int]], int], list[list[int]]]


def ours(folder: str) -> Run:
    """The engine behind `inward serve`."""
    import torch

    from inward.methods.huginn.generate import generate
    from inward.methods.huginn.model import HuginnForCausalLM

    torch.set_num_threads(1)
    model = HuginnForCausalLM.from_pretrained(folder).eval()

    def run(prompts: list[list[int]], num: int) -> list[list[int]]:
        more: dict[str, Any] = {"halt": "never", "eos_token_id": (), "batch_size": 16}
        given = [torch.tensor(prompt) for prompt in prompts]
        return [t.tolist() for t in generate(model, given, max_new_tokens=num, **more).tokens]

    return run


def vllm(folder: str) -> Run:
    """vLLM's engine, in this process."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    engine = LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=256,
        max_num_seqs=16,
        enable_prefix_caching=False,  # the same prompts come again
    )

    def run(prompts: list[list[int]], num: int) -> list[list[int]]:
        params = SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        found = engine.generate(asked, params, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in found]

    return run


def side(name: str, folder: str) -> None:
    """A process that works when it is told to; one line of JSON for each order."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    run = {"ours": ours, "vllm": vllm}[name](folder)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        cpu, wall = time.process_time(), time.perf_counter()
        said = run(order["prompts"], order["num"])
        took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        print(json.dumps({"said": said, **took}), file=answers, flush=True)


def start(name: str, folder: str) -> subprocess.Popen[str]:
    """A side that has loaded its model."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, __file__, "--side", name, "--folder", folder]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "ready\n", name
    return process


def ask(process: subprocess.Popen[str], prompts: list[list[int]], num: int) -> dict[str, Any]:
    """What a side says and how long it took."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({"prompts": prompts, "num": num}) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def compare(args: argparse.Namespace) -> None:
    """All numbers of requests, in pairs."""
    import random

    import torch

    from inward.methods.huginn.config import HuginnConfig
    from inward.methods.huginn.model import HuginnForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = HuginnForCausalLM(HuginnConfig(**SHAPE))
        model.save_pretrained(folder)
        size = sum(p.numel() for p in model.parameters())
        sides = {name: start(name, folder) for name in ("ours", "vllm")}
        draw = random.Random(0)
        for requests in args.requests:
            prompts = [
                [draw.randrange(SHAPE["vocab_size"]) for _ in range(args.prompt)]
                for _ in range(requests)
            ]
            for process in sides.values():
                ask(process, prompts, 2)  # memory is there, kernels are chosen
            pairs = [
                {name: ask(process, prompts, args.new) for name, process in sides.items()}
                for _ in range(args.pairs)
            ]
            rates = {
                name: [requests * args.new / pair[name]["cpu"] for pair in pairs] for name in sides
            }
            row = {
                "requests": requests,
                "parameters": size,
                "new": args.new,
                "prompt": args.prompt,
                "pairs": args.pairs,
                **{f"{n}_tokens_a_cpu_second": round(statistics.median(r), 2)
                   for n, r in rates.items()},
                **{f"{n}_wall": [round(p[n]["wall"], 2) for p in pairs] for n in sides},
                "ratios": [round(a / b, 3) for a, b in zip(*rates.values(), strict=True)],
                "same_tokens": all(p["ours"]["said"] == p["vllm"]["said"] for p in pairs),
                "load": os.getloadavg()[0],
            }  # fmt: skip
            row["ratio"] = round(statistics.median(row["ratios"]), 3)
            append_row(ROWS, row)
            print(json.dumps(row), flush=True)
        for process in sides.values():
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=("ours", "vllm"))
    parser.add_argument("--folder", default="")
    parser.add_argument("--requests", type=int, nargs="+", default=(1, 4, 16))
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.side:
        side(arguments.side, arguments.folder)
    else:
        compare(arguments)
