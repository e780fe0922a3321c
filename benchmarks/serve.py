"""`inward serve` beside `transformers serve`: tokens a second, time to the first, memory.

    python benchmarks/serve.py MODEL [--streams 1 4 16 64] [--tokens 64] [--rounds 3]

A server runs alone on one core with one thread of torch, the client on another. Sides alternate
round by round; each is started anew and warmed up, then asked at every number of streams: sixteen
prompts in turn (each stream one after the other, at least sixteen answers in all), greedily, as
streams: chats of a model that reads these, else /v1/completions.

    transformers    `transformers serve MODEL --continuous-batching`, same dtype
    plain           `inward serve MODEL`
    look-up         the same; the prompt itself as `prediction`: what followed there is guessed
    known           the same with the answer as `prediction`: all guesses stand, the most there is
    draft           `inward serve --draft-model`: a TiDAR on the same base, which drafts by itself

A row a (round, side, streams) goes to benchmarks/serve.jsonl as soon as it is there; those that are
there are not measured again, so a run that was stopped goes on. A row tells how busy the machine
was (`load`), what the server used of its processor for a token, which hardly depends on that, and
`wrong`: answers that are not what the side said to the prompt before.

    --summary       the medians of what is there, and ours over theirs, round by round
    --soak MINUTES  keep the largest number of streams going that long, with ours alone
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from transformers import AutoTokenizer

from inward.evals.rows import append_row, machine

ROWS = Path(__file__).with_suffix(".jsonl")
STARTS = (
    "Once upon a time there was a little girl named", "The old clock in the tower said", "Tom and",
    "It was raining, so the two friends", "Deep in the forest a small fox", "On Monday morning the",
    "Her mother told her that the", "He opened the box and saw a", "The sea was calm until a big",
    "Each night the moon asked the", "Sara wanted to bake a cake for", "The dog ran after the red",
    "At the end of the street was a", "They found a map that showed", "Ben had a toy car. One day",
    "In the garden grew a tall tree with",
)  # fmt: skip
"""What is gone on with."""
GUESSES = ("look-up", "known")
"""Sides that send a `prediction`."""


@dataclass(frozen=True)
class Plan:
    """What a row depends on, beside side, streams and round."""

    model: str
    tokens: int
    dtype: str
    cores: tuple[int, int]
    draft_model: str | None = None


@dataclass
class Level:
    """What a number of streams came to."""

    tokens: int = 0
    answers: int = 0
    wrong: int = 0
    failed: int = 0
    first: list[float] = field(default_factory=list)
    seconds: float = 0.0


# --------------------------------------------------------------------------------------------------
# Servers


def command_of(side: str, plan: Plan, port: int) -> list[str]:
    """What starts a server."""
    if side == "transformers":
        return [
            str(Path(sys.executable).parent / "transformers"), "serve", plan.model, "--port",
            str(port), "--host", "127.0.0.1", "--continuous-batching", "--device", "cpu",
            "--dtype", plan.dtype,
        ]  # fmt: skip
    if side == "draft" and plan.draft_model is None:
        raise ValueError("the side 'draft' needs --draft-model, a TiDAR on the same base")
    model = plan.draft_model if side == "draft" else plan.model
    return [
        sys.executable, "-m", "inward", "serve", f"served={model}", "--port", str(port),
        "--threads", "1", "--batch-size", "64", "--log-level", "warning",
    ]  # fmt: skip


@contextmanager
def serving(side: str, plan: Plan) -> Iterator[tuple[str, int]]:
    """A server on its core: its address and process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "INWARD_API_KEY": ""}
    log = Path(tempfile.gettempdir()) / f"serve-{side}-{port}.log"
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command_of(side, plan, port), env=env, stdout=out, stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, {plan.cores[0]}),
        )  # fmt: skip
    try:
        _wait_for(port, process, log)
        yield f"http://127.0.0.1:{port}/v1", process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text(encoding='utf-8')[-2000:]}")
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("the server did not come up within 300 s")


def memory_of(pid: int) -> dict[str, float]:
    """MiB that a process holds, and held at most."""
    told = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = {name: re.search(rf"{name}:\s+(\d+) kB", told) for name in ("VmRSS", "VmHWM")}
    return {name: round(int(m[1]) / 1024, 1) for name, m in found.items() if m is not None}


def cpu_of(pid: int) -> float:
    """Seconds of processor that a process has used, which hardly depend on who else is there."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --------------------------------------------------------------------------------------------------
# The client


@dataclass
class Asker:
    """Streams answers of one side and checks them against what it said before."""

    client: openai.AsyncOpenAI
    side: str
    plan: Plan
    tokenizer: Any
    said: dict[int, str] = field(default_factory=dict)

    @property
    def chats(self) -> bool:
        """By chats: those of a model that was trained on them, and those with a `prediction`, which
        no other route takes. A model without a template reads the same text either way."""
        return self.tokenizer.chat_template is not None or self.side in GUESSES

    async def answer(self, number: int, level: Level) -> None:
        """One answer to a prompt."""
        began, first, text = time.perf_counter(), None, ""
        try:
            async for new in self._pieces(number):
                if new and first is None:
                    first = time.perf_counter() - began
                text += new
        except openai.OpenAIError as error:
            level.failed += 1
            print(f"{self.side}: {error}", file=sys.stderr)
            return
        level.first.append(first or time.perf_counter() - began)
        level.tokens += len(self.tokenizer(text, add_special_tokens=False).input_ids)
        level.answers += 1
        level.wrong += self.said.setdefault(number, text) != text

    async def _pieces(self, number: int) -> AsyncIterator[str]:
        prompt = STARTS[number]
        body: dict[str, Any] = {
            "model": self.plan.model if self.side == "transformers" else "served",
            "max_tokens": self.plan.tokens, "temperature": 0, "stream": True,
        }  # fmt: skip
        if not self.chats:
            async for piece in await self.client.completions.create(prompt=prompt, **body):
                yield (piece.choices[0].text or "") if piece.choices else ""
            return
        guess = {"look-up": prompt, "known": self.said.get(number)}.get(self.side)
        if guess is not None:
            body["prediction"] = {"type": "content", "content": guess}
        body["messages"] = [{"role": "user", "content": prompt}]
        async for piece in await self.client.chat.completions.create(**body):
            yield (piece.choices[0].delta.content or "") if piece.choices else ""

    async def level(self, streams: int, seconds: float | None = None) -> Level:
        """So many at once: each prompt at least once; or for so long."""
        level, began, next_one = Level(), time.perf_counter(), iter(range(1 << 30))
        most = max(streams, len(STARTS))

        async def stream() -> None:
            for number in next_one:
                late = seconds is not None and time.perf_counter() - began > seconds
                if late or (seconds is None and number >= most):
                    return
                await self.answer(number % len(STARTS), level)

        await asyncio.gather(*(stream() for _ in range(streams)))
        level.seconds = time.perf_counter() - began
        return level


# --------------------------------------------------------------------------------------------------
# Rows


def measured(
    side: str, plan: Plan, levels: list[int], number: int, soak: float | None
) -> Iterator[dict[str, Any]]:
    """A row for each number of streams, from one start of the server."""
    tokenizer = AutoTokenizer.from_pretrained(plan.model)
    with serving(side, plan) as (url, pid):

        async def all_levels() -> Any:
            client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=1800)
            asker = Asker(client, side, plan, tokenizer)
            await asker.level(1)  # warm: every prompt once, and what it is answered
            for streams in levels:
                load, cpu = os.getloadavg()[0], cpu_of(pid)
                level = await asker.level(streams, soak)
                yield streams, load, level, cpu_of(pid) - cpu

        loop = asyncio.new_event_loop()
        found = all_levels()
        try:
            while True:
                try:
                    streams, load, level, cpu = loop.run_until_complete(anext(found))
                except StopAsyncIteration:
                    return
                yield {
                    "side": side, "streams": streams, "round": number, "model": plan.model,
                    "tokens": plan.tokens, "dtype": plan.dtype,
                    "tokens_per_second": round(level.tokens / level.seconds, 2),
                    "cpu_per_token": round(cpu / max(1, level.tokens), 6),
                    "first_p50": round(statistics.median(level.first or [0.0]), 4),
                    "first_max": round(max(level.first or [0.0]), 4),
                    "answers": level.answers, "wrong": level.wrong, "failed": level.failed,
                    "seconds": round(level.seconds, 3), "memory": memory_of(pid),
                    "load": round(load, 2), "soak": soak,
                }  # fmt: skip
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a row the same measurement."""
    return tuple(row[n] for n in ("side", "streams", "round", "model", "tokens", "dtype", "soak"))


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What is there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(rows: list[dict[str, Any]]) -> str:
    """Medians by streams and side, and each side over transformers, paired by rounds."""
    told = [
        f"{'streams':>7} {'side':<13}{'tok/s':>9}{'cpu ms':>8}{'first':>9}{'MiB':>8}{'wrong':>6}"
    ]
    for streams in sorted({row["streams"] for row in rows}):
        here = [row for row in rows if row["streams"] == streams and row["soak"] is None]
        theirs = {r["round"]: r["tokens_per_second"] for r in here if r["side"] == "transformers"}
        for side in dict.fromkeys(row["side"] for row in here):
            own = [row for row in here if row["side"] == side]
            speed, cpu, first, memory = (
                statistics.median(value)
                for value in (
                    [row["tokens_per_second"] for row in own],
                    [1000 * row["cpu_per_token"] for row in own],
                    [row["first_p50"] for row in own],
                    [row["memory"].get("VmHWM", 0.0) for row in own],
                )
            )
            pairs = [
                row["tokens_per_second"] / theirs[row["round"]]
                for row in own
                if theirs.get(row["round"])
            ]
            ratio = f"{statistics.median(pairs):.2f} ({len(pairs)} rounds)" if pairs else ""
            wrong = sum(row["wrong"] + row["failed"] for row in own)
            numbers = f"{speed:>9.1f}{cpu:>8.3f}{first:>9.3f}{memory:>8.0f}{wrong:>6}"
            told.append(f"{streams:>7} {side:<13}{numbers}  {ratio}")
    return "\n".join(told)


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sides", nargs="+", default=["transformers", "plain", "look-up", "known"])
    parser.add_argument("--draft-model")
    parser.add_argument("--cores", type=int, nargs=2, default=[0, 1], help="server's, client's")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--summary", action="store_true")
    args = parser.parse_args()
    if args.summary:
        print(summary(rows_of(args.rows)))
        return
    plan = Plan(args.model, args.tokens, args.dtype, tuple(args.cores), args.draft_model)
    os.sched_setaffinity(0, {plan.cores[1]})
    soak = None if args.soak is None else args.soak * 60
    sides = ["plain"] if soak else args.sides
    levels = [max(args.streams)] if soak else args.streams
    for number in range(args.rounds if soak is None else 1):
        # who begins alternates, so that a machine that warms up favours nobody
        for side in sides if number % 2 == 0 else sides[::-1]:
            known = {key_of(row) for row in rows_of(args.rows)}
            asked = (side, number, args.model, args.tokens, args.dtype, soak)
            left = [s for s in levels if (asked[0], s, *asked[1:]) not in known]
            if not left:
                continue
            for row in measured(side, plan, left, number, soak):
                row |= {"machine": machine(), "command": shlex.join(sys.argv)}
                append_row(args.rows, row)
                print(json.dumps({k: row[k] for k in list(row)[:9]} | {"wrong": row["wrong"]}))
    print(summary(rows_of(args.rows)))


if __name__ == "__main__":
    main()
