"""`inward demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inward.cli.options import _console, _go
from inward.common.files import check_target


def demo(words: list[str]) -> int:
    """Solve fresh puzzles with the shipped models."""
    return _go(Demo, "demo", words)


@dataclass
class Demo:
    """Solve fresh puzzles with the models that come with the package, and show how."""

    seed: int = 0
    """of the puzzles"""
    num: int | None = None
    """puzzles of each kind; None: as many as take seconds"""
    out: Path = Path("demo")
    """folder for the pictures"""
    seconds: float = 4.0
    """length of an animation (terminals only)"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.demo.demo import demo
        from inward.hub import quiet

        check_target(self.out / "picture")
        with quiet():
            demo(
                seed=self.seed,
                num=self.num,
                out=self.out,
                console=_console(),
                seconds=self.seconds,
            )
        return 0
