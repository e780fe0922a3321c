"""A side of a benchmark in a process of its own: one reads an order, then one word of work per
line, and answers each with a line of JSON.

So neither names nor memory of one side touch the other, and each may stand on packages of its own.
`Process` is the end that asks, `serve` the end that answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol


class Side(Protocol):
    """What answers: told once what it is, then asked to work."""

    about: str
    flops: dict[str, float]

    def do(self, word: str) -> dict[str, Any]:
        """The answer to a word, JSON values."""
        ...


class Process:
    """A process that builds one side and does one piece of work per line it reads.

    Args:
        order: a dataclass with `side` (its name in errors) and `threads`, of JSON values.
        module: where `serve_order()` is.
        bench: name of the subject, for errors.
        packages: a folder of packages to import before all others.
    """

    def __init__(self, order: Any, module: str, *, bench: str, packages: str = ""):
        paths = [packages, str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",  # nothing is left behind in a clone
            "OMP_NUM_THREADS": str(order.threads),
        }
        self.order, self.bench = order, bench
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {module} import serve_order; serve_order()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def __enter__(self) -> Process:
        try:
            self.ready = self.ask(json.dumps(asdict(self.order)))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to one line; an error over there is a ValueError here."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended; the empty answer tells
        answer = json.loads(self.process.stdout.readline() or '{"error": "its process ended"}')
        if "error" in answer:
            raise ValueError(f"bench {self.bench}, the side {self.order.side}: {answer['error']}")
        return answer


def serve(build: Callable[[dict[str, Any]], Side]) -> None:
    """Answer on standard output; whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the official code prints must not mix with the answers

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        side = build(json.loads(sys.stdin.readline()))
        answer({"about": side.about, "flops": side.flops})
        for line in sys.stdin:
            answer(side.do(line.strip()))
    except Exception as error:  # noqa: BLE001 - told to the other process, which raises it
        answer({"error": f"{type(error).__name__}: {error}"})


def clock(threads: int) -> Callable[[], float]:
    """CPU time of one thread, which neighbours on the machine hardly change; else wall time."""
    return time.process_time if threads == 1 else time.perf_counter


def commit_of(clone: Path) -> str:
    """The short commit that a clone stands at, or "unknown"."""
    git = ["git", "-C", str(clone), "rev-parse", "--short", "HEAD"]
    asked = subprocess.run(git, capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else "unknown"
