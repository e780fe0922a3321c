"""Memory of a process when a model is spread over several: a Huginn whose states dominate.

    python benchmarks/train/sharding.py [--width 384] [--processes 1 2 4] [--out sharding.jsonl]

Each row: resident memory above that of a process that has loaded torch and inward, between two
steps (weights, average, optimizer states) and at its highest within a step (what is gathered, and
gradients, too), of the fullest process. Steps are tiny, so that activations do not count. Linux.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

MEBIBYTE = 1 << 20
MEASURED = 4
"""The step whose highest memory counts; before the first one there is no optimizer state"""


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"the system tells no {name}")


def measure(rank: int, world: int, port: int, parallel: str, width: int, out: Path) -> None:
    """Train five steps as one of `world` processes; what was found goes to a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    import torch
    import torch._dynamo  # an optimizer does

    from inward.methods.huginn.config import HuginnConfig
    from inward.methods.huginn.model import HuginnForCausalLM
    from inward.train.loop import Run, train
    from inward.train.settings import OptimSettings, TrainSettings

    torch.set_num_threads(1)
    config = HuginnConfig(
        n_embd=width,
        num_attention_heads=8,
        intermediate_size=4 * width,
        n_layers_in_prelude=2,
        n_layers_in_recurrent_block=2,
        n_layers_in_coda=2,
        vocab_size=2048,
        block_size=64,
        mean_recurrence=2,
        mean_backprop_depth=1,
        tie_word_embeddings=True,
    )
    found: dict[str, Any] = {}

    class Source:
        def batch(self, step: int, rows: range, num_rows: int) -> dict[str, torch.Tensor]:
            if step == MEASURED:
                found["between"] = memory("VmRSS") - found["empty"]
                Path("/proc/self/clear_refs").write_text("5")
            if step == MEASURED + 1:
                found["highest"] = memory("VmHWM") - found["empty"]
                (out / f"{rank}.json").write_text(json.dumps(found))
                os._exit(0)  # what comes now would be the writing of a state
            ids = torch.arange(9)[None].expand(len(rows), -1)
            return {"input_ids": ids, "labels": ids, "weight": torch.tensor(8 * len(rows))}

        def describe(self) -> dict[str, Any]:
            return {}

    model = HuginnForCausalLM(config)
    found["parameters"] = sum(p.numel() for p in model.parameters())
    found["empty"] = memory("VmRSS") - 4 * found["parameters"]
    settings = TrainSettings(
        steps=MEASURED + 2,
        batch_rows=4,
        optim=OptimSettings(name="adamw"),
        parallel=parallel,  # pyright: ignore
        shard_processes=2 if parallel == "hsdp" else 0,
        device="cpu",
        progress="off",
    )
    train(Run(model, Source()), settings, out / "run")


def row(parallel: str, world: int, width: int) -> dict[str, Any]:
    """One measurement, of the fullest process."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.close()
        words = (world, port, parallel, width, Path(folder))
        ranks = [context.Process(target=measure, args=(rank, *words)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        found = [json.loads((Path(folder) / f"{n}.json").read_text()) for n in range(world)]
    weights = 4 * found[0]["parameters"]
    states = {name: max(each[name] for each in found) for name in ("between", "highest")}
    return {
        "what": "memory of a process",
        "parallel": parallel if world > 1 else "one process",
        "processes": world,
        "parameters": found[0]["parameters"],
        **{f"{name}_mib": round(value / MEBIBYTE) for name, value in states.items()},
        **{f"{name}_in_weights": round(value / weights, 2) for name, value in states.items()},
    }


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    options = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the system
    for world in options.processes:
        kinds = ["ddp"] if world == 1 else ["ddp", "fsdp", *(["hsdp"] if world > 2 else [])]
        for parallel in kinds:
            found = row(parallel, world, options.width)
            print(json.dumps(found), flush=True)
            with options.out.open("a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
